//! What the dialling end of a link does when: suspect, move to another socket, dial beside, replace, redial.
//!
//! A pure state machine. Its caller tells it what happened and carries out what comes back; time and randomness are
//! arguments, so that each of its decisions can be read in a transcript (`tests/link/*.txt`).
//!
//! ```text
//!            nothing heard for a suspicion time            half as long again
//!      up ───────────────────────────────────▶ silent ─────────────────────────▶ silent, and dialling beside
//!       ▲        (moves to another socket)      │  ▲                              │             │
//!       │                                       │  └─ moves again at 2, 4, 8 … ×  │             │
//!       ├───────────── heard again ─────────────┘                                 │             │
//!       ├───────────── heard again: the dials beside it are given up ─────────────┘             │
//!       └───────────── a dial is answered first: it is adopted, and the silent one closed ──────┘
//! ```
//!
//! The old connection stays in use until another one is adopted (make before break). Whichever of the two is heard first wins.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::replication::{MINIMUM_SUSPICION, suspicion_time};
use crate::types::MonotonicTime;

/// [`LinkKeeper::handle_look`] must be called at least this often.
pub const LOOK_EVERY: Duration = Duration::from_millis(25);
/// The first pause between dials; it doubles up to [`MAX_REDIAL_PAUSE`]. Of each pause half is drawn at random, so that peers
/// that lost one node do not come back in step. The first redial after a connection that worked comes at once.
pub const FIRST_REDIAL_PAUSE: Duration = Duration::from_millis(50);
pub const MAX_REDIAL_PAUSE: Duration = Duration::from_secs(1);
/// A dial that is not answered is joined by another one after this, or after the pause if that is longer: the handshake's own
/// probes come at doubling intervals, and after an outage the youngest dial is the first to get through.
pub const JOIN_AFTER: Duration = Duration::from_millis(250);
/// Dials under way at once. Beyond it the oldest, whose next probe is furthest away, is given up for the next one; but not the
/// patient one.
pub const MAX_DIALS: usize = 4;
/// How long a dial has to be answered, and then its hello.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(3);
/// After so many dials in vain one at a time has [`LONG_DIAL_PATIENCE`]: on a path with seconds of queue before it no other would
/// ever be answered in its time, however often it is tried.
const PATIENT_AFTER: u32 = 4;
pub(super) const LONG_DIAL_PATIENCE: Duration = Duration::from_secs(20);
/// A connection that stood for less counts as a dial that failed: a peer that accepts and closes at once is not redialled
/// without a pause.
pub const LASTING: Duration = Duration::from_secs(1);
/// Whoever was not looked at for so long was held up itself (a stopped process, a starved machine), and what came meanwhile
/// may not have been read yet.
const HELD_UP: Duration = Duration::from_millis(150);

/// A dial, and the connection that may come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

impl fmt::Display for DialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a dial is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialCause {
    First,
    /// The last connection is gone.
    Lost,
    /// The dial before was refused, failed, or is not answered.
    Unanswered,
    /// The connection that stands is silent.
    Silence,
    /// The peer has another address.
    Moved,
}

impl fmt::Display for DialCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DialCause::First => "first",
            DialCause::Lost => "connection lost",
            DialCause::Unanswered => "no answer yet",
            DialCause::Silence => "silence",
            DialCause::Moved => "another address",
        })
    }
}

/// Why a dial is given up, or a connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// The connection that stands is heard again.
    HeardAgain,
    /// Another connection has taken its place.
    Superseded,
    /// It was not answered, and younger dials get through sooner.
    Unanswered,
    /// The peer is to be reached elsewhere.
    Moved,
    /// Nobody needs the link any more.
    Stopped,
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndCause::HeardAgain => "the connection before it is heard again",
            EndCause::Superseded => "a newer connection took its place",
            EndCause::Unanswered => "no answer",
            EndCause::Moved => "the peer has another address",
            EndCause::Stopped => "it is no longer needed",
        })
    }
}

/// What the caller is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeeperAction {
    /// Dial `address`, greet, and tell by [`LinkKeeper::handle_dialled`] or [`LinkKeeper::handle_failed`].
    Dial {
        dial: DialId,
        address: String,
        cause: DialCause,
        /// For how long it is to wait for an answer.
        patience: Duration,
    },
    /// Give a dial up. Nothing need be told of it.
    GiveUp { dial: DialId, cause: EndCause },
    /// Move the connection to another socket.
    Rebind { connection: DialId },
    /// Use this connection from now on.
    Adopt { connection: DialId },
    /// Close this connection, which is not the adopted one, or is no longer needed.
    Close { connection: DialId, cause: EndCause },
    /// Let it be known.
    Report(KeeperReport),
}

