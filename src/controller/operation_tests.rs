//! What operators ask for, on whole controllers over a network in memory.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::cluster_tests::{
    Cluster, DEADLINE, first_partition, led_by, node, registered, topic, wait_for, wait_for_voters,
};
use super::*;
use crate::metadata::{Command, Move, Outcome, Reassignment};
use crate::types::{IsrChange, NodeId, TopicPartition};

async fn operate(controller: &Controller, operation: Operation) -> OperationOutcome {
    controller.operate(operation, DEADLINE).await.unwrap()
}

async fn refusal(controller: &Controller, operation: Operation) -> String {
    let refused = controller.operate(operation, DEADLINE).await;
    let Err(OperateError::Refused(refusal)) = refused else {
        panic!("not refused: {refused:?}");
    };
    refusal.to_string()
}

/// Moves one leadership; the text says why not.
async fn transfer(
    controller: &Controller,
    partition: TopicPartition,
    to: u32,
) -> Result<(), String> {
    let moves = vec![Move {
        partition,
        to: node(to),
    }];
    match operate(controller, Operation::Transfer { moves }).await {
        OperationOutcome::Partitions(mut outcomes) => outcomes.remove(0).result,
        outcome => panic!("{outcome:?}"),
    }
}

/// Changes the ISR as the leader would, which here has no log to do it by itself.
async fn change_isr(cluster: &Cluster, partition: TopicPartition, isr: &[u32]) {
    let any = cluster.controller(*cluster.running().first().unwrap());
    let image = any.image().borrow().clone();
    let state = image.partition(partition).unwrap();
    let leader = cluster.controller(state.leader_node().unwrap().get());
    let changes = vec![IsrChange {
        partition,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
        new_isr: isr
            .iter()
            .map(|&id| image.registered(node(id)).unwrap())
            .collect(),
        min_insync: state.min_insync,
    }];
    let outcome = leader
        .submit(Command::ChangeIsrs { changes }, DEADLINE)
        .await
        .unwrap();
    let Outcome::Partitions(results) = outcome else {
        panic!("{outcome:?}");
    };
    results[0].as_ref().unwrap();
}

/// A controller, node 1, and brokers 2 to `count`.
async fn with_brokers(count: u32) -> (Cluster, Controller) {
    let mut cluster = Cluster::new(1);
    let one = cluster.start(1).await;
    for id in 2..=count {
        cluster.start(id).await;
    }
    registered(&one, count as usize).await;
    wait_for(&one, "the metadata version", |image| {
        image.metadata_version() == crate::metadata::METADATA_VERSION
    })
    .await;
    (cluster, one)
}

