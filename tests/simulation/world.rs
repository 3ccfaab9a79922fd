//! The whole simulated cluster, and its clock.

use std::time::Duration;

use quorate::types::MonotonicTime;

use super::checker::{Check, PartitionChecker, Violation, violated};
use super::clients::{Producer, Reader};
use super::controller::Controller;
use super::event::{Event, Queue};
use super::network::Network;
use super::node::{Node, index_of, partition_id};
use super::planted::Planted;
use super::random::Random;
use super::schedule::{Fault, KINDS, Setup};
use super::stability::CommittedReader;
use super::trace::Trace;
use super::transactors::Transactor;

/// How often a node's timers are looked at, as in the broker.
pub const TICK: Duration = Duration::from_millis(50);
/// After every step each invariant is checked against what that step can have changed; after this many, everything from the
/// beginning, as a check of those checks.
const FULL_CHECK_STEPS: u64 = 128;
/// After the last fault everything must be in order again within this much virtual time.
const CONVERGENCE: Duration = Duration::from_secs(60);
/// What waits for a time to come: a bound that a run never gets near unless something multiplies.
pub const MAX_QUEUED: usize = 20_000;

pub struct World {
    pub setup: Setup,
    pub schedule: Vec<Fault>,
    pub planted: Option<Planted>,
    pub now: MonotonicTime,
    pub queue: Queue,
    pub random: Random,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub controller: Controller,
    pub producers: Vec<Producer>,
    pub readers: Vec<Reader>,
    pub transactors: Vec<Transactor>,
    pub committed_reader: CommittedReader,
    pub checkers: Vec<PartitionChecker>,
    pub trace: Trace,
    pub figures: Figures,
    /// `min.insync.replicas` as the topic is configured now.
    pub min_insync: u32,
    /// From here on nothing new goes wrong.
    pub healing_since: Option<MonotonicTime>,
    /// What happened, in words, when it is asked for.
    pub story: Option<Vec<String>>,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub steps: u64,
    pub faults: u64,
    /// Faults that were made, by [`FaultKind::index`].
    pub of_kind: [u64; KINDS.len()],
    pub acknowledged: u64,
    pub committed: u64,
    pub epochs_committed_in: u64,
    pub elections: u64,
    /// In-sync sets that became smaller, that became larger, and in which another process of the same node took a place.
    pub shrunk: u64,
    pub grown: u64,
    pub renamed: u64,
    pub min_insync_changes: u64,
    /// Reassignments that were ended, and logs that were removed because their replica was elsewhere then.
    pub reassigned: u64,
    pub left: u64,
    /// Leaders that handed over; leaderships that left a node that drains or a replica that goes, and that went to the
    /// preferred one.
    pub handed_over: u64,
    pub moved_away: u64,
    pub moved_to_preferred: u64,
    /// Unclean elections, and committed batches that were lost by them.
    pub forced: u64,
    pub lost: u64,
    pub restarts: u64,
    pub truncations: u64,
    pub resets: u64,
    /// Resets that brought what the leader knew of producers.
    pub resets_with_producers: u64,
    pub read: u64,
    /// Transactions that ended so and so, and batches of theirs that a reader of committed records was given, and was not.
    pub transactions_committed: u64,
    pub transactions_aborted: u64,
    pub read_of_transactions: u64,
    pub left_out: u64,
    pub trimmed: u64,
    /// Corrupt logs that were set aside at a start, and by a running process.
    pub quarantines: u64,
    pub set_aside_running: u64,
    /// Bits that were flipped in what an active segment had synced, and found at the start that followed.
    pub tail_flips: u64,
    /// Likewise, and not read then, because the index that was written down of the segment vouched for it.
    pub indexed_flips: u64,
    /// Starts at which such an index spared reading a part of the active segment.
    pub tails_spared: u64,
    /// Starts at which the active segment could not be read all through.
    pub unreadable_starts: u64,
    /// Partitions that could not be opened at a start.
    pub shut: u64,
    /// Fences that were answered by a replica that had lost what it acknowledged.
    pub ineligible: u64,
    /// Processes that stopped because a write or a sync had failed.
    pub stopped_by_disk: u64,
    /// Appends for which the disk had no room.
    pub no_room: u64,
    /// How often what a replica kept of producers was compared with a replay of its log, and how often it had to be taken for
    /// incomplete.
    pub producers_compared: u64,
    pub producers_incomplete: u64,
    /// Runs in which too many disks were harmed for anyone to be elected: nothing more was asked of them than of the others
    /// until then.
    pub beyond_repair: u64,
    /// Virtual time until everything was in order again.
    pub healed_in_ms: u64,
    pub trace: u64,
}

