//! Where added files end up, as COPY would have it.

use std::fs;
use std::os::unix::fs::symlink;

use tierce_testkit::images::{Format, lambda_base};

use crate::support::World;

/// The paths of what was added, base aside.
fn added(world: &World, arguments: &[&str]) -> Vec<String> {
    let image = world.built(&[&["build"], arguments].concat());
    let last = image.tars.last().unwrap();
    tierce_testkit::tree::read_tar(last)
        .unwrap()
        .into_iter()
        .filter(|entry| !entry.raw_path.ends_with('/'))
        .map(|entry| entry.path)
        .collect()
}

fn on_lambda() -> World {
    let world = World::new();
    lambda_base(Format::Oci, "amd64").write_layout(&world.path("base"), Some("1"));
    world.sandbox.write("ctx/app.py", "pass");
    world.sandbox.write("ctx/dir/inner.py", "pass");
    world
}

#[test]
fn a_file_goes_into_a_directory_and_a_relative_destination_below_workdir() {
    let world = on_lambda();
    for (add, expected) in [
        ("app.py:/var/task", "var/task/app.py"),
        ("app.py:/var/task/", "var/task/app.py"),
        ("app.py:/var/task/other.py", "var/task/other.py"),
        ("app.py:.", "var/task/app.py"),
        ("app.py:./", "var/task/app.py"),
        ("app.py:lib/", "var/task/lib/app.py"),
        ("app.py:renamed", "var/task/renamed"),
        ("dir:pkg", "var/task/pkg/inner.py"),
        ("app.py:/", "app.py"),
    ] {
        let base = "--base=oci:base:1";
        let paths = added(&world, &["ctx", base, "--add", add]);
        assert_eq!(paths, [expected], "{add}");
    }
    let moved = added(
        &world,
        &[
            "ctx",
            "--base=oci:base:1",
            "--workdir=/srv/x",
            "--add=app.py:y",
        ],
    );
    assert_eq!(moved, ["srv/x/y"]);
}

#[test]
fn on_scratch_a_file_is_what_it_is_called() {
    let world = on_lambda();
    for name in ["app", "opt", "bin"] {
        let add = format!("--add=app.py:/{name}");
        assert_eq!(added(&world, &["ctx", "--base=scratch", &add]), [name]);
    }
    let twice = [
        "ctx",
        "--base=scratch",
        "--add=dir:/app",
        "--add=app.py:/app",
    ];
    assert_eq!(added(&world, &twice), ["app/app.py", "app/inner.py"]);
}

#[test]
fn a_symlinked_source_keeps_its_name() {
    let world = on_lambda();
    symlink("app.py", world.path("ctx/current.py")).unwrap();
    symlink("dir", world.path("ctx/linked")).unwrap();
    let add = |add| added(&world, &["ctx", "--base=scratch", "--add", add]);
    assert_eq!(add("current.py:/x/"), ["x/current.py"]);
    assert_eq!(add("linked:/x"), ["x/inner.py"]);
}

#[test]
fn what_the_image_runs_does_not_become_a_folder() {
    let world = on_lambda();
    let arguments = [
        "build",
        "ctx",
        "--base=oci:base:1",
        "--add=dir:/lambda-entrypoint.sh",
    ];
    insta::assert_snapshot!(world.fails(1, &arguments), @"
    building for linux/amd64; --platform names another
    error: could not make the layer `added`
      caused by: a folder would take the place of `/lambda-entrypoint.sh`, which the image runs
    ");
    let own = [
        "ctx",
        "--base=oci:base:1",
        "--add=app.py:/lambda-entrypoint.sh",
    ];
    assert_eq!(added(&world, &own), ["lambda-entrypoint.sh"]);
}

/// A build that swallows its own last result grows with every run and never has the same digest.
#[test]
fn what_a_build_writes_it_does_not_read() {
    let world = on_lambda();
    let build = |place: &str| {
        let arguments = [
            "build",
            "ctx",
            "--base=oci:base:1",
            "--handler=app.handler",
            "--metadata-file=ctx/meta.json",
            "-o",
            place,
        ];
        let stdout = world.ok(&arguments).stdout();
        stdout.trim_end().rsplit_once('@').unwrap().1.to_owned()
    };
    let first = build("docker-archive:ctx/a[1].tar");
    assert_eq!(build("docker-archive:ctx/a[1].tar"), first);
    fs::remove_file(world.path("ctx/a[1].tar")).unwrap();
    assert_eq!(build("oci:ctx/out:1"), first);
    assert_eq!(build("oci:ctx/out:1"), first);
}
