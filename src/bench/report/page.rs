//! The page: one file that needs no other.

use std::fmt::Write;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::chart::escaped;
use super::drawings::Drawing;
use super::sample::{Kind, Sample};
use super::scale::words;
use crate::bench::flow::{median, median_rate};

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1f2328;--dim:#57606a;--bg:#fff;--line:#d8dee4;--bad:#a40e26;--head:#f6f8fa}\
@media(prefers-color-scheme:dark){:root{--fg:#e6edf3;--dim:#9198a1;--bg:#0d1117;--line:#30363d;--bad:#ffa198;--head:#161b22}}\
body{margin:2rem auto;padding:0 1rem;max-width:88rem;color:var(--fg);background:var(--bg);\
font:15px/1.5 system-ui,'Segoe UI',Helvetica,Arial,sans-serif}\
h1{font-size:1.6rem;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}\
p.dim,figcaption,caption{color:var(--dim)}caption{text-align:left;padding-bottom:.3rem}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .6rem;border:1px solid var(--line);text-align:right;white-space:nowrap}\
th{background:var(--head);font-weight:600}td:first-child,th:first-child{text-align:left}\
table.facts td{text-align:left;white-space:normal}\
.bad{color:var(--bad);font-weight:600}.drawings{display:grid;gap:1.2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,36rem),1fr))}\
figure{margin:0}figure svg{display:block;width:100%;max-width:60rem;height:auto;border:1px solid var(--line)}";

/// What a column shows of a run.
struct Column {
    head: &'static str,
    field: &'static str,
    /// What the figure is multiplied by, and what stands behind it.
    factor: f64,
    unit: &'static str,
}

const fn column(head: &'static str, field: &'static str) -> Column {
    Column {
        head,
        field,
        factor: 1.0,
        unit: "",
    }
}

const fn percent(head: &'static str, field: &'static str) -> Column {
    Column {
        head,
        field,
        factor: 100.0,
        unit: " %",
    }
}

const FLOW: [Column; 15] = [
    column("records/s", "records_per_s"),
    column("Mbit/s of values", "mbit_per_s"),
    column("Mbit/s of a link", "link_mbit_per_s"),
    column("commit p50 (ms)", "commit_p50_ms"),
    column("p99", "commit_p99_ms"),
    column("p99.9", "commit_p999_ms"),
    column("due and not sent", "missed"),
    column("end to end p50 (ms)", "e2e_p50_ms"),
    column("p99", "e2e_p99_ms"),
    percent("self-made loss", "self_loss"),
    percent("loss on purpose", "random_loss"),
    column("RTT seen (ms)", "rtt_seen_ms"),
    column("CPU (ms/MiB)", "cpu_ms_per_mib"),
    column("RSS (MiB)", "rss_mib"),
    column("one record at acks=all (ms)", "single_acks_all_ms"),
];

const GAP: [Column; 10] = [
    column("longest gap (ms)", "longest_ack_gap_ms"),
    column("gap before", "longest_ack_gap_before_ms"),
    column("p50 before (ms)", "p50_before_ms"),
    column("p99 before", "p99_before_ms"),
    column("p99 during", "p99_during_ms"),
    column("first ack after the heal (ms)", "first_ack_after_heal_ms"),
    column("in sync again (ms)", "isr_back_ms"),
    column("elections", "elections"),
    column("ISR changes", "isr_changes"),
    column("handshakes", "handshakes"),
];

/// Settings, which are the same for all runs of a table, or are told as several.
const SETTINGS: [(&str, &str); 21] = [
    ("benchmark", "bench"),
    ("carried by", "arm"),
    ("congestion controller", "congestion"),
    ("nodes", "nodes"),
    ("replicas", "rf"),
    ("min.insync.replicas", "min_insync_replicas"),
    ("partitions", "partitions"),
    ("acks", "acks"),
    ("flush", "flush"),
    ("compression", "compression"),
    ("linger (ms)", "linger_ms"),
    ("producers", "producers"),
    ("record size (bytes)", "record_size"),
    ("records in flight", "in_flight"),
    ("rate asked for (records/s)", "rate"),
    ("warm-up (ms)", "warmup_ms"),
    ("added to a round trip (ms)", "rtt_ms"),
    ("link rate (Mbit/s)", "link_mbit"),
    ("queue (packets)", "queue"),
    ("version", "version"),
    ("commit", "commit"),
];

