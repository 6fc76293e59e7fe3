//! Every place, to and from every other.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::common::*;
use bytes::Bytes;
use serde_json::Value;
use tierce_image::{Artifact, Content, Facts, Tally, read_artifact};
use tierce_oci::{Digest, ImageFormat, Selector};
use tierce_store::{
    ArchiveKind, ArchiveLayout, ArchiveSink, DockerArchive, Layout, LayoutError, LayoutSink,
    LocalStore, Selected, StoreError,
};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn artifact() -> Artifact {
    image(ImageFormat::DockerV2S2).to_artifact()
}

#[test]
fn an_image_goes_from_every_place_to_every_other_unchanged() {
    let files = Files::default();
    for format in [ImageFormat::DockerV2S2, ImageFormat::Oci] {
        let built = image(format).to_artifact();
        let expected = read_all(&built, &files).unwrap();
        for first in PLACES {
            let directory = tempfile::tempdir().unwrap();
            let report = first.write(directory.path(), &built, &files).unwrap();
            assert_eq!(report.sent.blobs, 3, "{first:?}: two layers and a config");
            let read = first.read(directory.path());
            assert_eq!(read.document, built.document, "{first:?}");
            for second in PLACES {
                let other = tempfile::tempdir().unwrap();
                second.write(other.path(), &read, &files).unwrap();
                let arrived = second.read(other.path());
                assert_eq!(arrived.document, built.document, "{first:?} {second:?}");
                assert_eq!(read_all(&arrived, &files).unwrap(), expected);
            }
        }
    }
}

#[test]
fn a_layer_in_pieces_goes_everywhere() {
    let files = Files::default();
    for format in [ImageFormat::DockerV2S2, ImageFormat::Oci] {
        let in_memory = image(format);
        let expected = read_all(&in_memory.to_artifact(), &files).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let layers = packed(in_memory.layers().to_vec(), cache.path(), 2);
        let built = image_of(layers, "arm64", format).to_artifact();
        assert_eq!(read_all(&built, &files).unwrap(), expected);
        for first in PLACES {
            let directory = tempfile::tempdir().unwrap();
            let report = first.write(directory.path(), &built, &files).unwrap();
            let moved = (report.linked.blobs, report.sent.blobs);
            let store = first == Place::Store;
            assert_eq!(moved, if store { (2, 1) } else { (0, 3) }, "{first:?}");
            let read = first.read(directory.path());
            assert_eq!(read.document, built.document, "{first:?}");
            for second in PLACES {
                let other = tempfile::tempdir().unwrap();
                second.write(other.path(), &read, &files).unwrap();
                let arrived = second.read(other.path());
                assert_eq!(arrived.document, built.document, "{first:?} {second:?}");
                assert_eq!(read_all(&arrived, &files).unwrap(), expected);
            }
        }
    }
}

#[test]
fn an_index_goes_wherever_it_can() {
    let files = Files::default();
    for format in [ImageFormat::DockerV2S2, ImageFormat::Oci] {
        let built = index(format);
        let expected = read_all(&built, &files).unwrap();
        for place in PLACES {
            let directory = tempfile::tempdir().unwrap();
            let written = place.write(directory.path(), &built, &files);
            if place == Place::DockerArchive {
                let error = chain(&written.unwrap_err());
                assert!(
                    error.contains("is an image index, and a docker-archive"),
                    "{error}"
                );
                assert!(names(directory.path()).is_empty());
                continue;
            }
            assert_eq!(written.unwrap().manifests, 3);
            let read = place.read(directory.path());
            assert_eq!(read.document, built.document);
            assert_eq!(read.children.len(), 2);
            assert_eq!(read_all(&read, &files).unwrap(), expected);
        }
    }
}

#[test]
fn a_layout_has_what_the_specification_asks_for_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let built = index(ImageFormat::Oci);
    Place::Layout
        .write(directory.path(), &built, &Files::default())
        .unwrap();
    let root = Place::Layout.path(directory.path());
    assert_eq!(names(&root), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(
        json(&root.join("oci-layout"))["imageLayoutVersion"],
        "1.0.0"
    );
    let listing = json(&root.join("index.json"));
    let manifests = listing["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 1, "children are not listed");
    assert_eq!(manifests[0]["digest"], built.document.digest().to_string());
    assert_eq!(
        manifests[0]["annotations"]["org.opencontainers.image.ref.name"],
        "1.0"
    );
    for name in names(&root.join("blobs/sha256")) {
        let path = root.join("blobs/sha256").join(&name);
        assert_eq!(Digest::of(&fs::read(&path).unwrap()).hex(), name);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444);
    }
}

