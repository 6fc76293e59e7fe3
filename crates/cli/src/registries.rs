//! The registry client, as the command line and the environment want it.

use std::sync::Arc;

use anyhow::Result;
use tierce_registry::{Client, ClientSettings, PlainHttp};

use crate::arguments::RegistryArguments;
use crate::environment::Environment;
use crate::registries_file::Registries;

/// Makes the client of this run. Nothing is asked yet; the user's file of registries is read.
pub(crate) fn client(arguments: &RegistryArguments, environment: &Environment) -> Result<Client> {
    let plain_http = if arguments.plain_http.is_empty() {
        PlainHttp::Loopback
    } else {
        PlainHttp::Hosts(arguments.plain_http.clone())
    };
    let registries = Registries::load(&environment.registries)?;
    Ok(Client::new(ClientSettings {
        hosts: registries.hosts,
        ca_files: arguments.ca_file.clone(),
        plain_http,
        credentials: Arc::new(environment.credentials.clone()),
        unfinished_uploads: Some(environment.cache.join("uploads-1")),
        ..ClientSettings::default()
    })?)
}
