//! For which machines and Pythons a wheel was made (PEP 425, PEP 600).

/// The `Tag` lines of a `*.dist-info/WHEEL`.
pub(crate) fn tags(file: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(file);
    text.lines()
        .filter_map(|line| line.strip_prefix("Tag:"))
        .map(|tag| tag.trim().to_owned())
        .take(64)
        .collect()
}

/// Whether a wheel with this platform tag runs on Linux on `architecture`, in the image
/// specification's words.
pub(crate) fn fits(platform: &str, architecture: &str) -> bool {
    if platform == "any" {
        return true;
    }
    let machine = match architecture {
        "amd64" => "_x86_64",
        "arm64" => "_aarch64",
        _ => return true,
    };
    let is_linux = ["linux_", "manylinux", "musllinux"]
        .iter()
        .any(|system| platform.starts_with(system));
    is_linux && platform.ends_with(machine)
}

/// The platform of a tag: its last part.
pub(crate) fn platform_of(tag: &str) -> &str {
    tag.rsplit_once('-').map_or(tag, |(_, platform)| platform)
}

/// The Python that a tag is bound to, as `(3, 12)`; `None` when it is good for later ones too.
pub(crate) fn python_of(tag: &str) -> Option<(u32, u32)> {
    let mut parts = tag.split('-');
    let (python, abi) = (parts.next()?, parts.next()?);
    if abi == "none" || abi == "abi3" {
        return None;
    }
    let digits = python.strip_prefix("cp")?;
    let (major, minor) = digits.split_at_checked(1)?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_and_compared() {
        let file = b"Wheel-Version: 1.0\r\nTag: cp312-cp312-manylinux_2_17_x86_64\r\n\
            Tag: cp312-cp312-manylinux2014_x86_64\r\n";
        let tags = tags(file);
        assert_eq!(tags.len(), 2);
        let platform = platform_of(&tags[0]);
        assert!(fits(platform, "amd64") && !fits(platform, "arm64"));
        assert!(fits("any", "arm64") && fits("linux_aarch64", "arm64"));
        assert!(!fits("macosx_11_0_arm64", "arm64") && !fits("win_amd64", "amd64"));
        assert_eq!(python_of(&tags[0]), Some((3, 12)));
        assert_eq!(python_of("cp37-abi3-manylinux_2_17_x86_64"), None);
        assert_eq!(python_of("py3-none-any"), None);
    }
}
