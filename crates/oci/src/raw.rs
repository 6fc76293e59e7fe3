//! Documents with their exact bytes.

use std::collections::BTreeMap;
use std::ops::Deref;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::config::{HistoryEntry, ImageConfig};
use crate::descriptor::Descriptor;
use crate::digest::{DiffId, Digest, ParseDigestError};
use crate::json::{to_canonical, without_nulls};
use crate::manifest::{Index, Manifest};
use crate::media_type::MediaType;
use crate::platform::Platform;

/// A JSON document: exact bytes, their descriptor, and the parsed view.
///
/// What was hashed is what is sent. The view may know less than the bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw<T> {
    bytes: Bytes,
    descriptor: Descriptor,
    view: T,
}

impl<T> Raw<T> {
    /// The bytes that were read or will be written.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The digest of [`Raw::bytes`].
    pub fn digest(&self) -> Digest {
        self.descriptor.digest
    }

    /// Media type, digest and size of the document.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }
}

impl<T> Deref for Raw<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.view
    }
}

/// Why some bytes are not the document they were taken for.
#[derive(Debug, thiserror::Error)]
pub enum ParseDocumentError {
    /// Not JSON.
    #[error("the {0} is not JSON")]
    NotJson(&'static str, #[source] serde_json::Error),
    /// JSON of another shape.
    #[error("the {0} does not follow the image specification")]
    OffSpec(&'static str, #[source] serde_json::Error),
    /// A member that `oci-spec` does not look into is off.
    #[error("the {document} has a bad `{member}`")]
    BadMember {
        /// Which document.
        document: &'static str,
        /// Which member.
        member: &'static str,
    },
    /// A digest in it cannot be used.
    #[error("the {0} has a digest that cannot be used")]
    BadDigest(&'static str, #[source] ParseDigestError),
    /// Neither manifest nor index, or of an age that is gone.
    #[error("`{0}` is not a media type of an image manifest or index")]
    NotAManifest(String),
    /// The document says another type than the one under which it was served.
    #[error("the document was served as `{served}` but calls itself `{written}`")]
    ContradictoryType {
        /// What the server, or the pointing descriptor, said.
        served: String,
        /// What stands in the document.
        written: String,
    },
}

/// A manifest or an index, whichever a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a handful exist at a time, none in a hot path"
)]
pub enum Document {
    /// One image (or another artifact).
    Manifest(Raw<Manifest>),
    /// Several, told apart by platform.
    Index(Raw<Index>),
}

impl Document {
    /// Reads a manifest or index, told apart by `served`, the media type under which it came, or by
    /// its own `mediaType`, or by its shape, in that order.
    ///
    /// A `mediaType` that contradicts `served` is refused: the same bytes must not mean two things
    /// (CVE-2021-41190).
    pub fn parse(bytes: Bytes, served: Option<&MediaType>) -> Result<Self, ParseDocumentError> {
        let value = parse_json("manifest", &bytes)?;
        let written = value
            .get("mediaType")
            .and_then(Value::as_str)
            .map(MediaType::from);
        if let (Some(served), Some(written)) = (served, &written)
            && served.is_manifest()
            && served != written
        {
            return Err(ParseDocumentError::ContradictoryType {
                served: served.to_string(),
                written: written.to_string(),
            });
        }
        // One document with the members of both kinds is the other half of that attack.
        if value.get("manifests").is_some() && value.get("layers").is_some() {
            return Err(ParseDocumentError::BadMember {
                document: "manifest",
                member: "layers",
            });
        }
        let media_type = served
            .filter(|media_type| media_type.is_manifest())
            .cloned()
            .or(written)
            .or_else(|| {
                let oci = crate::media_type::ImageFormat::Oci;
                if value.get("manifests").is_some() {
                    Some(MediaType::Index(oci))
                } else if value.get("config").is_some() {
                    Some(MediaType::Manifest(oci))
                } else {
                    None
                }
            });
        match media_type {
            Some(media_type @ MediaType::Manifest(_)) => {
                let view = view_manifest(value, &media_type)?;
                Ok(Self::Manifest(raw(bytes, media_type, view)))
            }
            Some(media_type @ MediaType::Index(_)) => {
                let view = view_index(value, &media_type)?;
                Ok(Self::Index(raw(bytes, media_type, view)))
            }
            other => Err(ParseDocumentError::NotAManifest(other.map_or_else(
                || "(none)".to_owned(),
                |media_type| media_type.to_string(),
            ))),
        }
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Manifest(manifest) => manifest.bytes(),
            Self::Index(index) => index.bytes(),
        }
    }

