//! The ready descriptions.
