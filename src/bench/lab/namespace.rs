//! One host of a lab: a network namespace with one device, made and removed through iproute2.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::LabError;

/// iproute2's command, and where it keeps namespaces by name.
const IP: &str = "ip";
const NAMED: &str = "/run/netns";
/// What namespaces of labs begin with. The process that made one stands behind it, so that another one can tell whether anybody
/// still uses it.
const PREFIX: &str = "quorate-lab-";
/// The device of a host.
const DEVICE: &str = "lab0";
/// All hosts.
const NETWORK: &str = "10.77.0.0/16";
const MTU: u16 = 1500;
/// Packets that wait in the device until the switch takes them. It takes them at once unless the machine is busy.
const DEVICE_QUEUE: u32 = 10_000;
/// The most that a socket's buffer grows to by itself: 1 Gbit/s for half a second. The kernel's own limits would be the limit of
/// what is measured at long round trips.
const SOCKET_BUFFER: usize = 64 << 20;
/// How long processes of a lab may take to end when told to, and then to be gone when killed.
const END_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A namespace that this process has made. Dropping it ends the processes in it, and removes it.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes host `number` of this process's lab `lab`, with no device yet.
    pub(super) fn create(lab: u64, number: u16) -> Result<Namespace, LabError> {
        let name = format!("{PREFIX}{}-{lab}-{number}", std::process::id());
        ip(["netns", "add", &name])?;
        Ok(Namespace { name })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Gives the host its address and a device; returns the device's other end. The device is gone when that is closed.
    pub(super) fn open_device(&self, address: Ipv4Addr) -> Result<SyncDevice, LabError> {
        let opened = self.run(|| {
            let device = DeviceBuilder::new()
                .name(DEVICE)
                .enable(false)
                .build_sync()?;
            device.set_nonblocking(true)?;
            Ok(device)
        });
        let device = opened.map_err(|source| LabError::Io {
            what: format!("cannot open a TUN device in the namespace {}", self.name),
            source,
        })?;
        let (mtu, queue) = (MTU.to_string(), DEVICE_QUEUE.to_string());
        let host = format!("{address}/16");
        let name = self.name.as_str();
        ip(["-n", name, "link", "set", "lo", "up"])?;
        ip(["-n", name, "addr", "add", &host, "dev", DEVICE])?;
        ip([
            "-n",
            name,
            "link",
            "set",
            DEVICE,
            "mtu",
            &mtu,
            "txqueuelen",
            &queue,
            "up",
        ])?;
        Ok(device)
    }

    /// Sets what the host's kernel is to do where its defaults would not measure what is meant.
    pub(super) fn tune(&self) -> Result<(), LabError> {
        let buffers = |first: usize| format!("4096 {first} {SOCKET_BUFFER}");
        let settings = [
            ("ipv4/tcp_rmem", buffers(131_072)),
            ("ipv4/tcp_wmem", buffers(65_536)),
            // A connection begins without what an earlier one to the same host has learnt.
            ("ipv4/tcp_no_metrics_save", "1".to_owned()),
        ];
        let tuned = self.run(|| {
            // Kernels without IPv6 have none to be kept quiet.
            let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
            for (name, value) in &settings {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                })?;
            }
            Ok(())
        });
        tuned.map_err(|source| LabError::Io {
            what: format!("cannot set up the namespace {}", self.name),
            source,
        })
    }

    /// Has TCP use this for connections to other hosts that do not choose. It is a property of the route, because a namespace may
    /// only have such a default as the machine allows everybody.
    pub(super) fn use_congestion(&self, address: Ipv4Addr, name: &str) -> Result<(), LabError> {
        let (namespace, own) = (self.name.as_str(), address.to_string());
        ip([
            "-n", namespace, "route", "replace", NETWORK, "dev", DEVICE, "src", &own, "congctl",
            name,
        ])
    }

    /// What the host's TCP uses for connections that do not choose, by the machine's default.
    pub(super) fn tcp_congestion(&self) -> io::Result<String> {
        let read = || fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
        self.run(read).map(|name| name.trim().to_owned())
    }

    /// Packets that the device has dropped because the switch did not take them in time.
    pub(super) fn device_dropped(&self) -> io::Result<u64> {
        let table = self.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        Ok(sent_and_dropped(&table, DEVICE).unwrap_or(0))
    }

    /// Does something on a thread that is in this namespace: its sockets are the host's.
    pub(super) fn run<T: Send>(
        &self,
        what: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.name)?;
                what()
            });
            inside
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread has failed")))
        })
    }

    fn processes(&self) -> Vec<Pid> {
        processes_in(&self.name)
    }

    fn signal(&self, signal: Signal) {
        for process in self.processes() {
            let _ = kill_process(process, signal);
        }
    }

    /// Ends every process in the namespace.
    pub(super) fn end_processes(&self) {
        for signal in [Signal::TERM, Signal::KILL] {
            let deadline = Instant::now() + END_WITHIN;
            self.signal(signal);
            while !self.processes().is_empty() && Instant::now() < deadline {
                thread::sleep(LOOK_EVERY);
            }
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.end_processes();
        if let Err(error) = ip(["netns", "delete", &self.name]) {
            tracing::warn!(namespace = self.name, %error, "a namespace of the lab was not removed");
        }
    }
}