/// What has changed about a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeeperReport {
    Up {
        connection: DialId,
        address: String,
        /// From the dial to the peer's welcome.
        took: Duration,
        /// The connection whose place it took, if one stood.
        replaced: Option<DialId>,
    },
    Silent {
        connection: DialId,
        silence: Duration,
        /// How long a silence would have been normal.
        allowed: Duration,
    },
    HeardAgain {
        connection: DialId,
        silence: Duration,
    },
    Down {
        connection: DialId,
        cause: String,
        lasted: Duration,
    },
    DialFailed {
        dial: DialId,
        address: String,
        cause: String,
        took: Duration,
        /// Until the next dial.
        next_in: Duration,
    },
}

/// The dialling end of one link.
#[derive(Debug)]
pub struct LinkKeeper {
    address: String,
    next_dial: u64,
    /// Under way, oldest first. At most [`MAX_DIALS`].
    dials: Vec<Dial>,
    /// The connection in use.
    current: Option<Current>,
    /// When the next dial is due, and why.
    due: Option<(MonotonicTime, DialCause)>,
    /// Dials since the last connection that lasted.
    fruitless: u32,
    /// Of the last connection, for how long a dial may be unanswered before it is joined by another.
    round_trip: Duration,
    looked_at: MonotonicTime,
    random: u64,
    stopped: bool,
    actions: VecDeque<KeeperAction>,
}

#[derive(Debug)]
struct Dial {
    id: DialId,
    since: MonotonicTime,
    /// It has [`LONG_DIAL_PATIENCE`]. At most one is.
    is_patient: bool,
}

#[derive(Debug)]
struct Current {
    id: DialId,
    address: String,
    since: MonotonicTime,
    heard_at: MonotonicTime,
    suspicion: Duration,
    silence: Option<Silence>,
}

#[derive(Debug)]
struct Silence {
    /// Another socket is tried after this much silence.
    next_rebind: Duration,
}

impl LinkKeeper {
    /// Dials `address` at once. `seed` is drawn by the caller.
    pub fn new(now: MonotonicTime, address: String, seed: u64) -> LinkKeeper {
        let mut keeper = LinkKeeper::resting(now, address, seed);
        keeper.due = Some((now, DialCause::First));
        keeper.pump(now);
        keeper
    }

    /// Keeps a connection that stands already. It is [`DialId`] 0.
    pub fn with_connection(now: MonotonicTime, address: String, seed: u64) -> LinkKeeper {
        let mut keeper = LinkKeeper::resting(now, address, seed);
        keeper.current = Some(keeper.connection(now, DialId(0)));
        keeper
    }

    fn resting(now: MonotonicTime, address: String, seed: u64) -> LinkKeeper {
        LinkKeeper {
            address,
            next_dial: 1,
            dials: Vec::new(),
            current: None,
            due: None,
            fruitless: 0,
            round_trip: Duration::ZERO,
            looked_at: now,
            random: seed,
            stopped: false,
            actions: VecDeque::new(),
        }
    }

    fn connection(&self, now: MonotonicTime, id: DialId) -> Current {
        Current {
            id,
            address: self.address.clone(),
            since: now,
            heard_at: now,
            suspicion: MINIMUM_SUSPICION,
            silence: None,
        }
    }

    /// What to do next; `None` when there is nothing left.
    pub fn poll_action(&mut self) -> Option<KeeperAction> {
        self.actions.pop_front()
    }

    /// The connection in use.
    pub fn current(&self) -> Option<DialId> {
        self.current.as_ref().map(|current| current.id)
    }

    /// Whether nothing has been heard on the connection in use for longer than is normal.
    pub fn is_silent(&self) -> bool {
        self.current.as_ref().is_some_and(|c| c.silence.is_some())
    }

    /// Where the peer is dialled.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Anything from the peer has arrived on a connection.
    pub fn handle_heard(&mut self, now: MonotonicTime, connection: DialId) {
        let Some(current) = self.current_if(connection) else {
            return;
        };
        let silence = now.since(current.heard_at);
        current.heard_at = current.heard_at.max(now);
        if current.silence.take().is_none() {
            return;
        }
        let at = current.address.clone();
        self.report(KeeperReport::HeardAgain {
            connection,
            silence,
        });
        if at == self.address {
            self.due = None;
            self.fruitless = 0;
            self.give_up_all(EndCause::HeardAgain);
        }
    }

