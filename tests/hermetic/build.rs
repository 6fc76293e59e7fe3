//! `tierce build`: what goes in, and what image comes out.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use serde_json::{Value, json};
use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::images::{
    Format, ImageBuilder, LayerBuilder, Packing, lambda_base, null_history_base, rich_config_base,
    small_base,
};
use tierce_testkit::tree::Node;
use tierce_testkit::{FakeRegistry, Method};

use crate::support::{World, digest_in, file_of, has, layer_digests, listing, top_layer};

/// A world with `base` in the layout `base:1` and a file `app/hello`.
fn world_on_layout(base: &tierce_testkit::images::TestImage) -> World {
    let world = World::new();
    base.write_layout(&world.path("base"), Some("1"));
    world.sandbox.write("app/hello", "hello\n");
    world
}

#[test]
fn a_base_comes_from_every_place() {
    let base = small_base(Format::Docker, "amd64");
    let world = world_on_layout(&base);
    let registry = FakeRegistry::start();
    base.put(&registry, "bases/small", Some("1"));
    base.write_oci_archive(&world.path("base.oci.tar"), Some("1"));
    base.write_hybrid_archive(&world.path("base.docker.tar"), Some("small:1"));
    world.runs(&["copy", "oci:base:1", "store:small:1"]);

    let own: Vec<String> = base
        .layers
        .iter()
        .map(|layer| layer.digest().to_string())
        .collect();
    for name in [
        format!("{}/bases/small:1", registry.host()),
        format!("docker://{}/bases/small:1", registry.localhost()),
        registry.reference("bases/small", &base.digest().to_string()),
        "oci:base:1".to_owned(),
        "oci:base".to_owned(),
        format!("oci:base@{}", base.digest()),
        "oci-archive:base.oci.tar:1".to_owned(),
        "oci-archive:base.oci.tar".to_owned(),
        "docker-archive:base.docker.tar".to_owned(),
        "docker-archive:base.docker.tar:small:1".to_owned(),
        "store:small:1".to_owned(),
        format!("store:small@{}", base.digest()),
    ] {
        let image = world.built(&["build", "app", "--base", &name, "--add", "hello:/srv/"]);
        let digests = layer_digests(&image.manifest);
        assert_eq!(digests[..own.len()], own, "{name}");
        assert_eq!(digests.len(), own.len() + 1, "{name}");
        assert_eq!(file_of(&image, "srv/hello"), "hello\n", "{name}");
        assert_eq!(file_of(&image, "etc/architecture"), "amd64", "{name}");
        assert_eq!(image.media_type, Format::Docker.manifest(), "{name}");
    }
}

#[test]
fn a_base_in_an_old_docker_archive_has_its_layers_compressed() {
    let base = small_base(Format::Docker, "amd64");
    let world = world_on_layout(&base);
    base.write_docker_archive(&world.path("old.tar"), Some("small:1"));
    let arguments = ["build", "app", "--add", "hello:/srv/", "--base"];
    let image = world.built(&[&arguments[..], &["docker-archive:old.tar:small:1"]].concat());
    let expected: Vec<Value> = base
        .layers
        .iter()
        .map(|layer| layer.diff_id().to_string().into())
        .collect();
    let diff_ids = image.config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids[..1], expected);
    assert_eq!(diff_ids.len(), 2);
    assert_eq!(file_of(&image, "etc/architecture"), "amd64");
    // The same again gives the same.
    let again = world.built(&[&arguments[..], &["docker-archive:old.tar"]].concat());
    assert_eq!(again.manifest_bytes, image.manifest_bytes);
}

