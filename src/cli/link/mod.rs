//! `quorate link`: the replication links, each from both of its ends.

mod rows;
mod screen;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use self::rows::{Row, Rows};
use super::connect::{self, bootstrap_servers, in_one_line};
use super::output::closed;
use super::{Exit, GlobalOptions, block_on, parse_duration, print_json, print_line};
use crate::admin::{NodeLinks, ask_links};
use crate::transport::{Alpn, CloseReason, Dialled, Identity, PeerAddress, dial};
use crate::types::NodeId;

/// How long one node may take to answer before it is shown as one that does not.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);
/// Between the two samples of a list that is shown once: rates need two.
const SAMPLE_AFTER: Duration = Duration::from_secs(1);
const CLOSE_WAIT: Duration = Duration::from_millis(100);
/// Clears a terminal, with the cursor at its top.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Look at the replication links
#[derive(Args, Debug)]
pub(super) struct LinkArgs {
    #[command(subcommand)]
    command: LinkCommand,
}

#[derive(Subcommand, Debug)]
enum LinkCommand {
    /// Show each link from a leader to a follower: state, path, rate, lag, and what last went wrong
    ///
    /// Every node of the cluster is asked, so that both ends of a link are known: shown is what the leader sees, and where
    /// the follower sees it otherwise. A follower that cannot be heard has no lag of 0, but an unknown one.
    List {
        /// Go on showing them, until Ctrl-C, also while no node answers
        #[arg(long)]
        watch: bool,
        /// With --watch: how often
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1s", requires = "watch")]
        interval: Duration,
    },
}

pub(super) fn run(options: &GlobalOptions, args: LinkArgs) -> anyhow::Result<Exit> {
    let LinkCommand::List { watch, interval } = args.command;
    block_on(async {
        let mut nodes = Nodes::new(options)?;
        if watch {
            self::watch(
                options,
                &mut nodes,
                interval.max(Duration::from_millis(100)),
            )
            .await
        } else {
            list(options, &mut nodes).await
        }
    })
}

async fn list(options: &GlobalOptions, nodes: &mut Nodes) -> anyhow::Result<Exit> {
    let mut rows = Rows::default();
    rows.take(&nodes.ask().await.answered()?);
    tokio::time::sleep(SAMPLE_AFTER).await;
    let sample = nodes.ask().await.answered()?;
    show(options, &rows.take(&sample), &sample)?;
    nodes.close().await;
    Ok(Exit::Ok)
}

async fn watch(
    options: &GlobalOptions,
    nodes: &mut Nodes,
    interval: Duration,
) -> anyhow::Result<Exit> {
    let redraws = !options.json() && io::stdout().is_terminal();
    let mut rows = Rows::default();
    let mut every = tokio::time::interval(interval);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_first = true;
    loop {
        every.tick().await;
        let mut sample = nodes.ask().await;
        // Whoever is watching waits for the moment in which nobody answers; but a wrong address is told at once.
        if std::mem::take(&mut is_first) {
            sample = sample.answered()?;
        }
        let shown = rows.take(&sample);
        if redraws {
            let mut stdout = io::stdout().lock();
            closed(write!(stdout, "{CLEAR}").and_then(|()| stdout.flush()))?;
        }
        show(options, &shown, &sample)?;
        if !redraws && !options.json() {
            print_line("")?;
        }
    }
}

fn show(options: &GlobalOptions, rows: &[Row], sample: &Sample) -> anyhow::Result<()> {
    if options.json() {
        if let (true, Some(error)) = (sample.answers.is_empty(), &sample.error) {
            tracing::warn!("no node answers: {}", in_one_line(error.as_ref()));
        }
        return rows.iter().try_for_each(print_json);
    }
    screen::lines(rows, sample)
        .iter()
        .try_for_each(|line| print_line(line))
}

/// What every node said at one time.
#[derive(Debug)]
struct Sample {
    at: Instant,
    answers: BTreeMap<NodeId, NodeLinks>,
    /// Addresses, with the node where it is known, and why there was no answer.
    silent: Vec<(String, Option<NodeId>, String)>,
    /// Why the first of these did not.
    error: Option<anyhow::Error>,
}

