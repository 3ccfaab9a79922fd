//! Whole stories of transactions, told to a coordinator whose log, clock and partitions are the test's.

mod own_epochs;

use std::collections::BTreeSet;
use std::time::Duration;

use super::limits::MAX_PAUSE;
use super::transaction::LAST_EPOCH;
use super::*;
use crate::record::LogRecord;
use crate::types::{ErrorCode, LeaderEpoch, MonotonicTime, ProducerId};

const ID: &str = "payments";
const TIMEOUT_MS: i32 = 60_000;

/// A coordinator, its log and a clock.
struct World {
    coordinator: Coordinator,
    epoch: LeaderEpoch,
    log: Vec<LogRecord>,
    /// What the next writes come to; all is well when it is `None`.
    failing: Option<ErrorCode>,
    /// Whether writes stay out until [`World::flush`].
    holds_writes: bool,
    /// Whether partitions take markers.
    takes_markers: bool,
    /// Every marker that a partition has taken.
    marked: Vec<Marker>,
    at: MonotonicTime,
    wall_ms: i64,
    tickets: u64,
    answers: Vec<(Ticket, Result<Answer, ErrorCode>)>,
    fresh: i64,
}

fn producer(id: i64) -> ProducerId {
    ProducerId::new(id).unwrap()
}

fn partitions(numbers: &[i32]) -> Vec<(String, i32)> {
    numbers.iter().map(|&n| ("orders".to_owned(), n)).collect()
}

impl World {
    fn new() -> World {
        let epoch = LeaderEpoch::new(1).unwrap();
        let mut world = World {
            coordinator: Coordinator::new(Settings::default(), epoch),
            epoch,
            log: Vec::new(),
            failing: None,
            holds_writes: false,
            takes_markers: true,
            marked: Vec::new(),
            at: MonotonicTime::ZERO,
            wall_ms: 1_000_000,
            tickets: 0,
            answers: Vec::new(),
            fresh: 100,
        };
        world.coordinator.loaded(world.now());
        world
    }

    fn now(&self) -> Now {
        Now {
            monotonic: self.at,
            wall_ms: self.wall_ms,
        }
    }

    /// Writes what is to be written, and has partitions take their markers, until nothing is left to do.
    fn flush(&mut self) {
        let now = self.now();
        loop {
            let mut idle = true;
            while let Some(records) = self.coordinator.take_write() {
                idle = false;
                let result = match self.failing {
                    None => {
                        self.log.extend(records);
                        Ok(())
                    }
                    Some(error) => Err(error),
                };
                self.coordinator.handle_written(now, 0, result);
            }
            if self.takes_markers {
                for marker in self.coordinator.take_markers(now, 3) {
                    idle = false;
                    self.marked.push(marker.clone());
                    self.coordinator
                        .handle_marked(now, 0, marker, Marked::Written);
                }
            }
            if idle {
                break;
            }
        }
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(answer) = self.coordinator.poll_answer() {
            self.answers.push(answer);
        }
    }

    fn settle(&mut self) {
        if self.holds_writes {
            self.collect();
        } else {
            self.flush();
        }
    }

    fn ask(&mut self, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.coordinator.handle(self.now(), ticket, ID, request);
        self.settle();
        ticket
    }

    /// Time passes, in steps as a coordinator is told of it.
    fn pass(&mut self, time: Duration) {
        let end = self.at + time;
        while self.at < end {
            let step = end.since(self.at).min(Duration::from_millis(100));
            self.at = self.at + step;
            self.wall_ms += step.as_millis() as i64;
            self.coordinator.handle_tick(self.now());
            self.settle();
        }
    }

    /// A long time passes in which nothing happens.
    fn skip(&mut self, time: Duration) {
        self.at = self.at + time;
        self.wall_ms += time.as_millis() as i64;
        self.coordinator.handle_tick(self.now());
        self.settle();
    }

    /// The answer, if it has come.
    fn answer(&mut self, ticket: Ticket) -> Option<Result<Answer, ErrorCode>> {
        let place = self
            .answers
            .iter()
            .position(|(known, _)| *known == ticket)?;
        Some(self.answers.remove(place).1)
    }

    fn call(&mut self, request: Request) -> Result<Answer, ErrorCode> {
        let ticket = self.ask(request);
        self.answer(ticket).expect("an answer at once")
    }

