//! Quantized products on packed weights against ONNX Runtime's own `MatMulNBits` and `QMoE`, in alternation (A B B A)
//! in one process:
//!
//!     cargo bench --bench kernels -- run [--rounds N] [--threads N] [--rows 1,32,128] [--only NAME] [--half]
//!
//! The matrices are Qwen3-4B's, the experts Qwen3-Coder-30B-A3B's, with random weights of 4 bits in blocks of 32. Each
//! arm goes through copies of a matrix that together are larger than the caches, as a model's pass does. `--half`
//! stores our scales in two bytes. Ratios are stock time ÷ our time, with a 95 % interval.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ortbench::cell::RuntimeRef;
use ortbench::error::{Context, Error, Result};
use ortbench::loader::kernels::{self, Share};
use ortbench::package::shards::NBits;
use ortbench::runtime::custom::Parallel;
use ortbench::runtime::{Runtime, catalog};
use ortbench::stats::{Ratio, Summary};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[path = "kernels/graph.rs"]
mod graph;
#[path = "kernels/stock.rs"]
mod stock;

use graph::Graph;
use stock::Stock;

const BLOCK: usize = 32;
/// Outputs and inputs of Qwen3-4B's matrices.
const MATRICES: [(&str, usize, usize); 5] = [
    ("qkv", 6144, 2560),
    ("o", 2560, 4096),
    ("gate_up", 19456, 2560),
    ("down", 2560, 9728),
    ("lm_head", 151_936, 2560),
];
/// Qwen3-Coder-30B-A3B's experts.
const EXPERTS: usize = 128;
const CHOSEN: usize = 8;
const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 768;
/// Copies of a matrix are at least this many bytes together.
const BYTES: usize = 160 << 20;
/// A sample takes at least this long.
const SAMPLE: Duration = Duration::from_millis(60);
/// Between two arms: ONNX Runtime's threads spin for a while after a run.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> std::process::ExitCode {
    // cargo adds `--bench`; without arguments there is nothing to measure (`cargo test --benches`).
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some("run") = arguments.first().map(String::as_str) else { return std::process::ExitCode::SUCCESS };
    match measure(&arguments[1..]) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            std::process::ExitCode::FAILURE
        }
    }
}

struct Bench {
    runtime: Runtime,
    threads: usize,
    rounds: usize,
    half_scales: bool,
    pool: rayon::ThreadPool,
}

fn measure(options: &[String]) -> Result<()> {
    let option = |name: &str| options.iter().position(|o| o == name).and_then(|at| options.get(at + 1));
    let number = |text: &String| text.parse::<usize>().map_err(|_| Error::new(format!("`{text}` is no whole number")));
    let threads = option("--threads").map_or(Ok(2), number)?;
    let rows = option("--rows").map_or("1,32,128", String::as_str).split(',');
    let rows: Vec<usize> = rows.map(|text| number(&text.to_owned())).collect::<Result<_>>()?;
    let only = option("--only").map_or("", String::as_str);
    let bench = Bench {
        runtime: Runtime::load(&catalog::find(&RuntimeRef::Installed("cpu".into()))?.path)?,
        threads,
        rounds: option("--rounds").map_or(Ok(7), number)?,
        half_scales: options.iter().any(|option| option == "--half"),
        pool: rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("cannot start threads")?,
    };
    println!("{threads} threads, ONNX Runtime {}", bench.runtime.version()?);
    for (name, outputs, inputs) in MATRICES.into_iter().filter(|(name, ..)| name.contains(only)) {
        bench.matrix(name, outputs, inputs, &rows)?;
    }
    if "experts".contains(only) {
        bench.experts(&rows)?;
    }
    Ok(())
}

/// Tasks shared among rayon's threads by a counter; the caller is one of them.
struct Shared(usize);

