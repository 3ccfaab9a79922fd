//! Producers with transactions in the simulation, the coordinator that ends them, and what a reader of committed transactions
//! may be shown.

use super::*;
use crate::record::{Marker, ProducerStamp, TransactionOutcome};
use crate::replication::{Verification, VerificationGuard};
use crate::types::ProducerId;

const PRODUCERS: usize = 3;

/// A producer as its coordinator knows it. Each transaction has an epoch of its own.
#[derive(Debug, Clone, Default)]
struct Producer {
    epoch: i16,
    next_sequence: i32,
    /// The markers are under way, again and again.
    ending: Option<TransactionOutcome>,
    /// What the coordinator was asked under, now or long ago, and in which epoch.
    guard: Option<(VerificationGuard, i16)>,
}

#[derive(Debug, Default)]
pub(super) struct Transactions {
    producers: [Producer; PRODUCERS],
    /// How each transaction ended, by producer and epoch.
    outcomes: BTreeMap<(usize, i16), TransactionOutcome>,
    /// Markers that wait for an answer: of which producer, in which epoch.
    markers: BTreeMap<ProduceTicket, (usize, i16)>,
    repeated: BTreeSet<ProduceTicket>,
    /// The highest watermark that any replica has shown: everything below it is committed.
    committed: Offset,
    /// What each process has shown as stable, by node and incarnation.
    shown: BTreeMap<(usize, u64), (Offset, Offset)>,
    pub(super) ended: usize,
    pub(super) late_refused: usize,
}

impl Transactions {
    /// True where the ticket was a marker's, or a repeated batch's.
    pub(super) fn completed(&mut self, ticket: ProduceTicket, is_ok: bool) -> bool {
        if self.repeated.remove(&ticket) {
            return true;
        }
        let Some((p, epoch)) = self.markers.remove(&ticket) else {
            return false;
        };
        let producer = &mut self.producers[p];
        if is_ok && producer.epoch == epoch && producer.ending.take().is_some() {
            producer.epoch += 1;
            producer.next_sequence = 0;
            self.ended += 1;
        }
        true
    }
}

fn producer_id(p: usize) -> ProducerId {
    ProducerId::new(p as i64 + 10).unwrap()
}

/// Whether the markers of a producer's transaction carry the epoch of its next one: `transaction.version` 2, and any end that
/// fences.
fn bumps(p: usize) -> bool {
    p.is_multiple_of(2)
}

impl Simulation {
    fn leader_index(&self) -> Option<usize> {
        (0..NODES).find(|&i| {
            let partition = self.replicas[i].partition.as_ref();
            partition.is_some_and(|partition| partition.view().is_leader)
        })
    }

    fn heard_peers(&self) -> Peers {
        let mut peers = Peers::new();
        for i in 0..NODES {
            peers.handle_heard(node(i), self.now, MINIMUM_SUSPICION, Duration::ZERO);
        }
        peers
    }

    /// A producer goes on with its transaction, or its coordinator ends it, or a batch of long ago arrives.
    pub(super) fn transact(&mut self) {
        let p = self.random.below(PRODUCERS);
        match self.random.below(8) {
            _ if self.transactions.producers[p].ending.is_some() => self.send_marker(p),
            0 => self.send_late_batch(p),
            1..=3 if self.transactions.producers[p].next_sequence > 0 => {
                let outcome = match self.random.below(2) {
                    0 => TransactionOutcome::Abort,
                    _ => TransactionOutcome::Commit,
                };
                let producer = &mut self.transactions.producers[p];
                producer.ending = Some(outcome);
                let key = (p, producer.epoch);
                self.transactions.outcomes.insert(key, outcome);
                self.send_marker(p);
            }
            _ => {
                let producer = self.transactions.producers[p].clone();
                let sequence = producer.next_sequence;
                self.transactions.producers[p].next_sequence += 1;
                self.send_batch(p, producer.epoch, sequence, None);
            }
        }
    }