    /// Media type, digest and size of the document.
    pub fn descriptor(&self) -> &Descriptor {
        match self {
            Self::Manifest(manifest) => manifest.descriptor(),
            Self::Index(index) => index.descriptor(),
        }
    }

    /// The digest of the document's bytes.
    pub fn digest(&self) -> Digest {
        self.descriptor().digest
    }

    /// The manifest or index that this one is about.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Manifest(manifest) => manifest.subject.as_ref(),
            Self::Index(index) => index.subject.as_ref(),
        }
    }

    /// The document as a list of referrers describes it: with its artifact type and all its
    /// annotations (distribution-spec, "Listing Referrers").
    pub fn as_referrer(&self) -> Descriptor {
        let (artifact_type, annotations) = match self {
            Self::Manifest(manifest) => (
                Some(manifest.listed_type().to_owned()),
                &manifest.annotations,
            ),
            Self::Index(index) => (index.artifact_type.clone(), &index.annotations),
        };
        Descriptor {
            artifact_type,
            annotations: annotations.clone(),
            ..self.descriptor().clone()
        }
    }
}

impl Raw<Manifest> {
    /// Writes `manifest` and keeps the bytes.
    pub fn from_manifest(manifest: Manifest) -> Self {
        let media_type = manifest.media_type.clone();
        raw(encode(&manifest), media_type, manifest)
    }
}

impl Raw<Index> {
    /// Writes `index` and keeps the bytes.
    pub fn from_index(index: Index) -> Self {
        let media_type = index.media_type.clone();
        raw(encode(&index), media_type, index)
    }

    /// The same index with `child` after its others. Members that nobody here knows stay, in the
    /// other children too.
    pub fn with_child(&self, child: &Descriptor) -> Result<Self, ParseDocumentError> {
        let mut value = parse_json("index", &self.bytes)?;
        let child = serde_json::to_value(child)
            .expect("a descriptor has string keys and finite numbers only");
        match &mut value["manifests"] {
            Value::Array(children) => children.push(child),
            // Go programs write an empty list as `null`.
            absent => *absent = json!([child]),
        }
        let media_type = self.media_type.clone();
        value["mediaType"] = json!(media_type);
        let view = view_index(value.clone(), &media_type)?;
        Ok(raw(Bytes::from(to_canonical(&value)), media_type, view))
    }
}

impl Raw<ImageConfig> {
    /// Reads a config that is described by `media_type`.
    pub fn parse_config(bytes: Bytes, media_type: MediaType) -> Result<Self, ParseDocumentError> {
        let value = parse_json("config", &bytes)?;
        let view = view_config(value)?;
        Ok(raw(bytes, media_type, view))
    }

    /// Writes `value` canonically and reads it back as a config.
    pub fn from_json(value: &Value, media_type: MediaType) -> Result<Self, ParseDocumentError> {
        Self::parse_config(Bytes::from(to_canonical(value)), media_type)
    }

    /// The whole config as JSON, to be edited; unknown members included.
    pub fn to_json(&self) -> Result<Value, ParseDocumentError> {
        parse_json("config", &self.bytes)
    }
}

fn raw<T>(bytes: Bytes, media_type: MediaType, view: T) -> Raw<T> {
    let descriptor = Descriptor::of(media_type, &bytes);
    Raw {
        bytes,
        descriptor,
        view,
    }
}

fn encode<T: serde::Serialize>(document: &T) -> Bytes {
    let mut value = serde_json::to_value(document)
        .expect("manifests and indexes have string keys and finite numbers only");
    value["schemaVersion"] = json!(2);
    Bytes::from(to_canonical(&value))
}

fn parse_json(document: &'static str, bytes: &[u8]) -> Result<Value, ParseDocumentError> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ParseDocumentError::NotJson(document, error))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(ParseDocumentError::BadMember {
            document,
            member: "(root)",
        })
    }
}

