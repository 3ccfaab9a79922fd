//! `quorate demo`: a cluster of processes on this machine, a producer, and a live view of both.
//!
//! Folder, nodes and what they say of themselves are [`bench::local`](crate::bench::local)'s.
//!
//! - [`impairment`]: links that are made worse on purpose
//! - [`workload`]: records, and what becomes of them
//! - [`screen`]: what a person sees meanwhile
//! - [`summary`]: what came of it

mod impairment;
mod screen;
mod summary;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::time::{Instant, MissedTickBehavior};

use self::impairment::ImpairmentArgs;
pub(super) use self::impairment::{LinkArgs, impairment_of};
use self::screen::Screen;
use self::summary::Summary;
use self::workload::{Load, Workload};
use super::signals::Signals;
use super::{Exit, GlobalOptions, note, parse_duration};
use crate::bench::local::{
    self, ASK_EVERY, Folder, MAX_NODES, Processes, Wishes, compare, start_up,
};
use crate::client::{Client, NewTopic};
use crate::types::TopicName;

const PARTITIONS: u32 = 3;
/// The largest record: a batch of it must stay under the default of `max.message.bytes`.
const MAX_RECORD_BYTES: u32 = 1_000_000;
/// How long records that are on their way at the end may take to be acknowledged.
const LAST_ACKS: Duration = Duration::from_secs(10);
/// How long followers may take at the end to learn what is committed.
const SETTLE: Duration = Duration::from_secs(5);

/// See a cluster work: start nodes on this machine, produce to them, watch them, break them
///
/// Makes certificates, starts the nodes as processes of their own, and produces with acks=all until Ctrl-C. Then it stops
/// everything, compares the replicas and says what came of it. Exits with 0 only if every record was acknowledged.
#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Stop by itself after this long, such as 20s [default: at Ctrl-C]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Folder for everything, new, empty or of a kept demo, which then goes on [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep the folder at the end
    #[arg(long)]
    keep: bool,

    /// How many nodes [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_NODES)))]
    nodes: Option<u16>,

    /// Records a second; 0 for as many as the cluster takes
    #[arg(long, value_name = "N", default_value_t = 2000)]
    rate: u64,

    /// Bytes of a record's value
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RECORD_BYTES))
    )]
    record_size: u32,

    /// Topic to create and produce to
    #[arg(long, value_name = "NAME", default_value = "demo")]
    topic: TopicName,

    #[command(flatten)]
    impairment: ImpairmentArgs,
}

pub(super) fn run(options: &GlobalOptions, args: DemoArgs) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the demo's threads: check the limits on processes and open files")?;
    let outcome = runtime.block_on(demo(options, args));
    runtime.shutdown_background();
    outcome
}

async fn demo(options: &GlobalOptions, args: DemoArgs) -> anyhow::Result<Exit> {
    let signals = Signals::listen().context("cannot listen for Ctrl-C")?;
    let mut screen = Screen::new(options.json());
    let wishes = Wishes {
        name: "demo",
        nodes: args.nodes,
        keep: args.keep,
        impairment: args.impairment.spec()?,
        ..Wishes::default()
    };
    let mut folder = Folder::open(args.dir.as_deref(), wishes)?;
    let outcome = tokio::select! {
        biased;
        outcome = perform(options, &args, &mut folder, &mut screen, &signals) => outcome,
        // Dropping the other future kills the nodes.
        () = signals.twice() => Ok(Exit::Interrupted),
    };
    screen.end_live();
    if let Some(told) = folder.close(matches!(outcome, Ok(Exit::Ok | Exit::Interrupted))) {
        note(&told);
    }
    outcome
}

