//! What the tests share: the program, the tools, the things that are made once.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use tierce_oci::Digest;
use tierce_testkit::process::{DockerDaemon, DockerRegistry, require};
use tierce_testkit::sandbox::{Output, Sandbox};

/// A sandbox for the program under test.
pub(crate) fn sandbox() -> Sandbox {
    Sandbox::new(env!("CARGO_BIN_EXE_tierce"))
}

/// A path of this repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The small base of the fixtures, as a base or source of the program.
pub(crate) fn minimal(tag: &str) -> String {
    format!(
        "oci:{}:{tag}",
        repository("fixtures/bases/minimal").display()
    )
}

/// Cargo's target directory, where caches that are slow to fill live.
pub(crate) fn target() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().unwrap().to_owned()
}

/// This machine's architecture as images name it.
pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

/// Fails where a test cannot do its work.
#[track_caller]
pub(crate) fn demand_root(why: &str) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ids = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    let effective = ids.split_whitespace().nth(2).unwrap();
    assert_eq!(effective, "0", "this test must be run as root, to {why}");
}

/// Runs a tool in the sandbox, demands that it succeeds, and gives what it printed.
#[track_caller]
pub(crate) fn tool<A: AsRef<OsStr>>(
    sandbox: &Sandbox,
    name: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Vec<u8> {
    let command = sandbox.command(require(name)).args(arguments);
    command.run().assert_success().stdout_bytes().to_vec()
}

/// Runs skopeo, which speaks plain HTTP with the registries here and takes the image for amd64 out of
/// an index, and demands that it succeeds.
#[track_caller]
pub(crate) fn skopeo<A: AsRef<OsStr>>(
    sandbox: &Sandbox,
    verb: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Vec<u8> {
    let mut command = sandbox.command(require("skopeo")).args([
        "--insecure-policy",
        "--override-os=linux",
        "--override-arch=amd64",
        verb,
    ]);
    command = match verb {
        "copy" => command.args([
            "--quiet",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ]),
        "inspect" => command.arg("--tls-verify=false"),
        _ => command,
    };
    let output = command.args(arguments).run().assert_success();
    output.stdout_bytes().to_vec()
}

/// What `skopeo inspect` says of an image.
#[track_caller]
pub(crate) fn inspect(sandbox: &Sandbox, image: &str) -> Value {
    serde_json::from_slice(&skopeo(sandbox, "inspect", [image])).unwrap()
}

/// The digest of the manifest or index at `image`, computed from the bytes that skopeo read.
#[track_caller]
pub(crate) fn raw_digest(sandbox: &Sandbox, image: &str) -> Digest {
    Digest::of(&skopeo(sandbox, "inspect", ["--raw", image]))
}

/// Unpacks an image of OCI media types and gives its root file system.
#[track_caller]
pub(crate) fn umoci_unpack(sandbox: &Sandbox, layout: &str, bundle: &str) -> PathBuf {
    tool(sandbox, "umoci", ["unpack", "--image", layout, bundle]);
    sandbox.path(bundle).join("rootfs")
}

/// Runs the program and gives the digest of its one line of output.
#[track_caller]
pub(crate) fn tierce<A: AsRef<OsStr>>(
    sandbox: &Sandbox,
    arguments: impl IntoIterator<Item = A>,
) -> Digest {
    one_digest(&sandbox.tierce(arguments).run().assert_success())
}

/// The digest in the one line that a run printed.
#[track_caller]
pub(crate) fn one_digest(output: &Output) -> Digest {
    let digests = digests(output);
    let [digest] = digests[..] else {
        panic!("expected one line with a digest: {output:?}");
    };
    digest
}

/// The digests in the lines that a run printed.
#[track_caller]
pub(crate) fn digests(output: &Output) -> Vec<Digest> {
    let stdout = output.stdout();
    let digest = |line: &str| line.rsplit_once('@')?.1.parse().ok();
    let found: Option<Vec<Digest>> = stdout.lines().map(digest).collect();
    found.unwrap_or_else(|| panic!("expected lines with digests: {output:?}"))
}

/// One request as docker-registry logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) status: u16,
}

/// Everything that docker-registry was asked so far, in order.
pub(crate) fn requests(registry: &DockerRegistry) -> Vec<Request> {
    let log = registry.log();
    let field = |line: &str, key: &str| {
        let value = line.split_once(&format!(" {key}="))?.1;
        let value = match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next()?,
            None => value.split(' ').next()?,
        };
        Some(value.to_owned())
    };
    let request = |line: &str| {
        Some(Request {
            method: field(line, "http.request.method")?,
            uri: field(line, "http.request.uri")?,
            status: field(line, "http.response.status")?.parse().ok()?,
        })
    };
    let completed = log
        .lines()
        .filter(|line| line.contains("response completed"));
    completed.filter_map(request).collect()
}

