//! `tierce inspect`, for people and for programs.

use serde_json::Value;
use tierce_testkit::FakeRegistry;
use tierce_testkit::images::{
    Format, ImageBuilder, LayerBuilder, lambda_base, multi_platform_base, zstd_base,
};

use crate::support::{World, noise};

#[test]
fn every_place_shows_the_same_image() {
    let mut world = World::new();
    let registry = FakeRegistry::start();
    let image = lambda_base(Format::Docker, "arm64");
    image.put(&registry, "fn", Some("1"));
    world.call(image.digest(), "IMAGE");
    world.call(image.config_digest(), "CONFIG");
    for (number, layer) in image.layers.iter().enumerate() {
        world.call(layer.digest(), &format!("LAYER {number}"));
        world.call(layer.diff_id(), &format!("DIFF ID {number}"));
    }
    let name = format!("{}/fn:1", registry.host());
    let mut places = vec![name.clone(), format!("docker://{name}")];
    for place in [
        "oci:out:1",
        "oci-archive:out.tar:1",
        "docker-archive:docker.tar:fn:1",
        "store:fn:1",
    ] {
        world.runs(&["copy", &name, place]);
        places.push(place.to_owned());
    }
    let mut human = Vec::new();
    let mut documents = Vec::new();
    for place in &places {
        let shown = world.ok(&["inspect", place]);
        assert_eq!(shown.stderr(), "", "{place}");
        human.push(world.shown(&shown.stdout()));
        let mut json = world.ok(&["inspect", "--json", place]).json();
        json["name"] = Value::Null;
        documents.push(world.shown(&format!("{json:#}")));
    }
    insta::assert_snapshot!(human[0], @r#"
    image       [IMAGE]
    type        application/vnd.docker.distribution.manifest.v2+json
    platform    linux/arm64
    config      [CONFIG]
    created     2024-01-01T00:00:00Z
    entrypoint  ["/lambda-entrypoint.sh"]
    workdir     /var/task
    env         LANG=en_US.UTF-8
    env         TZ=:/etc/localtime
    env         PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin
    env         LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/opt/lib
    env         LAMBDA_TASK_ROOT=/var/task
    env         LAMBDA_RUNTIME_DIR=/var/runtime
     layer                                                                    compressed  uncompressed  made by
     [LAYER 0]       184 B       4.0 KiB  ADD
     [LAYER 1]       316 B       6.0 KiB  ADD
     2 layers                                                                      500 B      10.0 KiB
    "#);
    insta::assert_snapshot!(documents[0], @r#"
    {
      "annotations": {},
      "config": {
        "content": {
          "architecture": "arm64",
          "config": {
            "Entrypoint": [
              "/lambda-entrypoint.sh"
            ],
            "Env": [
              "LANG=en_US.UTF-8",
              "TZ=:/etc/localtime",
              "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
              "LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/opt/lib",
              "LAMBDA_TASK_ROOT=/var/task",
              "LAMBDA_RUNTIME_DIR=/var/runtime"
            ],
            "WorkingDir": "/var/task"
          },
          "created": "2024-01-01T00:00:00Z",
          "history": [
            {
              "created": "2024-01-01T00:00:00Z",
              "created_by": "ENV",
              "empty_layer": true
            },
            {
              "created": "2024-01-01T00:00:00Z",
              "created_by": "ADD"
            },
            {
              "created": "2024-01-01T00:00:00Z",
              "created_by": "ADD"
            }
          ],
          "os": "linux",
          "rootfs": {
            "diff_ids": [
              "[DIFF ID 0]",
              "[DIFF ID 1]"
            ],
            "type": "layers"
          }
        },
        "digest": "[CONFIG]",
        "size": 998
      },
      "digest": "[IMAGE]",
      "layers": [
        {
          "createdBy": "ADD",
          "diffId": "[DIFF ID 0]",
          "digest": "[LAYER 0]",
          "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
          "size": 184,
          "uncompressedSize": 4096
        },
        {
          "createdBy": "ADD",
          "diffId": "[DIFF ID 1]",
          "digest": "[LAYER 1]",
          "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
          "size": 316,
          "uncompressedSize": 6144
        }
      ],
      "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
      "name": null,
      "platform": "linux/arm64"
    }
    "#);
    for (place, (text, document)) in places.iter().zip(human.iter().zip(&documents)) {
        assert_eq!(text, &human[0], "{place}");
        assert_eq!(document, &documents[0], "{place}");
    }
}

#[test]
fn what_was_built_shows_what_made_its_layers() {
    let mut world = World::new();
    let base = lambda_base(Format::Oci, "amd64");
    base.write_layout(&world.path("base"), Some("1"));
    world.app("oci:../base:1", "handler = \"app.handler\"");
    let built = world
        .ok(&["build", "app", "--json", "-o=store:fn:1", "-o=oci:out:1"])
        .json();
    world.call(built["images"][0]["digest"].as_str().unwrap(), "IMAGE");
    let json = world.ok(&["inspect", "--json", "store:fn:1"]).json();
    world.call(json["config"]["digest"].as_str().unwrap(), "CONFIG");
    world.call(json["layers"][2]["digest"].as_str().unwrap(), "CODE");
    world.call(base.digest(), "BASE");
    for (number, layer) in base.layers.iter().enumerate() {
        world.call(layer.digest(), &format!("LAYER {number}"));
    }
    let from_store = world.ok(&["inspect", "store:fn:1"]);
    insta::assert_snapshot!(world.shown(&from_store.stdout()), @r#"
    image       [IMAGE]
    type        application/vnd.oci.image.manifest.v1+json
    platform    linux/amd64
    config      [CONFIG]
    created     1970-01-01T00:00:00Z
    entrypoint  ["/lambda-entrypoint.sh"]
    cmd         ["app.handler"]
    workdir     /var/task
    env         LANG=en_US.UTF-8
    env         TZ=:/etc/localtime
    env         PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin
    env         LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/opt/lib
    env         LAMBDA_TASK_ROOT=/var/task
    env         LAMBDA_RUNTIME_DIR=/var/runtime
    label       dev.tierce.target=lambda
    label       org.opencontainers.image.base.digest=[BASE]
     layer                                                                    compressed  uncompressed  made by
     [LAYER 0]       184 B       4.0 KiB  ADD
     [LAYER 1]       315 B       6.0 KiB  ADD
     [CODE]       209 B       3.0 KiB  tierce layer-format-1 fast-1 code
     3 layers                                                                      708 B      13.0 KiB
    "#);
    let from_layout = world.ok(&["inspect", "oci:out:1"]);
    assert_eq!(from_layout.stdout(), from_store.stdout());
    assert_eq!(json["layers"][2]["uncompressedSize"], 3072);
}

#[test]
fn an_index_lists_its_children() {
    let mut world = World::new();
    let index = multi_platform_base(Format::Oci);
    index.write_layout(&world.path("out"), Some("1"));
    world.call(index.digest(), "INDEX");
    for (number, image) in index.images.iter().enumerate() {
        world.call(image.digest(), &format!("CHILD {number}"));
    }
    let shown = world.ok(&["inspect", "oci:out:1"]);
    insta::assert_snapshot!(world.shown(&shown.stdout()), @"
    index     [INDEX]
    type      application/vnd.oci.image.index.v1+json
     platform         manifest                                                                 size
     linux/amd64      [CHILD 0]  665 B
     linux/arm64      [CHILD 1]  665 B
     unknown/unknown  [CHILD 2]  476 B
    ");
    insta::assert_snapshot!(world.shown(&shown.stderr()), @"one of these in full: --platform PLATFORM");
    let json = world.ok(&["inspect", "--json", "oci:out:1"]).json();
    insta::assert_snapshot!(world.shown(&format!("{json:#}")), @r#"
    {
      "annotations": {},
      "digest": "[INDEX]",
      "manifests": [
        {
          "digest": "[CHILD 0]",
          "mediaType": "application/vnd.oci.image.manifest.v1+json",
          "platform": {
            "architecture": "amd64",
            "os": "linux"
          },
          "size": 665
        },
        {
          "digest": "[CHILD 1]",
          "mediaType": "application/vnd.oci.image.manifest.v1+json",
          "platform": {
            "architecture": "arm64",
            "os": "linux"
          },
          "size": 665
        },
        {
          "annotations": {
            "vnd.docker.reference.digest": "[CHILD 0]",
            "vnd.docker.reference.type": "attestation-manifest"
          },
          "digest": "[CHILD 2]",
          "mediaType": "application/vnd.oci.image.manifest.v1+json",
          "platform": {
            "architecture": "unknown",
            "os": "unknown"
          },
          "size": 476
        }
      ],
      "mediaType": "application/vnd.oci.image.index.v1+json",
      "name": "oci:out:1"
    }
    "#);
    let child = world
        .ok(&["inspect", "--json", "--platform=arm64", "oci:out:1"])
        .json();
    assert_eq!(child["digest"], index.image("arm64").digest().to_string());
    insta::assert_snapshot!(world.fails(1, &["inspect", "--platform=linux/s390x", "oci:out:1"]), @"
    error: could not read `oci:out:1`
      caused by: there is no image for linux/s390x; it has linux/amd64, linux/arm64
    hint: name another platform with `--platform`
    ");
}

/// Sizes come from the ends of the layers, so a registry is asked for a few bytes alone.
#[test]
fn layers_of_a_registry_are_not_downloaded_to_be_shown() {
    let registry = FakeRegistry::start();
    let image = ImageBuilder::new(Format::Docker, "amd64")
        .layer(&LayerBuilder::new().file("noise", 0o644, &noise(3, 1_000_000)))
        .build();
    image.put(&registry, "fn", Some("1"));
    let world = World::new();
    let name = format!("{}/fn:1", registry.host());
    let json = world.ok(&["inspect", "--json", &name]).json();
    assert_eq!(
        json["layers"][0]["uncompressedSize"],
        image.layers[0].tar.len()
    );
    let sent = registry.log().blob_bytes_sent();
    assert!(sent < 4096, "{sent} bytes of blobs were fetched");
}

#[test]
fn what_is_not_known_is_shown_as_a_dash_or_null() {
    let world = World::new();
    zstd_base("amd64").write_layout(&world.path("out"), Some("1"));
    let json = world.ok(&["inspect", "--json", "oci:out:1"]).json();
    assert_eq!(json["layers"][0]["uncompressedSize"], Value::Null);
    let stdout = world.ok(&["inspect", "oci:out:1"]).stdout();
    let last = stdout.lines().last().unwrap();
    assert!(last.contains("1 layer") && last.ends_with(" -"), "{stdout}");
}

#[test]
fn nothing_in_an_image_moves_the_terminal() {
    let world = World::new();
    let image = ImageBuilder::new(Format::Oci, "amd64")
        .layer(&LayerBuilder::new().file("a", 0o644, b"a"))
        .config(|config| {
            config["config"]["Env"] = serde_json::json!(["A=\u{1b}[2J\u{7}"]);
            config["config"]["Labels"] = serde_json::json!({"l\u{1b}[1A": "\r\u{9b}31m"});
            config["config"]["WorkingDir"] = "/\u{1b}]0;title\u{7}".into();
            config["config"]["User"] = "\u{1b}[31m".into();
            config["config"]["StopSignal"] = "\u{1b}[31m".into();
            config["config"]["Cmd"] = serde_json::json!(["\u{1b}[31m", "\u{9b}31m"]);
            config["config"]["ExposedPorts"] = serde_json::json!({"\u{1b}[31m": {}});
            config["created"] = "\u{1b}[31m".into();
        })
        .build();
    image.write_layout(&world.path("out"), Some("1"));
    let stdout = world.tierce(&["inspect", "oci:out:1"]).run();
    for text in [stdout.stdout(), stdout.stderr()] {
        let control = text
            .chars()
            .find(|letter| letter.is_control() && *letter != '\n');
        assert_eq!(control, None, "{text:?}");
    }
}