pub(super) fn page(samples: &[Sample], drawings: &[Drawing]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>Quorate: what was measured</title><style>{STYLE}</style></head>\
         <body><h1>Quorate: what was measured</h1>"
    );
    let last = samples.iter().map(|sample| sample.ended).max();
    let date = last
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok());
    add(
        &mut html,
        format_args!(
            "<p class=\"dim\">{} runs, the last one ended {}</p>",
            samples.len(),
            date.as_deref().unwrap_or("at an unknown time")
        ),
    );
    warnings(&mut html, samples);
    for (kind, title, columns) in [
        (Kind::Flow, "Throughput and times", &FLOW[..]),
        (Kind::Gap, "What failures cost", &GAP[..]),
    ] {
        let of_it: Vec<&Sample> = samples
            .iter()
            .filter(|sample| sample.kind == kind)
            .collect();
        if !of_it.is_empty() {
            add(&mut html, format_args!("<h2>{title}</h2>"));
            summary(&mut html, &of_it, columns);
        }
    }
    if !drawings.is_empty() {
        html.push_str("<h2>Drawings</h2>");
    }
    html.push_str("<div class=\"drawings\">");
    for drawing in drawings {
        add(
            &mut html,
            format_args!(
                "<figure>{}<figcaption>{}.svg</figcaption></figure>",
                drawing.svg, drawing.file
            ),
        );
    }
    html.push_str("</div><h2>Settings and machine</h2>");
    settings(&mut html, samples);
    for (kind, columns) in [(Kind::Flow, &FLOW[..]), (Kind::Gap, &GAP[..])] {
        let of_it: Vec<&Sample> = samples
            .iter()
            .filter(|sample| sample.kind == kind)
            .collect();
        if !of_it.is_empty() {
            html.push_str("<h2>Every run</h2>");
            runs(&mut html, &of_it, columns);
        }
    }
    html.push_str("</body></html>\n");
    html
}

fn warnings(html: &mut String, samples: &[Sample]) {
    let mut warn = |text: &str| add(html, format_args!("<p class=\"bad\">{}</p>", escaped(text)));
    if samples
        .iter()
        .any(|sample| sample.text("build") == Some("debug"))
    {
        warn("Of a debug build: these figures say nothing of how fast it is.");
    }
    for sample in samples {
        let of = |field: &str| sample.number(field).unwrap_or(0.0);
        let what = format!("{}, run {}", sample.name, sample.run);
        if let Some(flag) = sample.text("red_flag") {
            warn(&format!("RED FLAG: {what}: {flag}"));
        }
        if let Some(flag) = sample.text("rate_flag") {
            warn(&format!("FLAG: {what}: {flag}"));
        }
        let (lost, doubled) = (of("lost"), of("duplicated"));
        if lost + doubled + of("unacknowledged") > 0.0 {
            warn(&format!(
                "{what}: {lost} records lost, {doubled} doubled, {} not acknowledged",
                of("unacknowledged")
            ));
        }
        if sample.figures.get("replicas_agree") == Some(&Value::Bool(false)) {
            warn(&format!("{what}: the replicas differ"));
        }
        if of("emulator_drops") > 0.0 {
            warn(&format!(
                "{what}: the emulated links dropped packets that they could not hold"
            ));
        }
    }
}

