//! ECR with everything around it: the registry, the API that manages it, and the AWS services that
//! lead to it.
//!
//! One server on the loopback answers for ECR, ECR Public, STS and Lambda, as the SDKs find them by
//! `AWS_ENDPOINT_URL`. It works on the same repositories as the registry does. Requests must be
//! signed by a known access key for the right service and region; the signature itself is not
//! recomputed.

mod calls;
mod images;
mod keys;
mod lambda_api;
mod pages;
mod public;
mod repositories;
mod service;
mod sts;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tierce_oci::Digest;

use crate::fault::Fault;
use crate::front::{self, Front};
use crate::log::{Endpoint, RequestLog};
use crate::password::{Passwords, USER};
use crate::registry::{FakeRegistry, FakeRegistryBuilder, Shared};
use crate::server::{Bound, Server};

pub use calls::ControlCall;
use calls::{Calls, Script};
use keys::Keys;
pub use lambda_api::Function;

/// How long ECR's passwords live.
const TWELVE_HOURS: Duration = Duration::from_hours(12);

/// Chooses how a [`FakeEcr`] behaves.
#[must_use]
pub struct FakeEcrBuilder {
    account: String,
    region: String,
    name: Option<String>,
    repositories: Vec<String>,
    page_size: Option<usize>,
    public: bool,
    any_key: bool,
    adjust: Vec<Box<dyn FnOnce(FakeRegistryBuilder) -> FakeRegistryBuilder>>,
}

impl FakeEcrBuilder {
    /// The account that the registry is of.
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// The region that the registry is in.
    pub fn region(mut self, region: &str) -> Self {
        region.clone_into(&mut self.region);
        self
    }

    /// The registry's host name, where it is not the usual one of account and region.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Makes an empty repository.
    pub fn repository(mut self, name: &str) -> Self {
        self.repositories.push(name.to_owned());
        self
    }

    /// Lists at most this many things at once, whatever is asked for.
    pub fn page_size(mut self, things: usize) -> Self {
        self.page_size = Some(things);
        self
    }

    /// Starts a registry beside that is as `public.ecr.aws`; see [`FakeEcr::public`].
    pub fn with_public(mut self) -> Self {
        self.public = true;
        self
    }

    /// Takes requests that any access key signed, and not its own alone.
    pub fn any_access_key(mut self) -> Self {
        self.any_key = true;
        self
    }

    /// Serves the registry over HTTPS; the API stays plain.
    pub fn https(self) -> Self {
        self.registry(FakeRegistryBuilder::https)
    }

    /// Changes the registry: it begins as [`FakeRegistryBuilder::like_ecr`] makes it.
    pub fn registry(
        mut self,
        adjust: impl FnOnce(FakeRegistryBuilder) -> FakeRegistryBuilder + 'static,
    ) -> Self {
        self.adjust.push(Box::new(adjust));
        self
    }

    /// Starts the servers.
    ///
    /// # Panics
    /// When no port can be bound or no certificate be made.
    #[must_use]
    pub fn start(self) -> FakeEcr {
        FakeEcr::launch(self)
    }
}

impl fmt::Debug for FakeEcrBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (account, region) = (&self.account, &self.region);
        write!(formatter, "FakeEcrBuilder({account}, {region})")
    }
}

/// What the API's handlers share.
struct Core {
    account: String,
    region: String,
    /// The registry's host name.
    name: String,
    state: Shared,
    passwords: Passwords,
    public_passwords: Passwords,
    keys: Keys,
    calls: Calls,
    script: Script,
    page_size: Option<usize>,
    settings: Mutex<Settings>,
}

/// What tests change while the servers run.
struct Settings {
    token_lifetime: Duration,
    functions: Vec<Function>,
}

impl Core {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partition(&self) -> &'static str {
        if self.region.starts_with("cn-") {
            "aws-cn"
        } else if self.region.starts_with("us-gov-") {
            "aws-us-gov"
        } else {
            "aws"
        }
    }

    /// The ARN of something of the account, in a service and its region.
    fn arn(&self, service: &str, resource: &str) -> String {
        let (partition, region, account) = (self.partition(), &self.region, &self.account);
        format!("arn:{partition}:{service}:{region}:{account}:{resource}")
    }
}

