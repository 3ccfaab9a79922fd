//! What a run is made of, drawn from its seed before it begins: the cluster's shape, and the list of faults. The list is data,
//! so that a failing one can be shortened.

use std::fmt;

use super::random::Random;

/// Which faults a run is rich in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Delays and a broken connection now and then: the ordinary day.
    Calm,
    /// Loss, cuts one way and both, isolated nodes.
    Lossy,
    /// Processes killed, paused, restarted; power lost.
    Crashy,
    /// Disks that fail, fill up, slow down, rot, or are replaced.
    Disk,
    /// Leaders taken away again and again, by the controller and by failover of the controller itself.
    Elections,
    /// Followers that fall behind and come back, changes of `m`, leaders handed over.
    InSync,
    /// One replica's log is found to be damaged while another is behind and the third goes away: what the damaged one once
    /// acknowledged must not be voted away.
    Damaged,
    /// Replicas reassigned, nodes drained, leaders moved to where they are preferred.
    Operator,
    /// Everything.
    Mixed,
    /// A transport that loses, doubles and reorders whole messages, which QUIC never does: safety must not depend on it.
    Rough,
}

pub const PROFILES: [Profile; 10] = [
    Profile::Calm,
    Profile::Lossy,
    Profile::Crashy,
    Profile::Disk,
    Profile::Elections,
    Profile::InSync,
    Profile::Damaged,
    Profile::Operator,
    Profile::Mixed,
    Profile::Rough,
];

/// The cluster and its load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    pub seed: u64,
    pub profile: Profile,
    /// Each holds a replica of every partition.
    pub nodes: usize,
    pub partitions: usize,
    pub min_insync: u32,
    pub segment_bytes: u64,
    pub retention_bytes: Option<u64>,
    pub tail_cache_bytes: usize,
    /// What a start has to read of each log at most, but for what a frame adds.
    pub recovery_budget_bytes: u64,
    /// Unacknowledged frame bytes of one follower connection.
    pub follower_budget_bytes: usize,
    pub delay_us: u64,
    pub jitter_us: u64,
    pub loss_permille: u64,
    /// How often the rough transport loses, doubles or reorders a message; 0: it is QUIC.
    pub rough_permille: u64,
    pub sync_us: u64,
    /// How long the faults last.
    pub duration_ms: u64,
    pub producers: usize,
    pub readers: usize,
    /// How often a reader begins anew.
    pub reread_permille: u64,
}

/// One fault. It lasts `for_ms`, then the opposite happens: a node is restarted, a link healed, a disk emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub at_ms: u64,
    pub for_ms: u64,
    pub kind: FaultKind,
}

/// Endpoints are the nodes from 0, then the controller, then the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// kill -9: the page cache stays.
    Kill {
        node: usize,
    },
    /// The machine goes down: of what was not synced, any part is left.
    PowerLoss {
        node: usize,
    },
    /// The process dies in the middle of its `operations`-th next disk operation.
    CrashAt {
        node: usize,
        operations: u64,
        power_loss: bool,
    },
    /// The machine is replaced by one with an empty disk.
    Emptied {
        node: usize,
    },
    /// SIGSTOP, and SIGCONT at the end.
    Pause {
        node: usize,
    },
    /// Nothing passes from one endpoint to the other; the other way is open.
    Cut {
        from: usize,
        to: usize,
    },
    /// Nothing passes between two endpoints.
    CutBoth {
        a: usize,
        b: usize,
    },
    /// Nothing passes to or from a node.
    Isolate {
        node: usize,
    },
    Lossy {
        from: usize,
        to: usize,
        permille: u64,
    },
    Slow {
        from: usize,
        to: usize,
        delay_ms: u64,
    },
    /// Every connection between two nodes breaks.
    Break {
        a: usize,
        b: usize,
    },
    SlowDisk {
        node: usize,
        factor: u64,
    },
    SyncError {
        node: usize,
    },
    WriteError {
        node: usize,
    },
    /// The disk takes `room_bytes` more.
    FullDisk {
        node: usize,
        room_bytes: u64,
    },
    /// An operator stops the process, and has its logs read through when it starts again.
    Verify {
        node: usize,
    },
    /// One bit of a sealed segment changes.
    BitFlip {
        node: usize,
        pick: u64,
    },
    /// Some sectors of a segment cannot be read any more. Found by a reader, or at the start after the process is killed.
    Unreadable {
        node: usize,
        pick: u64,
    },
    /// An operator gives a partition other replicas.
    Reassign {
        partition: usize,
        pick: u64,
    },
    /// An operator takes a partition's replica away from a node, and puts it back at the end.
    Away {
        partition: usize,
        node: usize,
    },
    /// An operator says that a node is to lead nothing for a while.
    Drain {
        node: usize,
    },
    /// An operator wants the preferred replicas to lead.
    Prefer,
    /// An operator would rather lose something than wait.
    Unclean {
        partition: usize,
    },
    ControllerPause,
    /// Another controller becomes active: it knows what is committed and nothing else.
    ControllerFailover,
    /// The leader is taken away though nothing is wrong with it.
    Depose {
        partition: usize,
    },
    /// The topic's `min.insync.replicas` is configured anew.
    MinInsync {
        min_insync: u32,
    },
}

/// The names of the kinds, by [`FaultKind::index`].
pub const KINDS: [&str; 27] = [
    "kill",
    "power loss",
    "crash at an operation",
    "emptied",
    "pause",
    "cut",
    "cut both ways",
    "isolate",
    "lossy",
    "slow",
    "break",
    "slow disk",
    "sync error",
    "write error",
    "full disk",
    "verify",
    "bit flip",
    "controller pause",
    "controller failover",
    "depose",
    "min.insync.replicas",
    "unreadable",
    "reassign",
    "drain",
    "preferred leaders",
    "unclean election",
    "away and back",
];

impl FaultKind {
    pub fn index(self) -> usize {
        match self {
            FaultKind::Kill { .. } => 0,
            FaultKind::PowerLoss { .. } => 1,
            FaultKind::CrashAt { .. } => 2,
            FaultKind::Emptied { .. } => 3,
            FaultKind::Pause { .. } => 4,
            FaultKind::Cut { .. } => 5,
            FaultKind::CutBoth { .. } => 6,
            FaultKind::Isolate { .. } => 7,
            FaultKind::Lossy { .. } => 8,
            FaultKind::Slow { .. } => 9,
            FaultKind::Break { .. } => 10,
            FaultKind::SlowDisk { .. } => 11,
            FaultKind::SyncError { .. } => 12,
            FaultKind::WriteError { .. } => 13,
            FaultKind::FullDisk { .. } => 14,
            FaultKind::Verify { .. } => 15,
            FaultKind::BitFlip { .. } => 16,
            FaultKind::ControllerPause => 17,
            FaultKind::ControllerFailover => 18,
            FaultKind::Depose { .. } => 19,
            FaultKind::MinInsync { .. } => 20,
            FaultKind::Unreadable { .. } => 21,
            FaultKind::Reassign { .. } => 22,
            FaultKind::Drain { .. } => 23,
            FaultKind::Prefer => 24,
            FaultKind::Unclean { .. } => 25,
            FaultKind::Away { .. } => 26,
        }
    }

    /// Whether the fault is over as soon as it has happened.
    pub fn is_instant(self) -> bool {
        matches!(
            self,
            FaultKind::Break { .. }
                | FaultKind::SyncError { .. }
                | FaultKind::WriteError { .. }
                | FaultKind::BitFlip { .. }
                | FaultKind::Unreadable { .. }
                | FaultKind::Reassign { .. }
                | FaultKind::Prefer
                | FaultKind::Unclean { .. }
                | FaultKind::ControllerFailover
                | FaultKind::Depose { .. }
                | FaultKind::MinInsync { .. }
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_instant() {
            write!(f, "{:>6} ms          {:?}", self.at_ms, self.kind)
        } else {
            write!(
                f,
                "{:>6} ms +{:>5} ms {:?}",
                self.at_ms, self.for_ms, self.kind
            )
        }
    }
}

impl Setup {
    /// The run of `seed`.
    pub fn of(seed: u64) -> Setup {
        Setup::with_profile(seed, PROFILES[(seed % PROFILES.len() as u64) as usize])
    }

