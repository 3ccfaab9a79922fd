//! Storage faults under a leader and a follower, one by one: what each replica does, and that nothing acknowledged is lost.

mod hand_over;
mod resign;
mod transactions;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::replica::Role;
use super::*;
use crate::record::{Batch, BatchBuilder, Compression, ProducerStamp};
use crate::replication::{Acks, MINIMUM_SUSPICION, Peers, ProduceTicket, ProducerStates};
use crate::storage::faulty::FaultyFileSystem;
use crate::storage::{
    Flush, ImpairmentReason, Log, LogConfig, LogOptions, RecoveryBudget, RecoveryReport, SyncTicket,
};
use crate::types::{
    Appointment, DirectoryId, ErrorCode, Incarnation, IsrChange, LeaderEpoch, LogPosition,
    MonotonicTime, NodeId, Offset, PartitionEpoch, PartitionIndex, PartitionState, ProducerId,
    TopicId, TopicName, TopicPartition,
};
use crate::wal::{Decoded, Frame};

const DIR: &str = "/p";

struct Replica {
    fs: FaultyFileSystem,
    partition: Option<Partition>,
    incarnation: u64,
    promised: LeaderEpoch,
    report: RecoveryReport,
    /// Sync tickets stay out while this is set.
    disk_hangs: bool,
    hanging: Vec<SyncTicket>,
    /// What was said to the operator.
    failures: Vec<(String, bool)>,
    completed: Vec<(ProduceTicket, Result<u64, ErrorCode>)>,
    proposed: Vec<IsrChange>,
    handed_over: Vec<Result<(), HandOverError>>,
    resigned: Vec<LeaderEpoch>,
}

/// Two replicas whose messages arrive at once and in order.
struct Pair {
    replicas: Vec<Replica>,
    state: PartitionState,
    now: MonotonicTime,
    config: LogConfig,
    options: LogOptions,
    tickets: u64,
    /// Of the one idempotent producer.
    next_sequence: i32,
}

fn node(i: usize) -> NodeId {
    NodeId::new(i as u32 + 1).unwrap()
}

fn id() -> TopicPartition {
    TopicPartition {
        topic: TopicId::from_random_bits(1),
        partition: PartitionIndex(0),
    }
}

fn batch(producer: i64, sequence: i32, size: usize) -> Batch {
    let mut builder = BatchBuilder::new();
    let value = Bytes::from(vec![b'x'; size]);
    builder.append(None, Some(&value), &[], 1000).unwrap();
    let stamp = ProducerStamp {
        id: ProducerId::new(producer).unwrap(),
        epoch: 0,
        base_sequence: sequence,
    };
    let sealed = builder.seal(Compression::None).unwrap();
    Batch::decode(&sealed.stamp(Some(stamp))).unwrap()
}

impl Pair {
    fn new() -> Pair {
        Pair::with(LogConfig {
            segment_bytes: 2000,
            retention_ms: None,
            ..LogConfig::default()
        })
    }

    fn with(config: LogConfig) -> Pair {
        Pair::within(config, RecoveryBudget::default())
    }

    fn within(config: LogConfig, budget: RecoveryBudget) -> Pair {
        let replica = |seed| Replica {
            fs: FaultyFileSystem::new(seed),
            partition: None,
            incarnation: 0,
            promised: LeaderEpoch::NONE,
            report: RecoveryReport::default(),
            disk_hangs: false,
            hanging: Vec::new(),
            failures: Vec::new(),
            completed: Vec::new(),
            proposed: Vec::new(),
            handed_over: Vec::new(),
            resigned: Vec::new(),
        };
        let mut options = LogOptions::from(config.clone());
        // Every read comes from the disk.
        options.tail_cache_bytes = 0;
        options.recovery_budget = budget;
        let mut pair = Pair {
            replicas: vec![replica(1), replica(2)],
            state: PartitionState {
                replicas: vec![node(0), node(1)],
                isr: Vec::new(),
                leader: None,
                leader_epoch: LeaderEpoch::new(1).unwrap(),
                partition_epoch: PartitionEpoch(1),
                min_insync: 1,
                target_replicas: Vec::new(),
                forced_epoch: LeaderEpoch::NONE,
            },
            now: MonotonicTime::ZERO,
            config,
            options,
            tickets: 0,
            next_sequence: 0,
        };
        pair.start(0);
        pair.start(1);
        pair.state.isr = vec![pair.appointment(0), pair.appointment(1)];
        pair.state.leader = Some(pair.appointment(0));
        pair
    }

    fn appointment(&self, i: usize) -> Appointment {
        Appointment {
            node: node(i),
            directory: DirectoryId::from_random_bits(i as u128),
            incarnation: Incarnation::from_random_bits(self.replicas[i].incarnation),
        }
    }

    fn start(&mut self, i: usize) {
        self.replicas[i].incarnation += 1;
        let me = self.appointment(i);
        let replica = &mut self.replicas[i];
        let topic = TopicName::new("t").unwrap();
        let opened = Log::open(
            replica.fs.shared(),
            Path::new(DIR),
            id(),
            &topic,
            self.options.clone(),
        );
        let (log, report) = opened.unwrap();
        let options = PartitionOptions {
            id: id(),
            me,
            promised: replica.promised,
            high_watermark: Offset::ZERO,
            first_session: replica.incarnation << 32,
        };
        replica.report = report;
        replica.partition = Some(Partition::new(options, log));
    }

