//! What the owner of a repository has set.

/// Which tags of a repository stay with their digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum TagMutability {
    #[default]
    Mutable,
    Immutable,
}

/// What a repository's owner has set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Management {
    pub(crate) mutability: TagMutability,
}

impl Management {
    pub(crate) fn new(mutability: TagMutability) -> Self {
        Self { mutability }
    }

    /// Whether tags, once there, must stay with their digest.
    pub(crate) fn is_immutable(&self, _tag: &str) -> bool {
        self.mutability == TagMutability::Immutable
    }
}
