//! The crate from outside: files and archives in, layers out, read back with other readers.

mod archives;
mod golden;
mod hostile;
mod linking;
mod properties;
mod round_trip;
mod scanning;
mod sealing;
mod support;
