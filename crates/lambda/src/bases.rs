//! What is known of base images by their names, without reading them.
//!
//! Of AWS's from AWS's documentation (images-create, lambda-runtimes) and the Dockerfiles of
//! `aws/aws-lambda-base-images`; of Docker's images for Python and Node from what their tags say. It
//! is the only such table. A base that has been read is believed before it (see
//! [`BaseFacts`](crate::BaseFacts)).

use std::collections::BTreeSet;

use tierce_oci::Reference;

use crate::base_facts::{BaseFacts, CLibrary};
use crate::version::{GlibcVersion, PythonVersion, number_after};

/// One of AWS's runtimes, as its base image has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwsBase {
    /// The repository below `public.ecr.aws/lambda/`, and the language.
    pub language: &'static str,
    /// The tag without date and architecture, and the language's version.
    pub version: &'static str,
    /// The system it is made of.
    pub system: System,
}

/// A release of Amazon Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// Amazon Linux 2.
    Al2,
    /// Amazon Linux 2023, the minimal one.
    Al2023,
}

impl System {
    /// The version of glibc.
    pub fn glibc(self) -> GlibcVersion {
        match self {
            Self::Al2 => GlibcVersion::new(2, 26),
            Self::Al2023 => GlibcVersion::new(2, 34),
        }
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Al2 => "Amazon Linux 2",
            Self::Al2023 => "Amazon Linux 2023",
        }
    }
}

const fn base(language: &'static str, version: &'static str, system: System) -> AwsBase {
    AwsBase {
        language,
        version,
        system,
    }
}

use System::{Al2, Al2023};

/// All that are still made, and those of the last years.
pub const AWS_BASES: [AwsBase; 33] = [
    base("python", "3.8", Al2),
    base("python", "3.9", Al2),
    base("python", "3.10", Al2),
    base("python", "3.11", Al2),
    base("python", "3.12", Al2023),
    base("python", "3.13", Al2023),
    base("python", "3.14", Al2023),
    base("python", "3.15", Al2023),
    base("nodejs", "14", Al2),
    base("nodejs", "16", Al2),
    base("nodejs", "18", Al2),
    base("nodejs", "20", Al2023),
    base("nodejs", "22", Al2023),
    base("nodejs", "24", Al2023),
    base("nodejs", "26", Al2023),
    base("java", "8.al2", Al2),
    base("java", "11", Al2),
    base("java", "17", Al2),
    base("java", "21", Al2023),
    base("java", "25", Al2023),
    base("dotnet", "6", Al2),
    base("dotnet", "7", Al2),
    base("dotnet", "8", Al2023),
    base("dotnet", "9", Al2023),
    base("dotnet", "10", Al2023),
    base("ruby", "2.7", Al2),
    base("ruby", "3.2", Al2),
    base("ruby", "3.3", Al2023),
    base("ruby", "3.4", Al2023),
    base("provided", "al2", Al2),
    base("provided", "al2023", Al2023),
    base("provided", "latest", Al2023),
    base("go", "1", Al2),
];

/// Where the entrypoint of all of AWS's bases is.
pub const AWS_ENTRYPOINT: &str = "/lambda-entrypoint.sh";
/// Where the function's code goes.
pub const TASK_ROOT: &str = "/var/task";
/// Where layers go.
pub const LAYERS_ROOT: &str = "/opt";
/// Where the language is.
pub const LANGUAGE_ROOT: &str = "/var/lang";
/// Where the Runtime Interface Client is, and where that of the function goes on `provided`.
pub const RUNTIME_ROOT: &str = "/var/runtime";

/// The `LD_LIBRARY_PATH` of all of AWS's bases.
pub const LIBRARY_PATH: &str = "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:\
    /var/task:/var/task/lib:/opt/lib";

/// Libraries of glibc itself, which every base has.
pub const GLIBC_LIBRARIES: [&str; 12] = [
    "libc.so.6",
    "libm.so.6",
    "libmvec.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
    "libresolv.so.2",
    "libanl.so.1",
    "libnsl.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
];

/// Libraries of GCC that are on every release of Amazon Linux: its glibc is packaged to need libgcc
/// (threads are cancelled through it), and microdnf or yum, by which packages get in, need libstdc++.
const GCC_LIBRARIES: [&str; 2] = ["libgcc_s.so.1", "libstdc++.so.6"];