    /// As the node does: a producer id is fetched only where one is wanted.
    fn init(&mut self, expected: Option<(i64, i16)>) -> Result<(i64, i16), ErrorCode> {
        let request = |fresh| Request::Init {
            timeout_ms: TIMEOUT_MS,
            expected: expected.map(|(id, epoch)| (producer(id), epoch)),
            fresh,
        };
        let answer = match self.call(request(None))? {
            Answer::NeedsProducerId => {
                self.fresh += 1;
                let fresh = producer(self.fresh);
                self.call(request(Some(fresh)))?
            }
            answer => answer,
        };
        match answer {
            Answer::Producer { producer, epoch } => Ok((producer.get(), epoch)),
            other => panic!("{other:?}"),
        }
    }

    fn add_request(who: (i64, i16), numbers: &[i32]) -> Request {
        Request::AddPartitions {
            producer: producer(who.0),
            epoch: who.1,
            partitions: partitions(numbers),
            version: ClientVersion::V1,
        }
    }

    fn add(&mut self, who: (i64, i16), numbers: &[i32]) -> Result<Answer, ErrorCode> {
        self.call(World::add_request(who, numbers))
    }

    fn end_request(who: (i64, i16), ending: Ending) -> Request {
        Request::End {
            producer: producer(who.0),
            epoch: who.1,
            ending,
            version: ClientVersion::V1,
            fresh: None,
        }
    }

    fn end(&mut self, who: (i64, i16), ending: Ending) -> Result<Answer, ErrorCode> {
        self.call(World::end_request(who, ending))
    }

    fn verify(&mut self, who: (i64, i16), number: i32) -> Result<Answer, ErrorCode> {
        self.call(Request::Verify {
            producer: producer(who.0),
            epoch: who.1,
            partitions: partitions(&[number]),
        })
    }

