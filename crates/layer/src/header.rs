//! The header blocks of an entry, exactly as layer-format 1 has them.
//!
//! They are laid out by hand rather than by a tar library: the format leaves no choice open (which
//! fields, which padding, when PAX, in which order), every library makes some of these choices for
//! itself, and one that changed its mind would change every digest.

use crate::entry::Attributes;
use crate::path::EntryPath;

/// The unit of a tar archive.
pub(crate) const BLOCK: usize = 512;

/// What ends an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Modification time of every entry: 1980-01-01T00:00:00Z, the first that a zip can hold.
pub const MODIFIED: u64 = 315_532_800;

/// The most that seven octal digits hold.
const MOST_ID: u32 = 0o7_777_777;
/// The most that eleven octal digits hold.
const MOST_SIZE: u64 = 0o77_777_777_777;

const NAME: usize = 100;
const PREFIX: usize = 155;

/// What stands in the type flag, with what that kind needs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HeaderKind<'a> {
    Directory,
    File { size: u64 },
    Symlink { target: &'a [u8] },
    Hardlink { target: &'a EntryPath },
}

/// Bytes that fill a content of `size` up to a block.
pub(crate) fn padding(size: u64) -> usize {
    let past = usize::try_from(size % BLOCK as u64).expect("less than a block");
    (BLOCK - past) % BLOCK
}

/// Appends the PAX header, when one is needed, and the header of an entry.
pub(crate) fn write_header(
    archive: &mut Vec<u8>,
    path: &EntryPath,
    kind: HeaderKind<'_>,
    attributes: &Attributes,
    modified: u64,
) {
    let mut name = path.as_bytes().to_vec();
    let (flag, size, target) = match kind {
        HeaderKind::Directory => {
            name.push(b'/');
            (b'5', 0, &[][..])
        }
        HeaderKind::File { size } => (b'0', size, &[][..]),
        HeaderKind::Symlink { target } => (b'2', 0, target),
        HeaderKind::Hardlink { target } => (b'1', 0, target.as_bytes()),
    };
    let mut records = Records::default();
    for (key, value) in &attributes.xattrs {
        records.push(&[b"SCHILY.xattr.", key.as_slice()].concat(), value);
    }
    let gid = records.number_or_zero("gid", attributes.gid.into(), MOST_ID.into());
    if target.len() > NAME {
        records.push(b"linkpath", target);
    }
    let (prefix, short) = split(&name).unwrap_or_else(|| {
        records.push(b"path", &name);
        (&[], &name[..NAME])
    });
    let size = records.number_or_zero("size", size, MOST_SIZE);
    let uid = records.number_or_zero("uid", attributes.uid.into(), MOST_ID.into());
    records.write(archive, modified);
    Fields {
        name: short,
        prefix,
        flag,
        mode: attributes.mode,
        uid,
        gid,
        size,
        modified,
        target,
    }
    .write(archive);
}

/// How many bytes [`write_header`] appends.
pub(crate) fn header_length(
    path: &EntryPath,
    kind: HeaderKind<'_>,
    attributes: &Attributes,
) -> usize {
    let (size, target) = match kind {
        HeaderKind::Directory => (0, 0),
        HeaderKind::File { size } => (size, 0),
        HeaderKind::Symlink { target } => (0, target.len()),
        HeaderKind::Hardlink { target } => (0, target.as_bytes().len()),
    };
    // True of nearly every entry, and quicker to see than to write.
    let fits = path.as_bytes().len() < NAME
        && target <= NAME
        && size <= MOST_SIZE
        && attributes.uid.max(attributes.gid) <= MOST_ID
        && attributes.xattrs.is_empty();
    if fits {
        return BLOCK;
    }
    let mut header = Vec::new();
    write_header(&mut header, path, kind, attributes, MODIFIED);
    header.len()
}

/// Prefix and name of a path that fits into a header: undivided when it can be, else divided at the
/// last slash that leaves both parts short enough and a name.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= NAME {
        return Some((&[], name));
    }
    (0..name.len())
        .rev()
        .filter(|&at| name[at] == b'/')
        .find(|&at| at <= PREFIX && (1..=NAME).contains(&(name.len() - at - 1)))
        .map(|at| (&name[..at], &name[at + 1..]))
}

struct Fields<'a> {
    name: &'a [u8],
    prefix: &'a [u8],
    flag: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    modified: u64,
    target: &'a [u8],
}

impl Fields<'_> {
    fn write(&self, archive: &mut Vec<u8>) {
        let mut block = [0; BLOCK];
        block[..self.name.len()].copy_from_slice(self.name);
        octal(&mut block[100..107], self.mode.into());
        octal(&mut block[108..115], self.uid);
        octal(&mut block[116..123], self.gid);
        octal(&mut block[124..135], self.size);
        octal(&mut block[136..147], self.modified);
        block[156] = self.flag;
        let target = &self.target[..self.target.len().min(NAME)];
        block[157..157 + target.len()].copy_from_slice(target);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..336], 0);
        octal(&mut block[337..344], 0);
        block[345..345 + self.prefix.len()].copy_from_slice(self.prefix);
        let sum = checksum(&block);
        octal(&mut block[148..154], sum.into());
        block[155] = b' ';
        archive.extend_from_slice(&block);
    }
}

