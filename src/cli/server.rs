//! `quorate server start`: one node, in the foreground.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, FromArgMatches, Subcommand, ValueEnum};
use serde::Deserialize;
use tokio::sync::oneshot;

use super::kafka_listeners::{self, KafkaClientAuth, NamedListener, Unnamed, Written};
use super::{Exit, ExitWith, GlobalOptions, note};
use crate::controller::LeaderBalance;
use crate::kafka;
use crate::metadata::{Endpoint, FlushPolicy};
use crate::node::{AdminListener, Node, NodeConfig};
use crate::transport::{Congestion, CongestionPolicy, LinkCongestion, PeerAddress};
use crate::types::{ListenerName, NodeId};

/// Where QUIC is served unless something else is said.
const DEFAULT_LISTEN: &str = "127.0.0.1:9292";
/// How long a node that is told to stop may hand its leaderships over.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Run a node
#[derive(Args, Debug)]
pub(super) struct ServerArgs {
    #[command(subcommand)]
    command: ServerCommand,
}

#[derive(Subcommand, Debug)]
enum ServerCommand {
    Start(Box<StartArgs>),
}

/// Start a node and run it until it is stopped with Ctrl-C or SIGTERM
///
/// Told to stop, it first hands its leaderships over to other nodes, 10 s at most; told twice, it stops at once.
///
/// A node alone needs only --data-dir: it is its own controller, and makes certificates under its data directory. A flag
/// wins over the environment, the environment over the configuration file.
///
/// On SIGHUP it reads the configuration file again and, if others are to reach it elsewhere now (advertise,
/// kafka_advertise, a listener's advertise), tells the cluster at once. Other settings are read at the start only.
#[derive(Args, Debug, Clone)]
struct StartArgs {
    /// Configuration file in TOML; its keys are the flags' names with underscores
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// This node's number in the cluster, from 1 [default: 1]
    #[arg(long, env = "QUORATE_NODE_ID", value_name = "ID")]
    node_id: Option<NodeId>,

    /// Directory for everything that the node stores
    #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Address and UDP port for other nodes and native clients [default: 127.0.0.1:9292]
    #[arg(long, env = "QUORATE_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,

    /// How others reach --listen, if not by that very address
    #[arg(long, env = "QUORATE_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,

    /// Address and TCP port for Kafka clients, under TLS; none without it
    #[arg(long, env = "QUORATE_KAFKA_LISTEN", value_name = "HOST:PORT")]
    kafka_listen: Option<String>,

    /// How Kafka clients reach --kafka-listen, if not by that very address
    #[arg(long, env = "QUORATE_KAFKA_ADVERTISE", value_name = "HOST:PORT")]
    kafka_advertise: Option<String>,

    /// Serve Kafka clients without TLS; loopback addresses only
    #[arg(long, env = "QUORATE_KAFKA_PLAINTEXT")]
    kafka_plaintext: bool,

    /// Whether Kafka clients on TLS must show a client certificate [default: required; with --kafka-sasl, requested]
    #[arg(long, env = "QUORATE_KAFKA_CLIENT_AUTH", value_name = "MODE")]
    kafka_client_auth: Option<KafkaClientAuth>,

    /// Have Kafka clients without a certificate log in with a name and a password: SCRAM-SHA-256, SCRAM-SHA-512, and
    /// under TLS also PLAIN. Make users with `quorate user set`
    #[arg(long, env = "QUORATE_KAFKA_SASL")]
    kafka_sasl: bool,

