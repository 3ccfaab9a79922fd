//! Producers of transactions, and what stands behind each of them: a coordinator that is asked whether a transaction reaches a
//! partition, decides how it ends, and has the leader of each of its partitions write the marker.
//!
//! The coordinator is one place that never fails; it moves, though, and then what its predecessor has sent may still arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate::partition::MarkerRequest;
use quorate::record::{
    Batch, BatchBuilder, Compression, Marker, ProducerStamp, TransactionOutcome,
};
use quorate::replication::{Acks, ProduceOutcome, Verification, VerificationGuard};
use quorate::types::{ErrorCode, LeaderEpoch, MonotonicTime, Offset, ProducerId};

use super::checker::{Check, violated};
use super::event::Event;
use super::node::{Call, PRODUCE_DEADLINE, index_of, is_retriable, partition_id};
use super::planted::Planted;
use super::process::WALL_CLOCK_MS;
use super::random::Random;
use super::schedule::Setup;
use super::world::{World, unexpected};

/// Their producer ids begin here; the others' are below.
const FIRST_ID: i64 = 1001;
const TRANSACTORS: u64 = 2;
const CLIENT_TIMEOUT: Duration = Duration::from_millis(1000);
/// New transactions begin for so long after the last fault.
const GOES_ON_FOR: Duration = Duration::from_millis(300);
/// In so many of 1000 looks, of 25 ms, a transaction that is under way is given up and its producer fenced.
const GIVEN_UP_PERMILLE: u64 = 12;
const COMMITTED_PERMILLE: u64 = 600;
const MOVED_PERMILLE: u64 = 250;
/// How late what the coordinator before has sent may be, in microseconds.
const LATE_US: u64 = 300_000;

/// What a partition is asked for.
#[derive(Clone, Debug)]
pub enum Work {
    Batch { bytes: Bytes, sequence: i32 },
    Marker(Marker),
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct TransactionCall {
    pub transactor: usize,
    pub partition: usize,
    pub number: u64,
    pub epoch: i16,
    /// Rises over all that this transactor sends; 0 where nobody waits for the answer.
    pub attempt: u64,
    pub node: usize,
    pub work: Work,
    pub answered_in: LeaderEpoch,
}

impl TransactionCall {
    /// What the log has of it.
    pub fn sequence(&self) -> (i64, i16, i32) {
        let id = FIRST_ID + self.transactor as i64;
        match &self.work {
            Work::Batch { sequence, .. } => (id, self.epoch, *sequence),
            Work::Marker(marker) => (id, marker.producer_epoch, -1),
        }
    }
}

struct Outstanding {
    work: Work,
    /// Of the last attempt; 0 before the first.
    attempt: u64,
    in_flight_until: Option<MonotonicTime>,
    not_before: MonotonicTime,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// So many rounds of batches are to come.
    Writing {
        left: u64,
    },
    Ending {
        commit: bool,
    },
}

pub struct Transactor {
    random: Random,
    partitions: usize,
    id: i64,
    epoch: i16,
    coordinator_epoch: i32,
    /// Whether the coordinator moved when the present transaction's end was decided: its predecessor has sent markers too.
    has_moved: bool,
    /// Of its present or last transaction.
    number: u64,
    state: State,
    /// The partitions that the transaction reaches.
    reached: BTreeSet<usize>,
    work: BTreeMap<usize, Outstanding>,
    attempts: u64,
    sequences: Vec<i32>,
    leaders: Vec<Option<(usize, LeaderEpoch)>>,
    known_epochs: Vec<LeaderEpoch>,
    /// To which transaction a batch belongs: by partition, epoch and first sequence number.
    made: BTreeMap<(usize, i16, i32), u64>,
    /// How each transaction ends, once that is decided.
    pub decided: BTreeMap<u64, bool>,
    /// The offset of each acknowledged batch, by what it is in `made`.
    acknowledged: BTreeMap<(usize, i16, i32), Offset>,
    /// When what was sent to a node arrives there at the earliest: requests keep their order.
    arrivals: Vec<MonotonicTime>,
}

impl Transactor {
    pub fn all(setup: &Setup) -> Vec<Transactor> {
        let mut random = Random::new(setup.seed, 300);
        (0..random.between(0, TRANSACTORS) as usize)
            .map(|index| Transactor {
                random: Random::new(setup.seed, 301 + index as u64),
                partitions: setup.partitions,
                id: FIRST_ID + index as i64,
                epoch: 0,
                coordinator_epoch: 0,
                has_moved: false,
                number: 0,
                state: State::Idle,
                reached: BTreeSet::new(),
                work: BTreeMap::new(),
                attempts: 0,
                sequences: vec![0; setup.partitions],
                leaders: vec![None; setup.partitions],
                known_epochs: vec![LeaderEpoch::NONE; setup.partitions],
                made: BTreeMap::new(),
                decided: BTreeMap::new(),
                acknowledged: BTreeMap::new(),
                arrivals: vec![MonotonicTime::ZERO; setup.nodes],
            })
            .collect()
    }

