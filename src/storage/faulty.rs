//! A file system in memory that fails on purpose, the same way for the same seed.
//!
//! It keeps two images of everything: what a running process sees (the page cache) and what the disk is certain to have.
//! Between them stand the operations that no sync has covered yet. A killed process loses nothing of the first image; a
//! power loss leaves the second and, of the operations in between, whatever the seed chooses: all, none, some, whole or
//! torn at sector boundaries. Names behave likewise, per directory and in order, as on a journalling file system.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::file_system::{DirEntry, File, FileLock, FileSystem, OpenMode};

/// What is written whole or not at all when the power goes.
const SECTOR: usize = 512;
const ROOT: u64 = 0;

/// The in-memory disk. Clones share it.
#[derive(Clone)]
pub struct FaultyFileSystem {
    disk: Arc<Mutex<Disk>>,
}

struct Disk {
    random: SplitMix,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    locks: BTreeSet<u64>,
    /// Rises with every kill and power loss; a handle of an earlier process is dead.
    boot: u64,
    /// Operations that change something, since the beginning.
    operations: u64,
    /// The operation at which the process dies.
    crash_at: Option<u64>,
    dead: bool,
    failing_syncs: u32,
    /// Whether nobody is told of those.
    fails_in_silence: bool,
    failing_writes: u32,
    /// By file: from where to where it cannot be read.
    unreadable: BTreeMap<u64, Range<usize>>,
    /// Syncs succeed and do nothing.
    lying: bool,
    /// Total bytes of file contents that fit.
    capacity: Option<u64>,
}

enum Inode {
    Dir(Dir),
    File(Contents),
}

#[derive(Default)]
struct Dir {
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<NameChange>,
}

#[derive(Clone)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

#[derive(Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

/// A small generator whose sequence never changes with a library's version.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough for choosing faults; 0 for an empty range.
    fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
}

impl FaultyFileSystem {
    pub fn new(seed: u64) -> FaultyFileSystem {
        let mut inodes = BTreeMap::new();
        inodes.insert(ROOT, Inode::Dir(Dir::default()));
        FaultyFileSystem {
            disk: Arc::new(Mutex::new(Disk {
                random: SplitMix(seed),
                inodes,
                next_inode: ROOT + 1,
                locks: BTreeSet::new(),
                boot: 0,
                operations: 0,
                crash_at: None,
                dead: false,
                failing_syncs: 0,
                fails_in_silence: false,
                failing_writes: 0,
                unreadable: BTreeMap::new(),
                lying: false,
                capacity: None,
            })),
        }
    }

    /// As a trait object.
    pub fn shared(&self) -> Arc<dyn FileSystem> {
        Arc::new(self.clone())
    }

    /// How many operations have changed something (written, synced, renamed, …) since the beginning.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The process dies at the `count`-th changing operation from now (1 is the next): that operation happens in part or
    /// not at all, and it and every later one fail until [`FaultyFileSystem::kill`] or
    /// [`FaultyFileSystem::power_loss`].
    pub fn crash_after(&self, count: u64) {
        let mut disk = self.lock();
        disk.crash_at = Some(disk.operations + count);
    }

    /// Whether the point named by [`FaultyFileSystem::crash_after`] was reached.
    pub fn has_crashed(&self) -> bool {
        self.lock().dead
    }

    /// kill -9 and a new process: handles and locks are gone, the page cache stays.
    pub fn kill(&self) {
        self.lock().new_process();
    }

    /// The power goes and comes back. Of what was not synced, the seed chooses what is left.
    pub fn power_loss(&self) {
        let mut disk = self.lock();
        let Disk { inodes, random, .. } = &mut *disk;
        for inode in inodes.values_mut() {
            match inode {
                Inode::Dir(dir) => dir.power_loss(random),
                Inode::File(contents) => contents.power_loss(random),
            }
        }
        disk.new_process();
    }

    /// The same, and of what was not synced nothing is left: the least that a disk may keep.
    pub fn power_loss_of_all_unsynced(&self) {
        let mut disk = self.lock();
        for inode in disk.inodes.values_mut() {
            match inode {
                Inode::Dir(dir) => {
                    dir.pending.clear();
                    dir.live = dir.durable.clone();
                }
                Inode::File(contents) => {
                    contents.pending.clear();
                    contents.live = contents.durable.clone();
                }
            }
        }
        disk.new_process();
    }

