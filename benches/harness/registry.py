"""A docker-registry on a free port of the loopback, and what it takes by itself for given blobs."""

import hashlib
import http.client
import json
import os
import queue
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

from .measure import Failed

CONFIGURATION = """\
version: 0.1
log:
  level: error
storage:
  filesystem:
    rootdirectory: {storage}
http:
  addr: 127.0.0.1:{port}
"""
MANIFESTS = ", ".join(
    [
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
    ]
)


class Registry:
    """Starts on first use; `empty` is the only way to lose what was pushed to it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.storage = self.folder / "storage"
        self.process = None
        self.port = None

    def start(self):
        if self.process:
            return
        for _ in range(10):
            self.port = self.port or free_port()
            self.folder.mkdir(parents=True, exist_ok=True)
            configuration = self.folder / "registry.yml"
            configuration.write_text(CONFIGURATION.format(storage=self.storage, port=self.port))
            with open(self.folder / "log", "ab") as log:
                self.process = subprocess.Popen(
                    ["docker-registry", "serve", configuration],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if self.answers():
                return
            # Somebody else may have taken the port meanwhile.
            self.stop()
            self.port = None
        raise Failed(f"docker-registry does not start; see {self.folder / 'log'}")

    def answers(self):
        deadline = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.get("/v2/")
                return True
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
        return False

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def empty(self):
        self.stop()
        shutil.rmtree(self.storage, ignore_errors=True)
        self.start()

    def reference(self, repository):
        self.start()
        return f"127.0.0.1:{self.port}/{repository}:latest"

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers={"Accept": MANIFESTS})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def manifest(self, repository):
        status, body = self.get(f"/v2/{repository}/manifests/latest")
        if status != 200:
            raise Failed(f"the registry answers {status} to a GET of the manifest of {repository}")
        return body

    def manifest_digest(self, repository):
        return f"sha256:{hashlib.sha256(self.manifest(repository)).hexdigest()}"

    def layers(self, repository):
        """How many layers the image has there, and their bytes."""
        layers = json.loads(self.manifest(repository))["layers"]
        return len(layers), sum(layer["size"] for layer in layers)

    def blobs(self):
        """The file of every blob that it keeps, by digest."""
        files = self.storage.glob("docker/registry/v2/blobs/sha256/*/*/data")
        return {f"sha256:{file.parent.name}": file for file in files}


class Rehearsal:
    """What the registry takes for the blobs of a push, sent by somebody who has nothing else to do.

    They are sent twice, each time to an empty registry: one after the other, and four at once. The
    quicker one is the registry's own time.
    """

    def __init__(self, folder):
        self.registry = Registry(Path(folder) / "registry")
        self.kept = Path(folder) / "blobs"

    def time(self, blobs):
        """Takes pairs of digest and file, and gives seconds; none for no blobs."""
        if not blobs:
            return None
        shutil.rmtree(self.kept, ignore_errors=True)
        self.kept.mkdir(parents=True)
        files = []
        for digest, file in blobs:
            # A name of its own for the same bytes: they stay in the page cache.
            os.link(file, self.kept / digest)
            files.append((digest, self.kept / digest))
        # The largest first, as whoever wants to be done early sends them.
        files.sort(key=lambda pair: pair[1].stat().st_size, reverse=True)
        seconds = {way: self.send(files, lanes) for way, lanes in [("one_by_one", 1), ("four_at_once", 4)]}
        self.registry.stop()
        return {
            **seconds,
            "blobs": len(files),
            "bytes": sum(file.stat().st_size for _, file in files),
        }

    def close(self):
        self.registry.stop()
        shutil.rmtree(self.kept.parent, ignore_errors=True)

    def send(self, files, lanes):
        self.registry.empty()
        os.sync()
        waiting, failures = queue.SimpleQueue(), []
        for pair in files:
            waiting.put(pair)

        def lane():
            connection = http.client.HTTPConnection("127.0.0.1", self.registry.port, timeout=600)
            try:
                while True:
                    upload(connection, *waiting.get_nowait())
            except queue.Empty:
                pass
            except (OSError, http.client.HTTPException, Failed) as failure:
                failures.append(failure)
            finally:
                connection.close()

        started = time.monotonic()
        threads = [threading.Thread(target=lane) for _ in range(lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - started
        if failures:
            raise Failed(f"a blob could not be sent to the registry: {failures[0]}")
        return took


def upload(connection, digest, path):
    """One POST and one PUT, the bytes copied by the kernel."""
    connection.request("POST", "/v2/rehearsal/blobs/uploads/", headers={"Content-Length": "0"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 202:
        raise Failed(f"the registry answers {answer.status} to a POST")
    location = urllib.parse.urlsplit(answer.headers["Location"])
    query = f"{location.query}&" if location.query else ""
    connection.putrequest("PUT", f"{location.path}?{query}digest={urllib.parse.quote(digest)}")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(path.stat().st_size))
    connection.endheaders()
    with open(path, "rb") as file:
        connection.sock.sendfile(file)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 201:
        raise Failed(f"the registry answers {answer.status} to the PUT of {digest}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
