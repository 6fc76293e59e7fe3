//! The rules, as a table.
//!
//! Each is a value with a name, a severity and a small function that looks at a finished image.
//! Their order is that in which findings of the same severity are shown.

mod archive;
mod documents;
mod machine;
mod settings;
mod start;

use tierce_image::Image;
use tierce_oci::Index;

use crate::base_facts::CLibrary;
use crate::bases::AwsBase;
use crate::facts::LayerFacts;
use crate::finding::{Findings, Report, Rule, Scope};
use crate::subject::{Purpose, Subject};
use crate::version::PythonVersion;

/// Every rule.
pub static RULES: [&Rule; 44] = [
    &documents::IMAGE_INDEX,
    &documents::MEDIA_TYPE,
    &documents::MIXED_MEDIA_TYPES,
    &documents::MISLABELLED_LAYER,
    &documents::UNCOMPRESSED_LAYER,
    &documents::ZSTD_LAYER,
    &documents::UNCOMPRESSED_SIZE,
    &documents::TOO_MANY_LAYERS,
    &documents::MANY_LAYERS,
    &documents::MANIFEST_SIZE,
    &archive::MISSING_PARENT,
    &archive::PARENT_IN_LOWER_LAYER,
    &archive::DUPLICATE_ENTRY,
    &archive::BROKEN_HARDLINK,
    &archive::HARDLINK,
    &archive::SPECIAL_FILE,
    &archive::UNREADABLE_FILE,
    &settings::PLATFORM,
    &settings::SETTINGS_SIZE,
    &settings::WORKING_DIRECTORY,
    &settings::HANDLER_ARGUMENTS,
    &settings::HANDLER_NOT_FOUND,
    &settings::HANDLER_NOT_SET,
    &settings::IGNORED_SETTING,
    &start::NO_ENTRYPOINT,
    &start::ENTRYPOINT_NOT_FOUND,
    &start::ENTRYPOINT_NOT_EXECUTABLE,
    &start::ENTRYPOINT_FORMAT,
    &start::ENTRYPOINT_NOT_ABSOLUTE,
    &start::ENTRYPOINT_SYMLINK,
    &start::MISSING_INTERPRETER,
    &start::MISSING_BOOTSTRAP,
    &start::NO_RUNTIME_CLIENT,
    &machine::WRONG_ARCHITECTURE,
    &machine::FOREIGN_BINARY,
    &machine::FOREIGN_PREBUILD,
    &machine::WHEEL_PLATFORM,
    &machine::WHEEL_PYTHON,
    &machine::GLIBC_VERSION,
    &machine::SYMBOL_VERSION,
    &machine::MISSING_LIBRARY,
    &machine::MISSING_OPTIONAL_LIBRARY,
    &machine::LIBRARY_OFF_PATH,
    &machine::STALE_BYTECODE,
];

/// Differs whenever the sources of this crate do: what the rules found then, they may not find now.
pub const RULES_VERSION: &str = env!("TIERCE_RULES");

/// The rule of that name.
pub fn rule(name: &str) -> Option<&'static Rule> {
    RULES.into_iter().find(|rule| rule.name == name)
}

/// The lowest layers of an image, of which nobody knows what is in them.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnknownBase {
    /// How many layers they are.
    pub layers: usize,
    /// What they are by their name.
    pub name: Option<&'static AwsBase>,
    /// The C library that they are said to have, in place of what their name says.
    pub libc: Option<CLibrary>,
    /// The Python, likewise.
    pub python: Option<PythonVersion>,
}

/// Judges a finished image, of which `layers` are the facts, the lowest first.
///
/// Nothing is read and nothing is asked: the same image and facts have the same findings.
pub fn judge(image: &Image, layers: &[&LayerFacts], purpose: Purpose) -> Findings {
    judge_above(image, UnknownBase::default(), layers, purpose)
}

/// Judges a finished image, of which `layers` are the facts of all layers above those that are
/// not known.
///
/// What these may have, or make of what is above them, is not judged: a library that is not found,
/// a directory without an entry. What AWS's base of that name has for certain is: its glibc, its
/// Python, its entrypoint. All that is found is found by [`judge`] too, when that base is what its
/// name says.
pub fn judge_above(
    image: &Image,
    base: UnknownBase,
    layers: &[&LayerFacts],
    purpose: Purpose,
) -> Findings {
    let subject = Subject::new(image, base, layers, purpose);
    let mut findings = Findings::default();
    for rule in RULES {
        if rule.scope == Scope::Every || purpose == Purpose::Lambda {
            let mut report = Report {
                rule,
                findings: &mut findings,
            };
            (rule.check)(&subject, &mut report);
        }
    }
    findings.sort();
    findings
}

/// Judges an index by itself. Its children are images to be judged on their own.
pub fn judge_index(index: &Index, purpose: Purpose) -> Findings {
    let mut findings = Findings::default();
    if purpose == Purpose::Lambda {
        let platforms: Vec<String> = index.platforms().iter().map(ToString::to_string).collect();
        let what = format!(
            "an index of {} manifests ({})",
            index.manifests.len(),
            platforms.join(", ")
        );
        findings.add(&documents::IMAGE_INDEX, None, None, what);
    }
    findings
}
