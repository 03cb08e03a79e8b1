//! What the engine itself can tell of an optimization: bytes paged, hits, waiting, what went to disk, sizes of waves.

use super::running::Running;
use crate::engine::serving::Served;
use crate::error::Result;
use crate::loader::pager::Statistics;
use crate::protocol::Reporter;

/// What was counted over the measured runs.
#[derive(Debug)]
pub struct Counted {
    start: Option<Statistics>,
    tokens: u64,
    seconds: f64,
    written: u64,
    read_back: u64,
    /// What went out and came back, as it is in memory.
    plain: u64,
    waits_on_disk: bool,
    sizes: Vec<usize>,
}

impl Counted {
    /// Nothing yet.
    pub fn start(running: &Running) -> Self {
        Self {
            start: running.pager_statistics(),
            tokens: 0,
            seconds: 0.0,
            written: 0,
            read_back: 0,
            plain: 0,
            waits_on_disk: false,
            sizes: Vec::new(),
        }
    }

    /// Takes in a run.
    pub fn add(&mut self, served: &Served) {
        self.tokens += served.tokens() as u64;
        self.seconds += served.seconds;
        if let Some(traffic) = &served.traffic {
            self.waits_on_disk = true;
            self.written += traffic.written;
            self.read_back += traffic.read;
            self.plain += traffic.written_plain + traffic.read_plain;
        }
        self.sizes = served.waves.iter().map(|wave| wave.size).collect();
    }

    /// Says what there is.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn report(&self, running: &Running, report: &Reporter) -> Result<()> {
        let tokens = self.tokens.max(1) as f64;
        if let (Some(start), Some(now)) = (&self.start, running.pager_statistics()) {
            report.fact("paging_read_bytes_per_token", (now.bytes_read - start.bytes_read) as f64 / tokens)?;
            report.fact("paging_evictions", now.evictions - start.evictions)?;
            report.fact("paging_peak_bytes", now.peak_bytes)?;
            let waited = (now.wait_nanos - start.wait_nanos) as f64 / 1e9;
            report.fact("paging_wait_share", waited / self.seconds.max(f64::MIN_POSITIVE))?;
            let wanted = now.experts_wanted - start.experts_wanted;
            if wanted > 0 {
                report.fact("paging_hit_share", (now.experts_hit - start.experts_hit) as f64 / wanted as f64)?;
            }
        }
        if self.waits_on_disk {
            report.fact("waiting_written_bytes_per_token", self.written as f64 / tokens)?;
            report.fact("waiting_read_bytes_per_token", self.read_back as f64 / tokens)?;
            let stored = self.written + self.read_back;
            if running.encodes_what_waits() && stored > 0 {
                report.fact("compression_offload_ratio", self.plain as f64 / stored as f64)?;
            }
        }
        if self.sizes.len() > 1 {
            report.fact("wave_sizes", sizes(&self.sizes))?;
        }
        Ok(())
    }
}

/// `1, 2, 4 ×3, 1`.
fn sizes(sizes: &[usize]) -> String {
    let words = sizes.chunk_by(|a, b| a == b).map(|run| match run.len() {
        1 => run[0].to_string(),
        count => format!("{} ×{count}", run[0]),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_in_words() {
        assert_eq!(super::sizes(&[1, 2, 4, 4, 4, 1]), "1, 2, 4 ×3, 1");
    }
}
