//! What is for Lambda is judged before it gets a name: by `build`, and by `push`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tierce_oci::Digest;
use tierce_testkit::FakeRegistry;
use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{
    Format, ImageBuilder, LayerBuilder, TestImage, TestIndex, lambda_base,
};

use crate::support::{World, digest_in, downloads, sealed};

const PYTHON: &str = "public.ecr.aws/lambda/python:3.12";

fn program(architecture: &str) -> ElfBuilder {
    ElfBuilder::new(architecture).needs("libc.so.6")
}

/// A function on `base`, with a module that its Python cannot import.
fn world_with_defect(base: &str) -> World {
    let world = World::new();
    add_app(&world, base, "");
    world
}

fn add_app(world: &World, base: &str, more: &str) {
    world.app(base, &format!("handler = \"app.handler\"\n{more}"));
    let module = ElfBuilder::new("arm64").build();
    world.sandbox.write("app/src/_fast.abi3.so", module);
}

fn on_layout(more: &str) -> World {
    let world = World::new();
    lambda_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    add_app(&world, "oci:../base:1", more);
    world
}

/// Requests that would have given something a name.
fn manifests_put(registry: &FakeRegistry) -> usize {
    let log = registry.log();
    log.filter(|it| it.method == "PUT" && it.path.contains("/manifests/"))
        .len()
}

