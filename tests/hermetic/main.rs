//! Tests of the whole program against stand-ins: no network, no tool but cargo.
//!
//! | module | what it asks |
//! |---|---|
//! | `architecture` | do the crates depend on each other as the design says |
//! | `build` | does the image hold what files, flags and base say |
//! | `handler` | compiled handlers: where they go, what comes along, what is refused |
//! | `bytecode` | is Python compiled where that is asked for, once and for all |
//! | `dependencies` | lock files to layers, by stand-ins for the tools: what they are told, and how often |
//! | `compression` | which codecs there are, and where they cannot be used |
//! | `destinations` | do added files go where COPY would put them |
//! | `zip` | functions and Lambda layers that were zips |
//! | `base_facts` | what is gone by of a base: its name, the lock, or what it really has |
//! | `base_links` | are files put where the symlinks of the base lead |
//! | `platforms` | one platform out of several, and several at once |
//! | `handlers` | are handlers found, and what is said where there is no runtime client |
//! | `prebuilds` | files for other platforms, left out where it is asked for |
//! | `runtime_client` | a client of the Runtime API on bases that have none |
//! | `lock` | is the base held to what was pinned, with and without network |
//! | `determinism` | do the same inputs give the same bytes |
//! | `transports` | images between any two places, and what does not travel |
//! | `caching` | does a later build do less, with the same result, whatever became of the cache |
//! | `head_start` | do layers go to a registry while others are made, and nothing more than that |
//! | `init` | does what is written for a folder build it, whatever is in the folder |
//! | `inspect` | what is shown of an image |
//! | `lint` | is what Lambda refuses found, and nothing else |
//! | `recorded_facts` | is what is recorded of a layer while it is made what reading it finds |
//! | `judged` | does nothing for Lambda get a name that would be refused there |
//! | `hostile` | has every image of the corpus exactly the findings that are written beside it |
//! | `referrers` | artifacts that are attached to images |
//! | `registries` | credentials, certificates, refusals |
//! | `registry_settings` | endpoints, mirrors, trust and proxies, as a user settles them |
//! | `run` | functions that run here: what they see, how they end, and what is left |
//! | `ecr` | repositories of ECR, and logins for other tools |
//! | `ecr_push` | pushes to ECR by its real names: tokens, repositories, immutable tags, secrets |
//! | `resuming` | pushes that are killed, and go on |
//! | `bad_input` | is what is wrong named, and nothing left half-done |
//! | `interruptions` | full disks, closed pipes, signals |

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![expect(
    clippy::too_many_lines,
    reason = "a snapshot is as long as what it shows"
)]

mod architecture;
mod bad_input;
mod base_facts;
mod base_links;
mod build;
mod bytecode;
mod caching;
mod compression;
mod dependencies;
mod destinations;
mod determinism;
mod ecr;
mod ecr_push;
mod handler;
mod handlers;
mod head_start;
mod hostile;
mod init;
mod inspect;
mod interruptions;
mod judged;
mod lint;
mod lock;
mod platforms;
mod prebuilds;
mod recorded_facts;
mod referrers;
mod registries;
mod registry_settings;
mod resuming;
mod run;
mod runtime_client;
mod support;
mod transports;
mod zip;
