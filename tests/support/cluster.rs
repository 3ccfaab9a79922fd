//! Nodes as processes, on loopback ports of their own, with certificates and data in a temporary directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate::admin::{AdminRequest, NodeStatus, PartitionStatus, ask};
use quorate::client::{Client, ClientConfig, IdentityDialer, NewTopic};
use quorate::storage::RealFileSystem;
use quorate::storage::inspect::{Digest, inspect};
use quorate::transport::{
    Alpn, CertsDir, ClientName, CurrentIdentity, Identity, IssueOptions, PeerAddress, dial,
};
use quorate::types::{NodeId, PartitionIndex, TopicName};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{LOOK_AGAIN, PATIENCE, chain, node, topic, until};

/// Clusters that run at a time: more would starve each other on a small machine.
static TURNS: Semaphore = Semaphore::const_new(2);
/// Lines of each node's log that a failed test shows.
const LOG_TAIL_LINES: usize = 40;
/// One attempt to reach a node.
const DIAL_WITHIN: Duration = Duration::from_secs(2);

/// Ports from here on, where the system's own range leaves none above itself.
const LOW_PORTS: (u16, u16) = (11_000, 30_999);
/// Fewer ports than this above the system's range are too few to live on.
const ENOUGH_PORTS: u16 = 1_000;

/// A port for both UDP and TCP that nobody uses and that nobody will be given: outside the range from which the system takes
/// ports for outgoing sockets, and kept from other test processes by a locked file until this one ends. A node that is
/// down must find its port free when it comes back.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let user = rustix::process::getuid().as_raw();
    let locks = std::env::temp_dir().join(format!("quorate-test-ports-{user}"));
    fs::create_dir_all(&locks).unwrap();
    let (first, last) = port_range();
    let count = u32::from(last - first) + 1;
    for _ in 0..count {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = (std::process::id().wrapping_mul(7919).wrapping_add(turn)) % count;
        let port = first + u16::try_from(place).unwrap();
        let lock = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .open(locks.join(port.to_string()))
            .unwrap();
        if lock.try_lock().is_ok() && is_free(port) {
            HELD.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(lock);
            return port;
        }
    }
    panic!("no free port");
}

/// A datagram socket on a port like [`free_port`]'s, for what this process itself listens with: held from the beginning.
pub fn free_socket() -> UdpSocket {
    loop {
        // Another program may take a port between the look at it and this.
        if let Ok(socket) = UdpSocket::bind(("127.0.0.1", free_port())) {
            socket.set_nonblocking(true).unwrap();
            return socket;
        }
    }
}

/// Looked up where the system lists its sockets, and only elsewhere tried: a socket that is made to try the port lives on in
/// every process that another thread forks meanwhile, until that executes its program, and then whoever was given the port
/// finds it taken.
fn is_free(port: u16) -> bool {
    const TABLES: [&str; 4] = ["udp", "udp6", "tcp", "tcp6"];
    let tables: Vec<_> = TABLES
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
        .collect();
    if tables.is_empty() {
        return UdpSocket::bind(("127.0.0.1", port)).is_ok()
            && TcpListener::bind(("127.0.0.1", port)).is_ok();
    }
    let suffix = format!(":{port:04X}");
    let holds = |line: &str| {
        let local = line.split_whitespace().nth(1);
        local.is_some_and(|local| local.ends_with(&suffix))
    };
    !tables.iter().any(|table| table.lines().any(holds))
}

/// Above the range of outgoing sockets if there is room, and below it otherwise.
fn port_range() -> (u16, u16) {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let last = range.split_whitespace().nth(1);
    match last.and_then(|last| last.parse::<u16>().ok()) {
        Some(last) if u16::MAX - last >= ENOUGH_PORTS => (last + 1, u16::MAX),
        _ => LOW_PORTS,
    }
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// How to start one node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub id: NodeId,
    pub data_dir: PathBuf,
    pub certs_dir: PathBuf,
    pub quic: SocketAddr,
    pub kafka: SocketAddr,
    /// Where the others and clients are told to find it, if not at `quic`.
    pub advertise: Option<SocketAddr>,
    pub controllers: String,
    pub log: PathBuf,
    pub kafka_plaintext: bool,
    pub flags: Vec<String>,
    /// What its environment has beside this process's own.
    pub environment: Vec<(String, String)>,
}

