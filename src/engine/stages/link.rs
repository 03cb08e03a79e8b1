//! A connection to the next stage that is as slow as it is told.
//!
//! A frame leaves when the one before it is through, takes its bytes ÷ bandwidth to leave, and arrives when the latency
//! has passed besides; the next one may leave meanwhile. It is handed to the kernel whole at the moment at which its
//! last byte would arrive, so that whoever reads gets it then.

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::job::Limits;
use crate::error::{Error, Result};

/// What went over a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkUse {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The sending end of a link. A thread of its own waits and writes, so that whoever computes goes on.
#[derive(Debug)]
pub(super) struct Link {
    queue: Option<Sender<(Instant, Vec<u8>)>>,
    /// Dropped to end a wait.
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    stream: TcpStream,
    used: Arc<Mutex<LinkUse>>,
}

impl Link {
    /// A link over this connection; `failed` hears of its end.
    ///
    /// # Errors
    /// A thread that cannot be had.
    pub fn open(stream: TcpStream, limits: Limits, failed: impl FnOnce(Error) + Send + 'static) -> Result<Self> {
        let ((queue, waiting), (stop, stopped)) = (channel(), channel());
        let lost = |error| Error::environment("cannot open a link between stages").because(error);
        let mut writing = stream.try_clone().map_err(lost)?;
        let thread = thread::Builder::new().name("link".to_owned()).spawn(move || {
            if let Err(error) = deliver(&waiting, &stopped, &mut writing, limits) {
                failed(Error::environment("the connection to the next stage broke").because(error));
            }
        });
        let thread = Some(thread.map_err(lost)?);
        Ok(Self { queue: Some(queue), stop: Some(stop), thread, stream, used: Arc::default() })
    }

    /// Sends a frame, now or when the link is free.
    ///
    /// # Errors
    /// A link that broke.
    pub fn send(&self, frame: Vec<u8>) -> Result<()> {
        let bytes = frame.len() as u64;
        let sent = self.queue.as_ref().and_then(|queue| queue.send((Instant::now(), frame)).ok());
        sent.ok_or_else(|| Error::environment("the connection to the next stage broke"))?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.frames += 1;
        used.bytes += bytes;
        Ok(())
    }

    /// What was sent, for whoever asks from another thread.
    pub fn used(&self) -> Arc<Mutex<LinkUse>> {
        Arc::clone(&self.used)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        (self.queue, self.stop) = (None, None);
        // A write that a peer never reads would not end by itself.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn deliver(
    waiting: &Receiver<(Instant, Vec<u8>)>,
    stopped: &Receiver<()>,
    stream: &mut TcpStream,
    limits: Limits,
) -> std::io::Result<()> {
    let mut timetable = Timetable::new(limits);
    while let Ok((ready, frame)) = waiting.recv() {
        let wait = timetable.arrival(ready, frame.len()).saturating_duration_since(Instant::now());
        if !wait.is_zero() && stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
        stream.write_all(&frame)?;
    }
    Ok(())
}

/// When frames arrive.
struct Timetable {
    limits: Limits,
    /// When the last frame is through.
    free: Option<Instant>,
}

impl Timetable {
    fn new(limits: Limits) -> Self {
        Self { limits, free: None }
    }

    /// When a frame arrives that was ready then.
    fn arrival(&mut self, ready: Instant, bytes: usize) -> Instant {
        let start = self.free.map_or(ready, |free| free.max(ready));
        let seconds = self.limits.bandwidth.map_or(0.0, |bandwidth| bytes as f64 / bandwidth);
        let through = start + seconds_of(seconds);
        self.free = Some(through);
        through + seconds_of(self.limits.latency)
    }
}

/// Whatever cannot be waited for is a day.
fn seconds_of(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0))
        .unwrap_or(Duration::from_secs(86_400))
        .min(Duration::from_secs(86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_wait_for_those_before_them_and_not_for_their_latency() {
        let limits = Limits { bandwidth: Some(1000.0), latency: 2.0 };
        let mut timetable = Timetable::new(limits);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs_f64(seconds);
        assert_eq!(timetable.arrival(start, 1000), after(3.0));
        assert_eq!(timetable.arrival(start, 500), after(3.5));
        assert_eq!(timetable.arrival(after(10.0), 1000), after(13.0));
        let mut timetable = Timetable::new(Limits { bandwidth: None, latency: 0.0 });
        assert_eq!(timetable.arrival(start, 1000), start);
        assert_eq!(seconds_of(f64::INFINITY), Duration::from_secs(86_400));
        assert_eq!(seconds_of(-1.0), Duration::ZERO);
    }
}
