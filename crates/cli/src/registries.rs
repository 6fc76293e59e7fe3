//! The registry client, as the command line and the environment want it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use futures_util::future::BoxFuture;
use tierce_aws::{Aws, AwsSettings, CreateMissing, EcrControl, EcrCredentials, Identity, manners};
use tierce_image::BoxError;
use tierce_oci::{Repository, Tag};
use tierce_registry::{Client, ClientSettings, ControlPlane, FirstOf, PlainHttp};

use crate::arguments::{AwsArguments, RegistryArguments};
use crate::environment::Environment;
use crate::output::Output;
use crate::registries_file::Registries;

/// Makes the client of this run. Nothing is asked yet; the user's file of registries is read.
pub(crate) fn client(
    arguments: &RegistryArguments,
    create_repository: bool,
    environment: &Environment,
    output: Output,
) -> Result<Client> {
    let plain_http = if arguments.plain_http.is_empty() {
        PlainHttp::Loopback
    } else {
        PlainHttp::Hosts(arguments.plain_http.clone())
    };
    let create = if create_repository {
        CreateMissing::Yes
    } else {
        CreateMissing::No
    };
    let registries = Registries::load(&environment.registries)?;
    let aws = aws_of(&arguments.aws, &arguments.ca_file, registries.aws);
    Ok(Client::new(ClientSettings {
        hosts: registries.hosts,
        ca_files: arguments.ca_file.clone(),
        plain_http,
        // Whoever has logged in by hand means that login.
        credentials: Arc::new(FirstOf(vec![
            Arc::new(environment.credentials.clone()),
            Arc::new(EcrCredentials::new(aws.clone())),
        ])),
        control: Arc::new(Announced {
            control: EcrControl::new(aws, create),
            output,
        }),
        manners,
        unfinished_uploads: Some(environment.cache.join("uploads-1")),
        ..ClientSettings::default()
    })?)
}

/// The way to AWS. Nothing is asked yet; the user's file of registries is read.
pub(crate) fn aws(
    arguments: &AwsArguments,
    ca_files: &[PathBuf],
    environment: &Environment,
) -> Result<Aws> {
    let registries = Registries::load(&environment.registries)?;
    Ok(aws_of(arguments, ca_files, registries.aws))
}

fn aws_of(
    arguments: &AwsArguments,
    ca_files: &[PathBuf],
    of_hosts: BTreeMap<String, Identity>,
) -> Aws {
    Aws::new(AwsSettings {
        identity: Identity {
            profile: arguments.aws_profile.clone(),
            role: arguments.aws_role.clone(),
        },
        of_hosts,
        ca_files: ca_files.to_vec(),
    })
}

/// ECR's management, which tells the user what it makes.
#[derive(Debug)]
struct Announced {
    control: EcrControl,
    output: Output,
}

impl ControlPlane for Announced {
    fn exists<'a>(&'a self, repository: &'a Repository) -> BoxFuture<'a, Option<bool>> {
        self.control.exists(repository)
    }

    fn is_immutable<'a>(
        &'a self,
        repository: &'a Repository,
        tag: &'a Tag,
    ) -> BoxFuture<'a, Option<bool>> {
        self.control.is_immutable(repository, tag)
    }

    fn create<'a>(&'a self, repository: &'a Repository) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async move {
            let made = self.control.make(repository).await?;
            if made.as_ref().is_some_and(|made| made.is_new) {
                self.output
                    .note(&format!("made the repository {repository}"));
            }
            Ok(made.is_some())
        })
    }
}
