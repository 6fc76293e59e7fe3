//! What is found on the disk, in which order, and how a change in it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use tempfile::{TempDir, tempdir};
use tierce_layer::{
    Anchored, Destination, FileTime, Fingerprint, FoundKind, Keep, Matcher, ScanAdd, ScanError,
    Treatment, Walked, walk,
};
use walkdir::WalkDir;

use crate::support::{TWO, chain, until_it_shows, write};

/// How a source is walked, with everything at its default.
struct Walking<'a> {
    jobs: usize,
    treatment: Treatment,
    exclude: &'a [Anchored<'a>],
    include: Option<Anchored<'a>>,
}

impl Default for Walking<'_> {
    fn default() -> Self {
        Self {
            jobs: TWO.get(),
            treatment: Treatment::default(),
            exclude: &[],
            include: None,
        }
    }
}

impl Walking<'_> {
    fn walk(&self, source: &Path) -> Result<Walked, ScanError> {
        walk(&ScanAdd {
            source,
            destination: &Destination::root(),
            exclude: self.exclude,
            include: self.include,
            treatment: &self.treatment,
            jobs: NonZeroUsize::new(self.jobs).unwrap(),
        })
    }

    fn fingerprint(&self, source: &Path) -> Fingerprint {
        self.walk(source).unwrap().fingerprint()
    }
}

fn fingerprint(source: &Path) -> Fingerprint {
    Walking::default().fingerprint(source)
}

/// All that is said of an entry.
type Told = (
    Vec<u8>,
    String,
    (u64, u64, u64),
    [FileTime; 2],
    [u32; 3],
    bool,
);

fn found(walked: &Walked) -> Vec<Told> {
    let mut all = Vec::new();
    let mut entries = walked.entries();
    while let Some(found) = entries.next() {
        let stamp = found.stamp;
        all.push((
            found.path.to_vec(),
            format!("{:?}", found.kind),
            (stamp.device, stamp.inode, stamp.size),
            [stamp.modified, stamp.changed],
            [found.mode, found.uid, found.gid],
            found.shared,
        ));
    }
    all
}

/// The same as `walkdir` and the standard library tell it.
fn expected(source: &Path) -> Vec<Told> {
    let time = |seconds, nanoseconds: i64| FileTime {
        seconds,
        nanoseconds: nanoseconds.try_into().unwrap(),
    };
    let walk = WalkDir::new(source).min_depth(1).sort_by_file_name();
    walk.into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path();
            let metadata = entry.metadata().unwrap();
            let target = fs::read_link(path).map(PathBuf::into_os_string);
            let target = target.map(OsStringExt::into_vec).unwrap_or_default();
            let kind = if metadata.is_dir() {
                FoundKind::Directory
            } else if metadata.is_file() {
                FoundKind::File
            } else {
                assert!(metadata.is_symlink());
                FoundKind::Symlink(&target)
            };
            let relative = path.strip_prefix(source).unwrap();
            (
                relative.as_os_str().as_bytes().to_vec(),
                format!("{kind:?}"),
                (metadata.dev(), metadata.ino(), metadata.size()),
                [
                    time(metadata.mtime(), metadata.mtime_nsec()),
                    time(metadata.ctime(), metadata.ctime_nsec()),
                ],
                [metadata.mode() & 0o7777, metadata.uid(), metadata.gid()],
                metadata.nlink() > 1,
            )
        })
        .collect()
}

fn paths(walked: &Walked) -> String {
    let mut all = Vec::new();
    let mut entries = walked.entries();
    while let Some(found) = entries.next() {
        let path = found.path.escape_ascii();
        let mark = if found.wanted { "" } else { "?" };
        all.push(format!("{path}{mark}"));
    }
    all.join(" ")
}

#[derive(Debug, Clone)]
enum Node {
    File(usize),
    Symlink(Vec<u8>),
    Directory,
}

