//! Which faults come when: decided by a seed alone.
//!
//! Two hands work at a time, one on processes and one on links, each with one fault after another, so that any fault of the one may
//! meet any fault of the other. What a fault aims at may be a role: who has it is seen when the fault comes.

use std::fmt;
use std::time::Duration;

use quorate::types::NodeId;

/// A generator that stays as it is in every version of everything: the same seed is the same schedule for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len() as u64) as usize]
    }

    /// Short ones more often than long ones.
    fn duration(&mut self, shortest: Duration, longest: Duration) -> Duration {
        let spread = (longest - shortest).as_millis() as u64 + 1;
        let (one, other) = (self.below(spread), self.below(spread));
        shortest + Duration::from_millis(one.min(other))
    }
}

/// One node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Node(NodeId),
    /// Whoever leads this partition when the fault comes; any node where nobody does.
    Leader(u32),
    Controller,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(node) => write!(f, "node {node}"),
            Target::Leader(partition) => write!(f, "the leader of {partition}"),
            Target::Controller => write!(f, "the active controller"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessFault {
    /// kill -9, and a start again after the hold.
    Kill(Target),
    /// Two at once.
    KillTwo(Target),
    KillAll,
    /// SIGSTOP, and SIGCONT after the hold.
    Freeze(Target),
    /// SIGTERM, and a start again after the hold.
    Stop(Target),
    /// SIGTERM to one after the other, each started again and waited for.
    Rolling,
    /// No room on its disk until the hold is over.
    FillDisk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// Both directions between the target and one other node.
    CutPair(Target),
    /// The target is not heard by one other node, but hears it.
    CutOneWay(Target),
    /// Nothing comes from the target to any node; or nothing from any node to it.
    Mute(Target),
    Deaf(Target),
    /// Both, clients apart.
    Isolate(Target),
    /// Both, clients too.
    CutOff(Target),
    /// Of a thousand datagrams, so many are lost on every way.
    Loss(u32),
}

impl ProcessFault {
    /// What it is counted as.
    pub fn kind(&self) -> &'static str {
        match self {
            ProcessFault::Kill(_) => "kill -9 of one",
            ProcessFault::KillTwo(_) => "kill -9 of two",
            ProcessFault::KillAll => "kill -9 of all",
            ProcessFault::Freeze(_) => "SIGSTOP",
            ProcessFault::Stop(_) => "clean stop",
            ProcessFault::Rolling => "rolling restart",
            ProcessFault::FillDisk => "full disk",
        }
    }
}

impl LinkFault {
    pub fn kind(&self) -> &'static str {
        match self {
            LinkFault::CutPair(_) => "pair cut",
            LinkFault::CutOneWay(_) => "pair cut one way",
            LinkFault::Mute(_) => "node mute",
            LinkFault::Deaf(_) => "node deaf",
            LinkFault::Isolate(_) => "node isolated",
            LinkFault::CutOff(_) => "node isolated, clients too",
            LinkFault::Loss(_) => "loss",
        }
    }
}

/// One fault: it comes after `pause` and lasts for `hold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<F> {
    pub pause: Duration,
    pub fault: F,
    pub hold: Duration,
}

/// What one hand does, for ever.
#[derive(Clone, Debug)]
pub struct Hand {
    random: Random,
    nodes: Vec<NodeId>,
    partitions: u32,
    with_full_disks: bool,
}

impl Hand {
    fn target(&mut self) -> Target {
        match self.random.below(8) {
            0..4 => Target::Node(*self.random.pick(&self.nodes)),
            4..7 => Target::Leader(self.random.below(u64::from(self.partitions)) as u32),
            _ => Target::Controller,
        }
    }

    fn pause(&mut self) -> Duration {
        let longest = Duration::from_secs(8);
        self.random.duration(Duration::from_millis(100), longest)
    }

    pub fn next_process_fault(&mut self) -> Step<ProcessFault> {
        let pause = self.pause();
        let target = self.target();
        let fault = match self.random.below(20) {
            0..6 => ProcessFault::Kill(target),
            6..8 => ProcessFault::KillTwo(target),
            8..10 => ProcessFault::KillAll,
            10..15 => ProcessFault::Freeze(target),
            15..17 => ProcessFault::Stop(target),
            17 => ProcessFault::Rolling,
            _ if self.with_full_disks => ProcessFault::FillDisk,
            _ => ProcessFault::Freeze(target),
        };
        let longest = match fault {
            ProcessFault::KillAll | ProcessFault::KillTwo(_) => Duration::from_secs(3),
            _ => Duration::from_secs(10),
        };
        let hold = self.random.duration(Duration::from_millis(50), longest);
        Step { pause, fault, hold }
    }

    pub fn next_link_fault(&mut self) -> Step<LinkFault> {
        let pause = self.pause();
        let target = self.target();
        let fault = match self.random.below(12) {
            0..3 => LinkFault::CutPair(target),
            3..5 => LinkFault::CutOneWay(target),
            5 => LinkFault::Mute(target),
            6 => LinkFault::Deaf(target),
            7..9 => LinkFault::Isolate(target),
            9 => LinkFault::CutOff(target),
            _ => LinkFault::Loss(*self.random.pick(&[10, 50, 200])),
        };
        let longest = Duration::from_secs(12);
        let hold = self.random.duration(Duration::from_millis(50), longest);
        Step { pause, fault, hold }
    }

    /// Any of `among`, which is not empty.
    pub fn any(&mut self, among: &[NodeId]) -> NodeId {
        *self.random.pick(among)
    }
}

/// The two hands: processes and links.
pub fn hands(seed: u64, nodes: &[NodeId], partitions: u32, with_full_disks: bool) -> (Hand, Hand) {
    let mut random = Random::new(seed);
    let mut hand = || Hand {
        random: Random::new(random.next()),
        nodes: nodes.to_vec(),
        partitions,
        with_full_disks,
    };
    (hand(), hand())
}

mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::support::node;

    fn first(seed: u64) -> (Vec<Step<ProcessFault>>, Vec<Step<LinkFault>>) {
        let nodes = [1, 2, 3].map(node);
        let (mut processes, mut links) = hands(seed, &nodes, 4, true);
        (0..300)
            .map(|_| (processes.next_process_fault(), links.next_link_fault()))
            .unzip()
    }

    #[test]
    fn the_same_seed_is_the_same_schedule_and_another_is_not() {
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn every_kind_of_fault_comes_and_none_lasts_long() {
        let (processes, links) = first(1);
        let kinds: BTreeSet<_> = processes.iter().map(|step| step.fault.kind()).collect();
        assert_eq!(kinds.len(), 7, "{kinds:?}");
        let kinds: BTreeSet<_> = links.iter().map(|step| step.fault.kind()).collect();
        assert_eq!(kinds.len(), 7, "{kinds:?}");
        let longest = processes
            .iter()
            .map(|step| step.hold)
            .chain(links.iter().map(|step| step.hold))
            .max();
        assert!(longest <= Some(Duration::from_secs(12)), "{longest:?}");
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // The first values of the reference implementation for the seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }
}
