//! What all lanes of one connection may hold of bytes that came before others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Shared by the lanes of a connection. It refuses nothing: a lane that looks at [`AheadShare::is_spent`] before it asks for more
/// goes beyond the cap by what it asked for last, and no further.
#[derive(Debug, Clone)]
pub struct AheadBudget {
    held: Arc<AtomicUsize>,
    cap: usize,
}

impl AheadBudget {
    /// For `cap` bytes.
    pub fn new(cap: usize) -> AheadBudget {
        AheadBudget {
            held: Arc::default(),
            cap,
        }
    }

    /// What one lane holds of it: nothing at first.
    pub(super) fn share(&self) -> AheadShare {
        AheadShare {
            budget: self.clone(),
            held: 0,
        }
    }
}

/// The part of a budget that one lane has taken. It goes back when the lane does.
#[derive(Debug)]
pub(super) struct AheadShare {
    budget: AheadBudget,
    held: usize,
}

impl AheadShare {
    /// Whether all lanes together hold what they may.
    pub(super) fn is_spent(&self) -> bool {
        self.budget.held.load(Ordering::Relaxed) >= self.budget.cap
    }

    /// The lane holds so much now.
    pub(super) fn set(&mut self, held: usize) {
        // Most often nothing waits, before as after: then the lanes share no write.
        if held == self.held {
            return;
        }
        let all = &self.budget.held;
        if held > self.held {
            all.fetch_add(held - self.held, Ordering::Relaxed);
        } else {
            all.fetch_sub(self.held - held, Ordering::Relaxed);
        }
        self.held = held;
    }
}

impl Drop for AheadShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_a_budget_and_give_back_what_they_took() {
        let budget = AheadBudget::new(100);
        let (mut one, mut other) = (budget.share(), budget.share());
        one.set(60);
        other.set(39);
        assert!(!other.is_spent());
        other.set(40);
        assert!(one.is_spent() && other.is_spent());
        one.set(10);
        assert!(!one.is_spent());
        one.set(70);
        assert!(other.is_spent());
        drop(one);
        assert!(!other.is_spent());
        drop(other);
        assert_eq!(budget.held.load(Ordering::Relaxed), 0);
    }
}
