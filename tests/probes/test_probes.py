"""Probes are trained alike, and as a plain loop of transformers and PEFT trains them."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.heard import Heard
from support.models import ARCHITECTURES, OTHERS, devices, run_short_of_memory
from support.probing import config_for, loaded
from transformers import AutoModelForCausalLM

from taskpgm.chat.encoder import Encoded
from taskpgm.config import ModelConfig
from taskpgm.config_file import parse_config
from taskpgm.errors import UserError
from taskpgm.lm.checkpoint import read_skeleton
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.lm.memory import Fit, fitting
from taskpgm.lm.model import LanguageModel
from taskpgm.probes import training
from taskpgm.probes.adapted import lora_settings
from taskpgm.probes.probe import check_adapter, installed, load_probe
from taskpgm.probes.schedule import is_flat, probe_schedule
from taskpgm.probes.training import train_probes
from taskpgm.types import derive_seed


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHERS])
@pytest.mark.parametrize("last_layers", [None, 1])
@pytest.mark.parametrize("device", devices())
def test_training_is_that_of_a_plain_loop(architecture, last_layers, device, model_folders, other_folders, tmp_path):
    folder = (model_folders | other_folders)[architecture]
    config = config_for(folder, lora={"r": 4, "alpha": 8, "last_layers": last_layers}, examples=10, batch=3)
    lm, encoder, rows = loaded(folder, device)
    found = {probe.task: probe for probe in train_probes(Engine.of(lm), rows, config)}

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(derive_seed(config.seed, "adapter", "0"))
    model = get_peft_model(base, lora_settings(lm, config.probes.lora))
    parameters = [p for p in model.parameters() if p.requires_grad]
    task = "sums"
    order = probe_schedule([r.response_tokens for r in rows[task]], config, task, 0)
    optimiser = torch.optim.AdamW(parameters, lr=config.probes.learning_rate, weight_decay=0.0)
    for step, chosen in enumerate(order):
        optimiser.param_groups[0]["lr"] = config.probes.learning_rate * (
            1 if step == 0 else (len(order) - step) / (len(order) - 1)
        )
        losses = []
        for row in encoder.encode([rows[task][i].conversation for i in chosen]):
            ids = torch.tensor(row.ids[None].astype(np.int64))
            labels = torch.where(torch.tensor(row.response)[None], ids, -100)
            logits = model(input_ids=ids).logits
            losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum"))
        total = sum(rows[task][i].response_tokens for i in chosen)
        (sum(losses) / total).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        np.testing.assert_allclose(found[task].losses[step], float(sum(losses)) / total, rtol=1e-3)
    expected = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    assert set(expected) == set(found[task].weights)
    for name, weight in found[task].weights.items():
        np.testing.assert_allclose(weight.numpy(), expected[name].detach().numpy(), atol=2e-3)

    (tmp_path / "a").mkdir()
    found[task].save(tmp_path / "a")
    modules = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)  # the same bytes in every process
    ids = torch.arange(20)[None]
    reloaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path / "a"
    )
    again = load_probe(tmp_path / "a", task)
    with installed(lm, [again]) as use, use(again), torch.no_grad():
        logits = lm.model(input_ids=ids.to(device)).logits.cpu()
        torch.testing.assert_close(logits, reloaded(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_probes_start_alike_and_leave_the_base_as_it_was(model_folders):
    lm, _, rows = loaded(model_folders["llama"])
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    config = config_for(model_folders["llama"], learning_rate=1e-12)
    a, b = train_probes(Engine.of(lm), rows, config)
    for name in a.weights:
        torch.testing.assert_close(a.weights[name], b.weights[name], atol=1e-10, rtol=0)
        assert ("lora_B" in name) == (a.weights[name].abs().max() < 1e-10)
    assert dict(before).keys() == dict(lm.model.named_parameters()).keys()
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    other = next(iter(train_probes(Engine.of(lm), rows, config, seed=1)))
    assert any(not torch.allclose(other.weights[n], a.weights[n]) for n in a.weights if "lora_A" in n)


def test_a_probe_does_not_depend_on_the_other_tasks(model_folders):
    lm, _, rows = loaded(model_folders["llama"])
    config = config_for(model_folders["llama"])
    together = {p.task: p for p in train_probes(Engine.of(lm), rows, config)}
    (alone,) = train_probes(Engine.of(lm), {"sky": rows["sky"]}, config)
    assert all(torch.equal(alone.weights[n], together["sky"].weights[n]) for n in alone.weights)


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    size=st.integers(1, 400),
    batch=st.integers(1, 60),
    unit=st.sampled_from(["examples", "tokens"]),
    seed=st.integers(0, 99),
)
def test_the_amount_of_training_is_the_same_for_every_task(tokens, size, batch, unit, seed):
    config = parse_config(
        {"tasks": [{"name": "a", "path": "a"}], "budget": {unit: 9}, "probes": {unit: size, "batch": batch}}
    )
    order = probe_schedule(tokens, config, "a", seed)
    flat = np.concatenate(order)
    cost = np.ones(len(tokens)) if unit == "examples" else np.array(tokens)
    assert cost[flat].sum() >= size > cost[flat[:-1]].sum()  # to within the last row
    used = np.bincount(flat, minlength=len(tokens))
    assert used.max() - used.min() <= 1
    assert len(order) == min(config.probe_steps, len(flat)) or unit == "tokens"
    assert len(order) <= config.probe_steps
    spent = [cost[step].sum() for step in order]
    assert max(spent) <= size / config.probe_steps + 2 * cost.max() + 1


def test_a_loss_that_is_not_finite_names_the_probe_and_the_step(model_folders):
    lm, _, rows = loaded(model_folders["llama"])
    config = config_for(model_folders["llama"], learning_rate=1e30, examples=12)
    with pytest.raises(
        UserError, match=r"Training probe '(sums|sky)' has loss .* at step \d+ of 6; lower the learning rate"
    ):
        list(train_probes(Engine.of(lm), rows, config))
    assert not [name for name, _ in lm.model.named_parameters() if "lora" in name]


def test_out_of_memory_halves_the_batch_and_is_told(model_folders, monkeypatch):
    lm, _, rows = loaded(model_folders["llama"])
    config = config_for(model_folders["llama"], examples=6, batch=6)
    (expected,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config)
    run_short_of_memory(monkeypatch, 2)
    heard = Heard()
    (found,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config, progress=heard)
    assert "out of memory in probe 'sums', step 1" in heard.said[0]
    for name in found.weights:
        torch.testing.assert_close(found.weights[name], expected.weights[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("last_layers", [None, 1])
def test_recomputed_activations_train_the_same(architecture, last_layers, model_folders, monkeypatch):
    lm, _, rows = loaded(model_folders[architecture])
    config = config_for(model_folders[architecture], examples=10, batch=5, lora={"r": 4, "last_layers": last_layers})
    lm = replace(lm, processes=1)
    (kept,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config)
    monkeypatch.setattr(training, "fitting", lambda *_: Fit(40, True))
    monkeypatch.setattr(torch.Tensor, "backward", in_a_thread(torch.Tensor.backward))
    calls = []
    handles = [layer.register_forward_hook(lambda *_: calls.append("layer")) for layer in lm.layers]
    handles += [norm.register_forward_hook(lambda *_: calls.append("inside")) for norm in norms(lm.layers[-1])[:1]]
    (found,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config)
    for handle in handles:
        handle.remove()
    adapted = last_layers or len(lm.layers)
    trained = calls.count("inside") // 2
    assert trained >= 4  # two steps, of two batches at least
    assert calls.count("inside") == 2 * trained, "the last layer is run once more in every backward pass"
    assert calls.count("layer") >= adapted * trained
    for (
        name,
        weight,
    ) in kept.weights.items():  # other batches: an optimiser's step magnifies the rounding of tiny gradients
        assert (found.weights[name] - weight).norm() <= 1e-2 * weight.norm()
    assert all("forward" not in layer.__dict__ for layer in lm.layers)


def in_a_thread(work):
    """A GPU's backward pass runs in a thread of its own, which does not inherit context variables."""

    def threaded(*args):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work, *args).result()

    return threaded


