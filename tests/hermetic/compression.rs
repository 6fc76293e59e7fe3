//! How layers are compressed, and where that cannot be.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use tierce_testkit::FakeRegistry;
use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::images::{Format, lambda_base, multi_platform_base, small_base};

use crate::support::{World, has, noise};

const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A world whose app makes several segments, of which some compress.
fn world_with_data(base: &str, more: &str) -> World {
    let world = World::new();
    world.app(base, more);
    let text = "value = 1\n".repeat(200_000);
    world.sandbox.write("app/src/text.py", text);
    world.sandbox.write("app/src/data.bin", noise(1, 1_500_000));
    world
}

/// Who made the topmost layer, and its media type.
#[track_caller]
fn made_by(image: &LoadedImage) -> (String, String) {
    let history = image.config["history"].as_array().unwrap();
    let layers = image.manifest["layers"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    (
        text(&history.last().unwrap()["created_by"]),
        text(&layers.last().unwrap()["mediaType"]),
    )
}

#[test]
fn every_word_is_a_codec_of_its_own() {
    let world = world_with_data("scratch", "format = \"oci\"");
    let mut blobs = BTreeSet::new();
    let mut archives = BTreeSet::new();
    let mut lines = Vec::new();
    for word in ["fast", "small", "1", "9", "zstd", "zstd:1", "zstd:19"] {
        let image = world.built(&["build", "app", "--compression", word]);
        let (created_by, media_type) = made_by(&image);
        let (_, packing) = media_type.rsplit_once('+').unwrap();
        lines.push(format!("{word}: {created_by} ({packing})"));
        blobs.insert(image.blobs[0].clone());
        archives.insert(image.tars[0].clone());
    }
    insta::assert_snapshot!(lines.join("\n"), @"
    fast: tierce layer-format-1 fast-1 code (gzip)
    small: tierce layer-format-1 zlib-rs-0.6.8-6 code (gzip)
    1: tierce layer-format-1 zlib-rs-0.6.8-1 code (gzip)
    9: tierce layer-format-1 zlib-rs-0.6.8-9 code (gzip)
    zstd: tierce layer-format-1 zstd-1.5.7-3 code (zstd)
    zstd:1: tierce layer-format-1 zstd-1.5.7-1 code (zstd)
    zstd:19: tierce layer-format-1 zstd-1.5.7-19 code (zstd)
    ");
    assert_eq!((blobs.len(), archives.len()), (lines.len(), 1));
}

#[test]
fn the_file_takes_words_and_numbers_and_the_flag_wins() {
    for (value, expected) in [
        ("\"small\"", "zlib-rs-0.6.8-6"),
        ("\"9\"", "zlib-rs-0.6.8-9"),
        ("9", "zlib-rs-0.6.8-9"),
        ("\"zstd:5\"", "zstd-1.5.7-5"),
    ] {
        let world = World::new();
        let more = format!("format = \"oci\"\ncompression = {value}");
        world.app("scratch", &more);
        let (created_by, _) = made_by(&world.built(&["build", "app"]));
        assert_eq!(created_by, format!("tierce layer-format-1 {expected} code"));
        let flagged = world.built(&["build", "app", "--compression=fast"]);
        assert_eq!(made_by(&flagged).0, "tierce layer-format-1 fast-1 code");
    }
}

#[test]
fn threads_do_not_show_in_zstandard() {
    let world = world_with_data("scratch", "format = \"oci\"\ncompression = \"zstd\"");
    let one = world.built(&["build", "app", "--jobs=1"]);
    let many = world.built(&["build", "app", "--jobs=7"]);
    assert_eq!(one.manifest_bytes, many.manifest_bytes);
}

#[test]
fn a_zstandard_image_goes_everywhere_and_comes_back() {
    let base = small_base(Format::Oci, "arm64");
    let world = world_with_data("oci:../base:1", "compression = \"zstd\"");
    base.write_layout(&world.path("base"), Some("1"));
    let built = world.built(&["build", "app"]);
    assert_eq!(made_by(&built).1, ZSTD_LAYER);

    let registry = FakeRegistry::start();
    let pushed = format!("docker://{}/app:1", registry.host());
    let mut from = "oci:built:it".to_owned();
    for place in [&*pushed, "oci-archive:a.tar:1", "store:app:1", "oci:back:1"] {
        world.runs(&["copy", &from, place]);
        place.clone_into(&mut from);
    }
    let checked = Checker::new().registry(&registry, "app", "1");
    assert_clean(&checked);
    assert_clean(&Checker::new().oci_archive(&world.path("a.tar")));
    let back = LoadedImage::from_layout(&world.path("back"), Some("1")).unwrap();
    assert_eq!(back.manifest_bytes, built.manifest_bytes);
    assert_eq!(back.blobs, built.blobs);

    let shown = world.ok(&["inspect", "store:app:1"]).stdout();
    let layer = shown.lines().rev().nth(1).unwrap();
    assert!(
        layer.ends_with("tierce layer-format-1 zstd-1.5.7-3 code"),
        "{shown}"
    );
}

#[test]
fn a_docker_archive_with_zstandard_comes_with_a_word() {
    let world = World::with_app("scratch");
    let words = ["build", "app", "--format=oci", "-o=docker-archive:out.tar"];
    let note = "note: `docker-archive:out.tar:app:latest` gets zstd layers, which older versions of \
                Docker do not load";
    let zstd = [&words[..], &["--compression=zstd"]].concat();
    let stderr = world.ok(&zstd).stderr();
    assert!(stderr.contains(note), "{stderr}");
    assert_clean(&Checker::new().docker_archive(&world.path("out.tar")));
    assert!(!world.ok(&words).stderr().contains("zstd"));
}

#[test]
fn a_zstandard_image_is_a_base_whose_links_are_read() {
    let world = world_with_data("scratch", "format = \"oci\"\ncompression = \"zstd\"");
    world
        .sandbox
        .write("app/root/usr/lib64/libc.so", noise(2, 1_200_000));
    symlink("usr/lib64", world.path("app/root/lib64")).unwrap();
    world.runs(&["build", "app", "--add=root:/", "-o=oci:base:1"]);

    world.sandbox.write("lib.so", "library");
    let image = world.built(&[
        "build",
        ".",
        "--base=oci:base:1",
        "--add=lib.so:/lib64/lib.so",
    ]);
    assert!(has(&image, "usr/lib64/lib.so"));
    assert_eq!(image.media_type, Format::Oci.manifest());
    let layers = image.manifest["layers"].as_array().unwrap();
    let zstd = layers
        .iter()
        .filter(|layer| layer["mediaType"] == ZSTD_LAYER);
    assert_eq!((zstd.count(), layers.len()), (2, 3));
    assert_eq!(made_by(&image).0, "tierce layer-format-1 fast-1 added");
}

#[test]
fn several_platforms_share_zstandard_layers() {
    let index = multi_platform_base(Format::Oci);
    let world = world_with_data(
        "oci:../base:1",
        "target = \"generic\"\ncompression = \"zstd\"",
    );
    index.write_layout(&world.path("base"), Some("1"));
    world.runs(&[
        "build",
        "app",
        "--platform=arm64,x86_64",
        "--index",
        "-o=oci:out:1",
    ]);
    assert_clean(&Checker::new().layout(&world.path("out")));
    let images = ["1-arm64", "1-amd64"]
        .map(|tag| LoadedImage::from_layout(&world.path("out"), Some(tag)).unwrap());
    assert_eq!(made_by(&images[0]).1, ZSTD_LAYER);
    assert_eq!(images[0].blobs.last(), images[1].blobs.last());
}

#[test]
fn docker_s_format_has_no_zstandard() {
    let world = World::with_app("scratch");
    // Said before the base is looked for.
    let asked = [
        "build",
        "app",
        "--base=oci:nowhere:1",
        "--format=docker",
        "--compression=zstd:9",
    ];
    let said = world.fails(2, &asked);
    insta::assert_snapshot!(said, @"
    error: the image is of Docker's format, which has no zstd layers
    hint: an OCI image can have them: `--format oci`
    ");
    // What an image from scratch is without a word.
    for more in [&[][..], &["--dry-run"]] {
        let asked = [&["build", "app", "--compression=zstd"], more].concat();
        let said_of_scratch = world.fails(2, &asked);
        assert!(said_of_scratch.ends_with(&said), "{said_of_scratch}");
    }
    // A base of Docker's format makes the image one, unless it is asked to be another.
    let base = small_base(Format::Docker, "amd64");
    base.write_layout(&world.path("base"), Some("1"));
    let on_base = ["build", "app", "--base=oci:base:1", "--compression=zstd"];
    let said_of_base = world.fails(2, &on_base);
    assert!(said_of_base.ends_with(&said), "{said_of_base}");
    let image = world.built(&[&on_base[..], &["--format=oci"]].concat());
    assert_eq!(made_by(&image).1, ZSTD_LAYER);
}

#[test]
fn docker_s_format_has_no_zstandard_for_several_platforms_either() {
    let index = multi_platform_base(Format::Docker);
    let registry = FakeRegistry::start();
    index.put(&registry, "base", Some("1"));
    let mut world = World::with_app(&format!("{}/base:1", registry.host()));
    world.call(registry.host(), "REGISTRY");
    insta::assert_snapshot!(world.fails(2, &[
        "build", "app", "--platform=arm64,x86_64", "--index", "--compression=zstd",
        "-o=oci:out:1",
    ]), @"
    error: the image is of Docker's format, which has no zstd layers
    hint: an OCI image can have them: `--format oci`
    ");
}

#[test]
fn lambda_takes_no_zstandard() {
    let world = World::new();
    lambda_base(Format::Oci, "amd64").write_layout(&world.path("base"), Some("1"));
    // The handler says what the image is for.
    world.app(
        "oci:../base:1",
        "handler = \"app.handler\"\ncompression = \"zstd\"",
    );
    let said = world.fails(2, &["build", "app"]);
    insta::assert_snapshot!(said, @r#"
    error: the image is for Lambda, which is not known to take zstd layers
    hint: `compression = "small"` or a level makes gzip layers smaller; an image that is not for Lambda says `target = "generic"` in tierce.toml
    "#);
    // Asking for the format that has it is no way round.
    assert_eq!(world.fails(2, &["build", "app", "--format=oci"]), said);
    assert_eq!(world.fails(2, &["build", "app", "--format=docker"]), said);
    world.app("oci:../base:1", "target = \"lambda\"");
    assert_eq!(
        world.fails(2, &["build", "app", "--compression=zstd:1"]),
        said
    );
    // The base of AWS, before it is asked for.
    world.app(
        "public.ecr.aws/lambda/python:3.12",
        "compression = \"zstd\"",
    );
    assert_eq!(world.fails(2, &["build", "app"]), said);

    world.app(
        "oci:../base:1",
        "handler = \"a.b\"\ntarget = \"generic\"\ncompression = \"zstd\"",
    );
    let image = world.built(&["build", "app"]);
    assert_eq!(made_by(&image).1, ZSTD_LAYER);
    // What the error advises.
    world.app(
        "oci:../base:1",
        "handler = \"a.b\"\ncompression = \"small\"",
    );
    let image = world.built(&["build", "app"]);
    assert_eq!(
        made_by(&image).0,
        "tierce layer-format-1 zlib-rs-0.6.8-6 code"
    );
}

#[test]
fn other_words_are_pointed_at() {
    let said_of = |value: &str| {
        let world = World::new();
        world.app("scratch", &format!("compression = {value}"));
        world.fails(1, &["build", "app"])
    };
    insta::assert_snapshot!(said_of("\"gzip\""), @r#"
    error: app/tierce.toml:3:15: `gzip` is not a compression: expected `fast`, `small`, a level from `1` to `9`, `zstd`, or `zstd:LEVEL` with a level from 1 to 19
      |
    3 | compression = "gzip"
      |               ^^^^^^
    "#);
    insta::assert_snapshot!(said_of("0"), @"
    error: app/tierce.toml:3:15: `0` is not a compression: expected `fast`, `small`, a level from `1` to `9`, `zstd`, or `zstd:LEVEL` with a level from 1 to 19
      |
    3 | compression = 0
      |               ^
    ");
    insta::assert_snapshot!(said_of("true"), @"
    error: app/tierce.toml:3:15: invalid type: boolean `true`, expected `fast`, `small`, a level from `1` to `9`, `zstd`, or `zstd:LEVEL` with a level from 1 to 19
      |
    3 | compression = true
      |               ^^^^
    ");
    insta::assert_snapshot!(said_of("\"zstd:20\""), @r#"
    error: app/tierce.toml:3:15: `zstd:20` is not a compression: expected `fast`, `small`, a level from `1` to `9`, `zstd`, or `zstd:LEVEL` with a level from 1 to 19
      |
    3 | compression = "zstd:20"
      |               ^^^^^^^^^
    "#);
    let world = World::with_app("scratch");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--compression=best"]), @"
    error: invalid value 'best' for '--compression <fast|small|1-9|zstd[:1-19]>': `best` is not a compression: expected `fast`, `small`, a level from `1` to `9`, `zstd`, or `zstd:LEVEL` with a level from 1 to 19

    For more information, try '--help'.
    ");
}
