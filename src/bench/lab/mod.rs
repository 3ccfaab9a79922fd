//! A network of its own on this machine, for any program: hosts that are network namespaces, and a switch in user space between
//! them that loses, delays and queues IP packets as the impaired socket does those of QUIC. So TCP suffers the same below the
//! kernel that QUIC suffers, and other brokers can be measured on the same links.
//!
//! ```text
//! namespace of host 1            this process                  namespace of host 2
//!  program ─ kernel ─ lab0 ═══▶ carrier ─▶ switch ─▶ carrier ═══▶ lab0 ─ kernel ─ program
//!            10.77.0.1   TUN                (models)                TUN   10.77.0.2
//! ```
//!
//! Needs root, Linux, /dev/net/tun and iproute2's `ip`; see [`LabSettings::check`].
//!
//! - [`switch`]: what becomes of a packet; pure
//! - [`carrier`]: the thread between devices and switch
//! - [`namespace`]: one host

mod carrier;
mod namespace;
mod switch;

use std::ffi::OsStr;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use carrier::Shared;
use namespace::Namespace;
pub use switch::{Due, MAX_HOSTS, Switch, WayCounts, address_of};

use crate::transport::{ImpairmentSpec, WatchedRules};

/// The environment variables that a command in a lab finds: addresses and namespaces of all hosts in their order, with spaces
/// between, and the file whose rules hold while it is there.
pub const HOSTS_VARIABLE: &str = "LAB_HOSTS";
pub const NAMESPACES_VARIABLE: &str = "LAB_NAMESPACES";
pub const RULES_VARIABLE: &str = "LAB_RULES";

const TUN: &str = "/dev/net/tun";
const CONGESTION_CONTROLLERS: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

/// Tells this process's labs from one another.
static NEXT_LAB: AtomicU64 = AtomicU64::new(1);

/// What a lab is to be like.
#[derive(Clone, Debug)]
pub struct LabSettings {
    /// 2 to [`MAX_HOSTS`].
    pub hosts: u16,
    /// What links suffer while there is no rules file.
    pub spec: ImpairmentSpec,
    /// Of everything that is drawn.
    pub seed: u64,
    /// The rules file.
    pub rules: Option<PathBuf>,
    /// What TCP in the hosts uses for connections that do not choose; the machine's default unless it is said.
    pub tcp_congestion: Option<String>,
}

/// Why there is no lab.
#[derive(Debug, Error)]
pub enum LabError {
    /// What was asked for cannot be; the text says what to change. Nothing was started.
    #[error("{0}")]
    Impossible(String),
    #[error("`{command}` failed: {why}")]
    Ip { command: String, why: String },
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the lab broke: {0}")]
    Broken(String),
}

/// One host of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LabHost {
    /// From 1.
    pub number: u16,
    pub address: Ipv4Addr,
    /// `ip netns exec NAMESPACE COMMAND` runs a command on it.
    pub namespace: String,
}

/// What one host's device counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostCounts {
    #[serde(flatten)]
    pub host: LabHost,
    /// Packets that it sent and that are for no host of the lab.
    pub strange: u64,
    /// Packets that it sent and that its device dropped, because the switch was not quick enough. Not 0: the machine is too slow
    /// for what was asked of it.
    pub device_dropped: u64,
    /// Packets that its kernel did not take from the switch.
    pub refused: u64,
}

/// What a lab has carried. The field names are part of the command line's interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabCounts {
    /// How long it has stood.
    pub seconds: f64,
    /// The rules that hold now.
    pub rules: String,
    pub seed: u64,
    pub hosts: Vec<HostCounts>,
    /// Every way between two hosts.
    pub ways: Vec<WayCounts>,
}

impl LabSettings {
    /// Refuses what cannot be, before anything is started.
    pub fn check(&self) -> Result<(), LabError> {
        self.check_values()?;
        let impossible = |what: &str| Err(LabError::Impossible(what.to_owned()));
        if !rustix::process::geteuid().is_root() {
            return impossible(
                "a lab network makes network namespaces and devices, which only root may: run this as root, or measure on impaired \
                 sockets, which need no privilege (`quorate bench gap`, `quorate demo --loss 3%`)",
            );
        }
        if !Path::new(TUN).exists() {
            return impossible(
                "there is no /dev/net/tun: load the kernel's module with `modprobe tun`, or give the container that device",
            );
        }
        if namespace::find_ip().is_none() {
            return impossible(
                "there is no `ip` command in the PATH: install the package iproute2",
            );
        }
        self.check_congestion()
    }

