//! The `wal` room.
