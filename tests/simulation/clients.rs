//! Producers, with and without idempotence, and readers. Each value is written once, so that what became of it can be told.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use quorate::partition::ProduceRequest;
use quorate::record::{Batch, BatchBuilder, Compression, ProducerStamp, restamp_producer};
use quorate::replication::{Acks, ProduceOutcome, VerificationGuard};
use quorate::storage::ReadError;
use quorate::types::{ErrorCode, LeaderEpoch, MonotonicTime, Offset, ProducerId};

use super::checker::{Check, PartitionChecker, violated};
use super::event::{Event, ProduceCall};
use super::mistakes::without_sequence;
use super::node::{Call, PRODUCE_DEADLINE, Waiting, index_of, is_retriable, partition_id};
use super::planted::Planted;
use super::process::WALL_CLOCK_MS;
use super::random::Random;
use super::schedule::Setup;
use super::world::{World, unexpected};

/// How many batches an idempotent producer may have in flight: Kafka's limit, and what a partition remembers.
const IN_FLIGHT: usize = 5;
/// A client that has heard nothing asks again.
const CLIENT_TIMEOUT: Duration = Duration::from_millis(1000);
/// New batches are made for so long after the last fault: the healed cluster must take some.
const GOES_ON_FOR: Duration = Duration::from_millis(300);

/// The producer, its epoch and the first sequence number, of a batch that has them.
type Sequence = Option<(i64, i16, i32)>;

pub struct Producer {
    pub index: usize,
    pub partition: usize,
    pub acks: Acks,
    idempotent: bool,
    random: Random,
    /// Rises when an unclean election has broken its sequence.
    epoch: i16,
    next_sequence: i32,
    next_batch: u64,
    unacknowledged: VecDeque<Sent>,
    /// Where it believes the leader to be, and in which epoch.
    leader: Option<(usize, LeaderEpoch)>,
    known_epoch: LeaderEpoch,
    /// Whether any batch was acknowledged: until then one goes alone.
    established: bool,
    /// Base offset and sequence of what was acknowledged, by batch.
    pub acknowledged: BTreeMap<u64, (Offset, Sequence)>,
}

/// A batch on its way.
struct Sent {
    batch: u64,
    bytes: Bytes,
    sequence: i32,
    records: i32,
    attempt: u32,
    state: SentState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SentState {
    Ready { not_before: MonotonicTime },
    InFlight { until: MonotonicTime },
}

impl Producer {
    pub fn new(setup: &Setup, index: usize) -> Producer {
        let mut random = Random::new(setup.seed, 100 + index as u64);
        let acks = if random.permille(800) {
            Acks::All
        } else {
            Acks::Leader
        };
        Producer {
            index,
            partition: random.index(setup.partitions),
            acks,
            idempotent: acks == Acks::All && random.permille(750),
            random,
            epoch: 0,
            next_sequence: 0,
            next_batch: 0,
            unacknowledged: VecDeque::new(),
            leader: None,
            known_epoch: LeaderEpoch::NONE,
            established: false,
            acknowledged: BTreeMap::new(),
        }
    }

    fn id(&self) -> i64 {
        self.index as i64 + 1
    }

    fn make_batch(&mut self, now: MonotonicTime) {
        let records = self.random.between(1, 3) as i32;
        let mut builder = BatchBuilder::new();
        let wall_clock_ms = (WALL_CLOCK_MS + now.as_micros() / 1000) as i64;
        for record in 0..records {
            let padding = self.random.index(120);
            let value = format!(
                "p{}-{}-{record}-{:padding$}",
                self.index, self.next_batch, ""
            );
            let appended = builder.append(None, Some(value.as_bytes()), &[], wall_clock_ms);
            debug_assert!(appended.is_ok());
        }
        let Ok(sealed) = builder.seal(Compression::None) else {
            return;
        };
        let stamp = self
            .idempotent
            .then_some(ProducerId::new(self.id()))
            .flatten();
        let bytes = sealed.stamp(stamp.map(|id| ProducerStamp {
            id,
            epoch: self.epoch,
            base_sequence: self.next_sequence,
        }));
        self.unacknowledged.push_back(Sent {
            batch: self.next_batch,
            bytes,
            sequence: self.next_sequence,
            records,
            attempt: 0,
            state: SentState::Ready { not_before: now },
        });
        self.next_batch += 1;
        self.next_sequence += records;
    }