/// Runs a script of this repository outside of any sandbox: it uses the person's own pip and caches.
#[track_caller]
pub(crate) fn script<A: AsRef<OsStr>>(
    path: &str,
    arguments: impl IntoIterator<Item = A>,
) -> std::process::Output {
    let mut command = Command::new(repository(path));
    command.args(arguments).stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{stderr}");
    output
}

/// Runs Python code with arguments and gives what it printed.
#[track_caller]
pub(crate) fn python<A: AsRef<OsStr>>(
    code: &str,
    arguments: impl IntoIterator<Item = A>,
) -> String {
    let mut command = Command::new(require("python3"));
    command.args(["-c", code]).args(arguments);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "Python failed:\n{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Puts the Lambda-like base (tag `3.11`) into the sandbox, and names it as a base.
#[track_caller]
pub(crate) fn lambda_base(sandbox: &Sandbox) -> String {
    let cache = target().join("lambda-base");
    let layout = sandbox.path("lambda-base");
    let arguments = [OsStr::new("--cache"), cache.as_ref(), layout.as_ref()];
    script("tests/lambda-base/make", arguments);
    format!("oci:{}:3.11", layout.display())
}

/// Puts the same base without a language into the sandbox, and names it as a base.
#[track_caller]
pub(crate) fn provided_base(sandbox: &Sandbox) -> String {
    let cache = target().join("lambda-base");
    let layout = sandbox.path("provided-base");
    let arguments = [
        OsStr::new("--provided"),
        OsStr::new("--cache"),
        cache.as_ref(),
        layout.as_ref(),
    ];
    script("tests/lambda-base/make", arguments);
    format!("oci:{}:provided", layout.display())
}

/// Gives an image of a layout one event under crun: what came of it.
#[track_caller]
pub(crate) fn invoke(image: &str, event: &str) -> Value {
    let mut command = Command::new(repository("tests/lambda-base/run-under-crun"));
    let output = command.args(["--event", event, image]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no outcome:\n{stderr}"))
}

/// Puts the base with Node (tag `22`) into the sandbox, and names it as a base.
#[track_caller]
pub(crate) fn node_base(sandbox: &Sandbox) -> String {
    let cache = target().join("node-base");
    let layout = sandbox.path("node-base");
    let arguments = [OsStr::new("--cache"), cache.as_ref(), layout.as_ref()];
    script("tests/lambda-base/make-node", arguments);
    format!("oci:{}:22", layout.display())
}

/// The folder that holds `tree-amd64`, 400 MB of real wheels.
#[track_caller]
pub(crate) fn wheels() -> PathBuf {
    let cache = target().join("wheels");
    script(
        "tests/wheels/make",
        [cache.as_os_str(), OsStr::new("amd64")],
    );
    cache
}

/// The program as `cargo build --release` makes it.
#[track_caller]
pub(crate) fn release() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let mut command = Command::new(env!("CARGO"));
        command
            .args([
                "build",
                "--quiet",
                "--release",
                "--locked",
                "--package",
                "tierce",
            ])
            .arg("--manifest-path")
            .arg(repository("Cargo.toml"))
            .arg("--target-dir")
            .arg(target());
        assert!(command.status().unwrap().success(), "{command:?} failed");
        target().join("release/tierce")
    };
    BUILT.get_or_init(build).clone()
}

/// A Docker daemon, unless this machine is said to have none that can run.
#[track_caller]
pub(crate) fn docker() -> Option<DockerDaemon> {
    if std::env::var_os("TIERCE_TESTS_WITHOUT_DOCKER").is_some() {
        return None;
    }
    match DockerDaemon::start() {
        Ok(daemon) => Some(daemon),
        Err(why) => panic!(
            "{why}\nTIERCE_TESTS_WITHOUT_DOCKER=1 leaves out what needs it, where none can run"
        ),
    }
}

/// Runs `docker` and gives what it printed.
#[track_caller]
pub(crate) fn run(mut command: Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names in a directory.
pub(crate) fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    entries.map(|it| name(it).into_string().unwrap()).collect()
}

/// The blob of an OCI layout.
pub(crate) fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}
