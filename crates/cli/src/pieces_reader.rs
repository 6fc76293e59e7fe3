//! A bridge from a stream to a thread that reads.

use bytes::Bytes;
use tokio::sync::mpsc;

/// Reads what a channel brings.
pub(crate) struct PiecesReader {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl PiecesReader {
    /// Both ends of a bridge, with a few pieces on it at a time. It may be read on threads that may
    /// wait alone.
    pub(crate) fn new() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(4);
        let current = Bytes::new();
        (sender, Self { receiver, current })
    }
}

impl std::io::Read for PiecesReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}
