"""What pyproject.toml cannot say: the files of configs/ travel in the package that is installed."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Copies configs/*.py to srpo_jax/configs/; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "srpo_jax" / "configs"
        self.mkpath(str(folder))
        for path in sorted(Path("configs").glob("*.py")):
            self.copy_file(str(path), str(folder / path.name))


setup(cmdclass={"build_py": WithConfigs})
