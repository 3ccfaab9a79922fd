//! What a person sees: an introduction, a live view, a summary.
//!
//! On a terminal the live view is three lines that are redrawn in place; elsewhere it is one plain line a second. With
//! `--output json` all of this goes to standard error and standard output has the summary alone.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::super::{note, print_line};
use super::summary::Summary;
use super::workload::Window;
use crate::admin::PartitionStatus;
use crate::bench::local::{Folder, Processes, State, Watchers};
use crate::broker::{LinkDirection, LinkState, LinkView};
use crate::node::IMPAIR_FILE;
use crate::transport::shell_word;
use crate::types::{NodeId, TopicName};

const REDRAW_EVERY: Duration = Duration::from_millis(400);
const PLAIN_LINE_EVERY: Duration = Duration::from_secs(1);
/// A time without acknowledgements that is worth a word.
const QUIET: Duration = Duration::from_millis(500);

/// Clears the line on which a terminal has shown ^C.
const OVER_CTRL_C: &[u8] = b"\r\x1b[J";

pub(super) struct Screen {
    json: bool,
    color: bool,
    terminal: bool,
    /// The live view stands on the terminal, and the cursor below it.
    live: bool,
}

impl Screen {
    pub(super) fn new(json: bool) -> Screen {
        let terminal = if json {
            io::stderr().is_terminal()
        } else {
            io::stdout().is_terminal()
        };
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen {
            json,
            color: terminal && !plain,
            terminal,
            live: false,
        }
    }

    pub(super) fn refresh_every(&self) -> Duration {
        if self.terminal {
            REDRAW_EVERY
        } else {
            PLAIN_LINE_EVERY
        }
    }

    /// One line that stays.
    pub(super) fn say(&self, line: &str) -> anyhow::Result<()> {
        if self.json {
            note(line);
            Ok(())
        } else {
            print_line(line)
        }
    }

    /// Everything that a person may want to try, once.
    pub(super) fn introduce(
        &self,
        folder: &Folder,
        processes: &Processes,
        topic: &TopicName,
        took: Duration,
    ) -> anyhow::Result<()> {
        let nodes = folder.nodes();
        let pids = processes.pids();
        self.say(&format!("Healthy after {:.1} s.", took.as_secs_f64()))?;
        self.say("")?;
        self.say(
            &self.bold("  node  pid       address          QUIC on UDP, Kafka on TCP (plaintext)"),
        )?;
        for (node, pid) in nodes.iter().zip(&pids) {
            let address = if node.quic == node.kafka {
                node.quic.to_string()
            } else {
                format!("{} / {}", node.quic, node.kafka)
            };
            self.say(&format!(
                "  {:<4}  {pid:<8}  {address:<15}  log {}",
                node.id,
                shell_word(&node.log)
            ))?;
        }
        let program = nodes
            .first()
            .and_then(|node| node.command.first())
            .map_or_else(
                || "quorate".to_owned(),
                |path| program_word(Path::new(path)),
            );
        let servers: Vec<_> = nodes.iter().map(|node| node.kafka.to_string()).collect();
        let servers = servers.join(",");
        self.say("")?;
        self.say(&self.bold("In another terminal:"))?;
        self.say(&format!("  . {}", shell_word(&folder.client_env())))?;
        self.say(&format!("  echo hello | {program} produce {topic}"))?;
        self.say(&format!("  {program} consume {topic} -o -5 -c 5"))?;
        self.say(&format!("  {program} cluster status"))?;
        self.say(&format!("  kcat -b {servers} -t {topic} -C -o -5 -c 5 -q"))?;
        if let [_, .., node] = nodes
            && let Some(pid) = pids.last()
        {
            self.say("")?;
            self.say(&self.bold("Break something, and mend it:"))?;
            self.say(&format!(
                "  kill -9 {pid}    # node {} dies, and the others carry on",
                node.id
            ))?;
            self.say(&format!(
                "  sh {}    # it comes back and catches up",
                shell_word(&node.start_script)
            ))?;
        }
        if let Some(spec) = folder.impairment() {
            let path = folder.path();
            let (new, place) = (format!("{IMPAIR_FILE}.new"), IMPAIR_FILE);
            self.say("")?;
            self.say(&self.bold(&format!(
                "Links are impaired on purpose: what a node sends to another suffers {spec}. To change that:"
            )))?;
            self.say(&format!(
                "  for d in {}/node-*/data; do echo loss=10%,delay=40ms >$d/{new}; mv $d/{new} $d/{place}; done",
                shell_word(path)
            ))?;
        }
        self.say("")?;
        let stays = if folder.is_kept() {
            "stays"
        } else {
            "is removed at the end; --keep keeps it"
        };
        self.say(&format!(
            "{} {stays}. Ctrl-C ends the demo.",
            shell_word(folder.path())
        ))?;
        self.say("")
    }

