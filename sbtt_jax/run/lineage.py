"""Which member of a population won, and from whose weights it descends, by the rows of history.csv.

In a run that is tuned, a row's `parent` is the member from whose weights the epoch began; the
member itself, unless it took over from another.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sbtt_jax.grid import ModelKey
from sbtt_jax.run.files import Row
from sbtt_jax.training.optimizer import Hyperparameters

# That only a run that is tuned has; the last one if its models have latents.
COLUMNS = "member", "parent", *Hyperparameters._fields, "latent_size"
# Rows of each member of a population, one per epoch; of a model that was not tuned, by None.
Members = Mapping[int | None, Sequence[Row]]


def populations(history: Iterable[Row]) -> dict[ModelKey, Members]:
    """The rows of the members that were tuned together, for each model of a run."""
    found: dict[ModelKey, dict[int | None, list[Row]]] = {}
    for row in history:
        own = ModelKey.of(row)
        population = found.setdefault(own._replace(member=None), {})
        population.setdefault(own.member, []).append(row)
    return found


def descent(population: Members, member: int) -> list[Row]:
    """A member's rows, those from before it took over being of its parent."""
    found = []
    for epoch in reversed(range(len(population[member]))):
        row = population[member][epoch]
        found.append(row)
        member = row["parent"]
    return found[::-1]


def loss(row: Row) -> float:
    """What decides: infinite if a number was not finite."""
    return np.inf if np.isnan(row["heldout_nll"]) else row["heldout_nll"]


def leading(rows: Sequence[Row]) -> Row:
    """Of the rows of one epoch, that of the best member; without members, the last one."""
    return min(rows, key=loss) if "member" in rows[-1] else rows[-1]


def winner(population: Members) -> int:
    """The member with the epoch of least held-out loss, its own or of those it descends from."""
    return min(population, key=lambda member: min(map(loss, descent(population, member))))


def as_of_one(population: Members, member: int | None = None) -> list[Row]:
    """The descent of a member, or of the winner, as rows of a model that was not tuned."""
    rows = descent(population, winner(population) if member is None else member)
    return [{name: row[name] for name in row if name not in COLUMNS} for row in rows]
