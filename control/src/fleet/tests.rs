//! The fleet on its own: no clock, no disk, no worker but the test.

mod connectors;
mod images;
mod microvms;
mod recorded;

use super::records::{SnapshotBuild, VersionId};
use super::*;

/// A fleet, and the time.
struct World {
    fleet: Fleet,
    now: Timestamp,
    refusal: Option<&'static str>,
    seal: Seal,
    /// What came through endpoints.
    traffic: BTreeMap<String, Traffic>,
    /// What the worker was told.
    actions: Vec<Action>,
}

const SNAPSHOT: SnapshotBuild = SnapshotBuild {
    memory_snapshot_size_in_bytes: 3,
    code_install_size_in_bytes: 2,
    disk_snapshot_size_in_bytes: 1,
};

fn arn(name: &str) -> String {
    format!("arn:aws:lambda:us-east-1:000000000000:microvm-image:{name}")
}

fn spec() -> Value {
    json!({
        "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
        "buildRoleArn": "arn:aws:iam::000000000000:role/Build",
        "codeArtifact": {"uri": "s3://bucket/app.zip"},
    })
}

fn with(mut input: Value, more: Value) -> Value {
    if let (Value::Object(input), Value::Object(more)) = (&mut input, more) {
        input.extend(more);
    }
    input
}

impl World {
    fn new() -> Self {
        Self::with_settings(Settings::default())
    }

    fn with_settings(settings: Settings) -> Self {
        let fleet = Fleet::new(Arc::new(settings));
        let (seal, traffic, actions) = (Seal::new(b"secret"), BTreeMap::new(), Vec::new());
        Self { fleet, now: Timestamp(1_800_000_000_000), refusal: None, seal, traffic, actions }
    }

    fn context(&self) -> Context<'_> {
        let (now, worker_refusal, seal) = (self.now, self.refusal, &self.seal);
        Context { now, fresh: Uuid::new_v4, worker_refusal, seal }
    }

    fn follow(&mut self, decision: Decision) -> Value {
        for change in decision.changes {
            // As if through the disk: what is read back is what was kept.
            self.fleet.apply(through_json(change));
        }
        self.actions.extend(decision.actions);
        decision.answer
    }

    fn ask(&mut self, operation: &str, input: Value) -> Value {
        let decision = self.fleet.decide(operation, input, &self.context());
        self.follow(decision.unwrap_or_else(|error| panic!("{operation}: {error}")))
    }

    /// A refusal, which must change nothing.
    fn refused(&self, operation: &str, input: Value) -> ServiceError {
        self.fleet.decide(operation, input, &self.context()).unwrap_err()
    }

    fn report(&mut self, report: Report) {
        let decision = self.fleet.report(report, &self.context());
        self.follow(decision);
    }

    fn happened(&mut self, id: &str, event: microvm::Event) {
        self.report(Report::Microvm {
            id: id.into(),
            event,
            reason: None,
            measured: Measured::default(),
        });
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self.now.plus_seconds(seconds);
        let traffic = |id: &str| self.traffic.get(id).copied().unwrap_or(Traffic::None);
        let decision = self.fleet.tick(&traffic, &self.context());
        self.follow(decision);
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// An image with one active version.
    fn image(&mut self, name: &str) -> String {
        self.ask("CreateMicrovmImage", with(spec(), json!({ "name": name })));
        self.built(name, 1);
        self.take_actions();
        arn(name)
    }

    fn built(&mut self, image: &str, number: u32) {
        let version = VersionId { image: image.into(), number };
        self.report(Report::BuildStarted { version: version.clone() });
        let measured = Measured::default();
        self.report(Report::BuildSucceeded { version, snapshot: SNAPSHOT, measured });
    }

    /// A running microVM.
    fn microvm(&mut self, image: &str, more: Value) -> String {
        let answer = self.ask("RunMicrovm", with(json!({ "imageIdentifier": image }), more));
        let id = answer["microvmId"].as_str().unwrap().to_owned();
        self.happened(&id, microvm::Event::Launched);
        self.take_actions();
        id
    }

    fn state(&mut self, id: &str) -> String {
        let answer = self.ask("GetMicrovm", json!({ "microvmIdentifier": id }));
        answer["state"].as_str().unwrap().to_owned()
    }
}

fn through_json(change: Change) -> Change {
    fn copy<T: serde::Serialize + serde::de::DeserializeOwned>(record: &T) -> T {
        serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap()
    }
    match change {
        Change::PutImage(image) => Change::PutImage(copy(&image)),
        Change::PutVersion(version) => Change::PutVersion(copy(&version)),
        Change::PutMicrovm(microvm) => Change::PutMicrovm(copy(&microvm)),
        Change::PutConnector(connector) => Change::PutConnector(copy(&connector)),
        Change::PutToken(token) => Change::PutToken(copy(&token)),
        delete => delete,
    }
}
