//! One record in flight, at `acks=1` and `acks=all` in turn. A replicated record cannot be acknowledged as fast as one that only the
//! leader holds: where it is, it is not replicated.

use std::time::Duration;

use tokio::time::Instant;

use super::settings::Settings;
use crate::bench::records::{Filler, value};
use crate::bench::{BenchError, millis};
use crate::client::{Acks, Client, Producer, ProducerRecord};
use crate::types::TopicName;

/// Records of each kind, and how long all of them may take.
const PAIRS: usize = 30;
const TIME: Duration = Duration::from_secs(4);
/// Records that are sent first: connections stand then, and batches have their sequence.
const UNCOUNTED: usize = 2;
/// What both kinds have in common is most of the time where the followers are near. Below this factor they are the same.
const AS_FAST: f64 = 1.05;

/// Times in the median, in ms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Single {
    pub(super) acks_1_ms: f64,
    pub(super) acks_all_ms: f64,
}

/// Measures it on a topic of its own.
pub(super) async fn measure(
    client: &Client,
    topic: &TopicName,
    settings: &Settings,
) -> Result<Option<Single>, BenchError> {
    let producer = |acks| {
        let producer = client.producer(settings.producer(acks));
        producer.map_err(BenchError::client("make a producer"))
    };
    let (leader, all) = (producer(Acks::Leader)?, producer(Acks::All)?);
    let (mut acks_1, mut acks_all) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for turn in 0..UNCOUNTED + PAIRS {
        if turn >= UNCOUNTED + 3 && begun.elapsed() > TIME {
            break;
        }
        let (one, other) = (
            once(&leader, topic, settings).await?,
            once(&all, topic, settings).await?,
        );
        if turn >= UNCOUNTED {
            acks_1.push(millis(one));
            acks_all.push(millis(other));
        }
    }
    let median = |times: Vec<f64>| super::median(times.into_iter());
    Ok(median(acks_1)
        .zip(median(acks_all))
        .map(|(acks_1_ms, acks_all_ms)| Single {
            acks_1_ms,
            acks_all_ms,
        }))
}

async fn once(
    producer: &Producer,
    topic: &TopicName,
    settings: &Settings,
) -> Result<Duration, BenchError> {
    let value = value(0, 0, 0, settings.record_size, Filler::Letters);
    let record = ProducerRecord::new(topic.clone(), value);
    let from = Instant::now();
    let delivery = producer.send(record).await;
    let delivery = delivery.map_err(BenchError::client("produce a single record"))?;
    match delivery.await {
        Ok(_) => Ok(from.elapsed()),
        Err(error) => Err(BenchError::Failed(format!(
            "a single record was not acknowledged: {error}"
        ))),
    }
}

/// Why `acks=all` cannot be what it should be, in a cluster whose followers are `rtt_ms` away at least.
pub(super) fn red_flag(single: Single, rtt_ms: Option<f64>, jitter_ms: f64) -> Option<String> {
    let Single {
        acks_1_ms,
        acks_all_ms,
    } = single;
    let least = rtt_ms.map_or(0.0, |rtt| rtt - 2.0 * jitter_ms);
    if acks_all_ms < least {
        return Some(format!(
            "a record was acknowledged at acks=all in {acks_all_ms} ms, before any follower, {least} ms away, could have confirmed it"
        ));
    }
    (acks_all_ms < AS_FAST * acks_1_ms).then(|| {
        format!(
            "one record in flight takes {acks_all_ms} ms at acks=all and {acks_1_ms} ms at acks=1: what is replicated cannot be as fast as what is not"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_raised_where_replication_costs_nothing_or_breaks_physics() {
        let flag = |acks_1_ms, acks_all_ms, rtt, jitter| {
            red_flag(
                Single {
                    acks_1_ms,
                    acks_all_ms,
                },
                rtt,
                jitter,
            )
        };
        assert_eq!(flag(1.0, 2.0, None, 0.0), None);
        assert_eq!(flag(1.0, 41.0, Some(40.0), 0.0), None);
        assert!(flag(1.0, 1.0, None, 0.0).unwrap().contains("acks=1"));
        assert!(flag(1.0, 0.9, Some(0.0), 0.0).is_some());
        assert!(
            flag(1.0, 39.0, Some(40.0), 0.0)
                .unwrap()
                .contains("40 ms away")
        );
        // The delay goes up and down.
        assert_eq!(flag(1.0, 39.0, Some(40.0), 5.0), None);
    }
}
