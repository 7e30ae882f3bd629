//! A line chart as inline SVG: axes with units, a curve for each series with its name at its end, the exact
//! values in the points' titles. Colours come from the page's style sheet.

use std::fmt::Write;

use super::scale::{Scale, ScaleKind};
use super::text::escape;

/// A chart to draw.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    /// `None`: what suits the values.
    pub(super) y_kind: Option<ScaleKind>,
    pub(super) series: Vec<Series>,
}

#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// Number of the colour.
    pub(super) slot: usize,
    pub(super) dashed: bool,
    /// Whether each value holds until the next one, as in a distribution. Such curves have no dots.
    pub(super) stepped: bool,
    pub(super) points: Vec<Point>,
}

#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// What it says when pointed at.
    pub(super) title: String,
}

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 58.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 286.0;

/// A digit or letter of a curve's name.
const LETTER: f64 = 6.6;

/// Between the names of two curves.
const LINE: f64 = 15.0;

/// Colours that there are.
const COLOURS: usize = 6;

/// As the style sheet knows it.
pub(super) fn colour(slot: usize) -> String {
    format!("s{}", slot.min(COLOURS - 1))
}

impl Chart {
    /// Nothing to draw.
    pub(super) fn is_empty(&self) -> bool {
        self.series.iter().all(|it| it.points.is_empty())
    }

    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|it| &it.points);
        let (xs, ys) = (points().map(|it| it.x), points().map(|it| it.y));
        let longest = self.series.iter().map(|it| it.name.chars().count()).max();
        let right = WIDTH - 16.0 - LETTER * crate::bench::numbers::float(longest.unwrap_or(0));
        let x = Scale::new(ScaleKind::for_values(xs.clone()), xs, LEFT + 8.0, right);
        let y_kind = self
            .y_kind
            .unwrap_or_else(|| ScaleKind::for_values(ys.clone()));
        let y = Scale::new(y_kind, ys, BOTTOM, TOP);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over {}\">\n",
            escape(self.y),
            escape(self.x)
        );
        self.axes(&mut svg, &x, &y, right);
        for series in self.series.iter().filter(|it| !it.points.is_empty()) {
            series.curve(&mut svg, &x, &y);
        }
        self.names(&mut svg, &x, &y, right);
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self, svg: &mut String, x: &Scale, y: &Scale, right: f64) {
        for (value, text) in y.ticks() {
            let at = y.at(value);
            line(svg, "grid", LEFT, at, right, at);
            label(svg, LEFT - 8.0, at + 4.0, "end", "", &text);
        }
        for (value, text) in x.ticks() {
            let at = x.at(value);
            line(svg, "axis", at, BOTTOM, at, BOTTOM + 4.0);
            label(svg, at, BOTTOM + 18.0, "middle", "", &text);
        }
        line(svg, "axis", LEFT, BOTTOM, right, BOTTOM);
        label(svg, 0.0, TOP - 12.0, "start", "", self.y);
        label(svg, right, HEIGHT - 6.0, "end", "", self.x);
    }

    /// Beside the last points, moved apart where they would cover each other.
    fn names(&self, svg: &mut String, x: &Scale, y: &Scale, right: f64) {
        let mut ends: Vec<_> = (self.series.iter())
            .filter_map(|it| Some((it, it.points.last()?)))
            .map(|(series, last)| (series, x.at(last.x), y.at(last.y)))
            .collect();
        ends.sort_by(|one, other| one.2.total_cmp(&other.2));
        let wanted: Vec<f64> = ends.iter().map(|(_, _, y)| *y).collect();
        for ((series, from_x, from_y), place) in ends.into_iter().zip(apart(&wanted)) {
            let colour = colour(series.slot);
            // Distributions all end at the top: a line to each name would only cross the others.
            if !series.stepped {
                let _ = writeln!(
                    svg,
                    "<polyline class=\"lead\" points=\"{from_x:.1},{from_y:.1} {:.1},{place:.1}\"/>",
                    right + 6.0
                );
            }
            let _ = writeln!(
                svg,
                "<circle class=\"dot {colour}\" cx=\"{:.1}\" cy=\"{place:.1}\" r=\"4\"/>",
                right + 6.0
            );
            label(
                svg,
                right + 13.0,
                place + 4.0,
                "start",
                "name",
                &series.name,
            );
        }
    }
}

