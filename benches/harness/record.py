"""Raw runs on disk: one file for each machine and day, written again after every run.

    {"machine": {…}, "measurements": [{"started": …, "tierce": {…}, "tools": {…}, "settings": {…}, …,
                                       "trees": {…}, "runs": [{…}, …]}]}

Several measurements of one day go into one file, so that a long one can be made in pieces. Nothing in
it says what a machine is called or where its folders are.
"""

import json
from pathlib import Path


class Record:
    def __init__(self, path, machine, facts):
        """`path` is none when nothing is to be kept."""
        self.path = path and Path(path)
        self.content = {"machine": machine, "measurements": []}
        if self.path and self.path.is_file():
            self.content = json.loads(self.path.read_text())
        self.measurement = {**facts, "not_counted": {}, "trees": {}, "runs": []}
        self.content["measurements"].append(self.measurement)

    def contender(self, contender):
        if contender.not_counted:
            self.measurement["not_counted"][contender.name] = contender.not_counted

    def tree(self, name, facts):
        self.measurement["trees"][name] = facts

    def run(self, facts):
        self.measurement["runs"].append(facts)
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            part.write_text(text_of(self.content))
            part.replace(self.path)


def text_of(content):
    """JSON with a line for each run, so that a difference can be read."""
    measurements = []
    for measurement in content["measurements"]:
        facts = {key: value for key, value in measurement.items() if key != "runs"}
        head = ",\n   ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
        runs = ",\n    ".join(json.dumps(run) for run in measurement["runs"])
        measurements.append(f'  {{{head},\n   "runs": [\n    {runs}\n   ]}}')
    joined = ",\n".join(measurements)
    return f'{{"machine": {json.dumps(content["machine"])},\n "measurements": [\n{joined}\n ]}}\n'


def read(paths):
    """The runs of some files that can be compared: those of the tierce that was measured last.

    Gives them with machine, trees and tools, and how many runs of another tierce were left out.
    """
    contents = [json.loads(Path(path).read_text()) for path in paths]
    measurements = [each for content in contents for each in content["measurements"]]
    measurements.sort(key=lambda measurement: measurement["started"])
    current = measurements[-1]["tierce"]["sha256"]
    same = [each for each in measurements if each["tierce"]["sha256"] == current]
    result = {"machine": contents[-1]["machine"], "tierce": same[-1]["tierce"]}
    for key in ("trees", "tools", "not_counted"):
        result[key] = {name: value for each in same for name, value in each[key].items()}
    result["runs"] = [run for measurement in same for run in measurement["runs"]]
    result["left_out"] = sum(len(each["runs"]) for each in measurements) - len(result["runs"])
    return result
