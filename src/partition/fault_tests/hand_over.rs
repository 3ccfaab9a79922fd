//! A leader that makes way for the other replica, which has it all, or is slow, or is gone.

use super::super::hand_over::{MAX_HELD, MAX_HELD_BYTES};
use super::*;

const WITHIN: Duration = Duration::from_secs(2);

impl Pair {
    /// Two in sync, the first of them leading, with some records.
    fn leading() -> Pair {
        let mut pair = Pair::new();
        pair.tell();
        pair.produce(0, 3);
        pair
    }

    fn hand_over(&mut self, to: usize) -> Result<(), HandOverError> {
        let epoch = self.state.leader_epoch;
        let deadline = self.now + WITHIN;
        let begun = self
            .partition(0)
            .handle_hand_over(epoch, node(to), deadline);
        self.run();
        begun
    }

    fn next_batch(&mut self, size: usize) -> Batch {
        self.next_sequence += 1;
        batch(7, self.next_sequence - 1, size)
    }

    fn append_next(&mut self, acks: Acks) -> ProduceTicket {
        let batch = self.next_batch(100);
        self.append(0, batch, acks)
    }

    fn disk_recovers(&mut self, i: usize) {
        self.replicas[i].disk_hangs = false;
        for ticket in std::mem::take(&mut self.replicas[i].hanging) {
            let result = ticket.run();
            self.partition(i).handle_synced(ticket, result);
        }
        self.run();
    }
}

#[test]
fn a_leader_takes_nothing_new_until_the_other_holds_everything_and_leads() {
    let mut pair = Pair::leading();
    pair.replicas[1].disk_hangs = true;
    let before = pair.append_next(Acks::Leader);
    assert_eq!(pair.answer(0, before), Some(Ok(3)));
    pair.hand_over(1).unwrap();
    let held = pair.append_next(Acks::Leader);
    let end = pair.partition(0).view().log_end;
    pair.pass(1000);
    assert_eq!(pair.replicas[0].handed_over, [], "the other lacks a record");
    pair.disk_recovers(1);
    assert_eq!(pair.replicas[0].handed_over, [Ok(())]);
    assert_eq!(pair.answer(0, held), None);
    assert_eq!(pair.partition(0).view().log_end, end);
    pair.commit(None, 2, &[0, 1]);
    assert_eq!(pair.fence(0, 2), pair.fence(1, 2), "neither holds more");
    assert_eq!(pair.answer(0, held), None, "there is nowhere to go yet");
    pair.commit(Some(1), 2, &[0, 1]);
    let not_leader = Some(Err(ErrorCode::NotLeaderOrFollower));
    assert_eq!(pair.answer(0, held), not_leader);
    pair.next_sequence -= 1;
    pair.produce(1, 2);
    pair.assert_equal_logs();
    assert_eq!(pair.replicas[0].handed_over, [Ok(())], "it is said once");
}

#[test]
fn where_no_election_follows_the_reign_goes_on_and_what_waited_is_appended_in_its_order() {
    let mut pair = Pair::leading();
    pair.hand_over(1).unwrap();
    let held: Vec<_> = (0..3).map(|_| pair.append_next(Acks::All)).collect();
    pair.pass(1950);
    assert!(held.iter().all(|&ticket| pair.answer(0, ticket).is_none()));
    pair.pass(50);
    let answers: Vec<_> = held.iter().map(|&ticket| pair.answer(0, ticket)).collect();
    assert_eq!(answers, [Some(Ok(3)), Some(Ok(4)), Some(Ok(5))]);
    pair.produce(0, 1);
    assert_eq!(pair.replicas[0].handed_over, [Ok(())]);
    pair.assert_equal_logs();
}

#[test]
fn one_that_does_not_catch_up_in_time_does_not_end_the_reign() {
    let mut pair = Pair::leading();
    pair.replicas[1].disk_hangs = true;
    pair.append_next(Acks::Leader);
    pair.hand_over(1).unwrap();
    let held = pair.append_next(Acks::Leader);
    pair.pass(2000);
    assert_eq!(pair.replicas[0].handed_over, [Err(HandOverError::TimedOut)]);
    assert_eq!(pair.answer(0, held), Some(Ok(4)));
}

