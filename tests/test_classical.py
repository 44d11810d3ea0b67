"""All classical separators: bad input, memory, and tensors that live on another device."""
import subprocess
import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sepnb.classical.informed_nmf import Dictionary, separate_notes
from sepnb.classical.nmf import factorise
from sepnb.core import STEMS, seed_everything
from sepnb.separator import build, systems

RATE = 44100
NAMES = [s.name for s in systems() if s.kind == "classical"]
aten = torch.ops.aten

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def made(name, **settings):
    if name == "nmf_supervised": settings = dict(dictionary=Dictionary({stem: torch.rand(2049, 4) for stem in STEMS[:3]}, RATE), **settings)
    return build(name, STEMS, **settings)

# Bad input

@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case, mix", [("a sample", noise(2, 1)), ("less than a window", noise(2, 100)), ("silence", torch.zeros(2, 30000)), ("mono", noise(1, 30000)),
                                       ("a sample of mono", noise(1, 1)), ("mono in two channels", noise(1, 30000).repeat(2, 1)), ("one channel silent", noise(2, 30000) * torch.tensor([[1.0], [0.0]]))])
def test_nothing_is_too_short_too_quiet_or_too_narrow(name, case, mix):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always"); out = torch.stack([*made(name)(mix, RATE).values()])
    assert out.shape == (4, *mix.shape) and out.isfinite().all() and (out.sum(0) - mix).abs().max() <= 1e-5 * max(1e-30, mix.abs().max())
    told = [str(w.message) for w in said if "equal share" in str(w.message)]
    assert bool(told) == (name in ("ica", "fdica") and case not in ("silence",) and not (case == "less than a window"))
    if told: assert torch.allclose(out, mix.expand_as(out) / 4) # the stated fall-back of methods that need two views

# Memory

@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_no_faster_than_the_spectrogram(root):
    done = subprocess.run([sys.executable, root / "tests/bench/memory.py", "--seconds", "5", "--rate", "8000"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == NAMES

# Another device: a stand-in that refuses what a graphics card refuses, with ordinary memory behind it

CARD = torch.device("meta") # the one kind of device, besides the processor, that every build of PyTorch knows
MIXED = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default} # may take tensors of two devices

class OnCard(torch.Tensor):
    "A tensor that says it is elsewhere: NumPy cannot have it, and tensors of this machine do not go with it."
    __torch_function__ = torch._C._disabled_torch_function_impl
    @staticmethod
    def __new__(cls, held): return torch.Tensor._make_wrapper_subclass(cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, layout=held.layout, device=CARD)
    def __init__(self, held): self.held = held
    def tolist(self): return self.held.tolist()
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return dispatched(func, args, kwargs or {})

def dispatched(func, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here, device = any(isinstance(x, OnCard) for x in tensors), kwargs.get("device")
    strange = [tuple(x.shape) for x in tensors if not isinstance(x, OnCard) and x.dim()]
    if here and strange and func not in MIXED: raise RuntimeError(f"{func}: tensors of two devices, {strange}")
    stays = here if device is None else torch.device(device) == CARD
    if device is not None and stays: kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map_only(OnCard, lambda x: x.held, args), **tree_map_only(OnCard, lambda x: x.held, kwargs))
    if func._schema.is_mutable and isinstance(args[0], OnCard) and out is args[0].held: return args[0]
    return tree_map_only(torch.Tensor, OnCard, out) if stays else out

class Card(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return dispatched(func, args, kwargs or {})

@pytest.fixture
def card(monkeypatch):
    for name in ("stft", "istft"): # PyTorch's own; inside, they change shapes in place, which the stand-in cannot follow
        def lifted(x, *args, window, known=getattr(torch, name), **kwargs):
            if isinstance(x, OnCard) != isinstance(window, OnCard): raise RuntimeError("signal and window on two devices")
            return OnCard(known(x.held, *args, window=window.held, **kwargs)) if isinstance(x, OnCard) else known(x, *args, window=window, **kwargs)
        monkeypatch.setattr(torch, name, lifted)
    def tensor(data, *, device=None, known=torch.tensor, **kwargs): return OnCard(known(data, **kwargs)) if device == CARD else known(data, device=device, **kwargs)
    monkeypatch.setattr(torch, "tensor", tensor) # not dispatched
    return Card()

def test_the_stand_in_refuses(card):
    x = OnCard(noise(3, 4))
    with card:
        for wrong in (lambda: x.numpy(), lambda: x + torch.ones(3, 4), lambda: torch.zeros(3, 4) @ x.mT, lambda: torch.zeros(4).scatter_add_(0, x[0].long(), x[0])):
            with pytest.raises(RuntimeError): wrong()
        assert (x + torch.ones(3, 4, device=x.device)).device == CARD and x.cpu().numpy().shape == (3, 4) and torch.arange(3).to(x).device == CARD

WAYS = [*((name, dict(n_fft=256, hop_length=128, steps=5) if name == "fdica" else {}) for name in NAMES), ("nmf", dict(divergence="euclidean")), ("nmf", dict(divergence="itakura_saito")), ("rpca", dict(mask="soft")), ("sinusoidal", dict(variant="synthesis")),
        ("sinusoidal", dict(pitch="yin")), ("kam", dict(kernels=dict(bass=[dict(kind="periodic"), dict(kind="similar")], other=dict(kind="steps", steps=[(0, 1), (1, 0), (0, 0)]))))]

@pytest.mark.parametrize("name, settings", WAYS)
def test_tensors_of_another_device(card, name, settings):
    separator, mix = made(name, **settings), noise(2, 20000)
    known = separator.estimate(mix)
    with card: out = separator.estimate(OnCard(mix))
    assert out.device == CARD and torch.allclose(out.cpu(), known, atol=1e-5)

def test_notes_and_factors_of_another_device(card):
    mix, score = noise(2, 20000), [(0.0, 0.3, 60), (0.1, 0.4, 64)]
    known, pair = separate_notes(mix, RATE, score, iterations=3), factorise(mix.abs()[:, None, :50], rank=2, iterations=3)
    with card:
        out = separate_notes(OnCard(mix), RATE, score, iterations=3)
        there = factorise(OnCard(mix).abs()[:, None, :50], rank=2, iterations=3)
    assert all(torch.allclose(out[k].cpu(), known[k], atol=1e-5) for k in known) and all(torch.allclose(a.cpu(), b, atol=1e-5) for a, b in zip(there, pair))
