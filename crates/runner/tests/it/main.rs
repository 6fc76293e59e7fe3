//! The parts of the local Lambda, each by itself.

mod invoke;
