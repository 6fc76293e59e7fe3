//! Small images, and the places under test.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tierce_image::{
    Artifact, Blob, BlobSource, BlobStream, BoxError, ConfigEdits, Content, FileRange, Image,
    ImageSink, Jobs, Layer, Piece, WriteError, WriteReport, assemble, assemble_index,
    read_artifact, read_blob, write,
};
use tierce_oci::{
    Compression, Descriptor, DiffId, Digest, Document, ImageFormat, MediaType, Platform, Selector,
    Tag, Timestamp,
};
use tierce_store::{
    ArchiveKind, ArchiveLayout, ArchiveSink, DockerArchive, Layout, LayoutSink, LocalStore,
    Selected, open_file, open_pieces,
};
use xxhash_rust::xxh3::xxh3_128;

/// Polls to the end: nothing here waits for anything but files.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

pub(crate) fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

/// A gzip layer with one file, and its diff id.
pub(crate) fn layer(name: &str, bytes: &[u8]) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    builder.append_data(&mut header, name, bytes).unwrap();
    let tar = builder.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(&tar).unwrap();
    let blob = gzip.finish().unwrap();
    let media_type = MediaType::Layer(ImageFormat::DockerV2S2, Compression::Gzip);
    Layer {
        descriptor: Descriptor::of(media_type, &blob),
        diff_id: DiffId(Digest::of(&tar)),
        content: Content::Memory(blob.into()),
        created_by: Some(format!("test: {name}")),
        facts: None,
    }
}

/// Bytes that do not compress, the same each time.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Puts the bytes of `layers`, cut into segments of up to 100 kB, into as many packs in `cache`, each
/// with an index at the end. What is left are lists of pieces, as sealing leaves them.
pub(crate) fn packed(layers: Vec<Layer>, cache: &Path, packs: usize) -> Vec<Layer> {
    const HEADER: usize = 10;
    const TRAILER: usize = 8;
    let mut files = vec![Vec::new(); packs];
    let mut count = 0;
    let mut cut = |bytes: &Bytes| {
        let middle = bytes.slice(HEADER..bytes.len() - TRAILER);
        let segments: Vec<(usize, usize, usize, u128)> = middle
            .chunks(100_000)
            .map(|segment| {
                let pack = count % packs;
                let offset = files[pack].len();
                files[pack].extend_from_slice(segment);
                count += 1;
                (pack, offset, segment.len(), xxh3_128(segment))
            })
            .collect();
        segments
    };
    let segments: Vec<_> = layers.iter().map(|layer| cut(&bytes_of(layer))).collect();
    fs::create_dir_all(cache).unwrap();
    let paths: Vec<Arc<Path>> = files
        .into_iter()
        .map(|mut bytes| {
            bytes.extend_from_slice(b"the index");
            let hex = Digest::of(&bytes).hex();
            let path = cache.join(format!("{}.pack", &hex[..16]));
            fs::write(&path, bytes).unwrap();
            path.into()
        })
        .collect();
    let rebuilt = layers
        .into_iter()
        .zip(segments)
        .map(|(mut layer, segments)| {
            let bytes = bytes_of(&layer);
            let ranges = segments.iter().map(|&(pack, offset, length, check)| {
                Piece::Range(FileRange {
                    path: paths[pack].clone(),
                    offset: offset as u64,
                    length: length as u64,
                    check,
                })
            });
            let header = Piece::Bytes(bytes.slice(..HEADER));
            let trailer = Piece::Bytes(bytes.slice(bytes.len() - TRAILER..));
            let pieces = [header].into_iter().chain(ranges).chain([trailer]);
            layer.content = Content::Pieces(pieces.collect());
            layer
        });
    rebuilt.collect()
}

/// The bytes of a layer that is in memory.
pub(crate) fn bytes_of(layer: &Layer) -> Bytes {
    match &layer.content {
        Content::Memory(bytes) => bytes.clone(),
        other => panic!("{other:?} is not in memory"),
    }
}

/// Flips a bit and leaves size and modification time alone, as a bad disk does.
pub(crate) fn rot(path: &Path, position: usize) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], position as u64).unwrap();
    file.flush().unwrap();
    let times = fs::FileTimes::new().set_modified(modified);
    file.set_times(times).unwrap();
}

pub(crate) fn image_of(layers: Vec<Layer>, architecture: &str, format: ImageFormat) -> Image {
    let platform = Platform::linux(architecture);
    let edits = ConfigEdits {
        cmd: Some(vec!["app.handler".to_owned()]),
        ..ConfigEdits::default()
    };
    assemble(
        None,
        layers,
        &edits,
        &platform,
        format,
        Timestamp::UNIX_EPOCH,
    )
    .unwrap()
}

/// Two layers, one of them of more than one piece, and one of them twice.
pub(crate) fn image(format: ImageFormat) -> Image {
    let small = layer("hello.txt", b"hello");
    let large = layer("noise.bin", &noise(700_000));
    image_of(vec![small.clone(), large, small], "arm64", format)
}

