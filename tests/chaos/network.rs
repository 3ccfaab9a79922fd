//! The network between nodes, and between clients and nodes, in user space and without privileges: before each node's QUIC
//! port stands a relay that knows who sends, so that each direction between each two can be cut or made lossy by itself.
//!
//! ```text
//!   node 1's socket towards node 2 ──▶ relay of node 2 ──▶ a socket of that flow's own ──▶ node 2
//!                                   ◀──                 ◀──
//! ```
//!
//! Who sends is found in `/proc`: the socket that is bound to a datagram's source port is open in one of the processes.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate::types::NodeId;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

/// The longest datagram that UDP knows.
const MAX_DATAGRAM: usize = 65_535;
/// What a relay's socket may hold, in bytes: a frozen node's peers go on sending.
const BUFFER_BYTES: usize = 4 << 20;
/// A new flow that was silent for this long is looked up once more: its process may not have been known here at first.
const SILENCE: Duration = Duration::from_secs(1);
/// Any flow that was silent for this long may have come to be somebody else's: its port is looked up again.
const LONG_SILENCE: Duration = Duration::from_secs(30);
/// A look costs milliseconds, because the kernel's list has all sockets of all flows; the next one may begin after so many times
/// what it took. Datagrams that queue up behind looks would be seconds late, their senders would dial again, and each dial is a
/// flow to look up.
const LOOKS_APART: u32 = 4;
/// A flow that was silent for this long is forgotten. A node that was away finds its stateless reset's way back until then.
const FORGET: Duration = Duration::from_secs(120);

/// Who sends and receives: a node, or a client, which is whoever is no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    Clients,
    Node(NodeId),
}

/// The processes of the nodes as they run now. Whoever starts or ends one says so here.
pub type Pids = Arc<Mutex<BTreeMap<NodeId, u32>>>;

/// What is wrong with the network.
#[derive(Debug, Default)]
struct Faults {
    /// From whom to whom nothing comes through.
    cuts: Mutex<Vec<(Party, Party)>>,
    /// Of a thousand datagrams, how many are lost everywhere.
    loss: AtomicU32,
    /// For the loss: the state of a generator.
    random: AtomicU64,
    /// Datagrams that were not let through.
    dropped: AtomicU64,
}

impl Faults {
    fn lets_through(&self, from: Party, to: Party) -> bool {
        let cut = lock(&self.cuts).contains(&(from, to));
        let loss = self.loss.load(Ordering::Relaxed);
        let passes = !cut && (loss == 0 || self.draw() % 1000 >= loss);
        if !passes {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        passes
    }

    fn draw(&self) -> u32 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let state = self.random.fetch_add(STEP, Ordering::Relaxed);
        (state.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) as u32
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the file's head. Dropping it ends all relays.
pub struct Network {
    faults: Arc<Faults>,
    pids: Pids,
    /// The relays end when this does.
    _stands: oneshot::Sender<()>,
}

impl Network {
    /// A relay on each node's `outside` socket before its own `inside`.
    pub fn before(nodes: Vec<(NodeId, std::net::UdpSocket, SocketAddr)>, seed: u64) -> Network {
        let faults = Arc::new(Faults {
            random: AtomicU64::new(seed),
            ..Faults::default()
        });
        let pids = Pids::default();
        let (stands, ends) = oneshot::channel();
        let (relayed_faults, relayed_pids) = (faults.clone(), pids.clone());
        // On a thread of their own: a network that waits for its turn behind all clients of the run is one of seconds of delay.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let carry = async move {
            let mut relays = JoinSet::new();
            // They share a thread, so they share what looks may cost.
            let next_look = Arc::new(Mutex::new(Instant::now()));
            for (node, outside, inside) in nodes {
                let relay = Relay {
                    party: Party::Node(node),
                    inside,
                    outside: Arc::new(roomy(UdpSocket::from_std(outside).unwrap())),
                    faults: relayed_faults.clone(),
                    pids: relayed_pids.clone(),
                    flows: HashMap::new(),
                    next_look: next_look.clone(),
                };
                relays.spawn(relay.run());
            }
            // It is never sent, only dropped.
            let _ = ends.await;
        };
        std::thread::Builder::new()
            .name("relays".to_owned())
            .spawn(move || runtime.block_on(carry))
            .unwrap();
        Network {
            faults,
            pids,
            _stands: stands,
        }
    }

    pub fn pids(&self) -> Pids {
        self.pids.clone()
    }

    /// Nothing comes from `from` to `to` any more.
    pub fn cut(&self, from: Party, to: Party) {
        lock(&self.faults.cuts).push((from, to));
    }

    pub fn set_loss(&self, per_mille: u32) {
        self.faults.loss.store(per_mille, Ordering::Relaxed);
    }

    /// Everything comes through again.
    pub fn heal(&self) {
        lock(&self.faults.cuts).clear();
        self.set_loss(0);
    }

    /// Datagrams that were cut off or lost so far.
    pub fn dropped(&self) -> u64 {
        self.faults.dropped.load(Ordering::Relaxed)
    }
}

fn roomy(socket: UdpSocket) -> UdpSocket {
    let options = SockRef::from(&socket);
    // The kernel grants what it will.
    let _ = options.set_recv_buffer_size(BUFFER_BYTES);
    let _ = options.set_send_buffer_size(BUFFER_BYTES);
    socket
}

/// Whoever sends from one address, and the way on to the node for it.
struct Flow {
    party: Party,
    /// The socket that sends, as the kernel numbers it.
    inode: Option<u64>,
    /// Whether its holder was looked up twice: the first time may have been before its process was known here.
    is_sure: bool,
    /// Whether there was no time to look it up when it was due.
    is_owed: bool,
    inside: Arc<UdpSocket>,
    last: Instant,
    answers: AbortHandle,
}

struct Relay {
    party: Party,
    inside: SocketAddr,
    outside: Arc<UdpSocket>,
    faults: Arc<Faults>,
    pids: Pids,
    flows: HashMap<SocketAddr, Flow>,
    /// When the next look may begin. Until then whoever is new is a client, and is looked up with a later datagram.
    next_look: Arc<Mutex<Instant>>,
}

impl Relay {
    async fn run(mut self) {
        let mut answers = JoinSet::new();
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            // An error here is the echo of an earlier datagram that found nobody.
            let Ok((length, from)) = self.outside.recv_from(&mut buffer).await else {
                continue;
            };
            let now = Instant::now();
            let known = self.flows.get(&from);
            let is_due = |flow: &Flow| {
                let after = if flow.is_sure { LONG_SILENCE } else { SILENCE };
                flow.is_owed || now - flow.last >= after
            };
            if known.is_none_or(is_due) {
                let may_look = now >= *lock(&self.next_look);
                self.meet(from, now, may_look, &mut answers).await;
            }
            let Some(flow) = self.flows.get_mut(&from) else {
                continue;
            };
            flow.last = now;
            if self.faults.lets_through(flow.party, self.party) {
                let _ = flow.inside.send(&buffer[..length]).await;
            }
            while answers.try_join_next().is_some() {}
        }
    }

