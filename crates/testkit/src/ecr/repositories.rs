//! ECR's actions on the registry and its repositories.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::service::{Failure, unknown_operation};
use super::{Core, authorization_token};
use crate::registry::{Management, Repository, TagMutability, is_repository_name};

/// How many characters a lifecycle policy may have, by the service's model.
const POLICY_LENGTH: std::ops::RangeInclusive<usize> = 100..=30_720;

/// How many things are listed at once: usually, and at most.
pub(super) const PAGE: (usize, usize) = (100, 1000);

impl Core {
    pub(super) fn repositories(
        &self,
        action: &str,
        body: &Value,
        key: &str,
    ) -> Result<Value, Failure> {
        match action {
            "GetAuthorizationToken" => Ok(self.get_authorization_token(body, key)),
            "CreateRepository" => self.create_repository(body),
            "DescribeRepositories" => self.describe_repositories(body),
            "DeleteRepository" => self.delete_repository(body),
            "PutImageTagMutability" => self.put_tag_mutability(body),
            "PutImageScanningConfiguration" => self.with_repository(body, |repository, answer| {
                let scan = &body["imageScanningConfiguration"]["scanOnPush"];
                repository.management.scan_on_push = scan == true;
                answer["imageScanningConfiguration"] = json!({"scanOnPush": scan == true});
                Ok(())
            }),
            "PutLifecyclePolicy" => self.with_repository(body, |repository, answer| {
                let text = body["lifecyclePolicyText"].as_str().unwrap_or_default();
                check_policy(text)?;
                repository.management.lifecycle_policy = Some(text.to_owned());
                answer["lifecyclePolicyText"] = text.into();
                Ok(())
            }),
            "GetLifecyclePolicy" => self.lifecycle_policy(body, false),
            "DeleteLifecyclePolicy" => self.lifecycle_policy(body, true),
            "TagResource" | "UntagResource" | "ListTagsForResource" => self.labels(action, body),
            "GetAccountSetting" | "PutAccountSetting" => self.account_setting(action, body),
            _ => Err(unknown_operation(action)),
        }
    }

    /// When a password given out now says to end, in seconds since 1970.
    pub(super) fn token_end(&self) -> f64 {
        let end = SystemTime::now() + self.settings().token_lifetime;
        let since = end.duration_since(UNIX_EPOCH);
        since.map_or(0.0, |since| since.as_secs_f64())
    }

    fn get_authorization_token(&self, body: &Value, key: &str) -> Value {
        // The registry of whoever asks, which need not be this one.
        let arn = self.keys.arn(key);
        let own = [arn.split(':').nth(4).unwrap_or(&self.account)];
        let asked: Vec<&str> = match body["registryIds"].as_array() {
            Some(ids) => ids.iter().filter_map(Value::as_str).collect(),
            None => own.into(),
        };
        let data: Vec<Value> = asked
            .into_iter()
            .map(|id| {
                // The endpoint is told by its usual name, whatever name the registry is used by.
                let suffix = if self.partition() == "aws-cn" {
                    ".cn"
                } else {
                    ""
                };
                let host = format!("{id}.dkr.ecr.{}.amazonaws.com{suffix}", self.region);
                json!({
                    "authorizationToken": authorization_token(&self.passwords.issue()),
                    "expiresAt": self.token_end(),
                    "proxyEndpoint": format!("https://{host}"),
                })
            })
            .collect();
        json!({ "authorizationData": data })
    }

    fn create_repository(&self, body: &Value) -> Result<Value, Failure> {
        let name = body["repositoryName"].as_str().unwrap_or_default();
        if !is_repository_name(name) || !(2..=256).contains(&name.len()) {
            return Err(Failure::invalid(&format!(
                "Invalid parameter at 'repositoryName' failed to satisfy constraint: '{name}'"
            )));
        }
        let mut state = self.state.lock();
        if state.repositories.contains_key(name) {
            let message = format!(
                "The repository with name '{name}' already exists in the registry with id '{}'",
                self.account
            );
            return Err(Failure::new("RepositoryAlreadyExistsException", &message));
        }
        let (mutability, filters) = mutability(body)?;
        let encryption = body["encryptionConfiguration"].clone();
        let management = &mut state.repository(name).management;
        management.mutability = mutability;
        management.filters = filters;
        management.scan_on_push = body["imageScanningConfiguration"]["scanOnPush"] == true;
        management.encryption = (!encryption.is_null()).then_some(encryption);
        for label in body["tags"].as_array().into_iter().flatten() {
            set_label(management, label);
        }
        Ok(json!({ "repository": self.describe(name, management) }))
    }

