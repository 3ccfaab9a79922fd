//! Every link out for a while: how soon acknowledgements come after the heal, of each arm on the same network.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::stage::{Stage, open_folder};
use super::{Arm, Witness, check, each_turn, lab_settings, only_the_delay};
use crate::bench::gap::{Phase, Timeline, check_load};
use crate::bench::lab::{Lab, block_on_host};
use crate::bench::local::{Folder, Place, Processes};
use crate::bench::records::{Arrivals, Filler, Load, LoadOptions, Pattern, read_all};
use crate::bench::{BenchError, millis};
use crate::client::ProducerConfig;
use crate::transport::ImpairmentSpec;

/// Longer than any outage and its aftermath.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(300);
/// Until caches are warm and round trips known.
const WARM_UP: Duration = Duration::from_secs(2);
/// For how long the network is measured before and after it is out.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(3);
/// How long the first acknowledgement after a heal is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long everyone may take to be in sync again before the next outage.
const SETTLE: Duration = Duration::from_secs(60);
const MAX_OUTAGE: Duration = Duration::from_secs(120);
const CUT: &str = "cut=both";

/// What is measured.
#[derive(Clone, Debug)]
pub struct BlackoutSettings {
    pub arms: Vec<Arm>,
    pub runs: u32,
    /// What every link suffers while it is there.
    pub links: ImpairmentSpec,
    pub outages: Vec<Duration>,
    pub record_size: usize,
    pub in_flight: usize,
    pub seed: u64,
    pub dir: Option<PathBuf>,
    pub within: Duration,
}

/// What one outage gave. The field names are part of the command line's interface; times are in ms.
#[derive(Clone, Debug, Serialize)]
pub struct BlackoutFigures {
    pub arm: &'static str,
    pub congestion: String,
    pub run: u32,
    pub seed: u64,
    pub outage_s: f64,
    pub rtt_ms: f64,
    pub loss: f64,
    /// From the heal to the first acknowledgement after it; `null` if none came.
    pub first_ack_after_heal_ms: Option<f64>,
    /// Between two acknowledgements, from the cut on.
    pub longest_ack_gap_ms: f64,
    pub p50_before_ms: Option<f64>,
    pub p99_before_ms: Option<f64>,
    pub isr_changes: u64,
    pub elections: u64,
    pub unacknowledged: u64,
    pub lost: u64,
    pub duplicated: u64,
}

impl BlackoutFigures {
    pub fn is_sound(&self) -> bool {
        let has_come_back = self.first_ack_after_heal_ms.is_some();
        has_come_back && self.lost == 0 && self.duplicated == 0 && self.unacknowledged == 0
    }
}

impl BlackoutSettings {
    /// Refuses what cannot be, before anything is started.
    pub fn check(&self) -> Result<(), BenchError> {
        if self.outages.is_empty()
            || self
                .outages
                .iter()
                .any(|outage| outage.is_zero() || *outage > MAX_OUTAGE)
        {
            return Err(BenchError::Impossible(format!(
                "outages last from 1 ms to {} s: change --outage",
                MAX_OUTAGE.as_secs()
            )));
        }
        check_load(self.in_flight, self.record_size)?;
        check(&self.arms, self.runs, &self.links)
    }
}

/// Cuts every link of every arm's cluster for each of the outages. Blocks the calling thread, which must not be one of a runtime.
/// `stop` ends it early with everything removed.
pub fn run_blackouts(
    settings: &BlackoutSettings,
    stop: &CancellationToken,
    witness: &mut (dyn Witness<BlackoutFigures> + Send),
) -> Result<(), BenchError> {
    settings.check()?;
    let place = Place::open("blackout", settings.dir.as_deref(), false)?;
    each_turn(&settings.arms, settings.runs, |arm, run| {
        run_arm(settings, arm, run, &place, stop, witness)
    })
}

fn run_arm(
    settings: &BlackoutSettings,
    arm: &Arm,
    run: u32,
    place: &Place,
    stop: &CancellationToken,
    witness: &mut (dyn Witness<BlackoutFigures> + Send),
) -> Result<(), BenchError> {
    let seed = settings.seed.wrapping_add(u64::from(run) - 1);
    let lab = Lab::open(&lab_settings(&only_the_delay(&settings.links), seed))?;
    let Some(first) = lab.hosts().first().cloned() else {
        return Err(BenchError::Failed("a lab without hosts".to_owned()));
    };
    let dir = place
        .path()
        .join(format!("{}-{}-{run}", arm.transport(), arm.congestion()));
    let mut folder = open_folder(&lab, arm, &dir)?;
    let mut is_sound = true;
    let playing = async {
        let mut processes = Processes::start(&mut folder)?;
        let played = tokio::select! {
            biased;
            () = stop.cancelled() => Err(BenchError::Interrupted),
            played = async {
                let play = Play { settings, arm, run, seed, lab: &lab };
                play.perform(&mut folder, &mut processes, witness, &mut is_sound).await
            } => played,
        };
        processes.kill_all().await;
        played
    };
    let played = block_on_host(&first, playing).map_err(|source| BenchError::Io {
        what: "cannot work on a host of the lab".to_owned(),
        source,
    })?;
    let is_well = match &played {
        Ok(()) => is_sound,
        Err(error) => matches!(error, BenchError::Interrupted),
    };
    if let Some(told) = folder.close(is_well) {
        witness.note(&told);
    }
    played
}

