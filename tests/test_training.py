"""Bank, loop, checkpoint: what is drawn, what is learnt, what is kept, what is refused."""
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from hypothesis import given, settings, strategies as st

from sepnb.core import SepnbError, seed_everything
from sepnb.data.augment import augment
from sepnb.data.bank import StemBank, draw, excerpt_starts, fixed_excerpts, load_bank, mapped_bank
from sepnb.data.tracks import find_tracks, load_track, write_track
from sepnb.models.mask_rnn import DeepMaskInference
from sepnb.stft import STFT, plain_magnitude
from sepnb.synth import toy_sources
from sepnb.train.checkpoint import build_model, load_checkpoint, load_separator, model_class, open_system, save_checkpoint
from sepnb.train.losses import pick_loss
from sepnb.train.state import Run
from sepnb.train.loop import fit, read_history, recipe_from, train_epoch, valid_epoch, write_history


def bank(seeds=(0, 1), seconds=2.0):
    songs = [toy_sources(seed_everything(i), seconds=seconds, sample_rate=8000, stems=["drums", "vocals"]) for i in seeds]
    return StemBank(songs, sample_rate=8000, names=[str(i) for i in seeds])


def small():
    seed_everything(0)
    return DeepMaskInference(stems=2, n_fft=256, hop_length=128, hidden=8)


def recipe(**changes):
    return recipe_from(dict(segment_s=0.25, batch=2, steps=3, epochs=3, valid_excerpts=2) | changes)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), samples=st.integers(1, 20))
def test_excerpts_never_cross_from_one_song_into_the_next(lengths, samples):
    places = [max(n - samples + 1, 0) for n in lengths]
    starts = excerpt_starts(torch.arange(sum(places)), torch.tensor(lengths), samples).tolist()
    first, expected = 0, []
    for n, k in zip(lengths, places):
        expected += range(first, first + k)
        first += n
    assert starts == expected


def test_random_mixing_draws_each_stem_by_itself_and_coherent_does_not():
    ramp = StemBank([torch.arange(20000.0)[None, None].expand(2, 1, -1) / 32768], sample_rate=8000)
    whole = draw(ramp, torch.Generator().manual_seed(0), batch=64, samples=10, coherent=1.0)
    mixed = draw(ramp, torch.Generator().manual_seed(0), batch=64, samples=10, coherent=0.0)
    half = draw(ramp, torch.Generator().manual_seed(0), batch=256, samples=10, coherent=0.5)
    same = lambda x: (x[:, 0] == x[:, 1]).all(-1).all(-1).float().mean()
    assert same(whole) == 1 and same(mixed) < 0.05 and 0.4 < same(half) < 0.6


def test_the_bank_keeps_sixteen_bits():
    x = torch.randint(-32768, 32768, (2, 2, 1000)).float() / 32768
    assert torch.equal(fixed_excerpts(StemBank([x], sample_rate=8000), count=1, samples=1000)[0], x)


def test_augmentation_keeps_shape_and_leaves_its_input():
    x = draw(bank(), torch.Generator().manual_seed(0), batch=4, samples=1000)
    before = x.clone()
    out = augment(x, torch.Generator().manual_seed(1), {"random_gain": {}, "swap_channels": {}})
    assert out.shape == x.shape and torch.equal(x, before) and not torch.equal(out, x)


def test_the_best_weights_are_kept_not_the_last():
    net, history = small(), None
    history = fit(net, bank(), bank((7,)), recipe(epochs=12, lr=2.0, stop_patience=12), generator=torch.Generator().manual_seed(0))
    best = min(r["valid_loss"] for r in history)
    excerpts = fixed_excerpts(bank((7,)), count=2, samples=2000)
    assert valid_epoch(net, excerpts, recipe()) == best
    assert history[-1]["valid_loss"] > best, "this learning rate should make it worse again"
    assert [r["best"] for r in history][0] and sum(r["valid_loss"] == best for r in history) == 1


def test_the_same_seed_gives_the_same_weights():
    runs = []
    for _ in range(2):
        net = small()
        fit(net, bank(), bank((7,)), recipe(augment={"random_gain": {}}), generator=torch.Generator().manual_seed(0))
        runs.append(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values()))


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    net = small()
    broken = bank()
    net.eval()
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    run = Run(net, torch.optim.SGD(net.parameters(), lr=1.0), torch.Generator().manual_seed(0))
    kept = [p.clone() for p in net.parameters()]
    with pytest.raises(SepnbError, match="loss became nan at step 0.*the batch is in") as error:
        train_epoch(run, broken, recipe(), evidence=tmp_path / "batch.safetensors")
    assert load_file(tmp_path / "batch.safetensors")["sources"].shape == (2, 2, 2, 2000) and "\n" not in str(error.value)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(kept, net.parameters()))


@pytest.mark.parametrize("settings,word", [({"lrr": 1}, "lrr"), ({"lr": 0.0}, "lr"), ({"batch": -1}, "batch"), ({"segment_s": 0.0}, "segment_s")])
def test_bad_recipes_are_refused(settings, word):
    with pytest.raises(SepnbError, match=word):
        recipe_from(settings)


