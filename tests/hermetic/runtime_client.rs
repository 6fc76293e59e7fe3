//! The Runtime Interface Client on a base that is not AWS's, by a stand-in for uv.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use tierce_testkit::check::LoadedImage;
use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder};

use crate::support::World;

/// A world with a base that has Python, as Debian has it.
fn world() -> World {
    let world = World::new();
    let base = LayerBuilder::new()
        .directory("usr", 0o755)
        .directory("usr/bin", 0o755)
        .file(
            "usr/bin/python3.11",
            0o755,
            &ElfBuilder::new("amd64").build(),
        )
        .symlink("usr/bin/python3", "python3.11")
        .symlink("bin", "usr/bin");
    let image = ImageBuilder::new(Format::Docker, "amd64")
        .layer(&base)
        .build();
    image.write_layout(&world.path("base"), Some("1"));
    let uv = "#!/bin/sh\nPATH=/usr/bin:/bin\ncase \"$1\" in --version) echo 'uv 1.0'; exit;; esac\n\
        for word; do case \"$word\" in --target=*) target=${word#--target=};; \
        --requirement=*) cat \"${word#*=}\" >> \"$HOME/asked\";; esac; done\n\
        printf '%s\\n' \"$@\" >> \"$HOME/asked\"\n\
        mkdir -p \"$target/awslambdaric\" \"$target/awslambdaric-4.2.2.dist-info\" \"$target/snapshot_restore_py-1.0.0.dist-info\"\n\
        : > \"$target/awslambdaric/__init__.py\"\n";
    let path = world.sandbox.root().join("bin/uv");
    fs::write(&path, uv).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    world.app(
        "oci:../base:1",
        "handler = \"app.handler\"\nruntime-client = true",
    );
    world
}

fn build(world: &World, more: &[&str]) -> (LoadedImage, String) {
    let arguments = [&["build", "app", "-o=oci:it:it"], more].concat();
    let command = world
        .tierce(&arguments)
        .env("PATH", world.sandbox.root().join("bin"));
    let output = command.run().assert_success();
    let image = LoadedImage::from_layout(&world.path("it"), Some("it")).unwrap();
    (image, output.stderr())
}

#[test]
fn the_client_is_a_layer_of_its_own_and_starts() {
    let world = world();
    let (image, said) = build(&world, &[]);
    let config = &image.config["config"];
    assert_eq!(
        config["Entrypoint"],
        serde_json::json!(["/usr/bin/python3.11", "-m", "awslambdaric"])
    );
    assert_eq!(config["Cmd"], serde_json::json!(["app.handler"]));
    assert_eq!(config["WorkingDir"], "/var/task");
    let env = config["Env"].to_string();
    assert!(env.contains("PYTHONPATH=/opt/runtime-client"), "{env}");
    let paths: Vec<String> = image
        .entries(1)
        .unwrap()
        .iter()
        .map(|it| it.path.clone())
        .collect();
    assert!(
        paths.contains(&"opt/runtime-client/awslambdaric/__init__.py".to_owned()),
        "{paths:?}"
    );
    let line = said
        .lines()
        .find(|line| line.contains("the runtime client is"));
    insta::assert_snapshot!(line.unwrap(), @r#"the runtime client is awslambdaric==4.2.2, snapshot-restore-py==1.0.0; to hold it to that: `runtime-client = ["awslambdaric==4.2.2", "snapshot-restore-py==1.0.0"]`"#);
    let asked = fs::read_to_string(world.sandbox.home().join("asked")).unwrap();
    assert!(asked.starts_with("awslambdaric\n"), "{asked}");
    assert!(asked.contains("--python-version=3.11\n"), "{asked}");
    assert!(
        asked.contains("--python-platform=x86_64-manylinux_2_17\n"),
        "{asked}"
    );
    // Once it is known no tool runs.
    let (again, _) = build(&world, &[]);
    assert_eq!(again.manifest_bytes, image.manifest_bytes);
    let now = fs::read_to_string(world.sandbox.home().join("asked")).unwrap();
    assert_eq!(now, asked);
    // Held to versions it says nothing; and what is set counts.
    let pinned = "handler = \"app.handler\"\n\
        runtime-client = [\"awslambdaric==4.2.2\", \"snapshot-restore-py==1.0.0\"]";
    world.app("oci:../base:1", pinned);
    let (own, said) = build(
        &world,
        &[
            "--allow=entrypoint-not-found",
            "--entrypoint=/own",
            "--workdir=/app",
            "--env=PYTHONPATH=/x",
        ],
    );
    assert!(!said.contains("the runtime client is"), "{said}");
    let config = &own.config["config"];
    assert_eq!(config["Entrypoint"], serde_json::json!(["/own"]));
    assert_eq!(config["WorkingDir"], "/app");
    let env = config["Env"].to_string();
    assert!(env.contains("PYTHONPATH=/x:/opt/runtime-client"), "{env}");
}

#[test]
fn without_need_or_python_it_is_refused() {
    let world = world();
    world.app("public.ecr.aws/lambda/python:3.12", "runtime-client = true");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--offline"]), @"
    error: app/tierce.toml:3:18: the base has a Runtime Interface Client of its own
      |
    3 | runtime-client = true
      |                  ^^^^
    hint: AWS's bases have the client: leave `runtime-client` out
    ");
    world.app("scratch", "runtime-client = true");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: app/tierce.toml:3:18: `scratch` has no Python to run the client
      |
    3 | runtime-client = true
      |                  ^^^^
    ");
    let nothing = LayerBuilder::new().directory("usr", 0o755);
    let empty = ImageBuilder::new(Format::Docker, "amd64")
        .layer(&nothing)
        .build();
    empty.write_layout(&world.path("base"), Some("2"));
    world.app("oci:../base:2", "runtime-client = true");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    building for linux/amd64; --platform names another
    error: no Python was found in the base, for which the runtime client could be added
    hint: the client of other languages comes with the function: `tierce lint` says how; a base with Python has it on PATH, or in /usr/local/bin or /usr/bin
    ");
    world.app("oci:../base:1", "runtime-client = \"bottle==1\"");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @r#"
    error: app/tierce.toml:3:18: the client of Python is called `awslambdaric`
      |
    3 | runtime-client = "bottle==1"
      |                  ^^^^^^^^^^^
    "#);
}
