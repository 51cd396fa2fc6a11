//! The services that sign for `lambda`: requests in, the fleet's decisions kept, begun and answered.

mod meter;
mod rates;
pub mod records;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Transaction, params};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::answer::{Answer, ServiceError};
use crate::clock::{Clock, Timestamp};
use crate::endpoint::Gates;
use crate::fleet::records::VersionId;
use crate::fleet::{Action, Change, Context, Decided, Decision, Fleet, Measured, Report};
use crate::http::Call;
use crate::metrics::Metrics;
use crate::model::{Model, ModelError, Parsed};
use crate::seal::Seal;
use crate::settings::Settings;
use crate::store::{Store, StoreError};
use crate::usage;
use crate::worker::Worker;
use rates::Rates;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Images, microVMs and network connectors.
pub struct Lambda {
    models: Vec<Model>,
    rates: Mutex<Rates>,
    driver: Arc<Driver>,
}

/// What decisions are made with, kept in and carried out by.
pub struct Parts {
    /// Where decisions are kept.
    pub store: Arc<Store>,
    /// The settings.
    pub settings: Arc<Settings>,
    /// Who acts.
    pub worker: Arc<dyn Worker>,
    /// What the endpoints see of the fleet.
    pub gates: Arc<Gates>,
    /// What tokens are sealed with.
    pub seal: Seal,
    /// The time.
    pub clock: Clock,
    /// Where it is counted how long things take.
    pub metrics: Arc<Metrics>,
}

/// Why nothing has changed.
enum Undone {
    /// It was not decided.
    Refused(ServiceError),
    /// It was decided, and is not on the disk.
    NotKept(StoreError),
}

impl From<ServiceError> for Undone {
    fn from(error: ServiceError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for Undone {
    fn from(error: StoreError) -> Self {
        Self::NotKept(error)
    }
}

impl From<Undone> for ServiceError {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Refused(error) => error,
            Undone::NotKept(error) => error.into(),
        }
    }
}

/// What keeps decisions and begins actions.
struct Driver {
    fleet: Mutex<Fleet>,
    /// When it was last noted what is used.
    metered: Mutex<Timestamp>,
    parts: Parts,
    reports: Sender<Report>,
}

/// Why the service cannot be started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum LambdaError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

impl Lambda {
    /// Reads what there is, and begins anew what had not ended.
    pub fn open(parts: Parts) -> Result<Self, LambdaError> {
        let rates = Mutex::new(Rates::new(&parts.settings.rates));
        let mut fleet = Fleet::new(Arc::clone(&parts.settings));
        for change in records::all(&parts.store)? {
            show(&parts.gates, &change);
            fleet.apply(change);
        }
        let unfinished = fleet.unfinished();
        let (reports, reported) = mpsc::channel();
        let driver = Arc::new(Driver {
            fleet: Mutex::new(fleet),
            metered: Mutex::new(parts.clock.now()),
            parts,
            reports,
        });
        let listener = Arc::downgrade(&driver);
        let listen = move || {
            let mut next_tick = Instant::now() + TICK;
            // Reports that the disk has no room for, and those behind them.
            let mut kept_back: VecDeque<Report> = VecDeque::new();
            loop {
                let patience = next_tick.saturating_duration_since(Instant::now());
                let report = reported.recv_timeout(patience);
                let Some(driver) = listener.upgrade() else { return };
                match report {
                    Ok(report) if kept_back.is_empty() && driver.report(&report) => {}
                    Ok(report) => kept_back.push_back(report),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                // However many reports come, the clock is looked at.
                if Instant::now() >= next_tick {
                    while kept_back.front().is_some_and(|report| driver.report(report)) {
                        kept_back.pop_front();
                    }
                    driver.tick();
                    driver.parts.store.keep_reserve();
                    next_tick = Instant::now() + TICK;
                }
            }
        };
        thread::Builder::new().name("fleet".into()).spawn(listen).map_err(LambdaError::Thread)?;
        driver.parts.worker.adopt(&driver.reports);
        for action in unfinished {
            driver.parts.worker.begin(action, &driver.reports);
        }
        Ok(Self { models: Model::all()?, rates, driver })
    }

    /// Answers a request.
    pub fn answer(&self, call: &Call) -> Result<Answer, ServiceError> {
        if call.path == usage::PATH && call.method == "GET" {
            self.driver.meter();
            let Parts { store, gates, clock, .. } = &self.driver.parts;
            return Ok(Answer::json(200, &usage::answer(store, gates, &call.query, clock.now())?));
        }
        let parse = |model: &'_ Model| -> Option<_> {
            model.parse_request(&call.method, &call.path, &call.query, &call.body).map(|result| {
                result.map(|Parsed { operation, input }| {
                    (operation.name.clone(), operation.status, operation.output.is_some(), input)
                })
            })
        };
        let Some(parsed) = self.models.iter().find_map(parse) else {
            let text = format!("There is no operation at {} {}.", call.method, call.path);
            return Err(ServiceError::new(404, "UnknownOperationException", text));
        };
        let (operation, status, has_output, input) = parsed?;
        let is_let_through = lock(&self.rates).take(&operation, self.driver.parts.clock.now());
        if !is_let_through {
            return Err(ServiceError::new(429, "ThrottlingException", "Rate exceeded"));
        }
        if call.method == "DELETE" {
            self.driver.parts.store.make_way();
        }
        let answer = self.driver.decide(&operation, input)?;
        Ok(if has_output { Answer::json(status, &answer) } else { Answer::empty(status) })
    }

