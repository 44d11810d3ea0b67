"""From frames to tables: medians, gaps, orders, provenance; and the core's small tools."""
import math
import re
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sepnb.audio import load_audio
from sepnb.campaign import evaluate_songs
from sepnb.core import SepnbError, atomic_path, derive_seed, digest, gain_to_amplitude, order_stems, pick_device, power_to_db, seed_everything, write_text
from sepnb.data.tracks import find_tracks, write_track
from sepnb.evaluate import METRICS, ExcerptWriter, excerpt_truth, find_song, read_rows, score_song, songs_heard, statistics_rows, summary, write_rows
from sepnb.report import gap_closed, order_faults, page_table, paired_rows, players, read_scores, result_rows, results_table, source_commit
from sepnb.runner import page, render
from sepnb.separator import build
from sepnb.synth import chirp, click, noise, times, tone, toy_sources

STEMS = ("drums", "vocals")


def row(song, second, value, stem="vocals"):
    return dict(song=song, stem=stem, second=second, **{m: value for m in METRICS})


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.one_of(st.floats(-30, 30), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=9), min_size=1))
def test_the_summary_is_the_median_of_medians(songs):
    rows = [row(song, n, v) for song, values in songs.items() for n, v in enumerate(values)]
    out = summary(rows)["vocals"]
    finite = [[v for v in values if math.isfinite(v)] for values in songs.values()]
    medians = [np.median(v) for v in finite if v]
    assert out["frames"] == sum(map(len, finite)) and out["frames"] + out["dropped"] == len(rows)
    assert out["si_sdr"] is None if not medians else abs(out["si_sdr"] - np.median(medians)) < 1e-3


def test_rows_survive_their_file(tmp_path):
    rows = [row("a, b", 0, 1.23456), row("a, b", 1, math.nan)]
    write_rows(tmp_path / "x.csv", rows)
    again = read_rows(tmp_path / "x.csv")
    assert again[0]["song"] == "a, b" and again[0]["second"] == 0 and again[0]["si_sdr"] == 1.235 and math.isnan(again[1]["si_sdr"])


