//! Compiled Python that stays valid in a layer.
//!
//! A `.pyc` usually names the modification time of its source. Every file of a layer has the same
//! one, so each such `.pyc` would be stale, and Python in a function that cannot write would compile
//! at every cold start. PEP 552 has a form whose header is not compared with anything; a `.pyc`
//! that belongs to its source is written in that form, one that does not is left out, since its
//! code would not have run and now could.
//!
//! This is decided on the finished tree: an earlier add's `.pyc` does not belong to a later add's
//! source.

use crate::content::{BYTECODE_HEADER, Content, ContentError};
use crate::entry::{Entry, EntryKind, FileEntry};
use crate::notice::Notice;
use crate::path::EntryPath;
use crate::tree::{ReservedName, Tree};

/// Puts every `.pyc` of the tree into a form that fits a layer, or drops it.
pub(crate) fn settle(tree: &mut Tree, notices: &mut Vec<Notice>) -> Result<(), ContentError> {
    let mut stale = Vec::new();
    let mut unchecked = Vec::new();
    for (path, entry) in tree.iter() {
        let EntryKind::File(compiled) = &entry.kind else {
            continue;
        };
        let Some(source_path) = source_of(path) else {
            continue;
        };
        // Without its source a cached `.pyc` is never looked at.
        let Some(EntryKind::File(source)) = tree.get(&source_path).map(|entry| &entry.kind) else {
            continue;
        };
        match Header::read(compiled)? {
            Header::HashBased => {}
            Header::Timestamp { modified, size } if belongs(source, modified, size) => {
                let content = Content::UncheckedBytecode {
                    compiled: Box::new(compiled.content.clone()),
                    source: Box::new(source.content.clone()),
                };
                unchecked.push((path.clone(), content));
            }
            Header::Timestamp { .. } | Header::Malformed => stale.push(path.clone()),
        }
    }
    for path in stale {
        tree.entries_mut().remove(&path);
        notices.push(Notice::StaleBytecode { path });
    }
    for (path, content) in unchecked {
        let Some(node) = tree.entries_mut().get_mut(&path) else {
            continue;
        };
        if let EntryKind::File(file) = &mut node.entry.kind {
            file.content = content;
            // Its bytes are its own now, so it can no longer share them with another name.
            file.group = None;
        }
    }
    Ok(())
}

/// A source of Python without compiled code that would be used.
#[derive(Debug, Clone)]
pub struct Uncompiled {
    /// Where the source is.
    pub path: EntryPath,
    /// What it is.
    pub source: Content,
    /// Where its compiled code belongs.
    pub cache: EntryPath,
}

impl Tree {
    /// The sources for which there is no compiled code that the Python with this cache tag
    /// (`cpython-312`) and this magic number would use, by path.
    pub fn uncompiled(&self, tag: &str, magic: [u8; 4]) -> Result<Vec<Uncompiled>, ContentError> {
        let mut uncompiled = Vec::new();
        for (path, entry) in self.iter() {
            let EntryKind::File(source) = &entry.kind else {
                continue;
            };
            let Some(cache) = cache_of(path, tag) else {
                continue;
            };
            let is_compiled = match self.get(&cache).map(|entry| &entry.kind) {
                Some(EntryKind::File(compiled)) => {
                    compiled.content.head(magic.len())? == magic
                        && match Header::read(compiled)? {
                            Header::HashBased => true,
                            Header::Timestamp { modified, size } => belongs(source, modified, size),
                            Header::Malformed => false,
                        }
                }
                // What is there instead was put there by name.
                Some(_) => true,
                None => false,
            };
            let folder = cache.parent().and_then(|folder| self.get(&folder));
            let has_room = folder.is_none_or(|folder| matches!(folder.kind, EntryKind::Directory));
            if !is_compiled && has_room {
                uncompiled.push(Uncompiled {
                    path: path.clone(),
                    source: source.content.clone(),
                    cache,
                });
            }
        }
        Ok(uncompiled)
    }

    /// Puts compiled code beside its source, in the form that a fixed time does not make stale.
    /// `compiled` is a `.pyc` of any form.
    pub fn insert_bytecode(
        &mut self,
        of: Uncompiled,
        compiled: Content,
        notices: &mut Vec<Notice>,
    ) -> Result<(), ReservedName> {
        let content = Content::UncheckedBytecode {
            compiled: Box::new(compiled),
            source: Box::new(of.source),
        };
        // It takes the place of what is stale, about which there is nothing to say.
        self.entries_mut().remove(&of.cache);
        self.insert(of.cache, Entry::file(content, 0o644), notices)
    }
}

