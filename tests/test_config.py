"""The configuration file: keys once, names as they are written, and what is wrong in words."""

import json
import traceback
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpgm import UserError, load_config
from taskpgm.config import BALANCE, MAX_TASK_LOSS, OPTIONS_PRIOR, EnergyConfig
from taskpgm.config_file import parse_config
from taskpgm.evaluation.baselines import read_weights
from taskpgm.names import bad_in_name
from taskpgm.yamls import read_yaml

BUDGET = "budget: {examples: 9}\n"


def test_a_notebook_shows_the_first_mistake_alone():
    tasks = [{"name": f"{i}/{i}", "path": "x"} for i in range(9)]
    with pytest.raises(UserError) as error:
        parse_config({"tasks": tasks, "budget": {"examples": 9}})
    shown = "".join(traceback.format_exception(error.value))
    assert "0/0" in shown
    assert "1/1" not in shown


def names_of(tmp_path, text):
    (tmp_path / "mix.yaml").write_text(text + BUDGET, encoding="utf-8")
    return [task.name for task in load_config(tmp_path / "mix.yaml").tasks]


def refused(tmp_path, text):
    (tmp_path / "mix.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "mix.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("energy", "targets", "said"),
    [
        ({"max_loss": "5%"}, True, None),
        ({"max_task_loss": 0.05}, False, None),
        ({"balance": 0.5}, True, None),
        ({"max_loss": "x%"}, True, "max_loss"),
        ({"max_loss": 5}, True, "max_loss"),
        ({"max_loss": "0%"}, True, "max_loss"),
        ({"balance": 0.5}, False, "there are none"),
        ({"balance": 1.5}, True, "balance"),
        ({"kind": "gain", "max_loss": 0.1}, True, "for energy.kind likelihood alone"),
        ({"kind": "gain", "repetition": 0.1}, True, "likelihood with targets alone"),
        ({"repetition": 0.1}, False, "likelihood with targets alone"),
        ({"repetition": -1}, True, "repetition"),
    ],
)
def test_targets_and_tasks_are_weighed(energy, targets, said):
    settings = {"tasks": [{"name": "a", "path": "a.jsonl"}], "budget": {"examples": 5}, "energy": energy}
    settings |= {"targets": [{"name": "t", "path": "t.jsonl"}]} if targets else {}
    if said is None:
        found = parse_config(settings).energy
        for name, value in energy.items():
            assert getattr(found, name) == pytest.approx(0.05 if value == "5%" else value)
        return
    with pytest.raises(UserError, match=said):
        parse_config(settings)


@pytest.mark.parametrize(
    ("energy", "target", "found"),
    [
        ({}, {}, (BALANCE, MAX_TASK_LOSS, None)),
        ({"balance": 0.5}, {}, (0.5, MAX_TASK_LOSS, None)),
        ({"balance": 0}, {}, (0, None, None)),
        ({"max_loss": 0.01}, {}, (BALANCE, None, None)),
        ({"max_task_loss": 1}, {}, (BALANCE, 1, None)),
        ({"kind": "gain"}, {}, (0, None, None)),
        ({}, {"score": "options"}, (0, None, OPTIONS_PRIOR)),
        ({}, None, (0, None, None)),
    ],
)
def test_usual_balance_limit_and_prior(energy, target, found):
    settings = {"tasks": [{"name": "a", "path": "a.jsonl"}], "budget": {"examples": 5}, "energy": energy}
    settings |= {"targets": [{"name": "t", "path": "t.jsonl", **target}]} if target is not None else {}
    config = parse_config(settings)
    assert (config.energy.balance, config.energy.max_task_loss, config.energy.prior) == found
    assert parse_config(config.model_dump(mode="json")).energy == config.energy  # as a run directory keeps it


def test_only_the_usual_limit_is_left_out():
    usual = EnergyConfig(max_task_loss=MAX_TASK_LOSS)
    assert usual.unlimited("This").limited == ()
    assert EnergyConfig().unlimited("This") == EnergyConfig()
    for asked in ({"max_task_loss": 0.05}, {"max_loss": 0.08}, {"max_loss": 0.05, "max_task_loss": MAX_TASK_LOSS}):
        with pytest.raises(UserError, match="This keeps no energy.max_loss or max_task_loss"):
            EnergyConfig(**asked).unlimited("This")


