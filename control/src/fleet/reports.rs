//! What a worker reports, and what the passing of time does.

use std::time::Duration;

use serde_json::Value;

use super::microvm::{Event, Phase, Step};
use super::microvms::follow;
use super::records::{
    BuildState, ConnectorState, Image, ImageState, Microvm, SnapshotBuild, Update, UpdateStatus,
    Version, VersionId, VersionState,
};
use super::tokens::TOKEN_SECONDS;
use super::{Change, Context, Decision, Fleet, Traffic};

/// What became of an action, or happened by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the members' names say it")]
pub enum Report {
    /// A build has begun.
    BuildStarted { version: VersionId },
    /// A build is done, and this is what it made.
    BuildSucceeded { version: VersionId, snapshot: SnapshotBuild, measured: Measured },
    /// A build has failed; the reason is for the user.
    BuildFailed { version: VersionId, reason: String },
    /// What was built of a version is removed.
    VersionRemoved { version: VersionId },
    /// It could not be removed.
    VersionNotRemoved { version: VersionId, reason: String },
    /// Something happened to a microVM.
    Microvm { id: String, event: Event, reason: Option<String>, measured: Measured },
    /// Somebody is at the endpoint of a microVM that is suspended.
    Wanted { id: String },
    /// A connector works.
    Connected { id: String },
    /// It does not.
    NotConnected { id: String, reason: String },
    /// It is removed.
    Disconnected { id: String },
    /// It could not be removed.
    NotDisconnected { id: String, reason: String },
}

/// What a worker has measured. Nothing is decided by it: it is kept beside what changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The steps of a launch or a resume, and how long each took.
    pub steps: Vec<(&'static str, Duration)>,
    /// Processor time of the guest, since its process was started.
    pub processor_time: Option<Duration>,
    /// What there is of a suspended microVM, or of a version, on the disk.
    pub stored_bytes: Option<u64>,
}

impl Report {
    /// What was measured of its microVM or version.
    pub fn measured(&self) -> Measured {
        match self {
            Self::Microvm { measured, .. } | Self::BuildSucceeded { measured, .. } => {
                measured.clone()
            }
            _ => Measured::default(),
        }
    }
}

impl Fleet {
    /// What follows from a report. One that comes too late changes nothing.
    pub fn report(&self, report: Report, context: &Context<'_>) -> Decision {
        let nothing = Decision::answer(Value::Null);
        match report {
            Report::BuildStarted { version } => match self.versions.get(&version) {
                Some(version) if version.state == VersionState::Pending => {
                    let mut version = version.clone();
                    version.state = VersionState::InProgress;
                    version.updated = context.now;
                    for build in &mut version.builds {
                        build.state = BuildState::InProgress;
                    }
                    nothing.change(Change::PutVersion(Box::new(version)))
                }
                _ => nothing,
            },
            Report::BuildSucceeded { version, snapshot, .. } => {
                self.built(&version, Ok(snapshot), context).unwrap_or(nothing)
            }
            Report::BuildFailed { version, reason } => {
                self.built(&version, Err(reason), context).unwrap_or(nothing)
            }
            Report::VersionRemoved { version } => self.removed(&version).unwrap_or(nothing),
            Report::VersionNotRemoved { version, reason } => {
                self.not_removed(&version, reason, context).unwrap_or(nothing)
            }
            Report::Microvm { id, event, reason, .. } => self.happened(&id, event, reason, context),
            Report::Wanted { id } => self.wanted(&id, context),
            Report::Connected { id } => self.connected(&id, Ok(()), context).unwrap_or(nothing),
            Report::NotConnected { id, reason } => {
                self.connected(&id, Err(reason), context).unwrap_or(nothing)
            }
            Report::Disconnected { id } => match self.connectors.get(&id) {
                Some(connector) if connector.state == ConnectorState::Deleting => {
                    self.forget_connector(&id, nothing)
                }
                _ => nothing,
            },
            Report::NotDisconnected { id, reason } => match self.connectors.get(&id) {
                Some(connector) if connector.state == ConnectorState::Deleting => {
                    let mut connector = connector.clone();
                    connector.state = ConnectorState::DeleteFailed;
                    connector.state_reason = Some(reason);
                    nothing.change(Change::PutConnector(connector))
                }
                _ => nothing,
            },
        }
    }

