"""Known defects of public implementations, put one by one into a copy of the package: each must make its test fail.

Run as `python .ci/mutations.py`, in the environment of the tests; prints one line per defect.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# (what went wrong elsewhere, module, its text, the defect, the test that must fail)
DEFECTS = [
    (
        "test images in the pool of a loss",
        "tasks.py",
        '"new-train": ("train", "new"),\n    "new-val"',
        '"new-train": ("test", "new"),\n    "new-val"',
        "test_data.py::test_pool_is_images_without_labels_in_random_order",
    ),
    (
        "the best epoch chosen on test images",
        "tasks.py",
        '{"last": None, "new-val": ("val", "new")',
        '{"last": None, "new-val": ("test", "new")',
        "test_data.py::test_selection",
    ),
    (
        "a plateau of accuracy waited for as if it were a loss",
        "settings.py",
        'list(accuracies), "max")',
        'list(accuracies), "min")',
        "test_training.py::test_schedules",
    ),
    (
        "the best model is an alias of the last",
        "training.py",
        "copy.deepcopy(model.state_dict())",
        "model.state_dict()",
        "test_training.py::test_the_best_epoch_is_a_copy_and_not_the_last_model",
    ),
    (
        "the mean image of the last class only",
        "carryover.py",
        "mean_of(split.x, split.y == k) for k",
        "mean_of(split.x, split.y == labels[-1]) for k",
        "test_data.py::test_means_are_taken_in_pieces",
    ),
    (
        "only the first channel is clipped",
        "synthesis.py",
        "x.clamp_(0, 1)",
        "x[:, :1].clamp_(0, 1)",
        "test_synthesis.py",
    ),
    (
        "the best impressions are an alias of the last",
        "synthesis.py",
        "self.x, self.total = torch.where(images, x, self.x),",
        "self.x, self.total = x,",
        "test_synthesis.py",
    ),
    (
        "hooks stay after an error",
        "synthesis.py",
        "    finally:\n        for h in handles:",
        "    finally:\n        for h in ():",
        "test_methods_generated.py::test_hooks_are_gone_after_an_error",
    ),
    (
        "division by zero for a class without images",
        "losses.py",
        "        not empty, f",
        "        True, f",
        "test_losses.py::test_class_weights_refuse",
    ),
    (
        "every seed is 1",
        "core/seeding.py",
        "[int(seed), *map",
        "[1, *map",
        "test_training.py::test_same_seed_same_bytes_other_seed_other_weights",
    ),
    (
        "one new class has nothing to learn from",
        "methods/regularised.py",
        "if z.shape[1] - n_old == 1:",
        "if False:",
        "test_methods_regularised.py::test_a_single_new_class_is_learned",
    ),
    (
        "LUCIR's weight of the task before",
        "methods/rehearsal.py",
        "distillation_weight(task.n_old, len(task.labels), base)",
        "distillation_weight(max(0, task.n_old - len(task.labels)), len(task.labels), base)",
        "test_methods_rehearsal.py::test_lucir_weighs_the_distillation_by_the_task_at_hand",
    ),
    (
        "Fisher information in training mode",
        "methods/regularised.py",
        "model = frozen_copy(model)\n    weights",
        "model = model.train()\n    weights",
        "test_methods_regularised.py::test_fisher_is_a_loop_over_single_images_and_leaves_the_model_alone",
    ),
    (
        "Fisher information of batch means",
        "methods/regularised.py",
        "g.square().sum(0)",
        "g.mean(0).square() * len(g)",
        "test_methods_regularised.py::test_fisher_is_a_loop_over_single_images_and_leaves_the_model_alone",
    ),
    (
        "the teacher in training mode",
        "models.py",
        "copy.deepcopy(model).eval()",
        "copy.deepcopy(model).train()",
        "test_methods_rehearsal.py::test_the_teacher_stays_in_evaluation_mode_and_unchanged",
    ),
    (
        "forgetting is the first value minus the last",
        "metrics.py",
        "a[j:-1, j].max()",
        "a[j, j]",
        "test_metrics.py::test_forgetting_and_transfer",
    ),
    (
        "attention maps without a gradient",
        "methods/regularised.py",
        "return q if learn else q.detach()",
        "return q.detach()",
        "test_methods_regularised.py::test_attention_moves_the_backbone",
    ),
    (
        "EEIL leaves out the newest old head",
        "methods/rehearsal.py",
        "for new, old in repeats)",
        "for new, old in list(repeats)[:-1])",
        "test_methods_rehearsal.py::test_every_old_head_is_distilled",
    ),
    (
        "ABD's class weights have the length of the batch",
        "methods/generated.py",
        "balance(n_old, model.head.n_classes)",
        "balance(n_old, len(b.y))",
        "test_methods_generated.py::test_abd_weights_belong_to_classes_and_reach_any_label",
    ),
    (
        "the logarithm of one class divides by zero",
        "methods/generated.py",
        "if logits.shape[1] == 1:",
        "if False:",
        "test_methods.py::test_contracts[abd]",
    ),
    (
        "PASS draws no prototype when more classes are new than old",
        "methods/prototypes.py",
        "draw_prototypes(mu, cfg.batch_size, r)",
        "draw_prototypes(mu, cfg.batch_size * (len(mu) // len(task.labels)), r)",
        "test_methods.py::test_contracts[pass]",
    ),
]


def fails(copy: Path, test: str, log: Path) -> bool:
    "Run a test on the copy, in a child that has PyTorch already."
    if (pid := os.fork()) == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        import pytest

        how = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(copy)]
        os._exit(pytest.main([*how, f"tests/{test}"]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def main() -> int:
    import numpy, pandas, sklearn.linear_model, torch  # noqa: E401, F401  once for all children

    torch.set_num_threads(1)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for name in ("classimpression", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / ".pytest.ini", copy)
        sys.dont_write_bytecode = True
        for what, module, text, defect, test in DEFECTS:
            path = copy / "classimpression" / module
            before = path.read_text()
            if before.count(text) != 1:
                print(f"NOT THERE  {what}: {module} has {before.count(text)} times {text!r}", flush=True)
                missed += 1
                continue
            path.write_text(before.replace(text, defect))
            found = fails(copy, test, copy / "log")
            path.write_text(before)
            missed += not found
            print(f"{'found ' if found else 'MISSED'}  {what}: {test}", flush=True)
    print(f"{len(DEFECTS) - missed} of {len(DEFECTS)} defects make a test fail")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
