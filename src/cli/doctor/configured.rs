//! A node's configuration on this machine: whether it can work, and what it says is to be examined.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use super::super::connect::in_one_line;
use super::super::{GlobalOptions, server};
use super::kafka_port::KafkaPort;
use crate::doctor::{Check, Climb, Endpoint, Finding, HERE, Verdict};
use crate::node::NodeConfig;
use crate::types::NodeId;

/// What was found, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Configured {
    verdict: Option<Verdict>,
    /// The node's own address, and the controllers'.
    pub(super) endpoints: Vec<Endpoint>,
    /// Where the node's certificates are; `None` without a configuration file.
    pub(super) certs_dir: Option<PathBuf>,
    pub(super) data_dir: Option<PathBuf>,
    listen: Option<Listen>,
    pub(super) kafka: Vec<KafkaPort>,
}

#[derive(Debug)]
struct Listen {
    node: NodeId,
    address: SocketAddr,
    /// As others reach it.
    host_port: String,
    bound: Result<(), io::Error>,
}

/// Reads the configuration as `server start` would, environment included, and starts nothing.
pub(super) fn examine(
    options: &GlobalOptions,
    file: Option<&Path>,
    data_dir: Option<&Path>,
) -> Configured {
    let mut configured = Configured {
        data_dir: data_dir.map(Path::to_owned),
        ..Configured::default()
    };
    let Some(file) = file else {
        configured.verdict = Some(Verdict::ok(
            "flags and environment; no node's configuration file was given (--config)",
        ));
        return configured;
    };
    let config = match server::configuration(options, file, data_dir) {
        Ok(config) => config,
        Err(error) => {
            configured.verdict = Some(refused(&in_one_line(error.as_ref())));
            return configured;
        }
    };
    configured.verdict = Some(match config.check() {
        Ok(()) => Verdict::ok(format!(
            "{}: node {} in {}",
            file.display(),
            config.node_id,
            config.data_dir.display()
        )),
        Err(error) => refused(&error.to_string()),
    });
    let host_port = match &config.advertise {
        Some(advertise) => advertise.to_string(),
        None => config.listen.to_string(),
    };
    configured.endpoints.push(Endpoint {
        node: Some(config.node_id),
        host_port: host_port.clone(),
    });
    for (node, host_port) in &config.controllers {
        configured.endpoints.push(Endpoint {
            node: Some(*node),
            host_port: host_port.clone(),
        });
    }
    configured.listen = Some(Listen {
        node: config.node_id,
        address: config.listen,
        host_port,
        bound: UdpSocket::bind(config.listen).map(drop),
    });
    configured.kafka = config
        .kafka
        .iter()
        .map(|(name, listener)| KafkaPort::new(config.node_id, name.clone(), listener))
        .collect();
    configured.certs_dir = Some(certs_dir(&config));
    // A directory that is not there yet is made by the node's first start.
    let exists = config.data_dir.is_dir();
    configured.data_dir = configured
        .data_dir
        .or(exists.then(|| config.data_dir.clone()));
    configured
}

fn certs_dir(config: &NodeConfig) -> PathBuf {
    config
        .certs_dir
        .clone()
        .unwrap_or_else(|| config.data_dir.join("certs"))
}

fn refused(problem: &str) -> Verdict {
    // These messages are whole sentences: what is wrong, then what to do.
    match problem.rsplit_once(": ") {
        Some((detail, fix)) => Verdict::fail(detail, fix),
        None => Verdict::fail(problem, "correct the configuration"),
    }
}

impl Configured {
    /// Who holds the configured port is known once its address has been climbed to.
    pub(super) fn findings(&self, climbs: &[(Endpoint, Climb)]) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(verdict) = &self.verdict {
            findings.push(verdict.clone().of(Check::Configuration, HERE, HERE));
        }
        if let Some(listen) = &self.listen {
            let holder = climbs
                .iter()
                .find(|(endpoint, _)| endpoint.host_port == listen.host_port)
                .and_then(|(_, climb)| climb.answered.as_ref())
                .map(|answered| answered.vitals.node);
            let verdict = listen.verdict(holder);
            findings.push(verdict.of(Check::ListenPort, HERE, HERE));
        }
        findings
    }
}

impl Listen {
    fn verdict(&self, holder: Option<NodeId>) -> Verdict {
        let (node, address) = (self.node, self.address);
        match (&self.bound, holder) {
            (Ok(()), _) => Verdict::ok(format!(
                "UDP port {address} is free: node {node} does not run here at present"
            )),
            (Err(error), Some(holder))
                if error.kind() == io::ErrorKind::AddrInUse && holder == node =>
            {
                Verdict::ok(format!("UDP port {address} is held by node {node} itself"))
            }
            (Err(error), holder) if error.kind() == io::ErrorKind::AddrInUse => Verdict::fail(
                match holder {
                    Some(holder) => {
                        format!(
                            "UDP port {address} is held by node {holder}, and not by node {node}"
                        )
                    }
                    None => format!(
                        "UDP port {address} is held by a process that does not answer as a node"
                    ),
                },
                format!(
                    "ss -ulnp 'sport = :{}' names the process: stop it, or give the node another --listen",
                    address.port()
                ),
            ),
            (Err(error), _) => Verdict::fail(
                format!("UDP port {address} cannot be bound: {error}"),
                "listen on an address of this machine, or 0.0.0.0 with --advertise, and on a port above 1023",
            ),
        }
    }
}
