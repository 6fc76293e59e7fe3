//! A Python function on a Lambda-like base, under crun and docker, with a Runtime API to answer to.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use tierce_oci::Digest;
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::process::{Guard, require};
use tierce_testkit::sandbox::Sandbox;

use crate::support::{
    architecture, digests, docker, inspect, invoke, lambda_base, python, repository, run, sandbox,
    skopeo, tierce, tool, umoci_unpack,
};

/// Builds the fixture function on the Lambda-like base for this machine.
#[track_caller]
fn build(sandbox: &Sandbox, format: &str, output: &str) -> Digest {
    let hello = repository("fixtures/functions/hello");
    let base = lambda_base(sandbox);
    let arguments = ["build", hello.to_str().unwrap(), "--base", &base];
    let more = [
        "--platform",
        architecture(),
        "--format",
        format,
        "-o",
        output,
    ];
    tierce(sandbox, arguments.into_iter().chain(more))
}

#[test]
fn the_function_answers_under_crun() {
    let sandbox = sandbox();
    for format in ["docker", "oci"] {
        build(&sandbox, format, &format!("oci:{format}:1"));
        let rules = Checker::new().lambda_rules_from(5);
        assert_clean(&rules.layout(&sandbox.path(format)));
        let image = format!("{}:1", sandbox.path(format).display());
        let answer = invoke(&image, r#"{"name": "tierce", "language": "cy"}"#);
        assert_eq!(answer["outcome"], "response", "{answer}");
        let message = answer["body"]["message"].as_str().unwrap();
        assert!(message.contains("tierce"), "{answer}");
        assert_eq!(answer["body"]["folder"], "/var/task", "{answer}");
        assert_eq!(answer["body"]["request"], answer["request_id"], "{answer}");
    }
    let image = format!("{}:1", sandbox.path("oci").display());
    let answer = invoke(&image, r#"{"fail": "on purpose"}"#);
    assert_eq!(answer["outcome"], "error", "{answer}");
    assert_eq!(answer["body"]["errorType"], "ValueError", "{answer}");
}

#[test]
fn the_function_answers_under_docker() {
    let Some(daemon) = docker() else { return };
    let sandbox = sandbox();
    let digest = build(&sandbox, "docker", "docker-archive:image.tar:hello:1");
    run({
        let mut load = daemon.docker(["load", "--quiet", "--input"]);
        load.arg(sandbox.path("image.tar"));
        load
    });
    let id = run(daemon.docker(["inspect", "--format", "{{.Id}}", "hello:1"]));
    let shown = sandbox
        .tierce(["inspect", "--json", "docker-archive:image.tar"])
        .run()
        .assert_success()
        .json();
    let manifest = shown["digest"].as_str();
    assert_eq!(manifest, Some(digest.to_string().as_str()), "{shown}");
    assert!(
        shown.to_string().contains(id.trim()),
        "{id} is not in {shown}"
    );

    let port = sandbox.path("port");
    let mut api = Command::new(require("python3"));
    api.arg(repository("tests/lambda-base/runtime_api.py"))
        .arg("--port-file")
        .arg(&port)
        .args(["--event", r#"{"name": "docker"}"#])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut api = api.spawn().unwrap();
    let stdout = api.stdout.take().unwrap();
    let mut api = Guard::new(api);
    while !port.exists() {
        assert!(api.is_running(), "the Runtime API did not start");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let address = format!("127.0.0.1:{}", fs::read_to_string(&port).unwrap());
    let api_variable = format!("AWS_LAMBDA_RUNTIME_API={address}");
    let start = ["run", "--detach", "--network", "host", "--read-only"];
    let name = [
        "--env",
        "AWS_LAMBDA_FUNCTION_NAME=f",
        "--env",
        &api_variable,
        "hello:1",
    ];
    let container = run(daemon.docker(start.into_iter().chain(name)));
    let outcome = std::io::read_to_string(stdout).unwrap();
    let log = daemon.docker(["logs", container.trim()]).output().unwrap();
    // It has ended by itself, since its next question found nobody; or it is ended.
    run(daemon.docker(["rm", "--force", container.trim()]));
    let outcome: Value = serde_json::from_str(&outcome).unwrap();
    assert_eq!(outcome["outcome"], "response", "{outcome}\n{log:?}");
    assert_eq!(outcome["body"]["message"], "Hello, docker!", "{outcome}");
}

#[test]
fn both_platforms_and_their_index_unpack_to_the_base_and_the_function() {
    crate::support::demand_root("unpack what belongs to root");
    let sandbox = sandbox();
    let hello = repository("fixtures/functions/hello");
    let base = lambda_base(&sandbox);
    let output = sandbox
        .tierce(["build", hello.to_str().unwrap(), "--base", &base])
        .args([
            "--platform",
            "arm64,amd64",
            "--index",
            "--format",
            "oci",
            "-o",
            "oci:all:1",
        ])
        .run()
        .assert_success();
    let [arm64, amd64, _index] = digests(&output)[..] else {
        panic!("two images and an index: {output:?}");
    };
    assert_clean(
        &Checker::new()
            .lambda_rules_from(5)
            .layout(&sandbox.path("all")),
    );
    for (platform, digest) in [("arm64", arm64), ("amd64", amd64)] {
        let shown = inspect(&sandbox, &format!("oci:all:1-{platform}"));
        assert_eq!(shown["Architecture"], platform);
        assert_eq!(shown["Digest"], digest.to_string());
        let root = umoci_unpack(&sandbox, &format!("all:1-{platform}"), platform);
        // The base by itself, taken out of its manifest list by tierce and rewritten by skopeo.
        let alone = format!("oci:base-{platform}");
        tierce(&sandbox, ["copy", "--platform", platform, &base, &alone]);
        let plain = format!("oci:plain-{platform}:1");
        skopeo(&sandbox, "copy", ["--format", "oci", &alone, &plain]);
        let below = format!("below-{platform}");
        let below = umoci_unpack(&sandbox, &format!("plain-{platform}:1"), &below);
        let source = hello.join("src");
        for file in fs::read_dir(&source).unwrap() {
            let name = file.unwrap().file_name();
            if name == "__pycache__" {
                continue;
            }
            let here = root.join("var/task").join(&name);
            let (here, there) = (
                fs::read(here).unwrap(),
                fs::read(source.join(&name)).unwrap(),
            );
            assert_eq!(here, there, "{name:?}");
            fs::remove_file(root.join("var/task").join(&name)).unwrap();
        }
        // Without the function's files it is the base, file by file; times of folders aside.
        let compare = ["-c", COMPARE, "sh"].map(str::to_owned);
        let roots = [&root, &below].map(|it| it.to_str().unwrap().to_owned());
        let difference = tool(&sandbox, "sh", compare.into_iter().chain(roots));
        assert_eq!(String::from_utf8_lossy(&difference), "");
    }
}

/// Prints how two trees differ: type, mode, owner, size, target of links, then content.
const COMPARE: &str = r#"
list() { (cd "$1" && find . -mindepth 1 \( -type d -printf '%P d %m %U %G\n' -o -printf '%P %y %m %U %G %s %l\n' \) | LC_ALL=C sort); }
list "$1" > "$1.list" && list "$2" > "$2.list" || exit
diff "$1.list" "$2.list"
diff --recursive --no-dereference --brief "$1" "$2" || true
"#;

#[test]
fn a_file_added_below_lib64_leaves_the_links_of_the_base() {
    let sandbox = sandbox();
    let base = lambda_base(&sandbox);
    sandbox.write("context/lib/libextra.so", "not really a library");
    sandbox.write(
        "context/bin/extra",
        "#!/bin/sh\necho ran \"$0\"\ncat /lib64/libextra.so\n",
    );
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(sandbox.path("context/bin/extra"), mode).unwrap();
    tierce(
        &sandbox,
        [
            "build",
            "context",
            "--base",
            &base,
            "--platform",
            architecture(),
            "--format",
            "oci",
            "--add",
            "lib:/lib64/",
            "--add",
            "bin:/bin/",
            "--entrypoint",
            "/bin/extra",
            "-o",
            "oci:image:1",
        ],
    );
    let image = format!("{}:1", sandbox.path("image").display());
    let mut command = Command::new(repository("tests/lambda-base/run-under-crun"));
    command.args(["--exec", &image]);
    assert_eq!(run(command), "ran /bin/extra\nnot really a library");

    // And in what skopeo writes of it no layer of ours has a folder where the base has a link.
    let shown = inspect(&sandbox, "oci:image:1");
    let top = shown["Layers"].as_array().unwrap().last().unwrap();
    let top = crate::support::blob(&sandbox.path("image"), top.as_str().unwrap());
    let list = "import sys, tarfile\nfor it in tarfile.open(sys.argv[1]): print(it.name)";
    let listing = python(list, [top]);
    assert!(listing.lines().all(|it| it.starts_with("usr")), "{listing}");
}
