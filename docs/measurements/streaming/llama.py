"""The peer: llama.cpp on random weights of a model's shape, with and without a memory limit.

    python llama.py write CONFIG.json MODEL.gguf [--layers N]
    python llama.py run MODEL.gguf [--memory-limit 4GiB] [--load mmap|none|direct] [--repack] ...

`write` makes a GGUF at the shape of a Hugging Face `config.json`: matrices in Q4_0, norms and routers in fp32, drawn at
random, one tensor in memory at a time. `run` loads it in a process of its own through xllamacpp (llama.cpp's server
code, called directly, without HTTP), generates token by token after a prompt of random ids, and prints one JSON object.
With a limit, that process runs in a control group without swap, and the file is put out of the page cache first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import math
import mmap
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Q4_0_BLOCK, Q4_0_BYTES = 32, 18
"""A block of Q4_0 is 32 weights in 18 bytes: a scale in fp16 and 16 bytes of two codes each, 0 to 15 around 8."""

WEIGHT_STD = 0.02
CODE_STD = math.sqrt((15**2 - 1) / 12)
"""Of codes from 1 to 15, uniform but for a second share of 8. Code 0 is left out: with it the mean weight is not zero,
and a stack of such matrices gives every token nearly the same hidden state, and the same experts."""


# --- write ------------------------------------------------------------------------------------------------------------


def tensors(config: dict) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape (rows first) and kind (`matrix`, `ones`, `router` or `zeros`) of every tensor, in order of use."""
    hidden, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    latent = "kv_lora_rank" in config
    yield "token_embd.weight", (vocab, hidden), "matrix"
    for layer in range(layers):
        for name, shape, kind in (mla if latent else gqa)(config):
            yield f"blk.{layer}.{name}", shape, kind
        yield f"blk.{layer}.ffn_norm.weight", (hidden,), "ones"
        for name, shape, kind in feed_forward(config, layer):
            yield f"blk.{layer}.{name}", shape, kind
    yield "output_norm.weight", (hidden,), "ones"
    if not config["tie_word_embeddings"]:
        yield "output.weight", (vocab, hidden), "matrix"


def gqa(config: dict) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Grouped-query attention with normalised queries and keys (Qwen3)."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "attn_norm.weight", (hidden,), "ones"
    yield "attn_q.weight", (queries, hidden), "matrix"
    yield "attn_q_norm.weight", (head,), "ones"
    yield "attn_k.weight", (keys, hidden), "matrix"
    yield "attn_k_norm.weight", (head,), "ones"
    yield "attn_v.weight", (keys, hidden), "matrix"
    yield "attn_output.weight", (hidden, queries), "matrix"


def mla(config: dict) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Latent attention in its absorbed form: the cache holds the latent, and heads expand it."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield "attn_norm.weight", (hidden,), "ones"
    yield "attn_q_a.weight", (q_rank, hidden), "matrix"
    yield "attn_q_a_norm.weight", (q_rank,), "ones"
    yield "attn_q_b.weight", (heads * (nope + rope), q_rank), "matrix"
    yield "attn_kv_a_mqa.weight", (kv_rank + rope, hidden), "matrix"
    yield "attn_kv_a_norm.weight", (kv_rank,), "ones"
    yield "attn_k_b.weight", (heads, kv_rank, nope), "matrix"
    yield "attn_v_b.weight", (heads, value, kv_rank), "matrix"
    yield "attn_output.weight", (hidden, heads * value), "matrix"


def feed_forward(config: dict, layer: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """A dense layer, or routed experts and the shared one."""
    hidden, experts = config["hidden_size"], expert_count(config)
    if not experts or layer < config.get("first_k_dense_replace", 0):
        width = config["intermediate_size"]
        yield "ffn_gate.weight", (width, hidden), "matrix"
        yield "ffn_up.weight", (width, hidden), "matrix"
        yield "ffn_down.weight", (hidden, width), "matrix"
        return
    width = config["moe_intermediate_size"]
    yield "ffn_gate_inp.weight", (experts, hidden), "router"
    if config.get("topk_method") == "noaux_tc":
        yield "exp_probs_b.bias", (experts,), "zeros"
    yield "ffn_gate_exps.weight", (experts, width, hidden), "matrix"
    yield "ffn_up_exps.weight", (experts, width, hidden), "matrix"
    yield "ffn_down_exps.weight", (experts, hidden, width), "matrix"
    if shared := config.get("n_shared_experts", 0):
        yield "ffn_gate_shexp.weight", (shared * width, hidden), "matrix"
        yield "ffn_up_shexp.weight", (shared * width, hidden), "matrix"
        yield "ffn_down_shexp.weight", (hidden, shared * width), "matrix"


def expert_count(config: dict) -> int:
    return config.get("num_experts") or config.get("n_routed_experts") or 0


ARCHITECTURES = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    # llama.cpp runs GLM-4.7-Flash as the architecture whose attention it shares.
    "Glm4MoeLiteForCausalLM": "deepseek2",
}


