//! The files of a pack: constants that stay, graphs, shards.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;

use super::cut::{self, Part};
use super::journal::Header;
use super::output::{NewFile, Output, SHARDS, check_room, replaced_bytes};
use super::record::{Made as MadeRecord, Plan};
use super::rewrite::Rewritten;
use super::{Options, Progress, router};
use crate::error::{Context, Result};
use crate::package::edition;
use crate::package::onnx::{self, TensorProto};
use crate::package::onnx::{Place, Source};
use crate::package::shards::{self, ALIGNMENT, Form, Made, ROUTERS, Record, Router, Segment, ShardFile, ShardIndex};
use crate::package::{Graph, Package};

/// The whole graph.
pub const MODEL: &str = "model.onnx";

/// Constants that stay beside the graphs, for all of them.
pub const DATA: &str = "model.onnx.data";

/// Bytes that are copied at a time.
const PIECE: u64 = 8 << 20;

/// Constants inside the source's graph stay inside up to so many bytes: shapes and axes, which ONNX Runtime looks at
/// when it optimizes.
const INSIDE: u64 = 4 << 10;

/// What is written.
pub struct Files<'a> {
    /// The source.
    pub package: &'a Package,
    /// Its decoder graph …
    pub decoder: &'a Graph,
    /// … open.
    pub source: &'a Source,
    /// The graph without large weights.
    pub rewritten: &'a Rewritten,
    /// Layers of the model.
    pub layers: usize,
    /// How.
    pub options: &'a Options,
}

/// What was written.
pub struct Written {
    pub output: Output,
    pub shards: Vec<ShardFile>,
    pub segments: Vec<Segment>,
    pub records: Vec<Record>,
    pub routers: Vec<Router>,
    pub source_bytes: u64,
    pub packed_bytes: u64,
    /// Constants beside the graphs.
    pub kept: Vec<(String, u64)>,
}

