//! The line on which segments are read, hashed and compressed.
//!
//! ```text
//!  readers ──segment──┬──→ archive hasher (in order)
//!                     └──→ workers: key → cache or codec ──blocks──→ caller: blob hash, pack (in order)
//!     ↑ empty buffers                                                   │
//!     └─────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Buffers go round in a fixed set, so memory is the same for a layer of any size, and whoever is
//! slowest slows the readers. A buffer is taken before the number of the segment that goes into it,
//! so the segment that everybody waits for always has one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tierce_oci::{Hasher, HasherState};

use crate::cache::{Kept, Key, LayerCache, PackId, PackWriter, Place, check_of};
use crate::codec::{Codec, EncodeError, Encoder};
use crate::seal::{Effort, Hashers, Passed, SealError, SealSettings};
use crate::segment::EntryFailure;

/// What a line is to do.
pub(crate) struct Line<'a> {
    pub(crate) settings: &'a SealSettings<'a>,
    /// What is known of the segments, by their number on this line.
    pub(crate) known: &'a (dyn Fn(usize) -> Option<Kept> + Sync),
    /// Where the hashes of archive and blob go on from; without them nothing is hashed, and blocks
    /// are only made of what is not in the cache.
    pub(crate) hashers: Option<Hashers>,
    /// The length of the longest segment.
    pub(crate) longest: usize,
    /// How many threads read.
    pub(crate) readers: usize,
    /// How many threads compress.
    pub(crate) workers: usize,
}

impl Line<'_> {
    /// One for each reader and each worker, one being written and one being hashed.
    fn buffers(&self) -> usize {
        self.readers + self.workers + 2
    }
}

/// Why the producing end stopped early.
pub(crate) enum Stop {
    /// It failed itself.
    Failed(SealError),
    /// The other end is gone and knows why.
    NotWanted,
}

/// Runs a line: `produce` feeds it segments, numbered from zero on, and what comes out in order goes
/// into `pack` where it is new.
pub(crate) fn run<P: Send>(
    line: &Line<'_>,
    pack: &mut PackWriter<'_>,
    produce: impl FnOnce(&Feed<'_>) -> Result<P, Stop> + Send,
) -> Result<(P, Passed), SealError> {
    let (returned, free) = channel();
    for _ in 0..line.buffers() {
        // Made whole and here: grown by whoever reads, each would take twice as much for a moment,
        // and leave holes in that thread's own heap.
        let _ = returned.send(Vec::with_capacity(line.longest));
    }
    let gate = Gate {
        closed: AtomicBool::new(false),
        returned,
        readers: line.readers,
    };
    let (work_sender, work) = channel();
    let (archive_sender, archive) = channel();
    let (done_sender, done) = channel();
    let (work, spare) = (Mutex::new(work), Mutex::new(Vec::new()));
    let feed = Feed {
        gate: &gate,
        free: Mutex::new(free),
        work: work_sender,
        archive: line.hashers.is_some().then_some(archive_sender),
        cancel: line.settings.cancel,
    };
    let (produced, archive, written) = thread::scope(|scope| {
        // Owned in here, so that leaving early closes the queues that the others wait at.
        let feed = feed;
        for number in 0..line.workers {
            let worker = Worker {
                codec: line.settings.codec,
                cache: line.settings.cache,
                known: line.known,
                needs_blocks: line.hashers.is_some(),
                gate: &gate,
                spare: &spare,
                done: done_sender.clone(),
            };
            let work = &work;
            thread::Builder::new()
                .name(format!("compress {number}"))
                .spawn_scoped(scope, move || worker.run(work))
                .map_err(SealError::Thread)?;
        }
        // Only the workers may hold this end, or the caller would wait for ever.
        drop(done_sender);
        let start = line.hashers.as_ref().map(|start| start.archive.clone());
        let hashing = thread::Builder::new()
            .name("hash".to_owned())
            .spawn_scoped(scope, move || hash_in_order(start, &archive))
            .map_err(SealError::Thread)?;
        let producing = thread::Builder::new()
            .name("read files".to_owned())
            .spawn_scoped(scope, {
                let gate = &gate;
                move || {
                    let _alarm = PanicAlarm(gate);
                    produce(&feed)
                }
            })
            .map_err(SealError::Thread)?;
        let written = write_in_order(line, pack, &gate, &spare, &done);
        let produced = producing.join();
        let hashed = hashing.join();
        match (produced, hashed) {
            (Ok(produced), Ok(hashed)) => Ok((produced, hashed, written)),
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
        }
    })?;
    // A full disk is what the producer was stopped for.
    let written = written?;
    let produced = match produced {
        Ok(produced) => produced,
        Err(Stop::Failed(error)) => return Err(error),
        Err(Stop::NotWanted) => return Err(SealError::Cancelled),
    };
    let (archive_states, archive) = archive;
    let Written {
        segments,
        blob_states,
        blob,
        effort,
    } = written;
    let passed = Passed {
        segments,
        states: archive_states.into_iter().zip(blob_states).collect(),
        hashers: Hashers { archive, blob },
        effort,
    };
    Ok((produced, passed))
}

/// Ends a line early.
struct Gate {
    closed: AtomicBool,
    /// Takes empty buffers back.
    returned: Sender<Vec<u8>>,
    readers: usize,
}

impl Gate {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Whoever waits for a buffer gets one, and sees why.
        for _ in 0..=self.readers {
            let _ = self.returned.send(Vec::new());
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

/// Closes the gate when a thread panics: the others would wait for its segment for ever. The panic
/// itself surfaces when the threads are joined.
struct PanicAlarm<'a>(&'a Gate);

impl Drop for PanicAlarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.close();
        }
    }
}

