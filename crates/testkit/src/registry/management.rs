//! What the owner of a repository has set.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Which tags of a repository stay with their digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum TagMutability {
    #[default]
    Mutable,
    Immutable,
    /// All but those that a filter names.
    ImmutableWithExclusion,
    /// Those alone that a filter names.
    MutableWithExclusion,
}

/// What a repository's owner has set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Management {
    /// When it was made, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) mutability: TagMutability,
    /// The tags that are not as the others; `*` stands for anything.
    pub(crate) filters: Vec<String>,
    pub(crate) scan_on_push: bool,
    /// Kind of encryption and key, as they were given.
    pub(crate) encryption: Option<serde_json::Value>,
    pub(crate) lifecycle_policy: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl TagMutability {
    /// Its name in ECR's API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mutable => "MUTABLE",
            Self::Immutable => "IMMUTABLE",
            Self::ImmutableWithExclusion => "IMMUTABLE_WITH_EXCLUSION",
            Self::MutableWithExclusion => "MUTABLE_WITH_EXCLUSION",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Mutable,
            Self::Immutable,
            Self::ImmutableWithExclusion,
            Self::MutableWithExclusion,
        ];
        all.into_iter().find(|mutability| mutability.name() == name)
    }
}

impl Management {
    pub(crate) fn new(mutability: TagMutability) -> Self {
        Self {
            created: now(),
            mutability,
            ..Self::default()
        }
    }

    /// Whether `tag`, once there, must stay with its digest.
    pub(crate) fn is_immutable(&self, tag: &str) -> bool {
        let named = || self.filters.iter().any(|filter| fits(filter, tag));
        match self.mutability {
            TagMutability::Mutable => false,
            TagMutability::Immutable => true,
            TagMutability::ImmutableWithExclusion => !named(),
            TagMutability::MutableWithExclusion => named(),
        }
    }
}

/// Whether a tag fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, tag: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == tag;
    };
    let Some(left) = tag.strip_prefix(start) else {
        return false;
    };
    (0..=left.len()).any(|skip| left.is_char_boundary(skip) && fits(rest, &left[skip..]))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_make_single_tags_otherwise() {
        let mut management = Management {
            filters: vec!["latest".to_owned(), "dev-*-x".to_owned()],
            ..Management::default()
        };
        let tags = ["latest", "dev-1-x", "dev-1", "v1"];
        let mut immutable = |mutability| {
            management.mutability = mutability;
            tags.map(|tag| management.is_immutable(tag))
        };
        assert_eq!(immutable(TagMutability::Mutable), [false; 4]);
        assert_eq!(immutable(TagMutability::Immutable), [true; 4]);
        assert_eq!(
            immutable(TagMutability::ImmutableWithExclusion),
            [false, false, true, true]
        );
        assert_eq!(
            immutable(TagMutability::MutableWithExclusion),
            [true, true, false, false]
        );
    }
}
