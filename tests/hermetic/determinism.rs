//! Same inputs, same bytes: whatever the machine, the folder, the clock and the threads.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use tierce_testkit::check::LoadedImage;
use tierce_testkit::images::{Format, lambda_base};
use tierce_testkit::sandbox::Command;

use crate::support::{World, copy_directory, digest_in, fixtures, layer_digests, listing, noise};

/// Files of many sizes, enough for several segments; written in the order of `names`.
fn write_tree(world: &World, folder: &str, reversed: bool) {
    let mut files: Vec<(String, Vec<u8>)> = (0_u64..60)
        .map(|number| {
            let length = usize::try_from(number * number * 97 % 70_001).unwrap();
            (format!("d{}/f{number}", number % 7), noise(number, length))
        })
        .collect();
    files.push(("big".to_owned(), noise(99, 2_500_000)));
    files.push(("empty".to_owned(), Vec::new()));
    files.push(("żółć/naïve name".to_owned(), b"text ".repeat(9000)));
    if reversed {
        files.reverse();
    }
    for (name, content) in files {
        world.sandbox.write(format!("{folder}/{name}"), content);
    }
    world.sandbox.write(format!("{folder}/run"), "#!/bin/sh\n");
    let run = world.path(format!("{folder}/run"));
    fs::set_permissions(run, fs::Permissions::from_mode(0o755)).unwrap();
}

fn build<'a>(folder: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = [
        "build",
        folder,
        "--base=scratch",
        "--platform=arm64",
        "--add=.:/var/task",
        "-t=same:1",
    ];
    [&fixed[..], more].concat()
}

fn digest(command: Command) -> String {
    digest_in(&command.run().assert_success())
}

fn set_mtimes(directory: &Path, seconds: u64) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() {
            set_mtimes(&entry.path(), seconds);
        }
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        let file = File::open(entry.path()).unwrap();
        file.set_times(FileTimes::new().set_modified(time).set_accessed(time))
            .unwrap();
    }
}

