//! Which nodes are alive, as one controller hears them, and whether the active controller is among them. No clock: time
//! comes in as the time since the controller started.
//!
//! Any authenticated message counts as life. Silence counts only while the controller could have heard: while a majority
//! of the voters reached it, and while it ran itself. A process that says that it stops, and one that a later process of its
//! node follows, is gone without any silence.
//!
//! # How long a silence may last
//!
//! ```text
//! limit = 4 × heartbeat interval + 2 × smoothed round trip + 4 × its variance          10 s at most
//! ```
//!
//! - *4 × interval*: the next three heartbeats may each be lost or late. Each goes on a stream of its own, so that none waits
//!   for one that was lost, and a lost one is sent again besides; with 100 ms and a round trip of nothing, a node that was
//!   killed is held for dead 300 to 430 ms later.
//! - *2 × round trip + 4 × variance*: when the link loses several packets in a row, the first that can arrive is one that
//!   QUIC sends again, a probe timeout later (round trip + 4 × variance), and it is half a round trip on its way; the rest is
//!   for the link's getting slower. The time that a message takes when nothing is lost needs no place: it delays every
//!   heartbeat alike.
//!
//! The round trip is measured by the node that sends the heartbeats, over its heartbeats, and told in them. At 200 ms and 5 %
//! loss the limit is 0.8 s at least, and 1 to 1.5 s mostly: for a wrong verdict eight heartbeats in a row, and what is sent
//! again for them, would have to be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::message::Vitals;
use super::round_trip::RoundTrip;
use crate::metadata::{MAX_NODES, Registration};
use crate::types::{Incarnation, NodeId};

/// Heartbeats that a silence may last on a link without any delay.
const MISSED_HEARTBEATS: u32 = 4;
/// Whatever a node says of its round trip.
const MAX_SILENCE: Duration = Duration::from_secs(10);
/// Processes of one node that are remembered. Older ones are forgotten: their messages do not arrive any more.
const MAX_PROCESSES: usize = 3;
/// Verdicts that wait to be told of. Further ones hold as well, and nobody is told.
const MAX_VERDICTS: usize = MAX_NODES;

/// How long a silence may last, given how often heartbeats are sent and how the link is. See the head of the file.
pub(super) fn silence_limit(interval: Duration, round_trip: RoundTrip) -> Duration {
    let link = round_trip.smoothed() * 2 + round_trip.variance() * 4;
    MAX_SILENCE.min(interval * MISSED_HEARTBEATS + link)
}

/// When one process of a node was heard.
#[derive(Clone, Copy, Debug)]
struct Process {
    incarnation: Incarnation,
    first: Duration,
    last: Duration,
    /// As it has told, or the guess.
    round_trip: RoundTrip,
    /// The term in which it last said that it is the active controller, and when.
    led: Option<(u64, Duration)>,
    /// It has said that it stops.
    left: bool,
}

/// Why a node is not held for alive, or is again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nothing was heard for longer than `limit`.
    Silent { limit: Duration },
    /// A later process of the same node was heard.
    Restarted,
    /// It has said that it stops.
    Left,
    /// It was heard again.
    Heard,
    /// The node has registered another process.
    Registered,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Silent { limit } => write!(f, "silent for more than {} ms", limit.as_millis()),
            Cause::Restarted => f.write_str("a later process of it was heard"),
            Cause::Left => f.write_str("it said that it stops"),
            Cause::Heard => f.write_str("it was heard"),
            Cause::Registered => f.write_str("another process of it has registered"),
        }
    }
}

/// A node's passing from life to death or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) alive: bool,
    pub(super) cause: Cause,
    /// How long the process had not been heard.
    pub(super) silence: Duration,
}

/// Whether the active controller is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Presence {
    Heard,
    /// Its silence has lasted for most of what it may, or this controller has not listened for long enough to tell: no
    /// reason to stand, and none to keep another from it that knows more.
    Doubtful,
    Gone,
}

/// What one controller knows of the others' being alive.
#[derive(Debug)]
pub(super) struct Liveness {
    me: NodeId,
    voters: BTreeSet<NodeId>,
    /// Between two heartbeats of a node.
    interval: Duration,
    /// At most [`MAX_NODES`]; further ones are not heard until they are registered in the place of others.
    heard: BTreeMap<NodeId, Vec<Process>>,
    /// The registered processes that are held for dead. They stay so until they are heard. Bounded by the registered nodes.
    dead: BTreeMap<NodeId, Incarnation>,
    /// What was found since it was last asked for. At most [`MAX_VERDICTS`].
    verdicts: Vec<Verdict>,
    /// Since when silence counts without a break.
    listening_since: Duration,
    last_tick: Duration,
}

