//! What the operating system says of this process. Each is `None` where it cannot be had.

use std::fs;

/// Resident memory, in bytes.
pub(super) fn resident_bytes() -> Option<u64> {
    status_kib(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:").map(|kib| kib << 10)
}

/// Files and sockets that are open.
pub(super) fn open_files() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    // One of them is the directory that was just read.
    Some(open.saturating_sub(1))
}

/// Files and sockets that may be open.
pub(super) fn max_open_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

fn status_kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_memory_and_has_files_open() {
        let status = "VmHWM:\t  900 kB\nVmRSS:\t  123 kB\n";
        assert_eq!(status_kib(status, "VmRSS:"), Some(123));
        assert_eq!(status_kib(status, "VmSwap:"), None);
        assert!(resident_bytes().unwrap() > 1 << 20);
        let before = open_files().unwrap();
        let _file = fs::File::open("/proc/self/status").unwrap();
        assert!(open_files().unwrap() > 2 && before > 2);
    }
}
