"""LLaMA-Factory: `dataset_info.json`, `sft.yaml`.

Rows are written in the form that it calls sharegpt. Its form openai adds "detailed thinking off" to every system text.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskpgm.data.messages import Conversation, Message
from taskpgm.export.handover import FILL_IN, Handover, Written, drawn_counts, exact, write_yaml
from taskpgm.files import write_jsonl

TAGS = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
BETWEEN_RESULTS = "\n</tool_response>\n<tool_response>\n"  # as LLaMA-Factory joins the results of several calls
SFT = """What LLaMA-Factory still needs from you: FILL-IN values (template: its name for your model's), the learning
rate, the batch. Start it in this folder: llamafactory-cli train sft.yaml"""


def write_llama_factory(handover: Handover, folder: Path) -> Written:
    """A dataset a task in `dataset_info.json`, listed in `sft.yaml`; by counts with `num_samples`."""
    info: dict[str, Any] = {}
    for task in handover.tasks:
        write_jsonl(folder / task.file, (_line(handover, row) for row in handover.conversations(task)))
        columns = {"messages": "messages"} | ({"tools": "tools"} if handover.has_tools else {})
        info[task.stem] = {"file_name": task.file, "formatting": "sharegpt", "columns": columns, "tags": TAGS}
        if handover.by == "counts":
            info[task.stem]["num_samples"] = task.plan.count
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_yaml(folder / "sft.yaml", SFT, {
        "model_name_or_path": handover.model, "template": FILL_IN, "stage": "sft", "do_train": True,
        "finetuning_type": "lora", "lora_rank": 16, "dataset_dir": ".", "dataset": ",".join(info),
        "cutoff_len": handover.max_length, "train_on_prompt": False, "mask_history": handover.learned == "last",
        "packing": False, "overwrite_cache": True, "num_train_epochs": 1, "learning_rate": 2e-4,
        "per_device_train_batch_size": 8, "seed": handover.seed, "output_dir": "output",
    })  # fmt: skip
    keeps = [
        "`dataset` lists every name once: a name that stands twice counts once.",
        "`train_on_prompt: false` takes the loss of answers only, with what the template writes behind their end.",
        "`num_train_epochs: 1`: repeats are in the files already.",
        "Rows are shuffled by LLaMA-Factory; do not set `streaming`, which ignores `num_samples`.",
    ]
    if handover.learned == "last":
        keeps.append("`mask_history: true`: in every row only the last answer is learned.")
    if handover.by == "counts":
        sees = drawn_counts(handover) + " Beyond a whole pass it draws with replacement."
        keeps[2] = "`num_train_epochs: 1`: `num_samples` has the repeats."
    else:
        sees = exact(handover)
    return Written(sees, "```sh\nllamafactory-cli train sft.yaml\n```", tuple(keeps))


def unfit_for_llama_factory(row: Conversation) -> str | None:
    """Why LLaMA-Factory would skip the row with a warning, or lose a part of it; None if it takes it."""
    if any(turn.tool_calls and turn.content for turn in row.messages):
        return "a tool call has text beside it, and its turns of calls have no place for text"
    turns = list(_turns(row))
    if turns and turns[0]["role"] == "system":
        turns = turns[1:]
    roles = [turn["role"] for turn in turns]
    asked, said = roles[::2], roles[1::2]
    if (
        len(asked) != len(said)
        or not {*asked} <= {"user", "observation"}
        or not {*said} <= {"assistant", "function_call"}
    ):
        return "it skips rows whose turns of user and assistant do not alternate, or whose last is not an answer"
    return None


def _line(handover: Handover, row: Conversation) -> dict[str, Any]:
    tools = (
        {"tools": json.dumps(list(row.tools), ensure_ascii=False) if row.tools else ""} if handover.has_tools else {}
    )
    return {"messages": list(_turns(row)), **tools}


def _turns(row: Conversation) -> Iterator[dict[str, str]]:
    """The turns under LLaMA-Factory's roles; results of several calls are one turn."""
    results: list[str] = []
    for turn in row.messages:
        if turn.role == "tool":
            results.append(turn.content)
            continue
        if results:
            yield {"role": "observation", "content": BETWEEN_RESULTS.join(results)}
            results = []
        yield _turn(turn)
    if results:
        yield {"role": "observation", "content": BETWEEN_RESULTS.join(results)}


def _turn(turn: Message) -> dict[str, str]:
    if turn.tool_calls:
        calls = [{"name": call["function"]["name"], "arguments": _arguments(call)} for call in turn.tool_calls]
        return {"role": "function_call", "content": json.dumps(calls, ensure_ascii=False)}
    return {"role": turn.role, "content": turn.content}


def _arguments(call: dict[str, Any]) -> Any:
    arguments = call["function"].get("arguments", {})
    return json.loads(arguments) if isinstance(arguments, str) else arguments
