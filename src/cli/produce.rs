//! `quorate produce`: records from standard input, or from files, into a topic.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use super::connect::{self, failed, kafka_name};
use super::delimiter::{Cut, Delimiter, Piece, Splitter};
use super::duration::parse_duration;
use super::unterminated;
use super::{Exit, ExitWith, GlobalOptions, block_on_to_the_end, note};
use crate::client::{
    Acks, ClientError, Delivery, InvalidAcks, Producer, ProducerConfig, ProducerRecord,
};
use crate::record::Compression;
use crate::types::{ErrorCode, PartitionIndex, TopicName};

/// Records that were read and wait to be handed to the producer; reading pauses at the cap.
const READ_AHEAD: usize = 4096;
/// Records handed over whose fate is not known; handing over pauses at the cap. The producer's own bound is in bytes.
const MAX_UNCOUNTED: usize = 1 << 20;
/// A longer record is refused by every node, and not read into memory.
const MAX_RECORD_BYTES: usize = 16 << 20;
/// Ranges of lost records that are named for each cause.
const MAX_RANGES: usize = 20;
/// Causes that are named.
const MAX_CAUSES: usize = 10;
/// After Ctrl-C, how long records that were read already may take to be acknowledged.
const INTERRUPTED_PATIENCE: Duration = Duration::from_secs(5);

/// Send records to a topic, one for each line of standard input
///
/// Every record that was not acknowledged is named, by its number in the input, and the exit code is then 4.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub(super) struct ProduceArgs {
    /// The topic
    #[arg(value_name = "TOPIC", required_unless_present = "topic_flag")]
    topic: Option<TopicName>,

    /// The topic, as a flag
    #[arg(
        short = 't',
        long = "topic",
        value_name = "TOPIC",
        conflicts_with = "topic",
        id = "topic_flag"
    )]
    topic_flag: Option<TopicName>,

    /// Files to read instead of standard input, one after another
    #[arg(short = 'l', long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Send everything to this partition [default: by key, or spread]
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,

    /// What ends a record; escapes are \n \r \t \0 \\ \xHH
    #[arg(short = 'D', long, value_name = "DELIM", default_value = r"\n")]
    delimiter: Delimiter,

    /// What stands between key and value within a record
    #[arg(short = 'K', long, value_name = "DELIM")]
    key_delimiter: Option<Delimiter>,

    /// The key of every record
    #[arg(short, long, value_name = "KEY", conflicts_with = "key_delimiter")]
    key: Option<String>,

    /// A header of every record; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, Option<Bytes>)>,

    /// none, gzip, snappy, lz4 or zstd [default: none]
    #[arg(short = 'z', long, value_name = "CODEC")]
    compression: Option<Compression>,

    /// all: a quorum holds the record durably; 1: the leader does; 0: nobody says [default: all]
    #[arg(short, long, value_name = "ACKS", allow_hyphen_values = true)]
    acks: Option<Acks>,

    /// How long a batch waits to be filled [default: 5ms]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    linger: Option<Duration>,

    /// The most bytes of one batch [default: 262144]
    #[arg(long, value_name = "BYTES")]
    batch_size: Option<usize>,

    /// How long a record is tried before it is given up [default: 120s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    delivery_timeout: Option<Duration>,

    /// A producer setting by Kafka's name, such as linger.ms=10; may be repeated
    #[arg(short = 'X', value_name = "NAME=VALUE")]
    settings: Vec<String>,

    /// Print help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
}

fn header(text: &str) -> Result<(String, Option<Bytes>), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("write NAME=VALUE".to_owned()),
        Some((name, value)) => Ok((
            name.to_owned(),
            Some(Bytes::copy_from_slice(value.as_bytes())),
        )),
        None => Ok((text.to_owned(), None)),
    }
}

