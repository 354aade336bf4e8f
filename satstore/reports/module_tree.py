"""The tree of a model's modules: blocks that repeat folded into one, and patterns that find some of them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

N_PATTERNS = 3


@dataclass(frozen=True)
class ModuleEntry:
    """A module of a model.

    Attributes
    ----------
    name
        Its PyTorch name; empty for the model itself.
    kind
        The class's name.
    form
        What one sample's output is: ``vector``, ``map``, ``tokens`` or ``steps``; empty if it is left out.
    shape
        That of one sample's output.
    n_calls
        How often a forward pass calls it.
    block
        The block that it is part of, or is; empty for none.
    n_parameters
        Of it and all its parts.
    left_out
        Why its output can't be recorded; empty if it can.
    doubt
        What may be otherwise about its output's axes; empty if nothing.
    """

    name: str
    kind: str
    form: str = ""
    shape: tuple[int, ...] = ()
    n_calls: int = 0
    block: str = ""
    n_parameters: int = 0
    left_out: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class TreeRow:
    """A line of the tree: a module, or, without an entry, a text on those that are folded."""

    depth: int
    text: str
    entry: ModuleEntry | None = None


def lay_out(entries: Sequence[ModuleEntry], *, fold: bool = True) -> list[TreeRow]:
    """Return the tree's lines: a module, its parts below it, and once what modules in a row have in common.

    Modules repeat if they have parts, and their parts' names, classes and outputs are the same.
    """
    return list(_Tree({entry.name: entry for entry in entries}, fold).rows("", 0))


class _Tree:
    """Modules by name, and the names of each one's parts."""

    def __init__(self, entries: Mapping[str, ModuleEntry], fold: bool) -> None:
        self.entries, self.fold = entries, fold
        self.children: dict[str, list[str]] = {name: [] for name in ("", *entries)}
        for name in filter(None, entries):
            self.children[name.rpartition(".")[0]].append(name)

    def rows(self, name: str, depth: int) -> Iterator[TreeRow]:
        yield TreeRow(depth, name.rpartition(".")[2], self.entries[name])
        parts = self.children[name]
        for first, same in self._group(parts):
            yield from self.rows(first, depth + 1)
            if same:
                yield TreeRow(depth + 1, f"… {len(same)} more like {first.rpartition('.')[2]}")

    def _group(self, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield the first of modules in a row that repeat, and the others."""
        waiting: list[str] = []
        for name in names:
            if waiting and self._repeats(waiting[0], name):
                waiting.append(name)
                continue
            if waiting:
                yield waiting[0], waiting[1:]
            waiting = [name]
        if waiting:
            yield waiting[0], waiting[1:]

    def _repeats(self, first: str, name: str) -> bool:
        has_parts = bool(self.children[name])
        return self.fold and has_parts and self._outline(first, first) == self._outline(name, name)

    def _outline(self, name: str, root: str) -> list[ModuleEntry]:
        """Return the entries of a module and its parts, by their names within the root."""
        here = replace(self.entries[name], name=name.removeprefix(root), block="")
        return [here, *(entry for part in self.children[name] for entry in self._outline(part, root))]


def suggest_patterns(entries: Sequence[ModuleEntry]) -> dict[str, int]:
    """Return patterns for ``--modules`` with the number of modules that each finds, three at most.

    They are of the blocks, then of the two parts of a block with the most parameters; where there are no
    blocks, of the names that are most often the same but for their numbers.
    """
    recorded = [entry for entry in entries if entry.name and not entry.left_out]
    blocks = _count_patterns([entry for entry in recorded if entry.block == entry.name]).most_common(1)
    if blocks:
        of_blocks = blocks[0][0].removesuffix("$")
        part = re.compile(f"{of_blocks}\\.(\\w+)")
        sizes: Counter[str] = Counter()
        for entry in recorded:
            if (match := part.fullmatch(entry.name)) and entry.n_parameters:
                sizes[match[1]] += entry.n_parameters
        largest = [name for name, _ in sizes.most_common(N_PATTERNS - 1)]
        found = [f"{of_blocks}$", *(f"{of_blocks}\\.{name}$" for name in sizes if name in largest)]
    else:
        found = [pattern for pattern, _ in _count_patterns(recorded).most_common(N_PATTERNS)]
    return {pattern: sum(bool(re.search(pattern, entry.name)) for entry in recorded) for pattern in found}


def _count_patterns(entries: Sequence[ModuleEntry]) -> Counter[str]:
    """Count names that are the same but for their numbers, as patterns."""
    return Counter(re.sub(r"\d+", r"\\d+", re.escape(entry.name)) + "$" for entry in entries)
