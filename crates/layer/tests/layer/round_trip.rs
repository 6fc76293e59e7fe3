//! Other readers find in a layer what was put in.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};

use tierce_layer::{Content, Entry, EntryKind, Tree};

use crate::support::{archive_of, path, tree_of};

const MIB: usize = 1 << 20;

/// Kind, mode, size and target of an entry; contents are compared apart.
type Seen = BTreeMap<Vec<u8>, (char, u32, u64, Vec<u8>)>;

fn expected(tree: &Tree) -> Seen {
    tree.iter()
        .map(|(path, entry)| {
            let (kind, size, target) = match &entry.kind {
                EntryKind::Directory => ('d', 0, vec![]),
                EntryKind::File(file) => ('f', file.content.size(), vec![]),
                EntryKind::Symlink(target) => ('l', 0, target.to_vec()),
                EntryKind::Whiteout | EntryKind::OpaqueMarker => ('f', 0, vec![]),
            };
            (
                path.as_bytes().to_vec(),
                (kind, entry.attributes.mode, size, target),
            )
        })
        .collect()
}

fn read_by_the_tar_crate(archive: &[u8]) -> Seen {
    let mut seen = Seen::new();
    let mut reader = tar::Archive::new(archive);
    for entry in reader.entries().unwrap() {
        let mut entry = entry.unwrap();
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => 'd',
            tar::EntryType::Regular => 'f',
            tar::EntryType::Symlink => 'l',
            other => panic!("{other:?}"),
        };
        let mut name = entry.path_bytes().into_owned();
        if kind == 'd' {
            assert_eq!(name.pop(), Some(b'/'));
        }
        let target = entry
            .link_name_bytes()
            .map(std::borrow::Cow::into_owned)
            .unwrap_or_default();
        let mode = entry.header().mode().unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, entry.size());
        assert!(content.iter().all(|&byte| byte == b'x'));
        let size = content.len() as u64;
        assert!(
            seen.insert(name, (kind, mode, size, target)).is_none(),
            "no path twice"
        );
    }
    seen
}

/// Prints a line a member, names in hexadecimal.
const PYTHON: &str = "
import sys, tarfile
archive = tarfile.open(fileobj=sys.stdin.buffer, mode='r|', errors='surrogateescape')
for m in archive:
    name = m.name.encode('utf-8', 'surrogateescape').hex()
    link = m.linkname.encode('utf-8', 'surrogateescape').hex()
    kind = 'd' if m.isdir() else 'l' if m.issym() else 'f' if m.isreg() else '?'
    assert m.mtime == 315532800 and m.uid == m.gid == 0 and m.uname == m.gname == ''
    print(kind, m.mode, m.size, name, link or '-')
";

fn read_by_python(archive: &[u8]) -> Option<Seen> {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, archive, 0).unwrap();
    let output = Command::new("python3")
        .args(["-c", PYTHON])
        .stdin(Stdio::from(file))
        .output()
        // Not everybody who runs the tests has it.
        .ok()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let bytes = |hex: &str| -> Vec<u8> {
        let digits = hex.trim_start_matches('-').as_bytes();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    };
    let lines = String::from_utf8(output.stdout).unwrap();
    Some(
        lines
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                let kind = fields[0].chars().next().unwrap();
                let (mode, size) = (fields[1].parse().unwrap(), fields[2].parse().unwrap());
                (bytes(fields[3]), (kind, mode, size, bytes(fields[4])))
            })
            .collect(),
    )
}

fn check(tree: &Tree) {
    let expected = expected(tree);
    let archive = archive_of(tree.clone());
    assert_eq!(read_by_the_tar_crate(&archive), expected);
    if let Some(seen) = read_by_python(&archive) {
        assert_eq!(seen, expected);
    }
}

fn of_size(size: usize) -> Entry {
    Entry::file(Content::bytes(vec![b'x'; size]), 0o644)
}

#[test]
fn sizes_around_every_edge() {
    let sizes = [
        0,
        1,
        511,
        512,
        513,
        1023,
        1024,
        65_023,
        65_024,
        65_535,
        65_536,
        65_537,
        262_144,
        MIB - 1025,
        MIB - 1024,
        MIB - 513,
        MIB - 512,
        MIB - 1,
        MIB,
        MIB + 1,
        2 * MIB - 513,
        2 * MIB - 512,
        2 * MIB - 511,
        2 * MIB,
        3 * MIB + 5,
    ];
    check(&tree_of(
        sizes.map(|size| (format!("d/{size}"), of_size(size))),
    ));
}

#[test]
fn names_of_every_length_and_kind() {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for length in [1, 99, 100, 101, 154, 155, 156, 199, 200, 254, 255] {
        names.push(vec![b'n'; length]);
        names.push([b"dir/", &*vec![b'n'; length]].concat());
        names.push([&*vec![b'd'; length], b"/name"].concat());
        names.push([&*vec![b'p'; length], b"/", &*vec![b'n'; 100]].concat());
        names.push([&*vec![b'q'; length], b"/", &*vec![b'n'; 101]].concat());
    }
    names.push([b"deep/".repeat(80), b"end".to_vec()].concat());
    names.push("unicode/été/日本語/🦀".into());
    names.push("é".repeat(127).into());
    names.push(b"new\nline/\n22 path=\xff\n".to_vec());
    names.push(b"not-utf8/\xff\xfe".to_vec());
    names.push([b"not-utf8/".to_vec(), vec![0xe9; 200]].concat());
    names.push(b"spaces and \"quotes\" \\ 'all' $of `them`".to_vec());
    names.push(b"-rf".to_vec());
    check(&tree_of(names.into_iter().map(|name| (name, of_size(3)))));
}

/// The tar crate takes the newline for the end of the PAX record, so only Python is asked here.
#[test]
fn a_long_name_that_looks_like_pax_records() {
    let name = [
        b"lines/\n22 path=".to_vec(),
        vec![b'x'; 100],
        b"\n".to_vec(),
    ]
    .concat();
    let tree = tree_of([(name, of_size(3))]);
    let expected = expected(&tree);
    if let Some(seen) = read_by_python(&archive_of(tree)) {
        assert_eq!(seen, expected);
    }
}

#[test]
fn symlinks_wherever_they_lead() {
    let mut tree = Tree::new();
    for (index, target) in [
        "x".repeat(99),
        "x".repeat(100),
        "x".repeat(101),
        "x".repeat(4095),
        "../../../../etc/passwd".to_owned(),
        "/absolute".to_owned(),
        "5".to_owned(),
        "été\n12 path=x\n".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let entry = Entry::symlink(target);
        tree.insert(path(format!("links/{index}")), entry, &mut Vec::new())
            .unwrap();
    }
    let entry = Entry::symlink(vec![0xff; 120]);
    tree.insert(path("links/bytes"), entry, &mut Vec::new())
        .unwrap();
    check(&tree);
}

#[test]
fn whiteouts_are_empty_files() {
    let mut tree = tree_of([("a/b", of_size(1))]);
    tree.insert_whiteout(&path("a/gone"), &mut Vec::new())
        .unwrap();
    tree.insert_opaque(None, &mut Vec::new()).unwrap();
    check(&tree);
}
