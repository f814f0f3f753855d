"""Packaging: every fact comes from settings.ini; the wheel also carries the experiment notebooks and the embedded
data.
"""

import re
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(ROOT / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


REPOSITORY = f"https://github.com/{cfg['user']}/{cfg['repo']}"
STATUS = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}[cfg["status"]]
CLASSIFIERS = [
    f"Development Status :: {STATUS}",
    "Intended Audience :: Science/Research",
    "Intended Audience :: Healthcare Industry",
    "Operating System :: OS Independent",
    "Programming Language :: Python :: 3",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in range(int(cfg["min_python"].split(".")[1]), 14)),
    "Framework :: Jupyter",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Medical Science Apps.",
    "Typing :: Typed",
]


def absolute(text: str) -> str:
    "README for a page elsewhere: links lead to the repository, pictures are its raw files, markers are gone."
    text = re.sub(r"<!--.*?-->", "", text)
    raw = REPOSITORY.replace("github.com", "raw.githubusercontent.com") + f"/{cfg['branch']}/"
    text = re.sub(r"!\[([^]]*)\]\((?!https?:)([^)]+)\)", rf"![\1]({raw}\2)", text)
    return re.sub(r"(?<!!)\[([^]]*)\]\((?!https?:|#)([^)]+)\)", rf"[\1]({REPOSITORY}/blob/{cfg['branch']}/\2)", text)


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
    {need for name, needs in extras.items() if name not in ("avalanche", "mlflow", "tensorboard") for need in needs}
)  # Avalanche and the trackers bring a lot: an environment of their own

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=absolute((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=CLASSIFIERS,
    url=REPOSITORY,
    project_urls={
        "Documentation": f"https://{cfg['user']}.github.io/{cfg['repo']}",
        "Source": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
        "Changes": f"{REPOSITORY}/blob/{cfg['branch']}/CHANGELOG.md",
        "Paper": "https://doi.org/10.1007/978-3-031-16440-8_31",
    },
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
