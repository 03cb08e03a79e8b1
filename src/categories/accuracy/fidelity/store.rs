//! A reference's next-token distributions in a file, written and read as a stream.
//!
//! A record is a scored position: the log-probability of the text's own next token, the likeliest [`KEPT`] tokens with
//! their log-probabilities in single precision, and every token's log-probability in 16 bits between the smallest and
//! the largest of those that are not kept. That is 2 bytes a token of the vocabulary (0.3 MB a position at 152,000). A
//! step of the 16 bits is (largest − smallest) ÷ 65535, about 3·10⁻⁴ nats at a range of 20; the Kullback–Leibler
//! divergence of a cell that agrees with its reference is wrong by about the tail's probability × step² ÷ 24, below 10⁻⁸.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::engine::scoring::Normaliser;
use crate::error::{Context, Error, Result};

/// Tokens of a record that are kept exactly.
pub const KEPT: usize = 256;

const MAGIC: &[u8; 8] = b"ortbref1";
const STEPS: f32 = 65_535.0;

/// A position's distribution, as it is read back.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Log-probability of the text's own next token, exact.
    pub next: f32,
    /// The likeliest tokens, the likeliest first, with exact log-probabilities.
    pub kept: Vec<(u32, f32)>,
    /// Log-probabilities of the vocabulary; those of kept tokens are exact.
    pub all: Vec<f32>,
}

/// Writes records.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    /// What the file is called until it is whole.
    part: PathBuf,
    out: BufWriter<File>,
    vocab: usize,
    order: Vec<u32>,
    record: Vec<u8>,
}

impl Writer {
    /// Begins a file; it is whole once [`Writer::finish`] returns.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(path: &Path, vocab: usize) -> Result<Self> {
        let part = path.with_extension("part");
        let file = File::create(&part).with_context(|| format!("cannot write `{}`", part.display()))?;
        let mut writer = Self {
            path: path.to_owned(),
            part,
            out: BufWriter::with_capacity(1 << 20, file),
            vocab,
            order: Vec::with_capacity(vocab),
            record: Vec::new(),
        };
        writer.record.extend(MAGIC);
        writer.record.extend((vocab as u64).to_le_bytes());
        writer.flush_record()?;
        Ok(writer)
    }

    /// Adds a position: its logits, and the token that the text has next, whose log-probability it returns.
    ///
    /// # Errors
    /// Logits that are not finite, a disk that is full.
    pub fn add(&mut self, logits: &[f32], next: u32) -> Result<f64> {
        assert_eq!(logits.len(), self.vocab, "logits of the vocabulary");
        let normaliser = Normaliser::of(logits)?;
        let log_probability = |token: u32| normaliser.log_probability(logits[token as usize]) as f32;
        let kept = kept(logits, &mut self.order);
        self.record.clear();
        self.record.extend(log_probability(next).to_le_bytes());
        for &token in kept {
            self.record.extend(token.to_le_bytes());
            self.record.extend(log_probability(token).to_le_bytes());
        }
        // Of those that are not kept: the others are clipped, and put right when they are read.
        let top = kept.last().map_or(0.0, |&token| log_probability(token));
        let smallest = logits.iter().copied().fold(f32::INFINITY, f32::min);
        let bottom = normaliser.log_probability(smallest) as f32;
        let scale = if top > bottom { STEPS / (top - bottom) } else { 0.0 };
        self.record.extend(bottom.to_le_bytes());
        self.record.extend(top.to_le_bytes());
        let shift = normaliser.log_sum as f32 + bottom;
        self.record.extend(logits.iter().flat_map(|logit| {
            // `as` saturates, which is the clipping.
            ((((logit - shift) * scale) + 0.5) as u16).to_le_bytes()
        }));
        self.flush_record()?;
        Ok(normaliser.log_probability(logits[next as usize]))
    }

    /// Puts everything on disk.
    ///
    /// # Errors
    /// A disk that is full.
    pub fn finish(mut self) -> Result<()> {
        self.out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all())
            .and_then(|()| std::fs::rename(&self.part, &self.path))
            .with_context(|| format!("cannot write `{}`", self.path.display()))
    }

    fn flush_record(&mut self) -> Result<()> {
        self.out.write_all(&self.record).with_context(|| format!("cannot write `{}`", self.path.display())).map_err(
            |error| {
                error.hint(format!(
                    "the reference's logits take {} a token; lower `fidelity: tokens`, or put results on another disk",
                    crate::units::bytes(record_bytes(self.vocab) as u64)
                ))
            },
        )
    }
}

/// The likeliest tokens, the likeliest first; of equals the first.
fn kept<'a>(logits: &[f32], order: &'a mut Vec<u32>) -> &'a [u32] {
    order.clear();
    order.extend(0..logits.len() as u32);
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b));
    let count = KEPT.min(logits.len());
    if count < logits.len() {
        order.select_nth_unstable_by(count, by_logit);
    }
    order.truncate(count);
    order.sort_unstable_by(by_logit);
    order
}

/// Bytes of a position.
pub fn record_bytes(vocab: usize) -> usize {
    4 + 8 * KEPT.min(vocab) + 8 + 2 * vocab
}

