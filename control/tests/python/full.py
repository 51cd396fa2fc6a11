"""Fills the disk of a daemon up to the last pages, again and again, and asks for things that need some. Each is done
or refused in words that clients understand; whichever it is, it is so after there is room again.

`full.py DIRECTORY`: the daemon's state, on a small disk."""

import os
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

CONFIG = Config(retries={"max_attempts": 0})
s3, iam, logs = (boto3.client(name, config=CONFIG) for name in ("s3", "iam", "logs"))
lambda_ = boto3.client("lambda-microvms", config=CONFIG)
TRUST = '{"Version":"2012-10-17","Statement":[]}'
IMAGE = {
    "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
    "buildRoleArn": "arn:aws:iam::000000000000:role/Build", "codeArtifact": {"uri": "s3://bucket/x"},
}
FILL = os.path.join(sys.argv[1], "fill")
PAGE = 4096
# How a full disk is told: the class that the service's SDK has for it, and the status.
TOLD = {
    "s3": ("InsufficientStorage", 507), "iam": ("ServiceFailure", 500),
    "logs": ("ServiceUnavailableException", 500), "lambda": ("InternalServerException", 500),
}
DEADLINE_SECONDS = 120
refusals = {name: 0 for name in TOLD}


def fill(pages_left):
    """Leaves so many pages of the disk."""
    with open(FILL, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * PAGE)
        except OSError:
            pass
        file.truncate(max(0, file.tell() - pages_left * PAGE))


def attempt(service, operation, *arguments, **members):
    """Whether it was done; None if the disk was full."""
    try:
        return operation(*arguments, **members) or True
    except ClientError as error:
        answer = error.response
        told = (answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"])
        assert told == TOLD[service] and "full" in answer["Error"]["Message"], answer
        assert "disk" in answer["Error"]["Message"], answer
        refusals[service] += 1
        return None


def body(name):
    return name.encode() * 3000


def upload(name):
    of = {"Bucket": "bucket", "Key": name}
    of["UploadId"] = s3.create_multipart_upload(**of)["UploadId"]
    part = s3.upload_part(**of, PartNumber=1, Body=body(name))["ETag"]
    s3.complete_multipart_upload(**of, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]})


def put(name):
    s3.put_object(Bucket="bucket", Key=name, Body=body(name))


def say(name):
    logs.put_log_events(
        logGroupName="group", logStreamName="stream",
        logEvents=[{"timestamp": int(time.time() * 1000), "message": name}])


def try_all(number):
    """What was done of a round."""
    done = {}
    for kind, service, operation, members in (
        ("object", "s3", put, {"name": f"object-{number}"}),
        ("upload", "s3", upload, {"name": f"upload-{number}"}),
        ("role", "iam", iam.create_role, {"RoleName": f"role-{number}", "AssumeRolePolicyDocument": TRUST}),
        ("event", "logs", say, {"name": f"event-{number} " + "x" * 5000}),
        ("image", "lambda", lambda_.create_microvm_image, {"name": f"image-{number}", **IMAGE}),
        ("again", "s3", put, {"name": "again"}),
    ):
        done[kind] = attempt(service, operation, **members) is not None
    return done


def is_there(operation, **members):
    try:
        return operation(**members)
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 404, error
        return None


def image(number):
    arn = f"arn:aws:lambda:us-east-1:000000000000:microvm-image:image-{number}"
    return is_there(lambda_.get_microvm_image, imageIdentifier=arn)


def check(number, done):
    """What was done is there, and nothing else is."""
    for kind in ("object", "upload"):
        name = f"{kind}-{number}"
        found = is_there(s3.get_object, Bucket="bucket", Key=name)
        assert (found is not None) == done[kind], (name, done)
        assert found is None or found["Body"].read() == body(name), name
    role = is_there(iam.get_role, RoleName=f"role-{number}")
    assert (role is not None) == done["role"], (number, done)
    events = logs.get_log_events(logGroupName="group", logStreamName="stream", startFromHead=True)["events"]
    said = any(event["message"].startswith(f"event-{number} ") for event in events)
    assert said == done["event"], (number, done)
    assert (image(number) is not None) == done["image"], (number, done)
    # It was there before, and is whatever happens to the one that would replace it.
    assert s3.get_object(Bucket="bucket", Key="again")["Body"].read() == body("again")


def prepare():
    s3.create_bucket(Bucket="bucket")
    put("again")
    logs.create_log_group(logGroupName="group")
    logs.create_log_stream(logGroupName="group", logStreamName="stream")


def clean(number, done):
    """Room for the next rounds; what is found of uploads is what was not completed."""
    for kind in ("object", "upload"):
        s3.delete_object(Bucket="bucket", Key=f"{kind}-{number}")
    for unfinished in s3.list_multipart_uploads(Bucket="bucket").get("Uploads", []):
        s3.abort_multipart_upload(Bucket="bucket", Key=unfinished["Key"], UploadId=unfinished["UploadId"])
    if done["role"]:
        iam.delete_role(RoleName=f"role-{number}")


def builds_end(numbers):
    """Also those whose end the disk had no room for at first."""
    end = time.time() + DEADLINE_SECONDS
    while True:
        states = [image(number)["state"] for number in numbers]
        if all(state == "CREATE_FAILED" for state in states):
            return
        assert time.time() < end, states
        time.sleep(0.1)


if sys.argv[2] == "sweep":
    prepare()
    images = []
    for number, pages_left in enumerate([0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48]):
        fill(pages_left)
        done = try_all(number)
        os.remove(FILL)
        check(number, done)
        if done["image"]:
            images.append(number)
        builds_end(images)
        clean(number, done)
    for service, count in refusals.items():
        assert count > 0, f"{service} was never refused anything"
    print("ok sweep", refusals, flush=True)
elif sys.argv[2] == "fill":
    # For a daemon that is killed on a full disk, and started there again.
    put("kept")
    fill(0)
    done = try_all("last")
    print("ok", " ".join(kind for kind, is_done in done.items() if is_done), flush=True)
elif sys.argv[2] == "refill":
    fill(0)
elif sys.argv[2] == "check-again":
    assert s3.get_object(Bucket="bucket", Key="after")["Body"].read() == body("after")
    assert attempt("s3", put, "one more") is None
    for key in ("after", "kept"):
        s3.delete_object(Bucket="bucket", Key=key)
        assert is_there(s3.get_object, Bucket="bucket", Key=key) is None
    lambda_.delete_microvm_image(imageIdentifier=image("spare")["imageArn"])
    os.remove(FILL)
    put("at last")
else:
    assert s3.get_object(Bucket="bucket", Key="kept")["Body"].read() == body("kept")
    os.remove(FILL)
    done = {kind: kind in sys.argv[3:] for kind in ("object", "upload", "role", "event", "image", "again")}
    check("last", done)
    put("after")
    lambda_.create_microvm_image(name="image-spare", **IMAGE)
    builds_end(["spare"])
    print("ok check", flush=True)
