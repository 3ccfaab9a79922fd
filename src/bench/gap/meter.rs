//! What the nodes count: elections, changes of the in-sync set, redials, migrations. Fed with what each node says of itself, again
//! and again, so that what a process counted is still known when it is killed.

use std::collections::{BTreeMap, BTreeSet};

use crate::admin::{NodeStatus, PartitionStatus};
use crate::broker::{LinkDirection, LinkState, LinkView};
use crate::client::ClientLink;
use crate::types::{Incarnation, NodeId};

/// One end of a link, of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    follower: NodeId,
    leader: NodeId,
    /// Whether it is the follower's end.
    dials: bool,
    process: Incarnation,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    redials: u64,
    migrations: u64,
    handshakes: u64,
    suspicions: u64,
    /// How often it was seen to lose its connection.
    downs: u64,
    is_up: bool,
}

/// What has happened since [`Meter::begin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) isr_changes: u64,
    pub(super) elections: u64,
    pub(super) redials: u64,
    pub(super) migrations: u64,
    pub(super) handshakes: u64,
    pub(super) suspicions: u64,
    pub(super) disconnects: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    ends: BTreeMap<End, Counts>,
    ends_before: BTreeMap<End, Counts>,
    /// Leader epoch and partition epoch.
    epochs: (u64, u64),
    epochs_before: (u64, u64),
    client: Counts,
    client_before: Counts,
    /// By node and process: how often a client was seen to come from another address.
    client_moves: BTreeMap<(NodeId, Incarnation), u64>,
    client_moves_before: u64,
}

impl Meter {
    /// Takes in what a node says.
    pub(super) fn take(&mut self, status: &NodeStatus) {
        for link in &status.links {
            let dials = link.direction == LinkDirection::ToLeader;
            let (follower, leader) = match dials {
                true => (status.node, link.peer),
                false => (link.peer, status.node),
            };
            let end = End {
                follower,
                leader,
                dials,
                process: status.incarnation,
            };
            self.ends.entry(end).or_default().take(link);
        }
        let process = (status.node, status.incarnation);
        self.client_moves.insert(process, status.client_migrations);
    }

    /// Takes in the newest state of the partition that is known.
    pub(super) fn take_partition(&mut self, partition: &PartitionStatus) {
        let epochs = (
            u64::from(partition.leader_epoch.get()),
            u64::from(partition.partition_epoch.0),
        );
        self.epochs = self.epochs.max(epochs);
    }

    pub(super) fn take_client(&mut self, links: &[ClientLink]) {
        let sum = |count: fn(&ClientLink) -> u64| links.iter().map(count).sum();
        self.client = Counts {
            redials: sum(|link| link.redials),
            migrations: sum(|link| link.migrations),
            handshakes: sum(|link| link.handshakes),
            suspicions: sum(|link| link.suspicions),
            ..Counts::default()
        };
    }

    /// What was taken in so far is what there was before.
    pub(super) fn begin(&mut self) {
        self.ends_before = self.ends.clone();
        self.epochs_before = self.epochs;
        self.client_before = self.client;
        self.client_moves_before = self.client_moves();
    }

    fn client_moves(&self) -> u64 {
        self.client_moves.values().sum()
    }

    pub(super) fn happened(&self) -> Happened {
        let elections = self.epochs.0.saturating_sub(self.epochs_before.0);
        let changes = self.epochs.1.saturating_sub(self.epochs_before.1);
        let mut happened = Happened {
            elections,
            // An election is two changes of the partition's state: that there is no leader, and who it is.
            isr_changes: changes.saturating_sub(2 * elections),
            redials: self.client.redials - self.client_before.redials.min(self.client.redials),
            // As between nodes: the client knows its own moves, a node sees what a NAT does as well.
            migrations: (self.client.migrations
                - self.client_before.migrations.min(self.client.migrations))
            .max(self.client_moves().saturating_sub(self.client_moves_before)),
            handshakes: self.client.handshakes
                - self.client_before.handshakes.min(self.client.handshakes),
            ..Happened::default()
        };
        let links: BTreeSet<_> = self
            .ends
            .keys()
            .map(|end| (end.follower, end.leader))
            .collect();
        for link in links {
            let dialling = self.grown(link, true);
            let other = self.grown(link, false);
            happened.redials += dialling.redials;
            happened.handshakes += dialling.handshakes;
            happened.suspicions += dialling.suspicions + other.suspicions;
            // The dialling end knows only its own moves; the other end sees what a NAT does, and takes both for the same.
            happened.migrations += dialling.migrations.max(other.migrations);
            happened.disconnects += dialling.handshakes.max(dialling.downs);
        }
        happened
    }

