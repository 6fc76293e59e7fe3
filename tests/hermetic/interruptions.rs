//! Full disks, closed pipes and signals.

use std::fs;
use std::process::Child;

use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, TestImage};
use tierce_testkit::{FakeRegistry, Fault, Gate, Method};

use crate::support::{World, ended, noise};

/// A world whose function does not fit into files of 64 KiB.
fn large_world() -> World {
    let world = World::with_app("scratch");
    world.sandbox.write("app/src/noise", noise(5, 3_000_000));
    world
}

fn heavy() -> TestImage {
    ImageBuilder::new(Format::Oci, "amd64")
        .layer(&LayerBuilder::new().file("noise", 0o644, &noise(6, 3_000_000)))
        .build()
}

/// A limit on the size of files stands for a full disk: both come as an error of `write`.
const SMALL_FILES: &str = "ulimit -f 64; exec \"$0\" \"$@\"";

#[test]
fn no_room_for_a_layer_is_an_error() {
    let world = large_world();
    let arguments = ["build", "app", "--platform=amd64"];
    let command = world.shell(SMALL_FILES).args(arguments);
    let stderr = world.fails_as(1, command);
    // The names of a run's own directories are random.
    insta::with_settings!({filters => vec![(r"/run-\w+", "/run-[…]")]}, {
        insta::assert_snapshot!(stderr, @"
        error: could not make the layer `code`
          caused by: could not write the layer to `[SANDBOX]/cache/tierce/scratch/run-[…]`
          caused by: File too large (os error 27)
        hint: the limit on the size of files (`ulimit -f`) is too low
        ");
    });
}

#[test]
fn no_room_at_the_target_is_an_error() {
    let mut world = World::new();
    let image = heavy();
    image.write_layout(&world.path("from"), Some("1"));
    world.call(image.layers[0].digest(), "LAYER");
    let copy = |place: &str| {
        let command = world
            .shell(SMALL_FILES)
            .args(["copy", "--jobs=1", "oci:from:1", place]);
        world.fails_as(1, command)
    };
    insta::assert_snapshot!(copy("oci:to:1"), @"
    error: could not write `oci:to:1`
      caused by: could not write blob [LAYER] (3001094 bytes)
      caused by: could not write `to/blobs/sha256/f3060d3bcdda560529218215cafe1090b4a46b2ab920660ebeb82738780fea0c`
      caused by: File too large (os error 27)
    hint: the limit on the size of files (`ulimit -f`) is too low
    ");
    insta::assert_snapshot!(copy("oci-archive:to.tar:1"), @"
    error: could not write `oci-archive:to.tar:1`
      caused by: could not write blob [LAYER] (3001094 bytes)
      caused by: could not write `to.tar`
      caused by: File too large (os error 27)
    hint: the limit on the size of files (`ulimit -f`) is too low
    ");
    insta::assert_snapshot!(copy("docker-archive:to.tar:a:1"), @"
    error: could not write `docker-archive:to.tar:a:1`
      caused by: could not write blob [LAYER] (3001094 bytes)
      caused by: could not write `to.tar`
      caused by: File too large (os error 27)
    hint: the limit on the size of files (`ulimit -f`) is too low
    ");
    insta::assert_snapshot!(copy("store:to:1"), @"
    error: could not write `store:to:1`
      caused by: could not write blob [LAYER] (3001094 bytes)
      caused by: could not write `[SANDBOX]/data/tierce/store/blobs/sha256/f3060d3bcdda560529218215cafe1090b4a46b2ab920660ebeb82738780fea0c`
      caused by: File too large (os error 27)
    hint: the limit on the size of files (`ulimit -f`) is too low
    ");
    assert!(!world.path("to.tar").exists());
    let listed = world.fails(1, &["inspect", "store:to:1"]);
    assert!(listed.contains("to"), "{listed}");
}

#[test]
fn an_archive_that_was_there_survives_a_failure() {
    let world = World::new();
    heavy().write_layout(&world.path("from"), Some("1"));
    world.sandbox.write("to.tar", "the old one");
    let command =
        world
            .shell(SMALL_FILES)
            .args(["copy", "oci:from:1", "docker-archive:to.tar:a:1"]);
    // That the old file is as it was is looked at for every failure.
    let stderr = world.fails_as(1, command);
    assert!(stderr.contains("to.tar"), "{stderr}");
    assert_eq!(fs::read(world.path("to.tar")).unwrap(), b"the old one");
}

#[test]
fn a_result_that_cannot_be_printed_is_a_failure() {
    let world = World::with_app("scratch");
    let full =
        world
            .shell("exec \"$0\" \"$@\" > /dev/full")
            .args(["build", "app", "--platform=amd64"]);
    let output = full.run().assert_code(1);
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    store:app:latest: blobs: 1 linked (209 B), 1 sent (332 B)
    error: No space left on device (os error 28)
    hint: free some space; TIERCE_CACHE and TIERCE_STORE move the files to another disk
    ");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let world = World::with_app("scratch");
    world.runs(&["build", "app", "-o=oci:out:1"]);
    for arguments in [
        &["inspect", "oci:out:1"][..],
        &["inspect", "--json", "oci:out:1"],
        &["copy", "oci:out:1", "store:x:1"],
        &["build", "app"],
        &["--help"],
    ] {
        // The reader is gone before the program starts.
        let script = "{ \"$0\" \"$@\"; echo $? > code; } | true";
        let pipe = "mkfifo pipe; exec 3<>pipe; exec 4>pipe; exec 3<&-; rm pipe; \"$0\" \"$@\" >&4; echo $? > code";
        for script in [script, pipe] {
            let output = world.shell(script).args(arguments).run();
            let code = fs::read_to_string(world.path("code")).unwrap();
            assert_eq!(code.trim(), "0", "{arguments:?}: {output:?}");
            assert_eq!(output.stderr().matches("error").count(), 0, "{output:?}");
        }
    }
}

#[test]
fn an_interrupted_push_leaves_no_tag_and_no_litter() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let world = large_world();
        let registry = FakeRegistry::start();
        let gate = Gate::new();
        registry.inject(Fault::hold(&gate).on(Method::PUT, "/blobs/uploads/"));
        let name = format!("{}/app:1", registry.host());
        let arguments = ["build", "app", "--platform=amd64", "-t", &name, "--push"];
        let before = world.files();
        let child = world.tierce(&arguments).spawn();
        gate.wait_for(1);
        let (ended, stdout, _) = world.interrupt(child, signal);
        gate.open();
        assert_eq!(ended, Some(code), "{signal}");
        assert_eq!(stdout, "");
        world.assert_nothing_half_written(&before);
        assert!(registry.tags("app").is_empty());
        // And the next run goes on as if nothing had been.
        world.runs(&arguments);
        assert_eq!(registry.tags("app"), ["1"]);
    }
}

#[test]
fn an_interrupted_copy_leaves_no_file() {
    let registry = FakeRegistry::start();
    let image = heavy();
    image.put(&registry, "from", Some("1"));
    let from = format!("{}/from:1", registry.host());
    for place in [
        "oci:to:1",
        "oci-archive:to.tar:1",
        "docker-archive:to.tar:a:1",
    ] {
        let world = World::new();
        let gate = Gate::new();
        registry.inject(Fault::hold(&gate).on(Method::GET, &image.layers[0].digest().hex()));
        let before = world.files();
        let child = world.tierce(&["copy", &from, place]).spawn();
        gate.wait_for(1);
        let (code, stdout, stderr) = world.interrupt(child, "-INT");
        gate.open();
        assert_eq!(code, Some(130), "{place}: {stderr}");
        assert_eq!(stdout, "");
        world.assert_nothing_half_written(&before);
        assert!(!world.path("to.tar").exists());
        registry.clear_faults();
        world.runs(&["copy", &from, place]);
        world.runs(&["inspect", place]);
    }
}

#[test]
fn what_a_killed_run_left_is_cleared_by_the_next() {
    let registry = FakeRegistry::start();
    let image = heavy();
    image.put(&registry, "from", Some("1"));
    let from = format!("{}/from:1", registry.host());
    for place in ["oci:to:1", "docker-archive:to.tar:a:1"] {
        let world = World::new();
        let gate = Gate::new();
        registry.inject(Fault::hold(&gate).on(Method::GET, &image.layers[0].digest().hex()));
        let child = world.tierce(&["copy", &from, place]).spawn();
        gate.wait_for(1);
        let (code, _, _) = world.interrupt(child, "-KILL");
        gate.open();
        assert_eq!(code, None);
        assert!(!world.path("to.tar").exists());
        registry.clear_faults();
        world.runs(&["copy", &from, place]);
        world.assert_no_litter();
        world.runs(&["inspect", place]);
    }
}

/// The base's layer is read between the listing of files and their packing: a good moment.
#[test]
fn a_file_that_vanishes_is_an_error() {
    for (change, number) in [("vanishes", 0), ("grows", 1), ("shrinks", 2)] {
        let registry = FakeRegistry::start();
        let image = heavy();
        image.put(&registry, "base", Some("1"));
        let world = World::new();
        world.sandbox.write("app/file", "twelve bytes");
        let gate = Gate::new();
        registry.inject(Fault::hold(&gate).on(Method::GET, &image.layers[0].digest().hex()));
        let base = format!("--base={}/base:1", registry.host());
        let before = world.files();
        let child = world
            .tierce(&["build", "app", &base, "--add=file:/etc/file"])
            .spawn();
        gate.wait_for(1);
        let path = world.path("app/file");
        match change {
            "vanishes" => fs::remove_file(&path).unwrap(),
            "grows" => fs::write(&path, "rather more than twelve bytes").unwrap(),
            _ => fs::write(&path, "less").unwrap(),
        }
        gate.open();
        let (code, stdout, stderr) = ended(child);
        assert_eq!(code, Some(1), "{stderr}");
        assert_eq!(stdout, "");
        let stderr = world.shown(&stderr);
        match number {
            0 => insta::assert_snapshot!(stderr, @"
            building for linux/amd64; --platform names another
            error: could not make the layer `added`
              caused by: could not write `etc/file` into the layer
              caused by: could not open `[SANDBOX]/work/app/file`
              caused by: No such file or directory (os error 2)
            "),
            1 => insta::assert_snapshot!(stderr, @"
            building for linux/amd64; --platform names another
            error: could not make the layer `added`
              caused by: could not write `etc/file` into the layer
              caused by: `[SANDBOX]/work/app/file` changed while it was read
            "),
            _ => insta::assert_snapshot!(stderr, @"
            building for linux/amd64; --platform names another
            error: could not make the layer `added`
              caused by: could not write `etc/file` into the layer
              caused by: `[SANDBOX]/work/app/file` changed while it was read
            "),
        }
        fs::write(&path, "twelve bytes").unwrap();
        world.assert_nothing_half_written(&before);
    }
}

#[test]
fn two_builds_at_once_do_not_meet() {
    let world = large_world();
    let children: Vec<Child> = (0..4)
        .map(|number| {
            let tag = format!("app:{}", number % 2);
            world
                .tierce(&["build", "app", "--platform=amd64", "-t", &tag])
                .spawn()
        })
        .collect();
    let mut lines: Vec<String> = children
        .into_iter()
        .map(|child| {
            let (code, stdout, stderr) = ended(child);
            assert_eq!(code, Some(0), "{stderr}");
            stdout
        })
        .collect();
    lines.dedup();
    assert_eq!(lines.len(), 1);
    world.assert_no_litter();
    world.runs(&["inspect", "store:app:0"]);
    world.runs(&["inspect", "store:app:1"]);
}
