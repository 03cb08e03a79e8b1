//! The child's side: read one job, do it, write messages.
