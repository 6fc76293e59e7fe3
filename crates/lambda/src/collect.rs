//! Entries of a layer in, facts out.
//!
//! Whoever reads an archive tells a [`Collector`] of every entry in order. Contents are looked at
//! once, as a stream; of a large one only some parts are held, and only for as long as it is looked
//! at. Whoever writes one tells a [`Gathering`](crate::Gathering) of the same in any order.

use std::io::{self, Read};

use crate::bytecode::BytecodeFacts;
use crate::elf::{self, Bounds, Kept, Ranges, ReadRange};
use crate::facts::{ContentFacts, EntryFacts, EntryKind, LayerFacts, Packing, RawPath};
use crate::search::{InOrder, names_runtime_api};
use crate::wheel;

/// As much of a file as is read to tell what it is. Scripts are looked through so far.
pub(crate) const START: u64 = 64 << 10;
/// As long as the `#!` line of a script may be (`BINPRM_BUF_SIZE` of Linux).
const SHEBANG: usize = 256;
/// Bytes of names that are kept of all the contents of one layer.
pub(crate) const MOST_TEXT: usize = 64 << 20;

/// An entry as it stands in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// Its clean path, from the root on.
    pub path: RawPath,
    /// What it is; deletions are files with their marker's name.
    pub kind: EntryKind,
    /// Permissions.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Bytes of its content.
    pub size: u64,
    /// When it was changed, in seconds of Unix time.
    pub modified: i64,
}

/// Gathers the facts of one layer.
#[derive(Debug)]
pub struct Collector {
    entries: Vec<EntryFacts>,
    text_left: usize,
    leaves_out: bool,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            text_left: MOST_TEXT,
            leaves_out: false,
        }
    }
}

impl Collector {
    /// Takes the next entry of the layer. Its content need not be read to the end.
    pub fn add(&mut self, entry: RawEntry, content: &mut dyn Read) -> io::Result<()> {
        if let Some(mut facts) = described(entry) {
            if has_content(&facts) {
                inspect(&mut facts, content)?;
            }
            self.keep(facts);
        }
        Ok(())
    }

    /// Takes the facts of the next entry.
    pub(crate) fn keep(&mut self, mut facts: EntryFacts) {
        let text = facts.content.as_ref().map_or(0, text_of);
        match self.text_left.checked_sub(text) {
            Some(left) => self.text_left = left,
            // No image that was made to be run comes to this.
            None => {
                facts.content = None;
                self.leaves_out = true;
            }
        }
        self.entries.push(facts);
    }

    /// The facts of all entries.
    pub fn finish(self, uncompressed_size: u64, packing: Packing) -> LayerFacts {
        let facts = LayerFacts::new(uncompressed_size, packing, self.entries);
        facts.with_contents_left_out(self.leaves_out)
    }
}

/// What an entry is, its content left aside; `None` for names that mean nothing.
pub(crate) fn described(entry: RawEntry) -> Option<EntryFacts> {
    let (path, kind) = match marker(&entry.path) {
        // Names that a storage driver kept for itself mean nothing.
        Some(Marker::Nothing) => return None,
        Some(Marker::Whiteout(path)) => (path, EntryKind::Whiteout),
        Some(Marker::Opaque(path)) => (path, EntryKind::Opaque),
        None => (entry.path, entry.kind),
    };
    Some(EntryFacts {
        path,
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: entry.size,
        modified: entry.modified,
        content: None,
        speaks_runtime_api: false,
    })
}

/// Whether there is something to look into.
pub(crate) fn has_content(facts: &EntryFacts) -> bool {
    facts.kind == EntryKind::File && facts.size > 0
}

enum Marker {
    Whiteout(RawPath),
    Opaque(RawPath),
    Nothing,
}

/// What a name with the prefix of deletions means (image-spec, `layer.md`, "Whiteouts").
fn marker(path: &RawPath) -> Option<Marker> {
    const PREFIX: &[u8] = b".wh.";
    let mut above = path.as_bytes().split(|&byte| byte == b'/').rev().skip(1);
    if above.any(|component| component.starts_with(PREFIX)) {
        return Some(Marker::Nothing);
    }
    let removed = path.name().strip_prefix(PREFIX)?;
    if removed == b".wh..opq" {
        return Some(Marker::Opaque(RawPath::new(
            path.parent().unwrap_or_default(),
        )));
    }
    if removed.starts_with(PREFIX) || matches!(removed, b"" | b"." | b"..") {
        return Some(Marker::Nothing);
    }
    Some(Marker::Whiteout(match path.parent() {
        Some(parent) => RawPath::new([parent, removed].join(&b'/')),
        None => RawPath::new(removed),
    }))
}

