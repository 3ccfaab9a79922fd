//! What `/metrics` shows. Names end in their unit; labels are ids of nodes, partitions and a few fixed words, so that their
//! number is bounded by what the node holds.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::exposition::{Exposition, Kind, Label};
use super::health::readiness;
use super::http::Sources;
use super::message::{NodeStatus, PartitionStatus, ReplicaRole};
use super::process;
use crate::broker::{LinkDirection, LinkView};
use crate::kafka::{Meters, RequestMeter};
use crate::types::NodeId;

/// Partitions that have samples of their own. Of a node with more, the others are only counted: a page of hundreds of
/// megabytes would help nobody.
pub(super) const MAX_PARTITIONS: usize = 10_000;

/// The whole page.
pub(super) fn page(sources: &Sources, status: &NodeStatus) -> String {
    let mut page = Exposition::default();
    node(&mut page, status);
    let local: Vec<(&PartitionStatus, &ReplicaRole)> = status
        .partitions
        .iter()
        .filter_map(|partition| Some((partition, partition.local.as_ref()?)))
        .collect();
    partitions(&mut page, &local);
    links(&mut page, &status.links, &sources.broker.dials(), &local);
    requests(&mut page, sources.kafka.meters());
    page.single(
        "quorate_kafka_connections",
        Kind::Gauge,
        "Kafka connections that are open, over TCP or as QUIC streams.",
        sources.kafka.connection_count(),
    );
    page.single(
        "quorate_quic_connections",
        Kind::Gauge,
        "QUIC connections that are open, handshakes included.",
        sources.quic.open_connections(),
    );
    let group_commit = sources.broker.group_commit();
    page.histograms(
        "quorate_log_sync_duration_seconds",
        "How long syncs of a log took, failed ones included.",
        [([], group_commit.sync_times().counts())],
    );
    page.single(
        "quorate_log_syncs_waiting",
        Kind::Gauge,
        "Logs that wait for a sync to begin.",
        group_commit.waiting(),
    );
    process_itself(&mut page);
    page.into_text()
}

