//! The bytes of layer-format 1, pinned.
//!
//! Compare the listing first: it says what changed. When a change is meant, it is a new format or,
//! for the blob alone, a new codec id; then put in what the failing test prints as `left`.

use std::fmt::Write as _;

use tierce_layer::{
    Attributes, Codec, Content, Entry, EntryKind, Fast1, FileEntry, LinkGroup, Stored, Tree,
    ZlibLevel, ZlibRs, Zstd, ZstdLevel,
};

use crate::support::{file, path, plan_of, sealed, unpacked};

/// Bytes that do not compress, the same ever after.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[4]
        })
        .collect()
}

/// Bytes that compress about as source code does.
fn prose(length: usize) -> Vec<u8> {
    let words = [
        "def ",
        "handler",
        "(event, ",
        "context):",
        "\n    ",
        "return ",
        "self.",
        "None",
    ];
    let text: Vec<u8> = noise(length)
        .iter()
        .flat_map(|&byte| words[usize::from(byte & 7)].bytes())
        .collect();
    text[..length].to_vec()
}

fn everything() -> Tree {
    let mut tree = Tree::new();
    let mut notices = Vec::new();
    let long = "n".repeat(101);
    let entries: Vec<(Vec<u8>, Entry)> = vec![
        (b"var/task/app.py".to_vec(), file("print('hello')\n")),
        (b"var/task/empty".to_vec(), file("")),
        (
            b"var/task/run".to_vec(),
            Entry::file(Content::bytes(*b"#!/bin/sh\n"), 0o755),
        ),
        (
            b"var/task/link".to_vec(),
            Entry::symlink("../../opt/lib.so"),
        ),
        (b"var/task/far".to_vec(), Entry::symlink("t".repeat(101))),
        (b"var/task/caf\xe9\n".to_vec(), file("latin 1")),
        ("var/task/été".into(), file("utf-8")),
        (format!("var/task/{long}").into(), file("a name for PAX")),
        (
            format!("var/{}/{}", "p".repeat(100), "q".repeat(60)).into(),
            file("split"),
        ),
        (b"opt/lib.so".to_vec(), file(noise(65_536))),
        (b"opt/large.so".to_vec(), file(prose(1_200_000))),
        (b"opt/largest.so".to_vec(), file(noise(1 << 20))),
        (b"opt/medium.py".to_vec(), file(prose(300_000))),
        (b"opt/below.py".to_vec(), file(prose(65_535))),
        (b"tmp/scratch".to_vec(), file("in a directory that is 1777")),
        (
            b"root/.profile".to_vec(),
            file("in a directory that is 0700"),
        ),
    ];
    for (name, entry) in entries {
        tree.insert(path(name), entry, &mut notices).unwrap();
    }
    for index in 0..40 {
        let name = format!("opt/modules/module{index:02}.py");
        tree.insert(path(name), file(prose(10_000 + index)), &mut notices)
            .unwrap();
    }
    let mut owned = Entry::file(Content::bytes(*b"owned"), 0o4755);
    owned.attributes.uid = 2_097_151;
    owned.attributes.gid = 2_097_152;
    owned
        .attributes
        .xattrs
        .insert(b"user.b".to_vec(), b"text".to_vec());
    owned.attributes.xattrs.insert(
        b"security.capability".to_vec(),
        vec![1, 0, 0, 2, 0xff, b'\n'],
    );
    tree.insert(path("opt/owned"), owned, &mut notices).unwrap();
    for name in ["opt/z-second", "opt/a-first"] {
        let group = Some(LinkGroup {
            device: 1,
            inode: 2,
            member: 0,
        });
        let content = Content::bytes(*b"one file");
        let kind = EntryKind::File(FileEntry {
            content,
            modified: None,
            group: group.map(Box::new),
        });
        let entry = Entry {
            kind,
            attributes: Attributes::root(0o644),
        };
        tree.insert(path(name), entry, &mut notices).unwrap();
    }
    tree.insert_whiteout(&path("usr/share/doc"), &mut notices)
        .unwrap();
    tree.insert_opaque(Some(&path("usr/share/man")), &mut notices)
        .unwrap();
    assert_eq!(notices, []);
    tree
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\n', "\\n");
    if text.len() > 40 {
        format!("{}...{}", &text[..24], text.len())
    } else {
        text
    }
}

/// Every header of the archive, PAX headers included.
fn headers(archive: &[u8]) -> String {
    let mut lines = String::new();
    let mut reader = tar::Archive::new(archive);
    for entry in reader.entries().unwrap().raw(true) {
        let entry = entry.unwrap();
        let header = entry.header();
        write!(
            lines,
            "{:7} {} {:05o} {:7}:{:7} {:7} {} {}",
            entry.raw_header_position(),
            char::from(header.as_bytes()[156]),
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            header.size().unwrap(),
            header.mtime().unwrap(),
            text(&header.path_bytes()),
        )
        .unwrap();
        match header.link_name_bytes() {
            Some(target) => writeln!(lines, " -> {}", text(&target)).unwrap(),
            None => lines.push('\n'),
        }
    }
    lines
}

#[test]
fn the_archive_is_pinned() {
    let plan = plan_of(everything());
    let (layer, _directory) = sealed(&plan, &Stored, 2);
    let archive = unpacked(&layer);
    assert_eq!(headers(&archive), include_str!("golden.listing"));
    assert_eq!(
        layer.diff_id.to_string(),
        "sha256:fe28cb2cc0cc9603c56550eed25039f34b9dce278050a607d2e0a9b86a446917"
    );
    assert_eq!(layer.codec, "stored");
    assert_eq!(
        layer.digest.to_string(),
        "sha256:a9850c4c3f224a51c4db3d7d2219967d02e90fbdcc85c0090a29bb0ed8de8a6f"
    );
}

#[test]
fn the_blob_is_pinned_for_each_codec() {
    let zlib = |level| ZlibRs::new(ZlibLevel::new(level).unwrap());
    let zstd = |level| Zstd::new(ZstdLevel::new(level).unwrap());
    let codecs: [&dyn Codec; 10] = [
        &Fast1,
        &zlib(1),
        &zlib(6),
        &zlib(9),
        // One level of each way in which libzstd looks for matches.
        &zstd(1),
        &zstd(3),
        &zstd(5),
        &zstd(9),
        &zstd(13),
        &zstd(19),
    ];
    let plan = plan_of(everything());
    let mut lines = String::new();
    for codec in codecs {
        let (layer, _directory) = sealed(&plan, codec, 2);
        unpacked(&layer);
        assert_eq!(layer.segments.len(), 8);
        writeln!(lines, "{} {} {}", layer.codec, layer.size, layer.digest).unwrap();
    }
    assert_eq!(lines, include_str!("golden.blobs"));
}

#[test]
fn the_empty_layer_is_pinned() {
    let (layer, _directory) = sealed(&plan_of(Tree::new()), &Stored, 1);
    assert_eq!(unpacked(&layer), [0; 1024]);
    assert_eq!(
        layer.diff_id.to_string(),
        "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
    );
}
