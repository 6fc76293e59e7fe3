//! The facts of a layer that is being made, from bytes that are at hand anyway.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::collect::{
    Collector, MOST_TEXT, RawEntry, START, described, has_content, inspect_ranges, inspect_whole,
    text_of,
};
use crate::elf::ReadRange;
use crate::facts::{EntryFacts, EntryKind, LayerFacts, Packing, RawPath};
use crate::search::InPieces;

/// Gathers the facts of one layer, of whose entries pieces come in any order and from any thread.
///
/// The facts are those that a [`Collector`] has from the archive. What did not come, because it was
/// not read again, is taken from the facts of an earlier layer.
#[derive(Debug)]
pub struct Gathering {
    /// By the place of the entry in the archive.
    slots: Mutex<BTreeMap<usize, Slot>>,
    /// Bytes of names that are held.
    text: AtomicUsize,
    /// Something came that could not be looked at, or was too much to be held.
    gave_up: AtomicBool,
}

/// What has come of the content of an entry.
#[derive(Debug)]
enum Slot {
    /// All of it.
    Whole(EntryFacts),
    /// Pieces, of a content that is too large to come at once.
    Pieces(Pieces),
}

#[derive(Debug, Default)]
struct Pieces {
    /// With the first piece: the facts, and whether it counts what the content names.
    facts: Option<(EntryFacts, bool)>,
    search: InPieces,
}

impl Default for Gathering {
    fn default() -> Self {
        Self::new()
    }
}

impl Gathering {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self {
            slots: Mutex::new(BTreeMap::new()),
            text: AtomicUsize::new(0),
            gave_up: AtomicBool::new(false),
        }
    }

    /// Takes a piece of the entry at `position` of the archive, whose content begins with it at
    /// `offset`; the whole of a small file at once. `content` is read only where a large file must
    /// be looked at elsewhere.
    ///
    /// Nothing is gathered when `content` cannot be read. A piece may come twice.
    pub fn take(
        &self,
        position: usize,
        entry: RawEntry,
        offset: u64,
        piece: &[u8],
        content: &dyn ReadRange,
    ) {
        let Some(mut facts) = described(entry) else {
            return;
        };
        if !has_content(&facts) {
            return;
        }
        if piece.len() as u64 == facts.size {
            inspect_whole(&mut facts, piece);
            if self.has_room_for(&facts) {
                self.with_slots(|slots| slots.insert(position, Slot::Whole(facts)));
            }
            return;
        }
        let first = if offset == 0 {
            match look_into(&mut facts, piece, content) {
                Ok(counts_names) if self.has_room_for(&facts) => Some((facts, counts_names)),
                Ok(_) => return,
                Err(_) => return self.gave_up.store(true, Ordering::Relaxed),
            }
        } else {
            None
        };
        let mut found = InPieces::default();
        found.take(offset, piece);
        self.with_slots(|slots| {
            let slot = slots.entry(position);
            let slot = slot.or_insert_with(|| Slot::Pieces(Pieces::default()));
            if let Slot::Pieces(pieces) = slot {
                pieces.search.join(found);
                pieces.facts = first.or(pieces.facts.take());
            }
        });
    }

    /// Counts what is to be held. Memory is bounded, whatever the files say.
    fn has_room_for(&self, facts: &EntryFacts) -> bool {
        let text = facts.content.as_ref().map_or(0, text_of);
        let has_room = self.text.fetch_add(text, Ordering::Relaxed) + text <= 2 * MOST_TEXT;
        if !has_room {
            self.gave_up.store(true, Ordering::Relaxed);
        }
        has_room
    }

    fn with_slots<T>(&self, work: impl FnOnce(&mut BTreeMap<usize, Slot>) -> T) -> T {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut slots)
    }

    /// The facts of the whole layer, whose entries are `entries` in the order of the archive.
    ///
    /// `earlier` gives the facts of a layer that has every entry that did not come, as it is here;
    /// it is asked when there is one. `None` when something did not come and is not there either.
    pub fn finish(
        self,
        entries: impl Iterator<Item = RawEntry>,
        earlier: impl FnOnce() -> Option<Arc<LayerFacts>>,
        uncompressed_size: u64,
        packing: Packing,
    ) -> Option<LayerFacts> {
        if self.gave_up.into_inner() {
            return None;
        }
        let mut slots = self
            .slots
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut earlier = Some(earlier);
        let mut known: BTreeMap<RawPath, EntryFacts> = BTreeMap::new();
        let mut collector = Collector::default();
        for (position, entry) in entries.enumerate() {
            let Some(facts) = described(entry) else {
                continue;
            };
            if !has_content(&facts) {
                collector.keep(facts);
                continue;
            }
            if let Some(found) = slots.remove(&position).and_then(Slot::finish) {
                collector.keep(found);
                continue;
            }
            if let Some(earlier) = earlier.take() {
                let earlier = earlier().filter(|facts| !facts.leaves_contents_out())?;
                let files = earlier.entries.iter();
                let files = files.filter(|entry| entry.kind == EntryKind::File);
                known = files
                    .map(|entry| (entry.path.clone(), entry.clone()))
                    .collect();
            }
            collector.keep(
                known
                    .remove(&facts.path)
                    .filter(|known| known.size == facts.size)?,
            );
        }
        Some(collector.finish(uncompressed_size, packing))
    }
}

