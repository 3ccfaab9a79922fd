//! How much of its logs a node has to read when it starts after an unclean stop.
//!
//! What the index of a log's tail (`tail_index.rs`) does not know is read and checked at the next start. So it is written down,
//! with a snapshot of the producers (`snapshots.rs`), when a log's share of the budget was appended since the last time. The
//! more logs are open, the smaller is each one's share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a start may have to read of all logs together, where each has its share of it.
const BUDGET_BYTES: u64 = 512 * 1024 * 1024;
/// The largest share, however few logs there are.
const MAX_SHARE_BYTES: u64 = 32 * 1024 * 1024;
/// The least, because each time two small files are written: from 512 logs on, the budget is exceeded.
const MIN_SHARE_BYTES: u64 = 1024 * 1024;

/// One for a data directory, shared by its logs.
#[derive(Clone, Debug)]
pub struct RecoveryBudget {
    bytes: u64,
    logs: Arc<AtomicU64>,
}

impl Default for RecoveryBudget {
    fn default() -> RecoveryBudget {
        RecoveryBudget::of(BUDGET_BYTES)
    }
}

impl RecoveryBudget {
    /// Of `bytes` bytes, for all logs that are opened with it.
    pub fn of(bytes: u64) -> RecoveryBudget {
        RecoveryBudget {
            bytes,
            logs: Arc::default(),
        }
    }

    /// To be kept for as long as a log is open.
    pub(super) fn join(&self) -> BudgetShare {
        self.logs.fetch_add(1, Ordering::Relaxed);
        BudgetShare(self.clone())
    }
}

/// One open log's part of the budget.
#[derive(Debug)]
pub(super) struct BudgetShare(RecoveryBudget);

impl BudgetShare {
    pub(super) fn bytes(&self) -> u64 {
        let RecoveryBudget { bytes, logs } = &self.0;
        let share = bytes / logs.load(Ordering::Relaxed).max(1);
        share.clamp(MIN_SHARE_BYTES.min(*bytes), MAX_SHARE_BYTES)
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.0.logs.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_share_the_budget_for_as_long_as_they_are_open() {
        let budget = RecoveryBudget::default();
        let first = budget.join();
        assert_eq!(first.bytes(), MAX_SHARE_BYTES);
        let others: Vec<BudgetShare> = (1..64).map(|_| budget.join()).collect();
        assert_eq!(first.bytes(), BUDGET_BYTES / 64);
        let many: Vec<BudgetShare> = (0..10_000).map(|_| budget.join()).collect();
        assert_eq!(first.bytes(), MIN_SHARE_BYTES);
        drop((others, many));
        assert_eq!(first.bytes(), MAX_SHARE_BYTES);
    }
}
