"""The page of a run: made of its folder alone, self-contained, small, all there, and alive in a real browser."""

import base64
import dataclasses
import html.parser
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import support
import yaml

from triptych.encoders.native import make
from triptych.evaluation import report, report_page, report_samples
from triptych.modalities import MODALITIES
from triptych.modalities.exhibit import Exhibit
from triptych.train import pretrain
from triptych.training.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OBJECTIVES = {"image": "mae", "audio": "mae", "text": "masked"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny run of each modality, and its page."""
    made = {}
    for modality, objective in OBJECTIVES.items():
        folder = tmp_path_factory.mktemp("reports") / f"{modality}_{objective}"
        data = tmp_path_factory.mktemp("data") / modality
        support.table_of(modality).save_to_disk(str(data))
        options = {
            "data": {"name": str(data), "eval_fraction": 0.2},
            "max_steps": 6,
            "report_to": "tensorboard",
            "logging_steps": 1,
            "eval_steps": 3,
        }
        pretrain(support.config(modality, objective, folder, **options))
        made[modality] = folder
        report.write(folder)
    return made


def test_tensorboard_has_what_was_seen(runs):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for modality, folder in runs.items():
        (file,) = (folder / "tensorboard_pictures").glob("events*")
        found = [(e.step, v) for e in EventFileLoader(str(file)).Load() for v in e.summary.value]
        tags = {v.tag.removesuffix("/text_summary") for _, v in found}
        assert tags == {"seen/original", "seen/what is left of it", "seen/with what is guessed"}
        assert {step for step, _ in found} == {6}
        first = found[0][1].tensor.string_val
        assert b"**" not in first[0] if modality == "text" else first[2].startswith(b"\x89PNG")


class Page(html.parser.HTMLParser):
    """What a page links to, its headings, and the texts of its figures' captions."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.heads, self.captions, self.inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "poster", "srcset")]
        self.inside = tag if tag in ("h2", "figcaption") else self.inside

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        if self.inside:
            (self.heads if self.inside == "h2" else self.captions).append(data)


@pytest.mark.parametrize("modality", OBJECTIVES)
def test_a_page_holds_all_and_needs_nothing(runs, modality):
    text = (runs[modality] / "report.html").read_text()
    assert len(text.encode()) < report_page.LIMIT
    page = Page(text)
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert not re.search(r"@import|url\((?!#|data:|['\"]?data:)|\bfetch\(|XMLHttpRequest|//cdn", text)
    titles = {title for part in (report.TRAINING, report.FEATURES) for title, *_ in part}
    assert titles <= set(page.captions)
    assert any(caption.startswith("spectrum") for caption in page.captions)
    saw = ["What the objective saw", "Nearest neighbours", "Map of the features"]
    saw += ["Pieces by their features"] * (modality != "text")
    assert page.heads == ["Training", "Features", *saw, "Data", "Environment"]
    assert "could not be made" not in text and "40 rows of" in text
    assert "math" not in text and ">0.01</text>" in text  # numbers of a logarithmic axis are no formulas
    for row in ("original", "what is left of it", "with what is guessed"):
        assert f"<th scope=row>{row}</th>" in text
    assert ("<img" in text) == ("<mark" not in text) == (modality != "text")
    assert ("<audio" in text) == (modality == "audio")
    assert "Finished: 6 of 6 steps" in text and ("not collapsed" in text or "NARROW" in text or "COLLAPSED" in text)
    assert (runs[modality] / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_points_say_the_figures_of_the_log(runs):
    text = (runs["image"] / "report.html").read_text()
    figures = re.findall(r"<figure data-points='([^']*)'", text)
    points = json.loads(html.unescape(figures[0]))
    loss = [f["loss"] for f in support.metrics(runs["image"])]
    assert [p[2] for p in points[:6]] == [f"step {i}: loss: {v:.4g}" for i, v in enumerate(loss, 1)]
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y, *_ in points)
    highest = max(points[:6], key=lambda p: float(p[2].split()[-1]))
    assert highest[1] == min(p[1] for p in points[:6])  # up is more


def test_runs_side_by_side(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report.main([str(runs["image"]), str(runs["text"])])
    text = (tmp_path / capsys.readouterr().out.strip()).read_text()
    assert "image_mae" in text and "text_masked" in text and "objective.name" in text
    assert all(link.startswith(("#", "data:")) for link in Page(text).links)


def test_what_is_said_of_a_run_that_is_ill(runs, tmp_path):
    folder = shutil.copytree(runs["image"], tmp_path / "ill")
    data = Path(yaml.safe_load((folder / "config.yaml").read_text())["data"]["name"])
    lines = support.metrics(folder)
    lines[-1] |= {"feature_deviation": 0.001, "rankme": 1.0, "rankme_share": 0.03, "mean_cosine": 1.0, "data_wait": 0.5}
    lines[-1] |= {"probe_linear": 40.0, "probe_linear_gain": -3.0, "loss": float("nan"), "code_use": 0.5}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(f) + "\n" for f in lines) + '{"step": 7, "lo')
    bad = {"source": "a<b>.png", "row": 3, "reason": "no & such"}
    (folder / "bad_samples.jsonl").write_text(json.dumps(bad) + '\n{"source": "cut o')
    (folder / "checkpoint-900").mkdir()  # a disk that was full
    aside = data.rename(data.with_name("moved"))
    text = report.write(folder).read_text()
    aside.rename(data)
    assert "could not be made" in text and "no such" in text
    assert "COLLAPSED" in text and "50% of the time" in text and "-3.0 ± 0.0 points" in text
    assert "a&lt;b&gt;.png" in text and "a<b>" not in text
    assert {"code use", "gain over its start, points"} <= set(Page(text).captions)


