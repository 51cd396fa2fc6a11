"""From a zip with a Dockerfile to microVMs that are launched, suspended, resumed and ended.

The daemon and its microVMs are on the host; boto3, unmodified, is here. What the app in a microVM knows is
observed from what it says: its lines come out of the guest into the log store.
"""

import concurrent.futures
import http.client
import io
import os
import pathlib
import platform
import socket
import ssl
import time
import urllib.parse
import zipfile

import boto3
import botocore.config

from host import serving, until
from networks import Networks

HERE = pathlib.Path(__file__).parent
IMAGE = "arn:aws:lambda:us-east-1:000000000000:microvm-image:mine"
ENABLED_RUNTIME = {
    f"{hook}{rest}": value
    for hook in ["run", "suspend", "resume", "terminate"]
    for rest, value in [("", "ENABLED"), ("TimeoutInSeconds", 60)]
}
ENABLED_IMAGE = {
    f"{hook}{rest}": value
    for hook in ["ready", "validate"]
    for rest, value in [("", "ENABLED"), ("TimeoutInSeconds", 600)]
}


class Journey:
    def __init__(self, host):
        self.host = host
        self.begin = time.monotonic()

    def connect(self):
        os.environ.update(self.host.variables())
        patient = botocore.config.Config(read_timeout=300, retries={"max_attempts": 1})
        client = lambda name: boto3.client(name, config=patient)
        self.s3, self.logs, self.microvms = client("s3"), client("logs"), client("lambda-microvms")

    def note(self, text):
        print(f"{time.monotonic() - self.begin:7.1f} s  {text}", flush=True)

    def upload(self, **files):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            for name, text in files.items():
                packed.writestr(name.replace("_", "."), text)
        self.s3.put_object(Bucket="code", Key="app.zip", Body=archive.getvalue())

    def create(self, name, **more):
        answer = self.microvms.create_microvm_image(
            name=name, codeArtifact={"uri": "s3://code/app.zip"},
            baseImageArn="arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
            buildRoleArn="arn:aws:iam::000000000000:role/Build", resources=[{"minimumMemoryInMiB": 256}], **more,
        )
        assert answer["state"] == "CREATING", answer
        return answer["imageArn"]

    def image(self, arn, state):
        get = lambda: self.microvms.get_microvm_image(imageIdentifier=arn)
        answer = until(state, get, lambda answer: answer["state"] not in ["CREATING", "UPDATING"])
        builds = self.microvms.list_microvm_image_builds(imageIdentifier=arn, imageVersion="1.0")["items"]
        assert answer["state"] == state, (answer, builds, self.lines(arn.rsplit(":", 1)[1]))
        return self.microvms.get_microvm_image_build(
            imageIdentifier=arn, imageVersion="1.0", buildId=builds[0]["buildId"])

    def state(self, vm, wanted):
        get = lambda: self.microvms.get_microvm(microvmIdentifier=vm)
        passing = {"PENDING", "SUSPENDING", "TERMINATING"}
        if wanted != "SUSPENDED":
            passing.add("SUSPENDED")
        if wanted in ["SUSPENDED", "TERMINATED"]:
            passing.add("RUNNING")
        answer = until(wanted, get, lambda answer: answer["state"] == wanted or answer["state"] not in passing)
        assert answer["state"] == wanted, answer
        return answer

    def lines(self, name, **more):
        found = self.logs.filter_log_events(logGroupName=f"/aws/lambda-microvms/{name}", **more)["events"]
        return [event["message"] for event in found]

    def says(self, vm, text):
        """Waits until the app in a microVM has said something."""
        get = lambda: self.lines("mine", logStreamNames=[vm])
        until(text, get, lambda lines: any(text in line for line in lines))

    def token(self, vm):
        answer = self.microvms.create_microvm_auth_token(
            microvmIdentifier=vm, expirationInMinutes=60, allowedPorts=[{"port": 9000}])
        return answer["authToken"]["X-aws-proxy-auth"]

    def get(self, vm, path="/", **headers):
        """Asks the app in a microVM through its endpoint, whose name need not be known to this machine."""
        name = self.microvms.get_microvm(microvmIdentifier=vm)["endpoint"]
        daemon = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT_URL"])
        trust = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
        connection = http.client.HTTPSConnection(name, daemon.port, timeout=300, context=trust)
        connection._create_connection = lambda address, *rest: socket.create_connection(
            (daemon.hostname, daemon.port), *rest)
        connection.request("GET", path, headers={"X-aws-proxy-port": "9000", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def visits(self, vm):
        status, text = self.get(vm, **{"X-aws-proxy-auth": self.token(vm)})
        assert status == 200, (status, text)
        return int(text)

    def run(self, payload, **more):
        idle = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
        answer = self.microvms.run_microvm(imageIdentifier=IMAGE, runHookPayload=payload, idlePolicy=idle, **more)
        assert answer["state"] == "PENDING", answer
        return answer["microvmId"]

    def builds(self):
        self.s3.create_bucket(Bucket="code")
        text = {"app_py": (HERE / "app.py").read_text(), "Dockerfile": (HERE / "Dockerfile").read_text()}
        self.upload(app_py=text["app_py"])
        build = self.image(self.create("bare"), "CREATE_FAILED")
        assert build["stateReason"].startswith("ARCHIVE_DOCKERFILE_NOT_FOUND"), build
        self.note(f"an archive without Dockerfile is refused: {build['stateReason']}")
        self.upload(**text)
        hooks = {"port": 9000, "microvmHooks": ENABLED_RUNTIME, "microvmImageHooks": ENABLED_IMAGE}
        self.create("mine", hooks=hooks, environmentVariables={"MINE": "1"})
        build = self.image(IMAGE, "CREATED")
        assert min(build["snapshotBuild"].values()) > 0, build
        said = self.lines("mine", logStreamNamePrefix="build/")
        # Asked twice before the snapshot; the snapshot was restored for the third.
        assert any("heard=1 hook=ready status=503" in line for line in said), said
        assert any("heard=2 hook=ready status=200" in line for line in said), said
        self.note(f"an image is built: {build['snapshotBuild']}")

    def lives(self):
        ingress = [f"arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{word}_INGRESS"
                   for word in ["HTTP", "SHELL"]]
        one, two = self.run("first"), self.run("second", ingressNetworkConnectors=ingress)
        for vm, payload in [(one, "first"), (two, "second")]:
            self.state(vm, "RUNNING")
            self.says(vm, "heard=3 hook=run status=200 version=1.0")
            self.says(vm, f'"runHookPayload":"{payload}"')
        assert len(self.host.vmms()) == 2 and sorted(self.host.networks()) == sorted([one, two])
        self.note("two microVMs run, and each has heard its own payload")
        self.microvms.suspend_microvm(microvmIdentifier=one)
        self.state(one, "SUSPENDED")
        assert len(self.host.vmms()) == 1 and self.host.networks() == [two]
        self.microvms.resume_microvm(microvmIdentifier=one)
        self.state(one, "RUNNING")
        self.says(one, "heard=4 hook=suspend")
        self.says(one, "heard=5 hook=resume")
        self.note("one was suspended and resumed, and counts on")
        return one, two

    def commands(self, vm):
        """The project's own commands, on the host, against the agent in a microVM."""
        rotifer = f"{self.host.directory}/bin/rotifer"
        run = f"{rotifer} exec --state {self.host.state} {vm} -- sh -c 'echo $MINE; id -u >&2; cat; exit 7'"
        said = self.host.shell(f"echo typed | {run} 2>{self.host.directory}/errors; echo $?").split()
        errors = self.host.shell(f"cat {self.host.directory}/errors")
        assert said == ["1", "typed", "7"] and errors.strip() == "0", (said, errors)
        shell = f"echo 'hostname; cat /etc/os-release; exit 3' | {rotifer} shell --state {self.host.state} {vm}; echo $?"
        said = self.host.shell(shell)
        assert "ID=debian" in said and said.splitlines()[-1] == "3", said
        self.note("a command and a shell ran in it: input, both outputs, environment and exit status")

    def endpoints(self, one, two):
        assert [self.visits(one), self.visits(one), self.visits(two)] == [1, 2, 1]
        for token, reason in [({}, "missing"), ({"X-aws-proxy-auth": self.token(two)}, "failed")]:
            status, text = self.get(one, **token)
            assert status == 403 and reason in text, (status, text)
        token = {"X-aws-proxy-auth": self.token(one)}
        self.note("each answers at its endpoint, to its own tokens")
        self.microvms.suspend_microvm(microvmIdentifier=one)
        self.state(one, "SUSPENDED")
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            asked = [pool.submit(self.get, one, **token) for _ in range(10)]
            answers = sorted(int(text) for status, text in (it.result() for it in asked) if status == 200)
        assert answers == list(range(3, 13)), answers
        self.says(one, "heard=7 hook=resume")
        assert not any("heard=8" in line for line in self.lines("mine", logStreamNames=[one]))
        self.note("ten requests at once to a suspended one: it was resumed once, and ten were answered")

    def used(self, vm):
        (found,) = [item for item in self.host.usage() if item["microvmId"] == vm]
        return found

    def bursts(self, vm):
        before = self.used(vm)
        work = "while __import__(\"time\").process_time() < 5: pass"
        self.host.shell(f"{self.host.directory}/bin/rotifer exec --state {self.host.state} {vm} -- python3 -c '{work}'")
        after = self.used(vm)
        ran, used, burst = (after[it] - before[it] for it in ["runningSeconds", "usedVcpuSeconds", "burstVcpuSeconds"])
        # Its memory, 256 MiB, makes an eighth of a processor the baseline.
        assert 1 < burst < used < 1.1 * ran and burst >= used - 0.125 * ran - 0.1, (before, after)
        self.note(f"it works for a while: {used:.2f} s of a processor in {ran:.2f} s, {burst:.2f} above the baseline")

    def bills(self, one, two):
        for vm in [one, two]:
            timeline = self.host.usage(vm)
            for before, line in zip(timeline, timeline[1:]):
                steps = [step["name"] for step in line["steps"] or []]
                launched = ["files", "pager", "network", "process", "snapshot", "hook"]
                woken = ["pager", "network", "process", "snapshot", "hook"]
                wanted = {"Launching": launched, "Resuming": woken, "Waking": woken}.get(before["phase"], [])
                assert steps == wanted, timeline
                assert sum(step["ms"] for step in line["steps"] or []) <= (line["afterMs"] or 0) + 1, timeline
            used = self.used(vm)
            # Its processes had one processor, one after the other.
            assert 0 < used["usedVcpuSeconds"] <= 1.1 * used["runningSeconds"], used
            assert used["usedVcpuSeconds"] <= used["baselineVcpuSeconds"] + used["burstVcpuSeconds"] + 0.1, used
            stored = max(line["storedBytes"] or 0 for line in timeline)
            gib_seconds = 1.001 * stored * used["suspendedSeconds"] / 2**30
            assert stored > 0 and 0 < used["snapshotGiBSeconds"] <= gib_seconds, (used, stored)
        (version,) = self.host.usage("--images")
        directory = f"{self.host.state}/versions/mine/1"
        blocks = self.host.shell(f"stat -c %b {directory}/*").split()
        assert version["storedBytes"] == 512 * sum(map(int, blocks)), (version, blocks)
        self.note(f"a bill could be made: {self.used(one)}, {version}")

    def crashes(self, one, two):
        self.microvms.suspend_microvm(microvmIdentifier=two)
        self.state(two, "SUSPENDED")
        before, used = self.host.vmms(), self.used(one)["usedVcpuSeconds"]
        self.host.kill()
        assert self.host.vmms() == before, "a microVM ended with the daemon"
        self.host.start()
        assert self.state(one, "RUNNING") and self.host.vmms() == before
        # The process is the same, and so is its counter.
        assert used <= self.used(one)["usedVcpuSeconds"] <= 1.1 * self.used(one)["runningSeconds"]
        self.microvms.resume_microvm(microvmIdentifier=two)
        self.state(two, "RUNNING")
        self.says(two, "heard=5 hook=resume")
        self.microvms.suspend_microvm(microvmIdentifier=one)
        self.state(one, "SUSPENDED")
        self.microvms.resume_microvm(microvmIdentifier=one)
        self.state(one, "RUNNING")
        self.says(one, "heard=9 hook=resume")
        assert self.visits(one) == 13
        self.note("the daemon was killed; what ran goes on, what was suspended resumes")
        # In the middle of an action: it is done by the next daemon.
        self.microvms.suspend_microvm(microvmIdentifier=two)
        self.host.kill()
        self.host.start()
        self.state(two, "SUSPENDED")
        self.note("a suspend that the daemon did not live to see is done by the next")

    def ends(self, one, two):
        # A process that dies takes its microVM with it, and nothing else.
        words = ["HTTP_INGRESS", "SHELL_INGRESS"]
        third = self.run("third", ingressNetworkConnectors=[
            f"arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{word}" for word in words])
        self.state(third, "RUNNING")
        self.bursts(third)
        used = self.used(third)["usedVcpuSeconds"]
        (vmm,) = self.host.shell(
            f"for p in {' '.join(self.host.vmms())}; do grep -q {third} /proc/$p/cmdline && echo $p; done; true").split()
        self.host.shell(f"kill -9 {vmm}")
        reason = self.state(third, "TERMINATED")["stateReason"]
        assert reason == "the MicroVM's process has ended", reason
        assert self.used(third)["usedVcpuSeconds"] >= used
        self.bills(one, two)
        for vm in [one, two]:
            self.microvms.terminate_microvm(microvmIdentifier=vm)
            assert self.state(vm, "TERMINATED")["stateReason"] == "Success."
        assert self.host.vmms() == []
        assert self.host.shell(f"ls {self.host.state}/microvms") == "" and self.host.networks() == []
        for name in ["mine", "bare"]:
            arn = IMAGE.replace("mine", name)
            self.microvms.delete_microvm_image(imageIdentifier=arn)
        list_names = lambda: [item["name"] for item in self.microvms.list_microvm_images()["items"]]
        until("the end of the images", list_names, lambda names: names == [])
        assert self.host.shell(f"find {self.host.state}/versions -type f") == ""
        (version,) = self.host.usage("--images")
        assert version["storedBytes"] == 0 and version["storedGiBSeconds"] > 0, version
        self.note("everything was ended and removed; nothing is left")


def main():
    with serving() as host:
        journey = Journey(host)
        journey.connect()
        journey.note("the daemon serves")
        journey.builds()
        one, two = journey.lives()
        journey.commands(two)
        journey.endpoints(one, two)
        # A machine cannot be the world outside of itself.
        networks = None if platform.machine() == "aarch64" else Networks(journey)
        if networks:
            networks.start()
        journey.crashes(one, two)
        if networks:
            networks.after_a_crash()
            networks.end()
        journey.ends(one, two)


main()
