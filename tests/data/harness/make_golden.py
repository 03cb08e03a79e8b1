"""Writes `golden.json`: what lm-evaluation-harness makes of `models/qwen3-tiny`, by transformers on the CPU in float32.

    python -m pip install --require-hashes -r tests/data/harness/requirements.txt
    python tests/data/harness/make_items.py
    python tests/data/harness/make_golden.py

Run it in the root of the repository: the task files name their data from there. `docs/harness.md` explains the outcome.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Everything is at hand, and nothing is to be asked of a network.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

HERE = Path("tests/data/harness")
MODEL = Path("models/qwen3-tiny")
PACKAGES = ["lm_eval", "transformers", "torch", "tokenizers", "datasets", "accelerate"]
DIGITS = 6
"""Decimals of log-likelihoods: a float32 sum of a few has less."""


@dataclass(frozen=True)
class Case:
    """A run of one task file with settings of its own."""

    name: str
    task: str
    few_shot: int = 0
    chat: bool = False
    multi_turn: bool = True
    max_length: int | None = None
    limit: int | None = None
    tokens: bool = False
    """Whether each request's tokens are kept as well."""


CASES = [
    Case("arithmetic", "arithmetic"),
    Case("arithmetic-3-shot", "arithmetic", few_shot=3, limit=100),
    Case("arithmetic-3-shot-from-another-file", "arithmetic_shots", few_shot=3, limit=60),
    Case("arithmetic-chat", "arithmetic", chat=True, limit=60),
    Case("recall", "recall"),
    Case("recall-2-shot", "recall", few_shot=2, limit=60),
    Case("recall-chat", "recall", chat=True, limit=60),
    Case("recall-truncated", "recall", max_length=24, limit=100),
    Case("chat-without-template", "chat"),
    Case("chat", "chat", chat=True),
    Case("chat-2-shot", "chat", few_shot=2, chat=True),
    Case("chat-2-shot-in-one-turn", "chat", few_shot=2, chat=True, multi_turn=False),
    Case("edges", "edges", tokens=True),
    Case("edges-truncated", "edges", max_length=13),
    Case("pairs", "pairs"),
    Case("pairs-chat", "pairs", chat=True),
    Case("documents", "documents"),
    Case("documents-128", "documents", max_length=128),
    Case("documents-61", "documents", max_length=61),
    Case("sums", "sums"),
    Case("sums-3-shot", "sums", few_shot=3, limit=60),
    Case("sums-chat", "sums", chat=True, limit=60),
    Case("steps", "steps"),
    Case("steps-truncated", "steps", max_length=11),
]


def run(case: Case) -> dict[str, Any]:
    """One case: its settings, its aggregated results, and each item's."""
    model = HFLM(pretrained=str(MODEL), dtype="float32", device="cpu", batch_size=1, max_length=case.max_length)
    task = f"ortbench_{case.task}"
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[task],
        num_fewshot=case.few_shot,
        limit=case.limit,
        apply_chat_template=case.chat,
        fewshot_as_multiturn=case.multi_turn and case.chat,
        task_manager=TaskManager(include_path=str(HERE), include_defaults=False),
        log_samples=True,
    )
    config, samples = found["configs"][task], found["samples"][task]
    kind = config["output_type"]
    by_item: dict[int, list[dict]] = {}
    for sample in samples:
        by_item.setdefault(sample["doc_id"], []).append(sample)
    of_kind = {"multiple_choice": choice, "loglikelihood_rolling": perplexity, "generate_until": generation}[kind]
    items = [{"id": same[0]["doc"]["id"], **of_kind(same)} for _, same in sorted(by_item.items())]
    if case.tokens:
        for item, (_, same) in zip(items, sorted(by_item.items()), strict=True):
            item["tokens"] = [tokens_of(model, *request) for request in same[0]["arguments"]]
    data = config["dataset_kwargs"]["data_files"]
    return {
        "name": case.name,
        "task": f"{case.task}.yaml",
        "kind": kind,
        "file": data["test"],
        "few_shot": case.few_shot,
        "few_shot_file": data[config["fewshot_split"]] if case.few_shot else None,
        "chat": case.chat,
        "multi_turn": case.multi_turn if case.chat else None,
        "max_length": model.max_length,
        "limit": case.limit,
        "target_delimiter": config["target_delimiter"],
        "fewshot_delimiter": config["fewshot_delimiter"],
        "generation": config.get("generation_kwargs"),
        "filters": config.get("filter_list"),
        "first_requests": [request[:2] for request in samples[0]["arguments"]],
        "results": results(found["results"][task]),
        "items": items,
    }