    fn kill(&mut self, i: usize) {
        self.replicas[i].partition = None;
        self.replicas[i].fs.kill();
    }

    fn stop(&mut self, i: usize) {
        let (_, mut log) = self.replicas[i].partition.take().unwrap().close();
        log.close().unwrap();
        self.replicas[i].fs.kill();
    }

    fn partition(&mut self, i: usize) -> &mut Partition {
        self.replicas[i].partition.as_mut().unwrap()
    }

    /// A new state of the controller's, which everyone who runs is told.
    fn commit(&mut self, leader: Option<usize>, epoch: u32, isr: &[usize]) {
        self.state.leader = leader.map(|i| self.appointment(i));
        self.state.leader_epoch = LeaderEpoch::new(epoch).unwrap();
        self.state.partition_epoch = self.state.partition_epoch.next();
        self.state.isr = isr.iter().map(|&i| self.appointment(i)).collect();
        self.tell();
    }

    fn tell(&mut self) {
        let (now, state) = (self.now, self.state.clone());
        for i in 0..2 {
            if let Some(partition) = &mut self.replicas[i].partition {
                partition.handle_state(now, &state, true);
            }
        }
        self.run();
    }

    /// Fences a replica and says where it stands and whether it may lead.
    fn fence(&mut self, i: usize, epoch: u32) -> (LogPosition, bool) {
        let epoch = LeaderEpoch::new(epoch).unwrap();
        let answer = self.partition(i).handle_fence(epoch);
        let now = self.now;
        self.replicas[i].promised = epoch;
        self.partition(i).handle_promise_durable(now, epoch);
        self.run();
        match answer {
            FenceAnswer::Promised { last, eligible } => (last, eligible),
            FenceAnswer::Refused { promised } => panic!("promised {promised} already"),
        }
    }

    fn peers(&self) -> Peers {
        let mut peers = Peers::new();
        for i in 0..2 {
            peers.handle_heard(node(i), self.now, MINIMUM_SUSPICION, Duration::ZERO);
        }
        peers
    }

    fn open_session(partition: &mut Partition, from: Appointment, open: &crate::wire::OpenSession) {
        partition.handle_open_session(from, open);
    }

    /// Time passes on both.
    fn pass(&mut self, millis: u64) {
        for _ in 0..millis.div_ceil(50) {
            self.now = self.now + Duration::from_millis(50);
            let (now, peers) = (self.now, self.peers());
            for replica in &mut self.replicas {
                if let Some(partition) = &mut replica.partition {
                    partition.handle_tick(now, &peers);
                }
            }
            self.run();
        }
    }

    fn append(&mut self, i: usize, batch: Batch, acks: Acks) -> ProduceTicket {
        self.tickets += 1;
        let request = ProduceRequest {
            ticket: ProduceTicket(self.tickets),
            batch,
            acks,
            deadline: self.now + Duration::from_secs(3600),
            guard: None,
        };
        let (now, peers) = (self.now, self.peers());
        self.partition(i).handle_produce(now, request, &peers);
        self.run();
        ProduceTicket(self.tickets)
    }

    /// What came of a request, if it was answered.
    fn answer(&self, i: usize, ticket: ProduceTicket) -> Option<Result<u64, ErrorCode>> {
        let completed = &self.replicas[i].completed;
        let found = completed.iter().find(|(done, _)| *done == ticket)?;
        Some(found.1)
    }

    /// Produces the next batch of producer 7 and expects it to be committed.
    fn produce(&mut self, i: usize, count: usize) {
        for _ in 0..count {
            let batch = batch(7, self.next_sequence, 100);
            self.next_sequence += 1;
            let ticket = self.append(i, batch, Acks::All);
            assert!(matches!(self.answer(i, ticket), Some(Ok(_))), "{ticket:?}");
        }
    }

