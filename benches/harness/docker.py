"""A Docker daemon of the benchmark's own, started as the tests start theirs."""

import os
import subprocess
from pathlib import Path

from .measure import Daemon, Failed

WITH_DOCKER = Path(__file__).parents[2] / "tests/setup/with-docker"
# Says where the daemon listens, and then stays until nobody writes to it any more.
STAY = 'echo "$DOCKER_HOST"; exec cat'


def client():
    """Debian's own client, which has BuildKit without a plug-in, before any other."""
    return "/usr/bin/docker" if os.access("/usr/bin/docker", os.X_OK) else "docker"


class Docker:
    def __init__(self):
        self.keeper = None
        self.home = None
        self.daemon = None

    def start(self):
        if self.keeper:
            return
        self.keeper = subprocess.Popen(
            [WITH_DOCKER, "sh", "-c", STAY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        address = self.keeper.stdout.readline().strip()
        if not address:
            why = self.keeper.communicate()[1].strip()
            self.keeper = None
            raise Failed(why)
        self.home = Path(address.removeprefix("unix://")).parent
        self.daemon = Daemon(int((self.home / "pid").read_text()))

    def stop(self):
        if self.keeper:
            self.keeper.communicate()
            self.keeper = None

    def environment(self):
        return {"DOCKER_HOST": f"unix://{self.home}/docker.sock", "DOCKER_CONFIG": f"{self.home}/config"}