impl Parallel for Shared {
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                task(number);
            }
        };
        rayon::scope(|scope| {
            (1..self.0.min(count)).for_each(|_| scope.spawn(|_| work()));
            work();
        });
    }

    fn threads(&self) -> usize {
        self.0
    }
}

/// A random quantized matrix as ONNX has it.
struct Weights {
    shape: NBits,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Weights {
    fn random(rows: usize, columns: usize, half_scales: bool, random: &mut ChaCha8Rng) -> Self {
        let shape = NBits { rows, columns, block: BLOCK, bits: 4, zero_points: false, half_scales };
        let blocks = shape.blocks();
        let mut codes = vec![0; rows * blocks * BLOCK / 2];
        random.fill(&mut codes[..]);
        let scale = |_| half::f16::from_f32(random.random_range(0.001..0.02)).to_f32();
        Self { shape, codes, scales: (0..rows * blocks).map(scale).collect() }
    }

    fn pack(&self, into: &mut [u8]) -> Result<()> {
        kernels::pack(&self.shape, &self.codes, &self.scales, None, into)
    }

    fn scale_bytes(&self) -> Vec<u8> {
        self.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect()
    }

    fn stock_bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }
}

impl Bench {
    fn matrix(&self, name: &str, outputs: usize, inputs: usize, rows: &[usize]) -> Result<()> {
        let mut weights = Weights::random(outputs, inputs, self.half_scales, &mut ChaCha8Rng::seed_from_u64(1));
        let bytes = kernels::packed_bytes(&weights.shape);
        let copies = BYTES.div_ceil(bytes);
        let mut memory = Aligned::new(bytes * copies);
        let (scales, dims) = (weights.scale_bytes(), [outputs, inputs / BLOCK, BLOCK / 2]);
        let mut graph = Graph::default();
        for (copy, memory) in memory.bytes().chunks_exact_mut(bytes).enumerate() {
            // Each copy differs, lest ONNX Runtime keeps equal ones once.
            weights.codes.rotate_left(64);
            weights.pack(memory)?;
            graph.tensor(&format!("w{copy}"), 2, &dims, &weights.codes);
            graph.tensor(&format!("s{copy}"), 1, &dims[..2], &scales);
            let attributes = [("K", inputs), ("N", outputs), ("bits", 4), ("block_size", BLOCK), ("accuracy_level", 4)];
            let (w, s) = (format!("w{copy}"), format!("s{copy}"));
            graph.node("MatMulNBits", &["x", &w, &s], &format!("y{copy}"), &attributes, &[], &[]);
            graph.value(12, &format!("y{copy}"), outputs);
        }
        graph.value(11, "x", inputs);
        let mut stock = Stock::new(&self.runtime, self.threads, &graph)?;
        drop(graph);
        for &m in rows {
            let x = activations(m * inputs);
            let y = stock.bind(m, &x, inputs, outputs, (0..copies).map(|copy| format!("y{copy}")), None)?;
            let mut out = vec![0.0; m * outputs];
            let (pool, parallel) = (&self.pool, Shared(self.threads));
            let packed = memory.bytes();
            let times = self.alternate(
                &mut || {
                    pool.install(|| {
                        for copy in packed.chunks_exact(bytes) {
                            kernels::multiply(&weights.shape, copy, &x, &mut out, &parallel);
                        }
                    });
                    Ok(())
                },
                &mut || stock.run(),
            )?;
            let error = difference(&out, stock.read(y, m * outputs));
            let products = (m * outputs * inputs * copies) as f64;
            let bytes = [bytes * copies, weights.stock_bytes() * copies];
            report(&format!("{name} {outputs}×{inputs}, {m} rows"), times, bytes, products, error)?;
        }
        Ok(())
    }

