"""Compiles the loops over pixels while a wheel is built, or at once: ``python hatch_build.py``.

Without a compiler the package is built all the same, and torch does the work of the loops.
"""

import importlib
import runpy
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:
    BuildHookInterface = object  # run as a script

PACKAGE = Path(__file__).with_name("bvdm_data")


def compile_loops() -> Path:
    """Compile the source beside itself."""
    importlib.import_module("setuptools")  # brings distutils to Pythons without it
    from distutils.ccompiler import new_compiler
    from distutils.sysconfig import customize_compiler

    names = runpy.run_path(str(PACKAGE / "pixels.py"))
    library = names["find_library"]()
    compiler = new_compiler()
    customize_compiler(compiler)
    # Labels must be rounded as torch rounds: no multiplication is fused with an addition.
    flags = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
    if compiler.compiler_type == "msvc":
        flags = ["/O2", "/fp:precise"]
    # Nobody must load what is half written.
    with tempfile.TemporaryDirectory(prefix="_pixels_", dir=PACKAGE) as place:
        objects = compiler.compile([str(names["SOURCE"])], output_dir=place, extra_postargs=flags)
        libraries = [] if compiler.compiler_type == "msvc" else ["m"]
        compiler.link_shared_object(objects, f"{place}/{library.name}", libraries=libraries)
        Path(place, library.name).replace(library)
    return library


class CompileHook(BuildHookInterface):
    """Puts the compiled loops into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say for which platform the wheel is."""
        if self.target_name != "wheel":
            return
        try:
            library = compile_loops()
        except Exception as error:
            self.app.display_warning(f"the loops over pixels are not compiled: {error}")
            return
        build_data["artifacts"].append(f"bvdm_data/{library.name}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    compile_loops()
