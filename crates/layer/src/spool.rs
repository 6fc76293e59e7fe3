//! A file without a name that takes the contents of an archive's members until they are needed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::content::{Content, Range, Spool};

/// Takes contents one after the other.
#[derive(Debug)]
pub(crate) struct SpoolWriter {
    spool: Arc<Spool>,
    identity: (u64, u64),
    file: BufWriter<File>,
    length: u64,
    directory: PathBuf,
}

const BUFFER: usize = 256 << 10;

impl SpoolWriter {
    /// A new one in `directory`. It vanishes with the process.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        let metadata = file.metadata()?;
        Ok(Self {
            spool: Spool::private(file.try_clone()?, directory.to_owned()),
            identity: (metadata.dev(), metadata.ino()),
            file: BufWriter::with_capacity(BUFFER, file),
            length: 0,
            directory: directory.to_owned(),
        })
    }

    /// Device and inode.
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Where it is, for errors.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// How much was written.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Takes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// What was written from `start` on. It can be read once the spool is closed.
    pub(crate) fn content_since(&self, start: u64) -> Content {
        Content::Range(Range {
            spool: Arc::clone(&self.spool),
            offset: start,
            length: self.length - start,
        })
    }

    /// Makes everything that was written readable.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
