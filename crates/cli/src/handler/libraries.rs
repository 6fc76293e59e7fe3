//! The libraries that a program brings along: what it needs, transitively, and the base lacks.
//!
//! A library is looked for in the order of the loader (`ld.so(8)`), first as the image's loader will
//! and then on this machine. Libraries of glibc itself are never taken from here: they work with the
//! loader of their own release alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::Result;
use tierce_lambda::{BaseFacts, CLibrary, ElfFacts, expand_search_path, is_of_glibc};

use super::require_all_of;
use crate::diagnostic::Hinted as _;
use crate::output::one_line;

/// Where libraries are looked for, and what is there already.
pub(crate) struct Search<'a> {
    /// What the base offers.
    pub(crate) facts: &'a BaseFacts,
    pub(crate) base_name: &'a str,
    pub(crate) architecture: &'a str,
    /// Folders that were named for it.
    pub(crate) named: &'a [PathBuf],
    /// Paths are shown as seen from here.
    pub(crate) context: &'a Path,
    /// The directory of the image where the loader looks for libraries of all programs.
    pub(crate) shared: &'a str,
    pub(crate) read: &'a dyn Fn(&Path) -> Result<Option<ElfFacts>>,
}

/// The program that is to run.
pub(crate) struct Wanted<'a> {
    pub(crate) file: &'a Path,
    pub(crate) elf: &'a ElfFacts,
    /// Where it will be.
    pub(crate) place: &'a str,
}

/// A library that goes into the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Library {
    /// The name that is asked for.
    pub(crate) name: String,
    /// On this machine, links followed.
    pub(crate) file: PathBuf,
    /// In the image.
    pub(crate) directory: String,
    elf: ElfFacts,
}

/// A file on its way into memory.
struct Loading {
    file: PathBuf,
    elf: ElfFacts,
    /// Where it will be in the image.
    directory: String,
    /// The rpaths of those that asked for it, each as here and as in the image.
    inherited: Vec<Way>,
}

/// One directory that a file itself wants searched.
#[derive(Debug, Clone)]
struct Way {
    here: PathBuf,
    /// In the image, when it lies beside the file.
    there: Option<String>,
}

/// What became of a search on this machine.
struct Tried {
    looked_in: BTreeSet<PathBuf>,
    of_others: Vec<(PathBuf, &'static str)>,
}

impl Search<'_> {
    /// All libraries that must come along, by name; an error when one is missing, or when the base is
    /// too old for any of it.
    pub(crate) fn closure(&self, program: &Wanted<'_>) -> Result<Vec<Library>> {
        self.require_c_library(program.file, program.elf)?;
        self.require_loader(program)?;
        let mut taken: BTreeMap<String, Library> = BTreeMap::new();
        // The loader takes the place of the file itself for `$ORIGIN`, not that of a link to it.
        let real = program.file.canonicalize();
        let mut queue = VecDeque::from([Loading {
            file: real.unwrap_or_else(|_| program.file.to_owned()),
            elf: program.elf.clone(),
            directory: parent(program.place).to_owned(),
            inherited: Vec::new(),
        }]);
        while let Some(loading) = queue.pop_front() {
            let rpath = self.ways(loading.elf.rpath.as_deref(), &loading);
            let inherited = [rpath, loading.inherited.clone()].concat();
            for name in &loading.elf.needed {
                if taken.contains_key(name) {
                    continue;
                }
                let Some(library) = self.find(name, &loading, &inherited)? else {
                    continue;
                };
                require_all_of(&library.elf, &self.show(&library.file))?;
                self.require_c_library(&library.file, &library.elf)?;
                queue.push_back(Loading {
                    file: library.file.clone(),
                    elf: library.elf.clone(),
                    directory: library.directory.clone(),
                    inherited: inherited.clone(),
                });
                taken.insert(name.clone(), library);
            }
        }
        self.require_versions(program, &taken)?;
        Ok(taken.into_values().collect())
    }

    /// A path for people.
    pub(crate) fn show(&self, file: &Path) -> String {
        let inside = file.strip_prefix(self.context).unwrap_or(file);
        one_line(&inside.display().to_string())
    }

    /// Refuses what is linked to a C library that is not the base's.
    fn require_c_library(&self, file: &Path, elf: &ElfFacts) -> Result<()> {
        let needs_musl = elf.is_for_musl();
        let (needed, offered) = match (needs_musl, self.facts.libc) {
            (None, _)
            | (Some(true), Some(CLibrary::Musl))
            | (Some(false), Some(CLibrary::Glibc(_))) => return Ok(()),
            (Some(true), Some(found)) => ("musl", found.to_string()),
            (Some(false), Some(CLibrary::Musl)) => ("glibc", "musl".to_owned()),
            (Some(is_musl), None) => (if is_musl { "musl" } else { "glibc" }, "none".to_owned()),
        };
        Err(anyhow::anyhow!(
            "`{}` is linked to {needed}, and the base `{}` has {offered}",
            self.show(file),
            self.base_name
        )
        .hint(
            "link it statically (Rust: `--target x86_64-unknown-linux-musl`, or aarch64; Go: \
             `CGO_ENABLED=0`), or use a base that has it, such as public.ecr.aws/lambda/provided:al2023 \
             for glibc",
        ))
    }

