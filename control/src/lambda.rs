//! The services that sign for `lambda`: requests in, the fleet's decisions kept, begun and answered.

mod rates;
pub mod records;

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
use crate::clock::Timestamp;
use crate::fleet::records::VersionId;
use crate::fleet::{Change, Context, Decided, Decision, Fleet, Report};
use crate::http::Call;
use crate::model::{Model, ModelError, Parsed};
use crate::settings::Settings;
use crate::store::{Store, StoreError};
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

/// What keeps decisions and begins actions.
struct Driver {
    fleet: Mutex<Fleet>,
    store: Arc<Store>,
    worker: Arc<dyn Worker>,
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
    pub fn open(
        store: &Arc<Store>,
        settings: &Arc<Settings>,
        worker: Arc<dyn Worker>,
    ) -> Result<Self, LambdaError> {
        let mut fleet = Fleet::new(Arc::clone(settings));
        for change in records::all(store)? {
            fleet.apply(change);
        }
        let unfinished = fleet.unfinished();
        let (reports, reported) = mpsc::channel();
        let (fleet, store) = (Mutex::new(fleet), Arc::clone(store));
        let driver = Arc::new(Driver { fleet, store, worker, reports });
        let listener = Arc::downgrade(&driver);
        let listen = move || {
            let mut next_tick = Instant::now() + TICK;
            loop {
                let patience = next_tick.saturating_duration_since(Instant::now());
                let report = reported.recv_timeout(patience);
                let Some(driver) = listener.upgrade() else { return };
                match report {
                    Ok(report) => driver.report(report),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                // However many reports come, the clock is looked at.
                if Instant::now() >= next_tick {
                    driver.tick();
                    next_tick = Instant::now() + TICK;
                }
            }
        };
        thread::Builder::new().name("fleet".into()).spawn(listen).map_err(LambdaError::Thread)?;
        driver.worker.adopt(&driver.reports);
        for action in unfinished {
            driver.worker.begin(action, &driver.reports);
        }
        let rates = Mutex::new(Rates::new(&settings.rates));
        Ok(Self { models: Model::all()?, rates, driver })
    }

    /// Answers a request.
    pub fn answer(&self, call: &Call) -> Result<Answer, ServiceError> {
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
        let is_let_through = lock(&self.rates).take(&operation, Timestamp::now());
        if !is_let_through {
            let error = ServiceError::new(429, "ThrottlingException", "Rate exceeded");
            let mut answer = error.answer(crate::answer::Protocol::RestJson);
            answer.headers.push(("retry-after", "1".into()));
            return Ok(answer);
        }
        let answer = self.driver.decide(&operation, input)?;
        Ok(if has_output { Answer::json(status, &answer) } else { Answer::empty(status) })
    }
}

impl Driver {
    fn decide(&self, operation: &str, input: Value) -> Result<Value, ServiceError> {
        self.carry_out(|fleet, context| fleet.decide(operation, input, context))
    }

    fn report(&self, report: Report) {
        tracing::debug!("a report: {report:?}");
        let result = self.carry_out(|fleet, context| Ok(fleet.report(report.clone(), context)));
        if let Err(error) = result {
            // Nothing has changed, so the action is still unfinished: it comes again at the next start.
            tracing::error!("a report could not be kept: {report:?}: {error}");
        }
    }

    fn tick(&self) {
        if let Err(error) = self.carry_out(|fleet, context| Ok(fleet.tick(context))) {
            tracing::error!("what the clock did could not be kept; it is tried again: {error}");
        }
    }

    /// Decides, keeps, applies, and begins; in this order.
    fn carry_out(
        &self,
        decide: impl FnOnce(&Fleet, &Context<'_>) -> Decided,
    ) -> Result<Value, ServiceError> {
        let worker_refusal = self.worker.refusal();
        let context = Context { now: Timestamp::now(), fresh: Uuid::new_v4, worker_refusal };
        let (actions, answer) = {
            let mut fleet = lock(&self.fleet);
            // A bug in a decision ends neither the thread of the reports nor anybody else's request.
            let decided = catch_unwind(AssertUnwindSafe(|| decide(&fleet, &context)));
            let Decision { changes, actions, answer } = decided.unwrap_or_else(|_| {
                let text = "The control plane failed; its log says how.";
                Err(ServiceError::new(500, "InternalServerException", text))
            })?;
            if !changes.is_empty() {
                self.store.write(|transaction| keep(transaction, &changes))?;
            }
            for change in changes {
                fleet.apply(change);
            }
            (actions, answer)
        };
        for action in actions {
            self.worker.begin(action, &self.reports);
        }
        Ok(answer)
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
