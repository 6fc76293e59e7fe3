"""The real trees, and what happens to them between two builds."""

import hashlib
import os
import shutil
import struct
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from .measure import Failed

BENCHES = Path(__file__).parents[1]
REPOSITORY = BENCHES.parent
SMALL = 64 * 1024
# Files that changed less than two seconds before they were last looked at cannot be told from files
# that changed again, so a build looks at them once more. A tree that was just copied is let age.
AGE = 3


@dataclass(frozen=True)
class Recipe:
    """How a tree is made, and which of its files a person would edit."""

    name: str
    # Its content decides whether a tree that is there is still the right one.
    made_from: list
    make: object
    edited: str
    comment: str
    # Where it goes in the image.
    destination: str
    # A tree with one small file has no early and no late one.
    positions: tuple = ("early", "middle", "late")


def make_wheels(folder):
    beside = folder.with_name("wheels.pip")
    made = command([REPOSITORY / "tests/wheels/make", beside, "amd64"])
    Path(made.strip()).rename(folder)
    shutil.rmtree(beside)


def make_node_modules(folder):
    beside = folder.with_name("node_modules.npm")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    shutil.copy(BENCHES / "trees/package.json", beside)
    npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    command([*npm, "--omit=optional", "--legacy-peer-deps"], beside)
    # npm's notes for itself, which say where packages were downloaded.
    (beside / "node_modules/.package-lock.json").unlink(missing_ok=True)
    (beside / "node_modules").rename(folder)
    shutil.rmtree(beside)


def make_weights(folder):
    command([BENCHES / "trees/weights", folder])


def make_huge(folder):
    command([BENCHES / "trees/weights", folder, "--huge"])


def make_tiny(folder):
    """For seeing whether the script works: a few small files, one of each kind of content."""
    for package in range(4):
        for module in range(12):
            path = folder / f"package_{package}" / f"module_{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"def f{line}():\n    return {line * module}\n\n\n" for line in range(150)))
    (folder / "data.bin").write_bytes(hashlib.shake_128(b"tiny").digest(300_000))
    command(["python3", "-m", "compileall", "-q", folder])


TREES = {
    "wheels": Recipe(
        "wheels",
        [REPOSITORY / "tests/wheels/make", REPOSITORY / "tests/wheels/requirements.txt"],
        make_wheels,
        ".py",
        "#",
        "/var/task/",
    ),
    "node": Recipe(
        "node_modules",
        [BENCHES / "trees/package.json"],
        make_node_modules,
        ".js",
        "//",
        "/var/task/node_modules/",
    ),
    "weights": Recipe("weights", [BENCHES / "trees/weights"], make_weights, ".py", "#", "/opt/model/", ("middle",)),
    "huge": Recipe("huge", [BENCHES / "trees/weights"], make_huge, ".py", "#", "/opt/model/", ("middle",)),
    "tiny": Recipe("tiny", [Path(__file__)], make_tiny, ".py", "#", "/var/task/"),
}


def prepare(tree, trees):
    """The folder of a tree, made now if need be."""
    recipe = TREES[tree]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in recipe.made_from)).hexdigest()
    folder, stamp = trees / recipe.name, trees / f"{recipe.name}.made-from"
    if folder.is_dir() and stamp.is_file() and stamp.read_text() == digest:
        return folder
    trees.mkdir(parents=True, exist_ok=True)
    part = trees / f"{recipe.name}.part"
    for old in (folder, part):
        shutil.rmtree(old, ignore_errors=True)
    recipe.make(part)
    part.rename(folder)
    stamp.write_text(digest)
    return folder


class WorkingCopy:
    """A copy of a tree that may be changed, as the folder `tree` of a build's context."""

    def __init__(self, tree, original, context):
        self.recipe = TREES[tree]
        self.original = original
        self.context = context
        self.folder = context / "tree"
        # Counts what was done to it, so that a builder can be asked which state it knows.
        self.state = 0
        shutil.rmtree(context, ignore_errors=True)
        context.mkdir(parents=True)
        command(["cp", "-a", original, self.folder])
        time.sleep(AGE)
        sources = [path for path in files_of(self.folder) if path.name.endswith(self.recipe.edited)]
        sources = [path for path in sources if path.stat().st_size < SMALL]
        if not sources:
            raise Failed(f"{original} has no small {self.recipe.edited} file")
        self.sources = sorted(sources, key=os.fsencode)

    def edit(self, position):
        """Changes one small file as a person would: 2, 50 or 98 % down the list of their paths."""
        share = {"early": 0.02, "middle": 0.5, "late": 0.98}[position]
        path = self.sources[int(share * len(self.sources))]
        first = (self.original / path.relative_to(self.folder)).read_bytes()
        line = f"\n{self.recipe.comment} {uuid.uuid4().hex}\n"
        path.write_bytes(first + line.encode())
        self.state += 1

    def check_out_again(self):
        """The same content in new files with new times, at the same place."""
        fresh = self.context / "tree.fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        command(["cp", "-r", self.folder, fresh])
        renew_bytecode(fresh, self.folder)
        shutil.rmtree(self.folder)
        fresh.rename(self.folder)
        self.state += 1

    def read(self):
        """Brings every byte into the page cache."""
        for path in files_of(self.folder):
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass

    def describe(self):
        sizes = [path.stat().st_size for path in files_of(self.folder)]
        return {"files": len(sizes), "bytes": sum(sizes)}


def files_of(folder):
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if not path.is_symlink():
                yield path


def renew_bytecode(fresh, old):
    """Names the new time of its source in each `.pyc` that named the old one, as pip leaves them.

    Else every one would be stale, and a layer has no stale bytecode: the content would not be the same.
    """
    for compiled in fresh.rglob("__pycache__/*.pyc"):
        source = compiled.parent.parent / (compiled.name.split(".")[0] + ".py")
        was = old / source.relative_to(fresh)
        if not source.is_file():
            continue
        with open(compiled, "r+b") as file:
            header = file.read(12)
            if len(header) < 12 or header[4:] != struct.pack("<II", 0, int(was.stat().st_mtime)):
                continue
            file.seek(8)
            file.write(struct.pack("<I", int(source.stat().st_mtime)))


def command(words, folder=None):
    done = subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"`{' '.join(map(str, words))}` ended with status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout
