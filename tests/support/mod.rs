//! What the tests of whole processes share: clusters on the loopback interface, workloads that remember what was
//! acknowledged, a Kafka client, what it asks of groups, a producer of transactions that does exactly what it is told, a relay
//! that looks at datagrams, the built program and what it must not leave behind.
//!
//! Nothing here waits for a fixed time: [`until`] waits for a condition and says which one did not come true.

// Each test binary compiles this for itself, uses a part of it and shows it to nobody.
#![allow(dead_code, unreachable_pub)]

pub mod cluster;
pub mod groups;
pub mod kafka;
#[cfg(target_os = "linux")]
pub mod lab;
pub mod preload;
pub mod program;
pub mod relay;
pub mod transactions;
pub mod workload;

use std::time::{Duration, Instant};

use quorate::types::{NodeId, TopicName};

/// How long something that should come within seconds may take on a busy machine before a test calls it missing.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Waits, [`PATIENCE`] at most, until `look` finds what it looks for. What it finds instead is told when time is over.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(instead) if begin.elapsed() > PATIENCE => {
                panic!("{what}: not within {PATIENCE:?}; instead: {instead}")
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

pub fn node(id: u32) -> NodeId {
    NodeId::new(id).unwrap()
}

pub fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

/// An error with everything behind it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
