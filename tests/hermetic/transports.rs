//! `copy`, `push` and `pull`: images between any two places, and what does not travel.

use std::fs;

use serde_json::Value;
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::images::{
    Format, ImageBuilder, LayerBuilder, TestImage, lambda_base, multi_platform_base, small_base,
};
use tierce_testkit::{FakeRegistry, Fault, Gate, Method};

use crate::support::{World, digest_in, downloads, noise};

/// An image with a layer of some weight.
fn heavy(format: Format) -> TestImage {
    ImageBuilder::new(format, "amd64")
        .layer(&LayerBuilder::new().file("noise", 0o644, &noise(1, 3_000_000)))
        .layer(&LayerBuilder::new().file("light", 0o644, b"light"))
        .build()
}

/// Every place that an image can be in, named so that each is written once in a world.
fn places(registry: &FakeRegistry, round: &str) -> Vec<String> {
    vec![
        format!("{}/{round}:1", registry.host()),
        format!("docker://{}/{round}/long:1", registry.localhost()),
        format!("oci:{round}-layout:1"),
        format!("oci-archive:{round}.oci.tar:1"),
        format!("docker-archive:{round}.docker.tar:{round}:1"),
        format!("store:{round}:1"),
    ]
}

fn digest_at(world: &World, place: &str) -> String {
    let json = world.ok(&["inspect", "--json", place]).json();
    json["digest"].as_str().unwrap().to_owned()
}

#[test]
fn every_pair_of_places_keeps_the_digest() {
    for format in [Format::Docker, Format::Oci] {
        let world = World::new();
        let registry = FakeRegistry::start();
        let image = lambda_base(format, "arm64");
        image.write_layout(&world.path("origin"), Some("1"));
        let expected = image.digest().to_string();
        let sources = places(&registry, "from");
        for source in &sources {
            let output = world.ok(&["copy", "oci:origin:1", source]);
            assert_eq!(digest_in(&output), expected, "{source}");
        }
        for (number, source) in sources.iter().enumerate() {
            for target in places(&registry, &format!("to{number}")) {
                let output = world.ok(&["copy", source, &target]);
                assert_eq!(digest_in(&output), expected, "{source} to {target}");
                assert_eq!(digest_at(&world, &target), expected, "{target}");
            }
            let to = format!("to{number}");
            assert_clean(&Checker::new().registry(&registry, &to, "1"));
            assert_clean(&Checker::new().registry(&registry, &format!("{to}/long"), "1"));
            assert_clean(&Checker::new().layout(&world.path(format!("{to}-layout"))));
            assert_clean(&Checker::new().oci_archive(&world.path(format!("{to}.oci.tar"))));
            assert_clean(&Checker::new().docker_archive(&world.path(format!("{to}.docker.tar"))));
        }
        assert_eq!(registry.open_uploads(), 0);
        world.assert_no_litter();
    }
}

#[test]
fn push_and_pull_take_every_place() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let image = small_base(Format::Docker, "amd64");
    image.put(&registry, "first", Some("1"));
    let expected = image.digest().to_string();
    let first = format!("{}/first:1", registry.host());
    for (number, place) in places(&registry, "mid").iter().enumerate() {
        assert_eq!(digest_in(&world.ok(&["pull", &first, place])), expected);
        let a = format!("{}/pushed{number}:a", registry.host());
        let b = format!("{}/pushed{number}:b", registry.host());
        let output = world.ok(&["push", place, &a, &b]);
        let line = format!("{}/pushed{number}@{expected}\n", registry.host());
        assert_eq!(output.stdout(), line.repeat(2));
        assert_eq!(registry.tags(&format!("pushed{number}")), ["a", "b"]);
        assert_clean(&Checker::new().registry(&registry, &format!("pushed{number}"), "a"));
    }
}

