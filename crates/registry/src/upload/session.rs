//! How far an upload is.

use std::fmt;

use tierce_oci::Digest;
use url::Url;

/// An upload that a registry has begun.
#[derive(Clone)]
pub(super) struct Session {
    /// Where it goes on. Its query may be a signature.
    pub(super) url: Url,
    /// How many bytes the registry has for sure.
    pub(super) at: u64,
    /// Whether it may have the chunk that follows, too.
    pub(super) is_unsure: bool,
    /// Bytes of a chunk.
    pub(super) chunk: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Session")
            .field("path", &self.url.path())
            .field("at", &self.at)
            .field("is_unsure", &self.is_unsure)
            .field("chunk", &self.chunk)
            .finish()
    }
}

/// What a registry says of how much it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// The upload is not there any more.
    Gone,
    /// So many bytes, it says.
    Bytes(u64),
    /// Nothing that could be understood.
    Unknown,
}

impl Session {
    pub(super) fn new(url: Url, chunk: u64) -> Self {
        Self {
            url,
            at: 0,
            is_unsure: false,
            chunk,
        }
    }

    /// Where the last request goes. The query of the upload's address is part of it and stays.
    pub(super) fn closing_url(&self, digest: &Digest) -> Url {
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        url
    }

    /// The registry has said that it has `length` bytes more.
    pub(super) fn acknowledge(&mut self, length: u64) {
        self.at += length;
        self.is_unsure = false;
    }

    /// Heeds the registry's word after a chunk of `length` bytes broke; gives how many of them it
    /// has. Its word counts only where it can be true: less than was acknowledged is ECR's stale
    /// `Range`, and more than was sent is not ours.
    pub(super) fn believe(&mut self, received: u64, length: u64) -> Option<usize> {
        let more = received.checked_sub(self.at)?;
        if more == 0 || more > length {
            return None;
        }
        self.acknowledge(more);
        usize::try_from(more).ok()
    }

    /// Settles where a session goes on of which nobody knows how it ended; `false` when a new one is
    /// better: ECR answers 416 to a session that begins at its first byte again
    /// (apple/containerization#790).
    pub(super) fn resume(&mut self, received: &Received, size: u64) -> bool {
        match received {
            Received::Gone => false,
            Received::Bytes(received) if (self.at + 1..=size).contains(received) => {
                self.at = *received;
                self.is_unsure = false;
                true
            }
            Received::Bytes(received) if *received > size => false,
            Received::Bytes(_) | Received::Unknown => {
                self.is_unsure = true;
                self.at > 0
            }
        }
    }
}

/// How many bytes a `Range` of the form `0-LAST` tells. An upload without any says `0-0` too.
pub(super) fn bytes_of_range(range: &str) -> Option<u64> {
    let range = range.trim();
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (first, last) = range.split_once('-')?;
    if first.trim() != "0" {
        return None;
    }
    let last: u64 = last.trim().parse().ok()?;
    if last == 0 {
        Some(0)
    } else {
        last.checked_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: u64) -> Session {
        let url = Url::parse("http://127.0.0.1/v2/a/blobs/uploads/1?_state=abc%3D").unwrap();
        Session {
            at,
            ..Session::new(url, 10)
        }
    }

    #[test]
    fn the_digest_is_added_to_the_query_and_no_query_is_shown() {
        let digest = Digest::of(b"");
        let url = at(0).closing_url(&digest);
        let query = url.query().unwrap();
        assert!(query.starts_with("_state=abc%3D&digest=sha256%3Ae3b0c442"));
        assert!(!format!("{:?}", at(0)).contains("_state"));
    }

    #[test]
    fn ranges_are_read_as_registries_write_them() {
        for (range, bytes) in [
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("0-0", Some(0)),
            ("5-9", None),
            ("0--1", None),
            ("", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(bytes_of_range(range), bytes, "{range}");
        }
    }

    #[test]
    fn a_word_counts_only_where_it_can_be_true() {
        for (received, more, now) in [
            (20, None, 20),
            (10, None, 20),
            (25, Some(5), 25),
            (30, Some(10), 30),
            (31, None, 20),
        ] {
            let mut session = at(20);
            session.is_unsure = true;
            assert_eq!(session.believe(received, 10), more, "{received}");
            assert_eq!(session.at, now, "{received}");
            assert_eq!(session.is_unsure, more.is_none(), "{received}");
        }
    }

    #[test]
    fn a_session_goes_on_where_something_of_it_is_there() {
        let known = |bytes| Received::Bytes(bytes);
        for (was, received, expected) in [
            (0, known(0), None),
            (0, Received::Unknown, None),
            (0, known(7), Some((7, false))),
            (20, known(10), Some((20, true))),
            (20, Received::Unknown, Some((20, true))),
            (20, known(25), Some((25, false))),
            (20, known(100), Some((100, false))),
            (20, known(101), None),
        ] {
            let mut session = at(was);
            let goes_on = session.resume(&received, 100);
            let now = goes_on.then_some((session.at, session.is_unsure));
            assert_eq!(now, expected, "{was} {received:?}");
        }
    }
}
