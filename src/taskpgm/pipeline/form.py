"""`taskpgm form`: how much of a finished run's predicted gain is the form of answers."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.evaluation.form import Form, measure_form, questions
from taskpgm.files import digest
from taskpgm.mixture.optimum import nearest_to_uniform
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.session import Session, open_session
from taskpgm.pipeline.stages import allowed_shares, load_probes
from taskpgm.pipeline.starts import adapter_folder
from taskpgm.probes.cache import BlockCache
from taskpgm.progress import Progress
from taskpgm.types import Floats

if TYPE_CHECKING:
    from taskpgm.probes.options import Options


def form_of_gain(config: Config, out: Path | str, progress: Progress | None = None) -> Form:
    """How much of what the mixture of the run directory `out` is predicted to gain is the form of answers.

    Raises:
        UserError: no finished run there, no target with choices, or another kind of energy than likelihood.
    """
    with open_session(config, out, progress) as session:
        return form_run(session)


def form_run(session: Session) -> Form:
    """The same on a directory that is open, written to `form.json`; options that were scored are not scored again."""
    from taskpgm.chat.encoder import ChatEncoder
    from taskpgm.probes.options import options_of

    config, result = session.config, solved(session)
    if config.energy.kind != "likelihood":
        raise UserError(f"energy.kind {config.energy.kind!r} predicts no loss of answers; `form` needs likelihood.")
    asked = questions(result.pool, config)
    if not asked:
        raise UserError(
            "No target that is scored by tokens has rows with choices to tell apart, so there is no form to measure; "
            "name their column with columns: {choices: COLUMN}."
        )
    encoder = ChatEncoder(session.engine.tokenizer, config.probes.max_length)
    options = {name: options_of(encoder, name, rows) for name, rows in asked.items()}
    uniform = nearest_to_uniform(allowed_shares(result.pool, config))
    found = measure_form(_scored(session, options), config.target_weights, result.mixture.shares, uniform)
    session.artifacts.write_json("form.json", found.to_dict())
    return found


def _scored(session: Session, options: "dict[str, Options]") -> "dict[str, tuple[Options, list[Floats]]]":
    """By target its options, and for every probe seed the (n, T) log-probabilities of their tokens."""
    from taskpgm.probes.scoring import make_blocks

    config, artifacts, engine = session.config, session.artifacts, session.engine
    seeds = [load_probes(session, seed) for seed in range(config.probes.seeds)]
    probes = [probe for of_seed in seeds for probe in of_seed]
    adapters = {p.name: artifacts.key(adapter_folder(artifacts, p.task, p.seed)) for p in probes}
    rows = {f"~{name}": one.rows for name, one in options.items()}  # no target can have such a name
    keys = {}
    for name, of_set in rows.items():
        text = [[row.ids.tolist(), row.response.tolist()] for row in of_set]
        keys[name] = {probe: digest([engine.fingerprint, key, text]) for probe, key in adapters.items()}
    alone, columns = [[name] for name in rows], dict.fromkeys(rows)
    blocks, _ = make_blocks(engine, rows, alone, probes, False, columns, BlockCache(keys, artifacts / "blocks"))

    def of(name: str) -> list[Floats]:
        return [np.stack([blocks[p.name, f"~{name}"].logp for p in of_seed]).astype(np.float64) for of_seed in seeds]

    return {name: (one, of(name)) for name, one in options.items()}
