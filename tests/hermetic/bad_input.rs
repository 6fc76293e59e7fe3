//! What is wrong is named, with a way out; and nothing is left half-done.

use std::fs;

use tierce_testkit::images::{
    Format, ImageBuilder, LayerBuilder, Packing, TestImage, lambda_base, small_base,
};
use tierce_testkit::{FakeRegistry, Fault, Method};

use crate::support::World;

/// What `build app` says of this `tierce.toml`.
fn said_of(text: &str, code: i32) -> String {
    let world = World::new();
    world.sandbox.write("app/src/a", "a");
    world.sandbox.write("app/tierce.toml", text);
    world.fails(code, &["build", "app"])
}

#[test]
fn an_unknown_key_comes_with_the_nearest() {
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\nplatform = [\"arm64\"]\n", 1), @r#"
    error: app/tierce.toml:3:1: unknown field `platform`, expected one of `base`, `platforms`, `handler`, `tag`, `format`, `target`, `compression`, `runtime-client`
      |
    3 | platform = ["arm64"]
      | ^^^^^^^^
    hint: did you mean `platforms`?
    "#);
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\n[config]\nentry-point = \"/a\"\n", 1), @r#"
    error: app/tierce.toml:4:1: unknown field `entry-point`, expected one of `entrypoint`, `cmd`, `env`, `workdir`, `user`, `labels`, `annotations`, `expose`, `stop-signal`
      |
    4 | entry-point = "/a"
      | ^^^^^^^^^^^
    hint: did you mean `entrypoint`?
    "#);
    insta::assert_snapshot!(said_of("[imgae]\nbase = \"scratch\"\n", 1), @"
    error: app/tierce.toml:1:2: unknown field `imgae`, expected one of `image`, `layer`, `config`, `lint`
      |
    1 | [imgae]
      |  ^^^^^
    hint: did you mean `image`?
    ");
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\n[[layer]]\nname = \"a\"\nadd = [{ from = \"src\", too = \"/x\" }]\n", 1), @r#"
    error: app/tierce.toml:5:24: unknown field `too`, expected one of `from`, `to`, `include`, `exclude`
      |
    5 | add = [{ from = "src", too = "/x" }]
      |                        ^^^
    hint: did you mean `to`?
    "#);
    // Nothing is near.
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\nzzzzzzzz = 1\n", 1), @"
    error: app/tierce.toml:3:1: unknown field `zzzzzzzz`, expected one of `base`, `platforms`, `handler`, `tag`, `format`, `target`, `compression`, `runtime-client`
      |
    3 | zzzzzzzz = 1
      | ^^^^^^^^
    ");
}

