//! Clients whose transactions have an epoch each: `transaction.version` 2.

use super::*;

impl World {
    /// As the leader of a partition does for the client.
    fn reach(&mut self, who: (i64, i16), numbers: &[i32]) -> Result<Answer, ErrorCode> {
        self.call(Request::AddPartitions {
            producer: producer(who.0),
            epoch: who.1,
            partitions: partitions(numbers),
            version: ClientVersion::V2,
        })
    }

    fn finish_request(who: (i64, i16), ending: Ending) -> Request {
        Request::End {
            producer: producer(who.0),
            epoch: who.1,
            ending,
            version: ClientVersion::V2,
            fresh: None,
        }
    }

    /// Ends a transaction and says what the producer is from then on; as the node does, with another id where one is wanted.
    fn finish(&mut self, who: (i64, i16), ending: Ending) -> Result<(i64, i16), ErrorCode> {
        let request = World::finish_request(who, ending);
        let answer = match self.call(request.clone())? {
            Answer::NeedsProducerId => {
                self.fresh += 1;
                let fresh = producer(self.fresh);
                self.call(request.with_fresh(fresh))?
            }
            answer => answer,
        };
        match answer {
            Answer::Producer { producer, epoch } => Ok((producer.get(), epoch)),
            other => panic!("{other:?}"),
        }
    }

    /// A producer in the last epoch that its id has.
    fn in_the_last_epoch(&mut self) -> (i64, i16) {
        let mut who = self.init(None).unwrap();
        while who.1 < LAST_EPOCH {
            who = self.init(Some(who)).unwrap();
        }
        who
    }
}

#[test]
fn each_end_begins_an_epoch_and_its_markers_carry_it() {
    let mut world = World::new();
    let mut who = world.init(None).unwrap();
    for (round, ending) in [Ending::Commit, Ending::Abort, Ending::Commit]
        .into_iter()
        .enumerate()
    {
        assert_eq!(who, (101, round as i16));
        assert_eq!(world.reach(who, &[0]), Ok(Answer::Done));
        assert_eq!(world.reach(who, &[0, 1]), Ok(Answer::Done));
        let next = world.finish(who, ending).unwrap();
        assert_eq!(next, (who.0, who.1 + 1));
        let told = [0, 1].map(|partition| (partition, ending, next.1));
        assert_eq!(world.take_marked(), told);
        assert_eq!(world.state(), ending.complete());
        // What comes late of it neither begins another nor is vouched for.
        let fenced = Err(ErrorCode::ProducerFenced);
        assert_eq!(world.reach(who, &[0]), fenced);
        assert_eq!(world.verify(who, 0), fenced);
        assert_eq!(world.state(), ending.complete());
        who = next;
    }
}

#[test]
fn a_retried_end_is_answered_as_the_first_at_another_node_too() {
    for ending in [Ending::Commit, Ending::Abort] {
        let other = match ending {
            Ending::Commit => Ending::Abort,
            Ending::Abort => Ending::Commit,
        };
        let mut world = World::new();
        let who = world.init(None).unwrap();
        world.reach(who, &[0]).unwrap();
        world.takes_markers = false;
        let next = world.finish(who, ending).unwrap();
        let wrong = Err(ErrorCode::InvalidTxnState);
        for _ in 0..2 {
            let busy = Err(ErrorCode::ConcurrentTransactions);
            assert_eq!(world.finish(who, ending), busy);
            assert_eq!(world.finish(who, other), wrong);
            // The next transaction waits for the end of this one.
            assert_eq!(world.reach(next, &[0]).map(|_| ()), busy.map(|_| ()));
            assert_eq!(world.finish(next, Ending::Abort), busy);
            assert_eq!(world.reach(who, &[1]), Err(ErrorCode::ProducerFenced));
            world.fail_over();
        }
        world.takes_markers = true;
        world.flush();
        world.take_marked();
        for _ in 0..2 {
            assert_eq!(world.finish(who, ending), Ok(next));
            assert_eq!(world.finish(who, other), wrong);
            world.fail_over();
        }
        assert_eq!(world.take_marked(), [], "nobody is told twice");
        // Once the next one has begun it is a retry no more.
        world.reach(next, &[0]).unwrap();
        assert_eq!(world.finish(who, ending), Err(ErrorCode::ProducerFenced));
        assert_eq!(world.state(), State::Ongoing);
    }
}