    /// Carries out what both ask for, until they ask for nothing.
    fn run(&mut self) {
        loop {
            let mut quiet = true;
            for i in 0..2 {
                while let Some(output) = self.replicas[i]
                    .partition
                    .as_mut()
                    .and_then(Partition::poll_output)
                {
                    quiet = false;
                    self.carry_out(i, output);
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn carry_out(&mut self, i: usize, output: Output) {
        let (now, other) = (self.now, 1 - i);
        let from = self.appointment(i);
        let replica = &mut self.replicas[i];
        match output {
            Output::Sync(ticket) if replica.disk_hangs => replica.hanging.push(ticket),
            Output::Sync(ticket) => {
                let result = ticket.run();
                self.partition(i).handle_synced(ticket, result);
            }
            Output::PersistPromise(epoch) => {
                replica.promised = replica.promised.max(epoch);
                self.partition(i).handle_promise_durable(now, epoch);
            }
            Output::OpenSession(hello) => {
                if let Some(leader) = &mut self.replicas[other].partition {
                    Pair::open_session(leader, from, &hello.open);
                }
            }
            Output::Ack { ack, .. } => {
                if let Some(leader) = &mut self.replicas[other].partition {
                    let _ = leader.handle_ack(now, from, &ack);
                }
            }
            Output::Answer { answer, .. } => {
                if let Some(follower) = &mut self.replicas[other].partition {
                    follower.handle_answer(now, from.node, &answer);
                }
            }
            Output::FramesReady(order) => {
                if let Some(frames) = self.partition(i).take_frames(order) {
                    self.deliver(other, &frames);
                }
            }
            Output::Watermark(frames) => self.deliver(other, &frames),
            Output::Complete { ticket, result } => replica
                .completed
                .push((ticket, result.map(|outcome| outcome.base.get()))),
            // The test commits what it wants.
            Output::ProposeIsr(change) => replica.proposed.push(change),
            Output::HandedOver { result, .. } => replica.handed_over.push(result),
            Output::Resign { leader_epoch, .. } => replica.resigned.push(leader_epoch),
            Output::ViewChanged => {}
            Output::Failed {
                cause,
                stop_process,
            } => replica.failures.push((cause, stop_process)),
        }
    }

    fn deliver(&mut self, to: usize, frames: &Frames) {
        let decoded = frames
            .frames
            .iter()
            .map(|bytes| match Frame::decode(bytes) {
                Ok(Decoded::Frame(frame)) => frame,
                other => panic!("a frame that was sent is whole: {other:?}"),
            });
        let decoded = decoded.collect();
        let now = self.now;
        if let Some(follower) = &mut self.replicas[to].partition {
            let _ = follower.handle_frames(
                now,
                frames.session,
                frames.leader_epoch,
                frames.high_watermark,
                decoded,
            );
        }
    }

    fn frames(&mut self, i: usize) -> Vec<Frame> {
        let reader = self.partition(i).reader();
        reader.frames(reader.start()).map(Result::unwrap).collect()
    }

    fn assert_equal_logs(&mut self) {
        let (own, other) = (self.frames(0), self.frames(1));
        assert_eq!(own, other);
    }

    fn producers(&mut self, i: usize) -> ProducerStates {
        match &self.partition(i).role {
            Role::Leader(leader) => leader.producers().clone(),
            _ => self.partition(i).producers.clone(),
        }
    }

    /// Retention leaves the last segment.
    fn trim(&mut self, i: usize) {
        let mut config = self.config.clone();
        config.retention_bytes = Some(1);
        self.partition(i).handle_config(config);
        self.pass(200);
        self.partition(i).handle_retention(0);
        self.run();
    }

    /// Flips a bit in the middle of the frames of the log's second segment.
    fn rot_sealed_segment(&mut self, i: usize) {
        let fs = &self.replicas[i].fs;
        let second = self.segments(i)[1].clone();
        fs.flip_bit(&second, 8 * 300).unwrap();
    }

    fn segments(&self, i: usize) -> Vec<std::path::PathBuf> {
        let entries = self.replicas[i].fs.shared().list(Path::new(DIR)).unwrap();
        let names = entries.into_iter().map(|entry| entry.name);
        names
            .filter(|name| name.ends_with(".wal"))
            .map(|name| Path::new(DIR).join(name))
            .collect()
    }

    /// Reads everything, as a consumer that begins at the beginning does, and hands damage to the owner.
    fn read_all(&mut self, i: usize) {
        let reader = self.partition(i).reader();
        if let Some(error) = reader.frames(reader.start()).find_map(Result::err) {
            assert!(error.is_damage(), "{error}");
            self.partition(i).handle_damage(&error.to_string());
            self.run();
        }
    }
}

#[test]
fn what_is_known_of_producers_comes_back_from_a_snapshot_and_the_rest_of_the_log() {
    let mut pair = Pair::new();
    pair.tell();
    let mut sequences = [0; 4];
    for turn in 0..60 {
        let producer = turn % 4;
        let ticket = pair.append(
            0,
            batch(producer as i64, sequences[producer], 320),
            Acks::All,
        );
        assert!(matches!(pair.answer(0, ticket), Some(Ok(_))));
        sequences[producer] += 1;
        for i in 0..2 {
            let known = pair.producers(i);
            let replayed = replayed(&mut pair, i);
            assert_eq!(known, replayed, "replica {i} in turn {turn}");
        }
    }
    let known = pair.producers(0);
    pair.kill(0);
    pair.stop(1);
    for i in 0..2 {
        pair.start(i);
        assert_eq!(pair.producers(i), known, "replica {i} after a restart");
    }
    // A clean stop leaves nothing to read again, a kill no more than the last segment.
    let snapshot = |pair: &mut Pair, i: usize| {
        let log = &pair.partition(i).log;
        let found = log.latest_snapshot(log.end(), Some);
        (found.map(|(at, _)| at), log.end(), log.segment_count())
    };
    let (killed, end, segments) = snapshot(&mut pair, 0);
    assert!(killed.unwrap() < end && segments > 3);
    assert!(end.offset.records_since(killed.unwrap().offset) < 50);
    let (stopped, end, _) = snapshot(&mut pair, 1);
    assert_eq!(stopped, Some(end));
}

#[test]
fn of_a_long_segment_no_more_is_read_and_replayed_after_a_kill_than_the_budget() {
    let config = LogConfig {
        retention_ms: None,
        ..LogConfig::default()
    };
    let budget = 20_000;
    let mut pair = Pair::within(config, RecoveryBudget::of(budget));
    pair.tell();
    for sequence in 0..200 {
        let ticket = pair.append(0, batch(1, sequence, 320), Acks::All);
        assert!(matches!(pair.answer(0, ticket), Some(Ok(_))));
    }
    let known = pair.producers(0);
    for i in 0..2 {
        pair.kill(i);
        pair.start(i);
        assert_eq!(pair.producers(i), known, "replica {i}");
        let scanned = pair.replicas[i].report.bytes_scanned;
        let log = &pair.partition(i).log;
        let (at, _) = log.latest_snapshot(log.end(), Some).unwrap();
        let replayed: usize = log.frames(at).map(|frame| frame.unwrap().len()).sum();
        assert_eq!(log.segment_count(), 1);
        assert!(
            scanned <= budget && replayed as u64 <= budget,
            "replica {i} read {scanned} and {replayed} of {} bytes",
            log.size_bytes()
        );
    }
}

/// From the first record on, without any snapshot.
fn replayed(pair: &mut Pair, i: usize) -> ProducerStates {
    let mut producers = ProducerStates::new();
    for frame in pair.frames(i) {
        super::producers::remember_producer(&mut producers, &frame);
    }
    producers
}

#[test]
fn producers_below_the_log_start_are_known_after_retention_a_restart_and_a_reset() {
    let mut pair = Pair::new();
    pair.tell();
    // Producer 1 is silent after its first batch, which retention removes.
    let first = pair.append(0, batch(1, 0, 100), Acks::All);
    assert_eq!(pair.answer(0, first), Some(Ok(0)));
    pair.produce(0, 60);
    let known = pair.producers(0);
    pair.config.retention_bytes = Some(1);
    pair.options.config = pair.config.clone();
    let config = pair.config.clone();
    pair.partition(0).handle_config(config);
    pair.pass(200);
    pair.partition(0).handle_retention(0);
    pair.run();
    let start = pair.partition(0).log.start();
    assert!(start.offset.get() > 30, "{start}");
    assert_eq!(pair.producers(0), known);

    // The leader is started again, and the follower with an empty directory.
    pair.kill(0);
    pair.kill(1);
    pair.replicas[1].fs = FaultyFileSystem::new(9);
    pair.start(0);
    assert_eq!(pair.producers(0), known, "from the snapshot at the start");
    pair.start(1);
    pair.commit(Some(0), 2, &[0]);
    pair.pass(200);
    assert_eq!(
        pair.partition(1).log.start(),
        start,
        "reset to the leader's start"
    );
    pair.assert_equal_logs();
    assert_eq!(pair.producers(1), known, "what came with the reset");
    pair.kill(1);
    pair.start(1);
    assert_eq!(pair.producers(1), known, "and it is durable");

    // The follower, which never had that batch, answers it with its offset when it leads.
    pair.commit(Some(0), 2, &[0, 1]);
    pair.pass(200);
    pair.commit(Some(1), 3, &[0, 1]);
    pair.pass(200);
    let again = pair.append(1, batch(1, 0, 100), Acks::All);
    assert_eq!(pair.answer(1, again), Some(Ok(0)));
    let gap = pair.append(1, batch(1, 5, 100), Acks::All);
    let refused = Err(ErrorCode::OutOfOrderSequenceNumber);
    assert_eq!(pair.answer(1, gap), Some(refused));
    pair.produce(1, 3);
}

#[test]
fn producers_are_known_after_a_restart_though_a_segment_that_retention_removed_could_not_be_read() {
    let mut pair = Pair::new();
    pair.tell();
    // So many that no snapshot of them is due while the log is as short as this.
    for producer in 100..130 {
        let first = pair.append(0, batch(producer, 0, 100), Acks::All);
        assert!(matches!(pair.answer(0, first), Some(Ok(_))));
    }
    pair.produce(0, 60);
    pair.pass(200);
    pair.rot_sealed_segment(0);
    pair.trim(0);
    assert!(pair.partition(0).log.start().offset.get() > 30);
    pair.produce(0, 1);
    let known = pair.producers(0);
    pair.kill(0);
    pair.start(0);
    assert_eq!(pair.producers(0), known, "from what was remembered");
}

#[test]
fn a_follower_has_one_promise_written_at_a_time_however_many_it_makes_meanwhile() {
    let mut pair = Pair::new();
    pair.tell();
    pair.run();
    let persists = |partition: &mut Partition| -> Vec<u32> {
        std::iter::from_fn(|| partition.poll_output())
            .filter_map(|output| match output {
                Output::PersistPromise(epoch) => Some(epoch.get()),
                _ => None,
            })
            .collect()
    };
    let (now, mut state) = (pair.now, pair.state.clone());
    let mut asked = Vec::new();
    for number in 2..8 {
        state.leader_epoch = LeaderEpoch::new(number).unwrap();
        state.partition_epoch = state.partition_epoch.next();
        let follower = pair.partition(1);
        follower.handle_state(now, &state, true);
        asked.extend(persists(follower));
    }
    assert_eq!(asked, [2]);
    let follower = pair.partition(1);
    follower.handle_promise_durable(now, LeaderEpoch::new(2).unwrap());
    assert_eq!(persists(follower), [7], "then the last one, and at once");
    follower.handle_promise_durable(now, LeaderEpoch::new(7).unwrap());
    assert_eq!(persists(follower), [0_u32; 0]);
}

#[test]
fn a_leader_whose_log_rots_gives_way_and_fetches_it_anew_without_a_restart() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 60);
    pair.pass(200);
    pair.rot_sealed_segment(0);
    pair.read_all(0);
    let (told, stop) = pair.replicas[0].failures[0].clone();
    assert!(
        told.contains("damaged") && told.contains(".wal") && !stop,
        "{told}"
    );
    // What it has left is still there and still served, until another leads.
    pair.produce(0, 1);
    let end = pair.partition(0).log.end();
    assert!(pair.partition(0).is_damaged());
    pair.pass(100);
    let times = pair.replicas[0].resigned.len();
    assert_eq!(times, 1, "it asks for another leader");
    pair.pass(15_000);
    let times = pair.replicas[0].resigned.len();
    assert_eq!(times, 3, "and again, after 5 s and then 10 s");

    // It takes no part in the election, and then fetches everything from the winner.
    assert_eq!(pair.fence(0, 2), (end, false));
    assert_eq!(pair.fence(1, 2), (end, true));
    pair.commit(Some(1), 2, &[0, 1]);
    pair.pass(2000);
    pair.assert_equal_logs();
    pair.produce(1, 5);
    pair.assert_equal_logs();
    assert!(!pair.partition(0).is_damaged());
    let entries = pair.replicas[0].fs.shared().list(Path::new("/")).unwrap();
    assert!(entries.iter().any(|entry| entry.name == "p.quarantine-1"));

    // It was in the in-sync set all the while, by acknowledgements that are void: a change that only still names it says
    // nothing. One that lets it in again does.
    let wanted = &pair.replicas[1].proposed;
    assert_eq!(
        wanted[0].new_isr,
        [pair.appointment(1)],
        "the leader wants it to leave first"
    );
    pair.commit(Some(1), 2, &[0, 1]);
    assert!(!pair.partition(0).trusted);
    pair.commit(Some(1), 2, &[1]);
    pair.pass(200);
    let back = pair.replicas[1].proposed.last().unwrap();
    assert_eq!(back.new_isr.len(), 2, "and then lets it in again: {back:?}");
    pair.commit(Some(1), 2, &[0, 1]);
    assert!(pair.fence(0, 3).1);
}

#[test]
fn what_an_operator_gave_up_is_cut_even_where_it_was_committed_and_nothing_else_is() {
    for forced in [true, false] {
        let mut pair = Pair::new();
        pair.tell();
        pair.produce(0, 3);
        let shared_sequence = pair.next_sequence;
        // The leader goes on alone, commits, and is gone; the other one is made leader.
        pair.kill(1);
        pair.commit(Some(0), 1, &[0]);
        pair.produce(0, 3);
        let committed = pair.partition(0).high_watermark();
        pair.stop(0);
        pair.start(1);
        if forced {
            pair.state.forced_epoch = LeaderEpoch::new(2).unwrap();
        }
        pair.next_sequence = shared_sequence;
        pair.commit(Some(1), 2, &[1]);
        pair.produce(1, 1);
        pair.start(0);
        pair.partition(0).high_watermark = committed;
        pair.tell();
        pair.pass(500);
        let failed = matches!(
            pair.partition(0).role_view(MonotonicTime::ZERO),
            RoleView::Failed
        );
        let (told, stop) = pair.replicas[0].failures.last().unwrap().clone();
        assert!(
            told.contains("below its committed offset") && !stop,
            "{told}"
        );
        assert_eq!(failed, !forced, "{told}");
        if forced {
            assert!(told.contains("an operator forced a leader"), "{told}");
            pair.assert_equal_logs();
            pair.commit(Some(1), 2, &[1, 0]);
            pair.produce(1, 2);
            pair.assert_equal_logs();
        }
    }
}

#[test]
fn what_an_operator_gave_up_goes_also_where_the_log_starts_behind_it_and_the_watermark_goes_too() {
    for leader_is_trimmed in [false, true] {
        let mut pair = Pair::new();
        pair.tell();
        pair.produce(0, 60);
        let shared_sequence = pair.next_sequence;
        pair.kill(1);
        pair.commit(Some(0), 2, &[0]);
        pair.produce(0, 60);
        pair.trim(0);
        let start = pair.partition(0).log.start();
        assert_eq!(start.epoch, LeaderEpoch::new(2).unwrap(), "{start}");
        let committed = pair.partition(0).high_watermark();
        pair.stop(0);
        pair.start(1);
        pair.state.forced_epoch = LeaderEpoch::new(3).unwrap();
        pair.next_sequence = shared_sequence;
        pair.commit(Some(1), 3, &[1]);
        pair.produce(1, 1);
        if leader_is_trimmed {
            pair.trim(1);
        }
        let trimmed = pair.partition(1).log.start() > LogPosition::START;
        assert_eq!(trimmed, leader_is_trimmed);
        pair.start(0);
        pair.partition(0).high_watermark = committed;
        pair.tell();
        pair.pass(2000);
        pair.assert_equal_logs();
        let known = pair.partition(1).high_watermark();
        assert_eq!(pair.partition(0).high_watermark(), known);
        let told = &pair.replicas[0].failures;
        assert!(told[0].0.contains("forced a leader"), "{told:?}");
        // Were the old watermark still there, the next leader would answer at once for what it alone has.
        pair.commit(Some(1), 3, &[1, 0]);
        pair.commit(Some(0), 4, &[1, 0]);
        pair.kill(1);
        let sequence = pair.next_sequence;
        let waits = pair.append(0, batch(7, sequence, 100), Acks::All);
        assert_eq!(pair.answer(0, waits), None);
    }
}

#[test]
fn under_a_forced_leader_a_follower_knows_no_watermark_but_that_leaders() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 3);
    pair.pass(200);
    let known = pair.partition(0).high_watermark();
    // It holds everything, and does not know that it is committed; alone it cannot commit.
    pair.partition(1).high_watermark = Offset::ZERO;
    pair.state.forced_epoch = LeaderEpoch::new(2).unwrap();
    pair.state.min_insync = 2;
    pair.commit(Some(1), 2, &[1]);
    pair.pass(500);
    pair.assert_equal_logs();
    assert_eq!(pair.partition(0).high_watermark(), Offset::ZERO);
    let told = &pair.replicas[0].failures;
    assert!(told.is_empty(), "nothing is lost: {told:?}");
    pair.commit(Some(1), 2, &[1, 0]);
    pair.pass(500);
    assert_eq!(pair.partition(0).high_watermark(), known);
}

