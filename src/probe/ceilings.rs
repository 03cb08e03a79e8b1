//! The most that this machine's memory gives.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Bytes that every thread reads in one pass: far more than the caches.
const BYTES_PER_THREAD: usize = 256 << 20;
const PASSES: usize = 7;

/// Memory bandwidth in bytes per second: every thread reads its own buffer once, all at the same time. One value a
/// pass, the first, unmeasured pass apart.
pub fn memory_bandwidth(threads: usize) -> Vec<f64> {
    let threads = threads.max(1);
    let barrier = Barrier::new(threads + 1);
    let mut rates = Vec::with_capacity(PASSES);
    std::thread::scope(|scope| {
        for seed in 0..threads {
            let barrier = &barrier;
            scope.spawn(move || {
                // Written here, so that the pages lie near the thread that reads them.
                let buffer = vec![seed as u64 + 1; BYTES_PER_THREAD / 8];
                for _ in 0..=PASSES {
                    barrier.wait();
                    black_box(sum(black_box(&buffer)));
                    barrier.wait();
                }
            });
        }
        for pass in 0..=PASSES {
            barrier.wait();
            let start = Instant::now();
            barrier.wait();
            let seconds = start.elapsed().as_secs_f64();
            if pass > 0 {
                rates.push((threads * BYTES_PER_THREAD) as f64 / seconds);
            }
        }
    });
    rates
}

/// Many independent sums keep the loads flowing: one chain of additions would be the limit instead.
fn sum(values: &[u64]) -> u64 {
    let mut sums = [0_u64; 32];
    for chunk in values.chunks_exact(32) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}
