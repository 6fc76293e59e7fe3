//! Real programs for the tests with real parts.