    fn experts(&self, rows: &[usize]) -> Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let mut weights = |rows, columns| Weights::random(rows, columns, self.half_scales, &mut random);
        let (mut gate_up, mut down) = (weights(2 * INTERMEDIATE, HIDDEN), weights(HIDDEN, INTERMEDIATE));
        let bytes = kernels::expert_bytes(&gate_up.shape, &down.shape);
        let mut memory = Aligned::new(bytes * EXPERTS);
        let mut tensors = [const { Vec::new() }; 4];
        for memory in memory.bytes().chunks_exact_mut(bytes) {
            let (one, two) = memory.split_at_mut(kernels::down_offset(&gate_up.shape));
            for (number, (weights, memory)) in [(&mut gate_up, one), (&mut down, two)].into_iter().enumerate() {
                weights.codes.rotate_left(64);
                weights.pack(memory)?;
                tensors[2 * number].extend_from_slice(&weights.codes);
                tensors[2 * number + 1].extend_from_slice(&weights.scale_bytes());
            }
        }
        let mut graph = Graph::default();
        for (number, shape) in [gate_up.shape, down.shape].iter().enumerate() {
            let NBits { rows, columns, .. } = *shape;
            graph.tensor(&format!("w{}", number + 1), 2, &[EXPERTS, rows, columns / 2], &tensors[2 * number]);
            graph.tensor(&format!("s{}", number + 1), 1, &[EXPERTS, rows, columns / BLOCK], &tensors[2 * number + 1]);
        }
        drop(tensors);
        let ints = [
            ("k", CHOSEN),
            ("swiglu_fusion", 1),
            ("normalize_routing_weights", 1),
            ("expert_weight_bits", 4),
            ("block_size", BLOCK),
            ("accuracy_level", 4),
        ];
        let inputs = ["x", "scores", "w1", "s1", "", "w2", "s2", ""];
        let floats = [("activation_alpha", 1.0), ("activation_beta", 0.0)];
        graph.node("QMoE", &inputs, "y0", &ints, &floats, &[("activation_type", "swiglu")]);
        graph.value(11, "x", HIDDEN);
        graph.value(11, "scores", EXPERTS);
        graph.value(12, "y0", HIDDEN);
        let mut stock = Stock::new(&self.runtime, self.threads, &graph)?;
        drop(graph);

        let shapes = (&gate_up.shape, &down.shape);
        for &m in rows {
            let (x, scores) = (activations(m * HIDDEN), activations(m * EXPERTS));
            let names = std::iter::once("y0".to_owned());
            let y = stock.bind(m, &x, HIDDEN, HIDDEN, names, Some((&scores, EXPERTS)))?;
            let mut out = vec![0.0; m * HIDDEN];
            let (pool, parallel) = (&self.pool, Shared(self.threads));
            let records: Vec<&[u8]> = memory.bytes().chunks_exact(bytes).collect();
            let times = self.alternate(
                &mut || {
                    pool.install(|| mixture(shapes, &records, &x, &scores, &mut out, &parallel));
                    Ok(())
                },
                &mut || stock.run(),
            )?;
            let error = difference(&out, stock.read(y, m * HIDDEN));
            let mut used: Vec<usize> = scores.chunks_exact(EXPERTS).flat_map(|s| route(s).map(|(e, _)| e)).collect();
            used.sort_unstable();
            used.dedup();
            let products = (m * CHOSEN * 3 * HIDDEN * INTERMEDIATE) as f64;
            let bytes = [bytes * used.len(), (gate_up.stock_bytes() + down.stock_bytes()) * used.len()];
            report(&format!("experts, {m} rows, {} used", used.len()), times, bytes, products, error)?;
        }
        Ok(())
    }

    /// Seconds of each arm's samples, taken A B B A.
    fn alternate(
        &self,
        ours: &mut dyn FnMut() -> Result<()>,
        stock: &mut dyn FnMut() -> Result<()>,
    ) -> Result<[Vec<f64>; 2]> {
        let mut times = [Vec::new(), Vec::new()];
        // The first round warms both arms up and says how many runs a sample takes.
        let mut runs = [1, 1];
        for round in 0..=self.rounds {
            for arm in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let run: &mut dyn FnMut() -> Result<()> = if arm == 0 { &mut *ours } else { &mut *stock };
                std::thread::sleep(PAUSE);
                run()?;
                let start = Instant::now();
                for _ in 0..runs[arm] {
                    run()?;
                }
                let seconds = start.elapsed().as_secs_f64() / f64::from(runs[arm]);
                if round == 0 {
                    runs[arm] = (SAMPLE.as_secs_f64() / seconds).ceil() as u32;
                } else {
                    times[arm].push(seconds);
                }
            }
        }
        Ok(times)
    }
}

