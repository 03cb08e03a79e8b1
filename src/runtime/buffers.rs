//! Page-aligned memory of our own.

use std::ptr::NonNull;

use crate::error::{Error, Result};

/// A buffer of a [`Bindings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BufferId(pub(super) usize);

/// Types that a buffer may be seen as.
///
/// # Safety
/// Every bit pattern is a value, and the alignment is at most that of a page.
pub unsafe trait Element: Copy + 'static {}

// SAFETY: plain numbers.
unsafe impl Element for f32 {}
// SAFETY: plain numbers.
unsafe impl Element for i64 {}
// SAFETY: plain numbers.
unsafe impl Element for i32 {}
// SAFETY: plain numbers.
unsafe impl Element for u8 {}
// SAFETY: a transparent u16.
unsafe impl Element for half::f16 {}

/// Anonymous memory, page-aligned, zero until written, given back on drop.
#[derive(Debug)]
pub struct Memory {
    pub(super) start: NonNull<u8>,
    pub(super) bytes: usize,
}

impl Memory {
    /// That many bytes, zero until they are written; untouched pages cost nothing.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn new(bytes: usize) -> Result<Self> {
        // mmap rather than the allocator: untouched pages cost nothing, and the memory goes back when dropped.
        // SAFETY: a fresh private anonymous mapping; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes.max(1),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let cause = std::io::Error::last_os_error();
            return Err(Error::environment(format!(
                "cannot allocate a buffer of {}",
                crate::units::bytes(bytes as u64)
            ))
            .because(cause)
            .hint("a smaller batch or a shorter context needs less memory"));
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::environment("the kernel mapped address zero"))?;
        Ok(Self { start, bytes })
    }

    /// All of it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: exactly what `new` mapped, borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// The same, to read.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: exactly what `new` mapped, borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast_const(), self.bytes) }
    }

    /// For transfers by another thread.
    pub fn region(&self) -> Region {
        Region { start: self.start, bytes: self.bytes }
    }
}

/// Memory that another thread fills or empties. Whoever hands one out leaves the memory alone, and keeps it, until
/// the transfer is done.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: an address and a length; what is done with them is unsafe and argued where it is done.
unsafe impl Send for Region {}

impl Region {
    /// Its address.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length, without the rest of its last page.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A range of it, which may reach to the end of its last page.
    ///
    /// # Safety
    /// The memory still exists, and nothing else touches the range while the slice lives.
    ///
    /// # Panics
    /// A range beyond the last page.
    pub unsafe fn bytes_mut<'a>(&self, range: std::ops::Range<usize>) -> &'a mut [u8] {
        assert!(range.end <= self.bytes.next_multiple_of(rustix::param::page_size()), "a range beyond the region");
        // SAFETY: in bounds of the mapping, whose length the kernel rounds up to pages; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Gives its pages back to the system; it reads as zeros then.
    ///
    /// # Safety
    /// The memory still exists, nothing else touches it, and what is in it is no longer needed.
    pub unsafe fn release(&self) {
        // SAFETY: whole pages of a private anonymous mapping. A refusal leaves the pages, which costs memory only.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes.max(1), libc::MADV_DONTNEED) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; nothing else holds it, since bindings are dropped before their buffers.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes.max(1)) };
    }
}
