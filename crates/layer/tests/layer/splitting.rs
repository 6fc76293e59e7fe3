//! One tree as several layers: the same files on top of each other, and a change stays where it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::tempdir;
use tierce_layer::{
    ArchiveAdd, Attributes, Content, Destination, Entry, EntryKind, FileEntry, Keep, Limits,
    LinkGroup, Part, Plan, RecordKind, SplitSettings, Stored, Treatment, Tree, add_archive_stream,
};

use crate::support::{archive_of, file, path, plan_of, sealed, tree_of, unpacked};

fn settings(budget: u64, most: usize) -> SplitSettings {
    let most = NonZeroUsize::new(most).unwrap();
    SplitSettings { budget, most }
}

fn archive(plan: &Plan) -> Vec<u8> {
    let (layer, _directory) = sealed(plan, &Stored, 1);
    unpacked(&layer)
}

fn labels(parts: &[Part]) -> Vec<&str> {
    let labels = parts.iter().map(|part| part.label.as_deref());
    labels.map(|label| label.unwrap_or("-")).collect()
}

/// The paths of a part, without the directories that hold something.
fn leaves(part: &Part) -> Vec<String> {
    let records = part.plan.records();
    records
        .iter()
        .filter(|record| {
            !matches!(record.kind, RecordKind::Directory)
                || !records
                    .iter()
                    .any(|other| other.path.is_below(&record.path))
        })
        .map(|record| record.path.to_string())
        .collect()
}

/// A file of `kib` blocks of 1 KiB.
fn kib(kib: usize) -> Entry {
    file(vec![b'k'; kib << 10])
}

fn linked(bytes: &[u8], inode: u64) -> Entry {
    let group = LinkGroup {
        device: 1,
        inode,
        member: 0,
    };
    Entry {
        kind: EntryKind::File(FileEntry {
            content: Content::bytes(bytes),
            modified: None,
            group: Some(Box::new(group)),
        }),
        attributes: Attributes::root(0o644),
    }
}

/// Small enough to be seen through, with everything that dependencies can have.
fn dependencies() -> Tree {
    tree_of([
        ("opt/bin/tool", kib(1)),
        ("opt/empty", Entry::directory(0o700)),
        ("opt/nodejs/node_modules/.bin/tsc", Entry::symlink("../tsc")),
        ("opt/nodejs/node_modules/.package-lock.json", kib(1)),
        ("opt/nodejs/node_modules/@aws-sdk/core/index.js", kib(2)),
        ("opt/nodejs/node_modules/@aws-sdk/s3/index.js", kib(30)),
        (
            "opt/nodejs/node_modules/@aws-sdk/s3/node_modules/a/a.js",
            kib(9),
        ),
        ("opt/nodejs/node_modules/lodash/lodash.js", kib(4)),
        ("opt/nodejs/node_modules/react/react.js", kib(5)),
        ("opt/python/__pycache__/six.cpython-36.pyc", kib(1)),
        ("opt/python/bin/f2py", kib(1)),
        ("opt/python/numpy-2.1.0.dist-info/RECORD", kib(1)),
        ("opt/python/numpy.libs/libopenblas.so", kib(20)),
        ("opt/python/numpy/core.so", kib(20)),
        ("opt/python/setuptools/_vendor/more.py", kib(1)),
        (
            "opt/python/setuptools/_vendor/more-1.dist-info/RECORD",
            kib(1),
        ),
        ("opt/python/six-1.17.0.dist-info/RECORD", kib(1)),
        ("opt/python/six.py", kib(3)),
        ("opt/second/numpy/core.so", kib(8)),
        ("opt/second/numpy-1.26.dist-info/RECORD", kib(1)),
    ])
}

const PINNED: &str = "\
@aws-sdk/s3: 45568 bytes
    opt/nodejs/node_modules/@aws-sdk/s3/index.js
    opt/nodejs/node_modules/@aws-sdk/s3/node_modules/a/a.js
numpy: 47104 bytes
    opt/python/numpy-2.1.0.dist-info/RECORD
    opt/python/numpy.libs/libopenblas.so
    opt/python/numpy/core.so