    /// An error of a request, in the words of its operation.
    pub fn spell(&self, call: &Call, mut error: ServiceError) -> ServiceError {
        for model in &self.models {
            model.spell(&call.method, &call.path, &mut error);
        }
        error
    }

    /// Somebody is at the endpoint of a microVM that is suspended. Waits for the disk.
    pub fn wake(&self, id: &str) -> Result<(), ServiceError> {
        let report = Report::Wanted { id: id.into() };
        self.driver.carry_out(|fleet, context| Ok(fleet.report(report, context)))?;
        Ok(())
    }

    /// The role that the code of a microVM acts in. Waits for the disk at times.
    pub fn execution_role(&self, id: &str) -> Option<String> {
        let fleet = lock(&self.driver.fleet);
        let alive = fleet.microvms().find(|microvm| microvm.id == id && microvm.phase.is_alive());
        alive.and_then(|microvm| microvm.execution_role.clone())
    }

    /// What the endpoints see.
    pub fn gates(&self) -> &Arc<Gates> {
        &self.driver.parts.gates
    }

    /// The time that decisions are made at.
    pub fn clock(&self) -> &Clock {
        &self.driver.parts.clock
    }

    /// Looks at the clock, which is done every second anyway.
    pub fn tick(&self) {
        self.driver.tick();
    }
}

impl Driver {
    fn decide(&self, operation: &str, input: Value) -> Result<Value, ServiceError> {
        Ok(self.carry_out(|fleet, context| fleet.decide(operation, input, context))?)
    }

    /// False if it has to be tried again.
    fn report(&self, report: &Report) -> bool {
        tracing::debug!("a report: {report:?}");
        let decide =
            |fleet: &Fleet, context: &Context<'_>| Ok(fleet.report(report.clone(), context));
        match self.carry_out_with(&report.measured(), decide) {
            Ok(_) => {
                self.parts.metrics.observe(report);
                true
            }
            Err(Undone::NotKept(error)) => {
                let error = crate::report(&error);
                tracing::error!(
                    "a report could not be kept; it is tried again: {report:?}: {error}"
                );
                false
            }
            Err(Undone::Refused(error)) => {
                // The action is still unfinished: it comes again at the next start.
                tracing::error!("a report was not understood: {report:?}: {error}");
                true
            }
        }
    }

    fn tick(&self) {
        let gates = &self.parts.gates;
        let result = self.carry_out(|fleet, context| {
            let traffic = |id: &str| gates.traffic(id);
            loop {
                let decision = fleet.tick(&traffic, context);
                // Whoever has come in the meantime keeps it awake; who comes later waits.
                let may_close = |action: &Action| match action {
                    Action::Suspend(id) => gates.close_if_idle(id),
                    _ => true,
                };
                if decision.actions.iter().all(may_close) {
                    return Ok(decision);
                }
            }
        });
        if let Err(error) = result {
            let error = ServiceError::from(error);
            tracing::error!("what the clock did could not be kept; it is tried again: {error}");
        }
        self.meter_if_due();
    }

