//! From a package to a pack: the graph rewritten, the large weights in shards.
