//! What is run: the function that a local Lambda pretends an image to be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A function, as `CreateFunction` would know it. All of it is decided before anything starts.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its name; `function` unless the user says otherwise, as clients of the emulators expect.
    pub name: String,
    /// `$LATEST` unless the user says otherwise.
    pub version: String,
    /// The account in its ARN.
    pub account: String,
    /// The region in its ARN and environment.
    pub region: String,
    /// In MiB.
    pub memory: u32,
    /// How long an invocation may take.
    pub timeout: Duration,
    /// How long the first initialisation may take: 10 s on Lambda.
    pub init_limit: Duration,
    /// What events and answers may be.
    pub payloads: Payloads,
    /// ENTRYPOINT then CMD, overridden as `ImageConfig` does. Never empty.
    pub command: Vec<String>,
    /// What `_HANDLER` says: the last argument of [`Function::command`] if there are two or more.
    pub handler: Option<String>,
    /// External extensions: the executable files of `/opt/extensions` of the image, absolute in it.
    pub extensions: Vec<String>,
    /// Where it starts: WORKDIR, `/` if there is none.
    pub directory: String,
    /// ENV of the image, by name.
    pub image_environment: BTreeMap<String, String>,
    /// What the function is configured with: `-e` and `--env-file`; wins over the image.
    pub environment: BTreeMap<String, String>,
    /// What the service would give it, if the user asked for it.
    pub credentials: Option<Credentials>,
}

impl Function {
    /// `arn:aws:lambda:REGION:ACCOUNT:function:NAME`.
    pub fn arn(&self) -> String {
        format!(
            "arn:aws:lambda:{}:{}:function:{}",
            self.region, self.account, self.name
        )
    }
}

/// Credentials for the function's own calls to AWS. They are never shown.
#[derive(Clone)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`, if they are temporary.
    pub session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials(…)")
    }
}

/// What events and answers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payloads {
    /// As Lambda takes them: events are JSON, and both have its lengths.
    AsOnLambda,
    /// Events may be something else, and both be longer: up to 256 MiB. An event that
    /// is not waited for is as long as on Lambda, since many of those are kept.
    Any,
}

/// Of an event whose answer is waited for; "6 MB" in the quotas, which the service counts as 6 MiB.
const SYNCHRONOUS: usize = 6_291_456;
/// Of an answer that comes as a whole: 6 MiB and 100 bytes, which Lambda's own message about it says,
/// and which its emulator has as a constant.
const ANSWER: usize = 6 * 1024 * 1024 + 100;
/// Of a streamed one (Lambda quotas, "Invocation payload, streamed responses").
const STREAM: usize = 200 * 1024 * 1024;

impl Payloads {
    /// The most bytes of an event that is taken for later: "1 MB" in the quotas, where it was 256 KB
    /// (262,144 bytes) before.
    pub(crate) const ASYNCHRONOUS: usize = 1_048_576;
    /// The most bytes of any event or answer: all of one is in memory.
    pub(crate) const LONGEST: usize = 256 * 1024 * 1024;

    /// Whether events must be JSON.
    pub(crate) fn are_json(self) -> bool {
        self == Self::AsOnLambda
    }

    /// The most bytes of an event whose answer is waited for.
    pub(crate) fn synchronous(self) -> usize {
        self.or_longest(SYNCHRONOUS)
    }

    /// The most bytes of an answer that comes as a whole.
    pub(crate) fn answer(self) -> usize {
        self.or_longest(ANSWER)
    }

    /// The most bytes of a streamed answer.
    pub(crate) fn stream(self) -> usize {
        self.or_longest(STREAM)
    }

    fn or_longest(self, limit: usize) -> usize {
        match self {
            Self::AsOnLambda => limit,
            Self::Any => Self::LONGEST,
        }
    }
}
