//! 400 MB of real wheels on the Lambda-like base: built, pushed, judged, and run.

use std::process::Command;

use tierce_oci::Digest;
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::process::{DockerRegistry, require};

use crate::support::{
    inspect, lambda_base, one_digest, raw_digest, release, repository, sandbox, skopeo, tierce,
    umoci_unpack, wheels,
};

/// What the program may take at its peak, in bytes.
const MEMORY: u64 = 150_000_000;

/// Runs a command and prints the peak of its memory, in KiB, to the file named first.
const MEASURE: &str = "\
import os, sys
child = os.spawnvp(os.P_NOWAIT, sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
open(sys.argv[1], 'w').write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
";

#[test]
fn a_large_tree_is_built_and_pushed_in_little_memory() {
    let sandbox = sandbox();
    let registry = DockerRegistry::start();
    let base = lambda_base(&sandbox);
    let context = wheels();
    let reference = registry.reference("team/science", "1");
    // The debug build too: it has the same memory to live in.
    for (program, tag) in [
        (env!("CARGO_BIN_EXE_tierce").into(), "debug"),
        (release(), "release"),
    ] {
        let name = registry.reference("team/science", tag);
        let built = sandbox
            .command(require("python3"))
            .args(["-c", MEASURE, "peak"])
            .arg(program)
            .arg("build")
            .arg(&context)
            .args([
                "--base",
                &base,
                "--platform",
                "amd64",
                "--handler",
                "app.handler",
            ])
            .args(["--add", "tree-amd64:/var/task/", "-t", &name, "--push"])
            .run()
            .assert_success();
        let digest = one_digest(&built);
        let peak = std::fs::read_to_string(sandbox.path("peak")).unwrap();
        let peak = peak.parse::<u64>().unwrap() * 1024;
        assert!(
            peak < MEMORY,
            "the {tag} build took {peak} bytes at its peak"
        );
        assert_eq!(raw_digest(&sandbox, &format!("docker://{name}")), digest);
        // Both builds make the same image.
        let both = tierce(
            &sandbox,
            [
                "copy",
                &format!("docker://{name}"),
                &format!("docker://{reference}"),
            ],
        );
        assert_eq!(both, digest);
        assert_eq!(digest_of_first(&sandbox, &registry), digest, "{tag}");
    }

    let image = format!("docker://{reference}");
    assert_eq!(
        inspect(&sandbox, &image)["Layers"]
            .as_array()
            .unwrap()
            .len(),
        // Those of the base, and those that the dependencies are split into.
        5 + 6
    );
    skopeo(&sandbox, "copy", ["--format", "oci", &image, "oci:image:1"]);
    assert_clean(
        &Checker::new()
            .lambda_rules_from(5)
            .layout(&sandbox.path("image")),
    );
    if cfg!(target_arch = "x86_64") {
        the_libraries_work(&sandbox);
    }
    crate::support::demand_root("unpack what belongs to root");
    let root = umoci_unpack(&sandbox, "image:1", "bundle");
    let source = context.join("tree-amd64");
    let compare = "diff --recursive --no-dereference --brief --exclude=__pycache__ \"$1\" \"$2\"";
    let output = sandbox
        .command("sh")
        .args(["-c", compare, "sh"])
        .args([source, root.join("var/task")])
        .run();
    assert_eq!(output.stdout(), "");
}

/// The digest of the image that the debug build pushed.
fn digest_of_first(
    sandbox: &tierce_testkit::sandbox::Sandbox,
    registry: &DockerRegistry,
) -> Digest {
    raw_digest(
        sandbox,
        &format!("docker://{}", registry.reference("team/science", "debug")),
    )
}

/// Imports what was installed in a container of the image, and computes with it.
fn the_libraries_work(sandbox: &tierce_testkit::sandbox::Sandbox) {
    let code = "import boto3, numpy, pandas, scipy.linalg, sklearn; \
        frame = pandas.DataFrame({'a': numpy.arange(4)}); \
        print(frame.a.sum(), scipy.linalg.det([[2, 0], [0, 3]]), boto3.__version__)";
    let config = [
        ("--config.entrypoint", "python3"),
        ("--config.cmd", "-c"),
        ("--config.cmd", code),
    ];
    let options = config.into_iter().flat_map(|(key, value)| [key, value]);
    let umoci = ["config", "--image", "image:1", "--tag", "probe"];
    crate::support::tool(sandbox, "umoci", umoci.into_iter().chain(options));
    let mut command = Command::new(repository("tests/lambda-base/run-under-crun"));
    command
        .arg("--exec")
        .arg(format!("{}:probe", sandbox.path("image").display()));
    let said = crate::support::run(command);
    assert!(said.starts_with("6 6.0 1."), "{said}");
}