#[test]
fn an_old_docker_archive_is_copied_with_its_diff_ids() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let image = lambda_base(Format::Docker, "amd64");
    image.write_docker_archive(&world.path("old.tar"), Some("old:1"));
    let out = format!("{}/out:1", registry.host());
    let pushed = world.ok(&["push", "docker-archive:old.tar", &out]);
    assert_clean(&Checker::new().registry(&registry, "out", "1"));
    // The config, which Docker calls the image, is the same; the manifest is made here, always alike.
    let inspected = world.ok(&["inspect", "--json", &out]).json();
    assert_eq!(
        inspected["config"]["digest"],
        image.config_digest().to_string()
    );
    let again = world.ok(&["copy", "docker-archive:old.tar:old:1", "oci:out:1"]);
    assert_eq!(digest_in(&again), digest_in(&pushed));
}

#[test]
fn an_index_is_copied_with_all_its_children() {
    for format in [Format::Docker, Format::Oci] {
        let world = World::new();
        let registry = FakeRegistry::start();
        let index = multi_platform_base(format);
        index.put(&registry, "from", Some("1"));
        let expected = index.digest().to_string();
        let from = format!("{}/from:1", registry.host());
        let to = format!("{}/to:1", registry.host());
        let chain = [
            &from,
            "oci:out:1",
            "oci-archive:out.tar:1",
            "store:out:1",
            &to,
        ];
        for pair in chain.windows(2) {
            let output = world.ok(&["copy", pair[0], pair[1]]);
            assert_eq!(digest_in(&output), expected, "{pair:?}");
        }
        assert_clean(&Checker::new().layout(&world.path("out")));
        assert_clean(&Checker::new().oci_archive(&world.path("out.tar")));
        assert_clean(&Checker::new().registry(&registry, "to", "1"));
        let (_, bytes) = registry.manifest("to", "1").unwrap();
        assert_eq!(bytes, index.index);
        for image in &index.images {
            let (_, bytes) = registry
                .manifest("to", &image.digest().to_string())
                .unwrap();
            assert_eq!(bytes, image.manifest);
        }
        assert_eq!(registry.tags("to"), ["1"]);
        // One of them alone.
        let arm = world.ok(&["copy", "--platform=arm64", &from, "oci:arm:1"]);
        assert_eq!(digest_in(&arm), index.image("arm64").digest().to_string());
        assert_clean(&Checker::new().layout(&world.path("arm")));
    }
}

#[test]
fn a_docker_archive_has_no_room_for_an_index() {
    let world = World::new();
    multi_platform_base(Format::Docker).write_layout(&world.path("base"), Some("1"));
    let stderr = world.fails(2, &["copy", "oci:base:1", "docker-archive:out.tar:a:1"]);
    insta::assert_snapshot!(stderr, @"
    error: could not write `docker-archive:out.tar:a:1`
      caused by: a docker-archive holds one platform, and the image is for linux/amd64, linux/arm64
    hint: choose one with --platform
    ");
    world.runs(&[
        "copy",
        "--platform=amd64",
        "oci:base:1",
        "docker-archive:out.tar:a:1",
    ]);
}

#[test]
fn pushing_what_is_there_is_one_head() {
    let world = World::with_app("scratch");
    let registry = FakeRegistry::start();
    let name = format!("{}/app:1", registry.host());
    world.runs(&["build", "app", "-t", &name]);
    world.runs(&["push", &name]);
    registry.clear_log();
    let again = world.ok(&["push", &name]);
    let log = registry.log();
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(log.count(Method::HEAD, "/v2/app/manifests/1"), 1, "{log:?}");
    let mut world = world;
    world.call(registry.host(), "REGISTRY");
    insta::assert_snapshot!(world.shown(&again.stderr()), @"[REGISTRY]/app:1: already there");
    // The same of a build that pushes.
    registry.clear_log();
    world.runs(&["build", "app", "-t", &name, "--push"]);
    assert_eq!(registry.log().len(), 1, "{:?}", registry.log());
}

#[test]
fn another_tag_sends_the_manifest_alone() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let image = heavy(Format::Oci);
    image.put(&registry, "app", Some("1"));
    let [one, two] = ["1", "2"].map(|tag| format!("{}/app:{tag}", registry.host()));
    registry.clear_log();
    world.runs(&["copy", &one, &two]);
    let log = registry.log();
    assert_eq!(registry.resolve("app", "2"), Some(image.digest()));
    assert_eq!(log.blob_bytes_received(), 0);
    for layer in &image.layers {
        assert_eq!(downloads(&registry, &layer.digest()), 0);
    }
    assert_eq!(log.count(Method::POST, "/blobs/uploads/"), 0);
    assert_eq!(log.count(Method::PUT, "/manifests/"), 1);
}

