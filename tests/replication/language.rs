//! The commands of a transcript. `docs/testing.md` tells what they mean to a reader.

use std::str::FromStr;
use std::time::Duration;

use quorate::replication::Acks;

#[derive(goldenscript::Command)]
pub enum Step {
    /// `cluster a b c min.insync=2`: these nodes, one partition on all of them, the first leads in epoch 1.
    Cluster {
        nodes: Vec<String>,
        #[arg(key = "min.insync")]
        min_insync: u32,
    },
    /// `produce a r1 r2 acks=all producer=7 sequence=0`: each record is a batch. Without `producer` it is not idempotent.
    Produce {
        node: String,
        records: Vec<String>,
        #[arg(key)]
        acks: WantedAcks,
        #[arg(key)]
        producer: Option<i64>,
        #[arg(key)]
        sequence: Option<i32>,
        /// Makes the record so many bytes longer, which is not shown.
        #[arg(key)]
        padding: Option<usize>,
    },
    /// `fetch a 0 epoch=1`: a consumer reads from an offset on, and believes that the leader's epoch is 1.
    Fetch {
        node: String,
        from: u64,
        #[arg(key)]
        epoch: Option<u32>,
    },
    /// `hold a b`: what a sends to b waits. `hold a disk`: what a writes is not synced.
    Hold {
        from: String,
        to: String,
    },
    /// Lets everything go that was held.
    Release {
        from: String,
        to: String,
    },
    /// `deliver a b 2`: the two oldest messages that are held.
    Deliver {
        from: String,
        to: String,
        count: Option<usize>,
    },
    /// The newest message that is held comes first: it took another connection than those before it.
    #[command(name = "deliver-newest")]
    DeliverNewest {
        from: String,
        to: String,
    },
    /// The oldest messages that are held are lost.
    Drop {
        from: String,
        to: String,
        count: Option<usize>,
    },
    /// This leader no longer waits for the answer to its proposal, which may be under way all the same.
    #[command(name = "give-up")]
    GiveUp {
        node: String,
    },
    /// Nothing passes between two nodes, or between a node and the controller, either way; both ends notice.
    Cut {
        one: String,
        other: String,
    },
    Heal {
        one: String,
        other: String,
    },
    /// `redial b a`: b replaces its connection to a by a new one. What is held on the old one may still come.
    Redial {
        follower: String,
        leader: String,
    },
    /// `crash b keep=synced`: the power goes, only what was synced stays. `keep=written`: kill -9, the page cache stays.
    Crash {
        node: String,
        #[arg(key)]
        keep: Keep,
    },
    /// The next write to this node's disk is cut short by the process's death.
    #[command(name = "crash-in-next-write")]
    CrashInNextWrite {
        node: String,
    },
    /// A bit of the first record on this node's disk has flipped; the next start reads the log through and finds it.
    Rot {
        node: String,
    },
    /// `restart b`, or `restart b disk=new`.
    Restart {
        node: String,
        #[arg(key)]
        disk: Option<WhichDisk>,
    },
    /// The controller holds an election.
    Elect,
    /// `configure min.insync=1`: the topic's configuration changes; the leader proposes it.
    Configure {
        #[arg(key = "min.insync")]
        min_insync: usize,
    },
    /// `tick 500ms`: time passes, and what is known of each log is written down at its end.
    Tick {
        time: Span,
    },
    /// The controller's state and the logs, of all nodes or of these.
    Show(#[arg(optional)] Vec<String>),
}

#[derive(Clone, Copy)]
pub struct WantedAcks(pub Acks);

impl FromStr for WantedAcks {
    type Err = String;

    fn from_str(text: &str) -> Result<WantedAcks, String> {
        Ok(WantedAcks(match text {
            "0" => Acks::None,
            "1" => Acks::Leader,
            "all" => Acks::All,
            _ => return Err(format!("acks={text}: it is 0, 1 or all")),
        }))
    }
}

pub enum Keep {
    Synced,
    Written,
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Keep, String> {
        match text {
            "synced" => Ok(Keep::Synced),
            "written" => Ok(Keep::Written),
            _ => Err(format!("keep={text}: it is synced or written")),
        }
    }
}

pub struct WhichDisk;

impl FromStr for WhichDisk {
    type Err = String;

    fn from_str(text: &str) -> Result<WhichDisk, String> {
        match text {
            "new" => Ok(WhichDisk),
            _ => Err(format!("disk={text}: it can only be new")),
        }
    }
}

pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(0));
        let amount: u64 = digits
            .parse()
            .map_err(|_| format!("{text}: a time is written 500ms or 3s"))?;
        match unit {
            "ms" => Ok(Span(Duration::from_millis(amount))),
            "s" => Ok(Span(Duration::from_secs(amount))),
            _ => Err(format!("{text}: a time is written 500ms or 3s")),
        }
    }
}
