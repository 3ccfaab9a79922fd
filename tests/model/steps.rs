//! What can happen next.

use crate::bounds::{Bounds, Loss, Sessions};
use crate::draft::Draft;
use crate::log::{Position, epoch_start, number_of};
use crate::rules::Rule;
use crate::state::{Appointment, InSync, Outcome, Phase, Proposal, Reply, Role, State};
use crate::violation::Violation;

/// One step of one participant. Messages need no steps of loss: what is never taken is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A node learns of its appointment, acts on it and writes the epoch start.
    Lead {
        node: usize,
        epoch: u8,
    },
    /// A leader appends the next record.
    Append {
        node: usize,
    },
    /// What a node has written becomes durable, up to an entry.
    Sync {
        node: usize,
        entries: usize,
    },
    /// A node learns who leads an epoch, promises it and sends a hello.
    Follow {
        node: usize,
        leader: usize,
    },
    /// A follower loses its session and sends another hello.
    AskAgain {
        node: usize,
    },
    TakeHello {
        leader: usize,
        from: usize,
    },
    TakeAnswer {
        node: usize,
    },
    /// Hello, its arrival and the answer at once.
    Reopen {
        node: usize,
    },
    /// An answer of an older session arrives.
    TakeOldAnswer {
        node: usize,
    },
    TakeFrame {
        node: usize,
        index: usize,
    },
    TakeAck {
        leader: usize,
        from: usize,
        position: Position,
    },
    /// An ack of an older session, epoch or incarnation arrives.
    TakeOldAck {
        leader: usize,
        from: usize,
    },
    Propose {
        node: usize,
        isr: InSync,
    },
    Accept {
        proposal: Proposal,
    },
    Refuse {
        proposal: Proposal,
    },
    HearOutcome {
        node: usize,
    },
    /// A leader whose proposal was refused has its present set accepted anew.
    Withdraw {
        node: usize,
    },
    /// A leader hears the controller's state, though it waits for no outcome.
    HearState {
        node: usize,
    },
    /// A leader takes a timeout for a refusal.
    GiveUp {
        node: usize,
    },
    /// The controller sets m by itself.
    SetMinInsync {
        m: u8,
    },
    /// The controller commits a higher epoch without a leader.
    StartElection,
    Fence {
        node: usize,
    },
    Appoint {
        node: usize,
    },
    /// A process ends and starts again with a prefix of its log.
    Crash {
        node: usize,
        kept: usize,
        lost: bool,
    },
    Register {
        node: usize,
    },
}

/// A step, where it leads, and what it broke.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    pub step: Step,
    pub state: State,
    pub violation: Option<Violation>,
}

/// Where everything begins: all replicas are empty and in sync, and the first is appointed to epoch 1.
pub(crate) fn initial(bounds: &Bounds) -> State {
    let all = InSync::new((0..bounds.replicas).map(|node| (node, 0)), bounds.m);
    let mut state = State {
        epoch: 1,
        leader: 1,
        isr: all,
        ..State::default()
    };
    state.appointed[0] = Appointment {
        node: 1,
        incarnation: 0,
        isr: all,
    };
    state
}

/// All that can happen in a state. `out` is emptied first.
pub(crate) fn successors(bounds: &Bounds, state: &State, out: &mut Vec<Next>) {
    out.clear();
    let mut steps = Steps { bounds, state, out };
    for node in 0..bounds.replicas {
        steps.lead(node);
        steps.append(node);
        steps.sync(node);
        steps.follow(node);
        steps.sessions(node);
        steps.frames(node);
        steps.acks(node);
        steps.proposals(node);
        steps.outcomes(node);
        steps.fence(node);
        steps.appoint(node);
        steps.crash(node);
    }
    steps.controller();
}

struct Steps<'a> {
    bounds: &'a Bounds,
    state: &'a State,
    out: &'a mut Vec<Next>,
}

