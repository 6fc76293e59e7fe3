//! From a plan to a blob on disk, in one pass and in parallel.
//!
//! One thread reads files, cuts segments and hashes the archive; `jobs` threads compress; the
//! caller's thread puts the segments back in order, hashes the blob and writes it. Buffers go round
//! in a fixed set, so memory is the same for a layer of any size, and a slow disk slows the reader.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use tempfile::NamedTempFile;
use tierce_oci::{DiffId, Digest, Hasher};

use crate::codec::{Codec, EncodeError, GZIP_HEADER, gzip_trailer};
use crate::content::ContentError;
use crate::member::{Limits, TarError};
use crate::path::EntryPath;
use crate::plan::{Plan, RecordKind};
use crate::segment::{CutError, MOST, SegmentSink, write_segments};
use crate::verbatim::check_members;

/// How to seal. None of it but the codec shows in the bytes.
#[derive(Clone, Copy)]
pub struct SealSettings<'a> {
    /// What compresses.
    pub codec: &'a dyn Codec,
    /// Where the blob is written; it must be where it will stay, or a rename becomes a copy.
    pub directory: &'a Path,
    /// How many threads compress.
    pub jobs: NonZeroUsize,
    /// Called with the number of bytes of the archive that are written, about once a MiB, from
    /// the thread that called.
    pub progress: Option<&'a dyn Fn(u64)>,
    /// Once true, sealing ends with [`SealError::Cancelled`] at the next segment.
    pub cancel: Option<&'a AtomicBool>,
}

impl fmt::Debug for SealSettings<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SealSettings")
            .field("codec", &self.codec.id())
            .field("directory", &self.directory)
            .field("jobs", &self.jobs)
            .finish_non_exhaustive()
    }
}

/// How many entries of each kind an archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntryCounts {
    /// Directories.
    pub directories: u64,
    /// Regular files, whiteouts and opaque markers not among them.
    pub files: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Hardlinks.
    pub hardlinks: u64,
    /// Whiteouts and opaque markers.
    pub whiteouts: u64,
}

impl EntryCounts {
    /// All entries together.
    pub fn total(&self) -> u64 {
        self.directories + self.files + self.symlinks + self.hardlinks + self.whiteouts
    }

    fn of(plan: &Plan) -> Self {
        let mut counts = Self::default();
        for record in plan.records() {
            *match record.kind {
                RecordKind::Directory => &mut counts.directories,
                RecordKind::File(_) => &mut counts.files,
                RecordKind::Symlink(_) => &mut counts.symlinks,
                RecordKind::Hardlink(_) => &mut counts.hardlinks,
                RecordKind::Whiteout | RecordKind::OpaqueMarker => &mut counts.whiteouts,
            } += 1;
        }
        counts
    }
}

/// A layer whose blob is written and whose identity is known.
#[derive(Debug)]
pub struct SealedLayer {
    /// The blob, under a temporary name and gone when dropped: persist it to keep it. It is not
    /// synced to disk.
    pub file: NamedTempFile,
    /// The digest of the blob.
    pub digest: Digest,
    /// The length of the blob.
    pub size: u64,
    /// The digest of the archive in it.
    pub diff_id: DiffId,
    /// The length of the archive.
    pub uncompressed_size: u64,
    /// What the archive holds; all zero for an archive that was not looked into.
    pub entries: EntryCounts,
    /// How many segments were compressed.
    pub segments: u64,
    /// Which codec did it.
    pub codec: String,
}