impl World {
    pub fn new(setup: Setup, schedule: Vec<Fault>, planted: Option<Planted>) -> World {
        let lying = planted == Some(Planted::LyingDisk);
        let nodes = (0..setup.nodes)
            .map(|index| Node::new(&setup, index, lying))
            .collect();
        let checkers = (0..setup.partitions)
            .map(|_| PartitionChecker::new(setup.nodes))
            .collect();
        let producers = (0..setup.producers)
            .map(|index| Producer::new(&setup, index))
            .collect();
        let readers = (0..setup.readers)
            .map(|index| Reader::new(&setup, index))
            .collect();
        World {
            network: Network::new(&setup),
            random: Random::new(setup.seed, 4),
            controller: Controller::default(),
            now: MonotonicTime::ZERO,
            queue: Queue::default(),
            nodes,
            producers,
            readers,
            transactors: Transactor::all(&setup),
            committed_reader: CommittedReader::new(&setup),
            checkers,
            trace: Trace::default(),
            figures: Figures::default(),
            min_insync: setup.min_insync,
            healing_since: None,
            story: None,
            setup,
            schedule,
            planted,
        }
    }

    /// Runs to the end. `Err` with what must not be.
    pub fn run(&mut self) -> Result<Figures, Violation> {
        self.found_cluster()?;
        for i in 0..self.schedule.len() {
            let at = MonotonicTime::ZERO + Duration::from_millis(self.schedule[i].at_ms);
            self.queue.push(at, Event::Fault(i));
        }
        self.plan(Duration::from_millis(25), Event::ControllerTick);
        for i in 0..self.producers.len() {
            self.plan(Duration::from_millis(30), Event::ProducerTick(i));
        }
        for i in 0..self.readers.len() {
            self.plan(Duration::from_millis(40), Event::ReaderTick(i));
        }
        for i in 0..self.transactors.len() {
            self.plan(Duration::from_millis(35), Event::TransactorTick(i));
        }
        if !self.transactors.is_empty() {
            self.plan(Duration::from_millis(45), Event::CommittedReaderTick);
        }
        let last_fault = MonotonicTime::ZERO + Duration::from_millis(self.setup.duration_ms);
        while let Some((at, event)) = self.queue.pop() {
            self.now = self.now.max(at);
            if self.healing_since.is_none() && self.now >= last_fault {
                self.heal()?;
            }
            self.step(event)?;
            if let Some(since) = self.healing_since {
                if self.figures.steps.is_multiple_of(16) && self.is_in_order() {
                    return self.finish(since);
                }
                if self.now.since(since) > CONVERGENCE {
                    if self.is_beyond_repair() {
                        self.figures.beyond_repair += 1;
                        return self.finish(since);
                    }
                    let what = self.what_is_not_in_order();
                    return Err(violated_now("convergence", what));
                }
            }
        }
        Err(violated_now("simulator", "time stood still".to_owned()))
    }

    fn step(&mut self, event: Event) -> Check {
        self.figures.steps += 1;
        let print = event.fingerprint();
        self.trace
            .add(&[self.now.as_micros(), print[0], print[1], print[2], print[3]]);
        if let Some(node) = event.node()
            && let Some(waiting) = &mut self.nodes[node].stopped
        {
            waiting.push(event);
            return Ok(());
        }
        self.handle(event)?;
        self.check_step()?;
        if self.figures.steps.is_multiple_of(FULL_CHECK_STEPS) {
            self.check_all()?;
        }
        Ok(())
    }