    /// The round trip of a connection, as it is estimated now.
    pub fn handle_round_trip(
        &mut self,
        connection: DialId,
        smoothed: Duration,
        variance: Duration,
    ) {
        if let Some(current) = self.current_if(connection) {
            current.suspicion = suspicion_time(smoothed, variance);
            self.round_trip = smoothed;
        }
    }

    /// A dial has been answered, and the peer is who it should be.
    pub fn handle_dialled(&mut self, now: MonotonicTime, dial: DialId) {
        let Some(place) = self.dials.iter().position(|known| known.id == dial) else {
            // It was given up while its answer was on the way.
            self.actions.push_back(KeeperAction::Close {
                connection: dial,
                cause: EndCause::Superseded,
            });
            return;
        };
        let took = now.since(self.dials.remove(place).since);
        let new = self.connection(now, dial);
        let replaced = self.current.replace(new).map(|old| old.id);
        self.due = None;
        self.actions
            .push_back(KeeperAction::Adopt { connection: dial });
        self.report(KeeperReport::Up {
            connection: dial,
            address: self.address.clone(),
            took,
            replaced,
        });
        if let Some(old) = replaced {
            self.actions.push_back(KeeperAction::Close {
                connection: old,
                cause: EndCause::Superseded,
            });
        }
        self.give_up_all(EndCause::Superseded);
    }

    /// A dial has failed.
    pub fn handle_failed(&mut self, now: MonotonicTime, dial: DialId, cause: &str) {
        let Some(place) = self.dials.iter().position(|known| known.id == dial) else {
            return;
        };
        let took = now.since(self.dials.remove(place).since);
        let pause = self.pause();
        // A dial that was to join this one comes no later than if it had not failed.
        let at = match self.due {
            Some((at, _)) => at.min(now + pause),
            None => now + pause,
        };
        self.due = Some((at, DialCause::Unanswered));
        self.report(KeeperReport::DialFailed {
            dial,
            address: self.address.clone(),
            cause: cause.to_owned(),
            took,
            next_in: at.since(now),
        });
        self.pump(now);
    }

    /// A connection is gone.
    pub fn handle_closed(&mut self, now: MonotonicTime, connection: DialId, cause: &str) {
        if self.current_if(connection).is_none() {
            return;
        }
        let Some(gone) = self.current.take() else {
            return;
        };
        let lasted = now.since(gone.since);
        if lasted >= LASTING {
            self.fruitless = 0;
        }
        self.report(KeeperReport::Down {
            connection,
            cause: cause.to_owned(),
            lasted,
        });
        let pause = self.pause();
        let at = match self.due {
            Some((at, _)) => at.min(now + pause),
            None => now + pause,
        };
        self.due = Some((at, DialCause::Lost));
        self.pump(now);
    }

    /// The peer is to be reached at `address` from now on. A connection to where it was stays in use until one to the new
    /// address stands.
    pub fn handle_address(&mut self, now: MonotonicTime, address: &str) {
        if self.address == address || self.stopped {
            return;
        }
        address.clone_into(&mut self.address);
        self.give_up_all(EndCause::Moved);
        self.fruitless = 0;
        let is_there = self
            .current
            .as_ref()
            .is_some_and(|current| current.address == address && current.silence.is_none());
        self.due = (!is_there).then_some((now, DialCause::Moved));
        self.pump(now);
    }

    /// Nobody needs the link any more.
    pub fn handle_stop(&mut self) {
        self.stopped = true;
        self.due = None;
        self.give_up_all(EndCause::Stopped);
        if let Some(current) = self.current.take() {
            self.actions.push_back(KeeperAction::Close {
                connection: current.id,
                cause: EndCause::Stopped,
            });
        }
    }

    /// Time has passed. What has been heard must be told before.
    pub fn handle_look(&mut self, now: MonotonicTime) {
        let held_up = now.since(self.looked_at) > HELD_UP;
        self.looked_at = now;
        if !held_up {
            self.watch_silence(now);
        }
        self.pump(now);
    }

    fn watch_silence(&mut self, now: MonotonicTime) {
        let Some(current) = &mut self.current else {
            return;
        };
        let (connection, allowed) = (current.id, current.suspicion);
        let silence = now.since(current.heard_at);
        match &mut current.silence {
            None if silence > allowed => {
                current.silence = Some(Silence {
                    next_rebind: 2 * silence,
                });
                self.report(KeeperReport::Silent {
                    connection,
                    silence,
                    allowed,
                });
                self.actions.push_back(KeeperAction::Rebind { connection });
                // The move gets a chance first: it costs the peer nothing, and the sessions nothing.
                if self.due.is_none() && self.dials.is_empty() {
                    self.due = Some((now + allowed / 2, DialCause::Silence));
                }
            }
            Some(known) if silence >= known.next_rebind => {
                known.next_rebind = 2 * silence;
                self.actions.push_back(KeeperAction::Rebind { connection });
            }
            _ => {}
        }
    }

