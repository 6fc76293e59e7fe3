//! Compressed blocks (RFC 1951 sections 3.2.6 and 3.2.7): their codes, their size and their bits.

use crate::bits::{BitWriter, Room};
use crate::counts::Counts;
use crate::format::{
    DISTANCE_EXTRA, DISTANCES, END_OF_BLOCK, Extra, FIRST_LENGTH, KIND_BITS, KIND_DYNAMIC,
    KIND_FIXED, LENGTH_EXTRA, LENGTH_SYMBOL, LITERALS_AND_LENGTHS,
};
use crate::huffman::{Code, code_lengths, codes};
use crate::matches::Sequence;

/// The longest code for a literal, a length or a distance. The format allows 15, but with 14 four
/// literals fit into what the writer takes at a time, and a longer code would be for a symbol that
/// occurs once in 16,000 times.
const LONGEST_CODE: u8 = 14;
/// The longest code for a code length, as the format has it.
const LONGEST_LENGTH_CODE: u8 = 7;
/// How many symbols there are for code lengths.
const LENGTH_CODES: usize = 19;
/// The order in which the lengths of these symbols' codes are sent.
const LENGTH_CODE_ORDER: [usize; LENGTH_CODES] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
/// The symbols of all alphabets of a block.
const ALL: usize = LITERALS_AND_LENGTHS + DISTANCES;

/// The codes of a compressed block, by their lengths, and what it takes with them.
#[derive(Debug)]
pub(crate) struct Plan {
    lengths: Lengths,
    /// Absent when the codes are those that every decoder knows.
    header: Option<Header>,
    /// The size of the whole block in bits, exactly.
    pub(crate) bits: u64,
}

/// The lengths of the codes of both alphabets.
#[derive(Debug, Clone)]
struct Lengths {
    /// With the two symbols that have a fixed code and never occur.
    symbols: [u8; LITERALS_AND_LENGTHS + 2],
    distances: [u8; DISTANCES],
}

/// The codes of a block of fixed codes.
const FIXED: Lengths = {
    let mut symbols = [8; LITERALS_AND_LENGTHS + 2];
    let mut symbol = 144;
    while symbol < 280 {
        symbols[symbol] = if symbol < 256 { 9 } else { 7 };
        symbol += 1;
    }
    Lengths {
        symbols,
        distances: [5; DISTANCES],
    }
};

impl Lengths {
    /// The shortest codes for the counts.
    fn of(counts: &Counts) -> Self {
        let mut lengths = Self {
            symbols: [0; LITERALS_AND_LENGTHS + 2],
            distances: [0; DISTANCES],
        };
        let symbols = &mut lengths.symbols[..LITERALS_AND_LENGTHS];
        code_lengths(&counts.symbols, LONGEST_CODE, symbols);
        code_lengths(&counts.distances, LONGEST_CODE, &mut lengths.distances);
        lengths
    }

    /// The bits that a block with these counts takes, without what describes the codes.
    fn bits(&self, counts: &Counts) -> u64 {
        let symbols = counts.symbols.iter().zip(&self.symbols);
        let distances = counts.distances.iter().zip(&self.distances);
        let of_codes = symbols
            .chain(distances)
            .map(|(&count, &length)| u64::from(count) * u64::from(length));
        let lengths = counts.symbols[FIRST_LENGTH..].iter().zip(&LENGTH_EXTRA);
        let distances = counts.distances.iter().zip(&DISTANCE_EXTRA);
        let of_extras = lengths
            .chain(distances)
            .map(|(&count, extra)| u64::from(count) * u64::from(extra.bits));
        of_codes.sum::<u64>() + of_extras.sum::<u64>() + u64::from(KIND_BITS)
    }
}

impl Plan {
    /// The smaller of a block of fixed codes and one of its own.
    pub(crate) fn of(counts: &Counts) -> Self {
        let lengths = Lengths::of(counts);
        let header = Header::of(&lengths);
        let bits = lengths.bits(counts) + header.bits;
        let fixed = FIXED.bits(counts);
        if fixed <= bits {
            return Self {
                lengths: FIXED,
                header: None,
                bits: fixed,
            };
        }
        Self {
            lengths,
            header: Some(header),
            bits,
        }
    }

    /// Writes the block. The plan was made of the counts of these sequences, which make up `input`.
    pub(crate) fn write(&self, input: &[u8], sequences: &[Sequence], writer: &mut BitWriter<'_>) {
        let tables = Tables::of(&self.lengths);
        writer.with_room(self.bits, |room| {
            match &self.header {
                None => room.put(KIND_FIXED, KIND_BITS),
                Some(header) => {
                    room.put(KIND_DYNAMIC, KIND_BITS);
                    header.write(room);
                }
            }
            tables.write(input, sequences, room);
        });
    }
}

/// What a block sends ahead to describe its codes.
#[derive(Debug)]
struct Header {
    symbols: usize,
    distances: usize,
    /// The lengths of both alphabets' codes with runs shortened: a symbol and what is in its extra
    /// bits.
    runs: [(u8, u8); ALL],
    run_count: usize,
    /// The lengths of the codes of the symbols in `runs`.
    lengths: [u8; LENGTH_CODES],
    /// How many of them are sent.
    length_count: usize,
    bits: u64,
}

