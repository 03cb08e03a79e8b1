//! What a run leaves behind: columns and their dictionary, CSV writers, the comparison table.
