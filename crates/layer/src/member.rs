//! Reads the members of a tar archive as input that may be hostile.
//!
//! Tar has grown six ways to say the same thing, and where two readers understand an archive
//! differently, something can be hidden from one of them. This reader accepts what common tools
//! write (ustar, PAX, GNU) and refuses what is contradictory. The `tar` crate is not used: read
//! raw, it does not let a PAX `size` decide where the next member begins, and otherwise it takes a
//! newline inside a PAX value for the end of the record (alexcrichton/tar-rs#428).

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::header::{BLOCK, checksum, padding};
use crate::path::{BadPath, EntryPath, LONGEST_PATH, shortened};

/// What an archive may hold at most, so that a small file cannot become an endless one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Members.
    pub members: u64,
}

impl Default for Limits {
    /// 16 GiB, well over the 10 GiB that Lambda runs, and a million members.
    fn default() -> Self {
        Self {
            bytes: 16 << 30,
            members: 1_000_000,
        }
    }
}

/// How an archive is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// It will become part of an image: contradictions are errors.
    Strict,
    /// It is part of one already: it is read as the runtimes read it, which follow Go's reader.
    AsRuntimes,
}

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The archive could not be read or decompressed.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// It does not begin like one.
    #[error(
        "not a tar archive{}: what is read is plain tar, and tar compressed once with gzip or zstd",
        but(*.found)
    )]
    NotTar {
        /// What it is instead, as far as its first bytes tell.
        found: Option<&'static str>,
    },
    /// It ends before it is complete.
    #[error("the archive is truncated: it ends in {place}")]
    Truncated {
        /// What was being read.
        place: String,
    },
    /// A header's sum does not fit its bytes.
    #[error("no tar header at byte {offset}: the checksum does not match")]
    Checksum {
        /// Where the block begins in the uncompressed archive.
        offset: u64,
    },
    /// A single block of zeros is followed by something else, or the end by more data.
    #[error("data after the end of the archive, at byte {offset}")]
    DataAfterEnd {
        /// Where it is.
        offset: u64,
    },
    /// A number in a header is not one.
    #[error("member `{member}` has a bad number in its header field `{field}`")]
    Number {
        /// The member.
        member: String,
        /// The field.
        field: &'static str,
    },
    /// A PAX record is malformed or contradicts another.
    #[error("bad PAX header at byte {offset}: {problem}")]
    Pax {
        /// Where its data begin.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A long-name or PAX header is not followed by the member it speaks of, or is too long.
    #[error("bad extension header at byte {offset}: {problem}")]
    Extension {
        /// Where it begins.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A name leads out of the archive or is malformed.
    #[error("member `{member}` is refused: its name {problem}")]
    Name {
        /// The name, made readable.
        member: String,
        /// What is wrong.
        problem: BadPath,
    },
    /// A link's target is malformed or, for a hardlink, leads out of the archive.
    #[error("link `{member}` is refused: its target `{target}` {problem}")]
    Target {
        /// The link.
        member: String,
        /// Its target.
        target: String,
        /// What is wrong.
        problem: BadPath,
    },
    /// A hardlink's target is not a file that came before it.
    #[error("hardlink `{member}` is refused: its target `{target}` is no earlier file")]
    NoTarget {
        /// The hardlink.
        member: String,
        /// Its target.
        target: String,
    },
    /// A member would be written through a symlink of the same archive.
    #[error("member `{member}` is refused: it lies behind the symlink `{link}`")]
    BehindSymlink {
        /// The member.
        member: String,
        /// The symlink.
        link: EntryPath,
    },
    /// A member lies below a file of the same archive.
    #[error("member `{member}` is refused: `{file}`, which it lies in, is no directory")]
    BehindFile {
        /// The member.
        member: String,
        /// The file.
        file: EntryPath,
    },
    /// Two members have one path.
    #[error("member `{member}` is refused: an earlier member has its path")]
    Duplicate {
        /// The later member.
        member: String,
    },
    /// A member is of a kind that layers of files do not have.
    #[error("member `{member}` is refused: it is a {kind}")]
    Kind {
        /// The member.
        member: String,
        /// What it is.
        kind: &'static str,
    },
    /// A member that has no content states a size.
    #[error("member `{member}` is refused: a {kind} with a size of {size} bytes")]
    SizeWithoutContent {
        /// The member.
        member: String,
        /// What it is.
        kind: &'static str,
        /// The stated size.
        size: u64,
    },
    /// A whiteout that removes nothing that could exist.
    #[error("member `{member}` is refused: it is a deletion without a name")]
    EmptyWhiteout {
        /// The member.
        member: String,
    },
    /// The archive holds more than was allowed.
    #[error("the archive is refused: it holds more than {limit} {unit}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// Contents could not be kept for later.
    #[error("could not write a temporary file in `{directory}`")]
    Spool {
        /// Where.
        directory: String,
        /// What the system said.
        source: io::Error,
    },
}

impl TarError {
    /// Sorts out decoders that say "unexpected end" when their input is cut off.
    pub(crate) fn from_read(source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            Self::Truncated {
                place: "the compressed data".to_owned(),
            }
        } else {
            Self::Read(source)
        }
    }
}

