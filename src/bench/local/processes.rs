//! The nodes, each a process of its own.
//!
//! Three things see to it that none is left behind: [`Processes::stop`] in the ordinary case; `kill_on_drop` where this
//! process fails; and, where this process is killed itself, the end of the pipe that each node has for its standard input.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

use super::folder::{Folder, NodePlan};
use super::{During, LocalError};
use crate::types::NodeId;

/// How long a node may take to stop before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// How much of a dead node's log is shown.
const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 16 << 10;
/// Environment variables that start with this configure a node, and these nodes are configured by their flags alone.
const VARIABLES: &str = "QUORATE_";
/// But what is logged may be set from outside.
const LOG_VARIABLE: &str = "QUORATE_LOG";

/// Every node's process. Dropping it kills them.
pub struct Processes {
    nodes: Vec<NodeProcess>,
}

struct NodeProcess {
    plan: NodePlan,
    child: Child,
    /// Held open for as long as the node is to run.
    _lifeline: Option<ChildStdin>,
    pid: u32,
    state: State,
}

/// What became of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Runs,
    /// The process that was started here has ended.
    Ended(ExitStatus),
    /// Someone started it again.
    Restarted {
        pid: u32,
    },
}

/// A node at the end.
#[derive(Clone, Debug)]
pub struct Stopped {
    pub id: NodeId,
    /// It did not stop when told to.
    pub killed: bool,
    /// It was not running when the end came: how its process had ended.
    pub ended_before: Option<ExitStatus>,
}

impl Processes {
    /// Starts every node and notes their pids in the folder.
    pub fn start(folder: &mut Folder) -> Result<Processes, LocalError> {
        let mut nodes = Vec::new();
        for (index, plan) in folder.nodes().to_vec().into_iter().enumerate() {
            folder.let_go_of_port(index);
            nodes.push(NodeProcess::start(plan)?);
        }
        let processes = Processes { nodes };
        folder.write_nodes(&processes.pids())?;
        Ok(processes)
    }

    /// Of the processes that run the nodes now, or ran them last, in the order of the nodes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes
            .iter()
            .map(|node| node.running().unwrap_or(node.pid))
            .collect()
    }

    /// What each node's process is doing, as of the last [`Processes::look`].
    pub fn states(&self) -> impl Iterator<Item = (NodeId, State)> {
        self.nodes.iter().map(|node| (node.plan.id, node.state))
    }

    /// Sees which processes have ended, and which nodes were started again. Returns whether any pid is another one.
    pub fn look(&mut self) -> bool {
        let before = self.pids();
        for node in &mut self.nodes {
            node.look();
        }
        before != self.pids()
    }

    /// Fails with the end of its log if a node has ended.
    pub fn fail_if_any_ended(&mut self) -> Result<(), LocalError> {
        for node in &mut self.nodes {
            if let Ok(Some(status)) = node.child.try_wait() {
                return Err(LocalError::Failed(format!(
                    "node {} stopped before the cluster was healthy ({status}). The end of its log {}:\n{}",
                    node.plan.id,
                    node.plan.log.display(),
                    tail(&node.plan.log)
                )));
            }
        }
        Ok(())
    }

    /// A port that a node needs and somebody else has, where that may be why the node has ended.
    pub fn taken_port(&mut self) -> Option<SocketAddr> {
        self.nodes.iter_mut().find_map(|node| {
            let runs = matches!(node.child.try_wait(), Ok(None));
            if runs { None } else { node.plan.taken_port() }
        })
    }

    /// Sends one node's process a signal. One that has ended gets none.
    pub fn signal(&mut self, id: NodeId, what: Signal) {
        for node in self.nodes.iter_mut().filter(|node| node.plan.id == id) {
            node.look();
            if let Some(pid) = node.running() {
                signal(pid, what);
            }
        }
    }

    /// Kills one node (SIGKILL) and waits for its end.
    pub async fn kill(&mut self, id: NodeId) {
        for node in self.nodes.iter_mut().filter(|node| node.plan.id == id) {
            // Also waits for the end, which cannot be refused.
            let _ = node.child.kill().await;
            node.look();
        }
    }

    /// Kills what still runs (SIGKILL), and waits for its end.
    pub async fn kill_all(&mut self) {
        for node in &mut self.nodes {
            let _ = node.child.kill().await;
            node.look();
        }
    }

    /// Starts one node again that has ended.
    pub fn restart(&mut self, id: NodeId) -> Result<(), LocalError> {
        for node in self.nodes.iter_mut().filter(|node| node.plan.id == id) {
            *node = NodeProcess::start(node.plan.clone())?;
        }
        Ok(())
    }

    pub fn where_to_look(&self) -> String {
        let logs = self.nodes.iter().map(|node| node.plan.log.display());
        let logs: Vec<_> = logs.map(|log| log.to_string()).collect();
        format!("see {}", logs.join(", "))
    }

    /// Tells every node to stop, those that were started again from outside as well, waits for it, and kills what does not.
    pub async fn stop(&mut self) -> Vec<Stopped> {
        self.look();
        for node in &self.nodes {
            if let Some(pid) = node.running() {
                signal(pid, Signal::TERM);
            }
        }
        let deadline = Instant::now() + STOP_WAIT;
        let mut stopped = Vec::new();
        for node in &mut self.nodes {
            let ended_before = match node.state {
                State::Ended(status) => Some(status),
                State::Runs | State::Restarted { .. } => None,
            };
            stopped.push(Stopped {
                id: node.plan.id,
                killed: node.wait_until(deadline).await,
                ended_before,
            });
        }
        stopped
    }
}

