//! The head start of a push: what goes to a registry while layers are still being made.
//!
//! The layer that is "still being made" is a tar that comes through a pipe, so that a test says when
//! it comes: nothing here depends on who is faster.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::Child;
use std::thread::JoinHandle;

use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, TestIndex, small_base};
use tierce_testkit::{FakeRegistry, Fault, Gate, Method, RequestLog};

use crate::support::{World, ended, layer_digests, noise};

/// A tar that comes when the test says so. Until then whoever reads it waits.
struct LateTar {
    path: PathBuf,
    writer: Option<JoinHandle<std::io::Result<()>>>,
}

impl LateTar {
    /// Puts a pipe at `app/late.tar`.
    fn new(world: &World) -> Self {
        let path = world.path("app/late.tar");
        let made = world.sandbox.command("mkfifo").arg(&path).run();
        drop(made.assert_success());
        Self { path, writer: None }
    }

    /// Gives `bytes` to the next reader, who may not be there yet.
    fn come(&mut self, bytes: Vec<u8>) {
        self.finish();
        let path = self.path.clone();
        self.writer = Some(std::thread::spawn(move || fs::write(path, bytes)));
    }

    fn finish(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap().unwrap();
        }
    }

    /// Waits for the end of `child`.
    #[track_caller]
    fn ended(mut self, child: Child) -> (Option<i32>, String, String) {
        let outcome = ended(child);
        // A reader that never came would be waited for without end.
        let _reader = OpenOptions::new().read(true).write(true).open(&self.path);
        self.finish();
        outcome
    }
}

fn late_layer() -> Vec<u8> {
    let layer = LayerBuilder::new().directory("srv", 0o755);
    layer.file("srv/late", 0o644, b"late").tar()
}

/// `app`, whose first layer is made at once and whose second waits for its tar.
fn world_with_late_layer(base: &str) -> (World, LateTar) {
    let world = World::new();
    world.sandbox.write("app/src/noise", noise(7, 100_000));
    world.sandbox.write(
        "app/tierce.toml",
        format!(
            "[image]\nbase = \"{base}\"\n[[layer]]\nname = \"first\"\n\
             add = [{{ from = \"src/\", to = \"/opt/\" }}]\n\
             [[layer]]\nname = \"late\"\ntar = \"late.tar\"\nverbatim = true\n"
        ),
    );
    let late = LateTar::new(&world);
    (world, late)
}

/// Demands that every upload in the log was asked for first, happened once, and that manifests came
/// after all blobs.
#[track_caller]
fn assert_orderly(log: &RequestLog) {
    let records = log.records();
    let uploaded: Vec<&str> = records
        .iter()
        .filter(|record| record.is_upload() && record.method == Method::PUT)
        .filter_map(|record| record.query.split("digest=").nth(1))
        .collect();
    assert!(!uploaded.is_empty(), "{log:?}");
    for digest in uploaded {
        let hex = digest.trim_start_matches("sha256%3A");
        let asked = records
            .iter()
            .position(|it| it.method == Method::HEAD && it.path.ends_with(hex));
        let sent: Vec<usize> = (0..records.len())
            .filter(|at| records[*at].is_upload() && records[*at].query.contains(hex))
            .collect();
        assert_eq!(sent.len(), 1, "{hex}: {log:?}");
        assert!(asked.unwrap() < sent[0], "{hex}: {log:?}");
    }
    let is_manifest = |at: &usize| {
        records[*at].method == Method::PUT && records[*at].path.contains("/manifests/")
    };
    let first_manifest = (0..records.len()).find(is_manifest).unwrap();
    let last_upload = (0..records.len()).rfind(|at| records[*at].is_upload());
    assert!(last_upload.unwrap() < first_manifest, "{log:?}");
}

