//! Root filesystems: what layers come to, and what they cannot do.

mod model;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use tar::{EntryType, Header};
use tierce_layer::Limits;
use tierce_oci::{DiffId, Digest};
use tierce_runner::rootfs::{
    Form, MountKind, MountPoint, Root, RootfsCache, StackError, UnpackError, Unpacked,
};

/// A member of an archive as a test says it.
#[derive(Debug, Clone)]
enum Member {
    Directory(&'static str, u32),
    File(&'static str, u32, &'static str),
    Symlink(&'static str, &'static str),
    Link(&'static str, &'static str),
}

use Member::{Directory, File, Link, Symlink};

const TIME: u64 = 1_600_000_000;

/// Puts a member into an archive without asking what its name is.
fn append(
    archive: &mut Vec<u8>,
    name: &[u8],
    kind: EntryType,
    mode: u32,
    target: &[u8],
    content: &[u8],
) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(1234);
    header.set_gid(1234);
    header.set_mtime(TIME);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// Puts a member whose name may be long.
fn append_long(archive: &mut Vec<u8>, name: &[u8], content: &[u8]) {
    let mut terminated = name.to_vec();
    terminated.push(0);
    append(
        archive,
        b"././@LongLink",
        EntryType::GNULongName,
        0,
        b"",
        &terminated,
    );
    let start = &name[..name.len().min(90)];
    append(archive, start, EntryType::Regular, 0o644, b"", content);
}

fn archive(members: &[Member]) -> Vec<u8> {
    let mut archive = Vec::new();
    for member in members {
        let (name, kind, mode, target, content) = match member {
            Directory(name, mode) => (name, EntryType::Directory, *mode, "", ""),
            File(name, mode, content) => (name, EntryType::Regular, *mode, "", *content),
            Symlink(name, target) => (name, EntryType::Symlink, 0o777, *target, ""),
            Link(name, target) => (name, EntryType::Link, 0o644, *target, ""),
        };
        append(
            &mut archive,
            name.as_bytes(),
            kind,
            mode,
            target.as_bytes(),
            content.as_bytes(),
        );
    }
    ended(archive)
}

fn ended(mut archive: Vec<u8>) -> Vec<u8> {
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn diff_id(archive: &[u8]) -> DiffId {
    DiffId(Digest::of(archive))
}

/// A cache in a directory that goes with it, beside something that nobody may touch.
struct Bench {
    directory: tempfile::TempDir,
    cache: RootfsCache,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("the test's own files can be used");
        let cache = RootfsCache::open(directory.path().join("rootfs-1"))
            .expect("the test's own files can be used");
        Self { directory, cache }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs-1")
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, UnpackError> {
        let id = diff_id(archive);
        self.cache
            .unpack(id, Form::AsPacked, archive, Limits::default())
    }

    /// The layers over each other, flattened.
    fn flat(&self, layers: &[Vec<Member>]) -> Root {
        self.flat_with(layers, &[])
    }

    fn flat_with(&self, layers: &[Vec<Member>], mount_points: &[MountPoint]) -> Root {
        let ids = self.unpack_all(layers);
        let flattened = self.cache.flatten(&ids, Form::AsPacked, mount_points);
        flattened.expect("the test's own files can be used")
    }

    fn unpack_all(&self, layers: &[Vec<Member>]) -> Vec<DiffId> {
        let archives = layers.iter().map(|layer| archive(layer));
        archives
            .map(|archive| {
                self.unpack(&archive)
                    .expect("the test's own files can be used");
                diff_id(&archive)
            })
            .collect()
    }

    /// What is begun and not finished.
    fn begun(&self) -> usize {
        fs::read_dir(self.root().join("begun"))
            .expect("the test's own files can be used")
            .count()
    }
}

/// A tree as text: one line for each path, with what can be told of it.
fn listing(root: &Path) -> BTreeMap<String, String> {
    fn add(root: &Path, directory: &Path, lines: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).expect("the test's own files can be used") {
            let path = entry.expect("the test's own files can be used").path();
            let metadata = path
                .symlink_metadata()
                .expect("the test's own files can be used");
            let mode = metadata.permissions().mode() & 0o7777;
            let kind = metadata.file_type();
            let line = if kind.is_symlink() {
                format!(
                    "-> {}",
                    fs::read_link(&path)
                        .expect("the test's own files can be used")
                        .display()
                )
            } else if kind.is_dir() {
                add(root, &path, lines);
                format!("{mode:o} directory")
            } else if kind.is_char_device() {
                "whiteout".to_owned()
            } else {
                let content = fs::read(&path).expect("the test's own files can be used");
                format!("{mode:o} {}", String::from_utf8_lossy(&content))
            };
            let name = path
                .strip_prefix(root)
                .expect("the test's own files can be used");
            lines.insert(
                String::from_utf8_lossy(name.as_os_str().as_bytes()).into_owned(),
                line,
            );
        }
    }
    let mut lines = BTreeMap::new();
    add(root, root, &mut lines);
    lines
}

fn lines(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter()
        .map(|(path, line)| ((*path).to_owned(), (*line).to_owned()))
        .collect()
}

#[test]
fn a_layer_becomes_files_with_its_modes_and_times() {
    let bench = Bench::new();
    let root = bench.flat(&[vec![
        Directory("usr/", 0o755),
        Directory("usr/bin/", 0o751),
        File("usr/bin/tool", 0o4755, "#!"),
        Symlink("bin", "usr/bin"),
        Link("usr/bin/same", "usr/bin/tool"),
        Directory("tmp", 0o1777),
    ]]);
    let root = &root.directories[0];
    assert_eq!(
        listing(root),
        lines(&[
            ("bin", "-> usr/bin"),
            ("tmp", "1777 directory"),
            ("usr", "755 directory"),
            ("usr/bin", "751 directory"),
            ("usr/bin/same", "755 #!"),
            ("usr/bin/tool", "755 #!"),
        ])
    );
    for path in ["usr", "usr/bin", "usr/bin/tool", "bin", "tmp"] {
        let metadata = root
            .join(path)
            .symlink_metadata()
            .expect("the test's own files can be used");
        assert_eq!(metadata.mtime(), TIME.cast_signed(), "{path}");
    }
    let inode = |path: &str| {
        root.join(path)
            .metadata()
            .expect("the test's own files can be used")
            .ino()
    };
    assert_eq!(inode("usr/bin/same"), inode("usr/bin/tool"));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn layers_lie_over_each_other() {
    let below = || {
        vec![
            Directory("a", 0o700),
            File("a/one", 0o644, "1"),
            File("a/two", 0o644, "2"),
            Directory("a/deep", 0o755),
            File("a/deep/file", 0o644, "deep"),
            Symlink("link", "a"),
            File("file", 0o644, "file"),
        ]
    };
    let a_one = [("a", "700 directory"), ("a/one", "644 1")];
    let deep = [("a/deep", "755 directory"), ("a/deep/file", "644 deep")];
    let rest = [("link", "-> a"), ("file", "644 file")];
    let two = [("a/two", "644 2")];
    for (what, above, expected) in [
        (
            "a whiteout removes one name",
            vec![File("a/.wh.two", 0o644, "")],
            [&a_one[..], &deep, &rest].concat(),
        ),
        (
            "an opaque directory hides all that it had",
            vec![
                Directory("a", 0o755),
                File("a/new", 0o644, "new"),
                File("a/.wh..wh..opq", 0o644, ""),
            ],
            [&[("a", "755 directory"), ("a/new", "644 new")][..], &rest].concat(),
        ),
        (
            "a whiteout comes before what the layer has, wherever it stands",
            vec![
                Directory("a", 0o755),
                File("a/new", 0o644, "new"),
                File(".wh.a", 0o644, ""),
                File("file", 0o600, "mine"),
                File(".wh.file", 0o644, ""),
            ],
            vec![
                ("a", "755 directory"),
                ("a/new", "644 new"),
                ("file", "600 mine"),
                ("link", "-> a"),
            ],
        ),
        (
            "a file takes the place of a directory",
            vec![File("a", 0o644, "file")],
            [&[("a", "644 file")][..], &rest].concat(),
        ),
        (
            "a directory takes the place of a symlink",
            vec![Directory("link", 0o755), File("link/x", 0o644, "x")],
            [
                &a_one[..],
                &two,
                &deep,
                &[
                    ("file", "644 file"),
                    ("link", "755 directory"),
                    ("link/x", "644 x"),
                ],
            ]
            .concat(),
        ),
        (
            "a directory that no member describes keeps its mode",
            vec![File("a/three", 0o644, "3")],
            [&a_one[..], &two, &deep, &rest, &[("a/three", "644 3")]].concat(),
        ),
        (
            "a hardlink to a file of a lower layer",
            vec![Link("new/linked", "link/two"), File("a/.wh.one", 0, "")],
            [
                &[("a", "700 directory")][..],
                &two,
                &deep,
                &rest,
                &[("new", "755 directory"), ("new/linked", "644 2")],
            ]
            .concat(),
        ),
        (
            "a hardlink to a symlink of a lower layer",
            vec![Link("again", "link")],
            [&a_one[..], &two, &deep, &rest, &[("again", "-> a")]].concat(),
        ),
        (
            "all of it can go",
            vec![File(".wh..wh..opq", 0o644, ""), File("only", 0o644, "")],
            vec![("only", "644 ")],
        ),
        (
            "names that delete nothing are nothing",
            vec![
                File(".wh.", 0o644, ""),
                File(".wh..", 0o644, ""),
                File(".wh...", 0o644, ""),
                File(".wh..wh.plnk/x", 0o644, ""),
                File("a/.wh.nothing", 0o644, ""),
            ],
            [&a_one[..], &two, &deep, &rest].concat(),
        ),
    ] {
        let bench = Bench::new();
        let root = bench.flat(&[below(), above]);
        assert_eq!(listing(&root.directories[0]), lines(&expected), "{what}");
        assert_eq!(bench.begun(), 0, "{what}");
    }
}

/// What `find` sees below `directory` with the capabilities of a user namespace, after `prepare`,
/// a line of shell that may mount things.
fn seen_by_find(prepare: &str, directory: &Path) -> Vec<String> {
    let script = format!(
        "{prepare} cd \"$1\" && find . -mindepth 1 -printf '%P %y %m %T@ %l\\n' && \
         find . -type f -exec sha256sum {{}} +"
    );
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-ec", &script, "sh"])
        .arg(directory)
        .env("LC_ALL", "C")
        .output()
        .expect("the test's own files can be used");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{prepare}: {said}");
    let mut lines: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

/// The same of layers that overlayfs lays over each other.
fn seen_in_overlay(root: &Root) -> Vec<String> {
    let scratch = tempfile::tempdir().expect("the test's own files can be used");
    let mut lower = Vec::new();
    for (index, directory) in root.directories.iter().enumerate() {
        let name = format!("l{index}");
        std::os::unix::fs::symlink(directory, scratch.path().join(&name))
            .expect("the test's own files can be used");
        lower.push(name);
    }
    fs::create_dir(scratch.path().join("merged")).expect("the test's own files can be used");
    let prepare = format!(
        "cd '{}'; mount -t overlay overlay -o ro,userxattr,lowerdir={} merged;",
        scratch.path().display(),
        lower.join(":")
    );
    seen_by_find(&prepare, &scratch.path().join("merged"))
}

/// Mount points as a box has them.
fn box_mount_points() -> Vec<MountPoint> {
    let point = |path: &str, kind| MountPoint {
        path: path.into(),
        kind,
    };
    vec![
        point("/proc", MountKind::Directory),
        point("/dev", MountKind::Directory),
        point("/tmp", MountKind::Directory),
        point("/etc/resolv.conf", MountKind::File),
        point("/etc/hosts", MountKind::File),
    ]
}

#[test]
fn overlayfs_sees_what_flattening_makes() {
    for (what, layers) in overlay_cases() {
        let bench = Bench::new();
        let ids = bench.unpack_all(&layers);
        for mount_points in [vec![], box_mount_points()] {
            let stacked = bench.cache.stack(&ids, Form::AsPacked, &mount_points);
            let stacked = stacked.expect("the test's own files can be used");
            assert_eq!(stacked.not_for_overlay, None, "{what}");
            let flat = bench.cache.flatten(&ids, Form::AsPacked, &mount_points);
            let flat = flat.expect("the test's own files can be used");
            assert_eq!(stacked.mount_points, flat.mount_points, "{what}");
            assert_eq!(
                seen_in_overlay(&stacked),
                seen_by_find("", &flat.directories[0]),
                "{what}"
            );
        }
    }
}

#[test]
fn members_go_where_symlinks_of_lower_layers_lead() {
    let below = || {
        vec![
            Directory("usr", 0o755),
            Directory("usr/lib", 0o711),
            File("usr/lib/old", 0o644, "old"),
            Symlink("lib", "usr/lib"),
            Symlink("opt", "/data/opt"),
            Symlink("file", "usr/lib/old"),
        ]
    };
    let bench = Bench::new();
    let layers = [
        below(),
        vec![
            File("lib/new", 0o644, "new"),
            File("lib/.wh.old", 0, ""),
            File("opt/x/y", 0o600, "y"),
            Link("lib/linked", "usr/lib/old"),
            Directory("lib/closed", 0o000),
        ],
    ];
    let ids = bench.unpack_all(&layers);
    let flat = bench
        .cache
        .flatten(&ids, Form::AsPacked, &[])
        .expect("the test's own files can be used");
    let stacked = bench
        .cache
        .stack(&ids, Form::AsPacked, &[])
        .expect("the test's own files can be used");
    let seen = seen_by_find("", &flat.directories[0]);
    assert_eq!(seen_in_overlay(&stacked), seen);
    let seen: Vec<_> = seen
        .iter()
        .filter_map(|line| line.split_once(['1', '0']))
        .map(|(start, _)| start.trim_end())
        .filter(|start| !start.contains("0000"))
        .collect();
    let paths: Vec<_> = seen
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    for path in [
        "usr/lib/new",
        "usr/lib/linked",
        "usr/lib/closed",
        "data/opt/x/y",
        "lib",
    ] {
        assert!(paths.contains(&path), "{path}: {paths:?}");
    }
    assert!(!paths.contains(&"usr/lib/old") && !paths.contains(&"lib/new"));
}

#[test]
fn a_layer_may_be_there_twice() {
    let bench = Bench::new();
    let twice = || vec![Directory("etc", 0o755), File("etc/a", 0o644, "one")];
    let between = vec![File("etc/a", 0o600, "two"), File("etc/b", 0o644, "")];
    let emptied = || vec![File("etc/.wh.b", 0, "")];
    let ids = bench.unpack_all(&[
        twice(),
        between,
        emptied(),
        twice(),
        emptied(),
        vec![],
        vec![],
    ]);
    let flat = bench.cache.flatten(&ids, Form::AsPacked, &[]).unwrap();
    assert_eq!(
        listing(&flat.directories[0]),
        lines(&[("etc", "755 directory"), ("etc/a", "644 one")])
    );
    let stacked = bench.cache.stack(&ids, Form::AsPacked, &[]).unwrap();
    let seen = seen_by_find("", &flat.directories[0]);
    assert_eq!(seen_in_overlay(&stacked), seen);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn symlinks_of_lower_layers_may_lead_back_into_the_layer() {
    let directory = "755 directory";
    for (name, layers, expected) in [
        (
            "to a symlink of it",
            [
                vec![Symlink("c", "b")],
                vec![Symlink("b", "/a/c"), Directory("c/a", 0o755)],
            ],
            lines(&[
                ("a", directory),
                ("a/c", directory),
                ("a/c/a", directory),
                ("b", "-> /a/c"),
                ("c", "-> b"),
            ]),
        ),
        (
            "and a symlink behind one of them leads a directory of it",
            [
                vec![Symlink("a", "b")],
                vec![Symlink("a/c", "a"), Directory("b/c/a", 0o755)],
            ],
            lines(&[
                ("a", "-> b"),
                ("b", directory),
                ("b/a", directory),
                ("b/a/a", directory),
                ("b/c", "-> a"),
            ]),
        ),
        (
            "and not into a directory that replaces one of them",
            [
                vec![Symlink("c", "b"), Symlink("d", "z"), Directory("z", 0o755)],
                vec![
                    Directory("d", 0o755),
                    Symlink("d/s", "t"),
                    File("d/f", 0o644, ""),
                    File("c/f", 0o644, ""),
                ],
            ],
            lines(&[
                ("b", directory),
                ("b/f", "644 "),
                ("c", "-> b"),
                ("d", directory),
                ("d/f", "644 "),
                ("d/s", "-> t"),
                ("z", directory),
            ]),
        ),
        (
            "to a directory that is described twice",
            [
                vec![Symlink("c", "b")],
                vec![Directory("b/x", 0o000), Directory("c/x", 0o755)],
            ],
            lines(&[("b", directory), ("b/x", directory), ("c", "-> b")]),
        ),
        (
            "to a file that is there twice",
            [
                vec![Symlink("c", "b")],
                vec![File("b/x", 0o644, "first"), File("c/x", 0o600, "second")],
            ],
            lines(&[("b", directory), ("b/x", "600 second"), ("c", "-> b")]),
        ),
        (
            "to a hardlink, which a hardlink names",
            [
                vec![
                    Symlink("c", "b"),
                    File("b/x", 0o644, "old"),
                    File("t", 0o600, "t"),
                ],
                vec![Link("c/x", "t"), Link("a", "b/x")],
            ],
            lines(&[
                ("a", "600 t"),
                ("b", directory),
                ("b/x", "600 t"),
                ("c", "-> b"),
                ("t", "600 t"),
            ]),
        ),
        (
            "to what a hardlink names",
            [
                vec![Symlink("c", "b")],
                vec![File("b/c", 0o644, "own"), Link("a", "c/c")],
            ],
            lines(&[
                ("a", "644 own"),
                ("b", directory),
                ("b/c", "644 own"),
                ("c", "-> b"),
            ]),
        ),
    ] {
        let bench = Bench::new();
        let ids = bench.unpack_all(&layers);
        let flat = bench.cache.flatten(&ids, Form::AsPacked, &[]).unwrap();
        assert_eq!(listing(&flat.directories[0]), expected, "{name}");
        let stacked = bench.cache.stack(&ids, Form::AsPacked, &[]).unwrap();
        let seen = seen_by_find("", &flat.directories[0]);
        assert_eq!(seen_in_overlay(&stacked), seen, "{name}");
    }
}

#[test]
fn a_file_where_symlinks_lead_a_directory_is_refused_by_name() {
    for layer in [
        vec![File("b/x", 0o644, ""), Directory("c/x/y", 0o755)],
        vec![File("c/x", 0o644, ""), Directory("b/x", 0o755)],
    ] {
        let bench = Bench::new();
        let ids = bench.unpack_all(&[vec![Symlink("c", "b")], layer]);
        let error = bench.cache.stack(&ids, Form::AsPacked, &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the layer {} cannot be used: behind symlinks of the layers below, `b/x` is both a \
                 directory and none in it",
                ids[1]
            )
        );
        assert_eq!(bench.begun(), 0);
    }
}

#[test]
fn a_deleted_symlink_leads_nowhere() {
    let bench = Bench::new();
    let root = bench.flat(&[
        vec![Symlink("b/a", "b")],
        vec![Directory("b/a/a", 0o755), File(".wh.b", 0, "")],
    ]);
    let directory = "755 directory";
    assert_eq!(
        listing(&root.directories[0]),
        lines(&[("b", directory), ("b/a", directory), ("b/a/a", directory)])
    );
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn overlay_cases() -> Vec<(&'static str, Vec<Vec<Member>>)> {
    vec![
        (
            "one layer that deletes what nobody has",
            vec![vec![
                Directory("d", 0o755),
                File("d/.wh.x", 0, ""),
                File(".wh.y", 0, ""),
                Directory("e", 0o755),
                File("e/.wh..wh..opq", 0, ""),
            ]],
        ),
        (
            "closed directories, in each other, over and under others",
            vec![
                vec![
                    Directory("root", 0o000),
                    Directory("root/in", 0o000),
                    File("root/in/file", 0o000, "secret"),
                    Directory("etc", 0o000),
                    File("etc/passwd", 0o600, "x"),
                ],
                vec![
                    Directory("etc", 0o755),
                    File("root/in/other", 0o644, ""),
                    Directory("x", 0o300),
                ],
            ],
        ),
        (
            "a file over a directory over a file",
            vec![
                vec![Directory("a", 0o755), File("a/low", 0o644, "low")],
                vec![File("a", 0o644, "file")],
                vec![Directory("a", 0o711), File("a/high", 0o644, "high")],
            ],
        ),
        (
            "a directory, a file and a directory again in one layer",
            vec![
                vec![Directory("a", 0o755), File("a/low", 0o644, "low")],
                vec![
                    Directory("a", 0o755),
                    File("a/gone", 0o644, "gone"),
                    File("a", 0o644, "file"),
                    Directory("a", 0o700),
                    File("a/there", 0o644, "there"),
                ],
            ],
        ),
        (
            "hardlinks to lower layers, one through another",
            vec![
                vec![
                    Directory("d", 0o750),
                    File("d/file", 0o640, "content"),
                    Symlink("d/link", "file"),
                ],
                vec![Link("d/second", "d/file"), Link("new/link", "d/link")],
                vec![
                    File(".wh.d", 0, ""),
                    Link("third", "d/second"),
                    Link("fourth", "third"),
                ],
            ],
        ),
        (
            "a described directory in one that no layer describes",
            vec![
                vec![Directory("b/c", 0o711)],
                vec![Directory("b/c/a", 0o755)],
            ],
        ),
        (
            "a hardlink to a symlink of a lower layer that the layer goes through",
            vec![
                vec![Symlink("a/c", "a")],
                vec![Directory("a/c/a", 0o755), Link("b", "a/c")],
            ],
        ),
        (
            "a directory whose name was a symlink that the layer deletes with all around it",
            vec![
                vec![Symlink("b/a", "b")],
                vec![Directory("b/a/a", 0o755), File(".wh.b", 0, "")],
            ],
        ),
        (
            "mount points of an image that has links in their places",
            vec![vec![
                Symlink("tmp", "var/tmp"),
                Directory("var", 0o711),
                Symlink("etc", "/usr/../usr/etc"),
                Directory("usr", 0o705),
                Directory("usr/etc", 0o750),
                Symlink("usr/etc/resolv.conf", "../../../../run/resolv.conf"),
                Symlink("dev", "/"),
            ]],
        ),
        (
            "whiteouts of what is whited out, and a name that comes back",
            vec![
                vec![Directory("a", 0o755), File("a/b", 0o644, "1")],
                vec![File("a/.wh.b", 0, "")],
                vec![File("a/.wh.b", 0, ""), File(".wh.a", 0, "")],
                vec![Directory("a", 0o755), File("a/c", 0o644, "2")],
            ],
        ),
    ]
}

/// What is in `directory` apart from the cache.
fn beside(bench: &Bench) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(bench.directory.path())
        .expect("the test's own files can be used")
        .map(|entry| {
            entry
                .expect("the test's own files can be used")
                .file_name()
                .into_string()
                .expect("the test's own files can be used")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn nothing_is_written_outside() {
    for (what, members, expected) in [
        (
            "names that lead out",
            vec![
                File("../evil", 0o644, ""),
                File("a/../../evil", 0o644, ""),
                File("../../../../../../tmp/evil", 0o644, ""),
                File("..", 0o644, ""),
            ],
            vec![],
        ),
        (
            "absolute names are inside",
            vec![File("/etc/passwd", 0o644, "x")],
            vec![("etc", "755 directory"), ("etc/passwd", "644 x")],
        ),
        (
            "a symlink out, and a file through it",
            vec![
                Symlink("out", "../../../.."),
                File("out/evil", 0o644, "x"),
                Symlink("absolute", "/"),
                File("absolute/inside", 0o644, "y"),
                Symlink("deep", "missing/../a/b"),
                File("deep/file", 0o644, "z"),
            ],
            vec![
                ("a", "755 directory"),
                ("a/b", "755 directory"),
                ("a/b/file", "644 z"),
                ("absolute", "-> /"),
                ("deep", "-> missing/../a/b"),
                ("evil", "644 x"),
                ("inside", "644 y"),
                ("missing", "755 directory"),
                ("out", "-> ../../../.."),
            ],
        ),
        (
            "a file in the place of a symlink out",
            vec![Symlink("link", "../evil"), File("link", 0o644, "x")],
            vec![("link", "644 x")],
        ),
        (
            "a directory in the place of a symlink out",
            vec![
                Symlink("link", "../.."),
                Directory("link", 0o755),
                File("link/x", 0o644, ""),
            ],
            vec![("link", "755 directory"), ("link/x", "644 ")],
        ),
        (
            "deletions",
            vec![
                File("../.wh.rootfs-1", 0o644, ""),
                Symlink("up", "../.."),
                File("up/.wh.rootfs-1", 0o644, ""),
                File("up/.wh..wh..opq", 0o644, ""),
            ],
            vec![("up", "-> ../..")],
        ),
    ] {
        let bench = Bench::new();
        let root = bench.flat(&[members]);
        assert_eq!(listing(&root.directories[0]), lines(&expected), "{what}");
        assert_eq!(beside(&bench), ["rootfs-1"], "{what}");
    }
}

#[test]
fn layers_without_a_place_are_refused_by_name() {
    for (members, expected) in [
        (
            vec![File("a", 0o644, ""), File("a/b", 0o644, "")],
            "`a/b`: it lies in `a`, which is no directory",
        ),
        (
            vec![Symlink("a", "b"), Symlink("b", "a"), File("a/c", 0, "")],
            "`a/c`: the symlinks on its way lead to each other",
        ),
        (
            vec![Link("a", "b"), File("b", 0o644, "")],
            "`a`: it is a hardlink to `b`, which comes after it",
        ),
        (
            vec![Directory("b", 0o755), Link("a", "b")],
            "`a`: it is a hardlink to `b`, which is a directory",
        ),
        (
            vec![Link("a", "../../etc/passwd")],
            "`a`: it is a hardlink to `../../etc/passwd`, which is no path of a file in the image",
        ),
        (
            vec![File("a/b", 0o644, ""), Link("a", "a/b")],
            "`a`: it is a hardlink to `a/b`, which lies in what the link replaces",
        ),
    ] {
        let bench = Bench::new();
        let error = bench.unpack(&archive(&members)).unwrap_err();
        let UnpackError::Member { member, problem } = error else {
            panic!("{error}");
        };
        assert_eq!(format!("`{member}`: {problem}"), expected);
        assert_eq!(bench.begun(), 0);
    }
}

#[test]
fn a_hardlink_to_nothing_is_told_when_layers_are_stacked() {
    let bench = Bench::new();
    let ids = bench.unpack_all(&[vec![File("x", 0, "")], vec![Link("a", "b")]]);
    let error = bench.cache.stack(&ids, Form::AsPacked, &[]).unwrap_err();
    let StackError::Hardlink {
        layer,
        path,
        target,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((layer, &*path, &*target), (ids[1], "a", "b"));
}

#[test]
fn the_last_of_several_members_wins() {
    let bench = Bench::new();
    let root = bench.flat(&[vec![
        File("a", 0o644, "first"),
        Directory("a", 0o755),
        File("a/b", 0o644, "in a"),
        File("a", 0o600, "last"),
        Directory("d", 0o700),
        File("d/kept", 0o644, ""),
        Directory("d", 0o755),
        Symlink("s", "x"),
        Symlink("s", "y"),
        File("h", 0o644, "one"),
        Link("same", "h"),
        Link("h", "h"),
        File("h", 0o644, "two"),
    ]]);
    assert_eq!(
        listing(&root.directories[0]),
        lines(&[
            ("a", "600 last"),
            ("d", "755 directory"),
            ("d/kept", "644 "),
            ("h", "644 two"),
            ("s", "-> y"),
            ("same", "644 one"),
        ])
    );
}

#[test]
fn what_no_root_gets_is_counted() {
    let mut bytes = Vec::new();
    append(&mut bytes, b"dev/null", EntryType::Char, 0o666, b"", b"");
    append(&mut bytes, b"dev/sda", EntryType::Block, 0o660, b"", b"");
    append(&mut bytes, b"pipe", EntryType::Fifo, 0o644, b"", b"");
    append(&mut bytes, b"../out", EntryType::Regular, 0o644, b"", b"x");
    append_long(&mut bytes, &[b'n'; 300], b"x");
    append_long(&mut bytes, &b"d/".repeat(5000), b"x");
    append(&mut bytes, b"file", EntryType::Regular, 0o644, b"", b"x");
    let bytes = ended(bytes);
    let bench = Bench::new();
    let unpacked = bench
        .unpack(&bytes)
        .expect("the test's own files can be used");
    assert_eq!(
        (unpacked.skipped, unpacked.entries, unpacked.bytes),
        (6, 1, 1)
    );
    let root = bench.cache.flatten(&[diff_id(&bytes)], Form::AsPacked, &[]);
    assert_eq!(
        listing(&root.expect("the test's own files can be used").directories[0]),
        lines(&[("file", "644 x")])
    );
}

#[test]
fn as_deep_and_long_as_linux_has_it() {
    let deep = b"d/".repeat(300);
    let mut bytes = Vec::new();
    append_long(&mut bytes, &[&deep[..], b"file"].concat(), b"x");
    append_long(&mut bytes, &[b'n'; 255], b"y");
    // The directory goes again, with all that is in it.
    append(&mut bytes, b"d", EntryType::Regular, 0o644, b"", b"");
    append_long(&mut bytes, &[&b"e/"[..], &deep].concat(), b"x");
    let bytes = ended(bytes);
    let bench = Bench::new();
    bench
        .unpack(&bytes)
        .expect("the test's own files can be used");
    let flat = bench.cache.flatten(&[diff_id(&bytes)], Form::AsPacked, &[]);
    let root = flat.expect("the test's own files can be used");
    let root = &root.directories[0];
    assert_eq!(
        fs::read(root.join("n".repeat(255))).expect("the test's own files can be used"),
        b"y"
    );
    assert!(root.join("d").is_file() && root.join("e/d/d/d").is_dir());
}

#[test]
fn a_sparse_file_is_refused() {
    let mut header = Header::new_gnu();
    header
        .set_path("hole")
        .expect("the test's own files can be used");
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    header.set_mode(0o644);
    let gnu = header
        .as_gnu_mut()
        .expect("the test's own files can be used");
    gnu.realsize[..11].copy_from_slice(b"00004000000");
    header.set_cksum();
    let bench = Bench::new();
    let error = bench
        .unpack(&ended(header.as_bytes().to_vec()))
        .unwrap_err();
    let shown = error.to_string();
    assert!(shown.contains("`hole` is a sparse file"), "{shown}");
}

#[test]
fn bytes_that_are_not_the_layer_leave_nothing() {
    let whole = archive(&[File("file", 0o644, "content")]);
    let id = diff_id(&whole);
    let mut trailing = whole.clone();
    trailing.extend_from_slice(&[7; 5000]);
    let limits = |bytes, members| Limits { bytes, members };
    let fine = Limits::default();
    for (what, bytes, limits) in [
        ("cut off in a file", &whole[..515], fine),
        ("cut off in a header", &whole[..100], fine),
        ("cut off before the end", &whole[..1024], fine),
        ("garbage behind it", &trailing[..], fine),
        ("no archive", &b"#!/bin/sh\necho hello"[..], fine),
        ("more bytes than allowed", &whole, limits(1024, 10)),
        ("more members than allowed", &whole, limits(1 << 20, 0)),
    ] {
        let bench = Bench::new();
        let unpacked = bench.cache.unpack(id, Form::Lambda, bytes, limits);
        assert!(unpacked.is_err(), "{what}");
        assert!(
            !bench
                .cache
                .has(id, Form::Lambda)
                .expect("the test's own files can be used"),
            "{what}"
        );
        assert_eq!(bench.begun(), 0, "{what}");
    }
    // Garbage that the diff id covers is part of the layer.
    let bench = Bench::new();
    bench
        .unpack(&trailing)
        .expect("the test's own files can be used");
    assert!(
        bench
            .cache
            .has(diff_id(&trailing), Form::AsPacked)
            .expect("the test's own files can be used")
    );
    assert!(
        !bench
            .cache
            .has(diff_id(&trailing), Form::Lambda)
            .expect("the test's own files can be used")
    );
}

#[test]
fn by_default_the_owner_sees_what_others_see() {
    let bench = Bench::new();
    let bytes = archive(&[
        Directory("root", 0o700),
        File("root/file", 0o600, "secret"),
        File("tool", 0o754, "x"),
    ]);
    let id = diff_id(&bytes);
    bench
        .cache
        .unpack(id, Form::Lambda, &bytes[..], Limits::default())
        .expect("the test's own files can be used");
    for root in [
        bench
            .cache
            .flatten(&[id], Form::Lambda, &[])
            .expect("the test's own files can be used"),
        bench
            .cache
            .stack(&[id], Form::Lambda, &[])
            .expect("the test's own files can be used"),
    ] {
        let seen = if root.directories.len() == 1 {
            seen_by_find("", &root.directories[0])
        } else {
            seen_in_overlay(&root)
        };
        let modes: Vec<_> = seen
            .iter()
            .filter_map(|line| line.split_once(" 1600000000"))
            .map(|(start, _)| start)
            .collect();
        assert_eq!(modes, ["root d 0", "root/file f 0", "tool f 444"]);
    }
}

#[test]
fn mount_points_are_found_inside_the_root() {
    let image = || {
        vec![
            Directory("etc", 0o750),
            File("etc/hosts", 0o644, "mine"),
            Symlink("etc/resolv.conf", "../../../run/resolved/stub.conf"),
            Symlink("tmp", "/var/tmp"),
            Symlink("loop", "loop"),
            File("file", 0o644, ""),
        ]
    };
    let point = |path: &str, kind| MountPoint {
        path: path.into(),
        kind,
    };
    let (directory, file) = (MountKind::Directory, MountKind::File);
    let bench = Bench::new();
    let root = bench.flat_with(
        &[image()],
        &[
            point("/etc/hosts", file),
            point("/etc/resolv.conf", file),
            point("/tmp", directory),
            point("/tmp/data/deep", directory),
            point("/proc", directory),
        ],
    );
    let found: Vec<_> = root
        .mount_points
        .iter()
        .map(|path| path.to_str().expect("the test's own files can be used"))
        .collect();
    assert_eq!(
        found,
        [
            "/etc/hosts",
            "/run/resolved/stub.conf",
            "/var/tmp",
            "/var/tmp/data/deep",
            "/proc"
        ]
    );
    assert_eq!(
        listing(&root.directories[0]),
        lines(&[
            ("etc", "750 directory"),
            ("etc/hosts", "644 mine"),
            ("etc/resolv.conf", "-> ../../../run/resolved/stub.conf"),
            ("file", "644 "),
            ("loop", "-> loop"),
            ("proc", "755 directory"),
            ("run", "755 directory"),
            ("run/resolved", "755 directory"),
            ("run/resolved/stub.conf", "644 "),
            ("tmp", "-> /var/tmp"),
            ("var", "755 directory"),
            ("var/tmp", "755 directory"),
            ("var/tmp/data", "755 directory"),
            ("var/tmp/data/deep", "755 directory"),
        ])
    );
    let ids = bench.unpack_all(&[image()]);
    for (points, expected) in [
        (
            vec![point("/loop", directory)],
            "symlinks lead to each other",
        ),
        (
            vec![point("/file/x", directory)],
            "it lies in something that is no directory",
        ),
        (
            vec![point("/file", directory)],
            "it is a file, and a directory is wanted",
        ),
        (
            vec![point("/etc", file)],
            "it is a directory, and a file is wanted",
        ),
        (
            vec![point("/a", file), point("/a/b", directory)],
            "another mount point is a file that it would lie in",
        ),
    ] {
        let error = bench
            .cache
            .stack(&ids, Form::AsPacked, &points)
            .unwrap_err();
        let StackError::MountPoint { problem, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(problem, expected);
    }
}

/// Prunes until so much is left: a child that another test is just starting has the locks of this
/// process too, until it is the program that it will be.
fn prune_to(left: u64, path: &Path, since: SystemTime) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let pruned = RootfsCache::prune(path, since).expect("the test's own files can be used");
        assert!(pruned.left.trees >= left, "{pruned:?}");
        if pruned.left.trees == left {
            return;
        }
        assert!(Instant::now() < deadline, "{pruned:?}");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_used_is_not_pruned() {
    let bench = Bench::new();
    let layers = [vec![Directory("a", 0o000)], vec![File("b", 0o644, "b")]];
    let ids = bench.unpack_all(&layers);
    let root = bench
        .cache
        .stack(&ids[..1], Form::AsPacked, &[])
        .expect("the test's own files can be used");
    let path = bench.root();
    let later = SystemTime::now() + Duration::from_mins(1);
    // Both are held by who unpacked them.
    assert_eq!(
        RootfsCache::prune(&path, later)
            .expect("the test's own files can be used")
            .removed
            .trees,
        0
    );
    let Bench { directory, cache } = bench;
    drop(cache);
    // Only what the root is made of stays.
    prune_to(2, &path, later);
    assert!(root.directories.iter().all(|directory| directory.is_dir()));
    drop(root);
    let before = SystemTime::now() - Duration::from_mins(1);
    let pruned = RootfsCache::prune(&path, before).expect("the test's own files can be used");
    assert_eq!((pruned.removed.trees, pruned.left.trees), (0, 2));
    prune_to(0, &path, later);
    assert_eq!(
        RootfsCache::info(&path)
            .expect("the test's own files can be used")
            .trees,
        0
    );
    let cache = RootfsCache::open(&path).expect("the test's own files can be used");
    assert!(
        !cache
            .has(ids[0], Form::AsPacked)
            .expect("the test's own files can be used")
    );
    drop(directory);
}

#[test]
fn what_is_not_certain_is_unpacked_again() {
    let bench = Bench::new();
    let bytes = archive(&[File("a", 0o644, "content")]);
    let id = diff_id(&bytes);
    bench
        .unpack(&bytes)
        .expect("the test's own files can be used");
    let path = bench.root();
    let layer = fs::read_dir(path.join("trees/layers"))
        .expect("the test's own files can be used")
        .next()
        .expect("the test's own files can be used");
    let layer = layer.expect("the test's own files can be used").path();
    let note = layer.join("note");
    let written = fs::read_to_string(&note).expect("the test's own files can be used");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .expect("the test's own files can be used");
    assert!(written.contains(boot.trim()), "{written}");
    let Bench { directory, cache } = bench;
    drop(cache);
    let has = || {
        let cache = RootfsCache::open(&path).expect("the test's own files can be used");
        cache
            .has(id, Form::AsPacked)
            .expect("the test's own files can be used")
    };
    // Removed it is not while a child of another test has the lock: see `prune_to`.
    let assert_gone = || {
        let deadline = Instant::now() + Duration::from_secs(20);
        while layer.exists() {
            assert!(!has());
            assert!(Instant::now() < deadline);
        }
    };
    assert!(has());
    // As after a crash of the system.
    let other_boot = written.replace(boot.trim(), "another");
    fs::write(&note, &other_boot).expect("the test's own files can be used");
    assert_gone();
    let unpack = || {
        let cache = RootfsCache::open(&path).expect("the test's own files can be used");
        cache
            .unpack(id, Form::AsPacked, &bytes[..], Limits::default())
            .expect("the test's own files can be used");
        cache
    };
    unpack().settle().expect("the test's own files can be used");
    assert!(
        !fs::read_to_string(&note)
            .expect("the test's own files can be used")
            .contains(boot.trim())
    );
    assert!(has());
    // A copy of the files may lack what is no content.
    let copied = layer.join("copied");
    fs::create_dir(&copied).expect("the test's own files can be used");
    fs::remove_dir_all(layer.join("files")).expect("the test's own files can be used");
    fs::rename(&copied, layer.join("files")).expect("the test's own files can be used");
    assert_gone();
    unpack();
    fs::write(&note, "{").expect("the test's own files can be used");
    assert_gone();
    drop(directory);
}

#[test]
fn many_unpack_one_layer_at_once() {
    let directory = tempfile::tempdir().expect("the test's own files can be used");
    let path = directory.path().join("rootfs-1");
    let members: Vec<_> = (0..200)
        .map(|index| format!("d{}/f{index}", index % 7))
        .collect();
    let mut bytes = Vec::new();
    for name in &members {
        append(
            &mut bytes,
            name.as_bytes(),
            EntryType::Regular,
            0o644,
            b"",
            name.as_bytes(),
        );
    }
    let bytes = ended(bytes);
    let id = diff_id(&bytes);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let cache = RootfsCache::open(&path).expect("the test's own files can be used");
                cache
                    .unpack(id, Form::AsPacked, &bytes[..], Limits::default())
                    .expect("the test's own files can be used");
                let root = cache
                    .flatten(&[id], Form::AsPacked, &[])
                    .expect("the test's own files can be used");
                for name in &members {
                    let content = fs::read_to_string(root.directories[0].join(name))
                        .expect("the test's own files can be used");
                    assert_eq!(content, *name);
                }
            });
        }
    });
    assert_eq!(
        fs::read_dir(path.join("begun"))
            .expect("the test's own files can be used")
            .count(),
        0
    );
    assert_eq!(
        fs::read_dir(path.join("trees/layers"))
            .expect("the test's own files can be used")
            .count(),
        1
    );
}

#[test]
fn what_a_killed_process_began_is_swept_away() {
    let bench = Bench::new();
    let abandoned = bench.root().join("begun/abandoned");
    fs::create_dir_all(abandoned.join("files/closed")).expect("the test's own files can be used");
    fs::set_permissions(
        abandoned.join("files/closed"),
        fs::Permissions::from_mode(0o000),
    )
    .expect("the test's own files can be used");
    let held = bench.root().join("begun/held");
    fs::create_dir(&held).expect("the test's own files can be used");
    let lock = fs::File::open(&held).expect("the test's own files can be used");
    lock.lock().expect("the test's own files can be used");
    RootfsCache::open(bench.root()).expect("the test's own files can be used");
    assert!(!abandoned.exists() && held.exists());
}

#[test]
fn a_full_disk_is_told_by_path_and_nothing_is_left() {
    // The test runs itself again where there is a small disk.
    const SMALL_DISK: &str = "TIERCE_TEST_SMALL_DISK";
    let Ok(disk) = std::env::var(SMALL_DISK) else {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("unshare")
            .args(["-Urm", "sh", "-ec"])
            .arg("mount -t tmpfs -o size=1m tmpfs \"$1\"; shift; exec \"$@\"")
            .arg("sh")
            .arg(directory.path())
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "rootfs::a_full_disk_is_told_by_path_and_nothing_is_left",
            ])
            .env(SMALL_DISK, directory.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    };
    let cache = RootfsCache::open(Path::new(&disk).join("rootfs-1")).unwrap();
    let mut bytes = Vec::new();
    append(&mut bytes, b"small", EntryType::Regular, 0o644, b"", b"x");
    append(
        &mut bytes,
        b"opt/large",
        EntryType::Regular,
        0o644,
        b"",
        &vec![1; 2 << 20],
    );
    let bytes = ended(bytes);
    let id = diff_id(&bytes);
    let error = cache
        .unpack(id, Form::Lambda, &bytes[..], Limits::default())
        .unwrap_err();
    let UnpackError::Write { member, source } = error else {
        panic!("{error}");
    };
    assert_eq!(member, "opt/large");
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    let begun = Path::new(&disk).join("rootfs-1/begun");
    assert_eq!(fs::read_dir(begun).unwrap().count(), 0);
}
