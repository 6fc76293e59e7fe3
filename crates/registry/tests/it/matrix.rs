//! Everything that goes wrong, at every kind of request.
//!
//! Each cell is one copy of an image from a registry with a token server to another, with one fault.
//! It ends in the right image, or in an error that names what went wrong and leaves no name behind.
//! A fault that happens once must not be felt at all.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tierce_image::{BoxError, read_artifact};
use tierce_oci::{Digest, Repository};
use tierce_registry::{
    Client, ClientSettings, CredentialKind, CredentialSource, Credentials, Manners, RegistryError,
    Secret, UploadSettings,
};
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, TestImage};
use tierce_testkit::{
    Endpoint, FakeRegistry, FakeRegistryBuilder, Fault, Gate, Method, Redirect, TokenSettings,
};

use crate::support::{by_tag, place, push, registry_error, settings, told};

/// Bytes of the large layer, and about of its blob: they do not compress.
const LARGE: usize = 300_000;

/// Bytes of a chunk.
const CHUNK: u64 = 80_000;

/// At which request something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// A blob that is sent as one body.
    Blob,
    /// A blob that goes in chunks.
    Chunk,
    /// The request after the last chunk.
    LastRequest,
    /// The request that begins an upload.
    Session,
    /// The manifest that is put.
    Manifest,
    /// A blob that is read.
    Download,
    /// A manifest that is read.
    ManifestRead,
    /// A token.
    Token,
}

impl At {
    const ALL: [Self; 8] = [
        Self::Blob,
        Self::Chunk,
        Self::LastRequest,
        Self::Session,
        Self::Manifest,
        Self::Download,
        Self::ManifestRead,
        Self::Token,
    ];

    /// Whether the bytes that matter are in the answer.
    fn reads(self) -> bool {
        matches!(self, Self::Download | Self::ManifestRead | Self::Token)
    }

    /// Whether it belongs to the registry that is read from.
    fn is_at_source(self) -> bool {
        self.reads()
    }

    fn place(self, fault: Fault) -> Fault {
        match self {
            Self::Blob => fault.on(Method::PUT, "/blobs/uploads/"),
            Self::Chunk => fault.on(Method::PATCH, "/blobs/uploads/").nth(2),
            // The first PUT of the large blob was the one that made it go in chunks.
            Self::LastRequest => fault.on(Method::PUT, "/blobs/uploads/").nth(2),
            Self::Session => fault.on(Method::POST, "/blobs/uploads/"),
            Self::Manifest => fault.on(Method::PUT, "/manifests/1"),
            Self::Download => fault.on(Method::GET, "/storage/"),
            Self::ManifestRead => fault.on(Method::GET, "/manifests/"),
            Self::Token => fault.at(Endpoint::Token),
        }
    }
}

/// How the registry that is written to keeps what came before a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    /// All of it, and says so.
    Truthful,
    /// Whole chunks alone, and tells the end of the first one for ever.
    Ecr,
    /// All of it, but the session is lost.
    DockerRegistry,
}

impl Keeper {
    const ALL: [Self; 3] = [Self::Truthful, Self::Ecr, Self::DockerRegistry];

    fn registry(self) -> FakeRegistryBuilder {
        let registry = FakeRegistry::builder();
        match self {
            Self::Truthful => registry.basic("user", "password"),
            Self::Ecr => registry
                .like_ecr("123456789012", "eu-west-1")
                .minimum_part(CHUNK)
                .repository("app"),
            Self::DockerRegistry => registry.basic("user", "password").like_docker_registry(),
        }
    }
}

/// Who we are: the same everywhere, but with passwords of its own at a registry that issues them.
#[derive(Debug)]
struct Passwords {
    issuer: Option<Arc<FakeRegistry>>,
}

impl CredentialSource for Passwords {
    fn credentials<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        let issuer = self.issuer.as_ref();
        let issuer = issuer.filter(|issuer| issuer.host() == repository.registry);
        let (username, password) = match issuer {
            Some(issuer) => ("AWS".to_owned(), issuer.issue_password()),
            None => ("user".to_owned(), "password".to_owned()),
        };
        Box::pin(async {
            Ok(Some(Credentials {
                kind: CredentialKind::Password {
                    username,
                    password: Secret::new(password),
                },
                origin: "the test".to_owned(),
                good_until: None,
            }))
        })
    }
}

