//! `tierce ecr`: repositories of ECR, made, shown and tidied, and logins for other tools.

use std::collections::BTreeMap;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use tierce_aws::{
    Aws, AwsError, DeleteReason, Deletion, EcrRegistry, Encryption, Functions, Image, KeepReason,
    Kept, LifecyclePolicy, Login, PrunePlan, PruneRules, Repositories, RepositoryDescription,
    RepositoryWishes, Wildcard, digests_in_use,
};
use tierce_oci::{Digest, Timestamp};
use tierce_registry::{Client, ClientSettings};

use crate::arguments::{
    EcrCommand, EcrCreateArguments, EcrDescribeArguments, EcrLoginArguments, EcrOptions,
    EcrPruneArguments, EncryptionKind,
};
use crate::diagnostic::{Hinted as _, UsageError};
use crate::docker_config::{self, Stored};
use crate::ecr_name::EcrRepositoryName;
use crate::environment::Environment;
use crate::output::{Output, describe_size};
use crate::registries;

/// Runs `tierce ecr`.
pub(crate) async fn ecr(
    command: EcrCommand,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    match command {
        EcrCommand::Create(arguments) => create(&arguments, environment, output).await,
        EcrCommand::Login(arguments) => login(arguments, environment, output).await,
        EcrCommand::Prune(arguments) => prune(&arguments, environment, output).await,
        EcrCommand::Describe(arguments) => describe(&arguments, environment, output).await,
    }
}

fn open_aws(options: &EcrOptions, environment: &Environment) -> Result<Aws> {
    // Made for the sake of what it says about authorities that cannot be used.
    drop(Client::new(ClientSettings {
        ca_files: options.ca_file.clone(),
        ..ClientSettings::default()
    })?);
    registries::aws(&options.aws, &options.ca_file, environment)
}

async fn open(
    name: &EcrRepositoryName,
    options: &EcrOptions,
    environment: &Environment,
) -> Result<Repositories> {
    let aws = open_aws(options, environment)?;
    Ok(match &name.host {
        Some(host) => {
            if let Some(region) = &options.region
                && region != host.region()
            {
                return Err(
                    UsageError(format!("--region {region} is not that of `{host}`")).into(),
                );
            }
            Repositories::at(&aws, host).await?
        }
        None => Repositories::own(&aws, options.region.as_deref()).await?,
    })
}

async fn create(
    arguments: &EcrCreateArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let wishes = wishes(arguments)?;
    let name = &arguments.repository;
    let repositories = open(name, &arguments.options, environment).await?;
    let made = repositories
        .create(&name.path, &wishes)
        .await
        .with_context(|| format!("could not make the repository `{}`", name.path))?;
    let uri = &made.description.uri;
    output.note(&match (made.is_new, &made.changed[..]) {
        (true, _) => format!("made {uri}"),
        (false, []) => format!("{uri} was there"),
        (false, changed) => format!("{uri} was there; set: {}", changed.join(", ")),
    });
    if output.json {
        let mut shown = shown(&made.description);
        shown["created"] = made.is_new.into();
        shown["changed"] = json!(made.changed);
        return output.result_json(&shown);
    }
    output.result_line(uri)
}

fn wishes(arguments: &EcrCreateArguments) -> Result<RepositoryWishes> {
    let encryption = match (arguments.encryption, &arguments.kms_key) {
        (Some(EncryptionKind::Aes256), Some(_)) => {
            let text = "--kms-key needs --encryption kms".to_owned();
            return Err(UsageError(text).into());
        }
        (Some(EncryptionKind::Aes256), None) => Some(Encryption::aes256()),
        (Some(EncryptionKind::Kms), key) => Some(Encryption::kms(key.clone())),
        (None, Some(key)) => Some(Encryption::kms(Some(key.clone()))),
        (None, None) => None,
    };
    let lifecycle_policy = match &arguments.lifecycle_policy {
        Some(path) => {
            let text = fs::read_to_string(path)
                .with_context(|| format!("could not read {}", path.display()))?;
            let policy = LifecyclePolicy::parse(&text);
            Some(policy.with_context(|| format!("{} is no lifecycle policy", path.display()))?)
        }
        None => None,
    };
    let tags = arguments.resource_tag.iter();
    Ok(RepositoryWishes {
        immutable_tags: arguments.immutable_tags,
        scan_on_push: arguments.scan_on_push,
        encryption,
        resource_tags: tags
            .map(|tag| (tag.name.clone(), tag.value.clone()))
            .collect(),
        lifecycle_policy,
    })
}

