//! What is where in a tar file.
//!
//! Only headers are read, and only as much of each as is needed to find members by name. The names
//! are keys and never become paths of this machine, so that no name can lead anywhere.
//!
//! Extended headers are decoded here: the `tar` crate splits PAX records at newlines, which values
//! may contain (tar-rs#428), and so can be made to read another name than every other tool does.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tar::{EntryType, Header};
use tierce_image::Content;

use super::ArchiveError;
use crate::atomic::PathError;
use crate::file::{open_regular, read_range};

const BLOCK: u64 = 512;

/// An archive of an image has some dozens of members.
const MAX_MEMBERS: usize = 1 << 18;

/// Longest name or set of PAX records that is read.
const MAX_EXTENSION: u64 = 1 << 20;

/// How many links lead from a name to a file at most.
const MAX_LINKS: usize = 16;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveMember {
    /// The archive.
    pub path: PathBuf,
    /// Its name there.
    pub name: String,
    /// Where its bytes begin.
    pub offset: u64,
    /// How many it has.
    pub size: u64,
}

impl ArchiveMember {
    /// Where the bytes are, for a [`BlobSource`](tierce_image::BlobSource).
    pub fn content(&self) -> Content {
        Content::File {
            path: self.path.clone(),
            offset: self.offset,
        }
    }

    /// Whether the bytes begin as a gzip stream does.
    pub fn is_gzip(&self) -> Result<bool, PathError> {
        let start = read_range(&self.path, self.offset, if self.size < 2 { 0 } else { 2 })?;
        Ok(start[..] == [0x1f, 0x8b])
    }

    /// All of it, if it is no longer than `limit`.
    pub(crate) fn read(&self, limit: u64) -> Result<Bytes, ArchiveError> {
        let size = usize::try_from(self.size).ok();
        let Some(size) = size.filter(|_| self.size <= limit) else {
            return Err(ArchiveError::TooLarge {
                path: self.path.clone(),
                member: self.name.clone(),
                size: self.size,
                limit,
            });
        };
        Ok(read_range(&self.path, self.offset, size)?)
    }
}

#[derive(Debug, Clone)]
enum Node {
    File {
        offset: u64,
        size: u64,
    },
    /// Another member, by normalised name.
    Link(String),
    Other(&'static str),
}

/// The members of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    path: PathBuf,
    nodes: BTreeMap<String, Node>,
    /// Names that more than one file has.
    duplicates: Vec<String>,
}

impl Members {
    /// Walks the headers of the archive at `path`.
    pub(crate) fn scan(path: &Path) -> Result<Self, ArchiveError> {
        let file = open_regular(path)?;
        let length = file
            .metadata()
            .map_err(PathError::of("look at", path))?
            .len();
        let mut scan = Scan {
            path,
            file: &file,
            length,
            offset: 0,
        };
        let mut members = Self {
            path: path.to_owned(),
            nodes: BTreeMap::new(),
            duplicates: Vec::new(),
        };
        let mut count = 0;
        while let Some((name, node)) = scan.next()? {
            count += 1;
            if count > MAX_MEMBERS {
                return Err(scan.damaged("it has too many members"));
            }
            let is_directory = matches!(node, Node::Other(DIRECTORY));
            if members.nodes.insert(name.clone(), node).is_some() && !is_directory {
                members.duplicates.push(name);
            }
        }
        Ok(members)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file named `name`, links within the archive followed; `None` if there is no such name.
    ///
    /// Of several with one name the last counts, as when a tar is unpacked.
    pub(crate) fn file(&self, name: &str) -> Result<Option<ArchiveMember>, ArchiveError> {
        let Some(mut current) = normalised(name) else {
            return Ok(None);
        };
        let not_a_file = |kind| ArchiveError::NotAFile {
            path: self.path.clone(),
            member: name.to_owned(),
            kind,
        };
        for _ in 0..MAX_LINKS {
            match self.nodes.get(&current) {
                None if current == name => return Ok(None),
                None => {
                    return match normalised(name) {
                        Some(asked) if asked == current => Ok(None),
                        _ => Err(not_a_file("a link to nothing")),
                    };
                }
                Some(Node::File { offset, size }) => {
                    return Ok(Some(ArchiveMember {
                        path: self.path.clone(),
                        name: name.to_owned(),
                        offset: *offset,
                        size: *size,
                    }));
                }
                Some(Node::Link(target)) => current.clone_from(target),
                Some(Node::Other(kind)) => return Err(not_a_file(kind)),
            }
        }
        Err(not_a_file("a link in a circle"))
    }

    /// Like [`Members::file`] for documents that give the archive its meaning: there must be one,
    /// and not two, because another tool might take the other.
    pub(crate) fn document(&self, name: &str, limit: u64) -> Result<Option<Bytes>, ArchiveError> {
        if self.duplicates.iter().any(|duplicate| duplicate == name) {
            return Err(ArchiveError::Duplicate {
                path: self.path.clone(),
                member: name.to_owned(),
            });
        }
        let file = self.file(name)?;
        file.map(|file| file.read(limit)).transpose()
    }
}

const DIRECTORY: &str = "a directory";
const OUTSIDE: &str = "a link that leads out of the archive";
const SPARSE: &str = "a sparse file, which is not supported";

struct Scan<'a> {
    path: &'a Path,
    file: &'a File,
    length: u64,
    offset: u64,
}