/// A line for each cell or scenario, in the median of its runs.
fn summary(html: &mut String, samples: &[&Sample], columns: &[Column]) {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for sample in samples {
        let its = (sample.name.as_str(), sample.settings.as_str());
        if !names.contains(&its) {
            names.push(its);
        }
    }
    let columns = known(samples, columns);
    html.push_str("<div class=\"wide\"><table><caption>The median of the runs of each.</caption><tr><th></th><th>runs</th>");
    heads(html, &columns);
    html.push_str("</tr>");
    for (name, settings) in names {
        let runs: Vec<&&Sample> = samples
            .iter()
            .filter(|sample| (sample.name.as_str(), sample.settings.as_str()) == (name, settings))
            .collect();
        add(
            html,
            format_args!("<tr><td>{}</td><td>{}</td>", escaped(name), runs.len()),
        );
        for column in &columns {
            let figures = runs.iter().filter_map(|run| run.number(column.field));
            let middle = match column.field {
                "records_per_s" | "mbit_per_s" | "link_mbit_per_s" => median_rate(figures),
                _ => median(figures),
            };
            cell(html, column, middle);
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>");
}

fn runs(html: &mut String, samples: &[&Sample], columns: &[Column]) {
    let columns = known(samples, columns);
    html.push_str("<details><summary>A line for each</summary><div class=\"wide\"><table><tr><th></th><th>run</th><th>seed</th>");
    heads(html, &columns);
    html.push_str("</tr>");
    for sample in samples {
        add(
            html,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td>",
                escaped(&sample.name),
                sample.run,
                sample.number("seed").map_or_else(|| "–".to_owned(), words)
            ),
        );
        for column in &columns {
            cell(html, column, sample.number(column.field));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div></details>");
}

/// The columns of which something is known.
fn known<'a>(samples: &[&Sample], columns: &'a [Column]) -> Vec<&'a Column> {
    let columns = columns.iter();
    columns
        .filter(|column| {
            samples
                .iter()
                .any(|sample| sample.number(column.field).is_some())
        })
        .collect()
}

fn heads(html: &mut String, columns: &[&Column]) {
    for column in columns {
        add(html, format_args!("<th>{}</th>", escaped(column.head)));
    }
}

fn cell(html: &mut String, column: &Column, figure: Option<f64>) {
    match figure {
        Some(figure) => add(
            html,
            format_args!("<td>{}{}</td>", words(figure * column.factor), column.unit),
        ),
        None => html.push_str("<td>–</td>"),
    }
}

fn settings(html: &mut String, samples: &[Sample]) {
    html.push_str("<div class=\"wide\"><table class=\"facts\">");
    let mut fact = |name: &str, values: Vec<String>| {
        let mut different: Vec<String> = Vec::new();
        for value in values {
            if !different.contains(&value) {
                different.push(value);
            }
        }
        if !different.is_empty() {
            add(
                html,
                format_args!(
                    "<tr><th>{}</th><td>{}</td></tr>",
                    escaped(name),
                    escaped(&different.join("; "))
                ),
            );
        }
    };
    fact(
        "machine",
        samples
            .iter()
            .map(|sample| sample.machine.words())
            .collect(),
    );
    for (name, field) in SETTINGS {
        let values = samples
            .iter()
            .filter_map(|sample| match sample.figures.get(field)? {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => number.as_f64().map(words),
                other => Some(other.to_string()),
            });
        fact(name, values.collect());
    }
    fact(
        "loss",
        samples
            .iter()
            .filter_map(|sample| Some(format!("{} %", words(100.0 * sample.number("loss")?))))
            .collect(),
    );
    html.push_str("</table></div>");
}

fn add(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::sample::tests::sample;
    use super::*;

    #[test]
    fn a_page_tells_medians_settings_and_what_is_wrong() {
        let run = |run, mbit: f64, flag: Option<&str>| {
            sample(
                "loss 1% <b>",
                run,
                json!({"bench": "replicate", "mbit_per_s": mbit, "self_loss": 0.015, "acks": "all", "build": "debug",
                       "red_flag": flag, "rate_flag": flag.map(|_| "cut off"), "lost": run - 1, "rss_mib": null, "missed": 7}),
            )
        };
        let samples = [
            run(1, 3.0, None),
            run(2, 9.0, Some("too fast")),
            run(3, 5.0, None),
        ];
        let drawing = Drawing {
            file: "throughput-1".to_owned(),
            svg: "<svg></svg>".to_owned(),
        };
        let page = page(&samples, &[drawing]);
        for words in [
            "loss 1% &lt;b&gt;",
            "<td>3</td><td>5</td><td>7</td><td>1.5 %</td>",
            "debug build",
            "RED FLAG: loss 1% &lt;b&gt;, run 2: too fast",
            "FLAG: loss 1% &lt;b&gt;, run 2: cut off",
            "<th>due and not sent</th>",
            "2 records lost",
            "<svg></svg>",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
        assert!(!page.contains("RSS"), "nothing is known of it");
        // It needs nothing from elsewhere.
        for outside in ["http://", "https://", "src=", "href="] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
