//! Members that come, go, are slow and lose answers, on topics that change, under a coordinator that fails over and whose
//! writes fail. A failure prints the seed that repeats it.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::groups::consumer::member::Member;

/// A client, as it sees itself.
#[derive(Debug, Default)]
struct Client {
    instance: Option<String>,
    epoch: i32,
    /// What it reads.
    owned: Partitions,
    /// What it was told last that it may read.
    assigned: Partitions,
    reads: Vec<&'static str>,
    pattern: bool,
    /// It says everything at its next heartbeat: the answer to the last one was lost.
    says_all: bool,
}

impl Client {
    fn beat(&self, id: &str) -> ConsumerHeartbeat {
        let mut beat = match self.epoch {
            0 => joining(id, &self.reads),
            epoch if self.says_all => ConsumerHeartbeat {
                epoch,
                owned: Some(self.owned.clone()),
                ..joining(id, &self.reads)
            },
            epoch => living(id, epoch, Some(&self.owned)),
        };
        if self.epoch == 0 || self.says_all {
            let pattern = if self.pattern { "n.*" } else { "" };
            beat.pattern = Some(pattern.to_owned());
        }
        beat.who.instance = self.instance.clone();
        beat
    }

    fn forget(&mut self) {
        self.epoch = 0;
        self.owned = Partitions::default();
        self.assigned = Partitions::default();
        self.says_all = false;
    }
}

const NAMES: [&str; 3] = ["orders", "paid", "news"];

struct Run {
    world: World,
    random: StdRng,
    clients: BTreeMap<String, Client>,
    born: u32,
    epoch: i32,
}