    fn describe(&mut self) -> Description {
        match self.call(Request::Describe) {
            Ok(Answer::Described(found)) => found,
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self) -> State {
        self.describe().state
    }

    /// Another node takes over, with the first `records` of the log.
    fn fail_over_at(&mut self, records: usize) {
        self.log.truncate(records);
        self.epoch = self.epoch.next().unwrap();
        self.coordinator = Coordinator::new(Settings::default(), self.epoch);
        for record in &self.log {
            self.coordinator
                .replay(Some(&record.key), record.value.as_deref())
                .unwrap();
        }
        self.coordinator.loaded(self.now());
        self.settle();
    }

    fn fail_over(&mut self) {
        self.fail_over_at(self.log.len());
    }

    /// Which partitions have been told, by the number, and how, since the last look.
    fn take_marked(&mut self) -> Vec<(i32, Ending, i16)> {
        let mut marked: Vec<_> = std::mem::take(&mut self.marked)
            .into_iter()
            .map(|marker| (marker.partition, marker.ending, marker.producer_epoch))
            .collect();
        marked.sort_by_key(|(partition, ..)| *partition);
        marked
    }
}

#[test]
fn a_transaction_goes_from_its_first_partition_to_its_last_marker() {
    for ending in [Ending::Commit, Ending::Abort] {
        let mut world = World::new();
        let who = world.init(None).unwrap();
        assert_eq!(who, (101, 0));
        assert_eq!(world.state(), State::Empty);
        assert_eq!(world.add(who, &[0, 1]), Ok(Answer::Done));
        assert_eq!(world.add(who, &[2]), Ok(Answer::Done));
        let written = world.log.len();
        // What is there already is not written again.
        assert_eq!(world.add(who, &[1, 2]), Ok(Answer::Done));
        assert_eq!(world.log.len(), written);
        assert_eq!(world.verify(who, 2), Ok(Answer::Verified(vec![true])));
        assert_eq!(world.verify(who, 7), Ok(Answer::Verified(vec![false])));
        let described = world.describe();
        assert_eq!(described.state, State::Ongoing);
        assert_eq!(described.partitions, [("orders".into(), vec![0, 1, 2])]);
        assert_eq!(world.end(who, ending), Ok(Answer::Done));
        assert_eq!(world.state(), ending.complete());
        let told = [0, 1, 2].map(|partition| (partition, ending, 0));
        assert_eq!(world.take_marked(), told);
        // The next one, of the same producer.
        assert_eq!(world.verify(who, 1), Ok(Answer::Verified(vec![false])));
        assert_eq!(world.add(who, &[1]), Ok(Answer::Done));
        assert_eq!(world.verify(who, 1), Ok(Answer::Verified(vec![true])));
        assert_eq!(world.end(who, ending), Ok(Answer::Done));
        assert_eq!(world.take_marked(), [(1, ending, 0)]);
    }
}

#[test]
fn a_retried_end_is_answered_as_the_first_and_another_end_is_refused() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    assert_eq!(
        world.end(who, Ending::Commit),
        Err(ErrorCode::InvalidTxnState),
        "there is no transaction"
    );
    world.add(who, &[0]).unwrap();
    world.takes_markers = false;
    world.end(who, Ending::Commit).unwrap();
    assert_eq!(world.state(), State::PrepareCommit);
    assert_eq!(
        world.end(who, Ending::Commit),
        Err(ErrorCode::ConcurrentTransactions)
    );
    assert_eq!(
        world.end(who, Ending::Abort),
        Err(ErrorCode::InvalidTxnState)
    );
    assert_eq!(world.add(who, &[1]), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(world.verify(who, 0), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(world.init(None), Err(ErrorCode::ConcurrentTransactions));
    world.takes_markers = true;
    world.flush();
    assert_eq!(world.end(who, Ending::Commit), Ok(Answer::Done));
    assert_eq!(
        world.end(who, Ending::Abort),
        Err(ErrorCode::InvalidTxnState)
    );
    // A coordinator that was deposed and does not know it cannot write, and so does not say that it is done.
    world.take_marked();
    world.holds_writes = true;
    let retried = world.ask(World::end_request(who, Ending::Commit));
    assert_eq!(world.answer(retried), None);
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    world.flush();
    let failed = Err(ErrorCode::CoordinatorNotAvailable);
    assert_eq!(world.answer(retried), Some(failed));
    world.holds_writes = false;
    world.failing = None;
    assert_eq!(world.end(who, Ending::Commit), Ok(Answer::Done));
    assert_eq!(world.state(), State::CompleteCommit);
    assert_eq!(world.take_marked(), [], "nobody is told twice");
}

#[test]
fn nothing_is_answered_or_done_before_it_is_written() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.holds_writes = true;
    let added = world.ask(World::add_request(who, &[0]));
    assert_eq!(world.answer(added), None);
    assert_eq!(
        world.verify(who, 0),
        Ok(Answer::Verified(vec![false])),
        "not added yet"
    );
    assert_eq!(world.add(who, &[1]), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(world.init(None), Err(ErrorCode::ConcurrentTransactions));
    world.flush();
    assert_eq!(world.answer(added), Some(Ok(Answer::Done)));
    let ended = world.ask(World::end_request(who, Ending::Commit));
    assert_eq!(world.answer(ended), None);
    assert_eq!(world.coordinator.take_markers(world.now(), 9), []);
    // A batch that is verified now would come behind its marker.
    assert_eq!(world.verify(who, 0), Err(ErrorCode::ConcurrentTransactions));
    world.flush();
    assert_eq!(world.answer(ended), Some(Ok(Answer::Done)));
    assert_eq!(world.take_marked(), [(0, Ending::Commit, 0)]);
}

#[test]
fn what_was_not_written_has_not_happened() {
    let mut world = World::new();
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    assert_eq!(world.init(None), Err(ErrorCode::CoordinatorNotAvailable));
    assert_eq!(world.coordinator.ids(), 0);
    world.failing = None;
    let who = world.init(None).unwrap();
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    let failed = Err(ErrorCode::CoordinatorNotAvailable);
    assert_eq!(world.add(who, &[0]), failed);
    assert_eq!(world.state(), State::Empty);
    world.failing = None;
    world.add(who, &[0]).unwrap();
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    assert_eq!(world.end(who, Ending::Commit), failed);
    assert_eq!(world.state(), State::Ongoing);
    assert_eq!(world.take_marked(), []);
    world.failing = None;
    assert_eq!(world.end(who, Ending::Commit), Ok(Answer::Done));
    assert_eq!(world.state(), State::CompleteCommit);
}

#[test]
fn a_completion_that_cannot_be_written_is_tried_again() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.takes_markers = false;
    world.end(who, Ending::Commit).unwrap();
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    world.takes_markers = true;
    world.flush();
    assert_eq!(world.state(), State::PrepareCommit);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.state(), State::PrepareCommit);
    world.failing = None;
    world.pass(MAX_PAUSE);
    assert_eq!(world.state(), State::CompleteCommit);
    assert_eq!(world.take_marked(), [(0, Ending::Commit, 0)], "told once");
}

