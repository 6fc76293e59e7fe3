//! How a recipe is written down: which ranges of which packs, and which bytes between them, a layer
//! is made of.
//!
//! ```text
//! 0f343b0931126a20f133d67c2b018a3b
//! {"packs":["3f9a….pack"],"pieces":[{"bytes":[31,139,8,…]},{"range":[0,0,2048,"99aa…"]},…]}
//! ```
//!
//! The first line is the XXH3-128 of the second. A range is the number of its pack in the list, its
//! offset, its length and its check.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tierce_image::{FileRange, Piece};
use xxhash_rust::xxh3::xxh3_128;

use super::packs::PackName;

/// A range takes some 70 bytes, and a layer of 10 GiB has some ten thousand.
pub(super) const MAX_RECIPE: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
struct Record {
    packs: Vec<PackName>,
    pieces: Vec<Step>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    Bytes(Vec<u8>),
    Range(usize, u64, u64, Check),
}

struct Check(u128);

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Check {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// The record of a blob that is `pieces`; `None` if a pack has a name that a record cannot have, or
/// the record would be too large to be read again.
pub(super) fn write(pieces: &[Piece]) -> Option<Vec<u8>> {
    let mut numbers = BTreeMap::new();
    let mut packs = Vec::new();
    let mut steps = Vec::with_capacity(pieces.len());
    for piece in pieces {
        steps.push(match piece {
            Piece::Bytes(bytes) => Step::Bytes(bytes.to_vec()),
            Piece::Range(range) => {
                let number = match numbers.entry(range.path.as_os_str()) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(unknown) => {
                        packs.push(PackName::of(&range.path)?);
                        *unknown.insert(packs.len() - 1)
                    }
                };
                Step::Range(number, range.offset, range.length, Check(range.check))
            }
        });
    }
    let pieces = steps;
    let json = serde_json::to_vec(&Record { packs, pieces })
        .expect("a record has string keys and whole numbers only");
    let mut record = format!("{:032x}\n", xxh3_128(&json)).into_bytes();
    record.extend_from_slice(&json);
    (record.len() as u64 <= MAX_RECIPE).then_some(record)
}

/// What a record says, with its packs in `directory`; `None` if it is damaged.
pub(super) fn read(record: &[u8], directory: &Path) -> Option<Arc<[Piece]>> {
    let (check, json) = record.split_at_checked(33)?;
    if format!("{:032x}\n", xxh3_128(json)).as_bytes() != check {
        return None;
    }
    let record: Record = serde_json::from_slice(json).ok()?;
    let paths: Vec<Arc<Path>> = record
        .packs
        .iter()
        .map(|name| name.within(directory).into())
        .collect();
    record
        .pieces
        .into_iter()
        .map(|step| match step {
            Step::Bytes(bytes) => Some(Piece::Bytes(Bytes::from(bytes))),
            Step::Range(number, offset, length, Check(check)) => Some(Piece::Range(FileRange {
                path: paths.get(number)?.clone(),
                offset,
                length,
                check,
            })),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(pack: &str, offset: u64, check: u128) -> Piece {
        Piece::Range(FileRange {
            path: Path::new("/cache/packs").join(pack).into(),
            offset,
            length: 7,
            check,
        })
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let pieces = [
            Piece::Bytes(Bytes::from_static(b"\x1f\x8b")),
            range("b.pack", 0, u128::MAX),
            range("a.pack", u64::MAX - 7, 0),
            range("b.pack", 7, 1 << 100),
            Piece::Bytes(Bytes::new()),
        ];
        let record = write(&pieces).unwrap();
        let read = read(&record, Path::new("/cache/packs")).unwrap();
        assert_eq!(read[..], pieces);
    }

    #[test]
    fn a_layer_of_ten_gibibytes_fits() {
        let pieces: Vec<Piece> = (0..16_384)
            .map(|number| range("3f9a.pack", number * 1_000_000, u128::MAX))
            .collect();
        assert!(write(&pieces).is_some());
        let many: Vec<Piece> = pieces.iter().cycle().take(70_000).cloned().collect();
        assert!(write(&many).is_none());
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let record = write(&[
            Piece::Bytes(Bytes::from_static(b"\x03\0")),
            range("a", 5, 9),
        ]);
        let record = record.unwrap();
        let directory = Path::new("/store/packs");
        assert!(read(&record, directory).is_some());
        for position in 0..record.len() {
            for bit in 0..8 {
                let mut bad = record.clone();
                bad[position] ^= 1 << bit;
                assert!(read(&bad, directory).is_none(), "{position} {bit}");
            }
            assert!(read(&record[..position], directory).is_none());
        }
    }

    #[test]
    fn a_record_leads_nowhere_but_to_packs() {
        let record = |json: &str| format!("{:032x}\n{json}", xxh3_128(json.as_bytes()));
        let directory = Path::new("/store/packs");
        let reads = |json: &str| read(record(json).as_bytes(), directory);
        assert!(reads(r#"{"packs":["a"],"pieces":[{"range":[0,0,1,"0"]}]}"#).is_some());
        for json in [
            r#"{"packs":["../version"],"pieces":[]}"#,
            r#"{"packs":["/etc/passwd"],"pieces":[]}"#,
            r#"{"packs":[".."],"pieces":[]}"#,
            r#"{"packs":[""],"pieces":[]}"#,
            r#"{"packs":["a"],"pieces":[{"range":[1,0,1,"0"]}]}"#,
            r#"{"packs":["a"],"pieces":[{"range":[0,-1,1,"0"]}]}"#,
            r#"{"packs":["a"],"pieces":[{"bytes":[256]}]}"#,
            r#"{"packs":["a"],"pieces":[{"other":[]}]}"#,
            r#"{"packs":["a"]}"#,
            "[]",
        ] {
            assert!(reads(json).is_none(), "{json}");
        }
    }
}