fn inspect(facts: &mut EntryFacts, content: &mut dyn Read) -> io::Result<()> {
    let mut start = Vec::new();
    (&mut *content).take(START).read_to_end(&mut start)?;
    if !start.starts_with(elf::MAGIC) {
        inspect_start(facts, &start);
        return Ok(());
    }
    let mut search = InOrder::default();
    let kept = Kept::read(start, content, Bounds::USUAL, &mut |piece| {
        search.take(piece);
    })?;
    facts.speaks_runtime_api = search.found();
    facts.content = elf::inspect(&kept).map(|elf| ContentFacts::Elf(Box::new(elf)));
    Ok(())
}

/// The same of a content that is in memory, and no longer than a piece of an archive.
pub(crate) fn inspect_whole(facts: &mut EntryFacts, content: &[u8]) {
    if content.starts_with(elf::MAGIC) {
        let kept = Kept::whole(content);
        facts.speaks_runtime_api = names_runtime_api(content);
        facts.content = elf::inspect(&kept).map(|elf| ContentFacts::Elf(Box::new(elf)));
    } else {
        let start = usize::try_from(START).unwrap_or(usize::MAX);
        inspect_start(facts, &content[..content.len().min(start)]);
    }
}

/// The same of a content that is read by ranges, `start` of which has been read already. Gives
/// whether it speaks to the Runtime API if the whole of it has the name.
pub(crate) fn inspect_ranges(
    facts: &mut EntryFacts,
    start: &[u8],
    content: &dyn ReadRange,
) -> io::Result<bool> {
    if !start.starts_with(elf::MAGIC) {
        inspect_start(facts, start);
        return Ok(false);
    }
    let ranges = Ranges::new(content, facts.size, Bounds::USUAL);
    facts.content = elf::inspect(&ranges).map(|elf| ContentFacts::Elf(Box::new(elf)));
    ranges.finish()?;
    Ok(true)
}

/// Takes what the beginning of a file says, which is no program or library of Linux.
fn inspect_start(facts: &mut EntryFacts, start: &[u8]) {
    let path = facts.path.as_bytes();
    if let Some(format) = foreign(start) {
        facts.content = Some(ContentFacts::Foreign(format.to_owned()));
    } else if start.starts_with(b"#!") {
        facts.speaks_runtime_api = names_runtime_api(start);
        facts.content = Some(ContentFacts::Script(shebang(start)));
    } else if [&b".py"[..], b".js", b".mjs", b".cjs", b".rb"]
        .iter()
        .any(|ending| path.ends_with(ending))
    {
        // What an interpreter is given needs no `#!` line.
        facts.speaks_runtime_api = names_runtime_api(start);
    } else if path.ends_with(b".pyc") {
        facts.content = BytecodeFacts::read(start).map(ContentFacts::Bytecode);
    } else if facts.path.name() == b"WHEEL" && in_dist_info(path) {
        facts.content = Some(ContentFacts::Wheel(wheel::tags(start)));
    } else if path == b"etc/ld.so.conf"
        || path.starts_with(b"etc/ld.so.conf.d/")
        || (path.starts_with(b"etc/ld-musl-") && path.ends_with(b".path"))
    {
        let text = String::from_utf8_lossy(start).into_owned();
        facts.content = Some(ContentFacts::Text(text));
    }
}

fn in_dist_info(path: &[u8]) -> bool {
    crate::facts::parent_of(path).is_some_and(|parent| parent.ends_with(b".dist-info"))
}

/// The words of a `#!` line as the kernel splits it: an interpreter and at most one argument.
fn shebang(start: &[u8]) -> Vec<String> {
    let line = &start[2..start.len().min(SHEBANG)];
    let end = line.iter().position(|&byte| byte == b'\n' || byte == 0);
    let line = String::from_utf8_lossy(&line[..end.unwrap_or(line.len())]).into_owned();
    // A carriage return at the end is a part of the name, to the kernel.
    let line = line.trim_matches([' ', '\t']);
    match line.split_once([' ', '\t']) {
        None if line.is_empty() => Vec::new(),
        None => vec![line.to_owned()],
        Some((interpreter, argument)) => {
            vec![interpreter.to_owned(), argument.trim_start().to_owned()]
        }
    }
}

/// The format of a program of another system.
fn foreign(start: &[u8]) -> Option<&'static str> {
    match start.get(..4)? {
        [0xcf | 0xce, 0xfa, 0xed, 0xfe] | [0xfe, 0xed, 0xfa, 0xcf | 0xce] => Some("macOS"),
        // Java's classes begin so too; after it comes their version, or the number of programs.
        [0xca, 0xfe, 0xba, 0xbe] if matches!(start.get(4..8), Some([0, 0, 0, 1..=16])) => {
            Some("macOS")
        }
        [b'M', b'Z', ..] => {
            let at = u32::from_le_bytes(start.get(0x3c..0x40)?.try_into().ok()?);
            let header = start.get(usize::try_from(at).ok()?..)?;
            // Assemblies of .NET are such files too, on every system.
            (header.starts_with(b"PE\0\0") && !is_managed(header)).then_some("Windows")
        }
        _ => None,
    }
}

