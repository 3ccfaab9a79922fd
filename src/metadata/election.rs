//! Who leads next: which partitions need a leader, and which replica is picked from the replies to a fence.
//!
//! An election has four steps. The controller (a) commits a higher leader epoch without a leader, (b) fences the ISR members:
//! each persists the promise not to serve an older epoch and replies with the end of its durable log, (c) picks, among an
//! election quorum of such replies, the highest, (d) commits it as the leader. Steps (a) and (d) are commands; (c) is here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::image::ClusterImage;
use crate::types::{
    Appointment, Incarnation, LeaderEpoch, LogPosition, NodeId, PartitionState, TopicPartition,
};

/// The partitions that nobody leads: without a leader, or led by a process that is gone. In order.
///
/// A leader that has restarted is one that is gone: its new incarnation was never appointed.
pub fn needs_election(image: &ClusterImage, alive: &BTreeSet<NodeId>) -> Vec<TopicPartition> {
    image
        .partitions()
        .filter(|(_, state)| {
            state.leader.is_none_or(|leader| {
                !alive.contains(&leader.node) || image.registered(leader.node) != Some(leader)
            })
        })
        .map(|(partition, _)| partition)
        .collect()
}

/// Whether an election could end: an election quorum of the ISR is alive under the directories it was admitted with. To
/// start one that cannot would take away a leader that may still serve those who reach it.
pub fn can_elect(image: &ClusterImage, state: &PartitionState, alive: &BTreeSet<NodeId>) -> bool {
    let able = state
        .isr
        .iter()
        .filter(|member| {
            alive.contains(&member.node)
                && image
                    .registered(member.node)
                    .is_some_and(|now| now.directory == member.directory)
        })
        .count();
    able >= state.election_quorum()
}

/// A replica's reply to a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReply {
    /// The epoch for which the replica has durably promised.
    pub epoch: LeaderEpoch,
    pub node: NodeId,
    /// The process that replied.
    pub incarnation: Incarnation,
    /// End of its durable log: durable LEO and the epoch of its last durable frame.
    pub last: LogPosition,
    /// `false` when the replica knows that it may have lost what it once acknowledged: a missing or quarantined log, a stop
    /// on EIO, another kernel boot id under `flush=os`, and no ISR change since that names its present incarnation.
    pub eligible: bool,
    /// The replica would rather not lead, because it has no room for records.
    pub is_reluctant: bool,
}

/// Why a reply was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// It promises another epoch than the one of this election.
    OtherEpoch(LeaderEpoch),
    NotInSync,
    /// The replica has said itself that its log may lack acknowledged records.
    Ineligible,
}

/// One partition's election in one epoch: collects replies and picks.
#[derive(Clone, Debug)]
pub struct Election {
    partition: TopicPartition,
    epoch: LeaderEpoch,
    /// The preferred leader first.
    replicas: Vec<NodeId>,
    isr: Vec<Appointment>,
    quorum: usize,
    /// Of ISR members, for this epoch only; the last of each.
    replies: BTreeMap<NodeId, FenceReply>,
}

impl Election {
    /// `None` while the partition has a leader: step (a) comes first.
    pub fn new(partition: TopicPartition, state: &PartitionState) -> Option<Election> {
        if state.leader.is_some() {
            return None;
        }
        Some(Election {
            partition,
            epoch: state.leader_epoch,
            replicas: state.replicas.clone(),
            isr: state.isr.clone(),
            quorum: state.election_quorum(),
            replies: BTreeMap::new(),
        })
    }

    pub fn partition(&self) -> TopicPartition {
        self.partition
    }

    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// The nodes to fence: the ISR, whose present process has not replied yet.
    pub fn missing(&self, image: &ClusterImage) -> impl Iterator<Item = NodeId> {
        self.isr
            .iter()
            .filter(|member| self.valid_reply(image, member).is_none())
            .map(|member| member.node)
    }

