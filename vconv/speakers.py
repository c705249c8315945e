"""Speakers: the map between a dataset's names and the model's indices, and mixtures of them."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .errors import UsageError

Mixture = tuple[tuple[int, float], ...]
"""(index, weight) pairs, ascending by index; the weights are positive and sum to 1."""

Query = str | int | Mapping[str, float]

_INDEX = re.compile(r"index:(\d{1,9})")


@dataclass(frozen=True)
class SpeakerMap:
    """The speakers of a corpus or a model, in index order.

    Raises `UsageError` when there is no name, an empty one, or one that occurs twice.
    """

    names: Sequence[str]
    _indices: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if not names:
            raise UsageError("A speaker map needs at least one name, found none.")
        if "" in names:
            raise UsageError(
                f"Speaker {names.index('')} has an empty name; every one needs a name."
            )
        indices = {name: index for index, name in enumerate(names)}
        if len(indices) < len(names):
            twice = next(name for index, name in enumerate(names) if indices[name] != index)
            raise UsageError(f"The speaker name {twice!r} occurs twice; names must differ.")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "_indices", indices)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The index of exactly this name; `UsageError` naming the nearest ones if there is none."""
        if name not in self._indices:
            raise UsageError(self._unknown(name))
        return self._indices[name]

    def resolve(self, query: Query) -> Mixture:
        """The mixture a query asks for.

        A string is, in this order: an exact name, a decimal index, `index:12`, or a mixture
        `p225:0.7,p226:0.3` of names. An int is an index, a mapping gives a weight to each name.
        Weights are normalised to sum 1.

        Raises `UsageError` for an unknown speaker or weights that are not positive.
        """
        if isinstance(query, int):
            return ((self._checked(query), 1.0),)
        if isinstance(query, str):
            if query in self._indices:
                return ((self._indices[query], 1.0),)
            parsed = self._parse(query)
            if isinstance(parsed, int):
                return ((parsed, 1.0),)
            return self._normalised([(self._one(name), weight) for name, weight in parsed])
        return self._normalised([(self._one(name), float(w)) for name, w in query.items()])

    def label(self, mixture: Mixture) -> str:
        """How a mixture is printed, `slt` or `p225:0.7,p226:0.3`; `resolve` takes it back."""
        if len(mixture) == 1:
            name = self.names[mixture[0][0]]
            # A name is always resolved exactly first, so it needs no `index:` even if it is "12".
            return name
        return ",".join(f"{self.names[index]}:{weight:g}" for index, weight in mixture)

    def _parse(self, query: str) -> int | list[tuple[str, float]]:
        single = self._index_of(query)
        if single is not None:
            return single
        parts = []
        for part in query.split(","):
            name, colon, weight = part.rpartition(":")
            if not colon:
                raise UsageError(self._unknown(query))
            try:
                parts.append((name.strip(), float(weight)))
            except ValueError:
                raise UsageError(self._unknown(query)) from None
        return parts

    def _index_of(self, query: str) -> int | None:
        match = _INDEX.fullmatch(query)
        if match:
            return self._checked(int(match[1]))
        if query.isascii() and query.isdigit() and len(query) < 10:
            return self._checked(int(query))
        return None

    def _one(self, query: str) -> int:
        if query in self._indices:
            return self._indices[query]
        index = self._index_of(query)
        if index is None:
            raise UsageError(self._unknown(query))
        return index

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.names):
            raise UsageError(
                f"There is no speaker with index {index}; allowed are 0 to {len(self.names) - 1}."
            )
        return index

    @staticmethod
    def _normalised(parts: Sequence[tuple[int, float]]) -> Mixture:
        if not parts:
            raise UsageError("A mixture of speakers needs at least one, found none.")
        weights: dict[int, float] = {}
        for index, weight in parts:
            if not 0.0 < weight < float("inf"):
                raise UsageError(
                    f"The weights of a mixture of speakers must be positive, found {weight:g}."
                )
            weights[index] = weights.get(index, 0.0) + weight
        total = sum(weights.values())
        return tuple((index, weights[index] / total) for index in sorted(weights))

    def _unknown(self, query: str) -> str:
        names = list(self.names)
        near = difflib.get_close_matches(query, names, n=3, cutoff=0.4)
        if not near:
            folded = {name.casefold(): name for name in names}
            matches = difflib.get_close_matches(query.casefold(), list(folded), n=3, cutoff=0.4)
            near = [folded[match] for match in matches] or names[:3]
        listed = ", ".join(repr(name) for name in near)
        return f"There is no speaker {query!r}; the nearest of {len(names)} are {listed}."
