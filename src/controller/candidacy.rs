//! When this controller stands for active controller, and whether it would have another. No clock and no dice: both come in.
//!
//! openraft's own timers rest: their times are fixed at the start, and a controller that stands in vain deposes the active
//! one by the higher term that it brings. Here a controller that misses the active one first *canvasses*: it asks the other
//! controllers whether they would vote for it, which binds nobody and moves no term. It stands only when a majority, itself
//! included, is willing. A controller is willing when
//!
//! - it is not active itself, and has not heard the active one for most of the silence that its own link allows: so nobody
//!   is replaced whom any majority hears;
//! - it has nothing in its log that the other lacks: that one could not win;
//! - it has not been willing for a third one just now, and does not canvass itself with a better claim (the longer log, then
//!   the lower id). So two that notice the death at the same moment do not split the votes.

use std::time::Duration;

use super::liveness::Presence;
use super::raft::LogId;
use crate::types::NodeId;

/// Between two rounds of canvassing that did not find a majority willing: the others may have been a heartbeat behind.
const FIRST_PAUSE: Duration = Duration::from_millis(40);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What a controller knows at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// It may vote and be voted for.
    pub(super) votes: bool,
    /// It is active.
    pub(super) leads: bool,
    /// Whether the active one is there.
    pub(super) presence: Presence,
    pub(super) hears_majority: bool,
    pub(super) last_log: Option<LogId>,
    /// How long the slowest of the others may be silent: what one round of votes may take.
    pub(super) patience: Duration,
}

/// One controller's part in the choice of the active one.
#[derive(Debug)]
pub(super) struct Candidacy {
    me: NodeId,
    /// A round of canvassing is under way.
    canvassing: bool,
    /// Not before then.
    not_before: Duration,
    /// Rounds in a row that led nowhere.
    rounds: u32,
    /// For whom it was willing, and until when for nobody else.
    pledge: Option<(NodeId, Duration)>,
}

impl Candidacy {
    pub(super) fn new(me: NodeId) -> Candidacy {
        Candidacy {
            me,
            canvassing: false,
            not_before: Duration::ZERO,
            rounds: 0,
            pledge: None,
        }
    }

    /// Rounds in a row that led nowhere.
    #[cfg(test)]
    pub(super) fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Whether to begin a round of canvassing now; [`Candidacy::end_round`] ends it. To be called often.
    pub(super) fn begin_round(&mut self, now: Duration, outlook: &Outlook) -> bool {
        if outlook.leads || outlook.presence == Presence::Heard {
            self.rounds = 0;
            self.not_before = Duration::ZERO;
            return false;
        }
        let pledged = self.pledge.is_some_and(|(_, until)| now < until);
        let stands = outlook.votes
            && outlook.presence == Presence::Gone
            && outlook.hears_majority
            && !pledged
            && now >= self.not_before;
        self.canvassing |= stands;
        stands
    }

