//! Images, their versions and builds.

use serde_json::{Value, json};

use super::names::{MANAGED_IMAGE, MANAGED_VERSIONS};
use super::records::{
    Build, BuildState, Hooks, Image, ImageSpec, ImageState, Resources, Version, VersionId,
    VersionState, version_text,
};
use super::{
    Action, Change, Context, Decided, Decision, Fleet, conflict, invalid, not_found, over_quota,
    paginate, parse, text,
};
use crate::answer::ServiceError;
use crate::clock::Timestamp;

/// What a microVM has when its image does not say.
const DEFAULT_MEMORY_MIB: u64 = 2048;
/// The largest class.
const MEMORY_MIB_MAX: u64 = 8192;
/// The processor that images are built for: there is one build of each version.
const CHIPSET_GENERATION: &str = "1";
/// When the managed image came to be: the service's first day.
const MANAGED_SINCE: Timestamp = Timestamp(1_782_129_600_000);

impl Fleet {
    pub(super) fn create_image(&self, mut input: Value, context: &Context<'_>) -> Decided {
        let replay = self.replay("CreateMicrovmImage", &input, context)?;
        if let Some(name) = &replay.resource
            && let Some(image) = self.images.get(name)
            && let Some(version) = self.versions_of(name).next()
        {
            return Ok(Decision::answer(self.show_created(image, version)));
        }
        let name = text(&input, "name").to_owned();
        let tags = input["tags"].take();
        let tags = if tags.is_null() { Default::default() } else { parse(tags)? };
        super::tags::check(&tags).map_err(invalid)?;
        if self.images.contains_key(&name) {
            let text =
                format!("A MicroVM image with the name '{name}' already exists in this account");
            return Err(invalid(text));
        }
        if self.images.len() >= self.settings.quotas.images {
            return Err(over_quota(
                "The maximum number of MicroVM images has been reached for this account.",
            ));
        }
        let spec = self.spec(input)?;
        let image = Image {
            name: name.clone(),
            id: (context.fresh)().to_string(),
            state: ImageState::Creating,
            created: context.now,
            updated: context.now,
            latest_active: None,
            latest_failed: None,
            next_version: 2,
            tags,
        };
        let version = new_version(VersionId { image: name.clone(), number: 1 }, spec, context);
        let answer = self.show_created(&image, &version);
        let action = Action::Build(version.id.clone());
        let decision = Decision::answer(answer)
            .change(Change::PutImage(image))
            .change(Change::PutVersion(Box::new(version)))
            .act(action);
        Ok(replay.remember(decision, &name))
    }

    pub(super) fn update_image(&self, input: Value, context: &Context<'_>) -> Decided {
        let mut image = self.image(text(&input, "imageIdentifier"))?.clone();
        let replay = self.replay("UpdateMicrovmImage", &input, context)?;
        if replay.resource.is_some()
            && let Some(version) = self.versions_of(&image.name).last()
        {
            return Ok(Decision::answer(self.show_created(&image, version)));
        }
        require_settled(&image)?;
        if self.versions_of(&image.name).count() >= self.settings.quotas.versions_per_image {
            return Err(over_quota(
                "The maximum number of versions has been reached for this MicroVM image.",
            ));
        }
        let id = VersionId { image: image.name.clone(), number: image.next_version };
        let version = new_version(id, self.spec(input)?, context);
        image.state = ImageState::Updating;
        image.updated = context.now;
        image.next_version += 1;
        let answer = self.show_created(&image, &version);
        let (name, action) = (image.name.clone(), Action::Build(version.id.clone()));
        let decision = Decision::answer(answer)
            .change(Change::PutImage(image))
            .change(Change::PutVersion(Box::new(version)))
            .act(action);
        Ok(replay.remember(decision, &name))
    }

    pub(super) fn delete_image(&self, input: &Value, context: &Context<'_>) -> Decided {
        let identifier = text(input, "imageIdentifier");
        let mut image = self.image(identifier)?.clone();
        let answer = json!({ "imageIdentifier": identifier, "state": "DELETING" });
        match image.state {
            ImageState::Deleting => return Ok(Decision::answer(answer)),
            ImageState::Creating | ImageState::Updating => {
                let state = image.state.text();
                return Err(invalid(format!(
                    "Cannot delete MicroVM image in its current state: {state}"
                )));
            }
            _ => {}
        }
        self.require_unused(|id| id.image == image.name)?;
        let mut decision = Decision::answer(answer);
        let mut is_waiting = false;
        for version in self.versions_of(&image.name) {
            is_waiting |= remove_version(version, context, &mut decision);
        }
        if is_waiting {
            image.state = ImageState::Deleting;
            image.updated = context.now;
            return Ok(decision.change(Change::PutImage(image)));
        }
        Ok(self.forget_image(&image.name, decision))
    }

