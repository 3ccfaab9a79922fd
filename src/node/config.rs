//! What a node is started with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;

use thiserror::Error;

use super::kafka_config::{self, KafkaListener, ListenersError};
use crate::controller::{ALLOWED_CONTROLLERS, LeaderBalance};
use crate::kafka::{self, NodeSetting};
use crate::metadata::{DEFAULT_REPLICATION_FACTOR, Endpoint, FlushPolicy};
use crate::transport::{Congestion, CongestionPolicy, ImpairmentSpec};
use crate::types::{ListenerName, NodeId};

/// One node's configuration, raw flags and files resolved.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub node_id: NodeId,
    pub data_dir: PathBuf,
    /// `None`: certificates are made under the data directory. Only for a node that is a cluster by itself.
    pub certs_dir: Option<PathBuf>,
    /// Where QUIC is served: other nodes and native clients. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where others reach that; `None`: `listen` itself, which then is no wildcard address.
    pub advertise: Option<Endpoint>,
    /// The TCP listeners for Kafka clients; none: nowhere.
    pub kafka: BTreeMap<ListenerName, KafkaListener>,
    /// Where health, metrics and views are served over HTTP; `None`: nowhere.
    pub admin: Option<AdminListener>,
    /// The controllers with their QUIC addresses: 1, 3 or 5. Empty: this node is its own.
    pub controllers: BTreeMap<NodeId, String>,
    /// What `flush` is for topics that do not set it.
    pub flush: FlushPolicy,
    /// Whether every frame of every log is read and checked when it is opened, not only those that recovery must look at.
    pub verify_logs: bool,
    pub kafka_api: kafka::Config,
    /// Whether and when leaderships go back to the preferred replicas.
    pub leader_balance: LeaderBalance,
    /// How fast the node sends in bulk: to followers, and to clients.
    pub congestion: CongestionPolicy,
    /// Whether small frames go out more than once on links that lose packets.
    pub link_copies: bool,
    /// Makes the node's QUIC links worse on purpose; the file [`IMPAIR_FILE`] in the data directory changes how. `None`: links
    /// are what they are, and there is no such file.
    pub impair: Option<ImpairmentSpec>,
    /// For measurements only: replicates over one TLS stream on TCP to each leader, with this congestion control of the kernel, and
    /// listens for such streams on the TCP port that has the number of its QUIC port.
    pub replicate_over_tcp: Option<String>,
}

/// What the links of a node suffer that was started to have them impaired, in the data directory. Its text takes the place of
/// [`NodeConfig::impair`] for as long as it is there.
pub const IMPAIR_FILE: &str = "impair";

/// A TCP listener for HTTP requests about the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminListener {
    pub listen: SocketAddr,
    /// Without TLS, which is allowed on a loopback address only. Else clients show a certificate of the cluster's CA.
    pub plaintext: bool,
}

/// A configuration that cannot work. Nothing was started or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error(
        "others cannot dial {address}, which stands for every address of this machine: add --advertise HOST:PORT, the name \
         and port by which they reach this node"
    )]
    WildcardAdvertised { address: SocketAddr },
    #[error(transparent)]
    Listeners(#[from] ListenersError),
    #[error(
        "a plaintext admin endpoint at {address} would show the cluster to everyone who can reach it: listen on 127.0.0.1, \
         or leave --admin-plaintext off and use TLS"
    )]
    AdminPlaintextNotLoopback { address: SocketAddr },
    #[error("{count} controllers are listed: list 1, 3 or 5 with --controllers")]
    ControllerCount { count: usize },
    #[error(
        "a node of a cluster of several needs certificates of the cluster's CA: make them with \"quorate cert create-node \
         {node} HOST…\" and name their directory with --certs-dir"
    )]
    CertificatesNeeded { node: NodeId },
}

