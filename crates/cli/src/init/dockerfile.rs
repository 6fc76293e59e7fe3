//! A Dockerfile on one of AWS's bases: the facts in it that need no build.

use parse_dockerfile::{Command, Instruction};
use tierce_lambda::AwsBase;
use tierce_oci::Reference;

use super::{Described, Folder, join, one_line};

/// Reads the last stage of the Dockerfile `name` in `code`; `None` when it is not on one of AWS's
/// bases.
pub(super) fn describe(folder: &mut Folder, code: &str, name: &str) -> Option<Described> {
    let path = join(code, name);
    let text = folder.text(&path)?;
    let Ok(parsed) = parse_dockerfile::parse(&text) else {
        folder.remark(format!("`{path}` is not a Dockerfile: it is left aside"));
        return None;
    };
    let stages: Vec<_> = parsed.stages().collect();
    // A stage that begins with another goes on with it.
    let mut chain = Vec::new();
    let mut next = stages.len().checked_sub(1);
    let mut image = None;
    while let Some(at) = next {
        let stage = &stages[at];
        chain.push(stage);
        let named = &*stage.from.image.value;
        let earlier = stages[..at].iter().position(|stage| {
            let name = stage.from.as_.as_ref().map(|(_, name)| &*name.value);
            name.is_some_and(|name| name.eq_ignore_ascii_case(named))
        });
        if earlier.is_none() {
            image = Some(named);
        }
        next = earlier;
    }
    let image = image?;
    let reference: Option<Reference> = image.parse().ok();
    let Some(base) = reference.as_ref().and_then(AwsBase::named) else {
        folder.remark(format!(
            "`{path}` is not on a base of AWS's that is known: it is left aside"
        ));
        return None;
    };
    let mut described = Described {
        runtime: Some((base.language.to_owned(), base.version.to_owned())),
        code: code.to_owned(),
        by: format!("`{path}`"),
        ..Described::default()
    };
    if let Some(architecture) = image.rsplit_once('-').map(|(_, architecture)| architecture) {
        described.architecture = super::bases::architecture(architecture);
    }
    let mut is_more = false;
    for instruction in chain.iter().rev().flat_map(|stage| stage.instructions) {
        match instruction {
            Instruction::Cmd(cmd) => described.handler = only_word(&cmd.arguments),
            Instruction::Workdir(workdir) => {
                let directory = &*workdir.arguments.value;
                let is_plain = directory.starts_with('/') && !directory.contains('$');
                described.working_dir = is_plain
                    .then(|| directory.to_owned())
                    .filter(|directory| directory.trim_end_matches('/') != "/var/task");
                is_more |= !is_plain;
            }
            Instruction::Env(env) => match pairs(&env.arguments.value) {
                Some(pairs) => {
                    let (secret, others): (Vec<_>, Vec<_>) =
                        pairs.into_iter().partition(|(name, _)| may_be_secret(name));
                    described.env.extend(others);
                    for (name, _) in secret {
                        folder.remark(format!(
                            "the variable {} of `{path}` is left out, for it may be secret: set it on the function",
                            one_line(&name)
                        ));
                    }
                }
                None => is_more = true,
            },
            Instruction::Entrypoint(_)
            | Instruction::Run(_)
            | Instruction::Copy(_)
            | Instruction::Add(_) => is_more = true,
            _ => {}
        }
    }
    if is_more {
        folder.remark(format!(
            "of `{path}` base, CMD, ENV and WORKDIR are taken over: check what COPY, RUN and ENTRYPOINT do"
        ));
    }
    Some(described)
}

/// Whether a variable's value may be secret, by its name.
fn may_be_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    [
        "SECRET",
        "TOKEN",
        "PASSWORD",
        "PASSWD",
        "CREDENTIAL",
        "APIKEY",
        "API_KEY",
        "ACCESS_KEY",
        "PRIVATE_KEY",
    ]
    .iter()
    .any(|word| name.contains(word))
}

/// The word of a command that is one word, and no shell's.
fn only_word(command: &Command<'_>) -> Option<String> {
    match command {
        Command::Exec(words) => match &words.value[..] {
            [word] => Some(word.value.clone().into_owned()),
            _ => None,
        },
        _ => None,
    }
}

/// The pairs of an ENV without quotes, variables and escapes.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    if text.contains(['$', '"', '\'', '\\', '\n']) {
        return None;
    }
    let pairs = text.split_whitespace().map(|word| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}