    fn built(
        &self,
        id: &VersionId,
        result: Result<SnapshotBuild, String>,
        context: &Context<'_>,
    ) -> Option<Decision> {
        let version = self.versions.get(id)?;
        let image = self.images.get(&id.image)?;
        version.unfinished().filter(|_| version.state != VersionState::Deleting)?;
        let (mut version, mut image) = (version.clone(), image.clone());
        let is_first = image.state == ImageState::Creating;
        version.updated = context.now;
        image.updated = context.now;
        for build in &mut version.builds {
            match &result {
                Ok(snapshot) => {
                    build.state = BuildState::Successful;
                    build.snapshot = Some(*snapshot);
                }
                Err(reason) => {
                    build.state = BuildState::Failed;
                    build.state_reason = Some(reason.clone());
                }
            }
        }
        if result.is_ok() {
            version.state = VersionState::Successful;
            image.state = if is_first { ImageState::Created } else { ImageState::Updated };
            image.latest_active = self.latest_active(&version);
        } else {
            version.state = VersionState::Failed;
            version.is_active = false;
            image.state =
                if is_first { ImageState::CreateFailed } else { ImageState::UpdateFailed };
            image.latest_failed = Some(id.number);
        }
        let decision = Decision::answer(Value::Null).change(Change::PutImage(image));
        Some(decision.change(Change::PutVersion(Box::new(version))))
    }

    fn removed(&self, id: &VersionId) -> Option<Decision> {
        self.versions.get(id).filter(|version| version.state == VersionState::Deleting)?;
        let decision = Decision::answer(Value::Null).change(Change::DeleteVersion(id.clone()));
        let image = self.images.get(&id.image)?;
        let is_last = self.versions_of(&id.image).all(|version| version.id == *id);
        let is_gone = is_last && image.state == ImageState::Deleting;
        Some(if is_gone { self.forget_image(&id.image, decision) } else { decision })
    }

    fn not_removed(
        &self,
        id: &VersionId,
        reason: String,
        context: &Context<'_>,
    ) -> Option<Decision> {
        let version = self.versions.get(id).filter(|it| it.state == VersionState::Deleting)?;
        let image = self.images.get(&id.image)?;
        let (mut version, mut image): (Version, Image) = (version.clone(), image.clone());
        version.state = VersionState::DeleteFailed;
        version.state_reason = Some(reason);
        version.updated = context.now;
        if image.state == ImageState::Deleting {
            image.state = ImageState::DeleteFailed;
            image.updated = context.now;
        }
        let decision = Decision::answer(Value::Null).change(Change::PutImage(image));
        Some(decision.change(Change::PutVersion(Box::new(version))))
    }

    fn happened(
        &self,
        id: &str,
        event: Event,
        reason: Option<String>,
        context: &Context<'_>,
    ) -> Decision {
        let mut decision = Decision::answer(Value::Null);
        let Some(microvm) = self.microvms.get(id) else { return decision };
        let step = microvm.phase.next(event);
        follow(microvm, step, reason, context, &mut decision);
        // Without a time to be suspended in, it ends instead.
        if let Step::Go(Phase::Suspended, _) = step
            && microvm.idle_policy.is_some_and(|policy| policy.suspended_duration_seconds == 0)
            && let Some(Change::PutMicrovm(suspended)) = decision.changes.pop()
        {
            let step = suspended.phase.next(Event::Expired);
            follow(&suspended, step, None, context, &mut decision);
        }
        decision
    }

