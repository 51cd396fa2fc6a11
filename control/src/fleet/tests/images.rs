use super::*;

fn version(image: &str, number: u32) -> VersionId {
    VersionId { image: image.into(), number }
}

fn image_state(world: &mut World, name: &str) -> String {
    let answer = world.ask("GetMicrovmImage", json!({ "imageIdentifier": arn(name) }));
    answer["state"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_is_created_built_and_active() {
    let mut world = World::new();
    let answer = world.ask("CreateMicrovmImage", with(spec(), json!({ "name": "a" })));
    assert_eq!((&answer["state"], &answer["imageVersion"]), (&json!("CREATING"), &json!("1.0")));
    assert_eq!(world.take_actions(), [Action::Build(version("a", 1))]);
    assert_eq!(world.fleet.unfinished(), [Action::Build(version("a", 1))]);
    world.built("a", 1);
    assert_eq!(image_state(&mut world, "a"), "CREATED");
    assert!(world.fleet.unfinished().is_empty());
    let input = json!({ "imageIdentifier": arn("a"), "imageVersion": "1.0" });
    let answer = world.ask("GetMicrovmImageVersion", input.clone());
    assert_eq!((&answer["state"], &answer["status"]), (&json!("SUCCESSFUL"), &json!("ACTIVE")));
    let builds = world.ask("ListMicrovmImageBuilds", input.clone())["items"].take();
    let build = with(input, json!({ "buildId": builds[0]["buildId"] }));
    assert_eq!(world.ask("GetMicrovmImageBuild", build)["snapshotBuild"], json!(SNAPSHOT));
}

#[test]
fn a_failed_build_fails_the_image_with_the_reason_on_the_build() {
    let mut world = World::new();
    world.ask("CreateMicrovmImage", with(spec(), json!({ "name": "a" })));
    world.report(Report::BuildFailed { version: version("a", 1), reason: "no".into() });
    assert_eq!(image_state(&mut world, "a"), "CREATE_FAILED");
    let input = json!({ "imageIdentifier": arn("a"), "imageVersion": "1.0" });
    let builds = world.ask("ListMicrovmImageBuilds", input)["items"].take();
    assert_eq!(
        (&builds[0]["buildState"], &builds[0]["stateReason"]),
        (&json!("FAILED"), &json!("no"))
    );
    let error = world.refused("RunMicrovm", json!({ "imageIdentifier": arn("a") }));
    assert_eq!(error.message, format!("No active version found for MicroVM image {}", arn("a")));
    // The worker has nothing of it, so it goes at once, and its name is free.
    world.take_actions();
    world.ask("DeleteMicrovmImage", json!({ "imageIdentifier": arn("a") }));
    assert!(world.take_actions().is_empty());
    world.ask("CreateMicrovmImage", with(spec(), json!({ "name": "a" })));
}

#[test]
fn an_update_makes_the_next_version_and_a_failed_one_leaves_the_old_active() {
    let mut world = World::new();
    let image = world.image("a");
    let update = with(spec(), json!({ "imageIdentifier": image }));
    let answer = world.ask("UpdateMicrovmImage", update.clone());
    assert_eq!((&answer["state"], &answer["imageVersion"]), (&json!("UPDATING"), &json!("2.0")));
    let error = world.refused("UpdateMicrovmImage", update.clone());
    assert_eq!(
        (error.status, error.message.as_str()),
        (409, "MicroVM Image is already in state: UPDATING")
    );
    world.report(Report::BuildFailed { version: version("a", 2), reason: "no".into() });
    let answer = world.ask("GetMicrovmImage", json!({ "imageIdentifier": image }));
    assert_eq!(answer["state"], "UPDATE_FAILED");
    assert_eq!(answer["latestActiveImageVersion"], "1.0");
    assert_eq!(answer["latestFailedImageVersion"], "2.0");
    world.ask("UpdateMicrovmImage", update);
    world.built("a", 3);
    let answer = world.ask("GetMicrovmImage", json!({ "imageIdentifier": image }));
    assert_eq!(
        (&answer["state"], &answer["latestActiveImageVersion"]),
        (&json!("UPDATED"), &json!("3.0"))
    );
    let listed = world.ask("ListMicrovmImageVersions", json!({ "imageIdentifier": image }));
    let numbers: Vec<&str> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["imageVersion"].as_str().unwrap())
        .collect();
    assert_eq!(numbers, ["3.0", "2.0", "1.0"]);
}

#[test]
fn an_inactive_version_is_not_run() {
    let mut world = World::new();
    let image = world.image("a");
    let of = json!({ "imageIdentifier": image, "imageVersion": "1.0" });
    let answer =
        world.ask("UpdateMicrovmImageVersion", with(of.clone(), json!({ "status": "INACTIVE" })));
    assert_eq!(answer["status"], "INACTIVE");
    for input in [json!({ "imageIdentifier": image }), of.clone()] {
        let error = world.refused("RunMicrovm", input);
        assert!(error.message.starts_with("No active version found"), "{error}");
    }
    world.ask("UpdateMicrovmImageVersion", with(of, json!({ "status": "ACTIVE" })));
    world.microvm(&image, json!({}));
}

#[test]
fn an_image_is_deleted_when_the_worker_has_removed_its_versions() {
    let mut world = World::new();
    let image = world.image("a");
    let id = world.microvm(&image, json!({}));
    let delete = json!({ "imageIdentifier": image });
    let error = world.refused("DeleteMicrovmImage", delete.clone());
    assert_eq!(error.message, "Cannot delete microvm image with running microvms.");
    world.happened(&id, microvm::Event::Exited);
    world.happened(&id, microvm::Event::Terminated);
    world.take_actions();
    assert_eq!(world.ask("DeleteMicrovmImage", delete.clone())["state"], "DELETING");
    assert_eq!(world.take_actions(), [Action::RemoveVersion(version("a", 1))]);
    assert_eq!(world.ask("DeleteMicrovmImage", delete.clone())["state"], "DELETING");
    let error = world.refused("CreateMicrovmImage", with(spec(), json!({ "name": "a" })));
    assert!(error.message.contains("already exists"));
    world.report(Report::VersionNotRemoved { version: version("a", 1), reason: "busy".into() });
    assert_eq!(image_state(&mut world, "a"), "DELETE_FAILED");
    world.ask("DeleteMicrovmImage", delete.clone());
    assert_eq!(world.take_actions(), [Action::RemoveVersion(version("a", 1))]);
    world.report(Report::VersionRemoved { version: version("a", 1) });
    assert_eq!(world.refused("GetMicrovmImage", delete).status, 404);
}

#[test]
fn the_last_version_cannot_be_deleted_alone() {
    let mut world = World::new();
    let image = world.image("a");
    let of = |version: &str| json!({ "imageIdentifier": arn("a"), "imageVersion": version });
    assert_eq!(world.refused("DeleteMicrovmImageVersion", of("1.0")).status, 400);
    world.ask("UpdateMicrovmImage", with(spec(), json!({ "imageIdentifier": image })));
    world.built("a", 2);
    assert_eq!(world.ask("DeleteMicrovmImageVersion", of("2.0"))["state"], "DELETING");
    let answer = world.ask("GetMicrovmImage", json!({ "imageIdentifier": image }));
    assert_eq!(answer["latestActiveImageVersion"], "1.0");
    world.report(Report::VersionRemoved { version: version("a", 2) });
    assert_eq!(world.refused("GetMicrovmImageVersion", of("2.0")).status, 404);
    world.ask("UpdateMicrovmImage", with(spec(), json!({ "imageIdentifier": image })));
    assert_eq!(world.take_actions().last(), Some(&Action::Build(version("a", 3))));
}

#[test]
fn what_the_model_does_not_know_of_is_checked_too() {
    let world = World::new();
    let cases = [
        (
            json!({ "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:other" }),
            "does not exist",
        ),
        (json!({ "baseImageVersion": "999" }), "no version 999"),
        (json!({ "codeArtifact": { "uri": "https://x/y" } }), "s3://BUCKET/KEY"),
        (
            json!({ "egressNetworkConnectors": ["INTERNET_EGRESS"] }),
            "Malformed network connector ARN",
        ),
        (json!({ "resources": [{ "minimumMemoryInMiB": 9000 }] }), "minimumMemoryInMiB"),
        (json!({ "cpuConfigurations": [{ "architecture": "X86_64" }] }), "ARM_64"),
        (json!({ "hooks": { "microvmHooks": { "run": "ENABLED" } } }), "microvmImageHooks.ready"),
        (json!({ "tags": { "aws:x": "y" } }), "aws:"),
    ];
    for (change, text) in cases {
        let error =
            world.refused("CreateMicrovmImage", with(with(spec(), json!({ "name": "a" })), change));
        assert!(error.status == 400 && error.message.contains(text), "{text}: {error}");
    }
}

#[test]
fn quotas_are_kept() {
    let mut settings = Settings::default();
    settings.quotas.images = 1;
    settings.quotas.versions_per_image = 1;
    settings.quotas.memory_mib = 4096;
    let mut world = World::with_settings(settings);
    let image = world.image("a");
    let error = world.refused("CreateMicrovmImage", with(spec(), json!({ "name": "b" })));
    assert_eq!((error.status, error.code), (402, "ServiceQuotaExceededException"));
    let error =
        world.refused("UpdateMicrovmImage", with(spec(), json!({ "imageIdentifier": image })));
    assert_eq!(error.status, 402);
    world.microvm(&image, json!({}));
    let id = world.microvm(&image, json!({}));
    let error = world.refused("RunMicrovm", json!({ "imageIdentifier": image }));
    assert_eq!(
        error.message,
        "The base maximum allocated memory limit has been reached for this account."
    );
    world.happened(&id, microvm::Event::Exited);
    world.microvm(&image, json!({}));
}

#[test]
fn the_same_request_with_the_same_token_is_done_once() {
    let mut world = World::new();
    let create = with(spec(), json!({ "name": "a", "clientToken": "t" }));
    let first = world.ask("CreateMicrovmImage", create.clone());
    assert_eq!(world.ask("CreateMicrovmImage", create.clone())["id"], first["id"]);
    assert_eq!(world.take_actions().len(), 1);
    let other = with(spec(), json!({ "name": "b", "clientToken": "t" }));
    assert_eq!(world.refused("CreateMicrovmImage", other.clone()).code, "ConflictException");
    world.report(Report::BuildFailed { version: version("a", 1), reason: "no".into() });
    // A token is forgotten with what it made, and after a day.
    world.ask("DeleteMicrovmImage", json!({ "imageIdentifier": arn("a") }));
    world.ask("CreateMicrovmImage", other);
    world.pass(24 * 3600 + 1);
    assert!(world.fleet.tokens.is_empty());
}

#[test]
fn a_page_has_as_many_as_are_asked_for_and_a_filter_comes_after() {
    let mut world = World::new();
    for name in ["a1", "b1", "a2", "b2", "a3"] {
        world.image(name);
    }
    let (mut names, mut token, mut pages) = (Vec::new(), Value::Null, Vec::new());
    loop {
        let input = json!({ "maxResults": 2, "nameFilter": "a", "nextToken": token });
        let mut page = world.ask("ListMicrovmImages", input);
        let items = page["items"].as_array().unwrap().clone();
        pages.push(items.len());
        names.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
        token = page["nextToken"].take();
        if token.is_null() {
            break;
        }
    }
    assert_eq!((names.join(" ").as_str(), pages), ("a1 a2 a3", vec![2, 1, 0]));
    let error = world.refused("ListMicrovmImages", json!({ "nextToken": "%" }));
    assert_eq!(error.code, "ValidationException");
}

#[test]
fn an_identifier_is_an_arn_of_this_region_and_account() {
    let mut world = World::new();
    world.image("a");
    let cases = [
        ("a", 400, "Malformed ARN - doesn't start with 'arn:'"),
        ("arn:x", 400, "Invalid ARN format: arn:x"),
        ("arn:aws:lambda:us-east-1:000000000000:microvm-image/a", 403, "not authorized"),
        ("arn:aws:lambda:us-east-2:000000000000:microvm-image:a", 403, "not authorized"),
        ("arn:aws:lambda:us-east-1:000000000001:microvm-image:a", 403, "not authorized"),
        ("arn:aws:lambda:us-east-1:aws:microvm-image:a", 404, "not found"),
        ("arn:aws:lambda:us-east-1:000000000000:microvm-image:b", 404, "not found"),
    ];
    for (identifier, status, text) in cases {
        let error = world.refused("GetMicrovmImage", json!({ "imageIdentifier": identifier }));
        assert!(error.status == status && error.message.contains(text), "{identifier}: {error}");
    }
}

#[test]
fn tags_are_merged_and_removed() {
    let mut world = World::new();
    let image = world.image("a");
    let of = json!({ "Resource": image });
    world.ask("TagResource", with(of.clone(), json!({ "Tags": { "x": "1", "y": "2" } })));
    world.ask("TagResource", with(of.clone(), json!({ "Tags": { "x": "3" } })));
    world.ask("UntagResource", with(of.clone(), json!({ "TagKeys": ["y", "z"] })));
    assert_eq!(world.ask("ListTags", of.clone()), json!({ "Tags": { "x": "3" } }));
    let many: Value = (0..51)
        .map(|number| (number.to_string(), json!("")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert!(world.refused("TagResource", with(of, json!({ "Tags": many }))).message.contains("50"));
}

#[test]
fn reports_that_come_too_late_change_nothing() {
    let mut world = World::new();
    world.image("a");
    let late = [
        Report::BuildFailed { version: version("a", 1), reason: "no".into() },
        Report::BuildStarted { version: version("a", 1) },
        Report::VersionRemoved { version: version("a", 1) },
        Report::VersionNotRemoved { version: version("a", 1), reason: "no".into() },
        Report::BuildFailed { version: version("x", 1), reason: "no".into() },
        Report::Disconnected { id: "nc-x".into() },
        Report::NotConnected { id: "nc-x".into(), reason: "no".into() },
        Report::Wanted { id: "microvm-x".into() },
    ];
    for report in late {
        let decision = world.fleet.report(report.clone(), &world.context());
        assert_eq!((decision.changes.len(), decision.actions.len()), (0, 0), "{report:?}");
    }
}
