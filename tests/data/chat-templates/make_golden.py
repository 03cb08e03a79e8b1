"""Renders the templates of this folder with transformers; writes `golden.json`, which a Rust test renders again.

Besides whole conversations there are snippets, small expressions from `snippets.json`, one construct each.

Run with any environment that has transformers and jinja2: `python tests/data/chat-templates/make_golden.py`.
"""

import datetime
import json
from pathlib import Path

import jinja2
import tokenizers
import transformers
from transformers.utils import chat_template_utils

FOLDER = Path(__file__).parent
NOW = datetime.datetime(2025, 3, 9, 7, 5, 2, tzinfo=datetime.UTC)
# Any refusal of a snippet counts, whatever its kind.
REFUSALS = (jinja2.TemplateError, AttributeError, TypeError, ValueError, ZeroDivisionError)


class FrozenClock(datetime.datetime):
    """The clock that `strftime_now` reads, standing at NOW."""

    @classmethod
    def now(cls, tz=None):
        return NOW


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text, **more):
    return {"role": "tool", "content": text, **more}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": ' The weather of a <place> & its "surroundings", grüße 天気. ',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Where it's asked for"},
                "days": {"type": ["integer", "null"], "minimum": 1, "default": 1.5},
                "units": {"enum": ["metric", "imperial"], "strict": True, "nothing": None},
                "list": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
PLACE = {
    "place": 'Zürich "old" town\n',
    "days": 2,
    "exact": True,
    "none": None,
    "span": [1, 2.0],
    "more": {"b": 1, "a": 2},
}
STEPS = [
    system("Be brief."),
    user("Weather and time?"),
    assistant("", tool_calls=[call("weather", PLACE), call("clock", {})]),
    tool("sunny"),
    tool("noon"),
    assistant("One more.", reasoning_content="\nI should ask again.\n", tool_calls=[call("clock", {"zone": "UTC"})]),
    tool("late"),
]
THOUGHTS = [
    user("1+1?"),
    assistant("<think>\neasy\n</think>\n\n2"),
    user("2+2?"),
    assistant("<think>\nalso easy\n</think>\n\n4"),
]
PICTURES = [
    user([{"type": "image"}, {"type": "text", "text": "What is  "}, {"type": "image_url", "image_url": {"url": "x"}}]),
    assistant("A cat."),
    user([{"type": "video"}, {"type": "image", "image": "y"}, {"type": "text", "text": " And here? "}]),
]
TALK = [system(" Be kind. "), user(" Hi "), assistant(" Hello! "), user("<b>Bye</b> & 'thanks'\n")]
VALUES = {
    "flag": True,
    "nothing": None,
    "whole": 12,
    "float": 2.0,
    "large": 1.5e22,
    "small": 1e-05,
    "text": "äbcab",
    "list": [1, "two", None, False, [3.5]],
    "object": {"z": 1, "a": "ü<é>", "m": {"k": [], "e": {}, "l": ["x", 1]}, "b": True, "u": '\u2028\t"\\\x7f😀'},
    "schema": {"type": "array", "items": {"type": "string"}},
}
SNIPPET_VALUES = {"m": {"a": 1}, "l": [1, 2], "messages": []}
DOCUMENTS = [{"title": "one", "text": " first "}, {"title": "two", "text": ""}, {"title": "", "text": "third"}]
KNOWN = ["search", "python"]

