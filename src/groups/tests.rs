//! Whole stories of groups, told to a coordinator whose log and clock are the test's.

mod transactions;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::record::LogRecord;
use crate::types::{ErrorCode, MonotonicTime};

const GROUP: &str = "readers";
const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);

/// A coordinator, its log and a clock.
struct World {
    coordinator: Coordinator,
    log: Vec<LogRecord>,
    /// What the next writes come to; all is well when it is `None`.
    failing: Option<ErrorCode>,
    /// Whether writes stay out until [`World::flush`].
    holds_writes: bool,
    at: MonotonicTime,
    wall_ms: i64,
    tickets: u64,
    answers: Vec<(Ticket, Result<Answer, ErrorCode>)>,
}

impl World {
    fn new() -> World {
        let mut world = World {
            coordinator: Coordinator::new(Settings::default()),
            log: Vec::new(),
            failing: None,
            holds_writes: false,
            at: MonotonicTime::ZERO,
            wall_ms: 1_000_000,
            tickets: 0,
            answers: Vec::new(),
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

    fn flush(&mut self) {
        let now = self.now();
        while let Some(records) = self.coordinator.take_write(now) {
            let result = match self.failing {
                None => {
                    self.log.extend(records);
                    Ok(())
                }
                Some(error) => Err(error),
            };
            self.coordinator.handle_written(now, result);
        }
        while let Some(answer) = self.coordinator.poll_answer() {
            self.answers.push(answer);
        }
    }

    fn settle(&mut self) {
        if !self.holds_writes {
            self.flush();
        }
        while let Some(answer) = self.coordinator.poll_answer() {
            self.answers.push(answer);
        }
    }

    fn ask(&mut self, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.coordinator.handle(self.now(), ticket, GROUP, request);
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

    /// Another node takes over, with what is in the log.
    fn fail_over(&mut self) {
        self.coordinator = Coordinator::new(Settings::default());
        for record in &self.log {
            self.coordinator
                .replay(Some(&record.key), record.value.as_deref())
                .unwrap();
        }
        self.coordinator.loaded(self.now());
        self.answers.clear();
    }

    /// A member id by the two steps, and the ticket of the join that follows.
    fn join_new(&mut self) -> (String, Ticket) {
        let first = Join {
            takes_id_first: true,
            ..join("")
        };
        let first = Join {
            random: u128::from(self.tickets) + 1,
            ..first
        };
        let Ok(Answer::MemberIdRequired(id)) = self.call(Request::Join(first)) else {
            panic!("no member id");
        };
        let ticket = self.ask(Request::Join(join(&id)));
        (id.to_string(), ticket)
    }

    fn joined(&mut self, ticket: Ticket) -> Joined {
        match self.answer(ticket) {
            Some(Ok(Answer::Joined(joined))) => joined,
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self) -> GroupState {
        match self.call(Request::Describe) {
            Ok(Answer::Described(found)) => found.state,
            other => panic!("{other:?}"),
        }
    }

    /// A stable group of so many members, the leader first.
    fn stable(&mut self, members: usize) -> (Vec<String>, i32) {
        let joins: Vec<_> = (0..members).map(|_| self.join_new()).collect();
        self.pass(Duration::from_secs(2));
        let joined: Vec<Joined> = joins.iter().map(|(_, t)| self.joined(*t)).collect();
        let generation = joined[0].generation;
        self.sync_all(&joined);
        let leader = joined[0].leader.to_string();
        let mut ids: Vec<String> = joins.into_iter().map(|(id, _)| id).collect();
        ids.sort_by_key(|id| *id != leader);
        (ids, generation)
    }

    fn sync_all(&mut self, joined: &[Joined]) {
        let leader = joined[0].leader.clone();
        let assignments: Vec<(String, Bytes)> = joined
            .iter()
            .map(|joined| (joined.member.to_string(), share_of(&joined.member)))
            .collect();
        let mut tickets = Vec::new();
        for joined in joined {
            let assignments = if joined.member == leader {
                assignments.clone()
            } else {
                Vec::new()
            };
            tickets.push((
                joined.member.clone(),
                self.ask(Request::Sync(Sync {
                    assignments,
                    ..sync(&joined.member, joined.generation)
                })),
            ));
        }
        for (member, ticket) in tickets {
            match self.answer(ticket) {
                Some(Ok(Answer::Synced(synced))) => {
                    assert_eq!(synced.assignment, share_of(&member));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn heartbeat(&mut self, member: &str, generation: i32) -> Result<Answer, ErrorCode> {
        self.call(Request::Heartbeat {
            who: who(member),
            generation,
        })
    }

    fn offset(&mut self, partition: i32) -> Option<i64> {
        let wanted = vec![("orders".to_owned(), partition)];
        match self.call(Request::FetchOffsets {
            wanted: Some(wanted),
            asker: None,
        }) {
            Ok(Answer::Offsets(found)) => found[0].committed.as_ref().map(|c| c.offset),
            other => panic!("{other:?}"),
        }
    }
}

fn who(member: &str) -> Who {
    Who {
        member: member.to_owned(),
        instance: None,
    }
}

fn instance(member: &str, instance: &str) -> Who {
    Who {
        member: member.to_owned(),
        instance: Some(instance.to_owned()),
    }
}

fn share_of(member: &str) -> Bytes {
    Bytes::copy_from_slice(format!("for {member}").as_bytes())
}

fn join(member: &str) -> Join {
    Join {
        who: who(member),
        client_id: "client".to_owned(),
        client_host: "/192.0.2.1".to_owned(),
        session: SESSION,
        rebalance: REBALANCE,
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), subscription())],
        takes_id_first: false,
        can_skip_assignment: false,
        random: 7,
    }
}

fn subscription() -> Bytes {
    encode_subscription(&Subscription {
        topics: vec!["orders".into()],
        ..Subscription::default()
    })
}

fn sync(member: &str, generation: i32) -> Sync {
    Sync {
        who: who(member),
        generation,
        protocol_type: None,
        protocol: None,
        assignments: Vec::new(),
    }
}

fn commit(who: Who, generation: i32, offset: i64) -> Request {
    Request::Commit(OffsetCommit {
        who,
        generation,
        offsets: vec![CommitOffset {
            topic: "orders".to_owned(),
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: String::new(),
            refused: None,
        }],
    })
}

fn leave(member: &str) -> Request {
    Request::Leave(vec![LeavingMember { who: who(member) }])
}

#[test]
fn members_that_come_together_are_one_generation() {
    let mut world = World::new();
    let (ids, generation) = world.stable(3);
    assert_eq!(generation, 1);
    assert_eq!(world.state(), GroupState::Stable);
    for id in &ids {
        assert_eq!(world.heartbeat(id, 1), Ok(Answer::Done));
    }
    let Ok(Answer::Described(found)) = world.call(Request::Describe) else {
        panic!();
    };
    assert_eq!(found.members.len(), 3);
    assert_eq!(&*found.protocol, "range");
    let shares: BTreeSet<_> = found.members.iter().map(|m| m.assignment.clone()).collect();
    assert_eq!(shares.len(), 3);
}

#[test]
fn a_newcomer_makes_the_others_join_again() {
    let mut world = World::new();
    let (ids, _) = world.stable(1);
    let (newcomer, ticket) = world.join_new();
    assert_eq!(world.state(), GroupState::PreparingRebalance);
    assert_eq!(
        world.heartbeat(&ids[0], 1),
        Err(ErrorCode::RebalanceInProgress)
    );
    let again = world.ask(Request::Join(join(&ids[0])));
    let (first, second) = (world.joined(again), world.joined(ticket));
    assert_eq!((first.generation, second.generation), (2, 2));
    assert_eq!(*first.leader, *ids[0]);
    assert_eq!(first.members.len(), 2);
    assert_eq!(second.members.len(), 0);
    // A member of an earlier generation commits nothing.
    assert_eq!(
        world.call(commit(who(&ids[0]), 1, 5)),
        Err(ErrorCode::IllegalGeneration)
    );
    // Before the assignment nobody has read anything of this generation.
    assert_eq!(
        world.call(commit(who(&ids[0]), 2, 5)),
        Err(ErrorCode::RebalanceInProgress)
    );
    world.sync_all(&[first, second]);
    assert_eq!(world.heartbeat(&newcomer, 2), Ok(Answer::Done));
}

#[test]
fn a_member_that_falls_silent_is_taken_out_and_fenced() {
    let mut world = World::new();
    let (ids, _) = world.stable(2);
    for _ in 0..3 {
        world.pass(SESSION / 2);
        let _ = world.heartbeat(&ids[0], 1);
    }
    assert_eq!(world.state(), GroupState::PreparingRebalance);
    assert_eq!(world.heartbeat(&ids[1], 1), Err(ErrorCode::UnknownMemberId));
    assert_eq!(
        world.call(commit(who(&ids[1]), 1, 9)),
        Err(ErrorCode::UnknownMemberId)
    );
    assert_eq!(world.offset(0), None);
    let again = world.ask(Request::Join(join(&ids[0])));
    assert_eq!(world.joined(again).members.len(), 1);
}

#[test]
fn who_does_not_join_again_in_time_is_left_behind() {
    let mut world = World::new();
    let (ids, _) = world.stable(2);
    let (_, newcomer) = world.join_new();
    let again = world.ask(Request::Join(join(&ids[0])));
    // The other lives and does not join.
    for _ in 0..30 {
        assert!(world.answer(newcomer).is_none());
        world.pass(Duration::from_secs(2));
        let _ = world.heartbeat(&ids[1], 1);
    }
    world.pass(Duration::from_secs(2));
    assert_eq!(world.joined(newcomer).generation, 2);
    assert_eq!(world.joined(again).members.len(), 2);
    assert_eq!(world.heartbeat(&ids[1], 1), Err(ErrorCode::UnknownMemberId));
}

#[test]
fn who_does_not_ask_for_its_assignment_in_time_is_left_behind() {
    let mut world = World::new();
    let joins = [world.join_new(), world.join_new()];
    world.pass(Duration::from_secs(2));
    let joined: Vec<Joined> = joins.iter().map(|(_, t)| world.joined(*t)).collect();
    let leader = joined[0].leader.to_string();
    let other = joins
        .iter()
        .find(|(id, _)| *id != leader)
        .unwrap()
        .0
        .clone();
    let waiting = world.ask(Request::Sync(sync(&other, 1)));
    for _ in 0..31 {
        world.pass(Duration::from_secs(2));
        let _ = world.heartbeat(&leader, 1);
    }
    assert_eq!(
        world.answer(waiting),
        Some(Err(ErrorCode::RebalanceInProgress))
    );
    assert_eq!(world.heartbeat(&leader, 1), Err(ErrorCode::UnknownMemberId));
    assert_eq!(
        world.heartbeat(&other, 1),
        Err(ErrorCode::RebalanceInProgress)
    );
}

#[test]
fn an_id_that_is_not_used_holds_a_rebalance_up_no_longer_than_a_session() {
    let mut world = World::new();
    let (ids, _) = world.stable(1);
    let first = Join {
        takes_id_first: true,
        random: 99,
        ..join("")
    };
    assert!(matches!(
        world.call(Request::Join(first)),
        Ok(Answer::MemberIdRequired(_))
    ));
    let (_, newcomer) = world.join_new();
    let again = world.ask(Request::Join(join(&ids[0])));
    assert!(world.answer(newcomer).is_none());
    world.pass(SESSION + Duration::from_secs(1));
    assert_eq!(world.joined(newcomer).generation, 2);
    assert_eq!(world.joined(again).members.len(), 2);
}

#[test]
fn members_that_leave_are_gone_at_once() {
    let mut world = World::new();
    let (ids, _) = world.stable(2);
    assert_eq!(
        world.call(leave(&ids[1])),
        Ok(Answer::Results(vec![Ok(())]))
    );
    assert_eq!(
        world.call(leave(&ids[1])),
        Ok(Answer::Results(vec![Err(ErrorCode::UnknownMemberId)]))
    );
    let again = world.ask(Request::Join(join(&ids[0])));
    let joined = world.joined(again);
    world.sync_all(&[joined]);
    assert_eq!(
        world.call(leave(&ids[0])),
        Ok(Answer::Results(vec![Ok(())]))
    );
    assert_eq!(world.state(), GroupState::Empty);
    // What a group without members is, it also is on the next node.
    world.fail_over();
    assert_eq!(world.state(), GroupState::Empty);
}

#[test]
fn a_leader_that_leaves_has_a_successor() {
    let mut world = World::new();
    let (ids, _) = world.stable(3);
    world.ask(leave(&ids[0]));
    let tickets: Vec<Ticket> = ids[1..]
        .iter()
        .map(|id| world.ask(Request::Join(join(id))))
        .collect();
    let joined: Vec<Joined> = tickets.iter().map(|t| world.joined(*t)).collect();
    assert_ne!(*joined[0].leader, *ids[0]);
    assert_eq!(joined[0].leader, joined[1].leader);
    world.sync_all(&joined);
}

#[test]
fn committed_offsets_survive_a_failover_with_the_group() {
    let mut world = World::new();
    let (ids, generation) = world.stable(2);
    assert_eq!(
        world.call(commit(who(&ids[0]), generation, 41)),
        Ok(Answer::Results(vec![Ok(())]))
    );
    assert_eq!(world.offset(0), Some(41));
    world.fail_over();
    assert_eq!(world.offset(0), Some(41));
    // Nobody notices but by the coordinator's address: members, generation and assignments are there.
    for id in &ids {
        assert_eq!(world.heartbeat(id, generation), Ok(Answer::Done));
    }
    let synced = world.call(Request::Sync(sync(&ids[1], generation)));
    let Ok(Answer::Synced(synced)) = synced else {
        panic!("{synced:?}");
    };
    assert_eq!(synced.assignment, share_of(&ids[1]));
    // Their sessions begin anew, and end.
    world.pass(SESSION + Duration::from_secs(1));
    assert_eq!(world.state(), GroupState::Empty);
}

#[test]
fn nothing_is_answered_before_it_is_written() {
    let mut world = World::new();
    let (ids, generation) = world.stable(1);
    world.holds_writes = true;
    let ticket = world.ask(commit(who(&ids[0]), generation, 7));
    assert_eq!(world.answer(ticket), None);
    assert_eq!(world.offset(0), None);
    world.flush();
    assert_eq!(
        world.answer(ticket),
        Some(Ok(Answer::Results(vec![Ok(())])))
    );
    assert_eq!(world.offset(0), Some(7));
}

#[test]
fn an_assignment_that_cannot_be_written_is_not_given_out() {
    let mut world = World::new();
    let (id, ticket) = world.join_new();
    world.pass(Duration::from_secs(1));
    let joined = world.joined(ticket);
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    let given = Sync {
        assignments: vec![(id.clone(), share_of(&id))],
        ..sync(&id, joined.generation)
    };
    assert_eq!(
        world.call(Request::Sync(given)),
        Err(ErrorCode::CoordinatorNotAvailable)
    );
    assert_eq!(world.state(), GroupState::PreparingRebalance);
    assert_eq!(
        world.call(commit(who(&id), joined.generation, 3)),
        Err(ErrorCode::CoordinatorNotAvailable)
    );
    assert_eq!(world.offset(0), None);
    assert!(world.log.is_empty());
}

#[test]
fn a_client_without_a_group_commits_while_nobody_is_in_its_way() {
    let mut world = World::new();
    assert_eq!(
        world.call(commit(who(""), -1, 5)),
        Ok(Answer::Results(vec![Ok(())]))
    );
    assert_eq!(world.offset(0), Some(5));
    let (ids, _) = world.stable(1);
    assert_eq!(
        world.call(commit(who(""), -1, 6)),
        Err(ErrorCode::UnknownMemberId)
    );
    // The offset that was there is where the member begins.
    assert_eq!(world.offset(0), Some(5));
    world.ask(leave(&ids[0]));
    assert_eq!(
        world.call(commit(who(""), -1, 6)),
        Ok(Answer::Results(vec![Ok(())]))
    );
}

#[test]
fn a_static_member_that_comes_back_keeps_its_share_and_fences_its_old_self() {
    let mut world = World::new();
    let static_join = |who: Who, random| {
        Request::Join(Join {
            who,
            random,
            ..join("")
        })
    };
    let first = world.ask(static_join(instance("", "a"), 1));
    let second = world.ask(static_join(instance("", "b"), 2));
    world.pass(Duration::from_secs(2));
    let joined = [world.joined(first), world.joined(second)];
    world.sync_all_static(&joined, &["a", "b"]);
    let old = joined[1].member.to_string();
    assert!(old.starts_with("b-"), "{old}");

    // Its process dies and comes back within its session: no rebalance, the same share.
    let back = world.ask(static_join(instance("", "b"), 3));
    let back = world.joined(back);
    assert_eq!(back.generation, 1);
    assert_eq!(world.state(), GroupState::Stable);
    assert_ne!(*back.member, *old);
    let synced = world.call(Request::Sync(Sync {
        who: instance(&back.member, "b"),
        ..sync("", 1)
    }));
    let Ok(Answer::Synced(synced)) = synced else {
        panic!("{synced:?}");
    };
    assert_eq!(synced.assignment, share_of(&old));
    // The old process, if it lives after all, is told.
    let fenced = Request::Heartbeat {
        who: instance(&old, "b"),
        generation: 1,
    };
    assert_eq!(world.call(fenced), Err(ErrorCode::FencedInstanceId));
    assert_eq!(
        world.call(commit(instance(&old, "b"), 1, 3)),
        Err(ErrorCode::FencedInstanceId)
    );
    // And the next coordinator knows as well.
    world.fail_over();
    assert_eq!(
        world.call(commit(instance(&old, "b"), 1, 3)),
        Err(ErrorCode::FencedInstanceId)
    );
    // An administrator takes it out by its name alone.
    let out = Request::Leave(vec![LeavingMember {
        who: instance("", "b"),
    }]);
    assert_eq!(world.call(out), Ok(Answer::Results(vec![Ok(())])));
}

impl World {
    fn sync_all_static(&mut self, joined: &[Joined], instances: &[&str]) {
        let leader = joined[0].leader.clone();
        let assignments: Vec<(String, Bytes)> = joined
            .iter()
            .map(|joined| (joined.member.to_string(), share_of(&joined.member)))
            .collect();
        for (joined, name) in joined.iter().zip(instances) {
            let is_leader = joined.member == leader;
            self.ask(Request::Sync(Sync {
                who: instance(&joined.member, name),
                assignments: assignments
                    .clone()
                    .into_iter()
                    .filter(|_| is_leader)
                    .collect(),
                ..sync("", joined.generation)
            }));
        }
        self.answers.clear();
    }
}

#[test]
fn what_members_ask_beyond_the_rules_is_refused() {
    let mut world = World::new();
    let refused = |world: &mut World, join: Join| world.call(Request::Join(join)).unwrap_err();
    let short = Join {
        session: Duration::from_secs(1),
        ..join("")
    };
    assert_eq!(refused(&mut world, short), ErrorCode::InvalidSessionTimeout);
    let without = Join {
        protocols: Vec::new(),
        ..join("")
    };
    assert_eq!(
        refused(&mut world, without),
        ErrorCode::InconsistentGroupProtocol
    );
    let many = Join {
        protocols: vec![("p".to_owned(), Bytes::new()); MAX_PROTOCOLS + 1],
        ..join("")
    };
    assert_eq!(
        refused(&mut world, many),
        ErrorCode::InconsistentGroupProtocol
    );
    let large = Join {
        protocols: vec![("p".to_owned(), vec![0; MAX_GROUP_BYTES + 1].into())],
        ..join("")
    };
    assert_eq!(refused(&mut world, large), ErrorCode::GroupMaxSizeReached);
    assert_eq!(
        refused(&mut world, join("nobody")),
        ErrorCode::UnknownMemberId
    );
    assert_eq!(world.coordinator.groups(), 0);
    world.stable(1);
    let other = Join {
        protocol_type: "connect".to_owned(),
        ..join("")
    };
    assert_eq!(
        refused(&mut world, other),
        ErrorCode::InconsistentGroupProtocol
    );
    let other = Join {
        protocols: vec![("sticky".to_owned(), Bytes::new())],
        ..join("")
    };
    assert_eq!(
        refused(&mut world, other),
        ErrorCode::InconsistentGroupProtocol
    );
    let now = world.now();
    for name in ["", &"g".repeat(300)] {
        world.tickets += 1;
        let ticket = Ticket(world.tickets);
        let request = commit(who(""), -1, 1);
        world.coordinator.handle(now, ticket, name, request);
        world.settle();
        assert_eq!(world.answer(ticket), Some(Err(ErrorCode::InvalidGroupId)));
    }
    let long = Request::Commit(OffsetCommit {
        who: who(""),
        generation: -1,
        offsets: vec![CommitOffset {
            topic: "orders".to_owned(),
            partition: 0,
            offset: 1,
            leader_epoch: -1,
            metadata: "m".repeat(MAX_METADATA_BYTES + 1),
            refused: None,
        }],
    });
    world.tickets += 1;
    let ticket = Ticket(world.tickets);
    world.coordinator.handle(now, ticket, "others", long);
    world.settle();
    assert_eq!(
        world.answer(ticket),
        Some(Ok(Answer::Results(vec![Err(
            ErrorCode::OffsetMetadataTooLarge
        )])))
    );
}

#[test]
fn a_group_has_no_more_members_than_it_may() {
    let mut world = World::new();
    world.coordinator = Coordinator::new(Settings {
        max_size: 3,
        ..Settings::default()
    });
    world.stable(2);
    // An id counts before it is used: else ids are had without end.
    let first = |random| {
        Request::Join(Join {
            takes_id_first: true,
            random,
            ..join("")
        })
    };
    assert!(matches!(
        world.call(first(50)),
        Ok(Answer::MemberIdRequired(_))
    ));
    for random in 51..60 {
        assert_eq!(
            world.call(first(random)),
            Err(ErrorCode::GroupMaxSizeReached)
        );
    }
}

#[test]
fn a_storm_of_joins_by_one_member_leaves_one_waiting() {
    let mut world = World::new();
    let (ids, _) = world.stable(2);
    let mut earlier = None;
    for n in 0..1000_u16 {
        let noisy = Join {
            protocols: vec![("range".to_owned(), Bytes::copy_from_slice(&n.to_be_bytes()))],
            ..join(&ids[1])
        };
        let ticket = world.ask(Request::Join(noisy));
        if let Some(earlier) = earlier.replace(ticket) {
            assert_eq!(
                world.answer(earlier),
                Some(Err(ErrorCode::RebalanceInProgress))
            );
        }
    }
    assert!(world.answers.is_empty());
    let again = world.ask(Request::Join(join(&ids[0])));
    let generation = world.joined(again).generation;
    assert_eq!(generation, 2);
    assert_eq!(world.joined(earlier.unwrap()).generation, 2);
    assert_eq!(world.coordinator.groups(), 1);
}

#[test]
fn a_group_is_deleted_only_without_members_and_with_all_that_it_has() {
    let mut world = World::new();
    let (ids, generation) = world.stable(1);
    world.ask(commit(who(&ids[0]), generation, 5));
    assert_eq!(world.call(Request::Delete), Err(ErrorCode::NonEmptyGroup));
    world.ask(leave(&ids[0]));
    assert_eq!(world.call(Request::Delete), Ok(Answer::Done));
    assert_eq!(world.call(Request::Delete), Err(ErrorCode::GroupIdNotFound));
    assert_eq!(world.state(), GroupState::Dead);
    assert_eq!(world.coordinator.groups(), 0);
    world.fail_over();
    assert_eq!(world.coordinator.groups(), 0);
    assert_eq!(world.offset(0), None);
}

#[test]
fn a_deletion_that_is_not_written_has_not_happened() {
    let mut world = World::new();
    world.ask(commit(who(""), -1, 5));
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    assert_eq!(
        world.call(Request::Delete),
        Err(ErrorCode::CoordinatorNotAvailable)
    );
    assert_eq!(world.offset(0), Some(5));
    world.failing = None;
    assert_eq!(world.call(Request::Delete), Ok(Answer::Done));
    assert_eq!(world.offset(0), None);
}

#[test]
fn a_commit_behind_a_deletion_is_the_beginning_of_another_group() {
    let mut world = World::new();
    world.ask(commit(who(""), -1, 5));
    world.holds_writes = true;
    let deletion = world.ask(Request::Delete);
    let late = world.ask(commit(who(""), -1, 6));
    world.flush();
    assert_eq!(world.answer(deletion), Some(Ok(Answer::Done)));
    assert_eq!(
        world.answer(late),
        Some(Err(ErrorCode::CoordinatorNotAvailable))
    );
    world.holds_writes = false;
    world.ask(commit(who(""), -1, 7));
    world.fail_over();
    assert_eq!(world.offset(0), Some(7));
}

#[test]
fn offsets_of_topics_that_are_read_are_not_deleted() {
    let mut world = World::new();
    let (ids, generation) = world.stable(1);
    world.ask(commit(who(&ids[0]), generation, 5));
    let delete = Request::DeleteOffsets(vec![("orders".to_owned(), 0), ("others".to_owned(), 0)]);
    assert_eq!(
        world.call(delete.clone()),
        Ok(Answer::Results(vec![
            Err(ErrorCode::GroupSubscribedToTopic),
            Ok(())
        ]))
    );
    world.ask(leave(&ids[0]));
    assert_eq!(
        world.call(delete),
        Ok(Answer::Results(vec![Ok(()), Ok(())]))
    );
    assert_eq!(world.offset(0), None);
    world.fail_over();
    assert_eq!(world.offset(0), None);
}

#[test]
fn offsets_go_when_nobody_has_used_them_for_their_retention() {
    let mut world = World::new();
    let retention = Settings::default().offsets_retention;
    let (ids, generation) = world.stable(1);
    world.ask(commit(who(&ids[0]), generation, 5));
    let step = |world: &mut World, time: Duration| {
        world.at = world.at + time;
        world.wall_ms += time.as_millis() as i64;
        world.coordinator.handle_tick(world.now());
        world.settle();
    };
    // Its session is over long before, so the time without members counts.
    step(&mut world, SESSION * 2);
    assert_eq!(world.state(), GroupState::Empty);
    step(&mut world, retention / 2);
    assert_eq!(world.offset(0), Some(5));
    step(&mut world, retention / 2 + Duration::from_secs(1));
    assert_eq!(world.offset(0), None);
    assert_eq!(world.coordinator.groups(), 0);
    world.fail_over();
    assert_eq!(world.coordinator.groups(), 0);
}

#[test]
fn offsets_of_a_deleted_topic_go_with_it() {
    let mut world = World::new();
    world.ask(commit(who(""), -1, 5));
    let others = BTreeSet::from(["others".to_owned()]);
    world.coordinator.handle_topics_deleted(&others);
    world.settle();
    assert_eq!(world.offset(0), Some(5));
    let orders = BTreeSet::from(["orders".to_owned()]);
    world.coordinator.handle_topics_deleted(&orders);
    world.settle();
    assert_eq!(world.offset(0), None);
    world.fail_over();
    assert_eq!(world.offset(0), None);
}

#[test]
fn the_protocol_is_the_first_that_most_prefer_of_those_that_all_have() {
    let mut world = World::new();
    let offer = |names: &[&str], random| {
        Request::Join(Join {
            protocols: names
                .iter()
                .map(|name| ((*name).to_owned(), Bytes::new()))
                .collect(),
            random,
            ..join("")
        })
    };
    let tickets = [
        world.ask(offer(&["a", "b", "c"], 1)),
        world.ask(offer(&["c", "b"], 2)),
        world.ask(offer(&["b", "c", "a"], 3)),
    ];
    world.pass(Duration::from_secs(2));
    for ticket in tickets {
        assert_eq!(&*world.joined(ticket).protocol, "b");
    }
}

#[test]
fn a_large_group_is_removed_in_several_batches() {
    let mut world = World::new();
    let offsets: Vec<CommitOffset> = (0..20_000)
        .map(|partition| CommitOffset {
            topic: "orders".to_owned(),
            partition,
            offset: 1,
            leader_epoch: -1,
            metadata: String::new(),
            refused: None,
        })
        .collect();
    let request = Request::Commit(OffsetCommit {
        who: who(""),
        generation: -1,
        offsets,
    });
    assert!(matches!(world.call(request), Ok(Answer::Results(_))));
    world.holds_writes = true;
    let deletion = world.ask(Request::Delete);
    let mut batches = 0;
    let now = world.now();
    while let Some(records) = world.coordinator.take_write(now) {
        batches += 1;
        let bytes: usize = records.iter().map(|record| record.key.len()).sum();
        assert!(bytes < 4 << 20, "{bytes}");
        world.log.extend(records);
        world.coordinator.handle_written(now, Ok(()));
    }
    world.settle();
    assert!(batches > 1, "{batches}");
    assert_eq!(world.answer(deletion), Some(Ok(Answer::Done)));
    world.fail_over();
    assert_eq!(world.coordinator.groups(), 0);
}