/// Repeats the length before, three to six times.
const REPEAT: u8 = 16;
/// Three to ten zeros.
const ZEROS: u8 = 17;
/// Eleven to 138 zeros.
const MANY_ZEROS: u8 = 18;

/// How many bits follow a symbol for a code length.
fn run_bits(symbol: u8) -> u32 {
    match symbol {
        REPEAT => 2,
        ZEROS => 3,
        MANY_ZEROS => 7,
        _ => 0,
    }
}

impl Header {
    fn of(lengths: &Lengths) -> Self {
        // Lengths at the end that are zero need not be sent; the end of the block always is there.
        let used = |lengths: &[u8]| lengths.iter().rposition(|&length| length > 0);
        let symbols = used(&lengths.symbols).map_or(FIRST_LENGTH, |last| last + 1);
        let symbols = symbols.max(FIRST_LENGTH);
        let distances = used(&lengths.distances).map_or(1, |last| last + 1);

        let mut all = [0; ALL];
        all[..symbols].copy_from_slice(&lengths.symbols[..symbols]);
        all[symbols..symbols + distances].copy_from_slice(&lengths.distances[..distances]);
        let mut runs = [(0, 0); ALL];
        let run_count = shorten(&all[..symbols + distances], &mut runs);

        let mut frequencies = [0; LENGTH_CODES];
        for (symbol, _) in &runs[..run_count] {
            frequencies[usize::from(*symbol)] += 1;
        }
        let mut lengths = [0; LENGTH_CODES];
        code_lengths(&frequencies, LONGEST_LENGTH_CODE, &mut lengths);
        let sent = LENGTH_CODE_ORDER
            .iter()
            .rposition(|&symbol| lengths[symbol] > 0);
        let length_count = sent.map_or(4, |last| last + 1).max(4);

        let of_runs = runs[..run_count].iter().map(|&(symbol, _)| {
            u64::from(lengths[usize::from(symbol)]) + u64::from(run_bits(symbol))
        });
        Self {
            symbols,
            distances,
            runs,
            run_count,
            lengths,
            length_count,
            bits: 5 + 5 + 4 + 3 * length_count as u64 + of_runs.sum::<u64>(),
        }
    }

    fn write(&self, room: &mut Room<'_>) {
        room.put((self.symbols - FIRST_LENGTH) as u64, 5);
        room.put((self.distances - 1) as u64, 5);
        room.put((self.length_count - 4) as u64, 4);
        room.flush();
        for &symbol in &LENGTH_CODE_ORDER[..self.length_count] {
            room.put(self.lengths[symbol].into(), 3);
            room.flush();
        }
        let mut run_codes = [Code::default(); LENGTH_CODES];
        codes(&self.lengths, &mut run_codes);
        for &(symbol, extra) in &self.runs[..self.run_count] {
            let code = run_codes[usize::from(symbol)];
            room.put(code.bits.into(), code.length.into());
            room.put(extra.into(), run_bits(symbol));
            room.flush();
        }
    }
}

/// Shortens runs of equal lengths, which may go from one alphabet into the other. Says how many
/// entries of `runs` it took: never more than there are lengths.
fn shorten(lengths: &[u8], runs: &mut [(u8, u8); ALL]) -> usize {
    let mut count = 0;
    let mut put = |symbol, extra: usize| {
        runs[count] = (symbol, extra as u8);
        count += 1;
    };
    for run in lengths.chunk_by(|one, next| one == next) {
        let length = run[0];
        let mut left = run.len();
        if length == 0 {
            while left >= 11 {
                let zeros = left.min(138);
                put(MANY_ZEROS, zeros - 11);
                left -= zeros;
            }
            if left >= 3 {
                put(ZEROS, left - 3);
                left = 0;
            }
        } else {
            put(length, 0);
            left -= 1;
            while left >= 3 {
                let repeats = left.min(6);
                put(REPEAT, repeats - 3);
                left -= repeats;
            }
        }
        for _ in 0..left {
            put(length, 0);
        }
    }
    count
}

/// Codes as they are looked up, byte by byte.
struct Tables {
    literals: [Packed; 256],
    /// By length less the shortest, with the extra bits.
    lengths: [Packed; 256],
    /// By symbol; the extra bits depend on more than that.
    distances: [DistanceCode; 32],
    end: Packed,
}

/// Bits above their number, which is in the lowest eight: a code and extra bits for a length take
/// at most 19.
#[derive(Debug, Clone, Copy, Default)]
struct Packed(u32);

impl Packed {
    fn new(bits: u32, count: u8) -> Self {
        Self(bits << 8 | u32::from(count))
    }

    #[inline(always)]
    fn put(self, room: &mut Room<'_>) {
        room.put((self.0 >> 8).into(), self.0 & 0xff);
    }
}

