//! A run with a given cluster: records into it, out of it, or through it. The links are those that there are, made worse at this end
//! if that was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Run;
use super::course::{self, Teller, Until};
use super::figures::Figures;
use super::latencies::Latencies;
use super::settings::{Cell, Settings, Workload, flush_name};
use crate::bench::BenchError;
use crate::bench::local::create_topic;
use crate::bench::records::{
    Delivered, Found, Load, LoadOptions, PATIENCE, Produced, Tally, ends, read_from, read_up_to,
    stamp_of,
};
use crate::client::{
    Acks, Client, ClientConfig, ClientError, ConfigEntry, ConfigResource, ConsumerConfig, Event,
    IdentityDialer, NewTopic, PartitionName, Start,
};
use crate::transport::{CurrentIdentity, ImpairedLinks, Sockets};
use crate::types::{ErrorCode, Offset, PartitionIndex, TopicName};

/// Before a node that knows nothing of a topic is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long the removal of a topic may take.
const REMOVE_WITHIN: Duration = Duration::from_secs(10);

/// The cluster, and the topic in it.
pub struct Target {
    pub config: ClientConfig,
    pub identity: Arc<CurrentIdentity>,
    /// What the client's links are on where a run does not make them worse.
    pub sockets: Sockets,
    /// It is made where it is missing, and stays. `None`: one for each run, which goes again.
    pub topic: Option<TopicName>,
}

pub(super) async fn run(
    settings: &Settings,
    cell: &Cell,
    run: u32,
    target: &Target,
    stop: &CancellationToken,
    teller: &mut Teller<'_>,
) -> Result<Run, BenchError> {
    let mut ran = Run {
        figures: Figures::new(settings, cell, run)?,
        ..Run::default()
    };
    teller.says("connecting", 0.0);
    let connecting = async {
        // One emulated network carries all of them.
        let sockets = match cell.conditions.spec(settings.workload, ran.figures.seed)? {
            Some(spec) => Sockets::impaired(ImpairedLinks::new(None, spec)),
            None => target.sockets.clone(),
        };
        let client = connect(target, &sockets).await?;
        let mut others = Vec::new();
        for _ in 1..settings.producers {
            others.push(connect(target, &sockets).await?);
        }
        Ok::<_, BenchError>((client, others))
    };
    let (client, others) = tokio::select! {
        biased;
        () = stop.cancelled() => return Err(BenchError::Interrupted),
        clients = connecting => clients?,
    };
    let name = match &target.topic {
        Some(name) => name.clone(),
        None => format!("bench-{:08x}", rand::random::<u32>())
            .parse()
            .map_err(|_| BenchError::Failed("a topic cannot be called so".to_owned()))?,
    };
    let performed = tokio::select! {
        biased;
        () = stop.cancelled() => Err(BenchError::Interrupted),
        performed = async {
            open_topic(&client, &name, settings, cell, &mut ran.figures).await?;
            let course = Course {
                settings,
                cell,
                client: &client,
                others: &others,
                topic: &name,
                ran: &mut ran,
            };
            course.perform(teller).await
        } => performed,
    };
    if target.topic.is_none() {
        remove(&client, &name, teller).await;
    }
    client.close();
    others.iter().for_each(Client::close);
    performed?;
    Ok(ran)
}

async fn connect(target: &Target, sockets: &Sockets) -> Result<Client, BenchError> {
    let dialer = IdentityDialer::on(sockets.clone(), target.identity.clone());
    Client::connect(target.config.clone(), Arc::new(dialer))
        .await
        .map_err(BenchError::client("connect to the cluster"))
}

