//! What `tierce init` makes of a folder: the files that say what a function is are looked at, and a
//! `tierce.toml` is written that builds it.
//!
//! What says most comes first: a template of SAM or the Serverless Framework, a Dockerfile on one of
//! AWS's bases, then the files of each language. Nothing is run, nothing outside the folder is read,
//! and the same folder gives the same file.

mod bases;
mod compiled;
mod dockerfile;
mod folder;
mod node;
mod python;
mod serverless;
mod template;
mod text;
mod yaml;
mod zips;

use std::collections::BTreeSet;

pub(crate) use self::folder::Folder;
pub(crate) use self::text::{left_out, written};

/// What the file is going to say.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) base: String,
    /// Lambda's name of the architecture.
    pub(crate) architecture: &'static str,
    pub(crate) handler: Option<String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) layers: Vec<DraftLayer>,
    /// What was chosen, and why.
    pub(crate) reasons: Vec<String>,
}

/// A layer of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DraftLayer {
    pub(crate) name: String,
    pub(crate) source: LayerSource,
    /// Where it goes, when that is not the usual place.
    pub(crate) to: Option<&'static str>,
    /// What must be done first; the layer is then written as a comment.
    pub(crate) missing: Option<String>,
}

/// What a layer is made of. Paths are relative to the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerSource {
    Python(String),
    Node(String),
    Zip(String),
    LambdaLayer(String),
    /// A program that speaks the Runtime API, and where libraries of its own are.
    Binary {
        path: String,
        libraries: Option<String>,
    },
    /// A script in the program's place.
    Script(String),
    /// A folder's content; `left_out` is what other layers were made of.
    Folder {
        from: String,
        left_out: Vec<String>,
    },
}

impl DraftLayer {
    pub(crate) fn new(name: &str, source: LayerSource) -> Self {
        Self {
            name: name.to_owned(),
            source,
            to: None,
            missing: None,
        }
    }
}

/// A function as far as a template, a Dockerfile or nobody describes it.
#[derive(Debug, Default)]
struct Described {
    /// The language as AWS's repositories are named, with the version.
    runtime: Option<(String, String)>,
    handler: Option<String>,
    architecture: Option<&'static str>,
    /// Where the code is: a folder or a zip.
    code: String,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    env: Vec<(String, String)>,
    /// Layers below the function's own.
    layers: Vec<DraftLayer>,
    /// The file that says so.
    by: String,
}

/// What was found of a language: its version, dependencies and handler.
#[derive(Debug)]
struct Program {
    language: &'static str,
    version: &'static str,
    version_reason: String,
    handler: Option<String>,
    handler_reason: String,
    layers: Vec<DraftLayer>,
    architecture: Option<&'static str>,
    reasons: Vec<String>,
}

/// The files that are looked for, for whoever has none of them.
pub(crate) const LOOKED_FOR: &str = "it looks for template.yaml (SAM), serverless.yml, a Dockerfile on one of AWS's bases, \
    Python (requirements.txt, pyproject.toml, uv.lock, poetry.lock, *.py), Node (package.json, index.js), \
    Rust (Cargo.toml with lambda_runtime), Go (go.mod with aws-lambda-go), a `bootstrap` or other program that speaks the Runtime API, and zips (function.zip)";

/// Where Lambda puts a function that names no architecture.
const DEFAULT_ARCHITECTURE: &str = "x86_64";

/// Works out a file for `folder`; `None` when nothing in it looks like a function. Of several
/// functions of a template `function` names one.
pub(crate) fn draft(folder: &mut Folder, function: Option<&str>) -> Result<Option<Draft>, String> {
    let described = match template::describe(folder, function)? {
        Some(described) => Some(described),
        None => match serverless::describe(folder, function)? {
            Some(described) => Some(described),
            None => dockerfile::describe(folder, "", "Dockerfile"),
        },
    };
    if let Some(function) = function
        && described.is_none()
    {
        return Err(format!(
            "there is no template that could describe the function `{function}`"
        ));
    }
    Ok(match described {
        Some(described) => Some(of_description(folder, described)),
        None => of_files(folder),
    })
}

/// The program in `code`, by its language when that is known.
fn program_in(folder: &mut Folder, code: &str, language: Option<&str>) -> Option<Program> {
    let mut programs = Vec::new();
    let is_wanted = |name: &str| language.is_none_or(|language| language == name);
    if is_wanted("python") {
        programs.extend(python::look(folder, code));
    }
    if is_wanted("nodejs") {
        programs.extend(node::look(folder, code));
    }
    if is_wanted("provided") {
        programs.extend(compiled::look(folder, code));
    }
    // One that has a handler is more than the tools of another language around it.
    let best = programs
        .iter()
        .position(|program| program.handler.is_some())
        .unwrap_or(0);
    if programs.is_empty() {
        return None;
    }
    let chosen = programs.swap_remove(best);
    let others: BTreeSet<&str> = programs.iter().map(|program| program.language).collect();
    for other in others {
        folder.remark(format!(
            "there are files of {} too, which are not used",
            name_of(other)
        ));
    }
    Some(chosen)
}

/// A language for people.
fn name_of(language: &str) -> &str {
    match language {
        "python" => "Python",
        "nodejs" => "Node",
        "ruby" => "Ruby",
        "java" => "Java",
        "dotnet" => ".NET",
        _ => "a compiled language",
    }
}

fn of_files(folder: &mut Folder) -> Option<Draft> {
    let Some(program) = program_in(folder, "", None) else {
        return zips::look(folder, "").map(of_program);
    };
    let mut draft = of_program(program);
    zips::put_below(folder, &mut draft.layers);
    Some(draft)
}

