//! `serverless.yml`, as far as it says what a function is.

use super::yaml::Yaml;
use super::{Described, Folder, bases, one_line, template};

const NAMES: [&str; 2] = ["serverless.yml", "serverless.yaml"];

/// Reads the function of the folder's file; of several the first, or that which is named.
pub(super) fn describe(
    folder: &mut Folder,
    wanted: Option<&str>,
) -> Result<Option<Described>, String> {
    for file in NAMES {
        let Some(text) = folder.text(file) else {
            continue;
        };
        let Some(service) = Yaml::parse(&text) else {
            folder.remark(format!("`{file}` is not YAML: it is left aside"));
            continue;
        };
        let functions = service.get("functions").map(Yaml::members);
        let names: Vec<&str> = functions
            .into_iter()
            .flatten()
            .filter(|(_, function)| function.get("image").is_none())
            .map(|(name, _)| name.as_str())
            .collect();
        let Some(name) = template::choose(folder, file, &names, wanted)? else {
            continue;
        };
        let text = |key: &str| {
            let own = service.text_at(&["functions", name, key]);
            own.or_else(|| service.text_at(&["provider", key]))
        };
        // What is put together from variables of theirs is not known here.
        let known = |key: &str| text(key).filter(|text| !text.contains("${"));
        return Ok(Some(Described {
            runtime: known("runtime").and_then(bases::of_runtime),
            handler: known("handler").map(str::to_owned),
            architecture: known("architecture").and_then(bases::architecture),
            by: format!("{} of `{file}`", one_line(name)),
            ..Described::default()
        }));
    }
    Ok(None)
}