def test_labels_may_have_any_signs_and_chance_is_that_of_those_asked_for():
    x = np.random.RandomState(0).randn(200, 8)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    looks, labels = [Exhibit(np.zeros((2, 2, 3)))] * 200, ["$\\frac{$" if i % 10 else "_rare" for i in range(200)]
    body, _ = report_samples.spread(x, looks, labels)
    assert "$\\frac{$</text>" in body and "_rare</text>" in body  # of the legend
    _, note = report_samples.nearest(x, looks, labels)  # six of each are asked for, whose nearest are five
    assert "of 60 have its label; by chance it would be 30." in note  # 30 × 179/199 + 30 × 19/199
    _, note = report_samples.nearest(x, looks, ["a"] * 20 + ["no label"] * 180)
    assert "of 30 have its label; by chance it would be 3." in note
    with pytest.raises(ValueError, match="no sample can be used"):
        report_samples.encoded(*unusable())


def unusable():
    modality = MODALITIES["image"](8, 4)
    rows = support.rows_of("image", modality)
    broken = rows.table.map(lambda row: {"image": {"bytes": b"none", "path": None}})
    return make(modality, width=8, depth=1, heads=1), dataclasses.replace(rows, table=broken)


def test_what_the_probe_said_is_on_the_page(runs, tmp_path):
    folder = shutil.copytree(runs["image"], tmp_path / "probed")
    gain = {"mean": 4.0, "deviation": 1.0, "error": 1.0, "sure": True}
    row = {"encoder": "pretrained", "pooling": "mean", "probe": "linear", "labels": "2", "task": "classes"}
    row |= {"measure": "accuracy", "accuracy": 61.25, "deviation": 2.0, "none": 50.0, "step": 6, "data": "/else/where"}
    above = {"random": gain, "plain": gain | {"mean": -2.0, "sure": False}, "largest class": gain}
    others = {"auroc": {"auroc": 70.0, "deviation": 2.0, "none": 50.0, "above": above}}
    rows = [row | {"others": others, "above": above}]
    for name in ("random", "plain"):
        rows.append(row | {"encoder": name, "others": {"auroc": {"auroc": 60.0, "deviation": 1.0, "none": 50.0}}})
    (folder / "probe.json").write_text(json.dumps(rows))
    made = report.curves([run := report.read(folder)])[-1]
    assert made.title == "Probe" and "probe.py on where, of step 6" in made.note
    body = made.body.replace("\u00a0", " ")
    assert "<td>61.2 ± 2.0</td>" in body and "AUROC" in body
    assert "-2.0 ± 1.0 (error 1.0): not sure" in body
    assert "<figure" not in made.body  # a curve of one number of labels is none
    (folder / "probe.json").write_text(json.dumps(rows + [r | {"labels": "all", "accuracy": 90.0} for r in rows]))
    over = report.curves([report.read(folder)])[-1].body
    assert over.count("<figure") == 1 and over.index("<figure") < over.index("<table")
    for said in (
        "2 labels a class, random: 61.2",
        "all labels a class, plain: 90.0",
        "all labels a class, pretrained: 90.0",
    ):
        assert said in over
    lead = report.lead(run)
    assert "above the untrained encoder (+4.0 ± 1.0); NOT surely above plain data (-2.0 ± 1.0)" in lead
    (folder / "probe.json").write_text(json.dumps([{"encoder": "pretrained", "accuracy": 60.0}]))  # of before
    assert not report.read(folder).probed


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        report.read(tmp_path)
    command = [sys.executable, "-m", "triptych.evaluation.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no config.yaml" in done.stderr


@pytest.mark.slow
def test_a_run_makes_its_page_and_no_failure_of_it_is_more_than_a_line(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("TRIPTYCH_REPORT")
    data = support.write_pictures(tmp_path / "pictures", 24)
    options = {"data": {"name": str(data)}, "max_steps": 2, "save_steps": 1}
    pretrain(support.config("image", "mae", tmp_path / "run", **options))
    assert f"look: {tmp_path / 'run' / 'report.html'}" in capfd.readouterr().out
    assert "Finished: 2 of 2 steps" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.setattr(report.sys, "executable", str(tmp_path / "no_such_python"))
    done = pretrain(support.config("image", "mae", tmp_path / "other", **options))
    said = capfd.readouterr()
    assert done["loss"] > 0 and "look:" not in said.out and not (tmp_path / "other" / "report.html").exists()
    assert said.err.count("report.html could not be made: ") == 2 and "Traceback" not in said.err
    assert report.reporting(support.config("image", "mae", tmp_path / "run", report=False)) is None


def test_pages_take_a_small_share_of_the_time_and_the_last_one_is_always_made(tmp_path, monkeypatch):
    class Done:
        returncode = 0

        def poll(self):
            return 0

        wait = kill = lambda self, *_: None

    now, began = 1e9, []
    monkeypatch.setattr(report.subprocess, "Popen", lambda command, **_: began.append(now) or Done())
    monkeypatch.setattr(report.time, "time", lambda: now)
    page = tmp_path / "report.html"
    made = report.Report(tmp_path)
    made(1)
    page.touch()
    os.utime(page, (now + 10, now + 10))  # it took ten seconds
    now += 20
    made(2)
    now = 1e9 + 10 * report.OFTEN - 1
    made(2)
    assert began == [1e9]
    now = 1e9 + 10 * report.OFTEN
    made(3)
    assert began == [1e9, now]
    assert made.finish(3) == f"look: {page}" and len(began) == 2
    assert made.finish(4) == f"look: {page}" and len(began) == 3


# Runs within the page, writes what it found into it: errors, requests, figures without area, whether hover, keys and
# players work.
LOOK = """
<script>window.found = {errors: []}; addEventListener('error', e => found.errors.push(e.message));
for (const kind of ['error', 'warn']) console[kind] = (...said) => found.errors.push(said.join(' '));
addEventListener('unhandledrejection', e => found.errors.push(String(e.reason)));</script>"""
LOOKED = """
<script>addEventListener('load', async () => {
  const area = e => { const b = e.getBoundingClientRect(); return b.width * b.height; };
  found.figures = [...document.querySelectorAll('figure .plot svg, main img')].map(area);
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.requests = performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'));
  found.hover = [...document.querySelectorAll('figure[data-points]')].map(f => {
    const plot = f.querySelector('.plot'), box = plot.getBoundingClientRect();
    const middle = {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
    plot.dispatchEvent(new PointerEvent('pointermove', middle));
    const said = tip.hidden ? '' : tip.textContent; plot.dispatchEvent(new PointerEvent('pointerleave'));
    return said;
  });
  const plot = document.querySelector('figure[data-points] .plot'); plot.focus();
  const key = k => { plot.dispatchEvent(new KeyboardEvent('keydown', {key: k})); return tip.textContent; };
  found.keys = [key('ArrowRight'), key('ArrowRight'), key('ArrowLeft')];
  found.sounds = [...document.querySelectorAll('audio')].map(a => a.controls && a.getBoundingClientRect().width > 0);
  const said = document.createElement('pre'); said.id = 'found';
  said.textContent = JSON.stringify(found); document.body.append(said);
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("modality", OBJECTIVES)
def test_it_is_alive_in_a_browser(runs, tmp_path, modality):
    text = (runs[modality] / "report.html").read_text()
    (tmp_path / "page.html").write_text(text.replace("<head>", "<head>" + LOOK).replace("</body>", LOOKED + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--autoplay-policy=no-user-gesture-required", "--virtual-time-budget=20000", "--window-size=390,844"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(html.unescape(re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert not found["errors"] and not found["requests"]
    assert len(found["figures"]) >= 9 and min(found["figures"]) > 0
    assert found["wide"] <= 0  # a phone need not scroll sideways
    assert all(said.strip() for said in found["hover"])
    first, second, back = found["keys"]
    sounds = re.findall(r'src="data:audio/[a-z0-9]+;base64,([^"]+)"', text)
    assert len(found["sounds"]) == len(sounds) and all(found["sounds"]) and bool(sounds) == (modality == "audio")
    for sound in sounds:  # the browser's clock in this test is not that of sound: played they are in the next one
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
        assert len(wave) > 0.1 * rate and wave.any()
    assert first.startswith("step ") and second.startswith("step ") and first != second and back == first


PLAYED = """
<script>addEventListener('load', async () => {
  const played = [];
  try {
    for (const sound of [...document.querySelectorAll('audio')].slice(0, 2)) {
      await sound.play();
      await new Promise(heard => { sound.ontimeupdate = () => sound.currentTime > 0 && heard(); });
      played.push([sound.currentTime, sound.duration]);
    }
  } catch (error) { played.push(String(error)); }
  fetch('http://127.0.0.1:PORT/', {method: 'POST', mode: 'no-cors', body: JSON.stringify(played)});
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_sounds_play_in_a_browser(runs, tmp_path):
    said, heard = [], threading.Event()

    class Told(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            said.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()
            heard.set()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Told) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script = PLAYED.replace("PORT", str(server.server_port))
        text = (runs["audio"] / "report.html").read_text()
        (tmp_path / "page.html").write_text(text.replace("</body>", script + "</body>"))
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        # A port for tools keeps the browser open until it is ended.
        command += ["--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0"]
        nothing = subprocess.DEVNULL
        browser = subprocess.Popen([*command, f"file://{tmp_path / 'page.html'}"], stdout=nothing, stderr=nothing)
        try:
            assert heard.wait(200)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    assert len(said[0]) == 2 and all(0 < at <= length for at, length in said[0]), said
