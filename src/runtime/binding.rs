//! One session's binding and values, as ONNX Runtime's interface has them.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use ort::AsPointer;
use ort::session::RunOptions;
use ort::sys;

use super::buffers::BufferId;
use super::ort_error;
use super::session::Session;
use super::weights::PartWeights;
use crate::error::{Error, Result};
/// The binding of one session.
#[derive(Debug)]
pub(super) struct RawBinding {
    pub(super) pointer: NonNull<sys::OrtIoBinding>,
    /// What each name is bound to. Binding the same again would cost a tensor and change nothing: buffers are read
    /// at run time.
    pub(super) bound: HashMap<String, (BufferId, Vec<usize>)>,
    /// Names of outputs in the order in which they were first bound, which is the order of their values.
    pub(super) outputs: Vec<String>,
    /// Places among them of those that are handed over.
    pub(super) made: Vec<usize>,
    /// Inputs that are what earlier parts made.
    pub(super) taken: Vec<String>,
    /// Weights that are bound: whatever ONNX Runtime may read is kept.
    pub(super) weights: Option<Arc<PartWeights>>,
    /// Whether values are copied when they are bound, to the memory of a device: what changes is bound again.
    copies: bool,
    // The session must outlive its binding.
    session: Arc<ort::session::SharedSessionInner>,
    _not_sync: PhantomData<*mut ()>,
}

impl RawBinding {
    pub(super) fn new(session: &Session) -> Result<Self> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the session is alive and the out-pointer valid.
        unsafe { check((ort::api().CreateIoBinding)(session.inner.ptr().cast_mut(), &mut pointer)) }
            .map_err(|error| ort_error("cannot create a binding", error))?;
        let pointer = NonNull::new(pointer).ok_or_else(|| Error::new("ONNX Runtime made an empty binding"))?;
        Ok(Self {
            pointer,
            bound: HashMap::new(),
            outputs: Vec::new(),
            made: Vec::new(),
            taken: Vec::new(),
            weights: None,
            copies: !session.uses_host_memory,
            session: session.inner.inner(),
            _not_sync: PhantomData,
        })
    }

    /// Whether nothing needs to be done to bind an input, which is where the provider computes or not.
    pub(super) fn is_up_to_date(&self, name: &str, id: BufferId, shape: &[usize], on_device: bool) -> bool {
        (!self.copies || on_device) && self.is_bound(name, id, shape)
    }

    pub(super) fn is_bound(&self, name: &str, id: BufferId, shape: &[usize]) -> bool {
        self.bound.get(name).is_some_and(|(bound, dims)| *bound == id && dims == shape)
    }

    pub(super) fn bind_input(&mut self, name: &str, value: &RawValue) -> Result<()> {
        self.bind_named(&c_name(name)?, value)
    }

    /// Binds an output to a value whose memory outlives the binding.
    pub(super) fn bind_output(&mut self, name: &str, value: &RawValue) -> Result<()> {
        let c_name = c_name(name)?;
        // SAFETY: binding, name and value are alive; ONNX Runtime keeps its own reference to the value, whose memory
        // lives as long as the binding.
        unsafe { check((ort::api().BindOutput)(self.pointer.as_ptr(), c_name.as_ptr(), value.0)) }
            .map_err(|error| ort_error(format!("cannot bind the output `{name}`"), error))
    }

    /// Runs the session on what is bound.
    pub(super) fn run(&mut self, session: &mut Session) -> Result<()> {
        self.run_as(session, RunSettings::default())
    }

    /// The same with settings for this run.
    pub(super) fn run_as(&mut self, session: &mut Session, settings: RunSettings) -> Result<()> {
        assert!(Arc::ptr_eq(&self.session, &session.inner.inner()), "bindings of another session");
        let options = settings.options()?;
        let options = options.as_ref().map_or(std::ptr::null(), |options| options.ptr());
        // SAFETY: binding and session are alive and belong together (asserted), and both are borrowed mutably; the
        // options are null or live until the end of this function.
        unsafe { check((ort::api().RunWithBinding)(session.inner.ptr().cast_mut(), options, self.pointer.as_ptr())) }
            .map_err(|error| session.failure.take().unwrap_or_else(|| ort_error("the run failed", error)))
    }

    /// Lets go of every input, and of the weights among them.
    pub(super) fn clear_inputs(&mut self) {
        // SAFETY: the binding is alive; it drops its references to values.
        unsafe { (ort::api().ClearBoundInputs)(self.pointer.as_ptr()) };
        self.bound.retain(|name, _| self.outputs.contains(name));
        self.weights = None;
    }

    pub(super) fn bind_named(&mut self, c_name: &CStr, value: &RawValue) -> Result<()> {
        let name = c_name.to_string_lossy();
        // SAFETY: binding, name and value are alive; ONNX Runtime keeps its own reference to the value, whose memory
        // is kept as long as it is bound.
        unsafe { check((ort::api().BindInput)(self.pointer.as_ptr(), c_name.as_ptr(), value.0)) }
            .map_err(|error| ort_error(format!("cannot bind the input `{name}`"), error))
    }

    /// The place of an output among the values of a run.
    pub(super) fn note_output(&mut self, name: &str) -> usize {
        self.outputs.iter().position(|output| output == name).unwrap_or_else(|| {
            self.outputs.push(name.to_owned());
            self.outputs.len() - 1
        })
    }

    /// The values of all outputs after a run.
    pub(super) fn values(&self) -> Result<Vec<RawValue>> {
        let mut allocator = std::ptr::null_mut();
        let mut list: *mut *mut sys::OrtValue = std::ptr::null_mut();
        let mut count = 0;
        let api = ort::api();
        // SAFETY: every out-pointer is valid; on success `list` holds `count` values that are ours to release, in an
        // array that the default allocator gave and takes back.
        unsafe {
            check((api.GetAllocatorWithDefaultOptions)(&mut allocator))
                .and_then(|()| {
                    check((api.GetBoundOutputValues)(self.pointer.as_ptr(), allocator, &mut list, &mut count))
                })
                .map_err(|error| ort_error("cannot take the outputs of a run", error))?;
            let values = (0..count).map(|place| RawValue(*list.add(place))).collect();
            check((api.AllocatorFree)(allocator, list.cast()))
                .map_err(|error| ort_error("cannot release the list of outputs", error))?;
            Ok(values)
        }
    }
}

