//! A daemon inside of the test, with a worker that stands for machines: its microVMs are states, and their
//! ports are Unix sockets of the test. Clients and apps are real, and so is everything between them.

#![expect(clippy::unwrap_used, reason = "a harness of tests")]
#![allow(dead_code, reason = "each test uses some of it")]

pub mod agent;
pub mod app;
pub mod client;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::header::HeaderMap;
use rotifer_control::clock::{Clock, Timestamp};
use rotifer_control::endpoint::{Counts, Gates};
use rotifer_control::fleet::microvm::{Event, Phase};
use rotifer_control::fleet::records::{SnapshotBuild, VersionId};
use rotifer_control::fleet::{Action, Measured, Report};
use rotifer_control::host::LogBook;
use rotifer_control::http::{Call, Front, Listener};
use rotifer_control::lambda::records;
use rotifer_control::logs::Logs;
use rotifer_control::settings::Settings;
use rotifer_control::state::Directory;
use rotifer_control::store::Store;
use rotifer_control::worker::{Connecting, Worker};
use rotifer_control::{serve, tls};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// How long any single event may take.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Waits for what must come.
pub async fn within<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event).await.expect("it comes in time")
}

/// A script of `tests/python`, with the clients that `./x test` installs.
pub fn python(script: &str) -> Command {
    let environment = std::env::var_os("ROTIFER_PYTHON");
    let environment =
        environment.expect("ROTIFER_PYTHON is set by ./x test, which installs the clients");
    let mut command = Command::new(Path::new(&environment).join("bin/python"));
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    command.arg(scripts.join(script)).env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    command
}

/// Runs a script that says `ok` for each of so many things that it has seen.
pub async fn sees(command: &mut Command, count: usize) {
    let output = within(command.output()).await.unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}{error}");
    assert_eq!(shown.matches("ok ").count(), count, "{shown}");
}

/// A daemon, its fleet, and the time.
pub struct World {
    pub front: Arc<Front>,
    pub worker: Arc<TestWorker>,
    pub port: u16,
    pub directory: tempfile::TempDir,
    pub image: String,
    store: Arc<Store>,
    logs: Arc<Logs>,
    clock: Arc<AtomicI64>,
    _end: oneshot::Sender<()>,
}

/// A microVM, as clients know it.
#[derive(Clone, Debug)]
pub struct Vm {
    pub id: String,
    pub host: String,
}

/// Builds that have not ended: of what, and whom it is told.
type HeldBuilds = Vec<(VersionId, Sender<Report>)>;
/// Resumes that have not ended: who, and whom it is told.
type Held = Vec<(String, Sender<Report>)>;

/// Says that everything is done, unless the test holds it back. Scripts do so with files in its directory: while there
/// is one called `hold`, nothing that is begun ends; while there is one called `refuse`, it launches nothing.
pub struct TestWorker {
    directory: PathBuf,
    held: Mutex<Option<Held>>,
    held_builds: Mutex<Option<HeldBuilds>>,
    /// Resumes that were begun.
    pub resumes: AtomicUsize,
    /// Connections that were made.
    pub connections: AtomicUsize,
    /// What is measured from now on, of every microVM.
    pub measured: Mutex<Measured>,
}

/// What every version takes on the disk.
pub const VERSION_BYTES: u64 = 1 << 30;

