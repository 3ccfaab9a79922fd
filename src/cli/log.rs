//! `quorate log`: what stands in a data directory, read beside the node that runs on it or without one.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::exit::Exit;
use super::options::GlobalOptions;
use super::output::{OutputFormat, Table, note, print_json, print_line};
use crate::record::{Batch, Marker, Record, TransactionOutcome, records};
use crate::storage::RealFileSystem;
use crate::storage::inspect::{Damage, Inspection, PartitionView, Placed, Scan, inspect};
use crate::types::{Offset, ProducerId, TopicName};
use crate::wal::Frame;

/// Verify, dump and compare the logs in a data directory
///
/// Reads only and takes no lock, so it works beside a running node.
#[derive(Args, Debug)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Subcommand, Debug)]
enum LogCommand {
    Verify(VerifyArgs),
    Dump(DumpArgs),
    Digest(DigestArgs),
}

/// Check every frame and every record batch
///
/// Ends with exit code 10 when something is corrupt, and names the file, the byte, the cause, and what to do.
#[derive(Args, Debug)]
struct VerifyArgs {
    #[command(flatten)]
    target: Target,
}

/// Print frames and their records
#[derive(Args, Debug)]
struct DumpArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    range: OffsetRange,
    /// Print frames without the records in them
    #[arg(long)]
    frames_only: bool,
}

/// Print one hash for each partition, equal on replicas that hold the same committed records
///
/// The hash is BLAKE3 over every record batch below the high watermark: its base offset, end offset, leader epoch, length
/// and bytes. The high watermark is the one that the node last wrote, at most a second ago. To compare replicas whose logs
/// start or end at different offsets, name a common range with --from and --to: batches that are not wholly inside are left
/// out.
#[derive(Args, Debug)]
struct DigestArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    range: OffsetRange,
}

#[derive(Args, Debug)]
struct Target {
    /// The node's data directory
    #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Only this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<TopicName>,
    /// Only this partition of it
    #[arg(long, value_name = "N", requires = "topic")]
    partition: Option<u32>,
}

#[derive(Args, Debug)]
struct OffsetRange {
    /// From this offset on
    #[arg(long, value_name = "OFFSET", value_parser = parse_offset)]
    from: Option<Offset>,
    /// Up to this offset, without it
    #[arg(long, value_name = "OFFSET", value_parser = parse_offset)]
    to: Option<Offset>,
}

/// Runs a `quorate log` command.
pub(super) fn run(options: &GlobalOptions, args: LogArgs) -> anyhow::Result<Exit> {
    match args.command {
        LogCommand::Verify(args) => verify(options.output, &args),
        LogCommand::Dump(args) => dump(options.output, &args),
        LogCommand::Digest(args) => digest(options.output, &args),
    }
}

fn parse_offset(text: &str) -> Result<Offset, String> {
    text.parse()
        .ok()
        .and_then(Offset::new)
        .ok_or_else(|| "expected a whole number from 0 to 9223372036854775807".to_owned())
}

impl Target {
    fn inspect(&self) -> anyhow::Result<Inspection> {
        let dir = &self.data_dir;
        let mut inspection = inspect(&RealFileSystem, dir)
            .with_context(|| format!("cannot read the data directory {}", dir.display()))?;
        if let Some(topic) = &self.topic {
            let known = topic_names(&inspection);
            inspection.partitions.retain(|view| {
                view.topic == *topic && self.partition.is_none_or(|p| p == view.id.partition.0)
            });
            if inspection.partitions.is_empty() {
                let wanted = match self.partition {
                    Some(partition) => format!("partition {partition} of topic {topic}"),
                    None => format!("topic {topic}"),
                };
                bail!(
                    "{} holds no log of {wanted}; it holds logs of: {known}",
                    dir.display()
                );
            }
        }
        Ok(inspection)
    }
}

fn topic_names(inspection: &Inspection) -> String {
    let mut names: Vec<&str> = inspection
        .partitions
        .iter()
        .map(|view| view.topic.as_str())
        .collect();
    names.dedup();
    if names.is_empty() {
        "no topic".to_owned()
    } else {
        names.join(", ")
    }
}

/// One partition in `verify --output json`.
#[derive(Serialize)]
struct Verified<'a> {
    topic: &'a TopicName,
    partition: u32,
    ok: bool,
    log_start_offset: u64,
    log_end_offset: u64,
    frames: u64,
    bytes: u64,
    damage: Vec<DamageLine>,
    /// Bytes into the newest segment at which a frame is not all there.
    torn_tail: Option<DamageLine>,
    impaired: Option<&'a str>,
}

#[derive(Serialize)]
struct DamageLine {
    file: PathBuf,
    byte: u64,
    cause: String,
}