fn node(page: &mut Exposition, status: &NodeStatus) {
    let labels: [Label<'_>; 2] = [("version", &status.version), ("node", &status.node)];
    page.family(
        "quorate_build_info",
        Kind::Gauge,
        "Always 1; the labels say which node and version this is.",
        [(labels, 1)],
    );
    for (name, help, value) in [
        (
            "quorate_node_ready",
            "1 while the node is ready as /health/ready has it.",
            readiness(status).ready,
        ),
        (
            "quorate_node_registered",
            "1 while the cluster has this process registered.",
            status.registered,
        ),
        (
            "quorate_node_hears_controller_majority",
            "1 while a majority of the controllers is heard.",
            status.hears_majority,
        ),
        (
            "quorate_node_is_active_controller",
            "1 while this node is the active controller, as far as it knows.",
            status.active_controller == Some(status.node),
        ),
    ] {
        page.single(name, Kind::Gauge, help, u8::from(value));
    }
    page.single(
        "quorate_client_migrations_total",
        Kind::Counter,
        "How often a native client's connection went on from another address without a handshake.",
        status.client_migrations,
    );
}

fn partitions(page: &mut Exposition, local: &[(&PartitionStatus, &ReplicaRole)]) {
    let mut by_role = BTreeMap::from(["leader", "follower", "idle", "failed"].map(|r| (r, 0)));
    for (_, replica) in local {
        *by_role.entry(&replica.role).or_default() += 1;
    }
    let roles = by_role
        .iter()
        .map(|(role, count)| ([("role", role as &dyn Display)], *count));
    page.family(
        "quorate_partitions",
        Kind::Gauge,
        "Replicas that this node has open, by role.",
        roles,
    );
    page.single(
        "quorate_partitions_without_samples",
        Kind::Gauge,
        "Replicas that are open and, for their number, have no samples of their own here.",
        local.len().saturating_sub(MAX_PARTITIONS),
    );
    let shown = &local[..local.len().min(MAX_PARTITIONS)];
    let mut gauge = |name: &str, help: &str, value: fn(&PartitionStatus, &ReplicaRole) -> u64| {
        let samples = shown
            .iter()
            .map(|(partition, replica)| (name_of(partition), value(partition, replica)));
        page.family(name, Kind::Gauge, help, samples);
    };
    gauge(
        "quorate_partition_log_start_offset",
        "The first offset that this node's replica holds.",
        |_, replica| replica.log_start.get(),
    );
    gauge(
        "quorate_partition_log_end_offset",
        "The offset that the next record of this node's replica gets.",
        |_, replica| replica.log_end.get(),
    );
    gauge(
        "quorate_partition_high_watermark_offset",
        "The offset below which records are committed, as far as this node knows.",
        |_, replica| replica.high_watermark.get(),
    );
    gauge(
        "quorate_partition_is_leader",
        "1 where this node's replica leads.",
        |_, replica| u64::from(replica.role == "leader"),
    );
    gauge(
        "quorate_partition_replicas",
        "Replicas that the partition is to have.",
        |partition, _| partition.replicas.len() as u64,
    );
    gauge(
        "quorate_partition_in_sync_replicas",
        "Replicas in the committed in-sync set.",
        |partition, _| partition.isr.len() as u64,
    );
    gauge(
        "quorate_partition_min_in_sync_replicas",
        "min.insync.replicas as it is committed for the partition.",
        |partition, _| u64::from(partition.min_insync),
    );
    gauge(
        "quorate_partition_waiting_produces",
        "Produce requests that are appended and wait to be committed.",
        |_, replica| replica.waiting_produces as u64,
    );
    // A follower without a session, or not heard, has no sample: nothing is known of it, and that is not a lag of 0.
    let lags = shown.iter().flat_map(|(partition, replica)| {
        replica.followers.iter().filter_map(|follower| {
            let [topic, index] = name_of(partition);
            let labels = [topic, index, ("follower", &follower.node as &dyn Display)];
            Some((labels, follower.lag_records?))
        })
    });
    page.family(
        "quorate_partition_follower_lag_records",
        Kind::Gauge,
        "Records of a partition led here that the follower does not hold durably yet; absent while it cannot be known.",
        lags,
    );
}

fn name_of(partition: &PartitionStatus) -> [Label<'_>; 2] {
    [
        ("topic", &partition.topic),
        ("partition", &partition.partition),
    ]
}

/// Records, bytes and ms by which a follower is behind. Of one that cannot be heard, nobody knows.
fn known_lag(link: &LinkView) -> Option<(u64, Option<u64>, Option<u64>)> {
    let lag = link.lag.filter(|lag| link.heard && lag.unknown == 0)?;
    Some((lag.records?, lag.bytes, lag.behind_ms))
}

fn links(
    page: &mut Exposition,
    links: &[LinkView],
    dials: &BTreeMap<NodeId, u64>,
    local: &[(&PartitionStatus, &ReplicaRole)],
) {
    let mut sample_all = |name: &str, kind, help: &str, value: fn(&LinkView) -> Option<f64>| {
        let samples = links.iter().filter_map(|link| {
            let direction: &dyn Display = match link.direction {
                LinkDirection::ToLeader => &"to_leader",
                LinkDirection::ToFollower => &"to_follower",
            };
            let labels: [Label<'_>; 2] = [("direction", direction), ("peer", &link.peer)];
            Some((labels, value(link)?))
        });
        page.family(name, kind, help, samples);
    };
    sample_all(
        "quorate_link_heard",
        Kind::Gauge,
        "1 while the peer of a replication link was heard within the suspicion time.",
        |link| Some(f64::from(u8::from(link.heard))),
    );
    sample_all(
        "quorate_link_heartbeat_age_seconds",
        Kind::Gauge,
        "How long ago the peer of a replication link was heard.",
        |link| Some(link.silence_ms as f64 / 1e3),
    );
    sample_all(
        "quorate_link_migrations_total",
        Kind::Counter,
        "How often a replication link went on over another socket or address without a handshake.",
        |link| Some(link.migrations as f64),
    );
    sample_all(
        "quorate_link_copied_bytes_total",
        Kind::Counter,
        "Bytes of small frames that a leader sent to a follower a second time because the link loses packets.",
        |link| (link.direction == LinkDirection::ToFollower).then_some(link.copied_bytes as f64),
    );
    sample_all(
        "quorate_link_handshakes_total",
        Kind::Counter,
        "Connections of a replication link that came about.",
        |link| Some(link.handshakes as f64),
    );
    sample_all(
        "quorate_link_suspicions_total",
        Kind::Counter,
        "How often the peer of a replication link fell silent for longer than the suspicion time.",
        |link| Some(link.suspicions as f64),
    );
    sample_all(
        "quorate_link_lag_records",
        Kind::Gauge,
        "Records that a follower does not hold durably, of all partitions that it follows here. Absent while it is not heard.",
        |link| Some(known_lag(link)?.0 as f64),
    );
    sample_all(
        "quorate_link_lag_bytes",
        Kind::Gauge,
        "Bytes of frames that a follower does not hold durably. Absent where that is not known.",
        |link| Some(known_lag(link)?.1? as f64),
    );
    sample_all(
        "quorate_link_behind_seconds",
        Kind::Gauge,
        "For how long a follower has not had everything. Absent while it is not heard.",
        |link| Some(known_lag(link)?.2? as f64 / 1e3),
    );
    // A link without a connection has no samples of a path: a round trip of 0 would be a lie.
    macro_rules! sample {
        ($name:literal, $kind:expr, $help:literal, |$link:ident| $value:expr $(,)?) => {
            sample_all($name, $kind, $help, |$link| ($link.mtu > 0).then(|| $value))
        };
    }
    sample!(
        "quorate_link_up_seconds",
        Kind::Gauge,
        "How long a replication link has stood.",
        |link| link.up_ms as f64 / 1e3,
    );
    sample!(
        "quorate_link_rtt_seconds",
        Kind::Gauge,
        "Smoothed round trip of a replication link.",
        |link| link.rtt_us as f64 / 1e6,
    );
    sample!(
        "quorate_link_rtt_variance_seconds",
        Kind::Gauge,
        "Mean deviation of the round trip of a replication link.",
        |link| link.rtt_variance_us as f64 / 1e6,
    );
    sample!(
        "quorate_link_window_bytes",
        Kind::Gauge,
        "Congestion window of a replication link.",
        |link| link.window_bytes as f64,
    );
    sample!(
        "quorate_link_sent_bytes_total",
        Kind::Counter,
        "Bytes of UDP sent over a replication link since it stands.",
        |link| link.sent_bytes as f64,
    );
    sample!(
        "quorate_link_received_bytes_total",
        Kind::Counter,
        "Bytes of UDP received over a replication link since it stands.",
        |link| link.received_bytes as f64,
    );
    sample!(
        "quorate_link_sent_packets_total",
        Kind::Counter,
        "Packets sent over a replication link since it stands.",
        |link| link.sent_packets as f64,
    );
    sample!(
        "quorate_link_lost_packets_total",
        Kind::Counter,
        "Packets sent over a replication link since it stands that were lost.",
        |link| link.lost_packets as f64,
    );
    let dials = dials
        .iter()
        .map(|(leader, count)| ([("peer", leader as &dyn Display)], *count));
    page.family(
        "quorate_link_dials_total",
        Kind::Counter,
        "How often a leader was dialled; every dial beyond the first is a redial.",
        dials,
    );
    let mut unacknowledged: BTreeMap<NodeId, usize> = BTreeMap::new();
    for follower in local.iter().flat_map(|(_, replica)| &replica.followers) {
        *unacknowledged.entry(follower.node).or_default() += follower.unacknowledged_bytes;
    }
    let in_flight = unacknowledged
        .iter()
        .map(|(follower, bytes)| ([("peer", follower as &dyn Display)], *bytes));
    page.family(
        "quorate_link_in_flight_bytes",
        Kind::Gauge,
        "Bytes of frames sent to a follower that it has not confirmed yet.",
        in_flight,
    );
}

fn requests(page: &mut Exposition, meters: &Meters) {
    let kinds = [
        (&"produce", &meters.produce),
        (&"fetch", &meters.fetch),
        (&"other", &meters.other),
    ];
    let label = |kind: &'static &'static str| [("api", kind as &dyn Display)];
    let of_each =
        |value: fn(&RequestMeter) -> u64| kinds.map(|(kind, meter)| (label(kind), value(meter)));
    page.histograms(
        "quorate_kafka_request_duration_seconds",
        "From the arrival of a request to its answer; a fetch waits for records as long as it asks to.",
        kinds.map(|(kind, meter)| (label(kind), meter.times.counts())),
    );
    page.family(
        "quorate_kafka_request_bytes_total",
        Kind::Counter,
        "Bytes of requests that were answered.",
        of_each(RequestMeter::request_bytes),
    );
    page.family(
        "quorate_kafka_response_bytes_total",
        Kind::Counter,
        "Bytes of responses.",
        of_each(RequestMeter::response_bytes),
    );
    page.single(
        "quorate_kafka_connections_refused_total",
        Kind::Counter,
        "Connections that were closed because the client broke the protocol or a limit.",
        meters.refused_connections(),
    );
}

fn process_itself(page: &mut Exposition) {
    for (name, help, value) in [
        (
            "process_resident_memory_bytes",
            "Resident memory.",
            process::resident_bytes(),
        ),
        (
            "process_open_fds",
            "Files and sockets that are open.",
            process::open_files(),
        ),
        (
            "process_max_fds",
            "Files and sockets that may be open.",
            process::max_open_files(),
        ),
    ] {
        if let Some(value) = value {
            page.single(name, Kind::Gauge, help, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::FollowerProgress;
    use crate::admin::health::tests::{partition, status};

    #[test]
    fn a_follower_that_is_not_heard_of_has_no_lag_of_0() {
        let mut led = partition(0, Some("leader"));
        let follower = |id, lag_records| FollowerProgress {
            node: NodeId::new(id).unwrap(),
            lag_records,
            unacknowledged_bytes: 5,
            catching_up: false,
        };
        led.local.as_mut().unwrap().followers = vec![follower(2, Some(7)), follower(3, None)];
        let mut page = Exposition::default();
        let local = [(&led, led.local.as_ref().unwrap())];
        partitions(&mut page, &local);
        links(&mut page, &[], &BTreeMap::new(), &local);
        let text = page.into_text();
        let lag =
            "quorate_partition_follower_lag_records{topic=\"t\",partition=\"0\",follower=\"2\"} 7";
        assert!(text.contains(lag), "{text}");
        assert!(!text.contains("follower=\"3\""), "{text}");
        assert!(text.contains("quorate_link_in_flight_bytes{peer=\"3\"} 5"));
    }

    #[test]
    fn what_has_samples_of_its_own_is_bounded() {
        let many = (0..MAX_PARTITIONS as u32 + 3).map(|index| partition(index, Some("follower")));
        let status = status(many.collect());
        let local: Vec<_> = status
            .partitions
            .iter()
            .map(|partition| (partition, partition.local.as_ref().unwrap()))
            .collect();
        let mut page = Exposition::default();
        partitions(&mut page, &local);
        let text = page.into_text();
        let samples = text.matches("quorate_partition_log_end_offset{").count();
        assert_eq!(samples, MAX_PARTITIONS);
        assert!(text.contains("quorate_partitions_without_samples 3\n"));
        assert!(text.contains("quorate_partitions{role=\"follower\"} 10003\n"));
    }
}