1 of 2: 26624 bytes
    opt/nodejs/node_modules/.bin/tsc
    opt/nodejs/node_modules/.package-lock.json
    opt/nodejs/node_modules/@aws-sdk/core/index.js
    opt/nodejs/node_modules/lodash/lodash.js
    opt/python/__pycache__/six.cpython-36.pyc
    opt/python/setuptools/_vendor/more-1.dist-info/RECORD
    opt/python/setuptools/_vendor/more.py
    opt/python/six-1.17.0.dist-info/RECORD
    opt/python/six.py
2 of 2: 25600 bytes
    opt/empty
    opt/bin/tool
    opt/nodejs/node_modules/react/react.js
    opt/python/bin/f2py
    opt/second/numpy-1.26.dist-info/RECORD
    opt/second/numpy/core.so
";

#[test]
fn the_parts_of_a_small_tree_are_pinned() {
    let plan = plan_of(dependencies());
    assert_eq!(plan.archive_size(), archive(&plan).len() as u64);
    let parts = plan.split(&settings(32 << 10, 6));
    let mut shown = String::new();
    for part in &parts {
        let label = part.label.as_deref().unwrap();
        writeln!(shown, "{label}: {} bytes", part.plan.archive_size()).unwrap();
        for leaf in leaves(part) {
            writeln!(shown, "    {leaf}").unwrap();
        }
    }
    assert_eq!(shown, PINNED);
}

#[test]
fn what_is_within_the_budget_stays_as_it_is() {
    let plan = plan_of(dependencies());
    let whole = archive(&plan);
    let size = whole.len() as u64;
    for (budget, most, parts) in [(size, 8, 1), (size / 2, 8, 2), (1, 1, 1), (0, 2, 2)] {
        let split = plan.clone().split(&settings(budget, most));
        assert_eq!(split.len(), parts, "{budget}");
        if parts == 1 {
            assert_eq!(split[0].label, None);
            assert!(archive(&split[0].plan) == whole);
        }
    }
    let empty = plan_of(Tree::new()).split(&settings(0, 8));
    assert_eq!(labels(&empty), ["-"]);
    // One unit, however large, has no part to be cut into.
    let single = plan_of(tree_of([("opt/model/a", kib(9)), ("opt/model/b", kib(9))]));
    let single = single.split(&settings(1024, 8));
    assert_eq!(labels(&single), ["a", "b"]);
    let single = plan_of(tree_of([("opt/model/a", kib(9))])).split(&settings(1024, 8));
    assert_eq!(labels(&single), ["-"]);
}

#[test]
fn no_more_layers_come_out_than_wanted() {
    let site = |sizes: &[(&str, usize)]| {
        let mut tree = tree_of([("p/m-1.dist-info", Entry::directory(0o755))]);
        for (name, size) in sizes {
            let path = path(format!("p/{name}/a"));
            tree.insert(path, kib(*size), &mut Vec::new()).unwrap();
        }
        plan_of(tree)
    };
    for (sizes, most, expected) in [
        // Without others, every large unit may stand alone.
        (&[("m", 20), ("n", 20)][..], 2, &["m", "n"][..]),
        (&[("m", 20), ("n", 20), ("o", 20)], 2, &["m", "others"]),
        // The largest stand alone; those of one size by name.
        (&[("m", 20), ("n", 21), ("o", 20)], 3, &["m", "n", "o"]),
        (
            &[("m", 20), ("n", 21), ("o", 20), ("a", 1)],
            3,
            &["m", "n", "others"],
        ),
        (
            &[("m", 20), ("n", 21), ("o", 20), ("a", 1)],
            2,
            &["n", "others"],
        ),
        (&[("m", 20), ("n", 21), ("o", 20), ("a", 1)], 1, &["-"]),
        // Two buckets need room for two.
        (
            &[("m", 20), ("n", 9), ("o", 9), ("a", 9), ("b", 9)],
            2,
            &["m", "others"],
        ),
        (
            &[("m", 20), ("n", 9), ("o", 9), ("a", 9), ("b", 9)],
            4,
            &["m", "1 of 2", "2 of 2"],
        ),
        (
            &[("m", 20), ("n", 9), ("o", 9), ("a", 9), ("b", 9)],
            5,
            &["m", "2 of 4", "3 of 4", "4 of 4"],
        ),
    ] {
        let parts = site(sizes).split(&settings(10 << 10, most));
        assert_eq!(labels(&parts), expected, "{sizes:?}, at most {most}");
    }
}

