//! An operator's unclean election: somebody leads a partition that nobody could lead without a loss.
//!
//! Never by itself. The living replicas, in sync or not, are fenced for a new epoch like in any election; if enough of those
//! that are in sync answer after all, it is refused, because the ordinary election ends then. Otherwise the highest log, or
//! the one that the operator has named, becomes the leader and the whole in-sync set.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::election_driver::fence_node;
use super::handle::Shared;
use super::message::{FenceItem, FencePosition};
use super::operate::{Stopped, refused};
use super::operation::{OperationRefusal, UncleanElection};
use crate::metadata::{
    ClusterImage, Command, Election, ElectionStart, FenceReply, ForcedLeader, Outcome, Rejection,
    can_elect,
};
use crate::types::{Incarnation, NodeId, Offset, PartitionState, TopicPartition};

/// How long a replica has for its answer; it is asked several times within that.
const FENCE_WITHIN: Duration = Duration::from_secs(3);
const FENCE_PAUSE: Duration = Duration::from_millis(100);

type Replies = BTreeMap<NodeId, (Incarnation, FencePosition)>;

pub(super) async fn elect(
    shared: &Shared,
    partition: TopicPartition,
    chosen: Option<NodeId>,
    deadline: Instant,
) -> Result<UncleanElection, Stopped> {
    let image = shared.image.borrow().clone();
    let state = state_of(&image, partition)?;
    let alive = shared.alive(&image);
    if let Some(node) = chosen {
        if !state.replicas.contains(&node) {
            return Err(refused(format!(
                "node {node} holds no replica of the partition; its replicas are on nodes {}",
                list(&state.replicas)
            )));
        }
        if !alive.contains(&node) {
            return Err(refused(format!(
                "node {node} is not alive: start it, and ask again"
            )));
        }
    }
    if let Some(leader) = state.leader {
        if alive.contains(&leader.node) && image.registered(leader.node) == Some(leader) {
            return Err(refused(format!(
                "node {} leads the partition and is alive: nothing needs to be lost",
                leader.node
            )));
        }
        if can_elect(&image, state, &alive) {
            return Err(refused(
                "enough of the in-sync replicas are alive: an election without a loss is about to begin"
                    .to_owned(),
            ));
        }
    }
    let able: Vec<NodeId> = state
        .replicas
        .iter()
        .copied()
        .filter(|node| alive.contains(node))
        .collect();
    if able.is_empty() {
        return Err(refused(format!(
            "none of its replicas, on nodes {}, is alive: start one of these nodes; if their data directories are lost, start it with an empty one after \"quorate cluster remove-node N --keep-replicas\", and ask again: the partition then begins empty",
            list(&state.replicas)
        )));
    }
    if state.leader.is_some() {
        vacate(shared, partition, state, deadline).await?;
    }
    force(shared, partition, chosen, &able, deadline).await
}

/// A higher epoch without a leader.
async fn vacate(
    shared: &Shared,
    partition: TopicPartition,
    state: &PartitionState,
    deadline: Instant,
) -> Result<(), Stopped> {
    let elections = vec![ElectionStart {
        partition,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
    }];
    let command = Command::StartElections { elections };
    each_done(shared.commit(command, deadline).await?)
}

