//! Every kind of file, through a layer and out again by umoci, GNU tar and Python.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use tierce_oci::Digest;
use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::process::require;
use tierce_testkit::sandbox::Sandbox;

use crate::support::{
    blob, demand_root, inspect, one_digest, python, sandbox, tierce, tool, umoci_unpack,
};

/// The time of every entry.
const MTIME: i64 = 315_532_800;

/// What a file is, as far as anybody can see.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    /// Its size, the digest of its content, and the least path of the same file.
    File(u64, Digest, PathBuf),
    Symlink(PathBuf),
}

/// All files below a directory, which is not among them itself.
fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let relative = path.strip_prefix(root).unwrap().to_owned();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let kind = if metadata.is_dir() {
                pending.push(path.clone());
                Kind::Directory
            } else if metadata.is_symlink() {
                Kind::Symlink(fs::read_link(&path).unwrap())
            } else {
                assert!(metadata.is_file(), "{} is something else", path.display());
                let least = inodes.entry(metadata.ino()).or_insert(relative.clone());
                if relative < *least {
                    least.clone_from(&relative);
                }
                let digest = Digest::of(&fs::read(&path).unwrap());
                Kind::File(metadata.len(), digest, relative.clone())
            };
            let seen = Seen {
                kind,
                mode: metadata.mode() & 0o7777,
                owner: (metadata.uid(), metadata.gid()),
                xattrs: xattrs(&path),
            };
            found.insert(relative, seen);
        }
    }
    for (path, seen) in &mut found {
        if let Kind::File(.., same) = &mut seen.kind {
            let inode = fs::symlink_metadata(root.join(path)).unwrap().ino();
            same.clone_from(&inodes[&inode]);
        }
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0);
    let read = |name: &[u8]| {
        let name = OsStr::from_bytes(name).to_owned();
        let mut value = vec![0; 4096];
        let length = lgetxattr(path, &name, &mut value[..]).unwrap();
        value.truncate(length);
        (name, value)
    };
    // What a security module of this machine says is not the tree's.
    let own = |name: &&[u8]| name.starts_with(b"user.");
    names.filter(own).map(read).collect()
}

/// Demands that two trees are the same, and names the first few differences.
#[track_caller]
fn assert_same(what: &str, expected: &BTreeMap<PathBuf, Seen>, actual: &BTreeMap<PathBuf, Seen>) {
    let mut problems = Vec::new();
    for path in expected
        .keys()
        .chain(actual.keys().filter(|it| !expected.contains_key(*it)))
    {
        let (expected, actual) = (expected.get(path), actual.get(path));
        if expected != actual {
            problems.push(format!(
                "{}\n  expected {expected:?}\n  found    {actual:?}",
                path.display()
            ));
        }
    }
    let shown = problems
        .iter()
        .take(5)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        problems.is_empty(),
        "{what}: {} differences:\n{shown}",
        problems.len()
    );
}

/// Bytes that do not compress to nothing, the same for the same seed.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32).to_le_bytes()[0] & 0x3f
    };
    (0..size).map(|_| next()).collect()
}

fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Makes a tree of everything that file systems allow and archives find hard.
fn make(root: &Path) {
    let path = |name: &str| root.join(name);
    // Sizes around a block, a large file, a segment.
    for edge in [512_usize, 65_536, 262_144, 1_048_576] {
        for size in [edge - 1, edge, edge + 1, edge - 512] {
            write(&path(&format!("sizes/{size}")), &noise(size as u64, size));
        }
    }
    write(&path("sizes/empty"), b"");
    write(&path("sizes/3-MiB-and-17"), &noise(3, 3 * 1_048_576 + 17));
    write(&path("sizes/zeros"), &vec![0; 2_000_000]);
    fs::create_dir_all(path("empty/nested/deeper")).unwrap();

    // Names around what a header holds: 100 bytes, a prefix of 155, and what only PAX can carry.
    for length in [98, 99, 100, 101, 155, 156, 200, 255] {
        write(&path(&format!("long/{}", "n".repeat(length))), b"flat");
        write(&path(&format!("{}/f", "d".repeat(length))), b"in a folder");
        symlink("l".repeat(length), path(&format!("long/link-{length}"))).unwrap();
    }
    for depth in [3, 6, 20] {
        let folder = format!("deep/{}", "folder-of-thirty-one-characters/".repeat(depth));
        write(&path(&format!("{folder}leaf")), b"deep");
        fs::create_dir(path(&format!("{folder}empty"))).unwrap();
        symlink(format!("{folder}leaf"), path(&format!("{folder}link"))).unwrap();
    }

    // Names that are no ASCII, no UTF-8, or no single line.
    let names: [&[u8]; 16] = [
        "zażółć gęślą jaźń".as_bytes(),
        "日本語/ファイル.txt".as_bytes(),
        "e\u{301} is not \u{e9}".as_bytes(),
        "\u{1f980}".as_bytes(),
        b"new\nline",
        b"tab\tand\rreturn",
        b" leading and trailing ",
        b"-rf",
        b"back\\slash",
        b"quote'\"`$(x)*?[a]",
        b"bytes-\xff\xfe\x80",
        b"\x01\x02\x7f\x1b[31m",
        b"31 path=not-a-record",
        b"equals=sign",
        b"...",
        b"latin-\xe9t\xe9/\xe0",
    ];
    for name in names {
        write(&root.join("names").join(OsStr::from_bytes(name)), name);
    }
    for length in [120, 250] {
        let name = [b"\xff".as_slice(), &b"n".repeat(length)].concat();
        write(
            &root.join("names").join(OsStr::from_bytes(&name)),
            b"long and not UTF-8",
        );
        let unicode = "ż".repeat(length / 2);
        write(&path(&format!("names/{unicode}")), b"long and not ASCII");
    }
    // The name field's 100 bytes end inside a letter, and so does a split at a slash.
    write(
        &path(&format!("{}/{}", "x".repeat(99), "żółw".repeat(30))),
        b"cut",
    );

    let links: [(&str, &[u8]); 11] = [
        ("links/to-file", b"../sizes/512"),
        ("links/to-folder", b"../empty"),
        ("links/absolute", b"/etc/passwd"),
        ("links/dangling", b"no/such/file"),
        ("links/self", b"self"),
        ("links/loop-a", b"loop-b"),
        ("links/loop-b", b"loop-a"),
        ("links/up", b"../../../../.."),
        ("links/odd", b".//a/../\xff\nb"),
        ("links/folder-loop", b"."),
        ("links/unicode", "ż→日".as_bytes()),
    ];
    fs::create_dir_all(path("links")).unwrap();
    for (name, to) in links {
        symlink(OsStr::from_bytes(to), path(name)).unwrap();
    }

    for (name, size) in [("hard/b", 10_usize), ("hard/large", 100_000)] {
        write(&path(name), &noise(size as u64, size));
        fs::create_dir_all(path("hard/other")).unwrap();
        fs::hard_link(path(name), path(&format!("{name}-second"))).unwrap();
        fs::hard_link(path(name), path(&format!("hard/other/{size}"))).unwrap();
        let long = format!("hard/{}{size}", "h".repeat(150));
        fs::hard_link(path(name), path(&long)).unwrap();
    }

    let mut sparse = File::create(path("sparse")).unwrap();
    sparse.write_all(b"begin").unwrap();
    sparse.seek(SeekFrom::Start(5_000_000)).unwrap();
    sparse.write_all(b"end").unwrap();
    sparse.set_len(9_000_001).unwrap();
}

