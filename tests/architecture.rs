//! The house rules that a compiler does not check: which room may import which, what keeps the lower floors deterministic,
//! and who may touch the disk.
//!
//! The sources are read as Rust tokens, so comments and strings never count, and paths inside macros always do. A rule is a
//! function from sources to [`Violation`]s; below the tests of the real tree, planted violations prove that each can fail.

use std::fmt;
use std::path::Path;
use std::{env, fs};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Rooms by floor, lowest first. A room imports only rooms of the lists before its own.
const FLOORS: &[&[&str]] = &[
    &["types"],
    &["record", "wal", "wire"],
    &["replication", "metadata", "groups", "transactions"],
    &["storage", "transport"],
    &["partition"],
    &["kafka", "client", "controller", "doctor"],
    &["broker", "proxy"],
    &["admin"],
    &["node"],
    &["bench"],
    &["cli"],
];

/// Rooms whose every run must be repeatable from its inputs alone: the simulator runs them.
const DETERMINISTIC_ROOMS: &[&str] = &[
    "types",
    "record",
    "wal",
    "wire",
    "replication",
    "metadata",
    "groups",
    "transactions",
    "partition",
];

/// Rooms that reach files through storage's `FileSystem` only, so that a faulty disk can be put under them.
const NO_DIRECT_FILES: &[&str] = &["storage", "partition", "broker"];
/// Where `FileSystem` meets the operating system.
const REAL_FILE_SYSTEM: &str = "storage/file_system.rs";

/// A longer file, tests not counted, hides a concept.
const MAX_LINES_WITHOUT_TESTS: usize = 800;

#[test]
fn every_room_stands_on_a_floor() {
    report(&check_rooms(&tree()));
}

#[test]
fn no_room_imports_its_own_floor_or_a_higher_one() {
    report(&check_imports(&tree()));
}

#[test]
fn the_lower_floors_are_deterministic() {
    report(&check_determinism(&tree()));
}

#[test]
fn log_and_promise_files_are_reached_through_the_file_system_trait() {
    report(&check_files(&tree()));
}

#[test]
fn no_guard_of_a_watch_is_passed_on() {
    report(&check_guards(&tree()));
}

#[test]
fn unsafe_code_is_forbidden() {
    report(&check_unsafe(&tree()));
}

#[test]
fn no_file_hides_a_concept() {
    report(&check_length(&tree()));
}

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

fn report(violations: &[Violation]) {
    let lines: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(
        lines.is_empty(),
        "{} violations:\n{}",
        lines.len(),
        lines.join("\n")
    );
}

/// One file under `src/`.
struct Source {
    /// Relative to `src/`, with `/` between components.
    file: String,
    lines: usize,
    tokens: TokenStream,
}

impl Source {
    fn new(file: &str, text: &str) -> Source {
        let tokens = text
            .parse()
            .unwrap_or_else(|error| panic!("src/{file} is not Rust: {error}"));
        Source {
            file: file.to_owned(),
            lines: text.lines().count(),
            tokens,
        }
    }

    /// `None` for `lib.rs` and `main.rs`, which belong to no room.
    fn room(&self) -> Option<&str> {
        match self.file.split_once('/') {
            Some((room, _)) => Some(room),
            None if matches!(self.file.as_str(), "lib.rs" | "main.rs") => None,
            None => self.file.strip_suffix(".rs"),
        }
    }

    /// How many `super`s lead from the top of this file to the crate's root.
    fn depth(&self) -> usize {
        let inner = self.file.strip_suffix("/mod.rs").unwrap_or(&self.file);
        match self.room() {
            Some(_) => inner.split('/').count(),
            None => 0,
        }
    }

    fn violation(&self, line: usize, what: String) -> Violation {
        Violation {
            file: self.file.clone(),
            line,
            what,
        }
    }
}

/// Every source file of this crate.
fn tree() -> Vec<Source> {
    // At run time, so that a test binary can be pointed at another checkout.
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
    let src = Path::new(&root).join("src");
    let mut sources = Vec::new();
    collect(&src, "", &mut sources);
    assert!(
        sources.iter().any(|source| source.file == "lib.rs"),
        "{} is not the source tree",
        src.display()
    );
    sources
}

