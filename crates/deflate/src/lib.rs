//! A fast deflate encoder (RFC 1951) whose output depends on its input alone.
//!
//! It compresses a segment of a layer, about a MiB, from a reset state into blocks that are not
//! final and end on a byte boundary, so that segments made by several threads, or found in a cache,
//! can be put one behind the other into one gzip member.
//!
//! ```
//! let mut encoder = tierce_deflate::Encoder::new();
//! let mut blocks = Vec::new();
//! encoder.encode_segment(b"to be, or not to be, ", &mut blocks)?;
//! encoder.encode_segment(b"that is the question", &mut blocks)?;
//! // An empty final block makes a whole deflate stream of them.
//! blocks.extend([3, 0]);
//! let decoded = miniz_oxide::inflate::decompress_to_vec(&blocks).expect("deflate");
//! assert_eq!(decoded, b"to be, or not to be, that is the question");
//! # Ok::<_, tierce_deflate::SegmentTooLong>(())
//! ```
//!
//! # How a segment becomes blocks
//!
//! A segment is read once, in *units* of 32 KiB.
//!
//! 1. `matches` cuts a unit into literals and matches. It looks each position's four bytes up in a
//!    table of last positions and takes the first match it finds. Where nothing is found it looks
//!    less and less, so that model weights and compressed files cost little.
//! 2. `counts` has the frequencies of the unit's symbols and estimates from their entropy whether
//!    the unit shares codes with the block before it or starts a block. So a block ends where the
//!    data changes, say from one small file of an archive to the next kind. A unit of noise, as
//!    a sample tells, is not even counted: it is stored.
//! 3. `huffman` makes codes for a block, `block` knows to the bit what it takes with them, with the
//!    fixed codes, and `stream` what it takes stored. The smallest is written. Stored blocks next
//!    to each other become one, so that incompressible data grows by five bytes in 65,535.
//! 4. `bits` packs the codes, 64 bits at a time.
//!
//! Between fast and small it stands where measurements put it (`cargo bench -p tierce-deflate`): on
//! program files at the speed of zlib's first level with the size of its second, on model weights
//! several times as fast as any.
//!
//! # Why the bytes are the same everywhere
//!
//! They name a layer in registries, so they must not depend on the machine. There is no floating
//! point, no pointer-sized number whose width would show, no hash with a seed, no instruction that
//! only some CPUs have; words are read as little-endian, sorting has no ties, and nothing is kept
//! from one segment to the next. Any change of any constant changes bytes, and so needs another
//! codec id: a test has the digest of a mixed segment to notice.
//!
//! It is safe Rust throughout: without bounds checks in the search it was 1 % faster.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "positions, counts and bits are cut to the width of their fields; a segment is short"
)]
#![expect(
    clippy::inline_always,
    reason = "the search and the writer are tight loops over these, whose state belongs in registers"
)]

use std::error::Error;
use std::fmt;

use crate::counts::{Tally, is_flat};
use crate::matches::{Matcher, NO_MATCH, Sequence};
use crate::stream::{Stream, Stretch};

mod bits;
mod block;
mod counts;
mod format;
mod huffman;
mod matches;
mod stream;

/// The longest segment that is taken: 64 MiB. Segments of layers are a MiB; the limit keeps
/// every count and sum within 32 bits, on machines of any width.
pub const LONGEST_SEGMENT: usize = 1 << 26;

/// How much is searched and counted at a time. Half makes the wheels' archive 0.2 % smaller
/// and takes 4 % longer, twice makes it 0.2 % larger.
const UNIT: usize = 32 << 10;

/// How long a block may get. Hardly anything depends on it, as the data ends most blocks.
const BLOCK: usize = 256 << 10;

/// What codes of its own have to save a unit, in 256th parts of bits: about what it takes to
/// describe them. 500 bits more or less change sizes by less than 0.1 %.
const NEW_CODES: u64 = 1000 * 256;

