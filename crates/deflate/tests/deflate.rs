//! What is compressed comes back, through two decoders that share nothing with the encoder or with
//! each other, and is the same bytes every time.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the numbers are arbitrary"
)]

use std::io::Read;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tierce_deflate::{Encoder, LONGEST_SEGMENT, SegmentTooLong, longest_encoding};

/// Marsaglia's xorshift64: the same numbers wherever the tests run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 11) % limit.max(1) as u64) as usize
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| (self.next() >> 32) as u8).collect()
    }

    /// Words of a small vocabulary, the first ones most often.
    fn text(&mut self, length: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(length + 16);
        while text.len() < length {
            let range = 1 << self.below(10);
            let word = self.below(range) as u64;
            for letter in 0..2 + word % 7 {
                text.push(b'a' + ((word * 31 + letter * letter * 17) % 26) as u8);
            }
            text.push(if self.below(12) == 0 { b'\n' } else { b' ' });
        }
        text.truncate(length);
        text
    }

    /// About normally distributed numbers near zero as bf16, like the weights of a model.
    fn weights(&mut self, length: usize) -> Vec<u8> {
        let mut weights = Vec::with_capacity(length + 2);
        while weights.len() < length {
            let sum: i32 = (0..8).map(|_| (self.next() >> 40) as i32 & 0xffff).sum();
            let weight = (sum - 4 * 0xffff) as f32 * 1e-6;
            weights.extend_from_slice(&weight.to_bits().to_le_bytes()[2..]);
        }
        weights.truncate(length);
        weights
    }

    fn runs(&mut self, length: usize) -> Vec<u8> {
        let mut runs = Vec::with_capacity(length);
        while runs.len() < length {
            let (byte, count) = (self.below(4) as u8, 1 + self.below(600));
            runs.resize(length.min(runs.len() + count), byte);
        }
        runs
    }

    /// Noise of which pieces come again, up to past the window's end.
    fn repeats(&mut self, length: usize) -> Vec<u8> {
        let mut repeats = Vec::with_capacity(length + 700);
        while repeats.len() < length {
            let count = 1 + self.below(300);
            if repeats.len() < 16 || self.below(3) == 0 {
                let noise = self.noise(count);
                repeats.extend(noise);
            } else {
                let back = 1 + self.below(repeats.len().min(33_000));
                for _ in 0..2 * count {
                    repeats.push(repeats[repeats.len() - back]);
                }
            }
        }
        repeats.truncate(length);
        repeats
    }

    fn narrow(&mut self, length: usize) -> Vec<u8> {
        let symbols = 1 + self.below(20);
        (0..length).map(|_| self.below(symbols) as u8).collect()
    }

    fn any_kind(&mut self, length: usize) -> Vec<u8> {
        match self.below(7) {
            0 => self.noise(length),
            1 => self.text(length),
            2 => self.weights(length),
            3 => self.runs(length),
            4 => self.repeats(length),
            5 => self.narrow(length),
            _ => vec![self.next() as u8; length],
        }
    }

    /// Stretches of all kinds.
    fn mixed(&mut self, length: usize) -> Vec<u8> {
        let mut mixed = Vec::with_capacity(length);
        while mixed.len() < length {
            let part = 1 << self.below(17);
            let part = 1 + self.below(part);
            let part = self.any_kind(part.min(length - mixed.len()));
            mixed.extend(part);
        }
        mixed
    }
}

fn encode(encoder: &mut Encoder, segment: &[u8]) -> Vec<u8> {
    let mut blocks = Vec::new();
    encoder.encode_segment(segment, &mut blocks).unwrap();
    blocks
}

/// Decodes non-final blocks with two decoders.
fn decode(blocks: &[u8]) -> Vec<u8> {
    let stream = [blocks, &[3, 0]].concat();
    let mut decoded = Vec::new();
    let mut zlib = flate2::bufread::DeflateDecoder::new(&*stream);
    zlib.read_to_end(&mut decoded).unwrap();
    assert_eq!(zlib.total_in(), stream.len() as u64);
    let other = miniz_oxide::inflate::decompress_to_vec(&stream).unwrap();
    assert!(decoded == other, "the decoders do not agree");
    decoded
}

/// Compresses `segment` and asserts all that holds for any.
fn check(encoder: &mut Encoder, segment: &[u8]) -> usize {
    let blocks = encode(encoder, segment);
    assert!(decode(&blocks) == segment, "it does not come back");
    assert!(blocks.ends_with(&[0, 0, 0xff, 0xff]));
    assert!(blocks.len() <= longest_encoding(segment.len()));
    blocks.len()
}

/// Lengths about which an encoder may be wrong by one.
const EDGES: &[usize] = &[
    0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 257, 258, 259, 260, 261, 511, 512, 16_383, 16_384, 32_767,
    32_768, 32_769, 65_534, 65_535, 65_536, 65_537, 131_070, 131_071, 262_144, 262_145, 1_048_576,
];

