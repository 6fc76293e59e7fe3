//! The arrows between the crates, kept by a test.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Which of the workspace's crates each may use, apart from dev-dependencies.
const ARROWS: [(&str, &[&str]); 12] = [
    ("tierce", &["tierce-cli"]),
    (
        "tierce-cli",
        &[
            "tierce-aws",
            "tierce-image",
            "tierce-lambda",
            "tierce-layer",
            "tierce-oci",
            "tierce-registry",
            "tierce-runner",
            "tierce-store",
        ],
    ),
    ("tierce-lambda", &["tierce-image", "tierce-oci"]),
    ("tierce-layer", &["tierce-deflate", "tierce-oci"]),
    ("tierce-runner", &["tierce-layer", "tierce-oci"]),
    ("tierce-store", &["tierce-image", "tierce-oci"]),
    (
        "tierce-aws",
        &["tierce-image", "tierce-oci", "tierce-registry"],
    ),
    ("tierce-registry", &["tierce-image", "tierce-oci"]),
    ("tierce-deflate", &[]),
    ("tierce-image", &["tierce-oci"]),
    ("tierce-oci", &[]),
    ("tierce-testkit", &["tierce-oci"]),
];

/// What the pure crates must not even be able to reach: files, sockets, runtimes, logs.
const PURE: [&str; 3] = ["tierce-oci", "tierce-image", "tierce-lambda"];
const IMPURE: [&str; 9] = [
    "tokio", "reqwest", "tempfile", "walkdir", "rustix", "tracing", "tar", "flate2", "etcetera",
];

/// What cargo knows of the workspace, for this machine's platform alone: of the others' crates some
/// were never downloaded where only this test was built.
fn metadata() -> Metadata {
    let rustc = Command::new("rustc")
        .args(["--print", "host-tuple"])
        .output();
    let host = rustc.expect("rustc runs").stdout;
    let host = String::from_utf8(host).expect("a target is named in ASCII");
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .other_options(
            ["--offline", "--locked", "--filter-platform", host.trim()].map(str::to_owned),
        )
        .exec()
        .expect("cargo metadata")
}

fn normal_dependencies(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let names = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind != DependencyKind::Development)
                .map(|dependency| dependency.name.clone());
            (package.name.to_string(), names.collect())
        })
        .collect()
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let arrows = ARROWS.map(|(name, allowed)| (name.to_owned(), allowed));
    let arrows = BTreeMap::from(arrows);
    for (name, dependencies) in normal_dependencies(&metadata()) {
        let allowed = arrows
            .get(&name)
            .unwrap_or_else(|| panic!("{name} has no place in ARROWS"));
        for dependency in dependencies.iter().filter(|it| it.starts_with("tierce")) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not use {dependency}"
            );
        }
    }
}

#[test]
fn the_pure_crates_reach_nothing_outside() {
    let all = normal_dependencies(&metadata());
    for name in PURE {
        for forbidden in IMPURE {
            assert!(
                !all[name].contains(forbidden),
                "{name} must not use {forbidden}"
            );
        }
    }
}

#[test]
fn testkit_is_only_for_tests() {
    for (name, dependencies) in normal_dependencies(&metadata()) {
        assert!(
            !dependencies.contains("tierce-testkit"),
            "{name} ships testkit"
        );
    }
}

/// With their default features the SDKs would bring an HTTP client and a TLS stack of years ago
/// beside our own.
#[test]
fn there_is_one_tls_stack_and_one_http() {
    // The lock file names more: what features that nobody asks for would bring.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--workspace"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{tree:?}");
    let tree = String::from_utf8(tree.stdout).expect("crates are named in ASCII");
    let crates: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(" v")?;
            Some((name, rest.split(' ').next()?))
        })
        .collect();
    let versions = |name: &str| -> Vec<&str> {
        let found = crates.iter().filter(|(found, _)| *found == name);
        found.map(|(_, version)| *version).collect()
    };
    for absent in ["ring", "openssl", "native-tls"] {
        assert!(versions(absent).is_empty(), "{absent} is in the tree");
    }
    for (name, line) in [("hyper", "1."), ("rustls", "0.23.")] {
        let found = versions(name);
        assert!(
            found.len() == 1 && found[0].starts_with(line),
            "{name}: {found:?}"
        );
    }
}

/// A second backend of flate2 would change every digest, and so would another libzstd than the one
/// that the lock file names; `preserve_order` would undo sorted keys where somebody forgets to sort.
#[test]
fn no_feature_moves_digests() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("a resolved graph");
    for node in &resolve.nodes {
        let name = metadata[&node.id].name.as_str();
        let features: Vec<&str> = node
            .features
            .iter()
            .map(|feature| feature.as_str())
            .collect();
        match name {
            "flate2" => {
                for backend in [
                    "miniz_oxide",
                    "rust_backend",
                    "zlib",
                    "zlib-ng",
                    "zlib-ng-compat",
                ] {
                    assert!(
                        !features.contains(&backend),
                        "flate2 has the backend {backend}"
                    );
                }
                assert!(features.contains(&"zlib-rs"));
            }
            "zstd-sys" => {
                for other in ["pkg-config", "rust-backend", "thin"] {
                    assert!(!features.contains(&other), "zstd-sys has {other}");
                }
            }
            "serde_json" => assert!(!features.contains(&"preserve_order")),
            _ => {}
        }
    }
}