def test_names_that_look_like_other_values_are_names(tmp_path):
    written = ["no", "2024", "1e5", "1.50", "null", "2024-01-01", "0x1F", "On", "1_000"]
    tasks = "".join(f"  - {{name: {name}, path: x}}\n" for name in written)
    groups = f"groups:\n  - {{name: 7, tasks: [{', '.join(written)}]}}\n"
    utility = "energy:\n  utility:\n" + "".join(f"    {name}: 0.5\n" for name in written)
    assert names_of(tmp_path, f"tasks:\n{tasks}{groups}{utility}") == written
    config = load_config(tmp_path / "mix.yaml")
    assert config.groups[0].tasks == tuple(written)
    assert config.groups[0].name == "7"
    assert config.energy.utility == dict.fromkeys(written, 0.5)


def test_paths_revisions_and_columns_are_text_and_numbers_stay_numbers(tmp_path):
    task = "{name: a, path: 2024, subset: 1.10, split: no, columns: {prompt: 007, completion: yes}, min_share: 0.5}"
    names_of(tmp_path, f"model: {{revision: 1234567, processes: 2}}\ntasks: [{task}]\n")
    config = load_config(tmp_path / "mix.yaml")
    one = config.tasks[0]
    assert (one.path, one.subset, one.split, one.min_share) == ("2024", "1.10", "no", 0.5)
    assert one.columns == {"prompt": "007", "completion": "yes"}
    assert (config.model.revision, config.model.processes) == ("1234567", 2)


def test_a_setting_without_a_value_stands_at_its_default(tmp_path):
    text = "model:\nprobes: {seeds: null}\ntasks:\n  - {name: a, path: x, subset: null, columns: , adapter: ~}\n"
    assert names_of(tmp_path, text) == ["a"]
    one = load_config(tmp_path / "mix.yaml").tasks[0]
    assert (one.subset, one.columns, one.adapter) == (None, None, None)
    assert "'tasks.0.name' is required" in refused(tmp_path, "tasks: [{name: , path: x}]\n" + BUDGET)


@pytest.mark.parametrize(
    ("text", "key", "second", "first"),
    [
        (f"tasks: [{{name: a, path: x}}]\n{BUDGET}tasks: []\n", "tasks", 3, 1),
        ("budget:\n  examples: 9\n  max_epochs: 1\n  examples: 8\n", "examples", 4, 2),
        ('tasks:\n  - name: a\n    path: x\n    "path": y\n', "path", 4, 3),
        ('{"tasks": [\n{"name": "a",\n"name": "b"}]}', "name", 3, 2),
        ("energy:\n  utility:\n    no: 1\n    'no': 2\n", "no", 4, 3),
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_its_lines(text, key, second, first, tmp_path):
    assert f"mix.yaml: the key '{key}' in line {second} stands in line {first} already" in refused(tmp_path, text)


def test_anchors_and_merge_keys_work_and_may_be_overridden(tmp_path):
    text = "tasks:\n  - &a {name: a, path: x, min_share: 0.1}\n  - {<<: *a, name: b}\n  - {<<: *a, name: c, min_share: 0.2}\n"
    assert names_of(tmp_path, text) == ["a", "b", "c"]
    assert [task.min_share for task in load_config(tmp_path / "mix.yaml").tasks] == [0.1, 0.1, 0.2]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.integers(-(10**9), 10**9).map(lambda n: n / 8) | st.text("ab:#- é"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("kxyz é", min_size=1), inner, max_size=3),
        max_leaves=12,
    )
)  # fmt: skip
def test_json_is_read_as_json_is(data):
    assert read_yaml(json.dumps(data, ensure_ascii=False), "x") == data


@pytest.mark.parametrize(
    "name", ["数学", "données d'été", "a b", "x [b]#1", "C++", "what?", "你好 世界", "🙂", "-", "a.b.", "x" * 200]
)
def test_a_name_may_be_what_a_file_may_be_called(name):
    config = parse_config({"tasks": [{"name": name, "path": "x"}], "budget": {"examples": 1}})
    assert config.tasks[0].name == name
    assert bad_in_name(name) == ""


