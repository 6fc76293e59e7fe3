//! What an assembled image says, given a base and edits.

#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use serde_json::{Value, json};
use tierce_image::{
    AssembleError, BaseImage, ConfigEdits, Content, EnvEdit, Image, Layer, assemble, assemble_index,
};
use tierce_oci::{
    Compression, Descriptor, DiffId, Digest, Document, ImageFormat, Manifest, MediaType, Platform,
    Raw, Reference, Timestamp,
};

fn layer(name: &str) -> Layer {
    let media_type = MediaType::Layer(ImageFormat::Oci, Compression::Gzip);
    Layer {
        descriptor: Descriptor::of(media_type, name.as_bytes()),
        diff_id: DiffId(Digest::of(format!("tar of {name}").as_bytes())),
        content: Content::Memory(Bytes::from(name.to_owned())),
        created_by: Some(format!("tierce {name}")),
        facts: None,
    }
}

/// A base with one layer; `config` is what its config says besides what every config must.
fn base(format: ImageFormat, media_type: &str, config: &Value) -> BaseImage {
    let below = layer("base");
    let mut document = json!({
        "architecture": "arm64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [below.diff_id]},
    });
    for (name, value) in config.as_object().expect("an object") {
        document[name] = value.clone();
    }
    let config = Raw::from_json(&document, MediaType::Config(format)).unwrap();
    let manifest = Raw::from_manifest(Manifest {
        media_type: MediaType::Manifest(format),
        config: config.descriptor().clone(),
        layers: vec![Descriptor {
            media_type: MediaType::from(media_type),
            annotations: [("from".to_owned(), "base".to_owned())].into(),
            ..below.descriptor.clone()
        }],
        annotations: [("of-the-base".to_owned(), "yes".to_owned())].into(),
        subject: None,
        artifact_type: None,
    });
    let image = Image::new(manifest, config, |_| below.content.clone()).unwrap();
    BaseImage {
        name: Some("example.org/base:1".parse::<Reference>().unwrap()),
        image,
    }
}

const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn build(
    base: Option<&BaseImage>,
    edits: &ConfigEdits,
    format: ImageFormat,
) -> Result<Image, AssembleError> {
    let platform = Platform::linux("arm64");
    assemble(
        base,
        vec![layer("code")],
        edits,
        &platform,
        format,
        Timestamp::UNIX_EPOCH,
    )
}

fn config_of(image: &Image) -> Value {
    image.config().to_json().unwrap()
}

#[test]
fn unknown_members_of_the_base_survive() {
    let base = base(
        ImageFormat::Oci,
        OCI_GZIP,
        &json!({
            "docker_version": "20.10",
            "container_config": {"Cmd": ["x"]},
            "vendor.example/key": {"b": [1, 2.5, null], "a": true},
            "config": {"Healthcheck": {"Test": ["NONE"]}, "OnBuild": null, "Shell": ["/bin/sh"]},
        }),
    );
    let made = config_of(&build(Some(&base), &ConfigEdits::default(), ImageFormat::Oci).unwrap());
    let before = base.image.config().to_json().unwrap();
    for name in ["docker_version", "container_config", "vendor.example/key"] {
        assert_eq!(made[name], before[name]);
    }
    for name in ["Healthcheck", "OnBuild", "Shell"] {
        assert_eq!(made["config"][name], before["config"][name]);
    }
}

#[test]
fn env_is_appended_or_replaced_in_place() {
    let config = json!({"config": {"Env": ["PATH=/bin", "LANG=C", "A=1"]}});
    let base = base(ImageFormat::Oci, OCI_GZIP, &config);
    let set = |text: &str| EnvEdit::Set(text.to_owned());
    let edits = ConfigEdits {
        env: vec![
            ("B".into(), set("2=2")),
            ("LANG".into(), set("en_GB.UTF-8")),
            ("PATH".into(), EnvEdit::Append(":/opt/bin".into())),
            ("A".into(), EnvEdit::Prepend("0".into())),
        ],
        ..ConfigEdits::default()
    };
    let image = build(Some(&base), &edits, ImageFormat::Oci).unwrap();
    assert_eq!(
        image.config().env,
        ["PATH=/bin:/opt/bin", "LANG=en_GB.UTF-8", "A=01", "B=2=2"]
    );
}

