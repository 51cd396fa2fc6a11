//! The ways in which a VMM brings a guest's memory back, each of which is measured.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Options, VSOCK};
use crate::bench::Subject;
use crate::record::{Metric, Recorder, Side};

/// One of them.
struct Mapping {
    /// Behind the benchmark's name; nothing for what a user gets who says nothing.
    suffix: &'static str,
    /// In the body of `PUT /snapshot/load`.
    load: &'static [(&'static str, &'static str)],
}

/// Those of our VMM, a line each. The peer has one, Firecracker's backend `File`, which is set
/// beside each of them.
const MAPPINGS: [Mapping; 1] = [Mapping { suffix: "", load: &[] }];

/// Samples of one run, by what stands behind the benchmark's name.
#[derive(Debug, Default)]
pub struct Figures(Vec<(String, &'static str, f64)>);

impl Figures {
    /// Adds one.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, sample: f64) {
        self.0.push((name.into(), unit, sample));
    }

    fn record(&self, recorder: &mut Recorder, side: Side, name: &str) {
        for (rest, unit, sample) in &self.0 {
            recorder.add(side, Metric::lower_of(format!("{name}{rest}"), unit), *sample);
        }
    }
}

impl Mapping {
    fn options(&self) -> Options {
        let load = self.load.iter().map(|(key, value)| ((*key).into(), Value::from(*value)));
        // Firecracker keeps the path as it was given, relative to where it runs; we do not.
        let vsock = ("vsock_override".into(), json!({"uds_path": VSOCK}));
        Options { load: load.chain([vsock]).collect(), ..Options::default() }
    }
}

/// Runs `measure` with each way that the VMM has, and records under `name`.
///
/// # Errors
/// Those of `measure`.
pub fn with_each(
    subject: &Subject,
    name: &str,
    recorder: &mut Recorder,
    mut measure: impl FnMut(&Options) -> Result<Figures>,
) -> Result<()> {
    if subject.side == Side::Peer {
        let figures = measure(&Options::default())?;
        for mapping in &MAPPINGS {
            figures.record(recorder, Side::Peer, &format!("{name}{}", mapping.suffix));
        }
        return Ok(());
    }
    for mapping in &MAPPINGS {
        let name = format!("{name}{}", mapping.suffix);
        let figures = measure(&mapping.options()).with_context(|| name.clone())?;
        figures.record(recorder, Side::Own, &name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_measured_once_and_set_beside_every_mapping() {
        let mut recorder = Recorder::default();
        let mut runs = 0;
        for side in [Side::Own, Side::Peer] {
            let subject = Subject { side, program: "/vmm".into() };
            let measure = |_: &Options| {
                runs += 1;
                let mut figures = Figures::default();
                figures.add("-1mib/time", "ms", f64::from(runs));
                Ok(figures)
            };
            with_each(&subject, "resume", &mut recorder, measure).unwrap();
        }
        assert_eq!(runs, 1 + i32::try_from(MAPPINGS.len()).unwrap());
        let series = recorder.into_series();
        assert_eq!(series.len(), MAPPINGS.len());
        assert!(series.iter().all(|series| series.own.len() == 1 && series.peer.len() == 1));
        assert_eq!(series[0].metric, Metric::lower("resume-1mib/time", "ms"));
    }
}
