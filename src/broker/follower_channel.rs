//! The leader's end of a replication connection, as the owner threads see it: where frames and answers go out.

use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use crate::partition::Frames;
use crate::transport::{COALESCE_BELOW, CloseReason, LaneWriter};
use crate::types::{Appointment, Offset, TopicPartition};
use crate::wire::{ControlMessage, LaneMessage, SessionAnswer, SessionOutcome};

/// Frame bytes that may be under way to one follower, over all partitions: sent and not yet acknowledged as durable. Beyond
/// it nothing more is read for that follower until it acknowledges, so a slow or dead one costs this much memory and
/// delays nobody. It also bounds the rate: this many bytes a round trip and sync. 1 Gbit/s over 200 ms is 25 MB.
pub(super) const FOLLOWER_BUDGET_BYTES: usize = 32 << 20;

/// Catch-up frames that may be under way from this node at a round trip of zero, to all followers that catch up together. Who is
/// far behind takes what it is given, and would share the leader's and its own disk and processors with the live frames of
/// everybody; this much at a time leaves their syncs a turn.
const CATCH_UP_BYTES: usize = 2 << 20;
/// Each of them has at least this much, so that many catch up too: some frames of the largest batches that clients send by default.
const CATCH_UP_BYTES_EACH: usize = 256 << 10;
/// And how many more for each second of round trip, so that a far follower catches up as well: 1 Gbit/s.
const CATCH_UP_BYTES_PER_SECOND: f64 = 125e6;

/// Control messages that wait for the connection. A follower that lets them pile up beyond this is cut off; it dials anew and
/// opens its sessions again.
const MAX_WAITING_CONTROL_MESSAGES: usize = 16_384;

/// How many followers have catch-up frames under way from this node: they share [`CATCH_UP_BYTES`].
#[derive(Debug, Default)]
pub(super) struct CatchUpShare {
    /// Below zero for moments: a follower that is done may be counted off before it was counted.
    followers: AtomicIsize,
    /// How many owner threads have clients whose answers are late. As long as there is one, no more is sent to those who catch up.
    held_back_by: AtomicUsize,
}

impl CatchUpShare {
    /// Whether anybody catches up.
    pub(super) fn is_used(&self) -> bool {
        self.followers.load(Ordering::Relaxed) > 0
    }

    /// An owner thread holds those who catch up back. It says [`CatchUpShare::let_go`] as often.
    pub(super) fn hold_back(&self) {
        self.held_back_by.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn let_go(&self) {
        self.held_back_by.fetch_sub(1, Ordering::AcqRel);
    }

    fn is_held_back(&self) -> bool {
        self.held_back_by.load(Ordering::Acquire) > 0
    }

    fn bytes_each(&self) -> usize {
        let followers = self.followers.load(Ordering::Relaxed).max(1) as usize;
        (CATCH_UP_BYTES / followers).max(CATCH_UP_BYTES_EACH)
    }
}

/// What an order is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Live,
    CatchUp,
    /// Catch-up frames of a partition that has too few replicas in sync: they are not held back for answers that are late.
    NeededCatchUp,
}

/// One live connection from one follower.
#[derive(Debug)]
pub(super) struct FollowerChannel {
    /// Tells this connection from an earlier or later one of the same follower.
    pub(super) id: u64,
    /// The follower's process, as its certificate and hello say.
    pub(super) peer: Appointment,
    control: mpsc::Sender<Bytes>,
    live: Vec<LaneWriter>,
    catch_up: Vec<LaneWriter>,
    /// Frame bytes sent and not yet acknowledged. At most [`FOLLOWER_BUDGET_BYTES`] and one order of each owner thread.
    outstanding: Outstanding,
    /// Those of them that are catch-up frames. At most its window and one order of each owner thread.
    catching_up: Outstanding,
    /// How many may be: this one's part of it,
    share: Arc<CatchUpShare>,
    /// and this for its round trip.
    catch_up_for_distance: AtomicUsize,
    /// Cancelled to close the connection.
    pub(super) broken: CancellationToken,
    /// Why, where something other than the connection's own end is the reason.
    given_up: OnceLock<(CloseReason, &'static str)>,
}

/// Bytes that are under way, and whether somebody waits for their being fewer.
#[derive(Debug, Default)]
struct Outstanding {
    bytes: AtomicUsize,
    /// Whether an owner thread was turned away for want of room.
    turned_away: AtomicBool,
}

impl Outstanding {
    /// True when nothing was under way.
    fn add(&self, bytes: usize) -> bool {
        self.bytes.fetch_add(bytes, Ordering::AcqRel) == 0 && bytes > 0
    }

