//! How segments of the archive are compressed, and how the pieces become one blob.
//!
//! The compressed bytes are the layer's identity in a registry, so a codec is named by everything
//! that decides them. Segments are compressed on their own, each from a reset state: the bytes of
//! one never depend on another, on the thread that made them, or on what was cached.

use std::fmt;
use std::io::Cursor;
use std::ops::RangeInclusive;

use flate2::{Compress, FlushCompress, Status};
// Named for its version alone: flate2 works through it, and the codec id says which one it is.
use zlib_rs as _;
use zstd::zstd_safe::{CCtx, CParameter};
// Named for its version alone too: what `zstd` links.
use zstd_sys as _;

use crate::compression::Compression;

/// A way to compress segments.
pub trait Codec: Sync {
    /// Names the codec and all that decides its bytes, for recipes and cache keys. Two codecs with
    /// one id make the same bytes of the same segment, on every machine.
    fn id(&self) -> &str;

    /// How readers see the blob. It decides the layer's media type, and what stands around the
    /// pieces.
    fn compression(&self) -> Compression;

    /// An encoder for one thread.
    fn encoder(&self) -> Box<dyn Encoder + '_>;

    /// What the blob begins with, before the first piece.
    fn prefix(&self) -> &'static [u8] {
        match self.compression() {
            Compression::Gzip => &GZIP_HEADER,
            Compression::Zstd | Compression::None => &[],
        }
    }

    /// What the blob ends with, after the last piece. `crc` is the CRC-32 of the whole archive, and
    /// `length` its length.
    fn suffix(&self, crc: u32, length: u64) -> Vec<u8> {
        match self.compression() {
            Compression::Gzip => gzip_trailer(crc, length).to_vec(),
            // Without any frame there is nothing that a reader could tell from a blob cut short.
            Compression::Zstd if length == 0 => EMPTY_FRAME.to_vec(),
            Compression::Zstd | Compression::None => Vec::new(),
        }
    }
}

/// The state with which one thread compresses segment after segment.
pub trait Encoder {
    /// Appends a piece of the compressed form to `output`: the pieces of all segments, one after
    /// the other between the codec's prefix and suffix, are the blob. Nothing of earlier segments
    /// shows in a piece.
    ///
    /// For gzip a piece is deflate blocks that are not final, ended on a byte boundary by an empty
    /// stored block; for Zstandard it is a frame. After an error, what was appended is of no use.
    fn encode(&mut self, segment: &[u8], output: &mut Vec<u8>) -> Result<(), EncodeError>;
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

    fn compression(&self) -> Compression {
        Compression::Gzip
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(tierce_deflate::Encoder::new())
    }
}

impl Encoder for tierce_deflate::Encoder {
    fn encode(&mut self, segment: &[u8], output: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.encode_segment(segment, output)
            .map_err(|error| EncodeError {
                codec: "fast-1",
                length: error.length,
            })
    }
}

/// The deflate of zlib-rs: smaller and slower from level 2 on. Level 1 is larger, and makes model
/// weights longer than they were.
#[derive(Debug, Clone)]
pub struct ZlibRs {
    level: ZlibLevel,
    id: String,
}

/// The version that the workspace pins; a test compares it with the lock file.
const ZLIB_RS_VERSION: &str = "0.6.8";

impl ZlibRs {
    /// The codec of one level.
    pub fn new(level: ZlibLevel) -> Self {
        let id = format!("zlib-rs-{ZLIB_RS_VERSION}-{level}");
        Self { level, id }
    }
}

impl Default for ZlibRs {
    fn default() -> Self {
        Self::new(ZlibLevel::default())
    }
}

impl Codec for ZlibRs {
    fn id(&self) -> &str {
        &self.id
    }

    fn compression(&self) -> Compression {
        Compression::Gzip
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        let level = flate2::Compression::new(self.level.0.into());
        Box::new(ZlibRsEncoder {
            state: Compress::new(level, false),
        })
    }
}

/// How hard zlib-rs tries: from 1, the fastest, to 9, the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZlibLevel(u8);

impl ZlibLevel {
    /// The levels that there are. Zero would be stored blocks, which are [`Stored`].
    pub const RANGE: RangeInclusive<u8> = 1..=9;

    /// `None` when there is no such level.
    pub fn new(level: u8) -> Option<Self> {
        Self::RANGE.contains(&level).then_some(Self(level))
    }
}

