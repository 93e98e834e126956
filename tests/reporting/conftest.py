import pytest

from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.codec import to_json


@pytest.fixture
def folders(tmp_path):
    def save(**runs):
        for name, made in runs.items():
            folder = tmp_path / name / "report"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(to_json(assemble(made)), encoding="utf-8")
        return [tmp_path / name / "report" for name in runs]

    return save