    /// Its sequence is broken by a loss: what is not acknowledged is numbered anew, in another epoch, as Kafka's clients do.
    fn begin_anew(&mut self, now: MonotonicTime) {
        self.epoch += 1;
        self.next_sequence = 0;
        let id = self.id();
        for sent in &mut self.unacknowledged {
            let stamp = ProducerId::new(id).map(|id| ProducerStamp {
                id,
                epoch: self.epoch,
                base_sequence: self.next_sequence,
            });
            if let Ok(batch) = Batch::decode(&sent.bytes) {
                sent.bytes = restamp_producer(&batch, stamp);
            }
            sent.sequence = self.next_sequence;
            sent.state = SentState::Ready { not_before: now };
            self.next_sequence += sent.records;
        }
    }

    /// What may have been lost with the history that an unclean election has ended is asked for no more.
    pub fn forget_lost(&mut self, lost_from: Offset) {
        self.acknowledged.retain(|_, (base, _)| *base < lost_from);
    }

    pub fn has_unanswered(&self) -> bool {
        !self.unacknowledged.is_empty()
    }

    /// What was acknowledged at acks=all is there, at its offset, once if the producer is idempotent.
    pub fn check_history(&self, checker: &PartitionChecker) -> Check {
        if self.acks != Acks::All {
            return Ok(());
        }
        for (batch, (base, sequence)) in &self.acknowledged {
            let Some(committed) = checker.committed.get(base) else {
                return violated(
                    "lost",
                    format!("producer {}'s batch {batch} at {base}", self.index),
                );
            };
            if sequence.is_some() && committed.held.sequence != *sequence {
                return violated(
                    "lost (another is there)",
                    format!("producer {}'s batch {batch} at {base}", self.index),
                );
            }
        }
        Ok(())
    }
}

/// Reads one partition from the beginning, again and again.
pub struct Reader {
    partition: usize,
    next: Offset,
    random: Random,
}

impl Reader {
    pub fn new(setup: &Setup, index: usize) -> Reader {
        let mut random = Random::new(setup.seed, 200 + index as u64);
        Reader {
            partition: random.index(setup.partitions),
            next: Offset::ZERO,
            random,
        }
    }
}

impl World {
    pub fn tick_producer(&mut self, i: usize) -> Check {
        let after = self.producers[i].random.between(10_000, 40_000);
        self.plan_us(after, Event::ProducerTick(i));
        let now = self.now;
        let goes_on = self
            .healing_since
            .is_none_or(|since| now.since(since) < GOES_ON_FOR);
        let producer = &mut self.producers[i];
        let window = if producer.idempotent && !producer.established {
            1
        } else {
            IN_FLIGHT
        };
        // Counted from the oldest one without an answer: a partition remembers a producer's latest batches only, and one that was
        // overtaken by more of them could not be told from a new one.
        let oldest = producer.unacknowledged.front().map(|sent| sent.batch);
        let out = (producer.next_batch - oldest.unwrap_or(producer.next_batch)) as usize;
        if goes_on && out < window {
            let more = producer.random.index(3).min(window - out);
            for _ in 0..more {
                producer.make_batch(now);
            }
        }
        for sent in &mut producer.unacknowledged {
            if let SentState::InFlight { until } = sent.state
                && until <= now
            {
                sent.state = SentState::Ready { not_before: now };
                producer.leader = None;
            }
        }
        if self.producers[i].leader.is_none() {
            self.find_leader(i);
        }
        self.send_ready(i);
        Ok(())
    }

    /// Asks some node who leads.
    fn find_leader(&mut self, i: usize) {
        let nodes = self.setup.nodes;
        let asked = self.producers[i].random.index(nodes);
        let clients = self.setup.clients();
        if !self.nodes[asked].is_running()
            || self.network.is_cut(clients, asked)
            || self.network.is_cut(asked, clients)
        {
            return;
        }
        let partition = self.producers[i].partition;
        let Some(image) = self.controller.images.get(self.nodes[asked].applied) else {
            return;
        };
        let Some(state) = image.partition(partition_id(partition)) else {
            return;
        };
        // What is older than what it knows already is no news.
        if let Some(leader) = state.leader
            && state.leader_epoch >= self.producers[i].known_epoch
        {
            self.producers[i].known_epoch = state.leader_epoch;
            self.producers[i].leader = Some((index_of(leader.node), state.leader_epoch));
        }
    }

