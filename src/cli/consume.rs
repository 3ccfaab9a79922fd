//! `quorate consume`: records from a topic to standard output.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connect::{self, failed};
use super::consume_group;
use super::delimiter::{Delimiter, unescape};
use super::outlet::Outlet;
use super::unterminated;
use super::{Exit, ExitWith, GlobalOptions, block_on, note};
use crate::client::{
    Client, Consumer, ConsumerConfig, ConsumerRecord, Event, OutOfRange, PartitionName, Start,
};
use crate::types::{IsolationLevel, PartitionIndex, TopicName};

/// Output is gathered up to this size while more keeps coming, or a record beyond it.
const BUFFER_BYTES: usize = 256 << 10;
/// Output that nothing follows for this long is written out.
pub(super) const IDLE: Duration = Duration::from_millis(20);

/// Print a topic's records
///
/// Each record's value is followed by the delimiter. Records of one partition come in order; with -e the command ends at
/// the end of all partitions, else it waits for more.
///
/// With -g it reads as a member of a consumer group: its members share the topic's partitions, and each record that was
/// printed is committed within about a second and at the end, so that the group goes on behind it. A record may be printed
/// twice where a member is killed, never left out.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub(super) struct ConsumeArgs {
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

    /// Read as a member of this consumer group
    #[arg(short, long, value_name = "GROUP", conflicts_with = "partitions")]
    group: Option<String>,

    /// Only these partitions; may be repeated [default: all]
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,

    /// Where to begin: beginning, end, N, -N (so many before the end), or @TIME (ms since 1970, or RFC 3339). With -g, where
    /// the group has committed nothing
    #[arg(
        short,
        long,
        value_name = "OFFSET",
        default_value = "beginning",
        value_parser = start,
        allow_hyphen_values = true
    )]
    pub(super) offset: Start,

    /// End after so many records
    #[arg(short, long, value_name = "N")]
    pub(super) count: Option<u64>,

    /// End at the end of all partitions
    #[arg(short, long)]
    pub(super) exit: bool,

    /// What follows each record; escapes are \n \r \t \0 \\ \xHH
    #[arg(short = 'D', long, value_name = "DELIM", default_value = r"\n")]
    delimiter: Delimiter,

    /// Print keys, with this between key and value
    #[arg(short = 'K', long, value_name = "DELIM")]
    key_delimiter: Option<Delimiter>,

    /// How to print a record: %t topic, %p partition, %o offset, %k key, %s value, %K and %S their lengths (-1 for none),
    /// %T timestamp in ms, %h headers, %% a percent sign; escapes as for -D
    #[arg(short, long, value_name = "FORMAT", conflicts_with_all = ["json", "key_delimiter"])]
    format: Option<Format>,

    /// Print each record as a JSON object on a line of its own
    #[arg(short = 'J', long)]
    json: bool,

    /// Write each record out at once
    #[arg(short, long)]
    pub(super) unbuffered: bool,

    /// Where to go on when the offset is not in the log: earliest or latest [default: fail]
    #[arg(long, value_name = "PLACE", value_parser = out_of_range)]
    out_of_range: Option<OutOfRange>,

    /// Which records of transactions to print: read-uncommitted, all of them, or read-committed, those of committed ones up to
    /// the first that is not decided
    #[arg(long, value_name = "LEVEL", default_value_t)]
    isolation: IsolationLevel,

    /// Print help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
}

/// A place in a log, as `-o` names it.
pub(super) fn start(text: &str) -> Result<Start, String> {
    if let Some(time) = text.strip_prefix('@')
        && let Ok(time) = OffsetDateTime::parse(time, &Rfc3339)
    {
        let ms = time.unix_timestamp_nanos().div_euclid(1_000_000);
        return i64::try_from(ms)
            .map(Start::Timestamp)
            .map_err(|_| "that time is out of range".to_owned());
    }
    text.parse::<Start>().map_err(|error| error.to_string())
}

fn out_of_range(text: &str) -> Result<OutOfRange, String> {
    match text {
        "earliest" => Ok(OutOfRange::Earliest),
        "latest" => Ok(OutOfRange::Latest),
        _ => Err("write earliest or latest".to_owned()),
    }
}