impl Drop for RawBinding {
    fn drop(&mut self) {
        // SAFETY: created by `CreateIoBinding`, released once.
        unsafe { (ort::api().ReleaseIoBinding)(self.pointer.as_ptr()) };
    }
}

/// What ONNX Runtime is told of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunSettings {
    /// A number, for a provider that captures graphs: a run of a number that it has captured is replayed, with the shapes
    /// and addresses of that time; those of -1 are never captured.
    pub graph: Option<i32>,
    /// Give what the CPU provider's arena does not need any more back to the system after the run.
    pub shrinks: bool,
}

impl RunSettings {
    fn options(self) -> Result<Option<RunOptions>> {
        if self == Self::default() {
            return Ok(None);
        }
        let failed = |error| ort_error("cannot set a run's options", error);
        let mut options = RunOptions::new().map_err(failed)?;
        if let Some(number) = self.graph {
            options.set("gpu_graph_id", number.to_string()).map_err(failed)?;
        }
        if self.shrinks {
            options.set("memory.enable_memory_arena_shrinkage", "cpu:0").map_err(failed)?;
        }
        Ok(Some(options))
    }
}

pub(super) fn c_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::new(format!("`{name}` is no name of an input or output")))
}

/// A value that is released when its scope ends; bindings hold references of their own.
#[derive(Debug)]
pub(super) struct RawValue(pub(super) *mut sys::OrtValue);

impl Drop for RawValue {
    fn drop(&mut self) {
        // SAFETY: created by `CreateTensorWithDataAsOrtValue`, released once.
        unsafe { (ort::api().ReleaseValue)(self.0) };
    }
}

/// # Safety
/// The status must come from the call right before and be handed over once.
pub(super) unsafe fn check(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ort::Error::<()>::result_from_status(status) }
}
