//! What goes over the connections between stages: frames, each with a head that says of which version and how long it
//! is.
//!
//! | head | bytes |
//! |---|---|
//! | `obst` | 4 |
//! | version | 2 |
//! | kind | 2 |
//! | length of what follows | 8 |
//!
//! Numbers are little-endian. Control frames are JSON; the others hold tensors and are laid out by this file.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::stage::Timing;
use crate::error::{Context, Error, Kind, Result};

/// Raised whenever a frame changes its meaning.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"obst";

const HEAD: usize = 16;

/// A longer frame is none.
const LONGEST: u64 = 64 << 30;

/// A message that says who, or how it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Control {
    /// The first frame of every connection.
    Hello {
        /// What only the pipeline's processes know.
        secret: String,
        /// Who connects.
        stage: u32,
        /// Where it listens, where that matters.
        listens: Option<std::net::SocketAddr>,
    },
    /// Where the next stage listens.
    Next {
        /// Its address.
        address: std::net::SocketAddr,
    },
    /// The stage's segments are in memory.
    Loaded {
        /// Seconds that it took.
        seconds: f64,
        /// Bytes that the process holds.
        resident_bytes: u64,
    },
    /// The process is there still.
    Alive,
    /// Asks for [`Control::Report`].
    Ask,
    /// What runs took since the stage was loaded, and what it sent.
    Report {
        /// Times of its parts.
        times: Vec<Timing>,
        /// Frames and bytes to the next stage.
        sent: super::link::LinkUse,
    },
    /// The stage cannot go on.
    Failed {
        /// Operation and causes.
        reason: String,
        /// The remedy.
        hint: Option<String>,
        /// Whose fault it is.
        kind: String,
    },
}

/// A run of one group, as it goes from stage to stage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run<'a> {
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
pub(super) struct Tensor<'a> {
    pub name: String,
    /// ONNX's number of the element type.
    pub element: u8,
    pub dims: Vec<i64>,
    pub bytes: &'a [u8],
}

/// What the last stage says of a run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub group: u32,
    /// The most likely token of each row.
    pub tokens: Vec<u32>,
    /// The logits of each row's last token, one row after the other; empty where they are not wanted.
    pub logits: Vec<f32>,
}

/// The groups of the next batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begin {
    /// Sequences of each.
    pub sizes: Vec<u32>,
    /// Tokens of the longest sequence.
    pub capacity: u32,
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Frame {
    Control(Control),
    Run(Vec<u8>),
    Answer(Vec<u8>),
    Begin(Vec<u8>),
}

const CONTROL: u16 = 1;
const RUN: u16 = 2;
const ANSWER: u16 = 3;
const BEGIN: u16 = 4;

