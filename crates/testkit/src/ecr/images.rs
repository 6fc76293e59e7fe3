//! ECR's actions on images.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tierce_oci::Digest;

use super::Core;
use super::repositories::PAGE;
use super::service::{Failure, unknown_operation};
use crate::registry::{Repository, StoredManifest};

/// The service takes no more images in one batch.
const LARGEST_BATCH: usize = 100;

/// An image as a request names it.
struct ImageId {
    digest: Option<String>,
    tag: Option<String>,
}

impl ImageId {
    fn read(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        Self {
            digest: text("imageDigest"),
            tag: text("imageTag"),
        }
    }

    fn json(&self) -> Value {
        let mut id = json!({});
        if let Some(digest) = &self.digest {
            id["imageDigest"] = digest.as_str().into();
        }
        if let Some(tag) = &self.tag {
            id["imageTag"] = tag.as_str().into();
        }
        id
    }

    /// Finds the image, or says with which code it is not found.
    fn find(&self, repository: &Repository) -> Result<Digest, (&'static str, String)> {
        let absent = || ("ImageNotFound", "Requested image not found".to_owned());
        let tagged = match &self.tag {
            Some(tag) => Some(*repository.tags.get(tag).ok_or_else(absent)?),
            None => None,
        };
        let digest = match (&self.digest, tagged) {
            (None, None) => {
                let message = "Invalid request parameters: both tag and digest cannot be null";
                return Err(("MissingDigestAndTag", message.to_owned()));
            }
            (None, Some(tagged)) => tagged,
            (Some(text), tagged) => {
                let invalid = |_| ("InvalidImageDigest", format!("{text} is no digest"));
                let digest: Digest = text.parse().map_err(invalid)?;
                if tagged.is_some_and(|tagged| tagged != digest) {
                    let message = "Requested digest does not match the digest of the tag";
                    return Err(("ImageTagDoesNotMatchDigest", message.to_owned()));
                }
                digest
            }
        };
        let here = repository.manifests.contains_key(&digest);
        if here { Ok(digest) } else { Err(absent()) }
    }
}

impl Core {
    pub(super) fn images(&self, action: &str, body: &Value) -> Result<Value, Failure> {
        match action {
            "ListImages" => self.with_repository(body, |repository, answer| {
                let ids = list(repository, &body["filter"]["tagStatus"]);
                self.answer_page(ids, body, "imageIds", answer)
            }),
            "DescribeImages" => self.describe_images(body),
            "BatchGetImage" => self.batch(body, |repository, ids, answer| {
                let mut images = Vec::new();
                let mut failures = Vec::new();
                for id in ids {
                    match id.find(repository) {
                        Ok(digest) => images.push(self.image(body, repository, &id, digest)),
                        Err((code, reason)) => failures.push(failure(&id, code, &reason)),
                    }
                }
                answer["images"] = images.into();
                answer["failures"] = failures.into();
            }),
            "BatchDeleteImage" => self.batch(body, |repository, ids, answer| {
                let (deleted, failures) = delete(repository, &ids);
                answer["imageIds"] = deleted.into();
                answer["failures"] = failures.into();
            }),
            _ => Err(unknown_operation(action)),
        }
    }

    fn describe_images(&self, body: &Value) -> Result<Value, Failure> {
        let name = body["repositoryName"].as_str().unwrap_or_default();
        self.with_repository(body, |repository, answer| {
            let mut digests = Vec::new();
            match body["imageIds"].as_array() {
                None => {
                    let status = &body["filter"]["tagStatus"];
                    let images = repository.manifests.keys().copied();
                    digests.extend(images.filter(|digest| has_status(repository, digest, status)));
                }
                Some(ids) => {
                    for id in ids.iter().map(ImageId::read) {
                        let found = id.find(repository);
                        digests.push(found.map_err(|_| self.image_not_found(name, &id))?);
                    }
                    digests.sort_unstable();
                    digests.dedup();
                }
            }
            let details = digests
                .into_iter()
                .map(|digest| self.details(name, repository, digest))
                .collect();
            self.answer_page(details, body, "imageDetails", answer)
        })
    }

    /// Puts a page of a list into an answer, in place of the repository's names.
    fn answer_page(
        &self,
        items: Vec<Value>,
        body: &Value,
        name: &str,
        answer: &mut Value,
    ) -> Result<(), Failure> {
        let (page, next) = self.page(items, &body["nextToken"], &body["maxResults"], PAGE)?;
        *answer = json!({ name: page });
        if let Some(next) = next {
            answer["nextToken"] = next.into();
        }
        Ok(())
    }

    fn batch(
        &self,
        body: &Value,
        work: impl FnOnce(&mut Repository, Vec<ImageId>, &mut Value),
    ) -> Result<Value, Failure> {
        let ids = body["imageIds"].as_array();
        let ids: Vec<ImageId> = ids.into_iter().flatten().map(ImageId::read).collect();
        if ids.is_empty() || ids.len() > LARGEST_BATCH {
            return Err(Failure::invalid(&format!(
                "Invalid parameter at 'imageIds' failed to satisfy constraint: \
                 'Member must have length between 1 and {LARGEST_BATCH}'"
            )));
        }
        self.with_repository(body, |repository, answer| {
            *answer = json!({});
            work(repository, ids, answer);
            Ok(())
        })
    }

    fn image(&self, body: &Value, repository: &Repository, id: &ImageId, digest: Digest) -> Value {
        let stored = &repository.manifests[&digest];
        let full = ImageId {
            digest: Some(digest.to_string()),
            tag: id.tag.clone(),
        };
        json!({
            "registryId": self.account,
            "repositoryName": body["repositoryName"],
            "imageId": full.json(),
            "imageManifest": String::from_utf8_lossy(&stored.bytes),
            "imageManifestMediaType": stored.media_type,
        })
    }

