//! Functions that are programs: Rust, Go, or a `bootstrap` of whatever made it.

use std::fs::File;

use tierce_lambda::{Collector, ContentFacts, EntryKind, Packing, RawEntry, RawPath};
use toml::Value;

use super::{DraftLayer, Folder, LayerSource, Program, bases, join};

/// Where build tools put a program, and where people do.
const PLACES: [&str; 5] = [
    "bootstrap",
    "build/bootstrap",
    "bin/bootstrap",
    "dist/bootstrap",
    "out/bootstrap",
];

/// Looks for a program in `code`.
pub(super) fn look(folder: &mut Folder, code: &str) -> Option<Program> {
    rust(folder, code)
        .or_else(|| go(folder, code))
        .or_else(|| ready(folder, code))
}

/// A program, which the `provided` bases start whatever the handler is called.
fn program(folder: &Folder, path: &str, handler: &str, made_by: Option<&str>) -> Program {
    let (version, _) = bases::newest("provided", |_| true).unwrap_or_default();
    let found = folder.has_file(path).then(|| kind_of(folder, path));
    let is_script = matches!(found, Some(Some(Kind::Script)));
    let path = path.to_owned();
    let source = if is_script {
        LayerSource::Script(path.clone())
    } else {
        LayerSource::Binary {
            path: path.clone(),
            libraries: None,
        }
    };
    let layer = DraftLayer::new("handler", source);
    let reasons = vec![match (&found, made_by) {
        (None, Some(made_by)) => format!("program: `{path}`, which is not there yet: {made_by}"),
        _ => format!("program: `{path}`"),
    }];
    Program {
        language: "provided",
        version,
        version_reason: "for compiled programs".to_owned(),
        handler: Some(handler.to_owned()),
        handler_reason: format!("handler: {handler}, the program's name; it may be any word"),
        layers: vec![layer],
        architecture: match found.flatten() {
            Some(Kind::Program { architecture, .. }) => bases::architecture(architecture),
            _ => None,
        },
        reasons,
    }
}

/// What a file to be started is.
enum Kind {
    Program {
        architecture: &'static str,
        speaks_runtime_api: bool,
    },
    Script,
}

fn kind_of(folder: &Folder, path: &str) -> Option<Kind> {
    let mut file = File::open(folder.file(path)?).ok()?;
    let size = file.metadata().ok()?.len();
    let entry = RawEntry {
        path: RawPath::from("bootstrap"),
        kind: EntryKind::File,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size,
        modified: 0,
    };
    let mut collector = Collector::default();
    collector.add(entry, &mut file).ok()?;
    let facts = collector.finish(size, Packing::None);
    let found = facts.entries.first()?;
    match &found.content {
        Some(ContentFacts::Elf(elf)) => Some(Kind::Program {
            architecture: elf.architecture(),
            speaks_runtime_api: found.speaks_runtime_api,
        }),
        Some(ContentFacts::Script(_)) => Some(Kind::Script),
        _ => None,
    }
}

/// A crate on the runtime of Rust. cargo-lambda puts programs into `target/lambda/NAME/bootstrap`.
fn rust(folder: &mut Folder, code: &str) -> Option<Program> {
    let path = join(code, "Cargo.toml");
    let text = folder.text(&path)?;
    let Ok(manifest) = toml::from_str::<Value>(&text) else {
        folder.remark(format!("`{path}` is not TOML: it is left aside"));
        return None;
    };
    let dependencies = manifest.get("dependencies").and_then(Value::as_table);
    let runtimes = ["lambda_runtime", "lambda_http"];
    if !dependencies.is_some_and(|table| runtimes.iter().any(|name| table.contains_key(*name))) {
        folder.remark(format!(
            "`{path}` does not name lambda_runtime: it is left aside"
        ));
        return None;
    }
    let package = manifest
        .get("package")
        .and_then(|it| it.get("name"))
        .and_then(Value::as_str);
    let programs = manifest.get("bin").and_then(Value::as_array);
    let mut names: Vec<&str> = programs
        .into_iter()
        .flatten()
        .filter_map(|program| program.get("name")?.as_str())
        .collect();
    if names.is_empty() {
        names.extend(package);
    }
    names.retain(|name| is_plain(name));
    let built = |name: &&&str| folder.has_file(&join(code, &place_of_cargo(name)));
    let name = (*names.iter().find(built).or(names.first())?).to_owned();
    if names.len() > 1 {
        let all = names.join(", ");
        folder.remark(format!(
            "`{path}` has several programs ({all}): one image runs one of them, here {name}"
        ));
    }
    let place = join(code, &place_of_cargo(&name));
    Some(program(
        folder,
        &place,
        &name,
        Some("`cargo lambda build --release` makes it, with `--arm64` for that platform"),
    ))
}

fn place_of_cargo(name: &str) -> String {
    format!("target/lambda/{name}/bootstrap")
}

/// Whether a name can be a path's part and a handler.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn go(folder: &mut Folder, code: &str) -> Option<Program> {
    let path = join(code, "go.mod");
    let text = folder.text(&path)?;
    let place = found(folder, code);
    if place.is_none() && !text.contains("github.com/aws/aws-lambda-go") {
        folder.remark(format!(
            "`{path}` does not name aws-lambda-go: it is left aside"
        ));
        return None;
    }
    let place = place.unwrap_or_else(|| join(code, "bootstrap"));
    Some(program(
        folder,
        &place,
        "bootstrap",
        Some(
            "`GOOS=linux GOARCH=amd64 CGO_ENABLED=0 go build -tags lambda.norpc -o bootstrap .` makes it, \
             with GOARCH=arm64 for that platform",
        ),
    ))
}

fn found(folder: &Folder, code: &str) -> Option<String> {
    PLACES
        .iter()
        .map(|place| join(code, place))
        .find(|place| folder.has_file(place))
}

/// Folders that build tools write to.
const FOLDERS: [&str; 5] = ["build", "bin", "dist", "out", ""];
/// The processors as the kernel calls them, and as `{machine}` stands for them.
const MACHINES: [&str; 2] = ["x86_64", "aarch64"];
/// As many files as are looked into for a program.
const MOST_FILES: usize = 200;

fn ready(folder: &Folder, code: &str) -> Option<Program> {
    if let Some(place) = found(folder, code) {
        return Some(program(folder, &place, "bootstrap", None));
    }
    for place in FOLDERS.map(|place| join(code, place)) {
        let place = place.trim_end_matches('/');
        // One for each processor, or one alone.
        for machine in MACHINES {
            let directory = join(place, machine);
            if let Some(name) = program_in(folder, &directory) {
                let mut program = program(folder, &join(&directory, &name), &name, None);
                let of_each = join(place, "{machine}");
                let has_libraries = folder
                    .names(&directory)
                    .iter()
                    .any(|name| name.starts_with("lib") && name.contains(".so"));
                let source = LayerSource::Binary {
                    path: join(&of_each, &name),
                    libraries: has_libraries.then_some(of_each),
                };
                program.layers = vec![DraftLayer::new("handler", source)];
                return Some(program);
            }
        }
        if let Some(name) = program_in(folder, place) {
            return Some(program(folder, &join(place, &name), &name, None));
        }
    }
    None
}

/// The first program in a folder that speaks the Runtime API.
fn program_in(folder: &Folder, directory: &str) -> Option<String> {
    let names = folder.names(directory).into_iter();
    let mut plain = names.filter(|name| is_plain(name)).take(MOST_FILES);
    plain.find(|name| {
        matches!(
            kind_of(folder, &join(directory, name)),
            Some(Kind::Program {
                speaks_runtime_api: true,
                ..
            })
        )
    })
}