@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("a/b", "because of '/'"),
        ("a\\b", r"because of '\\'"),
        ("a\tb", r"because of '\t'"),
        (" a", "because of ' '"),
        ("a ", "because of ' '"),
        ("..", "because of '.'"),
        (".hidden", "because of '.'"),
        ("~warm", "because of '~'"),
        ("", "it is empty"),
        ("数" * 67, "it has 201 bytes"),
    ],
)
def test_what_a_name_may_not_have_is_said_in_words(name, because):
    with pytest.raises(UserError) as error:
        parse_config({"tasks": [{"name": name, "path": "x"}], "budget": {"examples": 1}})
    assert f"cannot be a name ({because}); a name may have letters of any script, digits, spaces" in str(error.value)


@pytest.mark.parametrize("other", ["SUMS é", unicodedata.normalize("NFD", "sums é")])
def test_names_that_some_file_systems_hold_for_one_are_refused(other):
    tasks = [{"name": name, "path": "x"} for name in ("sums é", other)]
    with pytest.raises(UserError, match="are one and the same to some file systems; rename one"):
        parse_config({"tasks": tasks, "budget": {"examples": 1}})


def test_a_configuration_that_is_not_there_says_how_to_write_one(tmp_path):
    with pytest.raises(UserError, match=r"No such file or directory; `taskpgm init FILES > .*mix.yaml` writes one\."):
        load_config(tmp_path / "mix.yaml")


def test_a_number_where_text_belongs_says_to_quote_it(tmp_path):
    text = "model: {device: 2024}\ntasks: [{name: a, path: x}]\n" + BUDGET
    assert "model.device: Input should be a valid string (got 2024; put it in quotes)" in refused(tmp_path, text)


@pytest.mark.parametrize("value", ["2024", "no", "2024-13-45", "010", "1:30"])
def test_a_path_of_validation_rows_is_text_as_written(value, tmp_path):
    (tmp_path / "mix.yaml").write_text(f"tasks: [{{name: a, path: x, validation: {value}}}]\n" + BUDGET)
    assert load_config(tmp_path / "mix.yaml").tasks[0].validation == value


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0", 0), ("-0", 0), ("+7", 7), ("010", 10), ("010000", 10000), ("-012", -12), ("0o17", 15), ("0x1F", 31), ("10_000", 10000),
        ("9" * 4000, 10**4000 - 1), ("0b11", "0b11"), ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("0o8", "0o8"), ("1__", 1), ("_1", "_1"),
        ("1.5", 1.5), ("1.", 1.0), (".5", 0.5), ("-2.5e-3", -0.0025), ("1_0.5", 10.5), (".inf", float("inf")), ("-.inf", -float("inf")),
        ("2024-01-01", "2024-01-01"), ("2024-13-45", "2024-13-45"), ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("yes", True), ("off", False), ("~", None),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(written, expected):
    found = read_yaml(f"x: {written}\ny: [{written}]\n", "x")
    assert found == {"x": expected, "y": [expected]}
    assert type(found["x"]) is type(expected)


def test_what_yaml_cannot_make_is_named_with_its_line(tmp_path):
    for value, shown, kind in [
        ("7" * 5000, "7" * 40 + "…", "int"), ("!!int x", "x", "int"), ("!!float x", "x", "float"), ("!!bool x", "x", "bool"),
        ("!!timestamp x", "x", "timestamp"), ("!!timestamp 2024-13-45", "2024-13-45", "timestamp"),
    ]:  # fmt: skip
        said = refused(tmp_path, f"tasks: [{{name: a, path: x}}]\nbudget: {{examples: {value}}}\n")
        assert f"mix.yaml: '{shown}' in line 2 cannot be read as {kind}; correct it" in said


