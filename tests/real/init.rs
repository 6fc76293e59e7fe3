//! From a folder to an image that lint has nothing against, with real uv and npm.

use std::fs;

use tierce_testkit::FakeRegistry;
use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::images::{Format, lambda_base};
use tierce_testkit::process::require;
use tierce_testkit::sandbox::Sandbox;

use crate::dependencies::{tools, with_own_indexes};
use crate::support::{sandbox, tierce};

/// Writes a file for `app`, builds it on a base of that name, and lets lint judge it.
#[track_caller]
fn image_of(sandbox: &Sandbox, repository: &str, tag: &str) -> LoadedImage {
    let registry = FakeRegistry::start();
    drop(sandbox.tierce(["init", "app"]).run().assert_success());
    let base = format!("{}/{repository}:{tag}", registry.host());
    if repository.ends_with("python") {
        // The one with libraries that compiled modules need.
        let own = crate::support::lambda_base(sandbox);
        tierce(
            sandbox,
            [
                "copy",
                "--platform=amd64",
                &own,
                &format!("docker://{base}"),
            ],
        );
    } else {
        lambda_base(Format::Docker, "amd64").put(&registry, repository, Some(tag));
    }
    let mut command = sandbox.tierce(["build", "app", "-o=oci:built:it", "--base", &base]);
    if repository.ends_with("python") {
        command = command.env("PATH", tools(sandbox, true));
    }
    drop(with_own_indexes(command).run().assert_success());
    let directory = sandbox.path("built");
    assert_clean(&Checker::new().layout(&directory));
    let judged = sandbox
        .tierce(["lint", "--json", "--for=lambda", "oci:built:it"])
        .run()
        .assert_success()
        .json();
    let findings = judged["images"][0]["findings"].as_array().unwrap();
    let bad = findings.iter().find(|it| it["severity"] != "note");
    assert_eq!(bad, None, "{judged}");
    LoadedImage::from_layout(&directory, Some("it")).unwrap()
}

#[test]
fn a_python_project_becomes_an_image() {
    let sandbox = sandbox();
    sandbox.write("app/requirements.txt", "markupsafe==3.0.2\n");
    sandbox.write("app/.python-version", "3.11\n");
    sandbox.write(
        "app/src/app.py",
        "import markupsafe\n\n\ndef handler(event, context):\n    return str(markupsafe.escape(event))\n",
    );
    sandbox.write("app/.env", "PASSWORD=secret\n");
    let tree = image_of(&sandbox, "lambda/python", "3.11").tree().unwrap();
    assert!(tree.contains_key("var/task/app.py"));
    assert!(tree.contains_key("var/task/markupsafe/__init__.py"));
    assert!(!tree.keys().any(|path| path.ends_with(".env")));
}

#[test]
fn a_node_project_becomes_an_image() {
    let sandbox = sandbox();
    let package = r#"{"name": "app", "type": "module", "dependencies": {"ms": "2.1.3"}}"#;
    sandbox.write("app/package.json", package);
    sandbox.write(
        "app/index.mjs",
        "import ms from 'ms';\nexport const handler = async () => ms('1 day');\n",
    );
    let lock = sandbox.command(require("npm")).args([
        "install",
        "--package-lock-only",
        "--no-audit",
        "--no-fund",
        "--prefix=app",
    ]);
    drop(with_own_indexes(lock).run().assert_success());
    let tree = image_of(&sandbox, "lambda/nodejs", "24").tree().unwrap();
    assert!(tree.contains_key("var/task/index.mjs"));
    assert!(tree.contains_key("var/task/node_modules/ms/index.js"));
    let text = fs::read_to_string(sandbox.path("app/tierce.toml")).unwrap();
    assert!(text.contains("node = \"package-lock.json\""), "{text}");
}

#[test]
fn bcrypt_keeps_what_its_platform_loads() {
    let sandbox = sandbox();
    let registry = FakeRegistry::start();
    lambda_base(Format::Docker, "amd64").put(&registry, "lambda/nodejs", Some("22"));
    sandbox.write(
        "app/package.json",
        r#"{"name": "app", "dependencies": {"bcrypt": "6.0.0"}}"#,
    );
    let lock = sandbox.command(require("npm")).args([
        "install",
        "--package-lock-only",
        "--no-audit",
        "--no-fund",
        "--prefix=app",
    ]);
    drop(with_own_indexes(lock).run().assert_success());
    let prebuilds = |more: &str| {
        sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"{}/lambda/nodejs:22\"\ntarget = \"lambda\"\n[[layer]]\nname = \"dependencies\"\n\
                 node = \"package-lock.json\"\n{more}\n",
                registry.host()
            ),
        );
        let command = sandbox.tierce(["build", "app", "-o=oci:built:it"]);
        drop(with_own_indexes(command).run().assert_success());
        let image = LoadedImage::from_layout(&sandbox.path("built"), Some("it")).unwrap();
        let files = image.tree().unwrap().into_keys();
        let names = files.filter(|path| path.ends_with(".node"));
        names
            .map(|path| path.rsplit("prebuilds/").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let all = prebuilds("");
    assert!(all.len() > 5, "{all:?}");
    let left = prebuilds("prune-prebuilds = true");
    // Whether the one for musl goes too is for lint to say: it is a file of this processor.
    let is_ours = |name: &String| name.starts_with("linux-x64/bcrypt.");
    assert!(left.iter().all(is_ours), "{left:?}");
    assert!(
        left.contains(&"linux-x64/bcrypt.glibc.node".to_owned()),
        "{left:?}"
    );
}
