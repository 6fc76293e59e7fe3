//! Lengths of time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::quantity::{counted, split_number};

/// How long something may take: `10s`, `5m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeSpan(pub(crate) Duration);

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// A text is not a length of time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a time to wait: expected a whole number above 0 with `ms`, `s`, `m` or `h`, as in `10s`"
)]
pub(crate) struct ParseTimeSpanError(String);

impl FromStr for TimeSpan {
    type Err = ParseTimeSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split_number(text);
        counted(number, unit.trim_start_matches(' '), &UNITS)
            .filter(|length| *length > 0)
            .map(|length| Self(Duration::from_millis(length)))
            .ok_or_else(|| ParseTimeSpanError(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = TimeSpan;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a time to wait, as in `\"10s\"`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TimeSpan, E> {
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
    fn lengths_are_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("10s", 10_000),
            ("10 s", 10_000),
            ("250ms", 250),
            ("5m", 300_000),
            ("2h", 7_200_000),
        ] {
            let expected = TimeSpan(Duration::from_millis(milliseconds));
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "0s",
            "-1s",
            "1.5s",
            "10S",
            "10 days",
            "1m30s",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            let expected = ParseTimeSpanError(text.to_owned());
            assert_eq!(text.parse::<TimeSpan>(), Err(expected), "{text}");
        }
    }
}
