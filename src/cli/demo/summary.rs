//! What came of a demo.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::super::{Exit, ExitWith};
use super::DemoArgs;
use super::screen::{bytes, count, millis};
use super::workload::Tally;
use crate::bench::local::{Agreement, Folder, Stopped};
use crate::transport::shell_word;
use crate::types::TopicName;

#[derive(Debug)]
pub(super) struct Summary {
    pub(super) nodes: Vec<Stopped>,
    pub(super) partitions: Vec<Agreement>,
    topic: TopicName,
    record_size: u64,
    /// For how long records were produced.
    producing: Duration,
    tally: Tally,
    /// What the nodes did to the links between them at the start.
    impairment: Option<String>,
    /// Where everything is, if it was kept.
    kept: Option<PathBuf>,
}

/// The summary as `--output json` writes it. The field names are part of the command line's interface.
#[derive(Debug, Serialize)]
struct Json<'a> {
    topic: &'a TopicName,
    nodes: usize,
    duration_ms: u64,
    produced: u64,
    acknowledged: u64,
    failed: u64,
    /// Of the acknowledged records' values.
    bytes: u64,
    records_per_second: f64,
    ack_p50_us: u64,
    ack_p99_us: u64,
    ack_max_us: u64,
    longest_gap_ms: f64,
    replicas_agree: bool,
    partitions: &'a [Agreement],
    /// What each node did to what it sent to another; `null` where links were left alone.
    impairment: Option<&'a str>,
    dir: Option<&'a PathBuf>,
}

impl Summary {
    /// Nodes and partitions are filled in when they are known.
    pub(super) fn new(
        folder: &Folder,
        args: &DemoArgs,
        producing: Duration,
        tally: Tally,
    ) -> Summary {
        Summary {
            nodes: Vec::new(),
            partitions: Vec::new(),
            topic: args.topic.clone(),
            record_size: u64::from(args.record_size),
            producing,
            tally,
            impairment: folder.impairment().map(ToString::to_string),
            kept: folder.is_kept().then(|| folder.path().to_owned()),
        }
    }

    /// Well only if every record was acknowledged, and no replica contradicts another.
    pub(super) fn exit(&self) -> anyhow::Result<Exit> {
        let tally = &self.tally;
        if tally.acknowledged < tally.produced {
            let message = format!(
                "{} of {} records were not acknowledged",
                count(tally.produced - tally.acknowledged),
                count(tally.produced)
            );
            return Err(ExitWith::new(Exit::NotAcknowledged, message).into());
        }
        if !self.replicas_agree() {
            let message = "the replicas do not agree: compare them with `quorate log digest`";
            return Err(ExitWith::new(Exit::Unhealthy, message).into());
        }
        Ok(Exit::Ok)
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        let tally = &self.tally;
        let json = Json {
            topic: &self.topic,
            nodes: self.nodes.len(),
            duration_ms: self.producing.as_millis() as u64,
            produced: tally.produced,
            acknowledged: tally.acknowledged,
            failed: tally.failed,
            bytes: self.bytes(),
            records_per_second: (self.rate() * 10.0).round() / 10.0,
            ack_p50_us: tally.ack_us.value_at_quantile(0.5),
            ack_p99_us: tally.ack_us.value_at_quantile(0.99),
            ack_max_us: tally.ack_us.max(),
            longest_gap_ms: tally.longest_gap.as_micros() as f64 / 1000.0,
            replicas_agree: self.replicas_agree(),
            partitions: &self.partitions,
            impairment: self.impairment.as_deref(),
            dir: self.kept.as_ref(),
        };
        Ok(serde_json::to_string(&json)?)
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let tally = &self.tally;
        let row = |name: &str, text: String| format!("  {name:<13} {text}");
        let mut lines = vec![
            String::new(),
            "Summary".to_owned(),
            row(
                "records",
                format!(
                    "{} produced, {} acknowledged, {} failed",
                    count(tally.produced),
                    count(tally.acknowledged),
                    count(tally.failed)
                ),
            ),
            row(
                "throughput",
                format!(
                    "{} records/s, {}/s; {} in {:.1} s",
                    count(self.rate().round() as u64),
                    bytes((self.rate() * self.record_size as f64) as u64),
                    bytes(self.bytes()),
                    self.producing.as_secs_f64()
                ),
            ),
        ];
        if let Some(spec) = &self.impairment {
            lines.push(row(
                "impairment",
                format!("{spec} on what nodes send each other"),
            ));
        }
        if tally.acknowledged > 0 {
            let quantile = |q| millis(tally.ack_us.value_at_quantile(q));
            lines.push(row(
                "ack time",
                format!(
                    "p50 {}, p99 {}, max {}",
                    quantile(0.5),
                    quantile(0.99),
                    millis(tally.ack_us.max())
                ),
            ));
            let gap = millis(tally.longest_gap.as_micros() as u64);
            let whose = tally
                .longest_gap_partition
                .map_or_else(String::new, |partition| {
                    format!(", on {}-{partition}", self.topic)
                });
            lines.push(row("longest gap", format!("{gap} between acks{whose}")));
        }
        for reason in &tally.reasons {
            lines.push(row("failure", reason.clone()));
        }
        for partition in &self.partitions {
            lines.extend(self.partition_lines(partition));
        }
        for node in &self.nodes {
            if node.killed {
                lines.push(row(
                    &format!("node {}", node.id),
                    "did not stop in time and was killed".to_owned(),
                ));
            }
            if let Some(status) = node.ended_before {
                lines.push(row(
                    &format!("node {}", node.id),
                    format!("had ended before ({status})"),
                ));
            }
        }
        if let Some(dir) = &self.kept {
            lines.push(row("kept in", shell_word(dir)));
        }
        lines
    }

    fn partition_lines(&self, partition: &Agreement) -> Vec<String> {
        let name = format!("{}-{}", self.topic, partition.partition);
        let nodes = |replicas: &mut dyn Iterator<Item = String>| {
            let nodes: Vec<_> = replicas.collect();
            nodes.join(", ")
        };
        let records = format!("{} records", count(partition.committed));
        let digest = partition.digest.get(..16).unwrap_or_default();
        let full = partition.replicas.iter();
        let full: Vec<_> = full
            .filter(|replica| replica.agrees && replica.committed == partition.committed)
            .collect();
        let on = nodes(&mut full.iter().map(|replica| replica.node.to_string()));
        let mut lines = vec![format!(
            "  {name:<13} {records}, {} on {} {on} (digest {digest}…)",
            if full.len() > 1 { "the same" } else { "whole" },
            if full.len() > 1 { "nodes" } else { "node" },
        )];
        for replica in &partition.replicas {
            let what = match (&replica.fault, replica.agrees) {
                (Some(fault), _) => fault.clone(),
                (None, false) => format!(
                    "DIFFERS within the first {} records",
                    count(replica.committed)
                ),
                (None, true) if replica.committed < partition.committed => {
                    format!("has the first {} of them", count(replica.committed))
                }
                (None, true) => continue,
            };
            lines.push(format!("  {:<13} node {} {what}", "", replica.node));
        }
        lines
    }

    fn replicas_agree(&self) -> bool {
        self.partitions.iter().all(Agreement::agrees)
    }

    fn bytes(&self) -> u64 {
        self.tally.acknowledged.saturating_mul(self.record_size)
    }

    /// Acknowledged records a second.
    fn rate(&self) -> f64 {
        self.tally.acknowledged as f64 / self.producing.as_secs_f64().max(0.001)
    }
}
