//! What the room's tests share: a throw-away CA, and real sockets and connections over loopback.

use std::future::poll_fn;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn::udp::RecvMeta;
use time::OffsetDateTime;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::{
    Accepted, Alpn, CertsDir, ClientName, Dialled, EndpointKeys, Identity, ImpairedLinks,
    IssueOptions, PeerAddress, Server, ServerLimits, ServerOptions, Sockets, dial,
};
use crate::types::NodeId;

/// Longer than anything takes that is not broken.
pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) fn node(id: u32) -> NodeId {
    NodeId::new(id).unwrap()
}

/// A socket of loopback's, on any port.
pub(super) fn bound() -> std::net::UdpSocket {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// The next batch of datagrams, one after the other.
pub(super) async fn receive(socket: &Arc<impl AsyncUdpSocket>) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let mut meta = [RecvMeta::default()];
    let count = poll_fn(|cx| {
        let mut buffers = [IoSliceMut::new(&mut buffer)];
        socket.poll_recv(cx, &mut buffers, &mut meta)
    });
    assert_eq!(count.await.unwrap(), 1);
    buffer.truncate(meta[0].len);
    buffer
}

/// One CA, and a directory for each who has a certificate of it.
pub(super) struct Cluster {
    pub(super) dir: tempfile::TempDir,
}

impl Cluster {
    pub(super) fn new() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster { dir };
        let now = OffsetDateTime::now_utc();
        cluster
            .certs("ca")
            .create_ca(&IssueOptions::new(now))
            .unwrap();
        cluster
    }

    pub(super) fn path(&self, holder: &str) -> PathBuf {
        self.dir.path().join(holder)
    }

    /// The directory of one holder, with the CA's certificate in it.
    pub(super) fn certs(&self, holder: &str) -> CertsDir {
        let ca = self.path("ca");
        let own = self.path(holder);
        std::fs::create_dir_all(&own).unwrap();
        if holder != "ca" {
            std::fs::copy(ca.join("ca.crt"), own.join("ca.crt")).unwrap();
        }
        CertsDir::with_ca_key(own, ca.join("ca.key"))
    }

    pub(super) fn issue(&self, at: OffsetDateTime) -> IssueOptions {
        IssueOptions {
            overwrite: true,
            ..IssueOptions::new(at)
        }
    }

    pub(super) fn node_identity(&self, id: u32) -> Identity {
        self.node_identity_for(id, &["127.0.0.1", "localhost"], OffsetDateTime::now_utc())
    }

    pub(super) fn node_identity_for(
        &self,
        id: u32,
        hosts: &[&str],
        at: OffsetDateTime,
    ) -> Identity {
        let certs = self.certs(&format!("node{id}"));
        let hosts: Vec<_> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        certs
            .create_node(node(id), &hosts, &self.issue(at))
            .unwrap();
        Identity::load_node(certs.path()).unwrap()
    }

    pub(super) fn client_identity(&self, name: &str) -> Identity {
        self.client_identity_at(name, OffsetDateTime::now_utc())
    }

    pub(super) fn client_identity_at(&self, name: &str, at: OffsetDateTime) -> Identity {
        let certs = self.certs(&format!("client-{name}"));
        let name = ClientName::new(name).unwrap();
        certs.create_client(&name, &self.issue(at)).unwrap();
        Identity::load_client(certs.path(), Some(&name)).unwrap()
    }

    pub(super) fn server(&self, id: u32) -> (Server, mpsc::Receiver<Accepted>) {
        start(self.node_identity(id))
    }

    pub(super) fn address_of(&self, server: &Server, id: u32) -> PeerAddress {
        PeerAddress::node(node(id), server.local_addr().unwrap().to_string())
    }
}

pub(super) fn start(identity: Identity) -> (Server, mpsc::Receiver<Accepted>) {
    start_with_limits(identity, ServerLimits::default())
}

