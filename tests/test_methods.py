"What every registered method must do, whatever its recipe."

from dataclasses import replace

import pytest
import torch
from torch import nn

import classimpression.runs.configs  # noqa: F401  registers all methods
from classimpression.carryover import ExemplarCarryover, choose_exemplars, hand_over, load_carryover, save_carryover
from classimpression.carryover import take_exemplars
from classimpression.core.errors import ConfigError
from classimpression.core.files import read_json
from classimpression.core.provenance import package_folder
from classimpression.data import tensor_digest
from classimpression.methods.registry import METHODS, find_method, first_task, method, sort_options
from classimpression.runs.runner import fitted
from classimpression.models import rebuild
from classimpression.runs.configs import RunConfig
from classimpression.settings import TrainConfig
from classimpression.synthesis import Impressions, SynthesisConfig, synthesize
from classimpression.training import evaluate

TINY = {
    "deepinversion": dict(steps=2, images=24),
    "abd": dict(steps=2, images=24),
    "r-dfcil": dict(steps=2, images=24),
    "ewc": dict(samples=8),
    "ewc-online": dict(samples=8),
    "fetril": dict(head_epochs=2),
    "patches": dict(random=40, n_patches=1000, rounds=2),
    "census": dict(n_patches=1000, rounds=2),
    "acil": dict(random=40),
    "ranpac": dict(random=40),
    "untrained-ridge": dict(random=40),
    "trained-ridge": dict(random=40),
    "ldc": dict(map_epochs=2),
    "adagauss": dict(adapter_epochs=2, samples=200),
}
EXPECTED = (
    "class-impression fine-tuning joint ewc ewc-online lwf lwf-mc lwm pass ssre fetril deepinversion abd r-dfcil sdc "
    "adc ldc adagauss ncm slda fecam ranpac acil trained-ridge "
    "untrained-ridge patches census icarl eeil lucir replay"
).split()


def cfg_of(m, t, **changes):
    cfg = TrainConfig(**dict(dict(epochs=1, batch_size=16, margin_k=1), **changes))
    training, hyper_parameters = sort_options(m, TINY.get(m.name))
    given = {k: v for k, v in training.items() if k not in changes}
    return (replace(cfg, **given) if t or m.first else cfg), hyper_parameters


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def go(name, scenario, tmp_path, until=None, **changes):
    "Tasks of a scenario, as the runner does it: what crosses a border is read from its file. Carryovers after each."
    m, carry, kept, carries = find_method(name), None, {}, []
    for t in range(until or len(scenario.sizes)):
        cfg, hyper_parameters = cfg_of(m, t, **changes)
        impressions = (
            synthesize(carry, SynthesisConfig(steps=2, groups=1, group_size=12, warmup=1), cfg.seed, t)
            if carry and m.impressions
            else None
        )
        given = carry
        if carry is not None and m.exemplars != 0:
            old = scenario.joint(t - 1, reference=True)
            given = ExemplarCarryover(
                carry.model,
                carry.n_classes,
                carry.means,
                carry.extra,
                exemplars=take_exemplars(old, kept) if kept else old,
            )
        before = state(carry.model) if carry else {}
        random_state = torch.get_rng_state()
        with scenario.training(t, cfg.pool, cfg.selection, cfg.seed) as task:
            model, history = m.fit(given, task, impressions, cfg, **hyper_parameters)
            if m.exemplars:
                kept |= choose_exemplars(task.train, task.labels, 5, cfg.seed)
            following = hand_over(model, task, carry, m.means, history.extra, 1)
        assert torch.equal(random_state, torch.get_rng_state()), "the global generator was moved"
        assert not model.training, "a fitted model comes back in evaluation mode"
        if carry is not None:
            assert not any(s.training for s in carry.model.modules()), "the teacher left evaluation mode"
            assert all(torch.equal(v, before[k]) for k, v in carry.model.state_dict().items()), (
                "the teacher was changed"
            )
        conf = evaluate(model, scenario.test(t), scenario.tasks[t].n_seen)
        assert conf.shape == (scenario.tasks[t].n_seen,) * 2 and conf.sum() == len(scenario.test(t))
        path = save_carryover(tmp_path / f"{name}-{t}.safetensors", following, model.spec)
        carry = load_carryover(path, rebuild)[0]
        x = scenario.test(t).images(torch.arange(6))
        with torch.no_grad():
            assert torch.allclose(carry.model(x), model(x), atol=1e-4, rtol=1e-4), "the file gives another model"
        carries.append(carry)
    return carries


def test_all_methods_of_the_comparison_are_there():
    assert set(EXPECTED) <= set(METHODS)
    searched = {
        *read_json(package_folder() / "assets" / "trials.json"),
        *read_json(package_folder() / "assets" / "stages.json")["methods"],
        *("census-any", "joint-probe", "first-session"),  # by figures/pretrained/plan.md
        *read_json(package_folder() / "assets" / "rivals.json")["methods"],
    }
    for m in METHODS.values():
        assert m.fit.__doc__ and m.title, m.name
        assert m.name in searched, f"{m.name} has no trials"


