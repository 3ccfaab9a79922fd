//! One run, from nothing to its figures.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::figures::Figures;
use super::stage::{ELSEWHERE, Stage, open_folder, open_gates};
use super::timeline::{Phase, Timeline};
use super::{Fault, Run, Scenario, Settings, Witness};
use crate::bench::BenchError;
use crate::bench::local::Processes;
use crate::bench::records::{Arrivals, Filler, Load, LoadOptions, Pattern, Produced, read_all};
use crate::bench::times::millis;
use crate::client::ProducerConfig;
use crate::types::NodeId;

/// Until caches are warm and round trips known.
const WARM_UP: Duration = Duration::from_secs(2);
/// For how long the unbroken cluster is measured.
const BEFORE: Duration = Duration::from_secs(5);
/// For how long the mended one is.
const AFTER: Duration = Duration::from_secs(3);
/// How long the first acknowledgement after a heal, or a follower's way back, is waited for before the run goes on without.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long everything may take to be as it was, in the end.
const SETTLE: Duration = Duration::from_secs(60);
/// How long a follower that is gone may take to leave the in-sync set.
const LEAVES_WITHIN: Duration = Duration::from_secs(60);
/// How the lag of `follower-catch-up` is made: beside the load, in larger records.
const FILLER: Pattern = Pattern {
    in_flight: 64,
    record_size: 16 << 10,
    filler: Filler::Letters,
    arrivals: Arrivals::AsRoomAllows,
    is_measured: false,
};
/// A record that is not acknowledged by then has failed: longer than any scenario's fault.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(180);

/// One run in a folder of its own, which goes again unless it is to be kept, or something is wrong with the records.
pub(super) async fn run(
    settings: &Settings,
    scenario: &'static Scenario,
    run: u32,
    dir: &Path,
    stop: &CancellationToken,
    witness: &mut dyn Witness,
) -> Result<Run, BenchError> {
    let seed = settings.seed.wrapping_add(u64::from(run) - 1);
    let mut ran = Run {
        figures: Figures::new(scenario, run, seed),
        ..Run::default()
    };
    ran.figures.in_flight = settings.in_flight;
    ran.figures.record_size = settings.record_size;
    let mut teller = Teller {
        what: format!("{} {run}/{}", scenario.name, settings.runs),
        witness,
    };
    teller.says("starting nodes");
    let mut folder = open_folder(dir, scenario, settings)?;
    let outcome = async {
        let gates = open_gates(&folder, scenario)?;
        let mut processes = Processes::start(&mut folder)?;
        let played = tokio::select! {
            biased;
            () = stop.cancelled() => Err(BenchError::Interrupted),
            played = async {
                let stage =
                    Stage::set(settings, scenario, seed, &mut folder, &mut processes, gates).await?;
                Play { settings, scenario, stage, processes: &mut processes, ran: &mut ran }
                    .perform(&mut teller)
                    .await
            } => played,
        };
        processes.kill_all().await;
        played
    }
    .await;
    let is_well = match &outcome {
        Ok(()) => ran.figures.is_sound(),
        Err(error) => matches!(error, BenchError::Interrupted),
    };
    if let Some(told) = folder.close(is_well) {
        teller.witness.note(&told);
    }
    outcome?;
    ran.figures.met = ran.figures.is_sound() && scenario.is_met(&ran.figures);
    Ok(ran)
}

struct Teller<'a> {
    what: String,
    witness: &'a mut dyn Witness,
}

impl Teller<'_> {
    fn says(&mut self, doing: &str) {
        self.witness.progress(&format!("{}: {doing}", self.what));
    }
}

struct Play<'a> {
    settings: &'a Settings,
    scenario: &'static Scenario,
    stage: Stage,
    processes: &'a mut Processes,
    ran: &'a mut Run,
}

