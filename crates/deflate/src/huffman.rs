//! Prefix codes: lengths from frequencies, codes from lengths.

/// The most symbols that an alphabet here has.
const SYMBOLS: usize = crate::format::LITERALS_AND_LENGTHS + 2;

/// A code as it is put into the stream: its first bit lowest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) bits: u16,
    pub(crate) length: u8,
}

/// Finds the length of every symbol's code, none above `limit`, zero for symbols that do not
/// occur.
///
/// The code is complete, that is, every sequence of bits begins with a code: decoders refuse
/// anything else. One symbol alone could not have a complete code, so fewer than two symbols that
/// occur are joined by the first ones that do not.
pub(crate) fn code_lengths(frequencies: &[u32], limit: u8, lengths: &mut [u8]) {
    lengths.fill(0);
    // Frequency first, then the symbol: no two are equal, so any way to sort gives one order.
    let mut order = [0_u64; SYMBOLS];
    let mut used = 0;
    for (symbol, &frequency) in frequencies.iter().enumerate() {
        if frequency > 0 {
            order[used] = u64::from(frequency) << 16 | symbol as u64;
            used += 1;
        }
    }
    let mut spare = (0..).filter(|&symbol| frequencies[symbol] == 0);
    while used < 2 {
        order[used] = spare.next().map_or(0, |symbol| symbol as u64);
        used += 1;
    }
    let order = &mut order[..used];
    order.sort_unstable();

    let mut of_length = lengths_of_tree(order, limit);
    fit(&mut of_length, limit);

    let mut rarest = order.iter();
    for length in (1..=limit).rev() {
        for key in rarest
            .by_ref()
            .take(of_length[usize::from(length)] as usize)
        {
            lengths[(key & 0xffff) as usize] = length;
        }
    }
}

/// Room for lengths 0 to 15.
type OfLength = [u32; 16];

/// Counts the leaves at each depth of Huffman's tree over the sorted frequencies; those deeper than
/// `limit` count as being at it.
///
/// Both the leaves and the inner nodes come by growing weight, so that the two lightest are always
/// at the head of one of two queues.
fn lengths_of_tree(order: &[u64], limit: u8) -> OfLength {
    let leaves = order.len();
    let mut weight = [0_u32; SYMBOLS];
    // Of the inner nodes alone, as the leaves' depths follow from where they were taken.
    let mut parent_of_leaf = [0_u16; SYMBOLS];
    let mut parent = [0_u16; SYMBOLS];
    let (mut leaf, mut inner) = (0, 0);
    for node in 0..leaves - 1 {
        let mut sum = 0;
        for _ in 0..2 {
            let light = order.get(leaf).map(|key| (key >> 16) as u32);
            match light {
                Some(light) if inner == node || light <= weight[inner] => {
                    parent_of_leaf[leaf] = node as u16;
                    sum += light;
                    leaf += 1;
                }
                _ => {
                    parent[inner] = node as u16;
                    sum += weight[inner];
                    inner += 1;
                }
            }
        }
        weight[node] = sum;
    }
    let mut depth = [0_u8; SYMBOLS];
    for node in (0..leaves - 2).rev() {
        depth[node] = depth[usize::from(parent[node])].saturating_add(1);
    }
    let mut of_length = OfLength::default();
    for &parent in &parent_of_leaf[..leaves] {
        let length = depth[usize::from(parent)].saturating_add(1).min(limit);
        of_length[usize::from(length)] += 1;
    }
    of_length
}

/// Makes the code complete again after long codes were cut to `limit`.
///
/// In units of the longest code, a code of length `l` takes `2^(limit - l)` of the `2^limit` there
/// are. Each cut code takes less than one unit too much, so the excess is below the number of
/// codes at the limit. A step takes one unit back: of two codes, one of a length `l` below the
/// limit and one at the limit, it makes two of length `l + 1`. It cannot run out of either: at the
/// limit there are more codes than steps, and if all codes were there, then fewer than `2^limit`
/// symbols would not exceed.
fn fit(of_length: &mut OfLength, limit: u8) {
    let limit = usize::from(limit);
    let taken: u32 = (1..=limit)
        .map(|length| of_length[length] << (limit - length))
        .sum();
    for _ in 1 << limit..taken {
        let shorter = (1..limit).rev().find(|&length| of_length[length] > 0);
        let shorter = shorter.expect("fewer symbols than codes of the longest length");
        of_length[shorter] -= 1;
        of_length[limit] -= 1;
        of_length[shorter + 1] += 2;
    }
}