#[test]
fn blobs_are_mounted_within_a_registry() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let image = heavy(Format::Docker);
    image.put(&registry, "team/base", Some("1"));
    let from = format!("{}/team/base:1", registry.host());
    let to = format!("{}/team/other:1", registry.host());
    registry.clear_log();
    let output = world.ok(&["copy", "--json", &from, &to]);
    assert_clean(&Checker::new().registry(&registry, "team/other", "1"));
    let log = registry.log();
    for layer in &image.layers {
        assert_eq!(downloads(&registry, &layer.digest()), 0);
    }
    let json = &output.json()["images"][0];
    assert_eq!(json["sent"]["blobs"], 0, "{json}");
    assert_eq!(json["mounted"]["blobs"], 3, "{json}");
    assert_eq!(log.blob_bytes_received(), 0);
}

#[test]
fn base_layers_do_not_travel_to_where_they_are() {
    let source = FakeRegistry::start();
    let target = FakeRegistry::start();
    let base = heavy(Format::Docker);
    base.put(&source, "base", Some("1"));
    let world = World::with_app(&format!("{}/base:1", source.host()));
    let out = format!("{}/app:1", target.host());
    // The target has the layers in the repository already.
    base.put(&target, "app", None);
    world.runs(&["build", "app", "-t", &out, "--push"]);
    for layer in &base.layers {
        assert_eq!(downloads(&source, &layer.digest()), 0);
    }
    assert_eq!(source.log().blob_bytes_sent(), base.config.len() as u64);
    let sent = target.log().blob_bytes_received();
    assert!(sent < 5000, "{sent} bytes were sent");
    assert_clean(&Checker::new().registry(&target, "app", "1"));
}

#[test]
fn base_layers_of_the_same_registry_are_mounted_by_a_build() {
    let registry = FakeRegistry::start();
    let base = heavy(Format::Docker);
    base.put(&registry, "base", Some("1"));
    let world = World::with_app(&format!("{}/base:1", registry.host()));
    let out = format!("{}/app:1", registry.host());
    world.runs(&["build", "app"]);
    registry.clear_log();
    world.runs(&["push", "store:app", &out]);
    for layer in &base.layers {
        assert_eq!(downloads(&registry, &layer.digest()), 0);
    }
    assert!(registry.log().blob_bytes_received() < 5000);
    assert_clean(&Checker::new().registry(&registry, "app", "1"));
}

#[test]
fn a_registry_that_does_not_mount_gets_the_bytes() {
    let registry = FakeRegistry::builder().without_mounts().start();
    let image = heavy(Format::Oci);
    image.put(&registry, "from", Some("1"));
    let world = World::new();
    let [from, to] = ["from", "to"].map(|name| format!("{}/{name}:1", registry.host()));
    world.runs(&["copy", &from, &to]);
    assert_clean(&Checker::new().registry(&registry, "to", "1"));
    assert_eq!(registry.open_uploads(), 0);
}

/// The limit on the size of files is the proof: no file of the layer's size can be written.
#[test]
fn layers_stream_from_registry_to_registry_without_landing_on_disk() {
    let source = FakeRegistry::start();
    let target = FakeRegistry::start();
    let image = heavy(Format::Docker);
    image.put(&source, "from", Some("1"));
    let world = World::new();
    let command = world
        .shell("ulimit -f 64; exec \"$0\" \"$@\"")
        .arg("copy")
        .arg(format!("{}/from:1", source.host()))
        .arg(format!("{}/to:1", target.host()));
    let output = command.run().assert_success();
    assert_eq!(digest_in(&output), image.digest().to_string());
    assert_clean(&Checker::new().registry(&target, "to", "1"));
    for layer in &image.layers {
        assert_eq!(downloads(&source, &layer.digest()), 1);
    }
    world.assert_no_litter();
    // Nor is there one half-way: the transfer stands still while we look.
    let gate = Gate::new();
    target.inject(Fault::hold(&gate).on(Method::PUT, "/manifests/"));
    let child = world
        .tierce(&["copy"])
        .arg(format!("{}/from:1", source.host()))
        .arg(format!("{}/again:1", target.host()))
        .spawn();
    gate.wait_for(1);
    let large: Vec<_> = world
        .files()
        .into_keys()
        .filter(|path| fs::metadata(path).is_ok_and(|file| file.len() > 64 * 1024))
        .collect();
    gate.open();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success());
    assert!(large.is_empty(), "{large:?}");
}