    fn carry_out(
        &self,
        decide: impl FnOnce(&Fleet, &Context<'_>) -> Decided,
    ) -> Result<Value, Undone> {
        self.carry_out_with(&Measured::default(), decide)
    }

    /// Decides, keeps, applies, and begins; in this order. What was measured is kept beside the changes.
    fn carry_out_with(
        &self,
        measured: &Measured,
        decide: impl FnOnce(&Fleet, &Context<'_>) -> Decided,
    ) -> Result<Value, Undone> {
        let Parts { store, worker, gates, seal, clock, .. } = &self.parts;
        let worker_refusal = worker.refusal();
        let context = Context { now: clock.now(), fresh: Uuid::new_v4, worker_refusal, seal };
        let (actions, answer) = {
            let mut fleet = lock(&self.fleet);
            // Gates that were closed for what comes to nothing are opened again.
            let reopen = |fleet: &Fleet| fleet.microvms().for_each(|microvm| gates.put(microvm));
            // A bug in a decision ends neither the thread of the reports nor anybody else's request.
            let decided = catch_unwind(AssertUnwindSafe(|| decide(&fleet, &context)));
            let Ok(decided) = decided else {
                reopen(&fleet);
                let text = "The control plane failed; its log says how.";
                return Err(ServiceError::new(500, "InternalServerException", text).into());
            };
            let Decision { changes, actions, answer } = decided?;
            if !changes.is_empty() {
                let moves = usage::Move::among(&changes, measured, &fleet, gates);
                let sizes = usage::Size::among(&changes, measured);
                let kept: Result<(), StoreError> = store.write(|transaction| {
                    keep(transaction, &changes)?;
                    usage::keep(transaction, &moves, &sizes, context.now)
                });
                if let Err(error) = kept {
                    reopen(&fleet);
                    return Err(error.into());
                }
                moves.iter().for_each(|it| it.is_kept(gates));
            }
            for change in changes {
                show(gates, &change);
                fleet.apply(change);
            }
            (actions, answer)
        };
        for action in actions {
            worker.begin(action, &self.reports);
        }
        Ok(answer)
    }
}

/// Lets the endpoints see a change.
fn show(gates: &Gates, change: &Change) {
    match change {
        Change::PutMicrovm(microvm) => gates.put(microvm),
        Change::DeleteMicrovm(id) => gates.remove(id),
        _ => {}
    }
}

/// Who panics while deciding has changed nothing yet.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(transaction: &Transaction<'_>, changes: &[Change]) -> Result<(), StoreError> {
    for change in changes {
        match change {
            Change::PutImage(image) => put(transaction, "image", &image.name, image)?,
            Change::DeleteImage(name) => delete(transaction, "image", name)?,
            Change::PutVersion(version) => {
                put(transaction, "version", &version_key(&version.id), version)?;
            }
            Change::DeleteVersion(id) => delete(transaction, "version", &version_key(id))?,
            Change::PutMicrovm(microvm) => put(transaction, "microvm", &microvm.id, microvm)?,
            Change::DeleteMicrovm(id) => delete(transaction, "microvm", id)?,
            Change::PutConnector(it) => put(transaction, "connector", &it.id, it)?,
            Change::DeleteConnector(id) => delete(transaction, "connector", id)?,
            Change::PutToken(token) => put(transaction, "token", &token.token, token)?,
            Change::DeleteToken(token) => delete(transaction, "token", token)?,
        }
    }
    Ok(())
}

fn version_key(id: &VersionId) -> String {
    format!("{}:{}", id.image, id.number)
}

fn put<T: Serialize>(
    transaction: &Transaction<'_>,
    kind: &str,
    id: &str,
    record: &T,
) -> Result<(), StoreError> {
    let body = serde_json::to_string(record)
        .map_err(|source| StoreError::Damaged { what: format!("{kind} {id}"), source })?;
    let sql = "INSERT OR REPLACE INTO record VALUES (?1, ?2, ?3)";
    let put = transaction.execute(sql, params![kind, id, body]);
    put.map(|_| ()).map_err(StoreError::at("put a record"))
}

fn delete(transaction: &Transaction<'_>, kind: &str, id: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM record WHERE kind = ?1 AND id = ?2";
    let deleted = transaction.execute(sql, params![kind, id]);
    deleted.map(|_| ()).map_err(StoreError::at("delete a record"))
}
