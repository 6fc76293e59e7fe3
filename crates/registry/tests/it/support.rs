//! What all these tests need.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use tierce_image::{
    Artifact, BlobAt, BlobSource, BlobStream, BoxError, Content, ImageSource as _, Jobs,
    WriteError, WriteReport, read_artifact, read_blob, write,
};
use tierce_oci::{Descriptor, Digest, MediaType, Repository, Selector, Tag};
use tierce_registry::{
    Client, ClientSettings, CredentialKind, CredentialSource, Credentials, RegistryError,
    RepositoryClient, RetryPolicy, Secret,
};
use tierce_testkit::FakeRegistry;
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, TestImage};

/// How often anything is tried in these tests, without pauses.
pub(crate) const ATTEMPTS: u32 = 4;

pub(crate) fn settings() -> ClientSettings {
    let attempts = NonZeroU32::new(ATTEMPTS).expect("four is not zero");
    ClientSettings {
        retry: RetryPolicy::immediate(attempts),
        ..ClientSettings::default()
    }
}

pub(crate) fn client() -> Client {
    Client::new(settings()).expect("these settings are fine")
}

pub(crate) fn client_as(credentials: impl CredentialSource + 'static) -> Client {
    Client::new(ClientSettings {
        credentials: Arc::new(credentials),
        ..settings()
    })
    .expect("these settings are fine")
}

/// Credentials that are the same everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Fixed(pub(crate) CredentialKind);

impl Fixed {
    pub(crate) fn password(username: &str, password: &str) -> Self {
        Self(CredentialKind::Password {
            username: username.to_owned(),
            password: Secret::new(password),
        })
    }

    pub(crate) fn identity_token(token: &str) -> Self {
        Self(CredentialKind::IdentityToken(Secret::new(token)))
    }
}

impl CredentialSource for Fixed {
    fn credentials<'a>(
        &'a self,
        _: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        Box::pin(async {
            Ok(Some(Credentials {
                kind: self.0.clone(),
                origin: "the test".to_owned(),
                good_until: None,
            }))
        })
    }
}

pub(crate) fn repository(registry: &FakeRegistry, path: &str) -> Repository {
    format!("{}/{path}", registry.host())
        .parse()
        .expect("the fake's host and the test's path make a repository")
}

pub(crate) fn place(client: &Client, registry: &FakeRegistry, path: &str) -> RepositoryClient {
    client.repository(&repository(registry, path))
}

pub(crate) fn tag(text: &str) -> Tag {
    text.parse().expect("the test names a tag")
}

pub(crate) fn by_tag(text: &str) -> Selector {
    Selector::Tag(tag(text))
}

pub(crate) fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::of(MediaType::from("application/octet-stream"), bytes)
}

/// So many bytes, none like its neighbours.
pub(crate) fn bytes(length: usize) -> Bytes {
    (0..length)
        .map(|position| u8::try_from(position % 251).expect("less than 256"))
        .collect()
}

/// An image of two small layers.
pub(crate) fn image() -> TestImage {
    let layer = |name: &str| LayerBuilder::new().file(name, 0o644, name.as_bytes());
    ImageBuilder::new(Format::Docker, "amd64")
        .layer(&layer("one"))
        .layer(&layer("two"))
        .build()
}

/// An image that is another one.
pub(crate) fn other_image() -> TestImage {
    let layer = LayerBuilder::new().file("three", 0o644, b"three");
    ImageBuilder::new(Format::Docker, "amd64")
        .layer(&layer)
        .build()
}

/// Opens blobs at registries and in memory, as the program does.
#[derive(Debug)]
pub(crate) struct Blobs(pub(crate) Client);

impl BlobSource for Blobs {
    async fn open(
        &self,
        blob: &Descriptor,
        content: &Content,
        from: u64,
    ) -> Result<BlobStream, BoxError> {
        match content {
            Content::Origin(repository) => Ok(self.0.open_blob(repository, blob, from).await?),
            Content::Memory(bytes) => {
                let rest = bytes.slice(usize::try_from(from)?..);
                // In pieces, so that transfers can break in between.
                let pieces: Vec<_> = rest.chunks(16 * 1024).map(Bytes::copy_from_slice).collect();
                Ok(stream::iter(pieces.into_iter().map(Ok)).boxed())
            }
            other => Err(format!("not in these tests: {other:?}").into()),
        }
    }
}

/// A blob in memory.
pub(crate) fn in_memory(bytes: &Bytes) -> BlobAt {
    BlobAt {
        descriptor: descriptor(bytes),
        content: Content::Memory(bytes.clone()),
    }
}

