//! What becomes of links, and of those who produce over them, when addresses change and nothing gets through: whole nodes as
//! processes, with a gate before each through which followers and clients reach it.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use quorate::admin::AdminInquiry;
use quorate::broker::{LinkDirection, LinkState, LinkView};
use quorate::client::{
    Client, ConnectError, ConsumerConfig, Dialer, Event, IdentityDialer, NewTopic, ProducerConfig,
    Reached, Start,
};
use quorate::doctor::{Check, Finding, Inquiry, Outcome};
use quorate::transport::{
    Alpn, ClientName, CloseReason, CurrentIdentity, Dialled, Identity, PeerAddress, dial,
};
use quorate::types::{ClusterId, DirectoryId, Incarnation, NodeId, TopicName};
use quorate::wire::{ControlMessage, Hello, PROTOCOL_VERSION};
use tokio::sync::watch;

use support::cluster::Cluster;
use support::relay::{Gate, Impairment, Link, Way};
use support::workload::{Workload, check};
use support::{PATIENCE, node, topic, until};

/// Three nodes, each of which is reached through its gate by all but the controllers.
struct Gated {
    cluster: Cluster,
    gates: BTreeMap<NodeId, Gate>,
}

impl Gated {
    async fn start() -> Gated {
        let mut cluster = Cluster::prepare(3).await;
        let mut gates = BTreeMap::new();
        for spec in &mut cluster.specs {
            let gate = Gate::before(spec.quic).await;
            // In a file, so that it can be changed while the node runs.
            let config = spec.data_dir.with_extension("toml");
            write_advertise(&config, &gate);
            spec.flags = vec!["--config".to_owned(), config.display().to_string()];
            gates.insert(spec.id, gate);
        }
        cluster.start_all().await;
        Gated { cluster, gates }
    }

    /// A client that comes to every node through its gate.
    async fn client(&self) -> Client {
        self.client_that_waits(self.cluster.client_config().request_timeout)
            .await
    }

    /// The same, with another time that a request may take.
    async fn client_that_waits(&self, request_timeout: Duration) -> Client {
        let mut config = self.cluster.client_config();
        config.request_timeout = request_timeout;
        config.bootstrap = self.gates.values().map(|g| g.address.to_string()).collect();
        self.cluster.client_with(config).await
    }

    /// A client that goes round the gates.
    async fn client_beside_the_gates(&self) -> Client {
        let certs = &self.cluster.spec(node(1)).certs_dir;
        let name = ClientName::new("tester").unwrap();
        let identity = Identity::load_client(certs, Some(&name)).unwrap();
        let ways = self.cluster.specs.iter().map(|spec| {
            let gate = self.gates[&spec.id].address.to_string();
            (gate, spec.quic.to_string())
        });
        let dialer = Beside {
            inner: IdentityDialer::new(CurrentIdentity::new(identity)),
            ways: ways.collect(),
        };
        Client::connect(self.cluster.client_config(), Arc::new(dialer))
            .await
            .unwrap()
    }

    /// A topic of one partition on all nodes, its leader, and a producer of records of `size` bytes that is at work.
    async fn at_work(
        &self,
        client: &Client,
        name: &str,
        size: usize,
    ) -> (TopicName, NodeId, Workload) {
        let topic = self.cluster.create_topic(client, name, 1).await;
        let leader = self.cluster.until_led(&topic, 0, |_| true).await;
        let ids = self.cluster.ids();
        self.cluster.until_isr(&topic, 0, &ids).await;
        let workload = Workload::start(client, &topic, &[0], size, ProducerConfig::default());
        workload.until_acknowledged(&[0], 100).await;
        (topic, leader, workload)
    }

    async fn links(&self, id: NodeId, direction: LinkDirection) -> Result<Vec<LinkView>, String> {
        let status = self.cluster.status(id).await?;
        let mut links = status.links;
        links.retain(|link| link.direction == direction);
        Ok(links)
    }

    /// The links of the others to `leader`, once all of them stand and have nothing left to do.
    async fn links_to(&self, leader: NodeId) -> Vec<LinkView> {
        until(&format!("all links to node {leader} are up"), async || {
            let mut links = Vec::new();
            for id in self.cluster.ids().into_iter().filter(|id| *id != leader) {
                let own = self.links(id, LinkDirection::ToLeader).await?;
                let link = own.into_iter().find(|link| link.peer == leader);
                let link = link.ok_or_else(|| format!("node {id} has no link"))?;
                if link.state != LinkState::Up || !link.heard {
                    return Err(format!("node {id}: {link:?}"));
                }
                links.push(link);
            }
            Ok(links)
        })
        .await
    }