    /// A further listener for Kafka clients, with a name of its own; may be given several times. SECURITY is tls, sasl_tls,
    /// plaintext or sasl_plaintext; the addresses that a client learns are those of the listener by which it came
    #[arg(
        long = "kafka-listener",
        env = "QUORATE_KAFKA_LISTENERS",
        value_name = "NAME=SECURITY://HOST:PORT[,advertise=HOST:PORT]",
        value_delimiter = ' '
    )]
    kafka_listeners: Vec<NamedListener>,

    /// Address and TCP port for health, metrics and views over HTTPS; none without it
    #[arg(long, env = "QUORATE_ADMIN_LISTEN", value_name = "HOST:PORT")]
    admin_listen: Option<String>,

    /// Serve --admin-listen without TLS; loopback addresses only
    #[arg(long, env = "QUORATE_ADMIN_PLAINTEXT")]
    admin_plaintext: bool,

    /// The cluster's 1, 3 or 5 controllers, with their QUIC addresses; the same list on every node
    #[arg(
        long,
        env = "QUORATE_CONTROLLERS",
        value_name = "ID@HOST:PORT,…",
        value_delimiter = ','
    )]
    controllers: Vec<PeerAddress>,

    /// When an appended record counts as durable, where the topic does not say [default: fsync]
    #[arg(long, env = "QUORATE_FLUSH", value_name = "POLICY")]
    flush: Option<Flush>,

    /// Whether a topic is made when a client first asks for it [default: true]
    #[arg(long, env = "QUORATE_AUTO_CREATE_TOPICS", value_name = "BOOL")]
    auto_create_topics: Option<bool>,

    /// How many partitions a topic gets that is asked for without saying how many [default: 1]
    #[arg(long, env = "QUORATE_NUM_PARTITIONS", value_name = "N")]
    num_partitions: Option<NonZeroU32>,

    /// How many replicas its partitions get [default: 3, or as many as there are nodes]
    #[arg(long, env = "QUORATE_DEFAULT_REPLICATION_FACTOR", value_name = "N")]
    default_replication_factor: Option<NonZeroU16>,

    /// Whether leaderships go back to the preferred replicas by themselves [default: true]
    #[arg(
        long,
        env = "QUORATE_AUTO_LEADER_REBALANCE_ENABLE",
        value_name = "BOOL"
    )]
    auto_leader_rebalance_enable: Option<bool>,

    /// How often it is looked whether they should [default: 300]
    #[arg(
        long,
        env = "QUORATE_LEADER_IMBALANCE_CHECK_INTERVAL_SECONDS",
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    leader_imbalance_check_interval_seconds: Option<u32>,

    /// How many in a hundred of its leaderships a node may miss before they go back to it [default: 10]
    #[arg(
        long,
        env = "QUORATE_LEADER_IMBALANCE_PER_BROKER_PERCENTAGE",
        value_name = "PERCENT",
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    leader_imbalance_per_broker_percentage: Option<u8>,

    /// Congestion controller for what this node sends to followers and clients: keel, cubic or bbr [default: keel]
    #[arg(long, env = "QUORATE_CONGESTION", value_name = "NAME")]
    congestion: Option<Congestion>,

    /// Another congestion controller for the links to particular nodes
    #[arg(
        long,
        env = "QUORATE_CONGESTION_LINKS",
        value_name = "ID=NAME,…",
        value_delimiter = ','
    )]
    congestion_links: Vec<LinkCongestion>,

    /// Whether small frames go to followers more than once while a link loses packets: quicker, for up to three times the bytes
    /// [default: true]
    #[arg(long, env = "QUORATE_LINK_COPIES", value_name = "BOOL")]
    link_copies: Option<bool>,

    /// Read every log from end to end at this start, and set aside those that are corrupt; slow
    #[arg(long, env = "QUORATE_VERIFY_LOGS")]
    verify_logs: bool,

    /// Stop when standard input ends: with the process that holds the other end of the pipe
    #[arg(long, hide = true)]
    exit_with_stdin: bool,

    /// For measurements only: replicate over TCP, with this congestion control of the kernel, where QUIC is to be compared with it
    #[arg(long, hide = true, value_name = "NAME")]
    replicate_over_tcp: Option<String>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Flush {
    /// After fdatasync
    Fsync,
    /// Once written: lost if the machine goes down before the operating system writes it out
    Os,
}

