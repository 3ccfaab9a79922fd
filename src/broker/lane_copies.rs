//! Copies of what the live lanes of a replication connection carry, sent as datagrams while the link loses packets.
//!
//! A lane is in order: what lies behind a lost packet waits for a round trip and more until that has been sent again, and at 5 %
//! loss, with a few hundred packets under way, some packet always is. A copy that leaves a few ms later fills the hole when the
//! copy was not lost too. It is no more than that: what a copy does not bring comes by the lane.
//!
//! Copies double what a link carries, or treble it, so they are sent only while little is under way, and the window has room for them.
//! How full the window is says little by itself: a controller that follows the delivery rate has half of it in use under any load.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, SendDatagramError};
use tokio::sync::mpsc;

use super::clock::Clock;
use crate::transport::{AheadBudget, CopyPolicy, CopyQueue, CopySink, LaneReader, PathSigns};
use crate::types::MonotonicTime;
use crate::wire::LaneCopy;

/// The most frame bytes that a follower may not have acknowledged yet: beyond it, or beyond the window, the link carries bulk, for which
/// copies are lost throughput.
const MOST_UNDER_WAY: usize = 512 * 1024;
/// A timer that is so late shows that the processors are busy, and copies would cost what they are to bring: those that wait then are
/// dropped. Three milliseconds were too strict for sixteen partitions on two cores (`benches/RESULTS.md`): a copy that leaves late still
/// saves most of a round trip.
const LATE: Duration = Duration::from_millis(8);
/// Copies that wait until a lane takes them up. At the cap they are dropped.
const MAX_WAITING_COPIES: usize = 512;

/// What the lanes of one connection may hold in memory of bytes that came before others, in bytes.
const MAX_AHEAD_OF_ALL: usize = 32 * 1024 * 1024;

/// The leader's end: watches the link, and switches copies on and off.
#[derive(Debug)]
pub(super) struct CopySwitch {
    policy: CopyPolicy,
    sink: CopySink,
    /// Whether the node sends copies at all.
    allowed: bool,
}

impl CopySwitch {
    pub(super) fn new(sink: CopySink, allowed: bool) -> CopySwitch {
        CopySwitch {
            policy: CopyPolicy::default(),
            sink,
            allowed,
        }
    }

    /// `under_way`: frame bytes that were sent and are not acknowledged. True when copies have just begun to be sent on this link, or are
    /// no longer.
    pub(super) fn look(
        &mut self,
        now: MonotonicTime,
        connection: &Connection,
        under_way: usize,
    ) -> bool {
        let was_on = self.is_on();
        let path = connection.stats().path;
        self.policy
            .note(now, path.sent_packets, path.lost_packets, path.rtt);
        let is_bulk = under_way > MOST_UNDER_WAY;
        self.sink
            .set_copies(if is_bulk { 0 } else { self.copies() });
        self.is_on() != was_on
    }

    /// Whether the link loses enough for copies, and they may be sent.
    pub(super) fn is_on(&self) -> bool {
        self.copies() > 0
    }

    fn copies(&self) -> u8 {
        if self.allowed {
            self.policy.copies()
        } else {
            0
        }
    }
}

/// Sends what the lanes tell, a while after them. Ends with the connection. `under_way` is as [`CopySwitch::look`] wants it, `count` is
/// told of the bytes that were sent.
pub(super) async fn send(
    clock: Clock,
    connection: &Connection,
    (sink, written): (&CopySink, &mut mpsc::Receiver<LaneCopy>),
    under_way: impl Fn() -> usize,
    count: impl Fn(u64),
) -> String {
    let mut queue = CopyQueue::default();
    // A copy that is late because others were being sent until then is not late.
    let mut sent_until = MonotonicTime::ZERO;
    loop {
        let until_due = queue.due().map(|due| due.since(clock.now()));
        tokio::select! {
            piece = written.recv() => match piece {
                Some(piece) => {
                    queue.push(clock.now(), piece, sink.copies());
                    continue;
                }
                None => return "its lanes are gone".to_owned(),
            },
            () = tokio::time::sleep(until_due.unwrap_or_default()), if until_due.is_some() => {}
        }
        let due = queue.due().map(|due| due.max(sent_until));
        if due.is_some_and(|due| clock.now().since(due) > LATE) {
            queue.clear();
            continue;
        }
        let Some(most) = connection
            .max_datagram_size()
            .and_then(|size| size.checked_sub(LaneCopy::HEADER_BYTES))
            .filter(|most| *most > 0)
        else {
            queue.clear();
            continue;
        };
        let signs = PathSigns::of(connection);
        let mut added = 0;
        while let Some(copy) = queue.pop(clock.now(), most) {
            let is_free = signs.as_ref().is_some_and(|signs| {
                let most = signs.window().min(MOST_UNDER_WAY as u64);
                under_way() as u64 <= most && signs.in_flight() <= signs.window() / 4 * 3
            });
            if !is_free {
                // What waits any longer comes too late.
                queue.clear();
                break;
            }
            added += copy.bytes.len() as u64;
            // Waits for room, so that no heartbeat is dropped for a copy.
            match connection.send_datagram_wait(copy.encode()).await {
                Ok(()) => {}
                // The path takes smaller packets since.
                Err(SendDatagramError::TooLarge) => break,
                Err(error) => return format!("cannot send a copy: {error}"),
            }
        }
        count(added);
        sent_until = clock.now();
    }
}

/// The follower's end: which lane takes the copies of which. At most as many as the leader may open.
#[derive(Debug)]
pub(super) struct CopyRouter {
    lanes: Mutex<HashMap<u16, mpsc::Sender<LaneCopy>>>,
    budget: AheadBudget,
}

impl CopyRouter {
    pub(super) fn new() -> CopyRouter {
        CopyRouter {
            lanes: Mutex::default(),
            budget: AheadBudget::new(MAX_AHEAD_OF_ALL),
        }
    }

    /// From now on the copies of a lane go to its reader.
    pub(super) fn open(&self, lane: u16, reader: &mut LaneReader) {
        let (copies, arriving) = mpsc::channel(MAX_WAITING_COPIES);
        self.lock().insert(lane, copies);
        reader.take_copies(arriving, &self.budget);
    }

    /// A copy has come. One of a lane that is not there, or that does not take what came before, is dropped: the lane itself brings
    /// what it is of.
    pub(super) fn deliver(&self, copy: LaneCopy) {
        if let Some(copies) = self.lock().get(&copy.lane) {
            let _ = copies.try_send(copy);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, mpsc::Sender<LaneCopy>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_may_send_no_copies_sends_none_however_much_is_lost() {
        for allowed in [true, false] {
            let (sink, _written) = CopySink::new();
            let mut switch = CopySwitch::new(sink, allowed);
            for sample in 1..20u64 {
                let now = MonotonicTime::from_micros(sample * 100_000);
                let rtt = Duration::from_millis(40);
                switch.policy.note(now, sample * 100, sample * 5, rtt);
            }
            assert_eq!(switch.is_on(), allowed);
        }
    }
}
