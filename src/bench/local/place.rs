//! Where the folders of several clusters lie, one after the other.

use std::io;
use std::path::{Path, PathBuf};

use super::LocalError;
use crate::transport::shell_word;

/// The folder that holds the runs' folders. Dropped, it goes again where it was made here; one in which something was kept cannot be
/// removed, and that is as it should be.
pub struct Place {
    path: PathBuf,
    /// It is to go again, where nothing was kept in it.
    made_here: bool,
}

impl Place {
    /// `dir` where it is said, which must be new or empty, else a temporary place with `name` in its name.
    pub fn open(name: &str, dir: Option<&Path>, keep: bool) -> Result<Place, LocalError> {
        let failed = |path: &Path| {
            let what = format!("cannot use the folder {}", path.display());
            move |source| LocalError::Io { what, source }
        };
        let Some(dir) = dir else {
            let name = format!("quorate-{name}-{:08x}", rand::random::<u32>());
            let path = std::env::temp_dir().join(name);
            make_private(&path).map_err(failed(&path))?;
            return Ok(Place {
                path,
                made_here: !keep,
            });
        };
        let path = std::path::absolute(dir).map_err(failed(dir))?;
        let existed = path.exists();
        if !existed {
            make_private(&path).map_err(failed(&path))?;
        }
        let mut entries = std::fs::read_dir(&path).map_err(failed(&path))?;
        if entries.next().is_some() {
            return Err(LocalError::Usage(format!(
                "{} is not empty: choose a new or empty --dir",
                path.display()
            )));
        }
        Ok(Place {
            path,
            made_here: !existed && !keep,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.made_here && std::fs::remove_dir(&self.path).is_err() {
            tracing::debug!(path = %shell_word(&self.path), "not empty; stays");
        }
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_not_made_here_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        drop(Place::open("x", Some(dir.path()), false).unwrap());
        assert!(dir.path().exists());
        let new = dir.path().join("new");
        drop(Place::open("x", Some(&new), false).unwrap());
        assert!(!new.exists());
        let place = Place::open("x", Some(&new), false).unwrap();
        std::fs::create_dir(place.path().join("leader-kill-1")).unwrap();
        drop(place);
        assert!(new.exists(), "a run was kept in it");
        let error = Place::open("x", Some(&new), false)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("not empty"), "{error}");
    }
}
