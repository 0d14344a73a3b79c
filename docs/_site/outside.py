"""Links of pages that lead out of docs/: the same on a code host and in the site.

A picture of `results/` becomes a file of the site, where a page shows it; any other file of the
repository, such as `../CONTRIBUTING.md`, becomes its page on the code host. A link to a file that
does not exist is left as it is, and the strict build refuses it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# A link's target, as far as its anchor, and nothing with a scheme: no colon.
_TARGET = re.compile(r"(?<=\]\()(\.\./[^)#:\s]+)")


@event_priority(100)  # before the plugin that checks links looks at what there is
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures that pages show to the files of the site."""
    pictures: set[str] = set()
    for file in files.documentation_pages():
        pictures.update(path for path in _outside(file, config) if path.endswith(".png"))
    root = Path(config.config_file_path).parent
    for path in sorted(pictures):
        files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads such links to where their files are in the site, or on the code host."""
    folder = posixpath.dirname(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        path = _in_repository(page.file.src_uri, match[0], config)
        if path is None:
            return match[0]
        if files.get_file_from_path(path):
            return posixpath.relpath(path, folder or ".")
        return f"{config.extra['repository']}/blob/main/{path}"

    return _TARGET.sub(led, markdown)


def _outside(file: File, config: MkDocsConfig) -> Iterator[str]:
    """The files outside docs/ that a page links to, by their paths in the repository."""
    for target in _TARGET.findall(file.content_string):
        path = _in_repository(file.src_uri, target, config)
        if path is not None:
            yield path


def _in_repository(page: str, target: str, config: MkDocsConfig) -> str | None:
    """The path of a link's target in the repository, if it is a file there and outside docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    outside = not path.startswith(("docs/", ".."))
    exists = (Path(config.config_file_path).parent / path).exists()
    return path if outside and exists else None
