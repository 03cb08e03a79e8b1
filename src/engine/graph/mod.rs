//! Runs any ONNX graph: inputs made and bound once, then one call a run.

mod fill;
mod profile;

use std::path::{Path, PathBuf};

use crate::cell::{Backend, ElementType, GraphPlan};
use crate::error::{Error, Result};
use crate::runtime::{Bound, HostTensor, Output, Placement, Runtime, Session, SessionOptions};
use crate::yaml::suggest;

pub use profile::Profile;

/// A loaded graph.
#[derive(Debug)]
pub struct Graph {
    // Before the session, which must outlive what is bound to it.
    bound: Option<Bound>,
    session: Session,
    backend: Backend,
    /// Hash of what the inputs hold.
    inputs_hash: String,
}

impl Graph {
    /// Loads the file on the backend's provider.
    ///
    /// # Errors
    /// As [`Session::open`]; inputs or outputs that the session does not have, because the file was changed.
    pub fn load(runtime: &Runtime, file: &Path, backend: &Backend, threads: u32, plan: &GraphPlan) -> Result<Self> {
        let options = SessionOptions::with_threads(threads);
        Self::load_with(runtime, file, backend, &options, plan)
    }

    /// The same, with ONNX Runtime's profile written to a file whose name begins so.
    ///
    /// # Errors
    /// As [`Graph::load`].
    pub fn load_profiled(
        runtime: &Runtime,
        file: &Path,
        backend: &Backend,
        threads: u32,
        plan: &GraphPlan,
        prefix: &Path,
    ) -> Result<Self> {
        let profile = Some(prefix.to_owned());
        let options = SessionOptions { profile, ..SessionOptions::with_threads(threads) };
        Self::load_with(runtime, file, backend, &options, plan)
    }

    fn load_with(
        runtime: &Runtime,
        file: &Path,
        backend: &Backend,
        options: &SessionOptions,
        plan: &GraphPlan,
    ) -> Result<Self> {
        let session = Session::open(runtime, file, backend, options)?;
        let inputs: Vec<_> = session.input_names().collect();
        let outputs: Vec<_> = session.output_names().collect();
        let named = plan.inputs.iter().map(|input| (&input.name, &inputs));
        for (name, names) in named.chain(plan.outputs.iter().map(|output| (&output.name, &outputs))) {
            if !names.contains(&name.as_str()) {
                return Err(Error::new(format!(
                    "`{}` has no input or output `{name}` any more{}",
                    file.display(),
                    suggest(name, names)
                ))
                .hint("the file was changed after the run began; start a new run"));
            }
        }
        drop((inputs, outputs));
        Ok(Self { bound: None, session, backend: backend.clone(), inputs_hash: String::new() })
    }

    /// Which provider runs which node.
    pub fn placement(&self) -> &Placement {
        self.session.placement()
    }

    /// ONNX Runtime's name of the provider that was asked for.
    pub fn provider(&self) -> &str {
        self.session.provider()
    }

    /// Binds the inputs, and the outputs to the memory of the provider's device, or of the host where they are to be
    /// read.
    ///
    /// # Errors
    /// What ONNX Runtime does not take.
    pub fn bind(&mut self, inputs: Inputs, plan: &GraphPlan, to_be_read: bool) -> Result<()> {
        self.inputs_hash = inputs.hash;
        let outputs: Vec<(String, ElementType)> =
            plan.outputs.iter().map(|output| (output.name.clone(), output.element)).collect();
        self.bound = Some(Bound::new(&self.session, &self.backend, inputs.tensors, &outputs, to_be_read)?);
        Ok(())
    }

    /// The first run, after which outputs of known shapes keep their memory.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn first_run(&mut self, plan: &GraphPlan) -> Result<()> {
        self.run()?;
        // A provider may make another shape than the graph says: ONNX Runtime warns of that in an output of its own, and
        // refuses it in one that is bound.
        let fixed = |name: &str, shape: &[u64]| {
            plan.outputs.iter().any(|output| output.name == name && output.shape.as_deref() == Some(shape))
        };
        self.bound_mut()?.keep_outputs(fixed)
    }

    /// One run.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    #[inline]
    pub fn run(&mut self) -> Result<()> {
        match &mut self.bound {
            Some(bound) => bound.run(&mut self.session),
            None => Err(nothing_bound()),
        }
    }

    /// Ends the profile of a graph that was loaded for one; returns its file.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn end_profile(&mut self) -> Result<PathBuf> {
        self.session.end_profile()
    }

    /// Copies of what the last run made.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn outputs(&self) -> Result<Vec<Output>> {
        self.bound.as_ref().ok_or_else(nothing_bound)?.outputs()
    }

    /// First 16 digits of the SHA-256 over names, types, shapes and elements of the inputs.
    pub fn inputs_hash(&self) -> &str {
        &self.inputs_hash
    }

    fn bound_mut(&mut self) -> Result<&mut Bound> {
        self.bound.as_mut().ok_or_else(nothing_bound)
    }
}

fn nothing_bound() -> Error {
    Error::new("nothing is bound to the graph; this is a bug")
}

/// A graph's inputs, filled.
#[derive(Debug)]
pub struct Inputs {
    tensors: Vec<(String, HostTensor)>,
    hash: String,
}

impl Inputs {
    /// Makes them.
    ///
    /// # Errors
    /// Memory that cannot be had, a file that is no longer what it was when the matrix was checked.
    pub fn make(plan: &GraphPlan) -> Result<Self> {
        let made = plan.inputs.iter().map(|input| Ok((input.name.clone(), fill::tensor(input)?)));
        let tensors = made.collect::<Result<Vec<_>>>()?;
        let hash = fill::hash(plan, &tensors);
        Ok(Self { tensors, hash })
    }
}
