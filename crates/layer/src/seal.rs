//! From a plan to a layer whose identity is known, and whose bytes can be had.
//!
//! ```text
//! plan → cut → segments ─┬─ told by their signature to be those of last time ──────────────┐
//!                        └─ read → key ─┬─ in the cache ──────────────────────────────────┤
//!                                       └─ compressed → pack                              ├→ recipe
//!        from the first segment that is not that of last time on: hash archive and blob ──┘
//! ```
//!
//! What comes out depends on the plan and the codec alone. The cache decides how much of it has to
//! be done: nothing known, and one pass reads, hashes and compresses everything; one file changed,
//! and its segment is compressed while what precedes it is not even read, because the hashes are
//! gone on with from a kept state; nothing changed, and no file is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tierce_oci::{DiffId, Hasher, HasherState};

use crate::cache::{
    CacheError, Kept, Key, LayerCache, PackId, PackWriter, Recipe, RecipeId, RecipeSegment,
};
use crate::codec::{Codec, EncodeError};
use crate::content::{ContentError, FileTime};
use crate::member::{Limits, TarError};
use crate::path::EntryPath;
use crate::pipeline::{Feed, Line, Stop, run};
use crate::plan::{Plan, Record, RecordKind};
use crate::segment::{MOST, Segment, cut};
use crate::signature::Signature;
use crate::verbatim::check_members;

/// How to seal. None of it but the codec shows in the bytes.
#[derive(Clone, Copy)]
pub struct SealSettings<'a> {
    /// What compresses.
    pub codec: &'a dyn Codec,
    /// Where segments are kept and looked for.
    pub cache: &'a LayerCache,
    /// How the layer came out the last time, when that is known.
    pub last_time: Option<&'a LastTime>,
    /// Whether a layer may be known without its bytes being here: enough for a target that has it.
    /// Otherwise what is gone from the cache is made again.
    pub identity_suffices: bool,
    /// How many threads compress.
    pub jobs: NonZeroUsize,
    /// Called with the number of bytes of the archive that are dealt with, about once a MiB, from
    /// the thread that called.
    pub progress: Option<&'a dyn Fn(u64)>,
    /// Once true, sealing ends with [`SealError::Cancelled`] at the next segment.
    pub cancel: Option<&'a AtomicBool>,
    /// Who is told of the entries whose segments are read, from the threads that read them.
    pub observer: Option<&'a dyn Observer>,
}

/// Watches the entries of a layer pass by while it is sealed, at no extra read of their bytes.
pub trait Observer: Sync {
    /// Takes a piece of an entry. Pieces come in any order and from several threads at once, and
    /// one may come twice. Segments that are not read, because they are known to be those of
    /// [`LastTime`] by their signature, do not come.
    fn observe(&self, piece: Observed<'_>);
}

/// Part of an entry that is in memory: all of one of less than a MiB, and each MiB of others.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The place of the entry among the records of the plan.
    pub position: usize,
    /// The entry.
    pub record: &'a Record,
    /// The modification time that is written for it.
    pub modified: u64,
    /// Where in its content the piece begins.
    pub offset: u64,
    /// The piece; empty for entries without content.
    pub bytes: &'a [u8],
}

impl fmt::Debug for SealSettings<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SealSettings")
            .field("codec", &self.codec.id())
            .field("cache", &self.cache.root())
            .field("jobs", &self.jobs)
            .finish_non_exhaustive()
    }
}

/// How a layer of the same sources came out before.
#[derive(Debug, Clone)]
pub struct LastTime {
    /// The layer.
    pub recipe: Recipe,
    /// For each of its segments what `stat` said of it; `None` where that cannot be relied on.
    pub signatures: Vec<Option<u128>>,
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

/// A layer whose identity is known and whose bytes can be had.
#[derive(Debug)]
pub struct SealedLayer {
    /// What it is and how its blob is put together.
    pub recipe: Recipe,
    /// What `stat` said of each segment, for [`LastTime`].
    pub signatures: Vec<Option<Signature>>,
    /// How much of it had to be done.
    pub effort: Effort,
}

/// What sealing a layer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effort {
    /// Segments that were read from their files.
    pub read: u64,
    /// Segments that were compressed.
    pub compressed: u64,
    /// Segments of which the hashes of archive and blob had to take the bytes.
    pub hashed: u64,
}

/// Part of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A range of a pack.
    Range {
        /// The pack's file.
        path: Arc<Path>,
        /// Where the range begins.
        offset: u64,
        /// How long it is.
        length: u64,
        /// XXH3-128 of its bytes.
        check: u128,
    },
}

