"""Tables of medians, ratios to tierce in the same measurement, and what the project asks of itself."""

from statistics import median

from .contenders import ALL, GZIP, GZIP_1, PIGZ, PUSH, SINK

TIERCE, SMALL, PUSHED, PUSHED_WHOLE = "tierce", "tierce, small", "tierce --push", "tierce --push, one layer"
CHANGES = ("change-early", "change-middle", "change-late")
# Others may take this share of the processors before a figure is called disturbed.
QUIET = 0.1


def own(contender):
    return contender.startswith("tierce")


class Group:
    """All runs of one contender in one scenario of one tree."""

    def __init__(self, runs):
        self.runs = runs

    def median(self, key):
        return median(run[key] for run in self.runs)

    def extent(self, key):
        return min(run[key] for run in self.runs), max(run[key] for run in self.runs)

    def registry_alone(self):
        """The median of what the registry took by itself, or none when nothing was sent."""
        alone = [run["registry_alone"] for run in self.runs if run.get("registry_alone")]
        return median(min(each["one_by_one"], each["four_at_once"]) for each in alone) if alone else None


class Results:
    def __init__(self, read):
        self.read = read
        runs = {}
        for run in read["runs"]:
            runs.setdefault((run["tree"], run["scenario"], run["contender"]), []).append(run)
        self.groups = {key: Group(group) for key, group in runs.items()}

    def group(self, tree, scenario, contender):
        return self.groups.get((tree, scenario, contender))

    def trees(self):
        return list(dict.fromkeys(tree for tree, _, _ in self.groups))

    def contenders(self, tree, goes):
        """In the order in which they were first measured, tierce first."""
        runs = [run for run in self.read["runs"] if (run["tree"], run["goes"]) == (tree, goes)]
        names = dict.fromkeys(run["contender"] for run in runs)
        return sorted(names, key=lambda name: not own(name))


def text(read):
    results = Results(read)
    lines = heading(read)
    for tree in results.trees():
        lines += tables(results, tree)
    lines += notes(read)
    lines += [*targets(results), *disturbance(results, read["machine"]["processors"])]
    return "\n".join(lines)


def heading(read):
    machine, tierce = read["machine"], read["tierce"]
    lines = [
        f"{machine['processor']}, {machine['processors']} processors, {machine['memory'] / 2**30:.0f} GiB, "
        f"Linux {machine['kernel']}, {machine['system']}",
        f"tierce {tierce['commit'] or 'of unknown commit'} ({tierce['sha256'][:12]}); "
        + ", ".join(f"{name} {version}" for name, version in read["tools"].items() if version),
    ]
    if read["left_out"]:
        lines.append(f"{read['left_out']} runs of another tierce are left out")
    return lines


def tables(results, tree):
    facts = results.read["trees"][tree]
    lines = ["", f"{tree}: {facts['files']} files, {facts['bytes'] / 1e6:.0f} MB"]
    for goes, reference in ((SINK, TIERCE), (PUSH, PUSHED)):
        names = results.contenders(tree, goes)
        for scenario in ALL:
            rows = [row(results, tree, scenario, name, reference) for name in names]
            rows = [cells for cells in rows if cells]
            # Peers that are the same in every scenario do not make a table by themselves.
            if any(results.group(tree, scenario, name) for name in names):
                lines += ["", *align(header(scenario, goes), rows)]
    return lines


def notes(read):
    return [
        "",
        "Wall and CPU are medians; CPU is of all processes, the peak of the largest one in any run.",
        *(f"Not in the CPU of {name}: {what}." for name, what in read["not_counted"].items()),
    ]


def header(scenario, goes):
    figures = ["runs", "wall s", "(min – max)", "CPU s", "peak MB", "layers MB", "tierce / it"]
    return [f"{scenario}, {goes}", *figures, *(["registry alone"] if goes == PUSH else [])]


def row(results, tree, scenario, name, reference):
    group, same_as_cold = results.group(tree, scenario, name), False
    if not group and not own(name):
        # It remembers nothing.
        group, same_as_cold = results.group(tree, "cold", name), True
    if not group:
        return None
    ours = results.group(tree, scenario, reference)
    low, high = group.extent("wall")
    layers = {run["layers"] for run in group.runs}
    ratio = "" if not ours or name == reference else shorten(ours.median("wall") / group.median("wall"))
    cells = [
        f"{name}{' (as cold)' if same_as_cold else ''}",
        str(len(group.runs)),
        seconds(group.median("wall")),
        f"({seconds(low)} – {seconds(high)})",
        seconds(group.median("cpu")),
        f"{group.extent('peak')[1] / 1e6:.0f}",
        f"{group.median('size') / 1e6:.1f}" + (f" in {max(layers)}" if layers != {1} else ""),
        ratio,
    ]
    if group.runs[0]["goes"] == PUSH:
        alone = group.registry_alone()
        cells.append(f"{seconds(alone)}" if alone else "")
    return cells


