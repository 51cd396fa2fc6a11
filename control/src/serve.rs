//! The daemon: everything put together, from its directory to its port.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::cli::Options;
use crate::clock::Clock;
use crate::endpoint::{Endpoints, Gates};
use crate::fleet::names::Names;
use crate::host::{self, Host, HostError, LogBook};
use crate::http::sigv4::Verifier;
use crate::http::{BODIES_MAX, Front, Listener, ServeError};
use crate::iam::Iam;
use crate::lambda::{self, Lambda, LambdaError};
use crate::logs::Logs;
use crate::metadata::Metadata;
use crate::metrics::Metrics;
use crate::s3::{self, BlobError};
use crate::services::Services;
use crate::sessions::{Gatekeeper, Sessions};
use crate::settings::{Settings, SettingsError};
use crate::state::{Directory, StateError};
use crate::store::{Store, StoreError};
use crate::tls::{self, TlsError};
use crate::worker::{self, Guest, Worker};

/// What is logged unless RUST_LOG says otherwise. s3s calls every refusal of a client an error; what is
/// ours to know of we log ourselves.
const LOGGED: &str = "info,s3s=off";

/// Guests' connections that wait to be taken up.
const GUESTS_QUEUED_MAX: usize = 64;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Error {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Objects(#[from] BlobError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Lambda(#[from] LambdaError),
    #[error("a pattern of ours is wrong")]
    Pattern(#[from] regex::Error),
    #[error("cannot {attempt}")]
    Host { attempt: &'static str, source: io::Error },
    #[error(transparent)]
    Worker(#[from] HostError),
    #[error("{0:?} has no access key or endpoint yet: start `rotifer serve` first")]
    NeverServed(std::path::PathBuf),
}

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(options: &Options) -> Result<(), Error> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(LOGGED));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if options.log_json {
        log.json().init();
    } else {
        log.init();
    }
    let settings = match &options.config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Host { attempt: "start the runtime", source })?;
    runtime.block_on(serve(options, Arc::new(settings)))
}

/// Everything behind the port, on a directory of its own, with the worker that `worker` makes.
pub fn front(
    directory: &Directory,
    settings: &Arc<Settings>,
    worker: impl FnOnce(&Arc<Store>, &Arc<Logs>, mpsc::Sender<Guest>) -> Result<Arc<dyn Worker>, Error>,
    clock: Clock,
) -> Result<Front, Error> {
    let (credentials, seal) = (directory.credentials()?, directory.seal()?);
    let store = Arc::new(Store::open(&directory.file("rotifer.db"))?);
    let logs = Arc::new(Logs::new(Arc::clone(&store), Arc::clone(settings))?);
    let (guests, mut of_guests) = mpsc::channel(GUESTS_QUEUED_MAX);
    let worker = worker(&store, &logs, guests)?;
    if worker.refusal().is_some() {
        tracing::warn!("the settings have no host: images are not built and microVMs do not run");
    }
    let sessions =
        Arc::new(Sessions { seal: seal.clone(), store: Arc::clone(&store), clock: clock.clone() });
    let gatekeeper =
        Gatekeeper { credentials: credentials.clone(), sessions: Arc::clone(&sessions) };
    let objects = s3::service(&directory.file("objects"), &store, settings, gatekeeper)?;
    let gates = Arc::new(Gates::new(clock.clone(), Arc::clone(&worker), settings));
    let metrics = Arc::new(Metrics::default());
    let lambda = Arc::new(Lambda::open(lambda::Parts {
        store: Arc::clone(&store),
        settings: Arc::clone(settings),
        worker: Arc::clone(&worker),
        gates,
        seal: seal.clone(),
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
    })?);
    let endpoints = Endpoints::new(settings, &lambda, &worker, seal.clone());
    let metadata = Arc::new(Metadata {
        seal,
        clock,
        lambda: Arc::clone(&lambda),
        sessions: Arc::clone(&sessions),
    });
    let answerer = Arc::clone(&metadata);
    tokio::spawn(async move {
        while let Some(Guest { stream, microvm, place }) = of_guests.recv().await {
            let serving = Arc::clone(&answerer).serve(stream, microvm);
            tokio::spawn(async move {
                serving.await;
                drop(place);
            });
        }
    });
    let verifier = Verifier::new(credentials).with_sessions(&sessions);
    let services = Services {
        iam: Iam::new(store, Arc::clone(settings))?,
        logs,
        lambda,
        sessions,
        settings: Arc::clone(settings),
    };
    Ok(Front {
        objects,
        services: Arc::new(services),
        verifier,
        endpoints,
        metadata,
        metrics,
        limits: settings.limits.clone(),
        bodies: Semaphore::new(BODIES_MAX),
    })
}

async fn serve(options: &Options, settings: Arc<Settings>) -> Result<(), Error> {
    let directory = Directory::open(&options.state)?;
    let _lock = directory.lock()?;
    let credentials = directory.credentials()?;
    let tls = TlsAcceptor::from(tls::server(&directory, &settings)?);
    let worker = |store: &Arc<Store>, logs: &Arc<Logs>, guests: mpsc::Sender<Guest>| {
        worker(&directory, store, &settings, logs, guests)
    };
    let front = Arc::new(front(&directory, &settings, worker, Clock::Host)?);
    // Before the port is known to anybody, so that no signal is missed.
    let failed = |source| Error::Host { attempt: "wait for signals", source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let listener = Listener::bind(options.listen).await?;
    let endpoint = format!("https://{}", listener.address);
    let place = format!("{endpoint}\n{}\n{}\n", settings.region, settings.account);
    if let Err(error) = directory.write("endpoint", place.as_bytes()) {
        // A full disk must not keep anybody from making room.
        tracing::warn!("`rotifer env` cannot know the endpoint: {}", crate::report(&error));
    }
    println!("endpoint    {endpoint}");
    println!("region      {}", settings.region);
    println!("CA file     {}", directory.file("ca.pem").display());
    println!("access key  {}", credentials.access_key_id);
    println!("secret key  {}", credentials.secret_access_key);
    println!("for a shell eval \"$(rotifer env --state {})\"", directory.path().display());
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    listener.serve(front, tls, end).await;
    Ok(())
}

/// What runs microVMs, if the settings say with what.
fn worker(
    directory: &Directory,
    store: &Arc<Store>,
    settings: &Arc<Settings>,
    logs: &Arc<Logs>,
    guests: mpsc::Sender<Guest>,
) -> Result<Arc<dyn Worker>, Error> {
    let Some(host) = &settings.host else { return Ok(Arc::new(worker::Absent)) };
    let parts = host::Parts {
        settings: host.clone(),
        directory: directory.path().into(),
        store: Arc::clone(store),
        logs: LogBook::new(Arc::clone(logs)),
        disks: host::disks(host)?,
        region: settings.region.clone(),
        names: Names::new(settings),
        guests,
    };
    Ok(Arc::new(Host::open(parts)?))
}

/// Prints the variables that clients of a daemon need.
pub fn print_env(state: &Path) -> Result<(), Error> {
    let never = || Error::NeverServed(state.into());
    if !state.join("credentials.json").exists() {
        return Err(never());
    }
    let directory = Directory::open(state)?;
    let credentials = directory.credentials()?;
    let place = directory.read("endpoint")?.ok_or_else(never)?;
    let mut lines = place.lines();
    let (endpoint, region) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let authority = directory.file("ca.pem");
    let authority = authority.display().to_string();
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", &credentials.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key),
        ("AWS_DEFAULT_REGION", region),
        ("AWS_REGION", region),
        ("AWS_CA_BUNDLE", &authority),
        ("CURL_CA_BUNDLE", &authority),
    ];
    for (name, value) in variables {
        println!("export {name}='{}'", value.replace('\'', r"'\''"));
    }
    println!("unset AWS_SESSION_TOKEN AWS_PROFILE");
    Ok(())
}
