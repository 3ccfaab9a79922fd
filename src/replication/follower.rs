//! A follower of one partition.

use std::collections::VecDeque;
use std::time::Duration;

use thiserror::Error;

use crate::types::{
    EpochHistory, LeaderEpoch, LogPosition, MonotonicTime, NodeId, Offset, SessionId,
};
use crate::wal::Frame;
use crate::wire::{Ack, ProducerSnapshot, SessionAnswer, SessionOutcome, SessionRefusal};

/// How long a hello may go unanswered on a live connection before another is sent. It doubles with each that does, up to
/// [`MAX_ANSWER_TIMEOUT`], because a younger one has the same way before it and takes the older one's answer away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_ANSWER_TIMEOUT: Duration = Duration::from_secs(24);
/// The first pause after a refusal; it doubles up to [`MAX_RETRY_PAUSE`]. The link adds jitter to its own redials; these
/// retries are spread by the refusals' own arrival.
const FIRST_RETRY_PAUSE: Duration = Duration::from_millis(50);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowerAction {
    /// Send a hello for this partition under `session`, with the log's durable end and epochs.
    OpenSession {
        session: SessionId,
        /// Whether the leader has asked for the whole epoch history.
        all_epochs: bool,
    },
    /// Cut the log here, make the cut durable, then call [`Follower::handle_truncated`].
    Truncate { to: LogPosition },
    /// Drop the whole log and begin here, make it durable, then call [`Follower::handle_truncated`].
    Reset {
        start: LogPosition,
        epochs: EpochHistory,
        producers: ProducerSnapshot,
    },
    /// Acknowledge to the leader.
    Ack(Ack),
    /// The high watermark has risen.
    WatermarkMoved,
}

/// Where a follower stands with its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// No connection to the leader.
    Disconnected,
    /// A refusal came; the next hello is due at `until`.
    Pausing { until: MonotonicTime },
    /// A hello is out. From here to its answer no frame is accepted: it would belong to an older session.
    Opening {
        session: SessionId,
        since: MonotonicTime,
    },
    /// The answer came and the log is being cut to it.
    Truncating { session: SessionId },
    /// Frames of this session are accepted.
    Streaming { session: SessionId },
}

/// Frames that this follower does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FramesRefused {
    /// Of another session or epoch: left over from the past, harmless.
    #[error("the frames are of another session or leader epoch")]
    Stale,
    /// They do not follow the log's end. The session has been opened anew.
    #[error("a frame that begins at {start} does not fit a log that ends at {end}")]
    DoesNotFit {
        start: LogPosition,
        end: LogPosition,
    },
}

/// One partition's follower, under one leader epoch.
#[derive(Debug)]
pub struct Follower {
    leader: NodeId,
    epoch: LeaderEpoch,
    session: SessionState,
    /// The next session's id; the caller gives each follower a range of its own.
    next_session: u64,
    pause: Duration,
    /// For how long an answer is waited for on this connection.
    answer_timeout: Duration,
    /// The end of the log, durable or not.
    end: LogPosition,
    /// The end of what is durable. At or below `end`. Nothing above it is ever acknowledged.
    durable: LogPosition,
    /// The last ack sent in this session, so that an idle tick repeats nothing.
    acknowledged: Option<Ack>,
    /// As far as the leader has said, and never above this log's durable end. Never falls.
    high_watermark: Offset,
    /// The highest watermark that the leader has told. Ahead of `high_watermark` while the records below it are not durable
    /// here yet.
    told_watermark: Offset,
    all_epochs: bool,
    /// Drained by the caller after every call; a call adds a few at most.
    actions: VecDeque<FollowerAction>,
}

impl Follower {
    /// Begins to follow. The caller has raised and persisted the promise to `epoch` before it lets any hello out.
    /// `first_session` begins a range of 2³² ids that no other follower of this process uses.
    pub fn new(
        leader: NodeId,
        epoch: LeaderEpoch,
        end: LogPosition,
        durable: LogPosition,
        high_watermark: Offset,
        first_session: u64,
    ) -> Follower {
        Follower {
            leader,
            epoch,
            session: SessionState::Disconnected,
            next_session: first_session,
            pause: FIRST_RETRY_PAUSE,
            answer_timeout: ANSWER_TIMEOUT,
            end,
            durable,
            acknowledged: None,
            high_watermark,
            told_watermark: high_watermark,
            all_epochs: false,
            actions: VecDeque::new(),
        }
    }

