//! MicroVMs: running, asking, showing.

use serde::Deserialize;
use serde_json::{Value, json};

use super::images::number_of;
use super::microvm::{Event, Order, Phase, Step};
use super::names::{ConnectorName, is_ingress};
use super::records::{ConnectorState, IdlePolicy, Microvm, Version, VersionId, VersionState};
use super::{
    Action, Change, Context, Decided, Decision, Fleet, conflict, invalid, not_found, over_quota,
    paginate, parse, text,
};
use crate::answer::ServiceError;
use crate::endpoint::grant::{Grant, RANGES_MAX, Scope};
use crate::seal::Kind;

/// The longest life, and the one of a microVM whose request does not say: eight hours.
const MAXIMUM_SECONDS: i64 = 28_800;
/// The longest life of a token.
const TOKEN_MINUTES_MAX: i64 = 60;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    image_identifier: String,
    image_version: Option<String>,
    ingress_network_connectors: Option<Vec<String>>,
    egress_network_connectors: Option<Vec<String>>,
    execution_role_arn: Option<String>,
    idle_policy: Option<IdlePolicy>,
    logging: Option<Value>,
    run_hook_payload: Option<String>,
    maximum_duration_in_seconds: Option<i64>,
}

impl Fleet {
    pub(super) fn run(&self, input: Value, context: &Context<'_>) -> Decided {
        let replay = self.replay("RunMicrovm", &input, context)?;
        if let Some(microvm) = replay.resource.as_ref().and_then(|id| self.microvms.get(id)) {
            return Ok(Decision::answer(self.show(microvm)));
        }
        let run: Run = parse(input)?;
        let version = self.active(&run)?;
        let ingress = run
            .ingress_network_connectors
            .unwrap_or_else(|| vec![self.names.managed_connector("HTTP_INGRESS")]);
        let egress = run
            .egress_network_connectors
            .unwrap_or_else(|| version.spec.egress_network_connectors.clone());
        self.check_ingress(&ingress)?;
        self.check_egress(&egress)?;
        let memory_mib = version.memory_mib();
        let alive = self.microvms.values().filter(|microvm| microvm.phase.is_alive());
        let used_mib: u64 = alive.map(|microvm| microvm.memory_mib).sum();
        if used_mib.saturating_add(memory_mib) > self.settings.quotas.memory_mib {
            let text = "The base maximum allocated memory limit has been reached for this account.";
            return Err(over_quota(text));
        }
        if let Some(reason) = context.worker_refusal {
            return Err(ServiceError::new(500, "InsufficientCapacityException", reason));
        }
        let id = format!("microvm-{}", (context.fresh)());
        let microvm = Microvm {
            id: id.clone(),
            endpoint: self.names.endpoint(&(context.fresh)().to_string()),
            version: version.id.clone(),
            phase: Phase::Launching,
            started: context.now,
            terminated: None,
            state_reason: None,
            idle_since: context.now,
            suspended_since: None,
            execution_role: run.execution_role_arn,
            idle_policy: run.idle_policy,
            maximum_seconds: run.maximum_duration_in_seconds.unwrap_or(MAXIMUM_SECONDS),
            ingress,
            egress,
            logging: run.logging,
            run_hook_payload: run.run_hook_payload,
            memory_mib,
        };
        let decision = Decision::answer(self.show(&microvm))
            .change(Change::PutMicrovm(Box::new(microvm)))
            .act(Action::Launch(id.clone()));
        Ok(replay.remember(decision, &id))
    }

    /// The version that is wanted, or the newest, if it is active.
    fn active(&self, run: &Run) -> Result<&Version, ServiceError> {
        let arn = &run.image_identifier;
        let name = self.names.image_name(arn)?;
        let image = self.images.get(name).filter(|image| self.names.image(&image.name) == *arn);
        let number = match &run.image_version {
            Some(version) => number_of(version),
            None => image.and_then(|image| image.latest_active),
        };
        let id = image.zip(number).map(|(_, number)| VersionId { image: name.into(), number });
        let version = id.and_then(|id| self.versions.get(&id));
        let version = version
            .filter(|version| version.is_active && version.state == VersionState::Successful);
        version.ok_or_else(|| not_found(format!("No active version found for MicroVM image {arn}")))
    }

    fn check_ingress(&self, arns: &[String]) -> Result<(), ServiceError> {
        for arn in arns {
            match self.names.connector_name(arn) {
                Some(ConnectorName::Managed(word)) if is_ingress(word) => {}
                None => return Err(malformed(arn)),
                Some(_) => {
                    return Err(invalid(format!("{arn} is not an ingress network connector.")));
                }
            }
        }
        Ok(())
    }

