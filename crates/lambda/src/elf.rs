//! What a program or library of Linux asks of the system that loads it.
//!
//! Read as the loader reads it, by program headers and the dynamic section alone: section headers
//! may be stripped. The bytes are anybody's: every offset, count and length is checked, what is
//! kept is bounded, and a file that contradicts itself is known in part or not at all.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Read};
use std::ops::Range;

use goblin::container::Ctx;
use goblin::elf::dynamic::{
    DT_GNU_HASH, DT_HASH, DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRSZ, DT_STRTAB,
    DT_SYMTAB, DT_VERDEF, DT_VERDEFNUM, DT_VERNEED, DT_VERNEEDNUM, DT_VERSYM,
};
use goblin::elf::header::{
    EI_OSABI, ELFOSABI_FREEBSD, ELFOSABI_NETBSD, ELFOSABI_OPENBSD, ELFOSABI_SOLARIS, EM_386,
    EM_AARCH64, EM_ARM, EM_RISCV, EM_X86_64, ET_DYN, ET_EXEC,
};
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP, PT_LOAD};
use goblin::elf::{Elf, ProgramHeader};
use serde::{Deserialize, Serialize};

/// The first bytes of every ELF file.
pub(crate) const MAGIC: &[u8] = b"\x7fELF";

// Processors that `goblin` does not name, as `elf.h` numbers them.
const EM_LOONGARCH: u16 = 258;
const EM_CUDA: u16 = 190;
const EM_AMDGPU: u16 = 224;
const EM_BPF: u16 = 247;

/// What the loader would ask of the system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ElfFacts {
    /// The processor, as `e_machine` numbers it.
    pub machine: u16,
    /// Whether it is of the 64-bit class.
    pub is_64_bit: bool,
    /// The system it is for, where its header names one that is not Linux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Whether it is a program or library, and not an object file or a core.
    pub is_loadable: bool,
    /// The loader that the kernel starts, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// The name that others need it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soname: Option<String>,
    /// The libraries it needs, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needed: Vec<String>,
    /// Where it wants libraries looked for before all else; ignored beside a runpath.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpath: Option<String>,
    /// Where it wants libraries looked for after `LD_LIBRARY_PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runpath: Option<String>,
    /// The symbol versions it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<VersionNeed>,
    /// The symbol versions it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defines: Vec<String>,
    /// Whether some of it could not be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_partial: bool,
}

/// A symbol version that must be there when the program starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionNeed {
    /// The library that has it.
    pub library: String,
    /// The version, such as `GLIBC_2.34`.
    pub version: String,
    /// One of the symbols that are wanted in that version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
}

impl ElfFacts {
    /// Reads a file to its end; `None` when it is no ELF file.
    pub fn read(file: &mut dyn Read) -> io::Result<Option<Self>> {
        let mut start = Vec::new();
        (&mut *file)
            .take(MAGIC.len() as u64)
            .read_to_end(&mut start)?;
        if start != MAGIC {
            return Ok(None);
        }
        let kept = Kept::read(start, file, Bounds::USUAL, &mut |_| ())?;
        Ok(inspect(&kept))
    }

    /// Whether it asks nothing of the system that loads it.
    pub fn is_static(&self) -> bool {
        self.interpreter.is_none() && self.needed.is_empty()
    }

