//! What happened when: faults, elections, gaps between acknowledgements, and what nobody expected.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A shorter wait for an acknowledgement is nothing to speak of.
const GAP: Duration = Duration::from_millis(100);
/// Gaps that are remembered. Later ones only count towards the longest.
const GAPS: usize = 10_000;
/// Different errors that are remembered.
const ERRORS: usize = 50;

/// Between two acknowledgements of acks=all in one partition.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    pub partition: u32,
    pub begin: Instant,
    pub end: Instant,
}

impl Gap {
    pub fn length(&self) -> Duration {
        self.end - self.begin
    }
}

/// A fault, from when it was made until it was undone.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: &'static str,
    pub begin: Instant,
    pub end: Instant,
}

#[derive(Debug, Default)]
struct Notes {
    last_ack: BTreeMap<u32, Instant>,
    gaps: Vec<Gap>,
    longest: Option<Gap>,
    faults: Vec<Fault>,
    /// By text without its figures: how often, and the first in full.
    errors: BTreeMap<String, (u64, String)>,
}

/// Shared by all tasks of a run. Every line goes to standard output at once, where a failing test shows it.
#[derive(Debug)]
pub struct Journal {
    begin: Instant,
    notes: Mutex<Notes>,
}

impl Journal {
    pub fn new() -> Journal {
        Journal {
            begin: Instant::now(),
            notes: Mutex::default(),
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run's clock.
    pub fn at(&self, when: Instant) -> String {
        format!("{:8.3} s", (when - self.begin).as_secs_f64())
    }

    pub fn note(&self, what: &str) {
        println!("{}  {what}", self.at(Instant::now()));
    }

    pub fn acknowledged(&self, partition: u32) {
        let now = Instant::now();
        let mut notes = self.notes();
        let Some(begin) = notes.last_ack.insert(partition, now) else {
            return;
        };
        let gap = Gap {
            partition,
            begin,
            end: now,
        };
        if gap.length() < GAP {
            return;
        }
        if notes.gaps.len() < GAPS {
            notes.gaps.push(gap);
        }
        if notes
            .longest
            .is_none_or(|longest| longest.length() < gap.length())
        {
            notes.longest = Some(gap);
        }
    }

    /// The wait for an acknowledgement that went on at this time, if it was one to speak of and is over.
    pub fn gap_around(&self, partition: u32, when: Instant) -> Option<Gap> {
        // An answer that was on its way just then arrives a moment later.
        let when = when + GAP / 2;
        let notes = self.notes();
        let mut gaps = notes.gaps.iter().rev();
        gaps.find(|gap| gap.partition == partition && gap.begin <= when && gap.end >= when)
            .copied()
    }

    pub fn last_ack(&self, partition: u32) -> Option<Instant> {
        self.notes().last_ack.get(&partition).copied()
    }

    pub fn fault(&self, kind: &'static str, begin: Instant) {
        let end = Instant::now();
        self.notes().faults.push(Fault { kind, begin, end });
    }

    /// Something that a client was told. Each text is shown once.
    pub fn error(&self, who: &str, what: &str) {
        let plain: String = what.chars().filter(|c| !c.is_ascii_digit()).collect();
        let mut notes = self.notes();
        let known = notes.errors.len();
        match notes.errors.get_mut(&plain) {
            Some((count, _)) => *count += 1,
            None if known >= ERRORS => {}
            None => {
                notes.errors.insert(plain, (1, format!("{who}: {what}")));
                drop(notes);
                self.note(&format!("{who}: {what}"));
            }
        }
    }

    pub fn longest_gap(&self) -> Option<Gap> {
        self.notes().longest
    }

    pub fn errors(&self) -> Vec<(u64, String)> {
        self.notes().errors.values().cloned().collect()
    }

    pub fn faults(&self) -> usize {
        self.notes().faults.len()
    }

    /// By kind of fault: how many there were, and the longest wait for an acknowledgement that began or went on while one was
    /// there. Where faults overlap, the wait counts for each.
    pub fn by_kind(&self) -> BTreeMap<&'static str, (usize, Duration)> {
        let notes = self.notes();
        let mut kinds: BTreeMap<&'static str, (usize, Duration)> = BTreeMap::new();
        for fault in &notes.faults {
            let during = notes
                .gaps
                .iter()
                .filter(|gap| gap.begin <= fault.end && gap.end >= fault.begin)
                .map(Gap::length)
                .max()
                .unwrap_or_default();
            let (count, longest) = kinds.entry(fault.kind).or_default();
            *count += 1;
            *longest = (*longest).max(during);
        }
        kinds
    }
}