impl Liveness {
    pub(super) fn new(me: NodeId, voters: BTreeSet<NodeId>, interval: Duration) -> Liveness {
        Liveness {
            me,
            voters,
            interval,
            heard: BTreeMap::new(),
            dead: BTreeMap::new(),
            verdicts: Vec::new(),
            listening_since: Duration::ZERO,
            last_tick: Duration::ZERO,
        }
    }

    /// The membership has changed.
    pub(super) fn set_voters(&mut self, voters: BTreeSet<NodeId>) {
        self.voters = voters;
    }

    /// A message of `node`, from its process `incarnation`, has arrived.
    pub(super) fn heard(&mut self, node: NodeId, incarnation: Incarnation, now: Duration) {
        self.process(node, incarnation, now);
    }

    /// A message that tells how its sender is.
    pub(super) fn heard_vitals(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        vitals: Vitals,
        now: Duration,
    ) {
        if let Some(process) = self.process(node, incarnation, now) {
            if let Some(round_trip) = vitals.round_trip {
                process.round_trip = round_trip;
            }
            // A message that was long on its way speaks of an earlier term.
            if let Some(term) = vitals.leads
                && process.led.is_none_or(|(known, _)| term >= known)
            {
                process.led = Some((term, now));
            }
        }
    }

    /// That process stops: nothing more of it counts as life.
    pub(super) fn left(&mut self, node: NodeId, incarnation: Incarnation, now: Duration) {
        if let Some(process) = self.process(node, incarnation, now) {
            process.left = true;
        }
    }

    fn process(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        now: Duration,
    ) -> Option<&mut Process> {
        if !self.heard.contains_key(&node) && self.heard.len() >= MAX_NODES {
            return None;
        }
        let processes = self.heard.entry(node).or_default();
        let known = processes.iter().position(|p| p.incarnation == incarnation);
        let index = known.unwrap_or_else(|| {
            // A link does not change when a process begins anew.
            let round_trip = processes.last().map(|process| process.round_trip);
            if processes.len() >= MAX_PROCESSES {
                processes.remove(0);
            }
            processes.push(Process {
                incarnation,
                first: now,
                last: now,
                round_trip: round_trip.unwrap_or_default(),
                led: None,
                left: false,
            });
            processes.len() - 1
        });
        let process = processes.get_mut(index)?;
        process.last = process.last.max(now);
        Some(process)
    }

    /// To be called several times within the least limit. A longer gap says that this process itself was held up, and that
    /// what it did not hear in the meantime says nothing.
    pub(super) fn tick(&mut self, now: Duration) {
        let deaf = self.is_deaf(now);
        self.last_tick = now;
        if deaf {
            self.listening_since = now;
        }
    }

    /// Whether nothing can be said of anybody's silence. The majority must have been heard more lately than anybody is held
    /// for dead, or a controller that is cut off would bury those first whom it heard last a moment before the others.
    fn is_deaf(&self, now: Duration) -> bool {
        self.was_held_up(now) || !self.is_majority(|voter| self.is_heard(voter, now, 3))
    }

