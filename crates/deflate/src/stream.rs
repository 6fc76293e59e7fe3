//! The blocks of a segment, one after the other, each as the kind that is smallest.

use crate::bits::BitWriter;
use crate::block::Plan;
use crate::counts::Counts;
use crate::format::{KIND_BITS, KIND_STORED, STORED_MOST};
use crate::matches::Sequence;

/// The most bits that a stored block needs beside its bytes: the kind, seven to fill a byte, the
/// length twice. If the stream is aligned it is two less.
const STORED_BITS: u64 = KIND_BITS as u64 + 7 + 32;

/// Writes one segment's blocks.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    input: &'a [u8],
    /// What was given out in blocks.
    written: usize,
    writer: BitWriter<'a>,
}

/// A stretch of the input and what it is made of.
#[derive(Debug, Default)]
pub(crate) struct Stretch {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Make up the stretch, with the literals behind the last match.
    pub(crate) sequences: Vec<Sequence>,
    /// Of the sequences.
    pub(crate) counts: Counts,
    /// Of the counts.
    pub(crate) entropy: u64,
}

impl Stretch {
    /// Starts an empty stretch.
    pub(crate) fn restart(&mut self, at: usize) {
        self.start = at;
        self.end = at;
        self.sequences.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl<'a> Stream<'a> {
    pub(crate) fn new(input: &'a [u8], output: &'a mut Vec<u8>) -> Self {
        Self {
            input,
            written: 0,
            writer: BitWriter::new(output),
        }
    }

    /// Writes a block for the stretch, or leaves it to a stored block that ends later.
    ///
    /// A compressed block has to save as much as the stored block behind it may need beyond its
    /// bytes. So a stored block after a compressed one is paid for, and all that a segment can
    /// grow by is a stored block for every 65,535 bytes from its start, and the end.
    pub(crate) fn block(&mut self, stretch: &Stretch) {
        if stretch.is_empty() {
            return;
        }
        let follows = if stretch.end < self.input.len() {
            STORED_BITS
        } else {
            0
        };
        let plan = Plan::of(&stretch.counts);
        if plan.bits + follows < (stretch.end - stretch.start) as u64 * 8 {
            self.store(stretch.start);
            let input = &self.input[stretch.start..stretch.end];
            plan.write(input, &stretch.sequences, &mut self.writer);
            self.written = stretch.end;
        }
    }

    /// Stores what is not in a block yet, and ends the segment on a byte boundary with an empty
    /// stored block.
    pub(crate) fn end(mut self) {
        self.store(self.input.len());
        self.stored(&[]);
    }

    /// Stores what is not in a block yet, up to a position.
    fn store(&mut self, to: usize) {
        let input = self.input;
        for bytes in input[self.written..to].chunks(STORED_MOST) {
            self.stored(bytes);
        }
        self.written = to;
    }

    /// Writes a stored block.
    fn stored(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u16;
        self.writer
            .with_room(KIND_BITS.into(), |room| room.put(KIND_STORED, KIND_BITS));
        self.writer.align();
        self.writer.bytes(&length.to_le_bytes());
        self.writer.bytes(&(!length).to_le_bytes());
        self.writer.bytes(bytes);
    }
}
