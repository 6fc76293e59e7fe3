//! The client: what all requests to all registries share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use tierce_image::{BlobStream, BoxError, Content, ImageSource};
use tierce_oci::{Descriptor, Digest, Document, Repository, Selector};
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use crate::auth::{Authenticator, Authorization, Context};
use crate::challenge::Access;
use crate::control::ControlPlane;
use crate::credentials::CredentialSource;
use crate::endpoint::{Endpoint, PlainHttp, Scheme, host_and_port};
use crate::error::{ConnectionFailure, RegistryError, Step, is_transient};
use crate::hosts::{Host, HostSettings};
use crate::manners::Manners;
use crate::mirror::MirroredPlace;
use crate::pace::Pacer;
use crate::retry::{Attempts, RetryPolicy};
use crate::settings::{ClientSettings, SettingsError, Timeouts};
use crate::transport::{Reply, Transport, Wire, WireBody};
use crate::upload::{Unfinished, UploadSettings};

/// Speaks to registries. Clones are cheap and share connections, credentials and tokens.
///
/// No request is made, and no credentials are looked up, before they are needed.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// The mirror that is spoken to, whatever registry is named.
    mirror: Option<Arc<Registry>>,
}

struct Inner {
    transport: Transport,
    credentials: Arc<dyn CredentialSource>,
    plain_http: PlainHttp,
    trusts_given_authorities: bool,
    retry: RetryPolicy,
    control: Arc<dyn ControlPlane>,
    manners: fn(&str) -> Manners,
    uploads: UploadSettings,
    unfinished: Option<Unfinished>,
    registries: Mutex<BTreeMap<String, Arc<Registry>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("credentials", &self.inner.credentials)
            .field("plain_http", &self.inner.plain_http)
            .field("retry", &self.inner.retry)
            .finish_non_exhaustive()
    }
}

/// What is known of one registry.
#[derive(Debug)]
pub(crate) struct Registry {
    name: String,
    /// What is settled about it.
    host: Arc<Host>,
    endpoint: RwLock<Endpoint>,
    /// Whether the registry has ever answered, so that the scheme is known to be right.
    answered: AtomicBool,
    authenticator: Authenticator,
    manners: Manners,
    anonymous_pace: Option<Pacer>,
    manifest_pace: Option<Pacer>,
    /// The repositories that this client has made, by path.
    made: tokio::sync::Mutex<BTreeSet<String>>,
    mirrors: Vec<Mirror>,
    /// Whether it is a mirror that is not worth another attempt.
    set_aside: AtomicBool,
}

/// Whether a repository was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// By this call.
    Now,
    /// By an earlier one.
    Before,
    /// Nobody is to make it here.
    Not,
}

/// A request whose body can be sent only once.
pub(crate) struct Stream<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: reqwest::Body,
    pub(crate) length: u64,
    /// Whether it goes over a connection of its own.
    pub(crate) fresh: bool,
}

/// What was done, for one request, about who we are.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// A demand was met.
    challenged: bool,
    /// What had ended was replaced.
    renewed: bool,
}

/// What an answer turned out to be.
pub(crate) enum Judged {
    /// One for the caller.
    Answer(Reply),
    /// One about who we are: the request is to be sent once more, with this.
    Again(Authorization),
}

/// A place that is asked before a registry.
#[derive(Debug)]
struct Mirror {
    registry: Arc<Registry>,
    /// What stands before the path of each repository there: nothing, or a path and a slash.
    prefix: String,
}

/// One request to a registry, which can be sent again.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) target: Target<'a>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
    pub(crate) access: Access<'a>,
}

/// Where a request goes.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    /// To a path, and perhaps query, of the registry.
    Path(&'a str),
    /// To where the registry said.
    Url(&'a Url),
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, target: Target<'a>, access: Access<'a>) -> Self {
        Self {
            method,
            target,
            headers: HeaderMap::new(),
            body: None,
            access,
        }
    }
}

impl Registry {
    fn new(
        name: &str,
        host: Arc<Host>,
        endpoint: Endpoint,
        mirrors: Vec<Mirror>,
        manners: Manners,
    ) -> Self {
        Self {
            name: name.to_owned(),
            host,
            endpoint: RwLock::new(endpoint),
            answered: AtomicBool::new(false),
            authenticator: Authenticator::default(),
            mirrors,
            set_aside: AtomicBool::new(false),
            manners,
            anonymous_pace: manners.anonymous_pace.map(Pacer::new),
            manifest_pace: manners.manifest_pace.map(Pacer::new),
            made: tokio::sync::Mutex::default(),
        }
    }

