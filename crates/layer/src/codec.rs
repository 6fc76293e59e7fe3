//! How a segment of the archive becomes deflate blocks.
//!
//! The compressed bytes are the layer's identity in a registry, so a codec is named by everything
//! that decides them. Segments are compressed on their own, each from a reset state: the bytes of
//! one never depend on another, on the thread that made them, or on what was cached.

use flate2::{Compress, Compression, FlushCompress, Status};
// Named for its version alone: flate2 works through it, and the codec id says which one it is.
use zlib_rs as _;

/// A way to compress segments.
pub trait Codec: Sync {
    /// Names the codec and all that decides its bytes, for recipes and cache keys. Two codecs with
    /// one id make the same bytes of the same segment, on every machine.
    fn id(&self) -> &str;

    /// An encoder for one thread.
    fn encoder(&self) -> Box<dyn Encoder + '_>;

    /// What a blob begins with.
    fn prefix(&self) -> &'static [u8] {
        &GZIP_HEADER
    }

    /// What a blob ends with.
    fn suffix(&self, crc: u32, length: u64) -> Vec<u8> {
        gzip_trailer(crc, length).to_vec()
    }
}

/// The state with which one thread compresses segment after segment.
pub trait Encoder {
    /// Appends `segment` as non-final deflate blocks, ended on a byte boundary by an empty stored
    /// block. Nothing of earlier segments shows in the result.
    fn encode(&mut self, segment: &[u8], blocks: &mut Vec<u8>) -> Result<(), EncodeError>;
}

/// The compressor refused a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("codec `{codec}` could not compress a segment of {length} bytes")]
pub struct EncodeError {
    /// Which kind of codec it was.
    pub codec: &'static str,
    /// The length of the segment.
    pub length: usize,
}

/// The deflate of `tierce-deflate`, made for this: about three times as fast as zlib's level 6 on
/// code, and some ten times on numbers that hardly compress, at a tenth more size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fast1;

impl Codec for Fast1 {
    fn id(&self) -> &'static str {
        "fast-1"
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(tierce_deflate::Encoder::new())
    }
}

impl Encoder for tierce_deflate::Encoder {
    fn encode(&mut self, segment: &[u8], blocks: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.encode_segment(segment, blocks)
            .map_err(|error| EncodeError {
                codec: "fast-1",
                length: error.length,
            })
    }
}

/// The deflate of zlib-rs: smaller, and slower.
#[derive(Debug, Clone)]
pub struct ZlibRs {
    level: u32,
    id: String,
}

/// The version that the workspace pins; a test compares it with the lock file.
const ZLIB_RS_VERSION: &str = "0.6.8";
const ZLIB_RS_LEVEL: u32 = 6;

impl Default for ZlibRs {
    fn default() -> Self {
        let id = format!("zlib-rs-{ZLIB_RS_VERSION}-{ZLIB_RS_LEVEL}");
        Self {
            level: ZLIB_RS_LEVEL,
            id,
        }
    }
}

impl Codec for ZlibRs {
    fn id(&self) -> &str {
        &self.id
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(ZlibRsEncoder {
            state: Compress::new(Compression::new(self.level), false),
        })
    }
}

struct ZlibRsEncoder {
    state: Compress,
}

impl Encoder for ZlibRsEncoder {
    fn encode(&mut self, segment: &[u8], blocks: &mut Vec<u8>) -> Result<(), EncodeError> {
        let failed = EncodeError {
            codec: "zlib-rs",
            length: segment.len(),
        };
        self.state.reset();
        // Where its input is cut decides what this deflate writes, so a segment is given in one
        // call, with room for the worst case: stored blocks of a few KiB, five bytes more each.
        blocks.reserve(segment.len() + segment.len() / 256 + 1024);
        let status = self
            .state
            .compress_vec(segment, blocks, FlushCompress::Sync);
        let whole = self.state.total_in() == segment.len() as u64;
        match status {
            Ok(Status::Ok) if whole && blocks.len() < blocks.capacity() => Ok(()),
            _ => Err(failed),
        }
    }
}

/// No compression: stored blocks of 65,535 bytes, the last one shorter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stored;

/// The most that the length field of a stored block holds.
const STORED_BLOCK: usize = 65_535;

impl Codec for Stored {
    fn id(&self) -> &'static str {
        "stored"
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(Self)
    }
}

impl Encoder for Stored {
    fn encode(&mut self, segment: &[u8], blocks: &mut Vec<u8>) -> Result<(), EncodeError> {
        for piece in segment.chunks(STORED_BLOCK).chain([&[][..]]) {
            let length = u16::try_from(piece.len()).map_err(|_| EncodeError {
                codec: "stored",
                length: segment.len(),
            })?;
            blocks.push(0);
            blocks.extend_from_slice(&length.to_le_bytes());
            blocks.extend_from_slice(&(!length).to_le_bytes());
            blocks.extend_from_slice(piece);
        }
        Ok(())
    }
}

/// What a layer's blob begins with: deflate, no flags, no time, no hint of level or system.
pub(crate) const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// What a layer's blob ends with: a final empty block, then the sum and length of the archive.
pub(crate) fn gzip_trailer(crc: u32, length: u64) -> [u8; 10] {
    let mut trailer = [0; 10];
    trailer[0] = 3;
    trailer[2..6].copy_from_slice(&crc.to_le_bytes());
    // RFC 1952 keeps the length modulo 2^32.
    trailer[6..].copy_from_slice(&length.to_le_bytes()[..4]);
    trailer
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn samples() -> Vec<Vec<u8>> {
        let text = b"the quick brown fox jumps over the lazy dog ".repeat(30_000);
        let noise: Vec<u8> = (0..1_100_000_u64)
            .map(|index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[3])
            .collect();
        vec![
            vec![0; 1024],
            b"x".to_vec(),
            text,
            noise,
            vec![7; 65_535],
            vec![7; 65_536],
        ]
    }

    #[test]
    fn segments_decode_and_end_on_an_empty_stored_block() {
        for codec in [&Fast1 as &dyn Codec, &ZlibRs::default(), &Stored] {
            let mut encoder = codec.encoder();
            let mut blocks = Vec::new();
            for segment in samples() {
                encoder.encode(&segment, &mut blocks).unwrap();
                assert!(blocks.ends_with(&[0, 0, 0xff, 0xff]), "{}", codec.id());
            }
            blocks.extend([3, 0]);
            let mut decoded = Vec::new();
            flate2::read::DeflateDecoder::new(&*blocks)
                .read_to_end(&mut decoded)
                .unwrap();
            assert!(decoded == samples().concat(), "{}", codec.id());
        }
    }

    #[test]
    fn earlier_segments_leave_no_trace() {
        for codec in [&Fast1 as &dyn Codec, &ZlibRs::default()] {
            let mut used = codec.encoder();
            for segment in samples().iter().chain(samples().iter().rev()) {
                let (mut first, mut again) = (Vec::new(), Vec::new());
                codec.encoder().encode(segment, &mut first).unwrap();
                used.encode(segment, &mut again).unwrap();
                assert!(first == again, "{}", codec.id());
            }
        }
    }

    #[test]
    fn the_id_names_the_locked_version() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap();
        let pinned = format!("name = \"zlib-rs\"\nversion = \"{ZLIB_RS_VERSION}\"");
        assert!(
            lock.contains(&pinned),
            "another zlib-rs is locked: it needs another codec id"
        );
    }
}
