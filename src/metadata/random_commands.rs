//! Tests of the whole room: random commands against the invariants.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::types::{
    Appointment, ClusterId, DirectoryId, Incarnation, IsrChange, LeaderEpoch, ListenerName, NodeId,
    Offset, PartitionEpoch, PartitionIndex, TopicId, TopicName, TopicPartition,
};

pub(super) fn node(id: u32) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(super) fn nodes<I: IntoIterator<Item = u32>>(ids: I) -> BTreeSet<NodeId> {
    ids.into_iter().map(node).collect()
}

pub(super) fn registration(id: u32, incarnation: u64) -> Registration {
    Registration {
        node: node(id),
        directory: DirectoryId::from_random_bits(u128::from(id)),
        incarnation: Incarnation::from_random_bits(incarnation),
        quic: Endpoint {
            host: format!("n{id}"),
            port: 9000,
        },
        kafka: None,
        kafka_listeners: BTreeMap::new(),
        boot_id: None,
        metadata_version: METADATA_VERSION,
    }
}

/// A founded cluster at the newest version with nodes 1 to `count`, each in incarnation 1.
pub(super) fn image_with_nodes(count: u32) -> ClusterImage {
    let mut image = ClusterImage::new();
    let cluster_id = ClusterId::from_random_bits(1);
    image.apply(&Command::InitCluster { cluster_id }).unwrap();
    for id in 1..=count {
        let registration = registration(id, 1);
        image
            .apply(&Command::RegisterNode { registration })
            .unwrap();
    }
    let version = METADATA_VERSION;
    image
        .apply(&Command::RaiseMetadataVersion { version })
        .unwrap();
    image
}

/// A command with small numbers for everything, to be aimed at the present state: `aim` of 0 takes the present epochs.
#[derive(Clone, Debug)]
struct Shot {
    kind: u8,
    a: u32,
    b: u32,
    aim: u32,
    nodes: Vec<u32>,
}

fn shot() -> impl Strategy<Value = Shot> {
    (
        0u8..21,
        1u32..6,
        0u32..4,
        prop_oneof![4 => Just(0u32), 1 => 1u32..3],
        proptest::collection::vec(1u32..6, 0..4),
    )
        .prop_map(|(kind, a, b, aim, nodes)| Shot {
            kind,
            a,
            b,
            aim,
            nodes,
        })
}

/// Named listeners of a node, some of whose names no node may give them.
fn listeners(shot: &Shot) -> BTreeMap<ListenerName, Endpoint> {
    let count = if shot.kind == 2 { shot.nodes.len() } else { 0 };
    ["internal", "external", "default"][..count]
        .iter()
        .map(|name| {
            let endpoint = Endpoint {
                host: format!("{name}-{}", shot.a),
                port: 1,
            };
            (ListenerName::new(name).unwrap(), endpoint)
        })
        .collect()
}

