//! Matrix products on packed weights.