/// The configuration file. An unknown key is an error, so that a misspelt one is not silently ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    node_id: Option<NodeId>,
    data_dir: Option<PathBuf>,
    certs_dir: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    kafka_listen: Option<String>,
    kafka_advertise: Option<String>,
    kafka_plaintext: Option<bool>,
    kafka_sasl: Option<bool>,
    kafka_client_auth: Option<KafkaClientAuth>,
    #[serde(default)]
    kafka: KafkaTable,
    admin_listen: Option<String>,
    admin_plaintext: Option<bool>,
    #[serde(default)]
    controllers: Vec<String>,
    flush: Option<Flush>,
    auto_create_topics: Option<bool>,
    num_partitions: Option<NonZeroU32>,
    default_replication_factor: Option<NonZeroU16>,
    auto_leader_rebalance_enable: Option<bool>,
    leader_imbalance_check_interval_seconds: Option<u32>,
    leader_imbalance_per_broker_percentage: Option<u8>,
    congestion: Option<String>,
    #[serde(default)]
    congestion_links: Vec<String>,
    link_copies: Option<bool>,
}

/// The table `[kafka]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KafkaTable {
    #[serde(default)]
    listeners: BTreeMap<String, Written>,
}

pub(super) fn run(options: &GlobalOptions, args: ServerArgs) -> anyhow::Result<Exit> {
    let ServerCommand::Start(args) = args.command;
    let exit_with_stdin = args.exit_with_stdin;
    let config = resolve(options, (*args).clone())?;
    serve(config, exit_with_stdin, || {
        resolve(options, (*args).clone())
    })
}

/// `reload` reads the configuration again.
fn serve(
    config: NodeConfig,
    exit_with_stdin: bool,
    reload: impl Fn() -> anyhow::Result<NodeConfig>,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the node's threads: check the limits on processes and open files")?;
    runtime.block_on(async {
        let mut signals =
            Signals::new(exit_with_stdin).context("cannot listen for SIGTERM and Ctrl-C")?;
        let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
            .context("cannot listen for SIGHUP")?;
        let node = tokio::select! {
            node = Node::start(config) => node?,
            exit = signals.next() => return Ok(exit),
        };
        note(&format!(
            "listening on {} for QUIC{}{}",
            node.quic_address(),
            kafka_note(node.kafka_addresses()),
            node.admin_address()
                .map_or_else(String::new, |address| format!(", on {address} for HTTP"))
        ));
        let (exit, failure) = loop {
            tokio::select! {
                exit = signals.next() => break (exit, None),
                cause = node.failed() => break (Exit::Failure, Some(cause)),
                _ = hangup.recv() => match reload().and_then(checked) {
                    Ok(config) => node.move_to(&config),
                    Err(error) => tracing::error!(
                        cause = format!("{error:#}"),
                        "the configuration cannot be read again; the node goes on as it was"
                    ),
                },
            }
        };
        if failure.is_none() {
            tokio::select! {
                () = node.drain(DRAIN_WITHIN) => {}
                _ = signals.next() => note("told twice: stopping without handing over"),
            }
        }
        node.stop().await;
        match failure {
            Some(cause) => Err(anyhow!(cause).context("the node stopped by itself")),
            None => Ok(exit),
        }
    })
}

/// What cannot work must not be told to others.
fn checked(config: NodeConfig) -> anyhow::Result<NodeConfig> {
    config.check()?;
    Ok(config)
}

fn kafka_note(addresses: &BTreeMap<ListenerName, SocketAddr>) -> String {
    let mut note = String::new();
    for (name, address) in addresses {
        note.push_str(&format!(", on {address} for Kafka"));
        if !name.is_unnamed() {
            note.push_str(&format!(" ({name})"));
        }
    }
    note
}

/// SIGTERM is how a service is told to stop, so it ends well; Ctrl-C is an interruption, and a node that is stopped by it
/// has ended well too.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// Ends with standard input; `None` where that is nobody's word.
    stdin_ended: Option<oneshot::Receiver<()>>,
}

