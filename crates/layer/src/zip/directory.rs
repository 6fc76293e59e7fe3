//! Finds the members of a zip: the end record, and the central directory that it leads to.
//!
//! `rawzip` reads them, and takes what it can make sense of. What it leaves open is closed here:
//! everything between the directory and the end of the file must be what the format puts there, so
//! that all readers find the same directory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rawzip::{
    ErrorKind, MAX_CENTRAL_DIRECTORY_RECORD_SIZE, RangeReader, ReaderAt, ZipArchive, ZipLocator,
};

use crate::member::{Limits, MOST_METADATA, has_magic, packing_of};
use crate::path::LONGEST_PATH;

use super::member::Member;
use super::problem::ZipError;

/// A zip whose end was found.
pub(super) type Zip<'a> = ZipArchive<Archive<'a>>;

/// A file that is read at any place, and no further than it went when it was opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Archive<'a> {
    file: &'a File,
    size: u64,
}

impl ReaderAt for Archive<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // Also where no file can be that long.
        if offset >= self.size {
            return Ok(0);
        }
        loop {
            match self.file.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl<'a> Archive<'a> {
    pub(super) fn new(file: &'a File, size: u64) -> Self {
        Self { file, size }
    }

    /// Reads a part of fixed length; `None` when the file ends before it does.
    fn read<const LENGTH: usize>(&self, offset: u64) -> Result<Option<[u8; LENGTH]>, ZipError> {
        Ok(self.up_to(offset, LENGTH)?.try_into().ok())
    }

    /// The bytes from `offset` on, `length` of them or those that there are.
    pub(super) fn up_to(&self, offset: u64, length: usize) -> Result<Vec<u8>, ZipError> {
        let mut bytes = Vec::new();
        RangeReader::new(self, offset..offset.saturating_add(length as u64))
            .read_to_end(&mut bytes)
            .map_err(ZipError::Read)?;
        Ok(bytes)
    }
}

/// The length of the end record without its comment.
const END_LENGTH: usize = 22;
const END_64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR: &[u8; 4] = b"PK\x06\x07";
const LOCATOR_LENGTH: usize = 20;
const HEADER: &[u8; 4] = b"PK\x01\x02";
/// The length of a header in the directory without what has a length of its own.
const HEADER_LENGTH: usize = 46;

fn bad(problem: &'static str) -> ZipError {
    ZipError::Directory { problem }
}

fn misplaced() -> ZipError {
    bad("it does not lie where its end says")
}

/// A number as zips have it, the least significant byte first.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Reads the central directory: all members, in its order. Their local headers were not looked at.
pub(super) fn read_members(
    archive: Archive<'_>,
    limits: Limits,
) -> Result<(Zip<'_>, Vec<Member>), ZipError> {
    let mut buffer = vec![0; MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
    let zip = find(archive, &mut buffer)?;
    if zip.entries_hint() > limits.members {
        return Err(ZipError::TooLarge {
            limit: limits.members,
            unit: "members",
        });
    }
    let start = zip.directory_offset();
    let mut end = start;
    let mut headers = zip.entries(&mut buffer);
    let mut members = Vec::new();
    let mut kept = 0;
    let mut bytes = 0_u64;
    for _ in 0..zip.entries_hint() {
        let header = headers.next_entry().map_err(header_error)?;
        let header = header.ok_or_else(|| bad("it has fewer members than its end says"))?;
        let name = header.file_path().as_ref().len();
        let extra = header.extra_fields().remaining_bytes().len();
        let length = HEADER_LENGTH + name + extra + header.comment().as_bytes().len();
        end = header.central_directory_offset() + length as u64;
        // The library does not tell which part of a split zip holds the member.
        let part = header.central_directory_offset() + 34;
        let part: Option<[u8; 2]> = archive.read(part)?;
        if !part.is_some_and(|part| is_whole(&part)) {
            return Err(ZipError::Part);
        }
        let mut member = Member::parse(&header)?;
        // No member's data may reach into the directory.
        member.end = start;
        kept += 2 * name as u64;
        if kept > MOST_METADATA {
            return Err(ZipError::TooLarge {
                limit: MOST_METADATA,
                unit: "bytes of names and attributes",
            });
        }
        bytes = bytes.saturating_add(member.size());
        if bytes > limits.bytes {
            return Err(ZipError::TooLarge {
                limit: limits.bytes,
                unit: "bytes",
            });
        }
        members.push(member);
    }
    check_end(&zip, end)?;
    Ok((zip, members))
}

fn header_error(error: rawzip::Error) -> ZipError {
    match error.into_kind() {
        ErrorKind::IO(error) => ZipError::Read(error),
        ErrorKind::InvalidSignature { .. } => bad("a header in it does not begin as one"),
        _ => bad("it ends within a header"),
    }
}

/// Finds the end record, which must be the end of the file.
fn find<'a>(archive: Archive<'a>, buffer: &mut [u8]) -> Result<Zip<'a>, ZipError> {
    let most = END_LENGTH as u64 + u64::from(u16::MAX);
    let located =
        ZipLocator::new()
            .max_search_space(most)
            .locate_in_reader(archive, buffer, archive.size);
    let zip = match located {
        Ok(zip) => zip,
        Err((archive, error)) => {
            let end = error.eocd_offset();
            return Err(match error.into_kind() {
                ErrorKind::MissingEndOfCentralDirectory => none(archive)?,
                ErrorKind::IO(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    ZipError::Read(error)
                }
                ErrorKind::IO(_) | ErrorKind::Eof => ZipError::Truncated,
                _ if end.is_some_and(|end| is_part(archive, end).unwrap_or(false)) => {
                    ZipError::Part
                }
                _ => misplaced(),
            });
        }
    };
    let offset = zip.end_offset();
    if offset != archive.size {
        return Err(ZipError::DataAfterEnd { offset });
    }
    if is_part(archive, zip.eocd_offset())? {
        return Err(ZipError::Part);
    }
    Ok(zip)
}