#[test]
fn a_value_of_the_wrong_type_is_pointed_at() {
    insta::assert_snapshot!(said_of("[image]\nbase = 3\n", 1), @"
    error: app/tierce.toml:2:8: invalid type: integer `3`, expected a string
      |
    2 | base = 3
      |        ^
    ");
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\nplatforms = \"arm64\"\n", 1), @r#"
    error: app/tierce.toml:3:13: invalid type: string "arm64", expected a sequence
      |
    3 | platforms = "arm64"
      |             ^^^^^^^
    "#);
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\nplatforms = [\"sparc\"]\n", 1), @r#"
    error: app/tierce.toml:3:13: `sparc` is not a platform: expected `linux/amd64`, `linux/arm64`, `x86_64` or `arm64`
      |
    3 | platforms = ["sparc"]
      |             ^^^^^^^^^
    "#);
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\nformat = \"tar\"\n", 1), @r#"
    error: app/tierce.toml:3:10: `tar` is not an image format: expected `docker` or `oci`
      |
    3 | format = "tar"
      |          ^^^^^
    "#);
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\n[config]\nenv = { A = [1] }\n", 1), @r#"
    error: app/tierce.toml:4:13: expected a text, `{ append = "…" }` or `{ prepend = "…" }`
      |
    4 | env = { A = [1] }
      |             ^^^
    "#);
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\n[[layer]]\nadd = []\n", 1), @"
    error: app/tierce.toml:3:1: missing field `name`
      |
    3 | [[layer]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(said_of("[image\n", 1), @"
    error: app/tierce.toml:1:7: unclosed table, expected `]`
      |
    1 | [image
      |       ^
    ");
}

#[test]
fn layers_that_make_no_sense_are_pointed_at() {
    let layer = |text: &str| {
        said_of(
            &format!("[image]\nbase = \"scratch\"\n[[layer]]\n{text}\n"),
            1,
        )
    };
    insta::assert_snapshot!(layer("name = \"empty\""), @"
    error: app/tierce.toml:3:1: the layer `empty` has nothing in it: no `add`, no archive, no dependencies, no `binary`
      |
    3 | [[layer]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(layer("name = \"a\"\nverbatim = true\nadd = [{ from = \"src\", to = \"/\" }]"), @"
    error: app/tierce.toml:3:1: `to`, `include`, `exclude` and `verbatim` of a layer belong to its archive
      |
    3 | [[layer]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(layer("name = \"a\"\ntar = \"src/a\"\nverbatim = true\nto = \"/x\""), @"
    error: app/tierce.toml:3:1: a `verbatim` tar is a layer of its own: nothing is added, left out or moved
      |
    3 | [[layer]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(layer("name = \"a\"\nadd = [{ from = \"src\", to = \"/../etc\" }]"), @r#"
    error: app/tierce.toml:5:29: `/../etc`: has a `..` component
      |
    5 | add = [{ from = "src", to = "/../etc" }]
      |                             ^^^^^^^^^
    "#);
    insta::assert_snapshot!(layer("name = \"a\"\nadd = [{ from = \"src\", to = \"/x\", exclude = [\"[\"] }]"), @r#"
    error: app/tierce.toml:5:45: pattern 1: bad pattern `[`: the `[` is not closed
      |
    5 | add = [{ from = "src", to = "/x", exclude = ["["] }]
      |                                             ^^^^^
    "#);
}

#[test]
fn a_split_that_makes_no_sense_is_pointed_at() {
    let split = |text: &str| {
        let layer = "name = \"a\"\nadd = [{ from = \"src\", to = \"/x\" }]";
        let text = format!("[image]\nbase = \"scratch\"\n[[layer]]\n{layer}\nsplit = {text}\n");
        said_of(&text, 1)
    };
    insta::assert_snapshot!(split("\"yes\""), @r#"
    error: app/tierce.toml:6:9: invalid type: string "yes", expected `true`, `false` or `{ budget = "64 MiB", most = 8 }`
      |
    6 | split = "yes"
      |         ^^^^^
    "#);
    insta::assert_snapshot!(split("{ budgets = 1 }"), @"
    error: app/tierce.toml:6:11: unknown field `budgets`, expected `budget` or `most`
      |
    6 | split = { budgets = 1 }
      |           ^^^^^^^
    hint: did you mean `budget`?
    ");
    insta::assert_snapshot!(split("{ budget = \"64 megs\" }"), @r#"
    error: app/tierce.toml:6:20: `64 megs` is not a size: expected a whole number of bytes, kB, MB, GB, KiB, MiB or GiB
      |
    6 | split = { budget = "64 megs" }
      |                    ^^^^^^^^^
    "#);
    insta::assert_snapshot!(split("{ budget = [] }"), @r#"
    error: app/tierce.toml:6:20: invalid type: sequence, expected a number of bytes, or a text such as "64 MiB"
      |
    6 | split = { budget = [] }
      |                    ^^
    "#);
    insta::assert_snapshot!(split("{ most = 0 }"), @"
    error: app/tierce.toml:6:18: `most` must be at least 1
      |
    6 | split = { most = 0 }
      |                  ^
    ");
    insta::assert_snapshot!(
        said_of("[image]\nbase = \"scratch\"\n[[layer]]\nname = \"a\"\ntar = \"src/a\"\nverbatim = true\nsplit = true\n", 1),
        @"
    error: app/tierce.toml:7:9: a `verbatim` tar is one layer, with the bytes that it has
      |
    7 | split = true
      |         ^^^^
    "
    );
}

#[test]
fn a_missing_file_is_pointed_at() {
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\n[[layer]]\nname = \"a\"\nadd = [{ from = \"sorce\", to = \"/x\" }]\n", 1), @r#"
    error: app/tierce.toml:5:17: `sorce` is not there (looked in [SANDBOX]/work/app)
      |
    5 | add = [{ from = "sorce", to = "/x" }]
      |                 ^^^^^^^
    "#);
    insta::assert_snapshot!(said_of("[image]\nbase = \"scratch\"\n[[layer]]\nname = \"a\"\ntar = \"in.tar\"\n", 1), @r#"
    error: app/tierce.toml:5:7: `in.tar` is not there (looked in [SANDBOX]/work/app)
      |
    5 | tar = "in.tar"
      |       ^^^^^^^^
    "#);
    let world = World::new();
    world.sandbox.write("app/a", "a");
    let base = ["build", "app", "--base=scratch"];
    insta::assert_snapshot!(world.fails(2, &[&base[..], &["--add=nowhere:/x"]].concat()), @"error: --add nowhere:/x: `nowhere` is not there (looked in [SANDBOX]/work/app)");
    insta::assert_snapshot!(world.fails(1, &["build", "nowhere", "--base=scratch"]), @"
    error: could not open the context nowhere
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app/a", "--base=scratch"]), @"error: the context app/a is not a folder");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "-f", "nowhere.toml"]), @"
    error: could not read nowhere.toml
      caused by: No such file or directory (os error 2)
    ");
}

#[test]
fn a_path_that_leaves_the_context_is_refused() {
    let world = World::new();
    world.sandbox.write("app/src/a", "a");
    world.sandbox.write("secret", "s");
    std::os::unix::fs::symlink("../secret", world.path("app/link")).unwrap();
    let add = |from: &str| {
        let add = format!("--add={from}:/x");
        world.fails(2, &["build", "app", "--base=scratch", &add])
    };
    insta::assert_snapshot!(add("../secret"), @"error: --add ../secret:/x: `../secret` is outside the context [SANDBOX]/work/app");
    insta::assert_snapshot!(add("/etc/passwd"), @"error: --add /etc/passwd:/x: `/etc/passwd` is outside the context [SANDBOX]/work/app");
    insta::assert_snapshot!(add("link"), @"error: --add link:/x: `link` is outside the context [SANDBOX]/work/app");
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\n[[layer]]\nname = \"a\"\nadd = [{ from = \"../secret\", to = \"/x\" }]\n",
    );
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @r#"
    error: app/tierce.toml:5:17: `../secret` is outside the context [SANDBOX]/work/app
      |
    5 | add = [{ from = "../secret", to = "/x" }]
      |                 ^^^^^^^^^^^
    "#);
}

#[test]
fn a_reference_that_is_none_is_bad_usage() {
    let world = World::with_app("scratch");
    let base = |name: &str| world.fails(2, &["build", "app", "--base", name]);
    insta::assert_snapshot!(base("UPPER/case"), @"
    error: invalid value 'UPPER/case' for '--base <IMAGE>': `UPPER/case` has upper-case letters in its repository `UPPER/case`: repositories are lower-case

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(base("registry.example/a b"), @"
    error: invalid value 'registry.example/a b' for '--base <IMAGE>': `registry.example/a b` is not an image reference: it is empty or has white space

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(base("registry.example/a@sha256:123"), @"
    error: invalid value 'registry.example/a@sha256:123' for '--base <IMAGE>': `registry.example/a@sha256:123` has a bad digest

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(base("oci:"), @"
    error: invalid value 'oci:' for '--base <IMAGE>': `oci:` names no path

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "-t", "a:b:c"]), @"
    error: invalid value 'a:b:c' for '--tag <NAME[:TAG]>': `a:b:c` has the repository `a:b`, which is not lower-case words joined by `.`, `_`, `-` and `/`

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["push", "store:Bad", "localhost:1/a"]), @"
    error: invalid value 'store:Bad' for '<SOURCE>': `Bad` is not a name in the store

    For more information, try '--help'.
    ");
    let digest = format!("a@sha256:{}", "0".repeat(64));
    let stderr = world.fails(2, &["build", "app", "-t", &digest]);
    insta::assert_snapshot!(stderr.replace(&"0".repeat(64), "[…]"), @"error: `docker.io/library/a@sha256:[…]` has a digest: an image cannot be given one, it has its own");
}

#[test]
fn an_unknown_transport_is_bad_usage() {
    let world = World::with_app("scratch");
    insta::assert_snapshot!(world.fails(2, &["copy", "dir:x", "oci:y"]), @"
    error: invalid value 'dir:x' for '<SRC>': `dir:` is not a transport: expected docker://, oci:, oci-archive:, docker-archive: or store:

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "-o", "docker-daemon:x:1"]), @"
    error: invalid value 'docker-daemon:x:1' for '--output <PLACE>': `docker-daemon:` is not a transport: expected docker://, oci:, oci-archive:, docker-archive: or store:

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["inspect", "http://example.org/x"]), @"
    error: invalid value 'http://example.org/x' for '<IMAGE>': `http:` is not a transport: expected docker://, oci:, oci-archive:, docker-archive: or store:

    For more information, try '--help'.
    ");
}

#[test]
fn bad_usage_ends_with_two() {
    let world = World::with_app("scratch");
    insta::assert_snapshot!(world.fails(2, &["bake"]), @"
    error: unrecognized subcommand 'bake'

    Usage: tierce [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "--jobs=0"]), @"
    error: invalid value '0' for '--jobs <N>': number would be zero for non-zero type

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--handler=a.b", "--cmd=c"]), @"
    error: the argument '--handler <HANDLER>' cannot be used with '--cmd <WORD>'

    Usage: tierce build --handler <HANDLER> <CONTEXT>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--add=x"]), @"
    error: invalid value 'x' for '--add <SRC:DEST>': expected SRC:DEST, for example src:/var/task/

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--env=x"]), @"
    error: invalid value 'x' for '--env <NAME=VALUE>': expected NAME=VALUE

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["copy", "oci:a"]), @"
    error: the following required arguments were not provided:
      <DST>

    Usage: tierce copy <SRC> <DST>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "-q", "-v"]), @"
    error: the argument '--quiet' cannot be used with '--verbose...'

    Usage: tierce build --quiet <CONTEXT>

    For more information, try '--help'.
    ");
}

#[test]
fn a_build_without_base_or_files_says_what_to_name() {
    let world = World::new();
    world.sandbox.write("app/a", "a");
    insta::assert_snapshot!(world.fails(2, &["build", "app"]), @"
    error: no base image is named
    hint: name one with `--base public.ecr.aws/lambda/python:3.12`, or in tierce.toml as `[image] base`; `--base scratch` starts from nothing
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--base=scratch"]), @"
    error: nothing is said to go into the image
    hint: add files with `--add SRC:DEST`, or as a [[layer]] of tierce.toml
    ");
    fs::create_dir(world.path("___")).unwrap();
    insta::assert_snapshot!(world.fails(2, &["build", "___", "--base=scratch"]), @"
    error: the folder [SANDBOX]/work/___ gives no name for the image
    hint: name the image with `--tag NAME`
    ");
}

#[test]
fn help_and_version_are_no_failures() {
    let world = World::new();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["build", "--help"],
        &["lock", "--help"],
    ] {
        let output = world.ok(arguments);
        assert!(!output.stdout().is_empty());
        assert_eq!(output.stderr(), "");
    }
}

/// A port that nobody listens at.
fn dead_host() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let host = dead_host();
    let mut world = World::with_app(&format!("{host}/base:1"));
    world.call(&host, "NOBODY");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[NOBODY]/base:1`
      caused by: could not read the manifest `1`
      caused by: could not connect to [NOBODY]
      caused by: Connection refused (os error 111)
    hint: check that the registry runs there and listens on that port
    ");
    world.app("scratch", "");
    let name = format!("{host}/app:1");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "-t", &name, "--push"]), @"
    building for linux/amd64, Lambda's default; --platform names another
    error: could not write `[NOBODY]/app:1`
      caused by: could not ask the target for the manifest `1`
      caused by: could not connect to [NOBODY]
      caused by: Connection refused (os error 111)
    hint: check that the registry runs there and listens on that port
    ");
    insta::assert_snapshot!(world.fails(1, &["inspect", &name]), @"
    error: could not read `[NOBODY]/app:1`
      caused by: could not connect to [NOBODY]
      caused by: Connection refused (os error 111)
    hint: check that the registry runs there and listens on that port
    ");
}

#[test]
fn a_base_that_is_not_there_is_named() {
    let registry = FakeRegistry::builder().repository("known").start();
    let mut world = World::new();
    world.call(registry.host(), "REGISTRY");
    for (name, number) in [("known:9", 0), ("unknown:1", 1)] {
        world.app(&format!("{}/{name}", registry.host()), "");
        let stderr = world.fails(1, &["build", "app"]);
        match number {
            0 => insta::assert_snapshot!(stderr, @"
            error: could not read the base `[REGISTRY]/known:9`
              caused by: could not read the manifest `9`
              caused by: registry [REGISTRY] answered 404 MANIFEST_UNKNOWN to `GET /v2/known/manifests/9`: manifest unknown: 9
            hint: check the repository and the tag
            "),
            _ => insta::assert_snapshot!(stderr, @"
            error: could not read the base `[REGISTRY]/unknown:1`
              caused by: could not read the manifest `1`
              caused by: registry [REGISTRY] answered 404 NAME_UNKNOWN to `GET /v2/unknown/manifests/1`: repository unknown does not exist
            hint: check the repository's name; some registries want it created before the first push
            "),
        }
    }
    world.app("oci:../nowhere:1", "");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `oci:../nowhere:1`
      caused by: there is no OCI layout at `app/../nowhere`
    ");
    world.app("store:nowhere:1", "");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `store:nowhere:1`
      caused by: could not read the manifest `1`
      caused by: the store has no image `nowhere`; it has none
    ");
    world.app("docker-archive:../nowhere.tar", "");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `docker-archive:../nowhere.tar`
      caused by: could not read `app/../nowhere.tar`
      caused by: No such file or directory (os error 2)
    ");
}

/// A registry with a base, and names for the base's parts.
fn world_on(base: &TestImage) -> (World, FakeRegistry) {
    let registry = FakeRegistry::start();
    base.put(&registry, "base", Some("1"));
    let mut world = World::with_app(&format!("{}/base:1", registry.host()));
    world.call(registry.host(), "REGISTRY");
    world.call(base.digest(), "MANIFEST");
    world.call(base.config_digest(), "CONFIG");
    for (number, layer) in base.layers.iter().enumerate() {
        world.call(layer.digest(), &format!("LAYER {number}"));
        world.call(layer.diff_id(), &format!("DIFF ID {number}"));
    }
    (world, registry)
}

#[test]
fn a_corrupted_config_or_manifest_of_a_base_is_noticed() {
    let base = small_base(Format::Docker, "amd64");
    let (world, registry) = world_on(&base);
    let config = base.config_digest().hex();
    registry.inject(Fault::corrupt_byte(20).on(Method::GET, &config).always());
    insta::assert_snapshot!(hide_wrong(&world.fails(1, &["build", "app"])), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read blob [CONFIG]
      caused by: its bytes have the digest sha256:[…]
    hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
    ");
    registry.clear_faults();
    registry.inject(Fault::truncate(10).on(Method::GET, &config).always());
    insta::assert_snapshot!(hide_wrong(&world.fails(1, &["build", "app"])), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read blob [CONFIG]
      caused by: the answer of [REGISTRY] to `GET /v2/base/blobs/[CONFIG]` cannot be used
      caused by: it has 10 bytes where 515 were expected
    ");
    registry.clear_faults();
    // A manifest that was right is remembered; here it is to be asked for.
    fs::remove_dir_all(world.sandbox.cache()).unwrap();
    let by_digest = registry.reference("base", &base.digest().to_string());
    world.app(&by_digest, "");
    registry.inject(
        Fault::corrupt_byte(30)
            .on(Method::GET, "/manifests/")
            .always(),
    );
    insta::assert_snapshot!(hide_wrong(&world.fails(1, &["build", "app"])), @"
    error: could not read the base `[REGISTRY]/base@[MANIFEST]`
      caused by: could not read the manifest `[MANIFEST]`
      caused by: the answer of [REGISTRY] to `GET /v2/base/manifests/[MANIFEST]` cannot be used
      caused by: it has the digest sha256:[…] where [MANIFEST] was expected
    ");
    registry.clear_faults();
    registry.inject(
        Fault::replace_body("<html>")
            .on(Method::GET, "/manifests/")
            .always(),
    );
    insta::assert_snapshot!(hide_wrong(&world.fails(1, &["build", "app"])), @"
    error: could not read the base `[REGISTRY]/base@[MANIFEST]`
      caused by: could not read the manifest `[MANIFEST]`
      caused by: the answer of [REGISTRY] to `GET /v2/base/manifests/[MANIFEST]` cannot be used
      caused by: it has the digest sha256:[…] where [MANIFEST] was expected
    ");
    // What was wrong is not remembered.
    registry.clear_faults();
    world.runs(&["build", "app"]);
}

/// Hides digests that a world has no name for: those of bytes that should not be.
fn hide_wrong(text: &str) -> String {
    let mut parts = text.split("sha256:");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("sha256:[…]");
        shown.push_str(part.trim_start_matches(|letter: char| letter.is_ascii_hexdigit()));
    }
    shown
}

#[test]
fn a_corrupted_base_layer_stops_a_push() {
    let base = small_base(Format::Docker, "amd64");
    let (mut world, registry) = world_on(&base);
    world.runs(&["build", "app"]);
    let target = FakeRegistry::start();
    world.call(target.host(), "TARGET");
    let layer = base.layers[0].digest().hex();
    registry.inject(Fault::corrupt_byte(50).on(Method::GET, &layer).always());
    let name = format!("{}/out:1", target.host());
    let stderr = world.fails(1, &["push", "--jobs=1", "store:app", &name]);
    insta::assert_snapshot!(hide_wrong(&stderr), @"
    error: could not write `[TARGET]/out:1`
      caused by: could not write blob [LAYER 0] (184 bytes)
      caused by: could not read blob [LAYER 0]
      caused by: its bytes have the digest sha256:[…]
    hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
    ");
    assert!(target.tags("out").is_empty());
    assert_eq!(target.open_uploads(), 0);
}

#[test]
fn a_corrupted_layout_is_noticed() {
    let base = small_base(Format::Oci, "amd64");
    let (world, _registry) = world_on(&base);
    let fresh = || {
        let _ = fs::remove_dir_all(world.path("out"));
        base.write_layout(&world.path("out"), Some("1"));
    };
    let blob = |hex: String| world.path("out/blobs/sha256").join(hex);
    let copy = || {
        hide_wrong(&world.fails(
            1,
            &["copy", "--jobs=1", "oci:out:1", "docker-archive:x.tar:x:1"],
        ))
    };
    fresh();
    let layer = blob(base.layers[0].digest().hex());
    let mut bytes = fs::read(&layer).unwrap();
    bytes[60] ^= 1;
    fs::write(&layer, &bytes).unwrap();
    insta::assert_snapshot!(copy(), @"
    error: could not write `docker-archive:x.tar:x:1`
      caused by: could not write blob [LAYER 0] (184 bytes)
      caused by: could not read blob [LAYER 0]
      caused by: its bytes have the digest sha256:[…]
    hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
    ");
    fs::write(&layer, &bytes[..20]).unwrap();
    insta::assert_snapshot!(copy(), @"
    error: could not write `docker-archive:x.tar:x:1`
      caused by: could not write blob [LAYER 0] (184 bytes)
      caused by: could not read blob [LAYER 0]
      caused by: it has 20 bytes where 184 were expected
    hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
    ");
    fs::remove_file(&layer).unwrap();
    insta::assert_snapshot!(copy(), @"
    error: could not write `docker-archive:x.tar:x:1`
      caused by: could not write blob [LAYER 0] (184 bytes)
      caused by: could not read blob [LAYER 0]
      caused by: could not read `out/blobs/sha256/177efbbbb72793332f3335d4715146e686506855f08e3707ed0f01da9cdf4837`
      caused by: No such file or directory (os error 2)
    ");
    fresh();
    fs::write(blob(base.config_digest().hex()), "{}").unwrap();
    insta::assert_snapshot!(copy(), @"
    error: could not write `docker-archive:x.tar:x:1`
      caused by: could not write blob [CONFIG] (515 bytes)
      caused by: could not read blob [CONFIG]
      caused by: it has 2 bytes where 515 were expected
    hint: what is stored there is damaged, or was damaged on the way: get a new copy of the image
    ");
    fresh();
    fs::remove_file(blob(base.digest().hex())).unwrap();
    insta::assert_snapshot!(copy(), @"
    error: could not read `oci:out:1`
      caused by: could not read the manifest `1`
      caused by: `out` has no manifest [MANIFEST]
    ");
    fresh();
    fs::write(world.path("out/index.json"), "{").unwrap();
    insta::assert_snapshot!(copy(), @"
    error: could not read `oci:out:1`
      caused by: could not read the manifest `1`
      caused by: could not look up an image in the OCI layout `out`
      caused by: `index.json` is not JSON
      caused by: EOF while parsing an object at line 1 column 1
    ");
    fresh();
    fs::write(
        world.path("out/oci-layout"),
        r#"{"imageLayoutVersion":"9.0.0"}"#,
    )
    .unwrap();
    insta::assert_snapshot!(copy(), @"
    error: could not read `oci:out:1`
      caused by: the OCI layout `out` has the version `9.0.0`; only 1.0.0 is known
    ");
    assert!(!world.path("x.tar").exists());
}

#[test]
fn archives_that_are_none_are_noticed() {
    let world = World::new();
    world
        .sandbox
        .write("text.tar", "this is no tar, however long one looks at it");
    world.sandbox.write("empty.tar", "");
    let copy = |from: &str| world.fails(1, &["copy", from, "oci:out:1"]);
    insta::assert_snapshot!(copy("oci-archive:text.tar"), @"
    error: could not read `oci-archive:text.tar`
      caused by: `text.tar` is not a readable tar archive: it is too short at byte 0
    ");
    insta::assert_snapshot!(copy("docker-archive:text.tar"), @"
    error: could not read `docker-archive:text.tar`
      caused by: `text.tar` is not a readable tar archive: it is too short at byte 0
    ");
    insta::assert_snapshot!(copy("docker-archive:empty.tar"), @"
    error: could not read `docker-archive:empty.tar`
      caused by: `empty.tar` is not a readable tar archive: it is too short at byte 0
    ");
    // Cut off half-way, as an interrupted download is.
    small_base(Format::Docker, "amd64").write_hybrid_archive(&world.path("cut.tar"), Some("a:1"));
    let bytes = fs::read(world.path("cut.tar")).unwrap();
    fs::write(world.path("cut.tar"), &bytes[..bytes.len() / 2]).unwrap();
    insta::assert_snapshot!(hide_wrong(&copy("docker-archive:cut.tar")), @"
    error: could not read `docker-archive:cut.tar`
      caused by: `cut.tar` is not a readable tar archive: it is cut off at byte 4608
    ");
    assert!(!world.path("out").exists());
}

#[test]
fn an_old_archive_whose_layer_is_another_is_noticed() {
    let mut world = World::new();
    let mut image = small_base(Format::Docker, "amd64");
    world.call(image.layers[0].diff_id(), "DIFF ID");
    let other = LayerBuilder::new().file("other", 0o644, b"other").build();
    image.layers[0].tar = other.tar;
    image.write_docker_archive(&world.path("old.tar"), Some("a:1"));
    let stderr = world.fails(1, &["copy", "docker-archive:old.tar", "oci:out:1"]);
    insta::assert_snapshot!(hide_wrong(&stderr), @"
    error: could not read `docker-archive:old.tar`
      caused by: the layer `6ac5d029b405674dfb87be8fefe25ef9d359b4e9719a16316923e4ff1eeb6311/layer.tar` of old.tar has the diff id sha256:[…], but the config says [DIFF ID]
    ");
}

#[test]
fn a_tar_that_is_none_is_named() {
    let world = World::new();
    world.sandbox.write(
        "app/text.tar",
        "this is no tar, however long one looks at it",
    );
    let good = LayerBuilder::new().file("a", 0o644, b"aaaa").tar();
    world.sandbox.write("app/cut.tar", &good[..700]);
    let gzip = LayerBuilder::new()
        .file("a", 0o644, b"aaaa")
        .packing(Packing::Gzip)
        .build();
    world
        .sandbox
        .write("app/cut.tar.gz", &gzip.blob[..gzip.blob.len() - 12]);
    let evil = LayerBuilder::new()
        .file("../../etc/passwd", 0o644, b"x")
        .tar();
    world.sandbox.write("app/evil.tar", evil);
    let fifo = LayerBuilder::new().fifo("pipe").tar();
    world.sandbox.write("app/fifo.tar", fifo);
    let build = |tar: &str, more: &str| {
        world.sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"scratch\"\n[[layer]]\nname = \"a\"\ntar = \"{tar}\"\n{more}\n"
            ),
        );
        world.fails(1, &["build", "app", "--platform=amd64"])
    };
    insta::assert_snapshot!(build("text.tar", ""), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/text.tar`
      caused by: not a tar archive: what is read is plain tar, and tar compressed once with gzip or zstd
    ");
    insta::assert_snapshot!(build("cut.tar", ""), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/cut.tar`
      caused by: the archive is truncated: it ends in the padding of a member
    ");
    insta::assert_snapshot!(build("cut.tar.gz", ""), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/cut.tar.gz`
      caused by: the archive is truncated: it ends in the compressed data
    ");
    insta::assert_snapshot!(build("evil.tar", ""), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/evil.tar`
      caused by: member `../../etc/passwd` is refused: its name has a `..` component
    ");
    insta::assert_snapshot!(build("fifo.tar", ""), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/fifo.tar`
      caused by: member `pipe` is refused: it is a FIFO
    ");
    insta::assert_snapshot!(build("text.tar", "verbatim = true"), @"
    error: could not make the layer `a`
      caused by: could not read [SANDBOX]/work/app/text.tar
      caused by: could not make a layer of an archive
      caused by: not a tar archive: what is read is plain tar, and tar compressed once with gzip or zstd
    ");
    insta::assert_snapshot!(build("evil.tar", "verbatim = true"), @"
    error: could not make the layer `a`
      caused by: could not read [SANDBOX]/work/app/evil.tar
      caused by: could not make a layer of an archive
      caused by: member `../../etc/passwd` is refused: its name has a `..` component
    ");
}

#[test]
fn what_no_layer_can_hold_is_named() {
    let world = World::new();
    world.sandbox.write("app/dir/a", "a");
    world.sandbox.write("app/wh/.wh.gone", "");
    fs::create_dir(world.path("app/pipe")).unwrap();
    let made = world
        .sandbox
        .command("mkfifo")
        .arg(world.path("app/pipe/p"))
        .run();
    drop(made.assert_success());
    let build = |add: &str| {
        world.fails(
            1,
            &["build", "app", "--base=scratch", "--platform=amd64", add],
        )
    };
    insta::assert_snapshot!(build("--add=pipe:/x"), @"
    error: could not make the layer `added`
      caused by: `[SANDBOX]/work/app/pipe/p` is a FIFO; only files, directories and symlinks go into a layer
    ");
    insta::assert_snapshot!(build("--add=wh:/x"), @"
    error: could not make the layer `added`
      caused by: could not add `[SANDBOX]/work/app/wh/.wh.gone`
      caused by: `x/.wh.gone`: names that start with `.wh.` delete files in a layer and cannot be in one
    ");
    insta::assert_snapshot!(build("--add=dir:/.wh.x"), @"
    error: could not make the layer `added`
      caused by: could not add `[SANDBOX]/work/app/dir`
      caused by: `.wh.x`: names that start with `.wh.` delete files in a layer and cannot be in one
    ");
}

#[test]
fn ignore_files_that_make_no_sense_are_named() {
    let world = World::with_app("scratch");
    world.sandbox.write("app/.dockerignore", "*.pyc\n[a-\n");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    building for linux/amd64, Lambda's default; --platform names another
    error: [SANDBOX]/work/app/.dockerignore, line 2: bad pattern `[a-`: the `[` is not closed
    ");
}

#[test]
fn a_target_that_cannot_be_written_is_named() {
    let world = World::with_app("scratch");
    world.sandbox.write("file", "in the way");
    fs::create_dir(world.path("folder")).unwrap();
    let build = |place: &str| {
        world.fails(
            1,
            &[
                "build",
                "app",
                "--platform=amd64",
                "--format=oci",
                "-o",
                place,
            ],
        )
    };
    insta::assert_snapshot!(build("oci:file:1"), @"
    error: could not write `oci:file:1`
      caused by: could not list `file`
      caused by: Not a directory (os error 20)
    ");
    insta::assert_snapshot!(build("oci:file/deeper:1"), @"
    error: could not write `oci:file/deeper:1`
      caused by: could not list `file/deeper`
      caused by: Not a directory (os error 20)
    ");
    insta::assert_snapshot!(build("oci-archive:file/out.tar:1"), @"
    error: could not write `oci-archive:file/out.tar:1`
      caused by: could not look at `file/out.tar`
      caused by: Not a directory (os error 20)
    ");
    insta::assert_snapshot!(build("docker-archive:folder:a:1"), @"
    error: could not write `docker-archive:folder:a:1`
      caused by: `folder` is there already and is not a regular file
    ");
    insta::assert_snapshot!(build("docker-archive:missing/out.tar:a:1"), @"
    error: could not write `docker-archive:missing/out.tar:a:1`
      caused by: could not create a file in `missing`
      caused by: No such file or directory (os error 2)
    ");
    // A folder with other things in it is nobody's layout.
    world.sandbox.write("mine/diary.txt", "dear diary");
    insta::assert_snapshot!(build("oci:mine:1"), @"
    error: could not write `oci:mine:1`
      caused by: `mine` has files in it and is not an OCI layout
    ");
    let metadata = ["build", "app", "--metadata-file=file/meta.json"];
    insta::assert_snapshot!(world.fails(2, &metadata), @"error: the folder of --metadata-file file/meta.json is not there");
}

#[test]
fn a_store_or_cache_that_cannot_be_written_is_named() {
    let world = World::with_app("scratch");
    world.sandbox.write("file", "in the way");
    let build = |name: &str| {
        let command = world.tierce(&["build", "app", "--platform=amd64"]);
        world.fails_as(1, command.env(name, world.path("file")))
    };
    insta::assert_snapshot!(build("TIERCE_STORE"), @"
    error: could not write `store:app:latest`
      caused by: could not create `[SANDBOX]/work/file`
      caused by: File exists (os error 17)
    ");
    insta::assert_snapshot!(build("TIERCE_CACHE"), @"
    error: could not make a directory in [SANDBOX]/work/file/scratch
      caused by: Not a directory (os error 20)
    ");
}

#[test]
fn a_damaged_store_is_noticed() {
    let base = lambda_base(Format::Docker, "amd64");
    let (mut world, _registry) = world_on(&base);
    let target = FakeRegistry::start();
    world.call(target.host(), "TARGET");
    world.runs(&["build", "app"]);
    let json = world.ok(&["inspect", "--json", "store:app"]).json();
    let code = json["layers"][2]["digest"].as_str().unwrap().to_owned();
    world.call(&code, "CODE");
    let packs = world.sandbox.data().join("tierce/store/packs");
    let pack = fs::read_dir(packs).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[30] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    world.call(pack.file_name().unwrap().to_string_lossy(), "PACK");
    let name = format!("{}/out:1", target.host());
    let stderr = world.fails(1, &["push", "--jobs=1", "store:app", &name]);
    insta::assert_snapshot!(stderr, @"
    error: could not write `[TARGET]/out:1`
      caused by: could not write blob [CODE] (209 bytes)
      caused by: could not read blob [CODE]
      caused by: the pack `[SANDBOX]/data/tierce/store/packs/[PACK]` is damaged: the 175 bytes from 0 on are others than were written
    hint: build the image again: that puts a whole pack in its place
    ");
    assert!(target.tags("out").is_empty());
    // Building again heals it.
    world.runs(&["build", "app"]);
    world.runs(&["push", "store:app", &name]);
}

#[test]
fn a_base_that_is_no_linux_is_refused() {
    let world = World::with_app("oci:../base:1");
    ImageBuilder::new(Format::Oci, "amd64")
        .layer(&LayerBuilder::new().file("a", 0o644, b"a"))
        .config(|config| config["os"] = "windows".into())
        .build()
        .write_layout(&world.path("base"), Some("1"));
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"error: the base `oci:../base:1` is for windows/amd64: only linux images can be assembled");
}

#[test]
fn a_docker_image_cannot_have_annotations() {
    let world = World::with_app("scratch");
    let arguments = ["build", "app", "--platform=amd64", "--annotation=a=b"];
    insta::assert_snapshot!(world.fails(1, &arguments), @"
    error: could not assemble the image for linux/amd64
      caused by: a Docker V2 Schema 2 manifest has no annotations, but `a` was asked for
    hint: an OCI image can have it: `--format oci`
    ");
}