/// A segment's bytes, in as many hands as need them; the buffer goes back when all have let go.
struct Held {
    bytes: Vec<u8>,
    returned: Sender<Vec<u8>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Once the readers are done nobody takes buffers back.
        let _ = self.returned.send(std::mem::take(&mut self.bytes));
    }
}

type Numbered = (usize, Arc<Held>);

/// The producing end of a line.
pub(crate) struct Feed<'a> {
    gate: &'a Gate,
    free: Mutex<Receiver<Vec<u8>>>,
    work: Sender<Numbered>,
    archive: Option<Sender<Numbered>>,
    cancel: Option<&'a AtomicBool>,
}

impl Feed<'_> {
    /// An empty buffer; waits until one is free.
    pub(crate) fn buffer(&self) -> Result<Vec<u8>, Stop> {
        let buffer = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        match buffer {
            Ok(mut buffer) if !self.gate.is_closed() => {
                buffer.clear();
                Ok(buffer)
            }
            _ => Err(Stop::NotWanted),
        }
    }

    /// Hands on the segment `number`. Each number comes once, and all up to the last.
    pub(crate) fn send(&self, number: usize, bytes: Vec<u8>) -> Result<(), Stop> {
        if self
            .cancel
            .is_some_and(|cancel| cancel.load(Ordering::Relaxed))
        {
            return Err(Stop::Failed(SealError::Cancelled));
        }
        let held = Arc::new(Held {
            bytes,
            returned: self.gate.returned.clone(),
        });
        if let Some(archive) = &self.archive {
            archive
                .send((number, Arc::clone(&held)))
                .map_err(|_| Stop::NotWanted)?;
        }
        self.work.send((number, held)).map_err(|_| Stop::NotWanted)
    }

    /// Reads `count` segments on `readers` threads; `read` appends those of a number.
    ///
    /// When several cannot be read, the first of them is the error, whatever the threads do.
    pub(crate) fn read_all(
        &self,
        readers: usize,
        count: usize,
        read: impl Fn(usize, &mut Vec<u8>) -> Result<(), EntryFailure> + Sync,
    ) -> Result<(), Stop> {
        let next = AtomicUsize::new(0);
        let failed = FirstFailure::default();
        let read_on = || {
            let _alarm = PanicAlarm(self.gate);
            let ended = self.read_some(&next, count, &read, &failed);
            if ended.is_err() {
                // What is missing now would be waited for, by others that hold all the buffers.
                self.gate.close();
            }
            ended
        };
        let stopped = thread::scope(|scope| {
            let mut threads = Vec::new();
            for number in 1..readers {
                let thread = thread::Builder::new()
                    .name(format!("read {number}"))
                    .spawn_scoped(scope, read_on);
                match thread {
                    Ok(thread) => threads.push(thread),
                    // One reader is enough.
                    Err(_) => break,
                }
            }
            let mut stopped = read_on();
            for thread in threads {
                match thread.join() {
                    Ok(Ok(())) => {}
                    Ok(stop) => stopped = stop,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            stopped
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        match failed {
            Some((_, EntryFailure { path, source })) => {
                Err(Stop::Failed(SealError::Content { path, source }))
            }
            None => stopped,
        }
    }
}

/// The first segment that could not be read, by its number.
type FirstFailure = Mutex<Option<(usize, EntryFailure)>>;

impl Feed<'_> {
    /// Reads segments until there are no more, or something fails.
    fn read_some(
        &self,
        next: &AtomicUsize,
        count: usize,
        read: &(impl Fn(usize, &mut Vec<u8>) -> Result<(), EntryFailure> + Sync),
        failed: &FirstFailure,
    ) -> Result<(), Stop> {
        loop {
            let mut buffer = self.buffer()?;
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                // Others may still have use for it.
                let _ = self.gate.returned.send(buffer);
                return Ok(());
            }
            match read(number, &mut buffer) {
                Ok(()) => self.send(number, buffer)?,
                Err(failure) => {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                        *failed = Some((number, failure));
                    }
                    // Segments before this one are being read already, and those after it are of no
                    // use.
                    next.store(count, Ordering::Relaxed);
                    return Err(Stop::NotWanted);
                }
            }
        }
    }
}

