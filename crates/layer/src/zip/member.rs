//! One member of a zip: what its headers say, and its content.

use std::io::{BufRead, BufReader, Read};

use flate2::{Decompress, FlushDecompress, Status};

use crate::path::{BadPath, EntryPath, shortened};

use super::directory::{Archive, Fields, LONGEST_NAME};
use super::problem::{BadZipName, ZipError};

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberKind {
    Directory,
    File,
    Symlink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Stored,
    Deflate,
}

/// A member as the central directory describes it.
#[derive(Debug)]
pub(super) struct Member {
    /// As in both headers.
    name: Box<[u8]>,
    /// `None` for the root.
    pub(super) path: Option<EntryPath>,
    pub(super) kind: MemberKind,
    /// The Unix mode, where the program that made the zip knew it.
    pub(super) mode: Option<u32>,
    /// Seconds since 1970, where there are such: the time that every member has is that of an
    /// unknown time zone, and even.
    pub(super) modified: Option<i64>,
    method: Method,
    crc: u32,
    compressed: u64,
    pub(super) size: u64,
    /// Where the local header begins.
    pub(super) offset: u64,
    /// Where header and data must have ended.
    pub(super) end: u64,
}

/// Bits of a header's flags.
mod flag {
    /// Encrypted, in the old or in the strong way, or with headers that are hidden.
    pub(super) const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
    /// Checksum and sizes follow the data.
    pub(super) const DEFERRED: u16 = 1 << 3;
    /// The data are a patch for other data.
    pub(super) const PATCH: u16 = 1 << 5;
    pub(super) const UTF_8: u16 = 1 << 11;
}

/// Systems whose programs put a Unix mode into the attributes: Unix, and macOS.
const UNIX: [u8; 2] = [3, 19];

/// A byte of deflate's output takes at least this fraction of a byte of its input: two bits stand
/// for 258 bytes at most.
const MOST_INFLATED: u64 = 1032;

/// Keys of extra fields.
mod extra {
    pub(super) const ZIP_64: u16 = 0x0001;
    pub(super) const UNIX_TIME: u16 = 0x5455;
    pub(super) const UTF_8_NAME: u16 = 0x7075;
}

/// What a number that stands elsewhere has in its place.
const ELSEWHERE: u32 = u32::MAX;

impl Member {
    /// Takes a header of the central directory, with the name and the extra fields that follow it.
    pub(super) fn parse(header: &[u8; 46], name: &[u8], extra: &[u8]) -> Result<Self, ZipError> {
        let central = Central::parse(header).expect("a header has all its fields");
        let contradiction = |problem| ZipError::Contradiction {
            member: shortened(name),
            problem,
        };
        if central.flags & flag::ENCRYPTED != 0 {
            let member = shortened(name);
            return Err(ZipError::Encrypted { member });
        }
        if central.flags & flag::PATCH != 0 {
            return Err(contradiction("it is a patch for other data"));
        }
        let method = method(name, central.method)?;
        let extras =
            Extras::parse(extra).ok_or_else(|| contradiction("its extra fields are damaged"))?;
        let mut large = Fields(extras.zip_64.unwrap_or_default());
        let mut number = |small: u32| match small {
            ELSEWHERE if extras.zip_64.is_some() => large.u64(),
            small => Some(small.into()),
        };
        let numbers = (|| {
            let size = number(central.size)?;
            let compressed = number(central.compressed)?;
            Some((size, compressed, number(central.offset)?))
        })();
        let damaged = || contradiction("its zip64 field lacks a number");
        let (size, compressed, offset) = numbers.ok_or_else(damaged)?;
        if central.disk != 0 && central.disk != u16::MAX {
            return Err(ZipError::Part);
        }

        let on_unix = UNIX.contains(&central.system);
        let path = path_of(name, &extras, central.flags & flag::UTF_8 != 0, on_unix).map_err(
            |problem| ZipError::Name {
                member: shortened(name),
                problem,
            },
        )?;
        let mode = Some(central.attributes >> 16).filter(|mode| on_unix && *mode != 0);
        let kind = kind(name, mode, central.attributes)?;
        match (kind, method) {
            (MemberKind::Directory, _) if size > 0 => {
                return Err(contradiction("it is a directory with content"));
            }
            (_, Method::Stored) if size != compressed => {
                return Err(contradiction("it is not compressed and has two sizes"));
            }
            (_, Method::Deflate) if size / MOST_INFLATED > compressed => {
                return Err(ZipError::Inflated {
                    member: shortened(name),
                    size,
                    compressed,
                });
            }
            _ => {}
        }
        if path.is_none() && kind != MemberKind::Directory {
            return Err(ZipError::Name {
                member: shortened(name),
                problem: BadPath::Empty.into(),
            });
        }
        Ok(Self {
            name: name.into(),
            path,
            kind,
            mode,
            modified: extras.modified(),
            method,
            crc: central.crc,
            compressed,
            size,
            offset,
            end: u64::MAX,
        })
    }

