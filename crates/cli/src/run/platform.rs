//! Which images this machine can run.

use std::path::Path;

use anyhow::Result;
use tierce_oci::Platform;

use crate::diagnostic::Hinted as _;

/// Where the kernel lists what runs programs for other processors
/// (docs.kernel.org, admin-guide/binfmt-misc).
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";

/// The platform of this machine.
pub(crate) fn native() -> Platform {
    Platform::linux(std::env::consts::ARCH)
}

/// Refuses an image that cannot run here.
pub(crate) fn check(platform: &Platform) -> Result<()> {
    let native = native();
    if platform.os == native.os && platform.architecture == native.architecture {
        return Ok(());
    }
    let machine = match platform.architecture.as_str() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    if platform.os == "linux" && is_emulated(Path::new(HANDLERS), machine) {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "the image is for {platform}, and this machine is {native}"
    ))
    .hint(format!(
        "an index may have one for this machine: `--platform {native}`; a project is built for it \
         with `platforms = [\"{native}\"]`; or let QEMU run it: `qemu-user-static` registers itself \
         with the kernel"
    ))
}

/// Whether the kernel hands programs for `machine` to QEMU, also in a root where QEMU is not: with
/// `F` it was opened when it was registered.
fn is_emulated(handlers: &Path, machine: &str) -> bool {
    let Ok(entry) = std::fs::read_to_string(handlers.join(format!("qemu-{machine}"))) else {
        return false;
    };
    let mut lines = entry.lines();
    lines.next() == Some("enabled")
        && lines.any(|line| {
            line.strip_prefix("flags:")
                .is_some_and(|it| it.contains('F'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_this_machine_run() {
        check(&native()).unwrap();
        let error = check(&Platform::linux("s390x")).unwrap_err();
        assert!(error.to_string().contains("linux/s390x"), "{error}");
        check(&Platform::stated("windows", &native().architecture, None)).unwrap_err();
    }

    #[test]
    fn an_emulator_counts_when_it_reaches_into_the_image() {
        let handlers = tempfile::tempdir().unwrap();
        for (text, expected) in [
            (
                "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: OCF\noffset 0\n",
                true,
            ),
            (
                "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: OC\noffset 0\n",
                false,
            ),
            (
                "disabled\ninterpreter /usr/bin/qemu-aarch64\nflags: F\n",
                false,
            ),
            ("", false),
        ] {
            std::fs::write(handlers.path().join("qemu-aarch64"), text).unwrap();
            assert_eq!(is_emulated(handlers.path(), "aarch64"), expected, "{text}");
        }
        assert!(!is_emulated(handlers.path(), "riscv64"));
    }
}
