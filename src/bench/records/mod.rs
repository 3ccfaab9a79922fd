//! Records on their way, and whether every one of them is there, once.
//!
//! - [`load`]: producing, as acknowledgements allow it or at a rate of its own
//! - [`pacer`]: when records are due at such a rate
//! - [`ledger`]: which records were acknowledged, and which are there
//! - [`delivered`]: which offsets a reader was given
//! - [`reader`]: reading them back

mod delivered;
mod ledger;
mod load;
mod pacer;
mod reader;

pub use delivered::Delivered;
pub use ledger::{
    Filler, Found, Numbers, STAMPED_HEADER_BYTES, VALUE_HEADER_BYTES, stamp_of, value,
};
pub use load::{Arrivals, Load, LoadOptions, Pattern, Produced, Tally};
pub use reader::{PATIENCE, ends, read_all, read_from, read_up_to};
