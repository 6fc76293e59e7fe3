//! The extensions of an environment, and what state each is in.

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::sandbox::{Exit, NotStarted, ProcessNumber};

use super::call::{ExtensionFault, Refusal, Registration, Reply};
use super::failure::{Failure, words};

/// The most extensions of a function, internal ones included (Lambda quotas).
pub(super) const LIMIT: usize = 10;

/// What an extension is told when it is registered.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) identifier: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) handler: Option<String>,
    pub(super) account: Option<String>,
}

/// Where an extension is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Started,
    Registered,
    Ready,
    Running,
    InitError,
    ExitError,
    Exited,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::Registered => "Registered",
            Self::Ready => "Ready",
            Self::Running => "Running",
            Self::InitError => "InitError",
            Self::ExitError => "ExitError",
            Self::Exited => "Exited",
        }
    }
}

#[derive(Debug)]
struct Extension {
    name: String,
    identifier: String,
    /// Of an external one.
    process: Option<ProcessNumber>,
    state: State,
    invoke: bool,
    shutdown: bool,
    /// Its `next`, which hangs.
    waiting: Option<Reply<Bytes>>,
    /// What it gets at its next `next`.
    pending: Option<Bytes>,
}

impl Extension {
    fn new(name: &str, process: Option<ProcessNumber>) -> Self {
        Self {
            name: name.to_owned(),
            identifier: Uuid::new_v4().to_string(),
            process,
            state: State::Started,
            invoke: false,
            shutdown: false,
            waiting: None,
            pending: None,
        }
    }

    fn is_alive(&self) -> bool {
        matches!(
            self.state,
            State::Registered | State::Ready | State::Running
        )
    }

    fn give(&mut self, event: Bytes) {
        let undelivered = match self.waiting.take() {
            Some(waiting) => match waiting.send(Ok(event)) {
                Ok(()) => None,
                Err(event) => event.ok(),
            },
            None => Some(event),
        };
        self.pending = undelivered;
        self.state = State::Running;
    }

    /// What it asked for.
    fn events(&self) -> Vec<&'static str> {
        [("INVOKE", self.invoke), ("SHUTDOWN", self.shutdown)]
            .into_iter()
            .filter_map(|(name, asked)| asked.then_some(name))
            .collect()
    }

    fn refuse(&self, to: State) -> Refusal {
        Refusal::Transition {
            whose: format!("extension {}", self.name),
            from: self.state.name(),
            to: to.name(),
            error_type: "Extension.InvalidExtensionState",
        }
    }
}

/// All extensions of one life of an environment.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    all: Vec<Extension>,
    closed: bool,
}

impl Extensions {
    /// One whose process is being started.
    pub(super) fn add_external(&mut self, name: &str, process: ProcessNumber) {
        self.all.push(Extension::new(name, Some(process)));
    }

    /// Makes a process known as an extension.
    pub(super) fn register(&mut self, registration: &Registration) -> Result<String, Refusal> {
        let known = self
            .all
            .iter()
            .position(|extension| extension.name == registration.name);
        let external = known.is_some_and(|place| self.all[place].process.is_some());
        let refuse = |error_type, message: &str| Refusal::Extension {
            error_type,
            message: message.to_owned(),
        };
        for event in &registration.events {
            match event.as_str() {
                "INVOKE" => {}
                "SHUTDOWN" if external => {}
                "SHUTDOWN" => {
                    return Err(refuse(
                        "Extension.InvalidEventType",
                        "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension",
                    ));
                }
                other => {
                    return Err(refuse(
                        "Extension.InvalidEventType",
                        &format!("{other}: ErrorInvalidEventType"),
                    ));
                }
            }
        }
        let extension = match known {
            Some(place) if external => &mut self.all[place],
            Some(_) => {
                return Err(refuse(
                    "Extension.InvalidExtensionState",
                    "Extension with this name already registered",
                ));
            }
            None if self.closed => {
                return Err(refuse(
                    "Extension.RegistrationClosed",
                    "Extension registration closed already",
                ));
            }
            None if self.all.len() >= LIMIT => {
                return Err(refuse(
                    "Extension.TooManyExtensions",
                    &format!("Extension limit ({LIMIT}) reached"),
                ));
            }
            None => self.all.push_mut(Extension::new(&registration.name, None)),
        };
        if extension.state != State::Started {
            return Err(extension.refuse(State::Registered));
        }
        extension.state = State::Registered;
        extension.invoke = registration.events.iter().any(|event| event == "INVOKE");
        extension.shutdown = registration.events.iter().any(|event| event == "SHUTDOWN");
        Ok(extension.identifier.clone())
    }

    /// An extension asks for an event.
    pub(super) fn next(&mut self, identifier: &str, reply: Reply<Bytes>) {
        let extension = match self.find(identifier) {
            Ok(extension) if extension.is_alive() => extension,
            Ok(extension) => {
                let _ = reply.send(Err(extension.refuse(State::Ready)));
                return;
            }
            Err(refusal) => {
                let _ = reply.send(Err(refusal));
                return;
            }
        };
        extension.waiting = Some(reply);
        extension.state = State::Ready;
        if let Some(event) = extension.pending.take() {
            extension.give(event);
        }
    }