#[test]
fn a_layer_is_sent_while_the_next_is_made() {
    for jobs in ["--jobs=1", "--jobs=4"] {
        let (mut world, mut late) = world_with_late_layer("scratch");
        let registry = FakeRegistry::start();
        world.call(registry.host(), "REGISTRY");
        let gate = Gate::new();
        registry.inject(Fault::hold(&gate).on(Method::PUT, "/blobs/uploads/"));
        let name = format!("{}/app:1", registry.host());
        let arguments = ["build", "app", "--platform=amd64", "-t", &name, "--push"];
        let child = world.tierce(&arguments).arg(jobs).spawn();
        // The bytes of the first are on their way, and of the second there are none.
        gate.wait_for(1);
        gate.open();
        late.come(late_layer());
        let (code, stdout, stderr) = late.ended(child);
        assert_eq!(code, Some(0), "{stderr}");
        let log = registry.log();
        assert_orderly(&log);
        assert_clean(&Checker::new().registry(&registry, "app", "1"));
        let digest = registry.resolve("app", "1").unwrap();
        assert_eq!(stdout, format!("{}/app@{digest}\n", registry.host()));
        // Two layers and the config, counted where they were needed.
        insta::allow_duplicates! {
            insta::assert_snapshot!(world.shown(stderr.trim_end()), @"[REGISTRY]/app:1: blobs: 3 sent (98.5 KiB)");
        }
        // What was asked ahead is not asked again.
        assert_eq!(log.count(Method::HEAD, "/manifests/1"), 1, "{log:?}");
        assert_eq!(log.count(Method::HEAD, "/blobs/"), 3, "{log:?}");
    }
}

#[test]
fn the_layers_of_the_base_travel_while_those_above_are_made() {
    let source = FakeRegistry::start();
    let base = small_base(Format::Docker, "amd64");
    base.put(&source, "base", Some("1"));
    let (world, mut late) = world_with_late_layer(&format!("{}/base:1", source.host()));
    let target = FakeRegistry::start();
    let gate = Gate::new();
    target.inject(
        Fault::hold(&gate)
            .on(Method::PUT, "/blobs/uploads/")
            .times(2),
    );
    let name = format!("{}/app:1", target.host());
    let child = world
        .tierce(&["build", "app", "--json", "-t", &name, "--push"])
        .spawn();
    gate.wait_for(2);
    gate.open();
    late.come(late_layer());
    let (code, stdout, stderr) = late.ended(child);
    assert_eq!(code, Some(0), "{stderr}");
    assert_orderly(&target.log());
    assert_clean(&Checker::new().registry(&target, "app", "1"));
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["images"][0]["sent"]["blobs"], 4, "{json}");
}

#[test]
fn layers_of_the_second_platform_are_made_while_those_of_the_first_are_sent() {
    let registry = FakeRegistry::start();
    // Different working directories: no layer may be taken over from one to the other.
    let bases = ["amd64", "arm64"].map(|architecture| {
        ImageBuilder::new(Format::Oci, architecture)
            .layer(&LayerBuilder::new().file("a", 0o644, architecture.as_bytes()))
            .config(|config| {
                config["config"] = serde_json::json!({"WorkingDir": format!("/{architecture}")});
            })
            .build()
    });
    let index = TestIndex::of(Format::Oci, bases.to_vec());
    index.put(&registry, "base", Some("1"));
    let (world, mut late) = world_with_late_layer(&format!("{}/base:1", registry.host()));
    let gate = Gate::new();
    // The layer of the first platform that came late.
    registry.inject(
        Fault::hold(&gate)
            .on(Method::PUT, "/blobs/uploads/")
            .always(),
    );
    let name = format!("{}/app:1", registry.host());
    let child = world
        .tierce(&["build", "app", "--json", "--platform=amd64,arm64"])
        .args(["-t", &name, "--push"])
        .spawn();
    late.come(late_layer());
    // Both layers of the first platform, and its config: its image is whole.
    gate.wait_for(3);
    gate.open();
    let other = LayerBuilder::new().file("other", 0o644, b"other").tar();
    late.come(other);
    let (code, stdout, stderr) = late.ended(child);
    assert_eq!(code, Some(0), "{stderr}");
    let log = registry.log();
    assert_orderly(&log);
    for tag in ["1-amd64", "1-arm64"] {
        assert_clean(&Checker::new().registry(&registry, "app", tag));
        let question = format!("/v2/app/manifests/{tag}");
        assert_eq!(log.count(Method::HEAD, &question), 1, "{log:?}");
    }
    // What both have was sent for the first.
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let (first, second) = (&json["images"][0], &json["images"][1]);
    assert_eq!(first["sent"]["blobs"], 3, "{json}");
    assert_eq!(second["sent"]["blobs"], 2, "{json}");
    assert_eq!(second["alreadyThere"]["blobs"], 1, "{json}");
    let layers = |tag: &str| {
        let image = LoadedImage::from_registry(&registry, "app", tag).unwrap();
        layer_digests(&image.manifest)
    };
    assert_eq!(layers("1-amd64")[1], layers("1-arm64")[1]);
    assert_ne!(layers("1-amd64")[2], layers("1-arm64")[2]);
}

