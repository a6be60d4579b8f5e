"""
Links of README and docs to the repository's files, for the site: pages link as on the repository's page, and whatever
they link to has its place in the site too. It needs no address of the repository, and works from disk.

README.md is the start page, docs/ the root. A linked Markdown file is a page, a linked script or configuration a page
with its text, anything else (figures, pictures) itself. A link to what does not exist is an error of mkdocs.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File


REPOSITORY = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=#|\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".jinja": "jinja", ".cff": "yaml"}


def target(page: str, link: str) -> str:
    """What a page of the repository links to, as a path in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def place(path: str) -> str:
    """Where a file of the repository is among the sources of the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{path}.md" if Path(path).suffix in LANGUAGES else path


def linked_files() -> list[str]:
    """The pages, all that they link to, and what that links to."""
    docs = sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/**/*.md"))
    paths = ["README.md", "CHANGELOG.md", *docs]
    for page in paths:  # which grows
        if page.endswith(".md"):
            links = {target(page, link) for link in LINK.findall((REPOSITORY / page).read_text(encoding="utf-8"))}
            paths += sorted(link for link in links - set(paths) if (REPOSITORY / link).is_file())
    return paths


def on_files(files, config):
    paths = linked_files()
    config.extra["repository_paths"] = {place(path): path for path in paths}
    for path in paths:
        if path.startswith("docs/"):
            continue
        if language := LANGUAGES.get(Path(path).suffix):
            text = (REPOSITORY / path).read_text(encoding="utf-8")
            page = f"---\nsearch: {{exclude: true}}\n---\n\n# {Path(path).name}\n\n`{path}`\n\n"
            files.append(File.generated(config, place(path), content=f"{page}````{language}\n{text}````\n"))
        else:
            files.append(File.generated(config, place(path), abs_src_path=str(REPOSITORY / path)))


def on_page_markdown(markdown, page, config, files):
    paths = config.extra["repository_paths"]
    source = page.file.src_uri
    if not paths.get(source, "").endswith(".md"):
        return markdown

    def on_the_site(match):
        there = place(target(paths[source], match[1]))
        return posixpath.relpath(there, posixpath.dirname(source)) if there in paths else match[1]

    return LINK.sub(on_the_site, markdown)
