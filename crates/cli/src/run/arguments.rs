//! The command lines of `tierce run` and `tierce invoke`, as they are typed.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tierce_oci::Platform;
use tierce_runner::function::Payloads;
use tierce_runner::invoke::client::Endpoint;

use crate::arguments::RegistryArguments;
use crate::byte_size::ByteSize;
use crate::run::sample::SampleName;
use crate::time_span::TimeSpan;
use crate::transport::PushSource;

/// Run an image here as Lambda would run it
///
/// The function starts at once and answers as Lambda's API does, for `tierce invoke`, `curl`, the AWS
/// CLI and SDKs. What Lambda forbids is forbidden here, unless a flag says otherwise: the disk is
/// read-only but for /tmp, there is no /dev/shm, and memory, time, files and processes are limited.
/// A folder with a tierce.toml is built first. Ctrl-C ends the function, and leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce run
      build ./tierce.toml and run it, at http://127.0.0.1:9000
  tierce run --watch --timeout none .
      the same, with each change in the folder, and time for a debugger
  tierce run store:orders --memory 512 -e TABLE=orders --env-file local.env
      an image of the local store
  tierce run --profile dev --region eu-west-1 public.ecr.aws/team/orders:1.4
      with the credentials of a profile of AWS's config files
  aws lambda invoke --endpoint-url http://127.0.0.1:9000 --function-name function out.json
      what the AWS CLI makes of it

stdout gets one line, when the function can be invoked: where. Its log goes to stderr.")]
pub(crate) struct RunArguments {
    /// The image, in any place, or a folder with a tierce.toml; a bare name is looked for in the
    /// local store first
    #[arg(value_name = "IMAGE|CONTEXT", default_value = ".")]
    pub(crate) image: RunSource,

    /// Build again when something in the folder changes, and go on with that
    #[arg(long)]
    pub(crate) watch: bool,

    /// The port to listen on; 0 takes a free one
    #[arg(short, long, value_name = "PORT", default_value_t = PORT)]
    pub(crate) port: u16,

    /// The address to listen on. Whoever reaches it can invoke the function
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) listen: IpAddr,

    /// What the function is called
    #[arg(long, value_name = "NAME", default_value = FUNCTION_NAME)]
    pub(crate) name: FunctionName,

    /// At most so many environments at once, each with one invocation at a time
    #[arg(long, value_name = "N", default_value = "10")]
    pub(crate) concurrency: NonZeroU32,

    /// End environments that had nothing to do for so long; the last one stays
    #[arg(long, value_name = "TIME", default_value = "10m")]
    pub(crate) idle: TimeLimit,

    /// Refuse what comes while all environments are busy, as Lambda does, instead of letting it wait
    #[arg(long)]
    pub(crate) throttle: bool,

    /// Take events that are no JSON too, and events and answers of up to 256 MiB; on Lambda they have
    /// 6 MiB
    #[arg(long)]
    pub(crate) any_payload: bool,

    /// A name by which clients may call this machine, beside localhost and addresses; repeat for
    /// several. Others are refused: a web page can lead a name of its own here
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Vec<String>,

    /// How often an event of the invocation type `Event` is tried again: 2 times on Lambda
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub(crate) event_retries: u8,

    /// Say more on stderr (`-v` is a volume here)
    // Takes the place of the flag of all commands, of which this one needs the letter.
    #[arg(id = "verbose", long = "verbose", action = clap::ArgAction::Count)]
    pub(crate) _verbose: u8,

    #[command(flatten)]
    pub(crate) function: FunctionArguments,

    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

/// Where a function listens unless something else is said: what the documentation of AWS's emulator
/// publishes its own port as.
pub(crate) const PORT: u16 = 9000;

/// What a function is called unless something else is said: the only name that AWS's emulator knows.
pub(crate) const FUNCTION_NAME: &str = "function";

/// What `--any-payload` says.
pub(crate) fn payloads(any: bool) -> Payloads {
    if any {
        Payloads::Any
    } else {
        Payloads::AsOnLambda
    }
}

/// How an image is run.
// clap leaves the group empty where more is flattened in.
#[derive(Debug, Clone, Args)]
#[group(requires = "image")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag that stands alone"
)]
pub(crate) struct FunctionArguments {
    /// Out of an index take the image for this platform [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,

    /// Use no network for the image: it must be here
    #[arg(long)]
    pub(crate) offline: bool,

    /// MiB of memory, 128 to 10240; 128 is Lambda's own default
    #[arg(long, value_name = "MIB", default_value = "128", value_parser = clap::value_parser!(u32).range(128..=10_240))]
    #[arg(help_heading = FUNCTION)]
    pub(crate) memory: u32,

