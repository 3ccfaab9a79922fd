//! A leader that cannot do what a leader is for, and asks for another.
//!
//! Its disk is full, or its log has lost something, or it was appointed and could not even begin. The controller sees nothing
//! of that: the node is alive. So the replica asks for an election itself, once in a while, and only where another might win
//! it: an election that cannot end would take away what can still be read.
//!
//! Asking changes nothing by itself. The replica leads on until a higher epoch is committed.

use std::time::Duration;

use super::Partition;
use super::output::Output;
use super::replica::Role;
use crate::replication::Peers;
use crate::types::{LeaderEpoch, MonotonicTime, PartitionEpoch};

/// How long a replica waits before it asks again; doubled each time, because where every disk is full elections help
/// nobody.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LAST_PAUSE: Duration = Duration::from_secs(600);

/// When a replica may ask for an election.
#[derive(Debug, Default)]
pub(super) struct Resignation {
    not_before: MonotonicTime,
    /// Zero while there is nothing to ask for.
    pause: Duration,
}

impl Partition {
    /// Whether the disk has no room for records. Such a replica should lead only where no other can.
    pub(super) fn is_short_of_space(&self) -> bool {
        self.found_no_room || self.log.is_short_of_space()
    }

    /// Asks for an election, if this replica is the leader that everybody else knows and cannot be one.
    pub(super) fn consider_resigning(&mut self, now: MonotonicTime, peers: &Peers) {
        let Some((leader_epoch, partition_epoch)) = self.unfit_in(now, peers) else {
            if !self.is_short_of_space() {
                self.resignation = Resignation::default();
            }
            return;
        };
        if now < self.resignation.not_before {
            return;
        }
        let pause = (self.resignation.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        self.resignation = Resignation {
            not_before: now + pause,
            pause,
        };
        self.outputs.push_back(Output::Resign {
            leader_epoch,
            partition_epoch,
        });
    }

    /// The epochs of the state that names this process as the leader, if it should not be and another could.
    fn unfit_in(&self, now: MonotonicTime, peers: &Peers) -> Option<(LeaderEpoch, PartitionEpoch)> {
        let state = self
            .state
            .as_ref()
            .filter(|state| state.leader == Some(self.me) && state.leader_epoch == self.promised)?;
        let is_unfit = match &self.role {
            Role::Leader(leader) => {
                let able = leader.successors(now, peers);
                // Its own vote counts as long as its log is whole.
                let votes = able + usize::from(self.trusted);
                (self.is_short_of_space() || !self.trusted)
                    && able > 0
                    && votes >= state.election_quorum()
            }
            // It could not begin, or has failed since; nobody is served.
            Role::Idle | Role::Failed => true,
            Role::Follower(_) => false,
        };
        is_unfit.then_some((state.leader_epoch, state.partition_epoch))
    }
}
