//! Layouts and archives made by somebody who means harm, or by a bad disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::common::*;
use serde_json::json;
use tierce_image::{Artifact, Content, ImageSource as _, read_artifact};
use tierce_oci::{Digest, ImageFormat, Selector};
use tierce_store::{ArchiveError, ArchiveLayout, DockerArchive, Layout, LocalStore};

fn artifact() -> Artifact {
    image(ImageFormat::Oci).to_artifact()
}

fn blob(directory: &Path, digest: &Digest) -> std::path::PathBuf {
    directory.join("blobs/sha256").join(digest.hex())
}

/// A tar of raw headers, for what no library writes.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(mut self, kind: u8, name: &str, link: &str, bytes: &[u8]) -> Self {
        self.header(kind, name, link, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.add(b'0', name, "", bytes)
    }

    fn header(&mut self, kind: u8, name: &str, link: &str, size: u64) {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn write(mut self, path: &Path) {
        self.0.extend_from_slice(&[0; 1024]);
        fs::write(path, self.0).unwrap();
    }
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}

const ONE_IMAGE: &[u8] = br#"[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar"]}]"#;

fn open(tar: Tar) -> Result<tierce_store::PlainImage, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive.tar");
    tar.write(&path);
    let image = DockerArchive::open(&path).and_then(|archive| archive.select_plain(None));
    image
        .map(|mut image| {
            // Read now, because the directory goes.
            for layer in &mut image.layers {
                let bytes = fs::read(&layer.path).unwrap();
                let start = usize::try_from(layer.offset).unwrap();
                let end = start + usize::try_from(layer.size).unwrap();
                layer.name = String::from_utf8_lossy(&bytes[start..end]).into_owned();
            }
            image
        })
        .map_err(|error| chain(&error).replace(&path.display().to_string(), "FILE"))
}

fn first_layer(tar: Tar) -> Result<String, String> {
    let image = open(tar.file("manifest.json", ONE_IMAGE).file("c.json", b"{}"))?;
    Ok(image.layers[0].name.clone())
}

#[test]
fn a_layer_may_be_a_link_within_the_archive_and_nowhere_else() {
    let shared = || Tar::default().file("b/layer.tar", b"shared");
    for (kind, target) in [
        (b'2', "../b/layer.tar"),
        (b'2', ".././b//layer.tar"),
        (b'1', "b/layer.tar"),
        (b'1', "./b/layer.tar"),
    ] {
        let tar = shared().add(kind, "a/layer.tar", target, b"");
        assert_eq!(first_layer(tar).unwrap(), "shared", "{target}");
    }
    for (kind, target, reason) in [
        (b'2', "/etc/shadow", "leads out of the archive"),
        (b'2', "../../etc/shadow", "leads out of the archive"),
        (b'1', "../b/layer.tar", "leads out of the archive"),
        (b'2', "../c/layer.tar", "a link to nothing"),
        (b'2', "layer.tar", "a link in a circle"),
        (b'2', "..", "a link to nothing"),
        (b'3', "", "a special file"),
        (b'5', "", "a directory"),
        (b'6', "", "a special file"),
        (b'S', "", "a sparse file"),
    ] {
        let error = first_layer(shared().add(kind, "a/layer.tar", target, b"")).unwrap_err();
        assert!(
            error.starts_with("`a/layer.tar` in the archive `FILE` is") && error.contains(reason),
            "{target}: {error}"
        );
    }
}

#[test]
fn names_lead_nowhere_but_into_the_archive() {
    let evil = br#"[{"Config":"c.json","RepoTags":null,"Layers":["../../etc/passwd"]}]"#;
    let tar = Tar::default()
        .file("../../etc/passwd", b"climbs")
        .file("/etc/passwd", b"absolute")
        .file("manifest.json", evil)
        .file("c.json", b"{}");
    let error = open(tar).unwrap_err();
    assert_eq!(
        error,
        "`FILE` has no `../../etc/passwd`: it is not a complete docker-archive"
    );
    let tar = Tar::default().file("./a/../a/layer.tar", b"the same name");
    assert_eq!(first_layer(tar).unwrap(), "the same name");
}

