//! Prometheus' text format, version 0.0.4: families of samples, each family with its HELP and TYPE lines once.

use std::fmt::{Display, Write};

use crate::types::{BUCKET_ENDS_US, DurationCounts};

/// What to say of the format in an HTTP response.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// May go up and down.
    Gauge,
    /// Never goes down while the process runs. Its name ends with `_total`.
    Counter,
}

/// A label's name and value.
pub(super) type Label<'a> = (&'a str, &'a dyn Display);

/// The text, as far as it is written.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
}

impl Exposition {
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// One sample that has no labels.
    pub(super) fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help, [([], value)]);
    }

    /// A family of samples. Nothing is written of one that is empty.
    pub(super) fn family<'a, const LABELS: usize, V: Display>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = ([Label<'a>; LABELS], V)>,
    ) {
        let mut begun = false;
        for (labels, value) in samples {
            if !std::mem::replace(&mut begun, true) {
                let kind = match kind {
                    Kind::Gauge => "gauge",
                    Kind::Counter => "counter",
                };
                self.head(name, kind, help);
            }
            self.sample(name, &labels, value);
        }
    }

    /// Histograms of durations, in seconds.
    pub(super) fn histograms<'a, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = ([Label<'a>; LABELS], DurationCounts)>,
    ) {
        self.head(name, "histogram", help);
        for (labels, counts) in histograms {
            let bucket = format!("{name}_bucket");
            for (end_us, at_most) in BUCKET_ENDS_US.iter().zip(counts.at_most) {
                let end = *end_us as f64 / 1e6;
                let mut labels = labels.to_vec();
                labels.push(("le", &end));
                self.sample(&bucket, &labels, at_most);
            }
            let mut all = labels.to_vec();
            all.push(("le", &"+Inf"));
            self.sample(&bucket, &all, counts.count);
            self.sample(&format!("{name}_sum"), &labels, counts.sum.as_secs_f64());
            self.sample(&format!("{name}_count"), &labels, counts.count);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        self.text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"");
            for character in value.to_string().chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::DurationHistogram;

    #[test]
    fn a_family_has_its_head_once_and_an_empty_one_has_none() {
        let mut exposition = Exposition::default();
        let samples = [([("peer", &2 as &dyn Display)], 0.5), ([("peer", &3)], 1.0)];
        exposition.family("a_seconds", Kind::Gauge, "How long.", samples);
        let none: [([Label<'_>; 0], u64); 0] = [];
        exposition.family("b_total", Kind::Counter, "Never.", none);
        exposition.single("c_total", Kind::Counter, "Once.", 7);
        assert_eq!(
            exposition.into_text(),
            "# HELP a_seconds How long.\n# TYPE a_seconds gauge\na_seconds{peer=\"2\"} 0.5\na_seconds{peer=\"3\"} 1\n\
             # HELP c_total Once.\n# TYPE c_total counter\nc_total 7\n"
        );
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut exposition = Exposition::default();
        let label: Label<'_> = ("x", &"a\"b\\c\nd");
        exposition.family("m", Kind::Gauge, "h", [([label], 1)]);
        let text = exposition.into_text();
        assert!(text.ends_with("m{x=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
    }

    #[test]
    fn a_histogram_counts_upwards_and_ends_with_all() {
        let histogram = DurationHistogram::default();
        histogram.record(Duration::from_micros(200));
        histogram.record(Duration::from_secs(60));
        let mut exposition = Exposition::default();
        exposition.histograms("d_seconds", "h", [([], histogram.counts())]);
        let text = exposition.into_text();
        for line in [
            "d_seconds_bucket{le=\"0.0001\"} 0",
            "d_seconds_bucket{le=\"0.00025\"} 1",
            "d_seconds_bucket{le=\"10\"} 1",
            "d_seconds_bucket{le=\"+Inf\"} 2",
            "d_seconds_sum 60.0002",
            "d_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