    /// Somebody sends who was silent until now.
    async fn meet(
        &mut self,
        from: SocketAddr,
        now: Instant,
        may_look: bool,
        answers: &mut JoinSet<()>,
    ) {
        if !may_look {
            if !self.flows.contains_key(&from) {
                self.open(from, now, None, Party::Clients, answers).await;
            }
            if let Some(flow) = self.flows.get_mut(&from) {
                flow.is_owed = true;
            }
            return;
        }
        let (inode, party) = self.look(from, now);
        if let Some(flow) = self.flows.get_mut(&from) {
            if flow.party == party {
                flow.is_sure = inode.is_some() && flow.inode == inode;
                flow.is_owed = false;
                flow.inode = inode;
                return;
            }
            flow.answers.abort();
        }
        self.open(from, now, inode, party, answers).await;
    }

    /// The socket that sends from there and who holds it. Whoever is found to be gone is forgotten: every dial and every move
    /// is a flow of its own, and what their sockets leave behind makes the kernel's list longer, and each look at it dearer.
    fn look(&mut self, from: SocketAddr, now: Instant) -> (Option<u64>, Party) {
        let sockets = bound_sockets();
        let inode = sockets.get(&from.port()).copied();
        self.flows.retain(|at, flow| {
            let socket = sockets.get(&at.port());
            let is_gone = socket.is_none() || flow.inode.is_some() && flow.inode.as_ref() != socket;
            // Its last datagrams are to come through too: a close is one.
            let keep = *at == from || !is_gone && now - flow.last < FORGET;
            if !keep {
                flow.answers.abort();
            }
            keep
        });
        // Whoever holds a socket goes on holding it, and to find out who that is takes a look at all their files.
        let known = self.flows.get(&from);
        let held = known.filter(|flow| flow.is_sure && inode.is_some() && flow.inode == inode);
        let party = match (held, inode) {
            (Some(flow), _) => flow.party,
            (None, Some(inode)) => owner(inode, &self.pids),
            (None, None) => known.map_or(Party::Clients, |flow| flow.party),
        };
        *lock(&self.next_look) = Instant::now() + now.elapsed() * LOOKS_APART;
        (inode, party)
    }

