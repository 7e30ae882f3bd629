//! From values to places on an axis, and the round values that are written beside it.

use crate::bench::table::number;

/// A range of values on a range of pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    kind: ScaleKind,
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScaleKind {
    /// From zero.
    Linear,
    /// Each decade the same length: for values of very different size.
    Logarithmic,
}

/// Values that differ more are read better on a logarithmic axis.
const WIDE: f64 = 20.0;

/// Ticks that an axis has room for.
const TICKS: f64 = 6.0;

impl ScaleKind {
    /// What suits these values, of which a logarithm takes only positive ones.
    pub(super) fn for_values(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (low, high) = ends(values);
        if low > 0.0 && high / low >= WIDE {
            Self::Logarithmic
        } else {
            Self::Linear
        }
    }
}

/// The least and the greatest of the finite ones; infinite the wrong way round when there are none.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
}

impl Scale {
    /// Room for all values between the pixels `start` and `end`.
    pub(super) fn new(
        kind: ScaleKind,
        values: impl Iterator<Item = f64>,
        start: f64,
        end: f64,
    ) -> Self {
        let (low, high) = ends(values);
        let (from, to) = match kind {
            ScaleKind::Linear => {
                let (low, high) = (low.min(0.0), high.max(low.min(0.0) + 1e-9));
                let step = linear_step(high - low);
                ((low / step).floor() * step, (high / step).ceil() * step)
            }
            ScaleKind::Logarithmic => {
                // Half a step of air below, so that the least is not in the corner.
                let low = if low.is_finite() && low > 0.0 {
                    low
                } else {
                    1.0
                };
                (low / 1.5, high.max(low) * 1.5)
            }
        };
        Self {
            kind,
            from,
            to,
            start,
            end,
        }
    }

    /// The pixel of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        let part = match self.kind {
            ScaleKind::Linear => (value - self.from) / (self.to - self.from),
            ScaleKind::Logarithmic => {
                (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
            }
        };
        self.start + (self.end - self.start) * part
    }

    /// Round values within the range, and how they are written.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let values = match self.kind {
            ScaleKind::Linear => self.linear_ticks(),
            ScaleKind::Logarithmic => self.logarithmic_ticks(),
        };
        let tick = |value: f64| (value, written(value));
        values.into_iter().map(tick).collect()
    }

    fn linear_ticks(&self) -> Vec<f64> {
        let step = linear_step(self.to - self.from);
        let first = (self.from / step).round();
        (0..=32)
            .map(|n| (first + f64::from(n)) * step)
            .take_while(|value| *value <= self.to + step * 0.01)
            .collect()
    }

    /// 1, 2 and 5 of each decade, or 1 alone when there are many.
    fn logarithmic_ticks(&self) -> Vec<f64> {
        let decades = (self.to / self.from).log10();
        let steps: &[f64] = if decades > TICKS / 2.5 {
            &[1.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let first = self.from.log10().floor();
        let all = (0..=32).flat_map(|n| {
            let decade = 10_f64.powf(first + f64::from(n));
            steps.iter().map(move |step| step * decade)
        });
        all.skip_while(|value| *value < self.from)
            .take_while(|value| *value <= self.to)
            .collect()
    }
}

/// 1, 2 or 5 times a power of ten, so that a range has about [`TICKS`].
fn linear_step(range: f64) -> f64 {
    let rough = range / TICKS;
    let decade = 10_f64.powf(rough.log10().floor());
    let digit = rough / decade;
    let digit = [1.0, 2.0, 5.0].into_iter().find(|it| digit <= *it);
    digit.unwrap_or(10.0) * decade
}

/// A tick's value is round: no digit of it is noise.
fn written(value: f64) -> String {
    if value.abs() >= 1000.0 {
        return number(Some(value));
    }
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(kind: ScaleKind, values: &[f64]) -> Vec<String> {
        let scale = Scale::new(kind, values.iter().copied(), 0.0, 100.0);
        scale.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn linear_axes_begin_at_zero_and_end_above_the_greatest() {
        assert_eq!(
            ticks(ScaleKind::Linear, &[3.0, 47.0]),
            ["0", "10", "20", "30", "40", "50"]
        );
        assert_eq!(
            ticks(ScaleKind::Linear, &[0.9]),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!(
            ticks(ScaleKind::Linear, &[-3.0, 5.0]),
            ["-4", "-2", "0", "2", "4", "6"]
        );
        assert_eq!(ticks(ScaleKind::Linear, &[5200.0]).last().unwrap(), "6,000");
    }

    #[test]
    fn logarithmic_axes_have_round_values() {
        assert_eq!(
            ticks(ScaleKind::Logarithmic, &[10.0, 300.0]),
            ["10", "20", "50", "100", "200"]
        );
        assert_eq!(
            ticks(ScaleKind::Logarithmic, &[0.5, 20_000.0]),
            ["1", "10", "100", "1,000", "10,000"]
        );
    }

    #[test]
    fn places_follow_values() {
        let scale = Scale::new(ScaleKind::Linear, [0.0, 10.0].into_iter(), 200.0, 0.0);
        assert!((scale.at(0.0) - 200.0).abs() < 1e-9 && scale.at(10.0).abs() < 1e-9);
        let scale = Scale::new(ScaleKind::Logarithmic, [1.0, 100.0].into_iter(), 0.0, 100.0);
        assert!((scale.at(10.0) - 50.0).abs() < 1e-9);
        assert!(
            scale.at(0.0).abs() < 1e-9,
            "what has no logarithm is at the edge"
        );
    }

    #[test]
    fn nothing_and_nonsense_have_an_axis_too() {
        for kind in [ScaleKind::Linear, ScaleKind::Logarithmic] {
            for values in [&[][..], &[0.0], &[f64::NAN], &[f64::INFINITY, 1.0]] {
                let scale = Scale::new(kind, values.iter().copied(), 0.0, 100.0);
                assert!(scale.ticks().len() < 40);
                assert!(scale.at(1.0).is_finite(), "{kind:?} {values:?} {scale:?}");
            }
        }
    }

    #[test]
    fn the_kind_suits_the_values() {
        let kind = |values: &[f64]| ScaleKind::for_values(values.iter().copied());
        assert_eq!(kind(&[1.0, 19.0]), ScaleKind::Linear);
        assert_eq!(kind(&[1.0, 20.0]), ScaleKind::Logarithmic);
        assert_eq!(kind(&[0.0, 20.0]), ScaleKind::Linear);
        assert_eq!(kind(&[]), ScaleKind::Linear);
    }
}
