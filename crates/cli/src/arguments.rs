//! The command line, as it is typed.
//!
//! Parsing is pure: nothing here looks at a file or the environment. What the words mean together is
//! worked out by the commands.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tierce_oci::{ImageFormat, MediaType, Platform, Reference};

use crate::age::Age;
use crate::byte_size::ByteSize;
use crate::ecr_name::{EcrHostName, EcrRepositoryName};
use crate::profile::Profile;
use crate::run::arguments::{InvokeArguments, RunArguments};
use crate::transport::{BaseName, ImagePlace, PushSource};

/// Assembles container images for AWS Lambda without Docker, and moves them.
#[derive(Debug, Parser)]
#[command(
    name = "tierce",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Images are named as elsewhere: HOST/REPO:TAG or docker://HOST/REPO:TAG (a registry), \
oci:DIR:TAG, oci-archive:FILE:TAG, docker-archive:FILE:REF, and store:NAME:TAG (the local store).

Exit codes: 0 done, 1 failed, 2 bad usage, 3 refused by lint."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) global: GlobalArguments,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArguments {
    /// Say more on stderr (twice: every request)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Print one JSON document instead of lines
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// How to show progress
    #[arg(long, global = true, value_enum, default_value_t = ProgressStyle::Auto)]
    pub(crate) progress: ProgressStyle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressStyle {
    /// Bars on a terminal, nothing elsewhere
    Auto,
    /// A line for each step
    Plain,
    /// No progress
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(InitArguments),
    Build(Box<BuildArguments>),
    Push(PushArguments),
    Pull(PullArguments),
    Copy(CopyArguments),
    Inspect(InspectArguments),
    Lint(LintArguments),
    Run(Box<RunArguments>),
    Invoke(Box<InvokeArguments>),
    Attach(AttachArguments),
    Referrers(ReferrersArguments),
    Lock(LockArguments),
    Cache(CacheArguments),
    Ecr(EcrArguments),
}

/// How registries are reached.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Registry options")]
pub(crate) struct RegistryArguments {
    /// Trust the certificate authorities of this PEM file too
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Vec<PathBuf>,

    /// Speak plain HTTP with this registry (loopback ones may always)
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) plain_http: Vec<String>,

    #[command(flatten)]
    pub(crate) aws: AwsArguments,
}

/// As whom AWS is asked, for registries of ECR.
#[derive(Debug, Clone, Args)]
pub(crate) struct AwsArguments {
    /// Ask AWS for ECR's tokens as this profile of its config files
    #[arg(long, value_name = "NAME")]
    pub(crate) aws_profile: Option<String>,

    /// Assume this role for that
    #[arg(long, value_name = "ARN")]
    pub(crate) aws_role: Option<String>,
}

/// Write a tierce.toml for a folder
///
/// Looks at what is there: templates of SAM and the Serverless Framework, a Dockerfile on one of AWS's
/// bases, lock files and handlers of Python and Node, programs of Rust and Go, zips. Says what was
/// found and why it was chosen, and runs nothing. What may be secret by its name is left out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce init && tierce build
      the folder's function, as an image in the local store
  tierce init --dry-run src
      print what would be written
  tierce init --function Orders --file orders.toml
      one of the functions of template.yaml")]
pub(crate) struct InitArguments {
    /// The folder to look at
    #[arg(default_value = ".")]
    pub(crate) context: PathBuf,

    /// Write this instead of CONTEXT/tierce.toml; `-` prints it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Out of a template take this function [default: the first]
    #[arg(long, value_name = "NAME")]
    pub(crate) function: Option<String>,

    /// Replace a file that is there
    #[arg(long)]
    pub(crate) force: bool,