fn command(image: &ClusterImage, shot: &Shot) -> Command {
    let topic = TopicId::from_random_bits(u128::from(shot.a % 3));
    let partition = TopicPartition {
        topic,
        partition: PartitionIndex(shot.b % 3),
    };
    let state = image.partition(partition);
    let leader_epoch =
        LeaderEpoch::new(state.map_or(0, |s| s.leader_epoch.get()) + shot.aim).unwrap();
    let partition_epoch = PartitionEpoch(
        state
            .map_or(0, |s| s.partition_epoch.0)
            .saturating_sub(shot.aim),
    );
    let appointment = |id: u32| Appointment {
        node: node(id),
        directory: DirectoryId::from_random_bits(u128::from(id)),
        incarnation: match image.registered(node(id)) {
            Some(now) if shot.aim == 0 => now.incarnation,
            _ => Incarnation::from_random_bits(1),
        },
    };
    let ids: Vec<NodeId> = shot.nodes.iter().copied().map(node).collect();
    let partitions = vec![
        NewPartition {
            replicas: ids.clone(),
            in_sync: ids[..ids.len().min(2)].to_vec(),
        };
        shot.b as usize
    ];
    match shot.kind {
        0 => Command::InitCluster {
            cluster_id: ClusterId::from_random_bits(u128::from(shot.aim)),
        },
        1 | 2 => Command::RegisterNode {
            registration: Registration {
                directory: DirectoryId::from_random_bits(u128::from(shot.a + shot.aim)),
                kafka_listeners: listeners(shot),
                ..registration(shot.a, u64::from(shot.b))
            },
        },
        3 => Command::UnregisterNode {
            node: node(shot.a),
            directory: None,
        },
        4 => Command::CreateTopic {
            topic: NewTopic {
                id: topic,
                name: TopicName::new(&format!("t{}", shot.a % 2)).unwrap(),
                config: BTreeMap::new(),
                partitions,
                min_insync: shot.a - 1,
            },
        },
        5 if shot.aim > 0 => Command::DeleteTopic { topic },
        5 | 6 => Command::CreatePartitions {
            topic,
            expected_count: image.topic(topic).map_or(0, |t| t.partitions.len() as u32),
            partitions,
            min_insync: 1,
        },
        7 => Command::StartElections {
            elections: vec![
                ElectionStart {
                    partition,
                    leader_epoch,
                    partition_epoch,
                };
                2
            ],
        },
        8 => Command::AppointLeaders {
            appointments: vec![Appointing {
                partition,
                leader_epoch,
                leader: appointment(shot.a),
            }],
        },
        9 => Command::ChangeIsrs {
            changes: vec![IsrChange {
                partition,
                leader_epoch,
                partition_epoch,
                new_isr: shot.nodes.iter().copied().map(appointment).collect(),
                min_insync: shot.b,
            }],
        },
        10 => Command::RaiseMetadataVersion {
            version: 1 + shot.b % 4,
        },
        11 => Command::SetDraining {
            node: node(shot.a),
            incarnation: appointment(shot.a).incarnation,
            on: shot.b > 0,
        },
        12 | 13 => Command::Reassign {
            reassignments: vec![Reassignment {
                partition,
                partition_epoch,
                target: match image.reassigned_from(partition) {
                    Some(origin) if shot.b == 3 => origin.to_vec(),
                    _ => ids,
                },
            }],
        },
        14 => Command::FinishReassignments {
            ends: vec![ReassignmentEnd {
                partition,
                partition_epoch,
            }],
        },
        15 => Command::ForceLeaders {
            leaders: vec![ForcedLeader {
                partition,
                leader_epoch,
                partition_epoch,
                leader: appointment(shot.a),
            }],
        },
        16 => Command::SetControllers {
            before: image.controllers().clone(),
            controllers: ids.into_iter().collect(),
        },
        17 => Command::DeleteRecords {
            deletions: vec![RecordDeletion {
                partition,
                before: Offset::new(u64::from(10 * shot.a)).unwrap(),
                leader_epoch,
            }],
        },
        18 => Command::SetCredential {
            user: format!("u{}", shot.a % 3),
            mechanism: ScramMechanism::ALL[shot.b as usize % 2],
            verifier: ScramVerifier {
                salt: vec![1; shot.a as usize - 1],
                iterations: 4096,
                stored_key: vec![0; 32],
                server_key: vec![0; 32],
            },
        },
        19 => Command::DeleteCredential {
            user: format!("u{}", shot.a % 3),
            mechanism: ScramMechanism::ALL[shot.b as usize % 2],
        },
        _ => Command::AllocateProducerIds {
            node: node(shot.a),
            count: shot.b,
        },
    }
}

fn check_image(image: &ClusterImage) {
    let mut names = BTreeSet::new();
    for topic in image.topics() {
        assert!(names.insert(&topic.name), "one id for each name");
        assert_eq!(image.topic_by_name(&topic.name).unwrap().id, topic.id);
        assert!(!topic.partitions.is_empty());
    }
    assert_eq!(image.partitions().count(), image.partition_count());
    assert_eq!(
        image.reassigning().count(),
        image.reassigned_from.len(),
        "an origin belongs to a partition"
    );
    assert!(image.draining().iter().all(|&n| image.node(n).is_some()));
    assert!(image.controllers().len() <= MAX_CONTROLLERS);
    for partition in image.deleted_before.keys() {
        assert!(image.partition(*partition).is_some());
        assert!(image.deleted_before(*partition) > Offset::ZERO);
    }
    for (_, verifiers) in image.users() {
        assert!(verifiers.count() > 0);
    }
    for (partition, state) in image.partitions() {
        let replicas: BTreeSet<_> = state.replicas.iter().collect();
        assert_eq!(replicas.len(), state.replicas.len());
        let isr: BTreeSet<_> = state.isr.iter().map(|member| member.node).collect();
        assert_eq!(isr.len(), state.isr.len());
        assert!(!isr.is_empty() && isr.iter().all(|node| replicas.contains(node)));
        assert!(state.min_insync >= 1 && state.leader_epoch > LeaderEpoch::NONE);
        assert!(state.leader.is_none_or(|leader| isr.contains(&leader.node)));
        assert!(state.replicas.len() <= MAX_REPLICAS);
        let target: BTreeSet<_> = state.target_replicas.iter().collect();
        assert_eq!(target.len(), state.target_replicas.len());
        assert!(target.iter().all(|node| replicas.contains(node)));
        let origin = image.reassigned_from(partition);
        assert_eq!(origin.is_some(), !target.is_empty());
        if let Some(origin) = origin {
            assert!(state.replicas.starts_with(&state.target_replicas));
            assert!(
                replicas.iter().all(|&node| target.contains(&node)
                    || origin.contains(node)
                    || isr.contains(node)),
                "nobody holds what nobody needs"
            );
        }
    }
}