/// What is wrong with a file that has no end record.
fn none(archive: Archive<'_>) -> Result<ZipError, ZipError> {
    let start = archive.up_to(0, 512)?;
    Ok(match packing_of(&start) {
        Some("zip") => ZipError::Truncated,
        None if has_magic(&start) => ZipError::NotZip { found: Some("tar") },
        found => ZipError::NotZip { found },
    })
}

/// Whether the end record at `end` is one of a zip that was split, which the library does not ask.
fn is_part(archive: Archive<'_>, end: u64) -> Result<bool, ZipError> {
    let record: [u8; END_LENGTH] = archive.read(end)?.ok_or(ZipError::Truncated)?;
    let (here, members) = (&record[8..10], &record[10..12]);
    let large = number(here) == 0xffff || number(members) == 0xffff;
    let mut part =
        !is_whole(&record[4..6]) || !is_whole(&record[6..8]) || (here != members && !large);
    if let Some(locator) = locator(archive, end)? {
        part |= number(&locator[4..8]) != 0 || number(&locator[16..20]) > 1;
    }
    Ok(part)
}

/// Whether the number of a part is the only one's, or stands elsewhere.
fn is_whole(part: &[u8]) -> bool {
    matches!(number(part), 0 | 0xffff)
}

/// What stands before the end record at `end` of a large zip, and says where its other one is.
fn locator(archive: Archive<'_>, end: u64) -> Result<Option<[u8; LOCATOR_LENGTH]>, ZipError> {
    let Some(at) = end.checked_sub(LOCATOR_LENGTH as u64) else {
        return Ok(None);
    };
    let locator: Option<[u8; LOCATOR_LENGTH]> = archive.read(at)?;
    Ok(locator.filter(|locator| locator.starts_with(LOCATOR)))
}

/// Checks that the directory, whose last header ends at `end`, is all that the end records state,
/// and that nothing but them follows it. The library looks for a directory where none is stated,
/// does not compare lengths, and passes over an end record for large zips that makes no sense.
fn check_end(zip: &Zip<'_>, end: u64) -> Result<(), ZipError> {
    let archive = *zip.get_ref();
    let last = zip.eocd_offset();
    if end < last && archive.read(end)?.as_ref() == Some(HEADER) {
        return Err(bad("it has more members than its end says"));
    }
    let start = zip.directory_offset();
    let found = [zip.entries_hint(), end - start, start];
    let record: [u8; END_LENGTH] = archive.read(last)?.ok_or(ZipError::Truncated)?;
    let stated = [&record[10..12], &record[12..16], &record[16..20]].map(number);
    let Some(locator) = locator(archive, last)? else {
        if end != last || stated != found || record[8..10] != record[10..12] {
            return Err(misplaced());
        }
        return Ok(());
    };
    let large: Option<[u8; 56]> = archive.read(end)?;
    let large = large.filter(|large| large.starts_with(END_64));
    let large = large.ok_or_else(misplaced)?;
    // The stated length leaves out itself and the signature.
    let length = number(&large[4..12]).saturating_add(12);
    if number(&locator[8..16]) != end
        || end.saturating_add(length) != last - LOCATOR_LENGTH as u64
        || [&large[32..40], &large[40..48], &large[48..56]].map(number) != found
    {
        return Err(misplaced());
    }
    if number(&large[16..24]) != 0 || large[24..32] != large[32..40] {
        return Err(ZipError::Part);
    }
    let most = [0xffff, 0xffff_ffff, 0xffff_ffff];
    let mut small = stated.into_iter().zip(most).zip(found);
    if small.any(|((stated, most), found)| stated != most && stated != found) {
        return Err(bad("its two ends contradict each other"));
    }
    Ok(())
}

/// Bytes that a name may have: those of the longest path, and a slash after it.
pub(super) const LONGEST_NAME: usize = LONGEST_PATH + 1;
