//! Consumer groups as a client sees them, in every version.

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

use super::client::{Client, connect, name, produce};
use super::double::Double;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group(name: &str) -> GroupId {
    GroupId(text(name))
}

fn join(group_name: &str, member: &str) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(bytes::Bytes::from_static(b"metadata"));
    JoinGroupRequest::default()
        .with_group_id(group(group_name))
        .with_session_timeout_ms(10_000)
        .with_member_id(text(member))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

/// The only member of a group, by the steps of this version of JoinGroup; the member id and the generation.
async fn member(client: &mut Client, group_name: &str, version: i16) -> (StrBytes, i32) {
    let mut joined = client.call(&join(group_name, ""), version).await;
    if version >= 4 {
        assert_eq!(joined.error_code, 79);
        let id = joined.member_id.clone();
        joined = client.call(&join(group_name, &id), version).await;
    }
    assert_eq!(joined.error_code, 0);
    assert_eq!(joined.leader, joined.member_id);
    assert_eq!(joined.members.len(), 1);
    assert_eq!(joined.protocol_name.as_deref(), Some("range"));
    (joined.member_id, joined.generation_id)
}

async fn sync(client: &mut Client, group_name: &str, id: &StrBytes, generation: i32, version: i16) {
    let given = SyncGroupRequestAssignment::default()
        .with_member_id(id.clone())
        .with_assignment(bytes::Bytes::from_static(b"share"));
    let request = SyncGroupRequest::default()
        .with_group_id(group(group_name))
        .with_member_id(id.clone())
        .with_generation_id(generation)
        .with_assignments(vec![given]);
    let synced = client.call(&request, version).await;
    assert_eq!(
        (synced.error_code, &synced.assignment[..]),
        (0, &b"share"[..])
    );
}

fn commit(
    group_name: &str,
    id: &StrBytes,
    generation: i32,
    partitions: &[i32],
) -> OffsetCommitRequest {
    let partitions = partitions.iter().map(|&partition| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(40 + i64::from(partition))
            .with_committed_metadata(Some(text("note")))
    });
    OffsetCommitRequest::default()
        .with_group_id(group(group_name))
        .with_member_id(id.clone())
        .with_generation_id_or_member_epoch(generation)
        .with_topics(vec![
            OffsetCommitRequestTopic::default()
                .with_name(name("orders"))
                .with_partitions(partitions.collect()),
        ])
}

#[tokio::test]
async fn a_coordinator_is_found_in_every_version() {
    let mut client = connect(&Double::new());
    for version in 0..=3 {
        let request = FindCoordinatorRequest::default().with_key(text("group"));
        let found = client.call(&request, version).await;
        assert_eq!(
            (found.error_code, found.node_id.0, found.port),
            (0, 2, 9102)
        );
    }
    for version in 4..=6 {
        let keys = vec![text("group"), text("group"), text("unreachable"), text("")];
        let request = FindCoordinatorRequest::default().with_coordinator_keys(keys);
        let found = client.call(&request, version).await.coordinators;
        let codes: Vec<_> = found.iter().map(|c| (c.error_code, c.node_id.0)).collect();
        assert_eq!(codes, [(0, 2), (15, -1), (24, -1)]);
    }
    // Share groups, and what there is not.
    for kind in [2, 3] {
        let request = FindCoordinatorRequest::default()
            .with_key(text("id"))
            .with_key_type(kind);
        assert_eq!(client.call(&request, 2).await.error_code, 42);
    }
}

#[tokio::test]
async fn a_member_joins_commits_and_leaves_in_every_version() {
    let double = Double::new().with_topic("orders", 2);
    let mut client = connect(&double);
    for version in 0..=9 {
        let name_of_group = format!("group-{version}");
        let (id, generation) = member(&mut client, &name_of_group, version).await;
        sync(&mut client, &name_of_group, &id, generation, version.min(5)).await;
        let beat = HeartbeatRequest::default()
            .with_group_id(group(&name_of_group))
            .with_member_id(id.clone())
            .with_generation_id(generation);
        assert_eq!(client.call(&beat, version.min(4)).await.error_code, 0);
        let late = beat.clone().with_generation_id(generation + 1);
        assert_eq!(client.call(&late, version.min(4)).await.error_code, 22);

        // Partition 7 is not there.
        let request = commit(&name_of_group, &id, generation, &[0, 7, 1]);
        let done = client.call(&request, version.max(2)).await;
        let codes = done.topics[0].partitions.iter().map(|p| p.error_code);
        assert_eq!(codes.collect::<Vec<_>>(), [0, 3, 0]);
        let fenced = commit(&name_of_group, &text("other"), generation, &[0, 1]);
        let done = client.call(&fenced, version.max(2)).await;
        let codes = done.topics[0].partitions.iter().map(|p| p.error_code);
        assert_eq!(codes.collect::<Vec<_>>(), [25, 25]);

        let leave = LeaveGroupRequest::default().with_group_id(group(&name_of_group));
        if version < 3 {
            let leave = leave.with_member_id(id);
            assert_eq!(client.call(&leave, version).await.error_code, 0);
        } else {
            let one = MemberIdentity::default().with_member_id(id);
            let leave = leave.with_members(vec![one.clone(), one]);
            let left = client.call(&leave, version.min(5)).await;
            let codes: Vec<_> = left.members.iter().map(|m| m.error_code).collect();
            assert_eq!(codes, [0, 25]);
        }
    }
}

