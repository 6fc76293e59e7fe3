//! The one moment that enters an image.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A moment in whole seconds, as `SOURCE_DATE_EPOCH` gives it; shown in RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// 1970-01-01T00:00:00Z: the `created` of an image when `SOURCE_DATE_EPOCH` says nothing, so
    /// that the time of day never moves a digest.
    pub const UNIX_EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn seconds(self) -> i64 {
        self.0.as_second()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is not a count of seconds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time: expected whole seconds since 1970-01-01T00:00:00Z")]
pub struct ParseTimestampError(pub String);

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    /// Reads the value of `SOURCE_DATE_EPOCH`
    /// (reproducible-builds.org/specs/source-date-epoch).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<i64>()
            .ok()
            .filter(|seconds| *seconds >= 0)
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
            .map(Self)
            .ok_or_else(|| ParseTimestampError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_in_rfc_3339() {
        let shown = |text: &str| text.parse::<Timestamp>().map(|time| time.to_string());
        assert_eq!(shown("315532800").unwrap(), "1980-01-01T00:00:00Z");
        assert_eq!(Timestamp::UNIX_EPOCH.to_string(), "1970-01-01T00:00:00Z");
        for text in ["", "-1", "1.5", "now", "99999999999999999999"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