#[test]
fn a_second_producer_fences_the_first() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    let second = world.init(None).unwrap();
    assert_eq!(second, (first.0, 1));
    let fenced = Err(ErrorCode::ProducerFenced);
    assert_eq!(world.add(first, &[0]), fenced);
    assert_eq!(world.end(first, Ending::Commit), fenced);
    assert_eq!(world.verify(first, 0), fenced);
    assert_eq!(world.init(Some(first)), Err(ErrorCode::ProducerFenced));
    let stranger = (9, 0);
    let unknown = Err(ErrorCode::InvalidProducerIdMapping);
    assert_eq!(world.add(stranger, &[0]), unknown);
    assert_eq!(world.end(stranger, Ending::Commit), unknown);
    assert_eq!(world.add(second, &[0]), Ok(Answer::Done));
}

#[test]
fn a_second_producer_has_the_firsts_transaction_aborted_before_it_begins() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    world.add(first, &[0]).unwrap();
    world.takes_markers = false;
    assert_eq!(world.init(None), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(world.state(), State::PrepareAbort);
    assert_eq!(
        world.end(first, Ending::Commit),
        Err(ErrorCode::ProducerFenced)
    );
    assert_eq!(world.init(None), Err(ErrorCode::ConcurrentTransactions));
    world.takes_markers = true;
    world.flush();
    // Under the next epoch, so that the partition refuses the first producer too.
    assert_eq!(world.take_marked(), [(0, Ending::Abort, 1)]);
    assert_eq!(world.init(None), Ok((first.0, 2)));
}

#[test]
fn a_producer_that_goes_on_gets_its_next_epoch_once_however_often_it_asks() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    let next = (who.0, who.1 + 1);
    assert_eq!(world.init(Some(who)), Ok(next));
    assert_eq!(world.init(Some(who)), Ok(next), "a retry");
    world.fail_over();
    assert_eq!(world.init(Some(who)), Ok(next), "a retry at another node");
    // Another producer takes the id over: what came before is no retry any more.
    let other = world.init(None).unwrap();
    assert_eq!(other, (who.0, who.1 + 2));
    assert_eq!(world.init(Some(who)), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.init(Some(next)), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.init(Some((7, 0))), Err(ErrorCode::ProducerFenced));
}

#[test]
fn a_zombie_that_names_its_epoch_does_not_abort_its_successors_transaction() {
    let mut world = World::new();
    let zombie = world.init(None).unwrap();
    let holder = world.init(None).unwrap();
    world.add(holder, &[0]).unwrap();
    assert_eq!(world.init(Some(zombie)), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.state(), State::Ongoing);
    assert_eq!(world.end(holder, Ending::Commit), Ok(Answer::Done));
}

#[test]
fn when_the_epochs_are_used_up_a_new_producer_id_begins() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    let mut who = first;
    while who.1 < LAST_EPOCH {
        who = world.init(Some(who)).unwrap();
    }
    assert_eq!(who.0, first.0);
    let next = world.init(Some(who)).unwrap();
    assert_eq!(next, (first.0 + 1, 0));
    assert_eq!(world.init(Some(who)), Ok(next), "a retry");
    world.fail_over();
    assert_eq!(world.init(Some(who)), Ok(next), "a retry at another node");
    assert_eq!(
        world.add(who, &[0]),
        Err(ErrorCode::InvalidProducerIdMapping)
    );
    assert_eq!(world.add(next, &[0]), Ok(Answer::Done));
    // The last epoch of all is for fencing.
    let mut who = next;
    world.end(next, Ending::Abort).unwrap();
    while who.1 < LAST_EPOCH {
        who = world.init(Some(who)).unwrap();
    }
    world.add(who, &[0]).unwrap();
    world.marked.clear();
    assert_eq!(world.init(None), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(world.take_marked(), [(0, Ending::Abort, i16::MAX)]);
    assert_eq!(world.init(Some(who)), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.init(None).unwrap().1, 0);
}