impl Signature {
    /// What can be relied on when the files were looked at from `began` on: a file that was changed
    /// only then may have been changed once more within the same tick.
    pub fn relied_on(&self, began: FileTime) -> Option<u128> {
        self.latest.is_settled_before(began).then_some(self.hash)
    }
}

impl SealedLayer {
    /// What can be relied on of its signatures, when the files were looked at from `began` on: they
    /// and the recipe are the [`LastTime`] of the next build.
    pub fn relied_on(&self, began: FileTime) -> Vec<Option<u128>> {
        self.signatures
            .iter()
            .map(|signature| signature.as_ref()?.relied_on(began))
            .collect()
    }
}

impl Recipe {
    /// The parts of the blob, in order. `codec` is the one that the recipe names.
    pub fn pieces(&self, codec: &dyn Codec, cache: &LayerCache) -> Vec<Piece> {
        let mut paths: BTreeMap<PackId, Arc<Path>> = BTreeMap::new();
        let mut pieces = Vec::with_capacity(self.segments.len() + 2);
        pieces.push(Piece::Bytes(codec.prefix().to_vec()));
        for RecipeSegment { kept, .. } in &self.segments {
            let path = paths
                .entry(kept.place.pack)
                .or_insert_with(|| cache.pack_path(kept.place.pack).into());
            pieces.push(Piece::Range {
                path: Arc::clone(path),
                offset: kept.place.offset,
                length: kept.place.length.into(),
                check: kept.place.check,
            });
        }
        pieces.push(Piece::Bytes(codec.suffix(self.crc, self.uncompressed_size)));
        pieces.retain(|piece| !matches!(piece, Piece::Bytes(bytes) if bytes.is_empty()));
        pieces
    }
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
    /// The compressed bytes could not be written, most often because the disk is full.
    #[error("could not write the layer to `{directory}`", directory = directory.display())]
    Write {
        /// The directory of what is being written.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// They could not be given to the cache.
    #[error("could not keep the layer")]
    Keep(#[source] CacheError),
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

/// Makes the layer of `plan`.
///
/// The bytes depend on the plan and the codec alone: any number of jobs, any state of the cache and
/// any machine give the same. When a file is not what it was when scanned, sealing ends with an
/// error and never with a blob that holds half of each.
pub fn seal(plan: &Plan, settings: &SealSettings<'_>) -> Result<SealedLayer, SealError> {
    unless_packs_vanish(settings, || Sealing::new(plan, settings).seal())
}

/// Seals again when a pack turned out to be damaged, which takes with it what was found in it until
/// then.
fn unless_packs_vanish(
    settings: &SealSettings<'_>,
    seal: impl Fn() -> Result<SealedLayer, SealError>,
) -> Result<SealedLayer, SealError> {
    let dropped = settings.cache.dropped();
    let sealed = seal()?;
    if settings.cache.dropped() == dropped || settings.cache.has_packs_of(&sealed.recipe) {
        return Ok(sealed);
    }
    // Once more only: a disk on which this happens twice is beyond help, and whoever reads the
    // packs checks them again.
    seal()
}

/// Makes a layer of an uncompressed archive, byte for byte, cut every 1 MiB.
pub fn seal_tar<R: Read + Send>(
    archive: R,
    check: TarCheck,
    settings: &SealSettings<'_>,
) -> Result<SealedLayer, SealError> {
    let mut pack = PackWriter::new(settings.cache.scratch(), settings.codec.id());
    let line = Line {
        settings,
        known: &|_| None,
        hashers: Some(begin(settings.codec)),
        longest: MOST,
        readers: 1,
        workers: settings.jobs.get(),
    };
    let (entries, passed) = run(&line, &mut pack, |feed| {
        let mut tee = Tee {
            archive,
            feed,
            segment: feed.buffer()?,
            next: 0,
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
            tee.hand_on()?;
        }
        Ok(counts)
    })?;
    let segments = passed.segments.len();
    let mut effort = passed.effort;
    effort.read = segments as u64;
    let recipe = finish(settings, pack, entries, &[], passed)?;
    Ok(SealedLayer {
        recipe,
        signatures: vec![None; segments],
        effort,
    })
}

fn drain(archive: &mut impl Read) -> Result<(), TarError> {
    io::copy(archive, &mut io::sink())
        .map(drop)
        .map_err(TarError::from_read)
}

/// Hands an archive on as segments while somebody else reads it.
struct Tee<'feed, 'line, R> {
    archive: R,
    feed: &'feed Feed<'line>,
    segment: Vec<u8>,
    next: usize,
    stopped: Option<Stop>,
}

impl<R> Tee<'_, '_, R> {
    fn hand_on(&mut self) -> Result<(), Stop> {
        let segment = std::mem::take(&mut self.segment);
        self.feed.send(self.next, segment)?;
        self.next += 1;
        self.segment = self.feed.buffer()?;
        Ok(())
    }
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(MOST - self.segment.len());
        let read = self.archive.read(&mut buffer[..room])?;
        self.segment.extend_from_slice(&buffer[..read]);
        if self.segment.len() == MOST
            && let Err(stop) = self.hand_on()
        {
            self.stopped = Some(stop);
            return Err(io::Error::other("sealing was stopped"));
        }
        Ok(read)
    }
}

/// The hashes of an archive and its blob before the first segment.
fn begin(codec: &dyn Codec) -> Hashers {
    let mut blob = Hasher::new();
    blob.update(codec.prefix());
    Hashers {
        archive: Hasher::new(),
        blob,
    }
}

/// The two hashes of a layer under way.
#[derive(Debug, Clone)]
pub(crate) struct Hashers {
    pub(crate) archive: Hasher,
    pub(crate) blob: Hasher,
}

/// What came out of a pass over segments.
#[derive(Debug)]
pub(crate) struct Passed {
    /// The segments in order; new ones have no pack yet.
    pub(crate) segments: Vec<Kept>,
    /// The hashes after each of them; empty when nothing was to be hashed.
    pub(crate) states: Vec<(HasherState, HasherState)>,
    /// And at the end.
    pub(crate) hashers: Hashers,
    pub(crate) effort: Effort,
}

/// How many segments may be read beside what was asked for to find out whether the files are those
/// of last time with other times.
const SAMPLES: usize = 8;

/// How many threads read. Not tied to processors: on a disk that is slow to answer, many questions
/// at once are answered many times as fast as one after the other (390 MB of wheels that were not in
/// memory took one thread 1.7 s, 8 threads 0.8 s and 32 threads 0.65 s), and readers that have
/// nothing to do cost nothing. Each is a buffer of a MiB more, though.
const READERS: usize = 8;

struct Sealing<'a> {
    plan: &'a Plan,
    settings: &'a SealSettings<'a>,
    segments: Vec<Segment>,
    effort: Effort,
}

impl<'a> Sealing<'a> {
    fn new(plan: &'a Plan, settings: &'a SealSettings<'a>) -> Self {
        Self {
            plan,
            settings,
            segments: cut(plan),
            effort: Effort::default(),
        }
    }

