"""Who is compared: tierce in its forms, and the tools that people use today.

A contender has a folder of its own for all that it remembers, so that forgetting is deleting, and one
that pushes has a registry of its own. Its command is one process to the clock, with all that it starts.
"""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from . import docker
from .measure import Failed
from .registry import Registry, Rehearsal

SINK, PUSH = "to a sink", "with push"
REPOSITORY = "bench/image"
# Without it buildah asks for a file that only some of Debian's packages bring.
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}\n'
COLD = ("cold",)
ALL = ("cold", "no-op", "change-early", "change-middle", "change-late", "fresh")


class Contender:
    """`goes` says where the image goes; a peer that remembers nothing is only asked once, cold."""

    goes = SINK
    scenarios = ALL
    trees = None
    # More are not worth their time, whatever is asked for.
    most_runs = None
    # What of the work is not in its processor time.
    not_counted = None

    def __init__(self, name, folder):
        self.name = name
        self.folder = Path(folder)
        self.registry = Registry(self.folder / "registry") if self.goes == PUSH else None
        self.knows = None
        self.forget()

    def forget(self):
        """Makes the next build a cold one."""
        self.knows = None
        if self.registry:
            self.registry.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if self.registry:
            self.registry.start()

    def command(self, copy):
        raise NotImplementedError

    def environment(self):
        return {}

    def layers(self, cost):
        """Number and bytes of the layers that the last run made, and the image's digest if known."""
        number, size = self.registry.layers(REPOSITORY)
        return {"layers": number, "size": size}

    def daemon(self):
        """A daemon that does some of the work, if any."""
        return None

    def before(self, copy):
        """What is outside the clock but belongs to a run."""

    def after(self):
        """Facts that only a run like this one has."""
        return {}

    def close(self):
        if self.registry:
            self.registry.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Tierce(Contender):
    """`tierce build` with a file of its own; `place` is where the image goes."""

    def __init__(self, name, folder, program, place, *, compression="fast", split=None, scenarios=ALL):
        self.goes = PUSH if place == "push" else SINK
        self.scenarios = scenarios
        self.program = program
        self.place = place
        self.compression = compression
        self.split = split
        self.rehearsal = None
        self.had = set()
        super().__init__(name, folder)
        if self.registry:
            self.rehearsal = Rehearsal(self.folder.with_name(f"{self.folder.name}-rehearsal"))
            self.not_counted = "the registry"

    def before(self, copy):
        text = settings(copy.recipe.destination, self.compression, self.split)
        (self.folder / "tierce.toml").write_text(text)
        if self.registry:
            self.had = set(self.registry.blobs())

    def command(self, copy):
        build = [self.program, "build", copy.context, "--file", self.folder / "tierce.toml"]
        if self.registry:
            place = ["--push", "--tag", self.registry.reference(REPOSITORY)]
        else:
            place = ["--output", self.image()]
        return [*build, *place, "--json", "--quiet"]

    def image(self):
        return "store:bench:latest" if self.place == "store" else f"oci:{self.folder}/layout:latest"

    def environment(self):
        return {
            "TIERCE_CACHE": f"{self.folder}/cache",
            "TIERCE_STORE": f"{self.folder}/store",
            "DOCKER_CONFIG": f"{self.folder}/docker",
            "HOME": f"{self.folder}/home",
        }

    def layers(self, cost):
        if self.registry:
            digest = json.loads(cost.output)["images"][0]["digest"]
            return {**super().layers(cost), "digest": digest}
        shown = subprocess.run(
            [self.program, "inspect", self.image(), "--json"],
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
        )
        if shown.returncode != 0:
            raise Failed(f"tierce inspect ended with status {shown.returncode}\n{shown.stderr}")
        image = json.loads(shown.stdout)
        sizes = [layer["size"] for layer in image["layers"]]
        return {"layers": len(sizes), "size": sum(sizes), "digest": image["digest"]}

    def after(self):
        """How long the registry takes for what was just sent when somebody else sends it."""
        if not self.registry:
            return {}
        sent = {digest: file for digest, file in self.registry.blobs().items() if digest not in self.had}
        # The manifest is a blob to the registry's disk, but is not sent as one.
        manifest = self.registry.manifest_digest(REPOSITORY)
        sent.pop(manifest, None)
        return {"registry_alone": self.rehearsal.time(list(sent.items()))}

    def close(self):
        super().close()
        if self.rehearsal:
            self.rehearsal.close()


def settings(destination, compression, split):
    lines = [
        "[image]",
        'base = "scratch"',
        'platforms = ["linux/amd64"]',
        f'compression = "{compression}"',
        "",
        "[[layer]]",
        'name = "dependencies"',
        f'add = [{{ from = "tree/", to = "{destination}" }}]',
    ]
    if split is not None:
        lines.append(f"split = {str(split).lower()}")
    return "\n".join(lines) + "\n"


def knows_split(program, folder):
    """Whether this tierce can be told to split a layer or not."""
    (folder / "tree").mkdir(parents=True, exist_ok=True)
    (folder / "tree/file").write_text("x")
    (folder / "tierce.toml").write_text(settings("/", "fast", False))
    environment = {**os.environ, "TIERCE_CACHE": f"{folder}/cache", "TIERCE_STORE": f"{folder}/store"}
    asked = subprocess.run([program, "build", folder, "--dry-run"], env=environment, capture_output=True, text=True)
    if asked.returncode != 0 and "`split`" not in asked.stderr:
        raise Failed(f"{program} does not build a folder of one file\n{asked.stderr}")
    return asked.returncode == 0


