//! How full a thing is that must not grow without end.

/// One queue, buffer or map, and its stated bound (invariant 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// What is counted, in words.
    pub what: &'static str,
    pub count: usize,
    /// The most that there may be.
    pub bound: usize,
}

impl Fill {
    pub const fn new(what: &'static str, count: usize, bound: usize) -> Fill {
        Fill { what, count, bound }
    }

    pub fn is_within(&self) -> bool {
        self.count <= self.bound
    }
}
