//! An independent judge of finished images: everything is recomputed from bytes.
//!
//! [`Checker`] returns all problems it finds; [`assert_clean`] turns them into a failed test.
//! [`LoadedImage`] reads an image back for closer looks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use serde_json::Value;
use tierce_oci::Digest;

use crate::FakeRegistry;
use crate::images::{Format, Packing};
use crate::tree::{self, Entry, Node, Tree, read_tar};

const FORMATS: [Format; 2] = [Format::Docker, Format::Oci];
const PACKINGS: [Packing; 3] = [Packing::None, Packing::Gzip, Packing::Zstd];
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Fails the test with every problem on a line of its own.
///
/// # Panics
/// When there is a problem.
#[track_caller]
pub fn assert_clean(problems: &[String]) {
    assert!(
        problems.is_empty(),
        "the image is not sound:\n  {}",
        problems.join("\n  ")
    );
}

/// Where an image's bytes are.
enum Place<'a> {
    Layout(&'a Path),
    Registry(&'a FakeRegistry, &'a str),
    Members(&'a BTreeMap<String, Vec<u8>>),
}

impl Place<'_> {
    fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = format!("blobs/sha256/{}", digest.hex());
        match self {
            Self::Layout(directory) => fs::read(directory.join(path)).ok(),
            Self::Members(members) => members.get(&path).cloned(),
            Self::Registry(registry, repository) => {
                let manifest = registry.manifest(repository, &digest.to_string());
                let bytes = manifest.map(|(_, bytes)| bytes);
                bytes
                    .or_else(|| registry.blob(repository, digest))
                    .map(Vec::from)
            }
        }
    }

    fn file(&self, name: &str) -> Option<Vec<u8>> {
        match self {
            Self::Layout(directory) => fs::read(directory.join(name)).ok(),
            Self::Members(members) => members.get(name).cloned(),
            Self::Registry(..) => None,
        }
    }
}

/// Judges images, by the image specification and, when told, by Lambda's stricter rules.
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct Checker {
    lambda_from: Option<usize>,
}

impl Checker {
    /// Judges by the image specification alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges the layers from this one on (the lowest is 0) by Lambda's rules too: gzip in one
    /// member, every ancestor of a path present, no hard links.
    pub fn lambda_rules_from(mut self, layer: usize) -> Self {
        self.lambda_from = Some(layer);
        self
    }

    /// Judges an OCI layout directory and every image in it.
    pub fn layout(self, directory: &Path) -> Vec<String> {
        let mut walk = Walk::new(self, Place::Layout(directory));
        walk.layout();
        walk.unexpected_blobs(directory);
        walk.problems
    }

    /// Judges an OCI layout in one tar.
    pub fn oci_archive(self, file: &Path) -> Vec<String> {
        let members = match read_members(file) {
            Ok(members) => members,
            Err(problem) => return vec![problem],
        };
        let mut walk = Walk::new(self, Place::Members(&members));
        walk.layout();
        walk.problems
    }

    /// Judges a docker-archive of either style; the newer is judged as an OCI layout too.
    pub fn docker_archive(self, file: &Path) -> Vec<String> {
        let members = match read_members(file) {
            Ok(members) => members,
            Err(problem) => return vec![problem],
        };
        let mut walk = Walk::new(self, Place::Members(&members));
        walk.docker_archive(&members);
        if members.contains_key("oci-layout") {
            walk.layout();
        }
        walk.problems
    }

    /// Judges an image or index in a fake registry, by tag or digest.
    pub fn registry(
        self,
        registry: &FakeRegistry,
        repository: &str,
        reference: &str,
    ) -> Vec<String> {
        let mut walk = Walk::new(self, Place::Registry(registry, repository));
        match registry.manifest(repository, reference) {
            None => walk.problem("registry", format!("there is no {repository} {reference}")),
            Some((media_type, bytes)) => walk.manifest(reference, &media_type, &bytes, None),
        }
        walk.problems
    }
}

struct Walk<'a> {
    rules: Checker,
    place: Place<'a>,
    problems: Vec<String>,
    reached: BTreeSet<Digest>,
}

impl<'a> Walk<'a> {
    fn new(rules: Checker, place: Place<'a>) -> Self {
        Self {
            rules,
            place,
            problems: Vec::new(),
            reached: BTreeSet::new(),
        }
    }

    fn problem(&mut self, at: &str, what: impl Into<String>) {
        self.problems.push(format!("{at}: {}", what.into()));
    }

