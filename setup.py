"""A build step of the wheel: the stored reference runs, which tables show beside a user's, become package data."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE, TARGET = Path("results", "reference"), Path("bench", "report", "reference")
FILES = ("run.json", "scores.parquet", "train.jsonl")


class BuildWithReference(build_py):
    """Copies the runs from `results/reference` into the package; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self.reference().items():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target), preserve_mode=False)

    def reference(self) -> dict[Path, Path]:
        """Source to target of every file of a stored run."""
        files = sorted(path for name in FILES for path in SOURCE.rglob(name))
        if not files:
            raise FileNotFoundError(f"{SOURCE} holds no runs: build from a checkout, or from the source distribution.")
        return {path: self.build_lib / TARGET / path.relative_to(SOURCE) for path in files}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *map(str, self.reference().values())]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *map(str, self.reference())]


setup(cmdclass={"build_py": BuildWithReference})
