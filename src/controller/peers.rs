//! Calls to other nodes: who is where, and whether the one who answers is who it should be.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::watch;

use super::config::{CallError, PeerNetwork};
use super::message::{Envelope, MAX_MESSAGE_BYTES, Refusal, Request, Response};
use crate::metadata::{ClusterImage, MAX_NODES, Registration};
use crate::types::{ClusterId, DirectoryId, Incarnation, NodeId};

/// Why a call gave nothing to use. Whether it was carried out is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum PeerError {
    #[error("node {0} has no known address")]
    NoAddress(NodeId),
    #[error("node {node} at {address}: {source}")]
    Call {
        node: NodeId,
        address: String,
        source: CallError,
    },
    #[error("node {node} refuses: {refusal}")]
    Refused { node: NodeId, refusal: Refusal },
    #[error("the answer of node {node}: {refusal}")]
    Answer { node: NodeId, refusal: Refusal },
    #[error("a message of {0} bytes is larger than {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    #[error("a message could not be written: {0}")]
    Encode(String),
}

impl PeerError {
    /// Whether to wait before the next attempt: nobody is there at the moment.
    pub(super) fn is_unreachable(&self) -> bool {
        !matches!(
            self,
            PeerError::Call {
                source: CallError::TimedOut(_),
                ..
            }
        )
    }
}

/// A reply and the process that gave it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) incarnation: Incarnation,
    pub(super) body: Response,
}

/// This node's way to the others.
pub(super) struct Peers {
    me: Registration,
    voters: BTreeMap<NodeId, String>,
    network: Arc<dyn PeerNetwork>,
    image: watch::Receiver<Arc<ClusterImage>>,
    /// Calls that failed to get through, by node: which of its addresses to try next. Bounded by the nodes that have one.
    failures: Mutex<BTreeMap<NodeId, usize>>,
    /// Where others say that controllers are: for a node that joins, until it is told by the registry. At most
    /// [`MAX_NODES`]; whether it is the right node there is for the certificate to say.
    told: Mutex<BTreeMap<NodeId, String>>,
}

