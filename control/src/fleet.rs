//! The fleet: images, microVMs and network connectors, and what follows from what.
//!
//! Nothing here acts, waits, or reads a clock. A request or a worker's report is *decided*: the result
//! says what changes, what a worker has to do, and what is answered. Whoever asked puts the changes on
//! the disk, then [applies](Fleet::apply) them, and only then are the actions begun. So a decision that
//! could not be kept has never happened, and after a crash [`Fleet::unfinished`] says what to begin anew.
//!
//! ```text
//!  request ──▶ decide ──▶ Decision { changes, actions, answer }
//!  report  ──▶            changes ──▶ store ──▶ apply;   actions ──▶ worker ──▶ reports
//!  tick    ──▶
//! ```

mod connectors;
mod images;
pub mod microvm;
mod microvms;
pub mod names;
pub mod records;
mod reports;
mod tags;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::answer::{Members, ServiceError};
use crate::clock::Timestamp;
use crate::page;
use crate::seal::Seal;
use crate::settings::Settings;
use names::Names;
use records::{Connector, Image, Microvm, Token, Version, VersionId};
pub use reports::{Measured, Report};

/// Items of a page that does not say how many.
const PAGE_ITEMS: usize = 50;

/// Everything there is.
#[derive(Debug)]
pub struct Fleet {
    settings: Arc<Settings>,
    names: Names,
    images: BTreeMap<String, Image>,
    versions: BTreeMap<VersionId, Version>,
    microvms: BTreeMap<String, Microvm>,
    connectors: BTreeMap<String, Connector>,
    tokens: BTreeMap<String, Token>,
}

/// What a decision depends on besides the fleet.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Now.
    pub now: Timestamp,
    /// A number that nobody else has.
    pub fresh: fn() -> Uuid,
    /// Why microVMs cannot run on this host, if they cannot.
    pub worker_refusal: Option<&'a str>,
    /// What tokens are sealed with.
    pub seal: &'a Seal,
}

/// What came through a microVM's endpoint last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Nothing is known.
    None,
    /// Somebody is there.
    Open,
    /// Nobody has been since then.
    Ended(Timestamp),
}

/// What follows.
#[derive(Debug, PartialEq)]
pub struct Decision {
    /// To be kept, all or none.
    pub changes: Vec<Change>,
    /// To be done once the changes are kept.
    pub actions: Vec<Action>,
    /// To be answered.
    pub answer: Value,
}

/// A record that is put or deleted.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Change {
    PutImage(Image),
    DeleteImage(String),
    PutVersion(Box<Version>),
    DeleteVersion(VersionId),
    PutMicrovm(Box<Microvm>),
    DeleteMicrovm(String),
    PutConnector(Connector),
    DeleteConnector(String),
    PutToken(Token),
    DeleteToken(String),
}

/// What a worker has to do. Each ends with a [`Report`], whatever happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Build a version of an image.
    Build(VersionId),
    /// Remove what was built.
    RemoveVersion(VersionId),
    /// Start a microVM from its version's snapshot.
    Launch(String),
    /// Suspend it to a snapshot of its own.
    Suspend(String),
    /// Take it up again.
    Resume(String),
    /// End it, and remove what it has.
    Terminate(String),
    /// Make a network connector work as it is configured.
    Connect(String),
    /// Remove a network connector.
    Disconnect(String),
}

impl Decision {
    fn answer(answer: Value) -> Self {
        Self { changes: Vec::new(), actions: Vec::new(), answer }
    }

