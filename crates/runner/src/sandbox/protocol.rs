//! What the two ends of a box say to each other, over a socket: JSON with its length before it.
//!
//! Settings and environments have secrets in them, so they travel here and never as arguments or
//! variables of a stage, where other users or the box itself could read them.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use bytes::{Buf as _, BufMut as _, BytesMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::memory::Enclosure;
use super::{Exit, Feature, NotStarted, Process, ProcessNumber};

/// Longer than any environment that a kernel takes, and short enough to be held.
const LONGEST: usize = 64 << 20;

/// The first message to a stage: what it is to become.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Setup {
    /// A keeper of plain processes.
    Plain(PlainSetup),
    /// Who opens a container for the first stage, by a runtime.
    Runtime(RuntimeSetup),
    /// The first stage of a box of namespaces.
    Entrance(Entrance),
    /// To the first stage: users are mapped, if there was need.
    Mapped,
    /// The second stage of it.
    Room(Room),
}

/// See [`super::oci_runtime`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RuntimeSetup {
    /// The runtime and its arguments.
    #[serde(with = "any_paths")]
    pub command: Vec<PathBuf>,
    /// A directory that is removed at the end.
    #[serde(with = "any_path")]
    pub bundle: PathBuf,
}

/// See [`super::namespaces::entrance`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entrance {
    /// As the box sees it.
    pub user: u32,
    /// As the box sees it.
    pub group: u32,
    /// Whether the box has a network of its own.
    pub own_network: bool,
    /// Whether it is root that may do all this.
    pub privileged: bool,
    /// Whether the box is to have a namespace of users.
    pub own_users: bool,
    /// The cgroup of the box, for its first stage to enter if it must, and to remove if tierce is
    /// killed.
    pub wall: Option<Enclosure>,
}

/// See [`super::namespaces::room`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Room {
    /// Files and directories of this machine: first the layers of the root, the uppermost first.
    #[serde(with = "any_paths")]
    pub sources: Vec<PathBuf>,
    /// How many of the sources are layers.
    pub layers: usize,
    pub writable_root: bool,
    pub tmp_size: u64,
    pub shared_memory: Option<u64>,
    pub places: Vec<Place>,
    pub own_network: bool,
    pub own_users: bool,
    /// If the stage is root: whom it is to become.
    pub user: Option<(u32, u32)>,
    pub open_files: u64,
    pub processes: u64,
}

/// What is mounted into the root.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Place {
    /// Which of the sources.
    pub source: usize,
    /// Absolute in the box.
    #[serde(with = "any_path")]
    pub target: PathBuf,
    pub writable: bool,
    /// Whether it is a directory.
    pub directory: bool,
    /// Whether the box is as good without it.
    pub optional: bool,
}

/// See [`super::plain`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PlainSetup {
    /// As [`crate::rootfs::Root::directories`].
    #[serde(with = "any_paths")]
    pub directories: Vec<PathBuf>,
    /// As [`Entrance::wall`].
    pub wall: Option<Enclosure>,
}

/// What a stage says before there is a box.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Beginning {
    /// Root entered namespaces, and waits for users to be mapped if there is one of users.
    Entered { own_users: bool },
    /// Orders are taken.
    Ready,
    /// There is no box: a step, what it is about, and the number of the system's error.
    Failed(String, Option<Feature>, i32),
}

/// Orders as they travel. There is none to end: that is the end of the stream.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    Start(ProcessNumber, Process),
    Terminate(ProcessNumber),
    /// Whether it is answered by `Empty`.
    KillAll(bool),
}

/// Events as they travel: those that the inside of a box knows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    Started(ProcessNumber),
    NotStarted(ProcessNumber, NotStarted),
    Exited(ProcessNumber, Exit),
    Empty,
}

/// A path of this machine or of an image, whose bytes may be no text; JSON has only text.
mod any_path {
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().serialize(to)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<PathBuf, D::Error> {
        OsString::deserialize(from).map(PathBuf::from)
    }
}

/// Several of [`any_path`].
mod any_paths {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| path.as_os_str()))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        let paths = Vec::<OsString>::deserialize(from)?;
        Ok(paths.into_iter().map(PathBuf::from).collect())
    }
}

/// `message` with its length before it.
pub(super) fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - 4)
        .ok()
        .filter(|length| *length as usize <= LONGEST)
        .ok_or_else(too_long)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Writes a message.
pub(super) fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&frame(message)?)
}

/// Writes a message with a descriptor.
pub(super) fn send_with(
    to: &UnixStream,
    message: &impl Serialize,
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    let frame = frame(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    // It goes with the first byte.
    let (first, rest) = frame.split_at(1);
    let first = [IoSlice::new(first)];
    rustix::net::sendmsg(to, &first, &mut ancillary, SendFlags::NOSIGNAL)?;
    (&*to).write_all(rest)
}

/// Reads a message and the descriptor that came with it, if one did.
pub(super) fn receive_with<T: DeserializeOwned>(
    from: &UnixStream,
) -> io::Result<(T, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0];
    // With a time limit the system does not begin again by itself after a signal.
    let received = rustix::io::retry_on_intr(|| {
        let parts = &mut [IoSliceMut::new(&mut first)];
        rustix::net::recvmsg(from, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((receive(Read::chain(first.as_slice(), from))?, descriptor))
}

/// Reads a message and not a byte more. The end of the stream is `UnexpectedEof`.
pub(super) fn receive<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(too_long());
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message)?;
    Ok(serde_json::from_slice(&message)?)
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message is too long")
}

/// Messages out of an asynchronous stream.
#[derive(Debug)]
pub(super) struct Messages<R> {
    from: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
        }
    }

    /// The next one, nothing at the end. When the future is dropped nothing is lost.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > LONGEST {
                    return Err(too_long());
                }
                if let Some(message) = self.buffer.get(4..4 + length) {
                    let message = serde_json::from_slice(message)?;
                    self.buffer.advance(4 + length);
                    return Ok(Some(message));
                }
            }
            if !self.buffer.has_remaining_mut() || self.from.read_buf(&mut self.buffer).await? == 0
            {
                return Ok(None);
            }
        }
    }
}