/// Names with much of their beginning in common, and such that sort between `D` and `D/`.
fn trees() -> impl Strategy<Value = BTreeMap<Vec<u8>, Node>> {
    let directory = prop_oneof![8 => "[D-F][0-9]?", 1 => "D[-.!]"].prop_map(String::into_bytes);
    let leaf = prop_oneof![
        4 => "[a-c][a-c0-9.]{0,3}".prop_map(String::into_bytes),
        1 => "[é\n ]{1,60}x".prop_map(String::into_bytes),
        1 => prop::collection::vec(0xf8..=0xff_u8, 1..120),
    ];
    let name = (prop::collection::vec(directory, 0..5), leaf).prop_map(|(mut path, leaf)| {
        path.push(leaf);
        path.join(&b'/')
    });
    let node = prop_oneof![
        6 => (0..50_usize).prop_map(Node::File),
        1 => prop::collection::vec(1..=255_u8, 1..150).prop_map(Node::Symlink),
        2 => Just(Node::Directory),
    ];
    prop::collection::btree_map(name, node, 0..100)
}

fn on_disk(nodes: &BTreeMap<Vec<u8>, Node>) -> TempDir {
    let directory = tempdir().unwrap();
    for (name, node) in nodes {
        let place = directory.path().join(OsStr::from_bytes(name));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        match node {
            Node::File(size) => fs::write(place, vec![b'x'; *size]).unwrap(),
            Node::Symlink(target) => symlink(OsStr::from_bytes(target), place).unwrap(),
            Node::Directory => fs::create_dir(place).unwrap(),
        }
    }
    directory
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn threads_find_what_one_that_goes_step_by_step_does(nodes in trees()) {
        let directory = on_disk(&nodes);
        let source = directory.path();
        let mut fingerprints = BTreeSet::new();
        for jobs in 1..=4 {
            let walking = Walking { jobs, ..Walking::default() };
            let walked = walking.walk(source).unwrap();
            prop_assert_eq!(found(&walked), expected(source));
            fingerprints.insert(walked.fingerprint().hash);
        }
        prop_assert_eq!(fingerprints.len(), 1);
    }

    #[test]
    fn patterns_that_are_carried_along_say_what_they_say_of_whole_paths(
        nodes in trees(),
        exclude in prop::collection::vec("!?([a-cD-F*?/.]|\\*\\*/){1,4}", 0..4),
        include in prop::option::of(prop::collection::vec("!?([a-cD-F*?/]|\\*\\*/){1,4}", 1..4)),
    ) {
        // A path of dots alone, or one that ends above the source, is no pattern at all.
        let (Ok(exclude), Ok(include)) =
            (Matcher::new(exclude), include.map(Matcher::new).transpose()) else {
            return Ok(());
        };
        let directory = on_disk(&nodes);
        let source = directory.path();
        let anchored = |matcher| Anchored { matcher, root: source };
        let walking = Walking {
            exclude: &[anchored(&exclude)],
            include: include.as_ref().map(anchored),
            ..Walking::default()
        };
        let walked = walking.walk(source).unwrap();

        let wanted = |path: &[u8]| {
            !exclude.is_match(path) && include.as_ref().is_none_or(|include| include.is_match(path))
        };
        let all = expected(source);
        let expected: Vec<_> = all
            .iter()
            .filter(|(path, ..)| {
                let holds = [&path[..], b"/"].concat();
                all.iter().any(|(below, ..)| {
                    (below == path || below.starts_with(&holds)) && wanted(below)
                })
            })
            .map(|(path, ..)| (path.clone(), wanted(path)))
            .collect();
        let mut found = Vec::new();
        let mut entries = walked.entries();
        while let Some(entry) = entries.next() {
            found.push((entry.path.to_vec(), entry.wanted));
        }
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn a_directory_of_many_names_is_shared_out() {
    let directory = tempdir().unwrap();
    let source = directory.path().join("many");
    for number in 0..10_000 {
        let name = source.join(format!("{}", number * 7919 % 10_000));
        match number % 1000 {
            0 => write(name.join("below"), "x"),
            1 => symlink("nowhere", name).unwrap(),
            _ => write(name, ""),
        }
    }
    let expected = expected(directory.path());
    assert_eq!(expected.len(), 10_011);
    let fingerprints: BTreeSet<_> = (1..=4)
        .map(|jobs| {
            let walking = Walking {
                jobs,
                ..Walking::default()
            };
            let walked = walking.walk(directory.path()).unwrap();
            assert!(found(&walked) == expected, "{jobs} jobs");
            walked.fingerprint().hash
        })
        .collect();
    assert_eq!(fingerprints.len(), 1);
}

#[test]
fn the_source_is_followed_and_nothing_in_it() {
    let directory = tempdir().unwrap();
    let root = directory.path();
    write(root.join("real/d/file"), "x");
    symlink("real", root.join("link")).unwrap();
    symlink("..", root.join("real/d/up")).unwrap();
    symlink("itself", root.join("real/itself")).unwrap();
    symlink("d", root.join("real/to-d")).unwrap();
    for source in ["real", "real/", "link", "link/", "link/."] {
        let walked = Walking::default().walk(&root.join(source)).unwrap();
        assert_eq!(paths(&walked), "d d/file d/up itself to-d", "{source}");
    }
    assert_eq!(
        fingerprint(&root.join("real")),
        fingerprint(&root.join("link"))
    );
}

/// Such a source is walked with few open directories and by paths that are still short enough.
#[test]
fn a_source_may_be_as_deep_as_paths_reach() {
    let directory = tempdir().unwrap();
    let mut deepest = directory.path().to_owned();
    let mut deeper = vec![deepest.clone()];
    while deepest.as_os_str().len() + "/d".len() < 4096 {
        deepest.push("d");
        fs::create_dir(&deepest).unwrap();
        deeper.push(deepest.clone());
    }
    for jobs in [1, 3] {
        let walking = Walking {
            jobs,
            ..Walking::default()
        };
        let walked = walking.walk(directory.path()).unwrap();
        let mut entries = walked.entries();
        let mut count = 0;
        let mut last = Vec::new();
        while let Some(found) = entries.next() {
            count += 1;
            last = found.path.to_vec();
        }
        assert_eq!(count, deeper.len() - 1);
        assert_eq!(directory.path().join(OsStr::from_bytes(&last)), deepest);
    }
    // Removing it all at once would take an open directory for each.
    for directory in deeper.iter().skip(1).rev() {
        fs::remove_dir(directory).unwrap();
    }
}

/// The first of several errors is told, whichever thread comes upon one first.
#[test]
fn what_lies_deeper_than_paths_reach_is_an_error() {
    let directory = tempdir().unwrap();
    let name = "n".repeat(200);
    for top in ["b", "a", "c", "a-", "d", "e", "f", "g"] {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut place = rustix::fs::open(directory.path(), flags, Mode::empty()).unwrap();
        for name in [top].into_iter().chain([&name[..]; 22]) {
            rustix::fs::mkdirat(&place, name, Mode::RWXU).unwrap();
            place = rustix::fs::openat(&place, name, flags, Mode::empty()).unwrap();
        }
    }
    let mut too_long = directory.path().join("a");
    while too_long.as_os_str().len() < 4096 {
        too_long.push(&name);
    }
    let walkdir: Result<Vec<_>, _> = WalkDir::new(directory.path())
        .sort_by_file_name()
        .into_iter()
        .map(|entry| entry.and_then(|entry| entry.metadata()))
        .collect();
    assert_eq!(walkdir.unwrap_err().path(), Some(&*too_long));
    for jobs in 1..=4 {
        let walking = Walking {
            jobs,
            ..Walking::default()
        };
        let error = walking.walk(directory.path()).unwrap_err();
        assert_eq!(
            chain(&error),
            format!(
                "could not read `{}`: File name too long (os error 36)",
                too_long.display()
            )
        );
    }
}

fn times(path: &Path) -> (FileTime, FileTime) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let time = |seconds, nanoseconds: i64| FileTime {
        seconds,
        nanoseconds: nanoseconds.try_into().unwrap(),
    };
    (
        time(metadata.mtime(), metadata.mtime_nsec()),
        time(metadata.ctime(), metadata.ctime_nsec()),
    )
}

#[test]
fn every_edit_changes_the_fingerprint() {
    let directory = tempdir().unwrap();
    let root = directory.path();
    write(root.join("d/file"), "one");
    write(root.join("other"), "x");
    fs::create_dir(root.join("empty")).unwrap();
    symlink("other", root.join("link")).unwrap();
    let file = root.join("d/file");
    let mut before = fingerprint(root);
    let mut changed = |what: &str| {
        let after = fingerprint(root);
        assert_eq!(after, fingerprint(root), "{what}");
        assert_ne!(after, before, "{what}");
        before = after;
    };
    let put_back = |file: &Path, (modified, _): (FileTime, FileTime)| {
        let time = Timespec {
            tv_sec: modified.seconds,
            tv_nsec: modified.nanoseconds.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, file, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };

    until_it_shows(&file, || fs::write(&file, "two").unwrap());
    changed("content of the same size");
    let then = times(&file);
    until_it_shows(&file, || {
        fs::write(&file, "six").unwrap();
        put_back(&file, then);
    });
    assert_eq!(times(&file).0, then.0);
    changed("content of the same size with its time put back");
    fs::write(&file, "longer").unwrap();
    changed("content of another size");
    fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    changed("mode of a file");
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o700)).unwrap();
    changed("mode of a directory");
    fs::rename(&file, root.join("d/renamed")).unwrap();
    changed("name of a file");
    fs::rename(root.join("empty"), root.join("d/empty")).unwrap();
    changed("place of a directory");
    write(root.join("new"), "");
    changed("one more file");
    fs::remove_file(root.join("new")).unwrap();
    changed("one less");
    fs::create_dir(root.join("new")).unwrap();
    changed("one more directory");
    fs::remove_dir(root.join("new")).unwrap();
    changed("one less");
    fs::remove_file(root.join("link")).unwrap();
    symlink("empty", root.join("link")).unwrap();
    changed("where a symlink points to");
    fs::remove_file(root.join("other")).unwrap();
    symlink("x", root.join("other")).unwrap();
    changed("a symlink for a file");
    fs::remove_file(root.join("other")).unwrap();
    fs::create_dir(root.join("other")).unwrap();
    changed("a directory for a symlink");
}

