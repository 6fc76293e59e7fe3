//! `index.json`: the names in an OCI layout (image-spec, `image-layout.md`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tierce_oci::json::{to_canonical, without_nulls};
use tierce_oci::{Descriptor, Digest, ImageFormat, MediaType, Reference, Repository, Tag};

use crate::document::MAX_MANIFEST;

/// The name of a manifest in a layout: a tag, or a whole reference.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where containerd and Docker keep the whole reference.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

/// That of manifests. Real ones have some hundred bytes a name, and parsing a stranger's takes
/// seventeen times its size of memory.
pub(crate) const MAX_LISTING: u64 = MAX_MANIFEST;

/// How many names an error lists.
const SHOWN: usize = 20;

/// Why an `index.json` does not lead to a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// Not JSON.
    #[error("`index.json` is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// JSON of another shape.
    #[error("`index.json` is not an OCI image index")]
    NotAnIndex,
    /// An entry that is no descriptor.
    #[error("entry {position} of `index.json` is not a descriptor")]
    BadEntry {
        /// Counted from 1.
        position: usize,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// It is larger than any real one.
    #[error("`index.json` has more than {MAX_LISTING} bytes")]
    TooLarge,
    /// Nothing is listed.
    #[error("it holds no image")]
    Empty,
    /// The name is not listed.
    #[error("it holds no image named `{wanted}`; it has {}", shown(offered))]
    NoSuchName {
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// No name was given, and there is a choice.
    #[error("it holds several images, one must be named: {}", shown(offered))]
    NameNeeded {
        /// What there is.
        offered: Vec<String>,
    },
    /// The name stands for several manifests.
    #[error("`{wanted}` stands for several images: {}", shown(&digests.iter().map(ToString::to_string).collect::<Vec<_>>()))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// What it stands for.
        digests: Vec<Digest>,
    },
}

pub(crate) fn shown(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let first: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let first = first.join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A parsed `index.json`. Editing it keeps whatever tierce does not know.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    value: Map<String, Value>,
    entries: Vec<Descriptor>,
}