    fn has_room(&self, cap: usize) -> bool {
        if self.bytes.load(Ordering::Acquire) < cap {
            return true;
        }
        self.turned_away.store(true, Ordering::Release);
        // Room may have come between the two steps; then nobody else would say so.
        self.bytes.load(Ordering::Acquire) < cap
    }

    /// How many are left.
    fn remove(&self, bytes: usize) -> usize {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        before.saturating_sub(bytes)
    }

    /// True when those who were turned away should come again.
    fn is_awaited(&self, left: usize, cap: usize) -> bool {
        left <= cap / 2 && self.turned_away.swap(false, Ordering::AcqRel)
    }
}

impl FollowerChannel {
    /// The channel, and the queue of encoded control messages that the connection's task writes out.
    pub(super) fn new(
        id: u64,
        peer: Appointment,
        live: Vec<LaneWriter>,
        catch_up: Vec<LaneWriter>,
        share: Arc<CatchUpShare>,
    ) -> (FollowerChannel, mpsc::Receiver<Bytes>) {
        let (control, messages) = mpsc::channel(MAX_WAITING_CONTROL_MESSAGES);
        let channel = FollowerChannel {
            id,
            peer,
            control,
            live,
            catch_up,
            outstanding: Outstanding::default(),
            catching_up: Outstanding::default(),
            share,
            catch_up_for_distance: AtomicUsize::new(0),
            broken: CancellationToken::new(),
            given_up: OnceLock::new(),
        };
        (channel, messages)
    }

    /// Has the connection closed, with the reason that its peer is told. The first one counts.
    pub(super) fn give_up(&self, reason: CloseReason, cause: &'static str) {
        let _ = self.given_up.set((reason, cause));
        self.broken.cancel();
    }

    pub(super) fn why_given_up(&self) -> (CloseReason, &'static str) {
        let unknown = (CloseReason::InternalError, "the connection was given up");
        self.given_up.get().copied().unwrap_or(unknown)
    }

    /// Sends a control message, or breaks the connection if too many wait already.
    pub(super) fn send_control(&self, message: &ControlMessage) {
        let sent = self.control.try_send(message.encode());
        // A queue that is closed belongs to a connection that has just ended.
        if let Err(TrySendError::Full(_)) = sent
            && !self.broken.is_cancelled()
        {
            tracing::warn!(
                follower = %self.peer.node,
                "closing the replication connection: the follower does not read its control messages"
            );
            let cause = "too many control messages wait to be read";
            self.give_up(CloseReason::Overloaded, cause);
        }
    }

    /// Whether another order may go out. If not, [`FollowerChannel::release`] or [`FollowerChannel::takes_turned_away`] will say when
    /// there is room again.
    pub(super) fn has_room(&self, sending: Sending) -> bool {
        let window = match sending {
            Sending::Live => None,
            Sending::CatchUp if self.share.is_held_back() => Some(0),
            Sending::CatchUp | Sending::NeededCatchUp => Some(self.catch_up_window()),
        };
        self.outstanding.has_room(FOLLOWER_BUDGET_BYTES)
            && window.is_none_or(|window| self.catching_up.has_room(window))
    }

    /// Frame bytes that were sent and not acknowledged as durable.
    pub(super) fn under_way(&self) -> usize {
        self.outstanding.bytes.load(Ordering::Relaxed)
    }

    /// True when somebody who wanted to send catch-up frames was turned away, and should come again: asked where they are held back
    /// no longer.
    pub(super) fn takes_turned_away(&self) -> bool {
        self.catching_up.turned_away.swap(false, Ordering::AcqRel)
    }

