//! `ortbench runtime`: installs and lists builds of ONNX Runtime.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::runtime::catalog::{self, PINS, Pin};
use crate::runtime::install::{self, Outcome};
use crate::runtime::nvidia;
use crate::units;

/// The options of `ortbench runtime`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch pinned wheels from PyPI with pip, check their hashes, and place their libraries in the cache folder.
    Install {
        /// cpu, openvino, cuda.
        #[arg(required = true)]
        names: Vec<String>,
        /// A wheel at hand, for machines without network; its hash must be the pinned one.
        #[arg(long)]
        wheel: Option<PathBuf>,
        /// Do not fetch NVIDIA's libraries (2 GB) with the runtime `cuda`: the dynamic loader finds them here.
        #[arg(long)]
        without_nvidia: bool,
        /// With the runtime `cuda`, place TensorRT 10's libraries from this wheel of tensorrt-cu13-libs, which NVIDIA's
        /// own index serves and PyPI does not.
        #[arg(long, value_name = "WHEEL")]
        with_tensorrt: Option<PathBuf>,
        /// Print what would be fetched, with sizes and hashes, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// List the known runtimes and where the installed ones lie.
    List {
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.action {
        Action::Install { names, wheel, without_nvidia, with_tensorrt, dry_run } => {
            let steps = plan(&names, wheel, !without_nvidia, with_tensorrt)?;
            let root = catalog::folder()?;
            if dry_run { print!("{}", describe(&steps, &root)) } else { install(&steps, &root)? }
        }
        Action::List { json } => list(json)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One wheel to be placed.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    pin: &'static Pin,
    /// Where it is at hand; otherwise pip fetches it.
    wheel: Option<PathBuf>,
}

/// What is to be placed, in this order.
fn plan(names: &[String], wheel: Option<PathBuf>, nvidia: bool, tensorrt: Option<PathBuf>) -> Result<Vec<Step>> {
    if wheel.is_some() && names.len() > 1 {
        return Err(Error::new("`--wheel` is one runtime's wheel").hint("install the runtimes one by one"));
    }
    let has_cuda = names.iter().any(|name| name == nvidia::RUNTIME);
    if tensorrt.is_some() && !has_cuda {
        return Err(Error::new("`--with-tensorrt` belongs to the runtime `cuda`").hint("name `cuda` as well"));
    }
    // All names are checked before the first download.
    let pins = names.iter().map(|name| catalog::pin(name)).collect::<Result<Vec<_>>>()?;
    let mut steps: Vec<_> = pins.into_iter().map(|pin| Step { pin, wheel: wheel.clone() }).collect();
    if has_cuda && nvidia {
        steps.extend(nvidia::COMPANIONS.iter().map(|pin| Step { pin, wheel: None }));
    }
    steps.extend(tensorrt.map(|wheel| Step { pin: &nvidia::TENSORRT, wheel: Some(wheel) }));
    Ok(steps)
}

/// The steps in words.
fn describe(steps: &[Step], root: &Path) -> String {
    use std::fmt::Write;
    let (mut text, mut fetched, mut placed) = (String::new(), 0, 0);
    for Step { pin, wheel } in steps {
        let place = catalog::place(root, pin);
        let _ = writeln!(text, "{} {} ({})", pin.project, pin.version, pin.about);
        if catalog::installed(&place).is_some() {
            let _ = writeln!(text, "  is there: {}", place.display());
            continue;
        }
        placed += pin.unpacked_bytes;
        match wheel {
            Some(wheel) => {
                let _ = writeln!(text, "  from `{}`", wheel.display());
            }
            None => {
                fetched += pin.wheel_bytes;
                let _ = writeln!(text, "  {} bytes, wheel for {}", pin.wheel_bytes, pin.platform);
            }
        }
        let _ = match pin.sha256 {
            "" => writeln!(text, "  not pinned: taken as it is given"),
            hash => writeln!(text, "  sha256 {hash}"),
        };
        let _ = writeln!(text, "  to {}", place.display());
    }
    let _ = writeln!(text, "{} to fetch, {} on the disk", units::bytes(fetched), units::bytes(placed));
    text
}

fn install(steps: &[Step], root: &Path) -> Result<()> {
    for Step { pin, wheel } in steps {
        match install::install(root, pin, wheel.as_deref(), &|step| eprintln!("{step}"))? {
            Outcome::AlreadyThere(place) => println!("{} {} is there: {}", pin.name, pin.version, place.display()),
            Outcome::Placed(place) => println!("{} {} placed in {}", pin.name, pin.version, place.display()),
        }
    }
    Ok(())
}

fn list(as_json: bool) -> Result<()> {
    let root = catalog::folder()?;
    let pins: Vec<_> = PINS.iter().filter(|pin| pin.arch == std::env::consts::ARCH).collect();
    let place = |pin| {
        let folder = catalog::place(&root, pin);
        catalog::installed(&folder).map(|installed| folder.join(installed.library))
    };
    if as_json {
        let rows: Vec<_> = pins
            .iter()
            .map(|pin| json!({"name": pin.name, "project": pin.project, "version": pin.version, "about": pin.about, "library": place(pin)}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows).context("cannot print the list")?);
        return Ok(());
    }
    for pin in pins {
        println!("{:9} {:7} {}", pin.name, pin.version, pin.about);
        match place(pin) {
            Some(path) => println!("  {}", path.display()),
            None => println!("  not installed: `ortbench runtime install {}`", pin.name),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str], nvidia: bool, tensorrt: Option<&str>) -> Result<Vec<&'static str>> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let steps = plan(&names, None, nvidia, tensorrt.map(PathBuf::from))?;
        Ok(steps.iter().map(|step| step.pin.name).collect())
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn cuda_brings_its_libraries_and_others_do_not() {
        let cuda = names(&["cpu", "cuda"], true, None).unwrap();
        assert_eq!(cuda[..3], ["cpu", "cuda", "nvidia-cuda-runtime"]);
        assert_eq!(cuda.len(), 2 + nvidia::COMPANIONS.len());
        assert_eq!(names(&["cuda"], false, Some("a.whl")).unwrap(), ["cuda", "tensorrt"]);
        assert_eq!(names(&["cpu"], true, None).unwrap(), ["cpu"]);
        assert!(names(&["cpu"], true, Some("a.whl")).unwrap_err().chain().contains("belongs to the runtime `cuda`"));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_dry_run_says_what_is_fetched_and_what_cannot_be_pinned() {
        let root = tempfile::tempdir().unwrap();
        let steps = plan(&["cuda".to_owned()], None, true, Some("trt.whl".into())).unwrap();
        let text = describe(&steps, root.path());
        for pin in nvidia::COMPANIONS {
            assert!(text.contains(&format!("{} {} (", pin.project, pin.version)), "{text}");
            assert!(text.contains(&format!("sha256 {}", pin.sha256)), "{text}");
        }
        assert!(text.contains("from `trt.whl`\n  not pinned"), "{text}");
        assert!(text.trim_end().ends_with("on the disk"), "{text}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "a dry run wrote something");
    }
}
