//! Links for people: a line each, and below it what is out of the ordinary.

use std::time::Duration;

use super::Sample;
use super::rows::{Lag, Row, state_word};
use crate::broker::LinkState;
use crate::cli::output::{Table, terminal_width, wrap};
use crate::doctor::span;

/// An error that is older is history, and is left to `--output json`.
const RECENT: Duration = Duration::from_secs(600);
const NOTE_INDENT: usize = 8;

pub(super) fn lines(rows: &[Row], sample: &Sample) -> Vec<String> {
    let mut lines = Vec::new();
    if sample.answers.is_empty() {
        lines.push("No node answers; asking goes on.".to_owned());
    } else if rows.is_empty() {
        lines.push("No links: no partition has a replica beside its leader.".to_owned());
    } else {
        let mut table = Table::new([
            "LINK",
            "STATE",
            "HEARD",
            "RTT",
            "LOSS",
            "MTU",
            "FLIGHT/WINDOW",
            "SENT/S",
            "MOVES",
            "REDIALS",
            "LAG",
        ]);
        for row in rows {
            table.row(cells(row));
        }
        let mut drawn = table.lines().into_iter();
        lines.extend(drawn.next());
        for (row, line) in rows.iter().zip(drawn) {
            lines.push(line);
            for note in notes(row) {
                lines.extend(indented(&note));
            }
        }
    }
    for (address, node, cause) in &sample.silent {
        let who = match node {
            Some(node) => format!("Node {node} at {address} does not answer: {cause}"),
            None => format!("{address} does not answer: {cause}"),
        };
        lines.extend(wrap(&who, terminal_width()));
    }
    lines
}

fn indented(note: &str) -> Vec<String> {
    wrap(note, terminal_width().saturating_sub(NOTE_INDENT))
        .into_iter()
        .map(|line| format!("{:NOTE_INDENT$}{line}", ""))
        .collect()
}

fn cells(row: &Row) -> [String; 11] {
    let none = || "-".to_owned();
    let show = |value: Option<u64>, how: fn(u64) -> String| value.map_or_else(none, how);
    [
        format!("{} → {}", row.leader, row.follower),
        format!("{} {}", state_word(row.state), short(row.state_ms)),
        show(row.heard_ms, short),
        show(row.rtt_us, rtt),
        row.loss_percent
            .map_or_else(none, |percent| format!("{percent:.1}%")),
        show(row.mtu.map(u64::from), |mtu| mtu.to_string()),
        match (row.in_flight_bytes, row.window_bytes) {
            (Some(flight), Some(window)) => format!("{}/{}", bytes(flight), bytes(window)),
            _ => none(),
        },
        show(row.sent_bytes_per_s, bytes),
        row.migrations.to_string(),
        show(row.redials, |redials| redials.to_string()),
        match &row.lag {
            Lag::Known { records: 0, .. } => "0".to_owned(),
            Lag::Known {
                records,
                bytes: size,
                ms,
            } => {
                let mut text = format!("{records}");
                if let Some(size) = size {
                    text.push_str(&format!(" {}", bytes(*size)));
                }
                if let Some(ms) = ms {
                    text.push_str(&format!(" {}", short(*ms)));
                }
                text
            }
            Lag::Unknown { .. } => "unknown".to_owned(),
        },
    ]
}

fn notes(row: &Row) -> Vec<String> {
    let mut notes = Vec::new();
    if let Lag::Unknown { why, .. } = &row.lag {
        notes.push(format!("lag unknown ({why})"));
    }
    notes.extend(row.differs.iter().cloned());
    if row.suspicions > 0 && row.state != LinkState::Down {
        notes.push(match row.suspicions {
            1 => "fell silent once".to_owned(),
            times => format!("fell silent {times} times"),
        });
    }
    if let Some(error) = &row.last_error {
        let age = Duration::from_millis(error.age_ms);
        if age < RECENT || row.state == LinkState::Down {
            notes.push(format!(
                "{} ago at node {}: {}",
                span(age),
                error.node,
                error.cause
            ));
        }
    }
    notes
}

/// A time in few characters.
fn short(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..10 => format!("{:.1}s", ms as f64 / 1e3),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn rtt(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2}ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{}ms", us / 1000),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

/// A size in few characters.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..10_000 => format!("{:.1}kB", bytes as f64 / 1e3),
        10_000..1_000_000 => format!("{}kB", bytes / 1000),
        1_000_000..1_000_000_000 => format!("{:.1}MB", bytes as f64 / 1e6),
        _ => format!("{:.1}GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::rows::Rows;
    use super::super::rows::tests::{link, sample};
    use super::*;
    use crate::broker::LinkDirection;

    #[test]
    fn a_silent_follower_is_told_in_words_below_its_line_and_the_width_is_kept() {
        let mut rows = Rows::default();
        let start = Instant::now();
        let mut busy = link(LinkDirection::ToFollower, 2);
        rows.take(&sample(start, Some(busy.clone()), None));
        busy.sent_bytes += 123_456_789;
        busy.window_bytes = 33_554_432;
        busy.in_flight_bytes = 12_345_678;
        busy.state_ms = 86_400_000;
        let at = start + Duration::from_secs(1);
        let full = sample(
            at,
            Some(busy.clone()),
            Some(link(LinkDirection::ToLeader, 1)),
        );
        let told = lines(&rows.take(&full), &full);
        assert_eq!(told.len(), 2, "{told:#?}");
        assert!(told[1].starts_with("1 → 2"), "{told:#?}");
        assert!(told[1].ends_with("3 300B 7ms"), "{told:#?}");
        assert!(told[1].contains("123.5MB"), "{told:#?}");

        busy.state = LinkState::Silent;
        busy.heard = false;
        busy.silence_ms = 12_000;
        let mut silent = sample(at, Some(busy), None);
        silent
            .silent
            .push(("127.0.0.1:2".to_owned(), None, "nothing listens".to_owned()));
        let told_of_silence = lines(&rows.take(&silent), &silent);
        assert!(
            told_of_silence[1].ends_with("unknown"),
            "{told_of_silence:#?}"
        );
        assert_eq!(
            told_of_silence[2].trim(),
            "lag unknown (last heard 12.0 s ago, was 3 records behind)"
        );
        assert_eq!(
            told_of_silence[3],
            "127.0.0.1:2 does not answer: nothing listens"
        );
        for line in told.iter().chain(&told_of_silence) {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}