#[test]
fn what_streams_through_is_verified() {
    let source = FakeRegistry::start();
    let target = FakeRegistry::start();
    let image = heavy(Format::Docker);
    image.put(&source, "from", Some("1"));
    let digest = image.layers[0].digest();
    let mut world = World::new();
    world.call(source.host(), "SOURCE");
    world.call(target.host(), "TARGET");
    world.call(digest, "LAYER");
    let fault = Fault::corrupt_byte(1_234_567).on(Method::GET, &digest.hex());
    source.inject(fault.always());
    let from = format!("{}/from:1", source.host());
    for (place, number) in [
        (format!("{}/to:1", target.host()), 0),
        ("oci:out:1".into(), 1),
        ("docker-archive:out.tar:a:1".into(), 2),
    ] {
        let stderr = world.fails(1, &["copy", "--jobs=1", &from, &place]);
        let stderr = hide_digests(&stderr);
        match number {
            0 => insta::assert_snapshot!(stderr, @"
            error: could not write `[TARGET]/to:1`
              caused by: could not write blob [LAYER] (3001093 bytes)
              caused by: could not read blob [LAYER]
              caused by: its bytes have the digest sha256:[…]
            hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
            "),
            1 => insta::assert_snapshot!(stderr, @"
            error: could not write `oci:out:1`
              caused by: could not write blob [LAYER] (3001093 bytes)
              caused by: could not read blob [LAYER]
              caused by: its bytes have the digest sha256:[…]
            hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
            "),
            _ => insta::assert_snapshot!(stderr, @"
            error: could not write `docker-archive:out.tar:a:1`
              caused by: could not write blob [LAYER] (3001093 bytes)
              caused by: could not read blob [LAYER]
              caused by: its bytes have the digest sha256:[…]
            hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
            "),
        }
    }
    assert!(target.tags("to").is_empty());
    assert!(target.manifests("to").is_empty());
    assert!(!target.blobs("to").contains(&digest));
    assert_eq!(target.open_uploads(), 0);
    assert!(!world.path("out.tar").exists());
}

/// Digests of bytes that are nobody's.
fn hide_digests(text: &str) -> String {
    let mut parts = text.split("sha256:");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("sha256:[…]");
        shown.push_str(part.trim_start_matches(|letter: char| letter.is_ascii_hexdigit()));
    }
    shown
}

#[test]
fn push_without_a_reference_goes_where_the_name_says() {
    let mut world = World::with_app("scratch");
    let registry = FakeRegistry::start();
    world.call(registry.host(), "REGISTRY");
    let name = format!("{}/team/app:1", registry.host());
    let built = world.ok(&["build", "app", "-t", &name]);
    assert!(registry.repositories().is_empty());
    for source in [name.clone(), format!("store:{name}")] {
        let pushed = world.ok(&["push", &source]);
        assert_eq!(digest_in(&pushed), digest_in(&built));
        assert_clean(&Checker::new().registry(&registry, "team/app", "1"));
    }
    world.runs(&["build", "app", "-t=orders:1"]);
    insta::assert_snapshot!(world.fails(2, &["push", "store:orders:1"]), @"
    error: where to push is not said
    hint: name it: `tierce push SOURCE HOST/REPOSITORY:TAG`
    ");
    world.runs(&["build", "app", "-o=oci:out:1"]);
    insta::assert_snapshot!(world.fails(2, &["push", "oci:out:1"]), @"
    error: where to push is not said
    hint: name it: `tierce push SOURCE HOST/REPOSITORY:TAG`
    ");
}

#[test]
fn a_stored_image_outlives_its_source_folder() {
    let registry = FakeRegistry::start();
    let base = heavy(Format::Docker);
    base.put(&registry, "base", Some("1"));
    let world = World::with_app(&format!("{}/base:1", registry.host()));
    let built = world.ok(&["build", "app"]);
    fs::remove_dir_all(world.path("app")).unwrap();
    fs::remove_dir_all(world.sandbox.cache()).unwrap();
    // Another registry, which cannot mount: the store fetches the base from where it is.
    let target = FakeRegistry::start();
    let out = format!("{}/out:1", target.host());
    let pushed = world.ok(&["push", "store:app", &out]);
    assert_eq!(digest_in(&pushed), digest_in(&built));
    assert_clean(&Checker::new().registry(&target, "out", "1"));
    for layer in &base.layers {
        assert_eq!(downloads(&registry, &layer.digest()), 1);
    }
    // And to places that keep all bytes.
    world.runs(&["copy", "store:app", "docker-archive:out.tar:app:1"]);
    assert_clean(&Checker::new().docker_archive(&world.path("out.tar")));
}

#[test]
fn a_stored_image_whose_base_is_gone_says_where_it_was() {
    let registry = FakeRegistry::start();
    let base = small_base(Format::Docker, "amd64");
    base.put(&registry, "base", Some("1"));
    let mut world = World::with_app(&format!("{}/base:1", registry.host()));
    world.runs(&["build", "app"]);
    let digest = base.layers[0].digest();
    world.call(registry.host(), "REGISTRY");
    world.call(digest, "LAYER");
    registry.delete_blob("base", &digest);
    let target = FakeRegistry::start();
    world.call(target.host(), "TARGET");
    let out = format!("{}/out:1", target.host());
    let stderr = world.fails(1, &["push", "--jobs=1", "store:app", &out]);
    insta::assert_snapshot!(stderr, @"
    error: could not write `[TARGET]/out:1`
      caused by: could not write blob [LAYER] (184 bytes)
      caused by: could not read blob [LAYER]
      caused by: registry [REGISTRY] answered 404 BLOB_UNKNOWN to `GET /v2/base/blobs/[LAYER]`: blob unknown to registry
    hint: the registry no longer has this layer: build again, on a base that is still there
    ");
    assert!(target.tags("out").is_empty());
}

#[test]
fn names_with_digests_are_statements() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let image = small_base(Format::Oci, "amd64");
    image.put(&registry, "from", Some("1"));
    let by_digest = registry.reference("from", &image.digest().to_string());
    world.runs(&["copy", &by_digest, "oci:out:1"]);
    // A destination may state what is to come, and must be right.
    let right = registry.reference("to", &image.digest().to_string());
    world.runs(&["copy", "oci:out:1", &right]);
    assert_eq!(registry.manifests("to"), [image.digest()]);
    assert!(registry.tags("to").is_empty());
    let wrong = format!("sha256:{}", "1".repeat(64));
    let mut world = world;
    world.call(registry.host(), "REGISTRY");
    world.call(image.digest(), "IMAGE");
    world.call(&wrong, "WRONG");
    let wrong = registry.reference("to", &wrong);
    insta::assert_snapshot!(world.fails(2, &["copy", "oci:out:1", &wrong]), @"
    error: could not write `[REGISTRY]/to@[WRONG]`
      caused by: the destination names [WRONG], but the image is [IMAGE]
    ");
}

#[test]
fn what_is_not_in_a_place_is_said_with_what_is() {
    let mut world = World::new();
    let registry = FakeRegistry::start();
    world.call(registry.host(), "REGISTRY");
    let image = small_base(Format::Oci, "amd64");
    image.write_layout(&world.path("out"), Some("1"));
    lambda_base(Format::Oci, "arm64").write_layout(&world.path("out"), Some("2"));
    image.write_oci_archive(&world.path("out.oci.tar"), Some("1"));
    image.write_docker_archive(&world.path("out.docker.tar"), Some("a:1"));
    world.runs(&["copy", "oci:out:1", "store:known:1"]);
    image.put(&registry, "known", Some("1"));
    let copy = |from: &str| world.fails(1, &["copy", from, "oci:target:1"]);
    insta::assert_snapshot!(copy("oci:out:3"), @"
    error: could not read `oci:out:3`
      caused by: could not read the manifest `3`
      caused by: could not look up an image in the OCI layout `out`
      caused by: it holds no image named `3`; it has `1`, `2`
    ");
    insta::assert_snapshot!(copy("oci:out"), @"
    error: could not read `oci:out`
      caused by: could not look up an image in the OCI layout `out`
      caused by: it holds several images, one must be named: `1`, `2`
    ");
    insta::assert_snapshot!(copy("oci:nowhere:1"), @"
    error: could not read `oci:nowhere:1`
      caused by: there is no OCI layout at `nowhere`
    ");
    insta::assert_snapshot!(copy("oci-archive:out.oci.tar:3"), @"
    error: could not read `oci-archive:out.oci.tar:3`
      caused by: could not read the manifest `3`
      caused by: could not look up an image in the archive `out.oci.tar`
      caused by: it holds no image named `3`; it has `1`
    ");
    insta::assert_snapshot!(copy("oci-archive:nowhere.tar:3"), @"
    error: could not read `oci-archive:nowhere.tar:3`
      caused by: could not read `nowhere.tar`
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(copy("docker-archive:out.docker.tar:b:1"), @"
    error: could not read `docker-archive:out.docker.tar:b:1`
      caused by: the archive `out.docker.tar` holds no image `docker.io/library/b:1`; it has `a:1`
    ");
    insta::assert_snapshot!(copy("docker-archive:nowhere.tar"), @"
    error: could not read `docker-archive:nowhere.tar`
      caused by: could not read `nowhere.tar`
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(copy("store:known:2"), @"
    error: could not read `store:known:2`
      caused by: could not read the manifest `2`
      caused by: the store has no image `known:2`; `known` has `1`
    ");
    insta::assert_snapshot!(copy("store:unknown:1"), @"
    error: could not read `store:unknown:1`
      caused by: could not read the manifest `1`
      caused by: the store has no image `unknown`; it has `known`
    ");
    insta::assert_snapshot!(copy(&format!("{}/known:2", registry.host())), @"
    error: could not read `[REGISTRY]/known:2`
      caused by: could not read the manifest `2`
      caused by: registry [REGISTRY] answered 404 MANIFEST_UNKNOWN to `GET /v2/known/manifests/2`: manifest unknown: 2
    hint: check the repository and the tag
    ");
    insta::assert_snapshot!(copy(&format!("{}/unknown:1", registry.host())), @"
    error: could not read `[REGISTRY]/unknown:1`
      caused by: could not read the manifest `1`
      caused by: registry [REGISTRY] answered 404 NAME_UNKNOWN to `GET /v2/unknown/manifests/1`: repository unknown does not exist
    hint: check the repository's name; some registries want it created before the first push
    ");
    assert!(!world.path("target").exists());
}

#[test]
fn copy_s_json_tells_what_moved() {
    let mut world = World::new();
    let registry = FakeRegistry::start();
    world.call(registry.host(), "REGISTRY");
    let image = small_base(Format::Oci, "amd64");
    world.call(image.digest(), "IMAGE");
    image.put(&registry, "from", Some("1"));
    let from = format!("{}/from:1", registry.host());
    let json: Value = world.ok(&["copy", "--json", &from, "oci:out:1"]).json();
    insta::assert_snapshot!(world.shown(&format!("{json:#}")), @r#"
    {
      "images": [
        {
          "alreadyThere": {
            "blobs": 0,
            "bytes": 0
          },
          "digest": "[IMAGE]",
          "kind": "image",
          "linked": {
            "blobs": 0,
            "bytes": 0
          },
          "mediaType": "application/vnd.oci.image.manifest.v1+json",
          "mounted": {
            "blobs": 0,
            "bytes": 0
          },
          "name": "oci:out:1",
          "noted": {
            "blobs": 0,
            "bytes": 0
          },
          "reference": "oci:out@[IMAGE]",
          "sent": {
            "blobs": 2,
            "bytes": 699
          },
          "upToDate": false
        }
      ]
    }
    "#);
}