async fn stop_all(cluster: &Cluster) {
    for id in cluster.running() {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leadership_moves_to_the_replica_that_is_asked_for() {
    let (cluster, one) = with_brokers(4).await;
    let request = topic("t", &[2, 3, 4]);
    let partition = first_partition(&request);
    one.create_topic(request, DEADLINE).await.unwrap();
    // Node 3 would win by its place in the list, were it not for the choice.
    for id in 2..=4 {
        cluster.set_end(id, partition, 10);
    }
    let two = cluster.controller(2);
    assert_eq!(transfer(&two, partition, 4).await, Ok(()));
    let image = one.image().borrow().clone();
    assert!(led_by(&image, partition, 4));
    assert_eq!(image.partition(partition).unwrap().leader_epoch.get(), 2);
    assert_eq!(
        transfer(&two, partition, 4).await,
        Ok(()),
        "it leads already"
    );
    let image = one.image().borrow().clone();
    assert_eq!(image.partition(partition).unwrap().leader_epoch.get(), 2);

    let refused = HandOverRefusal::TimedOut;
    *cluster.replicas[&node(4)].hand_over_refusal.lock().unwrap() = Some(refused.clone());
    let reason = transfer(&one, partition, 2).await.unwrap_err();
    assert!(reason.contains(&refused.to_string()), "{reason}");
    let image = one.image().borrow().clone();
    assert!(led_by(&image, partition, 4), "the old leader goes on");
    assert_eq!(image.partition(partition).unwrap().leader_epoch.get(), 2);

    let reason = transfer(&one, partition, 1).await.unwrap_err();
    assert!(reason.contains("no replica"), "{reason}");
    change_isr(&cluster, partition, &[4, 2]).await;
    let reason = transfer(&one, partition, 3).await.unwrap_err();
    assert!(reason.contains("not in sync"), "{reason}");
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_never_wins_over_a_longer_log_in_every_quorum() {
    let (cluster, one) = with_brokers(4).await;
    let request = topic("t", &[2, 3, 4]);
    let partition = first_partition(&request);
    one.create_topic(request, DEADLINE).await.unwrap();
    // A leader that says it has handed over, and has not.
    for (id, end) in [(2, 12), (3, 11), (4, 10)] {
        cluster.set_end(id, partition, end);
    }
    let reason = transfer(&one, partition, 4).await.unwrap_err();
    assert!(reason.contains("leads it now"), "{reason}");
    assert!(!led_by(&one.image().borrow(), partition, 4));
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_leads_nothing_more_until_it_starts_anew() {
    let (mut cluster, one) = with_brokers(4).await;
    let mut request = topic("t", &[]);
    request.assignment = Some(
        [[2, 3, 4], [2, 4, 3], [2, 3, 4], [3, 2, 4]]
            .iter()
            .map(|ids| ids.map(node).to_vec())
            .collect(),
    );
    let id = one.create_topic(request, DEADLINE).await.unwrap();
    let drain = |on| Operation::Drain { node: node(2), on };
    assert_eq!(operate(&one, drain(true)).await, OperationOutcome::Done);
    assert_eq!(
        operate(&one, drain(true)).await,
        OperationOutcome::Unchanged
    );
    let leaders = |image: &crate::metadata::ClusterImage| -> Vec<Option<u32>> {
        let topic = image.topic(id).unwrap();
        let leaders = topic.partitions.iter().map(|state| state.leader_node());
        leaders.map(|leader| leader.map(NodeId::get)).collect()
    };
    wait_for(&one, "node 2 leads nothing", |image| {
        leaders(image).iter().all(|l| matches!(l, Some(3 | 4)))
    })
    .await;
    let made = topic("u", &[2, 3]);
    let on_it = first_partition(&made);
    one.create_topic(made, DEADLINE).await.unwrap();
    assert!(led_by(&one.image().borrow(), on_it, 3), "not even at first");
    let partition = TopicPartition { topic: id, ..on_it };
    let reason = transfer(&one, partition, 2).await.unwrap_err();
    assert!(reason.contains("draining"), "{reason}");

    cluster.kill(2).await;
    let two = cluster.start(2).await;
    wait_for(&two, "a new process does not drain", |image| {
        image.registered(node(2)) == Some(two.shared.config.registration.appointment())
            && !image.is_draining(node(2))
    })
    .await;
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preferred_replicas_get_their_leaderships_back_by_themselves() {
    let mut cluster = Cluster::new(1);
    let mut config = cluster.config(1, 1);
    config.leader_balance.check_every = Duration::from_millis(200);
    let one = cluster.start_with(config).await;
    for id in 2..=3 {
        cluster.start(id).await;
    }
    registered(&one, 3).await;
    let request = topic("t", &[2, 3]);
    let partition = first_partition(&request);
    one.create_topic(request, DEADLINE).await.unwrap();
    *cluster.replicas[&node(3)].hand_over_refusal.lock().unwrap() =
        Some(HandOverRefusal::NotSupported);
    assert_eq!(transfer(&one, partition, 3).await, Ok(()));
    assert!(led_by(&one.image().borrow(), partition, 3));
    *cluster.replicas[&node(3)].hand_over_refusal.lock().unwrap() = None;
    wait_for(&one, "node 2, the preferred, leads", |image| {
        led_by(image, partition, 2)
    })
    .await;
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reassignment_moves_the_leadership_and_ends_when_the_others_are_out() {
    let (cluster, one) = with_brokers(4).await;
    let request = topic("t", &[2, 3]);
    let partition = first_partition(&request);
    one.create_topic(request, DEADLINE).await.unwrap();
    let image = one.image().borrow().clone();
    let reassignments = vec![Reassignment {
        partition,
        partition_epoch: image.partition(partition).unwrap().partition_epoch,
        target: vec![node(4), node(3)],
    }];
    let outcome = operate(&one, Operation::Reassign { reassignments }).await;
    let OperationOutcome::Partitions(outcomes) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(outcomes[0].result, Ok(()));
    assert!(
        led_by(&one.image().borrow(), partition, 2),
        "4 is not in sync"
    );
    change_isr(&cluster, partition, &[2, 3, 4]).await;
    wait_for(&one, "a replica that stays leads", |image| {
        led_by(image, partition, 3) || led_by(image, partition, 4)
    })
    .await;
    change_isr(&cluster, partition, &[3, 4]).await;
    let image = wait_for(&one, "the end of the reassignment", |image| {
        image.reassigned_from(partition).is_none()
    })
    .await;
    let state = image.partition(partition).unwrap();
    assert_eq!(state.replicas, [node(4), node(3)]);
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_once_its_replicas_are_elsewhere_and_it_has_stopped() {
    let (cluster, one) = with_brokers(4).await;
    let request = topic("t", &[2, 3]);
    let partition = first_partition(&request);
    one.create_topic(request, DEADLINE).await.unwrap();
    let remove = |id| Operation::RemoveNode {
        node: node(id),
        keep_replicas: false,
    };
    let reason = refusal(&one, remove(3)).await;
    assert!(reason.contains("holds 1 replica"), "{reason}");
    let reason = refusal(&one, remove(1)).await;
    assert!(reason.contains("controller"), "{reason}");
    let reason = refusal(&one, remove(9)).await;
    assert!(reason.contains("not registered"), "{reason}");
    operate(&one, Operation::Evacuate { node: node(3) }).await;
    let image = one.image().borrow().clone();
    let target = &image.partition(partition).unwrap().target_replicas;
    assert!(
        target.len() == 2 && !target.contains(&node(3)),
        "{target:?}"
    );
    let added = target.iter().map(|n| n.get()).find(|&id| id != 2).unwrap();
    change_isr(&cluster, partition, &[2, 3, added]).await;
    change_isr(&cluster, partition, &[2, added]).await;
    wait_for(&one, "node 3 holds nothing", |image| {
        image.partitions_of(node(3)).next().is_none()
    })
    .await;
    let reason = refusal(&one, remove(3)).await;
    assert!(reason.contains("alive"), "{reason}");
    cluster.kill(3).await;
    let removed = async {
        while let Err(error) = one.operate(remove(3), DEADLINE).await {
            assert!(error.to_string().contains("alive"), "{error}");
        }
    };
    tokio::time::timeout(DEADLINE, removed).await.unwrap();
    assert_eq!(one.image().borrow().node(node(3)), None);
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_come_and_go_and_old_lists_still_start() {
    let mut cluster = Cluster::new(3);
    for id in 1..=4 {
        cluster.start(id).await;
    }
    let four = cluster.controller(4);
    registered(&four, 4).await;
    let outcome = operate(&four, Operation::AddController { node: node(4) }).await;
    let ids = |ids: &[u32]| -> BTreeSet<NodeId> { ids.iter().copied().map(node).collect() };
    let expected = |voters: &[u32]| OperationOutcome::Controllers {
        voters: ids(voters),
        wanted: ids(voters),
    };
    assert_eq!(outcome, expected(&[1, 2, 3, 4]));
    let active = four.active_controller().unwrap().get();
    // The active controller itself: it gives the vote up, and follows the metadata from then on.
    let outcome = four
        .operate(Operation::RemoveController { node: node(active) }, DEADLINE)
        .await;
    let left: Vec<u32> = (1..=4).filter(|&id| id != active).collect();
    if let Ok(outcome) = outcome {
        assert_eq!(outcome, expected(&left));
    }
    let witness = cluster.controller(left[0]);
    let voters: Vec<u64> = left.iter().map(|&id| u64::from(id)).collect();
    wait_for_voters(&witness, &voters).await;
    four.create_topic(topic("a", &[1, 2]), DEADLINE)
        .await
        .unwrap();
    let old = cluster.controller(active);
    wait_for(&old, "what was done without it", |image| {
        image.topics().len() == 1
    })
    .await;
    let reason = refusal(&four, Operation::AddController { node: node(9) }).await;
    assert!(reason.contains("not registered"), "{reason}");
    drop((four, witness, old));

    // Each still has the founders' list. It goes on as the committed membership says.
    for id in 1..=4 {
        cluster.kill(id).await;
    }
    for id in 1..=4 {
        cluster.start(id).await;
    }
    let four = cluster.controller(4);
    four.create_topic(topic("b", &[1, 2]), DEADLINE)
        .await
        .unwrap();
    wait_for_voters(&four, &voters).await;
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_lost_its_disk_is_removed_and_comes_back() {
    let mut cluster = Cluster::new(3);
    for id in 1..=3 {
        cluster.start(id).await;
    }
    let two = cluster.controller(2);
    registered(&two, 3).await;
    let request = topic("t", &[1, 2, 3]);
    let partition = first_partition(&request);
    two.create_topic(request, DEADLINE).await.unwrap();
    cluster.kill(1).await;
    let remove = || Operation::RemoveNode {
        node: node(1),
        keep_replicas: true,
    };
    // Until it is held for dead, and its place as the active controller is taken.
    let removed = async {
        while let Err(error) = two.operate(remove(), DEADLINE).await {
            assert!(error.to_string().contains("alive"), "{error}");
        }
    };
    tokio::time::timeout(DEADLINE, removed).await.unwrap();
    wait_for_voters(&two, &[2, 3]).await;
    let config = cluster.config(1, 99);
    let back = cluster.start_with(config).await;
    wait_for_voters(&two, &[1, 2, 3]).await;
    let image = wait_for(&back, "what it had lost", |image| {
        image.partition(partition).is_some()
    })
    .await;
    assert_eq!(image.partition(partition).unwrap().replicas.len(), 3);
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclean_election_is_an_operators_and_only_where_no_other_can_end() {
    let (cluster, one) = with_brokers(4).await;
    let request = topic("t", &[2, 3, 4]);
    let partition = first_partition(&request);
    one.create_topic(request, DEADLINE).await.unwrap();
    change_isr(&cluster, partition, &[2]).await;
    let elect = |chosen: Option<u32>| Operation::ElectUnclean {
        partition,
        node: chosen.map(node),
    };
    let reason = refusal(&one, elect(None)).await;
    assert!(reason.contains("is alive"), "{reason}");
    cluster.set_end(3, partition, 7);
    cluster.set_end(4, partition, 5);
    cluster.kill(2).await;
    let gone = async {
        while one.alive().contains(&node(2)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.unwrap();
    let reason = refusal(&one, elect(Some(2))).await;
    assert!(reason.contains("not alive"), "{reason}");
    let reason = refusal(&one, elect(Some(1))).await;
    assert!(reason.contains("no replica"), "{reason}");
    assert!(
        led_by(&one.image().borrow(), partition, 2),
        "never by itself"
    );
    let outcome = operate(&one, elect(None)).await;
    let OperationOutcome::Unclean(election) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!((election.leader, election.silent), (node(3), vec![node(2)]));
    assert_eq!(election.log_end.offset.get(), 7);
    let image = one.image().borrow().clone();
    let state = image.partition(partition).unwrap();
    assert_eq!(state.leader, image.registered(node(3)));
    assert_eq!(state.isr.len(), 1);
    assert_eq!(state.leader_epoch, election.epoch);
    let promised = cluster.replicas[&node(4)].promised.lock().unwrap()[&partition];
    assert_eq!(
        promised, election.epoch,
        "whoever could have served is fenced"
    );
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclean_election_is_refused_when_enough_in_sync_replicas_answer_after_all() {
    let (cluster, one) = with_brokers(4).await;
    let request = topic("t", &[2, 3, 4]);
    let partition = first_partition(&request);
    one.create_topic(request, DEADLINE).await.unwrap();
    for id in [3, 4] {
        cluster.replicas[&node(id)]
            .failing
            .store(true, Ordering::Relaxed);
    }
    cluster.kill(2).await;
    wait_for(&one, "an election that does not end", |image| {
        image
            .partition(partition)
            .is_some_and(|state| state.leader.is_none())
    })
    .await;
    let elect = || Operation::ElectUnclean {
        partition,
        node: None,
    };
    let reason = refusal(&one, elect()).await;
    assert!(reason.contains("no replica has answered"), "{reason}");
    for id in [3, 4] {
        cluster.replicas[&node(id)]
            .failing
            .store(false, Ordering::Relaxed);
    }
    let reason = refusal(&one, elect()).await;
    assert!(
        reason.contains("without a loss")
            || reason.contains("leads the partition")
            || reason.contains("got a leader"),
        "{reason}"
    );
    let image = wait_for(&one, "a clean election", |image| {
        image
            .partition(partition)
            .is_some_and(|state| state.leader.is_some())
    })
    .await;
    assert_eq!(image.partition(partition).unwrap().isr.len(), 3);
    stop_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_controller_may_ask_for_a_hand_over() {
    let (cluster, one) = with_brokers(2).await;
    let envelope = message::Envelope {
        cluster: one.image().borrow().cluster_id(),
        from: node(2),
        directory: cluster.controller(2).shared.config.registration.directory,
        incarnation: cluster.controller(2).shared.config.registration.incarnation,
        body: message::Request::HandOver {
            items: Vec::new(),
            within_ms: 1,
        },
    };
    let request = serde_json::to_vec(&envelope).unwrap();
    let reply = one.handle(node(2), request.into()).await;
    let reply: message::Envelope<message::Response> = serde_json::from_slice(&reply).unwrap();
    assert!(matches!(
        reply.body,
        message::Response::Refused(message::Refusal::NotController(_))
    ));
    stop_all(&cluster).await;
}
