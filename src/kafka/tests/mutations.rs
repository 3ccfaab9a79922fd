//! Every request in every version, whole and damaged.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::add_partitions_to_txn_request::{
    AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use kafka_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_client_quotas_request::ComponentData;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_user_scram_credentials_request::UserName;
use kafka_protocol::messages::fetch_request::ForgottenTopic;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::write_txn_markers_request::{
    WritableTxnMarker, WritableTxnMarkerTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Request, StrBytes};
use proptest::prelude::*;

use super::batch;
use super::client::{encode, fetch, name, produce};
use crate::kafka::codec::{Header, is_request, read_header};
use crate::kafka::versions::SERVED_APIS;
use crate::kafka::{preflight, schema};

/// Tells the child process of a test to be the child.
const CHILD_VARIABLE: &str = "QUORATE_TEST_MUTATIONS_CHILD";
/// What the child may use beyond what it has at its start.
const CHILD_ADDRESS_SPACE_BYTES: u64 = 192 << 20;

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

/// A request with something in every list that the version has.
fn sample(key: ApiKey, version: i16) -> BytesMut {
    fn encoded<R: Request>(request: R, version: i16) -> BytesMut {
        encode(&request, version, 3)
    }
    match key {
        ApiKey::Produce => encoded(produce("orders", 2, batch(&["x", "y"]), -1), version),
        ApiKey::Fetch => {
            let request = fetch("orders", &[1, 2]);
            let forgotten = ForgottenTopic::default()
                .with_topic(name("old"))
                .with_partitions(vec![1, 2]);
            let forgotten = if version >= 7 {
                vec![forgotten]
            } else {
                vec![]
            };
            encoded(request.with_forgotten_topics_data(forgotten), version)
        }
        ApiKey::ListOffsets => {
            let partition = ListOffsetsPartition::default().with_timestamp(-1);
            let topic = ListOffsetsTopic::default()
                .with_name(name("orders"))
                .with_partitions(vec![partition.clone(), partition]);
            encoded(
                ListOffsetsRequest::default().with_topics(vec![topic]),
                version,
            )
        }
        ApiKey::Metadata => {
            let topic = MetadataRequestTopic::default().with_name(Some(name("orders")));
            let request = MetadataRequest::default()
                .with_topics(Some(vec![topic.clone(), topic]))
                .with_allow_auto_topic_creation(true);
            encoded(request, version)
        }
        ApiKey::FindCoordinator if version < 4 => encoded(
            FindCoordinatorRequest::default().with_key(text("group")),
            version,
        ),
        ApiKey::FindCoordinator => encoded(
            FindCoordinatorRequest::default().with_coordinator_keys(vec![text("group")]),
            version,
        ),
        ApiKey::ApiVersions => encoded(
            ApiVersionsRequest::default()
                .with_client_software_name(text(if version >= 3 { "test" } else { "" }))
                .with_client_software_version(text(if version >= 3 { "1" } else { "" })),
            version,
        ),
        ApiKey::CreateTopics => {
            let assignment =
                CreatableReplicaAssignment::default().with_broker_ids(vec![1.into(), 2.into()]);
            let config = CreatableTopicConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("1")));
            let topic = CreatableTopic::default()
                .with_name(name("orders"))
                .with_assignments(vec![assignment])
                .with_configs(vec![config]);
            encoded(
                CreateTopicsRequest::default().with_topics(vec![topic]),
                version,
            )
        }
        ApiKey::DeleteTopics => {
            let request = if version >= 6 {
                let topic = DeleteTopicState::default().with_name(Some(name("orders")));
                DeleteTopicsRequest::default().with_topics(vec![topic])
            } else {
                DeleteTopicsRequest::default().with_topic_names(vec![name("orders")])
            };
            encoded(request, version)
        }
        ApiKey::InitProducerId => encoded(
            InitProducerIdRequest::default().with_transactional_id(None),
            version,
        ),
        ApiKey::DescribeConfigs => {
            let resource = DescribeConfigsResource::default()
                .with_resource_name(text("orders"))
                .with_configuration_keys(Some(vec![text("retention.ms")]));
            encoded(
                DescribeConfigsRequest::default().with_resources(vec![resource]),
                version,
            )
        }
        ApiKey::CreatePartitions => {
            let assignment =
                CreatePartitionsAssignment::default().with_broker_ids(vec![1.into(), 2.into()]);
            let topic = CreatePartitionsTopic::default()
                .with_name(name("orders"))
                .with_assignments(Some(vec![assignment]));
            encoded(
                CreatePartitionsRequest::default().with_topics(vec![topic]),
                version,
            )
        }
        ApiKey::AlterConfigs => {
            let config = alter_configs_request::AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("1")));
            let resource = alter_configs_request::AlterConfigsResource::default()
                .with_resource_name(text("orders"))
                .with_configs(vec![config]);
            encoded(
                AlterConfigsRequest::default().with_resources(vec![resource]),
                version,
            )
        }
        ApiKey::IncrementalAlterConfigs => {
            let config = AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("1")));
            let resource = AlterConfigsResource::default()
                .with_resource_name(text("orders"))
                .with_configs(vec![config]);
            encoded(
                IncrementalAlterConfigsRequest::default().with_resources(vec![resource]),
                version,
            )
        }
        ApiKey::DescribeCluster => encoded(DescribeClusterRequest::default(), version),
        ApiKey::DescribeClientQuotas => {
            let component = ComponentData::default()
                .with_entity_type(text("user"))
                .with_match(Some(text("me")));
            encoded(
                DescribeClientQuotasRequest::default().with_components(vec![component]),
                version,
            )
        }
        ApiKey::SaslHandshake => encoded(
            SaslHandshakeRequest::default().with_mechanism(text("PLAIN")),
            version,
        ),
        ApiKey::SaslAuthenticate => encoded(
            SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from_static(b"x")),
            version,
        ),
        ApiKey::DescribeUserScramCredentials => {
            let user = UserName::default().with_name(text("me"));
            encoded(
                DescribeUserScramCredentialsRequest::default().with_users(Some(vec![user])),
                version,
            )
        }
        ApiKey::AlterUserScramCredentials => {
            let deletion = ScramCredentialDeletion::default().with_name(text("you"));
            let upsertion = ScramCredentialUpsertion::default()
                .with_name(text("me"))
                .with_salt(Bytes::from_static(b"salt"))
                .with_salted_password(Bytes::from_static(b"salted"));
            let request = AlterUserScramCredentialsRequest::default()
                .with_deletions(vec![deletion])
                .with_upsertions(vec![upsertion]);
            encoded(request, version)
        }
        ApiKey::DeleteRecords => {
            let topic = DeleteRecordsTopic::default()
                .with_name(name("orders"))
                .with_partitions(vec![DeleteRecordsPartition::default()]);
            encoded(
                DeleteRecordsRequest::default().with_topics(vec![topic]),
                version,
            )
        }
        ApiKey::OffsetForLeaderEpoch => {
            let topic = OffsetForLeaderTopic::default()
                .with_topic(name("orders"))
                .with_partitions(vec![OffsetForLeaderPartition::default()]);
            encoded(
                OffsetForLeaderEpochRequest::default().with_topics(vec![topic]),
                version,
            )
        }
        key => group_sample(key, version),
    }
}

