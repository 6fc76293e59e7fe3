//! What dependencies are chosen for: machine, Python and glibc of the base.

use std::fmt;
use std::str::FromStr;

use tierce_image::BaseImage;
use tierce_oci::{Platform, Reference};

/// A minor version of Python 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PythonVersion {
    pub(crate) minor: u32,
}

impl fmt::Display for PythonVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "3.{}", self.minor)
    }
}

impl FromStr for PythonVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let minor = minor_after("3.", text);
        minor
            .map(|minor| Self { minor })
            .ok_or_else(|| format!("`{text}` is not a version of Python 3, such as `3.13`"))
    }
}

/// A version of glibc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Glibc {
    pub(crate) minor: u32,
}

impl Glibc {
    /// What every wheel of today's Linux asks for at most, when nothing is known of the base.
    pub(crate) const OLDEST: Self = Self { minor: 17 };
    const AMAZON_LINUX_2: Self = Self { minor: 26 };
    const AMAZON_LINUX_2023: Self = Self { minor: 34 };

    /// The version that wheels are chosen by: the highest of those that uv has a name for and that
    /// is not above this one. pip could be told of more, and would then take other wheels than uv.
    pub(crate) fn of_wheels(self) -> Self {
        const NAMED: [u32; 11] = [28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40];
        let highest = NAMED.iter().rev().find(|minor| **minor <= self.minor);
        highest.map_or(Self::OLDEST, |&minor| Self { minor })
    }
}

impl fmt::Display for Glibc {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "2.{}", self.minor)
    }
}

impl FromStr for Glibc {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match minor_after("2.", text) {
            Some(minor) if minor >= Self::OLDEST.minor => Ok(Self { minor }),
            Some(_) => Err(format!(
                "there are no wheels for glibc {text}: they begin with {}",
                Self::OLDEST
            )),
            None => Err(format!(
                "`{text}` is not a version of glibc, such as `2.34`"
            )),
        }
    }
}

/// The minor version in texts such as `3.12`, `3.12.4`, `3.12-arm64`.
fn minor_after(major: &str, text: &str) -> Option<u32> {
    let rest = text.strip_prefix(major)?;
    let end = rest
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(rest.len());
    let (digits, rest) = rest.split_at(end);
    let ends = rest.is_empty() || rest.starts_with(['.', '-']);
    digits.parse().ok().filter(|_| ends && digits.len() <= 3)
}

