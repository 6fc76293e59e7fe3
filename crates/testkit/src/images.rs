//! Tiny images made in memory, by other code than tierce's own.
//!
//! Build one with [`ImageBuilder`] or take one of the ready-made bases, then put it where a test
//! wants it: into a [`FakeRegistry`], an OCI layout, or an archive.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tierce_oci::{DiffId, Digest};

use crate::FakeRegistry;
use crate::elf::ElfBuilder;

/// The media types that an image is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Docker's image manifest, version 2 schema 2.
    Docker,
    /// The OCI image manifest.
    Oci,
}

impl Format {
    /// The media type of a manifest.
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
        }
    }

    /// The media type of an index (Docker's name is manifest list).
    pub fn index(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::Oci => "application/vnd.oci.image.index.v1+json",
        }
    }

    /// The media type of a config.
    pub fn config(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.container.image.v1+json",
            Self::Oci => "application/vnd.oci.image.config.v1+json",
        }
    }

    /// The media type of a layer.
    pub fn layer(self, packing: Packing) -> &'static str {
        match (self, packing) {
            (Self::Docker, Packing::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
            (Self::Oci, Packing::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// Not at all.
    None,
    /// With gzip.
    #[default]
    Gzip,
    /// With zstd.
    Zstd,
}

/// Writes a layer's tar entry by entry, in the order called and as told, right or wrong.
#[derive(Debug, Default, Clone)]
#[must_use]
pub struct LayerBuilder {
    members: Vec<Member>,
    packing: Packing,
}

#[derive(Debug, Clone)]
struct Member {
    path: String,
    kind: EntryType,
    mode: u32,
    content: Vec<u8>,
    link: String,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl LayerBuilder {
    /// An empty layer that will be packed with gzip.
    pub fn new() -> Self {
        Self::default()
    }

    fn member(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        content: &[u8],
        link: &str,
    ) -> Self {
        self.members.push(Member {
            path: path.to_owned(),
            kind,
            mode,
            content: content.to_vec(),
            link: link.to_owned(),
            xattrs: Vec::new(),
        });
        self
    }

    /// Adds a directory.
    pub fn directory(self, path: &str, mode: u32) -> Self {
        let path = format!("{}/", path.trim_end_matches('/'));
        self.member(&path, EntryType::Directory, mode, b"", "")
    }

    /// Adds a regular file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.member(path, EntryType::Regular, mode, content, "")
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.member(path, EntryType::Symlink, 0o777, b"", target)
    }

    /// Adds a hard link.
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.member(path, EntryType::Link, 0o644, b"", target)
    }

    /// Adds a FIFO, which layers should not hold.
    pub fn fifo(self, path: &str) -> Self {
        self.member(path, EntryType::Fifo, 0o644, b"", "")
    }

    /// Hides a path of the layers below.
    pub fn whiteout(self, path: &str) -> Self {
        let hidden = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        self.file(&hidden, 0o644, b"")
    }

    /// Hides all that the layers below have in a directory.
    pub fn opaque(self, directory: &str) -> Self {
        self.file(&format!("{directory}/.wh..wh..opq"), 0o644, b"")
    }

    /// Gives the last entry an extended attribute.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        if let Some(member) = self.members.last_mut() {
            member.xattrs.push((name.to_owned(), value.to_vec()));
        }
        self
    }

    /// Chooses the compression.
    pub fn packing(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    /// The uncompressed tar.
    pub fn tar(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for member in &self.members {
            let mut records: Vec<(String, Vec<u8>)> = Vec::new();
            let mut header = Header::new_ustar();
            header.set_entry_type(member.kind);
            header.set_mode(member.mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.set_size(member.content.len() as u64);
            if header.set_path(&member.path).is_err() || member.path.starts_with('/') {
                // Set below by hand: the crate refuses what a hostile archive would hold.
                fill(&mut header.as_old_mut().name, &member.path);
                if member.path.len() > 100 {
                    records.push(("path".to_owned(), member.path.clone().into_bytes()));
                }
            }
            fill(&mut header.as_old_mut().linkname, &member.link);
            if member.link.len() > 100 {
                records.push(("linkpath".to_owned(), member.link.clone().into_bytes()));
            }
            for (name, value) in &member.xattrs {
                records.push((format!("SCHILY.xattr.{name}"), value.clone()));
            }
            if !records.is_empty() {
                let borrowed = records
                    .iter()
                    .map(|(key, value)| (key.as_str(), value.as_slice()));
                builder
                    .append_pax_extensions(borrowed)
                    .expect("a vector takes all bytes");
            }
            header.set_cksum();
            builder
                .append(&header, member.content.as_slice())
                .expect("a vector takes all bytes");
        }
        builder.into_inner().expect("a vector takes all bytes")
    }

    /// Packs the layer.
    pub fn build(&self) -> TestLayer {
        TestLayer::of_tar(self.tar(), self.packing)
    }
}

fn fill(field: &mut [u8], text: &str) {
    field.fill(0);
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}

/// A layer: its tar and its blob.
#[derive(Debug, Clone)]
pub struct TestLayer {
    /// The uncompressed bytes.
    pub tar: Bytes,
    /// The bytes that are stored and sent.
    pub blob: Bytes,
    /// How the one became the other.
    pub packing: Packing,
}

impl TestLayer {
    /// Packs a tar.
    pub fn of_tar(tar: Vec<u8>, packing: Packing) -> Self {
        let blob = match packing {
            Packing::None => tar.clone(),
            Packing::Gzip => gzip(&tar),
            Packing::Zstd => zstd::encode_all(tar.as_slice(), 3).expect("a vector takes all bytes"),
        };
        Self {
            tar: tar.into(),
            blob: blob.into(),
            packing,
        }
    }

    /// The digest of the blob.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    /// The digest of the tar.
    pub fn diff_id(&self) -> DiffId {
        DiffId(Digest::of(&self.tar))
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::new(6));
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("a vector takes all bytes")
}

/// Puts an image together.
#[derive(Debug, Clone)]
#[must_use]
pub struct ImageBuilder {
    format: Format,
    config: Value,
    layers: Vec<TestLayer>,
    history: History,
    annotations: Value,
}

#[derive(Debug, Clone)]
enum History {
    Complete,
    Null,
    Absent,
}

impl ImageBuilder {
    /// An image without layers, for `linux` on an architecture in Go's spelling.
    pub fn new(format: Format, architecture: &str) -> Self {
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        });
        Self {
            format,
            config,
            layers: Vec::new(),
            history: History::Complete,
            annotations: Value::Null,
        }
    }

    /// Adds a layer on top.
    pub fn layer(mut self, layer: &LayerBuilder) -> Self {
        self.layers.push(layer.build());
        self
    }

    /// Changes the config; `rootfs` and `history` are written afterwards.
    pub fn config(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Writes `"history": null`, as some builders do.
    pub fn null_history(mut self) -> Self {
        self.history = History::Null;
        self
    }

    /// Writes no history.
    pub fn without_history(mut self) -> Self {
        self.history = History::Absent;
        self
    }

    /// Sets an annotation of the manifest.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = value.into();
        self
    }

    /// Writes config and manifest.
    pub fn build(self) -> TestImage {
        let mut config = self.config;
        let diff_ids: Vec<String> = self
            .layers
            .iter()
            .map(|layer| layer.diff_id().to_string())
            .collect();
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        match self.history {
            History::Complete => {
                let mut history = vec![json!({
                    "created": "2024-01-01T00:00:00Z",
                    "created_by": "ENV",
                    "empty_layer": true,
                })];
                let of_layer = json!({"created": "2024-01-01T00:00:00Z", "created_by": "ADD"});
                history.resize(self.layers.len() + 1, of_layer);
                config["history"] = history.into();
            }
            History::Null => config["history"] = Value::Null,
            History::Absent => {}
        }
        // Spaced as tierce never writes, so that nobody can re-serialise unnoticed.
        let config = Bytes::from(format!("{config:#}\n"));
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| descriptor(self.format.layer(layer.packing), &layer.blob))
            .collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.format.manifest(),
            "config": descriptor(self.format.config(), &config),
            "layers": layers,
        });
        if !self.annotations.is_null() {
            manifest["annotations"] = self.annotations;
        }
        TestImage {
            format: self.format,
            config,
            layers: self.layers,
            manifest: Bytes::from(format!("{manifest:#}\n")),
        }
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": Digest::of(bytes).to_string(),
        "size": bytes.len(),
    })
}

