//! The arm of ONNX Runtime.

use std::path::Path;

use ortbench::cell::{Backend, Dtype, ProviderKind, RuntimeRef};
use ortbench::error::{Context, Error, Result};
use ortbench::runtime::{Bindings, BufferId, Runtime, Session, SessionOptions};

use super::graph::Graph;

/// ONNX Runtime's kernels.
pub struct Stock {
    bindings: Bindings,
    session: Session,
}

impl Stock {
    /// Opens the graph; its weights are packed here.
    pub fn new(runtime: &Runtime, threads: usize, graph: &Graph) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let file = folder.path().join("model.onnx");
        std::fs::write(&file, graph.model()).context("cannot write a model")?;
        let session = open(runtime, &file, threads)?;
        Ok(Self { bindings: Bindings::new(&session)?, session })
    }

    /// Returns the buffer of the last output.
    pub fn bind(
        &mut self,
        rows: usize,
        x: &[f32],
        inputs: usize,
        outputs: usize,
        names: impl Iterator<Item = String>,
        scores: Option<(&[f32], usize)>,
    ) -> Result<BufferId> {
        let more = scores.map(|(scores, width)| ("scores", scores, width));
        for (name, values, width) in std::iter::once(("x", x, inputs)).chain(more) {
            let id = self.bindings.allocate(values.len() * 4)?;
            self.bindings.write_f32(id, Dtype::Float32, values);
            self.bindings.bind_input(0, name, id, Dtype::Float32, &[rows, width])?;
        }
        let mut last = None;
        for name in names {
            let y = self.bindings.allocate(rows * outputs * 4)?;
            self.bindings.bind_output(0, &name, y, Dtype::Float32, &[rows, outputs])?;
            last = Some(y);
        }
        last.ok_or_else(|| Error::new("no outputs"))
    }

    pub fn read(&self, id: BufferId, count: usize) -> &[f32] {
        self.bindings.read(id, count)
    }

    pub fn run(&mut self) -> Result<()> {
        self.bindings.run(&mut self.session)
    }
}

fn open(runtime: &Runtime, file: &Path, threads: usize) -> Result<Session> {
    let backend = Backend {
        name: "cpu".into(),
        runtime: RuntimeRef::Installed("cpu".into()),
        provider: ProviderKind::Cpu,
        plugin: None,
        options: [].into(),
    };
    Session::open(runtime, file, &backend, &SessionOptions::with_threads(threads as u32))
}
