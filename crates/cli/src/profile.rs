//! How layers are compressed, in the words of the command line and of `tierce.toml`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use tierce_layer::{Codec, Fast1, ZlibLevel, ZlibRs, Zstd, ZstdLevel};

/// A choice between time and size. The id of its codec stands in the image's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Profile {
    /// `fast`: the deflate that tierce brings.
    #[default]
    Fast,
    /// `small`, or a level.
    Zlib(ZlibLevel),
    /// `zstd`, with or without a level.
    Zstd(ZstdLevel),
}

/// What may be written, for errors and help.
const EXPECTED: &str =
    "`fast`, `small`, a level from `1` to `9`, `zstd`, or `zstd:LEVEL` with a level from 1 to 19";

impl Profile {
    pub(crate) fn codec(self) -> Box<dyn Codec> {
        match self {
            Self::Fast => Box::new(Fast1),
            Self::Zlib(level) => Box::new(ZlibRs::new(level)),
            Self::Zstd(level) => Box::new(Zstd::new(level)),
        }
    }
}

/// A word that names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a compression: expected {EXPECTED}")]
pub(crate) struct ParseProfileError(String);

impl FromStr for Profile {
    type Err = ParseProfileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = match text.split_once(':') {
            None if text == "fast" => Some(Self::Fast),
            None if text == "small" => Some(Self::Zlib(ZlibLevel::default())),
            None if text == "zstd" => Some(Self::Zstd(ZstdLevel::default())),
            None => number(text).and_then(ZlibLevel::new).map(Self::Zlib),
            Some(("zstd", level)) => number(level).and_then(ZstdLevel::new).map(Self::Zstd),
            Some(_) => None,
        };
        known.ok_or_else(|| ParseProfileError(text.to_owned()))
    }
}

/// Reads digits; `parse` alone would take a sign and zeros before them too.
fn number(text: &str) -> Option<u8> {
    text.parse()
        .ok()
        .filter(|number: &u8| number.to_string() == text)
}

impl<'de> Deserialize<'de> for Profile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrLevel)
    }
}

/// Takes `9` for `"9"`.
struct TextOrLevel;

impl serde::de::Visitor<'_> for TextOrLevel {
    type Value = Profile;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(EXPECTED)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Profile, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, level: i64) -> Result<Profile, E> {
        self.visit_str(&level.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_levels_name_codecs() {
        for (text, id) in [
            ("fast", "fast-1"),
            ("small", "zlib-rs-0.6.8-6"),
            ("1", "zlib-rs-0.6.8-1"),
            ("6", "zlib-rs-0.6.8-6"),
            ("9", "zlib-rs-0.6.8-9"),
            ("zstd", "zstd-1.5.7-3"),
            ("zstd:1", "zstd-1.5.7-1"),
            ("zstd:19", "zstd-1.5.7-19"),
        ] {
            let profile: Profile = text.parse().unwrap();
            assert_eq!(profile.codec().id(), id);
        }
        assert_eq!(Profile::default().codec().id(), "fast-1");
    }

    #[test]
    fn other_words_name_none() {
        for text in [
            "", "Fast", "gzip", "0", "10", "+6", "06", "-1", "256", "6:1", "small:6", "fast:1",
            "zstd:", "zstd:0", "zstd:20", "zstd:+3", "zstd:3:1", " zstd", "ZSTD",
        ] {
            let error = text.parse::<Profile>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "`{text}` is not a compression: expected `fast`, `small`, a level from `1` to \
                     `9`, `zstd`, or `zstd:LEVEL` with a level from 1 to 19"
                )
            );
        }
    }
}
