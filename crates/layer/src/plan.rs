//! A tree in the order in which it is written.

use std::collections::BTreeMap;

use crate::bytecode;
use crate::content::{Content, ContentError};
use crate::entry::{Attributes, Entry, EntryKind, LinkGroup};
use crate::header::{END, HeaderKind, MODIFIED, header_length, padding};
use crate::links::{BaseLinks, LinkLoop};
use crate::notice::Notice;
use crate::path::EntryPath;
use crate::tree::Tree;

/// Files of this size and more stand before the others: they change seldom, and what precedes a
/// change stays as it is.
const LARGE_FILE: u64 = 65_536;

/// What a record of the archive is.
#[derive(Debug, Clone)]
pub enum RecordKind {
    /// A directory.
    Directory,
    /// Hides what lower layers have in its directory.
    OpaqueMarker,
    /// Removes a path of lower layers.
    Whiteout,
    /// A regular file.
    File(Content),
    /// A symlink to these bytes.
    Symlink(Box<[u8]>),
    /// Another name of a file that stands earlier in the archive.
    Hardlink(EntryPath),
}

impl RecordKind {
    /// What its header says of it.
    pub(crate) fn header(&self) -> HeaderKind<'_> {
        match self {
            Self::Directory => HeaderKind::Directory,
            Self::OpaqueMarker | Self::Whiteout => HeaderKind::File { size: 0 },
            Self::File(content) => HeaderKind::File {
                size: content.size(),
            },
            Self::Symlink(target) => HeaderKind::Symlink { target },
            Self::Hardlink(target) => HeaderKind::Hardlink { target },
        }
    }
}

/// One entry of the archive.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its name; that of a directory has no trailing slash here.
    pub path: EntryPath,
    /// What it is.
    pub kind: RecordKind,
    /// Who may do what with it.
    pub attributes: Attributes,
}

impl Record {
    /// How many bytes of the archive it takes: headers, content and padding.
    pub(crate) fn archive_size(&self) -> u64 {
        let header = self.kind.header();
        let size = match header {
            HeaderKind::File { size } => size,
            _ => 0,
        };
        let around = header_length(&self.path, header, &self.attributes) + padding(size);
        size.saturating_add(around as u64)
    }
}

/// The entries of a layer in archive order, with nothing left to decide.
///
/// Two equal trees make equal plans, whatever order their files were added in.
#[derive(Debug, Clone)]
pub struct Plan {
    records: Vec<Record>,
    modified: u64,
}

/// Why a tree cannot become a layer.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// An entry lies where a symlink of the base may lead elsewhere, and nobody said whether.
    #[error("the place of `{path}` depends on the symlinks of the base image, which are not known")]
    BaseUnknown {
        /// The entry.
        path: EntryPath,
    },
    /// The base has symlinks that lead nowhere.
    #[error("could not find the place of an entry in the base image")]
    Links(#[source] LinkLoop),
    /// A `.pyc` could not be looked into.
    #[error("could not check compiled Python against its source")]
    Bytecode(#[source] ContentError),
}

impl Tree {
    /// Decides what the layer holds and in which order.
    ///
    /// Everything is moved through the symlinks of the base; `None` says that they are not known,
    /// which is fine as long as [`Tree::needs_base_links`] finds nothing, and
    /// [`BaseLinks::none`] says that there are none. Then compiled Python is brought into a form
    /// that fits (see [`crate::bytecode`]), for which the first bytes of `.pyc` files are read.
    pub fn settle(
        mut self,
        base: Option<&BaseLinks>,
        notices: &mut Vec<Notice>,
    ) -> Result<Plan, SettleError> {
        match base {
            Some(base) => self = self.resolved(base, notices).map_err(SettleError::Links)?,
            None => {
                if let Some(path) = self.needs_base_links() {
                    return Err(SettleError::BaseUnknown { path: path.clone() });
                }
            }
        }
        bytecode::settle(&mut self, notices).map_err(SettleError::Bytecode)?;
        Ok(Plan::of(self))
    }
}

impl Plan {
    fn of(tree: Tree) -> Self {
        // Entries come by path, so the first name of a group is its least.
        let mut first_names: BTreeMap<LinkGroup, EntryPath> = BTreeMap::new();
        let mut records: Vec<Record> = tree
            .into_entries()
            .map(|(path, Entry { kind, attributes })| {
                let kind = match kind {
                    EntryKind::Directory => RecordKind::Directory,
                    EntryKind::OpaqueMarker => RecordKind::OpaqueMarker,
                    EntryKind::Whiteout => RecordKind::Whiteout,
                    EntryKind::Symlink(target) => RecordKind::Symlink(target),
                    EntryKind::File(file) => {
                        let first = file
                            .group
                            .map(|group| first_names.entry(*group).or_insert_with(|| path.clone()));
                        match first {
                            Some(first) if *first != path => RecordKind::Hardlink(first.clone()),
                            _ => RecordKind::File(file.content),
                        }
                    }
                };
                Record {
                    path,
                    kind,
                    attributes,
                }
            })
            .collect();
        // The sort is stable, so paths stay in order within a class.
        records.sort_by_key(|record| Class::of(&record.kind));
        Self::new(records, MODIFIED)
    }

    /// Takes records that are in archive order.
    pub(crate) fn new(records: Vec<Record>, modified: u64) -> Self {
        Self { records, modified }
    }

    /// Writes another modification time than that of the format into every entry, for those who
    /// want their `SOURCE_DATE_EPOCH` there.
    #[must_use]
    pub fn with_modified(mut self, seconds: u64) -> Self {
        self.modified = seconds.min(MOST_SECONDS);
        self
    }

    /// The modification time of every entry, in seconds since 1970.
    pub fn modified(&self) -> u64 {
        self.modified
    }

    /// The entries in archive order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    pub(crate) fn into_records(self) -> Vec<Record> {
        self.records
    }

    /// The length of the archive that sealing makes of this.
    pub fn archive_size(&self) -> u64 {
        self.records
            .iter()
            .map(Record::archive_size)
            .fold(END.len() as u64, u64::saturating_add)
    }
}

/// What the field for the modification time holds: the year 2242 is late enough.
const MOST_SECONDS: u64 = 0o77_777_777_777;

/// The classes of entries, in archive order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Directory,
    OpaqueMarker,
    Whiteout,
    LargeFile { halvings_below_the_largest: u32 },
    Other,
    Hardlink,
}

impl Class {
    fn of(kind: &RecordKind) -> Self {
        match kind {
            RecordKind::Directory => Self::Directory,
            RecordKind::OpaqueMarker => Self::OpaqueMarker,
            RecordKind::Whiteout => Self::Whiteout,
            RecordKind::File(content) if content.size() >= LARGE_FILE => Self::LargeFile {
                halvings_below_the_largest: content.size().leading_zeros(),
            },
            RecordKind::File(_) | RecordKind::Symlink(_) => Self::Other,
            RecordKind::Hardlink(_) => Self::Hardlink,
        }
    }
}