def test_balanced_once_is_the_same_loop_without_class_weights(toy):
    one, two = METHODS["class-impression-balanced"], METHODS["class-impression"]
    assert one.training == {"class_weighting": False} and (one.tier, one.impressions) == (two.tier, two.impressions)
    cfg = TrainConfig(epochs=1, batch_size=10)
    with (data := toy()).training(0) as task:
        carry = hand_over(first_task(task, cfg)[0], task, None)
    fake = Impressions(torch.rand(12, 3, 16, 16), torch.arange(12) % 2, {}, {})  # fewer of a class than real images
    models = []
    for fit, settings in (
        (one.fit, replace(cfg, class_weighting=False)),
        (two.fit, replace(cfg, class_weighting=False)),
        (two.fit, cfg),
    ):
        with data.again().training(1, pool=cfg.pool) as task:
            models.append(fit(carry, task, fake, settings)[0].state_dict())
    same = lambda a, b: all(torch.equal(v, b[k]) for k, v in a.items())
    assert same(models[0], models[1]) and not same(models[0], models[2])


@pytest.mark.parametrize("name", [n for n in METHODS if find_method(n).hyper_parameters])
def test_a_value_that_makes_no_sense_is_refused_before_any_work(name):
    for k, usual in find_method(name).hyper_parameters.items():
        if not isinstance(usual, bool):
            with pytest.raises(ConfigError, match=f"{k}|network"):
                RunConfig(method=name, options={k: "magic" if isinstance(usual, str) else -1})


slow = pytest.param("census", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [slow if name == "census" else name for name in EXPECTED])
def test_contracts(name, toy, tmp_path):
    """One grey class, then more new classes than old ones, then one; every task checks teacher, mode, generator, file.
    The same seed gives the same bytes, another one others; the first task is the shared one unless declared. Then
    colour, 16 bits, and labels beyond twice the batch.
    """
    scenario = lambda: toy(sizes=(1, 3, 1), channels=1, per_class=24)
    carries, again = (go(name, scenario(), tmp_path) for _ in range(2))
    other = go(name, scenario(), tmp_path, until=1, seed=1)
    bits = lambda carry: tensor_digest(*carry.model.state_dict().values())
    assert bits(carries[-1]) == bits(again[-1]), "the same seed gives other bytes"
    assert bits(carries[0]) != bits(other[0]), "the seed changes nothing"
    if name != "joint":
        check_first_task(find_method(name), scenario(), carries[0])
    go(name, toy(sizes=(5, 2), per_class=24), tmp_path, batch_size=2, dtype="bfloat16")


def check_first_task(m, scenario, carry):
    with scenario.training(0) as task:
        shared = first_task(task, TrainConfig(epochs=1, batch_size=16))[0].backbone.state_dict()
    # Seen at several levels it is the same network, under other names.
    mine = {k.removeprefix("net."): v for k, v in carry.model.backbone.state_dict().items()}
    same = [torch.equal(v, mine.get(k, torch.zeros(()))) for k, v in shared.items()]
    assert all(same) != bool(m.first), f"{m.name} says {m.first!r}"


@pytest.mark.parametrize("place", ["statistical head", "head", "classifier", "wrapped network", "own network"])
def test_training_images_are_found_wherever_a_model_keeps_them(place, toy):
    from classimpression.heads import LinearHead
    from classimpression.training import first_model

    with toy().training(0) as task:
        model, kept = first_model(task, TrainConfig()), task.train.x[:7].clone()
        if place == "statistical head":
            model.statistical_head = LinearHead(256, [2])
            model.statistical_head.register_buffer("pictures", kept)
        elif place == "wrapped network":
            model.backbone = nn.Sequential(model.backbone)
            model.backbone.features, model.backbone.pictures = model.backbone[0].features, [kept]
        elif place == "classifier":
            model.pictures = dict(some=[kept])
        else:
            (model.head if place == "head" else model.backbone).register_buffer("pictures", kept)
        carry = hand_over(model, task, None, means=False)
        assert (carry.raw, carry.tier) == (7, "reference")
        assert hand_over(first_model(task, TrainConfig()), task, None, means=False).raw == 0


def test_images_that_are_not_square_are_turned_within_a_border():
    from classimpression.methods.prototypes import turn

    x = torch.rand(2, 3, 4, 6)
    turned = turn(x)
    assert turned.shape == (8, 3, 6, 6)
    assert torch.equal(turned[:2, :, 1:5], x) and torch.equal(turned[2:4], turned[:2].rot90(1, (2, 3)))
    assert torch.equal(turn(x[..., :4])[:2], x[..., :4])