#[tokio::test]
async fn offsets_are_fetched_and_deleted_in_every_version() {
    let double = Double::new().with_topic("orders", 2);
    let mut client = connect(&double);
    let request = commit("group", &text(""), -1, &[0, 1]);
    client.call(&request, 9).await;
    for version in 1..=7 {
        let topic = OffsetFetchRequestTopic::default()
            .with_name(name("orders"))
            .with_partition_indexes(vec![1, 5]);
        let request = OffsetFetchRequest::default()
            .with_group_id(group("group"))
            .with_topics(Some(vec![topic]));
        let found = client.call(&request, version).await;
        assert_eq!(found.error_code, 0);
        let offsets: Vec<_> = found.topics[0]
            .partitions
            .iter()
            .map(|p| (p.partition_index, p.committed_offset, p.error_code))
            .collect();
        assert_eq!(offsets, [(1, 41, 0), (5, -1, 0)]);
        let elsewhere = request.with_group_id(group("elsewhere"));
        let found = client.call(&elsewhere, version).await;
        match version {
            1 => assert_eq!(found.topics[0].partitions[0].error_code, 16),
            _ => assert_eq!(found.error_code, 16),
        }
    }
    for version in 8..=9 {
        let one = |name_of_group: &str, topics| {
            OffsetFetchRequestGroup::default()
                .with_group_id(group(name_of_group))
                .with_topics(topics)
        };
        let topic = OffsetFetchRequestTopics::default()
            .with_name(name("orders"))
            .with_partition_indexes(vec![0]);
        let groups = vec![
            one("group", None),
            one("group", None),
            one("unknown", Some(vec![topic])),
            one("loading", None),
        ];
        let request = OffsetFetchRequest::default().with_groups(groups);
        let found = client.call(&request, version).await.groups;
        let codes: Vec<_> = found.iter().map(|g| g.error_code).collect();
        assert_eq!(codes, [0, 0, 14]);
        assert_eq!(found[0].topics[0].partitions.len(), 2);
        assert_eq!(found[1].topics[0].partitions[0].committed_offset, -1);
    }
    let topic = OffsetDeleteRequestTopic::default()
        .with_name(name("orders"))
        .with_partitions(vec![OffsetDeleteRequestPartition::default()]);
    let request = OffsetDeleteRequest::default()
        .with_group_id(group("group"))
        .with_topics(vec![topic]);
    let deleted = client.call(&request, 0).await;
    assert_eq!(deleted.topics[0].partitions[0].error_code, 0);
    let unknown = request.with_group_id(group("unknown"));
    assert_eq!(client.call(&unknown, 0).await.error_code, 69);
}

#[tokio::test]
async fn groups_are_listed_described_and_deleted_in_every_version() {
    let double = Double::new().with_topic("orders", 1);
    let mut client = connect(&double);
    let (id, generation) = member(&mut client, "alive", 5).await;
    sync(&mut client, "alive", &id, generation, 3).await;
    client.call(&commit("idle", &text(""), -1, &[0]), 8).await;
    for version in 0..=5 {
        let listed = client.call(&ListGroupsRequest::default(), version).await;
        let names: Vec<_> = listed.groups.iter().map(|g| g.group_id.as_str()).collect();
        assert_eq!(names, ["alive", "idle"]);
    }
    let stable = ListGroupsRequest::default().with_states_filter(vec![text("stable")]);
    assert_eq!(client.call(&stable, 4).await.groups.len(), 1);
    let gone = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group("alive")]);
    let described = client.call(&gone, 1).await.groups;
    assert_eq!(described[0].error_code, 69, "of the older protocol");
    let newer = ListGroupsRequest::default().with_types_filter(vec![text("consumer")]);
    assert_eq!(client.call(&newer, 5).await.groups.len(), 0);

    for version in 0..=6 {
        let groups = vec![group("alive"), group("alive"), group("nobody")];
        let request = DescribeGroupsRequest::default().with_groups(groups);
        let described = client.call(&request, version).await.groups;
        assert_eq!(described.len(), 2);
        assert_eq!(&*described[0].group_state, "Stable");
        assert_eq!(&*described[0].members[0].client_host, "/192.0.2.1");
        assert_eq!(&*described[0].members[0].client_id, "a test");
        assert_eq!(&described[0].members[0].member_assignment[..], b"share");
        assert_eq!(&*described[1].group_state, "Dead");
        assert_eq!(described[1].error_code, if version < 6 { 0 } else { 69 });
    }
    for version in 0..=2 {
        client.call(&commit("idle", &text(""), -1, &[0]), 8).await;
        let groups = vec![group("alive"), group("idle"), group("nobody"), group("")];
        let request = DeleteGroupsRequest::default().with_groups_names(groups);
        let deleted = client.call(&request, version).await.results;
        let codes: Vec<_> = deleted.iter().map(|g| g.error_code).collect();
        assert_eq!(codes, [68, 0, 69, 24]);
    }
}

