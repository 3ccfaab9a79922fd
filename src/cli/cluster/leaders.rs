//! `quorate cluster transfer-leader`.

use super::super::{Exit, GlobalOptions, note};
use super::place::{self, Place};
use super::{look, operate, partitions_of, tell_partitions};
use crate::controller::{MAX_MOVES, Operation};
use crate::metadata::Move;
use crate::types::NodeId;

/// Moves the leaderships at `place` (`None`: of every topic) to `to` (`None`: to each partition's first replica).
pub(super) async fn transfer(
    options: &GlobalOptions,
    place: Option<Place>,
    to: Option<NodeId>,
) -> anyhow::Result<Exit> {
    let status = look(options).await?;
    let meant = match &place {
        Some(place) => place.find(&status)?,
        None => status.partitions.iter().collect(),
    };
    let named = place
        .as_ref()
        .is_some_and(|place| place.partition.is_some());
    let moves: Vec<Move> = meant
        .into_iter()
        .filter_map(|partition| {
            let to = match to {
                Some(to) => to,
                None => *partition.replicas.first()?,
            };
            // What stands as it should needs no words, unless it was named.
            (named || partition.leader != Some(to)).then_some(Move {
                partition: place::id(partition),
                to,
            })
        })
        .collect();
    if moves.is_empty() {
        note("every leader is where it should be");
        return Ok(Exit::Ok);
    }
    let mut outcomes = Vec::with_capacity(moves.len());
    for moves in moves.chunks(MAX_MOVES) {
        let moves = moves.to_vec();
        outcomes.extend(partitions_of(operate(options, Operation::Transfer { moves })).await?);
    }
    let done = match to {
        Some(to) => format!("led by node {to}"),
        None => "led by its preferred replica".to_owned(),
    };
    tell_partitions(options, &status, &outcomes, &done)
}
