//! Many numbers in few: percentiles by the nearest rank, so that each one is a value that was measured.

use serde::{Deserialize, Serialize};

/// What is told of many values. The unit is in the name of the field that holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    pub mean: f64,
}

impl Summary {
    /// `None` of no values.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            min: *sorted.first()?,
            p50: percentile(&sorted, 50)?,
            p90: percentile(&sorted, 90)?,
            p99: percentile(&sorted, 99)?,
            max: *sorted.last()?,
            mean: mean(&sorted)?,
        })
    }
}

/// In ascending order.
pub(super) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The smallest value that at least `percent` of all do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// `None` of no values.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / float(values.len()))
}

/// A count as a number to divide by: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "no count here is near 2^53")]
pub(super) fn float(count: impl TryInto<u64>) -> f64 {
    count.try_into().map_or(f64::MAX, |count: u64| count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let summary = Summary::of(&values).unwrap();
        assert_eq!(
            summary,
            Summary {
                min: 1.0,
                p50: 100.0,
                p90: 180.0,
                p99: 198.0,
                max: 200.0,
                mean: 100.5,
            }
        );
        let few = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((few.p50, few.p90, few.p99, few.max), (2.0, 3.0, 3.0, 3.0));
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.min, one.p50, one.p99, one.max), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn an_order_needs_no_order_before() {
        assert_eq!(sorted(&[2.0, 0.5, 1.0]), [0.5, 1.0, 2.0]);
        assert_eq!(mean(&[]), None);
        assert!((float(3_usize) - 3.0).abs() < f64::EPSILON);
    }
}