impl Peers {
    pub(super) fn new(
        me: Registration,
        voters: BTreeMap<NodeId, String>,
        network: Arc<dyn PeerNetwork>,
        image: watch::Receiver<Arc<ClusterImage>>,
    ) -> Peers {
        Peers {
            me,
            voters,
            network,
            image,
            failures: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// Sends `body` to `to` and checks who answers.
    pub(super) async fn call(
        &self,
        to: NodeId,
        body: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        // What a voter or a replica says counts only from the data directory that remembers what it said before. The rest
        // must also work for a node whose image is older than the other's registration.
        let binding = matches!(
            body,
            Request::Append(_)
                | Request::Vote(_)
                | Request::Snapshot(_)
                | Request::Fence { .. }
                | Request::HandOver { .. }
        );
        let request = self.encode(body)?;
        let address = self.address(to).ok_or(PeerError::NoAddress(to))?;
        let answer = self.network.call(to, &address, request, timeout).await;
        let bytes = answer.map_err(|source| {
            self.count_failure(to);
            PeerError::Call {
                node: to,
                address,
                source,
            }
        })?;
        let reply: Envelope<Response> =
            decode(&bytes).map_err(|refusal| PeerError::Answer { node: to, refusal })?;
        self.check(to, &reply)
            .and_then(|()| {
                if binding {
                    self.check_directory(to, reply.directory)?;
                }
                Ok(())
            })
            .map_err(|refusal| PeerError::Answer { node: to, refusal })?;
        match reply.body {
            Response::Refused(refusal) => Err(PeerError::Refused { node: to, refusal }),
            body => Ok(Reply {
                incarnation: reply.incarnation,
                body,
            }),
        }
    }

    pub(super) fn encode<T: serde::Serialize>(&self, body: T) -> Result<Bytes, PeerError> {
        let envelope = Envelope {
            cluster: self.cluster(),
            from: self.me.node,
            directory: self.me.directory,
            incarnation: self.me.incarnation,
            body,
        };
        let bytes =
            serde_json::to_vec(&envelope).map_err(|error| PeerError::Encode(error.to_string()))?;
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(PeerError::TooLarge(bytes.len()));
        }
        Ok(bytes.into())
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.image.borrow().cluster_id()
    }

    /// Whether `envelope` may come from `authenticated`.
    pub(super) fn check<T>(
        &self,
        authenticated: NodeId,
        envelope: &Envelope<T>,
    ) -> Result<(), Refusal> {
        if envelope.from != authenticated {
            return Err(Refusal::OtherSender {
                claimed: envelope.from,
                authenticated,
            });
        }
        if let (Some(own), Some(offered)) = (self.cluster(), envelope.cluster)
            && own != offered
        {
            return Err(Refusal::OtherCluster { own, offered });
        }
        Ok(())
    }

    /// Whether `node` has the data directory that it is registered with.
    pub(super) fn check_directory(
        &self,
        node: NodeId,
        offered: DirectoryId,
    ) -> Result<(), Refusal> {
        match self.image.borrow().node(node) {
            Some(registration) if registration.directory != offered => {
                Err(Refusal::OtherDirectory {
                    node,
                    registered: registration.directory,
                    offered,
                })
            }
            _ => Ok(()),
        }
    }

    /// A registered address is newer than a configured one, unless all nodes were moved while they were down: so both are
    /// tried in turn.
    fn address(&self, node: NodeId) -> Option<String> {
        let registered = self
            .image
            .borrow()
            .quic_endpoint(node)
            .map(ToString::to_string);
        let configured = self.voters.get(&node).cloned();
        let mut addresses: Vec<String> = registered.into_iter().chain(configured).collect();
        if addresses.is_empty() {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            addresses.extend(told.get(&node).cloned());
        }
        addresses.dedup();
        if addresses.is_empty() {
            return None;
        }
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = failures.get(&node).copied().unwrap_or_default();
        let index = turn % addresses.len();
        Some(addresses.swap_remove(index))
    }

    /// Where this node believes `node` to be.
    pub(super) fn known_address(&self, node: NodeId) -> Option<String> {
        if node == self.me.node {
            return Some(self.me.quic.to_string());
        }
        self.address(node)
    }

    /// Another node says where a controller is.
    pub(super) fn note_address(&self, node: NodeId, address: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MAX_NODES || told.contains_key(&node) {
            told.insert(node, address);
        }
    }

    /// Whether a controller has said where this one is.
    pub(super) fn was_told_of(&self, node: NodeId) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.contains_key(&node)
    }

    fn count_failure(&self, node: NodeId) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(node).or_default();
        *count = count.wrapping_add(1);
    }
}

