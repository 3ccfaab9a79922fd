//! The file that changes what links suffer while a process runs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::links::ImpairedLinks;
use super::spec::{ImpairmentSpec, MAX_TEXT};

/// How often the file is looked at: a change holds about so much later.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// From now on `links` suffer what the file at `path` says, whenever there is one, and else what they suffer now. A file that
/// cannot be understood changes nothing; the log says what is wrong with it. Looks at it once before it returns.
///
/// Write the file beside its place and rename it: half a spec may mean something else than a whole one.
pub fn watch_impairment(path: &Path, links: &Arc<ImpairedLinks>) -> io::Result<()> {
    let mut file = WatchedRules::new(path.to_owned(), links.spec());
    apply(&mut file, links);
    let links = Arc::downgrade(links);
    thread::Builder::new()
        .name("impair".to_owned())
        .spawn(move || watch(file, &links))?;
    Ok(())
}

/// Ends with the last who uses the links.
fn watch(mut file: WatchedRules, links: &Weak<ImpairedLinks>) {
    loop {
        thread::sleep(LOOK_EVERY);
        let Some(links) = links.upgrade() else {
            return;
        };
        apply(&mut file, &links);
    }
}

fn apply(file: &mut WatchedRules, links: &ImpairedLinks) {
    if let Some(spec) = file.look() {
        links.set(spec);
    }
}

/// A file of rules, and what holds without it.
#[derive(Debug)]
pub struct WatchedRules {
    path: PathBuf,
    without_it: ImpairmentSpec,
    /// What holds now.
    spec: ImpairmentSpec,
    seen: Option<Stamp>,
}

/// What tells one version of a file from another.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl WatchedRules {
    /// Until it is looked at, `without_it` holds.
    pub fn new(path: PathBuf, without_it: ImpairmentSpec) -> WatchedRules {
        WatchedRules {
            path,
            spec: without_it.clone(),
            without_it,
            seen: None,
        }
    }

    /// What holds from now on, if the file is another one than at the last look. One that cannot be understood changes nothing.
    pub fn look(&mut self) -> Option<ImpairmentSpec> {
        let stamp = fs::metadata(&self.path).ok().map(|file| Stamp {
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        });
        if stamp == self.seen {
            return None;
        }
        let is_there = stamp.is_some();
        self.seen = stamp;
        let spec = match is_there {
            true => self.read(),
            false => Ok(self.without_it.clone()),
        };
        let file = self.path.display();
        match spec {
            Ok(spec) => {
                tracing::warn!(%file, %spec, is_there, "links are impaired on purpose, and otherwise than before");
                self.spec = spec.clone();
                Some(spec)
            }
            Err(cause) => {
                let spec = &self.spec;
                tracing::error!(%file, cause, %spec, "links stay impaired as they were: the file cannot be used");
                None
            }
        }
    }

    fn read(&self) -> Result<ImpairmentSpec, String> {
        let mut text = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(MAX_TEXT as u64 + 1).read_to_end(&mut text))
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8(text).map_err(|_| "it is not UTF-8 text".to_owned())?;
        text.parse().map_err(|error| format!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        file: WatchedRules,
        links: Arc<ImpairedLinks>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let links = ImpairedLinks::new(None, "loss=1%".parse().unwrap());
            Fixture {
                file: WatchedRules::new(dir.path().join("impair"), links.spec()),
                dir,
                links,
            }
        }

        /// What is in force after the file was replaced by `text`.
        fn after(&mut self, text: &[u8]) -> String {
            let beside = self.dir.path().join("impair.new");
            fs::write(&beside, text).unwrap();
            fs::rename(beside, &self.file.path).unwrap();
            apply(&mut self.file, &self.links);
            self.links.spec().to_string()
        }
    }

    #[tokio::test]
    async fn the_file_holds_while_it_is_there_and_the_flag_without_it() {
        let mut fixture = Fixture::new();
        apply(&mut fixture.file, &fixture.links);
        assert_eq!(fixture.links.spec().to_string(), "loss=1%");
        assert_eq!(fixture.after(b"peer=2,cut=both\n"), "peer=2,cut=both");
        // Of the same length, in the same moment.
        assert_eq!(fixture.after(b"peer=3,cut=both\n"), "peer=3,cut=both");
        assert_eq!(fixture.after(b""), "");
        fs::remove_file(&fixture.file.path).unwrap();
        apply(&mut fixture.file, &fixture.links);
        assert_eq!(fixture.links.spec().to_string(), "loss=1%");
    }

    #[tokio::test]
    async fn what_cannot_be_understood_changes_nothing() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.after(b"loss=2%"), "loss=2%");
        for bad in [&b"loss=200%"[..], b"\xff", &[b';'; MAX_TEXT + 1]] {
            assert_eq!(fixture.after(bad), "loss=2%");
        }
        assert_eq!(fixture.after(b"loss=3%"), "loss=3%");
    }

    #[tokio::test]
    async fn a_file_that_is_there_at_the_start_holds_at_once_and_the_thread_ends_with_the_links() {
        let mut fixture = Fixture::new();
        fixture.after(b"loss=7%");
        let links = ImpairedLinks::new(None, ImpairmentSpec::default());
        watch_impairment(&fixture.file.path, &links).unwrap();
        assert_eq!(links.spec().to_string(), "loss=7%");
        let gone = Arc::downgrade(&links);
        drop(links);
        // Until the thread has looked for the last time.
        while gone.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