/// Sends one blob, whose bytes are `content`, under the descriptor of `promised`.
pub(crate) async fn send(
    place: &RepositoryClient,
    promised: &Bytes,
    content: &Bytes,
) -> Result<(), RegistryError> {
    use tierce_image::{Blob, ImageSink as _};
    let descriptor = descriptor(promised);
    let content = Content::Memory(content.clone());
    let blobs = Blobs(client());
    let ignore = |_| ();
    place
        .send(&Blob::new(&descriptor, &content, &blobs, &ignore))
        .await
}

/// Reads a whole blob of a registry, verified.
pub(crate) async fn fetch(
    client: &Client,
    repository: &Repository,
    blob: &Descriptor,
) -> Result<Bytes, BoxError> {
    let content = client.repository(repository).content(blob);
    Ok(read_blob(&Blobs(client.clone()), blob, &content).await?)
}

/// Copies what `name` stands for, with all that belongs to it.
pub(crate) async fn copy(
    from: &RepositoryClient,
    to: &RepositoryClient,
    name: &str,
    blobs: &Client,
) -> Result<WriteReport, WriteError> {
    let artifact = read_artifact(from, &by_tag(name))
        .await
        .expect("the source is fine");
    push(&artifact, to, name, blobs).await
}

pub(crate) async fn push(
    artifact: &Artifact,
    to: &RepositoryClient,
    name: &str,
    blobs: &Client,
) -> Result<WriteReport, WriteError> {
    let jobs = Jobs(std::num::NonZeroUsize::new(3).expect("three is not zero"));
    let blobs = Blobs(blobs.clone());
    write(artifact, Some(&tag(name)), &blobs, to, jobs, &|_| ()).await
}

/// An image whose blobs are in memory, ready to be pushed.
pub(crate) fn artifact(image: &TestImage) -> Artifact {
    let media_type = MediaType::from(image.format.manifest());
    let document = tierce_oci::Document::parse(image.manifest.clone(), Some(&media_type))
        .expect("the testkit writes valid manifests");
    let tierce_oci::Document::Manifest(manifest) = &document else {
        panic!("the testkit's image is not an index");
    };
    let mut bytes: BTreeMap<Digest, Bytes> = image
        .layers
        .iter()
        .map(|layer| (layer.digest(), layer.blob.clone()))
        .collect();
    bytes.insert(image.config_digest(), image.config.clone());
    let blobs = manifest
        .layers
        .iter()
        .chain([&manifest.config])
        .map(|descriptor| BlobAt {
            descriptor: descriptor.clone(),
            content: Content::Memory(bytes[&descriptor.digest].clone()),
        })
        .collect();
    Artifact {
        document,
        blobs,
        children: Vec::new(),
    }
}

/// A server that writes what no HTTP library would.
pub(crate) struct RawServer {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl RawServer {
    /// Gives each connection to `serve`, on a thread of its own.
    pub(crate) fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self {
            address,
            connections,
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn place(&self, client: &Client, path: &str) -> RepositoryClient {
        let repository = format!("{}/{path}", self.address);
        client.repository(
            &repository
                .parse()
                .expect("address and path make a repository"),
        )
    }
}

/// The first line of a request, whose headers are read as well; `None` when there is none.
pub(crate) fn request_line(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head);
    head.lines().next().map(str::to_owned)
}

/// Sends a chunk by hand; gives the first line of the answer.
pub(crate) fn patch(host: &str, address: &str, start: usize, bytes: &[u8]) -> String {
    let (length, last) = (bytes.len(), start + bytes.len() - 1);
    let mut stream = TcpStream::connect(host).expect("the registry listens");
    write!(
        stream,
        "PATCH {address} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\
         Content-Range: {start}-{last}\r\n\r\n"
    )
    .and_then(|()| stream.write_all(bytes))
    .expect("the registry reads");
    request_line(&mut stream).expect("the registry answers")
}

/// Writes `bytes` one by one, for as long as somebody listens.
pub(crate) fn drip(stream: &mut TcpStream, bytes: &[u8]) {
    for byte in bytes {
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An error and its causes, a line each.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
    let mut lines = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        lines.push(cause.to_string());
        next = cause.source();
    }
    lines.join("\n")
}

/// The registry's error in a chain of errors.
pub(crate) fn registry_error<'a>(error: &'a (dyn Error + 'static)) -> &'a RegistryError {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return found;
        }
        next = error.source();
    }
    panic!("no registry is to blame for {error:?}");
}
