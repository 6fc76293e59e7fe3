//! What a build goes by of its base: from `tierce.lock`, the shipped table, or the base itself.
//!
//! Wheels are chosen by the Python and the C library of the base, and the libraries of a compiled
//! handler by what the base lacks. So digests hang on these facts, and where they come from is fixed:
//!
//! 1. what `tierce.toml` says of a layer (`python-version`, `glibc`);
//! 2. what `tierce.lock` says of the base's digest;
//! 3. the table of bases known by name ([`BaseFacts::named`]), and the base's config;
//! 4. the base's layers, read once and kept by digest, where something needed is still not known. The
//!    lock gets what was found.
//!
//! What a cache happens to hold never makes other bytes out of the same sources and lock: where it
//! shows that the table is wrong about a base, the base is believed, that is said, and the lock gets
//! it, for every later build on any machine. Where no lock may get it, the build fails instead.

use anyhow::{Context as _, Result};
use tierce_image::BaseImage;
use tierce_lambda::{AWS_ENTRYPOINT, AwsBase, BaseFacts, CLibrary, Contradiction};

use crate::base::Lock;
use crate::dependencies::Language;
use crate::dependencies::bytecode::Bytecode;
use crate::diagnostic::Hinted as _;
use crate::layer_facts::read_layer_facts;
use crate::output::Output;
use crate::places::Places;
use crate::plan::{BuildPlan, LayerPlan};
use crate::transport::BaseName;

/// What the layers of a build ask of its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each answers a question of its own"
)]
pub(crate) struct Needs {
    /// Which Python it has.
    pub(crate) python: bool,
    /// Where its Python is.
    pub(crate) interpreter: bool,
    /// Which C library it has.
    pub(crate) libc: bool,
    /// Which version of glibc, if it has that.
    pub(crate) glibc: bool,
    /// Which libraries it has.
    pub(crate) libraries: bool,
    /// Whether it starts a program of its own.
    pub(crate) bootstrap: bool,
}

impl Needs {
    /// What dependencies are chosen by, what compiles Python, and what starts a runtime client.
    pub(crate) fn of(plan: &BuildPlan) -> Self {
        let layers = &plan.layers;
        let is_compiled_for_base = |layer: &LayerPlan| layer.bytecode == Bytecode::Wanted(None);
        let mut needs = Self {
            python: layers.iter().any(is_compiled_for_base),
            interpreter: plan.has_runtime_client && plan.edits.entrypoint.is_none(),
            libc: layers.iter().any(|layer| layer.prune_prebuilds.is_some()),
            ..Self::default()
        };
        for dependencies in layers
            .iter()
            .filter_map(|layer| layer.dependencies.as_ref())
        {
            match dependencies.language {
                Language::Python { version, glibc } => {
                    needs.python |= version.is_none();
                    needs.libc |= glibc.is_none();
                    needs.glibc |= glibc.is_none();
                }
                Language::Node { .. } => needs.libc = true,
            }
        }
        needs
    }

    /// What both ask for.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            python: self.python || other.python,
            interpreter: self.interpreter || other.interpreter,
            libc: self.libc || other.libc,
            glibc: self.glibc || other.glibc,
            libraries: self.libraries || other.libraries,
            bootstrap: self.bootstrap || other.bootstrap,
        }
    }

    /// What of `facts` was asked for.
    fn of_facts(self, facts: BaseFacts) -> BaseFacts {
        let asks_for_libc = self.libc || self.glibc || self.libraries;
        BaseFacts {
            python: facts.python.filter(|_| self.python),
            libc: facts.libc.filter(|_| asks_for_libc),
            bootstrap: facts.bootstrap.filter(|_| self.bootstrap),
            library_directories: facts.library_directories.filter(|_| self.libraries),
            libraries: facts.libraries.filter(|_| self.libraries),
            ..BaseFacts::default()
        }
    }

    /// Whether `facts` answer all of it.
    fn are_met_by(self, facts: &BaseFacts) -> bool {
        let has_version = !matches!(facts.libc, None | Some(CLibrary::Glibc(None)));
        facts.complete
            || ((!self.python || facts.python.is_some())
                && (!self.interpreter || facts.interpreter.is_some())
                && (!self.libc || facts.libc.is_some())
                && (!self.glibc || has_version)
                && (!self.libraries || facts.libraries.is_some())
                && (!self.bootstrap || facts.bootstrap.is_some()))
    }
}

