//! Questions to the cluster about where a partition's log begins and ends.

use std::collections::HashMap;

use super::start::Start;
use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::client::{Client, OffsetQuery};
use crate::types::{IsolationLevel, Offset};

/// Where each start lies, for a reader of this kind.
pub(in crate::client) async fn resolve(
    client: &Client,
    starts: Vec<(PartitionName, Start)>,
    isolation: IsolationLevel,
) -> Result<Vec<(PartitionName, i64)>, ClientError> {
    let query = |start: &Start| match start {
        Start::Beginning => OffsetQuery::Earliest,
        Start::End | Start::FromEnd(_) | Start::Offset(_) => OffsetQuery::Latest,
        Start::Timestamp(ms) => OffsetQuery::Timestamp(*ms),
    };
    let first: Vec<_> = starts
        .iter()
        .map(|(name, start)| (name.clone(), query(start)))
        .collect();
    let first = client.offsets_seen(&first, isolation).await?;
    // A second question: how far back the log goes, and where it ends if no record is as young as was asked for.
    let second: Vec<_> = starts
        .iter()
        .filter_map(|(name, start)| match (start, first.get(name)) {
            (Start::FromEnd(_), _) => Some((name.clone(), OffsetQuery::Earliest)),
            (Start::Timestamp(_), Some(None)) => Some((name.clone(), OffsetQuery::Latest)),
            _ => None,
        })
        .collect();
    let second = if second.is_empty() {
        HashMap::new()
    } else {
        client.offsets_seen(&second, isolation).await?
    };
    let known = |offsets: &HashMap<PartitionName, Option<Offset>>, name: &PartitionName| {
        offsets.get(name).copied().flatten()
    };
    Ok(starts
        .into_iter()
        .map(|(name, start)| {
            let (one, two) = (known(&first, &name), known(&second, &name));
            let offset = match start {
                Start::Offset(offset) => offset,
                Start::FromEnd(count) => {
                    let back = one.unwrap_or_default().get().saturating_sub(count);
                    Offset::new(back).max(two).unwrap_or_default()
                }
                Start::Beginning | Start::End | Start::Timestamp(_) => {
                    one.or(two).unwrap_or_default()
                }
            };
            (name, offset.to_wire())
        })
        .collect())
}

pub(super) async fn bounds(
    client: &Client,
    name: &PartitionName,
) -> Result<(Offset, Offset), ClientError> {
    let ask = |query| {
        let queries = [(name.clone(), query)];
        async move {
            let offsets = client.offsets(&queries).await?;
            Ok::<_, ClientError>(offsets.get(name).copied().flatten().unwrap_or_default())
        }
    };
    Ok((
        ask(OffsetQuery::Earliest).await?,
        ask(OffsetQuery::Latest).await?,
    ))
}
