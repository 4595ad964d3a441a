"""`taskpgm form`: how much of a finished run's predicted gain is the form of answers."""

from pathlib import Path

import numpy as np

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.evaluation.form import WRONG, Form, WrongAnswers, measure_form, wrong_answers
from taskpgm.files import digest
from taskpgm.mixture.optimum import nearest_to_uniform
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.stages import Session, allowed_shares, load_probes, open_session
from taskpgm.pipeline.starts import adapter_folder
from taskpgm.probes.cache import BlockCache
from taskpgm.progress import Progress
from taskpgm.types import Floats


def form_of_gain(config: Config, out: Path | str, progress: Progress | None = None) -> Form:
    """How much of what the mixture of the run directory `out` is predicted to gain is the form of answers.

    Raises:
        UserError: no finished run there, no target with choices, or another kind of energy than likelihood.
    """
    with open_session(config, out, progress) as session:
        return form_run(session)


def form_run(session: Session) -> Form:
    """The same on a directory that is open, written to `form.json`."""
    from taskpgm.data.chat import ChatEncoder

    config, result = session.config, solved(session)
    if config.energy.kind != "likelihood":
        raise UserError(f"energy.kind {config.energy.kind!r} predicts no loss of answers; `form` needs likelihood.")
    encoder = ChatEncoder(session.engine.tokenizer, config.probes.max_length)
    wrong = wrong_answers(encoder, result.pool, config)
    uniform = nearest_to_uniform(allowed_shares(result.pool, config))
    logp = _scored(session, wrong)
    found = measure_form(result.scores, logp, wrong, config.target_weights, result.mixture.weights, uniform)
    session.artifacts.write_json("form.json", found.to_dict())
    return found


def _scored(session: Session, wrong: WrongAnswers) -> Floats:
    """(n, columns) log-probabilities of the wrong answers under the tasks' probes, once for every probe seed."""
    from taskpgm.probes.scoring import make_blocks

    config, artifacts, engine = session.config, session.artifacts, session.engine
    seeds = [load_probes(session, seed) for seed in range(config.probes.seeds)]
    asked = [engine.fingerprint, config.probes.max_length, [row.ids.tolist() for row in wrong.rows]]
    probes = [probe for of_seed in seeds for probe in of_seed]
    keys = {p.name: digest([artifacts.key(adapter_folder(artifacts, p.task, p.seed)), *asked]) for p in probes}
    cache = BlockCache({WRONG: keys}, artifacts / "blocks")
    blocks, _ = make_blocks(engine, {WRONG: wrong.rows}, [[WRONG]], probes, False, {WRONG: None}, cache)
    of_seeds = [np.stack([blocks[probe.name, WRONG].logp for probe in of_seed]) for of_seed in seeds]
    return np.concatenate(of_seeds, axis=1).astype(np.float64)