/// Kafka's names for the producer's settings.
fn apply(config: &mut ProducerConfig, setting: &str) -> anyhow::Result<()> {
    let wrong = |what: &str| {
        ExitWith::new(
            Exit::Usage,
            format!(
                "-X {setting}: {what}; it is one of acks, batch.size, buffer.memory, compression.type, \
                     delivery.timeout.ms, enable.idempotence, linger.ms, max.block.ms, \
                     max.in.flight.requests.per.connection and max.request.size, written NAME=VALUE"
            ),
        )
    };
    let (name, value) = setting
        .split_once('=')
        .ok_or_else(|| wrong("there is no value"))?;
    let number = || value.parse::<usize>().map_err(|_| wrong("no number"));
    let millis = || number().map(|ms| Duration::from_millis(ms as u64));
    match name {
        "acks" | "request.required.acks" => {
            config.acks = value
                .parse()
                .map_err(|what: InvalidAcks| wrong(&what.to_string()))?;
        }
        "batch.size" => config.batch_bytes = number()?,
        "buffer.memory" => config.max_in_flight_bytes = number()?,
        "compression.type" => {
            config.compression = value.parse().map_err(|_| wrong("no such codec"))?;
        }
        "delivery.timeout.ms" | "message.timeout.ms" => config.delivery_timeout = millis()?,
        "enable.idempotence" => {
            config.idempotence = Some(value.parse().map_err(|_| wrong("neither true nor false"))?);
        }
        "linger.ms" => config.linger = millis()?,
        "max.block.ms" => config.max_block = millis()?,
        "max.in.flight.requests.per.connection" => config.max_in_flight_batches = Some(number()?),
        "max.request.size" => config.max_request_bytes = number()?,
        _ => return Err(wrong("there is no such setting").into()),
    }
    Ok(())
}

impl ProduceArgs {
    fn topic(&self) -> anyhow::Result<TopicName> {
        match self.topic.as_ref().or(self.topic_flag.as_ref()) {
            Some(topic) => Ok(topic.clone()),
            None => bail!("no topic is given: add its name"),
        }
    }

    fn producer_config(&self) -> anyhow::Result<ProducerConfig> {
        let mut config = ProducerConfig::default();
        for setting in &self.settings {
            apply(&mut config, setting)?;
        }
        if let Some(acks) = self.acks {
            config.acks = acks;
        }
        if let Some(compression) = self.compression {
            config.compression = compression;
        }
        if let Some(linger) = self.linger {
            config.linger = linger;
        }
        if let Some(bytes) = self.batch_size {
            config.batch_bytes = bytes;
        }
        if let Some(timeout) = self.delivery_timeout {
            config.delivery_timeout = timeout;
        }
        config.max_block = config.max_block.max(config.delivery_timeout);
        Ok(config)
    }

    fn record(&self, topic: &TopicName, piece: Piece) -> ProducerRecord {
        let mut headers = self.headers.clone();
        if !piece.delimited {
            headers.push(unterminated::header());
        }
        let (key, value) = match &self.key_delimiter {
            Some(delimiter) => match delimiter.find(&piece.bytes) {
                Some(at) => (
                    Some(piece.bytes.slice(..at)),
                    piece.bytes.slice(at + delimiter.as_bytes().len()..),
                ),
                None => (None, piece.bytes),
            },
            None => {
                let key = self.key.as_ref();
                (
                    key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
                    piece.bytes,
                )
            }
        };
        ProducerRecord {
            topic: topic.clone(),
            partition: self.partition.map(PartitionIndex),
            key,
            value: Some(value),
            headers,
            timestamp: None,
        }
    }
}

pub(super) fn run(options: &GlobalOptions, args: ProduceArgs) -> anyhow::Result<Exit> {
    let topic = args.topic()?;
    let config = args.producer_config()?;
    block_on_to_the_end(async move {
        let client = connect::client(options).await?;
        let producer = client.producer(config).map_err(failed)?;
        let outcome = produce(&args, &topic, &producer).await;
        producer.close().await;
        client.close();
        outcome
    })
}

async fn produce(
    args: &ProduceArgs,
    topic: &TopicName,
    producer: &Producer,
) -> anyhow::Result<Exit> {
    let mut pieces = read_on_a_thread(args)?;
    let (handed_over, deliveries) = mpsc::channel(MAX_UNCOUNTED);
    let counting = tokio::spawn(count(deliveries, progress_bar()));
    let started = Instant::now();
    let mut number = 0;
    let mut interrupted = false;
    let mut read_error = None;
    loop {
        let piece = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => {
                interrupted = true;
                break;
            }
            piece = pieces.recv() => piece,
        };
        let Some(piece) = piece else { break };
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                read_error = Some(error);
                break;
            }
        };
        number += 1;
        let (bytes, fate) = match piece {
            Cut::TooLong(length) => (0, Fate::NotSent(too_long(length))),
            Cut::Record(piece) => {
                let bytes = piece.bytes.len();
                let record = args.record(topic, piece);
                let sent = tokio::select! {
                    biased;
                    sent = producer.send(record) => sent,
                    _ = tokio::signal::ctrl_c() => {
                        interrupted = true;
                        break;
                    }
                };
                let fate = match sent {
                    Ok(delivery) => Fate::Sent(delivery),
                    Err(error) if error.connect_error().is_some() && number == 1 => {
                        return Err(failed(error));
                    }
                    Err(error) => Fate::NotSent(described(error.to_string(), error.error_code())),
                };
                (bytes, fate)
            }
        };
        let handed = HandedOver {
            number,
            bytes,
            at: Instant::now(),
            fate,
        };
        if handed_over.send(handed).await.is_err() {
            break;
        }
    }
    drop(handed_over);
    // Nothing more is read; a thread that waits for input notices when it next has some.
    drop(pieces);
    let patience = if interrupted {
        INTERRUPTED_PATIENCE
    } else {
        Duration::MAX
    };
    let flushed = tokio::select! {
        flushed = tokio::time::timeout(patience, producer.flush()) => flushed.is_ok(),
        _ = tokio::signal::ctrl_c() => {
            interrupted = true;
            false
        }
    };
    if !flushed {
        // What is left fails, and is counted as such.
        producer.close().await;
    }
    let tally = counting.await.context("counting acknowledgements failed")?;
    tally.summarise(started.elapsed());
    if let Some(error) = read_error {
        return Err(error).context("cannot read the input to its end");
    }
    if interrupted {
        return Ok(Exit::Interrupted);
    }
    if tally.lost() > 0 {
        return Err(ExitWith::new(
            Exit::NotAcknowledged,
            format!(
                "{} of {} records were not acknowledged",
                tally.lost(),
                tally.records
            ),
        )
        .into());
    }
    Ok(Exit::Ok)
}

