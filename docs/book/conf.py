"""How does the book look, and how is it read? Sphinx takes its settings from here; build.py starts it."""

import os
import sys
from binascii import a2b_base64
from importlib import import_module
from io import BytesIO
from pathlib import Path

from myst_nb.core.render import NbElementRenderer
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # the package, and the files beside this one

from docs.book.docstrings import source_of

import_module("gpt")  # once, before Sphinx forks

highlight_language = "none"
project = "GPT-2, worked out"
html_title = project
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "sphinx_copybutton",
              "docs.book.formulas", "docs.book.docstrings"]  # fmt: skip
suppress_warnings = ["misc.highlighting_failure"]

# Markdown as GitHub reads it.
myst_enable_extensions = ["dollarmath", "amsmath", "alert", "tasklist"]
myst_dmath_double_inline = True
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]
nb_execution_mode = "off"  # the outputs are stored; the tests compare them

# The package's names.
autodoc_default_options = {"undoc-members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
add_module_names = False
linkcode_resolve = source_of
maximum_signature_line_length = 88

# Looks.
html_theme = "furo"
html_favicon = "static/favicon.svg"
html_static_path = ["static", os.environ["BOOK_STATIC"]]
html_css_files = ["book.css"]
html_copy_source = html_use_index = html_domain_indices = False
html_show_sphinx = html_show_copyright = False
html_show_search_summary = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
copybutton_selector = "div.highlight-python pre, div.highlight-none pre"


def with_alt(render_image):
    """A notebook's picture is described in its output's metadata: its alt text. 100 points are an inch of it."""

    def rendered(self, data):
        images = render_image(self, data)
        images[0]["alt"] = data.output_metadata.get(data.mime_type, {}).get("alt", "")
        if data.mime_type == "image/png":
            picture = Image.open(BytesIO(a2b_base64(data.content)))
            images[0]["width"] = f"{picture.width * 100 / picture.info.get('dpi', (100,))[0]:.0f}px"
        return images

    return rendered


NbElementRenderer.render_image = with_alt(NbElementRenderer.render_image)
