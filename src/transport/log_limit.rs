//! Keeps peers that misbehave, and links that flap, from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);

/// Lets a number of lines a second through, one by default, and counts the others. One for each kind of line and each peer that
/// it is about, or one for all.
#[derive(Debug)]
pub struct LogLimit {
    lines_a_second: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    window_start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Default for LogLimit {
    fn default() -> LogLimit {
        LogLimit::new(1)
    }
}

impl LogLimit {
    pub fn new(lines_a_second: u32) -> LogLimit {
        LogLimit {
            lines_a_second,
            state: Mutex::default(),
        }
    }

    /// `Some` with the number of lines left out since the last one, if a line may be written now.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        // A thread that panicked here left plain numbers behind: they are as good as any.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = state
            .window_start
            .is_none_or(|start| now.saturating_duration_since(start) >= WINDOW);
        if is_new {
            state.window_start = Some(now);
            state.lines = 0;
        }
        if state.lines >= self.lines_a_second {
            state.suppressed += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_next_one_says_how_many_were_left_out() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let limit = LogLimit::default();
        assert_eq!(limit.allow_at(at(0)), Some(0));
        assert_eq!(limit.allow_at(at(999)), None);
        assert_eq!(limit.allow_at(at(999)), None);
        assert_eq!(limit.allow_at(at(1000)), Some(2));
        assert_eq!(limit.allow_at(at(1999)), None);
        assert_eq!(limit.allow_at(at(5000)), Some(1));
    }

    #[test]
    fn what_is_left_out_is_counted() {
        const MAX_LINES: u32 = 20;
        let begin = Instant::now();
        let limit = LogLimit::new(MAX_LINES);
        for _ in 0..MAX_LINES {
            assert_eq!(limit.allow_at(begin), Some(0));
        }
        assert_eq!(limit.allow_at(begin), None);
        assert_eq!(limit.allow_at(begin), None);
        assert_eq!(limit.allow_at(begin + WINDOW), Some(2));
        assert_eq!(limit.allow_at(begin + WINDOW), Some(0));
    }
}