/// A topic that was made for this run and is no longer needed.
async fn remove(client: &Client, name: &TopicName, teller: &mut Teller<'_>) {
    let removed = tokio::time::timeout(REMOVE_WITHIN, client.admin().delete_topic(name)).await;
    let error = match removed {
        Ok(Ok(())) => return,
        // It was never made.
        Ok(Err(error)) if error.error_code() == Some(ErrorCode::UnknownTopicOrPartition) => {
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", REMOVE_WITHIN.as_secs()),
    };
    teller.notes(&format!(
        "topic {name} could not be removed ({error}): remove it with quorate topic delete {name}"
    ));
}

/// Makes the topic if it is missing, and notes what it is like. One that is there must be as was asked for.
async fn open_topic(
    client: &Client,
    name: &TopicName,
    settings: &Settings,
    cell: &Cell,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    let looking = || BenchError::client("look the topic up");
    let known = client.admin().list_topics().await.map_err(looking())?;
    let was_there = known.iter().any(|topic| topic.name == *name);
    if !was_there {
        let mut topic = NewTopic::new(name.clone());
        topic.partitions = Some(settings.partitions.unwrap_or(1));
        topic.replication_factor = settings.replicas;
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                topic.configs.insert(name.to_owned(), value);
            }
        };
        set(
            "flush",
            cell.flush.map(|flush| flush_name(flush).to_owned()),
        );
        set(
            "min.insync.replicas",
            settings.min_insync.map(|least| least.to_string()),
        );
        create_topic(client, &topic, settings.within)
            .await
            .map_err(BenchError::client("create the topic"))?;
    }
    let view = client
        .topic(name, false, settings.within)
        .await
        .map_err(looking())?;
    let partitions = view
        .topics
        .get(name)
        .map_or(&[][..], |topic| &topic.partitions);
    let resource = ConfigResource::Topic(name.clone());
    let configs = describe(client, &resource, settings.within)
        .await
        .map_err(looking())?;
    let config = |name: &str| {
        let entry = configs.iter().find(|entry| entry.name == name);
        entry.and_then(|entry| entry.value.clone())
    };
    figures.nodes = u16::try_from(view.nodes.len()).ok();
    figures.partitions = u32::try_from(partitions.len()).ok();
    figures.rf = partitions
        .first()
        .and_then(|p| u16::try_from(p.replicas.len()).ok());
    figures.flush = config("flush");
    figures.min_insync_replicas =
        config("min.insync.replicas").and_then(|least| least.parse().ok());
    let differs = [
        (
            "--partitions",
            settings.partitions.map(u64::from),
            figures.partitions.map(u64::from),
        ),
        (
            "--replication-factor",
            settings.replicas.map(u64::from),
            figures.rf.map(u64::from),
        ),
        (
            "--min-insync-replicas",
            settings.min_insync.map(u64::from),
            figures.min_insync_replicas.map(u64::from),
        ),
    ];
    let other = |flag: &str, is: &str| {
        Err(BenchError::Impossible(format!(
            "topic {name} is there already, with {is}: leave {flag} away, or name another --topic"
        )))
    };
    for (flag, asked, is) in differs {
        if let (Some(asked), Some(is)) = (asked, is)
            && asked != is
        {
            return other(flag, &format!("{flag} {is} and not {asked}"));
        }
    }
    match (cell.flush.map(flush_name), &figures.flush) {
        (Some(asked), Some(is)) if asked != is => {
            other("--flush", &format!("--flush {is} and not {asked}"))
        }
        _ => Ok(()),
    }
}

/// The settings of a topic that the node which is asked may not have heard of yet.
async fn describe(
    client: &Client,
    resource: &ConfigResource,
    within: Duration,
) -> Result<Vec<ConfigEntry>, ClientError> {
    let deadline = Instant::now() + within;
    loop {
        match client.admin().describe_configs(resource).await {
            Err(error)
                if error.error_code() == Some(ErrorCode::UnknownTopicOrPartition)
                    && Instant::now() < deadline =>
            {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            other => return other,
        }
    }
}

struct Course<'a> {
    settings: &'a Settings,
    cell: &'a Cell,
    client: &'a Client,
    /// Of the other producers.
    others: &'a [Client],
    topic: &'a TopicName,
    ran: &'a mut Run,
}

