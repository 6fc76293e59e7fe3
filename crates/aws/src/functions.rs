//! Which images functions run.

use std::collections::BTreeMap;

use aws_sdk_lambda::Client;
use aws_sdk_lambda::types::{FunctionVersion, PackageType};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tierce_oci::Digest;

use crate::error::AwsError;
use crate::repositories::Repositories;
use crate::session::Place;

/// How many functions are asked about at once. Lambda answers a hundred such questions a second.
const AT_ONCE: usize = 8;

/// The functions of a region.
#[derive(Debug, Clone)]
pub struct Functions {
    client: Client,
    place: Place,
}

/// An image that a function runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The function's name or ARN, and its version.
    pub function: String,
    /// The image as it was named when the function was made.
    pub image: String,
    /// The image that was found then; `None` when Lambda does not tell.
    pub digest: Option<Digest>,
}

/// A function runs an image of a repository, and nobody tells which.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the function {function} runs `{image}`, and Lambda does not tell its digest")]
pub struct UnknownImage {
    /// The function.
    pub function: String,
    /// The image as it is named there.
    pub image: String,
}

/// A version of a function that may run an image.
struct Version {
    name: String,
    version: String,
}

const LIST: &str = "lambda:ListFunctions";
const LIST_VERSIONS: &str = "lambda:ListVersionsByFunction";
const GET: &str = "lambda:GetFunction";

impl Functions {
    /// Those in the region of `repositories`: functions run images of their own region alone.
    pub async fn beside(repositories: &Repositories) -> Result<Self, AwsError> {
        let place = repositories.place().clone();
        Ok(Self {
            client: repositories.aws().lambda(&place).await?,
            place,
        })
    }

    /// The images of all functions of the caller's account, in all versions.
    pub async fn uses(&self) -> Result<Vec<Use>, AwsError> {
        let mut pages = self
            .client
            .list_functions()
            .function_version(FunctionVersion::All)
            .into_paginator()
            .send();
        let mut versions = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.place.call(LIST).explain(error))?;
            for function in page.functions() {
                if function.package_type() == Some(&PackageType::Zip) {
                    continue;
                }
                versions.push(Version {
                    name: required(function.function_name(), LIST, "a name")?,
                    version: required(function.version(), LIST, "a version")?,
                });
            }
        }
        self.uses_of(versions).await
    }

    /// The images of one function in all its versions. It is named by name or ARN, and may belong to
    /// another account.
    pub async fn uses_of_function(&self, name: &str) -> Result<Vec<Use>, AwsError> {
        let name = without_qualifier(name);
        let mut pages = self
            .client
            .list_versions_by_function()
            .function_name(name)
            .into_paginator()
            .send();
        let mut versions = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.place.call(LIST_VERSIONS).explain(error))?;
            for function in page.versions() {
                versions.push(Version {
                    name: name.to_owned(),
                    version: required(function.version(), LIST_VERSIONS, "a version")?,
                });
            }
        }
        self.uses_of(versions).await
    }

    async fn uses_of(&self, versions: Vec<Version>) -> Result<Vec<Use>, AwsError> {
        let uses: Vec<Option<Use>> = stream::iter(versions)
            .map(|version| self.use_of(version))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(uses.into_iter().flatten().collect())
    }

    async fn use_of(&self, version: Version) -> Result<Option<Use>, AwsError> {
        let Version { name, version } = version;
        let answer = self
            .client
            .get_function()
            .function_name(&name)
            .qualifier(&version)
            .send()
            .await
            .map_err(|error| self.place.call(GET).explain(error));
        let answer = match answer {
            Ok(answer) => answer,
            // Deleted since it was listed: it runs nothing any more.
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(code) = answer.code() else {
            return Ok(None);
        };
        let Some(image) = code.image_uri().or(code.resolved_image_uri()) else {
            // Its code is a zip.
            return Ok(None);
        };
        Ok(Some(Use {
            function: format!("{name}:{version}"),
            image: image.to_owned(),
            digest: code
                .resolved_image_uri()
                .and_then(digest_in)
                .or_else(|| digest_in(image)),
        }))
    }
}