/// The same for the requests of consumer groups.
fn group_sample(key: ApiKey, version: i16) -> BytesMut {
    fn encoded<R: Request>(request: R, version: i16) -> BytesMut {
        encode(&request, version, 3)
    }
    let group = GroupId(text("group"));
    let instance = |since: i16| (version >= since).then(|| text("instance"));
    match key {
        ApiKey::OffsetCommit => {
            let partition = OffsetCommitRequestPartition::default()
                .with_committed_metadata(Some(text("metadata")));
            let topic = OffsetCommitRequestTopic::default()
                .with_name(name("orders"))
                .with_partitions(vec![partition.clone(), partition]);
            let request = OffsetCommitRequest::default()
                .with_group_id(group)
                .with_member_id(text("member"))
                .with_group_instance_id(instance(7))
                .with_topics(vec![topic]);
            encoded(request, version)
        }
        ApiKey::OffsetFetch if version < 8 => {
            let topic = OffsetFetchRequestTopic::default()
                .with_name(name("orders"))
                .with_partition_indexes(vec![0, 1]);
            let request = OffsetFetchRequest::default()
                .with_group_id(group)
                .with_topics(Some(vec![topic]));
            encoded(request, version)
        }
        ApiKey::OffsetFetch => {
            let topic = OffsetFetchRequestTopics::default()
                .with_name(name("orders"))
                .with_partition_indexes(vec![0, 1]);
            let asked = OffsetFetchRequestGroup::default()
                .with_group_id(group)
                .with_member_id((version >= 9).then(|| text("member")))
                .with_topics(Some(vec![topic]));
            encoded(
                OffsetFetchRequest::default().with_groups(vec![asked]),
                version,
            )
        }
        ApiKey::OffsetDelete => {
            let topic = OffsetDeleteRequestTopic::default()
                .with_name(name("orders"))
                .with_partitions(vec![OffsetDeleteRequestPartition::default()]);
            let request = OffsetDeleteRequest::default()
                .with_group_id(group)
                .with_topics(vec![topic]);
            encoded(request, version)
        }
        ApiKey::JoinGroup => {
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(text("range"))
                .with_metadata(Bytes::from_static(b"metadata"));
            let request = JoinGroupRequest::default()
                .with_group_id(group)
                .with_group_instance_id(instance(5))
                .with_protocol_type(text("consumer"))
                .with_protocols(vec![protocol.clone(), protocol])
                .with_reason((version >= 8).then(|| text("because")));
            encoded(request, version)
        }
        ApiKey::SyncGroup => {
            let assignment = SyncGroupRequestAssignment::default()
                .with_member_id(text("member"))
                .with_assignment(Bytes::from_static(b"assignment"));
            let request = SyncGroupRequest::default()
                .with_group_id(group)
                .with_group_instance_id(instance(3))
                .with_protocol_type((version >= 5).then(|| text("consumer")))
                .with_protocol_name((version >= 5).then(|| text("range")))
                .with_assignments(vec![assignment]);
            encoded(request, version)
        }
        ApiKey::Heartbeat => {
            let request = HeartbeatRequest::default()
                .with_group_id(group)
                .with_member_id(text("member"))
                .with_group_instance_id(instance(3));
            encoded(request, version)
        }
        ApiKey::LeaveGroup if version < 3 => {
            let request = LeaveGroupRequest::default()
                .with_group_id(group)
                .with_member_id(text("member"));
            encoded(request, version)
        }
        ApiKey::LeaveGroup => {
            let member = MemberIdentity::default()
                .with_member_id(text("member"))
                .with_group_instance_id(instance(3))
                .with_reason((version >= 5).then(|| text("because")));
            let request = LeaveGroupRequest::default()
                .with_group_id(group)
                .with_members(vec![member.clone(), member]);
            encoded(request, version)
        }
        ApiKey::ListGroups => {
            let states = if version >= 4 {
                vec![text("Stable")]
            } else {
                vec![]
            };
            let types = if version >= 5 {
                vec![text("classic")]
            } else {
                vec![]
            };
            let request = ListGroupsRequest::default()
                .with_states_filter(states)
                .with_types_filter(types);
            encoded(request, version)
        }
        ApiKey::DescribeGroups => encoded(
            DescribeGroupsRequest::default().with_groups(vec![group.clone(), group]),
            version,
        ),
        ApiKey::DeleteGroups => encoded(
            DeleteGroupsRequest::default().with_groups_names(vec![group.clone(), group]),
            version,
        ),
        ApiKey::TxnOffsetCommit => {
            let partition =
                TxnOffsetCommitRequestPartition::default().with_committed_metadata(Some(text("m")));
            let topic = TxnOffsetCommitRequestTopic::default()
                .with_name(name("orders"))
                .with_partitions(vec![partition.clone(), partition]);
            let request = TxnOffsetCommitRequest::default()
                .with_transactional_id(TransactionalId(text("t")))
                .with_group_id(group)
                .with_topics(vec![topic.clone(), topic]);
            let request = match version {
                3.. => request
                    .with_member_id(text("m"))
                    .with_group_instance_id(Some(text("i"))),
                _ => request,
            };
            encoded(request, version)
        }
        ApiKey::WriteTxnMarkers => {
            let topic = WritableTxnMarkerTopic::default()
                .with_name(name("orders"))
                .with_partition_indexes(vec![0, 1]);
            let marker = WritableTxnMarker::default()
                .with_producer_id(7.into())
                .with_topics(vec![topic.clone(), topic]);
            encoded(
                WriteTxnMarkersRequest::default().with_markers(vec![marker.clone(), marker]),
                version,
            )
        }
        ApiKey::DescribeProducers => {
            let topic = describe_producers_request::TopicRequest::default()
                .with_name(name("orders"))
                .with_partition_indexes(vec![0, 1]);
            encoded(
                DescribeProducersRequest::default().with_topics(vec![topic.clone(), topic]),
                version,
            )
        }
        ApiKey::ConsumerGroupHeartbeat => {
            let owned = consumer_group_heartbeat_request::TopicPartitions::default()
                .with_topic_id(uuid::Uuid::from_u128(7))
                .with_partitions(vec![0, 1]);
            let request = ConsumerGroupHeartbeatRequest::default()
                .with_group_id(group)
                .with_member_id(text("m"))
                .with_instance_id(Some(text("i")))
                .with_rack_id(Some(text("r")))
                .with_subscribed_topic_names(Some(vec![name("orders"), name("orders")]))
                .with_subscribed_topic_regex((version >= 1).then(|| text("o.*")))
                .with_server_assignor(Some(text("uniform")))
                .with_topic_partitions(Some(vec![owned.clone(), owned]));
            encoded(request, version)
        }
        ApiKey::ConsumerGroupDescribe => encoded(
            ConsumerGroupDescribeRequest::default().with_group_ids(vec![group.clone(), group]),
            version,
        ),
        ApiKey::AddPartitionsToTxn
        | ApiKey::AddOffsetsToTxn
        | ApiKey::EndTxn
        | ApiKey::DescribeTransactions
        | ApiKey::ListTransactions => transaction_sample(key, version),
        other => panic!("{other:?} is served and has no sample"),
    }
}