/// Whether a library is a part of glibc itself. Such a library works with the loader of the very same
/// glibc alone, so it is never brought along.
pub fn is_of_glibc(library: &str) -> bool {
    const MORE: [&str; 6] = [
        "libBrokenLocale.so.1",
        "libthread_db.so.1",
        "libc_malloc_debug.so.0",
        "libmemusage.so",
        "libpcprofile.so",
        "libSegFault.so",
    ];
    GLIBC_LIBRARIES.contains(&library)
        || MORE.contains(&library)
        || library.starts_with("libnss_files.")
        || library.starts_with("libnss_dns.")
        || library.starts_with("libnss_compat.")
}

impl AwsBase {
    /// The base of that language and version.
    pub fn of(language: &str, version: &str) -> Option<&'static Self> {
        AWS_BASES
            .iter()
            .find(|base| base.language == language && base.version == version)
    }

    /// The base that a reference names: `public.ecr.aws/lambda/python:3.12`, its date-stamped and
    /// per-architecture tags, the same at Docker Hub (`amazon/aws-lambda-python`), and in copies of
    /// either (`registry.example/mirror/lambda/python:3.12`).
    pub fn named(reference: &Reference) -> Option<&'static Self> {
        let language = Self::language_of(reference)?;
        let tag = reference.effective_tag()?;
        let mut tag = tag.as_str();
        for suffix in ["-x86_64", "-arm64", "-preview"] {
            tag = tag.strip_suffix(suffix).unwrap_or(tag);
        }
        // `3.12.2024.10.14.09` is `3.12` of a day.
        AWS_BASES
            .iter()
            .filter(|base| base.language == language)
            .find(|base| {
                tag.strip_prefix(base.version)
                    .is_some_and(|rest| rest.is_empty() || is_date(rest))
            })
    }

    /// The language whose bases are in the repository that a reference names, whatever its tag.
    pub fn language_of(reference: &Reference) -> Option<&'static str> {
        let path = reference.repository.path.as_str();
        let (folder, last) = path.rsplit_once('/').unwrap_or(("", path));
        let in_folder = folder == "lambda" || folder.ends_with("/lambda");
        let language = last
            .strip_prefix("aws-lambda-")
            .or(in_folder.then_some(last))?;
        let mut languages = AWS_BASES.iter().map(|base| base.language);
        languages.find(|known| *known == language)
    }

    /// Whether a library is surely there: others may be, but nobody has said so.
    pub fn offers(library: &str) -> bool {
        GLIBC_LIBRARIES.contains(&library) || GCC_LIBRARIES.contains(&library)
    }

    /// What the base has.
    pub fn facts(&self) -> BaseFacts {
        let of = |language: &str| (self.language == language).then_some(self.version);
        let libraries = GLIBC_LIBRARIES.iter().chain(&GCC_LIBRARIES);
        BaseFacts {
            libc: Some(CLibrary::Glibc(Some(self.system.glibc()))),
            python: of("python").and_then(|version| version.parse().ok()),
            node: of("nodejs").and_then(|version| number_after("", version)),
            // `provided` leaves it to the function; the other languages bring a client.
            bootstrap: match self.language {
                "provided" => Some(false),
                "go" => None,
                _ => Some(true),
            },
            library_directories: None,
            libraries: Some(
                libraries
                    .map(|&name| name.to_owned())
                    .collect::<BTreeSet<_>>(),
            ),
            ..BaseFacts::default()
        }
    }
}

impl BaseFacts {
    /// What a name tells: of AWS's bases, and of Docker's images for Python and Node.
    pub fn named(reference: &Reference) -> Self {
        if let Some(base) = AwsBase::named(reference) {
            return base.facts();
        }
        let path = reference.repository.path.as_str();
        let (folder, last) = path.rsplit_once('/').unwrap_or(("", path));
        let Some(tag) = reference.effective_tag() else {
            return Self::default();
        };
        let tag = tag.as_str();
        let is_official = folder == "library" || folder.ends_with("/library");
        let of_debian = is_official.then_some(CLibrary::Glibc(None));
        let (python, node) = match last {
            "python" if AwsBase::language_of(reference).is_none() => {
                (tag.parse::<PythonVersion>().ok(), None)
            }
            "node" => (None, number_after("", tag)),
            _ => return Self::default(),
        };
        Self {
            python,
            node,
            libc: libc_of_release(tag).or(of_debian),
            ..Self::default()
        }
    }
}

