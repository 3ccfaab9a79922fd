//! Each rule, switched off: the checker finds the loss and tells the shortest way to it.

use crate::bounds::{Bounds, Loss, Sessions};
use crate::rules::{Rule, Rules};
use crate::search::{Searched, search};

/// A search that needs more has lost its way.
const MAX_STATES: usize = 3_000_000;

/// No ISR change and no crash; sessions open in one step.
const fn plain(replicas: usize, m: u8) -> Bounds {
    Bounds {
        epochs: 2,
        records: 1,
        changes: 0,
        crashes: 0,
        sessions: Sessions::InOneStep,
        ..Bounds::new(replicas, m)
    }
}

fn without(rules: &[Rule], bounds: Bounds) -> Searched {
    let off = rules
        .iter()
        .fold(Rules::ALL, |all, &rule| all.without(rule));
    let bounds = Bounds {
        rules: off,
        ..bounds
    };
    search(&bounds, |_| false, MAX_STATES)
}

/// An acknowledged record is lost without these rules, and not with them.
fn loses(rules: &[Rule], bounds: Bounds) {
    let searched = without(rules, bounds);
    assert!(!searched.cut, "{rules:?}: more than {MAX_STATES} states");
    let Some(trace) = searched.found else {
        panic!(
            "without {rules:?} nothing is lost in {} states of {bounds}",
            searched.states
        );
    };
    println!(
        "\nwithout {rules:?} ({bounds}): {} steps, {} states\n{trace}",
        trace.steps.len(),
        searched.states
    );
    assert!(trace.violation().is_some_and(|broken| broken.is_loss()));
}

/// Nothing is lost within these bounds: other rules cover for these.
fn is_covered_for(rules: &[Rule], bounds: Bounds) {
    let searched = without(rules, bounds);
    assert!(!searched.cut, "{rules:?}: more than {MAX_STATES} states");
    if let Some(trace) = searched.found {
        panic!("without {rules:?} a record is lost:\n{trace}");
    }
    println!(
        "without {rules:?} ({bounds}): nothing lost in {} states",
        searched.states
    );
}

#[test]
fn without_the_epoch_start_a_record_of_an_older_epoch_commits_too_early() {
    let bounds = Bounds {
        epochs: 4,
        records: 2,
        ..plain(3, 2)
    };
    loses(&[Rule::EpochStartFirst], bounds);
}

#[test]
fn by_the_offset_alone_an_epoch_start_is_taken_for_held() {
    let bounds = Bounds {
        epochs: 4,
        records: 2,
        ..plain(3, 2)
    };
    loses(&[Rule::WholePositions], bounds);
}

#[test]
fn without_the_promise_a_fenced_replica_serves_its_old_leader_again() {
    loses(&[Rule::PromiseIsKept], plain(3, 2));
}

#[test]
fn a_promise_that_a_restart_forgets_is_none() {
    let bounds = Bounds {
        crashes: 1,
        ..plain(3, 2)
    };
    loses(&[Rule::PromiseSurvives], bounds);
}

#[test]
fn an_ack_of_what_is_not_durable_is_lost_in_a_crash() {
    let bounds = Bounds {
        crashes: 1,
        separate_sync: true,
        ..plain(3, 2)
    };
    loses(&[Rule::AckIsDurable], bounds);
}

#[test]
fn a_leaders_own_vote_for_what_is_not_durable_is_lost_in_a_crash() {
    let bounds = Bounds {
        crashes: 1,
        separate_sync: true,
        ..plain(3, 2)
    };
    loses(&[Rule::OwnVoteIsDurable], bounds);
}

#[test]
fn an_ack_of_an_older_process_vouches_for_a_log_that_is_gone() {
    let bounds = Bounds {
        changes: 1,
        crashes: 1,
        loss: Loss::Log,
        ..plain(2, 1)
    };
    loses(&[Rule::AckIsKeyed], bounds);
}

/// Where no log is lost, an old ack says nothing false: within an epoch nothing acknowledged is cut, and an ack that ends in an
/// older epoch does not reach the epoch's start.
#[test]
fn an_old_ack_of_a_sound_log_is_covered_for_by_whole_positions_and_the_epoch_start() {
    let failovers = Bounds {
        epochs: 3,
        ..plain(3, 2)
    };
    is_covered_for(&[Rule::AckIsKeyed], failovers);
    let changes = Bounds {
        changes: 1,
        crashes: 1,
        ..plain(2, 1)
    };
    is_covered_for(&[Rule::AckIsKeyed], changes);
}

#[test]
fn an_answer_of_an_older_session_cuts_what_was_acknowledged_since() {
    let bounds = Bounds {
        sessions: Sessions::InThreeSteps,
        ..plain(2, 2)
    };
    loses(&[Rule::SessionIsKeyed], bounds);
}

#[test]
fn a_fenced_leader_that_goes_on_counting_commits_behind_the_election() {
    let bounds = Bounds {
        separate_sync: true,
        ..plain(3, 2)
    };
    loses(&[Rule::FenceStopsLeader], bounds);
}

#[test]
fn a_fenced_follower_that_goes_on_acknowledging_commits_behind_the_election() {
    loses(&[Rule::FenceStopsFollower], plain(3, 2));
}

#[test]
fn one_reply_is_no_election_quorum() {
    loses(&[Rule::ElectionQuorum], plain(3, 2));
}

