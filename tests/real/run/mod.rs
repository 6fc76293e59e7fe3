//! `tierce run` and `tierce invoke` with the clients, runtimes and people that there are.
//!
//! Everything is tried as root and as a person without any right.

mod clients;
mod ends;
mod lambda_like;
mod many;
mod running;