@pytest.mark.parametrize("change", [dict(loss="l7"), dict(augment={"reverb": {}}), dict(segment_s=60.0)])
def test_impossible_recipes_are_refused(change):
    with pytest.raises(SepnbError):
        fit(small(), bank(), bank((7,)), recipe(**change), generator=torch.Generator().manual_seed(0))


def test_history_survives_the_file(tmp_path):
    rows = fit(small(), bank(), bank((7,)), recipe(), generator=torch.Generator().manual_seed(0))
    write_history(tmp_path / "h.csv", rows)
    again = read_history(tmp_path / "h.csv")
    assert len(again) == len(rows) and all(abs(a["valid_loss"] - b["valid_loss"]) < 1e-6 * b["valid_loss"] for a, b in zip(again, rows))


def saved(folder, **changes):
    save_checkpoint(folder, small().eval(), stems=["drums", "vocals"], sample_rate=8000, licence="CC0-1.0", **changes)
    return folder


def test_a_checkpoint_gives_the_same_outputs_and_the_same_bytes(tmp_path):
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    x = torch.randn(1, 2, 3001)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(a, device="cpu")[0](x), small().eval()(x))
    assert all((a / n).read_bytes() == (b / n).read_bytes() for n in ("model.json", "model.safetensors"))


def damage(folder, what):
    card, weights = folder / "model.json", folder / "model.safetensors"
    facts = json.loads(card.read_text())
    if what == "no card": card.unlink()
    elif what == "no weights": weights.unlink()
    elif what == "cut weights": weights.write_bytes(weights.read_bytes()[:-10])
    elif what == "not json": card.write_text("{")
    elif what == "a list": card.write_text("[]")
    elif what == "no stems": card.write_text(json.dumps({k: v for k, v in facts.items() if k != "stems"}))
    elif what == "other class": card.write_text(json.dumps({**facts, "model": "os.system"}))
    elif what == "path as class": card.write_text(json.dumps({**facts, "model": "../evil.Net"}))
    elif what == "other config": card.write_text(json.dumps({**facts, "config": {**facts["config"], "hidden": 16}}))
    elif what == "unknown argument": card.write_text(json.dumps({**facts, "config": {**facts["config"], "wings": 2}}))


