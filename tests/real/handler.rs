//! Compiled handlers: real programs of gcc, run with the libraries that were found for them.

use std::fs;
use std::path::Path;

use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::process::DockerRegistry;
use tierce_testkit::sandbox::Sandbox;

use crate::support::{
    architecture, digests, invoke, provided_base, repository, run, sandbox, tierce, tool,
};

/// Compiles C for this machine in the sandbox.
#[track_caller]
fn gcc(sandbox: &Sandbox, output: &str, source: &str, more: &[&str]) {
    let file = sandbox.write(format!("{output}.c"), source);
    let output = sandbox.path(output);
    let arguments = [
        "-O2",
        "-o",
        output.to_str().unwrap(),
        file.to_str().unwrap(),
    ];
    tool(sandbox, "gcc", arguments.iter().chain(more));
}

/// The fixture, compiled in a folder of the sandbox.
#[track_caller]
fn compiled_fixture(sandbox: &Sandbox) {
    let from = repository("fixtures/functions/compiled");
    for file in [
        "compile",
        "tierce.toml",
        "src/greeting.c",
        "src/greeting.h",
        "src/handler.c",
    ] {
        let to = sandbox.path("compiled").join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from.join(file), to).unwrap();
    }
    tool(sandbox, "sh", ["compiled/compile"]);
}

fn machine() -> &'static str {
    std::env::consts::ARCH
}

#[test]
fn the_fixture_is_built_for_both_processors_and_answers() {
    let sandbox = sandbox();
    compiled_fixture(&sandbox);
    let base = provided_base(&sandbox);
    let output = sandbox
        .tierce(["build", "compiled", "--base", &base, "-o", "oci:image:1"])
        .run()
        .assert_success();
    assert_eq!(digests(&output).len(), 2, "{output:?}");
    let said = output.stderr();
    for machine in ["x86_64", "aarch64"] {
        let brought = format!("libgreeting.so.1 (build/{machine}/libgreeting.so.1)");
        assert!(said.contains(&brought), "{said}");
    }
    let rules = Checker::new().lambda_rules_from(3);
    assert_clean(&rules.layout(&sandbox.path("image")));
    for platform in ["amd64", "arm64"] {
        let image = format!("oci:image:1-{platform}");
        // The base itself is Debian's, and not all that Lambda's own is.
        drop(
            sandbox
                .tierce(["lint", "--for", "lambda", &image])
                .run()
                .assert_success(),
        );
    }
    let image = format!("{}:1-{}", sandbox.path("image").display(), architecture());
    let answer = invoke(&image, r#"{"name": "tierce"}"#);
    assert_eq!(answer["outcome"], "response", "{answer}");
    assert_eq!(answer["body"]["message"], "Hello, tierce!", "{answer}");
    assert_eq!(answer["body"]["request"], answer["request_id"], "{answer}");
    let answer = invoke(&image, r#"{"fail": true}"#);
    assert_eq!(answer["outcome"], "error", "{answer}");
    assert_eq!(answer["body"]["errorMessage"], "on purpose", "{answer}");

    // Nothing changed: the same images, and no file of theirs is read.
    let again = sandbox
        .tierce(["build", "compiled", "--base", &base, "-o", "oci:image:1"])
        .run()
        .assert_success();
    assert_eq!(digests(&again), digests(&output));
}

/// A library that the base lacks and this machine has, by its own loader's directories.
#[test]
fn a_library_of_the_machine_comes_along_with_what_it_needs() {
    let sandbox = sandbox();
    let folder = Path::new("/usr/lib").join(format!("{}-linux-gnu", machine()));
    let sqlite = folder.join("libsqlite3.so.0");
    gcc(
        &sandbox,
        "context/version",
        "#include <stdio.h>\nextern const char *sqlite3_libversion(void);\n\
         int main(void) { printf(\"sqlite %s\\n\", sqlite3_libversion()); return 0; }\n",
        &[sqlite.to_str().unwrap()],
    );
    let base = provided_base(&sandbox);
    // Where the base's loader is told where to look, and where the image has to tell it.
    for (number, variable) in ["LANG=C", "LD_LIBRARY_PATH="].iter().enumerate() {
        let place = format!("oci:image:{number}");
        let output = sandbox
            .tierce(["build", "context", "--base", &base])
            .args(["--platform", architecture(), "--env", variable])
            .args(["--binary", "version", "--entrypoint", "/var/task/version"])
            .args(["--format", "oci", "-o", &place])
            .run()
            .assert_success();
        let said = output.stderr();
        assert!(said.contains("libsqlite3.so.0 (/"), "{said}");
        assert!(
            !said.contains("libm.so.6") && !said.contains("libz.so.1"),
            "{said}"
        );
        let image = format!("{}:{number}", sandbox.path("image").display());
        let mut command =
            std::process::Command::new(repository("tests/lambda-base/run-under-crun"));
        command.args(["--exec", &image]);
        let printed = run(command);
        assert!(printed.starts_with("sqlite 3."), "{printed}");
    }
}

/// What Debian 12's compiler makes needs glibc 2.34 for `__libc_start_main` alone.
#[test]
fn a_program_for_a_newer_glibc_is_refused_on_the_older_base_and_taken_on_the_newer() {
    let sandbox = sandbox();
    gcc(
        &sandbox,
        "context/newer",
        "#define _GNU_SOURCE\n#include <unistd.h>\nint main(void) { return gettid() == 0; }\n",
        &[],
    );
    // Under the names of AWS's bases, by which it is known what they have.
    let registry = DockerRegistry::start();
    let base = provided_base(&sandbox);
    let name = |tag: &str| format!("{}/lambda/provided:{tag}", registry.host());
    for tag in ["al2", "al2023"] {
        tierce(&sandbox, ["copy", &base, &name(tag)]);
    }
    let build = |tag: &str| {
        let arguments = [
            "build",
            "context",
            "--binary",
            "newer",
            "--base",
            &name(tag),
        ];
        sandbox
            .tierce(arguments)
            .args(["--platform", architecture(), "-o", "store:newer"])
            .run()
    };
    let refused = build("al2").assert_code(1).stderr();
    assert!(
        refused.contains("`newer` needs ")
            && refused.contains("GLIBC_2.34 for `__libc_start_main`")
            && refused.contains("GLIBC_2.30 for `gettid`")
            && refused.contains("offers GLIBC_2.26 at most"),
        "{refused}"
    );
    drop(build("al2023").assert_success());
    // A static program asks nothing of either.
    tool(
        &sandbox,
        "gcc",
        ["-static", "-o", "context/newer", "context/newer.c"],
    );
    drop(build("al2").assert_success());
}
