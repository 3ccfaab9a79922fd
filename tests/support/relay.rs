//! A UDP relay that keeps every datagram that goes through it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// The longest datagram that UDP knows.
const MAX_DATAGRAM: usize = 65_535;

/// Stands before one address: whoever sends to the relay talks to that address through it.
pub struct Relay {
    pub address: SocketAddr,
    datagrams: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub async fn before(target: SocketAddr, port: u16) -> Relay {
        let outside = Arc::new(UdpSocket::bind(("127.0.0.1", port)).await.unwrap());
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
