//! The search for repetitions.
//!
//! It is greedy: the first match found is taken, and nobody looks whether the next position has a
//! longer one. A table has the last position of every hash of four bytes; the hash only proposes,
//! the bytes decide.
//!
//! What makes it fast where there is something to find is to find it with few branches that a CPU
//! cannot foresee: one candidate per position, two positions per step, sixteen bytes per comparison.
//! What makes it fast where there is nothing to find is to look less and less: steps grow with the
//! misses since the last match, so that noise is passed over at the speed of memory.

use crate::counts::Tally;
use crate::format::{LONGEST, SHORTEST, WINDOW, distance_symbol};

/// The table's entries are two bytes, so it takes 64 KiB: a second-level cache holds it with the
/// window. Measured on the wheels of five Python projects: 2^14 entries make the result 0.4 %
/// larger and are 1 % faster, 2^16 save 0.1 % and are 2 % slower.
const TABLE_BITS: u32 = 15;

/// How many bytes are hashed, and so the shortest match that is found. The format allows three, but
/// a distance often costs more than the three bytes it saves.
const HASHED: usize = 4;

/// After 2^5 misses a step is one byte longer, after as many again two. Little depends on it: half
/// of that makes the wheels 0.1 % larger and 1 % faster, twice saves less than 0.1 %. Noise is
/// passed over as fast with any.
const PATIENCE: u32 = 5;

/// 2^32 divided by the golden ratio (Knuth, *The Art of Computer Programming*, 6.4): its products
/// spread well over their upper bits.
const SPREAD: u32 = 0x9e37_79b9;

/// Literals, then a match or the end of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// How many literals there are.
    pub(crate) literals: u32,
    /// The distance less one.
    pub(crate) distance: u16,
    /// The length less [`SHORTEST`].
    pub(crate) length: u8,
    /// The distance's symbol, or [`NO_MATCH`].
    pub(crate) symbol: u8,
}

/// In place of a distance's symbol: only the literals count.
pub(crate) const NO_MATCH: u8 = 31;

impl Sequence {
    /// How many bytes the match stands for.
    pub(crate) fn matched(self) -> usize {
        if self.symbol == NO_MATCH {
            0
        } else {
            usize::from(self.length) + SHORTEST
        }
    }
}

/// Finds the matches of one segment, unit by unit.
#[derive(Debug)]
pub(crate) struct Matcher {
    /// The last position with each hash, modulo 2^16. That is enough: the window is shorter, and
    /// whatever else an entry may be taken for has to hold the same bytes.
    table: Box<[u16; 1 << TABLE_BITS]>,
    /// How many steps found nothing since the last match worth the name.
    misses: u32,
}

impl Matcher {
    pub(crate) fn new() -> Self {
        let table = vec![0; 1 << TABLE_BITS].into_boxed_slice();
        Self {
            table: table.try_into().expect("it has just this length"),
            misses: 0,
        }
    }

    /// Forgets the segment.
    pub(crate) fn reset(&mut self) {
        self.table.fill(0);
        self.misses = 0;
    }

    /// Cuts `input[from..to]` into `sequences` and counts what they are made of. Matches may begin
    /// before `from`, and end by `to`. What follows the last match is neither in a sequence nor
    /// counted: the result says where it begins.
    pub(crate) fn find(
        &mut self,
        input: &[u8],
        from: usize,
        to: usize,
        sequences: &mut Vec<Sequence>,
        tally: &mut Tally,
    ) -> usize {
        let mut at = from;
        let mut literals_from = from;
        let mut misses = self.misses;
        // The second position of a step needs its bytes within the unit too. The last seven bytes
        // of the input cannot be loaded as a word: they are literals, or the end of a match.
        while at + 1 + HASHED <= to
            && let Some(word) = word(input, at)
        {
            let first = self.probe(input, at, word as u32);
            let (start, source) = match first {
                Some(source) => (at, source),
                None => match self.probe(input, at + 1, (word >> 8) as u32) {
                    Some(source) => (at + 1, source),
                    None => {
                        misses += 1;
                        at += 2 + (misses >> PATIENCE) as usize;
                        continue;
                    }
                },
            };
            let length = common(&input[source..to - (start - source)], &input[start..to]);
            // Numbers have chance matches of four bytes, some every thousand bytes of weights: they
            // are no sign of better times.
            if length > HASHED {
                misses = 0;
            }
            at = start + length;
            // A step may have passed the match's first bytes.
            let passed = input[literals_from..start].iter().rev();
            let passed = passed.zip(input[..source].iter().rev());
            let passed = passed.take_while(|(here, there)| here == there).count();
            let literals = &input[literals_from..start - passed];
            let distance = start - source;
            tally.literals(literals);
            push(
                literals.len() as u32,
                (distance - 1) as u16,
                length + passed,
                sequences,
                tally,
            );
            literals_from = at;
            self.learn(input, start + 1);
            self.learn(input, at - 2);
            self.learn(input, at - 1);
        }
        self.misses = misses;
        literals_from
    }