#[test]
fn a_deposed_coordinator_does_not_say_that_it_is_done() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.reach(who, &[0]).unwrap();
    world.holds_writes = true;
    let ended = world.ask(World::finish_request(who, Ending::Commit));
    assert_eq!(world.answer(ended), None);
    world.flush();
    let next = Answer::Producer {
        producer: producer(who.0),
        epoch: who.1 + 1,
    };
    assert_eq!(world.answer(ended), Some(Ok(next)));
    let retried = world.ask(World::finish_request(who, Ending::Commit));
    assert_eq!(world.answer(retried), None);
    world.failing = Some(ErrorCode::NotLeaderOrFollower);
    world.flush();
    let deposed = Err(ErrorCode::NotCoordinator);
    assert_eq!(world.answer(retried), Some(deposed));
}

#[test]
fn only_an_abort_needs_no_transaction() {
    let mut world = World::new();
    let mut who = world.init(None).unwrap();
    let wrong = Err(ErrorCode::InvalidTxnState);
    assert_eq!(world.finish(who, Ending::Commit), wrong);
    for _ in 0..3 {
        // A partition's leader may not have come to add it: the client cannot know, and goes on under another epoch.
        let next = world.finish(who, Ending::Abort).unwrap();
        assert_eq!(next, (who.0, who.1 + 1));
        assert_eq!(world.state(), State::CompleteAbort);
        assert_eq!(world.finish(who, Ending::Abort), Ok(next), "a retry");
        assert_eq!(world.finish(next, Ending::Commit), wrong);
        who = next;
    }
    world.reach(who, &[0]).unwrap();
    let next = world.finish(who, Ending::Commit).unwrap();
    let aborted = world.finish(next, Ending::Abort).unwrap();
    assert_eq!(aborted, (who.0, who.1 + 2));
    assert_eq!(world.take_marked(), [(0, Ending::Commit, next.1)]);
}

#[test]
fn when_the_epochs_are_used_up_the_end_brings_another_producer_id() {
    for ending in [Ending::Commit, Ending::Abort] {
        let mut world = World::new();
        let who = world.in_the_last_epoch();
        world.reach(who, &[0]).unwrap();
        world.takes_markers = false;
        let next = world.finish(who, ending).unwrap();
        assert_eq!(next, (who.0 + 1, 0));
        for _ in 0..2 {
            let busy = ErrorCode::ConcurrentTransactions;
            assert_eq!(world.finish(who, ending), Err(busy));
            assert_eq!(world.reach(next, &[0]), Err(busy));
            assert_eq!(world.init(Some(next)), Err(busy));
            assert!(world.reach(who, &[0]).is_err());
            world.fail_over();
        }
        world.takes_markers = true;
        world.flush();
        // The partitions know the old id alone, which nobody has in the last epoch of all.
        let marked = world.marked.clone();
        assert_eq!(marked.len(), 1);
        assert_eq!(marked[0].producer.get(), who.0);
        assert_eq!(marked[0].producer_epoch, i16::MAX);
        for _ in 0..2 {
            assert_eq!(world.finish(who, ending), Ok(next), "a retry");
            world.fail_over();
        }
        let unknown = Err(ErrorCode::InvalidProducerIdMapping);
        assert_eq!(world.reach(who, &[0]), unknown);
        let described = world.describe();
        assert_eq!((described.producer.get(), described.epoch), next);
        world.reach(next, &[3]).unwrap();
        assert_eq!(
            world.finish(who, ending).map(|_| ()),
            unknown.map(|_| ()),
            "no retry any more"
        );
        assert_eq!(world.finish(next, ending), Ok((next.0, 1)));
    }
}

#[test]
fn a_producer_that_begins_anew_is_known_by_the_epoch_that_it_ended_with() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.reach(who, &[0]).unwrap();
    let next = world.finish(who, Ending::Commit).unwrap();
    // It did not hear of it, and asks for what it is.
    assert_eq!(world.init(Some(who)), Ok(next));
    assert_eq!(world.init(Some(next)), Ok((who.0, next.1 + 1)));
    assert_eq!(world.init(Some(who)), Err(ErrorCode::ProducerFenced));
}

