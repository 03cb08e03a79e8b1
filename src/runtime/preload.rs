//! Loading NVIDIA's libraries by path, before a provider's library asks for them by name.

use std::path::Path;
use std::sync::Mutex;

use super::nvidia::{self, pieces};
use super::providers;
use crate::cell::ProviderKind;
use crate::error::{Error, Result};

/// The providers whose libraries this process has.
static DONE: Mutex<Vec<ProviderKind>> = Mutex::new(Vec::new());

/// Loads what is placed beside the runtime for a provider. Whatever is not placed is left to the dynamic loader.
///
/// # Errors
/// A library that does not load, in the loader's own words.
pub(super) fn for_provider(provider: ProviderKind, library: &Path) -> Result<()> {
    let Some(root) = nvidia::root_of(library).filter(|_| nvidia::concerns(provider)) else { return Ok(()) };
    let mut done = DONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if done.contains(&provider) {
        return Ok(());
    }
    for file in nvidia::placed(root, provider) {
        ort::util::preload_dylib(&file).map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::unsupported(format!("cannot load `{}`", file.display()))
                .because(std::io::Error::other(cause))
                .hint("remove its folder and run `ortbench runtime install cuda` again")
        })?;
    }
    done.push(provider);
    Ok(())
}

/// Why a provider did not start: the pieces of NVIDIA's that it lacks where there are any, else ONNX Runtime's words.
pub(super) fn failure(provider: ProviderKind, name: &str, library: &Path, error: &ort::Error) -> Error {
    let cause = std::io::Error::other(error.to_string());
    let missing = match nvidia::concerns(provider) {
        true => pieces::missing(provider, Path::new("/"), nvidia::root_of(library)),
        false => Vec::new(),
    };
    if let Some(error) = started_badly(provider, name, &cause.to_string()) {
        return error;
    }
    if missing.is_empty() {
        let failed = Error::unsupported(format!("{name} cannot start on this machine"));
        return failed.because(cause).hint(providers::of(provider).remedy());
    }
    let (names, advice): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    Error::unsupported(format!("{name} cannot start on this machine: {}", names.join(", ")))
        .because(cause)
        .hint(advice.join("; "))
}

/// What is wrong with the machine, where a provider of NVIDIA's met it when it started.
pub(super) fn started_badly(provider: ProviderKind, name: &str, message: &str) -> Option<Error> {
    let (what, hint) = pieces::of_failure(message).filter(|_| nvidia::concerns(provider))?;
    let error = Error::unsupported(format!("{name} cannot start on this machine: {what}"));
    Some(error.because(std::io::Error::other(message.to_owned())).hint(hint))
}