fn collect(dir: &Path, prefix: &str, sources: &mut Vec<Source>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries {
        let entry = entry.expect("a readable directory");
        let name = entry.file_name().into_string().expect("a UTF-8 file name");
        let path = entry.path();
        if path.is_dir() {
            collect(&path, &format!("{prefix}{name}/"), sources);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("a readable source file");
            sources.push(Source::new(&format!("{prefix}{name}"), &text));
        }
    }
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .map(|i| i + 1)
}

fn check_rooms(sources: &[Source]) -> Vec<Violation> {
    sources
        .iter()
        .filter_map(|source| {
            let room = source.room()?;
            match floor_of(room) {
                Some(_) => None,
                None => Some(source.violation(1, format!("the room `{room}` has no floor"))),
            }
        })
        .collect()
}

fn check_imports(sources: &[Source]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        for path in paths(&source.tokens, source.depth()) {
            let target = match path.names().as_slice() {
                ["crate", target, ..] => target.to_string(),
                ["quorate", target, ..] if source.file == "main.rs" => {
                    if *target != "cli" {
                        let what = format!("{path}: `main.rs` calls `cli` and nothing else");
                        violations.push(source.violation(path.line, what));
                    }
                    continue;
                }
                _ => continue,
            };
            // `lib.rs` is above every floor.
            let Some(room) = source.room() else { continue };
            if target == room {
                continue;
            }
            let what = match (floor_of(room), floor_of(&target)) {
                (_, None) => format!("{path} names no room"),
                (Some(own), Some(other)) if other == own => {
                    format!("{path} is on the same floor ({own}) as `{room}`")
                }
                (Some(own), Some(other)) if other > own => {
                    format!("{path} is on floor {other}, above `{room}` on floor {own}")
                }
                // A room without a floor is `check_rooms`'s finding.
                _ => continue,
            };
            violations.push(source.violation(path.line, what));
        }
    }
    violations
}

fn check_determinism(sources: &[Source]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        let Some(room) = source
            .room()
            .filter(|room| DETERMINISTIC_ROOMS.contains(room))
        else {
            continue;
        };
        for path in paths(&source.tokens, source.depth()) {
            if let Some(why) = nondeterminism(&path) {
                let what = format!("{path}: {why} in `{room}`, which must be deterministic");
                violations.push(source.violation(path.line, what));
            }
        }
    }
    violations
}

fn nondeterminism(path: &FoundPath) -> Option<&'static str> {
    let names = path.names();
    let names = names.as_slice();
    let has = |wanted: &[&str]| names.iter().any(|name| wanted.contains(name));
    if names[0] == "tokio" || names[0].starts_with("tokio_") {
        return Some("a runtime");
    }
    if matches!(names, ["std", "fs" | "net" | "thread" | "process", ..]) {
        return Some("I/O and threads");
    }
    if has(&["Instant", "SystemTime", "now_utc", "now_local"]) {
        return Some("a clock");
    }
    let draws = has(&[
        "thread_rng",
        "ThreadRng",
        "OsRng",
        "SysRng",
        "SystemRandom",
        "getrandom",
        "from_entropy",
        "from_os_rng",
        "make_rng",
        "new_v4",
        "RandomState",
    ]);
    let by_name = match names {
        [
            "rand",
            "rng" | "random" | "random_range" | "random_bool" | "random_iter",
            ..,
        ] => true,
        ["rng" | "random"] => path.called_with_nothing,
        _ => false,
    };
    if draws || by_name {
        return Some("unseeded randomness");
    }
    if has(&["HashMap", "HashSet"]) {
        return Some(
            "an order of iteration that differs from run to run (take a BTreeMap or BTreeSet)",
        );
    }
    None
}