/// Places at least a line apart, in the order of the wanted ones and as near to them as a single pass down
/// and one up bring them, all between top and bottom.
fn apart(wanted: &[f64]) -> Vec<f64> {
    let mut places = Vec::with_capacity(wanted.len());
    let mut least = TOP;
    for &at in wanted {
        let place = at.max(least);
        least = place + LINE;
        places.push(place);
    }
    let mut most = BOTTOM;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - LINE;
    }
    places
}

impl Series {
    fn curve(&self, svg: &mut String, x: &Scale, y: &Scale) {
        let colour = colour(self.slot);
        let mut path = String::new();
        let mut before = None;
        for point in &self.points {
            let (at_x, at_y) = (x.at(point.x), y.at(point.y));
            if let (true, Some(height)) = (self.stepped, before) {
                let _ = write!(path, "{at_x:.1},{height:.1} ");
            }
            let _ = write!(path, "{at_x:.1},{at_y:.1} ");
            before = Some(at_y);
        }
        let dashed = if self.dashed { " dashed" } else { "" };
        let _ = writeln!(
            svg,
            "<polyline class=\"line {colour}{dashed}\" points=\"{}\"/>",
            path.trim_end()
        );
        if self.stepped {
            return;
        }
        for point in &self.points {
            let _ = writeln!(
                svg,
                "<circle class=\"dot {colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}</title></circle>",
                x.at(point.x),
                y.at(point.y),
                escape(&point.title)
            );
        }
    }
}

fn line(svg: &mut String, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
    let _ = writeln!(
        svg,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    let class = if class.is_empty() {
        String::new()
    } else {
        format!(" class=\"{class}\"")
    };
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{class}>{}</text>",
        escape(text)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::golden::assert_golden;

    fn point(x: f64, y: f64) -> Point {
        Point {
            x,
            y,
            title: format!("{x} & {y}"),
        }
    }

    fn chart() -> Chart {
        let series = |name: &str, slot, stepped, points| Series {
            name: name.into(),
            slot,
            dashed: slot == 1,
            stepped,
            points,
        };
        Chart {
            x: "started at once",
            y: "batch, ms",
            y_kind: None,
            series: vec![
                series(
                    "rundlet",
                    0,
                    false,
                    vec![point(1.0, 10.0), point(50.0, 40.0)],
                ),
                series(
                    "a <peer>",
                    1,
                    false,
                    vec![point(1.0, 100.0), point(50.0, 900.0)],
                ),
                series("steps", 9, true, vec![point(1.0, 20.0), point(10.0, 30.0)]),
                series("nothing", 3, false, Vec::new()),
            ],
        }
    }

    #[test]
    fn the_picture_is_as_it_was() {
        let svg = chart().svg();
        assert_golden("page/golden.svg", &svg);
    }

    #[test]
    fn names_do_not_cover_each_other_and_stay_inside() {
        let places = apart(&[30.0, 31.0, 32.0, 284.0, 285.0, 286.0]);
        for pair in places.windows(2) {
            assert!(pair[1] - pair[0] >= LINE - 1e-9, "{places:?}");
        }
        assert!(places[0] >= TOP && places[5] <= BOTTOM);
        assert_eq!(apart(&[100.0, 200.0]), [100.0, 200.0]);
    }

    #[test]
    fn an_empty_chart_is_known_and_can_be_drawn() {
        let mut chart = chart();
        assert!(!chart.is_empty());
        for series in &mut chart.series {
            series.points.clear();
        }
        assert!(chart.is_empty());
        assert!(chart.svg().ends_with("</svg>\n"));
    }
}
