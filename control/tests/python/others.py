"""S3, IAM and Logs through boto3."""

import os
import ssl
import time
import urllib.error
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

s3 = boto3.client("s3")
MIB = 1 << 20


def refused(code, operation, **members):
    try:
        operation(**members)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return error
    raise AssertionError(f"{operation.__name__} was not refused")


def get(url):
    trust = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
    return urllib.request.urlopen(url, context=trust).read()


def check_objects():
    s3.create_bucket(Bucket="bucket")
    key = "a b/ü&<>+%.txt"
    s3.put_object(Bucket="bucket", Key=key, Body=b"hello", ContentType="text/x", Metadata={"x": "y"})
    head = s3.head_object(Bucket="bucket", Key=key, ChecksumMode="ENABLED")
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (5, "text/x", {"x": "y"}), head
    assert head["ETag"] == '"5d41402abc4b2a76b9719d911017c592"' and head["ChecksumCRC32"] == "NhCmhg=="
    assert "ContentEncoding" not in head, head
    # CRC64NVME and CRC32C need a library that boto3 does not bring.
    for algorithm in ("CRC32", "SHA1", "SHA256"):
        s3.put_object(Bucket="bucket", Key="sum", Body=b"x" * 1000, ChecksumAlgorithm=algorithm)
        assert s3.get_object(Bucket="bucket", Key="sum")["Body"].read() == b"x" * 1000
    assert s3.get_object(Bucket="bucket", Key=key, Range="bytes=1-2")["Body"].read() == b"el"
    refused("InvalidRange", s3.get_object, Bucket="bucket", Key=key, Range="bytes=9-")
    s3.copy_object(Bucket="bucket", Key="copy", CopySource={"Bucket": "bucket", "Key": key})
    assert s3.get_object(Bucket="bucket", Key="copy")["Body"].read() == b"hello"
    refused("PreconditionFailed", s3.put_object, Bucket="bucket", Key="copy", Body=b"", IfNoneMatch="*")
    for client in (s3, boto3.client("s3", config=Config(signature_version="s3v4"))):
        url = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": key})
        assert get(url) == b"hello"
        try:
            get(url.replace("/bucket/", "/bucket/x"))
            raise AssertionError("a signature is good for another key")
        except urllib.error.HTTPError as error:
            assert error.code == 403
    refused("NoSuchBucket", s3.put_object, Bucket="missing", Key="x", Body=b"x")
    refused("NoSuchKey", s3.get_object, Bucket="bucket", Key="missing")
    refused("BucketNotEmpty", s3.delete_bucket, Bucket="bucket")
    refused("NotImplemented", s3.put_object, Bucket="bucket", Key="x", Body=b"x", Tagging="a=b")
    stranger = boto3.client("s3", aws_secret_access_key="wrong", aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"])
    refused("SignatureDoesNotMatch", stranger.list_buckets)


def check_listing():
    s3.create_bucket(Bucket="listing")
    keys = sorted(f"{folder}/{number}" for folder in ("a", "b", "c") for number in range(5)) + ["z", "zz"]
    for key in keys:
        s3.put_object(Bucket="listing", Key=key, Body=b"")
    for version in ("list_objects", "list_objects_v2"):
        pages = s3.get_paginator(version).paginate(Bucket="listing", PaginationConfig={"PageSize": 4})
        assert [item["Key"] for page in pages for item in page.get("Contents", [])] == keys
        pages = s3.get_paginator(version).paginate(
            Bucket="listing", Delimiter="/", PaginationConfig={"PageSize": 2})
        pages = list(pages)
        assert [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])] == ["a/", "b/", "c/"]
        assert [item["Key"] for page in pages for item in page.get("Contents", [])] == ["z", "zz"]
    deleted = s3.delete_objects(Bucket="listing", Delete={"Objects": [{"Key": key} for key in keys]})
    assert len(deleted["Deleted"]) == len(keys)
    s3.delete_bucket(Bucket="listing")