impl Steps<'_> {
    fn holds(&self, rule: Rule) -> bool {
        self.bounds.rules.hold(rule)
    }

    /// Adds a step if it changes anything.
    fn add(&mut self, step: Step, change: impl FnOnce(&mut Draft<'_>)) {
        let mut draft = Draft::new(self.bounds, self.state);
        change(&mut draft);
        draft.finish();
        if draft.state != *self.state || draft.violation.is_some() {
            self.out.push(Next {
                step,
                state: draft.state,
                violation: draft.violation,
            });
        }
    }

    fn lead(&mut self, node: usize) {
        let replica = &self.state.replicas[node];
        for epoch in 1..=self.bounds.epochs {
            let appointment = self.state.appointed[epoch as usize - 1];
            let leads = replica.role == Role::Leader && replica.epoch >= epoch;
            if appointment.node as usize != node + 1
                || leads
                || (self.holds(Rule::AppointmentNamesProcess)
                    && appointment.incarnation != replica.incarnation)
                || (self.holds(Rule::PromiseIsKept) && replica.promised > epoch)
                || replica.log.end().epoch() > epoch
            {
                continue;
            }
            self.add(Step::Lead { node, epoch }, |draft| {
                draft.lead(node, epoch, appointment.isr);
            });
        }
    }

    fn append(&mut self, node: usize) {
        if self.state.replicas[node].role == Role::Leader
            && self.state.records < self.bounds.records
        {
            self.add(Step::Append { node }, |draft| draft.append(node));
        }
    }

    fn sync(&mut self, node: usize) {
        if !self.bounds.separate_sync {
            return;
        }
        let replica = &self.state.replicas[node];
        // Where recovery left its sync out, an entry that is taken for durable becomes so.
        let from = replica.durable.min(replica.firm) as usize;
        for entries in from + 1..=replica.log.len() {
            if entries < replica.durable as usize {
                continue;
            }
            self.add(Step::Sync { node, entries }, |draft| {
                draft.sync(node, entries);
            });
        }
    }

    fn follow(&mut self, node: usize) {
        let replica = &self.state.replicas[node];
        for leader in 0..self.bounds.replicas {
            let its = &self.state.replicas[leader];
            let serves = replica.role == Role::Leader && replica.epoch >= its.epoch
                || replica.role == Role::Follower && replica.epoch == its.epoch;
            if leader == node
                || its.role != Role::Leader
                || serves
                || (self.holds(Rule::PromiseIsKept) && replica.promised > its.epoch)
            {
                continue;
            }
            self.add(Step::Follow { node, leader }, |draft| {
                draft.follow(node, leader);
            });
        }
    }

    fn sessions(&mut self, node: usize) {
        let replica = &self.state.replicas[node];
        if replica.role != Role::Follower {
            return;
        }
        let leader = self.state.leader_of(replica.epoch);
        if let Some(leader) = leader {
            match self.bounds.sessions {
                Sessions::InOneStep => self.add(Step::Reopen { node }, |draft| {
                    draft.ask(node);
                    draft.open_at_once(node);
                }),
                Sessions::InThreeSteps => {
                    self.add(Step::AskAgain { node }, |draft| draft.ask(node));
                    if replica.phase == Phase::Asked {
                        self.add(Step::TakeHello { leader, from: node }, |draft| {
                            draft.take_hello(leader, node);
                        });
                    }
                }
            }
        }
        if replica.phase == Phase::Answered {
            self.add(Step::TakeAnswer { node }, |draft| draft.take_answer(node));
        }
        if replica.old_answer != 0 && replica.phase != Phase::Closed {
            self.add(Step::TakeOldAnswer { node }, |draft| {
                draft.take_old_answer(node);
            });
        }
    }

    fn frames(&mut self, node: usize) {
        let replica = &self.state.replicas[node];
        let open = replica.phase == Phase::Streaming
            || (replica.role == Role::Follower && !self.holds(Rule::SessionIsKeyed));
        if !open {
            return;
        }
        let whole = self.holds(Rule::WholePositions);
        let log = self.state.reign(replica.epoch);
        let end = replica.log.end();
        for index in 0..log.len() {
            let start = log.prefix(index).end();
            let fits = if whole {
                start == end
            } else {
                start.offset() == end.offset()
            };
            let entry = log.entry(index);
            // The second test is that of a duplicate: an epoch start moves no offset, and without the epoch it would fit again.
            if fits && !(number_of(entry) == 0 && replica.log.contains(entry)) {
                self.add(Step::TakeFrame { node, index }, |draft| {
                    draft.take_frame(node, entry);
                });
            }
        }
    }

    fn acks(&mut self, leader: usize) {
        let replica = &self.state.replicas[leader];
        if replica.role != Role::Leader {
            return;
        }
        for from in 0..self.bounds.replicas {
            let (matched, acked) = (replica.matched[from], replica.acked[from]);
            if from == leader {
                continue;
            }
            if acked > matched {
                self.take_ack(leader, from, acked);
                // Acks are cumulative, and an earlier one may still be on its way.
                if self.bounds.sessions == Sessions::InThreeSteps
                    && self.holds(Rule::WholePositions)
                {
                    for entries in 1..=replica.log.len() {
                        let position = replica.log.prefix(entries).end();
                        if position > matched && position < acked {
                            self.take_ack(leader, from, position);
                        }
                    }
                }
            }
            if replica.old_ack[from] > matched {
                self.add(Step::TakeOldAck { leader, from }, |draft| {
                    draft.take_old_ack(leader, from);
                });
            }
        }
    }

    fn take_ack(&mut self, leader: usize, from: usize, position: Position) {
        let step = Step::TakeAck {
            leader,
            from,
            position,
        };
        self.add(step, |draft| draft.take_ack(leader, from, position));
    }

    /// The proposals that a leader may make. A leader that the controller has deposed makes none: its epochs are stale already.
    fn proposals(&mut self, node: usize) {
        let replica = &self.state.replicas[node];
        let stale_ones_count =
            !self.holds(Rule::CasLeaderEpoch) && !self.holds(Rule::CasPartitionEpoch);
        let appointed = self.state.leader as usize == node + 1 && self.state.epoch == replica.epoch;
        if replica.role != Role::Leader
            || !replica.pending.is_none()
            || self.state.changes >= self.bounds.changes
            || !(appointed || stale_ones_count)
        {
            return;
        }
        for members in 1_u8..1 << self.bounds.replicas {
            if members >> node & 1 == 1 {
                self.propose_members(node, members);
            }
        }
        if self.bounds.m_changes && self.holds(Rule::MinInsyncIsProposed) {
            for m in (1..=self.bounds.replicas as u8).filter(|&m| m != replica.isr.m()) {
                self.propose(node, replica.isr.with_m(m));
            }
        }
    }

    /// Proposes these members under every incarnation that the leader may name for them: the one whose session is open, and
    /// for a member the one under which it is a member.
    fn propose_members(&mut self, node: usize, members: u8) {
        let replica = &self.state.replicas[node];
        let mut sets = vec![InSync::new([], replica.isr.m())];
        for member in (0..self.bounds.replicas).filter(|member| members >> member & 1 == 1) {
            let mut names = Vec::with_capacity(3);
            if member == node {
                names.push(replica.incarnation);
            } else {
                if replica.isr.has(member) {
                    names.push(replica.isr.incarnation(member));
                }
                if replica.session[member] != 0 {
                    names.push(replica.session[member] - 1);
                }
                if !self.holds(Rule::NewSetHoldsByIncarnation)
                    || !self.holds(Rule::NewSetHoldsStart)
                    || !self.holds(Rule::NewSetHoldsWatermark)
                {
                    names.push(self.state.replicas[member].registered);
                }
            }
            names.sort_unstable();
            names.dedup();
            sets = sets
                .iter()
                .flat_map(|set| {
                    names
                        .iter()
                        .map(|&name| InSync(set.0 | InSync::new([(member, name)], 0).0))
                })
                .collect();
        }
        for set in sets {
            if set != replica.isr {
                self.propose(node, set);
            }
        }
    }

    fn propose(&mut self, node: usize, isr: InSync) {
        if Draft::new(self.bounds, self.state).supports(node, isr) {
            self.add(Step::Propose { node, isr }, |draft| {
                draft.propose(node, isr)
            });
        }
    }

    fn outcomes(&mut self, node: usize) {
        let replica = &self.state.replicas[node];
        if replica.role != Role::Leader {
            return;
        }
        let appointed = self.state.leader as usize == node + 1 && self.state.epoch == replica.epoch;
        if replica.outcome == Outcome::Refused && self.holds(Rule::RefusalIsNoOutcome) {
            if appointed {
                self.add(Step::Withdraw { node }, |draft| draft.withdraw(node));
            }
            return;
        }
        if replica.outcome != Outcome::Open {
            self.add(Step::HearOutcome { node }, |draft| draft.hear_outcome(node));
            return;
        }
        if appointed && self.state.isr != replica.isr && self.state.isr != replica.pending {
            self.add(Step::HearState { node }, |draft| draft.hear_state(node));
        }
        if !self.holds(Rule::TimeoutIsNoOutcome) && !replica.pending.is_none() {
            self.add(Step::GiveUp { node }, |draft| draft.give_up(node));
        }
    }

    fn fence(&mut self, node: usize) {
        let state = self.state;
        let replica = &state.replicas[node];
        let member = state.isr.has(node) || !self.holds(Rule::RepliesOfMembers);
        let serves = replica.epoch >= state.epoch;
        if state.leader != 0 || !member || serves || replica.promised > state.epoch {
            return;
        }
        let reply = Reply {
            given: true,
            end: replica.log.prefix(replica.durable as usize).end(),
            incarnation: replica.incarnation,
            eligible: !replica.lossy || !self.holds(Rule::LossyDoesNotVote),
        };
        self.add(Step::Fence { node }, |draft| draft.fence(node, reply));
    }

    fn appoint(&mut self, node: usize) {
        if self.state.leader == 0 && Draft::new(self.bounds, self.state).may_win(node) {
            self.add(Step::Appoint { node }, |draft| draft.appoint(node));
        }
    }

    fn crash(&mut self, node: usize) {
        let replica = &self.state.replicas[node];
        if replica.registered != replica.incarnation {
            self.add(Step::Register { node }, |draft| {
                let replica = &mut draft.state.replicas[node];
                replica.registered = replica.incarnation;
            });
        }
        if self.state.crashes >= self.bounds.crashes || replica.incarnation >= 3 {
            return;
        }
        for kept in replica.firm as usize..=replica.log.len() {
            let step = Step::Crash {
                node,
                kept,
                lost: false,
            };
            self.add(step, |draft| draft.crash(node, kept, false));
        }
        if self.bounds.loss != Loss::None && replica.lost_at == 0 {
            let step = Step::Crash {
                node,
                kept: 0,
                lost: true,
            };
            self.add(step, |draft| draft.crash(node, 0, true));
        }
    }

    fn controller(&mut self) {
        let state = self.state;
        if state.epoch < self.bounds.epochs {
            self.add(Step::StartElection, |draft| draft.start_election());
        }
        for (index, &proposal) in state.proposals.iter().enumerate() {
            if proposal.epoch == 0 || !self.epochs_pass(proposal) {
                continue;
            }
            let registered = proposal.isr.members().all(|member| {
                proposal.isr.incarnation(member) == state.replicas[member].registered
            });
            if registered || !self.holds(Rule::CasIncarnations) {
                self.add(Step::Accept { proposal }, |draft| draft.accept(index));
            } else {
                self.add(Step::Refuse { proposal }, |draft| draft.refuse(index));
            }
        }
        if self.bounds.m_changes
            && !self.holds(Rule::MinInsyncIsProposed)
            && state.changes < self.bounds.changes
        {
            for m in 1..=self.bounds.replicas as u8 {
                if m != state.isr.m() {
                    self.add(Step::SetMinInsync { m }, |draft| draft.set_min_insync(m));
                }
            }
        }
    }

    /// Whether a proposal passes the compare-and-swap on epochs.
    fn epochs_pass(&self, proposal: Proposal) -> bool {
        let state = self.state;
        let leader_is_in_it = match state.leader {
            0 => !self.holds(Rule::ChangeNeedsLeader),
            leader => proposal.isr.has(leader as usize - 1),
        };
        leader_is_in_it
            && (proposal.epoch == state.epoch || !self.holds(Rule::CasLeaderEpoch))
            && (proposal.fresh || !self.holds(Rule::CasPartitionEpoch))
    }
}

/// The first entry of an epoch in a leader's log.
pub(crate) fn start_index(log: crate::log::Log, epoch: u8) -> Option<usize> {
    (0..log.len()).find(|&index| log.entry(index) == epoch_start(epoch))
}
