//! The Runtime Interface Client on a base that has Python and no client, called for real.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tierce_testkit::check::LoadedImage;

use crate::dependencies::{tools, with_own_indexes};
use crate::support::{architecture, lambda_base, repository, sandbox, tierce};

#[test]
fn a_function_on_a_plain_python_answers_under_crun() {
    let sandbox = sandbox();
    let base = lambda_base(&sandbox);
    let architecture = architecture();
    let platform = format!("--platform={architecture}");
    // What the Lambda-like base has of Debian: its system and its Python, and nothing of Lambda.
    tierce(&sandbox, ["copy", &platform, &base, "oci:own:1"]);
    let image = LoadedImage::from_layout(&sandbox.path("own"), Some("1")).unwrap();
    for (name, tar) in ["system", "language"].iter().zip(&image.tars) {
        fs::create_dir_all(sandbox.path("plain")).unwrap();
        fs::write(sandbox.path(format!("plain/{name}.tar")), tar).unwrap();
    }
    sandbox.write(
        "plain/tierce.toml",
        "[image]\nbase = \"scratch\"\ntarget = \"generic\"\n\
         [[layer]]\nname = \"system\"\ntar = \"system.tar\"\nverbatim = true\n\
         [[layer]]\nname = \"language\"\ntar = \"language.tar\"\nverbatim = true\n\
         [config]\nenv = { PATH = \"/usr/local/bin:/usr/bin:/bin\" }\n",
    );
    tierce(&sandbox, ["build", "plain", &platform, "-o=oci:base:1"]);
    sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"oci:../base:1\"\nhandler = \"app.handler\"\nformat = \"oci\"\nruntime-client = true\n\
         [[layer]]\nname = \"code\"\nadd = [{ from = \"src/\", to = \"/var/task/\" }]\n",
    );
    sandbox.write(
        "app/src/app.py",
        "def handler(event, context):\n    return {'hello': event['name'], 'id': context.aws_request_id}\n",
    );
    let build = |more: &[&str]| {
        let arguments = [&["build", "app", platform.as_str()], more].concat();
        let command = sandbox.tierce(arguments).env("PATH", tools(&sandbox, true));
        with_own_indexes(command).run().assert_success()
    };
    let said = build(&["-o=oci:image:1"]).stderr();
    assert!(
        said.contains("the runtime client is awslambdaric=="),
        "{said}"
    );

    let judged = sandbox
        .tierce(["lint", "--json", "oci:image:1"])
        .run()
        .assert_success();
    let judged = judged.json().to_string();
    assert!(!judged.contains("no-runtime-client"), "{judged}");
    let judged = sandbox
        .tierce(["lint", "--json", "--for=lambda", "oci:base:1"])
        .run();
    assert!(!judged.stderr().contains("panicked"));

    let mut command = Command::new(repository("tests/lambda-base/run-under-crun"));
    let image = format!("{}:1", sandbox.path("image").display());
    let output = command
        .args(["--event", r#"{"name": "tierce"}"#, &image])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let answer: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{stderr}"));
    assert_eq!(answer["outcome"], "response", "{answer}\n{stderr}");
    assert_eq!(answer["body"]["hello"], "tierce", "{answer}");
    assert_eq!(answer["body"]["id"], answer["request_id"], "{answer}");

    // For the other processor it is resolved too; nothing of it is run.
    let other = if architecture == "amd64" {
        "arm64"
    } else {
        "amd64"
    };
    tierce(
        &sandbox,
        ["build", "plain", "--platform", other, "-o=oci:other:1"],
    );
    let platform = format!("--platform={other}");
    let arguments = [
        "build",
        "app",
        &platform,
        "--base=oci:other:1",
        // The base says that it is for that processor, and its files are for this one.
        "--allow=wrong-architecture",
        "-o=oci:foreign:1",
    ];
    let command = sandbox.tierce(arguments).env("PATH", tools(&sandbox, true));
    drop(with_own_indexes(command).run().assert_success());
    let foreign = LoadedImage::from_layout(&sandbox.path("foreign"), Some("1")).unwrap();
    let machine = if other == "arm64" {
        "aarch64"
    } else {
        "x86_64"
    };
    let tree = foreign.tree().unwrap();
    let is_client = |path: &String| path.contains("runtime_client.") && path.contains(machine);
    assert!(tree.keys().any(is_client), "{:?}", tree.keys());
}
