//! Where a report lies. Runs are kept one by one, so that a matrix that was broken off goes on where it was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::drawings;
use super::page::page;
use super::sample::{Sample, file_name};

/// A file of a run is read up to this size; they have some 100 KiB.
const MAX_RUN_BYTES: u64 = 16 << 20;
/// As many runs as are read.
const MAX_RUNS: usize = 100_000;

#[derive(Clone, Debug)]
pub struct ReportFolder {
    path: PathBuf,
}

impl ReportFolder {
    /// Makes the folder, if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or not be written to: told before anything is measured.
    pub fn open(path: &Path) -> io::Result<ReportFolder> {
        let folder = ReportFolder {
            path: std::path::absolute(path)?,
        };
        fs::create_dir_all(folder.runs())?;
        let probe = folder.path.join(".probe");
        fs::write(&probe, "")?;
        fs::remove_file(&probe)?;
        Ok(folder)
    }

    pub fn page(&self) -> PathBuf {
        self.path.join("report.html")
    }

    fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// A run of this name with these settings, if it is there and can be read.
    pub fn known(&self, name: &str, settings: &str, run: u32) -> Option<Sample> {
        let file = format!("{}.json", file_name(name, settings, run));
        let sample = read(&self.runs().join(file)).ok()?;
        (sample.settings == settings && sample.run == run).then_some(sample)
    }

    /// Keeps a run.
    pub fn keep(&self, sample: &Sample) -> io::Result<()> {
        let text = serde_json::to_string(sample)?;
        write(&self.runs(), &format!("{}.json", sample.file_name()), &text)
    }

    /// Writes the page and the drawings, of all runs that are kept. Returns how many files could not be read as runs.
    pub fn write_page(&self) -> io::Result<usize> {
        let (mut samples, mut unreadable) = (Vec::new(), 0);
        for entry in fs::read_dir(self.runs())? {
            let path = entry?.path();
            if path.extension().is_none_or(|end| end != "json") || samples.len() >= MAX_RUNS {
                continue;
            }
            match read(&path) {
                Ok(sample) => samples.push(sample),
                Err(_) => unreadable += 1,
            }
        }
        samples.sort_by(|a, b| {
            let key = |s: &Sample| (s.ended, s.name.clone(), s.run);
            key(a).cmp(&key(b))
        });
        let drawings = drawings::all(&samples);
        for drawing in &drawings {
            write(&self.path, &format!("{}.svg", drawing.file), &drawing.svg)?;
        }
        write(&self.path, "report.html", &page(&samples, &drawings))?;
        Ok(unreadable)
    }
}

fn read(path: &Path) -> io::Result<Sample> {
    if fs::metadata(path)?.len() > MAX_RUN_BYTES {
        return Err(io::Error::other("too large"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Whoever reads it while it is written gets the old one or the new one.
fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let new = dir.join(format!(".{name}.new"));
    fs::write(&new, text)?;
    fs::rename(&new, dir.join(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::sample::tests::sample;
    use super::*;

    #[test]
    fn what_is_kept_is_known_again_and_only_with_the_same_settings() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ReportFolder::open(&dir.path().join("new")).unwrap();
        let sample = sample("loss 1%", 2, json!({"mbit_per_s": 5.0}));
        assert_eq!(folder.known("loss 1%", "abc", 2), None);
        folder.keep(&sample).unwrap();
        assert_eq!(folder.known("loss 1%", "abc", 2), Some(sample.clone()));
        for (name, settings, run) in [
            ("loss 2%", "abc", 2),
            ("loss 1%", "abd", 2),
            ("loss 1%", "abc", 1),
        ] {
            assert_eq!(folder.known(name, settings, run), None);
        }
        // A file that is no run keeps nobody from the others.
        fs::write(folder.runs().join("x.json"), "{").unwrap();
        assert_eq!(folder.write_page().unwrap(), 1);
        let page = fs::read_to_string(folder.page()).unwrap();
        assert!(page.contains("loss 1%"), "{page}");
    }

    #[test]
    fn a_folder_that_cannot_be_had_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(ReportFolder::open(&file).is_err());
    }
}