impl From<&Damage> for DamageLine {
    fn from(damage: &Damage) -> DamageLine {
        DamageLine {
            file: damage.path.clone(),
            byte: damage.byte,
            cause: damage.cause.clone(),
        }
    }
}

fn verify(output: OutputFormat, args: &VerifyArgs) -> anyhow::Result<Exit> {
    let inspection = args.target.inspect()?;
    let mut table = Table::new([
        "TOPIC",
        "PARTITION",
        "STATE",
        "START",
        "END",
        "FRAMES",
        "BYTES",
    ]);
    let mut damaged = !inspection.damage.is_empty();
    for damage in &inspection.damage {
        tell_damage(
            damage,
            "restore the file from a copy, or start the node with an empty data directory",
        );
    }
    for dir in &inspection.quarantined {
        note(&format!(
            "note: {} is a corrupt log that was set aside earlier; once its replica is in sync again, remove it",
            dir.display()
        ));
    }
    for view in &inspection.partitions {
        let scan = view.scan(&RealFileSystem, |_| ControlFlow::Continue(()))?;
        damaged |= !scan.damage.is_empty();
        // A node that is not told to look trusts what was synced, and does not find this by itself until somebody reads it.
        let advice = "restart the node once with --verify-logs: it sets this log aside and fetches it anew from the leader, if \
                      another replica is in sync; see `quorate cluster status`";
        for damage in &scan.damage {
            tell_damage(damage, advice);
        }
        tell_notes(view, &scan);
        match output {
            OutputFormat::Json => print_json(&verified(view, &scan))?,
            OutputFormat::Table | OutputFormat::Markdown | OutputFormat::Csv => table.row([
                view.topic.to_string(),
                view.id.partition.to_string(),
                if scan.damage.is_empty() {
                    "ok"
                } else {
                    "CORRUPT"
                }
                .to_owned(),
                scan.start.offset.to_string(),
                scan.end.offset.to_string(),
                scan.frames.to_string(),
                scan.bytes.to_string(),
            ]),
        }
    }
    if output == OutputFormat::Table {
        table.print()?;
    }
    Ok(if damaged { Exit::Unhealthy } else { Exit::Ok })
}

fn verified<'a>(view: &'a PartitionView, scan: &Scan) -> Verified<'a> {
    Verified {
        topic: &view.topic,
        partition: view.id.partition.0,
        ok: scan.damage.is_empty(),
        log_start_offset: scan.start.offset.get(),
        log_end_offset: scan.end.offset.get(),
        frames: scan.frames,
        bytes: scan.bytes,
        damage: scan.damage.iter().map(DamageLine::from).collect(),
        torn_tail: scan.torn_tail.as_ref().map(|bad| DamageLine {
            file: bad.path.clone(),
            byte: bad.byte,
            cause: bad.cause.to_string(),
        }),
        impaired: view.impairment.as_ref().map(|note| note.detail.as_str()),
    }
}

fn tell_damage(damage: &Damage, advice: &str) {
    note(&format!(
        "corrupt: {} at byte {}: {}; {advice}",
        damage.path.display(),
        damage.byte,
        damage.cause
    ));
}

fn tell_notes(view: &PartitionView, scan: &Scan) {
    if let Some(bad) = &scan.torn_tail {
        note(&format!(
            "note: {bad}; it is being written, or a stopped node cuts it off when it is started"
        ));
    }
    for index in &scan.unusable_indexes {
        note(&format!(
            "note: {} is missing or unusable; the node rebuilds it",
            index.display()
        ));
    }
    for snapshot in &scan.damaged_snapshots {
        note(&format!(
            "note: {} is unusable; the node reads what it says of producers from the log again",
            snapshot.display()
        ));
    }
    if let Some(impairment) = &view.impairment {
        note(&format!(
            "note: {}-{} does not vote until it is in sync again: {}",
            view.topic, view.id.partition, impairment.detail
        ));
    }
}

/// One partition in `digest`. The field names and their order are part of the command line's interface.
#[derive(Serialize)]
struct DigestLine<'a> {
    topic: &'a TopicName,
    partition: u32,
    log_start_offset: u64,
    log_end_offset: u64,
    high_watermark: u64,
    digest: String,
}

