//! Every fuzz target for a moment, on what real encoders make and on mutations of it that a seed repeats.
//!
//! `fuzz/README.md` says how to run them for longer. A failure prints the seed and the input.

// A test that cannot go on panics, and what it ran goes to its output. What the fuzzer's own programs use is shared.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    dead_code
)]

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Mutations of each target; `QUORATE_MUTATIONS` asks for more, `QUORATE_SEED` for others.
const MUTATIONS: u64 = 3000;

/// A small generator whose sequence never changes with a library's version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    const NUMBERS: [&[u8]; 6] = [
        &[0xff],
        &[0x7f, 0xff, 0xff, 0xff],
        &[0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 0],
        &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x80, 0x80, 0x80, 0x80, 0x0f],
    ];
    let at = random.below(input.len());
    match random.below(7) {
        0 | 1 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        2 if !input.is_empty() => input[at] = random.next() as u8,
        3 if !input.is_empty() => {
            let number = NUMBERS[random.below(NUMBERS.len())];
            for (to, from) in input[at..].iter_mut().zip(number) {
                *to = *from;
            }
        }
        4 => input.truncate(at),
        5 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let end = (at + 1 + random.below(16)).min(input.len());
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
    }
}

fn hold(name: &str) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let target = targets::TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap();
    let seeds = (target.seeds)();
    for seed in &seeds {
        (target.run)(seed);
    }
    let seed: u64 = number("QUORATE_SEED").unwrap_or(1);
    let mutations = number("QUORATE_MUTATIONS").unwrap_or(MUTATIONS);
    let mut random = Random(seed);
    for turn in 0..mutations {
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &seeds);
        }
        let held = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        assert!(
            held.is_ok(),
            "{name} fails in turn {turn} of QUORATE_SEED={seed} on {input:02x?}"
        );
    }
    println!("{name}: {} seeds and {mutations} mutations", seeds.len());
}

macro_rules! hold_all {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            hold(stringify!($name));
        })*

        #[test]
        fn no_target_is_left_out() {
            let held = [$(stringify!($name)),*];
            let all: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, held);
        }
    };
}

hold_all!(
    frame,
    replication,
    producers,
    kafka_request,
    record_batch,
    segment,
    data_dir,
    certificate,
    text,
    tcp_link,
    controller_message,
    controller_value,
    controller_store,
    admin,
    groups_log,
    transactions_log,
    consumer_protocol,
    login
);
