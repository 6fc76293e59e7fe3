//! The corpus of images that have something wrong with them, and of those that only look so.
//!
//! `fixtures/hostile` has a file for each rule, with cases as text: what the layers hold, what the
//! config says, and all that must be found, to the letter. The format is told in
//! `fixtures/README.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{
    Format, ImageBuilder, LayerBuilder, Packing, TestImage, TestIndex, TestLayer,
};

use crate::support::{World, sealed};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hostile")
}

/// A file of cases: the rule that it is named after, and its cases.
fn files() -> Vec<(String, Vec<Value>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let document: Value =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        files.push((name, document["case"].as_array().unwrap().clone()));
    }
    files.sort_by(|one, other| one.0.cmp(&other.0));
    files
}

const KEYS: [&str; 16] = [
    "name",
    "base",
    "format",
    "architecture",
    "os",
    "for",
    "layers",
    "more-layers",
    "config",
    "annotations",
    "long-annotation",
    "long-variable",
    "media-types",
    "unpacked",
    "index",
    "expect",
];

fn text<'a>(case: &'a Value, key: &str, otherwise: &'a str) -> &'a str {
    case[key].as_str().unwrap_or(otherwise)
}

/// Builds what a case describes.
fn image_of(case: &Value, architecture: &str) -> TestImage {
    for key in case.as_object().unwrap().keys() {
        assert!(KEYS.contains(&key.as_str()), "no case has a `{key}`");
    }
    let format = match text(case, "format", "docker") {
        "oci" => Format::Oci,
        _ => Format::Docker,
    };
    let bases: &[&str] = match text(case, "base", "python") {
        "python" => &["system", "runtime"],
        "node" => &["system", "node"],
        "provided" => &["system", "provided"],
        "system" => &["system"],
        "none" => &[],
        other => panic!("no base `{other}`"),
    };
    let is_aws = bases.len() == 2;
    let mut image = ImageBuilder::new(format, architecture);
    for base in bases {
        image = image.layer(&layer_of(base));
    }
    for layer in case["layers"].as_array().unwrap() {
        let (entries, packing) = match layer {
            Value::String(entries) => (entries.as_str(), Packing::Gzip),
            other => match text(other, "packing", "gzip") {
                "none" => (text(other, "entries", ""), Packing::None),
                "zstd" => (text(other, "entries", ""), Packing::Zstd),
                packing => panic!("no packing `{packing}`"),
            },
        };
        image = image.layer(&layer_of(entries).packing(packing));
    }
    for number in 0..case["more-layers"].as_u64().unwrap_or(0) {
        image = image.layer(&layer_of(&format!("file more-{number}")));
    }
    image = image.config(|config| {
        if is_aws {
            config["config"] = json!({
                "Env": [
                    "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
                    "LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/task/lib:/opt/lib",
                    "LAMBDA_TASK_ROOT=/var/task",
                    "LAMBDA_RUNTIME_DIR=/var/runtime",
                ],
                "Entrypoint": ["/lambda-entrypoint.sh"],
                "Cmd": ["app.handler"],
                "WorkingDir": "/var/task",
            });
        }
        config["os"] = text(case, "os", "linux").into();
        for (key, value) in case["config"].as_object().into_iter().flatten() {
            config["config"][key] = value.clone();
        }
        if let Some(length) = case["long-variable"].as_u64() {
            let long = format!("LONG={}", "x".repeat(usize::try_from(length).unwrap()));
            config["config"]["Env"].as_array_mut().unwrap().push(long.into());
        }
    });
    if let Some(length) = case["long-annotation"].as_u64() {
        image = image.annotation("x", &"x".repeat(usize::try_from(length).unwrap()));
    }
    for (key, value) in case["annotations"].as_object().into_iter().flatten() {
        image = image.annotation(key, value.as_str().unwrap());
    }
    let mut image = image.build();
    if let Some(types) = case["media-types"].as_object() {
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        for (layer, media_type) in types {
            let layer: usize = layer.parse().unwrap();
            manifest["layers"][layer - 1]["mediaType"] = media_type.clone();
        }
        image.manifest = manifest.to_string().into();
    }
    image
}

/// A layer of the lines that describe its entries. The name of a file below `bases` stands for what
/// is in that.
fn layer_of(entries: &str) -> LayerBuilder {
    add_to(LayerBuilder::new(), entries)
}

