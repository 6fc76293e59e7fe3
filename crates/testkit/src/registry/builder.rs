//! How a test says what its registry does.

use std::collections::BTreeSet;

use super::FakeRegistry;
use super::rules::{Auth, MissingRepository, Offsets, Redirect, Rules, Secret};
use crate::fault::LocationStyle;
use crate::limit::RateLimit;
use crate::password::Passwords;
use crate::token::TokenSettings;

/// Chooses how a [`FakeRegistry`] behaves.
#[derive(Debug, Clone)]
#[must_use]
pub struct FakeRegistryBuilder {
    pub(super) rules: Rules,
    pub(super) https: bool,
    pub(super) repositories: BTreeSet<String>,
    pub(super) passwords: Passwords,
}

impl FakeRegistryBuilder {
    pub(super) fn new() -> Self {
        Self {
            rules: Rules::new(),
            https: false,
            repositories: BTreeSet::new(),
            passwords: Passwords::default(),
        }
    }

    /// Demands this user and password with every request.
    pub fn basic(mut self, user: &str, password: &str) -> Self {
        self.rules.auth = Auth::Basic {
            user: user.to_owned(),
            password: Secret(password.to_owned()),
        };
        self
    }

    /// Demands tokens of a token server on a port of its own, which is started too.
    pub fn bearer(mut self, settings: TokenSettings) -> Self {
        self.rules.auth = Auth::Bearer(settings);
        self
    }

    /// Serves HTTPS with a certificate of an authority made for this registry; see
    /// [`FakeRegistry::ca_certificate`]. The token server and the second host do likewise.
    pub fn https(mut self) -> Self {
        self.https = true;
        self
    }

    /// Answers a `GET` of a blob with 307 to a second host, which refuses `Authorization`.
    pub fn redirect_blobs(mut self, redirect: Redirect) -> Self {
        self.rules.redirect = Some(redirect);
        self
    }

    /// Gives every upload's `Location` in this shape.
    pub fn location(mut self, style: LocationStyle) -> Self {
        self.rules.location = style;
        self
    }

    /// Makes an empty repository.
    pub fn repository(mut self, name: &str) -> Self {
        self.repositories.insert(name.to_owned());
        self
    }

    /// Refuses pushes to repositories that were not made before, with `NAME_UNKNOWN`.
    pub fn without_create_on_push(self) -> Self {
        self.missing_repository(MissingRepository::NameUnknown)
    }

    /// Chooses what a push to a repository that was not made before comes to.
    pub fn missing_repository(mut self, missing: MissingRepository) -> Self {
        self.rules.missing = missing;
        self
    }

    /// Refuses everything that writes, with 405.
    pub fn read_only(mut self) -> Self {
        self.rules.read_only = true;
        self
    }

    /// Takes a whole blob with the first `POST`, which most registries answer with 202 instead.
    pub fn single_post_uploads(mut self) -> Self {
        self.rules.single_post = true;
        self
    }

    /// Answers every range request with 200 and all bytes.
    pub fn ignore_ranges(mut self) -> Self {
        self.rules.ignore_ranges = true;
        self
    }

    /// Refuses uploads of unknown length with 411.
    pub fn require_content_length(mut self) -> Self {
        self.rules.require_length = true;
        self
    }

    /// Never mounts: every attempt begins an upload.
    pub fn without_mounts(mut self) -> Self {
        self.rules.mount = false;
        self
    }

    /// Answers the referrers API, and `OCI-Subject` to manifests that have a subject.
    pub fn referrers(mut self) -> Self {
        self.rules.referrers = true;
        self
    }

    /// Tells `OCI-Chunk-Min-Length`, and refuses smaller chunks that are followed by another.
    pub fn minimum_chunk(mut self, bytes: u64) -> Self {
        self.rules.minimum_chunk = Some(bytes);
        self
    }

    /// Answers a chunk with this status in place of 202.
    pub fn chunk_status(mut self, status: u16) -> Self {
        self.rules.patch_status = status;
        self
    }

    /// Lists at most this many tags at once, whatever is asked for.
    pub fn page_size(mut self, tags: usize) -> Self {
        self.rules.page_size = Some(tags);
        self
    }

    /// Lists at most this many referrers at once, and links to the rest.
    pub fn referrers_page_size(mut self, referrers: usize) -> Self {
        self.rules.referrers_page = Some(referrers);
        self
    }

    /// Refuses to list when more than `tags` at once are asked for.
    pub fn largest_page(mut self, tags: usize) -> Self {
        self.rules.largest_page = Some(tags);
        self
    }

    /// Answers a `HEAD` of a blob with a redirect too, where a `GET` gets one.
    pub fn redirect_heads(mut self) -> Self {
        self.rules.redirect_heads = true;
        self
    }

    /// Demands ECR's Basic credentials: the user `AWS` with a password of
    /// [`FakeRegistry::issue_password`]. None at all are answered with 401 and plain text, expired
    /// ones with 403 `DENIED`. The challenge names the [`Self::name`] of the registry.
    pub fn ecr_passwords(mut self) -> Self {
        self.rules.auth = Auth::Ecr;
        self
    }

