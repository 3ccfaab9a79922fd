//! What may be read of transactions, by an account of our own: which batches are of committed ones, up to where everything is
//! decided, and whether a reader of committed records is given just that.

use std::collections::{BTreeMap, BTreeSet};

use quorate::partition::PartitionView;
use quorate::record::{AbortedTransaction, Batch, TransactionOutcome, is_marker};
use quorate::storage::ReadError;
use quorate::types::{LeaderEpoch, Offset};

use super::checker::{Check, Committed, PartitionChecker, violated};
use super::event::Event;
use super::mirror::Held;
use super::planted::Planted;
use super::random::Random;
use super::schedule::Setup;
use super::world::World;

/// How the transaction of each committed batch ended, by what is committed of the log.
#[derive(Default)]
pub struct Outcomes {
    /// By producer: the batches of its open transaction.
    open: BTreeMap<i64, Vec<Offset>>,
    /// By the batch's base: whether its transaction is committed.
    ended: BTreeMap<Offset, bool>,
}

impl Outcomes {
    /// The next committed frame.
    pub fn take(&mut self, held: &Held) {
        let Some((producer, ..)) = held.sequence else {
            return;
        };
        let base = held.start.offset;
        match held.marker {
            Some(marker) => {
                let is_commit = marker.outcome == TransactionOutcome::Commit;
                for base in self.open.remove(&producer).unwrap_or_default() {
                    self.ended.insert(base, is_commit);
                }
            }
            None if held.transactional => self.open.entry(producer).or_default().push(base),
            None => {}
        }
    }

    /// From the beginning.
    pub fn of_all(committed: &BTreeMap<Offset, Committed>) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for committed in committed.values() {
            outcomes.take(&committed.held);
        }
        outcomes
    }

    /// Whether the transaction of the batch at `base` is committed; `None` while it is open.
    pub fn of(&self, base: Offset) -> Option<bool> {
        self.ended.get(&base).copied()
    }
}

impl PartitionChecker {
    /// What a replica shows of transactions is what its own log says; and of one that leads it never falls.
    ///
    /// By the watermark that it knows now it must not show less. It may have known a higher one before, which a restart or its
    /// next role made it forget: so it may show what is really decided, and no more.
    pub fn look_at_stable(&mut self, node: usize, view: &PartitionView) -> Check {
        let is_early = !view.is_leader && !self.has_new_history_begun();
        let is_lost = is_early || self.is_of_lost_history(node);
        let truly_committed = self.true_high_watermark;
        let replica = &mut self.replicas[node];
        let (high_watermark, stable) = (view.high_watermark, view.last_stable_offset);
        let leads_in = view.is_leader.then_some(view.leader_epoch);
        let before = std::mem::replace(
            &mut replica.stable,
            leads_in.map(|epoch| (epoch, stable)).filter(|_| !is_lost),
        );
        if is_lost || replica.is_incomplete {
            return Ok(());
        }
        replica.known.forget_ended(high_watermark);
        let within = |offset: Offset| {
            let end = high_watermark.max(view.log_start);
            offset.max(view.log_start).min(end)
        };
        let known = &replica.known;
        let least = within(known.stable(high_watermark, high_watermark));
        let most = within(known.stable(high_watermark, truly_committed));
        if stable < least || stable > most {
            return violated(
                "transactions (last stable offset)",
                format!(
                    "node {} shows {stable} with {high_watermark} committed, and its log says {least} to {most}",
                    node + 1
                ),
            );
        }
        match before {
            Some((epoch, fell)) if Some(epoch) == leads_in && stable < fell => violated(
                "transactions (the last stable offset fell)",
                format!(
                    "node {} in epoch {epoch}: from {fell} to {stable}",
                    node + 1
                ),
            ),
            _ => Ok(()),
        }
    }
}

/// Reads what is committed, as Kafka's consumers do.
pub struct CommittedReader {
    random: Random,
    next: Vec<Offset>,
}

impl CommittedReader {
    pub fn new(setup: &Setup) -> CommittedReader {
        CommittedReader {
            random: Random::new(setup.seed, 250),
            next: vec![Offset::ZERO; setup.partitions],
        }
    }
}