impl World {
    pub async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        let mut world = Self::bare(settings).await;
        let image = json!({
            "name": "app", "codeArtifact": {"uri": "s3://b/app.zip"},
            "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
            "buildRoleArn": "arn:aws:iam::000000000000:role/Build",
        });
        let made = world.call("POST", "microvm-images", &image);
        world.image = made["imageArn"].as_str().unwrap().to_owned();
        world.until_image(&world.image, "CREATED").await;
        world
    }

    /// One without an image.
    pub async fn bare(settings: Settings) -> Self {
        let clock = Arc::new(AtomicI64::new(Timestamp::now().0));
        Self::start(tempfile::tempdir().unwrap(), settings, clock).await
    }

    /// Another daemon on what this one has kept, as if this one was killed. Machines go on as they are.
    pub async fn started_again(self) -> Self {
        let measured = std::mem::take(&mut *self.worker.measured.lock().unwrap());
        let image = self.image.clone();
        let world = Self::start(self.directory, Settings::default(), self.clock).await;
        *world.worker.measured.lock().unwrap() = measured;
        Self { image, ..world }
    }

    async fn start(
        directory: tempfile::TempDir,
        settings: Settings,
        clock: Arc<AtomicI64>,
    ) -> Self {
        let settings = Arc::new(settings);
        let state = Directory::open(&directory.path().join("state")).unwrap();
        let worker = Arc::new(TestWorker {
            directory: directory.path().to_owned(),
            held: Mutex::new(None),
            held_builds: Mutex::new(None),
            resumes: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            measured: Mutex::default(),
        });
        let acceptor = TlsAcceptor::from(tls::server(&state, &settings).unwrap());
        let acting: Arc<dyn Worker> = Arc::clone(&worker) as _;
        let mut parts = None;
        let keep = |store: &Arc<Store>, logs: &Arc<Logs>, _| {
            parts = Some((Arc::clone(store), Arc::clone(logs)));
            Ok(acting)
        };
        let front = serve::front(&state, &settings, keep, Clock::Manual(Arc::clone(&clock)));
        let front = Arc::new(front.unwrap());
        let (store, logs) = parts.unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.address.port();
        // As `rotifer serve` leaves it for our own command line.
        let Settings { region, account, .. } = &*settings;
        let place = format!("https://{}\n{region}\n{account}\n", listener.address);
        state.write("endpoint", place.as_bytes()).unwrap();
        let (end, ended) = oneshot::channel::<()>();
        tokio::spawn(listener.serve(Arc::clone(&front), acceptor, async {
            let _dropped = ended.await;
        }));
        Self { front, worker, port, directory, image: String::new(), store, logs, clock, _end: end }
    }

    /// A running microVM whose policy is as given.
    pub async fn vm(&self, more: Value) -> Vm {
        let mut input = json!({ "imageIdentifier": self.image });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = self.call("POST", "microvms", &input);
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        let vm = Vm { id: text("microvmId"), host: text("endpoint") };
        self.until_phase(&vm, Phase::Running).await;
        vm
    }

    /// A running microVM that lets in who has a shell's token, too.
    pub async fn vm_with_shell(&self) -> Vm {
        let ingress = ["SHELL_INGRESS", "HTTP_INGRESS"].map(|word| {
            format!("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{word}")
        });
        self.vm(json!({ "ingressNetworkConnectors": ingress })).await
    }

    /// A token for ports of the app.
    pub fn token(&self, vm: &Vm, ports: Value) -> String {
        let input = json!({ "expirationInMinutes": 5, "allowedPorts": ports });
        let made = self.call("POST", &format!("microvms/{}/auth-token", vm.id), &input);
        made["authToken"]["X-aws-proxy-auth"].as_str().unwrap().to_owned()
    }

    pub fn token_for_all(&self, vm: &Vm) -> String {
        self.token(vm, json!([{ "allPorts": {} }]))
    }

    pub fn shell_token(&self, vm: &Vm) -> String {
        let input = json!({ "expirationInMinutes": 5 });
        let made = self.call("POST", &format!("microvms/{}/shell-auth-token", vm.id), &input);
        made["authToken"]["X-aws-proxy-auth"].as_str().unwrap().to_owned()
    }

    pub async fn suspend(&self, vm: &Vm) {
        self.call("POST", &format!("microvms/{}/suspend", vm.id), &json!({}));
        self.until_phase(vm, Phase::Suspended).await;
    }

    pub async fn terminate(&self, vm: &Vm) {
        self.call("DELETE", &format!("microvms/{}", vm.id), &Value::Null);
        self.until_phase(vm, Phase::Terminated).await;
    }

    /// An operation of the API, which has to succeed.
    pub fn call(&self, method: &str, path: &str, input: &Value) -> Value {
        let body = if input.is_null() { String::new() } else { input.to_string() };
        let answer = self.front.services.lambda.answer(&Call {
            method: method.into(),
            path: format!("/2025-09-09/{path}"),
            query: String::new(),
            headers: HeaderMap::new(),
            body: body.into(),
            service: "lambda".into(),
            region: "us-east-1".into(),
            session: None,
        });
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!(answer.status < 300, "{method} {path}: {answer:?}");
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }

    /// A form for IAM, which has to succeed.
    pub fn iam(&self, form: &str) {
        let answer = self.front.services.answer(&Call {
            method: "POST".into(),
            path: "/".into(),
            query: String::new(),
            headers: HeaderMap::new(),
            body: form.to_owned().into(),
            service: "iam".into(),
            region: "us-east-1".into(),
            session: None,
        });
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    }

    pub fn state(&self, vm: &Vm) -> String {
        let shown = self.call("GET", &format!("microvms/{}", vm.id), &Value::Null);
        shown["state"].as_str().unwrap().to_owned()
    }

    /// Waits until the endpoint sees that a microVM has come to a phase.
    pub async fn until_phase(&self, vm: &Vm, phase: Phase) {
        let gate = self.gates().find(&vm.host).expect("the microVM has a gate");
        within(gate.watch().wait_for(|now| *now == phase)).await.unwrap();
    }

    /// Waits until so many are at all endpoints together: in, and waiting to be let in.
    pub async fn until_counts(&self, open: usize, held: usize) {
        let mut counts = self.gates().counts();
        within(counts.wait_for(|now| *now == Counts { open, held })).await.unwrap();
    }

    /// Asks until an image has come to a state, as clients of the service do.
    pub async fn until_image(&self, image: &str, state: &str) {
        let path = format!("microvm-images/{}", image.replace(':', "%3A"));
        let asked = async {
            while self.call("GET", &path, &Value::Null)["state"] != state {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(asked).await;
    }

    /// A build that is held back says something, once it has begun.
    pub async fn says(&self, image: &str, number: u32, text: &str) {
        let id = VersionId { image: image.into(), number };
        let version = async {
            loop {
                match records::version(&self.store, &id) {
                    Ok(version) => return version,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let lines = LogBook::new(Arc::clone(&self.logs)).of_build(&within(version).await);
        lines.say(text);
        within(lines.flushed()).await;
    }

    /// Milliseconds since 1970.
    pub fn now(&self) -> i64 {
        self.clock.load(Ordering::SeqCst)
    }

    pub fn gates(&self) -> &Gates {
        self.front.services.lambda.gates()
    }

    /// Lets time pass, and has the daemon look at its clock.
    pub fn pass(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1000, Ordering::SeqCst);
        self.front.services.lambda.tick();
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("state/ca.pem")
    }

    /// A file of the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn url(&self, vm: &Vm, path: &str) -> String {
        format!("https://{}:{}{path}", vm.host, self.port)
    }
}

impl TestWorker {
    /// The socket behind a port of all microVMs.
    pub fn socket(&self, port: u16) -> PathBuf {
        self.directory.join(format!("{port}.sock"))
    }

    /// From now on builds do not end.
    pub fn hold_builds(&self) {
        *self.held_builds.lock().unwrap() = Some(Vec::new());
    }

    /// Ends those that were held back.
    pub fn release_builds(&self, result: Result<(), &str>) {
        for (version, reports) in self.held_builds.lock().unwrap().take().unwrap() {
            reports.send(built(version, result)).unwrap();
        }
    }

    fn happened(&self, id: String, event: Event) -> Report {
        let measured = self.measured.lock().unwrap().clone();
        Report::Microvm { id, event, reason: None, measured }
    }

    /// From now on guests have had so many seconds of processors since their processes were started.
    pub fn has_used(&self, seconds: u64) {
        self.measured.lock().unwrap().processor_time = Some(Duration::from_secs(seconds));
    }

    /// From now on resumes do not end.
    pub fn hold_resumes(&self) {
        *self.held.lock().unwrap() = Some(Vec::new());
    }

    /// Ends those that were held back.
    pub fn release_resumes(&self, event: Event) {
        for (id, reports) in self.held.lock().unwrap().take().unwrap() {
            reports.send(self.happened(id, event)).unwrap();
        }
    }
}

/// How a build ended.
fn built(version: VersionId, result: Result<(), &str>) -> Report {
    let snapshot = SnapshotBuild {
        memory_snapshot_size_in_bytes: 1,
        code_install_size_in_bytes: 1,
        disk_snapshot_size_in_bytes: 1,
    };
    match result {
        Ok(()) => {
            let measured = Measured { stored_bytes: Some(VERSION_BYTES), ..Measured::default() };
            Report::BuildSucceeded { version, snapshot, measured }
        }
        Err(reason) => Report::BuildFailed { version, reason: reason.to_owned() },
    }
}

impl Worker for TestWorker {
    fn refusal(&self) -> Option<&str> {
        self.directory.join("refuse").exists().then_some("The test's worker refuses.")
    }

    fn adopt(&self, _: &Sender<Report>) {}

    fn begin(&self, action: Action, reports: &Sender<Report>) {
        let say = |report| {
            let _the_test_is_over = reports.send(report);
        };
        let microvm = |id, event| say(self.happened(id, event));
        if self.directory.join("hold").exists() {
            return;
        }
        match action {
            Action::Build(version) => {
                say(Report::BuildStarted { version: version.clone() });
                match &mut *self.held_builds.lock().unwrap() {
                    Some(held) => held.push((version, reports.clone())),
                    None => say(built(version, Ok(()))),
                }
            }
            Action::RemoveVersion(version) => say(Report::VersionRemoved { version }),
            Action::Launch(id) => microvm(id, Event::Launched),
            Action::Suspend(id) => microvm(id, Event::Suspended),
            Action::Terminate(id) => microvm(id, Event::Terminated),
            Action::Resume(id) => {
                self.resumes.fetch_add(1, Ordering::SeqCst);
                match &mut *self.held.lock().unwrap() {
                    Some(held) => held.push((id, reports.clone())),
                    None => microvm(id, Event::Resumed),
                }
            }
            Action::Connect(id) => say(Report::Connected { id }),
            Action::Disconnect(id) => say(Report::Disconnected { id }),
        }
    }

    fn processor_time(&self, _: &str) -> Option<Duration> {
        self.measured.lock().unwrap().processor_time
    }

    fn connect(&self, _: &str, port: u16) -> Connecting<'_> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        Box::pin(UnixStream::connect(self.socket(port)))
    }

    fn agent(&self, _: &str) -> Connecting<'_> {
        Box::pin(UnixStream::connect(self.directory.join("agent.sock")))
    }
}