/// The same for the requests about transactions.
fn transaction_sample(key: ApiKey, version: i16) -> BytesMut {
    fn encoded<R: Request>(request: R, version: i16) -> BytesMut {
        encode(&request, version, 3)
    }
    let id = TransactionalId(text("id"));
    match key {
        ApiKey::AddPartitionsToTxn => {
            let topic = AddPartitionsToTxnTopic::default()
                .with_name(name("orders"))
                .with_partitions(vec![0, 1]);
            let request = AddPartitionsToTxnRequest::default();
            let request = if version < 4 {
                request
                    .with_v3_and_below_transactional_id(id)
                    .with_v3_and_below_topics(vec![topic.clone(), topic])
            } else {
                let transaction = AddPartitionsToTxnTransaction::default()
                    .with_transactional_id(id)
                    .with_topics(vec![topic.clone(), topic]);
                request.with_transactions(vec![transaction.clone(), transaction])
            };
            encoded(request, version)
        }
        ApiKey::AddOffsetsToTxn => {
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(id)
                .with_group_id(GroupId(text("group")));
            encoded(request, version)
        }
        ApiKey::EndTxn => encoded(EndTxnRequest::default().with_transactional_id(id), version),
        ApiKey::DescribeTransactions => encoded(
            DescribeTransactionsRequest::default().with_transactional_ids(vec![id.clone(), id]),
            version,
        ),
        _ => {
            let request = ListTransactionsRequest::default()
                .with_state_filters(vec![text("Ongoing"), text("Empty")])
                .with_producer_id_filters(vec![1.into(), 2.into()]);
            encoded(request, version)
        }
    }
}