    fn was_held_up(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_tick) > self.interval * (MISSED_HEARTBEATS / 2)
    }

    /// Whether a majority of the voters, this node included if it is one, has been heard within its limit.
    pub(super) fn hears_majority(&self, now: Duration) -> bool {
        self.is_majority(|voter| self.is_heard(voter, now, 4))
    }

    fn is_majority(&self, counts: impl Fn(NodeId) -> bool) -> bool {
        let voters = self.voters.iter();
        let counted = voters
            .filter(|&&voter| voter == self.me || counts(voter))
            .count();
        counted > self.voters.len() / 2
    }

    fn processes(&self, node: NodeId) -> &[Process] {
        self.heard.get(&node).map_or(&[], Vec::as_slice)
    }

    /// Whether its silence is shorter than so many quarters of its limit.
    fn is_heard(&self, node: NodeId, now: Duration, quarters: u32) -> bool {
        self.processes(node).iter().any(|process| {
            let limit = self.limit(process.round_trip) * quarters / 4;
            !process.left && now.saturating_sub(process.last) < limit
        })
    }

    fn limit(&self, round_trip: RoundTrip) -> Duration {
        silence_limit(self.interval, round_trip)
    }

    /// The longest limit of any voter: what has not come back from a majority after a few of these does not come.
    pub(super) fn longest_limit(&self) -> Duration {
        let others = self.voters.iter().filter(|&&voter| voter != self.me);
        others
            .filter_map(|&voter| self.processes(voter).last())
            .map(|process| self.limit(process.round_trip))
            .max()
            .unwrap_or_else(|| self.limit(RoundTrip::default()))
    }

    /// The registered nodes whose registered process is alive.
    pub(super) fn alive<'a>(
        &mut self,
        registered: impl Iterator<Item = &'a Registration>,
        now: Duration,
    ) -> BTreeSet<NodeId> {
        let registered: Vec<&Registration> = registered.collect();
        self.judge(&registered, now);
        registered
            .into_iter()
            .map(|registration| registration.node)
            .filter(|node| !self.dead.contains_key(node))
            .collect()
    }

    /// Who has died and who lives again, as [`Liveness::alive`] has found since the last call.
    pub(super) fn take_verdicts(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.verdicts)
    }

    fn judge(&mut self, registered: &[&Registration], now: Duration) {
        let mut present = BTreeSet::new();
        for registration in registered {
            let (node, incarnation) = (registration.node, registration.incarnation);
            present.insert(node);
            let held_for_dead = self.dead.get(&node).copied();
            let silence = self.silence(node, incarnation, now);
            let gone = self.why_gone(node, incarnation, held_for_dead == Some(incarnation), now);
            let verdict = |alive, cause| Verdict {
                node,
                incarnation,
                alive,
                cause,
                silence,
            };
            match (held_for_dead, gone) {
                (None, Some(cause)) => {
                    self.dead.insert(node, incarnation);
                    self.tell(verdict(false, cause));
                }
                (Some(earlier), Some(_)) if earlier != incarnation => {
                    self.dead.insert(node, incarnation);
                }
                (Some(earlier), None) => {
                    self.dead.remove(&node);
                    let cause = if earlier == incarnation {
                        Cause::Heard
                    } else {
                        Cause::Registered
                    };
                    self.tell(verdict(true, cause));
                }
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        self.dead.retain(|node, _| present.contains(node));
    }

    fn tell(&mut self, verdict: Verdict) {
        if self.verdicts.len() < MAX_VERDICTS {
            self.verdicts.push(verdict);
        }
    }

    fn silence(&self, node: NodeId, incarnation: Incarnation, now: Duration) -> Duration {
        let mut processes = self.processes(node).iter();
        let process = processes.rfind(|process| process.incarnation == incarnation);
        now.saturating_sub(process.map_or(Duration::ZERO, |process| process.last))
    }

    /// `None` for a process that is alive. One that is held for dead already must be heard to live again: that nothing was
    /// to be heard by this controller in the meantime raises nobody from the dead.
    fn why_gone(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        held_for_dead: bool,
        now: Duration,
    ) -> Option<Cause> {
        if node == self.me {
            return None;
        }
        let processes = self.processes(node);
        let process = processes.iter().find(|p| p.incarnation == incarnation);
        if process.is_some_and(|process| process.left) {
            return Some(Cause::Left);
        }
        if process.is_some_and(|process| is_followed(process, processes)) {
            return Some(Cause::Restarted);
        }
        let last = process.map_or(Duration::ZERO, |process| process.last);
        let limit = self.limit(process.map(|p| p.round_trip).unwrap_or_default());
        let excused = if held_for_dead {
            Duration::ZERO
        } else if self.is_deaf(now) {
            now
        } else {
            self.listening_since
        };
        let silent = now.saturating_sub(last.max(excused)) >= limit;
        silent.then_some(Cause::Silent { limit })
    }

    /// Whether the controller that is active in `term`, as far as is known, is still there. `None`: none is known.
    pub(super) fn presence(&self, active: Option<NodeId>, term: u64, now: Duration) -> Presence {
        if self.was_held_up(now) {
            return Presence::Doubtful;
        }
        let processes = active.map_or(&[][..], |active| self.processes(active));
        // The process that led in that term, not just any of the same node.
        let leading = processes
            .iter()
            .rfind(|process| process.led.is_some_and(|(led, _)| led >= term));
        if leading.is_some_and(|process| process.left || is_followed(process, processes)) {
            return Presence::Gone;
        }
        let said = leading.and_then(|process| process.led);
        let last = said.map_or(Duration::ZERO, |(_, at)| at);
        let round_trip = leading.or(processes.last()).map(|p| p.round_trip);
        let limit = round_trip.map_or_else(|| self.longest_limit(), |rtt| self.limit(rtt));
        let silence = now.saturating_sub(last);
        if silence < limit * 3 / 4 {
            Presence::Heard
        } else if silence < limit || now.saturating_sub(self.listening_since) < limit {
            Presence::Doubtful
        } else {
            Presence::Gone
        }
    }
}

/// A later process of the same node says that this one is gone, without waiting. A late message of an earlier process does
/// not: it was first heard before.
fn is_followed(process: &Process, processes: &[Process]) -> bool {
    processes.iter().any(|other| other.first > process.last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Endpoint, METADATA_VERSION};
    use crate::types::DirectoryId;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn incarnation(bits: u64) -> Incarnation {
        Incarnation::from_random_bits(bits)
    }

    fn registration(id: u32, bits: u64) -> Registration {
        Registration {
            node: node(id),
            directory: DirectoryId::from_random_bits(u128::from(id)),
            incarnation: incarnation(bits),
            quic: Endpoint {
                host: "h".to_owned(),
                port: 1,
            },
            kafka: None,
            kafka_listeners: BTreeMap::new(),
            boot_id: None,
            metadata_version: METADATA_VERSION,
        }
    }

    /// Node 1 of three controllers; node 4 is a broker.
    fn liveness() -> Liveness {
        Liveness::new(node(1), (1..=3).map(node).collect(), INTERVAL)
    }

    fn alive(liveness: &mut Liveness, now: u64) -> Vec<u32> {
        let all = [1, 2, 3, 4].map(|id| registration(id, 7));
        liveness
            .alive(all.iter(), ms(now))
            .into_iter()
            .map(NodeId::get)
            .collect()
    }

    fn vitals(rtt_ms: u64, leads: Option<u64>) -> Vitals {
        Vitals {
            round_trip: Some(RoundTrip {
                smoothed_us: rtt_ms * 1000,
                variance_us: 0,
            }),
            leads,
            unix_ms: None,
        }
    }

    /// Heartbeats of `speaking`, every 100 ms, over links without any delay.
    fn run(liveness: &mut Liveness, from: u64, to: u64, speaking: &[u32]) {
        for now in (from..to).step_by(100) {
            for &id in speaking {
                liveness.heard_vitals(node(id), incarnation(7), vitals(0, None), ms(now));
            }
            liveness.tick(ms(now));
        }
    }

    #[test]
    fn silence_counts_only_while_a_majority_is_heard() {
        let mut l = liveness();
        run(&mut l, 0, 2000, &[2, 3, 4]);
        assert_eq!(alive(&mut l, 2000), [1, 2, 3, 4]);
        run(&mut l, 2000, 9000, &[]);
        assert!(!l.hears_majority(ms(9000)));
        assert_eq!(
            alive(&mut l, 8900),
            [1, 2, 3, 4],
            "nobody is buried unheard"
        );
        // From the last moment on at which no majority was heard, 8900.
        run(&mut l, 9000, 9300, &[2]);
        assert!(l.hears_majority(ms(9299)));
        assert_eq!(alive(&mut l, 9299), [1, 2, 3, 4]);
        run(&mut l, 9300, 9600, &[2]);
        assert_eq!(alive(&mut l, 9500), [1, 2]);
        run(&mut l, 9600, 12_000, &[]);
        assert_eq!(
            alive(&mut l, 12_000),
            [1, 2],
            "and nobody is raised from the dead unheard"
        );
    }

    #[test]
    fn a_kill_on_a_quick_link_is_noticed_after_four_heartbeats_and_told_of_once() {
        let mut l = liveness();
        run(&mut l, 0, 2001, &[2, 3, 4]);
        run(&mut l, 2100, 2301, &[2, 3]);
        assert_eq!(alive(&mut l, 2399), [1, 2, 3, 4]);
        run(&mut l, 2400, 2401, &[2, 3]);
        assert_eq!(alive(&mut l, 2401), [1, 2, 3]);
        assert_eq!(alive(&mut l, 2410), [1, 2, 3]);
        let told = l.take_verdicts();
        let [verdict] = told[..] else {
            panic!("{told:?}")
        };
        assert_eq!((verdict.node, verdict.alive), (node(4), false));
        assert_eq!(verdict.cause, Cause::Silent { limit: ms(400) });
        assert_eq!(verdict.silence, ms(401));
        l.heard(node(4), incarnation(7), ms(2450));
        assert_eq!(alive(&mut l, 2460), [1, 2, 3, 4]);
        let told = l.take_verdicts();
        assert_eq!((told.len(), told[0].cause), (1, Cause::Heard));
    }

    #[test]
    fn the_limit_grows_with_the_round_trip_and_its_variance_up_to_a_cap() {
        let limit = |smoothed: u64, variance: u64| {
            let rtt = RoundTrip {
                smoothed_us: smoothed * 1000,
                variance_us: variance * 1000,
            };
            silence_limit(INTERVAL, rtt).as_millis()
        };
        assert_eq!(limit(0, 0), 400);
        assert_eq!(limit(1, 1), 406);
        assert_eq!(limit(200, 0), 800);
        assert_eq!(limit(200, 100), 1200);
        assert_eq!(limit(1_000_000, 1_000_000), 10_000);
    }

    #[test]
    fn a_pause_of_this_process_buries_nobody() {
        let mut l = liveness();
        run(&mut l, 0, 1000, &[2, 3, 4]);
        // Whatever wakes first after it.
        assert_eq!(alive(&mut l, 60_000), [1, 2, 3, 4]);
        assert_eq!(l.presence(Some(node(2)), 1, ms(60_000)), Presence::Doubtful);
        l.heard(node(2), incarnation(7), ms(60_000));
        l.tick(ms(60_000));
        assert_eq!(alive(&mut l, 60_100), [1, 2, 3, 4]);
    }

    #[test]
    fn a_restart_is_noticed_at_once_and_a_late_message_is_no_restart() {
        let mut l = liveness();
        l.heard(node(4), incarnation(6), ms(0));
        run(&mut l, 0, 1000, &[2, 3, 4]);
        l.heard(node(4), incarnation(6), ms(950));
        assert_eq!(alive(&mut l, 1000), [1, 2, 3, 4]);
        l.heard(node(4), incarnation(8), ms(1000));
        assert_eq!(alive(&mut l, 1000), [1, 2, 3]);
        assert_eq!(l.take_verdicts()[0].cause, Cause::Restarted);
        let restarted = [registration(4, 8)];
        assert_eq!(
            l.alive(restarted.iter(), ms(1000)),
            BTreeSet::from([node(4)])
        );
        assert_eq!(l.take_verdicts()[0].cause, Cause::Registered);
    }

    #[test]
    fn a_process_that_said_that_it_stops_is_gone_whatever_else_of_it_arrives() {
        let mut l = liveness();
        run(&mut l, 0, 1000, &[2, 3, 4]);
        l.left(node(4), incarnation(7), ms(1000));
        l.heard(node(4), incarnation(7), ms(1001));
        assert_eq!(alive(&mut l, 1001), [1, 2, 3]);
        assert_eq!(l.take_verdicts()[0].cause, Cause::Left);
        l.left(node(2), incarnation(7), ms(1002));
        l.left(node(3), incarnation(7), ms(1002));
        assert!(!l.hears_majority(ms(1003)));
    }

    #[test]
    fn an_active_controller_is_there_while_it_says_that_it_leads() {
        let mut l = liveness();
        let lead = |l: &mut Liveness, at, leads| {
            l.heard_vitals(node(2), incarnation(7), vitals(0, leads), ms(at));
            l.heard_vitals(node(3), incarnation(7), vitals(0, None), ms(at));
            l.tick(ms(at));
        };
        for at in (0..2000).step_by(100) {
            lead(&mut l, at, Some(5));
        }
        let presence = |l: &Liveness, at| l.presence(Some(node(2)), 5, ms(at));
        assert_eq!(presence(&l, 1900), Presence::Heard);
        // It lives and leads no more: that is a silence too.
        for at in (2000..2200).step_by(100) {
            lead(&mut l, at, None);
        }
        assert_eq!(presence(&l, 2250), Presence::Doubtful);
        lead(&mut l, 2200, None);
        lead(&mut l, 2300, None);
        assert_eq!(presence(&l, 2300), Presence::Gone);
        lead(&mut l, 2310, Some(4));
        assert_eq!(presence(&l, 2310), Presence::Gone, "an earlier term's");
        lead(&mut l, 2320, Some(5));
        assert_eq!(presence(&l, 2320), Presence::Heard);
        l.heard(node(2), incarnation(8), ms(2330));
        assert_eq!(presence(&l, 2330), Presence::Gone, "it restarted");
    }

    #[test]
    fn whoever_has_just_begun_to_listen_says_nobody_is_gone() {
        let mut l = liveness();
        l.heard_vitals(node(3), incarnation(7), vitals(0, None), ms(0));
        l.tick(ms(0));
        for active in [None, Some(node(2))] {
            assert_ne!(l.presence(active, 5, ms(150)), Presence::Gone);
        }
        run(&mut l, 100, 700, &[3]);
        for active in [None, Some(node(2))] {
            assert_eq!(l.presence(active, 5, ms(700)), Presence::Gone);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut l = liveness();
        for bits in 0..100 {
            l.heard(node(2), incarnation(bits), ms(bits));
        }
        assert_eq!(l.heard[&node(2)].len(), MAX_PROCESSES);
        for id in 1..=1000 {
            l.heard(node(id), incarnation(1), ms(1));
        }
        assert_eq!(l.heard.len(), MAX_NODES);
    }

    /// Heartbeats over a link that loses each packet with a probability of 5 %, sends it again after a probe timeout that
    /// doubles, and delays it by half of 200 ms and up to 20 ms more. Round trips are measured as the sender does.
    fn longest_silence_of_limit(seed: u64, duration: Duration) -> f64 {
        let mut state = seed;
        let mut random = move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut one_way = move |round_trip: RoundTrip| {
            let mut delay = ms(100) + ms(20).mul_f64(random());
            let mut probe = round_trip.smoothed() + round_trip.variance() * 4;
            while random() < 0.05 {
                delay += probe;
                probe *= 2;
            }
            delay
        };
        let mut measured: Option<RoundTrip> = None;
        // When each is known: a heartbeat at the receiver, with what its sender had measured; a sample at the sender.
        let mut arrivals = BTreeMap::new();
        let mut samples: BTreeMap<(Duration, u32), Duration> = BTreeMap::new();
        let mut sent = Duration::ZERO;
        let mut count = 0;
        while sent < duration {
            while let Some(entry) = samples.first_entry()
                && entry.key().0 <= sent
            {
                let sample = entry.remove();
                match &mut measured {
                    Some(known) => known.add(sample),
                    None => measured = Some(RoundTrip::first(sample)),
                }
            }
            let there = one_way(measured.unwrap_or_default());
            let back = one_way(measured.unwrap_or_default());
            arrivals.insert((sent + there, count), measured);
            samples.insert((sent + there + back, count), there + back);
            sent += INTERVAL;
            count += 1;
        }
        let mut l = liveness();
        let mut last = Duration::ZERO;
        let mut worst = 0.0_f64;
        // After the last heartbeat is sent, none follows a late one.
        for ((at, _), round_trip) in arrivals.range(..(duration, 0)) {
            let (at, round_trip) = (*at, *round_trip);
            let known = l.processes(node(4)).last().map(|p| p.round_trip);
            let limit = silence_limit(INTERVAL, known.unwrap_or_default());
            worst = worst.max((at - last).as_secs_f64() / limit.as_secs_f64());
            last = at;
            let vitals = Vitals {
                round_trip,
                leads: None,
                unix_ms: None,
            };
            l.heard_vitals(node(4), incarnation(7), vitals, at);
        }
        worst
    }

    #[test]
    fn ten_minutes_at_200_ms_and_5_percent_loss_bury_nobody() {
        for seed in 0..50 {
            let worst = longest_silence_of_limit(seed, Duration::from_secs(600));
            assert!(
                worst < 0.9,
                "seed {seed}: a silence of {worst:.2} of the limit"
            );
        }
    }
}
