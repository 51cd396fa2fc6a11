"""Every operation of the two services that sign for lambda, through boto3's own models.

Without a worker nothing is built and nothing runs, and every answer says so.
"""

import time
import uuid

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

client = boto3.client("lambda-microvms", config=Config(retries={"max_attempts": 0}))
# What botocore checks itself, the server has to check too.
unchecked = boto3.client(
    "lambda-microvms", config=Config(parameter_validation=False, retries={"max_attempts": 0}))
core = boto3.client("lambda-core", config=Config(retries={"max_attempts": 0}))
ACCOUNT = "arn:aws:lambda:us-east-1:000000000000"
MANAGED = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1"
IMAGE = f"{ACCOUNT}:microvm-image:mine"
SPEC = {
    "baseImageArn": MANAGED,
    "buildRoleArn": "arn:aws:iam::000000000000:role/Build",
    "codeArtifact": {"uri": "s3://bucket/app.zip"},
}
NO_WORKER = "No VMM worker is configured"
DEADLINE_S = 120


def refused(code, text, operation, **members):
    """The call is refused, with the class and status that the model has for it."""
    try:
        operation(**members)
    except ClientError as error:
        service = operation.__self__
        found = error.response["Error"]
        assert found["Code"] == code, error
        assert text in found["Message"], error
        shape = service.meta.service_model.shape_for(code)
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert shape.metadata["error"]["httpStatusCode"] == status, error
        assert type(error).__name__ == code, f"boto3 does not know the class: {error!r}"
        assert error.response["ResponseMetadata"]["RequestId"]
        return
    raise AssertionError(f"{operation.__name__} was not refused")


def wait(what, get, is_it):
    end = time.monotonic() + DEADLINE_S
    while True:
        found = get()
        if is_it(found):
            return found
        assert time.monotonic() < end, f"{what} did not come: {found}"
        time.sleep(0.1)


def check_required():
    names = {"create_microvm_image": ["baseImageArn", "codeArtifact", "buildRoleArn", "name"]}
    for operation, members in names.items():
        try:
            getattr(unchecked, operation)()
            raise AssertionError("not refused")
        except ClientError as error:
            assert "4 validation errors detected" in str(error), error
            for member in members:
                assert f"Value null at '{member}' failed to satisfy constraint: Member must not be null" in str(error)


def check_validation():
    bad = "ValidationException"
    refused(bad, "at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern",
            client.create_microvm_image, **SPEC, name="bad name!")
    refused(bad, "length less than or equal to 64", client.create_microvm_image, **SPEC, name="x" * 65)
    refused(bad, "Malformed ARN", client.get_microvm_image, imageIdentifier="mine")
    refused(bad, "less than or equal to 256", client.get_microvm, microvmIdentifier="x" * 300)
    refused(bad, "enum value set: [ACTIVE, INACTIVE]", client.update_microvm_image_version,
            imageIdentifier=IMAGE, imageVersion="1.0", status="BUSY")
    refused(bad, "regular expression pattern", client.run_microvm, imageIdentifier=IMAGE, executionRoleArn="x" * 20)
    refused(bad, "less than or equal to 4096", client.run_microvm, imageIdentifier=IMAGE, runHookPayload="x" * 4097)
    # Minima botocore would check itself.
    refused(bad, "'idlePolicy.maxIdleDurationSeconds'", unchecked.run_microvm, imageIdentifier=IMAGE, idlePolicy={
        "maxIdleDurationSeconds": 59, "suspendedDurationSeconds": 0, "autoResumeEnabled": True})
    refused(bad, "less than or equal to 28800", client.run_microvm, imageIdentifier=IMAGE,
            maximumDurationInSeconds=28801)
    refused(bad, "'allowedPorts.1.member.port'", client.create_microvm_auth_token, microvmIdentifier="m",
            expirationInMinutes=5, allowedPorts=[{"port": 70000}])
    refused(bad, "less than or equal to 50", client.list_microvm_images, maxResults=51)
    refused(bad, "less than or equal to 50", client.list_microvms, maxResults=51)
    refused(bad, "less than or equal to 50", client.list_microvm_image_versions, imageIdentifier=IMAGE, maxResults=51)
    refused(bad, "less than or equal to 50", client.list_microvm_image_builds, imageIdentifier=IMAGE,
            imageVersion="1.0", maxResults=51)
    refused(bad, "less than or equal to 50", client.list_managed_microvm_images, maxResults=51)
    refused(bad, "less than or equal to 50", client.list_managed_microvm_image_versions, imageIdentifier=MANAGED,
            maxResults=51)
    refused(bad, "at 'resource' failed", client.tag_resource, Resource="arn:x", Tags={"a": "b"})
    refused(bad, "at 'resource' failed", client.list_tags, Resource="arn:x")
    refused(bad, "at 'resource' failed", client.untag_resource, Resource="arn:x", TagKeys=["a"])


