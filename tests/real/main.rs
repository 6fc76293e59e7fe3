//! Tests of the whole program against real parts: docker-registry, skopeo, umoci, crun, docker, GNU
//! tar and Python read what it makes, and it reads what they make.
//!
//! `tests/setup/install` installs the parts and `tests/run real` runs the tests, as root: dockerd,
//! crun and files of other owners need that. A part that is missing fails the test. A machine whose
//! kernel lets no dockerd start says so with `TIERCE_TESTS_WITHOUT_DOCKER=1`; `tests/run` finds out by
//! itself and prints a line.
//!
//! | module | what it asks |
//! |---|---|
//! | `bytecode` | does Python find compiled code and none that is stale, the same bytes wherever it was made |
//! | `dependencies` | do pip, uv and npm bring packages for either processor, and no credentials |
//! | `determinism` | do places, journeys and build profiles leave every digest alone |
//! | `ecr` | do tokens of AWS lead to a push by the names that ECR has |
//! | `everyday` | has lint nothing against images that work on Lambda |
//! | `files` | does every kind of file come out of a layer as it went in, or as the format says |
//! | `handler` | do compiled handlers run with the libraries that were found for them, and only where they can |
//! | `functions` | do functions with dependencies run and answer, and have they code for either processor |
//! | `init` | does what is written for a folder become an image that lint has nothing against |
//! | `killed` | does docker-registry get whole images from pushes that are killed |
//! | `lambda` | does a function on a Lambda-like base run and answer |
//! | `lint` | is what compilers and package managers make judged rightly |
//! | `places` | does every pair of places carry an image unharmed, and do others read the result |
//! | `referrers` | are attached artifacts found where the registry keeps no list, and by others |
//! | `registries` | do real registries take pushes, with each kind of authentication, and only once |
//! | `runtime_client` | does the client that is added to a plain Python call the handler |
//! | `sources` | are images that others made good bases and sources |
//! | `wheels` | is a tree of 400 MB built and pushed in little memory |
//! | `zips` | is a zip of a folder, whoever wrote it, the layer that the folder is |

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod bytecode;
mod dependencies;
mod determinism;
mod ecr;
mod everyday;
mod files;
mod functions;
mod handler;
mod init;
mod killed;
mod lambda;
mod lint;
mod places;
mod referrers;
mod registries;
mod run;
mod runtime_client;
mod sources;
mod support;
mod wheels;
mod zips;
