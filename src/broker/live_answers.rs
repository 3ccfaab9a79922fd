//! Whether those who produce wait longer for their answers than they usually do: then followers that catch up are held back.
//!
//! Catch-up takes what it is given, on the leader and on the follower alike: disks, processors, the link. Its own window bounds
//! what is before a live frame at any moment, and not what all of it does to a machine that has too little of something. The
//! answers tell, whatever it is that has become short.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use crate::replication::ProduceTicket;
use crate::types::{MonotonicTime, TopicPartition};

/// An answer that took no longer than this is never late.
const NEVER_LATE: Duration = Duration::from_millis(20);
/// An answer is late after so many times its usual time.
const LATE_AFTER: u32 = 3;
/// Whoever has waited for this long waits for something else, and it may be those who catch up: they are held back no longer for
/// it, until its partition has answered again.
const HELD_BACK_FOR: Duration = Duration::from_millis(100);
/// The weight of one answer in the usual time is 1 / 32.
const WEIGHT: u32 = 32;
/// For each look at the clock during which followers are held back the usual time rises by 1 / 50: nobody is held back for good
/// where there is more to do than before.
const YIELD: u32 = 50;

/// The answers of one owner thread to `acks=all`.
#[derive(Debug, Default)]
pub(super) struct LiveAnswers {
    /// Who was asked, oldest first; those who have been answered since are taken out where they come to the front. At most the requests
    /// of [`HELD_BACK_FOR`], since who is older is taken out at each look.
    waiting: VecDeque<(ProduceTicket, TopicPartition, MonotonicTime)>,
    /// Partitions that have let somebody wait for longer than [`HELD_BACK_FOR`], and have not answered since. At most those which
    /// are led here.
    stuck: HashSet<TopicPartition>,
    /// How long an answer takes; none before the first.
    usual: Option<Duration>,
    /// As they were told last.
    held_back: bool,
}

impl LiveAnswers {
    pub(super) fn handle_asked(
        &mut self,
        now: MonotonicTime,
        ticket: ProduceTicket,
        id: TopicPartition,
    ) {
        self.waiting.push_back((ticket, id, now));
    }

    /// A request was acknowledged after `waited`. `undisturbed` while nobody catches up: only then may the usual time grow with it.
    pub(super) fn handle_answered(
        &mut self,
        id: TopicPartition,
        waited: Duration,
        undisturbed: bool,
    ) {
        self.stuck.remove(&id);
        let usual = self.usual.unwrap_or(waited);
        if undisturbed || waited <= usual {
            self.usual = Some((usual * (WEIGHT - 1) + waited) / WEIGHT);
        }
    }

    /// Nothing that is known of a partition holds any longer: it has left this thread.
    pub(super) fn forget(&mut self, id: TopicPartition) {
        self.stuck.remove(&id);
        self.waiting.retain(|(_, of, _)| *of != id);
    }

    /// Whether those who catch up are to be held back now. `is_waiting` says who has no answer yet.
    pub(super) fn are_late(
        &mut self,
        now: MonotonicTime,
        is_waiting: impl Fn(ProduceTicket) -> bool,
    ) -> bool {
        while let Some(&(ticket, id, since)) = self.waiting.front() {
            if is_waiting(ticket) && !self.stuck.contains(&id) {
                let waited = now.since(since);
                if waited <= HELD_BACK_FOR {
                    self.held_back = waited > self.late_after();
                    return self.held_back;
                }
                self.stuck.insert(id);
            }
            self.waiting.pop_front();
        }
        self.held_back = false;
        false
    }

    /// Time has passed, the length of a tick.
    pub(super) fn handle_tick(&mut self) {
        if self.held_back
            && let Some(usual) = &mut self.usual
        {
            *usual += *usual / YIELD;
        }
    }