    /// Sends what is ready, in the order of its making.
    fn send_ready(&mut self, i: usize) {
        let now = self.now;
        let clients = self.setup.clients();
        let Some((node, _)) = self.producers[i].leader else {
            return;
        };
        let mut calls = Vec::new();
        let producer = &mut self.producers[i];
        let (index, acks) = (producer.index, producer.acks);
        for sent in &mut producer.unacknowledged {
            match sent.state {
                SentState::InFlight { .. } => {}
                SentState::Ready { not_before } if not_before > now => break,
                SentState::Ready { .. } => {
                    sent.attempt += 1;
                    sent.state = SentState::InFlight {
                        until: now + CLIENT_TIMEOUT,
                    };
                    calls.push(ProduceCall {
                        producer: index,
                        batch: sent.batch,
                        attempt: sent.attempt,
                        node,
                        bytes: sent.bytes.clone(),
                        acks,
                        answered_in: LeaderEpoch::NONE,
                    });
                }
            }
        }
        // One connection: requests arrive in the order in which they were sent.
        let mut last = Duration::ZERO;
        for call in calls {
            let Some(after) = self.network.send_call(clients, node) else {
                break;
            };
            last = last.max(after);
            self.plan(last, Event::Produce(call));
        }
    }

    pub fn produce_arrived(&mut self, call: ProduceCall) -> Check {
        let node = call.node;
        let partition = self.producers[call.producer].partition;
        let clients = self.setup.clients();
        let refusal = match &self.nodes[node].process {
            None => return Ok(()),
            Some(process) if process.replicas[partition].is_none() => {
                Some(ErrorCode::UnknownTopicOrPartition)
            }
            Some(_) => None,
        };
        if let Some(error) = refusal {
            if let Some(after) = self.network.send_call(node, clients) {
                let result = Err(error);
                self.plan(after, Event::ProduceReply { call, result });
            }
            return Ok(());
        }
        let Ok(batch) = Batch::decode(&call.bytes) else {
            return unexpected("a batch that was made cannot be decoded");
        };
        let (batch, acks) = match self.planted {
            Some(Planted::AnsweredAtAppend) => (batch, Acks::Leader),
            Some(Planted::AnsweredAtWrite) if call.acks == Acks::Leader => (batch, Acks::None),
            Some(Planted::SequenceLost) if call.attempt > 1 => {
                (without_sequence(&batch).unwrap_or(batch), call.acks)
            }
            _ => (batch, call.acks),
        };
        self.hand_in(node, partition, Call::Produce(call), batch, acks, None)
    }

    /// Gives a replica a batch to append; what becomes of it, `call` is answered.
    pub fn hand_in(
        &mut self,
        node: usize,
        partition: usize,
        call: Call,
        batch: Batch,
        acks: Acks,
        guard: Option<VerificationGuard>,
    ) -> Check {
        let now = self.now;
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let ticket = process.ticket(call, partition);
        let request = ProduceRequest {
            ticket,
            batch,
            acks,
            deadline: now + PRODUCE_DEADLINE,
            guard,
        };
        let peers = process.peers.clone();
        if let Some(replica) = process.replicas[partition].as_mut() {
            replica.partition.handle_produce(now, request, &peers);
        }
        self.drain(node, partition)
    }

    /// A produce is about to be answered "no error".
    pub fn check_answer(
        &mut self,
        node: usize,
        waiting: &Waiting,
        outcome: ProduceOutcome,
    ) -> Check {
        let checker = &self.checkers[waiting.partition];
        let call = match &waiting.call {
            Call::Produce(call) => call,
            Call::Transaction(call) => {
                return checker.acknowledged(node, outcome.base, Some(call.sequence()));
            }
        };
        let producer = &self.producers[call.producer];
        let sequence = sequence_of(&call.bytes);
        match producer.acks {
            Acks::All => checker.acknowledged(node, outcome.base, sequence),
            Acks::Leader => {
                let mirror = &checker.replicas[node].mirror;
                match mirror.records_at(outcome.base) {
                    Some(held) if held.end <= mirror.durable => Ok(()),
                    held => violated(
                        "acks=1, not durable",
                        format!("node {} answers {}: {held:?}", node + 1, outcome.base),
                    ),
                }
            }
            Acks::None => Ok(()),
        }
    }

