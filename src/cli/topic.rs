//! `quorate topic`: make, show, change and delete topics.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::connect::{self, failed};
use super::output::print_error;
use super::{Exit, ExitWith, GlobalOptions, Table, block_on, note, print_json};
use crate::client::{
    Admin, AlterConfig, ClientError, ConfigEntry, ConfigResource, ConfigSource, NewTopic,
    PartitionName, TopicView,
};
use crate::types::{ErrorCode, NodeId, Offset, PartitionIndex, TopicName};

/// Make, show, change and delete topics
#[derive(Args, Debug)]
pub(super) struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Subcommand, Debug)]
enum TopicCommand {
    /// Make a topic
    Create {
        #[arg(value_name = "TOPIC")]
        name: TopicName,
        /// How many partitions [default: 1]
        #[arg(long, short = 'p', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        /// How many nodes hold each partition [default: 3, or as many nodes as there are]
        #[arg(long, short = 'r', value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        replication_factor: Option<u16>,
        /// A setting of the topic, such as retention.ms=3600000; may be repeated
        #[arg(long = "config", short = 'c', value_name = "NAME=VALUE", value_parser = name_value)]
        configs: Vec<(String, String)>,
        /// Be content with a topic that is there already, whatever its settings
        #[arg(long)]
        if_not_exists: bool,
    },
    /// Show all topics
    List,
    /// Show partitions and settings of some topics, or of all
    Describe {
        #[arg(value_name = "TOPIC")]
        names: Vec<TopicName>,
    },
    /// Add partitions to a topic, or change its settings
    Alter {
        #[arg(value_name = "TOPIC")]
        name: TopicName,
        /// How many partitions it is to have in all; never fewer than it has
        #[arg(long, short = 'p', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        /// A setting of the topic; may be repeated
        #[arg(long = "config", short = 'c', value_name = "NAME=VALUE", value_parser = name_value)]
        configs: Vec<(String, String)>,
        /// A setting to put back to its default; may be repeated
        #[arg(long = "delete-config", value_name = "NAME")]
        deleted: Vec<String>,
    },
    /// Delete topics and every record in them
    Delete {
        #[arg(value_name = "TOPIC", required = true)]
        names: Vec<TopicName>,
    },
    /// Delete a partition's oldest records, on every replica and for good
    DeleteRecords {
        #[arg(value_name = "TOPIC")]
        name: TopicName,
        /// The partition
        #[arg(long, short = 'p', value_name = "N")]
        partition: u32,
        /// The first offset that is to stay, or "end": nothing that is committed stays
        #[arg(long, value_name = "OFFSET", value_parser = before)]
        before: Before,
    },
}

/// Up to where records are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Offset(Offset),
    End,
}

fn before(text: &str) -> Result<Before, String> {
    if text == "end" {
        return Ok(Before::End);
    }
    let offset = text.parse().ok().and_then(Offset::new);
    offset
        .map(Before::Offset)
        .ok_or_else(|| "write an offset, or \"end\"".to_owned())
}

#[derive(Serialize)]
struct RecordsDeleted {
    topic: TopicName,
    partition: u32,
    log_start_offset: u64,
}

#[derive(Serialize)]
struct TopicSummary {
    topic: TopicName,
    id: Option<String>,
    partitions: usize,
    replication_factor: usize,
}

#[derive(Serialize)]
struct TopicDetail {
    topic: TopicName,
    id: Option<String>,
    partitions: Vec<PartitionDetail>,
    configs: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct PartitionDetail {
    partition: u32,
    leader: Option<NodeId>,
    leader_epoch: i32,
    replicas: Vec<NodeId>,
    isr: Vec<NodeId>,
}

/// `NAME=VALUE`.
fn name_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// What is wrong with the arguments taken together.
fn check(command: &TopicCommand) -> Result<(), ExitWith> {
    let (partitions, configs, deleted, alters) = match command {
        TopicCommand::Create { configs, .. } => (&None, configs, &Vec::new(), false),
        TopicCommand::Alter {
            partitions,
            configs,
            deleted,
            ..
        } => (partitions, configs, deleted, true),
        _ => return Ok(()),
    };
    let usage = |message: String| Err(ExitWith::new(Exit::Usage, message));
    if alters && partitions.is_none() && configs.is_empty() && deleted.is_empty() {
        return usage(
            "nothing to change is given: add --partitions, --config or --delete-config".to_owned(),
        );
    }
    let mut names: Vec<&String> = configs
        .iter()
        .map(|(name, _)| name)
        .chain(deleted)
        .collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => usage(format!("the setting {} is given twice", pair[0])),
        None => Ok(()),
    }
}

