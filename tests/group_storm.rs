//! A crowd of members that join a consumer group and are gone again, and the groups beside it. It has a test binary of its own, and
//! with it the machine: what it asks is what the crowd costs others, and not what clusters of other tests cost them.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::{GroupId, JoinGroupRequest};
use support::cluster::Cluster;
use support::groups::{OFFSETS_VERSION, commit, committed, coordinator, text};
use support::kafka::Kafka;
use support::{PATIENCE, until};

/// The first step of a member that wants to be let in, by the version that needs no second one.
fn join(group: &str, metadata: usize) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(vec![7; metadata].into());
    JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_session_timeout_ms(6000)
        .with_rebalance_timeout_ms(6000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_members_that_join_and_are_gone_costs_other_groups_nothing() {
    const CROWD: usize = 20;
    const JOINS: usize = 150;
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 1).await;
    let (node, _) = coordinator(&cluster, "stormy").await;
    let mut calm = None;
    for number in 0.. {
        let group = format!("calm-{number}");
        if coordinator(&cluster, &group).await.0 == node {
            calm = Some(group);
            break;
        }
    }
    let calm = calm.unwrap();
    let address = cluster.spec(node).kafka;
    // It is named as soon as its partition has a leader, and takes a moment to know of it.
    for group in ["stormy", &calm] {
        until("the coordinator takes commits", async || {
            let mut kafka = Kafka::connect(address).await;
            let answer = kafka
                .call(&commit(group, "orders", 0), OFFSETS_VERSION)
                .await;
            match answer.topics[0].partitions[0].error_code {
                0 => Ok(()),
                code => Err(format!("error {code}")),
            }
        })
        .await;
    }
    // More of them than a group takes, each with more than its share of what a group may hold, and none that waits to be let in.
    let crowd: Vec<_> = (0..CROWD)
        .map(|_| {
            tokio::spawn(async move {
                let mut refused = 0;
                for number in 1..=JOINS {
                    let mut kafka = Kafka::connect(address).await;
                    let request = join("stormy", 8000);
                    let joining = kafka.try_call(&request, 2);
                    // The last one waits for what it is told, however busy the machine is.
                    let patience = match number {
                        JOINS => PATIENCE,
                        _ => Duration::from_millis(10),
                    };
                    if let Ok(Ok(answer)) = tokio::time::timeout(patience, joining).await {
                        // GROUP_MAX_SIZE_REACHED, or a rebalance that ended just then.
                        assert!(matches!(answer.error_code, 81 | 0), "{answer:?}");
                        refused += usize::from(answer.error_code == 81);
                    }
                }
                refused
            })
        })
        .collect();
    let before = cluster.resident_bytes(node);
    let mut kafka = Kafka::connect(address).await;
    let mut offset = 0;
    while offset < 50 || !crowd.iter().all(tokio::task::JoinHandle::is_finished) {
        offset += 1;
        let answer = kafka
            .call(&commit(&calm, "orders", offset), OFFSETS_VERSION)
            .await;
        assert_eq!(answer.topics[0].partitions[0].error_code, 0);
        assert_eq!(
            committed(&mut kafka, &calm, "orders").await,
            (0, offset),
            "after {offset} commits"
        );
    }
    let mut refused = 0;
    for joins in crowd {
        refused += joins.await.unwrap();
    }
    assert!(refused > 0, "the storm never came to the group's limit");
    let grown = cluster.resident_bytes(node).saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes more");
    // Those who are gone are forgotten when their sessions end, and the group is good for whoever comes then.
    until("a member is let in", async || {
        let mut kafka = Kafka::connect(address).await;
        let answer = kafka.call(&join("stormy", 10), 2).await;
        match answer.error_code {
            0 if answer.members.len() <= 1 => Ok(()),
            code => Err(format!("error {code}, {} members", answer.members.len())),
        }
    })
    .await;
}
