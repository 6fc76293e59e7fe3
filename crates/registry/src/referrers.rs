//! Referrers: the artifacts that are about a manifest, found by the `subject` that they name.
//!
//! A registry of distribution-spec 1.1 keeps the list itself: it says so by `OCI-Subject` when such
//! an artifact is put, and answers `GET /v2/NAME/referrers/DIGEST`. For all others the list is an
//! index under a tag made of the subject's digest, and whoever puts an artifact must keep it:
//! [`see_listed`] is the last step of every manifest that is put here, so a copied artifact is found
//! again like an attached one.
//!
//! The tag has no lock, and registries know no conditional PUT. An entry is therefore looked for
//! again after the index was put, and added anew when another writer has overwritten it. What that
//! cannot see: a writer who had read the index before and puts it after that look. Then the entry is
//! lost until its artifact is put or attached again; the artifact itself is not.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue, LINK};
use reqwest::{Method, StatusCode};
use tierce_image::ImageSink as _;
use tierce_oci::{
    Descriptor, Digest, Document, ImageFormat, Index, MediaType, ParseDocumentError, Raw,
    Repository, Selector, Tag,
};
use url::{Url, form_urlencoded};

use crate::client::{Call, RepositoryClient, Target, success};
use crate::endpoint::destination;
use crate::error::RegistryError;
use crate::pull::{MAX_MANIFEST, manifest_call, manifest_path, read_manifest};
use crate::transport::Reply;

/// The registry's word that it has taken note of a manifest's subject.
const OCI_SUBJECT: &str = "oci-subject";

/// The registry's word for what it has left out of a list.
const OCI_FILTERS_APPLIED: &str = "oci-filters-applied";

/// What a list of referrers is served as.
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// ECR gives fifty referrers a page (`ListImageReferrers`), and nobody attaches that many.
const MAX_PAGES: usize = 200;

/// How many bytes the pages of one list may have together.
const MAX_LIST: usize = 64 << 20;

/// Why a list of referrers cannot be used, or not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ReferrersError {
    /// What the registry answers is no list.
    #[error("the list of what refers to {subject} in {repository} cannot be used")]
    BadList {
        /// The repository.
        repository: Repository,
        /// The manifest that the list is of.
        subject: Digest,
        /// What is wrong with it.
        #[source]
        source: ParseDocumentError,
    },
    /// The tag that stands in for the list is that of something else.
    #[error(
        "the tag {tag} of {repository} should list what refers to {subject}, but is of the type `{found}`"
    )]
    NotAList {
        /// The repository.
        repository: Repository,
        /// The manifest that the list is of.
        subject: Digest,
        /// The tag.
        tag: Tag,
        /// The type of what it stands for.
        found: MediaType,
    },
    /// The list has more pages or bytes than any real one, or leads back to where it began.
    #[error("the list of what refers to {subject} in {repository} has no end")]
    Endless {
        /// The repository.
        repository: Repository,
        /// The manifest that the list is of.
        subject: Digest,
    },
    /// The next page is not on the registry.
    #[error("the list of what refers to {subject} in {repository} goes on at {host}")]
    Elsewhere {
        /// The repository.
        repository: Repository,
        /// The manifest that the list is of.
        subject: Digest,
        /// Where the next page is said to be.
        host: String,
    },
    /// Others change the tag all the time.
    #[error(
        "{referrer} is in {repository}, but whenever it was listed under the tag {tag}, somebody else put another list there"
    )]
    Overtaken {
        /// The repository.
        repository: Repository,
        /// The tag that stands in for the list.
        tag: Tag,
        /// What was to be listed.
        referrer: Digest,
    },
}

impl From<ReferrersError> for RegistryError {
    fn from(error: ReferrersError) -> Self {
        Self::Referrers(Box::new(error))
    }
}

