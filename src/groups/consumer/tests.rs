//! Whole stories of groups of the newer protocol, told to a coordinator whose log, clock and topics are the test's.

mod random;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::heartbeat::check;
use super::*;
use crate::groups::{
    Answer, CommitOffset, Coordinator, GroupType, Join, ListFilter, Now, OffsetCommit, Request,
    Settings, Ticket, Who,
};
use crate::record::LogRecord;
use crate::types::{ErrorCode, MonotonicTime, TopicId};

const GROUP: &str = "readers";
const REBALANCE: Duration = Duration::from_secs(30);

/// The cluster's topics.
#[derive(Clone, Debug, Default)]
struct Cluster(BTreeMap<String, TopicShape>);

impl Cluster {
    fn with(mut self, name: &str, partitions: i32) -> Cluster {
        let id = topic_id(name);
        self.0
            .insert(name.to_owned(), TopicShape { id, partitions });
        self
    }
}

fn topic_id(name: &str) -> TopicId {
    let bits = name
        .bytes()
        .fold(1_u128, |bits, byte| bits << 8 | u128::from(byte));
    TopicId::from_random_bits(bits)
}

impl Topics for Cluster {
    fn topic(&self, name: &str) -> Option<TopicShape> {
        self.0.get(name).copied()
    }

    fn each(&self, see: &mut dyn FnMut(&str, TopicShape)) {
        for (name, shape) in &self.0 {
            see(name, *shape);
        }
    }
}

struct World {
    coordinator: Coordinator,
    settings: Settings,
    topics: Cluster,
    log: Vec<LogRecord>,
    at: MonotonicTime,
    tickets: u64,
    /// What the next writes come to; all is well when it is `None`.
    failing: Option<ErrorCode>,
    answers: BTreeMap<Ticket, Result<Answer, ErrorCode>>,
}

impl World {
    fn new(topics: Cluster) -> World {
        World::with(topics, Settings::default())
    }

    fn with(topics: Cluster, settings: Settings) -> World {
        let mut world = World {
            coordinator: Coordinator::new(settings),
            settings,
            topics,
            log: Vec::new(),
            at: MonotonicTime::ZERO,
            tickets: 0,
            failing: None,
            answers: BTreeMap::new(),
        };
        world.fail_over();
        world
    }

    fn now(&self) -> Now {
        Now {
            monotonic: self.at,
            wall_ms: 1_000_000 + (self.at.as_micros() / 1000) as i64,
        }
    }

    /// Another node takes over, with what is in the log.
    fn fail_over(&mut self) {
        self.coordinator = Coordinator::new(self.settings);
        for record in &self.log {
            self.coordinator
                .replay(Some(&record.key), record.value.as_deref())
                .unwrap();
        }
        self.coordinator.loaded(self.now());
        self.coordinator
            .handle_topics(Arc::new(self.topics.clone()));
    }

    fn set_topics(&mut self, topics: Cluster) {
        self.topics = topics;
        self.coordinator
            .handle_topics(Arc::new(self.topics.clone()));
    }

    /// Leaves the answer to come with a write.
    fn send(&mut self, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.coordinator.handle(self.now(), ticket, GROUP, request);
        ticket
    }

    fn flush(&mut self) {
        while let Some(records) = self.coordinator.take_write(self.now()) {
            let result = match self.failing {
                None => {
                    self.log.extend(records);
                    Ok(())
                }
                Some(error) => Err(error),
            };
            self.coordinator.handle_written(self.now(), result);
        }
        while let Some((ticket, answer)) = self.coordinator.poll_answer() {
            let twice = self.answers.insert(ticket, answer);
            assert!(twice.is_none(), "two answers to one request");
        }
    }

    fn call(&mut self, request: Request) -> Result<Answer, ErrorCode> {
        let ticket = self.send(request);
        self.flush();
        self.answers.remove(&ticket).expect("an answer")
    }

