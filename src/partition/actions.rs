//! Carries out what the core asks for: against the log here, as outputs where others must act.

use super::Partition;
use super::output::{Frames, FramesReady, Hello, Output};
use super::replica::Role;
use crate::replication::{FollowerAction, LeaderAction};
use crate::types::{EpochHistory, LogPosition, NodeId, SessionId};
use crate::wire::{MAX_HELLO_EPOCHS, OpenSession, ProducerSnapshot, SessionOutcome};

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
                    if !self.log.reaches_back_to(to) {
                        self.begin_before_start();
                        continue;
                    }
                    if !self.may_fall_back_to(to) {
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
                    if !self.may_fall_back_to(start) {
                        return;
                    }
                    let reset = self.log.reset(start, epochs, producers.encode());
                    self.handle_cut(true, reset.map_err(|error| error.to_string()));
                }
            }
        }
    }

    /// The leader parts from this log before it starts. What lies before a log's start is committed, so an operator has forced a leader
    /// without it: the log begins with nothing. The frames that come from where the two part do not fit that, so the next hello
    /// says so, and they come from the leader's own start.
    fn begin_before_start(&mut self) {
        if self.may_fall_back_to(LogPosition::START) {
            let nothing = ProducerSnapshot::default().encode();
            let reset = self
                .log
                .reset(LogPosition::START, EpochHistory::new(), nothing);
            self.handle_cut(true, reset.map_err(|error| error.to_string()));
        }
    }

    /// Whether the leader may have this log end at `to` for now. Below what is committed it may only where an operator forced one
    /// that did not have it; else the partition has failed.
    ///
    /// Under a forced leader the watermark falls to the log's start, cut or not, until that leader has told its own: nothing that
    /// comes in place of what is lost is taken for committed before it is, and what the leader has not made durable yet it may
    /// lose too.
    fn may_fall_back_to(&mut self, to: LogPosition) -> bool {
        let Role::Follower(follower) = &mut self.role else {
            return false;
        };
        let leader = follower.leader();
        let is_below = to.offset < self.high_watermark;
        let ends_before_forced_epoch = self
            .state
            .as_ref()
            .is_some_and(|state| self.log.end().epoch < state.forced_epoch);
        if ends_before_forced_epoch {
            if is_below {
                self.outputs.push_back(Output::Failed {
                    cause: format!(
                        "partition {} is cut at {to}, below its committed offset {}: an operator forced a leader that did not have what is lost",
                        self.id, self.high_watermark
                    ),
                    stop_process: false,
                });
            }
            let start = self.log.start().offset.min(to.offset);
            self.high_watermark = self.high_watermark.min(start);
            follower.forget_watermark(start);
            return true;
        }
        if !is_below {
            return true;
        }
        // A leader at or above the committing epoch never asks for this (invariant 9).
        self.fail(
            format!(
                "the leader, node {leader}, asks partition {} to be cut at {to}, below its committed offset {}",
                self.id, self.high_watermark
            ),
            false,
        );
        false
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
