//! Content addresses: the digest of a blob and the diff id of an uncompressed layer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::digest::common::hazmat::SerializableState as _;
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a blob's exact bytes, written `sha256:<64 hex digits>`.
///
/// The image specification also registers SHA-512; no registry of note serves it, so it is refused
/// when parsed rather than half supported.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Takes 32 bytes that are already a SHA-256.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lower-case hex digits, without the algorithm: a blob's file name in an OCI layout.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.0
            .iter()
            .flat_map(|byte| {
                [
                    DIGITS[usize::from(byte >> 4)],
                    DIGITS[usize::from(byte & 15)],
                ]
            })
            .map(char::from)
            .collect()
    }

    /// The first twelve hex digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// There is no `algorithm:` before the hex digits.
    #[error("`{0}` is not a digest: expected `sha256:` and 64 hex digits")]
    NoAlgorithm(String),
    /// An algorithm other than SHA-256.
    #[error("`{0}` uses a digest algorithm other than sha256")]
    UnsupportedAlgorithm(String),
    /// The digits are too few, too many, upper-case or not hexadecimal.
    #[error("`{0}` is not a sha256 digest: expected 64 lower-case hex digits")]
    BadHex(String),
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(ParseDigestError::NoAlgorithm(text.to_owned()));
        };
        if algorithm != "sha256" {
            return Err(ParseDigestError::UnsupportedAlgorithm(text.to_owned()));
        }
        let bad_hex = || ParseDigestError::BadHex(text.to_owned());
        if hex.len() != 64 {
            return Err(bad_hex());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = match digits {
                [high, low] => nibble(*high)
                    .zip(nibble(*low))
                    .map(|(high, low)| high << 4 | low)
                    .ok_or_else(bad_hex)?,
                _ => return Err(bad_hex()),
            };
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The digest of a layer's *uncompressed* tar: what a config lists under `rootfs.diff_ids`.
///
/// A type of its own, because a diff id in a manifest or a blob digest in a config is an image that
/// no runtime can unpack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Debug for DiffId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Computes a [`Digest`] over bytes that arrive in pieces.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Starts with no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Where a [`Hasher`] stands, as bytes that can be kept: hashing goes on from there in another
/// process without what came before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HasherState([u8; HasherState::LENGTH]);

impl HasherState {
    /// How many bytes a state has.
    pub const LENGTH: usize = 104;

    /// The state that these bytes were.
    pub fn new(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes to be kept.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl fmt::Debug for HasherState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HasherState")
    }
}

impl Hasher {
    /// Where it stands after all bytes taken.
    pub fn state(&self) -> HasherState {
        HasherState(self.0.serialize().into())
    }

    /// Goes on from `state`; `None` when that is not one. Whoever kept the bytes answers for them:
    /// a state of other bytes gives another digest and no error.
    pub fn resume(state: &HasherState) -> Option<Self> {
        Sha256::deserialize(&state.0.into()).ok().map(Self)
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn displays_and_parses_back() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        let mut hasher = Hasher::new();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn a_kept_state_goes_on_where_it_was() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for cut in [0, 1, 63, 64, 65, 128, 999, 1000] {
            let mut before = Hasher::new();
            before.update(&bytes[..cut]);
            let kept = HasherState::new(*before.state().as_bytes());
            let mut after = Hasher::resume(&kept).unwrap();
            after.update(&bytes[cut..]);
            assert_eq!(after.finish(), Digest::of(&bytes), "{cut}");
        }
        assert!(Hasher::resume(&HasherState::new([0xff; HasherState::LENGTH])).is_none());
    }

    #[test]
    fn refuses_what_is_not_a_lower_case_sha256() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha512:00",
            &EMPTY[1..],
            &EMPTY[..70],
            &upper,
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