    /// The one with this producer id.
    pub fn index_of(id: i64) -> Option<usize> {
        usize::try_from(id - FIRST_ID).ok()
    }

    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// The transaction of a batch, and how it ends if that is decided.
    pub fn transaction_of(
        &self,
        partition: usize,
        epoch: i16,
        sequence: i32,
    ) -> Option<(u64, Option<bool>)> {
        let number = *self.made.get(&(partition, epoch, sequence))?;
        Some((number, self.decided.get(&number).copied()))
    }

    fn begin(&mut self) {
        self.number += 1;
        self.reached = (0..self.partitions)
            .filter(|_| self.random.permille(700))
            .collect();
        if self.reached.is_empty() {
            self.reached.insert(self.random.index(self.partitions));
        }
        self.state = State::Writing {
            left: self.random.between(1, 3),
        };
    }

    fn write(&mut self, now: MonotonicTime) {
        for partition in self.reached.clone() {
            // Not every partition that it reaches gets something each time, and some nothing at all.
            if self.random.permille(800)
                && let Some(work) = self.batch(partition, now)
            {
                self.work.insert(partition, outstanding(work, now));
            }
        }
    }

    fn batch(&mut self, partition: usize, now: MonotonicTime) -> Option<Work> {
        let records = self.random.between(1, 2) as i32;
        let mut builder = BatchBuilder::new();
        let wall_clock_ms = (WALL_CLOCK_MS + now.as_micros() / 1000) as i64;
        for record in 0..records {
            let value = format!("t{}-{}-{partition}-{record}", self.id, self.number);
            let appended = builder.append(None, Some(value.as_bytes()), &[], wall_clock_ms);
            debug_assert!(appended.is_ok());
        }
        let sequence = self.sequences[partition];
        let stamp = ProducerStamp {
            id: ProducerId::new(self.id)?,
            epoch: self.epoch,
            base_sequence: sequence,
        };
        let sealed = builder.seal(Compression::None).ok()?.transactional();
        self.sequences[partition] += records;
        self.made
            .insert((partition, self.epoch, sequence), self.number);
        Some(Work::Batch {
            bytes: sealed.stamp(Some(stamp)),
            sequence,
        })
    }

    /// Its end is decided. With `fence`, what may be under way of it is refused from here on where the marker is.
    fn end(&mut self, commit: bool, fence: bool, now: MonotonicTime) {
        self.decided.insert(self.number, commit);
        self.state = State::Ending { commit };
        self.has_moved = self.random.permille(MOVED_PERMILLE);
        self.coordinator_epoch += i32::from(self.has_moved);
        if fence {
            self.epoch += 1;
            self.sequences.fill(0);
        }
        let Some(producer) = ProducerId::new(self.id) else {
            return;
        };
        let marker = Marker {
            producer,
            producer_epoch: self.epoch,
            coordinator_epoch: self.coordinator_epoch,
            outcome: if commit {
                TransactionOutcome::Commit
            } else {
                TransactionOutcome::Abort
            },
            aborted: None,
        };
        self.work = self
            .reached
            .iter()
            .map(|partition| (*partition, outstanding(Work::Marker(marker), now)))
            .collect();
    }

