"""What the code inside of a microVM may do with its execution role's credentials."""

import sys

import boto3
from botocore.exceptions import ClientError

NAMES = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
own, session = (dict(zip(NAMES, keys.split())) for keys in sys.argv[1:3])
role, microvm = sys.argv[3:]


def refused(code, operation, **members):
    try:
        operation(**members)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return
    raise AssertionError(f"{operation.__name__} was not refused")


def client(service, keys=session):
    return boto3.client(service, **keys)


owner = client("s3", own)
owner.create_bucket(Bucket="bucket")
owner.put_object(Bucket="bucket", Key="key", Body=b"hello")
who = client("sts").get_caller_identity()
assert who["Arn"].endswith(f":assumed-role/{role}/{microvm}"), who
print("ok sts")
s3 = client("s3")
assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"hello"
refused("AccessDenied", s3.put_object, Bucket="bucket", Key="key", Body=b"mine")
refused("AccessDenied", s3.delete_object, Bucket="bucket", Key="key")
print("ok s3")
refused("AccessDeniedException", client("lambda-microvms").list_microvms)
refused("AccessDeniedException", client("logs").describe_log_groups)
refused("AccessDeniedException", client("iam").list_roles)
print("ok others")
without = {name: value for name, value in session.items() if name != "aws_session_token"}
refused("UnrecognizedClientException", client("sts", without).get_caller_identity)
refused("InvalidToken", client("s3", without).list_buckets)
wrong = dict(session, aws_secret_access_key="wrong")
refused("InvalidSignatureException", client("sts", wrong).get_caller_identity)
refused("SignatureDoesNotMatch", client("s3", wrong).list_buckets)
mixed = dict(own, aws_session_token=session["aws_session_token"])
refused("UnrecognizedClientException", client("sts", mixed).get_caller_identity)
refused("InvalidToken", client("s3", mixed).list_buckets)
print("ok wrong")
