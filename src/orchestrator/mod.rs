//! Runs a matrix: one process a category of a cell, a journal, resume and progress.
