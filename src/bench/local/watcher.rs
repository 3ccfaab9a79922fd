//! What each node says of itself, asked a few times a second.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::LocalError;
use super::folder::{Folder, NodePlan};
use crate::admin::{AdminRequest, NodeStatus, PartitionStatus, ask};
use crate::transport::{Alpn, Identity, PeerAddress, dial};
use crate::types::{NodeId, TopicName};

/// How often nodes are asked by those who only show what they say.
pub const ASK_EVERY: Duration = Duration::from_millis(200);
/// A node that takes longer for an answer counts as silent.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The last word of every node. Dropping it ends the asking.
pub struct Watchers {
    nodes: Vec<Watched>,
    changes: watch::Receiver<u64>,
    _tasks: JoinSet<()>,
}

struct Watched {
    id: NodeId,
    /// `None` while the node does not answer.
    status: watch::Receiver<Option<Arc<NodeStatus>>>,
}

impl Watchers {
    /// Asks every node `every` so often. Must be called within a tokio runtime.
    pub fn start(folder: &Folder, every: Duration) -> Result<Watchers, LocalError> {
        let certs = folder.client_certs();
        let identity =
            Identity::load_client(&certs, None).map_err(|source| LocalError::Identity {
                dir: certs.clone(),
                source,
            })?;
        let identity = Arc::new(identity);
        let (changed, changes) = watch::channel(0);
        let changed = Arc::new(changed);
        let mut tasks = JoinSet::new();
        let nodes = folder
            .nodes()
            .iter()
            .map(|plan| {
                let (tell, status) = watch::channel(None);
                let asking =
                    ask_for_ever(identity.clone(), plan.clone(), every, tell, changed.clone());
                tasks.spawn(asking);
                Watched {
                    id: plan.id,
                    status,
                }
            })
            .collect();
        Ok(Watchers {
            nodes,
            changes,
            _tasks: tasks,
        })
    }

    /// Waits for the next answer of any node, or for the next time that one does not come.
    pub async fn changed(&self) {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        // The asking ends only with this struct.
        let _ = changes.changed().await;
    }

    /// What a node last said; `None` if it does not answer now.
    pub fn status(&self, node: NodeId) -> Option<Arc<NodeStatus>> {
        let watched = self.nodes.iter().find(|watched| watched.id == node)?;
        watched.status.borrow().clone()
    }

    /// Every node, in order, with what it last said.
    pub fn statuses(&self) -> Vec<(NodeId, Option<Arc<NodeStatus>>)> {
        self.nodes
            .iter()
            .map(|watched| (watched.id, watched.status.borrow().clone()))
            .collect()
    }

    /// Whether the cluster is complete and has all that it needs to serve.
    pub fn healthy(&self) -> bool {
        self.complaints().is_empty()
    }

    /// What is missing for [`Watchers::healthy`].
    pub fn complaint(&self) -> String {
        self.complaints().join(", ")
    }

    fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let statuses = self.statuses();
        for (id, status) in &statuses {
            match status {
                None => complaints.push(format!("node {id} does not answer")),
                Some(status) if status.active_controller.is_none() => {
                    complaints.push(format!("node {id} knows no active controller"));
                }
                Some(status) if !status.registered => {
                    complaints.push(format!("node {id} is not registered"));
                }
                Some(_) => {}
            }
        }
        // Only a controller hears everybody, and the active one counts. What it does not know yet it cannot use, though a node
        // may have learnt already that it was registered.
        let active = statuses.iter().find_map(|(id, status)| {
            let status = status.as_ref()?;
            (status.active_controller == Some(*id)).then_some(status)
        });
        for (id, _) in &statuses {
            let heard = |status: &Arc<NodeStatus>| {
                status
                    .nodes
                    .iter()
                    .any(|node| node.node == *id && node.alive)
            };
            if active.is_some_and(|status| !heard(status)) {
                complaints.push(format!("node {id} is not heard by the controller"));
            }
        }
        complaints
    }

    /// A partition's state as of the newest leadership that any node knows.
    pub fn partitions(&self, topic: &TopicName) -> Vec<PartitionStatus> {
        let mut newest: Vec<PartitionStatus> = Vec::new();
        for (_, status) in self.statuses() {
            let partitions = status.iter().flat_map(|status| &status.partitions);
            for partition in partitions.filter(|partition| partition.topic == *topic) {
                match newest
                    .iter_mut()
                    .find(|known| known.partition == partition.partition)
                {
                    Some(known) if known.partition_epoch < partition.partition_epoch => {
                        *known = partition.clone();
                    }
                    Some(_) => {}
                    None => newest.push(partition.clone()),
                }
            }
        }
        newest.sort_by_key(|partition| partition.partition);
        newest
    }

    /// Whether every replica on a node that answers has the whole log and knows it to be committed.
    pub fn settled(&self, topic: &TopicName) -> bool {
        let statuses = self.statuses();
        self.partitions(topic).iter().all(|partition| {
            let replicas: Vec<_> = statuses
                .iter()
                .flat_map(|(_, status)| status)
                .flat_map(|status| &status.partitions)
                .filter(|p| p.topic == *topic && p.partition == partition.partition)
                .filter_map(|p| p.local.as_ref())
                .collect();
            let end = replicas.iter().map(|replica| replica.log_end).max();
            replicas
                .iter()
                .all(|replica| Some(replica.high_watermark) == end)
        })
    }
}

impl Watchers {
    /// Waits for [`Watchers::settled`], so that what the nodes note down when they stop covers everything. Returns whether that
    /// came `within` the time.
    pub async fn until_settled(&self, topic: &TopicName, within: Duration) -> bool {
        let settled = async {
            while !self.settled(topic) {
                self.changed().await;
            }
        };
        tokio::time::timeout(within, settled).await.is_ok()
    }
}

async fn ask_for_ever(
    identity: Arc<Identity>,
    plan: NodePlan,
    every: Duration,
    tell: watch::Sender<Option<Arc<NodeStatus>>>,
    changed: Arc<watch::Sender<u64>>,
) {
    let address = PeerAddress::node(plan.id, plan.quic.to_string());
    let say = |status: Option<NodeStatus>| {
        tell.send_replace(status.map(Arc::new));
        changed.send_modify(|count| *count += 1);
    };
    loop {
        if let Ok(dialled) = dial(&identity, &address, Alpn::Admin, ANSWER_WITHIN).await {
            let connection = &dialled.connection;
            loop {
                let answer = ask(connection, &AdminRequest::Status);
                match tokio::time::timeout(ANSWER_WITHIN, answer).await {
                    Ok(Ok(status)) => say(Some(status)),
                    // Lost, or silent, in which case another node process may be at this address by now.
                    Ok(Err(_)) | Err(_) => break,
                }
                tokio::time::sleep(every).await;
            }
        }
        say(None);
        tokio::time::sleep(every).await;
    }
}
