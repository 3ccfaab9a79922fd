//! Whole controllers on real stores, over a network in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use super::*;
use crate::metadata::{
    ClusterImage, Command, CreateTopicRequest, Endpoint, LISTENERS_SINCE, METADATA_VERSION,
    Outcome, Registration, Rejection,
};
use crate::types::{
    Appointment, ClusterId, DirectoryId, Incarnation, LeaderEpoch, ListenerName, LogPosition,
    NodeId, Offset, PartitionIndex, PartitionState, TopicId, TopicName, TopicPartition,
};

/// Generous: the machine may be busy. Nothing waits for it when all is well.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn node(id: u32) -> NodeId {
    NodeId::new(id).unwrap()
}

/// Carries calls between controllers of this process. A node that is not in it, or cut off, cannot be reached.
#[derive(Default)]
pub(super) struct Switch {
    nodes: Mutex<BTreeMap<NodeId, Controller>>,
    cut_off: Mutex<BTreeSet<NodeId>>,
    /// Pairs that do not reach each other.
    cut_pairs: Mutex<BTreeSet<(NodeId, NodeId)>>,
    round_trip: Mutex<Duration>,
}

struct Port {
    me: NodeId,
    switch: Arc<Switch>,
}

impl PeerNetwork for Port {
    fn call<'a>(
        &'a self,
        to: NodeId,
        _address: &'a str,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, CallError>> {
        Box::pin(async move {
            let cut_off = {
                let cut_off = self.switch.cut_off.lock().unwrap();
                let pairs = self.switch.cut_pairs.lock().unwrap();
                cut_off.contains(&to)
                    || cut_off.contains(&self.me)
                    || pairs.contains(&(to, self.me))
                    || pairs.contains(&(self.me, to))
            };
            let there = self.switch.nodes.lock().unwrap().get(&to).cloned();
            let there = there.filter(|_| !cut_off);
            let Some(there) = there else {
                return Err(CallError::Unreachable("nobody is there".to_owned()));
            };
            let round_trip = *self.switch.round_trip.lock().unwrap();
            let answered = async {
                tokio::time::sleep(round_trip).await;
                there.handle(self.me, request).await
            };
            tokio::time::timeout(timeout, answered)
                .await
                .map_err(|_| CallError::TimedOut(timeout))
        })
    }
}

/// A broker's replicas: how far each log goes, and what was promised.
#[derive(Default)]
pub(super) struct Replicas {
    ends: Mutex<BTreeMap<TopicPartition, LogPosition>>,
    pub(super) promised: Mutex<BTreeMap<TopicPartition, LeaderEpoch>>,
    pub(super) failing: AtomicBool,
    /// What a leader answers when it is asked to hand over; `None`: that it has.
    pub(super) hand_over_refusal: Mutex<Option<HandOverRefusal>>,
}

impl FenceHandler for Replicas {
    fn fence(&self, items: Vec<FenceItem>) -> BoxFuture<'_, Vec<FenceAnswer>> {
        let answer = |item: FenceItem| {
            if self.failing.load(Ordering::Relaxed) {
                return FenceAnswer {
                    partition: item.partition,
                    result: Err(FenceRefusal::Failed("as asked".to_owned())),
                };
            }
            let mut promised = self.promised.lock().unwrap();
            promised.insert(item.partition, item.epoch);
            let ends = self.ends.lock().unwrap();
            let last = ends.get(&item.partition).copied();
            FenceAnswer {
                partition: item.partition,
                result: Ok(FencePosition {
                    epoch: item.epoch,
                    last: last.unwrap_or(LogPosition::START),
                    eligible: true,
                    high_watermark: None,
                    is_reluctant: false,
                }),
            }
        };
        let answers = items.into_iter().map(answer).collect();
        Box::pin(std::future::ready(answers))
    }

    fn hand_over(
        &self,
        items: Vec<HandOverItem>,
        _within: Duration,
    ) -> BoxFuture<'_, Vec<HandOverAnswer>> {
        let refusal = self.hand_over_refusal.lock().unwrap().clone();
        let answers = items.into_iter().map(|item| HandOverAnswer {
            partition: item.partition,
            result: match &refusal {
                Some(refusal) => Err(refusal.clone()),
                None => Ok(()),
            },
        });
        Box::pin(std::future::ready(answers.collect()))
    }
}

