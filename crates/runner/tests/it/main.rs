//! The parts of a local Lambda with the processes, files and sockets that they are about.

mod environment;
mod invoke;
mod sandbox;
