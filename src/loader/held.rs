//! What this process holds in memory.

use crate::error::{Context, Error, Result};

/// Resident bytes of this process: anonymous memory and what is mapped.
///
/// # Errors
/// A system without `/proc`.
pub fn resident_bytes() -> Result<u64> {
    let failed = "cannot read what this process holds from `/proc/self/statm`";
    let text = std::fs::read_to_string("/proc/self/statm").context(failed)?;
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.map(|pages| pages * rustix::param::page_size() as u64).ok_or_else(|| Error::environment(failed))
}

#[cfg(test)]
mod tests {
    #[test]
    fn touched_memory_shows() {
        let before = super::resident_bytes().unwrap();
        let memory = vec![1u8; 64 << 20];
        assert!(super::resident_bytes().unwrap() >= before + (48 << 20), "{}", memory.len());
    }
}
