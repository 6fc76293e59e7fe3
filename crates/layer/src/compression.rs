//! How an archive is compressed, and a reader that undoes it as a stream.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// How the bytes of an archive or layer are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Gzip, of one or several members.
    Gzip,
    /// Zstandard, of one or several frames.
    Zstd,
}

impl Compression {
    /// Tells the compression from the first bytes; four are enough.
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// Reads `compressed` as what it was before. Nothing is held but the decoder's window, which
    /// for Zstandard is at most 128 MiB.
    pub fn decode<'a, R: Read + Send + 'a>(
        self,
        compressed: R,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        let compressed = BufReader::with_capacity(BUFFER, compressed);
        Ok(match self {
            Self::None => Box::new(compressed),
            // Parallel compressors write many members, which the plain decoder ends after one of.
            Self::Gzip => Box::new(MultiGzDecoder::new(compressed)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(compressed)?),
        })
    }

    /// Finds out how `archive` is compressed and decodes it accordingly.
    pub fn detect_and_decode<'a, R: Read + Send + 'a>(
        archive: R,
    ) -> io::Result<(Self, Box<dyn Read + Send + 'a>)> {
        let mut archive = BufReader::with_capacity(BUFFER, archive);
        let compression = Self::detect(archive.fill_buf()?);
        Ok((compression, compression.decode(archive)?))
    }
}

/// What a layer's media type says.
impl From<Compression> for tierce_oci::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip,
            Compression::Zstd => Self::Zstd,
        }
    }
}

const BUFFER: usize = 64 << 10;