@pytest.mark.parametrize("what", ["no card", "no weights", "cut weights", "not json", "a list", "no stems", "other class", "path as class", "other config", "unknown argument"])
def test_a_damaged_checkpoint_is_one_line(what, tmp_path):
    folder = saved(tmp_path / "m")
    damage(folder, what)
    with pytest.raises(SepnbError) as error:
        load_checkpoint(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_only_our_models_can_be_named():
    for name in ("os.system", "layers.torch", "mask_rnn", "mask_rnn.", "..core.SepnbError", "mask_rnn.DeepMaskInference.x"):
        with pytest.raises(SepnbError):
            model_class(name)
    with pytest.raises(SepnbError, match="config"):
        build_model("mask_rnn.DeepMaskInference", {"wings": 2})


def test_a_trained_model_is_a_separator(tmp_path):
    separator = load_separator(saved(tmp_path / "m"), device="cpu")
    x = torch.randn(1, 4410)
    out = separator(x, 44100)
    assert list(out) == ["drums", "vocals"] and all(v.shape == x.shape for v in out.values())
    assert isinstance(open_system("m", runs=tmp_path, device="cpu"), type(separator))
    with pytest.raises(SepnbError, match="checkpoint"):
        open_system(str(tmp_path / "none"))


def split(folder):
    for i in range(3):
        sources = toy_sources(seed_everything(i), seconds=1.0 + 0.37 * i, sample_rate=8000, stems=["drums", "vocals"])
        write_track(folder, "train", f"song {i}", dict(zip(("drums", "vocals"), sources)), 8000)
    return find_tracks(folder, split="train")


@pytest.mark.parametrize("rate,channels", [(None, None), (16000, None), (5512, 1)])
def test_a_mapped_bank_is_the_bank(tmp_path, rate, channels):
    tracks = split(tmp_path)
    one, two = load_bank(tracks, sample_rate=rate, channels=channels), mapped_bank(tracks, tmp_path / "bank.pcm", sample_rate=rate, channels=channels)
    assert torch.equal(one.pcm, two.pcm) and torch.equal(one.lengths, two.lengths) and one.sample_rate == two.sample_rate
    stamp = (tmp_path / "bank.pcm").stat().st_mtime_ns
    assert torch.equal(mapped_bank(tracks, tmp_path / "bank.pcm", sample_rate=rate, channels=channels).pcm, one.pcm)
    assert (tmp_path / "bank.pcm").stat().st_mtime_ns == stamp, "it was made again without need"


def test_a_bank_that_could_not_be_finished_is_not_used(tmp_path, monkeypatch):
    tracks, path = split(tmp_path), tmp_path / "bank.pcm"
    calls = []
    def broken(track, **settings):
        calls.append(track)
        if len(calls) == 2: raise SepnbError("the disk is full")
        return load_track(track, **settings)
    monkeypatch.setattr("sepnb.data.bank.load_track", broken)
    with pytest.raises(SepnbError, match="disk is full"):
        mapped_bank(tracks, path)
    assert not path.exists() and not list(tmp_path.glob(".bank*"))
    assert torch.equal(mapped_bank(tracks, path).pcm, load_bank(tracks).pcm)
    (tmp_path / "bank.pcm.json").unlink() # killed between the two files
    assert torch.equal(mapped_bank(tracks, path).pcm, load_bank(tracks).pcm)


def test_a_card_says_how_songs_are_cut(tmp_path):
    separator = load_separator(saved(tmp_path / "m", card=dict(inference=dict(segment_s=0.5, overlap=0.5, batch=3, shifts=2))), device="cpu")
    assert (separator.segment_s, separator.overlap, separator.batch, separator.shifts, separator.weighting) == (0.5, 0.5, 3, 2, "triangle")
    x = torch.randn(2, 12000)
    first, again = separator(x, 8000), separator(x, 8000)
    assert all(torch.equal(first[k], again[k]) for k in first)
    separator.batch = 1
    assert all((first[k] - v).abs().max() < 1e-5 for k, v in separator(x, 8000).items())
    for inference in (dict(wings=2), dict(overlap=1.0), [1], dict(model=3)):
        with pytest.raises(SepnbError, match="inference"):
            load_separator(saved(tmp_path / "bad", card=dict(inference=inference)), device="cpu")


@pytest.mark.parametrize("name, power", [("magnitude_l1", 1), ("magnitude_mse", 2), ("waveform_l1", 1), ("weighted_magnitude_l1", 1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("frames", [True, False])
def test_losses_and_their_slopes_by_definition(name, power, scale, frames): # in whichever order a network leaves its bins in memory
    class Told(torch.nn.Module): # gives what it is told
        stft, stem_weights = STFT(64, 32), torch.tensor([1.0, 2.0, 0.5])
        def magnitudes(self, mag): return self.given.transpose(-1, -2).contiguous().transpose(-1, -2) if frames else self.given
        def forward(self, mix): return self.given
    g = torch.Generator().manual_seed(0); net = Told(); sources = scale * torch.randn(2, 3, 2, 301, generator=g); sources[0, 1] = 0
    targets = sources if name == "waveform_l1" else plain_magnitude(net.stft(sources))
    net.given = (targets + scale * torch.randn(targets.shape, generator=g)).requires_grad_(); net.given.data[1, 2] = targets[1, 2] # a stem without error
    apart = (net.given.double() - targets.double()).abs() ** power
    truth = (apart.flatten(2).mean((0, 2)) * (net.stem_weights if name.startswith("weighted") else 1)).mean()
    loss = pick_loss(name)(net, sources.sum(1), sources)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, net.given)[0] for x in (loss, truth)), rtol=1e-4, atol=1e-9)


def test_a_loss_with_weights_gets_them_from_the_training_songs():
    from sepnb.models.deep_unet import MultiUNet, energy_weights

    songs = bank(); songs.pcm[1] //= 4
    seed_everything(0); net = MultiUNet(2, 2, sample_rate=8000, table="cpu", n_fft=256, hop_length=128)
    fit(net, songs, bank((3,)), recipe(loss="weighted_magnitude_l1", segment_s=0.5, epochs=1, steps=1), generator=torch.Generator().manual_seed(0))
    expected = energy_weights(fixed_excerpts(songs, count=32, samples=4000)).float()
    torch.testing.assert_close(net.stem_weights, expected); assert expected.max() > 1.2
    seed_everything(0); other = MultiUNet(2, 2, sample_rate=8000, table="cpu", n_fft=256, hop_length=128)
    fit(other, songs, bank((3,)), recipe(segment_s=0.5, epochs=1, steps=1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(other.stem_weights, torch.ones(2))  # not asked for


@pytest.mark.parametrize("name, config", [
    ("unet.SpecUNet", dict(frames=-64, widths=[4, 6])), ("unet.SpecUNet", dict(down="conv norm act", widths=[4, 6])), ("wave_unet.WaveUNet", dict(levels=-1)),
    ("tasnet.ConvTasNet", dict(filters=0)), ("demucs.Demucs", dict(context=-1)), ("demucs.Demucs", dict(growth=0.0)), ("demucs.Demucs", dict(colour="red")),
    ("deep_unet.MultiUNet", dict(table=dict(kernel=3, head=[], encoder=[[["conv"]]], decoder=[[["conv", 4]]])))])
def test_a_model_that_cannot_be_made_is_refused_in_one_line(name, config):
    with pytest.raises(SepnbError) as e:
        net = build_model(name, config); net(torch.randn(1, 2, 4000))
    assert "\n" not in str(e.value)
