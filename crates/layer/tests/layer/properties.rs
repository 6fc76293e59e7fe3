//! What must not show in a layer, tried with random trees.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::tempdir;
use tierce_layer::{
    ArchiveAdd, Codec, Content, Destination, Entry, Fast1, Keep, Limits, Plan, Stored, Treatment,
    Tree, ZlibRs, Zstd, add_archive_stream,
};
use tierce_oci::Digest;

use crate::support::{archive_of, path, plan_of, scanned, sealed, unpacked};

#[derive(Debug, Clone)]
enum Node {
    File {
        size: usize,
        seed: u8,
        executable: bool,
    },
    Symlink(Vec<u8>),
    Directory,
}

/// Names that cannot be in each other's way: directories and leaves have different ones.
fn names() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        4 => "[a-e][0-9]{0,2}".prop_map(String::into_bytes),
        1 => "[é日\n ]{1,60}x".prop_map(String::into_bytes),
        1 => prop::collection::vec(0xf8..=0xff_u8, 1..120),
        1 => "n{90,250}".prop_map(String::into_bytes),
    ];
    let directory = prop_oneof![4 => "D[0-3]", 1 => "D{90,160}"].prop_map(String::into_bytes);
    (prop::collection::vec(directory, 0..4), leaf).prop_map(|(mut components, leaf)| {
        components.push(leaf);
        components.join(&b'/')
    })
}

fn nodes() -> impl Strategy<Value = Node> {
    let size = prop_oneof![
        6 => 0..2000_usize,
        2 => 60_000..70_000_usize,
        1 => 250_000..300_000_usize,
        1 => 1_040_000..1_060_000_usize,
    ];
    prop_oneof![
        8 => (size, any::<u8>(), any::<bool>())
            .prop_map(|(size, seed, executable)| Node::File { size, seed, executable }),
        1 => prop::collection::vec(1..=255_u8, 1..150).prop_map(Node::Symlink),
        1 => Just(Node::Directory),
    ]
}

fn trees() -> impl Strategy<Value = BTreeMap<Vec<u8>, Node>> {
    prop::collection::btree_map(names(), nodes(), 0..40).prop_map(|tree| {
        // An empty directory needs a name that no file has.
        tree.into_iter()
            .map(|(mut name, node)| {
                if matches!(node, Node::Directory) {
                    name.extend_from_slice(b".directory");
                }
                name.truncate(name.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1) + 250);
                (name, node)
            })
            .collect()
    })
}

fn content(size: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few different bytes, so that there is something to compress.
            state.to_be_bytes()[0] & 0x1f
        })
        .collect()
}

fn entry(node: &Node) -> Entry {
    match node {
        Node::File {
            size,
            seed,
            executable,
        } => {
            let mode = if *executable { 0o755 } else { 0o644 };
            Entry::file(Content::bytes(content(*size, *seed)), mode)
        }
        Node::Symlink(target) => Entry::symlink(target),
        Node::Directory => Entry::directory(0o755),
    }
}

fn plan(nodes: impl Iterator<Item = (Vec<u8>, Node)>) -> Plan {
    let mut tree = Tree::new();
    let mut notices = Vec::new();
    for (name, node) in nodes {
        tree.insert(path(name), entry(&node), &mut notices).unwrap();
    }
    assert_eq!(notices, []);
    plan_of(tree)
}

