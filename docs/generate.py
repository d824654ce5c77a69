"""Write the generated pages: ``docs/diagnostics.md`` and ``docs/targets/*.md``."""

from __future__ import annotations

import pathlib

from qcompiler.diagnostics import Code
from qcompiler.remedies import REMEDIES

DOCS = pathlib.Path(__file__).parent
FAMILIES = {
    "1": "kept in float",
    "2": "calibration",
    "3": "algorithms",
    "4": "recipe and usage",
    "5": "lowering",
    "6": "verification",
    "7": "files and models at the door",
    "9": "our own bug",
}


def diagnostics_page() -> str:
    """Every code with its severity and explanation, by family."""
    lines = [
        "# Diagnostics",
        "",
        "Generated from `qcompiler/codes.py` and `remedies.py` by `make docs`. A code is",
        "never reused. Each diagnostic names the place, what was found, what was wanted, and what",
        "to do; in Python it is `QcError.diagnostic` (raised) or one of",
        "`artifact.report.diagnostics` (reported), with its numbers in `values`.",
        "",
        "*info* tells a decision, *warning* asks for a look, *error* is raised where the compile",
        "cannot go on, and else raised by `strict=True`.",
    ]
    family = ""
    for code in sorted(Code, key=lambda code: code.id):
        if code.id[2] != family:
            family = code.id[2]
            lines += ["", f"## QC{family}xx: {FAMILIES[family]}"]
        name = code.name.lower().replace("_", "-")
        lines += ["", f"### {code.id} {name} ({code.severity.name.lower()})", "", code.explanation]
        if code in REMEDIES:
            lines += ["", f"**What to do.** {REMEDIES[code]}"]
    return "\n".join(lines) + "\n"


def pages() -> dict[pathlib.Path, str]:
    """Path of each generated page and its text."""
    from qcompiler.targets.describe import describe
    from qcompiler.targets.registry import load_target, target_names

    found = {DOCS / "diagnostics.md": diagnostics_page()}
    for name in target_names():
        if name != "cpu":
            found[DOCS / "targets" / f"{name}.md"] = describe(load_target(name)) + "\n"
    return found


def main() -> None:
    """Write them all."""
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