#[test]
fn whoever_is_fenced_ends_nothing() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    world.reach(first, &[0]).unwrap();
    let begin = world.init(None);
    assert_eq!(begin, Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(
        world.take_marked(),
        [(0, Ending::Abort, 1)],
        "under the next epoch"
    );
    let fenced = Err(ErrorCode::ProducerFenced);
    for ending in [Ending::Commit, Ending::Abort] {
        assert_eq!(world.finish(first, ending), fenced);
    }
    let second = world.init(None).unwrap();
    assert_eq!(second, (first.0, 2));
    assert_eq!(world.finish(first, Ending::Commit), fenced);
    // Nor one that took too long.
    world.reach(second, &[0]).unwrap();
    world.pass(Duration::from_secs(61));
    assert_eq!(world.state(), State::CompleteAbort);
    for ending in [Ending::Commit, Ending::Abort] {
        assert_eq!(world.finish(second, ending), fenced);
    }
}

/// The holder's last epoch is another's, and not one that it has ended a transaction with.
#[test]
fn a_zombie_is_not_told_that_an_older_clients_transaction_was_its_own() {
    let mut world = World::new();
    let zombie = world.init(None).unwrap();
    let holder = world.init(Some(zombie)).unwrap();
    world.add(holder, &[0]).unwrap();
    world.end(holder, Ending::Commit).unwrap();
    assert_eq!(
        world.finish(zombie, Ending::Commit),
        Err(ErrorCode::ProducerFenced)
    );
}

#[test]
fn a_client_may_change_what_it_speaks_between_transactions() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.add(who, &[0]).unwrap();
    world.end(who, Ending::Commit).unwrap();
    assert_eq!(world.take_marked(), [(0, Ending::Commit, 0)]);
    // The epoch goes on: nothing was begun anew.
    world.reach(who, &[1]).unwrap();
    let next = world.finish(who, Ending::Commit).unwrap();
    assert_eq!(world.take_marked(), [(1, Ending::Commit, 1)]);
    world.add(next, &[2]).unwrap();
    assert_eq!(world.end(next, Ending::Abort), Ok(Answer::Done));
    assert_eq!(world.take_marked(), [(2, Ending::Abort, 1)]);
    assert_eq!(
        world.end(next, Ending::Abort),
        Ok(Answer::Done),
        "an older client's retry"
    );
    // What the older client begins, the newer one may end.
    world.add(next, &[3]).unwrap();
    assert_eq!(world.finish(next, Ending::Commit), Ok((next.0, next.1 + 1)));
    assert_eq!(world.take_marked(), [(3, Ending::Commit, 2)]);
}

/// After each record that was written, another coordinator begins with what is in the log, and the producer repeats what was not
/// answered.
#[test]
fn a_crash_after_any_record_gives_one_epoch_and_not_two() {
    for (ending, is_last) in [
        (Ending::Commit, false),
        (Ending::Abort, false),
        (Ending::Commit, true),
    ] {
        // Partition, prepare, complete.
        for records in 1..=3 {
            let mut world = World::new();
            let who = match is_last {
                true => world.in_the_last_epoch(),
                false => world.init(None).unwrap(),
            };
            let before = world.log.len();
            world.reach(who, &[0, 1]).unwrap();
            let next = world.finish(who, ending).unwrap();
            assert_eq!(world.log.len(), before + 3);
            world.take_marked();
            world.fail_over_at(before + records);
            let again = world.finish(who, ending).unwrap();
            match records {
                // Nothing was decided, so nobody has the other id.
                1 if is_last => assert_eq!(again, (next.0 + 1, 0)),
                _ => assert_eq!(again, next),
            }
            assert_eq!(world.state(), ending.complete());
            let marked = |partition| (partition, ending, who.1 + 1);
            let told = match records {
                3 => Vec::new(),
                _ => vec![marked(0), marked(1)],
            };
            assert_eq!(world.take_marked(), told, "{ending:?} after {records}");
            assert_eq!(world.reach(again, &[0]), Ok(Answer::Done));
            assert_eq!(world.reach(who, &[0]).is_err(), who != again);
        }
    }
}

#[test]
fn an_end_that_was_not_written_has_not_happened() {
    let mut world = World::new();
    let who = world.init(None).unwrap();
    world.reach(who, &[0]).unwrap();
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    let failed = Err(ErrorCode::CoordinatorNotAvailable);
    assert_eq!(world.finish(who, Ending::Commit), failed);
    world.failing = None;
    assert_eq!(world.state(), State::Ongoing);
    assert_eq!(world.reach(who, &[1]), Ok(Answer::Done));
    // The client may have given it up meanwhile.
    assert_eq!(world.finish(who, Ending::Abort), Ok((who.0, 1)));
}
