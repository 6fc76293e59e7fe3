//! A function that runs: its environments, and the door to them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tierce_runner::environment::{Environment as Running, Patience, SharedSink, State};
use tierce_runner::function::Function;
use tierce_runner::function::Payloads;
use tierce_runner::invoke::{CannotStart, Door, DoorSettings, MakeEnvironment, Pool, PoolSettings};
use tierce_runner::sandbox::{Network, Settings, Volume};

use crate::arguments::RegistryArguments;
use crate::background::in_background;
use crate::diagnostic::Hinted as _;
use crate::environment::Environment;
use crate::output::Output;
use crate::run::arguments::{FunctionArguments, FunctionName, NetworkArgument};
use crate::run::function::Surroundings;
use crate::run::log::Log;
use crate::run::prepare::Prepared;
use crate::run::runtime::Runtime;

/// How a function is kept running.
pub(crate) struct SessionSettings {
    pub(crate) pool: PoolSettings,
    /// Names by which clients may call this machine.
    pub(crate) hosts: Vec<String>,
    pub(crate) event_retries: Vec<Duration>,
}

/// A function behind a door.
#[derive(Debug)]
pub(crate) struct Session {
    door: Door,
    pool: Pool,
    boxes: Boxes,
}

impl Session {
    /// Opens the door at `listener`, and starts nothing yet.
    pub(crate) fn open(
        listener: TcpListener,
        prepared: &Prepared,
        settings: SessionSettings,
        boxes: Boxes,
    ) -> Result<Self> {
        let pool = Pool::new(settings.pool, boxes.maker(prepared));
        let door = DoorSettings {
            function: Arc::clone(&prepared.function),
            hosts: settings.hosts,
            event_retries: settings.event_retries,
        };
        Ok(Self {
            door: Door::open(listener, door, pool.clone())?,
            pool,
            boxes,
        })
    }

    /// Starts the function, and waits until it has started. That the function failed to is no
    /// error: the next invocation tries again, as on Lambda.
    pub(crate) async fn warm_up(&self) -> Result<State> {
        match self.pool.warm_up().await {
            Ok(state) => Ok(state),
            Err(error) => Err(self.boxes.reason(error)),
        }
    }

    /// From now on runs what was prepared anew.
    pub(crate) fn replace(&self, prepared: &Prepared) {
        self.pool.replace(self.boxes.maker(prepared));
    }

    /// What runs the processes.
    pub(crate) fn runtime(&self) -> &Runtime {
        self.boxes.runtime()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.door.address()
    }

    /// Ends the function: extensions have their last words, and nothing is left.
    pub(crate) async fn end(self) {
        self.door.close().await;
    }
}

/// Takes the address before anything is done that takes long.
pub(crate) fn listen(address: IpAddr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let bound = TcpListener::bind(address);
    bound
        .with_context(|| format!("could not listen at {address}"))
        .map_err(|error| match error.downcast_ref::<std::io::Error>() {
            Some(cause) if cause.kind() == std::io::ErrorKind::AddrInUse => error.hint(
                "something listens there, perhaps another `tierce run`; `--port 0` takes a free one",
            ),
            _ => error,
        })
}

/// The base of the address under which functions are invoked.
pub(crate) fn endpoint(address: SocketAddr) -> String {
    // Whoever listens everywhere is reached here.
    let host = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(host, address.port()))
}

/// Settles what boxes are like, and what the function named `name` is told of where it is.
pub(crate) async fn settle(
    name: &FunctionName,
    payloads: Payloads,
    arguments: &FunctionArguments,
    registry: &RegistryArguments,
    environment: &Environment,
    output: Output,
) -> Result<(Boxes, Surroundings)> {
    let boxes = Boxes::new(arguments, environment, output).await?;
    let surroundings =
        Surroundings::settle(name, payloads, arguments, registry, environment, output).await?;
    Ok((boxes, surroundings))
}