    pub fn with_profile(seed: u64, profile: Profile) -> Setup {
        let mut random = Random::new(seed, 1);
        let shapes = match profile {
            Profile::Damaged => [0, 0, 90, 10],
            // Pairs, because their commits wait for both.
            Profile::InSync => [0, 45, 40, 15],
            Profile::Operator => [0, 10, 60, 30],
            _ => [4, 16, 60, 20],
        };
        let nodes = [1, 2, 3, 5][random.weighted(&shapes)];
        let min_insync = random.between(1, (nodes as u64).min(3)) as u32;
        let lossy = matches!(profile, Profile::Lossy | Profile::Mixed);
        let longest_delay_us = if random.permille(200) { 30_000 } else { 3000 };
        let longest_jitter_us = if random.permille(300) { 20_000 } else { 1000 };
        let rough_permille = match profile {
            Profile::Rough if random.permille(400) => random.between(80, 350),
            Profile::Rough => random.between(5, 80),
            _ => 0,
        };
        let small_segments = random.permille(700) || profile == Profile::Damaged;
        Setup {
            seed,
            profile,
            nodes,
            partitions: 1 + random.weighted(&[70, 20, 10]),
            min_insync,
            segment_bytes: if small_segments {
                random.between(400, 3000)
            } else {
                1 << 20
            },
            retention_bytes: (small_segments && random.permille(450))
                .then(|| random.between(800, 5000)),
            tail_cache_bytes: random.between(0, 4000) as usize,
            recovery_budget_bytes: Random::new(seed, 40).between(1, 3000),
            follower_budget_bytes: random.between(500, 20_000) as usize,
            delay_us: random.between(50, longest_delay_us),
            jitter_us: random.between(10, longest_jitter_us),
            loss_permille: if lossy { random.between(0, 100) } else { 0 },
            rough_permille,
            sync_us: random.between(50, 4000),
            duration_ms: random.between(1500, 3500),
            producers: random.between(1, 3) as usize,
            readers: 1,
            reread_permille: if profile == Profile::Damaged { 400 } else { 50 },
        }
    }

    pub fn controller(&self) -> usize {
        self.nodes
    }

    pub fn clients(&self) -> usize {
        self.nodes + 1
    }