impl Listing {
    /// One that lists nothing.
    pub(crate) fn empty() -> Self {
        let mut value = Map::new();
        value.insert("schemaVersion".to_owned(), json!(2));
        let media_type = MediaType::Index(ImageFormat::Oci);
        value.insert("mediaType".to_owned(), json!(media_type));
        value.insert("manifests".to_owned(), json!([]));
        Self {
            value,
            entries: Vec::new(),
        }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ListingError> {
        let Value::Object(mut value) =
            serde_json::from_slice(bytes).map_err(ListingError::NotJson)?
        else {
            return Err(ListingError::NotAnIndex);
        };
        if value.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
            return Err(ListingError::NotAnIndex);
        }
        let manifests = value.entry("manifests").or_insert_with(|| json!([]));
        if manifests.is_null() {
            *manifests = json!([]);
        }
        let entries = manifests
            .as_array()
            .ok_or(ListingError::NotAnIndex)?
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                serde_json::from_value(without_nulls(entry.clone())).map_err(|source| {
                    ListingError::BadEntry {
                        position: index + 1,
                        source,
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { value, entries })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        to_canonical(&Value::Object(self.value.clone()))
    }

    pub(crate) fn entries(&self) -> &[Descriptor] {
        &self.entries
    }

    /// What the manifest is listed as, if it is.
    pub(crate) fn media_type(&self, digest: &Digest) -> Option<&MediaType> {
        self.entries
            .iter()
            .find(|entry| entry.digest == *digest)
            .map(|entry| &entry.media_type)
    }

    /// How each entry is called: by its name, or else by its digest.
    pub(crate) fn names(&self) -> Vec<String> {
        self.entries
            .iter()
            .map(|entry| match name(entry) {
                Some(name) => name.to_owned(),
                None => entry.digest.to_string(),
            })
            .collect()
    }

    /// The manifest named `wanted`; without a name, the only one.
    ///
    /// An exact name comes first, then the same reference written in another way, then a reference
    /// with `wanted` as its tag.
    pub(crate) fn find(&self, wanted: Option<&str>) -> Result<&Descriptor, ListingError> {
        let Some(wanted) = wanted else {
            return match distinct(self.entries.iter().collect())[..] {
                [] => Err(ListingError::Empty),
                [only] => Ok(only),
                _ => Err(ListingError::NameNeeded {
                    offered: self.names(),
                }),
            };
        };
        let wanted_reference = reference(wanted);
        let matches: [&dyn Fn(&Descriptor) -> bool; 4] = [
            &|entry| annotation(entry, REF_NAME) == Some(wanted),
            &|entry| annotation(entry, IMAGE_NAME) == Some(wanted),
            &|entry| {
                let offered = name(entry).and_then(reference);
                offered.is_some() && offered == wanted_reference
            },
            &|entry| {
                name(entry)
                    .and_then(reference)
                    .is_some_and(|(_, tag)| tag.as_str() == wanted)
            },
        ];
        for matches in matches {
            let found = self.entries.iter().filter(|entry| matches(entry)).collect();
            match distinct(found)[..] {
                [] => {}
                [only] => return Ok(only),
                ref several => {
                    return Err(ListingError::Ambiguous {
                        wanted: wanted.to_owned(),
                        digests: several.iter().map(|entry| entry.digest).collect(),
                    });
                }
            }
        }
        Err(ListingError::NoSuchName {
            wanted: wanted.to_owned(),
            offered: self.names(),
        })
    }

    /// Lists `descriptor` with `names` (annotations that name it), in the place of what had the
    /// same [`REF_NAME`]. Without names it is listed only if it is not already.
    ///
    /// Says whether that changed anything.
    pub(crate) fn put(
        &mut self,
        descriptor: &Descriptor,
        names: &BTreeMap<String, String>,
    ) -> bool {
        let wanted = names.get(REF_NAME);
        let is_there = self.entries.iter().any(|entry| {
            entry.digest == descriptor.digest
                && names
                    .iter()
                    .all(|(key, value)| entry.annotations.get(key) == Some(value))
        });
        let rivals = |entry: &Descriptor| {
            wanted.is_some()
                && annotation(entry, REF_NAME) == wanted.map(String::as_str)
                && entry.digest != descriptor.digest
        };
        if is_there && !self.entries.iter().any(rivals) {
            return false;
        }
        let mut listed = descriptor.clone();
        listed.annotations.extend(names.clone());
        let value = serde_json::to_value(&listed)
            .expect("a descriptor has string keys and finite numbers only");
        let mut values = match self.value.remove("manifests") {
            Some(Value::Array(values)) => values,
            _ => Vec::new(),
        };
        let same_name = |entry: &Descriptor| {
            wanted.is_some() && annotation(entry, REF_NAME) == wanted.map(String::as_str)
        };
        let place = self
            .entries
            .iter()
            .position(same_name)
            .unwrap_or(self.entries.len());
        let mut kept = self.entries.iter().map(|entry| !same_name(entry));
        values.retain(|_| kept.next().unwrap_or(true));
        self.entries.retain(|entry| !same_name(entry));
        let place = place.min(values.len());
        values.insert(place, value);
        self.entries.insert(place, listed);
        self.value
            .insert("manifests".to_owned(), Value::Array(values));
        true
    }
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations.get(key).map(String::as_str)
}

/// The fullest name of an entry: Docker writes the tag alone as the other one.
fn name(entry: &Descriptor) -> Option<&str> {
    annotation(entry, IMAGE_NAME).or_else(|| annotation(entry, REF_NAME))
}

/// What a name means as a reference. A bare word is a tag, not a repository of Docker Hub.
fn reference(name: &str) -> Option<(Repository, Tag)> {
    let reference: Reference = name.contains(['/', ':']).then(|| name.parse().ok())??;
    let tag = reference.effective_tag()?;
    Some((reference.repository, tag))
}

/// One entry for each digest.
fn distinct(mut entries: Vec<&Descriptor>) -> Vec<&Descriptor> {
    let mut seen = std::collections::BTreeSet::new();
    entries.retain(|entry| seen.insert(entry.digest));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(text: &str) -> Descriptor {
        Descriptor::of(MediaType::Manifest(ImageFormat::Oci), text.as_bytes())
    }

    fn named(name: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(REF_NAME.to_owned(), name.to_owned())])
    }

    fn listing(entries: &[(&str, Option<&str>, Option<&str>)]) -> Listing {
        let manifests: Vec<Value> = entries
            .iter()
            .map(|(text, ref_name, image_name)| {
                let mut entry = descriptor(text);
                for (key, value) in [(REF_NAME, ref_name), (IMAGE_NAME, image_name)] {
                    if let Some(value) = value {
                        entry
                            .annotations
                            .insert(key.to_owned(), (*value).to_owned());
                    }
                }
                json!(entry)
            })
            .collect();
        let value = json!({"schemaVersion": 2, "manifests": manifests});
        Listing::parse(&to_canonical(&value)).unwrap()
    }

