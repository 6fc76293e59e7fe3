//! Templates of SAM and `CloudFormation`, as far as they say what a function is.

use super::yaml::Yaml;
use super::{
    Described, DraftLayer, Folder, LayerSource, bases, dockerfile, has_ending, join, one_line,
};
use super::{node, python, zips};

const NAMES: [&str; 2] = ["template.yaml", "template.yml"];

/// Reads the function of the folder's template; of several the first, or that which is named.
pub(super) fn describe(
    folder: &mut Folder,
    wanted: Option<&str>,
) -> Result<Option<Described>, String> {
    for file in NAMES {
        let Some(text) = folder.text(file) else {
            continue;
        };
        let Some(template) = Yaml::parse(&text) else {
            folder.remark(format!("`{file}` is not YAML: it is left aside"));
            continue;
        };
        let template = Template(&template);
        let functions: Vec<&str> = template
            .resources()
            .filter(|(_, kind, _)| {
                matches!(*kind, "AWS::Serverless::Function" | "AWS::Lambda::Function")
            })
            .map(|(name, ..)| name)
            .collect();
        let Some(name) = choose(folder, file, &functions, wanted)? else {
            continue;
        };
        return Ok(Some(template.describe(folder, file, name)));
    }
    Ok(None)
}

/// Chooses a function: the named one, else the first.
pub(super) fn choose<'a>(
    folder: &mut Folder,
    file: &str,
    functions: &[&'a str],
    wanted: Option<&str>,
) -> Result<Option<&'a str>, String> {
    let Some(wanted) = wanted else {
        if let [first, others @ ..] = functions
            && !others.is_empty()
        {
            let others = listed(others);
            folder.remark(format!(
                "`{file}` has several functions: this is {first}; --function chooses another ({others})"
            ));
        }
        return Ok(functions.first().copied());
    };
    match functions.iter().find(|name| **name == wanted) {
        Some(name) => Ok(Some(name)),
        None => Err(format!(
            "`{file}` has no function `{wanted}`; it has {}",
            if functions.is_empty() {
                "none".to_owned()
            } else {
                listed(functions)
            }
        )),
    }
}

/// As many functions as are named.
const LISTED: usize = 12;

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(LISTED).map(|name| one_line(name));
    let mut shown: Vec<String> = shown.collect();
    if names.len() > LISTED {
        shown.push(format!("and {} more", names.len() - LISTED));
    }
    shown.join(", ")
}

/// As many layers as Lambda lets a function have.
///
/// <https://docs.aws.amazon.com/lambda/latest/dg/chapter-layers.html>
const MOST_LAYERS: usize = 5;

struct Template<'a>(&'a Yaml);

impl<'a> Template<'a> {
    /// Name, type and all of each resource.
    fn resources(&self) -> impl Iterator<Item = (&'a str, &'a str, &'a Yaml)> {
        let resources = self.0.get("Resources").map(Yaml::members);
        resources
            .into_iter()
            .flatten()
            .filter_map(|(name, resource)| {
                Some((name.as_str(), resource.text_at(&["Type"])?, resource))
            })
    }

    fn resource(&self, name: &str) -> Option<(&'a str, &'a Yaml)> {
        self.resources()
            .find(|(found, ..)| *found == name)
            .map(|(_, kind, resource)| (kind, resource))
    }