    /// Takes a reply. Only this epoch's, and only from ISR members, can count.
    pub fn record(&mut self, reply: FenceReply) -> Result<(), Unused> {
        if reply.epoch != self.epoch {
            return Err(Unused::OtherEpoch(reply.epoch));
        }
        if !self.isr.iter().any(|member| member.node == reply.node) {
            return Err(Unused::NotInSync);
        }
        if !reply.eligible {
            self.replies.remove(&reply.node);
            return Err(Unused::Ineligible);
        }
        self.replies.insert(reply.node, reply);
        Ok(())
    }

    /// Whether an election quorum has replied.
    pub fn has_quorum(&self, image: &ClusterImage) -> bool {
        self.valid_replies(image).count() >= self.quorum
    }

    /// The replica to appoint. `None` without an election quorum, and, if `wait_for_all`, until every ISR member has
    /// replied: a short grace lets the preferred leader win when several hold the same.
    ///
    /// It holds the highest durable log position among the replies of *some* election quorum: each has a member of every
    /// commit quorum in it, so which one is counted is free. Of the replicas that one can be counted for, one that is
    /// draining or reluctant leads only if no other can; then the highest position wins, and of equal ones the first in the
    /// order of `replicas`.
    ///
    /// `image` says which process of each node is registered now: a reply of an earlier one does not count, because that
    /// process cannot be appointed, and a directory other than the one that was admitted holds nothing that was
    /// acknowledged.
    pub fn winner(&self, image: &ClusterImage, wait_for_all: bool) -> Option<Appointment> {
        if wait_for_all && self.missing(image).next().is_some() {
            return None;
        }
        self.winner_of(image, |_| true)
    }

    /// The same, among the replies of nodes in `alive` only: one that stopped after it had replied would have to be
    /// replaced at once. Not to count a reply is as if it had not come, so an election quorum of the others is needed, and
    /// is enough.
    pub fn winner_among(
        &self,
        image: &ClusterImage,
        alive: &BTreeSet<NodeId>,
    ) -> Option<Appointment> {
        self.winner_of(image, |node| alive.contains(&node))
    }

    fn winner_of(
        &self,
        image: &ClusterImage,
        counts: impl Fn(NodeId) -> bool,
    ) -> Option<Appointment> {
        let replies: Vec<&FenceReply> = self
            .valid_replies(image)
            .filter(|reply| counts(reply.node))
            .collect();
        let rank = |node| self.replicas.iter().position(|&replica| replica == node);
        let best = replies
            .iter()
            .filter(|reply| self.is_highest_of_a_quorum(&replies, reply))
            .max_by_key(|reply| {
                (
                    !reply.is_reluctant,
                    !image.is_draining(reply.node),
                    reply.last,
                    std::cmp::Reverse(rank(reply.node)),
                )
            })?;
        image.registered(best.node)
    }

    /// `node`, if it may be appointed: it has replied, and no reply of some election quorum is higher than its own.
    pub fn winner_by_choice(&self, image: &ClusterImage, node: NodeId) -> Option<Appointment> {
        let replies: Vec<&FenceReply> = self.valid_replies(image).collect();
        let chosen = replies.iter().find(|reply| reply.node == node)?;
        if !self.is_highest_of_a_quorum(&replies, chosen) {
            return None;
        }
        image.registered(node)
    }

    fn is_highest_of_a_quorum(&self, replies: &[&FenceReply], reply: &FenceReply) -> bool {
        let not_above = replies.iter().filter(|other| other.last <= reply.last);
        not_above.count() >= self.quorum
    }

    fn valid_replies(&self, image: &ClusterImage) -> impl Iterator<Item = &FenceReply> {
        self.isr
            .iter()
            .filter_map(|member| self.valid_reply(image, member))
    }