def shorten(ratio):
    """1/12 reads better than 0.083."""
    return f"1/{1 / ratio:.1f}" if ratio < 0.95 else f"{ratio:.2f}"


def seconds(value):
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def align(*rows_of_cells):
    head, rows = rows_of_cells
    widths = [max(len(cells[column]) for cells in [head, *rows]) for column in range(len(head))]
    lines = []
    for cells in [head, *rows]:
        first, rest = cells[0].ljust(widths[0]), zip(cells[1:], widths[1:], strict=True)
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in rest)]).rstrip())
    return lines


def targets(results):
    """What the project asks of two processors, beside what was measured. Information, not a test."""
    rows = []

    def ask(what, value, limit, unit="s"):
        if value is not None and limit is not None:
            rows.append([what, f"{value:.3f} {unit}", f"{limit:.3f} {unit}", "yes" if value <= limit else "NO"])

    def wall(tree, scenario, contender):
        group = results.group(tree, scenario, contender)
        return group and group.median("wall")

    def size(tree, contender):
        group = results.group(tree, "cold", contender)
        return group and group.median("size") / 1e6

    def share(value, factor):
        return value and value * factor

    ask("wheels, cold: 1/4 of pigz -6", wall("wheels", "cold", TIERCE), share(wall("wheels", "cold", PIGZ), 1 / 4))
    ask("wheels, cold, on a quiet machine", wall("wheels", "cold", TIERCE), 1.6)
    ask("wheels, layers: gzip -6 and 15 %", size("wheels", TIERCE), share(size("wheels", GZIP), 1.15), "MB")
    ask("wheels, small, layers: gzip -6 and 1 %", size("wheels", SMALL), share(size("wheels", GZIP), 1.01), "MB")
    ask("wheels, small, cold: pigz -6", wall("wheels", "cold", SMALL), wall("wheels", "cold", PIGZ))
    ask("wheels, no-op, with push", wall("wheels", "no-op", PUSHED), 0.1)
    ask("node, no-op, with push", wall("node", "no-op", PUSHED), 0.25)
    for tree in ("wheels", "node"):
        for change in CHANGES:
            limit = share(wall(tree, "cold", PIGZ), 1 / 25)
            ask(f"{tree}, {change}: 1/25 of pigz -6", wall(tree, change, TIERCE), limit)
    for contender in (PUSHED, PUSHED_WHOLE):
        for change in CHANGES:
            group = results.group("wheels", change, contender)
            alone = group and group.registry_alone()
            what = f"wheels, {change}, {contender}"
            ask(f"{what}: the registry alone and 20 %", group and group.median("wall"), share(alone, 1.2))
            if contender == PUSHED:
                ask(what, group and group.median("wall"), 0.35)
    weights = results.read["trees"].get("weights", {}).get("bytes", 0)
    ask("weights, cold: 2.5 s for 1.5 GB", wall("weights", "cold", TIERCE), 2.5 * weights / 1.5e9)
    ask("weights, layers: gzip -1", size("weights", TIERCE), size("weights", GZIP_1), "MB")
    for tree in ("wheels", "node"):
        ask(f"{tree}, fresh checkout", wall(tree, "fresh", TIERCE), 0.5)
    for tree in results.trees():
        peaks = [run["peak"] for run in results.read["runs"] if run["tree"] == tree and own(run["contender"])]
        ask(f"{tree}, peak of memory in any run of tierce", max(peaks, default=0) / 1e6, 100.0, "MB")
    if not rows:
        return []
    return ["", *align(["what is asked", "measured", "at most", "reached"], rows)]


def disturbance(results, processors):
    """Says how far the machine was quiet, by the runs of which everything else is known."""
    lines = []
    runs = [run for run in results.read["runs"] if own(run["contender"]) and run["goes"] == SINK]
    shares = [run["elsewhere"] / (run["wall"] * processors) for run in runs if run["wall"] > 0.2]
    if shares:
        busy = sum(share > QUIET for share in shares)
        lines += [
            "",
            f"others had {median(shares):.0%} of the processors while tierce ran to a sink "
            f"(median; above {QUIET:.0%} in {busy} of {len(shares)} runs)",
        ]
    moved = [run for run in results.read["runs"] if run.get("moved")]
    if moved:
        lines.append(f"WARNING: {len(moved)} runs gave another image though nothing changed")
    return lines
