//! Transcripts: files that say what should happen, held against what does.

use std::path::Path;

use similar::TextDiff;

/// What is wrong with the transcript `name` at `path`, as a unified diff with file and line: `None` where `happened` is what it
/// says. With `QUORATE_BLESS=1` what happened is written down as what should, unless `may_bless` is false.
pub fn difference(
    path: &Path,
    name: &str,
    expected: &str,
    happened: &str,
    may_bless: bool,
) -> Option<String> {
    if happened == expected {
        return None;
    }
    if may_bless && std::env::var_os("QUORATE_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(path, happened).unwrap();
        return None;
    }
    let same = expected
        .lines()
        .zip(happened.lines())
        .take_while(|(expected, happened)| expected == happened);
    let line = same.count() + 1;
    let diff = TextDiff::from_lines(expected, happened);
    let diff = diff
        .unified_diff()
        .context_radius(4)
        .header(&format!("{name} (expected)"), "what happened")
        .to_string();
    Some(format!(
        "{name}:{line}: something else happens than the transcript says. If that is as it should be, write it down with \
         QUORATE_BLESS=1 and read the difference.\n{diff}"
    ))
}