/// The tag under which the referrers of `subject` are listed where the registry keeps no list
/// (distribution-spec, "Referrers Tag Schema").
pub fn fallback_tag(subject: &Digest) -> Tag {
    format!("sha256-{}", subject.hex())
        .parse()
        .expect("a word and 64 hex digits are a tag")
}

impl RepositoryClient {
    /// Lists what refers to `subject`: each manifest once, with its artifact type and annotations,
    /// ordered by type and digest.
    ///
    /// The subject need not be there. With `artifact_type` only artifacts of that type are listed.
    /// The list comes of the registry's word alone: the manifests are not read.
    pub async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut found = match self.ask_for_list(subject, artifact_type).await? {
            Some(found) => found,
            None => match self.read_tagged_list(subject, false).await? {
                Some(index) => of_type(index.manifests.clone(), artifact_type),
                None => Vec::new(),
            },
        };
        let mut known = BTreeSet::new();
        found.retain(|referrer| known.insert(referrer.digest));
        found.sort_by(|one, other| {
            (&one.artifact_type, one.digest).cmp(&(&other.artifact_type, other.digest))
        });
        Ok(found)
    }

    /// Makes sure that a manifest which is there is among the referrers of its subject; tells whether
    /// it had to be put again for that.
    ///
    /// For a manifest that was found in place: whoever put it may not have known of the list, or have
    /// been interrupted before it.
    pub async fn relist(&self, referrer: &Document) -> Result<bool, RegistryError> {
        let Some(subject) = referrer.subject() else {
            return Ok(false);
        };
        let digest = referrer.digest();
        let listed = self.referrers(&subject.digest, None).await?;
        if listed.iter().any(|listed| listed.digest == digest) {
            return Ok(false);
        }
        self.put_manifest(referrer, None).await?;
        Ok(true)
    }

    /// Asks the registry for its list, page by page; `None` when it keeps none.
    async fn ask_for_list(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let registry = self.registry()?;
        let endless = || ReferrersError::Endless {
            repository: self.repository.clone(),
            subject: *subject,
        };
        let mut attempts = self.client.attempts();
        let mut path = format!("/v2/{}/referrers/{subject}", self.repository.path);
        if let Some(artifact_type) = artifact_type {
            path.push_str("?artifactType=");
            path.extend(form_urlencoded::byte_serialize(artifact_type.as_bytes()));
        }
        let mut page: Option<Url> = None;
        let mut seen = BTreeSet::new();
        let mut room = MAX_LIST;
        let mut found = Vec::new();
        loop {
            let target = page.as_ref().map_or(Target::Path(&path), Target::Url);
            let mut call = Call::new(Method::GET, target, self.access(false));
            let index = HeaderValue::from_static(OCI_INDEX);
            call.headers.insert(ACCEPT, index);
            let reply = self.client.call(&registry, &call, &mut attempts).await?;
            if page.is_none() && keeps_no_list(&reply) {
                return Ok(None);
            }
            let mut reply = success(reply).await?;
            let bytes = match reply.bytes(MAX_MANIFEST).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    attempts.after(error).await?;
                    continue;
                }
            };
            attempts.restart();
            room = room.checked_sub(bytes.len()).ok_or_else(endless)?;
            let listed = self.read_page(subject, &reply, bytes)?.manifests.clone();
            let rest = artifact_type.filter(|_| !has_filtered(&reply));
            found.extend(of_type(listed, rest));
            let Some(address) = next_page(&reply) else {
                return Ok(Some(found));
            };
            let endpoint = registry.endpoint();
            let next = match reply.resolve(&address, &endpoint) {
                Some(next) if endpoint.owns(&next) => next,
                other => {
                    let host = other.as_ref().map(destination);
                    return Err(RegistryError::from(ReferrersError::Elsewhere {
                        repository: self.repository.clone(),
                        subject: *subject,
                        host: host.unwrap_or_else(|| "what is no address".to_owned()),
                    }));
                }
            };
            if seen.len() == MAX_PAGES || !seen.insert(next.to_string()) {
                return Err(endless().into());
            }
            page = Some(next);
        }
    }

    fn read_page(
        &self,
        subject: &Digest,
        reply: &Reply,
        bytes: Bytes,
    ) -> Result<Raw<Index>, RegistryError> {
        let served = reply.header(CONTENT_TYPE).map(MediaType::from);
        let bad = |source| self.bad_list(subject, source);
        match Document::parse(bytes, served.as_ref()).map_err(bad)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(bad(ParseDocumentError::BadMember {
                document: "index",
                member: "manifests",
            })),
        }
    }

    fn bad_list(&self, subject: &Digest, source: ParseDocumentError) -> RegistryError {
        RegistryError::from(ReferrersError::BadList {
            repository: self.repository.clone(),
            subject: *subject,
            source,
        })
    }

    /// Reads the index that stands in for the registry's list; `None` when there is none.
    ///
    /// With `to_change` the question needs what the change will need, so that it goes where the
    /// change goes.
    async fn read_tagged_list(
        &self,
        subject: &Digest,
        to_change: bool,
    ) -> Result<Option<Raw<Index>>, RegistryError> {
        let registry = self.registry()?;
        let tag = fallback_tag(subject);
        let selector = Selector::Tag(tag.clone());
        let path = manifest_path(&self.repository, &selector);
        let call = manifest_call(Method::GET, &path, self.access(to_change));
        let mut attempts = self.client.attempts();
        let document = loop {
            let reply = self.client.call(&registry, &call, &mut attempts).await?;
            if reply.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let mut reply = success(reply).await?;
            match reply.bytes(MAX_MANIFEST).await {
                Ok(bytes) => break read_manifest(self, &selector, &reply, bytes)?,
                Err(error) => attempts.after(error).await?,
            }
        };
        match document {
            Document::Index(index) if index.media_type == MediaType::Index(ImageFormat::Oci) => {
                Ok(Some(index))
            }
            other => Err(RegistryError::from(ReferrersError::NotAList {
                repository: self.repository.clone(),
                subject: *subject,
                tag,
                found: other.descriptor().media_type.clone(),
            })),
        }
    }
}

