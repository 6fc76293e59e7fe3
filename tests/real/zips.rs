//! Zips as Info-ZIP, Python and git write them: each is the layer that the folder itself is.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tierce_oci::Digest;
use tierce_testkit::process::require;
use tierce_testkit::sandbox::Sandbox;

use crate::support::{python, sandbox, tierce, tool};

/// A function with a program, a library that has two names, names beyond ASCII, and something large.
fn function(sandbox: &Sandbox) {
    for (name, content) in [
        ("bootstrap", &b"#!/bin/sh\nexec true\n"[..]),
        ("lib/libx.so.1.2", b"\x7fELF\x02"),
        ("lib/data.bin", &[7; 3 << 20]),
        ("lib/grüße/日本.txt", b"text"),
        ("empty", b""),
    ] {
        sandbox.write(format!("app/src/{name}"), content);
    }
    symlink("libx.so.1.2", sandbox.path("app/src/lib/libx.so")).unwrap();
    for executable in ["bootstrap", "lib/libx.so.1.2"] {
        let path = sandbox.path("app/src").join(executable);
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
}

fn build(sandbox: &Sandbox, layer: &str) -> Digest {
    configure(sandbox, layer);
    tierce(sandbox, ["build", "app", "-t=it:1"])
}

fn configure(sandbox: &Sandbox, layer: &str) {
    let config = format!(
        "[image]\nbase = \"scratch\"\nplatforms = [\"arm64\"]\n[[layer]]\nname = \"code\"\n{layer}\n"
    );
    sandbox.write("app/tierce.toml", config);
}

/// Runs a line of `sh` in the folder of the function.
fn shell(sandbox: &Sandbox, line: &str) {
    tool(sandbox, "sh", ["-c", &format!("cd app/src && {line}")]);
}

#[test]
fn zips_of_a_folder_are_the_folder() {
    let sandbox = sandbox();
    require("zip");
    require("git");
    function(&sandbox);
    let folder = build(&sandbox, "add = [{ from = \"src\", to = \"/var/task/\" }]");
    let write = format!("{PYTHON}\nwrite(sys.argv[1] == 'pipe', sys.stdout.buffer)");
    sandbox.write("write.py", write);
    for (name, line) in [
        ("Info-ZIP", "zip -qry ../x.zip ."),
        (
            "Info-ZIP, not compressed and nothing extra",
            "zip -qryX0 ../x.zip .",
        ),
        (
            "Info-ZIP, without directories, the best it can",
            "zip -qryD9 ../x.zip .",
        ),
        ("Info-ZIP, as if it were large", "zip -qryfz ../x.zip ."),
        (
            "Info-ZIP in two steps",
            "zip -qry ../x.zip . -x empty && zip -qy ../x.zip empty",
        ),
        (
            "Info-ZIP where letters are ASCII",
            "LC_ALL=C zip -qry ../x.zip .",
        ),
        (
            "git",
            "git init -q && git add . && git archive --format=zip -o ../x.zip \
             $(git write-tree) && rm -rf .git",
        ),
        ("Python", "python3 ../../write.py file >../x.zip"),
        (
            "Python into a pipe",
            "python3 ../../write.py pipe | cat >../x.zip",
        ),
    ] {
        if sandbox.path("app/x.zip").exists() {
            fs::remove_file(sandbox.path("app/x.zip")).unwrap();
        }
        shell(&sandbox, line);
        assert_eq!(build(&sandbox, "zip = \"x.zip\""), folder, "{name}");
    }
    // Info-ZIP does not write symlinks into a pipe.
    shell(&sandbox, "zip -qr - . -x lib/libx.so | cat >../x.zip");
    let without = "exclude = [\"lib/libx.so\"]";
    assert_eq!(
        build(&sandbox, "zip = \"x.zip\""),
        build(
            &sandbox,
            &format!("add = [{{ from = \"src\", to = \"/var/task/\", {without} }}]")
        ),
        "Info-ZIP into a pipe"
    );
    shell(&sandbox, "rm ../x.zip && zip -qryP secret ../x.zip .");
    configure(&sandbox, "zip = \"x.zip\"");
    let refused = sandbox.tierce(["build", "app", "-t=it:1"]).run();
    let refused = refused.assert_code(1).stderr();
    assert!(refused.contains("is refused: it is encrypted"), "{refused}");
}

/// Writes the folder as programs do that deploy functions: member by member, in the disk's order.
const PYTHON: &str = r"
import os, sys, zipfile

def write(pipe, out):
    if pipe:
        class Pipe:
            write = out.write
            flush = out.flush
        out = Pipe()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
        for root, directories, files in os.walk('.'):
            for name in files:
                path = os.path.join(root, name)
                if os.path.islink(path):
                    info = zipfile.ZipInfo(path[2:])
                    info.create_system = 3
                    info.external_attr = 0o120777 << 16
                    archive.writestr(info, os.readlink(path))
                else:
                    archive.write(path)
";

#[test]
fn more_members_than_two_bytes_can_count() {
    let sandbox = sandbox();
    fs::create_dir(sandbox.path("app")).unwrap();
    let script = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as archive:
    for number in range(70_000):
        archive.writestr(f'{number % 100}/{number}', str(number))
";
    python(script, [sandbox.path("app/x.zip")]);
    let digest = build(&sandbox, "lambda-layer = \"x.zip\"\nsplit = false");
    for number in 0..70_000 {
        let directory = sandbox.path(format!("app/src/{}", number % 100));
        if number < 100 {
            fs::create_dir_all(&directory).unwrap();
        }
        fs::write(directory.join(number.to_string()), number.to_string()).unwrap();
    }
    let add = "add = [{ from = \"src\", to = \"/opt/\" }]\nsplit = false";
    assert_eq!(build(&sandbox, add), digest);
}
