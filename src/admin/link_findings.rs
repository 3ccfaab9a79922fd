//! A node's links as findings: what it knows of each, and whether that is well.

use std::time::Duration;

use crate::broker::{LinkDirection, LinkState, LinkView};
use crate::doctor::{Check, Finding, Verdict, span};
use crate::types::NodeId;

/// A link that broke less than this long ago is not called well, though it stands again.
const LATELY: Duration = Duration::from_secs(60);
/// What becomes of a link that is lost: said of each that stands.
const REDIALS: &str = "a loss is redialled at once, then within 1 s each time";

/// Two findings of each link to a leader, whom this node dials, and one of each link to a follower.
pub(super) fn link_findings(me: NodeId, links: &[LinkView]) -> Vec<Finding> {
    let from = format!("node {me}");
    let mut findings = Vec::new();
    for link in links {
        let target = match link.direction {
            LinkDirection::ToLeader => format!("leader {}", link.peer),
            LinkDirection::ToFollower => format!("follower {}", link.peer),
        };
        if link.direction == LinkDirection::ToLeader {
            findings.push(dials(link).of(Check::Dials, &from, &target));
        }
        findings.push(stands(link).of(Check::Link, &from, &target));
    }
    findings
}

fn dials(link: &LinkView) -> Verdict {
    let times = match link.redials {
        0 => "dialled once".to_owned(),
        redials => format!("dialled {} times", redials + 1),
    };
    let last = link.last_error.as_ref().map(|error| {
        let age = Duration::from_millis(error.age_ms);
        (
            age,
            format!("last failure {} ago: {}", span(age), error.cause),
        )
    });
    let is_down = link.state == LinkState::Down;
    let is_silent = link.state == LinkState::Silent || (link.state == LinkState::Up && !link.heard);
    match last {
        last if is_silent => {
            let beside = match link.dials_beside {
                0 => "none yet beside it".to_owned(),
                1 => "1 dial beside it".to_owned(),
                dials => format!("{dials} dials beside it"),
            };
            let told = last.map_or_else(String::new, |(_, told)| format!("; {told}"));
            Verdict::fail(
                format!(
                    "{times}; the old connection is silent, {beside}, the next within 1 s{told}"
                ),
                "mend that cause; quorate doctor --from-all says what this node finds on its way there",
            )
        }
        Some((_, told)) if is_down => Verdict::fail(
            format!("{times}, not connected; {told}; the next dial comes within 1 s"),
            "mend that cause; quorate doctor --from-all says what this node finds on its way there",
        ),
        None if is_down => Verdict::fail(
            format!("{times}, not connected yet; the next dial comes within 1 s"),
            "run this again; if it stays, quorate doctor --from-all says what this node finds on its way there",
        ),
        Some((age, told)) if age < LATELY => Verdict::warn(
            format!("{times}, connected again; {told}; {REDIALS}"),
            "watch it: quorate link list --watch; a link that breaks again and again has a bad path",
        ),
        Some((_, told)) => Verdict::ok(format!("{times}, connected; {told}; {REDIALS}")),
        None => Verdict::ok(format!("{times}; {REDIALS}")),
    }
}

