"""A small web app that counts its visits: what runs in the microVM of `./x demo`."""

import itertools
import os
import platform
import time

from flask import Flask, jsonify, render_template_string, request

app = Flask(__name__)
started = time.monotonic()
visits = itertools.count(1)

PAGE = """<!doctype html>
<title>Rotifer</title>
<h1>Visit number {{ visits }}</h1>
<p>Served by process {{ pid }} on Linux {{ kernel }} ({{ machine }}), {{ uptime_s }} s after it started.</p>
"""


def visit():
    return {
        "visits": next(visits),
        "pid": os.getpid(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "uptime_s": round(time.monotonic() - started, 3),
    }


@app.get("/")
def index():
    """JSON, or a page for a browser. Counting needs no lock: `next` of a count is atomic."""
    answer = visit()
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return render_template_string(PAGE, **answer)
    return jsonify(answer)
