//! Writes the inputs that every target begins with into `corpus/<target>/`: what real encoders make.

// A tool's output and its end.
#![allow(clippy::print_stdout)]

#[path = "targets.rs"]
mod targets;

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in targets::TARGETS {
        let dir = corpus.join(target.name);
        fs::create_dir_all(&dir)?;
        let seeds = (target.seeds)();
        for (i, seed) in seeds.iter().enumerate() {
            fs::write(dir.join(format!("seed-{i:03}")), seed)?;
        }
        println!(
            "{}: {} seeds in {}",
            target.name,
            seeds.len(),
            dir.display()
        );
    }
    Ok(())
}
