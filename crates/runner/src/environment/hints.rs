//! Why something fails here as it does on Lambda, from what a function says of it.

use bytes::Bytes;
use memchr::memmem;

/// What a line has in it, and what it means.
struct Trap {
    /// All of them are in the line.
    signs: &'static [&'static str],
    hint: &'static str,
}

/// Checked in order; a line means the first that fits.
const TRAPS: [Trap; 13] = [
    Trap {
        signs: &["[Errno 38] Function not implemented"],
        hint: SHARED_MEMORY,
    },
    // With a newer C library the error itself is just a file that is not there.
    Trap {
        signs: &["_multiprocessing.SemLock("],
        hint: SHARED_MEMORY,
    },
    Trap {
        signs: &["No such file or directory", "/dev/shm"],
        hint: SHARED_MEMORY,
    },
    Trap {
        signs: &["No such file or directory", "/home/sbx_user1051"],
        hint: HOME,
    },
    Trap {
        signs: &["Permission denied", "/home/sbx_user1051"],
        hint: HOME,
    },
    Trap {
        signs: &["Read-only file system", "/home"],
        hint: HOME,
    },
    Trap {
        signs: &["ENOENT", "/home/sbx_user1051"],
        hint: HOME,
    },
    Trap {
        signs: &["Read-only file system"],
        hint: READ_ONLY,
    },
    Trap {
        signs: &["EROFS"],
        hint: READ_ONLY,
    },
    Trap {
        signs: &["ermission denied", "/var/task"],
        hint: OTHERS,
    },
    Trap {
        signs: &["EACCES", "/var/task"],
        hint: OTHERS,
    },
    Trap {
        signs: &["version `GLIBC_", "not found"],
        hint: NEWER,
    },
    Trap {
        signs: &["entrypoint requires the handler name"],
        hint: HANDLER,
    },
];

const SHARED_MEMORY: &str = "Lambda has no /dev/shm, so locks and queues of multiprocessing fail: use \
    multiprocessing.Pipe and Process, or --shm-size to have it here";
const HOME: &str = "HOME is a directory that does not exist, as on Lambda: set HOME=/tmp or the cache directory of \
     the library";
const READ_ONLY: &str =
    "only /tmp can be written to, as on Lambda: write there, or use --writable to allow it here";
const OTHERS: &str = "the function runs as a user that owns nothing: files of the image must be \
    readable, and directories enterable, by everyone";

const NEWER: &str = "a program or library was built for a newer C library than that of the base \
    image: build it on the base, or on something older";
const HANDLER: &str = "this base image takes the handler as its one argument: set CMD to it, as \
    `app.handler`";

/// What a line of a failed invocation means, if it is one of Lambda's known traps.
pub(super) fn hint(line: &Bytes) -> Option<&'static str> {
    let has = |sign: &&str| memmem::find(line, sign.as_bytes()).is_some();
    TRAPS
        .iter()
        .find(|trap| trap.signs.iter().all(has))
        .map(|trap| trap.hint)
}

/// What a program that cannot be started means.
pub(super) fn of_start(words: &str) -> Option<&'static str> {
    let known = [
        (
            "exec format error",
            "the program is for another processor than this machine's, or a script without `#!` in \
             its first line",
        ),
        (
            "no such file or directory",
            "the image has no such file, or not the interpreter or loader that it names",
        ),
        (
            "permission denied",
            "the file must be executable, and its directories enterable, by everyone",
        ),
    ];
    known
        .into_iter()
        .find(|(sign, _)| words.contains(sign))
        .map(|(_, hint)| hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_traps_are_explained_and_others_are_not() {
        for (line, expected) in [
            (
                "OSError: [Errno 38] Function not implemented",
                Some(SHARED_MEMORY),
            ),
            (
                "    sl = self._semlock = _multiprocessing.SemLock(",
                Some(SHARED_MEMORY),
            ),
            (
                "OSError: [Errno 30] Read-only file system: '/home'",
                Some(HOME),
            ),
            (
                "OSError: [Errno 30] Read-only file system: '/var/task/x'",
                Some(READ_ONLY),
            ),
            (
                "Error: EROFS: read-only file system, open '/var/task/x'",
                Some(READ_ONLY),
            ),
            (
                "OSError: [Errno 30] Read-only file system: '/home/sbx_user1051'",
                Some(HOME),
            ),
            (
                "FileNotFoundError: [Errno 2] No such file or directory: '/home/sbx_user1051/.cache'",
                Some(HOME),
            ),
            (
                "PermissionError: [Errno 13] Permission denied: '/var/task/secret.json'",
                Some(OTHERS),
            ),
            (
                "Error: EACCES: permission denied, open '/var/task/secret.json'",
                Some(OTHERS),
            ),
            (
                "/lib64/libc.so.6: version `GLIBC_2.34' not found (required by ./bootstrap)",
                Some(NEWER),
            ),
            (
                "entrypoint requires the handler name to be the first argument",
                Some(HANDLER),
            ),
            (
                "PermissionError: [Errno 13] Permission denied: '/root'",
                None,
            ),
            ("KeyError: 'x'", None),
        ] {
            assert_eq!(hint(&Bytes::from(line)), expected, "{line}");
        }
    }

    #[test]
    fn a_program_that_does_not_start_is_explained() {
        for (words, fits) in [
            ("fork/exec /x: exec format error", true),
            ("fork/exec /x: no such file or directory", true),
            ("fork/exec /x: permission denied", true),
            ("fork/exec /x: argument list too long", false),
        ] {
            assert_eq!(of_start(words).is_some(), fits, "{words}");
        }
    }
}
