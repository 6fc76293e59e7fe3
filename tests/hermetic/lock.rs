//! `tierce.lock`: made, honoured, demanded and moved.

use std::fs;

use tierce_testkit::FakeRegistry;
use tierce_testkit::images::{
    Format, TestImage, lambda_base, multi_platform_base, rich_config_base,
};

use crate::support::{World, digest_in, layer_digests};

const PLATFORM: &str = "platforms = [\"amd64\"]";

/// A registry with the image `base:1`, and a function that is built on it.
fn world_on_tag() -> (World, FakeRegistry, TestImage) {
    let registry = FakeRegistry::start();
    let base = lambda_base(Format::Docker, "amd64");
    base.put(&registry, "base", Some("1"));
    let mut world = World::new();
    world.app(&format!("{}/base:1", registry.host()), PLATFORM);
    world.call(registry.host(), "REGISTRY");
    world.call(base.digest(), "BASE");
    (world, registry, base)
}

fn lock_of(world: &World) -> String {
    world.shown(&fs::read_to_string(world.path("app/tierce.lock")).unwrap())
}

/// Points `base:1` at another image.
fn move_tag(registry: &FakeRegistry) -> TestImage {
    let other = rich_config_base(Format::Docker, "amd64");
    other.put(registry, "base", Some("1"));
    other
}