def test_no_rows_make_no_table(tmp_path):
    with pytest.raises(SepnbError, match="nothing was scored.*x.csv"): write_rows(tmp_path / "x.csv", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("channels", [1, 2])
def test_scores_do_not_depend_on_scale_and_know_a_perfect_estimate(scale, channels):
    sources = toy_sources(seed_everything(0), seconds=3.3, sample_rate=8000, channels=channels, stems=STEMS)
    wrong = sources + 0.1 * sources.flip(0)
    reference = score_song(wrong, sources, sample_rate=8000, stems=STEMS)
    scaled = score_song(scale * wrong, scale * sources, sample_rate=8000, stems=STEMS)
    assert len(reference) == 2 * 3
    for a, b in zip(reference, scaled):
        assert a["bsseval4_sdr"] == pytest.approx(b["bsseval4_sdr"], abs=0.01) and a["si_sdr"] == pytest.approx(b["si_sdr"], abs=0.01)
    perfect = score_song(sources, sources, sample_rate=8000, stems=STEMS)
    assert min(r["si_sdr"] for r in perfect) > 80


def test_a_silent_stem_is_counted_and_never_raises():
    sources = toy_sources(seed_everything(0), seconds=3.0, sample_rate=8000, stems=STEMS)
    sources[1, :, :8000] = 0
    out = summary(score_song(0.9 * sources, sources, sample_rate=8000, stems=STEMS))
    assert out["vocals"]["dropped"] == 1 and out["drums"]["dropped"] == 1 and out["vocals"]["frames"] == 2
    silent = summary(score_song(torch.zeros_like(sources), torch.zeros_like(sources), sample_rate=8000, stems=STEMS))
    assert silent["vocals"]["bsseval4_sdr"] is None and silent["vocals"]["dropped"] == 3


@pytest.fixture
def songs(tmp_path):
    for i in range(2):
        sources = toy_sources(seed_everything(i), seconds=4.0, sample_rate=8000, stems=STEMS)
        write_track(tmp_path, "test", f"song {i}", dict(zip(STEMS, sources)), 8000)
    return find_tracks(tmp_path, split="test")


def test_every_song_and_stem_is_scored_and_one_excerpt_is_kept(songs, tmp_path):
    rows = evaluate_songs(build("irm", STEMS), songs, duration_s=3.0, keep=ExcerptWriter(tmp_path / "kept", song="song 1", seconds=1.0))
    assert {(r["song"], r["stem"]) for r in rows} == {(f"song {i}", s) for i in range(2) for s in STEMS} and len(rows) == 2 * 2 * 3
    truth, rate = excerpt_truth(find_song(songs, "song 1"), duration_s=3.0, excerpt_s=1.0)
    kept = torch.stack([load_audio(tmp_path / "kept" / f"{s}.flac")[0] for s in STEMS])
    error = (kept - truth).square().sum() / truth.square().sum()
    assert kept.shape == truth.shape and rate == 8000 and error < 0.1


def test_what_cannot_be_evaluated_is_said(songs):
    with pytest.raises(SepnbError, match="no song"):
        evaluate_songs(build("irm", STEMS), [])
    with pytest.raises(SepnbError, match="guitar"):
        evaluate_songs(build("mixture", ["guitar"]), songs)
    with pytest.raises(SepnbError, match="song 9"):
        find_song(songs, "song 9")


def test_the_four_ways_count_what_they_drop():
    values = {("a", "vocals"): (1.0, 2.0, 6.0, math.nan), ("a", "drums"): (math.nan,) * 4, ("b", "vocals"): (5.0, 5.0), ("b", "drums"): (4.0, math.inf)}
    rows = [row(song, n, v, stem) for (song, stem), heap in values.items() for n, v in enumerate(heap)]
    ways = {(r["way"], r["stem"]): r for r in statistics_rows(rows, metric="si_sdr")}
    assert ways["song", "vocals"]["median"] == 3.5 and ways["song", "vocals"]["values"] == 2 # medians 2 and 5
    assert ways["pooled", "vocals"]["median"] == 5.0 and ways["pooled", "vocals"]["nan"] == 1
    assert ways["pooled", "drums"]["infinite"] == 1 and ways["pooled", "drums"]["nan"] == 4
    assert ways["pooled", "all"]["median"] == 4.5 and ways["pooled", "all"]["values"] == 6
    with pytest.raises(SepnbError, match="metric"):
        statistics_rows(rows, metric="sdr")


def test_systems_are_paired_by_song_not_by_order():
    one = [row(song, 0, v) for song, v in zip("abcdef", (1.0, 5.0, 2.0, 8.0, 3.0, 9.0))]
    two = [row(song, 0, v + 1) for song, v in reversed(list(zip("abcdef", (1.0, 5.0, 2.0, 8.0, 3.0, 9.0))))]
    found = paired_rows(dict(mixture=one, net=two), against="mixture", metric="si_sdr")[0]
    assert (found["difference"], found["low"], found["high"], found["better"], found["worse"]) == (1.0, 1.0, 1.0, 6, 0) and found["p"] == pytest.approx(2 / 2**6)
    with pytest.raises(SepnbError, match="net"):
        paired_rows(dict(net=one), against="mixture", metric="si_sdr")


def table_of(**systems):
    return {n: {s: {m: v for m in METRICS} for s, v in stems.items()} for n, stems in systems.items()}


def test_the_gap_is_zero_at_the_floor_and_one_at_the_ceiling():
    scores = table_of(mixture=dict(a=-5.0, b=3.0), irm=dict(a=5.0, b=13.0), net=dict(a=0.0, b=5.5), silent=dict(a=None, b=1.0))
    rows = {r["system"]: r for r in results_table(scores, metric="si_sdr")}
    assert rows["mixture"]["gap"] == 0 and rows["irm"]["gap"] == 1 and rows["net"]["gap"] == pytest.approx(0.375) and rows["silent"]["gap"] is None
    assert gap_closed(1.0, floor=2.0, ceiling=2.0) is None
    with pytest.raises(SepnbError, match="irm"):
        results_table({k: v for k, v in scores.items() if k != "irm"}, metric="si_sdr")
    with pytest.raises(SepnbError, match="metric"):
        results_table(scores, metric="sdr")
    assert order_faults(scores, better="irm", worse="net") == []
    assert len(order_faults(scores, better="net", worse="irm")) == 2
    assert len(order_faults(scores, better="silent", worse="mixture")) == 2


def test_missing_results_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SepnbError, match="no results of b, c"):
        read_scores(tmp_path, ["a", "b", "c"])