def describe(writer, config: dict) -> None:
    """The keys by which llama.cpp knows the shape."""
    from gguf import ExpertGatingFuncType

    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if "kv_lora_rank" in config:
        rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
        # Absorbed, all heads share one key: the latent and its rotated part.
        writer.add_head_count_kv(1)
        writer.add_key_length(rank + rope)
        writer.add_value_length(rank)
        writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
        writer.add_value_length_mla(config["v_head_dim"])
        writer.add_q_lora_rank(config["q_lora_rank"])
        writer.add_kv_lora_rank(rank)
        writer.add_rope_dimension_count(rope)
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if experts := expert_count(config):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "n_routed_experts" in config:
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def add_vocabulary(writer, size: int) -> None:
    """The least that llama.cpp takes: three special tokens, every byte, and words without meaning."""
    import gguf

    kinds = gguf.TokenType
    special = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens = special + [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [(f"\u2581w{index}", kinds.NORMAL) for index in range(len(tokens), size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types([int(kind) for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def write(options: argparse.Namespace) -> None:
    import gguf
    import numpy as np

    config = json.loads(options.config.read_text())
    if options.layers:
        config["num_hidden_layers"] = options.layers
    (name,) = config["architectures"]
    if name not in ARCHITECTURES:
        sys.exit(f"`{options.config}` is of `{name}`; known are {', '.join(ARCHITECTURES)}")
    draw = np.random.default_rng(options.seed)
    codes = np.where(np.arange(16) == 0, 8, np.arange(16))
    centred = (codes[:, None] * 16 + codes[None, :]).reshape(-1).astype(np.uint8)
    scale = np.frombuffer(np.float16(WEIGHT_STD / CODE_STD).tobytes(), dtype=np.uint8)

    def data(shape: tuple[int, ...], kind: str):
        if kind == "ones":
            return np.ones(shape, dtype=np.float32)
        if kind == "zeros":
            return np.zeros(shape, dtype=np.float32)
        if kind == "router":
            return draw.normal(0.0, WEIGHT_STD, shape).astype(np.float32)
        blocks = np.frombuffer(draw.bytes(math.prod(shape) // Q4_0_BLOCK * Q4_0_BYTES), dtype=np.uint8)
        blocks = centred[blocks].reshape(-1, Q4_0_BYTES)
        blocks[:, :2] = scale
        return blocks

    part = options.output.with_name(f".part-{options.output.name}")
    writer = gguf.GGUFWriter(part, ARCHITECTURES[name])
    writer.add_name(f"random {options.config.stem}")
    describe(writer, config)
    add_vocabulary(writer, config["vocab_size"])
    for tensor, shape, kind in tensors(config):
        count = math.prod(shape)
        if kind == "matrix":
            size, form = count // Q4_0_BLOCK * Q4_0_BYTES, gguf.GGMLQuantizationType.Q4_0
        else:
            size, form = count * 4, gguf.GGMLQuantizationType.F32
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size, form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, kind in tensors(config):
        writer.write_tensor_data(data(shape, kind))
    writer.close()
    part.rename(options.output)
    print(json.dumps({"file": options.output.name, "bytes": options.output.stat().st_size}))


# --- the memory limit -------------------------------------------------------------------------------------------------


def size(text: str) -> int:
    match = re.fullmatch(r"([0-9.]+) *([KMGT])iB", text)
    if not match:
        raise argparse.ArgumentTypeError(f"`{text}` is no size; write it as 4GiB or 512MiB")
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1))


class MemoryGroup:
    """A control group of version 1 or 2 with that limit and without swap, removed at the end."""

    def __init__(self, limit: int) -> None:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        first = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
        mount = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup")
        path = first or next(path for _, controllers, path in lines if not controllers)
        own = mount / path.lstrip("/")
        own = own if own.is_dir() else mount
        if first:
            files, parents = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", str(limit)), [own]
            self.peak, self.kills = "memory.max_usage_in_bytes", "memory.oom_control"
        else:
            files, parents = ("memory.max", "memory.swap.max", "0"), [own, *own.parents]
            self.peak, self.kills = "memory.peak", "memory.events"
            shares = "cgroup.subtree_control"
            parents = [p for p in parents if (p / shares).is_file() and "memory" in (p / shares).read_text().split()]
        for parent in parents:
            self.folder = parent / f"llama-{os.getpid()}"
            with contextlib.suppress(OSError):
                self.folder.mkdir()
                break
        else:
            sys.exit("no control group can be made here: run as root, or by `systemd-run --user --scope`")
        (self.folder / files[0]).write_text(str(limit))
        if (self.folder / files[1]).exists():
            (self.folder / files[1]).write_text(files[2])

    def enter(self) -> None:
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> dict:
        peak, kills = self.folder / self.peak, self.folder / self.kills
        used = int(peak.read_text()) if peak.exists() else None
        killed = re.search(r"^oom_kill (\d+)", kills.read_text(), re.MULTILINE)
        for _ in range(100):
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                break
            time.sleep(0.02)
        return {"cgroup_peak_bytes": used, "oom_kills": int(killed[1]) if killed else None}


def evict(path: Path) -> int:
    """Puts a file out of the page cache; returns how many of its bytes are in it still."""
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        length = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), length) as mapped:
            pages = (ctypes.c_ubyte * -(-length // page))()
            address = ctypes.byref((ctypes.c_ubyte * length).from_buffer(mapped))
            if libc.mincore(address, ctypes.c_size_t(length), pages) != 0:
                raise OSError(ctypes.get_errno(), "mincore")
            del address
            return sum(byte & 1 for byte in bytes(pages)) * page


# --- run --------------------------------------------------------------------------------------------------------------


def fields(path: str) -> dict[str, int]:
    """Numbers of a file of `Name: value` lines; those in kB as bytes."""
    numbers = {}
    for line in Path(path).read_text().splitlines():
        if match := re.fullmatch(r"(\w+):\s+(\d+)( kB)?", line):
            numbers[match[1]] = int(match[2]) * (1024 if match[3] else 1)
    return numbers


def major_faults() -> int:
    return int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[9])


def measure(options: argparse.Namespace) -> None:
    """The measured process: loads, generates, and writes what it saw to the descriptor that it was given."""
    import xllamacpp

    results = os.fdopen(options.results, "w")
    modes = xllamacpp.llama_load_mode
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.load_mode = {
        "mmap": modes.LLAMA_LOAD_MODE_MMAP,
        "none": modes.LLAMA_LOAD_MODE_NONE,
        "direct": modes.LLAMA_LOAD_MODE_DIRECT_IO,
    }[options.load]
    # Repacked matrices are copies in anonymous memory; without them the mapping itself is computed on.
    params.no_extra_bufts = not options.repack
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_ctx = options.prompt + options.generate + 8
    params.n_gpu_layers = 0
    params.fit_params = False
    # An empty run before the first request reads every expert once.
    params.warmup = options.warmup
    params.cache_ram_mib = 0
    params.n_parallel = 1
    params.endpoint_slots = False

    start = time.perf_counter()
    server = xllamacpp.Server(params)
    load = time.perf_counter() - start
    runs = []
    for repetition in range(options.repetitions):
        draw = random.Random(options.seed + (repetition if options.rotate else 0))
        vocabulary = range(259, 150_000)
        before, faults = fields("/proc/self/io"), major_faults()
        marks: list[tuple[float, int, int]] = []
        timings: dict = {}

        def chunk(message: dict, marks: list = marks, timings: dict = timings) -> None:
            marks.append((time.perf_counter(), fields("/proc/self/io")["read_bytes"], major_faults()))
            timings.update(message.get("timings", {}))

        request = {
            "prompt": draw.choices(vocabulary, k=options.prompt),
            "max_tokens": options.generate,
            "n_predict": options.generate,
            # The likeliest token of random weights is soon the same again and again, and routes to the same experts.
            "temperature": 0 if options.greedy else 1,
            "top_k": 0,
            "top_p": 1,
            "min_p": 0,
            "seed": options.seed + repetition,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
        }
        start = time.perf_counter()
        server.handle_completions(request, chunk)
        # The last message has the timings and no token.
        tokens = marks[: options.generate]
        gaps = [after[0] - before[0] for before, after in itertools.pairwise(tokens)]
        steps = max(len(gaps), 1)
        runs.append(
            {
                "ttft_seconds": tokens[0][0] - start,
                "ttft_read_bytes": tokens[0][1] - before["read_bytes"],
                "ttft_major_faults": tokens[0][2] - faults,
                "decode_seconds": gaps,
                "decode_tokens_per_second": len(gaps) / sum(gaps) if gaps else None,
                "decode_read_bytes_per_token": (tokens[-1][1] - tokens[0][1]) / steps,
                "decode_major_faults_per_token": (tokens[-1][2] - tokens[0][2]) / steps,
                "messages": len(marks),
                "llama_timings": timings,
            }
        )
    status = fields("/proc/self/status")
    report = {"load_seconds": load, "runs": runs, "VmHWM_bytes": status["VmHWM"], "RssAnon_bytes": status["RssAnon"]}
    report |= {"read_bytes": fields("/proc/self/io")["read_bytes"], "major_faults": major_faults()}
    json.dump(report, results)
    results.close()
    # The server's threads need not be waited for.
    os._exit(0)


def run(options: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.model = options.model.resolve()
    cached = None if options.warm else evict(options.model)
    group = MemoryGroup(options.memory_limit) if options.memory_limit else None
    reader, writer = os.pipe()
    command = [sys.executable, __file__, *sys.argv[1:], "--results", str(writer)]
    enter: Callable[[], None] | None = group.enter if group else None
    child = subprocess.Popen(command, stdout=sys.stderr, pass_fds=[writer], preexec_fn=enter)
    os.close(writer)
    peaks = {"RssAnon": 0, "RssFile": 0}
    start = time.monotonic()
    timed_out = False
    try:
        while child.poll() is None:
            with contextlib.suppress(OSError, KeyError):
                status = fields(f"/proc/{child.pid}/status")
                peaks = {name: max(peak, status[name]) for name, peak in peaks.items()}
            time.sleep(0.02)
            if time.monotonic() - start > options.timeout:
                timed_out = True
                child.kill()
    finally:
        # Also when this process is interrupted: a group with a process in it cannot be removed.
        child.kill()
        child.wait()
        used = group.close() if group else {}
    with os.fdopen(reader) as results:
        text = results.read()
    report = {
        "file": options.model.name,
        "file_bytes": options.model.stat().st_size,
        "memory_limit_bytes": options.memory_limit,
        "load_mode": options.load,
        "repack": options.repack,
        "warmup": options.warmup,
        "greedy": options.greedy,
        "threads": options.threads,
        "cached_bytes_before": cached,
        "exit_code": child.returncode,
        "timed_out": timed_out,
        "RssAnon_peak_bytes": peaks["RssAnon"],
        "RssFile_peak_bytes": peaks["RssFile"],
    }
    report |= used
    report |= json.loads(text) if text else {}
    print(json.dumps(report, indent=1))
    sys.exit(0 if text else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    writing = commands.add_parser("write", help="make a GGUF of random weights")
    writing.add_argument("config", type=Path, help="a Hugging Face config.json")
    writing.add_argument("output", type=Path)
    writing.add_argument("--layers", type=int, help="fewer layers than the config has")
    writing.add_argument("--seed", type=int, default=0)
    writing.set_defaults(call=write)
    running = commands.add_parser("run", help="generate, and print what it took")
    running.add_argument("model", type=Path)
    running.add_argument("--memory-limit", type=size, help="of a control group around the process, as 4GiB")
    running.add_argument("--load", choices=["mmap", "none", "direct"], default="mmap", help="llama.cpp's --load-mode")
    running.add_argument("--repack", action="store_true", help="let llama.cpp reorder matrices, in copies")
    running.add_argument("--warmup", action="store_true", help="llama.cpp's own empty run after the load")
    running.add_argument("--warm", action="store_true", help="leave the file in the page cache")
    running.add_argument("--threads", type=int, default=2)
    running.add_argument("--prompt", type=int, default=16, help="tokens of the prompt")
    running.add_argument("--generate", type=int, default=32, help="tokens to generate")
    running.add_argument("--repetitions", type=int, default=2, help="requests, one after the other")
    running.add_argument("--rotate", action="store_true", help="another prompt for each request")
    running.add_argument("--timeout", type=float, default=3600, help="seconds until the process is ended")
    running.add_argument("--greedy", action="store_true", help="take the likeliest token instead of drawing one")
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--results", type=int, help=argparse.SUPPRESS)
    running.set_defaults(call=run)
    options = parser.parse_args()
    measured = options.call is run and options.results is not None
    (measure if measured else options.call)(options)


if __name__ == "__main__":
    main()
