//! `quorate group`: show, move and delete consumer groups.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::connect::{self, failed};
use super::consume::start;
use super::output::print_error;
use super::{Exit, ExitWith, GlobalOptions, Table, block_on, note, print_json, print_line};
use crate::client::{
    Admin, Client, ClientError, GroupDescription, GroupMember, GroupOffset, GroupSummary,
    PartitionName, Start,
};
use crate::types::{ErrorCode, NodeId, PartitionIndex, TopicName};

/// Show, move and delete consumer groups
#[derive(Args, Debug)]
pub(super) struct GroupArgs {
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Subcommand, Debug)]
enum GroupCommand {
    /// Show all groups
    List,
    /// Show members of groups, what each reads, and how far it has come
    Describe {
        #[arg(value_name = "GROUP", required = true)]
        groups: Vec<String>,
    },
    /// Have a group without members go on from another place
    Seek {
        #[arg(value_name = "GROUP")]
        group: String,
        /// The topic
        #[arg(short, long, value_name = "TOPIC")]
        topic: TopicName,
        /// Only these partitions; may be repeated [default: all]
        #[arg(short, long = "partition", value_name = "N")]
        partitions: Vec<u32>,
        /// Where to: beginning, end, N, -N (so many before the end), or @TIME (ms since 1970, or RFC 3339)
        #[arg(long, value_name = "OFFSET", value_parser = start, allow_hyphen_values = true)]
        to: Start,
    },
    /// Delete groups without members, with what they have committed
    Delete {
        #[arg(value_name = "GROUP", required = true)]
        groups: Vec<String>,
    },
}

#[derive(Serialize)]
struct Summary {
    group: String,
    state: String,
    protocol_type: String,
    group_type: String,
    coordinator: NodeId,
}

#[derive(Serialize)]
struct Detail {
    group: String,
    state: String,
    protocol_type: String,
    protocol: String,
    /// Of a group of the newer protocol.
    group_epoch: Option<i32>,
    assignment_epoch: Option<i32>,
    coordinator: NodeId,
    members: Vec<MemberDetail>,
    partitions: Vec<PartitionDetail>,
}

#[derive(Serialize)]
struct MemberDetail {
    member: String,
    instance: Option<String>,
    client_id: String,
    client_host: String,
    partitions: Vec<String>,
    /// What it is to have, and its epoch, in a group of the newer protocol.
    target: Option<Vec<String>>,
    epoch: Option<i32>,
}

#[derive(Serialize)]
struct PartitionDetail {
    topic: TopicName,
    partition: u32,
    /// The id of the member that reads it.
    member: Option<String>,
    committed: Option<i64>,
    log_start: Option<u64>,
    log_end: Option<u64>,
    lag: Option<u64>,
}

#[derive(Serialize)]
struct Moved {
    topic: TopicName,
    partition: u32,
    committed: i64,
}

pub(super) fn run(options: &GlobalOptions, args: GroupArgs) -> anyhow::Result<Exit> {
    block_on(async {
        let client = connect::client(options).await?;
        let done = command(options, &client, args.command).await;
        client.close();
        done
    })
}

async fn command(
    options: &GlobalOptions,
    client: &Client,
    command: GroupCommand,
) -> anyhow::Result<Exit> {
    let admin = client.admin();
    match command {
        GroupCommand::List => list(options, &admin).await?,
        GroupCommand::Describe { groups } => {
            for (i, group) in groups.iter().enumerate() {
                let described = admin.describe_group(group).await.map_err(failed)?;
                if options.json() {
                    print_json(&detail(described))?;
                    continue;
                }
                if i > 0 {
                    print_line("")?;
                }
                print_group(described)?;
            }
        }
        GroupCommand::Seek {
            group,
            topic,
            partitions,
            to,
        } => seek(options, client, &group, &topic, &partitions, to).await?,
        GroupCommand::Delete { groups } => delete(&admin, groups).await?,
    }
    Ok(Exit::Ok)
}

async fn list(options: &GlobalOptions, admin: &Admin) -> anyhow::Result<()> {
    let groups = admin.list_groups().await.map_err(failed)?;
    let mut table = Table::new(["GROUP", "STATE", "TYPE", "PROTOCOL", "COORDINATOR"]);
    for group in groups {
        let GroupSummary {
            group,
            state,
            protocol_type,
            group_type,
            coordinator,
        } = group;
        if options.json() {
            print_json(&Summary {
                group,
                state,
                protocol_type,
                group_type,
                coordinator,
            })?;
        } else {
            table.row([
                group,
                state,
                or_dash(protocol_type),
                group_type,
                coordinator.to_string(),
            ]);
        }
    }
    if !options.json() {
        table.print()?;
    }
    Ok(())
}

fn or_dash(text: String) -> String {
    match text.is_empty() {
        true => "-".to_owned(),
        false => text,
    }
}

fn detail(described: GroupDescription) -> Detail {
    let readers = readers(&described);
    Detail {
        partitions: described
            .offsets
            .iter()
            .map(|offset| PartitionDetail {
                topic: offset.partition.topic.clone(),
                partition: offset.partition.partition.0,
                member: readers.get(&offset.partition).cloned(),
                committed: offset.committed,
                log_start: offset.log.map(|(start, _)| start.get()),
                log_end: offset.log.map(|(_, end)| end.get()),
                lag: offset.lag(),
            })
            .collect(),
        members: described
            .members
            .into_iter()
            .map(|member| MemberDetail {
                member: member.id,
                instance: member.instance,
                client_id: member.client_id,
                client_host: member.client_host,
                partitions: texts(&member.partitions),
                target: member.target.as_deref().map(texts),
                epoch: member.epoch,
            })
            .collect(),
        group: described.group,
        state: described.state,
        protocol_type: described.protocol_type,
        protocol: described.protocol,
        group_epoch: described.epochs.map(|epochs| epochs.group),
        assignment_epoch: described.epochs.map(|epochs| epochs.assignment),
        coordinator: described.coordinator,
    }
}

