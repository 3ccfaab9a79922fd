//! The replication protocol as a model, and all that can happen to it within bounds.
//!
//! Every state that the rules allow is visited, breadth first, and every invariant is looked at in each of them. Then each rule
//! is switched off, and the shortest way to lose an acknowledged record is told. docs/model.md says what is modelled, and what
//! the large searches found:
//!
//! ```text
//! cargo test --test model -- --nocapture                              the small searches, and a story for every rule
//! QUORATE_MODEL=large cargo test --release --test model -- --nocapture --test-threads 2 large    the large ones
//! ```

#![allow(clippy::print_stdout)]

#[path = "model/bounds.rs"]
mod bounds;
#[path = "model/draft.rs"]
mod draft;
#[path = "model/finish.rs"]
mod finish;
#[path = "model/log.rs"]
mod log;
#[path = "model/rules.rs"]
mod rules;
#[path = "model/search.rs"]
mod search;
#[path = "model/state.rs"]
mod state;
#[path = "model/steps.rs"]
mod steps;
#[path = "model/story.rs"]
mod story;
#[path = "model/violation.rs"]
mod violation;

#[path = "model/exhaustive.rs"]
mod exhaustive;
#[path = "model/reachable.rs"]
mod reachable;
#[path = "model/switched_off.rs"]
mod switched_off;