    /// What a node's doctor says of its dials to `leader`.
    async fn dials(&self, id: NodeId, leader: NodeId) -> Result<Finding, String> {
        let at = PeerAddress::node(id, self.cluster.spec(id).quic.to_string());
        let within = Duration::from_secs(2);
        let dialled = dial(self.cluster.identity(), &at, Alpn::Admin, within)
            .await
            .map_err(|error| error.to_string())?;
        let vitals = AdminInquiry.vitals(&dialled.connection).await?;
        let target = format!("leader {leader}");
        vitals
            .links
            .into_iter()
            .find(|found| found.check == Check::Dials && found.target == target)
            .ok_or_else(|| format!("nothing of {target}"))
    }

    /// The lines of all logs with this message, whatever their fields.
    fn lines(&self, message: &str) -> Vec<String> {
        let logs = self.cluster.specs.iter().map(|spec| spec.log_text());
        let message = format!(" {message} ");
        logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.contains(&message))
            .collect()
    }

    fn sessions_opened(&self, leader: NodeId) -> usize {
        let log = self.cluster.spec(leader).log_text();
        log.matches("session opened").count()
    }
}

/// Reads the topic's one partition from its beginning, for as long as somebody holds what is returned: the number of records read.
async fn read_on(client: &Client, topic: &TopicName) -> watch::Receiver<u64> {
    let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
    consumer
        .assign_topic(topic, Start::Beginning)
        .await
        .unwrap();
    let (read, reader) = watch::channel(0);
    tokio::spawn(async move {
        while !read.is_closed() {
            if let Event::Record(_) = consumer.next().await.unwrap() {
                read.send_modify(|read| *read += 1);
            }
        }
    });
    reader
}

/// Dials nodes where they are and not where they say that they are.
struct Beside {
    inner: IdentityDialer,
    ways: BTreeMap<String, String>,
}

impl Dialer for Beside {
    fn dial<'a>(
        &'a self,
        address: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<Reached, ConnectError>> {
        let way = self.ways.get(address).map_or(address, String::as_str);
        self.inner.dial(way, within)
    }
}

fn write_advertise(file: &std::path::Path, gate: &Gate) {
    fs::write(file, format!("advertise = \"{}\"\n", gate.address)).unwrap();
}

fn handshakes(links: &[LinkView]) -> u64 {
    links.iter().map(|link| link.handshakes).sum()
}

/// Everybody who talks to the leader comes from another port all of a sudden, in the middle of producing: nobody shakes hands
/// anew, no session is opened again, no produce fails, nothing is doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_from_another_address_is_still_the_same() {
    let gated = Gated::start().await;
    let client = gated.client().await;
    let (topic, leader, workload) = gated.at_work(&client, "moving", 100).await;
    let gate = &gated.gates[&leader];

    let before = gated.links_to(leader).await;
    let sessions = gated.sessions_opened(leader);
    let client_before = client.links();
    for turn in 1..=3u64 {
        gate.rebind();
        until("the leader sees both followers elsewhere", async || {
            let links = gated.links(leader, LinkDirection::ToFollower).await?;
            if links.len() == 2 && links.iter().all(|link| link.migrations >= turn) {
                return Ok(());
            }
            Err(format!("{links:?}"))
        })
        .await;
        workload.until_acknowledged(&[0], 100).await;
    }
    let after = gated.links_to(leader).await;
    assert_eq!(handshakes(&after), handshakes(&before), "{after:?}");
    assert_eq!(gated.sessions_opened(leader), sessions);
    let made = |client: &[quorate::client::ClientLink]| -> u64 {
        client.iter().map(|link| link.handshakes).sum()
    };
    assert_eq!(made(&client.links()), made(&client_before));

    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    let ends = check(&client, &topic, &story).await;
    let acknowledged: u64 = story.acknowledged[&0].len() as u64;
    assert_eq!(ends[&0], acknowledged, "something is there twice");
}