    /// Print the file, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Build an image from a folder
///
/// Reads CONTEXT/tierce.toml when there is one; flags override it. The image goes to the local store
/// unless --output or --push says otherwise. Of a base in a registry only manifest and config are
/// fetched.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag that stands alone"
)]
#[command(after_help = "Examples:
  tierce build
      what ./tierce.toml says, into the local store
  tierce build --base public.ecr.aws/lambda/python:3.12 --handler app.handler -t orders src
      the folder src as the function's code, as store:orders
  tierce build --base scratch --add app:/app/ --entrypoint /app/server -o oci:out:latest
      a static program, into an OCI layout
  tierce build --base public.ecr.aws/lambda/nodejs:22 --zip function.zip --lambda-layer layer.zip \
               --handler index.handler -t orders
      a function that was a zip, with its layer
  tierce build --platform arm64 --platform x86_64 --index -t registry.example/orders:1.4 --push
      orders:1.4-arm64, orders:1.4-amd64 and an index of both as orders:1.4")]
pub(crate) struct BuildArguments {
    /// The folder that tierce.toml, .dockerignore and all relative paths belong to
    #[arg(default_value = ".")]
    pub(crate) context: PathBuf,

    /// Read this instead of CONTEXT/tierce.toml
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Name the image; repeat for several names
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub(crate) tag: Vec<Reference>,

    /// Build for these platforms: `x86_64`, `arm64`, `linux/amd64`, …
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    pub(crate) platform: Vec<Platform>,

    /// Put an index of all platforms under the plain tag too
    #[arg(long)]
    pub(crate) index: bool,

    /// Write the image here; repeat for several places [default: store:NAME:TAG]
    #[arg(short, long, value_name = "PLACE")]
    pub(crate) output: Vec<ImagePlace>,

    /// Push the image to the registry that --tag names
    #[arg(long)]
    pub(crate) push: bool,

    /// Make the repository when ECR has none of that name
    #[arg(long)]
    pub(crate) create_repository: bool,

    /// Write digests and names as JSON, with buildx's keys
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,

    /// Do everything but write: prints the digest that the build would have
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Let an image for Lambda break this rule of `tierce lint`; repeat for several rules
    #[arg(long, value_name = "RULE")]
    pub(crate) allow: Vec<String>,

    /// Fail unless tierce.lock pins the base for every platform
    #[arg(long)]
    pub(crate) locked: bool,

    /// Use no network: the base must be known from an earlier build
    #[arg(long)]
    pub(crate) offline: bool,

    /// Remember no layer of earlier builds, and keep none for later ones
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Number of compression threads and parallel transfers [default: processors, and 4]
    #[arg(short, long, value_name = "N")]
    pub(crate) jobs: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) image: ImageArguments,

    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

impl BuildArguments {
    /// What `tierce build CONTEXT` is told.
    pub(crate) fn of_context(context: &Path, offline: bool, registry: RegistryArguments) -> Self {
        Self {
            context: context.to_owned(),
            file: None,
            tag: Vec::new(),
            platform: Vec::new(),
            index: false,
            output: Vec::new(),
            push: false,
            create_repository: false,
            metadata_file: None,
            dry_run: false,
            allow: Vec::new(),
            locked: false,
            offline,
            no_cache: false,
            jobs: None,
            image: ImageArguments::default(),
            registry,
        }
    }
}

/// What the image is made of; all of it can stand in tierce.toml instead.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Image options")]
pub(crate) struct ImageArguments {
    /// Build on this image, from any place, or on `scratch`
    #[arg(long, value_name = "IMAGE")]
    pub(crate) base: Option<BaseName>,

    /// Add a file or a folder's content, in a layer above those of tierce.toml
    #[arg(long, value_name = "SRC:DEST")]
    pub(crate) add: Vec<AddArgument>,

    /// Unpack a zip, as of a Lambda function, in a layer of its own [default DEST: /var/task/]
    #[arg(long, value_name = "FILE[:DEST]")]
    pub(crate) zip: Vec<ZipArgument>,

    /// Unpack the zip of a Lambda layer into /opt/; repeat in the order of the function's layers
    #[arg(long, value_name = "FILE")]
    pub(crate) lambda_layer: Vec<PathBuf>,

