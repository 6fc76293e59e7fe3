//! Existing archives as a source of files.

use std::fs;
use std::path::Path;

use tempfile::tempdir;
use tierce_layer::{
    ArchiveAdd, ArchiveError, Compression, Content, ContentError, Destination, EntryKind, Keep,
    Limits, Matcher, Notice, RecordKind, Stored, Treatment, Tree, add_archive, seal,
};

use crate::support::{
    Raw, archive_of, cache_in, chain, file, gzip, listing, path, plan_of, settings, tree_of, write,
};

struct Options {
    destination: &'static str,
    exclude: Option<Matcher>,
    include: Option<Matcher>,
    treatment: Treatment,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            destination: "/",
            exclude: None,
            include: None,
            treatment: Treatment::default(),
        }
    }
}

fn add_file(file: &Path, options: &Options) -> Result<(Tree, Vec<Notice>), ArchiveError> {
    let scratch = tempdir().unwrap();
    let add = ArchiveAdd {
        destination: &Destination::parse(options.destination).unwrap(),
        exclude: options.exclude.as_ref(),
        include: options.include.as_ref(),
        treatment: &options.treatment,
        scratch: scratch.path(),
        limits: Limits::default(),
    };
    let mut tree = Tree::new();
    let mut notices = Vec::new();
    add_archive(file, &add, &mut tree, &mut notices)?;
    assert_eq!(
        fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "the spool has no name"
    );
    Ok((tree, notices))
}

fn add(archive: &[u8], options: &Options) -> (Tree, Vec<Notice>) {
    let directory = tempdir().unwrap();
    let file = directory.path().join("x.tar");
    write(&file, archive);
    add_file(&file, options).unwrap()
}

fn bytes_at(tree: &Tree, name: &str) -> Vec<u8> {
    let EntryKind::File(file) = &tree.get(&path(name)).unwrap().kind else {
        panic!("a file")
    };
    let mut bytes = Vec::new();
    file.content
        .read_pieces::<ContentError>(1000, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
    bytes
}

fn sample() -> Raw {
    Raw::default()
        .directory("./")
        .directory("./d/")
        .file("./d/run", &[1; 700])
        .symlink("./d/link", "run")
        .member(b'1', "./d/hard", "d/run", b"")
        .file("./d/late", b"late")
}

const SAMPLE: &str = "0755 0:0 directory d\n\
                      0755 0:0 file d/hard\n\
                      0755 0:0 file d/late\n\
                      0777 0:0 symlink d/link\n\
                      0755 0:0 file d/run\n";

#[test]
fn every_compression_gives_the_same_tree() {
    let plain = sample().end();
    let (first, second) = plain.split_at(1000);
    let several_members = [gzip(first), gzip(second)].concat();
    let zstandard = zstd::encode_all(&*plain, 3).unwrap();
    let frames = [
        zstd::encode_all(first, 3).unwrap(),
        zstd::encode_all(second, 3).unwrap(),
    ]
    .concat();
    for (archive, compression) in [
        (plain.clone(), Compression::None),
        (gzip(&plain), Compression::Gzip),
        (several_members, Compression::Gzip),
        (zstandard, Compression::Zstd),
        (frames, Compression::Zstd),
    ] {
        assert_eq!(Compression::detect(&archive), compression);
        let (tree, notices) = add(&archive, &Options::default());
        assert_eq!(listing(&tree), SAMPLE);
        assert_eq!(notices, []);
        assert_eq!(bytes_at(&tree, "d/run"), [1; 700]);
        assert_eq!(bytes_at(&tree, "d/hard"), [1; 700]);
        assert_eq!(bytes_at(&tree, "d/late"), b"late");
    }
}

#[test]
fn attributes_are_kept_when_asked_for() {
    let archive = Raw::default()
        .pax(&[
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.user.b", b"2"),
            ("uid", b"3000000"),
        ])
        .file("a", b"x")
        .member(b'1', "b", "a", b"")
        .end();
    let options = Options {
        treatment: Treatment {
            modes: Keep::Keep,
            owners: Keep::Keep,
            hardlinks: Keep::Keep,
            xattrs: vec!["user.b".to_owned()],
        },
        ..Options::default()
    };
    let (tree, _) = add(&archive, &options);
    let attributes = &tree.get(&path("b")).unwrap().attributes;
    assert_eq!(
        (attributes.mode, attributes.uid, attributes.gid),
        (0o755, 3_000_000, 0o1751)
    );
    assert_eq!(attributes.xattrs.len(), 1);
    assert_eq!(attributes.xattrs[&b"user.b"[..]], b"2");
    let plan = plan_of(tree);
    assert!(matches!(&plan.records()[1].kind, RecordKind::Hardlink(first) if *first == path("a")));
}

#[test]
fn long_names_and_numbers_of_all_writers_are_read() {
    let long = format!("d/{}/{}", "n".repeat(150), "m".repeat(150));
    let target = "t".repeat(200);
    let archive = Raw::default()
        .member(b'L', "././@LongLink", "", format!("{long}\0").as_bytes())
        .file("d/nnn", b"gnu")
        .member(b'K', "././@LongLink", "", format!("{target}\0").as_bytes())
        .member(
            b'L',
            "././@LongLink",
            "",
            format!("{long}-link\0").as_bytes(),
        )
        .symlink("short", "short")
        .pax(&[("path", format!("{long}-pax").as_bytes()), ("size", b"5")])
        // The size in the header is that of an archive over 8 GiB: none at all.
        .header(b'0', "short", "", "00000000000\0")
        .body(b"inpax")
        .header(b'0', "base256", "", b"\x80\0\0\0\0\0\0\0\0\0\0\x03")
        .body(b"256")
        .member(b'g', "pax_global_header", "", b"16 comment=none\n")
        .file("after", b"end")
        .end();
    let (tree, _) = add(&archive, &Options::default());
    assert_eq!(bytes_at(&tree, &long), b"gnu");
    assert_eq!(bytes_at(&tree, &format!("{long}-pax")), b"inpax");
    assert_eq!(bytes_at(&tree, "base256"), b"256");
    assert_eq!(bytes_at(&tree, "after"), b"end");
    let link = &tree.get(&path(format!("{long}-link"))).unwrap().kind;
    assert!(matches!(link, EntryKind::Symlink(found) if **found == *target.as_bytes()));
}

#[test]
fn the_tar_crates_gnu_archives_are_read() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/{}", "a".repeat(120), "b".repeat(120));
    for name in ["plain", &long] {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o755);
        header.set_uid(5_000_000);
        builder
            .append_data(&mut header, name, &b"data"[..])
            .unwrap();
    }
    let (tree, _) = add(&builder.into_inner().unwrap(), &Options::default());
    assert_eq!(bytes_at(&tree, &long), b"data");
    assert_eq!(bytes_at(&tree, "plain"), b"data");
}