    pub fn handle(&mut self, event: Event) -> Check {
        match event {
            Event::Fault(i) => self.begin_fault(i),
            Event::FaultOver(i) => self.end_fault(i),
            Event::Restart { node } => self.restart(node),
            Event::Tick { node, boot } => self.tick_node(node, boot),
            Event::Dial { node, boot, leader } => self.dial(node, boot, leader),
            Event::Chunk {
                connection,
                stream,
                bytes,
            } => self.chunk_arrived(connection, stream, &bytes),
            Event::Resume { connection, stream } => self.stream_resumed(connection, stream),
            Event::Datagram {
                connection,
                to_leader,
                bytes,
            } => self.datagram_arrived(connection, to_leader, bytes),
            Event::EndClosed {
                connection,
                leader_end,
            } => self.end_closed(connection, leader_end),
            Event::Room {
                node,
                boot,
                follower,
            } => self.room_came(node, boot, follower),
            Event::FlushAcks { connection } => self.flush_acks(connection),
            Event::SyncRun {
                node,
                boot,
                partition,
                ticket,
            } => self.run_sync(node, boot, partition, ticket),
            Event::SyncTold {
                node,
                boot,
                partition,
                ticket,
                result,
            } => self.sync_told(node, boot, partition, ticket, result),
            Event::PromisesRun { node, boot } => self.run_promises(node, boot),
            Event::PromisesTold { node, boot, raised } => self.promises_told(node, boot, &raised),
            Event::FencePersist {
                node,
                boot,
                call,
                answers,
            } => self.persist_fence(node, boot, call, answers),
            Event::ToController(message) => self.tell_controller(message),
            Event::ToNode { node, message } => self.tell_node(node, message),
            Event::ControllerTick => self.tick_controller(),
            Event::Commit { command, origin } => self.commit(&command, origin),
            Event::Produce(call) => self.produce_arrived(call),
            Event::ProduceReply { call, result } => self.produce_answered(&call, result),
            Event::ProducerTick(i) => self.tick_producer(i),
            Event::ReaderTick(i) => self.tick_reader(i),
            Event::TransactorTick(i) => self.tick_transactor(i),
            Event::CommittedReaderTick => self.tick_committed_reader(),
            Event::Transaction(call) => self.transaction_arrived(call),
            Event::Verify { call, guard, boot } => self.verify_transaction(call, guard, boot),
            Event::Verified { call, guard, boot } => self.transaction_verified(call, guard, boot),
            Event::TransactionReply { call, result } => self.transaction_answered(&call, result),
        }
    }

    /// Plans an event some time from now.
    pub fn plan(&mut self, after: Duration, event: Event) {
        self.queue.push(self.now + after, event);
    }

    pub fn plan_us(&mut self, after_us: u64, event: Event) {
        self.plan(Duration::from_micros(after_us), event);
    }

    /// A line for whoever reads a failure's story.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let at = self.now.as_micros();
            story.push(format!("{:>6}.{:03} ms  {}", at / 1000, at % 1000, line()));
        }
    }

    pub fn check_all(&self) -> Check {
        for checker in &self.checkers {
            checker.check_all()?;
        }
        self.check_step()
    }

    fn finish(&mut self, healing_since: MonotonicTime) -> Result<Figures, Violation> {
        self.check_all()?;
        for (partition, checker) in self.checkers.iter().enumerate() {
            if self.figures.beyond_repair == 0 {
                let state = self.controller.image.partition(partition_id(partition));
                let replicas = state.map_or(&[][..], |state| &state.replicas);
                let replicas: Vec<usize> = replicas.iter().map(|&node| index_of(node)).collect();
                checker.check_equal(&replicas)?;
            }
            self.figures.committed += checker.committed.len() as u64;
            self.figures.epochs_committed_in += checker.epochs_committed_in.len() as u64;
            self.figures.lost += checker.lost_frames;
            self.figures.producers_compared += checker.producers_compared;
            self.figures.producers_incomplete += checker.producers_incomplete;
        }
        self.check_transactions()?;
        for producer in &self.producers {
            producer.check_history(&self.checkers[producer.partition])?;
            self.figures.acknowledged += producer.acknowledged.len() as u64;
        }
        self.figures.healed_in_ms = self.now.since(healing_since).as_millis() as u64;
        self.figures.trace = self.trace.hash();
        Ok(self.figures)
    }
}

pub fn violated_now(rule: &'static str, what: String) -> Violation {
    Violation { rule, what }
}

/// An unexpected end of something that the checks rely on.
pub fn unexpected(what: impl Into<String>) -> Check {
    violated("unexpected", what)
}