    fn details(&self, name: &str, repository: &Repository, digest: Digest) -> Value {
        let stored = &repository.manifests[&digest];
        let manifest = parse(stored);
        let mut details = json!({
            "registryId": self.account,
            "repositoryName": name,
            "imageDigest": digest.to_string(),
            "imageSizeInBytes": size(repository, &manifest),
            "imagePushedAt": stored.pushed,
            "imageManifestMediaType": stored.media_type,
            "imageStatus": "ACTIVE",
        });
        let tags = tags(repository, &digest);
        if !tags.is_empty() {
            details["imageTags"] = tags.into();
        }
        let kind = match &manifest["artifactType"] {
            Value::Null => &manifest["config"]["mediaType"],
            kind => kind,
        };
        if kind.is_string() {
            details["artifactMediaType"] = kind.clone();
        }
        if manifest["subject"]["digest"].is_string() {
            details["subjectManifestDigest"] = manifest["subject"]["digest"].clone();
        }
        details
    }

    fn image_not_found(&self, name: &str, id: &ImageId) -> Failure {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "null".to_owned());
        let message = format!(
            "The image with imageId {{imageDigest:'{}', imageTag:'{}'}} does not exist within the \
             repository with name '{name}' in the registry with id '{}'",
            text(&id.digest),
            text(&id.tag),
            self.account
        );
        Failure::new("ImageNotFoundException", &message)
    }
}

fn failure(id: &ImageId, code: &str, reason: &str) -> Value {
    json!({"imageId": id.json(), "failureCode": code, "failureReason": reason})
}

fn parse(stored: &StoredManifest) -> Value {
    serde_json::from_slice(&stored.bytes).unwrap_or_default()
}

fn tags(repository: &Repository, digest: &Digest) -> Vec<String> {
    let tags = repository.tags.iter();
    tags.filter(|(_, tagged)| *tagged == digest)
        .map(|(tag, _)| tag.clone())
        .collect()
}

/// Whether an image is tagged as a filter wants it; a filter that says nothing wants all.
fn has_status(repository: &Repository, digest: &Digest, status: &Value) -> bool {
    let tagged = repository.tags.values().any(|tagged| tagged == digest);
    match status.as_str() {
        Some("TAGGED") => tagged,
        Some("UNTAGGED") => !tagged,
        _ => true,
    }
}

/// One id for each tag, and one for each image without any.
fn list(repository: &Repository, status: &Value) -> Vec<Value> {
    let images = repository.manifests.keys();
    let mut ids = Vec::new();
    for digest in images.filter(|digest| has_status(repository, digest, status)) {
        let text = digest.to_string();
        let tags = tags(repository, digest);
        if tags.is_empty() {
            ids.push(json!({"imageDigest": text}));
        }
        for tag in tags {
            ids.push(json!({"imageDigest": text, "imageTag": tag}));
        }
    }
    ids
}

/// The bytes of an image's blobs, or of the largest image of an index.
fn size(repository: &Repository, manifest: &Value) -> u64 {
    if let Some(children) = manifest["manifests"].as_array() {
        let children = children.iter().filter_map(|child| {
            let digest: Digest = child["digest"].as_str()?.parse().ok()?;
            Some(size(repository, &parse(repository.manifests.get(&digest)?)))
        });
        return children.max().unwrap_or(0);
    }
    let layers = manifest["layers"].as_array().into_iter().flatten();
    std::iter::once(&manifest["config"])
        .chain(layers)
        .filter_map(|blob| blob["size"].as_u64())
        .sum()
}

/// Deletes images and tags: what went, and what could not.
///
/// An image that an index names stays, also when the same batch deletes the index: whether the
/// service minds the order within a batch is not known, so nobody should lean on it.
fn delete(repository: &mut Repository, ids: &[ImageId]) -> (Vec<Value>, Vec<Value>) {
    let (mut deleted, mut failures) = (Vec::new(), Vec::new());
    let mut parents: Vec<(String, BTreeSet<String>)> = Vec::new();
    for (digest, stored) in &repository.manifests {
        let manifest = parse(stored);
        let children = manifest["manifests"].as_array().into_iter().flatten();
        let children = children.filter_map(|child| Some(child["digest"].as_str()?.to_owned()));
        parents.push((digest.to_string(), children.collect()));
    }
    for id in ids {
        let digest = match id.find(repository) {
            Ok(digest) => digest,
            Err((code, reason)) => {
                failures.push(failure(id, code, &reason));
                continue;
            }
        };
        let text = digest.to_string();
        let tags = tags(repository, &digest);
        if let Some(tag) = &id.tag
            && tags.len() > 1
        {
            repository.tags.remove(tag);
            deleted.push(json!({"imageDigest": text, "imageTag": tag}));
            continue;
        }
        // With its last tag the image itself goes.
        let naming: Vec<&str> = parents
            .iter()
            .filter(|(_, children)| children.contains(&text))
            .map(|(parent, _)| parent.as_str())
            .collect();
        if !naming.is_empty() {
            let reason = format!(
                "Requested image referenced by manifest list: [{}]",
                naming.join(", ")
            );
            failures.push(failure(id, "ImageReferencedByManifestList", &reason));
            continue;
        }
        repository.manifests.remove(&digest);
        repository.tags.retain(|_, tagged| *tagged != digest);
        if tags.is_empty() {
            deleted.push(json!({"imageDigest": text}));
        }
        for tag in tags {
            deleted.push(json!({"imageDigest": text, "imageTag": tag}));
        }
    }
    (deleted, failures)
}
