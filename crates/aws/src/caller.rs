//! The caller's own credentials, for a program that makes calls of its own.

use std::fmt;

use aws_credential_types::provider::ProvideCredentials as _;

use crate::error::AwsError;
use crate::session::Aws;

/// What is asked, where an error has to name it: nothing is asked of a service.
const ACTION: &str = "for credentials";

/// Who we are to AWS, as a program is told it by its environment.
#[derive(Clone)]
pub struct Caller {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`, if they are temporary.
    pub session_token: Option<String>,
    /// The region that was asked for, or the configured one.
    pub region: String,
}

impl fmt::Debug for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let region = &self.region;
        write!(formatter, "Caller(…, {region})")
    }
}

impl Aws {
    /// The credentials of the identity of the settings, as they are now: temporary ones end.
    ///
    /// Without `region` the configured one is told, and where none is configured that is an error.
    pub async fn caller(&self, region: Option<&str>) -> Result<Caller, AwsError> {
        let place = self.own_place(region).await?;
        let call = place.call(ACTION);
        let session = self.session(&place).await?;
        let provider = session
            .credentials_provider()
            .ok_or_else(|| AwsError::NoCredentials {
                identity: place.identity.clone(),
            })?;
        let found = provider
            .provide_credentials()
            .await
            .map_err(|error| call.without_credentials(&error))?;
        Ok(Caller {
            access_key_id: found.access_key_id().to_owned(),
            secret_access_key: found.secret_access_key().to_owned(),
            session_token: found.session_token().map(str::to_owned),
            region: place.region.clone(),
        })
    }
}
