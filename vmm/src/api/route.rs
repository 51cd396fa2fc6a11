//! From an HTTP message to a [`Request`]: which route, and what its body says.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::http::Method;
use super::request::Request;
use crate::config::{self, Drive, DrivePatch, NetworkInterface, NetworkInterfacePatch};

/// Why a message is no request.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum RouteError {
    #[error("there is no {method} {path}")]
    UnknownRoute { method: &'static str, path: String },
    #[error("{method} {path} needs a body")]
    BodyMissing { method: &'static str, path: String },
    #[error("{method} {path} has no body")]
    BodyUnexpected { method: &'static str, path: String },
    #[error("{method} /{section} needs an id: /{section}/ID")]
    IdMissing { method: &'static str, section: &'static str },
    #[error("the path names {section}/{in_path:?} and the body {section}/{in_body:?}")]
    IdsDiffer { section: &'static str, in_path: String, in_body: String },
    #[error("the body is refused")]
    Body(#[source] config::Error),
}

/// Finds out what is asked for.
pub fn route(method: Method, path: &str, body: &[u8]) -> Result<Request, RouteError> {
    let tokens: Vec<&str> = path.trim_matches('/').splitn(TOKENS_MAX, '/').collect();
    let request = match method {
        Method::Get => get(&tokens),
        Method::Put => put(&tokens, body)?,
        Method::Patch => patch(&tokens, body)?,
        Method::Delete => delete(&tokens),
    };
    match request {
        None => Err(RouteError::UnknownRoute { method: method.name(), path: shown(path) }),
        Some(Ok(request)) if !has_body(method, &request) && !body.is_empty() => {
            Err(RouteError::BodyUnexpected { method: method.name(), path: shown(path) })
        }
        // Decoding an empty body fails with a message that nobody would understand.
        Some(Err(_)) if body.is_empty() => {
            Err(RouteError::BodyMissing { method: method.name(), path: shown(path) })
        }
        Some(request) => request.map_err(RouteError::Body),
    }
}

/// More parts than any route has.
const TOKENS_MAX: usize = 5;

/// The route's request, if there is such a route and if its body could be read.
type Found = Option<Result<Request, config::Error>>;

fn get(tokens: &[&str]) -> Found {
    Some(Ok(match tokens {
        [""] => Request::InstanceInfo,
        ["version"] => Request::Version,
        ["vm", "config"] => Request::VmConfig,
        ["machine-config"] => Request::MachineConfig,
        ["balloon"] | ["balloon", "statistics"] | ["balloon", "hinting", "status"] => {
            Request::Unsupported("balloon")
        }
        ["mmds"] => Request::Unsupported("mmds-config"),
        ["hotplug", "memory"] => Request::Unsupported("memory-hotplug"),
        ["forks"] => Request::Forks,
        _ => return None,
    }))
}

fn delete(tokens: &[&str]) -> Found {
    match tokens {
        ["fork", id] => Some(Ok(Request::EndFork(shown(id)))),
        _ => None,
    }
}

/// Whether a request of this method says something in its body.
fn has_body(method: Method, request: &Request) -> bool {
    match method {
        Method::Get | Method::Delete => false,
        Method::Put => *request != Request::Fork,
        Method::Patch => true,
    }
}

fn put(tokens: &[&str], body: &[u8]) -> Result<Found, RouteError> {
    Ok(Some(match tokens {
        ["machine-config"] => read(body, tokens[0], Request::SetMachineConfig),
        ["boot-source"] => read(body, tokens[0], Request::SetBootSource),
        ["vsock"] => read(body, tokens[0], Request::SetVsock),
        ["entropy"] => read(body, tokens[0], Request::SetEntropy),
        ["serial"] => read(body, tokens[0], Request::SetSerial),
        ["logger"] => read(body, tokens[0], Request::SetLogger),
        ["actions"] => config::decode(body, "actions").map(Action::request),
        ["snapshot", "create"] => read(body, "snapshot/create", Request::CreateSnapshot),
        ["snapshot", "working-set"] => {
            read(body, "snapshot/working-set", Request::RecordWorkingSet)
        }
        ["fork"] => Ok(Request::Fork),
        ["snapshot", "load"] => read(body, "snapshot/load", Request::LoadSnapshot),
        ["drives"] => return Err(id_missing(Method::Put, DRIVES)),
        ["drives", id] => {
            return named(DRIVES, id, body, |d: &Drive| &d.drive_id, Request::SetDrive);
        }
        ["balloon"] => Ok(Request::Unsupported("balloon")),
        ["cpu-config"] => Ok(Request::Unsupported("cpu-config")),
        ["metrics"] => Ok(Request::Unsupported("metrics")),
        ["mmds"] | ["mmds", "config"] => Ok(Request::Unsupported("mmds-config")),
        ["network-interfaces"] => return Err(id_missing(Method::Put, INTERFACES)),
        ["network-interfaces", id] => {
            type Body = NetworkInterface;
            let request = Request::SetNetworkInterface;
            return named(INTERFACES, id, body, |body: &Body| &body.iface_id, request);
        }
        ["pmem", _] => Ok(Request::Unsupported("pmem")),
        ["hotplug", "memory"] => Ok(Request::Unsupported("memory-hotplug")),
        _ => return Ok(None),
    }))
}

fn patch(tokens: &[&str], body: &[u8]) -> Result<Found, RouteError> {
    Ok(Some(match tokens {
        ["machine-config"] => read(body, tokens[0], Request::PatchMachineConfig),
        ["vm"] => config::decode(body, "vm").map(Vm::request),
        ["drives"] => return Err(id_missing(Method::Patch, DRIVES)),
        ["drives", id] => {
            return named(DRIVES, id, body, |d: &DrivePatch| &d.drive_id, Request::PatchDrive);
        }
        ["balloon"] | ["balloon", "statistics"] | ["balloon", "hinting", "start" | "stop"] => {
            Ok(Request::Unsupported("balloon"))
        }
        ["mmds"] => Ok(Request::Unsupported("mmds-config")),
        ["network-interfaces"] => return Err(id_missing(Method::Patch, INTERFACES)),
        ["network-interfaces", id] => {
            type Body = NetworkInterfacePatch;
            let request = Request::PatchNetworkInterface;
            return named(INTERFACES, id, body, |body: &Body| &body.iface_id, request);
        }
        ["pmem", _] => Ok(Request::Unsupported("pmem")),
        ["hotplug", "memory"] => Ok(Request::Unsupported("memory-hotplug")),
        _ => return Ok(None),
    }))
}

fn read<T: DeserializeOwned>(
    body: &[u8],
    section: &str,
    request: impl FnOnce(T) -> Request,
) -> Result<Request, config::Error> {
    config::decode(body, section).map(request)
}

const DRIVES: &str = "drives";
const INTERFACES: &str = "network-interfaces";

fn id_missing(method: Method, section: &'static str) -> RouteError {
    RouteError::IdMissing { method: method.name(), section }
}

/// A drive or interface is named twice, in the path and in the body, and both must agree.
fn named<T: DeserializeOwned>(
    section: &'static str,
    in_path: &str,
    body: &[u8],
    in_body: impl Fn(&T) -> &String,
    request: impl FnOnce(T) -> Request,
) -> Result<Found, RouteError> {
    match config::decode::<T>(body, &format!("{section}/{}", shown(in_path))) {
        Err(error) => Ok(Some(Err(error))),
        Ok(value) if in_body(&value) != in_path => {
            let (in_path, in_body) = (shown(in_path), shown(in_body(&value)));
            Err(RouteError::IdsDiffer { section, in_path, in_body })
        }
        Ok(value) => Ok(Some(Ok(request(value)))),
    }
}

/// The body of `PUT /actions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Deserialize)]
enum ActionType {
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
}

impl Action {
    fn request(self) -> Request {
        match self.action_type {
            ActionType::InstanceStart => Request::Start,
            ActionType::FlushMetrics => Request::FlushMetrics,
            ActionType::SendCtrlAltDel => Request::SendCtrlAltDel,
        }
    }
}

/// The body of `PATCH /vm`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: VmState,
}

#[derive(Deserialize)]
enum VmState {
    Paused,
    Resumed,
}

impl Vm {
    fn request(self) -> Request {
        match self.state {
            VmState::Paused => Request::Pause,
            VmState::Resumed => Request::Resume,
        }
    }
}

/// A client's word as messages show it.
fn shown(word: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 100;
    word.chars().take(SHOWN_CHARS_MAX).collect()
}