/// What `QMoE` computes: the experts with the highest scores, weighed by the softmax over those chosen.
fn mixture(
    (gate_up, down): (&NBits, &NBits),
    records: &[&[u8]],
    x: &[f32],
    scores: &[f32],
    out: &mut [f32],
    parallel: &dyn Parallel,
) {
    let mut tokens = vec![Vec::new(); EXPERTS];
    for (token, scores) in scores.chunks_exact(EXPERTS).enumerate() {
        route(scores).into_iter().for_each(|(expert, weight)| tokens[expert].push((token, weight)));
    }
    let rows: Vec<Vec<usize>> = tokens.iter().map(|tokens| tokens.iter().map(|(token, _)| *token).collect()).collect();
    let shares: Vec<Share<'_>> = records.iter().zip(&rows).map(|(record, rows)| Share { record, rows }).collect();
    let mut results = vec![0.0; tokens.iter().map(Vec::len).sum::<usize>() * HIDDEN];
    kernels::experts(gate_up, down, &shares, x, &mut results, parallel);
    out.fill(0.0);
    for ((token, weight), result) in tokens.iter().flatten().zip(results.chunks_exact(HIDDEN)) {
        for (out, result) in out[token * HIDDEN..][..HIDDEN].iter_mut().zip(result) {
            *out += weight * result;
        }
    }
}

fn route(scores: &[f32]) -> [(usize, f32); CHOSEN] {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.select_nth_unstable_by(CHOSEN - 1, |a, b| scores[*b].total_cmp(&scores[*a]));
    let total: f32 = order[..CHOSEN].iter().map(|&expert| scores[expert].exp()).sum();
    std::array::from_fn(|at| (order[at], scores[order[at]].exp() / total))
}

fn activations(count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(count as u64);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// The largest difference, as a part of the largest value.
fn difference(ours: &[f32], stock: &[f32]) -> f32 {
    let largest = stock.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    ours.iter().zip(stock).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

fn report(name: &str, times: [Vec<f64>; 2], bytes: [usize; 2], products: f64, error: f32) -> Result<()> {
    let ratio = Ratio::paired(&times[1], &times[0]).ok_or_else(|| Error::new("too few rounds"))?;
    let interval = ratio.ci95.map_or(String::new(), |ci| format!(" [{:.2}, {:.2}]", ci.low, ci.high));
    let rates = times.iter().zip(bytes).map(|(times, bytes)| {
        let summary = Summary::of(times).ok_or_else(|| Error::new("too few rounds"))?;
        let seconds = summary.median;
        Ok(format!(
            "{:.3} ms ({:.3}–{:.3}) {:.1} GB/s {:.0} GMAC/s",
            seconds * 1e3,
            summary.min * 1e3,
            summary.max * 1e3,
            bytes as f64 / seconds / 1e9,
            products / seconds / 1e9
        ))
    });
    let rates: Vec<String> = rates.collect::<Result<_>>()?;
    let (value, ours, stock) = (ratio.value, &rates[0], &rates[1]);
    println!("{name}: ours {ours}; stock {stock}; ratio {value:.2}{interval}; difference {error:.1e}");
    Ok(())
}

/// Bytes that start at a multiple of 64.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let memory = vec![0; length + 64];
        let start = memory.as_ptr().align_offset(64);
        Self { memory, start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.length]
    }
}