    pub fn poll_action(&mut self) -> Option<FollowerAction> {
        self.actions.pop_front()
    }

    pub fn leader(&self) -> NodeId {
        self.leader
    }

    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    pub fn session(&self) -> SessionState {
        self.session
    }

    /// The session id to go on from, should this node follow again.
    pub fn next_session(&self) -> u64 {
        self.next_session
    }

    /// There is a connection to the leader.
    pub fn handle_connected(&mut self, now: MonotonicTime) {
        self.pause = FIRST_RETRY_PAUSE;
        self.answer_timeout = ANSWER_TIMEOUT;
        self.open(now);
    }

    /// The connection to the leader is gone, and every session on it.
    pub fn handle_disconnected(&mut self) {
        self.session = SessionState::Disconnected;
    }

    /// The session is opened anew, where there is one: the leader must hear something that only a hello says.
    pub fn reopen(&mut self, now: MonotonicTime) {
        if !matches!(
            self.session,
            SessionState::Disconnected | SessionState::Pausing { .. }
        ) {
            self.open(now);
        }
    }

    /// The leader has answered a hello.
    pub fn handle_answer(&mut self, now: MonotonicTime, answer: &SessionAnswer) {
        if let SessionOutcome::Refused(refusal) = answer.outcome {
            // Also of a session that had begun: the leader cannot go on with it.
            self.handle_session_closed(now, answer.session, refusal);
            return;
        }
        let SessionState::Opening { session, .. } = self.session else {
            return;
        };
        if answer.session != session {
            return;
        }
        if answer.leader_epoch != self.epoch {
            self.handle_refused(now, SessionRefusal::NotLeader);
            return;
        }
        self.session = SessionState::Truncating { session };
        self.actions.push_back(match &answer.outcome {
            SessionOutcome::Reset {
                start,
                epochs,
                producers,
            } => {
                // A leader's log start is never above its high watermark.
                self.told_watermark = self.told_watermark.max(start.offset);
                FollowerAction::Reset {
                    start: *start,
                    epochs: epochs.clone(),
                    producers: producers.clone(),
                }
            }
            SessionOutcome::Truncate(to) => FollowerAction::Truncate { to: *to },
            SessionOutcome::Refused(_) => return,
        });
    }

    /// The leader has closed a session.
    pub fn handle_session_closed(
        &mut self,
        now: MonotonicTime,
        closed: SessionId,
        reason: SessionRefusal,
    ) {
        let current = match self.session {
            SessionState::Opening { session, .. }
            | SessionState::Truncating { session }
            | SessionState::Streaming { session } => session == closed,
            SessionState::Disconnected | SessionState::Pausing { .. } => false,
        };
        if current {
            self.handle_refused(now, reason);
        }
    }

    fn handle_refused(&mut self, now: MonotonicTime, refusal: SessionRefusal) {
        if refusal == SessionRefusal::NeedOlderEpochs && !self.all_epochs {
            self.all_epochs = true;
            self.open(now);
            return;
        }
        self.session = SessionState::Pausing {
            until: now + self.pause,
        };
        self.pause = (self.pause * 2).min(MAX_RETRY_PAUSE);
    }

    /// The log was cut as the answer asked: where it ends now, and up to where it is durable.
    pub fn handle_truncated(&mut self, end: LogPosition, durable: LogPosition) {
        let SessionState::Truncating { session } = self.session else {
            return;
        };
        self.session = SessionState::Streaming { session };
        self.pause = FIRST_RETRY_PAUSE;
        self.all_epochs = false;
        self.end = end;
        self.durable = durable;
        self.acknowledged = None;
        self.acknowledge();
        self.advance_high_watermark();
    }