#[test]
fn what_no_layer_shows_does_not_change_the_fingerprint() {
    let directory = tempdir().unwrap();
    let root = directory.path();
    write(root.join("d/file"), "one");
    symlink("d", root.join("link")).unwrap();
    let matcher = Matcher::new(["**/*.log", "cache"]).unwrap();
    let walking = Walking {
        exclude: &[Anchored {
            matcher: &matcher,
            root,
        }],
        ..Walking::default()
    };
    let before = walking.fingerprint(root);
    let same = |what: &str| assert_eq!(walking.fingerprint(root), before, "{what}");

    fs::read(root.join("d/file")).unwrap();
    fs::read_dir(root.join("d")).unwrap().for_each(drop);
    fs::read_link(root.join("link")).unwrap();
    same("reading");
    write(root.join("d/x.log"), "x");
    until_it_shows(&root.join("d"), || {
        fs::remove_file(root.join("d/x.log")).unwrap();
        write(root.join("d/x.log"), "x");
    });
    same("an excluded file");
    write(root.join("cache/x"), "x");
    same("an excluded directory");
    fs::remove_file(root.join("link")).unwrap();
    symlink("d", root.join("link")).unwrap();
    same("an equal symlink");
    assert_ne!(fingerprint(root), before);
}

#[test]
fn a_fingerprint_knows_how_late_it_is() {
    let directory = tempdir().unwrap();
    let root = directory.path();
    fs::create_dir(root.join("d")).unwrap();
    assert_eq!(fingerprint(root).latest, None);
    write(root.join("d/old"), "x");
    write(root.join("future"), "x");
    let (_, changed) = times(&root.join("future"));
    let (_, old) = times(&root.join("d/old"));
    assert_eq!(fingerprint(root).latest, Some(changed.max(old)));
    let future = std::time::UNIX_EPOCH + std::time::Duration::new(9_000_000_000, 5);
    let file = File::options().write(true).open(root.join("future"));
    file.unwrap().set_modified(future).unwrap();
    assert_eq!(
        fingerprint(root).latest,
        Some(FileTime {
            seconds: 9_000_000_000,
            nanoseconds: 5
        })
    );
}