impl World {
    pub fn tick_committed_reader(&mut self) -> Check {
        let after = self.committed_reader.random.between(20_000, 60_000);
        self.plan_us(after, Event::CommittedReaderTick);
        let partition = self.committed_reader.random.index(self.setup.partitions);
        let leading = self.leading(partition);
        if leading.is_empty() {
            return Ok(());
        }
        let node = leading[self.committed_reader.random.index(leading.len())];
        if self.committed_reader.random.permille(100) {
            self.committed_reader.next[partition] = Offset::ZERO;
        }
        self.read_committed(node, partition)
    }

    fn read_committed(&mut self, node: usize, partition: usize) -> Check {
        let Some(replica) = self.nodes[node].view_replica(partition) else {
            return Ok(());
        };
        let view = replica.partition.view();
        let from = self.committed_reader.next[partition].max(view.log_start);
        let below = match self.planted {
            Some(Planted::ReadUndecided) => view.high_watermark,
            _ => view.last_stable_offset,
        };
        if from > view.log_end || from >= below {
            return Ok(());
        }
        let read = match replica.reader.read_committed(from, 2000, below) {
            Ok(read) => read,
            Err(ReadError::OutOfRange { .. }) => return Ok(()),
            Err(_) if self.nodes[node].was_harmed[partition] => return Ok(()),
            Err(_) if self.nodes[node].disk.has_crashed() => return Ok(()),
            Err(error) => return violated("10 (read)", format!("node {}: {error}", node + 1)),
        };
        let mut aborted = read.aborted;
        if self.planted == Some(Planted::AbortedLeftOut) {
            aborted.pop();
        }
        // What was lost by an unclean election may have been read, decided or not; and the markers of what stayed are lost.
        let checker = &self.checkers[partition];
        let is_judged =
            checker.forced_epoch == LeaderEpoch::NONE && !checker.is_of_lost_history(node);
        let mut shown = Shown::new(aborted);
        for bytes in read.records {
            let Ok(batch) = Batch::decode(&bytes) else {
                return violated("10 (read)", format!("no batch at {from}"));
            };
            let header = &batch.header;
            let (Some(base), Some(next)) = (
                Offset::from_wire(header.base_offset),
                Offset::from_wire(header.next_offset()),
            ) else {
                return violated("10 (read)", "a negative offset");
            };
            self.committed_reader.next[partition] = next;
            let is_shown = shown.take(&batch, next);
            if !is_judged || !header.is_transactional() || is_marker(header) {
                continue;
            }
            let outcome = self.checkers[partition].outcomes.of(base);
            if outcome != Some(is_shown) {
                return violated(
                    "transactions (read)",
                    format!(
                        "node {}, partition {partition}: the batch at {base} is {}, and committed is {outcome:?}",
                        node + 1,
                        if is_shown { "read" } else { "left out" }
                    ),
                );
            }
            self.figures.read_of_transactions += u64::from(is_shown);
            self.figures.left_out += u64::from(!is_shown);
            let sequence = header.producer_id.map(|id| {
                let id = id.get();
                (id, header.producer_epoch, header.base_sequence)
            });
            self.check_outcome(partition, sequence, outcome)?;
        }
        Ok(())
    }
}

/// What a consumer does with the list of aborted transactions that comes with what it has fetched.
struct Shown {
    /// First offset and producer, the first first.
    to_come: Vec<(Offset, i64)>,
    aborting: BTreeSet<i64>,
}

impl Shown {
    fn new(aborted: Vec<AbortedTransaction>) -> Shown {
        let mut to_come: Vec<(Offset, i64)> = aborted
            .iter()
            .map(|aborted| (aborted.first, aborted.producer.get()))
            .collect();
        to_come.sort_unstable_by(|a, b| b.cmp(a));
        Shown {
            to_come,
            aborting: BTreeSet::new(),
        }
    }

    /// Whether the next batch, which ends before `next`, is shown.
    fn take(&mut self, batch: &Batch, next: Offset) -> bool {
        while let Some((_, producer)) = self.to_come.pop_if(|(first, _)| *first < next) {
            self.aborting.insert(producer);
        }
        let Some(producer) = batch.header.producer_id else {
            return true;
        };
        if is_marker(&batch.header) {
            self.aborting.remove(&producer.get());
            return true;
        }
        !(batch.header.is_transactional() && self.aborting.contains(&producer.get()))
    }
}
