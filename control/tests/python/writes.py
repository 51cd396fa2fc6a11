"""Writes of all kinds at once until the daemon is gone (`write ROUND`), with a line before each and a line when it
was answered; or looks whether all that the lines say is there, and nothing by halves (`check ROUND DATABASE`)."""

import hashlib
import sqlite3
import sys
import threading
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

CONFIG = Config(retries={"max_attempts": 0})
s3, iam, logs = (boto3.client(name, config=CONFIG) for name in ("s3", "iam", "logs"))
lambda_ = boto3.client("lambda-microvms", config=CONFIG)
ROUND = sys.argv[2]
TRUST = '{"Version":"2012-10-17","Statement":[]}'
IMAGE = {
    "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
    "buildRoleArn": "arn:aws:iam::000000000000:role/Build", "codeArtifact": {"uri": "s3://bucket/x"},
}
GONE = "gone"
# All images together have a quota.
IMAGES_MAX = 8
saying = threading.Lock()


def say(*words):
    with saying:
        print(*words, flush=True)


def body(value):
    return hashlib.sha256(value.encode()).digest() * 4096


def put(place, value):
    s3.put_object(Bucket="bucket", Key=place, Body=body(value))


def put_in_parts(place, value):
    of = {"Bucket": "bucket", "Key": place}
    of["UploadId"] = s3.create_multipart_upload(**of)["UploadId"]
    part = s3.upload_part(**of, PartNumber=1, Body=body(value))["ETag"]
    s3.complete_multipart_upload(**of, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]})


def write_objects(kind, operation, number):
    place = f"{kind}-{ROUND}-{number % 3}"
    if number % 5 == 4:
        return place, GONE, lambda: s3.delete_object(Bucket="bucket", Key=place)
    return place, str(number), lambda: operation(place, str(number))


def write_role(number):
    name = f"role-{ROUND}-{number // 2}"
    if number % 2 == 0:
        return name, "is", lambda: iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)
    # Every second role stays.
    if number % 4 == 1:
        return name, GONE, lambda: iam.delete_role(RoleName=name)
    policy = "arn:aws:iam::aws:policy/X"
    return f"{name}/policy", "is", lambda: iam.attach_role_policy(RoleName=name, PolicyArn=policy)


def write_event(number):
    event = {"timestamp": int(time.time() * 1000), "message": f"event-{ROUND}-{number}"}
    return event["message"], "is", lambda: logs.put_log_events(
        logGroupName="group", logStreamName="stream", logEvents=[event])


def write_image(number):
    name = f"image-{ROUND}-{number}"
    return name, "is", lambda: lambda_.create_microvm_image(name=name, **IMAGE)


WRITERS = {
    "object": lambda number: write_objects("object", put, number),
    "upload": lambda number: write_objects("upload", put_in_parts, number),
    "role": write_role, "event": write_event, "image": write_image,
}


def write_all(kind):
    for number in range(IMAGES_MAX if kind == "image" else 100000):
        place, value, operation = WRITERS[kind](number)
        say("begin", kind, place, value)
        try:
            operation()
        except ClientError as error:
            # The daemon was there to say so: that is a failure of the test.
            say("refused", kind, place, error)
            return
        except Exception:  # it is gone
            return
        say("done", kind, place, value)


def write():
    for operation, members in (
        (s3.create_bucket, {"Bucket": "bucket"}), (logs.create_log_group, {"logGroupName": "group"}),
        (logs.create_log_stream, {"logGroupName": "group", "logStreamName": "stream"}),
    ):
        try:
            operation(**members)
        except ClientError as error:  # of an earlier round
            assert "Already" in error.response["Error"]["Code"], error
    threads = [threading.Thread(target=write_all, args=(kind,)) for kind in WRITERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def found(operation, **members):
    try:
        return operation(**members)
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 404, error
        return None


def look(kind, place, allowed):
    """What is there now."""
    if kind in ("object", "upload"):
        there = found(s3.get_object, Bucket="bucket", Key=place)
        there = there and there["Body"].read()
        values = [value for value in allowed if value != GONE and body(value) == there]
        return GONE if there is None else values[0] if values else "other bytes"
    if kind == "role":
        name, _, policy = place.partition("/")
        if not policy:
            return "is" if found(iam.get_role, RoleName=name) else GONE
        return "is" if found(iam.list_attached_role_policies, RoleName=name)["AttachedPolicies"] else GONE
    if kind == "event":
        count = EVENTS.count(place)
        return {0: GONE, 1: "is"}.get(count, f"{count} times")
    arn = f"arn:aws:lambda:us-east-1:000000000000:microvm-image:{place}"
    image = found(lambda_.get_microvm_image, imageIdentifier=arn)
    assert image is None or image["state"] in ("CREATING", "CREATE_FAILED"), image
    return "is" if image else GONE


def check(database):
    global EVENTS
    pages = logs.get_paginator("filter_log_events").paginate(logGroupName="group")
    EVENTS = [event["message"] for page in pages for event in page["events"]]
    allowed = {}
    for line in sys.stdin:
        verb, kind, place, value = line.split(maxsplit=3)
        assert verb != "refused", line
        values = allowed.setdefault((kind, place), [GONE])
        if verb == "begin":
            values.append(value.strip())
        else:
            allowed[kind, place] = [value.strip()]
    for (kind, place), values in allowed.items():
        there = look(kind, place, values)
        assert there in values, f"{kind} {place} is {there}, and should be one of {values}"
    checked = sqlite3.connect(f"file:{database}?mode=ro", uri=True).execute("PRAGMA integrity_check").fetchall()
    assert checked == [("ok",)], checked
    # All contents that anything refers to.
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket")
    blobs = sum(len(page.get("Contents", [])) for page in pages)
    for unfinished in s3.list_multipart_uploads(Bucket="bucket").get("Uploads", []):
        parts = s3.list_parts(Bucket="bucket", Key=unfinished["Key"], UploadId=unfinished["UploadId"])
        blobs += len(parts.get("Parts", []))
    print(blobs, flush=True)


if sys.argv[1] == "check":
    check(sys.argv[3])
else:
    write()
