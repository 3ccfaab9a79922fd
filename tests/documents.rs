//! What the documents say of the repository is so.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

const MISTAKES: usize = 28;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files that make up a room or a test: `name.rs` and what is in the directory `name`.
fn files_of(room: &str) -> Vec<PathBuf> {
    let base = match room.strip_prefix("tests/") {
        Some(test) => root().join("tests").join(test),
        None => root().join("src").join(room),
    };
    let mut files = vec![base.with_extension("rs")];
    if let Ok(entries) = fs::read_dir(&base) {
        files.extend(entries.map(|entry| entry.unwrap().path()));
    }
    files.retain(|file| file.is_file());
    files
}

/// The tests that a line names, each as (where, name).
fn tests_named_in(line: &str) -> Vec<(&str, &str)> {
    let code = line.split('`').skip(1).step_by(2);
    code.filter_map(|code| code.split_once(": ")).collect()
}

/// A transcript is a test of its file's name.
fn has_transcript(room: &str, name: &str) -> bool {
    room == "tests/replication" && root().join(room).join(name).with_extension("txt").is_file()
}

fn has_test(room: &str, name: &str) -> bool {
    has_transcript(room, name)
        || files_of(room).iter().any(|file| {
            let text = fs::read_to_string(file).unwrap();
            // Or by a macro, whose arguments are the names.
            text.contains(&format!("fn {name}(")) || text.contains(&format!("\n    {name},\n"))
        })
}

#[test]
fn every_mistake_has_its_tests_and_they_are_there() {
    let table = fs::read_to_string(root().join("docs/regressions.md")).unwrap();
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
        .collect();
    assert_eq!(rows.len(), MISTAKES);
    for (index, row) in rows.iter().enumerate() {
        assert!(row.starts_with(&format!("| {} |", index + 1)), "{row}");
        let tests = tests_named_in(row);
        assert!(!tests.is_empty(), "no test: {row}");
        for (room, name) in tests {
            assert!(has_test(room, name), "{}: no {name} in {room}", index + 1);
        }
    }
}

#[test]
fn every_test_that_is_named_is_there() {
    let told = fs::read_to_string(root().join("docs/regressions.md")).unwrap();
    let rows = told.lines().filter(|line| line.starts_with("| "));
    let named: Vec<_> = rows.flat_map(tests_named_in).collect();
    assert!(named.len() > MISTAKES);
    for (room, name) in named {
        assert!(has_test(room, name), "no {name} in {room}");
    }
}

#[test]
fn every_transcript_is_told_of() {
    let told = fs::read_to_string(root().join("docs/regressions.md")).unwrap();
    for entry in fs::read_dir(root().join("tests/replication")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let name = path.file_name().unwrap().to_str().unwrap();
            let link = format!("(../tests/replication/{name})");
            assert!(told.contains(&link), "docs/regressions.md has no {link}");
        }
    }
}

#[test]
fn every_fuzz_target_is_told_of_and_is_there() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let mut targets: Vec<String> = fs::read_dir(root().join("fuzz/fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_owned())
        .map(|name| name.into_string().unwrap())
        .collect();
    targets.sort();
    assert!(!targets.is_empty());
    let what_each_takes = read("fuzz/README.md");
    let mut told: Vec<&str> = what_each_takes
        .lines()
        .skip_while(|line| !line.starts_with("| target | what it takes |"))
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    told.sort_unstable();
    assert_eq!(told, targets, "fuzz/README.md");
    let testing = read("docs/testing.md");
    let (_, fuzzing) = testing.split_once("\n## Fuzzing\n").unwrap();
    for name in &targets {
        for (file, text, words) in [
            ("docs/testing.md", fuzzing, format!("`{name}`")),
            (
                "fuzz/Cargo.toml",
                &read("fuzz/Cargo.toml"),
                format!("name = \"{name}\""),
            ),
        ] {
            assert!(text.contains(&words), "{file} has no {words}");
        }
    }
}

#[test]
fn a_test_that_is_not_there_is_missed() {
    assert!(has_test(
        "tests/documents",
        "a_test_that_is_not_there_is_missed"
    ));
    let other = ["a_test", "of_another_name"].join("_");
    assert!(!has_test("tests/documents", &other));
    assert_eq!(
        tests_named_in("| 1 | `room: name` and `tests/file: other`, not `Cargo.toml` |"),
        [("room", "name"), ("tests/file", "other")]
    );
}
