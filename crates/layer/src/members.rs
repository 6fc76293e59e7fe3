//! The members of a layer of an existing image, for whoever wants to know what is in it.

use std::io::{self, Read};

use crate::compression::Compression;
use crate::member::{Limits, MemberKind, Strictness, TarError, Walker};
use crate::path::{BadPath, EntryPath};

/// What a member of a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerMemberKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symlink with its target.
    Symlink(Vec<u8>),
    /// Another name for the file at this path of the same image.
    Hardlink(Vec<u8>),
    /// A device, a FIFO, a sparse file, or what no reader knows.
    Other(&'static str),
}

/// One member of a layer, in the order of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMember {
    /// Where it is, relative to the root of the image; deletions are among them, under their names.
    pub path: EntryPath,
    /// What it is.
    pub kind: LayerMemberKind,
    /// Permissions, with setuid, setgid and sticky.
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

/// What a layer is as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLayer {
    /// Bytes of the uncompressed archive.
    pub uncompressed_size: u64,
    /// How the blob really is compressed, whatever its media type says.
    pub compression: Compression,
    /// How many members were skipped because of their names: they lead out of the image, or are
    /// such that no file has them.
    pub misnamed: u64,
}

/// Why the members of a layer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadMembersError {
    /// The layer is not an archive that can be read.
    #[error("could not read the layer")]
    Tar(#[from] TarError),
    /// A content could not be read, or whoever took it gave up.
    #[error("could not read a file of the layer")]
    Content(#[source] io::Error),
}

/// Gives `take` every member of a layer, with its content to be read or not, in the order of the
/// archive, in bounded memory.
///
/// The layer is read as runtimes read it, as in [`crate::read_links`]: the root itself and names
/// that lead out of the image are skipped. It is read to its last byte, so that a reader that
/// verifies a digest has seen them all. An error of `take` ends the reading.
pub fn read_members<R: Read + Send>(
    layer: R,
    limits: Limits,
    mut take: impl FnMut(LayerMember, &mut dyn Read) -> io::Result<()>,
) -> Result<ReadLayer, ReadMembersError> {
    let (compression, archive) =
        Compression::detect_and_decode(layer).map_err(TarError::from_read)?;
    let counted = Counted {
        inner: archive,
        count: 0,
    };
    let mut walker = Walker::new(counted, Strictness::AsRuntimes, limits);
    let mut misnamed = 0;
    while let Some(member) = walker.next_member()? {
        let name = &member.name;
        let relative = &name[name.iter().take_while(|&&byte| byte == b'/').count()..];
        let path = match EntryPath::clean(relative) {
            Ok(Some(path)) => path,
            // `/` alone is the root, as `./` is.
            Ok(None) => continue,
            Err(BadPath::Empty) if !name.is_empty() => continue,
            Err(_) => {
                misnamed += 1;
                continue;
            }
        };
        let kind = match &member.kind {
            MemberKind::Directory => LayerMemberKind::Directory,
            MemberKind::File => LayerMemberKind::File,
            MemberKind::Symlink(target) => LayerMemberKind::Symlink(target.clone()),
            MemberKind::Hardlink(target) => LayerMemberKind::Hardlink(target.clone()),
            MemberKind::Sparse => LayerMemberKind::Other("sparse file"),
            MemberKind::Fifo => LayerMemberKind::Other("FIFO"),
            MemberKind::Device => LayerMemberKind::Other("device"),
            MemberKind::Unknown => LayerMemberKind::Other("member of unknown type"),
        };
        let described = LayerMember {
            path,
            kind,
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            size: member.size,
            modified: member.modified,
        };
        take(described, &mut Content(&mut walker)).map_err(ReadMembersError::Content)?;
    }
    Ok(ReadLayer {
        uncompressed_size: walker.finish()?.count,
        compression,
        misnamed,
    })
}

/// The content of the member that the walker stands at.
struct Content<'a, R>(&'a mut Walker<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_content(buffer).map_err(io::Error::other)
    }
}

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}