struct Scene {
    image: TestImage,
    source: FakeRegistry,
    target: Arc<FakeRegistry>,
    client: Client,
}

/// Bytes that do not compress, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        })
        .collect()
}

impl Scene {
    fn new(keeper: Keeper, change: impl FnOnce(&mut ClientSettings)) -> Self {
        let source = FakeRegistry::builder()
            .bearer(TokenSettings::user("user", "password"))
            .redirect_blobs(Redirect::OtherName)
            .start();
        let target = Arc::new(keeper.registry().start());
        let issuer = (keeper == Keeper::Ecr).then(|| Arc::clone(&target));
        let image = ImageBuilder::new(Format::Docker, "amd64")
            .layer(&LayerBuilder::new().file("large", 0o644, &noise(LARGE)))
            .layer(&LayerBuilder::new().file("small", 0o644, b"small"))
            .build();
        image.put(&source, "base", Some("1"));
        let mut settings = ClientSettings {
            credentials: Arc::new(Passwords { issuer }),
            manners: |_| Manners {
                answers_403_to_old_tokens: true,
                ..Manners::default()
            },
            uploads: UploadSettings {
                resume_above: 100_000,
                chunk: CHUNK,
            },
            ..settings()
        };
        change(&mut settings);
        Self {
            image,
            source,
            target,
            client: Client::new(settings).expect("these settings are fine"),
        }
    }

    fn plant(&self, at: At, fault: Fault) {
        if matches!(at, At::Chunk | At::LastRequest) {
            let large = self.image.layers[0].digest();
            let first = Fault::disconnect().on(Method::PUT, "/blobs/uploads/");
            self.target.inject(first);
            // Only the large one may be on its way when its last request is counted.
            for digest in [self.image.layers[1].digest(), self.image.config_digest()] {
                let blob = self.source.blob("base", &digest).expect("it is there");
                self.target.put_blob("app", blob);
            }
            assert!(self.target.blob("app", &large).is_none());
        }
        let registry = if at.is_at_source() {
            &self.source
        } else {
            self.target.as_ref()
        };
        registry.inject(at.place(fault));
    }

    async fn copy(&self) -> Result<(), BoxError> {
        let from = place(&self.client, &self.source, "base");
        let to = place(&self.client, &self.target, "app");
        let artifact = read_artifact(&from, &by_tag("1")).await?;
        push(&artifact, &to, "1", &self.client).await?;
        Ok(())
    }

    fn assert_right(&self, cell: &impl fmt::Display) {
        let found = self.target.resolve("app", "1");
        assert_eq!(found, Some(self.image.digest()), "{cell}");
        assert_clean(&Checker::new().registry(&self.target, "app", "1"));
    }

    fn assert_nothing_false(&self, cell: &impl fmt::Display) {
        assert_eq!(self.target.resolve("app", "1"), None, "{cell}");
        assert_eq!(self.target.manifests("app"), [], "{cell}");
        for digest in self.target.blobs("app") {
            let bytes = self.target.blob("app", &digest).expect("it is listed");
            assert_eq!(Digest::of(&bytes), digest, "{cell}");
        }
    }
}

/// One fault at one kind of request.
struct Cell {
    keeper: Keeper,
    at: At,
    name: &'static str,
    fault: fn(usize) -> Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} at {:?} ({:?})",
            self.name, self.at, self.keeper
        )
    }
}

impl Cell {
    /// How many bytes the body in question has, at least.
    fn bytes(&self, scene: &Scene) -> usize {
        Self::bytes_at(self.at, scene)
    }

    fn bytes_at(at: At, scene: &Scene) -> usize {
        match at {
            At::Blob | At::Download => scene.image.layers[1].blob.len(),
            At::Chunk => usize::try_from(CHUNK).expect("it is small"),
            At::Manifest | At::ManifestRead => scene.image.manifest.len(),
            At::LastRequest | At::Session => 0,
            At::Token => 200,
        }
    }