    /// Refuses a program whose loader is where systems have none. Of a base that was read the lint
    /// knows what is there.
    fn require_loader(&self, program: &Wanted<'_>) -> Result<()> {
        const USUAL: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
        let Some(loader) = &program.elf.interpreter else {
            return Ok(());
        };
        if self.facts.complete || USUAL.contains(&parent(loader)) {
            return Ok(());
        }
        let usual = match self.architecture {
            "arm64" => "/lib/ld-linux-aarch64.so.1",
            _ => "/lib64/ld-linux-x86-64.so.2",
        };
        Err(anyhow::anyhow!(
            "`{}` is started by `{}`, which the base `{}` does not have",
            self.show(program.file),
            one_line(loader),
            self.base_name
        )
        .hint(format!(
            "link it with the loader that is there (`-Wl,--dynamic-linker={usual}`), change it \
             (`patchelf --set-interpreter {usual}`), or link it statically"
        )))
    }

    /// The library of that name, if it has to come along.
    fn find(&self, name: &str, loading: &Loading, inherited: &[Way]) -> Result<Option<Library>> {
        if name.contains('/') {
            return Err(anyhow::anyhow!(
                "`{}` needs the library `{}` by its path, which it will not have in the image",
                self.show(&loading.file),
                one_line(name)
            )
            .hint("link it against a library that has a soname: `-Wl,-soname,NAME`"));
        }
        let is_of_musl = name.starts_with("libc.musl-")
            || (name == "libc.so" && self.facts.libc == Some(CLibrary::Musl));
        if is_of_glibc(name) || is_of_musl {
            return Ok(None);
        }
        let mut tried = Tried {
            looked_in: BTreeSet::new(),
            of_others: Vec::new(),
        };
        let own = if loading.elf.runpath.is_some() {
            &[][..]
        } else {
            inherited
        };
        // The loader looks beside the file before it looks anywhere else.
        for way in own.iter().filter(|way| way.there.is_some()) {
            if let Some(found) =
                self.take(name, &way.here, way.there.as_deref(), loading, &mut tried)?
            {
                return Ok(Some(found));
            }
        }
        if let Some(offered) = &self.facts.libraries
            && offered.contains(name)
        {
            return Ok(None);
        }
        let runpath = self.ways(loading.elf.runpath.as_deref(), loading);
        let named = self.named.iter().map(|here| Way {
            here: here.clone(),
            there: None,
        });
        let machine = directories_of_machine(self.architecture);
        let machine = machine.into_iter().map(|here| Way { here, there: None });
        let ways = named
            .chain(own.iter().cloned())
            .chain(runpath)
            .chain(machine);
        for way in ways {
            if let Some(found) =
                self.take(name, &way.here, way.there.as_deref(), loading, &mut tried)?
            {
                return Ok(Some(found));
            }
        }
        Err(self.missing(name, loading, &tried))
    }

    /// The library, if a directory of this machine has it for the image's.
    fn take(
        &self,
        name: &str,
        here: &Path,
        there: Option<&str>,
        loading: &Loading,
        tried: &mut Tried,
    ) -> Result<Option<Library>> {
        tried.looked_in.insert(here.to_owned());
        let Ok(file) = here.join(name).canonicalize() else {
            return Ok(None);
        };
        if !file.is_file() {
            return Ok(None);
        }
        let Some(elf) = (self.read)(&file)? else {
            return Ok(None);
        };
        let fits = elf.is_loadable
            && (elf.machine, elf.is_64_bit) == (loading.elf.machine, loading.elf.is_64_bit);
        if !fits {
            tried.of_others.push((file, elf.architecture()));
            return Ok(None);
        }
        // What is made for another C library would bring that along.
        let is_for_musl = self.facts.libc.map(|libc| libc == CLibrary::Musl);
        if let (Some(made_for), Some(has)) = (elf.is_for_musl(), is_for_musl)
            && made_for != has
        {
            let made_for = if made_for { "musl" } else { "glibc" };
            tried.of_others.push((file, made_for));
            return Ok(None);
        }
        Ok(Some(Library {
            name: name.to_owned(),
            file,
            directory: there.unwrap_or(self.shared).to_owned(),
            elf,
        }))
    }

