"""How Sphinx makes the pages of this folder a site: `make docs` writes it to build/docs."""

from fastmoco.version import __version__

project = "fastmoco"
author = "The fastmoco authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"fastmoco {release}"

myst_heading_anchors = 4  # links to headings, as a code host makes them
highlight_language = "text"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# Tables of reproductions are reached from their pages; tests/unit/test_docs.py finds other pages
# that are missing in the navigation.
suppress_warnings = ["toc.not_included"]
