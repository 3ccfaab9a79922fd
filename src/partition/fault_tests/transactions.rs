//! Transactions over stops, kills, truncations, resets and retention, one by one.

use super::*;
use crate::record::{Marker, TransactionOutcome};
use crate::replication::Verification;

fn producer(id: i64) -> ProducerId {
    ProducerId::new(id).unwrap()
}

fn in_transaction(id: i64, epoch: i16, sequence: i32) -> Batch {
    let mut builder = BatchBuilder::new();
    builder.append(None, Some(&[b'x'; 50]), &[], 1000).unwrap();
    let stamp = ProducerStamp {
        id: producer(id),
        epoch,
        base_sequence: sequence,
    };
    let sealed = builder.seal(Compression::None).unwrap();
    Batch::decode(&sealed.transactional().stamp(Some(stamp))).unwrap()
}

impl Pair {
    /// A batch of a transaction that its coordinator knows.
    fn transact(
        &mut self,
        i: usize,
        (id, epoch, sequence): (i64, i16, i32),
    ) -> Result<u64, ErrorCode> {
        let guard = match self.partition(i).verification(producer(id), epoch)? {
            Verification::NotNeeded => None,
            Verification::Needed(guard) => Some(guard),
        };
        self.transact_with(i, (id, epoch, sequence), guard)
    }

    fn transact_with(
        &mut self,
        i: usize,
        (id, epoch, sequence): (i64, i16, i32),
        guard: Option<crate::replication::VerificationGuard>,
    ) -> Result<u64, ErrorCode> {
        self.tickets += 1;
        let ticket = ProduceTicket(self.tickets);
        let request = ProduceRequest {
            ticket,
            batch: in_transaction(id, epoch, sequence),
            acks: Acks::All,
            deadline: self.now + Duration::from_secs(3600),
            guard,
        };
        let (now, peers) = (self.now, self.peers());
        self.partition(i).handle_produce(now, request, &peers);
        self.run();
        self.answer(i, ticket)
            .unwrap_or(Err(ErrorCode::RequestTimedOut))
    }

    fn end(
        &mut self,
        i: usize,
        (id, epoch, coordinator_epoch): (i64, i16, i32),
        outcome: TransactionOutcome,
    ) -> Result<u64, ErrorCode> {
        self.tickets += 1;
        let ticket = ProduceTicket(self.tickets);
        let request = MarkerRequest {
            ticket,
            marker: Marker {
                producer: producer(id),
                producer_epoch: epoch,
                coordinator_epoch,
                outcome,
                aborted: None,
            },
            wall_clock_ms: 1000,
            deadline: self.now + Duration::from_secs(3600),
        };
        let (now, peers) = (self.now, self.peers());
        self.partition(i).handle_marker(now, request, &peers);
        self.run();
        self.answer(i, ticket)
            .unwrap_or(Err(ErrorCode::RequestTimedOut))
    }

    fn stable(&mut self, i: usize) -> u64 {
        self.partition(i).view().last_stable_offset.get()
    }

    fn leading_pair() -> Pair {
        let mut pair = Pair::new();
        pair.tell();
        pair
    }
}

use TransactionOutcome::{Abort, Commit};

#[test]
fn a_transaction_begins_only_with_its_coordinators_word_and_ends_with_a_marker() {
    let mut pair = Pair::leading_pair();
    assert_eq!(
        pair.transact_with(0, (7, 0, 0), None),
        Err(ErrorCode::InvalidTxnState)
    );
    assert_eq!(pair.transact(0, (7, 0, 0)), Ok(0));
    assert_eq!(pair.transact_with(0, (7, 0, 1), None), Ok(1));
    assert_eq!(pair.stable(0), 0);
    assert_eq!(pair.end(0, (7, 0, 3), Commit), Ok(2));
    assert_eq!(pair.stable(0), 3);
    // Once more, as from a coordinator that missed the answer: it changes nothing that is shown.
    assert_eq!(pair.end(0, (7, 0, 3), Commit), Ok(3));
    assert_eq!(
        pair.end(0, (7, 0, 2), Abort),
        Err(ErrorCode::TransactionCoordinatorFenced)
    );
    assert_eq!(
        pair.end(0, (7, -1, 3), Abort),
        Err(ErrorCode::InvalidProducerEpoch)
    );
    // The last batch again, after its transaction: it is there.
    assert_eq!(pair.transact_with(0, (7, 0, 1), None), Ok(1));
    pair.pass(100);
    assert_eq!(pair.stable(1), 4);
}