fn write_to_disk(root: &Path, nodes: &BTreeMap<Vec<u8>, Node>, modes: [u32; 2], seconds: u64) {
    use std::os::unix::ffi::OsStrExt;
    for (name, node) in nodes {
        let place = root.join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        match node {
            Node::File {
                size,
                seed,
                executable,
            } => {
                fs::write(&place, content(*size, *seed)).unwrap();
                let time = UNIX_EPOCH + Duration::from_secs(seconds + u64::from(*seed));
                File::options()
                    .write(true)
                    .open(&place)
                    .unwrap()
                    .set_modified(time)
                    .unwrap();
                let mode = modes[usize::from(*executable)];
                fs::set_permissions(&place, Permissions::from_mode(mode)).unwrap();
            }
            Node::Symlink(target) => {
                symlink(std::ffi::OsStr::from_bytes(target), place).unwrap();
            }
            Node::Directory => fs::create_dir_all(place).unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() })]

    #[test]
    fn neither_order_nor_threads_show(
        nodes in trees(),
        swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 20),
    ) {
        let ordered = plan(nodes.clone().into_iter());
        let mut shuffled: Vec<_> = nodes.into_iter().collect();
        if !shuffled.is_empty() {
            for (one, other) in swaps {
                let length = shuffled.len();
                shuffled.swap(one.index(length), other.index(length));
            }
        }
        let plan = plan(shuffled.into_iter());
        let fast: &dyn Codec = &Fast1;
        for (codec, jobs) in [(fast, 2), (&ZlibRs::default(), 3), (&Zstd::default(), 5)] {
            let (expected, _directory) = sealed(&ordered, codec, 1);
            unpacked(&expected);
            let (layer, _directory) = sealed(&plan, codec, jobs);
            prop_assert_eq!(layer.digest, expected.digest);
            prop_assert_eq!(layer.diff_id, expected.diff_id);
            prop_assert_eq!(layer.segments.len(), expected.segments.len());
        }
    }

    #[test]
    fn neither_place_nor_time_nor_umask_show(nodes in trees()) {
        let mut digests: Vec<Digest> = Vec::new();
        for (modes, seconds) in [([0o644, 0o755], 1_000_000_000), ([0o600, 0o711], 1_700_000_000)] {
            let root = tempdir().unwrap();
            write_to_disk(root.path(), &nodes, modes, seconds);
            let (tree, notices) = scanned(root.path(), "/var/task");
            prop_assert!(notices.is_empty() || nodes.is_empty());
            let (layer, _directory) = sealed(&plan_of(tree), &Stored, 2);
            digests.push(layer.digest);
        }
        prop_assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn a_layer_taken_apart_and_sealed_again_is_the_same(nodes in trees()) {
        let mut tree = Tree::new();
        for (name, node) in &nodes {
            tree.insert(path(name), entry(node), &mut Vec::new()).unwrap();
        }
        let archive = archive_of(tree);
        let scratch = tempdir().unwrap();
        let treatment =
            Treatment { modes: Keep::Keep, owners: Keep::Keep, ..Treatment::default() };
        let add = ArchiveAdd {
            destination: &Destination::root(),
            exclude: None,
            include: None,
            treatment: &treatment,
            scratch: scratch.path(),
            limits: Limits::default(),
        };
        let mut again = Tree::new();
        add_archive_stream(Path::new("x"), &*archive, &add, &mut again, &mut Vec::new()).unwrap();
        prop_assert!(archive_of(again) == archive);
    }

    /// Whatever the bytes are, reading them ends, and in an error or a tree.
    #[test]
    fn damaged_archives_do_no_harm(
        nodes in trees(),
        damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..8),
    ) {
        let mut tree = Tree::new();
        for (name, node) in &nodes {
            tree.insert(path(name), entry(node), &mut Vec::new()).unwrap();
        }
        let mut archive = archive_of(tree);
        for (at, byte) in damage {
            let length = archive.len();
            archive[at.index(length)] = byte;
        }
        for block in 0..archive.len() / 512 {
            // Damage that a right checksum covers goes deeper.
            let block = &mut archive[block * 512..][..512];
            if block[257..262] == *b"ustar" {
                crate::support::seal_header(block);
            }
        }
        let scratch = tempdir().unwrap();
        let add = ArchiveAdd {
            destination: &Destination::root(),
            exclude: None,
            include: None,
            treatment: &Treatment::default(),
            scratch: scratch.path(),
            limits: crate::support::SMALL,
        };
        let mut again = Tree::new();
        let name = Path::new("x");
        if add_archive_stream(name, &*archive, &add, &mut again, &mut Vec::new()).is_ok() {
            archive_of(again);
        }
    }
}