/// A processor that dependencies are known for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// That of a platform; `None` for one that Lambda does not have.
    pub(crate) fn of(platform: &Platform) -> Option<Self> {
        match platform.architecture.as_str() {
            "amd64" => Some(Self::X86_64),
            "arm64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The machine that this program runs on, if it is Linux on one of them.
    pub(crate) fn here() -> Option<Self> {
        match (std::env::consts::OS, std::env::consts::ARCH) {
            ("linux", "x86_64") => Some(Self::X86_64),
            ("linux", "aarch64") => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// What the kernel, and Python, call it.
    pub(crate) fn of_linux(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// What Node calls it.
    pub(crate) fn of_node(self) -> &'static str {
        match self {
            Self::X86_64 => "x64",
            Self::Aarch64 => "arm64",
        }
    }
}

/// The platform tags of the wheels that run there, the best first (PEP 600 and what came before it).
pub(crate) fn wheel_platforms(machine: Machine, glibc: Glibc) -> Vec<String> {
    let name = machine.of_linux();
    // Nobody made older ones for it.
    let oldest = match machine {
        Machine::X86_64 => 5,
        Machine::Aarch64 => 17,
    };
    let mut tags = Vec::new();
    for minor in (oldest..=glibc.of_wheels().minor).rev() {
        tags.push(format!("manylinux_2_{minor}_{name}"));
        let older_name = match minor {
            17 => "manylinux2014",
            12 => "manylinux2010",
            5 => "manylinux1",
            _ => continue,
        };
        tags.push(format!("{older_name}_{name}"));
    }
    tags.push(format!("linux_{name}"));
    tags
}

/// What a base is known to have without any of its layers being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BaseFacts {
    pub(crate) python: Option<PythonVersion>,
    pub(crate) libc: Option<Libc>,
}

/// The C library of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Libc {
    Glibc(Glibc),
    Musl,
}

impl BaseFacts {
    /// Of the base's own name, of the variable that Docker's images of Python set, and of the name of
    /// what the base itself was built on.
    pub(crate) fn of(base: &BaseImage) -> Self {
        let config = base.image.config();
        let mut facts = base.name.as_ref().map(Self::of_name).unwrap_or_default();
        let version = config
            .env
            .iter()
            .find_map(|variable| variable.strip_prefix("PYTHON_VERSION=")?.parse().ok());
        facts.python = facts.python.or(version);
        let below = config.labels.get("org.opencontainers.image.base.name");
        if let Some(below) = below.and_then(|name| name.parse().ok()) {
            let below = Self::of_name(&below);
            facts.python = facts.python.or(below.python);
            facts.libc = facts.libc.or(below.libc);
        }
        facts
    }

    /// Of names such as `public.ecr.aws/lambda/python:3.12`, in copies of the repository too.
    fn of_name(name: &Reference) -> Self {
        let path = name.repository.path.as_str();
        let tag = name
            .tag
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let (folder, last) = path.rsplit_once('/').unwrap_or(("", path));
        let of_lambda = last
            .strip_prefix("aws-lambda-")
            .or_else(|| (folder == "lambda" || folder.ends_with("/lambda")).then_some(last));
        match of_lambda {
            Some("python") => {
                let python: Option<PythonVersion> = tag.parse().ok();
                let glibc = |python: PythonVersion| {
                    if python.minor >= 12 {
                        Glibc::AMAZON_LINUX_2023
                    } else {
                        Glibc::AMAZON_LINUX_2
                    }
                };
                Self {
                    python,
                    libc: python.map(|python| Libc::Glibc(glibc(python))),
                }
            }
            Some("provided") => {
                let release = tag.split(['.', '-']).next().unwrap_or_default();
                let glibc = match release {
                    "al2" => Some(Glibc::AMAZON_LINUX_2),
                    "al2023" | "latest" => Some(Glibc::AMAZON_LINUX_2023),
                    _ => None,
                };
                Self {
                    python: None,
                    libc: glibc.map(Libc::Glibc),
                }
            }
            None if last == "python" => Self {
                python: tag.parse().ok(),
                libc: libc_of_release(&tag),
            },
            _ => Self::default(),
        }
    }
}

/// The C library of the distribution that a tag such as `3.12-slim-bookworm` names.
fn libc_of_release(tag: &str) -> Option<Libc> {
    tag.split('-').skip(1).find_map(|word| match word {
        "bullseye" => Some(Libc::Glibc(Glibc { minor: 31 })),
        "bookworm" => Some(Libc::Glibc(Glibc { minor: 36 })),
        "trixie" => Some(Libc::Glibc(Glibc { minor: 41 })),
        _ if word.starts_with("alpine") => Some(Libc::Musl),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_chosen_by_the_glibc_of_the_base() {
        let tags = |machine, minor| wheel_platforms(machine, Glibc { minor });
        let arm = tags(Machine::Aarch64, 34);
        assert_eq!(arm[0], "manylinux_2_34_aarch64");
        assert!(arm.contains(&"manylinux_2_28_aarch64".to_owned()));
        assert_eq!(
            arm[arm.len() - 3..],
            [
                "manylinux_2_17_aarch64",
                "manylinux2014_aarch64",
                "linux_aarch64"
            ]
        );
        // Amazon Linux 2 has 2.26, for which no tool has a name.
        let old = tags(Machine::X86_64, 26);
        assert_eq!(old[..2], ["manylinux_2_17_x86_64", "manylinux2014_x86_64"]);
        assert!(old.contains(&"manylinux2010_x86_64".to_owned()));
        assert!(old.contains(&"manylinux1_x86_64".to_owned()));
        assert_eq!(tags(Machine::X86_64, 29)[0], "manylinux_2_28_x86_64");
        assert_eq!(tags(Machine::X86_64, 99)[0], "manylinux_2_40_x86_64");
    }

    #[test]
    fn versions_are_read_as_people_write_them() {
        for (text, minor) in [
            ("3.12", Some(12)),
            ("3.9.18", Some(9)),
            ("3.15-preview", Some(15)),
            ("3.12.2024.05.01.10-x86_64", Some(12)),
            ("3", None),
            ("3.", None),
            ("3.x", None),
            ("3.12rc1", None),
            ("2.7", None),
            ("latest", None),
        ] {
            let version = text.parse::<PythonVersion>().ok();
            assert_eq!(version.map(|version| version.minor), minor, "{text}");
        }
        assert_eq!("2.34".parse::<Glibc>().unwrap().to_string(), "2.34");
        assert!("2.5".parse::<Glibc>().unwrap_err().contains("begin with"));
        assert!(
            "al2"
                .parse::<Glibc>()
                .unwrap_err()
                .contains("not a version")
        );
    }

    #[test]
    fn names_of_bases_tell_python_and_glibc() {
        let glibc = |minor| Some(Libc::Glibc(Glibc { minor }));
        for (name, python, libc) in [
            ("public.ecr.aws/lambda/python:3.12", Some(12), glibc(34)),
            (
                "public.ecr.aws/lambda/python:3.11-arm64",
                Some(11),
                glibc(26),
            ),
            ("amazon/aws-lambda-python:3.13", Some(13), glibc(34)),
            (
                "registry.example/mirror/lambda/python:3.9",
                Some(9),
                glibc(26),
            ),
            (
                "public.ecr.aws/lambda/provided:al2023-arm64",
                None,
                glibc(34),
            ),
            (
                "public.ecr.aws/lambda/provided:al2.2024.01.01",
                None,
                glibc(26),
            ),
            ("public.ecr.aws/lambda/python:latest", None, None),
            ("python:3.12", Some(12), None),
            ("python:3.12-slim-bookworm", Some(12), glibc(36)),
            ("python:3.12-alpine3.20", Some(12), Some(Libc::Musl)),
            ("registry.example/team/function:3.12", None, None),
        ] {
            let facts = BaseFacts::of_name(&name.parse().unwrap());
            assert_eq!(facts.python.map(|python| python.minor), python, "{name}");
            assert_eq!(facts.libc, libc, "{name}");
        }
    }
}
