//! What inputs are filled with.

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::cell::{ElementType, Fill, GraphPlan, InputPlan};
use crate::digest;
use crate::error::{Context, Error, Result};
use crate::package::npy::{self, Array, Elements};
use crate::runtime::HostTensor;

/// The tensor of an input.
pub(super) fn tensor(input: &InputPlan) -> Result<HostTensor> {
    let failed = || format!("cannot make the input `{}`", input.name);
    match &input.fill {
        Fill::File { path, array } => of_array(input, npy::read(path, array.as_deref())?).with_context(failed),
        Fill::Text(text) => {
            let count = usize::try_from(input.elements()).context("its shape has too many elements")?;
            HostTensor::of_texts(&input.shape, &vec![text.clone(); count]).with_context(failed)
        }
        _ => {
            let mut tensor = HostTensor::new(input.element, &input.shape).with_context(failed)?;
            write(input, tensor.bytes_mut());
            Ok(tensor)
        }
    }
}

fn of_array(input: &InputPlan, array: Array) -> Result<HostTensor> {
    if array.shape != input.shape {
        return Err(Error::new(format!(
            "its file has the shape {:?}, and had {:?} when the matrix was checked",
            array.shape, input.shape
        ))
        .hint("the file was changed after the run began; start a new run"));
    }
    match array.elements {
        Elements::Texts(texts) => HostTensor::of_texts(&array.shape, &texts),
        Elements::Bytes(bytes) => {
            let mut tensor = HostTensor::new(input.element, &array.shape)?;
            let memory = tensor.bytes_mut();
            if memory.len() != bytes.len() {
                return Err(Error::new(format!("its file does not hold {} any more", input.element))
                    .hint("the file was changed after the run began; start a new run"));
            }
            memory.copy_from_slice(&bytes);
            Ok(tensor)
        }
    }
}

/// Writes numbers or truth values; memory is zero before.
fn write(input: &InputPlan, memory: &mut [u8]) {
    let (element, width) = (input.element, input.element.size().max(1));
    let slots = memory.chunks_exact_mut(width);
    match &input.fill {
        Fill::Constant(0.0) | Fill::Text(_) | Fill::File { .. } => {}
        Fill::Constant(number) => {
            let bytes = bytes_of(element, *number);
            slots.for_each(|slot| slot.copy_from_slice(&bytes[..width]));
        }
        Fill::Range => {
            for (place, slot) in slots.enumerate() {
                slot.copy_from_slice(&bytes_of(element, place as f64)[..width]);
            }
        }
        Fill::Random { seed, low, high } => {
            let mut random = ChaCha8Rng::seed_from_u64(*seed ^ seed_of(&input.name));
            for slot in slots {
                let number = match element.whole_numbers() {
                    // `low` and `high` were checked to be whole and in range.
                    Some(_) => return whole(element, &mut random, (*low, *high), memory),
                    None if element == ElementType::Bool => f64::from(u8::from(random.random::<bool>())),
                    None => low + (high - low) * random.random::<f64>(),
                };
                slot.copy_from_slice(&bytes_of(element, number)[..width]);
            }
        }
    }
}

fn whole(element: ElementType, random: &mut ChaCha8Rng, (low, high): (f64, f64), memory: &mut [u8]) {
    let width = element.size();
    for slot in memory.chunks_exact_mut(width) {
        let number = random.random_range(low as i64..=high as i64);
        slot.copy_from_slice(&number.to_le_bytes()[..width]);
    }
}

/// Inputs of one graph hold other numbers, although they have one seed.
fn seed_of(name: &str) -> u64 {
    let digits = digest::sha256(name);
    u64::from_str_radix(&digits[..16], 16).unwrap_or_default()
}

/// A number's bytes, little-endian, in the first bytes of eight.
fn bytes_of(element: ElementType, number: f64) -> [u8; 8] {
    let mut bytes = [0; 8];
    let mut put = |from: &[u8]| bytes[..from.len()].copy_from_slice(from);
    match element {
        ElementType::Float32 => put(&(number as f32).to_le_bytes()),
        ElementType::Float64 => put(&number.to_le_bytes()),
        ElementType::Float16 => put(&f16::from_f64(number).to_le_bytes()),
        ElementType::BFloat16 => put(&bf16::from_f64(number).to_le_bytes()),
        // Two's complement: the low bytes are the narrower number's.
        _ => put(&(number as i128).to_le_bytes()[..8]),
    }
    bytes
}

/// First 16 digits of the SHA-256 over names, types, shapes and elements.
pub(super) fn hash(plan: &GraphPlan, tensors: &[(String, HostTensor)]) -> String {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for (input, (name, tensor)) in plan.inputs.iter().zip(tensors) {
        hasher.update(format!("{name}\n{}\n{:?}\n", tensor.element, tensor.shape));
        match (&input.fill, tensor.element) {
            // Texts are not in memory of ours: what they were made from stands for them.
            (fill, ElementType::String) => hasher.update(format!("{fill:?}\n")),
            _ => hasher.update(tensor.bytes()),
        }
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
