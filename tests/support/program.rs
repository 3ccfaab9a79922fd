//! The built program as a stranger runs it, and what it must not leave behind.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{LOOK_AGAIN, PATIENCE};

/// How long a program whose test has failed may take to clear up before it is killed.
const CLEARS_UP_WITHIN: Duration = Duration::from_secs(20);

/// The program, with nothing on its standard input and pipes for what it says.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command
        .args(arguments)
        // What someone may have in the environment, and what would lead the nodes astray if they heard of it.
        .env("QUORATE_CERTS_DIR", "/nonexistent/certs")
        .env("QUORATE_BOOTSTRAP_SERVER", "127.0.0.1:1")
        .env("QUORATE_NODE_ID", "77")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// `quorate bench`, whose clusters may take a busy machine's time to come.
pub fn bench(arguments: &[&str]) -> Command {
    let mut command = program(&["bench"]);
    command.args(arguments).env("QUORATE_TIMEOUT", "60s");
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn expect_exit(output: &Output, code: i32) {
    let shown = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{shown}");
}

/// What was printed with `--output json`.
pub fn objects(output: &Output) -> Vec<Value> {
    let lines = text(&output.stdout);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A program at work. Where a test fails, it is told to end, so that it clears up, and killed where it does not.
pub struct Running(Option<Child>);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        Running(Some(command.spawn().unwrap()))
    }

    pub fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.0.as_ref().unwrap())
    }

    /// Waits until something is there while the program runs.
    pub fn until(&mut self, what: &str, mut is_there: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_there() {
            assert!(Instant::now() < deadline, "{what}: not there");
            if let Some(ended) = self.child().try_wait().unwrap() {
                let output = self.0.take().unwrap().wait_with_output().unwrap();
                panic!(
                    "{what}: it ended before ({ended}): {}",
                    text(&output.stderr)
                );
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        kill_process(self.pid(), Signal::INT).unwrap();
    }

    /// Reads what it says to its end.
    pub fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child().wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(child) = &mut self.0 else { return };
        // One that was waited for is no process any more, and its number may be somebody else's.
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill_process(Pid::from_child(child), Signal::INT);
        let deadline = Instant::now() + CLEARS_UP_WITHIN;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// The processes of others than this one whose command line names `dir`, and which are not the program itself that was told to
/// work there (`of`).
pub fn processes_of(dir: &Path, of: Option<Pid>) -> Vec<String> {
    let name = dir.display().to_string();
    let own = [Some(rustix::process::getpid()), of].map(|pid| pid.map(Pid::as_raw_nonzero));
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Some(id) = entry.file_name().to_str().and_then(|id| id.parse().ok()) else {
            continue;
        };
        if own.contains(&Some(id)) {
            continue;
        }
        // One that has ended meanwhile has no command line any more.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = text(&line).replace('\0', " ");
        if line.contains(&name) {
            found.push(format!("{id}: {line}"));
        }
    }
    found
}

/// What is in a folder, which should be nothing; nothing either where there is no folder.
pub fn left_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.collect()
}