def check_missing():
    gone = "ResourceNotFoundException"
    version = {"imageIdentifier": IMAGE, "imageVersion": "1.0"}
    microvm = {"microvmIdentifier": f"microvm-{uuid.uuid4()}"}
    image_text = f"MicroVMImage not found for MicroVMImageID: {IMAGE}"
    version_text = f"MicroVMImage not found for MicroVMImage: {IMAGE}, Version: 1.0"
    refused(gone, image_text, client.get_microvm_image, imageIdentifier=IMAGE)
    refused(gone, image_text, client.delete_microvm_image, imageIdentifier=IMAGE)
    refused(gone, image_text, client.update_microvm_image, imageIdentifier=IMAGE, **SPEC)
    refused(gone, image_text, client.list_microvm_image_versions, imageIdentifier=IMAGE)
    refused(gone, version_text, client.get_microvm_image_version, **version)
    refused(gone, version_text, client.update_microvm_image_version, **version, status="ACTIVE")
    refused(gone, version_text, client.delete_microvm_image_version, **version)
    refused(gone, version_text, client.list_microvm_image_builds, **version)
    refused(gone, version_text, client.get_microvm_image_build, **version, buildId="x")
    refused(gone, "No active version found for MicroVM image", client.run_microvm, imageIdentifier=IMAGE)
    text = f"MicroVM not found: {microvm['microvmIdentifier']}"
    for operation in (client.get_microvm, client.suspend_microvm, client.resume_microvm, client.terminate_microvm):
        refused(gone, text, operation, **microvm)
        time.sleep(0.6)  # SuspendMicrovm may be called twice a second
    refused(gone, text, client.create_microvm_auth_token, **microvm, expirationInMinutes=5,
            allowedPorts=[{"allPorts": {}}])
    refused(gone, text, client.create_microvm_shell_auth_token, **microvm, expirationInMinutes=5)
    refused(gone, "not found", client.list_tags, Resource=IMAGE)


def check_image():
    """An image's build fails, says why, and the name can be used again."""
    created = client.create_microvm_image(**SPEC, name="mine", tags={"team": "a"}, environmentVariables={"A": "b"})
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert (created["state"], created["imageArn"], created["imageVersion"]) == ("CREATING", IMAGE, "1.0"), created
    assert created["createdAt"].year >= 2026
    image = wait("the end of the build", lambda: client.get_microvm_image(imageIdentifier=IMAGE),
                 lambda image: image["state"] != "CREATING")
    assert image["state"] == "CREATE_FAILED" and image["tags"] == {"team": "a"}, image
    assert image["latestFailedImageVersion"] == "1.0" and "latestActiveImageVersion" not in image
    version = client.get_microvm_image_version(imageIdentifier=IMAGE, imageVersion="1.0")
    assert version["state"] == "FAILED" and version["environmentVariables"] == {"A": "b"}, version
    builds = client.list_microvm_image_builds(imageIdentifier=IMAGE, imageVersion="1.0")["items"]
    assert [(build["buildState"], NO_WORKER in build["stateReason"]) for build in builds] == [("FAILED", True)]
    build = client.get_microvm_image_build(imageIdentifier=IMAGE, imageVersion="1.0", buildId=builds[0]["buildId"])
    assert "snapshotBuild" not in build
    refused("ValidationException", "A MicroVM image with the name 'mine' already exists in this account",
            client.create_microvm_image, **SPEC, name="mine")
    updated = client.update_microvm_image(imageIdentifier=IMAGE, **SPEC)
    assert (updated["state"], updated["imageVersion"]) == ("UPDATING", "2.0"), updated
    wait("the end of the update", lambda: client.get_microvm_image(imageIdentifier=IMAGE),
         lambda image: image["state"] == "UPDATE_FAILED")
    pages = client.get_paginator("list_microvm_image_versions").paginate(
        imageIdentifier=IMAGE, PaginationConfig={"PageSize": 1})
    assert [version["imageVersion"] for page in pages for version in page["items"]] == ["2.0", "1.0"]
    refused("ConflictException", "FAILED", client.update_microvm_image_version, imageIdentifier=IMAGE,
            imageVersion="2.0", status="ACTIVE")
    assert client.delete_microvm_image_version(imageIdentifier=IMAGE, imageVersion="1.0")["state"] == "DELETING"
    client.tag_resource(Resource=IMAGE, Tags={"more": "x"})
    client.untag_resource(Resource=IMAGE, TagKeys=["team"])
    assert client.list_tags(Resource=IMAGE)["Tags"] == {"more": "x"}
    assert [image["name"] for image in client.list_microvm_images(nameFilter="min")["items"]] == ["mine"]
    assert client.list_microvms()["items"] == []
    assert client.delete_microvm_image(imageIdentifier=IMAGE)["state"] == "DELETING"
    refused("ResourceNotFoundException", "", client.get_microvm_image, imageIdentifier=IMAGE)