fn check_files(sources: &[Source]) -> Vec<Violation> {
    let test_only = test_only_files(sources);
    let mut violations = Vec::new();
    for source in sources {
        let bound = source
            .room()
            .is_some_and(|room| NO_DIRECT_FILES.contains(&room));
        if !bound || source.file == REAL_FILE_SYSTEM || test_only.contains(&source.file) {
            continue;
        }
        // Tests may prepare and damage real files.
        let (tokens, _) = without_tests(&source.tokens);
        for path in paths(&tokens, source.depth()) {
            if matches!(path.names()[..], ["std" | "tokio" | "rustix", "fs", ..]) {
                let what = format!("{path}: files are reached through `FileSystem` here");
                violations.push(source.violation(path.line, what));
            }
        }
    }
    violations
}

/// What a watch lends is a read lock until the statement ends, also where it is cloned at once. A callee that looks at the same
/// watch waits then for a writer that waits for its caller, for ever.
fn check_guards(sources: &[Source]) -> Vec<Violation> {
    let test_only = test_only_files(sources);
    let mut violations = Vec::new();
    for source in sources {
        if !test_only.contains(&source.file) {
            let (tokens, _) = without_tests(&source.tokens);
            lent(&tokens, &mut |line| {
                let what =
                    "a watch's guard is an argument: clone what it holds in a statement of its own";
                violations.push(source.violation(line, what.to_owned()));
            });
        }
    }
    violations
}

/// The lines of arguments that are lent by a watch: `f(&x.borrow())`, `f(x.borrow().clone())`. `Arc::clone` calls nobody.
fn lent(tokens: &TokenStream, found: &mut impl FnMut(usize)) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else {
            continue;
        };
        lent(&group.stream(), found);
        let calls = matches!(&tokens[..at], [.., TokenTree::Ident(name)] if name != "clone");
        if !calls || group.delimiter() != Delimiter::Parenthesis {
            continue;
        }
        let arguments: Vec<TokenTree> = group.stream().into_iter().collect();
        for argument in arguments.split(|token| is_punct(token, ',')) {
            let words: Vec<String> = argument.iter().cloned().map(squeezed).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let (rest, is_copied) = match &words[..] {
                [rest @ .., ".", "clone", "()"] => (rest, true),
                all => (all, false),
            };
            let is_lent = matches!(rest, [.., ".", "borrow" | "borrow_and_update", "()"]);
            let is_closure = rest.first() == Some(&"|") || rest.first() == Some(&"move");
            if is_lent && !is_closure && (is_copied || rest.first() == Some(&"&")) {
                found(argument[0].span().start().line);
            }
        }
    }
}

fn check_unsafe(sources: &[Source]) -> Vec<Violation> {
    let Some(lib) = sources.iter().find(|source| source.file == "lib.rs") else {
        return vec![Source::new("lib.rs", "").violation(1, "there is no lib.rs".to_owned())];
    };
    let tokens: Vec<String> = lib.tokens.clone().into_iter().map(squeezed).collect();
    let forbids = tokens
        .windows(3)
        .any(|window| window == ["#", "!", "[forbid(unsafe_code)]"]);
    match forbids {
        true => Vec::new(),
        false => vec![lib.violation(1, "`#![forbid(unsafe_code)]` is missing".to_owned())],
    }
}

fn check_length(sources: &[Source]) -> Vec<Violation> {
    let test_only = test_only_files(sources);
    sources
        .iter()
        .filter(|source| !test_only.contains(&source.file))
        .filter_map(|source| {
            let (_, tests) = without_tests(&source.tokens);
            let lines = source.lines - tests.iter().map(|item| item.lines).sum::<usize>();
            let what =
                format!("{lines} lines without tests, and {MAX_LINES_WITHOUT_TESTS} are allowed");
            (lines > MAX_LINES_WITHOUT_TESTS).then(|| source.violation(1, what))
        })
        .collect()
}

/// A `::` path as it stands in the source, or one leaf of a `use` group, spelled from its first segment. `super`s that reach
/// the crate's root are spelled `crate`.
#[derive(Debug)]
struct FoundPath {
    segments: Vec<String>,
    line: usize,
    /// Whether `()` follows.
    called_with_nothing: bool,
}

impl FoundPath {
    /// The segments, for matching. Never empty.
    fn names(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }
}

impl fmt::Display for FoundPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.segments.join("::"))
    }
}

