//! UDP relays: one that keeps every datagram that goes through it, one that delays and loses them, one that can be shut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};

use super::cluster::free_socket;

/// The longest datagram that UDP knows.
const MAX_DATAGRAM: usize = 65_535;

/// Stands before one address: whoever sends to the relay talks to that address through it.
pub struct Relay {
    pub address: SocketAddr,
    datagrams: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub async fn before(target: SocketAddr) -> Relay {
        let outside = Arc::new(UdpSocket::from_std(free_socket()).unwrap());
        let address = outside.local_addr().unwrap();
        let datagrams = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(outside, target, datagrams.clone()));
        Relay {
            address,
            datagrams,
            _tasks: tasks,
        }
    }

    /// Everything so far, in both directions.
    pub fn datagrams(&self) -> Vec<Vec<u8>> {
        self.datagrams.lock().unwrap().clone()
    }
}

/// One socket towards the target for each address that sends.
async fn forward(outside: Arc<UdpSocket>, target: SocketAddr, datagrams: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut towards: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // A target that is down answers with an ICMP message, which comes as an error of the next call.
        let Ok((length, from)) = outside.recv_from(&mut buffer).await else {
            continue;
        };
        datagrams.lock().unwrap().push(buffer[..length].to_vec());
        let inside = match towards.get(&from) {
            Some(inside) => inside.clone(),
            None => {
                let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                inside.connect(target).await.unwrap();
                towards.insert(from, inside.clone());
                back.spawn(answer(
                    inside.clone(),
                    outside.clone(),
                    from,
                    datagrams.clone(),
                ));
                inside
            }
        };
        let _ = inside.send(&buffer[..length]).await;
    }
}

async fn answer(
    inside: Arc<UdpSocket>,
    outside: Arc<UdpSocket>,
    to: SocketAddr,
    datagrams: Arc<Mutex<Vec<Vec<u8>>>>,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let Ok(length) = inside.recv(&mut buffer).await else {
            continue;
        };
        datagrams.lock().unwrap().push(buffer[..length].to_vec());
        let _ = outside.send_to(&buffer[..length], to).await;
    }
}

/// Set in the first byte of the packets of a handshake, and of no others: RFC 9000, section 17.
const LONG_HEADER: u8 = 0x80;

/// What a [`Link`] does to datagrams, in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Impairment {
    pub delay: Duration,
    /// From 0 to 1.
    pub loss: f64,
}

/// Stands before one address like a [`Relay`], and is a bad way there and back.
pub struct Link {
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Link {
    pub async fn before(target: SocketAddr, impairment: Impairment) -> Link {
        let outside = Arc::new(UdpSocket::from_std(free_socket()).unwrap());
        let address = outside.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(carry(outside, target, impairment));
        Link {
            address,
            _tasks: tasks,
        }
    }
}

async fn carry(outside: Arc<UdpSocket>, target: SocketAddr, impairment: Impairment) {
    let mut towards: HashMap<SocketAddr, mpsc::UnboundedSender<(Instant, Vec<u8>)>> =
        HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let Ok((length, from)) = outside.recv_from(&mut buffer).await else {
            continue;
        };
        let line = towards.entry(from).or_insert_with(|| {
            let (line, waiting) = mpsc::unbounded_channel();
            tasks.spawn(way(waiting, outside.clone(), from, target, impairment));
            line
        });
        if !lost(impairment) {
            let at = Instant::now() + impairment.delay;
            let _ = line.send((at, buffer[..length].to_vec()));
        }
    }
}

/// The way of one sender: there over a socket of its own, and back over the link's.
async fn way(
    mut waiting: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>,
    outside: Arc<UdpSocket>,
    from: SocketAddr,
    target: SocketAddr,
    impairment: Impairment,
) {
    let inside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    inside.connect(target).await.unwrap();
    let inside = Arc::new(inside);
    let (back, mut returning) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let answers = inside.clone();
    tasks.spawn(async move {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let Ok(length) = answers.recv(&mut buffer).await else {
                continue;
            };
            if !lost(impairment) {
                let at = Instant::now() + impairment.delay;
                let _ = back.send((at, buffer[..length].to_vec()));
            }
        }
    });
    tasks.spawn(async move {
        while let Some((at, datagram)) = returning.recv().await {
            tokio::time::sleep_until(at).await;
            let _ = outside.send_to(&datagram, from).await;
        }
    });
    // The delay is always the same, so what came first goes first.
    while let Some((at, datagram)) = waiting.recv().await {
        tokio::time::sleep_until(at).await;
        let _ = inside.send(&datagram).await;
    }
}

