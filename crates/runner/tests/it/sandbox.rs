//! Boxes of every kind, with programs of this machine in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use tierce_runner::rootfs::Root;
use tierce_runner::sandbox::{
    Event, Exit, Log, Network, Order, Process, ProcessNumber, Sandbox, Settings, Volume,
    namespaces, plain,
};

/// Longer than anything here takes on a busy machine: only a fault waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

fn settings(directories: Vec<PathBuf>) -> Settings {
    Settings {
        root: Arc::new(Root { directories }),
        writable_root: false,
        tmp_size: 16 << 20,
        shared_memory: None,
        network: Network::Host,
        volumes: Vec::new(),
        open_files: 1024,
        processes: 1024,
        memory: None,
        user: 993,
        group: 990,
        scratch: std::env::temp_dir(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_sandbox-stage")),
    }
}

fn shell(script: &str) -> Process {
    Process {
        program: "/bin/sh".to_owned(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        environment: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        directory: "/".to_owned(),
        log: Log::Function,
    }
}

async fn next(events: &mut UnboundedReceiver<Event>) -> Event {
    tokio::time::timeout(PATIENCE, events.recv())
        .await
        .expect("the sandbox says something")
        .expect("the sandbox is there")
}

/// Starts a process and waits for its end: how it was, and what it wrote until then.
async fn run(sandbox: &mut Sandbox, process: Process) -> (Exit, String) {
    let number = ProcessNumber(1);
    sandbox.orders.send(Order::Start(number, process)).unwrap();
    let mut output = Vec::new();
    let exit = loop {
        tokio::select! {
            biased;
            Some(written) = sandbox.written.recv() => output.extend(written.bytes),
            event = next(&mut sandbox.events) => match event {
                Event::Started(_) => {}
                Event::Exited(_, exit) => break exit,
                event => panic!("{event:?}"),
            },
        }
    };
    while let Ok(written) = sandbox.written.try_recv() {
        output.extend(written.bytes);
    }
    (exit, String::from_utf8(output).unwrap())
}

/// Ends a box, and waits until it is gone.
async fn end(mut sandbox: Sandbox) {
    sandbox.orders.send(Order::End).unwrap();
    loop {
        if let Event::Ended(reason) = next(&mut sandbox.events).await {
            assert_eq!(reason, None);
            break;
        }
    }
}

mod plain_processes {
    use super::*;

    fn plain_box() -> Sandbox {
        plain::start(&settings(vec![PathBuf::from("/")])).unwrap()
    }

    #[tokio::test]
    async fn a_process_runs_and_is_heard_before_it_ends() {
        let mut sandbox = plain_box();
        let said = run(&mut sandbox, shell("echo out; echo err >&2; exit 3")).await;
        assert_eq!(said, (Exit::Code(3), "out\nerr\n".to_owned()));
        let killed = run(&mut sandbox, shell("kill -9 $$")).await;
        assert_eq!(killed, (Exit::Signal(9), String::new()));
        end(sandbox).await;
    }

    #[tokio::test]
    async fn what_is_not_started_is_told_in_the_words_of_go() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("text"), "hello").unwrap();
        let mut sandbox = plain::start(&settings(vec![directory.path().to_owned()])).unwrap();
        let at = |program: &str, directory: &str| Process {
            program: program.to_owned(),
            directory: directory.to_owned(),
            ..shell("true")
        };
        for (process, words) in [
            (
                at("/absent", "/"),
                "fork/exec /absent: no such file or directory",
            ),
            (
                at("absent", "/"),
                "fork/exec absent: no such file or directory",
            ),
            (at("/text", "/"), "fork/exec /text: permission denied"),
            (
                at("/text", "/nowhere"),
                "chdir /nowhere: no such file or directory",
            ),
            (at("/text", "/text"), "chdir /text: not a directory"),
        ] {
            let order = Order::Start(ProcessNumber(7), process);
            sandbox.orders.send(order).unwrap();
            match next(&mut sandbox.events).await {
                Event::NotStarted(ProcessNumber(7), why) => assert_eq!(why.to_string(), words),
                event => panic!("{words}: {event:?}"),
            }
        }
        end(sandbox).await;
    }

    #[tokio::test]
    async fn kill_all_leaves_no_orphan() {
        let mut sandbox = plain_box();
        // Its own session, so no process group of ours.
        let script = "setsid sh -c 'echo $$; exec sleep 1000' & exec sleep 1000";
        let order = Order::Start(ProcessNumber(1), shell(script));
        sandbox.orders.send(order).unwrap();
        assert!(matches!(next(&mut sandbox.events).await, Event::Started(_)));
        let orphan = sandbox.written.recv().await.unwrap().bytes;
        let orphan = String::from_utf8(orphan.to_vec()).unwrap();
        let orphan = Path::new("/proc").join(orphan.trim());
        assert!(orphan.exists());
        sandbox.orders.send(Order::KillAll).unwrap();
        assert!(matches!(
            next(&mut sandbox.events).await,
            Event::Exited(ProcessNumber(1), Exit::Signal(9))
        ));
        assert!(matches!(next(&mut sandbox.events).await, Event::Empty));
        assert!(!orphan.exists());
        end(sandbox).await;
    }
}

mod namespaces_of_a_user {
    use super::*;

    #[tokio::test]
    async fn a_shell_runs_in_a_root_of_two_directories() {
        let root = two_directories();
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        let script = "id -u; id -g; ls -m /; echo x > /x; echo x > /tmp/x && cat /tmp/x";
        let (exit, said) = run(&mut sandbox, shell(script)).await;
        assert_eq!(exit, Exit::Code(0));
        assert_eq!(
            said,
            "993\n990\nbin, dev, etc, lib, lib64, proc, tmp, usr, var\n\
             /bin/sh: 1: cannot create /x: Read-only file system\nx\n"
        );
        end(sandbox).await;
    }
}

/// A root of two directories, with the programs of this machine as a volume.
struct TwoDirectories {
    directory: tempfile::TempDir,
}

fn two_directories() -> TwoDirectories {
    let directory = tempfile::tempdir().unwrap();
    let upper = directory.path().join("upper");
    let lower = directory.path().join("lower");
    std::fs::create_dir_all(upper.join("var/task")).unwrap();
    std::fs::create_dir_all(lower.join("usr")).unwrap();
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), lower.join(name)).unwrap();
    }
    TwoDirectories { directory }
}

impl TwoDirectories {
    fn settings(&self) -> Settings {
        let layers = ["upper", "lower"].map(|name| self.directory.path().join(name));
        Settings {
            volumes: vec![Volume {
                source: PathBuf::from("/usr"),
                target: PathBuf::from("/usr"),
                writable: false,
            }],
            ..settings(layers.into())
        }
    }
}
