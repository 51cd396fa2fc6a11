"""Writes until the daemon is gone (`write`), one line for each thing that was answered; or looks whether all
things in the lines that come in are there (`check`)."""

import hashlib
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

CONFIG = Config(retries={"max_attempts": 0})
s3, iam = boto3.client("s3", config=CONFIG), boto3.client("iam", config=CONFIG)
lambda_ = boto3.client("lambda-microvms", config=CONFIG)
TRUST = '{"Version":"2012-10-17","Statement":[]}'


def body(number):
    return hashlib.sha256(str(number).encode()).digest() * 4096


def write():
    s3.create_bucket(Bucket="bucket")
    for number in range(100000):
        s3.put_object(Bucket="bucket", Key=f"key-{number % 7}", Body=body(number))
        print("object", number, flush=True)
        iam.create_role(RoleName=f"Role{number}", AssumeRolePolicyDocument=TRUST)
        print("role", number, flush=True)
        if number % 5 == 0:
            lambda_.create_microvm_image(
                name=f"image-{number}", baseImageArn="arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
                buildRoleArn="arn:aws:iam::000000000000:role/Build", codeArtifact={"uri": "s3://bucket/x"})
            print("image", number, flush=True)


def check():
    objects = {}
    for line in sys.stdin:
        what, number = line.split()
        number = int(number)
        if what == "object":
            objects[number % 7] = number
        elif what == "role":
            iam.get_role(RoleName=f"Role{number}")
        else:
            image = lambda_.get_microvm_image(
                imageIdentifier=f"arn:aws:lambda:us-east-1:000000000000:microvm-image:image-{number}")
            assert image["state"] in ("CREATING", "CREATE_FAILED"), image
    for place, number in objects.items():
        found = s3.get_object(Bucket="bucket", Key=f"key-{place}")["Body"].read()
        # The one that was answered last, or the one that was being written when the daemon was killed.
        assert found in (body(number), body(number + 7)), f"key-{place} is neither of {number} and {number + 7}"
    print("ok", len(objects), flush=True)


if sys.argv[1] == "check":
    check()
else:
    try:
        write()
    except (ClientError, Exception) as error:  # the daemon is gone
        print("gone", type(error).__name__, file=sys.stderr)
