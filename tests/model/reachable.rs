//! What the searches are about does happen in them.
