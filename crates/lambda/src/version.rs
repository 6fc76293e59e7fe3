//! Versions of glibc.

use std::fmt;

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
}
