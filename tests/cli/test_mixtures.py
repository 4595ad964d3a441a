"""A mixture on the terminal: the sentence first, bounds that bind, relations, and many tasks."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from support.numerics import names, synthetic_scores

from taskpgm.cli.mixtures import bound_lines, explanation_view, headline, mixture_view, path_view, relation_lines
from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.mixture.affinity import given_affinity, measure_affinity
from taskpgm.mixture.bounds import Group, make_bounds
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.energy import field_energy
from taskpgm.mixture.explanation import explain
from taskpgm.mixture.path import trace_path
from taskpgm.mixture.selection import select_tasks
from taskpgm.mixture.solve import solve_mixture
from taskpgm.pool.plan import rows_again


def shown(view, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(view, crop=False)
    return console.file.getvalue()


def solved(n=4, targets=1, bounds=None, **options):
    scores = synthetic_scores(np.random.default_rng(0), n=n, targets=targets, contexts=options.pop("contexts", 12))
    energy = build_energy(scores, None, EnergyConfig(**options))
    mixture = solve_mixture(energy, bounds, {"uniform": None})
    return energy, mixture, measure_affinity(scores, AffinityConfig())


def test_the_first_sentence_says_what_to_do_and_how_sure_it_is():
    _, mixture, _ = solved()
    data = mixture.to_dict()
    heaviest = max(mixture.shares, key=mixture.shares.get)
    (verdict,) = mixture.verdicts
    said = headline(data)
    assert said.startswith(f"Spend the budget mostly on {heaviest} ({mixture.shares[heaviest]:.0%})")
    assert f"{abs(verdict.gain):.3f} ± {verdict.standard_error:.3f} nats a token" in said
    assert ("it is better than uniform" in said) == verdict.better
    (verdict,) = data["verdicts"]
    unsure = {**data, "verdicts": [{**verdict, "better": False, "gain": -0.001}]}
    assert "not shown to be better than uniform: by the probes worse by 0.001" in headline(unsure)
    even = {**data, "tasks": [{"name": f"t{i}", "weight": 0.25 + 0.01 * i} for i in range(-1, 3)]}
    assert headline(even).startswith("Spread the budget nearly evenly over 4 tasks, 24% to 27% each")
    assert "no contexts to judge it by" in headline({**data, "verdicts": []})


def test_rows_that_are_seen_again_are_told():
    """By size every row is seen once; uniform sees those of the small task 2.5 times, of the large one 0.625 times."""
    tasks = [
        {"name": "a", "weight": 0.2, "epochs": 1.0, "references": {"uniform": 0.5}, "max_share": 0.8},
        {"name": "b", "weight": 0.8, "epochs": 1.0, "references": {"uniform": 0.5}, "max_share": 1.0},
    ]
    data = {"tasks": tasks, "energy": {"settings": {"repetition_price": 0.1}}}
    assert "seen 1.0 times on average, with uniform 1.8 times" in rows_again(data)
    assert rows_again({**data, "energy": {"settings": {}}}) is None
    often = [{**tasks[0], "weight": 0.5, "epochs": 2.5}, {**tasks[1], "weight": 0.5, "epochs": 0.625}]
    assert rows_again({**data, "tasks": often}) is None
    _, mixture, _ = solved()
    whole = mixture.to_dict()
    whole["verdicts"] = [{**whole["verdicts"][0], "better": False, "gain": -0.001}]
    whole["energy"]["settings"]["repetition_price"] = 0.1
    for task in whole["tasks"]:
        task["epochs"] = 3 * task["weight"]
    assert "By the probes alone it is worse than uniform" not in headline(whole)
    for task, epochs in zip(whole["tasks"], (0.2, 0.2, 0.2, 0.2), strict=True):
        task |= {"epochs": epochs, "max_share": 1.0}
    whole["tasks"][0]["epochs"] = whole["tasks"][0]["weight"] / 0.02
    whole["tasks"][0]["references"] = {"uniform": 4 * whole["tasks"][0]["weight"]}
    assert "By the probes alone it is worse than uniform" in headline(whole)
    assert "they do not see that it repeats rows less" in headline(whole)


def test_what_held_out_contexts_say_has_its_name_and_no_p():
    data = solved(contexts=4)[1].to_dict()
    text = shown(mixture_view(data), 400)
    assert f"better than uniform by {data['verdicts'][0]['gain']:+.4f}" in text
    assert "promises no gain in training" in text
    assert not re.search(r"\bp [<=]", text)


@pytest.mark.parametrize("prior", [0.2, 0.0])
def test_a_binding_bound_is_said_with_what_a_hundredth_more_would_gain(prior):
    bounds = make_bounds(
        names(4), lo={"t1": 0.3}, hi={"t0": 0.1}, supply={"t2": 0.2}, groups=[Group("g", ("t2", "t3"), 0.5, 0.55)]
    )
    energy, mixture, _ = solved(bounds=bounds, prior=prior)
    lines = bound_lines(mixture.to_dict())
    prices = mixture.shadow_prices
    assert len(lines) == sum(price > 1e-6 for price in prices.values()) > 0
    words = {"max_share": "the max_share of {}", "min_share": "the min_share of {}", "supply": "all that {} supplies"}
    for name, price in prices.items():
        if price > 1e-6:
            of, why = name.rsplit(".", 1)
            bound = f"the {why} of group g" if of == "g" else words[why].format(of)
            (line,) = (line for line in lines if bound in line)
            assert f"would gain {price:.2g} nats a token" in line
    # What a hundredth more gains, solved again with it.
    relaxed = make_bounds(
        names(4), lo={"t1": 0.3}, hi={"t0": 0.11}, supply={"t2": 0.2}, groups=[Group("g", ("t2", "t3"), 0.5, 0.55)]
    )
    gain = energy.value(mixture.weights) - energy.value(solve_mixture(energy, relaxed).weights)
    if "t0.max_share" in prices:
        assert gain == pytest.approx(prices["t0.max_share"], rel=0.2)


def test_tasks_that_a_selection_leaves_out_are_named_and_not_at_a_bound():
    energy, _, affinity = solved(n=6, targets=2)
    chosen = select_tasks(energy, k=2).chosen
    text = shown(mixture_view(solve_mixture(energy, chosen=chosen, references={"uniform": None}).to_dict(), affinity))
    others = [task for task in names(6) if task not in chosen]
    assert f"left out: {', '.join(others)}" in text
    table = text.split("left out")[0]
    assert not [task for task in others if re.search(rf"^ {task} ", table, re.M)]
    assert "selection" not in text
    assert "max_share" not in text


def test_the_one_task_that_is_chosen_is_at_no_cap_of_its_own():
    energy = build_energy(synthetic_scores(np.random.default_rng(0), 3), None, EnergyConfig())
    data = solve_mixture(energy, chosen=("t1",), references={"uniform": None}).to_dict()
    out = shown(mixture_view(data))
    assert "at the whole budget" in out
    assert "max_share" not in out


def test_relations_name_other_tasks_each_time():
    _, _, affinity = solved(n=5, targets=2)
    lines = relation_lines(affinity)
    for kind in ("redundant: ", "interfering: "):
        subjects = [line.removeprefix(kind).split()[0] for line in lines if line.startswith(kind)]
        assert len(subjects) == len(set(subjects))
    far = np.eye(3)
    assert relation_lines(given_affinity(far, tuple("abc"))) == [
        "no two tasks are redundant: all correlations are below 0.5"
    ]


def test_three_hundred_tasks_stay_legible():
    rng = np.random.default_rng(0)
    energy = field_energy(names(316), 0.001 * rng.normal(size=316), np.eye(316))
    mixture = solve_mixture(energy, references={"uniform": None})
    affinity = given_affinity(energy.K, energy.tasks)
    short, whole = (shown(mixture_view(mixture.to_dict(), affinity, everything)) for everything in (False, True))
    used = [task for task, weight in mixture.shares.items() if weight > 5e-4]
    assert len(used) > 30
    assert len(short.splitlines()) < 40
    assert "296 more (--all)" in short
    assert all(re.search(rf"^ {task} ", whole, re.M) for task in mixture.tasks)
    heaviest = sorted(mixture.shares.values(), reverse=True)
    rest = re.search(r"296 more \(--all\) +(\S+)%", short)
    assert float(rest[1]) == pytest.approx(100 * sum(heaviest[20:]), abs=0.06)
    assert max(map(len, short.splitlines())) <= 80
    explanation = explain(energy, mixture)
    text = shown(explanation_view(explanation, "affinity"))
    assert len(text.splitlines()) < 60
    assert f"{len(explanation.dropped) - 10} more tasks lose less (--all)" in text
    path = trace_path(build_energy(None, affinity, EnergyConfig(kind="affinity", t=2)), [0.5, 1, 2])
    text = shown(path_view(path))
    assert len(text.splitlines()) < 30
    assert re.search(r"t = +0.5 +1 +2", text)


def test_an_explanation_begins_with_interchangeable_tasks_and_ends_with_its_unit():
    energy, mixture, _ = solved(n=4)
    explanation = explain(energy, mixture)
    text = shown(explanation_view(explanation, "likelihood"))
    assert "nats a" in text
    assert " ".join(text.split()).endswith(
        "energy without the task less energy with it, prior and price of repetition included"
    )
    losses = [one.loss for one in explanation.dropped]
    assert all(f"{loss:.4f}" in text for loss in losses)
    K = np.full((3, 3), 0.5) + np.diag([0.5, 0.5, 0.5])
    K[0, 1] = K[1, 0] = 1.0
    copies = explain(*matrix_solution(K))
    assert shown(explanation_view(copies, "affinity")).startswith("interchangeable: a, b")


def matrix_solution(K):
    energy = build_energy(None, given_affinity(K, tuple("abc")), EnergyConfig(kind="affinity", t=1.2))
    return energy, solve_mixture(energy)