#[test]
fn without_a_tag_only_the_root_is_listed() {
    let directory = tempfile::tempdir().unwrap();
    let (files, built) = (Files::default(), index(ImageFormat::Oci));
    for _ in 0..2 {
        let sink = LayoutSink::create(directory.path()).unwrap();
        run(put(&built, None, &files, &sink)).unwrap();
    }
    let layout = Layout::open(directory.path()).unwrap();
    assert_eq!(layout.entries().unwrap().len(), 1);
    let found = layout.find(None).unwrap();
    assert_eq!(found.digest, built.document.digest());
    assert!(found.annotations.is_empty());

    let other = image(ImageFormat::Oci).to_artifact();
    let sink = LayoutSink::create(directory.path())
        .unwrap()
        .named("ghcr.io/team/hello:2");
    run(put(&other, Some(&tag("2")), &files, &sink)).unwrap();
    for name in ["ghcr.io/team/hello:2", "2"] {
        let found = layout.find(Some(name)).unwrap();
        assert_eq!(found.digest, other.document.digest());
    }
    let error = chain(&layout.find(None).unwrap_err());
    assert!(
        error.contains("one must be named: `sha256:") && error.contains("`ghcr.io/team/hello:2`"),
        "{error}"
    );
}

#[test]
fn writing_again_sends_nothing_and_moves_the_tag() {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::default();
    for place in [Place::Layout, Place::Store] {
        let path = directory.path();
        let first = artifact();
        place.write(path, &first, &files).unwrap();
        let again = place.write(path, &first, &files).unwrap();
        assert_eq!(again.sent, Tally::default());
        assert_eq!(again.up_to_date, place == Place::Store);

        let second = image_of(
            vec![layer("hello.txt", b"hello")],
            "arm64",
            ImageFormat::DockerV2S2,
        )
        .to_artifact();
        let report = place.write(path, &second, &files).unwrap();
        assert_eq!((report.already_there.blobs, report.sent.blobs), (1, 1));
        assert_eq!(place.read(path).document, second.document);
    }
}

#[test]
fn a_docker_archive_names_every_layer_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = Place::DockerArchive.path(directory.path());
    let built = image(ImageFormat::DockerV2S2);
    Place::DockerArchive
        .write(directory.path(), &built.to_artifact(), &Files::default())
        .unwrap();
    let unpacked = directory.path().join("unpacked");
    tar::Archive::new(fs::File::open(&path).unwrap())
        .unpack(&unpacked)
        .unwrap();
    let images = json(&unpacked.join("manifest.json"));
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert_eq!(images[0]["RepoTags"][0], "name:1.0");
    let layers = images[0]["Layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3);
    assert_eq!(layers[0], layers[2]);
    for (name, descriptor) in layers.iter().chain([&images[0]["Config"]]).zip(
        built
            .manifest()
            .layers
            .iter()
            .chain([&built.manifest().config]),
    ) {
        let bytes = fs::read(unpacked.join(name.as_str().unwrap())).unwrap();
        assert_eq!(Digest::of(&bytes), descriptor.digest);
    }
    let annotations = &json(&unpacked.join("index.json"))["manifests"][0]["annotations"];
    assert_eq!(
        annotations["io.containerd.image.name"],
        "docker.io/library/name:1.0"
    );
    assert_eq!(annotations["org.opencontainers.image.ref.name"], "1.0");

    let archive = DockerArchive::open(&path).unwrap();
    let plain = archive.select_plain(None).unwrap();
    assert_eq!(plain.config, built.config().bytes());
    assert_eq!(plain.layers.len(), 3);
    assert!(plain.layers[1].is_gzip().unwrap());
    let error = archive.select(Some(&"other".parse().unwrap())).unwrap_err();
    assert!(error.to_string().ends_with("it has `name:1.0`"), "{error}");
}

