//! A layer wherever it is, read as a stream by a thread.

use anyhow::Result;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tierce_image::{Blob, Layer};
use tokio::sync::mpsc;

use crate::background::in_background;
use crate::output::{Output, describe_size};
use crate::places::Places;

/// Gives the bytes of a layer's blob to `read` as they come, and tells `on_bytes` how many there
/// are. `read` runs on a thread that may wait.
pub(crate) async fn read_layer<T: Send + 'static>(
    layer: &Layer,
    places: &Places,
    on_bytes: &(dyn Fn(u64) + Sync),
    read: impl FnOnce(PiecesReader) -> Result<T> + Send + 'static,
) -> Result<T> {
    let blob = Blob::new(&layer.descriptor, &layer.content, places.blobs(), on_bytes);
    let mut stream = blob.open().await?;
    let (sender, pieces) = PiecesReader::new();
    let reader = in_background(move |_| read(pieces));
    let feeder = async move {
        while let Some(piece) = stream.try_next().await? {
            // The reader ends first when it finds something wrong.
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let (fed, read) = futures_util::future::join(feeder, reader).await;
    // A layer that is not what it claims is the first cause of whatever was read out of it.
    fed?;
    read
}

/// The same with a bar, and a line that says what is `done` with the layer.
pub(crate) async fn read_layer_with_bar<T: Send + 'static>(
    done: &str,
    layer: &Layer,
    places: &Places,
    output: Output,
    read: impl FnOnce(PiecesReader) -> Result<T> + Send + 'static,
) -> Result<T> {
    let descriptor = &layer.descriptor;
    let size = describe_size(descriptor.size);
    let text = format!("{done} {} ({size})", descriptor.digest);
    places.bars().suspend(|| output.step(&text));
    let bar = places
        .bars()
        .add(descriptor.size, &descriptor.digest.short());
    let result = read_layer(layer, places, &|count| bar.inc(count), read).await;
    bar.finish_and_clear();
    result
}

/// Reads what a channel brings.
pub(crate) struct PiecesReader {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl PiecesReader {
    /// Both ends of a bridge, with a few pieces on it at a time.
    fn new() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(4);
        let current = Bytes::new();
        (sender, Self { receiver, current })
    }
}

impl std::io::Read for PiecesReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}