/// A topic id is used once in real life: they are drawn at random. Here they come back, and begin anew.
#[derive(Default)]
struct Seen {
    leaders: BTreeMap<(TopicPartition, LeaderEpoch), Appointment>,
}

fn check_step(before: &ClusterImage, command: &Command, after: &ClusterImage, seen: &mut Seen) {
    let forced = matches!(command, Command::ForceLeaders { .. });
    let reassigned = matches!(
        command,
        Command::Reassign { .. } | Command::FinishReassignments { .. }
    );
    assert!(after.metadata_version() >= before.metadata_version());
    assert!(
        before == after || command.since_version() <= before.metadata_version(),
        "every node understood what was in the log"
    );
    seen.leaders
        .retain(|(partition, _), _| after.topic(partition.topic).is_some());
    for (partition, now) in after.partitions() {
        let marks = (
            before.deleted_before(partition),
            after.deleted_before(partition),
        );
        let anew = before.partition(partition).is_none();
        assert!(
            forced || anew || marks.1 >= marks.0,
            "what is deleted stays so"
        );
        if let Some(then) = before.partition(partition) {
            assert!(now.leader_epoch >= then.leader_epoch);
            assert!(now.partition_epoch >= then.partition_epoch);
            assert!(now == then || now.partition_epoch > then.partition_epoch);
            assert!(forced || then.leader.is_some() || now.isr == then.isr);
            assert!(reassigned || now.replicas == then.replicas);
            if reassigned {
                assert_eq!((&now.isr, now.leader), (&then.isr, then.leader));
            }
        }
        if let Some(leader) = now.leader {
            let first = seen
                .leaders
                .entry((partition, now.leader_epoch))
                .or_insert(leader);
            assert_eq!(*first, leader, "one leader for each epoch");
        }
    }
    assert!(after.next_producer_id >= before.next_producer_id);
}

proptest! {
    #[test]
    fn random_commands_keep_the_invariants(
        shots in proptest::collection::vec(shot(), 1..120),
        founded: bool,
    ) {
        let start = if founded { image_with_nodes(3) } else { ClusterImage::new() };
        let (mut image, mut seen) = (start.clone(), Seen::default());
        let mut log = Vec::new();
        for shot in &shots {
            let command = command(&image, shot);
            let before = image.clone();
            let result = image.apply(&command);
            check_image(&image);
            check_step(&before, &command, &image, &mut seen);
            if result.is_err() {
                prop_assert_eq!(&before, &image, "a rejected command leaves no trace");
            }
            log.push((command, result));
        }
        // From the log as it is stored, a second node comes to the same image and the same answers.
        let json = serde_json::to_string(&log).unwrap();
        let log: Vec<(Command, Result<Outcome, Rejection>)> = serde_json::from_str(&json).unwrap();
        let mut replica = start;
        for (command, result) in &log {
            prop_assert_eq!(&replica.apply(command), result);
        }
        prop_assert_eq!(&replica, &image);
        let stored: ClusterImage =
            serde_json::from_str(&serde_json::to_string(&image).unwrap()).unwrap();
        prop_assert_eq!(&stored, &image);
    }
}