    fn json(&mut self, at: &str, bytes: &[u8]) -> Option<Value> {
        match serde_json::from_slice::<Value>(bytes) {
            Ok(value) if value.is_object() || value.is_array() => Some(value),
            Ok(_) => {
                self.problem(at, "is neither an object nor an array");
                None
            }
            Err(problem) => {
                self.problem(at, format!("is not JSON: {problem}"));
                None
            }
        }
    }

    fn layout(&mut self) {
        match self.place.file("oci-layout") {
            None => self.problem("oci-layout", "is missing"),
            Some(bytes) => {
                if let Some(marker) = self.json("oci-layout", &bytes)
                    && marker["imageLayoutVersion"] != "1.0.0"
                {
                    self.problem("oci-layout", "imageLayoutVersion is not 1.0.0");
                }
            }
        }
        let Some(bytes) = self.place.file("index.json") else {
            return self.problem("index.json", "is missing");
        };
        let Some(index) = self.json("index.json", &bytes) else {
            return;
        };
        let media_type = index["mediaType"].as_str().unwrap_or(Format::Oci.index());
        if media_type != Format::Oci.index() {
            self.problem("index.json", format!("mediaType is {media_type}"));
        }
        let mut names = BTreeSet::new();
        for name in index["manifests"].as_array().into_iter().flatten() {
            if let Some(name) = name["annotations"][REF_NAME].as_str()
                && !names.insert(name)
            {
                self.problem("index.json", format!("two manifests are named {name}"));
            }
        }
        self.index("index.json", &index, None);
    }

    fn unexpected_blobs(&mut self, directory: &Path) {
        let Ok(blobs) = fs::read_dir(directory.join("blobs/sha256")) else {
            return self.problem("blobs/sha256", "cannot be listed");
        };
        for blob in blobs.flatten() {
            let name = blob.file_name().to_string_lossy().into_owned();
            match format!("sha256:{name}").parse::<Digest>() {
                Err(_) => self.problem("blobs/sha256", format!("{name} is no blob's name")),
                Ok(digest) if !self.reached.contains(&digest) => {
                    // Blobs that nothing names are allowed, but they must be what they say.
                    let found = fs::read(blob.path()).map(|bytes| Digest::of(&bytes));
                    if found.ok() != Some(digest) {
                        self.problem("blobs/sha256", format!("{name} has other bytes"));
                    }
                }
                Ok(_) => {}
            }
        }
    }

    /// Checks a descriptor and returns its media type and the bytes it names.
    fn descriptor(&mut self, at: &str, descriptor: &Value) -> Option<(String, Vec<u8>)> {
        let Some(media_type) = descriptor["mediaType"].as_str() else {
            self.problem(at, "the descriptor has no mediaType");
            return None;
        };
        if !is_media_type(media_type) {
            self.problem(at, format!("{media_type:?} is not a media type"));
        }
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let Ok(digest) = digest.parse::<Digest>() else {
            self.problem(at, format!("{digest:?} is not a digest"));
            return None;
        };
        if let Some(annotations) = descriptor.get("annotations") {
            self.strings(at, "annotations", annotations);
        }
        self.reached.insert(digest);
        let Some(bytes) = self.place.blob(&digest) else {
            self.problem(at, format!("{digest} is missing"));
            return None;
        };
        let actual = Digest::of(&bytes);
        if actual != digest {
            self.problem(at, format!("{digest} has the bytes of {actual}"));
        }
        if descriptor["size"].as_u64() != Some(bytes.len() as u64) {
            let size = &descriptor["size"];
            self.problem(
                at,
                format!("size is {size}, the blob has {} bytes", bytes.len()),
            );
        }
        Some((media_type.to_owned(), bytes))
    }

    fn manifest(&mut self, at: &str, media_type: &str, bytes: &[u8], platform: Option<&Value>) {
        let Some(manifest) = self.json(at, bytes) else {
            return;
        };
        let Some(format) = format_of(media_type) else {
            return self.problem(at, format!("{media_type} is neither image nor index"));
        };
        match &manifest["mediaType"] {
            // Only OCI leaves it out.
            Value::Null if format == Format::Oci => {}
            own if own == media_type => {}
            own => self.problem(at, format!("mediaType is {own}, described as {media_type}")),
        }
        if media_type == format.index() {
            self.index(at, &manifest, Some(format));
        } else {
            self.image(at, &manifest, format, platform);
        }
    }

