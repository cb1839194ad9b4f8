"""The documentation site, which `make docs` builds in site/.

Its pages are the repository's own, each in its own place, so that links mean the same in both.
"""

import inspect
import pydoc
import re
from importlib.util import find_spec
from pathlib import Path

from sphinx.util import inspect as sphinx_inspect

from sbtt_jax.config import DataSettings, ModelSettings, Settings, TrainSettings

# The one file of MathJax that shows equations, fonts included.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax/tex-svg-full.js"

project = html_title = "sbtt-jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/site/*.rst"]
exclude_patterns = [".*", "build", "dist", "runs", "site"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
default_role = "py:obj"
maximum_signature_line_length = 80
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "furo"
html_static_path = ["site.css", str(MATHJAX)]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = html_show_copyright = False
mathjax_path = MATHJAX.name
mathjax3_config = {"tex": {"packages": {"[+]": ["textmacros"]}}}  # macros within \text{...}


def generated(app, page, source):
    """What is added to the pages: navigation to the first one, all settings to theirs."""
    if page == root_doc:
        source[0] += "\n" + (app.confdir / "navigation.md").read_text()
    if page == "docs/site/settings":
        groups = {"": Settings, "data.": DataSettings, "model.": ModelSettings}
        for prefix, group in (groups | {"train.": TrainSettings}).items():
            title = prefix.rstrip(".") or "models"
            source[0] += f"\n{title}\n{'-' * len(title)}\n\n{inspect.getdoc(group)}\n\n"
            for name, field in group.model_fields.items():
                if field.description:
                    source[0] += f".. confval:: {prefix}{name}\n   :default: ``{field.default}``\n"
                    source[0] += f"\n   {field.description}\n\n"


def plain(app, what, name, obj, options, lines):
    """A line `name: text` in a docstring says what `name` is; so does a comment at a field."""
    text = "\n".join(lines)
    if text.startswith("Alias for field number"):
        owner, _, field = name.rpartition(".")
        text = comments(inspect.getsource(pydoc.locate(owner))).get(field, "")
    entry = r"^([a-z]\w*(?:, \w+)*): (.*(?:\n +\S.*)*)\n?"
    lines[:] = re.sub(entry, definition, text, flags=re.M).splitlines()


def comments(code):
    """Of each field of a class: the comment behind it, or above it, or that of the field before."""
    found, text, above = {}, "", False
    for line in map(str.strip, code.splitlines()):
        if line.startswith("# "):
            text, above = f"{text} {line[2:]}" if above else line[2:], True
        elif match := re.match(r"(\w+): [^#]*(?:  # (.*))?$", line):
            found[match[1]] = text = match[2] or text
            above = False
    return found


def definition(match):
    text = " ".join(match[2].split())
    if text.startswith("one of "):  # a list in words
        text = text.replace("one of ", "one of\n\n   - ").replace("; ", ";\n   - ")
    return f"``{match[1]}``\n   {text}\n\n"


def signature(app, what, name, obj, options, arguments, returned):
    """None for what users are given, and a module's own instead of its metaclass's."""
    if hasattr(obj, "_fields") or name.endswith("Fitted"):
        return "", None
    if arguments == "(*args: Any, **kwargs: Any)":
        own = sphinx_inspect.signature(obj.__init__, bound_method=True)
        return sphinx_inspect.stringify_signature(own, unqualified_typehints=True), None


def setup(app):
    app.connect("source-read", generated)
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-process-signature", signature)