fn add_to(mut layer: LayerBuilder, entries: &str) -> LayerBuilder {
    for line in entries.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        layer = match line.split_once(' ') {
            None => {
                let path = corpus().join(format!("bases/{line}.txt"));
                let base = std::fs::read_to_string(&path)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                add_to(layer, &base)
            }
            Some((kind, rest)) => entry(layer, kind, rest),
        };
    }
    layer
}

fn entry(layer: LayerBuilder, kind: &str, rest: &str) -> LayerBuilder {
    if let Some((path, target)) = rest.split_once(" -> ") {
        return match kind {
            "link" => layer.symlink(path, target),
            "hard" => layer.hardlink(path, target),
            _ => panic!("`{kind} {rest}` leads nowhere"),
        };
    }
    let (path, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let (mode, rest) = match rest.split_at_checked(4) {
        Some((digits, rest)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            (u32::from_str_radix(digits, 8).ok(), rest.trim_start())
        }
        _ => (None, rest),
    };
    match kind {
        "dir" => layer.directory(path, mode.unwrap_or(0o755)),
        "file" => {
            let content: String = match rest {
                "" => String::new(),
                quoted => serde_json::from_str(quoted).unwrap(),
            };
            layer.file(path, mode.unwrap_or(0o644), content.as_bytes())
        }
        "fifo" => layer.fifo(path),
        "gone" => layer.whiteout(path),
        "opaque" => layer.opaque(path),
        "elf" => layer.file(path, mode.unwrap_or(0o755), &elf(rest)),
        "pyc" => layer.file(path, mode.unwrap_or(0o644), &bytecode(rest)),
        "macho" => layer.file(path, 0o755, b"\xcf\xfa\xed\xfe\x0c\0\0\x01\0\0\0\0"),
        "exe" => layer.file(path, 0o755, &windows(false)),
        "assembly" => layer.file(path, 0o644, &windows(true)),
        _ => panic!("no entry is a `{kind}`"),
    }
}

fn elf(words: &str) -> Vec<u8> {
    let words: Vec<(&str, &str)> = words
        .split_whitespace()
        .map(|word| word.split_once('=').unwrap())
        .collect();
    let machine = words.iter().find(|(key, _)| *key == "machine");
    let mut elf = ElfBuilder::new(machine.map_or("amd64", |(_, machine)| machine));
    for (key, value) in words {
        let symbol = || {
            let mut parts = value.split(':');
            [(); 3].map(|()| parts.next().unwrap())
        };
        elf = match key {
            "machine" => elf,
            "abi" => elf.abi(value.parse().unwrap()),
            "interpreter" => elf.interpreter(value),
            "soname" => elf.soname(value),
            "needs" => value.split(',').fold(elf, ElfBuilder::needs),
            "defines" => value.split(',').fold(elf, ElfBuilder::defines),
            "rpath" => elf.rpath(value),
            "runpath" => elf.runpath(value),
            "symbol" => {
                let [library, version, symbol] = symbol();
                elf.needs_symbol(library, version, symbol)
            }
            "weak" => {
                let [library, version, symbol] = symbol();
                elf.wants_symbol(library, version, symbol)
            }
            "content" => match value.strip_prefix("wide:") {
                Some(wide) => {
                    let wide: Vec<u8> = wide.bytes().flat_map(|byte| [byte, 0]).collect();
                    elf.content(&wide)
                }
                None => elf.content(value.as_bytes()),
            },
            _ => panic!("no program has a `{key}`"),
        };
    }
    elf.build()
}

/// The header of a `.pyc` of Python 3.12 (PEP 552).
fn bytecode(words: &str) -> Vec<u8> {
    let number = |key: &str| -> u32 {
        words
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key))
            .map_or(0, |number| number.parse().unwrap())
    };
    let mut bytes = b"\xcb\x0d\x0d\x0a".to_vec();
    bytes.extend(u32::from(words == "hash").to_le_bytes());
    bytes.extend(number("time=").to_le_bytes());
    bytes.extend(number("size=").to_le_bytes());
    bytes
}

/// A Portable Executable as far as its headers, which may say that it is for .NET.
fn windows(is_managed: bool) -> Vec<u8> {
    let mut bytes = vec![0; 0x200];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x40;
    bytes[0x40..0x42].copy_from_slice(b"PE");
    bytes[0x58..0x5a].copy_from_slice(&[0x0b, 0x02]);
    bytes[0x58 + 112 + 14 * 8] = u8::from(is_managed);
    bytes
}