/// A complete image of one platform.
#[derive(Debug, Clone)]
pub struct TestImage {
    /// Its media types.
    pub format: Format,
    /// The config's exact bytes.
    pub config: Bytes,
    /// The layers, the lowest first.
    pub layers: Vec<TestLayer>,
    /// The manifest's exact bytes.
    pub manifest: Bytes,
}

impl TestImage {
    /// The digest of the manifest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The digest of the config, which Docker calls the image id.
    pub fn config_digest(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// The config as JSON.
    pub fn config_json(&self) -> Value {
        serde_json::from_slice(&self.config).expect("the config was written as JSON")
    }

    /// The bytes of all layers' blobs together.
    pub fn layer_bytes(&self) -> u64 {
        self.layers
            .iter()
            .map(|layer| layer.blob.len() as u64)
            .sum()
    }

    fn blobs(&self) -> impl Iterator<Item = &Bytes> {
        self.layers
            .iter()
            .map(|layer| &layer.blob)
            .chain([&self.config])
    }

    fn descriptor(&self) -> Value {
        descriptor(self.format.manifest(), &self.manifest)
    }

    /// Puts the image into a registry without a request, and returns the manifest's digest.
    pub fn put(&self, registry: &FakeRegistry, repository: &str, tag: Option<&str>) -> Digest {
        for blob in self.blobs() {
            registry.put_blob(repository, blob.clone());
        }
        let media_type = self.format.manifest();
        registry.put_manifest(repository, tag, media_type, self.manifest.clone())
    }

    /// Writes the image into an OCI layout, new or there already, under a tag if one is given.
    ///
    /// # Panics
    /// When the directory cannot be written, or its `index.json` not be read.
    pub fn write_layout(&self, directory: &Path, tag: Option<&str>) {
        for blob in self.blobs().chain([&self.manifest]) {
            write_blob(directory, blob);
        }
        add_to_layout(directory, self.descriptor(), tag);
    }

    /// Writes an OCI layout as one tar.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write_oci_archive(&self, file: &Path, tag: Option<&str>) {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        self.write_layout(directory.path(), tag);
        archive(directory.path(), file);
    }

