"""M-RoPE: each token has three positions, in time, rows and columns, and each rotary frequency turns by one of them."""

from dataclasses import dataclass

import numpy as np

from ortbench_export.blocks.rope import rope_computed, rope_frequencies
from ortbench_export.graph import Graph, Port

TIME, ROW, COLUMN = range(3)


@dataclass(frozen=True)
class Mrope:
    """How many frequencies turn in time, by rows and by columns, in turn as long as there are some left: interleaved
    M-RoPE."""

    sections: tuple[int, int, int]

    def axes(self) -> list[int]:
        """The axis of every frequency, the fastest first."""
        axes = [TIME] * sum(self.sections)
        for axis in (ROW, COLUMN):
            for index in range(axis, min(3 * self.sections[axis], len(axes)), 3):
                axes[index] = axis
        return axes


def mrope_waves(graph: Graph, head_dim: int, theta: float, mrope: Mrope) -> tuple[str, str]:
    """Add the input `position_ids` `[3, batch, sequence]`; cosine and sine of each token and frequency, `[batch,
    sequence, head_dim / 2]`."""
    position_ids = graph.add_input(Port("position_ids", "mrope_position_ids", np.int64, (3, "batch", "sequence")))
    last = graph.node("Transpose", "/model/rotary_emb/Transpose", [position_ids], perm=[1, 2, 0])
    return rope_computed(graph, last, mrope.axes(), rope_frequencies(head_dim, theta))


def mrope_table(graph: Graph, waves: tuple[str, str]) -> tuple[tuple[str, str], str]:
    """The waves as tables with a row a token, and each token's row, int64 `[batch, sequence]`."""
    name = "/model/rotary_emb"
    cosine, sine = (graph.node("Flatten", f"{name}/{what}/Flatten", [wave], axis=2)
                    for what, wave in zip(("cos", "sin"), waves, strict=True))
    shape = graph.node("Shape", f"{name}/Shape", [waves[0]], start=0, end=2)
    count = graph.node("ReduceProd", f"{name}/ReduceProd", [shape], keepdims=0)
    counted = graph.node("Range", f"{name}/Range", [graph.constant(0), count, graph.constant(1)])
    return (cosine, sine), graph.node("Reshape", f"{name}/Reshape", [counted, shape])
