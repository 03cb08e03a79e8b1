//! Records in memory under a budget, and those read ahead of use.

/// What a pager did since it was opened. Differences of two of them describe the time between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Bytes that came from the disk (or through the page cache), padding included.
    pub bytes_read: u64,
    /// Reads of records.
    pub reads: u64,
    /// Nanoseconds during which at least one read was under way.
    pub read_nanos: u64,
    /// Nanoseconds that the computation waited for records.
    pub wait_nanos: u64,
    /// Routed experts asked for …
    pub experts_wanted: u64,
    /// … and those of them that were in memory already.
    pub experts_hit: u64,
    /// Experts read on a guess, before a router spoke …
    pub guessed: u64,
    /// … and those of them that were then asked for.
    pub guessed_right: u64,
    /// Records dropped to make room.
    pub evictions: u64,
    /// Bytes of records in memory now.
    pub held_bytes: u64,
    /// The most that they were.
    pub peak_bytes: u64,
}
