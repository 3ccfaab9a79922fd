//! Transcripts of the link keeper: what happens to a link, and what is then done.
//!
//! Each `tests/link/*.txt` is read as a list of commands, one a line; after each of them stand, indented, the actions that it
//! produced and when. `QUORATE_BLESS=1 cargo test --test link` writes them anew: read the difference before you
//! commit it.
//!
//! ```text
//! start ADDRESS          a link is needed: dial there
//! standing ADDRESS       a connection stands already; it is number 0
//! dialled N              dial N was answered
//! failed N CAUSE         dial N has failed
//! closed N CAUSE         connection N is gone
//! rtt N SMOOTHED VARIANCE
//! hear TIME              time passes; the connection in use is heard every 100 ms
//! silence TIME           time passes; nothing is heard
//! refusing TIME CAUSE    time passes; nothing is heard, and each dial fails at once
//! heard N                connection N is heard
//! held up TIME           time passes in which the keeper itself does not run
//! address ADDRESS        the peer is to be reached there from now on
//! stop                   the link is needed no more
//! ```

// A test that cannot go on panics.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "support/transcript.rs"]
mod transcript;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::transport::{
    DIAL_PATIENCE, DialId, KeeperAction, KeeperReport, LOOK_EVERY, LinkKeeper,
};
use quorate::types::MonotonicTime;

const HEARTBEAT_EVERY: Duration = Duration::from_millis(100);
/// Every transcript draws its jitter from here.
const SEED: u64 = 7;

#[test]
fn the_keeper_does_what_the_transcripts_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/link");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "only {} transcripts", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let expected = fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let played = play(&name, &expected);
        let shown = format!("tests/link/{name}");
        wrong.extend(transcript::difference(
            &file, &shown, &expected, &played, true,
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The transcript with the actions that its commands produce now.
fn play(name: &str, text: &str) -> String {
    let mut run = Run {
        now: MonotonicTime::ZERO,
        keeper: None,
        out: String::new(),
        refusal: None,
    };
    for (line, command) in text.lines().enumerate() {
        if command.starts_with(' ') {
            continue;
        }
        run.out.push_str(&format!("{command}\n"));
        if !command.is_empty() && !command.starts_with('#') {
            run.carry_out(command)
                .unwrap_or_else(|| panic!("{name}:{}: cannot read {command:?}", line + 1));
        }
    }
    run.out
}

struct Run {
    now: MonotonicTime,
    keeper: Option<LinkKeeper>,
    out: String,
    /// Each dial fails with it.
    refusal: Option<String>,
}

impl Run {
    fn carry_out(&mut self, command: &str) -> Option<()> {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let now = self.now;
        match verb {
            "start" => self.keeper = Some(LinkKeeper::new(now, rest.to_owned(), SEED)),
            "standing" => {
                self.keeper = Some(LinkKeeper::with_connection(now, rest.to_owned(), SEED));
            }
            "dialled" => self.keeper()?.handle_dialled(now, id(rest)?),
            "failed" => {
                let (dial, cause) = rest.split_once(' ')?;
                self.keeper()?.handle_failed(now, id(dial)?, cause);
            }
            "closed" => {
                let (connection, cause) = rest.split_once(' ')?;
                self.keeper()?.handle_closed(now, id(connection)?, cause);
            }
            "rtt" => {
                let mut parts = rest.split(' ');
                let connection = id(parts.next()?)?;
                let (smoothed, variance) = (time(parts.next()?)?, time(parts.next()?)?);
                self.keeper()?
                    .handle_round_trip(connection, smoothed, variance);
            }
            "hear" => self.pass(time(rest)?, Some(HEARTBEAT_EVERY)),
            "silence" => self.pass(time(rest)?, None),
            "refusing" => {
                let (how_long, cause) = rest.split_once(' ')?;
                self.refusal = Some(cause.to_owned());
                self.pass(time(how_long)?, None);
                self.refusal = None;
            }
            "heard" => self.keeper()?.handle_heard(now, id(rest)?),
            "held" => self.now = now + time(rest.strip_prefix("up ")?)?,
            "address" => self.keeper()?.handle_address(now, rest),
            "stop" => self.keeper()?.handle_stop(),
            _ => return None,
        }
        self.tell();
        Some(())
    }

    fn keeper(&mut self) -> Option<&mut LinkKeeper> {
        self.keeper.as_mut()
    }

    fn pass(&mut self, how_long: Duration, heard_every: Option<Duration>) {
        let begin = self.now;
        while self.now.since(begin) < how_long {
            self.now = self.now + LOOK_EVERY;
            let now = self.now;
            let passed = now.since(begin);
            let Some(keeper) = &mut self.keeper else {
                return;
            };
            if let Some(every) = heard_every
                && passed.as_millis().is_multiple_of(every.as_millis())
                && let Some(current) = keeper.current()
            {
                keeper.handle_heard(now, current);
            }
            keeper.handle_look(now);
            self.tell();
        }
    }

    fn tell(&mut self) {
        while let Some(action) = self.keeper.as_mut().and_then(LinkKeeper::poll_action) {
            let at = self.now.as_micros() as f64 / 1e6;
            let line = format!("  {at:7.3}  {}\n", show(&action));
            self.out.push_str(&line);
            if let KeeperAction::Dial { dial, .. } = action
                && let Some(cause) = self.refusal.clone()
                && let Some(keeper) = &mut self.keeper
            {
                keeper.handle_failed(self.now, dial, &cause);
            }
        }
    }
}

fn id(text: &str) -> Option<DialId> {
    text.parse().ok().map(DialId)
}

fn time(text: &str) -> Option<Duration> {
    let number = |unit| text.strip_suffix(unit).and_then(|n: &str| n.parse().ok());
    number("ms")
        .map(Duration::from_millis)
        .or_else(|| number("s").map(Duration::from_secs))
}

fn show(action: &KeeperAction) -> String {
    match action {
        KeeperAction::Dial {
            dial,
            address,
            cause,
            patience,
        } => {
            let patient = match *patience {
                DIAL_PATIENCE => String::new(),
                other => format!(", for {other:?}"),
            };
            format!("dial {dial} to {address}: {cause}{patient}")
        }
        KeeperAction::GiveUp { dial, cause } => format!("give dial {dial} up: {cause}"),
        KeeperAction::Rebind { connection } => format!("move {connection} to another socket"),
        KeeperAction::Adopt { connection } => format!("use {connection}"),
        KeeperAction::Close { connection, cause } => format!("close {connection}: {cause}"),
        KeeperAction::Report(report) => match report {
            KeeperReport::Up {
                connection,
                address,
                took,
                replaced,
            } => {
                let place = replaced.map_or(String::new(), |old| format!(", in place of {old}"));
                format!("log: {connection} up at {address} after {took:?}{place}")
            }
            KeeperReport::Silent {
                connection,
                silence,
                allowed,
            } => format!("log: {connection} silent for {silence:?}, {allowed:?} is normal"),
            KeeperReport::HeardAgain {
                connection,
                silence,
            } => format!("log: {connection} heard again after {silence:?}"),
            KeeperReport::Down {
                connection,
                cause,
                lasted,
            } => format!("log: {connection} down after {lasted:?}: {cause}"),
            KeeperReport::DialFailed {
                dial,
                address,
                cause,
                took,
                next_in,
            } => format!(
                "log: dial {dial} to {address} failed after {took:?}: {cause}; next in {next_in:?}"
            ),
        },
    }
}
