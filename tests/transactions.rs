//! Transactions on real processes: what is committed is read whole, what is aborted is not, whatever dies in between.

// A test that cannot go on panics, and what was skipped goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use kafka_protocol::messages::DescribeProducersRequest;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use quorate::record::ProducerStamp;
use quorate::types::{NodeId, ProducerId};
use support::cluster::Cluster;
use support::kafka::{Kafka, name};
use support::transactions::{Transactional, coordinator, read, stable_offset};
use support::{topic, until};

const MINUTE_MS: i32 = 60_000;
const INVALID_PRODUCER_EPOCH: i16 = 47;
const INVALID_TXN_STATE: i16 = 48;
const PRODUCER_FENCED: i16 = 90;

fn values(tag: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{tag} {n}")).collect()
}

/// Waits until a reader of committed records sees these, and no more.
async fn until_committed(cluster: &Cluster, topic: &str, partition: i32, expected: &[String]) {
    until("committed records are read", async || {
        let (found, stable, end) = read(cluster, topic, partition, true).await?;
        match found == expected {
            true => Ok(()),
            false => Err(format!(
                "{} of {} records, {:?} last; stable to {stable} of {end}",
                found.len(),
                expected.len(),
                found.last()
            )),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_is_read_and_what_is_aborted_or_open_is_not() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 2).await;
    let mut producer = Transactional::begin(&cluster, "clerk", MINUTE_MS).await;

    // A batch that the transaction does not reach begins none.
    let stray = values("stray", 1);
    let refused = producer.produce(&cluster, "orders", 0, &stray).await;
    assert_eq!(refused, Err(INVALID_TXN_STATE));

    let mut committed = Vec::new();
    let mut all = Vec::new();
    for (round, commit) in [true, false, true].into_iter().enumerate() {
        producer.add(&cluster, "orders", &[0, 1]).await.unwrap();
        for partition in [0, 1] {
            let values = values(&format!("round {round}"), 3);
            producer
                .produce(&cluster, "orders", partition, &values)
                .await
                .unwrap();
            if partition == 0 {
                all.extend_from_slice(&values);
                if commit {
                    committed.extend(values);
                }
            }
        }
        producer.end(&cluster, commit).await.unwrap();
        for partition in [0, 1] {
            until_committed(&cluster, "orders", partition, &committed).await;
        }
    }
    // One that is open, and records of nobody's transaction behind it.
    producer.add(&cluster, "orders", &[0]).await.unwrap();
    let open = values("open", 2);
    producer
        .produce(&cluster, "orders", 0, &open)
        .await
        .unwrap();
    all.extend_from_slice(&open);
    until_committed(&cluster, "orders", 0, &committed).await;
    let (found, stable, end) = read(&cluster, "orders", 0, false).await.unwrap();
    assert_eq!(found, all);
    assert_eq!(stable, end - 2, "the open transaction's first record");
    producer.end(&cluster, true).await.unwrap();
    committed.extend(open);
    until_committed(&cluster, "orders", 0, &committed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_producer_fences_the_first_and_has_its_transaction_aborted() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 1).await;
    let mut first = Transactional::begin(&cluster, "clerk", MINUTE_MS).await;
    first.add(&cluster, "orders", &[0]).await.unwrap();
    first
        .produce(&cluster, "orders", 0, &values("first", 2))
        .await
        .unwrap();

    let mut second = Transactional::begin(&cluster, "clerk", MINUTE_MS).await;
    assert_eq!(second.producer, first.producer);
    assert!(second.epoch > first.epoch);
    let late = values("late", 1);
    let refused = first.produce(&cluster, "orders", 0, &late).await;
    assert_eq!(refused, Err(INVALID_PRODUCER_EPOCH));
    assert_eq!(first.end(&cluster, true).await, Err(PRODUCER_FENCED));
    let added = first.add(&cluster, "orders", &[0]).await;
    assert_eq!(added, Err(PRODUCER_FENCED));

    second.add(&cluster, "orders", &[0]).await.unwrap();
    let own = values("second", 2);
    second.produce(&cluster, "orders", 0, &own).await.unwrap();
    second.end(&cluster, true).await.unwrap();
    until_committed(&cluster, "orders", 0, &own).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_producer_is_gone_is_aborted_in_its_time() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 1).await;
    let mut gone = Transactional::begin(&cluster, "clerk", 2_000).await;
    gone.add(&cluster, "orders", &[0]).await.unwrap();
    gone.produce(&cluster, "orders", 0, &values("gone", 2))
        .await
        .unwrap();
    // Its coordinator dies too: the time of the transaction goes on.
    let (node, _) = coordinator(&cluster, "clerk").await;
    cluster.kill(node);
    until("the transaction is aborted", async || {
        let (found, stable, end) = read(&cluster, "orders", 0, true).await?;
        assert_eq!(found, Vec::<String>::new());
        match (stable, end) {
            (3, 3) => Ok(()),
            _ => Err(format!("stable to {stable} of {end}")),
        }
    })
    .await;
    let late = values("late", 1);
    let refused = gone.produce(&cluster, "orders", 0, &late).await;
    assert_eq!(refused, Err(INVALID_PRODUCER_EPOCH));
    assert_eq!(gone.end(&cluster, true).await, Err(PRODUCER_FENCED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_to_end_so_ends_so_though_coordinator_and_leaders_are_killed() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let orders = cluster.create_topic(&client, "orders", 3).await;
    let mut producer = Transactional::begin(&cluster, "clerk", MINUTE_MS).await;
    let mut committed = Vec::new();
    for round in 0..4 {
        let commit = round != 2;
        producer.add(&cluster, "orders", &[0, 1, 2]).await.unwrap();
        let values = values(&format!("round {round}"), 5);
        producer
            .produce_to_each(&cluster, "orders", 0..3, &values)
            .await;
        let leader = cluster.until_led(&orders, 0, |_| true).await;
        let (coordinator, _) = coordinator(&cluster, "clerk").await;
        // Its answer says that the end is decided, not that the partitions know.
        let (killed, ended_before) = match round {
            0 | 2 => (coordinator, true),
            1 => (leader, true),
            _ => (leader, false),
        };
        if ended_before {
            producer.end(&cluster, commit).await.unwrap();
            cluster.kill(killed);
        } else {
            cluster.kill(killed);
            producer.end(&cluster, commit).await.unwrap();
        }
        if commit {
            committed.extend(values);
        }
        for partition in 0..3 {
            until_committed(&cluster, "orders", partition, &committed).await;
        }
        cluster.spawn(killed);
        cluster.until_healthy().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_keeps_no_transaction_from_its_end() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 1).await;
    cluster.create_topic(&client, "drafts", 1).await;
    let mut producer = Transactional::begin(&cluster, "clerk", MINUTE_MS).await;
    producer.add(&cluster, "drafts", &[0]).await.unwrap();
    producer.add(&cluster, "orders", &[0]).await.unwrap();
    let kept = values("kept", 2);
    producer
        .produce(&cluster, "orders", 0, &kept)
        .await
        .unwrap();
    producer
        .produce(&cluster, "drafts", 0, &values("draft", 2))
        .await
        .unwrap();
    client.admin().delete_topic(&topic("drafts")).await.unwrap();
    producer.end(&cluster, true).await.unwrap();
    until_committed(&cluster, "orders", 0, &kept).await;
    // The next one begins, so the last is complete.
    producer.add(&cluster, "orders", &[0]).await.unwrap();
    producer.end(&cluster, false).await.unwrap();
}

/// Waits until a partition knows its producer by this epoch: that of the marker that has ended the transaction before.
async fn until_known_by(cluster: &Cluster, producer: &Transactional, partition: i32) {
    let wanted = TopicRequest::default()
        .with_name(name("orders"))
        .with_partition_indexes(vec![partition]);
    let request = DescribeProducersRequest::default().with_topics(vec![wanted]);
    let index = u32::try_from(partition).unwrap();
    until("the marker has the next epoch", async || {
        let leader = cluster.until_led(&topic("orders"), index, |_| true).await;
        let mut kafka = Kafka::connect(cluster.spec(leader).kafka).await;
        let mut found = kafka.call(&request, 0).await;
        let known = found.topics.remove(0).partitions.remove(0).active_producers;
        let mut known = known.iter();
        let epoch = known
            .find(|known| known.producer_id.0 == producer.producer)
            .map(|known| known.producer_epoch);
        match epoch == Some(producer.epoch.into()) {
            true => Ok(()),
            false => Err(format!("epoch {epoch:?}, not {}", producer.epoch)),
        }
    })
    .await;
}

/// A batch of this epoch, numbered as if it came next there.
async fn late(
    cluster: &Cluster,
    producer: &Transactional,
    epoch: i16,
    sequence: i32,
) -> Result<(), i16> {
    let stamp = ProducerStamp {
        id: ProducerId::new(producer.producer).unwrap(),
        epoch,
        base_sequence: sequence,
    };
    let late = values("late", 1);
    producer.send(cluster, stamp, ("orders", 0), &late).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_clients_have_an_epoch_for_each_transaction_and_add_nothing_themselves() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 2).await;
    let mut producer = Transactional::begin_newer(&cluster, "clerk", MINUTE_MS).await;
    let mut committed = Vec::new();
    let mut offset = -1;
    for (round, commit) in [true, false, true].into_iter().enumerate() {
        let values = values(&format!("round {round}"), 3);
        producer
            .produce_to_each(&cluster, "orders", [0, 1], &values)
            .await;
        let next = 10 * (round as i64 + 1);
        producer
            .commit_offset(&cluster, "readers", ("orders", 1), next)
            .await
            .unwrap();
        if commit {
            committed.extend(values);
            offset = next;
        }
        let (ended, sequence) = (producer.epoch, 3);
        producer.finish(&cluster, commit).await;
        let now = (producer.producer, producer.epoch);
        assert_eq!(producer.epoch, ended + 1);
        // A client that has not heard of it asks again, and is told the same.
        let retried = producer.end_epoch(&cluster, ended, commit).await;
        assert_eq!(retried, Ok(now));
        let changed = producer.end_epoch(&cluster, ended, !commit).await;
        assert_eq!(changed, Err(INVALID_TXN_STATE));
        for partition in [0, 1] {
            until_committed(&cluster, "orders", partition, &committed).await;
            until_known_by(&cluster, &producer, partition).await;
        }
        let found = stable_offset(&cluster, "readers", ("orders", 1)).await;
        assert_eq!(found, offset);
        // What comes late of the transaction is fenced, before the next one begins and after.
        let refused = late(&cluster, &producer, ended, sequence).await;
        assert_eq!(refused, Err(INVALID_PRODUCER_EPOCH));
        let begun = vec!["begun".to_owned()];
        producer
            .produce(&cluster, "orders", 0, &begun)
            .await
            .unwrap();
        let refused = late(&cluster, &producer, ended, sequence).await;
        assert_eq!(refused, Err(INVALID_PRODUCER_EPOCH));
        let begun_in = producer.epoch;
        producer.finish(&cluster, false).await;
        assert_eq!(producer.epoch, begun_in + 1);
        until_committed(&cluster, "orders", 0, &committed).await;
    }
    // Nobody waits for the end of the last one: markers are on their way while the next one begins.
    for round in 0..20 {
        let values = values(&format!("at once {round}"), 1);
        producer
            .produce_to_each(&cluster, "orders", [0, 1], &values)
            .await;
        producer
            .commit_offset(&cluster, "readers", ("orders", 1), 100 + round)
            .await
            .unwrap();
        committed.extend(values);
        producer.finish(&cluster, true).await;
    }
    for partition in [0, 1] {
        until_committed(&cluster, "orders", partition, &committed).await;
    }
    let found = stable_offset(&cluster, "readers", ("orders", 1)).await;
    assert_eq!(found, 119);
    // An abort of nothing is well, a commit of nothing is not.
    let none = producer.end_epoch(&cluster, producer.epoch, true).await;
    assert_eq!(none, Err(INVALID_TXN_STATE));
    producer.finish(&cluster, false).await;
    // Whoever begins anew fences it.
    let second = Transactional::begin(&cluster, "clerk", MINUTE_MS).await;
    assert!(second.epoch > producer.epoch);
    let refused = late(&cluster, &producer, producer.epoch, 0).await;
    assert_eq!(refused, Err(INVALID_PRODUCER_EPOCH));
    let ended = producer.end_epoch(&cluster, producer.epoch, false).await;
    assert_eq!(ended, Err(PRODUCER_FENCED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_epoch_is_the_same_though_the_coordinator_is_killed() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.create_topic(&client, "orders", 3).await;
    let mut producer = Transactional::begin_newer(&cluster, "clerk", MINUTE_MS).await;
    let mut committed = Vec::new();
    for round in 0..3 {
        let commit = round != 1;
        let values = values(&format!("round {round}"), 5);
        producer
            .produce_to_each(&cluster, "orders", 0..3, &values)
            .await;
        let ended = producer.epoch;
        producer.finish(&cluster, commit).await;
        let (killed, _) = coordinator(&cluster, "clerk").await;
        cluster.kill(killed);
        if commit {
            committed.extend(values);
        }
        let retried = producer.end_epoch(&cluster, ended, commit).await;
        assert_eq!(retried, Ok((producer.producer, producer.epoch)));
        for partition in 0..3 {
            until_committed(&cluster, "orders", partition, &committed).await;
        }
        let refused = late(&cluster, &producer, ended, 5).await;
        assert_eq!(refused, Err(INVALID_PRODUCER_EPOCH));
        cluster.spawn(killed);
        cluster.until_healthy().await;
    }
}

/// A Python that has confluent-kafka: what `QUORATE_TEST_PYTHON` names, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("QUORATE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python)
        .args(["-c", "import confluent_kafka"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        eprintln!(
            "!!! NOT TESTED: {python} has no confluent_kafka (pip install confluent-kafka; QUORATE_TEST_PYTHON names a Python)"
        );
    }
    found.then_some(python)
}

/// librdkafka reads, changes and writes in transactions, while nodes are killed under it and come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_carried_over_exactly_once_by_librdkafka() {
    let Some(python) = python() else {
        return;
    };
    let mut cluster = Cluster::start().await;
    let brokers: Vec<String> = cluster
        .specs
        .iter()
        .map(|spec| spec.kafka.to_string())
        .collect();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/scripts/transactions_confluent.py"
    );
    let mut child = Command::new(python)
        .args([script, &brokers.join(",")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut kills = 0;
    loop {
        let mut line = String::new();
        if out.read_line(&mut line).unwrap() == 0 {
            break;
        }
        said.push_str(&line);
        let killed: NodeId = match line.trim() {
            "kill the coordinator" => coordinator(&cluster, "carrier").await.0,
            "kill a leader" => cluster.until_led(&topic("outcome"), 0, |_| true).await,
            _ => continue,
        };
        cluster.kill(killed);
        kills += 1;
        writeln!(child.stdin.as_mut().unwrap(), "killed {killed}").unwrap();
        cluster.spawn(killed);
        cluster.until_healthy().await;
        writeln!(child.stdin.as_mut().unwrap(), "back {killed}").unwrap();
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "{status} after:\n{said}");
    assert_eq!(kills, 4, "{said}");
}
