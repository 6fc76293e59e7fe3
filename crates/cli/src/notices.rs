//! What is said about the sources of layers.

use serde::{Deserialize, Serialize};
use tierce_layer::Notice;

use crate::output::Output;

/// One line about a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remark {
    warns: bool,
    text: String,
}

/// How many notices of one kind are shown in full; a tree that was copied without its times has
/// thousands of stale `.pyc`.
const SHOWN: usize = 3;

impl Remark {
    /// What to say about these notices.
    pub(crate) fn on(notices: &[Notice]) -> Vec<Self> {
        let mut stale = 0;
        let mut remarks = Vec::new();
        let note = |text: String| Self { warns: false, text };
        for notice in notices {
            match notice {
                Notice::NothingAdded { .. } => remarks.push(Self {
                    warns: true,
                    text: notice.to_string(),
                }),
                Notice::StaleBytecode { .. } => {
                    stale += 1;
                    if stale <= SHOWN {
                        remarks.push(note(format!("note: {notice}")));
                    }
                }
                _ => remarks.push(note(format!("note: {notice}"))),
            }
        }
        if stale > SHOWN {
            let rest = stale - SHOWN;
            remarks.push(note(format!(
                "note: and {rest} more compiled files that did not fit their sources"
            )));
        }
        remarks
    }

    /// Says it.
    pub(crate) fn say(&self, output: Output) {
        if self.warns {
            output.warn(&self.text);
        } else {
            output.note(&self.text);
        }
    }
}