    fn index(&mut self, at: &str, index: &Value, format: Option<Format>) {
        if index["schemaVersion"] != 2 {
            self.problem(at, "schemaVersion is not 2");
        }
        let Some(manifests) = index["manifests"].as_array() else {
            return self.problem(at, "manifests is not a list");
        };
        for (number, child) in manifests.iter().enumerate() {
            let at = format!("{at} manifests[{number}]");
            let platform = child.get("platform");
            if let Some(platform) = platform
                && !(platform["architecture"].is_string() && platform["os"].is_string())
            {
                self.problem(&at, "the platform lacks architecture or os");
            }
            let Some((media_type, bytes)) = self.descriptor(&at, child) else {
                continue;
            };
            if format.is_some_and(|format| format_of(&media_type) != Some(format)) {
                self.problem(&at, format!("{media_type} is not of the index's format"));
            }
            self.manifest(&at, &media_type, &bytes, platform);
        }
    }

    fn image(&mut self, at: &str, manifest: &Value, format: Format, platform: Option<&Value>) {
        if manifest["schemaVersion"] != 2 {
            self.problem(at, "schemaVersion is not 2");
        }
        if let Some(annotations) = manifest.get("annotations") {
            self.strings(at, "annotations", annotations);
            if format == Format::Docker {
                self.problem(at, "a Docker manifest has annotations");
            }
        }
        let config_at = format!("{at} config");
        let config = self.descriptor(&config_at, &manifest["config"]);
        let Some(layers) = manifest["layers"].as_array() else {
            return self.problem(at, "layers is not a list");
        };
        let mut tars = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let at = format!("{at} layers[{number}]");
            let Some((media_type, blob)) = self.descriptor(&at, layer) else {
                tars.push(None);
                continue;
            };
            let packing = PACKINGS
                .into_iter()
                .find(|one| format.layer(*one) == media_type);
            let Some(packing) = packing else {
                self.problem(&at, format!("{media_type} is no layer of this format"));
                tars.push(None);
                continue;
            };
            let strict = self.rules.lambda_from.is_some_and(|first| number >= first);
            if strict && packing != Packing::Gzip {
                self.problem(&at, "is not packed with gzip");
            }
            match unpack(&blob, packing, strict) {
                Ok(tar) => tars.push(Some(tar)),
                Err(problem) => {
                    self.problem(&at, problem);
                    tars.push(None);
                }
            }
        }
        let Some((media_type, config)) = config else {
            return;
        };
        if media_type != format.config() {
            return self.problem(
                &config_at,
                format!("{media_type} is no config of this format"),
            );
        }
        if let Some(config) = self.json(&config_at, &config) {
            self.config(&config_at, &config, &tars);
            let differs = |key: &str| platform.is_some_and(|platform| platform[key] != config[key]);
            if differs("architecture") || differs("os") {
                self.problem(&config_at, "is for another platform than the index says");
            }
        }
        self.layers(at, &tars);
    }

    /// Checks the layers' entries, each layer for itself and all on top of each other.
    fn layers(&mut self, at: &str, tars: &[Option<Vec<u8>>]) {
        for (number, tar) in tars.iter().enumerate() {
            let at = format!("{at} layers[{number}]");
            let strict = self.rules.lambda_from.is_some_and(|first| number >= first);
            match tar.as_deref().map(read_tar) {
                None => {}
                Some(Err(problem)) => self.problem(&at, problem),
                Some(Ok(entries)) => {
                    for problem in entry_problems(&entries, strict) {
                        self.problem(&at, problem);
                    }
                }
            }
        }
        if let Some(tars) = tars
            .iter()
            .map(Option::as_deref)
            .collect::<Option<Vec<&[u8]>>>()
            && tars.iter().all(|tar| read_tar(tar).is_ok())
            && let Err(problem) = tree::extract(tars)
        {
            self.problem(at, problem);
        }
    }

    fn config(&mut self, at: &str, config: &Value, tars: &[Option<Vec<u8>>]) {
        for key in ["architecture", "os"] {
            if config[key].as_str().is_none_or(str::is_empty) {
                self.problem(at, format!("{key} is missing"));
            }
        }
        self.moment(at, &config["created"]);
        if config["rootfs"]["type"] != "layers" {
            self.problem(at, "rootfs.type is not \"layers\"");
        }
        let Some(diff_ids) = config["rootfs"]["diff_ids"].as_array() else {
            return self.problem(at, "rootfs.diff_ids is not a list");
        };
        if diff_ids.len() != tars.len() {
            let (ids, layers) = (diff_ids.len(), tars.len());
            self.problem(at, format!("there are {ids} diff ids for {layers} layers"));
        }
        for (number, (diff_id, tar)) in diff_ids.iter().zip(tars).enumerate() {
            let parsed = diff_id
                .as_str()
                .and_then(|text| text.parse::<Digest>().ok());
            if parsed.is_none() {
                self.problem(at, format!("diff_ids[{number}] {diff_id} is not a digest"));
            } else if let Some(actual) = tar.as_deref().map(Digest::of)
                && parsed != Some(actual)
            {
                self.problem(
                    at,
                    format!("diff_ids[{number}] is {diff_id}, the tar {actual}"),
                );
            }
        }
        match &config["history"] {
            Value::Null => {}
            Value::Array(history) => {
                let full = history
                    .iter()
                    .filter(|entry| entry["empty_layer"] != true)
                    .count();
                if full != tars.len() {
                    let layers = tars.len();
                    self.problem(at, format!("history tells of {full} layers, not {layers}"));
                }
                for entry in history {
                    self.moment(at, &entry["created"]);
                }
            }
            _ => self.problem(at, "history is not a list"),
        }
        self.execution(at, &config["config"]);
    }

    /// Checks the part of the config that says how to run the image.
    fn execution(&mut self, at: &str, config: &Value) {
        if !(config.is_null() || config.is_object()) {
            return self.problem(at, "config is not an object");
        }
        for key in ["Env", "Entrypoint", "Cmd"] {
            let list = &config[key];
            let fine = list.is_null()
                || list
                    .as_array()
                    .is_some_and(|list| list.iter().all(Value::is_string));
            if !fine {
                self.problem(at, format!("{key} is not a list of texts"));
            }
        }
        let mut names = BTreeSet::new();
        for variable in config["Env"].as_array().into_iter().flatten() {
            match variable.as_str().and_then(|text| text.split_once('=')) {
                Some((name, _)) if !name.is_empty() => {
                    if !names.insert(name) {
                        self.problem(at, format!("Env sets {name} twice"));
                    }
                }
                _ => self.problem(at, format!("Env holds {variable}")),
            }
        }
        for key in ["Volumes", "ExposedPorts"] {
            let map = &config[key];
            let fine = map.is_null()
                || map.as_object().is_some_and(|map| {
                    map.values()
                        .all(|value| value.as_object().is_some_and(serde_json::Map::is_empty))
                });
            if !fine {
                self.problem(at, format!("{key} is not a map to empty objects"));
            }
        }
        if !config["Labels"].is_null() {
            self.strings(at, "Labels", &config["Labels"]);
        }
        for key in ["User", "WorkingDir", "StopSignal"] {
            if !(config[key].is_null() || config[key].is_string()) {
                self.problem(at, format!("{key} is not a text"));
            }
        }
    }

    fn strings(&mut self, at: &str, key: &str, map: &Value) {
        let fine = map
            .as_object()
            .is_some_and(|map| map.values().all(Value::is_string));
        if !fine {
            self.problem(at, format!("{key} is not a map of texts"));
        }
    }

    fn moment(&mut self, at: &str, moment: &Value) {
        let fine = match moment {
            Value::Null => true,
            Value::String(text) => is_rfc3339(text),
            _ => false,
        };
        if !fine {
            self.problem(at, format!("created {moment} is not an RFC 3339 moment"));
        }
    }

    fn docker_archive(&mut self, members: &BTreeMap<String, Vec<u8>>) {
        let Some(manifest) = members.get("manifest.json") else {
            return self.problem("manifest.json", "is missing");
        };
        let Some(manifest) = self.json("manifest.json", manifest) else {
            return;
        };
        let Some(images) = manifest.as_array().filter(|images| !images.is_empty()) else {
            return self.problem("manifest.json", "is not a list of images");
        };
        for (number, image) in images.iter().enumerate() {
            let at = format!("manifest.json[{number}]");
            let tags = &image["RepoTags"];
            let tagged = |tag: &Value| {
                // A port's colon comes before a slash, a tag's after the last.
                let name = tag.as_str().and_then(|tag| tag.rsplit('/').next());
                name.is_some_and(|name| name.contains(':'))
            };
            if !(tags.is_null() || tags.as_array().is_some_and(|tags| tags.iter().all(tagged))) {
                self.problem(&at, format!("RepoTags is {tags}"));
            }
            let name = image["Config"].as_str().unwrap_or_default();
            let Some(config) = members.get(name) else {
                self.problem(&at, format!("the config {name:?} is missing"));
                continue;
            };
            let hex = Path::new(name)
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy();
            if Digest::of(config).hex() != hex {
                self.problem(&at, format!("the config {name} has another digest"));
            }
            let mut layers = Vec::new();
            for layer in image["Layers"].as_array().into_iter().flatten() {
                let name = layer.as_str().unwrap_or_default();
                let Some(blob) = members.get(name) else {
                    self.problem(&at, format!("the layer {name:?} is missing"));
                    layers.push(None);
                    continue;
                };
                match unpack(blob, sniff(blob), false) {
                    Ok(tar) => layers.push(Some(tar)),
                    Err(problem) => {
                        self.problem(&at, format!("{name}: {problem}"));
                        layers.push(None);
                    }
                }
            }
            if let Some(config) = self.json(&at, config) {
                self.config(&at, &config, &layers);
            }
            self.layers(&at, &layers);
        }
    }
}