#[test]
fn a_reply_to_an_earlier_fence_says_nothing_of_what_came_since() {
    let bounds = Bounds {
        epochs: 3,
        ..plain(3, 2)
    };
    loses(&[Rule::RepliesOfThisEpoch], bounds);
}

#[test]
fn a_reply_from_outside_the_set_says_nothing_of_what_was_committed_in_it() {
    let bounds = Bounds {
        changes: 1,
        ..plain(3, 2)
    };
    loses(&[Rule::RepliesOfMembers], bounds);
}

#[test]
fn a_winner_that_is_not_the_highest_lacks_what_was_committed() {
    loses(&[Rule::HighestWins], plain(3, 2));
}

#[test]
fn a_winner_by_offset_alone_has_a_longer_log_of_the_past() {
    let bounds = Bounds {
        epochs: 3,
        records: 3,
        ..plain(3, 2)
    };
    loses(&[Rule::HighestByPair], bounds);
}

#[test]
fn a_restarted_node_that_leads_on_writes_another_record_at_the_same_position() {
    let bounds = Bounds {
        records: 2,
        crashes: 1,
        separate_sync: true,
        ..plain(3, 2)
    };
    loses(&[Rule::AppointmentNamesProcess], bounds);
}

#[test]
fn a_change_decided_on_an_old_state_undoes_a_newer_one() {
    let bounds = Bounds {
        changes: 2,
        ..plain(3, 1)
    };
    loses(&[Rule::CasPartitionEpoch], bounds);
}

#[test]
fn a_change_of_an_older_epoch_undoes_a_newer_one() {
    let bounds = Bounds {
        epochs: 3,
        changes: 1,
        ..plain(3, 1)
    };
    is_covered_for(&[Rule::CasLeaderEpoch], bounds);
    loses(&[Rule::CasLeaderEpoch, Rule::CasPartitionEpoch], bounds);
}

#[test]
fn a_change_while_there_is_no_leader_changes_the_set_that_is_asked() {
    let bounds = Bounds {
        epochs: 3,
        changes: 1,
        ..plain(3, 1)
    };
    is_covered_for(&[Rule::ChangeNeedsLeader], bounds);
    let all = [
        Rule::ChangeNeedsLeader,
        Rule::CasLeaderEpoch,
        Rule::CasPartitionEpoch,
    ];
    loses(&all, bounds);
}

#[test]
fn a_change_that_names_no_process_admits_one_that_has_lost_its_log() {
    for loss in [Loss::Log, Loss::Directory] {
        let bounds = Bounds {
            changes: 1,
            crashes: 1,
            loss,
            ..plain(2, 1)
        };
        loses(&[Rule::CasIncarnations], bounds);
    }
}

#[test]
fn a_set_that_does_not_hold_the_epoch_start_lacks_what_was_committed_before() {
    let bounds = Bounds {
        epochs: 3,
        changes: 1,
        ..plain(3, 2)
    };
    loses(&[Rule::NewSetHoldsStart], bounds);
}

#[test]
fn a_set_that_does_not_hold_the_watermark_lacks_what_was_committed() {
    let bounds = Bounds {
        changes: 1,
        ..plain(3, 2)
    };
    loses(&[Rule::NewSetHoldsWatermark], bounds);
}

#[test]
fn acks_of_an_older_process_do_not_make_a_new_one_in_sync() {
    for loss in [Loss::Log, Loss::Directory] {
        let bounds = Bounds {
            changes: 1,
            crashes: 1,
            loss,
            ..plain(2, 1)
        };
        loses(&[Rule::NewSetHoldsByIncarnation], bounds);
    }
}

#[test]
fn a_timeout_taken_for_a_refusal_leaves_a_change_that_nobody_counts_by() {
    let bounds = Bounds {
        changes: 1,
        ..plain(3, 2)
    };
    loses(&[Rule::TimeoutIsNoOutcome], bounds);
}

#[test]
fn counting_by_the_old_set_alone_overtakes_the_change() {
    let bounds = Bounds {
        changes: 1,
        ..plain(3, 2)
    };
    loses(&[Rule::BothSets], bounds);
}

#[test]
fn a_refused_copy_of_a_proposal_does_not_settle_what_another_copy_does() {
    let bounds = Bounds {
        changes: 1,
        crashes: 1,
        late_registration: true,
        ..plain(3, 2)
    };
    loses(&[Rule::RefusalIsNoOutcome], bounds);
}

#[test]
fn m_set_behind_the_leaders_back_asks_too_few_replicas() {
    let bounds = Bounds {
        changes: 1,
        m_changes: true,
        ..plain(3, 2)
    };
    loses(&[Rule::MinInsyncIsProposed], bounds);
}

#[test]
fn a_replica_that_has_lost_its_log_has_no_vote() {
    for loss in [Loss::Log, Loss::Directory] {
        let bounds = Bounds {
            crashes: 1,
            loss,
            ..plain(3, 2)
        };
        loses(&[Rule::LossyDoesNotVote], bounds);
    }
}

#[test]
fn a_tail_that_recovery_did_not_sync_is_lost_in_the_next_crash() {
    let bounds = Bounds {
        crashes: 2,
        separate_sync: true,
        ..plain(3, 2)
    };
    loses(&[Rule::RecoverySyncs], bounds);
}
