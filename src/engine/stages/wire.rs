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

mod runs;

pub(super) use runs::{Answer, Begin, Run, Tensor};

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

#[cfg(test)]
mod tests;
