//! Findings for people: grouped by who looked at what, what is wrong in full, what is well in one line each.

use std::io::{self, IsTerminal};

use super::super::output::{terminal_width, wrap};
use super::super::print_line;
use crate::doctor::{Check, Finding, HERE, Outcome};

/// The word before a finding, and the blank after it.
const MARK_WIDTH: usize = 6;
const TITLE_WIDTH: usize = 17;
/// Of more skipped checks than this only the first and the last are named.
const FEW_TITLES: usize = 3;

pub(super) fn print(findings: &[Finding], problems: bool) -> anyhow::Result<()> {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = io::stdout().is_terminal() && !plain;
    for line in lines(findings, problems, terminal_width(), color) {
        print_line(&line)?;
    }
    Ok(())
}

fn lines(findings: &[Finding], problems: bool, width: usize, color: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for group in groups(findings) {
        let rows = group_lines(&group, problems, width, color);
        if rows.is_empty() {
            continue;
        }
        lines.push(paint(&heading(&group), "1", color));
        lines.extend(rows);
        lines.push(String::new());
    }
    lines.push(summary(findings, color));
    lines
}

/// Runs of findings of one observer and one thing; what a node says of its own links is one run.
fn groups(findings: &[Finding]) -> Vec<Vec<&Finding>> {
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    for finding in findings {
        let joins = groups
            .last()
            .and_then(|group| group.first())
            .is_some_and(|first| {
                first.from == finding.from
                    && is_link(first) == is_link(finding)
                    && (is_link(first) || first.target == finding.target)
            });
        match groups.last_mut() {
            Some(group) if joins => group.push(finding),
            _ => groups.push(vec![finding]),
        }
    }
    groups
}

fn is_link(finding: &Finding) -> bool {
    matches!(finding.check, Check::Dials | Check::Link)
}

fn heading(group: &[&Finding]) -> String {
    let Some(first) = group.first() else {
        return String::new();
    };
    match (first.from.as_str(), first.target.as_str()) {
        (HERE, HERE) => "This machine".to_owned(),
        (from, _) if is_link(first) => format!("{}'s replication links", capitalised(from)),
        (HERE, target) => capitalised(target),
        (from, target) => format!("{} → {target}", capitalised(from)),
    }
}

fn capitalised(text: &str) -> String {
    match text.strip_prefix("node ") {
        Some(rest) => format!("Node {rest}"),
        None => text.to_owned(),
    }
}

fn group_lines(group: &[&Finding], problems: bool, width: usize, color: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let is_well = group.iter().all(|finding| finding.outcome == Outcome::Ok);
    let from_a_node = group
        .first()
        .is_some_and(|first| first.from != HERE && !is_link(first));
    if is_well && from_a_node && !problems {
        // One node's view of another: what was measured, and how much was looked at.
        for finding in group.iter().filter(|finding| finding.check == Check::Path) {
            lines.extend(row(finding, width, color));
        }
        let others = group.iter().filter(|found| found.check != Check::Path);
        let text = format!("{}, as from here", plural(others.count(), "more check"));
        lines.extend(entry("ok", "32", "and", &text, width, color));
        return lines;
    }
    let mut skipped: Vec<&Finding> = Vec::new();
    for finding in group {
        match finding.outcome {
            Outcome::Ok if problems => {}
            Outcome::Skipped => skipped.push(finding),
            _ => lines.extend(row(finding, width, color)),
        }
    }
    lines.extend(skipped_lines(&skipped, width, color));
    lines
}

/// Checks that were skipped for one reason are told in one line.
fn skipped_lines(skipped: &[&Finding], width: usize, color: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut done: Vec<(&str, Option<&str>)> = Vec::new();
    for finding in skipped {
        let reason = (finding.detail.as_str(), finding.fix.as_deref());
        if done.contains(&reason) {
            continue;
        }
        done.push(reason);
        let titles: Vec<&str> = skipped
            .iter()
            .filter(|other| (other.detail.as_str(), other.fix.as_deref()) == reason)
            .map(|other| other.check.title())
            .collect();
        match titles.as_slice() {
            [title] => lines.extend(entry("–", "2", title, &finding.detail, width, color)),
            [first, .., last] if titles.len() > FEW_TITLES => {
                let text = format!(
                    "{}: {first} … {last} ({} checks)",
                    finding.detail,
                    titles.len()
                );
                lines.extend(entry("–", "2", "skipped", &text, width, color));
            }
            titles => {
                let text = format!("{}: {}", finding.detail, titles.join(", "));
                lines.extend(entry("–", "2", "skipped", &text, width, color));
            }
        }
        if let Some(fix) = &finding.fix {
            lines.extend(fix_lines(fix, width, color));
        }
    }
    lines
}