#[test]
fn labels_are_short_and_can_be_printed() {
    let long = "n".repeat(100);
    let plan = plan_of(tree_of([
        ([&b"opt/\xff\n/a"[..]].concat(), kib(9)),
        (format!("opt/{long}/a").into_bytes(), kib(9)),
    ]));
    let parts = plan.split(&settings(1024, 8));
    let expected = format!("{}…", "n".repeat(60));
    assert_eq!(labels(&parts), [expected.as_str(), "\\xff\\n"]);
}

#[test]
fn deletions_stand_below_all_that_is_brought() {
    let mut tree = dependencies();
    let notices = &mut Vec::new();
    tree.insert_whiteout(&path("usr/share/doc"), notices)
        .unwrap();
    tree.insert_opaque(Some(&path("opt/python/numpy")), notices)
        .unwrap();
    let before = plan_of(dependencies()).split(&settings(32 << 10, 5));
    let parts = plan_of(tree.clone()).split(&settings(32 << 10, 6));
    assert_eq!(
        leaves(&parts[0]),
        ["opt/python/numpy/.wh..wh..opq", "usr/share/.wh.doc"]
    );
    assert_eq!(labels(&parts)[0], "deletions");
    // The others are none the wiser, but for the layer that the deletions take.
    assert_eq!(labels(&parts)[1..], labels(&before));
    for (part, before) in parts[1..].iter().zip(&before) {
        assert!(archive(&part.plan) == archive(&before.plan));
    }
    // With room for one other layer nothing is won by a split.
    assert_eq!(labels(&plan_of(tree).split(&settings(32 << 10, 2))), ["-"]);
}

#[test]
fn names_of_one_file_stay_together() {
    let mut tree = dependencies();
    for name in ["opt/python/zlib/z.so", "opt/python/numpy/z.so", "opt/z.so"] {
        tree.insert(path(name), linked(b"shared", 7), &mut Vec::new())
            .unwrap();
    }
    let parts = plan_of(tree).split(&settings(32 << 10, 8));
    let numpy = parts
        .iter()
        .find(|part| part.label.as_deref() == Some("numpy"))
        .unwrap();
    let shared: Vec<String> = leaves(numpy)
        .into_iter()
        .filter(|name| name.ends_with("z.so"))
        .collect();
    let expected = ["opt/python/numpy/z.so", "opt/python/zlib/z.so", "opt/z.so"];
    assert_eq!(shared, expected);
}

#[test]
fn dependencies_are_known_by_what_package_managers_leave() {
    for (name, expected) in [
        ("var/task/numpy-2.1.0.dist-info/METADATA", true),
        ("numpy-2.1.0.dist-info/METADATA", true),
        ("var/task/node_modules/lodash/index.js", true),
        ("node_modules/@aws-sdk/core/index.js", true),
        ("var/task/node_modules/.package-lock.json", false),
        ("var/task/node_modules/.bin/tsc", false),
        ("var/task/my_node_modules/a/b", false),
        ("var/task/app.py", false),
        ("var/task/.dist-info/METADATA", false),
        ("var/task/numpy-2.1.0.dist-info", false),
    ] {
        let plan = plan_of(tree_of([(name, kib(1))]));
        assert_eq!(plan.looks_like_dependencies(), expected, "{name}");
    }
}

/// A folder of forty packages of different sizes; one of them may differ or be missing.
fn forty(change: impl Fn(usize) -> Option<u8>) -> BTreeMap<String, Vec<u8>> {
    let mut tree = Tree::new();
    for number in 0..40 {
        let Some(byte) = change(number) else { continue };
        let size = if number % 13 == 0 { 40 } else { 1 + number % 7 };
        for (name, size) in [
            (format!("opt/Pack.age{number}-1.dist-info/RECORD"), 1),
            (format!("opt/pack_age{number}/a.py"), size),
            (format!("opt/pack_age{number}/sub/b.py"), 1),
            (format!("opt/pack-age{number}.libs/c.so"), 1),
        ] {
            let content = file(vec![byte; size << 10]);
            tree.insert(path(name), content, &mut Vec::new()).unwrap();
        }
    }
    plan_of(tree)
        .split(&settings(32 << 10, 12))
        .iter()
        .map(|part| (part.label.clone().unwrap(), archive(&part.plan)))
        .collect()
}

