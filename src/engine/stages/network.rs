//! A stage in a network namespace of its own, with a link whose bandwidth the kernel limits.
//!
//! The namespace has no name: it is the process's of the stage and goes with it, as the link goes with the namespace. So
//! nothing stays behind, however either process ends.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result};

/// How long a process may take to enter its namespace.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that may go at once: two packets, and what the limit lets through in fifty microseconds.
const LEAST_BURST: f64 = 4096.0;
const BURST_SECONDS: f64 = 50e-6;

/// Bytes that may wait: more than a connection ever has under way.
const QUEUE: u64 = 64 << 20;

/// Networks for measurements (RFC 2544): nobody is there.
const NETWORKS: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const NETWORK_COUNT: u32 = 1 << 15;

/// Whether this machine lets this process make namespaces, links and limits; tried in a namespace that is gone
/// afterwards.
///
/// # Errors
/// Why not.
pub fn permitted() -> Result<()> {
    let script = "ip link add obtest0 type veth peer name obtest1 && ip link set obtest0 up && \
                  tc qdisc add dev obtest0 root tbf rate 1gbit burst 4096 limit 1048576";
    run("nsenter", &["--version"])?;
    run("unshare", &["--net", "sh", "-c", script])
        .context("network namespaces with limits are not permitted here")
        .map_err(|error| {
            error.kind(Kind::Environment).hint("they need root, `ip` and `tc` (iproute2), and veth and tbf")
        })
}

/// A command that runs another one in a namespace of its own.
pub(super) fn enter(program: &std::path::Path) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--net").arg("--").arg(program);
    command
}

/// A link between this process's network and another process's.
#[derive(Debug)]
pub(super) struct Network {
    device: String,
    pub head: IpAddr,
    pub stage: IpAddr,
}

impl Network {
    /// Waits until the process is in a namespace of its own, and links that to this one.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn attach(process: u32, bandwidth: Option<f64>) -> Result<Self> {
        let failed = || format!("cannot link the network of the process {process}");
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
        let own = namespace("self").with_context(failed)?;
        let deadline = Instant::now() + PATIENCE;
        while namespace(&process.to_string()).with_context(failed)? == own {
            if Instant::now() > deadline {
                return Err(Error::environment(failed()).because(std::io::Error::other("it entered no namespace")));
            }
            thread::sleep(Duration::from_millis(2));
        }
        let first = NETWORKS + (process % NETWORK_COUNT) * 4;
        let address = |place: u32| IpAddr::V4(Ipv4Addr::from_bits(first + place));
        // Before anything is made, so that whatever fails is taken back.
        let network = Self { device: format!("ob{process}h"), head: address(1), stage: address(2) };
        let (device, peer, number) = (network.device.as_str(), format!("ob{process}s"), process.to_string());
        run("ip", &["link", "add", device, "type", "veth", "peer", "name", &peer, "netns", &number])?;
        let inside = ["--net", "--target", &number];
        let inside = |words: &[&str]| run("nsenter", &[&inside[..], words].concat());
        for (side, address, device) in
            [(&run_words as &dyn Fn(&[&str]) -> Result<()>, network.head, device), (&inside, network.stage, &peer)]
        {
            side(&["ip", "addr", "add", &format!("{address}/30"), "dev", device])?;
            side(&["ip", "link", "set", device, "up"])?;
            if let Some(bandwidth) = bandwidth {
                let rate = format!("{:.0}bit", bandwidth * 8.0);
                let burst = format!("{:.0}", (bandwidth * BURST_SECONDS).max(LEAST_BURST));
                let limit = QUEUE.to_string();
                let limits = ["rate", &rate, "burst", &burst, "limit", &limit];
                side(&[&["tc", "qdisc", "add", "dev", device, "root", "tbf"][..], &limits[..]].concat())?;
            }
        }
        inside(&["ip", "link", "set", "lo", "up"])?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It may have gone with the process already.
        let _ = run("ip", &["link", "del", &self.device]);
    }
}

fn run_words(words: &[&str]) -> Result<()> {
    run(words[0], &words[1..])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let failed = || Error::environment(format!("`{program} {}` failed", arguments.join(" ")));
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed().because(error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed().because(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())))
}