/// Sees to it that `document`, just put with this answer, is found by its subject.
pub(crate) async fn see_listed(
    place: &RepositoryClient,
    document: &Document,
    reply: &Reply,
) -> Result<(), RegistryError> {
    let Some(subject) = document.subject() else {
        return Ok(());
    };
    // Docker's manifests have no subject, whatever stands in them.
    if document.descriptor().media_type.format() != Some(ImageFormat::Oci) {
        return Ok(());
    }
    let noted = reply
        .headers()
        .get(OCI_SUBJECT)
        .and_then(|text| text.to_str().ok()?.parse::<Digest>().ok());
    if noted == Some(subject.digest) {
        return Ok(());
    }
    list_under_tag(place, &subject.digest, document).await
}

/// Adds `referrer` to the index under the fallback tag, unless it is there.
async fn list_under_tag(
    place: &RepositoryClient,
    subject: &Digest,
    referrer: &Document,
) -> Result<(), RegistryError> {
    let tag = fallback_tag(subject);
    let entry = referrer.as_referrer();
    let mut attempts = place.client.attempts();
    let mut was_put = false;
    loop {
        let list = place.read_tagged_list(subject, true).await?;
        if list
            .as_ref()
            .is_some_and(|list| list.contains(&entry.digest))
        {
            return Ok(());
        }
        if was_put {
            let overtaken = ReferrersError::Overtaken {
                repository: place.repository.clone(),
                tag: tag.clone(),
                referrer: entry.digest,
            };
            attempts.again(overtaken.into()).await?;
            // After the pause the list may be another one.
            was_put = false;
            continue;
        }
        let list = match list {
            Some(list) => list
                .with_child(&entry)
                .map_err(|source| place.bad_list(subject, source))?,
            None => Raw::from_index(new_list(entry.clone())),
        };
        tracing::debug!(%tag, referrer = %entry.digest, "listing under the fallback tag");
        place
            .put_document(&Document::Index(list), Some(&tag))
            .await?;
        was_put = true;
    }
}

