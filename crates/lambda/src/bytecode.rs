//! The header of compiled Python (PEP 552).

use serde::{Deserialize, Serialize};

/// What a `.pyc` says of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytecodeFacts {
    /// The number of the bytecode's format, which counts up with Python's versions.
    pub magic: u16,
    /// How it is told whether the source is still the same.
    pub check: BytecodeCheck,
}

/// How Python tells whether a `.pyc` is that of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BytecodeCheck {
    /// By the source's modification time and size.
    Timestamp {
        /// Low 32 bits of the time.
        modified: u32,
        /// Low 32 bits of the size.
        size: u32,
    },
    /// By the source's hash, or not at all.
    Hash,
}

impl BytecodeFacts {
    /// Reads the first 16 bytes of a `.pyc` of Python 3.7 or later.
    pub(crate) fn read(start: &[u8]) -> Option<Self> {
        /// The first magic number of Python 3.7, whose header has flags.
        const FIRST: u16 = 3390;
        let header: &[u8; 16] = start.get(..16)?.try_into().ok()?;
        let number = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let magic = u16::from_le_bytes([header[0], header[1]]);
        if header[2..4] != *b"\r\n" || magic < FIRST {
            return None;
        }
        let check = match number(4) {
            0 => BytecodeCheck::Timestamp {
                modified: number(8),
                size: number(12),
            },
            1 | 3 => BytecodeCheck::Hash,
            _ => return None,
        };
        Some(Self { magic, check })
    }
}

/// `D/X.py` for `D/__pycache__/X.cpython-312.pyc` and `D/__pycache__/X.cpython-312.opt-1.pyc`.
pub(crate) fn source_of(path: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(path).ok()?;
    let (cache, name) = text.rsplit_once('/')?;
    let directory = match cache.rsplit_once('/') {
        Some((above, "__pycache__")) => Some(above),
        None if cache == "__pycache__" => None,
        _ => return None,
    };
    let stem = name.strip_suffix(".pyc")?;
    let (before, last) = stem.rsplit_once('.')?;
    let (module, tag) = if last.starts_with("opt-") {
        before.rsplit_once('.')?
    } else {
        (before, last)
    };
    if !tag.starts_with("cpython-3") {
        return None;
    }
    Some(match directory {
        Some(directory) => format!("{directory}/{module}.py").into_bytes(),
        None => format!("{module}.py").into_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_apart() {
        let header = |flags: u8| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(b"\xcb\r\r\n");
            bytes[4] = flags;
            bytes[8] = 7;
            bytes[12] = 9;
            BytecodeFacts::read(&bytes).map(|facts| facts.check)
        };
        let timestamp = BytecodeCheck::Timestamp {
            modified: 7,
            size: 9,
        };
        assert_eq!(header(0), Some(timestamp));
        assert_eq!(header(1), Some(BytecodeCheck::Hash));
        assert_eq!(header(3), Some(BytecodeCheck::Hash));
        assert_eq!(header(2), None);
        assert_eq!(BytecodeFacts::read(b"short"), None);
    }

    #[test]
    fn a_cached_file_has_its_source_beside_the_cache() {
        let source = |path: &str| {
            source_of(path.as_bytes()).map(|source| String::from_utf8(source).unwrap())
        };
        assert_eq!(
            source("a/__pycache__/b.cpython-312.pyc").as_deref(),
            Some("a/b.py")
        );
        assert_eq!(
            source("__pycache__/b.cpython-312.opt-2.pyc").as_deref(),
            Some("b.py")
        );
        assert_eq!(source("a/b.pyc"), None);
        assert_eq!(source("a/__pycache__/b.pypy39.pyc"), None);
    }
}