pub(crate) fn but(found: Option<&'static str>) -> String {
    found.map_or_else(String::new, |found| format!(" but {found}"))
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MemberKind {
    Directory,
    File,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Sparse,
    Fifo,
    Device,
    Unknown,
}

impl MemberKind {
    pub(crate) fn noun(&self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::File => "file",
            Self::Symlink(_) => "symlink",
            Self::Hardlink(_) => "hardlink",
            Self::Sparse => {
                "sparse file, which only some readers know how to fill: \
                             make the archive without `--sparse`"
            }
            Self::Fifo => "FIFO",
            Self::Device => "device",
            Self::Unknown => "member of unknown type",
        }
    }

    fn has_content(&self) -> bool {
        matches!(self, Self::File | Self::Sparse | Self::Unknown)
    }
}

/// One member, its content still to be read from the walker.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: MemberKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) modified: i64,
    /// Its own PAX records; what global ones add is known to the walker.
    records: Records,
    /// Where its content begins in the uncompressed archive.
    pub(crate) offset: u64,
}

impl Member {
    pub(crate) fn readable_name(&self) -> String {
        shortened(&self.name)
    }

    /// The path of the member, `None` for the root.
    pub(crate) fn clean_path(&self) -> Result<Option<EntryPath>, TarError> {
        EntryPath::clean(&self.name).map_err(|problem| self.misnamed(problem))
    }

    /// The path that a hardlink names, relative to the archive like every member.
    pub(crate) fn clean_target(&self, target: &[u8]) -> Result<EntryPath, TarError> {
        EntryPath::clean(target)
            .and_then(|path| path.ok_or(BadPath::Empty))
            .map_err(|problem| TarError::Target {
                member: self.readable_name(),
                target: shortened(target),
                problem,
            })
    }

    /// The refusal of its name.
    pub(crate) fn misnamed(&self, problem: BadPath) -> TarError {
        let member = self.readable_name();
        TarError::Name { member, problem }
    }

    /// The refusal of what it is.
    pub(crate) fn refused(&self, kind: &'static str) -> TarError {
        let member = self.readable_name();
        TarError::Kind { member, kind }
    }
}

/// PAX keys and values.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Walks over the members of an uncompressed archive, reading each byte once.
#[derive(Debug)]
pub(crate) struct Walker<R> {
    archive: R,
    strictness: Strictness,
    limits: Limits,
    offset: u64,
    members: u64,
    /// Bytes of the current member's content that are still unread.
    content: u64,
    padding: usize,
    globals: Records,
    /// What the global records take.
    globals_size: usize,
    /// Bytes of metadata that somebody may keep until the archive is read.
    kept: u64,
    ended: bool,
}

/// As much as is read of a long name: four times what Linux takes for a path, so that the refusal
/// of most that are too long names the member.
const LONGEST_NAME: u64 = 16 << 10;
/// As much as the PAX data of one member may be: Linux allows 64 KiB per extended attribute.
const LONGEST_PAX: u64 = 1 << 20;
/// As much as the global PAX records may be together. Git and others write a comment of 50 bytes.
const MOST_GLOBALS: usize = 64 << 10;
/// As much as names, link targets and extended attributes may be together: 268 bytes for each of a
/// million members, while names as long as can be would take 4 GiB, and the directories on their
/// way a thousand times that.
pub(crate) const MOST_METADATA: u64 = 256 << 20;

