//! What a layer holds at a path.

use std::collections::BTreeMap;

use crate::content::Content;

/// Permissions, owner and extended attributes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// The low twelve bits of the mode: permissions, set-id and sticky bits.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Extended attributes, by full name (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Attributes {
    /// Mode `mode`, owned by root, without extended attributes.
    pub const fn root(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
        }
    }
}

/// Marks names that are one file, where hardlinks are kept.
///
/// The identity never reaches a layer; only which names share it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkGroup {
    /// Device of the file, or of the spool that holds an archive's members.
    pub device: u64,
    /// Inode of the same.
    pub inode: u64,
    /// Which member of the archive; zero for a file on disk.
    pub member: u64,
}

/// A regular file.
#[derive(Debug, Clone)]
pub struct FileEntry {
    /// Its bytes.
    pub content: Content,
    /// When its source says it was last modified, in seconds since 1970. Never written to a layer;
    /// it tells whether a `.pyc` belongs to its source.
    pub modified: Option<i64>,
    /// Which other names are the same file. All names of a group stand in the tree as files with
    /// equal content; which of them becomes the file and which the hardlinks is decided when the
    /// tree is settled, so that replacing one name never leaves a link to nothing.
    pub group: Option<Box<LinkGroup>>,
}

/// The kind of an entry, with what only that kind has.
#[derive(Debug, Clone)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File(FileEntry),
    /// A symbolic link to these bytes, which need not lead anywhere.
    Symlink(Box<[u8]>),
    /// Removes a path of lower layers: an entry named `.wh.NAME`.
    Whiteout,
    /// Hides what lower layers have in its directory: an entry named `.wh..wh..opq`.
    OpaqueMarker,
}

impl EntryKind {
    /// The kind in one or two words, for notices.
    pub const fn noun(&self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::File(_) => "file",
            Self::Symlink(_) => "symlink",
            Self::Whiteout => "whiteout",
            Self::OpaqueMarker => "opaque marker",
        }
    }
}

/// One entry of a tree.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Who may do what with it.
    pub attributes: Attributes,
}

impl Entry {
    /// A directory with `mode`, owned by root.
    pub const fn directory(mode: u32) -> Self {
        Self {
            kind: EntryKind::Directory,
            attributes: Attributes::root(mode),
        }
    }

    /// A file with `mode`, owned by root.
    pub const fn file(content: Content, mode: u32) -> Self {
        Self {
            kind: EntryKind::File(FileEntry {
                content,
                modified: None,
                group: None,
            }),
            attributes: Attributes::root(mode),
        }
    }

    /// A symlink to `target`, owned by root.
    pub fn symlink(target: impl AsRef<[u8]>) -> Self {
        let kind = EntryKind::Symlink(target.as_ref().into());
        Self {
            kind,
            attributes: Attributes::root(SYMLINK_MODE),
        }
    }

    /// A whiteout or opaque marker, which has no attributes of its own.
    pub(crate) const fn marker(kind: EntryKind) -> Self {
        Self {
            kind,
            attributes: Attributes::root(FILE_MODE),
        }
    }
}

/// What a file that its owner cannot execute gets.
pub(crate) const FILE_MODE: u32 = 0o644;
/// What a file that its owner can execute gets.
pub(crate) const EXECUTABLE_MODE: u32 = 0o755;
/// What a directory gets.
pub(crate) const DIRECTORY_MODE: u32 = 0o755;
/// What Linux reports for every symlink.
pub(crate) const SYMLINK_MODE: u32 = 0o777;

/// Whether an attribute is made uniform or kept as found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// The same for everybody who builds.
    #[default]
    Normalised,
    /// As it is at the source.
    Keep,
}

/// What of the source's metadata enters the layer. The default is nothing that differs between two
/// checkouts of the same files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Treatment {
    /// Normalised: files 0755 or 0644 after their owner's execute bit, directories 0755.
    pub modes: Keep,
    /// Normalised: uid and gid 0.
    pub owners: Keep,
    /// Normalised: names of one file become independent files.
    pub hardlinks: Keep,
    /// Full names of the extended attributes that are kept.
    pub xattrs: Vec<String>,
}

impl Treatment {
    /// The attributes an entry gets when its source has `mode`, `uid` and `gid`.
    pub(crate) fn attributes(&self, kind: &EntryKind, mode: u32, uid: u32, gid: u32) -> Attributes {
        let mode = match (self.modes, kind) {
            (_, EntryKind::Symlink(_)) => SYMLINK_MODE,
            (Keep::Keep, _) => mode & 0o7777,
            (Keep::Normalised, EntryKind::Directory) => DIRECTORY_MODE,
            (Keep::Normalised, _) if mode & 0o100 != 0 => EXECUTABLE_MODE,
            (Keep::Normalised, _) => FILE_MODE,
        };
        let (uid, gid) = match self.owners {
            Keep::Keep => (uid, gid),
            Keep::Normalised => (0, 0),
        };
        Attributes {
            mode,
            uid,
            gid,
            xattrs: BTreeMap::new(),
        }
    }
}
