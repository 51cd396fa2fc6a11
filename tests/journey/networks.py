"""What the app in a microVM reaches, and as whom: its connectors say the one, its execution role the other.

The internet of this journey is a server on this machine. An emulated host's microVMs reach it at the address that QEMU
gives the machine outside; that is a private one, which only a connector that names it lets through.
"""

import http.server
import json
import os
import threading
import urllib.parse

import boto3

from host import OUTSIDE, until

PAGE = "the world outside"
REFUSED = "ConnectionRefusedError"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{
        "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "lambda.amazonaws.com"},
    }],
}


class Outside(http.server.BaseHTTPRequestHandler):
    """Has one page."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, *_):
        pass


class Networks:
    """One microVM whose way out changes while it runs."""

    def __init__(self, journey):
        self.journey = journey
        self.core, self.iam = boto3.client("lambda-core"), boto3.client("iam")
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Outside)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def start(self):
        journey = self.journey
        configuration = {
            "SubnetIds": ["subnet-nothing"], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"],
        }
        self.configuration = configuration
        role = self.iam.create_role(RoleName="App", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
        unknown = self.create("unknown", {**configuration, "SubnetIds": ["subnet-mars"]}, role)
        assert self.settled(unknown)["State"] == "FAILED" and "subnet-mars" in self.settled(unknown)["StateReason"]
        self.core.delete_network_connector(Identifier=unknown)
        self.connector = self.create("way-out", configuration, role)
        assert self.settled(self.connector)["State"] == "ACTIVE"
        arn = self.core.get_network_connector(Identifier=self.connector)["Arn"]
        self.vm = journey.run("networked", egressNetworkConnectors=[arn], executionRoleArn=role)
        journey.state(self.vm, "RUNNING")
        assert self.reached() == REFUSED
        self.let("subnet-outside")
        assert self.reached() == PAGE
        journey.note("a connector's subnet is what a microVM reaches, also when it changes")
        assert self.caller().startswith("arn:aws:sts::000000000000:assumed-role/App/"), self.caller()
        journey.note("the app has its execution role's credentials")
        journey.microvms.suspend_microvm(microvmIdentifier=self.vm)
        journey.state(self.vm, "SUSPENDED")
        assert self.reached() == PAGE
        journey.note("it reaches the same when it wakes")

    def after_a_crash(self):
        """The daemon is another one now; the microVM is not."""
        assert self.reached() == PAGE
        assert self.caller().startswith("arn:aws:sts::000000000000:assumed-role/App/")
        self.let("subnet-nothing")
        assert self.reached() == REFUSED
        self.journey.note("after the daemon's end the network is as it was, and follows its connector")

    def end(self):
        self.journey.microvms.terminate_microvm(microvmIdentifier=self.vm)
        self.journey.state(self.vm, "TERMINATED")
        self.core.delete_network_connector(Identifier=self.connector)
        self.server.shutdown()

    def create(self, name, configuration, role):
        answer = self.core.create_network_connector(
            Name=name, Configuration={"VpcEgressConfiguration": configuration}, OperatorRole=role, ClientToken=name)
        return answer["Id"]

    def let(self, subnet):
        """Changes what the connector lets through, and waits until it does."""
        configuration = {"VpcEgressConfiguration": {**self.configuration, "SubnetIds": [subnet]}}
        self.core.update_network_connector(Identifier=self.connector, Configuration=configuration)
        answer = self.settled(self.connector)
        assert answer["LastUpdateStatus"] == "Successful", answer

    def settled(self, connector):
        get = lambda: self.core.get_network_connector(Identifier=connector)
        is_settled = lambda it: it["State"] != "PENDING" and it.get("LastUpdateStatus") != "InProgress"
        return until("the connector", get, is_settled)

    def ask(self, path):
        journey = self.journey
        status, text = journey.get(self.vm, path, **{"X-aws-proxy-auth": journey.token(self.vm)})
        assert status == 200, (status, text)
        return text

    def reached(self):
        address = f"{OUTSIDE}:{self.server.server_port}"
        return self.ask(f"/reach?{urllib.parse.urlencode({'url': f'http://{address}/'})}")

    def caller(self):
        """Whom the credentials that the guest has belong to."""
        found = json.loads(self.ask("/credentials"))
        session = boto3.Session(found["AccessKeyId"], found["SecretAccessKey"], found["Token"])
        return session.client("sts", verify=os.environ["AWS_CA_BUNDLE"]).get_caller_identity()["Arn"]