fn new_list(first: Descriptor) -> Index {
    Index {
        media_type: MediaType::Index(ImageFormat::Oci),
        manifests: vec![first],
        annotations: BTreeMap::new(),
        subject: None,
        artifact_type: None,
    }
}

fn of_type(mut listed: Vec<Descriptor>, artifact_type: Option<&str>) -> Vec<Descriptor> {
    if let Some(wanted) = artifact_type {
        listed.retain(|referrer| referrer.artifact_type.as_deref() == Some(wanted));
    }
    listed
}

/// Whether the answer is that of a registry without the referrers API: an error that says so in one
/// of the ways in use, or a page for people.
fn keeps_no_list(reply: &Reply) -> bool {
    if reply.status().is_success() {
        let is_document = |served: &str| {
            let essence = served.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json") || essence.ends_with("+json")
        };
        return reply
            .header(CONTENT_TYPE)
            .is_some_and(|served| !is_document(served));
    }
    matches!(reply.status().as_u16(), 400 | 404 | 405 | 501)
}

/// Whether the registry has left out the artifacts of other types.
fn has_filtered(reply: &Reply) -> bool {
    reply
        .headers()
        .get_all(OCI_FILTERS_APPLIED)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|filter| filter.trim().eq_ignore_ascii_case("artifactType"))
}

/// The address of the next page.
fn next_page(reply: &Reply) -> Option<String> {
    let links = reply.headers().get_all(LINK).iter();
    links
        .filter_map(|value| value.to_str().ok())
        .find_map(next_link)
        .map(str::to_owned)
}

/// The target of the link with `rel="next"` out of a `Link` header (RFC 8288, section 3).
fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (_, link) = rest.split_once('<')?;
        let (target, after) = link.split_once('>')?;
        let (parameters, others) = split_outside_quotes(after, ',');
        if relates_next(parameters) {
            return Some(target);
        }
        rest = others;
    }
}

fn relates_next(mut parameters: &str) -> bool {
    while !parameters.is_empty() {
        let (parameter, rest) = split_outside_quotes(parameters, ';');
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("rel")
        {
            let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
            return relations.any(|relation| relation.eq_ignore_ascii_case("next"));
        }
        parameters = rest;
    }
    false
}

/// What stands before and after the first `separator` that is not inside quotes.
fn split_outside_quotes(text: &str, separator: char) -> (&str, &str) {
    let mut is_quoted = false;
    for (position, letter) in text.char_indices() {
        if letter == '"' {
            is_quoted = !is_quoted;
        } else if letter == separator && !is_quoted {
            return (&text[..position], &text[position + separator.len_utf8()..]);
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_that_of_the_specification() {
        let tag = fallback_tag(&Digest::of(b""));
        assert_eq!(
            tag.as_str(),
            "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn the_next_page_is_found_among_links() {
        for (header, target) in [
            ("</v2/a?n=1>; rel=\"next\"", Some("/v2/a?n=1")),
            ("</v2/a>;rel=next", Some("/v2/a")),
            ("</a>; REL=\"prev Next\"", Some("/a")),
            (
                "</a,b;c>; title=\"x, y; rel=next\"; rel=next",
                Some("/a,b;c"),
            ),
            ("</a>; rel=\"prev\", </b>; rel=\"next\"", Some("/b")),
            (
                "</a>; rel=\"prev\"; title=\"<\", </b>; rel=next",
                Some("/b"),
            ),
            ("<>; rel=next", Some("")),
            // The first `rel` counts.
            ("</a>; rel=prev; rel=next", None),
            ("</a>; relation=next", None),
            ("</a>", None),
            ("</a; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_link(header), target, "{header}");
        }
    }
}