/// What makes the environments of a function.
#[derive(Debug, Clone)]
pub(crate) struct Boxes {
    settings: BoxSettings,
    sink: SharedSink,
    /// Why the last one could not be made, with all that is known of it.
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

/// What all boxes have in common.
#[derive(Debug, Clone)]
struct BoxSettings {
    writable_root: bool,
    tmp_size: u64,
    shared_memory: Option<u64>,
    network: Network,
    volumes: Vec<Volume>,
    open_files: u64,
    processes: u64,
    runtime: Runtime,
}

impl BoxSettings {
    /// Those of the boxes of what was prepared.
    fn of(&self, prepared: &Prepared) -> Settings {
        Settings {
            root: Arc::clone(&prepared.root),
            writable_root: self.writable_root,
            tmp_size: self.tmp_size,
            shared_memory: self.shared_memory,
            network: self.network,
            volumes: self.volumes.clone(),
            open_files: self.open_files,
            processes: self.processes,
            memory: Some(u64::from(prepared.function.memory) << 20),
            user: USER,
            group: GROUP,
            scratch: self.runtime.scratch.clone(),
            program: self.runtime.program(),
        }
    }
}

/// What Lambda waits for (AWS Lambda Developer Guide, "Understanding the Lambda execution environment
/// lifecycle").
const PATIENCE: Patience = Patience {
    shutdown: Duration::from_secs(2),
};

/// As whom a function runs on Lambda, as it sees it: the user and group that AWS's own code for
/// Lambda Managed Instances names.
const USER: u32 = 993;
const GROUP: u32 = 990;

impl Boxes {
    /// Works out what boxes are like, and finds out what this machine can make.
    async fn new(
        arguments: &FunctionArguments,
        environment: &Environment,
        output: Output,
    ) -> Result<Self> {
        let volumes = arguments.volume.iter().map(|volume| {
            let shown = volume.source.display();
            let source = volume.source.canonicalize().with_context(|| {
                format!("could not find `{shown}`, to put it into the function")
            })?;
            Ok(Volume {
                source,
                target: volume.target.clone(),
                writable: volume.writable,
            })
        });
        let settings = BoxSettings {
            writable_root: arguments.writable,
            tmp_size: arguments.tmp_size.0,
            shared_memory: arguments.shm_size.map(|size| size.0),
            network: match arguments.network {
                NetworkArgument::Host => Network::Host,
                NetworkArgument::None => Network::None,
            },
            volumes: volumes.collect::<Result<_>>()?,
            open_files: arguments.open_files.into(),
            processes: arguments.processes.get().into(),
            runtime: Runtime::choose(arguments, environment, output).await?,
        };
        Ok(Self {
            settings,
            sink: Arc::new(Log::new(output)),
            failure: Arc::default(),
        })
    }

    /// What runs the processes.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.settings.runtime
    }

    /// What makes the environments of what was prepared.
    fn maker(&self, prepared: &Prepared) -> MakeEnvironment {
        let (boxes, function) = (self.clone(), Arc::clone(&prepared.function));
        let settings = self.settings.of(prepared);
        Arc::new(move |number| {
            let (boxes, function) = (boxes.clone(), Arc::clone(&function));
            let (settings, runtime) = (settings.clone(), boxes.settings.runtime.clone());
            Box::pin(async move { boxes.make(number, function, settings, runtime).await })
        })
    }

    async fn make(
        self,
        number: u32,
        function: Arc<Function>,
        settings: Settings,
        runtime: Runtime,
    ) -> Result<Running, CannotStart> {
        match in_background(move |_| Ok(runtime.start(&settings)?)).await {
            Ok(sandbox) => Ok(Running::begin(
                number,
                function,
                sandbox,
                Arc::clone(&self.sink),
                PATIENCE,
            )),
            Err(error) => {
                let words = format!("{error:#}");
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                *failure = Some(error);
                Err(CannotStart(words))
            }
        }
    }

    /// Why no environment could be made, as an error that the user's advice can be found for.
    fn reason(&self, error: CannotStart) -> anyhow::Error {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take().unwrap_or_else(|| error.into())
    }
}
