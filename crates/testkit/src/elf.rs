//! Tiny programs and libraries that only a loader would miss something in.
//!
//! They hold no code: headers, a dynamic section and what it points at, written by hand, so that
//! tests have files for any machine that need and offer what a test wants.

/// A 64-bit little-endian ELF file.
#[derive(Debug, Clone)]
#[must_use]
pub struct ElfBuilder {
    machine: u16,
    abi: u8,
    interpreter: Option<String>,
    soname: Option<String>,
    needed: Vec<String>,
    rpath: Option<String>,
    runpath: Option<String>,
    needs: Vec<Need>,
    defines: Vec<String>,
    content: Vec<u8>,
}

/// A symbol of a library in a version.
#[derive(Debug, Clone)]
struct Need {
    library: String,
    version: String,
    symbol: String,
    is_weak: bool,
}

const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

impl ElfBuilder {
    /// A file for an architecture in Go's spelling, which needs and offers nothing.
    ///
    /// # Panics
    /// When the architecture is none that it knows.
    pub fn new(architecture: &str) -> Self {
        let machine = match architecture {
            "amd64" => 62,
            "arm64" => 183,
            "386" => 3,
            "s390x" => 22,
            "ppc64le" => 21,
            "riscv64" => 243,
            "amdgpu" => 224,
            other => panic!("no machine is known for {other}"),
        };
        Self {
            machine,
            abi: 0,
            interpreter: None,
            soname: None,
            needed: Vec::new(),
            rpath: None,
            runpath: None,
            needs: Vec::new(),
            defines: Vec::new(),
            content: Vec::new(),
        }
    }

    /// Says by its number in `e_ident` for which system it is; zero, as Linux's own are, is for any.
    pub fn abi(mut self, number: u8) -> Self {
        self.abi = number;
        self
    }

    /// Makes it a program that this loader starts.
    pub fn interpreter(mut self, path: &str) -> Self {
        self.interpreter = Some(path.to_owned());
        self
    }

    /// Names it as a library.
    pub fn soname(mut self, name: &str) -> Self {
        self.soname = Some(name.to_owned());
        self
    }

    /// Needs a library.
    pub fn needs(mut self, library: &str) -> Self {
        self.needed.push(library.to_owned());
        self
    }

    /// Needs a symbol of a library in a version; the library is to be needed too.
    pub fn needs_symbol(mut self, library: &str, version: &str, symbol: &str) -> Self {
        self.needs.push(Need {
            library: library.to_owned(),
            version: version.to_owned(),
            symbol: symbol.to_owned(),
            is_weak: false,
        });
        self
    }

    /// Takes a symbol of a library in a version if it is there.
    pub fn wants_symbol(mut self, library: &str, version: &str, symbol: &str) -> Self {
        self = self.needs_symbol(library, version, symbol);
        if let Some(need) = self.needs.last_mut() {
            need.is_weak = true;
        }
        self
    }

    /// Has a symbol version.
    pub fn defines(mut self, version: &str) -> Self {
        self.defines.push(version.to_owned());
        self
    }

    /// Where it wants libraries looked for first of all.
    pub fn rpath(mut self, path: &str) -> Self {
        self.rpath = Some(path.to_owned());
        self
    }

    /// Where it wants libraries looked for.
    pub fn runpath(mut self, path: &str) -> Self {
        self.runpath = Some(path.to_owned());
        self
    }