    /// The next `count` syncs fail with EIO. As on Linux, what they should have written is then clean in the page cache
    /// and may never reach the disk: a later sync succeeds without it.
    pub fn fail_syncs(&self, count: u32) {
        let mut disk = self.lock();
        disk.failing_syncs = count;
        disk.fails_in_silence = false;
    }

    /// The same, and the caller is told that all is well: as if it never looked at the result.
    pub fn fail_syncs_in_silence(&self, count: u32) {
        let mut disk = self.lock();
        disk.failing_syncs = count;
        disk.fails_in_silence = true;
    }

    /// The next `count` writes fail with EIO, after a part of them is written.
    pub fn fail_writes(&self, count: u32) {
        self.lock().failing_writes = count;
    }

    /// Bad sectors: from here on these bytes of the file cannot be read (EIO), over restarts too, whatever its name becomes.
    /// What is written over them can be read: a disk gives such a sector another place.
    pub fn make_unreadable(&self, path: &Path, bytes: Range<usize>) -> io::Result<()> {
        let mut disk = self.lock();
        let file = disk.resolve(path)?;
        disk.unreadable.insert(file, bytes);
        Ok(())
    }

    /// From here on syncs of files succeed without making anything durable, as disks with a volatile cache do.
    pub fn lie_about_syncs(&self) {
        self.lock().lying = true;
    }

    /// How many bytes of file contents fit in all; a write beyond it is partial and fails with ENOSPC. `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Bytes of file contents now.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Bit rot: flips bit `bit` of the file, on the disk and in the cache.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> io::Result<()> {
        let mut disk = self.lock();
        let contents = disk.contents_at(path)?;
        let byte = usize::try_from(bit / 8).unwrap_or(usize::MAX);
        for image in [&mut contents.live, &mut contents.durable] {
            if let Some(byte) = image.get_mut(byte) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }

