//! The figures as tables, for people.

use super::figures::{Spread, Summary};

const HEADER: [&str; 13] = [
    "SCENARIO",
    "GOAL",
    "MET",
    "GAP ms",
    "P50 ms",
    "P99 ms",
    "P99 DURING ms",
    "1ST ACK ms",
    "ISR BACK ms",
    "ISR / ELECTIONS",
    "REDIALS / MOVES / HANDSHAKES",
    "UNACKED",
    "LOST / DOUBLED",
];

/// One row a scenario under a header. Where there are two figures, median and worst.
fn rows(summaries: &[Summary]) -> Vec<Vec<String>> {
    let mut rows = vec![HEADER.map(str::to_owned).to_vec()];
    rows.extend(summaries.iter().map(|sum| {
        vec![
            sum.scenario.to_owned(),
            sum.goal.to_owned(),
            format!("{} of {}", sum.met, sum.runs),
            both(sum.longest_ack_gap_ms),
            both(sum.p50_before_ms),
            both(sum.p99_before_ms),
            both(sum.p99_during_ms),
            both(sum.first_ack_after_heal_ms),
            back(sum),
            format!("{} / {}", sum.isr_changes, sum.elections),
            format!("{} / {} / {}", sum.redials, sum.migrations, sum.handshakes),
            sum.unacknowledged.to_string(),
            format!("{} / {}", sum.lost, sum.duplicated),
        ]
    }));
    rows
}

fn back(sum: &Summary) -> String {
    let back = both(sum.isr_back_ms);
    match sum.catch_up_bytes_per_second {
        // Small lags are no measure of a rate.
        Some(rate) if rate.worst >= 1e6 => format!(
            "{back} ({:.0}, {:.0} MB/s)",
            rate.median / 1e6,
            rate.worst / 1e6
        ),
        _ => back,
    }
}

fn both(spread: Option<Spread>) -> String {
    match spread {
        None => "-".to_owned(),
        Some(Spread { median, worst }) => format!("{}, {}", short(median), short(worst)),
    }
}

/// Three digits, or as many as there are before the point.
fn short(figure: f64) -> String {
    match figure {
        f if f < 9.995 => format!("{f:.2}"),
        f if f < 99.95 => format!("{f:.1}"),
        f => format!("{f:.0}"),
    }
}

const LEGEND: &str = "median, worst of the runs; counts: the most of any run; unacknowledged, lost and doubled: of all runs";

/// A block of lines for each scenario: rows of thirteen columns fit no terminal.
pub fn text(summaries: &[Summary]) -> Vec<String> {
    let rows = rows(summaries);
    let mut lines = Vec::new();
    let Some((header, rows)) = rows.split_first() else {
        return lines;
    };
    for row in rows {
        lines.push(format!("{}: {}, met {}", row[0], row[1], row[2]));
        for (name, cell) in header
            .iter()
            .zip(row)
            .skip(3)
            .filter(|(_, cell)| *cell != "-")
        {
            lines.push(format!("  {:<30} {cell}", name.to_lowercase()));
        }
    }
    lines.push(format!("({LEGEND})"));
    lines
}

/// A table.
pub fn markdown(summaries: &[Summary]) -> Vec<String> {
    let mut lines: Vec<String> = rows(summaries)
        .iter()
        .map(|row| format!("| {} |", row.join(" | ")))
        .collect();
    lines.insert(1, format!("|{}", " --- |".repeat(HEADER.len())));
    lines.push(String::new());
    lines.push(format!("({LEGEND})"));
    lines
}

#[cfg(test)]
mod tests {
    use super::super::figures::Figures;
    use super::*;

    fn summaries() -> Vec<Summary> {
        let run = |gap, lost| Figures {
            scenario: "leader-kill",
            goal: "longest gap ≤ 1 s",
            longest_ack_gap_ms: gap,
            p99_before_ms: Some(12.345),
            elections: 1,
            lost,
            ..Figures::default()
        };
        Summary::of_all(&[run(640.4, 0), run(1200.0, 2), run(5.0, 0)])
    }

    #[test]
    fn a_markdown_table_has_as_many_cells_in_each_line() {
        let lines = markdown(&summaries());
        let cells = |line: &str| line.matches('|').count();
        assert_eq!(cells(&lines[0]), HEADER.len() + 1);
        assert_eq!(cells(&lines[1]), HEADER.len() + 1);
        assert_eq!(cells(&lines[2]), HEADER.len() + 1);
        assert!(lines[2].contains("| leader-kill | longest gap ≤ 1 s | 0 of 3 | 640, 1200 |"));
        assert!(lines[2].contains("| 12.3, 12.3 |"), "{}", lines[2]);
        assert!(
            lines[2].ends_with("| 0 / 1 | 0 / 0 / 0 | 0 | 2 / 0 |"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn text_leaves_out_what_was_not_measured() {
        let lines = text(&summaries());
        assert_eq!(lines[0], "leader-kill: longest gap ≤ 1 s, met 0 of 3");
        assert!(lines.iter().any(|line| line.contains("640, 1200")));
        assert!(!lines.iter().any(|line| line.contains("1st ack")));
    }
}