/// What headers before a member said of it.
#[derive(Default)]
struct Extension {
    pax: Option<Records>,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl Extension {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.target.is_none()
    }
}

impl<R: Read> Walker<R> {
    pub(crate) fn new(archive: R, strictness: Strictness, limits: Limits) -> Self {
        Self {
            archive,
            strictness,
            limits,
            offset: 0,
            members: 0,
            content: 0,
            padding: 0,
            globals: Records::new(),
            globals_size: 0,
            kept: 0,
            ended: false,
        }
    }

    /// Goes on to the next member, past what is unread of the last one. `None` is the end.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut extension = Extension::default();
        loop {
            self.skip_content()?;
            let offset = self.offset;
            let Some(block) = self.read_block()? else {
                // The writers of some images leave the end blocks out, and runtimes do not mind.
                if self.strictness == Strictness::AsRuntimes && extension.is_empty() {
                    self.ended = true;
                    return Ok(None);
                }
                return Err(truncated("the place of a header"));
            };
            if block == [0; BLOCK] {
                if !extension.is_empty() {
                    let problem = "the member it speaks of is missing";
                    return Err(TarError::Extension { offset, problem });
                }
                self.ended = true;
                return match self.read_block()? {
                    Some(second) if second != [0; BLOCK] => Err(TarError::DataAfterEnd {
                        offset: offset + BLOCK as u64,
                    }),
                    _ => Ok(None),
                };
            }
            let header = Header::new(&block, offset)?;
            self.members += 1;
            if self.members > self.limits.members {
                let limit = self.limits.members;
                return Err(TarError::TooLarge {
                    limit,
                    unit: "members",
                });
            }
            match header.flag() {
                b'x' | b'X' => {
                    if extension.pax.is_some() {
                        let problem = "two PAX headers for one member";
                        return Err(TarError::Extension { offset, problem });
                    }
                    extension.pax = Some(self.read_pax(&header)?);
                }
                // Runtimes read past it.
                b'g' if self.strictness == Strictness::AsRuntimes => {
                    let size = extension_size(&header)?;
                    self.begin_content(size)?;
                }
                b'g' => self.read_globals(&header)?,
                b'L' if extension.name.is_none() => {
                    extension.name = Some(self.read_long_name(&header)?);
                }
                b'K' if extension.target.is_none() => {
                    extension.target = Some(self.read_long_name(&header)?);
                }
                b'L' | b'K' => {
                    let problem = "two long names for one member";
                    return Err(TarError::Extension { offset, problem });
                }
                _ => return self.member(&header, extension).map(Some),
            }
        }
    }

    /// Reads the next bytes of the current member's content; zero is its end.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most =
            usize::try_from(self.content).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let read = self.read_some(&mut buffer[..most])?;
        if read == 0 {
            return Err(truncated("the content of a member"));
        }
        self.content -= read as u64;
        Ok(read)
    }

    /// Reads what follows the end blocks, up to the sum that ends compressed data. Padding to the
    /// archive's record size is zeros; anything else would be seen by some readers and not by
    /// others.
    pub(crate) fn finish(mut self) -> Result<R, TarError> {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let offset = self.offset;
            let read = self.read_some(&mut buffer)?;
            if read == 0 {
                return Ok(self.archive);
            }
            let data = buffer[..read].iter().position(|&byte| byte != 0);
            if let (Some(data), Strictness::Strict) = (data, self.strictness) {
                return Err(TarError::DataAfterEnd {
                    offset: offset + data as u64,
                });
            }
        }
    }

    fn member(
        &mut self,
        header: &Header<'_>,
        mut extension: Extension,
    ) -> Result<Member, TarError> {
        let own = self.own_records(header, &mut extension)?;
        // The global records have neither names nor anything of sparse files.
        let named = |key: &str| own.get(key.as_bytes()).filter(|value| !value.is_empty());
        let name = extension
            .name
            .or_else(|| named("GNU.sparse.name").or_else(|| named("path")).cloned())
            .unwrap_or_else(|| header.name());
        let target = extension
            .target
            .or_else(|| named("linkpath").cloned())
            .unwrap_or_else(|| header.target());
        let sparse = own
            .range(SPARSE.to_vec()..)
            .take_while(|(key, _)| key.starts_with(SPARSE))
            .any(|(_, value)| !value.is_empty());
        self.keep((name.len() + target.len()) as u64)?;
        let kind = self.kind(header.flag(), &name, target, sparse)?;

        let bad = |field| TarError::Number {
            member: shortened(&name),
            field,
        };
        let number = |key: &'static str, of_header: Option<u64>| {
            record(&own, &self.globals, key.as_bytes())
                .map_or(of_header, decimal)
                .ok_or_else(|| bad(key))
        };
        let id = |key, of_header| {
            number(key, of_header).and_then(|id| u32::try_from(id).map_err(|_| bad(key)))
        };
        let mut size = number("size", header.size())?;
        if !kind.has_content() && size > 0 {
            if self.strictness == Strictness::Strict {
                let member = shortened(&name);
                return Err(TarError::SizeWithoutContent {
                    member,
                    kind: kind.noun(),
                    size,
                });
            }
            size = 0;
        }
        let modified = match record(&own, &self.globals, b"mtime") {
            Some(seconds) => whole_seconds(seconds),
            None => header.modified(),
        };
        let modified = modified.ok_or_else(|| bad("mtime"))?;
        let mode = header.mode().ok_or_else(|| bad("mode"))?;
        let uid = id("uid", header.uid())?;
        let gid = id("gid", header.gid())?;

        if header.flag() == b'S' && header.block[482] != 0 {
            self.skip_sparse_map()?;
        }
        self.begin_content(size)?;
        Ok(Member {
            name,
            kind,
            mode: (mode & 0o7777) as u32,
            uid,
            gid,
            size,
            modified,
            records: own,
            offset: self.offset,
        })
    }

    /// The extended attribute of a member.
    pub(crate) fn xattr<'a>(&'a self, member: &'a Member, name: &str) -> Option<&'a [u8]> {
        let key = [b"SCHILY.xattr.", name.as_bytes()].concat();
        record(&member.records, &self.globals, &key)
    }

    /// Counts bytes of metadata that are kept, and ends when there are too many.
    pub(crate) fn keep(&mut self, bytes: u64) -> Result<(), TarError> {
        self.kept = self.kept.saturating_add(bytes);
        if self.kept > MOST_METADATA {
            return Err(TarError::TooLarge {
                limit: MOST_METADATA,
                unit: "bytes of names and attributes",
            });
        }
        Ok(())
    }

    fn read_globals(&mut self, header: &Header<'_>) -> Result<(), TarError> {
        let too_large = TarError::TooLarge {
            limit: MOST_GLOBALS as u64,
            unit: "bytes of global PAX records",
        };
        if extension_size(header)? > MOST_GLOBALS as u64 {
            return Err(too_large);
        }
        for (key, value) in self.read_pax(header)? {
            let placing = matches!(&*key, b"path" | b"linkpath" | b"size");
            if placing || key.starts_with(SPARSE) {
                let problem = "a global header gives every member the same place or size";
                let offset = header.offset;
                return Err(TarError::Pax { offset, problem });
            }
            let length = key.len();
            if let Some(before) = self.globals.remove(&key) {
                self.globals_size -= length + before.len();
            }
            // An empty value takes back what a header before it said.
            if !value.is_empty() {
                self.globals_size += length + value.len();
                self.globals.insert(key, value);
            }
        }
        if self.globals_size > MOST_GLOBALS {
            return Err(too_large);
        }
        Ok(())
    }

    /// The PAX records of a member itself.
    fn own_records(
        &self,
        header: &Header<'_>,
        extension: &mut Extension,
    ) -> Result<Records, TarError> {
        let own = extension.pax.take().unwrap_or_default();
        let twice = |gnu: &Option<Vec<u8>>, key: &[u8]| gnu.is_some() && own.contains_key(key);
        if self.strictness == Strictness::Strict
            && (twice(&extension.name, b"path") || twice(&extension.target, b"linkpath"))
        {
            let problem = "a GNU and a PAX header name the same member";
            return Err(TarError::Extension {
                offset: header.offset,
                problem,
            });
        }
        Ok(own)
    }

    fn kind(
        &self,
        flag: u8,
        name: &[u8],
        target: Vec<u8>,
        sparse: bool,
    ) -> Result<MemberKind, TarError> {
        let kind = match flag {
            b'0' | 0 | b'7' if sparse => MemberKind::Sparse,
            // Before ustar a directory was a file whose name ends in a slash.
            0 if name.ends_with(b"/") => MemberKind::Directory,
            b'0' | 0 | b'7' => MemberKind::File,
            b'1' => MemberKind::Hardlink(target),
            b'2' => MemberKind::Symlink(target),
            b'3' | b'4' => MemberKind::Device,
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            b'S' => MemberKind::Sparse,
            _ => MemberKind::Unknown,
        };
        if self.strictness == Strictness::AsRuntimes {
            return Ok(kind);
        }
        let refused = |kind| TarError::Kind {
            member: shortened(name),
            kind,
        };
        match &kind {
            MemberKind::Unknown => Err(refused(kind.noun())),
            MemberKind::File if name.ends_with(b"/") => Err(refused("file whose name ends in `/`")),
            MemberKind::Symlink(target) => match bad_symlink_target(target) {
                Some(problem) => Err(TarError::Target {
                    member: shortened(name),
                    target: shortened(target),
                    problem,
                }),
                None => Ok(kind),
            },
            _ => Ok(kind),
        }
    }

    /// The map of an old GNU sparse file goes on in blocks between header and content.
    fn skip_sparse_map(&mut self) -> Result<(), TarError> {
        loop {
            let block = self
                .read_block()?
                .ok_or_else(|| truncated("a sparse map"))?;
            if block[504] == 0 {
                return Ok(());
            }
        }
    }

    fn begin_content(&mut self, size: u64) -> Result<(), TarError> {
        let end = self.offset.checked_add(size);
        if end.is_none_or(|end| end > self.limits.bytes) {
            return Err(self.too_many_bytes());
        }
        self.content = size;
        self.padding = padding(size);
        Ok(())
    }

    fn too_many_bytes(&self) -> TarError {
        TarError::TooLarge {
            limit: self.limits.bytes,
            unit: "bytes",
        }
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 << 10];
        while self.content > 0 {
            self.read_content(&mut buffer)?;
        }
        let padding = std::mem::take(&mut self.padding);
        let mut filled = 0;
        while filled < padding {
            let read = self.read_some(&mut buffer[filled..padding])?;
            if read == 0 {
                // umoci leaves off the padding of the last member, and with it the end; runtimes,
                // and GNU tar, take the member as whole.
                return match self.strictness {
                    Strictness::AsRuntimes => Ok(()),
                    Strictness::Strict => Err(truncated("the padding of a member")),
                };
            }
            filled += read;
        }
        Ok(())
    }

    /// A block, or `None` where the archive ends before it.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let read = self.read_some(&mut block[filled..])?;
            if read == 0 {
                let start = &block[..filled];
                return match filled {
                    0 => Ok(None),
                    _ if self.offset == filled as u64 && !has_magic(start) => Err(not_tar(start)),
                    _ => Err(truncated("a header")),
                };
            }
            filled += read;
        }
        Ok(Some(block))
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let read = loop {
            match self.archive.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(TarError::from_read)?,
            }
        };
        self.offset += read as u64;
        if self.offset > self.limits.bytes {
            return Err(self.too_many_bytes());
        }
        Ok(read)
    }

    fn read_body(&mut self, header: &Header<'_>, most: u64) -> Result<Vec<u8>, TarError> {
        let size = extension_size(header)?;
        if size > most {
            return Err(TarError::Extension {
                offset: header.offset,
                problem: "it is longer than any name",
            });
        }
        self.begin_content(size)?;
        let mut body = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.read_content(&mut buffer)? {
                0 => return Ok(body),
                read => body.extend_from_slice(&buffer[..read]),
            }
        }
    }

    fn read_long_name(&mut self, header: &Header<'_>) -> Result<Vec<u8>, TarError> {
        let mut name = self.read_body(header, LONGEST_NAME)?;
        if let Some(end) = name.iter().position(|&byte| byte == 0) {
            name.truncate(end);
        }
        if name.is_empty() {
            let offset = header.offset;
            return Err(TarError::Extension {
                offset,
                problem: "the long name is empty",
            });
        }
        Ok(name)
    }

    fn read_pax(&mut self, header: &Header<'_>) -> Result<Records, TarError> {
        let body = self.read_body(header, LONGEST_PAX)?;
        parse_pax(&body).map_err(|problem| TarError::Pax {
            offset: header.offset + BLOCK as u64,
            problem,
        })
    }
}

