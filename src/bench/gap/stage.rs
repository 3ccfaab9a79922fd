//! One run's cluster: started, with a topic of one partition of which it is known who leads and who follows, and with everything
//! that can be done to it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::process::Signal;
use tokio::time::Instant;

use super::gate::Gate;
use super::meter::Meter;
use super::{Fault, Scenario, Settings};
use crate::admin::{AdminRequest, PartitionStatus, ask};
use crate::bench::BenchError;
use crate::bench::local::{
    self, Cast, Folder, LocalError, NodePlan, Processes, Watchers, Wishes, load_identity, start_up,
};
use crate::broker::LinkDirection;
use crate::client::{
    Client, ClientConfig, ConnectError, Dialer, IdentityDialer, NewTopic, Reached,
};
use crate::transport::{Alpn, CurrentIdentity, Identity, PeerAddress, dial};
use crate::types::{NodeId, TopicName};

/// How often nodes are asked what they know.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How often the leader is asked whether the follower is in sync again, where that is measured.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long one answer to that may take before the node is dialled anew.
const LOOK_WITHIN: Duration = Duration::from_millis(500);
/// How often a log is looked at for the line that says that the node listens.
const LISTENS_EVERY: Duration = Duration::from_millis(5);
const LISTENING: &str = "listening on ";

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Where those go who get another address. On Linux all of 127.0.0.0/8 is this machine.
pub(super) const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

pub(super) struct Stage {
    pub(super) client: Client,
    pub(super) topic: TopicName,
    pub(super) cast: Cast,
    pub(super) meter: Meter,
    watchers: Watchers,
    nodes: Vec<NodePlan>,
    gates: BTreeMap<NodeId, Gate>,
    left_gates: Vec<Gate>,
    identity: Arc<Identity>,
    replicas: usize,
    seed: u64,
}

/// The folder of a run.
pub(super) fn open_folder(
    dir: &Path,
    scenario: &Scenario,
    settings: &Settings,
) -> Result<Folder, BenchError> {
    let mut flags = vec![
        // A leadership that goes back to the preferred replica by itself would be an election that nobody asked for.
        "--auto-leader-rebalance-enable".to_owned(),
        "false".to_owned(),
    ];
    if scenario.needs_impairment() {
        flags.extend(["--impair".to_owned(), String::new()]);
    }
    let wishes = Wishes {
        name: "bench",
        nodes: Some(scenario.nodes),
        keep: settings.keep,
        flags,
        with_config: scenario.needs_gates(),
        impairment: None,
        hosts: match scenario.fault {
            Fault::LeaderAddress => vec![ELSEWHERE.to_string().parse().map_err(LocalError::from)?],
            _ => Vec::new(),
        },
        seats: Vec::new(),
    };
    Ok(Folder::open(Some(dir), wishes)?)
}

/// Opens the gates that a scenario needs, and has the nodes say that they are there.
pub(super) fn open_gates(
    folder: &Folder,
    scenario: &Scenario,
) -> Result<BTreeMap<NodeId, Gate>, LocalError> {
    let mut gates = BTreeMap::new();
    if !scenario.needs_gates() {
        return Ok(gates);
    }
    for node in folder.nodes() {
        let gate = Gate::before(node.quic, LOCAL).map_err(|source| LocalError::Io {
            what: format!("cannot open a gate before node {}", node.id),
            source,
        })?;
        // A client's NAT is before the client alone.
        let advertised = match scenario.fault {
            Fault::ClientPort => node.quic,
            _ => gate.address,
        };
        write_advertised(node, advertised)?;
        gates.insert(node.id, gate);
    }
    Ok(gates)
}

fn write_advertised(node: &NodePlan, address: SocketAddr) -> Result<(), LocalError> {
    fs::write(&node.config, format!("advertise = \"{address}\"\n")).map_err(|source| {
        LocalError::Io {
            what: format!("cannot write {}", node.config.display()),
            source,
        }
    })
}