    pub fn produce_answered(
        &mut self,
        call: &ProduceCall,
        result: Result<ProduceOutcome, ErrorCode>,
    ) -> Check {
        let now = self.now;
        self.tell(|| {
            format!(
                "producer {}'s batch {} (attempt {}, node {}, {:?}): {result:?}",
                call.producer,
                call.batch,
                call.attempt,
                call.node + 1,
                sequence_of(&call.bytes)
            )
        });
        let partition = self.producers[call.producer].partition;
        let checker = &self.checkers[partition];
        let was_forced = checker.forced_epoch > LeaderEpoch::NONE;
        let may_be_lost =
            matches!(result, Ok(done) if checker.may_be_lost(call.answered_in, done.base));
        let producer = &mut self.producers[call.producer];
        let Some(place) = producer
            .unacknowledged
            .iter()
            .position(|sent| sent.batch == call.batch)
        else {
            // Answered already, by an earlier or later attempt.
            return Ok(());
        };
        match result {
            Ok(outcome) => {
                producer.established = true;
                let sequence = sequence_of(&call.bytes);
                if !may_be_lost {
                    producer
                        .acknowledged
                        .insert(call.batch, (outcome.base, sequence));
                }
                let sent = producer.unacknowledged.remove(place);
                debug_assert!(sent.is_some_and(|sent| sent.records > 0 && sent.sequence >= 0));
            }
            // Of what it has numbered anew since.
            Err(_) if was_forced && producer.unacknowledged[place].bytes != call.bytes => {}
            Err(ErrorCode::OutOfOrderSequenceNumber) if was_forced && place == 0 => {
                producer.begin_anew(now);
            }
            Err(error) if is_retriable(error) => {
                let sent = &mut producer.unacknowledged[place];
                if sent.attempt != call.attempt {
                    return Ok(());
                }
                let pause = producer.random.between(5, 100);
                sent.state = SentState::Ready {
                    not_before: now + Duration::from_millis(pause),
                };
                if matches!(
                    error,
                    ErrorCode::NotLeaderOrFollower | ErrorCode::UnknownTopicOrPartition
                ) {
                    producer.leader = None;
                }
            }
            Err(error) => {
                return unexpected(format!(
                    "producer {}'s batch {} was answered {error:?}",
                    call.producer, call.batch
                ));
            }
        }
        Ok(())
    }

    /// The nodes that say that they lead a partition.
    pub fn leading(&self, partition: usize) -> Vec<usize> {
        (0..self.setup.nodes)
            .filter(|&node| {
                self.nodes[node].is_running()
                    && self.nodes[node]
                        .view_replica(partition)
                        .is_some_and(|replica| replica.partition.view().is_leader)
            })
            .collect()
    }

    /// Fetches from a node that says that it leads, as the broker's fetch does.
    pub fn tick_reader(&mut self, i: usize) -> Check {
        let after = self.readers[i].random.between(20_000, 80_000);
        self.plan_us(after, Event::ReaderTick(i));
        let partition = self.readers[i].partition;
        let leading = self.leading(partition);
        if leading.is_empty() {
            return Ok(());
        }
        let reread_permille = self.setup.reread_permille;
        let reader = &mut self.readers[i];
        let node = leading[reader.random.index(leading.len())];
        if reader.random.permille(reread_permille) {
            // A consumer group begins anew now and then.
            reader.next = Offset::ZERO;
        }
        let Some(replica) = self.nodes[node].view_replica(partition) else {
            return Ok(());
        };
        let view = replica.partition.view();
        let from = self.readers[i].next.max(view.log_start);
        let below = if self.planted == Some(Planted::ReadUncommitted) {
            view.log_end
        } else {
            view.high_watermark
        };
        if from > view.log_end || from >= below {
            return Ok(());
        }
        let read = replica.reader.read_records(from, 2000, below);
        let harmed = self.nodes[node].was_harmed[partition];
        match read {
            Ok(batches) => {
                for bytes in batches {
                    let Ok(batch) = Batch::decode(&bytes) else {
                        return violated("10 (read)", format!("no batch at {from}"));
                    };
                    let (Some(base), Some(next)) = (
                        Offset::from_wire(batch.header.base_offset),
                        Offset::from_wire(batch.header.next_offset()),
                    ) else {
                        return violated("10 (read)", "a negative offset");
                    };
                    let crc = crc32fast::hash(&bytes);
                    self.figures.read += 1;
                    self.checkers[partition].read(node, base, next, crc)?;
                    self.readers[i].next = next;
                }
                Ok(())
            }
            Err(ReadError::OutOfRange { .. }) => Ok(()),
            Err(error) if harmed => {
                self.tell(|| format!("a reader at node {}: {error}", node + 1));
                if error.is_damage()
                    && let Some(replica) = self.nodes[node].replica(partition)
                {
                    replica.partition.handle_damage(&error.to_string());
                }
                self.drain(node, partition)
            }
            // The process has died in the middle of something and its end is only not noticed yet.
            Err(_) if self.nodes[node].disk.has_crashed() => Ok(()),
            Err(error) => violated("10 (read)", format!("node {}: {error}", node + 1)),
        }
    }
}

/// The producer, its epoch and the first sequence number of a batch.
fn sequence_of(bytes: &Bytes) -> Option<(i64, i16, i32)> {
    let batch = Batch::decode(bytes).ok()?;
    let header = batch.header;
    let producer = header.producer_id?;
    Some((producer.get(), header.producer_epoch, header.base_sequence))
}