#[test]
fn a_timeout_is_checked() {
    let mut world = World::new();
    for timeout_ms in [0, -1, i32::MIN, 15 * 60 * 1000 + 1, i32::MAX] {
        let request = Request::Init {
            timeout_ms,
            expected: None,
            fresh: Some(producer(1)),
        };
        assert_eq!(
            world.call(request),
            Err(ErrorCode::InvalidTransactionTimeout),
            "{timeout_ms}"
        );
    }
}

#[test]
fn a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.pass(Duration::from_secs(40));
    // Another partition gives it no more time.
    world.add(who, &[1]).unwrap();
    world.pass(Duration::from_secs(19));
    assert_eq!(world.state(), State::Ongoing);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(), State::CompleteAbort);
    let told = [(0, Ending::Abort, 1), (1, Ending::Abort, 1)];
    assert_eq!(world.take_marked(), told);
    assert_eq!(world.add(who, &[0]), Err(ErrorCode::ProducerFenced));
    assert_eq!(
        world.end(who, Ending::Commit),
        Err(ErrorCode::ProducerFenced)
    );
}

#[test]
fn a_failover_gives_a_transaction_no_more_time() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.pass(Duration::from_secs(50));
    world.fail_over();
    world.pass(Duration::from_secs(9));
    assert_eq!(world.state(), State::Ongoing);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(), State::CompleteAbort);
    // Nor does a clock that was set back give it more than its time, nor one that was set forward none at all.
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.wall_ms -= 3_600_000;
    world.pass(Duration::from_secs(59));
    assert_eq!(world.state(), State::Ongoing);
    world.fail_over();
    world.pass(Duration::from_secs(61));
    assert_eq!(world.state(), State::CompleteAbort);
}

#[test]
fn a_clock_that_jumps_forward_ends_no_transaction() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.wall_ms += 3_600_000;
    world.pass(Duration::from_secs(30));
    world.add(who, &[1]).unwrap();
    world.pass(Duration::from_secs(29));
    assert_eq!(world.end(who, Ending::Commit), Ok(Answer::Done));
}

#[test]
fn an_abort_for_time_that_cannot_be_written_is_tried_again() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    world.pass(Duration::from_secs(70));
    assert_eq!(world.state(), State::Ongoing);
    world.failing = None;
    world.pass(MAX_PAUSE);
    assert_eq!(world.state(), State::CompleteAbort);
    assert_eq!(world.describe().epoch, 1, "raised once");
}

#[test]
fn a_commit_that_is_being_written_when_time_is_over_is_not_aborted() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.holds_writes = true;
    let ended = world.ask(World::end_request(who, Ending::Commit));
    world.pass(Duration::from_secs(70));
    world.holds_writes = false;
    world.flush();
    assert_eq!(world.answer(ended), Some(Ok(Answer::Done)));
    assert_eq!(world.state(), State::CompleteCommit);
    // A commit that is not written in the end leaves the transaction to its timeout.
    world.add(who, &[0]).unwrap();
    world.holds_writes = true;
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    let ended = world.ask(World::end_request(who, Ending::Commit));
    world.pass(Duration::from_secs(70));
    world.holds_writes = false;
    world.flush();
    let failed = Err(ErrorCode::CoordinatorNotAvailable);
    assert_eq!(world.answer(ended), Some(failed));
    world.failing = None;
    world.pass(MAX_PAUSE * 2);
    assert_eq!(world.state(), State::CompleteAbort);
}

#[test]
fn markers_that_fail_are_sent_again_and_a_deleted_partition_needs_none() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0, 1, 2]).unwrap();
    world.takes_markers = false;
    world.end(who, Ending::Commit).unwrap();
    let markers = world.coordinator.take_markers(world.now(), 9);
    assert_eq!(markers.len(), 3);
    assert_eq!(world.coordinator.take_markers(world.now(), 9), [], "once");
    for marker in markers {
        let marked = match marker.partition {
            0 => Marked::Failed,
            1 => Marked::Gone,
            _ => Marked::Written,
        };
        let now = world.now();
        world.coordinator.handle_marked(now, 1023, marker, marked);
    }
    world.flush();
    assert_eq!(world.state(), State::PrepareCommit);
    // The pauses grow, and one partition that takes none costs no memory but its own.
    let mut tries = 0;
    let begin = world.at;
    while world.at.since(begin) < Duration::from_secs(60) {
        world.pass(Duration::from_millis(100));
        let now = world.now();
        for marker in world.coordinator.take_markers(now, 9) {
            tries += 1;
            assert_eq!((marker.partition, marker.attempts), (0, tries));
            world
                .coordinator
                .handle_marked(now, 1023, marker, Marked::Failed);
        }
        assert_eq!(world.coordinator.markers_waiting(), 1);
    }
    assert!((30..50).contains(&tries), "{tries}");
    world.takes_markers = true;
    world.pass(MAX_PAUSE);
    assert_eq!(world.state(), State::CompleteCommit);
    assert_eq!(world.coordinator.markers_waiting(), 0);
}