fn of_program(program: Program) -> Draft {
    let mut draft = Draft {
        base: bases::name(program.language, program.version),
        architecture: program.architecture.unwrap_or(DEFAULT_ARCHITECTURE),
        handler: program.handler,
        layers: program.layers,
        ..Draft::default()
    };
    draft
        .reasons
        .push(format!("base: {} ({})", draft.base, program.version_reason));
    draft.reasons.push(match program.architecture {
        Some(architecture) => format!("platform: {architecture}, as the program"),
        None => format!("platform: {DEFAULT_ARCHITECTURE}, Lambda's default"),
    });
    draft.reasons.push(program.handler_reason);
    draft.reasons.extend(program.reasons);
    draft
}

/// Completes what a template or Dockerfile says by what is in the folder that it names.
fn of_description(folder: &mut Folder, described: Described) -> Draft {
    let by = &described.by;
    let mut reasons = Vec::new();
    let language = described.runtime.as_ref().map(|(language, _)| &**language);
    let program = if has_ending(&described.code, "zip") {
        zips::look_at(folder, &described.code)
    } else {
        program_in(folder, &described.code, language)
    };
    let known = described.runtime.as_ref().map(|(language, version)| {
        let found = bases::find(language, version);
        if found.is_none() {
            folder.remark(format!(
                "{by} names the runtime {language} {version}, which has no base that is known here"
            ));
        }
        found
    });
    let base = match (known.flatten(), &program) {
        (Some((language, version)), _) => {
            let base = bases::name(language, version);
            reasons.push(format!("base: {base} (the runtime of {by})"));
            base
        }
        (None, Some(program)) => {
            let base = bases::name(program.language, program.version);
            reasons.push(format!("base: {base} ({})", program.version_reason));
            base
        }
        (None, None) => {
            let language = language.unwrap_or("provided");
            let (version, reason) = bases::newest(language, |_| true).unwrap_or_default();
            let base = bases::name(language, version);
            reasons.push(format!("base: {base} ({reason})"));
            base
        }
    };
    let found = program.as_ref().and_then(|program| program.architecture);
    let architecture = described
        .architecture
        .or(found)
        .unwrap_or(DEFAULT_ARCHITECTURE);
    reasons.push(match (described.architecture, found) {
        (Some(_), _) => format!("platform: {architecture} ({by})"),
        (None, Some(_)) => format!("platform: {architecture}, as the program"),
        (None, None) => format!("platform: {architecture}, Lambda's default"),
    });
    let mut draft = Draft {
        base,
        architecture,
        working_dir: described.working_dir,
        entrypoint: described.entrypoint,
        env: described.env,
        layers: described.layers,
        reasons,
        ..Draft::default()
    };
    let root = |folder: &Folder, handler: &str| {
        let root = match language {
            Some("python") => python::root_of(folder, &described.code, handler),
            Some("nodejs") => node::root_of(folder, &described.code, handler),
            _ => None,
        };
        root.unwrap_or_else(|| described.code.clone())
    };
    match (described.handler, program) {
        (Some(handler), program) => {
            draft
                .reasons
                .push(format!("handler: {} ({by})", one_line(&handler)));
            let root = root(folder, &handler);
            draft.handler = Some(handler);
            match program {
                Some(mut program) => {
                    program.move_code(&root);
                    draft.layers.append(&mut program.layers);
                    draft.reasons.append(&mut program.reasons);
                }
                None => draft.layers.push(other_code(language, &root)),
            }
        }
        (None, Some(mut program)) => {
            draft.handler = program.handler;
            draft.reasons.push(program.handler_reason);
            draft.layers.append(&mut program.layers);
            draft.reasons.append(&mut program.reasons);
        }
        (None, None) => {
            draft.reasons.push(NO_HANDLER.to_owned());
            draft.layers.push(other_code(language, &described.code));
        }
    }
    draft
}

const NO_HANDLER: &str = "handler: none was found; name it in the file";

/// The code of a language whose files are not looked at.
fn other_code(language: Option<&str>, root: &str) -> DraftLayer {
    if has_ending(root, "zip") {
        return DraftLayer::new("code", LayerSource::Zip(root.to_owned()));
    }
    let mut layer = code_layer(root, Vec::new());
    if matches!(language, Some("java" | "dotnet" | "provided")) {
        layer.missing =
            Some("compile it first, and name the folder that the compiler writes".to_owned());
    }
    layer
}

/// The layer of the function's own files.
fn code_layer(root: &str, left_out: Vec<String>) -> DraftLayer {
    let from = from_of(root);
    DraftLayer::new("code", LayerSource::Folder { from, left_out })
}

/// A folder as `from` names it.
fn from_of(root: &str) -> String {
    if root.is_empty() {
        ".".to_owned()
    } else {
        format!("{root}/")
    }
}

impl Program {
    /// Takes the code from `root`, because somebody knows better where the handler is.
    fn move_code(&mut self, root: &str) {
        for layer in &mut self.layers {
            if let LayerSource::Folder { from, .. } = &mut layer.source {
                *from = from_of(root);
            }
        }
    }
}

/// Text of a file in a message of one line.
fn one_line(text: &str) -> String {
    let line = text.chars().filter(|it| !it.is_control());
    line.take(80).collect()
}

/// A path below a folder, where the empty path is the folder itself.
fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

fn has_ending(name: &str, ending: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, found)| found.eq_ignore_ascii_case(ending))
}