    /// The processor in the image specification's words.
    pub fn architecture(&self) -> &'static str {
        match (self.machine, self.is_64_bit) {
            (EM_X86_64, true) => "amd64",
            (EM_X86_64, false) => "x32",
            (EM_AARCH64, _) => "arm64",
            (EM_386, _) => "386",
            (EM_ARM, _) => "arm",
            (EM_RISCV, true) => "riscv64",
            (goblin::elf::header::EM_PPC64, _) => "ppc64le",
            (goblin::elf::header::EM_S390, _) => "s390x",
            (goblin::elf::header::EM_MIPS, _) => "mips",
            (EM_LOONGARCH, _) => "loong64",
            _ => "another processor",
        }
    }

    /// Whether it is for a graphics processor or the kernel's own machine, and not for a CPU.
    pub(crate) fn is_for_coprocessor(&self) -> bool {
        matches!(self.machine, EM_CUDA | EM_AMDGPU | EM_BPF)
    }

    /// Whether it was made for musl, and not for glibc; `None` when it needs neither.
    pub fn is_for_musl(&self) -> Option<bool> {
        let names = || self.needed.iter().chain(&self.interpreter);
        // musl's own name for itself is `libc.so`, which in glibc is no library.
        let is_musl = |name: &String| {
            name == "libc.so" || name.contains("libc.musl-") || name.contains("ld-musl-")
        };
        if names().any(is_musl) {
            Some(true)
        } else if names().any(|name| name == "libc.so.6" || name.contains("ld-linux")) {
            Some(false)
        } else {
            None
        }
    }
}

/// How much of a file is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Of its beginning: nearly all libraries are smaller.
    head: u64,
    /// Of its end: tools that rewrite libraries put the names there.
    tail: u64,
}

impl Bounds {
    pub(crate) const USUAL: Self = Self {
        head: 32 << 20,
        tail: 16 << 20,
    };
}

/// As much as a dynamic section may take: 64 Ki entries.
const LONGEST_DYNAMIC: u64 = 1 << 20;
/// As long as a name or search path may be.
const LONGEST_TEXT: usize = 4096;
/// As many libraries, or versions of one, as are listed.
const MOST_NAMES: usize = 4096;
/// As many symbols as are looked at. Those of others come first; of these the largest libraries have
/// tens of thousands.
const MOST_SYMBOLS: u64 = 1 << 17;
/// As many parts of a file as are loaded; linkers make four to six.
const MOST_LOADS: usize = 64;
/// Bytes of names that are read in one file, where names may overlap.
const MOST_TEXT: u64 = 1 << 20;

/// The parts of a file that may matter: its beginning, its end, and the dynamic section.
///
/// However a file comes, as a stream or by ranges, the same parts of it can be looked at: the facts
/// of a layer must not depend on how it was read.
pub(crate) trait Parts {
    /// Bytes that lie in one of the parts.
    fn at(&self, offset: u64, length: u64) -> Option<Cow<'_, [u8]>>;

    /// How long the first part is.
    fn head(&self) -> u64;
}

/// The parts of a file that came as a stream.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    head: Cow<'a, [u8]>,
    window: (u64, Vec<u8>),
    tail: (u64, Vec<u8>),
}

impl<'a> Kept<'a> {
    /// Takes a file that is no longer than what is kept of the beginning of one.
    pub(crate) fn whole(file: &'a [u8]) -> Self {
        Self::beginning(Cow::Borrowed(file))
    }

    fn beginning(head: Cow<'a, [u8]>) -> Self {
        let end = head.len() as u64;
        Self {
            head,
            window: (end, Vec::new()),
            tail: (end, Vec::new()),
        }
    }

    /// Reads a file to its end; `start` has been read of it already. `watch` is given all of it.
    pub(crate) fn read(
        start: Vec<u8>,
        rest: &mut dyn Read,
        bounds: Bounds,
        watch: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Self> {
        let mut head = start;
        let room = bounds.head.saturating_sub(head.len() as u64);
        rest.take(room).read_to_end(&mut head)?;
        watch(&head);
        let mut kept = Self::beginning(Cow::Owned(head));
        let wanted = dynamic_of(&kept).unwrap_or(0..0);
        let mut offset = kept.head();
        kept.window.0 = wanted.start.max(offset);
        let tail = &mut kept.tail.1;
        let most = usize::try_from(bounds.tail).unwrap_or(usize::MAX);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = rest.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            let piece = &buffer[..read];
            watch(piece);
            let next = offset + read as u64;
            // The dynamic section is small, and most of it in one piece.
            let (from, to) = (wanted.start.max(offset), wanted.end.min(next));
            if from < to {
                let within = |at: u64| usize::try_from(at - offset).unwrap_or(read);
                kept.window
                    .1
                    .extend_from_slice(&piece[within(from)..within(to)]);
            }
            tail.extend_from_slice(piece);
            if tail.len() > most.saturating_mul(2) {
                tail.drain(..tail.len() - most);
            }
            offset = next;
        }
        tail.drain(..tail.len().saturating_sub(most));
        kept.tail.0 = offset - tail.len() as u64;
        Ok(kept)
    }
}

