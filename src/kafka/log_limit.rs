//! Keeps clients that misbehave from filling the log.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Lines in one [`WINDOW`]. Further ones are counted, and the next line that is let through says how many there were.
const MAX_LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// Counts lines of one kind.
#[derive(Debug)]
pub(super) struct LogLimit {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    window_start: Instant,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    pub(super) fn new() -> LogLimit {
        LogLimit {
            state: Mutex::new(State {
                window_start: Instant::now(),
                lines: 0,
                suppressed: 0,
            }),
        }
    }

    /// `Some` with the number of lines left out since the last one, if a line may be written now.
    pub(super) fn allow(&self) -> Option<u64> {
        // A thread that panicked here left plain numbers behind: they are as good as any.
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        if state.window_start.elapsed() >= WINDOW {
            state.window_start = Instant::now();
            state.lines = 0;
        }
        if state.lines >= MAX_LINES {
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

    #[tokio::test(start_paused = true)]
    async fn what_is_left_out_is_counted() {
        let limit = LogLimit::new();
        for _ in 0..MAX_LINES {
            assert_eq!(limit.allow(), Some(0));
        }
        assert_eq!(limit.allow(), None);
        assert_eq!(limit.allow(), None);
        tokio::time::advance(WINDOW).await;
        assert_eq!(limit.allow(), Some(2));
        assert_eq!(limit.allow(), Some(0));
    }
}