#[test]
fn one_whose_connection_breaks_is_not_waited_for() {
    let mut pair = Pair::leading();
    pair.replicas[1].disk_hangs = true;
    pair.append_next(Acks::Leader);
    pair.hand_over(1).unwrap();
    let held = pair.append_next(Acks::Leader);
    pair.partition(0).handle_follower_gone(node(1));
    pair.pass(50);
    let told = [Err(HandOverError::NotFollowing)];
    assert_eq!(pair.replicas[0].handed_over, told);
    assert_eq!(pair.answer(0, held), Some(Ok(4)));
}

#[test]
fn only_the_leader_of_the_epoch_hands_over_and_only_to_another_in_sync_replica() {
    let mut pair = Pair::leading();
    let not_leader = Err(HandOverError::NotLeader);
    let not_following = Err(HandOverError::NotFollowing);
    assert_eq!(pair.hand_over(0), not_leader, "to itself");
    assert_eq!(pair.hand_over(2), not_following, "a stranger");
    let later = pair.now + WITHIN;
    let ask = |pair: &mut Pair, i: usize, epoch: u32| {
        let epoch = LeaderEpoch::new(epoch).unwrap();
        let to = node(1 - i);
        pair.partition(i).handle_hand_over(epoch, to, later)
    };
    assert_eq!(ask(&mut pair, 0, 2), not_leader);
    assert_eq!(ask(&mut pair, 1, 1), not_leader);
    pair.commit(Some(0), 1, &[0]);
    assert_eq!(pair.hand_over(1), not_following, "out of sync");
    pair.produce(0, 1);
    assert_eq!(pair.replicas[0].handed_over, []);
}

#[test]
fn what_waits_is_bounded_and_nothing_overtakes_what_was_turned_away() {
    let mut pair = Pair::leading();
    pair.hand_over(1).unwrap();
    let throttled = Some(Err(ErrorCode::ThrottlingQuotaExceeded));
    let mut last = ProduceTicket(0);
    for _ in 0..MAX_HELD {
        last = pair.append_next(Acks::All);
    }
    assert_eq!(pair.answer(0, last), None);
    let beyond = pair.append_next(Acks::All);
    assert_eq!(pair.answer(0, beyond), throttled);
    pair.commit(None, 2, &[0, 1]);
    pair.pass(1950);
    assert_eq!(pair.answer(0, last), None);
    pair.pass(50);
    let not_leader = Some(Err(ErrorCode::NotLeaderOrFollower));
    assert_eq!(pair.answer(0, last), not_leader, "the election takes long");

    let mut pair = Pair::leading();
    pair.hand_over(1).unwrap();
    let small = pair.append_next(Acks::All);
    let large = pair.next_batch(MAX_HELD_BYTES);
    let large = pair.append(0, large, Acks::All);
    let behind = pair.append_next(Acks::All);
    assert_eq!(pair.answer(0, small), None);
    assert_eq!(pair.answer(0, large), throttled);
    assert_eq!(pair.answer(0, behind), throttled);
}

#[test]
fn a_request_that_waits_past_its_own_deadline_is_told_and_never_appended() {
    let mut pair = Pair::leading();
    pair.hand_over(1).unwrap();
    let request = ProduceRequest {
        ticket: ProduceTicket(1_000),
        batch: pair.next_batch(100),
        acks: Acks::All,
        deadline: pair.now + Duration::from_millis(100),
        guard: None,
    };
    let (now, peers) = (pair.now, pair.peers());
    pair.partition(0).handle_produce(now, request, &peers);
    pair.pass(100);
    let overdue = Some(Err(ErrorCode::RequestTimedOut));
    assert_eq!(pair.answer(0, ProduceTicket(1_000)), overdue);
    pair.pass(2000);
    pair.next_sequence -= 1;
    let again = pair.append_next(Acks::All);
    assert_eq!(pair.answer(0, again), Some(Ok(3)));
}