fn format_of(media_type: &str) -> Option<Format> {
    FORMATS
        .into_iter()
        .find(|format| media_type == format.manifest() || media_type == format.index())
}

fn is_media_type(text: &str) -> bool {
    let name = |part: &str| {
        part.len() <= 127
            && part
                .bytes()
                .next()
                .is_some_and(|byte| byte.is_ascii_alphanumeric())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    text.split_once('/')
        .is_some_and(|(kind, subtype)| name(kind) && name(subtype))
}

/// `2024-01-31T23:59:60.123Z` or with an offset; upper-case letters only.
fn is_rfc3339(text: &str) -> bool {
    let number = |range: std::ops::Range<usize>| {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse::<u32>().ok())?
    };
    let at = |index: usize| text.as_bytes().get(index).copied();
    let (Some(year), Some(month), Some(day)) = (number(0..4), number(5..7), number(8..10)) else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    };
    let clock = number(11..13).is_some_and(|hour| hour < 24)
        && number(14..16).is_some_and(|minute| minute < 60)
        && number(17..19).is_some_and(|second| second <= 60);
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !(separators
        .iter()
        .all(|(index, byte)| at(*index) == Some(*byte))
        && (1..=12).contains(&month)
        && (1..=days).contains(&day)
        && clock)
    {
        return false;
    }
    let mut zone = &text[19..];
    if let Some(fraction) = zone.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return false;
        }
        zone = &fraction[digits..];
    }
    let offset = zone
        .strip_prefix(['+', '-'])
        .and_then(|offset| offset.split_once(':'));
    let two = |part: &str, limit: u32| {
        part.len() == 2 && part.parse::<u32>().is_ok_and(|number| number < limit)
    };
    zone == "Z" || offset.is_some_and(|(hour, minute)| two(hour, 24) && two(minute, 60))
}