impl Files<'_> {
    /// Writes everything but the index and the manifest.
    pub fn write(&self, folder: &Path, made: &Made, progress: &dyn Progress) -> Result<Written> {
        let (constants, stay) = self.constants();
        let form = self.options.form;
        let parts = cut::parts(self.source, self.rewritten, &constants, form)?;
        let others = edition::copied(self.package, self.decoder);
        // Everything that can be wrong with the source is known now; nothing is written before. A pack that is
        // replaced goes only if there is room for the new one.
        if self.options.force {
            check_room(folder, self.needed(&stay, &others, |_| false), replaced_bytes(folder))?;
        }
        let mut output = Output::open(folder, &self.header(made)?, self.options.force)?;
        check_room(folder, self.needed(&stay, &others, |path| output.done(path).is_some()), 0)?;
        for (name, _) in &others {
            output.file(name, |file| copy(&self.package.root.join(name), file))?;
        }
        if !stay.is_empty() {
            output.file(DATA, |file| self.write_constants(&stay, file))?;
        }
        if form == Form::Operators {
            let whole = cut::whole(self.source, self.rewritten, &constants, form);
            output.file(MODEL, |file| file.write(&onnx::write(&whole)).map(|()| Vec::new()))?;
        }
        for (number, part) in parts.iter().enumerate() {
            output.file(&segment_file(number), |file| file.write(&onnx::write(&part.model)).map(|()| Vec::new()))?;
        }
        let (bytes, routers) = router::make(self.source, &self.rewritten.routers)?;
        if !routers.is_empty() {
            output.file(ROUTERS, |file| file.write(&bytes).map(|()| Vec::new()))?;
        }
        self.write_shards(
            output,
            &parts,
            routers,
            progress,
            stay.iter().map(|kept| (kept.name.clone(), kept.bytes)).collect(),
        )
    }

    fn header(&self, made: &Made) -> Result<Header> {
        let Options { form, codec, threshold, int8_activations, .. } = self.options;
        let options = serde_json::json!({
            "form": form, "codec": codec, "threshold": threshold, "int8_activations": int8_activations,
        });
        Ok(Header {
            source: made.source.clone(),
            program: format!("{} {} {}", made.program, made.layout, made.architecture),
            options: options.to_string(),
        })
    }

    /// Constants as the pack's graphs have them, and those that lie in [`DATA`].
    fn constants(&self) -> (HashMap<String, TensorProto>, Vec<Kept>) {
        let mut constants = HashMap::new();
        let mut stay: Vec<Kept> = Vec::new();
        // Tied weights are two names for the same bytes.
        let mut places: HashMap<(Place, u64), u64> = HashMap::new();
        let mut end = 0_u64;
        for name in cut::kept(self.source, self.rewritten) {
            let Some(stored) = self.source.tensor(&name) else { continue };
            let tensor = self.source.initializer(stored);
            if stored.place == Place::Inside && (stored.bytes <= INSIDE || tensor.raw().is_err()) {
                constants.insert(name, tensor.clone());
                continue;
            }
            let known = places.get(&(stored.place, stored.bytes)).copied().filter(|_| stored.place != Place::Inside);
            let offset = known.unwrap_or_else(|| {
                // Pages of their own for what is large enough to be mapped.
                let offset = end.next_multiple_of(if stored.bytes >= ALIGNMENT { ALIGNMENT } else { 64 });
                end = offset + stored.bytes;
                stay.push(Kept { name: name.clone(), offset, bytes: stored.bytes });
                offset
            });
            places.insert((stored.place, stored.bytes), offset);
            constants.insert(name, tensor.at(DATA, offset, stored.bytes));
        }
        (constants, stay)
    }

    fn write_constants(&self, stay: &[Kept], file: &mut NewFile) -> Result<Vec<Record>> {
        for kept in stay {
            let missing = kept.offset - file.bytes;
            file.write(&vec![0; missing as usize])?;
            let inside = self.source.tensor(&kept.name).is_some_and(|stored| stored.place == Place::Inside);
            let piece = if inside { kept.bytes.max(1) } else { PIECE };
            let mut at = 0;
            while at < kept.bytes {
                let end = (at + piece).min(kept.bytes);
                file.write(&self.source.read(&kept.name, at..end)?)?;
                at = end;
            }
        }
        Ok(Vec::new())
    }

    /// Bytes that are still to be written, at most.
    fn needed(&self, stay: &[Kept], others: &[(String, u64)], done: impl Fn(&str) -> bool) -> u64 {
        let mut needed: u64 = others.iter().filter(|(name, _)| !done(name)).map(|(_, bytes)| bytes).sum();
        if !done(DATA) {
            needed += stay.last().map_or(0, |kept| kept.offset + kept.bytes);
        }
        if !done(ROUTERS) {
            needed += router::most_bytes(self.source, &self.rewritten.routers);
        }
        for (number, plans) in self.by_part().into_values().enumerate() {
            if !done(&shard_file(number)) {
                let bytes = plans.iter().map(|plan| plan.most_bytes(self.source).next_multiple_of(ALIGNMENT));
                needed += bytes.sum::<u64>();
            }
        }
        // Graphs, index and manifest: a little more than twice the source's graph.
        let graph = self.package.manifest.files.iter().find(|file| file.path == self.decoder.file);
        needed + 3 * graph.map_or(0, |file| file.bytes) + self.rewritten.records.len() as u64 * 512
    }

    /// The plans of each part that has nodes, in order.
    fn by_part(&self) -> BTreeMap<usize, Vec<&Plan>> {
        let mut parts: BTreeMap<usize, Vec<&Plan>> =
            self.rewritten.parts.iter().map(|part| (*part, Vec::new())).collect();
        for plan in &self.rewritten.records {
            parts.entry(plan.part).or_default().push(plan);
        }
        parts
    }

    fn write_shards(
        &self,
        mut output: Output,
        parts: &[Part],
        routers: Vec<Router>,
        progress: &dyn Progress,
        kept: Vec<(String, u64)>,
    ) -> Result<Written> {
        let by_part = self.by_part();
        let of = |plans: &[&Plan]| plans.iter().map(|plan| plan.source_bytes(self.source)).sum::<u64>();
        let source_bytes = by_part.values().map(|plans| of(plans)).sum();
        let count = by_part.values().filter(|plans| !plans.is_empty()).count();
        progress.started(source_bytes);
        let (mut shards, mut segments, mut records) = (Vec::new(), Vec::new(), Vec::new());
        let mut packed_bytes = 0;
        for (number, part) in parts.iter().enumerate() {
            let plans = by_part.get(&part.part).map_or(&[][..], |plans| plans);
            segments.push(Segment {
                file: segment_file(number),
                layer: self.layer(part.part),
                takes: part.takes.clone(),
                makes: part.makes.clone(),
                first_record: records.len(),
                records: plans.len(),
            });
            if plans.is_empty() {
                continue;
            }
            let name = shard_file(number);
            let resumed = output.done(&name).is_some();
            if resumed {
                progress.advanced(of(plans));
            } else {
                packed_bytes += of(plans);
            }
            let place = shards.len();
            let written = output.file(&name, |file| self.write_shard(plans, place, file, progress))?;
            records.extend(written);
            let bytes = output.files.last().map_or(0, |file| file.bytes);
            shards.push(ShardFile { file: name.clone(), bytes });
            progress.shard(shards.len(), count, &name, bytes, resumed);
        }
        Ok(Written { output, shards, segments, records, routers, source_bytes, packed_bytes, kept })
    }

    fn layer(&self, part: usize) -> Option<u32> {
        let layer = part.checked_sub(1).filter(|layer| *layer < self.layers)?;
        u32::try_from(layer).ok()
    }

    /// Writes records in order. While one batch is written the next one is made, each in half of the memory.
    fn write_shard(
        &self,
        plans: &[&Plan],
        place: usize,
        file: &mut NewFile,
        progress: &dyn Progress,
    ) -> Result<Vec<Record>> {
        let half = self.options.memory / 2;
        let memory = |plan: &Plan| plan.memory(self.source, self.options.codec);
        let make = |batch: &[&Plan]| -> Result<Vec<MadeRecord>> {
            let made = batch.par_iter().map(|plan| {
                let made = plan.make(self.source, self.options.codec)?;
                progress.advanced(plan.source_bytes(self.source));
                Ok(made)
            });
            made.collect()
        };
        let mut records = Vec::with_capacity(plans.len());
        let mut append = |batch: &[&Plan], made: Vec<MadeRecord>| -> Result<()> {
            for (plan, made) in batch.iter().zip(made) {
                let offset = file.bytes;
                file.write(&made.stored)?;
                file.pad(ALIGNMENT)?;
                records.push(Record {
                    name: plan.name.clone(),
                    file: place,
                    offset,
                    stored: made.stored.len() as u64,
                    bytes: made.bytes,
                    codec: made.codec,
                    hash: made.hash,
                    layer: self.layer(plan.part),
                    what: made.what,
                });
            }
            Ok(())
        };
        let mut waiting: (&[&Plan], Vec<MadeRecord>) = (&[], Vec::new());
        let mut rest = plans;
        while !rest.is_empty() {
            let mut sum = 0;
            let fits = rest.iter().take_while(|plan| {
                sum += memory(plan);
                sum <= half
            });
            let count = fits.count().max(1);
            let (batch, left) = rest.split_at(count);
            rest = left;
            let (batch_before, made_before) = std::mem::take(&mut waiting);
            // A record that takes more than half of the memory waits until nothing else is in it.
            let made = if memory(batch[0]) <= half {
                let (written, made) = rayon::join(|| append(batch_before, made_before), || make(batch));
                written.and(made)?
            } else {
                append(batch_before, made_before)?;
                make(batch)?
            };
            waiting = (batch, made);
        }
        append(waiting.0, waiting.1)?;
        Ok(records)
    }
}

/// Writes the index, last of all but the manifest.
pub fn index(output: &mut Output, index: &ShardIndex) -> Result<()> {
    let mut text = serde_json::to_vec(index).context("cannot describe the shards")?;
    text.push(b'\n');
    output.file(shards::FILE, |file| file.write(&text).map(|()| Vec::new())).map(drop)
}

/// A constant in [`DATA`].
struct Kept {
    name: String,
    offset: u64,
    bytes: u64,
}

fn copy(from: &Path, file: &mut NewFile) -> Result<Vec<Record>> {
    let failed = || format!("cannot copy `{}`", from.display());
    let mut source = File::open(from).with_context(failed)?;
    let mut buffer = vec![0; PIECE as usize];
    loop {
        match source.read(&mut buffer).with_context(failed)? {
            0 => return Ok(Vec::new()),
            count => file.write(&buffer[..count])?,
        }
    }
}

/// Segments lie beside the constants that they share: ONNX refuses external data outside of a model's folder.
fn segment_file(number: usize) -> String {
    format!("segment-{number:03}.onnx")
}

fn shard_file(number: usize) -> String {
    format!("{SHARDS}/{number:03}.bin")
}