    pub(super) fn check_egress(&self, arns: &[String]) -> Result<(), ServiceError> {
        for arn in arns {
            match self.names.connector_name(arn) {
                Some(ConnectorName::Managed(word)) if !is_ingress(word) => {}
                Some(ConnectorName::Own(id)) => match self.connectors.get(id) {
                    Some(connector) if connector.state == ConnectorState::Active => {}
                    Some(_) => {
                        return Err(invalid(format!("The network connector {arn} is not active.")));
                    }
                    None => {
                        return Err(not_found(format!("Network connector not found for: {arn}")));
                    }
                },
                None => return Err(malformed(arn)),
                Some(_) => {
                    return Err(invalid(format!("{arn} is not an egress network connector.")));
                }
            }
        }
        Ok(())
    }

    pub(super) fn get_microvm(&self, input: &Value) -> Decided {
        Ok(Decision::answer(self.show(self.microvm(input)?)))
    }

    pub(super) fn list_microvms(&self, input: &Value) -> Decided {
        let image = input["imageIdentifier"].as_str();
        let name = image.map(|arn| self.names.image_name(arn)).transpose()?;
        let version = input["imageVersion"].as_str();
        let mut found: Vec<&Microvm> = self.microvms.values().collect();
        found.retain(|microvm| name.is_none_or(|name| microvm.version.image == name));
        // The microVMs that are remembered outlive their image.
        if let Some(arn) = image.filter(|_| found.is_empty()) {
            self.image(arn)?;
        }
        found.retain(|microvm| {
            version.is_none_or(|version| number_of(version) == Some(microvm.version.number))
        });
        // The newest first.
        let key =
            |microvm: &Microvm| format!("{:019}/{}", i64::MAX - microvm.started.0, microvm.id);
        found.sort_by_key(|microvm| key(microvm));
        paginate(found.into_iter().map(|microvm| (key(microvm), microvm)), input, |microvm| {
            Some(json!({
                "microvmId": microvm.id, "state": microvm.phase.state(),
                "imageArn": self.names.image(&microvm.version.image),
                "imageVersion": super::records::version_text(microvm.version.number),
                "startedAt": microvm.started.epoch_seconds(),
            }))
        })
    }

    /// A client asks for a change.
    pub(super) fn ask(&self, input: &Value, event: Event, context: &Context<'_>) -> Decided {
        let microvm = self.microvm(input)?;
        let id = &microvm.id;
        match microvm.phase.next(event) {
            Step::RefuseEnded => Err(invalid(format!(
                "The MicroVM {id} has been terminated and its state cannot be changed."
            ))),
            Step::Refuse => {
                let state = microvm.phase.state();
                Err(conflict(format!(
                    "The MicroVM {id} cannot be changed in its current state: {state}"
                )))
            }
            step => {
                let mut decision = Decision::answer(json!({}));
                follow(microvm, step, None, context, &mut decision);
                Ok(decision)
            }
        }
    }

    pub(super) fn auth_token(&self, input: &Value, context: &Context<'_>) -> Decided {
        let scope = Scope::Ports(ports(&input["allowedPorts"])?);
        let microvm = self.microvm(input)?;
        if !["HTTP_INGRESS", "ALL_INGRESS"].into_iter().any(|word| self.lets_in(microvm, word)) {
            let text = "HTTP access requires HTTP_INGRESS network connector to be configured on the MicroVM.";
            return Err(invalid(text));
        }
        token(microvm, scope, input, context)
    }

    pub(super) fn shell_token(&self, input: &Value, context: &Context<'_>) -> Decided {
        let microvm = self.microvm(input)?;
        if !self.lets_in(microvm, "SHELL_INGRESS") {
            let text = "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.";
            return Err(invalid(text));
        }
        if self.lets_in(microvm, "ALL_INGRESS") {
            let text = "ALL_INGRESS cannot be combined with other ingress network connectors; use HTTP_INGRESS \
                        and/or SHELL_INGRESS instead";
            return Err(invalid(text));
        }
        token(microvm, Scope::Shell, input, context)
    }

    fn lets_in(&self, microvm: &Microvm, word: &str) -> bool {
        microvm.ingress.contains(&self.names.managed_connector(word))
    }

