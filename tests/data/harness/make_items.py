"""Writes the items that only a test wants: `edges.jsonl`, `chat.jsonl`, `shots.jsonl`.

    python tests/data/harness/make_items.py

They have the form of `models/qwen3-tiny/tasks/arithmetic.jsonl`, which most are made of. The first part of an edge's id
says what is odd about it:

* `space`, `newline`, `blank`: the context ends in whitespace, which the harness moves into the continuation; `blank`
  ends in characters that Python's `str.rstrip` takes for whitespace and other languages may not;
* `empty`: there is no context; `prefix`: nor one where the choice begins with the token that stands in for it;
* `template`: the text has special tokens;
* `merge`: the context's last letters and the choice's first would be one token if they were not apart;
* `length`: characters, bytes and tokens of the choices differ;
* `script`: no choice makes sense, and which one wins depends on what its log-likelihood is divided by.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "models" / "qwen3-tiny"
BLANKS = ["\t", " \n", "\u00a0", "\u2003", "\x1f", "\u3000 ", "\n\n", "\x0b"]
SENTENCES = [
    "The list names every syllable once, before the questions are asked of a reader.",
    "Whoever reads the second column finds another number beside each word in it.",
    "Please copy all values without changing their order or leaving something out.",
    "A small model may answer under certain conditions only, and may be wrong there.",
    "Some of the results were written down before anyone could check what they mean.",
    "Programs that count and compare need a source of numbers which nobody changes.",
    "Each part of the work has a title, a purpose and a person who is asked about it.",
    "Nothing that was said before would limit what is written after the last line.",
    "When the reader is given two versions, the later version is the one that counts.",
    "These questions require attention, since similar words stand close to each other.",
    "It is right to include a notice where the meaning of a sign is not quite clear.",
    "Other people use the same method for other subjects and receive similar answers.",
    "The party that began must offer a reason, and the others accept or refuse that.",
    "Files without a name are kept apart until someone decides which folder they need.",
    "Any change in the rules applies to the rounds that begin after it is announced.",
    "Numbers below a hundred follow from sums of smaller numbers that are known well.",
]
SHOTS = ["31 + 4 = 35", "58 - 6 = 52", "27 + 6 = 33"]


def items_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (MODEL / "tasks" / f"{name}.jsonl").read_text().splitlines()]


def edges() -> list[dict]:
    """All kinds of edges."""
    sums = items_of("arithmetic")
    apart = [(item["context"], [choice.strip() for choice in item["choices"]], item["answer"]) for item in sums]
    items = []

    def add(kind: str, context: str, choices: list[str], answer: int) -> None:
        at = sum(item["id"].startswith(f"{kind}-") for item in items)
        items.append({"id": f"{kind}-{at:02d}", "context": context, "choices": choices, "answer": answer})

    for question, values, answer in apart[:8]:
        add("space", f"{question} ", [f"{value}\n" for value in values], answer)
    for (question, values, answer), (after, results, right) in zip(apart[8:16], apart[16:24], strict=True):
        add("newline", f"{question} {values[answer]}\n", [f"{after} {value}\n" for value in results], right)
    for (question, values, answer), blank in zip(apart[24:32], BLANKS, strict=True):
        add("blank", f"{question}{blank}", [f"{value}\n" for value in values], answer)
    for question, values, answer in apart[32:40]:
        add("empty", "", [f"{question} {value}\n" for value in values], answer)
    for question, values, answer in apart[40:42]:
        add("prefix", "", [f"<|im_end|>\n{question} {value}\n" for value in values], answer)
    for question, values, answer in apart[42:46]:
        context = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        add("template", context, [f"{value}<|im_end|>" for value in values], answer)
    for question, values, answer in apart[46:48]:
        add("template", f"<|im_end|>\n{question}", [f" {value}\n" for value in values], answer)
    for context, choices in merges(12):
        add("merge", context, choices, 0)
    for at, (question, values, answer) in enumerate(apart[48:72]):
        right, wrong = values[answer], values[answer - 1]
        wide = "".join(chr(ord(digit) + 0xFEE0) for digit in right)
        choices = [f" {right}\n", f" {right} = {right}\n", f" {wide}\n", f" {wrong}…\n", f" {right} é", f" {right} 🙂"]
        add("length", question, choices[at % 6 :] + choices[: at % 6], (6 - at) % 6)
    for at, (question, _, _) in enumerate(apart[72:84]):
        add("script", question, [" éé", "%%%%", "é", "}{}{"], (0, 0, 1, 2)[at % 4])
    return items


def merges(count: int) -> list[tuple[str, list[str]]]:
    """Sentences cut within a word so that no choice leaves the tokens of the context as they were."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    def crosses(context: str, choice: str) -> bool:
        given, whole = tokenizer.encode(context).ids, tokenizer.encode(context + choice).ids
        return len(whole) > len(given) and whole[: len(given)] != given

    found: list[tuple[str, list[str]]] = []
    for sentence in SENTENCES:
        for word in re.finditer(r"(?<= )[a-z]{5,9}(?= )", sentence):
            context, rest = sentence[max(0, word.start() - 40) : word.start() + 2], word.group()[2:]
            choices = [rest + tail for tail in (" the", " of these lists", "s, and")]
            if all(crosses(context.lstrip(), choice) for choice in choices):
                found.append((context.lstrip(), choices))
                break
    return found[:count]


def chat() -> list[dict]:
    """Sums whose choices have no whitespace, as a chat's answer has none."""
    return [item | {"choices": [choice.strip() for choice in item["choices"]]} for item in items_of("arithmetic")[:60]]


def shots() -> list[dict]:
    """Worked examples, none of them held out."""
    found = []
    for at, (question, value) in enumerate(line.rsplit(" ", 1) for line in SHOTS):
        choices = [f" {int(value) + step}\n" for step in (-1, 0, 1, 10)]
        found.append({"id": f"shot-{at}", "context": question, "choices": choices, "answer": 1})
    return found


def main() -> None:
    for name, items in (("edges", edges()), ("chat", chat()), ("shots", shots())):
        (HERE / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


if __name__ == "__main__":
    main()
