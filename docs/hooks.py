"""MkDocs hook: replace links to files outside `docs` by their text, because the site does not contain these files.

On a code-hosting page the same links lead to the source files.
"""

import logging
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.source_links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Return the page's Markdown without links to files outside the documentation folder."""
    folder = Path(page.file.abs_src_path).parent
    docs = Path(config.docs_dir).resolve()

    def replaced(match: re.Match[str]) -> str:
        text, address, _ = match.groups()
        if "://" in address or address.startswith("mailto:"):
            return match.group()
        target = (folder / address).resolve()
        if target.is_relative_to(docs):
            return match.group()
        if not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_path, address)
        return text

    return LINK.sub(replaced, markdown)
