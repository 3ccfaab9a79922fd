//! What is broken, for how long, and what should come of it.

use std::time::Duration;

use super::figures::Figures;

/// Long scenarios take this long unless `--duration` says otherwise.
const TEN_MINUTES: Duration = Duration::from_secs(600);
const FIVE_MINUTES: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes to or from so many followers.
    FollowersCut(usize),
    /// Nothing passes to or from the leader, clients included.
    LeaderCut,
    /// The leader's process is killed (SIGKILL), and started again afterwards.
    LeaderKilled,
    /// Nothing passes to or from any node, clients included.
    AllCut,
    /// One follower comes from another port, and nobody told it: a NAT forgot it.
    FollowerPort,
    /// One follower comes from another address.
    FollowerAddress,
    /// The leader is no longer to be had where it was, and registers another address.
    LeaderAddress,
    /// The producing client comes from another port, and nobody told it.
    ClientPort,
    /// One follower's process is killed (SIGKILL), leaves the in-sync set, and is started again.
    FollowerRestarted,
    /// The same, with a lag as it is asked for.
    FollowerBehind,
    /// Every link between nodes is bad, in the impairments' words.
    BadLinks(&'static str),
    /// The link between the leader and one follower is slow, in the impairments' words.
    SlowFollower(&'static str),
}

/// One kind of run.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// One line for people.
    pub what: &'static str,
    /// In words; [`Scenario::is_met`] is the same for the program.
    pub goal: &'static str,
    pub nodes: u16,
    pub replicas: u16,
    pub min_insync: u16,
    pub fault: Fault,
    /// From the fault to the heal, or for how long what follows a fault without a heal is watched.
    pub lasts: Duration,
    /// Records a second that the load does not exceed; `None`: as many as are acknowledged.
    pub pace: Option<u32>,
    /// Takes minutes: only when asked for by name, and `--duration` replaces `lasts`.
    pub is_long: bool,
    is_met: fn(&Figures) -> bool,
}

impl Scenario {
    /// Whether the run reached the goal.
    pub fn is_met(&self, figures: &Figures) -> bool {
        (self.is_met)(figures)
    }

    /// `None` for a name that no scenario has.
    pub fn named(name: &str) -> Option<&'static Scenario> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Whether nodes and clients reach each other through gates of this process, which can move.
    pub(super) fn needs_gates(&self) -> bool {
        matches!(
            self.fault,
            Fault::FollowerPort | Fault::FollowerAddress | Fault::LeaderAddress | Fault::ClientPort
        )
    }

    /// Whether nodes are started so that their links can be impaired.
    pub(super) fn needs_impairment(&self) -> bool {
        matches!(
            self.fault,
            Fault::FollowersCut(_)
                | Fault::LeaderCut
                | Fault::AllCut
                | Fault::BadLinks(_)
                | Fault::SlowFollower(_)
        )
    }
}

/// With three replicas, of which two must hold a record.
const THREE: Scenario = Scenario {
    name: "",
    what: "",
    goal: "",
    nodes: 3,
    replicas: 3,
    min_insync: 2,
    fault: Fault::AllCut,
    lasts: Duration::from_secs(5),
    pace: None,
    is_long: false,
    is_met: |_| false,
};

const DEAD_FOLLOWER_GOAL: &str = "longest gap ≤ 100 ms, p99 ≤ 1.5 × before";
const BLACKOUT_GOAL: &str = "first ack ≤ 250 ms after the heal";
const CALM_GOAL: &str = "0 ISR changes, 0 elections";

fn a_dead_follower_costs_nothing(figures: &Figures) -> bool {
    figures.longest_ack_gap_ms <= 100.0 && p99_grew_at_most(figures, 1.5)
}

fn is_soon_back(figures: &Figures) -> bool {
    at_most(figures.first_ack_after_heal_ms, 250.0)
}

fn is_calm(figures: &Figures) -> bool {
    figures.isr_changes == 0 && figures.elections == 0
}

/// What is not known is not met.
fn at_most(figure: Option<f64>, most: f64) -> bool {
    figure.is_some_and(|figure| figure <= most)
}

