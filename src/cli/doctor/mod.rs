//! `quorate doctor`: what is wrong with a cluster, seen from here and from each node, and what to do about it.

mod configured;
mod kafka_port;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use time::OffsetDateTime;

use self::configured::Configured;
use super::connect::bootstrap_servers;
use super::{Exit, GlobalOptions, block_on, print_json};
use crate::admin::{AdminInquiry, examine_peers};
use crate::doctor::{
    Check, Climb, Endpoint, Finding, HERE, Outcome, Verdict, climb, examine_identity,
    examine_socket, judge_cluster, judge_disk, most_common_cluster, probe_directory,
};
use crate::storage::RealFileSystem;
use crate::transport::{Alpn, CloseReason, Identity, PeerAddress, dial};
use crate::types::{ClusterId, NodeId};

/// Ladders that are climbed at a time.
const CLIMBS_AT_A_TIME: usize = 16;
/// Endpoints that are examined: as many as a cluster may have nodes, and as many names for them.
const MAX_ENDPOINTS: usize = 512;
/// A node that examines its peers has so much less time than it is waited for.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
const DIAL_WITHIN: Duration = Duration::from_secs(3);
const CLOSE_WAIT: Duration = Duration::from_millis(200);
/// Any address will do to see which UDP buffers the kernel grants; nothing is sent there.
const ANYWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// Find out what is wrong between here, the nodes and their disks, and what to do about it
///
/// Every node of the cluster is examined, beginning with --bootstrap-server: name, UDP port, packet size, QUIC version,
/// protocol, certificates, node and cluster ids, clock, path, disk, replication links. Each finding that is not ok says what
/// to do. Exit code 10 when something is wrong.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  quorate doctor -b db1:9292                  every node, from here\n  \
                  quorate doctor -b db1:9292 --from-all       and every node from every other\n  \
                  quorate doctor --config /etc/quorate.toml   this machine's node before it is started"
)]
pub(super) struct DoctorArgs {
    /// Also have each node that answers examine every other one
    #[arg(long)]
    from_all: bool,

    /// A node's configuration file on this machine: it is checked, and its addresses are examined too
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// A data directory on this machine, of which the disk is measured
    #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Show only what is not ok
    #[arg(long)]
    problems: bool,
}

pub(super) fn run(options: &GlobalOptions, args: DoctorArgs) -> anyhow::Result<Exit> {
    block_on(async {
        let findings = examine(options, &args).await;
        if options.json() {
            for finding in &findings {
                if !(args.problems && finding.outcome == Outcome::Ok) {
                    print_json(finding)?;
                }
            }
        } else {
            report::print(&findings, args.problems)?;
        }
        let is_wrong = |finding: &Finding| finding.outcome == Outcome::Fail;
        Ok(if findings.iter().any(is_wrong) {
            Exit::Unhealthy
        } else {
            Exit::Ok
        })
    })
}

async fn examine(options: &GlobalOptions, args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = Vec::new();
    let configured = configured::examine(options, args.config.as_deref(), args.data_dir.as_deref());
    let loaded = match &configured.certs_dir {
        Some(dir) => Identity::load_node(dir),
        None => Identity::load_client(options.certs_dir(), None),
    };
    let verdict = examine_identity(loaded.as_ref(), OffsetDateTime::now_utc());
    findings.push(verdict.of(Check::OwnCertificate, HERE, HERE));
    findings.push(examine_socket(ANYWHERE).of(Check::UdpSocket, HERE, HERE));
    if let Some(data_dir) = &configured.data_dir {
        findings.extend(examine_data_dir(data_dir.clone()).await);
    }
    let identity = loaded.ok().map(Arc::new);
    let climbs = climb_to_all(identity.as_ref(), first_endpoints(options, &configured)).await;

    findings.extend(configured.findings(&climbs));
    for port in &configured.kafka {
        let verdict = port.examine(identity.as_deref()).await;
        findings.push(verdict.of(Check::KafkaListener, HERE, HERE));
    }
    findings.sort_by_key(|finding| finding.check);
    let expected = most_common_cluster(
        climbs
            .iter()
            .filter_map(|(_, climb)| climb.answered.as_ref())
            .map(|answered| answered.vitals.cluster),
    );
    for (endpoint, climb) in &climbs {
        findings.extend(of_endpoint(endpoint, climb, expected));
    }
    findings.extend(links(&climbs));
    if args.from_all {
        match &identity {
            Some(identity) => findings.extend(from_all(identity, options.timeout, &climbs).await),
            None => {
                let verdict = Verdict::skipped(
                    "the nodes cannot be asked without a certificate",
                    "mend this end's certificate first (see own certificate)",
                );
                findings.push(verdict.of(Check::Answer, HERE, "every node"));
            }
        }
    }
    findings
}

async fn examine_data_dir(directory: PathBuf) -> Vec<Finding> {
    let target = directory.display().to_string();
    let measured =
        tokio::task::spawn_blocking(move || probe_directory(&RealFileSystem, &directory)).await;
    let report = match measured {
        Ok(report) => report.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match report {
        Ok(report) => {
            let (sync, space) = judge_disk(&report);
            vec![
                sync.of(Check::DiskSync, HERE, HERE),
                space.of(Check::DiskSpace, HERE, HERE),
            ]
        }
        Err(cause) => {
            let verdict = Verdict::fail(
                format!("the disk of {target} could not be measured: {cause}"),
                "name the data directory of a node of this machine, as a user who may write there",
            );
            vec![verdict.of(Check::DiskSync, HERE, HERE)]
        }
    }
}

/// What was named: on the command line, and in the configuration file.
fn first_endpoints(options: &GlobalOptions, configured: &Configured) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = configured.endpoints.clone();
    // The default is a guess that is not needed where something was said.
    if !options.bootstrap_servers.is_empty() || endpoints.is_empty() {
        let named = bootstrap_servers(options)
            .into_iter()
            .map(|server| Endpoint {
                node: server.node,
                host_port: server.host_port,
            });
        endpoints.splice(0..0, named);
    }
    endpoints
}