/// Settles what a build goes by. Only what `needs` ask for is looked into.
pub(crate) async fn settle(
    base: &BaseImage,
    name: &BaseName,
    needs: Needs,
    lock: &mut Lock,
    places: &Places,
    output: Output,
) -> Result<BaseFacts> {
    let digest = base.image.digest();
    let locked = lock.facts(name, &digest).cloned().unwrap_or_default();
    let facts = locked.clone().or(told(base));
    if needs == Needs::default() || facts.complete {
        return Ok(facts);
    }
    // Whether the base is read depends on nothing that only this machine knows.
    if !needs.are_met_by(&facts) {
        let read = read(base, name, places, output).await?;
        let (_, contradictions) = read.against(&facts);
        warn(base, name, &contradictions, output);
        lock.record(name, digest, read.clone());
        return Ok(read.or(facts));
    }
    let known = places.facts_cache().of_base(&base.image, places.scratch()?);
    let known = known.unwrap_or_else(|| BaseFacts::of_config(base.image.config()));
    let (other, contradictions) = needs.of_facts(known).against(&facts);
    if contradictions.is_empty() {
        return Ok(facts);
    }
    if !lock.may_record() {
        return Err(cannot_record(base, name, &contradictions, lock));
    }
    warn(base, name, &contradictions, output);
    let recorded = other.or(locked);
    lock.record(name, digest, recorded.clone());
    Ok(recorded.or(facts))
}

/// Checks a base against the table, and has the lock hold what the table does not know or is wrong
/// about.
pub(crate) async fn check(
    base: &BaseImage,
    name: &BaseName,
    lock: &mut Lock,
    places: &Places,
    output: Output,
) -> Result<()> {
    let digest = base.image.digest();
    // What a build recorded is what it needed to know, and may not be all.
    let locked = lock.facts(name, &digest).cloned().unwrap_or_default();
    if locked.complete {
        return Ok(());
    }
    let read = read(base, name, places, output).await?;
    let is_known = base.name.as_ref().and_then(AwsBase::named).is_some();
    if !is_known {
        lock.record(name, digest, read);
        return Ok(());
    }
    let (other, contradictions) = read.against(&locked.clone().or(told(base)));
    warn(base, name, &contradictions, output);
    let mut recorded = other.or(locked.clone());
    recorded.directories = read.directories;
    if recorded != locked {
        lock.record(name, digest, recorded);
    }
    Ok(())
}

/// Whether what starts a container of `base` is AWS's entrypoint.
pub(crate) fn starts_as_aws(base: &BaseImage) -> bool {
    let entrypoint = &base.image.config().entrypoint;
    matches!(&entrypoint[..], [program] if program == AWS_ENTRYPOINT)
}

/// What is known without any layer: by the base's name, its config, and the name of what it was built
/// on itself.
fn told(base: &BaseImage) -> BaseFacts {
    let config = base.image.config();
    let by_name = base.name.as_ref().map(BaseFacts::named).unwrap_or_default();
    let below = config.labels.get("org.opencontainers.image.base.name");
    let below = below.and_then(|name| name.parse().ok());
    let mut below = below
        .map(|name| BaseFacts::named(&name))
        .unwrap_or_default();
    // Whoever built on it may have added these.
    below.bootstrap = None;
    by_name.or(BaseFacts::of_config(config)).or(below)
}

async fn read(
    base: &BaseImage,
    name: &BaseName,
    places: &Places,
    output: Output,
) -> Result<BaseFacts> {
    let scratch = places.scratch()?;
    if let Some(facts) = places.facts_cache().of_base(&base.image, scratch) {
        return Ok(facts);
    }
    let layers = read_layer_facts(base.image.layers(), places, output)
        .await
        .with_context(|| format!("could not find out what the base `{}` has", name.text));
    let layers = if places.is_offline() {
        layers.hint(
            "run it once without --offline, or `tierce lock`, which records what the base has in \
             tierce.lock; a layer can say it too: `python-version`, `glibc`",
        )?
    } else {
        layers?
    };
    Ok(places
        .facts_cache()
        .keep_base(&base.image, &layers, scratch))
}

fn warn(base: &BaseImage, name: &BaseName, contradictions: &[Contradiction], output: Output) {
    for Contradiction { found, thought } in contradictions {
        output.warn(&format!(
            "the base `{}` has {found} for {}, and not {thought} as its name says: the build goes by the \
             base",
            name.text,
            base.image.platform()
        ));
    }
}

fn cannot_record(
    base: &BaseImage,
    name: &BaseName,
    contradictions: &[Contradiction],
    lock: &Lock,
) -> anyhow::Error {
    let all: Vec<String> = contradictions
        .iter()
        .map(|Contradiction { found, thought }| format!("{found}, and not {thought}"))
        .collect();
    let error = anyhow::anyhow!(
        "the base `{}` for {} is not as its name says: it has {}; tierce.lock does not say so",
        name.text,
        base.image.platform(),
        all.join("; ")
    );
    error.hint(if lock.has_file() {
        "run `tierce lock`, and commit tierce.lock"
    } else {
        "name the base in a tierce.toml, beside which a tierce.lock can hold to it"
    })
}
