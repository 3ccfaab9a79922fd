//! What recovery does about the end of a log: what lies behind the last good frame is cut, and what stays is made durable before
//! it is voted or acknowledged. Why: [`super::recovery`].

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use super::file_system::{File, FileSystem, IoFailure, OpenMode, read_up_to};
use super::index::IndexEntry;
use super::log::Flush;
use super::reader::Segment;
use super::recovery::remove_segments;
use super::segment::{FrameCursor, SCAN_CHUNK, parse_segment_name, segment_path};
use crate::types::{LogPosition, Offset};

/// Removes what lies behind the kept segments, newest first, and shortens the last of them. Returns the bytes removed.
pub(super) fn cut_tail(
    fs: &dyn FileSystem,
    dir: &Path,
    kept: &[Segment],
) -> Result<u64, IoFailure> {
    let entries = fs.list(dir).map_err(IoFailure::at("list", dir))?;
    let last = kept.last();
    let mut removed = 0;
    let mut dropped: Vec<Offset> = entries
        .iter()
        .filter_map(|entry| parse_segment_name(&entry.name))
        .filter(|base| last.is_none_or(|last| *base > last.base))
        .collect();
    dropped.sort_unstable();
    for base in &dropped {
        let path = segment_path(dir, *base);
        let file = fs
            .open(&path, OpenMode::Read)
            .map_err(IoFailure::at("open", &path))?;
        removed += file.len().map_err(IoFailure::at("read", &path))?;
    }
    remove_segments(fs, dir, &dropped)?;
    if let Some(last) = last {
        let path = segment_path(dir, last.base);
        let file = fs
            .open(&path, OpenMode::Write)
            .map_err(IoFailure::at("open", &path))?;
        let len = file.len().map_err(IoFailure::at("read", &path))?;
        removed += len.saturating_sub(last.len);
        file.set_len(last.len)
            .map_err(IoFailure::at("truncate", &path))?;
        file.sync_all().map_err(IoFailure::at("sync", &path))?;
    }
    Ok(removed)
}

/// Up to where a segment need not be written again.
#[derive(Clone, Copy)]
pub(super) struct KnownSynced {
    pub(super) position: LogPosition,
    /// A frame of the segment at or before it, where one is known.
    pub(super) near: Option<IndexEntry>,
}

/// Makes a kept segment durable; with `to_new_file`, where a sync had failed, as a copy.
pub(super) fn make_durable(
    fs: &dyn FileSystem,
    dir: &Path,
    segment: &Segment,
    synced: Option<KnownSynced>,
    to_new_file: bool,
    flush: Flush,
) -> Result<(), IoFailure> {
    let path = segment_path(dir, segment.base);
    let file = fs
        .open(&path, OpenMode::Write)
        .map_err(IoFailure::at("open", &path))?;
    if to_new_file {
        let copy_path = dir.join(format!("{:020}.wal.new", segment.base.get()));
        let copy = fs
            .open(&copy_path, OpenMode::Create)
            .map_err(IoFailure::at("create", &copy_path))?;
        copy.set_len(0)
            .map_err(IoFailure::at("write", &copy_path))?;
        copy_bytes(&*file, &*copy, 0, segment.len).map_err(IoFailure::at("copy to", &copy_path))?;
        copy.sync_all().map_err(IoFailure::at("sync", &copy_path))?;
        fs.rename(&copy_path, &path)
            .map_err(IoFailure::at("replace", &path))?;
        return fs.sync_dir(dir).map_err(IoFailure::at("sync", dir));
    }
    if flush == Flush::Fsync {
        let from = match synced {
            Some(synced) if synced.position > segment.start => {
                byte_of(&file, &path, segment, synced).unwrap_or(0)
            }
            _ => 0,
        };
        copy_bytes(&*file, &*file, from, segment.len).map_err(IoFailure::at("write", &path))?;
    }
    file.sync_data().map_err(IoFailure::at("sync", &path))
}

/// Where the first frame begins that is not known to be synced.
fn byte_of(
    file: &Arc<dyn File>,
    path: &Path,
    segment: &Segment,
    KnownSynced { position, near }: KnownSynced,
) -> Option<u64> {
    let (byte, start) = near.map_or((0, segment.start), |entry| (entry.byte, entry.start));
    let mut cursor = FrameCursor::new(
        file.clone(),
        path.to_owned(),
        byte,
        segment.len,
        Some(start),
        SCAN_CHUNK,
    );
    while cursor.skip_if(|header| header.end() <= position).ok()? {}
    Some(cursor.byte())
}

fn copy_bytes(from: &dyn File, to: &dyn File, start: u64, end: u64) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let wanted = (end - at).min(4 * SCAN_CHUNK as u64) as usize;
        let bytes = read_up_to(from, at, wanted)?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_at(at, &[IoSlice::new(&bytes)])?;
        at += bytes.len() as u64;
    }
    Ok(())
}