impl Signals {
    fn new(exit_with_stdin: bool) -> std::io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            stdin_ended: match exit_with_stdin {
                true => Some(stdin_end()?),
                false => None,
            },
        })
    }

    async fn next(&mut self) -> Exit {
        let stdin_ended = async {
            match &mut self.stdin_ended {
                // Its sender is dropped at the end, without a word.
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            // It ends once.
            () = stdin_ended => self.stdin_ended = None,
        }
        Exit::Ok
    }
}

/// Ends when standard input does. It is read on a thread of its own, which the runtime does not wait for when it is shut
/// down: a read that blocks cannot be called off.
fn stdin_end() -> std::io::Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            // What comes in means nothing, and an error is an end as well.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            drop(sender);
        })?;
    Ok(receiver)
}

/// The configuration with which `server start --config FILE` would start here, environment included. Starts nothing.
pub(super) fn configuration(
    options: &GlobalOptions,
    file: &Path,
    data_dir: Option<&Path>,
) -> anyhow::Result<NodeConfig> {
    let mut words: Vec<OsString> = vec!["start".into(), "--config".into(), file.into()];
    if let Some(data_dir) = data_dir {
        words.extend(["--data-dir".into(), data_dir.into()]);
    }
    let matches = StartArgs::augment_args(clap::Command::new("start"))
        .try_get_matches_from(words)
        .map_err(|error| usage(error.to_string()))?;
    let args = StartArgs::from_arg_matches(&matches).map_err(|error| usage(error.to_string()))?;
    resolve(options, args)
}

fn resolve(options: &GlobalOptions, args: StartArgs) -> anyhow::Result<NodeConfig> {
    let file = match &args.config {
        Some(path) => read_config(path)?,
        None => ConfigFile::default(),
    };
    let data_dir = args.data_dir.or(file.data_dir).ok_or_else(|| {
        usage("where to store everything is not said: add --data-dir DIR".to_owned())
    })?;
    let node_id = args
        .node_id
        .or(file.node_id)
        .or(NodeId::new(1))
        .ok_or_else(|| usage("no --node-id".to_owned()))?;
    let listen = args
        .listen
        .or(file.listen)
        .unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
    let advertise = args.advertise.or(file.advertise);
    let unnamed = Unnamed {
        listen: args.kafka_listen.or(file.kafka_listen),
        advertise: args.kafka_advertise.or(file.kafka_advertise),
        plaintext: args.kafka_plaintext || file.kafka_plaintext.unwrap_or(false),
        sasl: args.kafka_sasl || file.kafka_sasl.unwrap_or(false),
        client_auth: args.kafka_client_auth.or(file.kafka_client_auth),
    };
    let kafka = kafka_listeners::resolve(&unnamed, file.kafka.listeners, args.kafka_listeners)?;
    let admin = match args.admin_listen.or(file.admin_listen) {
        None => None,
        Some(listen) => Some(AdminListener {
            listen: socket_address("--admin-listen", &listen)?,
            plaintext: args.admin_plaintext || file.admin_plaintext.unwrap_or(false),
        }),
    };
    let controllers = if args.controllers.is_empty() {
        file.controllers
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<PeerAddress>, _>>()
            .map_err(|error| usage(format!("controllers: {error}")))?
    } else {
        args.controllers
    };
    let balance = LeaderBalance::default();
    let check_every = args
        .leader_imbalance_check_interval_seconds
        .or(file.leader_imbalance_check_interval_seconds);
    let leader_balance = LeaderBalance {
        enabled: args
            .auto_leader_rebalance_enable
            .or(file.auto_leader_rebalance_enable)
            .unwrap_or(balance.enabled),
        check_every: check_every.map_or(balance.check_every, |seconds| {
            Duration::from_secs(u64::from(seconds.max(1)))
        }),
        tolerated_percent: args
            .leader_imbalance_per_broker_percentage
            .or(file.leader_imbalance_per_broker_percentage)
            .unwrap_or(balance.tolerated_percent),
    };
    Ok(NodeConfig {
        node_id,
        data_dir,
        certs_dir: options.certs_dir.clone().or(file.certs_dir),
        listen: socket_address("--listen", &listen)?,
        advertise: advertised("--advertise", advertise.as_deref(), &listen)?,
        kafka,
        admin,
        controllers: numbered(controllers)?,
        flush: match args.flush.or(file.flush) {
            Some(Flush::Os) => FlushPolicy::Os,
            Some(Flush::Fsync) | None => FlushPolicy::Fsync,
        },
        verify_logs: args.verify_logs,
        kafka_api: kafka::Config {
            auto_create_topics: args
                .auto_create_topics
                .or(file.auto_create_topics)
                .unwrap_or(true),
            num_partitions: args.num_partitions.or(file.num_partitions),
            default_replication_factor: args
                .default_replication_factor
                .or(file.default_replication_factor),
            ..kafka::Config::default()
        },
        leader_balance,
        congestion: congestion(
            args.congestion,
            file.congestion.as_deref(),
            args.congestion_links,
            &file.congestion_links,
        )?,
        link_copies: args.link_copies.or(file.link_copies).unwrap_or(true),
        impair: options.impair.clone(),
        replicate_over_tcp: args.replicate_over_tcp,
    })
}