#[test]
fn a_name_that_occurs_twice_is_the_last_or_an_error() {
    let tar = Tar::default()
        .file("a/layer.tar", b"first")
        .file("a/layer.tar", b"last");
    assert_eq!(first_layer(tar).unwrap(), "last");
    let tar = Tar::default()
        .file("a/layer.tar", b"x")
        .file("./manifest.json", b"[]");
    let error = first_layer(tar).unwrap_err();
    assert_eq!(
        error,
        "the archive `FILE` has more than one `manifest.json`"
    );
}

#[test]
fn extended_headers_are_read_by_their_length() {
    let long = format!("a/{}", "x".repeat(300));
    let layers = json!([{"Config": "c.json", "Layers": [long]}]).to_string();
    let rest = |tar: Tar| {
        tar.file("manifest.json", layers.as_bytes())
            .file("c.json", b"{}")
    };
    let tar = Tar::default()
        .add(b'x', "x", "", &pax(&[("path", long.as_bytes())]))
        .file("short", b"pax");
    assert_eq!(open(rest(tar)).unwrap().layers[0].name, "pax");
    let tar = Tar::default()
        .add(b'L', "././@LongLink", "", format!("{long}\0").as_bytes())
        .file("short", b"gnu");
    assert_eq!(open(rest(tar)).unwrap().layers[0].name, "gnu");

    // A value with a newline in it is one value, whatever stands after the newline.
    let capability = b"x\n19 path=elsewhere\n";
    let tar = Tar::default()
        .add(b'x', "x", "", &pax(&[("SCHILY.xattr.user.x", capability)]))
        .file("a/layer.tar", b"here");
    assert_eq!(first_layer(tar).unwrap(), "here");

    // The size of the record counts, and the one in the header is ignored.
    let mut tar = Tar::default().add(b'x', "x", "", &pax(&[("size", b"5")]));
    tar.header(b'0', "a/layer.tar", "", 0);
    tar.0.extend_from_slice(b"sized");
    tar.pad();
    assert_eq!(first_layer(tar).unwrap(), "sized");

    let sparse = pax(&[("GNU.sparse.major", b"1"), ("path", b"a/layer.tar")]);
    let tar = Tar::default().add(b'x', "x", "", &sparse).file("y", b"z");
    assert!(first_layer(tar).unwrap_err().contains("a sparse file"));

    for records in [
        &b"path=x\n"[..],
        b"99 path=x\n",
        b"3 path=x\n",
        b"9 path=xy",
        b"0 path=x\n",
        b"7 pathx\n",
        b"-9 path=x\n",
        b"11 size=-1\n",
        b"18446744073709551616 path=x\n",
    ] {
        let tar = Tar::default().add(b'x', "x", "", records).file("y", b"z");
        let error = first_layer(tar).unwrap_err();
        assert!(error.contains("extended header is malformed"), "{error}");
    }
    // One that a member skips does not reach the next.
    let tar = Tar::default()
        .add(b'x', "x", "", &pax(&[("path", b"../climbs")]))
        .file("y", b"z")
        .file("a/layer.tar", b"untouched");
    assert_eq!(first_layer(tar).unwrap(), "untouched");
}