/// Gives out the codes of RFC 1951 section 3.2.2: by length, then by symbol.
pub(crate) fn codes(lengths: &[u8], codes: &mut [Code]) {
    let mut of_length = [0_u16; 16];
    for &length in lengths {
        of_length[usize::from(length & 15)] += 1;
    }
    of_length[0] = 0;
    let mut next = [0_u16; 16];
    for length in 1..16 {
        next[length] = (next[length - 1] + of_length[length - 1]) << 1;
    }
    for (code, &length) in codes.iter_mut().zip(lengths) {
        *code = Code::default();
        if length > 0 {
            let next = &mut next[usize::from(length & 15)];
            *code = Code {
                // The stream takes a code from its most significant bit on.
                bits: next.reverse_bits() >> (16 - length),
                length,
            };
            *next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lengths_of(frequencies: &[u32], limit: u8) -> Vec<u8> {
        let mut lengths = vec![99; frequencies.len()];
        code_lengths(frequencies, limit, &mut lengths);
        lengths
    }

    /// In 2^15th parts of all there are.
    fn taken(lengths: &[u8]) -> u32 {
        let used = lengths.iter().filter(|&&length| length > 0);
        used.map(|&length| 1 << (15 - length)).sum()
    }

    #[test]
    fn lengths_of_small_alphabets() {
        let table: &[(&[u32], &[u8])] = &[
            (&[0, 0, 0], &[1, 1, 0]),
            (&[9, 0, 0], &[1, 1, 0]),
            (&[0, 0, 9], &[1, 0, 1]),
            (&[0, 3, 9], &[0, 1, 1]),
            (&[1, 1, 2], &[2, 2, 1]),
            (&[1, 1, 1, 1], &[2, 2, 2, 2]),
            (&[1, 1, 2, 3, 5], &[4, 4, 3, 2, 1]),
        ];
        for (frequencies, expected) in table {
            assert_eq!(lengths_of(frequencies, 14), *expected, "{frequencies:?}");
        }
    }

    #[test]
    fn lengths_keep_to_the_limit_where_frequencies_grow_as_fibonacci_numbers() {
        let mut frequencies = vec![1, 1];
        while frequencies.len() < 40 {
            let sum = frequencies[frequencies.len() - 1] + frequencies[frequencies.len() - 2];
            frequencies.push(sum);
        }
        for limit in 6..=15 {
            let lengths = lengths_of(&frequencies, limit);
            assert_eq!(lengths.iter().max(), Some(&limit));
            assert_eq!(taken(&lengths), 1 << 15, "{limit}");
            assert!(lengths.is_sorted_by(|one, next| one >= next));
        }
        let lengths = lengths_of(&frequencies[..19], 7);
        assert_eq!(taken(&lengths), 1 << 15);
    }

    #[test]
    fn codes_are_those_of_the_rfc() {
        // Its example in 3.2.2: ABCDEFGH with these lengths, codes here read from the lowest bit.
        let mut found = [Code::default(); 8];
        codes(&[3, 3, 3, 3, 3, 2, 4, 4], &mut found);
        let bits = found.map(|code| code.bits);
        assert_eq!(
            bits,
            [0b010, 0b110, 0b001, 0b101, 0b011, 0b00, 0b0111, 0b1111]
        );
    }

    proptest! {
        #[test]
        fn codes_are_complete_and_shorter_for_what_is_frequent(
            frequencies in prop::collection::vec(
                prop_oneof![Just(0), 1..4_u32, 0..300_u32, 0..250_000_u32],
                2..=286,
            ),
            limit in 9..=15_u8,
        ) {
            let lengths = lengths_of(&frequencies, limit);
            prop_assert_eq!(taken(&lengths), 1 << 15);
            prop_assert!(lengths.iter().all(|&length| length <= limit));
            for (one, &frequency) in frequencies.iter().enumerate() {
                prop_assert!(frequency == 0 || lengths[one] > 0);
                for (other, &rarer) in frequencies.iter().enumerate() {
                    let shorter = lengths[one] <= lengths[other] || lengths[other] == 0;
                    prop_assert!(rarer >= frequency || shorter);
                }
            }
        }

        /// Without a limit in the way the code is as short as any: Huffman's sum of merged weights.
        #[test]
        fn codes_are_the_shortest(frequencies in prop::collection::vec(1..50_u32, 2..60)) {
            let lengths = lengths_of(&frequencies, 15);
            let bits: u32 = frequencies.iter().zip(&lengths).map(|(f, l)| f * u32::from(*l)).sum();
            let mut heap: std::collections::BinaryHeap<_> =
                frequencies.iter().map(|&f| std::cmp::Reverse(f)).collect();
            let mut best = 0;
            while let (Some(one), Some(other)) = (heap.pop(), heap.pop()) {
                best += one.0 + other.0;
                heap.push(std::cmp::Reverse(one.0 + other.0));
                if heap.len() == 1 {
                    break;
                }
            }
            prop_assert_eq!(bits, best);
        }
    }
}
