//! What is run: the function that a local Lambda pretends an image to be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::payload::Payloads;

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
