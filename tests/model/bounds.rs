//! How far a search goes, and which of the design's choices it takes.

use crate::rules::Rules;

/// What a crash may take with it, beside what was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Nothing: the directory is as it was synced.
    None,
    /// Or the log, while the directory and its promises stay: quarantine, another kernel boot id.
    Log,
    /// Or the directory: the log, the promises, the directory's id.
    Directory,
}

/// Whose acks count towards a commit for a member of the in-sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counting {
    /// Those of the process that the set names.
    ByIncarnation,
    /// Those of any process on the directory that the set names.
    ByDirectory,
}

/// How a follower's hello reaches its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// Hello, its arrival, and the arrival of the answer are three steps; a hello may be sent again between them.
    InThreeSteps,
    /// All in one step.
    InOneStep,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub replicas: usize,
    /// Leader epochs, the first included.
    pub epochs: u8,
    pub records: u8,
    /// Proposals, accepted or not, of a set or of m.
    pub changes: u8,
    pub crashes: u8,
    /// m at the beginning.
    pub m: u8,
    /// Whether m may be changed, to anything from 1 to the number of replicas.
    pub m_changes: bool,
    /// Whether becoming durable is a step of its own; else an append is durable at once.
    pub separate_sync: bool,
    pub sessions: Sessions,
    /// Whether a restarted node registers with the controller at a later step, else at once.
    pub late_registration: bool,
    pub loss: Loss,
    pub counting: Counting,
    pub rules: Rules,
    /// Whether the marks of what happened are part of the state.
    pub marks: bool,
}

impl Bounds {
    /// The least that the project asks of an exhaustive search, for so many replicas.
    pub(crate) const fn new(replicas: usize, m: u8) -> Bounds {
        Bounds {
            replicas,
            epochs: 3,
            records: 2,
            changes: 2,
            crashes: 1,
            m,
            m_changes: false,
            separate_sync: false,
            sessions: Sessions::InThreeSteps,
            late_registration: false,
            loss: Loss::None,
            counting: Counting::ByDirectory,
            rules: Rules::ALL,
            marks: false,
        }
    }
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} replicas, m {}{}, {} epochs, {} records, {} ISR changes, {} crashes",
            self.replicas,
            self.m,
            if self.m_changes { " and changing" } else { "" },
            self.epochs,
            self.records,
            self.changes,
            self.crashes,
        )?;
        if self.separate_sync {
            f.write_str(", sync a step")?;
        }
        if self.sessions == Sessions::InOneStep {
            f.write_str(", sessions in one step")?;
        }
        if self.late_registration {
            f.write_str(", registration a step")?;
        }
        match self.loss {
            Loss::None => {}
            Loss::Log => f.write_str(", a crash may lose the log")?,
            Loss::Directory => f.write_str(", a crash may lose the directory")?,
        }
        if self.counting == Counting::ByIncarnation {
            f.write_str(", counted by incarnation")?;
        }
        Ok(())
    }
}