/// Reads on a thread of its own: standard input cannot be waited for in any other way on every system.
fn read_on_a_thread(args: &ProduceArgs) -> anyhow::Result<mpsc::Receiver<io::Result<Cut>>> {
    let mut inputs: Vec<Box<dyn Read + Send>> = Vec::new();
    for path in &args.files {
        let file =
            File::open(path).with_context(|| format!("cannot read the file {}", path.display()))?;
        inputs.push(Box::new(file));
    }
    if inputs.is_empty() {
        inputs.push(Box::new(io::stdin()));
    }
    let delimiter = args.delimiter.clone();
    let (pieces, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || {
            for input in inputs {
                let mut splitter = Splitter::new(input, delimiter.clone(), MAX_RECORD_BYTES);
                loop {
                    let (piece, last) = match splitter.next() {
                        Ok(Some(piece)) => (Ok(piece), false),
                        Ok(None) => break,
                        Err(error) => (Err(error), true),
                    };
                    if pieces.blocking_send(piece).is_err() || last {
                        return;
                    }
                }
            }
        })
        .context("cannot start a thread to read the input")?;
    Ok(receiver)
}

/// Why a record was not taken, with Kafka's name for it, and what to do where that is known.
fn described(cause: String, code: Option<ErrorCode>) -> String {
    match code {
        Some(code @ ErrorCode::MessageTooLarge) => format!(
            "{cause} ({}); make the record smaller, or raise the topic's max.message.bytes and -X max.request.size",
            kafka_name(code)
        ),
        Some(code) => format!("{cause} ({})", kafka_name(code)),
        None => cause,
    }
}

fn too_long(bytes: u64) -> String {
    let code = kafka_name(ErrorCode::MessageTooLarge);
    format!(
        "the record has {bytes} bytes, more than the {MAX_RECORD_BYTES} that any topic takes ({code}); if it should have \
         been several, name what stands between them with -D"
    )
}

struct HandedOver {
    /// The record's place in the input, from 1.
    number: u64,
    bytes: usize,
    at: Instant,
    fate: Fate,
}

enum Fate {
    Sent(Delivery),
    NotSent(String),
}

/// What became of the records.
struct Tally {
    records: u64,
    acknowledged: u64,
    bytes: u64,
    ack_us: Option<Histogram<u64>>,
    last_ack: Option<Instant>,
    /// The longest time between two acknowledgements.
    longest_gap: Duration,
    /// By cause: which records, as ranges of numbers.
    lost: BTreeMap<String, Vec<(u64, u64)>>,
    /// Lost for a cause beyond [`MAX_CAUSES`].
    otherwise: u64,
}