def check_parts():
    upload = s3.create_multipart_upload(Bucket="bucket", Key="parts")["UploadId"]
    of = {"Bucket": "bucket", "Key": "parts", "UploadId": upload}
    parts = []
    for number, body in ((1, b"a" * 5 * MIB), (2, b"b" * 100)):
        s3.upload_part(**of, PartNumber=number, Body=b"something else")
        etag = s3.upload_part(**of, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    assert [part["Size"] for part in s3.list_parts(**of)["Parts"]] == [5 * MIB, 100]
    assert len(s3.list_multipart_uploads(Bucket="bucket")["Uploads"]) == 1
    refused("InvalidPartOrder", s3.complete_multipart_upload, **of, MultipartUpload={"Parts": parts[::-1]})
    wrong = [{"PartNumber": 1, "ETag": '"0"'}]
    refused("InvalidPart", s3.complete_multipart_upload, **of, MultipartUpload={"Parts": wrong})
    done = s3.complete_multipart_upload(**of, MultipartUpload={"Parts": parts})
    assert done["ETag"].endswith('-2"'), done
    body = s3.get_object(Bucket="bucket", Key="parts", Range=f"bytes={5 * MIB - 1}-{5 * MIB}")["Body"].read()
    assert body == b"ab"
    refused("NoSuchUpload", s3.abort_multipart_upload, **of)


def check_roles():
    iam = boto3.client("iam")
    trust = '{"Version":"2012-10-17","Statement":[]}'
    policies = [f"arn:aws:iam::aws:policy/Policy{number}" for number in range(3)]
    role = iam.create_role(RoleName="Some", AssumeRolePolicyDocument=trust, Description="d & e")["Role"]
    assert role["Arn"] == "arn:aws:iam::000000000000:role/Some" and role["CreateDate"].year >= 2026
    assert role["AssumeRolePolicyDocument"] == {"Version": "2012-10-17", "Statement": []}
    for policy in policies:
        iam.attach_role_policy(RoleName="Some", PolicyArn=policy)
    pages = iam.get_paginator("list_attached_role_policies").paginate(RoleName="Some", PaginationConfig={"PageSize": 2})
    assert [policy["PolicyArn"] for page in pages for policy in page["AttachedPolicies"]] == policies
    refused("EntityAlreadyExists", iam.create_role, RoleName="Some", AssumeRolePolicyDocument=trust)
    refused("MalformedPolicyDocument", iam.create_role, RoleName="Other", AssumeRolePolicyDocument="x")
    refused("DeleteConflict", iam.delete_role, RoleName="Some")
    for policy in policies:
        iam.detach_role_policy(RoleName="Some", PolicyArn=policy)
    refused("NoSuchEntity", iam.detach_role_policy, RoleName="Some", PolicyArn=policies[0])
    iam.delete_role(RoleName="Some")
    refused("NoSuchEntity", iam.get_role, RoleName="Some")
    refused("InvalidAction", iam.create_user, UserName="x")


def check_logs():
    logs = boto3.client("logs")
    group = {"logGroupName": "/aws/lambda-microvms/mine"}
    logs.create_log_group(**group)
    now = int(time.time() * 1000)
    for stream in ("one", "two"):
        logs.create_log_stream(**group, logStreamName=stream)
        events = [{"timestamp": now + number, "message": f"{stream} line {number}"} for number in range(5)]
        logs.put_log_events(**group, logStreamName=stream, logEvents=events)
    # As `aws logs tail` asks; the first of the two names that documents give the group is ours.
    asked = {"logGroupName": "/aws/lambda/microvms/mine", "startTime": now, "interleaved": True}
    pages = logs.get_paginator("filter_log_events").paginate(**asked, PaginationConfig={"PageSize": 3})
    found = [event for page in pages for event in page["events"]]
    assert len(found) == 10 and [event["timestamp"] for event in found] == sorted(now + n // 2 for n in range(10))
    assert len({event["eventId"] for event in found}) == 10
    named = logs.filter_log_events(**group, logStreamNamePrefix="t", filterPattern='"line 3"')["events"]
    assert [event["message"] for event in named] == ["two line 3"]
    page = logs.get_log_events(**group, logStreamName="one", startFromHead=True, limit=2)
    rest = logs.get_log_events(**group, logStreamName="one", nextToken=page["nextForwardToken"])
    assert [event["message"] for event in rest["events"]] == [f"one line {number}" for number in (2, 3, 4)]
    end = logs.get_log_events(**group, logStreamName="one", nextToken=rest["nextForwardToken"])
    assert end["events"] == [] and end["nextForwardToken"] == rest["nextForwardToken"]
    streams = logs.describe_log_streams(**group, orderBy="LastEventTime", descending=True)["logStreams"]
    assert {stream["lastEventTimestamp"] for stream in streams} == {now + 4}
    assert [it["logGroupName"] for it in logs.describe_log_groups()["logGroups"]] == [group["logGroupName"]]
    refused("ResourceAlreadyExistsException", logs.create_log_group, **group)
    refused("ResourceNotFoundException", logs.filter_log_events, logGroupName="none")
    refused("InvalidParameterException", logs.filter_log_events, **group, filterPattern="{ $.a = 1 }")
    logs.delete_log_group(**group)
    refused("ResourceNotFoundException", logs.describe_log_streams, **group)


for check in (check_objects, check_listing, check_parts, check_roles, check_logs):
    check()
    print("ok", check.__name__, flush=True)
