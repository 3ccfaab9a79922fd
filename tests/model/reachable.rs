//! What the searches are about does happen in them, so that they do not hold for want of anything happening.

use crate::bounds::{Bounds, Sessions};
use crate::log::epoch_of;
use crate::search::search;
use crate::state::{Marks, State};

const MAX_STATES: usize = 3_000_000;

/// Three replicas, m = 2, with marks.
const fn bounds() -> Bounds {
    Bounds {
        sessions: Sessions::InOneStep,
        marks: true,
        crashes: 0,
        changes: 0,
        ..Bounds::new(3, 2)
    }
}

fn happens(what: &str, bounds: Bounds, wanted: impl Fn(&State) -> bool) {
    let searched = search(&bounds, wanted, MAX_STATES);
    let Some(trace) = searched.found else {
        panic!("{what}: not in {} states of {bounds}", searched.states);
    };
    assert_eq!(trace.violation(), None, "{trace}");
    println!("\n{what} ({bounds}): {} states\n{trace}", searched.states);
}

fn marked(state: &State, marks: u8) -> bool {
    state.marks.0 & marks == marks
}

#[test]
fn records_commit_in_two_epochs_across_a_failover() {
    happens("two epochs commit", bounds(), |state| {
        let epochs = state.acknowledged.map(epoch_of);
        epochs[0] != 0 && epochs[1] > epochs[0]
    });
}

#[test]
fn the_set_shrinks_and_grows_again_between_commits() {
    let bounds = Bounds {
        epochs: 1,
        changes: 2,
        ..bounds()
    };
    happens(
        "a commit, a shrink, a re-expansion, a commit",
        bounds,
        |state| marked(state, Marks::ACK_AFTER_GROWTH),
    );
}

#[test]
fn records_commit_before_and_after_a_failover_a_shrink_and_a_re_expansion() {
    let bounds = Bounds {
        epochs: 2,
        changes: 2,
        ..bounds()
    };
    happens(
        "two epochs commit, across a failover, a shrink and a re-expansion",
        bounds,
        |state| {
            let epochs = state.acknowledged.map(epoch_of);
            epochs[0] == 1 && epochs[1] == 2 && marked(state, Marks::ACK_AFTER_GROWTH)
        },
    );
}

#[test]
fn a_replica_crashes_that_holds_an_acknowledged_record_and_the_next_epoch_commits_on() {
    let bounds = Bounds {
        epochs: 2,
        crashes: 1,
        ..bounds()
    };
    happens("a crash after an ack", bounds, |state| {
        marked(state, Marks::CRASHED_AFTER_ACK) && epoch_of(state.acknowledged[1]) == 2
    });
}

#[test]
fn a_leader_hears_that_its_proposal_was_accepted_after_the_next_election_has_begun() {
    let bounds = Bounds {
        epochs: 2,
        records: 1,
        changes: 1,
        ..bounds()
    };
    happens("accepted while an election starts", bounds, |state| {
        marked(state, Marks::HEARD_LATE)
    });
}

#[test]
fn m_is_changed_and_commits_go_on() {
    let bounds = Bounds {
        epochs: 1,
        changes: 1,
        m_changes: true,
        ..bounds()
    };
    happens("m changed between two commits", bounds, |state| {
        marked(state, Marks::M_CHANGED) && state.acknowledged[1] != 0
    });
}

#[test]
fn a_restarted_follower_counts_for_the_member_it_was() {
    let bounds = Bounds {
        epochs: 1,
        crashes: 1,
        records: 1,
        ..bounds()
    };
    happens("a restarted member's ack counts", bounds, |state| {
        marked(state, Marks::COUNTED_RESTARTED)
    });
}