#[test]
fn every_kind_at_every_edge() {
    let mut numbers = Numbers(1);
    let mut encoder = Encoder::new();
    for &length in EDGES {
        let kinds = [
            vec![0; length],
            vec![0xff; length],
            numbers.noise(length),
            numbers.text(length),
            numbers.weights(length),
            numbers.runs(length),
            numbers.repeats(length),
            numbers.narrow(length),
            numbers.mixed(length),
            b"ab".repeat(length / 2),
            b"abc".repeat(length / 3),
            (0..=255).cycle().take(length).collect(),
        ];
        for segment in kinds {
            check(&mut encoder, &segment);
        }
    }
}

#[test]
fn every_short_length() {
    let mut numbers = Numbers(2);
    let mut encoder = Encoder::new();
    for length in 0..700 {
        check(&mut encoder, &vec![b'x'; length]);
        let (text, noise) = (numbers.text(length), numbers.noise(length));
        check(&mut encoder, &text);
        check(&mut encoder, &noise);
    }
}

#[test]
fn an_empty_segment_is_an_empty_stored_block() {
    assert_eq!(encode(&mut Encoder::new(), b""), [0, 0, 0, 0xff, 0xff]);
}

#[test]
fn one_byte_over_and_over_is_next_to_nothing() {
    let mut encoder = Encoder::new();
    for byte in [0, 1, b'x', 0xff] {
        // The format can say 258 bytes in two bits, which is 1,016 bytes here.
        assert!(check(&mut encoder, &vec![byte; 1 << 20]) < 1300);
    }
    assert!(check(&mut encoder, &vec![0; 1024]) < 25);
}

#[test]
fn matches_reach_to_the_end_of_the_window_and_no_further() {
    let mut numbers = Numbers(3);
    let mut encoder = Encoder::new();
    let page = numbers.noise(4096);
    for (distance, found) in [(32_767, true), (32_768, true), (32_769, false)] {
        // Runs between the two keep the search at every byte.
        let mut segment = page.clone();
        while segment.len() < distance {
            let run = (distance - segment.len()).min(500);
            segment.extend(std::iter::repeat_n((segment.len() / 500) as u8, run));
        }
        segment.extend(&page);
        let length = check(&mut encoder, &segment);
        assert_eq!(length < 2 * page.len(), found, "{distance}: {length}");
    }
}

#[test]
fn noise_grows_by_five_bytes_in_65535() {
    let mut numbers = Numbers(4);
    let mut encoder = Encoder::new();
    for length in [1, 1000, 65_535, 65_536, 1 << 20, 3 << 20] {
        let noise = numbers.noise(length);
        assert_eq!(check(&mut encoder, &noise), longest_encoding(length));
    }
}

#[test]
fn weights_become_shorter_without_matches() {
    let weights = Numbers(5).weights(1 << 20);
    assert!(check(&mut Encoder::new(), &weights) < weights.len() * 85 / 100);
}

#[test]
fn alphabets_of_one_and_two_symbols() {
    let mut encoder = Encoder::new();
    // No distance at all, one, two, and literals of one value only.
    for segment in [
        &b"abcdefghijkl"[..],
        b"aaaaaaaaaaaaaaaa",
        b"abababababababababab",
        b"aaaaaaaaaaaaaaaaaabababababababababababab",
        b"aaa",
        b"aba",
    ] {
        check(&mut encoder, segment);
        check(&mut encoder, &segment.repeat(300));
    }
    // Two values of a byte, with so few repetitions that there may be no match of four bytes.
    let mut numbers = Numbers(6);
    for symbols in 1..6 {
        let segment: Vec<u8> = (0..40_000)
            .map(|_| 7 * numbers.below(symbols) as u8)
            .collect();
        check(&mut encoder, &segment);
    }
}

#[test]
fn frequencies_that_want_longer_codes_than_there_are() {
    // Each byte is more frequent than all before it together: a code without a limit would need 17
    // bits. No four bytes come twice in a row of such, so they stay literals.
    let mut numbers = Numbers(7);
    let mut segment = Vec::new();
    for byte in 0..17 {
        segment.extend(std::iter::repeat_n(byte * 3, 1 << byte));
    }
    for index in (1..segment.len()).rev() {
        segment.swap(index, numbers.below(index + 1));
    }
    check(&mut Encoder::new(), &segment);
}

#[test]
fn earlier_segments_leave_no_trace() {
    let mut numbers = Numbers(8);
    let mut used = Encoder::new();
    for _ in 0..60 {
        let length = numbers.below(200_000);
        let segment = numbers.mixed(length);
        let fresh = encode(&mut Encoder::new(), &segment);
        assert!(encode(&mut used, &segment) == fresh);
        assert!(encode(&mut used, &segment) == fresh);
    }
}

