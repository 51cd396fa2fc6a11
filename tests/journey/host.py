"""The host with the daemon on it, as seen from this machine."""

import contextlib
import json
import os
import pathlib
import platform
import shlex
import subprocess
import tempfile
import threading
import time

ARTIFACTS = os.environ["ROTIFER_ARTIFACTS"]
# The machine may be emulated, and busy with other things.
DEADLINE_SECONDS = 900
# This machine, as an emulated host's network has it.
OUTSIDE = "10.0.2.2"
# What the journey's connectors can let through.
SUBNETS = {"subnet-outside": {"allow": [f"{OUTSIDE}/32"]}, "subnet-nothing": {}}
# A disk. (Sockets are below it, whose paths have to be short.)
DISK = "/var/tmp/rotifer-" if platform.machine() == "aarch64" else "/var/rotifer/"


class Host:
    """One daemon with a directory and a port of its own; the directory is removed at the end with all that runs."""

    def __init__(self, kept_store=None):
        """What builds keep is removed, too, unless it has a name: then the next one of this name finds it."""
        self.directory = f"{DISK}j{os.getpid()}"
        self.state = f"{self.directory}/state"
        self.store = f"{DISK}{kept_store}" if kept_store else f"{self.directory}/store"
        self.port = 0
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.daemon = None

    def shell(self, script, check=True):
        """Runs a script on the host; what it prints."""
        command = [os.environ["ROTIFER_X"], "host", "exec", "-n", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
        assert not check or done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    def prepare(self):
        """Copies what is executed or booted again and again away from the share of the checkout; what one build
        reads once stays there."""
        a, d = shlex.quote(ARTIFACTS), self.directory
        self.shell(
            f"rm -rf {d}; mkdir -p {d}/bin && cd {a} && cp rotifer rotifer-vmm Image initramfs.cpio {d}/bin && "
            f"cd build-store && for d in bases layers; do mkdir -p {self.store}/$d; "
            f"ln -sfn $PWD/$d/* {self.store}/$d; done"
        )
        copies = {"vmm": "rotifer-vmm", "kernel": "Image", "initramfs": "initramfs.cpio"}
        builds = {
            **example("builds.json"), **copies, "builder_disk": f"{ARTIFACTS}/debian.ext4",
            "worker": f"{ARTIFACTS}/rotifer-build-worker", "network_file": f"{ARTIFACTS}/network.json",
            "store": self.store, "disk_bytes": 1 << 30, "vcpu_count": 1, "memory_mib": 768,
        }
        networks = {"directory": f"{d}/networks", "pool": 1, "subnets": SUBNETS}
        settings = {"host": {**example("serve.json")["host"], **copies, "networks": networks}}
        for name, value in [("builds.json", builds), ("settings.json", settings)]:
            self.shell(f"echo {shlex.quote(json.dumps(value))} > {d}/bin/{name}")

    def start(self):
        """Starts the daemon and waits until it says that it serves."""
        d = self.directory
        script = (
            f"echo $$ > {d}/daemon.pid; exec {d}/bin/rotifer serve --listen 0.0.0.0:{self.port} --listen-anywhere "
            f"--state {self.state} --config {d}/bin/settings.json"
        )
        self.daemon = subprocess.Popen(
            [os.environ["ROTIFER_X"], "host", "exec", "-n", script],
            stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        timer = threading.Timer(DEADLINE_SECONDS, self.daemon.kill)
        timer.start()
        for line in self.daemon.stdout:
            if line.startswith("endpoint"):
                # The next one is to be found where clients know it.
                self.port = int(line.rsplit(":", 1)[1])
            if line.startswith("for a shell"):
                timer.cancel()
                return
        raise AssertionError(f"the daemon does not serve:\n{self.tail()}")

    def kill(self):
        """As a crash does."""
        self.shell(f"kill -9 $(cat {self.directory}/daemon.pid)")
        self.daemon.wait(DEADLINE_SECONDS)

    def vmms(self):
        """The numbers of the VMMs' processes, the pager's not among them."""
        # (The script's own command line must not match.)
        script = (
            "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q "
            f"'api-soc[k] {self.state}/' && echo ${{p#/proc/}}; done; true"
        )
        return sorted(self.shell(script).split())

    def variables(self):
        """What clients need, with the authority's certificate in a file of this machine."""
        text = self.shell(f"{self.directory}/bin/rotifer env --state {self.state}")
        pairs = (line[7:].split("=", 1) for line in text.splitlines() if line.startswith("export "))
        variables = {name: value.strip("'") for name, value in pairs}
        forward = [os.environ["ROTIFER_X"], "host", "forward", str(self.port)]
        address = subprocess.run(forward, capture_output=True, text=True, check=True).stdout.strip()
        authority = tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False)
        authority.write(self.shell(f"cat {self.state}/ca.pem"))
        authority.close()
        variables["AWS_ENDPOINT_URL"] = f"https://{address}"
        variables["AWS_CA_BUNDLE"] = variables["CURL_CA_BUNDLE"] = authority.name
        return variables

    def usage(self, *words):
        """What `rotifer usage` lists."""
        command = f"{self.directory}/bin/rotifer usage {' '.join(words)} --json --state {self.state}"
        return [json.loads(line) for line in self.shell(command).splitlines()]

    def networks(self):
        """The networks that belong to somebody."""
        return self.shell(f"ls {self.directory}/networks/networks").replace(".json", "").split()

    def tail(self):
        """The end of what the daemon logged."""
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-40:])

    def stop(self):
        """Ends everything that was started, and removes it."""
        pids = f"$(cat {self.directory}/daemon.pid) {' '.join(self.vmms())}"
        pager = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q " \
            f"'pager --socke[t] {self.state}/' && kill -9 ${{p#/proc/}}; done"
        # Networks are kept by mounts, and end with them.
        mounts = f"for m in $(cut -d' ' -f2 /proc/mounts | grep ^{self.directory}/ | sort -r); do umount $m; done"
        self.shell(f"kill -9 {pids}; {pager}; {mounts}; rm -rf {self.directory}", check=False)
        if self.daemon:
            self.daemon.wait(DEADLINE_SECONDS)


def example(name):
    """The settings that users begin with."""
    return json.loads((pathlib.Path(__file__).parent.parent.parent / "examples" / name).read_text())


@contextlib.contextmanager
def serving(**settings):
    """A host whose daemon serves. If something fails, what the daemon logged is shown."""
    host = Host(**settings)
    try:
        host.prepare()
        host.start()
        yield host
    except BaseException:
        print(host.tail())
        raise
    finally:
        host.stop()


def until(what, ask, is_it):
    """Asks the API until the answer is what is awaited: it has no way to wait for an event."""
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        answer = ask()
        if is_it(answer):
            return answer
        assert time.monotonic() < end, f"{what} did not come: {answer}"
        time.sleep(0.3)
