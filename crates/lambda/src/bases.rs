//! What is known of AWS's base images without reading them.
//!
//! From AWS's documentation (images-create, lambda-runtimes) and the Dockerfiles of
//! `aws/aws-lambda-base-images`. A base that has been read is believed before this table.

use tierce_oci::Reference;

use crate::version::GlibcVersion;

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
pub const AWS_BASES: [AwsBase; 31] = [
    base("python", "3.8", Al2),
    base("python", "3.9", Al2),
    base("python", "3.10", Al2),
    base("python", "3.11", Al2),
    base("python", "3.12", Al2023),
    base("python", "3.13", Al2023),
    base("python", "3.14", Al2023),
    base("nodejs", "14", Al2),
    base("nodejs", "16", Al2),
    base("nodejs", "18", Al2),
    base("nodejs", "20", Al2023),
    base("nodejs", "22", Al2023),
    base("nodejs", "24", Al2023),
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

impl AwsBase {
    /// The base of that language and version.
    pub fn of(language: &str, version: &str) -> Option<&'static Self> {
        AWS_BASES
            .iter()
            .find(|base| base.language == language && base.version == version)
    }

    /// The base that a reference names: `public.ecr.aws/lambda/python:3.12`, its date-stamped and
    /// per-architecture tags, and the same at Docker Hub (`amazon/aws-lambda-python`).
    pub fn named(reference: &Reference) -> Option<&'static Self> {
        let repository = &reference.repository;
        let path = repository.path.as_str();
        let language = match repository.registry.as_str() {
            "public.ecr.aws" => path.strip_prefix("lambda/")?,
            "docker.io" => path.strip_prefix("amazon/aws-lambda-")?,
            _ => return None,
        };
        let tag = reference.effective_tag()?;
        let tag = tag.as_str();
        let tag = tag
            .strip_suffix("-x86_64")
            .or_else(|| tag.strip_suffix("-arm64"))
            .unwrap_or(tag);
        // `3.12.2024.10.14.09` is `3.12` of a day.
        AWS_BASES
            .iter()
            .filter(|base| base.language == language)
            .find(|base| {
                tag.strip_prefix(base.version)
                    .is_some_and(|rest| rest.is_empty() || is_date(rest))
            })
    }
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
            ("public.ecr.aws/lambda/python:3.99", None),
            ("public.ecr.aws/lambda/python:3.120", None),
            ("python:3.12", None),
        ] {
            assert_eq!(named(text), expected, "{text}");
        }
        assert_eq!(AwsBase::of("python", "3.11").unwrap().system, System::Al2);
    }
}
