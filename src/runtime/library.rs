//! Loading libonnxruntime, once a process.

use std::error::Error as _;
use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;

use super::ort_error;
use crate::error::{Error, Result};

/// The library that this process loaded. A second one cannot be: `ort` keeps the first and ignores the rest.
static LOADED: OnceLock<PathBuf> = OnceLock::new();

/// One pool of threads for many sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedThreads {
    /// Threads, the one that runs included.
    pub threads: u32,
    /// Whether they spin for a while when an operator is done.
    pub spin: bool,
}

/// A loaded ONNX Runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    pub(super) environment: Environment,
    /// The pool that sessions share, where they do.
    pub(super) shared: Option<SharedThreads>,
    library: PathBuf,
}

impl Runtime {
    /// Loads the library and makes its environment.
    ///
    /// # Errors
    /// A file that is no library, lacks a dependency, is too old, or another one than this process already holds.
    pub fn load(library: &Path) -> Result<Self> {
        Self::load_sharing(library, None)
    }

    /// As [`Runtime::load`], for a graph that is cut into many sessions, which run in turns: with one pool for all that
    /// want as many threads, and a heap that keeps nothing large.
    ///
    /// # Errors
    /// As [`Runtime::load`].
    pub fn load_sharing(library: &Path, shared: Option<SharedThreads>) -> Result<Self> {
        let failed = || format!("cannot load ONNX Runtime from `{}`", library.display());
        if !library.is_absolute() || !library.is_file() {
            return Err(Error::environment(failed())
                .because(std::io::Error::other("it is not an absolute path of a file"))
                .hint("run `ortbench runtime install cpu`, or name a libonnxruntime file"));
        }
        let loaded = LOADED.get_or_init(|| library.to_owned());
        if loaded != library {
            let other = format!("this process already holds `{}`, and can hold one only", loaded.display());
            return Err(Error::environment(failed()).because(std::io::Error::other(other)));
        }
        let builder = ort::init_from(library).map_err(|error| {
            // `Display` leaves the loader's own words out; they are in the source.
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Error::environment(failed())
                .because(std::io::Error::other(cause))
                .hint("run `ortbench doctor` to see what the library lacks")
        })?;
        let failed = |error| ort_error("cannot create ONNX Runtime's environment", error);
        let mut builder = builder.with_name("ortbench").with_telemetry(false);
        if let Some(shared) = shared {
            super::heap::return_large_blocks();
            let pool = GlobalThreadPoolOptions::default()
                .with_intra_threads(shared.threads as usize)
                .and_then(|pool| pool.with_inter_threads(1))
                .and_then(|pool| pool.with_spin_control(shared.spin))
                .map_err(failed)?;
            builder = builder.with_global_thread_pool(pool);
        }
        let environment = builder.build().map_err(failed)?;
        environment.set_log_level(LogLevel::Warning);
        Ok(Self { environment, shared, library: library.to_owned() })
    }

    /// The file that was loaded.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The version, e.g. `1.31.1`, as the library says it (`ort` exposes the interface's number only).
    ///
    /// # Errors
    /// A library that vanished or does not export ONNX Runtime's entry point, neither of which survives the load.
    pub fn version(&self) -> Result<String> {
        let failed = || Error::environment(format!("cannot read the version of `{}`", self.library.display()));
        let path = CString::new(self.library.as_os_str().as_bytes()).map_err(|error| failed().because(error))?;
        // SAFETY: the library is loaded already, so this only looks up its handle; `OrtGetApiBase` has this signature
        // in every ONNX Runtime, returns a static table, and its version is a static NUL-terminated string.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
            let symbol = libc::dlsym(handle, c"OrtGetApiBase".as_ptr());
            if handle.is_null() || symbol.is_null() {
                return Err(failed());
            }
            let api_base: unsafe extern "C" fn() -> *const ort::sys::OrtApiBase = std::mem::transmute(symbol);
            let version = CStr::from_ptr(((*api_base()).GetVersionString)()).to_string_lossy().into_owned();
            libc::dlclose(handle);
            Ok(version)
        }
    }

    /// Commit, build type and flags, as the library describes itself.
    pub fn build_info(&self) -> String {
        ort::info().to_owned()
    }

    /// Names of the execution providers that the library was compiled with; usable or not is another matter.
    pub fn compiled_providers(&self) -> Result<Vec<String>> {
        let api = ort::api();
        let mut list: *mut *mut c_char = std::ptr::null_mut();
        let mut count = 0;
        // SAFETY: both out-pointers are valid; on success `list` holds `count` NUL-terminated strings that stay ours
        // until they are released right below.
        unsafe {
            ort::Error::<()>::result_from_status((api.GetAvailableProviders)(&mut list, &mut count))
                .map_err(|error| ort_error("cannot list the execution providers", error))?;
            let names =
                (0..count as usize).map(|i| CStr::from_ptr(*list.add(i)).to_string_lossy().into_owned()).collect();
            let _ = ort::Error::<()>::result_from_status((api.ReleaseAvailableProviders)(list, count));
            Ok(names)
        }
    }

    /// Devices that the library found, each as `provider: vendor type`.
    pub fn devices(&self) -> Vec<String> {
        self.environment
            .devices()
            .map(|device| {
                let hardware = device.hardware_device();
                format!("{}: {} {:?}", device.ep().unwrap_or("?"), hardware.vendor().unwrap_or("?"), hardware.ty())
            })
            .collect()
    }
}