    fn describe_repositories(&self, body: &Value) -> Result<Value, Failure> {
        let state = self.state.lock();
        let own = body["registryId"].as_str().unwrap_or(&self.account) == self.account;
        let Some(names) = body["repositoryNames"].as_array() else {
            let all = state.repositories.iter().filter(|_| own);
            let all = all
                .map(|(name, repository)| self.describe(name, &repository.management))
                .collect();
            let (page, next) = self.page(all, &body["nextToken"], &body["maxResults"], PAGE)?;
            let mut answer = json!({ "repositories": page });
            if let Some(next) = next {
                answer["nextToken"] = next.into();
            }
            return Ok(answer);
        };
        let mut found = Vec::new();
        for name in names.iter().filter_map(Value::as_str) {
            let repository = state.repositories.get(name).filter(|_| own);
            let repository = repository.ok_or_else(|| self.not_found(name, body))?;
            found.push(self.describe(name, &repository.management));
        }
        Ok(json!({ "repositories": found }))
    }

    fn delete_repository(&self, body: &Value) -> Result<Value, Failure> {
        let name = body["repositoryName"].as_str().unwrap_or_default();
        let mut state = self.state.lock();
        let found = state.repositories.get(name);
        let repository = found.ok_or_else(|| self.not_found(name, body))?;
        if !repository.manifests.is_empty() && body["force"] != true {
            let message = format!(
                "The repository with name '{name}' in registry with id '{}' cannot be deleted \
                 because it still contains images",
                self.account
            );
            return Err(Failure::new("RepositoryNotEmptyException", &message));
        }
        let described = self.describe(name, &repository.management);
        state.repositories.remove(name);
        Ok(json!({ "repository": described }))
    }

    fn put_tag_mutability(&self, body: &Value) -> Result<Value, Failure> {
        let (mutability, filters) = mutability(body)?;
        self.with_repository(body, |repository, answer| {
            repository.management.mutability = mutability;
            repository.management.filters = filters;
            describe_mutability(&repository.management, answer);
            Ok(())
        })
    }

    fn lifecycle_policy(&self, body: &Value, delete: bool) -> Result<Value, Failure> {
        self.with_repository(body, |repository, answer| {
            let policy = &mut repository.management.lifecycle_policy;
            let found = if delete {
                policy.take()
            } else {
                policy.clone()
            };
            let Some(text) = found else {
                let name = body["repositoryName"].as_str().unwrap_or_default();
                let message = format!(
                    "Lifecycle policy does not exist for the repository with name '{name}' in the \
                     registry with id '{}'",
                    self.account
                );
                return Err(Failure::new("LifecyclePolicyNotFoundException", &message));
            };
            answer["lifecyclePolicyText"] = text.into();
            answer["lastEvaluatedAt"] = repository.management.created.into();
            Ok(())
        })
    }

    fn labels(&self, action: &str, body: &Value) -> Result<Value, Failure> {
        let arn = body["resourceArn"].as_str().unwrap_or_default();
        let prefix = self.arn("ecr", "repository/");
        let Some(name) = arn.strip_prefix(&prefix) else {
            let message = format!("Invalid parameter at 'resourceArn': '{arn}'");
            return Err(Failure::invalid(&message));
        };
        let mut state = self.state.lock();
        let repository = state.repositories.get_mut(name);
        let repository = repository.ok_or_else(|| self.not_found(name, body))?;
        let management = &mut repository.management;
        match action {
            "TagResource" => {
                for label in body["tags"].as_array().into_iter().flatten() {
                    set_label(management, label);
                }
                Ok(json!({}))
            }
            "UntagResource" => {
                let keys = body["tagKeys"].as_array().into_iter().flatten();
                for key in keys.filter_map(Value::as_str) {
                    management.labels.remove(key);
                }
                Ok(json!({}))
            }
            _ => {
                let labels = management.labels.iter();
                let labels: Vec<Value> = labels
                    .map(|(key, value)| json!({"Key": key, "Value": value}))
                    .collect();
                Ok(json!({ "tags": labels }))
            }
        }
    }

