//! One member of a zip: what its headers say, and its content.

use std::io::{self, BufRead, BufReader, Read};

use flate2::{Decompress, FlushDecompress, Status};
use rawzip::extra_fields::{ExtraFieldId, ExtraFields};
use rawzip::{
    CompressionMethod, CreatorSystem, EntryFlags, ErrorKind, ZipArchiveEntryWayfinder, ZipEntry,
    ZipFileHeaderRecord, ZipLocalFileHeader,
};

use crate::path::{BadPath, EntryPath, shortened};

use super::directory::{Archive, LONGEST_NAME, Zip};
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
    /// Its sizes, and the way to its local header.
    way: ZipArchiveEntryWayfinder,
    /// Where the local header begins.
    pub(super) offset: u64,
    /// Where header and data must have ended.
    pub(super) end: u64,
}

/// Whether the flags say that it is encrypted, in the old or in the strong way, or that headers are
/// hidden.
fn is_encrypted(flags: EntryFlags) -> bool {
    flags.is_encrypted() || flags.has_strong_encryption() || flags.is_masked()
}

/// The flag of data that are a patch for other data.
const PATCH: u16 = 1 << 5;

/// Systems whose programs put a Unix mode into the attributes.
const UNIX: [CreatorSystem; 2] = [CreatorSystem::UNIX, CreatorSystem::MACOS];

/// A byte of deflate's output takes at least this fraction of a byte of its input: two bits stand
/// for 258 bytes at most.
const MOST_INFLATED: u64 = 1032;

impl Member {
    /// Takes a header of the central directory.
    pub(super) fn parse(header: &ZipFileHeaderRecord<'_>) -> Result<Self, ZipError> {
        let path = header.file_path();
        let name = path.as_ref();
        let contradiction = |problem| ZipError::Contradiction {
            member: shortened(name),
            problem,
        };
        let flags = header.flags();
        if is_encrypted(flags) {
            let member = shortened(name);
            return Err(ZipError::Encrypted { member });
        }
        if flags.bits() & PATCH != 0 {
            return Err(contradiction("it is a patch for other data"));
        }
        let method = method(name, header.compression_method())?;
        let extras = Extras::parse(header.extra_fields())
            .ok_or_else(|| contradiction("its extra fields are damaged"))?;
        let way = header.wayfinder();
        let (size, compressed) = (way.uncompressed_size_hint(), way.compressed_size_hint());
        let offset = header.local_header_offset();
        if extras.lacks_one_of([size, compressed, offset]) {
            return Err(contradiction("its zip64 field lacks a number"));
        }

        let attributes = header.external_attributes();
        let on_unix = UNIX.contains(&header.version_made_by().creator_system());
        let path =
            path_of(name, &extras, flags.is_utf8(), on_unix).map_err(|problem| ZipError::Name {
                member: shortened(name),
                problem,
            })?;
        let mode = Some(attributes >> 16).filter(|mode| on_unix && *mode != 0);
        let kind = kind(name, mode, attributes)?;
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
            crc: header.crc32(),
            way,
            offset,
            end: u64::MAX,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.way.uncompressed_size_hint()
    }

    fn compressed(&self) -> u64 {
        self.way.compressed_size_hint()
    }

    pub(super) fn readable_name(&self) -> String {
        shortened(&self.name)
    }

    fn contradiction(&self, problem: &'static str) -> ZipError {
        let member = self.readable_name();
        ZipError::Contradiction { member, problem }
    }