    fn beat(&mut self, beat: ConsumerHeartbeat) -> Result<HeartbeatAnswer, ErrorCode> {
        match self.call(Request::ConsumerHeartbeat(beat))? {
            Answer::Beat(answer) => Ok(answer),
            other => panic!("another answer: {other:?}"),
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.at + time;
        while self.at < end {
            self.at = self.at + Duration::from_millis(500);
            self.coordinator.handle_tick(self.now());
            self.flush();
        }
    }

    fn describe(&mut self) -> Result<ConsumerDescription, ErrorCode> {
        match self.call(Request::DescribeConsumers)? {
            Answer::ConsumerDescribed(found) => Ok(found),
            other => panic!("another answer: {other:?}"),
        }
    }
}

/// A member that joins by these names.
fn joining(member: &str, names: &[&str]) -> ConsumerHeartbeat {
    ConsumerHeartbeat {
        who: Who {
            member: member.to_owned(),
            instance: None,
        },
        epoch: 0,
        client_id: "c".to_owned(),
        client_host: "/h".to_owned(),
        rack: None,
        rebalance: Some(REBALANCE),
        names: Some(names.iter().map(|&name| name.to_owned()).collect()),
        pattern: None,
        assignor: None,
        owned: Some(Partitions::default()),
        random: 7,
    }
}

/// A member that lives, and says what it holds.
fn living(member: &str, epoch: i32, owned: Option<&Partitions>) -> ConsumerHeartbeat {
    ConsumerHeartbeat {
        epoch,
        rebalance: None,
        names: None,
        owned: owned.cloned(),
        ..joining(member, &[])
    }
}

fn of(topic: &str, numbers: impl IntoIterator<Item = i32>) -> Partitions {
    let id = topic_id(topic);
    numbers.into_iter().map(|number| (id, number)).collect()
}

fn orders(partitions: i32) -> Cluster {
    Cluster::default().with("orders", partitions)
}

#[test]
fn a_partition_is_given_once_its_former_owner_has_given_it_up() {
    let mut world = World::new(orders(4));
    let a = world.beat(joining("a", &["orders"])).unwrap();
    assert_eq!(a.assignment, Some(of("orders", 0..4)));
    assert_eq!((a.epoch, a.interval), (1, Duration::from_secs(5)));
    // The second waits for what the first still holds.
    let b = world.beat(joining("b", &["orders"])).unwrap();
    assert_eq!(b.assignment, Some(Partitions::default()));
    assert_eq!((b.epoch, b.interval), (2, Duration::from_secs(1)));
    // The first hears of it, in its epoch.
    let a = world.beat(living("a", 1, None)).unwrap();
    let kept = a.assignment.clone().unwrap();
    assert_eq!((a.epoch, kept.len()), (1, 2));
    let held = of("orders", 0..4);
    let again = world.beat(living("a", 1, Some(&held))).unwrap();
    assert_eq!((again.epoch, again.assignment), (1, None));
    let b = world.beat(living("b", 2, None)).unwrap();
    assert_eq!(b.assignment, None);
    assert_eq!(world.describe().unwrap().state, ConsumerState::Reconciling);
    // It gives up two; only then are they the other's.
    let a = world.beat(living("a", 1, Some(&kept))).unwrap();
    assert_eq!((a.epoch, a.assignment), (2, None));
    let b = world.beat(living("b", 2, None)).unwrap();
    assert_eq!(b.assignment, Some(held.minus(&kept)));
    let described = world.describe().unwrap();
    assert_eq!(described.state, ConsumerState::Stable);
    assert_eq!((described.epoch, described.assignment_epoch), (2, 2));
    assert_eq!(described.assignor, "uniform");
}

#[test]
fn who_gives_nothing_up_in_time_is_out() {
    let mut world = World::new(orders(2));
    world.beat(joining("a", &["orders"])).unwrap();
    world.beat(joining("b", &["orders"])).unwrap();
    let all = of("orders", 0..2);
    for _ in 0..REBALANCE.as_secs() - 1 {
        world.beat(living("a", 1, Some(&all))).unwrap();
        world.beat(living("b", 2, None)).unwrap();
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.describe().unwrap().members.len(), 2);
    world.pass(Duration::from_secs(2));
    let refused = world.beat(living("a", 1, Some(&all)));
    assert_eq!(refused, Err(ErrorCode::UnknownMemberId));
    let b = world.beat(living("b", 2, None)).unwrap();
    assert_eq!((b.epoch, b.assignment), (3, Some(all)));
}

#[test]
fn who_is_not_heard_for_a_session_is_out() {
    let mut world = World::new(orders(2));
    world.beat(joining("a", &["orders"])).unwrap();
    world.pass(Duration::from_secs(44));
    world.beat(living("a", 1, None)).unwrap();
    world.pass(Duration::from_secs(44));
    assert_eq!(world.describe().unwrap().members.len(), 1);
    world.pass(Duration::from_secs(2));
    let described = world.describe().unwrap();
    assert_eq!(
        (described.state, described.epoch),
        (ConsumerState::Empty, 2)
    );
    world.fail_over();
    assert_eq!(world.describe(), Ok(described));
}

#[test]
fn epochs_and_ids_that_are_not_the_members_are_fenced() {
    let mut world = World::new(orders(4));
    let unknown = world.beat(living("a", 1, None));
    assert_eq!(unknown, Err(ErrorCode::UnknownMemberId));
    world.beat(joining("a", &["orders"])).unwrap();
    let unknown = world.beat(living("x", 1, None));
    assert_eq!(unknown, Err(ErrorCode::UnknownMemberId));
    let fenced = Err(ErrorCode::FencedMemberEpoch);
    assert_eq!(world.beat(living("a", 2, None)), fenced);
    world.beat(joining("b", &["orders"])).unwrap();
    let a = world.beat(living("a", 1, None)).unwrap();
    let kept = a.assignment.unwrap();
    assert_eq!(world.beat(living("a", 1, Some(&kept))).unwrap().epoch, 2);
    // The answer to that was lost: it says the same again.
    assert_eq!(world.beat(living("a", 1, Some(&kept))).unwrap().epoch, 2);
    // But one that still holds what it has given up is no such.
    let all = of("orders", 0..4);
    assert_eq!(world.beat(living("a", 1, Some(&all))), fenced);
    assert_eq!(world.beat(living("a", 1, None)), fenced);
    // A fenced member comes back holding nothing.
    let a = world.beat(joining("a", &["orders"])).unwrap();
    assert_eq!((a.epoch, a.assignment), (2, Some(kept)));
}

#[test]
fn a_heartbeat_that_makes_no_sense_is_refused() {
    let refuse = |change: &dyn Fn(&mut ConsumerHeartbeat)| {
        let mut beat = joining("a", &["orders"]);
        change(&mut beat);
        check(&beat).unwrap_err()
    };
    let invalid = ErrorCode::InvalidRequest;
    assert_eq!(refuse(&|beat| beat.epoch = -3), invalid);
    assert_eq!(refuse(&|beat| beat.epoch = -2), invalid);
    assert_eq!(refuse(&|beat| beat.rebalance = None), invalid);
    assert_eq!(refuse(&|beat| beat.owned = None), invalid);
    assert_eq!(
        refuse(&|beat| beat.owned = Some(of("orders", [1]))),
        invalid
    );
    assert_eq!(refuse(&|beat| beat.names = None), invalid);
    assert_eq!(
        refuse(&|beat| beat.who.instance = Some(String::new())),
        invalid
    );
    assert_eq!(refuse(&|beat| beat.who.member = "m".repeat(300)), invalid);
    assert_eq!(refuse(&|beat| beat.rack = Some("r".repeat(300))), invalid);
    let refused = refuse(&|beat| beat.assignor = Some("mine".to_owned()));
    assert_eq!(refused, ErrorCode::UnsupportedAssignor);
    let refused = refuse(&|beat| beat.names = Some(vec!["a b".to_owned()]));
    assert_eq!(refused, ErrorCode::InvalidTopicException);
    let refused = refuse(&|beat| beat.pattern = Some("(".to_owned()));
    assert_eq!(refused, ErrorCode::InvalidRegularExpression);
    assert_eq!(check(&joining("", &["orders"])), Ok(()));
    let nobody = ConsumerHeartbeat {
        epoch: 3,
        ..joining("", &["orders"])
    };
    assert_eq!(check(&nobody), Err(invalid));
}

#[test]
fn a_refused_member_leaves_nothing_behind() {
    let settings = Settings {
        max_size: 1,
        ..Settings::default()
    };
    let mut world = World::with(orders(1), settings);
    let beat = joining("", &["orders"]);
    let given = world.beat(beat).unwrap();
    assert_eq!(given.member.len(), 32);
    let refused = world.beat(joining("b", &["orders"]));
    assert_eq!(refused, Err(ErrorCode::GroupMaxSizeReached));
    let described = world.describe().unwrap();
    assert_eq!((described.members.len(), described.epoch), (1, 1));
    let mut large = living(&given.member, 1, None);
    let name = |number: i32| format!("{number:0>200}");
    large.names = Some((0..30_000).map(name).collect());
    let refused = world.beat(large);
    assert_eq!(refused, Err(ErrorCode::GroupMaxSizeReached));
    assert_eq!(world.describe(), Ok(described));
}

fn as_instance(mut beat: ConsumerHeartbeat, instance: &str) -> ConsumerHeartbeat {
    beat.who.instance = Some(instance.to_owned());
    beat
}

#[test]
fn a_static_member_keeps_its_partitions_for_its_next_process() {
    let mut world = World::new(orders(4));
    let a = as_instance(joining("a", &["orders"]), "one");
    let before = world.beat(a.clone()).unwrap().assignment.unwrap();
    assert_eq!(before.len(), 4);
    let second = as_instance(joining("a2", &["orders"]), "one");
    let refused = world.beat(second.clone());
    assert_eq!(refused, Err(ErrorCode::UnreleasedInstanceId));
    let refused = world.beat(as_instance(living("a2", 1, None), "one"));
    assert_eq!(refused, Err(ErrorCode::FencedInstanceId));
    // It leaves for a while.
    let left = world
        .beat(as_instance(living("a", -2, None), "one"))
        .unwrap();
    assert_eq!(left.epoch, -2);
    world.fail_over();
    let again = world.beat(second).unwrap();
    assert_eq!((again.epoch, again.assignment), (1, Some(before)));
    let described = world.describe().unwrap();
    assert_eq!((described.epoch, described.members.len()), (1, 1));
    let refused = world.beat(as_instance(living("a", 1, None), "one"));
    assert_eq!(refused, Err(ErrorCode::FencedInstanceId));
    // For good.
    let left = world
        .beat(as_instance(living("a2", -1, None), "one"))
        .unwrap();
    assert_eq!(left.epoch, -1);
    assert_eq!(world.describe().unwrap().state, ConsumerState::Empty);
    // One that stays away is out when its session ends.
    world.beat(a).unwrap();
    world
        .beat(as_instance(living("a", -2, None), "one"))
        .unwrap();
    world.pass(Duration::from_secs(46));
    assert_eq!(world.describe().unwrap().state, ConsumerState::Empty);
}

#[test]
fn topics_that_come_and_grow_are_given_out() {
    let mut world = World::new(orders(1));
    let mut beat = joining("a", &["orders", "later"]);
    beat.pattern = Some("x-.*".to_owned());
    let a = world.beat(beat).unwrap();
    assert_eq!(a.assignment, Some(of("orders", [0])));
    world.set_topics(orders(2).with("later", 1).with("x-1", 1).with("y-1", 1));
    let a = world.beat(living("a", 1, None)).unwrap();
    let mut all = of("orders", 0..2);
    all.extend(of("later", [0]).iter());
    all.extend(of("x-1", [0]).iter());
    assert_eq!((a.epoch, a.assignment), (2, Some(all)));
    // Another view with the same topics is no change; nor is a failover.
    world.set_topics(world.topics.clone());
    world.fail_over();
    let a = world.beat(living("a", 2, None)).unwrap();
    assert_eq!((a.epoch, a.assignment), (2, None));
    // One goes, and comes back as another.
    world.set_topics(orders(2).with("x-1", 1));
    let a = world.beat(living("a", 2, None)).unwrap();
    assert_eq!((a.epoch, a.assignment.map(|all| all.len())), (2, Some(3)));
}

#[test]
fn the_assignor_is_the_one_that_most_wish_for() {
    let mut world = World::new(orders(4));
    let wish = |member: &str, assignor: &str| {
        let mut beat = joining(member, &["orders"]);
        beat.assignor = Some(assignor.to_owned());
        beat
    };
    world.beat(wish("a", "uniform")).unwrap();
    world.beat(wish("b", "range")).unwrap();
    assert_eq!(world.describe().unwrap().assignor, "uniform");
    world.beat(wish("c", "range")).unwrap();
    let described = world.describe().unwrap();
    assert_eq!(described.assignor, "range");
    let targets: Vec<Partitions> = described.members.into_iter().map(|m| m.target).collect();
    assert_eq!(
        targets,
        [of("orders", 0..2), of("orders", [2]), of("orders", [3])]
    );
}

fn commit(member: &str, epoch: i32) -> Request {
    Request::Commit(OffsetCommit {
        who: Who {
            member: member.to_owned(),
            instance: None,
        },
        generation: epoch,
        offsets: vec![CommitOffset {
            topic: "orders".to_owned(),
            partition: 0,
            offset: 5,
            leader_epoch: -1,
            metadata: String::new(),
            refused: None,
        }],
    })
}

fn fetch(asker: Option<(&str, i32)>) -> Request {
    Request::FetchOffsets {
        wanted: None,
        asker: asker.map(|(member, epoch)| (member.to_owned(), epoch)),
    }
}

#[test]
fn offsets_are_a_members_in_its_epoch() {
    let mut world = World::new(orders(1));
    world.beat(joining("a", &["orders"])).unwrap();
    assert!(world.call(commit("a", 1)).is_ok());
    let stale = Err(ErrorCode::StaleMemberEpoch);
    let unknown = Err(ErrorCode::UnknownMemberId);
    assert_eq!(world.call(commit("a", 0)), stale);
    assert_eq!(world.call(commit("b", 1)), unknown);
    assert_eq!(world.call(commit("", -1)), unknown);
    assert!(world.call(fetch(None)).is_ok());
    assert!(world.call(fetch(Some(("a", 1)))).is_ok());
    assert_eq!(world.call(fetch(Some(("a", 2)))), stale);
    assert_eq!(world.call(fetch(Some(("b", 1)))), unknown);
    let delete = Request::DeleteOffsets(vec![("orders".to_owned(), 0)]);
    let read = Ok(Answer::Results(vec![Err(
        ErrorCode::GroupSubscribedToTopic,
    )]));
    assert_eq!(world.call(delete.clone()), read);
    assert_eq!(world.call(Request::Delete), Err(ErrorCode::NonEmptyGroup));
    world.beat(living("a", -1, None)).unwrap();
    // An operator's, while nobody is in it.
    assert!(world.call(commit("", -1)).is_ok());
    assert_eq!(world.call(delete), Ok(Answer::Results(vec![Ok(())])));
    assert_eq!(world.call(Request::Delete), Ok(Answer::Done));
    assert_eq!(world.describe(), Err(ErrorCode::GroupIdNotFound));
    world.fail_over();
    assert_eq!(world.describe(), Err(ErrorCode::GroupIdNotFound));
    assert_eq!(world.coordinator.groups(), 0);
}

fn classic_join(member: &str) -> Request {
    Request::Join(Join {
        who: Who {
            member: member.to_owned(),
            instance: None,
        },
        client_id: "c".to_owned(),
        client_host: "/h".to_owned(),
        session: Duration::from_secs(10),
        rebalance: REBALANCE,
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), bytes::Bytes::new())],
        takes_id_first: false,
        can_skip_assignment: true,
        random: 9,
    })
}