#[test]
fn a_damaged_leader_that_nobody_could_follow_goes_on_leading() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 60);
    pair.kill(1);
    pair.partition(0).handle_follower_gone(node(1));
    pair.rot_sealed_segment(0);
    pair.read_all(0);
    pair.pass(5000);
    let asked = &pair.replicas[0].resigned;
    assert!(
        asked.is_empty(),
        "an election would end nowhere and take the reads away: {asked:?}"
    );
}

#[test]
fn a_replica_that_missed_how_it_left_the_in_sync_set_has_it_done_again() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 60);
    pair.pass(200);
    pair.rot_sealed_segment(1);
    pair.read_all(1);
    pair.pass(1000);
    pair.assert_equal_logs();
    let left = [pair.appointment(0)];
    let proposed = &pair.replicas[0].proposed;
    assert_eq!(proposed.last().unwrap().new_isr, left);

    // It leaves and comes back, and is told of the end alone.
    pair.state.isr = left.to_vec();
    pair.state.partition_epoch = pair.state.partition_epoch.next();
    let (now, state) = (pair.now, pair.state.clone());
    pair.partition(0).handle_state(now, &state, true);
    pair.commit(Some(0), 1, &[0, 1]);
    assert!(!pair.partition(1).trusted);
    pair.pass(1000);
    let proposed = &pair.replicas[0].proposed;
    assert_eq!(proposed.last().unwrap().new_isr, left);
    pair.commit(Some(0), 1, &[0]);
    pair.commit(Some(0), 1, &[0, 1]);
    assert!(pair.partition(1).trusted);
}

