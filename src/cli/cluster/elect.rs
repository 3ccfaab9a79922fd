//! `quorate cluster elect --unclean`.

use std::io::{self, IsTerminal};

use anyhow::{Context, bail};

use super::super::topic::nodes;
use super::super::{Exit, ExitWith, GlobalOptions, note, print_json, print_line};
use super::place::{self, Place};
use super::{look, operate};
use crate::controller::{Operation, OperationOutcome, UncleanElection};
use crate::types::NodeId;

pub(super) async fn run(
    options: &GlobalOptions,
    place: Place,
    node: Option<NodeId>,
    yes: bool,
) -> anyhow::Result<Exit> {
    if place.partition.is_none() {
        let message = format!("name one partition: write {place}:0");
        return Err(ExitWith::new(Exit::Usage, message).into());
    }
    let status = look(options).await?;
    let found = place.find(&status)?;
    let [partition] = found[..] else {
        bail!("there is more than one partition {place}");
    };
    if !yes && !confirmed(&place)? {
        note("nothing was done");
        return Ok(Exit::Failure);
    }
    let operation = Operation::ElectUnclean {
        partition: place::id(partition),
        node,
    };
    let OperationOutcome::Unclean(election) = operate(options, operation).await? else {
        bail!(
            "the cluster answered something else than was asked: are all nodes of the same version?"
        );
    };
    if options.json() {
        print_json(&election)?;
    } else {
        tell(&place, &election)?;
    }
    Ok(Exit::Ok)
}

/// Whether a person at the terminal has typed the partition's name.
fn confirmed(place: &Place) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        let message = "an unclean election may lose committed records: add --yes if that is meant";
        return Err(ExitWith::new(Exit::Usage, message.to_owned()).into());
    }
    note(&format!(
        "Records of {place} that were acknowledged may be lost for ever. Type {place} to go on:"
    ));
    let mut typed = String::new();
    io::stdin()
        .read_line(&mut typed)
        .context("cannot read the answer")?;
    Ok(typed.trim() == place.to_string())
}

fn tell(place: &Place, election: &UncleanElection) -> anyhow::Result<()> {
    print_line(&format!(
        "Node {} leads {place} in epoch {}. Its log ends at offset {}.",
        election.leader, election.epoch, election.log_end.offset
    ))?;
    let known = election.known_high_watermark;
    if known > election.log_end.offset {
        print_line(&format!(
            "Lost for certain: the records from {} to {known}, which were committed.",
            election.log_end.offset
        ))?;
    }
    if !election.silent.is_empty() {
        print_line(&format!(
            "What only the replicas on nodes {} held is lost as well; nobody knows how much that was.",
            nodes(&election.silent)
        ))?;
    }
    Ok(())
}