#[test]
fn an_image_with_errors_gets_no_name() {
    let registry = FakeRegistry::start();
    let world = on_layout("");
    let refused = world.fails(
        3,
        &[
            "build",
            "app",
            "--metadata-file=metadata.json",
            "-t",
            "app:1",
        ],
    );
    insta::assert_snapshot!(refused, @"
    building for linux/amd64; --platform names another
    error[wrong-architecture] layer 3: /var/task/_fast.abi3.so: it is for arm64, and the image for amd64
      why: a program or module for another machine cannot be run or imported (`exec format error`)
      fix: install or build it for the architecture of the image
    judged for Lambda: 1 error
    error: `store:app:1` has an error
    hint: what is meant to be so can be allowed by name: `--allow RULE`
    ");
    assert!(!world.path("app/tierce.lock").exists());
    assert!(!world.path("metadata.json").exists());
    world.fails(1, &["inspect", "store:app:1"]);
    // Nor in a registry, to which layers may have gone ahead.
    let name = registry.reference("team/app", "1");
    let pushed = world.fails(3, &["build", "app", "--push", "-t", &name, "-q"]);
    // Why it does not work is said all the same.
    assert!(
        pushed.contains("error[wrong-architecture] layer 3"),
        "{pushed}"
    );
    assert_eq!(manifests_put(&registry), 0);
    let layout = world.fails(3, &["build", "app", "-o=oci:out:1", "--json"]);
    assert!(layout.contains("error[wrong-architecture]"), "{layout}");
    // A dry run says the same.
    let dry = world.fails(3, &["build", "app", "--dry-run"]);
    assert!(dry.contains("error[wrong-architecture]"), "{dry}");
    // And when nothing is left to be made.
    let again = world.fails(3, &["build", "app"]);
    assert!(again.contains("error[wrong-architecture]"), "{again}");
}

#[test]
fn a_rule_that_is_allowed_is_counted_and_no_more() {
    let world = on_layout("");
    let output = world.ok(&["build", "app", "--allow=wrong-architecture"]);
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    building for linux/amd64; --platform names another
    judged for Lambda: 1 allowed
    wrote app/tierce.lock
    store:app:latest: blobs: 1 linked (332 B), 3 sent (1.5 KiB)
    ");
    let output = world.ok(&["build", "app", "--json", "--allow", "wrong-architecture"]);
    let counts = json!({"errors": 0, "warnings": 0, "notes": 0, "allowed": 1});
    assert_eq!(output.json()["images"][0]["lint"], counts);
    let dry = [
        "build",
        "app",
        "--json",
        "--dry-run",
        "--allow",
        "wrong-architecture",
    ];
    assert_eq!(world.ok(&dry).json()["images"][0]["lint"], counts);
    // As the file says it.
    let config = world.path("app/tierce.toml");
    let text = fs::read_to_string(&config).unwrap();
    let allowing = |rule: &str| {
        let more = format!("\n[lint]\nallow = [\"hardlink\", \"{rule}\"]\n");
        fs::write(&config, format!("{text}{more}")).unwrap();
    };
    allowing("wrong-architecture");
    world.runs(&["build", "app"]);
    allowing("wrong-architectur");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @r#"
    error: app/tierce.toml:10:22: there is no rule `wrong-architectur`
       |
    10 | allow = ["hardlink", "wrong-architectur"]
       |                      ^^^^^^^^^^^^^^^^^^^
    hint: did you mean `wrong-architecture`?
    "#);
    fs::write(&config, format!("{text}\n[lint]\nallows = []\n")).unwrap();
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: app/tierce.toml:10:1: unknown field `allows`, expected `allow`
       |
    10 | allows = []
       | ^^^^^^
    hint: did you mean `allow`?
    ");
    fs::write(&config, text).unwrap();
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--allow=wrong-arch"]), @"
    error: there is no rule `wrong-arch`
    hint: docs/lint.md lists all rules; a SARIF file has them too
    ");
    insta::assert_snapshot!(world.fails(2, &["push", "store:app", "--allow=entrypoint-notfound"]), @"
    error: there is no rule `entrypoint-notfound`
    hint: did you mean `entrypoint-not-found`?
    ");
}

#[test]
fn warnings_are_said_and_notes_counted() {
    let world = on_layout("");
    fs::remove_file(world.path("app/src/_fast.abi3.so")).unwrap();
    let output = world.ok(&["build", "app"]);
    assert!(!output.stderr().contains("judged"), "{output:?}");
    let library = program("arm64").build();
    world.sandbox.write("app/src/tools/helper", library);
    let output = world.ok(&["build", "app", "--user=1000", "--json"]);
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    building for linux/amd64; --platform names another
    warning[foreign-binary] layer 3: /var/task/tools/helper: it is for arm64, and the image for amd64
    judged for Lambda: 1 warning, 1 note; `tierce lint store:app:latest` says more
    store:app:latest: blobs: 2 already there (499 B), 1 linked (356 B), 1 sent (1.0 KiB)
    ");
    let counts = json!({"errors": 0, "warnings": 1, "notes": 1, "allowed": 0});
    assert_eq!(output.json()["images"][0]["lint"], counts);
}

#[test]
fn all_platforms_are_judged_before_anything_is_refused() {
    let world = World::new();
    let bases = ["amd64", "arm64"].map(|architecture| lambda_base(Format::Oci, architecture));
    TestIndex::of(Format::Oci, bases.to_vec()).write_layout(&world.path("base"), Some("1"));
    add_app(
        &world,
        "oci:../base:1",
        "platforms = [\"amd64\", \"arm64\"]",
    );
    let both = ElfBuilder::new("amd64").build();
    world.sandbox.write("app/src/_other.abi3.so", both);
    let refused = world.fails(3, &["build", "app", "--index", "-t", "app:1"]);
    for part in [
        "linux/amd64 sha256:",
        "/var/task/_fast.abi3.so: it is for arm64",
        "linux/arm64 sha256:",
        "/var/task/_other.abi3.so: it is for amd64",
        "judged for Lambda: 2 errors",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    world.fails(1, &["inspect", "store:app:1"]);
    world.fails(1, &["inspect", "store:app:1-amd64"]);
    // An index that was asked for is no defect.
    let allowed = [
        "build",
        "app",
        "--index",
        "-t",
        "app:1",
        "--allow=wrong-architecture",
    ];
    world.runs(&allowed);
}

#[test]
fn images_for_other_runtimes_are_not_judged() {
    let world = on_layout("target = \"generic\"");
    let output = world.ok(&["build", "app", "--json"]);
    assert!(output.json()["images"][0].get("lint").is_none());
    assert!(!output.stderr().contains("judged"), "{output:?}");
    let registry = FakeRegistry::start();
    world.runs(&["push", "store:app", &registry.reference("app", "1")]);
}

#[test]
fn a_push_is_judged_too() {
    let registry = FakeRegistry::start();
    let world = on_layout("");
    world.runs(&["build", "app", "--allow=wrong-architecture"]);
    let name = registry.reference("team/app", "1");
    let refused = world.fails(3, &["push", "store:app", &name]);
    insta::assert_snapshot!(refused, @"
    error[wrong-architecture] layer 3: /var/task/_fast.abi3.so: it is for arm64, and the image for amd64
      why: a program or module for another machine cannot be run or imported (`exec format error`)
      fix: install or build it for the architecture of the image
    judged for Lambda: 1 error
    error: `store:app:latest` has an error
    hint: what is meant to be so can be allowed by name: `--allow RULE`
    ");
    assert_eq!(registry.log().filter(|it| it.method != "GET").len(), 0);
    let output = world.ok(&[
        "push",
        "store:app",
        &name,
        "--allow=wrong-architecture",
        "--json",
    ]);
    assert_eq!(output.json()["images"][0]["lint"]["allowed"], 1);
    // What somebody else made is read for it, once.
    let other = FakeRegistry::start();
    registry.clear_log();
    let from = format!("docker://{name}");
    let refused = world.fails(3, &["push", &from, &other.reference("copy", "1")]);
    assert!(refused.contains("error[wrong-architecture]"), "{refused}");
    // `copy` brings bytes from here to there, whatever they are.
    world.runs(&[
        "copy",
        &from,
        &format!("docker://{}", other.reference("copy", "1")),
    ]);
    // Files that are beside an image are no image.
    world.sandbox.write("notes.txt", "x");
    let attach = ["attach", "--artifact-type=text/x", &name, "notes.txt"];
    let attached = digest_in(&world.ok(&attach));
    let artifact = format!("{}@{attached}", registry.reference("team/app", "1"));
    let artifact = artifact.replace(":1@", "@");
    world.runs(&[
        "push",
        &format!("docker://{artifact}"),
        &other.reference("notes", "1"),
    ]);
}

/// A registry that is AWS's by its name, with a base for Python whose layers nobody may read.
fn aws() -> (FakeRegistry, World, TestImage) {
    let registry = FakeRegistry::start();
    let base = lambda_base(Format::Docker, "amd64");
    base.put(&registry, "lambda/python", Some("3.12"));
    base.put(&registry, "lambda/provided", Some("al2023"));
    let world = World::new();
    let directory = world.sandbox.config().join("tierce");
    fs::create_dir_all(&directory).unwrap();
    let settled = format!("[\"public.ecr.aws\"]\nendpoint = \"{}\"\n", registry.url());
    fs::write(directory.join("registries.toml"), settled).unwrap();
    (registry, world, base)
}

fn layer_downloads(registry: &FakeRegistry, image: &TestImage) -> usize {
    let layers = image.layers.iter();
    layers
        .map(|layer| downloads(registry, &layer.digest()))
        .sum()
}

#[test]
fn a_base_of_aws_is_known_by_its_name() {
    let (registry, world, base) = aws();
    add_app(&world, PYTHON, "");
    let sandbox = &world.sandbox;
    sandbox.write(
        "app/src/new.abi3.so",
        program("amd64")
            .needs_symbol("libc.so.6", "GLIBC_2.38", "f")
            .build(),
    );
    sandbox.write(
        "app/src/ssl.abi3.so",
        program("amd64").needs("libssl.so.3").build(),
    );
    sandbox.write(
        "app/src/x-1.dist-info/WHEEL",
        "Tag: cp311-cp311-manylinux2014_x86_64\n",
    );
    sandbox.write(
        "app/src/musl.abi3.so",
        ElfBuilder::new("amd64")
            .needs("libc.musl-x86_64.so.1")
            .build(),
    );
    let platform = ["build", "app", "--platform=amd64"];
    let refused = world.fails(3, &platform);
    insta::assert_snapshot!(refused, @"
    error[wrong-architecture] layer 3: /var/task/_fast.abi3.so: it is for arm64, and the image for amd64
    error[wrong-architecture] layer 3: /var/task/musl.abi3.so: it is for musl, and the image has glibc, and the image for amd64
      why: a program or module for another machine cannot be run or imported (`exec format error`)
      fix: install or build it for the architecture of the image
    error[glibc-version] layer 3: /var/task/new.abi3.so: it needs glibc 2.38 (GLIBC_2.38 for `f` of libc.so.6), and Amazon Linux 2023 (python 3.12) offers 2.34
      why: the loader refuses what was built against a newer glibc (``version `GLIBC_…' not found``)
      fix: build it on the base's own system or an older one, link it statically, or take a base with a newer glibc (Amazon Linux 2023 has 2.34, Amazon Linux 2 has 2.26)
    warning[wheel-python] layer 3: /var/task/x-1.dist-info/WHEEL: x 1 was made for `cp311-cp311-manylinux2014_x86_64`, and the base has Python 3.12
    judged for Lambda: 3 errors, 1 warning; the base by what is known of AWS's python 3.12
    error: `store:app:latest` has 3 errors
    hint: what is meant to be so can be allowed by name: `--allow RULE`
    ");
    assert_eq!(layer_downloads(&registry, &base), 0);
    for file in ["_fast.abi3.so", "new.abi3.so", "musl.abi3.so"] {
        fs::remove_file(world.path("app/src").join(file)).unwrap();
    }
    let output = world.ok(&platform);
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    warning[wheel-python] layer 3: /var/task/x-1.dist-info/WHEEL: x 1 was made for `cp311-cp311-manylinux2014_x86_64`, and the base has Python 3.12
    judged for Lambda: 1 warning; the base by what is known of AWS's python 3.12; `tierce lint store:app:latest` says more
    wrote app/tierce.lock
    store:app:latest: blobs: 1 linked (438 B), 2 left where they are (499 B), 1 sent (1.1 KiB)
    ");
    // A push knows as much.
    let target = FakeRegistry::start();
    let output = world.ok(&["push", "store:app", &target.reference("app", "1")]);
    assert!(
        output
            .stderr()
            .contains("the base by what is known of AWS's python 3.12")
    );
    registry.clear_log();
    // Once its layers were read, as for that, the whole image is judged.
    let output = world.tierce(&["lint", "store:app"]).run();
    assert!(output.stdout().contains("missing-library"), "{output:?}");
    assert_eq!(layer_downloads(&registry, &base), base.layers.len());
    registry.clear_log();
    let refused = world.fails(3, &platform);
    assert!(
        refused.contains("error[missing-library] layer 3: /var/task/ssl.abi3.so"),
        "{refused}"
    );
    assert_eq!(layer_downloads(&registry, &base), 0);
}

#[test]
fn a_handler_that_is_not_there_and_a_bootstrap_are_missed_by_name_alone() {
    let (registry, world, base) = aws();
    world.app(
        PYTHON,
        "handler = \"other.handler\"\nplatforms = [\"amd64\"]",
    );
    let output = world.ok(&["build", "app"]);
    let missed = "warning[handler-not-found]: the handler is `other.handler`";
    assert!(output.stderr().contains(missed), "{output:?}");
    let config = "handler = \"app.handler\"\nplatforms = [\"amd64\"]";
    world.app("public.ecr.aws/lambda/provided:al2023", config);
    let refused = world.fails(3, &["build", "app"]);
    assert!(refused.contains("error[missing-bootstrap]"), "{refused}");
    world.sandbox.write("app/src/bootstrap", "#!/bin/sh\n");
    fs::set_permissions(
        world.path("app/src/bootstrap"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    world.runs(&["build", "app"]);
    assert_eq!(layer_downloads(&registry, &base), 0);
}

#[test]
fn another_base_is_read_once() {
    let registry = FakeRegistry::start();
    let base = lambda_base(Format::Docker, "amd64");
    base.put(&registry, "team/base", Some("1"));
    let world = world_with_defect(&registry.reference("team/base", "1"));
    let built = ["build", "app", "--allow=wrong-architecture"];
    let first = world.ok(&built);
    assert!(
        first.stderr().contains("reading the base's layers ("),
        "{first:?}"
    );
    assert_eq!(layer_downloads(&registry, &base), base.layers.len());
    registry.clear_log();
    let second = world.ok(&built);
    assert!(!second.stderr().contains("reading"), "{second:?}");
    assert_eq!(registry.log().len(), 0);
    // Without network, and with nothing known, it is judged without.
    let cache = world.sandbox.cache().join("tierce");
    fs::remove_dir_all(cache.join("facts-1")).unwrap();
    fs::remove_dir_all(cache.join("verdicts-1")).unwrap();
    let output = world.ok(&[&built[..], &["--offline"]].concat());
    assert!(
        output
            .stderr()
            .contains("judged for Lambda: 1 allowed; without the base, whose layers are not here"),
        "{output:?}"
    );
    assert_eq!(registry.log().len(), 0);
}

#[test]
fn what_is_here_can_be_judged_offline() {
    let registry = FakeRegistry::start();
    let base = lambda_base(Format::Docker, "amd64");
    base.put(&registry, "team/base", Some("1"));
    let mut world = world_with_defect(&registry.reference("team/base", "1"));
    world.call(registry.host(), "REGISTRY");
    world.call(base.layers[0].digest(), "LAYER");
    world.runs(&["build", "app", "--allow=wrong-architecture"]);
    registry.clear_log();
    let offline = ["lint", "store:app", "--offline", "--json"];
    let output = world.tierce(&offline).run().assert_code(3);
    assert_eq!(output.json()["errors"], 1);
    fs::remove_dir_all(world.sandbox.cache().join("tierce/facts-1")).unwrap();
    insta::assert_snapshot!(world.fails(1, &offline), @"
    error: could not judge `store:app:latest`
      caused by: could not read layer [LAYER]
      caused by: could not read blob [LAYER]
      caused by: the bytes are in `[REGISTRY]/team/base`, and --offline forbids to ask the registry
    hint: without --offline its layers are read once; what is learnt of them is kept
    ");
    let there = registry.reference("team/base", "1");
    insta::assert_snapshot!(world.fails(2, &["lint", &there, "--offline"]), @"
    error: --offline forbids to ask for `[REGISTRY]/team/base:1`
    hint: judge it without --offline, or bring it here before: `tierce pull`
    ");
    assert_eq!(registry.log().len(), 0);
}

#[test]
fn what_went_into_a_layer_may_have_been_lost() {
    let world = on_layout("");
    let built = ["build", "app", "--allow=wrong-architecture", "-o=oci:out:1"];
    let digest = digest_in(&world.ok(&built));
    let cache = world.sandbox.cache().join("tierce");
    let forget = || {
        fs::remove_dir_all(cache.join("facts-1")).unwrap();
        fs::remove_dir_all(cache.join("verdicts-1")).unwrap();
    };
    forget();
    fs::remove_dir_all(cache.join("layers-1/packs")).unwrap();
    fs::remove_dir_all(world.path("out")).unwrap();
    assert_eq!(digest_in(&world.ok(&built)), digest);
    forget();
    let refused = world.fails(3, &["build", "app"]);
    assert!(refused.contains("error[wrong-architecture]"), "{refused}");
}

#[test]
fn a_layer_of_another_image_is_judged_with_it() {
    let world = World::new();
    let layer = LayerBuilder::new().file("var/task/app.py", 0o644, b"");
    ImageBuilder::new(Format::Docker, "amd64")
        .layer(&layer)
        .config(|config| {
            config["config"] = json!({"Entrypoint": ["/usr/bin/awslambdaric"]});
        })
        .build()
        .write_layout(&world.path("image"), Some("1"));
    let registry = FakeRegistry::start();
    let refused = world.fails(3, &["push", "oci:image:1", &registry.reference("app", "1")]);
    for rule in ["missing-parent", "entrypoint-not-found"] {
        assert!(refused.contains(&format!("error[{rule}]")), "{refused}");
    }
}

/// An image that errors are found in.
fn defective() -> TestImage {
    let layer = LayerBuilder::new()
        .directory("var", 0o755)
        .directory("var/task", 0o755)
        .file("var/task/app.py", 0o644, b"");
    ImageBuilder::new(Format::Docker, "amd64")
        .layer(&layer)
        .config(|config| {
            config["config"] = json!({"Entrypoint": ["/usr/bin/awslambdaric"]});
        })
        .build()
}

/// A tag gives one image for a platform; a push brings them all.
#[test]
fn every_image_of_an_index_is_judged() {
    let world = World::new();
    let good = lambda_base(Format::Docker, "amd64");
    let registry = FakeRegistry::start();
    let name = registry.reference("app", "1");
    let push = |layout: &str| world.fails(3, &["push", &format!("oci:{layout}:1"), &name]);
    TestIndex::of(Format::Docker, vec![good.clone(), defective()])
        .write_layout(&world.path("same"), Some("1"));
    let refused = push("same");
    assert!(refused.contains("error[entrypoint-not-found]"), "{refused}");
    // Nor does a platform that nobody wrote down hide one.
    let mut index = TestIndex::of(Format::Docker, vec![good, defective()]);
    let mut document: Value = serde_json::from_slice(&index.index).unwrap();
    let child = document["manifests"][1].as_object_mut().unwrap();
    child.remove("platform");
    index.index = document.to_string().into();
    index.write_layout(&world.path("nameless"), Some("1"));
    let refused = push("nameless");
    assert!(refused.contains("error[entrypoint-not-found]"), "{refused}");
    // Nor does an archive, as `docker save` and others write it.
    defective().write_docker_archive(&world.path("saved.tar"), Some("app:1"));
    defective().write_oci_archive(&world.path("image.tar"), Some("1"));
    for source in ["docker-archive:saved.tar", "oci-archive:image.tar:1"] {
        let refused = world.fails(3, &["push", source, &name]);
        assert!(refused.contains("error[entrypoint-not-found]"), "{refused}");
    }
    assert_eq!(manifests_put(&registry), 0);
}

/// The label of an image goes on to whatever is built on it, also by others.
#[test]
fn a_layer_between_those_of_tierce_is_no_part_of_the_base() {
    let world = World::new();
    let module = |architecture: &str, name: &str| {
        LayerBuilder::new()
            .directory("var", 0o755)
            .directory("var/task", 0o755)
            .file(
                &format!("var/task/{name}.abi3.so"),
                0o644,
                &ElfBuilder::new(architecture).build(),
            )
    };
    let base = LayerBuilder::new()
        .directory("bin", 0o755)
        .file("bin/sh", 0o755, &ElfBuilder::new("amd64").build())
        .file("lambda-entrypoint.sh", 0o755, b"#!/bin/sh\n");
    let history: Vec<Value> = ["ADD", "tierce build", "RUN make", "tierce build"]
        .iter()
        .map(|text| json!({"created": "2024-01-01T00:00:00Z", "created_by": text}))
        .collect();
    ImageBuilder::new(Format::Docker, "amd64")
        .layer(&base)
        .layer(&module("amd64", "first"))
        .layer(&module("arm64", "between"))
        .layer(&module("amd64", "last"))
        .without_history()
        .config(|config| {
            config["history"] = history.into();
            config["config"] = json!({
                "Entrypoint": ["/lambda-entrypoint.sh"],
                "Labels": {"org.opencontainers.image.base.name": PYTHON},
            });
        })
        .build()
        .write_layout(&world.path("image"), Some("1"));
    let registry = FakeRegistry::start();
    let refused = world.fails(3, &["push", "oci:image:1", &registry.reference("app", "1")]);
    assert!(
        refused.contains("error[wrong-architecture] layer 3: /var/task/between.abi3.so"),
        "{refused}"
    );
}

fn verdicts(world: &World) -> Vec<PathBuf> {
    let directory = world.sandbox.cache().join("tierce/verdicts-1/sha256");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Changes what a record says, and makes it whole again.
fn rewrite(path: &Path, change: impl Fn(&str) -> String) {
    let text = fs::read_to_string(path).unwrap();
    let (_, json) = text.split_once('\n').unwrap();
    let changed = change(json);
    assert_ne!(changed, json);
    fs::write(path, sealed(path, &changed)).unwrap();
}

#[test]
fn what_was_found_is_found_again_without_a_look() {
    let world = on_layout("");
    let build = ["build", "app"];
    let first = world.fails(3, &build);
    let [verdict] = &verdicts(&world)[..] else {
        panic!("{:?}", verdicts(&world));
    };
    let written = fs::read_to_string(verdict).unwrap();
    // Neither facts nor rules are asked: another text in the record is what is shown.
    fs::remove_dir_all(world.sandbox.cache().join("tierce/facts-1")).unwrap();
    assert_eq!(world.fails(3, &build), first);
    rewrite(verdict, |json| {
        json.replace("it is for arm64", "it is for s390x")
    });
    assert_eq!(world.fails(3, &build), first.replace("arm64", "s390x"));
    // But not by a build that remembers nothing, which keeps nothing either.
    let forgetful = ["build", "app", "--no-cache"];
    let fresh = world.fails(3, &forgetful);
    assert!(fresh.contains("it is for arm64"), "{fresh}");
    fs::remove_file(verdict).unwrap();
    world.fails(3, &forgetful);
    assert_eq!(verdicts(&world), Vec::<PathBuf>::new());
    // What is allowed is settled each time, in text and in JSON.
    assert_eq!(world.fails(3, &build), first);
    assert_eq!(fs::read_to_string(verdict).unwrap(), written);
    let allowed = ["build", "app", "--json", "--allow=wrong-architecture"];
    let counts = json!({"errors": 0, "warnings": 0, "notes": 0, "allowed": 1});
    for _ in 0..2 {
        let output = world.ok(&allowed);
        assert_eq!(output.json()["images"][0]["lint"], counts);
    }
    let other = ["build", "app", "--allow=hardlink"];
    assert_eq!(world.fails(3, &other), first);
    // A push of the same image has the same.
    let registry = FakeRegistry::start();
    let to = registry.reference("team/app", "1");
    rewrite(verdict, |json| {
        json.replace("it is for arm64", "it is for s390x")
    });
    let pushed = world.fails(3, &["push", "store:app", &to]);
    assert!(pushed.contains("it is for s390x"), "{pushed}");
    // A lint looks itself.
    let linted = world.tierce(&["lint", "store:app"]).run().assert_code(3);
    assert!(linted.stdout().contains("it is for arm64"), "{linted:?}");
    assert_eq!(verdicts(&world).len(), 1);
}

#[test]
fn a_verdict_that_is_not_whole_hides_nothing() {
    let world = on_layout("");
    // It writes anew what it cannot use.
    let refused = || {
        let refused = world.tierce(&["build", "app"]).run().assert_code(3);
        refused.stderr()
    };
    let first = refused();
    assert!(first.contains("error[wrong-architecture]"), "{first}");
    let verdict = verdicts(&world).remove(0);
    let written = fs::read(&verdict).unwrap();
    let (_, json) = std::str::from_utf8(&written)
        .unwrap()
        .split_once('\n')
        .unwrap();
    let mut nothing: Value = serde_json::from_str(json).unwrap();
    nothing["findings"] = json!({"list": [], "counts": {}});
    let whole = |json: &str| sealed(&verdict, json);
    let (seal, _) = std::str::from_utf8(&written)
        .unwrap()
        .split_once('\n')
        .unwrap();
    let mut of_another = nothing.clone();
    of_another["key"]["image"] = json!(Digest::of(b"another").to_string());
    let mut miscounted: Value = serde_json::from_str(json).unwrap();
    miscounted["findings"]["list"] = json!([]);
    for damaged in [
        String::new(),
        nothing.to_string(),
        // The seal of what was there before.
        format!("{seal}\n{nothing}"),
        // The name of another.
        sealed(Path::new("other.json"), &nothing.to_string()),
        whole(&of_another.to_string()),
        whole(&miscounted.to_string()),
        whole(&json.replace("wrong-architecture", "no-such-rule")),
        whole("[]"),
    ] {
        fs::write(&verdict, &damaged).unwrap();
        assert_eq!(refused(), first, "{damaged}");
        assert_eq!(fs::read(&verdict).unwrap(), written, "{damaged}");
    }
    fs::write(&verdict, nothing.to_string()).unwrap();
    let verified = world.ok(&["cache", "verify", "--json"]).json();
    assert_eq!(verified["removed"], json!([verdict]));
    assert_eq!(refused(), first);
    let files = || world.ok(&["cache", "info", "--json"]).json()["facts"]["files"].clone();
    assert_ne!(files(), 0);
    world.runs(&["cache", "prune", "--to=0"]);
    assert_eq!((files(), verdicts(&world)), (json!(0), Vec::new()));
}

#[test]
fn a_verdict_without_the_base_is_none_with_it() {
    let (registry, world, base) = aws();
    add_app(&world, PYTHON, "");
    let build = ["build", "app", "--allow=wrong-architecture"];
    let shown = || world.ok(&build).stderr();
    shown();
    let without = shown();
    assert!(without.contains("the base by what is known"), "{without}");
    assert_eq!(verdicts(&world).len(), 1);
    assert_eq!(layer_downloads(&registry, &base), 0);
    // Once the base is read, all of the image is judged, and that stays so.
    drop(world.tierce(&["lint", "store:app"]).run());
    let with = shown();
    assert!(!with.contains("the base by what is known"), "{with}");
    assert_eq!(verdicts(&world).len(), 2);
    fs::remove_dir_all(world.sandbox.cache().join("tierce/facts-1")).unwrap();
    assert_eq!(shown(), with);
    // Without the whole verdict and the facts it is the other one again.
    for verdict in verdicts(&world) {
        if fs::read_to_string(&verdict)
            .unwrap()
            .contains("\"unknown\":null")
        {
            fs::remove_file(&verdict).unwrap();
        }
    }
    assert_eq!(verdicts(&world).len(), 1);
    assert_eq!(shown(), without);
}
