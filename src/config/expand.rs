//! From axes to cells: the product, what `include` adds, what `exclude` drops, what `overrides` set.

use std::collections::BTreeSet;

use super::Excluded;
use super::axes::{Axis, NOTHING, Point};
use super::check::{Checked, Model};
use super::graph::Unfit;
use super::problem::Problem;
use super::{memory, paths, plans};
use crate::cell::{
    Category, Cell, CellId, Dimensions, Flavour, GraphPlan, ImageSize, MemoryAmount, MemoryPlan, ModelKind, ModelRef,
    OptimizationPlan, Switched, Workload,
};
use crate::{digest, optimizations};

/// More cells than anybody runs: a slip in an axis.
const MAX_CELLS: usize = 100_000;

/// What a file's axes and rules come to.
#[derive(Debug)]
pub struct Expanded {
    /// In the order in which they run.
    pub cells: Vec<Cell>,
    /// What the rules dropped.
    pub excluded: Vec<Excluded>,
    /// Cells that are asked for their accuracy by the file and have no task.
    pub without_tasks: Vec<CellId>,
}

/// The cells, and what the rules dropped.
pub fn expand(file: &Checked) -> Result<Expanded, Vec<Problem>> {
    let mut points: Vec<(Point, usize)> = Vec::new();
    let mut seen = BTreeSet::new();
    let products: Vec<_> =
        std::iter::once(&file.matrix).chain(&file.include).map(|axes| axes.or(&file.matrix)).collect();
    for (product, axes) in products.iter().enumerate() {
        let count = axes.count();
        if count.saturating_add(points.len()) > MAX_CELLS {
            let message = format!("the matrix has more than {MAX_CELLS} cells");
            return Err(vec![Problem { at: None, message }]);
        }
        let points_of_kind = axes.points().into_iter().map(|point| file.of_model(point));
        let new = points_of_kind.filter(|point| seen.insert(*point));
        points.extend(new.map(|point| (point, product)));
    }
    let mut problems = Vec::new();
    file.tell_missing_axes(&points, &mut problems);
    for rule in &file.exclude {
        if !points.iter().any(|(point, _)| rule.axes.matches(point)) {
            problems.push(Problem::at(rule.at, "this rule of `exclude` matches no cell"));
        }
    }
    for rule in &file.overrides {
        if !points.iter().any(|(point, _)| rule.when.matches(point)) {
            problems.push(Problem::at(rule.at, "this rule of `overrides` matches no cell"));
        }
    }
    let (mut cells, mut excluded) = (Vec::new(), Vec::new());
    for (point, product) in &points {
        let mut cell = file.cell(point);
        let rule = file.exclude.iter().find(|rule| rule.axes.matches(point));
        let reason = match rule {
            Some(rule) => {
                Some(rule.reason.clone().unwrap_or_else(|| format!("excluded by the rule at line {}", rule.at.line())))
            }
            None if cell.categories.is_empty() => {
                Some(format!("nothing but `{}` is asked of it, which such a model does not have", file.foreign(point)))
            }
            None => file.models[point.model()].lacks(point),
        };
        match reason {
            Some(reason) => excluded.push(Excluded { id: cell.id, reason }),
            None => {
                let derives_pack = optimizations::derive_pack(&cell);
                match file.memory_and_graph(point, &cell.model, derives_pack) {
                    Ok((plan, graph)) => {
                        (cell.memory, cell.graph) = (plan, graph);
                        // What the model or the machine lacks is for the cell's row; a contradiction is the file's.
                        if let Some(message) = optimizations::contradiction(&cell) {
                            let at = products[*product].place(Axis::Optimizations);
                            problems.extend(at.map(|at| Problem::at(at, format!("cell `{}`: {message}", cell.id))));
                        }
                    }
                    Err(Misfit::Axis(axis, message)) => {
                        problems.extend(products[*product].place(axis).map(|at| Problem::at(at, message)))
                    }
                    Err(Misfit::Graph(Unfit { at, message })) => problems.push(Problem::at(at, message)),
                }
                cells.push((*point, cell));
            }
        }
    }
    if cells.is_empty() && problems.is_empty() {
        problems.push(Problem { at: None, message: "the rules leave no cell to run".to_owned() });
    }
    let without_tasks = plans::add(file, &mut cells, &mut excluded, &mut problems);
    let cells = cells.into_iter().map(|(_, cell)| cell).collect();
    if problems.is_empty() { Ok(Expanded { cells, excluded, without_tasks }) } else { Err(problems) }
}

/// Why a cell cannot be as its point says.
enum Misfit {
    Axis(Axis, String),
    Graph(Unfit),
}

impl Model {
    /// Why a model whose package holds one precision or flavour cannot be at this point.
    fn lacks(&self, point: &Point) -> Option<String> {
        if self.precision.is_some_and(|precision| precision != point.precision()) {
            return Some(format!("the package of `{}` holds {} only", self.name, self.precision?));
        }
        if self.flavour.is_some_and(|flavour| flavour != point.flavour()) {
            return Some(format!("the package of `{}` holds {} graphs only", self.name, self.flavour?));
        }
        None
    }
}

