"""Which member of a population won, and from whose weights it descends, by the rows of history.csv.

In a run that is tuned, a row's `parent` is the member from whose weights the epoch began; the
member itself, unless it took over from another.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sbtt_jax.grid import ModelKey
from sbtt_jax.run.files import Row
from sbtt_jax.training.optimizer import Hyperparameters

COLUMNS = "member", "parent", *Hyperparameters._fields  # that only a run that is tuned has
Members = Mapping[int, Sequence[Row]]  # rows of each member of a population, one per epoch


def members(history: Iterable[Row], key: ModelKey) -> Members:
    """The rows of those that were tuned together for the model `key` of a run."""
    found: dict[int, list[Row]] = {}
    for row in history:
        own = ModelKey.of(row)
        if own.member is not None and own._replace(member=None) == key:
            found.setdefault(own.member, []).append(row)
    return found


def descent(population: Members, member: int, epochs: int) -> list[Row]:
    """The rows of the first epochs of a member, those before it took over being of its parent."""
    found = []
    for epoch in reversed(range(epochs)):
        row = population[member][epoch]
        found.append(row)
        member = row["parent"]
    return found[::-1]


def winner(history: Sequence[Row], key: ModelKey) -> list[Row]:
    """The descent of the member that has the epoch of least held-out loss, as rows of the model
    `key` of a run that was not tuned."""
    population, least = members(history, key), {}
    for member, rows in population.items():
        loss = [row["heldout_nll"] for row in rows]
        least[member] = np.inf if np.isnan(loss).all() else np.nanmin(loss)
    if not least:
        return []
    best = min(least, key=least.__getitem__)
    rows = descent(population, best, len(population[best]))
    return [{name: row[name] for name in row if name not in COLUMNS} for row in rows]
