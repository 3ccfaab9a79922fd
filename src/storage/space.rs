//! Room on the disk that records may not take.
//!
//! A disk that is full to its last byte holds up more than records: promises, without which nobody can be elected; the
//! controller's log; the notes that retention needs before it can remove anything. So appends are refused a little earlier,
//! and everything else goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// With less room than this, no records are appended.
pub const RESERVED_BYTES: u64 = 32 * 1024 * 1024;
/// Once they were refused, they are taken again with this much, so that the two do not alternate.
const ENOUGH_BYTES: u64 = RESERVED_BYTES + RESERVED_BYTES / 2;

/// Whether there is room for records. One for a data directory, shared by its logs.
#[derive(Clone, Debug, Default)]
pub struct DiskSpace {
    is_short: Arc<AtomicBool>,
}

impl DiskSpace {
    pub fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// So many bytes can be written. Returns what is true now, if that is new.
    pub fn handle_available(&self, bytes: u64) -> Option<bool> {
        let was_short = self.is_short();
        let is_short = bytes
            < if was_short {
                ENOUGH_BYTES
            } else {
                RESERVED_BYTES
            };
        self.is_short.store(is_short, Ordering::Relaxed);
        (is_short != was_short).then_some(is_short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_comes_and_goes_at_the_edge_is_not_told_each_time() {
        let space = DiskSpace::default();
        assert_eq!(space.handle_available(RESERVED_BYTES), None);
        assert_eq!(space.handle_available(RESERVED_BYTES - 1), Some(true));
        assert_eq!(space.handle_available(RESERVED_BYTES), None);
        assert!(space.is_short());
        assert_eq!(space.handle_available(ENOUGH_BYTES), Some(false));
        assert_eq!(space.handle_available(RESERVED_BYTES), None);
        assert!(!space.is_short());
    }
}