    /// Nobody knows what became of the last attempt. Another coordinator's marker takes its place, so that it comes to nothing if
    /// it is late.
    fn time_out(&mut self, now: MonotonicTime) {
        for (partition, outstanding) in &mut self.work {
            if outstanding
                .in_flight_until
                .is_some_and(|until| until <= now)
            {
                outstanding.in_flight_until = None;
                self.leaders[*partition] = None;
                if let Work::Marker(marker) = &mut outstanding.work {
                    self.coordinator_epoch += 1;
                    marker.coordinator_epoch = self.coordinator_epoch;
                }
            }
        }
    }
}

fn outstanding(work: Work, now: MonotonicTime) -> Outstanding {
    Outstanding {
        work,
        attempt: 0,
        in_flight_until: None,
        not_before: now,
    }
}

impl World {
    pub fn tick_transactor(&mut self, i: usize) -> Check {
        let after = self.transactors[i].random.between(15_000, 35_000);
        self.plan_us(after, Event::TransactorTick(i));
        let now = self.now;
        let goes_on = self
            .healing_since
            .is_none_or(|since| now.since(since) < GOES_ON_FOR);
        let ends_early = self.planted == Some(Planted::EndsAtFirstMarker);
        let transactor = &mut self.transactors[i];
        transactor.time_out(now);
        match transactor.state {
            State::Idle if goes_on => transactor.begin(),
            State::Idle => return Ok(()),
            State::Writing { .. } if !goes_on || transactor.random.permille(GIVEN_UP_PERMILLE) => {
                transactor.end(false, true, now);
            }
            State::Writing { left: 0 } if transactor.work.is_empty() => {
                let commit = transactor.random.permille(COMMITTED_PERMILLE);
                transactor.end(commit, false, now);
            }
            State::Writing { left } if transactor.work.is_empty() => {
                transactor.write(now);
                transactor.state = State::Writing { left: left - 1 };
            }
            State::Ending { commit } => {
                let some_are_told = transactor.work.len() < transactor.reached.len();
                let is_over = transactor.work.is_empty() || (ends_early && some_are_told);
                if is_over {
                    transactor.work.clear();
                    transactor.state = State::Idle;
                    self.figures.transactions_committed += u64::from(commit);
                    self.figures.transactions_aborted += u64::from(!commit);
                }
            }
            State::Writing { .. } => {}
        }
        self.send_work(i);
        Ok(())
    }

    fn send_work(&mut self, i: usize) {
        let now = self.now;
        let clients = self.setup.clients();
        let partitions: Vec<usize> = self.transactors[i].work.keys().copied().collect();
        for partition in partitions {
            let is_due = self.transactors[i]
                .work
                .get(&partition)
                .is_some_and(|work| work.in_flight_until.is_none() && work.not_before <= now);
            if !is_due {
                continue;
            }
            if self.transactors[i].leaders[partition].is_none() {
                self.find_leader_for(i, partition);
            }
            let transactor = &mut self.transactors[i];
            let Some((node, _)) = transactor.leaders[partition] else {
                continue;
            };
            transactor.attempts += 1;
            let attempt = transactor.attempts;
            let Some(work) = transactor.work.get_mut(&partition) else {
                continue;
            };
            work.attempt = attempt;
            work.in_flight_until = Some(now + CLIENT_TIMEOUT);
            let call = TransactionCall {
                transactor: i,
                partition,
                number: transactor.number,
                epoch: transactor.epoch,
                attempt,
                node,
                work: work.work.clone(),
                answered_in: LeaderEpoch::NONE,
            };
            if transactor.has_moved
                && let Work::Marker(marker) = &call.work
            {
                let late = transactor.random.below(LATE_US);
                let marker = Marker {
                    coordinator_epoch: marker.coordinator_epoch - 1,
                    ..*marker
                };
                // Nobody waits for an answer.
                let before = TransactionCall {
                    attempt: 0,
                    work: Work::Marker(marker),
                    ..call.clone()
                };
                self.plan_us(late, Event::Transaction(before));
            }
            if let Some(after) = self.network.send_call(clients, node) {
                let at = (now + after).max(self.transactors[i].arrivals[node]);
                self.transactors[i].arrivals[node] = at;
                self.queue.push(at, Event::Transaction(call));
            }
        }
    }

    /// Asks some node who leads.
    fn find_leader_for(&mut self, i: usize, partition: usize) {
        let asked = self.transactors[i].random.index(self.setup.nodes);
        let clients = self.setup.clients();
        if !self.nodes[asked].is_running()
            || self.network.is_cut(clients, asked)
            || self.network.is_cut(asked, clients)
        {
            return;
        }
        let image = self.controller.images.get(self.nodes[asked].applied);
        let Some(state) = image.and_then(|image| image.partition(partition_id(partition))) else {
            return;
        };
        let transactor = &mut self.transactors[i];
        if let Some(leader) = state.leader
            && state.leader_epoch >= transactor.known_epochs[partition]
        {
            transactor.known_epochs[partition] = state.leader_epoch;
            transactor.leaders[partition] = Some((index_of(leader.node), state.leader_epoch));
        }
    }