/// Why a layer could not be sealed. Nothing is left on disk.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The content of an entry could not be read, or was no longer what had been scanned.
    #[error("could not write `{path}` into the layer")]
    Content {
        /// The entry.
        path: EntryPath,
        /// What was wrong with its source.
        source: ContentError,
    },
    /// The archive that is to become the layer is not acceptable.
    #[error("could not make a layer of an archive")]
    Archive(#[source] TarError),
    /// The blob could not be created.
    #[error("could not create a file in `{directory}`", directory = directory.display())]
    Create {
        /// Where.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The blob could not be written, most often because the disk is full.
    #[error("could not write the layer to `{path}`", path = path.display())]
    Write {
        /// The temporary file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The codec refused a segment.
    #[error("could not compress the layer")]
    Encode(#[source] EncodeError),
    /// A thread could not be started.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
    /// The caller's flag was raised.
    #[error("cancelled")]
    Cancelled,
}

/// How much an archive that becomes a layer is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarCheck {
    /// Every header is read strictly: the archive must be valid and complete, stay inside the root
    /// and mean the same to every reader, as *layer-format 1* has it of verbatim layers.
    Strict(Limits),
    /// The bytes are taken as they are: for layers of existing images, which are known by their
    /// diff id.
    AsIs,
}

/// Writes the layer of `plan`.
///
/// The bytes depend on the plan and the codec alone: any number of jobs, any directory and any
/// machine give the same. When a file is not what it was when scanned, sealing ends with an error
/// and never with a blob that holds half of each.
pub fn seal(plan: &Plan, settings: &SealSettings<'_>) -> Result<SealedLayer, SealError> {
    run(settings, |feed| {
        write_segments(plan, feed).map_err(|error| match error {
            CutError::Content(path, source) => Stop::Failed(SealError::Content { path, source }),
            CutError::Stop(stop) => stop,
        })?;
        Ok(EntryCounts::of(plan))
    })
}

/// Makes a layer of an uncompressed archive, byte for byte, cut every 1 MiB.
pub fn seal_tar<R: Read + Send>(
    archive: R,
    check: TarCheck,
    settings: &SealSettings<'_>,
) -> Result<SealedLayer, SealError> {
    run(settings, |feed| {
        let segment = Vec::with_capacity(MOST);
        let mut tee = Tee {
            archive,
            feed,
            segment,
            stopped: None,
        };
        let checked = match check {
            TarCheck::Strict(limits) => check_members(&mut tee, limits),
            TarCheck::AsIs => drain(&mut tee).map(|()| EntryCounts::default()),
        };
        if let Some(stop) = tee.stopped.take() {
            return Err(stop);
        }
        let counts = checked.map_err(|error| Stop::Failed(SealError::Archive(error)))?;
        if !tee.segment.is_empty() {
            tee.feed.take(&mut tee.segment)?;
        }
        Ok(counts)
    })
}

fn drain(archive: &mut impl Read) -> Result<(), TarError> {
    io::copy(archive, &mut io::sink())
        .map(drop)
        .map_err(TarError::from_read)
}

/// Hands an archive on as segments while somebody else reads it.
struct Tee<'feed, 'settings, R> {
    archive: R,
    feed: &'feed mut Feed<'settings>,
    segment: Vec<u8>,
    stopped: Option<Stop>,
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(MOST - self.segment.len());
        let read = self.archive.read(&mut buffer[..room])?;
        self.segment.extend_from_slice(&buffer[..read]);
        if self.segment.len() == MOST
            && let Err(stop) = self.feed.take(&mut self.segment)
        {
            self.stopped = Some(stop);
            return Err(io::Error::other("sealing was stopped"));
        }
        Ok(read)
    }
}

/// Why the reading thread ended early.
enum Stop {
    /// It failed itself.
    Failed(SealError),
    /// The writer is gone and knows why.
    NotWanted,
}

/// The two buffers of a segment under way.
#[derive(Default)]
struct Buffers {
    segment: Vec<u8>,
    blocks: Vec<u8>,
}

struct Work {
    index: u64,
    buffers: Buffers,
}

struct Done {
    buffers: Buffers,
    crc: crc32fast::Hasher,
    result: Result<(), EncodeError>,
}

/// The reading thread's end of the line.
struct Feed<'a> {
    free: Receiver<Buffers>,
    work: Sender<Work>,
    next: u64,
    archive: Hasher,
    cancel: Option<&'a AtomicBool>,
}

impl SegmentSink for Feed<'_> {
    type Stop = Stop;

    fn take(&mut self, segment: &mut Vec<u8>) -> Result<(), Stop> {
        if self
            .cancel
            .is_some_and(|cancel| cancel.load(Ordering::Relaxed))
        {
            return Err(Stop::Failed(SealError::Cancelled));
        }
        self.archive.update(segment);
        let mut buffers = self.free.recv().map_err(|_| Stop::NotWanted)?;
        buffers.segment.clear();
        std::mem::swap(&mut buffers.segment, segment);
        let work = Work {
            index: self.next,
            buffers,
        };
        self.next += 1;
        self.work.send(work).map_err(|_| Stop::NotWanted)
    }
}