/// Climbs to what was named, and then to every node that the nodes know. In that order.
async fn climb_to_all(
    identity: Option<&Arc<Identity>>,
    first: Vec<Endpoint>,
) -> Vec<(Endpoint, Climb)> {
    let mut begun: BTreeSet<String> = BTreeSet::new();
    let mut climbs: Vec<(Endpoint, Climb)> = Vec::new();
    let mut next = first;
    while !next.is_empty() {
        next.retain(|endpoint| {
            begun.len() < MAX_ENDPOINTS && begun.insert(endpoint.host_port.clone())
        });
        let done: Vec<(Endpoint, Climb)> = futures_util::stream::iter(next)
            .map(|endpoint| async move {
                let climbed = climb(identity, &endpoint, HERE, &AdminInquiry, true).await;
                (endpoint, climbed)
            })
            .buffered(CLIMBS_AT_A_TIME)
            .collect()
            .await;
        let known: BTreeMap<NodeId, String> = done
            .iter()
            .filter_map(|(_, climb)| climb.answered.as_ref())
            .flat_map(|answered| &answered.vitals.nodes)
            .map(|known| (known.node, known.quic.clone()))
            .collect();
        climbs.extend(done);
        name_nodes(&mut climbs, &known);
        next = known
            .into_iter()
            .map(|(node, host_port)| Endpoint {
                node: Some(node),
                host_port,
            })
            .collect();
    }
    climbs
}

/// An address that was given without a node is that of the node that answers there, or has registered it.
fn name_nodes(climbs: &mut [(Endpoint, Climb)], known: &BTreeMap<NodeId, String>) {
    for (endpoint, climb) in climbs {
        if endpoint.node.is_some() {
            continue;
        }
        let registered = known
            .iter()
            .find(|(_, quic)| **quic == endpoint.host_port)
            .map(|(node, _)| *node);
        let answered = climb.answered.as_ref().map(|answered| answered.vitals.node);
        endpoint.node = answered.or(registered);
    }
}

/// The findings of one ladder, with the verdict on the cluster and under the name that the endpoint has now.
fn of_endpoint(endpoint: &Endpoint, climb: &Climb, expected: Option<ClusterId>) -> Vec<Finding> {
    let target = endpoint.label();
    let mut findings = climb.findings.clone();
    for finding in &mut findings {
        finding.target.clone_from(&target);
    }
    if let Some(answered) = &climb.answered {
        let verdict = judge_cluster(answered.vitals.cluster, expected);
        findings.push(verdict.of(Check::Cluster, HERE, &target));
        findings.sort_by_key(|finding| finding.check);
    }
    findings
}

/// What each node says of its links; once, though it may have been reached by several names.
fn links(climbs: &[(Endpoint, Climb)]) -> Vec<Finding> {
    let mut told = BTreeSet::new();
    climbs
        .iter()
        .filter_map(|(_, climb)| climb.answered.as_ref())
        .filter(|answered| told.insert(answered.vitals.node))
        .flat_map(|answered| answered.vitals.links.clone())
        .collect()
}

/// Has each node that answered examine the others.
async fn from_all(
    identity: &Arc<Identity>,
    timeout: Duration,
    climbs: &[(Endpoint, Climb)],
) -> Vec<Finding> {
    let reached: BTreeMap<NodeId, &Endpoint> = climbs
        .iter()
        .filter_map(|(endpoint, climb)| Some((climb.answered.as_ref()?.vitals.node, endpoint)))
        .collect();
    let asked = reached.into_iter().map(|(node, endpoint)| async move {
        match ask_one(identity, endpoint, timeout).await {
            Ok(findings) => findings,
            Err(cause) => {
                let verdict = Verdict::fail(
                    format!("asked to examine its peers, it did not answer: {cause}"),
                    "upgrade the node if it is older than this program; else give this command a longer --timeout",
                );
                vec![verdict.of(Check::Answer, &format!("node {node}"), "its peers")]
            }
        }
    });
    let findings: Vec<Vec<Finding>> = futures_util::stream::iter(asked)
        .buffered(CLIMBS_AT_A_TIME)
        .collect()
        .await;
    findings.into_iter().flatten().collect()
}

async fn ask_one(
    identity: &Arc<Identity>,
    endpoint: &Endpoint,
    timeout: Duration,
) -> Result<Vec<Finding>, String> {
    let address = PeerAddress {
        node: endpoint.node,
        host_port: endpoint.host_port.clone(),
    };
    let dialled = dial(identity, &address, Alpn::Admin, DIAL_WITHIN)
        .await
        .map_err(|error| error.to_string())?;
    let within = timeout.saturating_sub(ANSWER_MARGIN).max(timeout / 2);
    let asked = examine_peers(&dialled.connection, within);
    let answer = match tokio::time::timeout(timeout, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", timeout.as_secs_f64())),
    };
    dialled.close(CloseReason::Done, "", CLOSE_WAIT).await;
    answer
}