    fn wanted(&self, id: &str, context: &Context<'_>) -> Decision {
        let mut decision = Decision::answer(Value::Null);
        let Some(microvm) = self.microvms.get(id) else { return decision };
        if microvm.idle_policy.is_some_and(|policy| policy.auto_resume_enabled) {
            follow(microvm, microvm.phase.next(Event::Request), None, context, &mut decision);
        }
        decision
    }

    fn connected(
        &self,
        id: &str,
        result: Result<(), String>,
        context: &Context<'_>,
    ) -> Option<Decision> {
        let mut connector = self.connectors.get(id)?.clone();
        connector.unfinished().filter(|_| connector.state != ConnectorState::Deleting)?;
        connector.modified = context.now;
        match (connector.state, result) {
            (ConnectorState::Pending, Ok(())) => {
                connector.state = ConnectorState::Active;
                connector.state_reason = Some("Initial creation".into());
            }
            (ConnectorState::Pending, Err(reason)) => {
                connector.state = ConnectorState::Failed;
                connector.state_reason = Some(reason);
            }
            (_, Ok(())) => {
                connector.update = Some(Update { status: UpdateStatus::Successful, reason: None });
            }
            (_, Err(reason)) => {
                let (status, reason) = (UpdateStatus::Failed, Some(reason));
                connector.update = Some(Update { status, reason });
            }
        }
        Some(Decision::answer(Value::Null).change(Change::PutConnector(connector)))
    }

    /// What the passing of time does: idle microVMs are suspended, lives end, old things are forgotten.
    pub fn tick(&self, traffic: &dyn Fn(&str) -> Traffic, context: &Context<'_>) -> Decision {
        let mut decision = Decision::answer(Value::Null);
        for microvm in self.microvms.values() {
            if let Some((event, reason)) = due(microvm, traffic, context) {
                follow(microvm, microvm.phase.next(event), reason, context, &mut decision);
            }
        }
        self.forget_old(context, &mut decision);
        decision
    }

    fn forget_old(&self, context: &Context<'_>, decision: &mut Decision) {
        let quotas = &self.settings.quotas;
        let mut ended: Vec<&Microvm> =
            self.microvms.values().filter(|it| it.phase == Phase::Terminated).collect();
        ended.sort_by_key(|microvm| microvm.terminated);
        let too_many = ended.len().saturating_sub(quotas.terminated_microvms);
        for (place, microvm) in ended.into_iter().enumerate() {
            let age = context.now.seconds_since(microvm.terminated.unwrap_or(context.now));
            if place < too_many || age > quotas.terminated_retention_seconds {
                decision.changes.push(Change::DeleteMicrovm(microvm.id.clone()));
            }
        }
        for token in self.tokens.values() {
            if context.now.seconds_since(token.at) > TOKEN_SECONDS {
                decision.changes.push(Change::DeleteToken(token.token.clone()));
            }
        }
    }
}

/// What a clock does to a microVM.
fn due(
    microvm: &Microvm,
    traffic: &dyn Fn(&str) -> Traffic,
    context: &Context<'_>,
) -> Option<(Event, Option<String>)> {
    let now = context.now;
    if !microvm.phase.is_alive() {
        return None;
    }
    if now.seconds_since(microvm.started) >= microvm.maximum_seconds {
        return Some((Event::Expired, Some("The maximum duration has been reached.".into())));
    }
    let policy = microvm.idle_policy?;
    let suspended = microvm.suspended_since.filter(|_| microvm.phase == Phase::Suspended);
    if suspended.is_some_and(|since| now.seconds_since(since) >= policy.suspended_duration_seconds)
    {
        return Some((Event::Expired, Some("The suspended duration has been reached.".into())));
    }
    if microvm.phase != Phase::Running {
        return None;
    }
    let since = match traffic(&microvm.id) {
        Traffic::Open => return None,
        Traffic::Ended(ended) => ended.max(microvm.idle_since),
        Traffic::None => microvm.idle_since,
    };
    let is_idle = now.seconds_since(since) >= policy.max_idle_duration_seconds;
    is_idle.then_some((Event::Idle, None))
}