    pub fn endpoints(&self) -> usize {
        self.nodes + 2
    }
}

/// Draws the faults of a run, in order of time.
pub fn draw(setup: &Setup) -> Vec<Fault> {
    let mut random = Random::new(setup.seed, 2);
    let (mut faults, count) = match setup.profile {
        Profile::Calm => (Vec::new(), random.between(1, 4)),
        Profile::Damaged => (draw_damage(setup, &mut random), random.between(0, 2)),
        Profile::Operator if random.permille(450) => {
            (draw_disaster(setup, &mut random), random.between(1, 5))
        }
        Profile::Operator if random.permille(600) => {
            (draw_round_trip(setup, &mut random), random.between(0, 4))
        }
        _ => (Vec::new(), random.between(4, 14)),
    };
    let short_permille = if setup.profile == Profile::InSync {
        300
    } else {
        700
    };
    for _ in 0..count {
        let kind = draw_kind(setup, &mut random);
        faults.push(Fault {
            at_ms: random.between(20, setup.duration_ms),
            for_ms: if random.permille(short_permille) {
                random.between(5, 600)
            } else {
                random.between(600, 2500)
            },
            kind,
        });
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

/// Rounds of: one replica falls behind, another's log rots and is found out, and the one that has everything goes away at the
/// moment at which the first comes back. Each round picks anew who is who.
fn draw_damage(setup: &Setup, random: &mut Random) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut at_ms = random.between(200, 500);
    while at_ms < setup.duration_ms {
        let behind = random.index(setup.nodes);
        let damaged = (behind + 1 + random.index(setup.nodes - 1)) % setup.nodes;
        let whole = (0..setup.nodes)
            .find(|&node| node != behind && node != damaged)
            .unwrap_or(behind);
        let back_after = random.between(100, 450);
        let found_after = random.between(50, back_after);
        let mut push = |after: u64, for_ms: u64, kind: FaultKind| {
            faults.push(Fault {
                at_ms: at_ms + after,
                for_ms,
                kind,
            });
        };
        push(0, back_after, FaultKind::Isolate { node: behind });
        let node = damaged;
        if random.permille(250) {
            let replaced_for = random.between(1, 60);
            push(found_after, replaced_for, FaultKind::Emptied { node });
        } else {
            let pick = random.next();
            let harmed_after = random.between(0, found_after);
            let kind = if random.permille(300) {
                FaultKind::Unreadable { node, pick }
            } else {
                FaultKind::BitFlip { node, pick }
            };
            push(harmed_after, 0, kind);
            if random.permille(700) {
                push(
                    found_after,
                    random.between(1, 60),
                    FaultKind::Verify { node },
                );
            } else {
                // Nobody looks, but readers do; and it may be the leader whose log it is.
                for _ in 0..2 {
                    let partition = random.index(setup.partitions);
                    let depose = FaultKind::Depose { partition };
                    push(back_after + random.between(0, 800), 0, depose);
                }
            }
        }
        let gone_after = found_after + random.between(0, 60);
        // Longer than it takes to hold a silent node for dead.
        let gone_for = random.between(700, 1600);
        let gone = if random.permille(500) {
            FaultKind::Kill { node: whole }
        } else {
            FaultKind::Isolate { node: whole }
        };
        push(gone_after, gone_for, gone);
        at_ms += back_after + gone_for + random.between(200, 600);
    }
    faults.retain(|fault| fault.at_ms < setup.duration_ms);
    faults
}

/// One replica falls behind, then so many of the others go away that nobody can be elected, and an operator forces the one that is
/// left. The others come back to a history that is not theirs any more.
fn draw_disaster(setup: &Setup, random: &mut Random) -> Vec<Fault> {
    let survivor = random.index(setup.nodes);
    let at_ms = random.between(200, 800);
    let behind_for = random.between(50, 400);
    let gone_after = random.between(0, behind_for);
    let mut faults = vec![Fault {
        at_ms,
        for_ms: behind_for,
        kind: FaultKind::Isolate { node: survivor },
    }];
    for node in (0..setup.nodes).filter(|&node| node != survivor) {
        let kind = if random.permille(600) {
            FaultKind::Kill { node }
        } else {
            FaultKind::Isolate { node }
        };
        faults.push(Fault {
            at_ms: at_ms + gone_after,
            for_ms: random.between(1400, 2400),
            kind,
        });
    }
    // Longer than it takes to hold a silent node for dead.
    let asked_after = gone_after.max(behind_for) + random.between(700, 900);
    for partition in 0..setup.partitions {
        faults.push(Fault {
            at_ms: at_ms + asked_after,
            for_ms: 0,
            kind: FaultKind::Unclean { partition },
        });
    }
    faults
}

/// A replica is taken away from a node that does not hear of it, and put back before it does, or about then.
fn draw_round_trip(setup: &Setup, random: &mut Random) -> Vec<Fault> {
    let (node, controller) = (random.index(setup.nodes), setup.controller());
    let deaf = match random.below(3) {
        0 => FaultKind::Kill { node },
        1 => FaultKind::Isolate { node },
        // It follows its leaders, and not the metadata.
        _ => FaultKind::Cut {
            from: controller,
            to: node,
        },
    };
    let at_ms = random.between(200, 800);
    let deaf_for = random.between(300, 1500);
    let away_for = random.between(50, deaf_for);
    let away_after = random.between(0, deaf_for - away_for + 100);
    let mut faults = vec![Fault {
        at_ms,
        for_ms: deaf_for,
        kind: deaf,
    }];
    for partition in 0..setup.partitions {
        faults.push(Fault {
            at_ms: at_ms + away_after,
            for_ms: away_for,
            kind: FaultKind::Away { partition, node },
        });
    }
    faults
}

fn draw_kind(setup: &Setup, random: &mut Random) -> FaultKind {
    const KILL: usize = 0;
    const POWER_LOSS: usize = 1;
    const CRASH_AT: usize = 2;
    const EMPTIED: usize = 3;
    const PAUSE: usize = 4;
    const CUT: usize = 5;
    const CUT_BOTH: usize = 6;
    const ISOLATE: usize = 7;
    const LOSSY: usize = 8;
    const SLOW: usize = 9;
    const BREAK: usize = 10;
    const SLOW_DISK: usize = 11;
    const SYNC_ERROR: usize = 12;
    const WRITE_ERROR: usize = 13;
    const FULL_DISK: usize = 14;
    const BIT_FLIP: usize = 15;
    const CONTROLLER_PAUSE: usize = 16;
    const CONTROLLER_FAILOVER: usize = 17;
    const MIN_INSYNC: usize = 19;
    const UNREADABLE: usize = 20;
    const REASSIGN: usize = 21;
    const DRAIN: usize = 22;
    const PREFER: usize = 23;
    #[rustfmt::skip]
    let weights: [u64; 24] = match setup.profile {
        //                  ki po cr em pa cu cb is lo sl br sd se we fd bf cp cf de mi ur re dr pr
        Profile::Calm =>   [1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 4, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0],
        Profile::Lossy =>  [0, 0, 0, 0, 1, 6, 4, 3, 4, 4, 4, 1, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0],
        Profile::Crashy => [6, 6, 6, 0, 4, 1, 1, 1, 0, 1, 2, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0],
        Profile::Disk =>   [2, 3, 3, 3, 1, 1, 1, 1, 0, 1, 1, 3, 3, 2, 4, 3, 0, 0, 1, 1, 3, 0, 0, 0],
        Profile::Elections=>[2,2, 1, 0, 3, 2, 1, 2, 0, 2, 2, 1, 0, 0, 0, 0, 2, 3, 10, 1, 0, 0, 0, 0],
        Profile::InSync => [3, 2, 1, 1, 3, 3, 3, 3, 1, 2, 2, 2, 0, 0, 0, 0, 2, 1, 2, 6, 0, 0, 0, 0],
        Profile::Damaged=> [1, 1, 1, 0, 1, 1, 1, 2, 0, 1, 1, 1, 0, 0, 0, 4, 0, 0, 1, 1, 3, 0, 0, 0],
        Profile::Mixed =>  [2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1],
        Profile::Operator=>[2, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 2, 0, 9, 6, 4],
        Profile::Rough =>  [2, 2, 1, 1, 2, 1, 1, 1, 0, 2, 4, 1, 0, 0, 0, 0, 0, 1, 4, 1, 0, 0, 0, 0],
    };
    let node = random.index(setup.nodes);
    // The same node is hit again more often than chance has it: that is what breaks recoveries that were not finished.
    let node = if random.permille(400) { 0 } else { node };
    let from = random.index(setup.endpoints());
    let to = (from + 1 + random.index(setup.endpoints() - 1)) % setup.endpoints();
    let a = random.index(setup.nodes);
    let b = (a + 1 + random.index(setup.nodes.saturating_sub(1))) % setup.nodes;
    match random.weighted(&weights) {
        KILL => FaultKind::Kill { node },
        POWER_LOSS => FaultKind::PowerLoss { node },
        CRASH_AT => FaultKind::CrashAt {
            node,
            operations: random.between(1, 30),
            power_loss: random.permille(600),
        },
        EMPTIED => FaultKind::Emptied { node },
        PAUSE => FaultKind::Pause { node },
        CUT => FaultKind::Cut { from, to },
        CUT_BOTH => FaultKind::CutBoth { a: from, b: to },
        ISOLATE => FaultKind::Isolate { node },
        LOSSY => FaultKind::Lossy {
            from,
            to,
            permille: random.between(50, 600),
        },
        SLOW => FaultKind::Slow {
            from,
            to,
            delay_ms: random.between(5, 400),
        },
        BREAK => FaultKind::Break { a, b },
        SLOW_DISK => FaultKind::SlowDisk {
            node,
            factor: random.between(5, 200),
        },
        SYNC_ERROR => FaultKind::SyncError { node },
        WRITE_ERROR => FaultKind::WriteError { node },
        FULL_DISK => FaultKind::FullDisk {
            node,
            room_bytes: random.between(0, 2000),
        },
        BIT_FLIP => FaultKind::BitFlip {
            node,
            pick: random.next(),
        },
        UNREADABLE => FaultKind::Unreadable {
            node,
            pick: random.next(),
        },
        REASSIGN => FaultKind::Reassign {
            partition: random.index(setup.partitions),
            pick: random.next(),
        },
        DRAIN => FaultKind::Drain { node },
        PREFER => FaultKind::Prefer,
        CONTROLLER_PAUSE => FaultKind::ControllerPause,
        CONTROLLER_FAILOVER => FaultKind::ControllerFailover,
        MIN_INSYNC => FaultKind::MinInsync {
            min_insync: random.between(1, setup.nodes.min(3) as u64) as u32,
        },
        _ => FaultKind::Depose {
            partition: random.index(setup.partitions),
        },
    }
}