pub(super) fn run(options: &GlobalOptions, args: TopicArgs) -> anyhow::Result<Exit> {
    check(&args.command)?;
    block_on(async {
        let client = connect::client(options).await?;
        let done = command(options, &client.admin(), args.command).await;
        client.close();
        done
    })
}

async fn command(
    options: &GlobalOptions,
    admin: &Admin,
    command: TopicCommand,
) -> anyhow::Result<Exit> {
    match command {
        TopicCommand::Create {
            name,
            partitions,
            replication_factor,
            configs,
            if_not_exists,
        } => {
            let mut topic = NewTopic::new(name.clone());
            topic.partitions = partitions;
            topic.replication_factor = replication_factor;
            topic.configs = configs.into_iter().collect();
            match admin.create_topic(&topic, false).await {
                Ok(_) => created(options, admin, &name).await?,
                Err(error) if if_not_exists && exists(&error) => {
                    note(&format!("Topic {name} is there already"));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        TopicCommand::List => list(options, admin).await?,
        TopicCommand::Describe { names } => describe(options, admin, &names).await?,
        TopicCommand::Alter {
            name,
            partitions,
            configs,
            deleted,
        } => {
            if let Some(count) = partitions {
                admin
                    .create_partitions(&name, count)
                    .await
                    .map_err(failed)?;
                note(&format!("Topic {name} has {count} partitions"));
            }
            let changes: Vec<AlterConfig> = configs
                .into_iter()
                .map(|(name, value)| AlterConfig::Set { name, value })
                .chain(deleted.into_iter().map(|name| AlterConfig::Delete { name }))
                .collect();
            if !changes.is_empty() {
                let resource = ConfigResource::Topic(name.clone());
                admin
                    .alter_configs(&resource, &changes, false)
                    .await
                    .map_err(failed)?;
                note(&format!("Changed the settings of topic {name}"));
            }
        }
        TopicCommand::Delete { names } => {
            let mut failure: Option<anyhow::Error> = None;
            for name in names {
                match admin.delete_topic(&name).await {
                    Ok(()) => note(&format!("Deleted topic {name}")),
                    // Without a connection the others fare no better.
                    Err(error) if error.connect_error().is_some() => return Err(failed(error)),
                    Err(error) => {
                        if let Some(earlier) = failure.replace(failed(error)) {
                            print_error(&earlier);
                        }
                    }
                }
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        TopicCommand::DeleteRecords {
            name,
            partition,
            before,
        } => delete_records(options, admin, name, partition, before).await?,
    }
    Ok(Exit::Ok)
}

async fn delete_records(
    options: &GlobalOptions,
    admin: &Admin,
    topic: TopicName,
    partition: u32,
    before: Before,
) -> anyhow::Result<()> {
    // Learns who leads, and whether there is such a partition.
    let described = admin.describe_topics(std::slice::from_ref(&topic)).await;
    let described = described.map_err(failed)?;
    let count = described.first().map_or(0, |topic| topic.partitions.len());
    if partition as usize >= count {
        let message =
            format!("topic {topic} has no partition {partition}: it has {count}, numbered from 0");
        return Err(ExitWith::new(Exit::Failure, message).into());
    }
    let place = PartitionName::new(topic.clone(), PartitionIndex(partition));
    let up_to = match before {
        Before::Offset(offset) => Some(offset),
        Before::End => None,
    };
    let start = admin.delete_records(&place, up_to).await.map_err(failed)?;
    note(&format!("{place} begins at offset {start} now"));
    if options.json() {
        print_json(&RecordsDeleted {
            topic,
            partition,
            log_start_offset: start.get(),
        })?;
    }
    Ok(())
}

fn exists(error: &ClientError) -> bool {
    error.error_code() == Some(ErrorCode::TopicAlreadyExists)
}

/// Says what the cluster chose where nothing was said.
async fn created(options: &GlobalOptions, admin: &Admin, name: &TopicName) -> anyhow::Result<()> {
    // It exists, whether or not the node that is asked can describe it yet.
    let described = admin.describe_topics(std::slice::from_ref(name)).await;
    let Some(topic) = described.ok().and_then(|topics| topics.into_iter().next()) else {
        note(&format!("Created topic {name}"));
        return Ok(());
    };
    let count = topic.partitions.len();
    note(&format!(
        "Created topic {name} with {count} partition{}, replication factor {}",
        if count == 1 { "" } else { "s" },
        replication_factor(&topic)
    ));
    if options.json() {
        print_json(&summary(&topic))?;
    }
    Ok(())
}

fn summary(topic: &TopicView) -> TopicSummary {
    TopicSummary {
        topic: topic.name.clone(),
        id: topic.id.map(|id| id.to_string()),
        partitions: topic.partitions.len(),
        replication_factor: replication_factor(topic),
    }
}

async fn list(options: &GlobalOptions, admin: &Admin) -> anyhow::Result<()> {
    let mut topics = admin.list_topics().await.map_err(failed)?;
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let mut table = Table::new(["TOPIC", "PARTITIONS", "REPLICAS"]);
    for topic in &topics {
        let summary = summary(topic);
        if options.json() {
            print_json(&summary)?;
        } else {
            table.row([
                summary.topic.to_string(),
                summary.partitions.to_string(),
                summary.replication_factor.to_string(),
            ]);
        }
    }
    if !options.json() {
        table.print()?;
    }
    Ok(())
}

fn replication_factor(topic: &TopicView) -> usize {
    let counts = topic.partitions.iter().map(|p| p.replicas.len());
    counts.max().unwrap_or_default()
}

async fn describe(
    options: &GlobalOptions,
    admin: &Admin,
    names: &[TopicName],
) -> anyhow::Result<()> {
    let mut topics = if names.is_empty() {
        admin.list_topics().await.map_err(failed)?
    } else {
        admin.describe_topics(names).await.map_err(failed)?
    };
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    for (i, topic) in topics.iter().enumerate() {
        let resource = ConfigResource::Topic(topic.name.clone());
        let configs = admin.describe_configs(&resource).await.map_err(failed)?;
        if options.json() {
            print_json(&detail(topic, &configs))?;
            continue;
        }
        if i > 0 {
            super::print_line("")?;
        }
        print_topic(topic, &configs)?;
    }
    Ok(())
}

fn detail(topic: &TopicView, configs: &[ConfigEntry]) -> TopicDetail {
    TopicDetail {
        topic: topic.name.clone(),
        id: topic.id.map(|id| id.to_string()),
        partitions: topic
            .partitions
            .iter()
            .map(|partition| PartitionDetail {
                partition: partition.partition.0,
                leader: partition.leader,
                leader_epoch: partition.leader_epoch,
                replicas: partition.replicas.clone(),
                isr: partition.isr.clone(),
            })
            .collect(),
        configs: configs
            .iter()
            .map(|entry| (entry.name.clone(), entry.value.clone().unwrap_or_default()))
            .collect(),
    }
}

fn print_topic(topic: &TopicView, configs: &[ConfigEntry]) -> anyhow::Result<()> {
    let id = topic
        .id
        .map_or_else(String::new, |id| format!(" (id {id})"));
    super::print_line(&format!("Topic {}{id}", topic.name))?;
    let set: Vec<String> = configs
        .iter()
        .filter(|entry| entry.source == ConfigSource::Topic)
        .map(|entry| {
            format!(
                "{}={}",
                entry.name,
                entry.value.as_deref().unwrap_or_default()
            )
        })
        .collect();
    if !set.is_empty() {
        super::print_line(&format!("Settings: {}", set.join(" ")))?;
    }
    let mut table = Table::new(["PARTITION", "LEADER", "EPOCH", "REPLICAS", "IN SYNC"]);
    for partition in &topic.partitions {
        table.row([
            partition.partition.to_string(),
            partition
                .leader
                .map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
            partition.leader_epoch.to_string(),
            nodes(&partition.replicas),
            nodes(&partition.isr),
        ]);
    }
    table.print()
}

/// `1,2,3`.
pub(super) fn nodes(nodes: &[NodeId]) -> String {
    let texts: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alter(configs: &[&str], deleted: &[&str]) -> Result<(), Exit> {
        check(&TopicCommand::Alter {
            name: TopicName::new("t").unwrap(),
            partitions: None,
            configs: configs
                .iter()
                .map(|text| name_value(text).unwrap())
                .collect(),
            deleted: deleted.iter().map(ToString::to_string).collect(),
        })
        .map_err(|error| error.exit)
    }

    #[test]
    fn a_change_names_something_and_each_setting_once() {
        assert_eq!(alter(&[], &[]), Err(Exit::Usage));
        assert_eq!(alter(&["a=1", "b="], &["c"]), Ok(()));
        assert_eq!(alter(&["a=1", "a=2"], &[]), Err(Exit::Usage));
        assert_eq!(alter(&["a=1"], &["a"]), Err(Exit::Usage));
        assert_eq!(name_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(name_value("=b").is_err());
    }
}