    /// Writes what `docker save` wrote before version 25: uncompressed `ID/layer.tar` files, a
    /// `manifest.json` and a `repositories` file.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write_docker_archive(&self, file: &Path, tag: Option<&str>) {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let write = |name: &str, bytes: &[u8]| write_file(&directory.path().join(name), bytes);
        let config = format!("{}.json", self.config_digest().hex());
        write(&config, &self.config);
        let mut layers = Vec::new();
        for layer in &self.layers {
            let id = Digest::of(layer.diff_id().to_string().as_bytes()).hex();
            write(&format!("{id}/layer.tar"), &layer.tar);
            write(&format!("{id}/VERSION"), b"1.0");
            write(
                &format!("{id}/json"),
                json!({ "id": id }).to_string().as_bytes(),
            );
            layers.push(format!("{id}/layer.tar"));
        }
        let last = layers
            .last()
            .map(|layer| layer.trim_end_matches("/layer.tar").to_owned());
        if let (Some((name, version)), Some(last)) =
            (tag.and_then(|tag| tag.rsplit_once(':')), last)
        {
            let repositories = json!({name: {version: last}});
            write("repositories", repositories.to_string().as_bytes());
        }
        let tags: Vec<&str> = tag.into_iter().collect();
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]);
        write("manifest.json", manifest.to_string().as_bytes());
        archive(directory.path(), file);
    }

    /// Writes what `docker save` writes since version 25: an OCI layout with a `manifest.json`.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write_hybrid_archive(&self, file: &Path, tag: Option<&str>) {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let short = tag
            .and_then(|tag| tag.rsplit_once(':'))
            .map(|(_, version)| version);
        self.write_layout(directory.path(), short);
        let blob = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
        let layers: Vec<String> = self
            .layers
            .iter()
            .map(|layer| blob(layer.digest()))
            .collect();
        let tags: Vec<&str> = tag.into_iter().collect();
        let config = blob(self.config_digest());
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]);
        write_file(
            &directory.path().join("manifest.json"),
            manifest.to_string().as_bytes(),
        );
        archive(directory.path(), file);
    }
}

/// An index and the images it names.
#[derive(Debug, Clone)]
pub struct TestIndex {
    /// Its media types, and its children's.
    pub format: Format,
    /// The images, in the index's order.
    pub images: Vec<TestImage>,
    /// The index's exact bytes.
    pub index: Bytes,
}