    /// Looks for an earlier place with the four bytes at `at`, and leaves `at` for later ones.
    #[inline(always)]
    fn probe(&mut self, input: &[u8], at: usize, bytes: u32) -> Option<usize> {
        let entry = &mut self.table[hash(bytes)];
        let distance = usize::from((at as u16).wrapping_sub(*entry));
        *entry = at as u16;
        // An entry never written may point before the input, to a place that `get` refuses.
        let source = at.wrapping_sub(distance);
        let found = input.get(source..)?.first_chunk()?;
        let near = (1..=WINDOW).contains(&distance);
        (near && u32::from_le_bytes(*found) == bytes).then_some(source)
    }

    /// Leaves `at` in the table, unless the input ends there.
    ///
    /// Of a match's positions only three are kept, the second and the last two: with the last but
    /// one alone the result is 1.6 % larger, and no faster; to keep all is slow.
    #[inline(always)]
    fn learn(&mut self, input: &[u8], at: usize) {
        if let Some(bytes) = input.get(at..).and_then(|rest| rest.first_chunk()) {
            self.table[hash(u32::from_le_bytes(*bytes))] = at as u16;
        }
    }
}

/// Appends a match, in as many parts as the format needs.
#[inline(always)]
fn push(
    mut literals: u32,
    distance: u16,
    mut length: usize,
    sequences: &mut Vec<Sequence>,
    tally: &mut Tally,
) {
    let symbol = distance_symbol(distance);
    while length > 0 {
        let mut part = length.min(LONGEST);
        // No part may be shorter than the shortest match.
        if (1..SHORTEST).contains(&(length - part)) {
            part -= SHORTEST;
        }
        let sequence = Sequence {
            literals,
            distance,
            length: (part - SHORTEST) as u8,
            symbol,
        };
        tally.repetition(sequence.length, symbol);
        sequences.push(sequence);
        literals = 0;
        length -= part;
    }
}

/// The eight bytes at `at`.
#[inline(always)]
fn word(input: &[u8], at: usize) -> Option<u64> {
    let bytes = input.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

#[inline(always)]
fn hash(bytes: u32) -> usize {
    (bytes.wrapping_mul(SPREAD) >> (u32::BITS - TABLE_BITS)) as usize
}

/// How many first bytes of two slices of one length are the same.
///
/// Most matches are shorter than sixteen bytes, so that one comparison finds most ends.
#[inline(always)]
fn common(one: &[u8], other: &[u8]) -> usize {
    let (one_words, one_rest) = one.as_chunks::<16>();
    let (other_words, other_rest) = other.as_chunks::<16>();
    let mut length = 0;
    for (one, other) in one_words.iter().zip(other_words) {
        let differ = u128::from_le_bytes(*one) ^ u128::from_le_bytes(*other);
        if differ != 0 {
            return length + (differ.trailing_zeros() / 8) as usize;
        }
        length += 16;
    }
    let rest = one_rest.iter().zip(other_rest);
    length + rest.take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::Tally;

    fn sequences(input: &[u8]) -> (Vec<Sequence>, usize) {
        let (mut sequences, mut tally) = (Vec::new(), Tally::new());
        let tail = Matcher::new().find(input, 0, input.len(), &mut sequences, &mut tally);
        (sequences, tail)
    }

    #[test]
    fn common_counts_to_the_first_difference() {
        for length in 0..70 {
            let one = vec![1; length];
            assert_eq!(common(&one, &one), length);
            for differs in 0..length {
                let mut other = one.clone();
                other[differs] = 2;
                assert_eq!(common(&one, &other), differs);
            }
        }
    }

    #[test]
    fn long_matches_are_cut_into_parts_the_format_has() {
        for length in 4..1200 {
            let (mut sequences, mut tally) = (Vec::new(), Tally::new());
            push(5, 0, length, &mut sequences, &mut tally);
            let matched: usize = sequences.iter().map(|part| part.matched()).sum();
            assert_eq!(matched, length);
            assert_eq!(sequences[0].literals, 5);
            assert!(sequences[1..].iter().all(|part| part.literals == 0));
        }
    }

    #[test]
    fn the_window_ends_at_its_last_byte() {
        for (distance, found) in [(WINDOW - 1, true), (WINDOW, true), (WINDOW + 1, false)] {
            let mut input = vec![0; distance + 40];
            // Long runs of one byte keep the search at single steps.
            for (index, byte) in input.iter_mut().enumerate() {
                *byte = (index / 1000) as u8;
            }
            input[..20].copy_from_slice(b"abcdefghijklmnopqrst");
            input[distance..distance + 20].copy_from_slice(b"abcdefghijklmnopqrst");
            let (sequences, _) = sequences(&input);
            let far = |one: &Sequence| usize::from(one.distance) + 1 == distance;
            assert_eq!(sequences.iter().any(far), found, "{distance}");
        }
    }

    #[test]
    fn noise_is_passed_over_and_left_as_literals() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(4000)
        .collect();
        assert_eq!(sequences(&noise), (Vec::new(), 0));
    }
}
