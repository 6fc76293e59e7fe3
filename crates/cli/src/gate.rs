//! The judgement of images for Lambda before they get a name: by `build` of what it made, by `push`
//! of what it is to bring.
//!
//! What is in layers that were made here is known from their making. Of a base it is known when its
//! layers were read before; for AWS's bases their name says enough, for others what `tierce.lock` says
//! of them, and the layers of those of which nothing is known are read once.
//!
//! What was found is kept (`verdict_cache.rs`): the same image with as much known of it is not judged
//! again.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tierce_image::{BaseImage, Content, Image, Layer};
use tierce_lambda::{
    AwsBase, BaseFacts, Findings, LayerFacts, Purpose, Rule, Severity, UnknownBase, judge_above,
    named_base, purpose_of,
};

use crate::diagnostic::LintRefusal;
use crate::layer_facts::read_layer_facts;
use crate::output::{Output, describe_size};
use crate::places::Places;
use crate::transport::ImagePlace;
use crate::verdict::{Judged, Verdict};
use crate::verdict_cache::VerdictKey;

/// Judges images, and lets them through or not.
pub(crate) struct Gate<'a> {
    places: &'a Places,
    output: Output,
    verdict: Verdict,
    /// What was not read, in words.
    unread: Option<String>,
}

/// The lowest layers of an image, which somebody else made.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Base {
    below: UnknownBase,
    /// Whether more is known of it than its name.
    is_described: bool,
}

impl Base {
    /// Of an image that was built on `base`, going by `facts`.
    pub(crate) fn of_build(base: Option<&BaseImage>, facts: &BaseFacts) -> Self {
        let name = base.and_then(|base| base.name.as_ref());
        Self {
            below: UnknownBase {
                layers: base.map_or(0, |base| base.image.layers().len()),
                name: name.and_then(AwsBase::named),
                libc: facts.libc,
                python: facts.python,
            },
            is_described: facts.complete,
        }
    }

    /// Of a finished image: the layers below those that its history says tierce made.
    pub(crate) fn of_image(image: &Image) -> Self {
        let all = image.layers().len();
        let is_ours = |created_by: Option<&String>| {
            created_by.is_some_and(|text| text.starts_with("tierce "))
        };
        let history = image.config().layer_history().unwrap_or_default();
        let mut entries = history.iter().rev();
        let ours = entries
            .by_ref()
            .take_while(|entry| is_ours(entry.created_by.as_ref()))
            .count();
        // A label goes on to whatever is built above. Where there are more of our layers further down,
        // it may be theirs, and there is something in between that is not of that base.
        let is_direct = !entries.any(|entry| is_ours(entry.created_by.as_ref()));
        if ours == 0 || history.len() != all {
            // All of it is somebody else's, and to be judged.
            return Self::default();
        }
        Self {
            below: UnknownBase {
                layers: all - ours,
                name: named_base(image).filter(|_| is_direct),
                ..UnknownBase::default()
            },
            is_described: false,
        }
    }
}

impl<'a> Gate<'a> {
    pub(crate) fn new(allowed: Vec<&'static Rule>, places: &'a Places, output: Output) -> Self {
        Self {
            places,
            output,
            verdict: Verdict {
                images: Vec::new(),
                allowed,
            },
            unread: None,
        }
    }

    /// Judges an image when it is for Lambda.
    pub(crate) async fn judge(&mut self, image: &Image, base: Base) -> Result<()> {
        let purpose = purpose_of(image);
        if purpose != Purpose::Lambda {
            return Ok(());
        }
        // Nobody can know more of an image than all that is in it.
        if let Some(findings) = self.found_before(image, UnknownBase::default(), purpose) {
            self.add(image, purpose, findings);
            return Ok(());
        }
        let (below, above) = image.layers().split_at(base.below.layers);
        let unknown = self.layers_unread(below, base);
        if let Some(findings) = self.found_before(image, unknown, purpose) {
            self.add(image, purpose, findings);
            return Ok(());
        }
        let mut layers = Vec::new();
        if unknown.layers == 0 {
            layers = self.read(below).await?;
        }
        layers.extend(read_layer_facts(above, self.places, self.output).await?);
        let facts: Vec<&LayerFacts> = layers.iter().map(Arc::as_ref).collect();
        let findings = judge_above(image, unknown, &facts, purpose);
        // A cache that cannot be written is only slower.
        if let Some(verdicts) = self.places.verdict_cache()
            && let Ok(scratch) = self.places.scratch()
        {
            let key = VerdictKey::of(image, unknown, purpose);
            verdicts.keep(&key, &findings, scratch);
        }
        self.add(image, purpose, findings);
        Ok(())
    }