    /// Shows where things stand.
    pub(super) fn show(
        &mut self,
        elapsed: Duration,
        window: &Window,
        watchers: &Watchers,
        processes: &Processes,
        topic: &TopicName,
    ) -> anyhow::Result<()> {
        let partitions = watchers.partitions(topic);
        let headline = headline(window);
        let isr = isr(&partitions);
        let nodes = node_cells(watchers, processes);
        let links = link_cells(watchers, &partitions);
        if !self.terminal {
            return self.say(&format!(
                "{:>4} s  {headline}  {isr}  links {}  nodes {}",
                elapsed.as_secs(),
                plain(&links),
                plain(&nodes)
            ));
        }
        let lines = [
            format!(
                "{} {headline}",
                self.bold(&format!("{:>5}", clock(elapsed)))
            ),
            format!("      links {}", self.cells(&links)),
            format!("      nodes {}  {isr}", self.cells(&nodes)),
        ];
        self.redraw(&lines)
    }

    fn redraw(&mut self, lines: &[String; 3]) -> anyhow::Result<()> {
        let mut text = String::new();
        if self.live {
            text.push_str("\r\x1b[3A");
        }
        // What is below goes as well: a terminal shows ^C there. A line that is too long is cut off, not wrapped.
        text.push_str("\x1b[J\x1b[?7l");
        for line in lines {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text.push_str("\x1b[?7h");
        self.live = true;
        let drawn = if self.json {
            io::stderr().write_all(text.as_bytes())
        } else {
            let mut stdout = io::stdout().lock();
            stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush())
        };
        drawn.context("cannot write to the terminal")
    }

    /// Leaves the live view as it is, for other lines to follow.
    pub(super) fn end_live(&mut self) {
        if std::mem::take(&mut self.live) {
            // A terminal that has gone away shows nothing in any case.
            let _ = if self.json {
                io::stderr().write_all(OVER_CTRL_C)
            } else {
                io::stdout().write_all(OVER_CTRL_C)
            };
        }
    }

    pub(super) fn end(&self, summary: &Summary) -> anyhow::Result<()> {
        if self.json {
            print_line(&summary.json()?)?;
        }
        summary
            .lines()
            .iter()
            .try_for_each(|line| match line.as_str() {
                "Summary" => self.say(&self.bold(line)),
                line => self.say(line),
            })
    }

    fn bold(&self, text: &str) -> String {
        self.painted("1", text)
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn cells(&self, cells: &[Cell]) -> String {
        let cells: Vec<_> = cells
            .iter()
            .map(|cell| match cell.mood {
                Mood::Well => cell.text.clone(),
                Mood::Odd => self.painted("33", &cell.text),
                Mood::Bad => self.painted("31", &cell.text),
            })
            .collect();
        cells.join("  ")
    }
}

/// A short text and whether it is as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell {
    text: String,
    mood: Mood,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    Odd,
    Bad,
}

fn plain(cells: &[Cell]) -> String {
    let texts: Vec<_> = cells.iter().map(|cell| cell.text.as_str()).collect();
    texts.join(" ")
}

fn headline(window: &Window) -> String {
    let rate = window.acknowledged as f64 / window.length.as_secs_f64().max(0.001);
    let mut line = format!("{:>7} records/s  ", count(rate.round() as u64));
    match window.quiet {
        Some(quiet) if quiet >= QUIET => {
            line.push_str(&format!("no ack for {:.1} s", quiet.as_secs_f64()));
        }
        _ if window.acknowledged == 0 => line.push_str("no ack yet"),
        _ => line.push_str(&format!(
            "ack p50 {:>7} p99 {:>7}",
            millis(window.ack_us.value_at_quantile(0.5)),
            millis(window.ack_us.value_at_quantile(0.99))
        )),
    }
    line.push_str(&format!("  {} acked", count(window.total_acknowledged)));
    if window.in_flight > 0 {
        line.push_str(&format!(", {} on their way", count(window.in_flight)));
    }
    if window.total_failed > 0 {
        line.push_str(&format!(", {} FAILED", count(window.total_failed)));
    }
    line
}

/// How many of each partition's replicas are in sync, once if that is the same for all.
fn isr(partitions: &[PartitionStatus]) -> String {
    let mut cells: Vec<_> = partitions
        .iter()
        .map(|partition| format!("{}/{}", partition.isr.len(), partition.replicas.len()))
        .collect();
    cells.dedup();
    if cells.is_empty() {
        cells.push("?".to_owned());
    }
    format!("ISR {}", cells.join(" "))
}