fn truncated(place: &str) -> TarError {
    TarError::Truncated {
        place: place.to_owned(),
    }
}

fn extension_size(header: &Header<'_>) -> Result<u64, TarError> {
    header.size().ok_or(TarError::Extension {
        offset: header.offset,
        problem: "its size is not a number",
    })
}

/// Start of the keys that make a file a sparse one.
const SPARSE: &[u8] = b"GNU.sparse.";

/// What the PAX records say of a member: its own come before the global ones, and an empty value
/// takes back what a header before it said.
fn record<'a>(own: &'a Records, globals: &'a Records, key: &[u8]) -> Option<&'a [u8]> {
    let value = own.get(key).or_else(|| globals.get(key))?;
    (!value.is_empty()).then_some(value)
}

pub(crate) fn bad_symlink_target(target: &[u8]) -> Option<BadPath> {
    if target.is_empty() {
        Some(BadPath::Empty)
    } else if target.contains(&0) {
        Some(BadPath::Nul)
    } else if target.len() > LONGEST_PATH {
        Some(BadPath::Long)
    } else {
        None
    }
}

/// Whether the first block of an archive is that of a tar, however damaged.
pub(crate) fn has_magic(block: &[u8]) -> bool {
    block.get(257..262) == Some(b"ustar")
}

