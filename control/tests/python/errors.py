"""Every operation of the two services that sign for lambda: a success, and each error that botocore's models have for
it, provoked and parsed by boto3. What the models have and this script does not know makes it fail.

`errors.py WORLD POOR HURRIED SESSION`: the directories of three daemons, of which the second may have one image and one
connector, and the third answers one request of each operation; and the keys of an execution role's session with the
first. While there is a file `hold` in the first one's directory, its worker ends nothing that it begins; while there
is a file `refuse`, it launches nothing.
"""

import contextlib
import itertools
import json
import pathlib
import sqlite3
import sys
import time

import boto3
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ClientError

WORLD = pathlib.Path(sys.argv[1])
ACCOUNT = "arn:aws:lambda:us-east-1:000000000000"
MANAGED = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1"
ROLE = "arn:aws:iam::000000000000:role/Role"
NO_IMAGE, NO_CONNECTOR = f"{ACCOUNT}:microvm-image:none", f"{ACCOUNT}:network-connector:nc-none"
# The worker's image, which is there.
IMAGE = {"imageIdentifier": f"{ACCOUNT}:microvm-image:app"}
VERSION = {**IMAGE, "imageVersion": "1.0"}
SPEC = {"baseImageArn": MANAGED, "buildRoleArn": ROLE, "codeArtifact": {"uri": "s3://bucket/app.zip"}}
PORTS = {"expirationInMinutes": 5, "allowedPorts": [{"allPorts": {}}]}
INGRESS = [f"arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{word}_INGRESS"
           for word in ("HTTP", "SHELL")]
DEADLINE_S = 120
numbers = itertools.count()


class Keys:
    """Clients of both services."""

    def __init__(self, directory, keys=None):
        state = pathlib.Path(directory) / "state"
        own = json.loads((state / "credentials.json").read_text())
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        keys = keys or [own["access_key_id"], own["secret_access_key"]]
        # What botocore checks itself, the server has to check too.
        config = Config(retries={"max_attempts": 0}, parameter_validation=False)
        self.clients = [
            boto3.client(
                service, **dict(zip(names, keys)), config=config, region_name="us-east-1",
                verify=str(state / "ca.pem"), endpoint_url=(state / "endpoint").read_text().split()[0])
            for service in ("lambda-microvms", "lambda-core")]

    def operations(self):
        for client in self.clients:
            for name in client.meta.service_model.operation_names:
                yield name, client.meta.service_model.operation_model(name)

    def shape(self, name):
        return self.clients[0].meta.service_model.shape_for(name)

    def call(self, name, members):
        client = next(it for it in self.clients if name in it.meta.service_model.operation_names)
        return getattr(client, xform_name(name))(**members)


OWN, POOR, HURRIED = map(Keys, sys.argv[1:4])
SESSION = Keys(WORLD, sys.argv[4].split())


@contextlib.contextmanager
def file(name):
    (WORLD / name).touch()
    yield
    (WORLD / name).unlink()


def wait(name, members, state, keys=OWN):
    end = time.monotonic() + DEADLINE_S
    while True:
        shown = keys.call(name, members)
        found = shown.get("state") or shown.get("State")
        if found == state:
            return
        assert time.monotonic() < end, f"{members} is {found}, and should be {state}"
        time.sleep(0.01)


def image(state="CREATED"):
    made = OWN.call("CreateMicrovmImage", {**SPEC, "name": f"image-{next(numbers)}"})
    members = {"imageIdentifier": made["imageArn"]}
    wait("GetMicrovmImage", members, state)
    return members


def image_with_two_versions():
    members = image()
    OWN.call("UpdateMicrovmImage", {**SPEC, **members})
    wait("GetMicrovmImage", members, "UPDATED")
    return members


def microvm(state="RUNNING", **more):
    made = OWN.call("RunMicrovm", {**IMAGE, "ingressNetworkConnectors": INGRESS, **more})
    members = {"microvmIdentifier": made["microvmId"]}
    wait("GetMicrovm", members, state)
    return members


def suspended():
    members = microvm()
    OWN.call("SuspendMicrovm", members)
    wait("GetMicrovm", members, "SUSPENDED")
    return members