struct Play<'a> {
    settings: &'a BlackoutSettings,
    arm: &'a Arm,
    run: u32,
    seed: u64,
    lab: &'a Lab,
}

impl Play<'_> {
    async fn perform(
        &self,
        folder: &mut Folder,
        processes: &mut Processes,
        witness: &mut (dyn Witness<BlackoutFigures> + Send),
        is_sound: &mut bool,
    ) -> Result<(), BenchError> {
        let told = format!("{} {}/{}", self.arm, self.run, self.settings.runs);
        witness.progress(&format!("{told}: starting nodes"));
        let stage = Stage::set(folder, processes, 1, self.settings.within).await?;
        self.lab.set(self.settings.links.clone());
        for outage in &self.settings.outages {
            witness.progress(&format!("{told}: out for {} s", outage.as_secs_f64()));
            let figures = self.outage(&stage, *outage).await?;
            *is_sound &= figures.is_sound();
            witness.finished(&figures).map_err(BenchError::telling)?;
            if !stage.until_whole(SETTLE).await {
                witness.note(&format!(
                    "{told}: not every replica was in sync under node 1 {} s after an outage",
                    SETTLE.as_secs()
                ));
            }
        }
        stage.client.close();
        Ok(())
    }

    async fn outage(&self, stage: &Stage, lasts: Duration) -> Result<BlackoutFigures, BenchError> {
        let cut: ImpairmentSpec = CUT
            .parse()
            .map_err(|error| BenchError::Failed(format!("{error}")))?;
        let mark = rand::random();
        let options = LoadOptions {
            producer: ProducerConfig {
                linger: Duration::ZERO,
                delivery_timeout: DELIVERY_TIMEOUT,
                create_topics: false,
                ..ProducerConfig::default()
            },
            topic: stage.topic.clone(),
            mark,
        };
        let timeline = Timeline::new().map_err(|error| BenchError::Failed(error.to_string()))?;
        let mut load = Load::new([&stage.client], options, timeline)?;
        load.add(Pattern {
            in_flight: self.settings.in_flight,
            record_size: self.settings.record_size,
            filler: Filler::default(),
            arrivals: Arrivals::AsRoomAllows,
            is_measured: true,
        })?;
        let enter =
            |load: &Load<Timeline>, phase| load.tally(|timeline, now| timeline.enter(phase, now));
        tokio::time::sleep(WARM_UP).await;
        enter(&load, Phase::Before);
        tokio::time::sleep(BEFORE).await;
        let epochs = stage.epochs();
        enter(&load, Phase::During);
        self.lab.set(cut);
        tokio::time::sleep(lasts).await;
        enter(&load, Phase::After);
        self.lab.set(self.settings.links.clone());
        let came = async {
            while load
                .tally(|timeline, _| timeline.first_ack_after_heal())
                .is_none()
            {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, came).await;
        tokio::time::sleep(AFTER).await;
        self.lab.check()?;
        let produced = load.finish().await;
        stage.settle(SETTLE).await;
        let after = stage.epochs();
        let found = read_all(&stage.client, &stage.topic, mark).await?;
        let timeline = &produced.tally;
        let elections = after.0.saturating_sub(epochs.0);
        let way = self.way();
        Ok(BlackoutFigures {
            arm: self.arm.transport(),
            congestion: self.arm.congestion().to_owned(),
            run: self.run,
            seed: self.seed,
            outage_s: lasts.as_secs_f64(),
            rtt_ms: millis(2 * way.delay),
            loss: way.loss,
            first_ack_after_heal_ms: timeline.first_ack_after_heal().map(millis),
            longest_ack_gap_ms: millis(timeline.longest_gap()),
            p50_before_ms: timeline.quantile_before(0.5).map(millis),
            p99_before_ms: timeline.quantile_before(0.99).map(millis),
            isr_changes: after
                .1
                .saturating_sub(epochs.1)
                .saturating_sub(2 * elections),
            elections,
            unacknowledged: produced.unacknowledged,
            lost: found.lacks(&produced.acknowledged),
            duplicated: found.duplicated,
        })
    }

    fn way(&self) -> crate::transport::Impairment {
        use crate::types::NodeId;
        match (NodeId::new(1), NodeId::new(2)) {
            (Some(leader), Some(follower)) => self.settings.links.of_way(leader, follower),
            _ => crate::transport::Impairment::default(),
        }
    }
}