    /// With `guard`, the coordinator was asked before.
    fn send_batch(
        &mut self,
        p: usize,
        epoch: i16,
        sequence: i32,
        guard: Option<VerificationGuard>,
    ) {
        let Some(leader) = self.leader_index() else {
            return;
        };
        let peers = self.heard_peers();
        let now = self.now;
        self.next_value += 1;
        let value = self.next_value;
        let partition = self.replicas[leader].partition.as_mut().unwrap();
        let verification = partition.verification(producer_id(p), epoch).unwrap();
        let asked = guard.or(match verification {
            Verification::NotNeeded => None,
            // The transaction is open as far as its coordinator knows.
            Verification::Needed(guard) => {
                let guard = match bumps(p) {
                    true => guard.of_first_batch(),
                    false => guard,
                };
                self.transactions.producers[p].guard = Some((guard, epoch));
                Some(guard)
            }
        });
        let mut builder = BatchBuilder::new();
        let text = Bytes::from(value.to_string().into_bytes());
        builder.append(None, Some(&text), &[], 0).unwrap();
        let stamp = ProducerStamp {
            id: producer_id(p),
            epoch,
            base_sequence: sequence,
        };
        let sealed = builder.seal(Compression::None).unwrap();
        let batch = Batch::decode(&sealed.transactional().stamp(Some(stamp))).unwrap();
        let ticket = ProduceTicket(value);
        if guard.is_some() {
            // Sent once more or too late: what it says is not what the log holds.
            self.transactions.repeated.insert(ticket);
        } else {
            self.tickets.insert(ticket, value);
        }
        let request = ProduceRequest {
            ticket,
            batch,
            acks: Acks::All,
            deadline: now + Duration::from_secs(2),
            guard: asked,
        };
        let before = partition.view();
        partition.handle_produce(now, request, &peers);
        let is_over = epoch < self.transactions.producers[p].epoch;
        // A leader that has been replaced and does not know it may take anything: nobody commits it.
        let is_current = before.leader_epoch == self.state.leader_epoch;
        if is_over && is_current {
            // Its transaction has ended, and the partition was told.
            let after = partition.view();
            assert_eq!(after.log_end, before.log_end, "a late batch was taken");
            self.transactions.late_refused += 1;
        }
        self.drain(leader);
    }

    /// A batch that was verified before its transaction ended, or of a transaction that is still open.
    fn send_late_batch(&mut self, p: usize) {
        if let Some((guard, epoch)) = self.transactions.producers[p].guard {
            self.send_batch(p, epoch, 0, Some(guard));
        }
    }

    fn send_marker(&mut self, p: usize) {
        let Some(leader) = self.leader_index() else {
            return;
        };
        let producer = &self.transactions.producers[p];
        let Some(outcome) = producer.ending else {
            return;
        };
        let epoch = producer.epoch;
        self.next_value += 1;
        let ticket = ProduceTicket(self.next_value);
        self.transactions.markers.insert(ticket, (p, epoch));
        let (now, peers) = (self.now, self.heard_peers());
        let request = MarkerRequest {
            ticket,
            marker: Marker {
                producer: producer_id(p),
                producer_epoch: epoch + i16::from(bumps(p)),
                coordinator_epoch: 1,
                outcome,
                aborted: None,
            },
            wall_clock_ms: 0,
            deadline: now + Duration::from_secs(2),
        };
        let partition = self.replicas[leader].partition.as_mut().unwrap();
        partition.handle_marker(now, request, &peers);
        self.drain(leader);
    }

