//! Copies of what the live lanes of a replication connection carry, sent as datagrams while the link loses packets.
//!
//! A lane is in order: what lies behind a lost packet waits for a round trip and more until that has been sent again, and at 5 %
//! loss, with a few hundred packets under way, some packet always is. A copy that leaves a few ms later fills the hole when the
//! copy was not lost too. It is no more than that: what a copy does not bring comes by the lane.
//!
//! Copies double what a link carries, or treble it, so they are sent only while it has room to spare: a quarter of its window at least.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::sync::mpsc;

use super::clock::Clock;
use crate::transport::{CopyPolicy, CopyQueue, CopySink, LanePiece, PathSigns};
use crate::types::MonotonicTime;
use crate::wire::LaneCopy;

/// A timer that is so late shows that the processors are busy, and copies would cost what they are to bring: those that wait then are
/// dropped. A timer's own grain is a millisecond.
const LATE: Duration = Duration::from_millis(3);
/// Copies that wait until a lane takes them up. At the cap they are dropped.
const MAX_WAITING_COPIES: usize = 512;

/// The leader's end: watches the link, and switches copies on and off.
#[derive(Debug)]
pub(super) struct CopySwitch {
    policy: CopyPolicy,
    sink: CopySink,
}

impl CopySwitch {
    pub(super) fn new(sink: CopySink) -> CopySwitch {
        CopySwitch {
            policy: CopyPolicy::default(),
            sink,
        }
    }

    /// True when they have just been switched on or off.
    pub(super) fn look(&mut self, now: MonotonicTime, connection: &Connection) -> bool {
        let path = connection.stats().path;
        self.policy
            .note(now, path.sent_packets, path.lost_packets, path.rtt);
        let copies = self.policy.copies();
        let before = self.sink.copies();
        self.sink.set_copies(copies);
        (copies > 0) != (before > 0)
    }

    pub(super) fn is_on(&self) -> bool {
        self.sink.copies() > 0
    }
}

/// Sends what the lanes tell, a while after them. Ends with the connection. `count` is told of the bytes.
pub(super) async fn send(
    clock: Clock,
    connection: &Connection,
    (sink, written): (&CopySink, &mut mpsc::Receiver<LanePiece>),
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
        while let Some(piece) = queue.pop(clock.now(), most) {
            let is_free = signs
                .as_ref()
                .is_some_and(|signs| signs.in_flight() <= signs.window() / 4 * 3);
            if !is_free {
                // What waits any longer comes too late.
                queue.clear();
                break;
            }
            let LanePiece {
                lane,
                offset,
                bytes,
            } = piece;
            let copy = LaneCopy {
                lane,
                offset,
                bytes,
            };
            added += copy.bytes.len() as u64;
            // Waits for room, so that no heartbeat is dropped for a copy.
            if let Err(error) = connection.send_datagram_wait(copy.encode()).await {
                return format!("cannot send a copy: {error}");
            }
        }
        count(added);
        sent_until = clock.now();
    }
}

/// The follower's end: which lane takes the copies of which. At most as many as the leader may open.
#[derive(Debug, Default)]
pub(super) struct CopyRouter {
    lanes: Mutex<HashMap<u16, mpsc::Sender<LanePiece>>>,
}

impl CopyRouter {
    /// Where the copies of a lane arrive from now on.
    pub(super) fn open(&self, lane: u16) -> mpsc::Receiver<LanePiece> {
        let (pieces, arriving) = mpsc::channel(MAX_WAITING_COPIES);
        self.lock().insert(lane, pieces);
        arriving
    }

    /// A copy has come. One of a lane that is not there, or that does not take what came before, is dropped: the lane itself brings
    /// what it is of.
    pub(super) fn deliver(&self, copy: LaneCopy) {
        let LaneCopy {
            lane,
            offset,
            bytes,
        } = copy;
        if let Some(pieces) = self.lock().get(&lane) {
            let _ = pieces.try_send(LanePiece {
                lane,
                offset,
                bytes,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, mpsc::Sender<LanePiece>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