    fn seal(mut self) -> Result<SealedLayer, SealError> {
        let SealSettings { codec, cache, .. } = *self.settings;
        let mut pack = PackWriter::new(cache.scratch(), codec.id());
        let mut known = self.known_by_signature();
        if self.settings.last_time.is_none() || !self.is_mostly_known(&known) {
            let passed = self.pass(&known, 0, begin(codec), &mut pack)?;
            let recipe = finish(self.settings, pack, EntryCounts::of(self.plan), &[], passed)?;
            return Ok(self.done(recipe));
        }
        self.resolve(&mut known, &mut pack)?;
        let keys = known.iter().flatten().map(|kept| kept.key);
        let id = RecipeId::of(codec.id(), keys);
        // The same files may have been seen elsewhere, or longer ago than the last time.
        let seen = match self.settings.last_time {
            Some(last) if last.recipe.id() == id => Some(last.recipe.clone()),
            _ => cache.recipe(&id),
        };
        if let Some(seen) = seen
            && let Some(recipe) = self.reuse(seen, &known, &mut pack)?
        {
            return Ok(self.done(recipe));
        }
        let (start, hashers, before) = self.common_start(&known);
        let mut passed = self.pass(&known, start, hashers, &mut pack)?;
        passed
            .segments
            .splice(0..0, known[..start].iter().flatten().copied());
        let recipe = finish(
            self.settings,
            pack,
            EntryCounts::of(self.plan),
            &before,
            passed,
        )?;
        Ok(self.done(recipe))
    }

    fn done(self, recipe: Recipe) -> SealedLayer {
        SealedLayer {
            recipe,
            signatures: self
                .segments
                .iter()
                .map(|segment| segment.signature)
                .collect(),
            effort: self.effort,
        }
    }