impl Stage {
    /// Waits until the nodes are a cluster, and makes the topic.
    pub(super) async fn set(
        settings: &Settings,
        scenario: &Scenario,
        seed: u64,
        folder: &mut Folder,
        processes: &mut Processes,
        mut gates: BTreeMap<NodeId, Gate>,
    ) -> Result<Stage, BenchError> {
        let reopen = |folder: &Folder| {
            gates = open_gates(folder, scenario)?;
            Ok(())
        };
        let silent = |_: &str| {};
        let watchers = start_up(
            settings.within,
            folder,
            processes,
            ASK_EVERY,
            reopen,
            silent,
        )
        .await?;
        let identity = Arc::new(load_identity(folder)?);
        let nodes = folder.nodes().to_vec();
        let client = connect(&nodes, scenario, &gates, load_identity(folder)?).await?;
        let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
        let controller = watchers
            .statuses()
            .into_iter()
            .find_map(|(_, status)| status?.active_controller);
        let cast = Cast::choose(&ids, controller, scenario.replicas.into())
            .ok_or_else(|| BenchError::Failed("a cluster without nodes".to_owned()))?;
        let topic: TopicName = "gap"
            .parse()
            .map_err(|_| BenchError::Failed("a topic cannot be called gap".to_owned()))?;
        create_topic(&client, &topic, scenario, &cast, settings.within).await?;
        let mut stage = Stage {
            client,
            topic,
            cast,
            meter: Meter::default(),
            watchers,
            nodes,
            gates,
            left_gates: Vec::new(),
            identity,
            replicas: scenario.replicas.into(),
            seed,
        };
        let leader = stage.cast.leader;
        let is_ready = |stage: &Stage| stage.is_whole() && stage.leads(leader);
        if !stage.pass_until(settings.within, is_ready).await {
            return Err(BenchError::Failed(format!(
                "not all {} replicas were in sync under node {leader} within {} s: {:?}",
                stage.replicas,
                settings.within.as_secs(),
                stage.partition(),
            )));
        }
        Ok(stage)
    }

    /// The partition as of the newest state that any node knows.
    fn partition(&self) -> Option<PartitionStatus> {
        self.watchers.partitions(&self.topic).into_iter().next()
    }

    fn leads(&self, node: NodeId) -> bool {
        self.partition().is_some_and(|p| p.leader == Some(node))
    }

    /// Whether every node answers, somebody leads, and all replicas are in sync.
    pub(super) fn is_whole(&self) -> bool {
        let all_answer = self.watchers.statuses().iter().all(|(_, s)| s.is_some());
        let partition = self.partition();
        all_answer && partition.is_some_and(|p| p.leader.is_some() && p.isr.len() == self.replicas)
    }

    pub(super) fn in_sync(&self, node: NodeId) -> bool {
        self.partition().is_some_and(|p| p.isr.contains(&node))
    }

    /// Takes in what the nodes and the client count.
    pub(super) fn observe(&mut self) {
        for (_, status) in self.watchers.statuses() {
            if let Some(status) = status {
                self.meter.take(&status);
            }
        }
        if let Some(partition) = self.partition() {
            self.meter.take_partition(&partition);
        }
        self.meter.take_client(&self.client.links());
    }

    /// Lets this much time pass, and takes in what the nodes say meanwhile.
    pub(super) async fn pass(&mut self, time: Duration) {
        self.pass_until(time, |_| false).await;
    }

    /// The same until something is the case. Returns whether it is, `within` this much time at most.
    pub(super) async fn pass_until(
        &mut self,
        within: Duration,
        mut is_so: impl FnMut(&Stage) -> bool,
    ) -> bool {
        let deadline = Instant::now() + within;
        loop {
            self.observe();
            if is_so(self) {
                return true;
            }
            let next = deadline.min(Instant::now() + ASK_EVERY);
            if Instant::now() >= deadline {
                return false;
            }
            // A deadline is kept even when no node says anything.
            let _ = tokio::time::timeout_at(next, self.watchers.changed()).await;
        }
    }

    fn plan(&self, node: NodeId) -> Result<&NodePlan, BenchError> {
        self.nodes
            .iter()
            .find(|plan| plan.id == node)
            .ok_or_else(|| BenchError::Failed(format!("there is no node {node}")))
    }

    pub(super) fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// From now on, within 20 ms, the links of a node suffer this; nothing where it is empty.
    pub(super) fn impair(&self, node: NodeId, rules: &str) -> Result<(), BenchError> {
        let plan = self.plan(node)?;
        let seed = self
            .seed
            .wrapping_mul(31)
            .wrapping_add(u64::from(node.get()));
        Ok(plan.impair(rules, seed)?)
    }

    /// What the leader sees this follower at.
    fn seen_at(&self, follower: NodeId) -> Option<SocketAddr> {
        let status = self.watchers.status(self.cast.leader)?;
        let link = status
            .links
            .iter()
            .find(|link| link.direction == LinkDirection::ToFollower && link.peer == follower)?;
        link.remote_address.parse().ok()
    }

    /// The follower comes to the leader from another port of `ip`.
    pub(super) fn move_follower(&self, follower: NodeId, ip: IpAddr) -> Result<(), BenchError> {
        let unknown = || {
            BenchError::Failed(format!(
                "it is not known from where node {follower} comes to its leader"
            ))
        };
        let seen = self.seen_at(follower).ok_or_else(unknown)?;
        let gate = self.gates.get(&self.cast.leader).ok_or_else(unknown)?;
        match gate.move_one(seen, ip).map_err(cannot_move)? {
            true => Ok(()),
            false => Err(unknown()),
        }
    }

    /// The client comes to every node from another port.
    pub(super) fn move_client(&self) -> Result<(), BenchError> {
        self.gates
            .values()
            .try_for_each(|gate| gate.move_all(LOCAL))
            .map_err(cannot_move)
    }