/// The most bytes that a segment of `length` bytes becomes, for making room: it grows by five for
/// every 65,535, and has five at its end.
///
/// ```
/// assert_eq!(tierce_deflate::longest_encoding(0), 5);
/// assert_eq!(tierce_deflate::longest_encoding(1 << 20), (1 << 20) + 17 * 5 + 5);
/// ```
pub const fn longest_encoding(length: usize) -> usize {
    length + length.div_ceil(format::STORED_MOST) * 5 + 5
}

/// A segment is longer than [`LONGEST_SEGMENT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentTooLong {
    /// The length of the segment.
    pub length: usize,
}

impl fmt::Display for SegmentTooLong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length } = self;
        write!(
            formatter,
            "a segment of {length} bytes is longer than the {LONGEST_SEGMENT} that can be deflated"
        )
    }
}

impl Error for SegmentTooLong {}

/// What one thread compresses segment after segment with: about 100 KiB that are used again.
#[derive(Debug)]
pub struct Encoder {
    matcher: Matcher,
    tally: Tally,
    /// Units that go into one block.
    block: Stretch,
    /// The unit that may join them.
    unit: Stretch,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Makes an encoder.
    pub fn new() -> Self {
        Self {
            matcher: Matcher::new(),
            tally: Tally::new(),
            block: Stretch::default(),
            unit: Stretch::default(),
        }
    }

    /// Appends `segment` to `output` as deflate blocks, none of them final, the last one an empty
    /// stored block that ends on a byte boundary (`00 00 ff ff`).
    ///
    /// The bytes appended depend on `segment` alone: neither on what the encoder compressed before
    /// nor on what `output` holds. They are at most [`longest_encoding`] of its length. A segment
    /// that is too long appends nothing.
    pub fn encode_segment(
        &mut self,
        segment: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), SegmentTooLong> {
        let length = segment.len();
        if length > LONGEST_SEGMENT {
            return Err(SegmentTooLong { length });
        }
        self.matcher.reset();
        self.block.restart(0);
        let mut stream = Stream::new(segment, output);
        for start in (0..length).step_by(UNIT) {
            let end = length.min(start + UNIT);
            if self.read_unit(segment, start, end) {
                self.add_unit(&mut stream);
            } else {
                // Noise has no codes. Nothing is written for it, which makes it stored bytes.
                stream.block(&self.block);
                self.block.restart(end);
            }
        }
        stream.block(&self.block);
        stream.end();
        Ok(())
    }

    /// Finds out what a unit is made of, or that it is noise.
    fn read_unit(&mut self, segment: &[u8], start: usize, end: usize) -> bool {
        let (unit, tally) = (&mut self.unit, &mut self.tally);
        unit.restart(start);
        let tail = self
            .matcher
            .find(segment, start, end, &mut unit.sequences, tally);
        let literals = &segment[tail..end];
        if unit.sequences.is_empty() && is_flat(literals) {
            return false;
        }
        tally.literals(literals);
        if !literals.is_empty() {
            unit.sequences.push(Sequence {
                literals: literals.len() as u32,
                distance: 0,
                length: 0,
                symbol: NO_MATCH,
            });
        }
        unit.end = end;
        unit.counts = tally.take();
        unit.entropy = unit.counts.entropy();
        true
    }

    /// Lets the unit join the block, or start the next one if that takes less.
    fn add_unit(&mut self, stream: &mut Stream<'_>) {
        let (block, unit) = (&mut self.block, &mut self.unit);
        if !block.is_empty() {
            let joined = block.counts.joined(&unit.counts);
            let entropy = joined.entropy();
            let joins = entropy <= block.entropy + unit.entropy + NEW_CODES;
            if joins && unit.end - block.start <= BLOCK {
                block.end = unit.end;
                block.sequences.extend_from_slice(&unit.sequences);
                block.counts = joined;
                block.entropy = entropy;
                return;
            }
            stream.block(block);
        }
        std::mem::swap(block, unit);
    }
}