    /// Frames have come. Returns those to append, in order: true duplicates are skipped, and acknowledged again. After the
    /// append the caller calls [`Follower::handle_appended`]. `epochs` is the log's own history.
    pub fn handle_frames(
        &mut self,
        now: MonotonicTime,
        session: SessionId,
        epoch: LeaderEpoch,
        frames: Vec<Frame>,
        epochs: &EpochHistory,
    ) -> Result<Vec<Frame>, FramesRefused> {
        if self.session != (SessionState::Streaming { session }) || epoch != self.epoch {
            return Err(FramesRefused::Stale);
        }
        let mut end = self.end;
        let mut fitting = Vec::with_capacity(frames.len());
        let mut duplicates = false;
        for frame in frames {
            if frame.start() == end && frame.leader_epoch() <= self.epoch {
                end = frame.end();
                fitting.push(frame);
            } else if fitting.is_empty() && self.holds(&frame, epochs) {
                duplicates = true;
            } else {
                let refused = FramesRefused::DoesNotFit {
                    start: frame.start(),
                    end,
                };
                self.open(now);
                return Err(refused);
            }
        }
        if duplicates {
            self.acknowledged = None;
            self.acknowledge();
        }
        Ok(fitting)
    }

    /// Whether this very frame is in the log: the epoch that wrote its offset here is its own. An epoch start, which has no
    /// record of its own, is here if its epoch starts at its offset.
    fn holds(&self, frame: &Frame, epochs: &EpochHistory) -> bool {
        if frame.is_epoch_start() {
            return epochs.start_of(frame.leader_epoch()) == Some(frame.base_offset());
        }
        frame.end_offset() <= self.end.offset
            && epochs.epoch_of(frame.base_offset()) == Some(frame.leader_epoch())
    }

    /// The frames that were to be appended could not be, for want of room. The session is given up, and another opened after
    /// the longest pause: room does not come back at once.
    pub fn handle_append_failed(&mut self, now: MonotonicTime) {
        self.session = SessionState::Pausing {
            until: now + MAX_RETRY_PAUSE,
        };
    }

    /// The frames that were to be appended are in the log, up to `end`, not yet durable.
    pub fn handle_appended(&mut self, end: LogPosition) {
        self.end = end;
    }

    /// The log is durable up to `durable`: acknowledges it.
    pub fn handle_durable(&mut self, durable: LogPosition) {
        self.durable = durable.min(self.end);
        self.acknowledge();
        self.advance_high_watermark();
    }

    /// The leader has said its high watermark, with frames or alone.
    pub fn handle_watermark(&mut self, session: SessionId, high_watermark: Offset) {
        if self.session == (SessionState::Streaming { session }) {
            self.told_watermark = self.told_watermark.max(high_watermark);
            self.advance_high_watermark();
        }
    }

    /// What was committed above `offset` is lost: an operator forced a leader that did not have it. The only way in which the
    /// watermark falls.
    pub fn forget_watermark(&mut self, offset: Offset) {
        self.high_watermark = self.high_watermark.min(offset);
        self.told_watermark = self.told_watermark.min(offset);
    }

    /// Above the durable end the watermark would speak of records that a reader of this directory may not find after a crash.
    /// From a hello to its answer it stands still: the answer cuts the log to what the hello said was durable, and what has
    /// become durable since is committed elsewhere but not kept here.
    fn advance_high_watermark(&mut self) {
        if matches!(
            self.session,
            SessionState::Opening { .. } | SessionState::Truncating { .. }
        ) {
            return;
        }
        let known = self.told_watermark.min(self.durable.offset);
        if known > self.high_watermark {
            self.high_watermark = known;
            self.actions.push_back(FollowerAction::WatermarkMoved);
        }
    }

    /// Time passes: a pause may end, an answer may be overdue.
    pub fn handle_tick(&mut self, now: MonotonicTime) {
        match self.session {
            SessionState::Pausing { until } if now >= until => self.open(now),
            SessionState::Opening { since, .. } if now.since(since) >= self.answer_timeout => {
                self.answer_timeout = (self.answer_timeout * 2).min(MAX_ANSWER_TIMEOUT);
                self.open(now);
            }
            _ => {}
        }
    }

    fn open(&mut self, now: MonotonicTime) {
        let session = SessionId::from_random_bits(self.next_session);
        self.next_session += 1;
        self.session = SessionState::Opening {
            session,
            since: now,
        };
        self.actions.push_back(FollowerAction::OpenSession {
            session,
            all_epochs: self.all_epochs,
        });
    }

