"""What a figure was measured on."""

import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path


def describe():
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory": memory(),
        "kernel": re.match(r"[0-9.]*", platform.release()).group().rstrip("."),
        "system": system(),
    }


def name():
    """Such as `epyc-2core`. It is what the machine is, never what it is called."""
    vague = {"amd", "intel", "r", "tm", "cpu", "processor", "core", "with", "gen", "th"}
    words = re.findall(r"[a-z0-9]+", re.sub(r"@.*|\d+-core", "", processor().lower()))
    words = [word for word in words if word not in vague][:3] or ["unknown"]
    return f"{'-'.join(words)}-{os.cpu_count()}core"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def memory():
    return int(Path("/proc/meminfo").read_text().split()[1]) * 1024


def system():
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return platform.system()
    return dict(line.split("=", 1) for line in lines if "=" in line).get("PRETTY_NAME", "").strip('"')


def version(command, pattern=r"\d+(\.\d+)+\S*"):
    """The first thing that looks like a version in what a command says."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, said.stdout + said.stderr)
    return found.group().rstrip(",") if found else None


def identity(program, repository):
    """Which tierce it is: two files of one digest are the same program.

    `repository` is the checkout that it was built from, if that is known.
    """
    with open(program, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not repository:
        return {"sha256": digest, "commit": None}
    command = ["git", "-C", repository, "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True)
    return {"sha256": digest, "commit": described.stdout.strip() or None}
