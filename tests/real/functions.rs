//! The functions of the fixtures with dependencies: for both processors, and called for this one.

use std::path::Path;

use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::sandbox::{Command, Sandbox};
use tierce_testkit::tree::Node;

use crate::dependencies::with_own_indexes;
use crate::support::{architecture, invoke, lambda_base, node_base, repository, sandbox, target};

/// `EM_X86_64` and `EM_AARCH64`.
const MACHINES: [(&str, u16); 2] = [("amd64", 62), ("arm64", 183)];

/// A run with the packages of the person who runs the tests, and an npm that installs for others.
fn command<'a>(sandbox: &'a Sandbox, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let npm = target().join("npm/node_modules/.bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(npm).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(path).unwrap();
    with_own_indexes(sandbox.tierce(arguments)).env("PATH", path)
}

/// Builds a function for both processors, has both images judged, and looks at each of their programs
/// and libraries.
#[track_caller]
fn build(sandbox: &Sandbox, function: &str, base: &str) -> [LoadedImage; 2] {
    let context = repository("fixtures/functions").join(function);
    let output = format!("oci:{function}:1");
    let arguments = [
        "build",
        context.to_str().unwrap(),
        "--base",
        base,
        "-o",
        &output,
    ];
    drop(command(sandbox, arguments).run().assert_success());
    let layout = sandbox.path(function);
    assert_clean(&Checker::new().lambda_rules_from(5).layout(&layout));
    MACHINES.map(|(name, machine)| {
        let tag = format!("1-{name}");
        let lint = ["lint", &format!("oci:{function}:{tag}")];
        drop(sandbox.tierce(lint).run().assert_success());
        let image = LoadedImage::from_layout(&layout, Some(&tag)).unwrap();
        let tree = image.tree().unwrap();
        let mut programs = 0;
        for (path, entry) in &tree {
            let Node::File(bytes) = &entry.node else {
                continue;
            };
            if path.starts_with("var/task/") && bytes.starts_with(b"\x7fELF") {
                assert_eq!(
                    u16::from_le_bytes([bytes[18], bytes[19]]),
                    machine,
                    "{path}"
                );
                programs += 1;
            }
            let extension = Path::new(path.as_str()).extension();
            let is_module = extension.is_some_and(|it| it == "so" || it == "node");
            let is_elf = bytes.starts_with(b"\x7fELF");
            assert!(
                !path.starts_with("var/task/") || !is_module || is_elf,
                "{path}"
            );
        }
        assert!(programs > 0, "no native code in {tag}");
        image
    })
}

#[test]
fn the_python_function_answers() {
    let sandbox = sandbox();
    let [_, arm64] = build(&sandbox, "python", &lambda_base(&sandbox));
    let tree = arm64.tree().unwrap();
    assert!(tree.contains_key("var/task/numpy/__pycache__/__init__.cpython-311.pyc"));
    assert!(tree.contains_key("var/task/__pycache__/app.cpython-311.pyc"));
    assert!(!tree.contains_key("var/task/numpy/tests/__init__.py"));
    if architecture() != "amd64" {
        return;
    }
    let image = format!("{}:1-amd64", sandbox.path("python").display());
    let answer = invoke(&image, r#"{"numbers": [1, 2, 6]}"#);
    assert_eq!(answer["outcome"], "response", "{answer}");
    assert_eq!(answer["body"]["report"]["mean"], 3.0, "{answer}");
    let place = answer["body"]["kept_at"].as_str().unwrap();
    assert!(place.contains("eu-west-1"), "{answer}");
    assert_eq!(answer["body"]["request"], answer["request_id"], "{answer}");
    let answer = invoke(&image, "{}");
    assert_eq!(answer["body"]["errorType"], "ValueError", "{answer}");
}

#[test]
fn the_node_function_answers() {
    let sandbox = sandbox();
    let _ = build(&sandbox, "node", &node_base(&sandbox));
    if architecture() != "amd64" {
        return;
    }
    let image = format!("{}:1-amd64", sandbox.path("node").display());
    let answer = invoke(&image, r##"{"colour": "#102030", "width": 16}"##);
    assert_eq!(answer["outcome"], "response", "{answer}");
    assert_eq!(
        answer["body"]["size"],
        serde_json::json!([16, 16]),
        "{answer}"
    );
    assert_eq!(answer["body"]["colour"], "#102030", "{answer}");
    assert_eq!(answer["body"]["request"], answer["request_id"], "{answer}");
    let answer = invoke(&image, r#"{"width": "wide"}"#);
    assert_eq!(answer["outcome"], "error", "{answer}");
}