#[test]
fn a_second_directory_under_a_node_id_is_refused_until_the_first_is_removed() {
    let mut image = image_with_nodes(1);
    let foreign = Registration {
        directory: DirectoryId::from_random_bits(99),
        ..registration(1, 2)
    };
    let register = Command::RegisterNode {
        registration: foreign.clone(),
    };
    let refused = image.apply(&register).unwrap_err();
    assert!(matches!(refused, Rejection::DirectoryInUse { .. }));
    assert!(
        refused
            .to_string()
            .contains("remove-node N --keep-replicas"),
        "{refused}"
    );
    let restart = Command::RegisterNode {
        registration: registration(1, 2),
    };
    assert_eq!(image.apply(&restart), Ok(Outcome::Done));
    assert_eq!(image.apply(&restart), Ok(Outcome::Unchanged));
    image
        .apply(&Command::UnregisterNode {
            node: node(1),
            directory: None,
        })
        .unwrap();
    assert_eq!(image.apply(&register), Ok(Outcome::Done));
}

/// Partition 0 of a topic on nodes 1 to 3 of five.
fn with_partition() -> (ClusterImage, TopicPartition) {
    let mut image = image_with_nodes(5);
    let request = CreateTopicRequest {
        name: TopicName::new("t").unwrap(),
        id: TopicId::from_random_bits(1),
        partitions: None,
        replication_factor: None,
        assignment: Some(vec![[1, 2, 3].map(node).to_vec()]),
        config: BTreeMap::new(),
    };
    let command = request.resolve(&image, &nodes(1..=5)).unwrap();
    image.apply(&command).unwrap();
    let partition = TopicPartition {
        topic: request.id,
        partition: PartitionIndex(0),
    };
    (image, partition)
}

fn reassign(
    image: &mut ClusterImage,
    partition: TopicPartition,
    target: &[u32],
) -> Result<PartitionChange, Rejection> {
    let partition_epoch = image.partition(partition).unwrap().partition_epoch;
    let reassignments = vec![Reassignment {
        partition,
        partition_epoch,
        target: target.iter().copied().map(node).collect(),
    }];
    only(image.apply(&Command::Reassign { reassignments }))
}

fn change_isr(
    image: &mut ClusterImage,
    partition: TopicPartition,
    isr: &[u32],
) -> Result<PartitionChange, Rejection> {
    let state = image.partition(partition).unwrap();
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
    only(image.apply(&Command::ChangeIsrs { changes }))
}

fn finish(
    image: &mut ClusterImage,
    partition: TopicPartition,
) -> Result<PartitionChange, Rejection> {
    let partition_epoch = image.partition(partition).unwrap().partition_epoch;
    let ends = vec![ReassignmentEnd {
        partition,
        partition_epoch,
    }];
    only(image.apply(&Command::FinishReassignments { ends }))
}

fn only(outcome: Result<Outcome, Rejection>) -> Result<PartitionChange, Rejection> {
    match outcome? {
        Outcome::Partitions(mut results) => results.remove(0),
        other => panic!("{other:?}"),
    }
}

fn ids(nodes: &[NodeId]) -> Vec<u32> {
    nodes.iter().map(|node| node.get()).collect()
}

#[test]
fn a_reassignment_keeps_the_old_replicas_until_the_in_sync_set_lies_within_the_target() {
    let (mut image, partition) = with_partition();
    reassign(&mut image, partition, &[4, 2, 1]).unwrap();
    let state = image.partition(partition).unwrap();
    assert_eq!(ids(&state.replicas), [4, 2, 1, 3]);
    assert_eq!(ids(&state.target_replicas), [4, 2, 1]);
    assert_eq!(ids(image.reassigned_from(partition).unwrap()), [1, 2, 3]);
    let before = image.clone();
    reassign(&mut image, partition, &[4, 2, 1]).unwrap();
    assert_eq!(image, before, "the same proposal again changes nothing");
    let refused = finish(&mut image, partition).unwrap_err();
    assert!(refused.to_string().contains("node 3"), "{refused}");
    change_isr(&mut image, partition, &[1, 2, 3, 4]).unwrap();
    assert!(finish(&mut image, partition).is_err());
    change_isr(&mut image, partition, &[1, 2, 4]).unwrap();
    finish(&mut image, partition).unwrap();
    let state = image.partition(partition).unwrap();
    assert_eq!(ids(&state.replicas), [4, 2, 1]);
    assert!(state.target_replicas.is_empty());
    assert!(image.reassigned_from(partition).is_none());
    assert!(finish(&mut image, partition).is_err(), "none is under way");
}