fn stands(link: &LinkView) -> Verdict {
    let silence = span(Duration::from_millis(link.silence_ms));
    let since = span(Duration::from_millis(link.state_ms));
    let up = span(Duration::from_millis(link.up_ms));
    let way = match link.direction {
        LinkDirection::ToLeader => "to",
        LinkDirection::ToFollower => "from",
    };
    match link.state {
        LinkState::Up if link.heard => Verdict::ok(format!(
            "a connection {way} {} stands for {up}, heard {silence} ago",
            link.remote_address
        )),
        LinkState::Up | LinkState::Silent => Verdict::fail(
            format!(
                "a connection {way} {} stands for {up}, but nothing was heard for {silence}",
                link.remote_address
            ),
            "look whether that node runs, hangs or is cut off: quorate doctor --from-all",
        ),
        LinkState::Down => match link.direction {
            LinkDirection::ToLeader => Verdict::fail(
                format!("no connection for {since}"),
                "see its dials: they say why",
            ),
            LinkDirection::ToFollower => Verdict::fail(
                format!("no connection for {since}: that node is the one that dials"),
                "look at that node: whether it runs, and what its own dials say",
            ),
        },
        LinkState::Idle => Verdict::ok("nobody needs it at present"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::LinkError;
    use crate::doctor::Outcome;

    fn link(direction: LinkDirection, state: LinkState) -> LinkView {
        LinkView {
            state,
            state_ms: 5_000,
            heard: state == LinkState::Up,
            up_ms: 5_000,
            ..LinkView::sample(direction, NodeId::new(2).unwrap())
        }
    }

    #[test]
    fn a_follower_says_how_often_it_dialled_and_why_it_failed() {
        let me = NodeId::new(1).unwrap();
        let up = link(LinkDirection::ToLeader, LinkState::Up);
        let found = link_findings(me, &[up]);
        let checks: Vec<_> = found.iter().map(|f| (f.check, f.outcome)).collect();
        assert_eq!(
            checks,
            [(Check::Dials, Outcome::Ok), (Check::Link, Outcome::Ok)]
        );
        assert_eq!(found[0].from, "node 1");
        assert!(found[0].detail.contains("within 1 s"), "{found:?}");

        let mut down = link(LinkDirection::ToLeader, LinkState::Down);
        down.redials = 6;
        down.last_error = Some(LinkError {
            cause: "nothing listens there".to_owned(),
            age_ms: 400,
        });
        let found = link_findings(me, &[down.clone()]);
        assert!(found.iter().all(|found| found.outcome == Outcome::Fail));
        for words in [
            "7 times",
            "400 ms ago",
            "nothing listens there",
            "within 1 s",
        ] {
            assert!(found[0].detail.contains(words), "{words}: {found:?}");
        }
        let mut up = link(LinkDirection::ToLeader, LinkState::Up);
        up.last_error = down.last_error;
        let found = &link_findings(me, &[up.clone()])[0];
        assert_eq!(found.outcome, Outcome::Warn);
        assert!(found.detail.contains("connected again"), "{found:?}");
        assert!(found.detail.contains("within 1 s"), "{found:?}");
        up.last_error.as_mut().unwrap().age_ms = 61_000;
        let found = &link_findings(me, &[up])[0];
        assert_eq!(found.outcome, Outcome::Ok);
        assert!(found.detail.contains("nothing listens there"), "{found:?}");
        assert!(found.detail.contains("within 1 s"), "{found:?}");
    }

    #[test]
    fn dials_beside_a_silent_connection_do_not_make_it_well() {
        let me = NodeId::new(1).unwrap();
        let mut silent = link(LinkDirection::ToLeader, LinkState::Silent);
        silent.redials = 26;
        silent.dials_beside = 12;
        silent.last_error = Some(LinkError {
            cause: "no answer".to_owned(),
            age_ms: 300,
        });
        // The silence shows before the link's state does.
        let mut unheard = link(LinkDirection::ToLeader, LinkState::Up);
        unheard.heard = false;
        let found = link_findings(me, &[silent, unheard]);
        assert!(found.iter().all(|found| found.outcome == Outcome::Fail));
        let (silent, unheard) = (&found[0], &found[2]);
        for words in [
            "dialled 27 times; the old connection is silent, 12 dials beside it, the next within 1 s",
            "last failure 300 ms ago: no answer",
        ] {
            assert!(silent.detail.contains(words), "{words}: {silent:?}");
        }
        assert!(unheard.detail.contains("none yet beside it"), "{unheard:?}");
        let told = serde_json::to_string(&found).unwrap();
        assert!(!told.contains("connected again"), "{told}");
    }

    #[test]
    fn a_leader_says_whom_it_does_not_hear() {
        let me = NodeId::new(1).unwrap();
        let mut silent = link(LinkDirection::ToFollower, LinkState::Silent);
        silent.silence_ms = 12_000;
        let down = link(LinkDirection::ToFollower, LinkState::Down);
        let found = link_findings(me, &[silent, down]);
        assert_eq!(found.len(), 2);
        assert!(
            found[0].detail.contains("nothing was heard for 12.0 s"),
            "{found:?}"
        );
        assert!(
            found[1].detail.contains("is the one that dials"),
            "{found:?}"
        );
        assert!(found.iter().all(|found| found.outcome == Outcome::Fail));
    }
}