    pub fn transaction_arrived(&mut self, mut call: TransactionCall) -> Check {
        let (now, node, partition) = (self.now, call.node, call.partition);
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let Some(replica) = process.replicas[partition].as_mut() else {
            self.answer_transaction(call, Err(ErrorCode::UnknownTopicOrPartition));
            return Ok(());
        };
        let id = FIRST_ID + call.transactor as i64;
        match &mut call.work {
            Work::Batch { .. } => {
                let Some(producer) = ProducerId::new(id) else {
                    return Ok(());
                };
                match replica.partition.verification(producer, call.epoch) {
                    Err(error) => self.answer_transaction(call, Err(error)),
                    Ok(Verification::NotNeeded) => return self.append_of(call, None),
                    Ok(Verification::Needed(guard)) => {
                        let clients = self.setup.clients();
                        if let Some(after) = self.network.send_call(node, clients) {
                            let boot = self.nodes[node].boot;
                            self.plan(after, Event::Verify { call, guard, boot });
                        }
                    }
                }
                Ok(())
            }
            Work::Marker(marker) => {
                if self.planted == Some(Planted::OldCoordinatorsMarker) {
                    marker.coordinator_epoch = i32::MAX;
                }
                let marker = *marker;
                let peers = process.peers.clone();
                let ticket = process.ticket(Call::Transaction(call), partition);
                let request = MarkerRequest {
                    ticket,
                    marker,
                    wall_clock_ms: WALL_CLOCK_MS + now.as_micros() / 1000,
                    deadline: now + PRODUCE_DEADLINE,
                };
                if let Some(replica) = self.nodes[node].replica(partition) {
                    replica.partition.handle_marker(now, request, &peers);
                }
                self.drain(node, partition)
            }
        }
    }

    /// The coordinator is asked whether the transaction is under way and reaches the partition.
    pub fn verify_transaction(
        &mut self,
        call: TransactionCall,
        guard: VerificationGuard,
        boot: u64,
    ) -> Check {
        let transactor = &self.transactors[call.transactor];
        let is_open = matches!(transactor.state, State::Writing { .. })
            && (transactor.number, transactor.epoch) == (call.number, call.epoch)
            && transactor.reached.contains(&call.partition);
        let clients = self.setup.clients();
        if let Some(after) = self.network.send_call(clients, call.node) {
            self.plan(
                after,
                Event::Verified {
                    call,
                    guard: is_open.then_some(guard),
                    boot,
                },
            );
        }
        Ok(())
    }

    pub fn transaction_verified(
        &mut self,
        call: TransactionCall,
        guard: Option<VerificationGuard>,
        boot: u64,
    ) -> Check {
        if !self.is_current(call.node, boot) {
            return Ok(());
        }
        match guard {
            Some(guard) => self.append_of(call, Some(guard)),
            None => {
                self.answer_transaction(call, Err(ErrorCode::InvalidTxnState));
                Ok(())
            }
        }
    }

    fn append_of(&mut self, call: TransactionCall, guard: Option<VerificationGuard>) -> Check {
        let (node, partition) = (call.node, call.partition);
        let Work::Batch { bytes, .. } = &call.work else {
            return Ok(());
        };
        let Ok(batch) = Batch::decode(bytes) else {
            return unexpected("a batch that was made cannot be decoded");
        };
        match &self.nodes[node].process {
            None => Ok(()),
            Some(process) if process.replicas[partition].is_none() => {
                self.answer_transaction(call, Err(ErrorCode::UnknownTopicOrPartition));
                Ok(())
            }
            Some(_) => self.hand_in(
                node,
                partition,
                Call::Transaction(call),
                batch,
                Acks::All,
                guard,
            ),
        }
    }

    pub fn answer_transaction(
        &mut self,
        call: TransactionCall,
        result: Result<ProduceOutcome, ErrorCode>,
    ) {
        let clients = self.setup.clients();
        if let Some(after) = self.network.send_call(call.node, clients) {
            self.plan(after, Event::TransactionReply { call, result });
        }
    }