#[tokio::test]
async fn names_beyond_the_limit_are_refused_with_kafkas_code() {
    let mut client = connect(&Double::new());
    let long = "g".repeat(300);
    let joined = client.call(&join(&long, ""), 9).await;
    assert_eq!(joined.error_code, 24);
    let request = FindCoordinatorRequest::default().with_key(text(&long));
    assert_eq!(client.call(&request, 3).await.error_code, 24);
    let done = client.call(&commit(&long, &text(""), -1, &[0]), 9).await;
    assert_eq!(done.topics[0].partitions[0].error_code, 24);
    // A heartbeat of a group that is still loading is nobody's fault.
    let beat = HeartbeatRequest::default().with_group_id(group("loading"));
    assert_eq!(client.call(&beat, 4).await.error_code, 0);
}

#[tokio::test]
async fn the_clusters_own_topics_are_not_for_clients_to_write_or_delete() {
    let double = Double::new().with_topic("__consumer_offsets", 1);
    let mut client = connect(&double);
    let request = produce("__consumer_offsets", 0, super::batch(&["x"]), -1);
    let answer = client.call(&request, 9).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 17);
    let request = DeleteTopicsRequest::default().with_topic_names(vec![name("__consumer_offsets")]);
    assert_eq!(client.call(&request, 5).await.responses[0].error_code, 17);
    let metadata = MetadataRequest::default()
        .with_topics(Some(vec![
            metadata_request::MetadataRequestTopic::default()
                .with_name(Some(name("__transaction_state"))),
        ]))
        .with_allow_auto_topic_creation(true);
    assert_eq!(client.call(&metadata, 9).await.topics[0].error_code, 3);
}

#[tokio::test]
async fn a_member_of_the_newer_protocol_joins_commits_is_described_and_leaves_in_every_version() {
    for version in 0..=1 {
        let double = Double::new().with_topic("orders", 3);
        let mut client = connect(&double);
        let id = if version == 0 { text("") } else { text("mine") };
        let joining = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(group("newer"))
            .with_member_id(id)
            .with_rebalance_timeout_ms(30_000)
            .with_subscribed_topic_names(Some(vec![name("orders")]))
            .with_topic_partitions(Some(Vec::new()));
        let joined = client.call(&joining, version).await;
        assert_eq!((joined.error_code, joined.member_epoch), (0, 1));
        assert_eq!(joined.heartbeat_interval_ms, 5_000);
        let given = joined.assignment.unwrap().topic_partitions;
        assert_eq!(given[0].partitions, [0, 1, 2]);
        let id = joined.member_id.unwrap();
        let nobody = joining.clone().with_member_id(text(""));
        let code = client.call(&nobody, 1).await.error_code;
        assert_eq!(code, 42, "clients choose ids since version 1");

        let done = client.call(&commit("newer", &id, 1, &[0]), 9).await;
        assert_eq!(done.topics[0].partitions[0].error_code, 0);
        let stale = client.call(&commit("newer", &id, 7, &[0]), 9).await;
        assert_eq!(stale.topics[0].partitions[0].error_code, 113);
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(group("newer"))
            .with_member_id(Some(id.clone()))
            .with_member_epoch(7)
            .with_topics(None);
        let request = OffsetFetchRequest::default().with_groups(vec![asked]);
        assert_eq!(client.call(&request, 9).await.groups[0].error_code, 113);

        let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![
            group("newer"),
            group("newer"),
            group("nobody"),
        ]);
        let described = client.call(&request, version).await.groups;
        assert_eq!(described.len(), 2);
        assert_eq!(described[1].error_code, 69);
        let found = &described[0];
        assert_eq!((found.error_code, &*found.group_state), (0, "Stable"));
        assert_eq!((found.group_epoch, found.assignment_epoch), (1, 1));
        assert_eq!(&*found.assignor_name, "uniform");
        let target = &found.members[0].target_assignment.topic_partitions[0];
        assert_eq!(
            (&*target.topic_name.0, &target.partitions[..]),
            ("orders", &[0, 1, 2][..])
        );
        let request = DescribeGroupsRequest::default().with_groups(vec![group("newer")]);
        assert_eq!(client.call(&request, 6).await.groups[0].error_code, 69);
        let newer = ListGroupsRequest::default().with_types_filter(vec![text("Consumer")]);
        let listed = client.call(&newer, 5).await.groups;
        assert_eq!((listed.len(), &*listed[0].group_type), (1, "consumer"));

        let leaving = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(group("newer"))
            .with_member_id(id)
            .with_member_epoch(-1);
        assert_eq!(client.call(&leaving, version).await.member_epoch, -1);
        assert_eq!(client.call(&leaving, version).await.error_code, 25);
    }
}