/// A private ECR registry, and beside it the APIs of ECR, ECR Public, STS and Lambda.
///
/// Dropping it stops its servers. All methods may be called from code without an async runtime.
///
/// ```
/// use tierce_testkit::FakeEcr;
/// let ecr = FakeEcr::builder().repository("orders").start();
/// assert_eq!(ecr.name(), "123456789012.dkr.ecr.eu-west-1.amazonaws.com");
/// assert_eq!(ecr.registry().repositories(), ["orders"]);
/// assert!(ecr.calls().is_empty());
/// ```
pub struct FakeEcr {
    registry: FakeRegistry,
    public: Option<FakeRegistry>,
    front: Front,
    core: Arc<Core>,
    control: Server,
}

impl FakeEcr {
    /// Starts the registry of account 123456789012 in eu-west-1, without a repository.
    ///
    /// # Panics
    /// When no port can be bound.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Begins to choose how the service behaves.
    pub fn builder() -> FakeEcrBuilder {
        FakeEcrBuilder {
            account: "123456789012".to_owned(),
            region: "eu-west-1".to_owned(),
            name: None,
            repositories: Vec::new(),
            page_size: None,
            public: false,
            any_key: false,
            adjust: Vec::new(),
        }
    }

    fn launch(builder: FakeEcrBuilder) -> Self {
        let (account, region) = (builder.account, builder.region);
        let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
        let usual = || format!("{account}.dkr.ecr.{region}.amazonaws.com{suffix}");
        let name = builder.name.unwrap_or_else(usual);
        let mut registry = FakeRegistry::builder()
            .like_ecr(&account, &region)
            .name(&name);
        for repository in &builder.repositories {
            registry = registry.repository(repository);
        }
        let adjusted = builder.adjust.into_iter();
        let registry = adjusted.fold(registry, |registry, adjust| adjust(registry));
        let registry = registry.start();
        let public_passwords = Passwords::default();
        let public = builder.public.then(|| {
            let public = FakeRegistry::builder().like_public_ecr();
            public.passwords(&public_passwords).start()
        });
        let (passwords, state) = registry.shared();
        let core = Arc::new(Core {
            keys: Keys::new(&account, builder.any_key),
            account,
            region,
            name,
            state: state.clone(),
            passwords: passwords.clone(),
            public_passwords,
            calls: Calls::default(),
            script: Script::default(),
            page_size: builder.page_size,
            settings: Mutex::new(Settings {
                token_lifetime: TWELVE_HOURS,
                functions: Vec::new(),
            }),
        });
        let front = Front::default();
        let handlers = Arc::clone(&core);
        let inner: front::Inner = Arc::new(move |exchange| {
            let core = Arc::clone(&handlers);
            Box::pin(async move { core.answer(exchange).await })
        });
        let bound = Bound::new().expect("a loopback port is free");
        let control = bound.serve(None, front.handler(Endpoint::Control, inner));
        Self {
            registry,
            public,
            front,
            core,
            control,
        }
    }

    /// The registry, to put images into, to plant faults at, and to read the log of.
    pub fn registry(&self) -> &FakeRegistry {
        &self.registry
    }

    /// The registry that is as `public.ecr.aws`, when there is one. Its repositories are its own.
    pub fn public(&self) -> Option<&FakeRegistry> {
        self.public.as_ref()
    }