    fn check_values(&self) -> Result<(), LabError> {
        if !(2..=MAX_HOSTS).contains(&self.hosts) {
            return Err(LabError::Impossible(format!(
                "--hosts {} is out of range: choose 2 to {MAX_HOSTS}",
                self.hosts
            )));
        }
        if self.spec.rebinds() {
            return Err(LabError::Impossible(
                "rebind= has no meaning in a lab, whose switch has no ports to change: leave it away"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn check_congestion(&self) -> Result<(), LabError> {
        let Some(wanted) = &self.tcp_congestion else {
            return Ok(());
        };
        let there = std::fs::read_to_string(CONGESTION_CONTROLLERS).unwrap_or_default();
        if there.split_whitespace().any(|name| name == wanted) {
            return Ok(());
        }
        Err(LabError::Impossible(format!(
            "this kernel's TCP has no congestion control {wanted:?}, only {}: choose one of them, or load it with `modprobe tcp_{wanted}`",
            there.split_whitespace().collect::<Vec<_>>().join(", ")
        )))
    }
}

/// A lab that stands. Dropping it ends every process in its namespaces and removes all that it has made.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<LabHost>,
    seed: u64,
    rules: Option<PathBuf>,
    tcp_congestion: Option<String>,
    shared: Arc<Shared>,
    carrier: Option<JoinHandle<()>>,
    /// Removed last, when their devices are closed.
    namespaces: Vec<Namespace>,
}

impl Lab {
    /// Makes hosts, devices and switch. After an error nothing of it is left. Removes first what labs have left behind that were
    /// killed, and names it in the log.
    pub fn open(settings: &LabSettings) -> Result<Lab, LabError> {
        settings.check()?;
        for namespace in namespace::sweep() {
            tracing::warn!(
                namespace,
                "removed what a lab that was killed had left behind"
            );
        }
        let lab = NEXT_LAB.fetch_add(1, Ordering::Relaxed);
        let (mut hosts, mut namespaces, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=settings.hosts {
            let namespace = Namespace::create(lab, number)?;
            let address = address_of(number);
            let name = namespace.name().to_owned();
            // From here on it is removed with the others when something fails.
            namespaces.push(namespace);
            let Some(namespace) = namespaces.last() else {
                continue;
            };
            namespace.tune()?;
            devices.push(namespace.open_device(address)?);
            if let Some(name) = &settings.tcp_congestion {
                namespace.use_congestion(address, name)?;
            }
            hosts.push(LabHost {
                number,
                address,
                namespace: name,
            });
        }
        let switch = Switch::new(settings.hosts, settings.seed, settings.spec.clone());
        let shared = Shared::new(switch, settings.hosts);
        let mut watched = settings
            .rules
            .clone()
            .map(|path| WatchedRules::new(path, settings.spec.clone()));
        if let Some(spec) = watched.as_mut().and_then(WatchedRules::look) {
            shared.switch().set(spec);
        }
        let for_carrier = Arc::clone(&shared);
        let carrier = thread::Builder::new()
            .name("lab".to_owned())
            .spawn(move || carrier::run(&for_carrier, &devices, watched))
            .map_err(|source| LabError::Io {
                what: "cannot start the lab's thread".to_owned(),
                source,
            })?;
        Ok(Lab {
            hosts,
            seed: settings.seed,
            rules: settings.rules.clone(),
            tcp_congestion: settings.tcp_congestion.clone(),
            shared,
            carrier: Some(carrier),
            namespaces,
        })
    }

    pub fn hosts(&self) -> &[LabHost] {
        &self.hosts
    }

    /// Holds from the next packet on, until the rules file changes.
    pub fn set(&self, spec: ImpairmentSpec) {
        self.shared.switch().set(spec);
    }

    /// What a command in the lab is told.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let words = |word: fn(&LabHost) -> String| {
            let words: Vec<_> = self.hosts.iter().map(word).collect();
            words.join(" ")
        };
        let mut variables = vec![
            (HOSTS_VARIABLE, words(|host| host.address.to_string())),
            (NAMESPACES_VARIABLE, words(|host| host.namespace.clone())),
        ];
        if let Some(rules) = &self.rules {
            variables.push((RULES_VARIABLE, rules.display().to_string()));
        }
        variables
    }

    /// Runs a program on a host. `None` for a host that is not there.
    pub fn command(&self, number: u16, program: impl AsRef<OsStr>) -> Option<Command> {
        let host = self.hosts.iter().find(|host| host.number == number)?;
        let mut command = namespace::command_in(&host.namespace, program);
        command.envs(self.variables());
        Some(command)
    }

    /// What stands before a command to have it run on a host. Empty for a host that is not there.
    pub fn command_prefix(&self, number: u16) -> Vec<String> {
        let host = self.hosts.iter().find(|host| host.number == number);
        host.map_or_else(Vec::new, |host| namespace::command_words(&host.namespace))
    }

    /// Does something on a thread that is on a host: the sockets that it opens are the host's.
    pub fn run_on<T: Send>(
        &self,
        number: u16,
        what: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let index = usize::from(number).wrapping_sub(1);
        match self.namespaces.get(index) {
            Some(namespace) => namespace.run(what),
            None => Err(io::Error::other(format!("there is no host {number}"))),
        }
    }

    /// What TCP on the hosts uses for connections that do not choose.
    pub fn tcp_congestion(&self) -> io::Result<String> {
        if let Some(name) = &self.tcp_congestion {
            return Ok(name.clone());
        }
        match self.namespaces.first() {
            Some(namespace) => namespace.tcp_congestion(),
            None => Err(io::Error::other("there is no host")),
        }
    }

    pub fn counts(&self) -> LabCounts {
        let (rules, strange, ways) = {
            let switch = self.shared.switch();
            (
                switch.spec().to_string(),
                switch.strange().to_vec(),
                switch.counts(),
            )
        };
        let refused = self.shared.refused();
        let hosts = self.hosts.iter().zip(&self.namespaces).enumerate();
        LabCounts {
            seconds: self.shared.elapsed().as_secs_f64(),
            rules,
            seed: self.seed,
            hosts: hosts
                .map(|(index, (host, namespace))| HostCounts {
                    host: host.clone(),
                    strange: strange.get(index).copied().unwrap_or(0),
                    device_dropped: namespace.device_dropped().unwrap_or(0),
                    refused: refused.get(index).copied().unwrap_or(0),
                })
                .collect(),
            ways,
        }
    }

    /// Packets that are under way.
    pub fn under_way(&self) -> usize {
        self.shared.switch().under_way()
    }

    /// Fails if the lab carries nothing any more.
    pub fn check(&self) -> Result<(), LabError> {
        match self.shared.failure() {
            Some(cause) => Err(LabError::Broken(cause)),
            None => Ok(()),
        }
    }

    /// Ends what runs on the hosts. The lab itself stands on.
    pub fn end_processes(&self) {
        for namespace in &self.namespaces {
            namespace.end_processes();
        }
    }

    /// How long it has stood.
    pub fn elapsed(&self) -> Duration {
        self.shared.elapsed()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // While packets still go, so that processes can say goodbye to one another.
        self.end_processes();
        self.shared.stop.store(true, Ordering::Release);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Runs a future on a host, on a runtime of its own whose threads are there: every socket that it opens is the host's.
pub fn block_on_host<T: Send>(
    host: &LabHost,
    future: impl Future<Output = T> + Send,
) -> io::Result<T> {
    let on_host = || -> io::Result<T> {
        enter_host(host)?;
        let own = host.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .on_thread_start(move || {
                if let Err(error) = enter_host(&own) {
                    tracing::error!(%error, host = own.number, "a thread stays out of the lab: its sockets reach nothing there");
                }
            })
            .build()?;
        let outcome = runtime.block_on(future);
        runtime.shutdown_background();
        Ok(outcome)
    };
    thread::scope(|scope| {
        scope
            .spawn(on_host)
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread has failed")))
    })
}

/// Moves the calling thread onto a host, for good.
pub fn enter_host(host: &LabHost) -> io::Result<()> {
    namespace::enter(&host.namespace)
}

/// A command that runs a program in a namespace by name.
pub fn command_in_namespace(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    namespace::command_in(namespace, program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(hosts: u16, spec: &str) -> LabSettings {
        LabSettings {
            hosts,
            spec: spec.parse().unwrap(),
            seed: 1,
            rules: None,
            tcp_congestion: None,
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        for (settings, advice) in [
            (settings(1, ""), "choose 2 to 16"),
            (settings(17, ""), "choose 2 to 16"),
            (settings(2, "loss=1%;rebind=2"), "leave it away"),
        ] {
            let error = settings.check_values().unwrap_err();
            assert!(matches!(error, LabError::Impossible(_)));
            assert!(error.to_string().contains(advice), "{error}");
        }
        settings(2, "loss=1%").check_values().unwrap();
        let mut strange = settings(2, "");
        strange.tcp_congestion = Some("pigeon".to_owned());
        let error = strange.check_congestion().unwrap_err().to_string();
        assert!(
            error.contains("\"pigeon\"") && error.contains("choose one of them"),
            "{error}"
        );
    }

    #[test]
    fn without_root_it_is_refused_before_anything_is_made() {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let error = Lab::open(&settings(2, "")).unwrap_err().to_string();
        assert!(error.contains("run this as root"), "{error}");
    }
}
