//! Versions of what bases have.

use std::fmt;
use std::str::FromStr;

/// A version of glibc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GlibcVersion {
    /// `2`, ever since 1997.
    pub major: u32,
    /// What counts up twice a year.
    pub minor: u32,
    /// Of old versions alone.
    pub patch: u32,
}

impl GlibcVersion {
    /// `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self {
            major,
            minor,
            patch: 0,
        }
    }

    /// The release that brought the symbol version `name`; `None` for versions of other libraries
    /// and for `GLIBC_PRIVATE`.
    pub fn of_symbol_version(name: &str) -> Option<Self> {
        // Packed relative relocations; a loader that does not know the name refuses the file.
        if name == "GLIBC_ABI_DT_RELR" {
            return Some(Self::new(2, 36));
        }
        let mut parts = name.strip_prefix("GLIBC_")?.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let patch = match parts.next() {
            Some(patch) => patch.parse().ok()?,
            None => 0,
        };
        parts.next().is_none().then_some(Self {
            major,
            minor,
            patch,
        })
    }
}

impl fmt::Display for GlibcVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)?;
        match self.patch {
            0 => Ok(()),
            patch => write!(formatter, ".{patch}"),
        }
    }
}

impl FromStr for GlibcVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::of_symbol_version(&format!("GLIBC_{text}"))
            .ok_or_else(|| format!("`{text}` is not a version of glibc, such as `2.34`"))
    }
}

/// A minor version of Python 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PythonVersion {
    /// What stands after `3.`.
    pub minor: u32,
}

impl fmt::Display for PythonVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "3.{}", self.minor)
    }
}

impl FromStr for PythonVersion {
    type Err = String;

    /// Reads texts such as `3.12`, `3.12.4` and `3.12-slim`.
    fn from_str(text: &str) -> Result<Self, String> {
        number_after("3.", text)
            .map(|minor| Self { minor })
            .ok_or_else(|| format!("`{text}` is not a version of Python 3, such as `3.13`"))
    }
}

/// The number that follows `prefix` in texts such as `3.12`, `3.12.4` or `3.12-arm64`.
pub(crate) fn number_after(prefix: &str, text: &str) -> Option<u32> {
    let rest = text.strip_prefix(prefix)?;
    let end = rest
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(rest.len());
    let (digits, rest) = rest.split_at(end);
    let ends = rest.is_empty() || rest.starts_with(['.', '-']);
    digits.parse().ok().filter(|_| ends && digits.len() <= 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbol_versions_are_ordered_as_numbers() {
        let version = |text: &str| GlibcVersion::of_symbol_version(text);
        assert!(version("GLIBC_2.4") < version("GLIBC_2.26"));
        assert!(version("GLIBC_2.2.5") < version("GLIBC_2.3"));
        assert_eq!(version("GLIBC_2.34").unwrap().to_string(), "2.34");
        assert_eq!(version("GLIBC_2.2.5").unwrap().to_string(), "2.2.5");
        for other in ["GLIBC_PRIVATE", "GLIBCXX_3.4", "GLIBC_2", "GLIBC_2.3.4.5"] {
            assert_eq!(version(other), None, "{other}");
        }
        assert!(version("GLIBC_ABI_DT_RELR") > version("GLIBC_2.35"));
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
        let glibc = |text: &str| text.parse::<GlibcVersion>();
        assert_eq!(glibc("2.34").unwrap(), GlibcVersion::new(2, 34));
        assert!(glibc("al2").unwrap_err().contains("not a version"));
    }
}