#[test]
fn nothing_but_names_contents_and_execute_bits_counts() {
    let world = World::new();
    write_tree(&world, "one", false);
    let first = digest(world.tierce(&build("one", &[])));

    // The same again, with what was stored before and without.
    assert_eq!(digest(world.tierce(&build("one", &[]))), first);
    let elsewhere = World::new();
    // Another folder, made in another order.
    write_tree(&elsewhere, "deep/er/two", true);
    assert_eq!(digest(elsewhere.tierce(&build("deep/er/two", &[]))), first);
    // From inside the folder, and by its full path.
    let inside = elsewhere.tierce(&build(".", &[]));
    let folder = elsewhere.path("deep/er/two");
    assert_eq!(digest(inside.current_dir(&folder)), first);
    let absolute = folder.to_string_lossy().into_owned();
    assert_eq!(digest(elsewhere.tierce(&build(&absolute, &[]))), first);
    // Other times.
    for seconds in [0, 1, 1_000_000_000, 4_000_000_000] {
        set_mtimes(&world.path("one"), seconds);
        assert_eq!(digest(world.tierce(&build("one", &[]))), first, "{seconds}");
    }
    // Other modes, as long as the owner may execute the same.
    for (file, mode) in [("run", 0o700), ("empty", 0o600), ("big", 0o666)] {
        let path = world.path(format!("one/{file}"));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(world.path("one/d1"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(digest(world.tierce(&build("one", &[]))), first);
    // Other threads.
    for jobs in ["1", "2", "3", "5", "16"] {
        let arguments = build("one", &["--jobs", jobs]);
        assert_eq!(digest(world.tierce(&arguments)), first, "{jobs}");
    }
    // Other umasks.
    for mask in ["000", "022", "077"] {
        let script = format!("umask {mask}; exec \"$0\" \"$@\"");
        let command = world.shell(&script).args(build("one", &["-o=store:m:1"]));
        assert_eq!(digest(command), first, "umask {mask}");
    }
    // Other surroundings.
    for (name, value) in [
        ("TZ", "Pacific/Kiritimati"),
        ("LANG", "tr_TR.UTF-8"),
        ("LC_ALL", "C.UTF-8"),
        ("USER", "somebody"),
        ("TERM", "dumb"),
        ("RUST_LOG", "trace"),
    ] {
        let command = world.tierce(&build("one", &[])).env(name, value);
        assert_eq!(digest(command), first, "{name}={value}");
    }

    // What does count: a name, a byte, the owner's execute bit.
    fs::set_permissions(world.path("one/run"), fs::Permissions::from_mode(0o644)).unwrap();
    let without_execute = digest(world.tierce(&build("one", &[])));
    assert_ne!(without_execute, first);
    world.sandbox.write("one/empty", "x");
    assert_ne!(digest(world.tierce(&build("one", &[]))), without_execute);
}

#[test]
fn a_different_umask_on_checkout_changes_nothing() {
    let world = World::with_app("scratch");
    let first = digest_in(&world.ok(&["build", "app"]));
    for mask in ["000", "077"] {
        let script =
            format!("umask {mask} && cp -R app copy{mask} && cd copy{mask} && exec \"$0\" build");
        let output = world
            .shell(&script)
            .args(["-t=app:1"])
            .run()
            .assert_success();
        assert_eq!(digest_in(&output), first, "{mask}");
    }
}

#[test]
fn source_date_epoch_moves_only_created() {
    let world = World::new();
    world.app("oci:../base:1", "");
    lambda_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    let plain = world.built(&["build", "app"]);
    let dated = world.built_as(
        world
            .tierce(&["build", "app"])
            .env("SOURCE_DATE_EPOCH", "1700000000"),
    );
    assert_eq!(plain.manifest["layers"], dated.manifest["layers"]);
    assert_eq!(plain.config["created"], "1970-01-01T00:00:00Z");
    assert_eq!(dated.config["created"], "2023-11-14T22:13:20Z");
    let mut expected = plain.config.clone();
    expected["created"] = dated.config["created"].clone();
    let history = expected["history"].as_array_mut().unwrap();
    history.last_mut().unwrap()["created"] = dated.config["created"].clone();
    assert_eq!(dated.config, expected);
    let bad = world
        .tierce(&["build", "app"])
        .env("SOURCE_DATE_EPOCH", "yesterday");
    insta::assert_snapshot!(world.fails_as(1, bad), @"
    error: SOURCE_DATE_EPOCH cannot be used
      caused by: `yesterday` is not a time: expected whole seconds since 1970-01-01T00:00:00Z
    ");
}

#[test]
fn every_place_gets_the_same_bytes() {
    let world = World::with_app("scratch");
    let output = world.ok(&[
        "build",
        "app",
        "-o=oci:out:1",
        "-o=oci-archive:out.tar:1",
        "-o=docker-archive:docker.tar:x:1",
        "-o=store:x:1",
    ]);
    let stdout = output.stdout();
    let digests: Vec<&str> = stdout
        .lines()
        .map(|line| line.rsplit_once('@').unwrap().1)
        .collect();
    assert_eq!(digests.len(), 4);
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    // Archives too are the same byte for byte.
    let archives = [world.path("out.tar"), world.path("docker.tar")];
    let first = archives.clone().map(|path| fs::read(path).unwrap());
    for path in &archives {
        fs::remove_file(path).unwrap();
    }
    let again = [
        "build",
        "app",
        "--jobs=1",
        "-o=oci-archive:out.tar:1",
        "-o=docker-archive:docker.tar:x:1",
    ];
    world.runs(&again);
    assert_eq!(archives.map(|path| fs::read(path).unwrap()), first);
}

/// The image of the quick start, pinned. When the format of layers is changed on purpose: set
/// `INSTA_UPDATE=force`, run this test, and look at the difference before the digest is trusted.
#[test]
fn the_fixture_has_its_golden_bytes() {
    let world = World::new();
    copy_directory(&fixtures(), &world.path("fixtures"));
    let hello = "fixtures/functions/hello";
    let lock = fs::read(world.path(hello).join("tierce.lock")).unwrap();
    let output = world.ok(&["build", hello, "-o=oci:out:1"]);
    let image = LoadedImage::from_layout(&world.path("out"), Some("1")).unwrap();
    // What differs shows here first …
    insta::assert_snapshot!(listing(&image, 3), @"
    d 0755 var
    d 0755 var/task
    f 0644 var/task/app.py 541 bytes
    f 0644 var/task/greeting.py 381 bytes
    f 0644 var/task/greetings.json 84 bytes
    ");
    insta::assert_snapshot!(format!("{:#}", image.manifest), @r#"
    {
      "annotations": {
        "org.opencontainers.image.base.digest": "sha256:924fd2e8c009a6a3e8d3d50fbd5d5e8927cf74625b4172e713b9e1d050f022ba"
      },
      "config": {
        "digest": "sha256:332ec0229f2f0acb2c1b88d7a358b9aa1645779b37e8501b9414f785b0f5343e",
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "size": 1587
      },
      "layers": [
        {
          "digest": "sha256:e55a13ac7e4a7015a63dc5f9926d7392a502678d39d542f770b6fea1cafbc39e",
          "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
          "size": 17943
        },
        {
          "digest": "sha256:ecd7636f23fc9a695d8cc38a46dc8ca17260a5afd24ddb81c17a8ce7e302ce4f",
          "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
          "size": 4631
        },
        {
          "digest": "sha256:8cd0abeb2ff5519eca9923c4c95411b930c7aeb58d2a924059f9096bdc74c493",
          "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
          "size": 4119
        },
        {
          "digest": "sha256:d5c16fccbf19e5ca6d5781b3f49d79bca2236a55594bcee22c214c31ff47d1b9",
          "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
          "size": 783
        }
      ],
      "mediaType": "application/vnd.oci.image.manifest.v1+json",
      "schemaVersion": 2
    }
    "#);
    insta::assert_snapshot!(format!("{:#}", image.config["config"]), @r#"
    {
      "Cmd": [
        "app.handler"
      ],
      "Entrypoint": [
        "/lambda-entrypoint.sh"
      ],
      "Env": [
        "LANG=en_US.UTF-8",
        "TZ=:/etc/localtime",
        "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
        "LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
        "LAMBDA_TASK_ROOT=/var/task",
        "LAMBDA_RUNTIME_DIR=/var/runtime",
        "GREETING_LANGUAGE=en"
      ],
      "Labels": {
        "dev.tierce.target": "lambda",
        "org.opencontainers.image.base.digest": "sha256:924fd2e8c009a6a3e8d3d50fbd5d5e8927cf74625b4172e713b9e1d050f022ba"
      },
      "WorkingDir": "/var/task"
    }
    "#);
    insta::assert_snapshot!(format!("{:#}", image.config["history"]), @r#"
    [
      {
        "created": "1980-01-01T00:00:00Z",
        "created_by": "make-minimal: system"
      },
      {
        "created": "1980-01-01T00:00:00Z",
        "created_by": "make-minimal: program"
      },
      {
        "created": "1980-01-01T00:00:00Z",
        "created_by": "make-minimal: ENV",
        "empty_layer": true
      },
      {
        "created": "1980-01-01T00:00:00Z",
        "created_by": "make-minimal: WORKDIR /var/task",
        "empty_layer": true
      },
      {
        "created": "1980-01-01T00:00:00Z",
        "created_by": "make-minimal: entrypoint"
      },
      {
        "created": "1980-01-01T00:00:00Z",
        "created_by": "make-minimal: ENTRYPOINT [\"/lambda-entrypoint.sh\"]",
        "empty_layer": true
      },
      {
        "created": "1970-01-01T00:00:00Z",
        "created_by": "tierce layer-format-1 fast-1 code"
      }
    ]
    "#);
    // … and this is the golden layer, and the golden image.
    insta::assert_snapshot!(image.config["rootfs"]["diff_ids"][3].as_str().unwrap(), @"sha256:5e9e29213aa5aeb62db5818434cf599d8a4c1192ae2c4754c708e7fc1a6e6c2a");
    insta::assert_snapshot!(layer_digests(&image.manifest)[3], @"sha256:d5c16fccbf19e5ca6d5781b3f49d79bca2236a55594bcee22c214c31ff47d1b9");
    insta::assert_snapshot!(digest_in(&output), @"sha256:bf88619d80bdbed84d9cb5f8d90139624203d30f9c309524556e05d3e1cb785d");
    // The fixture's lock is complete.
    assert_eq!(
        fs::read(world.path(hello).join("tierce.lock")).unwrap(),
        lock
    );
    world.runs(&["build", hello, "--locked"]);
}
