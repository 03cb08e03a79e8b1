//! A stage in a process of its own.

use std::io::Read;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::job::Job;
use super::link::Link;
use super::meeting;
use super::stage::{Next, Stage};
use super::wire::{Begin, Control, Frame, Run, VERSION};
use crate::error::{Context, Error, Kind, Result};
use crate::loader::held;
use crate::package::Package;
use crate::runtime::Runtime;

/// How often a stage says that it is there.
const PULSE: Duration = Duration::from_secs(1);

/// Reads a job and works as its stage until the pipeline has gone.
///
/// # Errors
/// A job that is none; what ended the stage's work. The pipeline has been told.
pub fn run(input: impl Read) -> Result<()> {
    let job = read(input)?;
    let own = meeting::listen(job.listen)?;
    let address = own.local_addr().context("cannot tell where this stage listens")?;
    let control = meeting::connect(job.head, &job.secret, job.stage, Some(address))?;
    let speaker = Arc::new(Mutex::new(control.try_clone().context("cannot use a connection twice")?));
    let (events, happened) = channel();
    listen_to(control, events.clone(), Event::Ended)?;
    pulse(&speaker)?;
    let work = Work { job: &job, speaker: &speaker, events, happened };
    match work.run(&own) {
        Ok(()) => Ok(()),
        Err(error) => {
            let (reason, hint) = (error.chain(), error.find_hint().map(ToOwned::to_owned));
            let failed = Control::Failed { reason, hint, kind: format!("{:?}", error.root_kind()) };
            // A pipeline that has gone hears nothing.
            let _ = say(&speaker, &failed);
            Err(error)
        }
    }
}

fn read(input: impl Read) -> Result<Job> {
    let job: serde_json::Value = serde_json::from_reader(input).context("the job of a stage is not understood")?;
    let version = job.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(VERSION.into()) {
        let version = version.map_or("none".to_owned(), |version| version.to_string());
        return Err(Error::new(format!("the job of a stage is of version {version}, this program has {VERSION}"))
            .hint("the program was replaced during a run; start it again"));
    }
    serde_json::from_value(job).context("the job of a stage is not understood")
}

type Speaker = Arc<Mutex<TcpStream>>;

fn say(speaker: &Speaker, what: &Control) -> Result<()> {
    what.send(&*speaker.lock().unwrap_or_else(PoisonError::into_inner))
}

enum Event {
    Frame(Frame),
    /// The pipeline's connection, or the one from the stage before, has ended.
    Ended(Option<Error>),
    /// The one to the next stage has.
    Broken(Error),
}

/// Reads a connection to its end.
fn listen_to(stream: TcpStream, events: Sender<Event>, ended: fn(Option<Error>) -> Event) -> Result<()> {
    let mut stream = std::io::BufReader::new(stream);
    let read = move || {
        let end = loop {
            match Frame::read(&mut stream) {
                Ok(Some(frame)) => {
                    if events.send(Event::Frame(frame)).is_err() {
                        return;
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let _ = events.send(ended(end));
    };
    let started = thread::Builder::new().name("stage reader".to_owned()).spawn(read);
    started.map(drop).context("cannot read a stage's connection").map_err(|error| error.kind(Kind::Environment))
}

/// Says again and again that the process is there, for as long as it is.
fn pulse(speaker: &Speaker) -> Result<()> {
    let speaker = Arc::clone(speaker);
    let beat = move || {
        while say(&speaker, &Control::Alive).is_ok() {
            thread::sleep(PULSE);
        }
    };
    let started = thread::Builder::new().name("stage pulse".to_owned()).spawn(beat);
    started.map(drop).context("cannot keep in touch with a pipeline").map_err(|error| error.kind(Kind::Environment))
}

struct Work<'a> {
    job: &'a Job,
    speaker: &'a Speaker,
    events: Sender<Event>,
    happened: Receiver<Event>,
}

impl Work<'_> {
    fn run(self, own: &std::net::TcpListener) -> Result<()> {
        let Self { job, speaker, events, happened } = self;
        let next = loop {
            match happened.recv_timeout(meeting::PATIENCE) {
                Ok(Event::Frame(Frame::Control(Control::Next { address }))) => break address,
                Ok(Event::Ended(None)) => return Ok(()),
                Ok(Event::Ended(Some(error)) | Event::Broken(error)) => return Err(error),
                Ok(Event::Frame(_)) => {}
                Err(_) => return Err(Error::environment("the pipeline does not say who is next")),
            }
        };
        // Everybody listens already, so that nobody waits for another here.
        let stream = meeting::connect(next, &job.secret, job.stage, None)?;
        let broken = events.clone();
        let link = Link::open(stream, job.limits, move |error| drop(broken.send(Event::Broken(error))))?;
        let before = meeting::accept(own, &job.secret, || Ok(()))?;
        if before.stage + 1 != job.stage {
            return Err(Error::environment(format!("stage {} connected to stage {}", before.stage, job.stage)));
        }
        let loading = Instant::now();
        let plan = job.plan.plan();
        let runtime = Runtime::load_sharing(&job.library, plan.shared_threads())?;
        let package = Package::open(&job.package)?;
        let mut stage = Stage::load(&runtime, &package, &job.backend, &plan, &job.segments)?;
        let (seconds, resident_bytes) = (loading.elapsed().as_secs_f64(), held::resident_bytes()?);
        say(speaker, &Control::Loaded { seconds, resident_bytes })?;
        listen_to(before.stream, events, Event::Ended)?;
        let used = link.used();
        while let Ok(event) = happened.recv() {
            match event {
                Event::Frame(Frame::Run(body)) => match stage.run(&Run::parse(&body)?)? {
                    Next::Pass(frame) => link.send(frame)?,
                    Next::Done(answer) => link.send(answer.frame())?,
                },
                Event::Frame(Frame::Begin(body)) => {
                    let begin = Begin::parse(&body)?;
                    stage.begin(&begin)?;
                    if job.stage + 1 < job.count {
                        link.send(begin.frame())?;
                    }
                }
                Event::Frame(Frame::Control(Control::Ask)) => {
                    let sent = *used.lock().unwrap_or_else(PoisonError::into_inner);
                    say(speaker, &Control::Report { times: stage.take_times(), sent })?;
                }
                Event::Frame(_) => return Err(Error::environment("a frame that is not for a stage")),
                Event::Ended(None) => return Ok(()),
                Event::Ended(Some(error)) | Event::Broken(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_other_versions_and_nonsense_are_refused() {
        let error = run(&br#"{"version": 99}"#[..]).unwrap_err();
        assert!(error.chain().contains("version 99"), "{}", error.chain());
        assert!(run(&br#"{"version": 1}"#[..]).unwrap_err().chain().contains("not understood"));
        assert!(run(&b"nonsense"[..]).is_err());
        assert!(run(&b"{}"[..]).unwrap_err().chain().contains("version none"));
    }
}
