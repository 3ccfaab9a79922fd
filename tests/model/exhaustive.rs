//! With all rules, nothing is ever broken.

use crate::bounds::{Bounds, Counting, Loss, Sessions};
use crate::search::search;

/// Of each search. Above it a search is cut, and fails: it would prove nothing. 150 million states take 8 GiB at most.
const MAX_STATES: usize = 150_000_000;

fn nothing_breaks(bounds: Bounds) {
    let searched = search(&bounds, |_| false, MAX_STATES);
    if let Some(trace) = searched.found {
        panic!("{bounds}: in {} states\n{trace}", searched.states);
    }
    assert!(
        !searched.cut,
        "CUT, NOT EXHAUSTIVE: {bounds}: more than {MAX_STATES} states"
    );
    println!(
        "{bounds}: {} states, depth {}, {:.1?}: all seen, nothing broken",
        searched.states, searched.depth, searched.time
    );
}

/// Whether the large searches were asked for.
fn large() -> bool {
    let large = std::env::var_os("QUORATE_MODEL").is_some_and(|value| value == "large");
    if !large {
        println!("skipped: QUORATE_MODEL=large and --release run it");
    }
    large
}

/// Small enough for every test run, unoptimised.
const fn small(replicas: usize, m: u8) -> Bounds {
    Bounds {
        records: 1,
        changes: 1,
        sessions: Sessions::InOneStep,
        ..Bounds::new(replicas, m)
    }
}

#[test]
fn two_replicas_lose_nothing() {
    for m in 1..=2 {
        nothing_breaks(small(2, m));
        nothing_breaks(Bounds {
            epochs: 2,
            separate_sync: true,
            ..small(2, m)
        });
        nothing_breaks(Bounds {
            epochs: 2,
            sessions: Sessions::InThreeSteps,
            ..small(2, m)
        });
    }
}

#[test]
fn three_replicas_lose_nothing_across_failovers() {
    for m in 1..=3 {
        nothing_breaks(Bounds {
            changes: 0,
            crashes: 0,
            ..small(3, m)
        });
        nothing_breaks(Bounds {
            epochs: 2,
            changes: 0,
            ..small(3, m)
        });
    }
}

#[test]
fn three_replicas_lose_nothing_while_the_set_changes() {
    nothing_breaks(Bounds {
        epochs: 2,
        crashes: 0,
        m_changes: true,
        ..small(3, 2)
    });
}

#[test]
fn two_replicas_lose_nothing_when_one_loses_its_disk() {
    for loss in [Loss::Log, Loss::Directory] {
        for counting in [Counting::ByDirectory, Counting::ByIncarnation] {
            nothing_breaks(Bounds {
                epochs: 2,
                loss,
                counting,
                late_registration: true,
                ..small(2, 1)
            });
        }
    }
}

/// At the project's bounds; with sessions in one step where there are three replicas.
const fn full(replicas: usize, m: u8) -> Bounds {
    let sessions = match replicas {
        3 => Sessions::InOneStep,
        _ => Sessions::InThreeSteps,
    };
    Bounds {
        sessions,
        ..Bounds::new(replicas, m)
    }
}

fn large_searches(searches: &[Bounds]) {
    if large() {
        searches.iter().copied().for_each(nothing_breaks);
    }
}

#[test]
fn large_two_replicas() {
    let searches = [1, 2].map(|m| {
        [
            full(2, m),
            Bounds {
                separate_sync: true,
                ..full(2, m)
            },
            Bounds {
                m_changes: true,
                late_registration: true,
                ..full(2, m)
            },
        ]
    });
    large_searches(searches.as_flattened());
}

#[test]
fn large_three_replicas() {
    large_searches(&[full(3, 1), full(3, 2), full(3, 3)]);
}

#[test]
fn large_three_replicas_where_sync_is_a_step() {
    let sync = |m| Bounds {
        separate_sync: true,
        ..full(3, m)
    };
    large_searches(&[
        Bounds {
            changes: 0,
            ..sync(2)
        },
        Bounds {
            records: 1,
            changes: 1,
            ..sync(2)
        },
        Bounds {
            changes: 1,
            crashes: 0,
            ..sync(2)
        },
        Bounds {
            epochs: 2,
            ..sync(2)
        },
    ]);
}

#[test]
fn large_three_replicas_where_sessions_take_three_steps() {
    let sessions = |m| Bounds {
        sessions: Sessions::InThreeSteps,
        ..full(3, m)
    };
    large_searches(&[
        Bounds {
            changes: 0,
            ..sessions(2)
        },
        Bounds {
            records: 1,
            changes: 1,
            ..sessions(2)
        },
        Bounds {
            epochs: 2,
            ..sessions(2)
        },
    ]);
}

#[test]
fn large_changes_of_m() {
    large_searches(&[2, 3].map(|m| Bounds {
        crashes: 0,
        m_changes: true,
        ..full(3, m)
    }));
}

#[test]
fn large_four_epochs() {
    large_searches(&[
        Bounds {
            epochs: 4,
            changes: 0,
            ..full(3, 2)
        },
        Bounds {
            epochs: 4,
            changes: 1,
            crashes: 0,
            ..full(3, 2)
        },
    ]);
}

/// Whether acks of a restarted follower may count for the member that the set names under an older incarnation.
#[test]
fn large_restarts_and_lost_disks() {
    for loss in [Loss::None, Loss::Log, Loss::Directory] {
        for counting in [Counting::ByDirectory, Counting::ByIncarnation] {
            let lossy = |bounds| Bounds {
                loss,
                counting,
                late_registration: true,
                ..bounds
            };
            large_searches(&[
                lossy(Bounds {
                    crashes: 2,
                    ..full(2, 1)
                }),
                lossy(Bounds {
                    records: 1,
                    changes: 1,
                    ..full(3, 2)
                }),
                lossy(Bounds {
                    epochs: 2,
                    records: 1,
                    crashes: 2,
                    ..full(3, 2)
                }),
            ]);
        }
    }
}