    /// The image is gone, and what clients' tokens remember of it.
    pub(super) fn forget_image(&self, name: &str, mut decision: Decision) -> Decision {
        for token in self.tokens_of(name) {
            decision.changes.push(Change::DeleteToken(token.token.clone()));
        }
        decision.change(Change::DeleteImage(name.into()))
    }

    pub(super) fn get_image(&self, input: &Value) -> Decided {
        let image = self.image(text(input, "imageIdentifier"))?;
        Ok(Decision::answer(self.show_image(image, true)))
    }

    pub(super) fn list_images(&self, input: &Value) -> Decided {
        let filter = input["nameFilter"].as_str();
        let items = self.images.values().map(|image| (image.name.clone(), image));
        paginate(items, input, |image| {
            let is_wanted = filter.is_none_or(|filter| image.name.contains(filter));
            is_wanted.then(|| self.show_image(image, false))
        })
    }

    pub(super) fn get_version(&self, input: &Value) -> Decided {
        Ok(Decision::answer(self.show_version(self.version(input)?)))
    }

    pub(super) fn list_versions(&self, input: &Value) -> Decided {
        let image = self.image(text(input, "imageIdentifier"))?;
        let versions = self.versions_of(&image.name).collect::<Vec<_>>().into_iter().rev();
        let items =
            versions.map(|version| (format!("{:010}", u32::MAX - version.id.number), version));
        paginate(items, input, |version| Some(self.show_version(version)))
    }

    pub(super) fn update_version(&self, input: &Value, context: &Context<'_>) -> Decided {
        let mut version = self.version(input)?.clone();
        let mut image = self.image(text(input, "imageIdentifier"))?.clone();
        require_settled(&image)?;
        if version.state != VersionState::Successful {
            let state = serde_json::to_value(version.state).unwrap_or_default();
            let state = state.as_str().unwrap_or_default();
            return Err(conflict(format!("MicroVM Image version is in state: {state}")));
        }
        version.is_active = text(input, "status") == "ACTIVE";
        version.updated = context.now;
        image.updated = context.now;
        image.latest_active = self.latest_active(&version);
        let answer = self.show_version(&version);
        let decision = Decision::answer(answer).change(Change::PutImage(image));
        Ok(decision.change(Change::PutVersion(Box::new(version))))
    }

    pub(super) fn delete_version(&self, input: &Value, context: &Context<'_>) -> Decided {
        let version = self.version(input)?;
        let identifier = text(input, "imageIdentifier");
        let mut image = self.image(identifier)?.clone();
        let answer = json!({
            "imageIdentifier": identifier, "imageVersion": version.text(), "state": "DELETING",
        });
        if version.state == VersionState::Deleting {
            return Ok(Decision::answer(answer));
        }
        require_settled(&image)?;
        let others = self.versions_of(&image.name).filter(|other| other.id != version.id);
        if others.filter(|other| other.state != VersionState::Deleting).count() == 0 {
            return Err(invalid(
                "Cannot delete the last version of a MicroVM image; delete the image.",
            ));
        }
        self.require_unused(|id| *id == version.id)?;
        let mut decision = Decision::answer(answer);
        remove_version(version, context, &mut decision);
        let gone = Version { is_active: false, ..version.clone() };
        image.latest_active = self.latest_active(&gone);
        image.latest_failed = image.latest_failed.filter(|number| *number != version.id.number);
        image.updated = context.now;
        Ok(decision.change(Change::PutImage(image)))
    }

    pub(super) fn get_build(&self, input: &Value) -> Decided {
        let version = self.version(input)?;
        let id = text(input, "buildId");
        let build = version.builds.iter().find(|build| build.id == id);
        let build = build.ok_or_else(|| not_found(format!("MicroVMImageBuild not found: {id}")))?;
        let mut answer = self.show_build(version, build);
        if let Some(snapshot) = build.snapshot {
            answer["snapshotBuild"] = json!(snapshot);
        }
        Ok(Decision::answer(answer))
    }

    pub(super) fn list_builds(&self, input: &Value) -> Decided {
        let version = self.version(input)?;
        let is_wanted =
            |name: &str, value: &str| input[name].as_str().is_none_or(|word| word == value);
        let items = version.builds.iter().map(|build| (build.id.clone(), build));
        paginate(items, input, |build| {
            let is_wanted = is_wanted("architecture", "ARM_64")
                && is_wanted("chipset", "GRAVITON")
                && is_wanted("chipsetGeneration", &build.chipset_generation);
            is_wanted.then(|| self.show_build(version, build))
        })
    }