/// The tar never comes: only the refusal can end this build.
#[test]
fn a_refusal_ends_the_build_while_a_layer_is_being_made() {
    let (mut world, _late) = world_with_late_layer("scratch");
    let registry = FakeRegistry::start();
    world.call(registry.host(), "REGISTRY");
    let name = format!("{}/app:1", registry.host());
    let arguments = ["build", "app", "--platform=amd64", "-t", &name, "--push"];
    let refused = |method: Method, path: &str| {
        registry.inject(Fault::status(403).on(method, path));
        world.fails(1, &arguments)
    };
    let blob = (r"blob sha256:\w+ \(\d+ bytes\)", "[BLOB]");
    let upload = (r"uploads/[\w-]+", "uploads/[UPLOAD]");
    insta::with_settings!({filters => vec![blob, upload]}, {
        insta::assert_snapshot!(refused(Method::POST, "/blobs/uploads/"), @"
        error: could not write `[REGISTRY]/app:1`
          caused by: could not write [BLOB]
          caused by: registry [REGISTRY] answered 403 DENIED to `POST /v2/app/blobs/uploads/`: scripted by the test
        hint: the credentials are known, but are not allowed to do this
        ");
        insta::assert_snapshot!(refused(Method::PUT, "/blobs/uploads/"), @"
        error: could not write `[REGISTRY]/app:1`
          caused by: could not write [BLOB]
          caused by: registry [REGISTRY] answered 403 DENIED to `PUT /v2/app/blobs/uploads/[UPLOAD]`: scripted by the test
        hint: the credentials are known, but are not allowed to do this
        ");
        insta::assert_snapshot!(refused(Method::HEAD, "/manifests/1"), @"
        error: could not write `[REGISTRY]/app:1`
          caused by: could not ask the target for the manifest `1`
          caused by: registry [REGISTRY] answered 403 to `HEAD /v2/app/manifests/1`
        hint: the credentials are known, but are not allowed to do this
        ");
    });
    assert_eq!(registry.log().count(Method::PUT, "/manifests/"), 0);
    assert!(registry.tags("app").is_empty());
    assert_eq!(registry.open_uploads(), 0);
}

#[test]
fn a_layer_that_cannot_be_made_ends_what_is_on_its_way() {
    let (mut world, mut late) = world_with_late_layer("scratch");
    let registry = FakeRegistry::start();
    world.call(registry.host(), "REGISTRY");
    let gate = Gate::new();
    registry.inject(Fault::hold(&gate).on(Method::PUT, "/blobs/uploads/"));
    let name = format!("{}/app:1", registry.host());
    let before = world.files();
    let child = world
        .tierce(&["build", "app", "--platform=amd64", "-t", &name, "--push"])
        .spawn();
    gate.wait_for(1);
    late.come(b"this is no tar".to_vec());
    // The registry has not answered yet, and is not waited for.
    let (code, stdout, stderr) = late.ended(child);
    gate.open();
    assert_eq!(code, Some(1));
    assert_eq!(stdout, "");
    insta::assert_snapshot!(world.shown(stderr.trim_end()), @"
    error: could not make the layer `late`
      caused by: could not read [SANDBOX]/work/app/late.tar
      caused by: could not make a layer of an archive
      caused by: not a tar archive: what is read is plain tar, and tar compressed once with gzip or zstd
    ");
    world.assert_nothing_half_written(&before);
    assert_eq!(registry.log().count(Method::PUT, "/manifests/"), 0);
    assert!(registry.tags("app").is_empty());
}

#[test]
fn a_signal_ends_both() {
    let (world, _late) = world_with_late_layer("scratch");
    let registry = FakeRegistry::start();
    let gate = Gate::new();
    registry.inject(Fault::hold(&gate).on(Method::PUT, "/blobs/uploads/"));
    let name = format!("{}/app:1", registry.host());
    let before = world.files();
    let child = world
        .tierce(&["build", "app", "--platform=amd64", "-t", &name, "--push"])
        .spawn();
    gate.wait_for(1);
    let (code, stdout, _) = world.interrupt(child, "-INT");
    gate.open();
    assert_eq!(code, Some(130));
    assert_eq!(stdout, "");
    world.assert_nothing_half_written(&before);
    assert!(registry.tags("app").is_empty());
}

#[test]
fn a_source_that_is_not_as_it_should_be_asks_the_registry_nothing() {
    let (world, _late) = world_with_late_layer("scratch");
    let registry = FakeRegistry::start();
    let name = format!("{}/app:1", registry.host());
    // It is found when the sources are looked at, before the first layer is made.
    let arguments = ["build", "app", "-t", &name, "--push", "--add=.:/x"];
    let stderr = world.fails(1, &arguments);
    assert!(stderr.contains("is a FIFO"), "{stderr}");
    assert!(registry.log().is_empty(), "{:?}", registry.log());
}

#[test]
fn nothing_goes_ahead_to_a_name_that_is_taken() {
    let registry = FakeRegistry::start();
    small_base(Format::Docker, "amd64").put(&registry, "app", Some("1"));
    let world = World::with_app("scratch");
    let name = format!("{}/app:1", registry.host());
    world.runs(&["build", "app", "-t", &name, "--push"]);
    assert_clean(&Checker::new().registry(&registry, "app", "1"));
    let log = registry.log();
    assert_orderly(&log);
    // As any walk goes: the name, the digest, and only then blobs.
    let manifests = log.matching(&Method::HEAD, "/manifests/");
    assert_eq!(manifests.len(), 2, "{log:?}");
    let begin: Vec<_> = log.records()[..2].iter().map(|it| &it.path).collect();
    assert!(
        begin.iter().all(|path| path.contains("/manifests/")),
        "{log:?}"
    );
}

#[test]
fn every_repository_gets_what_it_lacks_and_every_name_its_image() {
    let registry = FakeRegistry::start();
    let world = World::with_app("scratch");
    let names = ["one:1", "one:2", "two:1"].map(|name| format!("{}/{name}", registry.host()));
    let mut arguments = vec!["build", "app", "--push", "--json"];
    for name in &names {
        arguments.extend(["-t", name]);
    }
    let json = world.ok(&arguments).json();
    for (repository, tag) in [("one", "1"), ("one", "2"), ("two", "1")] {
        assert_clean(&Checker::new().registry(&registry, repository, tag));
    }
    for repository in ["one", "two"] {
        assert_orderly(&registry.log().repository(repository));
    }
    let sent = |image: usize| json["images"][image]["sent"]["blobs"].clone();
    assert_eq!([sent(0), sent(1), sent(2)], [2, 0, 2], "{json}");
    assert_eq!(registry.log().count(Method::HEAD, "/blobs/"), 4);
}

#[test]
fn nothing_goes_ahead_to_places_that_are_no_registries() {
    let (world, mut late) = world_with_late_layer("scratch");
    let child = world
        .tierce(&["build", "app", "--platform=amd64", "-o=oci:out:1"])
        .spawn();
    late.come(late_layer());
    let (code, _, stderr) = late.ended(child);
    assert_eq!(code, Some(0), "{stderr}");
    assert_clean(&Checker::new().layout(&world.path("out")));
}

/// The pipe is opened when all sources have been looked at, and the tar after it only then.
#[test]
fn a_tar_that_is_another_when_it_is_read_is_an_error() {
    let archive = |content: &[u8]| {
        let layer = LayerBuilder::new().directory("srv", 0o755);
        layer.file("srv/tar", 0o644, content).tar()
    };
    for verbatim in ["verbatim = true", "to = \"/\""] {
        let world = World::new();
        world.sandbox.write("app/one.tar", archive(b"one"));
        world.sandbox.write("app/two.tar", archive(b"two"));
        std::os::unix::fs::symlink("one.tar", world.path("app/now.tar")).unwrap();
        world.sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"scratch\"\n\
                 [[layer]]\nname = \"late\"\ntar = \"late.tar\"\nverbatim = true\n\
                 [[layer]]\nname = \"now\"\ntar = \"now.tar\"\n{verbatim}\n"
            ),
        );
        let late = LateTar::new(&world);
        let child = world.tierce(&["build", "app", "--platform=amd64"]).spawn();
        let mut pipe = OpenOptions::new().write(true).open(&late.path).unwrap();
        let link = world.path("app/now.tar");
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("two.tar", &link).unwrap();
        std::io::Write::write_all(&mut pipe, &late_layer()).unwrap();
        drop(pipe);
        let (code, _, stderr) = late.ended(child);
        if verbatim.starts_with("verbatim") {
            assert_eq!(code, Some(1), "{stderr}");
            assert!(stderr.contains("now.tar changed while"), "{stderr}");
        } else {
            // Its members were read with the look.
            assert_eq!(code, Some(0), "{stderr}");
        }
    }
}
