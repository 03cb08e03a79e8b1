//! Runs, answers, and the beginning of batches, as bytes.

use super::{ANSWER, BEGIN, RUN, close, open, wrong};
use crate::error::Result;

/// A run of one group, as it goes from stage to stage.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine::stages) struct Run<'a> {
    pub group: u32,
    /// Whether the rows are whole prompts.
    pub prompts: bool,
    /// Whether the logits are wanted, beside the tokens.
    pub logits: bool,
    /// Tokens of each row.
    pub rows: Vec<Vec<u32>>,
    /// What earlier stages made and later ones take.
    pub tensors: Vec<Tensor<'a>>,
}

/// A tensor of a run.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine::stages) struct Tensor<'a> {
    pub name: String,
    /// ONNX's number of the element type.
    pub element: u8,
    pub dims: Vec<i64>,
    pub bytes: &'a [u8],
}

/// What the last stage says of a run.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine::stages) struct Answer {
    pub group: u32,
    /// The most likely token of each row.
    pub tokens: Vec<u32>,
    /// The logits of each row's last token, one row after the other; empty where they are not wanted.
    pub logits: Vec<f32>,
}

/// The groups of the next batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine::stages) struct Begin {
    /// Sequences of each.
    pub sizes: Vec<u32>,
    /// Tokens of the longest sequence.
    pub capacity: u32,
}

fn put(frame: &mut Vec<u8>, number: usize) {
    frame.extend((number as u32).to_le_bytes());
}

impl Run<'_> {
    /// As a frame.
    pub fn frame(&self) -> Vec<u8> {
        let tokens: usize = self.rows.iter().map(|row| 4 + 4 * row.len()).sum();
        let tensors: usize = self.tensors.iter().map(|tensor| tensor.bytes.len() + 128).sum();
        let mut frame = open(RUN, 32 + tokens + tensors);
        frame.extend(self.group.to_le_bytes());
        frame.extend([u8::from(self.prompts), u8::from(self.logits)]);
        put(&mut frame, self.rows.len());
        for row in &self.rows {
            put(&mut frame, row.len());
            row.iter().for_each(|token| frame.extend(token.to_le_bytes()));
        }
        put(&mut frame, self.tensors.len());
        for tensor in &self.tensors {
            put(&mut frame, tensor.name.len());
            frame.extend(tensor.name.as_bytes());
            frame.extend([tensor.element, tensor.dims.len() as u8]);
            tensor.dims.iter().for_each(|size| frame.extend(size.to_le_bytes()));
            frame.extend((tensor.bytes.len() as u64).to_le_bytes());
            frame.extend(tensor.bytes);
        }
        close(frame)
    }
}

impl<'a> Run<'a> {
    /// Reads what follows a frame's head.
    ///
    /// # Errors
    /// Bytes that are no run.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut bytes = Bytes(body);
        let group = bytes.u32()?;
        let [prompts, logits] = [bytes.u8()? != 0, bytes.u8()? != 0];
        let rows = bytes.list(4, |bytes| bytes.list(4, Bytes::u32))?;
        let tensors = bytes.list(14, |bytes| {
            let length = bytes.u32()? as usize;
            let name = std::str::from_utf8(bytes.take(length)?).map_err(|_| wrong("a name that is no text"))?;
            let element = bytes.u8()?;
            let dims = bytes.u8()?;
            let dims = (0..dims).map(|_| bytes.i64()).collect::<Result<_>>()?;
            let length = usize::try_from(bytes.u64()?).map_err(|_| wrong("a tensor longer than any"))?;
            Ok(Tensor { name: name.to_owned(), element, dims, bytes: bytes.take(length)? })
        })?;
        bytes.end()?;
        Ok(Self { group, prompts, logits, rows, tensors })
    }
}

impl Answer {
    /// As a frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = open(ANSWER, 12 + 4 * (self.tokens.len() + self.logits.len()));
        frame.extend(self.group.to_le_bytes());
        put(&mut frame, self.tokens.len());
        self.tokens.iter().for_each(|token| frame.extend(token.to_le_bytes()));
        put(&mut frame, self.logits.len());
        self.logits.iter().for_each(|logit| frame.extend(logit.to_le_bytes()));
        close(frame)
    }

    /// Reads what follows a frame's head.
    ///
    /// # Errors
    /// Bytes that are no answer.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut bytes = Bytes(body);
        let group = bytes.u32()?;
        let tokens = bytes.list(4, Bytes::u32)?;
        let logits = bytes.list(4, |bytes| Ok(f32::from_bits(bytes.u32()?)))?;
        bytes.end()?;
        Ok(Self { group, tokens, logits })
    }
}

impl Begin {
    /// As a frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = open(BEGIN, 8 + 4 * self.sizes.len());
        frame.extend(self.capacity.to_le_bytes());
        put(&mut frame, self.sizes.len());
        self.sizes.iter().for_each(|size| frame.extend(size.to_le_bytes()));
        close(frame)
    }

    /// Reads what follows a frame's head.
    ///
    /// # Errors
    /// Bytes that are no such frame.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut bytes = Bytes(body);
        let capacity = bytes.u32()?;
        let sizes = bytes.list(4, Bytes::u32)?;
        bytes.end()?;
        Ok(Self { sizes, capacity })
    }
}

/// What is left to read of a frame.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| wrong("a frame that ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N).map(|bytes| bytes.try_into().expect("as many"))
    }

    fn u8(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A number, and as many of something that takes at least `least` bytes.
    fn list<T>(&mut self, least: usize, mut one: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.u32()? as usize;
        if count > self.0.len() / least {
            return Err(wrong("a frame that ends too early"));
        }
        (0..count).map(|_| one(self)).collect()
    }

    fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(wrong("a frame that is too long")) }
    }
}