# Template, messages, and what else the template is given.
CASES = [
    ("thinking", [user("Hello")], {}),
    ("thinking", TALK, {"enable_thinking": False}),
    ("thinking", TALK, {"add_generation_prompt": False, "enable_thinking": True}),
    ("thinking", STEPS, {"tools": [WEATHER, CLOCK]}),
    ("thinking", STEPS[1:], {"tools": [CLOCK]}),
    ("thinking", THOUGHTS, {"add_generation_prompt": False}),
    ("thinking", [user("a"), assistant("b", thinking="under another name")], {"add_generation_prompt": False}),
    ("thinking", [user("a"), assistant(None, tool_calls=[call("clock", '{"zone":"UTC"}')]), tool("now")], {}),
    ("thinking", [user("a"), user("[tool]old form[/tool]")], {}),
    ("tags", TALK, {}),
    ("tags", STEPS, {"tools": [WEATHER, CLOCK]}),
    ("tags", STEPS[1:], {"tools": [WEATHER["function"]]}),
    ("tags", STEPS, {"add_generation_prompt": False}),
    ("pictures", TALK, {}),
    ("pictures", PICTURES, {}),
    ("pictures", PICTURES, {"add_vision_id": True, "add_generation_prompt": False}),
    ("plain-thinking", TALK, {}),
    ("plain-thinking", STEPS, {"tools": [WEATHER]}),
    ("plain-thinking", THOUGHTS, {"enable_thinking": False}),
    ("plain-thinking", PICTURES, {"enable_thinking": True}),
    (
        "plain-thinking",
        [user("x (quick)"), tool([{"output": "a"}, {"other": 1, "flag": True}])],
        {"enable_thinking": False},
    ),
    ("headers", TALK, {}),
    ("headers", TALK, {"today": "1 Jan 2000", "tools": [WEATHER]}),
    ("headers", TALK, {"tools": [WEATHER, CLOCK], "tools_early": True, "known": KNOWN}),
    (
        "headers",
        [user("a"), assistant("", tool_calls=[call("search", {"q": "x", "r": "y"})]), tool({"found": [1]})],
        {"known": KNOWN},
    ),
    ("headers", [user("a"), assistant("", tool_calls=[call("clock", PLACE)]), tool("text")], {"own_tools": [CLOCK]}),
    ("headers", STEPS, {}),
    ("headers", [system("alone")], {"tools": [CLOCK]}),
    ("brackets", TALK, {}),
    ("brackets", TALK, {"tools": [WEATHER, CLOCK]}),
    (
        "brackets",
        [
            user("a"),
            assistant(None, tool_calls=[call("clock", PLACE, id="abcdef123")]),
            tool(23.0, tool_call_id="abcdef123"),
            assistant("b"),
        ],
        {"tools": [CLOCK]},
    ),
    ("brackets", [user("a"), assistant("", tool_calls=[call("clock", {}, id="short")])], {}),
    ("brackets", [user("a"), user("b")], {}),
    ("brackets", [user("a"), {"role": "critic", "content": "b"}], {}),
    ("turns", TALK, {}),
    ("turns", [system([{"type": "text", "text": "In a list."}]), *PICTURES], {}),
    ("turns", [user("a"), assistant("b")], {"add_generation_prompt": False}),
    ("turns", [assistant("first")], {}),
    ("turns", [user(5)], {}),
    ("marked", TALK, {"documents": DOCUMENTS}),
    (
        "marked",
        [*TALK, assistant("Bye."), {"role": "user", "content": "never", "stop": True}],
        {"add_generation_prompt": False},
    ),
    ("values", TALK, VALUES),
]


def main():
    chat_template_utils.datetime = FrozenClock
    empty = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1}, "<s>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=empty, bos_token="<s>", eos_token="</s>")
    cases = []
    for name, messages, more in CASES:
        template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
        keywords = {"add_generation_prompt": True, **more}
        case = {"template": name, "messages": messages, "more": keywords}
        try:
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **keywords)
            case["rendered"] = text
        except jinja2.TemplateError as error:
            case["error"] = error.message
        cases.append(case)
    snippets = []
    for snippet in json.loads((FOLDER / "snippets.json").read_text(encoding="utf-8")):
        try:
            template = chat_template_utils._compile_jinja_template(snippet)
            snippets.append({"snippet": snippet, "rendered": template.render(**SNIPPET_VALUES, tools=None)})
        except REFUSALS as error:
            snippets.append({"snippet": snippet, "error": str(error)})
    golden = {
        "versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "now_seconds": int(NOW.timestamp()),
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "cases": cases,
        "snippet_values": SNIPPET_VALUES,
        "snippets": snippets,
    }
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (FOLDER / "golden.json").write_text(text + "\n", encoding="utf-8")


main()