/// The C library of the distribution that a tag such as `3.12-slim-bookworm` names.
fn libc_of_release(tag: &str) -> Option<CLibrary> {
    let glibc = |minor| Some(CLibrary::Glibc(Some(GlibcVersion::new(2, minor))));
    tag.split('-').find_map(|word| match word {
        "buster" => glibc(28),
        "bullseye" => glibc(31),
        "bookworm" => glibc(36),
        "trixie" => glibc(41),
        _ if word.starts_with("alpine") => Some(CLibrary::Musl),
        _ => None,
    })
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('.');
    parts.next() == Some("")
        && parts.next().is_some_and(|year| year.len() == 4)
        && parts.all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bases_are_understood() {
        let named = |text: &str| {
            AwsBase::named(&text.parse().unwrap()).map(|base| (base.language, base.version))
        };
        for (text, expected) in [
            (
                "public.ecr.aws/lambda/python:3.12",
                Some(("python", "3.12")),
            ),
            (
                "public.ecr.aws/lambda/python:3.12-arm64",
                Some(("python", "3.12")),
            ),
            (
                "public.ecr.aws/lambda/nodejs:20.2024.10.14.09-x86_64",
                Some(("nodejs", "20")),
            ),
            (
                "public.ecr.aws/lambda/provided",
                Some(("provided", "latest")),
            ),
            (
                "public.ecr.aws/lambda/provided:al2",
                Some(("provided", "al2")),
            ),
            ("amazon/aws-lambda-java:8.al2", Some(("java", "8.al2"))),
            (
                "registry.example/mirror/lambda/python:3.9",
                Some(("python", "3.9")),
            ),
            (
                "public.ecr.aws/lambda/nodejs:26-preview",
                Some(("nodejs", "26")),
            ),
            ("registry.example/mylambda/python:3.9", None),
            ("registry.example/lambda/orders:3.9", None),
            ("public.ecr.aws/lambda/python:3.99", None),
            ("public.ecr.aws/lambda/python:3.120", None),
            ("python:3.12", None),
        ] {
            assert_eq!(named(text), expected, "{text}");
        }
        assert_eq!(AwsBase::of("python", "3.11").unwrap().system, System::Al2);
    }

    #[test]
    fn names_tell_what_bases_have() {
        let glibc = |minor| Some(CLibrary::Glibc(Some(GlibcVersion::new(2, minor))));
        for (name, python, node, libc) in [
            (
                "public.ecr.aws/lambda/python:3.12",
                Some(12),
                None,
                glibc(34),
            ),
            (
                "public.ecr.aws/lambda/python:3.11-arm64",
                Some(11),
                None,
                glibc(26),
            ),
            ("amazon/aws-lambda-python:3.13", Some(13), None, glibc(34)),
            (
                "registry.example/mirror/lambda/python:3.9",
                Some(9),
                None,
                glibc(26),
            ),
            (
                "public.ecr.aws/lambda/provided:al2023-arm64",
                None,
                None,
                glibc(34),
            ),
            (
                "public.ecr.aws/lambda/provided:al2.2024.01.01",
                None,
                None,
                glibc(26),
            ),
            ("public.ecr.aws/lambda/nodejs:22", None, Some(22), glibc(34)),
            ("public.ecr.aws/lambda/python:latest", None, None, None),
            ("python:3.12", Some(12), None, Some(CLibrary::Glibc(None))),
            ("registry.example/python:3.12", Some(12), None, None),
            ("python:3.12-slim-bookworm", Some(12), None, glibc(36)),
            (
                "python:3.12-alpine3.20",
                Some(12),
                None,
                Some(CLibrary::Musl),
            ),
            ("node:22-alpine", None, Some(22), Some(CLibrary::Musl)),
            ("node:20.1.2-bullseye-slim", None, Some(20), glibc(31)),
            ("registry.example/team/function:3.12", None, None, None),
        ] {
            let facts = BaseFacts::named(&name.parse().unwrap());
            assert_eq!(facts.python.map(|python| python.minor), python, "{name}");
            assert_eq!(facts.node, node, "{name}");
            assert_eq!(facts.libc, libc, "{name}");
        }
        let provided = BaseFacts::named(&"public.ecr.aws/lambda/provided:al2".parse().unwrap());
        assert_eq!(provided.bootstrap, Some(false));
        let libraries = provided.libraries.unwrap();
        assert!(libraries.contains("libgcc_s.so.1") && libraries.contains("libm.so.6"));
    }
}
