//! How a fault is made, and how it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use quorate::storage::read_high_watermarks;
use quorate::types::LogPosition;
use quorate::wal::{Decoded, Frame};

use super::checker::{Check, violated};
use super::event::Event;
use super::node::{DATA_DIR, partition_dir, partition_id};
use super::planted::Planted;
use super::schedule::FaultKind;
use super::world::World;

/// What a disk loses at once.
const SECTOR: usize = 512;

impl World {
    pub fn begin_fault(&mut self, i: usize) -> Check {
        let fault = self.schedule[i];
        if self.healing_since.is_some() {
            return Ok(());
        }
        self.figures.faults += 1;
        // What a guard keeps from being made counts where it is made.
        let guarded = matches!(
            fault.kind,
            FaultKind::Emptied { .. }
                | FaultKind::SyncError { .. }
                | FaultKind::BitFlip { .. }
                | FaultKind::Unreadable { .. }
        );
        if !guarded {
            self.figures.of_kind[fault.kind.index()] += 1;
        }
        self.tell(|| format!("fault: {:?} for {} ms", fault.kind, fault.for_ms));
        let ends_after = Duration::from_millis(fault.for_ms);
        match fault.kind {
            FaultKind::Kill { node } => self.go_down(node, false, ends_after),
            FaultKind::PowerLoss { node } => self.go_down(node, true, ends_after),
            FaultKind::CrashAt {
                node,
                operations,
                power_loss,
            } => {
                self.nodes[node].disk.crash_after(operations);
                self.nodes[node].dies_with_power = power_loss;
            }
            FaultKind::Emptied { node } => {
                if self.may_lose_disk(node) {
                    self.figures.of_kind[fault.kind.index()] += 1;
                    self.go_down(node, true, ends_after);
                    let lying = self.planted == Some(Planted::LyingDisk);
                    let setup = self.setup.clone();
                    self.nodes[node].change_disk(&setup, lying);
                    for checker in &mut self.checkers {
                        checker.disk_lost(node);
                    }
                }
            }
            FaultKind::Pause { node } => {
                self.stop(node);
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::Cut { from, to } => {
                self.network.cut(from, to);
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::CutBoth { a, b } => {
                self.network.cut(a, b);
                self.network.cut(b, a);
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::Isolate { node } => {
                for other in (0..self.setup.endpoints()).filter(|&other| other != node) {
                    self.network.cut(node, other);
                    self.network.cut(other, node);
                }
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::Lossy { from, to, permille } => {
                self.network.add_loss(from, to, permille);
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::Slow { from, to, delay_ms } => {
                self.network.add_delay(from, to, delay_ms * 1000);
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::Break { a, b } => self.break_connections(a, b),
            FaultKind::SlowDisk { node, factor } => {
                self.nodes[node].slowness *= factor;
                if self.planted == Some(Planted::SyncFailureIgnored) {
                    // A disk that is slow is one that tries again and again; so that a power cut meets one more often.
                    self.nodes[node].disk.fail_syncs_in_silence(20);
                }
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::SyncError { node } => {
                if self.may_lose_disk(node) {
                    self.figures.of_kind[fault.kind.index()] += 1;
                    if self.planted == Some(Planted::SyncFailureIgnored) {
                        self.nodes[node].disk.fail_syncs_in_silence(20);
                        return Ok(());
                    }
                    self.nodes[node].errors_injected = true;
                    self.nodes[node].disk.fail_syncs(1);
                    for checker in &mut self.checkers {
                        checker.mark_void(node);
                    }
                }
            }
            FaultKind::WriteError { node } => {
                self.nodes[node].errors_injected = true;
                self.nodes[node].disk.fail_writes(1);
            }
            FaultKind::FullDisk { node, room_bytes } => {
                self.nodes[node].full += 1;
                let disk = &self.nodes[node].disk;
                disk.set_capacity(Some(disk.used() + room_bytes));
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::Verify { node } => {
                self.nodes[node].verify_all = true;
                self.go_down(node, false, ends_after);
            }
            FaultKind::BitFlip { node, pick } => return self.flip_bit(node, pick),
            FaultKind::Unreadable { node, pick } => return self.lose_sectors(node, pick),
            FaultKind::ControllerPause => {
                if self.controller.stopped.is_none() {
                    self.controller.stopped = Some(Vec::new());
                }
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::ControllerFailover => self.controller.fail_over(self.now),
            FaultKind::Depose { partition } => self.depose(partition),
            FaultKind::MinInsync { min_insync } => self.min_insync = min_insync,
            FaultKind::Reassign { partition, pick } => self.reassign(partition, pick),
            FaultKind::Away { partition, node } => {
                self.take_away(partition, node);
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::Drain { node } => {
                self.set_draining(node, true);
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::Prefer => self.prefer(),
            FaultKind::Unclean { partition } => self.ask_for_unclean(partition),
        }
        Ok(())
    }

    pub fn end_fault(&mut self, i: usize) -> Check {
        if self.healing_since.is_some() {
            return Ok(());
        }
        match self.schedule[i].kind {
            FaultKind::Pause { node } => return self.go_on(node),
            FaultKind::Cut { from, to } => self.heal_way(from, to),
            FaultKind::Away { partition, .. } => self.put_back(partition),
            FaultKind::CutBoth { a, b } => {
                self.heal_way(a, b);
                self.heal_way(b, a);
            }
            FaultKind::Isolate { node } => {
                for other in (0..self.setup.endpoints()).filter(|&other| other != node) {
                    self.heal_way(node, other);
                    self.heal_way(other, node);
                }
            }
            FaultKind::Lossy { from, to, permille } => {
                self.network.remove_loss(from, to, permille);
            }
            FaultKind::Slow { from, to, delay_ms } => {
                self.network.remove_delay(from, to, delay_ms * 1000);
            }
            FaultKind::SlowDisk { node, factor } => self.nodes[node].slowness /= factor,
            FaultKind::FullDisk { node, .. } => self.make_room(node),
            FaultKind::ControllerPause => self.controller_goes_on(),
            FaultKind::Drain { node } => self.set_draining(node, false),
            _ => {}
        }
        Ok(())
    }

    fn go_down(&mut self, node: usize, power_loss: bool, for_how_long: Duration) {
        self.kill(node, power_loss);
        self.plan(for_how_long, Event::Restart { node });
    }

    fn heal_way(&mut self, from: usize, to: usize) {
        self.network.heal(from, to);
        self.resume_streams(from, to);
    }

    fn resume_streams(&mut self, from: usize, to: usize) {
        for (at, connection, stream) in self.network.resume(self.now, from, to) {
            self.queue.push(at, Event::Resume { connection, stream });
        }
    }

    fn make_room(&mut self, node: usize) {
        let full = &mut self.nodes[node];
        full.full = full.full.saturating_sub(1);
        if full.full == 0 {
            full.disk.set_capacity(None);
        }
    }

    fn controller_goes_on(&mut self) {
        let mut at = self.now;
        for event in self.controller.stopped.take().unwrap_or_default() {
            at = at + Duration::from_micros(self.random.between(1, 20));
            self.queue.push(at, event);
        }
    }

    /// Flips a bit of what was synced: in a sealed segment below the recovery checkpoint, of which its index is the sign, or in
    /// the active segment below the mark that was written down. What lies above is a tail, and a tail that does not read is cut.
    fn flip_bit(&mut self, node: usize, pick: u64) -> Check {
        if !self.may_lose_disk(node) {
            return Ok(());
        }
        let partition = (pick >> 32) as usize % self.setup.partitions;
        if (pick >> 60) & 1 == 0 {
            self.flip_bit_of_sealed(node, partition, pick);
            return Ok(());
        }
        self.flip_bit_of_tail(node, partition, pick)
    }

    /// The process is killed then, and the next finds the bit before it votes, or trusts that part of the segment to the index
    /// that was written down, as it does sealed ones; it takes it for a torn tail in no case. It begins at once: a power cut in
    /// between could take the mark away, which nobody syncs.
    fn flip_bit_of_tail(&mut self, node: usize, partition: usize, pick: u64) -> Check {
        if !self.nodes[node].is_running() || self.nodes[node].is_excused() {
            return Ok(());
        }
        let Some((path, bytes, mark)) = self.marked_tail(node, partition) else {
            return Ok(());
        };
        let disk = self.nodes[node].disk.clone();
        let bit = (pick >> 8) % (bytes * 8);
        if disk.flip_bit(&path, bit).is_err() {
            return Ok(());
        }
        self.tell(|| {
            format!(
                "node {}: a bit of the tail {} is flipped",
                node + 1,
                path.display()
            )
        });
        self.nodes[node].was_harmed[partition] = true;
        self.checkers[partition].mark_void(node);
        self.kill(node, false);
        self.restart(node)?;
        let Some(replica) = self.nodes[node].view_replica(partition) else {
            // Its metadata does not name the partition yet, so nobody has seen it.
            let unseen = disk.flip_bit(&path, bit);
            self.nodes[node].was_harmed[partition] = unseen.is_err();
            return Ok(());
        };
        let is_cut = replica.partition.durable_end() < mark;
        self.figures.of_kind[FaultKind::BitFlip { node, pick }.index()] += 1;
        if !self.nodes[node].was_harmed[partition] {
            self.figures.tail_flips += 1;
        } else if !is_cut {
            self.figures.indexed_flips += 1;
        } else {
            return violated(
                "durability",
                format!(
                    "node {}: rot in what partition {partition}'s log had synced was taken for a torn tail",
                    node + 1
                ),
            );
        }
        Ok(())
    }

    /// The active segment, how many bytes of frames in it end at or below the mark that was written down, and that mark.
    fn marked_tail(&self, node: usize, partition: usize) -> Option<(PathBuf, u64, LogPosition)> {
        let disk = &self.nodes[node].disk;
        let marks = read_high_watermarks(&*disk.shared(), Path::new(DATA_DIR)).ok()?;
        let mark = marks.get(&partition_id(partition).to_string())?.durable?;
        let now = self.nodes[node]
            .view_replica(partition)?
            .reader
            .durable_mark()?;
        if now.lineage != mark.lineage {
            return None;
        }
        let dir = partition_dir(partition);
        let entries = disk.shared().list(&dir).ok()?;
        let names = entries.iter().map(|entry| &entry.name);
        let path = dir.join(names.filter(|name| name.ends_with(".wal")).max()?);
        let mut left = Bytes::from(disk.contents(&path).ok()?);
        let mut bytes = 0;
        while let Ok(Decoded::Frame(frame)) = Frame::decode(&left) {
            if frame.end() > mark.end {
                break;
            }
            bytes += frame.len() as u64;
            left = left.slice(frame.len()..);
        }
        (bytes > 0).then_some((path, bytes, mark.end))
    }

    fn flip_bit_of_sealed(&mut self, node: usize, partition: usize, pick: u64) {
        let sealed = self.sealed_segments(node, partition);
        let Some((path, len)) = sealed.get(pick as usize % sealed.len().max(1)) else {
            return;
        };
        let disk = self.nodes[node].disk.clone();
        let bits = *len as u64 * 8;
        if bits == 0 || disk.flip_bit(path, (pick >> 8) % bits).is_err() {
            return;
        }
        self.tell(|| format!("node {}: a bit of {} is flipped", node + 1, path.display()));
        self.figures.of_kind[FaultKind::BitFlip { node, pick }.index()] += 1;
        self.nodes[node].was_harmed[partition] = true;
        self.checkers[partition].mark_void(node);
    }

    /// Some sectors of a segment go bad: of a sealed one, for a reader to find; or of the active one, and the process is killed, so
    /// that the next one finds it at its start.
    fn lose_sectors(&mut self, node: usize, pick: u64) -> Check {
        if !self.may_lose_disk(node) {
            return Ok(());
        }
        let partition = (pick >> 32) as usize % self.setup.partitions;
        let at_start = (pick >> 60) & 1 == 0;
        let segments = if at_start {
            if !self.nodes[node].is_running()
                || self.nodes[node].is_excused()
                || self.nodes[node].view_replica(partition).is_none()
            {
                return Ok(());
            }
            self.segments(node, partition).pop().into_iter().collect()
        } else {
            self.sealed_segments(node, partition)
        };
        let Some((path, len)) = segments.get(pick as usize % segments.len().max(1)) else {
            return Ok(());
        };
        let sectors = len.div_ceil(SECTOR).max(1);
        let from = (pick >> 8) as usize % sectors * SECTOR;
        let bad = from..(from + SECTOR * (1 + (pick >> 40) as usize % 3)).min(*len);
        let disk = self.nodes[node].disk.clone();
        if bad.is_empty() || disk.make_unreadable(path, bad.clone()).is_err() {
            return Ok(());
        }
        self.tell(|| {
            format!(
                "node {}: {bad:?} of {} cannot be read",
                node + 1,
                path.display()
            )
        });
        self.figures.of_kind[FaultKind::Unreadable { node, pick }.index()] += 1;
        self.nodes[node].was_harmed[partition] = true;
        self.checkers[partition].mark_void(node);
        if !at_start {
            return Ok(());
        }
        self.kill(node, false);
        self.restart(node)?;
        if self.nodes[node].view_replica(partition).is_none() {
            // Its metadata does not name the partition yet: it is found when it does.
            return Ok(());
        }
        self.figures.unreadable_starts += 1;
        if self.nodes[node].was_harmed[partition] {
            return violated(
                "durability",
                format!(
                    "node {}: partition {partition}'s log was opened though {bad:?} of {} cannot be read",
                    node + 1,
                    path.display()
                ),
            );
        }
        Ok(())
    }

    /// A partition's segments and their lengths, oldest first.
    fn segments(&self, node: usize, partition: usize) -> Vec<(PathBuf, usize)> {
        let dir = partition_dir(partition);
        let disk = &self.nodes[node].disk;
        let entries = disk.shared().list(&dir).unwrap_or_default();
        let segments = entries.iter().filter(|entry| entry.name.ends_with(".wal"));
        segments
            .map(|entry| dir.join(&entry.name))
            .filter_map(|path| Some((path.clone(), disk.contents(&path).ok()?.len())))
            .collect()
    }

    /// Those that are known to have been synced: their index is the sign.
    fn sealed_segments(&self, node: usize, partition: usize) -> Vec<(PathBuf, usize)> {
        let mut segments = self.segments(node, partition);
        let disk = &self.nodes[node].disk;
        segments.retain(|(path, _)| disk.contents(&path.with_extension("idx")).is_ok());
        segments
    }

    /// Everything is repaired, and an operator starts what is down.
    pub fn heal(&mut self) -> Check {
        self.healing_since = Some(self.now);
        self.tell(|| "healing".to_owned());
        let was_rough = self.network.is_rough();
        self.network.calm_down();
        self.controller_goes_on();
        for from in 0..self.setup.endpoints() {
            for to in 0..self.setup.endpoints() {
                self.resume_streams(from, to);
            }
        }
        for node in 0..self.setup.nodes {
            self.go_on(node)?;
            self.nodes[node].slowness = 1;
            self.nodes[node].full = 0;
            self.nodes[node].disk.set_capacity(None);
            let harmed = self.nodes[node].was_harmed.contains(&true);
            if harmed && self.nodes[node].process.is_some() {
                // `log verify` has found it.
                self.nodes[node].verify_all = true;
                self.kill(node, false);
            } else if self.has_failed(node) {
                self.kill(node, false);
            }
            self.nodes[node].verify_all |= harmed;
            if self.nodes[node].process.is_none() {
                self.plan(Duration::from_millis(10), Event::Restart { node });
            }
        }
        if was_rough {
            // What such a transport lost in silence, no session would ever ask for again.
            for a in 0..self.setup.nodes {
                for b in a + 1..self.setup.nodes {
                    self.break_connections(a, b);
                }
            }
        }
        Ok(())
    }
}