    /// The way to speak to it that is tried when the one that was guessed is wrong.
    fn other_way(&self, guessed: &Endpoint) -> Option<Endpoint> {
        let other = guessed.spoken_otherwise();
        if guessed.is_given() {
            None
        } else if self.host.trust.insecure {
            Some(other)
        } else {
            // Without a written port the other scheme would mean another port.
            Some(other).filter(|_| guessed.is_loopback() && guessed.names_port())
        }
    }

    /// Waits until one more blob may be read from it.
    pub(crate) async fn turn_to_read(&self) -> Option<OwnedSemaphorePermit> {
        self.host.turn_to_read().await
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        let endpoint = self.endpoint.read();
        endpoint.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn manners(&self) -> &Manners {
        &self.manners
    }

    /// How blobs are cut for this registry, when they must be.
    pub(crate) fn chunk_size(&self) -> Option<u64> {
        self.settings().chunk_size
    }

    pub(crate) async fn was_made(&self, path: &str) -> bool {
        self.made.lock().await.contains(path)
    }

    /// Makes a repository, once.
    pub(crate) async fn make(
        &self,
        repository: &Repository,
        control: &dyn ControlPlane,
    ) -> Result<Made, BoxError> {
        // Held while it is made: one is enough for all that wait.
        let mut made = self.made.lock().await;
        if made.contains(&repository.path) {
            return Ok(Made::Before);
        }
        if !control.create(repository).await? {
            return Ok(Made::Not);
        }
        made.insert(repository.path.clone());
        Ok(Made::Now)
    }

    /// Waits until a request is due, for registries that count them.
    async fn keep_pace(&self, method: &Method, path: &str, shown: &Authorization) {
        let pace = if *method == Method::PUT && path.contains("/manifests/") {
            self.manifest_pace.as_ref()
        } else if shown.is_anonymous_token() {
            self.anonymous_pace.as_ref()
        } else {
            None
        };
        if let Some(pace) = pace {
            pace.wait().await;
        }
    }

    /// What the user has settled about it.
    pub(crate) fn settings(&self) -> &HostSettings {
        &self.host.settings
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        &self.host.timeouts
    }

    fn use_endpoint(&self, endpoint: Endpoint) {
        *self
            .endpoint
            .write()
            .unwrap_or_else(PoisonError::into_inner) = endpoint;
    }
}

impl Client {
    /// Makes a client. Reads the files of certificate authorities, and nothing else.
    pub fn new(settings: ClientSettings) -> Result<Self, SettingsError> {
        let transport = Transport::new(&settings)?;
        Ok(Self {
            inner: Arc::new(Inner {
                transport,
                credentials: settings.credentials,
                plain_http: settings.plain_http,
                trusts_given_authorities: !settings.ca_files.is_empty(),
                retry: settings.retry,
                control: settings.control,
                manners: settings.manners,
                uploads: settings.uploads,
                unfinished: settings.unfinished_uploads.map(Unfinished::new),
                registries: Mutex::new(BTreeMap::new()),
            }),
            mirror: None,
        })
    }

    /// A repository as a place for images, to read from and to write to.
    pub fn repository(&self, repository: &Repository) -> RepositoryClient {
        RepositoryClient {
            client: self.clone(),
            repository: repository.clone(),
            uploads: Arc::default(),
        }
    }

    /// How the registry of that name is reached, as far as it is known yet.
    pub fn endpoint(&self, registry: &str) -> Result<Endpoint, RegistryError> {
        Ok(self.registry(registry)?.endpoint())
    }

    /// Opens the bytes of a blob in `repository` from offset `from` on, unverified.
    ///
    /// When the connection breaks, the stream goes on where it was, on a new connection, as often as
    /// the [`RetryPolicy`] allows without progress. It ends after the descriptor's size. Dropping it
    /// ends the transfer.
    pub async fn open_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        from: u64,
    ) -> Result<BlobStream, RegistryError> {
        crate::mirror::open_blob(self, repository, blob, from).await
    }

