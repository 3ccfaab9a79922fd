//! What an operator does to a cluster of real processes, by the commands that a person would type, under a producer that
//! must not notice.

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::time::Instant;

use quorate::client::{Client, ProducerConfig};
use quorate::types::{NodeId, TopicName};
use serde_json::Value;

use support::cluster::{Cluster, quorate};
use support::workload::{Workload, check};
use support::{node, topic, until};

const NO_ERRORS: [&str; 0] = [];

/// How a command ended, what it printed, and what it said beside.
struct Ended {
    code: Option<i32>,
    lines: Vec<Value>,
    said: String,
}

/// Runs `quorate WORDS`, by way of any node that runs.
async fn run(cluster: &Cluster, words: &str) -> Ended {
    let servers: Vec<String> = cluster
        .running()
        .into_iter()
        .map(|id| cluster.spec(id).quic.to_string())
        .collect();
    let mut command = quorate();
    command
        .args(words.split_whitespace())
        .args(["--bootstrap-server", &servers.join(",")])
        .arg("--certs-dir")
        .arg(&cluster.specs[0].certs_dir)
        .args(["--output", "json", "--timeout", "60s"])
        .stdin(std::process::Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    Ended {
        code: output.status.code(),
        lines: text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
        said: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn done(cluster: &Cluster, words: &str) -> Vec<Value> {
    let ended = run(cluster, words).await;
    assert_eq!(
        ended.code,
        Some(0),
        "{words}: {:?} {}",
        ended.lines,
        ended.said
    );
    ended.lines
}

async fn refused(cluster: &Cluster, words: &str, code: i32, word: &str) {
    let ended = run(cluster, words).await;
    let told = format!("{:?} {}", ended.lines, ended.said);
    assert_eq!(ended.code, Some(code), "{words}: {told}");
    assert!(told.contains(word), "{words}: {told}");
}

fn produce(client: &Client, topic: &TopicName, partitions: &[u32]) -> Workload {
    Workload::start(client, topic, partitions, 512, ProducerConfig::default())
}

/// Nodes 1 to 3 are controllers; further ones are brokers only.
async fn cluster_of(nodes: u32) -> Cluster {
    let mut cluster = Cluster::prepare(nodes).await;
    let founders: Vec<String> = cluster.specs[..3]
        .iter()
        .map(|spec| format!("{}@{}", spec.id, spec.quic))
        .collect();
    for spec in &mut cluster.specs {
        spec.controllers = founders.join(",");
    }
    cluster.start_all().await;
    // Until then the cluster understands no more than its first version did.
    until("the metadata version has risen", async || {
        let status = cluster.status(node(1)).await?;
        match status.metadata_version {
            2.. => Ok(()),
            version => Err(format!("{version}")),
        }
    })
    .await;
    cluster
}

/// One partition on the nodes that are named, the first of them leading.
async fn create(cluster: &Cluster, name: &str, replicas: &[u32]) -> TopicName {
    let words = format!("topic create {name} -r {}", replicas.len());
    done(cluster, &words).await;
    let list: Vec<String> = replicas.iter().map(ToString::to_string).collect();
    let words = format!(
        "cluster reassign {name}:0 --replicas {} --wait",
        list.join(",")
    );
    done(cluster, &words).await;
    let words = format!("cluster transfer-leader {name}:0 --to {}", replicas[0]);
    done(cluster, &words).await;
    let name = topic(name);
    cluster
        .until_led(&name, 0, |id| id == node(replicas[0]))
        .await;
    name
}

async fn leader(cluster: &Cluster, topic: &TopicName) -> NodeId {
    cluster.until_led(topic, 0, |_| true).await
}

/// Node 3 dies with its disk, is removed, and starts with an empty one.
async fn replace_disk_of_3(cluster: &mut Cluster) {
    cluster.kill(node(3));
    std::fs::remove_dir_all(&cluster.spec(node(3)).data_dir).unwrap();
    until("node 3 is removed", async || {
        let ended = run(cluster, "cluster remove-node 3 --keep-replicas").await;
        match ended.code {
            Some(0) => Ok(()),
            _ => Err(ended.said),
        }
    })
    .await;
    cluster.spawn(node(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_by_command_and_a_producer_does_not_fail() {
    let cluster = cluster_of(3).await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 1).await;
    let workload = produce(&client, &topic, &[0]);
    workload.until_acknowledged(&[0], 200).await;
    for _ in 0..10 {
        let old = leader(&cluster, &topic).await;
        let next = cluster.ids().into_iter().find(|id| *id != old).unwrap();
        workload.forget_gaps();
        let begin = Instant::now();
        let words = format!("cluster transfer-leader orders:0 --to {next}");
        done(&cluster, &words).await;
        let took = begin.elapsed();
        assert_eq!(leader(&cluster, &topic).await, next);
        workload.until_acknowledged(&[0], 200).await;
        let gap = workload.story().longest_gap();
        println!("the command took {took:?}, the longest gap between acknowledgements was {gap:?}");
    }
    refused(
        &cluster,
        "cluster transfer-leader orders:0 --to 9",
        1,
        "no replica",
    )
    .await;
    refused(
        &cluster,
        "cluster transfer-leader orders:7 --to 1",
        1,
        "no partition",
    )
    .await;
    refused(
        &cluster,
        "cluster transfer-leader orders:x --to 1",
        2,
        "TOPIC:PARTITION",
    )
    .await;
    done(&cluster, "cluster transfer-leader --preferred").await;
    let status = cluster.partition(node(1), &topic, 0).await.unwrap();
    assert_eq!(leader(&cluster, &topic).await, status.replicas[0]);
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_restarted_one_after_the_other_and_a_producer_does_not_fail() {
    let mut cluster = cluster_of(3).await;
    let client = cluster.client().await;
    let all = [0, 1, 2];
    let topic = cluster.create_topic(&client, "orders", 3).await;
    let workload = produce(&client, &topic, &all);
    workload.until_acknowledged(&all, 100).await;
    for id in cluster.ids() {
        workload.forget_gaps();
        let begin = Instant::now();
        let ended = cluster.stop(id).await;
        let took = begin.elapsed();
        assert_eq!(ended.code(), Some(0));
        cluster.spawn(id);
        cluster.until_healthy().await;
        for index in all {
            cluster.until_isr(&topic, index, &cluster.ids()).await;
        }
        workload.until_acknowledged(&all, 50).await;
        let gap = workload.story().longest_gap();
        println!(
            "node {id} stopped within {took:?}, the longest gap between acknowledgements was {gap:?}"
        );
    }
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_leads_nothing_until_it_is_undrained() {
    let cluster = cluster_of(3).await;
    let client = cluster.client().await;
    let all = [0, 1, 2, 3, 4, 5];
    let topic = cluster.create_topic(&client, "orders", 6).await;
    let workload = produce(&client, &topic, &all);
    workload.until_acknowledged(&all, 50).await;
    let drained = done(&cluster, "cluster drain 2").await;
    assert_eq!(drained[0]["still_led"], serde_json::json!([]));
    let status = cluster.status(node(1)).await.unwrap();
    assert!(status.partitions.iter().all(|p| p.leader != Some(node(2))));
    let report = run(&cluster, "cluster status").await;
    assert_eq!(report.lines[0]["nodes"][1]["draining"], Value::Bool(true));
    refused(
        &cluster,
        "cluster transfer-leader orders:0 --to 2",
        1,
        "draining",
    )
    .await;
    done(&cluster, "cluster undrain 2").await;
    done(
        &cluster,
        "cluster transfer-leader --preferred --topic orders",
    )
    .await;
    let status = cluster.status(node(1)).await.unwrap();
    assert!(status.partitions.iter().any(|p| p.leader == Some(node(2))));
    workload.until_acknowledged(&all, 50).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    let ends = check(&client, &topic, &story).await;
    cluster.until_digests_agree(&topic, &ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_move_to_other_nodes_under_a_producer_and_leave_nothing_behind() {
    let cluster = cluster_of(4).await;
    let client = cluster.client().await;
    let topic = create(&cluster, "orders", &[1, 2, 3]).await;
    let workload = produce(&client, &topic, &[0]);
    workload.until_acknowledged(&[0], 300).await;
    // The leader goes as well.
    done(
        &cluster,
        "cluster reassign orders:0 --replicas 4,2,3 --wait",
    )
    .await;
    workload.until_acknowledged(&[0], 100).await;
    let status = cluster.partition(node(2), &topic, 0).await.unwrap();
    assert_eq!(status.replicas, [4, 2, 3].map(node));
    assert_ne!(status.leader, Some(node(1)));
    until("the old replica's log is gone", async || {
        match cluster.digests(node(1), &topic)? {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
    refused(
        &cluster,
        "cluster reassign orders:0 --cancel",
        1,
        "under way",
    )
    .await;
    refused(
        &cluster,
        "cluster reassign orders:0 --replicas 4,4",
        1,
        "twice",
    )
    .await;
    refused(
        &cluster,
        "cluster reassign orders:0 --replicas 4",
        1,
        "min.insync.replicas",
    )
    .await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    check(&client, &topic, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reassignment_to_a_dead_node_waits_and_can_be_called_off() {
    let mut cluster = cluster_of(4).await;
    let client = cluster.client().await;
    let topic = create(&cluster, "orders", &[1, 2, 3]).await;
    cluster.kill(node(4));
    let workload = produce(&client, &topic, &[0]);
    let said = run(&cluster, "cluster reassign orders:0 --replicas 4,2,3").await;
    assert_eq!(said.code, Some(0), "{}", said.said);
    workload.until_acknowledged(&[0], 100).await;
    let report = run(&cluster, "cluster status").await;
    let notes = report.lines[0]["notes"].to_string();
    assert!(notes.contains("being reassigned to nodes 4,2,3"), "{notes}");
    done(&cluster, "cluster reassign orders --cancel --wait").await;
    let status = cluster.partition(node(1), &topic, 0).await.unwrap();
    assert_eq!(status.replicas, [1, 2, 3].map(node));
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    check(&client, &topic, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_evacuated_stopped_and_gone() {
    let mut cluster = cluster_of(4).await;
    let client = cluster.client().await;
    let topic = create(&cluster, "orders", &[4, 2, 3]).await;
    let workload = produce(&client, &topic, &[0]);
    workload.until_acknowledged(&[0], 100).await;
    refused(&cluster, "cluster remove-node 4", 1, "--evacuate").await;
    refused(
        &cluster,
        "cluster remove-node 1 --evacuate",
        1,
        "remove-controller",
    )
    .await;
    let removing = run(&cluster, "cluster remove-node 4 --evacuate");
    let emptied = until("node 4 holds nothing", async || {
        let status = cluster.status(node(1)).await?;
        let held = status
            .partitions
            .iter()
            .any(|p| p.replicas.contains(&node(4)));
        if held {
            Err(format!("{:?}", status.partitions))
        } else {
            // As good as stopped, and without handing over.
            cluster.freeze(node(4));
            Ok(())
        }
    });
    let (ended, ()) = tokio::join!(removing, emptied);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    let status = cluster.status(node(1)).await.unwrap();
    assert!(status.nodes.iter().all(|known| known.node != node(4)));
    cluster.kill(node(4));
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    check(&client, &topic, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_are_exchanged_and_one_that_lost_its_disk_comes_back() {
    let mut cluster = cluster_of(4).await;
    let added = run(&cluster, "cluster add-controller 4").await;
    assert_eq!(added.code, Some(0), "{}", added.said);
    assert!(
        added.said.contains("4 controllers survive no more"),
        "{}",
        added.said
    );
    let removed = done(&cluster, "cluster remove-controller 1").await;
    assert_eq!(removed[0]["voters"], serde_json::json!([2, 3, 4]));
    // With the old list, of which it is the lowest.
    let ended = cluster.stop(node(1)).await;
    assert_eq!(ended.code(), Some(0));
    cluster.spawn(node(1));
    cluster.until_healthy().await;

    replace_disk_of_3(&mut cluster).await;
    until("node 3 votes again", async || {
        let status = cluster.status(node(2)).await?;
        let voters: Vec<u32> = status.voters.iter().map(|id| id.get()).collect();
        if voters == [2, 3, 4] {
            Ok(())
        } else {
            Err(format!("{voters:?}"))
        }
    })
    .await;
    cluster.until_healthy().await;
}

/// Its list names none of those that vote now, so it has to believe a listed node that says who does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_node_joins_by_a_list_of_which_nobody_votes_any_more() {
    let mut cluster = cluster_of(4).await;
    done(&cluster, "cluster add-controller 4").await;
    for old in 1..=3 {
        done(&cluster, &format!("cluster remove-controller {old}")).await;
    }
    replace_disk_of_3(&mut cluster).await;
    cluster.until_healthy().await;
    until("node 3 knows who votes", async || {
        let status = cluster.status(node(3)).await?;
        if status.voters.iter().eq([&node(4)]) {
            Ok(())
        } else {
            Err(format!("{:?}", status.voters))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unclean_election_is_only_an_operators() {
    let mut cluster = cluster_of(4).await;
    let client = cluster.client().await;
    let topic = create(&cluster, "orders", &[4, 3]).await;
    done(&cluster, "topic alter orders -c min.insync.replicas=1").await;
    until("min.insync.replicas is 1", async || {
        let partition = cluster.partition(node(1), &topic, 0).await?;
        match partition.min_insync {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let workload = produce(&client, &topic, &[0]);
    workload.until_acknowledged(&[0], 50).await;
    refused(&cluster, "cluster elect orders:0 --unclean", 2, "--yes").await;
    refused(
        &cluster,
        "cluster elect orders:0 --unclean --yes",
        1,
        "is alive",
    )
    .await;
    cluster.kill(node(3));
    cluster.until_isr(&topic, 0, &[node(4)]).await;
    workload.until_acknowledged(&[0], 50).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, NO_ERRORS);
    cluster.kill(node(4));
    cluster.spawn(node(3));
    cluster.until_healthy().await;
    until(
        "the partition is offline, and status says what to do",
        async || {
            let report = run(&cluster, "cluster status").await;
            let problems = report.lines[0]["problems"].to_string();
            if report.code == Some(10) && problems.contains("cluster elect orders:0 --unclean") {
                Ok(())
            } else {
                Err(problems)
            }
        },
    )
    .await;
    let elected = done(&cluster, "cluster elect orders:0 --unclean --yes").await;
    assert_eq!(elected[0]["leader"], 3);
    assert_eq!(elected[0]["silent"], serde_json::json!([4]));
    assert_eq!(leader(&cluster, &topic).await, node(3));
    let log = |id: u32| cluster.spec(node(id)).log_text();
    let told = (1..=3).any(|id| log(id).contains("unclean election by an operator"));
    assert!(told, "the loss is in a log");
    // What the old leader had alone is gone there too, once it follows.
    cluster.spawn(node(4));
    cluster.until_isr(&topic, 0, &[node(3), node(4)]).await;
    let workload = produce(&client, &topic, &[0]);
    workload.until_acknowledged(&[0], 20).await;
    assert_eq!(workload.finish().await.errors, NO_ERRORS);
}

/// Both replicas are on nodes whose disks are gone: nothing comes back by itself, least of all an empty log under the old name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_every_replica_is_gone_begins_anew_by_an_operator_only() {
    let mut cluster = cluster_of(5).await;
    let client = cluster.client().await;
    let topic = create(&cluster, "orders", &[4, 5]).await;
    let workload = produce(&client, &topic, &[0]);
    workload.until_acknowledged(&[0], 50).await;
    assert_eq!(workload.finish().await.errors, NO_ERRORS);
    // Nodes 4 and 5 are no controllers, and have never heard each other: that is no reason to hold one another for dead.
    for id in [4, 5] {
        let status = cluster.status(node(id)).await.unwrap();
        assert!(status.nodes.iter().all(|known| known.alive), "{status:?}");
    }
    let last_epoch = cluster.partition(node(1), &topic, 0).await.unwrap();
    let last_epoch = last_epoch.leader_epoch;
    cluster.kill_together(&[node(4), node(5)]);
    for id in [node(4), node(5)] {
        std::fs::remove_dir_all(&cluster.spec(id).data_dir).unwrap();
    }
    until("status says what can be done", async || {
        let report = run(&cluster, "cluster status").await;
        let problems = report.lines[0]["problems"].to_string();
        let advice = "remove-node N --keep-replicas";
        if report.code == Some(10) && problems.contains("is offline") && problems.contains(advice) {
            Ok(())
        } else {
            Err(problems)
        }
    })
    .await;
    refused(
        &cluster,
        "cluster elect orders:0 --unclean --yes",
        1,
        "none of its replicas",
    )
    .await;
    // A node that comes back empty is refused until an operator has said that its disk is gone.
    let empty = cluster.spec(node(4)).clone();
    let (ended, said) = empty.run_to_its_end().await;
    assert!(!ended.success() && said.contains("remove-node"), "{said}");
    for id in [4, 5] {
        done(
            &cluster,
            &format!("cluster remove-node {id} --keep-replicas"),
        )
        .await;
        cluster.spawn(node(id));
    }
    until("both are alive", async || {
        let status = cluster.status(node(1)).await?;
        let alive = status.nodes.iter().filter(|known| known.alive).count();
        (alive == 5).then_some(()).ok_or(format!("{alive} are"))
    })
    .await;
    let partition = cluster.partition(node(1), &topic, 0).await.unwrap();
    // The reign of the process that is gone is the last one.
    let is_last = partition.leader_epoch == last_epoch;
    assert!(is_last || partition.leader.is_none(), "{partition:?}");
    let log = |id| cluster.spec(node(id)).log_text();
    assert!([1, 2, 3].iter().all(|id| !log(*id).contains("unclean")));
    let elected = until("an empty replica is made to lead", async || {
        // Where its replica is not open yet, the operator is told to ask again.
        let ended = run(&cluster, "cluster elect orders:0 --unclean --yes").await;
        match ended.code {
            Some(0) => Ok(ended.lines),
            _ => Err(format!("{:?} {}", ended.lines, ended.said)),
        }
    })
    .await;
    assert!(elected[0]["leader"] == 4 || elected[0]["leader"] == 5);
    cluster.until_isr(&topic, 0, &[node(4), node(5)]).await;
    let workload = produce(&client, &topic, &[0]);
    workload.until_acknowledged(&[0], 20).await;
    assert_eq!(workload.finish().await.errors, NO_ERRORS);
}
