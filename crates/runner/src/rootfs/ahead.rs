//! Reads a layer on a thread of its own, a few pieces ahead of who unpacks it.
//!
//! Decompressing and hashing take about as long as writing files; beside each other they take half
//! of the time.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use tierce_layer::Compression;
use tierce_oci::{Digest, Hasher};

/// Bytes of a piece.
const PIECE: usize = 256 << 10;
/// How many pieces there are.
const PIECES: usize = 8;

/// What was read, to be read again as it comes.
#[derive(Debug)]
pub(super) struct Ahead {
    pieces: Receiver<Piece>,
    /// Pieces that can be filled again.
    spent: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    taken: usize,
    /// What all of it was, once it is at its end.
    digest: Option<Digest>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    End(Digest),
    Failed(io::Error),
}

impl Ahead {
    /// Begins to read `layer`, compressed or not. When this is dropped the thread ends after its
    /// next piece.
    pub(super) fn begin<'scope, R: Read + Send + 'scope>(
        scope: &'scope Scope<'scope, '_>,
        layer: R,
    ) -> Self {
        let (filled, pieces) = sync_channel(PIECES);
        let (spent, empty) = sync_channel(PIECES);
        for _ in 0..PIECES {
            // The channel has room for all of them.
            let _ = spent.try_send(vec![0; PIECE]);
        }
        scope.spawn(move || {
            // Nobody listens any more when a piece cannot be sent.
            if let Err(error) = read_all(layer, &filled, &empty) {
                let _ = filled.send(Piece::Failed(error));
            }
        });
        Self {
            pieces,
            spent,
            current: Vec::new(),
            taken: 0,
            digest: None,
        }
    }

    /// The digest of the uncompressed bytes, of which all are read before.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        self.digest
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

fn read_all(
    layer: impl Read + Send,
    filled: &SyncSender<Piece>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    let (_, mut archive) = Compression::detect_and_decode(layer)?;
    let mut hasher = Hasher::new();
    loop {
        let Ok(mut piece) = empty.recv() else {
            return Ok(());
        };
        piece.resize(PIECE, 0);
        let mut length = 0;
        while length < PIECE {
            match archive.read(&mut piece[length..]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        piece.truncate(length);
        hasher.update(&piece);
        let last = length < PIECE;
        if filled.send(Piece::Bytes(piece)).is_err() {
            return Ok(());
        }
        if last {
            let _ = filled.send(Piece::End(hasher.finish()));
            return Ok(());
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.current.len() && self.digest.is_none() {
            match self.pieces.recv() {
                Ok(Piece::Bytes(piece)) => {
                    let spent = std::mem::replace(&mut self.current, piece);
                    self.taken = 0;
                    if spent.capacity() > 0 {
                        let _ = self.spent.try_send(spent);
                    }
                }
                Ok(Piece::End(digest)) => self.digest = Some(digest),
                Ok(Piece::Failed(error)) => return Err(error),
                // The thread is gone without a word.
                Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let left = &self.current[self.taken..];
        let length = left.len().min(buffer.len());
        buffer[..length].copy_from_slice(&left[..length]);
        self.taken += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives so many bytes, then an error.
    struct Failing(usize);

    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("broken"));
            }
            let length = buffer.len().min(self.0);
            buffer[..length].fill(1);
            self.0 -= length;
            Ok(length)
        }
    }

    #[test]
    fn gives_the_bytes_and_their_digest() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 20 * PIECE + 7] {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            std::thread::scope(|scope| {
                let mut ahead = Ahead::begin(scope, &bytes[..]);
                let mut start = vec![0; length.min(1000)];
                ahead.read_exact(&mut start).unwrap();
                assert_eq!(start, bytes[..start.len()]);
                assert_eq!(ahead.finish().unwrap(), Digest::of(&bytes), "{length}");
            });
        }
    }

    #[test]
    fn an_error_comes_where_it_was_and_stays() {
        std::thread::scope(|scope| {
            let mut ahead = Ahead::begin(scope, Failing(PIECE + 10));
            let mut bytes = Vec::new();
            assert_eq!(
                ahead.read_to_end(&mut bytes).unwrap_err().to_string(),
                "broken"
            );
            assert_eq!(bytes.len(), PIECE);
            assert!(ahead.finish().is_err());
        });
    }

    #[test]
    fn who_stops_early_waits_for_nothing() {
        std::thread::scope(|scope| {
            let mut ahead = Ahead::begin(scope, io::repeat(7));
            assert_eq!(ahead.read(&mut [0; 10]).unwrap(), 10);
        });
    }
}
