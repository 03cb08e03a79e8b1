//! Products with block-wise quantized matrices on the CPU, on a packed layout of our own.
//!
//! They compute what ONNX Runtime's `MatMulNBits` (with `accuracy_level` 4) and the experts of its `QMoE` compute:
//! the activations of each row and block of K are rounded to 8 bits by their largest magnitude, dot products within
//! a block are exact integers, and `out += dot · (scale of the weights · scale of the activations)` block after block,
//! each step one fused multiply-add.
//!
//! Because of that fixed order every result is the same to the last bit whichever instruction set computes it
//! (AVX-512 VNNI, AVX2, or plain Rust), whatever the number of threads, and whatever rows are computed along with it.
//!
//! A row of activations that holds a number that is not finite (NaN, ∞) gives NaN everywhere: the block's scale is
//! NaN. A block of activations whose largest magnitude is below 127 × 2⁻¹²⁶ counts as zeros.
//!
//! | file | what |
//! |---|---|
//! | `layout.rs` | where codes, scales and zero points lie; packing and unpacking |
//! | `activations.rs` | rounding activations to 8 bits |
//! | `tile.rs` | up to 8 rows of activations times 16 rows of weights: the choice of a version |
//! | `scalar.rs`, `avx2.rs`, `avx512.rs` | the versions |
//! | `product.rs` | a whole product in tiles, on threads |
//! | `experts.rs` | the experts of a mixture |

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod experts;
mod layout;
mod product;
mod scalar;
mod silu;
#[cfg(test)]
mod tests;
mod tile;

pub use experts::{Share, down_offset, expert_bytes, experts};
pub use layout::{LAYOUT, check, half_scales_lose_nothing, pack, packed_bytes, unpack};
pub use product::multiply;

use crate::runtime::custom::Shared;