#[test]
fn damaged_archives_are_errors_that_say_where() {
    let whole = || Tar::default().file("a/layer.tar", &[7; 2000]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "it is too short at byte 0"),
        (b"hello".to_vec(), "it is too short at byte 0"),
        (
            [7; 5120].to_vec(),
            "a header has a wrong checksum at byte 0",
        ),
        (
            whole().0[..1024].to_vec(),
            "is cut off: `a/layer.tar` should have 2000 bytes",
        ),
        (whole().0[..512].to_vec(), "is cut off: `a/layer.tar`"),
        (
            [&whole().0[..], &[1; 100]].concat(),
            "it is cut off at byte 2560",
        ),
        (
            [&whole().0[..], &[1; 512]].concat(),
            "wrong checksum at byte 2560",
        ),
        (b"\x1f\x8b\x08\0".repeat(200), "is compressed with gzip"),
        (b"\x28\xb5\x2f\xfd".repeat(200), "is compressed with zstd"),
        (b"\xfd7zXZ\0".repeat(200), "is compressed with xz"),
        (b"BZh9".repeat(200), "is compressed with bzip2"),
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive.tar");
    for (bytes, reason) in cases {
        fs::write(&path, bytes).unwrap();
        let error = DockerArchive::open(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(ArchiveLayout::open(&path).is_err());
    }
    let mut tar = Tar::default();
    tar.header(b'0', "a/layer.tar", "", (1 << 33) - 1);
    let error = first_layer(tar).unwrap_err();
    assert!(error.contains("is cut off"), "{error}");
    // Sizes in base 256 can be close to 2^64.
    let mut tar = Tar::default();
    tar.header(b'0', "a/layer.tar", "", 0);
    tar.0[124..136].copy_from_slice(&[0x80, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(&tar.0);
    header.set_cksum();
    tar.0 = header.as_bytes().to_vec();
    assert!(first_layer(tar).unwrap_err().contains("is cut off"));
    let error = DockerArchive::open(directory.path()).unwrap_err();
    assert!(chain(&error).ends_with("not a regular file"));
}

#[test]
fn archives_of_something_else_say_what_is_missing() {
    for (tar, reason) in [
        (
            Tar::default().file("x", b""),
            "`FILE` has no `manifest.json`: it is not a docker-archive",
        ),
        (
            Tar::default().file("manifest.json", b"{"),
            "is not a list of images",
        ),
        (
            Tar::default().file("manifest.json", b"[{}]"),
            "is not a list of images",
        ),
        (
            Tar::default().file("manifest.json", b"[]"),
            "holds 0 images, one must be named: none",
        ),
        (
            Tar::default()
                .file("manifest.json", ONE_IMAGE)
                .file("a/layer.tar", b""),
            "`FILE` has no `c.json`: it is not a complete docker-archive",
        ),
    ] {
        let error = open(tar).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let huge = vec![b' '; (8 << 20) + 1];
    let tar = Tar::default()
        .file("manifest.json", ONE_IMAGE)
        .file("a/layer.tar", b"")
        .file("c.json", &huge);
    let error = open(tar).unwrap_err();
    assert!(
        error.contains("`c.json` in the archive `FILE` has 8388609 bytes"),
        "{error}"
    );

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("oci.tar");
    Tar::default().file("index.json", b"{}").write(&path);
    let error = ArchiveLayout::open(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("has no `oci-layout`: it is not an OCI archive"),
        "{error}"
    );
    let version = br#"{"imageLayoutVersion":"1.1"}"#;
    Tar::default()
        .file("index.json", b"{}")
        .file("oci-layout", version)
        .write(&path);
    assert!(matches!(
        ArchiveLayout::open(&path),
        Err(ArchiveError::OtherVersion { version, .. }) if version == "1.1"
    ));
}

#[test]
fn a_lying_index_json_leads_to_no_manifest() {
    let directory = tempfile::tempdir().unwrap();
    let built = artifact();
    Place::Layout
        .write(directory.path(), &built, &Files::default())
        .unwrap();
    let root = Place::Layout.path(directory.path());
    let digest = built.document.digest();
    let read = |selector: Selector| {
        run(Layout::open(&root).unwrap().manifest(&selector)).map_err(|error| chain(&error))
    };
    let by_tag = || read(Selector::Tag(tag("1.0")));
    let write = |text: &str| fs::write(root.join("index.json"), text).unwrap();
    let entry = |media_type: &str, digest: &str| {
        json!({"schemaVersion": 2, "manifests": [{"mediaType": media_type, "digest": digest, "size": 1,
            "annotations": {"org.opencontainers.image.ref.name": "1.0"}}]})
        .to_string()
    };
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let docker = "application/vnd.docker.distribution.manifest.v2+json";

    write("not json");
    assert!(by_tag().unwrap_err().contains("`index.json` is not JSON"));
    assert!(read(Selector::Digest(digest)).is_err());
    write(&entry(oci, "sha256:../../../../etc/passwd"));
    assert!(
        by_tag()
            .unwrap_err()
            .contains("entry 1 of `index.json` is not a descriptor")
    );
    write(&entry(docker, &digest.to_string()));
    assert!(by_tag().unwrap_err().contains("served as"));
    write(&entry(oci, &built.blobs[0].descriptor.digest.to_string()));
    assert!(by_tag().unwrap_err().contains("is not a manifest"));
    write(&entry(oci, &Digest::of(b"nowhere").to_string()));
    assert!(by_tag().unwrap_err().contains("has no manifest sha256:"));
    fs::write(root.join("index.json"), vec![b' '; (4 << 20) + 1]).unwrap();
    assert!(
        by_tag()
            .unwrap_err()
            .contains("`index.json` has more than 4194304 bytes")
    );
    let path = directory.path().join("large.tar");
    Tar::default()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", &vec![b' '; (4 << 20) + 1])
        .write(&path);
    assert!(matches!(
        ArchiveLayout::open(&path),
        Err(ArchiveError::TooLarge { member, limit: 4_194_304, .. }) if member == "index.json"
    ));
    fs::remove_file(root.join("index.json")).unwrap();
    assert!(by_tag().unwrap_err().contains("index.json`: No such file"));

    write(&entry(oci, &digest.to_string()));
    assert_eq!(by_tag().unwrap(), built.document);
    let path = blob(&root, &digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(
        by_tag()
            .unwrap_err()
            .contains("is corrupted: its bytes have the digest")
    );
    fs::write(&path, vec![b' '; (4 << 20) + 1]).unwrap();
    assert!(
        by_tag()
            .unwrap_err()
            .contains("more than 4194304 are refused")
    );
}

#[test]
fn what_is_not_a_file_is_not_read_and_a_link_is_believed_no_more_than_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let built = artifact();
    Place::Layout
        .write(directory.path(), &built, &Files::default())
        .unwrap();
    let root = Place::Layout.path(directory.path());
    let path = blob(&root, &built.blobs[0].descriptor.digest);
    let read = || read_all(&Place::Layout.read(directory.path()), &Files::default());

    fs::rename(&path, directory.path().join("aside")).unwrap();
    symlink(directory.path().join("aside"), &path).unwrap();
    read().unwrap();
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(read().unwrap_err().contains("could not read blob sha256:"));
    fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    assert!(read().unwrap_err().contains("could not read `"));

    // Writing puts the right file in its place.
    Place::Layout
        .write(directory.path(), &built, &Files::default())
        .unwrap();
    read().unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
}

#[test]
fn a_damaged_blob_is_noticed_when_read_and_replaced_when_written() {
    let built = artifact();
    let files = Files::default();
    for place in [Place::Layout, Place::Store] {
        let directory = tempfile::tempdir().unwrap();
        place.write(directory.path(), &built, &files).unwrap();
        let digest = built.blobs[1].descriptor.digest;
        let path = blob(&place.path(directory.path()), &digest);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [&flipped[..], &good[..good.len() / 2], b""] {
            fs::write(&path, bad).unwrap();
            let error = read_all(&place.read(directory.path()), &files).unwrap_err();
            assert!(
                error.contains(&format!("could not read blob {digest}")),
                "{error}"
            );
            let report = place.write(directory.path(), &built, &files).unwrap();
            assert_eq!(report.sent.blobs, 1, "{place:?}");
            assert_eq!(fs::read(&path).unwrap(), good);
        }
        // Right bytes with another date are found right, and not written again.
        fs::write(&path, &good).unwrap();
        let report = place.write(directory.path(), &built, &files).unwrap();
        assert_eq!(report.sent.blobs, 0);
        read_all(&place.read(directory.path()), &files).unwrap();
    }
}

#[test]
fn bit_rot_in_the_store_heals_once_it_was_read() {
    let (built, files) = (artifact(), Files::default());
    let directory = tempfile::tempdir().unwrap();
    let root = Place::Store.path(directory.path());
    let write = || {
        Place::Store
            .write(directory.path(), &built, &files)
            .unwrap()
    };
    write();
    for at in [&built.blobs[1], &built.blobs[3]] {
        let path = blob(&root, &at.descriptor.digest);
        let good = fs::read(&path).unwrap();
        rot(&path, 20);
        // Nobody has looked yet: an unchanged build costs a look at names, sizes and times.
        assert!(write().up_to_date);
        read_all(&Place::Store.read(directory.path()), &files).unwrap_err();
        let report = write();
        assert_eq!((report.up_to_date, report.sent.blobs), (false, 1));
        assert_eq!(fs::read(&path).unwrap(), good);
        read_all(&Place::Store.read(directory.path()), &files).unwrap();
        assert!(write().up_to_date);
    }

    let path = blob(&root, &built.document.digest());
    rot(&path, 20);
    let report = write();
    assert_eq!((report.up_to_date, report.sent.blobs), (false, 0));
    assert_eq!(fs::read(&path).unwrap(), built.document.bytes()[..]);
    assert!(write().up_to_date);
}

#[test]
fn bit_rot_in_the_store_leads_to_the_origin_where_there_is_one() {
    let (mut built, mut files) = (artifact(), Files::default());
    let directory = tempfile::tempdir().unwrap();
    let root = Place::Store.path(directory.path());
    let held = built.clone();
    let origin = Content::Origin("ghcr.io/team/base".parse().unwrap());
    let layer = &mut built.blobs[1];
    let Content::Memory(bytes) = std::mem::replace(&mut layer.content, origin.clone()) else {
        panic!("made in memory")
    };
    let digest = layer.descriptor.digest;
    files.origins.insert(digest, bytes);
    // First only its origin is known, then its bytes come.
    Place::Store
        .write(directory.path(), &built, &files)
        .unwrap();
    let store = LocalStore::open(&root).unwrap();
    let sink = store.sink(&"name".parse().unwrap()).unwrap();
    run(send_one(
        &sink,
        &held.blobs[1].descriptor,
        &held.blobs[1].content,
        &files,
    ))
    .unwrap();
    let content = || Place::Store.read(directory.path()).blobs[1].content.clone();
    assert!(matches!(content(), Content::File { .. }));
    rot(&blob(&root, &digest), 20);
    read_all(&Place::Store.read(directory.path()), &files).unwrap_err();
    assert_eq!(content(), origin);
    read_all(&Place::Store.read(directory.path()), &files).unwrap();
}

#[test]
fn a_blob_that_is_not_what_was_promised_never_arrives() {
    for place in PLACES {
        let directory = tempfile::tempdir().unwrap();
        let mut built = artifact();
        let Content::Memory(bytes) = &built.blobs[1].content else {
            panic!("made in memory")
        };
        for wrong in [
            bytes.slice(1..),
            [&bytes[..], b"x"].concat().into(),
            noise(bytes.len()).into(),
        ] {
            built.blobs[1].content = Content::Memory(wrong);
            let error = place
                .write(directory.path(), &built, &Files::default())
                .unwrap_err();
            assert!(chain(&error).contains("could not read blob"), "{error}");
            let path = place.path(directory.path());
            match place {
                Place::OciArchive | Place::DockerArchive => {
                    assert!(names(directory.path()).is_empty());
                }
                Place::Layout => {
                    assert!(Layout::open(&path).unwrap().entries().unwrap().is_empty());
                    assert!(!blob(&path, &built.blobs[1].descriptor.digest).exists());
                    assert_eq!(names(&path), ["blobs", "index.json", "oci-layout"]);
                }
                Place::Store => {
                    let store = LocalStore::open(&path).unwrap();
                    assert!(store.list().unwrap().is_empty());
                    assert!(names(&path.join("tmp")).is_empty());
                    store.collect_garbage().unwrap();
                    assert!(names(&path.join("blobs/sha256")).is_empty());
                }
            }
        }
    }
}

#[test]
fn a_cut_off_archive_or_a_missing_blob_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = Place::OciArchive.path(directory.path());
    Place::OciArchive
        .write(directory.path(), &artifact(), &Files::default())
        .unwrap();
    let whole = fs::read(&path).unwrap();
    for length in [0, 100, 512, 5000, whole.len() / 2, whole.len() - 1500] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(ArchiveLayout::open(&path).is_err(), "{length}");
    }
    let mut flipped = whole.clone();
    flipped[100_000] ^= 1;
    fs::write(&path, flipped).unwrap();
    let error = read_all(&Place::OciArchive.read(directory.path()), &Files::default());
    assert!(error.unwrap_err().contains("its bytes have the digest"));

    let listing = json!({"schemaVersion": 2, "manifests": [artifact().document.descriptor()]});
    Tar::default()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", listing.to_string().as_bytes())
        .file(
            &format!("blobs/sha256/{}", artifact().document.digest().hex()),
            artifact().document.bytes(),
        )
        .write(&path);
    let archive = ArchiveLayout::open(&path).unwrap();
    let digest = archive.find(None).unwrap().digest;
    let read = run(read_artifact(&archive, &Selector::Digest(digest))).unwrap();
    let error = read_all(&read, &Files::default()).unwrap_err();
    assert!(error.contains("could not read `"), "{error}");
}