    /// Makes the dial that is due.
    fn pump(&mut self, now: MonotonicTime) {
        let Some((at, cause)) = self.due else {
            return;
        };
        if self.stopped || now < at {
            return;
        }
        if self.dials.len() >= MAX_DIALS
            && let Some(place) = self.dials.iter().position(|dial| !dial.is_patient)
        {
            let oldest = self.dials.remove(place).id;
            self.actions.push_back(KeeperAction::GiveUp {
                dial: oldest,
                cause: EndCause::Unanswered,
            });
        }
        let is_patient =
            self.fruitless >= PATIENT_AFTER && self.dials.iter().all(|dial| !dial.is_patient);
        let dial = DialId(self.next_dial);
        self.next_dial += 1;
        self.fruitless = self.fruitless.saturating_add(1);
        self.dials.push(Dial {
            id: dial,
            since: now,
            is_patient,
        });
        self.actions.push_back(KeeperAction::Dial {
            dial,
            address: self.address.clone(),
            cause,
            patience: if is_patient {
                LONG_DIAL_PATIENCE
            } else {
                DIAL_PATIENCE
            },
        });
        // A slow path must have the time to answer: two round trips for the handshake, one for the welcome, and one to spare.
        let patience = JOIN_AFTER.max(4 * self.round_trip);
        self.due = Some((now + patience.max(self.pause()), DialCause::Unanswered));
    }

    fn current_if(&mut self, connection: DialId) -> Option<&mut Current> {
        self.current
            .as_mut()
            .filter(|current| current.id == connection)
    }

    fn give_up_all(&mut self, cause: EndCause) {
        for dial in std::mem::take(&mut self.dials) {
            self.actions.push_back(KeeperAction::GiveUp {
                dial: dial.id,
                cause,
            });
        }
    }

    fn report(&mut self, report: KeeperReport) {
        self.actions.push_back(KeeperAction::Report(report));
    }

    /// The pause after that many dials in vain.
    fn pause(&mut self) -> Duration {
        let Some(doublings) = self.fruitless.checked_sub(1) else {
            return Duration::ZERO;
        };
        let full = 1u32
            .checked_shl(doublings)
            .and_then(|factor| FIRST_REDIAL_PAUSE.checked_mul(factor))
            .unwrap_or(MAX_REDIAL_PAUSE)
            .min(MAX_REDIAL_PAUSE);
        // Whole milliseconds between half of it and all of it.
        let half = full.as_millis() as u64 / 2;
        Duration::from_millis(half + self.draw() % (half + 1))
    }

