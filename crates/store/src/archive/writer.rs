//! Writing a tar, member by member, so that a member that fails leaves no trace.

use std::path::Path;

use tar::{EntryType, Header};

use crate::atomic::{AtomicFile, PathError};

/// Tars are made of blocks of this size.
const BLOCK: usize = 512;

/// What eleven octal digits can say: the largest size in a ustar header.
const MAX_USTAR: u64 = (1 << 33) - 1;

/// A tar in a temporary file. The same members in the same order give the same bytes.
#[derive(Debug)]
pub(super) struct TarWriter {
    file: AtomicFile,
    /// Where the last complete member ends.
    complete: u64,
    /// Whether there may be something after that.
    dirty: bool,
}

impl TarWriter {
    /// Begins a tar that will be at `target`.
    pub(super) fn create(target: &Path) -> Result<Self, PathError> {
        Ok(Self {
            file: AtomicFile::create(target)?,
            complete: 0,
            dirty: false,
        })
    }

    pub(super) fn directory(&mut self, name: &str) -> Result<(), PathError> {
        self.begin(EntryType::Directory, name, 0o755, 0)?;
        self.end(0)
    }

    pub(super) fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), PathError> {
        self.begin(EntryType::Regular, name, 0o644, bytes.len() as u64)?;
        self.append(bytes)?;
        self.end(bytes.len() as u64)
    }

    /// Begins a file of `size` bytes. Whatever an earlier member left unfinished is cut off.
    pub(super) fn begin_file(&mut self, name: &str, size: u64) -> Result<(), PathError> {
        self.begin(EntryType::Regular, name, 0o644, size)
    }

    /// The next bytes of the file that was begun.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), PathError> {
        self.file.write_all(bytes)
    }

    /// Ends the file, which has got exactly the `size` bytes it was begun with.
    pub(super) fn end(&mut self, size: u64) -> Result<(), PathError> {
        let block = BLOCK as u64;
        let padding = size.next_multiple_of(block) - size;
        let zeros = [0; BLOCK];
        self.file.write_all(
            zeros
                .get(..usize::try_from(padding).unwrap_or(0))
                .unwrap_or(&zeros),
        )?;
        self.complete += block + size + padding;
        self.dirty = false;
        Ok(())
    }

    /// Ends the tar and gives it its name.
    pub(super) fn persist(mut self) -> Result<(), PathError> {
        self.cut()?;
        self.file.write_all(&[0; 2 * BLOCK])?;
        self.file.persist()
    }

    fn begin(
        &mut self,
        kind: EntryType,
        name: &str,
        mode: u32,
        size: u64,
    ) -> Result<(), PathError> {
        self.cut()?;
        self.dirty = true;
        let mut header = if size > MAX_USTAR {
            Header::new_gnu()
        } else {
            Header::new_ustar()
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header
            .set_path(name)
            .map_err(PathError::of("name a member", Path::new(name)))?;
        header.set_cksum();
        self.file.write_all(header.as_bytes())
    }

    fn cut(&mut self) -> Result<(), PathError> {
        if self.dirty {
            self.file.cut(self.complete)?;
            self.dirty = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::members::Members;

    #[test]
    fn sizes_beyond_ustar_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large.tar");
        let size = (9 << 30) + 1;
        let mut writer = TarWriter::create(&path).unwrap();
        writer.begin_file("large", size).unwrap();
        writer.file.cut(512 + size).unwrap();
        writer.end(size).unwrap();
        writer.file("small", b"x").unwrap();
        writer.persist().unwrap();
        let members = Members::scan(&path).unwrap();
        let large = members.file("large").unwrap().unwrap();
        assert_eq!((large.offset, large.size), (512, size));
        let small = members.file("small").unwrap().unwrap();
        assert_eq!(small.offset, 512 + size.next_multiple_of(512) + 512);
        assert!(std::fs::metadata(&path).unwrap().len() > size);
    }
}
