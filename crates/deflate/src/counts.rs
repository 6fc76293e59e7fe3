//! How often each symbol occurs, and what that is worth.

use crate::format::{DISTANCES, END_OF_BLOCK, FIRST_LENGTH, LENGTH_SYMBOL, LITERALS_AND_LENGTHS};

/// Counts as the search goes: by what is cheapest to count, not by symbol.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Literals, in four tables taken in turn: a counter that was just written is slow to read, and
    /// neighbours are often equal.
    literals: [[u32; 256]; 4],
    /// Lengths less the shortest.
    lengths: [u32; 256],
    /// Distances by symbol. There is room for all that five bits can say.
    distances: [u32; 32],
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            literals: [[0; 256]; 4],
            lengths: [0; 256],
            distances: [0; 32],
        }
    }

    #[inline(always)]
    pub(crate) fn literals(&mut self, literals: &[u8]) {
        let (fours, rest) = literals.as_chunks::<4>();
        for four in fours {
            for (table, byte) in self.literals.iter_mut().zip(four) {
                table[usize::from(*byte)] += 1;
            }
        }
        for (table, byte) in self.literals.iter_mut().zip(rest) {
            table[usize::from(*byte)] += 1;
        }
    }

    /// Counts a match of a length less the shortest, at a distance with this symbol.
    #[inline(always)]
    pub(crate) fn repetition(&mut self, length: u8, distance_symbol: u8) {
        self.lengths[usize::from(length)] += 1;
        self.distances[usize::from(distance_symbol) % 32] += 1;
    }

    /// What was counted, by symbol; the tally starts anew.
    pub(crate) fn take(&mut self) -> Counts {
        let mut counts = Counts::default();
        let (literals, other) = counts.symbols.split_at_mut(END_OF_BLOCK);
        for table in &self.literals {
            sum(literals, table);
        }
        other[0] = 1;
        for (length, count) in self.lengths.iter().enumerate() {
            counts.symbols[FIRST_LENGTH + usize::from(LENGTH_SYMBOL[length])] += count;
        }
        sum(&mut counts.distances, &self.distances);
        *self = Self::new();
        counts
    }
}

/// The frequencies of both alphabets in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Literals, the end of the block (once), lengths.
    pub(crate) symbols: [u32; LITERALS_AND_LENGTHS],
    /// Distances.
    pub(crate) distances: [u32; DISTANCES],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            symbols: [0; LITERALS_AND_LENGTHS],
            distances: [0; DISTANCES],
        }
    }
}

impl Counts {
    /// The counts of one block made of two.
    pub(crate) fn joined(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        sum(&mut joined.symbols, &other.symbols);
        sum(&mut joined.distances, &other.distances);
        joined.symbols[END_OF_BLOCK] = 1;
        joined
    }

    /// About the 256th parts of bits that the symbols take in the best code for them, without extra
    /// bits and without the code itself: enough to compare one way to cut blocks with another.
    pub(crate) fn entropy(&self) -> u64 {
        information(&self.symbols) + information(&self.distances)
    }
}