impl Slot {
    fn finish(self) -> Option<EntryFacts> {
        match self {
            Self::Whole(facts) => Some(facts),
            Self::Pieces(Pieces { facts, search }) => {
                let (mut facts, counts_names) = facts?;
                let found = search.found(facts.size)?;
                if counts_names {
                    facts.speaks_runtime_api = found;
                }
                Some(facts)
            }
        }
    }
}

/// Looks into a file of which `piece` is the beginning.
fn look_into(facts: &mut EntryFacts, piece: &[u8], content: &dyn ReadRange) -> io::Result<bool> {
    let length = facts.size.min(START);
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    if let Some(start) = piece.get(..wanted) {
        return inspect_ranges(facts, start, content);
    }
    let mut start = Vec::new();
    content.read_range(0..length, &mut start)?;
    inspect_ranges(facts, &start, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Content<'a>(&'a [u8]);

    impl ReadRange for Content<'_> {
        fn read_range(&self, range: std::ops::Range<u64>, bytes: &mut Vec<u8>) -> io::Result<()> {
            let at = |offset| usize::try_from(offset).unwrap();
            let found = self.0.get(at(range.start)..at(range.end));
            bytes.extend_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    fn file(path: &str, content: &[u8]) -> RawEntry {
        RawEntry {
            path: RawPath::from(path),
            kind: EntryKind::File,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: content.len() as u64,
            modified: 1,
        }
    }

    fn streamed(files: &[(&str, &[u8])]) -> LayerFacts {
        let mut collector = Collector::default();
        for (path, content) in files {
            collector.add(file(path, content), &mut &**content).unwrap();
        }
        collector.finish(7, Packing::Gzip)
    }

    /// Gathers the pieces of those files that are not left out, the last first.
    fn gathered(
        files: &[(&str, &[u8])],
        left_out: &[usize],
        piece: usize,
        earlier: Option<LayerFacts>,
    ) -> Option<LayerFacts> {
        let gathering = Gathering::new();
        for (position, (path, content)) in files.iter().enumerate().rev() {
            if left_out.contains(&position) {
                continue;
            }
            for (number, bytes) in content.chunks(piece).enumerate().rev() {
                let offset = (number * piece) as u64;
                gathering.take(
                    position,
                    file(path, content),
                    offset,
                    bytes,
                    &Content(content),
                );
            }
        }
        let entries = files.iter().map(|(path, content)| file(path, content));
        gathering.finish(entries, || earlier.map(Arc::new), 7, Packing::Gzip)
    }

    #[test]
    fn pieces_in_any_order_give_what_the_archive_gives() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let client = [&program[..], b"AWS_LAMBDA_RUNTIME_API"].concat();
        let files: [(&str, &[u8]); 7] = [
            ("a", &program),
            ("client", &client),
            ("b.wh.", b""),
            (".wh.gone", b""),
            ("script", b"#!/bin/sh -e\n# AWS_LAMBDA_RUNTIME_API"),
            ("text", b"nothing"),
            (".wh..wh.aufs", b"x"),
        ];
        let expected = streamed(&files);
        assert!(expected.entries[1].speaks_runtime_api && expected.entries[4].speaks_runtime_api);
        for piece in [5000, 65_536, 1 << 20, 1 << 30] {
            let made = gathered(&files, &[], piece, None);
            assert!(made.as_ref() == Some(&expected), "{piece}");
        }
        let left_out = [0, 4];
        assert_eq!(gathered(&files, &left_out, 1 << 20, None), None);
        let others = streamed(&[files[4]]);
        assert_eq!(gathered(&files, &left_out, 1 << 20, Some(others)), None);
        let earlier = Some(expected.clone());
        assert!(gathered(&files, &left_out, 1 << 20, earlier) == Some(expected));
    }

    #[test]
    fn nothing_is_gathered_from_what_cannot_be_read() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let gathering = Gathering::new();
        let entry = || file("a", &program);
        let (first, second) = program.split_at(100);
        gathering.take(0, entry(), 0, first, &Content(b""));
        gathering.take(0, entry(), 100, second, &Content(b""));
        let earlier = || Some(Arc::new(streamed(&[("a", &program)])));
        let finished = gathering.finish([entry()].into_iter(), earlier, 7, Packing::Gzip);
        assert_eq!(finished, None);
    }
}
