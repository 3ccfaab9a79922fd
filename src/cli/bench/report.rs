//! The folder that `--report` names.

use std::path::Path;

use anyhow::Context;

use super::super::note;
use crate::bench::report::ReportFolder;
use crate::transport::shell_word;

pub(super) struct Report {
    pub(super) folder: ReportFolder,
}

impl Report {
    /// Before anything is measured: what cannot be written is said at once.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Report> {
        let folder = ReportFolder::open(dir).with_context(|| {
            format!(
                "cannot write to {}: name another folder with --report",
                shell_word(dir)
            )
        })?;
        Ok(Report { folder })
    }

    /// Of everything that the folder has, and says where it is.
    pub(super) fn write_page(&self) -> anyhow::Result<()> {
        let page = self.folder.page();
        let unreadable = self
            .folder
            .write_page()
            .with_context(|| format!("cannot write {}", shell_word(&page)))?;
        if unreadable > 0 {
            note(&format!(
                "{unreadable} files beside it are no runs of this program, and are not in it"
            ));
        }
        note(&format!("The report is {}", shell_word(&page)));
        Ok(())
    }
}
