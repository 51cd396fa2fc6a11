//! The results, as JSON and as a table.

mod table;

pub use table::number;

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::host::Host;
use crate::record::{Better, Series};
use crate::stats::Summary;

/// One benchmark's outcome. Its JSON is a contract with whoever collects figures: no key may be
/// added, renamed or left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The benchmark's name.
    pub benchmark: String,
    /// Where it ran.
    pub host: Host,
    /// What came out.
    pub results: Vec<Row>,
}

/// One metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// What the numbers count.
    pub unit: String,
    /// How many samples.
    pub n: usize,
    /// The smallest sample.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// What 99 % of the samples do not exceed.
    pub p99: f64,
    /// The largest one.
    pub max: f64,
    /// The peer's median, if there was a peer.
    pub peer_median: Option<f64>,
    /// `median / peer_median`, if that can be told.
    pub ratio: Option<f64>,
    /// Which direction is the good one: for people, not part of the contract.
    #[serde(skip)]
    pub better: Better,
}

impl Report {
    /// Sums the samples up.
    ///
    /// # Errors
    /// There are none, or one of them is no number.
    pub fn new(benchmark: &str, host: Host, series: &[Series]) -> Result<Self> {
        let results = series.iter().map(Row::new).collect::<Result<Vec<_>>>()?;
        if results.is_empty() {
            bail!("the benchmark {benchmark} measured nothing");
        }
        Ok(Self { benchmark: benchmark.into(), host, results })
    }

    /// Writes the JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot encode the results")?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("cannot write the results to {}", path.display()))
    }

    /// The table with a heading and with what its columns mean.
    pub fn table(&self) -> String {
        table::render(self)
    }
}

impl Row {
    fn new(series: &Series) -> Result<Self> {
        let metric = series.metric.clone();
        let own = Summary::of(&series.own)
            .with_context(|| format!("{} has no usable samples", metric.name))?;
        let peer_median = Summary::of(&series.peer).map(|peer| peer.median);
        let ratio = peer_median.map(|peer| own.median / peer).filter(|ratio| ratio.is_finite());
        Ok(Self {
            name: metric.name.into_owned(),
            unit: metric.unit.into(),
            n: own.count,
            min: own.min,
            median: own.median,
            p99: own.p99,
            max: own.max,
            peer_median,
            ratio,
            better: metric.better,
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::record::Metric;
    use serde_json::{Value, json};

    /// A report with a peer for one metric and none for the other.
    pub fn example() -> Report {
        let series = [
            Series {
                metric: Metric::lower("start -> ready", "ms"),
                own: vec![2.0, 1.0, 3.0],
                peer: vec![4.0],
            },
            Series { metric: Metric::higher("read", "MiB/s"), own: vec![1060.4], peer: vec![] },
        ];
        Report::new("boot", Host::example(), &series).unwrap()
    }

    #[test]
    fn the_json_has_exactly_the_keys_of_the_contract() {
        let value = serde_json::to_value(example()).unwrap();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&value), ["benchmark", "host", "results"]);
        let expected = [
            json!({
                "name": "start -> ready", "unit": "ms", "n": 3,
                "min": 1.0, "median": 2.0, "p99": 3.0, "max": 3.0,
                "peer_median": 4.0, "ratio": 0.5,
            }),
            json!({
                "name": "read", "unit": "MiB/s", "n": 1,
                "min": 1060.4, "median": 1060.4, "p99": 1060.4, "max": 1060.4,
                "peer_median": null, "ratio": null,
            }),
        ];
        assert_eq!(value["results"], json!(expected));
        assert!(value["host"].is_object());
    }

    #[test]
    fn a_peer_of_zero_gives_no_ratio() {
        let series =
            Series { metric: Metric::lower("idle", "us/s"), own: vec![1.0], peer: vec![0.0] };
        let row = Row::new(&series).unwrap();
        assert_eq!((row.peer_median, row.ratio), (Some(0.0), None));
    }

    #[test]
    fn nothing_measured_is_an_error_and_no_empty_report() {
        assert!(Report::new("boot", Host::example(), &[]).is_err());
        let series = Series { metric: Metric::lower("idle", "us/s"), own: vec![], peer: vec![1.0] };
        let error = Report::new("idle", Host::example(), &[series]).unwrap_err();
        assert!(error.to_string().contains("idle"), "{error}");
    }

    #[test]
    fn the_written_file_is_the_json_and_a_bad_place_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("boot.json");
        example().write_json(&path).unwrap();
        let read: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, serde_json::to_value(example()).unwrap());
        let error = example().write_json(&directory.path().join("no/boot.json")).unwrap_err();
        assert!(error.to_string().contains("no/boot.json"), "{error}");
    }
}