def choice(samples: list[dict]) -> dict[str, Any]:
    """The log-likelihood of each request, and whether each of its tokens was the likeliest."""
    (sample,) = samples
    metrics = {name: sample[name] for name in ("acc", "acc_norm", "acc_bytes") if name in sample}
    found = [response for (response,) in sample["resps"]]
    return {
        "loglikelihoods": [round(value, DIGITS) for value, _ in found],
        "greedy": [int(greedy) for _, greedy in found],
        **{name: int(value) for name, value in metrics.items()},
    }


def perplexity(samples: list[dict]) -> dict[str, Any]:
    """The log-likelihood of a text with the words and the bytes that it is divided by."""
    (sample,) = samples
    value, words = sample["word_perplexity"]
    _, size = sample["byte_perplexity"]
    return {"loglikelihood": round(value, DIGITS), "words": words, "bytes": size}


def generation(samples: list[dict]) -> dict[str, Any]:
    """The text, and by filter: what was taken from it and whether that is right."""
    ((text,),) = samples[0]["resps"]
    answers = {sample["filter"]: sample["filtered_resps"][0] for sample in samples}
    right = {sample["filter"]: int(sample["exact_match"]) for sample in samples}
    return {"text": text, "answers": answers, "exact_match": right}


def tokens_of(model: HFLM, context: str, continuation: str) -> list[list[int]]:
    """Tokens of context and continuation as `loglikelihood` makes them."""
    if context:
        return [list(ids) for ids in model._encode_pair(context, continuation)]
    kept: list[list[int]] = []
    inner, model._loglikelihood_tokens = (
        model._loglikelihood_tokens,
        lambda requests, **_: kept.extend(map(list, requests[0][1:])),
    )
    model.loglikelihood([_Request((context, continuation))], disable_tqdm=True)
    model._loglikelihood_tokens = inner
    return kept


@dataclass(frozen=True)
class _Request:
    args: tuple[str, str]


def results(found: dict[str, Any]) -> dict[str, float | None]:
    """Metrics by name, or `name,filter` where there are several; a standard error that the harness lacks is null."""
    kept = {name.removesuffix(",none"): value for name, value in found.items() if "," in name}
    return {name: None if value == "N/A" else round(float(value), 9) for name, value in kept.items()}


def written(golden: dict[str, Any]) -> str:
    """JSON with one item a line, so that a difference is seen where it is."""
    cases = []
    for case in golden["cases"]:
        head = json.dumps(case | {"items": []}, indent=2).removesuffix('"items": []\n}')
        items = ",\n    ".join(json.dumps(item) for item in case["items"])
        cases.append(f'{head}"items": [\n    {items}\n  ]\n}}')
    head = json.dumps(golden | {"cases": []}, indent=2).removesuffix('"cases": []\n}')
    return f'{head}"cases": [\n' + ",\n".join(cases) + "\n]}\n"


def main() -> None:
    torch.set_num_threads(1)
    model = HFLM(pretrained=str(MODEL), dtype="float32", device="cpu")
    golden = {
        "model": str(MODEL),
        "dtype": "float32",
        "device": "cpu",
        "versions": {name: version(name) for name in PACKAGES},
        "prefix_token": model.prefix_token_id,
        "end_token": model.eot_token_id,
        "cases": [run(case) for case in CASES],
    }
    (HERE / "golden.json").write_text(written(golden))


if __name__ == "__main__":
    main()