    /// The leader is elsewhere all of a sudden, and is told so.
    pub(super) fn move_leader(&mut self, processes: &mut Processes) -> Result<(), BenchError> {
        let leader = self.cast.leader;
        let plan = self.plan(leader)?;
        let gate = Gate::before(plan.quic, ELSEWHERE).map_err(cannot_move)?;
        write_advertised(plan, gate.address)?;
        if let Some(old) = self.gates.get(&leader) {
            old.shut();
        }
        processes.signal(leader, Signal::HUP);
        // The old one stays, shut: a port that is free would answer that nobody is there.
        self.left_gates.extend(self.gates.insert(leader, gate));
        Ok(())
    }

    /// How often a node has said that it listens.
    pub(super) fn times_up(&self, node: NodeId) -> Result<usize, BenchError> {
        let plan = self.plan(node)?;
        let text = fs::read_to_string(&plan.log).map_err(|source| BenchError::Io {
            what: format!("cannot read {}", plan.log.display()),
            source,
        })?;
        Ok(text.matches(LISTENING).count())
    }

    /// Waits until a node has said so more often than `before`. Returns how long that took.
    pub(super) async fn until_up(
        &self,
        node: NodeId,
        before: usize,
        within: Duration,
    ) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        while self.times_up(node)? <= before {
            if begun.elapsed() >= within {
                return Err(BenchError::Failed(format!(
                    "node {node} was not up again within {} s: see {}",
                    within.as_secs(),
                    self.plan(node)?.log.display()
                )));
            }
            tokio::time::sleep(LISTENS_EVERY).await;
        }
        Ok(begun.elapsed())
    }

    /// Asks the leader again and again whether a follower is in sync, until it is. Ends with the time that this took, or `None`
    /// after `within`.
    pub(super) fn until_in_sync(
        &self,
        follower: NodeId,
        within: Duration,
    ) -> Result<impl Future<Output = Option<Duration>> + Send + use<>, BenchError> {
        let leader = self.cast.leader;
        let address = PeerAddress::node(leader, self.plan(leader)?.quic.to_string());
        let (identity, topic) = (self.identity.clone(), self.topic.clone());
        let begun = Instant::now();
        Ok(async move {
            let looking = async {
                loop {
                    let dialled = dial(&identity, &address, Alpn::Admin, LOOK_WITHIN).await;
                    while let Ok(dialled) = &dialled {
                        let asked = ask(&dialled.connection, &AdminRequest::Status);
                        let Ok(Ok(status)) = tokio::time::timeout(LOOK_WITHIN, asked).await else {
                            break;
                        };
                        let mut partitions = status.partitions.iter();
                        if partitions.any(|p| p.topic == topic && p.isr.contains(&follower)) {
                            return begun.elapsed();
                        }
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            tokio::time::timeout(within, looking).await.ok()
        })
    }
}

fn cannot_move(source: std::io::Error) -> BenchError {
    BenchError::Io {
        what: format!("cannot come from another address, such as {ELSEWHERE}"),
        source,
    }
}

async fn connect(
    nodes: &[NodePlan],
    scenario: &Scenario,
    gates: &BTreeMap<NodeId, Gate>,
    identity: Identity,
) -> Result<Client, BenchError> {
    let mut ways = HashMap::new();
    let mut bootstrap = Vec::new();
    for node in nodes {
        let gate = gates.get(&node.id).map(|gate| gate.address.to_string());
        let own = node.quic.to_string();
        match (scenario.fault, gate) {
            (Fault::ClientPort, Some(gate)) => {
                ways.insert(own.clone(), gate);
                bootstrap.push(own);
            }
            (_, Some(gate)) => bootstrap.push(gate),
            (_, None) => bootstrap.push(own),
        }
    }
    let dialer = Through {
        inner: IdentityDialer::new(CurrentIdentity::new(identity)),
        ways,
    };
    Client::connect(ClientConfig::new(bootstrap), Arc::new(dialer))
        .await
        .map_err(|source| BenchError::Client {
            doing: "connect to the cluster",
            source: Box::new(source),
        })
}

/// Dials some addresses through gates.
struct Through {
    inner: IdentityDialer,
    ways: HashMap<String, String>,
}

impl Dialer for Through {
    fn dial<'a>(
        &'a self,
        address: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<Reached, ConnectError>> {
        let way = self.ways.get(address).map_or(address, String::as_str);
        self.inner.dial(way, within)
    }
}

async fn create_topic(
    client: &Client,
    name: &TopicName,
    scenario: &Scenario,
    cast: &Cast,
    within: Duration,
) -> Result<(), BenchError> {
    let mut topic = NewTopic::new(name.clone());
    topic.assignment = Some(vec![cast.replicas()]);
    topic.configs.insert(
        "min.insync.replicas".to_owned(),
        scenario.min_insync.to_string(),
    );
    local::create_topic(client, &topic, within)
        .await
        .map_err(BenchError::client("create the topic"))
}
