"""`Form`: how much of what a mixture is predicted to gain on targets with choices is the form of answers.

Let P(c | x) = Σ_i p_i P_i(c | x) be the probes' ensemble over whole answers c of question x, with their end-of-turn
token, and Π(x) = Σ_c P(c | x) what it gives to all options together. Then

    −log P(right | x) = −log Π(x) − log [P(right | x) / Π(x)],

the loss of form, that an option is given at all, and the loss of choosing among the options. A mixture changes both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import logsumexp

from taskpgm.config import Config
from taskpgm.pool.task_pool import Row, TaskPool
from taskpgm.types import Brief, Floats

if TYPE_CHECKING:
    from taskpgm.probes.options import Options


@dataclass(frozen=True)
class TargetForm:
    """One target: changes from uniform to the mixture, in nats a question; negative is better."""

    name: str
    questions: int
    right: float  # of −log P(right)
    form: float  # of −log Π
    choice: float  # of what is left: right = form + choice
    error: float | None  # standard error of `choice` over questions; None for a single one


@dataclass(frozen=True, repr=False)
class Form(Brief):
    """The same as means over targets by their weights, with each target, and the shares of the mixture."""

    right: float
    form: float
    choice: float
    error: float | None
    targets: tuple[TargetForm, ...]
    mixture: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"mixture": dict(self.mixture)}


def questions(pool: TaskPool, config: Config) -> dict[str, list[Row]]:
    """Contexts with choices to tell apart, of the targets that are scored by tokens and have some."""
    asked = {
        target.name: [row for row in target.contexts if len(set(row.choices or ())) > 1]
        for target in pool.targets if target.name not in config.option_targets
    }  # fmt: skip
    return {name: rows for name, rows in asked.items() if rows}


def measure_form(
    logp: "Mapping[str, tuple[Options, list[Floats]]]", weights: Mapping[str, float], shares: Mapping[str, float],
    uniform: Floats,
) -> Form:  # fmt: skip
    """Changes from uniform to the mixture.

    Args:
        logp: by target its options, and for every probe seed the (n, T) log-probabilities of their tokens.
        weights: of the targets by name; alike if left out.
        shares: the mixture by task.
        uniform: (n,) what it is compared with.
    """
    p, targets = np.array(list(shares.values())), []
    for name, (options, seeds) in logp.items():
        by_seed = [_losses(options, of_tokens, p) - _losses(options, of_tokens, uniform) for of_tokens in seeds]
        right_C, form_C = np.mean(by_seed, axis=0)
        choice_C = right_C - form_C
        count = len(choice_C)
        error = float(choice_C.std(ddof=1) / np.sqrt(count)) if count > 1 else None
        right, form, choice = (float(one.mean()) for one in (right_C, form_C, choice_C))
        targets.append(TargetForm(name, count, right, form, choice, error))
    w = np.array([weights.get(one.name, 1.0) for one in targets])
    w = w / w.sum()
    right, form, choice = w @ np.array([[one.right, one.form, one.choice] for one in targets])
    errors = [one.error for one in targets]
    error = None if None in errors else float(np.sqrt(w**2 @ np.square(np.array(errors, dtype=np.float64))))
    return Form(float(right), float(form), float(choice), error, tuple(targets), dict(shares))


def _losses(options: "Options", of_tokens: Floats, p: Floats) -> Floats:
    """(2, questions) −log P(right) and −log Π under the ensemble of shares p."""
    of_question = [logsumexp(one, axis=0, b=p[:, None]) for one in options.sums(of_tokens)]
    right = [-one[k] for one, k in zip(of_question, options.right, strict=True)]
    return np.array([right, [-logsumexp(one) for one in of_question]])


def form_sentence(found: Mapping[str, Any]) -> str:
    """The same in words, from JSON."""
    right, form, choice = (-found[key] for key in ("right", "form", "choice"))
    error = "" if found["error"] is None else f" ± {found['error']:.4f}"
    return (
        f"by the probes, targets with choices gain {right:+.4f} nats a question against uniform: {form:+.4f} by the "
        f"form of answers (that one of the options is given), {choice:+.4f}{error} by choosing the right one"
    )