/// Hashes the archive; gives the states after each segment. Without a hasher nothing comes.
fn hash_in_order(
    hasher: Option<Hasher>,
    segments: &Receiver<Numbered>,
) -> (Vec<HasherState>, Hasher) {
    let mut hasher = hasher.unwrap_or_default();
    let (mut states, mut early) = (Vec::new(), BTreeMap::new());
    for (number, held) in segments {
        early.insert(number, held);
        while let Some(held) = early.remove(&states.len()) {
            hasher.update(&held.bytes);
            states.push(hasher.state());
        }
    }
    (states, hasher)
}

/// What a worker makes of a segment.
struct Outcome {
    kept: Kept,
    /// Whether it was compressed just now.
    is_new: bool,
    /// The blocks, when somebody needs them.
    blocks: Vec<u8>,
    /// Counts among the buffers under way until it is dropped.
    _held: Arc<Held>,
}

/// One thread that compresses.
struct Worker<'a> {
    codec: &'a dyn Codec,
    cache: &'a LayerCache,
    known: &'a (dyn Fn(usize) -> Option<Kept> + Sync),
    /// Whether somebody hashes the blocks, or it is enough that they are in the cache.
    needs_blocks: bool,
    gate: &'a Gate,
    /// Buffers for blocks that were used before.
    spare: &'a Mutex<Vec<Vec<u8>>>,
    done: Sender<(usize, Result<Outcome, EncodeError>)>,
}

impl Worker<'_> {
    fn run(self, work: &Mutex<Receiver<Numbered>>) {
        let _alarm = PanicAlarm(self.gate);
        let mut encoder = self.codec.encoder();
        loop {
            // A worker that panicked while it held the lock left the receiver whole.
            let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, held)) = next else { return };
            if self.gate.is_closed() {
                return;
            }
            let outcome = self.make(number, held, &mut *encoder);
            if self.done.send((number, outcome)).is_err() {
                return;
            }
        }
    }

    fn make(
        &self,
        number: usize,
        held: Arc<Held>,
        encoder: &mut dyn Encoder,
    ) -> Result<Outcome, EncodeError> {
        let segment = &held.bytes;
        let crc = crc32fast::hash(segment);
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut blocks: Vec<u8> = spare.unwrap_or_default();
        blocks.clear();
        // `stat` may have been wrong about the file; here its bytes are at hand.
        let known = (self.known)(number)
            .filter(|kept| kept.crc == crc && kept.length as usize == segment.len());
        let (key, known) = match known {
            Some(kept) => (kept.key, Some(kept)),
            None => {
                let key = Key::of(segment);
                (key, self.cache.find(self.codec.id(), &key))
            }
        };
        let usable =
            known.filter(|kept| !self.needs_blocks || self.cache.read(&kept.place, &mut blocks));
        if let Some(kept) = usable {
            return Ok(Outcome {
                kept,
                is_new: false,
                blocks,
                _held: held,
            });
        }
        blocks.clear();
        encoder.encode(segment, &mut blocks)?;
        let too_long = |_| EncodeError {
            codec: "any",
            length: segment.len(),
        };
        let kept = Kept {
            key,
            length: u32::try_from(segment.len()).map_err(too_long)?,
            crc,
            place: Place {
                pack: PackId::UNNAMED,
                offset: 0,
                length: u32::try_from(blocks.len()).map_err(too_long)?,
                check: check_of(&blocks),
            },
        };
        Ok(Outcome {
            kept,
            is_new: true,
            blocks,
            _held: held,
        })
    }
}