fn texts(partitions: &[PartitionName]) -> Vec<String> {
    partitions.iter().map(ToString::to_string).collect()
}

/// Who reads each partition.
fn readers(described: &GroupDescription) -> BTreeMap<PartitionName, String> {
    let mut readers = BTreeMap::new();
    for member in &described.members {
        for partition in &member.partitions {
            readers.insert(partition.clone(), member.id.clone());
        }
    }
    readers
}

fn print_group(described: GroupDescription) -> anyhow::Result<()> {
    let protocol = match described.protocol.is_empty() {
        true => String::new(),
        false => format!(", assigned by {}", described.protocol),
    };
    let epochs = match described.epochs {
        Some(epochs) => format!(", epoch {} (assigned {})", epochs.group, epochs.assignment),
        None => String::new(),
    };
    print_line(&format!(
        "Group {}: {}{protocol}{epochs}, coordinator {}",
        described.group, described.state, described.coordinator
    ))?;
    let readers = readers(&described);
    if !described.members.is_empty() {
        members(&described.members).print()?;
    }
    if described.offsets.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER"]);
    for offset in &described.offsets {
        let reader = readers.get(&offset.partition).cloned();
        table.row(offset_row(offset, reader.unwrap_or_default()));
    }
    table.print()
}

/// Members; in the newer protocol with their epochs, and how many partitions each is to have.
fn members(members: &[GroupMember]) -> Table {
    let is_newer = members.iter().any(|member| member.epoch.is_some());
    let mut table = match is_newer {
        true => Table::new(["MEMBER", "CLIENT", "HOST", "EPOCH", "PARTITIONS", "TARGET"]),
        false => Table::new(["MEMBER", "CLIENT", "HOST", "PARTITIONS"]),
    };
    for member in members {
        let texts = [&member.id, &member.client_id, &member.client_host].map(String::clone);
        let partitions = member.partitions.len().to_string();
        if is_newer {
            let epoch = member.epoch.map(|epoch| epoch.to_string());
            let target = member
                .target
                .as_ref()
                .map(|target| target.len().to_string());
            let [id, client, host] = texts;
            let (epoch, target) = (epoch.unwrap_or_default(), target.unwrap_or_default());
            table.row([id, client, host, epoch, partitions, target]);
        } else {
            let [id, client, host] = texts;
            table.row([id, client, host, partitions]);
        }
    }
    table
}

fn offset_row(offset: &GroupOffset, reader: String) -> [String; 6] {
    let or_dash_number = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    [
        offset.partition.topic.to_string(),
        offset.partition.partition.to_string(),
        or_dash_number(offset.committed.map(|at| at.to_string())),
        or_dash_number(offset.log.map(|(_, end)| end.to_string())),
        or_dash_number(offset.lag().map(|lag| lag.to_string())),
        or_dash(reader),
    ]
}

async fn seek(
    options: &GlobalOptions,
    client: &Client,
    group: &str,
    topic: &TopicName,
    partitions: &[u32],
    to: Start,
) -> anyhow::Result<()> {
    let view = client
        .topic(topic, false, options.timeout)
        .await
        .map_err(failed)?;
    let known = view.topics.get(topic).map_or(0, |t| t.partitions.len());
    let wanted: Vec<u32> = match partitions.is_empty() {
        true => (0..u32::try_from(known).unwrap_or(u32::MAX)).collect(),
        false => partitions.to_vec(),
    };
    if let Some(missing) = wanted
        .iter()
        .find(|&&partition| partition as usize >= known)
    {
        return Err(ExitWith::new(
            Exit::Failure,
            format!("topic {topic} has no partition {missing}: it has {known}, from 0"),
        )
        .into());
    }
    let places = wanted.into_iter().map(|partition| {
        (
            PartitionName::new(topic.clone(), PartitionIndex(partition)),
            to,
        )
    });
    let moved = client
        .admin()
        .seek_group(group, places.collect())
        .await
        .map_err(|error| has_members(error, group))?;
    let mut table = Table::new(["TOPIC", "PARTITION", "COMMITTED"]);
    for (name, committed) in moved {
        if options.json() {
            print_json(&Moved {
                topic: name.topic,
                partition: name.partition.0,
                committed,
            })?;
        } else {
            table.row([
                name.topic.to_string(),
                name.partition.to_string(),
                committed.to_string(),
            ]);
        }
    }
    if !options.json() {
        table.print()?;
    }
    Ok(())
}

/// Only what the group's own members say counts while it has any.
fn has_members(error: ClientError, group: &str) -> anyhow::Error {
    match error.error_code() {
        Some(
            code @ (ErrorCode::UnknownMemberId
            | ErrorCode::NonEmptyGroup
            | ErrorCode::IllegalGeneration
            | ErrorCode::RebalanceInProgress),
        ) => anyhow::anyhow!(
            "group {group} has members, which would go on from where they are: stop them first ({})",
            connect::kafka_name(code)
        ),
        _ => failed(error),
    }
}

async fn delete(admin: &Admin, groups: Vec<String>) -> anyhow::Result<()> {
    let mut failure: Option<anyhow::Error> = None;
    for group in groups {
        match admin.delete_group(&group).await {
            Ok(()) => note(&format!("Deleted group {group}")),
            // Without a connection the others fare no better.
            Err(error) if error.connect_error().is_some() => return Err(failed(error)),
            Err(error) => {
                if let Some(earlier) = failure.replace(has_members(error, &group)) {
                    print_error(&earlier);
                }
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
