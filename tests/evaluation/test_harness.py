"""lm-evaluation-harness on a local task file chooses the same options as our own evaluation."""

import json

import pytest
from support.probing import config_for, loaded

from taskpgm.data.messages import conversation
from taskpgm.errors import UserError
from taskpgm.evaluation.harness import run_harness
from taskpgm.evaluation.loss import Evaluator
from taskpgm.lm.engine import Engine
from taskpgm.pool.task_pool import Row
from taskpgm.probes.training import train_probes

pytest.importorskip("lm_eval")

TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{ends}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
"""


def multiple_choice(encoder):
    words = ["yes", "no", "7", "42", "The answer is 3.", "maybe not", "elppa"]
    rows = []
    for i in range(24):
        choices = tuple(words[(i * k + k) % 7] for k in (1, 2, 4)) if (i + 1) % 7 else ("yes", "no")
        messages = conversation(("user", f"Question {i}: {words[i % 7]}?"), ("assistant", choices[i % len(choices)]))
        rows.append(Row(messages, *encoder.lengths([messages])[0][:3], key="", choices=choices))
    return rows


def test_a_local_task_gives_the_accuracy_of_our_own_evaluation(model_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm, encoder, rows = loaded(model_folders["llama"])
    config = config_for(model_folders["llama"], examples=24, learning_rate=0.01)
    questions = multiple_choice(encoder)
    with (tmp_path / "data.jsonl").open("w") as file:
        for row in questions:
            ends = [choice + "<|im_end|>" for choice in row.choices]
            label = row.choices.index(row.conversation.answer)
            file.write(
                json.dumps({"prompt": row.conversation.messages[0].content, "ends": ends, "label": label}) + "\n"
            )
    (tmp_path / "choice.yaml").write_text(TASK.replace("DATA", str(tmp_path / "data.jsonl")))
    (probe,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config)
    accuracies = []
    for adapter in (None, probe):
        own = Evaluator(lm, {"a": questions}, config).evaluate(adapter).sets["a"]
        found = run_harness(lm, adapter, ["local_choice"], tmp_path / "choice.yaml")
        assert own.marked == len(questions)
        assert found["local_choice"]["acc"] == pytest.approx(own.accuracy)
        assert set(found["local_choice"]) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
        accuracies.append(own.accuracy)
    assert 0 < accuracies[0] != accuracies[1] > 0
    own = Evaluator(lm, {"a": questions[:5]}, config).evaluate(probe).sets["a"]
    assert run_harness(lm, probe, ["local_choice"], tmp_path, limit=5)["local_choice"]["acc"] == pytest.approx(
        own.accuracy
    )
    assert lm.tokenizer.padding_side == "right"
    assert not [name for name, _ in lm.model.named_parameters() if "lora" in name]


def test_wrong_tasks_are_one_sentence(model_folders, tmp_path):
    lm, _, _ = loaded(model_folders["llama"])
    with pytest.raises(UserError, match=r"nowhere does not exist; check"):
        run_harness(lm, None, ["a"], tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no task 'no_such_task' or in .*; `lm-eval ls tasks` lists"):
        run_harness(lm, None, ["no_such_task"], tmp_path)
    (tmp_path / "choice.yaml").write_text(TASK.replace("DATA", str(tmp_path / "missing.jsonl")))
    with pytest.raises(UserError, match=r"cannot load the task 'local_choice' \(.*missing.jsonl.*\); check its file"):
        run_harness(lm, None, ["local_choice"], tmp_path)
