"""Which small faults are planted: a random sample of those that cosmic-ray's operators can make."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cosmic_ray.plugins
import toml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = "dictionary_learning_ext"
LOGS = re.compile(r"(logger|log|warnings)\.(debug|info|warning|error|exception|warn)$")


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        module: the file, below the package.
        operator, occurrence: what cosmic-ray is asked for.
        line: of the file, from 1.
        before, after: the first line that differs.
    """

    module: str
    operator: str
    occurrence: int
    line: int
    before: str
    after: str

    @property
    def folder(self) -> str:
        return self.module.split("/")[0]

    def __str__(self) -> str:
        return f"{self.module}:{self.line}\n    - {self.before}\n    + {self.after}"


class Place(NamedTuple):
    """A way to mutate one place. Its name stays the same when other lines are edited."""

    operator: str
    occurrence: int
    start: tuple[int, int]
    name: str


def operators(config: Any) -> dict[str, Any]:
    """cosmic-ray's operators that take no arguments, less those that the configuration excludes."""
    excluded = config.sub("filters", "operators-filter").get("exclude-operators", ())
    classes = {
        name: cosmic_ray.plugins.get_operator(name) for name in cosmic_ray.plugins.operator_names()
    }
    return {
        name: operator()
        for name, operator in classes.items()
        if not operator.arguments() and not any(re.match(text, name) for text in excluded)
    }


def matters(node: Any, position: tuple[int, int]) -> bool:
    """Whether a mutation could change what a program does, other than a message's words."""
    while node is not None:
        if node.type in {"raise_stmt", "assert_stmt"}:
            return False
        note = node.children[1] if node.type == "annassign" else getattr(node, "annotation", None)
        if note is not None and note.start_pos <= position < note.end_pos:
            return False
        # zip(strict=True) and dataclass(frozen=True) are for what can't happen, as assert is.
        if node.type == "argument" and node.children[0].get_code().strip() in {"strict", "frozen"}:
            return False
        if node.type in {"atom_expr", "power"}:
            function = "".join(child.get_code() for child in node.children[:-1]).strip()
            if LOGS.search(function):
                return False
        node = node.parent
    return True


def places(module: str, source: str, used: dict[str, Any]) -> Iterator[Place]:
    """All mutations of a file."""
    lines, nodes = source.splitlines(), list(ast_nodes(get_ast(source)))
    for name, operator in used.items():
        seen, occurrence = Counter(), -1
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                occurrence += 1
                text = lines[start[0] - 1].strip()
                seen[text] += 1
                if matters(node, start):
                    yield Place(name, occurrence, start, f"{module}|{text}|{seen[text]}|{name}")


def order(seed: int, name: str) -> str:
    """What decides who is drawn."""
    return hashlib.sha256(f"{seed}|{name}".encode()).hexdigest()


def drawn(config: Any, folders: list[str], size: int, seed: int) -> list[Mutant]:
    """A random sample of places, each with one of its mutations. It hardly changes with edits."""
    used, sources, chosen = operators(config), {}, []
    for path in map(Path, config["module-path"]):
        if path.name not in folders:
            continue
        for file in sorted((ROOT / path).rglob("*.py")):
            if file.name in config["excluded-modules"]:
                continue
            module = file.relative_to(ROOT / PACKAGE).as_posix()
            sources[module] = file.read_text(encoding="utf-8")
            by_start = defaultdict(list)
            for place in places(module, sources[module], used):
                by_start[place.start].append(place)
            for ways in by_start.values():
                place = min(ways, key=lambda way: order(seed, way.name))
                chosen.append((order(seed + 1, place.name), module, place))
    mutants = []
    for _, module, place in sorted(chosen):
        if len(mutants) == size:
            break
        mutated = mutate_code(sources[module], used[place.operator], place.occurrence)
        if mutant := described(module, place, sources[module], mutated or sources[module]):
            mutants.append(mutant)
    return mutants


def described(module: str, place: Place, source: str, mutated: str) -> Mutant | None:
    """None where the mutation changes nothing or is no Python."""
    try:
        compile(mutated, module, "exec")
    except SyntaxError:
        return None
    pairs = zip(source.splitlines(), mutated.splitlines(), strict=False)
    for number, (before, after) in enumerate(pairs, 1):
        if before != after:
            return Mutant(
                module, place.operator, place.occurrence, number, before.strip(), after.strip()
            )
    return None


def equivalents() -> dict[tuple[str, str, str], str]:
    """The mutants that do the same as the program, and why."""
    listed = toml.loads((HERE / "equivalent.toml").read_text(encoding="utf-8"))["mutant"]
    return {(one["module"], one["before"], one["after"]): one["reason"] for one in listed}