impl TestIndex {
    /// Names images in one index; each brings its platform from its config.
    pub fn of(format: Format, images: Vec<TestImage>) -> Self {
        let manifests: Vec<Value> = images
            .iter()
            .map(|image| {
                let config = image.config_json();
                let mut descriptor = image.descriptor();
                descriptor["platform"] =
                    json!({"architecture": config["architecture"], "os": config["os"]});
                if config["architecture"] == "unknown" {
                    descriptor["annotations"] = json!({
                        "vnd.docker.reference.type": "attestation-manifest",
                        "vnd.docker.reference.digest": images[0].digest().to_string(),
                    });
                }
                descriptor
            })
            .collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": format.index(),
            "manifests": manifests,
        });
        Self {
            format,
            images,
            index: Bytes::from(format!("{index:#}\n")),
        }
    }

    /// The digest of the index.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.index)
    }

    /// The image for an architecture in Go's spelling.
    ///
    /// # Panics
    /// When there is none.
    pub fn image(&self, architecture: &str) -> &TestImage {
        let mut images = self.images.iter();
        images
            .find(|image| image.config_json()["architecture"] == architecture)
            .expect("the test asks for an architecture that the index has")
    }

    /// Puts index and images into a registry without a request, and returns the index's digest.
    pub fn put(&self, registry: &FakeRegistry, repository: &str, tag: Option<&str>) -> Digest {
        for image in &self.images {
            image.put(registry, repository, None);
        }
        registry.put_manifest(repository, tag, self.format.index(), self.index.clone())
    }

    /// Writes index and images into an OCI layout: `index.json` names the index.
    ///
    /// # Panics
    /// When the directory cannot be written, or its `index.json` not be read.
    pub fn write_layout(&self, directory: &Path, tag: Option<&str>) {
        for image in &self.images {
            for blob in image.blobs().chain([&image.manifest]) {
                write_blob(directory, blob);
            }
        }
        write_blob(directory, &self.index);
        add_to_layout(directory, descriptor(self.format.index(), &self.index), tag);
    }
}

fn write_file(path: &Path, bytes: &[u8]) {
    let parent = path.parent().expect("the file lies in a directory");
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, bytes))
        .unwrap_or_else(|why| panic!("could not write {}: {why}", path.display()));
}

fn write_blob(directory: &Path, bytes: &[u8]) {
    let name = Digest::of(bytes).hex();
    write_file(&directory.join("blobs/sha256").join(name), bytes);
}

fn add_to_layout(directory: &Path, mut descriptor: Value, tag: Option<&str>) {
    write_file(
        &directory.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    let path = directory.join("index.json");
    let mut index = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("the layout's index is JSON"),
        Err(_) => json!({"schemaVersion": 2, "mediaType": Format::Oci.index(), "manifests": []}),
    };
    if let Some(tag) = tag {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    }
    if let Some(manifests) = index["manifests"].as_array_mut() {
        let name = &descriptor["annotations"]["org.opencontainers.image.ref.name"];
        manifests.retain(|other| {
            tag.is_none() || other["annotations"]["org.opencontainers.image.ref.name"] != *name
        });
        manifests.push(descriptor);
    }
    write_file(&path, index.to_string().as_bytes());
}

fn archive(directory: &Path, file: &Path) {
    let write = || {
        let mut builder = Builder::new(fs::File::create(file)?);
        builder.append_dir_all("", directory)?;
        builder.into_inner()?.sync_all()
    };
    write().unwrap_or_else(|why| panic!("could not write {}: {why}", file.display()));
}