fn sniff(blob: &[u8]) -> Packing {
    match blob {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        _ => Packing::None,
    }
}

fn unpack(blob: &[u8], packing: Packing, one_member: bool) -> Result<Vec<u8>, String> {
    match packing {
        Packing::None => Ok(blob.to_vec()),
        Packing::Zstd => zstd::decode_all(blob).map_err(|problem| format!("zstd: {problem}")),
        Packing::Gzip => {
            let mut tar = Vec::new();
            let mut rest = blob;
            let mut members = 0;
            while !rest.is_empty() {
                let mut decoder = GzDecoder::new(rest);
                decoder
                    .read_to_end(&mut tar)
                    .map_err(|problem| format!("gzip: {problem}"))?;
                rest = decoder.into_inner();
                members += 1;
            }
            match members {
                0 => Err("gzip: the blob is empty".to_owned()),
                2.. if one_member => Err(format!("gzip: there are {members} members")),
                _ => Ok(tar),
            }
        }
    }
}

fn entry_problems(entries: &[Entry], strict: bool) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen: BTreeMap<&str, &Node> = BTreeMap::new();
    let all: BTreeSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    for entry in entries {
        let path = entry.path.as_str();
        if path.split('/').any(|part| part == "..") {
            problems.push(format!("{path} leads out of the tree"));
        }
        if entry.raw_path.starts_with('/') {
            problems.push(format!("{} is absolute", entry.raw_path));
        }
        if seen.insert(path, &entry.node).is_some() {
            problems.push(format!("{path} stands there twice"));
        }
        let mut parent = path;
        while let Some((above, _)) = parent.rsplit_once('/') {
            parent = above;
            match seen.get(parent) {
                Some(Node::Directory) => {}
                Some(_) => problems.push(format!("{path} lies in {parent}, no directory")),
                None if all.contains(parent) => {
                    problems.push(format!("{path} comes before its parent {parent}"));
                }
                None if strict => problems.push(format!("{path} lacks its ancestor {parent}")),
                None => {}
            }
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        match &entry.node {
            Node::File(bytes) if name.starts_with(".wh.") && !bytes.is_empty() => {
                problems.push(format!("the whiteout {path} is not empty"));
            }
            Node::Hardlink(target) => {
                if strict {
                    problems.push(format!("{path} is a hard link"));
                }
                if all.contains(target.as_str()) && !seen.contains_key(target.as_str()) {
                    problems.push(format!("{path} comes before its target {target}"));
                }
            }
            Node::Other(flag) if strict => {
                problems.push(format!("{path} is of type {:?}", char::from(*flag)));
            }
            _ => {}
        }
        if entry.raw_path.ends_with('/') && entry.node != Node::Directory {
            problems.push(format!("{path} ends in a slash and is no directory"));
        }
    }
    problems
}

