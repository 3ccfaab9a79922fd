//! Scenarios of the replication protocol as transcripts: what is done to a cluster, and every message, append, sync and answer
//! that comes of it. The files under `tests/replication` are for people; `docs/testing.md` tells how to read and write them.
//!
//! `QUORATE_BLESS=1` writes down what happens now as what should happen.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "support/transcript.rs"]
mod transcript;

mod replication {
    pub mod controller;
    pub mod language;
    pub mod network;
    pub mod node;
    pub mod steps;
    pub mod words;
    pub mod world;
}

use std::path::{Path, PathBuf};

use replication::world::World;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replication")
}

/// Runs one transcript, and compares or blesses it.
fn check(name: &str) {
    let path = directory().join(format!("{name}.txt"));
    let shown = format!("tests/replication/{name}.txt");
    let expected = std::fs::read_to_string(&path).unwrap();
    let mut world = World::default();
    let happened = match goldenscript::generate(&mut world, &expected) {
        Ok(happened) => happened,
        Err(error) => panic!("{shown}: {error}"),
    };
    // Whatever the transcript is about: what was acknowledged is there, and nothing else is written down as right.
    let lost = world.lost();
    let difference = transcript::difference(&path, &shown, &expected, &happened, lost.is_empty());
    let lost = (!lost.is_empty()).then(|| {
        format!(
            "{shown}: in the end the leader is without what was acknowledged: {}.",
            lost.join(", ")
        )
    });
    let wrong: Vec<String> = lost.into_iter().chain(difference).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One test for each transcript, and one that sees to it that none is forgotten.
macro_rules! transcripts {
    ($($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_transcript_is_a_test() {
            let listed = [$(stringify!($name)),*];
            let mut found: Vec<String> = std::fs::read_dir(directory())
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
                .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            found.sort();
            assert_eq!(found, listed, "tests/replication/*.txt and the list in tests/replication.rs, in order");
        }
    };
}

transcripts! {
    kip_101_divergence,
    kip_101_loss,
    kip_279_two_histories,
    kip_279_unknown_epoch,
    kip_320_consumer,
    kip_320_follower,
    kip_497_compare_and_swap,
    kip_497_timeout_is_no_outcome,
    kip_841_dead_stays_in,
    kip_841_fenced_gets_in,
    kip_903_lost_disk,
    kip_903_lost_disk_in_an_election,
    kip_903_unclean_shutdown,
    kip_966_last_replica_standing,
    kip_966_waits_for_the_eligible,
    push_ack_across_a_truncation,
    push_ack_of_a_lost_disk,
    push_ack_of_an_old_session,
    push_bit_rot_in_the_tail,
    push_duplicate_frames,
    push_duplicate_produce,
    push_isr_answer_lost_in_an_election,
    push_isr_proposal_during_an_election,
    push_leader_restarts_in_its_epoch,
    push_restart_in_mid_frame_follower,
    push_restart_in_mid_frame_leader,
    push_seam_between_catch_up_and_live,
    push_the_leader_loses_what_it_acknowledged,
    raft_figure_8,
}
