#!/usr/bin/env python3
"""A Lambda Runtime API for one invocation.

    tests/lambda-base/runtime_api.py --port-file FILE [--event JSON] [--timeout SECONDS] [--hold]

Listens on a free port of 127.0.0.1 and writes the port's number to FILE once it does. The first
`next` gets the event; later ones wait, as in an idle Lambda. When the runtime has posted a response
or an error, one JSON document is printed and the program ends:

    {"outcome": "response", "request_id": "…", "content_type": "…", "error_type": null, "body": …}

`outcome` is `response`, `error`, `init-error` or `timeout`; `body` is the posted JSON, or its text
where it is none; `error_type` is the header with which a runtime names its error. The status is 0
for a response, 1 for an error of either kind, 2 when nothing came in time. With `--hold` the program
goes on until its standard input ends, so that the runtime's next `next` waits instead of failing.
"""

import argparse
import http.server
import json
import os
import pathlib
import sys
import threading
import time
import uuid

PREFIX = "/2018-06-01/runtime"
ARN = "arn:aws:lambda:eu-west-1:000000000000:function:under-test"


class Invocation:
    """The one event, and what became of it."""

    def __init__(self, event: bytes, timeout: float):
        self.event = event
        self.timeout = timeout
        self.request_id = str(uuid.uuid4())
        self.taken = False
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.result = None

    def take(self) -> bool:
        """Whether this caller is the first to ask for the event."""
        with self.lock:
            first, self.taken = not self.taken, True
            return first

    def settle(self, outcome, headers, body: bytes) -> bool:
        """Notes what the runtime posted; false if it had posted before."""
        try:
            value = json.loads(body)
        except ValueError:
            value = body.decode("utf-8", "replace")
        with self.lock:
            if self.result is not None:
                return False
            self.result = {
                "outcome": outcome,
                "request_id": self.request_id,
                "content_type": headers.get("Content-Type"),
                "error_type": headers.get("Lambda-Runtime-Function-Error-Type"),
                "body": value,
            }
            return True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    invocation: Invocation

    def do_GET(self):
        if self.path != f"{PREFIX}/invocation/next":
            self.answer(404, {"errorType": "NotFound", "errorMessage": self.path})
            return
        invocation = self.invocation
        if not invocation.take():
            invocation.done.wait()
            self.close_connection = True
            return
        deadline = int((time.time() + invocation.timeout) * 1000)
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(deadline),
            "Lambda-Runtime-Invoked-Function-Arn": ARN,
            "Lambda-Runtime-Trace-Id": "Root=1-00000000-000000000000000000000000;Sampled=0",
        }
        self.answer(200, invocation.event, headers)

    def do_POST(self):
        body = self.body()
        invocation = self.invocation
        mine = f"{PREFIX}/invocation/{invocation.request_id}"
        if self.path == f"{PREFIX}/init/error":
            outcome = "init-error"
        elif self.path == f"{mine}/response":
            outcome = "response"
        elif self.path == f"{mine}/error":
            outcome = "error"
        elif self.path.startswith(f"{PREFIX}/invocation/"):
            self.answer(400, {"errorType": "InvalidRequestID", "errorMessage": self.path})
            return
        else:
            self.answer(404, {"errorType": "NotFound", "errorMessage": self.path})
            return
        if (outcome != "init-error" and not invocation.taken) or not invocation.settle(
            outcome, self.headers, body
        ):
            self.answer(403, {"errorType": "InvalidStateTransition", "errorMessage": self.path})
            return
        self.answer(202, {"status": "OK"})
        invocation.done.set()

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b"\n", b""):
            pass
        return body

    def answer(self, status, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port-file", type=pathlib.Path, required=True)
    parser.add_argument("--event", default="{}", help="the event, as JSON")
    parser.add_argument("--timeout", type=float, default=60, help="in seconds")
    parser.add_argument("--hold", action="store_true", help="stay until standard input ends")
    options = parser.parse_args()

    invocation = Invocation(options.event.encode(), options.timeout)
    Handler.invocation = invocation
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    part = options.port_file.with_name(options.port_file.name + ".part")
    part.write_text(str(server.server_address[1]))
    part.rename(options.port_file)

    invocation.done.wait(options.timeout)
    invocation.settle("timeout", {}, b"null")
    print(json.dumps(invocation.result), flush=True)
    status = {"response": 0, "timeout": 2}.get(invocation.result["outcome"], 1)
    if options.hold:
        sys.stdin.read()
    # Threads that hold a waiting `next` do not keep the program.
    os._exit(status)


main()