    fn change(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    fn act(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }
}

/// A request that is refused, or what follows from it.
pub type Decided = Result<Decision, ServiceError>;

impl Fleet {
    /// An empty fleet.
    pub fn new(settings: Arc<Settings>) -> Self {
        let names = Names::new(&settings);
        Self {
            settings,
            names,
            images: BTreeMap::new(),
            versions: BTreeMap::new(),
            microvms: BTreeMap::new(),
            connectors: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }

    /// Decides a request whose input satisfies the model.
    pub fn decide(&self, operation: &str, input: Value, context: &Context<'_>) -> Decided {
        match operation {
            "CreateMicrovmImage" => self.create_image(input, context),
            "UpdateMicrovmImage" => self.update_image(input, context),
            "DeleteMicrovmImage" => self.delete_image(&input, context),
            "GetMicrovmImage" => self.get_image(&input),
            "ListMicrovmImages" => self.list_images(&input),
            "GetMicrovmImageVersion" => self.get_version(&input),
            "UpdateMicrovmImageVersion" => self.update_version(&input, context),
            "DeleteMicrovmImageVersion" => self.delete_version(&input, context),
            "ListMicrovmImageVersions" => self.list_versions(&input),
            "GetMicrovmImageBuild" => self.get_build(&input),
            "ListMicrovmImageBuilds" => self.list_builds(&input),
            "ListManagedMicrovmImages" => self.list_managed(&input),
            "ListManagedMicrovmImageVersions" => self.list_managed_versions(&input),
            "RunMicrovm" => self.run(input, context),
            "GetMicrovm" => self.get_microvm(&input),
            "ListMicrovms" => self.list_microvms(&input),
            "SuspendMicrovm" => self.ask(&input, microvm::Event::Suspend, context),
            "ResumeMicrovm" => self.ask(&input, microvm::Event::Resume, context),
            "TerminateMicrovm" => self.ask(&input, microvm::Event::Terminate, context),
            "CreateMicrovmAuthToken" => self.auth_token(&input, context),
            "CreateMicrovmShellAuthToken" => self.shell_token(&input, context),
            "TagResource" => self.tag(&input),
            "UntagResource" => self.untag(&input),
            "ListTags" => self.list_tags(&input),
            "CreateNetworkConnector" => self.create_connector(input, context),
            "UpdateNetworkConnector" => self.update_connector(input, context),
            "DeleteNetworkConnector" => self.delete_connector(&input, context),
            "GetNetworkConnector" => self.get_connector(&input),
            "ListNetworkConnectors" => self.list_connectors(&input),
            "ListNetworkConnectorVersions" => self.list_connector_versions(&input),
            other => {
                let text = format!("The operation {other} is not supported here.");
                Err(ServiceError::new(400, "UnknownOperationException", text))
            }
        }
    }

    /// Makes a change that was kept, or is read back.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutImage(image) => {
                self.images.insert(image.name.clone(), image);
            }
            Change::DeleteImage(name) => {
                self.images.remove(&name);
            }
            Change::PutVersion(version) => {
                self.versions.insert(version.id.clone(), *version);
            }
            Change::DeleteVersion(id) => {
                self.versions.remove(&id);
            }
            Change::PutMicrovm(microvm) => {
                self.microvms.insert(microvm.id.clone(), *microvm);
            }
            Change::DeleteMicrovm(id) => {
                self.microvms.remove(&id);
            }
            Change::PutConnector(connector) => {
                self.connectors.insert(connector.id.clone(), connector);
            }
            Change::DeleteConnector(id) => {
                self.connectors.remove(&id);
            }
            Change::PutToken(token) => {
                self.tokens.insert(token.token.clone(), token);
            }
            Change::DeleteToken(token) => {
                self.tokens.remove(&token);
            }
        }
    }

    /// What was begun and has not ended: to be done again after a restart.
    pub fn unfinished(&self) -> Vec<Action> {
        let builds = self.versions.values().filter_map(Version::unfinished);
        let microvms = self.microvms.values().filter_map(Microvm::unfinished);
        let connectors = self.connectors.values().filter_map(Connector::unfinished);
        builds.chain(microvms).chain(connectors).collect()
    }

    /// A microVM, if it is remembered.
    pub fn look_up(&self, id: &str) -> Option<&Microvm> {
        self.microvms.get(id)
    }

    /// All microVMs.
    pub fn microvms(&self) -> impl Iterator<Item = &Microvm> {
        self.microvms.values()
    }

    fn versions_of<'a>(&'a self, image: &'a str) -> impl Iterator<Item = &'a Version> {
        self.versions.values().filter(move |version| version.id.image == image)
    }
}

/// A page of items that are sorted by their keys. Keys come in the order of the list.
fn paginate<'a, T: 'a>(
    items: impl Iterator<Item = (String, T)>,
    input: &Value,
    show: impl Fn(T) -> Option<Value>,
) -> Decided {
    let limit = input["maxResults"].as_u64().and_then(|number| usize::try_from(number).ok());
    let page = page_of(items, input["nextToken"].as_str(), limit, show);
    let (shown, next) = page.ok_or_else(|| invalid("The nextToken is none of this service's."))?;
    Ok(Decision::answer(json!({ "items": shown, "nextToken": next })))
}

/// Nothing if the token is none of ours.
fn page_of<'a, T: 'a>(
    items: impl Iterator<Item = (String, T)>,
    token: Option<&str>,
    limit: Option<usize>,
    show: impl Fn(T) -> Option<Value>,
) -> Option<(Vec<Value>, Option<String>)> {
    let after = token.map_or(Some(String::new()), page::decode)?;
    let limit = limit.unwrap_or(PAGE_ITEMS);
    let mut rest = items.filter(|(key, _)| *key > after).peekable();
    let (mut shown, mut last) = (Vec::new(), None);
    // As many are looked at as are asked for; a filter may leave fewer.
    for (key, item) in rest.by_ref().take(limit) {
        shown.extend(show(item));
        last = Some(key);
    }
    let next = rest.peek().and(last).map(|key| page::encode(&key));
    Some((shown, next))
}

fn text<'a>(input: &'a Value, name: &str) -> &'a str {
    input[name].as_str().unwrap_or_default()
}

fn invalid(text: impl Into<String>) -> ServiceError {
    ServiceError::new(400, "ValidationException", text)
}

/// The same of network connectors, and of tags of what is no image.
fn invalid_parameter(text: impl Into<String>) -> ServiceError {
    ServiceError::new(400, "InvalidParameterValueException", text)
}

fn conflict(text: impl Into<String>) -> ServiceError {
    ServiceError::new(409, "ConflictException", text).with(Members::Resource)
}

fn not_found(text: impl Into<String>) -> ServiceError {
    ServiceError::new(404, "ResourceNotFoundException", text).with(Members::Resource)
}

fn over_quota(text: impl Into<String>) -> ServiceError {
    ServiceError::new(402, "ServiceQuotaExceededException", text).with(Members::Quota)
}

/// What a typed input is not although the model allows it would be our mistake.
fn parse<T: serde::de::DeserializeOwned>(input: Value) -> Result<T, ServiceError> {
    serde_json::from_value(input)
        .map_err(|error| invalid(format!("The request is not understood: {error}")))
}

#[cfg(test)]
mod tests;