@pytest.mark.parametrize("value", ["yes", "on", "true", "no", "off", "false"])
def test_a_truth_value_is_no_number(value, tmp_path):
    tasks = "tasks: [{name: a, path: x}]\n"
    for text, place in [
        (f"{tasks}budget: {{examples: {value}}}\n", "budget.examples"),
        (f"{tasks}{BUDGET}seed: {value}\n", "seed"),
        (f"{tasks}{BUDGET}energy: {{utility: {{a: {value}}}}}\n", "energy.utility"),
        (f"{tasks}{BUDGET}energy: {{max_task_loss: {value}}}\n", "energy.max_task_loss"),
        (f"tasks: [{{name: a, path: x, min_share: {value}}}]\n{BUDGET}", "tasks.0.min_share"),
    ]:
        assert f"{place}: takes a number, and yes, no, on, off, true and false are truth values" in refused(
            tmp_path, text
        )
    (tmp_path / "mix.yaml").write_text(f"{tasks}{BUDGET}probes: {{early_stop: {value}}}\n")
    assert load_config(tmp_path / "mix.yaml").probes.early_stop is (value in ("yes", "on", "true"))


def test_an_unknown_key_is_named_before_the_one_that_is_missing(tmp_path):
    said = refused(tmp_path, "tasks: [{name: a, path: x}]\nbuget: {examples: 3}\n")
    assert "unknown key 'buget'; did you mean 'budget'?" in said
    said = refused(tmp_path, "tasks: [{name: a, pth: x}]\n" + BUDGET)
    assert "unknown key 'tasks.0.pth'; did you mean 'path'?" in said


def test_weights_files_take_names_as_written_and_each_once(tmp_path):
    (tmp_path / "w.yaml").write_text("no: 1\n2024: 3\n")
    assert read_weights(tmp_path / "w.yaml", ("no", "2024")) == {"no": 0.25, "2024": 0.75}
    (tmp_path / "w.yaml").write_text("no: 1\nno: 3\n")
    with pytest.raises(UserError, match="the key 'no' in line 2 stands in line 1 already"):
        read_weights(tmp_path / "w.yaml", ("no",))
    (tmp_path / "w.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(UserError, match="the key 'a' stands twice"):
        read_weights(tmp_path / "w.json", ("a",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("budget: {examples: 10,000}\ntasks: [{name: a, path: x}]\n", "unknown key 'budget.000'; known here: examples"),
        ("- a\n- b\n", "holds no settings by name"),
        ("tasks:\n  a: x\n" + BUDGET, "tasks: takes a list, a line that begins with - for each"),
        ("tasks: [x]\n" + BUDGET, 'tasks.0: takes settings by name, {setting: value} (got "x")'),
        ("tasks: [{name: a, path: x, columns: [q]}]\n" + BUDGET, "tasks.0.columns: takes names and values, {name:"),
        ("tasks: []\n" + BUDGET, "tasks: needs one at least (got [])"),
        ("tasks: &a [*a]\n" + BUDGET, "mix.yaml holds itself by an alias"),
        ("a: " + "[" * 3000, "mix.yaml is nested too deeply"),
        ("tasks:\n\t- x\n", "line 2, column 1: while scanning for the next token, found character '\\t' that cannot"),
        ('tasks: [{name: a, path: "x\\0"}]\n' + BUDGET, "or a null byte; check it"),
        (f"tasks: [{{name: a, path: {'x' * 256}}}]\n" + BUDGET, "has a name of more than 255 bytes"),
    ],
)
def test_what_is_wrong_is_said_for_those_who_write_yaml(text, says, tmp_path):
    said = refused(tmp_path, text)
    assert says in said
    assert "unicode string" not in said
    assert said.endswith(".")


def test_a_configuration_in_another_encoding_is_read_or_its_line_named(tmp_path):
    text = "tasks:\n  - {name: café, path: x}\n" + BUDGET
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "mix.yaml").write_bytes(text.encode(encoding))
        assert load_config(tmp_path / "mix.yaml").tasks[0].name == "café"
    (tmp_path / "mix.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="mix.yaml: line 2 is not UTF-8 text; save the file as UTF-8"):
        load_config(tmp_path / "mix.yaml")
    with pytest.raises(UserError, match="Is a directory; name the experiment's YAML file"):
        load_config(tmp_path)
