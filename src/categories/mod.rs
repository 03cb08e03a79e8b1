//! What is measured: one file a category, one trait, one registry.
