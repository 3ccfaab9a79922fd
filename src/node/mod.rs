//! Floor 9: one process, started and stopped as a whole.
//!
//! [`Node::start`] checks everything that can be refused before it changes anything: configuration, certificates, ports,
//! data directory, in that order. Then it starts, from the bottom up: storage, endpoint, controller, broker, listeners.

mod admin_listener;
mod config;
mod drain;
mod identity;
mod kafka_config;
mod kafka_listener;
mod network;
mod quic_listener;
mod tcp_link_listener;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{AdminListener, ConfigError, IMPAIR_FILE, NodeConfig};
pub use kafka_config::{KafkaListener, KafkaSecurity, ListenersError};

use crate::admin;
use crate::broker::{Broker, BrokerOptions, Starting};
use crate::controller::{Controller, ControllerConfig, RegistrationState, StartError, Timing};
use crate::kafka;
use crate::metadata::{Endpoint, METADATA_VERSION, Registration};
use crate::storage::{
    DataDir, DataDirError, GroupCommit, Opener, RealFileSystem, SYNC_THREADS, SmallFileError,
};
use crate::transport::{
    Alpn, BindError, CallPool, CertificateError, ClientAuth, CloseReason, CurrentIdentity,
    EndpointKeys, EndpointKeysError, Identity, IdentityError, ImpairedLinks, Server, ServerLimits,
    ServerOptions, Sockets, TcpTls, TlsConfigError, bind_tcp, probe_tcp_congestion,
    watch_impairment,
};
use crate::types::{ClusterId, DirectoryId, Incarnation, ListenerName};

