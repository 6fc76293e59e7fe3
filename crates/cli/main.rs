//! The `tierce` binary: all of it is in `tierce-cli`.
fn main() {}
