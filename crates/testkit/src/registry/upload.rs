//! One upload in progress: its bytes, their hash, and which request may add to them.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::sync::{Arc, Mutex};

use tierce_oci::{Digest, Hasher};

use super::state::Blob;

/// Blobs above this size go to temporary files, so that a test may push large ones.
const SPOOL_FROM: usize = 8 * 1024 * 1024;

/// An upload in progress: its bytes are hashed as they come.
pub(crate) struct Upload {
    pub(crate) repository: String,
    pub(crate) size: u64,
    /// The query that the last `Location` carried and the next request must bring back.
    pub(crate) expected_query: String,
    pub(crate) turn: u64,
    /// Whether the last chunk was below the minimum, so that none may follow it.
    pub(crate) short_chunk: bool,
    /// Where the first chunk ended.
    pub(crate) first_chunk: Option<u64>,
    /// The request whose bytes are taken. A client that gave one up and sends another must not be
    /// disturbed by what the first still sends.
    sender: u64,
    /// Where to go back to when the sender breaks off.
    mark: Option<(u64, Hasher)>,
    hasher: Hasher,
    memory: Vec<u8>,
    file: Option<File>,
}

impl Upload {
    pub(crate) fn new(repository: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            size: 0,
            expected_query: String::new(),
            turn: 0,
            short_chunk: false,
            first_chunk: None,
            sender: 0,
            mark: None,
            hasher: Hasher::new(),
            memory: Vec::new(),
            file: None,
        }
    }

    /// Makes a new request the sender; what it sends is forgotten if it breaks off and `atomic`.
    pub(crate) fn begin(&mut self, atomic: bool) -> io::Result<u64> {
        self.interrupt()?;
        self.mark = atomic.then(|| (self.size, self.hasher.clone()));
        Ok(self.sender)
    }

    /// Ends the sender's turn before its end.
    pub(crate) fn interrupt(&mut self) -> io::Result<()> {
        self.sender += 1;
        let Some((size, hasher)) = self.mark.take() else {
            return Ok(());
        };
        self.size = size;
        self.hasher = hasher;
        if let Some(file) = &mut self.file {
            file.set_len(size)?;
            file.seek(SeekFrom::Start(size))?;
        } else {
            self.memory
                .truncate(usize::try_from(size).map_err(io::Error::other)?);
        }
        Ok(())
    }

    /// Keeps what the sender sent.
    pub(crate) fn commit(&mut self) {
        self.sender += 1;
        self.mark = None;
    }

    pub(crate) fn is_sender(&self, sender: u64) -> bool {
        self.sender == sender
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        if self.file.is_none() && self.memory.len() + bytes.len() > SPOOL_FROM {
            let mut file = tempfile::tempfile()?;
            file.write_all(&std::mem::take(&mut self.memory))?;
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            return file.write_all(bytes);
        }
        self.memory.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    pub(crate) fn take_blob(&mut self) -> Blob {
        match self.file.take() {
            Some(file) => Blob::Spooled(Arc::new(Mutex::new(file)), self.size),
            None => Blob::Memory(std::mem::take(&mut self.memory).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_atomic_sender_leaves_behind_is_forgotten() {
        let mut upload = Upload::new("a");
        let first = upload.begin(true).unwrap();
        upload.write(b"kept").unwrap();
        upload.commit();
        assert!(!upload.is_sender(first));
        // Across the limit of what is kept in memory.
        for size in [3, SPOOL_FROM] {
            let broken = upload.begin(true).unwrap();
            upload.write(&vec![7; size]).unwrap();
            assert!(upload.is_sender(broken));
            upload.interrupt().unwrap();
            assert_eq!((upload.size, upload.digest()), (4, Digest::of(b"kept")));
        }
        upload.begin(false).unwrap();
        upload.write(b" too").unwrap();
        upload.interrupt().unwrap();
        assert_eq!(upload.digest(), Digest::of(b"kept too"));
        let blob = upload.take_blob();
        assert_eq!(blob.read(0, blob.len()).unwrap(), "kept too");
    }
}
