//! Keeps peers that misbehave, and links that flap, from filling the log.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);
/// The most keys that [`LogLimits`] keeps apart at a time.
const MAX_KEYS: usize = 1024;

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

    /// Whether nothing was written within the last window, so that nothing is changed by forgetting it.
    fn is_over(&self, now: Instant) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .window_start
            .is_none_or(|start| now.saturating_duration_since(start) >= WINDOW)
    }
}

/// A line a second of each key: of each kind of line about each peer, where nobody says beforehand which peers there will be.
/// 1024 keys that have written within a second are kept apart; all others share a line a second. What was left out of a key
/// that is forgotten for its silence is not told.
#[derive(Debug)]
pub struct LogLimits<K> {
    keys: Mutex<HashMap<K, LogLimit>>,
    others: LogLimit,
}

impl<K> Default for LogLimits<K> {
    fn default() -> LogLimits<K> {
        LogLimits {
            keys: Mutex::default(),
            others: LogLimit::default(),
        }
    }
}

impl<K: Eq + Hash> LogLimits<K> {
    /// As [`LogLimit::allow`], for the lines of `key`.
    pub fn allow(&self, key: K) -> Option<u64> {
        self.allow_at(key, Instant::now())
    }

    fn allow_at(&self, key: K, now: Instant) -> Option<u64> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= MAX_KEYS && !keys.contains_key(&key) {
            keys.retain(|_, limit| !limit.is_over(now));
            if keys.len() >= MAX_KEYS {
                return self.others.allow_at(now);
            }
        }
        keys.entry(key).or_default().allow_at(now)
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
    fn keys_are_kept_apart_and_those_beyond_the_cap_share_a_line() {
        let begin = Instant::now();
        let limits = LogLimits::default();
        for key in 0..MAX_KEYS {
            assert_eq!(limits.allow_at(key, begin), Some(0));
            assert_eq!(limits.allow_at(key, begin), None);
        }
        assert_eq!(limits.allow_at(MAX_KEYS, begin), Some(0));
        assert_eq!(limits.allow_at(MAX_KEYS + 1, begin), None);
        assert_eq!(limits.keys.lock().unwrap().len(), MAX_KEYS);
        // One that still writes is not forgotten for another's sake, and those that do not are.
        assert_eq!(limits.allow_at(0, begin + WINDOW), Some(1));
        assert_eq!(limits.allow_at(MAX_KEYS, begin + WINDOW), Some(0));
        assert_eq!(limits.keys.lock().unwrap().len(), 2);
        assert_eq!(limits.allow_at(0, begin + WINDOW), None);
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
