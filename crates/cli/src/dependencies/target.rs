//! What dependencies are chosen for: machine, Python and glibc of the base.

use std::fmt;
use std::str::FromStr;

use tierce_lambda::GlibcVersion;
pub(crate) use tierce_lambda::PythonVersion;
use tierce_oci::Platform;

/// A version of glibc that wheels are chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Glibc {
    pub(crate) minor: u32,
}

impl Glibc {
    /// What every wheel of today's Linux asks for at most, when nothing is known of the base.
    pub(crate) const OLDEST: Self = Self { minor: 17 };

    /// That of a base.
    pub(crate) fn of(version: GlibcVersion) -> Self {
        Self {
            minor: version.minor,
        }
    }

    /// The release.
    pub(crate) fn version(self) -> GlibcVersion {
        GlibcVersion::new(2, self.minor)
    }

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
        let version: GlibcVersion = text.parse()?;
        if version < GlibcVersion::new(2, Self::OLDEST.minor) {
            return Err(format!(
                "there are no wheels for glibc {text}: they begin with {}",
                Self::OLDEST
            ));
        }
        Ok(Self::of(version))
    }
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
    fn a_glibc_without_wheels_is_refused() {
        assert_eq!("2.34".parse::<Glibc>().unwrap().to_string(), "2.34");
        assert!("2.5".parse::<Glibc>().unwrap_err().contains("begin with"));
        assert!(
            "al2"
                .parse::<Glibc>()
                .unwrap_err()
                .contains("not a version")
        );
    }
}
