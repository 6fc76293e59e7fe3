//! Sending a blob, and going on with it after it broke.
//!
//! A blob goes by a POST that begins an upload and one PUT with all its bytes: the way that every
//! registry takes. What breaks is begun anew in a new session, because registries disagree on where
//! an old one would go on. Two kinds of blobs go in chunks instead, by PATCH:
//!
//! * a large one after its first break, in this run or in an earlier one, so that a later break costs
//!   no more than one chunk where the registry keeps the session. (Debian's docker-registry 2.8 loses
//!   one in the midst of whose chunk the connection broke.) Where it is, is written down
//!   ([`unfinished`]), so that another run can go on with it;
//! * any one whose whole body the registry refuses as too large.
//!
//! How far a chunked upload is, we know ourselves: the registry has what it has acknowledged. Its own
//! word is asked for only after a break, and only believed where it is possible: ECR's `Range`
//! sticks at the first chunk (aws/containers-roadmap#2831), Debian's docker-registry tells the truth.
//! Whatever a session turns out to hold, the digest in the last request decides.

mod body;
mod session;
mod unfinished;

use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use tierce_image::{Blob, BlobSource, OpenBlobError, VerifyError};
use tierce_oci::Digest;
use url::Url;

use crate::client::{Call, Registry, RepositoryClient, Settled, Target, success};
use crate::endpoint::destination;
use crate::error::{Problem, RegistryError};
use crate::push::check_claim;
use crate::retry::Attempts;
use crate::transport::Reply;
use session::{Received, Session};
use unfinished::Note;

pub(crate) use unfinished::Unfinished;

/// How blobs are cut when they go in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadSettings {
    /// Blobs of more bytes go on in chunks after a break, and across runs.
    pub resume_above: u64,
    /// Bytes of a chunk, unless the registry wants larger ones.
    pub chunk: u64,
}

impl Default for UploadSettings {
    /// 64 MiB; chunks of 10 MiB, which is what ECR's quotas name as the largest part.
    fn default() -> Self {
        Self {
            resume_above: 64 << 20,
            chunk: 10 << 20,
        }
    }
}

/// ECR takes 4,200 parts of a layer; some are kept back for chunks that go in two halves.
const MOST_CHUNKS: u64 = 4000;

/// No chunk that others ask for is larger (a registry, a blob's descriptor, a note): each is held in
/// memory until it was taken.
const LARGEST_CHUNK: u64 = 128 << 20;

/// How the registry tells the smallest chunk that it takes (distribution-spec, "Pushing a blob in
/// chunks").
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");

impl RepositoryClient {
    /// Gets the blob's bytes to the registry.
    pub(crate) async fn upload<S: BlobSource>(
        &self,
        blob: &Blob<'_, S>,
    ) -> Result<(), RegistryError> {
        let registry = self.registry()?;
        let settings = self.client.uploads();
        let is_large = blob.descriptor().size > settings.resume_above;
        let note = is_large.then(|| {
            let unfinished = self.client.unfinished()?;
            unfinished.claim(&self.repository, blob.descriptor())
        });
        let upload = Upload {
            place: self,
            blob,
            attempts: self.client.attempts(),
            note: note.flatten(),
            is_large,
            in_chunks: registry.chunk_size().is_some(),
            is_inherited: false,
            furthest: 0,
            settled: Settled::default(),
            registry,
        };
        upload.run().await
    }

    pub(crate) fn take_upload(&self, digest: &Digest) -> Option<Url> {
        self.uploads().remove(digest)
    }

    /// Tells the registry that an upload will not go on, so that it need not keep the bytes.
    async fn cancel_upload(&self, registry: &Registry, upload: &Url) {
        let call = Call::new(Method::DELETE, Target::Url(upload), self.access(true));
        // It forgets the upload anyhow after a while.
        if let Err(error) = self.client.call_once(registry, &call, false).await {
            tracing::debug!("the upload was not cancelled: {error}");
        }
    }
}

