//! The SDK, set up when something of AWS is first needed, and not before.
//!
//! Here, and nowhere else outside of `cli`, the environment is read: the standard chain of
//! credentials and settings is the SDK's own, and people rely on all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig, imds, profile};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_types::service_config::ServiceConfigKey;
use tokio::sync::OnceCell;

use crate::error::{AwsError, Call};
use crate::host::EcrHost;
use crate::http::Http;

/// Under which name sessions of assumed roles appear in logs of the account.
const ROLE_SESSION: &str = "tierce";

/// The only region that gives tokens for ECR Public.
const PUBLIC_REGION: &str = "us-east-1";

/// How long the instance metadata service may take. It is next door or not there at all, and every
/// run on another machine without credentials waits for it.
const METADATA_PATIENCE: Duration = Duration::from_secs(1);

/// As whom AWS is asked. What is not said is up to the standard chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Identity {
    /// A profile of the shared config files.
    pub profile: Option<String>,
    /// The ARN of a role to assume.
    pub role: Option<String>,
}

impl Identity {
    /// The same, with what `other` says where this says nothing.
    fn or(&self, other: Option<&Self>) -> Self {
        Self {
            profile: self
                .profile
                .clone()
                .or_else(|| other.and_then(|other| other.profile.clone())),
            role: self
                .role
                .clone()
                .or_else(|| other.and_then(|other| other.role.clone())),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.role, &self.profile) {
            (Some(role), Some(profile)) => {
                write!(formatter, "the role `{role}` by the profile `{profile}`")
            }
            (Some(role), None) => write!(formatter, "the role `{role}`"),
            (None, Some(profile)) => write!(formatter, "the profile `{profile}`"),
            (None, None) => formatter.write_str("the standard chain"),
        }
    }
}

/// How AWS is reached.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// As whom, at every registry.
    pub identity: Identity,
    /// As whom at the registry of that host, where `identity` does not say.
    pub of_hosts: BTreeMap<String, Identity>,
    /// PEM files with certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
}

/// The way to AWS. Making one costs nothing; clones share what they have learnt.
#[derive(Debug, Clone)]
pub struct Aws {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: AwsSettings,
    http: OnceCell<Http>,
    /// By identity and region.
    sessions: Mutex<BTreeMap<(Identity, String), Session>>,
}

/// Set up by the first who needs it.
type Session = Arc<OnceCell<SdkConfig>>;

/// Where a request goes, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) identity: Identity,
    pub(crate) region: String,
    fips: bool,
    dual_stack: bool,
}

impl Place {
    pub(crate) fn call(&self, action: &'static str) -> Call<'_> {
        Call {
            action,
            region: &self.region,
            identity: &self.identity,
        }
    }
}

impl Aws {
    /// Takes settings. Nothing is read or asked yet.
    pub fn new(settings: AwsSettings) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                http: OnceCell::new(),
                sessions: Mutex::default(),
            }),
        }
    }

    /// The place that looks after the registry `host`.
    pub(crate) fn place_of(&self, host: &EcrHost) -> Place {
        let settings = &self.shared.settings;
        let of_host = settings.of_hosts.get(&host.to_string());
        Place {
            identity: settings.identity.or(of_host),
            region: host.region().to_owned(),
            fips: host.is_fips(),
            dual_stack: host.is_dual_stack(),
        }
    }

    /// The place that gives tokens for ECR Public, which is called `host`.
    pub(crate) fn public_place(&self, host: &str) -> Place {
        let settings = &self.shared.settings;
        Place {
            identity: settings.identity.or(settings.of_hosts.get(host)),
            region: PUBLIC_REGION.to_owned(),
            fips: false,
            dual_stack: false,
        }
    }

    /// The place that the caller's own registry is at: in `region`, else in the configured one.
    pub(crate) async fn own_place(&self, region: Option<&str>) -> Result<Place, AwsError> {
        let identity = self.shared.settings.identity.clone();
        let region = match region {
            Some(region) => region.to_owned(),
            None => configured_region(&identity, self.http().await?)
                .await
                .ok_or_else(|| AwsError::NoRegion {
                    profile: identity.profile.clone(),
                })?,
        };
        Ok(Place {
            identity,
            region,
            fips: false,
            dual_stack: false,
        })
    }

    pub(crate) async fn ecr(&self, place: &Place) -> Result<aws_sdk_ecr::Client, AwsError> {
        let session = self.session(place).await?;
        let mut config = aws_sdk_ecr::config::Builder::from(&session);
        if has_own_endpoint(&session, "ECR") {
            // There is no such endpoint in another form, and the SDK refuses to think of one.
            config.set_use_fips(None);
            config.set_use_dual_stack(None);
        } else {
            if place.fips {
                config = config.use_fips(true);
            }
            if place.dual_stack {
                config = config.use_dual_stack(true);
            }
        }
        Ok(aws_sdk_ecr::Client::from_conf(config.build()))
    }

    pub(crate) async fn ecr_public(
        &self,
        place: &Place,
    ) -> Result<aws_sdk_ecrpublic::Client, AwsError> {
        Ok(aws_sdk_ecrpublic::Client::new(&self.session(place).await?))
    }

    pub(crate) async fn lambda(&self, place: &Place) -> Result<aws_sdk_lambda::Client, AwsError> {
        Ok(aws_sdk_lambda::Client::new(&self.session(place).await?))
    }

    pub(crate) async fn session(&self, place: &Place) -> Result<SdkConfig, AwsError> {
        let key = (place.identity.clone(), place.region.clone());
        let cell = {
            let mut sessions = self
                .shared
                .sessions
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            Arc::clone(sessions.entry(key).or_default())
        };
        let begin = || self.begin(&place.identity, &place.region);
        Ok(cell.get_or_try_init(begin).await?.clone())
    }

    async fn begin(&self, identity: &Identity, region: &str) -> Result<SdkConfig, AwsError> {
        let http = self.http().await?;
        let region = Region::new(region.to_owned());
        let provider_config = ProviderConfig::without_region()
            .with_region(Some(region.clone()))
            .with_http_client(http.by_place.clone());
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(region.clone())
            .http_client(http.by_place.clone())
            .retry_config(RetryConfig::standard().with_max_attempts(4))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(10))
                    .operation_attempt_timeout(Duration::from_secs(20))
                    .operation_timeout(Duration::from_mins(1))
                    .build(),
            );
        let provider = match &identity.profile {
            // Whoever names a profile means it, and not what the environment has: so do AWS's tools.
            Some(profile) => {
                loader = loader.profile_name(profile);
                let provider = ProfileFileCredentialsProvider::builder()
                    .configure(&provider_config)
                    .profile_name(profile)
                    .build();
                SharedCredentialsProvider::new(provider)
            }
            None => {
                let chain = standard_chain(provider_config, http, region).await;
                SharedCredentialsProvider::new(chain)
            }
        };
        let session = loader.credentials_provider(provider).load().await;
        let Some(role) = &identity.role else {
            return Ok(session);
        };
        let assumed = AssumeRoleProvider::builder(role)
            .session_name(ROLE_SESSION)
            .configure(&session)
            .build()
            .await;
        // Built anew, so that no credentials of the base are left in a cache.
        let provider = SharedCredentialsProvider::new(assumed);
        let cache = aws_config::identity::IdentityCache::lazy().build();
        Ok(session
            .into_builder()
            .credentials_provider(provider)
            .identity_cache(cache)
            .build())
    }

    async fn http(&self) -> Result<&Http, AwsError> {
        let read = || Http::new(&self.shared.settings.ca_files);
        self.shared.http.get_or_try_init(read).await
    }
}

