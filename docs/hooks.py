"""What MkDocs adds to the site: recipe keys, pages and figures from outside docs/, captions, arguments line by line."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- recipe keys: begin -->", "<!-- recipe keys: end -->"
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root, and every figure that a page links to."""
    from mkdocs.structure.files import File

    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    linked = {
        target
        for path in (ROOT / "docs").glob("*.md")
        for target in re.findall(r"\]\(\.\./(benchmarks/results/[^)#]+)\)", path.read_text())
    }
    for target in sorted(linked):
        files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as on the site: figures beside the pages, pages of the root among those of docs/."""
    markdown = markdown.replace("](../benchmarks/results/", "](benchmarks/results/").replace("](docs/", "](")
    for source, target in ROOT_PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(source)}", f"]({target}", markdown)
    if BEGIN in markdown:
        before, rest = markdown.split(BEGIN)
        markdown = f'{before}<div class="keys" markdown>\n\n{recipe_tables()}\n</div>{rest.split(END)[1]}'
    return re.sub(r"(?<=\d) ± (?=\d)", "\u00a0±\u00a0", markdown)  # a mean and its deviation stay on one line


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Figures of results with their text as a caption; arguments in the API, each on a line of its own."""
    html = re.sub(r"<p>\s*((?:<img [^>]*src=\"benchmarks/[^>]*>\s*)+)</p>", lambda found: _figures(found[1]), html)
    inline = r"(?<!<pre>)(?<!</span>)<code>([^<>]*[- ][^<>]*)</code>"
    html = re.sub(inline, lambda found: f"<code>{_words(found[1])}</code>", html)
    return _arguments(html) if page.file.src_path == "api.md" else html


def _words(code: str) -> str:
    """Short code stays on a line, and words do not end at a hyphen, as browsers let them: "--set" became "--" and "set"."""
    if len(code) < 20:
        return f'<span class="word">{code}</span>'
    return " ".join(f'<span class="word">{word}</span>' if "-" in word and len(word) < 34 else word for word in code.split(" "))


def _figures(images: str) -> str:
    """Each image as a link to its file, which opens it at full size, above its alternative text."""
    figures = []
    for image in re.findall(r"<img [^>]*>", images):
        (source,), (text,) = re.findall(r'src="([^"]*)"', image), re.findall(r'alt="([^"]*)"', image)
        figures.append(f'<figure><a href="{source}">{image}</a><figcaption>{text}</figcaption></figure>')
    return "\n".join(figures)


def _arguments(html: str) -> str:
    """Docstrings name arguments as "name: what it is." in running text, and errors after "Raises"."""
    names = "|".join(sorted(set(re.findall(r'<span class="n">(\w+)</span><span class="p">:</span>', html))))
    name = rf"(?:{names})(?:, (?:{names}))*"

    def paragraph(found: re.Match[str]) -> str:
        text = re.sub(rf"(^|[.;]\s)({name}):\s", r"\1<br><code>\2</code>: ", found[1])
        text = re.sub(r"(?<=\.\s)Raises\s(?=\w+Error)", "<br>Raises ", text)
        return f"<p>{text.removeprefix('<br>')}</p>"

    return re.sub(r"<p>((?:(?!</?p>).)*)</p>", paragraph, html, flags=re.DOTALL)


def recipe_tables() -> str:
    """One Markdown table of keys for each section of a recipe, from the descriptions in udkd.config."""
    from udkd.config.keys import recipe_sections

    lines: list[str] = []
    for section in recipe_sections():
        lines += [f"### `[{section.path}]`", "", section.description, ""]
        lines += ["| key | meaning | default | values |", "|---|---|---|---|"]
        for key in section.keys:
            default = key.default if key.default == "required" else f"`{key.default}`"
            cells = (f"`{key.name}`", key.description, default, re.sub(r'"[^"]*"', r"`\g<0>`", key.values))
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)