    /// How long an invocation may take: `30s`, seconds, or `none`; 3 s is Lambda's own default
    #[arg(long, value_name = "TIME", default_value = "3s", help_heading = FUNCTION)]
    pub(crate) timeout: TimeLimit,

    /// How long the function may take to start: 10 s on Lambda
    #[arg(long, value_name = "TIME", default_value = "10s", help_heading = FUNCTION)]
    pub(crate) init_timeout: TimeLimit,

    /// Set an environment variable; without VALUE to what it is here
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = FUNCTION)]
    pub(crate) env: Vec<EnvArgument>,

    /// Set those of a file: a NAME=VALUE or NAME a line, and `#` before remarks
    #[arg(long, value_name = "FILE", help_heading = FUNCTION)]
    pub(crate) env_file: Vec<PathBuf>,

    /// Start this instead of ENTRYPOINT; repeat for several words
    #[arg(long, value_name = "WORD", allow_hyphen_values = true, help_heading = FUNCTION)]
    pub(crate) entrypoint: Vec<String>,

    /// With these words instead of CMD; repeat for several. On AWS's bases the one is the handler
    #[arg(long, value_name = "WORD", allow_hyphen_values = true, help_heading = FUNCTION)]
    pub(crate) cmd: Vec<String>,

    /// In this directory instead of WORKDIR
    #[arg(long, value_name = "PATH", help_heading = FUNCTION)]
    pub(crate) workdir: Option<String>,

    /// The region that the function is told [default: this machine's for AWS, else us-east-1]
    #[arg(long, value_name = "REGION", help_heading = FUNCTION)]
    pub(crate) region: Option<String>,

    /// Give the function the AWS credentials of this machine; it has none otherwise
    #[arg(long, help_heading = FUNCTION)]
    pub(crate) aws_credentials: bool,

    /// Give it those of this profile
    #[arg(long, value_name = "NAME", help_heading = FUNCTION)]
    pub(crate) profile: Option<String>,

    /// The size of /tmp, 512 MiB on Lambda
    #[arg(long, value_name = "SIZE", default_value = "512 MiB", help_heading = SANDBOX)]
    pub(crate) tmp_size: ByteSize,

    /// Have a /dev/shm of this size; Lambda has none
    #[arg(long, value_name = "SIZE", help_heading = SANDBOX)]
    pub(crate) shm_size: Option<ByteSize>,

    /// Let the function write everywhere; what it writes is gone with its environment
    #[arg(long, help_heading = SANDBOX)]
    pub(crate) writable: bool,

    /// What the function sees of the network: what this machine sees, or nothing
    #[arg(long, value_name = "host|none", value_enum, default_value = "host", help_heading = SANDBOX, hide_possible_values = true)]
    pub(crate) network: NetworkArgument,

    /// Put a file or folder of this machine there, read-only unless it ends in `:rw`
    #[arg(short = 'v', long, value_name = "SRC:DEST[:rw]", help_heading = SANDBOX)]
    pub(crate) volume: Vec<VolumeArgument>,

    /// How many files a process may have open: 1024 on Lambda
    #[arg(long, value_name = "N", default_value = "1024", help_heading = SANDBOX)]
    pub(crate) open_files: u32,

    /// How many processes and threads there may be: 1024 on Lambda
    #[arg(long, value_name = "N", default_value = "1024", help_heading = SANDBOX)]
    pub(crate) processes: NonZeroU32,

    /// Keep the image's modes as they are. Otherwise its owner and group may do what all others
    /// may, as on Lambda, where nobody of the image's is there
    #[arg(long, help_heading = SANDBOX)]
    pub(crate) keep_modes: bool,

    /// What runs the processes: namespaces of tierce's own, an OCI runtime, or nothing (`plain`)
    #[arg(long, value_name = "auto|namespaces|crun|runc|plain", value_enum, default_value = "auto", help_heading = SANDBOX, hide_possible_values = true)]
    pub(crate) runtime: RuntimeArgument,

    /// The same as `--runtime plain`: nothing is kept from the function, and its root is this
    /// machine's. For a static program that you trust
    #[arg(long, conflicts_with = "runtime", help_heading = SANDBOX)]
    pub(crate) unsandboxed: bool,
}

const FUNCTION: &str = "Function options";
const SANDBOX: &str = "Sandbox options";

