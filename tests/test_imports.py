"""Which way imports point: design.md's rule, checked on the source; and what is not imported."""

import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from source_tree import imports, module_files

LAYERS = (
    {"errors"},
    {"config"},
    {"devices", "progress"},
    {"trainers"},
    {"run_folder"},
    {"activations"},
    {"codes"},
    {"evaluation"},
    {"features"},
    {"training"},
    {"report", "sae_bench", "sae_lens", "export", "sweep"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up. A part may import those of its own layer and of all below."""
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
APART = LAYERS[10]
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


def test_every_part_of_the_package_has_its_layer():
    parts = {part_of(module) for module in module_files()} - {""}
    assert parts == set(LEVEL), "give a new sub-package its place in LAYERS and in design.md"


def imports_upwards(importer, imported):
    return LEVEL[part_of(importer)] < LEVEL.get(part_of(imported), 0)


def imports_the_command_line(importer, imported):
    allowed = {"commands": {"commands", "cli"}, "cli": {"__main__"}}
    own = part_of(importer)
    return own not in allowed.get(part_of(imported), {own})


def imports_another_use_of_the_core(importer, imported):
    parts = {part_of(importer), part_of(imported)}
    return len(parts) == 2 and parts <= APART


def imports_public_names(importer, imported):
    """Instead of the module that defines them."""
    return imported == ""


def imports_more_than_equations_into_kernels(importer, imported):
    of_trainers = ("matmuls", "posterior", "sparse_sum", "step", "kernels")
    allowed = ("config", "errors", *(f"trainers.{name}" for name in of_trainers))
    names = tuple(f"{name}." for name in allowed)
    return importer.startswith("trainers.kernels") and not f"{imported}.".startswith(names)


@pytest.mark.parametrize(
    "is_broken",
    [
        imports_upwards,
        imports_the_command_line,
        imports_another_use_of_the_core,
        imports_public_names,
        imports_more_than_equations_into_kernels,
    ],
)
def test_no_module(is_broken, inside):
    assert not {each.text for each in inside if is_broken(each.importer, each.imported)}


def test_settings_import_nothing_heavy():
    found = [each for each in imports() if part_of(each.importer) == "config"]
    assert not {each.text for each in found if each.library in HEAVY}


@pytest.mark.parametrize("name_of", [str, part_of], ids=["modules", "sub-packages"])
def test_no_circle_between(name_of, inside):
    arrows = {}
    for each in inside:
        one, other = name_of(each.importer), name_of(each.imported)
        if one != other:
            arrows.setdefault(one, set()).add(other)
    TopologicalSorter(arrows).prepare()  # CycleError names the circle


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


def printed(code):
    """What code prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def of_one_process():
    """What the core's imports load, and what `sae_lens` says without SAELens. In one process, as imports take seconds."""
    code = (
        "import sys\n"
        "import dictionary_learning_ext.features.features_of\n"
        "drawing = {'plotly'} & sys.modules.keys()\n"
        "import dictionary_learning_ext as ext\n"
        "from dictionary_learning_ext import cli\n"
        "from dictionary_learning_ext.evaluation import folders\n"
        "[getattr(ext, name) for name in ext.__all__]\n"
        "print(drawing, {'sae_bench', 'sae_lens', 'transformer_lens'} & sys.modules.keys())\n"
        "sys.modules['sae_lens'] = None\n"
        "try: import dictionary_learning_ext.sae_lens\n"
        "except ImportError as error: print(error)"
    )
    return printed(code).splitlines()[-2:]


@pytest.mark.slow
def test_the_core_imports_no_sae_bench_and_features_in_python_no_drawing(of_one_process):
    assert of_one_process[0] == "set() set()"


@pytest.mark.slow
def test_without_saelens_its_module_says_what_to_install(of_one_process):
    """Also where SAELens is installed, and can't be imported."""
    install = "install it: pip install 'dictionary-learning-ext[sae-lens]'"
    assert of_one_process[1].endswith(install)


@pytest.mark.commands
def test_settings_and_help_import_nothing_heavy():
    """What makes `vsae train --help` answer in well under a second."""
    code = (
        "import sys\n"
        "from dictionary_learning_ext import RunConfig, VSAETopKConfig, trainer_options\n"
        "trainer_options(activation_dim=8, dict_size=48, k=4, steps=40)\n"
        "from dictionary_learning_ext.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'nnsight', 'datasets', 'wandb'} & sys.modules.keys())"
    )
    assert printed(code).splitlines()[-1] == "set()"


@pytest.mark.commands
def test_a_folder_that_is_not_there_is_refused_before_torch_is_imported(tmp_path):
    """It takes ten seconds."""
    code = (
        "import os, sys\n"
        "from dictionary_learning_ext.cli import main\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "names = 'eval', 'compare', 'reproduce', 'report', 'export --format sparsify'\n"
        "print([main([*name.split(), 'runs/none']) for name in names])\n"
        "print({'torch', 'scipy'} & sys.modules.keys())"
    )
    assert printed(code).splitlines()[-2:] == ["[2, 2, 2, 2, 2]", "set()"]


@pytest.mark.commands
def test_commands_without_a_language_model_import_neither_nnsight_nor_transformers():
    """Not even for upstream's classes, whose package imports nnsight when it is first asked for a name of its own."""
    code = (
        "import sys\n"
        "from dictionary_learning_ext import cli\n"
        "cli._import_upstream_lazily()\n"
        "from dictionary_learning_ext.evaluation import folders, tables\n"
        "from dictionary_learning_ext.export import formats\n"
        "from dictionary_learning_ext.features import reproduce, seeds\n"
        "from dictionary_learning_ext.training import loop\n"
        "from dictionary_learning_ext.trainers import build, upstream\n"
        "print({'nnsight', 'transformers'} & sys.modules.keys())\n"
        "from dictionary_learning import ActivationBuffer, __version__\n"
        "from dictionary_learning.buffer import ActivationBuffer as same\n"
        "print(ActivationBuffer is same, type(sys.modules['dictionary_learning']).__name__)"
    )
    assert printed(code).splitlines() == ["set()", "True module"]