@pytest.mark.parametrize("name", ["abd", "r-dfcil", "deepinversion"])
def test_statistics_of_mixed_batches_are_an_option(name, toy):
    found = []
    for rule in ("joint", "frozen"):
        scenario, carry = toy(), None
        for t in range(2):
            options = dict(steps=2, images=20)
            with scenario.training(t) as task:
                cfg = TrainConfig(epochs=1, batch_size=20, bn_statistics=rule)
                model, _ = find_method(name).fit(carry, task, None, cfg, **options)
                carry = hand_over(model, task, carry, means=False)
        found.append(carry.model.backbone.stem[1].running_mean)
    assert not torch.equal(*found)


def test_settings_that_a_method_never_reads_are_no_options_of_it():
    for m in METHODS.values():
        theirs = {"distillation", "rho", "idc_pool", "synthetic_share", "class_weighting", "lr"}
        for k in theirs - set(m.hyper_parameters):
            if m.reads is None or k in m.reads:
                assert k in sort_options(m, {k: 1.0})[0]
                continue
            with pytest.raises(ConfigError, match=f"has no options .'{k}'.*and it reads"):
                sort_options(m, {k: 1.0})
    with pytest.raises(ConfigError, match="no options .'momentum'"):
        sort_options(find_method("pass"), dict(momentum=0.5))  # Adam has none


@pytest.mark.parametrize("name", ["fine-tuning", "lwf", "adagauss", "pass", "ssre", "fetril", "joint", "abd", "slda"])
def test_what_moves_a_method_is_what_it_declares(name, toy):
    "Settings of the second task: weights differ if and only if the method says that it reads them."
    m = find_method(name)

    def second(**settings):
        scenario, carry = toy(), None
        for t in range(2):
            cfg = replace(TrainConfig(epochs=1, batch_size=8, lr=0.05), **settings if t else {})
            given = carry
            if t and m.exemplars is None:
                old = scenario.joint(0, reference=True)
                given = ExemplarCarryover(carry.model, carry.n_classes, None, carry.extra, exemplars=old)
            with scenario.training(t) as task:
                model, history = m.fit(given, task, None, cfg, **TINY.get(name, {}))
                carry = hand_over(model, task, None, False, history.extra, 1) if not t else carry
        return state(model)

    plain = second()
    for changed in (dict(bn_statistics="frozen"), dict(augment_flip=True), dict(lr=0.5), dict(weight_decay=0.5)):
        other = second(**changed)
        moved = any(not torch.equal(plain[k], other[k]) for k in plain)
        assert moved == (m.reads is None or set(changed) <= set(m.reads)), changed


def test_searches_try_only_what_their_method_reads():
    assets = package_folder() / "assets"
    tried = read_json(assets / "trials.json") | {m: t["trials"] for m, t in read_json(assets / "tuned.json").items()}
    rivals = read_json(assets / "rivals.json")["methods"]
    tried |= {f"{m} again": [r["start"] | e for e in r["edges"]] for m, r in rivals.items()}
    assert len(tried) > 50
    for m, trials in tried.items():
        for trial in trials:
            sort_options(find_method(m.removesuffix(" again")), trial.get("options", trial))


def test_methods_that_do_not_train_leave_the_network_alone(toy):
    still = [m for m in METHODS.values() if m.reads == ()]
    assert len(still) == 10
    for m in still:
        if m.outside:
            continue
        found, carry, scenario = [], None, toy(pixels=32)
        for t in range(2):
            with scenario.training(t) as task:
                model, _ = m.fit(carry, task, None, TrainConfig(epochs=1), **TINY.get(m.name, {}))
                carry = hand_over(model, task, carry, means=m.means)
            found.append({k: v.clone() for k, v in carry.model.backbone.state_dict().items()})
        assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values())), m.name


@pytest.mark.parametrize(
    "fit, trials, says",
    [
        (lambda carry, task: None, (), "its function takes ..carry., .task.."),
        (lambda carry, task, impressions, cfg, kd: None, (), "each with a default; .'kd'. have none"),
        (lambda carry, task, impressions, cfg, kd=1.0: None, (dict(nope=1),), "name .'nope'."),
    ],
)
def test_functions_that_cannot_be_called_are_no_methods(fit, trials, says):
    with pytest.raises(ConfigError, match=says):
        method("unheard-of", "Unheard of", tier="M0", trials=trials)(fit)
    assert "unheard-of" not in METHODS


@pytest.mark.parametrize("made", [None, (None, None), "model"])
def test_what_a_method_returns_is_checked(made):
    m = replace(find_method("fine-tuning"), fit=lambda carry, task, impressions, cfg: made)
    with pytest.raises(ConfigError, match="fine-tuning has to return .model, history."):
        fitted(m, None, None, None, None, {})
