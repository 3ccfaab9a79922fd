//! Lab networks, where this machine can have one.

use quorate::bench::lab::{Lab, LabError, LabSettings};

pub fn settings(hosts: u16, rules: &str) -> LabSettings {
    LabSettings {
        hosts,
        spec: rules.parse().unwrap(),
        seed: 7,
        rules: None,
        tcp_congestion: None,
    }
}

/// `None`, and a loud line, where this machine cannot have a lab.
pub fn lab(hosts: u16, rules: &str) -> Option<Lab> {
    match Lab::open(&settings(hosts, rules)) {
        Ok(lab) => Some(lab),
        Err(LabError::Impossible(why)) => {
            eprintln!("SKIPPED, NOT TESTED: {why}");
            None
        }
        // A container that looks like root and is not.
        Err(LabError::Ip { command, why }) if why.contains("not permitted") => {
            eprintln!("SKIPPED, NOT TESTED: {command}: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The namespaces of a process's labs.
pub fn namespaces_of(process: u32) -> Vec<String> {
    let prefix = format!("quorate-lab-{process}-");
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}