#[test]
fn what_a_read_found_bad_is_set_aside_at_the_next_start() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 60);
    pair.rot_sealed_segment(0);
    pair.read_all(0);
    pair.kill(0);
    pair.start(0);
    // Opening alone would have trusted the segment's index.
    let quarantine = pair.replicas[0].report.quarantined.clone();
    assert!(quarantine.is_some());
    assert!(!pair.fence(0, 2).1);
    assert!(pair.fence(1, 2).1);
    pair.commit(Some(1), 2, &[1]);
    pair.pass(2000);
    pair.assert_equal_logs();
    pair.commit(Some(1), 2, &[0, 1]);
    assert!(pair.fence(0, 3).1, "admitted again");
}

#[test]
fn a_follower_that_finds_rot_while_it_truncates_fetches_its_log_anew() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 60);
    pair.pass(200);
    // The follower has records that the next leader does not have, and rot where it would be cut.
    pair.kill(1);
    pair.start(1);
    let cut = pair.partition(1).log.end();
    let extra = Frame::epoch_start(LeaderEpoch::new(2).unwrap(), cut);
    pair.partition(1).log.append(&[extra]).unwrap();
    pair.partition(1).log.close().unwrap();
    let last = pair.segments(1).last().unwrap().clone();
    pair.replicas[1].fs.flip_bit(&last, 8 * 60).unwrap();
    pair.replicas[1].promised = LeaderEpoch::new(3).unwrap();
    pair.commit(Some(0), 3, &[0]);
    pair.pass(3000);
    pair.assert_equal_logs();
    let told: Vec<_> = pair.replicas[1].failures.iter().collect();
    assert!(
        told.iter().any(|(cause, _)| cause.contains("set aside")),
        "{told:?}"
    );
    assert!(told.iter().all(|(_, stop)| !stop));
    pair.produce(0, 5);
    pair.assert_equal_logs();
}