    /// Add a compiled handler with the libraries that the base lacks, as the last layer
    #[arg(long, value_name = "FILE")]
    pub(crate) binary: Option<String>,

    /// The function's handler: becomes the single CMD argument
    #[arg(long, value_name = "HANDLER", conflicts_with = "cmd")]
    pub(crate) handler: Option<String>,

    /// CMD; repeat for several words
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,

    /// ENTRYPOINT; repeat for several words
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) entrypoint: Vec<String>,

    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<Pair>,

    /// WORKDIR
    #[arg(long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,

    /// USER (Lambda ignores it)
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// Set a label
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<Pair>,

    /// Set an annotation of the manifest (OCI only)
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) annotation: Vec<Pair>,

    /// Expose a port
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    pub(crate) expose: Vec<String>,

    /// STOPSIGNAL
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,

    /// How layers are compressed: `fast`, `small`, a level of zlib, or zstd for OCI images
    /// [default: fast]
    #[arg(long, value_name = "fast|small|1-9|zstd[:1-19]")]
    pub(crate) compression: Option<Profile>,

    /// Media types of the image [default: the base's, docker for scratch]
    #[arg(long, value_name = "docker|oci")]
    pub(crate) format: Option<ImageFormat>,
}

/// `SRC:DEST` as COPY takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddArgument {
    pub(crate) from: PathBuf,
    pub(crate) to: String,
}

impl std::str::FromStr for AddArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The last colon, because a destination in an image rarely has one and a source may.
        match text.rsplit_once(':') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(Self {
                from: PathBuf::from(from),
                to: to.to_owned(),
            }),
            _ => Err("expected SRC:DEST, for example src:/var/task/".to_owned()),
        }
    }
}

/// `FILE[:DEST]`, a zip and where its root goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ZipArgument {
    pub(crate) file: PathBuf,
    pub(crate) to: Option<String>,
}

impl std::str::FromStr for ZipArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (file, to) = match text.rsplit_once(':') {
            Some((file, to)) => (file, Some(to)),
            None => (text, None),
        };
        if file.is_empty() || to.is_some_and(str::is_empty) {
            return Err("expected FILE or FILE:DEST, for example function.zip".to_owned());
        }
        Ok(Self {
            file: PathBuf::from(file),
            to: to.map(str::to_owned),
        })
    }
}

/// `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl std::str::FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("expected NAME=VALUE".to_owned()),
        }
    }
}

/// Push an image from any place to a registry
///
/// A bare SOURCE is looked for in the local store first. Without REF the image goes where its name
/// says. Layers that the registry has, or can take over from another repository, are not sent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce push store:orders 123456789012.dkr.ecr.eu-west-1.amazonaws.com/orders:1.4.2
  tierce push oci-archive:orders.tar localhost:5000/orders:a localhost:5000/orders:b")]
pub(crate) struct PushArguments {
    /// The image to push
    pub(crate) source: PushSource,

    /// Where to push it
    #[arg(value_name = "REF")]
    pub(crate) references: Vec<Reference>,

    /// Let an image for Lambda break this rule of `tierce lint`; repeat for several rules
    #[arg(long, value_name = "RULE")]
    pub(crate) allow: Vec<String>,

    /// Make the repository when ECR has none of that name
    #[arg(long)]
    pub(crate) create_repository: bool,

    #[command(flatten)]
    pub(crate) transfer: TransferArguments,
}

/// Pull an image from a registry to any place
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce pull public.ecr.aws/lambda/python:3.12 oci:bases:python-3.12
  tierce pull --platform arm64 localhost:5000/orders:1.4 docker-archive:orders.tar:orders:1.4")]
pub(crate) struct PullArguments {
    /// The image to pull
    #[arg(value_name = "REF")]
    pub(crate) reference: Reference,

    /// Where to put it
    #[arg(value_name = "DEST")]
    pub(crate) destination: ImagePlace,

