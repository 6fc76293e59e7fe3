//! Settings of the user and of the machine, in the files where tools look for them.
//!
//! They steer what is found, so that they belong to the key of a tree, and they hold credentials,
//! which must not be seen.

use std::fs;
use std::path::{Path, PathBuf};

use super::tool::find;
use crate::environment::Variables;

/// The texts of pip's files.
///
/// <https://pip.pypa.io/en/stable/topics/configuration/#location>
pub(crate) fn of_pip(variables: &Variables) -> Vec<String> {
    let mut places = vec![
        PathBuf::from("/etc/pip.conf"),
        PathBuf::from("/etc/xdg/pip/pip.conf"),
    ];
    places.extend(in_home(variables, ".pip/pip.conf"));
    places.extend(in_configuration(variables, "pip/pip.conf"));
    places.extend(path(variables, "VIRTUAL_ENV").map(|place| place.join("pip.conf")));
    // Of a virtual environment that is on PATH alone.
    let python = find("python3", variables);
    places.extend(python.and_then(|python| Some(python.parent()?.parent()?.join("pip.conf"))));
    places.extend(path(variables, "PIP_CONFIG_FILE"));
    read_all(places)
}

/// The texts of uv's files, with those of the project around `directory`.
///
/// <https://docs.astral.sh/uv/concepts/configuration-files/>
pub(crate) fn of_uv(variables: &Variables, directory: &Path) -> Vec<String> {
    if let Some(file) = path(variables, "UV_CONFIG_FILE") {
        return read_all([file]);
    }
    let mut places = vec![
        PathBuf::from("/etc/uv/uv.toml"),
        PathBuf::from("/etc/xdg/uv/uv.toml"),
    ];
    places.extend(in_configuration(variables, "uv/uv.toml"));
    let project = of_project_of_uv(directory);
    project.into_iter().chain(read_all(places)).collect()
}

/// The text of the nearest file with settings of uv, from `directory` on upwards.
pub(crate) fn of_project_of_uv(directory: &Path) -> Option<String> {
    directory.ancestors().find_map(|folder| {
        let in_project_file = || {
            let text = read(&folder.join("pyproject.toml"))?;
            Some(text).filter(|text| text.contains("tool.uv"))
        };
        read(&folder.join("uv.toml")).or_else(in_project_file)
    })
}

/// The texts of the files of npm, pnpm and yarn.
///
/// <https://docs.npmjs.com/cli/configuring-npm/npmrc>
pub(crate) fn of_node(variables: &Variables) -> Vec<String> {
    let mut places = Vec::new();
    for (file, usual) in [
        ("userconfig", in_home(variables, ".npmrc")),
        ("globalconfig", global_of_npm(variables)),
    ] {
        let name = format!("npm_config_{file}");
        let named = path(variables, &name);
        let named = named.or_else(|| path(variables, &name.to_ascii_uppercase()));
        places.extend(named.or(usual));
    }
    places.push(PathBuf::from("/etc/npmrc"));
    for name in ["pnpm/rc", "pnpm/auth.ini", "pnpm/config.yaml"] {
        places.extend(in_configuration(variables, name));
    }
    places.extend(in_home(variables, ".yarnrc"));
    read_all(places)
}

/// The folder that Node is in has `etc` beside it.
fn global_of_npm(variables: &Variables) -> Option<PathBuf> {
    let node = find("node", variables)?.canonicalize().ok()?;
    Some(node.parent()?.parent()?.join("etc/npmrc"))
}

fn in_home(variables: &Variables, name: &str) -> Option<PathBuf> {
    Some(path(variables, "HOME")?.join(name))
}

fn in_configuration(variables: &Variables, name: &str) -> Option<PathBuf> {
    match path(variables, "XDG_CONFIG_HOME") {
        Some(folder) => Some(folder.join(name)),
        None => in_home(variables, &format!(".config/{name}")),
    }
}

fn path(variables: &Variables, name: &str) -> Option<PathBuf> {
    variables.get(name).map(PathBuf::from)
}

/// Where one of them cannot be read, no tool can either.
fn read_all(places: impl IntoIterator<Item = PathBuf>) -> Vec<String> {
    let texts = places.into_iter().filter_map(|place| read(&place));
    texts.collect()
}

pub(super) fn read(place: &Path) -> Option<String> {
    // A pipe would be waited for.
    if !place.is_file() {
        return None;
    }
    let bytes = fs::read(place).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_where_the_tools_look() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        write("home/.config/pip/pip.conf", "pip of the user");
        write("home/.config/uv/uv.toml", "uv of the user");
        write("home/.npmrc", "npm of the user");
        write("other/.npmrc", "npm elsewhere");
        write("other/uv.toml", "uv elsewhere");
        write("work/pyproject.toml", "[tool.uv]\n");
        write("work/app/pyproject.toml", "[project]\n");
        let variables = Variables::of([("HOME", &at("home"))]);
        let has = |texts: &[String], text: &str| texts.iter().any(|found| found == text);
        assert!(has(&of_pip(&variables), "pip of the user"));
        assert!(has(&of_node(&variables), "npm of the user"));
        let uv = of_uv(&variables, &folder.path().join("work/app"));
        assert!(
            has(&uv, "uv of the user") && has(&uv, "[tool.uv]\n"),
            "{uv:?}"
        );
        let variables = Variables::of([
            ("HOME", &at("home")),
            ("NPM_CONFIG_USERCONFIG", &at("other/.npmrc")),
            ("UV_CONFIG_FILE", &at("other/uv.toml")),
        ]);
        assert!(!has(&of_node(&variables), "npm of the user"));
        assert!(has(&of_node(&variables), "npm elsewhere"));
        assert_eq!(of_uv(&variables, folder.path()), ["uv elsewhere"]);
    }
}