    /// The segments that are those of last time as far as `stat` can tell.
    fn known_by_signature(&self) -> Vec<Option<Kept>> {
        let Some(last) = self.settings.last_time else {
            return vec![None; self.segments.len()];
        };
        let by_signature: BTreeMap<u128, &Kept> = last
            .signatures
            .iter()
            .zip(&last.recipe.segments)
            .filter_map(|(signature, segment)| Some(((*signature)?, &segment.kept)))
            .collect();
        self.segments
            .iter()
            .map(|segment| {
                let kept = *by_signature.get(&segment.signature?.hash)?;
                let usable = self.settings.identity_suffices
                    || self.settings.cache.has_pack(kept.place.pack);
                (usable && kept.length as usize == segment.length).then_some(*kept)
            })
            .collect()
    }

    /// Whether it pays to look at what is not known by its signature before anything is hashed.
    ///
    /// It does when that is little, or when it turns out to be the files of last time under other
    /// times, as in a fresh checkout.
    fn is_mostly_known(&mut self, known: &[Option<Kept>]) -> bool {
        let unknown: Vec<&Segment> = self
            .segments
            .iter()
            .zip(known)
            .filter(|(_, known)| known.is_none())
            .map(|(segment, _)| segment)
            .collect();
        let bytes = |segments: &mut dyn Iterator<Item = &Segment>| {
            segments.map(|segment| segment.length).sum::<usize>()
        };
        let unknown_bytes = bytes(&mut unknown.iter().copied());
        if unknown_bytes <= bytes(&mut self.segments.iter()) / 4 {
            return true;
        }
        let Some(last) = self.settings.last_time else {
            return false;
        };
        let keys: std::collections::BTreeSet<Key> = last
            .recipe
            .segments
            .iter()
            .map(|segment| segment.kept.key)
            .collect();
        let step = unknown.len().div_ceil(SAMPLES).max(1);
        let mut segment = Vec::new();
        unknown.iter().step_by(step).all(|sample| {
            segment.clear();
            // What cannot be read is reported by whoever needs it.
            sample.assemble(self.plan, None, &mut segment).is_ok()
                && keys.contains(&Key::of(&segment))
        })
    }

    /// Reads the segments that are not known and finds or makes their compressed form.
    fn resolve(
        &mut self,
        known: &mut [Option<Kept>],
        pack: &mut PackWriter<'_>,
    ) -> Result<(), SealError> {
        let unknown: Vec<usize> = (0..known.len())
            .filter(|&index| known[index].is_none())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let line = Line {
            settings: self.settings,
            known: &|_| None,
            hashers: None,
            longest: longest_of(unknown.iter().map(|&index| &self.segments[index])),
            readers: READERS.min(unknown.len()),
            workers: self.settings.jobs.get().min(unknown.len()),
        };
        let observer = self.settings.observer;
        let ((), passed) = run(&line, pack, |feed| {
            feed.read_all(line.readers, unknown.len(), |at, bytes| {
                self.segments[unknown[at]].assemble(self.plan, observer, bytes)
            })
        })?;
        for (index, kept) in unknown.iter().zip(passed.segments) {
            known[*index] = Some(kept);
        }
        self.effort.read += unknown.len() as u64;
        self.effort.compressed += passed.effort.compressed;
        Ok(())
    }

    /// Where the layer stops being that of last time, the hashes up to there, and their states.
    fn common_start(
        &self,
        known: &[Option<Kept>],
    ) -> (usize, Hashers, Vec<(HasherState, HasherState)>) {
        let from_the_start = || (0, begin(self.settings.codec), Vec::new());
        let Some(last) = self.settings.last_time else {
            return from_the_start();
        };
        let common = known
            .iter()
            .zip(&last.recipe.segments)
            .take_while(|(known, last)| known.is_some_and(|kept| is_the_same(&kept, &last.kept)))
            .count();
        let before: Vec<_> = last.recipe.segments[..common]
            .iter()
            .map(|segment| (segment.archive, segment.blob))
            .collect();
        let resumed = before.last().and_then(|(archive, blob)| {
            Some(Hashers {
                archive: Hasher::resume(archive)?,
                blob: Hasher::resume(blob)?,
            })
        });
        match resumed {
            Some(hashers) => (common, hashers, before),
            None => from_the_start(),
        }
    }

    /// Reads the segments from `start` on, hashing archive and blob, and finds or makes the
    /// compressed form of those that are not known.
    fn pass(
        &mut self,
        known: &[Option<Kept>],
        start: usize,
        hashers: Hashers,
        pack: &mut PackWriter<'_>,
    ) -> Result<Passed, SealError> {
        let count = self.segments.len() - start;
        let known = |at: usize| known[start + at];
        let line = Line {
            settings: self.settings,
            known: &known,
            hashers: Some(hashers),
            longest: longest_of(&self.segments[start..]),
            readers: READERS.min(count),
            workers: self.settings.jobs.get().min(count),
        };
        let observer = self.settings.observer;
        let ((), passed) = run(&line, pack, |feed| {
            feed.read_all(line.readers, count, |at, bytes| {
                self.segments[start + at].assemble(self.plan, observer, bytes)
            })
        })?;
        self.effort.read += count as u64;
        self.effort.compressed += passed.effort.compressed;
        self.effort.hashed += passed.effort.hashed;
        Ok(passed)
    }

