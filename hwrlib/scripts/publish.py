"""Put your own GitHub repository into README's badges and into every chapter: its badge and its first code cell."""

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# GitHub's rules: an owner has single hyphens, none at either end; a name has dots too, but is not only those.
REPOSITORY = r"(?=[^/]{1,39}/)[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*/(?!\.{1,2}$)(?!.*\.git$)[A-Za-z0-9._-]{1,100}"
BADGE = r"(https://colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(?=/blob/)"
BOOTSTRAP = r'(^REPOSITORY = ")[\w.-]+/[\w.-]+(?="$)'


def publish(repository: str, root: Path = ROOT) -> list[Path]:
    """Rewrite README.md and the chapters so that they lead to a repository.

    Only text and code of the chapters change: no output and no byte of the layout does.

    Arguments:
        repository: "OWNER/NAME" on GitHub.
        root: folder of README.md and notebooks/.

    Returns:
        the files that have changed; none where all led there already.

    Raises:
        ValueError: no name that GitHub allows, or a chapter without its badge or its REPOSITORY.
    """
    if not re.fullmatch(REPOSITORY, repository):
        raise ValueError(f"{repository!r} is no repository on GitHub; give OWNER/NAME, such as ada/notes")
    readme = root / "README.md"
    new = {readme: _rewrite(BADGE, readme.read_text(encoding="utf-8"), repository, readme)}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell, place in zip(notebook["cells"], (BADGE, BOOTSTRAP), strict=False):  # title, then the first code
            cell["source"] = _rewrite(place, "".join(cell["source"]), repository, path).splitlines(keepends=True)
        new[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    changed = [path for path, text in new.items() if text != path.read_text(encoding="utf-8")]
    for path in changed:
        path.write_text(new[path], encoding="utf-8", newline="\n")
    return changed


def _rewrite(place: str, text: str, repository: str, path: Path) -> str:
    text, count = re.subn(place, rf"\g<1>{repository}", text, flags=re.MULTILINE)
    if not count:
        raise ValueError(f"{path}: {'no badge' if place == BADGE else 'no REPOSITORY in its first code cell'}")
    return text


def main(arguments: list[str] | None = None) -> None:
    """Rewrite, and say which files have changed."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.publish", description=__doc__)
    parser.add_argument("repository", metavar="OWNER/NAME", help="where you publish them on GitHub")
    try:
        changed = publish(parser.parse_args(arguments).repository)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("\n".join(str(path.relative_to(ROOT)) for path in changed) or "All led there already.")


if __name__ == "__main__":
    main()