/// `D/__pycache__/X.TAG.pyc` for `D/X.py`.
fn cache_of(source: &EntryPath, tag: &str) -> Option<EntryPath> {
    let stem = source.name().strip_suffix(b".py")?;
    if stem.is_empty() {
        return None;
    }
    let name = [b"__pycache__/", stem, b".", tag.as_bytes(), b".pyc"].concat();
    EntryPath::under(source.parent().as_ref(), &name).ok()
}

/// `D/X.py` for `D/__pycache__/X.cpython-312.pyc` and `D/__pycache__/X.cpython-312.opt-1.pyc`, of
/// Python 3.7 and later: older ones have another header.
fn source_of(path: &EntryPath) -> Option<EntryPath> {
    let stem = path.name().strip_suffix(b".pyc")?;
    let cache = path.parent()?;
    if cache.name() != b"__pycache__" {
        return None;
    }
    let (stem, last) = split_at_last_dot(stem)?;
    let (stem, tag) = if last.starts_with(b"opt-") {
        split_at_last_dot(stem)?
    } else {
        (stem, last)
    };
    let version = tag.strip_prefix(b"cpython-3")?;
    let digits = version
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let minor: u32 = std::str::from_utf8(&version[..digits]).ok()?.parse().ok()?;
    if minor < 7 || stem.is_empty() {
        return None;
    }
    EntryPath::under(cache.parent().as_ref(), &[stem, b".py"].concat()).ok()
}

fn split_at_last_dot(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let dot = name.iter().rposition(|&byte| byte == b'.')?;
    Some((&name[..dot], &name[dot + 1..]))
}

enum Header {
    HashBased,
    Timestamp { modified: u32, size: u32 },
    Malformed,
}