#[test]
fn later_members_win_and_whiteouts_stay_whiteouts() {
    let archive = Raw::default()
        .file("a", b"1")
        .file("a", b"2")
        .file("d/.wh.gone", b"")
        .file("e/.wh..wh..opq", b"")
        .file(".wh..wh.plnk/1.2", b"x")
        .file("f/.wh.both", b"")
        .directory("f/both")
        .end();
    let (tree, notices) = add(
        &archive,
        &Options {
            destination: "/opt",
            ..Options::default()
        },
    );
    assert_eq!(
        listing(&tree),
        "0755 0:0 directory opt\n\
         0755 0:0 file opt/a\n\
         0755 0:0 directory opt/d\n\
         0644 0:0 whiteout opt/d/.wh.gone\n\
         0755 0:0 directory opt/e\n\
         0644 0:0 opaque marker opt/e/.wh..wh..opq\n\
         0755 0:0 directory opt/f\n\
         0755 0:0 directory opt/f/both\n\
         0644 0:0 opaque marker opt/f/both/.wh..wh..opq\n"
    );
    let texts: Vec<_> = notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "`opt/a`: a file takes the place of a file",
            "`.wh..wh.plnk/1.2` is bookkeeping of a storage driver and was left out",
        ]
    );
}

#[test]
fn members_are_chosen_by_patterns() {
    let archive = Raw::default()
        .directory("keep")
        .file("keep/a.py", b"a")
        .file("keep/b.txt", b"b")
        .file("drop/c.py", b"c")
        // The content of what is left out can still be wanted under another name.
        .member(b'1', "keep/d.py", "drop/c.py", b"")
        .end();
    let options = Options {
        exclude: Some(Matcher::new(["drop"]).unwrap()),
        include: Some(Matcher::new(["**/*.py"]).unwrap()),
        ..Options::default()
    };
    let (tree, _) = add(&archive, &options);
    assert_eq!(
        listing(&tree),
        "0755 0:0 directory keep\n0755 0:0 file keep/a.py\n0755 0:0 file keep/d.py\n"
    );
    assert_eq!(bytes_at(&tree, "keep/d.py"), b"c");
    let options = Options {
        include: Some(Matcher::new(["none"]).unwrap()),
        ..Options::default()
    };
    let (tree, notices) = add(&archive, &options);
    assert!(tree.is_empty());
    assert!(matches!(notices[..], [Notice::NothingAdded { .. }]));
}

#[test]
fn an_archive_read_in_place_must_stay_as_it_is() {
    let directory = tempdir().unwrap();
    let archive = directory.path().join("x.tar");
    write(&archive, sample().end());
    let (tree, _) = add_file(&archive, &Options::default()).unwrap();
    assert!(matches!(
        &tree.get(&path("d/run")).unwrap().kind,
        EntryKind::File(file) if matches!(file.content, Content::Range(_))
    ));
    write(&archive, Raw::default().file("d/run", b"changed").end());
    let cache = cache_in(directory.path());
    let error = seal(&plan_of(tree), &settings(&Stored, &cache, 1)).unwrap_err();
    assert_eq!(
        chain(&error),
        format!(
            "could not write `d/hard` into the layer: `{}` changed while it was read",
            archive.display()
        )
    );
}

#[test]
fn errors_name_the_archive() {
    let directory = tempdir().unwrap();
    let archive = directory.path().join("x.tar");
    let error = add_file(&archive, &Options::default()).unwrap_err();
    assert!(chain(&error).starts_with(&format!("could not open `{}`: No such", archive.display())));
    write(&archive, Raw::default().file("../x", b"").end());
    let error = add_file(&archive, &Options::default()).unwrap_err();
    assert_eq!(
        chain(&error),
        format!(
            "could not add the archive `{}`: member `../x` is refused: its name has a `..` \
             component",
            archive.display()
        )
    );
    write(&archive, Raw::default().file("x", b"").end());
    let options = Options {
        destination: "/opt/.wh.x",
        ..Options::default()
    };
    let error = add_file(&archive, &options).unwrap_err();
    assert!(chain(&error).contains("names that start with `.wh.`"));
}

/// A layer of ours, added again, is the same layer.
#[test]
fn our_own_layers_come_back() {
    let tree = || {
        tree_of([
            ("d/a".to_owned(), file("1")),
            (format!("d/{}", "n".repeat(250)), file("2")),
            ("e".to_owned(), tierce_layer::Entry::symlink("d/a")),
        ])
    };
    let archive = archive_of(tree());
    let (again, notices) = add(&gzip(&archive), &Options::default());
    assert_eq!(notices, []);
    assert!(archive_of(again) == archive);
}