/// What begins with `start` is no archive, and most often one that is packed differently.
fn not_tar(start: &[u8]) -> TarError {
    let found = packing_of(start);
    TarError::NotTar { found }
}

/// How what begins with `start` is packed, where its first bytes tell.
pub(crate) fn packing_of(start: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 10] = [
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"LZIP", "lzip"),
        (b"\x1f\x9d", "compress (.Z)"),
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ];
    let found = known.iter().find(|(magic, _)| start.starts_with(magic));
    found.map(|(_, name)| *name)
}

/// Splits PAX data by the stated lengths alone: a newline or `=` in a value means nothing.
fn parse_pax(mut body: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::new();
    while !body.is_empty() {
        let space = body
            .iter()
            .take(20)
            .position(|&byte| byte == b' ')
            .ok_or("a record does not begin with its length")?;
        let length = decimal(&body[..space])
            .and_then(|length| usize::try_from(length).ok())
            .ok_or("the length of a record is not a number")?;
        let record = body
            .get(space + 1..length)
            .ok_or("a record is longer than the header")?;
        body = &body[length..];
        let record = record
            .strip_suffix(b"\n")
            .ok_or("a record does not end in a newline")?;
        let equals = record
            .iter()
            .position(|&byte| byte == b'=')
            .ok_or("a record has no `=`")?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err("a record has a bad key");
        }
        if matches!(key, b"path" | b"linkpath" | b"GNU.sparse.name") && value.contains(&0) {
            return Err("a name holds a NUL byte");
        }
        records.insert(key.to_vec(), value.to_vec());
    }
    Ok(records)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds of a PAX time, rounded down.
