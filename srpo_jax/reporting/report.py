"""What `evaluate` and `quickstart` leave behind: a picture, tables, a page, and the numbers.

Data in, files out: no model and no mesh is imported here.
"""

from pathlib import Path

from srpo_jax.reporting import figure as report_figure
from srpo_jax.reporting import page as report_page
from srpo_jax.reporting.codec import to_json
from srpo_jax.reporting.data import Report
from srpo_jax.reporting.parquet import to_parquet
from srpo_jax.reporting.table import markdown
from srpo_jax.runtime import files, storage
from srpo_jax.runtime.errors import UserError


def write(report: Report, directory: str | Path) -> dict[str, Path]:
    """Writes win_rate.png, table.md, report.html, results.parquet and results.json; their paths by name.

    win_rate.png shows the first judge and opponent, the page all. A file appears complete or not at
    all, and replaces its forerunner; results.json comes last. Raises UserError where the directory
    cannot be written.
    """
    directory = storage.place(directory)
    contents = {
        **({"win_rate.png": report_figure.draw(report, report.views[0])} if report.views else {}),
        "table.md": markdown(report).encode(),
        "report.html": report_page.render(report).encode(),
        "results.parquet": to_parquet(report.evidence),
        "results.json": to_json(report).encode(),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with files.whole(directory / name) as part:
                part.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {directory} ({error.strerror}); "
            "name a folder that can be written and has room"
        ) from error
    return {name: directory / name for name in contents}