/// Gives some of the tree unusual modes, owners and attributes.
fn dress(root: &Path) {
    let modes = [
        (0o000, 0),
        (0o400, 1),
        (0o4755, 2),
        (0o2755, 0),
        (0o6711, 1000),
        (0o1644, 993),
        (0o777, 65_534),
        (0o755, 2_097_151),
        (0o644, 2_097_152),
        (0o600, 4_000_000_000),
    ];
    for (mode, owner) in modes {
        let path = root.join(format!("modes/{mode:o}"));
        write(&path, format!("{mode:o}").as_bytes());
        let folder = root.join(format!("modes/folder-{mode:o}"));
        fs::create_dir(&folder).unwrap();
        write(&folder.join("inside"), b"x");
        let link = root.join(format!("modes/link-{mode:o}"));
        symlink("nowhere", &link).unwrap();
        for path in [&path, &folder, &link] {
            lchown(path, Some(owner), Some(owner / 2)).unwrap();
        }
        // Afterwards, because a change of owner takes the set-id bits away.
        for path in [&path, &folder] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    }
    // None is empty: an empty PAX record is one that is not there, and Go's readers take it so.
    let values: [(&str, &str, &[u8]); 5] = [
        ("sizes/512", "user.plain", b"value"),
        ("sizes/512", "user.binary", b"a=\n\0\xff12 b=c\n"),
        ("sizes/65536", "user.long", &[b'v'; 600]),
        ("empty/nested", "user.of-a-folder", b"yes"),
        ("sizes/513", "user.not-asked-for", b"no"),
    ];
    for (path, name, value) in values {
        lsetxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
    }
}

const KEPT_XATTRS: [&str; 4] = ["user.plain", "user.binary", "user.long", "user.of-a-folder"];

/// Puts the source under `context/tree`, and builds it into `oci:image:t`.
fn build(sandbox: &Sandbox, options: &str) -> Digest {
    let config = format!(
        "[image]\nbase = \"scratch\"\nformat = \"oci\"\nplatforms = [\"amd64\"]\n\
         [[layer]]\nname = \"tree\"\nadd = [{{ from = \"tree\", to = \"/\" }}]\n{options}"
    );
    sandbox.write("context/tierce.toml", config);
    tierce(sandbox, ["build", "context", "-o", "oci:image:t"])
}

