//! Images that skopeo, umoci and docker made, as bases and as sources.

use std::fs;

use serde_json::Value;
use tierce_oci::Digest;
use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::process::DockerRegistry;
use tierce_testkit::sandbox::Sandbox;

use crate::support::{
    architecture, demand_root, docker, minimal, raw_digest, repository, run, sandbox, skopeo,
    tierce, tool, umoci_unpack,
};

/// Builds the fixture function on a base that another tool wrote, and demands that the base's layers
/// are in it as they were.
#[track_caller]
fn build_on(sandbox: &Sandbox, base: &str, base_layers: &[String]) -> LoadedImage {
    let hello = repository("fixtures/functions/hello");
    let out = sandbox.path("built-on");
    if out.exists() {
        fs::remove_dir_all(&out).unwrap();
    }
    let arguments = ["build", hello.to_str().unwrap(), "--base", base];
    let more = ["--platform", architecture(), "-o", "oci:built-on:1"];
    tierce(sandbox, arguments.into_iter().chain(more));
    let rules = Checker::new().lambda_rules_from(base_layers.len());
    assert_clean(&rules.layout(&out));
    let image = LoadedImage::from_layout(&out, Some("1")).unwrap();
    let diff_ids = image.config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids.len(), base_layers.len() + 1, "{base}");
    for (found, expected) in diff_ids.iter().zip(base_layers) {
        assert_eq!(found, expected, "{base}");
    }
    assert_eq!(image.config["config"]["Cmd"][0], "app.handler", "{base}");
    let tree = image.tree().unwrap();
    assert!(tree.contains_key("var/task/app.py"), "{base}");
    image
}