/// What came off the line.
struct Written {
    segments: Vec<Kept>,
    blob_states: Vec<HasherState>,
    blob: Hasher,
    effort: Effort,
}

fn write_in_order(
    line: &Line<'_>,
    pack: &mut PackWriter<'_>,
    gate: &Gate,
    spare: &Mutex<Vec<Vec<u8>>>,
    done: &Receiver<(usize, Result<Outcome, EncodeError>)>,
) -> Result<Written, SealError> {
    let mut written = Written {
        segments: Vec::new(),
        blob_states: Vec::new(),
        blob: line
            .hashers
            .as_ref()
            .map(|start| start.blob.clone())
            .unwrap_or_default(),
        effort: Effort::default(),
    };
    let mut early = BTreeMap::new();
    let mut length = 0;
    for (number, outcome) in done {
        early.insert(number, outcome);
        while let Some(outcome) = early.remove(&written.segments.len()) {
            if let Err(error) = take(line, pack, spare, outcome, &mut written) {
                gate.close();
                return Err(error);
            }
            length += u64::from(written.segments.last().map_or(0, |kept| kept.length));
            if let Some(progress) = line.settings.progress {
                progress(length);
            }
        }
    }
    Ok(written)
}

/// Takes the next segment off the line.
fn take(
    line: &Line<'_>,
    pack: &mut PackWriter<'_>,
    spare: &Mutex<Vec<Vec<u8>>>,
    outcome: Result<Outcome, EncodeError>,
    written: &mut Written,
) -> Result<(), SealError> {
    let Outcome {
        mut kept,
        is_new,
        blocks,
        _held,
    } = outcome.map_err(SealError::Encode)?;
    if is_new {
        kept = pack
            .append(kept, &blocks)
            .map_err(|source| SealError::Write {
                directory: line.settings.cache.scratch().to_owned(),
                source,
            })?;
        written.effort.compressed += 1;
    }
    if line.hashers.is_some() {
        written.blob.update(&blocks);
        written.blob_states.push(written.blob.state());
        written.effort.hashed += 1;
    }
    written.segments.push(kept);
    spare
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(blocks);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Condvar;

    use super::*;
    use crate::codec::Stored;
    use crate::content::ContentError;
    use crate::path::EntryPath;

    /// The first segment takes so long to fail that all other buffers wait for it.
    #[test]
    fn a_segment_that_fails_when_all_wait_for_it_ends_the_line() {
        let directory = tempfile::tempdir().unwrap();
        let cache = LayerCache::open(directory.path().join("cache"), directory.path()).unwrap();
        let settings = SealSettings {
            codec: &Stored,
            cache: &cache,
            last_time: None,
            identity_suffices: false,
            jobs: NonZeroUsize::MIN,
            progress: None,
            cancel: None,
            observer: None,
        };
        let line = Line {
            settings: &settings,
            known: &|_| None,
            hashers: Some(Hashers {
                archive: Hasher::new(),
                blob: Hasher::new(),
            }),
            longest: 1,
            readers: 3,
            workers: 2,
        };
        let others = line.buffers() - 1;
        let (read, all_read) = (Mutex::new(0), Condvar::new());
        let mut pack = PackWriter::new(directory.path(), "stored");
        let result = run(&line, &mut pack, |feed| {
            feed.read_all(line.readers, 1000, |number, bytes| {
                let mut read = read.lock().unwrap();
                if number > 0 {
                    *read += 1;
                    all_read.notify_all();
                    bytes.push(1);
                    return Ok(());
                }
                drop(all_read.wait_while(read, |read| *read < others).unwrap());
                Err(EntryFailure {
                    path: EntryPath::new("slow").unwrap(),
                    source: ContentError::Changed {
                        path: "slow".into(),
                    },
                })
            })
        });
        let Err(SealError::Content { path, .. }) = result else {
            panic!("it failed to read")
        };
        assert_eq!(path.to_string(), "slow");
    }
}
