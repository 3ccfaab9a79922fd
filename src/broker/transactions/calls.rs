//! This node's ways to the others, for what they ask each other about transactions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::client::{IdentityDialer, NodeCalls};
use crate::metadata::ClusterImage;
use crate::transport::{CurrentIdentity, Sockets};
use crate::types::NodeId;

/// One way to each node that was ever called; at most as many as a cluster has nodes.
pub(in crate::broker) struct Calls {
    identity: Arc<CurrentIdentity>,
    sockets: Sockets,
    ways: Mutex<HashMap<NodeId, Arc<NodeCalls>>>,
}

impl Calls {
    pub(in crate::broker) fn new(identity: Arc<CurrentIdentity>, sockets: Sockets) -> Calls {
        Calls {
            identity,
            sockets,
            ways: Mutex::default(),
        }
    }

    /// The way to a node, where the metadata says it is. `None` where it says nothing.
    pub(super) fn to(&self, image: &ClusterImage, node: NodeId) -> Option<Arc<NodeCalls>> {
        let address = image.quic_endpoint(node)?.to_string();
        // Every change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.retain(|node, _| image.node(*node).is_some());
        if let Some(way) = ways.get(&node)
            && way.address() == address
        {
            return Some(way.clone());
        }
        let dialer = IdentityDialer::to_node(node, self.sockets.clone(), self.identity.clone());
        let way = Arc::new(NodeCalls::new(address, Arc::new(dialer), rand::random()));
        ways.insert(node, way.clone());
        Some(way)
    }
}
