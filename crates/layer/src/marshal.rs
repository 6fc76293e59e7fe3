//! One form for compiled Python.
//!
//! What `marshal` writes is not a function of the code alone. An object that somebody else holds too
//! is marked as one that may be referred to again, whether or not anything does (cpython issues
//! 78274 and 98819), every mark moves the numbers of those behind it, and the elements of sets are
//! written in an order that hashes and those same marks decide. Strings of one character exist once
//! in a process, and whether one is interned follows from where it was used first. All of it depends
//! on what a process did before, on addresses and on a seed, and none of it means anything. Here an
//! object is marked when it is referred to, sets are in the order of what their elements are, and
//! strings of one character are interned.
//!
//! Reading the code back and writing it again is not enough: of 4,012 files of real packages, 9 came
//! out of two processes of Python 3.13 with other orders and seeds as other bytes even so.

/// Compiled code that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BytecodeError {
    /// The code is of a Python before 3.8, of one that was never released, or none at all.
    #[error("it is not the code of a Python that is known")]
    Unknown,
    /// The code ends early or contradicts itself.
    #[error("it is malformed at byte {0}")]
    Malformed(usize),
}

/// What marks an object as one that may be referred to (`FLAG_REF` of `marshal.c`).
const MARK: u8 = 0x80;

/// How deep objects may lie in each other: as deep as `marshal` itself reads.
const DEEPEST: usize = 1000;

/// How long the elements of a set may be together, where each is written out.
const LONGEST_SET: usize = 1 << 22;

const HEADER: usize = crate::content::BYTECODE_HEADER;

/// The same compiled code, with the same header, in the one form that it has here.
///
/// Equal for all that the compiler of one Python makes of one source, whatever else its process did.
pub fn canonical_bytecode(compiled: &[u8]) -> Result<Vec<u8>, BytecodeError> {
    let (header, code) = compiled
        .split_at_checked(HEADER)
        .ok_or(BytecodeError::Unknown)?;
    let layout = Layout::of(header).ok_or(BytecodeError::Unknown)?;
    let mut reader = Reader {
        bytes: code,
        at: 0,
        layout,
        objects: Vec::new(),
        marked: Vec::new(),
    };
    let root = reader.object(0)?;
    if reader.at != code.len() {
        return Err(reader.malformed());
    }
    let mut writer = Writer {
        bytes: code,
        uses: uses(&reader.objects, root),
        numbers: vec![None; reader.objects.len()],
        objects: reader.objects,
        next: 0,
        out: header.to_vec(),
    };
    writer.write(root, 0)?;
    Ok(writer.out)
}

/// How the fields of a code object follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Python 3.8 to 3.10.
    Old,
    /// Since Python 3.11.
    New,
}

impl Layout {
    /// By the magic number, of which the releases have 3413, 3425, 3439, 3495, 3531, 3571, 3627.
    fn of(header: &[u8]) -> Option<Self> {
        match header.get(..4)? {
            &[low, high, b'\r', b'\n'] => match u16::from_le_bytes([low, high]) {
                3413..=3449 => Some(Self::Old),
                3495..=3999 => Some(Self::New),
                _ => None,
            },
            _ => None,
        }
    }

    /// Numbers before the first object, objects, and how many of these come before the number of the
    /// first line.
    const fn fields(self) -> (usize, usize, usize) {
        match self {
            Self::Old => (6, 9, 8),
            Self::New => (5, 10, 8),
        }
    }
}

/// An object: bytes as they are, and objects between them.
struct Object {
    /// The first byte, without its mark.
    kind: u8,
    parts: Vec<Part>,
    /// Whether its objects have no order of their own.
    is_set: bool,
    /// Whether it has been read to its end.
    is_whole: bool,
}

#[derive(Clone, Copy)]
enum Part {
    /// From here to there; the first byte of an object stands in `kind`.
    Bytes(usize, usize),
    Object(usize),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    layout: Layout,
    objects: Vec<Object>,
    /// Those that may be referred to, by number.
    marked: Vec<usize>,
}