class Pipe(Contender):
    """`tar | gzip` and the like: it remembers nothing, so its cold time is its time always."""

    scenarios = COLD

    def __init__(self, name, folder, compressor, *, trees=None, most_runs=None):
        self.compressor = compressor
        self.trees = trees
        self.most_runs = most_runs
        super().__init__(name, folder)

    def layer(self):
        return self.folder / "layer.tar.gz"

    def command(self, copy):
        pipe = f"tar -C {quoted(copy.folder)} -cf - . | {self.compressor} >{quoted(self.layer())}"
        return ["bash", "-o", "pipefail", "-c", pipe]

    def layers(self, cost):
        return {"layers": 1, "size": self.layer().stat().st_size}


class Docker(Contender):
    """`docker build` and `docker push`, with a daemon of its own that has never seen anything."""

    goes = PUSH
    not_counted = "the registry; processes of the daemon that outlive their parents"

    def __init__(self, name, folder, buildkit):
        self.buildkit = buildkit
        self.docker = docker.Docker()
        super().__init__(name, folder)

    def forget(self):
        self.docker.stop()
        super().forget()
        self.docker.start()

    def before(self, copy):
        (self.folder / "Dockerfile").write_text(dockerfile(copy))

    def command(self, copy):
        client, reference = docker.client(), self.registry.reference(REPOSITORY)
        build = [client, "build", "--tag", reference, "--file", self.folder / "Dockerfile", copy.folder]
        return shell(build, [client, "push", reference])

    def environment(self):
        return {**self.docker.environment(), "DOCKER_BUILDKIT": str(int(self.buildkit))}

    def daemon(self):
        return self.docker.daemon

    def close(self):
        super().close()
        self.docker.stop()


class Buildah(Contender):
    """`buildah bud --layers` and `buildah push`."""

    goes = PUSH
    not_counted = "the registry"

    def before(self, copy):
        (self.folder / "Dockerfile").write_text(dockerfile(copy))
        (self.folder / "policy.json").write_text(POLICY)

    def command(self, copy):
        reference = self.registry.reference(REPOSITORY)
        buildah = ["buildah", "--root", self.folder / "root", "--runroot", self.folder / "run"]
        policy = ["--signature-policy", self.folder / "policy.json"]
        build = ["bud", "--layers", *policy, "--tag", reference, "--file", self.folder / "Dockerfile", copy.folder]
        push = ["push", "--tls-verify=false", *policy, reference, f"docker://{reference}"]
        return shell([*buildah, *build], [*buildah, *push])

    def environment(self):
        return {"BUILDAH_ISOLATION": "chroot"}


class Crane(Contender):
    """A tar, compressed first or by crane, appended to nothing and pushed by crane."""

    goes = PUSH
    not_counted = "the registry"

    def __init__(self, name, folder, program, compressor=None):
        self.program = program
        self.compressor = compressor
        super().__init__(name, folder)

    def command(self, copy):
        layer = self.folder / "layer.tar"
        pipe = f" | {self.compressor}" if self.compressor else ""
        tar = f"tar -C {quoted(copy.folder)} -cf - .{pipe} >{quoted(layer)}"
        append = [self.program, "append", "--insecure", "-f", layer, "-t", self.registry.reference(REPOSITORY)]
        return ["bash", "-o", "pipefail", "-c", f"{tar} && {words(append)}"]


def dockerfile(copy):
    return f"FROM scratch\nCOPY . {copy.recipe.destination}\n"


def shell(*commands):
    return ["sh", "-c", " && ".join(map(words, commands))]


def words(command):
    return " ".join(map(quoted, command))


def quoted(word):
    return shlex.quote(str(word))


OWN = ("store", "oci", "small", "whole", "push", "whole-push")
PEERS = ("gzip", "pigz", "docker", "buildkit", "buildah", "crane")
GZIP_1 = "tar | gzip -1"
GZIP, PIGZ = "tar | gzip -6", "tar | pigz -6"


def own(which, program, folder, split_known):
    """tierce's forms, by their names on the command line."""
    forms = {
        "store": ("tierce", "store", {}),
        "oci": ("tierce, to oci:", "oci", {}),
        "small": ("tierce, small", "store", {"compression": "small", "scenarios": COLD}),
        "whole": ("tierce, one layer", "store", {"split": False}),
        "push": ("tierce --push", "push", {}),
        "whole-push": ("tierce --push, one layer", "push", {"split": False}),
    }
    made = []
    for key in which:
        name, place, extra = forms[key]
        if "split" not in extra or split_known:
            made.append(Tierce(name, folder / f"tierce-{key}", program, place, **extra))
    return made


def peers(which, folder, crane):
    """The other tools, by their names on the command line."""
    made = []
    if "gzip" in which:
        made.append(Pipe(GZIP, folder / "gzip", "gzip -6"))
        # For its size alone: what weights are held to.
        made.append(Pipe(GZIP_1, folder / "gzip-1", "gzip -1", trees=("weights", "tiny"), most_runs=1))
    if "pigz" in which:
        made.append(Pipe(PIGZ, folder / "pigz", "pigz -6"))
    if "docker" in which:
        made.append(Docker("docker build", folder / "docker", buildkit=False))
    if "buildkit" in which:
        made.append(Docker("docker build, BuildKit", folder / "buildkit", buildkit=True))
    if "buildah" in which:
        made.append(Buildah("buildah bud", folder / "buildah"))
    if "crane" in which and crane:
        made.append(Crane("tar, crane append", folder / "crane", crane))
        made.append(Crane("tar | pigz -6, crane append", folder / "pigz-crane", crane, "pigz -6"))
    return made
