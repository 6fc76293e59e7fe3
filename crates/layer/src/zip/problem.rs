//! Why a zip is refused.

use std::io;

use crate::member::but;
use crate::path::{BadPath, EntryPath};

/// Why a zip is refused.
#[derive(Debug, thiserror::Error)]
pub enum ZipError {
    /// It could not be read.
    #[error("could not read the zip")]
    Read(#[source] io::Error),
    /// It is a folder, a pipe or a device: a zip is read from its end.
    #[error("not a regular file: a zip is read from its end")]
    NotAFile,
    /// It has neither the beginning nor the end of one.
    #[error("not a zip{}", but(*.found))]
    NotZip {
        /// What it is instead, as far as its first bytes tell.
        found: Option<&'static str>,
    },
    /// It begins like one and has no end, or a part of it.
    #[error("the zip is truncated: it has no whole end record")]
    Truncated,
    /// The end record is followed by something other than its comment, or stands in it.
    #[error("data after the end of the zip, at byte {offset}")]
    DataAfterEnd {
        /// Where it is.
        offset: u64,
    },
    /// It is one of the parts of a zip that was split.
    #[error(
        "the zip is one part of several: put them together first (`zip -s 0 PART --out WHOLE`)"
    )]
    Part,
    /// The list of members is damaged or contradicts itself.
    #[error("bad central directory: {problem}")]
    Directory {
        /// What is wrong.
        problem: &'static str,
    },
    /// A name leads out of the zip or means different things to different readers.
    #[error("member `{member}` is refused: its name {problem}")]
    Name {
        /// The name, made readable.
        member: String,
        /// What is wrong.
        problem: BadZipName,
    },
    /// A symlink's target is none.
    #[error("link `{member}` is refused: its target `{target}` {problem}")]
    Target {
        /// The link.
        member: String,
        /// Its target.
        target: String,
        /// What is wrong.
        problem: BadPath,
    },
    /// A member would be written through a symlink of the same zip.
    #[error("member `{member}` is refused: it lies behind the symlink `{link}`")]
    BehindSymlink {
        /// The member.
        member: EntryPath,
        /// The symlink.
        link: EntryPath,
    },
    /// A member lies below a file of the same zip.
    #[error("member `{member}` is refused: `{file}`, which it lies in, is no directory")]
    BehindFile {
        /// The member.
        member: EntryPath,
        /// The file.
        file: EntryPath,
    },
    /// Two members have one path.
    #[error("member `{member}` is refused: another member has its path")]
    Duplicate {
        /// The path.
        member: EntryPath,
    },
    /// A member is of a kind that layers of files do not have.
    #[error("member `{member}` is refused: it is a {kind}")]
    Kind {
        /// The member.
        member: String,
        /// What it is.
        kind: &'static str,
    },
    /// A member is encrypted.
    #[error("member `{member}` is refused: it is encrypted")]
    Encrypted {
        /// The member.
        member: String,
    },
    /// A member is compressed in a way that is not read here.
    #[error(
        "member `{member}` is refused: it is compressed with {}; what is read is stored and deflate",
        method_name(*.method)
    )]
    Method {
        /// The member.
        member: String,
        /// The number of the method.
        method: u16,
    },
    /// A member's headers contradict each other or themselves.
    #[error("member `{member}` is refused: {problem}")]
    Contradiction {
        /// The member.
        member: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A member claims to be larger than deflate could have made it.
    #[error(
        "member `{member}` is refused: {compressed} compressed bytes cannot hold the {size} bytes \
         that are stated"
    )]
    Inflated {
        /// The member.
        member: String,
        /// Its stated size.
        size: u64,
        /// Bytes of compressed data.
        compressed: u64,
    },
    /// The bytes of one member are those of another too, as in a bomb.
    #[error("member `{member}` is refused: its data overlap with what follows them in the file")]
    Overlap {
        /// The member.
        member: String,
    },
    /// A member's compressed data are none.
    #[error("member `{member}` is refused: its compressed data are damaged")]
    Damaged {
        /// The member.
        member: String,
    },
    /// A member's content is not as long as its headers say.
    #[error("member `{member}` is refused: it holds {than} than the {size} bytes that are stated")]
    Size {
        /// The member.
        member: String,
        /// `more` or `less`.
        than: &'static str,
        /// The stated size.
        size: u64,
    },
    /// A member's content is not that of its checksum.
    #[error("member `{member}` is refused: its checksum does not match")]
    Checksum {
        /// The member.
        member: String,
    },
    /// The zip holds more than was allowed.
    #[error("the zip is refused: it holds more than {limit} {unit}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// Contents could not be kept for later.
    #[error("could not write a temporary file in `{directory}`")]
    Spool {
        /// Where.
        directory: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Why the name of a zip's member is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadZipName {
    /// It is no path in a layer.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// It was written on Windows, and not as the format demands.
    #[error(
        "has backslashes for slashes: the program that made the zip writes names as on Windows"
    )]
    Backslash,
    /// It begins with a drive, which is absolute.
    #[error("begins with a drive letter")]
    Drive,
    /// It is not ASCII, and nobody says in which of the many encodings.
    #[error("is in an unknown encoding: the zip should say that it is UTF-8")]
    Encoding,
}

/// The name of a compression method; of APPNOTE 4.4.5, those that are found.
fn method_name(method: u16) -> String {
    let name = match method {
        1 => "shrink",
        2..=5 => "reduce",
        6 => "implode",
        9 => "deflate64",
        12 => "bzip2",
        14 => "LZMA",
        93 => "zstd",
        95 => "xz",
        98 => "PPMd",
        _ => return format!("method {method}"),
    };
    format!("{name} (method {method})")
}
