//! What one run gave, as a report keeps it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Machine;
use crate::bench::Series;

/// Which command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Flow,
    Gap,
}

/// A distribution of times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub name: String,
    /// Times in ms with the share of all that took no longer.
    pub points: Vec<(f64, f64)>,
}

/// A moment of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    pub name: String,
    /// Since the series began, in s.
    pub at_s: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub kind: Kind,
    /// Of the settings; see [`fingerprint`].
    pub settings: String,
    /// The cell or the scenario.
    pub name: String,
    /// From 1.
    pub run: u32,
    /// As the command prints them.
    pub figures: Value,
    pub curves: Vec<Curve>,
    /// Times to the acknowledgement, by when it came.
    pub series: Series,
    /// Of the series.
    pub marks: Vec<Mark>,
    pub machine: Machine,
    /// When the run ended, in seconds since 1970.
    pub ended: i64,
}

impl Sample {
    pub(super) fn number(&self, field: &str) -> Option<f64> {
        self.figures.get(field)?.as_f64()
    }

    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.figures.get(field)?.as_str()
    }

    /// The name of its file, without what ends it.
    pub(super) fn file_name(&self) -> String {
        file_name(&self.name, &self.settings, self.run)
    }
}

pub(super) fn file_name(name: &str, settings: &str, run: u32) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        let fits = letter.is_ascii_alphanumeric() || letter == '.' || letter == '%';
        match letter {
            '%' => words.push('p'),
            _ if fits => words.push(letter),
            _ if words.ends_with('-') => {}
            _ => words.push('-'),
        }
    }
    // Long names differ in their fingerprints.
    let words: String = words.trim_matches('-').chars().take(80).collect();
    format!("{words}-{settings}-{run}")
}

/// A short text that is another one for other settings.
pub fn fingerprint(settings: &Value) -> String {
    let hash = blake3::hash(settings.to_string().as_bytes());
    hash.to_hex().chars().take(10).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench::report) fn sample(name: &str, run: u32, figures: Value) -> Sample {
        Sample {
            kind: Kind::Flow,
            settings: "abc".to_owned(),
            name: name.to_owned(),
            run,
            figures,
            curves: Vec::new(),
            series: Series::default(),
            marks: Vec::new(),
            machine: Machine::default(),
            ended: 0,
        }
    }

    #[test]
    fn files_have_names_that_every_system_takes() {
        let name = file_name("loss 0.1%, delay 20ms, acks all", "f00", 3);
        assert_eq!(name, "loss-0.1p-delay-20ms-acks-all-f00-3");
        assert_eq!(file_name("../../x", "f", 1), "..-..-x-f-1");
        assert!(file_name(&"x".repeat(1000), "f", 1).len() < 100);
    }

    #[test]
    fn other_settings_have_another_fingerprint() {
        let of = |text: &str| fingerprint(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"a":1,"b":2}"#), of(r#"{"b":2,"a":1}"#));
        assert_ne!(of(r#"{"a":1}"#), of(r#"{"a":2}"#));
        assert_eq!(of("{}").len(), 10);
    }
}
