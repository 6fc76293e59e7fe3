//! Functions and layers that are zips already.

use std::collections::BTreeSet;

use tierce_layer::{ArchiveAdd, Destination, Limits, Treatment, Tree, add_zip};

use super::{DraftLayer, Folder, LayerSource, NO_HANDLER, Program, bases, has_ending, join};

/// The largest zip that Lambda takes in one request, and that is looked into.
const MOST_BYTES: u64 = 50 << 20;

/// The zips in a folder: those of layers, and the others.
fn zips(folder: &Folder, code: &str) -> (Vec<String>, Vec<String>) {
    folder
        .names(code)
        .into_iter()
        .filter(|name| has_ending(name, "zip"))
        .map(|name| join(code, &name))
        .filter(|path| folder.has_file(path))
        .partition(|path| is_named_layer(stem(path)))
}

/// Whether a zip's name says that it is a layer; that of a player does not.
fn is_named_layer(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.match_indices("layer")
        .any(|(at, _)| !name[..at].ends_with('p'))
}

/// Puts the layers that lie in the folder as zips below the others, and takes all zips out of these.
pub(super) fn put_below(folder: &mut Folder, draft_layers: &mut Vec<DraftLayer>) {
    let (layers, others) = zips(folder, "");
    for layer in &mut *draft_layers {
        if let LayerSource::Folder { left_out, .. } = &mut layer.source {
            left_out.extend(layers.iter().chain(&others).cloned());
        }
    }
    if !others.is_empty() {
        folder.remark(format!(
            "the code itself is taken, and not {}",
            quoted(&others)
        ));
    }
    draft_layers.splice(0..0, layers.iter().map(|path| layer(path)));
}

/// The layer of a Lambda layer's zip.
pub(super) fn layer(path: &str) -> DraftLayer {
    DraftLayer::new(stem(path), LayerSource::LambdaLayer(path.to_owned()))
}

fn stem(path: &str) -> &str {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

fn quoted(paths: &[String]) -> String {
    let quoted: Vec<String> = paths.iter().map(|path| format!("`{path}`")).collect();
    quoted.join(", ")
}

/// Looks for a function that is a zip.
pub(super) fn look(folder: &mut Folder, code: &str) -> Option<Program> {
    let (layers, functions) = zips(folder, code);
    let chosen = functions
        .iter()
        .find(|path| stem(path) == "function")
        .or(functions.first())?
        .clone();
    if functions.len() > 1 {
        folder.remark(format!(
            "there are several zips ({}): an image has one function, here `{chosen}`",
            quoted(&functions)
        ));
    }
    let mut program = look_at(folder, &chosen)?;
    let layers = layers.iter().map(|path| layer(path));
    program.layers.splice(0..0, layers);
    Some(program)
}

/// The function in a zip, as far as the names in it tell.
pub(super) fn look_at(folder: &mut Folder, path: &str) -> Option<Program> {
    let names = names_in(folder, path)?;
    let has = |name: &str| names.contains(name);
    let ends = |ending: &str| names.iter().any(|name| has_ending(name, ending));
    let (language, handler) = if has("bootstrap") {
        ("provided", Some("bootstrap"))
    } else if has("lambda_function.py") {
        ("python", Some("lambda_function.lambda_handler"))
    } else if has("index.js") || has("index.mjs") || has("index.cjs") {
        ("nodejs", Some("index.handler"))
    } else if ends("py") {
        ("python", None)
    } else if ends("js") || ends("mjs") || has("package.json") {
        ("nodejs", None)
    } else {
        folder.remark(format!(
            "nothing in `{path}` tells the language of the function: check the base"
        ));
        ("provided", None)
    };
    let (version, version_reason) = bases::newest(language, |_| true)?;
    Some(Program {
        language,
        version,
        version_reason: format!("{version_reason}, by the names in `{path}`"),
        handler: handler.map(str::to_owned),
        handler_reason: handler.map_or_else(
            || NO_HANDLER.to_owned(),
            |handler| format!("handler: {handler}, the usual one for the names in `{path}`"),
        ),
        layers: vec![DraftLayer::new("code", LayerSource::Zip(path.to_owned()))],
        architecture: None,
        reasons: Vec::new(),
    })
}

/// The names at the root of a zip. What the build would refuse is remarked on.
fn names_in(folder: &mut Folder, path: &str) -> Option<BTreeSet<String>> {
    let file = folder.file(path)?;
    if file.metadata().is_ok_and(|found| found.len() > MOST_BYTES) {
        folder.remark(format!(
            "`{path}` has more than {} MiB: it is not looked into",
            MOST_BYTES >> 20
        ));
        return Some(BTreeSet::new());
    }
    let scratch = tempfile::tempdir().ok()?;
    let mut tree = Tree::new();
    let add = ArchiveAdd {
        destination: &Destination::root(),
        exclude: None,
        include: None,
        treatment: &Treatment::default(),
        scratch: scratch.path(),
        limits: Limits::default(),
    };
    if let Err(error) = add_zip(&file, &add, &mut tree, &mut Vec::new()) {
        folder.remark(format!("`{path}` cannot be used: {error}"));
        return None;
    }
    let names = tree.iter().filter_map(|(path, _)| {
        let name = std::str::from_utf8(path.as_bytes()).ok()?;
        (!name.contains('/')).then(|| name.to_owned())
    });
    Some(names.collect())
}
