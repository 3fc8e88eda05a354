"""Lists the ways to call a wrapped object, so that none goes around the guard unnoticed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

_DEPTH = 4


def public_paths(value: object, *, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the dotted path of everything public that can be called on `value`.

    Attributes that hold objects of the same top-level package are descended into: a client's
    resources are, the strings and numbers of its settings are not. An attribute that raises when
    it is read is yielded, too: that is one way to refuse.

    Args:
        value: An object, such as an API client.
        depth: How many attributes a path may have.
    """
    package = type(value).__module__.partition(".")[0]
    yield from _paths(value, package, depth, (id(value),))


def _paths(value: object, package: str, depth: int, above: tuple[int, ...]) -> Iterator[str]:
    for name in dir(value):
        if name.startswith("_"):
            continue
        try:
            member: object = getattr(value, name)
        except Exception:  # whatever a property raises: nothing can be called through it
            yield name
            continue
        if inspect.isroutine(member):
            yield name
        elif _belongs(member, package) and id(member) not in above and depth > 1:
            if callable(member):
                yield name
            inner = _paths(member, package, depth - 1, (*above, id(member)))
            yield from (f"{name}.{path}" for path in inner)


def _belongs(member: object, package: str) -> bool:
    kinds = type(member).__mro__
    return not isinstance(member, type) and any(
        kind.__module__.partition(".")[0] == package for kind in kinds
    )


def unaccounted(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return what is wrong with a list of decisions about `paths`: nothing if it is complete.

    Args:
        paths: What there is, as `public_paths` yields it.
        patterns: What was decided upon, whether guarded, refused or let pass; `*` matches any
            text (as in `fnmatch`).

    Returns:
        A line for every path that no pattern matches, and for every pattern that matches none.
    """
    there = list(paths)
    decided = list(patterns)
    new = [path for path in there if not any(fnmatchcase(path, known) for known in decided)]
    gone = [known for known in decided if not any(fnmatchcase(path, known) for path in there)]
    return [f"{path} is not accounted for" for path in new] + [
        f"{known} matches nothing" for known in gone
    ]