    /// The name that challenges and messages have for the registry, in place of host and port.
    pub fn name(mut self, name: &str) -> Self {
        self.rules.name = Some(name.to_owned());
        self
    }

    /// Tells of missing repositories in ECR's words, which name this account.
    pub fn account(mut self, account: &str) -> Self {
        self.rules.account = Some(account.to_owned());
        self
    }

    /// Chooses what becomes of a chunk that does not begin where the upload's bytes end.
    pub fn offsets(mut self, offsets: Offsets) -> Self {
        self.rules.offsets = offsets;
        self
    }

    /// Tells the end of the first chunk in every `Range` of an upload, as ECR does.
    pub fn stale_range(mut self) -> Self {
        self.rules.stale_range = true;
        self
    }

    /// Keeps nothing of a chunk or a whole blob whose connection broke.
    pub fn atomic_chunks(mut self) -> Self {
        self.rules.atomic_chunks = true;
        self
    }

    /// Refuses a chunk that follows one below this size, without telling the minimum before.
    pub fn minimum_part(mut self, bytes: u64) -> Self {
        self.rules.minimum_part = Some(bytes);
        self
    }

    /// Answers a `GET` of an upload with this status: 204 tells its state, 404 and 405 do not.
    pub fn upload_status(mut self, status: u16) -> Self {
        self.rules.upload_status = status;
        self
    }

    /// Demands the latest `_state` of an upload's address of a `GET` too, and ends the upload when
    /// another comes, as docker-registry does: what a broken chunk left behind cannot be gone on
    /// from. It needs a [`Self::location`] with a query.
    pub fn strict_upload_state(mut self) -> Self {
        self.rules.strict_state = true;
        self
    }

    /// Answers requests with a longer body with 413, as a proxy before a registry does.
    pub fn body_limit(mut self, bytes: u64) -> Self {
        self.rules.body_limit = Some(bytes);
        self
    }

    /// Makes repositories whose tags stay with their first digest.
    pub fn immutable_tags(mut self) -> Self {
        self.rules.immutable_tags = true;
        self
    }

    /// Refuses to put what an immutable tag names already, too.
    pub fn refuse_identical_manifests(mut self) -> Self {
        self.rules.refuse_identical = true;
        self
    }

    /// Answers every `HEAD` of a blob with 401, whatever the token, as ECR Public does.
    pub fn refuse_blob_heads(mut self) -> Self {
        self.rules.head_refused = true;
        self
    }

    /// Answers a token that is unknown or has expired with 400 and no challenge, as ECR Public does.
    pub fn old_tokens_are_bad_requests(mut self) -> Self {
        self.rules.old_tokens_400 = true;
        self
    }

    /// Answers 429 to requests without credentials, or with a token got without, beyond a limit.
    pub fn anonymous_limit(mut self, limit: &RateLimit) -> Self {
        self.rules.anonymous_limit = Some(limit.clone());
        self
    }

    /// Answers 429 to manifests that are put beyond a limit.
    pub fn manifest_limit(mut self, limit: &RateLimit) -> Self {
        self.rules.manifest_limit = Some(limit.clone());
        self
    }

    /// Behaves as the private ECR registry of an account and a region: every switch that the
    /// service is known for, each of which can be set otherwise afterwards.
    pub fn like_ecr(self, account: &str, region: &str) -> Self {
        self.ecr_passwords()
            .name(&format!("{account}.dkr.ecr.{region}.amazonaws.com"))
            .account(account)
            .location(LocationStyle::Absolute)
            .missing_repository(MissingRepository::NameUnknown)
            .chunk_status(201)
            .offsets(Offsets::Ecr)
            .stale_range()
            .atomic_chunks()
            .minimum_part(5 * 1024 * 1024)
            .redirect_blobs(Redirect::OtherName)
            .without_mounts()
            .referrers()
            .referrers_page_size(50)
            .largest_page(1000)
    }

    /// Behaves as `public.ecr.aws` does to those who pull: read-only, with tokens for the fixed scope
    /// `aws`, which nobody needs a password for. [`FakeRegistry::issue_password`] makes one that the
    /// token server takes from the user `AWS`.
    pub fn like_public_ecr(self) -> Self {
        self.bearer(TokenSettings::public_ecr())
            .name("public.ecr.aws")
            .missing_repository(MissingRepository::NameUnknown)
            .read_only()
            .refuse_blob_heads()
            .old_tokens_are_bad_requests()
            .redirect_blobs(Redirect::OtherName)
    }

    /// Behaves as Debian's docker-registry: chunks are appended wherever they say to begin, broken
    /// ones are kept, and an upload's address is good for one state alone.
    pub fn like_docker_registry(self) -> Self {
        self.location(LocationStyle::AbsoluteWithQuery)
            .offsets(Offsets::Ignored)
            .strict_upload_state()
    }

    /// Shares the passwords of another server.
    pub(crate) fn passwords(mut self, passwords: &Passwords) -> Self {
        self.passwords = passwords.clone();
        self
    }

    /// Starts the servers.
    ///
    /// # Panics
    /// When no port can be bound or no certificate be made.
    #[must_use]
    pub fn start(self) -> FakeRegistry {
        FakeRegistry::launch(self)
    }
}