    fn microvm(&self, input: &Value) -> Result<&Microvm, ServiceError> {
        let id = text(input, "microvmIdentifier");
        let found = self.microvms.get(id);
        found.ok_or_else(|| not_found(format!("MicroVM not found: {id}")))
    }

    fn show(&self, microvm: &Microvm) -> Value {
        json!({
            "microvmId": microvm.id, "endpoint": microvm.endpoint, "state": microvm.phase.state(),
            "stateReason": microvm.state_reason, "terminationReasonCode": null,
            "imageArn": self.names.image(&microvm.version.image),
            "imageVersion": super::records::version_text(microvm.version.number),
            "executionRoleArn": microvm.execution_role, "idlePolicy": microvm.idle_policy,
            "maximumDurationInSeconds": microvm.maximum_seconds,
            "startedAt": microvm.started.epoch_seconds(),
            "terminatedAt": microvm.terminated.map(|time| time.epoch_seconds()),
            "ingressNetworkConnectors": microvm.ingress, "egressNetworkConnectors": microvm.egress,
        })
    }
}

/// A token for the endpoint. A suspended microVM has one, too.
fn token(microvm: &Microvm, scope: Scope, input: &Value, context: &Context<'_>) -> Decided {
    let id = &microvm.id;
    if microvm.phase == Phase::Terminating {
        let state = microvm.phase.state();
        let text = format!("The MicroVM {id} has no tokens in its current state: {state}");
        return Err(conflict(text));
    }
    if microvm.phase == Phase::Terminated {
        return Err(invalid(format!(
            "The MicroVM {id} has been terminated and its state cannot be changed."
        )));
    }
    let minutes = input["expirationInMinutes"].as_i64().unwrap_or_default();
    if minutes > TOKEN_MINUTES_MAX {
        return Err(invalid(format!(
            "expirationInMinutes is 1 to {TOKEN_MINUTES_MAX}, and not {minutes}"
        )));
    }
    let expires = context.now.plus_seconds(minutes * 60);
    let grant = Grant { microvm: id.clone(), scope, expires };
    let token = context.seal.seal(Kind::Endpoint, &grant);
    Ok(Decision::answer(json!({ "authToken": { "X-aws-proxy-auth": token } })))
}

/// The ranges that a request allows; the model has looked at each port.
fn ports(allowed: &Value) -> Result<Vec<(u16, u16)>, ServiceError> {
    let specifications = allowed.as_array().map(Vec::as_slice).unwrap_or_default();
    if specifications.len() > RANGES_MAX {
        return Err(invalid(format!("allowedPorts has more than {RANGES_MAX} specifications")));
    }
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let range = |specification: &Value| {
        let (port, range) = (&specification["port"], &specification["range"]);
        let (first, last) = match (number(port), range.is_object()) {
            (Some(port), _) => (Some(port), Some(port)),
            (None, true) => (number(&range["startPort"]), number(&range["endPort"])),
            (None, false) => (Some(1), Some(u16::MAX)),
        };
        first.zip(last).filter(|(first, last)| first <= last).ok_or_else(|| {
            invalid("A range of allowedPorts ends before it starts, or has no such ports.")
        })
    };
    specifications.iter().map(range).collect()
}

/// Takes a step of a microVM's life.
pub(super) fn follow(
    microvm: &Microvm,
    step: Step,
    reason: Option<String>,
    context: &Context<'_>,
    decision: &mut Decision,
) {
    let Step::Go(phase, order) = step else { return };
    let mut microvm = microvm.clone();
    let action = match order {
        Order::None => None,
        Order::Suspend => Some(Action::Suspend(microvm.id.clone())),
        Order::Resume => Some(Action::Resume(microvm.id.clone())),
        Order::Terminate => Some(Action::Terminate(microvm.id.clone())),
    };
    microvm.phase = phase;
    match phase {
        Phase::Running => {
            microvm.idle_since = context.now;
            microvm.suspended_since = None;
        }
        Phase::Suspended => {
            microvm.suspended_since = microvm.suspended_since.or(Some(context.now));
        }
        Phase::Terminated => {
            microvm.terminated = Some(context.now);
            microvm.state_reason = microvm.state_reason.or_else(|| Some("Success.".into()));
        }
        _ => {}
    }
    if reason.is_some() {
        microvm.state_reason = reason;
    }
    decision.actions.extend(action);
    decision.changes.push(Change::PutMicrovm(Box::new(microvm)));
}

fn malformed(arn: &str) -> ServiceError {
    invalid(format!("Malformed network connector ARN: {arn}"))
}