/// What extended headers say of the member that follows them.
#[derive(Debug, Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Scan<'_> {
    /// The next member whose name can be a key; `None` at the end of the archive.
    fn next(&mut self) -> Result<Option<(String, Node)>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            // Links, directories and devices have no content, whatever their size says.
            let has_content = !matches!(
                kind,
                EntryType::Link
                    | EntryType::Symlink
                    | EntryType::Directory
                    | EntryType::Char
                    | EntryType::Block
                    | EntryType::Fifo
            );
            let written = header
                .entry_size()
                .map_err(|_| self.damaged("a member's size is not a number"))?;
            let size = match extensions.size {
                _ if !has_content => 0,
                Some(size) if !is_extension(kind) => size,
                _ => written,
            };
            let name = extensions
                .name
                .clone()
                .unwrap_or_else(|| header.path_bytes().into_owned());
            let start = self.offset;
            let end = start.checked_add(size).filter(|end| *end <= self.length);
            let Some(end) = end else {
                return Err(ArchiveError::Truncated {
                    path: self.path.to_owned(),
                    member: String::from_utf8_lossy(&name).into_owned(),
                    size,
                });
            };
            self.offset = end.next_multiple_of(BLOCK);
            match kind {
                EntryType::GNULongName => extensions.name = Some(self.text(start, size)?),
                EntryType::GNULongLink => extensions.link = Some(self.text(start, size)?),
                EntryType::XHeader => {
                    let records = self.content(start, size)?;
                    if !read_pax(&records, &mut extensions) {
                        return Err(self.damaged("its extended header is malformed"));
                    }
                }
                EntryType::XGlobalHeader => {}
                _ => {
                    let link = extensions
                        .link
                        .take()
                        .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
                    // A name that is not text, or climbs, can be none that we shall look for.
                    if let Some(name) = String::from_utf8(name)
                        .ok()
                        .and_then(|name| normalised(&name))
                    {
                        let node = match kind {
                            _ if extensions.sparse => Node::Other(SPARSE),
                            EntryType::Regular | EntryType::Continuous => Node::File {
                                offset: start,
                                size,
                            },
                            EntryType::Directory => Node::Other(DIRECTORY),
                            EntryType::Symlink => link_node(link, parent(&name)),
                            EntryType::Link => link_node(link, ""),
                            EntryType::GNUSparse => Node::Other(SPARSE),
                            _ => Node::Other("a special file"),
                        };
                        return Ok(Some((name, node)));
                    }
                    extensions = Extensions::default();
                }
            }
        }
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        if self.offset == self.length && self.offset > 0 {
            // Without the two blocks of zeros, as some writers leave it.
            return Ok(None);
        }
        if self.length.saturating_sub(self.offset) < BLOCK {
            return Err(match self.offset {
                0 => self.damaged("it is too short"),
                _ => self.damaged("it is cut off"),
            });
        }
        let mut header = Header::new_old();
        self.file
            .read_exact_at(header.as_mut_bytes(), self.offset)
            .map_err(PathError::of("read", self.path))?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if let Some(compression) = compression(header.as_bytes()).filter(|_| self.offset == 0) {
            return Err(ArchiveError::Compressed {
                path: self.path.to_owned(),
                compression,
            });
        }
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(position, byte)| match position {
                148..156 => u32::from(b' '),
                _ => u32::from(*byte),
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.damaged("a header has a wrong checksum"));
        }
        self.offset += BLOCK;
        Ok(Some(header))
    }

    fn content(&self, offset: u64, size: u64) -> Result<Bytes, ArchiveError> {
        match usize::try_from(size) {
            Ok(size) if size as u64 <= MAX_EXTENSION => Ok(read_range(self.path, offset, size)?),
            _ => Err(self.damaged("an extended header is too long")),
        }
    }

    /// The content of a GNU long name, without the NUL that ends it.
    fn text(&self, offset: u64, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let bytes = self.content(offset, size)?;
        let end = bytes.iter().position(|byte| *byte == 0);
        Ok(bytes[..end.unwrap_or(bytes.len())].to_vec())
    }

    fn damaged(&self, reason: &'static str) -> ArchiveError {
        ArchiveError::NotATar {
            path: self.path.to_owned(),
            offset: self.offset,
            reason,
        }
    }
}