def check_token():
    token = str(uuid.uuid4())
    first = client.create_microvm_image(**SPEC, name="twice", clientToken=token)
    again = client.create_microvm_image(**SPEC, name="twice", clientToken=token)
    assert first["createdAt"] == again["createdAt"]
    refused("ConflictException", "client token", client.create_microvm_image, **SPEC, name="other", clientToken=token)
    wait("the end of the build", lambda: client.get_microvm_image(imageIdentifier=first["imageArn"]),
         lambda image: image["state"] == "CREATE_FAILED")
    client.delete_microvm_image(imageIdentifier=first["imageArn"])


def check_managed():
    assert [image["imageArn"] for image in client.list_managed_microvm_images()["items"]] == [MANAGED]
    versions = client.list_managed_microvm_image_versions(imageIdentifier=MANAGED)["items"]
    assert [version["imageVersion"] for version in versions] == ["1", "0"]


def check_rate():
    """SuspendMicrovm passes twice a second; beyond that it is throttled, with the time to wait."""
    codes = set()
    for _ in range(20):
        try:
            client.suspend_microvm(microvmIdentifier="microvm-none")
        except ClientError as error:
            codes.add(error.response["Error"]["Code"])
            if error.response["Error"]["Code"] == "ThrottlingException":
                assert error.response["retryAfterSeconds"] == 1, error.response
    # On a slow machine the calls may be too far apart to be throttled; they never are all.
    assert "ResourceNotFoundException" in codes and codes <= {"ResourceNotFoundException", "ThrottlingException"}


def check_connectors():
    configuration = {"VpcEgressConfiguration": {
        "SubnetIds": ["subnet-15c2f37d"], "SecurityGroupIds": ["sg-f0e6979f"], "NetworkProtocol": "IPv4",
        "AssociatedComputeResourceTypes": ["MicroVm"]}}
    role = "arn:aws:iam::000000000000:role/Operator"
    created = core.create_network_connector(Name="out", Configuration=configuration, OperatorRole=role)
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 202 and created["State"] == "PENDING", created
    shown = wait("the end of connecting", lambda: core.get_network_connector(Identifier=created["Arn"]),
                 lambda connector: connector["State"] != "PENDING")
    assert shown["State"] == "FAILED" and NO_WORKER in shown["StateReason"], shown
    assert shown["LastModified"].year >= 2026
    assert [it["Name"] for it in core.list_network_connectors()["NetworkConnectors"]] == ["out"]
    versions = core.list_network_connector_versions(Identifier="out")["NetworkConnectorVersions"]
    assert [version["Version"] for version in versions] == [1]
    refused("ResourceConflictException", "FAILED", core.update_network_connector, Identifier="out",
            OperatorRole=role)
    refused("ResourceConflictException", "already exists", core.create_network_connector, Name="out",
            Configuration=configuration, OperatorRole=role)
    assert core.delete_network_connector(Identifier="out")["State"] == "DELETING"
    refused("ResourceNotFoundException", "Network connector not found for: out", core.get_network_connector,
            Identifier="out")


for check in (check_required, check_validation, check_missing, check_image, check_token, check_managed, check_rate,
              check_connectors):
    check()
    print("ok", check.__name__, flush=True)