#[test]
fn the_first_build_makes_it_and_later_ones_hold_to_it() {
    let (world, registry, base) = world_on_tag();
    let first = world.ok(&["build", "app"]);
    insta::assert_snapshot!(lock_of(&world), @r#"
    # What the base's tag stood for, by platform. Written by tierce; keep it in version control.
    # `tierce lock --update` moves it.

    version = 1

    [[base]]
    name = "[REGISTRY]/base:1"

    [base.platforms]
    "linux/amd64" = "[BASE]"
    "#);
    let lock = fs::read(world.path("app/tierce.lock")).unwrap();

    move_tag(&registry);
    let second = world.ok(&["build", "app"]);
    assert_eq!(digest_in(&second), digest_in(&first));
    assert_eq!(fs::read(world.path("app/tierce.lock")).unwrap(), lock);
    // Also where nothing is remembered: it is the lock that holds.
    fs::remove_dir_all(world.sandbox.cache()).unwrap();
    let image = world.built(&["build", "app"]);
    assert_eq!(
        layer_digests(&image.manifest)[0],
        base.layers[0].digest().to_string()
    );
}

#[test]
fn only_update_moves_it() {
    let (mut world, registry, _) = world_on_tag();
    let before = world.ok(&["build", "app"]);
    let other = move_tag(&registry);
    world.call(other.digest(), "MOVED");
    let kept = world.ok(&["lock", "app"]);
    insta::assert_snapshot!(world.shown(&kept.stdout()), @"[REGISTRY]/base:1@[BASE] linux/amd64");
    let moved = world.ok(&["lock", "--update", "app"]);
    insta::assert_snapshot!(world.shown(&moved.stdout()), @"[REGISTRY]/base:1@[MOVED] linux/amd64");
    insta::assert_snapshot!(world.shown(&moved.stderr()), @"wrote app/tierce.lock");
    insta::assert_snapshot!(lock_of(&world), @r#"
    # What the base's tag stood for, by platform. Written by tierce; keep it in version control.
    # `tierce lock --update` moves it.

    version = 2

    [[base]]
    name = "[REGISTRY]/base:1"

    [base.platforms]
    "linux/amd64" = "[MOVED]"

    [base.facts."[MOVED]"]
    complete = true
    bootstrap = false
    library-directories = []
    libraries = []
    "#);
    let after = world.ok(&["build", "app"]);
    assert_ne!(digest_in(&after), digest_in(&before));
    let json = world.ok(&["lock", "--json", "app"]).json();
    assert_eq!(json["platforms"]["linux/amd64"], other.digest().to_string());
}

/// Without a platform, several pins once counted as none, and the build moved the lock.
#[test]
fn a_lock_of_several_platforms_holds_a_build_that_names_none() {
    let registry = FakeRegistry::start();
    let index = multi_platform_base(Format::Docker);
    index.put(&registry, "base", Some("1"));
    let world = World::new();
    world.app(&format!("{}/base:1", registry.host()), "");
    world.runs(&["build", "app", "--platform=amd64,arm64"]);
    let lock = fs::read(world.path("app/tierce.lock")).unwrap();
    move_tag(&registry);
    let image = world.built(&["build", "app"]);
    let held = index.image("amd64").layers[0].digest().to_string();
    assert_eq!(layer_digests(&image.manifest)[0], held);
    assert_eq!(fs::read(world.path("app/tierce.lock")).unwrap(), lock);
    world.runs(&["build", "app", "--locked", "--offline"]);
}

#[test]
fn lock_pins_every_platform_of_the_file() {
    let registry = FakeRegistry::start();
    let index = multi_platform_base(Format::Oci);
    index.put(&registry, "base", Some("1"));
    let mut world = World::new();
    world.app(
        &format!("{}/base:1", registry.host()),
        "platforms = [\"arm64\", \"x86_64\"]",
    );
    world.call(registry.host(), "REGISTRY");
    world.call(index.image("amd64").digest(), "AMD64");
    world.call(index.image("arm64").digest(), "ARM64");
    world.runs(&["lock", "app"]);
    insta::assert_snapshot!(lock_of(&world), @r#"
    # What the base's tag stood for, by platform. Written by tierce; keep it in version control.
    # `tierce lock --update` moves it.

    version = 2

    [[base]]
    name = "[REGISTRY]/base:1"

    [base.platforms]
    "linux/amd64" = "[AMD64]"
    "linux/arm64" = "[ARM64]"

    [base.facts."[ARM64]"]
    complete = true
    bootstrap = true
    library-directories = ["/var/runtime"]
    libraries = []

    [base.facts."[AMD64]"]
    complete = true
    bootstrap = true
    library-directories = ["/var/runtime"]
    libraries = []
    "#);
    // And a build that demands it is content.
    world.runs(&["build", "app", "--locked"]);
}

#[test]
fn locked_demands_a_complete_lock() {
    let registry = FakeRegistry::start();
    multi_platform_base(Format::Oci).put(&registry, "base", Some("1"));
    let mut world = World::new();
    world.app(&format!("{}/base:1", registry.host()), "");
    world.call(registry.host(), "REGISTRY");
    let locked = ["build", "app", "--locked", "--platform=amd64"];
    // No lock.
    insta::assert_snapshot!(world.fails(1, &locked), @"
    error: --locked: tierce.lock does not pin `[REGISTRY]/base:1` for linux/amd64
    hint: run `tierce lock` (or build once without --locked) and commit tierce.lock
    ");
    assert!(!world.path("app/tierce.lock").exists());
    world.runs(&["build", "app", "--platform=amd64"]);
    // Complete.
    let lock = fs::read(world.path("app/tierce.lock")).unwrap();
    world.runs(&locked);
    assert_eq!(fs::read(world.path("app/tierce.lock")).unwrap(), lock);
    // Complete for one of two platforms.
    let both = ["build", "app", "--locked", "--platform=amd64,arm64"];
    insta::assert_snapshot!(world.fails(1, &both), @"
    error: --locked: tierce.lock does not pin `[REGISTRY]/base:1` for linux/arm64
    hint: run `tierce lock` (or build once without --locked) and commit tierce.lock
    ");
}

#[test]
fn a_lock_of_another_base_locks_nothing() {
    let (world, registry, _) = world_on_tag();
    world.runs(&["build", "app"]);
    lambda_base(Format::Oci, "amd64").put(&registry, "other", Some("1"));
    world.app(&format!("{}/other:1", registry.host()), PLATFORM);
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--locked"]), @"
    error: --locked: tierce.lock does not pin `[REGISTRY]/other:1` for linux/amd64
    hint: run `tierce lock` (or build once without --locked) and commit tierce.lock
    ");
    // A build without --locked forgets the base that is no longer used.
    world.runs(&["build", "app"]);
    assert!(!lock_of(&world).contains("/base:1"));
}

#[test]
fn a_base_by_digest_needs_no_lock() {
    let (world, registry, base) = world_on_tag();
    let by_digest = registry.reference("base", &base.digest().to_string());
    world.app(&by_digest, PLATFORM);
    world.runs(&["build", "app", "--locked"]);
    assert!(!world.path("app/tierce.lock").exists());
}

#[test]
fn scratch_and_a_base_of_the_command_line_make_no_lock() {
    let (world, registry, _) = world_on_tag();
    let base = format!("--base={}/base:1", registry.host());
    world.runs(&["build", "app", &base]);
    world.app("scratch", "");
    world.runs(&["build", "app", "--locked"]);
    assert!(!world.path("app/tierce.lock").exists());
}

#[test]
fn a_build_without_network_works_after_one_with() {
    let (world, registry, _) = world_on_tag();
    let online = world.ok(&["build", "app"]);
    registry.clear_log();
    let offline = world.ok(&["build", "app", "--offline"]);
    assert_eq!(digest_in(&offline), digest_in(&online));
    assert!(registry.log().is_empty(), "{:?}", registry.log());
    // Also with nobody there to ask, and when the code has changed.
    drop(registry);
    world.sandbox.write("app/src/app.py", "changed");
    let changed = world.ok(&["build", "app", "--offline", "--locked"]);
    assert_ne!(digest_in(&changed), digest_in(&online));
}

#[test]
fn offline_says_what_is_missing() {
    let (world, registry, _) = world_on_tag();
    // Nothing is known of the base.
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--offline"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: `1` is not known here, and --offline forbids to ask the registry
    hint: run the same build once without --offline, in a folder with a tierce.toml
    ");
    // Pinned, but never seen here.
    world.runs(&["build", "app"]);
    fs::remove_dir_all(world.sandbox.cache()).unwrap();
    registry.clear_log();
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--offline"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `[BASE]`
      caused by: `[BASE]` is not known here, and --offline forbids to ask the registry
    hint: run the same build once without --offline, in a folder with a tierce.toml
    ");
    // Not to be reached at the other end either.
    let out = format!("{}/out:1", registry.host());
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--offline", "-t", &out, "--push"]), @"error: --offline forbids to push to `[REGISTRY]/out:1`");
    assert!(registry.log().is_empty(), "{:?}", registry.log());
    assert!(registry.tags("out").is_empty());
}

#[test]
fn offline_cannot_bring_base_layers_to_a_place_that_keeps_bytes() {
    let (world, _registry, _) = world_on_tag();
    world.runs(&["build", "app"]);
    for place in [
        "docker-archive:out.tar:x:1",
        "oci:out:1",
        "oci-archive:out.tar:1",
    ] {
        let stderr = world.fails(2, &["build", "app", "--offline", "-o", place]);
        insta::allow_duplicates! {
            insta::assert_snapshot!(stderr.replace(place, "[PLACE]"), @"
            error: --offline: `[PLACE]` needs the layers of the base, which are in a registry
            hint: build without --offline, or into the store: `-o store:NAME`
            ");
        }
        assert!(!world.path("out.tar").exists());
        assert!(!world.path("out").exists());
    }
}

#[test]
fn a_lock_that_is_none_is_an_error() {
    let (world, _registry, _) = world_on_tag();
    for (number, text) in [
        "version = 3\n",
        "version = 1\nsurprise = true\n",
        "<<<<<<< HEAD\n",
    ]
    .iter()
    .enumerate()
    {
        world.sandbox.write("app/tierce.lock", text);
        let stderr = world.fails(1, &["build", "app"]);
        match number {
            0 => {
                insta::assert_snapshot!(stderr, @"error: app/tierce.lock has the version 3, which this tierce does not know");
            }
            1 => insta::assert_snapshot!(stderr, @"
            error: app/tierce.lock is not a lock file of tierce
              caused by: TOML parse error at line 2, column 1
                  |
                2 | surprise = true
                  | ^^^^^^^^
                unknown field `surprise`, expected `version` or `base`
                
            hint: take it from version control, or delete it: the next build pins anew
            "),
            _ => insta::assert_snapshot!(stderr, @"
            error: app/tierce.lock is not a lock file of tierce
              caused by: TOML parse error at line 1, column 9
                  |
                1 | <<<<<<< HEAD
                  |         ^
                key with no value, expected `=`
                
            hint: take it from version control, or delete it: the next build pins anew
            "),
        }
    }
}

#[test]
fn a_pinned_digest_that_is_gone_is_an_error_with_a_way_out() {
    let (mut world, _registry, _) = world_on_tag();
    world.runs(&["build", "app"]);
    let gone = format!("sha256:{}", "0".repeat(64));
    let lock = fs::read_to_string(world.path("app/tierce.lock")).unwrap();
    let start = lock.find("sha256:").unwrap();
    let lock = format!("{}{gone}{}", &lock[..start], &lock[start + gone.len()..]);
    world.sandbox.write("app/tierce.lock", lock);
    world.call(&gone, "GONE");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `[GONE]`
      caused by: registry [REGISTRY] answered 404 MANIFEST_UNKNOWN to `GET /v2/base/manifests/[GONE]`: manifest unknown: [GONE]
    hint: tierce.lock holds the base to [GONE]; `tierce lock --update` takes what the tag stands for now
    hint: check the repository and the tag
    ");
}

#[test]
fn locks_hold_bases_in_layouts_and_archives_too() {
    let world = World::new();
    world.app("oci:../base:1", PLATFORM);
    let base = lambda_base(Format::Docker, "amd64");
    base.write_layout(&world.path("base"), Some("1"));
    let before = world.ok(&["build", "app"]);
    rich_config_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    assert_eq!(digest_in(&world.ok(&["build", "app"])), digest_in(&before));

    let mut world = World::new();
    world.app("docker-archive:../base.tar", PLATFORM);
    base.write_docker_archive(&world.path("base.tar"), Some("a:1"));
    world.runs(&["build", "app"]);
    let lock = lock_of(&world);
    let pinned = lock
        .split('"')
        .find(|text| text.starts_with("sha256:"))
        .unwrap()
        .to_owned();
    world.call(pinned, "PINNED");
    rich_config_base(Format::Docker, "amd64")
        .write_docker_archive(&world.path("base.tar"), Some("a:1"));
    let found = world
        .ok(&["inspect", "--json", "docker-archive:base.tar"])
        .json();
    world.call(found["digest"].as_str().unwrap(), "FOUND");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: the base `docker-archive:../base.tar` is [FOUND], but tierce.lock holds it to [PINNED]
    hint: `tierce lock --update` takes the new one
    ");
}

#[test]
fn lock_needs_a_file_and_a_base() {
    let world = World::new();
    world.sandbox.write("app/x", "x");
    insta::assert_snapshot!(world.fails(2, &["lock", "app"]), @"
    error: there is no tierce.toml in app
    hint: a lock belongs to a tierce.toml with `[image] base`
    ");
    world
        .sandbox
        .write("app/tierce.toml", "[image]\nhandler = \"a.b\"\n");
    insta::assert_snapshot!(world.fails(2, &["lock", "app"]), @"error: app/tierce.toml names no base");
}
