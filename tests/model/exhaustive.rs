//! With all rules, nothing is ever broken.