impl NodeProcess {
    fn start(plan: NodePlan) -> Result<NodeProcess, LocalError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&plan.log)
            .during(|| format!("cannot write the log {}", plan.log.display()))?;
        let (program, arguments) = plan
            .command
            .split_first()
            .ok_or_else(|| LocalError::Failed("a node without a command".to_owned()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(
                log.try_clone()
                    .during(|| format!("cannot write the log {}", plan.log.display()))?,
            )
            .stderr(log)
            // Ctrl-C is for this process, which stops the nodes in its own time.
            .process_group(0)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with(VARIABLES) && text != LOG_VARIABLE {
                command.env_remove(&name);
            }
        }
        let mut child = command
            .spawn()
            .during(|| format!("cannot start node {} with {program}", plan.id))?;
        let pid = child
            .id()
            .ok_or_else(|| LocalError::Failed(format!("node {} has ended already", plan.id)))?;
        Ok(NodeProcess {
            _lifeline: child.stdin.take(),
            child,
            pid,
            plan,
            state: State::Runs,
        })
    }

    fn look(&mut self) {
        let ended = match self.child.try_wait() {
            Ok(Some(status)) => status,
            // Not ended, or not known, which counts as running: then it will be told to stop.
            Ok(None) | Err(_) => return,
        };
        self.state = match lock_holder(&self.plan.data_dir) {
            Some(pid) if pid != self.pid => State::Restarted { pid },
            _ => State::Ended(ended),
        };
    }

    /// The process that runs this node now.
    fn running(&self) -> Option<u32> {
        match self.state {
            State::Runs => Some(self.pid),
            State::Restarted { pid } => Some(pid),
            State::Ended(_) => None,
        }
    }

    /// Waits for the end of the node and kills it if it does not come. Returns whether that was needed.
    async fn wait_until(&mut self, deadline: Instant) -> bool {
        match self.state {
            State::Ended(_) => false,
            State::Runs => {
                let ended = tokio::time::timeout_at(deadline, self.child.wait()).await;
                if ended.is_ok() {
                    return false;
                }
                // Also waits for the end, which cannot be refused.
                let _ = self.child.kill().await;
                true
            }
            // Not our child, so its end cannot be waited for; its lock goes with it.
            State::Restarted { pid } => {
                let gone = async {
                    while lock_holder(&self.plan.data_dir) == Some(pid) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                if tokio::time::timeout_at(deadline, gone).await.is_ok() {
                    return false;
                }
                signal(pid, Signal::KILL);
                true
            }
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Fails only for a process that has ended.
        let _ = kill_process(pid, signal);
    }
}

/// The process that holds a data directory, if one does.
pub(super) fn lock_holder(data_dir: &Path) -> Option<u32> {
    let mut lock = File::open(data_dir.join("lock")).ok()?;
    match lock.try_lock_shared() {
        Err(std::fs::TryLockError::WouldBlock) => {}
        Ok(()) | Err(_) => return None,
    }
    let mut text = String::new();
    (&mut lock).take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The last lines of a log, indented.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => {
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(TAIL_LINES);
            lines[from..]
                .iter()
                .map(|line| format!("  | {line}"))
                .collect::<Vec<_>>()
                .join("\n")
        }
        Err(error) => format!("  (cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end_of_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let lines: Vec<_> = (0..5000).map(|n| format!("line {n}")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let tail = tail(&path);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("  | line 4999"), "{tail}");
    }

    #[test]
    fn the_holder_of_a_lock_is_known_while_it_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lock_holder(dir.path()), None);
        let path = dir.path().join("lock");
        std::fs::write(&path, "4711\n").unwrap();
        assert_eq!(lock_holder(dir.path()), None);
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        assert_eq!(lock_holder(dir.path()), Some(4711));
        drop(held);
        assert_eq!(lock_holder(dir.path()), None);
    }
}