/// Invoke a function that `tierce run` runs
///
/// The event is a file, `-` for stdin, or JSON as it stands, when it begins with `{`, `[` or `"`;
/// without one it is `{}`. With --image the function is started, invoked once, and ended. Nothing is
/// signed: for functions in AWS there is the AWS CLI.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tierce invoke event.json
  tierce invoke '{\"order\": 7}'
  jq -n '{order: 7}' | tierce invoke -
  tierce invoke --sample sqs
  tierce invoke --sample s3 --show > event.json
      a sample to begin with
  tierce invoke --image store:orders --memory 512 event.json

stdout gets the function's answer alone. Exit code 1 when the function failed.")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag that stands alone"
)]
pub(crate) struct InvokeArguments {
    /// The event: a file, `-`, or JSON
    #[arg(conflicts_with = "sample")]
    pub(crate) event: Option<EventArgument>,

    /// Take this event: what a service of AWS sends
    #[arg(long, value_name = "NAME", value_enum)]
    pub(crate) sample: Option<SampleName>,

    /// Print the sample, and invoke nothing
    #[arg(long, requires = "sample")]
    pub(crate) show: bool,

    /// Start this image, invoke it once, and end it
    #[arg(long, value_name = "IMAGE|CONTEXT", conflicts_with_all = ["url", "port"])]
    pub(crate) image: Option<RunSource>,

    /// Where the function is
    #[arg(
        long,
        visible_alias = "endpoint",
        value_name = "URL",
        conflicts_with = "port"
    )]
    pub(crate) url: Option<Endpoint>,

    /// The port on this machine where it is [default: 9000]
    #[arg(short, long, value_name = "PORT")]
    pub(crate) port: Option<u16>,

    /// What it is called
    #[arg(long, value_name = "NAME", default_value = FUNCTION_NAME)]
    pub(crate) function_name: FunctionName,

    /// Ask for this version or alias
    #[arg(long, value_name = "NAME")]
    pub(crate) qualifier: Option<String>,

    /// Give the function this client context: JSON
    #[arg(long, value_name = "JSON")]
    pub(crate) client_context: Option<String>,

    /// Send an event that is no JSON, to a function that runs with `--any-payload`; with --image, run
    /// it so
    #[arg(long)]
    pub(crate) any_payload: bool,

    /// Do not wait for the answer (the invocation type `Event`)
    #[arg(long = "async", conflicts_with_all = ["dry_run", "stream", "log", "image"])]
    pub(crate) is_async: bool,

    /// Only ask whether the function could be invoked
    #[arg(long, conflicts_with_all = ["stream", "log"])]
    pub(crate) dry_run: bool,

    /// Show the end of the function's log on stderr
    #[arg(long)]
    pub(crate) log: bool,

    /// Take the answer as a stream, and print each piece as it comes
    #[arg(long)]
    pub(crate) stream: bool,

    /// Write the answer to this file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Say more on stderr (`-v` is a volume here)
    // As with `run`.
    #[arg(id = "verbose", long = "verbose", action = clap::ArgAction::Count)]
    pub(crate) _verbose: u8,

    #[command(flatten)]
    pub(crate) function: FunctionArguments,

    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

/// What is to be run, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunSource {
    /// A folder: it is written as a path.
    Context(PathBuf),
    /// An image of a place.
    Image(PushSource),
    /// A folder if there is one of that name with a `tierce.toml`, else an image.
    Either(PathBuf, PushSource),
}

impl FromStr for RunSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = PathBuf::from(text);
        let is_path = matches!(text, "." | "..")
            || text.ends_with('/')
            || ["/", "./", "../"]
                .iter()
                .any(|start| text.starts_with(start));
        if is_path {
            return Ok(Self::Context(path));
        }
        match text.parse::<PushSource>() {
            Ok(source @ PushSource::Bare(..)) => Ok(Self::Either(path, source)),
            Ok(source) => Ok(Self::Image(source)),
            // Names of folders have letters that those of images have not.
            Err(_) if !text.is_empty() && !text.contains(':') => Ok(Self::Context(path)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A function's name, as `CreateFunction` takes it: letters, digits, `-` and `_`, 64 at most
/// (AWS Lambda API reference, `FunctionName`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FunctionName(pub(crate) String);

impl FromStr for FunctionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=64).contains(&text.len());
        if fits
            && text
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || b"-_".contains(&it))
        {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected at most 64 letters, digits, `-` and `_`".to_owned())
        }
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// How long something may take, if there is a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeLimit(pub(crate) Option<Duration>);

