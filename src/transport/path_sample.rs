//! How good the path of a connection is: measured by a short burst of datagrams, which are never sent again.

use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use tokio::time::{Instant, sleep};

/// Datagrams of one sample, at most: some 60 KB.
pub(super) const MAX_SAMPLE_DATAGRAMS: u32 = 500;
const DATAGRAM_BYTES: usize = 120;
/// Between two datagrams: a burst at line rate would measure the first queue and not the path.
const SPACING: Duration = Duration::from_millis(2);
/// How many round trips, and how long at least, the last datagrams have to be acknowledged or given up.
const SETTLE_ROUND_TRIPS: u32 = 3;
const SETTLE_AT_LEAST: Duration = Duration::from_millis(20);
const SETTLE_AT_MOST: Duration = Duration::from_secs(3);

/// What a burst met with, and what the connection has found of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathSample {
    /// Smoothed.
    pub rtt: Duration,
    /// Packets of this end, from the burst's begin on, and how many of them were lost. Losses of the other direction are not in
    /// it.
    pub sent_packets: u64,
    pub lost_packets: u64,
    /// The largest UDP payload known to pass, in bytes.
    pub mtu: u16,
    /// How often larger packets had to be given up, because the path swallowed them.
    pub black_holes: u64,
}

impl PathSample {
    /// Of a thousand packets, how many were lost.
    pub fn lost_per_mille(&self) -> u64 {
        (self.lost_packets * 1000)
            .checked_div(self.sent_packets)
            .unwrap_or(0)
    }
}

/// Sends `datagrams` of them, at most [`MAX_SAMPLE_DATAGRAMS`], and waits until it is known what became of them. The peer drops
/// them. Ends early when the connection does.
pub async fn sample_path(connection: &Connection, datagrams: u32) -> PathSample {
    let before = connection.stats().path;
    let payload = Bytes::from_static(&[0; DATAGRAM_BYTES]);
    for _ in 0..datagrams.min(MAX_SAMPLE_DATAGRAMS) {
        if connection
            .send_datagram_wait(payload.clone())
            .await
            .is_err()
        {
            break;
        }
        sleep(SPACING).await;
    }
    let settle = connection.rtt() * SETTLE_ROUND_TRIPS;
    let until = Instant::now() + settle.clamp(SETTLE_AT_LEAST, SETTLE_AT_MOST);
    tokio::select! {
        _ = connection.closed() => {}
        () = tokio::time::sleep_until(until) => {}
    }
    let after = connection.stats().path;
    PathSample {
        rtt: after.rtt,
        sent_packets: after.sent_packets.saturating_sub(before.sent_packets),
        lost_packets: after.lost_packets.saturating_sub(before.lost_packets),
        mtu: after.current_mtu,
        black_holes: after.black_holes_detected,
    }
}