    /// Once: it must not be felt.
    async fn once(&self) {
        let scene = Scene::new(self.keeper, |_| ());
        scene.plant(self.at, (self.fault)(self.bytes(&scene)));
        if let Err(error) = scene.copy().await {
            panic!("{self}: {}", told(&*error));
        }
        scene.assert_right(self);
        for registry in [&scene.source, scene.target.as_ref()] {
            assert_eq!(registry.pending_faults(), Vec::<String>::new(), "{self}");
        }
    }

    /// Each time: the right image all the same, or an error. Says which.
    async fn always(&self) -> bool {
        let scene = Scene::new(self.keeper, |_| ());
        let fault = (self.fault)(self.bytes(&scene)).always();
        scene.plant(self.at, fault);
        match scene.copy().await {
            Ok(()) => {
                scene.assert_right(self);
                true
            }
            Err(error) => {
                scene.assert_nothing_false(self);
                assert_named(&*error, self);
                false
            }
        }
    }
}

/// The error says with whom, and at which request or for what reason.
fn assert_named(error: &(dyn Error + 'static), cell: &impl fmt::Display) {
    let told = told(error);
    let cause = registry_error(error);
    let named = match cause {
        RegistryError::Connection(failure) => {
            !failure.request.path.is_empty() && failure.tally.attempts > 1
        }
        RegistryError::Answer(answer) => !answer.request.path.is_empty(),
        RegistryError::Unauthorized(_)
        | RegistryError::Token { .. }
        | RegistryError::BadAnswer(_)
        | RegistryError::Source(_) => true,
        _ => false,
    };
    assert!(
        named && (told.contains("127.0.0.1") || told.contains("localhost")),
        "{cell}: {told}"
    );
}

/// A name, and the fault for a body of so many bytes.
type Kind = (&'static str, fn(usize) -> Fault);

/// What breaks a connection, by the bytes of the body that it breaks in.
const DROPS_OF_REQUESTS: [Kind; 4] = [
    ("drop at the first byte", |_| {
        Fault::disconnect_after_receiving(1)
    }),
    ("drop in the middle", |bytes| {
        Fault::disconnect_after_receiving(bytes as u64 / 2)
    }),
    ("drop after the last byte", |_| {
        Fault::disconnect_after_receiving(u64::MAX)
    }),
    ("lost answer", |_| Fault::lose_answer()),
];

const DROPS_OF_HEADS: [Kind; 2] = [
    ("drop before the answer", |_| Fault::disconnect()),
    ("lost answer", |_| Fault::lose_answer()),
];

const DROPS_OF_ANSWERS: [Kind; 4] = [
    ("drop at the first byte", |_| {
        Fault::disconnect_after_sending(1)
    }),
    ("drop in the middle", |bytes| {
        Fault::disconnect_after_sending(bytes / 2)
    }),
    ("drop after the last byte but one", |bytes| {
        Fault::disconnect_after_sending(bytes - 1)
    }),
    ("lost answer", |_| Fault::lose_answer()),
];

const ANSWERS: [Kind; 6] = [
    ("429", |_| Fault::status(429)),
    ("429 with Retry-After", |_| Fault::too_many_requests(0)),
    ("500", |_| Fault::status(500)),
    ("502", |_| {
        Fault::status(502).with_body("<html>bad gateway</html>")
    }),
    ("503", |_| Fault::status(503)),
    ("504", |_| Fault::status(504)),
];

fn cells(keeper: Keeper) -> Vec<Cell> {
    At::ALL
        .into_iter()
        .flat_map(|at| {
            let drops = match at {
                // It has no body to break in.
                At::Session => &DROPS_OF_HEADS[..],
                _ if at.reads() => &DROPS_OF_ANSWERS[..],
                _ => &DROPS_OF_REQUESTS[..],
            };
            let cell = move |(name, fault)| Cell {
                keeper,
                at,
                name,
                fault,
            };
            drops.iter().copied().chain(ANSWERS).map(cell)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_once_is_not_felt() {
    for keeper in Keeper::ALL {
        let cells = cells(keeper);
        assert_eq!(cells.len(), 78);
        for cell in cells {
            cell.once().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_always_ends_in_an_error_or_in_the_right_image() {
    for keeper in Keeper::ALL {
        let mut right = Vec::new();
        for cell in cells(keeper) {
            if cell.always().await {
                right.push(format!("{} at {:?}", cell.name, cell.at));
            }
        }
        // Where the work is done before the answer is lost, a question tells.
        let mut expected = vec![
            "lost answer at Blob",
            "lost answer at LastRequest",
            "lost answer at Manifest",
        ];
        if keeper == Keeper::Truthful {
            // Some of each chunk comes, and is not sent again.
            expected.splice(
                1..1,
                [
                    "drop in the middle at Chunk",
                    "drop after the last byte at Chunk",
                    "lost answer at Chunk",
                ],
            );
        }
        assert_eq!(right, expected, "{keeper:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_401_in_the_middle_is_answered() {
    for keeper in Keeper::ALL {
        for at in At::ALL {
            if at == At::Token || at == At::Download {
                // Neither asks who we are: the one is asked with all it needs, the other signed.
                continue;
            }
            let scene = Scene::new(keeper, |_| ());
            let challenge = if at.is_at_source() {
                let realm = scene.source.token_host().expect("it has a token server");
                format!("Bearer realm=\"http://{realm}/token\",service=\"testkit\"")
            } else {
                "Basic realm=\"x\"".to_owned()
            };
            let refuse = Fault::status(401).with_header("www-authenticate", &challenge);
            scene.plant(at, refuse);
            let result = scene.copy().await;
            let cell = format!("401 at {at:?} ({keeper:?})");
            let has_another = at.is_at_source() || keeper == Keeper::Ecr;
            match (has_another, result) {
                (true, Ok(())) => scene.assert_right(&cell),
                // The same password again would be no answer.
                (false, Err(error)) => {
                    assert!(registry_error(&*error).is_unauthorized(), "{cell}");
                    scene.assert_nothing_false(&cell);
                }
                (_, result) => panic!("{cell}: {result:?}"),
            }
        }
    }
}

/// Copies, with `expire` while the request that `hold` is for is on its way.
async fn copy_while_expiring(
    scene: &Scene,
    cell: &str,
    hold: impl FnOnce(Fault),
    expire: impl FnOnce(),
) {
    let gate = Gate::new();
    hold(Fault::hold(&gate));
    let expiring = async {
        let waiting = gate.clone();
        tokio::task::spawn_blocking(move || waiting.wait_for(1))
            .await
            .expect("the gate's own time-out has not passed");
        expire();
        gate.open();
    };
    let (copied, ()) = tokio::join!(scene.copy(), expiring);
    copied.unwrap_or_else(|error| panic!("{cell}: {}", told(&*error)));
    scene.assert_right(&cell);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_end_on_the_way_are_replaced() {
    // The second request is the one that brings the first token: who is refused with a token that is
    // new is not let in.
    for nth in [1, 3, 4] {
        let scene = Scene::new(Keeper::Truthful, |_| ());
        let hold = |fault: Fault| {
            scene
                .source
                .inject(fault.on(Method::GET, "/base/").nth(nth));
        };
        let cell = format!("tokens that end at request {nth}");
        copy_while_expiring(&scene, &cell, hold, || scene.source.expire_tokens()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_that_end_on_the_way_are_replaced() {
    for at in At::ALL.into_iter().filter(|at| !at.is_at_source()) {
        let scene = Scene::new(Keeper::Ecr, |_| ());
        let hold = |fault| scene.plant(at, fault);
        let cell = format!("passwords that end at {at:?}");
        copy_while_expiring(&scene, &cell, hold, || scene.target.expire_tokens()).await;
        let refused = scene.target.log();
        let refused = refused.filter(|record| record.status_code() == 403);
        assert!(!refused.is_empty(), "{cell}: nobody has felt it");
    }
}

fn impatient(settings: &mut ClientSettings) {
    let patience = Duration::from_millis(250);
    settings.timeouts.read = patience;
    settings.timeouts.header = None;
    settings.timeouts.document = patience;
    settings.timeouts.upload_answer = patience;
}

/// The faults of a server that does not go on, at each kind of request.
fn stalls(at: At, bytes: usize, gate: &Gate) -> Vec<(&'static str, Fault)> {
    let mut stalls = vec![("no answer", Fault::hold(gate))];
    match at {
        At::Blob | At::Chunk | At::Manifest => {
            let half = bytes as u64 / 2;
            stalls.push(("no more is read", Fault::stall_after_receiving(half)));
        }
        At::Download | At::ManifestRead | At::Token => {
            let half = Fault::stall_after_sending(bytes / 2);
            stalls.push(("no more is sent", half));
        }
        At::LastRequest | At::Session => {}
    }
    stalls
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stalls_is_left_and_not_waited_for() {
    let mut cells = 0;
    for keeper in Keeper::ALL {
        for at in At::ALL {
            let gate = Gate::new();
            let bytes = Cell::bytes_at(at, &Scene::new(keeper, impatient));
            for (name, fault) in stalls(at, bytes, &gate) {
                let cell = format!("{name} at {at:?} ({keeper:?})");
                let scene = Scene::new(keeper, impatient);
                scene.plant(at, fault.clone());
                scene
                    .copy()
                    .await
                    .unwrap_or_else(|error| panic!("{cell}: {}", told(&*error)));
                scene.assert_right(&cell);
                let scene = Scene::new(keeper, impatient);
                scene.plant(at, fault.always());
                cells += 1;
                // Some of each chunk comes, and is not sent again.
                let progresses = (keeper, at, name);
                if progresses == (Keeper::Truthful, At::Chunk, "no more is read") {
                    scene.copy().await.expect(&cell);
                    scene.assert_right(&cell);
                    continue;
                }
                let error = scene.copy().await.expect_err(&cell);
                let cause = registry_error(&*error);
                let waited = match cause {
                    RegistryError::Source(_) => told(&*error).contains("in time"),
                    cause => cause.is_timeout(),
                };
                assert!(waited, "{cell}: {}", told(&*error));
                scene.assert_nothing_false(&cell);
            }
        }
    }
    assert_eq!(cells, 42);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_slow_is_waited_for() {
    for at in [At::Download, At::ManifestRead, At::Token] {
        let scene = Scene::new(Keeper::Truthful, |settings| {
            settings.retry = tierce_registry::RetryPolicy::NEVER;
        });
        let slow = Fault::trickle(16, Duration::from_millis(1));
        scene.plant(at, slow.always());
        let cell = format!("slow at {at:?}");
        scene
            .copy()
            .await
            .unwrap_or_else(|error| panic!("{cell}: {}", told(&*error)));
        scene.assert_right(&cell);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_corrupted_or_cut_short_never_arrives() {
    let spoil: [Kind; 7] = [
        ("first byte", |_| Fault::corrupt_byte(0)),
        ("a byte in the middle", |bytes| {
            Fault::corrupt_byte(bytes / 2)
        }),
        ("last byte", |bytes| Fault::corrupt_byte(bytes - 1)),
        ("cut to nothing", |_| Fault::truncate(0)),
        ("cut in the middle", |bytes| Fault::truncate(bytes / 2)),
        ("one byte short", |bytes| Fault::truncate(bytes - 1)),
        ("longer", |_| Fault::append("more")),
    ];
    for at in [At::Download, At::ManifestRead] {
        for (name, fault) in spoil {
            let cell = format!("{name} at {at:?}");
            let scene = Scene::new(Keeper::Truthful, |_| ());
            let bytes = match at {
                At::Download => scene.image.layers[1].blob.len(),
                _ => scene.image.manifest.len(),
            };
            scene.plant(at, fault(bytes).always());
            let error = scene.copy().await.expect_err(&cell);
            let told = told(&*error);
            scene.assert_nothing_false(&cell);
            let names_it = ["digest", "bytes", "cannot be used", "JSON"]
                .iter()
                .any(|word| told.contains(word));
            assert!(names_it, "{cell}: {told}");
        }
    }
}