#[test]
fn a_marker_between_the_coordinators_word_and_the_append_makes_the_append_fail() {
    let mut pair = Pair::leading_pair();
    let verification = pair.partition(0).verification(producer(7), 0);
    let Ok(Verification::Needed(guard)) = verification else {
        panic!("{verification:?}")
    };
    // The coordinator has ended the transaction meanwhile; nothing of it had come here.
    pair.end(0, (7, 0, 1), Abort).unwrap();
    assert_eq!(
        pair.transact_with(0, (7, 0, 0), Some(guard)),
        Err(ErrorCode::InvalidTxnState)
    );
    assert_eq!(pair.stable(0), 1);
    // Another leader knows nothing of what the first one was told.
    let Ok(Verification::Needed(guard)) = pair.partition(0).verification(producer(7), 0) else {
        panic!()
    };
    pair.commit(None, 2, &[0, 1]);
    pair.commit(Some(0), 2, &[0, 1]);
    assert_eq!(
        pair.transact_with(0, (7, 0, 0), Some(guard)),
        Err(ErrorCode::NotLeaderOrFollower)
    );
}

#[test]
fn a_batch_that_comes_after_its_transaction_is_fenced_by_the_epoch_of_the_marker() {
    let mut pair = Pair::leading_pair();
    let verification = pair.partition(0).verification(producer(7), 0);
    let Ok(Verification::Needed(guard)) = verification else {
        panic!("{verification:?}")
    };
    let guard = guard.of_first_batch();
    assert_eq!(pair.transact_with(0, (7, 0, 0), Some(guard)), Ok(0));
    // The next record of the same transaction is on its way somewhere. An older client ends the transaction and begins another.
    assert_eq!(pair.end(0, (7, 0, 1), Commit), Ok(1));
    assert_eq!(pair.transact(0, (7, 0, 1)), Ok(2), "taken for the next one");
    // A newer one gets another epoch with the end.
    assert_eq!(pair.end(0, (7, 1, 1), Abort), Ok(3));
    let fenced = Err(ErrorCode::InvalidProducerEpoch);
    for _ in 0..2 {
        assert_eq!(pair.transact(0, (7, 0, 2)), fenced);
        assert_eq!(pair.transact_with(0, (7, 0, 2), Some(guard)), fenced);
        // Also once the next one is under way, and on another leader. What is sent twice is there once.
        assert_eq!(pair.transact(0, (7, 1, 0)), Ok(4));
    }
    pair.commit(None, 2, &[0, 1]);
    pair.commit(Some(1), 2, &[0, 1]);
    assert_eq!(pair.transact(1, (7, 0, 2)), fenced);
    assert_eq!(pair.transact(1, (7, 1, 1)), Ok(5));
    assert_eq!(pair.end(1, (7, 2, 1), Commit), Ok(6));
    assert_eq!(pair.stable(1), 7);
}

/// A newer client begins its next transaction while markers of the last one are still on their way.
#[test]
fn a_marker_of_the_transaction_before_is_not_taken_for_the_end_of_one_that_has_its_own_epoch() {
    let mut pair = Pair::leading_pair();
    let guard = |pair: &mut Pair| match pair.partition(0).verification(producer(7), 1) {
        Ok(Verification::Needed(guard)) => guard.of_first_batch(),
        other => panic!("{other:?}"),
    };
    assert_eq!(pair.transact(0, (7, 0, 0)), Ok(0));
    let asked = guard(&mut pair);
    assert_eq!(pair.end(0, (7, 1, 1), Commit), Ok(1));
    assert_eq!(
        pair.transact_with(0, (7, 1, 0), Some(asked)),
        Err(ErrorCode::ConcurrentTransactions),
        "to be asked again"
    );
    let asked = guard(&mut pair);
    assert_eq!(pair.transact_with(0, (7, 1, 0), Some(asked)), Ok(2));
    // The end of its own has another epoch.
    assert_eq!(pair.end(0, (7, 2, 1), Commit), Ok(3));
    assert_eq!(
        pair.transact_with(0, (7, 1, 1), Some(asked)),
        Err(ErrorCode::InvalidProducerEpoch)
    );
}