    pub fn transaction_answered(
        &mut self,
        call: &TransactionCall,
        result: Result<ProduceOutcome, ErrorCode>,
    ) -> Check {
        let now = self.now;
        self.tell(|| {
            format!(
                "transaction {} of {}, partition {} (attempt {}, node {}, {:?}): {result:?}",
                call.number,
                call.transactor,
                call.partition,
                call.attempt,
                call.node + 1,
                call.sequence()
            )
        });
        let partition = call.partition;
        let checker = &self.checkers[partition];
        let was_forced = checker.forced_epoch > LeaderEpoch::NONE;
        let may_be_lost =
            matches!(result, Ok(done) if checker.may_be_lost(call.answered_in, done.base));
        let transactor = &mut self.transactors[call.transactor];
        // An earlier attempt's answer says nothing of the last one, which may yet arrive.
        let Some(work) = transactor
            .work
            .get_mut(&partition)
            .filter(|work| work.attempt == call.attempt && call.attempt > 0)
        else {
            return Ok(());
        };
        match result {
            Ok(outcome) => {
                if let Work::Batch { sequence, .. } = work.work
                    && !may_be_lost
                {
                    let place = (partition, call.epoch, sequence);
                    transactor.acknowledged.insert(place, outcome.base);
                }
                transactor.work.remove(&partition);
            }
            Err(ErrorCode::OutOfOrderSequenceNumber | ErrorCode::InvalidTxnState)
                if was_forced && matches!(work.work, Work::Batch { .. }) =>
            {
                transactor.end(false, true, now);
            }
            Err(error) if is_retriable(error) => {
                work.in_flight_until = None;
                let pause = transactor.random.between(5, 100);
                work.not_before = now + Duration::from_millis(pause);
                if matches!(
                    error,
                    ErrorCode::NotLeaderOrFollower | ErrorCode::UnknownTopicOrPartition
                ) {
                    transactor.leaders[partition] = None;
                }
            }
            Err(error) => {
                return unexpected(format!(
                    "transaction {} of {} was answered {error:?} in partition {partition}: {:?}",
                    call.number, call.transactor, call.work
                ));
            }
        }
        Ok(())
    }

    /// Each batch has come to what was decided of its transaction, and what was acknowledged is there.
    pub fn check_transactions(&self) -> Check {
        for (partition, checker) in self.checkers.iter().enumerate() {
            if checker.forced_epoch > LeaderEpoch::NONE {
                // Markers are lost with the rest.
                continue;
            }
            // Where nobody can lead any more, nobody writes the markers that are still to come.
            let stands_still = !self.may_lose_another(partition, usize::MAX);
            for committed in checker.committed.values() {
                let held = &committed.held;
                if held.marker.is_some() || !held.transactional {
                    continue;
                }
                let outcome = checker.outcomes.of(held.start.offset);
                if stands_still && outcome.is_none() {
                    continue;
                }
                self.check_outcome(partition, held.sequence, outcome)?;
            }
            for (i, transactor) in self.transactors.iter().enumerate() {
                let own = transactor.acknowledged.iter();
                for ((_, epoch, sequence), base) in own.filter(|((of, ..), _)| *of == partition) {
                    let there = checker.committed.get(base).and_then(|c| c.held.sequence);
                    if there != Some((FIRST_ID + i as i64, *epoch, *sequence)) {
                        let what = format!("{i}'s batch {sequence} of epoch {epoch} at {base}");
                        return violated("lost (of a transaction)", what);
                    }
                }
            }
        }
        Ok(())
    }

    /// What the partition's log says of a batch is what the coordinator has decided.
    pub fn check_outcome(
        &self,
        partition: usize,
        sequence: Option<(i64, i16, i32)>,
        outcome: Option<bool>,
    ) -> Check {
        let Some((id, epoch, sequence)) = sequence else {
            return Ok(());
        };
        let transactor = Transactor::index_of(id).and_then(|i| self.transactors.get(i));
        let known = transactor.and_then(|of| of.transaction_of(partition, epoch, sequence));
        match known {
            Some((_, decided)) if decided == outcome => Ok(()),
            _ => violated(
                "transactions (not as decided)",
                format!(
                    "producer {id}'s batch {sequence} of epoch {epoch} in partition {partition}: {known:?}, and its log says {outcome:?}"
                ),
            ),
        }
    }
}