impl Course<'_> {
    async fn perform(self, teller: &mut Teller<'_>) -> Result<(), BenchError> {
        match self.settings.workload {
            Workload::Produce | Workload::Replicate => self.produce(teller).await,
            Workload::EndToEnd => self.end_to_end(teller).await,
            Workload::Consume => self.consume(teller).await,
        }
    }

    fn load(&self, acks: Acks, mark: u64) -> Result<Load<Latencies>, BenchError> {
        let options = LoadOptions {
            producer: self.settings.producer(acks),
            topic: self.topic.clone(),
            mark,
        };
        let clients = std::iter::once(self.client).chain(self.others);
        let mut load = Load::new(clients, options, course::latencies()?)?;
        load.add(self.settings.pattern())?;
        Ok(load)
    }

    /// Where the records of this run will begin.
    async fn starts(&self) -> Result<Vec<(PartitionName, Start)>, BenchError> {
        let ends = ends(self.client, self.topic).await?;
        Ok(ends
            .into_iter()
            .map(|(name, end)| (name, Start::Offset(end)))
            .collect())
    }

    async fn produce(self, teller: &mut Teller<'_>) -> Result<(), BenchError> {
        let starts = self.starts().await?;
        let mark = rand::random();
        let load = self.load(self.cell.acks, mark)?;
        course::warm_up(self.settings, teller).await;
        course::measure(&load, self.settings, teller, |_| {}, |_| {}).await?;
        teller.says("waiting for the last acknowledgements", 1.0);
        let produced = load.finish().await;
        teller.says("reading everything back", 1.0);
        let found = read_from(self.client, starts, mark).await?;
        self.ran.take(produced, &[&found]);
        Ok(())
    }

    async fn end_to_end(self, teller: &mut Teller<'_>) -> Result<(), BenchError> {
        let starts = self.starts().await?;
        let mark = rand::random();
        let load = self.load(self.cell.acks, mark)?;
        let heard = Arc::new(Mutex::new(Heard {
            latencies: course::latencies()?,
            found: Found::default(),
            last: Instant::now(),
        }));
        let stop = CancellationToken::new();
        // However this ends, the reader does.
        let stops = stop.clone().drop_guard();
        let begun = load.begun();
        let listening = listen(
            self.client,
            starts.clone(),
            mark,
            begun,
            heard.clone(),
            stop,
        );
        let reader = listening.await?;
        let reading = tokio::spawn(reader);
        course::warm_up(self.settings, teller).await;
        let (begins, ends) = (heard.clone(), heard.clone());
        let begins = move |now| lock(&begins).latencies.begin(now);
        let ends = move |now| lock(&ends).latencies.end(now);
        course::measure(&load, self.settings, teller, begins, ends).await?;
        teller.says("waiting for the last records", 1.0);
        let produced = load.finish().await;
        loop {
            let (lacks, last) = {
                let heard = lock(&heard);
                (heard.found.lacks(&produced.acknowledged), heard.last)
            };
            if lacks == 0 || last.elapsed() > PATIENCE {
                break;
            }
            if reading.is_finished() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(stops);
        if let Ok(Err(source)) = reading.await {
            return Err(BenchError::client("consume")(source));
        }
        // What the consumer waited for may have come again behind that.
        teller.says("reading everything back", 1.0);
        let there = read_from(self.client, starts, mark).await?;
        let mut heard = lock(&heard);
        // A record that was never sent never came to the consumer either.
        heard.latencies.miss(&produced.tally);
        self.ran.figures.take_end_to_end(heard.latencies.times());
        self.ran.end_to_end_times = heard.latencies.times().distribution();
        self.ran.take(produced, &[&heard.found, &there]);
        Ok(())
    }

    /// Reads what is there, after more was put there where it is too little.
    async fn consume(self, teller: &mut Teller<'_>) -> Result<(), BenchError> {
        let ends_now = ends(self.client, self.topic).await?;
        let there: u64 = ends_now.iter().map(|(_, end)| end.get()).sum();
        // Unless it is said, all that is there.
        let wanted = self.settings.records.unwrap_or(there);
        let mark = rand::random();
        let filled = match there < wanted {
            true => Some(self.fill(wanted - there, mark, teller).await?),
            false => None,
        };
        let read = self.read(wanted, teller).await?;
        teller.says("reading everything again", 1.0);
        let limits = match filled {
            // What was put there is looked for to the end, however far the measurement came.
            Some(_) => whole(&ends(self.client, self.topic).await?),
            None => read.delivered.passed(),
        };
        let (found, again) = read_up_to(self.client, self.topic, &limits, mark).await?;
        let figures = &mut self.ran.figures;
        figures.lost = read.delivered.lacks(&again);
        figures.duplicated = read.delivered.duplicated() + found.duplicated;
        figures.count(
            read.records,
            read.took,
            read.bytes as f64 / read.records.max(1) as f64,
        );
        if let Some(produced) = filled {
            figures.records = produced.records;
            figures.acknowledged = produced.acknowledged.count();
            figures.unacknowledged = produced.unacknowledged;
            figures.reasons.extend(produced.reasons);
            // Those that are not there at all, and so in neither reading.
            figures.lost += found.lacks(&produced.acknowledged);
        }
        Ok(())
    }

    async fn fill(
        &self,
        records: u64,
        mark: u64,
        teller: &mut Teller<'_>,
    ) -> Result<Produced<Latencies>, BenchError> {
        let load = self.load(Acks::All, mark)?;
        let mut until = Until::start(&Settings {
            records: Some(records),
            duration: None,
            ..self.settings.clone()
        });
        loop {
            let (failed, acknowledged) = load.counts();
            if failed > 0 || until.is_reached(acknowledged, teller, "filling the topic")? {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(load.finish().await)
    }

    /// From the first record on, until enough have come, or their time is over, or there are no more.
    async fn read(&self, wanted: u64, teller: &mut Teller<'_>) -> Result<Read, BenchError> {
        let failed = || BenchError::client("consume");
        let ends = ends(self.client, self.topic).await?;
        let mut open: BTreeSet<PartitionName> = ends
            .iter()
            .filter(|(_, end)| *end > Offset::ZERO)
            .map(|(name, _)| name.clone())
            .collect();
        let config = ConsumerConfig::default();
        let mut consumer = self.client.consumer(config).map_err(failed())?;
        let mut until = Until::start(&Settings {
            records: Some(wanted),
            ..self.settings.clone()
        });
        let begun = Instant::now();
        consumer
            .assign_topic(self.topic, Start::Beginning)
            .await
            .map_err(failed())?;
        let mut read = Read::default();
        while !open.is_empty() {
            let event = tokio::time::timeout(PATIENCE, consumer.next())
                .await
                .map_err(|_| {
                    BenchError::Failed(format!(
                        "nothing came within {} s while the topic was read",
                        PATIENCE.as_secs()
                    ))
                })?
                .map_err(failed())?;
            match event {
                Event::Record(record) => {
                    let value = record.record.value.as_deref();
                    read.records += 1;
                    read.bytes += value.map_or(0, <[u8]>::len) as u64;
                    let offset = record.record.offset.unsigned_abs();
                    read.delivered.take(record.partition, offset);
                }
                Event::EndOfPartition {
                    topic,
                    partition,
                    offset,
                } => {
                    read.delivered.pass(partition, offset);
                    open.remove(&PartitionName::new(topic, partition));
                }
            }
            // A look at the clock for each record would be measured.
            let is_time_to_look = read.records % 64 == 0 || read.records >= wanted;
            if is_time_to_look && until.is_reached(read.records, teller, "consuming")? {
                break;
            }
        }
        read.took = begun.elapsed();
        Ok(read)
    }
}

#[derive(Default)]
struct Read {
    records: u64,
    /// Of the values.
    bytes: u64,
    took: Duration,
    delivered: Delivered,
}

fn whole(ends: &[(PartitionName, Offset)]) -> BTreeMap<PartitionIndex, Offset> {
    let filled = ends.iter().filter(|(_, end)| *end > Offset::ZERO);
    filled.map(|(name, end)| (name.partition, *end)).collect()
}

impl Run {
    fn take(&mut self, produced: Produced<Latencies>, found: &[&Found]) {
        self.commit_times = produced.tally.times().distribution();
        self.series = produced.tally.series().clone();
        (self.figures.lost, self.figures.duplicated) =
            Found::verdict(found, &produced.acknowledged);
        self.figures.take(produced);
    }
}

/// What a reader has heard so far.
struct Heard {
    latencies: Latencies,
    found: Found,
    last: Instant,
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A consumer that reads from `starts` on until it is stopped, and notes how long each record of this run took since the moment
/// that it says itself, which is counted from `begun`.
async fn listen(
    client: &Client,
    starts: Vec<(PartitionName, Start)>,
    mark: u64,
    begun: Instant,
    heard: Arc<Mutex<Heard>>,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), ClientError>> + Send + 'static, BenchError> {
    let failed = || BenchError::client("consume");
    let config = ConsumerConfig::default();
    let mut consumer = client.consumer(config).map_err(failed())?;
    consumer.assign(starts).await.map_err(failed())?;
    Ok(async move {
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                event = consumer.next() => event?,
            };
            let Event::Record(record) = event else {
                continue;
            };
            let value = record.record.value.as_deref();
            let mut heard = lock(&heard);
            let now = begun.elapsed();
            heard.last = Instant::now();
            heard.found.take(mark, value);
            if let Some((_, stamp)) = value.and_then(|value| stamp_of(mark, value)) {
                heard
                    .latencies
                    .acknowledged(Duration::from_micros(stamp), now);
            }
        }
    })
}