    fn late_after(&self) -> Duration {
        // Without a measure there is nothing to be later than.
        let usual = self.usual.unwrap_or(HELD_BACK_FOR);
        (usual * LATE_AFTER).max(NEVER_LATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PartitionIndex, TopicId};

    fn partition(index: u32) -> TopicPartition {
        TopicPartition {
            topic: TopicId::from_random_bits(1),
            partition: PartitionIndex(index),
        }
    }

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::ZERO + Duration::from_millis(ms)
    }

    /// Used to answers of `ms`.
    fn used_to(ms: u64) -> LiveAnswers {
        let mut answers = LiveAnswers::default();
        for _ in 0..1000 {
            answers.handle_answered(partition(0), Duration::from_millis(ms), true);
        }
        answers
    }

    fn everybody(_: ProduceTicket) -> bool {
        true
    }

    #[test]
    fn an_answer_is_late_by_what_is_usual_on_its_link() {
        for (usual, not_yet, late) in [(1, 20, 21), (10, 30, 32), (30, 90, 94)] {
            let mut answers = used_to(usual);
            answers.handle_asked(at(0), ProduceTicket(1), partition(0));
            assert!(!answers.are_late(at(not_yet), everybody), "{usual}");
            assert!(answers.are_late(at(late), everybody), "{usual}");
            assert!(!answers.are_late(at(late), |_| false), "answered: {usual}");
        }
        // Where answers take a fifth of a second, nobody is held back: it would be for each answer.
        let mut answers = used_to(200);
        answers.handle_asked(at(0), ProduceTicket(1), partition(0));
        for ms in 0..300 {
            assert!(!answers.are_late(at(ms), everybody));
        }
    }

    #[test]
    fn before_the_first_answer_nothing_is_late() {
        let mut answers = LiveAnswers::default();
        answers.handle_asked(at(0), ProduceTicket(1), partition(0));
        for ms in 0..300 {
            assert!(!answers.are_late(at(ms), everybody));
        }
    }

    #[test]
    fn who_waits_for_something_else_holds_nobody_back_until_its_partition_answers_again() {
        let mut answers = used_to(1);
        answers.handle_asked(at(0), ProduceTicket(1), partition(0));
        answers.handle_asked(at(70), ProduceTicket(2), partition(0));
        assert!(answers.are_late(at(100), everybody));
        assert!(!answers.are_late(at(101), everybody));
        answers.handle_asked(at(110), ProduceTicket(3), partition(0));
        // Others of the thread still count.
        answers.handle_asked(at(111), ProduceTicket(4), partition(1));
        assert!(!answers.are_late(at(130), everybody));
        assert!(answers.are_late(at(132), everybody));
        assert!(!answers.are_late(at(132), |ticket| ticket != ProduceTicket(4)));
        // It has answered: what is asked from now on counts.
        answers.handle_answered(partition(0), Duration::from_millis(200), false);
        answers.handle_asked(at(200), ProduceTicket(5), partition(0));
        assert!(answers.are_late(at(221), everybody));
        answers.forget(partition(0));
        assert!(!answers.are_late(at(222), everybody));
    }

    #[test]
    fn what_is_usual_is_not_learnt_from_those_who_are_disturbed_but_yields_with_time() {
        let mut answers = used_to(10);
        for _ in 0..1000 {
            answers.handle_answered(partition(0), Duration::from_millis(80), false);
        }
        answers.handle_asked(at(0), ProduceTicket(1), partition(0));
        assert!(answers.are_late(at(40), everybody));
        for _ in 0..35 {
            answers.handle_tick();
        }
        assert!(!answers.are_late(at(40), everybody), "twice as much by now");
        // Nobody is held back, so it rises no further.
        for _ in 0..1000 {
            answers.handle_tick();
        }
        assert!(answers.are_late(at(70), everybody));
        for _ in 0..1000 {
            answers.handle_answered(partition(0), Duration::from_millis(10), false);
        }
        assert!(answers.are_late(at(40), everybody));
    }
}