    pub(super) fn list_managed(&self, input: &Value) -> Decided {
        let items = std::iter::once((MANAGED_IMAGE.to_owned(), ()));
        paginate(items, input, |()| {
            let time = MANAGED_SINCE.epoch_seconds();
            Some(
                json!({ "imageArn": self.names.managed_image(), "createdAt": time, "updatedAt": time }),
            )
        })
    }

    pub(super) fn list_managed_versions(&self, input: &Value) -> Decided {
        let identifier = text(input, "imageIdentifier");
        if identifier != self.names.managed_image() {
            self.names.image_name(identifier)?;
            return Err(not_found(format!(
                "MicroVMImage not found for MicroVMImageID: {identifier}"
            )));
        }
        let items = MANAGED_VERSIONS.iter().enumerate();
        let items = items.map(|(place, version)| (format!("{:03}", place + 1), *version));
        paginate(items, input, |version| {
            let time = MANAGED_SINCE.epoch_seconds();
            Some(json!({
                "imageArn": identifier, "imageVersion": version, "status": "AVAILABLE",
                "createdAt": time, "updatedAt": time,
            }))
        })
    }

    /// Checks what the model does not know of, and fills in what was left out.
    fn spec(&self, mut input: Value) -> Result<ImageSpec, ServiceError> {
        for name in ["name", "clientToken", "tags", "imageIdentifier"] {
            input.as_object_mut().and_then(|members| members.remove(name));
        }
        let has_egress = input.get("egressNetworkConnectors").is_some();
        let mut spec: ImageSpec = parse(input)?;
        if spec.base_image_arn != self.names.managed_image() {
            return Err(invalid(format!("The base image {} does not exist.", spec.base_image_arn)));
        }
        spec.base_image_version = Some(base_version(spec.base_image_version.as_deref())?);
        let uri = &spec.code_artifact.uri;
        let place = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        if place.is_none_or(|(bucket, key)| bucket.is_empty() || key.is_empty()) {
            return Err(invalid(format!("The codeArtifact's uri is not s3://BUCKET/KEY: {uri}")));
        }
        if !has_egress {
            spec.egress_network_connectors = vec![self.names.managed_connector("INTERNET_EGRESS")];
        }
        self.check_egress(&spec.egress_network_connectors)?;
        match spec.resources.first().map(|wanted| wanted.minimum_memory_in_mi_b) {
            None => {
                spec.resources = vec![Resources { minimum_memory_in_mi_b: DEFAULT_MEMORY_MIB }];
            }
            Some(1..=MEMORY_MIB_MAX) => {}
            Some(other) => {
                let text = format!("minimumMemoryInMiB is 1 to {MEMORY_MIB_MAX}, and not {other}");
                return Err(invalid(text));
            }
        }
        let mut processors = spec.cpu_configurations.iter().flatten();
        if processors.any(|processor| processor.architecture != "ARM_64") {
            return Err(invalid("cpuConfigurations: images are for ARM_64 only."));
        }
        check_hooks(spec.hooks.as_ref())?;
        Ok(spec)
    }

    pub(super) fn image(&self, identifier: &str) -> Result<&Image, ServiceError> {
        let name = self.names.image_name(identifier)?;
        let found =
            self.images.get(name).filter(|image| self.names.image(&image.name) == identifier);
        found.ok_or_else(|| {
            not_found(format!("MicroVMImage not found for MicroVMImageID: {identifier}"))
        })
    }

    fn version(&self, input: &Value) -> Result<&Version, ServiceError> {
        let (identifier, wanted) = (text(input, "imageIdentifier"), text(input, "imageVersion"));
        let name = self.names.image_name(identifier)?;
        let id = number_of(wanted).map(|number| VersionId { image: name.into(), number });
        let found = id.and_then(|id| self.versions.get(&id));
        let found = found.filter(|version| self.names.image(&version.id.image) == identifier);
        found.ok_or_else(|| {
            not_found(format!(
                "MicroVMImage not found for MicroVMImage: {identifier}, Version: {wanted}"
            ))
        })
    }

    /// The newest active version, once one is changed.
    pub(super) fn latest_active(&self, changed: &Version) -> Option<u32> {
        let versions = self.versions_of(&changed.id.image);
        let versions = versions.filter(|version| version.id != changed.id).chain([changed]);
        let active = versions
            .filter(|version| version.is_active && version.state == VersionState::Successful);
        active.map(|version| version.id.number).max()
    }

    fn require_unused(&self, is_it: impl Fn(&VersionId) -> bool) -> Result<(), ServiceError> {
        let mut users = self.microvms.values().filter(|microvm| is_it(&microvm.version));
        if users.any(|microvm| microvm.phase != super::microvm::Phase::Terminated) {
            return Err(invalid("Cannot delete microvm image with running microvms."));
        }
        Ok(())
    }