/// Every path in `tokens`, at any depth. `depth` is how many modules stand between the crate's root and `tokens`.
fn paths(tokens: &TokenStream, depth: usize) -> Vec<FoundPath> {
    let mut found = Vec::new();
    walk(tokens, depth, &mut found);
    found
}

fn walk(tokens: &TokenStream, depth: usize, found: &mut Vec<FoundPath>) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at..] {
            [
                TokenTree::Ident(word),
                TokenTree::Ident(_),
                TokenTree::Group(body),
                ..,
            ] if word == "mod" && body.delimiter() == Delimiter::Brace => {
                walk(&body.stream(), depth + 1, found);
                at += 3;
            }
            [TokenTree::Ident(word), TokenTree::Ident(_), ..] if word == "fn" => at += 2,
            [TokenTree::Ident(_), ..] if is_member(&tokens[..at]) => at += 1,
            [TokenTree::Ident(_), ..] => at += path(&tokens[at..], &[], depth, found),
            [TokenTree::Group(group), ..] => {
                walk(&group.stream(), depth, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Whether what follows `before` is a field's or a method's name: one dot, and not the two of a range.
fn is_member(before: &[TokenTree]) -> bool {
    match before {
        [.., a, b] => is_punct(b, '.') && !is_punct(a, '.'),
        _ => false,
    }
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// Reads the path, or the leaves of the `use` tree, whose next segment is the identifier at the start of `tokens`; `prefix`
/// holds the segments before. Returns how many tokens it took.
fn path(
    tokens: &[TokenTree],
    prefix: &[String],
    depth: usize,
    found: &mut Vec<FoundPath>,
) -> usize {
    let mut segments = prefix.to_vec();
    segments.push(squeezed(tokens[0].clone()));
    let mut at = 1;
    loop {
        match &tokens[at..] {
            [a, b, TokenTree::Ident(next), ..] if is_punct(a, ':') && is_punct(b, ':') => {
                segments.push(next.to_string());
                at += 3;
            }
            [a, b, TokenTree::Group(group), ..]
                if is_punct(a, ':')
                    && is_punct(b, ':')
                    && group.delimiter() == Delimiter::Brace =>
            {
                use_group(&group.stream(), &segments, depth, found);
                return at + 3;
            }
            [a, b, star, ..] if is_punct(a, ':') && is_punct(b, ':') && is_punct(star, '*') => {
                segments.push("*".to_owned());
                at += 3;
                break;
            }
            _ => break,
        }
    }
    let called_with_nothing = matches!(
        tokens.get(at),
        Some(TokenTree::Group(group))
            if group.delimiter() == Delimiter::Parenthesis && group.stream().is_empty()
    );
    found.push(FoundPath {
        segments: from_root(segments, depth),
        line: tokens[0].span().start().line,
        called_with_nothing,
    });
    at
}

/// The inside of `prefix::{…}`.
fn use_group(tokens: &TokenStream, prefix: &[String], depth: usize, found: &mut Vec<FoundPath>) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    for tree in tokens.split(|token| is_punct(token, ',')) {
        match tree {
            [TokenTree::Ident(_), ..] => {
                path(tree, prefix, depth, found);
            }
            [star, ..] if is_punct(star, '*') => {
                let mut segments = prefix.to_vec();
                segments.push("*".to_owned());
                found.push(FoundPath {
                    segments: from_root(segments, depth),
                    line: star.span().start().line,
                    called_with_nothing: false,
                });
            }
            [TokenTree::Group(group), ..] => use_group(&group.stream(), prefix, depth, found),
            _ => {}
        }
    }
}

/// Spells a path of so many `super`s that they reach the crate's root with `crate`.
fn from_root(segments: Vec<String>, depth: usize) -> Vec<String> {
    let own = usize::from(segments[0] == "self" && segments.len() > 1);
    let supers = segments[own..]
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    if depth == 0 || supers != depth {
        return segments;
    }
    let mut rooted = vec!["crate".to_owned()];
    rooted.extend_from_slice(&segments[own + supers..]);
    rooted
}

/// An item under `#[cfg(test)]`.
struct TestItem {
    /// How many lines it takes.
    lines: usize,
    /// The name in `mod name;`.
    module: Option<String>,
}

/// Takes every item under `#[cfg(test)]` out of `tokens`.
fn without_tests(tokens: &TokenStream) -> (TokenStream, Vec<TestItem>) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let mut rest = TokenStream::new();
    let mut items = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if let [hash, attribute, ..] = &tokens[at..]
            && is_punct(hash, '#')
            && squeezed(attribute.clone()) == "[cfg(test)]"
        {
            let ends_item = |token: &TokenTree| {
                is_punct(token, ';')
                    || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
            };
            let last = tokens[at..]
                .iter()
                .position(ends_item)
                .map_or(tokens.len() - 1, |more| at + more);
            let module = match &tokens[at..=last] {
                [.., TokenTree::Ident(word), TokenTree::Ident(name), end]
                    if word == "mod" && is_punct(end, ';') =>
                {
                    Some(name.to_string())
                }
                _ => None,
            };
            items.push(TestItem {
                lines: tokens[last].span().end().line + 1 - hash.span().start().line,
                module,
            });
            at = last + 1;
            continue;
        }
        match &tokens[at] {
            TokenTree::Group(group) => {
                let (inner, inner_items) = without_tests(&group.stream());
                items.extend(inner_items);
                let mut stripped = proc_macro2::Group::new(group.delimiter(), inner);
                stripped.set_span(group.span());
                rest.extend([TokenTree::Group(stripped)]);
            }
            token => rest.extend([token.clone()]),
        }
        at += 1;
    }
    (rest, items)
}

/// The files that only tests compile: those of a `#[cfg(test)] mod name;`.
fn test_only_files(sources: &[Source]) -> Vec<String> {
    let mut files = Vec::new();
    for source in sources {
        let inner = source.file.strip_suffix(".rs").unwrap_or(&source.file);
        let dir = match inner.strip_suffix("/mod") {
            Some(dir) => format!("{dir}/"),
            None if source.room().is_none() => String::new(),
            None => format!("{inner}/"),
        };
        let (_, items) = without_tests(&source.tokens);
        for module in items.into_iter().filter_map(|item| item.module) {
            files.push(format!("{dir}{module}.rs"));
            files.push(format!("{dir}{module}/mod.rs"));
        }
    }
    files
}

/// The token's text without blanks.
fn squeezed(token: TokenTree) -> String {
    token.to_string().split_whitespace().collect()
}

mod planted {
    //! Each rule is shown sources that break it, and sources that look as if they did.

    use std::collections::BTreeSet;

    use super::*;

    type Check = fn(&[Source]) -> Vec<Violation>;

    /// The lines at which `check` finds something in one file.
    fn lines(check: Check, file: &str, text: &str) -> BTreeSet<usize> {
        check(&[Source::new(file, text)])
            .iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn imports_of_higher_and_equal_floors_are_found_however_they_are_written() {
        let broken = [
            "use crate::storage::Log;",
            "use crate::{types::Offset, storage};",
            "use crate::{types::{Offset, NodeId}, storage::{Log, log::Reader}};",
            "pub(crate) use ::core::fmt; use crate::storage as disk;",
            "fn f() { crate::storage::open() }",
            "fn f() -> Vec<crate::storage::Log> { vec![] }",
            "fn f() { assert_eq!(1, crate::storage::ONE); }",
            "macro_rules! m { () => { $crate::storage::Log } }",
            "use super::super::storage::Log;",
            "use self::super::super::storage::Log;",
            "use super::{super::storage::Log};",
            "mod inner { use super::super::super::storage::Log; }",
            "#[cfg(test)] mod tests { use crate::storage::Log; }",
            "use crate::wire::Ack;",
            "use crate::replication::Leader;",
            "use crate::nowhere::Thing;",
            "use crate::*;",
        ];
        for text in broken {
            assert_eq!(
                lines(check_imports, "wal/frame.rs", text),
                BTreeSet::from([1]),
                "{text}"
            );
        }
    }

    #[test]
    fn legal_imports_comments_and_strings_are_not_violations() {
        let legal = [
            "use crate::types::{Offset, quorum};",
            "use crate::wal::Frame; pub(in crate::wal) fn f() {}",
            "use super::super::types::Offset;",
            "mod tests { use super::super::Frame; }",
            "// use crate::storage::Log;",
            "/* crate::storage */",
            "/// Read by [`crate::storage::Log`].\nfn f() {}",
            "fn f() -> &'static str { \"crate::storage\" }",
            "fn f() -> &'static str { r#\"crate::storage\"# }",
            "use storage::Thing;",
            "fn f() { a::crate_storage::storage(); b.storage(); }",
        ];
        for text in legal {
            assert!(
                lines(check_imports, "wal/frame.rs", text).is_empty(),
                "{text}"
            );
        }
        assert!(
            lines(
                check_imports,
                "replication/leader.rs",
                "use crate::{wal, wire};"
            )
            .is_empty()
        );
        assert!(lines(check_imports, "lib.rs", "pub use crate::client::Producer;").is_empty());
        assert!(
            lines(
                check_imports,
                "main.rs",
                "fn main() { quorate::cli::run() }"
            )
            .is_empty()
        );
    }

    #[test]
    fn every_floor_is_closed_to_its_own_and_those_above() {
        for (floor, rooms) in FLOORS.iter().enumerate() {
            for room in *rooms {
                for (other_floor, others) in FLOORS.iter().enumerate() {
                    for other in *others {
                        let text = format!("\nuse crate::{other}::Thing;");
                        let found = lines(check_imports, &format!("{room}/mod.rs"), &text);
                        let legal = room == other || other_floor < floor;
                        assert_eq!(found.is_empty(), legal, "{room} -> {other}");
                        assert!(legal || found == BTreeSet::from([2]));
                    }
                }
            }
        }
    }

    #[test]
    fn main_calls_nothing_but_the_command_line() {
        let text = "fn main() { quorate::node::start() }";
        assert_eq!(lines(check_imports, "main.rs", text), BTreeSet::from([1]));
    }

    #[test]
    fn a_room_without_a_floor_is_found() {
        assert_eq!(lines(check_rooms, "attic/mod.rs", ""), BTreeSet::from([1]));
        assert_eq!(lines(check_rooms, "attic.rs", ""), BTreeSet::from([1]));
        assert!(lines(check_rooms, "wal/frame.rs", "").is_empty());
        assert!(lines(check_rooms, "lib.rs", "").is_empty());
    }

    #[test]
    fn runtimes_clocks_and_chance_are_found_on_the_lower_floors() {
        let broken = [
            "use tokio::sync::mpsc;",
            "#[tokio::test] async fn t() {}",
            "use tokio_util::sync::CancellationToken;",
            "use std::time::{Duration, Instant};",
            "fn f() { let at = std::time::SystemTime::now(); }",
            "fn f() { Instant::now(); }",
            "fn f() { for i in 0..Instant::now() {} }",
            "fn f() { time::OffsetDateTime::now_utc(); }",
            "use rand::{Rng, rng};",
            "fn f() -> u64 { rand::random() }",
            "fn f() -> u64 { random() }",
            "fn f() { rng(); }",
            "fn f() { rand::thread_rng(); }",
            "fn f() { OsRng.fill_bytes(b); }",
            "fn f() { getrandom::fill(b); }",
            "fn f() { uuid::Uuid::new_v4(); }",
            "use std::collections::{BTreeMap, HashMap};",
            "use std::{fmt, fs};",
            "fn f() { std::thread::sleep(d); }",
        ];
        for text in broken {
            for room in DETERMINISTIC_ROOMS {
                let file = format!("{room}/x.rs");
                assert_eq!(
                    lines(check_determinism, &file, text),
                    BTreeSet::from([1]),
                    "{text}"
                );
            }
            assert!(lines(check_determinism, "broker/x.rs", text).is_empty());
        }
    }

    #[test]
    fn seeded_chance_and_time_as_an_argument_are_legal_on_the_lower_floors() {
        let legal = [
            "use std::time::Duration; use crate::types::MonotonicTime;",
            "use rand::{Rng, SeedableRng}; fn f() { self.rng(); case.random(); }",
            "fn rng() {} fn f(seed: u64) { rng(seed); }",
            "use std::collections::BTreeMap;",
            "// Instant::now() is not for this room.",
        ];
        for text in legal {
            assert!(
                lines(check_determinism, "wal/x.rs", text).is_empty(),
                "{text}"
            );
        }
    }

    #[test]
    fn files_opened_past_the_file_system_are_found() {
        let broken = [
            "use std::fs::File;",
            "use std::{fs, io};",
            "use std::fs::{self, OpenOptions};",
            "fn f() { std::fs::remove_file(p); }",
            "async fn f() { tokio::fs::read(p).await; }",
            "fn f() { rustix::fs::fdatasync(f); }",
        ];
        for text in broken {
            for room in NO_DIRECT_FILES {
                let file = format!("{room}/x.rs");
                assert_eq!(
                    lines(check_files, &file, text),
                    BTreeSet::from([1]),
                    "{text}"
                );
            }
            assert!(lines(check_files, REAL_FILE_SYSTEM, text).is_empty());
            assert!(lines(check_files, "transport/x.rs", text).is_empty());
            let in_tests = format!("#[cfg(test)]\nmod tests {{ {text} }}");
            assert!(lines(check_files, "storage/x.rs", &in_tests).is_empty());
        }
        let sources = [
            Source::new("storage/mod.rs", "#[cfg(test)]\nmod helper;\nmod log;"),
            Source::new("storage/helper.rs", "use std::fs;"),
            Source::new("storage/log.rs", "use std::fs;"),
        ];
        let found = check_files(&sources);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].file, "storage/log.rs");
    }

    #[test]
    fn guards_that_are_passed_on_are_found() {
        for text in [
            "fn f() { g(&a.borrow()); }",
            "fn f() { g(me, &self.images.borrow_and_update(), 1); }",
            "fn f() { x.alive(&self.image.borrow().clone()); }",
            "fn f() { if true { g(a.borrow().clone()) } }",
        ] {
            assert_eq!(
                lines(check_guards, "a.rs", text),
                BTreeSet::from([1]),
                "{text}"
            );
        }
        for text in [
            "fn f() { let image = a.borrow().clone(); g(&image); }",
            "fn f() { let image = Arc::clone(&a.borrow()); }",
            "fn f() { a.map(|b| b.borrow().clone()); }",
            "fn f() { g(a.borrow().node()); }",
            "#[cfg(test)]\nmod tests { fn f() { g(&a.borrow()); } }",
        ] {
            assert!(lines(check_guards, "a.rs", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_library_that_allows_unsafe_code_is_found() {
        assert!(lines(check_unsafe, "lib.rs", "//! Doc.\n#![forbid(unsafe_code)]").is_empty());
        assert_eq!(
            lines(check_unsafe, "lib.rs", "// #![forbid(unsafe_code)]"),
            BTreeSet::from([1])
        );
        assert_eq!(
            lines(check_unsafe, "lib.rs", "#![deny(unsafe_code)]"),
            BTreeSet::from([1])
        );
        assert_eq!(
            lines(check_unsafe, "wal/mod.rs", ""),
            BTreeSet::from([1]),
            "no lib.rs at all"
        );
    }

    #[test]
    fn long_files_are_found_and_their_tests_not_counted() {
        let code = |lines: usize| "fn f() {}\n".repeat(lines);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", code(500));
        let allowed = code(MAX_LINES_WITHOUT_TESTS);
        assert!(lines(check_length, "wal/x.rs", &allowed).is_empty());
        assert!(lines(check_length, "wal/x.rs", &(allowed.clone() + &tests)).is_empty());
        let long = code(MAX_LINES_WITHOUT_TESTS + 1);
        assert_eq!(lines(check_length, "wal/x.rs", &long), BTreeSet::from([1]));
        assert_eq!(
            lines(check_length, "wal/x.rs", &(long + &tests)),
            BTreeSet::from([1])
        );
        let early = format!("#[cfg(test)]\nmod helper;\n{allowed}fn one_more() {{}}");
        assert_eq!(lines(check_length, "wal/x.rs", &early), BTreeSet::from([1]));
    }
}