fn node_cells(watchers: &Watchers, processes: &Processes) -> Vec<Cell> {
    let cell = |id: NodeId, text: String, mood| Cell {
        text: format!("{id} {text}"),
        mood,
    };
    processes
        .states()
        .map(|(id, state)| match (state, watchers.status(id)) {
            (State::Ended(_), _) => cell(id, "down".to_owned(), Mood::Bad),
            (_, None) => cell(id, "silent".to_owned(), Mood::Odd),
            (State::Restarted { pid }, Some(_)) => {
                cell(id, format!("up again (pid {pid})"), Mood::Well)
            }
            (State::Runs, Some(status)) => {
                let controller = status.active_controller == Some(id);
                let role = if controller { "up, controller" } else { "up" };
                cell(id, role.to_owned(), Mood::Well)
            }
        })
        .collect()
}

/// One cell a leader and follower that could be one another's: each direction of each pair of nodes that share a partition.
fn link_cells(watchers: &Watchers, partitions: &[PartitionStatus]) -> Vec<Cell> {
    let mut pairs = BTreeSet::new();
    let mut used = BTreeSet::new();
    for partition in partitions {
        for &from in &partition.replicas {
            for &to in partition.replicas.iter().filter(|to| **to != from) {
                pairs.insert((from, to));
                if partition.leader == Some(from) {
                    used.insert((from, to));
                }
            }
        }
    }
    pairs
        .into_iter()
        .map(|(leader, follower)| {
            let status = watchers.status(leader);
            let link = status.as_ref().and_then(|status| {
                let mut links = status.links.iter();
                links.find(|link| {
                    link.direction == LinkDirection::ToFollower && link.peer == follower
                })
            });
            let state = link_state(link, used.contains(&(leader, follower)), status.is_some());
            Cell {
                text: format!("{leader}→{follower} {}", state.0),
                mood: state.1,
            }
        })
        .collect()
}

/// `–` is a link that nothing needs: the one node leads no partition that the other follows.
fn link_state(link: Option<&LinkView>, is_used: bool, leader_answers: bool) -> (String, Mood) {
    match link {
        Some(link) if link.heard => (rtt(link.rtt_us), Mood::Well),
        Some(link) if link.state == LinkState::Down => ("✗".to_owned(), Mood::Bad),
        Some(link) => {
            let silence = link.silence_ms as f64 / 1000.0;
            (format!("silent {silence:.1}s"), Mood::Odd)
        }
        None if is_used || !leader_answers => ("✗".to_owned(), Mood::Bad),
        None => ("–".to_owned(), Mood::Well),
    }
}

/// Minutes and seconds.
fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

fn rtt(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{}ms", us / 1000),
    }
}

/// A time in µs, in ms or s, with three significant digits or so.
pub(super) fn millis(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1000),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// With a comma before every three digits.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn bytes(number: u64) -> String {
    match number {
        0..1_000 => format!("{number} B"),
        1_000..1_000_000 => format!("{:.1} kB", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", number as f64 / 1e6),
        _ => format!("{:.2} GB", number as f64 / 1e9),
    }
}

/// How this program is called: by its name where the shell would find it by that, else by its path.
fn program_word(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file());
    let same = found.and_then(|found| found.canonicalize().ok());
    if same.is_some() && same == program.canonicalize().ok() {
        shell_word(Path::new(name))
    } else {
        shell_word(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(1_048_576), "1.0 MB");
        assert_eq!(millis(1_234), "1.23 ms");
        assert_eq!(millis(12_345_678), "12.35 s");
        assert_eq!(rtt(180), "0.2ms");
        assert_eq!(rtt(300_400), "300ms");
        assert_eq!(clock(Duration::from_secs(3_675)), "61:15");
    }

    #[test]
    fn a_link_says_how_it_is() {
        let mut link = LinkView::sample(LinkDirection::ToFollower, NodeId::new(2).unwrap());
        assert_eq!(link_state(Some(&link), true, true).0, "0.2ms");
        link.heard = false;
        link.silence_ms = 1230;
        assert_eq!(link_state(Some(&link), true, true).0, "silent 1.2s");
        link.state = LinkState::Down;
        assert_eq!(link_state(Some(&link), true, true).0, "✗");
        assert_eq!(link_state(None, true, true).0, "✗");
        assert_eq!(link_state(None, false, false).0, "✗");
        assert_eq!(link_state(None, false, true).0, "–");
    }
}
