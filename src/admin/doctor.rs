//! A node's part in finding out what is wrong: it says how it is, measures its disk, and climbs to its peers itself.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use quinn::Connection;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::link_findings::link_findings;
use super::message::{AdminError, AdminRequest, AdminResponse, exchange};
use super::status::known_nodes;
use crate::broker::Broker;
use crate::doctor::{
    Check, DiskReport, Endpoint, Finding, Inquiry, NodeVitals, Verdict, climb, judge_cluster,
    probe_directory, unix_ms,
};
use crate::kafka::Service;
use crate::transport::UdpBuffers;

/// A disk is measured at most this often, whoever asks: others who ask meanwhile have the same answer.
const DISK_EVERY: Duration = Duration::from_secs(1);
/// Peers that are examined at a time.
const CLIMBS_AT_A_TIME: usize = 8;
/// The longest that peers are examined for one request.
const MAX_EXAMINING: Duration = Duration::from_secs(120);

/// What the answers are made from, beside the broker.
pub(super) struct Doctor {
    buffers: UdpBuffers,
    disk: Mutex<Option<(Instant, Result<DiskReport, String>)>>,
    /// One request at a time climbs; further ones wait.
    climbing: Semaphore,
}

impl Doctor {
    pub(super) fn new(buffers: UdpBuffers) -> Doctor {
        Doctor {
            buffers,
            disk: Mutex::new(None),
            climbing: Semaphore::new(1),
        }
    }

    pub(super) async fn vitals(&self, broker: &Broker) -> NodeVitals {
        let image = broker.image();
        let me = broker.me();
        let links = broker.link_views(&broker.views().await);
        NodeVitals {
            node: me.node,
            incarnation: me.incarnation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: image.cluster_id(),
            unix_ms: unix_ms(),
            nodes: known_nodes(broker),
            udp_asked_bytes: self.buffers.asked as u64,
            udp_receive_bytes: self.buffers.receive as u64,
            udp_send_bytes: self.buffers.send as u64,
            certificate_ends_unix_s: broker.identity().info().not_after.unix_timestamp(),
            links: link_findings(me.node, &links),
        }
    }

    /// Measures the disk under the data directory, or says what was measured just now.
    pub(super) async fn disk(&self, broker: &Broker) -> Result<DiskReport, String> {
        let mut last = self.disk.lock().await;
        if let Some((at, report)) = &*last
            && at.elapsed() < DISK_EVERY
        {
            return report.clone();
        }
        let data_dir = broker.data_dir().clone();
        let measured = tokio::task::spawn_blocking(move || {
            probe_directory(&**data_dir.file_system(), data_dir.path())
        });
        let report = match measured.await {
            Ok(report) => report.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        *last = Some((Instant::now(), report.clone()));
        report
    }

    /// Climbs to every other node of the cluster, with the addresses that they have registered. What there was no time for
    /// is said.
    pub(super) async fn examine_peers(&self, broker: &Broker, within: Duration) -> Vec<Finding> {
        let deadline = Instant::now() + within.min(MAX_EXAMINING);
        // Never closed, so this is only ever a wait.
        let _turn = self.climbing.acquire().await;
        let me = broker.me().node;
        let from = format!("node {me}");
        let own_cluster = broker.image().cluster_id();
        let identity = broker.identity();
        let peers: Vec<Endpoint> = known_nodes(broker)
            .into_iter()
            .filter(|known| known.node != me)
            .map(|known| Endpoint {
                node: Some(known.node),
                host_port: known.quic,
            })
            .collect();
        let climbs = peers.into_iter().map(|peer| {
            let (identity, from) = (identity.clone(), from.clone());
            async move {
                let climbed = climb(Some(&identity), &peer, &from, &AdminInquiry, false);
                let Ok(climbed) = timeout_at(deadline, climbed).await else {
                    let verdict = Verdict::skipped(
                        "there was no time left to examine it",
                        "run this again with a longer --timeout",
                    );
                    return vec![verdict.of(Check::Answer, &from, &peer.label())];
                };
                let mut findings = climbed.findings;
                if let Some(answered) = &climbed.answered {
                    let verdict = judge_cluster(answered.vitals.cluster, own_cluster);
                    findings.push(verdict.of(Check::Cluster, &from, &peer.label()));
                    findings.sort_by_key(|found| found.check);
                }
                findings
            }
        });
        let climbed: Vec<Vec<Finding>> = futures_util::stream::iter(climbs)
            .buffered(CLIMBS_AT_A_TIME)
            .collect()
            .await;
        climbed.into_iter().flatten().collect()
    }
}

/// Asks over a connection that speaks the protocol of this room.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdminInquiry;

impl Inquiry for AdminInquiry {
    fn vitals<'a>(
        &'a self,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Result<NodeVitals, String>> {
        Box::pin(async move {
            match exchange(connection, &AdminRequest::Vitals).await {
                Ok(AdminResponse::Vitals(vitals)) => Ok(*vitals),
                Ok(_) => Err(AdminError::Unexpected.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn disk<'a>(&'a self, connection: &'a Connection) -> BoxFuture<'a, Result<DiskReport, String>> {
        Box::pin(async move {
            match exchange(connection, &AdminRequest::MeasureDisk).await {
                Ok(AdminResponse::Disk(report)) => report,
                Ok(_) => Err(AdminError::Unexpected.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

/// Has a node examine every other node from where it is.
pub async fn examine_peers(
    connection: &Connection,
    within: Duration,
) -> Result<Vec<Finding>, AdminError> {
    let request = AdminRequest::ExaminePeers {
        within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
    };
    match exchange(connection, &request).await? {
        AdminResponse::Findings(findings) => Ok(findings),
        _ => Err(AdminError::Unexpected),
    }
}