impl Checked {
    /// The point as it is for its model: nothing on axes that say nothing to it, and of dimensions those that it has.
    pub fn of_model(&self, point: Point) -> Point {
        let model = &self.models[point.model()];
        let dimensions = point.on(Axis::Dimensions);
        let point = point.of_kind(model.kind);
        match &model.graph {
            Some(graph) => point.with(Axis::Dimensions, self.dimensions.taken(dimensions, &graph.free())),
            None => point,
        }
    }

    /// A matrix of graphs may leave out the axes of language models; `include` may bring one in that needs them.
    fn tell_missing_axes(&self, points: &[(Point, usize)], problems: &mut Vec<Problem>) {
        let lacks = |axis: &Axis| {
            let lacks = |point: &Point| axis.applies_to(self.models[point.model()].kind) && point.on(*axis) == NOTHING;
            points.iter().any(|(point, _)| lacks(point))
        };
        for axis in Axis::ALL.iter().filter(|axis| lacks(axis)) {
            problems.push(Problem::whole(format!("`matrix` lacks the axis `{}`", axis.name())));
        }
    }

    fn memory_and_graph(
        &self,
        point: &Point,
        model: &ModelRef,
        derives_pack: bool,
    ) -> Result<(MemoryPlan, Option<Box<GraphPlan>>), Misfit> {
        match &self.models[point.model()].graph {
            None => Ok((
                memory::plan(point, model, derives_pack).map_err(|(axis, message)| Misfit::Axis(axis, message))?,
                None,
            )),
            Some(graph) => {
                let plan = graph.plan(self.dimensions.get(point.on(Axis::Dimensions))).map_err(Misfit::Graph)?;
                // A budget is a pack's, and a limit of its size is none here.
                let limit_bytes = point.memory(Axis::MemoryLimit).bytes(0, None);
                Ok((MemoryPlan { limit_bytes, ..MemoryPlan::default() }, Some(Box::new(plan))))
            }
        }
    }

    /// The id of a point.
    pub fn id(&self, point: &Point) -> CellId {
        let (model, backend) = (&self.models[point.model()], &self.backends[point.backend()]);
        match model.kind {
            ModelKind::Package => {
                let switched = self.optimizations.get(point.on(Axis::Optimizations));
                id(&model.name, &backend.name, point, switched)
            }
            ModelKind::Graph => {
                id_of_graph(&model.name, &backend.name, point, self.dimensions.get(point.on(Axis::Dimensions)))
            }
        }
    }

    fn cell(&self, point: &Point) -> Cell {
        let (model, backend) = (&self.models[point.model()], &self.backends[point.backend()]);
        let (written, package) = match &model.graph {
            Some(graph) => (model.package.clone(), graph.path.clone()),
            None => {
                let written = paths::fill(&model.package, model, point);
                let package = paths::resolve(&self.folder, &written);
                (written, package)
            }
        };
        let of_package = |axis: Axis| if model.graph.is_some() { 0 } else { point.on(axis) };
        let optimizations = (self.names_optimizations && model.graph.is_none()).then(|| {
            let switched = self.optimizations.get(point.on(Axis::Optimizations)).to_vec();
            Box::new(OptimizationPlan { switched, plain: self.plain(model, point), derived: self.derived_dir.clone() })
        });
        let mut cell = Cell {
            id: self.id(point),
            model: ModelRef { name: model.name.clone(), package, written },
            backend: backend.clone(),
            precision: point.precision(),
            flavour: point.flavour(),
            threads: point.on(Axis::Threads),
            workload: Workload {
                batch: of_package(Axis::Batch),
                image: ImageSize::unpack(of_package(Axis::Image)),
                prompt_tokens: of_package(Axis::PromptTokens),
                generate_tokens: of_package(Axis::GenerateTokens),
                prompt: self.prompt.clone(),
            },
            categories: self.categories.clone(),
            measurement: self.measurement.clone(),
            strict_placement: self.strict_placement,
            memory: MemoryPlan::default(),
            offload_dir: self.offload_dir.clone().filter(|_| {
                of_package(Axis::Offload) != 0 || optimizations.as_ref().is_some_and(|plan| !plan.switched.is_empty())
            }),
            accuracy: None,
            power: None,
            optimizations,
            graph: None,
        };
        // Later rules win.
        for rule in self.overrides.iter().filter(|rule| rule.when.matches(point)) {
            let (plan, set) = (&mut cell.measurement, &rule.set);
            plan.warmup = set.warmup.unwrap_or(plan.warmup);
            plan.repetitions = set.repetitions.unwrap_or(plan.repetitions);
            plan.min_seconds = set.min_seconds.unwrap_or(plan.min_seconds);
            plan.processes = set.processes.unwrap_or(plan.processes);
            plan.timeout_seconds = set.timeout_seconds.unwrap_or(plan.timeout_seconds);
            cell.strict_placement = set.strict_placement.unwrap_or(cell.strict_placement);
            if let Some(categories) = &set.categories {
                cell.categories.clone_from(categories);
            }
        }
        let foreign = self.foreign(point);
        cell.categories.retain(|category| *category != foreign);
        cell.power = cell.categories.contains(&Category::Power).then(|| Box::new(self.power.clone()));
        cell
    }
}