    pub(crate) fn registry(&self, name: &str) -> Result<Arc<Registry>, RegistryError> {
        if let Some(mirror) = &self.mirror {
            return Ok(Arc::clone(mirror));
        }
        let registries = self.inner.registries.lock();
        let mut registries = registries.unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = registries.get(name) {
            return Ok(Arc::clone(registry));
        }
        let inner = &self.inner;
        let host = inner.transport.host(name)?;
        let means_tls = inner.trusts_given_authorities || host.means_tls();
        let mut endpoint = Endpoint::new(name, &inner.plain_http, means_tls)?;
        if let Some(address) = &host.settings.endpoint {
            endpoint = endpoint.reached_at(address);
        }
        let mirrors = host.settings.mirrors.iter();
        let mirrors = mirrors
            .map(|url| self.mirror(&host, url))
            .collect::<Result<_, _>>()?;
        let manners = (inner.manners)(name);
        let registry = Arc::new(Registry::new(name, host, endpoint, mirrors, manners));
        registries.insert(name.to_owned(), Arc::clone(&registry));
        Ok(registry)
    }

    fn mirror(&self, registry: &Host, url: &Url) -> Result<Mirror, RegistryError> {
        let name = host_and_port(url);
        let host = self.inner.transport.mirror_host(registry, name)?;
        let mut address = url.clone();
        address.set_path("/");
        // A mirror may be somewhere else than its name says, too.
        let address = host.settings.endpoint.as_ref().unwrap_or(&address);
        let endpoint = Endpoint::new(name, &PlainHttp::Loopback, false)?.reached_at(address);
        let path = url.path().trim_matches('/');
        let prefix = match path {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let manners = (self.inner.manners)(name);
        let registry = Registry::new(name, host, endpoint, Vec::new(), manners);
        Ok(Mirror {
            registry: Arc::new(registry),
            prefix,
        })
    }

    /// The mirrors that are worth asking for a repository.
    pub(crate) fn mirrors(
        &self,
        repository: &Repository,
    ) -> Result<Vec<MirroredPlace>, RegistryError> {
        let registry = self.registry(&repository.registry)?;
        let mirrors = registry.mirrors.iter();
        let mirrors = mirrors.filter(|it| !it.registry.set_aside.load(Ordering::Relaxed));
        let places = mirrors.map(|Mirror { registry, prefix }| MirroredPlace {
            client: Self {
                inner: Arc::clone(&self.inner),
                mirror: Some(Arc::clone(registry)),
            },
            repository: Repository {
                registry: registry.name.clone(),
                path: format!("{prefix}{}", repository.path),
            },
        });
        Ok(places.collect())
    }

    /// Asks the mirror that this speaks to no more; false when that was so before.
    pub(crate) fn set_aside(&self) -> bool {
        self.mirror
            .as_ref()
            .is_some_and(|mirror| !mirror.set_aside.swap(true, Ordering::Relaxed))
    }

    pub(crate) fn attempts(&self) -> Attempts {
        // With a mirror there is another place to go.
        let once = self.mirror.as_ref().map(|_| &RetryPolicy::NEVER);
        Attempts::new(once.unwrap_or(&self.inner.retry))
    }

    pub(crate) fn control(&self) -> &dyn ControlPlane {
        self.inner.control.as_ref()
    }

    pub(crate) fn uploads(&self) -> UploadSettings {
        self.inner.uploads
    }

    pub(crate) fn unfinished(&self) -> Option<&Unfinished> {
        self.inner.unfinished.as_ref()
    }

    /// Sends `call` until it has an answer that trying again would not change.
    ///
    /// Statuses that are no success but not transient either are the caller's to judge.
    pub(crate) async fn call(
        &self,
        registry: &Registry,
        call: &Call<'_>,
        attempts: &mut Attempts,
    ) -> Result<Reply, RegistryError> {
        loop {
            // It is large, and so is all that holds it.
            let error = match Box::pin(self.call_once(registry, call, attempts.is_retry())).await {
                Ok(reply) if !is_transient(reply.status().as_u16()) => return Ok(reply),
                Ok(reply) => reply.into_error().await,
                Err(error) => error,
            };
            attempts.after(error).await?;
        }
    }

    /// Like [`Client::call`], with every status but a success as an error.
    pub(crate) async fn call_for_success(
        &self,
        registry: &Registry,
        call: &Call<'_>,
        attempts: &mut Attempts,
    ) -> Result<Reply, RegistryError> {
        success(self.call(registry, call, attempts).await?).await
    }

    /// Sends `call`, authenticated, over a connection of its own if it is to be `fresh`. A first 401 is
    /// answered; a second one is an error.
    pub(crate) async fn call_once(
        &self,
        registry: &Registry,
        call: &Call<'_>,
        fresh: bool,
    ) -> Result<Reply, RegistryError> {
        let mut shown = self.authorize(registry, &call.access).await?;
        let mut settled = Settled::default();
        loop {
            let reply = self.send(registry, call, &shown, fresh).await?;
            let judged = self.judge(registry, &call.access, &shown, reply, &mut settled);
            match judged.await? {
                Judged::Answer(reply) => return Ok(reply),
                Judged::Again(next) => shown = next,
            }
        }
    }

    /// Sends a body that can be read only once. The answer is to be judged ([`Client::judge`]).
    pub(crate) async fn send_stream(
        &self,
        registry: &Registry,
        access: &Access<'_>,
        stream: Stream<'_>,
    ) -> Result<(Reply, Authorization), RegistryError> {
        let shown = self.authorize(registry, access).await?;
        let endpoint = registry.endpoint();
        let wire = Wire {
            registry: Some(&registry.name),
            host: Some(&registry.host),
            endpoint: &endpoint,
            method: stream.method,
            url: stream.url.clone(),
            headers: stream.headers,
            authorization: shown.header.clone(),
            secrets: shown.secrets.clone(),
            body: WireBody::Stream(stream.body, stream.length),
            fresh: stream.fresh,
        };
        Ok((self.inner.transport.send(wire).await?, shown))
    }

    /// Tells answers about who we are from all others, and settles it anew: a demand is met, and a
    /// token that has ended is replaced, each once for a request.
    pub(crate) async fn judge(
        &self,
        registry: &Registry,
        access: &Access<'_>,
        shown: &Authorization,
        mut reply: Reply,
        settled: &mut Settled,
    ) -> Result<Judged, RegistryError> {
        let endpoint = registry.endpoint();
        let context = self.context(registry, &endpoint);
        let authenticator = &registry.authenticator;
        if is_challenge(&reply) {
            if std::mem::replace(&mut settled.challenged, true) {
                return Err(authenticator.refusal(context, shown, reply).await);
            }
            let answered = authenticator.answer(context, access, shown, reply).await?;
            return Ok(Judged::Again(answered));
        }
        if has_ended(&registry.manners, shown, &mut reply).await {
            // What is new and gets the same answer is not proved by that.
            if !std::mem::replace(&mut settled.renewed, true) {
                let renewed = authenticator.renew(context, access, shown).await?;
                if let Some(renewed) = renewed {
                    return Ok(Judged::Again(renewed));
                }
            }
        } else if reply.from_registry {
            authenticator.proved(shown);
        }
        Ok(Judged::Answer(reply))
    }

    async fn authorize(
        &self,
        registry: &Registry,
        access: &Access<'_>,
    ) -> Result<Authorization, RegistryError> {
        let endpoint = registry.endpoint();
        let context = self.context(registry, &endpoint);
        registry.authenticator.prepare(context, access).await
    }

    fn context<'a>(&'a self, registry: &'a Registry, endpoint: &'a Endpoint) -> Context<'a> {
        Context {
            registry: &registry.name,
            endpoint,
            host: &registry.host,
            transport: &self.inner.transport,
            source: self.inner.credentials.as_ref(),
        }
    }

    /// Sends `call` as it is. The first answer of a registry on this machine settles whether TLS is
    /// spoken there.
    async fn send(
        &self,
        registry: &Registry,
        call: &Call<'_>,
        shown: &Authorization,
        fresh: bool,
    ) -> Result<Reply, RegistryError> {
        let endpoint = registry.endpoint();
        if let Target::Path(path) = call.target {
            registry.keep_pace(&call.method, path, shown).await;
        }
        let first = self.send_to(registry, &endpoint, call, shown, fresh).await;
        if registry.answered.load(Ordering::Relaxed) {
            return first;
        }
        if let Some(other) = registry.other_way(&endpoint)
            && matches!(call.target, Target::Path(_))
            && hints_at_other_scheme(&first, &endpoint)
        {
            match self.send_to(registry, &other, call, shown, fresh).await {
                Ok(reply) => {
                    tracing::debug!(registry = registry.name, "reached at {other} instead");
                    registry.use_endpoint(other);
                    registry.answered.store(true, Ordering::Relaxed);
                    return Ok(reply);
                }
                // It does speak TLS; that it is not trusted is what is to be told.
                Err(error) if is_about_certificate(&error) => return Err(error),
                Err(_) => {}
            }
        }
        if first.is_ok() {
            registry.answered.store(true, Ordering::Relaxed);
        }
        first
    }

    async fn send_to(
        &self,
        registry: &Registry,
        endpoint: &Endpoint,
        call: &Call<'_>,
        shown: &Authorization,
        fresh: bool,
    ) -> Result<Reply, RegistryError> {
        let url = match call.target {
            Target::Path(path) => endpoint.url(path),
            Target::Url(url) => url.clone(),
        };
        let wire = Wire {
            registry: Some(&registry.name),
            host: Some(&registry.host),
            endpoint,
            method: call.method.clone(),
            url,
            headers: call.headers.clone(),
            authorization: shown.header.clone(),
            secrets: shown.secrets.clone(),
            body: call.body.clone().map_or(WireBody::None, WireBody::Bytes),
            fresh,
        };
        self.inner.transport.send(wire).await
    }
}