fn run<P>(settings: &SealSettings<'_>, produce: P) -> Result<SealedLayer, SealError>
where
    P: FnOnce(&mut Feed<'_>) -> Result<EntryCounts, Stop> + Send,
{
    let mut blob = Blob::create(settings.directory)?;
    let (free_sender, free) = channel();
    let (work, work_receiver) = channel();
    let (done_sender, done) = channel();
    let work_receiver = Mutex::new(work_receiver);
    // One segment for each worker, one waiting for it, one being written and one being filled.
    for _ in 0..settings.jobs.get() * 2 + 2 {
        // The receiver lives until the reading thread has it.
        free_sender
            .send(Buffers::default())
            .expect("the other end is still here");
    }
    let feed = Feed {
        free,
        work,
        next: 0,
        archive: Hasher::new(),
        cancel: settings.cancel,
    };
    let codec = settings.codec;

    let (produced, written) = thread::scope(|scope| {
        // Owned in here, so that leaving early closes the queue the workers wait at.
        let mut feed = feed;
        for number in 0..settings.jobs.get() {
            let done = done_sender.clone();
            let work = &work_receiver;
            thread::Builder::new()
                .name(format!("compress {number}"))
                .spawn_scoped(scope, move || compress(codec, work, &done))
                .map_err(SealError::Thread)?;
        }
        // Only the workers may hold this end, or the writer would wait for ever.
        drop(done_sender);
        let reader = thread::Builder::new()
            .name("read files".to_owned())
            .spawn_scoped(scope, move || {
                let counts = produce(&mut feed)?;
                Ok((counts, feed.archive.finish()))
            })
            .map_err(SealError::Thread)?;
        let written = write_in_order(&mut blob, done, free_sender, settings.progress);
        match reader.join() {
            Ok(produced) => Ok((produced, written)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;

    let Written {
        crc,
        length,
        segments,
    } = written?;
    let (entries, diff_id) = match produced {
        Ok(produced) => produced,
        Err(Stop::Failed(error)) => return Err(error),
        Err(Stop::NotWanted) => return Err(SealError::Cancelled),
    };
    blob.write(&gzip_trailer(crc, length))?;
    Ok(SealedLayer {
        file: blob.file,
        digest: blob.digest.finish(),
        size: blob.size,
        diff_id: DiffId(diff_id),
        uncompressed_size: length,
        entries,
        segments,
        codec: codec.id().to_owned(),
    })
}

/// What a worker tells the writer: a segment by its number, or `None` when the worker panicked.
type Report = Option<(u64, Done)>;

/// Wakes the writer when a worker panics: it would wait for that worker's segment for ever.
struct PanicAlarm<'a>(&'a Sender<Report>);

impl Drop for PanicAlarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // With the writer gone there is nobody to wake.
            let _ = self.0.send(None);
        }
    }
}

fn compress(codec: &dyn Codec, work: &Mutex<Receiver<Work>>, done: &Sender<Report>) {
    let _alarm = PanicAlarm(done);
    let mut encoder = codec.encoder();
    loop {
        // A worker that panicked while it held the lock left the receiver whole.
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Work { index, mut buffers }) = next else {
            return;
        };
        buffers.blocks.clear();
        let result = encoder.encode(&buffers.segment, &mut buffers.blocks);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&buffers.segment);
        if done
            .send(Some((
                index,
                Done {
                    buffers,
                    crc,
                    result,
                },
            )))
            .is_err()
        {
            return;
        }
    }
}

struct Written {
    crc: u32,
    length: u64,
    segments: u64,
}

// Both channel ends are taken by value: dropping them is what tells the other threads to stop.
#[expect(
    clippy::needless_pass_by_value,
    reason = "dropping the ends ends the other threads"
)]
fn write_in_order(
    blob: &mut Blob,
    done: Receiver<Report>,
    free: Sender<Buffers>,
    progress: Option<&dyn Fn(u64)>,
) -> Result<Written, SealError> {
    let mut early = BTreeMap::new();
    let mut crc = crc32fast::Hasher::new();
    let mut length = 0;
    let mut next = 0;
    blob.write(&GZIP_HEADER)?;
    for report in &done {
        // The panic itself surfaces when the threads are joined.
        let Some((index, segment)) = report else {
            return Err(SealError::Cancelled);
        };
        early.insert(index, segment);
        while let Some(segment) = early.remove(&next) {
            let Done {
                buffers,
                crc: segment_crc,
                result,
            } = segment;
            result.map_err(SealError::Encode)?;
            blob.write(&buffers.blocks)?;
            crc.combine(&segment_crc);
            length += buffers.segment.len() as u64;
            next += 1;
            if let Some(progress) = progress {
                progress(length);
            }
            // Once the reader is done it no longer takes buffers back.
            let _ = free.send(buffers);
        }
    }
    Ok(Written {
        crc: crc.finalize(),
        length,
        segments: next,
    })
}

/// The blob on its way to disk.
struct Blob {
    file: NamedTempFile,
    digest: Hasher,
    size: u64,
}

impl Blob {
    fn create(directory: &Path) -> Result<Self, SealError> {
        let file = tempfile::Builder::new()
            .prefix(".layer-")
            // `tempfile_in` would add the random name to the system's words.
            .make_in(directory, |path| {
                let mut options = File::options();
                options.read(true).write(true).create_new(true);
                options.mode(0o600).open(path)
            })
            .map_err(|source| SealError::Create {
                directory: directory.to_owned(),
                source,
            })?;
        Ok(Self {
            file,
            digest: Hasher::new(),
            size: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SealError> {
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        self.file
            .as_file_mut()
            .write_all(bytes)
            .map_err(|source| SealError::Write {
                path: self.file.path().to_owned(),
                source,
            })
    }
}