#[test]
fn a_change_of_one_package_moves_one_layer() {
    let before = forty(|_| Some(0));
    assert_eq!(before.len(), 12, "four alone and eight buckets");
    for changed in 0..40 {
        for after in [
            forty(|number| Some(u8::from(number == changed))),
            forty(|number| (number != changed).then_some(0)),
        ] {
            let moved = |(label, archive): &(&String, &Vec<u8>)| after.get(*label) != Some(archive);
            let moved: Vec<_> = before.iter().filter(moved).collect();
            assert_eq!(moved.len(), 1, "package {changed}");
            // And none but that one is new or gone.
            let new = after.keys().filter(|label| !before.contains_key(*label));
            assert_eq!(new.count(), 0, "package {changed}");
        }
    }
}

/// What a path of an image is: kind, mode, and content or target.
type Image = BTreeMap<Vec<u8>, (u8, u32, Vec<u8>)>;

/// Unpacks a layer as the image specification wants it: deletions first, and of lower layers only.
fn unpack(image: &mut Image, archive: &[u8]) {
    let mut entries = Vec::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut name = entry.path_bytes().into_owned();
        let kind = entry.header().as_bytes()[156];
        if kind == b'5' {
            assert_eq!(name.pop(), Some(b'/'));
        }
        let mode = entry.header().mode().unwrap();
        let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        let mut content = target.unwrap_or_default();
        entry.read_to_end(&mut content).unwrap();
        entries.push((name, (kind, mode, content)));
    }
    let below = |name: &[u8], directory: &[u8]| {
        let rest = name.strip_prefix(directory);
        directory.is_empty() || rest.is_some_and(|rest| rest.starts_with(b"/"))
    };
    let parts = |name: &[u8]| {
        let slash = name.iter().rposition(|&byte| byte == b'/');
        let start = slash.map_or(0, |slash| slash + 1);
        (
            name[..start.saturating_sub(1)].to_vec(),
            name[start..].to_vec(),
        )
    };
    for (name, _) in &entries {
        let (directory, name) = parts(name);
        if name == b".wh..wh..opq" {
            image.retain(|path, _| !below(path, &directory));
        } else if let Some(name) = name.strip_prefix(b".wh.") {
            let gone = path_in(&directory, name);
            image.retain(|path, _| *path != gone && !below(path, &gone));
        }
    }
    for (name, what) in entries {
        let (directory, last) = parts(&name);
        if last.starts_with(b".wh.") {
            continue;
        }
        if !directory.is_empty() {
            assert_eq!(image[&directory].0, b'5', "parents come first");
        }
        let what = match what.0 {
            b'1' => image[&what.2].clone(),
            b'5' => what,
            _ => {
                image.retain(|path, _| !below(path, &name));
                what
            }
        };
        image.insert(name, what);
    }
}

fn path_in(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    [directory, name].join(&b'/')
}

/// What `archive` would be if its entries were added and sealed again.
fn sealed_again(archive: &[u8]) -> Vec<u8> {
    let scratch = tempdir().unwrap();
    let treatment = Treatment {
        modes: Keep::Keep,
        owners: Keep::Keep,
        hardlinks: Keep::Keep,
        ..Treatment::default()
    };
    let add = ArchiveAdd {
        destination: &Destination::root(),
        exclude: None,
        include: None,
        treatment: &treatment,
        scratch: scratch.path(),
        limits: Limits::default(),
    };
    let mut tree = Tree::new();
    add_archive_stream(Path::new("x"), archive, &add, &mut tree, &mut Vec::new()).unwrap();
    archive_of(tree)
}

#[derive(Debug, Clone)]
enum Node {
    File(usize),
    Linked(u8),
    Symlink,
    Directory(u32),
    Whiteout,
    Opaque,
}

