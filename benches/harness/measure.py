"""One run of one command: how long it took, what it cost, and who else was at work meanwhile."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TIME = "/usr/bin/time"
TICKS = os.sysconf("SC_CLK_TCK")
# No run of anything is waited for longer.
LIMIT = 1800


class Failed(Exception):
    """A command that did not do what it was started for."""


@dataclass(frozen=True)
class Cost:
    """Seconds, and bytes at the peak of the largest single process."""

    wall: float
    cpu: float
    peak: int
    # Seconds of processor time that went to others meanwhile, daemons that worked for us included.
    elsewhere: float
    output: str


def run(command, environment, log):
    """Runs a command and everything that it starts.

    The processor time is that of all processes which were waited for. The peak is measured by GNU
    time: to a process that Python starts itself, Python's own memory counts.
    """
    peak_file = Path(f"{log}.peak")
    output_file = Path(f"{log}.output")
    with open(log, "wb") as words, open(output_file, "wb") as output:
        busy = busy_seconds()
        started = time.monotonic()
        process = subprocess.Popen(
            [TIME, "--quiet", "--format=%M", f"--output={peak_file}", "--", *map(str, command)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=words,
            start_new_session=True,
        )
        status, usage = wait(process)
        wall = time.monotonic() - started
        busy = busy_seconds() - busy
    if status != 0:
        raise Failed(f"{describe(command)} ended with status {status}\n{last_words(log, output_file)}")
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(
        wall=wall,
        cpu=cpu,
        peak=int(peak_file.read_text().split()[-1]) * 1024,
        elsewhere=max(0.0, busy - cpu),
        output=output_file.read_text(errors="replace"),
    )


def wait(process):
    """Waits as `wait4` does; what takes too long, or is interrupted, ends with all that it started."""

    def end():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    timer = threading.Timer(LIMIT, end)
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        end()
        process.wait()
        raise
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage


def describe(command):
    text = " ".join(map(str, command))
    return f"`{text if len(text) < 300 else text[:300] + '…'}`"


def last_words(*files):
    lines = [line for file in files for line in Path(file).read_text(errors="replace").splitlines()]
    return "\n".join(f"    {line}" for line in lines[-8:])


def busy_seconds():
    """Processor time of the whole machine since it started, what a hypervisor took included."""
    user, nice, system, _, _, interrupt, soft, stolen = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupt + soft + stolen) / TICKS


class Daemon:
    """A daemon and all that descends from it, asked what it has cost."""

    def __init__(self, process):
        self.process = process

    def family(self):
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            fields = fields_of(stat)
            if fields:
                parents[int(stat.parent.name)] = int(fields[1])
        family = {self.process}
        while True:
            more = {child for child, parent in parents.items() if parent in family} - family
            if not more:
                return family
            family |= more

    def cpu(self):
        """Seconds so far. A child that outlived its parent and then ended is not in it."""
        ticks = 0
        for process in self.family():
            fields = fields_of(Path(f"/proc/{process}/stat"))
            ticks += sum(map(int, fields[11:15])) if fields else 0
        return ticks / TICKS

    def forget_peak(self):
        for process in self.family():
            try:
                Path(f"/proc/{process}/clear_refs").write_text("5")
            except OSError:
                pass

    def peak(self):
        """Bytes of the largest of its processes since the last `forget_peak`."""
        peaks = [0]
        for process in self.family():
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                continue
            peaks += [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
        return max(peaks)


def fields_of(stat):
    """The fields of a process's `stat` behind its name, which may have blanks: state, parent, …"""
    try:
        return stat.read_text(errors="replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