/// The whole play. The nodes are stopped when it ends, however it ends.
async fn perform(
    options: &GlobalOptions,
    args: &DemoArgs,
    folder: &mut Folder,
    screen: &mut Screen,
    signals: &Signals,
) -> anyhow::Result<Exit> {
    let mut processes = Processes::start(folder)?;
    let played = tokio::select! {
        biased;
        played = play(options, args, folder, screen, signals, &mut processes) => played,
        // Until records flow there is nothing to sum up. Once they do, `play` hears of Ctrl-C itself.
        () = signals.stopped_early() => Ok(None),
    };
    screen.end_live();
    if matches!(played, Ok(Some(_))) {
        screen.say("Stopping the nodes …")?;
    }
    let stopped = processes.stop().await;
    let Some(mut summary) = played? else {
        screen.say("Interrupted before any record was produced; the nodes are stopped.")?;
        return Ok(Exit::Interrupted);
    };
    summary.nodes = stopped;
    screen.say("Comparing the replicas …")?;
    let topic = args.topic.clone();
    let plans = folder.nodes().to_vec();
    summary.partitions = tokio::task::spawn_blocking(move || compare(&plans, &topic))
        .await
        .context("the comparison of the replicas broke off")?;
    screen.end(&summary)?;
    summary.exit()
}

/// From the start of the nodes to the last acknowledgement.
async fn play(
    options: &GlobalOptions,
    args: &DemoArgs,
    folder: &mut Folder,
    screen: &mut Screen,
    signals: &Signals,
    processes: &mut Processes,
) -> anyhow::Result<Option<Summary>> {
    let count = folder.nodes().len();
    screen.say(&match count {
        1 => "Starting 1 node …".to_owned(),
        _ => format!("Starting {count} nodes …"),
    })?;
    let started = Instant::now();
    // What cannot be said here cannot be said later either, and that is an error then.
    let say = |line: &str| drop(screen.say(line));
    let prepare = |_: &Folder| Ok(());
    let watchers = start_up(options.timeout, folder, processes, ASK_EVERY, prepare, say).await?;
    let client = local::connect(folder).await?;
    create_topic(&client, &args.topic, count, options.timeout).await?;
    screen.introduce(folder, processes, &args.topic, started.elapsed())?;

    let load = Load {
        topic: args.topic.clone(),
        rate: args.rate,
        record_size: args.record_size as usize,
    };
    signals.records_flow();
    let workload = Workload::start(&client, load)?;
    let begun = Instant::now();
    let mut refresh = tokio::time::interval(screen.refresh_every());
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    refresh.tick().await;
    let end = async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    let failure = loop {
        tokio::select! {
            biased;
            () = signals.once() => break None,
            () = &mut end => break None,
            _ = refresh.tick() => {
                if processes.look() && let Err(error) = folder.write_nodes(&processes.pids()) {
                    break Some(anyhow::Error::new(error));
                }
                let window = workload.window();
                if let Err(error) = screen.show(begun.elapsed(), &window, &watchers, processes, &args.topic) {
                    break Some(error);
                }
            }
        }
    };
    let producing = begun.elapsed();
    screen.end_live();
    if failure.is_none() {
        screen.say("Waiting for the last acknowledgements …")?;
    }
    let outcome = workload.finish(LAST_ACKS).await;
    // Without that, the comparison covers less and says so.
    watchers.until_settled(&args.topic, SETTLE).await;
    client.close();
    match failure {
        Some(error) => Err(error),
        None => Ok(Some(Summary::new(folder, args, producing, outcome))),
    }
}

async fn create_topic(
    client: &Client,
    name: &TopicName,
    nodes: usize,
    within: Duration,
) -> anyhow::Result<()> {
    let replicas = nodes.min(3) as u16;
    let mut topic = NewTopic::new(name.clone());
    topic.partitions = Some(PARTITIONS);
    topic.replication_factor = Some(replicas);
    let majority = replicas / 2 + 1;
    topic
        .configs
        .insert("min.insync.replicas".to_owned(), majority.to_string());
    local::create_topic(client, &topic, within)
        .await
        .with_context(|| format!("cannot create topic {name}"))
}
