//! What happened on the way that its author may not have meant, as data.
//!
//! Nothing in this crate prints; whoever adds files decides what of this is shown.

use std::fmt;
use std::path::PathBuf;

use crate::path::EntryPath;

/// Something that was done, or left out, without being an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A later add took the place of an earlier one.
    Replaced {
        /// Where.
        path: EntryPath,
        /// What stood there.
        before: &'static str,
        /// What stands there now.
        after: &'static str,
        /// How many entries below it went with it.
        dropped: usize,
    },
    /// A socket was left out: nothing can listen on it in an image.
    SocketSkipped {
        /// The socket.
        path: PathBuf,
    },
    /// A `.pyc` was left out, because Python would not have used it.
    StaleBytecode {
        /// The `.pyc` in the layer.
        path: EntryPath,
    },
    /// Nothing of a source was taken: it is empty or all of it is excluded.
    NothingAdded {
        /// The directory, file or archive.
        source: PathBuf,
    },
    /// A member of an archive was left out: bookkeeping of an old storage driver.
    MemberSkipped {
        /// Its path in the archive.
        path: EntryPath,
    },
    /// Native files for other platforms were left out, as was asked for.
    PrebuildsPruned {
        /// The first of them, by path.
        first: EntryPath,
        /// How many there were.
        files: usize,
        /// How many bytes they had.
        bytes: u64,
    },
    /// A zip has no modes at all, and what begins like a program was made executable.
    ModesGuessed {
        /// The zip.
        archive: PathBuf,
        /// The first of the files, by path.
        first: EntryPath,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replaced {
                path,
                before,
                after,
                dropped,
            } => {
                write!(
                    formatter,
                    "`{path}`: a {after} takes the place of a {before}"
                )?;
                match dropped {
                    0 => Ok(()),
                    1 => write!(formatter, " and the entry below it"),
                    _ => write!(formatter, " and the {dropped} entries below it"),
                }
            }
            Self::SocketSkipped { path } => {
                write!(
                    formatter,
                    "`{}` is a socket and was left out",
                    path.display()
                )
            }
            Self::StaleBytecode { path } => write!(
                formatter,
                "`{path}` was compiled from something other than its source and was left out"
            ),
            Self::NothingAdded { source } => {
                write!(formatter, "nothing was added from `{}`", source.display())
            }
            Self::MemberSkipped { path } => {
                write!(
                    formatter,
                    "`{path}` is bookkeeping of a storage driver and was left out"
                )
            }
            Self::PrebuildsPruned {
                first,
                files,
                bytes,
            } => write!(
                formatter,
                "{files} files for other platforms were left out ({bytes} bytes), such as `{first}`"
            ),
            Self::ModesGuessed { archive, first } => write!(
                formatter,
                "`{}` has no Unix modes: files in it that begin with `#!` or as ELF are executable, \
                 such as `{first}`",
                archive.display()
            ),
        }
    }
}
