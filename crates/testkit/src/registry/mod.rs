//! A stateful registry in the test's own process.

mod answers;
mod blobs;
mod builder;
mod management;
mod manifests;
mod routes;
mod rules;
mod state;
mod upload;
mod uploads;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tierce_oci::Digest;

use crate::fault::Fault;
use crate::front::{self, Front};
use crate::log::{Endpoint, RequestLog};
use crate::password::Passwords;
use crate::server::{Bound, Server};
use crate::tls::{self, Authority};
use crate::token::{self, Issuer};
use routes::Core;
use rules::Auth;

pub use builder::FakeRegistryBuilder;
pub(crate) use management::{Management, TagMutability};
pub(crate) use routes::is_repository_name;
pub use rules::{MissingRepository, Offsets, Redirect};
pub(crate) use state::{Repository, Shared, StoredManifest};

/// A stateful OCI registry on a loopback port, for tests.
///
/// It keeps the distribution specification more strictly than registries do: every digest, size,
/// media type and child is verified. Dropping it stops its servers. All methods may be called
/// from code without an async runtime.
///
/// ```
/// use tierce_testkit::FakeRegistry;
/// let registry = FakeRegistry::start();
/// let digest = registry.put_blob("team/app", b"bytes".as_slice());
/// assert_eq!(registry.blob("team/app", &digest).as_deref(), Some(b"bytes".as_slice()));
/// assert!(registry.log().is_empty());
/// ```
pub struct FakeRegistry {
    front: Front,
    state: Shared,
    passwords: Passwords,
    issuer: Option<Arc<Issuer>>,
    authority: Option<Authority>,
    registry: Server,
    token: Option<Server>,
    storage: Server,
}

impl FakeRegistry {
    /// Starts an open registry over plain HTTP that creates repositories on push.
    ///
    /// # Panics
    /// When no port can be bound.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Begins to choose how a registry behaves.
    pub fn builder() -> FakeRegistryBuilder {
        FakeRegistryBuilder::new()
    }

    fn launch(builder: FakeRegistryBuilder) -> Self {
        let authority = builder
            .https
            .then(|| Authority::new().expect("certificates can be made"));
        let tls = authority
            .as_ref()
            .map(|authority| Arc::clone(&authority.server));
        let scheme = if builder.https { "https" } else { "http" };
        let front = Front::default();
        let passwords = builder.passwords;
        let state = Shared::new(&builder.repositories, builder.rules.immutable_tags);
        let bind = || Bound::new().expect("a loopback port is free");

        let (registry_port, storage_port) = (bind(), bind());
        let mut issuer = None;
        let mut token = None;
        let mut realm = String::new();
        if let Auth::Bearer(settings) = &builder.rules.auth {
            let made =
                Arc::new(Issuer::new(settings.clone(), &passwords).expect("a key can be made"));
            let bound = bind();
            realm = format!("{scheme}://127.0.0.1:{}{}", bound.port(), made.path());
            token = Some(token::serve(bound, tls.clone(), &made, &front));
            issuer = Some(made);
        }
        let core = Arc::new(Core {
            rules: builder.rules,
            state: state.clone(),
            passwords: passwords.clone(),
            issuer: issuer.clone(),
            realm,
            scheme,
            registry_port: registry_port.port(),
            storage_port: storage_port.port(),
        });
        let serve = |bound: Bound, endpoint| {
            let core = Arc::clone(&core);
            let inner: front::Inner = Arc::new(move |exchange| {
                let core = Arc::clone(&core);
                Box::pin(async move { core.answer(endpoint, exchange).await })
            });
            bound.serve(tls.clone(), front.handler(endpoint, inner))
        };
        let registry = serve(registry_port, Endpoint::Registry);
        let storage = serve(storage_port, Endpoint::Storage);
        Self {
            front,
            state,
            passwords,
            issuer,
            authority,
            registry,
            token,
            storage,
        }
    }