#[test]
fn a_reassignment_is_called_off_by_naming_what_there_was() {
    let (mut image, partition) = with_partition();
    reassign(&mut image, partition, &[4, 5]).unwrap();
    reassign(&mut image, partition, &[1, 2, 3]).unwrap();
    let state = image.partition(partition).unwrap();
    assert_eq!(
        ids(&state.replicas),
        [1, 2, 3],
        "at once: nobody had joined"
    );
    assert!(image.reassigned_from(partition).is_none());

    reassign(&mut image, partition, &[4, 2, 1]).unwrap();
    change_isr(&mut image, partition, &[1, 2, 3, 4]).unwrap();
    reassign(&mut image, partition, &[1, 2, 3]).unwrap();
    let state = image.partition(partition).unwrap();
    assert_eq!(ids(&state.replicas), [1, 2, 3, 4], "4 is in sync");
    change_isr(&mut image, partition, &[1, 2, 3]).unwrap();
    finish(&mut image, partition).unwrap();
    assert_eq!(
        ids(&image.partition(partition).unwrap().replicas),
        [1, 2, 3]
    );
}

#[test]
fn another_order_or_fewer_replicas_of_those_there_are_holds_at_once() {
    let (mut image, partition) = with_partition();
    reassign(&mut image, partition, &[3, 1, 2]).unwrap();
    assert!(image.reassigned_from(partition).is_none());
    change_isr(&mut image, partition, &[1, 2]).unwrap();
    reassign(&mut image, partition, &[2, 1]).unwrap();
    let state = image.partition(partition).unwrap();
    assert_eq!(ids(&state.replicas), [2, 1]);
    assert!(state.target_replicas.is_empty());
}

#[test]
fn reassignments_that_cannot_end_are_refused() {
    let (mut image, partition) = with_partition();
    for (target, word) in [
        (&[][..], "1 to"),
        (&[1, 2, 1], "twice"),
        (&[1, 2, 9], "not registered"),
        (&[4], "min.insync.replicas"),
    ] {
        let refused = reassign(&mut image, partition, target).unwrap_err();
        assert!(refused.to_string().contains(word), "{refused}");
    }
    let reassignments = vec![Reassignment {
        partition,
        partition_epoch: PartitionEpoch(9),
        target: vec![node(4), node(5)],
    }];
    let stale = only(image.apply(&Command::Reassign { reassignments }));
    assert!(matches!(stale, Err(Rejection::StaleEpoch { .. })));
}

#[test]
fn a_node_drains_until_it_starts_anew() {
    let mut image = image_with_nodes(2);
    let drain = |incarnation, on| Command::SetDraining {
        node: node(2),
        incarnation: Incarnation::from_random_bits(incarnation),
        on,
    };
    assert!(matches!(
        image.apply(&drain(9, true)),
        Err(Rejection::StaleIncarnation { .. })
    ));
    assert_eq!(image.apply(&drain(1, true)), Ok(Outcome::Done));
    assert_eq!(image.apply(&drain(1, true)), Ok(Outcome::Unchanged));
    assert!(image.is_draining(node(2)));
    let register = |incarnation| Command::RegisterNode {
        registration: Registration {
            kafka: None,
            quic: Endpoint {
                host: "elsewhere".to_owned(),
                port: 1,
            },
            ..registration(2, incarnation)
        },
    };
    image.apply(&register(1)).unwrap();
    assert!(image.is_draining(node(2)), "it has only moved");
    image.apply(&register(2)).unwrap();
    assert!(!image.is_draining(node(2)));
    image.apply(&drain(2, true)).unwrap();
    image.apply(&drain(2, false)).unwrap();
    assert!(!image.is_draining(node(2)));
}

