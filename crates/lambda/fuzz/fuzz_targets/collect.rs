//! Any content of any file gives facts, and facts come back from JSON as they were.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierce_lambda::{Collector, EntryKind, LayerFacts, Packing, RawEntry, RawPath};

fuzz_target!(|input: (&[u8], &[u8])| {
    let (path, content) = input;
    let mut collector = Collector::default();
    let entry = RawEntry {
        path: RawPath::new(path),
        kind: EntryKind::File,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: content.len() as u64,
        modified: 1,
    };
    collector.add(entry, &mut &*content).unwrap();
    let facts = collector.finish(0, Packing::None);
    assert!(LayerFacts::from_json(&facts.to_json()) == Some(facts));
});