    #[command(flatten)]
    pub(crate) transfer: TransferArguments,
}

/// Copy an image from any place to any other
///
/// An index is copied with all its children; --platform picks one. Digests stay as they are.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce copy docker://localhost:5000/orders:1.4 oci:out:1.4
  tierce copy store:orders docker-archive:orders.tar:orders:latest
  tierce copy docker://registry.example/a:1 docker://localhost:5000/a:1
  tierce copy --referrers registry.example/a:1 localhost:5000/a:1
      with the artifacts that are attached to it, a line for each")]
pub(crate) struct CopyArguments {
    /// The image to copy
    #[arg(value_name = "SRC")]
    pub(crate) source: ImagePlace,

    /// Where to put it
    #[arg(value_name = "DST")]
    pub(crate) destination: ImagePlace,

    /// Copy what is attached to it too, from registry to registry
    #[arg(long)]
    pub(crate) referrers: bool,

    /// Make the repository of DST when ECR has none of that name
    #[arg(long)]
    pub(crate) create_repository: bool,

    #[command(flatten)]
    pub(crate) transfer: TransferArguments,
}

#[derive(Debug, Args)]
pub(crate) struct TransferArguments {
    /// Out of an index take the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,

    /// How many blobs may be on their way at once
    #[arg(short, long, value_name = "N", default_value = "4")]
    pub(crate) jobs: NonZeroUsize,

    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

/// Show what an image is and what its layers are
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce inspect store:orders
  tierce inspect --platform arm64 --json public.ecr.aws/lambda/python:3.12")]
pub(crate) struct InspectArguments {
    /// The image, in any place
    pub(crate) image: ImagePlace,

    /// Out of an index show the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,

    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

/// Judge an image by what Lambda accepts, before it is deployed
///
/// Reports everything at once: what Lambda refuses, what cannot start, libraries that are missing or
/// too old, packages for another machine. Layers are read as streams, each once: what was learnt of
/// it is kept. An index is judged with all its images; --platform picks one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce lint store:orders
  tierce lint --for lambda --platform arm64 localhost:5000/orders:1.4
  tierce lint --allow hardlink --sarif lint.sarif oci:out:latest

Errors end with exit code 3, warnings and notes with 0. docs/lint.md lists the rules.")]
pub(crate) struct LintArguments {
    /// The image, in any place
    pub(crate) image: ImagePlace,

    /// Out of an index judge the image for this platform alone
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,

    /// What the image is for [default: what its label, base or entrypoint say]
    #[arg(long = "for", value_name = "lambda|generic", value_enum)]
    pub(crate) purpose: Option<LintPurpose>,

    /// Do not count what this rule finds; repeat for several rules
    #[arg(long, value_name = "RULE")]
    pub(crate) allow: Vec<String>,

    /// Use no network: the image must be here, and its layers too or read before
    #[arg(long)]
    pub(crate) offline: bool,

    /// Write the findings to this file too, as SARIF 2.1.0
    #[arg(long, value_name = "FILE")]
    pub(crate) sarif: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LintPurpose {
    /// A Lambda function
    Lambda,
    /// Anything that runs containers
    Generic,
}

/// Attach files to an image in a registry
///
/// The files become an artifact that names the image as its subject: reports, signatures, bills of
/// materials. The image stays as it is, and `tierce referrers` finds what is attached to it. To an
/// index the artifact is attached as a whole; --platform picks one image. The same files attached
/// again are the same artifact.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce attach --artifact-type application/spdx+json localhost:5000/orders:1.4 sbom.json
  tierce attach --artifact-type application/vnd.example.review localhost:5000/orders:1.4 \\
      notes.txt:text/plain result.json:application/json --annotation by=team-a

A file without a media type is application/octet-stream. SOURCE_DATE_EPOCH becomes the artifact's
creation time; without it there is none.")]
pub(crate) struct AttachArguments {
    /// The image, in a registry
    pub(crate) image: ImagePlace,