/// One blob on its way.
struct Upload<'a, 'b, S> {
    place: &'a RepositoryClient,
    registry: Arc<Registry>,
    blob: &'a Blob<'b, S>,
    attempts: Attempts,
    /// Where another run finds how far it is.
    note: Option<Note>,
    is_large: bool,
    in_chunks: bool,
    /// Whether the session is one out of a note, of which the registry has taken nothing yet. It may
    /// be another user's, or have ended, in words that no registry agrees on with the next.
    is_inherited: bool,
    /// How far any session has come. What a new one takes again up to there is no progress, or a
    /// registry that never takes the whole would be sent it for ever.
    furthest: u64,
    /// What was done about who we are since the last answer that was about something else.
    settled: Settled,
}

/// What has come of a try.
enum Outcome {
    /// The blob is there.
    There,
    /// It goes on, in this session or in a new one. The attempt is counted already.
    GoOn(Option<Session>),
}

/// What has come of a chunk.
enum ChunkOutcome {
    Sent,
    /// The session does not go on.
    Lost(RegistryError),
    /// It broke, which is counted already, and is not there any more.
    Gone,
}

impl<S: BlobSource> Upload<'_, '_, S> {
    async fn run(mut self) -> Result<(), RegistryError> {
        let outcome = self.bring().await;
        match &outcome {
            Ok(()) => self.forget(),
            // What the next run would only be refused again.
            Err(error) if self.is_inherited && error.status().is_some() => self.forget(),
            Err(_) => {}
        }
        outcome
    }

    async fn bring(&mut self) -> Result<(), RegistryError> {
        let mut session = self.take_up().await;
        loop {
            // An answer that was lost may have been a success.
            if self.attempts.is_retry() && self.is_there().await? {
                return Ok(());
            }
            let going = match session.take() {
                Some(session) => session,
                None => self.begin().await?,
            };
            let outcome = if self.in_chunks {
                self.send_chunks(going).await
            } else {
                self.send_whole(going).await
            };
            match outcome? {
                Outcome::There => return Ok(()),
                Outcome::GoOn(next) => session = next,
            }
        }
    }

    fn size(&self) -> u64 {
        self.blob.descriptor().size
    }

    fn digest(&self) -> Digest {
        self.blob.descriptor().digest
    }

    async fn is_there(&mut self) -> Result<bool, RegistryError> {
        let digest = self.blob.descriptor().digest;
        self.place
            .has_blob(&self.registry, &digest, &mut self.attempts)
            .await
    }

    /// The session that another run has left, if it can be gone on with.
    async fn take_up(&mut self) -> Option<Session> {
        let saved = self.note.as_ref().and_then(Note::read)?;
        // It broke before, and may again.
        self.in_chunks = true;
        self.is_inherited = true;
        let session = if self.is_trusted(&saved.url) {
            self.look_again(saved).await
        } else {
            None
        };
        match &session {
            Some(session) => {
                let (digest, size) = (self.digest(), self.size());
                tracing::info!("going on with {digest} at {} of {size} bytes", session.at);
            }
            None => self.forget(),
        }
        session
    }

    fn save(&self, session: &Session) {
        if let Some(note) = &self.note {
            note.write(session);
        }
    }

    fn forget(&self) {
        if let Some(note) = &self.note {
            note.remove();
        }
    }

    async fn cancel(&self, session: &Session) {
        self.forget();
        if self.is_inherited {
            // Nobody but the note says that it is an upload.
            return;
        }
        self.place.cancel_upload(&self.registry, &session.url).await;
    }

