//! Breadth-first search of all states within bounds.
//!
//! States are remembered by 64-bit fingerprints. So the first violation found is one of the nearest, and a search is
//! exhaustive up to the chance that two states share a fingerprint: for n states about n²/2⁶⁵, 1 in 3,700 for 10⁸.

use std::time::{Duration, Instant};

use crate::bounds::Bounds;
use crate::state::State;
use crate::steps::{Next, initial, successors};
use crate::violation::Violation;

/// What a search has seen.
#[derive(Debug)]
pub(crate) struct Searched {
    pub states: usize,
    /// Steps of the longest of all shortest ways to a state.
    pub depth: usize,
    pub time: Duration,
    /// The cap was reached: this search proves nothing about what lies beyond.
    pub cut: bool,
    /// The way to the first state that broke an invariant, or that was looked for.
    pub found: Option<Trace>,
}

/// A way from the beginning.
#[derive(Debug)]
pub(crate) struct Trace {
    pub first: State,
    pub steps: Vec<Next>,
}

impl Trace {
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.steps.last()?.violation
    }
}

/// Searches until an invariant is broken, a state is `wanted`, everything is seen, or more than `max_states` are.
pub(crate) fn search(
    bounds: &Bounds,
    wanted: impl Fn(&State) -> bool,
    max_states: usize,
) -> Searched {
    let begin = Instant::now();
    let first = initial(bounds);
    let fingerprint = first.fingerprint(bounds.replicas);
    let mut seen = Seen::new();
    seen.insert(fingerprint, fingerprint);
    let mut frontier = vec![(first, fingerprint)];
    let mut next = Vec::new();
    let mut buffer = Vec::new();
    let mut depth = 0;
    let (mut cut, mut found) = (false, None);
    'levels: while !frontier.is_empty() {
        for (state, fingerprint) in &frontier {
            successors(bounds, state, &mut buffer);
            for successor in &buffer {
                if successor.violation.is_some() || wanted(&successor.state) {
                    found = Some(retrace(bounds, &seen, *fingerprint, *successor));
                    depth += 1;
                    break 'levels;
                }
                let its = successor.state.fingerprint(bounds.replicas);
                if seen.insert(its, *fingerprint) {
                    next.push((successor.state, its));
                }
            }
            if seen.len > max_states {
                cut = true;
                break 'levels;
            }
        }
        frontier = std::mem::take(&mut next);
        depth += usize::from(!frontier.is_empty());
    }
    Searched {
        states: seen.len,
        depth,
        time: begin.elapsed(),
        cut,
        found,
    }
}

/// The way to the state with this fingerprint, and on to `last`. The states on the way were not kept; each is the successor
/// with the right fingerprint. Of several one is as good as another: they differ in the names of nodes alone.
fn retrace(bounds: &Bounds, seen: &Seen, to: u64, last: Next) -> Trace {
    let first = initial(bounds);
    let mut way = vec![to];
    loop {
        let parent = seen.parent(way[way.len() - 1]);
        if way.last() == Some(&parent) {
            break;
        }
        way.push(parent);
    }
    let mut steps: Vec<Next> = Vec::new();
    let mut buffer = Vec::new();
    for &fingerprint in way.iter().rev().skip(1) {
        let state = steps.last().map_or(first, |step| step.state);
        successors(bounds, &state, &mut buffer);
        let step = buffer
            .iter()
            .find(|next| next.state.fingerprint(bounds.replicas) == fingerprint)
            .expect("the way was walked before");
        steps.push(*step);
    }
    // The names may have changed on the way, so the last step is looked for again.
    let state = steps.last().map_or(first, |step| step.state);
    let fingerprint = last.state.fingerprint(bounds.replicas);
    successors(bounds, &state, &mut buffer);
    let last = buffer
        .iter()
        .find(|next| {
            next.violation.is_some() == last.violation.is_some()
                && next.state.fingerprint(bounds.replicas) == fingerprint
        })
        .copied()
        .unwrap_or(last);
    steps.push(last);
    Trace { first, steps }
}

/// The fingerprints seen, each with that of the state it was first reached from: a table with open addressing, doubled when
/// it is two thirds full. 24 to 48 bytes a state.
struct Seen {
    /// (fingerprint, parent); (0, 0) is free. A fingerprint of 0 is stored as 1.
    slots: Vec<(u64, u64)>,
    len: usize,
}

impl Seen {
    fn new() -> Seen {
        Seen {
            slots: vec![(0, 0); 1 << 12],
            len: 0,
        }
    }

    fn slot(&self, fingerprint: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = fingerprint as usize & mask;
        while self.slots[slot].0 != 0 && self.slots[slot].0 != fingerprint {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Whether it is new.
    fn insert(&mut self, fingerprint: u64, parent: u64) -> bool {
        let fingerprint = fingerprint.max(1);
        let slot = self.slot(fingerprint);
        if self.slots[slot].0 != 0 {
            return false;
        }
        self.slots[slot] = (fingerprint, parent.max(1));
        self.len += 1;
        if self.len * 3 > self.slots.len() * 2 {
            let old = std::mem::take(&mut self.slots);
            self.slots = vec![(0, 0); old.len() * 2];
            for entry in old.into_iter().filter(|entry| entry.0 != 0) {
                let slot = self.slot(entry.0);
                self.slots[slot] = entry;
            }
        }
        true
    }

    fn parent(&self, fingerprint: u64) -> u64 {
        self.slots[self.slot(fingerprint.max(1))].1
    }
}
