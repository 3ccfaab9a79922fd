//! Which sockets the endpoints of a process are on: the kernel's, or impaired ones.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};

use super::impaired::{ImpairedLinks, ImpairedSocket, ImpairmentCounts};
use super::kernel_socket::KernelSocket;
use super::movable_socket::MovableSocket;
use super::silence::Silences;
use crate::types::NodeId;

/// The sockets of everything that a process dials and listens with.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    impaired: Option<Arc<ImpairedLinks>>,
    silences: Silences,
}

impl Sockets {
    /// The kernel's, with nothing between them and QUIC.
    pub fn plain() -> Sockets {
        Sockets::default()
    }

    /// Every packet suffers what `links` say.
    pub fn impaired(links: Arc<ImpairedLinks>) -> Sockets {
        Sockets {
            impaired: Some(links),
            ..Sockets::default()
        }
    }

    /// Whether packets on purpose do not go as they would by the kernel alone.
    pub(super) fn are_impaired(&self) -> bool {
        self.impaired.is_some()
    }

    /// What its dials have learnt of addresses that do not answer.
    pub(super) fn silences(&self) -> &Silences {
        &self.silences
    }

    pub(super) fn listening(
        &self,
        config: EndpointConfig,
        server: ServerConfig,
        socket: UdpSocket,
    ) -> io::Result<Endpoint> {
        let runtime = Arc::new(TokioRuntime);
        match &self.impaired {
            None => {
                let socket = KernelSocket::new(socket)?;
                Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
            }
            Some(links) => {
                let socket = ImpairedSocket::new(MovableSocket::new(socket)?, None, links);
                Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
            }
        }
    }

    /// An endpoint that dials `remote` and nobody else, and where it can be moved.
    pub(super) fn dialling(
        &self,
        config: EndpointConfig,
        socket: UdpSocket,
        remote: SocketAddr,
    ) -> io::Result<(Endpoint, Arc<MovableSocket>)> {
        let movable = MovableSocket::new(socket)?;
        let socket: Arc<dyn AsyncUdpSocket> = match &self.impaired {
            None => movable.clone(),
            Some(links) => ImpairedSocket::new(movable.clone(), Some(remote), links),
        };
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, runtime)?;
        Ok((endpoint, movable))
    }

    /// What became of the packets to each node, where they are impaired on purpose; else nothing.
    pub fn impaired_packets(&self) -> BTreeMap<NodeId, ImpairmentCounts> {
        let links = self.impaired.as_ref();
        links.map(|links| links.counts()).unwrap_or_default()
    }

    /// A node is dialled at `remote`, which may be a particular one.
    pub(super) fn note_node(&self, remote: SocketAddr, node: Option<NodeId>) {
        if let Some(links) = &self.impaired {
            links.listens(remote, node);
        }
    }

    /// How much later than by the kernel alone an answer of `remote` comes; `None` if none does, because the way is cut.
    pub(super) fn answer_delay(&self, remote: SocketAddr) -> Option<Duration> {
        match &self.impaired {
            None => Some(Duration::ZERO),
            Some(links) => links.answer_delay(remote),
        }
    }
}