def test_result_rows_carry_what_they_depend_on():
    rows = result_rows("net", [row("a", 0, 1.0), row("a", 1, math.nan)], dict(data="0123", commit="abc"))
    assert len(rows) == len(METRICS) and all(r["frames"] == 1 and r["dropped"] == 1 and r["commit"] == "abc" and r["variant"] for r in rows)


def test_html_is_escaped_and_linked():
    assert "<b>" not in page_table([{"system": "<b>", "x": 1.0}]) + players({"<b>": {"<i>": "a.mp3"}})
    assert 'href="evaluate-net.html"' in page_table([{"system": "net"}], links={"net": "evaluate-net.html"})
    assert "−1.50" in page_table([{"system": "net", "x": -1.5}]) and "–" in page_table([{"system": "net", "x": None}])


def test_the_commit_is_the_last_one_that_touched_the_sources(tmp_path):
    git = lambda *a: subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y.z", *a], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    assert source_commit(tmp_path) == "unknown"
    git("init", "-q")
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    git("add", "-A"); git("commit", "-qm", "sources")
    first = source_commit(tmp_path)
    (tmp_path / "README.md").write_text("prose")
    git("add", "-A"); git("commit", "-qm", "prose")
    assert git("rev-parse", "HEAD~1").startswith(first) and source_commit(tmp_path) == first
    (tmp_path / "params.yaml").write_text("seed: 2\n")
    assert source_commit(tmp_path) == first + "+"


# -- core and synth ---------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["vocals", "bass", "drums", "other", "guitar", "piano", "backing"]), unique=True))
def test_the_order_of_stems_is_a_function_of_their_names(names):
    assert order_stems(names) == order_stems(reversed(names)) and sorted(order_stems(names)) == sorted(names)


def test_decibels():
    assert power_to_db(100.0) == 20 and power_to_db(0) == -200 and gain_to_amplitude(20) == 10
    assert torch.equal(power_to_db(torch.tensor([1.0, 10.0])), torch.tensor([0.0, 10.0]))


