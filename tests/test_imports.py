"""Which way imports point: design.md's rule, checked on the source; and what is not imported."""

import subprocess
import sys

import pytest
from source_tree import imports, module_files

LAYERS = (
    {"errors"},
    {"config"},
    {"trainers"},
    {"run_folder"},
    {"activations"},
    {"evaluation"},
    {"features"},
    {"training"},
    {"report", "sae_bench", "export", "sweep"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up. A part may import those of its own layer and of all below."""
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
APART = LAYERS[8]
"""These do not import each other."""
HEAVY = {"torch", "numpy", "nnsight", "transformers", "dictionary_learning"}


def part_of(module):
    """The sub-package, or the module beside the sub-packages; "" is the package's __init__."""
    return module.partition(".")[0]


@pytest.fixture(scope="module")
def inside():
    """The imports of one module of the package by another, less those of its public names."""
    found = [each for each in imports() if each.imported is not None]
    assert len(found) > 100
    return [each for each in found if each.importer != ""]


def broken(found, rule):
    """A line for each import, in the words of a failure."""
    return "".join(dict.fromkeys(f"\n{each.text}: {rule(each)}" for each in found))


def test_every_part_of_the_package_has_its_layer():
    parts = {part_of(module) for module in module_files()} - {""}
    assert parts == set(LEVEL), "give a new sub-package its place in LAYERS and in design.md"


def test_imports_point_down(inside):
    upwards = [
        each
        for each in inside
        if LEVEL[part_of(each.importer)] < LEVEL.get(part_of(each.imported), 0)
    ]

    def rule(each):
        return f"{part_of(each.importer)} is below {part_of(each.imported)}"

    assert not upwards, broken(upwards, rule)


def test_only_the_command_line_imports_commands(inside):
    allowed = {"commands": {"commands", "cli"}, "cli": {"__main__"}}
    found = [
        each
        for each in inside
        if part_of(each.importer)
        not in allowed.get(part_of(each.imported), {part_of(each.importer)})
    ]
    assert not found, broken(found, lambda each: f"nothing imports {part_of(each.imported)}")


def test_nothing_inside_imports_the_public_names(inside):
    found = [each for each in inside if each.imported == ""]
    assert not found, broken(found, lambda _: "import from the module that defines the name")


def test_uses_of_the_core_do_not_import_each_other(inside):
    found = [
        each
        for each in inside
        if {part_of(each.importer), part_of(each.imported)} <= APART
        and part_of(each.importer) != part_of(each.imported)
    ]
    rule = f"{', '.join(sorted(APART))} do not import each other"
    assert not found, broken(found, lambda _: rule)


def test_kernels_import_the_equations_and_no_trainer(inside):
    allowed = ("config", "errors", "trainers.posterior", "trainers.ranks", "trainers.kernels")
    found = [
        each
        for each in inside
        if each.importer.startswith("trainers.kernels")
        and not any(f"{each.imported}.".startswith(f"{name}.") for name in allowed)
    ]
    rule = "trainers/kernels imports config, errors, trainers/posterior.py and ranks.py alone"
    assert not found, broken(found, lambda _: rule)


def test_settings_import_nothing_heavy():
    found = [
        each for each in imports() if part_of(each.importer) == "config" and each.library in HEAVY
    ]
    assert not found, broken(found, lambda _: "config imports none of " + ", ".join(sorted(HEAVY)))


def circle(arrows):
    """A shortest way from a name back to itself, or None: ["a", "b"] for a -> b -> a."""
    shortest = None
    for start in sorted(arrows):
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop(0)
            if start in arrows.get(way[-1], ()):
                if shortest is None or len(way) < len(shortest):
                    shortest = way
                break
            following = sorted(set(arrows.get(way[-1], ())) - seen)
            seen |= set(following)
            ways += [[*way, name] for name in following]
    return shortest


def require_no_circle(found, name_of):
    """Fail with the imports of a circle, if they make one between the names of their modules."""
    arrows, between = {}, {}
    for each in found:
        pair = name_of(each.importer), name_of(each.imported)
        arrows.setdefault(pair[0], set()).add(pair[1])
        between.setdefault(pair, each)
    if way := circle(arrows):
        pairs = zip(way, [*way[1:], way[0]], strict=True)
        rule = "no circles: " + " -> ".join([*way, way[0]])
        pytest.fail(broken([between[pair] for pair in pairs], lambda _: rule))


def test_no_circle_between_modules(inside):
    require_no_circle(inside, lambda module: module)


def test_no_circle_between_sub_packages(inside):
    across = [each for each in inside if part_of(each.importer) != part_of(each.imported)]
    require_no_circle(across, part_of)


def test_circles_are_found():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circle(arrows) == ["d", "e"]
    assert circle(arrows | {"d": set()}) == ["a", "b", "c"]
    assert circle(arrows | {"f": {"f"}}) == ["f"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_relative_imports_and_those_in_functions_are_found(tmp_path):
    root = tmp_path / "dictionary_learning_ext"
    (root / "config").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "config/__init__.py", "config/options.py"):
        (root / name).write_text("")
    (root / "config" / "checks.py").write_text(
        "import torch.nn as nn\nfrom . import options\nfrom ..errors import UserError\n"
        "def f():\n    from ..config.options import x\n    from .. import UserError\n"
    )
    assert [(e.imported, e.library, e.place.rpartition(":")[2]) for e in imports(root)] == [
        (None, "torch", "1"),
        ("config.options", None, "2"),
        ("errors", None, "3"),
        ("config.options", None, "5"),
        ("", None, "6"),
    ]


# --- what an import loads


def loaded(code, names):
    """Which of these modules are loaded after the code has run, in a process of its own."""
    code = f"import sys\n{code}\nprint([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def test_the_core_imports_no_sae_bench_and_features_in_python_no_drawing():
    features = "import dictionary_learning_ext.features.features_of"
    assert loaded(features, ("plotly", "matplotlib")) == "[]"
    code = (
        "import dictionary_learning_ext as ext\n"
        "from dictionary_learning_ext import cli\n"
        "from dictionary_learning_ext.evaluation import folders\n"
        "[getattr(ext, name) for name in ext.__all__]"
    )
    assert loaded(code, ("sae_bench", "sae_lens", "transformer_lens")) == "[]"


def test_settings_and_help_import_nothing_heavy():
    """What makes `vsae train --help` answer in well under a second."""
    code = (
        "from dictionary_learning_ext import RunConfig, SAEConfig, trainer_options\n"
        "trainer_options(activation_dim=8, dict_size=48, k=4, steps=40)\n"
        "from dictionary_learning_ext.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass"
    )
    assert loaded(code, ("torch", "nnsight", "datasets", "wandb")) == "[]"
