//! Which of AWS's bases a function gets.

use tierce_lambda::{AWS_BASES, AwsBase};

use super::{Folder, one_line};

/// Versions that AWS has only previews of, under tags such as `3.15-preview`: nobody is to begin with
/// one without having asked for it (aws/aws-lambda-base-images, 2026).
const PREVIEWS: [(&str, &str); 2] = [("python", "3.15"), ("nodejs", "26")];

/// The bases that a function may begin with.
fn finished() -> impl Iterator<Item = &'static AwsBase> {
    AWS_BASES
        .iter()
        .filter(|base| !PREVIEWS.contains(&(base.language, base.version)))
}

/// The versions of a language that AWS has bases for, the newest first.
fn versions(language: &str) -> Vec<&'static str> {
    let mut versions: Vec<&'static str> = finished()
        .filter(|base| base.language == language)
        .map(|base| base.version)
        .collect();
    versions.sort_by_key(|version| std::cmp::Reverse(numbers(version)));
    versions
}

/// The numbers in a version; `al2023` is newer than `al2`, and `latest` moves.
fn numbers(version: &str) -> Vec<u32> {
    let parts = version.trim_start_matches("al").split('.');
    parts.map(|part| part.parse().unwrap_or(0)).collect()
}

/// The name of a base.
pub(super) fn name(language: &str, version: &str) -> String {
    format!("public.ecr.aws/lambda/{language}:{version}")
}

/// The newest version that fits, and why it is that one.
pub(super) fn newest(
    language: &str,
    fits: impl Fn(&str) -> bool,
) -> Option<(&'static str, String)> {
    let version = versions(language).into_iter().find(|it| fits(it))?;
    Some((version, format!("the newest {}", super::name_of(language))))
}

/// The version that fits what a project wants, and why it is that one; the newest of all where it wants
/// nothing, or nothing fits. That is said, with `whose` wish it was.
pub(super) fn fitting_or_newest(
    language: &str,
    wanted: Option<&str>,
    fitting: Option<(&'static str, String)>,
    whose: &str,
    folder: &mut Folder,
) -> (&'static str, String) {
    match (wanted.map(one_line), fitting) {
        (Some(wanted), Some((version, reason))) => {
            return (version, format!("{reason} that fits `{wanted}`"));
        }
        (Some(wanted), None) => folder.remark(format!(
            "no base of AWS's is known to fit `{wanted}`, {whose}"
        )),
        (None, _) => {}
    }
    newest(language, |_| true).unwrap_or_default()
}

/// The base of exactly that version, if AWS has it.
pub(super) fn find(language: &str, version: &str) -> Option<(&'static str, &'static str)> {
    finished()
        .find(|base| base.language == language && base.version == version)
        .map(|base| (base.language, base.version))
}

/// Language and version of a runtime as Lambda names it: `python3.12`, `nodejs20.x`,
/// `provided.al2023`.
pub(super) fn of_runtime(runtime: &str) -> Option<(String, String)> {
    if runtime == "go1.x" {
        // Its successor, as AWS advises.
        return Some(("provided".to_owned(), "al2023".to_owned()));
    }
    for language in ["python", "nodejs", "java", "dotnet", "ruby", "provided"] {
        if let Some(version) = runtime.strip_prefix(language) {
            let version = version.trim_start_matches('.').trim_end_matches(".x");
            return Some((language.to_owned(), version.to_owned()));
        }
    }
    None
}

/// Lambda's name of an architecture, in whatever spelling.
pub(super) fn architecture(text: &str) -> Option<&'static str> {
    match text {
        "arm64" | "aarch64" | "linux/arm64" => Some("arm64"),
        "x86_64" | "amd64" | "linux/amd64" => Some("x86_64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_numbers() {
        let python = versions("python");
        let place = |version| python.iter().position(|it| *it == version).unwrap();
        assert!(place("3.12") < place("3.9"), "{python:?}");
        assert_eq!(newest("provided", |_| true).unwrap().0, "al2023");
        assert!(newest("cobol", |_| true).is_none());
        for (language, preview) in PREVIEWS {
            assert!(!versions(language).contains(&preview), "{preview}");
        }
    }

    #[test]
    fn runtimes_are_read_as_lambda_writes_them() {
        for (runtime, language, version) in [
            ("python3.12", "python", "3.12"),
            ("nodejs20.x", "nodejs", "20"),
            ("java8.al2", "java", "8.al2"),
            ("dotnet8", "dotnet", "8"),
            ("ruby3.3", "ruby", "3.3"),
            ("provided.al2023", "provided", "al2023"),
            ("go1.x", "provided", "al2023"),
        ] {
            let found = of_runtime(runtime).unwrap();
            assert_eq!((&*found.0, &*found.1), (language, version));
            assert!(find(language, version).is_some(), "{runtime}");
        }
        assert!(of_runtime("cobol1").is_none());
    }
}