    async fn begin(&mut self) -> Result<Session, RegistryError> {
        self.is_inherited = false;
        let mut least = self.size().div_ceil(MOST_CHUNKS);
        let digest = self.digest();
        let url = match self.place.take_upload(&digest) {
            Some(url) => url,
            None => {
                let reply = self
                    .place
                    .begin_upload(&self.registry, &mut self.attempts)
                    .await?;
                let wanted = reply.header(CHUNK_MIN_LENGTH).map(str::parse);
                if let Some(Ok(wanted)) = wanted {
                    least = least.max(wanted);
                }
                upload_location(&self.registry, &reply)?
            }
        };
        let settings = self.place.client.uploads();
        let chunk = self.registry.chunk_size().unwrap_or(settings.chunk);
        let session = Session::new(url, chunk.max(least.min(LARGEST_CHUNK)));
        self.save(&session);
        Ok(session)
    }

    /// Sends the blob as one body.
    async fn send_whole(&mut self, session: Session) -> Result<Outcome, RegistryError> {
        let url = session.closing_url(&self.digest());
        let source = self.blob.open().await;
        let transferred = match source.map_err(RegistryError::Source) {
            Ok(source) => {
                let size = self.size();
                self.transfer(Method::PUT, &url, octets(), source, size)
                    .await
            }
            Err(error) => Err(error),
        };
        let reply = match transferred {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ok(Outcome::GoOn(Some(session))),
            Err(RegistryError::Source(error)) => return self.starve(&session, error).await,
            Err(error) => {
                self.after_break(error).await?;
                self.in_chunks |= self.is_large;
                let kept = if self.in_chunks {
                    self.look_again(session).await
                } else {
                    None
                };
                return Ok(Outcome::GoOn(kept));
            }
        };
        let status = reply.status();
        match success(reply).await {
            Ok(reply) => {
                check_claim(&reply, self.digest())?;
                return Ok(Outcome::There);
            }
            // The upload ended on the other side, as unused ones do after a while.
            Err(error) if matches!(status.as_u16(), 404 | 416) => {
                self.forget();
                self.attempts.again(error).await?;
            }
            Err(error) if status == StatusCode::PAYLOAD_TOO_LARGE => {
                self.cancel(&session).await;
                self.attempts.again(error).await?;
                self.in_chunks = true;
            }
            Err(error) => {
                self.cancel(&session).await;
                self.attempts.after(error).await?;
                self.in_chunks |= self.is_large;
            }
        }
        Ok(Outcome::GoOn(None))
    }

    /// Sends what is missing, chunk by chunk.
    async fn send_chunks(&mut self, mut session: Session) -> Result<Outcome, RegistryError> {
        let source = match self.blob.open().await {
            Ok(source) => source,
            Err(error) => return self.starve(&session, error).await,
        };
        self.furthest = self.furthest.max(session.at);
        let mut pieces = Pieces::new(source);
        if let Err(error) = pieces.skip(session.at).await {
            return self.starve(&session, error).await;
        }
        while session.at < self.size() {
            let length = session.chunk.min(self.size() - session.at);
            let chunk = match pieces.take(length).await {
                Ok(chunk) => chunk,
                Err(error) => return self.starve(&session, error).await,
            };
            match self.send_chunk(&mut session, chunk).await? {
                ChunkOutcome::Sent => {}
                ChunkOutcome::Lost(error) => return self.lose(&session, error).await,
                ChunkOutcome::Gone => {
                    self.forget();
                    return Ok(Outcome::GoOn(None));
                }
            }
            self.save(&session);
            if session.at > self.furthest {
                self.furthest = session.at;
                self.attempts.restart();
            } else {
                self.attempts.keep_on();
            }
        }
        self.complete(session).await
    }