#[test]
fn what_is_open_stays_open_over_a_kill_a_stop_and_another_leader() {
    let mut pair = Pair::leading_pair();
    pair.produce(0, 2);
    assert_eq!(pair.transact(0, (8, 0, 0)), Ok(2));
    pair.produce(0, 3);
    for clean in [false, true] {
        for i in 0..2 {
            if clean {
                pair.stop(i);
            } else {
                pair.kill(i);
            }
        }
        pair.start(0);
        pair.start(1);
        let epoch = pair.state.leader_epoch.get() + 1;
        let leader = usize::from(clean);
        pair.commit(None, epoch, &[0, 1]);
        pair.commit(Some(leader), epoch, &[0, 1]);
        pair.pass(100);
        assert_eq!(pair.stable(leader), 2, "clean: {clean}");
        assert_eq!(
            pair.partition(leader).verification(producer(8), 0),
            Ok(Verification::NotNeeded)
        );
    }
    assert_eq!(pair.end(1, (8, 1, 0), Abort), Ok(6));
    pair.pass(100);
    assert_eq!((pair.stable(0), pair.stable(1)), (7, 7));
    assert_eq!(
        pair.transact(1, (8, 0, 1)),
        Err(ErrorCode::InvalidProducerEpoch)
    );
}

#[test]
fn a_marker_that_is_cut_off_leaves_its_transaction_open() {
    let mut pair = Pair::leading_pair();
    assert_eq!(pair.transact(0, (8, 0, 0)), Ok(0));
    pair.pass(100);
    // The follower is gone; the marker stays on the first replica alone.
    pair.kill(1);
    let epoch = pair.state.leader_epoch;
    assert_eq!(
        pair.end(0, (8, 0, 0), Abort),
        Err(ErrorCode::RequestTimedOut)
    );
    assert_eq!(pair.stable(0), 0, "the marker is not committed");
    pair.kill(0);
    pair.start(1);
    pair.commit(None, epoch.get() + 1, &[1]);
    pair.commit(Some(1), epoch.get() + 1, &[1]);
    pair.start(0);
    pair.tell();
    let state = pair.state.clone();
    let now = pair.now;
    pair.partition(0).handle_state(now, &state, true);
    pair.run();
    pair.pass(100);
    assert_eq!(pair.partition(0).view().log_end, Offset::new(1).unwrap());
    assert_eq!((pair.stable(0), pair.stable(1)), (0, 0));
    assert_eq!(pair.end(1, (8, 0, 0), Commit), Ok(1));
    assert_eq!(pair.stable(1), 2);
}

#[test]
fn a_follower_that_is_reset_learns_what_is_open() {
    let mut pair = Pair::with(LogConfig {
        segment_bytes: 400,
        retention_ms: None,
        retention_bytes: Some(400),
        ..LogConfig::default()
    });
    pair.tell();
    pair.kill(1);
    pair.commit(Some(0), 1, &[0]);
    assert_eq!(pair.transact(0, (8, 3, 0)), Ok(0));
    pair.produce(0, 10);
    let wall = 1_000_000;
    pair.partition(0).handle_retention(wall);
    pair.run();
    let start = pair.partition(0).view().log_start;
    assert!(start > Offset::ZERO);
    // The transaction began before what is left of the log.
    assert_eq!(pair.stable(0), start.get());
    pair.replicas[1].fs = FaultyFileSystem::new(9);
    pair.start(1);
    let state = pair.state.clone();
    let now = pair.now;
    pair.partition(1).handle_state(now, &state, true);
    pair.run();
    pair.pass(200);
    assert_eq!(pair.partition(1).view().log_start, start);
    let open = |partition: &Partition| partition.producers().open_transaction(producer(8), 3);
    assert_eq!(open(pair.partition(1)), Some(Offset::ZERO));
    assert_eq!(pair.stable(1), start.get());
    let before = pair.partition(1).producers().snapshot();
    pair.stop(1);
    pair.start(1);
    assert_eq!(pair.partition(1).producers().snapshot(), before);
}
