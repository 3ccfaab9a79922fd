//! Carries out what the core asks for: against the log here, as outputs where others must act.

use super::Partition;
use super::output::{Frames, FramesReady, Hello, Output};
use super::replica::Role;
use crate::replication::{FollowerAction, LeaderAction};
use crate::types::{NodeId, SessionId};
use crate::wire::{MAX_HELLO_EPOCHS, OpenSession, SessionOutcome};

impl Partition {
    pub(super) fn drain_leader(&mut self) {
        loop {
            let Role::Leader(leader) = &mut self.role else {
                return;
            };
            let Some(action) = leader.poll_action() else {
                return;
            };
            self.outputs.push_back(match action {
                LeaderAction::Answer {
                    to,
                    mut answer,
                    catch_up,
                } => {
                    if let SessionOutcome::Reset {
                        producers: known, ..
                    } = &mut answer.outcome
                    {
                        *known = self.producers_at_start();
                    }
                    Output::Answer {
                        to,
                        answer,
                        catch_up,
                    }
                }
                LeaderAction::Send {
                    to,
                    session,
                    from,
                    max_bytes,
                    catch_up,
                } => Output::FramesReady(FramesReady {
                    to,
                    session,
                    from,
                    max_bytes,
                    catch_up,
                }),
                LeaderAction::SendWatermark {
                    to,
                    session,
                    catch_up,
                } => Output::Watermark(Frames {
                    to,
                    session,
                    leader_epoch: leader.epoch(),
                    high_watermark: leader.high_watermark(),
                    frames: Vec::new(),
                    bytes: 0,
                    catch_up,
                }),
                LeaderAction::Complete { ticket, result } => Output::Complete { ticket, result },
                LeaderAction::ProposeIsr(change) => Output::ProposeIsr(change),
                LeaderAction::WatermarkMoved => {
                    self.high_watermark = leader.high_watermark();
                    continue;
                }
            });
        }
    }

    pub(super) fn drain_follower(&mut self) {
        loop {
            let Role::Follower(follower) = &mut self.role else {
                return;
            };
            let Some(action) = follower.poll_action() else {
                return;
            };
            let leader = follower.leader();
            match action {
                FollowerAction::OpenSession {
                    session,
                    all_epochs,
                } => {
                    let hello = self.hello(leader, session, all_epochs);
                    self.outputs.push_back(Output::OpenSession(hello));
                }
                FollowerAction::Ack(ack) => {
                    self.outputs.push_back(Output::Ack { to: leader, ack });
                }
                FollowerAction::WatermarkMoved => {
                    self.high_watermark = follower.high_watermark();
                    self.producers.handle_committed(self.high_watermark);
                }
                FollowerAction::Truncate { to } => {
                    let ends_before_forced_epoch = self
                        .state
                        .as_ref()
                        .is_some_and(|state| self.log.end().epoch < state.forced_epoch);
                    if to.offset < self.high_watermark && ends_before_forced_epoch {
                        self.outputs.push_back(Output::Failed {
                            cause: format!(
                                "partition {} is cut at {to}, below its committed offset {}: an operator forced a leader that did not have what is lost",
                                self.id, self.high_watermark
                            ),
                            stop_process: false,
                        });
                        self.high_watermark = to.offset;
                        follower.forget_watermark(to.offset);
                    }
                    if to.offset < self.high_watermark {
                        // A leader at or above the committing epoch never asks for this (invariant 9).
                        self.fail(
                            format!(
                                "the leader, node {leader}, asks partition {} to be cut at {to}, below its committed offset {}",
                                self.id, self.high_watermark
                            ),
                            false,
                        );
                        return;
                    }
                    let before = self.log.end();
                    let cut = self.log.truncate(to);
                    if let Err(error) = &cut
                        && error.is_damage()
                    {
                        // Nothing is taken in this state; the next tick begins anew.
                        self.handle_damage(&error.to_string());
                        return;
                    }
                    let cut = cut.map_err(|error| error.to_string());
                    let is_shorter = self.log.end() != before;
                    self.handle_cut(is_shorter, cut);
                }
                FollowerAction::Reset {
                    start,
                    epochs,
                    producers,
                } => {
                    let reset = self.log.reset(start, epochs, producers.encode());
                    self.handle_cut(true, reset.map_err(|error| error.to_string()));
                }
            }
        }
    }

    /// The log was cut or begun anew, if it had to be: `has_changed`.
    fn handle_cut(&mut self, has_changed: bool, result: Result<(), String>) {
        if let Err(error) = result {
            self.fail(
                format!("cannot truncate partition {}: {error}", self.id),
                false,
            );
            return;
        }
        if has_changed {
            self.replay_producers();
        }
        self.high_watermark = self.high_watermark.max(self.log.start().offset);
        let (end, durable) = (self.log.end(), self.log.durable_end());
        self.durable_told = durable;
        if let Role::Follower(follower) = &mut self.role {
            follower.handle_truncated(end, durable);
        }
    }

    fn hello(&self, leader: NodeId, session: SessionId, all_epochs: bool) -> Hello {
        let durable = self.log.durable_end();
        let mut epochs = self.log.epochs().clone();
        // An epoch start that is not durable yet is not claimed.
        epochs.truncate(durable);
        let count = if all_epochs {
            usize::MAX
        } else {
            MAX_HELLO_EPOCHS
        };
        let epochs_complete = epochs.entries().len() <= count;
        Hello {
            to: leader,
            open: OpenSession {
                partition: self.id,
                leader_epoch: self.promised,
                session,
                durable,
                epochs: epochs.latest(count),
                epochs_complete,
                log_lost: self.must_leave_isr,
            },
        }
    }
}
