//! What manifest and layers are as documents and blobs.

use tierce_oci::{Compression, ImageFormat, MediaType};

use crate::facts::Packing;
use crate::finding::{Evidence, Report, Rule, Scope, Severity};
use crate::limits;
use crate::subject::Subject;

pub(super) static IMAGE_INDEX: Rule = Rule {
    name: "image-index",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "Lambda takes a single image manifest and looks up no platform in an index",
    fix: "deploy one child by its digest; builders that add attestations make an index of a single \
          image: switch them off (`--provenance=false --sbom=false`)",
    check: |_, _| (),
};

pub(super) static MEDIA_TYPE: Rule = Rule {
    name: "media-type",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "Lambda takes Docker V2 Schema 2 and OCI images, and no other types of config or layer",
    fix: "build the image again with layers that are tars, compressed with gzip",
    check: media_type,
};

fn media_type(subject: &Subject<'_>, report: &mut Report<'_>) {
    let manifest = subject.image.manifest();
    if !matches!(manifest.config.media_type, MediaType::Config(_)) {
        report.image(format!("the config is `{}`", manifest.config.media_type));
    }
    for (number, layer) in manifest.layers.iter().enumerate() {
        if !matches!(layer.media_type, MediaType::Layer(..)) {
            report.layer(number, format!("the layer is `{}`", layer.media_type));
        }
    }
}

pub(super) static MIXED_MEDIA_TYPES: Rule = Rule {
    name: "mixed-media-types",
    severity: Severity::Warning,
    evidence: Evidence::Reported,
    scope: Scope::Every,
    why: "registries convert and refuse images whose parts are half Docker's and half OCI's",
    fix: "write the image anew in one format",
    check: |subject, report| {
        let manifest = subject.image.manifest();
        let format = manifest.format();
        let mut parts = manifest.layers.iter().chain([&manifest.config]);
        let other = parts.find(|part| part.media_type.format().is_some_and(|it| it != format));
        if let Some(other) = other {
            report.image(format!(
                "the manifest is `{}` and has a `{}`",
                manifest.media_type, other.media_type
            ));
        }
    },
};

pub(super) static MISLABELLED_LAYER: Rule = Rule {
    name: "mislabelled-layer",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "whoever believes the media type cannot unpack the layer",
    fix: "write the image anew with media types that fit the blobs",
    check: |subject, report| {
        for (number, layer, facts) in layers(subject) {
            if let MediaType::Layer(_, stated) = layer.descriptor.media_type
                && stated != compression(facts.packing)
            {
                report.layer(
                    number,
                    format!(
                        "`{}` is really {}",
                        layer.descriptor.media_type,
                        match facts.packing {
                            Packing::None => "not compressed",
                            Packing::Gzip => "compressed with gzip",
                            Packing::Zstd => "compressed with zstd",
                        }
                    ),
                );
            }
        }
    },
};

pub(super) static UNCOMPRESSED_LAYER: Rule = Rule {
    name: "uncompressed-layer",
    severity: Severity::Warning,
    evidence: Evidence::Reported,
    scope: Scope::Lambda,
    why: "Lambda is reported to refuse them in Docker's format (`UnsupportedImageLayerDetected`)",
    fix: "compress it with gzip: `tierce build` does",
    check: |subject, report| {
        for (number, layer, facts) in layers(subject) {
            // In OCI's format they are reported to work.
            let is_docker = layer.descriptor.media_type.format() == Some(ImageFormat::DockerV2S2);
            if is_docker && facts.packing == Packing::None {
                report.layer(number, "the layer is not compressed");
            }
        }
    },
};

pub(super) static ZSTD_LAYER: Rule = Rule {
    name: "zstd-layer",
    severity: Severity::Note,
    evidence: Evidence::Uncertain,
    scope: Scope::Lambda,
    why: "nobody has said that Lambda takes zstd",
    fix: "compress it with gzip: leave `compression` as it is by default",
    check: |subject, report| {
        for (number, layer) in subject.layers() {
            if layer.packing == Packing::Zstd {
                report.layer(number, "the layer is compressed with zstd");
            }
        }
    },
};

pub(super) static UNCOMPRESSED_SIZE: Rule = Rule {
    name: "uncompressed-size",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "all layers together may have 10 GiB when unpacked, what later ones delete included",
    fix: "leave files out; a file that a later layer deletes still counts",
    check: |subject, report| {
        let total = subject.layers().fold(0_u64, |sum, (_, layer)| {
            sum.saturating_add(layer.uncompressed_size)
        });
        if total > limits::UNCOMPRESSED_SIZE {
            report.image(format!(
                "the layers have {} MiB when unpacked, of {} MiB that are allowed",
                total.div_ceil(1 << 20),
                limits::UNCOMPRESSED_SIZE >> 20
            ));
        }
    },
};

pub(super) static TOO_MANY_LAYERS: Rule = Rule {
    name: "too-many-layers",
    severity: Severity::Warning,
    evidence: Evidence::Reported,
    scope: Scope::Lambda,
    why: "more than 127 layers are reported to be refused",
    fix: "join layers",
    check: |subject, report| {
        let count = subject.image.layers().len();
        if count > limits::TOO_MANY_LAYERS {
            report.image(format!("{count} layers"));
        }
    },
};

pub(super) static MANY_LAYERS: Rule = Rule {
    name: "many-layers",
    severity: Severity::Note,
    evidence: Evidence::Uncertain,
    scope: Scope::Lambda,
    why: "what Lambda and ECR allow is not documented; more than 127 are reported to be refused",
    fix: "join layers",
    check: |subject, report| {
        let count = subject.image.layers().len();
        if count > limits::MANY_LAYERS && count <= limits::TOO_MANY_LAYERS {
            report.image(format!("{count} layers"));
        }
    },
};

pub(super) static MANIFEST_SIZE: Rule = Rule {
    name: "manifest-size",
    severity: Severity::Warning,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "AWS advises manifests of less than 25,400 bytes, or functions start more slowly",
    fix: "join layers, and leave annotations out",
    check: |subject, report| {
        let size = subject.image.manifest().bytes().len();
        if size >= limits::MANIFEST_SIZE {
            report.image(format!("the manifest has {size} bytes"));
        }
    },
};

/// The layers whose facts are known.
fn layers<'a>(
    subject: &Subject<'a>,
) -> impl Iterator<Item = (usize, &'a tierce_image::Layer, &'a crate::facts::LayerFacts)> {
    let image = subject.image.layers();
    let with_layer = move |(number, facts)| Some((number, image.get(number)?, facts));
    subject.layers().filter_map(with_layer)
}

fn compression(packing: Packing) -> Compression {
    match packing {
        Packing::None => Compression::None,
        Packing::Gzip => Compression::Gzip,
        Packing::Zstd => Compression::Zstd,
    }
}