#[test]
fn treatments_that_keep_more_have_more_in_their_fingerprint() {
    let directory = tempdir().unwrap();
    let root = directory.path();
    write(root.join("source/a"), "x");
    fs::create_dir(root.join("source/d")).unwrap();
    let source = root.join("source");
    let links = Walking {
        treatment: Treatment {
            hardlinks: Keep::Keep,
            ..Treatment::default()
        },
        ..Walking::default()
    };
    assert_eq!(links.fingerprint(&source), fingerprint(&source));
    fs::hard_link(root.join("source/a"), root.join("elsewhere")).unwrap();
    assert_ne!(links.fingerprint(&source), fingerprint(&source));

    let xattrs = Walking {
        treatment: Treatment {
            xattrs: vec!["user.note".to_owned()],
            ..Treatment::default()
        },
        ..Walking::default()
    };
    let before = xattrs.fingerprint(&source);
    let place = source.join("d");
    let set = |value: &[u8]| rustix::fs::setxattr(&place, "user.note", value, XattrFlags::empty());
    // Some file systems have none.
    if set(b"x").is_ok() {
        until_it_shows(&place, || {
            // The value that is there already would be no change.
            set(b"y").unwrap();
            set(b"z").unwrap();
        });
        assert_ne!(xattrs.fingerprint(&source), before);
    }
}

