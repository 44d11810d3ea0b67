"""One door for all systems: what a name stands for, where the device goes, what is known of a system's training and work."""
import json


import pytest
import torch

from sepnb import separator as contract
from sepnb.core import SepnbError, seed_everything
from sepnb.models.mask_rnn import DeepMaskInference
from sepnb.separator import Separator, build, configure, register
from sepnb.synth import toy_sources
from sepnb.train import checkpoint
from sepnb.train.checkpoint import ModelSeparator, open_system, save_checkpoint, separation, system_folder, trained_models, trained_postnets, training_facts, weights_places

STEMS = ["drums", "vocals"]


def model(seed=0):
    seed_everything(seed, threads=1)
    return DeepMaskInference(stems=2, n_fft=256, hop_length=128, hidden=4)


def save(folder, **card):
    save_checkpoint(folder, model(), stems=STEMS, sample_rate=8000, licence="CC0-1.0", card=card)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty place to work in, with no weights installed."
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("SEPNB_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


@pytest.fixture
def listening():
    "A registered system that takes a device."
    @register("listening", kind="neural", summary="for this test")
    class Listening(Separator):
        def __init__(self, stems, *, device="auto"): super().__init__(stems); self.device = device
    yield Listening
    contract._SYSTEMS.pop("listening")


def test_the_device_reaches_registered_systems(listening, here):
    assert open_system("listening", stems=STEMS, device="cpu").device == "cpu"
    assert open_system("listening", stems=STEMS).device == "auto"
    assert open_system("listening", stems=STEMS, device="cpu", settings=dict(device="meta")).device == "meta" # settings know best
    assert open_system("hpss", device="cpu").stems == ("harmonic", "percussive") # takes none


def test_a_device_that_is_not_there_is_refused_for_every_system(listening, here):
    save(here / "runs" / "dmi")
    for name in ("listening", "hpss", "dmi"):
        for device in ("toaster", "cuda:99"):
            with pytest.raises(SepnbError, match=device) as caught: open_system(name, stems=STEMS if name != "dmi" else (), device=device)
            assert "\n" not in str(caught.value)


def test_a_name_means_the_same_everywhere(here):
    save(here / "runs" / "dmi", trained_on=["abc"]); save(here / "weights" / "shipped", trained_on=["def"]); (here / "runs" / "empty").mkdir()
    assert system_folder("dmi") == system_folder("dmi", here / "runs").relative_to(here) and system_folder(here / "runs" / "dmi") == here / "runs" / "dmi"
    assert system_folder("shipped") == here / "weights" / "shipped"
    assert [system_folder(x) for x in ("hpss", "empty", "runs/empty", "nothing")] == [None] * 4
    for name in ("dmi", "runs/dmi", here / "runs" / "dmi"): assert training_facts(name)["trained_on"] == ["abc"]
    assert training_facts("dmi", here / "runs")["trained_on"] == ["abc"] and training_facts("shipped")["trained_on"] == ["def"]
    assert training_facts("hpss") == training_facts("nothing") == training_facts("dmi", "elsewhere") == {}
    mix = toy_sources(seed_everything(1), seconds=0.5, sample_rate=8000).sum(0)
    outs = [open_system(name, device="cpu")(mix, 8000)["vocals"] for name in ("dmi", "runs/dmi", "shipped")] + [Separator.from_pretrained("shipped", device="cpu")(mix, 8000)["vocals"]]
    assert all(torch.equal(outs[0], x) for x in outs)
    assert Separator.from_pretrained("irm", stems=["vocals", "bass"]).stems == ("bass", "vocals") and Separator.from_pretrained("dmi", device="cpu", shifts=2).shifts == 2


def test_a_registered_method_finds_its_own_weights(listening, here):
    save(here / "weights" / "listening")
    assert isinstance(open_system("listening", stems=STEMS), listening)
    save(here / "runs" / "listening") # a model of the project goes first
    assert isinstance(open_system("listening", device="cpu"), ModelSeparator)


def test_weights_of_a_package_are_found_after_those_of_the_user(here, monkeypatch):
    save(here / "site" / "sepnb_weights" / "one"); (here / "site" / "sepnb_weights" / "__init__.py").touch(); monkeypatch.syspath_prepend(str(here / "site"))
    assert weights_places() == [here / "weights", here / "site" / "sepnb_weights"]
    assert system_folder("one") == here / "site" / "sepnb_weights" / "one"
    save(here / "weights" / "one"); assert system_folder("one") == here / "weights" / "one"


def test_separation_is_plain_and_complete(here):
    net = ModelSeparator(model(), stems=STEMS, sample_rate=8000, segment_s=5.0, shifts=2, seed=7, post_filter="wiener")
    facts = separation(net)
    assert facts == dict(segment_s=5.0, overlap=0.25, weighting="triangle", shifts=2, seed=7, post_filter="wiener") == json.loads(json.dumps(facts))
    plain = separation(build("hpss"))
    assert "post_filter" not in plain and "base" not in plain and plain["segment_s"] == 30.0 and separation(build("mixture", STEMS))["segment_s"] is None
    outer = Separator(STEMS); outer.base = net
    assert separation(outer)["base"] == facts
    assert separation(configure(net, overlap=0.5, seed=8)) == facts | dict(overlap=0.5, seed=8)


def test_the_post_filter_takes_its_exponent_from_the_class(monkeypatch):
    seen = []
    monkeypatch.setattr(checkpoint, "refine", lambda estimates, x, *, stft, exponent: seen.append(exponent) or estimates)
    class Sharper(ModelSeparator): filter_exponent = 1.25
    for cls in (ModelSeparator, Sharper): cls(model(), stems=STEMS, sample_rate=8000, post_filter="wiener")(torch.rand(2, 4000), 8000)
    assert seen == [1.0, 1.25]
    with pytest.raises(SepnbError, match="magic"): ModelSeparator(model(), stems=STEMS, sample_rate=8000, post_filter="magic")


def test_lists_of_what_was_trained(here):
    save(here / "runs" / "dmi"); save(here / "runs" / "post" / "base")
    (here / "runs" / "post" / "postnet.json").write_text(json.dumps(dict(stems=["vocals"], trained_on=["abc"])))
    assert list(trained_models()) == ["dmi"] and training_facts("post")["trained_on"] == ["abc"] and system_folder("post").name == "post"
    found = trained_postnets()
    assert list(found) == ["post"] and found["post"]["stems"] == ["vocals"] and found["post"]["base"]["model"] == "mask_rnn.DeepMaskInference"
    (here / "runs" / "post" / "postnet.json").write_text("{}")
    with pytest.raises(SepnbError, match="postnet.json"): trained_postnets()