    fn show_created(&self, image: &Image, version: &Version) -> Value {
        let mut answer = self.show_image(image, false);
        merge(&mut answer, json!(version.spec));
        let extra = json!({
            "imageVersion": version.text(), "updatedAt": image.updated.epoch_seconds(),
            "tags": null, "buildPhaseOverrides": null, "roleConfiguration": null,
        });
        merge(&mut answer, extra);
        answer
    }

    fn show_image(&self, image: &Image, is_whole: bool) -> Value {
        let mut answer = json!({
            "imageArn": self.names.image(&image.name), "name": image.name, "id": image.id,
            "state": image.state.text(), "createdAt": image.created.epoch_seconds(),
            "latestActiveImageVersion": image.latest_active.map(version_text),
            "latestFailedImageVersion": image.latest_failed.map(version_text),
        });
        if is_whole {
            let updated = image.updated.epoch_seconds();
            merge(&mut answer, json!({ "tags": image.tags, "updatedAt": updated }));
        }
        answer
    }

    fn show_version(&self, version: &Version) -> Value {
        let mut answer = json!(version.spec);
        let status = if version.is_active { "ACTIVE" } else { "INACTIVE" };
        let extra = json!({
            "imageArn": self.names.image(&version.id.image), "imageVersion": version.text(),
            "state": version.state, "stateReason": version.state_reason, "status": status,
            "createdAt": version.created.epoch_seconds(), "updatedAt": version.updated.epoch_seconds(),
            "tags": null,
        });
        merge(&mut answer, extra);
        answer
    }

    fn show_build(&self, version: &Version, build: &Build) -> Value {
        json!({
            "imageArn": self.names.image(&version.id.image), "imageVersion": version.text(),
            "buildId": build.id, "buildState": build.state, "architecture": "ARM_64",
            "chipset": "GRAVITON", "chipsetGeneration": build.chipset_generation,
            "createdAt": build.created.epoch_seconds(), "stateReason": build.state_reason,
            "terminationReasonCode": null,
        })
    }
}

fn new_version(id: VersionId, spec: ImageSpec, context: &Context<'_>) -> Version {
    let build = Build {
        id: (context.fresh)().to_string(),
        state: BuildState::Pending,
        created: context.now,
        chipset_generation: CHIPSET_GENERATION.into(),
        state_reason: None,
        snapshot: None,
    };
    Version {
        id,
        state: VersionState::Pending,
        is_active: true,
        created: context.now,
        updated: context.now,
        state_reason: None,
        spec,
        builds: vec![build],
    }
}

/// Whether the worker has something of the version that it has to remove first.
fn remove_version(version: &Version, context: &Context<'_>, decision: &mut Decision) -> bool {
    if version.state == VersionState::Failed {
        decision.changes.push(Change::DeleteVersion(version.id.clone()));
        return false;
    }
    let mut version = version.clone();
    if version.state != VersionState::Deleting {
        version.state = VersionState::Deleting;
        version.is_active = false;
        version.updated = context.now;
        decision.actions.push(Action::RemoveVersion(version.id.clone()));
        decision.changes.push(Change::PutVersion(Box::new(version)));
    }
    true
}

fn require_settled(image: &Image) -> Result<(), ServiceError> {
    if image.state.is_settled() {
        return Ok(());
    }
    Err(conflict(format!("MicroVM Image is already in state: {}", image.state.text())))
}

/// `1` and `1.0` are the same; without any it is the newest.
fn base_version(wanted: Option<&str>) -> Result<String, ServiceError> {
    let newest = MANAGED_VERSIONS.first().copied().unwrap_or_default();
    let wanted = wanted.unwrap_or(newest);
    let bare = wanted.strip_suffix(".0").unwrap_or(wanted);
    if MANAGED_VERSIONS.contains(&bare) {
        return Ok(format!("{bare}.0"));
    }
    Err(invalid(format!("The base image has no version {wanted}.")))
}

/// `7` of `7.0`
pub(super) fn number_of(version: &str) -> Option<u32> {
    let number = version.strip_suffix(".0")?.parse().ok()?;
    (version_text(number) == version).then_some(number)
}

fn check_hooks(hooks: Option<&Hooks>) -> Result<(), ServiceError> {
    let Some(hooks) = hooks else { return Ok(()) };
    let mut of_microvms = hooks.microvm_hooks.iter().flatten();
    let of_images = hooks.microvm_image_hooks.as_ref();
    let is_ready = of_images.and_then(|hooks| hooks.get("ready")).is_some_and(|it| it == "ENABLED");
    if of_microvms.any(|(_, value)| value == "ENABLED") && !is_ready {
        return Err(invalid(
            "microvmHooks can be enabled only if microvmImageHooks.ready is ENABLED.",
        ));
    }
    Ok(())
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