impl Frame {
    /// Reads one; `None` at the end of the connection.
    ///
    /// # Errors
    /// Bytes that are no frame, or one of another version; a connection that breaks off within one.
    pub fn read(stream: &mut impl Read) -> Result<Option<Self>> {
        let mut head = [0; HEAD];
        let mut filled = 0;
        while filled < HEAD {
            match stream.read(&mut head[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        if head[..4] != MAGIC {
            return Err(Error::new("what connected is no stage of a pipeline").kind(Kind::Environment));
        }
        let version = u16::from_le_bytes([head[4], head[5]]);
        if version != VERSION {
            return Err(Error::new(format!("the other stage speaks version {version}, this one {VERSION}"))
                .hint("the program was replaced during a run; start it again"));
        }
        let kind = u16::from_le_bytes([head[6], head[7]]);
        let length = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
        if length > LONGEST {
            return Err(wrong("a frame longer than any"));
        }
        // As it comes, so that a length that is not true takes no memory.
        let mut body = Vec::new();
        let expected = usize::try_from(length.min(1 << 24)).unwrap_or(0);
        body.try_reserve(expected).context("cannot hold what another stage sent")?;
        let count = stream.take(length).read_to_end(&mut body).map_err(broken)?;
        if (count as u64) < length {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        match kind {
            CONTROL => serde_json::from_slice(&body).map(Self::Control).context("another stage is not understood"),
            RUN => Ok(Self::Run(body)),
            ANSWER => Ok(Self::Answer(body)),
            BEGIN => Ok(Self::Begin(body)),
            _ => Err(wrong("a frame of no kind")),
        }
        .map(Some)
    }
}

impl Control {
    /// As a frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = open(CONTROL, 0);
        // Plain data: there is nothing in it that JSON has no word for, but for a number that is not finite.
        frame.extend(serde_json::to_vec(self).unwrap_or_default());
        close(frame)
    }

    /// Sends it.
    ///
    /// # Errors
    /// A connection that broke.
    pub fn send(&self, mut stream: impl Write) -> Result<()> {
        stream.write_all(&self.frame()).map_err(broken)
    }
}

fn broken(error: io::Error) -> Error {
    Error::environment("the connection to another stage broke").because(error)
}

fn wrong(what: &str) -> Error {
    Error::environment(format!("another stage sent {what}"))
}

fn open(kind: u16, room: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + room);
    frame.extend(MAGIC);
    frame.extend(VERSION.to_le_bytes());
    frame.extend(kind.to_le_bytes());
    frame.extend([0; 8]);
    frame
}

fn close(mut frame: Vec<u8>) -> Vec<u8> {
    let length = (frame.len() - HEAD) as u64;
    frame[8..HEAD].copy_from_slice(&length.to_le_bytes());
    frame
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(frame: &[u8]) -> Frame {
        let mut stream = frame;
        let read = Frame::read(&mut stream).expect("a frame").expect("not the end");
        assert!(stream.is_empty());
        read
    }

    fn run(bytes: &[u8]) -> Run<'_> {
        Run {
            group: 3,
            prompts: true,
            logits: false,
            rows: vec![vec![1, 2, 3], vec![], vec![u32::MAX]],
            tensors: vec![
                Tensor { name: "hidden".to_owned(), element: 1, dims: vec![3, 1], bytes },
                Tensor { name: "nothing".to_owned(), element: 7, dims: vec![0], bytes: &[] },
            ],
        }
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let Frame::Run(read) = body(&run(&bytes).frame()) else { panic!("a run") };
        assert_eq!(Run::parse(&read).expect("a run"), run(&bytes));
        let answer = Answer { group: 1, tokens: vec![7, 8], logits: vec![0.5, f32::NEG_INFINITY] };
        let Frame::Answer(read) = body(&answer.frame()) else { panic!("an answer") };
        assert_eq!(Answer::parse(&read).expect("an answer"), answer);
        let begin = Begin { sizes: vec![2, 1], capacity: 9 };
        let Frame::Begin(read) = body(&begin.frame()) else { panic!("a beginning") };
        assert_eq!(Begin::parse(&read).expect("a beginning"), begin);
        let control = Control::Hello { secret: "x".to_owned(), stage: 2, listens: None };
        assert_eq!(body(&control.frame()), Frame::Control(control));
        assert!(Frame::read(&mut &b""[..]).expect("the end").is_none());
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut frame = Control::Alive.frame();
        frame[4] = 9;
        let error = Frame::read(&mut &frame[..]).unwrap_err();
        assert!(error.chain().contains("version 9"), "{}", error.chain());
        frame[0] = b'x';
        assert!(Frame::read(&mut &frame[..]).unwrap_err().chain().contains("no stage"));
    }

    #[test]
    fn what_breaks_off_is_an_error() {
        let bytes = [0; 12];
        let frame = run(&bytes).frame();
        for end in 1..frame.len() {
            assert!(Frame::read(&mut &frame[..end]).is_err(), "{end}");
        }
        let Frame::Run(read) = body(&frame) else { panic!("a run") };
        for end in 0..read.len() {
            assert!(Run::parse(&read[..end]).is_err(), "{end}");
        }
        let mut long = Control::Alive.frame();
        long[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Frame::read(&mut &long[..]).is_err());
        long[8..16].copy_from_slice(&(1_u64 << 35).to_le_bytes());
        assert!(Frame::read(&mut &long[..]).is_err());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::read(&mut &bytes[..]);
            let _ = Run::parse(&bytes);
            let _ = Answer::parse(&bytes);
            let _ = Begin::parse(&bytes);
        }

        #[test]
        fn a_frame_with_a_wrong_byte_is_read_or_refused(place in 0..200_usize, value: u8) {
            let bytes = [7; 12];
            let mut frame = run(&bytes).frame();
            let place = place % frame.len();
            frame[place] = value;
            if let Ok(Some(Frame::Run(body))) = Frame::read(&mut &frame[..]) {
                let _ = Run::parse(&body);
            }
        }
    }
}
