//! Two segments through one encoder come back through two decoders, and the second is what a fresh
//! encoder makes of it.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use tierce_deflate::{Encoder, longest_encoding};

fuzz_target!(|input: (&[u8], &[u8], u8)| {
    let (first, second, copies) = input;
    // Fuzzers like their inputs short; repeated, they reach what is beyond a unit or the window.
    let first = first.repeat(1 + usize::from(copies));
    let mut encoder = Encoder::new();
    let mut blocks = Vec::new();
    encoder.encode_segment(&first, &mut blocks).unwrap();
    assert!(blocks.len() <= longest_encoding(first.len()));
    let end = blocks.len();
    encoder.encode_segment(second, &mut blocks).unwrap();
    let mut fresh = Vec::new();
    Encoder::new().encode_segment(second, &mut fresh).unwrap();
    assert!(blocks[end..] == fresh);

    blocks.extend([3, 0]);
    let whole = [&*first, second].concat();
    let mut decoded = Vec::new();
    flate2::bufread::DeflateDecoder::new(&*blocks)
        .read_to_end(&mut decoded)
        .unwrap();
    assert!(decoded == whole);
    let decoded = miniz_oxide::inflate::decompress_to_vec(&blocks).unwrap();
    assert!(decoded == whole);
});