/// The diff ids of the small base for this machine.
fn base_layers(sandbox: &Sandbox) -> Vec<String> {
    tierce(
        sandbox,
        [
            "copy",
            "--platform",
            architecture(),
            &minimal("docker"),
            "oci:plain:1",
        ],
    );
    let image = LoadedImage::from_layout(&sandbox.path("plain"), Some("1")).unwrap();
    let ids = image.config["rootfs"]["diff_ids"].as_array().unwrap();
    ids.iter()
        .map(|id| id.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_skopeo_writes_is_a_base_and_a_source() {
    let sandbox = sandbox();
    let registry = DockerRegistry::start();
    let layers = base_layers(&sandbox);
    let in_registry = format!("docker://{}", registry.reference("base", "1"));
    for (number, target) in [
        "oci:s-oci:1",
        "oci-archive:s-oci.tar:1",
        "docker-archive:s-docker.tar:localhost/base:1",
        &in_registry,
    ]
    .into_iter()
    .enumerate()
    {
        skopeo(&sandbox, "copy", ["oci:plain", target]);
        build_on(&sandbox, target, &layers);
        let copy = format!("oci:copied-{number}:1");
        let digest = tierce(&sandbox, ["copy", target, &copy]);
        assert_eq!(
            raw_digest(&sandbox, &format!("oci:copied-{number}")),
            digest
        );
        assert_clean(&Checker::new().layout(&sandbox.path(format!("copied-{number}"))));
        if !target.starts_with("docker-archive") {
            assert_eq!(raw_digest(&sandbox, target), digest, "{target}");
        }
    }
    // zstd and no compression, as skopeo repacks layers.
    for how in ["zstd", "gzip"] {
        let target = format!("oci:{how}:1");
        let repack = [
            "--dest-compress-format",
            how,
            "--format",
            "oci",
            "dir:unpacked",
            &target,
        ];
        if !sandbox.path("unpacked").exists() {
            skopeo(
                &sandbox,
                "copy",
                ["--dest-decompress", "oci:plain", "dir:unpacked"],
            );
        }
        skopeo(&sandbox, "copy", repack);
        build_on(&sandbox, &target, &layers);
    }
}

#[test]
fn what_umoci_writes_is_a_base_and_a_source() {
    demand_root("unpack what belongs to root");
    let sandbox = sandbox();
    let layers = base_layers(&sandbox);
    skopeo(
        &sandbox,
        "copy",
        ["--format", "oci", "oci:plain", "oci:changed:1"],
    );
    let root = umoci_unpack(&sandbox, "changed:1", "bundle");
    fs::create_dir(root.join("opt/extra")).unwrap();
    fs::write(root.join("opt/extra/file"), "from umoci").unwrap();
    fs::remove_file(root.join("etc/os-release")).unwrap();
    tool(
        &sandbox,
        "umoci",
        ["repack", "--image", "changed:1", "bundle"],
    );
    let config = [
        "config",
        "--image",
        "changed:1",
        "--config.env",
        "FROM=umoci",
    ];
    tool(
        &sandbox,
        "umoci",
        config.into_iter().chain(["--author", "umoci"]),
    );
    let config = tool(&sandbox, "skopeo", ["inspect", "--config", "oci:changed:1"]);
    let config: Value = serde_json::from_slice(&config).unwrap();
    let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let ids: Vec<String> = ids
        .iter()
        .map(|id| id.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids[..layers.len()], layers);
    let image = build_on(&sandbox, "oci:changed:1", &ids);
    let environment = image.config["config"]["Env"].as_array().unwrap();
    assert!(environment.contains(&"FROM=umoci".into()));
    assert_eq!(image.config["author"], "umoci");
    let tree = image.tree().unwrap();
    assert!(tree.contains_key("opt/extra/file"));
    assert!(!tree.contains_key("etc/os-release"));
    let registry = DockerRegistry::start();
    let reference = registry.reference("changed", "1");
    let digest = tierce(&sandbox, ["push", "oci:changed:1", &reference]);
    assert_eq!(raw_digest(&sandbox, "oci:changed:1"), digest);
    assert_eq!(
        raw_digest(&sandbox, &format!("docker://{reference}")),
        digest
    );
}

#[test]
fn what_docker_saves_is_a_base_and_a_source() {
    let Some(daemon) = docker() else { return };
    let sandbox = sandbox();
    let registry = DockerRegistry::start();
    let layers = base_layers(&sandbox);
    tierce(
        &sandbox,
        ["copy", "oci:plain:1", "docker-archive:base.tar:base:1"],
    );
    let mut load = daemon.docker(["load", "--quiet", "--input"]);
    load.arg(sandbox.path("base.tar"));
    run(load);
    // An image that docker made: a container's changes on top.
    let create = ["create", "--network", "none", "base:1", "unused"];
    let container = run(daemon.docker(create));
    sandbox.write("added", "by docker");
    let mut copy = daemon.docker(["cp"]);
    copy.arg(sandbox.path("added"));
    copy.arg(format!("{}:/opt/added", container.trim()));
    run(copy);
    run(daemon.docker(["commit", container.trim(), "made:1"]));
    let mut save = daemon.docker(["save", "base:1", "made:1", "--output"]);
    save.arg(sandbox.path("saved.tar"));
    run(save);
    let id = |name: &str| {
        let id = run(daemon.docker(["inspect", "--format", "{{.Id}}", name]));
        id.trim().to_owned()
    };

    // Two images in one archive: the name picks one.
    build_on(&sandbox, "docker-archive:saved.tar:base:1", &layers);
    let ids = run(daemon.docker([
        "inspect",
        "--format",
        "{{join .RootFS.Layers \" \"}}",
        "made:1",
    ]));
    let ids: Vec<String> = ids.split_whitespace().map(str::to_owned).collect();
    assert_eq!(ids.len(), layers.len() + 1);
    let image = build_on(&sandbox, "docker-archive:saved.tar:made:1", &ids);
    assert!(image.tree().unwrap().contains_key("opt/added"));

    // Pushed and pulled back by docker, it has the id that it was saved with.
    let reference = registry.reference("made", "1");
    let digest = tierce(
        &sandbox,
        ["push", "docker-archive:saved.tar:made:1", &reference],
    );
    assert_eq!(
        raw_digest(&sandbox, &format!("docker://{reference}")),
        digest
    );
    let made = id("made:1");
    run(daemon.docker(["image", "rm", "--force", "made:1"]));
    run(daemon.docker(["pull", "--quiet", &reference]));
    assert_eq!(id(&reference), made);

    // And what docker pushes by itself is a base too.
    let other = registry.reference("pushed", "1");
    run(daemon.docker(["tag", &reference, &other]));
    run(daemon.docker(["push", &other]));
    build_on(&sandbox, &other, &ids);
    let pulled: Digest = tierce(&sandbox, ["pull", &other, "oci:pulled:1"]);
    assert_eq!(raw_digest(&sandbox, &format!("docker://{other}")), pulled);
}
