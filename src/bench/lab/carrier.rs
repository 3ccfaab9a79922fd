//! The thread that carries packets between the devices of a lab and its switch.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::SyncDevice;

use super::switch::{Due, Switch};
use crate::transport::WatchedRules;

/// How often the rules file is looked at, and whether the lab is to end.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Packets that are taken from one device before it is another one's turn.
const TURN: usize = 64;
/// More than a device's MTU.
const PACKET_BYTES: usize = 2048;

/// What the thread and the lab share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) switch: Mutex<Switch>,
    /// Packets that a device did not take, of each host.
    refused: Mutex<Vec<u64>>,
    pub(super) stop: AtomicBool,
    /// Why the thread has ended by itself.
    failure: Mutex<Option<String>>,
    begun: Instant,
}

impl Shared {
    pub(super) fn new(switch: Switch, hosts: u16) -> Arc<Shared> {
        Arc::new(Shared {
            switch: Mutex::new(switch),
            refused: Mutex::new(vec![0; usize::from(hosts)]),
            stop: AtomicBool::new(false),
            failure: Mutex::default(),
            begun: Instant::now(),
        })
    }

    pub(super) fn switch(&self) -> MutexGuard<'_, Switch> {
        lock(&self.switch)
    }

    pub(super) fn refused(&self) -> Vec<u64> {
        lock(&self.refused).clone()
    }

    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// Carries packets until the lab is to end. Device `n` is that of host `n + 1`.
pub(super) fn run(shared: &Shared, devices: &[SyncDevice], mut rules: Option<WatchedRules>) {
    let mut looked = Instant::now();
    let mut buffer = [0; PACKET_BYTES];
    while !shared.stop.load(Ordering::Acquire) {
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            let change = rules.as_mut().and_then(WatchedRules::look);
            if let Some(spec) = change {
                shared.switch().set(spec);
            }
        }
        let carried = carry(shared, devices, &mut buffer);
        let waits = match carried {
            Ok(waits) => waits,
            Err((host, error)) => {
                let cause = format!("the device of host {host} failed: {error}");
                tracing::error!(cause, "the lab carries nothing any more");
                *lock(&shared.failure) = Some(cause);
                return;
            }
        };
        if !waits.is_zero() {
            wait(devices, waits);
        }
    }
}

/// Takes what devices have and gives what is due. Returns how long there is nothing more to do, unless a device has something.
fn carry(
    shared: &Shared,
    devices: &[SyncDevice],
    buffer: &mut [u8],
) -> Result<Duration, (u16, io::Error)> {
    let mut busy = false;
    let mut switch = shared.switch();
    for (from, device) in (1..).zip(devices) {
        for turn in 1..=TURN {
            match device.recv(buffer) {
                Ok(length) => switch.packet(shared.elapsed(), from, &buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err((from, error)),
            }
            busy |= turn == TURN;
        }
    }
    while let Some(Due { to, packet, .. }) = switch.next_due(shared.elapsed()) {
        let index = usize::from(to) - 1;
        let sent = devices.get(index).map(|device| device.send(&packet));
        if !matches!(sent, Some(Ok(_)))
            && let Some(refused) = lock(&shared.refused).get_mut(index)
        {
            *refused += 1;
        }
    }
    if busy {
        return Ok(Duration::ZERO);
    }
    let next = switch
        .wakes_at()
        .map(|at| at.saturating_sub(shared.elapsed()));
    Ok(next.unwrap_or(LOOK_EVERY).min(LOOK_EVERY))
}

/// Until a device has a packet, for `longest` at most.
fn wait(devices: &[SyncDevice], longest: Duration) {
    let mut fds: Vec<_> = devices
        .iter()
        .map(|device| PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN))
        .collect();
    let Ok(longest) = Timespec::try_from(longest) else {
        return;
    };
    // A signal ends it early, which does no harm.
    let _ = poll(&mut fds, Some(&longest));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
