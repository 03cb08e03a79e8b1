//! A pack's records as the weights of operators: what a name is, and what is computed on its bytes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::guess::Guessing;
use super::kernels;
use super::mixture::Mixture;
use super::pager::{Lease, Options, Pager, RecordId};
use crate::error::{Error, Result};
use crate::package::shards::{NBits, ShardIndex, What};
use crate::runtime::custom::{Experts, Matrix, Parallel, Routing, Tensor, Weights};

/// The weights of one pack. Names and shapes are known at once; bytes once it is opened.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    index: Arc<ShardIndex>,
    names: HashMap<String, RecordId>,
    /// The experts of each mixture, by number.
    mixtures: HashMap<String, Vec<RecordId>>,
    /// Their names, in the order of use.
    order: Vec<String>,
    bytes: Bytes,
}

/// Where the bytes come from, shared with every operator.
#[derive(Debug, Clone, Default)]
pub(super) struct Bytes(Arc<Opened>);

#[derive(Debug, Default)]
struct Opened {
    pager: OnceLock<Arc<Pager>>,
    guessing: OnceLock<Guessing>,
}

impl Bytes {
    /// The pager.
    ///
    /// # Errors
    /// A run before the store was opened: a bug.
    pub fn pager(&self) -> Result<&Arc<Pager>> {
        self.0.pager.get().ok_or_else(|| Error::new("the model runs before its weights were opened; this is a bug"))
    }

    /// How experts are guessed, where they are.
    pub fn guessing(&self) -> Option<&Guessing> {
        self.0.guessing.get()
    }
}

impl Store {
    /// The weights of the pack in this folder; nothing is read yet.
    pub fn new(folder: &Path, index: Arc<ShardIndex>) -> Self {
        let mut names = HashMap::new();
        let mut mixtures: HashMap<String, Vec<RecordId>> = HashMap::new();
        let mut order = Vec::new();
        for (id, record) in index.records.iter().enumerate() {
            names.insert(record.name.clone(), id);
            if let What::Expert { mixture, .. } = &record.what {
                let ids = mixtures.entry(mixture.clone()).or_default();
                if ids.is_empty() {
                    order.push(mixture.clone());
                }
                ids.push(id);
            }
        }
        Self { folder: folder.to_owned(), index, names, mixtures, order, bytes: Bytes::default() }
    }

    /// Opens the shards and brings in what the options keep in memory.
    ///
    /// # Errors
    /// What [`Pager::open`] refuses; a second call.
    pub fn open(&self, options: &Options) -> Result<()> {
        let pager = Pager::open(&self.folder, Arc::clone(&self.index), options)?;
        self.bytes.0.pager.set(pager).map_err(|_| Error::new("the weights were opened twice; this is a bug"))
    }

    /// Guesses that many experts a token of the next mixture from now on, and reads what that takes: copies of the
    /// routers, which are beyond the pager's account.
    ///
    /// # Errors
    /// A pack without routers; routers that cannot be read or are damaged; a second call.
    pub fn guess(&self, count: u32) -> Result<()> {
        let guessing = Guessing::read(&self.folder, &self.index, count)?;
        self.bytes.0.guessing.set(guessing).map_err(|_| Error::new("guesses were prepared twice; this is a bug"))
    }

    /// What keeps records in memory, once the store is open.
    pub fn pager(&self) -> Option<&Arc<Pager>> {
        self.bytes.0.pager.get()
    }

    /// The pack's index.
    pub fn index(&self) -> &Arc<ShardIndex> {
        &self.index
    }

    fn record(&self, name: &str) -> Result<(RecordId, &What)> {
        let id = self.names.get(name).copied().ok_or_else(|| self.lacks(name))?;
        Ok((id, &self.index.records[id].what))
    }

    fn lacks(&self, name: &str) -> Error {
        Error::new(format!("the graph wants the record `{name}`, which `{}` lacks", self.folder.display()))
            .hint("the graph and the shards are of different packs: pack the model again")
    }

    fn of_another_kind(&self, name: &str, wanted: &str) -> Error {
        Error::new(format!("the record `{name}` of `{}` is no {wanted}", self.folder.display()))
            .hint("the graph and the shards are of different packs: pack the model again")
    }
}

impl Weights for Store {
    fn matrix(&self, name: &str) -> Result<Arc<dyn Matrix>> {
        match self.record(name)? {
            (id, What::Matrix { shape }) => Ok(Arc::new(Packed { id, shape: *shape, bytes: self.bytes.clone() })),
            _ => Err(self.of_another_kind(name, "matrix")),
        }
    }

    fn experts(&self, name: &str, routing: Routing) -> Result<Arc<dyn Experts>> {
        let ids = self.mixtures.get(name).ok_or_else(|| self.lacks(name))?;
        let What::Expert { gate_up, down, .. } = &self.index.records[ids[0]].what else {
            return Err(self.of_another_kind(name, "expert"));
        };
        let alike = ids.iter().enumerate().all(|(number, id)| match &self.index.records[*id].what {
            What::Expert { expert, gate_up: other, down: other_down, .. } => {
                *expert as usize == number && other.same_size(gate_up) && other_down.same_size(down)
            }
            _ => false,
        });
        if !alike || routing.k == 0 || routing.k > ids.len() {
            return Err(self.of_another_kind(name, "mixture of experts alike"));
        }
        let place = self.order.iter().position(|other| other == name);
        let next = place.and_then(|place| self.order.get(place + 1));
        let next = next.map(|next| (next.clone(), self.mixtures[next].clone()));
        Ok(Arc::new(Mixture::new(&self.index, ids.clone(), next, routing, self.bytes.clone())))
    }

    fn tensor(&self, name: &str) -> Result<Arc<dyn Tensor>> {
        match self.record(name)? {
            (id, What::Tensor { data_type, dims }) => {
                let dims = dims.iter().map(|&size| size as i64).collect();
                let bytes = self.index.records[id].bytes as usize;
                Ok(Arc::new(Stock { id, data_type: *data_type, dims, bytes, source: self.bytes.clone() }))
            }
            _ => Err(self.of_another_kind(name, "tensor")),
        }
    }
}

/// A packed matrix.
struct Packed {
    id: RecordId,
    shape: NBits,
    bytes: Bytes,
}

impl Matrix for Packed {
    fn shape(&self) -> (usize, usize) {
        (self.shape.rows, self.shape.columns)
    }

    fn multiply(&self, x: &[f32], out: &mut [f32], parallel: &dyn Parallel) -> Result<()> {
        let lease: Lease = self.bytes.pager()?.acquire(self.id)?;
        kernels::multiply(&self.shape, &lease, x, out, parallel);
        Ok(())
    }
}

/// A tensor for stock operators.
struct Stock {
    id: RecordId,
    data_type: i32,
    dims: Vec<i64>,
    bytes: usize,
    source: Bytes,
}

impl Tensor for Stock {
    fn data_type(&self) -> i32 {
        self.data_type
    }

    fn dims(&self) -> &[i64] {
        &self.dims
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn copy_to(&self, into: &mut [u8]) -> Result<()> {
        let lease = self.source.pager()?.acquire(self.id)?;
        into.copy_from_slice(&lease);
        Ok(())
    }
}