    /// Sends one chunk, as often as it takes.
    async fn send_chunk(
        &mut self,
        session: &mut Session,
        mut chunk: Bytes,
    ) -> Result<ChunkOutcome, RegistryError> {
        loop {
            let length = chunk.len() as u64;
            let mut headers = octets();
            let range = format!("{}-{}", session.at, session.at + length - 1);
            let range = HeaderValue::from_str(&range).expect("numbers are ASCII");
            headers.insert(CONTENT_RANGE, range);
            let url = session.url.clone();
            let body = body::pieces(chunk.clone());
            let transferred = self
                .transfer(Method::PATCH, &url, headers, body, length)
                .await;
            let error = match transferred {
                Ok(None) => continue,
                Ok(Some(reply)) => match reply.status().as_u16() {
                    // ECR says 201 where the specification says 202 (dotnet/sdk-container-builds#279).
                    201 | 202 | 204 => {
                        if let Ok(url) = upload_location(&self.registry, &reply) {
                            session.url = url;
                        }
                        session.acknowledge(length);
                        self.is_inherited = false;
                        return Ok(ChunkOutcome::Sent);
                    }
                    // The chunk whose answer was lost had come, all of it. That is a guess: when the
                    // next one is refused too, nothing is unsure, and the session is lost.
                    416 if session.is_unsure => {
                        session.acknowledge(length);
                        return Ok(ChunkOutcome::Sent);
                    }
                    400 | 404 | 409 | 410 | 416 => {
                        return Ok(ChunkOutcome::Lost(reply.into_error().await));
                    }
                    _ => reply.into_error().await,
                },
                Err(error) => error,
            };
            if self.is_refused(&error) {
                return Ok(ChunkOutcome::Lost(error));
            }
            self.after_break(error).await?;
            session.is_unsure = true;
            match self.received(session).await {
                Received::Gone => return Ok(ChunkOutcome::Gone),
                Received::Bytes(bytes) => {
                    if let Some(more) = session.believe(bytes, length) {
                        chunk.advance(more);
                    }
                    if chunk.is_empty() {
                        return Ok(ChunkOutcome::Sent);
                    }
                }
                Received::Unknown => {}
            }
        }
    }

    /// Says that all chunks are there.
    async fn complete(&mut self, session: Session) -> Result<Outcome, RegistryError> {
        let url = session.closing_url(&self.digest());
        loop {
            let nothing = body::pieces(Bytes::new());
            let transferred = self.transfer(Method::PUT, &url, octets(), nothing, 0).await;
            let error = match transferred {
                Ok(None) => continue,
                Ok(Some(reply)) if reply.status().is_success() => {
                    check_claim(&reply, self.digest())?;
                    return Ok(Outcome::There);
                }
                Ok(Some(reply)) => {
                    let status = reply.status().as_u16();
                    let error = reply.into_error().await;
                    // Its bytes are not ours, or it is gone. Ours were verified on the way.
                    if matches!(status, 400 | 404 | 409 | 410 | 416) {
                        return self.lose(&session, error).await;
                    }
                    error
                }
                Err(error) => error,
            };
            if self.is_refused(&error) {
                return self.lose(&session, error).await;
            }
            self.attempts.after(error).await?;
            if self.is_there().await? {
                return Ok(Outcome::There);
            }
        }
    }

    /// The blob's own place has failed. What is there already is of use when that passes, and of
    /// none when the bytes were others than they should be.
    async fn starve(
        &mut self,
        session: &Session,
        error: OpenBlobError,
    ) -> Result<Outcome, RegistryError> {
        let is_false = error.source.is::<VerifyError>();
        let error = RegistryError::Source(error);
        if self.note.is_none() || is_false || error.is_transient() {
            self.cancel(session).await;
        }
        self.attempts.after(error).await?;
        Ok(Outcome::GoOn(None))
    }

    async fn lose(
        &mut self,
        session: &Session,
        error: RegistryError,
    ) -> Result<Outcome, RegistryError> {
        self.cancel(session).await;
        self.attempts.again(error).await?;
        Ok(Outcome::GoOn(None))
    }

    /// Counts a break, and waits. A registry that drops uploads to repositories that are not there
    /// ends it here.
    async fn after_break(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        match self.place.settle_missing(&self.registry, error).await? {
            Some(error) => self.attempts.after(error).await,
            None => Ok(()),
        }
    }

