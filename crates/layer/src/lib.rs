//! Files in, one deterministic layer out.
//!
//! ```text
//! directories, files ── scan ──┐
//! tar, tar.gz, tar.zst, zip ───┼→ Tree ─ settle → Plan ─ split → Part ─ seal → SealedLayer
//! entries made up ── insert ───┘    ↑                                      ↕ LayerCache
//!                              BaseLinks ← read_links ← layers of the base
//! ```
//!
//! What the bytes of a layer are is specified apart from this code, as *layer-format 1*. Here is
//! where each of its rules lives: [`Tree`] what a layer may hold, [`scan`](mod@scan) and
//! [`archive`] and [`zip`](mod@zip) how sources are normalised, [`links`] where entries go, [`bytecode`] the fate of
//! `.pyc` files, [`Plan`] the order, [`split`] what is a layer of its own, and `header`, `segment`
//! and [`codec`] the bytes.
//!
//! ```
//! use std::num::NonZeroUsize;
//! use tierce_layer::{BaseLinks, Content, Entry, EntryPath, LayerCache, SealSettings, Tree, ZlibRs, seal};
//!
//! let mut notices = Vec::new();
//! let mut tree = Tree::new();
//! let handler = Entry::file(Content::bytes(*b"def handler(event, context): ...\n"), 0o644);
//! tree.insert(EntryPath::new("var/task/app.py")?, handler, &mut notices)?;
//!
//! let plan = tree.settle(Some(&BaseLinks::none()), &mut notices)?;
//! let directory = tempfile::tempdir()?;
//! let cache = LayerCache::open(directory.path().join("cache"), directory.path())?;
//! let layer = seal(&plan, &SealSettings {
//!     codec: &ZlibRs::default(),
//!     cache: &cache,
//!     last_time: None,
//!     identity_suffices: false,
//!     jobs: NonZeroUsize::MIN,
//!     progress: None,
//!     cancel: None,
//!     observer: None,
//! })?;
//! assert_eq!(layer.recipe.entries.directories, 2);
//! assert_eq!(layer.recipe.uncompressed_size, 3 * 512 + 512 + 1024);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod archive;
pub mod bytecode;
pub mod cache;
pub mod codec;
mod compression;
mod content;
mod entry;
mod fingerprint;
mod header;
pub mod links;
mod marshal;
mod member;
mod members;
mod notice;
mod path;
mod pattern;
mod pipeline;
mod plan;
pub mod scan;
mod seal;
mod seen;
mod segment;
mod select;
mod signature;
pub mod split;
mod spool;
mod tree;
mod unit;
mod verbatim;
mod walk;
pub mod whiteout;
pub mod zip;

pub use archive::{
    ArchiveAdd, ArchiveError, ReadLinksError, add_archive, add_archive_stream, read_links,
};
pub use bytecode::Uncompiled;
pub use cache::LayerCache;
pub use codec::{Codec, EncodeError, Encoder, Fast1, Stored, ZlibLevel, ZlibRs, Zstd, ZstdLevel};
pub use compression::Compression;
pub use content::{Content, ContentError, DiskFile, FileTime, Range, Spool, Stamp};
pub use entry::{Attributes, Entry, EntryKind, FileEntry, Keep, LinkGroup, Treatment};
pub use fingerprint::Fingerprint;
pub use header::MODIFIED;
pub use links::{BaseLinks, LinkChange, LinkLoop, LinkRecord, needs_base_links};
pub use marshal::{BytecodeError, canonical_bytecode};
pub use member::{Limits, TarError};
pub use members::{LayerMember, LayerMemberKind, ReadLayer, ReadMembersError, read_members};
pub use notice::Notice;
pub use path::{BadPath, Destination, EntryPath};
pub use pattern::{BadPattern, Matched, Matcher};
pub use plan::{Plan, Record, RecordKind, SettleError};
pub use scan::{Anchored, ScanAdd, ScanError, add_walked, scan};
pub use seal::{
    Effort, EntryCounts, LastTime, Observed, Observer, Piece, SealError, SealSettings, SealedLayer,
    TarCheck, seal, seal_tar,
};
pub use signature::Signature;
pub use split::{Part, SplitSettings};
pub use tree::{DirectoryDefaults, ReservedName, Tree};
pub use walk::{Entries, Found, FoundKind, Walked, walk};
pub use zip::{BadZipName, ZipError, add_zip};
