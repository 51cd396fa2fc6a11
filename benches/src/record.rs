//! Samples as they come in: of which metric, and of whom.

use std::borrow::Cow;

/// Whose sample it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The VMM under test.
    Own,
    /// The one it is compared with.
    Peer,
}

/// Which direction is the good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Times, sizes.
    Lower,
    /// Rates.
    Higher,
}

impl Better {
    /// As in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lower => "lower",
            Self::Higher => "higher",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// What it is, for people.
    pub name: Cow<'static, str>,
    /// What its numbers count.
    pub unit: &'static str,
    /// Which direction is the good one.
    pub better: Better,
}

impl Metric {
    /// A metric of which less is better.
    pub const fn lower(name: &'static str, unit: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), unit, better: Better::Lower }
    }

    /// The same, with a name that is put together.
    pub fn lower_of(name: String, unit: &'static str) -> Self {
        Self { name: Cow::Owned(name), unit, better: Better::Lower }
    }

    /// A metric of which more is better.
    pub const fn higher(name: &'static str, unit: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), unit, better: Better::Higher }
    }
}

/// All samples of one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What was measured.
    pub metric: Metric,
    /// Of the VMM under test.
    pub own: Vec<f64>,
    /// Of its peer.
    pub peer: Vec<f64>,
}

/// Collects samples; metrics stay in the order in which they first came.
#[derive(Debug, Default)]
pub struct Recorder {
    series: Vec<Series>,
}

impl Recorder {
    /// Takes one sample.
    pub fn add(&mut self, side: Side, metric: Metric, sample: f64) {
        let series = self.of(metric);
        match side {
            Side::Own => series.own.push(sample),
            Side::Peer => series.peer.push(sample),
        }
    }

    /// Takes what another one has, of other metrics.
    pub fn extend(&mut self, other: Self) {
        self.series.extend(other.series);
    }

    /// What was collected.
    pub fn into_series(self) -> Vec<Series> {
        self.series
    }

    fn of(&mut self, metric: Metric) -> &mut Series {
        let known = self.series.iter().position(|series| series.metric == metric);
        let index = known.unwrap_or_else(|| {
            self.series.push(Series { metric, own: Vec::new(), peer: Vec::new() });
            self.series.len() - 1
        });
        &mut self.series[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_kept_apart_by_metric_and_side_in_the_order_of_their_first() {
        let (time, rate) = (Metric::lower("time", "ms"), Metric::higher("rate", "IOPS"));
        let mut recorder = Recorder::default();
        recorder.add(Side::Peer, time.clone(), 3.0);
        recorder.add(Side::Own, rate.clone(), 5.0);
        recorder.add(Side::Own, time.clone(), 1.0);
        recorder.add(Side::Own, time.clone(), 2.0);
        let expected = [
            Series { metric: time, own: vec![1.0, 2.0], peer: vec![3.0] },
            Series { metric: rate, own: vec![5.0], peer: vec![] },
        ];
        assert_eq!(recorder.into_series(), expected);
    }
}
