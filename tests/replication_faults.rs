//! Three nodes as processes, over real QUIC, while processes are killed, frozen and restarted. What was acknowledged with
//! acks=all must still be there afterwards, in order and once.

mod support;

use quorate::client::ProducerConfig;

use support::cluster::Cluster;
use support::workload::{Workload, check};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_records_are_on_all_three_nodes() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let topic = cluster.create_topic(&client, "orders", 3).await;
    let workload = Workload::start(&client, &topic, &[0, 1, 2], 1024, ProducerConfig::default());
    workload.until_acknowledged(&[0, 1, 2], 300).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, [""; 0]);
    let ends = check(&client, &topic, &story).await;
    let digests = cluster.until_digests_agree(&topic, &ends).await;
    assert_eq!(digests.len(), 3);
    // Agreement about nothing would be agreement too.
    for id in cluster.ids() {
        let bytes: u64 = cluster.bytes(id, &topic);
        let payload = story.count() as u64 * 1024;
        assert!(
            bytes > payload,
            "node {id} holds {bytes} bytes of {payload}"
        );
    }
}
