//! What can be found wrong on this machine alone.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;

use super::finding::Verdict;
use super::judge;
use super::vitals::DiskReport;
use crate::storage::{FileSystem, IoFailure, RESERVED_BYTES, probe_disk};
use crate::transport::{Identity, IdentityError, describe_validity, probe_udp_socket};

/// This end's certificate, as it was loaded or not.
pub fn examine_identity(loaded: Result<&Identity, &IdentityError>, now: OffsetDateTime) -> Verdict {
    let problem = match loaded {
        Ok(identity) => match identity.check(now) {
            Ok(()) => {
                return Verdict::ok(format!(
                    "{} is {}'s, {}",
                    identity.certificate_path().display(),
                    identity.peer(),
                    describe_validity(identity.info(), now)
                ));
            }
            Err(problem) => told(&problem),
        },
        Err(problem) => told(problem),
    };
    // These errors are whole sentences: what is wrong, then what to do.
    let (detail, fix) = match problem.split_once(": ") {
        Some((detail, fix)) => (detail.to_owned(), fix.to_owned()),
        None => (
            problem,
            "make certificates with quorate cert, and name their directory with --certs-dir"
                .to_owned(),
        ),
    };
    Verdict::fail(detail, fix)
}

fn told(problem: &IdentityError) -> String {
    let mut text = problem.to_string();
    let mut source = std::error::Error::source(problem);
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// Whether a UDP socket can be had that reaches `peer`, and what the kernel grants it.
pub fn examine_socket(peer: SocketAddr) -> Verdict {
    match probe_udp_socket(peer) {
        Ok(granted) => judge::buffers(granted),
        Err(error) => Verdict::fail(
            format!("no UDP socket can be had: {error}"),
            "check the limit on open files (ulimit -n), and whether this user may use the network",
        ),
    }
}

/// Measures a directory's disk. Blocks for as long as the disk takes.
pub fn probe_directory(fs: &dyn FileSystem, directory: &Path) -> Result<DiskReport, IoFailure> {
    let probe = probe_disk(fs, directory)?;
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Ok(DiskReport {
        directory: directory.display().to_string(),
        sync_median_us: micros(probe.median),
        sync_worst_us: micros(probe.worst),
        syncs: probe.syncs,
        free_bytes: probe.free_bytes,
        reserved_bytes: RESERVED_BYTES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Outcome;

    #[test]
    fn certificates_that_are_not_there_are_named_with_what_makes_them() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = Identity::load_client(dir.path(), None);
        let verdict = examine_identity(loaded.as_ref(), OffsetDateTime::now_utc());
        assert_eq!(verdict.outcome, Outcome::Fail);
        assert!(verdict.detail.contains("ca.crt"), "{verdict:?}");
        assert!(
            verdict
                .fix
                .is_some_and(|fix| fix.contains("cert create-ca"))
        );
    }
}