    /// Checks the local header, and gives the place of the data.
    ///
    /// The library believes the directory alone.
    pub(super) fn locate<'a>(
        &self,
        zip: &'a Zip<'_>,
    ) -> Result<ZipEntry<'a, Archive<'a>>, ZipError> {
        let missing = |error: rawzip::Error| match error.into_kind() {
            ErrorKind::IO(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                ZipError::Read(error)
            }
            _ => self.contradiction("its local header is not where the directory says"),
        };
        let overlap = || ZipError::Overlap {
            member: self.readable_name(),
        };
        let entry = zip.get_entry(self.way).map_err(missing)?;
        let (start, end) = entry.compressed_data_range();
        // Room for name and extra fields, which both are short.
        let mut variable = vec![0; usize::try_from(start - self.offset).unwrap_or_default()];
        let local = entry.local_header(&mut variable).map_err(missing)?;
        if is_encrypted(local.flags()) {
            let member = self.readable_name();
            return Err(ZipError::Encrypted { member });
        }
        let path = local.file_path();
        let name = path.as_ref();
        if *name != *self.name {
            return Err(self.contradiction("its local header has another name"));
        }
        if method(name, local.compression_method())? != self.method {
            return Err(self.contradiction("its local header has another compression method"));
        }
        if end > self.end {
            return Err(overlap());
        }
        self.compare(&local)?;
        if local.flags().has_data_descriptor() {
            let length = self.descriptor(*zip.get_ref(), end)?.ok_or_else(|| {
                self.contradiction("what follows its data contradicts the directory")
            })?;
            if end + length > self.end {
                return Err(overlap());
            }
        }
        Ok(entry)
    }

    /// Compares checksum and sizes. Where they follow the data, the header has zeros for them or
    /// what it knew.
    fn compare(&self, local: &ZipLocalFileHeader<'_>) -> Result<(), ZipError> {
        if Extras::parse(local.extra_fields()).is_none() {
            return Err(self.contradiction("its local extra fields are damaged"));
        }
        let deferred = local.flags().has_data_descriptor();
        let same = |of_local: u64, own: u64| of_local == own || (deferred && of_local == 0);
        if !same(local.uncompressed_size_hint(), self.size())
            || !same(local.compressed_size_hint(), self.compressed())
        {
            return Err(self.contradiction("its local header has other sizes"));
        }
        if !same(local.crc32().into(), self.crc.into()) {
            return Err(self.contradiction("its local header has another checksum"));
        }
        Ok(())
    }

    /// The length of the record after the data, when it says what the directory says: with or
    /// without a signature, the sizes in eight bytes or in four.
    ///
    /// Programs that do not know a size beforehand use eight for whatever it becomes; the library
    /// looks for them in large zips alone.
    fn descriptor(&self, archive: Archive<'_>, at: u64) -> Result<Option<u64>, ZipError> {
        let found = archive.up_to(at, 24)?;
        let (crc, sizes) = (self.crc.to_le_bytes(), [self.compressed(), self.size()]);
        let large = sizes.map(u64::to_le_bytes).concat();
        let small = sizes.map(|size| u32::try_from(size).map(u32::to_le_bytes));
        let small = match small {
            [Ok(compressed), Ok(size)] => Some([compressed, size].concat()),
            _ => None,
        };
        for signature in [&b"PK\x07\x08"[..], b""] {
            for sizes in [Some(&large), small.as_ref()].into_iter().flatten() {
                let record = [signature, &crc, sizes].concat();
                if found.starts_with(&record) {
                    return Ok(Some(record.len() as u64));
                }
            }
        }
        Ok(None)
    }

    /// Reads the content. It is exactly what both size and checksum say, or this fails; no more
    /// than the size is ever given to `take`.
    pub(super) fn read_content(
        &self,
        entry: &ZipEntry<'_, Archive<'_>>,
        mut take: impl FnMut(&[u8]) -> Result<(), ZipError>,
    ) -> Result<(), ZipError> {
        let data: Box<dyn Read + '_> = match self.method {
            Method::Stored => Box::new(entry.reader()),
            Method::Deflate => Box::new(Inflate {
                input: BufReader::with_capacity(BUFFER, entry.reader()),
                inflater: Decompress::new(false),
                compressed: self.compressed(),
                ended: false,
            }),
        };
        let mut content = entry.verifying_reader(data);
        let mut piece = vec![0; BUFFER];
        loop {
            match content.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(length) => take(&piece[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.content_error(error)),
            }
        }
    }

    fn content_error(&self, error: io::Error) -> ZipError {
        if error.kind() != io::ErrorKind::InvalidData {
            return ZipError::Read(error);
        }
        let member = self.readable_name();
        let found = error.get_ref().and_then(|error| error.downcast_ref());
        match found.map(rawzip::Error::kind) {
            Some(&ErrorKind::InvalidSize { expected, actual }) => ZipError::Size {
                member,
                than: if actual > expected { "more" } else { "less" },
                size: expected,
            },
            Some(ErrorKind::InvalidChecksum { .. }) => ZipError::Checksum { member },
            _ => ZipError::Damaged { member },
        }
    }
}

