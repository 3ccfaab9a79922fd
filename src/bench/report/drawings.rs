//! Which drawings a report has: throughput by loss and round trip, distributions of times, and times in the course of a run.

use serde_json::Value;

use super::chart::{Axis, Band, Chart, Line, MAX_LINES};
use super::sample::{Kind, Sample};
use super::scale::{Scale, words};
use crate::bench::flow::median_rate;

/// The most drawings of one kind. Cells or scenarios beyond them are in the tables only.
const MAX_COURSES: usize = 24;

/// A drawing with the name of its file, without what ends it.
#[derive(Clone, Debug)]
pub(super) struct Drawing {
    pub(super) file: String,
    pub(super) svg: String,
}

/// All of them, in the order in which a person should see them.
pub(super) fn all(samples: &[Sample]) -> Vec<Drawing> {
    let mut drawings = Vec::new();
    let mut add = |kind: &str, charts: Vec<Chart>| {
        for (number, chart) in (1..).zip(charts) {
            drawings.push(Drawing {
                file: format!("{kind}-{number}"),
                svg: chart.svg(),
            });
        }
    };
    add("throughput", throughput(samples));
    add("distribution", distributions(samples));
    add("course", courses(samples));
    drawings
}

/// What a drawing of cells has in common, with the words for it.
const COMMON: [(&str, &str, &str); 8] = [
    ("bench", "", ""),
    ("link_mbit", "", " Mbit/s links"),
    ("acks", "acks ", ""),
    ("flush", "", ""),
    ("record_size", "", " bytes a record"),
    ("in_flight", "", " in flight"),
    ("partitions", "", " partitions"),
    ("rate", "", " records/s asked for"),
];

fn shown(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => number.as_f64().map(words),
        other => Some(other.to_string()),
    }
}

