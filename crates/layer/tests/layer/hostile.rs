//! Archives that lie, hide or attack: each is refused, with an error that says what and where.

use std::path::Path;

use tierce_layer::{
    ArchiveAdd, Compression, Content, Destination, EntryKind, Limits, SealError, Stored, TarCheck,
    Treatment, Tree, add_archive_stream, read_links, seal_tar,
};

use crate::support::{Raw, SMALL, cache_in, chain, gzip, left_in, path, seal_header, settings};

fn add(archive: &[u8], limits: Limits) -> Result<Tree, String> {
    let scratch = tempfile::tempdir().unwrap();
    let add = ArchiveAdd {
        destination: &Destination::root(),
        exclude: None,
        include: None,
        treatment: &Treatment::default(),
        scratch: scratch.path(),
        limits,
    };
    let mut tree = Tree::new();
    let before = Tree::new();
    let result = add_archive_stream(
        Path::new("x.tar"),
        archive,
        &add,
        &mut tree,
        &mut Vec::new(),
    );
    match result {
        Ok(()) => Ok(tree),
        Err(error) => {
            assert_eq!(
                tree.len(),
                before.len(),
                "nothing of a refused archive is added"
            );
            let text = chain(&error);
            Err(text
                .strip_prefix("could not add the archive `x.tar`: ")
                .unwrap()
                .to_owned())
        }
    }
}

fn seal_strictly(archive: &[u8]) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache_in(directory.path());
    let result = seal_tar(
        archive,
        TarCheck::Strict(SMALL),
        &settings(&Stored, &cache, 2),
    );
    assert_eq!(left_in(directory.path()).is_empty(), result.is_err());
    match result {
        Ok(_) => Ok(()),
        Err(error @ SealError::Archive(_)) => Err(chain(&error)
            .strip_prefix("could not make a layer of an archive: ")
            .unwrap()
            .to_owned()),
        Err(error) => panic!("{error}"),
    }
}

fn raw() -> Raw {
    Raw::default()
}

