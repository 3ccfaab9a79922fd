//! Why a share of a Produce request is refused, and for which of its records.

use kafka_protocol::messages::produce_response::BatchIndexAndErrorMessage;

use crate::kafka::Refusal;
use crate::kafka::codec::text;
use crate::record::{Batch, raw_records};
use crate::types::ErrorCode;

/// Records that an answer names, so that a small request makes no large one. What is not named is no better for it: a producer that
/// sends the rest again hears of the next ones.
const MAX_NAMED_RECORDS: usize = 1000;

/// A share that is not appended.
#[derive(Clone, Debug)]
pub(super) struct ProduceRefusal {
    pub(super) refusal: Refusal,
    /// The places in the batch of the records at fault, from 0 and at most [`MAX_NAMED_RECORDS`] of them; none where it is
    /// not single records. A producer fails these, and the others for being in one batch with them.
    records: Vec<i32>,
}

impl From<Refusal> for ProduceRefusal {
    fn from(refusal: Refusal) -> ProduceRefusal {
        ProduceRefusal {
            refusal,
            records: Vec::new(),
        }
    }
}

impl From<ErrorCode> for ProduceRefusal {
    fn from(error: ErrorCode) -> ProduceRefusal {
        Refusal::from(error).into()
    }
}

impl ProduceRefusal {
    /// The records at fault, as an answer names them.
    pub(super) fn named_records(&self) -> Vec<BatchIndexAndErrorMessage> {
        let name = |index: &i32| {
            let message = self.refusal.message.clone();
            BatchIndexAndErrorMessage::default()
                .with_batch_index(*index)
                .with_batch_index_error_message(message.map(text))
        };
        self.records.iter().map(name).collect()
    }
}

/// A compacted topic keeps the last record of each key, and so must be told one with each.
pub(super) fn check_keys(batch: &Batch) -> Result<(), ProduceRefusal> {
    let refuse = |message: String| Refusal {
        error: ErrorCode::InvalidRecord,
        message: Some(message),
    };
    let all = raw_records(batch).map_err(|error| refuse(error.to_string()))?;
    let without_key: Vec<i32> = (0..)
        .zip(&all)
        .filter(|(_, record)| record.key.is_none())
        .map(|(index, _)| index)
        .take(MAX_NAMED_RECORDS)
        .collect();
    if without_key.is_empty() {
        return Ok(());
    }
    Err(ProduceRefusal {
        refusal: refuse(
            "a record without a key: the topic is compacted, so each record needs one".to_owned(),
        ),
        records: without_key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, Compression, Limits, check_produced};

    fn batch(keys: impl Iterator<Item = bool>) -> Batch {
        let mut builder = BatchBuilder::new();
        for key in keys {
            let key: Option<&[u8]> = key.then_some(b"key");
            builder.append(key, Some(b"value"), &[], 1000).unwrap();
        }
        let sealed: Vec<u8> = builder.seal(Compression::None).unwrap().stamp(None).into();
        let limits = Limits {
            max_batch_bytes: 1 << 20,
        };
        check_produced(&sealed.into(), &limits).unwrap().remove(0)
    }

    #[test]
    fn the_records_without_a_key_are_named() {
        assert!(check_keys(&batch([true, true].into_iter())).is_ok());
        let refused = check_keys(&batch([true, false, true, false].into_iter())).unwrap_err();
        assert_eq!(refused.refusal.error, ErrorCode::InvalidRecord);
        let named = refused.named_records();
        let places: Vec<i32> = named.iter().map(|record| record.batch_index).collect();
        assert_eq!(places, [1, 3]);
        assert!(named[0].batch_index_error_message.is_some());
    }

    #[test]
    fn no_more_are_named_than_the_limit() {
        let refused = check_keys(&batch((0..=MAX_NAMED_RECORDS).map(|_| false))).unwrap_err();
        assert_eq!(refused.named_records().len(), MAX_NAMED_RECORDS);
    }
}
