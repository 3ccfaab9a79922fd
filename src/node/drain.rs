//! A node that is about to stop hands its leaderships over first.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::controller::{Controller, Operation};
use crate::metadata::{ClusterImage, can_take_over};
use crate::types::NodeId;

/// How long the controllers have for taking note of it.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks at whether there are still others to hand over to.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Asks to be drained and waits until this node leads nothing that another could, `within` at most. At once where there is
/// nobody to hand over to: for a node alone, and where no controller majority is heard.
pub(super) async fn drain(controller: &Controller, me: NodeId, within: Duration) {
    let begin = Instant::now();
    let mut images = controller.image();
    let image = images.borrow().clone();
    let first = movable(controller, &image, me);
    if first == 0 || !controller.hears_majority() {
        return;
    }
    tracing::info!(leaderships = first, "handing over before the stop");
    let operation = Operation::Drain { node: me, on: true };
    let asked = controller.operate(operation, ASK_WITHIN.min(within)).await;
    if let Err(error) = asked {
        tracing::warn!(cause = %error, "this node stops without handing over");
        return;
    }
    loop {
        let image = images.borrow_and_update().clone();
        let left = movable(controller, &image, me);
        let waited_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            tracing::info!(waited_ms, "handed over");
            return;
        }
        if begin.elapsed() >= within || !controller.hears_majority() {
            tracing::warn!(
                leaderships = left,
                waited_ms,
                "stopping all the same: these partitions wait for an election"
            );
            return;
        }
        // The image may stand still while the others go.
        let _ = tokio::time::timeout(LOOK_AGAIN, images.changed()).await;
    }
}

/// How many partitions this node leads that another node could take over.
fn movable(controller: &Controller, image: &ClusterImage, me: NodeId) -> usize {
    let alive: BTreeSet<NodeId> = if controller.voters().contains(&me) {
        controller.alive()
    } else {
        // Only controllers hear everybody.
        image.nodes().map(|node| node.node).collect()
    };
    let led = image
        .partitions()
        .filter(|(_, state)| state.leader_node() == Some(me));
    led.filter(|(_, state)| {
        let mut others = state.isr.iter().filter(|member| member.node != me);
        others.any(|member| can_take_over(image, &alive, state, member.node))
    })
    .count()
}