impl Reader<'_> {
    const fn malformed(&self) -> BytecodeError {
        BytecodeError::Malformed(HEADER + self.at)
    }

    fn skip(&mut self, length: usize) -> Result<(), BytecodeError> {
        let end = self.at.checked_add(length);
        match end.filter(|end| *end <= self.bytes.len()) {
            Some(end) => {
                self.at = end;
                Ok(())
            }
            None => Err(self.malformed()),
        }
    }

    fn number(&mut self) -> Result<i32, BytecodeError> {
        let field = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk);
        let number = field.map(|field| i32::from_le_bytes(*field));
        let number = number.ok_or_else(|| self.malformed())?;
        self.skip(4)?;
        Ok(number)
    }

    fn length(&mut self) -> Result<usize, BytecodeError> {
        let number = self.number()?;
        usize::try_from(number).map_err(|_| self.malformed())
    }

    fn byte(&mut self) -> Result<u8, BytecodeError> {
        let byte = self.bytes.get(self.at).copied();
        let byte = byte.ok_or_else(|| self.malformed())?;
        self.at += 1;
        Ok(byte)
    }

    /// Reads an object that lies in so many others, and gives its place in `objects`.
    fn object(&mut self, depth: usize) -> Result<usize, BytecodeError> {
        if depth > DEEPEST {
            return Err(self.malformed());
        }
        let start = self.at;
        let kind = self.byte()?;
        if kind == b'r' {
            let number = self.length()?;
            let object = self.marked.get(number).copied();
            // One that is not whole would lie in itself.
            return object
                .filter(|object| self.objects[*object].is_whole)
                .ok_or_else(|| self.malformed());
        }
        let place = self.objects.len();
        self.objects.push(Object {
            kind: kind & !MARK,
            parts: Vec::new(),
            is_set: false,
            is_whole: false,
        });
        if kind & MARK != 0 {
            self.marked.push(place);
        }
        let kind = kind & !MARK;
        let (members, parts) = match kind {
            b'c' => (0, self.code(start, depth)?),
            _ => {
                let members = self.head(kind)?;
                (members, vec![Part::Bytes(start, self.at)])
            }
        };
        if self.is_one_character(kind, start) {
            self.objects[place].kind = if kind == b'z' { b'Z' } else { b't' };
        }
        self.objects[place].parts = parts;
        for _ in 0..members {
            let member = self.object(depth + 1)?;
            self.objects[place].parts.push(Part::Object(member));
        }
        self.objects[place].is_set = matches!(kind, b'<' | b'>');
        self.objects[place].is_whole = true;
        Ok(place)
    }

    /// Whether what was read from `start` on is a string of one character or none that is not
    /// interned, and that Python keeps once: those of Latin-1.
    fn is_one_character(&self, kind: u8, start: usize) -> bool {
        match (kind, &self.bytes[start + 1..self.at]) {
            (b'z', [0] | [1, _]) => true,
            (b'u', [2, 0, 0, 0, first, _]) => matches!(first, 0xc2 | 0xc3),
            _ => false,
        }
    }

    /// Skips what an object has before its members, and says how many of these there are.
    fn head(&mut self, kind: u8) -> Result<usize, BytecodeError> {
        match kind {
            b'N' | b'F' | b'T' | b'S' | b'.' => {}
            b'i' => self.skip(4)?,
            b'I' | b'g' => self.skip(8)?,
            b'y' => self.skip(16)?,
            b'l' => {
                let digits = self.number()?.unsigned_abs() as usize;
                self.skip(digits.saturating_mul(2))?;
            }
            b's' | b'u' | b't' | b'a' | b'A' => {
                let length = self.length()?;
                self.skip(length)?;
            }
            b'z' | b'Z' => {
                let length = self.byte()?;
                self.skip(usize::from(length))?;
            }
            b')' => return self.byte().map(usize::from),
            b'(' | b'[' | b'<' | b'>' => {
                let length = self.length()?;
                // Each has a byte at least, so that nobody is made to wait for what is not there.
                if length > self.bytes.len() - self.at {
                    return Err(self.malformed());
                }
                return Ok(length);
            }
            b':' => return Ok(3),
            _ => return Err(self.malformed()),
        }
        Ok(0)
    }

    fn code(&mut self, start: usize, depth: usize) -> Result<Vec<Part>, BytecodeError> {
        let (numbers, objects, before_line) = self.layout.fields();
        self.skip(4 * numbers)?;
        let mut parts = vec![Part::Bytes(start, self.at)];
        for position in 0..objects {
            if position == before_line {
                let line = self.at;
                self.skip(4)?;
                parts.push(Part::Bytes(line, self.at));
            }
            parts.push(Part::Object(self.object(depth + 1)?));
        }
        Ok(parts)
    }
}

/// How often each object is part of others, counted once for each of them that can be reached.
fn uses(objects: &[Object], root: usize) -> Vec<u32> {
    let mut uses = vec![0_u32; objects.len()];
    let mut left = vec![root];
    while let Some(place) = left.pop() {
        uses[place] = uses[place].saturating_add(1);
        if uses[place] > 1 {
            continue;
        }
        for part in &objects[place].parts {
            if let Part::Object(member) = part {
                left.push(*member);
            }
        }
    }
    uses
}

struct Writer<'a> {
    bytes: &'a [u8],
    objects: Vec<Object>,
    uses: Vec<u32>,
    /// Under which number an object can be referred to, once it has been written.
    numbers: Vec<Option<u32>>,
    next: u32,
    out: Vec<u8>,
}

