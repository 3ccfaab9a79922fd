//! The high watermarks of all partitions in one file, for those who read the directory from outside. It decides nothing:
//! recovery does not look at it, and no log is ever cut by it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file_system::{FileSystem, IoFailure};
use super::small_file::{self, SmallFileError};
use crate::types::{Offset, TopicPartition};

const FILE: &str = "high-watermarks";
const KIND: &str = "high-watermarks";

#[derive(Serialize, Deserialize)]
struct Body {
    /// `<topic id>-<partition>` → high watermark.
    high_watermarks: BTreeMap<String, Offset>,
}

/// Replaces the file in one step, without waiting for the disk. To be called within a second of a change, and on stop.
pub fn write_high_watermarks(
    fs: &dyn FileSystem,
    data_dir: &Path,
    high_watermarks: impl IntoIterator<Item = (TopicPartition, Offset)>,
) -> Result<(), IoFailure> {
    let high_watermarks = high_watermarks
        .into_iter()
        .map(|(partition, offset)| (partition.to_string(), offset))
        .collect();
    small_file::replace_unsynced(fs, &data_dir.join(FILE), KIND, &Body { high_watermarks })
}

/// By `<topic id>-<partition>`, a partition's directory name. Empty when there is no file yet.
pub fn read_high_watermarks(
    fs: &dyn FileSystem,
    data_dir: &Path,
) -> Result<BTreeMap<String, Offset>, SmallFileError> {
    let body = small_file::read::<Body>(fs, &data_dir.join(FILE), KIND)?;
    Ok(body.map_or_else(BTreeMap::new, |body| body.high_watermarks))
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
        assert_eq!(found.get(&partition.to_string()), Some(&offset(9)));
    }
}