pub(super) struct Cluster {
    dir: TempDir,
    switch: Arc<Switch>,
    pub(super) voters: BTreeMap<NodeId, String>,
    pub(super) replicas: BTreeMap<NodeId, Arc<Replicas>>,
    starts: u64,
}

impl Cluster {
    pub(super) fn new(voters: u32) -> Cluster {
        Cluster {
            dir: tempfile::tempdir().unwrap(),
            switch: Arc::default(),
            voters: (1..=voters)
                .map(|id| (node(id), format!("n{id}:1")))
                .collect(),
            replicas: BTreeMap::new(),
            starts: 0,
        }
    }

    pub(super) fn config(&mut self, id: u32, directory: u128) -> ControllerConfig {
        self.starts += 1;
        ControllerConfig {
            registration: Registration {
                node: node(id),
                directory: DirectoryId::from_random_bits(directory),
                incarnation: Incarnation::from_random_bits(self.starts),
                quic: Endpoint {
                    host: format!("n{id}"),
                    port: 1,
                },
                kafka: None,
                kafka_listeners: BTreeMap::new(),
                boot_id: None,
                metadata_version: METADATA_VERSION,
            },
            voters: self.voters.clone(),
            cluster_id: ClusterId::from_random_bits(u128::from(id)),
            store_path: self.dir.path().join(format!("{id}-{directory}.redb")),
            timing: Timing::default(),
            leader_balance: LeaderBalance::default(),
        }
    }

    pub(super) async fn start(&mut self, id: u32) -> Controller {
        let config = self.config(id, u128::from(id));
        self.start_with(config).await
    }

    pub(super) async fn start_with(&mut self, config: ControllerConfig) -> Controller {
        let me = config.registration.node;
        let replicas = Arc::clone(self.replicas.entry(me).or_default());
        let port = Port {
            me,
            switch: Arc::clone(&self.switch),
        };
        let controller = Controller::start(config, Arc::new(port), replicas)
            .await
            .unwrap();
        self.switch
            .nodes
            .lock()
            .unwrap()
            .insert(me, controller.clone());
        controller
    }

    pub(super) fn controller(&self, id: u32) -> Controller {
        self.switch.nodes.lock().unwrap()[&node(id)].clone()
    }

    pub(super) fn running(&self) -> Vec<u32> {
        let nodes = self.switch.nodes.lock().unwrap();
        nodes.keys().map(|id| id.get()).collect()
    }

    pub(super) async fn kill(&self, id: u32) {
        let controller = self.switch.nodes.lock().unwrap().remove(&node(id));
        controller.unwrap().shutdown().await;
    }

    pub(super) fn set_end(&self, id: u32, partition: TopicPartition, offset: u64) {
        let epoch = LeaderEpoch::new(1).unwrap();
        let end = LogPosition::new(Offset::new(offset).unwrap(), epoch);
        self.replicas[&node(id)]
            .ends
            .lock()
            .unwrap()
            .insert(partition, end);
    }
}

pub(super) async fn wait_for(
    controller: &Controller,
    what: &str,
    condition: impl Fn(&ClusterImage) -> bool,
) -> Arc<ClusterImage> {
    let mut image = controller.image();
    let found = image.wait_for(|image| condition(image));
    match tokio::time::timeout(DEADLINE, found).await {
        Ok(found) => Arc::clone(&found.unwrap()),
        Err(_) => panic!("waited in vain: {what}; {:#?}", controller.image().borrow()),
    }
}

pub(super) async fn registered(controller: &Controller, count: usize) {
    wait_for(controller, "registrations", |image| {
        image.nodes().len() == count
    })
    .await;
}

pub(super) fn topic(name: &str, assignment: &[u32]) -> CreateTopicRequest {
    CreateTopicRequest {
        name: TopicName::new(name).unwrap(),
        id: TopicId::from_random_bits(u128::from(name.as_bytes()[0])),
        partitions: None,
        replication_factor: None,
        assignment: Some(vec![assignment.iter().copied().map(node).collect()]),
        config: BTreeMap::new(),
    }
}

pub(super) fn first_partition(request: &CreateTopicRequest) -> TopicPartition {
    TopicPartition {
        topic: request.id,
        partition: PartitionIndex(0),
    }
}

