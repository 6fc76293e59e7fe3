//! Finds the members of a zip: the end record, and the central directory that it leads to.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use crate::member::{Limits, MOST_METADATA, has_magic, packing_of};
use crate::path::LONGEST_PATH;

use super::member::Member;
use super::problem::ZipError;

/// A file that is read at any place.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    file: &'a File,
    pub(super) size: u64,
}

impl<'a> Archive<'a> {
    pub(super) fn new(file: &'a File, size: u64) -> Self {
        Self { file, size }
    }

    /// Reads a part of fixed length; `None` when the file ends before it does.
    pub(super) fn read<const LENGTH: usize>(
        &self,
        offset: u64,
    ) -> Result<Option<[u8; LENGTH]>, ZipError> {
        let mut bytes = [0; LENGTH];
        Ok(self.fill(offset, &mut bytes)?.then_some(bytes))
    }

    /// Fills `bytes` from `offset` on; `false` when the file ends before they are full.
    pub(super) fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<bool, ZipError> {
        // Also where no file can be that long.
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Ok(false);
        }
        match self.file.read_exact_at(bytes, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(ZipError::Read(error)),
        }
    }

    /// The bytes from `offset` on, at most `length`, as a stream.
    pub(super) fn part(&self, offset: u64, length: u64) -> io::Take<Part<'a>> {
        let file = self.file;
        Part { file, offset }.take(length)
    }
}

/// A file from some place on.
#[derive(Debug)]
pub(super) struct Part<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Numbers as zips have them, the least significant byte first, from the front of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

const END: &[u8; 4] = b"PK\x05\x06";
const END_LENGTH: usize = 22;
const END_64: &[u8; 4] = b"PK\x06\x06";
const END_64_LENGTH: usize = 56;
const LOCATOR: &[u8; 4] = b"PK\x06\x07";
const LOCATOR_LENGTH: usize = 20;
const HEADER: &[u8; 4] = b"PK\x01\x02";
const HEADER_LENGTH: usize = 46;

/// What the end of a zip says of its central directory.
#[derive(Debug, PartialEq, Eq)]
struct Directory {
    members: u64,
    offset: u64,
    length: u64,
}

fn bad(problem: &'static str) -> ZipError {
    ZipError::Directory { problem }
}

/// Reads the central directory: all members, in its order. Their local headers were not looked at.
///
/// Everything between the directory and the end of the file must be what the format puts there, so
/// that all readers find the same directory.
pub(super) fn read_members(archive: &Archive<'_>, limits: Limits) -> Result<Vec<Member>, ZipError> {
    let directory = find(archive)?;
    if directory.members > limits.members {
        return Err(ZipError::TooLarge {
            limit: limits.members,
            unit: "members",
        });
    }
    let mut reader =
        BufReader::with_capacity(64 << 10, archive.part(directory.offset, directory.length));
    let mut members = Vec::new();
    let mut kept = 0;
    let mut bytes = 0_u64;
    let mut variable = Vec::new();
    while !reader.fill_buf().map_err(ZipError::Read)?.is_empty() {
        if members.len() as u64 == directory.members {
            return Err(bad("it has more members than its end says"));
        }
        let mut header = [0; HEADER_LENGTH];
        fill(&mut reader, &mut header)?;
        if !header.starts_with(HEADER) {
            return Err(bad("a header in it does not begin as one"));
        }
        let length = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (name, extra, comment) = (length(28), length(30), length(32));
        variable.clear();
        variable.resize(name + extra + comment, 0);
        fill(&mut reader, &mut variable)?;
        let (name, rest) = variable.split_at(name);
        let member = Member::parse(&header, name, &rest[..extra])?;
        kept += 2 * name.len() as u64;
        if kept > MOST_METADATA {
            return Err(ZipError::TooLarge {
                limit: MOST_METADATA,
                unit: "bytes of names and attributes",
            });
        }
        bytes = bytes.saturating_add(member.size);
        if bytes > limits.bytes {
            return Err(ZipError::TooLarge {
                limit: limits.bytes,
                unit: "bytes",
            });
        }
        members.push(member);
    }
    if (members.len() as u64) < directory.members {
        return Err(bad("it has fewer members than its end says"));
    }
    // No member's data may reach into it.
    for member in &mut members {
        member.end = directory.offset;
    }
    Ok(members)
}

fn fill(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), ZipError> {
    reader
        .read_exact(bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => bad("it ends within a header"),
            _ => ZipError::Read(error),
        })
}