fn common(sample: &Sample) -> String {
    let parts = COMMON.iter().filter_map(|(field, before, after)| {
        let value = shown(sample.figures.get(field))?;
        // One of something is not several.
        let after = match value == "1" {
            true => after.trim_end_matches('s'),
            false => after,
        };
        Some(format!("{before}{value}{after}"))
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// Groups in the order of their first members.
fn grouped<'a, K: PartialEq>(
    samples: impl IntoIterator<Item = &'a Sample>,
    key: impl Fn(&Sample) -> K,
) -> Vec<(K, Vec<&'a Sample>)> {
    let mut groups: Vec<(K, Vec<&Sample>)> = Vec::new();
    for sample in samples {
        let its = key(sample);
        match groups.iter_mut().find(|(key, _)| *key == its) {
            Some((_, members)) => members.push(sample),
            None => groups.push((its, vec![sample])),
        }
    }
    groups
}

fn flows(samples: &[Sample]) -> impl Iterator<Item = &Sample> {
    samples.iter().filter(|sample| sample.kind == Kind::Flow)
}

/// Loss and round trip, where links were left alone 0 of both.
fn conditions(sample: &Sample) -> (f64, f64) {
    let of = |field| sample.number(field).unwrap_or(0.0);
    (of("loss"), of("rtt_ms"))
}

/// What carried it, for people.
fn carrier(sample: &Sample) -> String {
    let parts = [sample.text("arm"), sample.text("congestion")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Throughput over loss, a line for each round trip and carrier; where those are many, a drawing for each round trip.
fn throughput(samples: &[Sample]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (title, group) in grouped(flows(samples), common) {
        let cells = grouped(group.iter().copied(), conditions);
        if cells.len() < 2 {
            continue;
        }
        let lines = grouped(group.iter().copied(), |s| (conditions(s).1, carrier(s)));
        // One line is the link's own.
        if lines.len() < MAX_LINES {
            charts.push(throughput_of(&title, &group));
            continue;
        }
        for (rtt, members) in grouped(group.iter().copied(), |s| conditions(s).1) {
            charts.push(throughput_of(
                &format!("{title}, RTT {} ms", words(rtt)),
                &members,
            ));
        }
    }
    charts
}

fn throughput_of(title: &str, group: &[&Sample]) -> Chart {
    let mut losses: Vec<f64> = group.iter().map(|sample| conditions(sample).0).collect();
    losses.sort_by(f64::total_cmp);
    losses.dedup();
    let place = |loss: f64| losses.iter().position(|l| *l == loss).unwrap_or(0) as f64;
    let mut lines = Vec::new();
    let mut by_line = grouped(group.iter().copied(), |s| (conditions(s).1, carrier(s)));
    by_line.sort_by(|((a, x), _), ((b, y), _)| a.total_cmp(b).then(x.cmp(y)));
    for ((rtt, carrier), members) in by_line {
        let mut points: Vec<(f64, f64)> = grouped(members, |s| conditions(s).0)
            .into_iter()
            .filter_map(|(loss, runs)| {
                let rates = runs.iter().filter_map(|run| run.number("mbit_per_s"));
                Some((place(loss), median_rate(rates)?))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        lines.push(Line {
            name: format!("RTT {} ms, {carrier}", words(rtt)),
            pieces: vec![points],
            dots: true,
            dotted: false,
        });
    }
    if let Some(link) = group.first().and_then(|sample| sample.number("link_mbit")) {
        let ideal = losses
            .iter()
            .map(|loss| (place(*loss), link * (1.0 - loss)));
        lines.push(Line {
            name: "link × (1 − loss)".to_owned(),
            pieces: vec![ideal.collect()],
            dots: false,
            dotted: true,
        });
    }
    let points = lines.iter().flat_map(|line| line.pieces.iter().flatten());
    let scale = Scale::linear(points.map(|(_, y)| *y));
    Chart {
        title: "Throughput by loss and round trip".to_owned(),
        subtitle: title.to_owned(),
        x: Axis {
            name: "packets lost on purpose".to_owned(),
            scale: Scale::Names(
                losses
                    .iter()
                    .map(|loss| format!("{} %", words(100.0 * loss)))
                    .collect(),
            ),
        },
        y: Axis {
            name: "acknowledged values (Mbit/s)".to_owned(),
            scale,
        },
        lines,
        bands: Vec::new(),
    }
}

/// How long records took: of each cell the run in the middle, of each scenario the worst one, some to a drawing.
fn distributions(samples: &[Sample]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (_, group) in grouped(samples, |sample| (sample.kind, common(sample))) {
        let title = group.first().map(|sample| match sample.kind {
            Kind::Flow => common(sample),
            Kind::Gap => "before and during faults".to_owned(),
        });
        let mut lines = Vec::new();
        for sample in representatives(&group) {
            for curve in &sample.curves {
                if curve.points.is_empty() {
                    continue;
                }
                lines.push(Line {
                    name: match curve.name.is_empty() {
                        true => short_name(sample),
                        false => format!("{}: {}", short_name(sample), curve.name),
                    },
                    pieces: vec![curve.points.clone()],
                    dots: false,
                    dotted: false,
                });
            }
        }
        for some in lines.chunks(MAX_LINES) {
            charts.push(distribution_of(title.as_deref().unwrap_or(""), some));
        }
    }
    charts
}

/// The cell without what all of the drawing have in common.
fn short_name(sample: &Sample) -> String {
    let parts = sample.name.split(", ").filter(|part| {
        let is_common = part.starts_with("acks ")
            || part.starts_with("link ")
            || Some(*part) == sample.text("flush");
        sample.kind == Kind::Gap || !is_common
    });
    let name = parts.collect::<Vec<_>>().join(", ");
    if name.is_empty() {
        "all records".to_owned()
    } else {
        name
    }
}

fn distribution_of(title: &str, lines: &[Line]) -> Chart {
    let points = || lines.iter().flat_map(|line| line.pieces.iter().flatten());
    let most = points().map(|(_, share)| *share).fold(0.9, f64::max);
    Chart {
        title: "How long acknowledgements took".to_owned(),
        subtitle: title.to_owned(),
        x: Axis {
            name: "time to the acknowledgement (ms)".to_owned(),
            scale: Scale::log(points().map(|(ms, _)| *ms)),
        },
        y: Axis {
            name: "share of records that took no longer".to_owned(),
            scale: Scale::Nines { to: most },
        },
        lines: lines.to_vec(),
        bands: Vec::new(),
    }
}

/// Of each cell the run whose median is the one in the middle; of each scenario the one with the longest gap.
fn representatives<'a>(group: &[&'a Sample]) -> Vec<&'a Sample> {
    let mut chosen = Vec::new();
    for (_, mut runs) in grouped(group.iter().copied(), |sample| {
        (sample.name.clone(), sample.settings.clone())
    }) {
        let figure = |sample: &Sample| match sample.kind {
            Kind::Flow => sample.number("commit_p50_ms").unwrap_or(0.0),
            Kind::Gap => sample.number("longest_ack_gap_ms").unwrap_or(0.0),
        };
        runs.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
        chosen.extend(match runs.first().map(|run| run.kind) {
            Some(Kind::Gap) => runs.last(),
            _ => runs.get(runs.len() / 2),
        });
    }
    chosen
}

/// Acknowledgement times in the course of a run, with the fault marked where there is one.
fn courses(samples: &[Sample]) -> Vec<Chart> {
    let all: Vec<&Sample> = samples.iter().collect();
    let chosen = representatives(&all);
    let with_series = chosen
        .into_iter()
        .filter(|sample| sample.series.points().flatten().next().is_some());
    with_series.take(MAX_COURSES).map(course_of).collect()
}

fn course_of(sample: &Sample) -> Chart {
    let line = |name: &str, of: fn(&crate::bench::Point) -> f64| {
        let mut pieces = vec![Vec::new()];
        for point in sample.series.points() {
            match point {
                Some(point) => {
                    if let Some(piece) = pieces.last_mut() {
                        piece.push((point.at_s, of(&point)));
                    }
                }
                None if pieces.last().is_some_and(|piece| !piece.is_empty()) => {
                    pieces.push(Vec::new());
                }
                None => {}
            }
        }
        pieces.retain(|piece| !piece.is_empty());
        Line {
            name: name.to_owned(),
            pieces,
            dots: false,
            dotted: false,
        }
    };
    let lines = vec![
        line("longest of the step", |point| point.max_ms),
        line("mean of the step", |point| point.mean_ms),
    ];
    let figures = lines.iter().flat_map(|line| line.pieces.iter().flatten());
    let scale = Scale::log(figures.map(|(_, ms)| *ms));
    let end = sample.series.length_s();
    let mark = |name: &str| {
        let mark = sample.marks.iter().find(|mark| mark.name == name);
        mark.map(|mark| mark.at_s)
    };
    let band = mark("fault").map(|from| Band {
        name: "the fault".to_owned(),
        from,
        // Without a heal only its moment is known.
        to: mark("heal").unwrap_or(from).min(end),
    });
    Chart {
        title: "Acknowledgements in the course of time".to_owned(),
        subtitle: format!("{}, run {}", sample.name, sample.run),
        x: Axis {
            name: "time (s)".to_owned(),
            scale: Scale::Linear { to: end },
        },
        y: Axis {
            name: "time to the acknowledgement (ms)".to_owned(),
            scale,
        },
        lines,
        bands: band.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::sample::tests::sample;
    use super::super::sample::{Curve, Mark};
    use super::*;

    fn cell(loss: f64, rtt: f64, congestion: &str, run: u32, mbit: f64) -> Sample {
        let figures = json!({
            "bench": "replicate", "arm": "quic", "congestion": congestion, "loss": loss, "rtt_ms": rtt,
            "link_mbit": 100, "acks": "all", "mbit_per_s": mbit, "commit_p50_ms": mbit,
        });
        let name = format!("loss {loss}, delay {rtt}, {congestion}, acks all");
        let mut sample = sample(&name, run, figures);
        sample.curves.push(Curve {
            name: String::new(),
            points: vec![(1.0, 0.0), (mbit, 0.9)],
        });
        sample
            .series
            .record(Duration::from_millis(1), Duration::from_millis(3));
        sample
    }

    #[test]
    fn throughput_is_drawn_in_the_median_where_there_are_several_cells() {
        let mut samples = vec![cell(0.0, 20.0, "keel", 1, 90.0)];
        assert!(throughput(&samples).is_empty());
        samples.extend(
            [(1, 50.0), (2, 70.0), (3, 60.0)]
                .map(|(run, mbit)| cell(0.05, 20.0, "keel", run, mbit)),
        );
        let charts = throughput(&samples);
        assert_eq!(charts.len(), 1);
        let chart = &charts[0];
        assert_eq!(chart.lines.len(), 2);
        assert_eq!(chart.lines[0].name, "RTT 20 ms, quic keel");
        assert_eq!(chart.lines[0].pieces, [vec![(0.0, 90.0), (1.0, 60.0)]]);
        assert_eq!(chart.lines[1].pieces, [vec![(0.0, 100.0), (1.0, 95.0)]]);
        assert_eq!(
            chart.x.scale,
            Scale::Names(vec!["0 %".into(), "5 %".into()])
        );
    }

    #[test]
    fn many_lines_are_a_drawing_for_each_round_trip() {
        let mut samples = Vec::new();
        for rtt in [1.0, 20.0, 100.0, 200.0] {
            for congestion in ["keel", "bbr", "cubic"] {
                for loss in [0.0, 0.01] {
                    samples.push(cell(loss, rtt, congestion, 1, 50.0));
                }
            }
        }
        let charts = throughput(&samples);
        assert_eq!(charts.len(), 4);
        assert!(charts.iter().all(|chart| chart.lines.len() == 4));
        assert!(charts[3].subtitle.ends_with("RTT 200 ms"));
        let distributions = distributions(&samples);
        assert!(
            distributions
                .iter()
                .all(|chart| chart.lines.len() <= MAX_LINES)
        );
        assert_eq!(
            distributions
                .iter()
                .map(|chart| chart.lines.len())
                .sum::<usize>(),
            24
        );
        assert_eq!(courses(&samples).len(), 24);
    }

    #[test]
    fn the_run_in_the_middle_stands_for_its_cell_and_the_worst_for_its_scenario() {
        let mut runs: Vec<Sample> = [(1, 9.0), (2, 5.0), (3, 7.0)]
            .into_iter()
            .map(|(run, mbit)| cell(0.0, 0.0, "keel", run, mbit))
            .collect();
        let chosen = |runs: &[Sample]| representatives(&runs.iter().collect::<Vec<_>>())[0].run;
        assert_eq!(chosen(&runs), 3);
        for run in &mut runs {
            run.kind = Kind::Gap;
            run.figures["longest_ack_gap_ms"] = json!(run.number("mbit_per_s"));
        }
        assert_eq!(chosen(&runs), 1);
    }

    #[test]
    fn a_course_has_gaps_where_nothing_came_and_the_fault_is_marked() {
        let mut sample = sample("leader-kill", 2, json!({}));
        for ms in [10, 20, 900, 910] {
            sample
                .series
                .record(Duration::from_millis(ms), Duration::from_millis(ms));
        }
        sample.marks = vec![
            Mark {
                name: "fault".into(),
                at_s: 0.1,
            },
            Mark {
                name: "heal".into(),
                at_s: 0.5,
            },
        ];
        let chart = course_of(&sample);
        assert_eq!(chart.lines[0].pieces.len(), 2);
        assert_eq!((chart.bands[0].from, chart.bands[0].to), (0.1, 0.5));
        assert_eq!(chart.subtitle, "leader-kill, run 2");
        sample.marks.pop();
        // Without a heal only its moment is shown.
        assert_eq!(course_of(&sample).bands[0].to, 0.1);
    }
}
