//! Bodies that stream, watched over while they do.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use reqwest::Method;
use reqwest::header::HeaderMap;
use tierce_image::{BlobSource, OpenBlobError};
use tokio::sync::mpsc;
use url::Url;

use super::Upload;
use crate::client::{Judged, Settled, Stream as Outgoing};
use crate::error::{Cause, ConnectionFailure, RegistryError, RequestLine, Step};
use crate::transport::Reply;

/// In such pieces a body is handed to the network, so that its progress can be seen: a source may have
/// much larger ones, which a slow network does not take in the time that counts as a stall.
const PIECE: usize = 64 * 1024;

/// The bytes of a chunk as a stream.
pub(super) fn pieces(
    chunk: Bytes,
) -> impl Stream<Item = Result<Bytes, OpenBlobError>> + Send + Unpin {
    stream::iter([Ok(chunk)])
}

impl<S: BlobSource> Upload<'_, '_, S> {
    /// Sends a body of `length` bytes, and waits for the answer; `None` when who we are had to be
    /// settled anew first, so that it is to be sent once more.
    pub(super) async fn transfer(
        &mut self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        source: impl Stream<Item = Result<Bytes, OpenBlobError>> + Unpin,
        length: u64,
    ) -> Result<Option<Reply>, RegistryError> {
        let mut source = source.fuse();
        if length == 0 {
            // Nobody would ask for the pieces of an empty body, and so nobody would verify it.
            while let Some(piece) = source.next().await {
                piece.map_err(RegistryError::Source)?;
            }
        }
        let (pieces, received) = mpsc::channel(1);
        let body = stream::unfold(received, |mut received| async {
            let piece: Bytes = received.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(piece), received))
        });
        let (client, access) = (&self.place.client, self.place.access(true));
        let outgoing = Outgoing {
            method: method.clone(),
            url,
            headers,
            body: reqwest::Body::wrap_stream(body),
            length,
            fresh: self.attempts.is_retry(),
        };
        let mut answer = pin!(client.send_stream(&self.registry, &access, outgoing));
        let timeouts = *self.registry.timeouts();
        let mut feed = pin!(feed(source, pieces, timeouts.read));
        let early = tokio::select! {
            // An early answer is a no; the rest of the bytes is not wanted.
            answer = &mut answer => Some(answer),
            outcome = &mut feed => match outcome {
                Ok(()) => None,
                // Dropping the request breaks the connection before the body is whole, so that
                // nothing false can be there under the digest.
                Err(Starved::Source(error)) => return Err(RegistryError::Source(error)),
                Err(Starved::Stalled) => return Err(self.stalled(&method, url, timeouts.read)),
            },
        };
        let answer = match early {
            Some(answer) => answer,
            None => match tokio::time::timeout(timeouts.upload_answer, answer).await {
                Ok(answer) => answer,
                Err(_) => return Err(self.stalled(&method, url, timeouts.upload_answer)),
            },
        };
        let (reply, shown) = answer?;
        let judged = client.judge(&self.registry, &access, &shown, reply, &mut self.settled);
        match judged.await? {
            Judged::Answer(reply) => {
                self.settled = Settled::default();
                Ok(Some(reply))
            }
            Judged::Again(_) => Ok(None),
        }
    }

    fn stalled(&self, method: &Method, url: &Url, waited: Duration) -> RegistryError {
        let request = RequestLine {
            method: method.to_string(),
            path: url.path().to_owned(),
        };
        let cause = Cause::text(format!("nothing moved for {} s", waited.as_secs()));
        let host = &self.place.repository.registry;
        RegistryError::connection(ConnectionFailure::new(host, &request, Step::Wait, cause))
    }
}

/// Why a body is not fed on.
enum Starved {
    /// The blob cannot be read, or is not what its descriptor says.
    Source(OpenBlobError),
    /// The registry takes no more.
    Stalled,
}

/// Hands the pieces of a blob to the request that is on its way.
///
/// The time that the blob's own place takes does not count against the registry.
async fn feed(
    mut source: impl Stream<Item = Result<Bytes, OpenBlobError>> + Unpin,
    pieces: mpsc::Sender<Bytes>,
    patience: Duration,
) -> Result<(), Starved> {
    while let Some(piece) = source.next().await {
        let mut rest = piece.map_err(Starved::Source)?;
        while !rest.is_empty() {
            let piece = rest.split_to(PIECE.min(rest.len()));
            match tokio::time::timeout(patience, pieces.send(piece)).await {
                Ok(Ok(())) => {}
                // The request is over, or has all the bytes that it announced: its answer tells.
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(Starved::Stalled),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_pieces_are_handed_on_in_small_ones() {
        let piece = Bytes::from(vec![7; 3 * PIECE + 1]);
        let (sender, mut handed) = mpsc::channel(1);
        let source = stream::iter([Ok(piece.clone()), Ok(Bytes::new()), Ok(piece)]);
        let fed = feed(source, sender, Duration::from_mins(1));
        let received = async {
            let mut lengths = Vec::new();
            while let Some(piece) = handed.recv().await {
                lengths.push(piece.len());
            }
            lengths
        };
        let (outcome, lengths) = tokio::join!(fed, received);
        assert!(outcome.is_ok());
        let each = [PIECE, PIECE, PIECE, 1];
        assert_eq!(lengths, [each, each].concat());
    }
}