impl Run {
    fn new(seed: u64) -> Run {
        Run {
            world: World::new(orders(5)),
            random: StdRng::seed_from_u64(seed),
            clients: BTreeMap::new(),
            born: 0,
            epoch: 0,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn members(&self) -> BTreeMap<Arc<str>, Member> {
        let group = self.world.coordinator.groups.get(GROUP);
        let group = group.and_then(|group| group.consumers());
        group.map(|group| group.members.clone()).unwrap_or_default()
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        let members = self.members();
        let mut held = Partitions::default();
        for (id, member) in &members {
            for (topic, partition) in member.current.held() {
                assert!(!held.contains(topic, partition), "{id}: a partition of two");
                held.insert(topic, partition);
            }
        }
        for (id, client) in &self.clients {
            let Some(member) = members.get(id.as_str()) else {
                assert!(client.owned.is_empty(), "{id} reads and is unknown");
                continue;
            };
            let held: Partitions = member.current.held().collect();
            assert!(client.owned.is_within(&held), "{id} reads what it may not");
        }
        if let Ok(described) = self.world.describe() {
            assert!(described.epoch >= self.epoch, "the group epoch fell");
            assert!(described.assignment_epoch <= described.epoch);
            self.epoch = described.epoch;
        }
    }

    /// Another coordinator would know the same.
    fn check_replay(&mut self) {
        let known = self.world.describe();
        let mut other = World::new(self.world.topics.clone());
        other.log = self.world.log.clone();
        other.at = self.world.at;
        other.fail_over();
        assert_eq!(other.describe(), known, "the log says something else");
    }

    fn birth(&mut self) {
        self.born += 1;
        let mut client = Client {
            pattern: self.chance(20),
            ..Client::default()
        };
        for name in NAMES {
            if self.chance(60) {
                client.reads.push(name);
            }
        }
        if self.chance(30) {
            client.instance = Some(format!("i{}", self.born));
        }
        self.clients.insert(format!("m{}", self.born), client);
    }

    fn beat(&mut self, id: &str, loses: bool, gives_up: bool) {
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        if gives_up {
            client.owned = client.owned.and(&client.assigned);
        }
        let beat = client.beat(id);
        let answer = self.world.beat(beat);
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        if loses {
            client.says_all = client.epoch > 0;
            return;
        }
        match answer {
            Ok(answer) => {
                assert!(answer.epoch >= client.epoch, "{id}: the member epoch fell");
                client.epoch = answer.epoch;
                client.says_all = false;
                if let Some(assigned) = answer.assignment {
                    // New ones are read at once, old ones are given up later.
                    client.owned.extend(assigned.iter());
                    client.assigned = assigned;
                }
            }
            Err(ErrorCode::UnknownMemberId | ErrorCode::FencedMemberEpoch) => client.forget(),
            Err(ErrorCode::CoordinatorNotAvailable) => client.says_all = client.epoch > 0,
            Err(error) => panic!("{id}: {error}"),
        }
    }

    fn leave(&mut self, id: &str) {
        let for_a_while = self.chance(50);
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        if client.epoch == 0 {
            return;
        }
        client.owned = Partitions::default();
        let comes_back = for_a_while && client.instance.is_some();
        let mut beat = living(id, if comes_back { -2 } else { -1 }, None);
        beat.who.instance = client.instance.clone();
        if self.world.beat(beat).is_err() {
            // It is out when its session ends; until then it reads nothing.
            self.clients.remove(id);
            return;
        }
        let client = self.clients.remove(id);
        if let Some(mut client) = client.filter(|_| comes_back) {
            client.forget();
            self.born += 1;
            self.clients.insert(format!("m{}", self.born), client);
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..6 if self.clients.len() < 8 => self.birth(),
            6..9 => {
                let id = self.any_client();
                self.leave(&id);
            }
            // It dies, and says nothing.
            9..10 => {
                let id = self.any_client();
                let is_static = self.clients.get(&id).is_some_and(|c| c.instance.is_some());
                if !is_static {
                    self.clients.remove(&id);
                }
            }
            10..13 => {
                let name = NAMES[self.random.random_range(0..NAMES.len())];
                let known = self
                    .world
                    .topics
                    .0
                    .get(name)
                    .map_or(0, |shape| shape.partitions);
                let grown = (known + self.random.random_range(1..4)).min(12);
                let topics = self.world.topics.clone().with(name, grown);
                self.world.set_topics(topics);
            }
            13..15 => self.world.fail_over(),
            15..18 => self.world.pass(Duration::from_secs(1)),
            18..20 => {
                let failing = self.world.failing.take();
                if failing.is_none() && self.chance(50) {
                    self.world.failing = Some(ErrorCode::NotEnoughReplicas);
                }
            }
            20..24 => {
                let id = self.any_client();
                let reads = NAMES.iter().filter(|_| self.random.random_range(0..2) == 0);
                let reads = reads.copied().collect();
                if let Some(client) = self.clients.get_mut(&id) {
                    client.reads = reads;
                    client.says_all = client.epoch > 0;
                }
            }
            _ => {
                let id = self.any_client();
                let (loses, gives_up) = (self.chance(10), self.chance(60));
                self.beat(&id, loses, gives_up);
            }
        }
        self.check();
    }

    fn any_client(&mut self) -> String {
        if self.clients.is_empty() {
            self.birth();
        }
        let place = self.random.random_range(0..self.clients.len());
        self.clients.keys().nth(place).cloned().unwrap_or_default()
    }

    /// Nothing happens any more but heartbeats: everybody comes to have what it is to have.
    fn rest(&mut self) {
        self.world.failing = None;
        for _ in 0..120 {
            let ids: Vec<String> = self.clients.keys().cloned().collect();
            for id in ids {
                self.beat(&id, false, true);
                self.check();
            }
            self.world.pass(Duration::from_secs(1));
        }
        let mut read = Partitions::default();
        let mut expected = Partitions::default();
        for client in self.clients.values() {
            read.extend(client.owned.iter());
            for (name, shape) in &self.world.topics.0 {
                let by_pattern = client.pattern && name.starts_with('n');
                if client.reads.contains(&name.as_str()) || by_pattern {
                    expected.extend(of(name, 0..shape.partitions).iter());
                }
            }
            assert_eq!(client.owned, client.assigned);
        }
        assert_eq!(read, expected, "after quiet every partition is read");
        if !self.clients.is_empty() {
            assert_eq!(self.world.describe().unwrap().state, ConsumerState::Stable);
        }
        self.check_replay();
    }
}

fn run(seed: u64) {
    let mut run = Run::new(seed);
    for step in 0..400 {
        run.step();
        if step % 20 == 0 {
            run.check_replay();
        }
    }
    run.rest();
}

#[test]
fn no_partition_has_two_readers_and_in_the_end_each_has_one() {
    let given = std::env::var("QUORATE_SEED").ok();
    let seeds: Vec<u64> = match given.and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..60).collect(),
    };
    for seed in seeds {
        println!("QUORATE_SEED={seed}");
        run(seed);
    }
}