    /// The registry part of references: `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.registry.port())
    }

    /// The same registry by name: `localhost:PORT`.
    pub fn localhost(&self) -> String {
        format!("localhost:{}", self.registry.port())
    }

    /// Scheme and host, without a slash at the end.
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.host())
    }

    /// Host of the second server, which redirects point to.
    pub fn storage_host(&self) -> String {
        format!("127.0.0.1:{}", self.storage.port())
    }

    /// Host of the token server, when there is one.
    pub fn token_host(&self) -> Option<String> {
        let token = self.token.as_ref()?;
        Some(format!("127.0.0.1:{}", token.port()))
    }

    /// A reference to a tag or, when `reference` is a digest, to a manifest.
    pub fn reference(&self, repository: &str, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("{}/{repository}{separator}{reference}", self.host())
    }

    /// The PEM file of the authority that signed the registry's certificate, when it serves HTTPS.
    pub fn ca_certificate(&self) -> Option<PathBuf> {
        self.authority.as_ref().map(Authority::path)
    }

    /// The bytes of [`Self::ca_certificate`].
    pub fn ca_certificate_pem(&self) -> Option<Vec<u8>> {
        self.ca_certificate().map(|path| tls::read_pem(&path))
    }

    /// The requests so far, those of the token server and the second host included.
    pub fn log(&self) -> RequestLog {
        self.front.journal.snapshot()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        self.front.journal.clear();
    }

    /// Plants a fault; faults planted earlier stay.
    pub fn inject(&self, fault: Fault) {
        self.front.faults.plant(fault);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.front.faults.clear();
    }

    /// The faults that have not happened as often as scripted; a test ends well when it is empty.
    pub fn pending_faults(&self) -> Vec<String> {
        self.front.faults.pending()
    }

    /// Makes every token and every password of [`Self::issue_password`] so far invalid, as if time
    /// had passed.
    pub fn expire_tokens(&self) {
        self.passwords.expire();
        if let Some(issuer) = &self.issuer {
            issuer.expire();
        }
    }

    /// Makes a password that the user `AWS` may use until [`Self::expire_tokens`].
    pub fn issue_password(&self) -> String {
        self.passwords.issue()
    }

    /// All passwords ever issued and all tokens, for tests that look for leaks.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets = self.passwords.all();
        if let Some(issuer) = &self.issuer {
            secrets.extend(issuer.secrets());
        }
        secrets
    }

    /// The passwords and what is stored, for a server that manages this one.
    pub(crate) fn shared(&self) -> (&Passwords, &Shared) {
        (&self.passwords, &self.state)
    }

    /// Mounts blobs from now on, or no longer.
    pub fn set_mounts(&self, mounts: bool) {
        self.state.lock().mounts = Some(mounts);
    }

    /// Makes a repository if there is none of that name.
    pub fn create_repository(&self, repository: &str) {
        self.state.lock().repository(repository);
    }

    /// Removes a repository with all that is in it.
    pub fn delete_repository(&self, repository: &str) {
        self.state.lock().repositories.remove(repository);
    }

    /// Makes the tags of a repository stay with their digest, or not.
    pub fn set_immutable_tags(&self, repository: &str, immutable: bool) {
        let mutability = if immutable {
            TagMutability::Immutable
        } else {
            TagMutability::Mutable
        };
        let mut state = self.state.lock();
        state.repository(repository).management.mutability = mutability;
    }

    /// Puts a blob into a repository, without a request.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        self.state.lock().put_blob(repository, bytes.into())
    }

    /// Puts a manifest into a repository as it is, unverified, and tags it when `tag` is given.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let mut state = self.state.lock();
        let digest = state.put_manifest(repository, media_type, bytes.into());
        if let Some(tag) = tag {
            state
                .repository(repository)
                .tags
                .insert(tag.to_owned(), digest);
        }
        digest
    }

    /// Points a tag at a digest.
    pub fn tag(&self, repository: &str, tag: &str, digest: Digest) {
        let mut state = self.state.lock();
        state
            .repository(repository)
            .tags
            .insert(tag.to_owned(), digest);
    }

    /// Removes a tag; the manifest stays.
    pub fn untag(&self, repository: &str, tag: &str) {
        self.state.lock().repository(repository).tags.remove(tag);
    }

    /// Removes a blob from a repository, as a garbage collector might.
    pub fn delete_blob(&self, repository: &str, digest: &Digest) {
        self.state
            .lock()
            .repository(repository)
            .blobs
            .remove(digest);
    }

    /// The blob's bytes, if the repository has it.
    ///
    /// # Panics
    /// When a large blob cannot be read back from its temporary file.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        let blob = self.state.lock().find_blob(repository, digest)?;
        Some(
            blob.read(0, blob.len())
                .expect("a spooled blob can be read back"),
        )
    }

    /// Media type and bytes of a manifest, by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Bytes)> {
        let (_, manifest) = self.state.lock().find_manifest(repository, reference)?;
        Some((manifest.media_type, manifest.bytes))
    }

    /// The digest that a tag points at.
    pub fn resolve(&self, repository: &str, tag: &str) -> Option<Digest> {
        let state = self.state.lock();
        state.repositories.get(repository)?.tags.get(tag).copied()
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let state = self.state.lock();
        let found = state.repositories.get(repository);
        found.map_or_else(Vec::new, |repository| {
            repository.tags.keys().cloned().collect()
        })
    }

    /// The blobs of a repository, sorted by digest.
    pub fn blobs(&self, repository: &str) -> Vec<Digest> {
        let state = self.state.lock();
        let found = state.repositories.get(repository);
        found.map_or_else(Vec::new, |repository| {
            repository.blobs.iter().copied().collect()
        })
    }

    /// The digests of a repository's manifests, sorted.
    pub fn manifests(&self, repository: &str) -> Vec<Digest> {
        let state = self.state.lock();
        let found = state.repositories.get(repository);
        found.map_or_else(Vec::new, |repository| {
            repository.manifests.keys().copied().collect()
        })
    }

    /// The names of all repositories, sorted.
    pub fn repositories(&self) -> Vec<String> {
        self.state.lock().repositories.keys().cloned().collect()
    }

    /// How many uploads were begun and neither finished nor cancelled.
    pub fn open_uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }
}

impl fmt::Debug for FakeRegistry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "FakeRegistry({})", self.url())
    }
}