/// The blob of the only layer of `oci:image`, as skopeo names it.
fn layer(sandbox: &Sandbox) -> PathBuf {
    let shown = inspect(sandbox, "oci:image:t");
    let layers = shown["Layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    blob(&sandbox.path("image"), layers[0].as_str().unwrap())
}

/// What Python's tarfile reads from a layer: every name as hexadecimal, its type and its size.
const LISTING: &str = r#"
import os, sys, tarfile
with tarfile.open(sys.argv[1], "r|gz") as archive:
    for member in archive:
        name = os.fsencode(member.name.rstrip("/"))
        assert member.mtime == 315532800, member
        kind = "d" if member.isdir() else "l" if member.issym() else "h" if member.islnk() else "f"
        print(name.hex(), kind, member.size)
"#;

/// Demands that Python's tarfile lists the very same paths, types and sizes.
#[track_caller]
fn assert_listed_by_python(layer: &Path, expected: &BTreeMap<PathBuf, Seen>) {
    let listing = python(LISTING, [layer]);
    let mut found = BTreeMap::new();
    for line in listing.lines() {
        let [name, kind, size] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let byte = |at: usize| u8::from_str_radix(&name[at..at + 2], 16).unwrap();
        let name: Vec<u8> = (0..name.len()).step_by(2).map(byte).collect();
        found.insert(
            PathBuf::from(OsString::from_vec(name)),
            (kind.to_owned(), size.parse::<u64>().unwrap()),
        );
    }
    assert_eq!(
        found.len(),
        listing.lines().count(),
        "a path is listed twice"
    );
    let kind = |(path, seen): (&PathBuf, &Seen)| {
        let listed = match &seen.kind {
            Kind::Directory => ("d", 0),
            Kind::Symlink(_) => ("l", 0),
            Kind::File(_, _, same) if same != path => ("h", 0),
            Kind::File(size, ..) => ("f", *size),
        };
        (path.clone(), (listed.0.to_owned(), listed.1))
    };
    let expected: BTreeMap<_, _> = expected.iter().map(kind).collect();
    for (path, one) in &expected {
        assert_eq!(found.get(path), Some(one), "{}", path.display());
    }
    assert_eq!(found.len(), expected.len());
}

/// Extracts a layer by GNU tar.
fn untar(sandbox: &Sandbox, layer: &Path, folder: &str) -> PathBuf {
    let target = sandbox.path(folder);
    fs::create_dir(&target).unwrap();
    // It does not know `hdrcharset`, which says what it does anyway: take names as bytes.
    let extract = [
        "--warning=no-unknown-keyword",
        "--extract",
        "--gzip",
        "--preserve-permissions",
        "--numeric-owner",
    ];
    let arguments = extract.map(OsStr::new).into_iter().chain([
        OsStr::new("--same-owner"),
        OsStr::new("--xattrs"),
        OsStr::new("--xattrs-include=user.*"),
        OsStr::new("--directory"),
        target.as_os_str(),
        OsStr::new("--file"),
        layer.as_os_str(),
    ]);
    let command = sandbox.command(require("tar")).args(arguments);
    let output = command.run().assert_success();
    assert_eq!(output.stderr(), "", "GNU tar complains");
    target
}

#[test]
fn a_kept_tree_comes_out_as_it_went_in() {
    demand_root("give files to others");
    let sandbox = sandbox();
    let source = sandbox.path("context/tree");
    make(&source);
    dress(&source);
    let xattrs = format!("{KEPT_XATTRS:?}");
    build(
        &sandbox,
        &format!("modes = \"keep\"\nowners = \"keep\"\nhardlinks = \"keep\"\nxattrs = {xattrs}\n"),
    );
    assert_clean(&Checker::new().layout(&sandbox.path("image")));
    let mut expected = look(&source);
    for seen in expected.values_mut() {
        seen.xattrs
            .retain(|name, _| KEPT_XATTRS.iter().any(|kept| OsStr::new(kept) == name));
    }

    let root = umoci_unpack(&sandbox, "image:t", "bundle");
    assert_same("umoci", &expected, &look(&root));
    for path in expected.keys() {
        let metadata = fs::symlink_metadata(root.join(path)).unwrap();
        assert_eq!(metadata.mtime(), MTIME, "{path:?}");
    }
    let layer = layer(&sandbox);
    assert_same(
        "GNU tar",
        &expected,
        &look(&untar(&sandbox, &layer, "untarred")),
    );
    assert_listed_by_python(&layer, &expected);
}

#[test]
fn an_ordinary_tree_comes_out_as_the_format_says() {
    demand_root("give files to others");
    let sandbox = sandbox();
    let source = sandbox.path("context/tree");
    make(&source);
    dress(&source);
    build(&sandbox, "");
    assert_clean(
        &Checker::new()
            .lambda_rules_from(0)
            .layout(&sandbox.path("image")),
    );
    let mut expected = look(&source);
    for (path, seen) in &mut expected {
        seen.owner = (0, 0);
        seen.xattrs.clear();
        match &mut seen.kind {
            Kind::Directory => seen.mode = 0o755,
            Kind::Symlink(_) => seen.mode = 0o777,
            Kind::File(.., same) => {
                seen.mode = if seen.mode & 0o100 == 0 { 0o644 } else { 0o755 };
                same.clone_from(path);
            }
        }
    }
    assert_same(
        "umoci",
        &expected,
        &look(&umoci_unpack(&sandbox, "image:t", "bundle")),
    );
    let layer = layer(&sandbox);
    assert_same(
        "GNU tar",
        &expected,
        &look(&untar(&sandbox, &layer, "untarred")),
    );
    assert_listed_by_python(&layer, &expected);
}

#[test]
fn a_tar_that_gnu_tar_made_gives_the_same_layer_as_its_files() {
    let sandbox = sandbox();
    make(&sandbox.path("context/tree"));
    let from_files = build(&sandbox, "");
    for format in ["gnu", "posix"] {
        let archive = sandbox.path(format!("context/{format}.tar"));
        let pack = [
            "--create",
            &format!("--format={format}"),
            "--directory=context/tree",
            "--file",
            archive.to_str().unwrap(),
            ".",
        ];
        tool(&sandbox, "tar", pack);
        let config = format!(
            "[image]\nbase = \"scratch\"\nformat = \"oci\"\nplatforms = [\"amd64\"]\n\
             [[layer]]\nname = \"tree\"\ntar = \"{format}.tar\"\nto = \"/\"\n"
        );
        sandbox.write("context/tierce.toml", config);
        let built = sandbox
            .tierce(["build", "context", "-o", "oci:from-tar:t"])
            .run();
        assert_eq!(one_digest(&built.assert_success()), from_files, "{format}");
    }
}

#[test]
fn layers_over_layers_are_what_umoci_makes_of_them() {
    demand_root("unpack what belongs to root");
    let sandbox = sandbox();
    sandbox.write("context/lower/kept", "kept");
    sandbox.write("context/lower/replaced", "old");
    sandbox.write("context/lower/folder/inner", "x");
    sandbox.write("context/lower/opaque/hidden", "x");
    sandbox.write("context/upper/replaced", "new");
    sandbox.write("context/upper/opaque/.wh..wh..opq", "");
    sandbox.write("context/upper/opaque/seen", "x");
    sandbox.write("context/upper/.wh.folder", "");
    tool(
        &sandbox,
        "tar",
        [
            "--create",
            "--directory=context/upper",
            "--file=context/upper.tar",
            ".",
        ],
    );
    let config = "[image]\nbase = \"scratch\"\nformat = \"oci\"\nplatforms = [\"amd64\"]\n\
         [[layer]]\nname = \"lower\"\nadd = [{ from = \"lower\", to = \"/\" }]\n\
         [[layer]]\nname = \"upper\"\ntar = \"upper.tar\"\n";
    sandbox.write("context/tierce.toml", config);
    tierce(&sandbox, ["build", "context", "-o", "oci:image:t"]);
    assert_clean(&Checker::new().layout(&sandbox.path("image")));
    let root = umoci_unpack(&sandbox, "image:t", "bundle");
    let found = look(&root);
    let paths: Vec<_> = found.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(paths, ["kept", "opaque", "opaque/seen", "replaced"]);
    assert_eq!(fs::read(root.join("replaced")).unwrap(), b"new");
    let image = LoadedImage::from_layout(&sandbox.path("image"), Some("t")).unwrap();
    assert_eq!(image.tree().unwrap().len(), paths.len());
}

/// Slow: 8 GiB go through the compressor and through GNU tar. They are never on disk: umoci would
/// write them there.
#[test]
fn a_file_of_more_than_8_gib_has_its_size_everywhere() {
    const SIZE: u64 = (8 << 30) + 4097;
    let sandbox = sandbox();
    let source = sandbox.path("context/tree/huge");
    write(&source, b"begin");
    let mut file = fs::OpenOptions::new().write(true).open(&source).unwrap();
    file.set_len(SIZE).unwrap();
    file.seek(SeekFrom::Start(SIZE - 3)).unwrap();
    file.write_all(b"end").unwrap();
    drop(file);
    // What stands behind it is found by its size.
    let behind = sandbox.write("context/tree/behind", "behind");
    build(&sandbox, "");
    let layer = layer(&sandbox);
    let length = fs::metadata(&layer).unwrap().len();
    assert!(length < 64 << 20, "zeros take {length} bytes");

    // GNU tar gives back every byte; `cmp` compares them without a copy on disk.
    let compare = "tar --extract --gzip --to-stdout --file \"$1\" | cmp - <(cat \"$2\" \"$3\")";
    let arguments = [OsStr::new("-c"), OsStr::new(compare), OsStr::new("bash")];
    let files = [&layer, &source, &behind].map(|path| path.as_os_str());
    tool(&sandbox, "bash", arguments.into_iter().chain(files));
    // Python needs minutes to skip so much, so it is asked for the first entry alone.
    let first = "import sys, tarfile\n\
        first = tarfile.open(sys.argv[1], 'r|gz').next()\n\
        print(first.name, first.size, first.isfile())";
    assert_eq!(python(first, [&layer]), format!("huge {SIZE} True\n"));
}