    pub(super) fn readable_name(&self) -> String {
        shortened(&self.name)
    }

    fn contradiction(&self, problem: &'static str) -> ZipError {
        let member = self.readable_name();
        ZipError::Contradiction { member, problem }
    }

    /// Checks the local header, and gives the place of the data.
    pub(super) fn locate(&self, archive: &Archive<'_>) -> Result<u64, ZipError> {
        let missing = || self.contradiction("its local header is not where the directory says");
        let overlap = || ZipError::Overlap {
            member: self.readable_name(),
        };
        let header: [u8; LOCAL_LENGTH] = archive.read(self.offset)?.ok_or_else(missing)?;
        let local = Local::parse(&header).ok_or_else(missing)?;
        if local.flags & flag::ENCRYPTED != 0 {
            let member = self.readable_name();
            return Err(ZipError::Encrypted { member });
        }
        let mut variable = vec![0; local.name + local.extra];
        if !archive.fill(self.offset + LOCAL_LENGTH as u64, &mut variable)? {
            return Err(missing());
        }
        let (name, extra) = variable.split_at(local.name);
        if *name != *self.name {
            return Err(self.contradiction("its local header has another name"));
        }
        if method(name, local.method)? != self.method {
            return Err(self.contradiction("its local header has another compression method"));
        }
        let data = self.offset + (LOCAL_LENGTH + variable.len()) as u64;
        let end = data.checked_add(self.compressed);
        let end = end.filter(|end| *end <= self.end).ok_or_else(overlap)?;

        let deferred = local.flags & flag::DEFERRED != 0;
        self.compare(&local, extra, deferred)?;
        if deferred {
            let length = self.descriptor(archive, end)?.ok_or_else(|| {
                self.contradiction("what follows its data contradicts the directory")
            })?;
            if end + length > self.end {
                return Err(overlap());
            }
        }
        Ok(data)
    }

    /// Compares checksum and sizes. Where they follow the data, the header has zeros for them or
    /// what it knew.
    fn compare(&self, local: &Local, extra: &[u8], deferred: bool) -> Result<(), ZipError> {
        let extras = Extras::parse(extra);
        let extras =
            extras.ok_or_else(|| self.contradiction("its local extra fields are damaged"))?;
        let mut large = Fields(extras.zip_64.unwrap_or_default());
        let mut number = |small: u32| match small {
            ELSEWHERE if extras.zip_64.is_some() => large.u64(),
            small => Some(small.into()),
        };
        let (size, compressed) = (number(local.size), number(local.compressed));
        let same = |of_local: Option<u64>, own: u64| {
            of_local == Some(own) || (deferred && of_local == Some(0))
        };
        if !same(size, self.size) || !same(compressed, self.compressed) {
            return Err(self.contradiction("its local header has other sizes"));
        }
        if !same(Some(local.crc.into()), self.crc.into()) {
            return Err(self.contradiction("its local header has another checksum"));
        }
        Ok(())
    }

    /// The length of the record after the data, when it says what the directory says: with or
    /// without a signature, the sizes in four bytes or in eight.
    fn descriptor(&self, archive: &Archive<'_>, at: u64) -> Result<Option<u64>, ZipError> {
        let mut bytes = Vec::new();
        archive
            .part(at, 24)
            .read_to_end(&mut bytes)
            .map_err(ZipError::Read)?;
        for signature in [&b"PK\x07\x08"[..], b""] {
            let Some(rest) = bytes.strip_prefix(signature) else {
                continue;
            };
            let mut fields = Fields(rest);
            if fields.u32() != Some(self.crc) {
                continue;
            }
            let start = (signature.len() + 4) as u64;
            let (mut small, mut large) = (fields, fields);
            let sizes = (Some(self.compressed), Some(self.size));
            if (large.u64(), large.u64()) == sizes {
                return Ok(Some(start + 16));
            }
            if (small.u32().map(u64::from), small.u32().map(u64::from)) == sizes {
                return Ok(Some(start + 8));
            }
        }
        Ok(None)
    }