    /// A round is over; `willing` when a majority was. Whether to stand: unless another with a better claim, or the active
    /// one itself, was heard in the meantime. `chance` is drawn at random from 0 to 1.
    pub(super) fn end_round(
        &mut self,
        now: Duration,
        outlook: &Outlook,
        willing: bool,
        chance: f64,
    ) -> bool {
        let stands = willing
            && self.canvassing
            && !outlook.leads
            && outlook.presence == Presence::Gone
            && outlook.hears_majority;
        self.canvassing = false;
        // Who has stood gives the votes the time to come back. Both waits grow and differ, so that two who stand in each
        // other's way do not do so for long.
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.rounds.min(8))
            .min(LAST_PAUSE);
        self.rounds = self.rounds.saturating_add(1);
        let pause = if stands {
            outlook.patience + pause
        } else {
            pause
        };
        self.not_before = now + pause.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0));
        stands
    }

    /// Whether it would vote for `other`, whose log ends at `log`.
    pub(super) fn asked(
        &mut self,
        now: Duration,
        outlook: &Outlook,
        other: NodeId,
        log: Option<LogId>,
    ) -> bool {
        if outlook.leads || outlook.presence == Presence::Heard || log < outlook.last_log {
            return false;
        }
        if self
            .pledge
            .is_some_and(|(to, until)| to != other && now < until)
        {
            return false;
        }
        if self.canvassing && log == outlook.last_log && self.me < other {
            return false;
        }
        self.canvassing = false;
        self.pledge = Some((other, now + outlook.patience));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(400);

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn log(index: u64) -> Option<LogId> {
        Some(LogId::new(openraft::CommittedLeaderId::new(1, 1), index))
    }

    fn gone() -> Outlook {
        Outlook {
            votes: true,
            leads: false,
            presence: Presence::Gone,
            hears_majority: true,
            last_log: log(10),
            patience: PATIENCE,
        }
    }

    #[test]
    fn nobody_stands_while_the_active_one_is_heard_or_a_majority_is_not() {
        let mut c = Candidacy::new(node(2));
        let outlooks = [
            Outlook {
                presence: Presence::Heard,
                ..gone()
            },
            Outlook {
                presence: Presence::Doubtful,
                ..gone()
            },
            Outlook {
                hears_majority: false,
                ..gone()
            },
            Outlook {
                votes: false,
                ..gone()
            },
            Outlook {
                leads: true,
                ..gone()
            },
        ];
        for outlook in outlooks {
            assert!(!c.begin_round(ms(1), &outlook), "{outlook:?}");
        }
        assert!(c.begin_round(ms(1), &gone()));
        let heard_again = outlooks[0];
        assert!(!c.end_round(ms(2), &heard_again, true, 0.5));
        assert!(c.begin_round(ms(500), &gone()));
        assert!(c.end_round(ms(501), &gone(), true, 0.5));
    }

    #[test]
    fn a_controller_that_hears_the_active_one_or_has_more_is_not_willing() {
        let mut c = Candidacy::new(node(3));
        let heard = Outlook {
            presence: Presence::Heard,
            ..gone()
        };
        let active = Outlook {
            leads: true,
            ..gone()
        };
        assert!(!c.asked(ms(1), &heard, node(2), log(10)));
        assert!(!c.asked(ms(1), &active, node(2), log(10)));
        assert!(!c.asked(ms(1), &gone(), node(2), log(9)));
        let doubtful = Outlook {
            presence: Presence::Doubtful,
            ..gone()
        };
        assert!(c.asked(ms(1), &doubtful, node(2), log(10)));
        assert!(
            !c.asked(ms(2), &gone(), node(1), log(99)),
            "it is willing for node 2"
        );
        assert!(c.asked(ms(3), &gone(), node(2), log(10)), "asked again");
        assert!(!c.begin_round(ms(4), &gone()), "and stands not itself");
        assert!(c.begin_round(ms(3) + PATIENCE, &gone()));
    }

    #[test]
    fn of_two_that_canvass_at_once_the_one_with_the_better_claim_goes_on() {
        let mut two = Candidacy::new(node(2));
        let mut three = Candidacy::new(node(3));
        assert!(two.begin_round(ms(1), &gone()) && three.begin_round(ms(1), &gone()));
        assert!(!two.asked(ms(2), &gone(), node(3), log(10)));
        assert!(three.asked(ms(2), &gone(), node(2), log(10)));
        assert!(
            !three.end_round(ms(3), &gone(), true, 0.0),
            "it has stepped back"
        );
        assert!(two.end_round(ms(3), &gone(), true, 0.0));

        let mut two = Candidacy::new(node(2));
        assert!(two.begin_round(ms(1), &gone()));
        assert!(two.asked(ms(2), &gone(), node(3), log(11)), "a longer log");
        assert!(!two.end_round(ms(3), &gone(), true, 0.0));
    }

    #[test]
    fn who_stands_in_vain_waits_longer_each_time_and_never_the_same() {
        let mut c = Candidacy::new(node(2));
        let mut now = ms(0);
        let mut waits = Vec::new();
        for round in 0..8 {
            assert!(c.begin_round(now, &gone()));
            c.end_round(now, &gone(), false, f64::from(round % 2));
            let begin = now;
            while !c.begin_round(now, &gone()) {
                now += ms(1);
            }
            c.canvassing = false;
            waits.push((now - begin).as_millis());
        }
        assert_eq!(waits[0], 20);
        assert!(waits.iter().all(|wait| *wait <= LAST_PAUSE.as_millis()));
        assert!(waits.iter().collect::<BTreeSet<_>>().len() > 4, "{waits:?}");
    }
}