fn required(
    text: Option<&str>,
    action: &'static str,
    lacks: &'static str,
) -> Result<String, AwsError> {
    text.map(str::to_owned)
        .ok_or(AwsError::Incomplete { action, lacks })
}

/// The name or ARN of a function without version or alias.
fn without_qualifier(name: &str) -> &str {
    const MARK: &str = "function:";
    let begin = name.find(MARK).map_or(0, |at| at + MARK.len());
    let rest = name.get(begin..).unwrap_or_default();
    match rest.find(':') {
        Some(at) => name.get(..begin + at).unwrap_or(name),
        None => name,
    }
}

fn digest_in(image: &str) -> Option<Digest> {
    image.rsplit_once('@')?.1.parse().ok()
}

/// The digests that `uses` name, each with a function that runs it. The function may run it from
/// another repository: nobody is hurt by one image that is kept.
///
/// An error when a function runs an image of the repository `uri` that nobody can tell.
pub fn digests_in_use(uses: &[Use], uri: &str) -> Result<BTreeMap<Digest, String>, UnknownImage> {
    let path = |name: &str| name.split_once('/').map(|(_, path)| path.to_owned());
    let wanted = path(uri);
    let mut digests = BTreeMap::new();
    for Use {
        function,
        image,
        digest,
    } in uses
    {
        match digest {
            Some(digest) => {
                digests.entry(*digest).or_insert_with(|| function.clone());
            }
            None => {
                let name = image.split('@').next().unwrap_or_default();
                // The host has no port, so that the last colon is the tag's.
                let repository = match name.rsplit_once(':') {
                    Some((repository, tag)) if !tag.contains('/') => repository,
                    _ => name,
                };
                if path(repository) == wanted {
                    return Err(UnknownImage {
                        function: function.clone(),
                        image: image.clone(),
                    });
                }
            }
        }
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    #[test]
    fn qualifiers_are_taken_off() {
        const ARN: &str = "arn:aws:lambda:eu-west-1:123456789012:function:orders";
        for (name, plain) in [
            ("orders", "orders"),
            ("orders:live", "orders"),
            (ARN, ARN),
            (&format!("{ARN}:7"), ARN),
            (
                "123456789012:function:orders",
                "123456789012:function:orders",
            ),
            (
                "123456789012:function:orders:7",
                "123456789012:function:orders",
            ),
        ] {
            assert_eq!(without_qualifier(name), plain);
        }
    }

    #[test]
    fn a_function_protects_what_it_runs() {
        let digest = Digest::of(b"image");
        let used = |image: String, digest| Use {
            function: "orders:1".to_owned(),
            image,
            digest,
        };
        let uri = format!("{HOST}/team/orders");
        let known = [used(format!("{uri}:1.0"), Some(digest))];
        let digests = digests_in_use(&known, &uri).unwrap();
        assert_eq!(digests.get(&digest).map(String::as_str), Some("orders:1"));
        // Another repository's image need not be known.
        for other in ["orders:1", "team/orders-2:1", "team/orders/x:1"] {
            let unknown = [used(format!("{HOST}/{other}"), None)];
            assert_eq!(digests_in_use(&unknown, &uri), Ok(BTreeMap::new()));
        }
        for own in ["team/orders:1", "team/orders", "team/orders@sha256:odd"] {
            let unknown = [used(format!("{HOST}/{own}"), None)];
            let error = digests_in_use(&unknown, &uri).unwrap_err();
            assert_eq!(error.function, "orders:1", "{own}");
        }
    }

    #[test]
    fn the_digest_is_what_follows_the_last_at() {
        let digest = Digest::of(b"image");
        assert_eq!(digest_in(&format!("{HOST}/orders@{digest}")), Some(digest));
        assert_eq!(digest_in(&format!("{HOST}/orders:1")), None);
        assert_eq!(
            digest_in(&format!("{HOST}/orders@sha256@{digest}")),
            Some(digest)
        );
    }
}