    /// What was found when the image was judged with as much known of it.
    fn found_before(
        &self,
        image: &Image,
        unknown: UnknownBase,
        purpose: Purpose,
    ) -> Option<Findings> {
        let verdicts = self.places.verdict_cache()?;
        let findings = verdicts.read(&VerdictKey::of(image, unknown, purpose))?;
        // The next change needs them again.
        for layer in image.layers() {
            self.places.facts_cache().has(&layer.descriptor.digest);
        }
        Some(findings)
    }

    fn add(&mut self, image: &Image, purpose: Purpose, findings: Findings) {
        self.verdict.images.push(Judged {
            digest: image.digest(),
            platform: Some(image.platform().clone()),
            purpose,
            findings,
        });
    }

    /// Which of the base's layers are not worth reading.
    fn layers_unread(&mut self, below: &[Layer], base: Base) -> UnknownBase {
        let cache = self.places.facts_cache();
        let digests = || below.iter().map(|layer| &layer.descriptor.digest);
        // None is decoded before all of them are there.
        if digests().all(|layer| cache.has(layer))
            && digests().all(|layer| cache.read(layer).is_some())
        {
            return UnknownBase::default();
        }
        let needs_registry = || {
            below.iter().any(|layer| {
                matches!(layer.content, Content::Origin(_))
                    && cache.read(&layer.descriptor.digest).is_none()
            })
        };
        self.unread = Some(match base.below.name {
            Some(name) => format!(
                "the base by what is known of AWS's {} {}",
                name.language, name.version
            ),
            None if base.is_described => "the base by what tierce.lock says of it".to_owned(),
            None if self.places.is_offline() && needs_registry() => {
                "without the base, whose layers are not here".to_owned()
            }
            None => return UnknownBase::default(),
        });
        base.below
    }

    /// The facts of the base's layers, which are read when nobody has.
    async fn read(&self, below: &[Layer]) -> Result<Vec<Arc<LayerFacts>>> {
        let cache = self.places.facts_cache();
        let bytes: u64 = below
            .iter()
            .filter(|layer| matches!(layer.content, Content::Origin(_)))
            .filter(|layer| cache.read(&layer.descriptor.digest).is_none())
            .map(|layer| layer.descriptor.size)
            .sum();
        if bytes > 0 {
            let size = describe_size(bytes);
            self.output.note(&format!(
                "reading the base's layers ({size}) to judge what is built on them; what is learnt is kept"
            ));
        }
        read_layer_facts(below, self.places, self.output)
            .await
            .context("could not judge the base of the image")
    }

    /// Says what was found, and refuses errors. `place` is the image's name, under which it is,
    /// or will be, unless `is_dry`.
    pub(crate) fn decide(self, place: &ImagePlace, is_dry: bool) -> Result<Verdict> {
        let Self {
            output,
            verdict,
            unread,
            ..
        } = self;
        if verdict.images.is_empty() {
            return Ok(verdict);
        }
        let errors = verdict.errors();
        if errors > 0 {
            verdict.show(&[Severity::Error], &mut |line| {
                Output::error(line);
                Ok(())
            })?;
        }
        verdict.show_briefly(Severity::Warning, &mut |line| {
            output.note(line);
            Ok(())
        })?;
        let says_less = unread.is_some() || verdict.has(Severity::Note);
        if says_less || !verdict.is_empty() {
            let mut text = verdict.summary();
            if let Some(unread) = unread {
                text = format!("{text}; {unread}");
            }
            if says_less && errors == 0 && !is_dry {
                text = format!("{text}; `tierce lint {place}` says more");
            }
            output.note(&text);
        }
        if errors > 0 {
            let image = place.to_string();
            return Err(LintRefusal { image, errors }.into());
        }
        Ok(verdict)
    }
}