impl Checked {
    /// The category that models of this kind do not have.
    fn foreign(&self, point: &Point) -> Category {
        match self.models[point.model()].kind {
            ModelKind::Package => Category::Operators,
            ModelKind::Graph => Category::OptimizationImpact,
        }
    }

    /// The same model's package of standard operators, where the path says the flavour.
    fn plain(&self, model: &Model, point: &Point) -> Option<ModelRef> {
        if !model.package.contains("{flavour}") || model.flavour.is_some() {
            return None;
        }
        let written = paths::fill(&model.package, model, &point.with(Axis::Flavour, Flavour::Plain as u32));
        let package = paths::resolve(&self.folder, &written);
        Some(ModelRef { name: model.name.clone(), package, written })
    }
}

/// Readable axes and six digits of a hash over the axes alone: the same cell has the same id in every run, whatever
/// its repetitions, its place on the disk or its neighbours.
fn id(model: &str, backend: &str, point: &Point, switched: &[Switched]) -> CellId {
    let (precision, flavour, image) = (point.precision(), point.flavour(), point.image());
    let [threads, batch] = [Axis::Threads, Axis::Batch].map(|axis| point.on(axis));
    let [prompt_tokens, generate_tokens] = [Axis::PromptTokens, Axis::GenerateTokens].map(|axis| point.on(axis));
    let picture = image.map_or(String::new(), |size| format!("-i{size}"));
    let (mut memory, mut memory_fields) = (String::new(), String::new());
    if let Some(residency) = point.residency() {
        memory += &format!("-{residency}");
        memory_fields += &format!("residency={residency}\n");
    }
    for (axis, letter) in [(Axis::MemoryBudget, 'm'), (Axis::MemoryLimit, 'l')] {
        let amount = point.memory(axis);
        if amount != MemoryAmount::None {
            memory += &format!("-{letter}{amount}").replace('%', "pc");
            memory_fields += &format!("{}={amount}\n", axis.name());
        }
    }
    for (axis, tag) in [(Axis::MicroBatch, "mb"), (Axis::Guess, "guess")] {
        let count = point.on(axis);
        if count != 0 {
            memory += &format!("-{tag}{count}");
            memory_fields += &format!("{}={count}\n", axis.name());
        }
    }
    if point.on(Axis::Offload) != 0 {
        memory += "-disk";
        memory_fields += "offload=disk\n";
    }
    for one in switched {
        memory += &format!("-{}", one.technique);
        // What a technique is told may be long: the hash tells such cells apart.
        memory_fields += &format!("optimization={one}\n");
    }
    let axes = format!(
        "{model}-{precision}-{flavour}-{backend}-t{threads}{memory}-b{batch}{picture}-p{prompt_tokens}-g{generate_tokens}"
    );
    // Names may hold dashes, so the hash is taken over separated fields. A cell without an image, or of which nothing is
    // said of memory, has none of those: its id is older than the axes.
    let picture = image.map_or(String::new(), |size| format!("image={size}\n"));
    let fields = format!(
        "model={model}\nbackend={backend}\nprecision={precision}\nflavour={flavour}\nthreads={threads}\n\
         {memory_fields}batch={batch}\n{picture}prompt_tokens={prompt_tokens}\ngenerate_tokens={generate_tokens}\n"
    );
    CellId(format!("{axes}-{}", &digest::sha256(fields)[..6]))
}

/// The same of a graph: its model, its backend, its threads and the sizes of its free dimensions.
fn id_of_graph(model: &str, backend: &str, point: &Point, dimensions: &Dimensions) -> CellId {
    let (threads, limit) = (point.on(Axis::Threads), point.memory(Axis::MemoryLimit));
    let mut axes = format!("{model}-{backend}-t{threads}");
    let mut fields = format!("kind=graph\nmodel={model}\nbackend={backend}\nthreads={threads}\n");
    if limit != MemoryAmount::None {
        axes += &format!("-l{limit}");
        fields += &format!("{}={limit}\n", Axis::MemoryLimit.name());
    }
    for (name, size) in &dimensions.0 {
        // Names of dimensions may hold anything, and files are named by ids.
        let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        axes += &format!("-{name}{size}");
    }
    fields += &format!("dimensions={:?}\n", dimensions.0);
    CellId(format!("{axes}-{}", &digest::sha256(fields)[..6]))
}