impl Default for ZlibLevel {
    /// 6, zlib's own.
    fn default() -> Self {
        Self(6)
    }
}

impl fmt::Display for ZlibLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

struct ZlibRsEncoder {
    state: Compress,
}

impl Encoder for ZlibRsEncoder {
    fn encode(&mut self, segment: &[u8], output: &mut Vec<u8>) -> Result<(), EncodeError> {
        let failed = EncodeError {
            codec: "zlib-rs",
            length: segment.len(),
        };
        self.state.reset();
        // Where its input is cut decides what this deflate writes, so a segment is given in one
        // call, with room for the worst case: level 1 knows only the fixed codes, in which a byte
        // has up to nine bits, the others write stored blocks of a few KiB, five bytes more each.
        output.reserve(segment.len() + segment.len() / 8 + segment.len() / 256 + 1024);
        let status = self
            .state
            .compress_vec(segment, output, FlushCompress::Sync);
        let whole = self.state.total_in() == segment.len() as u64;
        match status {
            Ok(Status::Ok) if whole && output.len() < output.capacity() => Ok(()),
            _ => Err(failed),
        }
    }
}

/// Zstandard by libzstd, a frame for each segment: smaller than deflate at its speed, and faster to
/// undo. Only OCI has a media type for it.
#[derive(Debug, Clone)]
pub struct Zstd {
    level: ZstdLevel,
    id: String,
}

impl Zstd {
    /// The codec of one level.
    pub fn new(level: ZstdLevel) -> Self {
        // Asked of the library, because a build can be told to link another than the one pinned.
        let version = zstd::zstd_safe::version_string();
        let id = format!("zstd-{version}-{level}");
        Self { level, id }
    }
}

impl Default for Zstd {
    fn default() -> Self {
        Self::new(ZstdLevel::default())
    }
}

impl Codec for Zstd {
    fn id(&self) -> &str {
        &self.id
    }

    fn compression(&self) -> Compression {
        Compression::Zstd
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(ZstdEncoder {
            context: zstd_context(self.level),
        })
    }
}

/// How hard libzstd tries: from 1, the fastest, to 19, the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZstdLevel(u8);

impl ZstdLevel {
    /// The levels that are offered: those of `zstd` without `--ultra`.
    pub const RANGE: RangeInclusive<u8> = 1..=19;

    /// `None` when the level is not offered.
    pub fn new(level: u8) -> Option<Self> {
        Self::RANGE.contains(&level).then_some(Self(level))
    }
}

impl Default for ZstdLevel {
    /// 3, behind which time rises faster than size falls: on an archive of Python wheels level 1
    /// writes 29 % at 470 MB/s, 3 26 % at 320, 6 24 % at 110 (`cargo bench -p tierce-layer`).
    fn default() -> Self {
        Self(3)
    }
}

impl fmt::Display for ZstdLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

struct ZstdEncoder {
    /// `None` when there was no memory for it.
    context: Option<CCtx<'static>>,
}

/// A context that writes a frame's content size, so that readers need no window larger than the
/// segment, and no checksum, as the diff id is one.
fn zstd_context(level: ZstdLevel) -> Option<CCtx<'static>> {
    let mut context = CCtx::try_create()?;
    for parameter in [
        CParameter::CompressionLevel(level.0.into()),
        CParameter::ContentSizeFlag(true),
        CParameter::ChecksumFlag(false),
    ] {
        context.set_parameter(parameter).ok()?;
    }
    Some(context)
}

