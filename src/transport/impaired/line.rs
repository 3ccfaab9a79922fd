//! Packets of one socket that are on their way and not due yet, in the batches that the kernel takes and gives. No clock and no
//! I/O.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::udp::EcnCodepoint;

use super::held::HeldPackets;
use super::model::{Fate, ImpairmentModel};

/// What one socket holds each way, in bytes of payload: 1 Gbit/s for a quarter of a second. What comes beyond it is dropped,
/// as by a router whose memory is full.
pub const MAX_HELD_BYTES: usize = 32 * 1024 * 1024;
/// The same in packets, since small ones cost more than their bytes.
pub const MAX_HELD_PACKETS: usize = 65_536;
/// The kernel takes no longer batch than one IP packet could be.
const MAX_BATCH_BYTES: usize = 65_000;

/// One packet, or several of the same length, of which the last may be shorter: what the kernel takes and gives at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Where it goes, or came from.
    pub(super) remote: SocketAddr,
    /// This end's address, where that is known.
    pub(super) local: Option<IpAddr>,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) contents: Bytes,
    /// Bytes of each packet; of all there are where it is only one.
    pub(super) stride: usize,
}

#[derive(Debug)]
struct Packet {
    remote: SocketAddr,
    local: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    contents: Bytes,
}

/// Packets by the time at which they arrive. See [`MAX_HELD_BYTES`] and [`MAX_HELD_PACKETS`] for its bounds.
#[derive(Debug)]
pub(super) struct DelayLine {
    held: HeldPackets<Packet>,
}

impl Default for DelayLine {
    fn default() -> DelayLine {
        DelayLine {
            held: HeldPackets::new(MAX_HELD_BYTES, MAX_HELD_PACKETS),
        }
    }
}

impl DelayLine {
    /// Each packet of the batch meets its fate by itself, in their order; those that arrive are held until then.
    pub(super) fn send(&mut self, now: Duration, model: &mut ImpairmentModel, batch: Batch) {
        let mut rest = batch.contents;
        while !rest.is_empty() {
            let contents = rest.split_to(batch.stride.clamp(1, rest.len()));
            let Fate::Arrives { at, copy } = model.packet(now, contents.len()) else {
                continue;
            };
            for at in std::iter::once(at).chain(copy) {
                let packet = Packet {
                    remote: batch.remote,
                    local: batch.local,
                    ecn: batch.ecn,
                    contents: contents.clone(),
                };
                if !self.held.push(at, contents.len(), packet) {
                    model.note_overflow();
                }
            }
        }
    }

    /// What is due by `now`: the first packet, and those right behind it that can go with it, `packets` at most in
    /// `max_bytes` at most.
    pub(super) fn next_batch(
        &mut self,
        now: Duration,
        packets: usize,
        max_bytes: usize,
    ) -> Option<Batch> {
        let first = self.pop_due(now, |_| true)?;
        let stride = first.contents.len();
        let mut batch = Batch {
            remote: first.remote,
            local: first.local,
            ecn: first.ecn,
            contents: first.contents,
            stride,
        };
        let room = (max_bytes.min(MAX_BATCH_BYTES) / stride.max(1)).min(packets);
        if room < 2 {
            return Some(batch);
        }
        let goes_with_it = |packet: &Packet| {
            (packet.remote, packet.local, packet.ecn) == (batch.remote, batch.local, batch.ecn)
                && (1..=stride).contains(&packet.contents.len())
        };
        let Some(second) = self.pop_due(now, goes_with_it) else {
            return Some(batch);
        };
        let mut together = BytesMut::with_capacity(room * stride);
        together.extend_from_slice(&batch.contents);
        let (mut count, mut next) = (1, Some(second));
        while let Some(packet) = next {
            together.extend_from_slice(&packet.contents);
            count += 1;
            // A shorter one is the last.
            next = match count < room && packet.contents.len() == stride {
                true => self.pop_due(now, goes_with_it),
                false => None,
            };
        }
        batch.contents = together.freeze();
        Some(batch)
    }

    fn pop_due(&mut self, now: Duration, wanted: impl Fn(&Packet) -> bool) -> Option<Packet> {
        self.held.pop_due_if(now, wanted)
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.held.next_due()
    }