#[test]
fn an_empty_group_changes_its_protocol_and_another_does_not() {
    let mut world = World::new(orders(1));
    world.beat(joining("a", &["orders"])).unwrap();
    let refused = world.call(classic_join(""));
    assert_eq!(refused, Err(ErrorCode::InconsistentGroupProtocol));
    // To who asks in the older protocol's words it is not there.
    match world.call(Request::Describe) {
        Ok(Answer::Described(found)) => assert_eq!(found.state.name(), "Dead"),
        other => panic!("{other:?}"),
    }
    let listed = |world: &mut World, kind| {
        let types = Some([kind].into());
        let filter = ListFilter {
            types,
            states: Some(["stable".to_owned()].into()),
        };
        match world.call(Request::List(filter)) {
            Ok(Answer::Listed(groups)) => groups.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(listed(&mut world, GroupType::Consumer), 1);
    assert_eq!(listed(&mut world, GroupType::Classic), 0);
    world.beat(living("a", -1, None)).unwrap();
    // Nobody is in it: now it may.
    let ticket = world.send(classic_join(""));
    world.flush();
    world.pass(Duration::from_secs(2));
    let joined = match world.answers.remove(&ticket) {
        Some(Ok(Answer::Joined(joined))) => joined,
        other => panic!("{other:?}"),
    };
    let who = Who {
        member: joined.member.to_string(),
        instance: None,
    };
    let sync = crate::groups::Sync {
        who: who.clone(),
        generation: joined.generation,
        protocol_type: None,
        protocol: None,
        assignments: Vec::new(),
    };
    world.call(Request::Sync(sync)).unwrap();
    assert_eq!(listed(&mut world, GroupType::Classic), 1);
    let refused = world.beat(joining("a", &["orders"]));
    assert_eq!(refused, Err(ErrorCode::GroupIdNotFound));
    let refused = world.beat(living("a", 1, None));
    assert_eq!(refused, Err(ErrorCode::UnknownMemberId));
    world.fail_over();
    assert_eq!(listed(&mut world, GroupType::Classic), 1);
    // And back.
    world
        .call(Request::Leave(vec![crate::groups::LeavingMember { who }]))
        .unwrap();
    world.beat(joining("a", &["orders"])).unwrap();
    world.fail_over();
    assert_eq!(listed(&mut world, GroupType::Consumer), 1);
    assert_eq!(listed(&mut world, GroupType::Classic), 0);
    assert_eq!(world.describe().unwrap().members.len(), 1);
}

#[test]
fn what_is_not_written_has_not_happened() {
    let mut world = World::new(orders(2));
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    let refused = world.beat(joining("a", &["orders"]));
    assert_eq!(refused, Err(ErrorCode::CoordinatorNotAvailable));
    assert_eq!(world.coordinator.groups(), 0);
    world.failing = None;
    world.beat(joining("a", &["orders"])).unwrap();
    let before = world.describe().unwrap();
    world.failing = Some(ErrorCode::NotEnoughReplicas);
    // Two at once: the second waits for the first, and is judged when that has failed.
    let b = world.send(Request::ConsumerHeartbeat(joining("b", &["orders"])));
    let c = world.send(Request::ConsumerHeartbeat(joining("c", &["orders"])));
    let a = world.send(Request::ConsumerHeartbeat(living("a", 1, None)));
    world.flush();
    let refused = Some(Err(ErrorCode::CoordinatorNotAvailable));
    assert_eq!(world.answers.remove(&b), refused);
    assert_eq!(world.answers.remove(&c), refused);
    assert!(world.answers.remove(&a).unwrap().is_ok());
    assert_eq!(world.describe(), Ok(before));
}

#[test]
fn one_change_is_written_at_a_time() {
    let mut world = World::new(orders(2));
    let a = world.send(Request::ConsumerHeartbeat(joining("a", &["orders"])));
    let b = world.send(Request::ConsumerHeartbeat(joining("b", &["orders"])));
    let first = world.coordinator.take_write(world.now()).unwrap();
    assert!(world.coordinator.take_write(world.now()).is_none() || first.is_empty());
    assert!(world.coordinator.poll_answer().is_none());
    world.log.extend(first);
    world.coordinator.handle_written(world.now(), Ok(()));
    assert_eq!(
        world.coordinator.poll_answer().map(|(ticket, _)| ticket),
        Some(a)
    );
    assert!(world.coordinator.poll_answer().is_none());
    world.flush();
    assert!(world.answers[&b].is_ok());
}
