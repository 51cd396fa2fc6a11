//! What Prometheus asks for at `/metrics`: requests, endpoints, the fleet. Clients of this host get it, and
//! no label is of a client's making.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::answer::Answer;
use crate::endpoint::Gates;
use crate::fleet::Report;
use crate::fleet::microvm::{Event, Phase};

/// All there is to count.
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    microvms: Family<State, Gauge>,
    open: Gauge,
    held: Gauge,
    steps: Family<Step, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    service: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    action: &'static str,
    step: &'static str,
}

/// From half a millisecond to 16 s.
fn step_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

/// Whom a request was for, by the scope of its signature: one of few names, whatever the client says.
pub fn service(scope: Option<&str>) -> &'static str {
    match scope {
        Some("s3") => "s3",
        Some("lambda") => "lambda",
        Some("sts") => "sts",
        Some("iam") => "iam",
        Some("logs") => "logs",
        _ => "other",
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("rotifer");
        let (requests, microvms) = (Family::default(), Family::default());
        let (open, held) = (Gauge::default(), Gauge::default());
        let text = "Requests by service and class of status";
        registry.register("requests", text, Family::clone(&requests));
        registry.register("microvms", "MicroVMs by state", Family::clone(&microvms));
        let text = "Requests and WebSockets that are in a microVM";
        registry.register("endpoint_streams", text, Gauge::clone(&open));
        let text = "Requests that wait for a microVM to run";
        registry.register("endpoint_held", text, Gauge::clone(&held));
        let steps = Family::new_with_constructor(step_seconds as fn() -> Histogram);
        let text = "Steps of launches and resumes that succeeded";
        registry.register("step_seconds", text, Family::clone(&steps));
        Self { registry, requests, microvms, open, held, steps }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn count(&self, service: &'static str, status: hyper::StatusCode) {
        let status = match status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "other",
        };
        self.requests.get_or_create(&Request { service, status }).inc();
    }

    /// A worker has done something.
    pub fn observe(&self, report: &Report) {
        let Report::Microvm { event, measured, .. } = report else { return };
        let action = match event {
            Event::Launched => "launch",
            Event::Resumed => "resume",
            _ => return,
        };
        for (step, time) in &measured.steps {
            self.steps.get_or_create(&Step { action, step }).observe(time.as_secs_f64());
        }
    }

    /// All of it, in the text format of OpenMetrics.
    pub fn answer(&self, gates: &Gates) -> Answer {
        let counts = *gates.counts().borrow();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.open.set(number(counts.open));
        self.held.set(number(counts.held));
        let phases = gates.phases();
        for state in Phase::ALL.map(Phase::state) {
            let count = phases.iter().filter(|phase| phase.state() == state).count();
            self.microvms.get_or_create(&State { state }).set(number(count));
        }
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            return Answer::text(500, "The metrics cannot be written");
        }
        let content_type = Some("application/openmetrics-text; version=1.0.0; charset=utf-8");
        Answer { content_type, ..Answer::text(200, &text) }
    }
}
