"""Packages of the wheel, and the CPU kernels, which an install without a compiler does without."""

from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path("encoders/selective_scan/native")
COMPILE_ARGS = [
    "-O3",
    "-std=c++17",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
    "-Wno-unknown-pragmas",
]


class BuildKernels(build_ext):
    """Builds the kernels where it can, and says what is missing where it cannot."""

    def run(self) -> None:
        """Build; a missing or failing compiler is no failure of the install."""
        try:
            super().run()
        except Exception as error:  # setuptools has one error type a platform and compiler
            self._say(error)

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without a Python version: it has none of Python in it."""
        path = Path(super().get_ext_filename(fullname))
        return str(path.with_name(path.name.partition(".")[0] + path.suffix))

    def build_extension(self, ext: Extension) -> None:
        """Build one extension, or say why not."""
        try:
            super().build_extension(ext)
        except Exception as error:
            self._say(error)

    def copy_extensions_to_source(self) -> None:
        """Put what was built beside its package, for editable installs."""
        names = [self.get_ext_filename(self.get_ext_fullname(ext.name)) for ext in self.extensions]
        if all(Path(self.build_lib, name).exists() for name in names):
            super().copy_extensions_to_source()

    def _say(self, error: Exception) -> None:
        self.warn(
            f"the native CPU kernels were not built ({error}); Caduceus runs without them, slowly. "
            "With a C++ compiler installed, `genebold encoders build` makes them."
        )


class WheelOfAnyPython(bdist_wheel):
    """A wheel for one platform and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Keep the platform alone."""
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[
        *find_packages(include=["encoders*", "projectors*", "multimodal*"]),
        "multimodal._configs",
        "multimodal._configs.experiment",
    ],
    ext_modules=[
        Extension(
            "encoders.selective_scan._native",
            sources=[str(KERNELS / "native.cpp")],
            depends=[
                str(KERNELS / name)
                for name in ("lanes.h", "kernels.h", "products.h", "arguments.h")
            ],
            extra_compile_args=COMPILE_ARGS,
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": WheelOfAnyPython},
)