/// Says of the topmost layer, in what is remembered of it, that it is that large: nobody wants to
/// wait for 10 GiB.
fn claim_size(world: &World, layer: &TestLayer, size: u64) {
    let file = world.sandbox.cache().join(format!(
        "tierce/facts-1/sha256/{}.json",
        layer.digest().hex()
    ));
    let text = std::fs::read_to_string(&file).unwrap();
    let (_, json) = text.split_once('\n').unwrap();
    let json = json.replacen(
        &format!("\"uncompressed_size\":{}", layer.tar.len()),
        &format!("\"uncompressed_size\":{size}"),
        1,
    );
    std::fs::write(&file, sealed(&file, &json)).unwrap();
}

/// All findings of a case as `rule layer path`, and the exit code.
fn found(case: &Value) -> Vec<String> {
    let world = World::new();
    let architecture = text(case, "architecture", "amd64");
    let image = image_of(case, architecture);
    let layout = world.path("image");
    if case["index"] == true {
        let images = vec![image_of(case, "amd64"), attestation()];
        TestIndex::of(image.format, images).write_layout(&layout, Some("it"));
    } else {
        image.write_layout(&layout, Some("it"));
    }
    let purpose = text(case, "for", "lambda");
    let arguments = ["lint", "--json", "--for", purpose, "oci:image:it"];
    let mut output = world.tierce(&arguments).run();
    if let Some(size) = case["unpacked"].as_u64() {
        let others: usize = image
            .layers
            .iter()
            .rev()
            .skip(1)
            .map(|it| it.tar.len())
            .sum();
        claim_size(&world, image.layers.last().unwrap(), size - others as u64);
        output = world.tierce(&arguments).run();
    }
    let expected = |errors: &Value| if *errors == 0 { 0 } else { 3 };
    assert!(
        matches!(output.code(), Some(0 | 3)),
        "{}: {output:?}",
        case["name"]
    );
    let document = output.json();
    assert_eq!(output.code(), Some(expected(&document["errors"])));
    let mut all = Vec::new();
    for image in document["images"].as_array().unwrap() {
        for finding in image["findings"].as_array().unwrap() {
            let text = |key: &str| match &finding[key] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            all.push(format!(
                "{} {} {}",
                text("rule"),
                text("layer"),
                text("path")
            ));
        }
    }
    all
}

/// What builders put beside an image in an index.
fn attestation() -> TestImage {
    ImageBuilder::new(Format::Oci, "unknown")
        .config(|config| config["os"] = "unknown".into())
        .build()
}

#[test]
fn every_case_of_the_corpus_has_exactly_its_findings() {
    let files = files();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = files
            .chunks(files.len().div_ceil(4))
            .map(|files| {
                scope.spawn(move || {
                    let mut wrong = Vec::new();
                    for (file, cases) in files {
                        for case in cases {
                            let expected: Vec<&str> = case["expect"]
                                .as_array()
                                .unwrap()
                                .iter()
                                .map(|line| line.as_str().unwrap())
                                .collect();
                            let found = found(case);
                            if found != expected {
                                let name = &case["name"];
                                wrong.push(format!("{file}: {name}: {found:#?}"));
                            }
                        }
                    }
                    wrong
                })
            })
            .collect();
        let results = workers.into_iter().map(|worker| worker.join().unwrap());
        results.flatten().collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_has_a_case_that_breaks_it_and_one_that_nearly_does() {
    let world = World::new();
    ImageBuilder::new(Format::Oci, "amd64")
        .build()
        .write_layout(&world.path("image"), Some("it"));
    world.runs(&["lint", "--sarif", "out.sarif", "oci:image:it"]);
    let log: Value =
        serde_json::from_slice(&std::fs::read(world.path("out.sarif")).unwrap()).unwrap();
    let rules = log["runs"][0]["tool"]["driver"]["rules"]
        .as_array()
        .unwrap();
    let files = files();
    for rule in rules {
        let rule = rule["id"].as_str().unwrap();
        let (_, cases) = files
            .iter()
            .find(|(name, _)| name == rule)
            .unwrap_or_else(|| panic!("no fixtures/hostile/{rule}.toml"));
        let breaks = |case: &&Value| {
            let mut lines = case["expect"].as_array().unwrap().iter();
            lines.any(|line| line.as_str().unwrap().split(' ').next() == Some(rule))
        };
        assert!(cases.iter().any(|case| breaks(&case)), "{rule}");
        assert!(!cases.iter().all(|case| breaks(&case)), "{rule}");
        let names: BTreeSet<&str> = cases.iter().map(|case| text(case, "name", "")).collect();
        assert_eq!(names.len(), cases.len(), "{rule}: two cases of one name");
    }
}