impl Sample {
    /// An error where nobody has answered.
    fn answered(mut self) -> anyhow::Result<Sample> {
        match self.error.take() {
            Some(error) if self.answers.is_empty() => Err(error),
            _ => Ok(self),
        }
    }
}

/// The nodes that are asked, with the connections to them, which are kept from one time to the next. At most as many as
/// were named and a cluster may have.
struct Nodes {
    identity: Arc<Identity>,
    within: Duration,
    known: BTreeMap<String, Option<NodeId>>,
    connections: BTreeMap<String, Dialled>,
}

impl Nodes {
    fn new(options: &GlobalOptions) -> anyhow::Result<Nodes> {
        let known = bootstrap_servers(options)
            .into_iter()
            .map(|server| (server.host_port, server.node));
        Ok(Nodes {
            identity: Arc::new(connect::identity(options)?),
            within: options.timeout.min(NODE_TIMEOUT),
            known: known.collect(),
            connections: BTreeMap::new(),
        })
    }

    /// Asks all of them at once, and those whom they name after that.
    async fn ask(&mut self) -> Sample {
        let mut sample = Sample {
            at: Instant::now(),
            answers: BTreeMap::new(),
            silent: Vec::new(),
            error: None,
        };
        let mut asked = BTreeSet::new();
        loop {
            let round: Vec<(String, Option<NodeId>)> = self
                .known
                .iter()
                .filter(|(address, _)| !asked.contains(*address))
                .map(|(address, node)| (address.clone(), *node))
                .collect();
            if round.is_empty() {
                break;
            }
            asked.extend(round.iter().map(|(address, _)| address.clone()));
            let mut questions = Vec::new();
            for (address, node) in round {
                let kept = self.connections.remove(&address);
                let (identity, within) = (self.identity.clone(), self.within);
                questions.push(async move {
                    let answer = ask_one(&identity, &address, node, kept, within).await;
                    (address, node, answer)
                });
            }
            for (address, node, answer) in join_all(questions).await {
                match answer {
                    Ok((dialled, links)) => {
                        self.connections.insert(address.clone(), dialled);
                        self.known.insert(address, Some(links.node));
                        for known in &links.nodes {
                            self.known
                                .entry(known.quic.clone())
                                .or_insert(Some(known.node));
                        }
                        sample.answers.insert(links.node, links);
                    }
                    Err(error) => {
                        sample
                            .silent
                            .push((address, node, in_one_line(error.as_ref())));
                        sample.error.get_or_insert(error);
                    }
                }
            }
        }
        // By another of its names it may have answered.
        sample
            .silent
            .retain(|(_, node, _)| node.is_none_or(|node| !sample.answers.contains_key(&node)));
        sample
    }

    async fn close(&mut self) {
        let closing = std::mem::take(&mut self.connections).into_values();
        join_all(closing.map(|dialled| async move {
            dialled.close(CloseReason::Done, "", CLOSE_WAIT).await;
        }))
        .await;
    }
}

/// Over the connection that was kept, or over a new one where there is none or it has broken.
async fn ask_one(
    identity: &Arc<Identity>,
    address: &str,
    node: Option<NodeId>,
    kept: Option<Dialled>,
    within: Duration,
) -> anyhow::Result<(Dialled, NodeLinks)> {
    if let Some(dialled) = kept {
        match timeout(within, ask_links(&dialled.connection)).await {
            Ok(Ok(links)) => return Ok((dialled, links)),
            // It has broken, and another one may do.
            Ok(Err(_)) => {}
            // A node that hangs would not answer a new one either.
            Err(_) => bail!("{address} did not answer within {} s", within.as_secs_f64()),
        }
    }
    let peer = PeerAddress {
        node,
        host_port: address.to_owned(),
    };
    let dialled = dial(identity, &peer, Alpn::Admin, within).await?;
    let links = timeout(within, ask_links(&dialled.connection))
        .await
        .with_context(|| format!("{address} did not answer in time"))?
        .with_context(|| format!("cannot ask {address}"))?;
    Ok((dialled, links))
}
