//! Whole clusters on virtual time, with a network and disks that fail, every one drawn from a seed. See `docs/testing.md`.
//!
//! `QUORATE_SIM_SEED=N` repeats one; `QUORATE_SIM_RUNS` and `QUORATE_SIM_FIRST` run many.

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod simulation {
    pub mod checker;
    pub mod clients;
    pub mod controller;
    pub mod event;
    pub mod faults;
    pub mod links;
    pub mod lost;
    pub mod mirror;
    pub mod mistakes;
    pub mod moves;
    pub mod network;
    pub mod node;
    pub mod operator;
    pub mod order;
    pub mod outputs;
    pub mod planted;
    pub mod process;
    pub mod producers;
    pub mod random;
    pub mod runner;
    pub mod schedule;
    pub mod stability;
    pub mod trace;
    pub mod transactors;
    pub mod unclean;
    pub mod world;
}

use std::time::{Duration, Instant};

use simulation::planted::{self, Planted};
use simulation::runner::{Failure, run_and_shrink, run_seed, story};
use simulation::schedule::{KINDS, Setup, draw};
use simulation::world::Figures;

/// How many seeds an ordinary test run takes.
const RUNS: u64 = 240;
/// A planted mistake must be found within so many seeds.
const PLANTED_RUNS: u64 = 240;
/// Failures that are shortened and shown before a long run gives up.
const MAX_FAILURES: usize = 5;
const TELL_EVERY: Duration = Duration::from_secs(20);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Sums over runs, so that a run that exercises nothing is seen.
fn add(sum: &mut Figures, one: Figures) {
    sum.steps += one.steps;
    sum.faults += one.faults;
    for (sum, one) in sum.of_kind.iter_mut().zip(one.of_kind) {
        *sum += one;
    }
    sum.acknowledged += one.acknowledged;
    sum.committed += one.committed;
    sum.epochs_committed_in += one.epochs_committed_in;
    sum.elections += one.elections;
    sum.shrunk += one.shrunk;
    sum.grown += one.grown;
    sum.renamed += one.renamed;
    sum.min_insync_changes += one.min_insync_changes;
    sum.reassigned += one.reassigned;
    sum.left += one.left;
    sum.handed_over += one.handed_over;
    sum.moved_away += one.moved_away;
    sum.moved_to_preferred += one.moved_to_preferred;
    sum.forced += one.forced;
    sum.lost += one.lost;
    sum.restarts += one.restarts;
    sum.truncations += one.truncations;
    sum.resets += one.resets;
    sum.resets_with_producers += one.resets_with_producers;
    sum.read += one.read;
    sum.transactions_committed += one.transactions_committed;
    sum.transactions_aborted += one.transactions_aborted;
    sum.read_of_transactions += one.read_of_transactions;
    sum.left_out += one.left_out;
    sum.trimmed += one.trimmed;
    sum.quarantines += one.quarantines;
    sum.set_aside_running += one.set_aside_running;
    sum.tail_flips += one.tail_flips;
    sum.indexed_flips += one.indexed_flips;
    sum.tails_spared += one.tails_spared;
    sum.unreadable_starts += one.unreadable_starts;
    sum.shut += one.shut;
    sum.ineligible += one.ineligible;
    sum.stopped_by_disk += one.stopped_by_disk;
    sum.no_room += one.no_room;
    sum.producers_compared += one.producers_compared;
    sum.producers_incomplete += one.producers_incomplete;
    sum.beyond_repair += one.beyond_repair;
    sum.healed_in_ms = sum.healed_in_ms.max(one.healed_in_ms);
}