/// Reads records, one at a time.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    input: BufReader<File>,
    bytes: Vec<u8>,
    distribution: Distribution,
}

impl Reader {
    /// Opens a file of this vocabulary.
    ///
    /// # Errors
    /// A file that is missing, of another kind or of another vocabulary.
    pub fn open(path: &Path, vocab: usize) -> Result<Self> {
        let file = File::open(path)
            .with_context(|| format!("cannot read the reference's logits `{}`", path.display()))
            .map_err(|error| error.hint("run the matrix anew: the reference is run first"))?;
        let mut input = BufReader::with_capacity(1 << 20, file);
        let mut header = [0; 16];
        input.read_exact(&mut header).with_context(|| format!("`{}` is not whole", path.display()))?;
        let (magic, found) = header.split_at(8);
        let found = found.try_into().map_or(0, u64::from_le_bytes);
        if magic != MAGIC {
            return Err(Error::new(format!("`{}` does not hold a reference's logits", path.display())));
        }
        if found != vocab as u64 {
            return Err(Error::unsupported(format!(
                "the reference has a vocabulary of {found} tokens, the cell {vocab}"
            ))
            .hint("compare models of one tokenizer"));
        }
        let distribution = Distribution { next: 0.0, kept: Vec::new(), all: vec![0.0; vocab] };
        Ok(Self { path: path.to_owned(), input, bytes: vec![0; record_bytes(vocab)], distribution })
    }

    /// The next position.
    ///
    /// # Errors
    /// The end of the file, a record that is not whole.
    pub fn next(&mut self) -> Result<&Distribution> {
        self.input
            .read_exact(&mut self.bytes)
            .with_context(|| format!("`{}` ends before the text does", self.path.display()))?;
        let Distribution { next, kept, all } = &mut self.distribution;
        let float = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
        let (head, rest) = self.bytes.split_at(4);
        let (pairs, rest) = rest.split_at(8 * KEPT.min(all.len()));
        let (range, codes) = rest.split_at(8);
        *next = float(head);
        let (bottom, top) = (float(&range[..4]), float(&range[4..]));
        let step = (top - bottom) / STEPS;
        for (value, code) in all.iter_mut().zip(codes.chunks_exact(2)) {
            *value = bottom + f32::from(u16::from_le_bytes([code[0], code[1]])) * step;
        }
        kept.clear();
        for pair in pairs.chunks_exact(8) {
            let token = u32::from_le_bytes([pair[0], pair[1], pair[2], pair[3]]);
            let value = float(&pair[4..]);
            let slot = all.get_mut(token as usize).filter(|_| value.is_finite());
            *slot.ok_or_else(|| Error::new(format!("`{}` is damaged", self.path.display())))? = value;
            kept.push((token, value));
        }
        Ok(&self.distribution)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(vocab: usize, seed: usize) -> Vec<f32> {
        (0..vocab).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 500.0 - 12.0).collect()
    }

    #[test]
    fn what_was_written_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        for vocab in [3, 256, 257, 4000] {
            let path = folder.path().join("logits.bin");
            let mut writer = Writer::create(&path, vocab).unwrap();
            for seed in 0..5 {
                writer.add(&logits(vocab, seed), 1).unwrap();
            }
            writer.finish().unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 16 + 5 * record_bytes(vocab) as u64);
            let mut reader = Reader::open(&path, vocab).unwrap();
            for seed in 0..5 {
                let logits = logits(vocab, seed);
                let normaliser = Normaliser::of(&logits).unwrap();
                let exact = |token: usize| normaliser.log_probability(logits[token]) as f32;
                let found = reader.next().unwrap();
                assert_eq!(found.next, exact(1));
                assert_eq!(found.kept.len(), KEPT.min(vocab));
                assert!(found.kept.windows(2).all(|pair| pair[0].1 >= pair[1].1));
                let range = found.kept.last().unwrap().1 - found.all.iter().copied().fold(0.0, f32::min);
                for token in 0..vocab {
                    assert!((found.all[token] - exact(token)).abs() <= range / STEPS + 4e-6, "{vocab} {token}");
                }
                for &(token, value) in &found.kept {
                    assert_eq!(value, exact(token as usize));
                }
            }
            assert!(reader.next().is_err());
        }
    }

    #[test]
    fn foreign_and_damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.bin");
        assert!(Reader::open(&path, 10).is_err());
        std::fs::write(&path, b"something else altogether").unwrap();
        assert!(Reader::open(&path, 10).unwrap_err().chain().contains("does not hold"));
        let mut writer = Writer::create(&path, 300).unwrap();
        writer.add(&logits(300, 0), 0).unwrap();
        writer.finish().unwrap();
        assert!(Reader::open(&path, 301).unwrap_err().chain().contains("vocabulary of 300"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert!(Reader::open(&path, 300).unwrap().next().unwrap_err().chain().contains("damaged"));
        std::fs::write(&path, &bytes[..100]).unwrap();
        assert!(Reader::open(&path, 300).unwrap().next().unwrap_err().chain().contains("ends before"));
    }
}
