//! Repositories of private ECR: made, described, and rid of images.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aws_sdk_ecr::Client;
use aws_sdk_ecr::types::{
    EncryptionConfiguration, EncryptionType, ImageFailure, ImageFailureCode, ImageIdentifier,
    ImageScanningConfiguration, ImageTagMutability, Repository as SdkRepository, Tag as SdkTag,
};
use tierce_oci::{Digest, Timestamp};

use crate::error::AwsError;
use crate::host::EcrHost;
use crate::prune::Deletion;
use crate::session::{Aws, Place};
use crate::time::timestamp;
use crate::wildcard::Wildcard;

/// How many images ECR takes in one request.
const BATCH: usize = 100;

/// How many images and repositories a page may have.
const PAGE: i32 = 1000;

/// All forms in which a manifest may be stored: asked by digest, ECR then converts none.
const MANIFEST_TYPES: [&str; 5] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// Those of them that name other manifests.
const INDEX_TYPES: [&str; 2] = [MANIFEST_TYPES[0], MANIFEST_TYPES[2]];

/// The repositories of one registry.
#[derive(Debug, Clone)]
pub struct Repositories {
    client: Client,
    aws: Aws,
    place: Place,
    /// The account; the caller's own when it is not said.
    registry_id: Option<String>,
}

/// What is known of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryDescription {
    /// Host and path, as images in it are named.
    pub uri: String,
    /// The ARN.
    pub arn: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Whether tags can move.
    pub mutability: Mutability,
    /// Whether each pushed image is scanned.
    pub scan_on_push: bool,
    /// With which key it is encrypted.
    pub encryption: Encryption,
}

/// Whether tags can move to other images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutability {
    /// All can.
    Mutable,
    /// None can.
    Immutable,
    /// All can but those that fit one of these.
    MutableExcept(Vec<Wildcard>),
    /// None can but those that fit one of these.
    ImmutableExcept(Vec<Wildcard>),
    /// Something that came after this was written.
    Unknown(String),
}

impl Mutability {
    /// Whether `tag` stays where it is, once it is there; `None` when that cannot be told.
    pub fn is_immutable(&self, tag: &str) -> Option<bool> {
        let fits = |filters: &[Wildcard]| filters.iter().any(|filter| filter.matches(tag));
        match self {
            Self::Mutable => Some(false),
            Self::Immutable => Some(true),
            Self::MutableExcept(filters) => Some(fits(filters)),
            Self::ImmutableExcept(filters) => Some(!fits(filters)),
            Self::Unknown(_) => None,
        }
    }
}

impl fmt::Display for Mutability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, filters) = match self {
            Self::Mutable => ("mutable", &[][..]),
            Self::Immutable => ("immutable", &[][..]),
            Self::MutableExcept(filters) => ("mutable", &filters[..]),
            Self::ImmutableExcept(filters) => ("immutable", &filters[..]),
            Self::Unknown(mode) => (mode.as_str(), &[][..]),
        };
        formatter.write_str(mode)?;
        for (at, filter) in filters.iter().enumerate() {
            let joint = if at == 0 { " except " } else { ", " };
            write!(formatter, "{joint}{filter}")?;
        }
        Ok(())
    }
}

/// How images are encrypted where they lie. It is chosen when a repository is made, for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// ECR's name for the kind: `AES256`, `KMS`, `KMS_DSSE`.
    pub kind: String,
    /// The key of KMS; its own when that is not said.
    pub key: Option<String>,
}

impl Encryption {
    /// With ECR's own key, as all repositories are for which nobody asks otherwise.
    pub fn aes256() -> Self {
        Self {
            kind: EncryptionType::Aes256.as_str().to_owned(),
            key: None,
        }
    }

    /// With a key of KMS: that one, or the one that AWS keeps for ECR.
    pub fn kms(key: Option<String>) -> Self {
        Self {
            kind: EncryptionType::Kms.as_str().to_owned(),
            key,
        }
    }