/// How a record is printed, as kcat's `-f` has it: `%t` topic, `%p` partition, `%o` offset, `%k` key, `%K` its length, `%s`
/// value, `%S` its length, `%T` timestamp, `%h` headers, `%%`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    KeyLength,
    Value,
    ValueLength,
    Timestamp,
    Headers,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = unescape(text).ok_or("escapes are \\n \\r \\t \\0 \\\\ and \\xHH")?;
        let mut parts = Vec::new();
        let mut plain = Vec::new();
        let mut rest = bytes.into_iter();
        while let Some(byte) = rest.next() {
            if byte != b'%' {
                plain.push(byte);
                continue;
            }
            let part = match rest.next() {
                Some(b'%') => {
                    plain.push(b'%');
                    continue;
                }
                Some(b't') => Part::Topic,
                Some(b'p') => Part::Partition,
                Some(b'o') => Part::Offset,
                Some(b'k') => Part::Key,
                Some(b'K') => Part::KeyLength,
                Some(b's') => Part::Value,
                Some(b'S') => Part::ValueLength,
                Some(b'T') => Part::Timestamp,
                Some(b'h') => Part::Headers,
                _ => return Err("a % is followed by one of t p o k K s S T h %".to_owned()),
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(part);
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Format(parts))
    }
}

pub(super) fn run(options: &GlobalOptions, args: ConsumeArgs) -> anyhow::Result<Exit> {
    let Some(topic) = args.topic.as_ref().or(args.topic_flag.as_ref()) else {
        bail!("no topic is given: add its name");
    };
    let config = ConsumerConfig {
        out_of_range: args.out_of_range.unwrap_or_default(),
        isolation: args.isolation,
        ..ConsumerConfig::default()
    };
    if let Some(group) = &args.group {
        return consume_group::run(options, &args, group, topic, config);
    }
    block_on(async {
        let client = connect::client(options).await?;
        let mut consumer = client.consumer(config).map_err(failed)?;
        assign(&args, topic, &client, &mut consumer, options).await?;
        let outcome = consume(&args, &mut consumer).await;
        client.close();
        outcome
    })
}

async fn assign(
    args: &ConsumeArgs,
    topic: &TopicName,
    client: &Client,
    consumer: &mut Consumer,
    options: &GlobalOptions,
) -> anyhow::Result<()> {
    if args.partitions.is_empty() {
        return consumer
            .assign_topic(topic, args.offset)
            .await
            .map_err(failed);
    }
    let view = client
        .topic(topic, false, options.timeout)
        .await
        .map_err(failed)?;
    let mut wanted = Vec::new();
    for &partition in &args.partitions {
        let partition = PartitionIndex(partition);
        if view.partition(topic, partition).is_none() {
            let count = view
                .topics
                .get(topic)
                .map_or(0, |topic| topic.partitions.len());
            return Err(ExitWith::new(
                Exit::Failure,
                format!("topic {topic} has no partition {partition}: it has {count}, from 0"),
            )
            .into());
        }
        wanted.push((PartitionName::new(topic.clone(), partition), args.offset));
    }
    consumer.assign(wanted).await.map_err(failed)
}

async fn consume(args: &ConsumeArgs, consumer: &mut Consumer) -> anyhow::Result<Exit> {
    let mut output = Output::start()?;
    let mut open: BTreeSet<PartitionName> = consumer.assignment().cloned().collect();
    let mut printed = 0;
    while args.count.is_none_or(|count| printed < count) {
        let event = match tokio::time::timeout(IDLE, consumer.next()).await {
            Ok(event) => event,
            Err(_) => {
                output.flush().await?;
                consumer.next().await
            }
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                output.finish().await?;
                return Err(failed(error));
            }
        };
        match event {
            Event::Record(record) => {
                // What came after the end was met is not waited for again.
                if args.exit && !open.contains(&name_of(&record)) {
                    continue;
                }
                output.write(args, &record)?;
                printed += 1;
                if args.unbuffered || output.buffer.len() >= BUFFER_BYTES {
                    output.flush().await?;
                }
            }
            Event::EndOfPartition {
                topic, partition, ..
            } if args.exit => {
                open.remove(&PartitionName::new(topic, partition));
                if open.is_empty() {
                    break;
                }
            }
            Event::EndOfPartition { .. } => {}
        }
    }
    output.finish().await?;
    if printed == 0 && args.exit {
        note("no records");
    }
    Ok(Exit::Ok)
}

fn name_of(record: &ConsumerRecord) -> PartitionName {
    PartitionName::new(record.topic.clone(), record.partition)
}

pub(super) struct Output {
    /// What is to be written next.
    buffer: Vec<u8>,
    outlet: Outlet,
    /// A delimiter that is written only if another record follows; see [`unterminated`].
    delimiter_due: bool,
    is_whole: bool,
}

impl Output {
    pub(super) fn start() -> anyhow::Result<Output> {
        Ok(Output {
            buffer: Vec::new(),
            outlet: Outlet::start()?,
            delimiter_due: false,
            is_whole: true,
        })
    }

