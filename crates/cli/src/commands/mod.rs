//! One module for each verb.

pub(crate) mod build;
pub(crate) mod cache;
pub(crate) mod copy;
pub(crate) mod ecr;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod invoke;
pub(crate) mod lint;
pub(crate) mod lock;
pub(crate) mod referrers;
pub(crate) mod run;