pub(super) fn led_by(image: &ClusterImage, partition: TopicPartition, leader: u32) -> bool {
    image
        .partition(partition)
        .is_some_and(|state| state.leader_node() == Some(node(leader)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_is_its_own_controller_and_keeps_its_store() {
    let mut cluster = Cluster::new(0);
    let one = cluster.start(1).await;
    registered(&one, 1).await;
    let request = topic("t", &[1]);
    let id = one.create_topic(request.clone(), DEADLINE).await.unwrap();
    assert_eq!(id, request.id);
    let again = CreateTopicRequest {
        id: TopicId::from_random_bits(9),
        ..request.clone()
    };
    let error = one.create_topic(again, DEADLINE).await.unwrap_err();
    assert!(matches!(
        error,
        SubmitError::Rejected(Rejection::TopicExists(_))
    ));
    assert_eq!(
        one.allocate_producer_ids(10, DEADLINE)
            .await
            .unwrap()
            .0
            .get(),
        0
    );
    let before = one
        .image()
        .borrow()
        .partition(first_partition(&request))
        .cloned();
    cluster.kill(1).await;
    drop(one);

    let one = cluster.start(1).await;
    let incarnation = Incarnation::from_random_bits(2);
    let image = wait_for(&one, "elected under the new incarnation", |image| {
        image
            .partition(first_partition(&request))
            .and_then(|state| state.leader)
            .is_some_and(|leader| leader.incarnation == incarnation)
    })
    .await;
    assert_eq!(image.cluster_id(), Some(ClusterId::from_random_bits(1)));
    let after = image.partition(first_partition(&request)).unwrap();
    assert_eq!(
        after.leader_epoch,
        before.unwrap().leader_epoch.next().unwrap(),
        "a restarted node never leads in its old epoch"
    );
    assert_eq!(
        one.allocate_producer_ids(10, DEADLINE)
            .await
            .unwrap()
            .0
            .get(),
        10
    );
    cluster.kill(1).await;

    // Told to join others, it does not go on as a cluster of its own.
    let mut config = cluster.config(1, 1);
    config.voters = [2, 3, 4].map(|id| (node(id), format!("n{id}:1"))).into();
    let port = Port {
        me: node(1),
        switch: Arc::clone(&cluster.switch),
    };
    let started = Controller::start(config, Arc::new(port), Arc::new(Replicas::default())).await;
    let Err(StartError::OtherControllers { stored, .. }) = started else {
        panic!("started in another cluster");
    };
    assert_eq!(stored, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_controllers_outlive_any_one_of_them() {
    let mut cluster = Cluster::new(3);
    let one = cluster.start(1).await;
    let two = cluster.start(2).await;
    // Two of three answer, which would be a majority: but the third may know of a cluster.
    let early = Duration::from_millis(1500);
    let error = two.create_topic(topic("a", &[1]), early).await.unwrap_err();
    assert!(matches!(error, SubmitError::NoQuorum { .. }), "{error}");
    assert_eq!(one.image().borrow().cluster_id(), None);
    let three = cluster.start(3).await;
    for controller in [&one, &two, &three] {
        registered(controller, 3).await;
    }
    two.create_topic(topic("a", &[1, 2, 3]), DEADLINE)
        .await
        .unwrap();

    let active = three.active_controller().unwrap();
    let (killed, left) = match active.get() {
        1 => (1, [&two, &three]),
        2 => (2, [&one, &three]),
        _ => (3, [&one, &two]),
    };
    cluster.kill(killed).await;
    for (controller, name) in left.into_iter().zip(["b", "c"]) {
        let ids = left.map(|c| c.shared.me.get());
        controller
            .create_topic(topic(name, &ids), DEADLINE)
            .await
            .unwrap();
    }
    let again = cluster.start(killed).await;
    wait_for(&again, "the topics made meanwhile", |image| {
        image.topics().len() == 3
    })
    .await;
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_partition_leader_is_replaced_by_the_longest_log() {
    let mut cluster = Cluster::new(1);
    let one = cluster.start(1).await;
    for id in 2..=4 {
        // These are no controllers: they learn.
        let broker = cluster.start(id).await;
        registered(&broker, id as usize).await;
    }
    let request = topic("t", &[4, 3, 2]);
    let partition = first_partition(&request);
    one.create_topic(request, DEADLINE).await.unwrap();
    assert!(led_by(&one.image().borrow(), partition, 4));
    let mut many = topic("many", &[]);
    many.assignment = Some(vec![vec![node(4), node(2), node(3)]; 3000]);
    let many = one.create_topic(many, DEADLINE).await.unwrap();
    cluster.set_end(3, partition, 10);
    cluster.set_end(2, partition, 11);
    cluster.kill(4).await;
    wait_for(
        &one,
        "node 2, the preferred of equals, leads all",
        |image| {
            let mut partitions = image.topic(many).unwrap().partitions.iter();
            partitions.all(|state| state.leader_node() == Some(node(2)))
        },
    )
    .await;
    let image = wait_for(&one, "node 2 leads", |image| led_by(image, partition, 2)).await;
    let state: PartitionState = image.partition(partition).unwrap().clone();
    assert_eq!(state.leader_epoch.get(), 2);
    assert_eq!(state.replicas.len(), 3, "failover shrinks no replica set");
    assert_eq!(state.isr.len(), 3, "only a leader changes the in-sync set");
    for id in [2, 3] {
        let promised = cluster.replicas[&node(id)].promised.lock().unwrap();
        assert_eq!(promised[&partition], state.leader_epoch);
    }

    // The learner that comes back sees it, and may lead again when the next leader restarts.
    let four = cluster.start(4).await;
    wait_for(&four, "the learner sees it", |image| {
        led_by(image, partition, 2)
    })
    .await;
    cluster.set_end(4, partition, 12);
    cluster.kill(2).await;
    let two = cluster.start(2).await;
    let image = wait_for(&two, "an epoch after the restart", |image| {
        image
            .partition(partition)
            .is_some_and(|state| state.leader_epoch.get() > 2 && state.leader.is_some())
    })
    .await;
    let leader: Appointment = image.partition(partition).unwrap().leader.unwrap();
    assert_eq!(Some(leader), image.registered(leader.node));
    for id in 1..=4 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_data_directory_is_refused_until_the_node_is_removed() {
    let mut cluster = Cluster::new(1);
    let one = cluster.start(1).await;
    let two = cluster.start(2).await;
    registered(&two, 2).await;
    cluster.kill(2).await;
    drop(two);
    let config = cluster.config(2, 99);
    let two = cluster.start_with(config).await;
    let mut state = two.registration();
    let refused = state.wait_for(|state| matches!(state, RegistrationState::Refused(_)));
    let refused = tokio::time::timeout(DEADLINE, refused)
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert!(matches!(
        refused,
        RegistrationState::Refused(Rejection::DirectoryInUse { .. })
    ));
    remove(&one, 2).await;
    let registered = state.wait_for(|state| *state == RegistrationState::Registered);
    tokio::time::timeout(DEADLINE, registered)
        .await
        .unwrap()
        .unwrap();
    for id in 1..=2 {
        cluster.kill(id).await;
    }
}

/// Asks until the node is not held for alive any more.
async fn remove(active: &Controller, id: u32) {
    let removed = async {
        loop {
            let remove = Command::UnregisterNode {
                node: node(id),
                directory: None,
            };
            match active.submit(remove, DEADLINE).await {
                Err(SubmitError::Rejected(Rejection::NotRemovable { .. })) => {}
                result => return result,
            }
        }
    };
    let removed = tokio::time::timeout(DEADLINE, removed).await.unwrap();
    assert_eq!(removed, Ok(Outcome::Done));
}

pub(super) async fn wait_for_voters(controller: &Controller, wanted: &[u64]) {
    let mut metrics = controller.shared.raft.metrics();
    let found = metrics.wait_for(|m| m.membership_config.voter_ids().eq(wanted.iter().copied()));
    let found = tokio::time::timeout(DEADLINE, found).await;
    assert!(found.is_ok(), "waited in vain for the voters {wanted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_with_an_empty_directory_votes_only_after_it_was_removed_and_came_back() {
    let mut cluster = Cluster::new(3);
    let mut controllers = BTreeMap::new();
    for id in 1..=3 {
        controllers.insert(id, cluster.start(id).await);
    }
    for controller in controllers.values() {
        registered(controller, 3).await;
    }
    // The lowest one, which must not found a second cluster.
    let wiped = 1;
    cluster.kill(wiped).await;
    let mut metrics = controllers[&2].shared.raft.metrics();
    let replaced = metrics.wait_for(|m| m.current_leader.is_some_and(|leader| leader != 1));
    let active = tokio::time::timeout(DEADLINE, replaced)
        .await
        .unwrap()
        .unwrap()
        .current_leader;
    drop(metrics);
    let config = cluster.config(wiped, 99);
    let back = cluster.start_with(config).await;
    let mut state = back.registration();
    let refused = state.wait_for(|state| matches!(state, RegistrationState::Refused(_)));
    drop(
        tokio::time::timeout(DEADLINE, refused)
            .await
            .unwrap()
            .unwrap(),
    );
    let active = &controllers[&u32::try_from(active.unwrap()).unwrap()];
    wait_for_voters(active, &[1, 2, 3]).await;
    let ask = Duration::from_millis(300);
    let error = back.allocate_producer_ids(1, ask).await.unwrap_err();
    assert!(error.to_string().contains("data directory"), "{error}");
    remove(active, wiped).await;
    wait_for_voters(active, &[2, 3]).await;
    let registered = state.wait_for(|state| *state == RegistrationState::Registered);
    drop(
        tokio::time::timeout(DEADLINE, registered)
            .await
            .unwrap()
            .unwrap(),
    );
    wait_for_voters(active, &[1, 2, 3]).await;
    assert!(active.is_active(), "it was not disturbed");
    back.allocate_producer_ids(1, DEADLINE).await.unwrap();
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_far_behind_gets_a_snapshot() {
    let mut cluster = Cluster::new(1);
    let one = cluster.start(1).await;
    registered(&one, 1).await;
    let mut request = topic("t", &[]);
    request.assignment = None;
    request.partitions = Some(10_000);
    one.create_topic(request.clone(), DEADLINE).await.unwrap();
    let applied = one.image().borrow().applied_index();
    let raft = &one.shared.raft;
    raft.trigger().snapshot().await.unwrap();
    let mut metrics = raft.metrics();
    let taken = metrics.wait_for(|m| m.snapshot.is_some_and(|at| at.index >= applied));
    drop(
        tokio::time::timeout(DEADLINE, taken)
            .await
            .unwrap()
            .unwrap(),
    );
    raft.trigger().purge_log(applied).await.unwrap();
    let purged = metrics.wait_for(|m| m.purged.is_some_and(|at| at.index >= applied));
    drop(
        tokio::time::timeout(DEADLINE, purged)
            .await
            .unwrap()
            .unwrap(),
    );

    for _ in 0..2 {
        let two = cluster.start(2).await;
        let image = wait_for(&two, "the snapshot", |image| {
            image.topic(request.id).is_some()
        })
        .await;
        assert_eq!(image.partition_count(), 10_000);
        registered(&two, 2).await;
        let mut metrics = two.shared.raft.metrics();
        let installed = metrics.wait_for(|m| m.snapshot.is_some());
        drop(
            tokio::time::timeout(DEADLINE, installed)
                .await
                .unwrap()
                .unwrap(),
        );
        drop(metrics);
        cluster.kill(2).await;
    }
    cluster.kill(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_active_controller_ends_an_election_that_it_finds_begun() {
    let mut cluster = Cluster::new(3);
    let mut controllers = BTreeMap::new();
    for id in 1..=3 {
        controllers.insert(id, cluster.start(id).await);
    }
    let four = cluster.start(4).await;
    registered(&four, 4).await;
    let request = topic("t", &[4, 1, 2, 3]);
    let partition = first_partition(&request);
    four.create_topic(request, DEADLINE).await.unwrap();
    for replicas in cluster.replicas.values() {
        replicas.failing.store(true, Ordering::Relaxed);
    }
    drop(four);
    cluster.kill(4).await;
    let stuck = wait_for(&controllers[&1], "leaderless", |image| {
        image
            .partition(partition)
            .is_some_and(|state| state.leader.is_none())
    })
    .await;
    let stuck = stuck.partition(partition).unwrap().clone();
    let active = controllers[&1].active_controller().unwrap().get();
    controllers.remove(&active);
    cluster.kill(active).await;
    for replicas in cluster.replicas.values() {
        replicas.failing.store(false, Ordering::Relaxed);
    }
    let (_, left) = controllers.first_key_value().unwrap();
    let ended = wait_for(left, "led again", |image| {
        image
            .partition(partition)
            .is_some_and(|state| state.leader.is_some() && state.leader_epoch >= stuck.leader_epoch)
    })
    .await;
    let ended = ended.partition(partition).unwrap();
    assert_eq!(ended.leader_epoch, stuck.leader_epoch, "the same election");
    assert_ne!(ended.leader_node(), Some(node(4)));
    for id in controllers.keys() {
        cluster.kill(*id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_handle_stops_it() {
    let mut cluster = Cluster::new(0);
    let one = cluster.start(1).await;
    registered(&one, 1).await;
    let mut open = one.shared.store_open.clone();
    cluster.switch.nodes.lock().unwrap().clear();
    drop(one);
    let closed = tokio::time::timeout(DEADLINE, open.changed()).await;
    assert!(closed.unwrap().is_err(), "the store is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moves_registers_its_new_address() {
    let mut cluster = Cluster::new(1);
    let one = cluster.start(1).await;
    let two = cluster.start(2).await;
    registered(&two, 2).await;
    let moved = Endpoint {
        host: "elsewhere".to_owned(),
        port: 2,
    };
    let internal = ListenerName::new("internal").unwrap();
    two.set_endpoints(
        moved.clone(),
        BTreeMap::from([
            (ListenerName::unnamed(), moved.clone()),
            (internal.clone(), moved.clone()),
        ]),
    );
    // Those whom it answers need not wait until it has been told.
    let own = two.image_with_own_place();
    assert_eq!(own.quic_endpoint(node(2)), Some(&moved));
    let kafka = |image: &ClusterImage, listener: &ListenerName| {
        image
            .node(node(2))
            .and_then(|node| node.kafka_endpoint(listener).cloned())
    };
    assert_eq!(kafka(&own, &ListenerName::unnamed()).as_ref(), Some(&moved));
    assert_eq!(kafka(&own, &internal).as_ref(), Some(&moved));
    // The named one is told once the cluster's version has risen.
    wait_for(&one, "the new addresses", |image| {
        image.quic_endpoint(node(2)) == Some(&moved)
            && kafka(image, &ListenerName::unnamed()).as_ref() == Some(&moved)
            && kafka(image, &internal).as_ref() == Some(&moved)
    })
    .await;
    for id in 1..=2 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn named_listeners_are_told_when_the_last_node_understands_them() {
    let mut cluster = Cluster::new(1);
    let internal = ListenerName::new("internal").unwrap();
    let mut old = cluster.config(1, 1);
    old.registration.metadata_version = LISTENERS_SINCE - 1;
    let one = cluster.start_with(old).await;
    registered(&one, 1).await;
    let mut config = cluster.config(2, 2);
    let endpoint = Endpoint {
        host: "n2".to_owned(),
        port: 2,
    };
    config
        .registration
        .set_kafka_endpoint(internal.clone(), endpoint.clone());
    let two = cluster.start_with(config).await;
    let told = |image: &ClusterImage| {
        let own = image.node(node(2))?;
        own.kafka_endpoint(&internal).cloned()
    };
    let image = wait_for(&two, "what both understand", |image| {
        image.nodes().len() == 2 && image.metadata_version() == LISTENERS_SINCE - 1
    })
    .await;
    assert_eq!(told(&image), None);
    // It is as much registered as it can be, and does not ask again and again.
    let mut state = two.registration();
    let registered = state.wait_for(|state| *state == RegistrationState::Registered);
    let registered = tokio::time::timeout(DEADLINE, registered).await;
    assert!(registered.unwrap().is_ok());
    let own = two.image_with_own_place();
    assert_eq!(told(&own), Some(endpoint.clone()), "to its own clients");

    cluster.kill(1).await;
    drop(one);
    let one = cluster.start(1).await;
    wait_for(&one, "the listener", |image| {
        told(image) == Some(endpoint.clone())
    })
    .await;
    for id in 1..=2 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_agree_over_links_slower_than_their_heartbeats() {
    let mut cluster = Cluster::new(3);
    *cluster.switch.round_trip.lock().unwrap() = Timing::default().raft_heartbeat * 3 / 2;
    let one = cluster.start(1).await;
    let two = cluster.start(2).await;
    let three = cluster.start(3).await;
    for controller in [&one, &two, &three] {
        registered(controller, 3).await;
    }
    for name in ["a", "b", "c"] {
        two.create_topic(topic(name, &[1, 2, 3]), DEADLINE)
            .await
            .unwrap();
    }
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_active_controller_buries_nobody_and_says_why_it_commits_nothing() {
    let mut cluster = Cluster::new(3);
    let mut controllers = BTreeMap::new();
    for id in 1..=3 {
        controllers.insert(node(id), cluster.start(id).await);
    }
    for controller in controllers.values() {
        registered(controller, 3).await;
    }
    let old = controllers[&node(1)].active_controller().unwrap();
    let request = topic("t", &[old.get()]);
    controllers[&old]
        .create_topic(request.clone(), DEADLINE)
        .await
        .unwrap();
    cluster.switch.cut_off.lock().unwrap().insert(old);
    let other = controllers.iter().find(|(id, _)| **id != old).unwrap().1;
    let mut metrics = other.shared.raft.metrics();
    let replaced = metrics.wait_for(|m| {
        m.current_leader
            .is_some_and(|leader| leader != u64::from(old.get()))
    });
    tokio::time::timeout(DEADLINE, replaced)
        .await
        .unwrap()
        .unwrap();
    let ask = Duration::from_millis(300);
    let error = controllers[&old]
        .allocate_producer_ids(1, ask)
        .await
        .unwrap_err();
    assert!(matches!(error, SubmitError::NoQuorum { .. }), "{error}");
    assert!(!controllers[&old].hears_majority());
    assert_eq!(controllers[&old].alive().len(), 3);
    // Its partition has no other replica, so it keeps its leader.
    other.allocate_producer_ids(1, DEADLINE).await.unwrap();
    assert!(led_by(
        &other.image().borrow(),
        first_partition(&request),
        old.get()
    ));
    cluster.switch.cut_off.lock().unwrap().clear();
    controllers[&old]
        .allocate_producer_ids(1, DEADLINE)
        .await
        .unwrap();
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_not_what_they_claim_are_refused() {
    let mut cluster = Cluster::new(1);
    let one = cluster.start(1).await;
    registered(&one, 1).await;
    let message = |cluster: u128, from: u32, body: message::Request| {
        let envelope = message::Envelope {
            cluster: Some(ClusterId::from_random_bits(cluster)),
            from: node(from),
            directory: DirectoryId::from_random_bits(u128::from(from)),
            incarnation: Incarnation::from_random_bits(70),
            body,
        };
        Bytes::from(serde_json::to_vec(&envelope).unwrap())
    };
    let refusal = |reply: Bytes| {
        let reply: message::Envelope<message::Response> = serde_json::from_slice(&reply).unwrap();
        match reply.body {
            message::Response::Refused(refusal) => refusal,
            body => panic!("taken: {body:?}"),
        }
    };
    use message::{Refusal, Request};
    let heartbeat = || {
        Request::Heartbeat(message::Vitals {
            round_trip: None,
            leads: None,
            unix_ms: None,
        })
    };
    let foreign = one.handle(node(5), message(2, 5, heartbeat())).await;
    assert!(matches!(refusal(foreign), Refusal::OtherCluster { .. }));
    let claimed = one.handle(node(6), message(1, 5, heartbeat())).await;
    assert!(matches!(refusal(claimed), Refusal::OtherSender { .. }));
    let garbage = one.handle(node(5), Bytes::from_static(b"{\"from\":")).await;
    assert!(matches!(refusal(garbage), Refusal::Malformed(_)));
    let fence = Request::Fence {
        applied_index: 0,
        items: Vec::new(),
    };
    let fenced = one.handle(node(5), message(1, 5, fence)).await;
    assert_eq!(refusal(fenced), Refusal::NotController(node(5)));
    let vote = Request::Vote(openraft::raft::VoteRequest::new(
        raft::Vote::new(99, 5),
        None,
    ));
    let voted = one.handle(node(5), message(1, 5, vote)).await;
    assert_eq!(refusal(voted), Refusal::NotController(node(5)));
    let register = Request::Propose {
        proposal: message::Proposal::Command(Command::RegisterNode {
            registration: one.shared.config.registration.clone(),
        }),
        timeout_ms: 1000,
    };
    let reply = one.handle(node(5), message(1, 5, register)).await;
    let reply: message::Envelope<message::Response> = serde_json::from_slice(&reply).unwrap();
    assert!(matches!(
        reply.body,
        message::Response::Proposed {
            result: Err(Rejection::Malformed(_)),
            ..
        }
    ));
    cluster.kill(1).await;
}

/// Three controllers, each of which knows all; and which is active.
async fn three_controllers(cluster: &mut Cluster) -> (BTreeMap<NodeId, Controller>, NodeId) {
    let mut controllers = BTreeMap::new();
    for id in 1..=3 {
        controllers.insert(node(id), cluster.start(id).await);
    }
    for controller in controllers.values() {
        registered(controller, 3).await;
    }
    let mut metrics = controllers[&node(1)].shared.raft.metrics();
    let known = metrics.wait_for(|m| m.current_leader.is_some());
    let active = tokio::time::timeout(DEADLINE, known).await;
    let active = active.unwrap().unwrap().current_leader.unwrap();
    drop(metrics);
    (controllers, node(u32::try_from(active).unwrap()))
}

/// Waits until `controller` knows of another active one than `old`.
async fn replaced(controller: &Controller, old: NodeId) {
    let old = u64::from(old.get());
    let mut metrics = controller.shared.raft.metrics();
    let found = metrics.wait_for(|m| m.current_leader.is_some_and(|leader| leader != old));
    let found = tokio::time::timeout(DEADLINE, found).await;
    assert!(found.is_ok(), "node {old} was not replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_alone_misses_the_active_one_does_not_depose_it() {
    let mut cluster = Cluster::new(3);
    let (controllers, active) = three_controllers(&mut cluster).await;
    let term = controllers[&active].shared.metrics().current_term;
    let (&cut, misses) = controllers.iter().find(|(id, _)| **id != active).unwrap();
    cluster
        .switch
        .cut_pairs
        .lock()
        .unwrap()
        .insert((cut, active));
    // It asks the third, who hears the active one, again and again.
    let asked = async {
        while misses.shared.candidacy().rounds() < 5 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.unwrap();
    cluster.switch.cut_pairs.lock().unwrap().clear();
    misses.allocate_producer_ids(1, DEADLINE).await.unwrap();
    for controller in controllers.values() {
        let metrics = controller.shared.metrics();
        assert_eq!(metrics.current_term, term);
        assert_eq!(metrics.current_leader, Some(u64::from(active.get())));
    }
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_that_it_stops_is_replaced_without_its_silence() {
    let mut cluster = Cluster::new(3);
    let (controllers, active) = three_controllers(&mut cluster).await;
    let others: Vec<&Controller> = controllers
        .iter()
        .filter(|(id, _)| **id != active)
        .map(|(_, controller)| controller)
        .collect();
    let assignment: Vec<u32> = std::iter::once(active)
        .chain(controllers.keys().copied().filter(|id| *id != active))
        .map(NodeId::get)
        .collect();
    let request = topic("t", &assignment);
    let partition = first_partition(&request);
    others[0].create_topic(request, DEADLINE).await.unwrap();
    controllers[&active].leave().await;
    // It goes on sending heartbeats, which count for nothing any more.
    replaced(others[0], active).await;
    wait_for(others[0], "another leader", |image| {
        let leader = image
            .partition(partition)
            .and_then(PartitionState::leader_node);
        leader.is_some_and(|leader| leader != active)
    })
    .await;
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_partitions_of_a_dead_node_are_elected_by_two_commands() {
    let mut cluster = Cluster::new(1);
    let one = cluster.start(1).await;
    for id in 2..=4 {
        let broker = cluster.start(id).await;
        registered(&broker, id as usize).await;
    }
    let mut request = topic("t", &[]);
    request.assignment = Some(vec![vec![node(4), node(2), node(3)]; 1000]);
    let topic = one.create_topic(request, DEADLINE).await.unwrap();
    // Every node is a member: no further command is on its way.
    let mut metrics = one.shared.raft.metrics();
    let joined = metrics.wait_for(|m| m.membership_config.nodes().count() == 4);
    assert!(tokio::time::timeout(DEADLINE, joined).await.is_ok());
    drop(metrics);
    let before = one.image().borrow().applied_index();
    cluster.kill(4).await;
    let image = wait_for(&one, "all are led again", |image| {
        let mut partitions = image.topic(topic).unwrap().partitions.iter();
        partitions.all(|state| state.leader_node() == Some(node(2)))
    })
    .await;
    let commands = image.applied_index() - before;
    assert_eq!(commands, 2, "one that starts, one that appoints");
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}
