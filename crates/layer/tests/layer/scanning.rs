//! From the disk into a tree.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use tempfile::tempdir;
use tierce_layer::{
    Anchored, Destination, Entry, Keep, Matcher, Notice, RecordKind, ScanAdd, ScanError, Treatment,
    Tree, scan,
};

use crate::support::{TWO, chain, listing, path, plan_of, scanned, write};

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn everything_is_normalised() {
    let source = tempdir().unwrap();
    let root = source.path();
    write(root.join("app.py"), "x");
    write(root.join("bin/run"), "x");
    write(root.join("bin/setuid"), "x");
    chmod(root.join("app.py"), 0o600);
    chmod(root.join("bin/run"), 0o700);
    chmod(root.join("bin/setuid"), 0o6711);
    chmod(root.join("bin"), 0o2700);
    symlink("nowhere/at all", root.join("dangling")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("bin", root.join("to-directory")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    write(root.join(OsStr::from_bytes(b"caf\xe9\n")), "x");
    let (tree, notices) = scanned(root, "/var/task/");
    assert_eq!(
        listing(&tree),
        "0755 0:0 directory var\n\
         0755 0:0 directory var/task\n\
         0644 0:0 file var/task/app.py\n\
         0755 0:0 directory var/task/bin\n\
         0755 0:0 file var/task/bin/run\n\
         0755 0:0 file var/task/bin/setuid\n\
         0644 0:0 file var/task/caf\\xe9\\n\n\
         0777 0:0 symlink var/task/dangling\n\
         0755 0:0 directory var/task/empty\n\
         0777 0:0 symlink var/task/loop\n\
         0777 0:0 symlink var/task/to-directory\n"
    );
    assert_eq!(notices, []);
}

#[test]
fn destinations_follow_copy() {
    let source = tempdir().unwrap();
    let root = source.path();
    write(root.join("directory/a"), "x");
    write(root.join("file"), "x");
    symlink("directory", root.join("link")).unwrap();
    symlink("file", root.join("file-link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    for (from, to, expected) in [
        ("directory", "/opt", "opt, opt/a"),
        ("directory", "/opt/", "opt, opt/a"),
        ("directory", "/", "a"),
        ("file", "/opt", "opt"),
        ("file", "/opt/", "opt, opt/file"),
        ("file", "/", "file"),
        ("file", "/opt/renamed", "opt, opt/renamed"),
        // What was named is what was meant, also through a link.
        ("link", "/opt", "opt, opt/a"),
        ("file-link", "/opt/", "opt, opt/file-link"),
        ("dangling", "/opt/", "opt, opt/dangling"),
    ] {
        let (tree, _) = scanned(&root.join(from), to);
        let paths: Vec<_> = tree.iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(paths.join(", "), expected, "{from} to {to}");
    }
    let (tree, _) = scanned(&root.join("file-link"), "/opt/");
    assert_eq!(
        tree.get(&path("opt/file-link")).unwrap().kind.noun(),
        "file"
    );
    let plan = plan_of(tree);
    let (layer, _directory) = crate::support::sealed(&plan, &tierce_layer::Stored, 1);
    assert_eq!(layer.entries.files, 1);
}

#[test]
fn well_known_directories_keep_their_modes() {
    let source = tempdir().unwrap();
    write(source.path().join("tmp/a"), "x");
    let mut tree = Tree::new();
    for (destination, name) in [("/tmp/", "a"), ("/var/tmp/", "a"), ("/root/", "a")] {
        let (part, _) = scanned(&source.path().join("tmp").join(name), destination);
        tree.merge(part, &mut Vec::new());
    }
    assert_eq!(
        listing(&tree),
        "0700 0:0 directory root\n0644 0:0 file root/a\n1777 0:0 directory tmp\n0644 0:0 file \
         tmp/a\n0755 0:0 directory var\n1777 0:0 directory var/tmp\n0644 0:0 file var/tmp/a\n"
    );
}

fn scan_with(
    source: &Path,
    treatment: &Treatment,
    exclude: &[Anchored<'_>],
    include: Option<Anchored<'_>>,
) -> Result<(Tree, Vec<Notice>), ScanError> {
    let mut tree = Tree::new();
    let mut notices = Vec::new();
    let destination = Destination::root();
    let add = ScanAdd {
        source,
        destination: &destination,
        exclude,
        include,
        treatment,
        jobs: TWO,
    };
    scan(&add, &mut tree, &mut notices)?;
    Ok((tree, notices))
}

fn names(tree: &Tree) -> String {
    tree.iter()
        .map(|(path, _)| path.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn attributes_are_kept_when_asked_for() {
    let source = tempdir().unwrap();
    let root = source.path();
    write(root.join("d/run"), "x");
    chmod(root.join("d/run"), 0o4750);
    chmod(root.join("d"), 0o1711);
    fs::hard_link(root.join("d/run"), root.join("a-link")).unwrap();
    let treatment = Treatment {
        modes: Keep::Keep,
        owners: Keep::Keep,
        hardlinks: Keep::Keep,
        xattrs: vec!["user.note".to_owned(), "user.absent".to_owned()],
    };
    let has_xattrs = rustix::fs::setxattr(
        root.join("d/run"),
        "user.note",
        b"v\0lue",
        rustix::fs::XattrFlags::empty(),
    )
    .is_ok();
    let (tree, _) = scan_with(root, &treatment, &[], None).unwrap();
    let entry = tree.get(&path("d/run")).unwrap();
    let owner = {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(root.join("d/run")).unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!((entry.attributes.uid, entry.attributes.gid), owner);
    assert_eq!(entry.attributes.mode, 0o4750);
    assert_eq!(tree.get(&path("d")).unwrap().attributes.mode, 0o1711);
    if has_xattrs {
        assert_eq!(entry.attributes.xattrs[&b"user.note"[..]], b"v\0lue");
        assert_eq!(entry.attributes.xattrs.len(), 1);
    }
    let plan = plan_of(tree);
    let kinds: Vec<_> = plan
        .records()
        .iter()
        .map(|record| match &record.kind {
            RecordKind::Hardlink(target) => format!("{} = {target}", record.path),
            _ => record.path.to_string(),
        })
        .collect();
    assert_eq!(kinds, ["d", "a-link", "d/run = a-link"]);

    let (tree, _) = scan_with(root, &Treatment::default(), &[], None).unwrap();
    let plan = plan_of(tree);
    assert!(
        plan.records()
            .iter()
            .all(|record| !matches!(record.kind, RecordKind::Hardlink(_)))
    );
}

#[test]
fn replacing_a_name_of_a_hardlinked_file_leaves_no_link_to_nothing() {
    let source = tempdir().unwrap();
    write(source.path().join("a"), "x");
    for name in ["b", "c"] {
        fs::hard_link(source.path().join("a"), source.path().join(name)).unwrap();
    }
    let treatment = Treatment {
        hardlinks: Keep::Keep,
        ..Treatment::default()
    };
    let (mut tree, _) = scan_with(source.path(), &treatment, &[], None).unwrap();
    tree.insert(path("a"), crate::support::file("new"), &mut Vec::new())
        .unwrap();
    let plan = plan_of(tree);
    let kinds: Vec<_> = plan
        .records()
        .iter()
        .map(|record| format!("{} {:?}", record.path, record.kind))
        .collect();
    assert!(kinds[0].starts_with("a File"));
    assert!(kinds[1].starts_with("b File"));
    assert_eq!(kinds[2], "c Hardlink(\"b\")");
}

#[test]
fn ignore_files_and_excludes_have_their_own_roots() {
    let context = tempdir().unwrap();
    let root = context.path();
    for name in [
        "src/app.py",
        "src/app.pyc",
        "src/test/t.py",
        "src/test/keep/k.py",
        "src/data/x",
        "other",
    ] {
        write(root.join(name), "x");
    }
    let source = root.join("src");
    let ignore = Matcher::parse(b"**/*.pyc\nsrc/test\n!src/test/keep\n", Path::new("i")).unwrap();
    let exclude = Matcher::new(["data", "src"]).unwrap();
    let excludes = [
        Anchored {
            matcher: &ignore,
            root,
        },
        Anchored {
            matcher: &exclude,
            root: &source,
        },
    ];
    let plain = Treatment::default();
    let (tree, notices) = scan_with(&source, &plain, &excludes, None).unwrap();
    assert_eq!(names(&tree), "app.py test test/keep test/keep/k.py");
    assert_eq!(notices, []);

    let include = Matcher::new(["**/*.py", "!**/k.py"]).unwrap();
    let include = Some(Anchored {
        matcher: &include,
        root: &source,
    });
    let (tree, _) = scan_with(&source, &plain, &[], include).unwrap();
    assert_eq!(names(&tree), "app.py test test/t.py");

    let all = Matcher::new(["src"]).unwrap();
    let excludes = [Anchored {
        matcher: &all,
        root,
    }];
    let (tree, notices) = scan_with(&source, &plain, &excludes, None).unwrap();
    assert!(tree.is_empty());
    assert_eq!(
        notices,
        [Notice::NothingAdded {
            source: source.clone()
        }]
    );
    let (tree, _) = scan_with(&root.join("src/app.py"), &plain, &excludes, None).unwrap();
    assert!(tree.is_empty());
}

/// An excluded directory need not even be readable, and what is in it need not fit a layer.
#[test]
fn what_is_excluded_is_not_looked_at() {
    let source = tempdir().unwrap();
    write(source.path().join("cache/.wh.x"), "x");
    write(source.path().join("a"), "x");
    let matcher = Matcher::new(["cache"]).unwrap();
    let excludes = [Anchored {
        matcher: &matcher,
        root: source.path(),
    }];
    let (tree, _) = scan_with(source.path(), &Treatment::default(), &excludes, None).unwrap();
    assert_eq!(names(&tree), "a");
}

/// Walking on after an excluded file once skipped everything after it in its directory.
#[test]
fn what_follows_an_excluded_file_is_taken() {
    let source = tempdir().unwrap();
    for name in ["a.md", "b/c", "d", "e.md", "f"] {
        write(source.path().join(name), "x");
    }
    let matcher = Matcher::new(["*.md"]).unwrap();
    let excludes = [Anchored {
        matcher: &matcher,
        root: source.path(),
    }];
    let (tree, _) = scan_with(source.path(), &Treatment::default(), &excludes, None).unwrap();
    assert_eq!(names(&tree), "b b/c d f");
}

#[test]
fn what_no_layer_holds_is_skipped_or_refused() {
    let source = tempdir().unwrap();
    let root = source.path();
    let _listener = UnixListener::bind(root.join("socket")).unwrap();
    let (tree, notices) = scanned(root, "/");
    assert!(tree.is_empty());
    assert_eq!(
        notices[0],
        Notice::SocketSkipped {
            path: root.join("socket")
        }
    );

    let plain = Treatment::default();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let error = scan_with(root, &plain, &[], None).unwrap_err();
    assert_eq!(
        chain(&error),
        format!(
            "`{}/pipe` is a FIFO; only files, directories and symlinks go into a layer",
            root.display()
        )
    );
    fs::remove_file(root.join("pipe")).unwrap();

    write(root.join("d/.wh.gone"), "x");
    let error = scan_with(root, &plain, &[], None).unwrap_err();
    assert_eq!(
        chain(&error),
        format!(
            "could not add `{}/d/.wh.gone`: `d/.wh.gone`: names that start with `.wh.` delete \
             files in a layer and cannot be in one",
            root.display()
        )
    );

    let error = scan_with(&root.join("missing"), &plain, &[], None).unwrap_err();
    assert_eq!(
        chain(&error),
        format!(
            "could not read `{}/missing`: No such file or directory (os error 2)",
            root.display()
        )
    );
}

#[test]
fn later_adds_win_and_say_so() {
    let mut tree = Tree::new();
    let mut notices = Vec::new();
    let mut add = |name: &str, entry| {
        tree.insert(path(name), entry, &mut notices).unwrap();
        std::mem::take(&mut notices)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    };
    let directory = || Entry::directory(0o711);
    assert_eq!(add("a/b/c", crate::support::file("1")), "");
    assert_eq!(add("a/b-c", crate::support::file("1")), "");
    assert_eq!(add("a/b", directory()), "");
    assert_eq!(
        add("a/b/c", crate::support::file("2")),
        "`a/b/c`: a file takes the place of a file"
    );
    assert_eq!(add("a/b/d", Entry::symlink("c")), "");
    assert_eq!(add("a/b/d", Entry::symlink("c")), "");
    assert_eq!(
        add("a/b", Entry::symlink("x")),
        "`a/b`: a symlink takes the place of a directory and the 2 entries below it"
    );
    assert_eq!(
        add("a/b/e/f", crate::support::file("3")),
        "`a/b`: a directory takes the place of a symlink"
    );
    assert_eq!(
        listing(&tree),
        "0755 0:0 directory a\n0755 0:0 directory a/b\n0644 0:0 file a/b-c\n0755 0:0 directory \
         a/b/e\n0644 0:0 file a/b/e/f\n"
    );
}

#[test]
fn a_whiteout_never_meets_a_directory_of_its_own_layer() {
    // Whichever comes first.
    for whiteout_first in [true, false] {
        let mut tree = Tree::new();
        let mut notices = Vec::new();
        let whiteouts = |tree: &mut Tree| {
            for name in ["d", "implied", "f"] {
                tree.insert_whiteout(&path(name), &mut Vec::new()).unwrap();
            }
        };
        if whiteout_first {
            whiteouts(&mut tree);
        }
        for name in ["implied/x", "f"] {
            tree.insert(path(name), crate::support::file(""), &mut notices)
                .unwrap();
        }
        tree.insert(
            path("d"),
            tierce_layer::Entry::directory(0o755),
            &mut notices,
        )
        .unwrap();
        if !whiteout_first {
            whiteouts(&mut tree);
        }
        assert_eq!(
            names(&tree),
            "d d/.wh..wh..opq f implied implied/.wh..wh..opq implied/x"
        );
        assert_eq!(notices, []);
    }
}

#[test]
fn bytecode_of_a_later_source_is_stale() {
    let source = tempdir().unwrap();
    let root = source.path();
    write(root.join("m.py"), "x = 1\n");
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    fs::File::options()
        .write(true)
        .open(root.join("m.py"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    let mut compiled = b"\xcb\x0d\x0d\x0a\0\0\0\0".to_vec();
    compiled.extend(1_700_000_000_u32.to_le_bytes());
    compiled.extend(6_u32.to_le_bytes());
    compiled.extend(b"code");
    write(root.join("__pycache__/m.cpython-312.pyc"), &compiled);
    let (tree, _) = scanned(root, "/");
    let plan = plan_of(tree.clone());
    assert_eq!(plan.records().len(), 3);
    let archive = crate::support::archive_of(tree.clone());
    let mut expected = b"\xcb\x0d\x0d\x0a\x01\0\0\0".to_vec();
    expected.extend(&tierce_oci::Digest::of(b"x = 1\n").as_bytes()[..8]);
    expected.extend(b"code");
    assert!(
        archive
            .windows(expected.len())
            .any(|window| window == expected)
    );

    let mut tree = tree;
    let mut notices = Vec::new();
    tree.insert(path("m.py"), crate::support::file("y = 2\n"), &mut notices)
        .unwrap();
    let plan = tree
        .settle(Some(&tierce_layer::BaseLinks::none()), &mut notices)
        .unwrap();
    assert_eq!(plan.records().len(), 2);
    assert_eq!(
        notices[1].to_string(),
        "`__pycache__/m.cpython-312.pyc` was compiled from something other than its source and \
         was left out"
    );
}
