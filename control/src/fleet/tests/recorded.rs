//! Answers beside those of the live service: which members there are, and which are null.

use super::*;

fn members(value: &Value, where_null: bool) -> Vec<String> {
    let members = value.as_object().unwrap().iter();
    members
        .filter(|(_, value)| value.is_null() == where_null)
        .map(|(name, _)| name.clone())
        .collect()
}

/// What was recorded of CreateMicrovmImage.
#[test]
fn a_new_image_has_the_members_that_were_recorded() {
    let mut world = World::new();
    let answer = world.ask("CreateMicrovmImage", with(spec(), json!({ "name": "a" })));
    assert_eq!(
        members(&answer, false),
        [
            "baseImageArn",
            "baseImageVersion",
            "buildRoleArn",
            "codeArtifact",
            "createdAt",
            "egressNetworkConnectors",
            "id",
            "imageArn",
            "imageVersion",
            "name",
            "resources",
            "state",
            "updatedAt",
        ]
    );
    assert_eq!(
        members(&answer, true),
        [
            "additionalOsCapabilities",
            "buildPhaseOverrides",
            "cpuConfigurations",
            "description",
            "environmentVariables",
            "hooks",
            "latestActiveImageVersion",
            "latestFailedImageVersion",
            "logging",
            "roleConfiguration",
            "tags",
        ]
    );
    assert_eq!(answer["resources"], json!([{ "minimumMemoryInMiB": 2048 }]));
    assert_eq!(answer["baseImageVersion"], "1.0");
}

/// What was recorded of GetMicrovmImage, GetMicrovmImageVersion and ListMicrovmImageBuilds.
#[test]
fn a_built_image_has_the_members_that_were_recorded() {
    let mut world = World::new();
    let image = world.image("a");
    let answer = world.ask("GetMicrovmImage", json!({ "imageIdentifier": image }));
    assert_eq!(members(&answer, true), ["latestFailedImageVersion"]);
    assert_eq!(
        members(&answer, false),
        [
            "createdAt",
            "id",
            "imageArn",
            "latestActiveImageVersion",
            "name",
            "state",
            "tags",
            "updatedAt",
        ]
    );
    let of = json!({ "imageIdentifier": image, "imageVersion": "1.0" });
    let answer = world.ask("GetMicrovmImageVersion", of.clone());
    assert_eq!(
        members(&answer, true),
        [
            "additionalOsCapabilities",
            "cpuConfigurations",
            "description",
            "environmentVariables",
            "hooks",
            "logging",
            "stateReason",
            "tags",
        ]
    );
    let answer = world.ask("ListMicrovmImageBuilds", of);
    assert_eq!(
        members(&answer["items"][0], false),
        [
            "architecture",
            "buildId",
            "buildState",
            "chipset",
            "chipsetGeneration",
            "createdAt",
            "imageArn",
            "imageVersion",
        ]
    );
}

/// What was recorded of RunMicrovm and GetMicrovm.
#[test]
fn a_microvm_has_the_members_that_were_recorded() {
    let mut world = World::new();
    let image = world.image("a");
    let answer =
        world.ask("RunMicrovm", json!({ "imageIdentifier": image, "runHookPayload": "secret" }));
    assert_eq!(
        members(&answer, false),
        [
            "egressNetworkConnectors",
            "endpoint",
            "imageArn",
            "imageVersion",
            "ingressNetworkConnectors",
            "maximumDurationInSeconds",
            "microvmId",
            "startedAt",
            "state",
        ]
    );
    assert_eq!(
        members(&answer, true),
        ["executionRoleArn", "idlePolicy", "stateReason", "terminatedAt", "terminationReasonCode",]
    );
    assert_eq!(
        answer["ingressNetworkConnectors"],
        json!([
            "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS",
        ])
    );
}