#[test]
fn scratch_is_an_empty_docker_image() {
    let world = World::new();
    world.sandbox.write("app/server", "#!static\n");
    let image = world.built(&[
        "build",
        "app",
        "--base=scratch",
        "--platform=arm64",
        "--add=server:/bin/server",
        "--entrypoint=/bin/server",
        "--entrypoint=--port=80",
    ]);
    assert_eq!(image.media_type, Format::Docker.manifest());
    assert_eq!(image.tars.len(), 1);
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 bin
    f 0644 bin/server 9 bytes
    ");
    insta::assert_snapshot!(format!("{:#}", image.config), @r#"
    {
      "architecture": "arm64",
      "config": {
        "Entrypoint": [
          "/bin/server",
          "--port=80"
        ],
        "Labels": {
          "dev.tierce.target": "generic"
        }
      },
      "created": "1970-01-01T00:00:00Z",
      "history": [
        {
          "created": "1970-01-01T00:00:00Z",
          "created_by": "tierce layer-format-1 fast-1 added"
        }
      ],
      "os": "linux",
      "rootfs": {
        "diff_ids": [
          "sha256:e3cbbe41886279742c7041342eaee5791d05500dca0650a9c013b7240c935c18"
        ],
        "type": "layers"
      }
    }
    "#);
}

#[test]
fn names_come_from_flag_file_and_folder() {
    let world = World::new();
    world.app("scratch", "tag = \"from-file:7\"");
    let name = |arguments: &[&str]| {
        let output = world.ok(&[&["build", "app"], arguments].concat()).stdout();
        output.split('@').next().unwrap().to_owned()
    };
    assert_eq!(name(&[]), "store:from-file");
    assert_eq!(name(&["-t", "from-flag:8"]), "store:from-flag");
    world.app("scratch", "");
    assert_eq!(name(&[]), "store:app");
    world.runs(&["inspect", "store:from-file:7"]);
    world.runs(&["inspect", "store:from-flag:8"]);
    world.runs(&["inspect", "store:app:latest"]);
}

#[test]
fn flags_override_the_file() {
    let world = World::new();
    let base = rich_config_base(Format::Oci, "amd64");
    base.write_layout(&world.path("base"), Some("1"));
    world.sandbox.write("app/code/a", "a");
    world.sandbox.write("app/extra", "b");
    world.sandbox.write(
        "app/tierce.toml",
        r#"
[image]
base = "oci:../base:1"
platforms = ["linux/amd64"]
format = "docker"
handler = "file.handler"
target = "generic"

[[layer]]
name = "code"
add = [{ from = "code", to = "/var/task" }]

[config]
env = { FROM_FILE = "1", BOTH = "file", N = 4 }
entrypoint = ["/file"]
workdir = "/file"
user = "file"
labels = { both = "file", file = "1" }
expose = [1111]
stop-signal = "SIGUSR1"
"#,
    );
    let of_file = world.built(&["build", "app"]);
    assert_eq!(of_file.media_type, Format::Docker.manifest());
    insta::assert_snapshot!(format!("{:#}", of_file.config["config"]), @r#"
    {
      "ArgsEscaped": true,
      "Cmd": [
        "file.handler"
      ],
      "Entrypoint": [
        "/file"
      ],
      "Env": [
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "BOTH=file",
        "FROM_FILE=1",
        "N=4"
      ],
      "ExposedPorts": {
        "1111/tcp": {},
        "8080/tcp": {}
      },
      "Healthcheck": {
        "Interval": 30000000000,
        "Test": [
          "CMD",
          "true"
        ]
      },
      "Labels": {
        "a": "first",
        "both": "file",
        "dev.tierce.target": "generic",
        "file": "1",
        "org.opencontainers.image.base.digest": "sha256:b159f69ee010e9bb87a1f9df3bf863cd3ff0a63fa774c2a0a0629ca28e2c0022",
        "z": "last"
      },
      "OnBuild": [
        "RUN true"
      ],
      "Shell": [
        "/bin/bash",
        "-c"
      ],
      "StopSignal": "SIGUSR1",
      "User": "file",
      "Volumes": {
        "/data": {}
      },
      "WorkingDir": "/file"
    }
    "#);
    let of_flags = world.built(&[
        "build",
        "app",
        "--format=oci",
        "--handler=flag.handler",
        "--env=BOTH=flag",
        "--env=FROM_FLAG=a=b",
        "--entrypoint=/flag",
        "--workdir=/flag",
        "--user=1:2",
        "--label=both=flag",
        "--expose=2222/udp",
        "--stop-signal=SIGQUIT",
        "--annotation=org.example=yes",
        "--add=extra:/opt/extra",
    ]);
    assert_eq!(of_flags.media_type, Format::Oci.manifest());
    insta::assert_snapshot!(format!("{:#}", of_flags.config["config"]), @r#"
    {
      "ArgsEscaped": true,
      "Cmd": [
        "flag.handler"
      ],
      "Entrypoint": [
        "/flag"
      ],
      "Env": [
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "FROM_FILE=1",
        "N=4",
        "BOTH=flag",
        "FROM_FLAG=a=b"
      ],
      "ExposedPorts": {
        "1111/tcp": {},
        "2222/udp": {},
        "8080/tcp": {}
      },
      "Healthcheck": {
        "Interval": 30000000000,
        "Test": [
          "CMD",
          "true"
        ]
      },
      "Labels": {
        "a": "first",
        "both": "flag",
        "dev.tierce.target": "generic",
        "file": "1",
        "org.opencontainers.image.base.digest": "sha256:b159f69ee010e9bb87a1f9df3bf863cd3ff0a63fa774c2a0a0629ca28e2c0022",
        "z": "last"
      },
      "OnBuild": [
        "RUN true"
      ],
      "Shell": [
        "/bin/bash",
        "-c"
      ],
      "StopSignal": "SIGQUIT",
      "User": "1:2",
      "Volumes": {
        "/data": {}
      },
      "WorkingDir": "/flag"
    }
    "#);
    assert_eq!(of_flags.manifest["annotations"]["org.example"], "yes");
    // The layer of --add lies above those of the file.
    assert_eq!(of_flags.tars.len(), of_file.tars.len() + 1);
    insta::assert_snapshot!(top_layer(&of_flags), @"
    d 0755 opt
    f 0644 opt/extra 1 bytes
    ");
}

#[test]
fn environment_is_appended_to_prepended_and_replaced() {
    let world = World::new();
    lambda_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    world.app(
        "oci:../base:1",
        "[config.env]\nPATH = { append = \":/opt/tools/bin\" }\n\
         LD_LIBRARY_PATH = { prepend = \"/opt/mine:\" }\nTZ = \"UTC\"\nNEW = { append = \"x\" }\n",
    );
    let image = world.built(&["build", "app"]);
    insta::assert_snapshot!(format!("{:#}", image.config["config"]["Env"]), @r#"
    [
      "LANG=en_US.UTF-8",
      "TZ=UTC",
      "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin:/opt/tools/bin",
      "LD_LIBRARY_PATH=/opt/mine:/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/opt/lib",
      "LAMBDA_TASK_ROOT=/var/task",
      "LAMBDA_RUNTIME_DIR=/var/runtime",
      "NEW=x"
    ]
    "#);
    // Without a word about it PATH stays as it is.
    world.app("oci:../base:1", "[config]\nenv = { A = \"1\" }");
    let image = world.built(&["build", "app"]);
    let env = image.config["config"]["Env"].to_string();
    assert!(env.contains("\"PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin\""));
}

#[test]
fn an_entrypoint_of_one_s_own_resets_the_base_s_cmd() {
    let world = World::new();
    let base = ImageBuilder::new(Format::Oci, "amd64")
        .layer(&LayerBuilder::new().file("bin/a", 0o755, b"a"))
        .config(|config| config["config"]["Cmd"] = json!(["of", "base"]))
        .build();
    base.write_layout(&world.path("base"), Some("1"));
    world.sandbox.write("app/x", "x");
    // It is no function that could run.
    let generic = "[image]\ntarget = \"generic\"\n";
    world.sandbox.write("app/tierce.toml", generic);
    let arguments = ["build", "app", "--base=oci:base:1", "--add=x:/srv/x"];
    let run = |more: &[&str]| {
        let image = world.built(&[&arguments[..], more].concat());
        let config = &image.config["config"];
        (config["Entrypoint"].clone(), config["Cmd"].clone())
    };
    assert_eq!(run(&[]), (Value::Null, json!(["of", "base"])));
    assert_eq!(run(&["--entrypoint=/e"]), (json!(["/e"]), Value::Null));
    assert_eq!(
        run(&["--entrypoint=/e", "--cmd=a", "--cmd=-b c"]),
        (json!(["/e"]), json!(["a", "-b c"]))
    );
    assert_eq!(run(&["--handler=m.h"]), (Value::Null, json!(["m.h"])));
}

#[test]
fn fields_of_the_base_s_config_that_nobody_knows_survive() {
    for format in [Format::Docker, Format::Oci] {
        let base = rich_config_base(format, "arm64");
        let world = world_on_layout(&base);
        let image = world.built(&[
            "build",
            "app",
            "--base=oci:base:1",
            "--add=hello:/srv/",
            "--label=mine=1",
        ]);
        let mut expected = base.config_json();
        for changed in ["created", "rootfs", "history"] {
            expected[changed] = image.config[changed].clone();
        }
        let labels = expected["config"]["Labels"].as_object_mut().unwrap();
        for (name, value) in image.config["config"]["Labels"].as_object().unwrap() {
            if name == "mine" || name.starts_with("dev.tierce.") || name.starts_with("org.open") {
                labels.insert(name.clone(), value.clone());
            }
        }
        assert!(labels.contains_key("mine"));
        assert_eq!(image.config, expected);
    }
}

#[test]
fn history_is_complete_also_over_a_base_without_one() {
    let base = null_history_base(Format::Docker, "amd64");
    let world = world_on_layout(&base);
    let image = world.built(&["build", "app", "--base=oci:base:1", "--add=hello:/srv/"]);
    let history = image.config["history"].as_array().unwrap();
    let of_layers = history
        .iter()
        .filter(|entry| entry["empty_layer"] != true)
        .count();
    assert_eq!(of_layers, 2);
    let created_by = history.last().unwrap()["created_by"].as_str().unwrap();
    insta::assert_snapshot!(created_by, @"tierce layer-format-1 fast-1 added");
}

/// Every base format with every output format, in every place that keeps bytes.
#[test]
fn media_types_are_consistent_in_both_formats() {
    for (base_format, asked, expected) in [
        (Format::Docker, None, Format::Docker),
        (Format::Oci, None, Format::Oci),
        (Format::Docker, Some("oci"), Format::Oci),
        (Format::Oci, Some("docker"), Format::Docker),
    ] {
        let base = lambda_base(base_format, "amd64");
        let world = world_on_layout(&base);
        let registry = FakeRegistry::start();
        let pushed = format!("{}/out:1", registry.host());
        let mut arguments = vec![
            "build",
            "app",
            "--base=oci:base:1",
            "--handler=app.handler",
            "-o=oci:out:1",
            "-o=oci-archive:out.oci.tar:1",
            "-o=docker-archive:out.docker.tar:out:1",
            "-o",
            &pushed,
        ];
        let format = asked.map(|asked| format!("--format={asked}"));
        arguments.extend(format.as_deref());
        world.runs(&arguments);
        let checker = Checker::new().lambda_rules_from(2);
        assert_clean(&checker.layout(&world.path("out")));
        assert_clean(&checker.oci_archive(&world.path("out.oci.tar")));
        assert_clean(&checker.docker_archive(&world.path("out.docker.tar")));
        assert_clean(&checker.registry(&registry, "out", "1"));
        let image = LoadedImage::from_registry(&registry, "out", "1").unwrap();
        assert_eq!(image.media_type, expected.manifest());
        assert_eq!(image.manifest["mediaType"], expected.manifest());
        assert_eq!(image.manifest["config"]["mediaType"], expected.config());
        for layer in image.manifest["layers"].as_array().unwrap() {
            assert_eq!(layer["mediaType"], expected.layer(Packing::Gzip));
        }
        let copies = [
            LoadedImage::from_layout(&world.path("out"), Some("1")),
            LoadedImage::from_oci_archive(&world.path("out.oci.tar"), Some("1")),
            LoadedImage::from_oci_archive(&world.path("out.docker.tar"), None),
        ];
        for copy in copies {
            assert_eq!(copy.unwrap().manifest_bytes, image.manifest_bytes);
        }
        world.assert_no_litter();
    }
}

#[test]
fn directories_and_files_go_where_copy_would_put_them() {
    let world = World::new();
    world.sandbox.write("app/dir/a", "a");
    world.sandbox.write("app/dir/sub/b", "b");
    fs::create_dir(world.path("app/dir/empty")).unwrap();
    symlink("a", world.path("app/dir/link")).unwrap();
    symlink("/nowhere", world.path("app/dir/dangling")).unwrap();
    world.sandbox.write("app/file", "f");
    fs::set_permissions(world.path("app/file"), fs::Permissions::from_mode(0o4710)).unwrap();
    let image = world.built(&[
        "build",
        "app",
        "--base=scratch",
        "--add=dir:/srv/one",
        "--add=dir/:/srv/two/",
        "--add=file:/srv/renamed",
        "--add=file:/srv/into/",
        "--add=file:relative",
    ]);
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 srv
    d 0755 srv/into
    d 0755 srv/one
    d 0755 srv/one/empty
    d 0755 srv/one/sub
    d 0755 srv/two
    d 0755 srv/two/empty
    d 0755 srv/two/sub
    f 0755 relative 1 bytes
    f 0755 srv/into/file 1 bytes
    f 0644 srv/one/a 1 bytes
    l 0777 srv/one/dangling -> /nowhere
    l 0777 srv/one/link -> a
    f 0644 srv/one/sub/b 1 bytes
    f 0755 srv/renamed 1 bytes
    f 0644 srv/two/a 1 bytes
    l 0777 srv/two/dangling -> /nowhere
    l 0777 srv/two/link -> a
    f 0644 srv/two/sub/b 1 bytes
    ");
    for entry in image.entries(0).unwrap() {
        assert_eq!(entry.mtime, 315_532_800, "{}", entry.path);
    }
}

#[test]
fn patterns_and_dockerignore_leave_files_out() {
    let world = World::new();
    for path in [
        "src/a.py",
        "src/a.txt",
        "src/deep/b.py",
        "src/deep/__pycache__/b.pyc",
        "src/deep/keep.log",
        "src/deep/drop.log",
        "src/secret.env",
        "other/one.py",
        "other/two.txt",
    ] {
        world.sandbox.write(format!("app/{path}"), path);
    }
    world.sandbox.write(
        "app/.dockerignore",
        "# secrets\n**/*.env\n**/*.log\n!src/deep/keep.log\n",
    );
    world.sandbox.write(
        "app/tierce.toml",
        r#"
[image]
base = "scratch"

[[layer]]
name = "code"
add = [
    { from = "src/", to = "/var/task/", exclude = ["**/__pycache__", "a.txt"] },
    { from = "other", to = "/opt", include = ["*.py"] },
]
"#,
    );
    let image = world.built(&["build", "app"]);
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 opt
    d 0755 var
    d 0755 var/task
    d 0755 var/task/deep
    f 0644 opt/one.py 12 bytes
    f 0644 var/task/a.py 8 bytes
    f 0644 var/task/deep/b.py 13 bytes
    f 0644 var/task/deep/keep.log 17 bytes
    ");
}

#[test]
fn a_tar_becomes_a_layer_whatever_packs_it() {
    let tar = LayerBuilder::new()
        .file("a/file", 0o640, b"content")
        .symlink("a/link", "file")
        .hardlink("a/hard", "a/file")
        .file("b/bin", 0o4755, b"#!")
        .file("b/skip.md", 0o644, b"docs");
    let world = World::new();
    let mut seen = Vec::new();
    for packing in [Packing::None, Packing::Gzip, Packing::Zstd] {
        let blob = tar.clone().packing(packing).build().blob;
        world.sandbox.write("app/in.tar", blob);
        world.sandbox.write(
            "app/tierce.toml",
            "[image]\nbase = \"scratch\"\n[[layer]]\nname = \"tar\"\ntar = \"in.tar\"\n\
             to = \"/opt/x\"\nexclude = [\"**/*.md\"]\n",
        );
        let image = world.built(&["build", "app"]);
        assert_eq!(file_of(&image, "opt/x/a/file"), "content");
        seen.push(image);
    }
    assert_eq!(seen[0].manifest_bytes, seen[1].manifest_bytes);
    assert_eq!(seen[0].manifest_bytes, seen[2].manifest_bytes);
    insta::assert_snapshot!(top_layer(&seen[0]), @"
    d 0755 opt
    d 0755 opt/x
    d 0755 opt/x/a
    d 0755 opt/x/b
    f 0644 opt/x/a/file 7 bytes
    f 0644 opt/x/a/hard 7 bytes
    l 0777 opt/x/a/link -> file
    f 0755 opt/x/b/bin 2 bytes
    ");
}

#[test]
fn whiteouts_and_opaque_markers_of_a_tar_delete() {
    let base = ImageBuilder::new(Format::Oci, "amd64")
        .layer(
            &LayerBuilder::new()
                .directory("opt", 0o755)
                .file("opt/gone", 0o644, b"1")
                .file("opt/stays", 0o644, b"2")
                .directory("srv", 0o755)
                .file("srv/hidden", 0o644, b"3"),
        )
        .build();
    let world = world_on_layout(&base);
    let tar = LayerBuilder::new()
        .whiteout("opt/gone")
        .opaque("srv")
        .file("srv/new", 0o644, b"4");
    for verbatim in [false, true] {
        world.sandbox.write("app/in.tar", tar.tar());
        world.sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"oci:../base:1\"\n[[layer]]\nname = \"tar\"\ntar = \"in.tar\"\n\
                 verbatim = {verbatim}\n"
            ),
        );
        let image = world.built(&["build", "app"]);
        assert!(!has(&image, "opt/gone"));
        assert!(has(&image, "opt/stays"));
        assert!(!has(&image, "srv/hidden"));
        assert!(has(&image, "srv/new"));
        if verbatim {
            assert_eq!(image.tars[1], tar.tar());
        } else {
            insta::assert_snapshot!(top_layer(&image), @"
            d 0755 opt
            d 0755 srv
            f 0644 srv/.wh..wh..opq
            f 0644 opt/.wh.gone
            f 0644 srv/new 1 bytes
            ");
        }
    }
}

#[test]
fn what_is_made_uniform_can_be_kept() {
    let world = World::new();
    let tar = LayerBuilder::new()
        .directory("data", 0o2770)
        .file("data/a", 0o4711, b"a")
        .xattr("user.kept", b"1")
        .xattr("user.dropped", b"2")
        .hardlink("data/b", "data/a");
    world.sandbox.write("app/in.tar", tar.tar());
    world.sandbox.write("app/dir/x", "x");
    fs::set_permissions(world.path("app/dir/x"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(world.path("app/dir/x"), world.path("app/dir/y")).unwrap();
    let build = |settings: &str| {
        world.sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"scratch\"\n\
                 [[layer]]\nname = \"tar\"\ntar = \"in.tar\"\n{settings}\n\
                 [[layer]]\nname = \"files\"\nadd = [{{ from = \"dir\", to = \"/srv\" }}]\n{settings}\n"
            ),
        );
        world.built(&["build", "app"])
    };
    let uniform = build("");
    insta::assert_snapshot!(format!("{}\n--\n{}", listing(&uniform, 0), listing(&uniform, 1)), @"
    d 0755 data
    f 0755 data/a 1 bytes
    f 0755 data/b 1 bytes
    --
    d 0755 srv
    f 0644 srv/x 1 bytes
    f 0644 srv/y 1 bytes
    ");
    let kept = build("modes = \"keep\"\nhardlinks = \"keep\"\nxattrs = [\"user.kept\"]");
    insta::assert_snapshot!(format!("{}\n--\n{}", listing(&kept, 0), listing(&kept, 1)), @"
    d 2770 data
    f 4711 data/a 1 bytes
    h 4711 data/b = data/a
    --
    d 0755 srv
    f 0640 srv/x 1 bytes
    h 0640 srv/y = srv/x
    ");
    let xattrs: BTreeSet<String> = kept
        .entries(0)
        .unwrap()
        .iter()
        .flat_map(|entry| entry.xattrs.keys().cloned())
        .collect();
    assert_eq!(xattrs, BTreeSet::from(["user.kept".to_owned()]));
    let bare = uniform.entries(0).unwrap();
    assert!(bare.iter().all(|entry| entry.xattrs.is_empty()));
}

#[test]
fn owners_can_be_kept() {
    let world = World::new();
    world.sandbox.write("app/x", "x");
    // Whoever runs the test owns the file.
    let owner = {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = fs::metadata(world.path("app/x")).unwrap();
        (u64::from(metadata.uid()), u64::from(metadata.gid()))
    };
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\n[[layer]]\nname = \"a\"\nowners = \"keep\"\n\
         add = [{ from = \"x\", to = \"/srv/x\" }]\n",
    );
    let image = world.built(&["build", "app"]);
    let entries = image.entries(0).unwrap();
    let file = entries.iter().find(|entry| entry.path == "srv/x").unwrap();
    assert_eq!((file.uid, file.gid), owner);
}

#[test]
fn without_layers_the_whole_context_is_the_code() {
    let world = World::new();
    lambda_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    for path in [
        "app.py",
        "lib/mod.py",
        ".git/config",
        ".hidden",
        "notes.md",
        "sub/tierce.toml",
    ] {
        world.sandbox.write(format!("app/{path}"), path);
    }
    world.sandbox.write("app/.dockerignore", "*.md\n");
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"oci:../base:1\"\nhandler = \"app.handler\"\n",
    );
    let image = world.built(&["build", "app"]);
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 var
    d 0755 var/task
    d 0755 var/task/lib
    d 0755 var/task/sub
    f 0644 var/task/.hidden 7 bytes
    f 0644 var/task/app.py 6 bytes
    f 0644 var/task/lib/mod.py 10 bytes
    f 0644 var/task/sub/tierce.toml 15 bytes
    ");
    let output = world.ok(&["build", "app"]);
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    building for linux/amd64; --platform names another
    nothing is added by name: all of [SANDBOX]/work/app goes to /var/task/
    store:app:latest: blobs: 1 linked (290 B), 3 sent (1.5 KiB)
    ");
}

#[test]
fn later_adds_win_and_say_so() {
    let world = World::new();
    world.sandbox.write("app/one/a", "first");
    world.sandbox.write("app/one/d/x", "x");
    world.sandbox.write("app/one/d/y", "y");
    world.sandbox.write("app/two/a", "second");
    world.sandbox.write("app/two/d", "a file now");
    let arguments = ["build", "app", "--base=scratch", "--platform=amd64"];
    let adds = ["--add=one:/srv", "--add=two:/srv"];
    let image = world.built(&[&arguments[..], &adds].concat());
    assert_eq!(file_of(&image, "srv/a"), "second");
    assert_eq!(file_of(&image, "srv/d"), "a file now");
    let output = world.ok(&[&arguments[..], &adds].concat());
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    note: `srv/a`: a file takes the place of a file
    note: `srv/d`: a file takes the place of a directory and the 2 entries below it
    store:app:latest: blobs: 1 linked (184 B), 1 sent (333 B)
    ");
    // Silent when nothing is replaced.
    let output = world.ok(&[&arguments[..], &["--add=one:/srv"]].concat());
    insta::assert_snapshot!(world.shown(&output.stderr()), @"store:app:latest: blobs: 1 linked (208 B), 1 sent (333 B)");
    // --quiet says nothing.
    let output = world.ok(&[&arguments[..], &adds, &["--quiet"]].concat());
    assert_eq!(output.stderr(), "");
}

#[test]
fn every_entry_has_its_ancestors() {
    let world = World::new();
    world.sandbox.write("app/f", "f");
    let image = world.built(&[
        "build",
        "app",
        "--base=scratch",
        "--add=f:/tmp/deep/er/f",
        "--add=f:/root/.config/f",
        "--add=f:/var/task/a/b/f",
    ]);
    insta::assert_snapshot!(top_layer(&image), @"
    d 0700 root
    d 0755 root/.config
    d 1777 tmp
    d 0755 tmp/deep
    d 0755 tmp/deep/er
    d 0755 var
    d 0755 var/task
    d 0755 var/task/a
    d 0755 var/task/a/b
    f 0644 root/.config/f 1 bytes
    f 0644 tmp/deep/er/f 1 bytes
    f 0644 var/task/a/b/f 1 bytes
    ");
}

#[test]
fn times_of_entries_can_follow_source_date_epoch() {
    let world = World::new();
    world.sandbox.write("app/x", "x");
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\n[[layer]]\nname = \"a\"\nmtime = \"source-date-epoch\"\n\
         add = [{ from = \"x\", to = \"/srv/x\" }]\n",
    );
    let image = world.built_as(
        world
            .tierce(&["build", "app"])
            .env("SOURCE_DATE_EPOCH", "1700000000"),
    );
    for entry in image.entries(0).unwrap() {
        assert_eq!(entry.mtime, 1_700_000_000);
    }
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @r#"
    error: app/tierce.toml:3:1: `mtime = "source-date-epoch"` needs SOURCE_DATE_EPOCH in the environment
      |
    3 | [[layer]]
      | ^^^^^^^^^
    "#);
}

#[test]
fn the_metadata_file_has_buildx_s_keys() {
    let world = World::with_app("scratch");
    let output = world.ok(&[
        "build",
        "app",
        "--metadata-file=meta.json",
        "-t=one:1",
        "-t=two:2",
    ]);
    let metadata: Value =
        serde_json::from_slice(&fs::read(world.path("meta.json")).unwrap()).unwrap();
    let stdout = output.stdout();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), 2);
    let digest = metadata["containerimage.digest"].as_str().unwrap();
    assert_eq!(lines[0], format!("store:one@{digest}"));
    assert_eq!(lines[1], format!("store:two@{digest}"));
    assert_eq!(metadata["containerimage.descriptor"]["digest"], digest);
    assert_eq!(
        metadata["containerimage.descriptor"]["mediaType"],
        Format::Docker.manifest()
    );
    let inspected = world.ok(&["inspect", "--json", "store:one:1"]).json();
    assert_eq!(
        metadata["containerimage.config.digest"],
        inspected["config"]["digest"]
    );
    insta::assert_snapshot!(metadata["image.name"].as_str().unwrap(), @"store:one:1,store:two:2");
}

#[test]
fn json_is_one_document() {
    let mut world = World::with_app("scratch");
    let plain = world.ok(&["build", "app", "-o=oci:out:1"]);
    let output = world.ok(&["build", "app", "--json", "-o=oci:out2:1", "-o=store:x:1"]);
    let json = output.json();
    assert_eq!(json["images"][0]["digest"], digest_in(&plain));
    assert_eq!(json["images"][1]["digest"], digest_in(&plain));
    world.call(digest_in(&plain), "DIGEST");
    insta::assert_snapshot!(world.shown(&format!("{json:#}")), @r#"
    {
      "images": [
        {
          "alreadyThere": {
            "blobs": 0,
            "bytes": 0
          },
          "digest": "[DIGEST]",
          "kind": "image",
          "linked": {
            "blobs": 0,
            "bytes": 0
          },
          "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
          "mounted": {
            "blobs": 0,
            "bytes": 0
          },
          "name": "oci:out2:1",
          "noted": {
            "blobs": 0,
            "bytes": 0
          },
          "reference": "oci:out2@[DIGEST]",
          "sent": {
            "blobs": 2,
            "bytes": 541
          },
          "upToDate": false
        },
        {
          "alreadyThere": {
            "blobs": 0,
            "bytes": 0
          },
          "digest": "[DIGEST]",
          "kind": "image",
          "linked": {
            "blobs": 1,
            "bytes": 209
          },
          "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
          "mounted": {
            "blobs": 0,
            "bytes": 0
          },
          "name": "store:x:1",
          "noted": {
            "blobs": 0,
            "bytes": 0
          },
          "reference": "store:x@[DIGEST]",
          "sent": {
            "blobs": 1,
            "bytes": 332
          },
          "upToDate": false
        }
      ]
    }
    "#);
}

#[test]
fn a_dry_run_knows_the_digest_and_writes_nothing() {
    let registry = FakeRegistry::start();
    let base = lambda_base(Format::Docker, "amd64");
    base.put(&registry, "base", Some("1"));
    let mut world = World::with_app(&format!("{}/base:1", registry.host()));
    world.call(registry.host(), "REGISTRY");
    let pushed = format!("{}/out:1", registry.host());
    let dry = ["build", "app", "--dry-run", "-o=oci:out:1", "-o", &pushed];
    let before = world.files();
    let output = world.ok(&dry);
    world.assert_nothing_half_written(&before);
    assert!(!world.path("out").exists());
    assert!(!world.path("app/tierce.lock").exists());
    assert!(!world.sandbox.data().join("tierce").exists());
    assert!(registry.tags("out").is_empty());
    assert_eq!(registry.log().repository("out").len(), 0);
    let dry_json = world.ok(&[&dry[..], &["--json"]].concat()).json();
    let real = world.ok(&["build", "app", "-o=oci:out:1", "-o", &pushed]);
    assert_eq!(output.stdout(), real.stdout());
    assert_eq!(dry_json["images"][0]["digest"], digest_in(&real));
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    building for linux/amd64; --platform names another
    dry run: nothing is written
    ");
}

#[test]
fn a_plain_build_downloads_no_base_layer() {
    let registry = FakeRegistry::start();
    let base = lambda_base(Format::Docker, "amd64");
    base.put(&registry, "base", Some("1"));
    let mut world = World::with_app(&format!("{}/base:1", registry.host()));
    world.call(registry.host(), "REGISTRY");
    let output = world.ok(&["build", "app"]);
    let log = registry.log();
    assert_eq!(log.blob_bytes_sent(), base.config.len() as u64);
    assert_eq!(log.count(Method::HEAD, "/blobs/"), 0);
    world.call(digest_in(&output), "DIGEST");
    insta::assert_snapshot!(world.shown(&output.stdout()), @"store:app@[DIGEST]");
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    building for linux/amd64; --platform names another
    wrote app/tierce.lock
    store:app:latest: blobs: 1 linked (209 B), 2 left where they are (499 B), 1 sent (1.1 KiB)
    ");
    // The second build asks for nothing at all.
    registry.clear_log();
    let again = world.ok(&["build", "app"]);
    assert_eq!(again.stdout(), output.stdout());
    assert!(registry.log().is_empty(), "{:?}", registry.log());
    insta::assert_snapshot!(world.shown(&again.stderr()), @"
    building for linux/amd64; --platform names another
    store:app:latest: already there
    ");
}

#[test]
fn build_pushes_where_the_tag_says() {
    let registry = FakeRegistry::start();
    let mut world = World::with_app("scratch");
    world.call(registry.host(), "REGISTRY");
    let one = format!("{}/team/app:1", registry.host());
    let two = format!("{}/team/app:2", registry.host());
    let output = world.ok(&["build", "app", "-t", &one, "-t", &two, "--push"]);
    assert_clean(&Checker::new().registry(&registry, "team/app", "1"));
    assert_eq!(
        registry.resolve("team/app", "1"),
        registry.resolve("team/app", "2")
    );
    world.call(digest_in(&output), "DIGEST");
    insta::assert_snapshot!(world.shown(&output.stdout()), @"
    [REGISTRY]/team/app@[DIGEST]
    [REGISTRY]/team/app@[DIGEST]
    ");
    assert!(!world.sandbox.data().join("tierce").exists());
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--push"]), @"
    error: --push needs a name with a registry
    hint: name the image with `--tag HOST/REPOSITORY:TAG`
    ");
}

#[test]
fn the_base_s_name_is_recorded_only_when_it_is_a_registry_s() {
    let registry = FakeRegistry::start();
    let base = lambda_base(Format::Oci, "amd64");
    base.put(&registry, "base", Some("1"));
    let world = world_on_layout(&base);
    let name = format!("{}/base:1", registry.host());
    let built = |base: &str| world.built(&["build", "app", "--base", base, "--add=hello:/srv/"]);
    let from_registry = built(&name);
    let annotations = &from_registry.manifest["annotations"];
    assert_eq!(annotations["org.opencontainers.image.base.name"], name);
    assert_eq!(
        annotations["org.opencontainers.image.base.digest"],
        base.digest().to_string()
    );
    let path = world.path("base");
    for base in [format!("oci:{}:1", path.display()), "oci:base:1".to_owned()] {
        let image = built(&base);
        let everything = format!("{}{}", image.manifest, image.config);
        assert!(!everything.contains("oci:"), "{everything}");
        assert!(
            !everything.contains(&*path.to_string_lossy()),
            "{everything}"
        );
    }
}

#[test]
fn the_target_is_recorded_as_a_label() {
    let world = World::new();
    world.sandbox.write("app/x", "x");
    lambda_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    let target = |more: &[&str]| {
        let arguments = ["build", "app", "--base=oci:base:1", "--add=x:/srv/x"];
        let image = world.built(&[&arguments[..], more].concat());
        image.config["config"]["Labels"]["dev.tierce.target"].clone()
    };
    assert_eq!(target(&[]), "generic");
    assert_eq!(target(&["--handler=a.b"]), "lambda");
}

#[test]
fn another_file_can_be_named() {
    let world = World::new();
    world.sandbox.write("app/src/a", "a");
    world.sandbox.write(
        "app/other.toml",
        "[image]\nbase = \"scratch\"\ntag = \"other:1\"\n[[layer]]\nname = \"a\"\n\
         add = [{ from = \"src\", to = \"/srv\" }]\n",
    );
    let output = world.ok(&["build", "app", "-f", "app/other.toml"]);
    assert!(output.stdout().starts_with("store:other@"));
    let image = world.built(&["build", "app", "-f", "app/other.toml"]);
    assert!(matches!(image.tree().unwrap()["srv/a"].node, Node::File(_)));
}
