//! What a program or library of Linux asks of the system that loads it.
//!
//! Read as the loader reads it, by program headers and the dynamic section alone: section headers
//! may be stripped. The bytes are anybody's: every offset, count and length is checked, what is
//! kept is bounded, and a file that contradicts itself is known in part or not at all.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};

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

/// As much of a file's beginning as is kept: nearly all libraries are smaller.
const HEAD: usize = 32 << 20;
/// As much of its end: tools that rewrite libraries put the names there.
const TAIL: usize = 16 << 20;
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
pub(crate) struct Kept {
    head: Vec<u8>,
    window: (u64, Vec<u8>),
    tail: (u64, Vec<u8>),
    /// Whether any of the needles is anywhere in the file.
    pub(crate) is_naming: bool,
}

impl Kept {
    /// Reads a file to its end, and looks for `needles` on the way; `start` has been read of it
    /// already.
    pub(crate) fn read(start: Vec<u8>, rest: &mut dyn Read, needles: &[&[u8]]) -> io::Result<Self> {
        let has_needle = |bytes: &[u8]| needles.iter().any(|needle| contains(bytes, needle));
        let longest = needles.iter().map(|needle| needle.len()).max();
        let mut is_naming = false;
        let mut head = start;
        let room = HEAD.saturating_sub(head.len()) as u64;
        rest.take(room).read_to_end(&mut head)?;
        let wanted = dynamic_of(&head).unwrap_or(0..0);
        let mut offset = head.len() as u64;
        let mut window = (wanted.start.max(offset), Vec::new());
        let mut tail = Vec::new();
        is_naming |= has_needle(&head);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = rest.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            let piece = &buffer[..read];
            let next = offset + read as u64;
            // The dynamic section is small, and most of it in one piece.
            let (from, to) = (wanted.start.max(offset), wanted.end.min(next));
            if from < to {
                let within = |at: u64| usize::try_from(at - offset).unwrap_or(read);
                window.1.extend_from_slice(&piece[within(from)..within(to)]);
            }
            tail.extend_from_slice(piece);
            if tail.len() > 2 * TAIL {
                let gone = tail.len() - TAIL + longest.unwrap_or_default();
                is_naming = is_naming || has_needle(&tail[..gone]);
                tail.drain(..tail.len() - TAIL);
            }
            offset = next;
        }
        is_naming = is_naming || has_needle(&tail);
        let tail_start = offset - tail.len() as u64;
        Ok(Self {
            head,
            window,
            tail: (tail_start, tail),
            is_naming,
        })
    }

    fn at(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let of = |start: u64, bytes: &'_ [u8]| -> Option<(usize, usize)> {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            let to = from.checked_add(usize::try_from(length).ok()?)?;
            (to <= bytes.len()).then_some((from, to))
        };
        for (start, bytes) in [
            (0, &self.head),
            (self.window.0, &self.window.1),
            (self.tail.0, &self.tail.1),
        ] {
            if let Some((from, to)) = of(start, bytes) {
                return Some(&bytes[from..to]);
            }
        }
        None
    }

    /// Bytes up to the first NUL, which must come within `limit`.
    fn text_at(&self, offset: u64, limit: u64) -> Option<String> {
        let most = limit.min(LONGEST_TEXT as u64);
        // What is asked for may go over the end of what is kept.
        let mut length = most;
        loop {
            if let Some(bytes) = self.at(offset, length) {
                let end = bytes.iter().position(|&byte| byte == 0)?;
                return Some(String::from_utf8_lossy(&bytes[..end]).into_owned());
            }
            length /= 2;
            if length == 0 {
                return None;
            }
        }
    }
}

/// Whether `bytes` hold `needle`.
pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else {
        return true;
    };
    let mut left = bytes;
    while let Some(at) = left.iter().position(|&byte| byte == first) {
        left = &left[at + 1..];
        if left.starts_with(rest) {
            return true;
        }
    }
    false
}

fn headers_of(head: &[u8]) -> Option<(goblin::elf::Header, Ctx, Vec<ProgramHeader>)> {
    let header = Elf::parse_header(head).ok()?;
    let context = Ctx::new(header.container().ok()?, header.endianness().ok()?);
    let offset = usize::try_from(header.e_phoff).ok()?;
    let programs = if header.e_phnum == 0 || offset >= head.len() {
        Vec::new()
    } else {
        ProgramHeader::parse(head, offset, usize::from(header.e_phnum), context).ok()?
    };
    Some((header, context, programs))
}

fn dynamic_of(head: &[u8]) -> Option<std::ops::Range<u64>> {
    let (_, _, programs) = headers_of(head)?;
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
pub(crate) fn inspect(file: &Kept) -> Option<ElfFacts> {
    let (header, context, programs) = headers_of(&file.head)?;
    let mut facts = ElfFacts {
        machine: header.e_machine,
        is_64_bit: context.container.is_big(),
        system: foreign_system(header.e_ident[EI_OSABI]).map(str::to_owned),
        is_loadable: matches!(header.e_type, ET_EXEC | ET_DYN),
        ..ElfFacts::default()
    };
    let interpreter = programs.iter().find(|program| program.p_type == PT_INTERP);
    facts.interpreter =
        interpreter.and_then(|program| file.text_at(program.p_offset, program.p_filesz));
    let Some(range) = dynamic_of(&file.head) else {
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
    file: &'a Kept,
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
        Some(self.number(bytes))
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
    fn read_dynamic(&self, range: std::ops::Range<u64>, facts: &mut ElfFacts) -> Option<()> {
        let dynamic = self.dynamic(range)?;
        let strings = self.offset_of(dynamic.strings)?;
        let text_left = Cell::new(MOST_TEXT);
        let text = |index: u64| {
            let left = dynamic.strings_size.checked_sub(index)?;
            let text = self.file.text_at(strings.checked_add(index)?, left)?;
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

    fn dynamic(&self, range: std::ops::Range<u64>) -> Option<Dynamic> {
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

    fn inspect_bytes(bytes: &[u8]) -> Option<ElfFacts> {
        let kept = Kept::read(bytes.to_vec(), &mut io::empty(), &[]).unwrap();
        inspect(&kept)
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
        let mut bytes = vec![0; HEAD + 3 * TAIL];
        for (number, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(number % 251).unwrap();
        }
        let middle = HEAD + TAIL / 2;
        bytes[middle..middle + 6].copy_from_slice(b"needle");
        let read = |needle: &[u8]| {
            Kept::read(bytes[..10].to_vec(), &mut &bytes[10..], &[b"none", needle]).unwrap()
        };
        assert!(!read(b"neither").is_naming);
        let kept = read(b"needle");
        assert!(kept.is_naming);
        let end = bytes.len() as u64;
        assert_eq!(kept.at(0, 20).unwrap(), &bytes[..20]);
        assert_eq!(kept.at(end - 5, 5).unwrap(), &bytes[bytes.len() - 5..]);
        assert_eq!(kept.at(end - 5, 6), None);
        assert_eq!(kept.at(u64::MAX, 2), None);
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
    }
}