    /// What to attach
    #[arg(value_name = "FILE[:MEDIATYPE]", required = true)]
    pub(crate) files: Vec<AttachedFile>,

    /// What the artifact is: a media type
    // Without the parser clap would take the conversion that accepts everything.
    #[arg(long, value_name = "TYPE", value_parser = str::parse::<MediaType>)]
    pub(crate) artifact_type: MediaType,

    /// Set an annotation of the artifact
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) annotation: Vec<Pair>,

    #[command(flatten)]
    pub(crate) transfer: TransferArguments,
}

/// `FILE` or `FILE:MEDIATYPE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttachedFile {
    pub(crate) path: PathBuf,
    pub(crate) media_type: MediaType,
}

impl std::str::FromStr for AttachedFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, media_type) = match text.rsplit_once(':') {
            None => (text, "application/octet-stream"),
            Some(parts) => parts,
        };
        if path.is_empty() {
            return Err("expected FILE or FILE:MEDIATYPE".to_owned());
        }
        let media_type = media_type.parse().map_err(|error| {
            format!("{error} (a file with a colon in its name needs one after another colon)")
        })?;
        Ok(Self {
            path: PathBuf::from(path),
            media_type,
        })
    }
}

/// List what is attached to an image in a registry
///
/// Of an index what is attached to the whole is listed; --platform picks one image.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce referrers localhost:5000/orders:1.4
  tierce referrers --artifact-type application/spdx+json --json localhost:5000/orders:1.4

To get one: tierce pull localhost:5000/orders@DIGEST oci:DIRECTORY")]
pub(crate) struct ReferrersArguments {
    /// The image, in a registry
    pub(crate) image: ImagePlace,

    /// List artifacts of this type alone
    #[arg(long, value_name = "TYPE")]
    pub(crate) artifact_type: Option<String>,

    /// Out of an index take the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,

    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

/// Write tierce.lock, which pins the base's tag to digests
///
/// Without --update only platforms that are not pinned yet are added. The base's layers are read once,
/// to see whether the base is what its name says.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce lock --update
      take the newest image behind the base's tag, for the next builds")]
pub(crate) struct LockArguments {
    /// The folder with tierce.toml
    #[arg(default_value = ".")]
    pub(crate) context: PathBuf,

    /// Read this instead of CONTEXT/tierce.toml
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Ask anew what the tag stands for
    #[arg(long)]
    pub(crate) update: bool,

    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

/// Show or tidy what is remembered of earlier builds
///
/// Compressed parts of layers are kept, so that what did not change need not be compressed again.
/// All of it may be deleted at any time: builds are then slower, and come out the same.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce cache info
  tierce cache prune --to 2GiB
      remove what was not used for longest
  tierce cache verify
      read all of it and remove what is damaged

TIERCE_CACHE says where it is, TIERCE_CACHE_LIMIT how large it may grow (10 GiB).")]
pub(crate) struct CacheArguments {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show where the cache is and what it takes
    Info,
    /// Remove what was not used for longest
    Prune {
        /// How much may be left [default: the limit of the cache]
        #[arg(long, value_name = "SIZE")]
        to: Option<ByteSize>,
    },
    /// Read all of the cache and remove what is damaged
    Verify,
}

/// Look after repositories of ECR
///
/// AWS is asked as its own tools ask it: by the environment, the profile, the container or the
/// instance. REPOSITORY is HOST/PATH, or the path alone in the caller's own registry.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce ecr create --immutable-tags --scan-on-push --region eu-west-1 team/orders
  tierce ecr login --print | docker login -u AWS --password-stdin HOST
  tierce ecr prune --keep 10 --older-than 30d --protect 'prod*' --dry-run HOST/team/orders")]
pub(crate) struct EcrArguments {
    #[command(subcommand)]
    pub(crate) command: EcrCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EcrCommand {
    Create(Box<EcrCreateArguments>),
    Login(EcrLoginArguments),
    Prune(Box<EcrPruneArguments>),
    Describe(EcrDescribeArguments),
}

/// How AWS is asked.
#[derive(Debug, Args)]
#[command(next_help_heading = "AWS options")]
pub(crate) struct EcrOptions {
    /// The region of a REPOSITORY without host [default: `AWS_REGION`, or the profile's]
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,