#[test]
fn a_leader_that_is_alone_in_sync_keeps_what_is_left() {
    let mut pair = Pair::new();
    pair.commit(Some(0), 1, &[0]);
    pair.kill(1);
    pair.produce(0, 60);
    pair.rot_sealed_segment(0);
    pair.read_all(0);
    let told = &pair.replicas[0].failures;
    assert!(
        told[0].0.contains("no other replica is in sync"),
        "{told:?}"
    );
    pair.produce(0, 5);
    assert!(pair.fence(0, 2).1, "nobody else could lead");
}

#[test]
fn sectors_that_cannot_be_read_are_damage_and_their_log_is_fetched_anew() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 60);
    pair.pass(200);
    let segment = pair.segments(0)[1].clone();
    let fs = &pair.replicas[0].fs;
    fs.make_unreadable(&segment, 300..812).unwrap();
    pair.read_all(0);
    assert!(pair.partition(0).is_damaged());
    let (told, stop) = pair.replicas[0].failures[0].clone();
    assert!(told.contains(".wal") && !stop, "{told}");
    assert!(!pair.fence(0, 2).1);
    assert!(pair.fence(1, 2).1);
    pair.commit(Some(1), 2, &[1]);
    pair.pass(2000);
    pair.assert_equal_logs();
    let entries = pair.replicas[0].fs.shared().list(Path::new("/")).unwrap();
    assert!(entries.iter().any(|entry| entry.name == "p.quarantine-1"));
}

