//! Every pair of places carries an image unharmed, and other tools read what is there afterwards.

use std::fs;

use tierce_oci::Digest;
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::process::{DockerDaemon, DockerRegistry, require};
use tierce_testkit::sandbox::Sandbox;

use crate::support::{
    architecture, demand_root, docker, inspect, minimal, raw_digest, repository, run, sandbox,
    skopeo, tierce, umoci_unpack,
};

const PLACES: [&str; 5] = ["registry", "oci", "oci-archive", "docker-archive", "store"];

/// The place of a kind for an image of that name, as `tierce copy` takes it.
fn place(kind: &str, name: &str, registry: &DockerRegistry) -> String {
    match kind {
        "registry" => format!("docker://{}", registry.reference(name, "1")),
        "oci" => format!("oci:{name}:1"),
        "oci-archive" => format!("oci-archive:{name}.oci.tar:1"),
        "docker-archive" => format!("docker-archive:{name}.tar:localhost/{name}:1"),
        "store" => format!("store:{name}:1"),
        other => panic!("{other} is no kind of place"),
    }
}

/// Builds the fixture function on the small base for this machine.
#[track_caller]
fn build(sandbox: &Sandbox, format: &str, output: &str) -> Digest {
    let hello = repository("fixtures/functions/hello");
    let base = minimal("docker");
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

/// The id of the image, which is the digest of its config.
fn config_digest(sandbox: &Sandbox, image: &str) -> String {
    let raw = skopeo(sandbox, "inspect", ["--raw", image]);
    let manifest: serde_json::Value = serde_json::from_slice(&raw).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

/// Demands that other tools find the whole image in a place.
#[track_caller]
fn judge(sandbox: &Sandbox, kind: &str, name: &str, digest: Digest, registry: &DockerRegistry) {
    let rules = Checker::new().lambda_rules_from(3);
    match kind {
        "registry" => {
            let image = place(kind, name, registry);
            assert_eq!(raw_digest(sandbox, &image), digest);
            skopeo(sandbox, "copy", [&image, "dir:judged"]);
        }
        "oci" | "oci-archive" => {
            let path = sandbox.path(if kind == "oci" {
                name.to_owned()
            } else {
                format!("{name}.oci.tar")
            });
            // Without the tag: skopeo does not find Docker's media types by it.
            let image = format!("{kind}:{}", path.display());
            assert_eq!(raw_digest(sandbox, &image), digest);
            skopeo(sandbox, "copy", [&image, "dir:judged"]);
            assert_clean(&if kind == "oci" {
                rules.layout(&path)
            } else {
                rules.oci_archive(&path)
            });
        }
        "docker-archive" => {
            let file = sandbox.path(format!("{name}.tar"));
            assert_clean(&rules.docker_archive(&file));
            skopeo(
                sandbox,
                "copy",
                [&place(kind, name, registry), "dir:judged"],
            );
        }
        "store" => {
            let shown = sandbox.tierce(["inspect", "--json", &place(kind, name, registry)]);
            let shown = shown.run().assert_success().json();
            assert_eq!(shown["digest"], digest.to_string());
            let out = format!("oci:{name}-out:1");
            assert_eq!(
                tierce(sandbox, ["copy", &place(kind, name, registry), &out]),
                digest
            );
            judge(sandbox, "oci", &format!("{name}-out"), digest, registry);
            return;
        }
        other => panic!("{other} is no kind of place"),
    }
    // Whatever skopeo copied it has verified, blob by blob.
    fs::remove_dir_all(sandbox.path("judged")).unwrap();
}

#[test]
fn every_pair_of_places_carries_an_image_unharmed() {
    let registry = DockerRegistry::start();
    for format in ["docker", "oci"] {
        let sandbox = sandbox();
        for from in PLACES {
            let source = format!("{format}-{from}");
            let digest = build(&sandbox, format, &place(from, &source, &registry));
            judge(&sandbox, from, &source, digest, &registry);
            for to in PLACES {
                let name = format!("{source}-{to}");
                let (source, target) =
                    (place(from, &source, &registry), place(to, &name, &registry));
                let copied = tierce(&sandbox, ["copy", &source, &target]);
                assert_eq!(copied, digest, "{source} to {target}");
                judge(&sandbox, to, &name, digest, &registry);
                // Nothing of it is left to be moved a second time.
                assert_eq!(tierce(&sandbox, ["copy", &source, &target]), digest);
            }
        }
    }
}

#[test]
fn an_index_goes_through_every_place_that_can_hold_it() {
    let registry = DockerRegistry::start();
    for tag in ["latest", "docker"] {
        let sandbox = sandbox();
        let mut source = minimal(tag);
        let expected = tierce(&sandbox, ["copy", &source, "oci:first:1"]);
        for (number, kind) in ["registry", "oci-archive", "store", "oci"]
            .into_iter()
            .enumerate()
        {
            let target = place(kind, &format!("{tag}{number}"), &registry);
            assert_eq!(tierce(&sandbox, ["copy", &source, &target]), expected);
            source = target;
        }
        let layout = sandbox.path(format!("{tag}3"));
        assert_clean(&Checker::new().layout(&layout));
        let from = format!("oci:{}", layout.display());
        skopeo(&sandbox, "copy", ["--all", &from, "dir:all"]);
        let manifest = fs::read(sandbox.path("all/manifest.json")).unwrap();
        assert_eq!(Digest::of(&manifest), expected);
        // Two images, each with a manifest, a config and layers, of which they share two.
        let from_registry = place("registry", &format!("{tag}0"), &registry);
        assert_eq!(raw_digest(&sandbox, &from_registry), expected);
    }
}

/// Loads an archive and runs it: the base prints its one argument, the handler.
#[track_caller]
fn load_and_run(sandbox: &Sandbox, daemon: &DockerDaemon, file: &str, name: &str, id: &str) {
    let mut load = daemon.docker(["load", "--input"]);
    load.arg(sandbox.path(file));
    let loaded = run(load);
    assert!(
        loaded.contains(&format!("Loaded image: {name}")),
        "{loaded}"
    );
    let found = run(daemon.docker(["inspect", "--format", "{{.Id}}", name]));
    assert_eq!(found.trim(), id, "{file}");
    let said = run(daemon.docker(["run", "--rm", "--network", "none", name]));
    assert_eq!(said.trim(), "app.handler", "{file}");
    let own = run(daemon.docker(["run", "--rm", "--network", "none", name, "other"]));
    assert_eq!(own.trim(), "other", "{file}");
}

#[test]
fn docker_loads_and_runs_archives_under_the_configs_digest() {
    let Some(daemon) = docker() else { return };
    let registry = DockerRegistry::start();
    for format in ["docker", "oci"] {
        let sandbox = sandbox();
        let digest = build(&sandbox, format, "docker-archive:built.tar:hello:built");
        let reference = registry.reference("hello", format);
        assert_eq!(
            tierce(&sandbox, ["push", "docker-archive:built.tar", &reference]),
            digest
        );
        let id = config_digest(&sandbox, &format!("docker://{reference}"));
        load_and_run(&sandbox, &daemon, "built.tar", "hello:built", &id);
        tierce(
            &sandbox,
            ["pull", &reference, "docker-archive:pulled.tar:hello:pulled"],
        );
        load_and_run(&sandbox, &daemon, "pulled.tar", "hello:pulled", &id);
        // Docker itself pulls what was pushed, and calls it by the same digest.
        run(daemon.docker(["pull", "--quiet", &reference]));
        let digests = [
            "inspect",
            "--format",
            "{{.RepoDigests}} {{.Id}}",
            &reference,
        ];
        let found = run(daemon.docker(digests));
        assert!(
            found.contains(&digest.to_string()) && found.contains(&id),
            "{found}"
        );
    }
}

#[test]
fn an_unpacked_image_runs_under_crun() {
    demand_root("run crun without a user namespace");
    let sandbox = sandbox();
    for format in ["docker", "oci"] {
        build(&sandbox, format, &format!("oci:{format}:1"));
        let mut command =
            std::process::Command::new(repository("tests/lambda-base/run-under-crun"));
        command
            .arg("--exec")
            .arg(format!("{}:1", sandbox.path(format).display()));
        assert_eq!(run(command).trim(), "app.handler");
    }
    // umoci takes the OCI one as it is.
    let root = umoci_unpack(&sandbox, "oci:1", "bundle");
    let handler = fs::read(root.join("var/task/app.py")).unwrap();
    assert_eq!(
        handler,
        fs::read(repository("fixtures/functions/hello/src/app.py")).unwrap()
    );
    assert_eq!(
        fs::read_link(root.join("lib64")).unwrap().to_str(),
        Some("usr/lib64")
    );
    let shown = inspect(&sandbox, "oci:oci:1");
    assert_eq!(shown["Architecture"], architecture());
}

/// Go's decoder of Zstandard is not the one that our own tests use.
#[test]
fn skopeo_undoes_zstandard_out_of_a_registry() {
    let sandbox = sandbox();
    let registry = DockerRegistry::start();
    let image = format!("docker://{}", registry.reference("zstd", "1"));
    // Several frames, of text and of a program's bytes.
    let lines: Vec<_> = (0..200_000).map(|line| format!("line {line}\n")).collect();
    sandbox.write("app/text", lines.concat());
    sandbox.write("app/program", fs::read(require("skopeo")).unwrap());
    let arguments = ["build", "app", "--base=scratch", "--format=oci"];
    let more = ["--compression=zstd", "--add=.:/srv/", "-o", &image];
    let digest = tierce(&sandbox, arguments.into_iter().chain(more));
    assert_eq!(raw_digest(&sandbox, &image), digest);
    skopeo(
        &sandbox,
        "copy",
        ["--dest-decompress", &image, "dir:undone"],
    );
    let config = config_digest(&sandbox, &image);
    let config = fs::read(sandbox.path("undone").join(&config["sha256:".len()..])).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let diff_id = config["rootfs"]["diff_ids"][0].as_str().unwrap();
    let archive = fs::read(sandbox.path("undone").join(&diff_id["sha256:".len()..])).unwrap();
    assert_eq!(Digest::of(&archive).to_string(), diff_id);
    assert!(archive.len() > 2 << 20);
}
