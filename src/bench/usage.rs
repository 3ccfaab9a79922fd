//! What processes have taken of the machine, as the operating system tells it.

use std::fs;
use std::time::Duration;

use super::millis;

/// Of several processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since they began, in user and system mode.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub resident: u64,
}

impl Usage {
    /// `None` where it cannot be had of each of them.
    pub fn of(pids: &[u32]) -> Option<Usage> {
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let page = rustix::param::page_size() as u64;
        let mut ticks = 0;
        let mut resident = 0;
        for pid in pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (its_ticks, pages) = parse(&stat)?;
            ticks += its_ticks;
            resident += pages * page;
        }
        let cpu = Duration::from_secs_f64(ticks as f64 / ticks_per_second.max(1) as f64);
        Some(Usage { cpu, resident })
    }

    /// Milliseconds of processor time since `before` for each of so many MiB; `None` for none of them.
    pub fn cpu_ms_per_mib(&self, before: &Usage, mib: f64) -> Option<f64> {
        (mib > 0.0).then(|| millis(self.cpu.saturating_sub(before.cpu)) / mib)
    }
}

/// Ticks of processor time, and resident pages, out of `/proc/PID/stat`.
fn parse(stat: &str) -> Option<(u64, u64)> {
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Counted from the third field of the manual.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)? + field(15)?, field(24)?))
}

/// What all processors of the machine together have done since it was started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    all: u64,
    idle: u64,
}

impl Machine {
    /// `None` where the operating system does not tell.
    pub(crate) fn look() -> Option<Machine> {
        Machine::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Machine> {
        let (_, fields) = stat.lines().next()?.split_once("cpu ")?;
        // User, nice, system, idle, waiting for disks, interrupts of two kinds, and what the host took. What follows is in the first two.
        let ticks: Vec<u64> = fields
            .split_whitespace()
            .take(8)
            .map(|field| field.parse().ok())
            .collect::<Option<_>>()?;
        Some(Machine {
            all: ticks.iter().sum(),
            idle: ticks.get(3)? + ticks.get(4)?,
        })
    }

    /// The share of the time between two looks in which a processor had nothing to do.
    pub(crate) fn idle_since(&self, before: &Machine) -> Option<f64> {
        let all = self.all.saturating_sub(before.all);
        (all > 0).then(|| self.idle.saturating_sub(before.idle) as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_moves_no_field() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22";
        assert_eq!(parse(stat), Some((11 + 12, 21)));
        assert_eq!(parse("7 (a) S 1"), None);
    }

    #[test]
    fn a_processor_is_idle_when_it_waits_for_a_disk_too() {
        let before = Machine::parse("cpu  10 0 10 100 0 0 0 0 5 5\ncpu0 1 2\n").unwrap();
        let after = Machine::parse("cpu  40 0 20 140 15 1 2 2 35 5\n").unwrap();
        assert_eq!(after.idle_since(&before), Some(0.55));
        assert_eq!(before.idle_since(&before), None);
        assert_eq!(Machine::parse("cpu  1 2 x"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = Usage::of(&[std::process::id()]).unwrap();
        assert!(usage.resident > 1 << 20);
        assert_eq!(Usage::of(&[u32::MAX]), None);
    }
}