    /// Reads the content, whose data begin at `data`, and gives it to `take` in pieces. It is
    /// exactly what both size and checksum say, or this fails; no more than the size is ever given.
    pub(super) fn read_content(
        &self,
        archive: &Archive<'_>,
        data: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), ZipError>,
    ) -> Result<(), ZipError> {
        let mut input = BufReader::with_capacity(BUFFER, archive.part(data, self.compressed));
        let mut sum = crc32fast::Hasher::new();
        let mut taken = 0;
        let mut give = |piece: &[u8]| {
            taken += piece.len() as u64;
            if taken > self.size {
                return Err(self.other_size("more"));
            }
            sum.update(piece);
            take(piece)
        };
        match self.method {
            Method::Stored => loop {
                let piece = input.fill_buf().map_err(ZipError::Read)?;
                if piece.is_empty() {
                    break;
                }
                give(piece)?;
                let length = piece.len();
                input.consume(length);
            },
            Method::Deflate => self.inflate(&mut input, give)?,
        }
        if taken < self.size {
            return Err(self.other_size("less"));
        }
        if sum.finalize() != self.crc {
            let member = self.readable_name();
            return Err(ZipError::Checksum { member });
        }
        Ok(())
    }

    fn inflate(
        &self,
        input: &mut impl BufRead,
        mut give: impl FnMut(&[u8]) -> Result<(), ZipError>,
    ) -> Result<(), ZipError> {
        let damaged = || ZipError::Damaged {
            member: self.readable_name(),
        };
        let mut inflater = Decompress::new(false);
        let mut piece = vec![0; BUFFER];
        loop {
            let available = input.fill_buf().map_err(ZipError::Read)?;
            let (read, made) = (inflater.total_in(), inflater.total_out());
            let status = inflater
                .decompress(available, &mut piece, FlushDecompress::None)
                .map_err(|_| damaged())?;
            let read = inflater.total_in() - read;
            let made = inflater.total_out() - made;
            let ended = available.is_empty();
            input.consume(usize::try_from(read).expect("no more than was available"));
            give(&piece[..usize::try_from(made).expect("no more than the buffer's length")])?;
            match status {
                // The data must end with the stream.
                Status::StreamEnd if inflater.total_in() == self.compressed => return Ok(()),
                Status::StreamEnd => return Err(damaged()),
                _ if read == 0 && made == 0 && ended => return Err(damaged()),
                _ => {}
            }
        }
    }

    fn other_size(&self, than: &'static str) -> ZipError {
        ZipError::Size {
            member: self.readable_name(),
            than,
            size: self.size,
        }
    }
}

const BUFFER: usize = 64 << 10;

/// The fields of a header in the central directory.
struct Central {
    system: u8,
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u32,
    size: u32,
    disk: u16,
    attributes: u32,
    offset: u32,
}

impl Central {
    fn parse(header: &[u8; 46]) -> Option<Self> {
        let mut fields = Fields(&header[4..]);
        let system = fields.take(2)?[1];
        fields.take(2)?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.take(4)?;
        let (crc, compressed, size) = (fields.u32()?, fields.u32()?, fields.u32()?);
        fields.take(6)?;
        let disk = fields.u16()?;
        fields.take(2)?;
        Some(Self {
            system,
            flags,
            method,
            crc,
            compressed,
            size,
            disk,
            attributes: fields.u32()?,
            offset: fields.u32()?,
        })
    }
}

const LOCAL_LENGTH: usize = 30;

/// The fields of the header before a member's data.
struct Local {
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u32,
    size: u32,
    name: usize,
    extra: usize,
}

impl Local {
    fn parse(header: &[u8; LOCAL_LENGTH]) -> Option<Self> {
        let mut fields = Fields(header.strip_prefix(b"PK\x03\x04")?);
        fields.take(2)?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.take(4)?;
        Some(Self {
            flags,
            method,
            crc: fields.u32()?,
            compressed: fields.u32()?,
            size: fields.u32()?,
            name: fields.u16()?.into(),
            extra: fields.u16()?.into(),
        })
    }
}