    /// Whether a repository that `is` encrypted so does for somebody who asks for this.
    ///
    /// An alias can stand for any key, and is taken to stand for the one in use.
    fn does(&self, is: &Self) -> bool {
        let same_key = |asked: &str, is: &str| {
            asked == is || asked.contains("alias/") || is.ends_with(&format!("/{asked}"))
        };
        self.kind == is.kind
            && match (&self.key, &is.key) {
                (Some(asked), Some(is)) => same_key(asked, is),
                (Some(_), None) => false,
                (None, _) => true,
            }
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(formatter, "{} with {key}", self.kind),
            None => formatter.write_str(&self.kind),
        }
    }
}

/// What somebody wants of a repository. What is not asked for stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepositoryWishes {
    /// Tags must not move.
    pub immutable_tags: bool,
    /// Each pushed image is to be scanned.
    pub scan_on_push: bool,
    /// How it is to be encrypted.
    pub encryption: Option<Encryption>,
    /// Resource tags.
    pub resource_tags: BTreeMap<String, String>,
    /// When images are to expire.
    pub lifecycle_policy: Option<LifecyclePolicy>,
}

/// What became of a wish for a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The repository.
    pub description: RepositoryDescription,
    /// Whether it was not there before.
    pub is_new: bool,
    /// The settings that were brought in line, in words.
    pub changed: Vec<&'static str>,
}

/// Why a repository could not be made as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// AWS did not do it.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// It is there, with another key, which can never be changed.
    #[error("{uri} is there and encrypted by {found}; {asked} was asked for")]
    OtherEncryption {
        /// The repository.
        uri: String,
        /// How it was to be encrypted.
        asked: Encryption,
        /// How it is.
        found: Encryption,
    },
}

/// The text of a lifecycle policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecyclePolicy(String);

/// Why a text is no lifecycle policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LifecyclePolicyError {
    /// More than ECR takes.
    #[error("it has {0} characters, and ECR takes {max}", max = LifecyclePolicy::LONGEST)]
    Long(usize),
    /// Not JSON.
    #[error("it is not JSON: line {line}, column {column}")]
    NotJson {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// JSON without what every policy has.
    #[error("it has no list of `rules`")]
    NoRules,
}

impl LifecyclePolicy {
    /// How many characters ECR takes.
    pub const LONGEST: usize = 30_720;

    /// Takes a text that may be a policy. What the rules say is for ECR to judge.
    pub fn parse(text: &str) -> Result<Self, LifecyclePolicyError> {
        let length = text.chars().count();
        if length > Self::LONGEST {
            return Err(LifecyclePolicyError::Long(length));
        }
        let policy: serde_json::Value =
            serde_json::from_str(text).map_err(|error| LifecyclePolicyError::NotJson {
                line: error.line(),
                column: error.column(),
            })?;
        let rules = policy.get("rules").and_then(serde_json::Value::as_array);
        match rules {
            Some(rules) if !rules.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(LifecyclePolicyError::NoRules),
        }
    }
}

/// An image of a repository, as ECR lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Of its manifest.
    pub digest: Digest,
    /// Its tags, sorted.
    pub tags: Vec<String>,
    /// When it was pushed.
    pub pushed: Option<Timestamp>,
    /// The bytes of its blobs, as they are stored.
    pub size: Option<u64>,
    /// The manifest's media type.
    pub media_type: Option<String>,
    /// The manifests that it names, when it is an index. Known after
    /// [`Repositories::read_relations`].
    pub children: Vec<Digest>,
    /// The manifest that it is about. Known after [`Repositories::read_relations`].
    pub subject: Option<Digest>,
}

impl Image {
    /// Whether it is an index: by its media type, or because it names others.
    pub(crate) fn is_index(&self) -> bool {
        let is_index = |media_type: &str| INDEX_TYPES.contains(&media_type);
        !self.children.is_empty() || self.media_type.as_deref().is_some_and(is_index)
    }
}

/// What became of a wish to delete images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteReport {
    /// What was deleted.
    pub deleted: Vec<Digest>,
    /// What was not there any more: somebody else was faster.
    pub absent: Vec<Digest>,
    /// What could not be deleted, and why.
    pub failures: Vec<Failure>,
}

/// An image that could not be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub digest: Digest,
    /// ECR's name for what is wrong, or `unknown`.
    pub code: String,
    /// What ECR says of it.
    pub reason: String,
}

