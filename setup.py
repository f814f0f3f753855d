"""Packaging: every fact comes from settings.ini; the wheel also carries the experiment notebooks and the embedded
data.
"""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(ROOT / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


class BuildWithNotebooks(build_py):
    "Copies nbs/experiments into the package, so that `classimpression reproduce` works from an installed wheel."

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / cfg["lib_name"] / "notebooks"
        target.mkdir(parents=True, exist_ok=True)
        for notebook in sorted((ROOT / "nbs" / "experiments").glob("*.ipynb")):
            shutil.copyfile(notebook, target / notebook.name)


extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}
extras["dev"] = sorted(
    {need for name, needs in extras.items() if name != "avalanche" for need in needs}
)  # Avalanche brings a lot: an environment of its own

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_data={cfg["lib_name"]: ["py.typed", "assets/*", "assets/*/*", "assets/*/*/*"]},
    cmdclass={"build_py": BuildWithNotebooks},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
