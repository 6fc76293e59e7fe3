//! How long events and answers may be.

/// What may be in events and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Payloads {
    /// As Lambda takes them: events are JSON, and both have its lengths.
    #[default]
    AsOnLambda,
    /// Whatever they are, up to 1 GiB; the emulators pass on events that are no JSON, too.
    Any,
}

/// Of an event whose answer is waited for; "6 MB" in the quotas, which the service counts as 6 MiB.
const SYNCHRONOUS: usize = 6_291_456;
/// Of another one: "1 MB" in the quotas, where it was 256 KB (262,144 bytes) before.
const ASYNCHRONOUS: usize = 1_048_576;
/// Of an answer that comes as a whole: 6 MiB and 100 bytes, which Lambda's own message about it says,
/// and which its emulator has as a constant.
const ANSWER: u64 = 6 * 1024 * 1024 + 100;
/// Of a streamed one (Lambda quotas, "Invocation payload, streamed responses").
const STREAM: u64 = 200 * 1024 * 1024;
/// Where nothing is asked of them: a function that never stops answering must end somewhere.
const ANY: u32 = 1 << 30;

impl Payloads {
    /// Whether events must be JSON.
    pub(crate) fn are_json(self) -> bool {
        self == Self::AsOnLambda
    }

    /// The most bytes of an event whose answer is waited for.
    pub(crate) fn synchronous(self) -> usize {
        match self {
            Self::AsOnLambda => SYNCHRONOUS,
            Self::Any => ANY as usize,
        }
    }

    /// The most bytes of an event that is taken for later.
    pub(crate) fn asynchronous(self) -> usize {
        match self {
            Self::AsOnLambda => ASYNCHRONOUS,
            Self::Any => ANY as usize,
        }
    }

    /// The most bytes of an answer that comes as a whole.
    pub(crate) fn answer(self) -> u64 {
        match self {
            Self::AsOnLambda => ANSWER,
            Self::Any => ANY.into(),
        }
    }

    /// The most bytes of a streamed answer.
    pub(crate) fn stream(self) -> u64 {
        match self {
            Self::AsOnLambda => STREAM,
            Self::Any => ANY.into(),
        }
    }
}
