//! What the active controller does for the cluster's metadata by itself: raises its version, ends reassignments.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::handle::Shared;
use super::message::Response;
use crate::metadata::{
    ClusterImage, Command, MAX_CHANGES_PER_COMMAND, METADATA_VERSION, Outcome, ReassignmentEnd,
};

/// How often it is looked again, if nothing changes.
const INTERVAL: Duration = Duration::from_millis(500);
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut images = shared.image.clone();
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            changed = images.changed() => if changed.is_err() { return },
        }
        let image = images.borrow_and_update().clone();
        if !shared.is_active() || !shared.reaches_quorum() || image.cluster_id().is_none() {
            continue;
        }
        if let Some(version) = next_version(&shared, &image) {
            let command = Command::RaiseMetadataVersion { version };
            match shared.write(command, WRITE_TIMEOUT).await {
                Response::Proposed { result: Ok(_), .. } => {
                    tracing::info!(version, "the metadata version has risen");
                }
                response => tracing::warn!(?response, version, "the metadata version did not rise"),
            }
        }
        let ends = finished(&image);
        for chunk in ends.chunks(MAX_CHANGES_PER_COMMAND) {
            finish(&shared, chunk).await;
        }
    }
}

/// Whether the cluster's metadata version is, or within `wait` becomes, at least `needed`: a cluster that has just been founded,
/// or whose last node was upgraded just now, is about to raise it.
pub(super) async fn reaches_version(shared: &Shared, needed: u32, wait: Duration) -> bool {
    let mut images = shared.image.clone();
    let image = images.borrow_and_update().clone();
    let about_to_rise = next_version(shared, &image).is_some_and(|version| version >= needed);
    let risen = images.wait_for(|image| image.metadata_version() >= needed);
    let wait = if about_to_rise { wait } else { Duration::ZERO };
    matches!(tokio::time::timeout(wait, risen).await, Ok(Ok(_)))
}

/// What every member of the cluster understands, if that is more than is used.
fn next_version(shared: &Shared, image: &ClusterImage) -> Option<u32> {
    // A controller that is not registered yet may be of an older version, and could not read what comes.
    let voters_are_known = shared
        .committed_voters()
        .iter()
        .all(|&voter| image.node(voter).is_some());
    let understood = image.nodes().map(|node| node.metadata_version).min()?;
    let version = understood.min(METADATA_VERSION);
    (voters_are_known && version > image.metadata_version()).then_some(version)
}

/// The reassignments whose target is the in-sync set.
fn finished(image: &ClusterImage) -> Vec<ReassignmentEnd> {
    image
        .reassigning()
        .filter(|(_, state)| {
            let target = &state.target_replicas;
            target.iter().all(|&node| state.isr_contains(node))
                && state.isr.iter().all(|m| target.contains(&m.node))
        })
        .map(|(partition, state)| ReassignmentEnd {
            partition,
            partition_epoch: state.partition_epoch,
        })
        .collect()
}

async fn finish(shared: &Shared, ends: &[ReassignmentEnd]) {
    let command = Command::FinishReassignments {
        ends: ends.to_vec(),
    };
    match shared.write(command, WRITE_TIMEOUT).await {
        Response::Proposed {
            result: Ok(Outcome::Partitions(results)),
            ..
        } => {
            for (end, result) in ends.iter().zip(results) {
                let partition = end.partition;
                match result {
                    Ok(_) => tracing::info!(%partition, "the reassignment has ended"),
                    Err(rejection) => {
                        tracing::debug!(%partition, %rejection, "the reassignment has not ended yet");
                    }
                }
            }
        }
        response => tracing::warn!(?response, "reassignments could not be ended"),
    }
}
