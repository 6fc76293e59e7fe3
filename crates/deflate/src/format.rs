//! The symbols of RFC 1951 section 3.2.5: which code stands for a length or a distance, and what
//! its extra bits add.
//!
//! Lengths are kept less [`SHORTEST`] and distances less one, so that both start at zero and fit a
//! byte and sixteen bits.

/// How many literal and length symbols may occur: 256 bytes, the end of a block, 29 lengths.
pub(crate) const LITERALS_AND_LENGTHS: usize = FIRST_LENGTH + LENGTHS;
/// The symbol that ends a block.
pub(crate) const END_OF_BLOCK: usize = 256;
/// The symbol of the shortest length.
pub(crate) const FIRST_LENGTH: usize = 257;
/// How many symbols stand for lengths.
pub(crate) const LENGTHS: usize = 29;
/// How many symbols stand for distances.
pub(crate) const DISTANCES: usize = 30;
/// The shortest match of the format.
pub(crate) const SHORTEST: usize = 3;
/// The longest match of the format.
pub(crate) const LONGEST: usize = 258;
/// How far back a match may reach.
pub(crate) const WINDOW: usize = 1 << 15;
/// The most bytes that a stored block holds.
pub(crate) const STORED_MOST: usize = 65_535;

/// The two bits that say of which kind a block is, behind the bit for the last one, which is never
/// set here.
pub(crate) const KIND_STORED: u64 = 0b000;
/// See [`KIND_STORED`].
pub(crate) const KIND_FIXED: u64 = 0b010;
/// See [`KIND_STORED`].
pub(crate) const KIND_DYNAMIC: u64 = 0b100;
/// How long the above are.
pub(crate) const KIND_BITS: u32 = 3;

/// A symbol's share of a number: where it begins, and how many bits say how far to go from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extra {
    /// The least number that the symbol stands for.
    pub(crate) base: u16,
    /// The bits behind the symbol, to be added to the base.
    pub(crate) bits: u8,
}

/// The lengths' symbols, from [`FIRST_LENGTH`] on.
pub(crate) const LENGTH_EXTRA: [Extra; LENGTHS] = {
    let mut table = [Extra { base: 0, bits: 0 }; LENGTHS];
    let mut symbol = 0;
    // Eight symbols without extra bits, then four to each number of extra bits.
    while symbol < LENGTHS - 1 {
        table[symbol] = spread(symbol as u16, 4);
        symbol += 1;
    }
    // The longest match has a symbol of its own, though the one before could have said it.
    table[symbol].base = (LONGEST - SHORTEST) as u16;
    table
};

/// The distances' symbols: four without extra bits, then two to each number of extra bits.
pub(crate) const DISTANCE_EXTRA: [Extra; DISTANCES] = {
    let mut table = [Extra { base: 0, bits: 0 }; DISTANCES];
    let mut symbol = 0;
    while symbol < DISTANCES {
        table[symbol] = spread(symbol as u16, 2);
        symbol += 1;
    }
    table
};

/// What a symbol stands for where `each` symbols share a number of extra bits.
const fn spread(symbol: u16, each: u16) -> Extra {
    if symbol < 2 * each {
        return Extra {
            base: symbol,
            bits: 0,
        };
    }
    let bits = symbol / each - 1;
    Extra {
        base: (each + symbol % each) << bits,
        bits: bits as u8,
    }
}

/// The symbol of each length, counted from [`FIRST_LENGTH`].
pub(crate) const LENGTH_SYMBOL: [u8; 256] = {
    let mut table = [0; 256];
    let mut symbol = 0;
    while symbol < LENGTHS {
        let Extra { base, bits } = LENGTH_EXTRA[symbol];
        let mut length = base as usize;
        // The last symbol but one would reach the longest length too: it is overwritten.
        while length < base as usize + (1 << bits) {
            table[length] = symbol as u8;
            length += 1;
        }
        symbol += 1;
    }
    table
};

/// The symbols of the distances below 256, then of every 128th: from there on a symbol's first
/// distance is a multiple of 128.
const DISTANCE_SYMBOL: [u8; 512] = {
    let mut table = [0; 512];
    let mut symbol = 0;
    while symbol < DISTANCES {
        let Extra { base, bits } = DISTANCE_EXTRA[symbol];
        let mut distance = base as usize;
        while distance < base as usize + (1 << bits) {
            if distance < 256 {
                table[distance] = symbol as u8;
            } else {
                table[256 + (distance >> 7)] = symbol as u8;
            }
            distance += 1;
        }
        symbol += 1;
    }
    table
};

/// The symbol of a distance less one.
#[inline]
pub(crate) fn distance_symbol(distance: u16) -> u8 {
    let distance = usize::from(distance) % WINDOW;
    if distance < 256 {
        DISTANCE_SYMBOL[distance]
    } else {
        DISTANCE_SYMBOL[256 + (distance >> 7)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_those_of_the_rfc() {
        let lengths = LENGTH_EXTRA.map(|extra| (extra.base + 3, extra.bits));
        assert_eq!(
            lengths[..9],
            [
                (3, 0),
                (4, 0),
                (5, 0),
                (6, 0),
                (7, 0),
                (8, 0),
                (9, 0),
                (10, 0),
                (11, 1)
            ]
        );
        assert_eq!(
            lengths[20..],
            [
                (67, 4),
                (83, 4),
                (99, 4),
                (115, 4),
                (131, 5),
                (163, 5),
                (195, 5),
                (227, 5),
                (258, 0)
            ]
        );
        let distances = DISTANCE_EXTRA.map(|extra| (extra.base + 1, extra.bits));
        assert_eq!(
            distances[..6],
            [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (7, 1)]
        );
        assert_eq!(
            distances[26..],
            [(8193, 12), (12289, 12), (16385, 13), (24577, 13)]
        );
    }

    #[test]
    fn every_number_is_within_reach_of_its_symbol() {
        for length in 0..=255_u16 {
            let Extra { base, bits } =
                LENGTH_EXTRA[usize::from(LENGTH_SYMBOL[usize::from(length)])];
            assert!((base..base + (1 << bits)).contains(&length), "{length}");
        }
        for distance in 0..WINDOW as u16 {
            let Extra { base, bits } = DISTANCE_EXTRA[usize::from(distance_symbol(distance))];
            assert!((base..base + (1 << bits)).contains(&distance), "{distance}");
        }
    }
}
