//! Image and flags, worked out into the function that the runner is given.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tierce_aws::{AwsError, Caller};
use tierce_oci::ImageConfig;
use tierce_runner::function::{Credentials, Function, Payloads};

use crate::arguments::{AwsArguments, RegistryArguments};
use crate::environment::Environment;
use crate::output::Output;
use crate::registries;
use crate::run::arguments::{FunctionArguments, FunctionName, TimeLimit};
use crate::run::env_file;
use crate::run::image_config::{Overrides, Start, image_environment};

/// The account in a function's ARN: the one of AWS's emulator, and nobody's.
const ACCOUNT: &str = "012345678912";

/// Where a function believes to be when nothing says it: as with AWS's emulator.
const REGION: &str = "us-east-1";

/// What stands for no limit: longer than anybody waits, and short enough to be added to a time.
const NO_LIMIT: Duration = Duration::from_hours(365 * 24);

/// Bytes of all variables that a function is configured with (Lambda quotas). How exactly they are
/// counted is not documented.
const VARIABLES_LIMIT: usize = 4096;

/// What a function is told besides what its image says. It is settled once: a function that is
/// built anew goes on with it.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    name: FunctionName,
    payloads: Payloads,
    environment: std::collections::BTreeMap<String, String>,
    region: String,
    credentials: Option<Credentials>,
}

impl Surroundings {
    /// Reads the files and asks for the credentials that `arguments` name.
    pub(crate) async fn settle(
        name: &FunctionName,
        payloads: Payloads,
        arguments: &FunctionArguments,
        registry: &RegistryArguments,
        environment: &Environment,
        output: Output,
    ) -> Result<Self> {
        let variables =
            env_file::settle(&arguments.env_file, &arguments.env, &environment.variables)?;
        let size: usize = variables
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if size > VARIABLES_LIMIT {
            output.warn(&format!(
                "the function's own variables have {size} bytes, and Lambda takes {VARIABLES_LIMIT}"
            ));
        }
        let wants_credentials = arguments.aws_credentials || arguments.profile.is_some();
        let caller = if wants_credentials {
            Some(Box::pin(caller(arguments, registry, environment)).await?)
        } else {
            None
        };
        let here = ["AWS_REGION", "AWS_DEFAULT_REGION"].map(|name| {
            let value = environment.variables.get(name);
            value.and_then(std::ffi::OsStr::to_str).map(str::to_owned)
        });
        let region = caller.as_ref().map(|caller| caller.region.clone());
        let region = arguments.region.clone().or(region);
        let region = here.into_iter().fold(region, Option::or);
        Ok(Self {
            name: name.clone(),
            payloads,
            environment: variables,
            region: region.unwrap_or_else(|| REGION.to_owned()),
            credentials: caller.map(|caller| Credentials {
                access_key_id: caller.access_key_id,
                secret_access_key: caller.secret_access_key,
                session_token: caller.session_token,
            }),
        })
    }

    /// The function that an image with this config is. `extensions` are those of the image.
    pub(crate) fn function(
        &self,
        config: &ImageConfig,
        arguments: &FunctionArguments,
        extensions: Vec<String>,
    ) -> Result<Function> {
        let start = Start::of(
            config,
            &Overrides {
                entrypoint: &arguments.entrypoint,
                cmd: &arguments.cmd,
                working_dir: arguments.workdir.as_deref(),
            },
        )?;
        let limit = |limit: TimeLimit| limit.0.unwrap_or(NO_LIMIT);
        Ok(Function {
            name: self.name.0.clone(),
            version: "$LATEST".to_owned(),
            account: ACCOUNT.to_owned(),
            region: self.region.clone(),
            memory: arguments.memory,
            timeout: limit(arguments.timeout),
            init_limit: limit(arguments.init_timeout),
            payloads: self.payloads,
            command: start.command,
            handler: start.handler,
            extensions,
            directory: start.directory,
            image_environment: image_environment(config),
            environment: self.environment.clone(),
            credentials: self.credentials.clone(),
        })
    }
}

/// The credentials that the function is to have.
async fn caller(
    arguments: &FunctionArguments,
    registry: &RegistryArguments,
    environment: &Environment,
) -> Result<Caller> {
    let identity = AwsArguments {
        aws_profile: arguments.profile.clone(),
        aws_role: None,
    };
    let aws = registries::aws(&identity, &registry.ca_file, environment)?;
    let caller = match aws.caller(arguments.region.as_deref()).await {
        Err(AwsError::NoRegion { .. }) => aws.caller(Some(REGION)).await,
        caller => caller,
    };
    caller.context("could not get credentials for the function")
}
