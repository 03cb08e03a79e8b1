"""Build ONNX graphs directly: nodes as they are named, weights as they are planned, nothing traced.

Node names read `/model/layers.0/attn/q_proj/MatMul`: where, then what. A node's outputs are named after it.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortbench_export import __version__
from ortbench_export.options import ExportOptions
from ortbench_export.weights.plan import Placement, Plan
from ortbench_export.weights.tensors import Production, StoredTensor, WeightSource

CONTRIB = "com.microsoft"
# The oldest opset with block-wise DequantizeLinear and 4-bit integers: the older the opset, the more providers.
STANDARD_OPSET = 21
# The IR version that came with that opset; onnx's own default would lock older runtimes out.
IR_VERSION = 10
# A graph's files are called after its stem, and so are the names within it.
STEMS = {"decoder": "model", "vision": "vision"}
ONNX_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16,
              np.dtype(np.int64): TensorProto.INT64}


@dataclass(frozen=True)
class Port:
    """An input or output of the graph: `dims` are integers and symbolic names, `role` says what it is for."""

    name: str
    role: str
    dtype: np.dtype
    dims: tuple[int | str, ...]
    layer: int | None = None

    def value_info(self) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(self.name, ONNX_TYPES[np.dtype(self.dtype)], self.dims)

    def describe(self) -> dict:
        """As the manifest lists it."""
        return {"name": self.name, "role": self.role, "layer": self.layer, "dtype": np.dtype(self.dtype).name,
                "dims": list(self.dims)}


@dataclass
class Graph:
    """A graph under construction: blocks add nodes to it and get the names of their outputs. `role` says what it is
    for, one of STEMS."""

    role: str
    options: ExportOptions
    source: WeightSource
    plan: Plan = field(default_factory=Plan)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _node_names: set[str] = field(default_factory=set)

    def node(self, op: str, name: str, inputs: list[str], outputs: int | list[str] = 1, domain: str = "", **attributes):
        """Add a node named `name`; the output's name, or a list of them where there are several.

        `outputs` is their number, or their names where those matter ("" for one that is not wanted).
        """
        if name in self._node_names:
            raise ValueError(f"node {name} is built twice")
        self._node_names.add(name)
        if isinstance(outputs, int):
            outputs = [f"{name}/output_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def constant(self, values, dtype=np.int64) -> str:
        """A small constant, stored once for each distinct value."""
        array = np.asarray(values, dtype=dtype)
        name = f"/{self.stem}/constants/{array.dtype.name}/{array.tolist()}".replace(" ", "")
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weights(self, production: Production) -> tuple[str, ...]:
        """Plan the tensors of a production behind those before it; their names."""
        self.plan.add(production)
        return tuple(tensor.name for tensor in production.tensors)

    def share(self, tensor: StoredTensor, original: str) -> str:
        """Name the bytes of a planned tensor a second time."""
        self.plan.share(tensor, original)
        return tensor.name

    def add_input(self, port: Port) -> str:
        self.inputs.append(port)
        return port.name

    def add_output(self, port: Port) -> str:
        self.outputs.append(port)
        return port.name

    @property
    def stem(self) -> str:
        return STEMS[self.role]

    @property
    def model_file(self) -> str:
        return f"{self.stem}.onnx"

    @property
    def data_file(self) -> str:
        """The weights."""
        return f"{self.model_file}.data"

    def model(self) -> onnx.ModelProto:
        """The finished model, whose weights lie in `data_file` beside it."""
        initializers = list(self.constants.values())
        initializers += [_external(placement, self.data_file) for placement in self.plan.placements.values()]
        graph = helper.make_graph(
            self.nodes, self.stem, [port.value_info() for port in self.inputs],
            [port.value_info() for port in self.outputs], initializers,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid(*each) for each in self.opsets().items()],
            ir_version=IR_VERSION, producer_name="ortbench_export", producer_version=__version__,
        )

    def opsets(self) -> dict[str, int]:
        """Domain → version; the plain flavour knows the standard domain alone."""
        return {"": STANDARD_OPSET, CONTRIB: 1} if self.options.fused else {"": STANDARD_OPSET}


@dataclass
class PackageGraphs:
    """The graphs of a package under construction, in the order in which they were begun."""

    options: ExportOptions
    source: WeightSource
    graphs: list[Graph] = field(default_factory=list)

    def begin(self, role: str, options: ExportOptions | None = None) -> Graph:
        """An empty graph, with options of its own where they differ from the package's."""
        self.graphs.append(Graph(role, options or self.options, self.source))
        return self.graphs[-1]

    def of(self, role: str) -> Graph | None:
        """The graph of that role, if there is one."""
        return next((graph for graph in self.graphs if graph.role == role), None)


def tensor_name(node_name: str, what: str) -> str:
    """The initializer `what` of a block: `/model/layers.0/attn/q_proj` → `model.layers.0.attn.q_proj.weight`."""
    return f"{node_name.strip('/').replace('/', '.')}.{what}"


def _external(placement: Placement, data_file: str) -> TensorProto:
    tensor = TensorProto(name=placement.tensor.name, data_type=placement.tensor.dtype, dims=placement.tensor.shape,
                         data_location=TensorProto.EXTERNAL)
    entries = {"location": data_file, "offset": placement.offset, "length": placement.tensor.nbytes}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