fn nodes() -> impl Strategy<Value = Node> {
    prop_oneof![
        12 => prop_oneof![0..600_usize, 1000..5000_usize, 60_000..70_000_usize].prop_map(Node::File),
        2 => (0..3_u8).prop_map(Node::Linked),
        2 => Just(Node::Symlink),
        2 => prop_oneof![Just(0o755), Just(0o700), Just(0o1777)].prop_map(Node::Directory),
        1 => Just(Node::Whiteout),
        1 => Just(Node::Opaque),
    ]
}

/// Paths as package managers make them, and others, in each other's way now and then.
fn names() -> impl Strategy<Value = String> {
    let site = prop_oneof![3 => Just("opt/python/"), 1 => Just("opt/"), 1 => Just("")];
    let package = prop_oneof![
        Just("numpy".to_owned()),
        Just("numpy.libs".to_owned()),
        Just("numpy-2.dist-info".to_owned()),
        Just("Six-1.dist-info".to_owned()),
        Just("six.py".to_owned()),
        Just("__pycache__".to_owned()),
        Just("node_modules/@a/b".to_owned()),
        Just("node_modules/c".to_owned()),
        Just("node_modules/.pnpm/c@1".to_owned()),
        "[a-k]",
    ];
    let rest = prop_oneof![2 => Just(String::new()), 3 => "/[a-c]", 1 => "/node_modules/[ab]/c"];
    (site, package, rest).prop_map(|(site, package, rest)| format!("{site}{package}{rest}"))
}

fn trees() -> impl Strategy<Value = Vec<(String, Node)>> {
    prop::collection::vec((names(), nodes()), 0..50)
}

fn tree(nodes: &[(String, Node)]) -> Tree {
    let mut tree = Tree::new();
    let notices = &mut Vec::new();
    for (name, node) in nodes {
        let path = path(name);
        let entry = match node {
            Node::File(size) => file(vec![name.bytes().fold(0, u8::wrapping_add); *size]),
            Node::Linked(number) => linked(&[*number; 700], u64::from(*number)),
            Node::Symlink => Entry::symlink("numpy"),
            Node::Directory(mode) => Entry::directory(*mode),
            Node::Whiteout => {
                tree.insert_whiteout(&path, notices).unwrap();
                continue;
            }
            Node::Opaque => {
                tree.insert_opaque(Some(&path), notices).unwrap();
                continue;
            }
        };
        tree.insert(path, entry, notices).unwrap();
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_parts_on_each_other_are_the_whole(
        base in trees(),
        nodes in trees(),
        budget in prop_oneof![0..3000_u64, 3000..100_000_u64],
        most in 1..9_usize,
    ) {
        let plan = plan_of(tree(&nodes));
        let whole = archive(&plan);
        prop_assert_eq!(plan.archive_size(), whole.len() as u64);
        let parts = plan.split(&settings(budget, most));
        prop_assert!((1..=most).contains(&parts.len()));

        let mut below = Image::new();
        unpack(&mut below, &archive(&plan_of(tree(&base))));
        let mut expected = below.clone();
        unpack(&mut expected, &whole);
        let mut image = below;
        for part in &parts {
            let archive = archive(&part.plan);
            unpack(&mut image, &archive);
            // Each is in the order of the format, with all directories above its entries and no
            // link to what is elsewhere.
            prop_assert!(sealed_again(&archive) == archive);
        }
        prop_assert_eq!(image, expected);
    }

    #[test]
    fn the_order_of_adds_does_not_show(
        nodes in prop::collection::btree_map(names(), 0..9000_usize, 0..40),
        swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 20),
    ) {
        // No name in the way of another: else the order of adds decides what there is.
        let mut nodes: Vec<_> = nodes
            .into_iter()
            .map(|(name, size)| (format!("{name}/leaf"), Node::File(size)))
            .collect();
        let split = |nodes: &[(String, Node)]| {
            let parts = plan_of(tree(nodes)).split(&settings(8000, 5));
            parts
                .into_iter()
                .map(|part| (part.label, archive(&part.plan)))
                .collect::<Vec<_>>()
        };
        let expected = split(&nodes);
        for (one, other) in swaps {
            if nodes.is_empty() { break }
            let length = nodes.len();
            nodes.swap(one.index(length), other.index(length));
        }
        prop_assert!(split(&nodes) == expected);
    }
}