impl NodeConfig {
    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(ConfigError::WildcardAdvertised {
                address: self.listen,
            });
        }
        let admin = self.admin.map(|admin| admin.listen);
        kafka_config::check(&self.kafka, admin)?;
        if let Some(admin) = &self.admin
            && admin.plaintext
            && !admin.listen.ip().is_loopback()
        {
            return Err(ConfigError::AdminPlaintextNotLoopback {
                address: admin.listen,
            });
        }
        let count = self.controllers.len();
        if count != 0 && !ALLOWED_CONTROLLERS.contains(&count) {
            return Err(ConfigError::ControllerCount { count });
        }
        if self.certs_dir.is_none() && !self.is_alone() {
            return Err(ConfigError::CertificatesNeeded { node: self.node_id });
        }
        Ok(())
    }

    /// Whether the node is its own, only controller.
    pub fn is_alone(&self) -> bool {
        self.controllers.keys().all(|&node| node == self.node_id)
    }

    /// The settings that DescribeConfigs shows for this node.
    pub(super) fn settings(
        &self,
        quic: SocketAddr,
        kafka: &BTreeMap<ListenerName, SocketAddr>,
    ) -> Vec<NodeSetting> {
        // In Kafka's form, in which a name is written in capitals.
        let capitals = |name: &ListenerName| name.as_str().to_ascii_uppercase();
        let mut listeners = format!("QUIC://{quic}");
        for (name, address) in kafka {
            listeners.push_str(&format!(",{}://{address}", capitals(name)));
        }
        let protocols: Vec<String> = self
            .kafka
            .iter()
            .map(|(name, listener)| format!("{}:{}", capitals(name), listener.security_protocol()))
            .collect();
        let balance = LeaderBalance::default();
        let partitions = self.kafka_api.num_partitions;
        let factor = self.kafka_api.default_replication_factor;
        let setting = |name: &str, value: String, is_default, documentation: &str| NodeSetting {
            name: name.to_owned(),
            value,
            is_default,
            documentation: documentation.to_owned(),
        };
        vec![
            setting(
                "node.id",
                self.node_id.to_string(),
                false,
                "This node's number in the cluster.",
            ),
            setting(
                "log.dirs",
                self.data_dir.display().to_string(),
                false,
                "The data directory.",
            ),
            setting("listeners", listeners, false, "Where this node listens."),
            setting(
                "listener.security.protocol.map",
                protocols.join(","),
                false,
                "What clients speak with each Kafka listener.",
            ),
            setting(
                "auto.create.topics.enable",
                self.kafka_api.auto_create_topics.to_string(),
                self.kafka_api.auto_create_topics,
                "Whether a topic is made when a client first asks for its metadata.",
            ),
            setting(
                "num.partitions",
                partitions.map_or(1, NonZero::get).to_string(),
                partitions.is_none(),
                "How many partitions a topic gets that is asked for without saying how many.",
            ),
            setting(
                "default.replication.factor",
                factor
                    .map_or(DEFAULT_REPLICATION_FACTOR, |factor| factor.get().into())
                    .to_string(),
                factor.is_none(),
                "How many replicas such a topic's partitions get; by default no more than there are nodes.",
            ),
            setting(
                "flush",
                match self.flush {
                    FlushPolicy::Fsync => "fsync".to_owned(),
                    FlushPolicy::Os => "os".to_owned(),
                },
                self.flush == FlushPolicy::Fsync,
                "When an appended record counts as durable, where the topic does not say: fsync, or os for written but not synced.",
            ),
            setting(
                "auto.leader.rebalance.enable",
                self.leader_balance.enabled.to_string(),
                self.leader_balance.enabled == balance.enabled,
                "Whether leaderships go back to the preferred replicas by themselves.",
            ),
            setting(
                "leader.imbalance.check.interval.seconds",
                self.leader_balance.check_every.as_secs().to_string(),
                self.leader_balance.check_every == balance.check_every,
                "How often it is looked whether they should.",
            ),
            setting(
                "leader.imbalance.per.broker.percentage",
                self.leader_balance.tolerated_percent.to_string(),
                self.leader_balance.tolerated_percent == balance.tolerated_percent,
                "How many in a hundred of the partitions of which a node is the preferred leader may be led by others.",
            ),
            setting(
                "congestion",
                self.congestion.default.to_string(),
                self.congestion.default == Congestion::default(),
                "The congestion controller of what this node sends in bulk: keel, cubic or bbr.",
            ),
            setting(
                "congestion.links",
                self.congestion.links_text(),
                self.congestion.links.is_empty(),
                "Other controllers for the links to particular nodes, as ID=NAME with commas between them.",
            ),
            setting(
                "link.copies",
                self.link_copies.to_string(),
                self.link_copies,
                "Whether small frames go out more than once on links that lose packets.",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        NodeConfig {
            node_id: NodeId::new(1).unwrap(),
            data_dir: "data".into(),
            certs_dir: Some("certs".into()),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            kafka: BTreeMap::new(),
            admin: None,
            controllers: BTreeMap::new(),
            flush: FlushPolicy::Fsync,
            verify_logs: false,
            kafka_api: kafka::Config::default(),
            leader_balance: LeaderBalance::default(),
            congestion: CongestionPolicy::default(),
            link_copies: true,
            impair: None,
            replicate_over_tcp: None,
        }
    }

    #[test]
    fn a_wildcard_address_needs_an_advertised_one() {
        let mut config = config();
        assert_eq!(config.check(), Ok(()));
        config.listen = "0.0.0.0:9292".parse().unwrap();
        assert!(matches!(
            config.check(),
            Err(ConfigError::WildcardAdvertised { .. })
        ));
        config.advertise = Some(Endpoint {
            host: "node1.example".to_owned(),
            port: 9292,
        });
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn a_plaintext_admin_endpoint_stays_on_this_machine() {
        let mut config = config();
        for (address, fine) in [("127.0.0.1:9092", true), ("192.0.2.1:9092", false)] {
            let mut admin = AdminListener {
                listen: address.parse().unwrap(),
                plaintext: true,
            };
            config.admin = Some(admin);
            assert_eq!(config.check().is_ok(), fine, "{address}");
            admin.plaintext = false;
            config.admin = Some(admin);
            assert_eq!(config.check(), Ok(()));
            config.admin = None;
        }
    }

    #[test]
    fn several_nodes_need_certificates_and_an_odd_number_of_controllers() {
        let mut config = config();
        for node in 1..=2 {
            let node = NodeId::new(node).unwrap();
            config.controllers.insert(node, format!("host:{node}"));
        }
        assert_eq!(
            config.check(),
            Err(ConfigError::ControllerCount { count: 2 })
        );
        config
            .controllers
            .insert(NodeId::new(3).unwrap(), "host:3".to_owned());
        assert_eq!(config.check(), Ok(()));
        config.certs_dir = None;
        assert!(matches!(
            config.check(),
            Err(ConfigError::CertificatesNeeded { .. })
        ));
    }
}