#[test]
fn sectors_that_cannot_be_read_at_a_start_are_damage_too() {
    let mut pair = Pair::new();
    pair.options.others_in_sync = true;
    pair.tell();
    pair.produce(0, 60);
    pair.pass(200);
    // In the segment that is written, which every start reads.
    let segment = pair.segments(0).last().unwrap().clone();
    pair.kill(0);
    let fs = &pair.replicas[0].fs;
    fs.make_unreadable(&segment, 0..512).unwrap();
    pair.start(0);
    let quarantine = pair.replicas[0].report.quarantined.clone().unwrap();
    assert_eq!(quarantine.cause.path, segment);
    assert!(!pair.fence(0, 2).1, "it may have acknowledged what is gone");
    assert!(pair.fence(1, 2).1);
    pair.commit(Some(1), 2, &[1]);
    pair.pass(2000);
    pair.assert_equal_logs();
}

#[test]
fn a_leader_that_was_alone_with_its_damage_gives_way_once_another_is_in_sync() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 60);
    pair.pass(200);
    pair.commit(Some(0), 1, &[0]);
    pair.rot_sealed_segment(0);
    pair.read_all(0);
    let told = pair.replicas[0].failures.len();
    pair.pass(200);
    assert_eq!(pair.replicas[0].failures.len(), told, "it is still alone");
    pair.commit(Some(0), 1, &[0, 1]);
    pair.pass(200);
    let failures = &pair.replicas[0].failures;
    assert!(failures[told].0.contains("is to lead"), "{failures:?}");
    assert_eq!(failures.len(), told + 1, "it is said once");
    assert!(!pair.fence(0, 2).1);
    assert!(pair.fence(1, 2).1);
    pair.commit(Some(1), 2, &[1]);
    pair.pass(2000);
    pair.assert_equal_logs();
}

#[test]
fn a_lost_segment_keeps_its_replica_from_leading() {
    for lost in [0, 1] {
        let mut pair = Pair::new();
        pair.tell();
        pair.produce(0, 60);
        pair.pass(200);
        // While it runs: found when somebody reads it.
        let path = pair.segments(0)[lost].clone();
        pair.replicas[0].fs.shared().remove_file(&path).unwrap();
        pair.read_all(0);
        assert!(pair.partition(0).is_damaged());
        assert!(!pair.fence(0, 2).1);
        // At its next start: found at once.
        pair.kill(0);
        pair.start(0);
        assert!(pair.replicas[0].report.quarantined.is_some());
        assert!(!pair.fence(0, 3).1);
        assert!(pair.fence(1, 3).1);
        pair.commit(Some(1), 3, &[1]);
        pair.pass(2000);
        pair.assert_equal_logs();
    }
}

#[test]
fn a_full_disk_refuses_records_and_takes_them_again_when_there_is_room() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 10);
    let room = pair.replicas[0].fs.used();
    pair.replicas[0].fs.set_capacity(Some(room));
    let refused = pair.append(0, batch(7, pair.next_sequence, 100), Acks::All);
    assert_eq!(
        pair.answer(0, refused),
        Some(Err(ErrorCode::KafkaStorageError))
    );
    let (told, stop) = pair.replicas[0].failures.last().unwrap().clone();
    assert!(told.contains("no space left") && !stop, "{told}");
    assert_eq!(pair.frames(0).len(), 11, "reads go on");
    pair.replicas[0].fs.set_capacity(None);
    pair.produce(0, 10);
    pair.assert_equal_logs();

    // Told before the disk is full to its last byte: the same, but for a new leader's epoch start.
    pair.options.space.handle_available(0);
    let refused = pair.append(0, batch(7, pair.next_sequence, 100), Acks::All);
    assert_eq!(
        pair.answer(0, refused),
        Some(Err(ErrorCode::KafkaStorageError))
    );
    pair.options.space.handle_available(u64::MAX);
    pair.produce(0, 10);
    pair.assert_equal_logs();
}

