//! Work of an operator on several threads.

/// Runs a function for each number below a count, on the threads of the operator.
pub trait Parallel: Sync {
    /// Calls `task(0)` … `task(count - 1)` in any order, on any of the threads, and returns when all are done.
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync));
    /// Threads that may run at once.
    fn threads(&self) -> usize;
}

/// A buffer that tasks write to at the same time, each to elements of its own.
#[derive(Debug)]
pub struct Shared<T>(*mut T, usize);

// SAFETY: tasks write disjoint elements (the promise of `slice`), and `T` is a plain number.
unsafe impl<T: Copy + Send> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// The buffer; it stays borrowed as long as it is written to.
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// Elements `at .. at + count`, to write.
    ///
    /// # Safety
    /// The slice that this was made of is still mutably borrowed, and nobody else reads or writes these elements
    /// while the result lives.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that nobody else has these elements")]
    pub unsafe fn slice(&self, at: usize, count: usize) -> &mut [T] {
        assert!(at <= self.1 && count <= self.1 - at, "a task writes past the end of a buffer");
        // SAFETY: in bounds (asserted), and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), count) }
    }
}

/// Elements of a task, below which handing it over costs more than it saves.
const TASK_ELEMENTS: usize = 1 << 14;

/// Calls `task` with ranges of rows that together are all of them, each row of so many elements.
pub(super) fn rows(
    count: usize,
    width: usize,
    parallel: &dyn Parallel,
    task: &(dyn Fn(std::ops::Range<usize>) + Sync),
) {
    let least = TASK_ELEMENTS.div_ceil(width.max(1));
    let each = count.div_ceil(2 * parallel.threads().max(1)).max(least);
    if count <= each {
        return task(0..count);
    }
    parallel.run(count.div_ceil(each), &|number| task(number * each..((number + 1) * each).min(count)));
}
