"""The README as a package index shows it, where a link to another file of the checkout leads
nowhere: of links, their text is kept, and pictures are left out."""

import re
from pathlib import Path

from setuptools import setup

RELATIVE = r"\[([^\]]*)\]\((?!https?:)[^)]*\)"

text = re.sub(rf"!{RELATIVE}\n*", "", Path("README.md").read_text(encoding="utf-8"))
text = re.sub(RELATIVE, r"\1", text)
setup(long_description=text, long_description_content_type="text/markdown")
