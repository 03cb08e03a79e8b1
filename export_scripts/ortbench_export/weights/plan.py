"""The dry run: every tensor's offset in the external data file, known before a byte is written."""

from dataclasses import dataclass, field

from ortbench_export.weights.tensors import Production, StoredTensor

# Large tensors start on a page, so that they can be mapped or read directly; small ones on a cache line.
LARGE_TENSOR_BYTES = 1 << 20
LARGE_ALIGNMENT = 4096
SMALL_ALIGNMENT = 64


@dataclass(frozen=True)
class Placement:
    """A tensor's range in the external data file, in bytes."""

    tensor: StoredTensor
    offset: int


@dataclass
class Plan:
    """Productions in the order of their use, and where each of their tensors will lie."""

    productions: list[Production] = field(default_factory=list)
    placements: dict[str, Placement] = field(default_factory=dict)
    total_bytes: int = 0

    def add(self, production: Production) -> None:
        """Place a production's tensors behind everything planned so far."""
        for tensor in production.tensors:
            alignment = LARGE_ALIGNMENT if tensor.nbytes >= LARGE_TENSOR_BYTES else SMALL_ALIGNMENT
            offset = -(-self.total_bytes // alignment) * alignment
            self._place(tensor, offset)
            self.total_bytes = offset + tensor.nbytes
        self.productions.append(production)

    def share(self, tensor: StoredTensor, original: str) -> None:
        """Let `tensor` name the bytes of a tensor that is planned already, under another name or shape."""
        placement = self.placements[original]
        if placement.tensor.nbytes != tensor.nbytes:
            raise ValueError(f"{tensor.name} has {tensor.nbytes} bytes and {original} {placement.tensor.nbytes}")
        self._place(tensor, placement.offset)

    def end(self, production: Production) -> int:
        """The byte behind the last tensor of a production."""
        last = self.placements[production.tensors[-1].name]
        return last.offset + last.tensor.nbytes

    def bytes_read_per_token(self) -> int:
        """Weights that one decoded token reads, shared ranges counted for each reader."""
        return sum(placement.tensor.bytes_read_per_token for placement in self.placements.values())

    def _place(self, tensor: StoredTensor, offset: int) -> None:
        if tensor.name in self.placements:
            raise ValueError(f"initializer {tensor.name} is planned twice")
        self.placements[tensor.name] = Placement(tensor, offset)
