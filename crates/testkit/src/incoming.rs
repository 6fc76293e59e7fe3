//! A request's body as a server reads it: counted, and cut short where a fault says so.

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::fault::Action;
use crate::log::{Journal, Place};
use crate::server::Dropped;

/// What comes when a fault's number of bytes has been read.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Break,
    Stall,
}

/// The body of one request.
///
/// What a handler does not read is read and forgotten when this is dropped, uncounted, so that the
/// client gets to see an early answer in place of a reset.
pub(crate) struct Incoming {
    stream: Option<BodyDataStream>,
    left: u64,
    cut: Option<Cut>,
    journal: Journal,
    place: Place,
}

impl Incoming {
    pub(crate) fn new(body: Body, actions: &[Action], journal: &Journal, place: Place) -> Self {
        let cut = actions.iter().find_map(|action| match action {
            Action::DisconnectAfterReceiving(bytes) => Some((*bytes, Cut::Break)),
            Action::StallAfterReceiving(bytes) => Some((*bytes, Cut::Stall)),
            _ => None,
        });
        Self {
            stream: Some(body.into_data_stream()),
            left: cut.map_or(u64::MAX, |(bytes, _)| bytes),
            cut: cut.map(|(_, cut)| cut),
            journal: journal.clone(),
            place,
        }
    }

    /// The next piece; `None` when the body has come to its proper end.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Dropped>> {
        let chunk = if self.left == 0 {
            None
        } else {
            self.stream.as_mut()?.next().await
        };
        let Some(Ok(mut chunk)) = chunk else {
            let broken = chunk.is_some();
            return match self.cut {
                // What ends at the limit must be seen as broken, not as complete.
                Some(Cut::Break) => {
                    self.stream = None;
                    Some(Err(Dropped))
                }
                // The stream is kept: the connection must stay open.
                Some(Cut::Stall) if !broken => std::future::pending().await,
                _ => {
                    self.stream = None;
                    broken.then_some(Err(Dropped))
                }
            };
        };
        let take = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        chunk.truncate(take);
        self.left -= take as u64;
        self.journal
            .update(self.place, |record| record.bytes_received += take as u64);
        Some(Ok(chunk))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(mut rest) = self.stream.take() else {
            return;
        };
        if self.cut.is_none()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { while let Some(Ok(_)) = rest.next().await {} });
        }
    }
}
