//! Progress bars for blobs on their way, and for layers being made.

use std::collections::BTreeMap;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tierce_image::Progress;
use tierce_oci::{Descriptor, Digest};

use crate::output::{Output, describe_size};

/// The bars of a run. All share the terminal, for layers are made while others are sent.
#[derive(Debug, Clone)]
pub(crate) struct Bars {
    are_wanted: bool,
    all: MultiProgress,
}

impl Bars {
    /// None yet.
    pub(crate) fn new(output: Output) -> Self {
        Self {
            are_wanted: output.bars,
            all: MultiProgress::new(),
        }
    }

    /// Adds a bar that counts up to `total` bytes, or just up when that is zero.
    pub(crate) fn add(&self, total: u64, name: &str) -> ProgressBar {
        if self.are_wanted {
            self.all.add(byte_bar(total, name))
        } else {
            ProgressBar::hidden()
        }
    }

    /// Takes the bars away for as long as something is said.
    pub(crate) fn suspend(&self, say: impl FnOnce()) {
        self.all.suspend(say);
    }
}

/// Shows what a walk does; silent where stderr is no terminal.
#[derive(Debug)]
pub(crate) struct TransferProgress {
    output: Output,
    bars: Bars,
    running: Mutex<BTreeMap<Digest, ProgressBar>>,
}

/// A bar is worth the lines it takes only for blobs that take a while.
const WORTH_A_BAR: u64 = 1 << 20;

impl TransferProgress {
    /// Prepares for one walk.
    pub(crate) fn new(output: Output, bars: Bars) -> Self {
        Self {
            output,
            bars,
            running: Mutex::default(),
        }
    }

    /// Takes note of one step.
    pub(crate) fn show(&self, progress: Progress<'_>) {
        match progress {
            Progress::Sending(blob) => self.begin(blob),
            Progress::Bytes(blob, count) => {
                self.with_bar(blob, |bar| bar.inc(count));
            }
            Progress::Done(blob) => {
                self.with_bar(blob, ProgressBar::finish_and_clear);
            }
        }
    }

    fn begin(&self, blob: &Descriptor) {
        let size = describe_size(blob.size);
        let text = format!("sending {} ({size})", blob.digest);
        self.bars.suspend(|| self.output.step(&text));
        if blob.size < WORTH_A_BAR {
            return;
        }
        let bar = self.bars.add(blob.size, &blob.digest.short());
        if let Ok(mut running) = self.running.lock() {
            running.insert(blob.digest, bar);
        }
    }

    fn with_bar(&self, blob: &Descriptor, act: impl Fn(&ProgressBar)) {
        if let Ok(running) = self.running.lock()
            && let Some(bar) = running.get(&blob.digest)
        {
            act(bar);
        }
    }
}

fn byte_bar(total: u64, name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg:14} {bar:32} {binary_bytes:>10} of {binary_total_bytes:10} {binary_bytes_per_sec:>12}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total)
        .with_style(style)
        .with_message(name.to_owned())
}
