"""The journey's app: hears its hooks, counts what it hears, and says so. Visitors are counted, too."""

import http.server
import os
import threading

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
        global visits
        with one_at_a_time:
            visits += 1
            text = str(visits).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


threading.Thread(target=print, args=("the app has started",)).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 9000), Hooks).serve_forever()
