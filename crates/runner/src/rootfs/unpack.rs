//! Unpacks the archive of one layer.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, Mode, OFlags, fchmod, futimens, linkat, mkdirat, openat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use tierce_layer::whiteout::Marker;
use tierce_layer::{
    EntryPath, LayerMember, LayerMemberKind, Limits, ReadMembersError, read_members,
};
use tierce_oci::DiffId;

use super::ahead::Ahead;
use super::note::{Note, NotePath};
use super::places::{Places, modified_at, open_root};
use super::remove::remove_directory;
use super::tree::{Attributes, LayerTree, Linked, Place, Replaced, TreeError, readable};
use super::{CacheError, FileError, Form};

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Members that no root gets: devices, FIFOs and other things that Lambda has no use for, and
    /// names that lead out of the image or that no file can have.
    pub skipped: u64,
}

/// Why a layer is not unpacked. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is none, or cannot be read.
    #[error("could not read the layer's archive")]
    Read(#[source] ReadMembersError),
    /// It is compressed, and that is damaged.
    #[error("could not decompress the layer")]
    Decompress(#[source] io::Error),
    /// The bytes are not the ones that the image's config lists.
    #[error(
        "the layer is not what the image's config says: its diff id is {actual}, not {expected}"
    )]
    DiffId {
        /// What it should be.
        expected: DiffId,
        /// What it is.
        actual: DiffId,
    },
    /// A member has no place in a root.
    #[error("the layer cannot be unpacked: `{member}` has no place in it")]
    Member {
        /// Its path.
        member: String,
        /// What is wrong.
        #[source]
        problem: TreeError,
    },
    /// A member is of a kind that is not unpacked, and leaving it out would change what runs.
    #[error("the layer cannot be unpacked: `{member}` is a {kind}")]
    Kind {
        /// Its path.
        member: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file could not be written: the disk may be full.
    #[error("could not write `{member}`")]
    Write {
        /// Its path in the image.
        member: String,
        /// What the system said.
        source: io::Error,
    },
    /// The cache itself cannot be written.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Unpacks `layer`, compressed or not, into the empty directory `files`; `trash` is another. All of
/// its bytes are read, and are those of `diff_id`, or there is an error.
pub(super) fn unpack(
    files: &Path,
    trash: &Path,
    diff_id: DiffId,
    form: Form,
    layer: impl Read + Send,
    limits: Limits,
) -> Result<Note, UnpackError> {
    let open = |path: &Path| {
        open_root(path).map_err(|error| CacheError::File(FileError::of("open", path)(error)))
    };
    let mut writer = Writer {
        places: Places::new(open(files)?),
        trash: open(trash)?,
        form,
        tree: LayerTree::new(limits.members),
        note: Note::default(),
        buffer: vec![0; BUFFER],
    };
    let mut refused = None;
    let (read, finished) = std::thread::scope(|scope| {
        let mut ahead = Ahead::begin(scope, layer);
        let read = read_members(&mut ahead, limits, |member, content| {
            match writer.member(&member, content) {
                Ok(()) => Ok(()),
                Err(Stop::Content(error)) => Err(error),
                Err(Stop::Refused(error)) => {
                    refused = Some(error);
                    Err(io::Error::other("the member is refused"))
                }
            }
        });
        // Of what is refused the rest is of no interest.
        let finished = read.is_ok().then(|| ahead.finish());
        (read, finished)
    });
    if let Some(refused) = refused {
        return Err(refused);
    }
    let read = read.map_err(UnpackError::Read)?;
    if let Some(finished) = finished {
        let actual = DiffId(finished.map_err(UnpackError::Decompress)?);
        if actual != diff_id {
            let expected = diff_id;
            return Err(UnpackError::DiffId { expected, actual });
        }
    }
    writer.note.skipped += read.misnamed;
    writer.finish()
}

/// As much as is written at once.
const BUFFER: usize = 256 << 10;

/// Why a member ends it.
enum Stop {
    /// Its content cannot be read.
    Content(io::Error),
    Refused(UnpackError),
}

struct Writer {
    places: Places,
    trash: OwnedFd,
    form: Form,
    tree: LayerTree,
    note: Note,
    buffer: Vec<u8>,
}

impl Writer {
    fn member(&mut self, member: &LayerMember, content: &mut dyn Read) -> Result<(), Stop> {
        let path = &member.path;
        if let Some(marker) = Marker::of(path) {
            self.tree.marker(marker);
            return Ok(());
        }
        let misplaced = |problem| Stop::Refused(misplaced(path.as_bytes(), problem));
        match &member.kind {
            LayerMemberKind::Directory => {
                let attributes = Attributes {
                    mode: self.form.mode(member.mode),
                    modified: member.modified,
                };
                let place = self.tree.directory(path, attributes).map_err(misplaced)?;
                self.prepare(&place).map_err(refused(path))
            }
            LayerMemberKind::File => {
                let place = self.tree.file(path).map_err(misplaced)?;
                self.prepare(&place).map_err(refused(path))?;
                self.write_file(&place, member, content)
            }
            LayerMemberKind::Symlink(target) => {
                let place = self.tree.symlink(path, target).map_err(misplaced)?;
                self.make_symlink(&place, target, member.modified)
                    .map_err(refused(path))
            }
            LayerMemberKind::Hardlink(target) => {
                let linked = target_of(target)
                    .and_then(|target| self.tree.hardlink(path, &target))
                    .map_err(misplaced)?;
                match linked {
                    Linked::Already => Ok(()),
                    Linked::Below(place) => self.prepare(&place).map_err(refused(path)),
                    Linked::To(target, place) => {
                        self.make_link(&place, &target).map_err(refused(path))
                    }
                }
            }
            // Left out it would be a file that is not there; wrongly filled, a wrong one.
            LayerMemberKind::Other(kind) if kind.starts_with("sparse") => {
                Err(Stop::Refused(UnpackError::Kind {
                    member: path.to_string(),
                    kind,
                }))
            }
            LayerMemberKind::Other(_) => {
                self.note.skipped += 1;
                Ok(())
            }
        }
    }

    /// Makes the directories on the way and removes what is replaced.
    fn prepare(&mut self, place: &Place) -> io::Result<()> {
        if let Some(replaced) = place.replaces {
            if replaced == Replaced::Directory {
                self.places.forget();
            }
            let (parent, name) = self.places.parent(&place.path)?;
            match replaced {
                Replaced::File => unlinkat(parent, name, AtFlags::empty())?,
                Replaced::Directory => remove_directory(parent, name, &self.trash)?,
            }
        }
        for directory in &place.directories {
            let (parent, name) = self.places.parent(directory)?;
            mkdirat(parent, name, Mode::RWXU)?;
            self.note.entries += 1;
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        place: &Place,
        member: &LayerMember,
        content: &mut dyn Read,
    ) -> Result<(), Stop> {
        let refused = || refused(&member.path);
        let (parent, name) = self.places.parent(&place.path).map_err(refused())?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parent, name, flags, Mode::RUSR).map_err(refused())?;
        loop {
            let read = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stop::Content(error)),
            };
            write_all(&file, &self.buffer[..read]).map_err(refused())?;
            self.note.bytes += read as u64;
        }
        let mode = Mode::from_raw_mode(self.form.mode(member.mode));
        fchmod(&file, mode).map_err(refused())?;
        futimens(&file, &modified_at(member.modified)).map_err(refused())?;
        self.note.entries += 1;
        Ok(())
    }

    fn make_symlink(&mut self, place: &Place, target: &[u8], modified: i64) -> io::Result<()> {
        self.prepare(place)?;
        let (parent, name) = self.places.parent(&place.path)?;
        symlinkat(target, parent, name)?;
        utimensat(
            parent,
            name,
            &modified_at(modified),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        self.note.entries += 1;
        Ok(())
    }

    fn make_link(&mut self, place: &Place, target: &[u8]) -> io::Result<()> {
        self.prepare(place)?;
        let (from, old_name) = super::places::split(target);
        let from = rustix::io::dup(self.places.directory(from)?)?;
        let (parent, name) = self.places.parent(&place.path)?;
        linkat(from, old_name, parent, name, AtFlags::empty())?;
        self.note.entries += 1;
        Ok(())
    }

    /// The archive is at its end: gives directories their attributes, which making something in them
    /// would have changed.
    fn finish(mut self) -> Result<Note, UnpackError> {
        let tree = std::mem::replace(&mut self.tree, LayerTree::new(0));
        let finished = tree
            .finish()
            .map_err(|(path, problem)| misplaced(&path, problem))?;
        let paths = |(path, target)| (NotePath(path), NotePath(target));
        self.note.links = finished.links.into_iter().map(paths).collect();
        self.note.whiteouts = finished.whiteouts.into_iter().map(NotePath).collect();
        self.note.emptied = finished.emptied.into_iter().map(NotePath).collect();
        for (path, described) in finished.directories.into_iter().rev() {
            let attributes = described.unwrap_or(Attributes {
                mode: self.form.mode(0o755),
                modified: 0,
            });
            self.settle(&path, attributes).map_err(written(&path))?;
            if attributes.mode & 0o500 != 0o500 {
                self.note.closed.insert(NotePath(path.clone()), attributes);
            }
            if described.is_none() && !path.is_empty() {
                self.note.undescribed.insert(NotePath(path));
            }
        }
        Ok(self.note)
    }

    fn settle(&mut self, path: &[u8], attributes: Attributes) -> io::Result<()> {
        let directory = self.places.directory(path)?;
        fchmod(directory, Mode::from_raw_mode(attributes.mode | 0o500))?;
        futimens(directory, &modified_at(attributes.modified))?;
        Ok(())
    }
}

/// The path that a hardlink names: of the image, like those of members.
fn target_of(target: &[u8]) -> Result<EntryPath, TreeError> {
    let relative = &target[target.iter().take_while(|&&byte| byte == b'/').count()..];
    match EntryPath::clean(relative) {
        Ok(Some(target)) => Ok(target),
        Ok(None) | Err(_) => Err(TreeError::Hardlink {
            target: readable(target),
            problem: "is no path of a file in the image",
        }),
    }
}

fn misplaced(path: &[u8], problem: TreeError) -> UnpackError {
    UnpackError::Member {
        member: readable(path),
        problem,
    }
}

fn written<E: Into<io::Error>>(path: &[u8]) -> impl FnOnce(E) -> UnpackError {
    let member = readable(path);
    move |source| UnpackError::Write {
        member,
        source: source.into(),
    }
}

fn refused<E: Into<io::Error>>(path: &EntryPath) -> impl FnOnce(E) -> Stop {
    let written = written(path.as_bytes());
    move |source| Stop::Refused(written(source))
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