fn row(finding: &Finding, width: usize, color: bool) -> Vec<String> {
    let (mark, paint) = match finding.outcome {
        Outcome::Ok => ("ok", "32"),
        Outcome::Skipped => ("–", "2"),
        Outcome::Warn => ("warn", "33"),
        Outcome::Fail => ("FAIL", "1;31"),
    };
    let detail = if is_link(finding) {
        format!("{}: {}", finding.target, finding.detail)
    } else {
        finding.detail.clone()
    };
    let mut lines = entry(mark, paint, finding.check.title(), &detail, width, color);
    if let Some(fix) = &finding.fix {
        lines.extend(fix_lines(fix, width, color));
    }
    lines
}

fn entry(
    mark: &str,
    code: &str,
    title: &str,
    text: &str,
    width: usize,
    color: bool,
) -> Vec<String> {
    let indent = MARK_WIDTH + TITLE_WIDTH + 2;
    let mut lines = Vec::new();
    for (index, part) in wrap(text, width.saturating_sub(indent)).iter().enumerate() {
        lines.push(if index == 0 {
            let padded = format!("{mark:<MARK_WIDTH$}");
            format!(
                "  {}{title:<TITLE_WIDTH$}{part}",
                paint(&padded, code, color)
            )
        } else {
            format!("{:indent$}{part}", "")
        });
    }
    lines
}

fn fix_lines(fix: &str, width: usize, color: bool) -> Vec<String> {
    let indent = MARK_WIDTH + TITLE_WIDTH + 2;
    let label = "fix: ";
    let mut lines = Vec::new();
    let room = width.saturating_sub(indent + label.len());
    for (index, part) in wrap(fix, room).iter().enumerate() {
        let label = if index == 0 { label } else { "     " };
        lines.push(format!("{:indent$}{}{part}", "", paint(label, "36", color)));
    }
    lines
}

fn summary(findings: &[Finding], color: bool) -> String {
    let count = |outcome| findings.iter().filter(|f| f.outcome == outcome).count();
    let checks = plural(findings.len(), "check");
    let better = plural(count(Outcome::Warn), "warning");
    match (count(Outcome::Fail), count(Outcome::Warn)) {
        (0, 0) => paint(&format!("All is well: {checks}."), "32", color),
        (0, _) => paint(
            &format!("Nothing is wrong, with {better}: {checks}."),
            "33",
            color,
        ),
        (fails, 0) => paint(&format!("{fails} of {checks} failed."), "1;31", color),
        (fails, _) => {
            let text = format!("{fails} of {checks} failed, with {better}.");
            paint(&text, "1;31", color)
        }
    }
}

fn plural(n: usize, word: &str) -> String {
    match n {
        1 => format!("1 {word}"),
        n => format!("{n} {word}s"),
    }
}

fn paint(text: &str, code: &str, color: bool) -> String {
    if color {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn what_is_wrong_stands_in_full_with_its_fix_and_the_width_is_kept() {
        let long = "a word and ".repeat(20);
        let findings = [
            Verdict::ok("x").of(Check::UdpSocket, HERE, HERE),
            Verdict::ok("y").of(Check::HostName, HERE, "node 1 at a:1"),
            Verdict::fail(long.clone(), long).of(Check::Reachable, HERE, "node 1 at a:1"),
            Verdict::skipped("not reached", "mend").of(Check::Clock, HERE, "node 1 at a:1"),
            Verdict::skipped("not reached", "mend").of(Check::Path, HERE, "node 1 at a:1"),
        ];
        let told = lines(&findings, false, 100, false);
        assert_eq!(told[0], "This machine");
        assert_eq!(told[1], "  ok    UDP socket       x");
        assert_eq!(told[3], "Node 1 at a:1");
        assert!(
            told.iter().all(|line| line.chars().count() <= 100),
            "{told:#?}"
        );
        assert!(
            told.iter()
                .any(|line| line.trim_start().starts_with("fix: "))
        );
        assert!(
            told.iter()
                .any(|line| line.ends_with("not reached: clock, path")),
            "{told:#?}"
        );
        assert_eq!(told.last().unwrap(), "1 of 5 checks failed.");
        let short = lines(&findings, true, 100, false);
        assert_eq!(short[0], "Node 1 at a:1");
        assert!(
            !short.iter().any(|line| line.contains("  ok")),
            "{short:#?}"
        );
    }

    #[test]
    fn a_node_that_finds_its_peer_well_says_so_in_two_lines() {
        let findings = [
            Verdict::ok("is").of(Check::HostName, "node 1", "node 2 at b:1"),
            Verdict::ok("0.2 ms").of(Check::Path, "node 1", "node 2 at b:1"),
            Verdict::ok("up").of(Check::Link, "node 1", "leader 2"),
            Verdict::ok("up").of(Check::Link, "node 1", "follower 2"),
        ];
        let told = lines(&findings, false, 100, false);
        assert_eq!(
            told,
            [
                "Node 1 → node 2 at b:1",
                "  ok    path             0.2 ms",
                "  ok    and              1 more check, as from here",
                "",
                "Node 1's replication links",
                "  ok    link             leader 2: up",
                "  ok    link             follower 2: up",
                "",
                "All is well: 4 checks."
            ]
        );
    }
}