impl Writer<'_> {
    /// Writes an object that lies in so many others. It may lie deeper than it was read: where the
    /// order of a set moves what is referred to behind the reference.
    fn write(&mut self, place: usize, depth: usize) -> Result<(), BytecodeError> {
        self.check_depth(place, depth)?;
        if let Some(number) = self.numbers[place] {
            self.out.push(b'r');
            self.out.extend_from_slice(&number.to_le_bytes());
            return Ok(());
        }
        let first = self.out.len();
        let mut room = LONGEST_SET;
        let parts = self.parts(place, &mut room, depth)?;
        let is_marked = self.uses[place] > 1;
        if is_marked {
            self.numbers[place] = Some(self.next);
            self.next += 1;
        }
        for part in parts {
            match part {
                Part::Bytes(start, end) => self.out.extend_from_slice(&self.bytes[start..end]),
                Part::Object(member) => self.write(member, depth + 1)?,
            }
        }
        let mark = if is_marked { MARK } else { 0 };
        self.out[first] = self.objects[place].kind | mark;
        Ok(())
    }

    /// The parts of an object, in their order; those of a set by what they are, as far as there is
    /// room to write them out.
    fn parts(
        &self,
        place: usize,
        room: &mut usize,
        depth: usize,
    ) -> Result<Vec<Part>, BytecodeError> {
        let object = &self.objects[place];
        let mut parts = object.parts.clone();
        if object.is_set {
            let mut keyed = Vec::new();
            for part in parts.split_off(1) {
                let mut key = Vec::new();
                self.spell(part, &mut key, room, depth + 1)?;
                keyed.push((key, part));
            }
            keyed.sort_by(|one, other| one.0.cmp(&other.0));
            parts.extend(keyed.into_iter().map(|(_, part)| part));
        }
        Ok(parts)
    }

    /// Writes out an object without marks and references, so that each lies as deep as all that refer
    /// to one another.
    fn spell(
        &self,
        part: Part,
        key: &mut Vec<u8>,
        room: &mut usize,
        depth: usize,
    ) -> Result<(), BytecodeError> {
        match part {
            Part::Bytes(start, end) => {
                *room = room
                    .checked_sub(end - start)
                    .ok_or(BytecodeError::Malformed(HEADER + start))?;
                key.extend_from_slice(&self.bytes[start..end]);
            }
            Part::Object(place) => {
                self.check_depth(place, depth)?;
                let first = key.len();
                for part in self.parts(place, room, depth)? {
                    self.spell(part, key, room, depth + 1)?;
                }
                if let Some(kind) = key.get_mut(first) {
                    *kind = self.objects[place].kind;
                }
            }
        }
        Ok(())
    }

    /// Refuses what `marshal` would not read again, and what would use up the stack.
    fn check_depth(&self, place: usize, depth: usize) -> Result<(), BytecodeError> {
        if depth <= DEEPEST {
            return Ok(());
        }
        let start = match self.objects[place].parts.first() {
            Some(Part::Bytes(start, _)) => *start,
            _ => 0,
        };
        Err(BytecodeError::Malformed(HEADER + start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `.pyc` of Python 3.12 around one object.
    fn pyc(object: &[u8]) -> Vec<u8> {
        [&b"\xcb\x0d\x0d\x0a\0\0\0\0\x01\0\0\0\x02\0\0\0"[..], object].concat()
    }

    fn canonical(object: &[u8]) -> Vec<u8> {
        canonical_bytecode(&pyc(object)).unwrap()[HEADER..].to_vec()
    }

    #[test]
    fn marks_stand_where_something_refers_to_them() {
        // ("a", "b", "b"), of which "a", "b" and the tuple are marked.
        let marked = b"\xa9\x03\xda\x01a\xda\x01br\x02\0\0\0";
        let unmarked = b"\x29\x03\x5a\x01a\xda\x01br\0\0\0\0";
        assert_eq!(canonical(marked), unmarked);
        assert_eq!(canonical(unmarked), unmarked);
    }

    #[test]
    fn sets_have_one_order() {
        let one = b"\xbe\x02\0\0\0\x5a\x01a\xda\x01b";
        let other = b"\xbe\x02\0\0\0\xda\x01b\x5a\x01a";
        let expected = b"\x3e\x02\0\0\0\x5a\x01a\x5a\x01b";
        assert_eq!(canonical(one), expected);
        assert_eq!(canonical(other), expected);
        // An element that the set's order moves before the place that is referred to.
        let referring = b"\x29\x02\xda\x01b\x3e\x02\0\0\0r\0\0\0\0\x5a\x01a";
        let expected = b"\x29\x02\xda\x01b\x3e\x02\0\0\0\x5a\x01ar\0\0\0\0";
        assert_eq!(canonical(referring), expected);
        let first = b"\x29\x02\x3e\x02\0\0\0\xda\x01b\xda\x01ar\0\0\0\0";
        let expected = b"\x29\x02\x3e\x02\0\0\0\x5a\x01a\xda\x01br\0\0\0\0";
        assert_eq!(canonical(first), expected);
    }

    #[test]
    fn strings_of_one_character_are_interned() {
        assert_eq!(canonical(b"\xfa\x01{"), b"Z\x01{");
        assert_eq!(canonical(b"z\x00"), b"Z\x00");
        assert_eq!(canonical(b"z\x02{}"), b"z\x02{}");
        assert_eq!(canonical(b"u\x02\0\0\0\xc3\xa9"), b"t\x02\0\0\0\xc3\xa9");
        assert_eq!(canonical(b"u\x02\0\0\0\xc4\x8d"), b"u\x02\0\0\0\xc4\x8d");
    }

    #[test]
    fn what_is_no_code_is_refused() {
        for (bytes, error) in [
            (b"short".to_vec(), BytecodeError::Unknown),
            (vec![0; 20], BytecodeError::Unknown),
            (pyc(b""), BytecodeError::Malformed(16)),
            (pyc(b"NN"), BytecodeError::Malformed(17)),
            (pyc(b"\x29\x02N"), BytecodeError::Malformed(19)),
            (pyc(b"r\0\0\0\0"), BytecodeError::Malformed(21)),
            // A tuple that is in itself.
            (pyc(b"\xa9\x01r\0\0\0\0"), BytecodeError::Malformed(23)),
            (pyc(b"\x28\xff\xff\xff\x7f"), BytecodeError::Malformed(21)),
            (pyc(b"\x28\xff\xff\xff\xff"), BytecodeError::Malformed(21)),
            (pyc(b"\x73\xff\xff\xff\x7fx"), BytecodeError::Malformed(21)),
            (pyc(b"?"), BytecodeError::Malformed(17)),
        ] {
            assert_eq!(canonical_bytecode(&bytes), Err(error), "{bytes:?}");
        }
        let deep = [b"\x29\x01".repeat(DEEPEST + 2), b"N".to_vec()].concat();
        assert!(canonical_bytecode(&pyc(&deep)).is_err());
        let fits = [b"\x29\x01".repeat(DEEPEST), b"N".to_vec()].concat();
        assert_eq!(canonical(&fits), fits);
    }

    #[test]
    fn a_set_that_grows_without_bound_is_refused() {
        // Tuples of the one before, twice each, and a set of the last.
        let mut object = b"\x29\x02".to_vec();
        let tuples: u8 = 40;
        for _ in 0..tuples {
            object.extend_from_slice(b"\xa9\x02");
        }
        object.extend_from_slice(b"NN");
        for number in (0..tuples - 1).rev() {
            // The second member of each is the tuple inside it.
            object.extend_from_slice(&[b'r', number + 1, 0, 0, 0]);
        }
        object.extend_from_slice(b"\x3e\x01\0\0\0r\0\0\0\0");
        assert!(matches!(
            canonical_bytecode(&pyc(&object)),
            Err(BytecodeError::Malformed(_))
        ));
    }

    #[test]
    fn references_do_not_lead_deeper_than_the_stack() {
        // Objects in a list, each with the one before at its bottom, and a set of the last.
        let length: u32 = 300;
        let mut object = [&b"["[..], &(length + 1).to_le_bytes()].concat();
        for number in 0..length {
            object.extend_from_slice(b"\xa9\x01");
            object.extend_from_slice(&b"\x29\x01".repeat(DEEPEST - 10));
            match number.checked_sub(1) {
                Some(before) => object.extend([&b"r"[..], &before.to_le_bytes()].concat()),
                None => object.push(b'N'),
            }
        }
        let last = (length - 1).to_le_bytes();
        object.extend([&b"\x3e\x01\0\0\0r"[..], &last].concat());
        assert!(matches!(
            canonical_bytecode(&pyc(&object)),
            Err(BytecodeError::Malformed(_))
        ));
        // The same without a list: the set's order puts the later in front.
        let one = [
            b"\xa9\x01".to_vec(),
            b"\x29\x01".repeat(DEEPEST - 10),
            b"T".to_vec(),
        ]
        .concat();
        let other = [
            b"\x28\x01\0\0\0".to_vec(),
            b"\x29\x01".repeat(DEEPEST - 10),
            b"r\0\0\0\0".to_vec(),
        ]
        .concat();
        let set = [&b"\x3e\x02\0\0\0"[..], &one, &other].concat();
        assert!(matches!(
            canonical_bytecode(&pyc(&set)),
            Err(BytecodeError::Malformed(_))
        ));
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes: Vec<u8>) {
            if let Ok(once) = canonical_bytecode(&pyc(&bytes)) {
                proptest::prop_assert_eq!(canonical_bytecode(&once), Ok(once.clone()));
            }
        }
    }
}
