//! Offsets that are committed in transactions.

use super::*;
use crate::types::ProducerId;

const PRODUCER: ProducerId = ProducerId::new(7).unwrap();

fn in_transaction(epoch: i16, guard: Option<OffsetsGuard>, offset: i64) -> TransactionCommit {
    TransactionCommit {
        producer: PRODUCER,
        producer_epoch: epoch,
        who: who(""),
        generation: -1,
        guard,
        offsets: vec![CommitOffset {
            topic: "orders".to_owned(),
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: String::new(),
            refused: None,
        }],
    }
}

fn end(epoch: i16, coordinator_epoch: i32, is_commit: bool) -> Request {
    Request::EndTransaction(EndTransaction {
        producer: PRODUCER,
        producer_epoch: epoch,
        coordinator_epoch,
        is_commit,
    })
}

impl World {
    fn guard(&mut self, epoch: i16) -> Option<OffsetsGuard> {
        let verify = Request::VerifyOffsets {
            producer: PRODUCER,
            producer_epoch: epoch,
        };
        match self.call(verify) {
            Ok(Answer::Verification(OffsetsVerification::NotNeeded)) => None,
            Ok(Answer::Verification(OffsetsVerification::Needed(guard))) => Some(guard),
            other => panic!("{other:?}"),
        }
    }

    /// Commits as a client does whose transaction its coordinator knows.
    fn commit_in_transaction(&mut self, epoch: i16, offset: i64) -> Result<Answer, ErrorCode> {
        let guard = self.guard(epoch);
        self.call(Request::CommitInTransaction(in_transaction(
            epoch, guard, offset,
        )))
    }

    fn is_pending(&mut self) -> bool {
        let wanted = vec![("orders".to_owned(), 0)];
        match self.call(Request::FetchOffsets {
            wanted: Some(wanted),
            asker: None,
        }) {
            Ok(Answer::Offsets(found)) => found[0].is_pending,
            other => panic!("{other:?}"),
        }
    }
}

fn accepted() -> Result<Answer, ErrorCode> {
    Ok(Answer::Results(vec![Ok(())]))
}

#[test]
fn offsets_hold_from_the_commit_of_their_transaction_on_and_over_a_failover_at_each_step() {
    for is_commit in [true, false] {
        let mut world = World::new();
        assert_eq!(world.call(commit(who(""), -1, 5)), accepted());
        assert_eq!(world.commit_in_transaction(0, 9), accepted());
        for _ in 0..2 {
            assert_eq!(world.offset(0), Some(5));
            assert!(world.is_pending());
            world.fail_over();
        }
        let before = world.log.len();
        assert_eq!(world.call(end(0, 1, is_commit)), Ok(Answer::Done));
        // What holds and what is pending no more are one batch.
        assert_eq!(world.log.len(), before + 2 + usize::from(is_commit));
        for _ in 0..2 {
            assert_eq!(world.offset(0), Some(if is_commit { 9 } else { 5 }));
            assert!(!world.is_pending());
            // Once more, as from a coordinator that missed the answer.
            let before = world.log.len();
            assert_eq!(world.call(end(0, 1, is_commit)), Ok(Answer::Done));
            assert_eq!(world.log.len(), before);
            world.fail_over();
        }
    }
}

#[test]
fn the_ends_of_one_producers_transactions_are_no_concern_of_anothers() {
    let mut world = World::new();
    let other = |epoch| {
        Request::EndTransaction(EndTransaction {
            producer: ProducerId::new(8).unwrap(),
            producer_epoch: epoch,
            coordinator_epoch: 0,
            is_commit: true,
        })
    };
    assert_eq!(world.call(other(0)), Ok(Answer::Done));
    let guard = world.guard(0);
    for epoch in [0, 1, 1, 2] {
        world.pass(Duration::from_millis(100));
        assert_eq!(world.call(other(epoch)), Ok(Answer::Done));
    }
    let commit = in_transaction(0, guard, 9);
    assert_eq!(world.call(Request::CommitInTransaction(commit)), accepted());
}

