//! The processes of a pipeline's other stages: started, told what to do, heard, and ended.

use std::io::{BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::job::{Job, Stages, Via};
use super::meeting::{self, Peer};
use super::network::{self, Network};
use super::wire::{Control, Frame};
use crate::error::{Context, Error, Kind, Result};

/// A process that says nothing for so long is taken for hung: it says that it is there every second.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a better reason is waited for when something fails.
const REASON: Duration = Duration::from_millis(300);

/// How often it is looked for.
const WAKING: Duration = Duration::from_millis(5);

/// What happens elsewhere.
#[derive(Debug)]
pub(super) enum Event {
    /// The last stage says something of a run.
    Answer(Vec<u8>),
    /// A stage says something of itself.
    Said(u32, Control),
    /// A connection ended.
    Ended(u32, Option<Error>),
}

/// The process of a stage.
#[derive(Debug)]
struct Process {
    stage: u32,
    child: Child,
    // After the process has ended.
    network: Option<Network>,
    control: Option<TcpStream>,
    heard: Instant,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of them, and what is heard of them.
#[derive(Debug)]
pub(super) struct Processes {
    processes: Vec<Process>,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

/// What connects this process with the others.
#[derive(Debug)]
pub(super) struct Connected {
    pub processes: Processes,
    /// To the next stage.
    pub next: TcpStream,
}

impl Processes {
    /// Starts a process for each job, introduces them to each other, and connects to the first and the last.
    ///
    /// # Errors
    /// Processes that cannot be started or end; a network that cannot be had.
    pub fn start(program: &Path, stages: &Stages, jobs: Vec<Job>) -> Result<Connected> {
        let (sender, events) = channel();
        let mut all = Self { processes: Vec::with_capacity(jobs.len()), events, sender };
        let connected = all.connect(program, stages, jobs);
        match connected {
            Ok(next) => Ok(Connected { processes: all, next }),
            Err(error) => Err(all.reason(error)),
        }
    }

    fn connect(&mut self, program: &Path, stages: &Stages, jobs: Vec<Job>) -> Result<TcpStream> {
        let secret = jobs.first().map(|job| job.secret.clone()).unwrap_or_default();
        let count = jobs.len() as u32 + 1;
        let mut address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for job in &jobs {
            let mut process = spawn(program, stages, job.stage)?;
            if stages.via == Via::Namespace {
                let network = Network::attach(process.child.id(), stages.bandwidth)?;
                address = network.head;
                process.network = Some(network);
            }
            self.processes.push(process);
        }
        let listener = meeting::listen(address)?;
        let head = listener.local_addr().context("cannot tell where the pipeline listens")?;
        for (process, job) in self.processes.iter_mut().zip(jobs) {
            let listen = process.network.as_ref().map_or(address, |network| network.stage);
            let job = serde_json::to_vec(&Job { head, listen, ..job }).context("cannot express a stage's job")?;
            if let Some(mut stdin) = process.child.stdin.take() {
                // A process that ended before it read its job tells why by its end.
                let _ = stdin.write_all(&job);
            }
        }
        let mut listens: Vec<Option<SocketAddr>> = vec![None; self.processes.len()];
        for _ in 0..listens.len() {
            let peer = self.accept(&listener, &secret)?;
            let place = (peer.stage as usize).wrapping_sub(1);
            let slot = listens.get_mut(place).filter(|slot| slot.is_none() && peer.listens.is_some());
            *slot.ok_or_else(|| Error::environment("a stage connected that there is not"))? = peer.listens;
            self.listen_to(&peer.stream, peer.stage)?;
            self.processes[place].control = Some(peer.stream);
        }
        let addresses: Vec<SocketAddr> = listens.into_iter().flatten().collect();
        for (place, process) in self.processes.iter().enumerate() {
            let address = addresses.get(place + 1).copied().unwrap_or(head);
            process.say(&Control::Next { address })?;
        }
        let first = addresses.first().ok_or_else(|| Error::new("a pipeline of one stage has no other"))?;
        let next = meeting::connect(*first, &secret, 0, None)?;
        let last = self.accept(&listener, &secret)?;
        if last.stage + 1 != count {
            return Err(Error::environment(format!("stage {} sends answers", last.stage)));
        }
        self.listen_to(&last.stream, last.stage)?;
        Ok(next)
    }

    fn accept(&mut self, listener: &TcpListener, secret: &str) -> Result<Peer> {
        let processes = &mut self.processes;
        meeting::accept(listener, secret, || {
            for process in processes.iter_mut() {
                if let Ok(Some(status)) = process.child.try_wait() {
                    return Err(ended(process.stage, Some(&status.to_string())));
                }
            }
            Ok(())
        })
    }

    /// Turns what comes over a connection into events.
    fn listen_to(&self, stream: &TcpStream, stage: u32) -> Result<()> {
        let failed = |error| Error::environment("cannot read a stage's connection").because(error);
        let mut stream = BufReader::new(stream.try_clone().map_err(failed)?);
        let events = self.sender.clone();
        let read = move || loop {
            let event = match Frame::read(&mut stream) {
                Ok(Some(Frame::Control(said))) => Event::Said(stage, said),
                Ok(Some(Frame::Answer(body))) => Event::Answer(body),
                Ok(Some(_)) => Event::Ended(stage, Some(Error::environment("a frame that is not for the pipeline"))),
                Ok(None) => Event::Ended(stage, None),
                Err(error) => Event::Ended(stage, Some(error)),
            };
            let ends = matches!(event, Event::Ended(..));
            if events.send(event).is_err() || ends {
                return;
            }
        };
        thread::Builder::new().name("pipeline reader".to_owned()).spawn(read).map(drop).map_err(failed)
    }

    /// Where a link says that it broke.
    pub fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// Says something to every stage.
    ///
    /// # Errors
    /// A stage that has gone.
    pub fn say(&self, what: &Control) -> Result<()> {
        self.processes.iter().try_for_each(|process| process.say(what))
    }

    /// What happens next: an answer, or something that a stage says of itself. Never waits for a stage that has gone.
    ///
    /// # Errors
    /// A stage that failed, ended, or is silent.
    pub fn wait(&mut self) -> Result<Event> {
        loop {
            match self.events.recv_timeout(Duration::from_secs(1)) {
                Ok(Event::Said(stage, said)) => {
                    if let Some(process) = self.processes.iter_mut().find(|process| process.stage == stage) {
                        process.heard = Instant::now();
                    }
                    match said {
                        Control::Alive => {}
                        Control::Failed { reason, hint, kind } => {
                            let failed = failure(stage, reason, hint, &kind);
                            return Err(self.killed().unwrap_or(failed));
                        }
                        said => return Ok(Event::Said(stage, said)),
                    }
                }
                Ok(Event::Ended(stage, error)) => {
                    let ending = ended(stage, None);
                    return Err(self.reason(match error {
                        Some(error) => ending.because(error),
                        None => ending,
                    }));
                }
                Ok(answer) => return Ok(answer),
                Err(_) => {
                    // Nothing waits to be read: what was not heard was not said.
                    if let Some(silent) = self.processes.iter().find(|process| process.heard.elapsed() > SILENCE) {
                        let message = format!("stage {} has said nothing for {} s", silent.stage, SILENCE.as_secs());
                        return Err(Error::environment(message));
                    }
                }
            }
        }
    }

    /// A process that was killed, which may be why another one failed.
    fn killed(&mut self) -> Option<Error> {
        let until = Instant::now() + REASON;
        while Instant::now() < until {
            for process in &mut self.processes {
                if let Ok(Some(status)) = process.child.try_wait()
                    && status.signal().is_some()
                {
                    return Some(ended(process.stage, Some(&status.to_string())));
                }
            }
            thread::sleep(WAKING);
        }
        None
    }

    /// Why something failed that others hear of too: a process that was killed is the reason of all else, then comes
    /// what a stage said, then how one ended.
    pub fn reason(&mut self, error: Error) -> Error {
        if let Some(killed) = self.killed() {
            return killed;
        }
        while let Ok(event) = self.events.try_recv() {
            if let Event::Said(stage, Control::Failed { reason, hint, kind }) = event {
                return failure(stage, reason, hint, &kind);
            }
        }
        let exited = self.processes.iter_mut().find_map(|process| match process.child.try_wait() {
            Ok(Some(status)) => Some(ended(process.stage, Some(&status.to_string()))),
            _ => None,
        });
        exited.unwrap_or(error)
    }

    /// Their numbers, for whoever looks at them from outside.
    pub fn ids(&self) -> Vec<u32> {
        self.processes.iter().map(|process| process.child.id()).collect()
    }
}

impl Process {
    fn say(&self, what: &Control) -> Result<()> {
        let control = self.control.as_ref().ok_or_else(|| Error::environment("a stage has not connected"))?;
        what.send(control).map_err(|error| ended(self.stage, None).because(error))
    }
}

fn spawn(program: &Path, stages: &Stages, stage: u32) -> Result<Process> {
    let mut command = match stages.via {
        Via::Namespace => network::enter(program),
        Via::Shaper => Command::new(program),
    };
    let child = command.arg("stage").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let child = child.with_context(|| format!("cannot start the process of stage {stage}"));
    let child = child.map_err(|error| error.kind(Kind::Environment))?;
    Ok(Process { stage, child, network: None, control: None, heard: Instant::now() })
}

fn ended(stage: u32, status: Option<&str>) -> Error {
    let how = status.map_or(String::new(), |status| format!(" ({status})"));
    Error::environment(format!("the process of stage {stage} ended{how}"))
        .hint("the system's log (`dmesg`) says whether it was ended for memory")
}

fn failure(stage: u32, reason: String, hint: Option<String>, kind: &str) -> Error {
    let kind = [Kind::Environment, Kind::Interrupted, Kind::Unsupported, Kind::Invalid]
        .into_iter()
        .find(|known| format!("{known:?}") == kind)
        .unwrap_or_default();
    let error = Error::new(format!("stage {stage} failed")).because(std::io::Error::other(reason)).kind(kind);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
