//! From nothing to a cluster that serves.

use std::time::Duration;

use tokio::time::Instant;

use super::{Folder, LocalError, Processes, Watchers};

/// How often a cluster begins anew because somebody took one of its ports.
const MAX_MOVES: u32 = 5;

/// Waits until the nodes, which have been started, are a cluster. Between the moment in which a port is let go of and the one
/// in which the node has it, somebody else can take it; then a new cluster begins anew on other ports, some times: `say`
/// hears of it, and `prepare` is called between.
///
/// # Errors
/// A node that has ended, or a cluster that is not complete `within` that time: with what is missing and where to look.
pub async fn start_up(
    within: Duration,
    folder: &mut Folder,
    processes: &mut Processes,
    ask_every: Duration,
    mut prepare: impl FnMut(&Folder) -> Result<(), LocalError>,
    mut say: impl FnMut(&str),
) -> Result<Watchers, LocalError> {
    let mut moves = 0;
    loop {
        let watchers = Watchers::start(folder, ask_every)?;
        let error = match wait_until_healthy(within, processes, &watchers).await {
            Ok(()) => return Ok(watchers),
            Err(error) => error,
        };
        let Some(port) = processes.taken_port() else {
            return Err(error);
        };
        if moves == MAX_MOVES || !folder.may_move() {
            return Err(error);
        }
        moves += 1;
        say(&format!(
            "Something else took port {port} meanwhile; starting the nodes on other ports …"
        ));
        drop(watchers);
        processes.stop().await;
        folder.move_to_other_ports()?;
        prepare(folder)?;
        *processes = Processes::start(folder)?;
    }
}

/// Waits until every node is registered, knows the controller, and is heard by it.
async fn wait_until_healthy(
    within: Duration,
    processes: &mut Processes,
    watchers: &Watchers,
) -> Result<(), LocalError> {
    let deadline = Instant::now() + within;
    loop {
        processes.fail_if_any_ended()?;
        if watchers.healthy() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(LocalError::Failed(format!(
                "the nodes were not healthy within {} s: {}; {}",
                within.as_secs(),
                watchers.complaint(),
                processes.where_to_look()
            )));
        }
        // A look at the processes is due even when no node has said anything.
        let _ = tokio::time::timeout(Duration::from_millis(200), watchers.changed()).await;
    }
}
