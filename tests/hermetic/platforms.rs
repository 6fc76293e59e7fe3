//! One platform out of several, and several at once.

use serde_json::Value;
use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::images::{
    Format, TestIndex, lambda_base, multi_platform_base, small_base, uncompressed_base, zstd_base,
};
use tierce_testkit::{FakeRegistry, Method};

use crate::support::{World, layer_digests};

fn world_on_index(format: Format) -> (World, FakeRegistry, TestIndex) {
    let registry = FakeRegistry::start();
    let index = multi_platform_base(format);
    index.put(&registry, "base", Some("1"));
    let mut world = World::with_app(&format!("{}/base:1", registry.host()));
    world.call(registry.host(), "REGISTRY");
    (world, registry, index)
}

#[test]
fn the_platform_is_chosen_out_of_an_index_or_a_manifest_list() {
    for format in [Format::Oci, Format::Docker] {
        let (world, registry, index) = world_on_index(format);
        for (asked, architecture) in [
            ("arm64", "arm64"),
            ("linux/arm64", "arm64"),
            ("x86_64", "amd64"),
            ("linux/amd64", "amd64"),
        ] {
            registry.clear_log();
            let image = world.built(&["build", "app", "--platform", asked]);
            assert_eq!(image.config["architecture"], architecture, "{asked}");
            assert_eq!(image.media_type, format.manifest());
            let chosen = index.image(architecture);
            assert_eq!(
                layer_digests(&image.manifest)[0],
                chosen.layers[0].digest().to_string()
            );
            // Neither the other architecture nor the attestation is even looked at.
            for other in &index.images {
                if other.digest() != chosen.digest() {
                    let hex = other.digest().hex();
                    assert_eq!(registry.log().count(Method::GET, &hex), 0, "{asked}");
                }
            }
        }
    }
}

#[test]
fn the_file_names_platforms_too() {
    let registry = FakeRegistry::start();
    multi_platform_base(Format::Oci).put(&registry, "base", Some("1"));
    let world = World::new();
    world.app(
        &format!("{}/base:1", registry.host()),
        "platforms = [\"arm64\"]",
    );
    let image = world.built(&["build", "app"]);
    assert_eq!(image.config["architecture"], "arm64");
    // The flag wins.
    let image = world.built(&["build", "app", "--platform=x86_64"]);
    assert_eq!(image.config["architecture"], "amd64");
}

#[test]
fn without_a_word_an_index_gives_lambda_s_default_and_that_is_said() {
    for format in [Format::Oci, Format::Docker] {
        let (world, _registry, _index) = world_on_index(format);
        let image = world.built(&["build", "app"]);
        assert_eq!(image.config["architecture"], "amd64");
        let output = world.ok(&["build", "app", "-o=oci:again:1"]);
        let stderr = output.stderr();
        assert!(stderr.starts_with("building for linux/amd64"), "{stderr}");
    }
}

#[test]
fn a_platform_that_the_index_lacks_is_an_error() {
    let registry = FakeRegistry::start();
    let index = TestIndex::of(
        Format::Docker,
        vec![
            lambda_base(Format::Docker, "amd64"),
            lambda_base(Format::Docker, "s390x"),
        ],
    );
    index.put(&registry, "base", Some("1"));
    let mut world = World::with_app(&format!("{}/base:1", registry.host()));
    world.call(registry.host(), "REGISTRY");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--platform=arm64"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: there is no image for linux/arm64; it has linux/amd64, linux/s390x
    hint: name another platform with `--platform`
    ");
}

#[test]
fn a_base_for_the_wrong_platform_is_an_error() {
    let mut world = World::with_app("oci:../base:1");
    small_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--platform=arm64"]), @"
    error: could not read the base `oci:../base:1`
      caused by: the image is for linux/amd64, not for linux/arm64
    hint: name another platform with `--platform`
    ");
    let registry = FakeRegistry::start();
    small_base(Format::Oci, "amd64").put(&registry, "base", Some("1"));
    world.app(&format!("{}/base:1", registry.host()), "");
    world.call(registry.host(), "REGISTRY");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--platform=arm64"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: the image is for linux/amd64, not for linux/arm64
    hint: name another platform with `--platform`
    ");
}

#[test]
fn a_platform_that_is_none_is_bad_usage() {
    let world = World::with_app("scratch");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--platform=sparc"]), @"
    error: invalid value 'sparc' for '--platform <PLATFORM>': `sparc` is not a platform: expected `linux/amd64`, `linux/arm64`, `x86_64` or `arm64`

    For more information, try '--help'.
    ");
}

#[test]
fn several_platforms_get_tags_of_their_own() {
    let (world, registry, _) = world_on_index(Format::Docker);
    let name = format!("{}/out:1", registry.host());
    let arguments = [
        "build",
        "app",
        "--platform=arm64,x86_64",
        "-t",
        &name,
        "--push",
    ];
    let output = world.ok(&arguments);
    assert_eq!(registry.tags("out"), ["1-amd64", "1-arm64"]);
    let expected: Vec<String> = ["1-arm64", "1-amd64"]
        .iter()
        .map(|tag| {
            format!(
                "{}/out@{}",
                registry.host(),
                registry.resolve("out", tag).unwrap()
            )
        })
        .collect();
    let stdout = output.stdout();
    assert_eq!(stdout.lines().collect::<Vec<_>>(), expected);
    for (tag, architecture) in [("1-amd64", "amd64"), ("1-arm64", "arm64")] {
        assert_clean(
            &Checker::new()
                .lambda_rules_from(2)
                .registry(&registry, "out", tag),
        );
        let image = LoadedImage::from_registry(&registry, "out", tag).unwrap();
        assert_eq!(image.config["architecture"], architecture);
    }
    // The layer made here is the same for both.
    let own = |tag: &str| {
        let image = LoadedImage::from_registry(&registry, "out", tag).unwrap();
        layer_digests(&image.manifest).pop().unwrap()
    };
    assert_eq!(own("1-amd64"), own("1-arm64"));
}

