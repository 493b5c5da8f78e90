"""The docstrings under the fields of a dataclass, which `--help` shows. Imports no torch."""

import ast
import functools
import inspect
import sys
from itertools import pairwise


def help_texts(cls: type) -> dict[str, str]:
    """The docstring under each field of a class and of its bases, by the field's name, on one line.

    Works for classes at the top level of a module.
    """
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        texts |= _texts_of_module(owner.__module__).get(owner.__name__, {})
    return texts


@functools.cache
def _texts_of_module(name: str) -> dict[str, dict[str, str]]:
    """The docstrings of a module's fields, by class and field."""
    tree = ast.parse(inspect.getsource(sys.modules[name]))
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    return {each.name: _texts_of_class(each) for each in classes}


def _texts_of_class(tree: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for statement, below in pairwise(tree.body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
    return texts