/// Moves the calling thread into a namespace, for good: whatever it starts or opens is there.
pub(super) fn enter(name: &str) -> io::Result<()> {
    let file = File::open(Path::new(NAMED).join(name))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// A command that runs a program in a namespace.
pub(super) fn command_in(name: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(IP);
    command.args(["netns", "exec", name]).arg(program);
    command
}

/// The same, as the words before the program.
pub(super) fn command_words(name: &str) -> Vec<String> {
    [IP, "netns", "exec", name].map(str::to_owned).to_vec()
}

/// Removes what labs have left behind whose processes are gone, killed before they could. Returns their names.
pub(super) fn sweep() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NAMED) else {
        return Vec::new();
    };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if maker_of(&name).is_none_or(is_alive) {
            continue;
        }
        // Its processes end with it.
        drop(Namespace { name: name.clone() });
        removed.push(name);
    }
    removed
}

fn is_alive(process: Pid) -> bool {
    // It may be another user's, which can only be one that is not ours.
    test_kill_process(process) != Err(rustix::io::Errno::SRCH)
}

/// The process that has made a lab's namespace; `None` for other namespaces.
fn maker_of(name: &str) -> Option<Pid> {
    let (process, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Pid::from_raw(process.parse().ok()?)
}

fn processes_in(name: &str) -> Vec<Pid> {
    let listed = Command::new(IP).args(["netns", "pids", name]).output();
    let text = listed.map(|output| output.stdout).unwrap_or_default();
    let own = std::process::id();
    String::from_utf8_lossy(&text)
        .split_whitespace()
        .filter_map(|word| word.parse::<i32>().ok())
        .filter(|process| u32::try_from(*process) != Ok(own))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Where iproute2's command is; `None` where it is not.
pub(super) fn find_ip() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(IP))
        .find(|file| file.is_file())
}

fn ip<const N: usize>(arguments: [&str; N]) -> Result<(), LabError> {
    let failed = |why: String| LabError::Ip {
        command: format!("{IP} {}", arguments.join(" ")),
        why,
    };
    let output = Command::new(IP)
        .args(arguments)
        .stdin(Stdio::null())
        // Ctrl-C is for this process: what was begun is ended, and then removed.
        .process_group(0)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(failed(format!("{told} ({})", output.status)))
}

/// The packets that a device could not send, of `/proc/net/dev`.
fn sent_and_dropped(table: &str, device: &str) -> Option<u64> {
    let figures = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'))?;
    // Eight figures of what is received, then bytes, packets, errors and drops of what is sent.
    figures.split_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_of_a_lab_names_who_has_made_it_and_others_do_not() {
        assert_eq!(maker_of("quorate-lab-77-3-2"), Pid::from_raw(77));
        for other in [
            "",
            "lab-77-3-2",
            "quorate-lab-",
            "quorate-lab-x-1-1",
            "quorate-lab-0-1-1",
            "quorate-lab-77",
        ] {
            assert_eq!(maker_of(other), None, "{other}");
        }
        assert!(is_alive(
            Pid::from_raw(std::process::id().try_into().unwrap()).unwrap()
        ));
    }

    #[test]
    fn drops_of_a_device_are_read_from_the_kernels_table() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  lab0: 1 2 3 4 5 6 7 8 9 10 11 42 13 14 15 16\n";
        assert_eq!(sent_and_dropped(table, "lab0"), Some(42));
        assert_eq!(sent_and_dropped(table, "lab1"), None);
        assert_eq!(sent_and_dropped("lab0: 1 2", "lab0"), None);
    }
}