#[test]
fn a_single_file_has_a_fingerprint() {
    let directory = tempdir().unwrap();
    let root = directory.path();
    let at = |name: &str| -> PathBuf { root.join(name) };
    write(at("file"), "one");
    symlink("file", at("link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    let walked = Walking::default().walk(&at("file")).unwrap();
    let mut entries = walked.entries();
    let only = entries.next().unwrap();
    assert_eq!(
        (only.path, only.kind, only.wanted),
        (&b""[..], FoundKind::File, true)
    );
    assert!(entries.next().is_none());
    assert!(entries.next().is_none());

    let file = fingerprint(&at("file"));
    assert_eq!(fingerprint(&at("link")), file);
    until_it_shows(&at("file"), || write(at("file"), "two"));
    let edited = fingerprint(&at("file"));
    assert_eq!(fingerprint(&at("link")), edited);
    let dangling = fingerprint(&at("dangling"));
    fs::remove_file(at("dangling")).unwrap();
    symlink("elsewhere", at("dangling")).unwrap();
    let all = BTreeSet::from([
        file.hash,
        edited.hash,
        dangling.hash,
        fingerprint(&at("dangling")).hash,
        fingerprint(&at("empty")).hash,
    ]);
    assert_eq!(all.len(), 5);

    let matcher = Matcher::new(["file"]).unwrap();
    let excluded = Walking {
        exclude: &[Anchored {
            matcher: &matcher,
            root,
        }],
        ..Walking::default()
    };
    assert_eq!(paths(&excluded.walk(&at("file")).unwrap()), "");
}

#[test]
fn what_is_pruned_is_not_even_looked_at() {
    let directory = tempdir().unwrap();
    let root = directory.path();
    for name in ["a/x", "b/x", "b/keep/x", "b/other/x", "c/x"] {
        write(root.join(name), "x");
    }
    let exclude = Matcher::new(["b", "!b/keep", "c/x"]).unwrap();
    let walking = Walking {
        exclude: &[Anchored {
            matcher: &exclude,
            root,
        }],
        ..Walking::default()
    };
    let walked = walking.walk(root).unwrap();
    assert_eq!(paths(&walked), "a a/x b? b/keep b/keep/x c");
    let include = Matcher::new(["**/x", "!a"]).unwrap();
    let walking = Walking {
        include: Some(Anchored {
            matcher: &include,
            root,
        }),
        ..walking
    };
    let walked = walking.walk(root).unwrap();
    assert_eq!(paths(&walked), "b? b/keep? b/keep/x");
    let walking = Walking {
        include: Some(Anchored {
            matcher: &include,
            root: Path::new("/elsewhere"),
        }),
        ..walking
    };
    assert_eq!(paths(&walking.walk(root).unwrap()), "");
}
