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

/// Whether a wheel with this tag runs on Linux on `architecture`, in the image specification's words.
pub(crate) fn fits(tag: &str, architecture: &str) -> bool {
    let machine = match architecture {
        "amd64" => "_x86_64",
        "arm64" => "_aarch64",
        _ => return true,
    };
    let platforms = tag.rsplit_once('-').map_or(tag, |(_, platforms)| platforms);
    // A tag may be a set of several, as in the names of files.
    platforms.split('.').any(|platform| {
        let is_linux = ["linux_", "manylinux", "musllinux"]
            .iter()
            .any(|system| platform.starts_with(system));
        platform == "any" || (is_linux && platform.ends_with(machine))
    })
}

/// Whether the compiled modules of a wheel with this tag are found by `python`, such as `(3, 12)`.
pub(crate) fn fits_python(tag: &str, python: (u32, u32)) -> bool {
    let mut parts = tag.split('-');
    let (Some(pythons), Some(abis)) = (parts.next(), parts.next()) else {
        return true;
    };
    let number = |name: &str| {
        let (major, minor) = name.strip_prefix("cp")?.split_at_checked(1)?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    abis.split('.').any(|abi| {
        pythons.split('.').any(|name| match (number(name), abi) {
            (None, _) | (_, "none") => true,
            // The stable one is for that version and all later ones.
            (Some(oldest), "abi3") => oldest <= python,
            (Some(only), _) => only == python,
        })
    })
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
        assert!(fits(&tags[0], "amd64") && !fits(&tags[0], "arm64"));
        for (tag, architecture, expected) in [
            ("py3-none-any", "arm64", true),
            ("py2.py3-none-linux_aarch64", "arm64", true),
            ("cp312-cp312-macosx_11_0_arm64", "arm64", false),
            ("cp312-cp312-win_amd64", "amd64", false),
            (
                "cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64",
                "amd64",
                true,
            ),
            (
                "py3-none-macosx_10_9_x86_64.manylinux1_x86_64.win32",
                "amd64",
                true,
            ),
            (
                "py3-none-macosx_10_9_x86_64.manylinux1_x86_64.win32",
                "arm64",
                false,
            ),
        ] {
            assert_eq!(fits(tag, architecture), expected, "{tag} on {architecture}");
        }
        for (tag, expected) in [
            ("cp312-cp312-manylinux_2_17_x86_64", true),
            ("cp311-cp311-manylinux_2_17_x86_64", false),
            ("cp37-abi3-manylinux_2_17_x86_64", true),
            ("cp313-abi3-manylinux_2_17_x86_64", false),
            ("cp311.cp312-abi3.none-linux_x86_64", true),
            ("cp310.cp312-cp312-linux_x86_64", true),
            ("py3-none-any", true),
            ("damaged", true),
        ] {
            assert_eq!(fits_python(tag, (3, 12)), expected, "{tag}");
        }
    }
}
