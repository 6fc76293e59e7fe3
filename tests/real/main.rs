//! Tests of the whole program against real parts, which `tests/run` installs.