/// The files of an archive by name; links between them are followed.
fn read_members(file: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let bytes = fs::read(file).map_err(|problem| format!("{}: {problem}", file.display()))?;
    let entries = read_tar(&bytes).map_err(|why| format!("{}: {why}", file.display()))?;
    let mut members = BTreeMap::new();
    let mut links = Vec::new();
    for entry in entries {
        match entry.node {
            Node::File(bytes) => {
                members.insert(entry.path, bytes);
            }
            Node::Hardlink(target) => links.push((entry.path, target)),
            Node::Symlink(target) => {
                let parent = Path::new(&entry.path).parent().unwrap_or(Path::new(""));
                let mut resolved = PathBuf::new();
                for part in parent.join(target).components() {
                    match part {
                        std::path::Component::ParentDir => {
                            resolved.pop();
                        }
                        part => resolved.push(part),
                    }
                }
                links.push((entry.path, resolved.to_string_lossy().into_owned()));
            }
            _ => {}
        }
    }
    for (path, target) in links {
        if let Some(bytes) = members.get(&target).cloned() {
            members.insert(path, bytes);
        }
    }
    Ok(members)
}

/// An image of one platform, read back from where tierce (or another tool) put it.
#[derive(Debug, Clone)]
pub struct LoadedImage {
    /// The manifest's media type; empty for a plain docker-archive, which has no manifest.
    pub media_type: String,
    /// The manifest's exact bytes, or those of `manifest.json` for a plain docker-archive.
    pub manifest_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: Value,
    /// The config's exact bytes.
    pub config_bytes: Vec<u8>,
    /// The config.
    pub config: Value,
    /// The layers' blobs as stored, the lowest first.
    pub blobs: Vec<Vec<u8>>,
    /// The layers' uncompressed tars.
    pub tars: Vec<Vec<u8>>,
}

impl LoadedImage {
    /// Reads an image from an OCI layout: the one named `tag`, or the only one.
    pub fn from_layout(directory: &Path, tag: Option<&str>) -> Result<Self, String> {
        Self::from_place(&Place::Layout(directory), tag)
    }

    /// Reads an image from an OCI layout in one tar, or from a docker-archive of the newer style.
    pub fn from_oci_archive(file: &Path, tag: Option<&str>) -> Result<Self, String> {
        Self::from_place(&Place::Members(&read_members(file)?), tag)
    }

    /// Reads the first image of a docker-archive by its `manifest.json`.
    pub fn from_docker_archive(file: &Path) -> Result<Self, String> {
        let members = read_members(file)?;
        let member = |name: &Value| {
            let found = name.as_str().and_then(|name| members.get(name));
            found
                .cloned()
                .ok_or_else(|| format!("{name} is not in the archive"))
        };
        let manifest_bytes = member(&"manifest.json".into())?;
        let manifest = parse(&manifest_bytes)?;
        let config_bytes = member(&manifest[0]["Config"])?;
        let layers = manifest[0]["Layers"].as_array().into_iter().flatten();
        let blobs = layers.map(member).collect::<Result<Vec<_>, _>>()?;
        Self::of(String::new(), manifest_bytes, config_bytes, blobs)
    }