/// Whether the outcome is what a client sees who speaks TLS to a plain server or the reverse.
fn hints_at_other_scheme(outcome: &Result<Reply, RegistryError>, endpoint: &Endpoint) -> bool {
    match (outcome, endpoint.scheme()) {
        // Some servers of TLS say in the clear, by 400, that they are such.
        (Ok(reply), Scheme::Http) => reply.status() == StatusCode::BAD_REQUEST,
        (Err(RegistryError::Connection(failure)), scheme) => {
            let ConnectionFailure { step, cause, .. } = failure.as_ref();
            match scheme {
                Scheme::Http => matches!(step, Step::Transfer | Step::Protocol),
                // The port of TLS is another one when none is written.
                Scheme::Https if *step == Step::Connect => !endpoint.names_port(),
                Scheme::Https => *step == Step::Tls && !cause.is_about_certificate(),
            }
        }
        _ => false,
    }
}

fn is_about_certificate(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Connection(failure)
        if failure.step == Step::Tls && failure.cause.is_about_certificate())
}

/// Whether the registry itself asks who we are; storage behind it is none of our business.
pub(crate) fn is_challenge(reply: &Reply) -> bool {
    reply.status() == StatusCode::UNAUTHORIZED && reply.from_registry
}

/// Whether an answer says, or may mean, that what was shown was good once and is no more.
async fn has_ended(manners: &Manners, shown: &Authorization, reply: &mut Reply) -> bool {
    if !reply.from_registry || shown.header.is_none() {
        return false;
    }
    match reply.status().as_u16() {
        // ECR Public, without a word of why (aws/containers-roadmap#2835).
        400 => manners.answers_400_to_old_tokens,
        // ECR says why, but not to a HEAD.
        403 => {
            let said = reply.error_text().await;
            let may_mean_it = manners.answers_403_to_old_tokens && said.is_empty();
            may_mean_it || said.to_ascii_lowercase().contains("expired")
        }
        _ => false,
    }
}