fn shown(description: &RepositoryDescription) -> Value {
    json!({
        "repository": description.uri,
        "arn": description.arn,
        "createdAt": description.created,
        "tagMutability": description.mutability.to_string(),
        "scanOnPush": description.scan_on_push,
        "encryption": {
            "type": description.encryption.kind,
            "kmsKey": description.encryption.key,
        },
    })
}

async fn login(
    arguments: EcrLoginArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    if arguments.print && output.json {
        let text = "--print prints the password and nothing else: leave out --json".to_owned();
        return Err(UsageError(text).into());
    }
    let aws = open_aws(&arguments.options, environment)?;
    let region = arguments.options.region;
    let registry = match (arguments.registry, region) {
        (Some(name), None) => name.0,
        (Some(_), Some(_)) => {
            let text = "a registry has its own region: leave out --region".to_owned();
            return Err(UsageError(text).into());
        }
        (None, region) => EcrRegistry::Own { region },
    };
    let login = Login::get(&aws, &registry)
        .await
        .context("could not get a token of ECR")?;
    if arguments.print {
        return output.result_line(login.password.expose());
    }
    let file = arguments
        .auth_file
        .or_else(|| environment.docker_config.clone());
    let file = file
        .ok_or_else(|| anyhow!("there is no home directory to keep logins in"))
        .hint("name a file with `--auth-file`, or set DOCKER_CONFIG")?;
    let stored = docker_config::store(&file, &login, &environment.credentials.helper_path)
        .await
        .with_context(|| format!("could not keep the login for {}", login.registry))?;
    let place = match &stored {
        Stored::File(path) => path.display().to_string(),
        Stored::Helper(name) => format!("docker-credential-{name}"),
    };
    let until = login
        .expires
        .map_or_else(String::new, |end| format!(", until {end}"));
    output.note(&format!(
        "logged in to {} in {place}{until}",
        login.registry
    ));
    if output.json {
        let (file, helper) = match &stored {
            Stored::File(path) => (Some(path), None),
            Stored::Helper(name) => (None, Some(name)),
        };
        return output.result_json(&json!({
            "registry": login.registry,
            "username": login.username,
            "file": file,
            "helper": helper,
            "expiresAt": login.expires,
        }));
    }
    Ok(())
}

