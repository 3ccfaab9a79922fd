//! `quorate consume -g`: records as a member of a consumer group.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::connect::{self, failed};
use super::consume::{ConsumeArgs, IDLE, Output};
use super::{Exit, GlobalOptions, block_on_to_the_end, note};
use crate::client::{Client, ConsumerConfig, GroupConfig, GroupConsumer, GroupEvent};
use crate::types::TopicName;

/// How often what was printed is committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long an interrupted command waits for whoever takes its output.
const SETTLE_WITHIN: Duration = Duration::from_millis(500);

pub(super) fn run(
    options: &GlobalOptions,
    args: &ConsumeArgs,
    group: &str,
    topic: &TopicName,
    config: ConsumerConfig,
) -> anyhow::Result<Exit> {
    block_on_to_the_end(async {
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        let client = tokio::select! {
            biased;
            client = connect::client(options) => client?,
            _ = &mut interrupted => return Ok(Exit::Interrupted),
        };
        // It is told at once that there is no such topic, and not when the group has given it out.
        client
            .topic(topic, false, options.timeout)
            .await
            .map_err(failed)?;
        let config = GroupConfig {
            start: args.offset,
            consumer: config,
            ..GroupConfig::new(group, vec![topic.clone()])
        };
        let mut consumer = client.group_consumer(config).map_err(failed)?;
        let mut output = Output::start()?;
        let outcome = tokio::select! {
            biased;
            outcome = consume(args, &mut consumer, &mut output) => outcome,
            _ = &mut interrupted => Ok(Exit::Interrupted),
        };
        // What cannot be written soon is not committed, and so is printed by whoever goes on.
        if let Ok(Exit::Interrupted) = outcome
            && output.is_whole()
            && let Ok(Ok(())) = tokio::time::timeout(SETTLE_WITHIN, output.settle()).await
        {
            consumer.done();
        }
        let left = end(&client, consumer).await;
        let outcome = outcome?;
        left?;
        if outcome == Exit::Ok {
            output.finish().await?;
        }
        Ok(outcome)
    })
}

/// Commits what was written, and leaves, so that others need not wait for the session's end.
async fn end(client: &Client, mut consumer: GroupConsumer) -> anyhow::Result<()> {
    let committed = consumer.commit().await;
    let left = consumer.leave().await;
    client.close();
    committed.map_err(failed)?;
    left.map_err(failed)
}

async fn consume(
    args: &ConsumeArgs,
    consumer: &mut GroupConsumer,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let mut open = BTreeSet::new();
    let mut printed = 0;
    let mut commit_at = Instant::now() + COMMIT_EVERY;
    while args.count.is_none_or(|count| printed < count) {
        let event = match tokio::time::timeout(IDLE, consumer.next()).await {
            Ok(event) => Some(event.map_err(failed)?),
            Err(_) => {
                output.flush().await?;
                None
            }
        };
        match event {
            Some(GroupEvent::Record(record)) => {
                output.write(args, &record)?;
                printed += 1;
                if args.unbuffered || output.is_full() {
                    output.flush().await?;
                }
            }
            Some(GroupEvent::EndOfPartition { partition, .. }) => {
                open.remove(&partition);
                if args.exit && open.is_empty() {
                    break;
                }
            }
            Some(GroupEvent::Assigned(partitions)) => {
                tracing::info!(?partitions, "assigned");
                open = partitions.into_iter().collect();
                if args.exit && open.is_empty() {
                    break;
                }
            }
            Some(GroupEvent::Rebalancing) => {
                commit(consumer, output).await?;
                commit_at = Instant::now() + COMMIT_EVERY;
            }
            None => {}
        }
        if Instant::now() >= commit_at {
            commit(consumer, output).await?;
            commit_at = Instant::now() + COMMIT_EVERY;
        }
    }
    output.settle().await?;
    consumer.done();
    if printed == 0 && args.exit {
        note("no records");
    }
    Ok(Exit::Ok)
}

/// Commits what is written. A commit that comes too late is no failure: another member prints those records again.
async fn commit(consumer: &mut GroupConsumer, output: &mut Output) -> anyhow::Result<()> {
    output.settle().await?;
    consumer.done();
    if let Err(error) = consumer.commit().await {
        if error.connect_error().is_some() {
            return Err(failed(error));
        }
        tracing::warn!(%error, "what was printed last is not committed; it may be printed again");
    }
    Ok(())
}