fn small_layer(architecture: &str) -> LayerBuilder {
    LayerBuilder::new()
        .directory("etc", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
        .file("etc/architecture", 0o644, architecture.as_bytes())
        .directory("tmp", 0o1777)
}

/// A base of one layer with a few files.
pub fn small_base(format: Format, architecture: &str) -> TestImage {
    ImageBuilder::new(format, architecture)
        .layer(&small_layer(architecture))
        .build()
}

/// A base of two layers whose `bin`, `lib` and `lib64` are links into `usr`, as in every current
/// distribution.
pub fn merged_usr_base(format: Format, architecture: &str) -> TestImage {
    let system = LayerBuilder::new()
        .symlink("bin", "usr/bin")
        .directory("etc", 0o755)
        .file("etc/os-release", 0o644, b"ID=tiny\n")
        .symlink("lib", "usr/lib")
        .symlink("lib64", "usr/lib64")
        .directory("usr", 0o755)
        .directory("usr/bin", 0o755)
        .file("usr/bin/sh", 0o755, b"#!/nothing\n")
        .directory("usr/lib", 0o755)
        .directory("usr/lib64", 0o755)
        .file("usr/lib64/libtiny.so.1", 0o755, b"library");
    let extra = LayerBuilder::new()
        .directory("usr", 0o755)
        .directory("usr/lib64", 0o755)
        .symlink("usr/lib64/libtiny.so", "libtiny.so.1")
        .directory("etc", 0o755)
        .whiteout("etc/os-release");
    ImageBuilder::new(format, architecture)
        .layer(&system)
        .layer(&extra)
        .build()
}

/// A base with the config of AWS's Lambda bases: entrypoint script, `/var/task`, `LAMBDA_*`, and a
/// shell for the script to name, which does nothing.
pub fn lambda_base(format: Format, architecture: &str) -> TestImage {
    let system = LayerBuilder::new()
        .directory("bin", 0o755)
        .file("bin/sh", 0o755, &ElfBuilder::new(architecture).build())
        .file(
            "lambda-entrypoint.sh",
            0o755,
            b"#!/bin/sh\nexec /var/runtime/bootstrap \"$@\"\n",
        )
        .directory("var", 0o755)
        .directory("var/runtime", 0o755)
        .file("var/runtime/bootstrap", 0o755, b"#!/bin/sh\n")
        .directory("var/task", 0o755);
    ImageBuilder::new(format, architecture)
        .layer(&small_layer(architecture))
        .layer(&system)
        .config(|config| {
            config["config"] = json!({
                "Env": [
                    "LANG=en_US.UTF-8",
                    "TZ=:/etc/localtime",
                    "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
                    "LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/opt/lib",
                    "LAMBDA_TASK_ROOT=/var/task",
                    "LAMBDA_RUNTIME_DIR=/var/runtime",
                ],
                "Entrypoint": ["/lambda-entrypoint.sh"],
                "WorkingDir": "/var/task",
            });
        })
        .build()
}

/// A base whose config says `"history": null`.
pub fn null_history_base(format: Format, architecture: &str) -> TestImage {
    ImageBuilder::new(format, architecture)
        .layer(&small_layer(architecture))
        .null_history()
        .build()
}

/// A base whose config holds what the OCI types do not know: these fields must survive.
pub fn rich_config_base(format: Format, architecture: &str) -> TestImage {
    ImageBuilder::new(format, architecture)
        .layer(&small_layer(architecture))
        .config(|config| {
            config["docker_version"] = "20.10.24".into();
            config["container"] = "0123456789abcdef".into();
            config["container_config"] = json!({"Cmd": ["/bin/sh", "-c", "#(nop) CMD"]});
            config["com.example.vendor"] = json!({"nested": [1, 2.5, null, "é"]});
            let inner = &mut config["config"];
            inner["Healthcheck"] = json!({"Test": ["CMD", "true"], "Interval": 30_000_000_000_u64});
            inner["OnBuild"] = json!(["RUN true"]);
            inner["Shell"] = json!(["/bin/bash", "-c"]);
            inner["ArgsEscaped"] = true.into();
            inner["ExposedPorts"] = json!({"8080/tcp": {}});
            inner["Volumes"] = json!({"/data": {}});
            inner["Labels"] = json!({"z": "last", "a": "first"});
            inner["StopSignal"] = "SIGTERM".into();
            inner["User"] = "1000:1000".into();
        })
        .build()
}

/// A base whose layer is packed with zstd.
pub fn zstd_base(architecture: &str) -> TestImage {
    ImageBuilder::new(Format::Oci, architecture)
        .layer(&small_layer(architecture).packing(Packing::Zstd))
        .build()
}

/// A base whose layer is a plain tar.
pub fn uncompressed_base(format: Format, architecture: &str) -> TestImage {
    ImageBuilder::new(format, architecture)
        .layer(&small_layer(architecture).packing(Packing::None))
        .build()
}

/// An index with `amd64`, `arm64` and, for OCI, an attestation under `unknown/unknown`.
///
/// The children are [`lambda_base`] images.
pub fn multi_platform_base(format: Format) -> TestIndex {
    let mut images = vec![lambda_base(format, "amd64"), lambda_base(format, "arm64")];
    if format == Format::Oci {
        let statement = LayerBuilder::new().file("statement", 0o644, b"{}");
        let attestation = ImageBuilder::new(format, "unknown").layer(&statement);
        images.push(
            attestation
                .config(|config| config["os"] = "unknown".into())
                .build(),
        );
    }
    TestIndex::of(format, images)
}