    /// Whether nothing was lost on its way to the outlet, as where a flush was called off in the middle.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= BUFFER_BYTES
    }

    /// Waits until all that was given is written.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        self.flush().await?;
        self.outlet.settle().await
    }

    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER_BYTES));
        self.is_whole = false;
        self.outlet.write(full).await?;
        self.is_whole = true;
        Ok(())
    }

    /// Writes what is left, and waits until all of it is out.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        self.flush().await?;
        self.outlet.finish().await
    }

    pub(super) fn write(
        &mut self,
        args: &ConsumeArgs,
        record: &ConsumerRecord,
    ) -> anyhow::Result<()> {
        let out = &mut self.buffer;
        if let Some(format) = &args.format {
            return Ok(format.write(out, record)?);
        }
        if args.json {
            serde_json::to_writer(&mut *out, &json(record))?;
            out.push(b'\n');
            return Ok(());
        }
        if std::mem::take(&mut self.delimiter_due) {
            out.extend_from_slice(args.delimiter.as_bytes());
        }
        if let Some(delimiter) = &args.key_delimiter {
            out.extend_from_slice(record.record.key.as_deref().unwrap_or_default());
            out.extend_from_slice(delimiter.as_bytes());
        }
        out.extend_from_slice(record.record.value.as_deref().unwrap_or_default());
        if unterminated::is_marked(&record.record.headers) {
            self.delimiter_due = true;
        } else {
            out.extend_from_slice(args.delimiter.as_bytes());
        }
        Ok(())
    }
}

impl Format {
    fn write(&self, out: &mut impl Write, record: &ConsumerRecord) -> io::Result<()> {
        let inner = &record.record;
        let length = |bytes: &Option<bytes::Bytes>| {
            bytes
                .as_ref()
                .map_or_else(|| "-1".to_owned(), |bytes| bytes.len().to_string())
        };
        for part in &self.0 {
            match part {
                Part::Text(text) => out.write_all(text)?,
                Part::Topic => write!(out, "{}", record.topic)?,
                Part::Partition => write!(out, "{}", record.partition)?,
                Part::Offset => write!(out, "{}", inner.offset)?,
                Part::Key => out.write_all(inner.key.as_deref().unwrap_or_default())?,
                Part::KeyLength => out.write_all(length(&inner.key).as_bytes())?,
                Part::Value => out.write_all(inner.value.as_deref().unwrap_or_default())?,
                Part::ValueLength => out.write_all(length(&inner.value).as_bytes())?,
                Part::Timestamp => write!(out, "{}", inner.timestamp)?,
                Part::Headers => {
                    for (i, (name, value)) in inner.headers.iter().enumerate() {
                        if i > 0 {
                            out.write_all(b",")?;
                        }
                        write!(out, "{name}=")?;
                        out.write_all(value.as_deref().unwrap_or_default())?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// kcat's envelope. Bytes that are not UTF-8 are replaced, so -f is the way to binary data.
fn json(record: &ConsumerRecord) -> serde_json::Value {
    let text = |bytes: &Option<bytes::Bytes>| {
        bytes
            .as_ref()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let headers: Vec<_> = record
        .record
        .headers
        .iter()
        .flat_map(|(name, value)| [Some(name.clone()), text(value)])
        .collect();
    serde_json::json!({
        "topic": record.topic,
        "partition": record.partition.0,
        "offset": record.record.offset,
        "ts": record.record.timestamp,
        "headers": headers,
        "key": text(&record.record.key),
        "payload": text(&record.record.value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    #[test]
    fn a_format_prints_what_kcats_prints() {
        let record = ConsumerRecord {
            topic: TopicName::new("t").unwrap(),
            partition: PartitionIndex(3),
            record: Record {
                offset: 12,
                timestamp: 1700,
                key: None,
                value: Some("v".into()),
                headers: vec![("a".to_owned(), Some("1".into()))],
            },
        };
        let format: Format = r"%t/%p@%o %K[%k] %S[%s] %T %h 100%%\n".parse().unwrap();
        let mut out = Vec::new();
        format.write(&mut out, &record).unwrap();
        assert_eq!(out, b"t/3@12 -1[] 1[v] 1700 a=1 100%\n");
        for wrong in ["%", "%q", r"\q"] {
            assert!(wrong.parse::<Format>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_is_milliseconds_or_rfc_3339() {
        assert_eq!(start("@1700"), Ok(Start::Timestamp(1700)));
        assert_eq!(
            start("@2023-11-14T22:13:20Z"),
            Ok(Start::Timestamp(1_700_000_000_000))
        );
        assert_eq!(start("-5"), Ok(Start::FromEnd(5)));
        assert!(start("@yesterday").is_err());
    }
}