#[test]
fn a_new_entrypoint_takes_the_old_cmd_with_it() {
    let config = json!({"config": {"Entrypoint": ["/old"], "Cmd": ["old"]}});
    let base = base(ImageFormat::Oci, OCI_GZIP, &config);
    let made = |edits: ConfigEdits| {
        let image = build(Some(&base), &edits, ImageFormat::Oci).unwrap();
        (
            image.config().entrypoint.join(" "),
            image.config().cmd.join(" "),
        )
    };
    let word = |text: &str| Some(vec![text.to_owned()]);
    let default = ConfigEdits::default;
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(made(default()), pair("/old", "old"));
    assert_eq!(
        made(ConfigEdits {
            cmd: word("new"),
            ..default()
        }),
        pair("/old", "new")
    );
    assert_eq!(
        made(ConfigEdits {
            entrypoint: word("/new"),
            ..default()
        }),
        pair("/new", "")
    );
    let both = ConfigEdits {
        entrypoint: word("/new"),
        cmd: word("new"),
        ..default()
    };
    assert_eq!(made(both), pair("/new", "new"));
}

#[test]
fn every_media_type_is_of_the_chosen_format() {
    for (from, to) in [
        (ImageFormat::Oci, ImageFormat::DockerV2S2),
        (ImageFormat::DockerV2S2, ImageFormat::Oci),
    ] {
        let gzip = MediaType::Layer(from, Compression::Gzip);
        let base = base(from, gzip.as_str(), &json!({}));
        let image = build(Some(&base), &ConfigEdits::default(), to).unwrap();
        let Document::Manifest(manifest) =
            Document::parse(image.manifest().bytes().clone(), None).unwrap()
        else {
            panic!("not a manifest");
        };
        assert_eq!(manifest.media_type, MediaType::Manifest(to));
        assert_eq!(manifest.config.media_type, MediaType::Config(to));
        for layer in &manifest.layers {
            assert_eq!(layer.media_type, MediaType::Layer(to, Compression::Gzip));
            // V2S2 has no annotations anywhere.
            assert!(to == ImageFormat::Oci || layer.annotations.is_empty());
        }
        assert_eq!(
            manifest.annotations.is_empty(),
            to == ImageFormat::DockerV2S2
        );
        assert_eq!(
            manifest.layers[0].digest,
            base.image.layers()[0].descriptor.digest
        );
    }
}

#[test]
fn layers_that_v2s2_cannot_hold_are_refused() {
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        let base = base(ImageFormat::Oci, media_type, &json!({}));
        let error = build(
            Some(&base),
            &ConfigEdits::default(),
            ImageFormat::DockerV2S2,
        )
        .unwrap_err();
        assert!(error.to_string().contains(media_type), "{error}");
        assert!(build(Some(&base), &ConfigEdits::default(), ImageFormat::Oci).is_ok());
    }
    let edits = ConfigEdits {
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        ..ConfigEdits::default()
    };
    assert!(matches!(
        build(None, &edits, ImageFormat::DockerV2S2),
        Err(AssembleError::Annotation(_))
    ));
}

#[test]
fn history_tells_of_every_layer_whatever_the_base_says() {
    let step = |layer: bool| json!({"created_by": "x", "empty_layer": !layer});
    for (history, entries) in [
        (json!(null), 2),
        (json!([]), 2),
        (json!([step(true)]), 2),
        (json!([step(false), step(true), step(false)]), 4),
        (json!([step(false)]), 3),
        (json!([step(true), step(true)]), 2),
    ] {
        let base = base(ImageFormat::Oci, OCI_GZIP, &json!({"history": history}));
        let image = build(Some(&base), &ConfigEdits::default(), ImageFormat::Oci).unwrap();
        assert_eq!(image.config().history.len(), entries, "{history}");
        let told = image
            .config()
            .layer_history()
            .expect("one entry for each layer");
        assert_eq!(told[1].created_by.as_deref(), Some("tierce code"));
    }
}

#[test]
fn the_base_is_recorded() {
    let base = base(
        ImageFormat::Oci,
        OCI_GZIP,
        &json!({"config": {"Labels": {"x": "y"}}}),
    );
    for format in [ImageFormat::Oci, ImageFormat::DockerV2S2] {
        let image = build(Some(&base), &ConfigEdits::default(), format).unwrap();
        let labels = &image.config().labels;
        assert_eq!(
            labels["org.opencontainers.image.base.name"],
            "example.org/base:1"
        );
        let digest = base.image.digest().to_string();
        assert_eq!(labels["org.opencontainers.image.base.digest"], digest);
        assert_eq!(labels["x"], "y");
        if format == ImageFormat::Oci {
            let annotations = &image.manifest().annotations;
            assert_eq!(annotations["org.opencontainers.image.base.digest"], digest);
            assert!(!annotations.contains_key("of-the-base"));
        }
    }
}

