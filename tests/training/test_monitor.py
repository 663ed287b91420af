"""Collapse raises an alarm and a verdict; health does neither."""

import pytest
import support
import torch

from triptych.training.monitor import Monitor, collapse_figures


def features(kind: str, step: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(step)
    x = torch.randn(64, 16, generator=random)
    if kind == "point":
        return torch.ones(64, 16) + 1e-4 * x
    if kind == "line":
        return x[:, :1] * torch.ones(16)
    if kind == "zero":
        return torch.zeros(64, 16)
    return x @ torch.diag(0.8 ** torch.arange(16.0))


@pytest.mark.parametrize("kind", ["point", "line", "zero"])
def test_collapse_raises_one_alarm(kind):
    monitor, alarms = Monitor(100), []
    for step in range(10, 101, 10):
        monitor.see(features(kind, step))
        monitor.figures(step, monitor.features())
        alarms.append(monitor.alarm())
    assert sum(a is not None for a in alarms) == 1
    assert next(i for i, a in enumerate(alarms) if a) <= 2, "within 5 % of the run and two looks"
    assert monitor.verdict().startswith("COLLAPSED")


def test_health_raises_none():
    monitor = Monitor(100)
    for step in range(10, 101, 10):
        monitor.see(features("healthy", step))
        monitor.figures(step, monitor.features())
        assert monitor.alarm() is None
    assert monitor.verdict().startswith("not collapsed")


@pytest.mark.parametrize(
    "rankme, cosine, deviation, expected",
    [
        (47.2, 0.80, 0.45, "not collapsed"),  # image mae: +9 by the probe
        (9.4, 0.90, 0.3, "not collapsed"),  # audio byol: +11.6
        (6.6, 0.90, 0.3, "NARROW"),  # text byol on split views: -2.2
        (5.8, 0.90, 0.3, "NARROW"),  # image byol: +1.4
        (30.0, 0.995, 0.07, "NARROW"),
        (1.8, 1.0, 0.03, "COLLAPSED"),
        (30.0, 1.0, 0.01, "COLLAPSED"),
    ],
)
def test_the_verdict_is_what_probes_said(rankme, cosine, deviation, expected):
    """Of runs 128 wide in docs/benchmarks.md; and it never calls features healthy that are all alike."""
    monitor = Monitor(100)
    monitor.last = {
        "rankme": rankme,
        "rankme_share": rankme / 128,
        "mean_cosine": cosine,
        "feature_deviation": deviation,
    }
    assert monitor.verdict().startswith(expected)


def test_figures_have_their_known_values():
    x = torch.eye(32).repeat(4, 1)
    assert collapse_figures(x)["rankme"] == pytest.approx(32, rel=1e-4)
    one = collapse_figures(torch.ones(50, 8))
    assert one["rankme"] == pytest.approx(1, abs=1e-4)
    assert (one["mean_cosine"], one["feature_deviation"]) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    sphere = collapse_figures(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)))
    assert sphere["feature_deviation"] == pytest.approx(1, abs=0.02)
    assert sphere["mean_cosine"] == pytest.approx(0, abs=0.01)


def test_features_that_are_not_finite_are_no_figures():
    monitor = Monitor(10)
    monitor.see(torch.full((4, 3), torch.nan))
    assert monitor.figures(5, monitor.features()) == {} and monitor.alarm() is None
    assert monitor.verdict() == "no features were seen"


def test_only_the_latest_features_count():
    monitor = Monitor(10)
    for step in range(40):
        monitor.see(features("point", step))
    for step in range(9):
        monitor.see(features("healthy", step))
    assert monitor.figures(9, monitor.features())["rankme"] > 5


def test_looks_are_few_and_the_last_step_is_one():
    monitor = Monitor(1000)
    assert not monitor.due(1000, 10), "nothing was seen"
    monitor.see(features("healthy", 0))
    assert [step for step in range(0, 1001, 2) if monitor.due(step, 2)] == [
        step for step in range(0, 1001) if step % 2 == 0 and step // 5 > (step - 2) // 5
    ]
    assert all(monitor.due(step, 10) for step in range(10, 1001, 10))
    monitor.steps = 100_003
    looks = [step for step in (*range(10, 100_003, 10), 100_003) if monitor.due(step, 10)]
    assert looks[-1] == 100_003 and len(looks) <= 202


def test_ranks_keep_their_share_of_the_features():
    alone, pair = Monitor(10), [Monitor(10, 2) for _ in range(2)]
    for step in range(30):
        whole = features("healthy", step)
        alone.see(whole)
        for monitor, part in zip(pair, whole.chunk(2), strict=True):
            monitor.see(part)
    together = torch.cat([monitor.features() for monitor in pair])
    assert len(together) == len(alone.features())
    assert alone.figures(9, alone.features()) == pytest.approx(pair[0].figures(9, together), rel=1e-6)


def runs(folder: str, data: str) -> dict:
    """A healthy run, and one whose objective pulls all samples to one point."""
    from triptych import train
    from triptych.objectives import MAE, OBJECTIVES

    class Collapsing(MAE):
        def forward(self, views):
            pooled = self.backbone(views[0])
            return {"loss": (pooled - 1).square().mean(), "features": pooled.detach()}

    OBJECTIVES["collapsing"] = Collapsing
    argv = "--modality.image_size 8 --modality.patch_size 4 --encoder.width 32 --encoder.depth 1 --encoder.heads 2"
    argv += " --per_device_train_batch_size 32 --max_steps 150 --report_to none --device cpu --learning_rate 0.02"
    ended = {}
    for name in ("mae", "collapsing"):
        print(f"run {name}")
        config = [*argv.split(), "--data", data, "--output_dir", f"{folder}/{name}", "--objective", name]
        config += ["--objective.decoder.width", "32", "--objective.decoder.depth", "1"]
        ended[name] = train.pretrain(train.from_command_line(config))["verdict"]
    return ended


def test_a_run_that_collapses_says_so(launch, pictures, tmp_path):
    ran = launch(runs, 1, folder=str(tmp_path), data=str(pictures))
    (verdicts,) = ran.results()
    healthy, collapsed = ran.output().split("run collapsing")
    assert "ALARM" not in healthy and verdicts["mae"].startswith("not collapsed")
    assert collapsed.count("ALARM: the features are collapsing") == 1
    assert verdicts["collapsing"].startswith("COLLAPSED")
    assert {"rankme", "feature_deviation", "mean_cosine"} <= support.metrics(tmp_path / "collapsing")[-1].keys()
