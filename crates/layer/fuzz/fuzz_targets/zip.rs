//! A zip is read or refused, whatever it is, and no more comes out of it than is allowed.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use tierce_layer::{ArchiveAdd, Destination, EntryKind, Limits, Treatment, Tree, add_zip};

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    members: 100,
};

fuzz_target!(|input: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(input).unwrap();
    let add = ArchiveAdd {
        destination: &Destination::root(),
        exclude: None,
        include: None,
        treatment: &Treatment::default(),
        scratch: file.path().parent().unwrap(),
        limits: LIMITS,
    };
    let mut tree = Tree::new();
    if add_zip(file.path(), &add, &mut tree, &mut Vec::new()).is_err() {
        assert!(tree.is_empty());
    }
    let files = tree.iter().filter_map(|(_, entry)| match &entry.kind {
        EntryKind::File(file) => Some(file.content.size()),
        _ => None,
    });
    assert!(files.sum::<u64>() <= LIMITS.bytes);
});