fn digest(output: OutputFormat, args: &DigestArgs) -> anyhow::Result<Exit> {
    let inspection = args.target.inspect()?;
    let mut table = Table::new([
        "TOPIC",
        "PARTITION",
        "START",
        "END",
        "HIGH WATERMARK",
        "DIGEST",
    ]);
    let mut damaged = false;
    for view in &inspection.partitions {
        let found = view.digest(&RealFileSystem, args.range.from, args.range.to)?;
        for damage in &found.damage {
            damaged = true;
            tell_damage(
                damage,
                "the digest is over what could be read; see `quorate log verify`",
            );
        }
        if view.high_watermark.is_none() {
            note(&format!(
                "note: the node has written no high watermark of {}-{} yet, so its digest is over no records",
                view.topic, view.id.partition
            ));
        }
        let line = DigestLine {
            topic: &view.topic,
            partition: view.id.partition.0,
            log_start_offset: found.log_start_offset.get(),
            log_end_offset: found.log_end_offset.get(),
            high_watermark: found.high_watermark.get(),
            digest: found.digest,
        };
        match output {
            OutputFormat::Json => print_json(&line)?,
            OutputFormat::Table | OutputFormat::Markdown | OutputFormat::Csv => table.row([
                line.topic.to_string(),
                line.partition.to_string(),
                line.log_start_offset.to_string(),
                line.log_end_offset.to_string(),
                line.high_watermark.to_string(),
                line.digest,
            ]),
        }
    }
    if output == OutputFormat::Table {
        table.print()?;
    }
    Ok(if damaged { Exit::Unhealthy } else { Exit::Ok })
}