fn is_extension(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::GNULongName
            | EntryType::GNULongLink
            | EntryType::XHeader
            | EntryType::XGlobalHeader
    )
}

fn compression(start: &[u8]) -> Option<&'static str> {
    [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
    ]
    .into_iter()
    .find_map(|(magic, name)| start.starts_with(magic).then_some(name))
}

/// Reads `LENGTH KEY=VALUE\n` records, by their length and nothing else (POSIX pax, "Extended
/// Header"). `false` when they are malformed.
fn read_pax(mut records: &[u8], extensions: &mut Extensions) -> bool {
    while !records.is_empty() {
        let Some(space) = records.iter().take(20).position(|byte| *byte == b' ') else {
            return false;
        };
        let length = std::str::from_utf8(&records[..space])
            .ok()
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|digits| digits.parse::<usize>().ok());
        let Some(record) = length.and_then(|length| records.get(space + 1..length)) else {
            return false;
        };
        let Some((record, equals)) = record
            .strip_suffix(b"\n")
            .and_then(|record| Some((record, record.iter().position(|byte| *byte == b'=')?)))
        else {
            return false;
        };
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => extensions.name = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value)
                    .ok()
                    .and_then(|size| size.parse().ok());
                if size.is_none() {
                    return false;
                }
                extensions.size = size;
            }
            _ if key.starts_with(b"GNU.sparse.") => extensions.sparse = true,
            _ => {}
        }
        records = &records[length.unwrap_or(records.len())..];
    }
    true
}

fn link_node(target: Option<Vec<u8>>, from: &str) -> Node {
    target
        .and_then(|target| String::from_utf8(target).ok())
        .filter(|target| !target.starts_with('/'))
        .and_then(|target| normalised(&format!("{from}/{target}")))
        .map_or(Node::Other(OUTSIDE), Node::Link)
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The name without `.`, `..` and double slashes; `None` when it climbs above the root.
fn normalised(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A small tar with an extended header and a link in it.
    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_ustar();
        header.set_size(600);
        builder
            .append_pax_extensions([("path", &b"a/long/name"[..])])
            .unwrap();
        builder
            .append_data(&mut header, "a/file", &[7; 600][..])
            .unwrap();
        let mut header = Header::new_ustar();
        header.set_size(0);
        header.set_entry_type(EntryType::Symlink);
        builder
            .append_link(&mut header, "b/link", "../a/long/name")
            .unwrap();
        builder.into_inner().unwrap()
    }

    fn scan(bytes: &[u8]) -> Result<Members, ArchiveError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive.tar");
        std::fs::write(&path, bytes).unwrap();
        Members::scan(&path)
    }

    #[test]
    fn a_link_leads_to_the_bytes() {
        let members = scan(&tar()).unwrap();
        let file = members.file("b/link").unwrap().unwrap();
        assert_eq!((file.offset, file.size), (1536, 600));
        assert!(members.file("b").unwrap().is_none());
        assert!(members.file("../b/link").unwrap().is_none());
    }

    #[test]
    fn names_are_normalised() {
        for (name, expected) in [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("/a/./b", Some("a/b")),
            ("a/../b", Some("b")),
            ("", Some("")),
            ("..", None),
            ("a/../../b", None),
        ] {
            assert_eq!(normalised(name).as_deref(), expected, "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_bytes_are_too_strange(
            changes in prop::collection::vec((0_usize..4096, any::<u8>()), 1..8),
            length in 0_usize..5000,
        ) {
            let mut bytes = tar();
            for (position, byte) in changes {
                let position = position % bytes.len();
                bytes[position] = byte;
                // A right checksum lets the change through to what lies behind it.
                let start = position / 512 * 512;
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(&bytes[start..start + 512]);
                header.set_cksum();
                bytes[start..start + 512].copy_from_slice(header.as_bytes());
            }
            bytes.truncate(length);
            if let Ok(members) = scan(&bytes) {
                for name in members.nodes.keys() {
                    if let Ok(Some(file)) = members.file(name) {
                        prop_assert!(file.offset + file.size <= bytes.len() as u64);
                    }
                }
            }
        }

        #[test]
        fn pax_records_of_any_bytes_are_read_or_refused(
            records in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = read_pax(&records, &mut Extensions::default());
        }
    }
}