    fn valid_reply(&self, image: &ClusterImage, member: &Appointment) -> Option<&FenceReply> {
        let reply = self.replies.get(&member.node)?;
        let now = image.registered(member.node)?;
        (now.incarnation == reply.incarnation && now.directory == member.directory).then_some(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::super::random_commands::{image_with_nodes, node, nodes, registration};
    use super::*;
    use crate::metadata::{
        Appointing, Command, CreateTopicRequest, ElectionStart, Outcome, Registration, Rejection,
    };
    use crate::types::{DirectoryId, IsrChange, Offset, PartitionIndex, TopicId, TopicName};

    const PARTITION: TopicPartition = TopicPartition {
        topic: TopicId::from_random_bits(1),
        partition: PartitionIndex(0),
    };

    /// Three nodes and one partition on them, led by node 1, whose election has begun.
    fn electing() -> (ClusterImage, Election) {
        let mut image = led();
        start(&mut image);
        let election = Election::new(PARTITION, image.partition(PARTITION).unwrap()).unwrap();
        (image, election)
    }

    fn led() -> ClusterImage {
        let mut image = image_with_nodes(3);
        let request = CreateTopicRequest {
            name: TopicName::new("t").unwrap(),
            id: PARTITION.topic,
            partitions: None,
            replication_factor: None,
            assignment: Some(vec![vec![node(1), node(2), node(3)]]),
            config: BTreeMap::new(),
        };
        let command = request.resolve(&image, &nodes(1..=3)).unwrap();
        image.apply(&command).unwrap();
        image
    }

    fn start(image: &mut ClusterImage) {
        let state = image.partition(PARTITION).unwrap();
        let elections = vec![ElectionStart {
            partition: PARTITION,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
        }];
        image.apply(&Command::StartElections { elections }).unwrap();
    }

    fn reply(image: &ClusterImage, id: u32, epoch: u32, offset: u64) -> FenceReply {
        let epoch = LeaderEpoch::new(epoch).unwrap();
        FenceReply {
            epoch: image.partition(PARTITION).unwrap().leader_epoch,
            node: node(id),
            incarnation: image.registered(node(id)).unwrap().incarnation,
            last: LogPosition::new(Offset::new(offset).unwrap(), epoch),
            eligible: true,
            is_reluctant: false,
        }
    }

    fn winner(election: &Election, image: &ClusterImage, wait: bool) -> Option<u32> {
        election.winner(image, wait).map(|w| w.node.get())
    }

    #[test]
    fn the_highest_log_of_a_quorum_wins() {
        let (image, mut election) = electing();
        election.record(reply(&image, 2, 1, 90)).unwrap();
        election.record(reply(&image, 2, 1, 90)).unwrap();
        assert_eq!(
            winner(&election, &image, false),
            None,
            "one reply, said twice"
        );
        election.record(reply(&image, 3, 1, 91)).unwrap();
        assert_eq!(winner(&election, &image, false), Some(3));
        assert_eq!(winner(&election, &image, true), None, "node 1 is missing");
        election.record(reply(&image, 1, 1, 91)).unwrap();
        assert_eq!(
            winner(&election, &image, true),
            Some(1),
            "preferred among equals"
        );
    }

    #[test]
    fn a_chosen_replica_wins_where_a_quorum_can_be_counted_for_it() {
        let (image, mut election) = electing();
        let choice = |election: &Election, id| {
            election
                .winner_by_choice(&image, node(id))
                .map(|w| w.node.get())
        };
        election.record(reply(&image, 1, 1, 95)).unwrap();
        election.record(reply(&image, 3, 1, 90)).unwrap();
        assert_eq!(choice(&election, 3), None, "node 1 knows more");
        assert_eq!(choice(&election, 2), None, "it has not replied");
        election.record(reply(&image, 2, 1, 90)).unwrap();
        assert_eq!(choice(&election, 3), Some(3), "by the replies of 2 and 3");
        assert_eq!(winner(&election, &image, true), Some(1));
        election.record(reply(&image, 2, 1, 91)).unwrap();
        assert_eq!(
            choice(&election, 3),
            None,
            "every quorum has a higher one in it"
        );
    }

    #[test]
    fn a_draining_replica_leads_only_what_no_other_can() {
        let (mut image, mut election) = electing();
        for id in [1, 2] {
            let drain = Command::SetDraining {
                node: node(id),
                incarnation: image.registered(node(id)).unwrap().incarnation,
                on: true,
            };
            assert_eq!(image.apply(&drain), Ok(Outcome::Done));
        }
        election.record(reply(&image, 1, 1, 90)).unwrap();
        election.record(reply(&image, 3, 1, 90)).unwrap();
        assert_eq!(winner(&election, &image, false), Some(3));
        election.record(reply(&image, 1, 1, 91)).unwrap();
        assert_eq!(
            winner(&election, &image, false),
            Some(1),
            "3 lacks something"
        );
        election.record(reply(&image, 2, 1, 90)).unwrap();
        assert_eq!(
            winner(&election, &image, false),
            Some(3),
            "by the replies of 2 and 3"
        );
    }

    #[test]
    fn a_replica_without_room_for_records_leads_only_what_no_other_can() {
        let (image, mut election) = electing();
        let full = |offset| FenceReply {
            is_reluctant: true,
            ..reply(&image, 1, 1, offset)
        };
        election.record(full(90)).unwrap();
        election.record(reply(&image, 2, 1, 90)).unwrap();
        assert_eq!(winner(&election, &image, false), Some(2));
        election.record(full(91)).unwrap();
        assert_eq!(
            winner(&election, &image, false),
            Some(1),
            "what it holds more may be committed"
        );
        election.record(reply(&image, 3, 1, 89)).unwrap();
        assert_eq!(winner(&election, &image, false), Some(2));
    }

    #[test]
    fn who_stopped_after_its_reply_does_not_win_and_does_not_stand_in_the_way() {
        let (image, mut election) = electing();
        election.record(reply(&image, 1, 1, 91)).unwrap();
        election.record(reply(&image, 2, 1, 90)).unwrap();
        let among = |election: &Election, alive| {
            let winner = election.winner_among(&image, &nodes(alive));
            winner.map(|winner| winner.node.get())
        };
        assert_eq!(
            among(&election, vec![2, 3]),
            None,
            "what one alone holds need not be all that was committed"
        );
        assert_eq!(among(&election, vec![1, 2]), Some(1));
        election.record(reply(&image, 3, 1, 90)).unwrap();
        assert_eq!(among(&election, vec![2, 3]), Some(2));
    }

    #[test]
    fn replies_of_other_epochs_outsiders_and_the_ineligible_do_not_count() {
        let (image, mut election) = electing();
        let mut old = reply(&image, 2, 1, 90);
        old.epoch = LeaderEpoch::new(1).unwrap();
        assert_eq!(election.record(old), Err(Unused::OtherEpoch(old.epoch)));
        let mut outsider = reply(&image, 2, 1, 90);
        outsider.node = node(9);
        assert_eq!(election.record(outsider), Err(Unused::NotInSync));
        let mut lossy = reply(&image, 2, 1, 90);
        lossy.eligible = false;
        assert_eq!(election.record(lossy), Err(Unused::Ineligible));
        election.record(reply(&image, 3, 1, 9)).unwrap();
        assert_eq!(winner(&election, &image, false), None);
        assert_eq!(election.missing(&image).count(), 2);
    }

    #[test]
    fn a_restart_voids_a_reply_and_a_new_directory_voids_a_member() {
        let (mut image, mut election) = electing();
        election.record(reply(&image, 2, 1, 90)).unwrap();
        election.record(reply(&image, 3, 1, 91)).unwrap();
        let restarted = Registration {
            incarnation: Incarnation::from_random_bits(333),
            ..registration(3, 1)
        };
        image
            .apply(&Command::RegisterNode {
                registration: restarted.clone(),
            })
            .unwrap();
        assert_eq!(winner(&election, &image, false), None);
        election.record(reply(&image, 3, 1, 91)).unwrap();
        assert_eq!(
            election.winner(&image, false),
            Some(restarted.appointment())
        );

        image
            .apply(&Command::UnregisterNode {
                node: node(3),
                directory: None,
            })
            .unwrap();
        let registration = Registration {
            directory: DirectoryId::from_random_bits(777),
            ..restarted
        };
        image
            .apply(&Command::RegisterNode {
                registration: registration.clone(),
            })
            .unwrap();
        assert_eq!(
            winner(&election, &image, false),
            None,
            "its acknowledged records are gone"
        );
        let appointments = vec![Appointing {
            partition: PARTITION,
            leader_epoch: election.epoch(),
            leader: registration.appointment(),
        }];
        assert_eq!(
            image.apply(&Command::AppointLeaders { appointments }),
            Ok(Outcome::Partitions(vec![Err(Rejection::NotInSync(node(
                3
            )))]))
        );
    }

    #[test]
    fn a_dead_or_restarted_leader_needs_an_election() {
        let mut image = led();
        let all = nodes(1..=3);
        assert_eq!(needs_election(&image, &all), []);
        assert_eq!(needs_election(&image, &nodes([2, 3])), [PARTITION]);
        image
            .apply(&Command::RegisterNode {
                registration: Registration {
                    incarnation: Incarnation::from_random_bits(4),
                    ..registration(1, 1)
                },
            })
            .unwrap();
        assert_eq!(needs_election(&image, &all), [PARTITION]);
        let state = image.partition(PARTITION).unwrap();
        assert!(can_elect(&image, state, &nodes([2, 3])));
        assert!(!can_elect(&image, state, &nodes([3])));
        start(&mut image);
        assert_eq!(needs_election(&image, &all), [PARTITION]);
    }

    #[test]
    fn a_failover_changes_the_leader_and_neither_the_replicas_nor_the_in_sync_set() {
        let before = led();
        let then = before.partition(PARTITION).unwrap();
        let mut image = before.clone();
        start(&mut image);
        let mut election = Election::new(PARTITION, image.partition(PARTITION).unwrap()).unwrap();
        for id in [2, 3] {
            election.record(reply(&image, id, 1, 90)).unwrap();
        }
        // The dead node stands first in the list.
        assert_eq!(then.replicas[0], node(1));
        let leader = election.winner_among(&image, &nodes([2, 3])).unwrap();
        let appointments = vec![Appointing {
            partition: PARTITION,
            leader_epoch: election.epoch(),
            leader,
        }];
        image
            .apply(&Command::AppointLeaders { appointments })
            .unwrap();
        let now = image.partition(PARTITION).unwrap();
        assert_eq!(now.leader_node(), Some(node(2)));
        assert_eq!((&now.replicas, &now.isr), (&then.replicas, &then.isr));
        assert_eq!(now.min_insync, then.min_insync);
        // Whoever comes back with what it knew changes nothing any more.
        let stale = vec![Appointing {
            partition: PARTITION,
            leader_epoch: then.leader_epoch,
            leader: then.leader.unwrap(),
        }];
        let after = image.clone();
        let refused = image.apply(&Command::AppointLeaders {
            appointments: stale,
        });
        assert!(
            matches!(&refused, Ok(Outcome::Partitions(results)) if results[0].is_err()),
            "{refused:?}"
        );
        let undone = vec![IsrChange {
            partition: PARTITION,
            leader_epoch: then.leader_epoch,
            partition_epoch: then.partition_epoch,
            new_isr: vec![then.isr[0]],
            min_insync: then.min_insync,
        }];
        let refused = image.apply(&Command::ChangeIsrs { changes: undone });
        assert!(
            matches!(&refused, Ok(Outcome::Partitions(results)) if results[0].is_err()),
            "{refused:?}"
        );
        assert_eq!(image, after);
    }

    #[test]
    fn a_leader_that_restarted_before_its_reign_may_propose_the_present_set_again() {
        let (mut image, _) = electing();
        let restarted = Registration {
            incarnation: Incarnation::from_random_bits(4),
            ..registration(1, 1)
        };
        let leader = restarted.appointment();
        image
            .apply(&Command::RegisterNode {
                registration: restarted,
            })
            .unwrap();
        let appointments = vec![Appointing {
            partition: PARTITION,
            leader_epoch: image.partition(PARTITION).unwrap().leader_epoch,
            leader,
        }];
        image
            .apply(&Command::AppointLeaders { appointments })
            .unwrap();
        let state = image.partition(PARTITION).unwrap().clone();
        assert!(!state.isr.contains(&leader), "it is named as it was before");
        let changes = vec![IsrChange {
            partition: PARTITION,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            new_isr: state.isr.clone(),
            min_insync: state.min_insync,
        }];
        let changed = image.apply(&Command::ChangeIsrs { changes }).unwrap();
        assert!(matches!(changed, Outcome::Partitions(results) if results[0].is_ok()));
        let settled = image.partition(PARTITION).unwrap();
        assert_eq!(settled.isr, state.isr);
        assert!(settled.partition_epoch > state.partition_epoch);
    }
}
