//! Keeps a link that flaps, or a peer that is refused again and again, from filling the log.

use std::time::{Duration, Instant};

/// Lines of one kind, about one peer, are at least this far apart.
const APART: Duration = Duration::from_secs(1);

/// Lets one line a second through and counts the others. One for each kind of line and each peer that it is about.
#[derive(Debug, Default)]
pub struct LogLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    /// `Some` with the number of lines left out since the last one, if a line may be written now.
    pub fn allow(&mut self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&mut self, now: Instant) -> Option<u64> {
        let is_due = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= APART);
        if !is_due {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_next_one_says_how_many_were_left_out() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut limit = LogLimit::default();
        assert_eq!(limit.allow_at(at(0)), Some(0));
        assert_eq!(limit.allow_at(at(999)), None);
        assert_eq!(limit.allow_at(at(999)), None);
        assert_eq!(limit.allow_at(at(1000)), Some(2));
        assert_eq!(limit.allow_at(at(1999)), None);
        assert_eq!(limit.allow_at(at(5000)), Some(1));
    }
}
