//! Carries out what the core asks for: against the log here, as outputs where others must act.

use super::Partition;
use super::output::{Frames, FramesReady, Hello, Output};
use super::replica::Role;
use crate::replication::{FollowerAction, LeaderAction};
use crate::types::{LogPosition, NodeId, SessionId};
use crate::wire::{MAX_HELLO_EPOCHS, OpenSession};

impl Partition {
    pub(super) fn drain_leader(&mut self) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        while let Some(action) = leader.poll_action() {
            self.outputs.push_back(match action {
                LeaderAction::Answer {
                    to,
                    answer,
                    catch_up,
                } => Output::Answer {
                    to,
                    answer,
                    catch_up,
                },
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
                LeaderAction::SendWatermark { to, session } => Output::Watermark(Frames {
                    to,
                    session,
                    leader_epoch: leader.epoch(),
                    high_watermark: leader.high_watermark(),
                    frames: Vec::new(),
                    bytes: 0,
                    catch_up: false,
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
                FollowerAction::WatermarkMoved => self.high_watermark = follower.high_watermark(),
                FollowerAction::Truncate { to } => {
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
                    let cut = self.log.truncate(to).map_err(|error| error.to_string());
                    self.handle_cut(before, cut);
                }
                FollowerAction::Reset { start, epochs } => {
                    let before = self.log.end();
                    let reset = self.log.reset(start, epochs);
                    self.handle_cut(before, reset.map_err(|error| error.to_string()));
                }
            }
        }
    }

    /// The log, which ended at `before`, was cut or begun anew.
    fn handle_cut(&mut self, before: LogPosition, result: Result<(), String>) {
        if let Err(error) = result {
            self.fail(
                format!("cannot truncate partition {}: {error}", self.id),
                false,
            );
            return;
        }
        if self.log.end() != before {
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
            },
        }
    }
}