async fn force(
    shared: &Shared,
    partition: TopicPartition,
    chosen: Option<NodeId>,
    able: &[NodeId],
    deadline: Instant,
) -> Result<UncleanElection, Stopped> {
    let image = shared.image.borrow().clone();
    let state = state_of(&image, partition)?.clone();
    let Some(mut election) = Election::new(partition, &state) else {
        return Err(refused(
            "the partition has got a leader in the meantime; look again".to_owned(),
        ));
    };
    let replies = fence_all(shared, &image, &election, able).await;
    for (&node, (incarnation, position)) in &replies {
        // Whatever does not count for an ordinary election is counted below.
        let _ = election.record(FenceReply {
            epoch: position.epoch,
            node,
            incarnation: *incarnation,
            last: position.last,
            eligible: position.eligible,
            is_reluctant: position.is_reluctant,
        });
    }
    if election.has_quorum(&image) {
        return Err(refused(
            "enough of the in-sync replicas have answered: the election ends without a loss; look again in a moment"
                .to_owned(),
        ));
    }
    let rank = |node: &NodeId| state.replicas.iter().position(|replica| replica == node);
    let highest = replies
        .iter()
        .max_by_key(|(node, (_, position))| (position.last, std::cmp::Reverse(rank(node))))
        .map(|(&node, _)| node);
    let leader = chosen.or(highest);
    let found = leader.and_then(|node| {
        let (incarnation, position) = replies.get(&node)?;
        let registered = image.registered(node)?;
        (registered.incarnation == *incarnation).then_some((registered, *position))
    });
    let Some((leader, position)) = found else {
        return Err(refused(format!(
            "{} answered in time; look at its log, and ask again",
            chosen.map_or("no replica has".to_owned(), |node| format!(
                "node {node} has not"
            ))
        )));
    };
    let command = Command::ForceLeaders {
        leaders: vec![ForcedLeader {
            partition,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            leader,
        }],
    };
    each_done(shared.commit(command, deadline).await?)?;
    let known = replies.values().filter_map(|(_, p)| p.high_watermark);
    let unclean = UncleanElection {
        partition,
        leader: leader.node,
        epoch: state.leader_epoch,
        log_end: position.last,
        known_high_watermark: known.max().unwrap_or(Offset::ZERO),
        answered: replies
            .iter()
            .map(|(&node, (_, p))| (node, p.last))
            .collect(),
        silent: state
            .replicas
            .iter()
            .copied()
            .filter(|node| !replies.contains_key(node))
            .collect(),
    };
    let isr: Vec<u32> = state.isr.iter().map(|member| member.node.get()).collect();
    tracing::error!(
        %partition, epoch = %unclean.epoch, leader = %unclean.leader, log_end = %unclean.log_end,
        known_high_watermark = %unclean.known_high_watermark, ?isr, answered = ?unclean.answered,
        silent = ?unclean.silent,
        "unclean election by an operator: committed records beyond the new leader's log are lost"
    );
    Ok(unclean)
}

/// Asks every node until it has answered or its time is over.
async fn fence_all(
    shared: &Shared,
    image: &ClusterImage,
    election: &Election,
    nodes: &[NodeId],
) -> Replies {
    let until = Instant::now() + FENCE_WITHIN;
    let asked = nodes.iter().map(async |&node| {
        loop {
            let item = FenceItem {
                partition: election.partition(),
                epoch: election.epoch(),
            };
            let applied = image.applied_index();
            match fence_node(shared, node, applied, vec![item]).await {
                Ok((incarnation, answers)) => {
                    let position = answers
                        .into_iter()
                        .find(|answer| answer.partition == election.partition())
                        .and_then(|answer| answer.result.ok())
                        .filter(|position| position.epoch == election.epoch());
                    if let Some(position) = position {
                        return Some((node, (incarnation, position)));
                    }
                }
                Err(error) => tracing::debug!(%node, %error, "could not fence"),
            }
            if Instant::now() + FENCE_PAUSE > until {
                return None;
            }
            tokio::time::sleep(FENCE_PAUSE).await;
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn state_of(
    image: &ClusterImage,
    partition: TopicPartition,
) -> Result<&PartitionState, OperationRefusal> {
    image
        .partition(partition)
        .ok_or(OperationRefusal::Rejected(Rejection::UnknownPartition(
            partition,
        )))
}

fn each_done(outcome: Outcome) -> Result<(), Stopped> {
    let Outcome::Partitions(results) = outcome else {
        return Ok(());
    };
    match results.into_iter().find_map(Result::err) {
        Some(rejection) => Err(OperationRefusal::Rejected(rejection).into()),
        None => Ok(()),
    }
}

fn list(nodes: &[NodeId]) -> String {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    nodes.join(", ")
}