def norms(layer):
    return [module for name, module in layer.named_modules() if name in ("ln_1", "input_layernorm")]


@pytest.fixture(scope="module")
def llama(model_folders):
    return load_model(ModelConfig(path=str(model_folders["llama"]), dtype="float32"))


@settings(max_examples=100, deadline=None)
@given(length=st.integers(10, 5000), budget=st.floats(1e8, 1e12), first=st.integers(0, 3))
def test_batches_are_the_largest_that_fit(llama, length, budget, first):
    rows = [Encoded(np.zeros(length, np.int32), np.arange(length) >= length // 3, False)]
    answered = 1 - length // 3 / length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "memory_budget", budget)
        found = fitting(llama, rows, first)

    def fits(tokens, recompute):
        tokens = max(tokens, length)
        return llama.memory(tokens, length, math.ceil(tokens * answered), first, recompute) <= budget

    sizes = [2048]
    while sizes[-1] > length:
        sizes.append(sizes[-1] // 2)
    wanted = [Fit(tokens, recompute) for recompute in (False, True) for tokens in sizes if fits(tokens, recompute)]
    assert found == (wanted[0] if wanted else Fit(sizes[-1], True))


def test_memory_that_runs_out_with_one_row_has_activations_recomputed_then_is_told(model_folders, monkeypatch):
    lm, _, rows = loaded(model_folders["llama"])
    lm = replace(lm, processes=1)
    config = config_for(model_folders["llama"], examples=6, batch=6)
    (expected,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config)
    accumulate, heard = training._accumulate, Heard()

    def short(lm, rows, trunk, fit, *rest):
        if fit.tokens > 40 or not fit.recompute:
            raise torch.OutOfMemoryError("Tried to allocate")
        return accumulate(lm, rows, trunk, fit, *rest)

    monkeypatch.setattr(training, "_accumulate", short)
    (found,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config, progress=heard)
    assert "computed again in the backward pass" in heard.said[-1]
    for name in found.weights:
        torch.testing.assert_close(found.weights[name], expected.weights[name], atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(training, "_accumulate", lambda *_: short(*_[:3], Fit(2048, False)))
    with pytest.raises(UserError, match=r"A row of \d+ tokens does not fit .* lower probes.max_length"):
        list(train_probes(Engine.of(lm), {"sums": rows["sums"]}, config, progress=heard))


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_memory_that_never_suffices_ends_however_many_rows_a_step_has(batch, model_folders, monkeypatch):
    lm, _, rows = loaded(model_folders["llama"])
    tries = []

    def short(*_):
        tries.append(1)
        assert len(tries) < 30, "tried for ever"
        raise torch.OutOfMemoryError("Tried to allocate")

    monkeypatch.setattr(training, "_accumulate", short)
    config = config_for(model_folders["llama"], examples=6, batch=batch)
    with pytest.raises(UserError, match=r"A row of \d+ tokens does not fit .* lower probes.max_length"):
        list(train_probes(Engine.of(replace(lm, processes=1)), {"sums": rows["sums"]}, config, progress=Heard()))


def test_wrong_adapters_and_modules_are_one_sentence(model_folders, tmp_path):
    lm, _, rows = loaded(model_folders["llama"])
    with pytest.raises(UserError, match=r"needs adapter_config.json"):
        load_probe(tmp_path, "sums")
    other, _, _ = loaded(model_folders["gpt2"])
    (probe,) = train_probes(Engine.of(other), {"sums": rows["sums"]}, config_for(model_folders["gpt2"]))
    with pytest.raises(UserError, match=r"adapter of task 'sums' does not fit"), installed(lm, [probe]):
        pass
    with pytest.raises(UserError, match=r"names 'q_prj'.*its linear modules are .*q_proj"):
        lora_settings(lm, config_for(".", lora={"target_modules": ["q_prj"]}).probes.lora)
    with pytest.raises(UserError, match=r"last_layers is 9, but .* has 4 layers"):
        lora_settings(lm, config_for(".", lora={"last_layers": 9}).probes.lora)


def saved_adapter(folder, target, change=lambda weights: None, **settings):
    """An adapter of the model as PEFT saves it, with random weights, after a change of them."""
    torch.manual_seed(3)
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), LoraConfig(**lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(target)
    weights = load_file(target / "adapter_model.safetensors")
    change(weights)
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize(
    "lora",
    [
        {}, {"init_lora_weights": "eva"}, {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "gaussian"},
        {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"layers_to_transform": [1, 2]}, {"target_modules": "all-linear"}, {"target_modules": r".*\.1\..*_proj"},
        {"exclude_modules": ["v_proj"]},
    ],
)  # fmt: skip
def test_a_brought_adapter_gives_what_peft_gives_and_leaves_the_base_alone(lora, model_folders, tmp_path):
    folder = model_folders["llama"]
    saved_adapter(folder, tmp_path, **lora)
    lm = load_model(ModelConfig(path=str(folder), device="cpu", dtype="float32"))
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    probe = load_probe(tmp_path, "sums")
    check_adapter(read_skeleton(ModelConfig(path=str(folder))), "llama", probe)
    ids = torch.arange(20)[None]
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path)
    with installed(lm, [probe]) as use, use(probe), torch.no_grad():
        torch.testing.assert_close(lm.model(input_ids=ids).logits, peft(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"init_lora_weights": "pissa"}, r"began with init_lora_weights: pissa, .* convert it to plain LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, r"began with init_lora_weights: pissa_niter_4"),
        ({"init_lora_weights": "olora"}, r"began with init_lora_weights: olora"),
        ({"bias": "all"}, r'sets bias: "all", which probes cannot have'),
        ({"modules_to_save": ["lm_head"]}, r'sets modules_to_save: \["lm_head"\]'),
        ({"trainable_token_indices": [1, 2]}, r"sets trainable_token_indices: \[1, 2\]"),
        ({"layer_replication": [(0, 4), (2, 4)]}, r"sets layer_replication: \[\[0, 4\], \[2, 4\]\]"),
        ({"target_modules": ["embed_tokens"]}, r"holds '.*embed_tokens.*', a weight of the base model itself"),
    ],
)
def test_an_adapter_that_changes_more_than_its_layers_is_refused_by_name(lora, sentence, model_folders, tmp_path):
    saved_adapter(model_folders["llama"], tmp_path, **lora)
    with pytest.raises(UserError, match=f"Task 'sums': adapter .* {sentence}"):
        load_probe(tmp_path, "sums")


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "mica", "something new"])
def test_a_start_that_is_not_known_to_leave_the_base_alone_is_refused(start, model_folders, tmp_path):
    saved_adapter(model_folders["llama"], tmp_path)
    change_settings(tmp_path, init_lora_weights=start)
    with pytest.raises(UserError, match=f"Task 'sums': adapter .* began with init_lora_weights: {start}, which takes"):
        load_probe(tmp_path, "sums")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"peft_type": "IA3"}', "is IA3; probes are LoRA"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"peft_type": "LORA", "r": "four"}', "does not fit|cannot be read"),
    ],
)
def test_settings_of_another_kind_are_one_sentence(text, sentence, model_folders, tmp_path):
    saved_adapter(model_folders["llama"], tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        check_adapter(
            read_skeleton(ModelConfig(path=str(model_folders["llama"]))), "llama", load_probe(tmp_path, "sums")
        )


def change_settings(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_setting_that_the_installed_peft_does_not_know_is_refused(model_folders, tmp_path):
    saved_adapter(model_folders["llama"], tmp_path)
    change_settings(tmp_path, use_later_invention=False)
    load_probe(tmp_path, "sums")
    change_settings(tmp_path, use_later_invention={"scale": 3})
    with pytest.raises(
        UserError, match=r'sets use_later_invention: \{"scale": 3\}, which the installed PEFT does not know'
    ):
        load_probe(tmp_path, "sums")


def test_a_pissa_adapter_that_peft_has_converted_is_the_model_that_was_trained(model_folders, tmp_path):
    folder = model_folders["llama"]
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa")
    model = get_peft_model(base, lora)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    lm = load_model(ModelConfig(path=str(folder), device="cpu", dtype="float32"))
    probe = load_probe(tmp_path / "plain", "sums")
    ids = torch.arange(20)[None]
    with installed(lm, [probe]) as use, use(probe), torch.no_grad():
        torch.testing.assert_close(lm.model(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-3, rtol=1e-3)


QUERY = "base_model.model.model.layers.2.self_attn.q_proj"


def without(*ends):
    return lambda weights: [weights.pop(f"{QUERY}.{end}") for end in ends]


@pytest.mark.parametrize(
    ("change", "lora", "sentence"),
    [
        (without("lora_A.weight"), {}, rf"it lacks {QUERY}.lora_A.weight, which its settings ask for"),
        (without("lora_A.weight", "lora_B.weight"), {}, rf"it lacks {QUERY}.lora_A.weight"),
        (without("lora_magnitude_vector"), {"use_dora": True}, rf"it lacks {QUERY}.lora_magnitude_vector"),
        (lambda w: w.update({QUERY.replace("2", "9") + ".lora_A.weight": torch.zeros(4, 32)}), {}, r"it has .*layers.9"),
        (lambda w: w.update({QUERY + ".lora_A.weight": torch.zeros(4, 30)}), {}, r"size mismatch for .*layers.2.self_attn.q"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("skeleton", [True, False])
def test_an_adapter_that_is_not_whole_names_the_first_weight(change, lora, sentence, skeleton, model_folders, tmp_path):
    saved_adapter(model_folders["llama"], tmp_path, change, **lora)
    config = ModelConfig(path=str(model_folders["llama"]), device="cpu")
    model = read_skeleton(config) if skeleton else load_model(config).model
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError, match=rf"adapter of task 'sums' does not fit 'llama' \({sentence}"):
        check_adapter(model, "llama", load_probe(tmp_path, "sums"))
    assert [name for name, _ in model.named_modules()] == names


def test_a_weight_that_is_not_finite_is_named(model_folders, tmp_path):
    saved_adapter(model_folders["llama"], tmp_path, lambda w: w[f"{QUERY}.lora_B.weight"].fill_(float("inf")))
    with pytest.raises(UserError, match=rf"a weight that is not finite in '{QUERY}.lora_B.weight'"):
        load_probe(tmp_path, "sums")


def test_a_probe_that_ends_early_is_the_shorter_training(model_folders):
    """Out of rows: as with a size of its rows. Flat: the weights after the steps that were made, and their tokens."""
    folder = model_folders["llama"]
    lm, _, rows = loaded(folder)
    few = {"sums": rows["sums"][:3]}
    (ended,) = train_probes(lm, few, config_for(folder, examples=12, batch=2, early_stop=True))
    (plain,) = train_probes(lm, few, config_for(folder, examples=3, batch=2))
    assert ended.ended == "out of rows"
    assert ended.losses == plain.losses
    assert all(torch.equal(ended.weights[name], plain.weights[name]) for name in plain.weights)

    settings = {"examples": 24, "batch": 2, "learning_rate": 1e-9}  # one row and no learning: the loss is flat
    same = {"sums": rows["sums"][:1] * 24}
    heard = Heard()
    (flat,) = train_probes(lm, same, config_for(folder, early_stop=True, **settings), progress=heard)
    (full,) = train_probes(lm, same, config_for(folder, **settings))
    assert (flat.ended, len(flat.losses), len(full.losses)) == ("flat", 6, 12)
    assert flat.losses == full.losses[:6]
    assert 2 * flat.trained_tokens == full.trained_tokens
    assert heard.done == heard.totals == {"training probes": 12}


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), st.integers(1, 30))
def test_a_loss_is_flat_where_two_quarters_say_so(losses, steps):
    """By a slow count: never before half of the steps, and never while the loss falls by 2 % a quarter."""
    quarter = max(2, steps // 4)
    last, before = losses[-quarter:], losses[-2 * quarter : -quarter]
    enough = len(losses) >= steps / 2 and len(losses) >= 2 * quarter
    falls = enough and sum(last) / quarter <= 0.98 * sum(before) / quarter
    assert is_flat(losses, steps) == (enough and not falls)
