//! The C library's heap.

/// Bytes from which an allocation gets pages of its own, which go back when it is freed.
#[cfg(target_env = "gnu")]
const PAGES_OF_ITS_OWN: libc::c_int = 128 << 10;

/// Keeps large allocations out of the heap for good. By default glibc raises the border to the size of whatever large
/// block is freed, up to 32 MiB; activations of hundreds of sessions then fragment a heap that never shrinks (650 MiB
/// beside 130 with 37 sessions of Qwen3-4B). Fresh pages cost time, so this is for processes that run a graph in parts.
pub(super) fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` may be called at any time; it changes one parameter of glibc's own allocator, and a value that
    // it refuses leaves everything as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, PAGES_OF_ITS_OWN);
    }
}
