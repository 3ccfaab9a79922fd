//! What nodes say to each other about the cluster and to operators about themselves, and what a controller keeps on disk. All of
//! it is JSON: the lines of `../seeds/*.jsonl`, which nodes wrote.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use quorate::metadata::{ClusterImage, Command};
use quorate::{admin, controller};
use redb::StorageBackend;

const MESSAGES: &str = include_str!("../seeds/controller_message.jsonl");
const VALUES: &str = include_str!("../seeds/controller_value.jsonl");
const ADMIN: &str = include_str!("../seeds/admin.jsonl");

fn lines(text: &str) -> Vec<Vec<u8>> {
    text.lines().map(|line| line.as_bytes().to_vec()).collect()
}

/// What was read and written is read, and written again as it was.
fn hold_fast(input: &[u8], reread: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> usize {
    let written = reread(input);
    for once in &written {
        let twice = reread(once);
        assert!(
            twice.contains(once),
            "{} is read as {:?}",
            String::from_utf8_lossy(once),
            twice
                .iter()
                .map(|it| String::from_utf8_lossy(it))
                .collect::<Vec<_>>()
        );
    }
    written.len()
}

// --- messages between nodes ---

pub(crate) fn controller_message(input: &[u8]) {
    hold_fast(input, controller::reread_message);
}

pub(crate) fn controller_message_seeds() -> Vec<Vec<u8>> {
    let seeds = lines(MESSAGES);
    for seed in &seeds {
        let readings = hold_fast(seed, controller::reread_message);
        assert!(readings > 0, "{}", String::from_utf8_lossy(seed));
    }
    seeds
}

// --- answers to operators, and what they ask ---

pub(crate) fn admin(input: &[u8]) {
    hold_fast(input, admin::reread);
}

pub(crate) fn admin_seeds() -> Vec<Vec<u8>> {
    let seeds = lines(ADMIN);
    for seed in &seeds {
        let readings = hold_fast(seed, admin::reread);
        assert!(readings > 0, "{}", String::from_utf8_lossy(seed));
    }
    seeds
}

// --- a controller's values ---

/// The values that a controller wrote, as the lines have them: name, a space, JSON.
fn written() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    VALUES.lines().map(|line| {
        let (name, value) = line.split_once(' ').expect("a name and a value");
        (name, value.as_bytes().to_vec())
    })
}

/// The same, and the snapshot that a controller makes of its log.
fn values() -> Vec<(&'static str, Vec<u8>)> {
    let image = serde_json::to_vec(&real_image()).expect("an image is written");
    written().chain([("snapshot", image)]).collect()
}

fn name_of(first: u8) -> &'static str {
    let names = controller::STORED_VALUES;
    names[usize::from(first) % names.len()]
}

fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let names = controller::STORED_VALUES;
    let index = names.iter().position(|it| *it == name);
    let mut seed = vec![index.expect("a name that is kept") as u8];
    seed.extend_from_slice(value);
    seed
}

/// The first byte says which value the rest is. An image, whatever it is, also takes the commands of a real log, and a command
/// is carried out on a real image.
pub(crate) fn controller_value(input: &[u8]) {
    let Some((&first, value)) = input.split_first() else {
        return;
    };
    let name = name_of(first);
    let reread = |value: &[u8]| controller::reread_value(name, value).into_iter().collect();
    hold_fast(value, reread);
    if name == "snapshot"
        && let Ok(mut image) = serde_json::from_slice::<ClusterImage>(value)
    {
        for command in commands() {
            // A rejection is an answer, too.
            let _ = image.apply(&command);
        }
        let written = serde_json::to_vec(&image).expect("an image is written");
        let read: ClusterImage = serde_json::from_slice(&written).expect("and read");
        assert_eq!(read, image);
    }
    if name == "entry"
        && let Some(command) = command_of(value)
    {
        for mut image in [ClusterImage::new(), real_image()] {
            let _ = image.apply(&command);
            let written = serde_json::to_vec(&image).expect("an image is written");
            let read: ClusterImage = serde_json::from_slice(&written).expect("and read");
            assert_eq!(read, image);
        }
    }
}

