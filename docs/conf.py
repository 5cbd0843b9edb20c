"""Settings of the documentation: sphinx-build -W docs docs/_build/html."""

from importlib.metadata import version as installed

project = "pullback"
author = "The pullback developers"
copyright = "The pullback developers"
version = release = installed("pullback")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "generated"]

html_theme = "furo"
html_title = "pullback"
html_static_path = ["_static"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Cost", "Reference"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "alpha"