fn patched(mut archive: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    archive[offset..offset + bytes.len()].copy_from_slice(bytes);
    seal_header(&mut archive[..512]);
    archive
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn malformed() -> Vec<(Vec<u8>, &'static str)> {
    let name = |name: &str| raw().file(name, b"x").end();
    vec![
        // Names that lead out.
        (
            name("../x"),
            "member `../x` is refused: its name has a `..` component",
        ),
        (
            name("a/../../x"),
            "member `a/../../x` is refused: its name has a `..` component",
        ),
        (
            name("a/.."),
            "member `a/..` is refused: its name has a `..` component",
        ),
        (
            name("/etc/passwd"),
            "member `/etc/passwd` is refused: its name is absolute",
        ),
        (
            name(""),
            "member `` is refused: its name has an empty component",
        ),
        (
            raw().pax(&[("path", b"../x")]).file("x", b"").end(),
            "member `../x` is refused: its name has a `..` component",
        ),
        (
            raw()
                .member(b'L', "././@LongLink", "", b"/abs\0")
                .file("x", b"")
                .end(),
            "member `/abs` is refused: its name is absolute",
        ),
        (
            raw().member(b'1', "x", "../../etc/shadow", b"").end(),
            "link `x` is refused: its target `../../etc/shadow` has a `..` component",
        ),
        (
            raw().member(b'1', "x", "/etc/shadow", b"").end(),
            "link `x` is refused: its target `/etc/shadow` is absolute",
        ),
        (
            raw().symlink("x", "").end(),
            "link `x` is refused: its target `` has an empty component",
        ),
        // PAX.
        (
            raw()
                .member(b'x', "p", "", b"99 path=x\n")
                .file("x", b"")
                .end(),
            "bad PAX header at byte 512: a record is longer than the header",
        ),
        (
            raw()
                .member(b'x', "p", "", b"9 path=ab\n")
                .file("x", b"")
                .end(),
            "bad PAX header at byte 512: a record does not end in a newline",
        ),
        (
            raw().pax(&[("path", b"a\0b")]).file("x", b"").end(),
            "bad PAX header at byte 512: a name holds a NUL byte",
        ),
        (
            raw()
                .pax(&[("path", b"a")])
                .pax(&[("path", b"b")])
                .file("x", b"")
                .end(),
            "bad extension header at byte 1024: two PAX headers for one member",
        ),
        (
            raw()
                .pax(&[("path", b"a")])
                .member(b'L', "L", "", b"b")
                .file("x", b"")
                .end(),
            "bad extension header at byte 2048: a GNU and a PAX header name the same member",
        ),
        (
            raw().pax(&[("path", b"a")]).end(),
            "bad extension header at byte 1024: the member it speaks of is missing",
        ),
        (
            raw()
                .member(b'g', "g", "", b"10 path=a\n")
                .file("x", b"")
                .end(),
            "bad PAX header at byte 0: a global header gives every member the same place or size",
        ),
        (
            raw().pax(&[("uid", b"4294967296")]).file("x", b"").end(),
            "member `x` has a bad number in its header field `uid`",
        ),
        (
            raw().pax(&[("size", b"-1")]).file("x", b"").end(),
            "member `x` has a bad number in its header field `size`",
        ),
        (
            raw().header(b'L', "L", "", "77777777777\0").end(),
            "bad extension header at byte 0: it is longer than any name",
        ),
        (
            raw().header(b'x', "x", "", "77777777777\0").end(),
            "bad extension header at byte 0: it is longer than any name",
        ),
        // Numbers and sums.
        (
            raw()
                .header(
                    b'0',
                    "x",
                    "",
                    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                )
                .end(),
            "member `x` has a bad number in its header field `size`",
        ),
        (
            raw().header(b'0', "x", "", "0000000009x\0").end(),
            "member `x` has a bad number in its header field `size`",
        ),
        (
            patched(name("x"), 108, b"99999999"),
            "member `x` has a bad number in its header field `uid`",
        ),
        (
            {
                let mut archive = name("x");
                archive[0] = b'y';
                archive
            },
            "no tar header at byte 0: the checksum does not match",
        ),
        (
            b"not an archive".repeat(100),
            "not a tar archive: what is read is plain tar, and tar compressed once with gzip or zstd",
        ),
        // Sizes that lie.
        (
            raw()
                .header(b'0', "x", "", "00000002000\0")
                .body(b"short")
                .0,
            "the archive is truncated: it ends in the content of a member",
        ),
        (
            raw()
                .header(b'0', "x", "", b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")
                .end(),
            "the archive is refused: it holds more than 1048576 bytes",
        ),
        (
            raw()
                .pax(&[("size", b"18446744073709551615")])
                .file("x", b"")
                .end(),
            "the archive is refused: it holds more than 1048576 bytes",
        ),
        (
            raw().member(b'5', "d/", "", b"hidden").end(),
            "member `d/` is refused: a directory with a size of 6 bytes",
        ),
        (
            raw().member(b'2', "l", "t", &[0; 512]).end(),
            "member `l` is refused: a symlink with a size of 512 bytes",
        ),
        // Kinds.
        (
            raw().member(b'S', "x", "", b"").end(),
            "member `x` is refused: it is a sparse file, which only some readers know how to fill: \
             make the archive without `--sparse`",
        ),
        (
            raw()
                .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.name", b"real")])
                .file("GNUSparseFile.0/real", b"0\n")
                .end(),
            "member `real` is refused: it is a sparse file, which only some readers know how to \
             fill: make the archive without `--sparse`",
        ),
        (
            raw().member(b'M', "x", "", b"").end(),
            "member `x` is refused: it is a member of unknown type",
        ),
        (
            raw().file("x/", b"1").end(),
            "member `x/` is refused: it is a file whose name ends in `/`",
        ),
        // Ends.
        (
            raw().file("x", b"1").0,
            "the archive is truncated: it ends in the place of a header",
        ),
        (
            raw().file("x", b"1").0[..700].to_vec(),
            "the archive is truncated: it ends in the padding of a member",
        ),
        (
            raw().file("x", b"1").0[..300].to_vec(),
            "the archive is truncated: it ends in a header",
        ),
        (
            vec![],
            "the archive is truncated: it ends in the place of a header",
        ),
        (
            [
                &raw().file("x", b"1").0[..],
                &[0; 512],
                &raw().file("y", b"2").0,
            ]
            .concat(),
            "data after the end of the archive, at byte 1536",
        ),
        (
            [
                &raw().file("x", b"1").end()[..],
                &raw().file("y", b"2").end(),
            ]
            .concat(),
            "data after the end of the archive, at byte 2048",
        ),
    ]
}

#[test]
fn malformed_archives_are_refused_by_every_strict_reader() {
    for (archive, expected) in malformed() {
        assert_eq!(add(&archive, SMALL).map(drop), Err(expected.to_owned()));
        // Through compression nothing is different.
        assert_eq!(
            add(&gzip(&archive), SMALL).map(drop),
            Err(expected.to_owned())
        );
        assert_eq!(seal_strictly(&archive), Err(expected.to_owned()));
    }
}

#[test]
fn members_that_have_no_place_in_a_tree_are_refused() {
    for (archive, expected) in [
        (
            raw().member(b'3', "null", "", b"").end(),
            "member `null` is refused: it is a device",
        ),
        (
            raw().member(b'4', "sda", "", b"").end(),
            "member `sda` is refused: it is a device",
        ),
        (
            raw().member(b'6', "pipe", "", b"").end(),
            "member `pipe` is refused: it is a FIFO",
        ),
        (
            raw().symlink("a", "/etc").file("a/passwd", b"x").end(),
            "member `a/passwd` is refused: it lies behind the symlink `a`",
        ),
        (
            raw()
                .directory("d/")
                .symlink("d/l", "..")
                .file("./d/l/x/y", b"")
                .end(),
            "member `./d/l/x/y` is refused: it lies behind the symlink `d/l`",
        ),
        (
            raw()
                .member(b'1', "x", "later", b"")
                .file("later", b"")
                .end(),
            "hardlink `x` is refused: its target `later` is no earlier file",
        ),
        (
            raw().directory("d").member(b'1', "x", "d", b"").end(),
            "hardlink `x` is refused: its target `d` is no earlier file",
        ),
        (
            raw().file("a/.wh.", b"").end(),
            "member `a/.wh.` is refused: it is a deletion without a name",
        ),
        (
            raw().directory(".wh.a").end(),
            "member `.wh.a` is refused: it is a deletion that is no regular file",
        ),
    ] {
        assert_eq!(add(&archive, SMALL).map(drop), Err(expected.to_owned()));
    }
}

#[test]
fn members_that_mean_different_things_to_readers_are_refused_in_a_verbatim_layer() {
    let hard = |name, target| raw().file("a", b"1").member(b'1', name, target, b"");
    for (archive, expected) in [
        (
            raw().member(b'3', "null", "", b""),
            "member `null` is refused: it is a device",
        ),
        (
            raw().member(b'4', "sda", "", b""),
            "member `sda` is refused: it is a device",
        ),
        (
            raw().member(b'6', "pipe", "", b""),
            "member `pipe` is refused: it is a FIFO",
        ),
        (
            raw().symlink("a", "/etc").file("a/passwd", b"x"),
            "member `a/passwd` is refused: it lies behind the symlink `a`",
        ),
        (
            raw()
                .symlink("a", "/etc")
                .member(b'1', "b", "a", b"")
                .file("b/passwd", b"x"),
            "member `b/passwd` is refused: it lies behind the symlink `b`",
        ),
        (
            raw().file("a", b"x").file("a/b", b"x"),
            "member `a/b` is refused: `a`, which it lies in, is no directory",
        ),
        (
            raw().file("a/b", b"x").symlink("./a", "/etc"),
            "member `./a` is refused: an earlier member has its path",
        ),
        (
            raw().file("a", b"x").file("./a", b"y"),
            "member `./a` is refused: an earlier member has its path",
        ),
        (
            raw().directory("d/").directory("d"),
            "member `d` is refused: an earlier member has its path",
        ),
        (
            raw().file(".wh.a", b"").file(".wh.a", b""),
            "member `.wh.a` is refused: an earlier member has its path",
        ),
        (
            hard("x", "x"),
            "hardlink `x` is refused: its target `x` is no earlier file",
        ),
        (
            hard("x", "nowhere"),
            "hardlink `x` is refused: its target `nowhere` is no earlier file",
        ),
        (
            raw().directory("d").member(b'1', "x", "d", b""),
            "hardlink `x` is refused: its target `d` is no earlier file",
        ),
        (
            raw().file(".wh.a", b"").member(b'1', "x", ".wh.a", b""),
            "hardlink `x` is refused: its target `.wh.a` is no earlier file",
        ),
        (
            raw().file("a/.wh.", b""),
            "member `a/.wh.` is refused: it is a deletion without a name",
        ),
        (
            raw().file(".wh..wh.plnk", b""),
            "member `.wh..wh.plnk` is refused: it is a file of the aufs driver, which other \
             readers skip",
        ),
        (
            raw().file(".wh.a/b", b""),
            "member `.wh.a/b` is refused: it is a file of the aufs driver, which other readers skip",
        ),
        (
            raw().symlink(".wh.a", "x"),
            "member `.wh.a` is refused: it is a deletion that is no regular file",
        ),
        (
            raw().file(".", b""),
            "member `.` is refused: its name has an empty component",
        ),
    ] {
        assert_eq!(seal_strictly(&archive.end()), Err(expected.to_owned()));
    }
}

#[test]
fn a_verbatim_layer_may_delete_and_describe_directories_late() {
    let archive = raw()
        .directory("./")
        .file("a/b/c", b"1")
        .directory("a/b")
        .directory("a")
        .member(b'1', "a/hard", "./a/b/c", b"")
        .symlink("link", "../out")
        .file("a/.wh.old", b"")
        .file(".wh..wh..opq", b"");
    seal_strictly(&archive.end()).unwrap();
}

#[test]
fn what_is_packed_otherwise_is_told_what_is_read() {
    for (start, found) in [
        (&b"BZh91AY&SY"[..], " but bzip2"),
        (b"\xfd7zXZ\0\0\x04", " but xz"),
        (b"PK\x03\x04\x14\0", " but zip"),
        (b"PK\x05\x06", " but zip"),
        (b"7z\xbc\xaf\x27\x1c", " but 7z"),
        (b"this is no tar", ""),
        (b"\0\0\0", ""),
    ] {
        let expected = format!(
            "not a tar archive{found}: what is read is plain tar, and tar compressed once with \
             gzip or zstd"
        );
        for length in [start.len(), 300, 512, 10_000] {
            if length > start.len() && start[0] == 0 {
                continue;
            }
            let mut archive = start.to_vec();
            archive.resize(length, b'.');
            let refused = Err(expected.clone());
            assert_eq!(add(&archive, SMALL).map(drop), refused, "{length}");
            assert_eq!(add(&gzip(&archive), SMALL).map(drop), refused);
            assert_eq!(seal_strictly(&archive), refused);
        }
    }
    let twice = gzip(&gzip(&raw().file("x", b"1").end()));
    assert!(
        add(&twice, SMALL)
            .unwrap_err()
            .starts_with("not a tar archive but gzip: ")
    );
}

#[test]
fn names_that_no_file_system_can_have_are_refused() {
    let deep = b"a/".repeat(30_000);
    let long = [b'n'; 256];
    let shown = |start: &str| start.repeat(60 / start.len());
    let cases = [
        (
            raw().pax(&[("path", &deep)]).directory("x"),
            format!(
                "member `{}…` is refused: its name is longer than 4096 bytes",
                shown("a/")
            ),
        ),
        (
            raw()
                .member(b'L', "././@LongLink", "", &deep[..16_000])
                .directory("x"),
            format!(
                "member `{}…` is refused: its name is longer than 4096 bytes",
                shown("a/")
            ),
        ),
        (
            raw().pax(&[("path", &long)]).file("x", b""),
            format!(
                "member `{}…` is refused: its name has a component of more than 255 bytes",
                shown("n")
            ),
        ),
        (
            raw().pax(&[("linkpath", &deep)]).symlink("x", ""),
            format!(
                "link `x` is refused: its target `{}…` is longer than 4096 bytes",
                shown("a/")
            ),
        ),
        (
            raw().pax(&[("linkpath", &deep)]).member(b'1', "x", "", b""),
            format!(
                "link `x` is refused: its target `{}…` is longer than 4096 bytes",
                shown("a/")
            ),
        ),
    ];
    for (archive, expected) in cases {
        let archive = archive.end();
        assert_eq!(add(&archive, SMALL).map(drop), Err(expected.clone()));
        assert_eq!(seal_strictly(&archive), Err(expected));
    }
    let archive = raw().pax(&[("path", &[b'n'; 255])]).file("x", b"").end();
    assert_eq!(add(&archive, SMALL).unwrap().len(), 1);
}

/// In a base such a member is what no runtime could unpack.
#[test]
fn names_that_no_file_system_can_have_are_skipped_in_a_base() {
    let deep = b"a/".repeat(30_000);
    let archive = raw()
        .pax(&[("path", &deep)])
        .symlink("x", "y")
        .pax(&[("path", &[b'n'; 256])])
        .symlink("x", "y")
        .pax(&[("linkpath", &deep)])
        .symlink("x", "y")
        .member(b'g', "g", "", b"12 path=a/b\n")
        .symlink("kept", "y")
        .end();
    let mut paths = Vec::new();
    read_links(&*archive, Compression::None, SMALL, |record| {
        paths.push(record.path.unwrap().to_string());
        Ok(())
    })
    .unwrap();
    assert_eq!(paths, ["kept"]);
}

/// Every directory above every member would be kept, each with its whole path.
#[test]
fn directories_that_deep_names_imply_are_limited() {
    let limits = Limits {
        bytes: 64 << 20,
        members: 100_000,
    };
    let deep = |first: usize| [&first.to_string().into_bytes(), &b"/a".repeat(2000)[..]].concat();
    let mut archive = raw();
    for member in 0..200 {
        archive = archive.pax(&[("path", &deep(member))]).file("x", b"");
    }
    let expected =
        "the archive is refused: it holds more than 268435456 bytes of names and attributes";
    assert_eq!(add(&archive.end(), limits).unwrap_err(), expected);

    // In one directory they are few, and found without climbing to the root each time.
    let mut archive = raw();
    for member in 0..1000 {
        let name = [&deep(0)[..], format!("/{member}").as_bytes()].concat();
        archive = archive.pax(&[("path", &name)]).file("x", b"");
    }
    assert_eq!(add(&archive.end(), limits).unwrap().len(), 2001 + 1000);
}

#[test]
fn global_records_are_limited_and_not_copied() {
    let expected =
        "the archive is refused: it holds more than 65536 bytes of global PAX records".to_owned();
    let globals = |archive: Raw, count: usize, from: usize| {
        let body: Vec<u8> = (from..from + count)
            .flat_map(|key| format!("12 {key:06}=v\n").into_bytes())
            .collect();
        archive.member(b'g', "g", "", &body)
    };
    let limits = Limits {
        bytes: 64 << 20,
        members: 100_000,
    };
    let one = globals(raw(), 6000, 0).file("x", b"").end();
    let many = (0..6).fold(raw(), |archive, part| globals(archive, 2000, part * 2000));
    let many = many.file("x", b"").end();
    for archive in [one, many] {
        assert_eq!(add(&archive, limits).map(drop), Err(expected.clone()));
    }
    // The same ones again take no more room; each member looks up what it needs.
    let mut archive = (0..20).fold(raw(), |archive, _| globals(archive, 5000, 0));
    for member in 0..20_000 {
        archive = archive.file(format!("f{member}"), b"");
    }
    assert_eq!(add(&archive.end(), limits).unwrap().len(), 20_000);
}

#[test]
fn a_member_may_take_a_global_record_back() {
    let archive = raw()
        .member(b'g', "g", "", b"14 mtime=none\n")
        .pax(&[("mtime", b"")])
        .file("x", b"")
        .end();
    add(&archive, SMALL).unwrap();
    let archive = raw()
        .member(b'g', "g", "", b"14 mtime=none\n")
        .member(b'g', "g", "", b"9 mtime=\n")
        .file("x", b"")
        .end();
    add(&archive, SMALL).unwrap();
    let archive = raw()
        .member(b'g', "g", "", b"14 mtime=none\n")
        .file("x", b"")
        .end();
    assert_eq!(
        add(&archive, SMALL).map(drop),
        Err("member `x` has a bad number in its header field `mtime`".to_owned())
    );
}

/// A reader that splits records at newlines would take the link for one to `/etc/evil`.
#[test]
fn a_record_inside_a_value_stays_hidden() {
    let value = b"x\n22 linkpath=/etc/evil\n18 path=../escape\n";
    let archive = raw()
        .pax(&[("SCHILY.xattr.user.note", value)])
        .symlink("link", "harmless")
        .end();
    let tree = add(&archive, SMALL).unwrap();
    let entry = tree.get(&path("link")).unwrap();
    assert!(matches!(&entry.kind, EntryKind::Symlink(target) if &**target == b"harmless"));
    assert_eq!(tree.len(), 1);
    seal_strictly(&archive).unwrap();
}

#[test]
fn cut_off_archives_are_refused_wherever_they_are_cut() {
    let whole = raw()
        .pax(&[("path", "n".repeat(200).as_bytes())])
        .file("n", &[7; 700])
        .directory("d")
        .end();
    for end in 0..=whole.len() - 1024 {
        // Shorter than where the magic is, it could be anything.
        let expected = match end {
            1..262 => "not a tar archive: ",
            _ => "the archive is truncated: ",
        };
        let error = add(&whole[..end], SMALL).unwrap_err();
        assert!(error.starts_with(expected), "{end}: {error}");
    }
    let packed = gzip(&whole);
    for end in 0..packed.len() {
        assert!(add(&packed[..end], SMALL).is_err(), "{end}");
    }
    let packed = zstd::encode_all(&*whole, 3).unwrap();
    for end in 0..packed.len() {
        assert!(add(&packed[..end], SMALL).is_err(), "{end}");
    }
}

#[test]
fn damaged_gzip_is_noticed_behind_the_end_of_the_archive() {
    let mut packed = gzip(&raw().file("x", b"1").end());
    let crc = packed.len() - 8;
    packed[crc] ^= 1;
    assert!(
        add(&packed, SMALL)
            .unwrap_err()
            .starts_with("could not read the archive: ")
    );
}

/// A thousandth on disk of what it becomes.
#[test]
fn bombs_are_stopped_at_the_limit() {
    let limits = Limits {
        bytes: 4 << 20,
        members: 1000,
    };
    let mut bomb = raw()
        .header(b'0', "zeros", "", format!("{:011o}\0", 1_u64 << 30))
        .0;
    bomb.resize(bomb.len() + (16 << 20), 0);
    assert_eq!(
        add(&gzip(&bomb), limits).unwrap_err(),
        "the archive is refused: it holds more than 4194304 bytes"
    );
    // One that states no size of its own: zeros after the end.
    let mut bomb = raw().end();
    bomb.resize(16 << 20, 0);
    assert_eq!(
        add(&gzip(&bomb), limits).unwrap_err(),
        "the archive is refused: it holds more than 4194304 bytes"
    );
    let members: Vec<u8> = (0..1001).flat_map(|_| raw().file("x", b"").0).collect();
    assert_eq!(
        add(&gzip(&members), limits).unwrap_err(),
        "the archive is refused: it holds more than 1000 members"
    );
}

/// A base image is there already; what its layers hold is read as runtimes read it.
#[test]
fn layers_of_a_base_are_read_leniently() {
    let archive = raw()
        .file("/abs", b"1")
        .file("../escape", b"2")
        .member(b'3', "dev/null", "", b"")
        .header(b'5', "d", "", "00000001000\0")
        .member(b'1', "hard", "abs", b"")
        .symlink("./lib", "usr/lib")
        .file("usr/.wh.old", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh..opq", b"");
    let mut records = Vec::new();
    // Some writers leave the end blocks out.
    read_links(&*gzip(&archive.0), Compression::Gzip, SMALL, |record| {
        let place = record.path.map_or("/".to_owned(), |path| path.to_string());
        records.push(format!("{place} {:?}", record.change));
        Ok(())
    })
    .unwrap();
    assert_eq!(
        records,
        [
            "abs Other",
            "dev/null Other",
            "d Directory",
            "hard Other",
            "lib Symlink([117, 115, 114, 47, 108, 105, 98])",
            "usr/old Whiteout",
            "/ Opaque",
        ]
    );
    // Whoever verifies a digest behind the reader has seen all of the layer afterwards.
    let padded = [archive.clone().end(), vec![0; 100_000]].concat();
    let mut rest = std::io::Cursor::new(&padded);
    read_links(&mut rest, Compression::None, SMALL, |_| Ok(())).unwrap();
    assert_eq!(rest.position(), padded.len() as u64);
    let mut damaged = gzip(&archive.clone().end());
    let crc = damaged.len() - 8;
    damaged[crc] ^= 1;
    let error = read_links(&*damaged, Compression::Gzip, SMALL, |_| Ok(())).unwrap_err();
    assert!(chain(&error).contains("could not read the archive"));
    let cut = &archive.0[..1100];
    let error = read_links(cut, Compression::None, SMALL, |_| Ok(())).unwrap_err();
    assert_eq!(
        chain(&error),
        "could not read a layer of the base image: the archive is truncated: it ends in a header"
    );
}

#[test]
fn contents_of_hostile_neighbours_are_not_mixed() {
    let archive = raw()
        .file("a", b"first")
        .file("a", b"second")
        .member(b'1', "b", "a", b"")
        .end();
    let tree = add(&archive, SMALL).unwrap();
    for name in ["a", "b"] {
        let EntryKind::File(file) = &tree.get(&path(name)).unwrap().kind else {
            panic!()
        };
        let mut bytes = Vec::new();
        file.content
            .read_pieces::<tierce_layer::ContentError>(2, |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        assert_eq!(bytes, b"second");
        assert!(matches!(file.content, Content::Range(_)));
    }
}