    /// Reads an image from a fake registry, by tag or digest.
    pub fn from_registry(
        registry: &FakeRegistry,
        repository: &str,
        reference: &str,
    ) -> Result<Self, String> {
        let (media_type, bytes) = registry
            .manifest(repository, reference)
            .ok_or_else(|| format!("there is no {repository} {reference}"))?;
        Self::from_manifest(
            &Place::Registry(registry, repository),
            media_type,
            bytes.into(),
        )
    }

    fn from_place(place: &Place<'_>, tag: Option<&str>) -> Result<Self, String> {
        let index = place.file("index.json").ok_or("there is no index.json")?;
        let index = parse(&index)?;
        let mut manifests = index["manifests"].as_array().into_iter().flatten();
        let found = manifests
            .find(|found| tag.is_none_or(|tag| found["annotations"][REF_NAME] == tag))
            .ok_or_else(|| format!("index.json names no {tag:?}"))?;
        let (media_type, bytes) = fetch(place, found)?;
        Self::from_manifest(place, media_type, bytes)
    }

    fn from_manifest(
        place: &Place<'_>,
        media_type: String,
        manifest_bytes: Vec<u8>,
    ) -> Result<Self, String> {
        let manifest = parse(&manifest_bytes)?;
        if !manifest["manifests"].is_null() {
            return Err(format!("{media_type} is an index"));
        }
        let (_, config_bytes) = fetch(place, &manifest["config"])?;
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let blobs = layers
            .map(|layer| Ok(fetch(place, layer)?.1))
            .collect::<Result<Vec<_>, String>>()?;
        Self::of(media_type, manifest_bytes, config_bytes, blobs)
    }

    fn of(
        media_type: String,
        manifest_bytes: Vec<u8>,
        config_bytes: Vec<u8>,
        blobs: Vec<Vec<u8>>,
    ) -> Result<Self, String> {
        let tars = blobs.iter().map(|blob| unpack(blob, sniff(blob), false));
        Ok(Self {
            media_type,
            manifest: parse(&manifest_bytes)?,
            manifest_bytes,
            config: parse(&config_bytes)?,
            config_bytes,
            tars: tars.collect::<Result<Vec<_>, _>>()?,
            blobs,
        })
    }

    /// The entries of one layer, in order.
    pub fn entries(&self, layer: usize) -> Result<Vec<Entry>, String> {
        let tar = self
            .tars
            .get(layer)
            .ok_or_else(|| format!("there is no layer {layer}"))?;
        read_tar(tar)
    }

    /// The file system that a container of this image starts with.
    pub fn tree(&self) -> Result<Tree, String> {
        tree::extract(&self.tars)
    }
}

fn parse(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(bytes).map_err(|problem| problem.to_string())
}