impl Header {
    fn read(compiled: &FileEntry) -> Result<Self, ContentError> {
        let head = compiled.content.head(BYTECODE_HEADER)?;
        let field = |start: usize| {
            let bytes = head.get(start..start + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        Ok(match (field(4), field(8), field(12)) {
            (Some(0), Some(modified), Some(size)) => Self::Timestamp { modified, size },
            (Some(1 | 3), Some(_), Some(_)) => Self::HashBased,
            _ => Self::Malformed,
        })
    }
}

/// Python keeps the low 32 bits of both numbers.
fn belongs(source: &FileEntry, modified: u32, size: u32) -> bool {
    const LOW: u64 = 0xffff_ffff;
    source
        .modified
        .is_some_and(|time| time.cast_unsigned() & LOW == u64::from(modified))
        && source.content.size() & LOW == u64::from(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_found_beside_the_cache() {
        let source =
            |path: &str| source_of(&EntryPath::new(path).unwrap()).map(|source| source.to_string());
        for (path, expected) in [
            ("a/__pycache__/x.cpython-312.pyc", Some("a/x.py")),
            ("__pycache__/x.cpython-37.pyc", Some("x.py")),
            ("a/__pycache__/x.cpython-313t.opt-2.pyc", Some("a/x.py")),
            ("a/__pycache__/x.y.cpython-310.pyc", Some("a/x.y.py")),
            ("a/__pycache__/x.cpython-36.pyc", None),
            ("a/__pycache__/x.pypy39.pyc", None),
            ("a/__pycache__/x.pyc", None),
            ("a/x.cpython-312.pyc", None),
            ("a/__pycache__/.cpython-312.pyc", None),
        ] {
            assert_eq!(source(path).as_deref(), expected, "{path}");
        }
    }

    fn pyc(flags: u32, modified: u32, size: u32) -> Vec<u8> {
        let mut bytes = b"\xcb\x0d\x0d\x0a".to_vec();
        for field in [flags, modified, size] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(b"code");
        bytes
    }

    fn settled(compiled: Vec<u8>, modified: Option<i64>) -> (Option<Vec<u8>>, Vec<Notice>) {
        let mut tree = Tree::new();
        let mut notices = Vec::new();
        let cache = EntryPath::new("p/__pycache__/m.cpython-312.pyc").unwrap();
        let content = Content::bytes(compiled);
        tree.insert(cache.clone(), Entry::file(content, 0o644), &mut notices)
            .unwrap();
        let kind = EntryKind::File(FileEntry {
            content: Content::bytes(*b"x = 1\n"),
            modified,
            group: None,
        });
        let attributes = crate::entry::Attributes::root(0o644);
        let source = EntryPath::new("p/m.py").unwrap();
        tree.insert(source, Entry { kind, attributes }, &mut notices)
            .unwrap();
        settle(&mut tree, &mut notices).unwrap();
        let bytes = tree.get(&cache).map(|entry| {
            let EntryKind::File(file) = &entry.kind else {
                panic!("is a file")
            };
            let mut bytes = Vec::new();
            file.content
                .read_pieces::<ContentError>(7, |piece| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })
                .unwrap();
            bytes
        });
        (bytes, notices)
    }

    #[test]
    fn matching_timestamps_become_unchecked_hashes() {
        let (bytes, notices) = settled(pyc(0, 1_700_000_000, 6), Some(1_700_000_000));
        let bytes = bytes.unwrap();
        assert_eq!(&bytes[..4], b"\xcb\x0d\x0d\x0a");
        assert_eq!(bytes[4..8], 1_u32.to_le_bytes());
        assert_eq!(
            bytes[8..16],
            tierce_oci::Digest::of(b"x = 1\n").as_bytes()[..8]
        );
        assert_eq!(&bytes[16..], b"code");
        assert_eq!(notices, []);
    }

    #[test]
    fn what_does_not_match_is_left_out_with_a_notice() {
        for (compiled, modified) in [
            (pyc(0, 1, 6), Some(2)),
            (pyc(0, 1, 7), Some(1)),
            (pyc(0, 1, 6), None),
            (b"short".to_vec(), Some(1)),
            (pyc(2, 1, 6), Some(1)),
        ] {
            let (bytes, notices) = settled(compiled, modified);
            assert_eq!(bytes, None);
            assert!(matches!(notices[..], [Notice::StaleBytecode { .. }]));
        }
    }

    #[test]
    fn sources_without_code_of_their_own_are_found() {
        const MAGIC: [u8; 4] = *b"\xcb\x0d\x0d\x0a";
        let mut tree = Tree::new();
        let mut notices = Vec::new();
        let mut add = |path: &str, bytes: Vec<u8>, modified: Option<i64>| {
            let kind = EntryKind::File(FileEntry {
                content: Content::bytes(bytes),
                modified,
                group: None,
            });
            let attributes = crate::entry::Attributes::root(0o644);
            let path = EntryPath::new(path).unwrap();
            tree.insert(path, Entry { kind, attributes }, &mut notices)
                .unwrap();
        };
        for name in ["none", "own", "stale", "hashed", "older"] {
            add(&format!("p/{name}.py"), b"x = 1\n".to_vec(), Some(1));
        }
        add("p/.py", Vec::new(), None);
        add("p/data.txt", Vec::new(), None);
        add("p/__pycache__/own.cpython-312.pyc", pyc(0, 1, 6), None);
        add("p/__pycache__/stale.cpython-312.pyc", pyc(0, 2, 6), None);
        add("p/__pycache__/hashed.cpython-312.pyc", pyc(3, 0, 0), None);
        add("p/__pycache__/none.cpython-311.pyc", pyc(0, 1, 6), None);
        let mut older = pyc(0, 1, 6);
        older[0] -= 1;
        add("p/__pycache__/older.cpython-312.pyc", older, None);
        add("q/x.py", Vec::new(), None);
        let folder = EntryPath::new("q/__pycache__").unwrap();
        tree.insert(folder, Entry::symlink("/elsewhere"), &mut Vec::new())
            .unwrap();
        let found = tree.uncompiled("cpython-312", MAGIC).unwrap();
        let names: Vec<_> = found.iter().map(|of| of.path.to_string()).collect();
        assert_eq!(names, ["p/none.py", "p/older.py", "p/stale.py"]);
        for of in found {
            tree.insert_bytecode(of, Content::bytes(pyc(0, 7, 7)), &mut notices)
                .unwrap();
        }
        assert!(tree.uncompiled("cpython-312", MAGIC).unwrap().is_empty());
        settle(&mut tree, &mut notices).unwrap();
        assert!(
            !notices
                .iter()
                .any(|notice| matches!(notice, Notice::StaleBytecode { .. }))
        );
    }

    #[test]
    fn hash_based_forms_stay() {
        for flags in [1, 3] {
            let compiled = pyc(flags, 1, 2);
            assert_eq!(settled(compiled.clone(), Some(9)), (Some(compiled), vec![]));
        }
    }
}