fn whole_seconds(time: &[u8]) -> Option<i64> {
    let (negative, time) = match time.strip_prefix(b"-") {
        Some(time) => (true, time),
        None => (false, time),
    };
    let mut parts = time.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(match negative {
        false => seconds,
        true if fraction.iter().all(|&digit| digit == b'0') => -seconds,
        true => -seconds - 1,
    })
}

/// A header block whose sum is right.
struct Header<'a> {
    block: &'a [u8; BLOCK],
    offset: u64,
}

impl<'a> Header<'a> {
    fn new(block: &'a [u8; BLOCK], offset: u64) -> Result<Self, TarError> {
        let header = Self { block, offset };
        let unsigned = u64::from(checksum(block));
        // Some old writers summed signed bytes.
        let high = block[..148]
            .iter()
            .chain(&block[156..])
            .filter(|&&byte| byte >= 0x80)
            .count();
        let signed = unsigned.checked_sub(256 * high as u64);
        match octal(&block[148..156]) {
            Some(stated) if stated == unsigned || Some(stated) == signed => Ok(header),
            _ if offset == 0 && !has_magic(block) => Err(not_tar(block)),
            _ => Err(TarError::Checksum { offset }),
        }
    }

    fn flag(&self) -> u8 {
        self.block[156]
    }

