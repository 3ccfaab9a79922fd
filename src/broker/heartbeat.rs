//! Signs of life on a replication connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::Connection;

use super::clock::Clock;
use super::event::Event;
use super::shared::Shared;
use crate::replication::suspicion_time;
use crate::transport::{PathSigns, round_trip};
use crate::types::{MonotonicTime, NodeId};
use crate::wire::{Datagram, Heartbeat, LaneCopy};

/// Both ends send one this often, as a datagram: lost stream data cannot hold it up, and after a blackout it is the other
/// end's packet that wakes a sender.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_millis(100);

/// After this much silence an end sends twice as often, for a while, and is allowed to though its window be full: after a
/// blackout the first heartbeat that gets through is what everything else waits for.
const QUIET_AFTER: Duration = Duration::from_millis(200);
const QUIET_HEARTBEAT_EVERY: Duration = Duration::from_millis(50);
const QUIET_UNTIL: Duration = Duration::from_secs(2);

/// When the peer was last heard on one connection.
#[derive(Debug)]
pub(super) struct LastHeard {
    clock: Clock,
    micros: AtomicU64,
}

impl LastHeard {
    pub(super) fn now(clock: Clock) -> LastHeard {
        LastHeard {
            clock,
            micros: AtomicU64::new(clock.now().as_micros()),
        }
    }

    pub(super) fn touch(&self) {
        self.micros
            .fetch_max(self.clock.now().as_micros(), Ordering::Relaxed);
    }

    pub(super) fn at(&self) -> MonotonicTime {
        MonotonicTime::from_micros(self.micros.load(Ordering::Relaxed))
    }

    pub(super) fn silence(&self) -> Duration {
        self.clock.elapsed_since(self.at())
    }
}

/// Sends heartbeats until the connection is gone.
pub(super) async fn send(connection: &Connection, heard: &LastHeard) -> String {
    let mut sequence = 0;
    let mut allowed = false;
    loop {
        let silence = heard.silence();
        let quiet = silence >= QUIET_AFTER;
        if quiet || allowed {
            if let Some(signs) = PathSigns::of(connection) {
                if quiet {
                    signs.allow_one_more();
                } else {
                    signs.allow_no_more();
                }
            }
            allowed = quiet;
        }
        sequence += 1;
        // A full datagram buffer drops the oldest one, which is the one that matters least.
        if let Err(error) = connection.send_datagram(Heartbeat { sequence }.encode()) {
            return format!("cannot send a heartbeat: {error}");
        }
        let every = if quiet && silence < QUIET_UNTIL {
            QUIET_HEARTBEAT_EVERY
        } else {
            HEARTBEAT_EVERY
        };
        tokio::time::sleep(every).await;
    }
}

/// Receives datagrams until the connection is gone, or brings one that is none. Each is a sign of life; `take_copy` is given the
/// copies among them.
pub(super) async fn receive(
    connection: &Connection,
    heard: &LastHeard,
    take_copy: impl Fn(LaneCopy),
) -> String {
    loop {
        let datagram = match connection.read_datagram().await {
            Ok(datagram) => Datagram::decode(datagram),
            Err(error) => return error.to_string(),
        };
        heard.touch();
        match datagram {
            Ok(Some(Datagram::LaneCopy(copy))) => take_copy(copy),
            Ok(Some(Datagram::Heartbeat(_)) | None) => {}
            Err(error) => return error.to_string(),
        }
    }
}

/// Tells the owner threads when the peer was heard.
pub(super) async fn report(
    shared: &Shared,
    connection: &Connection,
    node: NodeId,
    heard: &LastHeard,
) -> String {
    let mut every = tokio::time::interval(HEARTBEAT_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        every.tick().await;
        for shard in shared.shards() {
            let event = Event::Heard {
                node,
                at: heard.at(),
                suspicion: suspicion_of(connection),
                rtt: connection.rtt(),
            };
            // A full mailbox means that the thread is busy with this peer's traffic or others'; the next report will do.
            let _ = shard.mailbox.try_send(event);
        }
    }
}

/// How long a silence of the peer is normal.
pub(super) fn suspicion_of(connection: &Connection) -> Duration {
    let (rtt, variance) = round_trip(connection);
    suspicion_time(rtt, variance)
}