/// Nothing gets through to the leader or back: its followers move to other sockets and dial beside, and when it is over
/// everything goes on, with nothing lost and nothing doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_blackout_everything_goes_on() {
    let gated = Gated::start().await;
    let client = gated.client().await;
    let (topic, leader, workload) = gated.at_work(&client, "dark", 1000).await;
    let gate = &gated.gates[&leader];
    let followers: Vec<NodeId> = gated
        .cluster
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    let before = gated.links_to(leader).await;

    gate.shut();
    for id in &followers {
        until("the follower tries to move, and dials beside", async || {
            let links = gated.links(*id, LinkDirection::ToLeader).await?;
            let link = links.iter().find(|link| link.peer == leader);
            let known = before.iter().map(|link| link.redials).max().unwrap_or(0);
            let link = link.ok_or("no link")?;
            if link.state == LinkState::Silent
                && link.suspicions >= 1
                && link.redials >= known + 3
                && link.last_error.is_some()
            {
                return Ok(());
            }
            Err(format!("{link:?}"))
        })
        .await;
        let log = gated.cluster.spec(*id).log_text();
        assert!(
            log.contains("replication link tries another socket"),
            "{log}"
        );
        // It has not come anywhere: nothing was heard over the other socket.
        assert!(!log.contains("replication link moved"), "{log}");
    }
    let seen = until("the leader says that it hears nobody", async || {
        let links = gated.links(leader, LinkDirection::ToFollower).await?;
        let silent = |link: &LinkView| link.state == LinkState::Silent && !link.heard;
        if links.len() == 2 && links.iter().all(silent) {
            return Ok(links);
        }
        Err(format!("{links:?}"))
    })
    .await;
    for link in seen {
        let lag = link.lag.unwrap();
        assert_eq!(lag.partitions, 1);
        assert_ne!(lag.behind_ms, Some(0), "it cannot be heard");
    }
    for id in &followers {
        let found = gated.dials(*id, leader).await.unwrap();
        assert_eq!(found.outcome, Outcome::Fail, "{found:?}");
        for words in ["the old connection is silent, ", " dials beside it"] {
            assert!(found.detail.contains(words), "{words}: {found:?}");
        }
    }
    // Both ends go on sending, at a rate that does not fade: what comes first after the end of it is never far.
    for way in [Way::There, Way::Back] {
        let so_far = gate.stopped(way);
        until("both ends go on sending", async || {
            let more = gate.stopped(way) - so_far;
            (more >= 100).then_some(()).ok_or(format!("{more} more"))
        })
        .await;
    }

    gate.open();
    workload.until_acknowledged(&[0], 300).await;
    gated.links_to(leader).await;
    gated
        .cluster
        .until_isr(&topic, 0, &gated.cluster.ids())
        .await;
    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    let ends = check(&client, &topic, &story).await;
    assert_eq!(ends[&0], story.acknowledged[&0].len() as u64);

    // Each thing that happened has its line, and each line says with whom, why, and how long it took or lasted.
    for (message, peer, must_be) in [
        ("dial failed", "leader", true),
        ("replication link up", "leader", true),
        ("replication link silent", "leader", true),
        // Whether the old connection or a new one gets through first is a race; who is sure to move is looked at below.
        ("replication link moved to another socket", "leader", false),
        ("replication link heard again", "leader", false),
        ("replication link down", "leader", false),
        ("follower connected", "follower", true),
        ("follower disconnected", "follower", false),
        ("follower silent", "follower", true),
        ("follower heard again", "follower", false),
        ("session opened", "follower", true),
        ("session closed", "follower", false),
        ("in-sync set changed", "joined", false),
        ("connected for calls", "peer", true),
    ] {
        let lines = gated.lines(message);
        assert!(!must_be || !lines.is_empty(), "no line {message:?}");
        for line in lines {
            for field in [&format!(" {peer}="), " cause=", "_ms="] {
                assert!(line.contains(field), "{field:?} is not in {line:?}");
            }
        }
    }
}