fn dump(output: OutputFormat, args: &DumpArgs) -> anyhow::Result<Exit> {
    let inspection = args.target.inspect()?;
    let mut damaged = false;
    for view in &inspection.partitions {
        let mut failed = None;
        let scan = view.scan(&RealFileSystem, |placed| {
            let frame = placed.frame;
            if args.range.to.is_some_and(|to| frame.base_offset() >= to) {
                return ControlFlow::Break(());
            }
            let from = args.range.from.unwrap_or(Offset::ZERO);
            if frame.end_offset() <= from && frame.base_offset() != from {
                return ControlFlow::Continue(());
            }
            match dump_frame(output, view, &placed, args.frames_only) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        for damage in &scan.damage {
            damaged = true;
            tell_damage(damage, "see `quorate log verify`");
        }
        tell_notes(view, &scan);
    }
    Ok(if damaged { Exit::Unhealthy } else { Exit::Ok })
}

fn dump_frame(
    output: OutputFormat,
    view: &PartitionView,
    placed: &Placed<'_>,
    frames_only: bool,
) -> anyhow::Result<()> {
    let frame = placed.frame;
    let is_committed = !frame.is_epoch_start()
        && view
            .high_watermark
            .is_some_and(|watermark| frame.end_offset() <= watermark);
    let records = if frames_only || frame.is_epoch_start() {
        Vec::new()
    } else {
        records_of(frame)?
    };
    let transaction = Transaction::of(frame);
    match output {
        OutputFormat::Json => {
            let mut object = json!({
                "topic": view.topic,
                "partition": view.id.partition.0,
                "file": file_name(placed.path),
                "byte": placed.byte,
                "kind": match &transaction {
                    _ if frame.is_epoch_start() => "epoch_start",
                    Some(Transaction { marker: Some(_), .. }) => "marker",
                    _ => "records",
                },
                "base_offset": frame.base_offset().get(),
                "end_offset": frame.end_offset().get(),
                "leader_epoch": frame.leader_epoch().get(),
                "previous_epoch": frame.start().epoch.get(),
                "bytes": frame.len(),
                "committed": is_committed,
            });
            if let Some(transaction) = &transaction
                && let Some(object) = object.as_object_mut()
            {
                object.insert("transaction".to_owned(), transaction.object());
            }
            if !frames_only && let Some(object) = object.as_object_mut() {
                let records = records.iter().map(record_object).collect();
                object.insert("records".to_owned(), Value::Array(records));
            }
            print_json(&object)
        }
        OutputFormat::Table | OutputFormat::Markdown | OutputFormat::Csv => {
            print_line(&frame_line(view, placed, is_committed))?;
            records
                .iter()
                .try_for_each(|record| print_line(&record_line(record)))
        }
    }
}

/// What a frame's batch says of a transaction.
struct Transaction {
    producer: ProducerId,
    epoch: i16,
    /// Of the batch that ends it.
    marker: Option<Marker>,
}

impl Transaction {
    /// `None` for a batch of none.
    fn of(frame: &Frame) -> Option<Transaction> {
        if frame.is_epoch_start() {
            return None;
        }
        let batch = Batch::decode(&frame.payload()).ok()?;
        let header = &batch.header;
        Some(Transaction {
            producer: header.producer_id.filter(|_| header.is_transactional())?,
            epoch: header.producer_epoch,
            marker: Marker::read(&batch),
        })
    }

    fn line(&self) -> String {
        let of = format!("producer {} epoch {}", self.producer, self.epoch);
        match &self.marker {
            None => format!("in a transaction of {of}"),
            Some(marker) => format!(
                "{} the transaction of {of}{}, by coordinator epoch {}",
                outcome(marker),
                match marker.aborted {
                    Some(span) => format!(" from offset {}", span.first),
                    None => String::new(),
                },
                marker.coordinator_epoch
            ),
        }
    }

    fn object(&self) -> Value {
        let mut object = json!({
            "producer_id": self.producer.get(),
            "producer_epoch": self.epoch,
        });
        if let (Some(marker), Some(object)) = (&self.marker, object.as_object_mut()) {
            object.insert("outcome".to_owned(), outcome(marker).into());
            object.insert(
                "coordinator_epoch".to_owned(),
                marker.coordinator_epoch.into(),
            );
            let first = marker.aborted.map(|span| span.first.get());
            object.insert("first_offset".to_owned(), first.into());
        }
        object
    }
}

fn outcome(marker: &Marker) -> &'static str {
    match marker.outcome {
        TransactionOutcome::Abort => "aborts",
        TransactionOutcome::Commit => "commits",
    }
}

fn records_of(frame: &Frame) -> anyhow::Result<Vec<Record>> {
    let read = || {
        let batch = Batch::decode(&frame.payload())?;
        let records: Result<Vec<Record>, _> = records(&batch)?.collect();
        anyhow::Ok(records?)
    };
    read().with_context(|| {
        format!(
            "cannot read the records at offset {}; print the frames alone with --frames-only",
            frame.base_offset()
        )
    })
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn frame_line(view: &PartitionView, placed: &Placed<'_>, is_committed: bool) -> String {
    let frame = placed.frame;
    let place = format!("{} byte {}", file_name(placed.path), placed.byte);
    let what = if frame.is_epoch_start() {
        format!(
            "epoch {} starts at offset {}, after epoch {}",
            frame.leader_epoch(),
            frame.base_offset(),
            frame.start().epoch
        )
    } else {
        format!(
            "offsets {}..{} epoch {} {} bytes{}{}",
            frame.base_offset(),
            frame.end_offset(),
            frame.leader_epoch(),
            frame.len(),
            Transaction::of(frame).map_or(String::new(), |of| format!(", {}", of.line())),
            if is_committed { "" } else { ", not committed" }
        )
    };
    format!("{}-{} {place}: {what}", view.topic, view.id.partition)
}

fn record_line(record: &Record) -> String {
    let show = |bytes: &Option<bytes::Bytes>| match bytes {
        Some(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        None => "null".to_owned(),
    };
    let mut line = format!(
        "  {} time {} key {} value {}",
        record.offset,
        record.timestamp,
        show(&record.key),
        show(&record.value)
    );
    for (name, value) in &record.headers {
        line.push_str(&format!(" {}={}", name.escape_debug(), show(value)));
    }
    line
}

fn record_object(record: &Record) -> Value {
    let mut object = Map::new();
    object.insert("offset".to_owned(), record.offset.into());
    object.insert("timestamp".to_owned(), record.timestamp.into());
    insert_bytes(&mut object, "key", record.key.as_deref());
    insert_bytes(&mut object, "value", record.value.as_deref());
    let headers = record.headers.iter().map(|(name, value)| {
        let mut header = Map::new();
        header.insert("name".to_owned(), name.as_str().into());
        insert_bytes(&mut header, "value", value.as_deref());
        Value::Object(header)
    });
    object.insert("headers".to_owned(), headers.collect());
    Value::Object(object)
}

/// As text under `name` where it is UTF-8; else in hexadecimal under `<name>_hex`.
fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else {
        object.insert(name.to_owned(), Value::Null);
        return;
    };
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            object.insert(format!("{name}_hex"), hex.into())
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_line_has_exactly_the_fields_that_programs_read() {
        let topic = TopicName::new("t").unwrap();
        let line = DigestLine {
            topic: &topic,
            partition: 1,
            log_start_offset: 2,
            log_end_offset: 3,
            high_watermark: 4,
            digest: "ab".to_owned(),
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"topic":"t","partition":1,"log_start_offset":2,"log_end_offset":3,"high_watermark":4,"digest":"ab"}"#
        );
    }

    #[test]
    fn bytes_are_text_where_they_can_be() {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", Some(b"\xff\x00"));
        insert_bytes(&mut object, "value", Some("ä".as_bytes()));
        insert_bytes(&mut object, "none", None);
        assert_eq!(
            Value::Object(object),
            json!({"key_hex": "ff00", "value": "ä", "none": null})
        );
    }

    #[test]
    fn an_offset_is_never_negative() {
        assert!(parse_offset("-1").is_err());
        assert!(parse_offset("9223372036854775808").is_err());
        assert_eq!(parse_offset("7").unwrap().get(), 7);
    }
}