/// The sum of a header's bytes, its own field counted as spaces.
pub(crate) fn checksum(block: &[u8; BLOCK]) -> u32 {
    let others = block[..148].iter().chain(&block[156..]);
    others.map(|&byte| u32::from(byte)).sum::<u32>() + 8 * u32::from(b' ')
}

/// Fills `field` with the digits of `number`, zeros first.
fn octal(field: &mut [u8], mut number: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (number & 7) as u8;
        number >>= 3;
    }
    debug_assert_eq!(number, 0, "numbers that do not fit are PAX records");
}

/// PAX records of one entry.
#[derive(Default)]
struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.0.push((key.to_vec(), value.to_vec()));
    }

    /// The number for the header field; one over `most` becomes a record and leaves the field zero.
    fn number_or_zero(&mut self, key: &str, number: u64, most: u64) -> u64 {
        if number <= most {
            return number;
        }
        self.push(key.as_bytes(), number.to_string().as_bytes());
        0
    }

    fn write(mut self, archive: &mut Vec<u8>, modified: u64) {
        if self.0.is_empty() {
            return;
        }
        if self
            .0
            .iter()
            .any(|(_, value)| std::str::from_utf8(value).is_err())
        {
            self.push(b"hdrcharset", b"BINARY");
        }
        self.0.sort();
        let mut body = Vec::new();
        for (key, value) in &self.0 {
            write_record(&mut body, key, value);
        }
        Fields {
            name: b"PaxHeaders/x",
            prefix: &[],
            flag: b'x',
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: body.len() as u64,
            modified,
            target: &[],
        }
        .write(archive);
        archive.extend_from_slice(&body);
        archive.resize(archive.len() + padding(body.len() as u64), 0);
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits too.
fn write_record(body: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    body.extend_from_slice(length.to_string().as_bytes());
    body.push(b' ');
    body.extend_from_slice(key);
    body.push(b'=');
    body.extend_from_slice(value);
    body.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_lengths_count_their_own_digits() {
        for length in [
            0, 1, 4, 5, 6, 90, 91, 92, 93, 94, 95, 986, 987, 988, 989, 990, 9990,
        ] {
            let mut record = Vec::new();
            write_record(&mut record, b"path", &vec![b'v'; length]);
            let stated: usize =
                std::str::from_utf8(record.split(|&byte| byte == b' ').next().unwrap())
                    .unwrap()
                    .parse()
                    .unwrap();
            assert_eq!(stated, record.len());
        }
    }

    #[test]
    fn names_are_split_at_the_last_slash_that_fits() {
        let long = |length: usize| "n".repeat(length);
        let splits =
            |name: &str| split(name.as_bytes()).map(|(prefix, name)| (prefix.len(), name.len()));
        assert_eq!(splits(&long(100)), Some((0, 100)));
        assert_eq!(splits(&long(101)), None);
        assert_eq!(
            splits(&format!("{}/{}", long(155), long(100))),
            Some((155, 100))
        );
        assert_eq!(splits(&format!("{}/{}", long(156), long(99))), None);
        assert_eq!(splits(&format!("{}/{}", long(154), long(101))), None);
        assert_eq!(splits(&format!("a/{}/b", long(98))), Some((100, 1)));
        // A directory: its own trailing slash would leave no name.
        assert_eq!(splits(&format!("a/{}/", long(99))), Some((1, 100)));
        assert_eq!(splits(&format!("a/{}/", long(100))), None);
        // The last slash is too far to the right for the prefix, the one before is not.
        let name = format!("{}/{}/c", long(150), long(10));
        assert_eq!(splits(&name), Some((150, 12)));
    }

    #[test]
    fn numbers_too_large_for_their_field_go_to_pax() {
        use crate::member::{Limits, Strictness, Walker};

        let path = EntryPath::new("f").unwrap();
        for (size, id, records) in [
            (MOST_SIZE, MOST_ID, &b""[..]),
            (MOST_SIZE + 1, MOST_ID, b"19 size=8589934592\n"),
            (0, MOST_ID + 1, b"15 gid=2097152\n15 uid=2097152\n"),
        ] {
            let mut attributes = Attributes::root(0o644);
            (attributes.uid, attributes.gid) = (id, id);
            let mut archive = Vec::new();
            write_header(
                &mut archive,
                &path,
                HeaderKind::File { size },
                &attributes,
                MODIFIED,
            );
            let kind = HeaderKind::File { size };
            assert_eq!(header_length(&path, kind, &attributes), archive.len());
            if records.is_empty() {
                assert_eq!(archive.len(), BLOCK);
            } else {
                assert_eq!(&archive[BLOCK..][..records.len()], records);
                assert_eq!(archive.len(), 3 * BLOCK);
            }
            let limits = Limits {
                bytes: u64::MAX,
                members: 2,
            };
            let mut walker = Walker::new(&*archive, Strictness::Strict, limits);
            let member = walker.next_member().unwrap().unwrap();
            assert_eq!((member.size, member.uid, member.gid), (size, id, id));
        }
    }

    #[test]
    fn padding_fills_blocks() {
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }
}
