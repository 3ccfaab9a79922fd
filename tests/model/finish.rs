//! The end of each step: a look at the invariants that hold of every state, and then what cannot have an effect any more is
//! forgotten, so that states that differ in nothing else are one.

use crate::draft::Draft;
use crate::log::Log;
use crate::log::Position;
use crate::rules::Rule;
use crate::state::{Appointment, EPOCHS, Outcome, Phase, Proposal, Reply, Role};
use crate::violation::Violation;

impl Draft<'_> {
    /// Looks at the invariants that hold of every state, and forgets what cannot have an effect any more, so that states that
    /// differ in nothing else are one.
    pub(crate) fn finish(&mut self) {
        if self.bounds.rules.all_hold() {
            self.check_state();
        }
        self.forget_proposals();
        self.forget_replies();
        self.forget_appointments();
        self.forget_sessions();
        self.forget_matches();
    }

    fn forget_proposals(&mut self) {
        let leader_epoch = self.holds(Rule::CasLeaderEpoch);
        let partition_epoch = self.holds(Rule::CasPartitionEpoch);
        let epoch = self.state.epoch;
        let incarnations = self.holds(Rule::CasIncarnations);
        let replicas = self.state.replicas;
        for proposal in &mut self.state.proposals {
            // Registered incarnations only rise. Where its leader still waits, the refusal has to come first.
            let hopeless = incarnations
                && proposal.epoch != 0
                && replicas[proposal.proposer as usize - 1].outcome != Outcome::Open
                && proposal
                    .isr
                    .members()
                    .any(|member| proposal.isr.incarnation(member) < replicas[member].registered);
            if hopeless
                || (leader_epoch && proposal.epoch != epoch)
                || (partition_epoch && !proposal.fresh)
            {
                *proposal = Proposal::default();
            }
            proposal.fresh &= partition_epoch;
        }
    }

    fn forget_replies(&mut self) {
        let over = self.state.leader != 0 && self.holds(Rule::RepliesOfThisEpoch);
        for node in 0..self.bounds.replicas {
            let reply = &mut self.state.replies[node];
            if over || reply.incarnation < self.state.replicas[node].registered {
                *reply = Reply::default();
            }
        }
    }

    fn forget_appointments(&mut self) {
        for epoch in 1..=EPOCHS as u8 {
            let appointment = self.state.appointed[epoch as usize - 1];
            let Some(node) = (appointment.node as usize).checked_sub(1) else {
                continue;
            };
            let replica = &self.state.replicas[node];
            let by_process = self.holds(Rule::AppointmentNamesProcess);
            let restarted = by_process && replica.incarnation != appointment.incarnation;
            let above = self.holds(Rule::PromiseIsKept) && replica.promised > epoch;
            let leads = by_process && replica.role == Role::Leader && replica.epoch >= epoch;
            if restarted || above || leads {
                self.state.appointed[epoch as usize - 1] = Appointment::default();
            }
        }
    }

    fn forget_sessions(&mut self) {
        for node in 0..self.bounds.replicas {
            let replica = &self.state.replicas[node];
            if replica.role != Role::Follower || self.state.leader_of(replica.epoch).is_some() {
                continue;
            }
            let over = match replica.phase {
                Phase::Closed | Phase::Asked => true,
                Phase::Answered => false,
                Phase::Streaming => {
                    self.holds(Rule::SessionIsKeyed)
                        && replica
                            .log
                            .has_prefix(self.state.reigns[replica.epoch as usize - 1])
                }
            };
            if over {
                self.end_role(node);
            }
        }
        for epoch in 1..=EPOCHS as u8 {
            let needed = self.state.leader_of(epoch).is_none()
                && self
                    .state
                    .replicas
                    .iter()
                    .any(|replica| replica.role == Role::Follower && replica.epoch == epoch);
            if !needed {
                self.state.reigns[epoch as usize - 1] = Log::default();
            }
        }
    }

    fn forget_matches(&mut self) {
        let cas = self.holds(Rule::CasLeaderEpoch) && self.holds(Rule::CasPartitionEpoch);
        let (epoch, spent) = (self.state.epoch, self.state.changes == self.bounds.changes);
        for node in 0..self.bounds.replicas {
            let replica = &mut self.state.replicas[node];
            if replica.role != Role::Leader {
                continue;
            }
            let proposes_no_more = spent || (cas && replica.epoch < epoch);
            for other in 0..self.bounds.replicas {
                let counts = replica.isr.has(other) || replica.pending.has(other);
                if proposes_no_more && !counts {
                    replica.matched[other] = Position::START;
                    replica.acked[other] = Position::START;
                    replica.session[other] = 0;
                }
                replica.acked[other] = replica.acked[other].max(replica.matched[other]);
            }
        }
    }

    /// Invariants 3, 6 and 8.
    fn check_state(&mut self) {
        for node in 0..self.bounds.replicas {
            let log = self.state.replicas[node].log;
            for other in 0..node {
                if let Some(position) = differ(log, self.state.replicas[other].log) {
                    self.broken(Violation::LogsDiffer { position });
                }
            }
        }
        if let Some(node) = (self.state.leader as usize).checked_sub(1) {
            let leader = &self.state.replicas[node];
            let counts = [leader.isr, leader.pending].contains(&self.state.isr);
            if leader.role == Role::Leader && leader.epoch == self.state.epoch && !counts {
                self.broken(Violation::LeaderCountsByAnotherSet { node });
            }
        }
    }
}

/// A position that two logs share although they differ before it.
fn differ(one: Log, other: Log) -> Option<Position> {
    let unlike = one.0 ^ other.0;
    if unlike == 0 {
        return None;
    }
    let common = unlike.trailing_zeros() as usize / 8;
    (common + 1..=one.len())
        .map(|entries| one.prefix(entries).end())
        .find(|&end| (common + 1..=other.len()).any(|entries| other.prefix(entries).end() == end))
}