fn congestion(
    flag: Option<Congestion>,
    file: Option<&str>,
    flag_links: Vec<LinkCongestion>,
    file_links: &[String],
) -> anyhow::Result<CongestionPolicy> {
    let default = match (flag, file) {
        (Some(choice), _) => choice,
        (None, Some(text)) => text
            .parse()
            .map_err(|error| usage(format!("congestion: {error}")))?,
        (None, None) => Congestion::default(),
    };
    let links = if flag_links.is_empty() {
        file_links
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<LinkCongestion>, _>>()
            .map_err(|error| usage(format!("congestion_links: {error}")))?
    } else {
        flag_links
    };
    let mut policy = CongestionPolicy {
        default,
        ..CongestionPolicy::default()
    };
    for link in links {
        if policy.links.insert(link.node, link.choice).is_some() {
            return Err(usage(format!(
                "node {} has two congestion controllers: choose one",
                link.node
            )));
        }
    }
    Ok(policy)
}

fn read_config(path: &Path) -> anyhow::Result<ConfigFile> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    toml::from_str(&text).map_err(|error| {
        usage(format!(
            "the configuration file {} is not right: {error}",
            path.display()
        ))
    })
}

pub(super) fn socket_address(flag: &str, text: &str) -> anyhow::Result<SocketAddr> {
    text.to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| {
            usage(format!(
                "{flag}: {text:?} is no address of this machine: write HOST:PORT, or [IPV6]:PORT"
            ))
        })
}

/// What others are told: what is said, or the very name that `listen` was given by, unless it stands for every address.
pub(super) fn advertised(
    flag: &str,
    advertise: Option<&str>,
    listen: &str,
) -> anyhow::Result<Option<Endpoint>> {
    let (text, flag) = match advertise {
        Some(text) => (text, flag),
        None => match socket_address(flag, listen)? {
            address if address.ip().is_unspecified() || address.port() == 0 => return Ok(None),
            _ => (listen, "--listen"),
        },
    };
    let address: PeerAddress = text
        .parse()
        .map_err(|error| usage(format!("{flag}: {error}")))?;
    let (host, port) = address
        .host_and_port()
        .ok_or_else(|| usage(format!("{flag}: {text:?} is not HOST:PORT")))?;
    Ok(Some(Endpoint {
        host: host.to_owned(),
        port,
    }))
}

fn numbered(controllers: Vec<PeerAddress>) -> anyhow::Result<BTreeMap<NodeId, String>> {
    let mut numbered = BTreeMap::new();
    for controller in controllers {
        let Some(node) = controller.node else {
            return Err(usage(format!(
                "--controllers: {:?} does not say which node it is: write ID@HOST:PORT",
                controller.host_port
            )));
        };
        if numbered.insert(node, controller.host_port).is_some() {
            return Err(usage(format!("--controllers: node {node} is listed twice")));
        }
    }
    Ok(numbered)
}

pub(super) fn usage(message: String) -> anyhow::Error {
    ExitWith::new(Exit::Usage, message).into()
}
