"""The order of things: scenario by scenario, everybody in turns, a line for each run."""

import os
import shutil
import sys
import time

from . import measure, trees
from .contenders import ALL, COLD

# Whoever takes longer than this at first is asked fewer times.
SLOW = 20.0
# Settings of the person who measures must reach nobody who is measured.
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


class OutOfTime(Exception):
    """The bound on the whole measurement was reached."""


class Campaign:
    def __init__(self, folder, record, *, runs, slow_runs, deadline):
        self.folder = folder
        self.record = record
        self.runs = runs
        self.slow_runs = slow_runs
        self.deadline = deadline
        self.log = folder / "log"
        self.number = 0
        self.digests = {}
        # Who failed, and was asked no more.
        self.failed = {}

    def measure(self, tree, original, contenders, scenarios):
        """All scenarios of one tree."""
        say(f"{tree}: copying {original.name}")
        copy = trees.WorkingCopy(tree, original, self.folder / "contexts" / tree)
        self.record.tree(tree, copy.describe())
        contenders = [contender for contender in contenders if tree in (contender.trees or [tree])]
        for contender in contenders:
            contender.forget()
            self.record.contender(contender)
        for scenario in ALL:
            if scenario in scenarios and position_of(scenario) in (None, *copy.recipe.positions):
                asked = [contender for contender in contenders if scenario in contender.scenarios]
                self.scenario(tree, copy, scenario, asked)
        shutil.rmtree(copy.context)

    def scenario(self, tree, copy, scenario, contenders):
        copy.read()
        if scenario not in COLD:
            for contender in contenders:
                if contender.knows != copy.state and contender not in self.failed:
                    say(f"{tree}, {scenario}: {contender.name} gets to know the tree")
                    self.once(copy, contender)
        contenders = [contender for contender in contenders if contender not in self.failed]
        left = {contender: contender.most_runs or self.runs for contender in contenders}
        number = 0
        while any(left.values()):
            number += 1
            change(copy, scenario)
            # Whoever runs first after the tree was touched, or after a long run of another, is not
            # always the same.
            for contender in contenders if number % 2 else reversed(contenders):
                if not left[contender]:
                    continue
                if scenario in COLD:
                    contender.forget()
                facts = self.once(copy, contender)
                left[contender] -= 1
                if not facts:
                    left[contender] = 0
                    continue
                if number == 1 and facts["wall"] > SLOW:
                    left[contender] = min(left[contender], self.slow_runs - 1)
                facts.update(self.digest_held(contender, scenario, facts))
                self.record.run({"tree": tree, "scenario": scenario, "contender": contender.name, **facts})
                say(f"{tree}, {scenario}, {number}: {contender.name} {facts['wall']:.3f} s")

    def once(self, copy, contender):
        """One run, and all that is known of it; nothing when it failed."""
        if time.monotonic() > self.deadline:
            raise OutOfTime
        try:
            return self.attempt(copy, contender)
        except measure.Failed as failure:
            say(f"FAILED, and is asked no more: {contender.name}: {failure}")
            self.failed[contender] = failure
            return None

    def attempt(self, copy, contender):
        self.number += 1
        self.log.mkdir(exist_ok=True)
        contender.before(copy)
        daemon = contender.daemon()
        if daemon:
            daemon.forget_peak()
        os.sync()
        daemon_cpu = daemon.cpu() if daemon else 0.0
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        cost = measure.run(
            contender.command(copy),
            {**environment, "LC_ALL": "C.UTF-8", **contender.environment()},
            self.log / f"{self.number}",
        )
        daemon_cpu = daemon.cpu() - daemon_cpu if daemon else 0.0
        contender.knows = copy.state
        return {
            "goes": contender.goes,
            "wall": round(cost.wall, 4),
            "cpu": round(cost.cpu + daemon_cpu, 4),
            "peak": max(cost.peak, daemon.peak() if daemon else 0),
            "elsewhere": round(max(0.0, cost.elsewhere - daemon_cpu), 2),
            **contender.layers(cost),
            **contender.after(),
        }

    def digest_held(self, contender, scenario, facts):
        """What only looks different must give the image that was there before."""
        before, now = self.digests.get(contender), facts.get("digest")
        self.digests[contender] = now
        if scenario in ("no-op", "fresh") and before and before != now:
            say(f"WARNING: {contender.name}: {before} became {now} though nothing changed")
            return {"moved": True}
        return {}


def change(copy, scenario):
    position = position_of(scenario)
    if position:
        copy.edit(position)
    elif scenario == "fresh":
        copy.check_out_again()


def position_of(scenario):
    return scenario.removeprefix("change-") if scenario.startswith("change-") else None


def say(text):
    print(text, file=sys.stderr, flush=True)