/// The way of the old sockets is dead, and no handshake gets through either: connections go on over other sockets, with no session
/// opened anew, and each says that it has moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_path_is_left_for_another_socket() {
    let gated = Gated::start().await;
    let client = gated.client().await;
    let (topic, leader, workload) = gated.at_work(&client, "path", 100).await;
    let before = gated.links_to(leader).await;
    let sessions = gated.sessions_opened(leader);

    gated.gates[&leader].let_only_moves_through();
    let moved = "replication link moved to another socket";
    until("both followers have moved", async || {
        let lines = gated.lines(moved);
        (lines.len() >= 2).then_some(()).ok_or(lines.join("\n"))
    })
    .await;
    workload.until_acknowledged(&[0], 100).await;
    let after = gated.links_to(leader).await;
    assert_eq!(handshakes(&after), handshakes(&before), "{after:?}");
    assert!(after.iter().all(|link| link.migrations >= 1), "{after:?}");
    assert_eq!(gated.sessions_opened(leader), sessions);
    for line in gated.lines(moved) {
        for field in [" leader=", " cause=", " from=", " to=", " took_ms="] {
            assert!(line.contains(field), "{field:?} is not in {line:?}");
        }
    }

    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    let ends = check(&client, &topic, &story).await;
    assert_eq!(ends[&0], story.acknowledged[&0].len() as u64);
}

/// The ways between nodes have seconds of queue before them, and no handshake is over in the time that a dial ordinarily waits:
/// followers find their leader all the same, stay, and commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_behind_seconds_of_queue_is_reached() {
    let mut cluster = Cluster::prepare(3).await;
    let mut ways = Vec::new();
    for spec in &mut cluster.specs {
        let impairment = Impairment {
            delay: Duration::from_millis(1700),
            loss: 0.0,
        };
        let way = Link::before(spec.quic, impairment).await;
        spec.flags = vec!["--advertise".to_owned(), way.address.to_string()];
        ways.push((way.address.to_string(), spec.quic.to_string(), way));
    }
    cluster.start_all().await;
    let certs = &cluster.spec(node(1)).certs_dir;
    let name = ClientName::new("tester").unwrap();
    let dialer = Beside {
        inner: IdentityDialer::new(CurrentIdentity::new(
            Identity::load_client(certs, Some(&name)).unwrap(),
        )),
        ways: ways
            .iter()
            .map(|(way, node, _)| (way.clone(), node.clone()))
            .collect(),
    };
    let client = Client::connect(cluster.client_config(), Arc::new(dialer))
        .await
        .unwrap();
    let topic = cluster.create_topic(&client, "far", 1).await;
    cluster.until_isr(&topic, 0, &cluster.ids()).await;
    let workload = Workload::start(&client, &topic, &[0], 100, ProducerConfig::default());
    workload.until_acknowledged(&[0], 100).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    check(&client, &topic, &story).await;
    for spec in &cluster.specs {
        let log = spec.log_text();
        assert!(!log.contains("replication link down"), "{log}");
    }
}

/// A hello of a follower by hand: with the certificate of `certs_of`, and whatever else is given. What it returns stands for as
/// long as somebody holds it.
async fn say_hello(
    cluster: &Cluster,
    certs_of: NodeId,
    (leader, at): (NodeId, SocketAddr),
    hello: Hello,
) -> (Dialled, quinn::SendStream, quinn::RecvStream) {
    let identity = Arc::new(Identity::load_node(&cluster.spec(certs_of).certs_dir).unwrap());
    let address = PeerAddress::node(leader, at.to_string());
    let dialled = dial(&identity, &address, Alpn::Replication, PATIENCE)
        .await
        .unwrap();
    let (mut send, recv) = dialled.connection.open_bi().await.unwrap();
    let hello = ControlMessage::Hello(hello).encode();
    send.write_all(&hello).await.unwrap();
    (dialled, send, recv)
}

fn hello_of(node: NodeId, cluster: ClusterId) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        cluster,
        node,
        incarnation: Incarnation::from_random_bits(7),
        directory: DirectoryId::from_random_bits(7),
    }
}

