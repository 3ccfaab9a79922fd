//! The same cluster on the same links, and only the way between its nodes differs: QUIC with each of our congestion controllers,
//! TCP with the kernel's. `quorate bench arms` measures how much goes through, `quorate bench blackout` how soon it goes on.
//!
//! Three nodes, each a process on a host of a [`lab`](super::lab), the leader on host 1 and the client beside it. What an arm over
//! TCP is and is not: `docs/benchmarks.md`.
//!
//! - [`stage`]: an arm's cluster
//! - [`cell`]: throughput and commit times of one arm on one link
//! - [`blackout`]: every link out

mod blackout;
mod cell;
mod stage;

use std::fmt;
use std::io;
use std::str::FromStr;

use thiserror::Error;

pub use blackout::{BlackoutFigures, BlackoutSettings, run_blackouts};
pub use cell::{CellFigures, CellSettings, run_cells};

use super::BenchError;
use super::lab::{LabError, LabSettings};
use crate::transport::{Congestion, Impairment, ImpairmentSpec, probe_tcp_congestion};
use crate::types::NodeId;

/// Nodes and replicas.
const NODES: u16 = 3;

/// A way between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arm {
    Quic(Congestion),
    /// With the kernel's congestion control of that name.
    Tcp(String),
}

/// Text that is no arm.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no arm: write quic:keel, quic:cubic, quic:bbr, tcp:cubic, tcp:bbr or tcp:NAME"
)]
pub struct InvalidArm {
    text: String,
}

impl Arm {
    /// `quic` or `tcp`.
    pub fn transport(&self) -> &'static str {
        match self {
            Arm::Quic(_) => "quic",
            Arm::Tcp(_) => "tcp",
        }
    }

    pub fn congestion(&self) -> &str {
        match self {
            Arm::Quic(congestion) => congestion.name(),
            Arm::Tcp(name) => name,
        }
    }

    /// What its nodes are started with.
    fn flags(&self) -> Vec<String> {
        let flag = match self {
            Arm::Quic(_) => "--congestion",
            Arm::Tcp(_) => "--replicate-over-tcp",
        };
        vec![flag.to_owned(), self.congestion().to_owned()]
    }

    fn check(&self) -> Result<(), BenchError> {
        match self {
            Arm::Quic(_) => Ok(()),
            Arm::Tcp(name) => probe_tcp_congestion(name).map_err(|why| {
                BenchError::Impossible(format!(
                    "{why}: choose one of net.ipv4.tcp_available_congestion_control, or load it with `modprobe tcp_{name}`"
                ))
            }),
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.transport(), self.congestion())
    }
}

impl FromStr for Arm {
    type Err = InvalidArm;

    fn from_str(text: &str) -> Result<Arm, InvalidArm> {
        let invalid = || InvalidArm { text: text.into() };
        let (transport, congestion) = text.split_once(':').ok_or_else(invalid)?;
        let is_word = |name: &str| {
            (1..16).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        match transport {
            "quic" => congestion.parse().map(Arm::Quic).map_err(|_| invalid()),
            "tcp" if is_word(congestion) => Ok(Arm::Tcp(congestion.to_owned())),
            _ => Err(invalid()),
        }
    }
}

/// Every arm once, then every arm again, as often as there are runs, until one turn fails.
fn each_turn(
    arms: &[Arm],
    runs: u32,
    mut turn: impl FnMut(&Arm, u32) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    (1..=runs)
        .flat_map(|run| arms.iter().map(move |arm| (arm, run)))
        .try_for_each(|(arm, run)| turn(arm, run))
}

/// Who hears how it goes.
pub trait Witness<F> {
    /// What is being done now.
    fn progress(&mut self, line: &str);
    /// Something to be kept in mind.
    fn note(&mut self, line: &str);
    /// A measurement has ended. An error ends the whole.
    fn finished(&mut self, figures: &F) -> io::Result<()>;
}

impl From<LabError> for BenchError {
    fn from(error: LabError) -> BenchError {
        match error {
            LabError::Impossible(what) => BenchError::Impossible(what),
            LabError::Io { what, source } => BenchError::Io { what, source },
            other => BenchError::Failed(other.to_string()),
        }
    }
}

/// Refuses what cannot be, before anything is started.
fn check(arms: &[Arm], runs: u32, links: &ImpairmentSpec) -> Result<(), BenchError> {
    if arms.is_empty() || runs == 0 {
        return Err(BenchError::Impossible(
            "nothing is measured without an arm or a run: name --arm and --runs".to_owned(),
        ));
    }
    lab_settings(links, 1).check()?;
    arms.iter().try_for_each(Arm::check)
}

/// What links suffer from the first packet on, and when they are well again: their length, and nothing else. A path does not grow longer
/// in the middle of a connection; the kernel's BBR, for one, takes the shortest round trip of the last 10 s for the path's, and would
/// be measured with a window for a link of no length.
fn only_the_delay(links: &ImpairmentSpec) -> ImpairmentSpec {
    let delay = way_of(links).delay;
    format!("delay={}us", delay.as_micros())
        .parse()
        .unwrap_or_default()
}

/// What the way from the leader to a follower suffers: all of them the same.
fn way_of(links: &ImpairmentSpec) -> Impairment {
    match (NodeId::new(1), NodeId::new(2)) {
        (Some(leader), Some(follower)) => links.of_way(leader, follower),
        _ => Impairment::default(),
    }
}

fn lab_settings(links: &ImpairmentSpec, seed: u64) -> LabSettings {
    LabSettings {
        hosts: NODES,
        spec: links.clone(),
        seed,
        rules: None,
        tcp_congestion: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_is_read_as_it_is_written() {
        for text in [
            "quic:keel",
            "quic:cubic",
            "quic:bbr",
            "tcp:cubic",
            "tcp:dctcp",
        ] {
            assert_eq!(text.parse::<Arm>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "quic",
            "quic:reno",
            "tcp:",
            "tcp:a b",
            "tcp:../x",
            "udp:cubic",
            "tcp:0123456789abcdef",
        ] {
            let error = text.parse::<Arm>().unwrap_err().to_string();
            assert!(error.contains("quic:keel"), "{error}");
        }
        let flags = |text: &str| text.parse::<Arm>().unwrap().flags().join(" ");
        assert_eq!(flags("quic:keel"), "--congestion keel");
        assert_eq!(flags("tcp:bbr"), "--replicate-over-tcp bbr");
    }

    #[test]
    fn a_link_is_as_long_from_the_first_packet_on_as_it_is_measured() {
        let links: ImpairmentSpec = "loss=5%,delay=12.5ms,jitter=3ms,rate=50mbit"
            .parse()
            .unwrap();
        assert_eq!(
            only_the_delay(&links),
            "delay=12500us".parse().unwrap(),
            "and neither loses nor delays anything at random"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        let links = ImpairmentSpec::default();
        for (arms, runs) in [(vec![], 1), (vec![Arm::Quic(Congestion::Keel)], 0)] {
            let error = check(&arms, runs, &links).unwrap_err();
            assert!(matches!(error, BenchError::Impossible(_)));
        }
        let error = Arm::Tcp("pigeon".to_owned())
            .check()
            .unwrap_err()
            .to_string();
        assert!(error.contains("modprobe tcp_pigeon"), "{error}");
    }
}
