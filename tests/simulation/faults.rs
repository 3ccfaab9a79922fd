//! How a fault is made, and how it ends.

use std::time::Duration;

use super::checker::Check;
use super::event::Event;
use super::node::partition_dir;
use super::schedule::FaultKind;
use super::world::World;

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
            FaultKind::Emptied { .. } | FaultKind::SyncError { .. } | FaultKind::BitFlip { .. }
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
                    let lying = self.planted == Some(super::planted::Planted::LyingDisk);
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
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::SyncError { node } => {
                if self.may_lose_disk(node) {
                    self.figures.of_kind[fault.kind.index()] += 1;
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
            FaultKind::BitFlip { node, pick } => self.flip_bit(node, pick),
            FaultKind::ControllerPause => {
                if self.controller.stopped.is_none() {
                    self.controller.stopped = Some(Vec::new());
                }
                self.plan(ends_after, Event::FaultOver(i));
            }
            FaultKind::ControllerFailover => self.controller.fail_over(self.now),
            FaultKind::Depose { partition } => self.depose(partition),
            FaultKind::MinInsync { min_insync } => self.min_insync = min_insync,
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

    /// Flips a bit of a segment that is sealed, synced and below the recovery checkpoint, of which its index is the sign: what
    /// lies above is a tail, and a tail that does not read is cut.
    fn flip_bit(&mut self, node: usize, pick: u64) {
        if !self.may_lose_disk(node) {
            return;
        }
        let partition = (pick >> 32) as usize % self.setup.partitions;
        let dir = partition_dir(partition);
        let disk = self.nodes[node].disk.clone();
        let Ok(entries) = disk.shared().list(&dir) else {
            return;
        };
        let sealed: Vec<_> = entries
            .iter()
            .filter_map(|entry| entry.name.strip_suffix(".idx"))
            .map(|base| dir.join(format!("{base}.wal")))
            .filter(|path| disk.contents(path).is_ok())
            .collect();
        if sealed.is_empty() {
            return;
        }
        let path = &sealed[pick as usize % sealed.len()];
        let bits = disk
            .contents(path)
            .map_or(0, |bytes| bytes.len() as u64 * 8);
        if bits == 0 || disk.flip_bit(path, (pick >> 8) % bits).is_err() {
            return;
        }
        self.tell(|| format!("node {}: a bit of {} is flipped", node + 1, path.display()));
        self.figures.of_kind[FaultKind::BitFlip { node, pick }.index()] += 1;
        self.nodes[node].was_harmed[partition] = true;
        self.checkers[partition].mark_void(node);
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