/// The command that an entry carries, if it is one.
fn command_of(entry: &[u8]) -> Option<Command> {
    let mut entry: serde_json::Value = serde_json::from_slice(entry).ok()?;
    let command = entry.get_mut("payload")?.get_mut("Normal")?.take();
    serde_json::from_value(command).ok()
}

fn commands() -> impl Iterator<Item = Command> {
    let entries = written().filter(|(name, _)| *name == "entry");
    entries.filter_map(|(_, entry)| command_of(&entry))
}

/// What becomes of the log's commands.
fn real_image() -> ClusterImage {
    let mut image = ClusterImage::new();
    let taken = commands().filter(|command| image.apply(command).is_ok());
    assert!(taken.count() > 10, "the log is one of a real cluster");
    image
}

pub(crate) fn controller_value_seeds() -> Vec<Vec<u8>> {
    for (name, value) in values() {
        let read = controller::reread_value(name, &value);
        assert!(read.is_some(), "{name} {}", String::from_utf8_lossy(&value));
    }
    let values = values().into_iter();
    values.map(|(name, value)| named(name, &value)).collect()
}

// --- a controller's store ---

/// A file in memory that outlives whoever has it open.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn outside() -> io::Error {
    io::Error::from(io::ErrorKind::UnexpectedEof)
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|bytes| bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|bytes| {
            let from = usize::try_from(offset).map_err(|_| outside())?;
            let end = from.checked_add(out.len()).ok_or_else(outside)?;
            out.copy_from_slice(bytes.get(from..end).ok_or_else(outside)?);
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(|_| outside())?;
        self.with(|bytes| bytes.resize(length, 0));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|bytes| {
            let from = usize::try_from(offset).map_err(|_| outside())?;
            let end = from.checked_add(data.len()).ok_or_else(outside)?;
            bytes
                .get_mut(from..end)
                .ok_or_else(outside)?
                .copy_from_slice(data);
            Ok(())
        })
    }
}

fn store_with(replaced: Option<(&'static str, &[u8])>) -> Shared {
    let file = Shared::default();
    let mut values = values();
    if let Some((name, value)) = replaced {
        values.retain(|(it, _)| *it != name);
        values.push((name, value.to_vec()));
    }
    controller::write_store(file.clone(), &values).expect("a file without faults");
    file
}

/// The bytes that a patch of a file takes: where (3, big-endian), and the new byte.
const PATCH: usize = 4;

/// The first byte says what is wrong with a real store. Below 0x80: which value of it is the rest. From there on: the rest is
/// patches of the file's bytes, made while nobody has it open.
pub(crate) fn controller_store(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else {
        return;
    };
    let file = if first < 0x80 {
        store_with(Some((name_of(first), rest)))
    } else {
        let file = store_with(None);
        file.with(|bytes| {
            for patch in rest.chunks_exact(PATCH) {
                let at = u32::from_be_bytes([0, patch[0], patch[1], patch[2]]) as usize;
                let length = bytes.len();
                bytes[at % length] = patch[3];
            }
        });
        file
    };
    // Once more on what the first start has left: it may have mended something.
    for _ in 0..2 {
        let _ = controller::read_store(file.clone());
    }
}

pub(crate) fn controller_store_seeds() -> Vec<Vec<u8>> {
    let entries = values().iter().filter(|(name, _)| *name == "entry").count();
    let read = controller::read_store(store_with(None));
    assert_eq!(read.expect("a real store is read"), entries);
    let mut seeds = controller_value_seeds();
    // The head of the file, and the places where something stands behind it.
    let file = store_with(None);
    let used: Vec<usize> = file.with(|bytes| {
        let used = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0);
        used.map(|(at, _)| at).collect()
    });
    for place in used.chunks(used.len() / 40 + 1) {
        let mut seed = vec![0x80];
        for at in place.iter().step_by(place.len() / 3 + 1) {
            seed.extend_from_slice(&(*at as u32).to_be_bytes()[1..]);
            seed.push(0x5a);
        }
        seeds.push(seed);
    }
    seeds
}