    /// Where the registry listens: `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.registry.host()
    }

    /// The registry's name in the world: `ACCOUNT.dkr.ecr.REGION.amazonaws.com`.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// The account that the registry is of.
    pub fn account(&self) -> &str {
        &self.core.account
    }

    /// The region that the registry is in.
    pub fn region(&self) -> &str {
        &self.core.region
    }

    /// A reference by the registry's name, to a tag or a digest.
    pub fn reference(&self, repository: &str, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("{}/{repository}{separator}{reference}", self.name())
    }

    /// The address of the APIs: what `AWS_ENDPOINT_URL` is set to.
    pub fn control_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.control.port())
    }

    /// The environment in which an SDK finds the APIs and its access key, and nothing of this
    /// machine's.
    pub fn environment(&self) -> Vec<(String, String)> {
        let (id, secret) = self.core.keys.first();
        [
            ("AWS_ENDPOINT_URL", self.control_endpoint()),
            ("AWS_ACCESS_KEY_ID", id),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", self.core.region.clone()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Makes another access key that may sign: its id and its secret.
    pub fn add_access_key(&self) -> (String, String) {
        self.core.keys.add()
    }

    /// Every secret that was given out so far: passwords, and as the tokens that carry them, bearer
    /// tokens, secret keys and session tokens.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets = self.core.keys.secrets();
        let public = self.core.public_passwords.all();
        for password in self.core.passwords.all().into_iter().chain(public) {
            secrets.push(authorization_token(&password));
            secrets.push(password);
        }
        for registry in [Some(&self.registry), self.public()].into_iter().flatten() {
            secrets.extend(registry.secrets());
        }
        secrets.sort_unstable();
        secrets.dedup();
        secrets
    }

    /// The calls of the APIs so far, oldest first, the refused ones included.
    pub fn calls(&self) -> Vec<ControlCall> {
        self.core.calls.all()
    }

    /// The calls of one action: `CreateRepository`, or `ecr-public:GetAuthorizationToken` where two
    /// services have one of that name.
    pub fn calls_of(&self, action: &str) -> Vec<ControlCall> {
        let mut calls = self.calls();
        calls.retain(|call| call.is(action));
        calls
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.core.calls.clear();
    }

    /// The requests to the APIs as HTTP saw them; the registry has its own log.
    pub fn control_log(&self) -> RequestLog {
        self.front.journal.snapshot()
    }

    /// Plants a fault at the APIs; the registry has its own.
    pub fn inject_control(&self, fault: Fault) {
        self.front.faults.plant(fault);
    }

    /// Refuses an action with `AccessDeniedException` until [`Self::allow`]. It is named as in
    /// [`Self::calls_of`].
    pub fn deny(&self, action: &str) {
        self.core.script.deny(action);
    }

    /// Ends [`Self::deny`].
    pub fn allow(&self, action: &str) {
        self.core.script.allow(action);
    }

    /// Refuses the next `times` calls of an action with `ThrottlingException`.
    pub fn throttle(&self, action: &str, times: usize) {
        let code = calls::THROTTLED;
        self.fail(action, times, code, "Rate exceeded");
    }

    /// Refuses the next `times` calls of an action with an exception of the test's choice.
    pub fn fail(&self, action: &str, times: usize, code: &str, message: &str) {
        self.core.script.fail(action, times, code, message);
    }

    /// Sets how long passwords say to live, from the next call on.
    ///
    /// They stay valid until [`FakeRegistry::expire_tokens`], whatever they say.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.core.settings().token_lifetime = lifetime;
    }

    /// Sets when an image says to have been pushed, in seconds since 1970.
    ///
    /// # Panics
    /// When the repository has no such image.
    #[track_caller]
    pub fn set_pushed_at(&self, repository: &str, digest: &Digest, seconds: u64) {
        let mut state = self.core.state.lock();
        let images = &mut state.repository(repository).manifests;
        let image = images.get_mut(digest).expect("the image was put before");
        image.pushed = seconds;
    }

    /// The lifecycle policy of a repository, as it was given.
    pub fn lifecycle_policy(&self, repository: &str) -> Option<String> {
        let state = self.core.state.lock();
        let found = state.repositories.get(repository)?;
        found.management.lifecycle_policy.clone()
    }

    /// Adds a Lambda function, or a version of one.
    pub fn add_function(&self, function: Function) {
        self.core.settings().functions.push(function);
    }
}

impl fmt::Debug for FakeEcr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "FakeEcr({} at {})", self.name(), self.host())
    }
}

/// A password as the token that the APIs give out.
fn authorization_token(password: &str) -> String {
    STANDARD.encode(format!("{USER}:{password}"))
}