    /// Takes over the identity of a layer that has the same segments; `None` when it cannot be.
    fn reuse(
        &self,
        mut seen: Recipe,
        known: &[Option<Kept>],
        pack: &mut PackWriter<'_>,
    ) -> Result<Option<Recipe>, SealError> {
        let cache = self.settings.cache;
        if self.settings.identity_suffices || cache.has_packs_of(&seen) {
            return Ok(Some(seen));
        }
        // Segments whose pack is gone have been made again and are somewhere else now. They have
        // the same bytes, or the codec is not what its id says.
        let pairs = || seen.segments.iter().zip(known.iter().flatten());
        if !pairs().all(|(seen, known)| is_the_same(&seen.kept, known)) {
            return Ok(None);
        }
        let pack = keep(self.settings, pack)?;
        for (segment, known) in seen.segments.iter_mut().zip(known.iter().flatten()) {
            segment.kept = in_pack(*known, pack);
        }
        cache.keep_recipe(&seen);
        Ok(Some(seen))
    }
}

fn longest_of<'s>(segments: impl IntoIterator<Item = &'s Segment>) -> usize {
    let lengths = segments.into_iter().map(|segment| segment.length);
    lengths.max().unwrap_or(0)
}

/// Whether two segments have the same blocks, wherever they are.
fn is_the_same(one: &Kept, other: &Kept) -> bool {
    let sum = |kept: &Kept| {
        (
            kept.key,
            kept.length,
            kept.crc,
            kept.place.length,
            kept.place.check,
        )
    };
    sum(one) == sum(other)
}

/// The segment with the pack that it went into, if it is a new one.
fn in_pack(mut kept: Kept, pack: Option<PackId>) -> Kept {
    if kept.place.pack == PackId::UNNAMED
        && let Some(pack) = pack
    {
        kept.place.pack = pack;
    }
    kept
}

/// Finishes the pack and gives it to the cache.
fn keep(
    settings: &SealSettings<'_>,
    pack: &mut PackWriter<'_>,
) -> Result<Option<PackId>, SealError> {
    let finished = pack.finish().map_err(|source| SealError::Write {
        directory: settings.cache.scratch().to_owned(),
        source,
    })?;
    match finished {
        Some(pack) => Ok(Some(
            settings.cache.keep_pack(pack).map_err(SealError::Keep)?,
        )),
        None => Ok(None),
    }
}

/// Makes the recipe of segments that were passed over, `before` being the states of those that
/// precede them.
fn finish(
    settings: &SealSettings<'_>,
    mut pack: PackWriter<'_>,
    entries: EntryCounts,
    before: &[(HasherState, HasherState)],
    passed: Passed,
) -> Result<Recipe, SealError> {
    let codec = settings.codec;
    let pack = keep(settings, &mut pack)?;
    let states = before.iter().chain(&passed.states);
    let segments: Vec<RecipeSegment> = passed
        .segments
        .into_iter()
        .zip(states)
        .map(|(kept, (archive, blob))| RecipeSegment {
            kept: in_pack(kept, pack),
            archive: *archive,
            blob: *blob,
        })
        .collect();
    let mut crc = crc32fast::Hasher::new();
    let (mut uncompressed_size, mut blocks) = (0, 0);
    for RecipeSegment { kept, .. } in &segments {
        crc.combine(&crc32fast::Hasher::new_with_initial_len(
            kept.crc,
            kept.length.into(),
        ));
        uncompressed_size += u64::from(kept.length);
        blocks += u64::from(kept.place.length);
    }
    let crc = crc.finalize();
    let suffix = codec.suffix(crc, uncompressed_size);
    let Hashers { archive, mut blob } = passed.hashers;
    blob.update(&suffix);
    let recipe = Recipe {
        codec: codec.id().to_owned(),
        digest: blob.finish(),
        size: codec.prefix().len() as u64 + blocks + suffix.len() as u64,
        diff_id: DiffId(archive.finish()),
        uncompressed_size,
        crc,
        entries,
        segments,
    };
    settings.cache.keep_recipe(&recipe);
    Ok(recipe)
}
