"""Which context sets are scored together: a batch of few tokens takes nearly as long as one of more.

How rows are batched decides how their scores are rounded. So which sets share batches depends on the contexts alone,
not on what is missing or on workers, and what a block of scores is made of names the whole group.
"""

from collections.abc import Mapping

from taskpgm.config import Config
from taskpgm.files import digest
from taskpgm.pool.task_pool import TaskPool

SMALL, JOINED = 512, 2048  # sets of fewer tokens than SMALL are joined, up to JOINED
CUT = 16  # after one of so many sets, by a hash of its name, a group ends


def joined_sets(pool: TaskPool, config: Config) -> list[tuple[str, ...]]:
    """Names of the sets that are scored together; a target that is scored by options is alone.

    Sets whose rows begin alike stand together, since what a batch's rows begin with is run once.
    """
    alike = sorted(pool.all, key=lambda s: [turn.content for turn in s.contexts[0].conversation.messages])
    sizes = {s.name: sum(row.tokens for row in s.contexts) for s in alike}
    return join(sizes | dict.fromkeys(config.option_targets, JOINED))


def join(sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Groups of sets, given the tokens of each.

    A set more or less changes the groups up to the next cut; without cuts it could change all that follow.
    """
    groups: list[list[str]] = []
    group: list[str] = []
    taken = JOINED
    for name, tokens in sizes.items():
        if tokens >= SMALL:
            groups.append([name])
            continue
        if taken + tokens > JOINED:
            group, taken = [], 0
            groups.append(group)
        group.append(name)
        taken += tokens
        if int(digest(name)[:8], 16) % CUT == 0:
            taken = JOINED
    return [tuple(group) for group in groups]