    /// Finds out where a session goes on that broke, or that another run has left; `None` when a new
    /// one is better.
    async fn look_again(&mut self, mut session: Session) -> Option<Session> {
        let received = self.received(&mut session).await;
        if session.resume(&received, self.size()) {
            // Its address may be another now.
            self.save(&session);
            return Some(session);
        }
        if !matches!(received, Received::Gone) {
            self.cancel(&session).await;
        }
        None
    }

    /// Asks the registry how much of the upload it has.
    async fn received(&self, session: &mut Session) -> Received {
        let url = session.url.clone();
        let call = Call::new(Method::GET, Target::Url(&url), self.place.access(true));
        let reply = match self
            .place
            .client
            .call_once(&self.registry, &call, true)
            .await
        {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!("the upload's state is not known: {error}");
                return Received::Unknown;
            }
        };
        match reply.status().as_u16() {
            200..=299 => {
                if let Ok(url) = upload_location(&self.registry, &reply) {
                    session.url = url;
                }
                let range = reply.header(RANGE).and_then(session::bytes_of_range);
                range.map_or(Received::Unknown, Received::Bytes)
            }
            404 | 410 => Received::Gone,
            _ => Received::Unknown,
        }
    }

    /// Whether a written address can be one of the registry, as it is reached now. It could have sent
    /// us to other hosts as well, but notes are no registry: they do not say where bytes go.
    fn is_trusted(&self, url: &Url) -> bool {
        self.registry.endpoint().owns(url)
    }

    /// Whether an error says that what another run has left is not for us.
    fn is_refused(&self, error: &RegistryError) -> bool {
        self.is_inherited && error.status().is_some() && !error.is_transient()
    }
}

/// The bytes of a blob, cut at other places than its source cuts them.
struct Pieces<T> {
    source: T,
    rest: Bytes,
}

impl<T: Stream<Item = Result<Bytes, OpenBlobError>> + Unpin> Pieces<T> {
    fn new(source: T) -> Self {
        Self {
            source,
            rest: Bytes::new(),
        }
    }

    /// Makes sure that there is something; what there is may be the last, after which an error of
    /// the source would never be seen.
    async fn fill(&mut self) -> Result<bool, OpenBlobError> {
        while self.rest.is_empty() {
            match self.source.next().await.transpose()? {
                Some(piece) => self.rest = piece,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Reads over what the registry has. It is read all the same: the digest needs it.
    async fn skip(&mut self, mut length: u64) -> Result<(), OpenBlobError> {
        while length > 0 && self.fill().await? {
            let skipped = usize::try_from(length)
                .map_or(self.rest.len(), |length| length.min(self.rest.len()));
            self.rest.advance(skipped);
            length -= skipped as u64;
        }
        Ok(())
    }

    /// The next `length` bytes; fewer only at the end.
    async fn take(&mut self, length: u64) -> Result<Bytes, OpenBlobError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let most = usize::try_from(LARGEST_CHUNK).unwrap_or(usize::MAX);
        let mut taken = BytesMut::with_capacity(length.min(most));
        while taken.len() < length && self.fill().await? {
            let piece = self.rest.len().min(length - taken.len());
            taken.extend_from_slice(&self.rest.split_to(piece));
        }
        Ok(taken.freeze())
    }
}

fn octets() -> HeaderMap {
    let octets = HeaderValue::from_static("application/octet-stream");
    HeaderMap::from_iter([(CONTENT_TYPE, octets)])
}

/// Where an upload goes on, if that is a place to go to.
pub(crate) fn upload_location(registry: &Registry, reply: &Reply) -> Result<Url, RegistryError> {
    let endpoint = registry.endpoint();
    let url = reply.location(&endpoint)?;
    match endpoint.check_named_url(&url) {
        Ok(()) => Ok(url),
        Err(source) => {
            let host = destination(&url);
            Err(reply.bad(Problem::Distrusted { host, source }))
        }
    }
}