async fn count(mut deliveries: mpsc::Receiver<HandedOver>, progress: ProgressBar) -> Tally {
    let mut tally = Tally {
        records: 0,
        acknowledged: 0,
        bytes: 0,
        // 1 µs to 10 min at three digits.
        ack_us: Histogram::new_with_bounds(1, 600_000_000, 3).ok(),
        last_ack: None,
        longest_gap: Duration::ZERO,
        lost: BTreeMap::new(),
        otherwise: 0,
    };
    while let Some(record) = deliveries.recv().await {
        tally.records += 1;
        match record.fate {
            Fate::Sent(delivery) => match delivery.await {
                Ok(_) => tally.acknowledge(record.bytes, record.at.elapsed()),
                Err(error) => {
                    let code = error.last_failure().and_then(ClientError::error_code);
                    let mut cause = described(error.cause.to_string(), code);
                    if error.may_be_stored {
                        cause.push_str("; they may be stored all the same");
                    }
                    tally.lose(cause, record.number);
                }
            },
            Fate::NotSent(cause) => tally.lose(cause, record.number),
        }
        if tally.records.is_multiple_of(1024) {
            progress.set_position(tally.bytes);
            progress.set_message(format!("{} records", tally.acknowledged));
        }
    }
    progress.finish_and_clear();
    tally
}

impl Tally {
    fn acknowledge(&mut self, bytes: usize, after: Duration) {
        self.acknowledged += 1;
        self.bytes += bytes as u64;
        let now = Instant::now();
        if let Some(last) = self.last_ack.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
        if let Some(histogram) = &mut self.ack_us {
            histogram.saturating_record(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
        }
    }

    fn lose(&mut self, cause: String, number: u64) {
        if !self.lost.contains_key(&cause) && self.lost.len() >= MAX_CAUSES {
            self.otherwise += 1;
            return;
        }
        let ranges = self.lost.entry(cause).or_default();
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }

    fn lost(&self) -> u64 {
        self.records - self.acknowledged
    }

    fn summarise(&self, took: Duration) {
        let seconds = took.as_secs_f64().max(1e-6);
        let mut text = format!(
            "{} records acknowledged, {:.1} MB in {:.1} s: {:.0} records/s, {:.1} MB/s",
            self.acknowledged,
            self.bytes as f64 / 1e6,
            seconds,
            self.acknowledged as f64 / seconds,
            self.bytes as f64 / 1e6 / seconds,
        );
        if let Some(histogram) = self
            .ack_us
            .as_ref()
            .filter(|histogram| !histogram.is_empty())
        {
            text.push_str(&format!(
                "; ack p50 {:.1} ms, p99 {:.1} ms, longest gap {:.0} ms",
                histogram.value_at_quantile(0.5) as f64 / 1e3,
                histogram.value_at_quantile(0.99) as f64 / 1e3,
                self.longest_gap.as_secs_f64() * 1e3,
            ));
        }
        note(&text);
        for (cause, ranges) in &self.lost {
            note(&format!(
                "not acknowledged: {}: {cause}",
                describe_ranges(ranges)
            ));
        }
        if self.otherwise > 0 {
            note(&format!(
                "not acknowledged: {} more records, for other causes",
                self.otherwise
            ));
        }
    }
}

/// `records 1-5, 9 and 12-13`, the first of them where there are many.
fn describe_ranges(ranges: &[(u64, u64)]) -> String {
    let shown: Vec<String> = ranges
        .iter()
        .take(MAX_RANGES)
        .map(|&(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    let total: u64 = ranges.iter().map(|(first, last)| last - first + 1).sum();
    let more = if ranges.len() > MAX_RANGES {
        format!(", … ({total} in all)")
    } else {
        String::new()
    };
    let word = if total == 1 { "record" } else { "records" };
    format!("{word} {}{more}", shown.join(", "))
}

fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() || io::stdin().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {bytes} {binary_bytes_per_sec} {msg} {elapsed}");
    let bar = ProgressBar::new_spinner();
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_records_are_named_as_ranges() {
        assert_eq!(describe_ranges(&[(3, 3)]), "record 3");
        assert_eq!(describe_ranges(&[(1, 5), (9, 9)]), "records 1-5, 9");
        let many: Vec<_> = (0..30).map(|i| (10 * i, 10 * i)).collect();
        assert!(describe_ranges(&many).ends_with("190, … (30 in all)"));
    }

    #[test]
    fn kafkas_names_set_the_producer() {
        let mut config = ProducerConfig::default();
        for setting in [
            "linger.ms=7",
            "acks=1",
            "compression.type=zstd",
            "enable.idempotence=false",
            "delivery.timeout.ms=900",
        ] {
            apply(&mut config, setting).unwrap();
        }
        assert_eq!(config.linger, Duration::from_millis(7));
        assert_eq!(config.acks, Acks::Leader);
        assert_eq!(config.compression, Compression::Zstd);
        assert_eq!(config.idempotence, Some(false));
        assert_eq!(config.delivery_timeout, Duration::from_millis(900));
        for wrong in ["linger.ms", "linger.ms=x", "no.such=1"] {
            assert!(apply(&mut config, wrong).is_err(), "{wrong}");
        }
    }
}