/// Parses a message, whose size is checked before anything is allocated for it.
pub(super) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<Envelope<T>, Refusal> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Refusal::Malformed(format!(
            "{} bytes, at most {MAX_MESSAGE_BYTES} are taken",
            bytes.len()
        )));
    }
    serde_json::from_slice(bytes).map_err(|error| Refusal::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::metadata::{Command, Endpoint, METADATA_VERSION};

    fn registration(id: u32, host: &str) -> Registration {
        Registration {
            node: NodeId::new(id).unwrap(),
            directory: DirectoryId::from_random_bits(u128::from(id)),
            incarnation: Incarnation::from_random_bits(u64::from(id)),
            quic: Endpoint {
                host: host.to_owned(),
                port: 1,
            },
            kafka: None,
            kafka_listeners: BTreeMap::new(),
            boot_id: None,
            metadata_version: METADATA_VERSION,
        }
    }

    /// Answers every call with what it was told to, and remembers the addresses.
    #[derive(Default)]
    struct Answers {
        addresses: Mutex<Vec<String>>,
        answer: Mutex<Option<Bytes>>,
    }

    impl PeerNetwork for Answers {
        fn call<'a>(
            &'a self,
            _node: NodeId,
            address: &'a str,
            _request: Bytes,
            _timeout: Duration,
        ) -> BoxFuture<'a, Result<Bytes, CallError>> {
            self.addresses.lock().unwrap().push(address.to_owned());
            let answer = self.answer.lock().unwrap().clone();
            let nobody = CallError::Unreachable("nobody".to_owned());
            Box::pin(std::future::ready(answer.ok_or(nobody)))
        }
    }

    /// Node 1's way to node 2, which is configured at `old:1` and registered at `new:1`.
    fn peers() -> (Peers, Arc<Answers>) {
        let mut image = ClusterImage::new();
        let cluster_id = ClusterId::from_random_bits(1);
        image.apply(&Command::InitCluster { cluster_id }).unwrap();
        let registration_2 = registration(2, "new");
        image
            .apply(&Command::RegisterNode {
                registration: registration_2,
            })
            .unwrap();
        let (_, image) = watch::channel(Arc::new(image));
        let answers = Arc::new(Answers::default());
        let voters = BTreeMap::from([(NodeId::new(2).unwrap(), "old:1".to_owned())]);
        let network = Arc::clone(&answers) as Arc<dyn PeerNetwork>;
        (
            Peers::new(registration(1, "one"), voters, network, image),
            answers,
        )
    }

    fn answer(directory: u128, body: Response) -> Bytes {
        let envelope = Envelope {
            cluster: Some(ClusterId::from_random_bits(1)),
            from: NodeId::new(2).unwrap(),
            directory: DirectoryId::from_random_bits(directory),
            incarnation: Incarnation::from_random_bits(2),
            body,
        };
        serde_json::to_vec(&envelope).unwrap().into()
    }

    #[tokio::test]
    async fn registered_and_configured_addresses_are_tried_in_turn() {
        let (peers, answers) = peers();
        let two = NodeId::new(2).unwrap();
        for _ in 0..3 {
            let call = peers.call(two, Request::Probe, Duration::from_secs(1));
            assert!(matches!(call.await, Err(PeerError::Call { .. })));
        }
        assert_eq!(
            *answers.addresses.lock().unwrap(),
            ["new:1", "old:1", "new:1"]
        );
        let three = NodeId::new(3).unwrap();
        let call = peers.call(three, Request::Probe, Duration::from_secs(1));
        assert!(matches!(call.await, Err(PeerError::NoAddress(_))));
        peers.note_address(three, "told:1".to_owned());
        peers.note_address(two, "told:2".to_owned());
        for node in [three, two, two] {
            let call = peers.call(node, Request::Probe, Duration::from_secs(1));
            assert!(matches!(call.await, Err(PeerError::Call { .. })));
        }
        assert_eq!(
            answers.addresses.lock().unwrap()[3..],
            ["told:1", "old:1", "new:1"],
            "hearsay is for those of whom nothing better is known"
        );
    }

    #[tokio::test]
    async fn votes_from_another_data_directory_do_not_count() {
        let (peers, answers) = peers();
        let two = NodeId::new(2).unwrap();
        let vote = openraft::Vote::new(1, 1);
        let ask = || {
            let request = openraft::raft::VoteRequest::new(vote, None);
            peers.call(two, Request::Vote(request), Duration::from_secs(1))
        };
        let granted = |directory| {
            let response = openraft::raft::VoteResponse::new(vote, None, true);
            answer(directory, Response::Vote(response))
        };
        *answers.answer.lock().unwrap() = Some(granted(2));
        assert!(matches!(ask().await.unwrap().body, Response::Vote(_)));
        *answers.answer.lock().unwrap() = Some(granted(99));
        assert!(matches!(
            ask().await,
            Err(PeerError::Answer {
                refusal: Refusal::OtherDirectory { .. },
                ..
            })
        ));
    }
}
