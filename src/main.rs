//! The `quorate` program: see the `cli` room.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate::cli::main()
}