#[test]
fn a_follower_whose_disk_is_full_pauses_and_goes_on_when_there_is_room() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 10);
    let room = pair.replicas[1].fs.used();
    pair.replicas[1].fs.set_capacity(Some(room));
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            pair.next_sequence += 1;
            pair.append(0, batch(7, pair.next_sequence - 1, 100), Acks::All)
        })
        .collect();
    assert!(
        waiting
            .iter()
            .all(|&ticket| pair.answer(0, ticket).is_none())
    );
    pair.pass(10_000);
    let tries = pair.replicas[1].failures.len();
    assert!((5..=15).contains(&tries), "one try a second: {tries}");
    pair.replicas[1].fs.set_capacity(None);
    pair.pass(1500);
    assert!(
        waiting
            .iter()
            .all(|&ticket| matches!(pair.answer(0, ticket), Some(Ok(_))))
    );
    pair.assert_equal_logs();
}

#[test]
fn a_failed_fsync_stops_the_process_and_the_next_one_neither_votes_nor_trusts_the_tail() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 10);
    pair.replicas[0].fs.fail_syncs(1);
    let lost = pair.append(0, batch(7, 10, 100), Acks::All);
    assert!(pair.replicas[0].failures.iter().any(|(_, stop)| *stop));
    assert_eq!(
        pair.answer(0, lost),
        Some(Err(ErrorCode::KafkaStorageError))
    );
    let again = pair.append(0, batch(7, 10, 100), Acks::All);
    assert_eq!(
        pair.answer(0, again),
        Some(Err(ErrorCode::KafkaStorageError)),
        "it is never tried again"
    );
    pair.kill(0);
    pair.start(0);
    assert!(pair.replicas[0].report.tail_rewritten);
    assert!(!pair.fence(0, 2).1);
    assert!(pair.fence(1, 2).1);
    pair.commit(Some(1), 2, &[1]);
    pair.pass(200);
    pair.assert_equal_logs();
    pair.commit(Some(1), 2, &[0, 1]);
    assert!(pair.fence(0, 3).1, "admitted again");
}

#[test]
fn a_process_that_ends_after_a_failed_fsync_does_not_sync_once_more() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 10);
    pair.replicas[0].fs.fail_syncs(1);
    pair.append(0, batch(7, 10, 100), Acks::All);
    let all = pair.frames(0);
    let (_, mut log) = pair.replicas[0].partition.take().unwrap().close();
    // The disk would say that all is well, and the checkpoint that the tail need not be written again.
    log.close().unwrap_err();
    drop(log);
    pair.kill(0);
    pair.start(0);
    assert!(pair.replicas[0].report.tail_rewritten);
    pair.kill(0);
    pair.replicas[0].fs.power_loss();
    pair.start(0);
    assert_eq!(pair.frames(0), all, "now the disk has it");
}

#[test]
fn a_machine_that_lost_power_under_flush_os_waits_to_be_admitted() {
    let mut pair = Pair::with(LogConfig {
        flush: Flush::Os,
        retention_ms: None,
        ..LogConfig::default()
    });
    pair.tell();
    pair.produce(0, 20);
    pair.pass(200);
    pair.replicas[1].partition = None;
    pair.replicas[1].fs.power_loss();
    pair.options.machine_restarted = true;
    pair.start(1);
    let reason = pair.replicas[1]
        .report
        .impairment
        .clone()
        .map(|note| note.reason);
    assert_eq!(reason, Some(ImpairmentReason::PowerLost));
    assert!(!pair.fence(1, 2).1);
    pair.commit(Some(0), 2, &[0]);
    pair.pass(200);
    pair.assert_equal_logs();
    pair.commit(Some(0), 2, &[0, 1]);
    assert!(pair.fence(1, 3).1);
}

#[test]
fn a_disk_that_hangs_holds_a_bounded_number_of_requests_and_the_other_replica_nothing() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 1);
    // The follower's: what was sent and not acknowledged is what the leader's budget for it allows, and the rest is on disk.
    pair.replicas[1].disk_hangs = true;
    pair.commit(Some(0), 1, &[0]);
    pair.produce(0, 500);
    // The leader's own.
    pair.replicas[0].disk_hangs = true;
    let mut held = 0;
    let refused = loop {
        let sequence = pair.next_sequence;
        let ticket = pair.append(0, batch(7, sequence, 1), Acks::All);
        match pair.answer(0, ticket) {
            None => held += 1,
            Some(answer) => break answer,
        }
        pair.next_sequence += 1;
        assert!(held <= 70_000, "unbounded");
    };
    assert_eq!(refused, Err(ErrorCode::ThrottlingQuotaExceeded));
    assert!(held >= 1000, "{held}");
}
