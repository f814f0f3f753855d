"A type checker sees the library through its door: a user's script passes, and a slip in it is found."

import subprocess
import sys
from pathlib import Path

import pytest

from classimpression.core.provenance import package_folder

pytest.importorskip("mypy")
SCRIPT = """
import classimpression as ci

scenario = ci.make_scenario("blood-mini")
with scenario.training(0) as task:
    model, history = ci.fit_task(None, task, None, ci.TrainConfig(epochs=1))
    carry = ci.hand_over(model, task, None)
impressions = ci.synthesize(carry, ci.SynthesisConfig(steps=2, warmup=1, groups=1), seed=0, task=1)
with scenario.training(1) as task:
    model, history = ci.fit_task(carry, task, impressions, ci.TrainConfig(epochs=1))
rates: list[float] = history.lr
confusion = ci.evaluate(model, scenario.test(1), scenario.tasks[1].n_seen)
result = ci.run(ci.profile_config("smoke", "class-impression", seed=1))
final: float = result.metrics["final_accuracy"]
"""
# Other libraries are taken as they are: reading PyTorch would take a minute.
SETTINGS = "[mypy]\n" + "".join(
    f"[mypy-{m}.*]\nfollow_imports = skip\n" for m in ("torch", "torchvision", "numpy", "pandas", "safetensors", "tqdm")
)


@pytest.mark.slow
def test_a_users_script_passes_and_a_slip_is_found(tmp_path):
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    (tmp_path / "good.py").write_text(SCRIPT)
    (tmp_path / "bad.py").write_text(SCRIPT.replace("TrainConfig(epochs=1)", 'TrainConfig(epochs="one")'))
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "good.py", "bad.py"]
    env = {"MYPYPATH": str(package_folder().parent), "PATH": str(Path(sys.executable).parent)}
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=env).stdout
    assert "good.py" not in said, said
    assert 'bad.py:6: error: Argument "epochs" to "TrainConfig" has incompatible type "str"' in said, said
    assert (package_folder() / "py.typed").exists()