impl Encoder for ZstdEncoder {
    fn encode(&mut self, segment: &[u8], output: &mut Vec<u8>) -> Result<(), EncodeError> {
        let failed = EncodeError {
            codec: "zstd",
            length: segment.len(),
        };
        let context = self.context.as_mut().ok_or(failed)?;
        // In one call, with room for the worst case, neither buffers nor their sizes can show.
        output.reserve(zstd::compress_bound(segment.len()));
        let end = output.len() as u64;
        let mut rest = Cursor::new(output);
        rest.set_position(end);
        match context.compress2(&mut rest, segment) {
            Ok(_) => Ok(()),
            Err(_) => Err(failed),
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

    fn compression(&self) -> Compression {
        Compression::Gzip
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(Self)
    }
}

impl Encoder for Stored {
    fn encode(&mut self, segment: &[u8], output: &mut Vec<u8>) -> Result<(), EncodeError> {
        for piece in segment.chunks(STORED_BLOCK).chain([&[][..]]) {
            let length = u16::try_from(piece.len()).map_err(|_| EncodeError {
                codec: "stored",
                length: segment.len(),
            })?;
            output.push(0);
            output.extend_from_slice(&length.to_le_bytes());
            output.extend_from_slice(&(!length).to_le_bytes());
            output.extend_from_slice(piece);
        }
        Ok(())
    }
}

/// What gzip begins with: deflate, no flags, no time, no hint of level or system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// What gzip ends with: a final empty block, then the sum and length of the archive.
fn gzip_trailer(crc: u32, length: u64) -> [u8; 10] {
    let mut trailer = [0; 10];
    trailer[0] = 3;
    trailer[2..6].copy_from_slice(&crc.to_le_bytes());
    // RFC 1952 keeps the length modulo 2^32.
    trailer[6..].copy_from_slice(&length.to_le_bytes()[..4]);
    trailer
}

/// A frame of no content (RFC 8878): magic number, a content size of one byte, which is zero, and a
/// last block that is raw and empty.
const EMPTY_FRAME: [u8; 9] = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Every codec, the slower levels among them.
    fn codecs() -> Vec<Box<dyn Codec>> {
        let mut codecs: Vec<Box<dyn Codec>> = vec![Box::new(Fast1), Box::new(Stored)];
        for level in ZlibLevel::RANGE {
            codecs.push(Box::new(ZlibRs::new(ZlibLevel::new(level).unwrap())));
        }
        for level in [1, 3, 5, 9, 13, 19] {
            codecs.push(Box::new(Zstd::new(ZstdLevel::new(level).unwrap())));
        }
        codecs
    }

    fn noise(length: u64) -> impl Iterator<Item = u8> {
        (0..length).map(|index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[3])
    }

    fn samples() -> Vec<Vec<u8>> {
        let text = b"the quick brown fox jumps over the lazy dog ".repeat(25_000);
        let words: Vec<u8> = noise(60_000)
            .flat_map(|byte| text[usize::from(byte)..].iter().take(7).copied())
            .collect();
        vec![
            vec![0; 1024],
            b"x".to_vec(),
            text,
            noise(400_000).collect(),
            words,
            // What the fixed codes of deflate make longest.
            noise(300_000).map(|byte| byte | 0x90).collect(),
            vec![7; 65_535],
            vec![7; 65_536],
        ]
    }

    fn encoded(encoder: &mut dyn Encoder, segment: &[u8]) -> Vec<u8> {
        let mut piece = Vec::new();
        encoder.encode(segment, &mut piece).unwrap();
        piece
    }

    fn blob(codec: &dyn Codec, segments: &[Vec<u8>]) -> Vec<u8> {
        let mut encoder = codec.encoder();
        let mut crc = crc32fast::Hasher::new();
        let mut length = 0;
        let mut blob = codec.prefix().to_vec();
        for segment in segments {
            encoder.encode(segment, &mut blob).unwrap();
            crc.update(segment);
            length += segment.len() as u64;
        }
        blob.extend(codec.suffix(crc.finalize(), length));
        blob
    }

    /// Decodes with the decoder that belongs to the encoder and with one that shares nothing with
    /// it: `miniz_oxide` beside zlib-rs, ruzstd beside libzstd.
    fn decoded(compression: Compression, blob: &[u8]) -> [Vec<u8>; 2] {
        let mut one = Vec::new();
        let other = match compression {
            Compression::Gzip => {
                let mut decoder = flate2::bufread::GzDecoder::new(blob);
                decoder.read_to_end(&mut one).unwrap();
                assert!(decoder.into_inner().is_empty(), "one member");
                let deflate = &blob[GZIP_HEADER.len()..blob.len() - 8];
                miniz_oxide::inflate::decompress_to_vec(deflate).unwrap()
            }
            Compression::Zstd => {
                one = zstd::decode_all(blob).unwrap();
                let mut other = Vec::with_capacity(one.len());
                ruzstd::decoding::FrameDecoder::new()
                    .decode_all_to_vec(blob, &mut other)
                    .unwrap();
                other
            }
            Compression::None => blob.to_vec(),
        };
        [one, other]
    }

    #[test]
    fn pieces_join_into_what_two_decoders_read() {
        let all = samples().concat();
        for codec in codecs() {
            let blob = blob(&*codec, &samples());
            for decoded in decoded(codec.compression(), &blob) {
                assert!(decoded == all, "{}", codec.id());
            }
            assert_eq!(Compression::detect(&blob), codec.compression());
        }
    }

    #[test]
    fn a_blob_of_nothing_is_whole() {
        for codec in codecs() {
            let blob = blob(&*codec, &[]);
            assert_eq!(
                decoded(codec.compression(), &blob),
                [[0; 0]; 2],
                "{}",
                codec.id()
            );
            assert_eq!(Compression::detect(&blob), codec.compression());
        }
        assert_eq!(
            encoded(&mut *Zstd::default().encoder(), b""),
            EMPTY_FRAME,
            "as libzstd writes it"
        );
    }

    #[test]
    fn pieces_of_gzip_end_on_an_empty_stored_block() {
        for codec in codecs() {
            let mut encoder = codec.encoder();
            for segment in samples() {
                let piece = encoded(&mut *encoder, &segment);
                let ends = piece.ends_with(&[0, 0, 0xff, 0xff]);
                assert!(
                    ends || codec.compression() != Compression::Gzip,
                    "{}",
                    codec.id()
                );
            }
        }
    }

    #[test]
    fn pieces_of_zstandard_are_frames_with_a_size_and_no_sum() {
        for level in ZstdLevel::RANGE {
            let codec = Zstd::new(ZstdLevel::new(level).unwrap());
            let mut encoder = codec.encoder();
            for segment in samples() {
                let piece = encoded(&mut *encoder, &segment);
                // RFC 8878, section 3.1.1.1.1: bit 2 of the descriptor says that there is a checksum.
                assert_eq!(piece[4] & 0b100, 0);
                assert_eq!(
                    zstd::zstd_safe::get_frame_content_size(&piece).unwrap(),
                    Some(segment.len() as u64)
                );
                assert_eq!(
                    zstd::zstd_safe::find_frame_compressed_size(&piece),
                    Ok(piece.len())
                );
            }
        }
    }

    #[test]
    fn earlier_segments_leave_no_trace() {
        let mut segments = samples();
        for (index, length) in [(4, 16_000), (4, 100_000), (3, 200_000), (2, 300_000)] {
            // Other lengths make libzstd take other parameters.
            segments.push(segments[index][..length].to_vec());
        }
        for codec in codecs() {
            let fresh: Vec<_> = segments
                .iter()
                .map(|segment| encoded(&mut *codec.encoder(), segment))
                .collect();
            let mut used = codec.encoder();
            let order = (0..segments.len()).chain((0..segments.len()).rev());
            for index in order {
                let again = encoded(&mut *used, &segments[index]);
                assert!(again == fresh[index], "{} of {index}", codec.id());
            }
        }
    }

    #[test]
    fn what_the_output_holds_leaves_no_trace() {
        for codec in codecs() {
            let mut encoder = codec.encoder();
            for segment in samples() {
                let alone = encoded(&mut *encoder, &segment);
                let mut output = Vec::with_capacity(4 << 20);
                output.extend([0xa5; 1001]);
                encoder.encode(&segment, &mut output).unwrap();
                assert!(output[..1001] == [0xa5; 1001], "{}", codec.id());
                assert!(output[1001..] == alone, "{}", codec.id());
            }
        }
    }

    #[test]
    fn levels_are_those_that_there_are() {
        let zlib = |level| ZlibLevel::new(level).is_some();
        assert_eq!([0, 1, 9, 10].map(zlib), [false, true, true, false]);
        let zstd = |level| ZstdLevel::new(level).is_some();
        assert_eq!([0, 1, 19, 20].map(zstd), [false, true, true, false]);
    }

    #[test]
    fn the_ids_name_the_locked_versions() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap();
        let pinned = format!("name = \"zlib-rs\"\nversion = \"{ZLIB_RS_VERSION}\"");
        assert!(
            lock.contains(&pinned),
            "another zlib-rs is locked: it needs another codec id"
        );
        assert_eq!(ZlibRs::default().id(), "zlib-rs-0.6.8-6");

        let (_, locked) = lock
            .split_once("name = \"zstd-sys\"\nversion = \"")
            .unwrap();
        let (_, locked) = locked.split_once("+zstd.").unwrap();
        let (locked, _) = locked.split_once('"').unwrap();
        assert_eq!(
            Zstd::default().id(),
            format!("zstd-{locked}-3"),
            "the libzstd that is linked is not the one that is pinned"
        );
    }
}