/// How long a stop waits for peers to take note of it.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Why a node did not start.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot make certificates for a node that was given none")]
    Certificates(#[from] CertificateError),
    #[error(
        "{} is the certificate of node {found}, and this is node {wanted}: name the directory of this node's own \
         certificates, or start it with --node-id {found}",
        path.display()
    )]
    OtherNodesCertificate {
        path: PathBuf,
        wanted: crate::types::NodeId,
        found: crate::types::NodeId,
    },
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    SmallFile(#[from] SmallFileError),
    #[error(transparent)]
    Keys(#[from] EndpointKeysError),
    #[error("cannot use this node's certificates for TLS over TCP")]
    TcpTls(#[from] TlsConfigError),
    #[error("cannot start the controller in {}", path.display())]
    Controller {
        path: PathBuf,
        #[source]
        source: StartError,
    },
    #[error("cannot replicate over TCP: {0}")]
    ReplicateOverTcp(String),
    #[error("cannot start this node's threads: check the limits on processes and memory")]
    Threads(#[source] io::Error),
}

/// A running node.
pub struct Node {
    data_dir: Arc<DataDir>,
    server: Server,
    quic_address: SocketAddr,
    kafka_addresses: BTreeMap<ListenerName, SocketAddr>,
    admin_address: Option<SocketAddr>,
    controller: Controller,
    broker: Arc<Broker>,
    calls: Arc<CallPool>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Node {
    /// Starts a node. After an error nothing of it runs, and unless the error says otherwise nothing was changed on the disk.
    pub async fn start(config: NodeConfig) -> Result<Node, NodeError> {
        config.check()?;
        let certs_dir = identity::certs_dir(&config);
        let given = identity::load(&config, &certs_dir)?;
        probe_udp(config.listen)?;
        let mut kafka_sockets = BTreeMap::new();
        for (name, listener) in &config.kafka {
            kafka_sockets.insert(name.clone(), bind_tcp(listener.listen)?);
        }
        let admin_socket = match &config.admin {
            Some(listener) => Some(bind_tcp(listener.listen)?),
            None => None,
        };
        let data_dir = Arc::new(open_data_dir(&config)?);
        let identity = match given {
            Some(identity) => identity,
            None => identity::create(&config, &certs_dir)?,
        };
        let identity = CurrentIdentity::new(identity);

        let keys = EndpointKeys::load_or_create(&data_dir.path().join("endpoint.keys"))?;
        let sockets = sockets(&config)?;
        let options = ServerOptions {
            listen: config.listen,
            identity: identity.get(),
            keys,
            alpns: Alpn::ALL.to_vec(),
        };
        let (server, accepted) = Server::start_on(&sockets, options, ServerLimits::default())?;
        server.use_congestion(config.congestion.clone());
        let quic_address = server.local_addr().map_err(NodeError::Threads)?;
        let tcp_links = tcp_links(&config, quic_address, &identity.get())?;
        let admin_address = admin_socket.as_ref().map(TcpListener::local_addr);
        let admin_address = admin_address.transpose().map_err(NodeError::Threads)?;
        let mut kafka_addresses = BTreeMap::new();
        for (name, socket) in &kafka_sockets {
            let address = socket.local_addr().map_err(NodeError::Threads)?;
            kafka_addresses.insert(name.clone(), address);
        }

        let registration = registration(&config, &data_dir, quic_address, &kafka_addresses);
        let me = registration.appointment();
        let group_commit = GroupCommit::start(SYNC_THREADS).map_err(NodeError::Threads)?;
        let starting = Starting::new(
            BrokerOptions {
                me,
                identity: identity.clone(),
                sockets: sockets.clone(),
                tcp_congestion: config.replicate_over_tcp.clone(),
                link_copies: config.link_copies,
                data_dir: data_dir.clone(),
                default_flush: config.flush,
                verify_logs: config.verify_logs,
                settings: config.settings(quic_address, &kafka_addresses),
            },
            group_commit,
        )
        .map_err(NodeError::Threads)?;

        let calls = Arc::new(CallPool::on(sockets, identity.clone()));
        let store_path = data_dir.path().join("controller.redb");
        let controller = Controller::start(
            ControllerConfig {
                registration,
                voters: config.controllers.clone(),
                cluster_id: ClusterId::from_random_bits(rand::random()),
                store_path: store_path.clone(),
                timing: Timing::default(),
                leader_balance: config.leader_balance,
            },
            Arc::new(network::Network(calls.clone())),
            starting.fence_handler(),
        )
        .await
        .map_err(|source| NodeError::Controller {
            path: store_path,
            source,
        })?;
        let broker = starting.start(controller.clone());

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let kafka = kafka::Server::new(broker.clone(), config.kafka_api);
        let sources = Arc::new(admin::Sources::new(
            broker.clone(),
            kafka.clone(),
            server.clone(),
        ));
        tasks.spawn(quic_listener::run(quic_listener::Listener {
            accepted,
            broker: broker.clone(),
            controller: controller.clone(),
            kafka: kafka.clone(),
            sources: sources.clone(),
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        }));
        if let Some((socket, tls, congestion)) = tcp_links {
            tasks.spawn(tcp_link_listener::run(
                socket,
                Arc::new(tls),
                congestion,
                broker.clone(),
                shutdown.clone(),
                tasks.clone(),
            ));
        }
        if let (Some(listener), Some(socket)) = (&config.admin, admin_socket) {
            let tls = match listener.plaintext {
                false => Some(Arc::new(TcpTls::new(
                    &identity.get(),
                    ClientAuth::Required,
                )?)),
                true => None,
            };
            tasks.spawn(admin_listener::run(
                socket,
                tls,
                sources,
                shutdown.clone(),
                tasks.clone(),
            ));
        }
        for (name, socket) in kafka_sockets {
            let Some(listener) = config.kafka.get(&name) else {
                continue;
            };
            let tls = match listener.security {
                KafkaSecurity::Tls(client_auth) => {
                    Some(Arc::new(TcpTls::new(&identity.get(), client_auth)?))
                }
                KafkaSecurity::Plaintext => None,
            };
            let login = match listener.sasl {
                true => kafka::Login::Password {
                    encrypted: tls.is_some(),
                },
                false => kafka::Login::None,
            };
            if listener.plaintext_beyond_loopback {
                tracing::warn!(
                    listener = %name, address = %listener.listen,
                    "this Kafka listener is plaintext for whoever reaches the machine, as its configuration says"
                );
            }
            tasks.spawn(kafka_listener::run(
                name,
                socket,
                tls,
                login,
                kafka.clone(),
                shutdown.clone(),
                tasks.clone(),
            ));
        }
        tracing::info!(
            node = %me.node, incarnation = %me.incarnation, directory = %me.directory,
            data_dir = %data_dir.path().display(), quic = %quic_address,
            kafka = listed(&kafka_addresses),
            admin = admin_address.map(|address| address.to_string()),
            "node started"
        );
        Ok(Node {
            data_dir,
            server,
            quic_address,
            kafka_addresses,
            admin_address,
            controller,
            broker,
            calls,
            shutdown,
            tasks,
        })
    }

    /// Where the node listens for QUIC, with the port that was chosen for port 0.
    pub fn quic_address(&self) -> SocketAddr {
        self.quic_address
    }

    /// Where each of the node's Kafka listeners listens, with the port that was chosen for port 0.
    pub fn kafka_addresses(&self) -> &BTreeMap<ListenerName, SocketAddr> {
        &self.kafka_addresses
    }

    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Ends when the node can no longer run, with the reason. Never ends for one that is stopped on purpose.
    pub async fn failed(&self) -> String {
        tokio::select! {
            cause = self.broker.failed() => cause,
            cause = self.controller.failed() => {
                format!("the controller's store failed: {cause}; check the disk, then start the node again")
            }
            cause = self.cluster_refused() => cause,
        }
    }

    /// Ends when this node turns out not to belong where it is.
    async fn cluster_refused(&self) -> String {
        let mut registration = self.controller.registration();
        let mut images = self.controller.image();
        let mut noted = false;
        loop {
            let cluster = images.borrow_and_update().cluster_id();
            if let Some(cluster) = cluster
                && !noted
            {
                noted = true;
                if let Err(error) = self.data_dir.set_cluster_id(cluster) {
                    return error.to_string();
                }
            }
            match &*registration.borrow_and_update() {
                RegistrationState::Refused(rejection) => {
                    return format!("the cluster refuses this node: {rejection}");
                }
                RegistrationState::Foreign { own, theirs } => {
                    let error = DataDirError::ForeignCluster {
                        path: self.data_dir.path().to_owned(),
                        found: *own,
                        wanted: *theirs,
                    };
                    return error.to_string();
                }
                RegistrationState::Pending | RegistrationState::Registered => {}
            }
            let changed = tokio::select! {
                changed = registration.changed() => changed,
                changed = images.changed() => changed,
            };
            if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Others are to reach this node where `config` says from now on: the cluster is told at once, and the node's followers
    /// dial it there while they still use the connections that they have. Nothing else of `config` is looked at: Kafka listeners
    /// that it has no more go on where they are, and those that it has besides come with the next start.
    pub fn move_to(&self, config: &NodeConfig) {
        let (quic, kafka) = endpoints(config, self.quic_address, &self.kafka_addresses);
        tracing::info!(%quic, kafka = listed(&kafka), "others are told where to reach this node");
        let differ = |name: &&ListenerName| {
            config.kafka.contains_key(*name) != self.kafka_addresses.contains_key(*name)
        };
        let names = config.kafka.keys().chain(self.kafka_addresses.keys());
        for listener in names.filter(differ) {
            tracing::warn!(
                %listener,
                "a Kafka listener that was added or taken away takes effect when the node is started again"
            );
        }
        self.controller.set_endpoints(quic, kafka);
    }

    /// Hands this node's leaderships over to others, so that nobody has to wait for an election when it stops. Ends when it
    /// leads nothing that another node could, and after `within` in any case.
    pub async fn drain(&self, within: Duration) {
        drain::drain(&self.controller, self.broker.me().node, within).await;
    }

    /// Stops everything: no new requests, waiting ones answered, logs synced, peers told.
    pub async fn stop(self) {
        tracing::info!("node stopping");
        self.shutdown.cancel();
        self.broker.stop().await;
        self.controller.leave().await;
        self.server
            .close(CloseReason::ShuttingDown, CLOSE_WAIT)
            .await;
        self.calls.close().await;
        self.controller.shutdown().await;
        self.tasks.close();
        if tokio::time::timeout(CLOSE_WAIT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::debug!("some connections did not end in time");
        }
        tracing::info!("node stopped");
    }
}

/// What the node dials and listens with.
/// Where followers are taken over TCP, how, and with which congestion control; `None` unless the node replicates over TCP.
fn tcp_links(
    config: &NodeConfig,
    address: SocketAddr,
    identity: &Identity,
) -> Result<Option<(TcpListener, TcpTls, String)>, NodeError> {
    let Some(congestion) = config.replicate_over_tcp.clone() else {
        return Ok(None);
    };
    probe_tcp_congestion(&congestion).map_err(NodeError::ReplicateOverTcp)?;
    tracing::warn!(
        %address, congestion,
        "THIS NODE REPLICATES OVER TCP, to be measured: start it without --replicate-over-tcp for anything else"
    );
    let tls = TcpTls::new(identity, ClientAuth::Required)?;
    Ok(Some((bind_tcp(address)?, tls, congestion)))
}

fn sockets(config: &NodeConfig) -> Result<Sockets, NodeError> {
    let Some(spec) = &config.impair else {
        return Ok(Sockets::plain());
    };
    let file = config.data_dir.join(IMPAIR_FILE);
    tracing::warn!(
        %spec, file = %file.display(),
        "LINKS ARE IMPAIRED ON PURPOSE: this node was started with --impair, and drops or delays packets of its QUIC links as \
         that or the file says; start it without --impair for anything but tests"
    );
    let links = ImpairedLinks::new(Some(config.node_id), spec.clone());
    watch_impairment(&file, &links).map_err(NodeError::Threads)?;
    Ok(Sockets::impaired(links))
}

fn registration(
    config: &NodeConfig,
    data_dir: &DataDir,
    quic: SocketAddr,
    kafka: &BTreeMap<ListenerName, SocketAddr>,
) -> Registration {
    let (quic, kafka) = endpoints(config, quic, kafka);
    let mut registration = Registration {
        node: config.node_id,
        directory: data_dir.directory_id(),
        incarnation: Incarnation::from_random_bits(rand::random()),
        quic,
        kafka: None,
        kafka_listeners: BTreeMap::new(),
        boot_id: boot_id(),
        metadata_version: METADATA_VERSION,
    };
    for (listener, endpoint) in kafka {
        registration.set_kafka_endpoint(listener, endpoint);
    }
    registration
}

/// Where others reach a node that listens at these addresses; of its Kafka listeners, those that `config` has.
fn endpoints(
    config: &NodeConfig,
    quic: SocketAddr,
    kafka: &BTreeMap<ListenerName, SocketAddr>,
) -> (Endpoint, BTreeMap<ListenerName, Endpoint>) {
    let advertised = config.advertise.clone();
    let kafka = kafka
        .iter()
        .filter_map(|(name, address)| {
            let advertised = config.kafka.get(name)?.advertise.clone();
            let endpoint = advertised.unwrap_or_else(|| endpoint_of(*address));
            Some((name.clone(), endpoint))
        })
        .collect();
    (advertised.unwrap_or_else(|| endpoint_of(quic)), kafka)
}

/// For a line of the log; `None` where there are none.
fn listed<T: fmt::Display>(listeners: &BTreeMap<ListenerName, T>) -> Option<String> {
    let words: Vec<String> = listeners
        .iter()
        .map(|(name, address)| format!("{name} {address}"))
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// What others can dial, where nothing was configured: the address itself. The configuration has refused a wildcard
/// address without an advertised one.
fn endpoint_of(address: SocketAddr) -> Endpoint {
    Endpoint {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

fn open_data_dir(config: &NodeConfig) -> Result<DataDir, DataDirError> {
    DataDir::open(
        Arc::new(RealFileSystem),
        &config.data_dir,
        &Opener {
            node_id: config.node_id,
            cluster_id: None,
            new_directory_id: DirectoryId::from_random_bits(rand::random()),
            boot_id: boot_id(),
        },
    )
}

/// The kernel's boot id; `None` where there is no such thing, and every start counts as a new boot.
fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id")).ok()?;
    Some(text.trim().to_owned())
}

/// Whether the port is free, before anything is touched. The endpoint binds it again, with its own options.
fn probe_udp(address: SocketAddr) -> Result<(), BindError> {
    match UdpSocket::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(BindError::InUse {
            protocol: "UDP",
            address,
        }),
        // Whatever else is wrong, the endpoint says it better.
        Err(_) => Ok(()),
    }
}
