"""Guide and API reference as one site: ``sphinx-build -W docs build/docs``."""

import dataclasses
import re
import tomllib
import typing
from pathlib import Path

from chex import ArrayTree
from jax.typing import ArrayLike
from sphinx.util.typing import stringify_annotation

import margin_jax as mj

project = "margin-jax"
author = "The margin-jax authors"
project_copyright = author
release = version = mj.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
myst_heading_anchors = 3  # so that PAGE.md#heading leads where it does on GitHub
default_role = "code"  # in docstrings, `name` is a parameter
smartquotes_action = "D"  # dashes, but quotes as they are typed
html_theme = "furo"
html_title = f"margin-jax {release}"
html_copy_source = False
html_show_sphinx = False

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"

# As lists, whose entries may have several names ("same, different: numbers of pairs").
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), "Gradients over devices"]

# Every cross reference must resolve but those to other libraries: looking them up takes a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(jax|chex|numpy|optax|flax|collections|pathlib|typing)\..*"),
    ("py:class", "Figure"),  # matplotlib's, imported where one is drawn
    ("py:class", "ArrayTree"),  # chex's, which is defined by itself
    ("py:class", "int32|float32|batch"),  # a property's type and shape, "int32[batch]"
]

DOCS = Path(__file__).parent
SOURCE = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["urls"]["Source"]


def link_to_source(app, docname, content):
    """Files outside of docs by their address in the repository; pictures are copied as they are."""
    folder = (DOCS / docname).parent

    def lead(found):
        text, target = found.groups()
        there = (folder / target).resolve()
        if there.is_relative_to(DOCS) or not there.is_relative_to(DOCS.parent):
            return found[0]
        kind = "tree" if there.is_dir() else "blob"
        return f"[{text}]({SOURCE}/{kind}/main/{there.relative_to(DOCS.parent).as_posix()})"

    content[0] = re.sub(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#]+)\)", lead, content[0])


def add_options(app, what, name, obj, options, lines):
    """The fields of a configuration, from the texts that the command line shows."""
    if name == "margin_jax.TrainConfig":
        hints = typing.get_type_hints(obj, include_extras=True)
        lines += ["", "Attributes:"]
        for field in dataclasses.fields(obj):
            (option,) = hints[field.name].__metadata__
            default = "" if field.default is None else f" Default: ``{field.default!r}``."
            text = re.sub(r"--[\w-]+", r"``\g<0>``", option.help)
            lines.append(f"    {field.name}: {text}{default}")


def shorten(app, what, name, obj, options, signature, returned):
    """A signature that calls long unions, of what can be an array or a tree, by their names."""
    if name == "margin_jax.TrainConfig":
        signature = "(**options)"
    for union, called in ((ArrayLike, "jax.typing.ArrayLike"), (ArrayTree, "chex.ArrayTree")):
        signature = signature and signature.replace(
            stringify_annotation(union, "smart"), f"~{called}"
        )
    return signature, returned


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", link_to_source)
    app.connect("autodoc-process-docstring", add_options, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", shorten)