    #[command(flatten)]
    pub(crate) aws: AwsArguments,

    /// Trust the certificate authorities of this PEM file too
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Vec<PathBuf>,
}

/// Make a repository, or bring the one that is there in line
///
/// What is not asked for stays as it is. Prints the repository's name.
#[derive(Debug, Args)]
pub(crate) struct EcrCreateArguments {
    /// The repository
    pub(crate) repository: EcrRepositoryName,

    /// A tag, once pushed, stays with its image
    #[arg(long)]
    pub(crate) immutable_tags: bool,

    /// Scan each image when it is pushed
    #[arg(long)]
    pub(crate) scan_on_push: bool,

    /// Encrypt with ECR's own key, or with one of KMS; it can not be changed later
    #[arg(long, value_enum)]
    pub(crate) encryption: Option<EncryptionKind>,

    /// The key of KMS: an ARN, an id or an alias
    #[arg(long, value_name = "KEY")]
    pub(crate) kms_key: Option<String>,

    /// Set a resource tag
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) resource_tag: Vec<Pair>,

    /// Take the lifecycle policy from this file
    #[arg(long, value_name = "FILE")]
    pub(crate) lifecycle_policy: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) options: EcrOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EncryptionKind {
    /// ECR's own key
    Aes256,
    /// A key of KMS
    Kms,
}

/// Log other tools in
///
/// Writes a token of ECR where `docker login` would: into the credential helper that is configured
/// for the registry, else into the file. tierce itself needs no login. Tokens last twelve hours.
#[derive(Debug, Args)]
pub(crate) struct EcrLoginArguments {
    /// The registry, or a repository of it [default: the caller's own]
    pub(crate) registry: Option<EcrHostName>,

    /// Print the password and write nothing; the user is AWS
    #[arg(long, conflicts_with = "auth_file")]
    pub(crate) print: bool,

    /// Write this file [default: config.json in `DOCKER_CONFIG` or ~/.docker]
    #[arg(long, value_name = "FILE")]
    pub(crate) auth_file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) options: EcrOptions,
}

/// Delete old images
///
/// With both --keep and --older-than an image goes when both say so. What a Lambda function of the
/// account runs in that region stays, in any of its versions, and so does what a protected tag
/// names. An index and its children, and an image with what refers to it, stay or go together.
#[derive(Debug, Args)]
pub(crate) struct EcrPruneArguments {
    /// The repository
    pub(crate) repository: EcrRepositoryName,

    /// Keep so many of the newest images
    #[arg(long, value_name = "N")]
    pub(crate) keep: Option<usize>,

    /// Keep what is younger: 12h, 30d, 8w
    #[arg(long, value_name = "AGE")]
    pub(crate) older_than: Option<Age>,

    /// Say what would go, and delete nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Keep images with such a tag; `*` stands for any letters
    #[arg(long, value_name = "TAG")]
    pub(crate) protect: Vec<String>,

    /// Keep what this function runs, for one of another account
    #[arg(long, value_name = "NAME|ARN")]
    pub(crate) function: Vec<String>,

    /// Do not ask which images the functions of the account run
    #[arg(long)]
    pub(crate) without_functions: bool,

    #[command(flatten)]
    pub(crate) options: EcrOptions,
}

/// Show a repository's settings and its images
#[derive(Debug, Args)]
pub(crate) struct EcrDescribeArguments {
    /// The repository
    pub(crate) repository: EcrRepositoryName,

    #[command(flatten)]
    pub(crate) options: EcrOptions,
}