impl FromStr for TimeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if matches!(text, "none" | "0") {
            return Ok(Self(None));
        }
        // Seconds, as in all of Lambda's own settings.
        let is_number = !text.is_empty() && text.bytes().all(|letter| letter.is_ascii_digit());
        let seconds = if is_number {
            format!("{text}s")
        } else {
            text.to_owned()
        };
        match seconds.parse::<TimeSpan>() {
            Ok(TimeSpan(length)) => Ok(Self(Some(length))),
            Err(_) => Err("expected a time as in `30s` or `5m`, seconds, or `none`".to_owned()),
        }
    }
}

/// `NAME=VALUE`, or `NAME` for the value that it has in the environment of tierce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EnvArgument {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

impl FromStr for EnvArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("expected NAME=VALUE or NAME".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

/// `SRC:DEST`, `SRC:DEST:ro` or `SRC:DEST:rw`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeArgument {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) writable: bool,
}

/// What is made anew for each function.
const OWN: [&str; 3] = ["/dev", "/proc", "/tmp"];

impl FromStr for VolumeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rest, writable) = match text.rsplit_once(':') {
            Some((rest, "rw")) => (rest, true),
            Some((rest, "ro")) => (rest, false),
            _ => (text, false),
        };
        let Some((source, target)) = rest.rsplit_once(':').filter(|(from, _)| !from.is_empty())
        else {
            return Err("expected SRC:DEST, for example ./data:/mnt/data:rw".to_owned());
        };
        let target = PathBuf::from(target);
        let leads_up = target
            .components()
            .any(|it| it == std::path::Component::ParentDir);
        if !target.is_absolute() || leads_up || target.parent().is_none() {
            return Err(format!(
                "`{}` is no place in the function's files: expected an absolute path without `..`",
                target.display()
            ));
        }
        // All of /tmp can be a volume, but each function has a new one of its own otherwise.
        let own = OWN.iter().find(|own| target.starts_with(own));
        if let Some(own) = own.filter(|_| target != Path::new("/tmp")) {
            return Err(format!(
                "`{}` is in {own}, which is the function's own: expected another place",
                target.display()
            ));
        }
        Ok(Self {
            source: PathBuf::from(source),
            target,
            writable,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkArgument {
    /// What this machine sees
    Host,
    /// Nothing
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuntimeArgument {
    /// Namespaces where they can be made, else crun or runc where one is installed
    Auto,
    /// Namespaces of tierce's own
    Namespaces,
    /// crun
    Crun,
    /// runc
    Runc,
    /// Plain processes of this machine
    Plain,
}

/// An event as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EventArgument {
    /// `-`.
    Stdin,
    /// JSON.
    Inline(String),
    /// A file.
    File(PathBuf),
}

impl FromStr for EventArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.trim_start().chars().next() {
            None => return Err("expected a file, `-`, or JSON".to_owned()),
            Some('-') if text == "-" => Self::Stdin,
            Some('{' | '[' | '"') => Self::Inline(text.to_owned()),
            Some(_) => Self::File(PathBuf::from(text)),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn run(words: &[&str]) -> Result<RunArguments, clap::Error> {
        let all = ["tierce", "run"].iter().chain(words);
        match Arguments::try_parse_from(all)?.command {
            Command::Run(arguments) => Ok(*arguments),
            other => panic!("{other:?}"),
        }
    }

    fn invoke(words: &[&str]) -> Result<InvokeArguments, clap::Error> {
        let all = ["tierce", "invoke"].iter().chain(words);
        match Arguments::try_parse_from(all)?.command {
            Command::Invoke(arguments) => Ok(*arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn folders_are_told_from_images() {
        let context = |text: &str| RunSource::Context(PathBuf::from(text));
        let source = |text: &str| text.parse::<PushSource>().unwrap();
        for (text, expected) in [
            (".", context(".")),
            ("..", context("..")),
            ("./orders", context("./orders")),
            ("/srv/orders", context("/srv/orders")),
            ("orders/", context("orders/")),
            ("Orders", context("Orders")),
            (
                "orders",
                RunSource::Either("orders".into(), source("orders")),
            ),
            (
                "a/orders",
                RunSource::Either("a/orders".into(), source("a/orders")),
            ),
            ("store:orders", RunSource::Image(source("store:orders"))),
            ("oci:out:1", RunSource::Image(source("oci:out:1"))),
            ("docker://h/a:1", RunSource::Image(source("docker://h/a:1"))),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "dir:x", "oci:", "A:b:c"] {
            assert!(text.parse::<RunSource>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_said_is_as_on_lambda() {
        let arguments = run(&[]).unwrap();
        assert_eq!(arguments.image, RunSource::Context(".".into()));
        assert_eq!(arguments.port, 9000);
        assert!(arguments.listen.is_loopback());
        assert_eq!(arguments.name.0, "function");
        let function = arguments.function;
        assert_eq!(function.memory, 128);
        assert_eq!(function.timeout, TimeLimit(Some(Duration::from_secs(3))));
        assert_eq!(
            function.init_timeout,
            TimeLimit(Some(Duration::from_secs(10)))
        );
        assert_eq!(function.tmp_size, ByteSize(512 << 20));
        assert_eq!(
            (function.open_files, function.processes.get()),
            (1024, 1024)
        );
        assert_eq!(function.shm_size, None);
        assert_eq!(function.network, NetworkArgument::Host);
    }

    #[test]
    fn a_letter_is_a_volume_here_and_talk_elsewhere() {
        let arguments = run(&["-v", "a:/b", "oci:out"]).unwrap();
        assert_eq!(arguments.function.volume.len(), 1);
        let verbose = |words: &[&str]| Arguments::try_parse_from(words).unwrap().global.verbose;
        assert_eq!(verbose(&["tierce", "-v", "run"]), 1);
        assert_eq!(verbose(&["tierce", "run", "--verbose", "--verbose"]), 2);
        assert_eq!(verbose(&["tierce", "lint", "-vv", "oci:out"]), 2);
        assert!(run(&["-v", "oci:out"]).is_err());
    }

    #[test]
    fn volumes_are_read_only_unless_it_is_said() {
        let volume = |source: &str, target: &str, writable| VolumeArgument {
            source: source.into(),
            target: target.into(),
            writable,
        };
        for (text, expected) in [
            ("a:/b", volume("a", "/b", false)),
            ("/a:/b:ro", volume("/a", "/b", false)),
            ("/a:/b:rw", volume("/a", "/b", true)),
            ("/a:c:/b:rw", volume("/a:c", "/b", true)),
            ("a:/tmp", volume("a", "/tmp", false)),
            ("a:/devices", volume("a", "/devices", false)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "a",
            "a:",
            ":/b",
            "a:b",
            "a:/",
            "a:/../b",
            "a:/b:rx",
            "/a:rw",
            "a:/proc",
            "a:/proc/b",
            "a:/dev",
            "a:/dev/b",
            "a:/tmp/b",
        ] {
            assert!(text.parse::<VolumeArgument>().is_err(), "{text}");
        }
    }

    #[test]
    fn limits_of_time_can_be_none() {
        let limit = |milliseconds| Ok(TimeLimit(Some(Duration::from_millis(milliseconds))));
        for (text, expected) in [
            ("3", limit(3000)),
            ("3s", limit(3000)),
            ("250ms", limit(250)),
            ("15m", limit(900_000)),
            ("0", Ok(TimeLimit(None))),
            ("none", Ok(TimeLimit(None))),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for text in ["", "-1", "0s", "1.5", "never", "99999999999999999999"] {
            assert!(text.parse::<TimeLimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_event_is_a_file_stdin_or_json() {
        for (text, expected) in [
            ("-", EventArgument::Stdin),
            ("event.json", EventArgument::File("event.json".into())),
            ("{}", EventArgument::Inline("{}".to_owned())),
            (" [1]", EventArgument::Inline(" [1]".to_owned())),
            ("\"a\"", EventArgument::Inline("\"a\"".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        assert!("".parse::<EventArgument>().is_err());
        assert!(invoke(&["-"]).is_ok());
        assert!(invoke(&["--sample", "sqs"]).is_ok());
        assert!(invoke(&["--image", "store:app", "event.json"]).is_ok());
        assert!(invoke(&["--image", "store:app", "--memory=256", "{}"]).is_ok());
        for refused in [
            &["--sample", "sqs", "{}"][..],
            &["--sample", "nothing"],
            &["--show"],
            &["--memory=256"],
            &["-e", "A=b"],
            &["--image", "store:app", "-p", "1"],
            &["--image", "store:app", "--async"],
            &["--url", "http://localhost", "-p", "1"],
            &["--url", "nowhere"],
            &["--async", "--stream"],
            &["a", "b"],
        ] {
            assert!(invoke(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for refused in [
            "--memory=127",
            "--memory=10241",
            "--concurrency=0",
            "--processes=0",
            "--port=65536",
            "--listen=localhost",
            "--name=a b",
            "--name=",
            "--network=some",
            "--env==x",
        ] {
            assert!(run(&[refused]).is_err(), "{refused}");
        }
        assert!(run(&["--unsandboxed", "--runtime=crun"]).is_err());
    }
}
