//! Zips made byte by byte: good ones, and such as no tool writes.
//!
//! Both headers of a member can be edited on their own before [`Zip::build`] writes them as they
//! are.

use std::io::Write as _;

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

/// What stands in the header before a member and in the directory alike.
#[derive(Debug, Clone)]
pub struct ZipHeader {
    /// The name.
    pub name: Vec<u8>,
    /// The general purpose flags.
    pub flags: u16,
    /// The compression method.
    pub method: u16,
    /// Date and time as DOS has them, the time in the low half.
    pub time: u32,
    /// The checksum.
    pub crc: u32,
    /// Bytes of the data as they stand in the file.
    pub compressed: u64,
    /// Bytes of the content.
    pub size: u64,
    /// Extra fields, whole.
    pub extra: Vec<u8>,
}

/// One member.
#[derive(Debug, Clone)]
pub struct ZipMember {
    /// Before the data.
    pub local: ZipHeader,
    /// In the directory.
    pub central: ZipHeader,
    /// Which system wrote it: 3 is Unix, 0 is DOS and Windows.
    pub system: u8,
    /// The external attributes; Unix has the mode in the upper half.
    pub attributes: u32,
    /// What stands between the headers.
    pub data: Vec<u8>,
    /// What follows the data.
    pub descriptor: Vec<u8>,
    /// Where the directory says it is, when that is not where it is.
    pub offset: Option<u64>,
    /// Numbers of the headers are written in eight bytes.
    pub large: bool,
}

impl ZipMember {
    /// A file of a Unix system, compressed.
    pub fn file(name: impl AsRef<[u8]>, mode: u32, content: impl AsRef<[u8]>) -> Self {
        Self::new(name.as_ref(), 0o100_000 | mode, content.as_ref())
    }

    /// A symlink.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(name.as_ref(), 0o120_777, target.as_ref()).stored()
    }

    /// A directory; the name should end in a slash.
    pub fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(name.as_ref(), 0o40_755, b"").stored()
    }

    fn new(name: &[u8], mode: u32, content: &[u8]) -> Self {
        let mut crc = Crc::new();
        crc.update(content);
        let header = ZipHeader {
            name: name.to_vec(),
            flags: 0,
            method: 0,
            time: 0x5b21_6000,
            crc: crc.sum(),
            compressed: content.len() as u64,
            size: content.len() as u64,
            extra: Vec::new(),
        };
        Self {
            local: header.clone(),
            central: header,
            system: 3,
            attributes: mode << 16,
            data: content.to_vec(),
            descriptor: Vec::new(),
            offset: None,
            large: false,
        }
        .deflated(6)
    }

    /// Compressed with this level.
    #[must_use]
    pub fn deflated(self, level: u32) -> Self {
        let content = self.content();
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(&content).expect("memory takes all");
        let data = encoder.finish().expect("memory takes all");
        self.with_data(8, data)
    }

    /// Not compressed.
    #[must_use]
    pub fn stored(self) -> Self {
        let content = self.content();
        self.with_data(0, content)
    }

    /// Says that the content was compressed with `method` into `data`.
    #[must_use]
    pub fn with_data(self, method: u16, data: Vec<u8>) -> Self {
        let compressed = data.len() as u64;
        let mut member = self.both(|header| {
            header.method = method;
            header.compressed = compressed;
        });
        member.data = data;
        member
    }

    fn content(&self) -> Vec<u8> {
        match self.central.method {
            0 => self.data.clone(),
            _ => {
                let mut decoder = flate2::write::DeflateDecoder::new(Vec::new());
                decoder
                    .write_all(&self.data)
                    .expect("it was compressed here");
                decoder.finish().expect("it was compressed here")
            }
        }
    }

    /// Written by a program that knows no modes, such as those of Windows.
    #[must_use]
    pub fn without_mode(mut self) -> Self {
        self.system = 0;
        self.attributes = 0;
        self
    }

    /// With checksum and sizes after the data, as programs write that cannot go back.
    #[must_use]
    pub fn deferred(mut self) -> Self {
        let central = self.central.clone();
        self.descriptor = b"PK\x07\x08".to_vec();
        self.descriptor.extend(central.crc.to_le_bytes());
        for size in [central.compressed, central.size] {
            self.descriptor.extend(low(size).to_le_bytes());
        }
        self.local.crc = 0;
        self.local.compressed = 0;
        self.local.size = 0;
        self.both(|header| header.flags |= 8)
    }

    /// With numbers as members have them that may be larger than four bytes say.
    #[must_use]
    pub fn large(mut self) -> Self {
        self.large = true;
        self
    }

    /// With both headers edited.
    #[must_use]
    pub fn both(mut self, edit: impl Fn(&mut ZipHeader)) -> Self {
        edit(&mut self.local);
        edit(&mut self.central);
        self
    }

    /// With one thing edited.
    #[must_use]
    pub fn with(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }
}