/// What no run came near was not tried: with the fixed seeds, everything must have happened.
fn assert_not_vacuous(sum: &Figures, runs: u64) {
    for (kind, &made) in KINDS.iter().zip(&sum.of_kind) {
        assert!(made > 0, "no fault of the kind {kind:?} in {sum:?}");
    }
    assert!(sum.acknowledged > runs, "{sum:?}");
    assert!(sum.epochs_committed_in > runs, "{sum:?}");
    let happened = [
        ("elections", sum.elections),
        ("in-sync sets that shrink", sum.shrunk),
        ("in-sync sets that grow", sum.grown),
        ("new processes named in in-sync sets", sum.renamed),
        ("changes of m", sum.min_insync_changes),
        ("reassignments that end", sum.reassigned),
        ("replicas that leave a node", sum.left),
        ("leaders that hand over", sum.handed_over),
        ("leaderships that leave a node", sum.moved_away),
        (
            "leaderships that go to the preferred replica",
            sum.moved_to_preferred,
        ),
        ("unclean elections", sum.forced),
        ("committed batches that an unclean election loses", sum.lost),
        ("restarts", sum.restarts),
        ("truncations", sum.truncations),
        ("resets", sum.resets),
        ("resets with producers", sum.resets_with_producers),
        ("producers compared", sum.producers_compared),
        ("reads", sum.read),
        ("committed transactions", sum.transactions_committed),
        ("aborted transactions", sum.transactions_aborted),
        ("reads of committed transactions", sum.read_of_transactions),
        ("aborted batches that readers leave out", sum.left_out),
        ("retention", sum.trimmed),
        ("quarantines at a start", sum.quarantines),
        ("logs set aside while running", sum.set_aside_running),
        ("bits flipped in a synced tail", sum.tail_flips),
        ("tails that need not be read", sum.tails_spared),
        (
            "starts on sectors that cannot be read",
            sum.unreadable_starts,
        ),
        ("ineligible answers", sum.ineligible),
        ("stops on a disk's error", sum.stopped_by_disk),
        ("appends without room", sum.no_room),
    ];
    for (what, count) in happened {
        assert!(count > 0, "no {what} in {sum:?}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_everything_heals_whatever_fails() {
    let first = number("QUORATE_SIM_FIRST").unwrap_or(0);
    let runs = number("QUORATE_SIM_RUNS").unwrap_or(RUNS);
    let begin = Instant::now();
    let mut told = begin;
    let mut made = 0u32;
    let mut sum = Figures::default();
    let mut failures: Vec<Box<Failure>> = Vec::new();
    let profile = std::env::var("QUORATE_SIM_PROFILE").ok();
    let is_wanted = |seed: u64| {
        let is = format!("{:?}", Setup::of(seed).profile);
        profile
            .as_ref()
            .is_none_or(|wanted| wanted.eq_ignore_ascii_case(&is))
    };
    for seed in (first..first + runs).filter(|&seed| is_wanted(seed)) {
        match run_and_shrink(seed, None) {
            Ok(figures) => add(&mut sum, figures),
            Err(failure) => {
                println!("{failure}");
                failures.push(failure);
            }
        }
        made += 1;
        if told.elapsed() > TELL_EVERY || seed + 1 == first + runs {
            told = Instant::now();
            let per_minute = f64::from(made) / begin.elapsed().as_secs_f64() * 60.0;
            println!(
                "{made} runs (next: QUORATE_SIM_FIRST={}), {} violations, {per_minute:.0} runs a minute; {sum:?}",
                seed + 1,
                failures.len()
            );
        }
        if failures.len() >= MAX_FAILURES {
            break;
        }
    }
    assert!(failures.is_empty(), "{} runs failed", failures.len());
    if runs >= RUNS && profile.is_none() {
        assert_not_vacuous(&sum, runs);
    }
}

#[test]
fn one_seed_is_repeated_with_its_story() {
    let Some(seed) = number("QUORATE_SIM_SEED") else {
        return;
    };
    let planted = number("QUORATE_SIM_PLANTED").map(|i| planted::ALL[i as usize]);
    let setup = Setup::of(seed);
    let schedule = match run_and_shrink(seed, planted) {
        Ok(figures) => {
            println!("{figures:?}");
            draw(&setup)
        }
        Err(failure) => {
            println!("{failure}");
            failure.schedule
        }
    };
    for line in story(&setup, &schedule, planted) {
        println!("{line}");
    }
}

#[test]
fn the_same_seed_twice_is_the_same_run() {
    for seed in 0..16 {
        let (one, other) = (run_seed(seed, None), run_seed(seed, None));
        assert_eq!(one, other, "seed {seed}");
    }
    let traces: Vec<u64> = (0..4)
        .map(|seed| run_seed(seed, None).unwrap().trace)
        .collect();
    assert_ne!(traces[0], traces[1]);
}

/// The first seed that notices the mistake.
fn found_at(planted: Planted) -> Option<(u64, String)> {
    (0..PLANTED_RUNS).find_map(|seed| {
        let violation = run_seed(seed, Some(planted)).err()?;
        Some((seed, violation.to_string()))
    })
}

#[test]
fn every_planted_mistake_is_found() {
    let mut missed = Vec::new();
    let only = number("QUORATE_SIM_PLANTED");
    for (i, planted) in planted::ALL.into_iter().enumerate() {
        if only.is_some_and(|only| only != i as u64) {
            continue;
        }
        match found_at(planted) {
            Some((seed, what)) => println!("{planted:?}: found in run {} by {what}", seed + 1),
            None => missed.push(planted),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