    /// What is shown as stable is committed, of no undecided transaction, and never goes back where the watermark does not.
    pub(super) fn check_stable(&mut self, i: usize) {
        for replica in &self.replicas {
            if let Some(partition) = &replica.partition {
                let committed = &mut self.transactions.committed;
                *committed = partition.high_watermark().max(*committed);
            }
        }
        let Some(partition) = &self.replicas[i].partition else {
            return;
        };
        let view = partition.view();
        let stable = view.last_stable_offset;
        assert!(stable <= view.high_watermark);
        let reader = partition.reader();
        let mut open: BTreeMap<ProducerId, Offset> = BTreeMap::new();
        // Of those whose ends are not known to be committed, here and anywhere.
        let (mut here, mut anywhere) = (view.high_watermark, view.high_watermark);
        for frame in reader.frames(reader.start()).map(Result::unwrap) {
            if frame.is_epoch_start() {
                continue;
            }
            let batch = Batch::decode(&frame.payload()).unwrap();
            let header = &batch.header;
            match header.producer_id {
                Some(producer) if header.is_control() => {
                    let first = open.remove(&producer).unwrap_or(frame.base_offset());
                    if frame.end_offset() > view.high_watermark {
                        here = here.min(first);
                    }
                    if frame.end_offset() > self.transactions.committed {
                        anywhere = anywhere.min(first);
                    }
                }
                Some(producer) if header.is_transactional() => {
                    open.entry(producer).or_insert(frame.base_offset());
                }
                _ => {}
            }
        }
        for first in open.values() {
            here = here.min(*first);
            anywhere = anywhere.min(*first);
        }
        assert!(
            here <= stable && stable <= anywhere,
            "{stable} is shown as stable, which is between {here} and {anywhere}"
        );
        let process = (i, self.replicas[i].incarnation);
        let shown = self.transactions.shown.entry(process).or_default();
        if view.high_watermark >= shown.0 {
            assert!(stable >= shown.1, "{stable} is stable, after {}", shown.1);
        }
        *shown = (view.high_watermark, stable);
    }

    /// Ends every transaction that is open. To be called while everything heals.
    pub(super) fn finish_transactions(&mut self) {
        for p in 0..PRODUCERS {
            let producer = &mut self.transactions.producers[p];
            if producer.next_sequence == 0 && producer.ending.is_none() {
                continue;
            }
            let outcome = *producer.ending.get_or_insert(TransactionOutcome::Commit);
            let key = (p, producer.epoch);
            self.transactions.outcomes.insert(key, outcome);
            self.send_marker(p);
        }
    }

    /// After everything has healed and every transaction has ended: a reader of committed transactions is shown the records of
    /// those that committed and of none, and nothing else.
    pub(super) fn check_committed(&self, i: usize) {
        let partition = self.replicas[i].partition.as_ref().unwrap();
        let view = partition.view();
        assert_eq!(view.last_stable_offset, view.high_watermark, "one hangs");
        let reader = partition.reader();
        let mut expected = BTreeSet::new();
        for frame in reader.frames(reader.start()).map(Result::unwrap) {
            if frame.is_epoch_start() {
                continue;
            }
            let batch = Batch::decode(&frame.payload()).unwrap();
            let header = &batch.header;
            if header.is_control() {
                continue;
            }
            let key = header
                .producer_id
                .filter(|_| header.is_transactional())
                .map(|producer| (producer.get() as usize - 10, header.producer_epoch));
            let outcome = key.map(|key| self.transactions.outcomes[&key]);
            if outcome != Some(TransactionOutcome::Abort) {
                expected.insert(frame.base_offset());
            }
        }
        // In small reads, so that transactions reach over many.
        let mut found = BTreeSet::new();
        let mut from = reader.earliest();
        while from < view.last_stable_offset {
            let read = reader.read_committed(from, 200, view.last_stable_offset);
            let read = read.unwrap();
            let Some(last) = read.records.last() else {
                break;
            };
            let last = Batch::decode(last).unwrap();
            for batch in &read.records {
                let batch = Batch::decode(batch).unwrap();
                let base = Offset::from_wire(batch.header.base_offset).unwrap();
                let producer = batch.header.producer_id;
                let aborted = producer.filter(|_| batch.header.is_transactional());
                let is_aborted = aborted
                    .is_some_and(|producer| read.aborted.iter().any(|a| a.covers(producer, base)));
                if !batch.header.is_control() && !is_aborted {
                    found.insert(base);
                }
            }
            from = Offset::from_wire(last.header.next_offset()).unwrap();
        }
        assert_eq!(found, expected);
    }
}
