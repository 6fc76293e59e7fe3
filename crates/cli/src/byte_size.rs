//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::quantity::split_number;

/// A number of bytes: `67108864`, `64 MiB`, `64MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

/// Decimal units as disks have them, binary ones as memory does.
const UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("b", 1),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];

/// A text is not a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseByteSizeError {
    /// It is no number, or its unit is unknown.
    #[error("`{0}` is not a size: expected a whole number of bytes, kB, MB, GB, KiB, MiB or GiB")]
    Malformed(String),
    /// It is more than any file can have.
    #[error("`{0}` is too large")]
    Large(String),
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split_number(text);
        let unit = unit.trim_start_matches(' ').to_ascii_lowercase();
        let unit = UNITS.iter().find(|(name, _)| *name == unit);
        let (Some((_, bytes)), false) = (unit, number.is_empty()) else {
            return Err(ParseByteSizeError::Malformed(text.to_owned()));
        };
        // Digits alone: too many of them is all that can be wrong.
        let size = number
            .parse()
            .ok()
            .and_then(|number| bytes.checked_mul(number));
        size.map(Self)
            .ok_or_else(|| ParseByteSizeError::Large(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number of bytes, or a text such as \"64 MiB\"")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<ByteSize, E> {
                u64::try_from(number)
                    .map(ByteSize)
                    .map_err(|_| E::custom("a size cannot be negative"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, size) in [
            ("0", 0),
            ("67108864", 64 << 20),
            ("64 MiB", 64 << 20),
            ("64MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("64MB", 64_000_000),
            ("10 kB", 10_000),
            ("10 KB", 10_000),
            ("1KiB", 1024),
            ("2 GB", 2_000_000_000),
            ("2 GiB", 2 << 30),
            ("7 B", 7),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(size)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "", "MiB", " 1", "-1", "+1", "1.5 GiB", "64 XB", "64M", "1e6", "1_000", "٣",
        ] {
            let expected = ParseByteSizeError::Malformed(text.to_owned());
            assert_eq!(text.parse::<ByteSize>(), Err(expected), "{text}");
        }
        for text in ["18446744073709551616", "17179869184 GiB"] {
            let expected = ParseByteSizeError::Large(text.to_owned());
            assert_eq!(text.parse::<ByteSize>(), Err(expected), "{text}");
        }
    }
}