impl NodeSpec {
    pub fn command(&self) -> Command {
        let mut command = quorate();
        command
            .args(["server", "start", "--node-id", &self.id.to_string()])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--certs-dir")
            .arg(&self.certs_dir)
            .args(["--listen", &self.quic.to_string()])
            .args(["--kafka-listen", &self.kafka.to_string()]);
        if let Some(advertise) = self.advertise {
            command.args(["--advertise", &advertise.to_string()]);
        }
        if self.kafka_plaintext {
            command.arg("--kafka-plaintext");
        }
        if !self.controllers.is_empty() {
            command.args(["--controllers", &self.controllers]);
        }
        command.args(&self.flags).envs(self.environment.clone());
        command
    }

    fn spawn(&self) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        self.command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Runs it as long as it runs by itself, which must not be long: how it ended, and what it said.
    pub async fn run_to_its_end(&self) -> (ExitStatus, String) {
        let mut child = self.spawn();
        let begin = Instant::now();
        loop {
            if let Some(ended) = child.try_wait().unwrap() {
                return (ended, self.log_text());
            }
            if begin.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("node {} runs on: {}", self.id, self.log_text());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// The program, without whatever the caller's environment sets for it.
pub fn quorate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Three nodes unless told otherwise. Dropping it kills them, shows their logs if the test is failing, and removes all.
pub struct Cluster {
    pub specs: Vec<NodeSpec>,
    children: BTreeMap<NodeId, Child>,
    pub identity: Arc<Identity>,
    dialing: Arc<CurrentIdentity>,
    dir: TempDir,
    keep_when_failing: bool,
    _turn: SemaphorePermit<'static>,
}

/// Takes part in [`Cluster::prepare`].
pub fn certificates(dir: &Path, nodes: u32) {
    let options = IssueOptions::new(OffsetDateTime::now_utc());
    let ca = CertsDir::new(dir.join("certs-1"));
    ca.create_ca(&options).unwrap();
    for id in 1..=nodes {
        let own = dir.join(format!("certs-{id}"));
        if id > 1 {
            fs::create_dir(&own).unwrap();
            fs::copy(ca.ca_certificate(), own.join("ca.crt")).unwrap();
        }
        let hosts = ["localhost", "127.0.0.1"].map(|host| host.parse().unwrap());
        CertsDir::with_ca_key(own, ca.ca_key())
            .create_node(node(id), &hosts, &options)
            .unwrap();
    }
    ca.create_client(&ClientName::new("tester").unwrap(), &options)
        .unwrap();
}

impl Cluster {
    /// Chooses ports and makes certificates; starts nothing.
    pub async fn prepare(nodes: u32) -> Cluster {
        let turn = TURNS.acquire().await.unwrap();
        let dir = TempDir::with_prefix("quorate-test-").unwrap();
        certificates(dir.path(), nodes);
        let mut specs: Vec<NodeSpec> = (1..=nodes)
            .map(|id| NodeSpec {
                id: node(id),
                data_dir: dir.path().join(format!("data-{id}")),
                certs_dir: dir.path().join(format!("certs-{id}")),
                quic: loopback(free_port()),
                kafka: loopback(free_port()),
                advertise: None,
                controllers: String::new(),
                log: dir.path().join(format!("log-{id}")),
                kafka_plaintext: true,
                flags: Vec::new(),
                environment: Vec::new(),
            })
            .collect();
        let controllers: Vec<String> = specs
            .iter()
            .map(|spec| format!("{}@{}", spec.id, spec.quic))
            .collect();
        for spec in &mut specs {
            spec.controllers = controllers.join(",");
        }
        let certs_dir = dir.path().join("certs-1");
        let name = ClientName::new("tester").unwrap();
        let load = || Identity::load_client(&certs_dir, Some(&name)).unwrap();
        let identity = Arc::new(load());
        let dialing = CurrentIdentity::new(load());
        Cluster {
            specs,
            children: BTreeMap::new(),
            identity,
            dialing,
            dir,
            keep_when_failing: false,
            _turn: turn,
        }
    }

    /// A cluster of three that is ready to work.
    pub async fn start() -> Cluster {
        Cluster::of(3).await
    }

    pub async fn of(nodes: u32) -> Cluster {
        let mut cluster = Cluster::prepare(nodes).await;
        cluster.start_all().await;
        cluster
    }

    pub async fn start_all(&mut self) {
        for id in self.ids() {
            self.spawn(id);
        }
        self.until_healthy().await;
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.specs.iter().map(|spec| spec.id).collect()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Logs and data stay where they are if the test fails.
    pub fn keep_when_failing(&mut self) {
        self.keep_when_failing = true;
    }

    pub fn spec(&self, id: NodeId) -> &NodeSpec {
        self.specs.iter().find(|spec| spec.id == id).unwrap()
    }

    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Starts a node that is not running.
    pub fn spawn(&mut self, id: NodeId) {
        let child = self.spec(id).spawn();
        assert!(self.children.insert(id, child).is_none(), "node {id} runs");
    }

    pub fn pid(&self, id: NodeId) -> u32 {
        self.children[&id].id()
    }

    fn signal(&self, id: NodeId, signal: Signal) {
        kill_process(Pid::from_child(&self.children[&id]), signal).unwrap();
    }

    /// kill -9, and waits until the process is gone.
    pub fn kill(&mut self, id: NodeId) {
        self.signal(id, Signal::KILL);
        self.children.remove(&id).unwrap().wait().unwrap();
    }

    /// kill -9 of several with nothing in between.
    pub fn kill_together(&mut self, ids: &[NodeId]) {
        for id in ids {
            self.signal(*id, Signal::KILL);
        }
        for id in ids {
            self.children.remove(id).unwrap().wait().unwrap();
        }
    }

    pub fn freeze(&self, id: NodeId) {
        self.signal(id, Signal::STOP);
    }

    pub fn thaw(&self, id: NodeId) {
        self.signal(id, Signal::CONT);
    }

    /// SIGTERM, and how the process ended.
    pub async fn stop(&mut self, id: NodeId) -> ExitStatus {
        self.signal(id, Signal::TERM);
        let mut child = self.children.remove(&id).unwrap();
        until(&format!("node {id} ends after SIGTERM"), async || {
            let ended = child.try_wait().unwrap();
            ended.ok_or_else(|| "it runs".to_owned())
        })
        .await
    }

    /// The nodes whose processes this cluster has running, frozen ones among them.
    pub fn running(&self) -> Vec<NodeId> {
        self.children.keys().copied().collect()
    }

    /// The nodes that were started and have ended by themselves. They count as not running from now on.
    pub fn ended(&mut self) -> Vec<(NodeId, ExitStatus)> {
        let mut ended = Vec::new();
        for (id, child) in &mut self.children {
            if let Some(status) = child.try_wait().unwrap() {
                ended.push((*id, status));
            }
        }
        for (id, _) in &ended {
            self.children.remove(id);
        }
        ended
    }

    /// A node's account of itself.
    pub async fn status(&self, id: NodeId) -> Result<NodeStatus, String> {
        let address = PeerAddress::node(id, self.spec(id).quic.to_string());
        let asked = async {
            let dialled = dial(&self.identity, &address, Alpn::Admin, DIAL_WITHIN)
                .await
                .map_err(|error| chain(&error))?;
            ask(&dialled.connection, &AdminRequest::Status)
                .await
                .map_err(|error| chain(&error))
        };
        tokio::time::timeout(2 * DIAL_WITHIN, asked)
            .await
            .unwrap_or_else(|_| Err(format!("node {id} does not answer")))
    }

    /// Waits until every node that runs is registered and known to every other, and a controller is active.
    pub async fn until_healthy(&mut self) {
        let running = self.running();
        until("all nodes are healthy", async || {
            for id in &running {
                if let Some(status) = self.children.get_mut(id).unwrap().try_wait().unwrap() {
                    panic!("node {id} has stopped by itself: {status}");
                }
            }
            for id in &running {
                let status = self.status(*id).await?;
                if !status.registered
                    || !status.hears_majority
                    || status.active_controller.is_none()
                {
                    return Err(format!("node {id} is not in the cluster yet: {status:?}"));
                }
                // The active controller hears everybody.
                let all_known = running.iter().all(|other| {
                    status.nodes.iter().any(|node| {
                        node.node == *other && (node.alive || status.active_controller != Some(*id))
                    })
                });
                if !all_known {
                    return Err(format!("node {id} does not know all: {:?}", status.nodes));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Native clients' configuration: every node is a bootstrap server.
    pub fn client_config(&self) -> ClientConfig {
        ClientConfig::new(
            self.specs
                .iter()
                .map(|spec| spec.advertise.unwrap_or(spec.quic).to_string()),
        )
    }

    pub async fn client(&self) -> Client {
        self.client_with(self.client_config()).await
    }

    pub async fn client_with(&self, config: ClientConfig) -> Client {
        let dialer = Arc::new(IdentityDialer::new(self.dialing.clone()));
        Client::connect(config, dialer)
            .await
            .unwrap_or_else(|error| panic!("no client: {}", chain(&error)))
    }

    /// A topic with three replicas, two of them in sync at least; its partitions all led when this returns.
    pub async fn create_topic(&self, client: &Client, name: &str, partitions: u32) -> TopicName {
        self.create_topic_with(client, name, partitions, &[("min.insync.replicas", "2")])
            .await
    }

    pub async fn create_topic_with(
        &self,
        client: &Client,
        name: &str,
        partitions: u32,
        configs: &[(&str, &str)],
    ) -> TopicName {
        let name = topic(name);
        let new = NewTopic {
            partitions: Some(partitions),
            replication_factor: Some(u16::try_from(self.specs.len()).unwrap()),
            configs: configs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..NewTopic::new(name.clone())
        };
        client.admin().create_topic(&new, false).await.unwrap();
        for index in 0..partitions {
            self.until_led(&name, index, |_| true).await;
        }
        name
    }

    /// One partition as `id` sees it.
    pub async fn partition(
        &self,
        id: NodeId,
        topic: &TopicName,
        index: u32,
    ) -> Result<PartitionStatus, String> {
        let status = self.status(id).await?;
        status
            .partitions
            .into_iter()
            .find(|p| p.topic == *topic && p.partition == PartitionIndex(index))
            .ok_or_else(|| format!("node {id} does not know {topic}-{index}"))
    }

    /// Waits until a node says of itself that it leads the partition and knows its high watermark, and `accept` takes
    /// that node. Frozen nodes are not asked: pass them by leaving them out in `accept`.
    pub async fn until_led(
        &self,
        topic: &TopicName,
        index: u32,
        accept: impl Fn(NodeId) -> bool,
    ) -> NodeId {
        until(&format!("{topic}-{index} is led"), async || {
            let mut seen = String::new();
            for id in self.running().into_iter().filter(|id| accept(*id)) {
                match self.partition(id, topic, index).await {
                    Ok(partition) => {
                        let leads = partition.leader == Some(id)
                            && partition
                                .local
                                .as_ref()
                                .is_some_and(|l| l.role == "leader" && l.watermark_known);
                        if leads {
                            return Ok(id);
                        }
                        seen.push_str(&format!("node {id}: {partition:?}; "));
                    }
                    Err(error) => seen.push_str(&format!("node {id}: {error}; ")),
                }
            }
            Err(seen)
        })
        .await
    }

    /// Waits until the in-sync set of the partition is `expected`, as its leader knows it.
    pub async fn until_isr(&self, topic: &TopicName, index: u32, expected: &[NodeId]) {
        let mut expected = expected.to_vec();
        expected.sort();
        until(
            &format!("the ISR of {topic}-{index} is {expected:?}"),
            async || {
                let leader = self
                    .until_led(topic, index, |id| expected.contains(&id))
                    .await;
                let mut isr = self.partition(leader, topic, index).await?.isr;
                isr.sort();
                if isr == expected {
                    Ok(())
                } else {
                    Err(format!("{isr:?}"))
                }
            },
        )
        .await;
    }

    /// What a node has of every partition of `topic` on its disk.
    pub fn digests(&self, id: NodeId, topic: &TopicName) -> Result<BTreeMap<u32, Digest>, String> {
        let data_dir = &self.spec(id).data_dir;
        let inspection = inspect(&RealFileSystem, data_dir).map_err(|error| chain(&error))?;
        if !inspection.damage.is_empty() || !inspection.quarantined.is_empty() {
            return Err(format!(
                "node {id}: damage {:?}, quarantined {:?}",
                inspection.damage, inspection.quarantined
            ));
        }
        inspection
            .partitions
            .iter()
            .filter(|view| view.topic == *topic)
            .map(|view| {
                let digest = view
                    .digest(&RealFileSystem, None, None)
                    .map_err(|error| chain(&error))?;
                assert_eq!(digest.damage, [], "node {id} {topic}");
                Ok((view.id.partition.0, digest))
            })
            .collect()
    }

    /// The bytes of all frames of `topic` on a node's disk.
    pub fn bytes(&self, id: NodeId, topic: &TopicName) -> u64 {
        let inspection = inspect(&RealFileSystem, &self.spec(id).data_dir).unwrap();
        let own = inspection
            .partitions
            .iter()
            .filter(|view| view.topic == *topic);
        own.map(|view| {
            view.scan(&RealFileSystem, |_| ControlFlow::Continue(()))
                .unwrap()
                .bytes
        })
        .sum()
    }

    /// Waits until every node has every partition of `topic` committed up to the offsets in `ends`, and the same bytes in it.
    pub async fn until_digests_agree(
        &self,
        topic: &TopicName,
        ends: &BTreeMap<u32, u64>,
    ) -> BTreeMap<u32, Digest> {
        assert!(!ends.is_empty());
        until(&format!("digests of {topic} agree"), async || {
            let mut first: Option<BTreeMap<u32, Digest>> = None;
            for id in self.ids() {
                let own = self.digests(id, topic)?;
                for (index, end) in ends {
                    let Some(digest) = own.get(index) else {
                        return Err(format!("node {id} has no {topic}-{index}"));
                    };
                    if digest.high_watermark.get() < *end {
                        return Err(format!(
                            "node {id} {topic}-{index}: {digest:?}, not {end} yet"
                        ));
                    }
                }
                match &first {
                    None => first = Some(own),
                    Some(first) => {
                        for (index, digest) in first {
                            let other = own.get(index);
                            let same = other.is_some_and(|other| {
                                (&other.digest, other.high_watermark, other.log_start_offset)
                                    == (
                                        &digest.digest,
                                        digest.high_watermark,
                                        digest.log_start_offset,
                                    )
                            });
                            if !same {
                                return Err(format!(
                                    "{topic}-{index}: node {} has {digest:?}, node {id} {other:?}",
                                    self.specs[0].id
                                ));
                            }
                        }
                    }
                }
            }
            Ok(first.unwrap_or_default())
        })
        .await
    }

    /// Resident memory of a node, in bytes.
    pub fn resident_bytes(&self, id: NodeId) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid(id))).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        let panicked = |spec: &NodeSpec| spec.log_text().contains("panicked at");
        let nodes_panicked = self.specs.iter().any(panicked);
        if std::thread::panicking() && self.keep_when_failing {
            self.dir.disable_cleanup(true);
        }
        if std::thread::panicking() || nodes_panicked {
            for spec in &self.specs {
                let text = spec.log_text();
                let lines: Vec<&str> = text.lines().collect();
                let from = lines.len().saturating_sub(LOG_TAIL_LINES);
                eprintln!("--- end of the log of node {}:", spec.id);
                for line in &lines[from..] {
                    eprintln!("{line}");
                }
            }
        }
        if !std::thread::panicking() {
            assert!(!nodes_panicked, "a node has panicked: see its log above");
        }
    }
}
