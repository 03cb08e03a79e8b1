//! The processor.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// Instruction sets that ONNX Runtime's kernels choose by.
const FLAGS_OF_INTEREST: &[&str] = &[
    "avx",
    "avx2",
    "f16c",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "asimd",
    "i8mm",
    "sve",
];

/// Threads of an operator where nobody says how many: the cores that this process may use.
pub fn default_threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// Facts of the processor; what the system does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// The model's name.
    pub model: Option<String>,
    /// Those of the instruction sets of interest that it has, with spaces between.
    pub flags: String,
    /// Logical cores that are online.
    pub online: Option<usize>,
    /// Logical cores that this process may use.
    pub allowed: Option<usize>,
    /// Frequency governor of the first core.
    pub governor: Option<String>,
    /// Frequency of the first core at this moment.
    pub frequency_mhz: Option<f64>,
}

impl Cpu {
    /// Reads them now.
    pub fn now() -> Self {
        let allowed = std::thread::available_parallelism().ok().map(std::num::NonZero::get);
        Self { allowed, ..Self::read(Path::new("/")) }
    }

    fn read(root: &Path) -> Self {
        let text = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let field = |names: &[&str]| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                names.contains(&name.trim()).then(|| value.trim().to_owned())
            })
        };
        let flags: BTreeSet<_> =
            field(&["flags", "Features"]).unwrap_or_default().split(' ').map(str::to_owned).collect();
        let first = root.join("sys/devices/system/cpu/cpu0/cpufreq");
        let read = |path: &Path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let khz = read(&first.join("scaling_cur_freq")).and_then(|text| text.parse::<f64>().ok());
        let online = text.lines().filter(|line| line.starts_with("processor")).count();
        Self {
            model: field(&["model name", "Model", "CPU part"]),
            flags: FLAGS_OF_INTEREST.iter().copied().filter(|flag| flags.contains(*flag)).collect::<Vec<_>>().join(" "),
            online: (online > 0).then_some(online),
            allowed: None,
            governor: read(&first.join("scaling_governor")),
            frequency_mhz: khz.map(|khz| khz / 1000.0).or_else(|| field(&["cpu MHz"])?.parse().ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_recorded_processor() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2445.4\nflags\t\t: fpu avx avx2 fma\n\n\
                    processor\t: 1\nmodel name\t: AMD EPYC\n";
        fs::write(root.path().join("proc/cpuinfo"), text).unwrap();
        let cpu = Cpu::read(root.path());
        assert_eq!(cpu.model.as_deref(), Some("AMD EPYC"));
        assert_eq!(cpu.flags, "avx avx2 fma");
        assert_eq!((cpu.online, cpu.frequency_mhz), (Some(2), Some(2445.4)));
        assert_eq!(Cpu::read(Path::new("/nothing")), Cpu::default());
    }
}