#[test]
fn an_archive_is_the_same_bytes_each_time_and_replaces_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let (files, built) = (Files::default(), artifact());
    for place in [Place::OciArchive, Place::DockerArchive] {
        let path = place.path(directory.path());
        place.write(directory.path(), &built, &files).unwrap();
        let first = fs::read(&path).unwrap();
        let link = directory.path().join("link");
        fs::write(&path, b"something else").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        place.write(directory.path(), &built, &files).unwrap();
        assert_eq!(fs::read(&link).unwrap(), first);
        fs::remove_file(&link).unwrap();
        assert_eq!(first.len() % 512, 0);
    }
    assert_eq!(names(directory.path()), ["docker.tar", "oci.tar"]);

    for target in ["/dev/null", directory.path().to_str().unwrap()] {
        let error = ArchiveSink::create(target, ArchiveKind::Oci(None)).unwrap_err();
        assert!(
            error.to_string().ends_with("is not a regular file"),
            "{error}"
        );
    }
    let missing = directory.path().join("missing/oci.tar");
    let error = ArchiveSink::create(missing, ArchiveKind::Oci(None)).unwrap_err();
    let shown = chain(&error);
    assert!(
        shown.ends_with("missing`: No such file or directory (os error 2)"),
        "{shown}"
    );
}

#[test]
fn an_oci_archive_is_found_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("oci.tar");
    let built = artifact();
    for (kind, written, read) in [
        (ArchiveKind::Oci(Some("ghcr.io/a/b:3".into())), None, "3"),
        (ArchiveKind::Oci(None), Some(tag("4")), "4"),
    ] {
        let sink = ArchiveSink::create(&path, kind).unwrap();
        run(put(&built, written.as_ref(), &Files::default(), &sink)).unwrap();
        let archive = ArchiveLayout::open(&path).unwrap();
        for name in [Some(read), None] {
            let found = archive.find(name).unwrap();
            assert_eq!(found.digest, built.document.digest());
        }
        let error = chain(&archive.find(Some("5")).unwrap_err());
        assert!(error.contains("holds no image named `5`"), "{error}");
    }
}

#[test]
fn the_store_notes_where_layers_are_and_keeps_everything_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut built = artifact();
    let mut files = Files::default();
    let origin: tierce_oci::Repository = "public.ecr.aws/lambda/python".parse().unwrap();
    for blob in &mut built.blobs {
        let Content::Memory(bytes) = blob.content.clone() else {
            panic!("made in memory")
        };
        files.origins.insert(blob.descriptor.digest, bytes);
        blob.content = Content::Origin(origin.clone());
    }
    let report = Place::Store
        .write(directory.path(), &built, &files)
        .unwrap();
    assert_eq!((report.noted.blobs, report.sent.blobs), (2, 1));
    let root = Place::Store.path(directory.path());
    let mut kept = [
        built.document.digest().hex(),
        built.blobs[3].descriptor.digest.hex(),
    ];
    kept.sort();
    assert_eq!(
        names(&root.join("blobs/sha256")),
        kept,
        "manifest and config"
    );
    assert!(names(&root.join("tmp")).is_empty());

    let read = Place::Store.read(directory.path());
    assert_eq!(read.blobs[0].content, Content::Origin(origin));
    assert!(matches!(read.blobs[3].content, Content::File { .. }));
    let again = Place::Store
        .write(directory.path(), &built, &files)
        .unwrap();
    assert!(again.up_to_date);

    let complete = tempfile::tempdir().unwrap();
    let report = Place::Layout.write(complete.path(), &read, &files).unwrap();
    assert_eq!(report.sent.blobs, 3);
    read_all(&Place::Layout.read(complete.path()), &Files::default()).unwrap();

    // A damaged record is like none: the layer has no known place, and reading it says so.
    for record in names(&root.join("origins/sha256")) {
        fs::write(root.join("origins/sha256").join(record), b"{").unwrap();
    }
    let read = Place::Store.read(directory.path());
    assert!(matches!(read.blobs[0].content, Content::File { .. }));
    let error = read_all(&read, &files).unwrap_err();
    assert!(error.contains("could not read `"), "{error}");
    let report = Place::Store
        .write(directory.path(), &built, &files)
        .unwrap();
    assert_eq!(report.noted.blobs, 2);
}

