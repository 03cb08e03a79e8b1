//! Who connects to whom: the pipeline's processes know a secret, and whoever does not is sent away.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::wire::{Control, Frame};
use crate::error::{Context, Error, Kind, Result};

/// How long a peer that connected may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// How soon a connection is noticed.
const WAKING: Duration = Duration::from_millis(2);

/// How long a stage's process may take to connect.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What only the processes of one pipeline know.
pub(super) fn secret() -> String {
    let number: u128 = rand::rng().random();
    format!("{number:032x}")
}

/// Listens on a port of this address that is free.
///
/// # Errors
/// An address that this machine does not have.
pub(super) fn listen(address: IpAddr) -> Result<TcpListener> {
    let listener =
        TcpListener::bind((address, 0)).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.with_context(|| format!("cannot listen on {address}")).map_err(|error| error.kind(Kind::Environment))
}

/// Somebody who knows the secret.
#[derive(Debug)]
pub(super) struct Peer {
    pub stream: TcpStream,
    pub stage: u32,
    pub listens: Option<SocketAddr>,
}

/// Waits until a stage connects. Whoever else does is sent away; `alive` ends the wait with its error.
///
/// # Errors
/// Nobody within [`PATIENCE`]; a stage of another version.
pub(super) fn accept(listener: &TcpListener, secret: &str, mut alive: impl FnMut() -> Result<()>) -> Result<Peer> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => match introduction(stream, secret) {
                Ok(Some(peer)) => return Ok(peer),
                // Any process of this machine may connect to a port.
                Ok(None) => {}
                Err(error) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                alive()?;
                if Instant::now() > deadline {
                    let message = format!("no stage has connected within {} s", PATIENCE.as_secs());
                    return Err(Error::environment(message));
                }
                thread::sleep(WAKING);
            }
            Err(error) => return Err(Error::environment("cannot accept a stage's connection").because(error)),
        }
    }
}

/// Who connected; `None` where it is nobody.
fn introduction(stream: TcpStream, secret: &str) -> Result<Option<Peer>> {
    let ready = (stream.set_nonblocking(false))
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| stream.set_read_timeout(Some(INTRODUCTION)));
    if ready.is_err() {
        return Ok(None);
    }
    match Frame::read(&mut &stream) {
        Ok(Some(Frame::Control(Control::Hello { secret: said, stage, listens }))) if said == secret => {
            stream.set_read_timeout(None).context("cannot use a stage's connection")?;
            Ok(Some(Peer { stream, stage, listens }))
        }
        // What speaks as a stage does, and not as this version does, is a stage of another version.
        Err(error) if error.root_kind() == Kind::Input => Err(error),
        _ => Ok(None),
    }
}

/// Connects to a stage and says who this one is.
///
/// # Errors
/// Nobody there.
pub(super) fn connect(to: SocketAddr, secret: &str, stage: u32, listens: Option<SocketAddr>) -> Result<TcpStream> {
    let failed = || format!("cannot connect to a stage at {to}");
    let environment = |error: Error| error.kind(Kind::Environment);
    let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(failed).map_err(environment)?;
    stream.set_nodelay(true).with_context(failed).map_err(environment)?;
    Control::Hello { secret: secret.to_owned(), stage, listens }.send(&stream)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Ipv4Addr;

    use super::*;

    fn meeting() -> (TcpListener, SocketAddr) {
        let listener = listen(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("a port");
        let address = listener.local_addr().expect("an address");
        (listener, address)
    }

    #[test]
    fn strangers_are_sent_away_and_a_stage_is_let_in() {
        let (listener, address) = meeting();
        let secret = secret();
        let mut stranger = TcpStream::connect(address).expect("a connection");
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
        let _wrong = connect(address, "another secret", 1, None).expect("a connection");
        let _gone = TcpStream::connect(address).map(drop);
        let _stage = connect(address, &secret, 3, Some(address)).expect("a connection");
        let peer = accept(&listener, &secret, || Ok(())).expect("the stage");
        assert_eq!((peer.stage, peer.listens), (3, Some(address)));
    }

    #[test]
    fn a_stage_of_another_version_ends_the_meeting() {
        let (listener, address) = meeting();
        let mut frame = Control::Hello { secret: "s".to_owned(), stage: 1, listens: None }.frame();
        frame[4..6].copy_from_slice(&77_u16.to_le_bytes());
        TcpStream::connect(address).expect("a connection").write_all(&frame).expect("written");
        let error = accept(&listener, "s", || Ok(())).unwrap_err();
        assert!(error.chain().contains("version 77"), "{}", error.chain());
    }

    #[test]
    fn a_process_that_ended_ends_the_meeting() {
        let (listener, _) = meeting();
        let error = accept(&listener, "s", || Err(Error::new("it ended"))).unwrap_err();
        assert_eq!(error.chain(), "it ended");
    }
}
