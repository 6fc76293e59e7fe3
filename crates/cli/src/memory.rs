//! How a layer came out the last time, kept as a note in the layer cache.
//!
//! A note answers one question (see [`Sources::question`](crate::sources::Sources::question)), and
//! serves twice: when the sources are the same by their fingerprint and the links below too, the
//! layers are known and no file is opened; and when something changed, each layer is sealed with the
//! knowledge of how it was.

use serde::{Deserialize, Serialize};
use tierce_layer::cache::{NoteId, RecipeId};
use tierce_layer::{BaseLinks, FileTime, LastTime, LayerCache, SealedLayer};
use tierce_oci::Digest;

use crate::documents::{links_from_text, links_to_text};
use crate::notices::Remark;

/// For how many sets of links below a layer is remembered.
const MOST_MEMORIES: usize = 4;

/// What is remembered of a planned layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// What the sources were; `None` when they had been changed too shortly before to be sure.
    pub(crate) fingerprint: Option<String>,
    /// Whether the base's links had to be known.
    pub(crate) needs_base_links: bool,
    /// A digest of the links below the layer.
    pub(crate) links_below: Digest,
    /// The links that the next layer met, when they were others.
    links_above: Option<Vec<(String, String)>>,
    /// What was said about the sources, to be said again.
    pub(crate) remarks: Vec<Remark>,
    /// The layers that it became.
    pub(crate) layers: Vec<RememberedLayer>,
}

/// One layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RememberedLayer {
    /// What tells it from the others.
    pub(crate) label: Option<String>,
    /// The name of its recipe.
    recipe: String,
    /// What `stat` said of each of its segments, in hexadecimal.
    signatures: Vec<Option<String>>,
}

impl RememberedLayer {
    pub(crate) fn new(label: Option<String>, sealed: &SealedLayer, began: FileTime) -> Self {
        let signatures = sealed.relied_on(began).into_iter();
        Self {
            label,
            recipe: sealed.recipe.id().to_hex(),
            signatures: signatures
                .map(|signature| signature.map(|hash| format!("{hash:032x}")))
                .collect(),
        }
    }

    /// How the layer came out under `codec`, if its recipe is still here.
    pub(crate) fn last_time(&self, cache: &LayerCache, codec: &str) -> Option<LastTime> {
        let recipe = cache.recipe(&RecipeId::from_hex(&self.recipe)?)?;
        if recipe.codec != codec {
            return None;
        }
        let signatures = self.signatures.iter().map(|signature| {
            let hash = signature.as_ref()?;
            u128::from_str_radix(hash, 16).ok()
        });
        Some(LastTime {
            recipe,
            signatures: signatures.collect(),
        })
    }
}

impl Memory {
    /// The memories under `question`, the latest first: the platforms of one build may have bases
    /// with different links.
    pub(crate) fn read(cache: &LayerCache, question: &NoteId) -> Vec<Self> {
        let note = cache.note(question);
        note.and_then(|note| serde_json::from_slice(&note).ok())
            .unwrap_or_default()
    }

    /// Keeps it in the place of an earlier one with the same links below.
    pub(crate) fn keep(self, cache: &LayerCache, question: &NoteId) {
        let mut memories = Self::read(cache, question);
        memories.retain(|other| other.links_below != self.links_below);
        memories.insert(0, self);
        memories.truncate(MOST_MEMORIES);
        if let Ok(note) = serde_json::to_vec(&memories) {
            cache.keep_note(question, &note);
        }
    }

    /// The links that the next layer meets, when this one meets `below`.
    pub(crate) fn links_above(&self, below: &BaseLinks) -> Option<BaseLinks> {
        match &self.links_above {
            None => Some(below.clone()),
            Some(above) => links_from_text(above),
        }
    }

    /// What is to be remembered of a layer that meets the links `below`, when the next one meets
    /// those `above`.
    pub(crate) fn new(
        fingerprint: Option<String>,
        needs_base_links: bool,
        (below, above): (&BaseLinks, &BaseLinks),
        remarks: Vec<Remark>,
        layers: Vec<RememberedLayer>,
    ) -> Self {
        let above = Some(links_to_text(above));
        Self {
            fingerprint,
            needs_base_links,
            links_below: digest_of(below),
            links_above: above.filter(|above| *above != links_to_text(below)),
            remarks,
            layers,
        }
    }
}

/// What tells one set of links from another.
pub(crate) fn digest_of(links: &BaseLinks) -> Digest {
    let text = links_to_text(links);
    Digest::of(&tierce_oci::json::to_canonical(&serde_json::json!(text)))
}
