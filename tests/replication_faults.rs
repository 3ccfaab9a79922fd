//! Three nodes as processes, over real QUIC, while processes are killed, frozen and restarted. What was acknowledged with
//! acks=all must still be there afterwards, in order and once.

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use quorate::client::{Acks, Client, ProducerConfig};
use quorate::storage::TAIL_CACHE_BYTES;
use quorate::types::{ErrorCode, NodeId, TopicName};

use support::cluster::Cluster;
use support::kafka::{Kafka, batch};
use support::relay::Relay;
use support::workload::{Story, Workload, check, consume_all};
use support::{PATIENCE, until};

const NO_ERRORS: [&str; 0] = [];

fn produce(client: &Client, topic: &TopicName, partitions: &[u32], size: usize) -> Workload {
    Workload::start(client, topic, partitions, size, ProducerConfig::default())
}

/// Everything acknowledged is there, and on all three nodes.
async fn check_everywhere(cluster: &Cluster, client: &Client, topic: &TopicName, story: &Story) {
    let ends = check(client, topic, story).await;
    cluster.until_digests_agree(topic, &ends).await;
}

async fn a_follower_of(cluster: &Cluster, topic: &TopicName, index: u32) -> NodeId {
    let leader = cluster.until_led(topic, index, |_| true).await;
    cluster.ids().into_iter().find(|id| *id != leader).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_records_are_on_all_three_nodes() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 3).await;
    let workload = produce(&client, &topic, &[0, 1, 2], 1024);
    workload.until_acknowledged(&[0, 1, 2], 300).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    let digests = cluster.until_digests_agree(&topic, &ends).await;
    assert_eq!(digests.len(), 3);
    // Agreement about nothing would be agreement too.
    let payload = story.count() as u64 * 1024;
    for id in cluster.ids() {
        let bytes = cluster.bytes(id, &topic);
        assert!(
            bytes > payload,
            "node {id} holds {bytes} bytes of {payload}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_follower_is_not_noticed_by_the_producer_and_catches_up() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = produce(&client, &topic, &[0], 512);
    workload.until_acknowledged(&[0], 100).await;
    let follower = a_follower_of(&cluster, &topic, 0).await;
    workload.forget_gaps();
    cluster.kill(follower);
    workload.until_acknowledged(&[0], 500).await;
    let gap = workload.story().longest_gap();
    println!("longest gap between acknowledgements while a follower was killed: {gap:?}");
    cluster.spawn(follower);
    cluster.until_healthy().await;
    workload.until_acknowledged(&[0], 100).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    check_everywhere(&cluster, &client, &topic, &story).await;
    let all = cluster.ids();
    cluster.until_isr(&topic, 0, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_three_killed_lose_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 3).await;
    let all = [0, 1, 2];
    let workload = produce(&client, &topic, &all, 512);
    workload.until_acknowledged(&all, 200).await;
    cluster.kill_together(&cluster.ids());
    let at_the_kill = workload.story();
    cluster.start_all().await;
    workload.until_acknowledged(&all, 100).await;
    let story = workload.finish().await;
    println!(
        "acknowledged before the kill {}, in all {}; failed: {:?}",
        at_the_kill.count(),
        story.count(),
        story.errors
    );
    check_everywhere(&cluster, &client, &topic, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_leads_when_a_leader_is_killed() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 3).await;
    let all = [0, 1, 2];
    let workload = produce(&client, &topic, &all, 512);
    workload.until_acknowledged(&all, 100).await;
    let leader = cluster.until_led(&topic, 0, |_| true).await;
    workload.forget_gaps();
    cluster.kill(leader);
    let begin = Instant::now();
    let next = cluster.until_led(&topic, 0, |id| id != leader).await;
    println!("node {next} leads {:?} after the kill", begin.elapsed());
    workload.until_acknowledged(&all, 200).await;
    let gap = workload.story().longest_gap();
    println!("longest gap between acknowledgements while a leader was killed: {gap:?}");
    // An election takes a second or two; a gap of a request's timeout means that somebody waited for the dead node.
    assert!(gap < Duration::from_secs(20), "{gap:?}");
    cluster.spawn(leader);
    cluster.until_healthy().await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    check_everywhere(&cluster, &client, &topic, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_follower_delays_nobody_and_catches_up() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = produce(&client, &topic, &[0], 512);
    workload.until_acknowledged(&[0], 100).await;
    let follower = a_follower_of(&cluster, &topic, 0).await;
    workload.forget_gaps();
    cluster.freeze(follower);
    workload.until_acknowledged(&[0], 1000).await;
    let gap = workload.story().longest_gap();
    println!("longest gap between acknowledgements while a follower was frozen: {gap:?}");
    cluster.thaw(follower);
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    check_everywhere(&cluster, &client, &topic, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_left_alone_refuses_acks_all_at_once_and_takes_acks_1() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = produce(&client, &topic, &[0], 100);
    workload.until_acknowledged(&[0], 100).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let survivor = cluster.until_led(&topic, 0, |_| true).await;
    let mut others = cluster.ids();
    others.retain(|id| *id != survivor);
    cluster.kill_together(&others);

    let begin = Instant::now();
    let refused = ErrorCode::NotEnoughReplicas.code();
    let (all, leader, name) = (-1, 1, "orders");
    let mut answers = Vec::new();
    loop {
        // A connection of its own each: one that was appended before the silence was noticed keeps waiting.
        let mut kafka = Kafka::connect(cluster.spec(survivor).kafka).await;
        let records = batch(&[b"0000000000 refused"]);
        let asked = kafka.produce(name, 0, records, all, Duration::from_millis(100));
        let (code, _) = asked.await;
        if code == refused {
            break;
        }
        answers.push(code);
        assert!(begin.elapsed() < PATIENCE, "never refused: {answers:?}");
    }
    let noticed = begin.elapsed();
    println!("acks=all refused {noticed:?} after the kill, first answers {answers:?}");
    assert!(noticed < Duration::from_secs(5), "{noticed:?}");
    assert!(!answers.contains(&0), "acknowledged by a leader alone");

    let mut kafka = Kafka::connect(cluster.spec(survivor).kafka).await;
    let begin = Instant::now();
    let records = batch(&[b"0000000000 refused"]);
    let (code, _) = kafka
        .produce(name, 0, records, all, Duration::from_secs(30))
        .await;
    println!("a further request is refused within {:?}", begin.elapsed());
    assert_eq!(code, refused);
    assert!(begin.elapsed() < Duration::from_secs(5));

    let value: &[u8] = b"9999999999 acks=1";
    let (code, offset) = kafka
        .produce(name, 0, batch(&[value]), leader, Duration::from_secs(30))
        .await;
    assert_eq!(code, 0, "acks=1 at a living leader");

    for id in others {
        cluster.spawn(id);
    }
    cluster.until_healthy().await;
    // A record that was not acknowledged may be there, so the numbers are not checked beyond what was.
    until("all that was acknowledged is there", async || {
        let found = consume_all(&client, &topic).await;
        let records = found.get(&0).cloned().unwrap_or_default();
        for (number, at) in &story.acknowledged[&0] {
            let (offset, value) = &records[usize::try_from(at.unwrap()).unwrap()];
            assert_eq!(Some(*offset), *at);
            assert!(value.starts_with(format!("{number:010}").as_bytes()));
        }
        // Visible once the others have it.
        let there = records
            .iter()
            .find(|(at, _)| i64::try_from(*at).unwrap() == offset);
        match there {
            Some((_, found)) => {
                assert_eq!(found, value);
                Ok(())
            }
            None => Err(format!("{} records, none at {offset}", records.len())),
        }
    })
    .await;
    let workload = produce(&client, &topic, &[0], 100);
    workload.until_acknowledged(&[0], 10).await;
    assert_eq!(workload.finish().await.errors, NO_ERRORS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_restart_one_after_the_other_without_an_error() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 3).await;
    let all = [0, 1, 2];
    let workload = produce(&client, &topic, &all, 512);
    let nodes = cluster.ids();
    for id in nodes.clone() {
        workload.until_acknowledged(&all, 50).await;
        let ended = cluster.stop(id).await;
        assert_eq!(ended.code(), Some(0), "node {id}: {ended}");
        cluster.spawn(id);
        cluster.until_healthy().await;
        for index in all {
            cluster.until_isr(&topic, index, &nodes).await;
        }
    }
    workload.until_acknowledged(&all, 50).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    check_everywhere(&cluster, &client, &topic, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_catches_up_from_disk_while_the_others_go_on() {
    const RECORD: usize = 8 << 10;
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = produce(&client, &topic, &[0], RECORD);
    workload.until_acknowledged(&[0], 20).await;
    let follower = a_follower_of(&cluster, &topic, 0).await;
    cluster.kill(follower);
    let beyond_memory = 2 * TAIL_CACHE_BYTES / RECORD;
    workload.until_acknowledged(&[0], beyond_memory).await;
    let behind = workload.story().count() as u64;
    workload.forget_gaps();
    cluster.spawn(follower);
    until("the follower has what it missed", async || {
        let status = cluster.partition(follower, &topic, 0).await?;
        let end = status.local.map_or(0, |local| local.log_end.get());
        if end >= behind {
            Ok(())
        } else {
            Err(format!("its log ends at {end}, others had {behind}"))
        }
    })
    .await;
    workload.until_acknowledged(&[0], 20).await;
    let gap = workload.story().longest_gap();
    println!("longest gap between acknowledgements while a follower caught up: {gap:?}");
    let all = cluster.ids();
    cluster.until_isr(&topic, 0, &all).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    check_everywhere(&cluster, &client, &topic, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_has_nothing_of_the_old_one() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 3).await;
    let workload = produce(&client, &topic, &[0, 1, 2], 100);
    workload.until_acknowledged(&[0, 1, 2], 50).await;
    workload.finish().await;
    let listed = client.admin().list_topics().await.unwrap();
    let old = listed[0].id.unwrap().to_string();
    for id in cluster.ids() {
        assert_eq!(directories_of(&cluster, id, &old), 3, "node {id}");
    }
    // One node hears of it only when it comes back.
    let away = cluster.ids()[2];
    cluster.kill(away);
    client.admin().delete_topic(&topic).await.unwrap();
    // Three replicas are wanted, and two nodes are there.
    cluster.spawn(away);
    cluster.until_healthy().await;
    let topic = cluster.create_topic(&client, "orders", 3).await;
    until("the old topic's directories are gone", async || {
        for id in cluster.ids() {
            let left = directories_of(&cluster, id, &old);
            if left > 0 {
                return Err(format!("node {id} has {left}"));
            }
        }
        Ok(())
    })
    .await;
    let client = cluster.client().await;
    let found = consume_all(&client, &topic).await;
    assert!(found.is_empty(), "{found:?}");
    let workload = produce(&client, &topic, &[0, 1, 2], 100);
    workload.until_acknowledged(&[0, 1, 2], 10).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    for (index, acknowledged) in &story.acknowledged {
        assert_eq!(acknowledged[&0], Some(0), "partition {index}");
    }
    check_everywhere(&cluster, &client, &topic, &story).await;
}

/// Partition directories of the topic with this id that a node has.
fn directories_of(cluster: &Cluster, id: NodeId, topic_id: &str) -> usize {
    let partitions = cluster.spec(id).data_dir.join("partitions");
    let entries = fs::read_dir(partitions).unwrap();
    entries
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().contains(topic_id)
        })
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_of_a_record_can_be_read_on_the_way() {
    const SECRET: &[u8; 64] = b"kW7qTz0Xn4vRb8LmEy2HcJ5sPf9GdUa3oViQx6ZtBw1NrMlKhYgCjSpDeFuOAI+/";
    // Behind each node's relay is all that goes between nodes and between clients and nodes.
    let mut cluster = Cluster::prepare(3).await;
    let mut relays = Vec::new();
    let mut controllers = Vec::new();
    for spec in &mut cluster.specs {
        let relay = Relay::before(spec.quic).await;
        controllers.push(format!("{}@{}", spec.id, relay.address));
        spec.advertise = Some(relay.address);
        relays.push(relay);
    }
    for spec in &mut cluster.specs {
        spec.controllers = controllers.join(",");
    }
    cluster.start_all().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 3).await;
    let producer = client
        .producer(ProducerConfig {
            acks: Acks::All,
            ..ProducerConfig::default()
        })
        .unwrap();
    let mut deliveries = Vec::new();
    for index in 0..300 {
        let record = quorate::client::ProducerRecord {
            partition: Some(quorate::types::PartitionIndex(index % 3)),
            key: Some(SECRET[..32].to_vec().into()),
            ..quorate::client::ProducerRecord::new(topic.clone(), SECRET.to_vec())
        };
        deliveries.push(producer.send(record).await.unwrap());
    }
    producer.flush().await;
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    let ends = (0..3).map(|index| (index, 100)).collect();
    cluster.until_digests_agree(&topic, &ends).await;
    let found = consume_all(&client, &topic).await;
    assert!(found.values().all(|records| records.len() == 100));

    let payload = 300 * SECRET.len();
    for id in cluster.ids() {
        let stored = occurrences_below(&cluster.spec(id).data_dir, SECRET);
        assert_eq!(stored, 300, "node {id} has every record as it was produced");
    }
    let passed: usize = relays
        .iter()
        .flat_map(Relay::datagrams)
        .map(|datagram| {
            // Any twelve bytes of it would be too many.
            let part = SECRET
                .windows(12)
                .find(|part| occurrences(&datagram, part) > 0);
            assert_eq!(part, None, "read in a datagram");
            datagram.len()
        })
        .sum();
    // Once to the leader, twice to followers, once to the consumer.
    assert!(
        passed > 4 * payload,
        "{passed} bytes: the records went another way"
    );

    // The relay would have seen it.
    let open = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    open.send_to(SECRET, relays[0].address).await.unwrap();
    until("the relay sees what is sent openly", async || {
        let datagrams = relays[0].datagrams();
        let seen = datagrams.iter().any(|d| occurrences(d, SECRET) > 0);
        if seen { Ok(()) } else { Err(String::new()) }
    })
    .await;
}

fn occurrences(text: &[u8], part: &[u8]) -> usize {
    text.windows(part.len())
        .filter(|window| *window == part)
        .count()
}

fn occurrences_below(dir: &Path, part: &[u8]) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                occurrences_below(&path, part)
            } else if path.extension().is_some_and(|e| e == "redb") {
                0
            } else {
                occurrences(&fs::read(&path).unwrap(), part)
            }
        })
        .sum()
}
