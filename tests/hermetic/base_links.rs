//! Files that a build adds through the symlinks of its base.

use tierce_testkit::check::LoadedImage;
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, merged_usr_base};
use tierce_testkit::tree::Node;
use tierce_testkit::{FakeRegistry, Fault, Method};

use crate::support::{World, downloads, file_of, fixtures, has, listing, top_layer};

#[track_caller]
fn assert_link(image: &LoadedImage, path: &str, target: &str) {
    let tree = image.tree().unwrap();
    assert_eq!(tree[path].node, Node::Symlink(target.to_owned()), "{path}");
}

#[test]
fn files_for_lib64_land_in_usr_and_the_links_survive() {
    for tag in ["latest", "docker"] {
        let world = World::new();
        world.sandbox.write("app/lib.so", "library");
        world.sandbox.write("app/tools/bin/tool", "#!/bin/sh\n");
        let base = format!(
            "--base=oci:{}:{tag}",
            fixtures().join("bases/minimal").display()
        );
        let image = world.built(&[
            "build",
            "app",
            &base,
            "--platform=arm64",
            "--add=lib.so:/lib64/libnew.so.1",
            "--add=lib.so:/lib/deep/libnew.so.1",
            "--add=tools:/",
        ]);
        insta::allow_duplicates! {
            insta::assert_snapshot!(top_layer(&image), @"
            d 0755 usr
            d 0755 usr/bin
            d 0755 usr/lib
            d 0755 usr/lib/deep
            d 0755 usr/lib64
            f 0644 usr/bin/tool 10 bytes
            f 0644 usr/lib/deep/libnew.so.1 7 bytes
            f 0644 usr/lib64/libnew.so.1 7 bytes
            ");
        }
        assert_link(&image, "lib64", "usr/lib64");
        assert_link(&image, "lib", "usr/lib");
        assert_link(&image, "bin", "usr/bin");
        assert_eq!(file_of(&image, "usr/lib64/libnew.so.1"), "library");
        assert!(has(&image, "usr/lib64/ld-minimal.so.1"));
        assert!(has(&image, "usr/bin/minimal"));
    }
}

#[test]
fn base_layers_are_read_once_and_only_when_needed() {
    let registry = FakeRegistry::start();
    let base = merged_usr_base(Format::Oci, "amd64");
    base.put(&registry, "base", Some("1"));
    let world = World::new();
    world.sandbox.write("app/x", "x");
    let name = format!("--base={}/base:1", registry.host());
    let read = |more: &[&str]| {
        registry.clear_log();
        world.runs(&[&["build", "app", &name], more].concat());
        let layers = base.layers.iter();
        layers
            .map(|layer| downloads(&registry, &layer.digest()))
            .collect::<Vec<_>>()
    };
    for inside in [
        "/var/task/",
        "/opt/x",
        "/tmp/x",
        "/app/x",
        "/srv/x",
        "/home/me/x",
    ] {
        assert_eq!(read(&[&format!("--add=x:{inside}")]), [0, 0], "{inside}");
    }
    assert_eq!(read(&["--add=x:/lib64/x", "--add=x:/etc/x"]), [1, 1]);
    let log = registry.log();
    assert_eq!(log.count(Method::GET, "/blobs/"), 2, "{log:?}");
}

#[test]
fn a_layer_is_seen_by_the_layers_above_it() {
    let world = World::new();
    merged_usr_base(Format::Oci, "amd64").write_layout(&world.path("base"), Some("1"));
    let tar = LayerBuilder::new()
        .directory("opt/real", 0o755)
        .symlink("opt/link", "real")
        .whiteout("lib64");
    world.sandbox.write("app/one.tar", tar.tar());
    world.sandbox.write("app/x", "x");
    world.sandbox.write(
        "app/tierce.toml",
        r#"
[image]
base = "oci:../base:1"

[[layer]]
name = "one"
tar = "one.tar"

[[layer]]
name = "two"
add = [
    { from = "x", to = "/lib64/x" },
    { from = "x", to = "/bin/x" },
    { from = "x", to = "/opt/link/x" },
]
"#,
    );
    let image = world.built(&["build", "app"]);
    insta::assert_snapshot!(listing(&image, 3), @"
    d 0755 lib64
    d 0755 opt
    d 0755 opt/real
    d 0755 usr
    d 0755 usr/bin
    f 0644 lib64/x 1 bytes
    f 0644 opt/real/x 1 bytes
    f 0644 usr/bin/x 1 bytes
    ");
    assert_link(&image, "opt/link", "real");
    assert_eq!(image.tree().unwrap()["lib64"].node, Node::Directory);
}

#[test]
fn links_that_lead_nowhere_or_round_in_circles_are_told() {
    let world = World::new();
    let base = ImageBuilder::new(Format::Oci, "amd64")
        .layer(
            &LayerBuilder::new()
                .symlink("loop", "pool")
                .symlink("pool", "loop")
                .symlink("up", "../../..//etc")
                .directory("etc", 0o755),
        )
        .build();
    base.write_layout(&world.path("base"), Some("1"));
    world.sandbox.write("app/x", "x");
    let arguments = ["build", "app", "--base=oci:base:1"];
    // `..` ends at the root of the image, as it does in a container.
    let image = world.built(&[&arguments[..], &["--add=x:/up/x"]].concat());
    assert!(has(&image, "etc/x"));
    assert_link(&image, "up", "../../..//etc");
    let stderr = world.fails(1, &[&arguments[..], &["--add=x:/loop/x"]].concat());
    insta::assert_snapshot!(stderr, @"
    building for linux/amd64; --platform names another
    error: could not make the layer `added`
      caused by: could not find the place of an entry in the base image
      caused by: `loop` leads through too many symlinks of the base image, the last of them `loop`
    ");
}

#[test]
fn a_damaged_base_layer_is_noticed_while_its_links_are_read() {
    let registry = FakeRegistry::start();
    let base = merged_usr_base(Format::Oci, "amd64");
    base.put(&registry, "base", Some("1"));
    let mut world = World::new();
    world.call(registry.host(), "REGISTRY");
    world.call(base.layers[0].digest(), "LAYER");
    world.sandbox.write("app/x", "x");
    let name = format!("--base={}/base:1", registry.host());
    let digest = base.layers[0].digest().hex();
    let fault = Fault::corrupt_byte(40).on(Method::GET, &digest);
    registry.inject(fault.always());
    let stderr = world.fails(1, &["build", "app", &name, "--add=x:/lib64/x"]);
    insta::assert_snapshot!(stderr, @"
    building for linux/amd64; --platform names another
    error: could not read the symlinks of base layer [LAYER]
      caused by: could not read blob [LAYER]
      caused by: its bytes have the digest sha256:52a06f5a731de204df833d99b1370e9cf2663ebd74de2607d42f0f271ee02f8c
    hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
    ");
}