    async fn open(
        &mut self,
        from: SocketAddr,
        now: Instant,
        inode: Option<u64>,
        party: Party,
        answers: &mut JoinSet<()>,
    ) {
        let inside = Arc::new(roomy(UdpSocket::bind(("127.0.0.1", 0)).await.unwrap()));
        inside.connect(self.inside).await.unwrap();
        let answering = answers.spawn(answer(
            inside.clone(),
            self.outside.clone(),
            from,
            (self.party, party),
            self.faults.clone(),
        ));
        let flow = Flow {
            party,
            inode,
            is_sure: false,
            is_owed: false,
            inside,
            last: now,
            answers: answering,
        };
        self.flows.insert(from, flow);
    }
}

async fn answer(
    inside: Arc<UdpSocket>,
    outside: Arc<UdpSocket>,
    to: SocketAddr,
    (node, party): (Party, Party),
    faults: Arc<Faults>,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // The node may be down just now.
        let Ok(length) = inside.recv(&mut buffer).await else {
            continue;
        };
        if faults.lets_through(node, party) {
            let _ = outside.send_to(&buffer[..length], to).await;
        }
    }
}

/// Whose socket this is.
fn owner(inode: u64, pids: &Pids) -> Party {
    let link = format!("socket:[{inode}]");
    let pids = lock(pids).clone();
    let holder = pids.into_iter().find(|(_, pid)| {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        entries.flatten().any(|entry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == link.as_str())
        })
    });
    holder.map_or(Party::Clients, |(node, _)| Party::Node(node))
}

/// The inode of each UDP socket by the port that it is bound to, by the kernel's own list:
///
/// ```text
///   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
/// 2101: 0100007F:2B67 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 31337 2 000000 0
/// ```
fn bound_sockets() -> HashMap<u16, u64> {
    let list = fs::read_to_string("/proc/net/udp").unwrap_or_default();
    let socket = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (_, hex) = fields.nth(1)?.split_once(':')?;
        let port = u16::from_str_radix(hex, 16).ok()?;
        Some((port, fields.nth(7)?.parse().ok()?))
    };
    list.lines().skip(1).filter_map(socket).collect()
}

mod tests {
    use super::*;
    use crate::support::{node, until};

    async fn exchange(from: &UdpSocket, to: SocketAddr, text: &[u8]) {
        from.send_to(text, to).await.unwrap();
    }

    async fn receive(at: &UdpSocket) -> Option<Vec<u8>> {
        let mut buffer = [0; 64];
        let received = tokio::time::timeout(Duration::from_millis(200), at.recv_from(&mut buffer));
        let (length, _) = received.await.ok()?.unwrap();
        Some(buffer[..length].to_vec())
    }

    #[tokio::test]
    async fn each_direction_is_cut_by_itself_and_by_its_owner() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = UdpSocket::bind(any).await.unwrap();
        let socket = std::net::UdpSocket::bind(any).unwrap();
        socket.set_nonblocking(true).unwrap();
        let outside = socket.local_addr().unwrap();
        let inside = server.local_addr().unwrap();
        let network = Network::before(vec![(node(1), socket, inside)], 1);
        let client = UdpSocket::bind(any).await.unwrap();

        let (to, from) = (
            (Party::Clients, Party::Node(node(1))),
            (Party::Node(node(1)), Party::Clients),
        );
        let round_trip = async |text: &[u8]| {
            exchange(&client, outside, text).await;
            let mut buffer = [0; 64];
            let arrived =
                tokio::time::timeout(Duration::from_millis(200), server.recv_from(&mut buffer));
            let Ok(Ok((length, relay))) = arrived.await else {
                return (false, false);
            };
            exchange(&server, relay, &buffer[..length]).await;
            (true, receive(&client).await.is_some())
        };
        until("datagrams come through", async || {
            match round_trip(b"open").await {
                (true, true) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        network.cut(to.0, to.1);
        assert_eq!(round_trip(b"cut").await, (false, false));
        network.heal();
        network.cut(from.0, from.1);
        assert_eq!(round_trip(b"cut back").await, (true, false));
        network.heal();
        // Nobody here is node 2.
        network.cut(Party::Node(node(2)), Party::Node(node(1)));
        assert_eq!(round_trip(b"open").await, (true, true));
        // From now on this process is node 2, and its next socket is recognised as that node's.
        let pid = std::process::id();
        lock(&network.pids()).insert(node(2), pid);
        let client = UdpSocket::bind(any).await.unwrap();
        exchange(&client, outside, b"known").await;
        assert_eq!(receive(&server).await, None);
        assert!(network.dropped() >= 3);
        network.heal();
        network.set_loss(1000);
        exchange(&client, outside, b"lost").await;
        assert_eq!(receive(&server).await, None);
    }
}