#[test]
fn a_marker_that_a_later_coordinator_has_overtaken_ends_this_one() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.takes_markers = false;
    world.end(who, Ending::Commit).unwrap();
    let now = world.now();
    let marker = world.coordinator.take_markers(now, 1).remove(0);
    assert_eq!(marker.coordinator_epoch, 1);
    assert!(!world.coordinator.is_fenced());
    world
        .coordinator
        .handle_marked(now, 0, marker, Marked::Fenced);
    assert!(world.coordinator.is_fenced());
    world.flush();
    assert_eq!(world.state(), State::PrepareCommit, "nothing is completed");
}

/// After each record that was written, another coordinator begins with what is in the log, and the producer goes on as clients
/// do: it repeats what was not answered.
#[test]
fn a_crash_after_any_record_loses_nothing_and_doubles_nothing() {
    for ending in [Ending::Commit, Ending::Abort] {
        // Init, partition, partition, prepare, complete.
        for records in 1..=5 {
            let mut world = World::new();
            let who = world.init(None).unwrap();
            world.add(who, &[0]).unwrap();
            world.add(who, &[1]).unwrap();
            world.end(who, ending).unwrap();
            assert_eq!(world.log.len(), 5);
            world.take_marked();
            world.fail_over_at(records);
            assert_eq!(world.coordinator.ids(), 1);
            match records {
                1 => {
                    assert_eq!(world.state(), State::Empty);
                    assert_eq!(world.add(who, &[0, 1]), Ok(Answer::Done));
                }
                2 | 3 => {
                    assert_eq!(world.state(), State::Ongoing);
                    assert_eq!(world.add(who, &[1]), Ok(Answer::Done));
                }
                _ => assert_eq!(world.state(), ending.complete(), "goes on by itself"),
            }
            assert_eq!(world.end(who, ending), Ok(Answer::Done));
            assert_eq!(world.state(), ending.complete());
            let told = match records {
                // It was complete already.
                5 => Vec::new(),
                _ => vec![(0, ending, 0), (1, ending, 0)],
            };
            assert_eq!(world.take_marked(), told, "{ending:?} after {records}");
            assert_eq!(world.add(who, &[3]), Ok(Answer::Done));
        }
    }
}

/// The same for an abort that nobody asked for.
#[test]
fn a_crash_within_a_fencing_abort_neither_forgets_it_nor_fences_twice() {
    for records in 2..=4 {
        let mut world = World::new();
        let who = world.init(None).unwrap();
        world.add(who, &[0]).unwrap();
        assert_eq!(world.init(None), Err(ErrorCode::ConcurrentTransactions));
        assert_eq!(world.log.len(), 4);
        world.take_marked();
        world.fail_over_at(records);
        if records == 2 {
            // Nothing was decided: the producer goes on.
            assert_eq!(world.end(who, Ending::Commit), Ok(Answer::Done));
            continue;
        }
        assert_eq!(world.state(), State::CompleteAbort);
        assert_eq!(world.describe().epoch, 1);
        assert_eq!(
            world.end(who, Ending::Commit),
            Err(ErrorCode::ProducerFenced)
        );
        assert_eq!(world.init(None), Ok((who.0, 2)));
    }
}

#[test]
fn a_later_coordinators_markers_carry_its_epoch() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.takes_markers = false;
    world.end(who, Ending::Commit).unwrap();
    world.fail_over();
    assert_eq!(world.coordinator.ending(), 1);
    world.takes_markers = true;
    world.flush();
    assert_eq!(world.marked[0].coordinator_epoch, 2);
    assert_eq!(world.state(), State::CompleteCommit);
    assert_eq!(world.coordinator.ending(), 0);
}