async fn prune(
    arguments: &EcrPruneArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    if arguments.keep.is_none() && arguments.older_than.is_none() {
        return Err(UsageError("what may go is not said".to_owned()))
            .hint("say it with --keep N, --older-than AGE, or both");
    }
    let name = &arguments.repository;
    let repositories = open(name, &arguments.options, environment).await?;
    let description = repositories.describe(&name.path).await?;
    let rules = PruneRules {
        keep: arguments.keep,
        older_than: arguments.older_than.map(|age| age.0),
        now: now(),
        protected_tags: arguments.protect.iter().map(Wildcard::new).collect(),
    };
    let pruning = Pruning {
        arguments,
        repositories: &repositories,
        uri: &description.uri,
        rules: &rules,
    };
    let plan = pruning.plan().await?;
    if arguments.dry_run || plan.deletions.is_empty() {
        return pruning.report(&plan.deletions, &plan.kept, &[], output);
    }
    // Read again, right before: a function may have been deployed in the meantime.
    let again = pruning.plan().await?;
    let deletions = plan.agreed(&again);
    let (done, end) = repositories.delete_in_order(&name.path, &deletions).await;
    let (deleted, rest): (Vec<Deletion>, Vec<Deletion>) = deletions
        .into_iter()
        .partition(|deletion| done.deleted.contains(&deletion.image.digest));
    if let Err(error) = end {
        if deleted.is_empty() && done.failures.is_empty() {
            return Err(error.into());
        }
        // What is gone is gone, and must be told.
        pruning.report(&deleted, &again.kept, &done.failures, output)?;
        let left = rest.len() - done.absent.len();
        return Err(error).with_context(|| format!("{} could not be deleted", counted(left)));
    }
    pruning.report(&deleted, &again.kept, &done.failures, output)?;
    match done.failures.len() {
        0 => Ok(()),
        1 => bail!("an image could not be deleted"),
        count => bail!("{count} images could not be deleted"),
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    let parsed = seconds.to_string().parse();
    parsed.unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What a prune is about.
struct Pruning<'a> {
    arguments: &'a EcrPruneArguments,
    repositories: &'a Repositories,
    uri: &'a str,
    rules: &'a PruneRules,
}

impl Pruning<'_> {
    /// Reads what is there and what runs, and chooses.
    async fn plan(&self) -> Result<PrunePlan> {
        let path = &self.arguments.repository.path;
        // Functions after images: one that was deployed between the two is seen.
        let images = self.repositories.images(path).await?;
        let images = self.repositories.read_relations(path, images).await?;
        let used = self.used().await?;
        Ok(PrunePlan::make(&images, &used, self.rules))
    }

    async fn used(&self) -> Result<BTreeMap<Digest, String>> {
        const HINT: &str = "`--without-functions` prunes without knowing what functions run";
        let functions = Functions::beside(self.repositories).await?;
        let mut uses = Vec::new();
        for name in &self.arguments.function {
            let found = functions.uses_of_function(name).await;
            uses.extend(found.with_context(|| format!("could not see what {name} runs"))?);
        }
        if !self.arguments.without_functions {
            if !self.repositories.is_own().await? {
                let error = anyhow!(
                    "{} belongs to another account, whose functions cannot be listed from here",
                    self.uri
                );
                return Err(error).hint(
                    "ask as a role of that account with `--aws-role`, or name its functions with \
                     `--function ARN` beside `--without-functions`",
                );
            }
            let found = functions.uses().await;
            let found = found.context("could not see what functions run");
            uses.extend(found.hint(HINT)?);
        }
        digests_in_use(&uses, self.uri).hint(HINT)
    }

    fn report(
        &self,
        deletions: &[Deletion],
        kept: &[Kept],
        failures: &[tierce_aws::Failure],
        output: Output,
    ) -> Result<()> {
        let dry_run = self.arguments.dry_run;
        for failure in failures {
            output.warn(&format!(
                "{} stays: {} {}",
                failure.digest, failure.code, failure.reason
            ));
        }
        let size = deletions
            .iter()
            .filter_map(|deletion| deletion.image.size)
            .fold(0, u64::saturating_add);
        output.note(&format!(
            "{}{} of up to {}, kept {}",
            if dry_run { "would delete " } else { "deleted " },
            counted(deletions.len()),
            describe_size(size),
            counted(kept.len()),
        ));
        if output.json {
            let image = |image: &Image, reason: String| {
                json!({
                    "digest": image.digest,
                    "tags": image.tags,
                    "pushedAt": image.pushed,
                    "size": image.size,
                    "reason": reason,
                })
            };
            let gone = deletions.iter();
            let gone = gone.map(|it| image(&it.image, self.why_gone(it.reason)));
            let kept = kept.iter();
            let kept = kept.map(|it| image(&it.image, why_kept(&it.reason)));
            let failures = failures.iter().map(|failure| {
                json!({
                    "digest": failure.digest,
                    "code": failure.code,
                    "reason": failure.reason,
                })
            });
            return output.result_json(&json!({
                "repository": self.uri,
                "dryRun": dry_run,
                "deleted": gone.collect::<Vec<_>>(),
                "kept": kept.collect::<Vec<_>>(),
                "failures": failures.collect::<Vec<_>>(),
            }));
        }
        if deletions.is_empty() {
            return Ok(());
        }
        let mut table = table(&["image", "tags", "pushed", "size", "why"]);
        for deletion in deletions {
            let mut row = row(&deletion.image);
            row.push(self.why_gone(deletion.reason));
            table.add_row(row);
        }
        output.result_line(&table.trim_fmt())
    }

    fn why_gone(&self, reason: DeleteReason) -> String {
        match reason {
            DeleteReason::Rules => {
                let number = self
                    .rules
                    .keep
                    .map(|keep| format!("not among the newest {keep}"));
                let age = self
                    .rules
                    .older_than
                    .map(|age| format!("older than {}", describe_age(age.as_secs())));
                let reasons: Vec<String> = [number, age].into_iter().flatten().collect();
                reasons.join(", ")
            }
            DeleteReason::ChildOf(index) => format!("part of {}", index.short()),
            DeleteReason::RefersTo(subject) => format!("refers to {}", subject.short()),
        }
    }
}

fn why_kept(reason: &KeepReason) -> String {
    match reason {
        KeepReason::Function(function) => format!("run by {function}"),
        KeepReason::Tag(tag) => format!("the tag {tag} is protected"),
        KeepReason::Newest => "among the newest".to_owned(),
        KeepReason::Young => "too young".to_owned(),
        KeepReason::Undated => "of unknown age".to_owned(),
        KeepReason::ChildOf(index) => format!("part of {}", index.short()),
        KeepReason::ParentOf(child) => format!("holds {}", child.short()),
        KeepReason::RefersTo(subject) => format!("refers to {}", subject.short()),
    }
}