    fn grown(&self, link: (NodeId, NodeId), dials: bool) -> Counts {
        let mut sum = Counts::default();
        for (end, now) in &self.ends {
            if (end.follower, end.leader) != link || end.dials != dials {
                continue;
            }
            let before = self.ends_before.get(end).copied().unwrap_or_default();
            sum.redials += now.redials.saturating_sub(before.redials);
            sum.migrations += now.migrations.saturating_sub(before.migrations);
            sum.handshakes += now.handshakes.saturating_sub(before.handshakes);
            sum.suspicions += now.suspicions.saturating_sub(before.suspicions);
            sum.downs += now.downs.saturating_sub(before.downs);
        }
        sum
    }
}

impl Counts {
    fn take(&mut self, link: &LinkView) {
        let is_up = link.state != LinkState::Down;
        self.downs += u64::from(self.is_up && !is_up);
        self.is_up = is_up;
        self.redials = link.redials;
        self.migrations = link.migrations;
        self.handshakes = link.handshakes;
        self.suspicions = link.suspicions;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn link(direction: LinkDirection, peer: u32, migrations: u64, redials: u64) -> LinkView {
        LinkView {
            migrations,
            redials,
            handshakes: 1 + redials,
            suspicions: redials,
            ..LinkView::sample(direction, id(peer))
        }
    }

    fn take(meter: &mut Meter, node: u32, process: u64, link: &LinkView) {
        let dials = link.direction == LinkDirection::ToLeader;
        let (follower, leader) = match dials {
            true => (id(node), link.peer),
            false => (link.peer, id(node)),
        };
        let end = End {
            follower,
            leader,
            dials,
            process: Incarnation::from_random_bits(process),
        };
        meter.ends.entry(end).or_default().take(link);
    }

    #[test]
    fn a_move_that_both_ends_count_is_one() {
        use LinkDirection::{ToFollower, ToLeader};
        let mut meter = Meter::default();
        take(&mut meter, 2, 1, &link(ToLeader, 1, 4, 2));
        take(&mut meter, 1, 9, &link(ToFollower, 2, 4, 0));
        meter.begin();
        assert_eq!(meter.happened(), Happened::default());
        take(&mut meter, 2, 1, &link(ToLeader, 1, 5, 2));
        // One more that only the other end could see.
        take(&mut meter, 1, 9, &link(ToFollower, 2, 6, 0));
        assert_eq!(meter.happened().migrations, 2);
        assert_eq!(meter.happened().handshakes, 0);
        // Of the client, only the node saw it.
        let process = (id(1), Incarnation::from_random_bits(9));
        meter.client_moves.insert(process, 1);
        assert_eq!(meter.happened().migrations, 3);
    }

    #[test]
    fn what_a_process_counted_is_kept_when_another_takes_its_place() {
        use LinkDirection::ToLeader;
        let mut meter = Meter::default();
        take(&mut meter, 2, 1, &link(ToLeader, 1, 0, 3));
        meter.begin();
        take(&mut meter, 2, 1, &link(ToLeader, 1, 0, 5));
        take(&mut meter, 2, 2, &link(ToLeader, 1, 0, 1));
        let happened = meter.happened();
        assert_eq!((happened.redials, happened.handshakes), (2 + 1, 2 + 2));
    }

    #[test]
    fn a_link_that_is_down_and_up_again_was_disconnected() {
        use LinkDirection::ToLeader;
        let mut meter = Meter::default();
        let up = link(ToLeader, 1, 0, 0);
        let down = LinkView {
            state: LinkState::Down,
            ..up.clone()
        };
        take(&mut meter, 2, 1, &up);
        meter.begin();
        for _ in 0..2 {
            take(&mut meter, 2, 1, &down);
            take(&mut meter, 2, 1, &down);
            take(&mut meter, 2, 1, &up);
        }
        assert_eq!(meter.happened().disconnects, 2);
    }

    #[test]
    fn an_election_is_two_changes_and_none_of_the_in_sync_set() {
        let mut meter = Meter {
            epochs: (3, 10),
            ..Meter::default()
        };
        meter.begin();
        meter.epochs = (3, 11);
        assert_eq!(meter.happened().isr_changes, 1);
        meter.epochs = (5, 17);
        assert_eq!(meter.happened().elections, 2);
        assert_eq!(meter.happened().isr_changes, 3);
    }
}
