"""The journey's app: hears its hooks, counts what it hears, and says so. Visitors are counted, too."""

import http.server
import os
import threading
import urllib.error
import urllib.parse
import urllib.request

METADATA = "http://169.254.169.254/latest"

heard = 0
visits = 0
one_at_a_time = threading.Lock()


class Hooks(http.server.BaseHTTPRequestHandler):
    """Each hook is one more; the count is in memory only."""

    def do_POST(self):
        global heard
        heard += 1
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        name = self.path.rsplit("/", 1)[1]
        # The first question comes too early.
        status = 503 if heard == 1 else 200
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()
        version = os.environ["AWS_LAMBDA_MICROVM_IMAGE_VERSION"]
        print(f"heard={heard} hook={name} status={status} version={version} body={body}", flush=True)

    def do_GET(self):
        path, _, query = self.path.partition("?")
        text = {"/reach": reach, "/credentials": credentials}.get(path, visit)(query).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def visit(_):
    global visits
    with one_at_a_time:
        visits += 1
        return str(visits)


def reach(query):
    """What is at a URL, or why nothing is."""
    try:
        return ask(urllib.parse.parse_qs(query)["url"][0])
    except urllib.error.URLError as error:
        return type(error.reason).__name__


def credentials(_):
    """As the SDKs ask for them (IMDSv2)."""
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = {"X-aws-ec2-metadata-token": ask(f"{METADATA}/api/token", ttl, "PUT")}
    role = ask(f"{METADATA}/meta-data/iam/security-credentials/", token)
    return ask(f"{METADATA}/meta-data/iam/security-credentials/{role}", token)


def ask(url, headers={}, method="GET"):
    request = urllib.request.Request(url, headers=headers, method=method)
    return urllib.request.urlopen(request, timeout=120).read().decode()


threading.Thread(target=print, args=("the app has started",)).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 9000), Hooks).serve_forever()
