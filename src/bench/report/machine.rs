//! What was measured on, as the operating system tells it. Nothing that names the machine or its owner.

use std::fs;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `None` where it is not told, as all here.
    pub processor: Option<String>,
    pub processors: Option<usize>,
    pub memory_mib: Option<u64>,
    pub system: Option<String>,
}

impl Machine {
    pub fn this() -> Machine {
        let read = |path: &str| fs::read_to_string(path).ok();
        let uname = rustix::system::uname();
        let system = [uname.sysname(), uname.release(), uname.machine()];
        let system = system.map(|part| part.to_string_lossy().into_owned());
        Machine {
            processor: read("/proc/cpuinfo").and_then(|text| field(&text, "model name")),
            processors: std::thread::available_parallelism().ok().map(usize::from),
            memory_mib: read("/proc/meminfo")
                .and_then(|text| field(&text, "MemTotal"))
                .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
                .map(|kib| kib >> 10),
            system: Some(system.join(" ")),
        }
    }

    /// In one line.
    pub(super) fn words(&self) -> String {
        let mut words = Vec::new();
        match (&self.processor, self.processors) {
            (Some(name), Some(count)) => words.push(format!("{count} × {name}")),
            (None, Some(count)) => words.push(format!("{count} processors")),
            (Some(name), None) => words.push(name.clone()),
            (None, None) => {}
        }
        words.extend(
            self.memory_mib
                .map(|mib| format!("{:.1} GiB of memory", mib as f64 / 1024.0)),
        );
        words.extend(self.system.clone());
        words.join(", ")
    }
}

/// The first line `NAME : VALUE`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let (_, value) = line.split_once(':')?;
    Some(value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_names() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nMemTotal:       16 kB\n";
        assert_eq!(field(text, "model name").unwrap(), "Some CPU @ 3 GHz");
        assert_eq!(field(text, "MemTotal").unwrap(), "16 kB");
        assert_eq!(field(text, "flags"), None);
        assert!(Machine::this().processors.unwrap() > 0);
    }
}