    #[test]
    fn a_name_leads_to_its_manifest() {
        let listing = listing(&[
            ("a", Some("1.0"), None),
            ("b", Some("latest"), Some("docker.io/library/hello:latest")),
            ("c", Some("ghcr.io/x/y:2"), None),
            ("d", Some("hello"), None),
        ]);
        for (wanted, text) in [
            ("1.0", "a"),
            ("latest", "b"),
            ("docker.io/library/hello:latest", "b"),
            ("hello:latest", "b"),
            ("hello", "d"),
            ("ghcr.io/x/y:2", "c"),
            ("2", "c"),
        ] {
            let found = listing.find(Some(wanted)).unwrap();
            assert_eq!(found.digest, descriptor(text).digest, "{wanted}");
        }
        let error = listing.find(Some("3")).unwrap_err().to_string();
        assert_eq!(
            error,
            "it holds no image named `3`; it has `1.0`, `docker.io/library/hello:latest`, `ghcr.io/x/y:2`, `hello`"
        );
        assert!(matches!(
            listing.find(None),
            Err(ListingError::NameNeeded { offered }) if offered.len() == 4
        ));
    }

    #[test]
    fn without_a_name_the_only_image_is_meant() {
        assert!(matches!(
            Listing::empty().find(None),
            Err(ListingError::Empty)
        ));
        let twice = listing(&[("a", Some("1"), None), ("a", Some("2"), None)]);
        assert_eq!(twice.find(None).unwrap().digest, descriptor("a").digest);
        let clash = listing(&[("a", Some("1"), None), ("b", Some("1"), None)]);
        assert!(matches!(
            clash.find(Some("1")),
            Err(ListingError::Ambiguous { digests, .. }) if digests.len() == 2
        ));
    }

    #[test]
    fn putting_keeps_what_is_not_ours() {
        let text = json!({
            "schemaVersion": 2, "x-vendor": [1.5, null], "annotations": {"k": "v"},
            "manifests": [
                {"mediaType": "application/x", "digest": descriptor("z").digest, "size": 1, "x-more": {}},
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                    "digest": descriptor("old").digest, "annotations": {REF_NAME: "1", "own": "x"}}),
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                    "digest": descriptor("b").digest, "annotations": {REF_NAME: "2"}}),
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                    "digest": descriptor("older").digest, "annotations": {REF_NAME: "1"}}),
            ],
        });
        let mut listing = Listing::parse(&to_canonical(&text)).unwrap();
        assert!(listing.put(&descriptor("new"), &named("1")));
        let mut expected = text.clone();
        let manifests = expected["manifests"].as_array_mut().unwrap();
        manifests.remove(3);
        let mut entry = json!(descriptor("new"));
        entry["annotations"] = json!({REF_NAME: "1"});
        manifests[1] = entry;
        let written: Value = serde_json::from_slice(&listing.to_bytes()).unwrap();
        assert_eq!(written, expected);
        assert_eq!(
            listing.find(Some("1")).unwrap().digest,
            descriptor("new").digest
        );

        assert!(!listing.put(&descriptor("new"), &named("1")));
        assert!(!listing.put(&descriptor("new"), &BTreeMap::new()));
        assert!(listing.put(&descriptor("new"), &named("3")));
        assert_eq!(listing.entries().len(), 4);
        let reread = Listing::parse(&listing.to_bytes()).unwrap();
        assert_eq!(reread.entries(), listing.entries());
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in [
            "",
            "[]",
            "{}",
            "null",
            "{\"schemaVersion\":1}",
            "{\"schemaVersion\":2,\"manifests\":{}}",
        ] {
            assert!(Listing::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Listing::parse(b"{\"schemaVersion\":2,\"manifests\":null}").is_ok());
        let bad = br#"{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"sha256:../../x","size":1}]}"#;
        assert!(matches!(
            Listing::parse(bad),
            Err(ListingError::BadEntry { position: 1, .. })
        ));
        let many: Vec<String> = (0..25).map(|number| number.to_string()).collect();
        assert!(shown(&many).ends_with("`19` and 5 more"));
    }
}
