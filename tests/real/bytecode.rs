//! Which code a real Python runs on a root that it cannot write to, and that it is the same wherever
//! it was made.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tierce_testkit::check::LoadedImage;
use tierce_testkit::process::require;
use tierce_testkit::sandbox::Sandbox;
use tierce_testkit::tree::Node;

use crate::dependencies::with_own_indexes;
use crate::support::{architecture, lambda_base, one_digest, repository, sandbox, tierce, tool};

/// Copies the Python function, with a module of the user's own that an import has compiled.
fn context(sandbox: &Sandbox, name: &str) -> PathBuf {
    let function = repository("fixtures/functions/python");
    for file in ["requirements.txt", "tierce.toml", "src/app.py"] {
        let content = fs::read(function.join(file)).unwrap();
        sandbox.write(format!("{name}/{file}"), content);
    }
    sandbox.path(name)
}

/// Runs code in a container of the image, and gives the modules below `/var/task` whose code came from
/// a `.pyc`, and those that were compiled.
fn loaded(sandbox: &Sandbox, layout: &str, tag: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let entrypoint = ["--config.entrypoint", "python3", "--config.cmd", "-v"];
    let code = ["--config.cmd", "-c", "--config.cmd", "import app, mine"];
    let region = ["--config.env", "AWS_EC2_METADATA_DISABLED=true"];
    let image = format!("{layout}:{tag}");
    let umoci = ["config", "--image", &image, "--tag", "probe"];
    let umoci = umoci.into_iter().chain(entrypoint).chain(code);
    tool(sandbox, "umoci", umoci.chain(region));
    let mut command = Command::new(repository("tests/lambda-base/run-under-crun"));
    command
        .arg("--exec")
        .arg(format!("{}:probe", sandbox.path(layout).display()));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let (mut compiled_before, mut compiled_now) = (BTreeSet::new(), BTreeSet::new());
    for line in said.lines() {
        let Some(path) = line.strip_prefix("# code object from ") else {
            continue;
        };
        let path = path.trim_matches('\'');
        if !path.starts_with("/var/task/") {
            continue;
        }
        if path.ends_with(".pyc") {
            compiled_before.insert(path.to_owned());
        } else {
            compiled_now.insert(path.to_owned());
        }
    }
    (compiled_before, compiled_now)
}

/// Writes what is below `/var/task` of an image to a folder.
fn write_out(image: &LoadedImage, folder: &std::path::Path) {
    for (path, entry) in image.tree().unwrap() {
        let Some(path) = path.strip_prefix("var/task/") else {
            continue;
        };
        let path = folder.join(path);
        match &entry.node {
            Node::Directory => fs::create_dir_all(path).unwrap(),
            Node::File(bytes) => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_import_finds_its_compiled_code() {
    if architecture() != "amd64" {
        return;
    }
    let sandbox = sandbox();
    let base = lambda_base(&sandbox);
    let app = context(&sandbox, "app");
    // A module that the user's Python has compiled by an import, in a layer that is not.
    sandbox.write("app/own/mine.py", "def double(x):\n    return 2 * x\n");
    let import = [
        "-c",
        "import sys; sys.path.insert(0, 'app/own'); import mine",
    ];
    tool(&sandbox, "python3", import);
    let toml = fs::read_to_string(app.join("tierce.toml")).unwrap();
    let own = "[[layer]]\nname = \"own\"\nadd = [{ from = \"own\", to = \"/var/task/\" }]\n";
    sandbox.write("app/tierce.toml", format!("{toml}\n{own}"));
    let build = |output: &str| {
        let arguments = ["build", "app", "--base", &base, "--platform", "amd64"];
        let arguments = arguments
            .into_iter()
            .chain(["--format", "oci", "-o", output]);
        drop(
            with_own_indexes(sandbox.tierce(arguments))
                .run()
                .assert_success(),
        );
    };
    build("oci:compiled:1");
    let (before, now) = loaded(&sandbox, "compiled", "1");
    assert_eq!(now, BTreeSet::new());
    for module in [
        "numpy/__pycache__/__init__",
        "__pycache__/app",
        "__pycache__/mine",
    ] {
        let path = format!("/var/task/{module}.cpython-311.pyc");
        assert!(before.contains(&path), "{path} of {before:?}");
    }

    // The same files as people pack them: compiled where they lie, and put into a tar of one time.
    let plain = toml.replace("python-version = \"3.11\"\nbytecode = true\n", "");
    let plain = plain.replace("bytecode = true\n", "");
    sandbox.write("app/tierce.toml", format!("{plain}\n{own}"));
    build("oci:plain:1");
    let plain = LoadedImage::from_layout(&sandbox.path("plain"), Some("1")).unwrap();
    write_out(&plain, &sandbox.path("naive"));
    let compile = ["-m", "compileall", "-q", "-j", "0", "naive"];
    // What cannot be compiled makes it fail, and is no matter here.
    drop(sandbox.command(require("python3")).args(compile).run());
    let tar = [
        "--create",
        "--file=naive.tar",
        "--format=ustar",
        "--mtime=@1",
        "--owner=0",
        "--group=0",
    ];
    let prefix = ["--transform=s,^naive,var/task,", "naive"];
    tool(&sandbox, "tar", tar.into_iter().chain(prefix));
    sandbox.write(
        "packed/tierce.toml",
        "[image]\nhandler = \"app.handler\"\n[[layer]]\nname = \"all\"\ntar = \"naive.tar\"\nverbatim = true\n",
    );
    fs::rename(sandbox.path("naive.tar"), sandbox.path("packed/naive.tar")).unwrap();
    let arguments = ["build", "packed", "--base", &base, "--platform", "amd64"];
    tierce(
        &sandbox,
        arguments
            .into_iter()
            .chain(["--format", "oci", "-o", "oci:packed-image:1"]),
    );
    let (naive_before, naive_now) = loaded(&sandbox, "packed-image", "1");
    assert_eq!(naive_before, BTreeSet::new());
    assert_eq!(naive_now.len(), before.len());
}

#[test]
fn compiled_code_is_the_same_wherever_it_is_made() {
    let base_of = sandbox();
    let base = lambda_base(&base_of);
    let mut digests = BTreeSet::new();
    for (number, settings) in [
        "umask 022; export LC_ALL=C TZ=UTC PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1",
        "umask 077; export LC_ALL=C.UTF-8 TZ=Asia/Kathmandu PYTHONHASHSEED=7 PYTHONOPTIMIZE=2 \
         PYTHONPATH=/tmp SOURCE_DATE_EPOCH=0",
    ]
    .into_iter()
    .enumerate()
    {
        let sandbox = sandbox();
        let name = ["app", "some/where/else/of/another/length"][number];
        drop(context(&sandbox, name));
        let script = format!("{settings}; exec \"$0\" \"$@\"");
        let jobs = format!("--jobs={}", 3 - number);
        let command = sandbox
            .command("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_tierce"), "build", name])
            .args([
                "--base",
                &base,
                "--platform",
                "arm64",
                &jobs,
                "-o",
                "oci:it:1",
            ]);
        let output = with_own_indexes(command).run().assert_success();
        digests.insert(one_digest(&output));
        // And again, of what was kept and remembered.
        let again = sandbox.tierce(["build", name, "--base", &base, "--platform", "arm64"]);
        let again = with_own_indexes(again.args(["--offline", "-o", "oci:it:2"]));
        let again = again.run().assert_success();
        assert!(!again.stderr().contains("compiling"), "{again:?}");
        digests.insert(one_digest(&again));
    }
    assert_eq!(digests.len(), 1, "{digests:?}");
}