/// The extra fields that mean something here.
#[derive(Default)]
struct Extras<'a> {
    zip_64: Option<&'a [u8]>,
    unix_time: Option<&'a [u8]>,
    utf_8_name: Option<&'a [u8]>,
}

impl<'a> Extras<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut extras = Self::default();
        let mut fields = Fields(bytes);
        // Aligning tools leave up to three zeros that are too few for a field.
        while fields.0.len() > 3 || fields.0.iter().any(|&byte| byte != 0) {
            let key = fields.u16()?;
            let length = fields.u16()?;
            let body = fields.take(length.into())?;
            let place = match key {
                extra::ZIP_64 => &mut extras.zip_64,
                extra::UNIX_TIME => &mut extras.unix_time,
                extra::UTF_8_NAME => &mut extras.utf_8_name,
                _ => continue,
            };
            // One reader would take the first, another the second.
            if place.replace(body).is_some() {
                return None;
            }
        }
        Some(extras)
    }

    fn modified(&self) -> Option<i64> {
        let mut fields = Fields(self.unix_time?);
        let present = fields.take(1)?[0] & 1 != 0;
        let seconds = fields.u32()?.cast_signed();
        present.then_some(seconds.into())
    }

    /// The name in UTF-8, if it was made for the name as it stands.
    fn name(&self, name: &[u8]) -> Option<&'a [u8]> {
        let mut fields = Fields(self.utf_8_name?);
        let version = fields.take(1)?[0];
        let sum = fields.u32()?;
        (version == 1 && sum == crc32fast::hash(name)).then_some(fields.0)
    }
}

fn method(name: &[u8], method: u16) -> Result<Method, ZipError> {
    match method {
        0 => Ok(Method::Stored),
        8 => Ok(Method::Deflate),
        method => Err(ZipError::Method {
            member: shortened(name),
            method,
        }),
    }
}

/// The path of a member, `None` for the root.
fn path_of(
    name: &[u8],
    extras: &Extras<'_>,
    utf_8: bool,
    on_unix: bool,
) -> Result<Option<EntryPath>, BadZipName> {
    let (name, utf_8) = match extras.name(name) {
        Some(name) => (name, true),
        None => (name, utf_8),
    };
    // On Unix a name is bytes. Elsewhere it is letters, and only UTF-8 can be told from the rest.
    if (utf_8 || !on_unix) && std::str::from_utf8(name).is_err() {
        return Err(BadZipName::Encoding);
    }
    if let [letter, b':', rest @ ..] = name
        && letter.is_ascii_alphabetic()
        && matches!(rest.first(), None | Some(b'/' | b'\\'))
    {
        return Err(BadZipName::Drive);
    }
    if !on_unix && name.contains(&b'\\') {
        return Err(BadZipName::Backslash);
    }
    if name.len() > LONGEST_NAME {
        return Err(BadPath::Long.into());
    }
    let trimmed = name.strip_suffix(b"/").unwrap_or(name);
    if trimmed.is_empty() && !name.is_empty() {
        return Err(BadPath::Absolute.into());
    }
    Ok(EntryPath::clean(trimmed)?)
}

/// What a member is. A name that ends in a slash is a directory's, whatever else is said, as all
/// tools have it.
fn kind(name: &[u8], mode: Option<u32>, attributes: u32) -> Result<MemberKind, ZipError> {
    const DOS_DIRECTORY: u32 = 0x10;
    let named = name.ends_with(b"/");
    let refused = |kind| {
        let member = shortened(name);
        Err(ZipError::Kind { member, kind })
    };
    match mode.unwrap_or_default() >> 12 {
        0o12 if named => refused("symlink whose name ends in `/`"),
        0o12 => Ok(MemberKind::Symlink),
        0o04 => Ok(MemberKind::Directory),
        0o10 | 0 if named => Ok(MemberKind::Directory),
        0 if mode.is_none() && attributes & DOS_DIRECTORY != 0 => Ok(MemberKind::Directory),
        0o10 | 0 => Ok(MemberKind::File),
        0o01 => refused("FIFO"),
        0o14 => refused("socket"),
        0o02 | 0o06 => refused("device"),
        _ => refused("member of unknown type"),
    }
}