#[test]
fn ids_that_nobody_uses_go_and_those_with_a_transaction_stay() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.skip(Duration::from_secs(7 * 24 * 3600 - 4000));
    world.init(Some(who)).unwrap();
    world.skip(Duration::from_secs(4000));
    assert_eq!(world.coordinator.ids(), 1, "it was used meanwhile");
    let before = world.log.len();
    world.skip(Duration::from_secs(7 * 24 * 3600));
    assert_eq!(world.coordinator.ids(), 0);
    assert_eq!(world.log.len(), before + 1);
    assert_eq!(world.log[before].value, None);
    assert_eq!(
        world.call(Request::Describe),
        Err(ErrorCode::TransactionalIdNotFound)
    );
    assert_eq!(
        world.add(who, &[0]),
        Err(ErrorCode::InvalidProducerIdMapping)
    );
    world.fail_over();
    assert_eq!(world.coordinator.ids(), 0);
    // One whose end cannot be told stays, however old it is.
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.takes_markers = false;
    world.end(who, Ending::Commit).unwrap();
    world.skip(Duration::from_secs(8 * 24 * 3600));
    assert_eq!(world.state(), State::PrepareCommit);
}

#[test]
fn a_producer_that_went_away_with_its_id_gets_a_new_one() {
    let mut world = World::new();
    // Names what it was, and nobody knows it.
    let who = world.init(Some((7, 3))).unwrap();
    assert_eq!(who, (101, 0));
}

#[test]
fn there_is_a_cap_on_partitions_on_ids_and_on_memory() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    let most: Vec<i32> = (0..MAX_PARTITIONS as i32).collect();
    assert_eq!(world.add(who, &most), Ok(Answer::Done));
    let refused = Err(ErrorCode::PolicyViolation);
    assert_eq!(world.add(who, &[MAX_PARTITIONS as i32]), refused);
    assert_eq!(world.add(who, &[0]), Ok(Answer::Done));
    // Its record and its markers are bounded with it.
    assert!(world.log.iter().all(|record| record.bytes() < 1 << 20));
    world.end(who, Ending::Commit).unwrap();
    assert_eq!(world.take_marked().len(), MAX_PARTITIONS);
    let now = world.now();
    for number in 1..MAX_IDS {
        let request = Request::Init {
            timeout_ms: 1,
            expected: None,
            fresh: Some(producer(5)),
        };
        let id = format!("id {number}");
        world.coordinator.handle(now, Ticket(9), &id, request);
        world.flush();
    }
    assert_eq!(world.coordinator.ids(), MAX_IDS);
    let request = Request::Init {
        timeout_ms: 1,
        expected: None,
        fresh: Some(producer(5)),
    };
    let ticket = Ticket(10);
    world.coordinator.handle(now, ticket, "one more", request);
    world.flush();
    assert_eq!(world.answer(ticket), Some(Err(ErrorCode::PolicyViolation)));
    assert_eq!(world.coordinator.ids(), MAX_IDS);
}

#[test]
fn ids_are_legal_ones() {
    let mut world = World::new();
    let now = world.now();
    for id in [String::new(), "x".repeat(MAX_TRANSACTIONAL_ID_BYTES + 1)] {
        let ticket = Ticket(77);
        world
            .coordinator
            .handle(now, ticket, &id, Request::Describe);
        world.flush();
        assert_eq!(world.answer(ticket), Some(Err(ErrorCode::InvalidRequest)));
    }
}

#[test]
fn lists_are_filtered() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.pass(Duration::from_secs(10));
    let mut listed = |filter: Filter| match world.call(Request::List(filter)) {
        Ok(Answer::Listed(listed)) => listed.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(listed(Filter::default()), 1);
    let of = |state| Filter {
        states: Some(BTreeSet::from([state])),
        ..Filter::default()
    };
    assert_eq!(listed(of(State::Ongoing)), 1);
    assert_eq!(listed(of(State::Empty)), 0);
    let by = |producer| Filter {
        producers: Some(BTreeSet::from([producer])),
        ..Filter::default()
    };
    assert_eq!(listed(by(who.0)), 1);
    assert_eq!(listed(by(who.0 + 1)), 0);
    let running = |ms| Filter {
        running_for_ms: Some(ms),
        ..Filter::default()
    };
    assert_eq!(listed(running(10_000)), 1);
    assert_eq!(listed(running(10_001)), 0);
}