#[test]
fn the_version_rises_with_the_last_node_and_until_then_nothing_new_is_in_the_log() {
    let mut image = ClusterImage::new();
    let cluster_id = ClusterId::from_random_bits(1);
    image.apply(&Command::InitCluster { cluster_id }).unwrap();
    let old = Registration {
        metadata_version: FIRST_METADATA_VERSION,
        ..registration(1, 1)
    };
    image
        .apply(&Command::RegisterNode { registration: old })
        .unwrap();
    let drain = Command::SetDraining {
        node: node(1),
        incarnation: Incarnation::from_random_bits(1),
        on: true,
    };
    assert!(matches!(
        image.apply(&drain),
        Err(Rejection::VersionTooLow { .. })
    ));
    let raise = Command::RaiseMetadataVersion {
        version: METADATA_VERSION,
    };
    assert!(matches!(
        image.apply(&raise),
        Err(Rejection::MetadataVersion { .. })
    ));
    image
        .apply(&Command::RegisterNode {
            registration: registration(1, 1),
        })
        .unwrap();
    assert_eq!(image.apply(&raise), Ok(Outcome::Done));
    assert_eq!(image.apply(&drain), Ok(Outcome::Done));
    let late = Registration {
        metadata_version: FIRST_METADATA_VERSION,
        ..registration(2, 1)
    };
    let refused = image.apply(&Command::RegisterNode { registration: late });
    assert!(matches!(refused, Err(Rejection::MetadataVersion { .. })));
}

#[test]
fn a_forced_leader_is_alone_in_sync_and_only_where_nobody_leads() {
    let (mut image, partition) = with_partition();
    let force = |image: &ClusterImage, id: u32| {
        let state = image.partition(partition).unwrap();
        Command::ForceLeaders {
            leaders: vec![ForcedLeader {
                partition,
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
                leader: image.registered(node(id)).unwrap(),
            }],
        }
    };
    change_isr(&mut image, partition, &[1, 2]).unwrap();
    let command = force(&image, 3);
    let refused = only(image.apply(&command));
    assert!(matches!(refused, Err(Rejection::HasLeader(_))));
    let state = image.partition(partition).unwrap();
    let elections = vec![ElectionStart {
        partition,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
    }];
    image.apply(&Command::StartElections { elections }).unwrap();
    let command = force(&image, 4);
    let refused = only(image.apply(&command));
    assert!(matches!(refused, Err(Rejection::InvalidIsr(_))));
    let command = force(&image, 3);
    only(image.apply(&command)).unwrap();
    let state = image.partition(partition).unwrap();
    assert_eq!(state.leader, image.registered(node(3)));
    assert_eq!(state.isr, state.leader.into_iter().collect::<Vec<_>>());
    assert_eq!(ids(&state.replicas), [1, 2, 3]);
    assert_eq!(state.forced_epoch, state.leader_epoch);
}

/// Its log may end below what the leader before it had committed: a deletion by that one's high watermark would hide what this
/// one commits.
#[test]
fn a_leader_from_before_a_forced_one_deletes_nothing() {
    let (mut image, partition) = with_partition();
    let delete = |leader_epoch: LeaderEpoch, before: u64| Command::DeleteRecords {
        deletions: vec![RecordDeletion {
            partition,
            before: Offset::new(before).unwrap(),
            leader_epoch,
        }],
    };
    let old = image.partition(partition).unwrap().leader_epoch;
    only(image.apply(&delete(old, 50))).unwrap();
    assert_eq!(image.deleted_before(partition).get(), 50);
    let state = image.partition(partition).unwrap();
    let elections = vec![ElectionStart {
        partition,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
    }];
    image.apply(&Command::StartElections { elections }).unwrap();
    let state = image.partition(partition).unwrap();
    let leaders = vec![ForcedLeader {
        partition,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
        leader: image.registered(node(3)).unwrap(),
    }];
    only(image.apply(&Command::ForceLeaders { leaders })).unwrap();
    assert_eq!(image.deleted_before(partition), Offset::ZERO);
    let refused = only(image.apply(&delete(old, 100)));
    assert!(matches!(refused, Err(Rejection::StaleEpoch { .. })));
    assert_eq!(image.deleted_before(partition), Offset::ZERO);
    let new = image.partition(partition).unwrap().leader_epoch;
    only(image.apply(&delete(new, 20))).unwrap();
    assert_eq!(image.deleted_before(partition).get(), 20);
}

#[test]
fn the_controllers_are_changed_only_as_they_were_seen() {
    let mut image = image_with_nodes(4);
    let set = |before, controllers| Command::SetControllers {
        before: nodes::<Vec<u32>>(before),
        controllers: nodes::<Vec<u32>>(controllers),
    };
    assert_eq!(
        image.apply(&set(vec![], vec![1, 2, 3, 4])),
        Ok(Outcome::Done)
    );
    assert_eq!(
        image.apply(&set(vec![], vec![1, 2, 3, 4])),
        Ok(Outcome::Unchanged)
    );
    assert_eq!(
        image.apply(&set(vec![], vec![1])),
        Err(Rejection::ControllersChanged)
    );
    let refused = image.apply(&set(vec![1, 2, 3, 4], vec![]));
    assert!(matches!(refused, Err(Rejection::InvalidControllers(_))));
}