async fn told(dialled: &Dialled) -> (CloseReason, String) {
    let closed = tokio::time::timeout(PATIENCE, dialled.connection.closed());
    match closed.await.expect("it is closed") {
        quinn::ConnectionError::ApplicationClosed(close) => {
            let reason = CloseReason::from_code(close.error_code.into_inner()).unwrap();
            (reason, String::from_utf8_lossy(&close.reason).into_owned())
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_says_why_it_closes_a_followers_connection() {
    let mut cluster = Cluster::start().await;
    let (leader, follower) = (node(1), node(3));
    let own = cluster.status(leader).await.unwrap().cluster.unwrap();
    cluster.kill(follower);
    let at = (leader, cluster.spec(leader).quic);
    let other = ClusterId::from_random_bits(1);
    for (hello, reason, words) in [
        (
            hello_of(follower, other),
            CloseReason::WrongCluster,
            "belongs to cluster",
        ),
        (
            hello_of(node(2), own),
            CloseReason::WrongNode,
            "the certificate node 3",
        ),
        (
            Hello {
                version: PROTOCOL_VERSION + 1,
                ..hello_of(follower, own)
            },
            CloseReason::ProtocolError,
            "upgrade the older one",
        ),
    ] {
        let (dialled, _send, _recv) = say_hello(&cluster, follower, at, hello).await;
        let (seen, detail) = told(&dialled).await;
        assert_eq!(seen, reason, "{detail}");
        assert!(detail.contains(words), "{detail}");
    }

    // One falls silent, and another takes its place.
    let gate = Gate::before(at.1).await;
    let hello = hello_of(follower, own);
    let through = (leader, gate.address);
    let (first, _send, mut welcome) = say_hello(&cluster, follower, through, hello.clone()).await;
    welcome.read_chunk(1, true).await.unwrap().unwrap();
    gate.shut_one(Way::There);
    let (second, _send, mut welcome) = say_hello(&cluster, follower, at, hello).await;
    welcome.read_chunk(1, true).await.unwrap().unwrap();
    assert_eq!(told(&first).await.0, CloseReason::Superseded);
    assert!(second.connection.close_reason().is_none());

    let (ended, (reason, detail)) = tokio::join!(cluster.stop(leader), told(&second));
    assert!(ended.success(), "{ended}");
    assert_eq!((reason, detail.as_str()), (CloseReason::ShuttingDown, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_another_cluster_that_comes_again_and_again_writes_a_line_a_second() {
    let cluster = Cluster::start().await;
    let (leader, follower) = (node(1), node(2));
    let at = (leader, cluster.spec(leader).quic);
    let hello = hello_of(follower, ClusterId::from_random_bits(1));
    let begin = Instant::now();
    let mut dials = 0;
    // As many lines as there were seconds are allowed, so there must be many more dials than that.
    while dials < 30 || dials < 4 * (begin.elapsed().as_secs() + 2) {
        assert!(begin.elapsed() < PATIENCE, "{dials} dials");
        let (dialled, _send, _recv) = say_hello(&cluster, follower, at, hello.clone()).await;
        told(&dialled).await;
        dials += 1;
    }
    let allowed = begin.elapsed().as_secs() + 2;
    let refused = until("it is said", async || {
        let log = cluster.spec(leader).log_text();
        let refused: Vec<String> = log
            .lines()
            .filter(|line| line.contains("the follower belongs to cluster"))
            .map(str::to_owned)
            .collect();
        match refused.is_empty() {
            true => Err(log),
            false => Ok(refused),
        }
    })
    .await;
    assert!(
        refused.len() as u64 <= allowed,
        "{dials} dials: {refused:#?}"
    );
    for line in &refused {
        for field in [" follower refused ", " follower=2", " cause=", "took_ms="] {
            assert!(line.contains(field), "{field:?} is not in {line:?}");
        }
    }
}

/// A leader registers another address and is not to be had at the old one any more: followers and clients find it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_moves_is_followed() {
    let gated = Gated::start().await;
    // What waits at the old address must not have to wait until it is given up for its age.
    let client = gated.client_that_waits(Duration::from_secs(600)).await;
    let (topic, leader, workload) = gated.at_work(&client, "elsewhere", 100).await;
    let before = gated.links_to(leader).await;
    let reader = read_on(&client, &topic).await;

    let spec = gated.cluster.spec(leader);
    let elsewhere = Gate::before(spec.quic).await;
    write_advertise(&spec.data_dir.with_extension("toml"), &elsewhere);
    let pid = gated.cluster.pid(leader).to_string();
    let told = Command::new("kill").args(["-HUP", &pid]).status().unwrap();
    assert!(told.success());
    let place = elsewhere.address.to_string();
    until("both followers have dialled it there", async || {
        for id in gated.cluster.ids().into_iter().filter(|id| *id != leader) {
            let links = gated.links(id, LinkDirection::ToLeader).await?;
            let link = links.iter().find(|link| link.peer == leader);
            if !link.is_some_and(|link| link.heard && link.remote_address == place) {
                return Err(format!("node {id}: {link:?}"));
            }
        }
        Ok(())
    })
    .await;
    gated.gates[&leader].shut();
    let after = gated.links_to(leader).await;
    assert_eq!(handshakes(&after), handshakes(&before) + 2, "{after:?}");

    workload.until_acknowledged(&[0], 200).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    let ends = check(&client, &topic, &story).await;
    assert_eq!(ends[&0], story.acknowledged[&0].len() as u64);
    until("the reader has followed too", async || {
        let read = *reader.borrow();
        (read == ends[&0])
            .then_some(())
            .ok_or_else(|| format!("{read} of {} records read", ends[&0]))
    })
    .await;
    // And not only because the old connection was given up, after a minute without a word.
    let old = gated.gates[&leader].address.to_string();
    let links = client.links();
    let old = links.iter().find(|link| link.address == old).unwrap();
    assert!(old.is_up, "{old:?}");
    let now_leads = gated.cluster.until_led(&topic, 0, |_| true).await;
    assert_eq!(now_leads, leader, "it never stopped leading");
    assert_eq!(gated.cluster.running().len(), 3, "{:?}", node(1));
}

/// One follower's link is a black hole, in a partition of two replicas: the leader goes on alone, never shows a lag of 0 while it
/// hears nothing, and has the follower back when the link is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_a_black_hole_leaves_and_comes_back() {
    let gated = Gated::start().await;
    let client = gated.client_beside_the_gates().await;
    let topic = topic("pair");
    let new = NewTopic {
        partitions: Some(1),
        replication_factor: Some(2),
        configs: BTreeMap::from([("min.insync.replicas".to_owned(), "1".to_owned())]),
        ..NewTopic::new(topic.clone())
    };
    client.admin().create_topic(&new, false).await.unwrap();
    let leader = gated.cluster.until_led(&topic, 0, |_| true).await;
    let both = until("both replicas are in sync", async || {
        let partition = gated.cluster.partition(leader, &topic, 0).await?;
        (partition.isr.len() == 2)
            .then(|| partition.isr.clone())
            .ok_or(format!("{partition:?}"))
    })
    .await;
    let follower = both.iter().copied().find(|id| *id != leader).unwrap();
    // Enough to fill the window towards the follower many times over.
    let workload = Workload::start(&client, &topic, &[0], 4000, ProducerConfig::default());
    workload.until_acknowledged(&[0], 100).await;
    let link = async || -> Result<LinkView, String> {
        let links = gated.links(leader, LinkDirection::ToFollower).await?;
        let link = links.into_iter().find(|link| link.peer == follower);
        link.ok_or_else(|| "no link".to_owned())
    };

    let gate = &gated.gates[&leader];
    gate.shut();
    gated.cluster.until_isr(&topic, 0, &[leader]).await;
    workload.until_acknowledged(&[0], 300).await;
    let seen = until("the link's lag grows", async || {
        let seen = link().await?;
        let lag = seen.lag.ok_or("no lag")?;
        let grows = lag.records.is_none_or(|records| records >= 300)
            && lag.behind_ms.is_some_and(|behind| behind >= 500);
        (grows && !seen.heard)
            .then(|| seen.clone())
            .ok_or(format!("{seen:?}"))
    })
    .await;
    assert_eq!(seen.state, LinkState::Silent, "{seen:?}");
    let so_far = gate.stopped(Way::Back);
    until("the leader's full window lets heartbeats out", async || {
        let more = gate.stopped(Way::Back) - so_far;
        (more >= 100).then_some(()).ok_or(format!("{more} more"))
    })
    .await;

    gate.open();
    gated.cluster.until_isr(&topic, 0, &both).await;
    let story = workload.finish().await;
    assert_eq!(story.errors, Vec::<String>::new());
    until("nothing is left to send", async || {
        let seen = link().await?;
        let lag = seen.lag.ok_or("no lag")?;
        (seen.state == LinkState::Up && lag.records == Some(0) && lag.bytes == Some(0))
            .then_some(())
            .ok_or(format!("{seen:?}"))
    })
    .await;
    let ends = check(&client, &topic, &story).await;
    assert_eq!(ends[&0], story.acknowledged[&0].len() as u64);
}
