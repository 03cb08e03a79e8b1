"""Writes `functions.json`: inputs and outputs of single functions of lm-evaluation-harness.

    python tests/data/harness/make_functions.py

What a model's answers rarely reach is asked of the functions themselves: borders of windows, odd whitespace, filters
that find nothing, stops that overlap. Needs what `make_golden.py` needs.
"""

from __future__ import annotations

import itertools
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import bits_per_byte, exact_match_fn, mean_stderr, weighted_perplexity
from lm_eval.api.task import ConfigurableTask
from lm_eval.filters.extraction import RegexFilter
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

HERE = Path(__file__).parent
WORDS = ["", "one", "one two", " one", "one ", "one\n", "\n\none  two\n", "   ", "a\u00a0b", "a\u2003b\u3000", "a\x1fb"]
WORDS += ["a\x85b", "a\u200bb", "a\ufeffb", "é ü…", "🙂 🙂"]
ANSWERS = [
    ("The answer is 42.", "the answer is 42", {}),
    ("The answer is 42.", "the answer is 42", {"ignore_case": True}),
    ("The answer is 42.", "the answer is 42", {"ignore_case": True, "ignore_punctuation": True}),
    (" 42", "42", {}),
    (" 42", "42", {"regexes_to_ignore": ["\\s+"]}),
    ("42 ", "42", {"ignore_punctuation": True}),
    ("1,234", "1234", {"regexes_to_ignore": [","]}),
    ("$1,234.", "work\nmore\n#### 1234", {"regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}),
    ("12.", "#### 12\n", {"regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}),
    ("x.\n", "x", {"regexes_to_ignore": ["\\.$", "\\s"]}),
    ("x.\n", "x", {"regexes_to_ignore": ["\\s", "\\.$"]}),
    ("ÉTÉ", "été", {"ignore_case": True}),
    ("STRASSE", "straße", {"ignore_case": True}),
    ("ΑΣ", "ας", {"ignore_case": True}),
    ("«oui»", "oui", {"ignore_punctuation": True}),
    ("it’s", "its", {"ignore_punctuation": True}),
    ("a_b-c", "abc", {"ignore_punctuation": True}),
    ("a+b=c$", "abc", {"ignore_punctuation": True}),
    ("room 12", "room ", {"ignore_numbers": True}),
    ("room 12", "room 7", {"ignore_numbers": True}),
    ("", "", {}),
    ("...", "", {"ignore_punctuation": True}),
]
FILTERS = [
    ("so 12 and 13", {"regex_pattern": "(-?[0-9]+)"}),
    ("so 12 and 13", {"regex_pattern": "(-?[0-9]+)", "group_select": -1}),
    ("so 12 and 13", {"regex_pattern": "(-?[0-9]+)", "group_select": 1}),
    ("so 12 and 13", {"regex_pattern": "[0-9]+"}),
    ("none here", {"regex_pattern": "(-?[0-9]+)"}),
    ("none here", {"regex_pattern": "(-?[0-9]+)", "fallback": "none"}),
    ("#### 1,234.5", {}),
    ("#### -7", {}),
    ("x #### 3 #### 4", {}),
    ("cost $1,200.00 or 7", {"regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1}),
    ("cost $1,200.00 or 7", {"regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"}),
    ("a=1;b=2", {"regex_pattern": "(\\w)=(\\d)"}),
    ("a=;b=2", {"regex_pattern": "a=(\\d?);b=(\\d)"}),
    ("xyz", {"regex_pattern": "(a?)(b?)"}),
    ("xyz", {"regex_pattern": "(q?)"}),
    ("answer:   7  \nnext", {"regex_pattern": "answer:([^\n]*)"}),
    ("answer: a\nb", {"regex_pattern": "answer: (.*)"}),
    ("answer: a\nb", {"regex_pattern": "(?s)answer: (.*)"}),
    ("Answer: B", {"regex_pattern": "(?i)answer: ([A-D])"}),
    ("one\ntwo", {"regex_pattern": "^(\\w+)$"}),
    ("one\ntwo", {"regex_pattern": "(?m)^(\\w+)$", "group_select": 1}),
    ("one\n", {"regex_pattern": "^(\\w+)$"}),
    ("٣ and ３", {"regex_pattern": "(\\d)", "group_select": 1}),
]
STOPS = [
    ("one\ntwo\nthree", ["\n"]),
    ("one\n\ntwo", ["\n\n", "two"]),
    ("one. two! three", ["!", "."]),
    ("abc", ["bc", "ab"]),
    ("abc", ["ab", "bc"]),
    ("abcd", ["cd", "abc"]),
    ("\nstarts", ["\n"]),
    ("none of them", ["\n", "Question:"]),
    ("an empty stop", ["", "stop"]),
    (" kept space ", ["\n"]),
    ("no stops", []),
]
WINDOWS = [*itertools.product([0, 1, 2, 7, 8, 9, 15, 16, 17, 24, 25], [8]), (5, 1), (3, 2)]
DOCUMENTS = [[(-10.5, 7), (-3.25, 2), (-100.0, 31)], [(-1.0, 1)], [(0.0, 4), (-8.0, 12)]]
SCORES = [[1, 0], [1, 1, 1], [0, 1, 1, 0, 1], [1.0] * 3 + [0.0] * 7, [0.25, 0.5, 1.0]]


def windows(length: int, most: int) -> list[dict[str, list[int]]]:
    """Windows over the tokens 1, 2, 3, …, with 0 as the prefix token."""
    pairs = get_rolling_token_windows(list(range(1, length + 1)), prefix_token=0, max_seq_len=most, context_len=1)
    return [{"context": context, "scored": scored} for context, scored in map(make_disjoint_window, pairs)]


def taken(text: str, options: dict[str, Any]) -> str:
    """What a regex filter takes from a text."""
    ((answer,),) = RegexFilter(**options).apply([[text]], [{}])
    return answer


def main() -> None:
    count_words, count_bytes = ConfigurableTask.count_words, ConfigurableTask.count_bytes
    tables = {
        "counts": [{"text": text, "words": count_words(text), "bytes": count_bytes(text)} for text in WORDS],
        "exact_match": [
            {
                "prediction": prediction,
                "reference": reference,
                "options": options,
                "exact_match": int(
                    exact_match_fn(predictions=[prediction], references=[reference], **options)["exact_match"]
                ),
            }
            for prediction, reference, options in ANSWERS
        ],
        "regex": [{"text": text, "options": options, "answer": taken(text, options)} for text, options in FILTERS],
        "stops": [
            {"text": text, "stops": stops, "kept": postprocess_generated_text(text, stops, None)}
            for text, stops in STOPS
        ],
        "windows": [
            {"tokens": length, "max_length": most, "windows": windows(length, most)} for length, most in WINDOWS
        ],
        "perplexity": [
            {"documents": found, "perplexity": weighted_perplexity(found), "bits": bits_per_byte(found)}
            for found in DOCUMENTS
        ],
        "standard_error": [{"scores": scores, "standard_error": mean_stderr(scores)} for scores in SCORES],
    }
    lines = [
        f'"{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]" for name, rows in tables.items()
    ]
    versions = json.dumps({"lm_eval": version("lm_eval")})
    (HERE / "functions.json").write_text(f'{{\n"versions": {versions},\n' + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