impl Parts for Kept<'_> {
    fn at(&self, offset: u64, length: u64) -> Option<Cow<'_, [u8]>> {
        let of = |start: u64, bytes: &'_ [u8]| -> Option<(usize, usize)> {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            let to = from.checked_add(usize::try_from(length).ok()?)?;
            (to <= bytes.len()).then_some((from, to))
        };
        for (start, bytes) in [
            (0, &*self.head),
            (self.window.0, &self.window.1),
            (self.tail.0, &self.tail.1),
        ] {
            if let Some((from, to)) = of(start, bytes) {
                return Some(Cow::Borrowed(&bytes[from..to]));
            }
        }
        None
    }

    fn head(&self) -> u64 {
        self.head.len() as u64
    }
}

/// A file of which any range can be had.
pub trait ReadRange {
    /// Appends the bytes of `range`, which lies inside the file, all of them or an error.
    fn read_range(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> io::Result<()>;
}

/// The parts of a file that is read by ranges, as they are asked for.
pub(crate) struct Ranges<'a> {
    file: &'a dyn ReadRange,
    size: u64,
    head: u64,
    window: Range<u64>,
    tail: u64,
    /// What was read, in pieces of [`PAGE`] bytes by their number.
    pages: RefCell<BTreeMap<u64, Vec<u8>>>,
    failure: Cell<Option<io::Error>>,
}

/// As much as is read at once: most questions are close to the one before.
const PAGE: u64 = 16 << 10;

impl<'a> Ranges<'a> {
    pub(crate) fn new(file: &'a dyn ReadRange, size: u64, bounds: Bounds) -> Self {
        let head = size.min(bounds.head);
        let mut ranges = Self {
            file,
            size,
            head,
            window: head..head,
            tail: size,
            pages: RefCell::default(),
            failure: Cell::new(None),
        };
        if let Some(wanted) = dynamic_of(&ranges) {
            ranges.window = wanted.start.max(head)..wanted.end.min(size);
        }
        ranges.tail = size.saturating_sub(bounds.tail).max(head);
        ranges
    }

    /// What went wrong when it was read: then what came out of it is worth nothing.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.failure.into_inner().map_or(Ok(()), Err)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(length);
        self.file.read_range(range, &mut bytes)?;
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn read_pages(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        if range.end - range.start > PAGE {
            return self.read(range);
        }
        let mut bytes = Vec::new();
        let mut pages = self.pages.borrow_mut();
        for number in range.start / PAGE..range.end.div_ceil(PAGE) {
            let start = number * PAGE;
            let page = match pages.entry(number) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    place.insert(self.read(start..self.size.min(start + PAGE))?)
                }
            };
            let within = |at: u64| {
                let at = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
                at.min(page.len())
            };
            bytes.extend_from_slice(&page[within(range.start)..within(range.end)]);
        }
        Ok(bytes)
    }
}

impl Parts for Ranges<'_> {
    fn at(&self, offset: u64, length: u64) -> Option<Cow<'_, [u8]>> {
        let end = offset.checked_add(length)?;
        let within = |part: Range<u64>| part.start <= offset && end <= part.end;
        let is_kept =
            within(0..self.head) || within(self.window.clone()) || within(self.tail..self.size);
        if !is_kept {
            return None;
        }
        match self.read_pages(offset..end) {
            Ok(bytes) => Some(Cow::Owned(bytes)),
            Err(error) => {
                self.failure.set(Some(error));
                None
            }
        }
    }

    fn head(&self) -> u64 {
        self.head
    }
}