pub(crate) async fn success(reply: Reply) -> Result<Reply, RegistryError> {
    if reply.status().is_success() {
        Ok(reply)
    } else {
        Err(reply.into_error().await)
    }
}

/// A repository of a registry, as a place that images come from and go to.
///
/// Clones share the uploads that a refused mount has begun.
#[derive(Debug, Clone)]
pub struct RepositoryClient {
    pub(crate) client: Client,
    pub(crate) repository: Repository,
    /// Where uploads go on that the registry began instead of mounting.
    pub(crate) uploads: Arc<Mutex<BTreeMap<Digest, Url>>>,
}

impl RepositoryClient {
    /// Which repository it is.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(crate) fn registry(&self) -> Result<Arc<Registry>, RegistryError> {
        self.client.registry(&self.repository.registry)
    }

    pub(crate) fn access(&self, push: bool) -> Access<'_> {
        Access {
            path: &self.repository.path,
            push,
            mount_from: None,
        }
    }
}

impl ImageSource for RepositoryClient {
    type Error = RegistryError;

    async fn manifest(&self, selector: &Selector) -> Result<Document, RegistryError> {
        crate::mirror::fetch_manifest(self, selector).await
    }

    fn content(&self, _: &Descriptor) -> Content {
        Content::Origin(self.repository.clone())
    }
}
