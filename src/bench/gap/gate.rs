//! A gate before one node, in this process: whoever dials it talks to the node through it. It can speak to the node from other
//! ports and addresses all of a sudden, as a NAT does that has forgotten its connections, and it can be shut.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};

/// The longest datagram that UDP knows.
const MAX_DATAGRAM: usize = 65_535;
/// Asked of the kernel for each direction, so that bursts are not lost here.
const BUFFER_BYTES: usize = 4 << 20;
/// Senders that a gate carries. More are not let through: a cluster and its clients are a few dozen.
const MAX_SENDERS: usize = 1024;

pub(super) struct Gate {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    _passing: JoinSet<()>,
}

struct State {
    target: SocketAddr,
    outside: UdpSocket,
    is_shut: AtomicBool,
    senders: Mutex<HashMap<SocketAddr, Sender>>,
}

/// One who comes through the gate.
struct Sender {
    /// What the target sees.
    inside: Arc<UdpSocket>,
    answering: AbortHandle,
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

/// The tasks that answer hold the state, which holds them.
impl Drop for Gate {
    fn drop(&mut self) {
        self.state.lock().clear();
    }
}

impl Gate {
    /// Opens at `ip` on a free port. Must be called within a tokio runtime.
    pub(super) fn before(target: SocketAddr, ip: IpAddr) -> io::Result<Gate> {
        let outside = bind(SocketAddr::new(ip, 0))?;
        let address = outside.local_addr()?;
        let state = Arc::new(State {
            target,
            outside,
            is_shut: AtomicBool::new(false),
            senders: Mutex::default(),
        });
        let mut passing = JoinSet::new();
        passing.spawn(pass(state.clone()));
        Ok(Gate {
            address,
            state,
            _passing: passing,
        })
    }

    /// Nothing passes from now on, either way.
    pub(super) fn shut(&self) {
        self.state.is_shut.store(true, Ordering::SeqCst);
    }

    /// From now on the target sees the sender whom it sees at `seen` at another port of `ip`. Returns whether there is such a
    /// sender.
    pub(super) fn move_one(&self, seen: SocketAddr, ip: IpAddr) -> io::Result<bool> {
        let from = {
            let senders = self.state.lock();
            senders
                .iter()
                .find(|(_, sender)| sender.inside.local_addr().is_ok_and(|at| at == seen))
                .map(|(from, _)| *from)
        };
        let Some(from) = from else {
            return Ok(false);
        };
        let sender = Sender::new(&self.state, from, ip)?;
        // What still comes to the old port is lost, as behind a NAT.
        self.state.lock().insert(from, sender);
        Ok(true)
    }

    /// The same for all senders.
    pub(super) fn move_all(&self, ip: IpAddr) -> io::Result<()> {
        let seen: Vec<SocketAddr> = {
            let senders = self.state.lock();
            let seen = senders.values().map(|sender| sender.inside.local_addr());
            seen.collect::<io::Result<_>>()?
        };
        for seen in seen {
            self.move_one(seen, ip)?;
        }
        Ok(())
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Sender>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        !self.is_shut.load(Ordering::SeqCst)
    }
}

impl Sender {
    fn new(state: &Arc<State>, from: SocketAddr, ip: IpAddr) -> io::Result<Sender> {
        let inside = Arc::new(bind(SocketAddr::new(ip, 0))?);
        let task = tokio::spawn(answer(state.clone(), inside.clone(), from));
        Ok(Sender {
            inside,
            answering: task.abort_handle(),
        })
    }
}

/// From senders to the target. Ends with the gate.
async fn pass(state: Arc<State>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An ICMP message from a sender that has gone comes as an error of the next call.
        let Ok((length, from)) = state.outside.recv_from(&mut buffer).await else {
            continue;
        };
        if !state.is_open() {
            continue;
        }
        let known = state.lock().get(&from).map(|sender| sender.inside.clone());
        let inside = match known {
            Some(inside) => inside,
            None => {
                if state.lock().len() >= MAX_SENDERS {
                    continue;
                }
                let Ok(sender) = Sender::new(&state, from, Ipv4Addr::LOCALHOST.into()) else {
                    continue;
                };
                let inside = sender.inside.clone();
                state.lock().insert(from, sender);
                inside
            }
        };
        // What cannot be sent is lost, as elsewhere.
        let _ = inside.send_to(&buffer[..length], state.target).await;
    }
}

/// From the target back to one sender.
async fn answer(state: Arc<State>, inside: Arc<UdpSocket>, to: SocketAddr) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let Ok((length, _)) = inside.recv_from(&mut buffer).await else {
            continue;
        };
        if state.is_open() {
            let _ = state.outside.send_to(&buffer[..length], to).await;
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 64];
        let (length, from) =
            tokio::time::timeout(Duration::from_secs(60), socket.recv_from(&mut buffer))
                .await
                .unwrap()
                .unwrap();
        (buffer[..length].to_vec(), from)
    }

    #[tokio::test]
    async fn who_is_moved_comes_from_elsewhere_and_is_answered_all_the_same() {
        let target = bind(SocketAddr::new(LOCAL, 0)).unwrap();
        let gate = Gate::before(target.local_addr().unwrap(), LOCAL).unwrap();
        let (one, two) = (
            bind(SocketAddr::new(LOCAL, 0)).unwrap(),
            bind(SocketAddr::new(LOCAL, 0)).unwrap(),
        );
        one.send_to(b"one", gate.address).await.unwrap();
        let (_, one_seen) = receive(&target).await;
        two.send_to(b"two", gate.address).await.unwrap();
        let (_, two_seen) = receive(&target).await;
        assert!(gate.move_one(one_seen, LOCAL).unwrap());
        assert!(
            !gate.move_one(one_seen, LOCAL).unwrap(),
            "it is there no more"
        );

        one.send_to(b"one", gate.address).await.unwrap();
        let (text, moved) = receive(&target).await;
        assert_eq!(text, b"one");
        assert_ne!(moved, one_seen);
        two.send_to(b"two", gate.address).await.unwrap();
        assert_eq!(receive(&target).await, (b"two".to_vec(), two_seen));

        target.send_to(b"lost", one_seen).await.unwrap();
        target.send_to(b"back", moved).await.unwrap();
        assert_eq!(receive(&one).await, (b"back".to_vec(), gate.address));
    }

    #[tokio::test]
    async fn nothing_passes_a_gate_that_is_shut() {
        let target = bind(SocketAddr::new(LOCAL, 0)).unwrap();
        let shut = Gate::before(target.local_addr().unwrap(), LOCAL).unwrap();
        let open = Gate::before(target.local_addr().unwrap(), LOCAL).unwrap();
        let sender = bind(SocketAddr::new(LOCAL, 0)).unwrap();
        shut.shut();
        sender.send_to(b"shut", shut.address).await.unwrap();
        sender.send_to(b"open", open.address).await.unwrap();
        assert_eq!(receive(&target).await.0, b"open");
    }
}