    /// How many bytes of catch-up frames may be under way, unless they are held back.
    fn catch_up_window(&self) -> usize {
        let distance = self.catch_up_for_distance.load(Ordering::Relaxed);
        self.share.bytes_each().saturating_add(distance)
    }

    fn count(&self, bytes: usize, catch_up: bool) {
        self.outstanding.add(bytes);
        if catch_up && self.catching_up.add(bytes) {
            self.share.followers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives back `bytes` of room, of which `catch_up` were for catch-up frames. True when threads that were turned away should be
    /// told.
    pub(super) fn release(&self, bytes: usize, catch_up: usize) -> bool {
        let left = self.outstanding.remove(bytes);
        let room_for_all = self.outstanding.is_awaited(left, FOLLOWER_BUDGET_BYTES);
        let left = self.catching_up.remove(catch_up);
        if left == 0 && catch_up > 0 {
            self.share.followers.fetch_sub(1, Ordering::Relaxed);
        }
        let window = self.catch_up_window();
        room_for_all || self.catching_up.is_awaited(left, window)
    }

    /// What is under way to a follower so far off must be acknowledged before more is sent.
    pub(super) fn note_round_trip(&self, round_trip: Duration) {
        let bytes = round_trip.as_secs_f64() * CATCH_UP_BYTES_PER_SECOND;
        let bytes = (bytes as usize).min(FOLLOWER_BUDGET_BYTES);
        self.catch_up_for_distance.store(bytes, Ordering::Relaxed);
    }

    /// Answers a hello: a refusal on the control stream, anything else in front of the session's first frames.
    pub(super) fn send_answer(
        &self,
        id: TopicPartition,
        answer: SessionAnswer,
        catch_up: bool,
        high_watermark: Offset,
    ) {
        if matches!(answer.outcome, SessionOutcome::Refused(_)) {
            self.send_control(&ControlMessage::SessionAnswer(answer));
            return;
        }
        let message = LaneMessage::encode_answer(&answer, high_watermark);
        self.push(id, catch_up, [message]);
    }

    fn push(&self, id: TopicPartition, catch_up: bool, pieces: impl IntoIterator<Item = Bytes>) {
        let lanes = if catch_up { &self.catch_up } else { &self.live };
        let Some(lane) = lanes.get(lane_of(id, lanes.len())) else {
            return;
        };
        for piece in pieces {
            if lane.try_push(piece).is_err() {
                // The budget keeps the lanes from filling, so a refusal means that the stream is gone.
                self.give_up(CloseReason::ProtocolError, "a lane has ended");
                return;
            }
        }
    }

    /// Puts frames on their partition's lane.
    pub(super) fn send_frames(&self, id: TopicPartition, frames: Frames) {
        self.count(frames.bytes, frames.catch_up);
        let header = LaneMessage::encode_header(
            frames.session,
            frames.leader_epoch,
            frames.high_watermark,
            frames.bytes,
        );
        // Small frames are gathered with their header: the lane would copy them together anyway, and a queued piece has a
        // price of its own.
        let pieces = if frames.bytes < COALESCE_BELOW {
            let mut message = BytesMut::with_capacity(header.len() + frames.bytes);
            message.extend_from_slice(&header);
            for frame in &frames.frames {
                message.extend_from_slice(frame);
            }
            vec![message.freeze()]
        } else {
            let mut pieces = frames.frames;
            pieces.insert(0, header);
            pieces
        };
        self.push(id, frames.catch_up, pieces);
    }
}

impl Drop for FollowerChannel {
    fn drop(&mut self) {
        if *self.catching_up.bytes.get_mut() > 0 {
            self.share.followers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The lane that a partition's frames take: always the same, so that they stay in order; spread, so that a lost packet
/// holds up few partitions.
fn lane_of(id: TopicPartition, lanes: usize) -> usize {
    // Neighbouring partitions of a topic take neighbouring lanes, so that a few partitions already use them all.
    let topic = id.topic.to_bits();
    let folded = (topic as u64) ^ ((topic >> 64) as u64);
    (folded.wrapping_add(u64::from(id.partition.0)) % lanes.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DirectoryId, Incarnation, NodeId};

    fn channel(share: &Arc<CatchUpShare>) -> FollowerChannel {
        let peer = Appointment {
            node: NodeId::new(2).unwrap(),
            directory: DirectoryId::from_random_bits(2),
            incarnation: Incarnation::from_random_bits(2),
        };
        FollowerChannel::new(1, peer, Vec::new(), Vec::new(), share.clone()).0
    }

    #[test]
    fn catch_up_frames_leave_live_frames_room_and_wait_for_their_own() {
        let channel = channel(&Arc::default());
        channel.count(CATCH_UP_BYTES, true);
        assert!(channel.has_room(Sending::Live));
        assert!(!channel.has_room(Sending::CatchUp));
        // What live frames free is no room for those who catch up.
        channel.count(1000, false);
        assert!(!channel.release(1000, 0));
        assert!(!channel.release(1000, 1000));
        assert!(channel.release(CATCH_UP_BYTES / 2, CATCH_UP_BYTES / 2));
        assert!(channel.has_room(Sending::CatchUp));
        // Nobody was turned away since.
        assert!(!channel.release(1000, 1000));
    }

    #[test]
    fn a_follower_far_off_may_have_more_under_way_and_never_more_than_the_budget() {
        let channel = channel(&Arc::default());
        channel.count(CATCH_UP_BYTES, true);
        assert!(!channel.has_room(Sending::CatchUp));
        channel.note_round_trip(Duration::from_millis(100));
        assert!(channel.has_room(Sending::CatchUp));
        channel.count(12_500_000, true);
        assert!(!channel.has_room(Sending::CatchUp));
        channel.note_round_trip(Duration::from_secs(3600));
        assert!(channel.has_room(Sending::CatchUp));
        channel.count(FOLLOWER_BUDGET_BYTES, true);
        assert!(!channel.has_room(Sending::CatchUp));
        assert!(!channel.has_room(Sending::Live));
    }

    #[test]
    fn who_catches_up_is_held_back_while_anybody_says_so_and_then_told() {
        let share = Arc::default();
        let channel = channel(&share);
        assert!(!share.is_used());
        channel.count(1000, true);
        assert!(share.is_used());
        share.hold_back();
        share.hold_back();
        assert!(channel.has_room(Sending::Live));
        assert!(channel.has_room(Sending::NeededCatchUp));
        assert!(!channel.has_room(Sending::CatchUp));
        share.let_go();
        assert!(!channel.has_room(Sending::CatchUp));
        share.let_go();
        assert!(channel.takes_turned_away());
        assert!(!channel.takes_turned_away());
        assert!(channel.has_room(Sending::CatchUp));
        // What is needed has a window too, and is told when there is room in it.
        share.hold_back();
        channel.count(CATCH_UP_BYTES, true);
        assert!(!channel.has_room(Sending::NeededCatchUp));
        assert!(channel.release(CATCH_UP_BYTES, CATCH_UP_BYTES));
        assert!(channel.has_room(Sending::NeededCatchUp));
    }

    #[test]
    fn followers_that_catch_up_at_a_time_share_the_room_and_each_has_some() {
        let share = Arc::default();
        let first = channel(&share);
        first.count(CATCH_UP_BYTES / 2, true);
        assert!(first.has_room(Sending::CatchUp));
        // Another begins; live frames alone would not count.
        let second = channel(&share);
        second.count(CATCH_UP_BYTES, false);
        assert!(first.has_room(Sending::CatchUp));
        second.count(1, true);
        assert!(!first.has_room(Sending::CatchUp));
        assert!(second.has_room(Sending::CatchUp));
        // It is done, or gone.
        second.release(1, 1);
        assert!(first.has_room(Sending::CatchUp));
        second.count(1, true);
        assert!(!first.has_room(Sending::CatchUp));
        drop(second);
        assert!(first.has_room(Sending::CatchUp));

        let many: Vec<_> = (0..100).map(|_| channel(&share)).collect();
        for follower in &many {
            follower.count(CATCH_UP_BYTES_EACH - 1, true);
        }
        assert!(
            many.iter()
                .all(|follower| follower.has_room(Sending::CatchUp))
        );
        many[0].count(1, true);
        assert!(!many[0].has_room(Sending::CatchUp));
    }
}
