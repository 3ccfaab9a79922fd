//! A log that lost something it should hold, found by a read while the node runs.
//!
//! Recovery does not read what was synced and indexed, so rot in a sealed segment shows only when somebody reads it. The
//! replica's acknowledgements are void from then on: it neither votes nor leads until it is admitted to the in-sync set again.
//! A follower sets its log aside and fetches it anew. A leader asks to be replaced as soon as the others can elect a leader
//! without it, and keeps what is left, which may be all that there is, until another leads.

use super::Partition;
use super::output::Output;
use super::replica::Role;
use super::resign::Resignation;
use crate::replication::ProducerStates;
use crate::types::{ErrorCode, LeaderEpoch, MonotonicTime, Offset, PartitionState};

impl Partition {
    /// Where the log was damaged while this very process was a member of the in-sync set, being named in it says nothing until
    /// a state without it was seen. Such a state may have been passed over, so if one is missing between the last state and
    /// this one, the leader is told again, which takes this replica out of the set once more.
    pub(super) fn has_to_tell_again(&self, state: &PartitionState) -> bool {
        let one_is_missing = self
            .state
            .as_ref()
            .is_some_and(|known| known.partition_epoch.next() < state.partition_epoch);
        self.must_leave_isr && one_is_missing
    }

    /// What a follower does about damage, at the next tick after it was found.
    pub(super) fn begin_anew_if_damaged(&mut self, now: MonotonicTime) {
        if let Role::Follower(follower) = &self.role
            && let Some(cause) = self.damage.take()
        {
            let (leader, connected) = (follower.leader(), self.connected);
            self.step_down(ErrorCode::NotLeaderOrFollower);
            if self.begin_anew(&cause) {
                self.follow(now, leader, connected);
            }
        }
    }

    /// Whether a read has found damage that is still in the log.
    pub fn is_damaged(&self) -> bool {
        self.damage.is_some()
    }

    /// A read found damage in this replica's log: `cause` says where and what. What is to be done about it is done at the
    /// next tick.
    pub fn handle_damage(&mut self, cause: &str) {
        if self.damage.is_some() || matches!(self.role, Role::Failed) {
            return;
        }
        self.damage = Some(cause.to_owned());
        let alone = matches!(self.role, Role::Leader(_))
            && self
                .state
                .as_ref()
                .is_some_and(|state| state.isr.len() == 1);
        let what_now = if alone {
            // To step down would take away what can still be read and written, and to set the log aside the only copy.
            "no other replica is in sync, so it goes on leading with what is left; records there are lost unless the disk can \
             be mended"
        } else {
            self.give_way(cause);
            "it is set aside and fetched anew from the leader, once that is another replica"
        };
        self.outputs.push_back(Output::Failed {
            cause: format!(
                "the log of partition {} is damaged: {cause}; {what_now}",
                self.id
            ),
            stop_process: false,
        });
    }

    /// A leader that was alone with its damage gives way as soon as another replica is in sync: that one holds all that is
    /// committed, and whoever needs what cannot be read here finds it there.
    pub(super) fn give_way_to_others(&mut self) {
        let in_sync = self.state.as_ref().map_or(0, |state| state.isr.len());
        let leads = matches!(self.role, Role::Leader(_));
        if leads
            && self.trusted
            && in_sync > 1
            && let Some(cause) = self.damage.clone()
        {
            self.give_way(&cause);
            self.outputs.push_back(Output::Failed {
                cause: format!(
                    "the log of partition {} is damaged: {cause}; another replica is in sync now, and is to lead",
                    self.id
                ),
                stop_process: false,
            });
        }
    }

    /// This replica neither votes nor leads any more, over restarts too, until its log has been fetched anew.
    fn give_way(&mut self, cause: &str) {
        self.trusted = false;
        self.must_leave_isr = true;
        if let Err(failure) = self.log.note_bad_read(cause) {
            self.outputs.push_back(Output::Failed {
                cause: format!(
                    "cannot note that the log of partition {} is damaged: {failure}",
                    self.id
                ),
                stop_process: false,
            });
        }
    }

    /// Sets the log aside and goes on with an empty one. False where that failed; the partition has then failed too.
    pub(super) fn begin_anew(&mut self, cause: &str) -> bool {
        let moved_to = match self.log.set_aside(cause) {
            Ok(moved_to) => moved_to,
            Err(error) => {
                self.fail(
                    format!("cannot set the log of partition {} aside: {error}", self.id),
                    false,
                );
                return false;
            }
        };
        self.damage = None;
        self.resignation = Resignation::default();
        self.trusted = false;
        self.must_leave_isr = true;
        self.high_watermark = Offset::ZERO;
        self.producers = ProducerStates::new();
        self.durable_told = self.log.durable_end();
        // The epoch of the last frame was a promise too, and is gone with the frames.
        self.promised_durably = LeaderEpoch::NONE;
        self.outputs.push_back(Output::Failed {
            cause: format!(
                "the corrupt log of partition {} was set aside as {}; it is fetched anew from the leader",
                self.id,
                moved_to.display()
            ),
            stop_process: false,
        });
        true
    }
}
