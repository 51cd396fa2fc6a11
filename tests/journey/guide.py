"""The hands-on guide to Lambda MicroVMs, typed command by command into a shell with the unmodified AWS CLI.

The daemon and its microVMs are on the host; the shell, the AWS CLI and curl are here. Each command is shown with what it
answers and the time that it took; what it answers is checked. `--kept-store NAME` has builds find what the last
run with that name has built.

Where the guide and the service differ, this follows the service: an image is CREATED, not ACTIVE.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from host import DEADLINE_SECONDS, serving

ROOT = pathlib.Path(__file__).parent.parent.parent
FILES = ROOT / "examples/guide"
ACCOUNT = "000000000000"
IMAGE = f"arn:aws:lambda:us-east-1:{ACCOUNT}:microvm-image:my-flask-microvm"
MANAGED = "arn:aws:iam::aws:policy"
POLICIES = {
    "MicroVMBuildRole": ["AmazonS3ReadOnlyAccess", "CloudWatchLogsFullAccess", "AmazonEC2ContainerRegistryReadOnly"],
    "MicroVMExecutionRole": ["service-role/AWSLambdaBasicExecutionRole", "CloudWatchLogsFullAccess"],
}
IDLE = '{"maxIdleDurationSeconds":900,"suspendedDurationSeconds":300,"autoResumeEnabled":true}'
HELLO = {"message": "Hello from Lambda MicroVM!"}
# Each question starts a Python; the build needs the CPUs, too.
PAUSE_SECONDS = 3
SHOWN_LINES = 14
SHOWN_COLUMNS = 110


class Shell:
    """Types commands into a shell in a directory with the guide's files."""

    def __init__(self, directory, host):
        self.directory = directory
        keep = {name: os.environ[name] for name in ["HOME", "LANG"] if name in os.environ}
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        # Nothing of the user's own configuration.
        nothing = {name: os.devnull for name in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"]}
        self.variables = {**keep, **nothing, "PATH": path, **host.variables()}
        self.port = self.variables["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]

    def quietly(self, command):
        return subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env=self.variables, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=DEADLINE_SECONDS)

    def type(self, command, is_refused=False, keep=None):
        """What the command answers. It has to succeed, or to be refused: then that is its answer. `keep` names a
        variable that has the answer from then on."""
        show(f"{keep}=$({command})" if keep else command)
        begin = time.monotonic()
        done = self.quietly(command)
        seconds = time.monotonic() - begin
        lines = (done.stdout + done.stderr).strip().splitlines()
        for line in lines[:SHOWN_LINES] + (["..."] if len(lines) > SHOWN_LINES else []):
            print(f"    {line[:SHOWN_COLUMNS]}")
        print(f"    [{seconds:.1f} s]", flush=True)
        assert (done.returncode != 0) == is_refused, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
        answer = (done.stderr if is_refused else done.stdout).strip()
        if keep:
            assert answer, f"{command}: no answer"
            self.variables[keep] = answer
        return answer

    def json(self, command):
        return json.loads(self.type(command))

    def until(self, command, wanted, passing):
        """Repeats a question until the answer is what is awaited; on the way it may be one of some others."""
        show(f"{command}      # until it is {wanted}")
        begin = time.monotonic()
        while (answer := self.quietly(command).stdout.strip()) != wanted:
            assert answer in passing, f"{command}: {answer}"
            assert time.monotonic() - begin < DEADLINE_SECONDS, f"it does not become {wanted}"
            time.sleep(PAUSE_SECONDS)
        print(f"    {answer}\n    [{time.monotonic() - begin:.1f} s]", flush=True)


def say(text):
    print(f"\n== {text}", flush=True)


def show(command):
    if len(command) > SHOWN_COLUMNS:
        command = command.replace(" --", " \\\n      --")
    print(f"\n$ {command}", flush=True)


def package(shell):
    say("Package and upload to S3")
    who = shell.json("aws sts get-caller-identity")
    assert who["Account"] == ACCOUNT, who
    shell.type("zip -q app.zip app.py requirements.txt Dockerfile && ls -l app.zip")
    shell.type("aws s3 mb s3://my-code")
    assert "upload: ./app.zip to s3://my-code/app.zip" in shell.type("aws s3 cp app.zip s3://my-code/app.zip --no-progress")


def roles(shell):
    say("Create the IAM roles")
    for role, policies in POLICIES.items():
        shell.type(
            f"aws iam create-role --role-name {role} --assume-role-policy-document file://trust-policy.json "
            "--query Role.Arn")
        for policy in policies:
            shell.type(f"aws iam attach-role-policy --role-name {role} --policy-arn {MANAGED}/{policy}")
        arn = shell.json(f"aws iam get-role --role-name {role} --query 'Role.Arn'")
        assert arn == f"arn:aws:iam::{ACCOUNT}:role/{role}", arn


def image(shell, host):
    say("Create the MicroVM image")
    made = shell.json(
        "aws lambda-microvms create-microvm-image --code-artifact uri=s3://my-code/app.zip --name my-flask-microvm "
        "--base-image-arn arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1 "
        f"--build-role-arn arn:aws:iam::{ACCOUNT}:role/MicroVMBuildRole --region us-east-1 "
        "--query '{imageArn: imageArn, state: state}'")
    assert made == {"imageArn": IMAGE, "state": "CREATING"}, made
    with Log(host, "my-flask-microvm"):
        shell.until(
            f"aws lambda-microvms get-microvm-image --image-identifier {IMAGE} --region us-east-1 --query 'state' "
            "--output text", "CREATED", ["CREATING"])
    said = shell.type(
        "aws logs filter-log-events --log-group-name /aws/lambda/microvms/my-flask-microvm "
        "--query 'events[].[message]' --output text")
    assert "FROM public.ecr.aws/lambda/microvms:al2023-minimal" in said and "Listening at" in said, said


class Log:
    """Shows a log as it comes, with the daemon's own command: version 1 of the AWS CLI has no `aws logs tail`."""

    def __init__(self, host, name):
        follow = f"{host.directory}/bin/rotifer logs -f {name} --state {host.state}"
        show(f"rotifer logs -f {name} &")
        words = [os.environ["ROTIFER_X"], "host", "exec", "-n", follow]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.begin = time.monotonic()
        self.reader = threading.Thread(target=self.read)

    def read(self):
        for line in self.process.stdout:
            print(f"    {time.monotonic() - self.begin:6.1f} s | {line}", end="", flush=True)

    def __enter__(self):
        self.reader.start()

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()


def launch(shell):
    say("Launch the MicroVM")
    run = (
        f"aws lambda-microvms run-microvm --image-identifier {IMAGE} --execution-role-arn "
        f"arn:aws:iam::{ACCOUNT}:role/MicroVMExecutionRole --idle-policy '{IDLE}' --region us-east-1 --query microvmId "
        "--output text")
    shell.type(run, keep="MICROVM")
    details = shell.json(
        "aws lambda-microvms get-microvm --microvm-id $MICROVM --region us-east-1 --query "
        "'{state: state, endpoint: endpoint, imageArn: imageArn, imageVersion: imageVersion, idlePolicy: idlePolicy, "
        "maximumDurationInSeconds: maximumDurationInSeconds}'")
    assert details["state"] in ["PENDING", "RUNNING"], details
    assert (details["imageArn"], details["imageVersion"]) == (IMAGE, "1.0"), details
    assert (details["idlePolicy"], details["maximumDurationInSeconds"]) == (json.loads(IDLE), 28800), details
    # The host's port is another one on this machine.
    shell.variables["ENDPOINT"] = f"{details['endpoint']}:{shell.port}"
    show(f"ENDPOINT={shell.variables['ENDPOINT']}")


def hello(shell, why=""):
    answer = shell.type(f'curl -si --max-time 600 -H "X-aws-proxy-auth: $TOKEN" https://$ENDPOINT/{why}')
    head, body = answer.split("\n\n", 1)
    assert head.startswith("HTTP/2 200") and "server: gunicorn" in head and "x-amzn-requestid: " in head, answer
    assert json.loads(body) == HELLO, answer


def use(shell):
    say("Generate an auth token, and hit the endpoint")
    shell.type(
        "aws lambda-microvms create-microvm-auth-token --microvm-id $MICROVM --expiration-in-minutes 60 "
        "--allowed-ports port=8080 --region us-east-1 --query 'authToken.\"X-aws-proxy-auth\"' --output text",
        keep="TOKEN")
    hello(shell)
    assert "missing authentication" in shell.type("curl -s https://$ENDPOINT/")
    refused = shell.type('curl -s -H "X-aws-proxy-auth: $TOKEN" -H "X-aws-proxy-port: 5000" https://$ENDPOINT/')
    assert refused == "Access to port denied", refused
    say("Suspend it: the next request wakes it")
    state = "aws lambda-microvms get-microvm --microvm-id $MICROVM --region us-east-1 --query state --output text"
    shell.type("aws lambda-microvms suspend-microvm --microvm-id $MICROVM --region us-east-1")
    shell.until(state, "SUSPENDED", ["RUNNING", "SUSPENDING"])
    hello(shell, "      # it was suspended")
    shell.until(state, "RUNNING", ["PENDING"])


def clean(shell):
    say("Clean up: an image is kept while a MicroVM of it runs, so MicroVMs go first")
    refused = shell.type(
        f"aws lambda-microvms delete-microvm-image --image-identifier {IMAGE} --region us-east-1", is_refused=True)
    assert "Cannot delete microvm image with running microvms" in refused, refused
    shell.type(f"aws lambda-microvms run-microvm --image-identifier {IMAGE} --region us-east-1 --query state")
    shell.type("aws lambda-microvms terminate-microvm --microvm-id $MICROVM --region us-east-1")
    first = shell.type("./cleanup.sh my-code")
    assert "terminating microvm-" in first and "deleting the image" in first, first
    assert first.count("deleted the role") == 2, first
    say("Clean up again: there is nothing left, and that is no error")
    second = shell.type("./cleanup.sh my-code")
    assert "terminating" not in second and "deleting" not in second and "deleted the role" not in second, second
    assert shell.type("aws lambda-microvms list-microvm-images --query 'items[].name' --output text") == ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kept-store", metavar="NAME")
    arguments = parser.parse_args()
    begin = time.monotonic()
    with serving(kept_store=arguments.kept_store) as host, tempfile.TemporaryDirectory() as directory:
        for file in FILES.iterdir():
            shutil.copy(file, directory)
        say(f"The daemon serves after {time.monotonic() - begin:.1f} s")
        shell = Shell(directory, host)
        package(shell)
        roles(shell)
        image(shell, host)
        launch(shell)
        use(shell)
        clean(shell)
        assert host.vmms() == []
    say(f"The guide took {time.monotonic() - begin:.0f} s")


main()
