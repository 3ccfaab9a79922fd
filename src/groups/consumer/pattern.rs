//! Subscriptions by pattern: regular expressions that a client sends and the coordinator works out.

use regex::{Regex, RegexBuilder};

/// The longest pattern, in bytes. A longer one answers INVALID_REGULAR_EXPRESSION.
pub(super) const MAX_PATTERN_BYTES: usize = 1024;
/// What a pattern may take once it is compiled, in bytes. One that takes more answers INVALID_REGULAR_EXPRESSION.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// The pattern, which the whole name of a topic must match, as in Kafka. Matching takes time in proportion to the name,
/// whatever the pattern. `None` where it is not one, or passes a cap.
pub(super) fn compile(pattern: &str) -> Option<Regex> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return None;
    }
    // Compiled alone first: "a)(b" must not become one by what is put around it.
    build(pattern)?;
    build(&format!("^(?:{pattern})$"))
}

fn build(pattern: &str) -> Option<Regex> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_whole_names() {
        let pattern = compile("orders-.*|paid").unwrap();
        assert!(pattern.is_match("orders-1"));
        assert!(pattern.is_match("paid"));
        assert!(!pattern.is_match("unpaid"));
        assert!(!pattern.is_match("my-orders-1"));
    }

    #[test]
    fn what_is_no_pattern_or_takes_too_much_is_refused() {
        for refused in ["(", "a)(b", "(?:a{1000}){1000}", &"a".repeat(2000)] {
            assert!(compile(refused).is_none(), "{refused:.20}");
        }
    }
}
