//! Up to 8 rows of activations times one group of 16 rows of weights.

use super::activations::Activations;
use super::layout::{Format, GROUP};

/// Rows of activations in a tile at most.
pub(super) const ROWS: usize = 8;

/// Sums of a tile, by row of activations and row of weights.
pub(super) type Sums = [[f32; GROUP]; ROWS];

/// Which instructions compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Version {
    /// Those that this processor has, the fastest last.
    pub fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let others = [(has_avx2(), Self::Avx2), (has_avx512(), Self::Avx512)];
        #[cfg(not(target_arch = "x86_64"))]
        let others: [(bool, Self); 0] = [];
        std::iter::once(Self::Scalar).chain(others.into_iter().filter_map(|(has, version)| has.then_some(version)))
    }

    /// The fastest one of this processor.
    pub fn best() -> Self {
        Self::all().last().unwrap_or(Self::Scalar)
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Sums for `count` rows of activations from row `first` on.
pub(super) fn compute(
    version: Version,
    format: &Format,
    group: &[u8],
    activations: &Activations,
    first: usize,
    count: usize,
    sums: &mut Sums,
) {
    assert!((1..=ROWS).contains(&count), "a tile of {count} rows");
    assert!(group.len() == format.group_bytes, "a group of {} bytes", group.len());
    assert!(activations.stride == format.padded() && activations.blocks == format.blocks, "other activations");
    assert!(activations.codes.len() >= (first + count) * activations.stride, "rows past the activations' end");
    assert!(activations.scales.len() >= (first + count) * activations.blocks, "rows past the activations' end");
    assert!(activations.starts.len() >= (first + count) * activations.blocks, "rows past the activations' end");
    let task = Task { format, group: group.as_ptr(), activations, first };
    match version {
        Version::Scalar => super::scalar::compute(format, group, activations, first, count, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these features, since the version was chosen; group and activations are as long
        // as the format says (asserted).
        Version::Avx2 => unsafe { super::avx2::compute(&task, count, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Version::Avx512 => unsafe { super::avx512::compute(&task, count, sums) },
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = task;
}

/// What a tile is computed of. `group` is `format.group_bytes` long, and the rows from `first` on are there.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "plain Rust takes slices"))]
pub(super) struct Task<'a> {
    pub format: &'a Format,
    pub group: *const u8,
    pub activations: &'a Activations,
    pub first: usize,
}
