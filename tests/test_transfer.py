"""Stems under other names: what may be compared, and what a gain is."""
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sepnb.core import SepnbError, seed_everything
from sepnb.data.tracks import manifest_row, write_manifest, write_track
from sepnb.metrics import si_sdr
from sepnb.separator import Separator, build
from sepnb.synth import toy_sources
from sepnb.transfer import ROLES, bounds, pairings, read_transfer, recording_rows, transfer_rows, transfer_table

FOUR = ("vocals", "drums", "bass", "other")
NAMES = [*FOUR, *ROLES, "piano"]


def song(stems=FOUR, rate=8000):
    return dict(zip(stems, toy_sources(seed_everything(3), seconds=2.0, sample_rate=rate, stems=stems)))


class Told(Separator):
    "Gives what it was told, whatever the mixture."
    def __init__(self, answers): super().__init__(answers); self.answers = answers
    def estimate(self, mix, sources=None): return torch.stack([self.answers[n] for n in self.stems])


def roles(names): return set().union(*(ROLES.get(n, {n}) for n in names))


@settings(deadline=None, max_examples=200)
@given(given=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True), true=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
def test_both_sides_of_a_pair_play_the_same(given, true):
    pairs = pairings(given, true)
    for name, (mine, theirs) in pairs.items():
        assert name in (*given, *true) and set(mine) <= set(given) and set(theirs) <= set(true)
        assert roles(mine) == roles(theirs) == roles([name])
    for name in true: assert name in pairs or name not in given or roles([name]) in [roles(t) for _, t in pairs.values()]
    assert len({frozenset(roles(t)) for _, t in pairs.values()}) == len(pairs)


@pytest.mark.parametrize("scale", (1e-4, 1.0, 1e2))
def test_truth_is_perfect_and_the_mixture_gains_nothing(scale):
    sources = {k: scale * x for k, x in song().items()}; mix = sum(sources.values())
    two = {"guitar": sources["other"], "backing": mix - sources["other"]}
    for rows in (transfer_rows(Told(sources), two, sample_rate=8000), transfer_rows(Told(sources), sources, sample_rate=8000)):
        assert all(r["estimate"] > 60 and r["over"] > 30 and r["mixture"] < r["ceiling"] for r in rows)
    assert {r["stem"] for r in transfer_rows(Told(sources), two, sample_rate=8000)} == {"guitar", "backing"}
    for r in transfer_rows(Told({k: 1e-3 * mix for k in FOUR}), sources, sample_rate=8000): assert abs(r["over"]) < 1e-6


def test_sums_are_scored_against_sums():
    sources = song(); mix = sum(sources.values()); noisy = {k: x + 0.1 * mix for k, x in sources.items()}
    rows = transfer_rows(Told({"vocals": noisy["vocals"], "accompaniment": noisy["bass"]}), sources, sample_rate=8000)
    truth = sources["drums"] + sources["bass"] + sources["other"]
    assert [r["stem"] for r in rows] == ["vocals", "accompaniment"]
    assert rows[1]["estimate"] == pytest.approx(float(si_sdr(noisy["bass"][None], truth[None]))) and rows[1]["mixture"] == pytest.approx(float(si_sdr(mix[None], truth[None])))


def test_a_silent_stem_has_no_row_and_a_bound_is_refused():
    sources = song() | {"drums": torch.zeros_like(song()["drums"])}
    assert "drums" not in {r["stem"] for r in transfer_rows(Told(sources), sources, sample_rate=8000)}
    with pytest.raises(SepnbError, match="own stems"): transfer_rows(build("ibm", ("vocals", "accompaniment")), sources, sample_rate=8000)
    assert all(abs(r["estimate"] - r["ceiling"]) < 3 for r in transfer_rows(build("irm", FOUR), sources, sample_rate=8000))
    assert transfer_rows(Told({"piano": sources["other"]}), sources, sample_rate=8000) == []


def test_ceiling_is_the_ratio_mask_and_above_the_floor():
    sources = song(); mix = sum(sources.values())
    for x in sources.values():
        floor, ceiling = bounds(x, mix); assert ceiling > floor + 3


def test_table_counts_songs_that_are_better(tmp_path):
    rows = [dict(set="a", song=str(i), stem="bass", system="s", mixture=0.0, estimate=float(i), ceiling=9.0, over=float(i)) for i in (-1, 0, 1, 2)]
    assert transfer_table(rows) == [dict(set="a", stem="bass", system="s", songs=4, better=2, mixture=0.0, estimate=0.5, ceiling=9.0, over=0.5)]
    with pytest.raises(SepnbError, match="dvc repro"): read_transfer(tmp_path / "no.csv")


def test_recordings_that_were_learnt_from_are_left_out(tmp_path):
    four = song(); two = {"guitar": four["other"], "backing": sum(x for n, x in four.items() if n != "other")}
    written = [write_track(tmp_path / "two", "test", f"song {k}", {n: (k + 1) * 0.3 * x for n, x in two.items()}, 8000) for k in range(3)]
    manifest = [manifest_row(t, licence="CC0", source="toy") for t in written]; write_manifest(tmp_path / "two", manifest)
    def tried(**more): return recording_rows(build("mixture", FOUR), tmp_path, system="m", durations_s={"two": 1.0}, **more)
    assert [(r["song"], r["stem"]) for r in tried()] == [(f"song {k}", s) for k in range(3) for s in ("backing", "guitar")] and all(abs(r["over"]) < 1e-5 for r in tried())
    assert {r["song"] for r in tried(heard={"trained_on": [manifest[1]["sha256"]]})} == {"song 0", "song 2"}
    assert tried(heard={"trained_on": [m["sha256"] for m in manifest]}) == []
    asked = []; tried(remake=lambda names: asked.append(tuple(names)) or build("irm", names)); assert [set(a) for a in asked] == [{"guitar", "backing"}]
    with pytest.raises(SepnbError, match="prepare"): recording_rows(build("mixture", FOUR), tmp_path, system="m", durations_s={"three": 1.0})