def new_connector():
    return {
        "Name": f"connector-{next(numbers)}", "OperatorRole": ROLE, "ClientToken": f"token-{next(numbers)}",
        "Configuration": {"VpcEgressConfiguration": {
            "SubnetIds": ["subnet-1"], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"]}}}


def connector(state="ACTIVE", keys=OWN):
    arn = keys.call("CreateNetworkConnector", new_connector())["Arn"]
    wait("GetNetworkConnector", {"Identifier": arn}, state, keys)
    return arn


# Members of a request that succeeds, and what has to be there for it.
VALID = {
    "CreateMicrovmAuthToken": lambda: {**microvm(), **PORTS},
    "CreateMicrovmImage": lambda: {**SPEC, "name": f"image-{next(numbers)}", "tags": {"a": "b"}},
    "CreateMicrovmShellAuthToken": lambda: {**microvm(), "expirationInMinutes": 5},
    "DeleteMicrovmImage": image,
    "DeleteMicrovmImageVersion": lambda: {**image_with_two_versions(), "imageVersion": "1.0"},
    "GetMicrovm": microvm,
    "GetMicrovmImage": lambda: IMAGE,
    "GetMicrovmImageBuild": lambda: {
        **VERSION, "buildId": OWN.call("ListMicrovmImageBuilds", VERSION)["items"][0]["buildId"]},
    "GetMicrovmImageVersion": lambda: VERSION,
    "ListManagedMicrovmImageVersions": lambda: {"imageIdentifier": MANAGED},
    "ListManagedMicrovmImages": dict,
    "ListMicrovmImageBuilds": lambda: VERSION,
    "ListMicrovmImageVersions": lambda: IMAGE,
    "ListMicrovmImages": dict,
    "ListMicrovms": lambda: IMAGE,
    "ListTags": lambda: {"Resource": IMAGE["imageIdentifier"]},
    "ResumeMicrovm": suspended,
    "RunMicrovm": lambda: IMAGE,
    "SuspendMicrovm": microvm,
    "TagResource": lambda: {"Resource": IMAGE["imageIdentifier"], "Tags": {"a": "b"}},
    "TerminateMicrovm": microvm,
    "UntagResource": lambda: {"Resource": IMAGE["imageIdentifier"], "TagKeys": ["a"]},
    "UpdateMicrovmImage": lambda: {**SPEC, **image()},
    "UpdateMicrovmImageVersion": lambda: {**image(), "imageVersion": "1.0", "status": "INACTIVE"},
    "CreateNetworkConnector": new_connector,
    "DeleteNetworkConnector": lambda: {"Identifier": connector()},
    "GetNetworkConnector": lambda: {"Identifier": connector()},
    "ListNetworkConnectorVersions": lambda: {"Identifier": connector()},
    "ListNetworkConnectors": dict,
    "UpdateNetworkConnector": lambda: {"Identifier": connector(), "OperatorRole": f"{ROLE}2"},
}
# Operations of lambda-core that have nothing to do with microVMs.
OTHERS = {
    f"{verb}Runtime{noun}" for noun in ("", "Alias", "Version") for verb in ("Create", "Delete", "Get", "Update")
} | {"ListRuntimes", "ListRuntimeAliases", "ListRuntimeVersions", "RestoreRuntime"}
# What makes a request one of what is not there, or of nothing that could be.
LOST = {"imageIdentifier": NO_IMAGE, "microvmIdentifier": "microvm-none", "Identifier": "nc-none", "Resource": NO_IMAGE}
WRONG = {
    "imageIdentifier": "no ARN", "microvmIdentifier": "x" * 300, "name": "bad name!",
    "Resource": f"{ACCOUNT}:microvm-image:bad name!",
}
ELSEWHERE = {
    "Identifier": "arn:aws:lambda:eu-west-1:000000000000:network-connector:nc-1", "Resource": f"{ACCOUNT}:function:f"}


def with_each(members, others):
    return {name: others.get(name, value) for name, value in members.items()}


def succeeds(name, operation, members):
    answer = OWN.call(name, members)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == operation.http["responseCode"], answer
    shape = operation.output_shape
    for member in shape.required_members if shape else []:
        assert answer.get(member) is not None, f"{name}: {member} is not in {answer}"


def refused(keys, name, members, shape):
    """The call is refused with an error as its shape has it."""
    try:
        answer = keys.call(name, members)
    except ClientError as error:
        answer = error.response
        assert type(error).__name__ == shape.name == answer["Error"]["Code"], f"{name}, not {shape.name}: {error!r}"
    else:
        raise AssertionError(f"{name} has no {shape.name}: {answer}")
    about = answer["ResponseMetadata"]
    assert about["HTTPStatusCode"] == shape.metadata["error"]["httpStatusCode"], (name, answer)
    text = next(member for member in shape.members if member in ("message", "Message"))
    for member in [text, *shape.required_members]:
        assert answer.get(member), f"{name}, {shape.name}: {member} is not in {answer}"
    assert answer["Error"]["Message"] == answer[text] and about["RequestId"], answer
    if about["HTTPStatusCode"] == 429:
        assert about["HTTPHeaders"]["retry-after"] == "1", answer
        assert "retryAfterSeconds" not in shape.members or int(answer["retryAfterSeconds"]) == 1, answer
        assert "Reason" not in shape.members or answer["Reason"] == "CallerRateLimitExceeded", answer


def conflicts():
    """Requests that what there is at the time is against. What is held back stays so."""
    ending, used, told = microvm(), connector(), f"token-{next(numbers)}"
    building, leaving = image(), connector()
    microvm(egressNetworkConnectors=[used])
    OWN.call("CreateMicrovmImage", {**SPEC, "name": f"image-{next(numbers)}", "clientToken": told})
    OWN.call("RunMicrovm", {**IMAGE, "clientToken": told})
    with file("hold"):
        starting = microvm("PENDING")
        OWN.call("TerminateMicrovm", ending)
        OWN.call("UpdateMicrovmImage", {**SPEC, **building})
        coming = connector("PENDING")
        OWN.call("DeleteNetworkConnector", {"Identifier": leaving})
    name = OWN.call("GetNetworkConnector", {"Identifier": used})["Name"]
    return {
        "CreateMicrovmAuthToken": {**ending, **PORTS},
        "CreateMicrovmImage": {**SPEC, "name": "other", "clientToken": told},
        "CreateMicrovmShellAuthToken": {**ending, "expirationInMinutes": 5},
        "DeleteMicrovmImageVersion": {**building, "imageVersion": "1.0"},
        "ResumeMicrovm": starting,
        "RunMicrovm": {**IMAGE, "clientToken": told, "maximumDurationInSeconds": 100},
        "SuspendMicrovm": starting,
        "TagResource": {"Resource": leaving, "Tags": {"a": "b"}},
        "UntagResource": {"Resource": leaving, "TagKeys": ["a"]},
        "UpdateMicrovmImage": {**SPEC, **building},
        "UpdateMicrovmImageVersion": {**building, "imageVersion": "1.0", "status": "INACTIVE"},
        "CreateNetworkConnector": {**new_connector(), "Name": name},
        "DeleteNetworkConnector": {"Identifier": used},
        "UpdateNetworkConnector": {"Identifier": coming, "OperatorRole": ROLE},
    }


def is_change(name):
    return not name.startswith(("Get", "List")) and not name.endswith("AuthToken")


class Errors:
    """How each error is provoked: who asks for what."""

    def __init__(self, done):
        # Requests that have succeeded; as many that change something, for later; and those that cannot.
        self.done, self.conflicts = done, conflicts()
        self.changes = {name: make() for name, make in VALID.items() if is_change(name)}
        self.spare = connector(keys=POOR)

    def classic(self, name):
        """Tags of connectors have lambda-core's words."""
        return with_each(self.done[name], {"Resource": NO_CONNECTOR})

    def hurried(self, name, members):
        # The first one may pass.
        with contextlib.suppress(ClientError):
            HURRIED.call(name, members)
        return HURRIED, members

    def ResourceNotFoundException(self, name):
        members = with_each(self.done[name], LOST)
        if name == "CreateMicrovmImage":
            members = {**members, "name": "lost", "egressNetworkConnectors": [NO_CONNECTOR]}
        return OWN, members

    def ValidationException(self, name):
        members = with_each(self.done[name], WRONG)
        return OWN, members if members != self.done[name] else {"maxResults": 51}

    def InvalidParameterValueException(self, name):
        if name == "CreateNetworkConnector":
            return OWN, {**new_connector(), "Tags": {"aws:a": "b"}}
        members = with_each(self.done[name], ELSEWHERE)
        return OWN, members or {"Marker": "?"}

    def AccessDeniedException(self, name):
        return SESSION, self.done[name]

    def ThrottlingException(self, name):
        return self.hurried(name, self.done[name])

    def TooManyRequestsException(self, name):
        return self.hurried(name, self.classic(name))

    def ConflictException(self, name):
        return OWN, self.conflicts[name]

    ResourceConflictException = ConflictException

    def InsufficientCapacityException(self, name):
        return OWN, self.done[name]

    def ServiceQuotaExceededException(self, name):
        return POOR, {**SPEC, **IMAGE} if name == "UpdateMicrovmImage" else self.done[name]

    def NetworkConnectorLimitExceededException(self, name):
        return POOR, self.done[name]

    # The database is damaged by now: a session's role is not found in it, and no change is kept.
    def InternalServerException(self, name):
        return (OWN, self.changes[name]) if name in self.changes else (SESSION, self.done[name])

    def ServiceException(self, name):
        if name not in self.changes or "Resource" in self.done[name]:
            return SESSION, self.classic(name)
        return OWN, self.changes[name]


# After all others.
DAMAGED = ["InternalServerException", "ServiceException"]


def damage():
    database = sqlite3.connect(WORLD / "state/rotifer.db")
    database.executescript("DROP TABLE record; DROP TABLE attached_policy")
    database.close()


def is_ended_in_every_state(_):
    ended = microvm()
    OWN.call("TerminateMicrovm", ended)
    wait("GetMicrovm", ended, "TERMINATED")
    ready, sleeping = microvm(), suspended()
    with file("hold"):
        for members in (ended, ready, sleeping, microvm("PENDING")):
            for _ in ("as it is", "while it ends"):
                OWN.call("TerminateMicrovm", members)


def is_refused_as_recorded(_):
    leaving = image()
    with file("hold"):
        refused(OWN, "DeleteMicrovmImage", image("CREATING"), OWN.shape("ValidationException"))
        for _ in ("as it is", "while it goes"):
            assert OWN.call("DeleteMicrovmImage", leaving)["state"] == "DELETING"


def is_done_at_the_limit(errors):
    POOR.call("UpdateNetworkConnector", {"Identifier": errors.spare, "OperatorRole": f"{ROLE}2"})


# What is never answered, why, and what shows it.
UNREACHED = {
    ("TerminateMicrovm", "ConflictException"): (
        "a microVM is ended in every state, and again, as recorded", is_ended_in_every_state),
    ("DeleteMicrovmImage", "ConflictException"): (
        "an image that is built is refused with ValidationException, as recorded", is_refused_as_recorded),
    ("UpdateNetworkConnector", "NetworkConnectorLimitExceededException"): (
        "an update makes no connector, and nothing else of them has a quota", is_done_at_the_limit),
}


def check_successes():
    done = {}
    for name, operation in OWN.operations():
        if name not in OTHERS:
            assert name in VALID, f"{name} is in the model, and not asked for here"
            done[name] = VALID[name]()
            succeeds(name, operation, done[name])
    assert done.keys() == VALID.keys(), VALID.keys() - done.keys()
    print("ok", len(done), "successes", flush=True)
    return done


def check_others():
    others = {name: operation for name, operation in OWN.operations() if name in OTHERS}
    assert others.keys() == OTHERS, OTHERS - others.keys()
    for name, operation in others.items():
        places = operation.input_shape.members.items()
        members = {place: "x" for place, shape in places if shape.serialization.get("location") == "uri"}
        try:
            OWN.call(name, members)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "UnknownOperationException", error
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 404, error
        else:
            raise AssertionError(f"{name} is answered")
    print("ok", len(OTHERS), "others", flush=True)


def check_errors(done):
    errors = Errors(done)
    pairs = [(name, shape) for name, operation in OWN.operations() if name in VALID for shape in operation.error_shapes]
    pairs.sort(key=lambda pair: pair[1].name in DAMAGED)
    is_damaged, unreached = False, dict(UNREACHED)
    for name, shape in pairs:
        if shape.name in DAMAGED and not is_damaged:
            damage()
            is_damaged = True
        reason, show = unreached.pop((name, shape.name), (None, None))
        if show:
            show(errors)
            print("unreached:", name, shape.name, "-", reason, flush=True)
            continue
        provoke = getattr(errors, shape.name, None)
        assert provoke, f"{name} has the error {shape.name} in the model, and it is not provoked here"
        keys, members = provoke(name)
        with file("refuse") if shape.name == "InsufficientCapacityException" else contextlib.nullcontext():
            refused(keys, name, members, shape)
    assert not unreached, f"not in the model: {unreached}"
    print("ok", len(pairs) - len(UNREACHED), "errors", flush=True)


check_others()
check_errors(check_successes())