    fn acknowledge(&mut self) {
        let SessionState::Streaming { session } = self.session else {
            return;
        };
        let ack = Ack {
            session,
            leader_epoch: self.epoch,
            durable: self.durable,
            received: self.end.offset,
        };
        if self.acknowledged != Some(ack) {
            self.acknowledged = Some(ack);
            self.actions.push_back(FollowerAction::Ack(ack));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::EpochEntry;

    const LEADER: NodeId = NodeId::new(1).unwrap();
    const EPOCH: LeaderEpoch = LeaderEpoch::new(2).unwrap();

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::ZERO + Duration::from_millis(millis)
    }

    fn position(offset: u64, epoch: u32) -> LogPosition {
        LogPosition::new(
            Offset::new(offset).unwrap(),
            LeaderEpoch::new(epoch).unwrap(),
        )
    }

    fn history(entries: &[(u32, u64)]) -> EpochHistory {
        let entry = |&(epoch, start): &(u32, u64)| EpochEntry {
            epoch: LeaderEpoch::new(epoch).unwrap(),
            start: Offset::new(start).unwrap(),
        };
        entries
            .iter()
            .map(entry)
            .collect::<Vec<_>>()
            .try_into()
            .unwrap()
    }

    fn frame(previous: LogPosition, end: u64) -> Frame {
        Frame::records(EPOCH, previous, Offset::new(end).unwrap(), &[b"batch"])
    }

    fn actions(follower: &mut Follower) -> Vec<FollowerAction> {
        std::iter::from_fn(|| follower.poll_action()).collect()
    }

    /// A follower with five records of epoch 1 and a hello out under session 100.
    fn opening() -> Follower {
        let mut follower = Follower::new(
            LEADER,
            EPOCH,
            position(5, 1),
            position(5, 1),
            Offset::ZERO,
            100,
        );
        follower.handle_connected(at(0));
        follower
    }

    fn answer(follower: &mut Follower, session: u64, to: LogPosition) {
        follower.handle_answer(
            at(1),
            &SessionAnswer {
                session: SessionId::from_random_bits(session),
                leader_epoch: EPOCH,
                outcome: SessionOutcome::Truncate(to),
            },
        );
    }

    fn streaming() -> Follower {
        let mut follower = opening();
        answer(&mut follower, 100, position(5, 1));
        follower.handle_truncated(position(5, 1), position(5, 1));
        actions(&mut follower);
        follower
    }

    fn receive(
        follower: &mut Follower,
        session: u64,
        frames: Vec<Frame>,
    ) -> Result<usize, FramesRefused> {
        let session = SessionId::from_random_bits(session);
        let epochs = history(&[(1, 0), (2, 5)]);
        let fitting = follower.handle_frames(at(2), session, EPOCH, frames, &epochs)?;
        if let Some(last) = fitting.last() {
            follower.handle_appended(last.end());
        }
        Ok(fitting.len())
    }

    fn acks(follower: &mut Follower) -> Vec<LogPosition> {
        actions(follower)
            .into_iter()
            .filter_map(|action| match action {
                FollowerAction::Ack(ack) => Some(ack.durable),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn from_hello_to_answer_no_frame_is_taken() {
        let mut follower = opening();
        let start = Frame::epoch_start(EPOCH, position(5, 1));
        assert_eq!(
            receive(&mut follower, 100, vec![start.clone()]),
            Err(FramesRefused::Stale)
        );
        answer(&mut follower, 99, position(5, 1));
        assert_eq!(
            receive(&mut follower, 100, vec![start.clone()]),
            Err(FramesRefused::Stale),
            "an answer to another hello is none"
        );
        answer(&mut follower, 100, position(5, 1));
        follower.handle_truncated(position(5, 1), position(5, 1));
        assert_eq!(receive(&mut follower, 100, vec![start]), Ok(1));
    }

    #[test]
    fn nothing_is_acknowledged_before_it_is_durable() {
        let mut follower = streaming();
        let start = Frame::epoch_start(EPOCH, position(5, 1));
        receive(&mut follower, 100, vec![start, frame(position(5, 2), 7)]).unwrap();
        assert_eq!(acks(&mut follower), []);
        follower.handle_durable(position(5, 2));
        follower.handle_durable(position(7, 2));
        assert_eq!(acks(&mut follower), [position(5, 2), position(7, 2)]);
    }

    #[test]
    fn a_duplicate_is_skipped_and_acknowledged_again() {
        let mut follower = streaming();
        let start = Frame::epoch_start(EPOCH, position(5, 1));
        let records = frame(position(5, 2), 7);
        receive(&mut follower, 100, vec![start.clone(), records.clone()]).unwrap();
        follower.handle_durable(position(7, 2));
        actions(&mut follower);
        assert_eq!(receive(&mut follower, 100, vec![start, records]), Ok(0));
        assert_eq!(acks(&mut follower), [position(7, 2)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_session_opened_anew() {
        let mut follower = streaming();
        // The epoch start is missing: the offset fits, the epoch does not.
        let gap = receive(&mut follower, 100, vec![frame(position(5, 2), 7)]);
        assert!(matches!(gap, Err(FramesRefused::DoesNotFit { .. })));
        assert!(matches!(
            follower.session(),
            SessionState::Opening { session, .. } if session == SessionId::from_random_bits(101)
        ));
    }

    #[test]
    fn the_watermark_follows_what_is_durable_here() {
        let mut follower = streaming();
        let start = Frame::epoch_start(EPOCH, position(5, 1));
        receive(&mut follower, 100, vec![start, frame(position(5, 2), 7)]).unwrap();
        let session = SessionId::from_random_bits(100);
        follower.handle_watermark(session, Offset::new(7).unwrap());
        assert_eq!(follower.high_watermark().get(), 5);
        follower.handle_durable(position(7, 2));
        assert_eq!(follower.high_watermark().get(), 7);
        follower.handle_watermark(session, Offset::new(3).unwrap());
        assert_eq!(follower.high_watermark().get(), 7);
    }

    #[test]
    fn a_refusal_is_retried_after_a_growing_pause() {
        let mut follower = opening();
        actions(&mut follower);
        let mut now = at(0);
        let mut pauses = Vec::new();
        for session in 100..106 {
            follower.handle_answer(
                now,
                &SessionAnswer {
                    session: SessionId::from_random_bits(session),
                    leader_epoch: EPOCH,
                    outcome: SessionOutcome::Refused(SessionRefusal::UnknownPartition),
                },
            );
            let SessionState::Pausing { until } = follower.session() else {
                panic!("a refusal pauses");
            };
            pauses.push(until.since(now).as_millis());
            now = until;
            follower.handle_tick(now);
            assert_eq!(actions(&mut follower).len(), 1, "one hello after a pause");
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000]);
    }

    #[test]
    fn an_unanswered_hello_is_sent_again() {
        let mut follower = opening();
        actions(&mut follower);
        follower.handle_tick(at(2999));
        assert_eq!(actions(&mut follower), []);
        follower.handle_tick(at(3000));
        assert_eq!(actions(&mut follower).len(), 1);
        // The next one has more time, up to a limit, until another connection stands.
        let mut now = 3000;
        for waits in [6000, 12_000, 24_000, 24_000] {
            follower.handle_tick(at(now + waits - 1));
            assert_eq!(actions(&mut follower), [], "{waits}");
            now += waits;
            follower.handle_tick(at(now));
            assert_eq!(actions(&mut follower).len(), 1, "{waits}");
        }
        follower.handle_disconnected();
        follower.handle_connected(at(now));
        actions(&mut follower);
        follower.handle_tick(at(now + 3000));
        assert_eq!(actions(&mut follower).len(), 1);
    }

    #[test]
    fn a_short_history_is_sent_whole_when_asked_for() {
        let mut follower = opening();
        actions(&mut follower);
        follower.handle_answer(
            at(0),
            &SessionAnswer {
                session: SessionId::from_random_bits(100),
                leader_epoch: EPOCH,
                outcome: SessionOutcome::Refused(SessionRefusal::NeedOlderEpochs),
            },
        );
        assert_eq!(
            actions(&mut follower),
            [FollowerAction::OpenSession {
                session: SessionId::from_random_bits(101),
                all_epochs: true
            }]
        );
    }
}
