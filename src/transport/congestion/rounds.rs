//! What one round trip of acknowledgements tells: how much arrived, how much was lost, and how long it took.
//!
//! A round ends when something that was sent after its start is acknowledged. Packets that are acknowledged in a round were
//! therefore sent in the one before: a changed window shows itself two rounds later.

use std::time::{Duration, Instant};

/// One finished round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Round {
    pub(super) duration: Duration,
    /// Bytes acknowledged, and bytes declared lost.
    pub(super) acked: u64,
    pub(super) lost: u64,
    /// The shortest round trip: the standing queue without jitter and bursts. `None` if nothing was acknowledged.
    pub(super) min_rtt: Option<Duration>,
    pub(super) mean_rtt: Duration,
    /// The most that was in flight at once, in bytes.
    pub(super) peak_in_flight: u64,
    /// What was in flight when an acknowledgement came, in the mean of them, in bytes.
    pub(super) mean_in_flight: u64,
    /// The share of acknowledgements that brought a mark (ECN), 0 to 1.
    pub(super) marked: f64,
}

impl Round {
    /// The share of what was sent that was lost, 0 to 1.
    pub(super) fn loss(&self) -> f64 {
        let sent = self.acked + self.lost;
        if sent == 0 {
            return 0.0;
        }
        self.lost as f64 / sent as f64
    }

    /// Bytes a second that the path took, whether they arrived or not.
    pub(super) fn send_rate(&self) -> f64 {
        (self.acked + self.lost) as f64 / self.duration.as_secs_f64().max(1e-6)
    }

    /// Bytes a second that arrived.
    pub(super) fn delivery_rate(&self) -> f64 {
        self.acked as f64 / self.duration.as_secs_f64().max(1e-6)
    }
}

/// Collects the round that is under way.
#[derive(Clone, Debug)]
pub(super) struct Rounds {
    started: Instant,
    acked: u64,
    lost: u64,
    min_rtt: Option<Duration>,
    rtt_sum: Duration,
    samples: u32,
    peak_in_flight: u64,
    in_flight_sum: u64,
    marks: u32,
    /// Of the batch of acknowledgements that is being processed: its bytes and its newest packet.
    batch_acked: u64,
    batch_newest_sent: Option<Instant>,
}

impl Rounds {
    pub(super) fn new(now: Instant) -> Rounds {
        Rounds {
            started: now,
            acked: 0,
            lost: 0,
            min_rtt: None,
            rtt_sum: Duration::ZERO,
            samples: 0,
            peak_in_flight: 0,
            in_flight_sum: 0,
            marks: 0,
            batch_acked: 0,
            batch_newest_sent: None,
        }
    }

    pub(super) fn on_ack(&mut self, sent: Instant, bytes: u64) {
        self.batch_acked += bytes;
        self.batch_newest_sent = self.batch_newest_sent.max(Some(sent));
    }

    pub(super) fn on_loss(&mut self, bytes: u64) {
        self.lost += bytes;
    }

    pub(super) fn on_mark(&mut self) {
        self.marks += 1;
    }

    /// Ends a batch of acknowledgements. Returns its round trip, that of its newest packet because the others waited for the
    /// acknowledgement, and the round if it has ended.
    pub(super) fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
    ) -> Option<(Duration, Option<Round>)> {
        let newest = self.batch_newest_sent.take()?;
        let acked = std::mem::take(&mut self.batch_acked);
        let rtt = now.saturating_duration_since(newest);
        self.acked += acked;
        self.peak_in_flight = self.peak_in_flight.max(in_flight + acked);
        self.in_flight_sum += in_flight + acked;
        self.min_rtt = Some(self.min_rtt.map_or(rtt, |min| min.min(rtt)));
        self.rtt_sum += rtt;
        self.samples += 1;
        if newest < self.started {
            return Some((rtt, None));
        }
        let round = Round {
            duration: now.saturating_duration_since(self.started),
            acked: self.acked,
            lost: self.lost,
            min_rtt: self.min_rtt,
            mean_rtt: self.rtt_sum / self.samples,
            peak_in_flight: self.peak_in_flight,
            mean_in_flight: self.in_flight_sum / u64::from(self.samples),
            marked: f64::from(self.marks.min(self.samples)) / f64::from(self.samples),
        };
        *self = Rounds::new(now);
        Some((rtt, Some(round)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_round_ends_with_the_first_packet_sent_after_its_start() {
        let start = Instant::now();
        let mut rounds = Rounds::new(start + ms(5));
        rounds.on_ack(start, 1000);
        rounds.on_ack(start + ms(1), 1000);
        let (rtt, round) = rounds.on_end_acks(start + ms(21), 500).unwrap();
        assert_eq!((rtt, round), (ms(20), None));
        rounds.on_loss(1000);
        rounds.on_mark();
        rounds.on_ack(start + ms(5), 1000);
        let (rtt, round) = rounds.on_end_acks(start + ms(35), 0).unwrap();
        let round = round.unwrap();
        assert_eq!(rtt, ms(30));
        assert_eq!((round.acked, round.lost), (3000, 1000));
        assert_eq!(
            (round.min_rtt, round.mean_rtt, round.duration),
            (Some(ms(20)), ms(25), ms(30))
        );
        assert_eq!((round.peak_in_flight, round.mean_in_flight), (2500, 1750));
        assert_eq!(round.loss(), 0.25);
        assert_eq!(round.delivery_rate(), 100_000.0);
        assert_eq!(round.marked, 0.5);
        assert_eq!(round.send_rate(), 4000.0 / 0.03);
        // The next one starts empty.
        rounds.on_ack(start + ms(35), 10);
        let (_, round) = rounds.on_end_acks(start + ms(50), 0).unwrap();
        assert_eq!(round.map(|r| (r.acked, r.lost)), Some((10, 0)));
    }

    #[test]
    fn a_batch_that_acknowledges_nothing_ends_nothing() {
        let start = Instant::now();
        assert_eq!(Rounds::new(start).on_end_acks(start + ms(9), 0), None);
    }
}