#[test]
fn an_index_of_all_platforms_goes_under_the_plain_tag() {
    for format in [Format::Docker, Format::Oci] {
        let (world, registry, _) = world_on_index(format);
        let name = format!("{}/out:1", registry.host());
        let output = world.ok(&[
            "build",
            "app",
            "--platform=arm64",
            "--platform=amd64",
            "--index",
            "-t",
            &name,
            "-o",
            &name,
            "-o=oci:out:1",
            "-o=oci-archive:out.tar:1",
            "--metadata-file=meta.json",
        ]);
        assert_eq!(registry.tags("out"), ["1", "1-amd64", "1-arm64"]);
        let (media_type, bytes) = registry.manifest("out", "1").unwrap();
        assert_eq!(media_type, format.index());
        assert_clean(
            &Checker::new()
                .lambda_rules_from(2)
                .registry(&registry, "out", "1"),
        );
        assert_clean(
            &Checker::new()
                .lambda_rules_from(2)
                .layout(&world.path("out")),
        );
        assert_clean(
            &Checker::new()
                .lambda_rules_from(2)
                .oci_archive(&world.path("out.tar")),
        );
        let index: Value = serde_json::from_slice(&bytes).unwrap();
        let platforms: Vec<String> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|child| child["platform"].to_string())
            .collect();
        insta::allow_duplicates! {
            insta::assert_snapshot!(platforms.join("\n"), @r#"
            {"architecture":"arm64","os":"linux"}
            {"architecture":"amd64","os":"linux"}
            "#);
        }
        let digest = registry.resolve("out", "1").unwrap().to_string();
        let metadata: Value =
            serde_json::from_slice(&std::fs::read(world.path("meta.json")).unwrap()).unwrap();
        assert_eq!(metadata["containerimage.digest"], digest);
        for (platform, tag) in [("linux/arm64", "1-arm64"), ("linux/amd64", "1-amd64")] {
            assert_eq!(
                metadata[platform]["containerimage.digest"],
                registry.resolve("out", tag).unwrap().to_string()
            );
        }
        let stdout = output.stdout();
        assert_eq!(
            stdout
                .lines()
                .filter(|line| line.ends_with(&digest))
                .count(),
            3
        );
    }
}

#[test]
fn the_store_keeps_several_platforms_and_their_index() {
    let (world, registry, _) = world_on_index(Format::Docker);
    world.runs(&[
        "build",
        "app",
        "--platform=arm64,amd64",
        "--index",
        "-t=fn:1",
    ]);
    for name in ["store:fn:1", "store:fn:1-arm64", "store:fn:1-amd64"] {
        world.runs(&["inspect", name]);
    }
    let name = format!("{}/out:1", registry.host());
    world.runs(&["push", "store:fn:1", &name]);
    assert_clean(&Checker::new().registry(&registry, "out", "1"));
    assert_eq!(registry.tags("out"), ["1"]);
    assert_eq!(registry.manifests("out").len(), 3);
}

#[test]
fn places_with_room_for_one_refuse_several() {
    let world = World::with_app("scratch");
    let build = |more: &[&str]| {
        let arguments = ["build", "app", "--platform=arm64,amd64"];
        world.fails(2, &[&arguments[..], more].concat())
    };
    insta::assert_snapshot!(build(&["-o=docker-archive:out.tar"]), @"
    error: `docker-archive:out.tar:app:latest` can hold one platform, not 2
    hint: name one with --platform, or use oci-archive: with --index
    ");
    insta::assert_snapshot!(build(&["-o=oci-archive:out.tar"]), @"
    error: `oci-archive:out.tar:latest` would hold the last of 2 platforms only
    hint: --index puts all of them in
    ");
}

#[test]
fn a_zstd_base_is_refused_for_docker_s_format() {
    let world = World::with_app("oci:../base:1");
    let base = zstd_base("amd64");
    base.write_layout(&world.path("base"), Some("1"));
    // Its own format has room for zstd.
    let image = world.built(&["build", "app"]);
    assert_eq!(image.media_type, Format::Oci.manifest());
    let mut world = world;
    world.call(base.layers[0].digest(), "LAYER");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--format=docker"]), @"
    building for linux/amd64; --platform names another
    error: could not assemble the image for linux/amd64
      caused by: layer 1 of the base has the type `application/vnd.oci.image.layer.v1.tar+zstd`, which a Docker V2 Schema 2 image cannot have
    hint: an OCI image can have it: `--format oci`
    ");
}

#[test]
fn an_uncompressed_base_is_refused_for_docker_s_format() {
    let mut world = World::with_app("oci:../base:1");
    let base = uncompressed_base(Format::Oci, "amd64");
    base.write_layout(&world.path("base"), Some("1"));
    world.call(base.layers[0].digest(), "LAYER");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--format=docker"]), @"
    building for linux/amd64; --platform names another
    error: could not assemble the image for linux/amd64
      caused by: layer 1 of the base has the type `application/vnd.oci.image.layer.v1.tar`, which a Docker V2 Schema 2 image cannot have
    hint: an OCI image can have it: `--format oci`
    ");
}
