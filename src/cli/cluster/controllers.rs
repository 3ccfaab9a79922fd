//! `quorate cluster add-controller` and `remove-controller`.

use anyhow::bail;

use super::super::topic::nodes;
use super::super::{Exit, GlobalOptions, note, print_json, print_line};
use super::operate;
use crate::controller::{Operation, OperationOutcome};
use crate::types::NodeId;

pub(super) async fn change(options: &GlobalOptions, operation: Operation) -> anyhow::Result<Exit> {
    let OperationOutcome::Controllers { voters, wanted } = operate(options, operation).await?
    else {
        bail!(
            "the cluster answered something else than was asked: are all nodes of the same version?"
        );
    };
    let list: Vec<NodeId> = voters.iter().copied().collect();
    if options.json() {
        print_json(&serde_json::json!({"voters": voters, "wanted": wanted}))?;
    } else {
        print_line(&format!("Controllers: {}", nodes(&list)))?;
    }
    if wanted.len().is_multiple_of(2) {
        note(&format!(
            "warning: {} controllers survive no more failures than {}: add one more, or remove one",
            wanted.len(),
            wanted.len() - 1
        ));
    }
    if voters != wanted {
        let wanted: Vec<NodeId> = wanted.into_iter().collect();
        bail!(
            "they are to be {}, and are not yet: it goes on by itself; \"quorate cluster status\" shows who votes",
            nodes(&wanted)
        );
    }
    note("list these controllers with --controllers wherever a node is started from now on");
    Ok(Exit::Ok)
}