fn p99_grew_at_most(figures: &Figures, factor: f64) -> bool {
    match (figures.p99_before_ms, figures.p99_during_ms) {
        (Some(before), Some(during)) => during <= factor * before,
        _ => false,
    }
}

/// All, in the order in which they are run.
pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "follower-blackhole",
        what: "one follower's links are black holes for 20 s",
        goal: DEAD_FOLLOWER_GOAL,
        fault: Fault::FollowersCut(1),
        lasts: Duration::from_secs(20),
        is_met: a_dead_follower_costs_nothing,
        ..THREE
    },
    Scenario {
        name: "two-of-five",
        what: "two of five replicas' links are black holes for 20 s",
        goal: DEAD_FOLLOWER_GOAL,
        nodes: 5,
        replicas: 5,
        min_insync: 3,
        fault: Fault::FollowersCut(2),
        lasts: Duration::from_secs(20),
        is_met: a_dead_follower_costs_nothing,
        ..THREE
    },
    Scenario {
        name: "leader-blackhole",
        what: "the leader's links, to clients as well, are black holes for 10 s",
        goal: "longest gap ≤ 1.5 s",
        fault: Fault::LeaderCut,
        lasts: Duration::from_secs(10),
        is_met: |figures| figures.longest_ack_gap_ms <= 1500.0,
        ..THREE
    },
    Scenario {
        name: "leader-kill",
        what: "the leader is killed with SIGKILL",
        goal: "longest gap ≤ 1 s",
        fault: Fault::LeaderKilled,
        is_met: |figures| figures.longest_ack_gap_ms <= 1000.0,
        ..THREE
    },
    Scenario {
        name: "blackout-1s",
        what: "every link, to clients as well, is a black hole for 1 s",
        goal: BLACKOUT_GOAL,
        lasts: SECOND,
        is_met: is_soon_back,
        ..THREE
    },
    Scenario {
        name: "blackout-5s",
        what: "every link, to clients as well, is a black hole for 5 s",
        goal: BLACKOUT_GOAL,
        is_met: is_soon_back,
        ..THREE
    },
    Scenario {
        name: "blackout-20s",
        what: "every link, to clients as well, is a black hole for 20 s",
        goal: BLACKOUT_GOAL,
        lasts: Duration::from_secs(20),
        is_met: is_soon_back,
        ..THREE
    },
    Scenario {
        name: "blackout-60s",
        what: "every link, to clients as well, is a black hole for 60 s",
        goal: BLACKOUT_GOAL,
        lasts: Duration::from_secs(60),
        is_met: is_soon_back,
        ..THREE
    },
    Scenario {
        name: "rf2-shrink",
        what: "two replicas, one of which must hold a record: the follower's links are black holes for 5 s",
        goal: "longest gap ≤ 1 s, in the ISR again ≤ 1 s after the heal",
        replicas: 2,
        min_insync: 1,
        fault: Fault::FollowersCut(1),
        is_met: |figures| {
            figures.longest_ack_gap_ms <= 1000.0 && at_most(figures.isr_back_ms, 1000.0)
        },
        ..THREE
    },
    Scenario {
        name: "follower-rebind",
        what: "a follower comes from another port all of a sudden",
        goal: "longest gap ≤ 100 ms, 0 handshakes",
        fault: Fault::FollowerPort,
        lasts: Duration::from_secs(3),
        is_met: |figures| figures.longest_ack_gap_ms <= 100.0 && figures.handshakes == 0,
        ..THREE
    },
    Scenario {
        name: "follower-address",
        what: "a follower comes from another address all of a sudden",
        goal: "longest gap ≤ 100 ms, 0 handshakes",
        fault: Fault::FollowerAddress,
        lasts: Duration::from_secs(3),
        is_met: |figures| figures.longest_ack_gap_ms <= 100.0 && figures.handshakes == 0,
        ..THREE
    },
    Scenario {
        name: "leader-address",
        what: "the leader is at another address all of a sudden, and registers it",
        goal: "longest gap ≤ 250 ms",
        fault: Fault::LeaderAddress,
        is_met: |figures| figures.longest_ack_gap_ms <= 250.0,
        ..THREE
    },
    Scenario {
        name: "client-rebind",
        what: "the producing client comes from another port all of a sudden",
        goal: "the connection moves, nothing unacknowledged or duplicated",
        fault: Fault::ClientPort,
        lasts: Duration::from_secs(3),
        is_met: |figures| {
            figures.migrations >= 1 && figures.unacknowledged == 0 && figures.duplicated == 0
        },
        ..THREE
    },
    Scenario {
        name: "follower-restart",
        what: "a follower is killed, leaves the ISR, and is started again with a lag below 10 MB",
        goal: "in the ISR again ≤ 1 s after its process is up",
        fault: Fault::FollowerRestarted,
        // Twelve seconds of this, which is how long it takes to leave the in-sync set, are 6 MB.
        pace: Some(500),
        is_met: |figures| at_most(figures.isr_back_ms, 1000.0),
        ..THREE
    },
    Scenario {
        name: "follower-catch-up",
        what: "a follower that was down catches up with 1 GiB (--catch-up-bytes) while records flow",
        goal: "p99 ≤ 1.5 × before",
        fault: Fault::FollowerBehind,
        lasts: TEN_MINUTES,
        is_long: true,
        is_met: |figures| figures.isr_back_ms.is_some() && p99_grew_at_most(figures, 1.5),
        ..THREE
    },
    Scenario {
        name: "lossy",
        what: "10 minutes (--duration) of 5 % loss and 200 ms RTT between all nodes",
        goal: CALM_GOAL,
        fault: Fault::BadLinks("peer=nodes,loss=5%,delay=100ms"),
        lasts: TEN_MINUTES,
        is_long: true,
        is_met: is_calm,
        ..THREE
    },
    Scenario {
        name: "jitter",
        what: "10 minutes (--duration) of 200 ms round trips, ± 50 ms each way, and 5 % reordering between all nodes",
        goal: CALM_GOAL,
        fault: Fault::BadLinks("peer=nodes,delay=100ms,jitter=50ms,reorder=5%"),
        lasts: TEN_MINUTES,
        is_long: true,
        is_met: is_calm,
        ..THREE
    },
    Scenario {
        name: "narrow",
        what: "5 minutes (--duration) of a 50 kbit/s link to one follower, saturated with records",
        goal: "0 disconnects, 0 redials",
        // 20 full packets, which the link needs 4.6 s for.
        fault: Fault::SlowFollower("rate=50kbit,queue=20,delay=20ms"),
        lasts: FIVE_MINUTES,
        // 200 kB a second, against the 6 kB that the link carries.
        pace: Some(200),
        is_long: true,
        // Who heard no heartbeat would dial anew beside the connection that it has.
        is_met: |figures| figures.disconnects == 0 && figures.redials == 0,
        ..THREE
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn scenarios_differ_in_their_names_and_can_be_found_by_them() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        for scenario in SCENARIOS {
            assert_eq!(Scenario::named(scenario.name).unwrap().what, scenario.what);
            assert!(scenario.replicas <= scenario.nodes);
            assert!(scenario.min_insync <= scenario.replicas);
            assert!(!scenario.goal.is_empty());
        }
        assert!(Scenario::named("nonsense").is_none());
    }

    #[test]
    fn a_figure_that_is_not_known_meets_no_goal() {
        let mut figures = Figures {
            longest_ack_gap_ms: 80.0,
            ..Figures::default()
        };
        let hole = Scenario::named("follower-blackhole").unwrap();
        assert!(!hole.is_met(&figures));
        figures.p99_before_ms = Some(10.0);
        figures.p99_during_ms = Some(15.0);
        assert!(hole.is_met(&figures));
        figures.p99_during_ms = Some(15.1);
        assert!(!hole.is_met(&figures));
        let blackout = Scenario::named("blackout-1s").unwrap();
        assert!(!blackout.is_met(&figures));
        figures.first_ack_after_heal_ms = Some(250.0);
        assert!(blackout.is_met(&figures));
    }
}