impl Repositories {
    /// Those of the registry `host`.
    pub async fn at(aws: &Aws, host: &EcrHost) -> Result<Self, AwsError> {
        let place = aws.place_of(host);
        Ok(Self {
            client: aws.ecr(&place).await?,
            aws: aws.clone(),
            place,
            registry_id: Some(host.account().to_owned()),
        })
    }

    /// Those of the caller's own registry, in `region` or in the configured one.
    pub async fn own(aws: &Aws, region: Option<&str>) -> Result<Self, AwsError> {
        let place = aws.own_place(region).await?;
        Ok(Self {
            client: aws.ecr(&place).await?,
            aws: aws.clone(),
            place,
            registry_id: None,
        })
    }

    /// The region that they are in.
    pub fn region(&self) -> &str {
        &self.place.region
    }

    pub(crate) fn aws(&self) -> &Aws {
        &self.aws
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// What is known of the repository at `path`. When it is not there the error
    /// [`is_not_found`](AwsError::is_not_found).
    pub async fn describe(&self, path: &str) -> Result<RepositoryDescription, AwsError> {
        const ACTION: &str = "ecr:DescribeRepositories";
        let answer = self
            .client
            .describe_repositories()
            .set_registry_id(self.registry_id.clone())
            .repository_names(path)
            .send()
            .await
            .map_err(|error| self.place.call(ACTION).explain(error))?;
        let repository = answer.repositories().first();
        repository.and_then(describe).ok_or(AwsError::Incomplete {
            action: ACTION,
            lacks: "the repository",
        })
    }

    /// Makes the repository at `path`, or brings the one that is there in line with what is asked.
    ///
    /// It can be done again at any time, and after a failure in the middle.
    pub async fn create(&self, path: &str, wishes: &RepositoryWishes) -> Result<Made, CreateError> {
        let mut made = match self.try_create(path, wishes).await {
            Ok(description) => Made {
                description,
                is_new: true,
                changed: Vec::new(),
            },
            Err(error) if error.has_code("RepositoryAlreadyExists") => {
                self.bring_in_line(path, wishes).await?
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(policy) = &wishes.lifecycle_policy {
            self.put_lifecycle_policy(path, policy).await?;
            if !made.is_new {
                made.changed.push("lifecycle policy");
            }
        }
        Ok(made)
    }

    async fn try_create(
        &self,
        path: &str,
        wishes: &RepositoryWishes,
    ) -> Result<RepositoryDescription, AwsError> {
        const ACTION: &str = "ecr:CreateRepository";
        let mut request = self
            .client
            .create_repository()
            .set_registry_id(self.registry_id.clone())
            .repository_name(path);
        if wishes.immutable_tags {
            request = request.image_tag_mutability(ImageTagMutability::Immutable);
        }
        if wishes.scan_on_push {
            request = request.image_scanning_configuration(scanning());
        }
        if let Some(encryption) = &wishes.encryption {
            let encryption = EncryptionConfiguration::builder()
                .encryption_type(EncryptionType::from(encryption.kind.as_str()))
                .set_kms_key(encryption.key.clone())
                .build()
                .map_err(|_| AwsError::Incomplete {
                    action: ACTION,
                    lacks: "a kind of encryption",
                })?;
            request = request.encryption_configuration(encryption);
        }
        for tag in sdk_tags(&wishes.resource_tags)? {
            request = request.tags(tag);
        }
        let answer = request
            .send()
            .await
            .map_err(|error| self.place.call(ACTION).explain(error))?;
        answer
            .repository()
            .and_then(describe)
            .ok_or(AwsError::Incomplete {
                action: ACTION,
                lacks: "the repository",
            })
    }

    async fn bring_in_line(
        &self,
        path: &str,
        wishes: &RepositoryWishes,
    ) -> Result<Made, CreateError> {
        let mut description = self.describe(path).await?;
        if let Some(asked) = &wishes.encryption
            && !asked.does(&description.encryption)
        {
            return Err(CreateError::OtherEncryption {
                uri: description.uri,
                asked: asked.clone(),
                found: description.encryption,
            });
        }
        let mut changed = Vec::new();
        if wishes.immutable_tags && description.mutability != Mutability::Immutable {
            self.client
                .put_image_tag_mutability()
                .set_registry_id(self.registry_id.clone())
                .repository_name(path)
                .image_tag_mutability(ImageTagMutability::Immutable)
                .send()
                .await
                .map_err(|error| {
                    let call = self.place.call("ecr:PutImageTagMutability");
                    call.explain(error)
                })?;
            description.mutability = Mutability::Immutable;
            changed.push("immutable tags");
        }
        if wishes.scan_on_push && !description.scan_on_push {
            self.client
                .put_image_scanning_configuration()
                .set_registry_id(self.registry_id.clone())
                .repository_name(path)
                .image_scanning_configuration(scanning())
                .send()
                .await
                .map_err(|error| {
                    let call = self.place.call("ecr:PutImageScanningConfiguration");
                    call.explain(error)
                })?;
            description.scan_on_push = true;
            changed.push("scan on push");
        }
        if !wishes.resource_tags.is_empty() {
            self.client
                .tag_resource()
                .resource_arn(&description.arn)
                .set_tags(Some(sdk_tags(&wishes.resource_tags)?))
                .send()
                .await
                .map_err(|error| self.place.call("ecr:TagResource").explain(error))?;
            changed.push("resource tags");
        }
        Ok(Made {
            description,
            is_new: false,
            changed,
        })
    }

    async fn put_lifecycle_policy(
        &self,
        path: &str,
        policy: &LifecyclePolicy,
    ) -> Result<(), AwsError> {
        self.client
            .put_lifecycle_policy()
            .set_registry_id(self.registry_id.clone())
            .repository_name(path)
            .lifecycle_policy_text(&policy.0)
            .send()
            .await
            .map_err(|error| self.place.call("ecr:PutLifecyclePolicy").explain(error))?;
        Ok(())
    }

    /// The text of the lifecycle policy; `None` when there is none.
    pub async fn lifecycle_policy(&self, path: &str) -> Result<Option<String>, AwsError> {
        let answer = self
            .client
            .get_lifecycle_policy()
            .set_registry_id(self.registry_id.clone())
            .repository_name(path)
            .send()
            .await
            .map_err(|error| self.place.call("ecr:GetLifecyclePolicy").explain(error));
        match answer {
            Ok(answer) => Ok(answer.lifecycle_policy_text().map(str::to_owned)),
            Err(error) if error.has_code("LifecyclePolicyNotFound") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The resource tags of the repository with that ARN.
    pub async fn resource_tags(&self, arn: &str) -> Result<BTreeMap<String, String>, AwsError> {
        let answer = self
            .client
            .list_tags_for_resource()
            .resource_arn(arn)
            .send()
            .await
            .map_err(|error| self.place.call("ecr:ListTagsForResource").explain(error))?;
        let tags = answer.tags().iter();
        Ok(tags
            .map(|tag| (tag.key().to_owned(), tag.value().to_owned()))
            .collect())
    }

    /// All images, sorted by digest. What they have to do with each other is not known yet.
    pub async fn images(&self, path: &str) -> Result<Vec<Image>, AwsError> {
        const ACTION: &str = "ecr:DescribeImages";
        let mut pages = self
            .client
            .describe_images()
            .set_registry_id(self.registry_id.clone())
            .repository_name(path)
            .into_paginator()
            .page_size(PAGE)
            .send();
        let mut images = BTreeMap::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.place.call(ACTION).explain(error))?;
            for image in page.image_details() {
                let digest = image.image_digest().and_then(|text| text.parse().ok());
                let digest: Digest = digest.ok_or(AwsError::Incomplete {
                    action: ACTION,
                    lacks: "a digest that can be read",
                })?;
                let mut tags = image.image_tags().to_vec();
                tags.sort();
                let image = Image {
                    digest,
                    tags,
                    pushed: image.image_pushed_at().copied().and_then(timestamp),
                    size: image
                        .image_size_in_bytes()
                        .and_then(|size| u64::try_from(size).ok()),
                    media_type: image.image_manifest_media_type().map(str::to_owned),
                    children: Vec::new(),
                    subject: image
                        .subject_manifest_digest()
                        .and_then(|text| text.parse().ok()),
                };
                images.insert(digest, image);
            }
        }
        Ok(images.into_values().collect())
    }

    /// Reads from the manifests what images have to do with each other. Those that are gone
    /// meanwhile are left out.
    pub async fn read_relations(
        &self,
        path: &str,
        images: Vec<Image>,
    ) -> Result<Vec<Image>, AwsError> {
        const ACTION: &str = "ecr:BatchGetImage";
        const UNREADABLE: AwsError = AwsError::Incomplete {
            action: ACTION,
            lacks: "a manifest that can be read",
        };
        let mut related = Vec::with_capacity(images.len());
        let mut rest = images.into_iter().peekable();
        while rest.peek().is_some() {
            let batch: Vec<Image> = rest.by_ref().take(BATCH).collect();
            let answer = self
                .client
                .batch_get_image()
                .set_registry_id(self.registry_id.clone())
                .repository_name(path)
                .set_image_ids(Some(
                    batch.iter().map(|image| id_of(&image.digest)).collect(),
                ))
                .set_accepted_media_types(Some(MANIFEST_TYPES.map(str::to_owned).to_vec()))
                .send()
                .await
                .map_err(|error| self.place.call(ACTION).explain(error))?;
            let mut manifests = BTreeMap::new();
            for image in answer.images() {
                let digest = image.image_id().and_then(|id| id.image_digest());
                let digest = digest.and_then(|text| text.parse::<Digest>().ok());
                let relations = image.image_manifest().and_then(relations);
                if let (Some(digest), Some(relations)) = (digest, relations) {
                    manifests.insert(digest, relations);
                }
            }
            let gone: BTreeSet<Digest> = answer
                .failures()
                .iter()
                .filter(|failure| {
                    let code = failure.failure_code();
                    code.is_some_and(|code| code.as_str() == "ImageNotFound")
                })
                .filter_map(|failure| failure.image_id()?.image_digest()?.parse().ok())
                .collect();
            for mut image in batch {
                if gone.contains(&image.digest) {
                    continue;
                }
                // What is not known to be apart from others must not be taken to be.
                let (children, subject) = manifests.remove(&image.digest).ok_or(UNREADABLE)?;
                image.children = children;
                image.subject = subject.or(image.subject);
                related.push(image);
            }
        }
        Ok(related)
    }

    /// Whether the registry is that of the account that asks.
    pub async fn is_own(&self) -> Result<bool, AwsError> {
        let Some(account) = &self.registry_id else {
            return Ok(true);
        };
        let own = crate::credentials::own_account(&self.aws, &self.place).await?;
        Ok(own == *account)
    }

    /// Deletes images in the order that they need. What belongs to an index that stays, against all
    /// plans, stays too.
    ///
    /// What was done until an error is told beside it.
    pub async fn delete_in_order(
        &self,
        path: &str,
        deletions: &[Deletion],
    ) -> (DeleteReport, Result<(), AwsError>) {
        let mut rest: Vec<&Deletion> = deletions.iter().collect();
        let mut report = DeleteReport::default();
        while !rest.is_empty() {
            let waiting: BTreeSet<Digest> = rest.iter().map(|it| it.image.digest).collect();
            let (ready, later): (Vec<&Deletion>, Vec<&Deletion>) = rest
                .into_iter()
                .partition(|deletion| deletion.after.is_disjoint(&waiting));
            if ready.is_empty() {
                break;
            }
            for batch in ready.chunks(BATCH) {
                let digests: Vec<Digest> = batch.iter().map(|it| it.image.digest).collect();
                if let Err(error) = self.delete(path, &digests, &mut report).await {
                    return (report, Err(error));
                }
            }
            let stays: BTreeSet<Digest> = report.failures.iter().map(|it| it.digest).collect();
            rest = later;
            // With the index they name each other: one that stays is never left without its parts.
            let held = |deletion: &&Deletion| !deletion.after.is_disjoint(&stays);
            for deletion in rest.extract_if(.., |deletion| held(&&**deletion)) {
                report.failures.push(Failure {
                    digest: deletion.image.digest,
                    code: "ImageReferencedByManifestList".to_owned(),
                    reason: "an index that names it could not be deleted".to_owned(),
                });
            }
        }
        (report, Ok(()))
    }

    /// Deletes images with all their tags, a batch of them. What becomes of each is put down.
    async fn delete(
        &self,
        path: &str,
        digests: &[Digest],
        report: &mut DeleteReport,
    ) -> Result<(), AwsError> {
        let answer = self
            .client
            .batch_delete_image()
            .set_registry_id(self.registry_id.clone())
            .repository_name(path)
            .set_image_ids(Some(digests.iter().map(id_of).collect()))
            .send()
            .await
            .map_err(|error| self.place.call("ecr:BatchDeleteImage").explain(error))?;
        let digest_of =
            |id: Option<&ImageIdentifier>| -> Option<Digest> { id?.image_digest()?.parse().ok() };
        // An image comes once for each of its tags.
        let deleted: BTreeSet<Digest> = answer
            .image_ids()
            .iter()
            .filter_map(|id| digest_of(Some(id)))
            .collect();
        let failures = answer.failures().iter();
        let mut failures: BTreeMap<Digest, &ImageFailure> = failures
            .filter_map(|failure| Some((digest_of(failure.image_id())?, failure)))
            .collect();
        for digest in digests {
            match failures.remove(digest) {
                None if deleted.contains(digest) => report.deleted.push(*digest),
                Some(failure)
                    if failure.failure_code() == Some(&ImageFailureCode::ImageNotFound) =>
                {
                    report.absent.push(*digest);
                }
                Some(failure) => {
                    let code = failure.failure_code().map(ImageFailureCode::as_str);
                    report.failures.push(Failure {
                        digest: *digest,
                        code: code.unwrap_or("unknown").to_owned(),
                        reason: failure.failure_reason().unwrap_or_default().to_owned(),
                    });
                }
                None => report.failures.push(Failure {
                    digest: *digest,
                    code: "unknown".to_owned(),
                    reason: "ECR does not tell what became of it".to_owned(),
                }),
            }
        }
        Ok(())
    }
}

fn scanning() -> ImageScanningConfiguration {
    ImageScanningConfiguration::builder()
        .scan_on_push(true)
        .build()
}

fn sdk_tags(tags: &BTreeMap<String, String>) -> Result<Vec<SdkTag>, AwsError> {
    let tag = |(key, value)| SdkTag::builder().key(key).value(value).build();
    let tags: Result<Vec<_>, _> = tags.iter().map(tag).collect();
    tags.map_err(|_| AwsError::Incomplete {
        action: "ecr:TagResource",
        lacks: "a key",
    })
}

fn id_of(digest: &Digest) -> ImageIdentifier {
    ImageIdentifier::builder()
        .image_digest(digest.to_string())
        .build()
}

fn describe(repository: &SdkRepository) -> Option<RepositoryDescription> {
    let filters = || {
        let filters = repository.image_tag_mutability_exclusion_filters().iter();
        filters
            .map(|filter| Wildcard::new(filter.filter()))
            .collect()
    };
    let mutability = match repository.image_tag_mutability() {
        None | Some(ImageTagMutability::Mutable) => Mutability::Mutable,
        Some(ImageTagMutability::Immutable) => Mutability::Immutable,
        Some(ImageTagMutability::MutableWithExclusion) => Mutability::MutableExcept(filters()),
        Some(ImageTagMutability::ImmutableWithExclusion) => Mutability::ImmutableExcept(filters()),
        Some(other) => Mutability::Unknown(other.as_str().to_owned()),
    };
    let encryption = match repository.encryption_configuration() {
        Some(encryption) => Encryption {
            kind: encryption.encryption_type().as_str().to_owned(),
            key: encryption.kms_key().map(str::to_owned),
        },
        None => Encryption::aes256(),
    };
    Some(RepositoryDescription {
        uri: repository.repository_uri()?.to_owned(),
        arn: repository.repository_arn().unwrap_or_default().to_owned(),
        created: repository.created_at().copied().and_then(timestamp),
        mutability,
        scan_on_push: repository
            .image_scanning_configuration()
            .is_some_and(ImageScanningConfiguration::scan_on_push),
        encryption,
    })
}

/// What a manifest names: its children, and what it is about. `None` for what is no manifest.
fn relations(manifest: &str) -> Option<(Vec<Digest>, Option<Digest>)> {
    let manifest: serde_json::Value = serde_json::from_str(manifest).ok()?;
    let digest_of = |descriptor: &serde_json::Value| -> Option<Digest> {
        descriptor.get("digest")?.as_str()?.parse().ok()
    };
    let manifest = manifest.as_object()?;
    let children = manifest
        .get("manifests")
        .and_then(serde_json::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(digest_of)
        .collect();
    Some((children, manifest.get("subject").and_then(digest_of)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_move_as_the_mode_and_its_filters_say() {
        let filters = || vec![Wildcard::new("dev-*"), Wildcard::new("latest")];
        for (mutability, tag, immutable) in [
            (Mutability::Mutable, "1.0", Some(false)),
            (Mutability::Immutable, "1.0", Some(true)),
            (Mutability::ImmutableExcept(filters()), "1.0", Some(true)),
            (Mutability::ImmutableExcept(filters()), "dev-7", Some(false)),
            (
                Mutability::ImmutableExcept(filters()),
                "latest",
                Some(false),
            ),
            (
                Mutability::ImmutableExcept(filters()),
                "latest2",
                Some(true),
            ),
            (Mutability::MutableExcept(filters()), "1.0", Some(false)),
            (Mutability::MutableExcept(filters()), "dev-7", Some(true)),
            (Mutability::Unknown("ODD".to_owned()), "1.0", None),
        ] {
            assert_eq!(
                mutability.is_immutable(tag),
                immutable,
                "{mutability} {tag}"
            );
        }
        let shown = Mutability::ImmutableExcept(filters()).to_string();
        assert_eq!(shown, "immutable except dev-*, latest");
    }

    #[test]
    fn a_policy_is_json_with_rules() {
        let policy = r#"{"rules":[{"rulePriority":1}]}"#;
        assert_eq!(
            LifecyclePolicy::parse(policy),
            Ok(LifecyclePolicy(policy.to_owned()))
        );
        let long = format!("{{\"rules\":[1]{}}}", " ".repeat(LifecyclePolicy::LONGEST));
        for (text, error) in [
            ("", LifecyclePolicyError::NotJson { line: 1, column: 0 }),
            (
                "{\n  \"rules\": [,]\n}",
                LifecyclePolicyError::NotJson {
                    line: 2,
                    column: 13,
                },
            ),
            ("[]", LifecyclePolicyError::NoRules),
            ("{\"rules\":[]}", LifecyclePolicyError::NoRules),
            ("{\"rules\":{}}", LifecyclePolicyError::NoRules),
            (&long, LifecyclePolicyError::Long(long.chars().count())),
        ] {
            assert_eq!(LifecyclePolicy::parse(text), Err(error));
        }
    }

    #[test]
    fn another_key_is_known() {
        const ARN: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd";
        let kms = |key: &str| Encryption::kms(Some(key.to_owned()));
        for (asked, is, does) in [
            (Encryption::aes256(), Encryption::aes256(), true),
            (Encryption::aes256(), kms(ARN), false),
            (Encryption::kms(None), Encryption::aes256(), false),
            (Encryption::kms(None), kms(ARN), true),
            (kms(ARN), kms(ARN), true),
            (kms("1234abcd"), kms(ARN), true),
            (kms("abcd"), kms(ARN), false),
            (kms("alias/images"), kms(ARN), true),
            (
                kms("arn:aws:kms:eu-west-1:123456789012:key/other"),
                kms(ARN),
                false,
            ),
            (kms(ARN), Encryption::kms(None), false),
        ] {
            assert_eq!(asked.does(&is), does, "{asked} {is}");
        }
    }

    #[test]
    fn manifests_tell_children_and_subject() {
        let digest = Digest::of(b"x");
        let index = format!(r#"{{"manifests":[{{"digest":"{digest}"}},{{"digest":"odd"}}]}}"#);
        assert_eq!(relations(&index), Some((vec![digest], None)));
        let referrer = format!(r#"{{"subject":{{"digest":"{digest}"}},"layers":[]}}"#);
        assert_eq!(relations(&referrer), Some((vec![], Some(digest))));
        assert_eq!(relations(r#"{"layers":[]}"#), Some((vec![], None)));
        assert_eq!(relations("[]"), None);
        assert_eq!(relations("not JSON"), None);
    }
}
