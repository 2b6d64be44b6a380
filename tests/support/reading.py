"""What a page says, as a reader sees it."""

from __future__ import annotations

import re

from streamlit.testing.v1 import AppTest


def html_of(test: AppTest) -> str:
    """The page's HTML without its links into the glossary, around single words and in a line at its foot."""
    parts = [str(element.proto.body) for element in test.get("html")]
    text = "\n".join(part for part in parts if 'class="terms"' not in part)
    return re.sub(r'<a class="term"[^>]*>(.*?)</a>', r"\1", text)