    /// An extension says that it failed: what that means for the environment.
    pub(super) fn fail(
        &mut self,
        identifier: &str,
        fault: ExtensionFault,
        error_type: &str,
    ) -> Result<Failure, Refusal> {
        let extension = self.find(identifier)?;
        let (state, kind) = match fault {
            ExtensionFault::Init => (State::InitError, "Extension.InitError"),
            ExtensionFault::Exit => (State::ExitError, "Extension.ExitError"),
        };
        if !extension.is_alive() {
            return Err(extension.refuse(state));
        }
        extension.state = state;
        Ok(Failure::new(
            kind,
            format!("{}: {error_type}", extension.name),
        ))
    }

    /// The name of the extension that has this identifier.
    pub(super) fn name(&mut self, identifier: &str) -> Result<String, Refusal> {
        self.find(identifier)
            .map(|extension| extension.name.clone())
    }

    /// A process is gone; `None` if it is not an extension's. While they are not being shut down
    /// that is a failure, whatever its exit status.
    pub(super) fn exited(&mut self, process: ProcessNumber, exit: Exit) -> Option<Failure> {
        let extension = self.of_process(process)?;
        extension.state = State::Exited;
        extension.waiting = None;
        Some(Failure::new("Extension.Crash", words(exit)))
    }

    /// A process was not started; `None` if it is not an extension's.
    pub(super) fn not_started(
        &mut self,
        process: ProcessNumber,
        reason: &NotStarted,
    ) -> Option<Failure> {
        let extension = self.of_process(process)?;
        extension.state = State::Exited;
        Some(Failure::new("Extension.LaunchError", reason.to_string()))
    }

    /// Whether every external one is known, so that the runtime may start.
    pub(super) fn are_registered(&self) -> bool {
        self.all
            .iter()
            .all(|extension| extension.state != State::Started)
    }

    /// Whether every one waits for an event.
    pub(super) fn are_ready(&self) -> bool {
        self.all
            .iter()
            .all(|extension| extension.state == State::Ready)
    }

    /// Whether every one that was told of the invocation is done with it.
    pub(super) fn are_done(&self) -> bool {
        self.all
            .iter()
            .all(|extension| !extension.invoke || extension.state == State::Ready)
    }

    /// Nobody may register any more.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Tells those who asked for it of an invocation.
    pub(super) fn invoke(&mut self, event: &Bytes) {
        for extension in &mut self.all {
            if extension.invoke && extension.is_alive() {
                extension.give(event.clone());
            }
        }
    }

    /// Tells those who asked for it of the end.
    pub(super) fn shut_down(&mut self, event: &Bytes) {
        for extension in &mut self.all {
            if extension.shutdown && extension.is_alive() {
                if extension.state == State::Ready {
                    extension.give(event.clone());
                } else {
                    extension.pending = Some(event.clone());
                }
            }
        }
    }

    /// Whether one that has to be told of the end has not yet ended.
    pub(super) fn are_ending(&self) -> bool {
        self.all
            .iter()
            .any(|extension| extension.shutdown && extension.is_alive())
    }

    /// Whether there are any that live, and whether any of them has a process of its own.
    pub(super) fn living(&self) -> (bool, bool) {
        let living = || self.all.iter().filter(|extension| extension.is_alive());
        (
            living().next().is_some(),
            living().any(|extension| extension.process.is_some()),
        )
    }

    /// What Lambda logs of each after an initialisation.
    pub(super) fn lines(&self) -> Vec<String> {
        self.all
            .iter()
            .map(|extension| {
                format!(
                    "EXTENSION\tName: {}\tState: {}\tEvents: [{}]",
                    extension.name,
                    extension.state.name(),
                    extension.events().join(", ")
                )
            })
            .collect()
    }

    /// What telemetry is told of each after an initialisation.
    pub(super) fn records(&self) -> Vec<Value> {
        self.all
            .iter()
            .map(|extension| {
                json!({
                    "name": extension.name,
                    "state": extension.state.name(),
                    "events": extension.events(),
                })
            })
            .collect()
    }

    fn find(&mut self, identifier: &str) -> Result<&mut Extension, Refusal> {
        let refuse = |error_type, message: String| Refusal::Extension {
            error_type,
            message,
        };
        if identifier.is_empty() {
            return Err(refuse(
                "Extension.MissingExtensionIdentifier",
                "Missing Lambda-Extension-Identifier header".to_owned(),
            ));
        }
        if Uuid::parse_str(identifier).is_err() {
            return Err(refuse(
                "Extension.InvalidExtensionIdentifier",
                "Invalid Lambda-Extension-Identifier".to_owned(),
            ));
        }
        self.all
            .iter_mut()
            .find(|extension| extension.identifier == identifier)
            .ok_or_else(|| {
                refuse(
                    "Extension.UnknownExtensionIdentifier",
                    format!("Unknown extension {identifier}"),
                )
            })
    }

    fn of_process(&mut self, process: ProcessNumber) -> Option<&mut Extension> {
        self.all
            .iter_mut()
            .find(|extension| extension.process == Some(process))
    }
}
