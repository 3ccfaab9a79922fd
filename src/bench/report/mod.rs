//! Pages and drawings for people.
//!
//! ```text
//! DIR/report.html      everything in one file, drawings included
//! DIR/*.svg            the drawings
//! DIR/runs/*.json      what each run gave; runs that are here are not run again
//! ```
//!
//! - [`folder`]: that folder; [`sample`]: what is in its files
//! - [`scale`], [`chart`]: a drawing; [`drawings`]: which ones there are
//! - [`page`]: the page; [`machine`]: what it was measured on

mod chart;
mod drawings;
mod folder;
mod machine;
mod page;
mod sample;
mod scale;

pub use folder::ReportFolder;
pub use machine::Machine;
pub use sample::{Curve, Kind, Mark, Sample, fingerprint};