/// A base's word on its own base would name layers that this image shares with neither.
#[test]
fn the_base_of_the_base_is_not_recorded() {
    let named = base(ImageFormat::Oci, OCI_GZIP, &json!({}));
    let middle = build(Some(&named), &ConfigEdits::default(), ImageFormat::Oci).unwrap();
    assert!(
        middle
            .config()
            .labels
            .contains_key("org.opencontainers.image.base.name")
    );
    let local = BaseImage {
        name: None,
        image: middle,
    };
    let image = build(Some(&local), &ConfigEdits::default(), ImageFormat::Oci).unwrap();
    let digest = local.image.digest().to_string();
    for marks in [&image.config().labels, &image.manifest().annotations] {
        assert!(!marks.contains_key("org.opencontainers.image.base.name"));
        assert_eq!(marks["org.opencontainers.image.base.digest"], digest);
    }
}

#[test]
fn from_scratch_the_config_is_complete() {
    let edits = ConfigEdits {
        entrypoint: Some(vec!["/app".into()]),
        exposed_ports: ["8080-8081".into(), "53/udp".into()].into(),
        user: Some("1000".into()),
        stop_signal: Some("SIGINT".into()),
        ..ConfigEdits::default()
    };
    let image = build(None, &edits, ImageFormat::DockerV2S2).unwrap();
    let code = layer("code");
    assert_eq!(
        config_of(&image),
        json!({
            "architecture": "arm64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": ["/app"],
                "ExposedPorts": {"53/udp": {}, "8080/tcp": {}, "8081/tcp": {}},
                "StopSignal": "SIGINT",
                "User": "1000",
            },
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tierce code"}],
            "rootfs": {"type": "layers", "diff_ids": [code.diff_id]},
        })
    );
}

/// The bytes are pinned: a change here moves the digest of every image.
#[test]
fn the_bytes_are_those_of_yesterday() {
    let base = base(
        ImageFormat::Oci,
        OCI_GZIP,
        &json!({"config": {"Env": ["PATH=/bin"]}}),
    );
    let edits = ConfigEdits {
        cmd: Some(vec!["app.handler".into()]),
        labels: [("b".into(), "2".into()), ("a".into(), "1".into())].into(),
        ..ConfigEdits::default()
    };
    let image = build(Some(&base), &edits, ImageFormat::DockerV2S2).unwrap();
    for _ in 0..100 {
        assert_eq!(
            build(Some(&base), &edits, ImageFormat::DockerV2S2).unwrap(),
            image
        );
    }
    let config = String::from_utf8(image.config().bytes().to_vec()).unwrap();
    assert!(config.starts_with(r#"{"architecture":"arm64","config":{"Cmd":["app.handler"],"Env":["PATH=/bin"],"Labels":{"a":"1","b":"2","#), "{config}");
    let manifest = String::from_utf8(image.manifest().bytes().to_vec()).unwrap();
    assert!(
        manifest.starts_with(r#"{"config":{"digest":"sha256:"#),
        "{manifest}"
    );
    assert!(manifest.ends_with(r#""mediaType":"application/vnd.docker.distribution.manifest.v2+json","schemaVersion":2}"#), "{manifest}");
    assert_eq!(
        image.digest().to_string(),
        "sha256:c21d58ec3919d7ffe10f86a4fa6811138bd04690e0deabcaaa1192bb9746c680"
    );
}

#[test]
fn an_index_names_each_platform() {
    let image = build(None, &ConfigEdits::default(), ImageFormat::Oci).unwrap();
    let index = assemble_index(std::slice::from_ref(&image), ImageFormat::Oci);
    let found = index.child(&Platform::linux("arm64")).unwrap();
    assert_eq!(found.digest, image.digest());
    assert_eq!(found.size, image.manifest().bytes().len() as u64);
    assert_eq!(index.media_type, MediaType::Index(ImageFormat::Oci));
}

#[test]
fn manifest_and_config_must_belong_together() {
    let image = build(None, &ConfigEdits::default(), ImageFormat::Oci).unwrap();
    let other = base(ImageFormat::Oci, OCI_GZIP, &json!({}));
    let content = |_: &Descriptor| Content::Memory(Bytes::new());
    let swapped = Image::new(
        image.manifest().clone(),
        other.image.config().clone(),
        content,
    );
    assert!(swapped.is_err());
    let mut short = image.config().to_json().unwrap();
    short["rootfs"]["diff_ids"] = json!([]);
    let short = Raw::from_json(&short, MediaType::Config(ImageFormat::Oci)).unwrap();
    let manifest = Raw::from_manifest(Manifest {
        config: short.descriptor().clone(),
        ..Manifest::clone(image.manifest())
    });
    let error = Image::new(manifest, short, content).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the manifest has 1 layers, but the config has 0 diff ids"
    );
}
