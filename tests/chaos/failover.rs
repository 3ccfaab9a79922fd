//! Where the time goes when a leader is killed, by the nodes' own logs.

use std::fmt;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::cluster::Cluster;

/// From a kill to the first acknowledgement by the next leader.
#[derive(Clone, Copy, Debug)]
pub struct Failover {
    pub whole: Duration,
    /// Until a controller began an election. Where the controller was killed too, this is also until there was another.
    detection: Option<Duration>,
    /// From there until the controller knew whom to appoint.
    election: Option<Duration>,
}

impl Failover {
    /// What the logs say of the first election of the partition after `killed`.
    pub fn from_logs(
        cluster: &Cluster,
        partition: u32,
        killed: SystemTime,
        whole: Duration,
    ) -> Failover {
        let killed = OffsetDateTime::from(killed);
        let suffix = format!("-{partition} ");
        let first = |what: &str, after: OffsetDateTime| {
            let texts: Vec<String> = cluster.specs.iter().map(|spec| spec.log_text()).collect();
            let times = texts
                .iter()
                .flat_map(|text| text.lines())
                .filter_map(|line| {
                    let told = line.contains(what) && line.contains(&suffix);
                    let (when, _) = line.split_once(' ').filter(|_| told)?;
                    OffsetDateTime::parse(when, &Rfc3339).ok()
                });
            times.filter(|when| *when >= after).min()
        };
        let begun = first("electing a leader", killed);
        let appointed = begun.and_then(|begun| first("appointing a leader", begun));
        let between = |from: Option<OffsetDateTime>, to: Option<OffsetDateTime>| {
            Duration::try_from(to? - from?).ok()
        };
        Failover {
            whole,
            detection: between(Some(killed), begun),
            election: between(begun, appointed),
        }
    }

    /// From the appointment on: its commit, the new leader's epoch start, and the client's way to it.
    fn rest(&self) -> Option<Duration> {
        self.whole.checked_sub(self.detection? + self.election?)
    }
}

impl fmt::Display for Failover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "acks are back after {:.0?}", self.whole)?;
        if let (Some(detection), Some(election), Some(rest)) =
            (self.detection, self.election, self.rest())
        {
            write!(
                f,
                " (detection {detection:.0?}, election {election:.0?}, appointment and client {rest:.0?})"
            )?;
        }
        Ok(())
    }
}

/// Median and worst of each part, for kills of a leader and for kills of one that was the active controller too.
pub fn summary(failovers: &[(bool, Failover)]) -> String {
    let mut lines = Vec::new();
    for (controller, who) in [
        (false, "a leader"),
        (true, "a leader and active controller"),
    ] {
        let own: Vec<Failover> = failovers
            .iter()
            .filter(|(was, _)| *was == controller)
            .map(|(_, failover)| *failover)
            .collect();
        if own.is_empty() {
            continue;
        }
        let part = |name: &str, part: &dyn Fn(&Failover) -> Option<Duration>| {
            let mut times: Vec<Duration> = own.iter().filter_map(part).collect();
            times.sort();
            match times.last() {
                Some(worst) => format!("{name} {:.0?} / {worst:.0?}", times[times.len() / 2]),
                None => format!("{name} unknown"),
            }
        };
        lines.push(format!(
            "{} kills of {who}, median / worst: {}, of which {}, {}, {}",
            own.len(),
            part("acks back after", &|failover| Some(failover.whole)),
            part("detection", &|failover| failover.detection),
            part("election", &|failover| failover.election),
            part("appointment and client", &Failover::rest),
        ));
    }
    lines.join("\n")
}
