//! A root filesystem out of layers.
//!
//! ```text
//! layer (a blob) ─→ unpack ─→ layers/ID ─┐
//!                                        ├→ stack ─→ Root: directories for overlayfs, or one copy
//! layer (a blob) ─→ unpack ─→ layers/ID ─┘
//! ```
//!
//! A layer is unpacked once, into a directory of its own, and never changed again; what lies over
//! what is decided when layers are stacked. What a layer deletes is written down beside its files
//! as well as in overlayfs's own form, so that a machine without overlayfs gets the same root.
//!
//! * `tree` decides, in memory, what the members of an archive come to: it is told names and answers
//!   with paths that no symlink is on;
//! * `places` does it: directories are reached by descriptors, component by component, never
//!   through a symlink;
//! * `unpack` reads the archive and has the one ask the other;
//! * `note` is what is remembered of a layer beside its files;
//! * `merged` sees several layers as one tree, `stack` makes a [`Root`] of it;
//! * `cache` keeps it all and clears up.
//!
//! The archive is not read by the `tar` crate, which takes names and PAX records of any length into
//! memory, but by the reader that `lint` judges layers with: what runs is what was judged.

mod ahead;
mod cache;
mod id;
mod merged;
mod note;
mod places;
mod remove;
mod stack;
mod tree;
mod unpack;

use std::io;
use std::path::PathBuf;

pub use cache::{CacheError, Pruned, RootfsCache, RootfsUse};

pub use stack::{MountKind, MountPoint, Root, StackError};
pub use tree::TreeError;
pub use unpack::{UnpackError, Unpacked};

/// With which modes files appear.
///
/// Owners are those of who unpacks, whatever the archive says. A file is never setuid or setgid:
/// it would be so for every user of this machine who can reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// Owner and group may do what others may. On Lambda a function runs as a user that owns none of
    /// the image's files; here it is run by their owner, and would see more than it does there.
    Lambda,
    /// As the archive says.
    AsPacked,
    /// Everybody may do what others may, and change what the owner may change: for a root that can
    /// be written to, which otherwise the function's user could not make use of.
    Writable,
}

impl Form {
    /// The mode of a file or directory that has `mode` in the archive.
    fn mode(self, mode: u32) -> u32 {
        match self {
            Self::Lambda => {
                let others = mode & 0o7;
                mode & 0o1000 | others << 6 | others << 3 | others
            }
            Self::AsPacked => mode & 0o1777,
            Self::Writable => {
                let everybody = mode & 0o7 | (mode >> 6) & 0o2;
                mode & 0o1000 | everybody << 6 | everybody << 3 | everybody
            }
        }
    }

    /// Names the form in file names.
    fn letter(self) -> char {
        match self {
            Self::Lambda => 'l',
            Self::AsPacked => 'p',
            Self::Writable => 'w',
        }
    }
}

/// Something that the operating system refused, with the path.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} `{path}`", path = path.display())]
pub struct FileError {
    /// What was being done.
    pub action: &'static str,
    /// To what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    /// Makes errors of the system into errors about `path`, for `map_err`.
    fn of<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self {
            action,
            path,
            source: source.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_decide_modes() {
        for (mode, lambda, packed, writable) in [
            (0o644, 0o444, 0o644, 0o666),
            (0o755, 0o555, 0o755, 0o777),
            (0o555, 0o555, 0o555, 0o555),
            (0o600, 0o000, 0o600, 0o222),
            (0o6755, 0o555, 0o755, 0o777),
            (0o1777, 0o1777, 0o1777, 0o1777),
            (0o100_644, 0o444, 0o644, 0o666),
            (0o702, 0o222, 0o702, 0o222),
        ] {
            assert_eq!(Form::Lambda.mode(mode), lambda, "{mode:o}");
            assert_eq!(Form::AsPacked.mode(mode), packed, "{mode:o}");
            assert_eq!(Form::Writable.mode(mode), writable, "{mode:o}");
        }
    }
}