#[test]
fn what_the_output_holds_leaves_no_trace() {
    let segment = Numbers(9).mixed(100_000);
    let mut encoder = Encoder::new();
    let alone = encode(&mut encoder, &segment);
    let mut output = vec![0xa5; 1001];
    encoder.encode_segment(&segment, &mut output).unwrap();
    assert!(output[..1001].iter().all(|&byte| byte == 0xa5));
    assert!(output[1001..] == alone);
}

#[test]
fn segments_join() {
    let mut numbers = Numbers(10);
    let mut encoder = Encoder::new();
    let (mut blocks, mut all) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let length = numbers.below(60_000);
        let segment = numbers.mixed(length);
        encoder.encode_segment(&segment, &mut blocks).unwrap();
        all.extend(segment);
    }
    assert!(decode(&blocks) == all);
}

#[test]
fn a_segment_that_is_too_long_is_refused() {
    let mut encoder = Encoder::new();
    let mut output = vec![1];
    let length = LONGEST_SEGMENT + 1;
    let refused = encoder.encode_segment(&vec![0; length], &mut output);
    assert_eq!(refused, Err(SegmentTooLong { length }));
    assert_eq!(output, [1]);
    assert_eq!(
        SegmentTooLong { length }.to_string(),
        "a segment of 67108865 bytes is longer than the 67108864 that can be deflated"
    );
    encoder
        .encode_segment(&vec![0; LONGEST_SEGMENT], &mut output)
        .unwrap();
}

/// The bytes are the codec: if this fails, `fast-1` is another codec now and needs another name,
/// or the change was not meant to change bytes. The digest is in the message.
#[test]
fn the_bytes_are_those_of_fast_1() {
    let segment = Numbers(11).mixed(2_000_000);
    let blocks = encode(&mut Encoder::new(), &segment);
    assert!(decode(&blocks) == segment);
    let digest = |bytes: &[u8]| {
        let digest = Sha256::digest(bytes);
        let hex = digest.iter().map(|byte| format!("{byte:02x}"));
        hex.fold(String::new(), |all, byte| all + &byte)
    };
    assert_eq!(
        digest(&segment),
        "8ecaa3e53e596a3b95f22ed67a1fb8ee901a8ffcab5d547d1e6b645ae970ec1f",
        "the test's input is another"
    );
    assert_eq!(
        (blocks.len(), &*digest(&blocks)),
        (
            799_032,
            "19f498dc92344ac9a703bf768e7e8ae8c2cb9411be6a36d8a2f7ef721302ec3d"
        )
    );
}

fn any_segment() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |length| prop::collection::vec(any::<u8>(), length);
    let piece = prop_oneof![
        bytes(0..200),
        (any::<u8>(), 0..3000_usize).prop_map(|(byte, count)| vec![byte; count]),
        (bytes(1..40), 1..200_usize).prop_map(|(unit, count)| unit.repeat(count)),
        "[a-e ]{0,400}".prop_map(String::into_bytes),
    ];
    let small = prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat());
    let large =
        (1..u64::MAX, 0..300_000_usize).prop_map(|(seed, length)| Numbers(seed).mixed(length));
    // A piece of the segment comes again, at any distance.
    let again = (
        prop_oneof![3 => small.clone(), 1 => large],
        any::<(prop::sample::Index, prop::sample::Index)>(),
        small,
    );
    again.prop_map(|(mut segment, (from, to), between)| {
        let from = from.index(segment.len() + 1);
        let to = to.index(segment.len() + 1);
        let piece = segment[from.min(to)..from.max(to)].to_vec();
        segment.extend(between);
        segment.extend(piece);
        segment
    })
}

proptest! {
    #[test]
    fn any_segment_comes_back(segments in prop::collection::vec(any_segment(), 1..3)) {
        let mut encoder = Encoder::new();
        for segment in segments {
            check(&mut encoder, &segment);
        }
    }
}

/// What the fuzz target does, without its guidance: `TIERCE_DEFLATE_ROUNDS` segments, a million
/// unless told.
#[test]
#[ignore = "takes minutes; run it in release after a change of the encoder"]
fn many_segments_come_back() {
    let rounds = std::env::var("TIERCE_DEFLATE_ROUNDS");
    let rounds = rounds.map_or(1_000_000, |rounds| rounds.parse().unwrap());
    let mut encoder = Encoder::new();
    for round in 1..=rounds {
        let mut numbers = Numbers(round * 0x9e37_79b9);
        let most = 1 << numbers.below(20);
        let length = numbers.below(most);
        let segment = match numbers.below(3) {
            0 => numbers.any_kind(length),
            _ => numbers.mixed(length),
        };
        let blocks = encode(&mut encoder, &segment);
        assert!(decode(&blocks) == segment, "round {round}");
        assert!(blocks.len() <= longest_encoding(length), "round {round}");
    }
}
