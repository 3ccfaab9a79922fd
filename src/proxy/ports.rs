//! A local port for each node that a response has named.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;

use super::{Shared, Target};
use crate::metadata::{Endpoint, MAX_NODES};

/// The pause after a failed accept: most likely the process has no file handle left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a node is reached, as it was told last.
#[derive(Debug, Clone)]
pub(super) struct NodePort {
    address: Arc<Mutex<String>>,
    port: u16,
}

impl NodePort {
    pub(super) fn address(&self) -> String {
        self.address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn moved(&self, to: String) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

/// The ports. A node keeps its own for as long as the proxy runs; at most [`MAX_NODES`] get one.
pub(super) struct Ports {
    ip: IpAddr,
    /// Node N gets this port + N.
    base: Option<u16>,
    nodes: Mutex<BTreeMap<i32, NodePort>>,
}

impl Ports {
    pub(super) fn new(ip: IpAddr, base: Option<u16>) -> Ports {
        Ports {
            ip,
            base,
            nodes: Mutex::default(),
        }
    }

    pub(super) fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The port of a node, which others reach at `endpoint`; a new one where it had none.
    pub(super) fn of(
        &self,
        shared: &Arc<Shared>,
        node: i32,
        endpoint: &Endpoint,
    ) -> io::Result<u16> {
        let address = endpoint.to_string();
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = nodes.get(&node) {
            known.moved(address);
            return Ok(known.port);
        }
        if nodes.len() >= MAX_NODES {
            let limit = format!("there are {MAX_NODES} nodes with a port, the limit");
            return Err(io::Error::other(limit));
        }
        let wanted = match self.base {
            None => 0,
            Some(base) => u16::try_from(node)
                .ok()
                .and_then(|node| base.checked_add(node))
                .ok_or_else(|| io::Error::other("the port would be above 65535"))?,
        };
        let listener = StdListener::bind(SocketAddr::new(self.ip, wanted))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let known = NodePort {
            address: Arc::new(Mutex::new(address.clone())),
            port,
        };
        shared.listen(
            TcpListener::from_std(listener)?,
            Target::Node(known.clone()),
        );
        tracing::info!(node, at = %address, port, "a node has a local port");
        nodes.insert(node, known);
        Ok(port)
    }
}
