//! Libraries that are loaded into a node before any other, and stand between it and the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes a library `name` of C in `dir`. `None` where there is no compiler.
pub fn library(dir: &Path, name: &str, text: &str) -> Option<PathBuf> {
    let source = dir.join(format!("{name}.c"));
    let library = dir.join(format!("{name}.so"));
    fs::write(&source, text).unwrap();
    let made = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .output();
    let output = made.ok()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(library)
}

/// What a node's environment has for the library to be loaded into it.
pub fn variable(library: &Path) -> (String, String) {
    ("LD_PRELOAD".to_owned(), library.display().to_string())
}