    /// The file as a running process sees it.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.lock().contents_at(path)?.live.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn new_process(&mut self) {
        self.boot += 1;
        self.locks.clear();
        self.dead = false;
        self.crash_at = None;
        self.failing_syncs = 0;
        self.failing_writes = 0;
    }

    fn used(&self) -> u64 {
        self.used_below(ROOT)
    }

    /// What is reached by a name; what is not takes no room.
    fn used_below(&self, id: u64) -> u64 {
        match self.inodes.get(&id) {
            Some(Inode::File(contents)) => contents.live.len() as u64,
            Some(Inode::Dir(dir)) => dir.live.values().map(|&id| self.used_below(id)).sum(),
            None => 0,
        }
    }

    /// Counts one changing operation. `Err` when the process is dead or dies at it.
    fn change(&mut self) -> io::Result<()> {
        self.alive()?;
        self.operations += 1;
        if self.crash_at == Some(self.operations) {
            self.dead = true;
            return Err(crashed());
        }
        Ok(())
    }

    /// Nothing from `at` on is unreadable any more. More than a write needs to say, but files here are written at their ends.
    fn give_another_place(&mut self, file: u64, at: usize) {
        if let Some(bad) = self.unreadable.get_mut(&file) {
            bad.end = bad.end.min(at);
            if bad.start >= bad.end {
                self.unreadable.remove(&file);
            }
        }
    }

    /// What the caller of a sync that failed hears.
    fn sync_failed(&self) -> io::Result<()> {
        if self.fails_in_silence {
            Ok(())
        } else {
            Err(eio())
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(crashed()) } else { Ok(()) }
    }

    fn dir(&mut self, id: u64) -> io::Result<&mut Dir> {
        match self.inodes.get_mut(&id) {
            Some(Inode::Dir(dir)) => Ok(dir),
            Some(Inode::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn contents(&mut self, id: u64) -> io::Result<&mut Contents> {
        match self.inodes.get_mut(&id) {
            Some(Inode::File(contents)) => Ok(contents),
            Some(Inode::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn contents_at(&mut self, path: &Path) -> io::Result<&mut Contents> {
        let id = self.resolve(path)?;
        self.contents(id)
    }

    fn resolve(&mut self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for name in components(path)? {
            at = *self
                .dir(at)?
                .live
                .get(&name)
                .ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn parent(&mut self, path: &Path) -> io::Result<(u64, String)> {
        let mut names = components(path)?;
        let name = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = ROOT;
        for name in names {
            at = *self
                .dir(at)?
                .live
                .get(&name)
                .ok_or(io::ErrorKind::NotFound)?;
        }
        Ok((at, name))
    }

    fn add(&mut self, parent: u64, name: String, inode: Inode) -> io::Result<u64> {
        let id = self.next_inode;
        self.dir(parent)?.apply(NameChange::Link(name, id));
        self.next_inode += 1;
        self.inodes.insert(id, inode);
        Ok(id)
    }
}

impl Dir {
    fn apply(&mut self, change: NameChange) {
        apply_name_change(&mut self.live, &change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            apply_name_change(&mut self.durable, &change);
        }
    }

    fn power_loss(&mut self, random: &mut SplitMix) {
        let kept = random.below(self.pending.len() as u64 + 1) as usize;
        self.pending.truncate(kept);
        self.sync();
        self.live = self.durable.clone();
    }
}

fn apply_name_change(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Link(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameChange::Unlink(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
    }
}

impl Contents {
    fn apply(&mut self, change: Change) {
        apply_change(&mut self.live, &change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            apply_change(&mut self.durable, &change);
        }
    }

    /// A failed sync: some of it is on the disk, and none of it will be written again.
    fn failed_sync(&mut self, random: &mut SplitMix) {
        for change in self.pending.drain(..) {
            if random.below(2) == 0 {
                apply_change(&mut self.durable, &change);
            }
        }
    }

    fn power_loss(&mut self, random: &mut SplitMix) {
        let pending = std::mem::take(&mut self.pending);
        let count = pending.len() as u64;
        // One fate for the whole file makes the likely cases (all, none, a prefix) as frequent as the odd ones.
        let fate = random.below(5);
        let prefix = random.below(count + 1);
        for (i, change) in pending.into_iter().enumerate() {
            let keep = match fate {
                0 => true,
                1 => false,
                2 => (i as u64) < prefix,
                3 => random.below(2) == 0,
                _ => {
                    self.tear(change, random);
                    continue;
                }
            };
            if keep {
                apply_change(&mut self.durable, &change);
            }
        }
        self.live = self.durable.clone();
    }

    /// Writes some of the sectors.
    fn tear(&mut self, change: Change, random: &mut SplitMix) {
        let Change::Write(at, bytes) = change else {
            if random.below(2) == 0 {
                apply_change(&mut self.durable, &change);
            }
            return;
        };
        let mut from = 0;
        while from < bytes.len() {
            let to_boundary = SECTOR - (at as usize + from) % SECTOR;
            let to = (from + to_boundary).min(bytes.len());
            if random.below(2) == 0 {
                let part = bytes[from..to].to_vec();
                apply_change(&mut self.durable, &Change::Write(at + from as u64, part));
            }
            from = to;
        }
    }
}

fn apply_change(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, bytes) => {
            let at = *at as usize;
            if image.len() < at + bytes.len() {
                image.resize(at + bytes.len(), 0);
            }
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Change::SetLen(len) => image.resize(*len as usize, 0),
    }
}

fn components(path: &Path) -> io::Result<Vec<String>> {
    path.components()
        .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
        .map(|component| match component {
            Component::Normal(name) => name
                .to_str()
                .map(str::to_owned)
                .ok_or(io::ErrorKind::InvalidInput.into()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        })
        .collect()
}

fn crashed() -> io::Error {
    io::Error::other("the simulated process has died")
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

struct FaultyFile {
    fs: FaultyFileSystem,
    id: u64,
    boot: u64,
    writable: bool,
}

impl FaultyFile {
    fn disk(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.fs.lock();
        disk.alive()?;
        if disk.boot != self.boot {
            return Err(crashed());
        }
        Ok(disk)
    }

    fn disk_for_writing(&self) -> io::Result<MutexGuard<'_, Disk>> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk()
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk()?;
        disk.change()?;
        if disk.failing_syncs > 0 {
            disk.failing_syncs -= 1;
            let Disk { inodes, random, .. } = &mut *disk;
            if let Some(Inode::File(contents)) = inodes.get_mut(&self.id) {
                contents.failed_sync(random);
            }
            return disk.sync_failed();
        }
        if !disk.lying {
            disk.contents(self.id)?.sync();
        }
        Ok(())
    }
}

impl File for FaultyFile {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk()?;
        let unreadable = disk.unreadable.get(&self.id).cloned();
        let live = &disk.contents(self.id)?.live;
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(live.len());
        let count = buffer.len().min(live.len() - at);
        if unreadable.is_some_and(|bad| at < bad.end && bad.start < at + count) {
            return Err(eio());
        }
        buffer[..count].copy_from_slice(&live[at..at + count]);
        Ok(count)
    }

    fn write_at(&self, at: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut disk = self.disk_for_writing()?;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut outcome = disk.change();
        if outcome.is_ok() && disk.failing_writes > 0 {
            disk.failing_writes -= 1;
            outcome = Err(eio());
        }
        if outcome.is_err() {
            let part = disk.random.below(bytes.len() as u64 + 1);
            bytes.truncate(part as usize);
        }
        let room = disk
            .capacity
            .map(|capacity| capacity.saturating_sub(disk.used()));
        disk.give_another_place(self.id, at as usize);
        let contents = disk.contents(self.id)?;
        if let Some(room) = room {
            let end = at + bytes.len() as u64;
            let growth = end.saturating_sub(contents.live.len() as u64);
            if growth > room {
                bytes.truncate(bytes.len().saturating_sub((growth - room) as usize));
                outcome = outcome.and(Err(io::ErrorKind::StorageFull.into()));
            }
        }
        if !bytes.is_empty() {
            contents.apply(Change::Write(at, bytes));
        }
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk_for_writing()?;
        disk.change()?;
        disk.give_another_place(self.id, len as usize);
        disk.contents(self.id)?.apply(Change::SetLen(len));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk()?.contents(self.id)?.live.len() as u64)
    }
}

struct FaultyLock {
    fs: FaultyFileSystem,
    id: u64,
    boot: u64,
}

impl FileLock for FaultyLock {}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        let mut disk = self.fs.lock();
        if disk.boot == self.boot {
            disk.locks.remove(&self.id);
        }
    }
}

impl FileSystem for FaultyFileSystem {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut disk = self.lock();
        disk.alive()?;
        let id = match disk.resolve(path) {
            Ok(id) => id,
            Err(error) if error.kind() == io::ErrorKind::NotFound && mode == OpenMode::Create => {
                disk.change()?;
                let (parent, name) = disk.parent(path)?;
                disk.add(parent, name, Inode::File(Contents::default()))?
            }
            Err(error) => return Err(error),
        };
        disk.contents(id)?;
        Ok(Arc::new(FaultyFile {
            fs: self.clone(),
            id,
            boot: disk.boot,
            writable: mode != OpenMode::Read,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        disk.alive()?;
        let mut at = ROOT;
        for name in components(path)? {
            let found = disk.dir(at)?.live.get(&name).copied();
            at = match found {
                Some(id) => id,
                None => {
                    disk.change()?;
                    disk.add(at, name, Inode::Dir(Dir::default()))?
                }
            };
        }
        disk.dir(at).map(|_| ())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut disk = self.lock();
        disk.alive()?;
        let id = disk.resolve(dir)?;
        let names = disk.dir(id)?.live.clone();
        Ok(names
            .into_iter()
            .map(|(name, id)| DirEntry {
                name,
                is_dir: matches!(disk.inodes.get(&id), Some(Inode::Dir(_))),
            })
            .collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        disk.alive()?;
        let id = disk.resolve(from)?;
        let (from_dir, from_name) = disk.parent(from)?;
        let (to_dir, to_name) = disk.parent(to)?;
        disk.change()?;
        if from_dir == to_dir {
            disk.dir(from_dir)?
                .apply(NameChange::Rename(from_name, to_name));
        } else {
            disk.dir(to_dir)?.apply(NameChange::Link(to_name, id));
            disk.dir(from_dir)?.apply(NameChange::Unlink(from_name));
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        disk.contents_at(path)?;
        let (parent, name) = disk.parent(path)?;
        disk.change()?;
        disk.dir(parent)?.apply(NameChange::Unlink(name));
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        let id = disk.resolve(path)?;
        disk.dir(id)?;
        let (parent, name) = disk.parent(path)?;
        disk.change()?;
        disk.dir(parent)?.apply(NameChange::Unlink(name));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        let id = disk.resolve(dir)?;
        disk.change()?;
        if disk.failing_syncs > 0 {
            disk.failing_syncs -= 1;
            return disk.sync_failed();
        }
        disk.dir(id)?.sync();
        Ok(())
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn FileLock>>> {
        self.open(path, OpenMode::Create)?;
        let mut disk = self.lock();
        let id = disk.resolve(path)?;
        if !disk.locks.insert(id) {
            return Ok(None);
        }
        Ok(Some(Box::new(FaultyLock {
            fs: self.clone(),
            id,
            boot: disk.boot,
        })))
    }

    fn available_space(&self, _path: &Path) -> io::Result<u64> {
        let disk = self.lock();
        disk.alive()?;
        Ok(disk
            .capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &dyn File, at: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_at(at, &[IoSlice::new(bytes)])
    }

    #[test]
    fn what_was_synced_survives_a_power_loss_and_the_rest_may_not() {
        let mut lost = 0;
        for seed in 0..50 {
            let fs = FaultyFileSystem::new(seed);
            let path = Path::new("/d/f");
            fs.create_dir_all(Path::new("/d")).unwrap();
            let file = fs.open(path, OpenMode::Create).unwrap();
            write(&*file, 0, b"kept").unwrap();
            file.sync_data().unwrap();
            fs.sync_dir(Path::new("/d")).unwrap();
            fs.sync_dir(Path::new("/")).unwrap();
            write(&*file, 4, &[7; 2000]).unwrap();
            fs.power_loss();
            let left = fs.contents(path).unwrap();
            assert!(left.starts_with(b"kept"), "seed {seed}");
            lost += usize::from(left.len() < 2004 || left[4..].contains(&0));
            assert!(write(&*file, 0, b"x").is_err(), "a dead process's handle");
        }
        assert!(lost > 10, "{lost}");
    }

    #[test]
    fn a_name_needs_its_directory_synced() {
        let mut seen = BTreeSet::new();
        for seed in 0..20 {
            let fs = FaultyFileSystem::new(seed);
            let file = fs.open(Path::new("/f"), OpenMode::Create).unwrap();
            file.sync_data().unwrap();
            fs.power_loss();
            seen.insert(fs.contents(Path::new("/f")).is_ok());
        }
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn after_a_failed_sync_the_next_one_lies() {
        let mut lost = 0;
        for seed in 0..20 {
            let fs = FaultyFileSystem::new(seed);
            let path = Path::new("/f");
            let file = fs.open(path, OpenMode::Create).unwrap();
            fs.sync_dir(Path::new("/")).unwrap();
            write(&*file, 0, b"x").unwrap();
            fs.fail_syncs(1);
            assert!(file.sync_data().is_err());
            file.sync_data().unwrap();
            fs.kill();
            assert_eq!(fs.contents(path).unwrap(), b"x", "still in the page cache");
            fs.power_loss();
            lost += usize::from(fs.contents(path).unwrap().is_empty());
        }
        assert!(lost > 0);
    }

    #[test]
    fn a_full_disk_takes_what_fits() {
        let fs = FaultyFileSystem::new(1);
        let file = fs.open(Path::new("/f"), OpenMode::Create).unwrap();
        fs.set_capacity(Some(3));
        let error = write(&*file, 0, b"12345").unwrap_err();
        assert!(super::super::file_system::is_no_space(&error));
        assert_eq!(fs.contents(Path::new("/f")).unwrap(), b"123");
        assert_eq!(fs.available_space(Path::new("/")).unwrap(), 0);
    }

    #[test]
    fn a_bad_sector_can_be_read_again_once_it_is_written() {
        let fs = FaultyFileSystem::new(1);
        let path = Path::new("/f");
        let file = fs.open(path, OpenMode::Create).unwrap();
        write(&*file, 0, &[7; 2000]).unwrap();
        fs.make_unreadable(path, 512..1024).unwrap();
        let mut buffer = [0; 100];
        let read = |at, buffer: &mut [u8]| file.read_at(at, buffer);
        assert!(read(500, &mut buffer).is_err());
        assert!(read(1024, &mut buffer).is_ok());
        fs.kill();
        let file = fs.open(path, OpenMode::Write).unwrap();
        assert!(file.read_at(600, &mut buffer).is_err(), "over a restart");
        write(&*file, 600, &[8; 1400]).unwrap();
        assert!(file.read_at(600, &mut buffer).is_ok());
        assert!(file.read_at(599, &mut buffer).is_err());
        file.set_len(512).unwrap();
        write(&*file, 512, &[9; 100]).unwrap();
        assert!(file.read_at(512, &mut buffer).is_ok());
    }

    #[test]
    fn a_crash_point_stops_everything_until_the_next_process() {
        let fs = FaultyFileSystem::new(1);
        let file = fs.open(Path::new("/f"), OpenMode::Create).unwrap();
        fs.crash_after(2);
        write(&*file, 0, b"a").unwrap();
        assert!(write(&*file, 1, b"b").is_err());
        assert!(fs.has_crashed());
        assert!(fs.open(Path::new("/f"), OpenMode::Read).is_err());
        fs.kill();
        assert!(fs.contents(Path::new("/f")).unwrap().starts_with(b"a"));
    }
}