    /// Text, or the default of the parameter that is meant.
    fn text(&self, value: &'a Yaml) -> Option<&'a str> {
        value.text().or_else(|| {
            let parameter = value.reference()?;
            self.0.text_at(&["Parameters", parameter, "Default"])
        })
    }

    fn describe(&self, folder: &mut Folder, file: &str, name: &str) -> Described {
        let empty = Yaml::List(Vec::new());
        let (_, resource) = self.resource(name).unwrap_or(("", &empty));
        let global = self.0.at(&["Globals", "Function"]);
        let property = |key: &str| {
            let own = resource.at(&["Properties", key]);
            own.or_else(|| global?.get(key))
        };
        let text = |key: &str| property(key).and_then(|value| self.text(value));
        let by = format!("{} of `{file}`", one_line(name));
        let architecture = property("Architectures")
            .and_then(|list| list.items().first())
            .and_then(|value| self.text(value))
            .and_then(bases::architecture);
        if text("PackageType") == Some("Image") {
            let place = |key: &str| resource.text_at(&["Metadata", key]);
            let context = folder.inside(place("DockerContext").unwrap_or("."));
            let context = context.unwrap_or_default();
            let named = place("Dockerfile").unwrap_or("Dockerfile");
            let mut described = dockerfile::describe(folder, &context, named).unwrap_or_default();
            if described.by.is_empty() {
                described.code = context;
                described.by.clone_from(&by);
            }
            described.architecture = architecture.or(described.architecture);
            if let Some(config) = property("ImageConfig") {
                self.configure(&mut described, config, &by);
            }
            return described;
        }
        let mut described = Described {
            runtime: text("Runtime").and_then(bases::of_runtime),
            handler: text("Handler").map(str::to_owned),
            architecture,
            by,
            ..Described::default()
        };
        let code = text("CodeUri").or_else(|| text("Code"));
        match code.map(|code| (code, folder.inside(code))) {
            Some((_, Some(code))) if folder.has_folder(&code) || has_ending(&code, "zip") => {
                described.code = code;
            }
            Some((code, _)) => folder.remark(format!(
                "the code of {name}, `{}`, is no folder here: the layer `code` is taken from all of this one",
                one_line(code)
            )),
            None => {}
        }
        let layers = property("Layers").map(Yaml::items).unwrap_or_default();
        if layers.len() > MOST_LAYERS {
            folder.remark(format!(
                "{name} has more than {MOST_LAYERS} layers: the first of them are taken"
            ));
        }
        for layer in layers.iter().take(MOST_LAYERS) {
            let found = layer.reference().and_then(|name| self.layer(folder, name));
            match found {
                Some(layer) => described.layers.push(layer),
                None => folder.remark(format!(
                    "a layer of {name} is not in this folder: get its zip, and name it as `lambda-layer`"
                )),
            }
        }
        described
    }

    /// What `ImageConfig` overrides.
    fn configure(&self, described: &mut Described, config: &'a Yaml, by: &str) {
        let words = |key: &str| -> Option<Vec<String>> {
            let words = config.get(key)?.items().iter();
            words
                .map(|word| self.text(word).map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .filter(|words| !words.is_empty())
        };
        if let Some([handler]) = words("Command").as_deref() {
            described.handler = Some(handler.clone());
            by.clone_into(&mut described.by);
        }
        if let Some(entrypoint) = words("EntryPoint") {
            described.entrypoint = Some(entrypoint);
        }
        if let Some(directory) = config.get("WorkingDirectory").and_then(|it| self.text(it)) {
            described.working_dir = Some(directory.to_owned());
        }
    }

    /// A layer that the template makes of something in the folder.
    fn layer(&self, folder: &mut Folder, name: &str) -> Option<DraftLayer> {
        let (kind, resource) = self.resource(name)?;
        if !matches!(
            kind,
            "AWS::Serverless::LayerVersion" | "AWS::Lambda::LayerVersion"
        ) {
            return None;
        }
        let content = ["ContentUri", "Content"].iter();
        let content = content
            .filter_map(|key| resource.at(&["Properties", key]))
            .find_map(|value| self.text(value))?;
        let content = folder.inside(content)?;
        if has_ending(&content, "zip") {
            return folder.has_file(&content).then(|| zips::layer(&content));
        }
        if !folder.has_folder(&content) {
            return None;
        }
        let method = resource
            .text_at(&["Metadata", "BuildMethod"])
            .unwrap_or_default();
        let (built, to) = if method.starts_with("python") {
            (python::dependencies_in(folder, &content), "/opt/python/")
        } else if method.starts_with("nodejs") {
            (node::dependencies_in(folder, &content), "/opt/nodejs/")
        } else {
            (None, "/opt/")
        };
        let mut layer = built.unwrap_or_else(|| {
            let from = join(&content, "");
            let left_out = Vec::new();
            DraftLayer::new("", LayerSource::Folder { from, left_out })
        });
        name.clone_into(&mut layer.name);
        layer.to = Some(to);
        Some(layer)
    }
}