/// A distance's code, and how its extra bits come about.
#[derive(Debug, Clone, Copy, Default)]
struct DistanceCode {
    code: Code,
    base: u16,
    /// Of the code and the extra bits.
    count: u8,
}

impl Tables {
    fn of(lengths: &Lengths) -> Self {
        let mut symbols = [Code::default(); LITERALS_AND_LENGTHS + 2];
        codes(&lengths.symbols, &mut symbols);
        let mut distance_codes = [Code::default(); DISTANCES];
        codes(&lengths.distances, &mut distance_codes);

        let packed = |code: Code| Packed::new(code.bits.into(), code.length);
        let mut tables = Self {
            literals: [Packed::default(); 256],
            lengths: [Packed::default(); 256],
            distances: [DistanceCode::default(); 32],
            end: packed(symbols[END_OF_BLOCK]),
        };
        for (literal, code) in tables.literals.iter_mut().zip(symbols) {
            *literal = packed(code);
        }
        for (length, entry) in tables.lengths.iter_mut().enumerate() {
            let symbol = usize::from(LENGTH_SYMBOL[length]);
            let Extra { base, bits } = LENGTH_EXTRA[symbol];
            let code = symbols[FIRST_LENGTH + symbol];
            let extra = (length as u32 - u32::from(base)) << code.length;
            *entry = Packed::new(u32::from(code.bits) | extra, code.length + bits);
        }
        let codes = distance_codes.into_iter().zip(DISTANCE_EXTRA);
        for (entry, (code, extra)) in tables.distances.iter_mut().zip(codes) {
            *entry = DistanceCode {
                code,
                base: extra.base,
                count: code.length + extra.bits,
            };
        }
        tables
    }

    /// Writes the sequences and the end of the block.
    #[inline(always)]
    fn write(&self, mut input: &[u8], sequences: &[Sequence], room: &mut Room<'_>) {
        for sequence in sequences {
            // What was put before is a match, at most 46 bits, or the beginning of the block.
            room.flush();
            let (literals, rest) = input.split_at(sequence.literals as usize);
            let (fours, last) = literals.as_chunks::<4>();
            for four in fours {
                for byte in four {
                    self.literals[usize::from(*byte)].put(room);
                }
                room.flush();
            }
            for byte in last {
                self.literals[usize::from(*byte)].put(room);
            }
            let matched = sequence.matched();
            input = &rest[matched..];
            if matched > 0 {
                // A match after three literals could be too much.
                if !last.is_empty() {
                    room.flush();
                }
                self.lengths[usize::from(sequence.length)].put(room);
                let DistanceCode { code, base, count } =
                    self.distances[usize::from(sequence.symbol) % 32];
                let extra = u64::from(sequence.distance.wrapping_sub(base));
                room.put(u64::from(code.bits) | extra << code.length, count.into());
            }
        }
        room.flush();
        self.end.put(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_lengths_are_shortened() {
        type Runs<'a> = &'a [(u8, u8)];
        let table: &[(&[u8], Runs<'_>)] = &[
            (&[5], &[(5, 0)]),
            (&[5, 5, 5], &[(5, 0), (5, 0), (5, 0)]),
            (&[5, 5, 5, 5], &[(5, 0), (16, 0)]),
            (&[5; 9], &[(5, 0), (16, 3), (5, 0), (5, 0)]),
            (&[0, 0], &[(0, 0), (0, 0)]),
            (&[0; 10], &[(17, 7)]),
            (&[0; 11], &[(18, 0)]),
            (&[0; 140], &[(18, 127), (0, 0), (0, 0)]),
            (&[0; 141], &[(18, 127), (17, 0)]),
            (&[7, 0, 7], &[(7, 0), (0, 0), (7, 0)]),
        ];
        for (lengths, expected) in table {
            let mut runs = [(0, 0); ALL];
            let count = shorten(lengths, &mut runs);
            assert_eq!(&runs[..count], *expected, "{lengths:?}");
        }
    }

    #[test]
    fn a_plan_knows_its_size_to_the_bit() {
        let sequences = [
            Sequence {
                literals: 9,
                distance: 4,
                length: 255,
                symbol: crate::format::distance_symbol(4),
            },
            Sequence {
                literals: 2,
                distance: 0,
                length: 0,
                symbol: crate::matches::NO_MATCH,
            },
        ];
        let input = [b"abcdefghi".to_vec(), vec![0; 258], b"xy".to_vec()].concat();
        for copies in [1, 40] {
            let mut tally = crate::counts::Tally::new();
            for _ in 0..copies {
                tally.literals(b"abcdefghixy");
                tally.repetition(255, sequences[0].symbol);
            }
            let plan = Plan::of(&tally.take());
            assert_eq!(plan.header.is_some(), copies > 1);
            let mut bytes = Vec::new();
            let mut writer = BitWriter::new(&mut bytes);
            plan.write(
                &input.repeat(copies),
                &sequences.repeat(copies),
                &mut writer,
            );
            assert_eq!(writer.position(), plan.bits);
        }
    }
}