fn lost(impairment: Impairment) -> bool {
    rand::random::<f64>() < impairment.loss
}

/// Stands before one address like a [`Relay`]; can be shut in either direction, and can speak from other ports all of a
/// sudden, as a NAT does that has forgotten its connections.
pub struct Gate {
    pub address: SocketAddr,
    state: Arc<GateState>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct GateState {
    /// Towards the target, and back.
    shut: [AtomicBool; 2],
    /// Datagrams that came while it was shut.
    stopped: [AtomicU64; 2],
    /// Raised by each rebinding.
    generation: AtomicU64,
    /// Whether only who moves gets through.
    moves_only: AtomicBool,
}

/// A direction through a [`Gate`].
#[derive(Clone, Copy, Debug)]
pub enum Way {
    There = 0,
    Back = 1,
}

impl Gate {
    pub async fn before(target: SocketAddr) -> Gate {
        let outside = Arc::new(UdpSocket::from_std(free_socket()).unwrap());
        let address = outside.local_addr().unwrap();
        let state = Arc::new(GateState::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(pass(outside, target, state.clone()));
        Gate {
            address,
            state,
            _tasks: tasks,
        }
    }

    pub fn shut(&self) {
        for way in [Way::There, Way::Back] {
            self.shut_one(way);
        }
    }

    pub fn shut_one(&self, way: Way) {
        self.state.shut[way as usize].store(true, Ordering::SeqCst);
    }

    pub fn open(&self) {
        for shut in &self.state.shut {
            shut.store(false, Ordering::SeqCst);
        }
    }

    /// How many datagrams were stopped so far.
    pub fn stopped(&self, way: Way) -> u64 {
        self.state.stopped[way as usize].load(Ordering::SeqCst)
    }

    /// From now on the target sees everybody come from another port.
    pub fn rebind(&self) {
        self.state.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on nothing passes to or from whoever has sent so far, and no handshake: only connections that stand and go on from
    /// another port get through.
    pub fn let_only_moves_through(&self) {
        self.state.moves_only.store(true, Ordering::SeqCst);
        self.rebind();
    }
}

impl GateState {
    /// Whether a datagram may pass.
    fn lets_through(&self, way: Way) -> bool {
        let shut = self.shut[way as usize].load(Ordering::SeqCst);
        if shut {
            self.stopped[way as usize].fetch_add(1, Ordering::SeqCst);
        }
        !shut
    }
}

async fn pass(outside: Arc<UdpSocket>, target: SocketAddr, state: Arc<GateState>) {
    let mut towards: HashMap<SocketAddr, (u64, Arc<UdpSocket>)> = HashMap::new();
    let mut back = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let Ok((length, from)) = outside.recv_from(&mut buffer).await else {
            continue;
        };
        let moves_only = state.moves_only.load(Ordering::SeqCst);
        let generation = state.generation.load(Ordering::SeqCst);
        if !state.lets_through(Way::There) {
            continue;
        }
        if moves_only {
            let known = towards.get(&from);
            let of_old = known.is_some_and(|(known, _)| *known != generation);
            let handshake = length > 0 && buffer[0] & LONG_HEADER != 0;
            if of_old || handshake {
                continue;
            }
        }
        let inside = match towards.get(&from) {
            Some((known, inside)) if *known == generation => inside.clone(),
            _ => {
                let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                inside.connect(target).await.unwrap();
                towards.insert(from, (generation, inside.clone()));
                let (inside, outside, state) = (inside.clone(), outside.clone(), state.clone());
                back.spawn(async move {
                    let mut buffer = vec![0; MAX_DATAGRAM];
                    // What still comes to an older port is lost, as behind a NAT.
                    while state.generation.load(Ordering::SeqCst) == generation {
                        let Ok(length) = inside.recv(&mut buffer).await else {
                            continue;
                        };
                        if state.lets_through(Way::Back) {
                            let _ = outside.send_to(&buffer[..length], from).await;
                        }
                    }
                });
                towards[&from].1.clone()
            }
        };
        let _ = inside.send(&buffer[..length]).await;
    }
}