    /// Packets that found no room since it was last asked.
    pub(super) fn take_overflowed(&mut self) -> u64 {
        self.held.take_overflowed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::Impairment;
    use super::*;

    const MANY: usize = 64;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn model(impairment: Impairment) -> ImpairmentModel {
        ImpairmentModel::new(impairment, 1)
    }

    fn delay(ms: u64) -> ImpairmentModel {
        model(Impairment {
            delay: Duration::from_millis(ms),
            ..Impairment::default()
        })
    }

    fn batch(contents: &'static [u8], stride: usize) -> Batch {
        Batch {
            remote: "127.0.0.1:1".parse().unwrap(),
            local: None,
            ecn: None,
            contents: Bytes::from_static(contents),
            stride,
        }
    }

    fn drain(line: &mut DelayLine, now: Duration) -> Vec<Batch> {
        std::iter::from_fn(|| line.next_batch(now, MANY, usize::MAX)).collect()
    }

    #[test]
    fn packets_come_out_when_they_are_due_and_in_order() {
        let mut line = DelayLine::default();
        for (after, text) in [(30, b"d"), (10, b"a"), (10, b"b"), (20, b"c")] {
            line.send(ms(0), &mut delay(after), batch(text, 1));
        }
        assert_eq!(line.next_due(), Some(ms(10)));
        assert!(line.next_batch(ms(9), MANY, usize::MAX).is_none());
        let due = line.next_batch(ms(25), MANY, usize::MAX).unwrap();
        assert_eq!(&due.contents[..], b"abc");
        assert_eq!(line.next_due(), Some(ms(30)));
        assert!(line.next_due().is_some());
    }

    #[test]
    fn a_batch_is_taken_apart_and_every_packet_meets_its_own_fate() {
        let mut line = DelayLine::default();
        let mut model = model(Impairment {
            loss: 0.5,
            ..Impairment::default()
        });
        // 100 packets of 10 bytes and one of 3.
        let batch = batch(&[7; 1003], 10);
        line.send(ms(0), &mut model, batch);
        let counts = model.counts();
        assert_eq!(counts.packets, 101);
        assert!((30..70).contains(&counts.lost), "{counts:?}");
        let bytes: usize = drain(&mut line, ms(0))
            .iter()
            .map(|batch| batch.contents.len())
            .sum();
        let left = 101 - counts.lost as usize;
        assert!([left * 10, left * 10 - 7].contains(&bytes));
    }

    #[test]
    fn what_goes_one_way_together_is_put_together_again() {
        let mut line = DelayLine::default();
        let mut fast = delay(1);
        line.send(ms(0), &mut fast, batch(&[1; 25], 10));
        line.send(ms(0), &mut fast, batch(&[2; 10], 10));
        let marked = Batch {
            ecn: Some(EcnCodepoint::Ce),
            ..batch(&[3; 10], 10)
        };
        line.send(ms(0), &mut fast, marked.clone());
        let elsewhere = Batch {
            remote: "127.0.0.1:2".parse().unwrap(),
            ..batch(&[4; 10], 10)
        };
        line.send(ms(0), &mut fast, elsewhere.clone());
        let due = drain(&mut line, ms(1));
        let lengths: Vec<_> = due
            .iter()
            .map(|batch| (batch.contents.len(), batch.stride))
            .collect();
        // A shorter packet ends a batch; another address or another mark begins one.
        assert_eq!(lengths, [(25, 10), (10, 10), (10, 10), (10, 10)]);
        assert_eq!(due[2], marked);
        assert_eq!(due[3], elsewhere);
    }

    #[test]
    fn no_batch_is_longer_than_the_kernel_takes() {
        let mut line = DelayLine::default();
        static BYTES: [u8; 1200 * 200] = [5; 1200 * 200];
        line.send(ms(0), &mut delay(1), batch(&BYTES, 1200));
        let mut bytes = 0;
        while let Some(batch) = line.next_batch(ms(1), 10, usize::MAX) {
            assert!(batch.contents.len() <= 12_000);
            bytes += batch.contents.len();
        }
        assert_eq!(bytes, BYTES.len());
        line.send(ms(0), &mut delay(1), batch(&BYTES, 1200));
        for batch in drain(&mut line, ms(1)) {
            assert!(batch.contents.len() <= MAX_BATCH_BYTES);
        }
        line.send(ms(0), &mut delay(1), batch(&BYTES, 1200));
        let narrow = line.next_batch(ms(1), MANY, 3000).unwrap();
        assert_eq!(narrow.contents.len(), 2400);
    }

    #[test]
    fn a_copy_is_held_beside_its_packet() {
        let mut line = DelayLine::default();
        let mut model = model(Impairment {
            duplicate: 1.0,
            delay: ms(5),
            ..Impairment::default()
        });
        line.send(ms(0), &mut model, batch(b"x", 1));
        assert_eq!(&drain(&mut line, ms(5))[0].contents[..], b"xx");
    }

    #[test]
    fn the_same_seed_and_times_put_the_same_packets_on_the_wire() {
        let run = |seed| {
            let mut model = ImpairmentModel::new(
                Impairment {
                    loss: 0.1,
                    duplicate: 0.1,
                    reorder: 0.1,
                    delay: ms(20),
                    jitter: ms(10),
                    rate: Some(10_000_000),
                    queue: 20,
                    cut: false,
                },
                seed,
            );
            let mut line = DelayLine::default();
            let mut seen = Vec::new();
            static BYTES: [u8; 12_000] = [0; 12_000];
            for turn in 0..200 {
                line.send(
                    ms(turn),
                    &mut model,
                    batch(&BYTES[..6000 + 7 * turn as usize], 1200),
                );
                seen.push(drain(&mut line, ms(turn)));
            }
            seen
        };
        assert_eq!(run(42), run(42));
        assert_ne!(run(42), run(43));
    }

    #[test]
    fn a_full_line_takes_no_more_until_something_has_left() {
        let mut line = DelayLine::default();
        let large: &'static [u8] = &[0; 60_000];
        let mut later = delay(1000);
        while line.take_overflowed() == 0 {
            line.send(ms(0), &mut later, batch(large, large.len()));
        }
        let taken = drain(&mut line, ms(1000)).len();
        assert_eq!(taken, MAX_HELD_BYTES / large.len());
        line.send(ms(0), &mut later, batch(large, large.len()));
        assert!(line.next_due().is_some());
        let mut line = DelayLine::default();
        for _ in 0..MAX_HELD_PACKETS + 9 {
            line.send(ms(0), &mut later, batch(b"x", 1));
        }
        assert_eq!(line.take_overflowed(), 9);
        assert_eq!(line.held.len(), MAX_HELD_PACKETS);
    }
}