fn find(archive: &Archive<'_>) -> Result<Directory, ZipError> {
    let most = (END_LENGTH + usize::from(u16::MAX)) as u64;
    let start = archive.size.saturating_sub(most);
    let mut tail = Vec::new();
    archive
        .part(start, most)
        .read_to_end(&mut tail)
        .map_err(ZipError::Read)?;
    let found = tail.windows(END.len()).rposition(|window| window == END);
    let Some(found) = found else {
        return Err(none(archive)?);
    };
    // A record within the comment of another is found before it, and does not reach the end.
    let mut fields = Fields(&tail[found + END.len()..]);
    let offset = start + found as u64;
    let (mut directory, mut parts, comment) = parse_end(&mut fields).ok_or(ZipError::Truncated)?;
    match fields.0.len().checked_sub(comment) {
        None => return Err(ZipError::Truncated),
        Some(0) => {}
        Some(_) => {
            return Err(ZipError::DataAfterEnd {
                offset: offset + (END_LENGTH + comment) as u64,
            });
        }
    }
    let mut end = offset;
    if let Some((start, large)) = find_64(archive, offset)? {
        let (large, of_large) = large;
        let fits = |small: u64, most: u64, large: u64| small == most || small == large;
        let (two, four) = (u16::MAX.into(), u32::MAX.into());
        if !(fits(directory.members, two, large.members)
            && fits(directory.length, four, large.length)
            && fits(directory.offset, four, large.offset))
        {
            return Err(bad("its two ends contradict each other"));
        }
        directory = large;
        parts = of_large;
        end = start;
    }
    if parts {
        return Err(ZipError::Part);
    }
    if directory.offset.checked_add(directory.length) != Some(end) {
        return Err(bad("it does not lie where its end says"));
    }
    Ok(directory)
}

/// What is wrong with a file that has no end record.
fn none(archive: &Archive<'_>) -> Result<ZipError, ZipError> {
    let mut start = Vec::new();
    archive
        .part(0, 512)
        .read_to_end(&mut start)
        .map_err(ZipError::Read)?;
    Ok(match packing_of(&start) {
        Some("zip") => ZipError::Truncated,
        None if has_magic(&start) => ZipError::NotZip { found: Some("tar") },
        found => ZipError::NotZip { found },
    })
}

/// Reads the end record: the directory, whether it is one of several parts, and the comment's
/// length.
fn parse_end(fields: &mut Fields<'_>) -> Option<(Directory, bool, usize)> {
    let (disk, of_directory) = (fields.u16()?, fields.u16()?);
    let (here, members) = (fields.u16()?, fields.u16()?);
    let (length, offset) = (fields.u32()?, fields.u32()?);
    let comment = fields.u16()?;
    let whole = |part: u16| part == 0 || part == u16::MAX;
    let directory = Directory {
        members: members.into(),
        offset: offset.into(),
        length: length.into(),
    };
    let parts = !whole(disk) || !whole(of_directory) || here != members;
    Some((directory, parts, comment.into()))
}

/// Where the end record for large zips begins, and what it says.
type Large = (u64, (Directory, bool));

fn find_64(archive: &Archive<'_>, end: u64) -> Result<Option<Large>, ZipError> {
    let Some(at) = end.checked_sub(LOCATOR_LENGTH as u64) else {
        return Ok(None);
    };
    let locator: Option<[u8; LOCATOR_LENGTH]> = archive.read(at)?;
    let Some(locator) = locator.filter(|locator| locator.starts_with(LOCATOR)) else {
        return Ok(None);
    };
    let misplaced = || bad("it does not lie where its end says");
    let mut fields = Fields(&locator[LOCATOR.len()..]);
    let (Some(disk), Some(offset), Some(disks)) = (fields.u32(), fields.u64(), fields.u32()) else {
        return Err(misplaced());
    };
    if disk != 0 || disks > 1 {
        return Err(ZipError::Part);
    }
    let record: [u8; END_64_LENGTH] = archive.read(offset)?.ok_or_else(misplaced)?;
    if !record.starts_with(END_64) {
        return Err(misplaced());
    }
    let parsed = parse_end_64(&mut Fields(&record[END_64.len()..]));
    let (length, directory, parts) = parsed.ok_or_else(misplaced)?;
    // The stated length leaves out itself and the signature.
    if length
        .checked_add(12)
        .and_then(|length| length.checked_add(offset))
        != Some(at)
    {
        return Err(misplaced());
    }
    Ok(Some((offset, (directory, parts))))
}

fn parse_end_64(fields: &mut Fields<'_>) -> Option<(u64, Directory, bool)> {
    let length = fields.u64()?;
    fields.take(4)?;
    let (disk, of_directory) = (fields.u32()?, fields.u32()?);
    let (here, members) = (fields.u64()?, fields.u64()?);
    let (bytes, offset) = (fields.u64()?, fields.u64()?);
    let directory = Directory {
        members,
        offset,
        length: bytes,
    };
    let parts = disk != 0 || of_directory != 0 || here != members;
    Some((length, directory, parts))
}

/// Bytes that a name may have: those of the longest path, and a slash after it.
pub(super) const LONGEST_NAME: usize = LONGEST_PATH + 1;