#[test]
fn the_store_lists_removes_and_collects() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path().join("store")).unwrap();
    let files = Files::default();
    let shared = layer("shared", b"shared");
    let format = ImageFormat::DockerV2S2;
    let one = image_of(vec![shared.clone(), layer("one", b"1")], "arm64", format);
    let two = image_of(vec![shared.clone(), layer("two", b"2")], "arm64", format);
    let facts = Facts {
        uncompressed_size: 7,
        entries: 1,
    };
    for (name, version, image) in [
        ("hello", "1", &one),
        ("hello", "2", &two),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/x",
            "1",
            &two,
        ),
    ] {
        let sink = store.sink(&name.parse().unwrap()).unwrap();
        run(put(
            &image.to_artifact(),
            Some(&tag(version)),
            &files,
            &sink,
        ))
        .unwrap();
        assert!(matches!(store.collect_garbage(), Err(StoreError::InUse(_))));
        drop(sink);
        for layer in image.layers() {
            store
                .record_facts(&layer.descriptor.digest, &facts)
                .unwrap();
        }
    }
    let listed: Vec<String> = store
        .list()
        .unwrap()
        .iter()
        .map(|image| format!("{}:{}", image.name, image.tag))
        .collect();
    assert_eq!(
        listed,
        [
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/x:1",
            "hello:1",
            "hello:2"
        ]
    );
    assert_eq!(store.collect_garbage().unwrap().blobs, 0);

    let hello = "hello".parse().unwrap();
    assert_eq!(store.remove(&hello, Some(&tag("1"))).unwrap(), 1);
    let error = store
        .remove(&hello, Some(&tag("1")))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "the store has no image `hello:1`; `hello` has `2`");
    let error = store.image(&"other".parse().unwrap()).find(&tag("1"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no image `other`; it has `1234"), "{error}");
    let garbage = store.collect_garbage().unwrap();
    assert_eq!(
        garbage.blobs, 3,
        "manifest, config and the layer of its own"
    );
    assert_eq!(
        store.facts(&one.layers()[1].descriptor.digest).unwrap(),
        None
    );
    assert_eq!(store.facts(&shared.descriptor.digest).unwrap(), Some(facts));

    assert_eq!(store.remove(&hello, None).unwrap(), 1);
    assert_eq!(
        store.collect_garbage().unwrap().blobs,
        0,
        "the other name has it"
    );
    let source = store.image(
        &"123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/x"
            .parse()
            .unwrap(),
    );
    let read = run(read_artifact(&source, &Selector::Tag(tag("1")))).unwrap();
    read_all(&read, &files).unwrap();
}

#[test]
fn a_directory_of_other_things_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("notes.txt"), b"mine").unwrap();
    assert!(matches!(
        LayoutSink::create(directory.path()),
        Err(LayoutError::NotEmpty(_))
    ));
    assert!(matches!(
        Layout::open(directory.path()),
        Err(LayoutError::NotALayout(_))
    ));
    assert!(matches!(
        LocalStore::open(directory.path()),
        Err(StoreError::NotAStore(_))
    ));
    assert_eq!(names(directory.path()), ["notes.txt"]);
    let missing = directory.path().join("missing");
    assert!(matches!(
        Layout::open(&missing),
        Err(LayoutError::Missing(_))
    ));

    fs::write(
        directory.path().join("oci-layout"),
        br#"{"imageLayoutVersion":"2.0.0"}"#,
    )
    .unwrap();
    let error = Layout::open(directory.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("has the version `2.0.0`; only 1.0.0 is known"),
        "{error}"
    );

    let store = directory.path().join("store");
    LocalStore::open(&store).unwrap();
    fs::write(store.join("version"), "9\n").unwrap();
    assert!(matches!(
        LocalStore::open(&store),
        Err(StoreError::OtherVersion { version, .. }) if version == "9"
    ));
}

#[test]
fn a_selected_image_of_several_is_the_one_that_was_named() {
    // Two images in one archive, as `docker save a b` makes it.
    let directory = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut append = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    for name in ["one", "two"] {
        append(&format!("{name}.json"), name.as_bytes());
        append(&format!("{name}/layer.tar"), Bytes::from(name).as_ref());
    }
    append(
        "manifest.json",
        br#"[{"Config":"one.json","RepoTags":["one:latest","team/one:1"],"Layers":["one/layer.tar"]},
            {"Config":"two.json","RepoTags":null,"Layers":["one/layer.tar","two/layer.tar"]}]"#,
    );
    let path = directory.path().join("docker.tar");
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    let archive = DockerArchive::open(&path).unwrap();
    assert!(archive.layout().is_none());
    for reference in ["one", "docker.io/library/one:latest", "team/one:1"] {
        let Selected::Plain(image) = archive.select(Some(&reference.parse().unwrap())).unwrap()
        else {
            panic!("there is no manifest")
        };
        assert_eq!(image.config, "one");
        assert_eq!(image.repo_tags, ["one:latest", "team/one:1"]);
        assert!(!image.layers[0].is_gzip().unwrap());
    }
    let error = archive.select(None).unwrap_err().to_string();
    assert!(
        error.ends_with("holds 2 images, one must be named: `one:latest`, `team/one:1`"),
        "{error}"
    );
    assert!(archive.select(Some(&"one:2".parse().unwrap())).is_err());
}
