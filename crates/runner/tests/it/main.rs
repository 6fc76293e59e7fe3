//! Integration tests of the local Lambda, a module for each part.

mod rootfs;