/// Lets `oci-spec` judge the document, with the `null` lists of Go programs read as empty.
fn conform<T: serde::de::DeserializeOwned>(
    document: &'static str,
    value: Value,
    lists: &[&'static str],
) -> Result<T, ParseDocumentError> {
    let mut value = without_nulls(value);
    for list in lists {
        let mut owner = &mut value;
        let (path, member) = list.rsplit_once('.').unwrap_or(("", list));
        for step in path.split('.').filter(|step| !step.is_empty()) {
            owner = &mut owner[step];
        }
        if let Some(object) = owner.as_object_mut() {
            object.entry(member).or_insert_with(|| json!([]));
        }
    }
    serde_json::from_value(value).map_err(|error| ParseDocumentError::OffSpec(document, error))
}

fn view_manifest(value: Value, media_type: &MediaType) -> Result<Manifest, ParseDocumentError> {
    let spec: oci_spec::image::ImageManifest = conform("manifest", value, &["layers"])?;
    check_schema_version("manifest", spec.schema_version())?;
    Ok(Manifest {
        media_type: media_type.clone(),
        config: view_descriptor("manifest", spec.config())?,
        layers: view_descriptors("manifest", spec.layers())?,
        annotations: sorted(spec.annotations().as_ref()),
        subject: spec
            .subject()
            .as_ref()
            .map(|it| view_descriptor("manifest", it))
            .transpose()?,
        artifact_type: spec.artifact_type().as_ref().map(ToString::to_string),
    })
}

fn view_index(value: Value, media_type: &MediaType) -> Result<Index, ParseDocumentError> {
    let spec: oci_spec::image::ImageIndex = conform("index", value, &["manifests"])?;
    check_schema_version("index", spec.schema_version())?;
    Ok(Index {
        media_type: media_type.clone(),
        manifests: view_descriptors("index", spec.manifests())?,
        annotations: sorted(spec.annotations().as_ref()),
        subject: spec
            .subject()
            .as_ref()
            .map(|it| view_descriptor("index", it))
            .transpose()?,
        artifact_type: spec.artifact_type().as_ref().map(ToString::to_string),
    })
}

fn check_schema_version(document: &'static str, version: u32) -> Result<(), ParseDocumentError> {
    if version == 2 {
        Ok(())
    } else {
        Err(ParseDocumentError::BadMember {
            document,
            member: "schemaVersion",
        })
    }
}

fn view_descriptors(
    document: &'static str,
    descriptors: &[oci_spec::image::Descriptor],
) -> Result<Vec<Descriptor>, ParseDocumentError> {
    descriptors
        .iter()
        .map(|descriptor| view_descriptor(document, descriptor))
        .collect()
}

fn view_descriptor(
    document: &'static str,
    spec: &oci_spec::image::Descriptor,
) -> Result<Descriptor, ParseDocumentError> {
    let digest = spec
        .digest()
        .to_string()
        .parse()
        .map_err(|error| ParseDocumentError::BadDigest(document, error))?;
    Ok(Descriptor {
        media_type: MediaType::from(spec.media_type().to_string().as_str()),
        digest,
        size: spec.size(),
        annotations: sorted(spec.annotations().as_ref()),
        platform: spec.platform().as_ref().map(|platform| {
            Platform::stated(
                &platform.os().to_string(),
                &platform.architecture().to_string(),
                platform.variant().as_deref(),
            )
        }),
        urls: spec.urls().clone().unwrap_or_default(),
        artifact_type: spec.artifact_type().as_ref().map(ToString::to_string),
    })
}

fn view_config(value: Value) -> Result<ImageConfig, ParseDocumentError> {
    let lists = ["rootfs.diff_ids"];
    let spec: oci_spec::image::ImageConfiguration = conform("config", value, &lists)?;
    let diff_ids = spec
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse().map(DiffId))
        .collect::<Result<_, _>>()
        .map_err(|error| ParseDocumentError::BadDigest("config", error))?;
    let history = spec.history().iter().flatten().map(|entry| HistoryEntry {
        created: entry.created().clone(),
        created_by: entry.created_by().clone(),
        comment: entry.comment().clone(),
        empty_layer: entry.empty_layer().unwrap_or(false),
    });
    let run = spec.config().clone().unwrap_or_default();
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let mut exposed_ports = list(run.exposed_ports());
    exposed_ports.sort();
    let mut volumes = list(run.volumes());
    volumes.sort();
    Ok(ImageConfig {
        platform: Platform::stated(
            &spec.os().to_string(),
            &spec.architecture().to_string(),
            spec.variant().as_deref(),
        ),
        created: spec.created().clone(),
        diff_ids,
        history: history.collect(),
        env: list(run.env()),
        entrypoint: list(run.entrypoint()),
        cmd: list(run.cmd()),
        working_dir: text(run.working_dir()),
        user: text(run.user()),
        labels: sorted(run.labels().as_ref()),
        exposed_ports,
        volumes,
        stop_signal: text(run.stop_signal()),
    })
}

