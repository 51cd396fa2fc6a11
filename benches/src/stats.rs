//! What is said about a list of samples.

/// The share of samples that the tail figure leaves above it.
const TAIL: f64 = 0.99;

/// A list of samples in five numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many there are.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// The one in the middle; the mean of two if their number is even.
    pub median: f64,
    /// The smallest that 99 % of the samples do not exceed; with fewer than 100 it is the largest.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of some samples; `None` if there are none or one of them is not a finite number.
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self { count: sorted.len(), min, median: median(&sorted)?, p99: tail(&sorted)?, max })
    }
}

fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get((sorted.len() / 2).checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

/// The nearest-rank percentile: always a value that was measured, never one in between.
#[expect(clippy::cast_precision_loss, reason = "there are never 2^52 samples")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank up to len")]
fn tail(sorted: &[f64]) -> Option<f64> {
    let rank = (TAIL * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(samples: &[f64]) -> Summary {
        Summary::of(samples).unwrap()
    }

    #[test]
    fn order_does_not_matter() {
        let expected = Summary { count: 3, min: 1.0, median: 2.0, p99: 9.0, max: 9.0 };
        assert_eq!(summary(&[9.0, 1.0, 2.0]), expected);
        assert_eq!(summary(&[2.0, 9.0, 1.0]), expected);
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(summary(&[4.0, 1.0, 3.0, 2.0]).median, 2.5);
    }

    #[test]
    fn one_sample_is_everything_at_once() {
        let expected = Summary { count: 1, min: 7.0, median: 7.0, p99: 7.0, max: 7.0 };
        assert_eq!(summary(&[7.0]), expected);
    }

    #[test]
    fn p99_is_a_measured_value_with_one_percent_above_it() {
        let samples: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(summary(&samples).p99, 990.0);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(summary(&hundred).p99, 99.0);
        let few: Vec<f64> = (1..=99).map(f64::from).collect();
        assert_eq!(summary(&few).p99, 99.0);
    }

    #[test]
    fn nothing_can_be_said_of_no_samples_or_of_no_numbers() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[f64::INFINITY]), None);
    }
}
