//! What Lambda is: its limits, its bases, and what it accepts.
//!
//! ```text
//! entries of a layer ─ Collector or Gathering → LayerFacts ─┐  (kept by the layer's digest)
//! manifest, config ────────────────────────────── Image ─────┴→ judge → Findings
//! ```
//!
//! No file, network or clock is touched. Whoever reads layers tells a [`Collector`] of their
//! entries; the facts that come out are plain values. [`judge`] applies the table of [`RULES`] to an
//! image and the facts of its layers, and finds everything at once, where Lambda reports one defect
//! at a time and only after the upload.
//!
//! ```
//! use tierce_lambda::{Severity, rule};
//!
//! let rule = rule("image-index").unwrap();
//! assert_eq!(rule.severity, Severity::Error);
//! ```

mod base_facts;
mod bases;
mod bytecode;
mod collect;
mod elf;
mod facts;
mod finding;
mod gather;
mod libraries;
pub mod limits;
mod python;
mod rules;
mod search;
mod subject;
mod tree;
mod version;
mod wheel;

pub use base_facts::{BaseFacts, CLibrary, Contradiction, DirectoryFacts};
pub use bases::{
    AWS_BASES, AWS_ENTRYPOINT, AwsBase, GLIBC_LIBRARIES, LANGUAGE_ROOT, LAYERS_ROOT, LIBRARY_PATH,
    RUNTIME_ROOT, System, TASK_ROOT, is_of_glibc,
};
pub use bytecode::{BytecodeCheck, BytecodeFacts};
pub use collect::{Collector, RawEntry};
pub use elf::{ElfFacts, ReadRange, VersionNeed};
pub use facts::{ContentFacts, EntryFacts, EntryKind, FACTS_VERSION, LayerFacts, Packing, RawPath};
pub use finding::{Evidence, Finding, Findings, Rule, Scope, Severity};
pub use gather::Gathering;
pub use libraries::{expand_search_path, foreign_prebuilds};
pub use rules::{RULES, RULES_VERSION, UnknownBase, judge, judge_above, judge_index, rule};
pub use subject::{Purpose, named_base, purpose_of};
pub use version::{GlibcVersion, PythonVersion};