pub(crate) fn index(format: ImageFormat) -> Artifact {
    let images = [
        image(format),
        image_of(vec![layer("hello.txt", b"hello")], "amd64", format),
    ];
    Artifact {
        document: Document::Index(assemble_index(&images, format)),
        blobs: Vec::new(),
        children: images.iter().map(Image::to_artifact).collect(),
    }
}

/// What the CLI does for files and memory; `origins` stands for all registries.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) origins: BTreeMap<Digest, Bytes>,
}

impl BlobSource for Files {
    async fn open(
        &self,
        blob: &Descriptor,
        content: &Content,
        from: u64,
    ) -> Result<BlobStream, BoxError> {
        let memory = |bytes: &Bytes| {
            let rest = bytes.slice(usize::try_from(from).unwrap()..);
            stream::iter([Ok(rest)]).boxed()
        };
        match content {
            Content::Memory(bytes) => Ok(memory(bytes)),
            Content::File { path, offset } => Ok(open_file(path, offset + from, blob.size - from)?),
            Content::Pieces(pieces) => Ok(open_pieces(pieces, from)?),
            Content::Origin(_) => {
                let bytes = self.origins.get(&blob.digest).ok_or("not at the origin")?;
                Ok(memory(bytes))
            }
        }
    }
}

pub(crate) async fn put<K: ImageSink>(
    artifact: &Artifact,
    tag: Option<&Tag>,
    files: &Files,
    sink: &K,
) -> Result<WriteReport, WriteError> {
    let jobs = Jobs(3.try_into().unwrap());
    write(artifact, tag, files, sink, jobs, &|_| ()).await
}

/// The places of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Layout,
    OciArchive,
    DockerArchive,
    Store,
}

pub(crate) const PLACES: [Place; 4] = [
    Place::Layout,
    Place::OciArchive,
    Place::DockerArchive,
    Place::Store,
];

impl Place {
    pub(crate) fn path(self, directory: &Path) -> PathBuf {
        directory.join(match self {
            Self::Layout => "layout",
            Self::OciArchive => "oci.tar",
            Self::DockerArchive => "docker.tar",
            Self::Store => "store",
        })
    }

    /// Writes under `name:1.0`.
    pub(crate) fn write(
        self,
        directory: &Path,
        artifact: &Artifact,
        files: &Files,
    ) -> Result<WriteReport, WriteError> {
        let (path, tag) = (self.path(directory), tag("1.0"));
        run(async {
            match self {
                Self::Layout => {
                    let sink = LayoutSink::create(path).unwrap();
                    put(artifact, Some(&tag), files, &sink).await
                }
                Self::OciArchive => {
                    let sink = ArchiveSink::create(path, ArchiveKind::Oci(None)).unwrap();
                    put(artifact, Some(&tag), files, &sink).await
                }
                Self::DockerArchive => {
                    let kind = ArchiveKind::Docker(vec!["name:1.0".parse().unwrap()]);
                    let sink = ArchiveSink::create(path, kind).unwrap();
                    put(artifact, Some(&tag), files, &sink).await
                }
                Self::Store => {
                    let store = LocalStore::open(path).unwrap();
                    let sink = store.sink(&"name".parse().unwrap()).unwrap();
                    put(artifact, Some(&tag), files, &sink).await
                }
            }
        })
    }

    /// Reads what is under `name:1.0`.
    pub(crate) fn read(self, directory: &Path) -> Artifact {
        let path = self.path(directory);
        let selector = Selector::Tag(tag("1.0"));
        run(async {
            match self {
                Self::Layout => read_artifact(&Layout::open(path).unwrap(), &selector).await,
                Self::OciArchive => {
                    read_artifact(&ArchiveLayout::open(path).unwrap(), &selector).await
                }
                Self::DockerArchive => {
                    let archive = DockerArchive::open(path).unwrap();
                    let reference = "name:1.0".parse().unwrap();
                    let Selected::Exact(found) = archive.select(Some(&reference)).unwrap() else {
                        panic!("the manifest is not in the archive");
                    };
                    let selector = Selector::Digest(found.digest);
                    read_artifact(archive.layout().unwrap(), &selector).await
                }
                Self::Store => {
                    let store = LocalStore::open(path).unwrap();
                    read_artifact(&store.image(&"name".parse().unwrap()), &selector).await
                }
            }
        })
        .unwrap()
    }
}

/// Reads every blob below `artifact`, verified.
pub(crate) fn read_all(
    artifact: &Artifact,
    files: &Files,
) -> Result<BTreeMap<Digest, Bytes>, String> {
    let mut all = BTreeMap::new();
    for node in artifact.bottom_up() {
        for blob in &node.blobs {
            let bytes = run(read_blob(files, &blob.descriptor, &blob.content))
                .map_err(|error| format!("{error}: {}", error.source))?;
            all.insert(blob.descriptor.digest, bytes);
        }
    }
    Ok(all)
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// All messages of an error and its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

/// Opens a blob, for calling a sink by hand.
pub(crate) async fn send_one<K: ImageSink>(
    sink: &K,
    descriptor: &Descriptor,
    content: &Content,
    files: &impl BlobSource,
) -> Result<(), K::Error> {
    let ignore = |_| ();
    sink.send(&Blob::new(descriptor, content, files, &ignore))
        .await
}