fn describe_age(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let unit = UNITS
        .iter()
        .find(|(length, _)| seconds.is_multiple_of(*length));
    let (length, name) = unit.unwrap_or(&(1, "second"));
    let number = seconds / length;
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {name}{plural}")
}

/// How many images a description lists; all that there are would be a hundred thousand.
const LISTED: usize = 10;

async fn describe(
    arguments: &EcrDescribeArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let name = &arguments.repository;
    let repositories = open(name, &arguments.options, environment).await?;
    let description = repositories.describe(&name.path).await?;
    let policy = told(repositories.lifecycle_policy(&name.path).await)?;
    let tags = told(repositories.resource_tags(&description.arn).await)?;
    let mut images = repositories.images(&name.path).await?;
    images.sort_by_key(|image| std::cmp::Reverse((image.pushed, image.digest)));
    let tagged = images.iter().filter(|image| !image.tags.is_empty()).count();
    let size = images
        .iter()
        .filter_map(|image| image.size)
        .fold(0, u64::saturating_add);
    if output.json {
        let mut shown = shown(&description);
        // Text that is not JSON is shown as it is.
        shown["lifecyclePolicy"] = policy.flatten().map_or(Value::Null, |policy| {
            serde_json::from_str(&policy).unwrap_or(Value::String(policy))
        });
        shown["resourceTags"] = json!(tags);
        let newest = images.iter().take(LISTED).map(|image| {
            json!({
                "digest": image.digest,
                "tags": image.tags,
                "pushedAt": image.pushed,
                "size": image.size,
                "mediaType": image.media_type,
            })
        });
        shown["images"] = json!({
            "count": images.len(),
            "tagged": tagged,
            "size": size,
            "newest": newest.collect::<Vec<_>>(),
        });
        return output.result_json(&shown);
    }
    let line = |name: &str, value: &str| output.result_line(&format!("{name:<17}{value}"));
    line("repository", &description.uri)?;
    if let Some(created) = description.created {
        line("created", &created.to_string())?;
    }
    line("tags", &description.mutability.to_string())?;
    line(
        "scan on push",
        if description.scan_on_push {
            "yes"
        } else {
            "no"
        },
    )?;
    line("encryption", &description.encryption.to_string())?;
    line(
        "lifecycle policy",
        &match policy {
            None => HIDDEN.to_owned(),
            Some(None) => "none".to_owned(),
            Some(Some(policy)) => describe_policy(&policy),
        },
    )?;
    match tags {
        None => line("resource tags", HIDDEN)?,
        Some(tags) => {
            for (key, value) in tags {
                line("resource tag", &format!("{key}={value}"))?;
            }
        }
    }
    line(
        "images",
        &format!(
            "{}, {tagged} tagged, up to {}",
            counted(images.len()),
            describe_size(size)
        ),
    )?;
    if images.is_empty() {
        return Ok(());
    }
    let mut table = table(&["image", "tags", "pushed", "size"]);
    for image in images.iter().take(LISTED) {
        table.add_row(row(image));
    }
    output.result_line(&table.trim_fmt())?;
    match images.len().saturating_sub(LISTED) {
        0 => Ok(()),
        older => output.result_line(&format!("and {} that are older", counted(older))),
    }
}

/// What stands for what could not be asked.
const HIDDEN: &str = "not for these credentials to see";

/// What may be asked by some and not by others.
fn told<T>(answer: Result<T, AwsError>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_access_denied() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn describe_policy(text: &str) -> String {
    let policy: Option<Value> = serde_json::from_str(text).ok();
    let rules = policy
        .as_ref()
        .and_then(|policy| policy["rules"].as_array());
    match rules.map(Vec::len) {
        Some(1) => "1 rule".to_owned(),
        Some(count) => format!("{count} rules"),
        None => "there is one".to_owned(),
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(image: &Image) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        image.digest.to_string(),
        or_dash((!image.tags.is_empty()).then(|| image.tags.join(" "))),
        or_dash(image.pushed.map(|moment| moment.to_string())),
        or_dash(image.size.map(describe_size)),
    ]
}

/// `1 image`, `2 images`.
fn counted(number: usize) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} image{plural}")
}
