//! Opening blobs, and never trusting what comes out.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tierce_oci::{Descriptor, Digest, Hasher};

use crate::content::Content;

/// An error of whichever place was involved; its `source` chain says the rest.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The bytes of a blob, in order.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// Opens blobs wherever their [`Content`] says they are.
pub trait BlobSource: Sync {
    /// Opens the bytes of `blob` from offset `from` on, unverified.
    ///
    /// It can be called again for the same blob: a retry or a resumed transfer does. Dropping the
    /// stream ends the transfer.
    fn open(
        &self,
        blob: &Descriptor,
        content: &Content,
        from: u64,
    ) -> impl Future<Output = Result<BlobStream, BoxError>> + Send;
}

/// A blob that was promised to a sink: what it is, and how to get its bytes.
pub struct Blob<'a, S> {
    descriptor: &'a Descriptor,
    content: &'a Content,
    source: &'a S,
    on_bytes: &'a (dyn Fn(u64) + Sync),
}

impl<S> fmt::Debug for Blob<'_, S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Blob")
            .field("descriptor", self.descriptor)
            .finish_non_exhaustive()
    }
}

/// A blob could not be read from where it is.
#[derive(Debug, thiserror::Error)]
#[error("could not read blob {digest}")]
pub struct OpenBlobError {
    /// Which blob.
    pub digest: Digest,
    /// What the place said.
    #[source]
    pub source: BoxError,
}

impl<'a, S: BlobSource> Blob<'a, S> {
    /// Names a blob of `source`; `on_bytes` hears the length of every piece that is handed out.
    pub fn new(
        descriptor: &'a Descriptor,
        content: &'a Content,
        source: &'a S,
        on_bytes: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        Self {
            descriptor,
            content,
            source,
            on_bytes,
        }
    }

    /// Media type, digest and size.
    pub fn descriptor(&self) -> &Descriptor {
        self.descriptor
    }

    /// Where the bytes are, for sinks that can take them without reading.
    pub fn content(&self) -> &Content {
        self.content
    }

    /// Opens the whole blob. The stream verifies itself: its last piece comes only when the digest
    /// of the whole is right.
    pub async fn open(
        &self,
    ) -> Result<
        impl Stream<Item = Result<Bytes, OpenBlobError>> + Send + Unpin + use<'a, S>,
        OpenBlobError,
    > {
        let digest = self.descriptor.digest;
        let inner = self
            .source
            .open(self.descriptor, self.content, 0)
            .await
            .map_err(|source| OpenBlobError { digest, source })?;
        Ok(Verified {
            inner,
            hasher: Some(Hasher::new()),
            expected: digest,
            size: self.descriptor.size,
            seen: 0,
            on_bytes: self.on_bytes,
        })
    }
}

/// What a blob turned out to be, when it is not what its descriptor says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The bytes end before the size of the descriptor.
    #[error("it has {found} bytes where {expected} were expected")]
    TooShort {
        /// The descriptor's size.
        expected: u64,
        /// How many came.
        found: u64,
    },
    /// The bytes go on after the size of the descriptor.
    #[error("it has more than the {expected} bytes that were expected")]
    TooLong {
        /// The descriptor's size.
        expected: u64,
    },
    /// Right length, other bytes.
    #[error("its bytes have the digest {found}")]
    OtherDigest {
        /// The digest of what came.
        found: Digest,
    },
}

/// A stream that hands out the last piece of a blob only when the digest of the whole is right.
///
/// Whoever takes exactly `size` bytes from it therefore holds verified bytes, even when he stops
/// asking then, as HTTP clients do at the end of a body of known length.
struct Verified<'a> {
    inner: BlobStream,
    /// `None` once the digest has been compared.
    hasher: Option<Hasher>,
    expected: Digest,
    size: u64,
    seen: u64,
    on_bytes: &'a (dyn Fn(u64) + Sync),
}