/// Whether a Portable Executable, from its signature on, holds code for .NET: its directory 14 is
/// there (ECMA-335, II.25.2.3.3).
fn is_managed(header: &[u8]) -> bool {
    /// The signature, and the file header behind it.
    const OPTIONAL: usize = 24;
    let directories = match header.get(OPTIONAL..OPTIONAL + 2) {
        Some([0x0b, 0x01]) => OPTIONAL + 96,
        Some([0x0b, 0x02]) => OPTIONAL + 112,
        _ => return false,
    };
    let at = directories + 14 * 8;
    header
        .get(at..at + 8)
        .is_some_and(|entry| entry.iter().any(|&byte| byte != 0))
}

pub(crate) fn text_of(content: &ContentFacts) -> usize {
    match content {
        ContentFacts::Elf(elf) => {
            let names = [&elf.interpreter, &elf.soname, &elf.rpath, &elf.runpath];
            let needs = elf.needs.iter().map(|need| {
                64 + need.library.len()
                    + need.version.len()
                    + need.symbol.as_ref().map_or(0, String::len)
            });
            let names = names.into_iter().flatten();
            names
                .chain(&elf.needed)
                .chain(&elf.defines)
                .map(|name| 24 + name.len())
                .sum::<usize>()
                + needs.sum::<usize>()
        }
        ContentFacts::Script(words) | ContentFacts::Wheel(words) => {
            words.iter().map(|word| 24 + word.len()).sum()
        }
        ContentFacts::Text(text) => text.len(),
        ContentFacts::Foreign(_) | ContentFacts::Bytecode(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(path: &str, content: &[u8]) -> Option<EntryFacts> {
        let mut collector = Collector::default();
        let entry = RawEntry {
            path: RawPath::from(path),
            kind: EntryKind::File,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: content.len() as u64,
            modified: 1,
        };
        collector.add(entry, &mut &*content).unwrap();
        collector.finish(0, Packing::None).entries.pop()
    }

    fn script(content: &[u8]) -> Vec<String> {
        match collected("a", content).unwrap().content {
            Some(ContentFacts::Script(words)) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scripts_have_an_interpreter_and_one_argument() {
        assert_eq!(script(b"#!/bin/sh\n"), ["/bin/sh"]);
        assert_eq!(
            script(b"#! /usr/bin/env  python3 -u \nx"),
            ["/usr/bin/env", "python3 -u"]
        );
        assert_eq!(script(b"#!/bin/sh\r\n"), ["/bin/sh\r"]);
        assert!(script(b"#!").is_empty());
    }

    #[test]
    fn deletions_are_told_by_their_names() {
        let kind = |path: &str| collected(path, b"").map(|entry| (entry.path, entry.kind));
        let whiteout = |path: &str| Some((RawPath::from(path), EntryKind::Whiteout));
        assert_eq!(kind("a/.wh.b"), whiteout("a/b"));
        assert_eq!(kind(".wh.b"), whiteout("b"));
        assert_eq!(
            kind(".wh..wh..opq"),
            Some((RawPath::from(""), EntryKind::Opaque))
        );
        assert_eq!(
            kind("a/.wh..wh..opq"),
            Some((RawPath::from("a"), EntryKind::Opaque))
        );
        assert_eq!(kind(".wh..wh.plnk/1"), None);
        assert_eq!(kind("a/.wh.."), None);
    }

    #[test]
    fn programs_of_other_systems_are_known() {
        let content = |bytes: &[u8]| collected("x.so", bytes).unwrap().content;
        let foreign = |name: &str| Some(ContentFacts::Foreign(name.to_owned()));
        assert_eq!(content(b"\xcf\xfa\xed\xfe\x0c\0\0\x01"), foreign("macOS"));
        assert_eq!(content(b"\xca\xfe\xba\xbe\0\0\0\x02"), foreign("macOS"));
        assert_eq!(content(b"\xca\xfe\xba\xbe\0\0\0\x41"), None);
        let mut windows = vec![0; 0x48];
        windows[..2].copy_from_slice(b"MZ");
        windows[0x3c] = 0x40;
        windows[0x40..0x42].copy_from_slice(b"PE");
        assert_eq!(content(&windows), foreign("Windows"));
        // Assemblies of .NET run where .NET does.
        windows.resize(0x200, 0);
        windows[0x58..0x5a].copy_from_slice(&[0x0b, 0x02]);
        assert_eq!(content(&windows), foreign("Windows"));
        windows[0x58 + 112 + 14 * 8] = 8;
        assert_eq!(content(&windows), None);
        assert_eq!(content(b"MZ"), None);
    }
}