    /// splitmix64: for jitter, which nobody need be unable to guess.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ADDRESS: &str = "db1:9292";

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::ZERO + Duration::from_millis(millis)
    }

    fn dials(keeper: &mut LinkKeeper) -> Vec<DialId> {
        let mut made = Vec::new();
        while let Some(action) = keeper.poll_action() {
            if let KeeperAction::Dial { dial, .. } = action {
                made.push(dial);
            }
        }
        made
    }

    #[test]
    fn a_lost_link_is_dialled_at_once_and_a_leader_that_is_down_each_second_at_least() {
        for seed in 0..50 {
            let mut keeper = LinkKeeper::new(at(0), ADDRESS.to_owned(), seed);
            let first = dials(&mut keeper)[0];
            keeper.handle_dialled(at(10), first);
            keeper.handle_closed(at(5000), first, "gone");
            let mut last = dials(&mut keeper)[0];
            let mut pauses = Vec::new();
            let mut now = 5000;
            while pauses.len() < 8 {
                keeper.handle_failed(at(now), last, "nothing listens there");
                let failed = now;
                last = loop {
                    now += 1;
                    keeper.handle_look(at(now));
                    if let [dial] = dials(&mut keeper)[..] {
                        break dial;
                    }
                };
                pauses.push(now - failed);
            }
            for (pause, full) in pauses
                .iter()
                .zip([50, 100, 200, 400, 800, 1000, 1000, 1000])
            {
                let expected = full / 2..=full;
                assert!(expected.contains(pause), "seed {seed}: {pauses:?}");
            }
        }
    }

    #[test]
    fn a_leader_that_flaps_is_dialled_less_and_less_often_until_it_stays() {
        for seed in 0..50 {
            let mut keeper = LinkKeeper::new(at(0), ADDRESS.to_owned(), seed);
            let mut dial = dials(&mut keeper)[0];
            let mut pauses = Vec::new();
            let mut now = 0;
            let mut flap = |keeper: &mut LinkKeeper, lasts: u64| {
                now += 5;
                keeper.handle_dialled(at(now), dial);
                now += lasts;
                keeper.handle_closed(at(now), dial, "it died");
                let closed = now;
                dial = loop {
                    if let [next] = dials(keeper)[..] {
                        break next;
                    }
                    now += 1;
                    keeper.handle_look(at(now));
                };
                now - closed
            };
            // It answers, welcomes its follower, and dies: each time, for minutes.
            for _ in 0..8 {
                pauses.push(flap(&mut keeper, 20));
            }
            for (pause, full) in pauses
                .iter()
                .zip([50, 100, 200, 400, 800, 1000, 1000, 1000])
            {
                let expected = full / 2..=full;
                assert!(expected.contains(pause), "seed {seed}: {pauses:?}");
            }
            // Once it has stayed, its next loss is mended at once.
            assert_eq!(flap(&mut keeper, LASTING.as_millis() as u64), 0);
        }
    }

    /// Whatever happens in whatever order: dials and connections stay bounded, one connection is in use at most and is one
    /// that was dialled, nothing is closed or given up that is not there, and a link that nobody has stopped is never left
    /// without a connection and without a dial to come.
    #[test]
    fn no_order_of_events_leaves_a_link_for_dead() {
        for seed in 0..3000 {
            let mut random = LinkKeeper::resting(at(0), ADDRESS.to_owned(), seed);
            let mut keeper = LinkKeeper::new(at(0), ADDRESS.to_owned(), seed);
            let mut under_way = BTreeSet::new();
            let mut standing = BTreeSet::new();
            let mut now = 0;
            for step in 0..200 {
                while let Some(action) = keeper.poll_action() {
                    let story = format!("seed {seed}, step {step}: {action:?}");
                    match action {
                        KeeperAction::Dial { dial, .. } => {
                            assert!(under_way.insert(dial), "{story}")
                        }
                        KeeperAction::GiveUp { dial, .. } => {
                            assert!(under_way.remove(&dial), "{story}");
                        }
                        KeeperAction::Adopt { connection } => {
                            assert!(standing.contains(&connection), "{story}");
                        }
                        KeeperAction::Close { connection, .. } => {
                            assert!(standing.remove(&connection), "{story}");
                        }
                        KeeperAction::Rebind { connection } => {
                            assert_eq!(keeper.current(), Some(connection), "{story}");
                        }
                        KeeperAction::Report(_) => {}
                    }
                }
                let story = format!("seed {seed}, step {step}: {keeper:?}");
                assert!(under_way.len() <= MAX_DIALS, "{story}");
                assert!(standing.len() <= 1, "{story}");
                assert_eq!(keeper.current(), standing.first().copied(), "{story}");
                assert!(
                    keeper.current().is_some() || keeper.due.is_some(),
                    "{story}"
                );

                let pick = |from: &BTreeSet<DialId>, draw: u64| {
                    let count = from.len().max(1) as u64;
                    from.iter().nth((draw % count) as usize).copied()
                };
                let (draw, choice) = (random.draw(), random.draw() % 8);
                match choice {
                    0 | 1 => {
                        now += 25;
                        keeper.handle_look(at(now));
                    }
                    2 => now += draw % 400,
                    3 => {
                        if let Some(dial) = pick(&under_way, draw) {
                            under_way.remove(&dial);
                            standing.insert(dial);
                            keeper.handle_dialled(at(now), dial);
                        }
                    }
                    4 => {
                        if let Some(dial) = pick(&under_way, draw) {
                            under_way.remove(&dial);
                            keeper.handle_failed(at(now), dial, "refused");
                        }
                    }
                    5 => {
                        if let Some(connection) = pick(&standing, draw) {
                            keeper.handle_heard(at(now), connection);
                        }
                    }
                    6 if draw.is_multiple_of(4) => {
                        if let Some(connection) = pick(&standing, draw) {
                            standing.remove(&connection);
                            keeper.handle_closed(at(now), connection, "gone");
                        }
                    }
                    7 if draw.is_multiple_of(4) => {
                        keeper.handle_address(
                            at(now),
                            ["db1:9292", "db2:9292"][(draw / 4 % 2) as usize],
                        );
                    }
                    _ => {
                        now += 25;
                        keeper.handle_look(at(now));
                    }
                }
            }
        }
    }
}