fn sum(to: &mut [u32], from: &[u32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// Shannon's: each of `n` symbols that occurs `c` times takes `log(n / c)` bits. As logarithms grow
/// with their numbers, rounded ones too, the difference is never negative.
fn information(counts: &[u32]) -> u64 {
    let total: u32 = counts.iter().sum();
    let parts: u64 = counts.iter().map(|&count| times_log(count)).sum();
    times_log(total) - parts
}

/// A number times its binary logarithm, in 256th parts, from the number's first nine bits.
#[inline]
fn times_log(number: u32) -> u64 {
    let whole = (number | 1).ilog2();
    let digits = (u64::from(number) << 8 >> whole) % 256;
    let log = whole * 256 + u32::from(LOG[digits as usize]);
    u64::from(number) * u64::from(log)
}

/// The logarithms of `1 + index / 256`, in 256th parts, rounded down. In whole numbers, as floating
/// point is not the same everywhere: to square a number doubles its logarithm, which brings the
/// binary digits out one after the other.
const LOG: [u8; 256] = {
    let one = 1_u64 << 30;
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut number = one + ((index as u64) << 22);
        let mut digits = 0;
        while digits < 8 {
            number = number * number / one;
            table[index] = table[index] << 1 | (number >= 2 * one) as u8;
            if number >= 2 * one {
                number /= 2;
            }
            digits += 1;
        }
        index += 1;
    }
    table
};

/// Of how many bytes [`is_flat`] takes the first [`SAMPLE`].
const SAMPLE_EVERY: usize = 512;
/// See [`SAMPLE_EVERY`].
const SAMPLE: usize = 64;
/// Fewer bytes than this are too few to tell from a sample.
const SAMPLED_LEAST: usize = 16 << 10;

/// Whether all bytes are about equally frequent, so that no code could make them shorter: a guess
/// from an eighth of them, since exact costs would take longer than to copy noise away.
///
/// The chance that two of the sampled bytes are equal is 1/256 if all are equally frequent, and
/// more otherwise. Its negative logarithm is Rényi's entropy, never above Shannon's. So with at most
/// 33/32 of that chance a code would save less than 0.6 %; noise stays below with a margin of five
/// standard deviations.
pub(crate) fn is_flat(bytes: &[u8]) -> bool {
    if bytes.len() < SAMPLED_LEAST {
        return false;
    }
    let mut counts = [0_u32; 256];
    let mut sampled = 0_u64;
    for stretch in bytes.chunks_exact(SAMPLE_EVERY) {
        for &byte in &stretch[..SAMPLE] {
            counts[usize::from(byte)] += 1;
        }
        sampled += SAMPLE as u64;
    }
    let equal: u64 = counts
        .iter()
        .map(|&count| u64::from(count) * u64::from(count.saturating_sub(1)))
        .sum();
    let pairs = sampled * (sampled - 1);
    equal * 256 * 32 < pairs * 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_those_of_the_textbook() {
        for (index, log) in (0_u16..).zip(&LOG) {
            let exact = (1.0 + f64::from(index) / 256.0).log2() * 256.0;
            assert!(
                (exact - f64::from(*log)).abs() <= 1.0,
                "{index}: {exact}, {log}"
            );
        }
        assert!(LOG.is_sorted());
        assert_eq!(times_log(0), 0);
        assert_eq!(times_log(1), 0);
        assert_eq!(times_log(1 << 18), (18 << 18) * 256);
    }

    #[test]
    fn entropy_is_that_of_the_textbook() {
        let mut counts = Counts::default();
        counts.symbols[..256].fill(16);
        assert_eq!(counts.entropy(), 256 * 16 * 8 * 256);
        let mut counts = Counts::default();
        counts.symbols[7] = 1000;
        assert_eq!(counts.entropy(), 0);
    }

    #[test]
    fn a_tally_counts_each_thing_once() {
        let mut tally = Tally::new();
        tally.literals(b"abcdea");
        tally.repetition(0, 3);
        tally.repetition(255, 29);
        let counts = tally.take();
        assert_eq!(counts.symbols[usize::from(b'a')], 2);
        assert_eq!(counts.symbols[..END_OF_BLOCK].iter().sum::<u32>(), 6);
        assert_eq!(counts.symbols[END_OF_BLOCK], 1);
        assert_eq!((counts.symbols[257], counts.symbols[285]), (1, 1));
        assert_eq!((counts.distances[3], counts.distances[29]), (1, 1));
        let both = counts.joined(&counts);
        assert_eq!(both.symbols[usize::from(b'a')], 4);
        assert_eq!(both.symbols[END_OF_BLOCK], 1);
        let mut nothing = Counts::default();
        nothing.symbols[END_OF_BLOCK] = 1;
        assert_eq!(tally.take(), nothing);
    }

    #[test]
    fn only_noise_is_flat() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(32 << 10)
        .collect();
        assert!(is_flat(&noise));
        assert!(!is_flat(&noise[..1000]));
        assert!(!is_flat(&vec![3; 32 << 10]));
        let narrower: Vec<u8> = noise.iter().map(|byte| byte.saturating_sub(16)).collect();
        assert!(!is_flat(&narrower));
    }
}