#[test]
fn what_comes_after_the_end_of_its_transaction_is_refused() {
    let mut world = World::new();
    // Verified, and then the transaction ended before anything of it had come.
    let guard = world.guard(3);
    assert_eq!(world.call(end(3, 1, false)), Ok(Answer::Done));
    let late = in_transaction(3, guard, 9);
    assert_eq!(
        world.call(Request::CommitInTransaction(late.clone())),
        Err(ErrorCode::InvalidTxnState)
    );
    // Likewise where the end was known already.
    let guard = world.guard(3);
    assert_eq!(world.call(end(3, 1, false)), Ok(Answer::Done));
    let again = in_transaction(3, guard, 9);
    assert_eq!(
        world.call(Request::CommitInTransaction(again)),
        Err(ErrorCode::InvalidTxnState)
    );
    for _ in 0..2 {
        assert_eq!(
            world.commit_in_transaction(2, 9),
            Err(ErrorCode::InvalidProducerEpoch)
        );
        assert_eq!(
            world.call(end(2, 1, true)),
            Err(ErrorCode::InvalidProducerEpoch)
        );
        assert_eq!(
            world.call(end(3, 0, true)),
            Err(ErrorCode::TransactionCoordinatorFenced)
        );
        world.pass(Duration::from_secs(1));
        world.fail_over();
    }
    // A coordinator that began later knows nothing of what another one was asked.
    assert_eq!(
        world.call(Request::CommitInTransaction(late)),
        Err(ErrorCode::CoordinatorLoadInProgress)
    );
    assert_eq!(
        world.call(Request::CommitInTransaction(in_transaction(3, None, 9))),
        Err(ErrorCode::InvalidTxnState)
    );
    // The next transaction of the same epoch.
    assert_eq!(world.commit_in_transaction(3, 9), accepted());
    assert_eq!(world.call(end(4, 1, true)), Ok(Answer::Done));
    assert_eq!(world.offset(0), Some(9));
}

#[test]
fn only_a_member_of_this_generation_commits_for_it() {
    let mut world = World::new();
    let (ids, generation) = world.stable(1);
    let guard = world.guard(0);
    let of = |member: &str, generation| TransactionCommit {
        who: who(member),
        generation,
        ..in_transaction(0, guard, 9)
    };
    for (commit, error) in [
        (of(&ids[0], generation - 1), ErrorCode::IllegalGeneration),
        (of("nobody", generation), ErrorCode::UnknownMemberId),
        (of("", generation), ErrorCode::UnknownMemberId),
    ] {
        let answer = world.call(Request::CommitInTransaction(commit));
        assert_eq!(answer, Err(error));
    }
    let good = world.call(Request::CommitInTransaction(of(&ids[0], generation)));
    assert_eq!(good, accepted());
    assert_eq!(world.call(end(0, 0, true)), Ok(Answer::Done));
    assert_eq!(world.offset(0), Some(9));
    // A generation in a group that is not there.
    world.tickets += 1;
    let ticket = Ticket(world.tickets);
    let guard = world.guard(0);
    let stray = TransactionCommit {
        generation: 1,
        ..in_transaction(0, guard, 9)
    };
    let (now, request) = (world.now(), Request::CommitInTransaction(stray));
    world.coordinator.handle(now, ticket, "others", request);
    world.settle();
    assert_eq!(
        world.answer(ticket),
        Some(Err(ErrorCode::IllegalGeneration))
    );
}

#[test]
fn what_is_being_written_is_pending_and_its_end_waits_for_it() {
    let mut world = World::new();
    let guard = world.guard(0);
    world.holds_writes = true;
    let first = world.ask(Request::CommitInTransaction(in_transaction(0, guard, 9)));
    assert_eq!(world.answer(first), None);
    assert!(world.is_pending());
    assert_eq!(
        world.call(Request::CommitInTransaction(in_transaction(0, guard, 10))),
        Err(ErrorCode::CoordinatorLoadInProgress)
    );
    assert_eq!(
        world.call(end(0, 0, true)),
        Err(ErrorCode::CoordinatorNotAvailable)
    );
    world.flush();
    assert_eq!(world.answer(first), Some(accepted()));
    let ending = world.ask(end(0, 0, true));
    assert_eq!(
        world.call(end(0, 0, true)),
        Err(ErrorCode::CoordinatorNotAvailable)
    );
    assert_eq!(world.offset(0), None, "not before it is written");
    world.flush();
    assert_eq!(world.answer(ending), Some(Ok(Answer::Done)));
    assert_eq!(world.offset(0), Some(9));
    assert!(!world.is_pending());
}

