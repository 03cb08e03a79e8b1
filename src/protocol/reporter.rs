//! Writing messages, one a line.

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::{FactValue, ItemResults, Message, OperatorTime, TaskResult};
use crate::error::{Context, Result};

/// Where messages go.
#[derive(Clone)]
pub struct Reporter {
    out: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl Reporter {
    /// Messages to any writer.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self { out: Arc::new(Mutex::new(Box::new(out))) }
    }

    /// Writes one message as one line.
    ///
    /// # Errors
    /// A reader that went away: then nobody waits for the rest either.
    pub fn send(&self, message: &Message) -> Result<()> {
        let mut line = serde_json::to_vec(message).context("cannot encode a message")?;
        line.push(b'\n');
        let mut out = self.out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        out.write_all(&line).and_then(|()| out.flush()).context("cannot write a message to the parent")
    }

    /// The worker entered a phase.
    pub fn phase(&self, name: &str) -> Result<()> {
        self.send(&Message::Phase { name: name.to_owned(), done: None })
    }

    /// Progress within a phase.
    pub fn progress(&self, name: &str, done: u64, of: u64) -> Result<()> {
        self.send(&Message::Phase { name: name.to_owned(), done: Some((done, of)) })
    }

    /// A figure or word of the whole process.
    pub fn fact(&self, name: &str, value: impl Into<FactValue>) -> Result<()> {
        self.send(&Message::Fact { name: name.to_owned(), value: value.into() })
    }

    /// Raw measurements of one repetition.
    pub fn samples(&self, metric: &str, repetition: u32, values: Vec<f64>) -> Result<()> {
        self.send(&Message::Samples { metric: metric.to_owned(), repetition, values })
    }

    /// The result of a task set.
    pub fn task(&self, result: TaskResult) -> Result<()> {
        self.send(&Message::Task { result: Box::new(result) })
    }

    /// Figures of a task's items.
    pub fn items(&self, items: ItemResults) -> Result<()> {
        self.send(&Message::Items { items })
    }

    /// A node's time in a profile.
    pub fn operator(&self, time: OperatorTime) -> Result<()> {
        self.send(&Message::Operator { time: Box::new(time) })
    }

    /// Something that the row's reader should know.
    pub fn warning(&self, text: impl Into<String>) -> Result<()> {
        self.send(&Message::Warning { text: text.into() })
    }
}