// `oci-spec` keeps maps unsorted; they are sorted here, at the only door.
#[expect(
    clippy::disallowed_types,
    reason = "the type of oci-spec, sorted before it goes on"
)]
fn sorted(map: Option<&std::collections::HashMap<String, String>>) -> BTreeMap<String, String> {
    map.into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media_type::{Compression, ImageFormat};

    const LAYER: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest_json(media_type: Option<&str>) -> Value {
        let mut value = json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": LAYER, "size": 2},
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": LAYER,
                "size": 3,
                "annotations": {"b": "2", "a": "1"},
            }],
        });
        if let Some(media_type) = media_type {
            value["mediaType"] = json!(media_type);
        }
        value
    }

    fn parse(value: &Value, served: Option<&str>) -> Result<Document, ParseDocumentError> {
        let served = served.map(MediaType::from);
        Document::parse(Bytes::from(value.to_string()), served.as_ref())
    }

    #[test]
    fn a_manifest_keeps_its_bytes() {
        let text = manifest_json(None).to_string();
        let Document::Manifest(manifest) = parse(&manifest_json(None), None).unwrap() else {
            panic!("not a manifest");
        };
        assert_eq!(manifest.bytes(), text.as_bytes());
        assert_eq!(manifest.digest(), Digest::of(text.as_bytes()));
        let layer = MediaType::Layer(ImageFormat::Oci, Compression::Gzip);
        assert_eq!(manifest.layers[0].media_type, layer);
        assert!(manifest.is_image());
    }

    #[test]
    fn what_is_written_reads_back_and_is_the_same_each_time() {
        let Document::Manifest(read) = parse(&manifest_json(None), None).unwrap() else {
            panic!("not a manifest");
        };
        let written = Raw::from_manifest(Manifest::clone(&read));
        for _ in 0..100 {
            assert_eq!(Raw::from_manifest(Manifest::clone(&read)), written);
        }
        let reread = Document::parse(written.bytes().clone(), None).unwrap();
        assert_eq!(reread, Document::Manifest(written));
    }

    #[test]
    fn a_document_must_be_what_it_is_served_as() {
        let oci = MediaType::Manifest(ImageFormat::Oci);
        let docker = MediaType::Manifest(ImageFormat::DockerV2S2);
        let value = manifest_json(Some(oci.as_str()));
        assert!(parse(&value, Some(oci.as_str())).is_ok());
        assert!(matches!(
            parse(&value, Some(docker.as_str())),
            Err(ParseDocumentError::ContradictoryType { .. })
        ));
        let mut both = manifest_json(None);
        both["manifests"] = json!([]);
        assert!(parse(&both, None).is_err());
        let old = json!({"schemaVersion": 1, "mediaType": "application/vnd.docker.distribution.manifest.v1+json"});
        assert!(matches!(
            parse(&old, None),
            Err(ParseDocumentError::NotAManifest(_))
        ));
        for text in [
            "",
            "[]",
            "null",
            "{}",
            "{\"schemaVersion\":2}",
            "\u{feff}{}",
        ] {
            assert!(Document::parse(Bytes::from(text), None).is_err(), "{text}");
        }
    }

    #[test]
    fn a_go_config_with_nulls_is_read_and_unknown_members_stay() {
        let text = r#"{"architecture":"arm64","variant":"v8","os":"linux","docker_version":"20.10","config":{
            "Env":null,"Cmd":null,"Labels":null,"ExposedPorts":{"9/udp":{},"80/tcp":{}},"User":"",
            "Healthcheck":{"Test":["NONE"]},"OnBuild":null},"rootfs":{"type":"layers","diff_ids":null},
            "history":null}"#;
        let media_type = MediaType::Config(ImageFormat::DockerV2S2);
        let config = Raw::parse_config(Bytes::from(text), media_type).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64");
        assert_eq!(config.exposed_ports, ["80/tcp", "9/udp"]);
        assert_eq!((config.user.as_deref(), config.diff_ids.len()), (None, 0));
        assert_eq!(
            config.to_json().unwrap()["config"]["Healthcheck"]["Test"][0],
            "NONE"
        );
    }

    #[test]
    fn an_index_offers_its_platforms_but_not_attestations() {
        let child = |os: &str, architecture: &str| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": LAYER,
                "size": 1,
                "platform": {"os": os, "architecture": architecture},
            })
        };
        let value = json!({
            "schemaVersion": 2,
            "manifests": [child("unknown", "unknown"), child("linux", "arm64")],
        });
        let Document::Index(index) = parse(&value, None).unwrap() else {
            panic!("not an index")
        };
        assert_eq!(index.platforms(), [Platform::linux("arm64")]);
        assert!(index.child(&Platform::linux("arm64")).is_some());
        assert!(index.child(&Platform::linux("amd64")).is_none());
    }

    fn artifact() -> Manifest {
        let blob = Descriptor {
            annotations: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            ..Descriptor::of(MediaType::from("application/json"), b"[]")
        };
        let subject = Descriptor::of(MediaType::Manifest(ImageFormat::DockerV2S2), b"image");
        let annotations = BTreeMap::from([("b".to_owned(), "2".to_owned())]);
        Manifest::artifact(
            "example/report".to_owned(),
            subject,
            vec![blob],
            annotations,
        )
    }

    #[test]
    fn an_artifact_is_a_manifest_with_the_empty_config() {
        let written = Raw::from_manifest(artifact());
        let text = std::str::from_utf8(written.bytes()).unwrap();
        let expected = "{\"annotations\":{\"b\":\"2\"},\"artifactType\":\"example/report\",\
            \"config\":{\"digest\":\"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\",\
            \"mediaType\":\"application/vnd.oci.empty.v1+json\",\"size\":2},\
            \"layers\":[{\"annotations\":{\"k\":\"v\"},\
            \"digest\":\"sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945\",\
            \"mediaType\":\"application/json\",\"size\":2}],\
            \"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"schemaVersion\":2,\
            \"subject\":{\"digest\":\"sha256:6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d\",\
            \"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\"size\":5}}";
        assert_eq!(text, expected);
        let read = Document::parse(written.bytes().clone(), None).unwrap();
        assert_eq!(read, Document::Manifest(written));
        let listed = read.as_referrer();
        assert_eq!(listed.artifact_type.as_deref(), Some("example/report"));
        assert_eq!(listed.annotations["b"], "2");
        assert_eq!(listed.digest, read.digest());
        let nothing = Manifest::artifact(String::new(), artifact().config, vec![], BTreeMap::new());
        assert_eq!(nothing.layers, [Descriptor::empty()]);
        assert_eq!(nothing.listed_type(), "application/vnd.oci.empty.v1+json");
    }

    #[test]
    fn a_child_more_leaves_the_rest_as_it_was() {
        let text = r#"{"schemaVersion":2,"x-own":{"b":1,"a":[]},"annotations":{"k":"v"},
            "manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "size":1,"data":"e30=","x-own":null}]}"#;
        let index = MediaType::Index(ImageFormat::Oci);
        let parse = |text: &'static str| match Document::parse(Bytes::from(text), Some(&index)) {
            Ok(Document::Index(index)) => index,
            other => panic!("not an index: {other:?}"),
        };
        let before: Value = serde_json::from_str(text).unwrap();
        let child = Document::Manifest(Raw::from_manifest(artifact())).as_referrer();
        let more = parse(text).with_child(&child).unwrap();
        let mut after: Value = serde_json::from_slice(more.bytes()).unwrap();
        let added = after["manifests"].as_array_mut().unwrap().pop().unwrap();
        assert_eq!(added["artifactType"], "example/report");
        assert_eq!(added["annotations"], json!({"b": "2"}));
        let members = after.as_object_mut().unwrap();
        assert_eq!(members.remove("mediaType"), Some(json!(index)));
        assert_eq!(after, before);
        assert_eq!(more.manifests.last(), Some(&child));
        // What reads back is what is at hand.
        let reread = Document::parse(more.bytes().clone(), Some(&index)).unwrap();
        assert_eq!(reread, Document::Index(more));
        let go = parse(r#"{"schemaVersion":2,"manifests":null}"#);
        assert_eq!(go.with_child(&child).unwrap().manifests, [child]);
    }
}
