//! What goes to standard output: data, as a table for people or as JSON, one object a line, for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::exit::OutputClosed;

/// The longest line of text for people, in characters.
const MAX_LINE: usize = 100;

/// How data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Aligned columns, or text.
    #[default]
    #[value(alias = "text")]
    Table,
    /// One JSON object a line.
    Json,
    /// A table for documents; what `bench` measures only.
    Markdown,
    /// A line for each run under the fields' names; what `bench` measures only.
    Csv,
}

/// Writes one line to standard output.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    closed(writeln!(stdout, "{line}"))
}

/// Writes one object as a line of JSON.
pub fn print_json(object: &impl Serialize) -> anyhow::Result<()> {
    print_line(&serde_json::to_string(object)?)
}

/// Tells a person something that is no data: to standard error, and not an error.
pub fn note(text: &str) {
    // Standard error may be closed; then nobody reads this.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Shows an error and its causes on standard error, and nothing for [`OutputClosed`].
pub(super) fn print_error(error: &anyhow::Error) {
    if error.chain().any(|cause| cause.is::<OutputClosed>()) {
        return;
    }
    let terminal = io::stderr().is_terminal();
    let label = if terminal {
        "\x1b[1;31merror:\x1b[0m"
    } else {
        "error:"
    };
    note(&format!("{label} {}", describe_error(error)));
}

/// The error's sentence, and its causes below it. A cause that its error has told already is left out.
fn describe_error(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    let mut told = text.clone();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            text.push_str(&format!("\n  because: {cause}"));
            told = cause;
        }
    }
    text
}

/// Rows under a header, in aligned columns. Nothing is cut off: a value too long for its line wraps in the terminal.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(header: [&str; N]) -> Table {
        Table {
            rows: vec![header.map(str::to_owned).to_vec()],
        }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub fn print(&self) -> anyhow::Result<()> {
        self.lines().iter().try_for_each(|line| print_line(line))
    }

    /// The same as a table of Markdown.
    pub(super) fn markdown(&self) -> Vec<String> {
        let line = |cells: &Vec<String>| format!("| {} |", cells.join(" | "));
        let mut lines: Vec<String> = self.rows.iter().map(line).collect();
        let columns = self.rows.first().map_or(0, Vec::len);
        lines.insert(1, format!("|{}", " --- |".repeat(columns)));
        lines
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths);
            let padded: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            padded.join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// How wide lines may be, in characters: the terminal's width, 40 at least and [`MAX_LINE`] at most, which is also that of a
/// file.
pub(super) fn terminal_width() -> usize {
    let width = rustix::termios::tcgetwinsize(io::stdout()).map(|size| usize::from(size.ws_col));
    match width {
        Ok(width) if width > 0 => width.clamp(40, MAX_LINE),
        _ => MAX_LINE,
    }
}

/// Breaks a text into lines of at most `width` characters, between words. A word that is longer has a line of its own.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let length = line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && length > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// The outcome of writing to standard output: a reader that has gone is the end of the command and no failure.
pub(super) fn closed(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        other => other.map_err(|error| {
            anyhow::Error::new(error).context(
                "cannot write to standard output: check that its disk has room, or redirect it elsewhere",
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_blanks() {
        let mut table = Table::new(["NAME", "N"]);
        table.row(["ä".into(), "10".into()]);
        table.row(["longer".into(), String::new()]);
        assert_eq!(table.lines(), ["NAME    N", "ä       10", "longer"]);
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a-very-long-word b", 4), ["a-very-long-word", "b"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn causes_are_told_once() {
        let inner = anyhow::anyhow!("disk full");
        let error = inner.context("cannot write a.log: disk full").context("x");
        assert_eq!(
            describe_error(&error),
            "x\n  because: cannot write a.log: disk full"
        );
    }
}