#[test]
fn the_wish_for_min_insync_waits_for_the_leader() {
    let mut image = image_with_nodes(3);
    let request = CreateTopicRequest {
        name: TopicName::new("t").unwrap(),
        id: TopicId::from_random_bits(1),
        partitions: None,
        replication_factor: None,
        assignment: None,
        config: BTreeMap::new(),
    };
    let command = request.resolve(&image, &nodes(1..=3)).unwrap();
    image.apply(&command).unwrap();
    let change = Command::SetTopicConfigs {
        topic: request.id,
        changes: vec![ConfigChange::Set {
            name: "min.insync.replicas".to_owned(),
            value: "3".to_owned(),
        }],
    };
    image.apply(&change).unwrap();
    let partition = TopicPartition {
        topic: request.id,
        partition: PartitionIndex(0),
    };
    let state = image.partition(partition).unwrap().clone();
    assert_eq!(state.min_insync, 2);
    let changes = vec![IsrChange {
        partition,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
        new_isr: state.isr.clone(),
        min_insync: 3,
    }];
    let changed = image.apply(&Command::ChangeIsrs {
        changes: changes.clone(),
    });
    assert!(matches!(&changed, Ok(Outcome::Partitions(results)) if results[0].is_ok()));
    assert_eq!(image.partition(partition).unwrap().min_insync, 3);
    let before = image.clone();
    let again = image.apply(&Command::ChangeIsrs {
        changes: changes.clone(),
    });
    assert_eq!(again, changed, "its proposer may not have heard the answer");
    assert_eq!(image, before);
    let mut other = changes;
    other[0].min_insync = 1;
    let refused = image.apply(&Command::ChangeIsrs { changes: other });
    assert!(
        matches!(&refused, Ok(Outcome::Partitions(results)) if matches!(results[0], Err(Rejection::StaleEpoch { .. })))
    );
}

#[test]
fn producer_ids_are_given_once_and_end_before_they_wrap() {
    let mut image = image_with_nodes(1);
    let ask = Command::AllocateProducerIds {
        node: node(1),
        count: 1000,
    };
    let first = |outcome| match outcome {
        Ok(Outcome::ProducerIds { first, count: 1000 }) => first.get(),
        other => panic!("{other:?}"),
    };
    assert_eq!(first(image.apply(&ask)), 0);
    assert_eq!(first(image.apply(&ask)), 1000);
    image.next_producer_id = i64::MAX as u64 - 999;
    assert!(image.apply(&ask).is_err());
}

#[test]
fn named_listeners_come_with_the_version_that_knows_them_and_are_checked() {
    let mut image = ClusterImage::new();
    let cluster_id = ClusterId::from_random_bits(1);
    image.apply(&Command::InitCluster { cluster_id }).unwrap();
    let own = registration(1, 1);
    let with = |names: &[&str], port| {
        let mut registration = own.clone();
        for name in names {
            let host = "a".to_owned();
            let endpoint = Endpoint { host, port };
            let name = ListenerName::new(name).unwrap();
            registration.kafka_listeners.insert(name, endpoint);
        }
        Command::RegisterNode { registration }
    };
    image.apply(&with(&[], 1)).unwrap();
    assert!(matches!(
        image.apply(&with(&["internal"], 1)),
        Err(Rejection::VersionTooLow {
            needed: LISTENERS_SINCE,
            ..
        })
    ));
    let version = LISTENERS_SINCE;
    image
        .apply(&Command::RaiseMetadataVersion { version })
        .unwrap();
    assert_eq!(image.apply(&with(&["internal"], 1)), Ok(Outcome::Done));
    assert_eq!(image.apply(&with(&["internal"], 1)), Ok(Outcome::Unchanged));
    let eight = ["a", "b", "c", "d", "e", "f", "g", "h"];
    assert_eq!(image.apply(&with(&eight, 1)), Ok(Outcome::Done));
    let nine = [&eight[..], &["i"]].concat();
    for bad in [with(&nine, 1), with(&["a"], 0), with(&["default"], 1)] {
        assert!(matches!(image.apply(&bad), Err(Rejection::Malformed(_))));
    }
}