/// Bytes up to the first NUL, which must come within `limit`.
fn text_at(file: &dyn Parts, offset: u64, limit: u64) -> Option<String> {
    let most = limit.min(LONGEST_TEXT as u64);
    // What is asked for may go over the end of what is kept.
    let mut length = most;
    loop {
        if let Some(bytes) = file.at(offset, length) {
            let end = bytes.iter().position(|&byte| byte == 0)?;
            return Some(String::from_utf8_lossy(&bytes[..end]).into_owned());
        }
        length /= 2;
        if length == 0 {
            return None;
        }
    }
}

fn headers_of(file: &dyn Parts) -> Option<(goblin::elf::Header, Ctx, Vec<ProgramHeader>)> {
    // As long as the headers of the two classes are.
    let start = file.at(0, 64).or_else(|| file.at(0, 52))?;
    let header = Elf::parse_header(&start).ok()?;
    let context = Ctx::new(header.container().ok()?, header.endianness().ok()?);
    let count = usize::from(header.e_phnum);
    let length = (count * ProgramHeader::size(context)) as u64;
    let programs = if count == 0 || header.e_phoff >= file.head() {
        Vec::new()
    } else {
        let end = header.e_phoff.checked_add(length)?;
        let table = file
            .at(header.e_phoff, length)
            .filter(|_| end <= file.head())?;
        ProgramHeader::parse(&table, 0, count, context).ok()?
    };
    Some((header, context, programs))
}

fn dynamic_of(file: &dyn Parts) -> Option<Range<u64>> {
    let (_, _, programs) = headers_of(file)?;
    dynamic_among(&programs)
}

fn dynamic_among(programs: &[ProgramHeader]) -> Option<Range<u64>> {
    let dynamic = programs
        .iter()
        .find(|program| program.p_type == PT_DYNAMIC)?;
    let length = dynamic.p_filesz.min(LONGEST_DYNAMIC);
    Some(dynamic.p_offset..dynamic.p_offset.checked_add(length)?)
}

/// The system that a header names. Linux's own programs mostly name none.
fn foreign_system(abi: u8) -> Option<&'static str> {
    Some(match abi {
        ELFOSABI_NETBSD => "NetBSD",
        ELFOSABI_SOLARIS => "Solaris",
        ELFOSABI_FREEBSD => "FreeBSD",
        ELFOSABI_OPENBSD => "OpenBSD",
        _ => return None,
    })
}

/// Reads what `file` asks for; `None` when it is no ELF file after all.
pub(crate) fn inspect(file: &dyn Parts) -> Option<ElfFacts> {
    let (header, context, programs) = headers_of(file)?;
    let mut facts = ElfFacts {
        machine: header.e_machine,
        is_64_bit: context.container.is_big(),
        system: foreign_system(header.e_ident[EI_OSABI]).map(str::to_owned),
        is_loadable: matches!(header.e_type, ET_EXEC | ET_DYN),
        ..ElfFacts::default()
    };
    let interpreter = programs.iter().find(|program| program.p_type == PT_INTERP);
    facts.interpreter =
        interpreter.and_then(|program| text_at(file, program.p_offset, program.p_filesz));
    let Some(range) = dynamic_among(&programs) else {
        return Some(facts);
    };
    let loads = programs.iter().filter(|load| load.p_type == PT_LOAD);
    let loaded = Loaded {
        file,
        loads: loads.take(MOST_LOADS).collect(),
        is_64_bit: facts.is_64_bit,
        is_little: context.le.is_little(),
    };
    if loaded.read_dynamic(range, &mut facts).is_none() {
        facts.is_partial = true;
    }
    Some(facts)
}

/// A file as it lies in memory once it is loaded.
struct Loaded<'a> {
    file: &'a dyn Parts,
    loads: Vec<&'a ProgramHeader>,
    is_64_bit: bool,
    is_little: bool,
}

/// The entries of the dynamic section that matter. A value of zero is none.
#[derive(Default)]
struct Dynamic {
    needed: Vec<u64>,
    soname: Option<u64>,
    rpath: Option<u64>,
    runpath: Option<u64>,
    strings: u64,
    strings_size: u64,
    symbols: u64,
    versions: u64,
    needs: (u64, u64),
    defines: (u64, u64),
    hash: u64,
    gnu_hash: u64,
}

