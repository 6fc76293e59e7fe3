//! Ages as people write them.

use std::str::FromStr;
use std::time::Duration;

use crate::quantity::{counted, split_number};

/// How old something is: `12h`, `30d`, `8w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Age(pub(crate) Duration);

const UNITS: [(&str, u64); 5] = [
    ("s", 1),
    ("m", 60),
    ("h", 60 * 60),
    ("d", 24 * 60 * 60),
    ("w", 7 * 24 * 60 * 60),
];

/// A text is not an age.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an age: expected a whole number with s, m, h, d or w, for example 30d")]
pub(crate) struct ParseAgeError(String);

impl FromStr for Age {
    type Err = ParseAgeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split_number(text);
        counted(number, unit, &UNITS)
            .map(|seconds| Self(Duration::from_secs(seconds)))
            .ok_or_else(|| ParseAgeError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_a_unit() {
        for (text, seconds) in [
            ("0d", Some(0)),
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("12h", Some(43_200)),
            ("30d", Some(2_592_000)),
            ("8w", Some(4_838_400)),
            ("30", None),
            ("d", None),
            ("-1d", None),
            ("1.5d", None),
            ("1 d", None),
            ("1y", None),
            ("99999999999999999999w", None),
            ("18446744073709551615w", None),
            ("", None),
        ] {
            let age = text.parse::<Age>().ok().map(|age| age.0.as_secs());
            assert_eq!(age, seconds, "{text}");
        }
    }
}