/// Every request that is served, in every version.
fn all() -> Vec<(ApiKey, i16, BytesMut)> {
    let versions = |min, max| min..=max;
    SERVED_APIS
        .iter()
        .flat_map(|api| versions(api.min, api.max).map(|v| (api.key, v, sample(api.key, v))))
        .collect()
}

#[test]
fn the_schema_fits_every_request_to_the_byte() {
    for (key, version, frame) in all() {
        let frame = frame.freeze();
        let Ok(Header::Request(request)) = read_header(frame.clone()) else {
            panic!("{key:?} {version} was refused");
        };
        assert!(is_request(frame), "{key:?} {version}");
        let body = request.body();
        let left = preflight::check(schema::of(key).unwrap(), version, &body);
        assert_eq!(left.unwrap().left_over, 0, "{key:?} {version}");
        for cut in 0..body.len() {
            let short = preflight::check(schema::of(key).unwrap(), version, &body[..cut]);
            assert!(short.is_err(), "{key:?} {version} cut at {cut}");
        }
    }
}

/// One way to damage a request.
#[derive(Clone, Debug)]
enum Damage {
    Byte(prop::sample::Index, u8),
    /// A large or negative length, plain or as a varint.
    Length(prop::sample::Index, usize),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

const LENGTHS: [&[u8]; 6] = [
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x00, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xfe],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x7f, 0xff],
];

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, b)| Damage::Byte(at, b)),
        3 => (any::<prop::sample::Index>(), 0..LENGTHS.len()).prop_map(|(at, l)| Damage::Length(at, l)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

fn apply(frame: &mut Vec<u8>, damage: &Damage) {
    match damage {
        Damage::Byte(at, byte) if !frame.is_empty() => {
            let at = at.index(frame.len());
            frame[at] = *byte;
        }
        Damage::Length(at, which) if !frame.is_empty() => {
            let at = at.index(frame.len());
            for (to, from) in frame[at..].iter_mut().zip(LENGTHS[*which]) {
                *to = *from;
            }
        }
        Damage::Cut(at) => frame.truncate(at.index(frame.len() + 1)),
        Damage::Insert(at, bytes) => {
            let at = at.index(frame.len() + 1);
            frame.splice(at..at, bytes.iter().copied());
        }
        Damage::Byte(..) | Damage::Length(..) => {}
    }
}

/// Damages requests at random and decodes what is let through. A panic fails the test, and so does an allocation
/// beyond the address space of the process, which aborts it.
fn damage_at_random(cases: u32) {
    let samples = all();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let strategy = (
        any::<prop::sample::Index>(),
        prop::collection::vec(damage(), 1..6),
    );
    let outcome = runner.run(&strategy, |(which, damages)| {
        let (_, _, frame) = which.get(&samples);
        let mut frame = frame.to_vec();
        for damage in &damages {
            apply(&mut frame, damage);
        }
        is_request(Bytes::from(frame));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn no_damaged_request_panics_or_asks_for_memory_that_it_did_not_bring() {
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        limit_address_space();
        damage_at_random(100_000);
        return;
    }
    // The limit holds for a whole process, so it needs one of its own.
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg(concat!(
            "kafka::tests::mutations::",
            "no_damaged_request_panics_or_asks_for_memory_that_it_did_not_bring"
        ))
        .env(CHILD_VARIABLE, "1")
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}\n{}",
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(told.contains("1 passed"), "{told}");
}

fn limit_address_space() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find(|line| line.starts_with("VmSize:"));
    let kib: u64 = size
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap()
        .parse()
        .unwrap();
    let used = kib * 1024;
    let maximum = getrlimit(Resource::As).maximum;
    let limit = Rlimit {
        current: Some(used + CHILD_ADDRESS_SPACE_BYTES),
        maximum,
    };
    setrlimit(Resource::As, limit).unwrap();
}

#[test]
fn more_elements_than_the_limit_are_refused_however_small_they_are() {
    use crate::kafka::limits::MAX_REQUEST_ELEMENTS;
    let metadata = schema::of(ApiKey::Metadata).unwrap();
    let names = |count: usize| {
        let mut body = (count as u32).to_be_bytes().to_vec();
        // Empty names: two bytes each.
        body.resize(4 + 2 * count, 0);
        body
    };
    let most = preflight::check(metadata, 1, &names(MAX_REQUEST_ELEMENTS)).unwrap();
    assert_eq!(most.elements, MAX_REQUEST_ELEMENTS);
    assert!(preflight::check(metadata, 1, &names(MAX_REQUEST_ELEMENTS + 1)).is_err());
    // The same in tagged fields, which the decoder keeps in a map.
    let mut body = vec![0, 1, 0, 0];
    body.extend_from_slice(&[0xff, 0xff, 0x7f]);
    body.resize(8 << 20, 0);
    assert!(preflight::check(metadata, 9, &body).is_err());
}