impl Loaded<'_> {
    fn number(&self, bytes: &[u8]) -> u64 {
        let join = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if self.is_little {
            bytes.iter().rev().fold(0, join)
        } else {
            bytes.iter().fold(0, join)
        }
    }

    /// A number at an address of loaded memory.
    fn at(&self, address: u64, length: u64) -> Option<u64> {
        let bytes = self.file.at(self.offset_of(address)?, length)?;
        Some(self.number(&bytes))
    }

    fn offset_of(&self, address: u64) -> Option<u64> {
        for load in &self.loads {
            if let Some(within) = address.checked_sub(load.p_vaddr)
                && within < load.p_filesz
            {
                return load.p_offset.checked_add(within);
            }
        }
        None
    }

    /// `None` when something that must be there is not.
    fn read_dynamic(&self, range: Range<u64>, facts: &mut ElfFacts) -> Option<()> {
        let dynamic = self.dynamic(range)?;
        let strings = self.offset_of(dynamic.strings)?;
        let text_left = Cell::new(MOST_TEXT);
        let text = |index: u64| {
            let left = dynamic.strings_size.checked_sub(index)?;
            let text = text_at(self.file, strings.checked_add(index)?, left)?;
            text_left.set(text_left.get().checked_sub(text.len() as u64)?);
            Some(text)
        };
        facts.soname = dynamic.soname.and_then(text);
        facts.rpath = dynamic.rpath.and_then(text);
        facts.runpath = dynamic.runpath.and_then(text);
        for &index in &dynamic.needed {
            facts.needed.push(text(index)?);
        }
        let mut numbers = Vec::new();
        self.read_needs(&dynamic, &text, facts, &mut numbers)?;
        self.read_defines(&dynamic, &text, facts)?;
        self.find_symbols(&dynamic, &text, facts, &numbers);
        Some(())
    }

    fn dynamic(&self, range: Range<u64>) -> Option<Dynamic> {
        let bytes = self.file.at(range.start, range.end - range.start)?;
        let word = if self.is_64_bit { 8 } else { 4 };
        let mut dynamic = Dynamic::default();
        for entry in bytes.chunks_exact(2 * word) {
            let (tag, value) = (self.number(&entry[..word]), self.number(&entry[word..]));
            match tag {
                0 => break,
                DT_NEEDED if dynamic.needed.len() < MOST_NAMES => dynamic.needed.push(value),
                DT_SONAME => dynamic.soname = Some(value),
                DT_RPATH => dynamic.rpath = Some(value),
                DT_RUNPATH => dynamic.runpath = Some(value),
                DT_STRTAB => dynamic.strings = value,
                DT_STRSZ => dynamic.strings_size = value,
                DT_SYMTAB => dynamic.symbols = value,
                DT_VERSYM => dynamic.versions = value,
                DT_VERNEED => dynamic.needs.0 = value,
                DT_VERNEEDNUM => dynamic.needs.1 = value,
                DT_VERDEF => dynamic.defines.0 = value,
                DT_VERDEFNUM => dynamic.defines.1 = value,
                DT_HASH => dynamic.hash = value,
                DT_GNU_HASH => dynamic.gnu_hash = value,
                _ => {}
            }
        }
        Some(dynamic)
    }

    /// The chain of `Verneed` and `Vernaux`; `numbers` gets what the symbols call each version.
    fn read_needs(
        &self,
        dynamic: &Dynamic,
        text: &dyn Fn(u64) -> Option<String>,
        facts: &mut ElfFacts,
        numbers: &mut Vec<u64>,
    ) -> Option<()> {
        const WEAK: u64 = 2;
        let (mut need, count) = dynamic.needs;
        let mut steps = 0;
        for _ in 0..count.min(MOST_NAMES as u64) {
            let library = text(self.at(need.checked_add(4)?, 4)?)?;
            let mut version = need.checked_add(self.at(need.checked_add(8)?, 4)?)?;
            for _ in 0..self.at(need.checked_add(2)?, 2)? {
                // Weak ones count too: a chain that goes in circles must end.
                steps += 1;
                if steps > MOST_NAMES {
                    return None;
                }
                if self.at(version.checked_add(4)?, 2)? & WEAK == 0 {
                    numbers.push(self.at(version.checked_add(6)?, 2)? & 0x7fff);
                    facts.needs.push(VersionNeed {
                        library: library.clone(),
                        version: text(self.at(version.checked_add(8)?, 4)?)?,
                        symbol: None,
                    });
                }
                match self.at(version.checked_add(12)?, 4)? {
                    0 => break,
                    next => version = version.checked_add(next)?,
                }
            }
            match self.at(need.checked_add(12)?, 4)? {
                0 => break,
                next => need = need.checked_add(next)?,
            }
        }
        Some(())
    }

    /// The chain of `Verdef`, of each the first `Verdaux`, which names it.
    fn read_defines(
        &self,
        dynamic: &Dynamic,
        text: &dyn Fn(u64) -> Option<String>,
        facts: &mut ElfFacts,
    ) -> Option<()> {
        const BASE: u64 = 1;
        let (mut define, count) = dynamic.defines;
        for _ in 0..count.min(MOST_NAMES as u64) {
            if self.at(define.checked_add(2)?, 2)? & BASE == 0 {
                let name = define.checked_add(self.at(define.checked_add(12)?, 4)?)?;
                facts.defines.push(text(self.at(name, 4)?)?);
            }
            match self.at(define.checked_add(16)?, 4)? {
                0 => break,
                next => define = define.checked_add(next)?,
            }
        }
        Some(())
    }

    /// Finds for every needed version a symbol that is wanted in it. What is not found stays away.
    fn find_symbols(
        &self,
        dynamic: &Dynamic,
        text: &dyn Fn(u64) -> Option<String>,
        facts: &mut ElfFacts,
        numbers: &[u64],
    ) {
        if dynamic.versions == 0 || dynamic.symbols == 0 || numbers.is_empty() {
            return;
        }
        // Symbols of others are not in the newer hash table and stand before all that are.
        let count = if dynamic.gnu_hash != 0 {
            self.at(dynamic.gnu_hash.saturating_add(4), 4)
        } else {
            self.at(dynamic.hash.saturating_add(4), 4)
        };
        let size: u64 = if self.is_64_bit { 24 } else { 16 };
        let places: BTreeMap<u64, usize> = numbers.iter().copied().zip(0..).collect();
        let mut missing = places.len();
        for index in 1..count.unwrap_or(0).min(MOST_SYMBOLS) {
            let Some(number) = self.at(dynamic.versions.saturating_add(2 * index), 2) else {
                return;
            };
            let Some(&at) = places.get(&(number & 0x7fff)) else {
                continue;
            };
            if facts.needs[at].symbol.is_some() {
                continue;
            }
            let name = self.at(dynamic.symbols.saturating_add(size * index), 4);
            let Some(symbol) = name.and_then(text).filter(|name| !name.is_empty()) else {
                continue;
            };
            facts.needs[at].symbol = Some(symbol);
            missing -= 1;
            if missing == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read<'a>(start: usize, bytes: &[u8], bounds: Bounds) -> Kept<'a> {
        let (start, mut rest) = bytes.split_at(start.min(bytes.len()));
        let mut watched = Vec::new();
        let mut watch = |piece: &[u8]| watched.extend_from_slice(piece);
        let kept = Kept::read(start.to_vec(), &mut rest, bounds, &mut watch).unwrap();
        assert!(watched == bytes);
        kept
    }

    impl ReadRange for &[u8] {
        fn read_range(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> io::Result<()> {
            let at = |offset| usize::try_from(offset).unwrap();
            bytes.extend_from_slice(&self[at(range.start)..at(range.end)]);
            Ok(())
        }
    }

    /// As a stream and by ranges, which must be the same.
    fn inspect_within(bytes: &[u8], bounds: Bounds) -> Option<ElfFacts> {
        let streamed = inspect(&read(10, bytes, bounds));
        let ranges = Ranges::new(&bytes, bytes.len() as u64, bounds);
        assert_eq!(inspect(&ranges), streamed);
        ranges.finish().unwrap();
        streamed
    }

    fn inspect_bytes(bytes: &[u8]) -> Option<ElfFacts> {
        let facts = inspect_within(bytes, Bounds::USUAL);
        assert_eq!(inspect(&Kept::whole(bytes)), facts);
        facts
    }

    #[test]
    fn this_test_needs_libc_and_says_in_which_version() {
        let program = std::env::current_exe().unwrap();
        let bytes = std::fs::read(program).unwrap();
        let facts = inspect_bytes(&bytes).unwrap();
        assert!(facts.is_loadable && facts.is_64_bit && !facts.is_partial);
        assert!(facts.needed.iter().any(|name| name == "libc.so.6"));
        assert_eq!(facts.is_for_musl(), Some(false));
        let start = facts
            .needs
            .iter()
            .find(|need| need.version.starts_with("GLIBC_2.") && need.symbol.is_some());
        assert_eq!(start.unwrap().library.split('.').nth(1), Some("so"));
        assert!(facts.interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn the_end_of_a_large_file_and_its_dynamic_section_are_kept() {
        let bounds = Bounds {
            head: 2000,
            tail: 1000,
        };
        let bytes: Vec<u8> = (0..5000_usize)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let kept = read(10, &bytes, bounds);
        let end = bytes.len() as u64;
        assert_eq!(*kept.at(0, 2000).unwrap(), bytes[..2000]);
        assert_eq!(*kept.at(end - 1000, 1000).unwrap(), bytes[4000..]);
        for (offset, length) in [
            (0, 2001),
            (1999, 2),
            (2000, 1),
            (end - 1001, 2),
            (end - 5, 6),
        ] {
            assert_eq!(kept.at(offset, length), None, "{offset} {length}");
        }
        assert_eq!(kept.at(u64::MAX, 2), None);
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        struct Gone;
        impl ReadRange for Gone {
            fn read_range(&self, _: Range<u64>, _: &mut Vec<u8>) -> io::Result<()> {
                Ok(())
            }
        }
        let ranges = Ranges::new(&Gone, 1000, Bounds::USUAL);
        assert_eq!(inspect(&ranges), None);
        assert_eq!(
            ranges.finish().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_bad(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), wide: bool, little: bool) {
            if bytes.len() > 16 {
                bytes[..4].copy_from_slice(MAGIC);
                bytes[4] = 1 + u8::from(wide);
                bytes[5] = 2 - u8::from(little);
            }
            let _ = inspect_bytes(&bytes);
        }

        #[test]
        fn no_damage_to_a_program_is_too_bad(places in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..40)) {
            let mut bytes = std::fs::read("/proc/self/exe").unwrap();
            bytes.truncate(1 << 20);
            for (at, byte) in places {
                bytes[at] = byte;
            }
            let _ = inspect_bytes(&bytes);
        }

        #[test]
        fn a_stream_and_ranges_give_the_same_facts(
            size in 0_usize..4 << 20,
            head in 100_u64..2 << 20,
            tail in 0_u64..2 << 20,
            moved in any::<Option<u64>>(),
        ) {
            let mut bytes = std::fs::read("/proc/self/exe").unwrap();
            bytes.truncate(size);
            if let Some(place) = moved && size > 4096 {
                // The dynamic section of this program, said to be somewhere else.
                let headers = headers_of(&Kept::whole(&bytes)).unwrap();
                let number = headers.2.iter().position(|it| it.p_type == PT_DYNAMIC).unwrap();
                let at = 64 + 56 * number + 8;
                bytes[at..at + 8].copy_from_slice(&(place % size as u64).to_le_bytes());
            }
            let _ = inspect_within(&bytes, Bounds { head, tail });
        }
    }
}