/// Environment, config files, web identity, container, instance.
async fn standard_chain(
    config: ProviderConfig,
    http: &Http,
    region: Region,
) -> DefaultCredentialsChain {
    DefaultCredentialsChain::builder()
        .configure(config)
        .region(region)
        .imds_client(metadata(http))
        .build()
        .await
}

/// The region that the environment, the profile or the instance names.
async fn configured_region(identity: &Identity, http: &Http) -> Option<String> {
    let mut profile = profile::region::Builder::default();
    if let Some(name) = &identity.profile {
        profile = profile.profile_name(name);
    }
    let instance = imds::region::Builder::default().imds_client(metadata(http));
    let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build())
        .or_else(instance.build());
    Some(chain.region().await?.to_string())
}

/// The instance metadata service, asked once: it is on this machine's own network or nowhere.
fn metadata(http: &Http) -> imds::Client {
    let config = ProviderConfig::without_region().with_http_client(http.direct.clone());
    imds::Client::builder()
        .configure(&config)
        .max_attempts(1)
        .connect_timeout(METADATA_PATIENCE)
        .read_timeout(METADATA_PATIENCE)
        .build()
}

/// Whether the user names the endpoint of that service: `AWS_ENDPOINT_URL`, its variant for the
/// service, or the same in a profile.
fn has_own_endpoint(session: &SdkConfig, service: &str) -> bool {
    let of_service = || {
        let key = ServiceConfigKey::builder()
            .service_id(service)
            .env("AWS_ENDPOINT_URL")
            .profile("endpoint_url")
            .build()
            .ok()?;
        session.service_config()?.load_config(key)
    };
    session.endpoint_url().is_some() || of_service().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(profile: Option<&str>, role: Option<&str>) -> Identity {
        Identity {
            profile: profile.map(str::to_owned),
            role: role.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_said_for_all_comes_before_what_is_said_for_one() {
        let host = EcrHost::parse("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com").unwrap();
        for (all, one, expected) in [
            (identity(None, None), None, identity(None, None)),
            (
                identity(None, None),
                Some(identity(Some("p"), Some("r"))),
                identity(Some("p"), Some("r")),
            ),
            (
                identity(Some("a"), None),
                Some(identity(Some("p"), Some("r"))),
                identity(Some("a"), Some("r")),
            ),
        ] {
            let of_hosts = one.map(|one| (host.to_string(), one));
            let aws = Aws::new(AwsSettings {
                identity: all,
                of_hosts: of_hosts.into_iter().collect(),
                ca_files: Vec::new(),
            });
            let place = aws.place_of(&host);
            assert_eq!(place.identity, expected);
            assert_eq!((place.region.as_str(), place.fips), ("us-east-1", true));
        }
    }

    #[test]
    fn identities_are_named() {
        for (identity, shown) in [
            (identity(None, None), "the standard chain"),
            (identity(Some("p"), None), "the profile `p`"),
            (identity(None, Some("r")), "the role `r`"),
            (
                identity(Some("p"), Some("r")),
                "the role `r` by the profile `p`",
            ),
        ] {
            assert_eq!(identity.to_string(), shown);
        }
    }
}