pub(super) fn start_with_limits(
    identity: Identity,
    limits: ServerLimits,
) -> (Server, mpsc::Receiver<Accepted>) {
    let options = ServerOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        identity: Arc::new(identity),
        keys: EndpointKeys::random().unwrap(),
        alpns: Alpn::ALL.to_vec(),
    };
    Server::start_with_limits(options, limits).unwrap()
}

/// Both ends of one connection between nodes.
pub(super) struct Pair {
    pub(super) accepted: Accepted,
    pub(super) dialled: Dialled,
    _server: Server,
    _cluster: Cluster,
}

pub(super) async fn pair(alpn: Alpn) -> Pair {
    let cluster = Cluster::new();
    let (server, mut accepted) = cluster.server(1);
    let identity = Arc::new(cluster.node_identity(2));
    let peer = cluster.address_of(&server, 1);
    let dialled = dial(&identity, &peer, alpn, LONG).await.unwrap();
    Pair {
        accepted: accepted.recv().await.unwrap(),
        dialled,
        _server: server,
        _cluster: cluster,
    }
}

/// Node 1, which listens on an impaired socket.
pub(super) struct Listening {
    pub(super) cluster: Cluster,
    pub(super) server: Server,
    pub(super) accepted: mpsc::Receiver<Accepted>,
    pub(super) links: Arc<ImpairedLinks>,
}

/// One connection to it, and its links at the end that dials.
pub(super) struct Connected {
    pub(super) accepted: Accepted,
    pub(super) dialled: Dialled,
    pub(super) links: Arc<ImpairedLinks>,
}

impl Listening {
    pub(super) fn start(spec: &str) -> Listening {
        let cluster = Cluster::new();
        let links = ImpairedLinks::new(Some(node(1)), spec.parse().unwrap());
        let options = ServerOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            identity: Arc::new(cluster.node_identity(1)),
            keys: EndpointKeys::random().unwrap(),
            alpns: Alpn::ALL.to_vec(),
        };
        let sockets = Sockets::impaired(links.clone());
        let (server, accepted) =
            Server::start_on(&sockets, options, ServerLimits::default()).unwrap();
        Listening {
            cluster,
            server,
            accepted,
            links,
        }
    }

    pub(super) async fn connect(&mut self, id: u32, spec: &str) -> Connected {
        let links = ImpairedLinks::new(Some(node(id)), spec.parse().unwrap());
        let identity = Arc::new(self.cluster.node_identity(id));
        let peer = self.cluster.address_of(&self.server, 1);
        let dialled = Sockets::impaired(links.clone())
            .dial(&identity, &peer, Alpn::Replication, LONG)
            .await
            .unwrap();
        Connected {
            accepted: self.accepted.recv().await.unwrap(),
            dialled,
            links,
        }
    }
}

/// Stands between two endpoints, and can be shut.
pub(super) struct Gate {
    pub(super) address: SocketAddr,
    pub(super) shut: Arc<AtomicBool>,
    /// Datagrams from the server that were stopped.
    pub(super) stopped: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    pub(super) async fn before(server: SocketAddr) -> Gate {
        let outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let inside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        inside.connect(server).await.unwrap();
        let address = outside.local_addr().unwrap();
        let (shut, stopped) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (is_shut, count) = (shut.clone(), stopped.clone());
        let task = tokio::spawn(async move {
            let (mut there, mut back) = ([0; 2048], [0; 2048]);
            let mut client = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = outside.recv_from(&mut there) => {
                        client = Some(from);
                        if !is_shut.load(Ordering::SeqCst) {
                            let _ = inside.send(&there[..length]).await;
                        }
                    }
                    Ok(length) = inside.recv(&mut back) => {
                        if is_shut.load(Ordering::SeqCst) {
                            count.fetch_add(1, Ordering::SeqCst);
                        } else if let Some(client) = client {
                            let _ = outside.send_to(&back[..length], client).await;
                        }
                    }
                }
            }
        });
        Gate {
            address,
            shut,
            stopped,
            task,
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}