    /// The one setting that concerns pushes: whether blobs are mounted.
    fn account_setting(&self, action: &str, body: &Value) -> Result<Value, Failure> {
        let name = body["name"].as_str().unwrap_or_default();
        if name != "BLOB_MOUNTING" {
            let message = format!("Invalid parameter at 'name': '{name}'");
            return Err(Failure::new("ValidationException", &message));
        }
        let mut state = self.state.lock();
        if action == "PutAccountSetting" {
            state.mounts = Some(body["value"] == "ENABLED");
        }
        let value = if state.mounts == Some(true) {
            "ENABLED"
        } else {
            "DISABLED"
        };
        Ok(json!({"name": name, "value": value}))
    }

    /// Works on the repository that a request names, and answers with its names and what is added.
    pub(super) fn with_repository(
        &self,
        body: &Value,
        work: impl FnOnce(&mut Repository, &mut Value) -> Result<(), Failure>,
    ) -> Result<Value, Failure> {
        let name = body["repositoryName"].as_str().unwrap_or_default();
        let own = body["registryId"].as_str().unwrap_or(&self.account) == self.account;
        let mut state = self.state.lock();
        let repository = state.repositories.get_mut(name).filter(|_| own);
        let repository = repository.ok_or_else(|| self.not_found(name, body))?;
        let mut answer = json!({"registryId": self.account, "repositoryName": name});
        work(repository, &mut answer)?;
        Ok(answer)
    }

    fn not_found(&self, name: &str, body: &Value) -> Failure {
        let account = body["registryId"].as_str().unwrap_or(&self.account);
        let message = format!(
            "The repository with name '{name}' does not exist in the registry with id '{account}'"
        );
        Failure::new("RepositoryNotFoundException", &message)
    }

    fn describe(&self, name: &str, management: &Management) -> Value {
        let usual = || json!({"encryptionType": "AES256"});
        let mut described = json!({
            "repositoryArn": self.arn("ecr", &format!("repository/{name}")),
            "registryId": self.account,
            "repositoryName": name,
            "repositoryUri": format!("{}/{name}", self.name),
            "createdAt": management.created,
            "imageScanningConfiguration": {"scanOnPush": management.scan_on_push},
            "encryptionConfiguration": management.encryption.clone().unwrap_or_else(usual),
        });
        describe_mutability(management, &mut described);
        described
    }
}

fn describe_mutability(management: &Management, answer: &mut Value) {
    answer["imageTagMutability"] = management.mutability.name().into();
    let filters: Vec<Value> = management
        .filters
        .iter()
        .map(|filter| json!({"filterType": "WILDCARD", "filter": filter}))
        .collect();
    if !filters.is_empty() {
        answer["imageTagMutabilityExclusionFilters"] = filters.into();
    }
}

/// Which tags are to stay, as a request says it.
fn mutability(body: &Value) -> Result<(TagMutability, Vec<String>), Failure> {
    let name = body["imageTagMutability"].as_str().unwrap_or("MUTABLE");
    let Some(mutability) = TagMutability::named(name) else {
        let message = format!("Invalid parameter at 'imageTagMutability': '{name}'");
        return Err(Failure::invalid(&message));
    };
    let filters = body["imageTagMutabilityExclusionFilters"].as_array();
    let filters: Vec<String> = filters
        .into_iter()
        .flatten()
        .filter_map(|filter| Some(filter["filter"].as_str()?.to_owned()))
        .collect();
    let wanted = name.ends_with("_WITH_EXCLUSION");
    if wanted == filters.is_empty() || filters.len() > 5 {
        let message = "Invalid parameter at 'imageTagMutabilityExclusionFilters'";
        return Err(Failure::invalid(message));
    }
    Ok((mutability, filters))
}

fn set_label(management: &mut Management, label: &Value) {
    if let (Some(key), Some(value)) = (label["Key"].as_str(), label["Value"].as_str()) {
        management.labels.insert(key.to_owned(), value.to_owned());
    }
}

/// Refuses what is no lifecycle policy at first sight.
fn check_policy(text: &str) -> Result<(), Failure> {
    let policy: Value = serde_json::from_str(text).unwrap_or_default();
    let rules = policy["rules"].as_array().map_or(0, Vec::len);
    if (1..=50).contains(&rules) && POLICY_LENGTH.contains(&text.len()) {
        return Ok(());
    }
    Err(Failure::invalid(
        "Invalid parameter at 'LifecyclePolicyText' failed to satisfy constraint: \
         'Lifecycle policy validation failure'",
    ))
}