#[test]
fn what_was_not_written_is_as_if_it_had_never_come() {
    let mut world = World::new();
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    assert_eq!(
        world.commit_in_transaction(0, 9),
        Err(ErrorCode::CoordinatorNotAvailable)
    );
    assert!(!world.is_pending());
    assert_eq!(world.coordinator.groups(), 0);
    world.failing = None;
    assert_eq!(world.commit_in_transaction(0, 9), accepted());
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    assert_eq!(
        world.call(end(0, 0, true)),
        Err(ErrorCode::CoordinatorNotAvailable)
    );
    assert!(world.is_pending());
    world.failing = None;
    assert_eq!(world.call(end(0, 0, true)), Ok(Answer::Done));
    assert_eq!(world.offset(0), Some(9));
}

#[test]
fn a_group_with_pending_offsets_is_not_deleted_and_does_not_expire() {
    let mut world = World::new();
    assert_eq!(world.commit_in_transaction(0, 9), accepted());
    assert_eq!(world.call(Request::Delete), Err(ErrorCode::NonEmptyGroup));
    world.fail_over();
    world.wall_ms += 30 * 24 * 3600 * 1000;
    world.at = world.at + Duration::from_secs(3600);
    let now = world.now();
    world.coordinator.handle_tick(now);
    world.settle();
    assert!(world.is_pending());
    assert_eq!(world.call(end(0, 0, false)), Ok(Answer::Done));
    assert_eq!(world.coordinator.groups(), 0);
    world.fail_over();
    assert_eq!(world.coordinator.groups(), 0);
}

#[test]
fn offsets_of_a_deleted_topic_are_not_committed() {
    let mut world = World::new();
    assert_eq!(world.commit_in_transaction(0, 9), accepted());
    let gone = BTreeSet::from(["orders".to_owned()]);
    world.coordinator.handle_topics_deleted(&gone);
    world.settle();
    assert!(!world.is_pending());
    world.fail_over();
    assert!(!world.is_pending());
    assert_eq!(world.call(end(0, 0, true)), Ok(Answer::Done));
    assert_eq!(world.offset(0), None);

    // While they are being written, and while they are being committed.
    let guard = world.guard(0);
    world.holds_writes = true;
    world.ask(Request::CommitInTransaction(in_transaction(0, guard, 9)));
    world.coordinator.handle_topics_deleted(&gone);
    world.flush();
    assert!(!world.is_pending());
    let guard = world.guard(0);
    world.ask(Request::CommitInTransaction(in_transaction(0, guard, 9)));
    world.flush();
    assert!(world.is_pending());
    world.ask(end(0, 0, true));
    world.coordinator.handle_topics_deleted(&gone);
    world.flush();
    assert_eq!(world.offset(0), None);
    world.fail_over();
    assert_eq!(world.offset(0), None);
    assert_eq!(world.coordinator.groups(), 0);
}

#[test]
fn what_was_committed_later_outside_the_transaction_stays() {
    let mut world = World::new();
    assert_eq!(world.commit_in_transaction(0, 50), accepted());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.call(commit(who(""), -1, 10)), accepted());
    assert_eq!(world.call(end(0, 0, true)), Ok(Answer::Done));
    for _ in 0..2 {
        assert_eq!(world.offset(0), Some(10));
        world.fail_over();
    }
}

#[test]
fn how_transactions_ended_is_remembered_of_so_many_producers_and_what_is_pending_is_capped() {
    let mut world = World::new();
    for id in 0..MAX_ENDED_PRODUCERS as i64 + 5 {
        world.wall_ms += 1;
        let end = Request::EndTransaction(EndTransaction {
            producer: ProducerId::new(100 + id).unwrap(),
            producer_epoch: 2,
            coordinator_epoch: 0,
            is_commit: true,
        });
        assert_eq!(world.call(end), Ok(Answer::Done));
    }
    let removed = world.log.iter().filter(|record| record.value.is_none());
    assert_eq!(removed.count(), 5);

    let guard = world.guard(0);
    let offsets = (0..2000).map(|partition| CommitOffset {
        topic: "orders".to_owned(),
        partition,
        offset: 1,
        leader_epoch: -1,
        metadata: "m".repeat(MAX_METADATA_BYTES),
        refused: None,
    });
    let large = TransactionCommit {
        offsets: offsets.collect(),
        ..in_transaction(0, guard, 0)
    };
    assert_eq!(
        world.call(Request::CommitInTransaction(large)),
        Err(ErrorCode::InvalidCommitOffsetSize)
    );
    assert!(!world.is_pending());
}