def test_devices_that_are_not_there_are_errors():
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(SepnbError, match="not available"):
            pick_device("cuda")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failed_write_leaves_the_old_file(error, tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises((error, SepnbError)):
        with atomic_path(tmp_path / "a.txt", overwrite=True) as part:
            part.write_text("new")
            raise error("x")
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(SepnbError, match="exists"):
        write_text(tmp_path / "a.txt", "new", overwrite=False)
    with pytest.raises(SepnbError, match="cannot write"):
        write_text(tmp_path / "a.txt" / "b.txt", "new")


def test_digests_and_seeds():
    x = torch.randn(2, 100)
    assert digest(x) == digest(x.double()) != digest(x.flip(0)) and digest(x[:1]) != digest(x)
    assert derive_seed(1, "a") == derive_seed(1, "a") != derive_seed(1, "b") and 0 <= derive_seed(2**40, "x") < 2**63


def test_synthetic_signals_have_their_known_answers():
    assert len(times(0.5, 8001)) == round(0.5 * 8001)
    assert tone(1000, sample_rate=8000).square().mean() == pytest.approx(0.125, rel=1e-4)
    assert torch.fft.rfft(tone(1000, sample_rate=8000)).abs().argmax() == 1000
    assert click(0.5, sample_rate=8000).nonzero().item() == 4000
    assert noise(torch.Generator().manual_seed(0), channels=3, sample_rate=8000).shape == (3, 8000)
    rising = chirp(100, 3000, sample_rate=8000).double()
    early, late = (torch.fft.rfft(part).abs().argmax() * 8000 / 2000 for part in (rising[:2000], rising[-2000:]))
    assert 100 <= early <= 900 and 2200 <= late <= 3000
    with pytest.raises(SepnbError):
        click(2.0)


def test_pages_hold_no_script_and_no_network():
    import nbformat
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n$x^2$ [link](a.html)"), nbformat.v4.new_code_cell("1 + 1")])
    html = render(nb, title="t")
    assert "<script" not in html and "src=\"http" not in html and "<details" in html and "<msup>" in html and "viewport" in html
    assert "index.html" not in page("x", title="index")


def test_songs_that_a_model_knows_are_refused_or_marked():
    manifest = [dict(song=s, sha256=h) for s, h in (("a", "01"), ("b", "02"))]
    assert songs_heard(dict(trained_on=["03"]), manifest) == [] == songs_heard({}, manifest)
    with pytest.raises(SepnbError, match="1 of 2 songs were used to train this model .b.") as error:
        songs_heard(dict(trained_on=["02"]), manifest)
    assert "\n" not in str(error.value)
    assert songs_heard(dict(trained_on=["02"]), manifest, allow=True) == ["b"]


def test_costs_are_read_and_may_be_missing(tmp_path):
    from sepnb.report import read_costs
    (tmp_path / "c.csv").write_text("system,seconds_per_second,peak_mb,parameters\nhpss,0.1,300,\n")
    assert read_costs(tmp_path / "no.csv") == {} and read_costs(tmp_path / "c.csv") == {"hpss": dict(seconds_per_second=0.1, peak_mb=300.0, parameters=None)}


# -- what the front page says --------------------------------------------------------------------------------------


def test_the_readme_shows_the_results_of_today(root):
    from sepnb.readme import between, picture_note, results_markdown, table_note
    page, picture = (root / "README.md").read_text(), root / "nbs" / "images" / "report.png"
    table = results_markdown(root / "reports" / "results.csv", root / "reports" / "cost.csv")
    assert between(page, "results", table) == page, "the README's table is older than reports/results.csv: say make readme"
    assert picture_note(picture) == table_note(table), "the README's picture is older than reports/results.csv: say make readme"
    assert picture.stat().st_size <= 200_000 and "nbs/images/report.png" in page


def test_the_readme_and_the_summaries_agree(root):
    from sepnb.readme import read_medians
    medians, _ = read_medians(root / "reports" / "results.csv")
    scores = read_scores(root / "reports" / "scores", list(medians))
    for system, stems in scores.items():
        for stem, values in stems.items():
            for metric in METRICS: assert medians[system][stem][metric] == pytest.approx(values[metric], abs=0.0011), (system, stem, metric)


def test_the_start_page_lists_every_chapter(root):
    import nbformat
    from sepnb.readme import between, chapters_markdown
    cells = nbformat.read(root / "start.ipynb", 4).cells
    text = next(c.source for c in cells if "<!-- chapters -->" in c.source)
    assert between(text, "chapters", chapters_markdown(root / "nbs")) == text, "start.ipynb does not list the chapters of today: say make readme"
    links = [link for c in cells for link in re.findall(r"\]\(([^)#]+)\)", c.source)] + re.findall(r"\]\((?!https?:)([^)#]+)\)", (root / "README.md").read_text())
    assert not [link for link in links if not (root / link).exists()]


def test_a_table_without_results_is_refused(tmp_path):
    from sepnb.readme import between, results_markdown
    (tmp_path / "results.csv").write_text("system,song,stem,metric,value,dataset,duration_s\n")
    for path in (tmp_path / "none.csv", tmp_path / "results.csv"):
        with pytest.raises(SepnbError, match="dvc repro"): results_markdown(path, tmp_path / "cost.csv")
    for page in ("", "<!-- a -->", "<!-- end of a -->\n<!-- a -->", "<!-- a --><!-- a --><!-- end of a -->"):
        with pytest.raises(SepnbError, match="place"): between(page, "a", "x")