fn fetch(place: &Place<'_>, descriptor: &Value) -> Result<(String, Vec<u8>), String> {
    let digest = descriptor["digest"]
        .as_str()
        .and_then(|text| text.parse::<Digest>().ok());
    let digest = digest.ok_or_else(|| format!("{descriptor} has no digest"))?;
    let bytes = place
        .blob(&digest)
        .ok_or_else(|| format!("{digest} is missing"))?;
    Ok((
        descriptor["mediaType"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        bytes,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{self, ImageBuilder, LayerBuilder, TestImage};

    fn problems(image: &TestImage) -> Vec<String> {
        let registry = FakeRegistry::start();
        image.put(&registry, "a", Some("t"));
        Checker::new()
            .lambda_rules_from(0)
            .registry(&registry, "a", "t")
    }

    #[test]
    fn the_ready_made_bases_are_sound_wherever_they_are_written() {
        for format in FORMATS {
            for image in [
                images::small_base(format, "arm64"),
                images::merged_usr_base(format, "amd64"),
                images::lambda_base(format, "arm64"),
                images::null_history_base(format, "arm64"),
                images::rich_config_base(format, "arm64"),
            ] {
                assert_clean(&problems(&image));
                let directory = tempfile::tempdir().unwrap();
                let path = |name: &str| directory.path().join(name);
                image.write_layout(&path("layout"), Some("t"));
                image.write_layout(&path("layout"), None);
                assert_clean(&Checker::new().layout(&path("layout")));
                image.write_oci_archive(&path("oci.tar"), None);
                assert_clean(&Checker::new().oci_archive(&path("oci.tar")));
                image.write_docker_archive(&path("old.tar"), Some("localhost:5000/a:1"));
                assert_clean(&Checker::new().docker_archive(&path("old.tar")));
                image.write_hybrid_archive(&path("new.tar"), Some("a:1"));
                assert_clean(&Checker::new().docker_archive(&path("new.tar")));

                let layout = LoadedImage::from_layout(&path("layout"), Some("t")).unwrap();
                assert_eq!(layout.manifest_bytes, image.manifest);
                let old = LoadedImage::from_docker_archive(&path("old.tar")).unwrap();
                assert_eq!(layout.tree(), old.tree());
            }
            let index = images::multi_platform_base(format);
            let directory = tempfile::tempdir().unwrap();
            index.write_layout(directory.path(), Some("t"));
            assert_clean(&Checker::new().layout(directory.path()));
            let registry = FakeRegistry::start();
            index.put(&registry, "a", Some("t"));
            assert_clean(&Checker::new().registry(&registry, "a", "t"));
            assert_eq!(index.image("arm64").config_json()["architecture"], "arm64");
        }
        assert_clean(&Checker::new().registry_image(&images::zstd_base("arm64")));
    }

    impl Checker {
        fn registry_image(self, image: &TestImage) -> Vec<String> {
            let registry = FakeRegistry::start();
            image.put(&registry, "a", Some("t"));
            self.registry(&registry, "a", "t")
        }
    }

    #[test]
    fn what_is_wrong_is_found() {
        let layer = |layer: LayerBuilder| {
            problems(
                &ImageBuilder::new(Format::Oci, "arm64")
                    .layer(&layer)
                    .build(),
            )
        };
        let config = |change: fn(&mut Value)| {
            problems(
                &ImageBuilder::new(Format::Oci, "arm64")
                    .config(change)
                    .build(),
            )
        };
        let small = LayerBuilder::new;
        let cases = [
            (
                layer(small().file("a/b", 0o644, b"")),
                "lacks its ancestor a",
            ),
            (
                layer(small().file("a/b", 0o644, b"").directory("a", 0o755)),
                "before its parent a",
            ),
            (
                layer(small().file("a", 0o644, b"").file("a", 0o644, b"")),
                "stands there twice",
            ),
            (
                layer(small().symlink("a", "b").file("a/c", 0o644, b"")),
                "no directory",
            ),
            (
                layer(small().file("a", 0o644, b"").hardlink("b", "a")),
                "is a hard link",
            ),
            (layer(small().file("../a", 0o644, b"")), "leads out"),
            (layer(small().file("/a", 0o644, b"")), "is absolute"),
            (layer(small().fifo("a")), "is of type"),
            (
                layer(small().packing(Packing::None)),
                "not packed with gzip",
            ),
            (
                config(|config| config["created"] = "2024-02-30T00:00:00Z".into()),
                "RFC 3339",
            ),
            (
                config(|config| config["architecture"] = "".into()),
                "architecture is missing",
            ),
            (
                config(|config| config["config"]["Env"] = "A=b".into()),
                "Env is not a list",
            ),
            (
                config(|config| config["config"]["Env"] = vec!["A=1", "A=2"].into()),
                "A twice",
            ),
            (
                config(|config| config["config"]["Volumes"] = vec!["/a"].into()),
                "empty objects",
            ),
        ];
        for (problems, expected) in cases {
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn broken_blobs_and_counts_are_found() {
        let image = images::small_base(Format::Docker, "arm64");
        let directory = tempfile::tempdir().unwrap();
        image.write_layout(directory.path(), None);
        let blob = directory
            .path()
            .join("blobs/sha256")
            .join(image.layers[0].digest().hex());
        fs::write(&blob, images::zstd_base("arm64").layers[0].blob.clone()).unwrap();
        let found = Checker::new().layout(directory.path()).join("\n");
        assert!(
            found.contains("has the bytes of") && found.contains("size is"),
            "{found}"
        );
        fs::remove_file(&blob).unwrap();
        assert!(Checker::new().layout(directory.path())[0].contains("is missing"));
    }

    #[test]
    fn moments_follow_rfc_3339() {
        for good in ["2024-02-29T23:59:60Z", "1970-01-01T00:00:00.5+02:00"] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "2024-01-01",
            "2024-01-01 00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00+0200",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
