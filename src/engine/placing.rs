//! Where what stays from run to run is kept: in the host's memory, or in that of the device that computes.

use crate::engine::plan::CacheMode;
use crate::package::CacheUpdate;
use crate::runtime::providers::Computes;

/// What decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// The memory in which the provider computes.
    pub computes: Computes,
    /// Whether the provider's attention may write into the buffer that it reads.
    pub shares: bool,
    /// Whether the graph's attention may.
    pub update: CacheUpdate,
    /// Whether caches wait on disk, to which only the host's memory is written.
    pub on_disk: bool,
    /// Whether buffers are to be ONNX Runtime's though the provider could take the host's.
    pub copies: bool,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    /// Caches and what parts hand over are in the provider's memory, logits in memory of the host that its device
    /// reaches directly. Otherwise all are in memory of our own.
    pub on_device: bool,
    /// Whether one buffer can be past and present.
    pub shareable: bool,
}

impl Setting {
    /// Where things go.
    pub fn places(self) -> Places {
        let on_device = !self.on_disk && (self.copies || self.computes == Computes::Cuda);
        // A cache of the host's is copied to a device and back by every run: past and present are two tensors there.
        let in_reach = on_device || self.computes == Computes::Host;
        let shareable = self.update == CacheUpdate::InPlaceOrAppend && self.shares && in_reach;
        Places { on_device, shareable }
    }
}

impl Places {
    /// The cache's mode where nobody asks for one.
    pub fn best_mode(self) -> CacheMode {
        if self.shareable { CacheMode::InPlace } else { CacheMode::Append }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::ProviderKind;
    use crate::runtime::providers;

    fn of(provider: ProviderKind, update: CacheUpdate, on_disk: bool) -> Places {
        let provider = providers::of(provider);
        let (computes, shares) = (provider.computes(), provider.shares_cache_buffer());
        Setting { computes, shares, update, on_disk, copies: false }.places()
    }

    #[test]
    fn each_provider_keeps_caches_where_it_computes() {
        use CacheUpdate::{Append, InPlaceOrAppend};
        for (provider, update, on_disk, on_device, mode) in [
            (ProviderKind::Cpu, InPlaceOrAppend, false, false, CacheMode::InPlace),
            (ProviderKind::Cpu, Append, false, false, CacheMode::Append),
            (ProviderKind::Cpu, InPlaceOrAppend, true, false, CacheMode::InPlace),
            (ProviderKind::OpenVino, InPlaceOrAppend, false, false, CacheMode::Append),
            (ProviderKind::Cuda, InPlaceOrAppend, false, true, CacheMode::InPlace),
            (ProviderKind::Cuda, Append, false, true, CacheMode::Append),
            // What waits on disk passes through the host, whose buffers CUDA copies: none to share.
            (ProviderKind::Cuda, InPlaceOrAppend, true, false, CacheMode::Append),
            (ProviderKind::TensorRt, InPlaceOrAppend, false, true, CacheMode::Append),
            (ProviderKind::TensorRt, Append, false, true, CacheMode::Append),
            (ProviderKind::Plugin, InPlaceOrAppend, false, false, CacheMode::Append),
        ] {
            let places = of(provider, update, on_disk);
            assert_eq!((places.on_device, places.best_mode()), (on_device, mode), "{provider} {update:?} {on_disk}");
        }
    }
}
