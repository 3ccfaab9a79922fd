//! What is known of every partition's log, in one file that is replaced within a second of a change: high watermarks, for
//! those who read the directory from outside, and for each log that syncs its appends up to where it is synced.
//!
//! By the latter, the durable mark, recovery tells rot in a log's tail from a tail that was torn (see `recovery.rs`): a log
//! that does not reach its mark is corrupt. No log is ever cut by this file. It is written without waiting for the disk, so it
//! may be older than the logs, or missing, or unreadable after a power cut; then less is known, or nothing, and the rot of the
//! last second, or all above the recovery checkpoint, is taken for a torn tail. Nothing refuses to start for it. A mark that is
//! older than a truncation is of another lineage and says nothing: see [`DurableMark::lineage`].
//!
//! Logs with `flush=os` have no mark here. Where the policy of a topic changes, a mark that was written before still says what
//! is true, and what was appended in the meantime gets one only when it has been synced.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file_system::{FileSystem, IoFailure};
use super::small_file::{self, SmallFileError};
use super::sync::DurableMark;
use crate::types::{Offset, TopicPartition};

const FILE: &str = "high-watermarks";
const KIND: &str = "high-watermarks";

#[derive(Serialize, Deserialize)]
struct Body {
    /// `<topic id>-<partition>` → high watermark.
    high_watermarks: BTreeMap<String, Offset>,
    /// Likewise, of logs with `flush=fsync` only. Builds before this one wrote none.
    #[serde(default)]
    durable: BTreeMap<String, DurableMark>,
}

/// What is written down of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    pub high_watermark: Offset,
    /// [`super::LogReader::durable_mark`]: taken together with the watermark, or earlier.
    pub durable: Option<DurableMark>,
}

impl From<Offset> for Marks {
    fn from(high_watermark: Offset) -> Marks {
        Marks {
            high_watermark,
            durable: None,
        }
    }
}

/// Replaces the file in one step, without waiting for the disk. To be called within a second of a change, and on stop.
pub fn write_high_watermarks<M: Into<Marks>>(
    fs: &dyn FileSystem,
    data_dir: &Path,
    marks: impl IntoIterator<Item = (TopicPartition, M)>,
) -> Result<(), IoFailure> {
    let mut body = Body {
        high_watermarks: BTreeMap::new(),
        durable: BTreeMap::new(),
    };
    for (partition, marks) in marks {
        let marks: Marks = marks.into();
        let name = partition.to_string();
        if let Some(durable) = marks.durable {
            body.durable.insert(name.clone(), durable);
        }
        body.high_watermarks.insert(name, marks.high_watermark);
    }
    small_file::replace_unsynced(fs, &data_dir.join(FILE), KIND, &body)
}

/// By `<topic id>-<partition>`, a partition's directory name. Empty when there is no file yet.
pub fn read_high_watermarks(
    fs: &dyn FileSystem,
    data_dir: &Path,
) -> Result<BTreeMap<String, Marks>, SmallFileError> {
    let Some(body) = small_file::read::<Body>(fs, &data_dir.join(FILE), KIND)? else {
        return Ok(BTreeMap::new());
    };
    let mut durable = body.durable;
    let marks = body.high_watermarks.into_iter().map(|(name, offset)| {
        let marks = Marks {
            high_watermark: offset,
            durable: durable.remove(&name),
        };
        (name, marks)
    });
    Ok(marks.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::FaultyFileSystem;
    use crate::storage::test_frames::offset;
    use crate::types::{PartitionIndex, TopicId};

    #[test]
    fn watermarks_come_back() {
        let fs = FaultyFileSystem::new(0);
        let dir = Path::new("/");
        assert!(read_high_watermarks(&fs, dir).unwrap().is_empty());
        let partition = TopicPartition {
            topic: TopicId::from_random_bits(1),
            partition: PartitionIndex(2),
        };
        write_high_watermarks(&fs, dir, [(partition, offset(9))]).unwrap();
        let found = read_high_watermarks(&fs, dir).unwrap();
        assert_eq!(
            found.get(&partition.to_string()),
            Some(&Marks::from(offset(9)))
        );
    }

    #[test]
    fn a_file_without_durable_marks_is_read_and_one_with_them_comes_back() {
        let fs = FaultyFileSystem::new(0);
        let dir = Path::new("/");
        let partition = TopicPartition {
            topic: TopicId::from_random_bits(1),
            partition: PartitionIndex(2),
        };
        let marks = Marks {
            high_watermark: offset(9),
            durable: Some(DurableMark {
                end: crate::types::LogPosition::new(offset(12), crate::types::LeaderEpoch::NONE),
                lineage: 3,
            }),
        };
        write_high_watermarks(&fs, dir, [(partition, marks)]).unwrap();
        let found = read_high_watermarks(&fs, dir).unwrap();
        assert_eq!(found.get(&partition.to_string()), Some(&marks));

        #[derive(Serialize)]
        struct Before {
            high_watermarks: BTreeMap<String, Offset>,
        }
        let before = Before {
            high_watermarks: [(partition.to_string(), offset(9))].into(),
        };
        small_file::replace(&fs, &dir.join(FILE), KIND, &before).unwrap();
        let found = read_high_watermarks(&fs, dir).unwrap();
        assert_eq!(
            found.get(&partition.to_string()),
            Some(&Marks::from(offset(9)))
        );
    }
}