/// An extra field.
pub fn extra_field(key: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("extra fields are short");
    [&key.to_le_bytes()[..], &length.to_le_bytes(), body].concat()
}

/// A zip that is being made.
#[derive(Debug, Clone, Default)]
pub struct Zip {
    /// In the order of the file.
    pub members: Vec<ZipMember>,
    /// The order of the directory is the opposite one.
    pub reversed: bool,
    /// With the end record of large zips.
    pub large: bool,
    /// What follows the end record.
    pub comment: Vec<u8>,
}

impl Zip {
    /// A zip of these members.
    pub fn of(members: impl IntoIterator<Item = ZipMember>) -> Self {
        Self {
            members: members.into_iter().collect(),
            ..Self::default()
        }
    }

    /// The bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut directory = Vec::new();
        for member in &self.members {
            let offset = member.offset.unwrap_or(bytes.len() as u64);
            let (fields, name) = fields(&member.local, None, member.large);
            bytes.extend(b"PK\x03\x04\x14\0");
            bytes.extend(fields);
            bytes.extend(name);
            bytes.extend(&member.data);
            bytes.extend(&member.descriptor);

            let (fields, name) = self::fields(&member.central, Some(offset), member.large);
            let mut header = b"PK\x01\x02\x1e".to_vec();
            header.push(member.system);
            header.extend(b"\x14\0");
            header.extend(fields);
            // Comment, disk and internal attributes.
            header.extend([0; 6]);
            header.extend(member.attributes.to_le_bytes());
            header.extend(if member.large { u32::MAX } else { low(offset) }.to_le_bytes());
            header.extend(name);
            directory.push(header);
        }
        if self.reversed {
            directory.reverse();
        }
        let (count, directory) = (directory.len() as u64, directory.concat());
        let start = bytes.len() as u64;
        bytes.extend(&directory);
        let length = directory.len() as u64;
        if self.large {
            let end = bytes.len() as u64;
            bytes.extend(b"PK\x06\x06");
            bytes.extend(44_u64.to_le_bytes());
            bytes.extend([0x2d, 3, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            for number in [count, count, length, start] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(b"PK\x06\x07\0\0\0\0");
            bytes.extend(end.to_le_bytes());
            bytes.extend([1, 0, 0, 0]);
        }
        bytes.extend(b"PK\x05\x06\0\0\0\0");
        let short = |number: u64| u16::try_from(number).expect("few members are made here");
        let (count, length, start) = if self.large {
            (u16::MAX, u32::MAX, u32::MAX)
        } else {
            (short(count), low(length), low(start))
        };
        bytes.extend(count.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(start.to_le_bytes());
        bytes.extend(short(self.comment.len() as u64).to_le_bytes());
        bytes.extend(&self.comment);
        bytes
    }
}

/// The fields from the flags to the lengths, and what name and extra fields are.
fn fields(header: &ZipHeader, offset: Option<u64>, large: bool) -> (Vec<u8>, Vec<u8>) {
    let mut extra = Vec::new();
    let (mut compressed, mut size) = (low(header.compressed), low(header.size));
    if large {
        (compressed, size) = (u32::MAX, u32::MAX);
        let numbers = [Some(header.size), Some(header.compressed), offset];
        let numbers: Vec<u8> = numbers
            .into_iter()
            .flatten()
            .flat_map(u64::to_le_bytes)
            .collect();
        extra = extra_field(1, &numbers);
    }
    extra.extend(&header.extra);
    let mut fields = Vec::new();
    fields.extend(header.flags.to_le_bytes());
    fields.extend(header.method.to_le_bytes());
    fields.extend(header.time.to_le_bytes());
    fields.extend(header.crc.to_le_bytes());
    fields.extend(compressed.to_le_bytes());
    fields.extend(size.to_le_bytes());
    for part in [&header.name, &extra] {
        let length = u16::try_from(part.len()).expect("names and extra fields are short");
        fields.extend(length.to_le_bytes());
    }
    (fields, [&*header.name, &extra].concat())
}

/// A number in four bytes, which those here have room in.
fn low(number: u64) -> u32 {
    u32::try_from(number).expect("nothing large is made here")
}