    fn name(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        // GNU keeps times where POSIX has the prefix.
        let prefix = match &self.block[257..265] {
            b"ustar\x0000" if &self.block[508..] == b"tar\0" => text(&self.block[345..476]),
            magic if magic.starts_with(b"ustar\0") => text(&self.block[345..500]),
            _ => &[],
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, name].join(&b'/')
        }
    }

    fn target(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    fn mode(&self) -> Option<u64> {
        number(&self.block[100..108])
    }

    fn uid(&self) -> Option<u64> {
        number(&self.block[108..116])
    }

    fn gid(&self) -> Option<u64> {
        number(&self.block[116..124])
    }

    fn size(&self) -> Option<u64> {
        number(&self.block[124..136])
    }

    fn modified(&self) -> Option<i64> {
        let field = &self.block[136..148];
        if field[0] == 0xff {
            // A negative number in base 256: its value is its low eight bytes.
            let low = field[4..].try_into().ok()?;
            return Some(i64::from_be_bytes(low));
        }
        number(field)?.try_into().ok()
    }
}

/// Bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

/// A number in octal digits or, with the high bit set, in GNU's base 256.
fn number(field: &[u8]) -> Option<u64> {
    match field.first() {
        Some(0x80) => field[1..].iter().try_fold(0_u64, |number, &byte| {
            Some(number.checked_mul(256)? | u64::from(byte))
        }),
        _ => octal(field),
    }
}

/// Octal digits, which old writers put among spaces and NULs. A field without digits is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return None;
    }
    digits[..end]
        .iter()
        .try_fold(0_u64, |number, &digit| match digit {
            b'0'..=b'7' => Some(number.checked_mul(8)? | u64::from(digit - b'0')),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_are_split_by_length_alone() {
        let hidden = b"45 SCHILY.xattr.a=x\n22 linkpath=/etc/evil\n\n\n";
        assert_eq!(hidden.len(), 44);
        let mut body = hidden.to_vec();
        body[1] = b'4';
        body.extend(b"12 path=a=b\n");
        let records = parse_pax(&body).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[&b"path"[..]], b"a=b");
        assert_eq!(
            records[&b"SCHILY.xattr.a"[..]],
            b"x\n22 linkpath=/etc/evil\n\n"
        );
    }

    #[test]
    fn malformed_pax_records_are_refused() {
        for body in [
            &b"path=a\n"[..],
            b" 9 path=a\n",
            b"9 path=a",
            b"99 path=a\n",
            b"10 path=a\nx",
            b"2 \n",
            b"0 path=a\n",
            b"1 path=a\n",
            b"8 patha\n",
            b"5 =a\n",
            b"+9 path=a\n",
            b"10 path=a\0\n",
            b"18446744073709551617 path=a\n",
        ] {
            assert!(parse_pax(body).is_err(), "{}", shortened(body));
        }
    }

    #[test]
    fn numbers_of_all_writers_are_read() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"\x80\0\0\0\x01\0\0\x02", Some(0x0100_0002)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"0000648\0", None),
            (b"12 34\0\0\0", None),
            (b"-000001\0", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
        assert_eq!(whole_seconds(b"1.5"), Some(1));
        assert_eq!(whole_seconds(b"-1.5"), Some(-2));
        assert_eq!(whole_seconds(b"-1.0"), Some(-1));
        assert_eq!(whole_seconds(b"1e9"), None);
    }
}
