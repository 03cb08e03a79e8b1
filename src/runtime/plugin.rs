//! Execution providers in libraries of their own: registered with ONNX Runtime, and chosen by the devices they offer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use ort::device::Device;
use ort::session::builder::SessionBuilder;

use super::Runtime;
use crate::cell::Plugin;
use crate::error::{Error, Result};

/// Libraries that were registered, once a process.
static REGISTERED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Lets a session run on the plugin's provider, on every device that it offers under that name.
///
/// # Errors
/// A library that is not there or is no plugin, a provider that is not in it, one that finds no device here (all
/// `unsupported`, with what there is).
pub(super) fn add(
    builder: SessionBuilder,
    runtime: &Runtime,
    plugin: &Plugin,
    options: &BTreeMap<String, String>,
) -> Result<SessionBuilder> {
    register(runtime, plugin)?;
    let devices: Vec<_> = named(runtime, &plugin.provider).collect();
    if devices.is_empty() {
        let there = runtime.devices();
        let others: Vec<_> = there.iter().filter(|device| !device.starts_with("CPUExecutionProvider")).collect();
        let offers = match others.as_slice() {
            [] => "no plugin found a device on this machine".to_owned(),
            some => format!("there are {}", some.iter().map(|text| text.as_str()).collect::<Vec<_>>().join(", ")),
        };
        let file = plugin.library.display();
        return Err(Error::unsupported(format!("`{file}` offers no device to `{}`: {offers}", plugin.provider))
            .hint("check the provider's name and that its hardware and driver are here"));
    }
    // ort tells the options of several providers apart by their names before the keys.
    let option = |(key, value): (&String, &String)| (format!("{}.{key}", plugin.provider), value.clone());
    let options: Vec<_> = options.iter().map(option).collect();
    builder.with_devices(devices, Some(&options)).map_err(|error| {
        let failed = Error::unsupported(format!("`{}` cannot start on its devices here", plugin.provider));
        failed.because(std::io::Error::other(error.to_string())).hint("check the provider's options")
    })
}

fn register(runtime: &Runtime, plugin: &Plugin) -> Result<()> {
    let mut registered = REGISTERED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if registered.contains(&plugin.library) {
        return Ok(());
    }
    let failed = || Error::unsupported(format!("cannot load the plugin `{}`", plugin.library.display()));
    if !plugin.library.is_file() {
        return Err(failed()
            .because(std::io::Error::other("there is no such file"))
            .hint("name the provider's shared library itself, relative to the matrix file"));
    }
    // The name is ours to choose, and must not be another library's.
    let name = format!("{}-{}", plugin.provider, registered.len());
    runtime.environment.register_ep_library(name, &plugin.library).map_err(|error| {
        failed().because(std::io::Error::other(error.to_string())).hint(
            "a plugin exports `CreateEpFactories` and finds the libraries that it needs; it may be of another version of \
             ONNX Runtime",
        )
    })?;
    registered.push(plugin.library.clone());
    Ok(())
}

fn named<'a>(runtime: &'a Runtime, provider: &'a str) -> impl Iterator<Item = Device<'a>> {
    runtime.environment.devices().filter(move |device| device.ep().is_ok_and(|name| name == provider))
}