impl Verified<'_> {
    fn take(&mut self, bytes: &Bytes) -> Result<(), VerifyError> {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        if self.seen > self.size {
            return Err(VerifyError::TooLong {
                expected: self.size,
            });
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        if self.seen == self.size {
            self.compare()
        } else {
            Ok(())
        }
    }

    fn compare(&mut self) -> Result<(), VerifyError> {
        match self.hasher.take().map(Hasher::finish) {
            Some(found) if found != self.expected => Err(VerifyError::OtherDigest { found }),
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), VerifyError> {
        if self.seen < self.size {
            return Err(VerifyError::TooShort {
                expected: self.size,
                found: self.seen,
            });
        }
        self.compare()
    }
}

impl Stream for Verified<'_> {
    type Item = Result<Bytes, OpenBlobError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let digest = self.expected;
        let fail = |source: BoxError| Poll::Ready(Some(Err(OpenBlobError { digest, source })));
        loop {
            return match std::task::ready!(self.inner.as_mut().poll_next(context)) {
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => match self.take(&bytes) {
                    Ok(()) => {
                        (self.on_bytes)(bytes.len() as u64);
                        Poll::Ready(Some(Ok(bytes)))
                    }
                    Err(error) => fail(error.into()),
                },
                Some(Err(error)) => fail(error),
                None => match self.end() {
                    Ok(()) => Poll::Ready(None),
                    Err(error) => fail(error.into()),
                },
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt, stream};
    use tierce_oci::MediaType;

    struct Pieces(Vec<Result<&'static [u8], &'static str>>);

    impl BlobSource for Pieces {
        async fn open(&self, _: &Descriptor, _: &Content, _: u64) -> Result<BlobStream, BoxError> {
            let pieces: Vec<_> = self
                .0
                .iter()
                .map(|piece| piece.map(Bytes::from_static).map_err(BoxError::from))
                .collect();
            Ok(stream::iter(pieces).boxed())
        }
    }

    fn read(
        promised: &[u8],
        pieces: Vec<Result<&'static [u8], &'static str>>,
    ) -> (Vec<u8>, String) {
        let descriptor = Descriptor::of(MediaType::from("x/y"), promised);
        let content = Content::Memory(Bytes::new());
        let source = Pieces(pieces);
        let ignore = |_| ();
        let blob = Blob::new(&descriptor, &content, &source, &ignore);
        futures_util::future::FutureExt::now_or_never(async {
            let mut stream = blob.open().await.unwrap();
            let mut taken = Vec::new();
            while let Some(piece) = stream.next().await {
                match piece {
                    Ok(bytes) => taken.extend_from_slice(&bytes),
                    Err(error) => return (taken, error.source.to_string()),
                }
            }
            (taken, String::new())
        })
        .unwrap()
    }

    #[test]
    fn the_last_piece_comes_only_when_all_is_right() {
        assert_eq!(
            read(b"abcd", vec![Ok(b"ab"), Ok(b""), Ok(b"cd")]),
            (b"abcd".to_vec(), String::new())
        );
        assert_eq!(read(b"", vec![]), (vec![], String::new()));
        let (taken, error) = read(b"abcd", vec![Ok(b"ab"), Ok(b"cx")]);
        assert!(
            taken == b"ab" && error.contains("digest sha256:"),
            "{error}"
        );
        let (taken, error) = read(b"abcd", vec![Ok(b"ab")]);
        assert!(
            taken == b"ab" && error.contains("2 bytes where 4"),
            "{error}"
        );
        let (taken, error) = read(b"abcd", vec![Ok(b"ab"), Ok(b"cde")]);
        assert!(
            taken == b"ab" && error.contains("more than the 4"),
            "{error}"
        );
        let (_, error) = read(b"ab", vec![Ok(b"ab"), Ok(b"c")]);
        assert!(error.contains("more than the 2"), "{error}");
        let (_, error) = read(b"abcd", vec![Ok(b"ab"), Err("gone")]);
        assert_eq!(error, "gone");
    }
}
