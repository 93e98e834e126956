"""What pyproject.toml cannot say: the files of configs/ travel in the package that is installed."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Copies configs/*.py and shapes to srpo_jax/configs/; an editable install reads them in place."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "srpo_jax" / "configs"
        self.mkpath(str(folder))
        here = Path("configs")
        for path in sorted([*here.glob("*.py"), *here.glob("shapes/*/config.json")]):
            copy = folder / path.relative_to(here)
            self.mkpath(str(copy.parent))
            self.copy_file(str(path), str(copy))


setup(cmdclass={"build_py": WithConfigs})