    /// Puts some bytes into it.
    pub fn content(mut self, bytes: &[u8]) -> Self {
        self.content = bytes.to_vec();
        self
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut strings = Strings(vec![0]);
        let headers = ELF_HEADER + 3 * PROGRAM_HEADER;
        let mut body = Body {
            start: headers,
            bytes: Vec::new(),
        };
        let mut dynamic: Vec<(u64, u64)> = Vec::new();
        for library in &self.needed {
            dynamic.push((1, strings.add(library)));
        }
        let named = [(14, &self.soname), (15, &self.rpath), (29, &self.runpath)];
        for (tag, value) in named {
            if let Some(value) = value {
                dynamic.push((tag, strings.add(value)));
            }
        }
        if !self.needs.is_empty() {
            self.add_needs(&mut body, &mut strings, &mut dynamic);
        }
        if !self.defines.is_empty() {
            let mut defines = Vec::new();
            for (number, version) in self.defines.iter().enumerate() {
                let is_last = number + 1 == self.defines.len();
                // version 1, no flags, index, one name, hash, offset of the name, next
                half(&mut defines, &[1, 0, small(number + 2), 1]);
                word(&mut defines, &[0, 20, if is_last { 0 } else { 28 }]);
                word(&mut defines, &[strings.add32(version), 0]);
            }
            let at = body.add(&defines);
            dynamic.extend([(0x6fff_fffc, at), (0x6fff_fffd, self.defines.len() as u64)]);
        }
        let interpreter = self.interpreter.as_ref().map(|path| {
            let bytes = [path.as_bytes(), b"\0"].concat();
            (body.add(&bytes), bytes.len() as u64)
        });
        body.add(&self.content);
        let strings_at = body.add(&strings.0);
        dynamic.extend([(5, strings_at), (10, strings.0.len() as u64), (0, 0)]);
        let mut section = Vec::new();
        for (tag, value) in dynamic {
            long(&mut section, &[tag, value]);
        }
        let dynamic_at = body.add(&section);
        self.file(&body, interpreter, (dynamic_at, section.len() as u64))
    }

    fn add_needs(&self, body: &mut Body, strings: &mut Strings, dynamic: &mut Vec<(u64, u64)>) {
        let mut needs = Vec::new();
        for (number, need) in self.needs.iter().enumerate() {
            let is_last = number + 1 == self.needs.len();
            half(&mut needs, &[1, 1]);
            let next = if is_last { 0 } else { 32 };
            word(&mut needs, &[strings.add32(&need.library), 16, next]);
            word(&mut needs, &[0]);
            let weak = if need.is_weak { 2 } else { 0 };
            half(&mut needs, &[weak, small(number + 2)]);
            word(&mut needs, &[strings.add32(&need.version), 0]);
        }
        let at = body.add(&needs);
        dynamic.extend([(0x6fff_fffe, at), (0x6fff_ffff, self.needs.len() as u64)]);
        // The first symbol is none.
        let mut symbols = vec![0; 24];
        let mut versions = vec![0, 0];
        for (number, need) in self.needs.iter().enumerate() {
            word(&mut symbols, &[strings.add32(&need.symbol), 0x12]);
            long(&mut symbols, &[0, 0]);
            half(&mut versions, &[small(number + 2)]);
        }
        let mut hash = Vec::new();
        word(&mut hash, &[0, small32(self.needs.len() + 1)]);
        dynamic.extend([
            (6, body.add(&symbols)),
            (0x6fff_fff0, body.add(&versions)),
            (4, body.add(&hash)),
        ]);
    }

    fn file(&self, body: &Body, interpreter: Option<(u64, u64)>, dynamic: (u64, u64)) -> Vec<u8> {
        let size = (body.start + body.bytes.len()) as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file[7] = self.abi;
        // A program or library that may lie anywhere (ET_DYN).
        half(&mut file, &[3, self.machine]);
        word(&mut file, &[1]);
        long(&mut file, &[0, ELF_HEADER as u64, 0]);
        word(&mut file, &[0]);
        half(&mut file, &[64, 56, 3, 64, 0, 0]);
        let mut program = |kind: u32, at: u64, length: u64| {
            word(&mut file, &[kind, 4]);
            long(&mut file, &[at, at, at, length, length, 8]);
        };
        program(1, 0, size);
        program(2, dynamic.0, dynamic.1);
        match interpreter {
            Some((at, length)) => program(3, at, length),
            None => program(0, 0, 0),
        }
        file.extend_from_slice(&body.bytes);
        file
    }
}

struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, text: &str) -> u64 {
        let at = self.0.len();
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        at as u64
    }

    fn add32(&mut self, text: &str) -> u32 {
        u32::try_from(self.add(text)).expect("test files are small")
    }
}

struct Body {
    start: usize,
    bytes: Vec<u8>,
}

impl Body {
    fn add(&mut self, bytes: &[u8]) -> u64 {
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        let at = self.start + self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        at as u64
    }
}

fn half(bytes: &mut Vec<u8>, numbers: &[u16]) {
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn word(bytes: &mut Vec<u8>, numbers: &[u32]) {
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn long(bytes: &mut Vec<u8>, numbers: &[u64]) {
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn small(number: usize) -> u16 {
    u16::try_from(number).expect("test files are small")
}

fn small32(number: usize) -> u32 {
    u32::try_from(number).expect("test files are small")
}