const BUFFER: usize = 64 << 10;

/// Inflates data that must end where their stream does; [`io::ErrorKind::InvalidData`] otherwise.
struct Inflate<R> {
    input: BufReader<R>,
    inflater: Decompress,
    compressed: u64,
    ended: bool,
}

impl<R: Read> Read for Inflate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        while !self.ended {
            let available = self.input.fill_buf()?;
            let last = available.is_empty();
            let (read, made) = (self.inflater.total_in(), self.inflater.total_out());
            let status = self
                .inflater
                .decompress(available, buffer, FlushDecompress::None)
                .map_err(|_| damaged())?;
            let read = self.inflater.total_in() - read;
            let made = self.inflater.total_out() - made;
            self.input
                .consume(usize::try_from(read).expect("no more than was available"));
            match status {
                Status::StreamEnd if self.inflater.total_in() == self.compressed => {
                    self.ended = true;
                }
                Status::StreamEnd => return Err(damaged()),
                _ if read == 0 && made == 0 && last => return Err(damaged()),
                _ => {}
            }
            if made > 0 {
                return Ok(usize::try_from(made).expect("no more than the buffer's length"));
            }
        }
        Ok(0)
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
    fn parse(mut fields: ExtraFields<'a>) -> Option<Self> {
        let mut extras = Self::default();
        for (id, body) in fields.by_ref() {
            let place = match id {
                ExtraFieldId::ZIP64 => &mut extras.zip_64,
                ExtraFieldId::EXTENDED_TIMESTAMP => &mut extras.unix_time,
                ExtraFieldId::INFO_ZIP_UNICODE_PATH => &mut extras.utf_8_name,
                _ => continue,
            };
            // One reader would take the first, another the second.
            if place.replace(body).is_some() {
                return None;
            }
        }
        // Aligning tools leave up to three zeros that are too few for a field.
        let rest = fields.remaining_bytes();
        (rest.len() <= 3 && rest.iter().all(|&byte| byte == 0)).then_some(extras)
    }

    /// Whether one of the numbers should stand in the field for large ones and does not: the
    /// library then gives what says that it stands elsewhere.
    fn lacks_one_of(&self, numbers: [u64; 3]) -> bool {
        const ELSEWHERE: u64 = u32::MAX as u64;
        self.zip_64.is_some_and(|field| {
            let (present, _) = field.as_chunks();
            numbers.contains(&ELSEWHERE) && !present.contains(&ELSEWHERE.to_le_bytes())
        })
    }

    fn modified(&self) -> Option<i64> {
        let (present, rest) = self.unix_time?.split_first()?;
        let seconds = i32::from_le_bytes(*rest.first_chunk()?);
        (present & 1 != 0).then_some(seconds.into())
    }

    /// The name in UTF-8, if it was made for the name as it stands.
    fn name(&self, name: &[u8]) -> Option<&'a [u8]> {
        let (version, rest) = self.utf_8_name?.split_first()?;
        let (sum, utf_8) = rest.split_first_chunk()?;
        let own = u32::from_le_bytes(*sum) == crc32fast::hash(name);
        (*version == 1 && own).then_some(utf_8)
    }
}

fn method(name: &[u8], method: CompressionMethod) -> Result<Method, ZipError> {
    match method {
        CompressionMethod::STORE => Ok(Method::Stored),
        CompressionMethod::DEFLATE => Ok(Method::Deflate),
        method => Err(ZipError::Method {
            member: shortened(name),
            method: method.as_u16(),
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