    fn missing(&self, name: &str, loading: &Loading, tried: &Tried) -> anyhow::Error {
        let what = format!(
            "`{}` needs `{}`, which the base `{}` does not have, nor this machine for {}",
            self.show(&loading.file),
            one_line(name),
            self.base_name,
            self.architecture
        );
        let of_others = tried
            .of_others
            .iter()
            .map(|(file, made_for)| format!("{} is for {made_for}", self.show(file)));
        let directories: Vec<String> = tried
            .looked_in
            .iter()
            .map(|directory| self.show(directory))
            .collect();
        let looked = format!("looked in: {}", directories.join(", "));
        let lines: Vec<String> = std::iter::once(what)
            .chain(of_others)
            .chain(std::iter::once(looked))
            .collect();
        anyhow::anyhow!(lines.join("\n")).hint(
            "`libraries = [\"FOLDER\"]` in tierce.toml says where it is; or link it statically, or \
             install the package that has it",
        )
    }

    /// The directories of an rpath or runpath.
    fn ways(&self, path: Option<&str>, loading: &Loading) -> Vec<Way> {
        let Some(path) = path else { return Vec::new() };
        let here = loading.file.parent().unwrap_or(Path::new("/"));
        let here = here.to_string_lossy();
        let mut ways = Vec::new();
        for part in path.split(':') {
            let expand = |origin: &str| expand_search_path(part, origin, self.architecture).pop();
            let is_beside = part.contains("$ORIGIN") || part.contains("${ORIGIN}");
            if let Some(here) = expand(&here)
                && here.starts_with('/')
            {
                let there = expand(&loading.directory).filter(|_| is_beside);
                ways.push(Way {
                    here: PathBuf::from(here),
                    there: there.map(|there| without_dots(&there)),
                });
            }
        }
        ways
    }

    /// Refuses what needs newer symbols than there are.
    fn require_versions(
        &self,
        program: &Wanted<'_>,
        taken: &BTreeMap<String, Library>,
    ) -> Result<()> {
        let mut too_new = Vec::new();
        let files = std::iter::once((program.file, program.elf)).chain(
            taken
                .values()
                .map(|library| (library.file.as_path(), &library.elf)),
        );
        for (file, elf) in files {
            let mut lacking: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for need in &elf.needs {
                let offered = match taken.get(&need.library) {
                    Some(library) => {
                        let defines = &library.elf.defines;
                        let has_it = defines.is_empty() || defines.contains(&need.version);
                        (!has_it)
                            .then(|| format!("`{}` does not have it", self.show(&library.file)))
                    }
                    None => {
                        let newest = self.facts.too_new(&need.version);
                        newest.map(|newest| {
                            format!("the base `{}` offers {newest} at most", self.base_name)
                        })
                    }
                };
                if let Some(offered) = offered {
                    let symbol = need.symbol.as_ref();
                    let symbol =
                        symbol.map_or_else(String::new, |symbol| format!(" for `{symbol}`"));
                    let needed = format!("{}{symbol}", need.version);
                    lacking.entry(offered).or_default().push(needed);
                }
            }
            for (offered, needed) in lacking {
                let needed = needed.join(", ");
                too_new.push(format!("`{}` needs {needed}: {offered}", self.show(file)));
            }
        }
        if too_new.is_empty() {
            return Ok(());
        }
        Err(anyhow::anyhow!(too_new.join("\n")).hint(
            "build it on the base's own system (Amazon Linux 2 or 2023), against an older glibc (`cargo \
             zigbuild --target x86_64-unknown-linux-gnu.2.26`), or statically for musl; a newer base has \
             a newer glibc",
        ))
    }
}

fn parent(path: &str) -> &str {
    let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
    if parent.is_empty() { "/" } else { parent }
}

/// A path from the root without `.`, `..` and double slashes.
pub(crate) fn without_dots(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Where the loader of this machine looks, and where distributions keep libraries for other machines.
fn directories_of_machine(architecture: &str) -> Vec<PathBuf> {
    let machine = if architecture == "arm64" {
        "aarch64"
    } else {
        "x86_64"
    };
    let mut directories = Vec::new();
    let mut files = vec![PathBuf::from("/etc/ld.so.conf")];
    let more = std::fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten();
    let mut more: Vec<PathBuf> = more.flatten().map(|entry| entry.path()).collect();
    more.sort();
    files.extend(more.into_iter().filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "conf")
    }));
    for file in files {
        for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.starts_with('/') {
                directories.push(PathBuf::from(line));
            }
        }
    }
    let usual = [
        format!("/lib/{machine}-linux-gnu"),
        format!("/usr/lib/{machine}-linux-gnu"),
        // Of cross compilers.
        format!("/usr/{machine}-linux-gnu/lib"),
        "/lib64".to_owned(),
        "/usr/lib64".to_owned(),
        "/lib".to_owned(),
        "/usr/lib".to_owned(),
    ];
    directories.extend(usual.map(PathBuf::from));
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain() {
        for (path, plain) in [
            ("/var/runtime/../lib", "/var/lib"),
            ("/var//task/./lib/", "/var/task/lib"),
            ("/../..", "/"),
        ] {
            assert_eq!(without_dots(path), plain);
        }
        assert_eq!((parent("/a"), parent("/a/b")), ("/", "/a"));
    }
}