impl Play<'_> {
    async fn perform(mut self, teller: &mut Teller<'_>) -> Result<(), BenchError> {
        let mark = rand::random();
        let timeline = Timeline::new().map_err(|error| BenchError::Failed(error.to_string()))?;
        let options = LoadOptions {
            producer: ProducerConfig {
                // Batches form behind the five that may be on their way. Waiting for more would measure the wait.
                linger: Duration::ZERO,
                delivery_timeout: DELIVERY_TIMEOUT,
                create_topics: false,
                ..ProducerConfig::default()
            },
            topic: self.stage.topic.clone(),
            mark,
        };
        let mut load = Load::new([&self.stage.client], options, timeline)?;
        load.add(Pattern {
            in_flight: self.settings.in_flight,
            record_size: self.settings.record_size,
            filler: Filler::Letters,
            arrivals: self
                .scenario
                .pace
                .map_or(Arrivals::AsRoomAllows, Arrivals::AtMost),
            is_measured: true,
        })?;
        teller.says("warming up");
        self.stage.pass(WARM_UP).await;
        enter(&load, Phase::Before);
        teller.says("before the fault");
        self.stage.pass(BEFORE).await;

        let begun = self.break_and_mend(&mut load, teller).await?;
        self.ran.figures.fault_ms = millis(begun);

        teller.says("waiting for the last acknowledgements");
        let produced = load.finish().await;
        // What is counted is what happened until everything is as it was.
        if !self.stage.pass_until(SETTLE, Stage::is_whole).await {
            let told = format!(
                "{}: not every replica was in sync {} s after the end",
                teller.what,
                SETTLE.as_secs()
            );
            teller.witness.note(&told);
        }
        self.count();
        teller.says("reading everything back");
        let found = read_all(&self.stage.client, &self.stage.topic, mark).await?;
        self.ran.figures.lost = found.lacks(&produced.acknowledged);
        self.ran.figures.duplicated = found.duplicated;
        if found.strange > 0 {
            return Err(BenchError::Failed(format!(
                "{} records in the topic are not of this run",
                found.strange
            )));
        }
        self.record(produced);
        self.stage.client.close();
        Ok(())
    }

    /// From the fault to a while after the heal. Returns how long the fault lasted.
    async fn break_and_mend(
        &mut self,
        load: &mut Load<Timeline>,
        teller: &mut Teller<'_>,
    ) -> Result<Duration, BenchError> {
        let lasts = self.settings.fault_lasts(self.scenario);
        let victims = self.victims();
        let leader = self.stage.cast.leader;
        if matches!(
            self.scenario.fault,
            Fault::FollowerRestarted | Fault::FollowerBehind
        ) {
            return self.restart_follower(load, teller, lasts).await;
        }
        teller.says("the fault");
        self.stage.observe();
        self.stage.meter.begin();
        enter(load, Phase::During);
        let begun = Instant::now();
        match self.scenario.fault {
            Fault::FollowersCut(_) | Fault::LeaderCut | Fault::AllCut => {
                for node in &victims {
                    self.stage.impair(*node, "peer=all,cut=both")?;
                }
            }
            Fault::BadLinks(rules) => {
                for node in &victims {
                    self.stage.impair(*node, rules)?;
                }
            }
            Fault::SlowFollower(rules) => {
                for (node, peer) in [(leader, victims[0]), (victims[0], leader)] {
                    self.stage.impair(node, &format!("peer={peer},{rules}"))?;
                }
            }
            Fault::LeaderKilled => self.processes.kill(leader).await,
            Fault::FollowerPort => {
                let local = std::net::Ipv4Addr::LOCALHOST.into();
                self.stage.move_follower(victims[0], local)?;
            }
            Fault::FollowerAddress => self.stage.move_follower(victims[0], ELSEWHERE)?,
            Fault::LeaderAddress => self.stage.move_leader(self.processes)?,
            Fault::ClientPort => self.stage.move_client()?,
            Fault::FollowerRestarted | Fault::FollowerBehind => {}
        }
        self.last(lasts, teller).await;
        let lasted = begun.elapsed();

        teller.says("after the heal");
        if !self.scenario.needs_impairment() {
            if self.scenario.fault == Fault::LeaderKilled {
                self.processes.restart(leader)?;
            }
            self.stage.pass(AFTER).await;
            return Ok(lasted);
        }
        enter(load, Phase::After);
        for node in self.stage.node_ids() {
            self.stage.impair(node, "")?;
        }
        if self.scenario.name == "rf2-shrink" {
            let back = self.stage.until_in_sync(victims[0], PATIENCE)?;
            self.ran.figures.isr_back_ms = back.await.map(millis);
        }
        self.stage
            .pass_until(PATIENCE, |_| {
                load.tally(|timeline, _| timeline.first_ack_after_heal())
                    .is_some()
            })
            .await;
        self.stage.pass(AFTER).await;
        Ok(lasted)
    }

    /// Whose links, or which process, are broken.
    fn victims(&self) -> Vec<NodeId> {
        let cast = &self.stage.cast;
        match self.scenario.fault {
            Fault::FollowersCut(count) => cast.followers.iter().take(count).copied().collect(),
            Fault::LeaderCut | Fault::LeaderKilled => vec![cast.leader],
            Fault::AllCut | Fault::BadLinks(_) => self.stage.node_ids(),
            _ => cast.followers.iter().take(1).copied().collect(),
        }
    }

    /// Lets a fault last, and says how long it still will.
    async fn last(&mut self, lasts: Duration, teller: &mut Teller<'_>) {
        let end = Instant::now() + lasts;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            teller.says(&format!(
                "the fault, {:.0} s more",
                left.as_secs_f64().ceil()
            ));
            self.stage.pass(left.min(Duration::from_secs(1))).await;
        }
    }

    /// A follower is killed, falls behind, and comes back. What is measured is its way back, from the start of its process.
    async fn restart_follower(
        &mut self,
        load: &mut Load<Timeline>,
        teller: &mut Teller<'_>,
        within: Duration,
    ) -> Result<Duration, BenchError> {
        let follower = self.victims()[0];
        teller.says("a follower is down");
        self.processes.kill(follower).await;
        let already = load.acknowledged_bytes();
        let behind = |load: &Load<Timeline>| load.acknowledged_bytes() - already;
        if self.scenario.fault == Fault::FollowerBehind {
            let wanted = self.settings.catch_up_bytes;
            let filler = load.add(FILLER)?;
            while behind(load) < wanted {
                teller.says(&format!(
                    "a follower is down, {} of {} MiB behind",
                    behind(load) >> 20,
                    wanted >> 20
                ));
                self.stage.pass(Duration::from_millis(500)).await;
            }
            filler.cancel();
        }
        let is_out = |stage: &Stage| !stage.in_sync(follower);
        if !self.stage.pass_until(LEAVES_WITHIN, is_out).await {
            return Err(BenchError::Failed(format!(
                "node {follower} was killed, and still in the in-sync set {} s later",
                LEAVES_WITHIN.as_secs()
            )));
        }
        self.stage.pass(Duration::from_secs(1)).await;

        teller.says("the follower comes back");
        self.stage.observe();
        self.stage.meter.begin();
        enter(load, Phase::During);
        self.ran.figures.catch_up_bytes = Some(behind(load));
        let times_up = self.stage.times_up(follower)?;
        let begun = Instant::now();
        self.processes.restart(follower)?;
        let up = self
            .stage
            .until_up(follower, times_up, self.settings.within)
            .await?;
        self.ran.figures.process_up_ms = Some(millis(up));
        let back = self.stage.until_in_sync(follower, within)?.await;
        self.ran.figures.isr_back_ms = back.map(millis);
        self.ran.figures.catch_up_bytes_per_second = back
            .filter(|back| !back.is_zero())
            .map(|back| (behind(load) as f64 / back.as_secs_f64()).round());
        let lasted = begun.elapsed();
        self.stage.pass(AFTER).await;
        Ok(lasted)
    }

    /// What the nodes counted since the fault.
    fn count(&mut self) {
        self.stage.observe();
        let happened = self.stage.meter.happened();
        let figures = &mut self.ran.figures;
        figures.isr_changes = happened.isr_changes;
        figures.elections = happened.elections;
        figures.redials = happened.redials;
        figures.migrations = happened.migrations;
        figures.handshakes = happened.handshakes;
        figures.suspicions = happened.suspicions;
        figures.disconnects = happened.disconnects;
    }

    fn record(&mut self, produced: Produced<Timeline>) {
        let timeline = &produced.tally;
        [self.ran.times_before, self.ran.times_during] = timeline.distributions();
        self.ran.series = timeline.series().clone();
        self.ran.fault = timeline.began_at(Phase::During);
        self.ran.heal = timeline.began_at(Phase::After);
        let figures = &mut self.ran.figures;
        figures.longest_ack_gap_ms = millis(timeline.longest_gap());
        figures.longest_ack_gap_at_ms = timeline.longest_gap_at().map(millis);
        figures.longest_ack_gap_before_ms = millis(timeline.longest_gap_before());
        figures.p50_before_ms = timeline.quantile_before(0.5).map(millis);
        figures.p99_before_ms = timeline.quantile_before(0.99).map(millis);
        figures.p50_during_ms = timeline.quantile_during(0.5).map(millis);
        figures.p99_during_ms = timeline.quantile_during(0.99).map(millis);
        figures.first_ack_after_heal_ms = timeline.first_ack_after_heal().map(millis);
        figures.records = produced.records;
        figures.acknowledged = produced.acknowledged.count();
        figures.unacknowledged = produced.unacknowledged;
        figures.reasons = produced.reasons;
    }
}

/// From now on, acknowledgements belong to this phase.
fn enter(load: &Load<Timeline>, phase: Phase) {
    load.tally(|timeline, now| timeline.enter(phase, now));
}
