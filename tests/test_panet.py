"""PA-Net: the equations of its attention, its size, phrases that are missing, tracks of any length, level and rate, and training."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError
from sepnb.models.layers import count_parameters
from sepnb.models.panet import PANet, PostNet, mend, similarity_attention
from sepnb.train.postnet import POST_LOSSES, PostRecipe, fit_postnet, neg_snr, post_loss, post_rate
from sepnb.phrases import Grid, PhraseBank, draw_blocks, fixed_blocks
from sepnb.separator import Separator
from sepnb.train.checkpoint import load_checkpoint, save_checkpoint

GRID = Grid(256, 64, 16)
TINY = dict(sample_rate=4000, widths=[4, 6, 8], head=4, n_fft=256, hop_length=64, frames=16)
KINDS = [dict(attention=a, output=o, top=t, head=h) for a, o, t, h in (("dot", "direct", "none", 4), ("cosine", "residual", "input", 4), ("cosine", "direct", "input", 0))]


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0); torch.set_num_threads(1)

def lively(net): # as after some training
    for name, x in (*net.named_parameters(), *net.named_buffers()):
        if "var" in name: x.data = 0.5 + torch.rand_like(x)
        elif x.is_floating_point(): x.data = x.data + 0.1 * torch.randn_like(x)
    return net.eval()

def loop(seed=0, samples=20000, channels=2): # estimate and source of something that repeats
    g = torch.Generator().manual_seed(seed); bar = torch.randn(channels, 3100, generator=g) * torch.exp(-torch.arange(3100) / 500)
    source = bar.repeat(1, -(-samples // 3100))[:, :samples]
    return source + 0.3 * torch.randn(source.shape, generator=g), source

# Attention

@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), b=st.integers(1, 3), k=st.integers(0, 7), c=st.integers(1, 5), n=st.integers(1, 9), mode=st.sampled_from(["dot", "cosine"]), share=st.floats(0, 1))
def test_attention_is_equations_3_3_and_3_4(seed, b, k, c, n, mode, share):
    g = torch.Generator().manual_seed(seed)
    own, phrases, mask = torch.randn(b, c, n, generator=g), torch.randn(b, k, c, n, generator=g), torch.rand(b, k, generator=g) < share
    h_a, weights = similarity_attention(own, phrases, mask, mode=mode, temperature=0.2)
    assert h_a.shape == own.shape and weights.shape == (b, k) and not weights[~mask].any()
    for i in range(b):
        there = [j for j in range(k) if mask[i, j]]
        if not there: assert not h_a[i].any() and not weights[i].any(); continue
        e = [(phrases[i, j] * own[i]).sum() for j in there]
        if mode == "cosine": e = [x / phrases[i, j].norm() / own[i].norm() / 0.2 for x, j in zip(e, there)]
        alpha = torch.stack(e).softmax(0)
        torch.testing.assert_close(weights[i, there], alpha, atol=1e-5, rtol=1e-4); assert abs(weights[i].sum() - 1) < 1e-5
        torch.testing.assert_close(h_a[i], sum(a * phrases[i, j] for a, j in zip(alpha, there)), atol=1e-5, rtol=1e-4)

def test_huge_products_stay_finite_in_half_precision():
    own = 30 * torch.randn(2, 64, 4096); phrases = (own[:, None] + torch.randn(2, 3, 64, 4096)).bfloat16().requires_grad_()
    for mode in ("dot", "cosine"):
        with torch.autocast("cpu", dtype=torch.bfloat16): h_a, weights = similarity_attention(own.bfloat16(), phrases, torch.ones(2, 3).bool(), mode=mode)
        h_a.float().square().sum().backward()
        assert weights.dtype == torch.float32 and torch.allclose(weights.sum(1), torch.ones(2)) and phrases.grad.isfinite().all()

# The network

def test_published_size():
    net = PANet.preset("published"); weights = sum(m.weight.numel() for m in net.modules() if isinstance(m, torch.nn.Conv1d))
    encoder = sum(i * o * 8 + o * 2 * o for i, o in zip((2, 64, 128, 256, 512), (64, 128, 256, 512, 1024)))
    decoder = sum(3 * i * o + 3 * o * 2 * o for i, o in zip((2048, 1536, 768, 384), (512, 256, 128, 64)))
    assert weights == encoder + decoder + 3 * (192 * 16 + 16 * 2) == 15_157_344 and round(weights / 1e6, 2) == 15.16
    assert count_parameters(PANet.preset("published", head=0)) == 15_166_850 and count_parameters(PANet.preset("light")) < 1e6
    assert net.grid.samples == 34304 and (net.attention, net.output, net.top, net.phrases, net.align) == ("dot", "direct", "none", 7, False)

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 63, 64, 255, 1000, 1216])
@pytest.mark.parametrize("k", range(8))
def test_shapes_for_any_length_and_number_of_phrases(kind, length, k):
    net = lively(PANet(**TINY | kind)); x, phrases = torch.randn(2, 2, length), torch.randn(2, k, 2, length)
    kept = x.clone(), phrases.clone()
    y = net(x, phrases); assert y.shape == x.shape and y.isfinite().all() and torch.equal(x, kept[0]) and torch.equal(phrases, kept[1])
    if not k: assert torch.equal(y, net(x))

@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_and_depths(channels):
    for widths in ([3], [3, 5], [2, 3, 4, 5]):
        net = lively(PANet(channels=channels, **TINY | dict(widths=widths))); assert net(torch.randn(1, channels, 999), torch.randn(1, 2, channels, 999)).shape == (1, channels, 999)

@pytest.mark.parametrize("kind", KINDS)
def test_masked_phrases_have_no_influence(kind):
    net = lively(PANet(**TINY | kind)); x, phrases = torch.randn(3, 2, 1216), torch.randn(3, 4, 2, 1216)
    mask = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    for mode in (net.eval(), net.train()): # not even through a batch norm
        want = mode(x, phrases, mask); other = phrases.clone(); other[~mask] = torch.nan
        assert torch.equal(mode(x, other, mask), want) and want.isfinite().all()
    net.eval()
    torch.testing.assert_close(net(x, phrases, mask)[0], net(x[:1], phrases[:1, [0, 2]])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(x, phrases, mask)[1], net(x[1:2])[0], atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize("kind", KINDS)
def test_order_of_phrases_does_not_matter_but_phrases_do(kind):
    net = lively(PANet(**TINY | kind)); x, phrases = torch.randn(2, 2, 1216), torch.randn(2, 5, 2, 1216); order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(net(x, phrases), net(x, phrases[:, order]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(net(x, phrases), net(x), atol=1e-3)
    for weights in net.attention_weights(x, phrases): torch.testing.assert_close(weights.sum(1), torch.ones(2))

def test_dot_collapses_and_cosine_does_not():
    nets = {mode: PANet.preset("light", attention=mode) for mode in ("dot", "cosine")}
    x = torch.randn(1, 2, 34304); phrases = x[:, None] + 0.5 * torch.randn(1, 3, 2, 34304)
    largest = {mode: max(w.max().item() for w in net.attention_weights(x, phrases)) for mode, net in nets.items()}
    assert largest["dot"] > 0.99 and largest["cosine"] < 0.6

def test_residual_starts_as_the_identity():
    net = PANet(output="residual", **TINY); x = torch.randn(2, 2, 1216)
    assert torch.equal(net(x, torch.randn(2, 3, 2, 1216)), x) and not torch.allclose(PANet(**TINY)(x), x, atol=0.1)

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 3])
def test_gradients_and_a_batch_by_heart(kind, k):
    net = PANet(**TINY | kind | dict(widths=[16, 24, 32], head=kind["head"] and 16)); bank = PhraseBank([loop()], count=k, grid=GRID); blocks = draw_blocks(bank, torch.Generator().manual_seed(0), batch=2)
    optimiser, losses = torch.optim.Adam(net.parameters(), 1e-2), []
    for _ in range(40):
        loss = post_loss(net, blocks); optimiser.zero_grad(); loss.backward(); losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimiser.step()
    assert all(p.grad.any() for p in net.parameters()) and losses[-1] < (0.6 if kind["head"] else 0.75) * losses[0]

def test_silence_gives_finite_gradients():
    net = PANet(**TINY | KINDS[1]); torch.nn.init.normal_(net.last.weight)
    net(torch.zeros(2, 2, 1216), torch.zeros(2, 2, 2, 1216)).abs().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())

def test_save_and_load(tmp_path):
    net = lively(PANet(**TINY | KINDS[1])); estimate = loop()[0]
    save_checkpoint(tmp_path, net, stems=["drums"], sample_rate=4000, licence="CC0-1.0")
    again, card = load_checkpoint(tmp_path, device="cpu")
    assert card["model"] == "panet.PANet" and again.config == net.config and torch.equal(mend(again, estimate), mend(net, estimate))

# Whole tracks

@settings(deadline=None, max_examples=20)
@given(samples=st.integers(1, 9000), phrases=st.integers(0, 7), log_scale=st.floats(-4, 2), batch=st.integers(1, 5))
def test_mend_returns_what_an_idle_network_was_given(samples, phrases, log_scale, batch):
    net = PANet(output="residual", **TINY); x = 10**log_scale * loop(samples=samples)[0]; kept = x.clone()
    y = mend(net, x, phrases=phrases, batch=batch)
    assert y.shape == x.shape and torch.equal(x, kept) and (y - x).abs().max() <= 1e-5 * x.abs().max() and net.training

@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_mend_follows_the_level(scale):
    net = lively(PANet(**TINY | KINDS[1])); x = loop()[0]
    torch.testing.assert_close(mend(net, scale * x) / scale, mend(net, x), atol=1e-3, rtol=1e-3)

def test_mend_in_any_batches_and_precision():
    net = lively(PANet(**TINY | KINDS[1])); x = loop(samples=7001)[0]; whole = mend(net, x, batch=100)
    torch.testing.assert_close(mend(net, x, batch=1), whole, atol=1e-5, rtol=1e-4)
    assert mend(net, x.double()).dtype == torch.float64 and (whole - x).abs().max() > 0.01

def test_mend_silence_and_other_rates():
    net = lively(PANet(**TINY | KINDS[1])); x = loop()[0]
    assert mend(net, 0 * x).isfinite().all() and mend(net, x, sample_rate=11025).shape == x.shape
    idle = PANet(output="residual", **TINY)
    for rate in (2000, 4000, 44100): torch.testing.assert_close(mend(idle, x, sample_rate=rate), x, atol=1e-5, rtol=1e-5)

def test_what_lies_above_the_networks_rate_passes():
    net = lively(PANet(**TINY | KINDS[1])); t = torch.arange(40000) / 44100
    high = 0.1 * torch.sin(2 * torch.pi * 15000 * t).expand(2, -1); low = torch.sin(2 * torch.pi * 300 * t).expand(2, -1)
    line = lambda x: torch.fft.rfft(x[:, 4410:4410 + 22050])[:, 7500].abs()
    assert torch.allclose(line(mend(net, low + high, sample_rate=44100)), line(high), rtol=0.02)

# Training

def test_training_improves_keeps_the_best_and_repeats():
    banks = [PhraseBank([loop(s)], count=2, grid=GRID, align=True) for s in (0, 1)]
    def run(**how):
        torch.manual_seed(0); net = PANet(**TINY | KINDS[1])
        recipe = PostRecipe(**dict(epochs=3, steps=8, batch=4, lr=1e-2, valid_blocks=6, drop_phrases=0.2) | how)
        return net, fit_postnet(net, *banks, recipe, generator=torch.Generator().manual_seed(0))
    net, history = run(); held = fixed_blocks(banks[1], count=6)
    assert [r["epoch"] for r in history] == [0, 1, 2, 3] and history == run()[1] and not net.training
    assert min(r["valid_loss"] for r in history) < 0.97 * history[0]["valid_loss"]
    with torch.no_grad(): assert abs(post_loss(net, held).item() - min(r["valid_loss"] for r in history)) < 1e-4
    untouched, bad = run(lr=10.0, epochs=1, steps=1)
    if not bad[1]["best"]: assert torch.equal(mend(untouched, loop(2)[0]), mend(PANet(**TINY | KINDS[1]), loop(2)[0])) # left alone
    with pytest.raises(SepnbError, match="lower lr"):
        with torch.no_grad(): next(net.parameters()).fill_(torch.nan)
        fit_postnet(net, *banks, PostRecipe(epochs=1, steps=1, batch=2), generator=torch.Generator())
    squared, history = run(loss="mse") # the same network, asked for squares
    with torch.no_grad(): assert abs((squared(held.estimate, held.phrases, held.mask) - held.source).square().mean().item() - min(r["valid_loss"] for r in history)) < 1e-4
    level, history = run(loss="neg_snr")
    power = lambda x: x.square().mean((1, 2)) + 0.01
    with torch.no_grad(): error = power(level(held.estimate, held.phrases, held.mask) - held.source)
    assert abs((10 * (error / power(held.source)).log10()).mean().item() - min(r["valid_loss"] for r in history)) < 1e-3
    assert min(r["valid_loss"] for r in history) < history[0]["valid_loss"]
    with pytest.raises(SepnbError, match="unknown loss 'l3'.*l1, mse, neg_snr"): run(loss="l3")

@pytest.mark.parametrize("loss", sorted(POST_LOSSES))
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_losses_of_a_post_net_have_finite_slopes_at_every_level_and_in_silence(loss, scale):
    x = scale * torch.randn(3, 2, 500, generator=torch.Generator().manual_seed(0))
    for source, estimate in ((x, 0.5 * x), (x, x), (0 * x, x), (x, 0 * x), (0 * x, 0 * x)):
        estimate = estimate.clone().requires_grad_(); value = POST_LOSSES[loss](estimate, source); value.backward()
        assert value.isfinite() and estimate.grad.isfinite().all()
    if scale >= 1: assert POST_LOSSES[loss](x, x) < POST_LOSSES[loss](0.9 * x, x) < POST_LOSSES[loss](0.5 * x, x) # far below the floor, nothing counts

def test_the_ratio_counts_every_block_alike():
    x = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)); half = 20 * math.log10(0.5)
    for scale in (1e-2, 1.0, 1e2): assert abs(neg_snr(scale * x / 2, scale * x, floor=0.0).item() - half) < 1e-4
    both = neg_snr(torch.cat([x / 2, x / 1000]), torch.cat([x, x / 100]), floor=0.0).item()
    assert abs(both - (half + 20 * math.log10(0.9)) / 2) < 1e-4

def test_schedule_of_the_thesis():
    rates = [post_rate(e, 60) for e in range(61)]
    assert rates[:21] == [1e-3] * 21 and all(abs(b / a - 0.951229) < 1e-5 for a, b in zip(rates[20:], rates[21:]))

class Halves(Separator):
    def estimate(self, mix, sources=None): return torch.stack([mix / 2, mix / 2])

class Truth(Separator):
    needs_sources = True
    def estimate(self, mix, sources=None): return sources

def test_post_net_refines_the_stems_that_have_one():
    net = lively(PANet(**TINY | KINDS[1])); mix = loop()[0]
    out = PostNet(Halves(["drums", "bass"]), {"drums": net})(mix, 4000)
    torch.testing.assert_close(out["drums"], mend(net, mix / 2)); torch.testing.assert_close(out["bass"], mix / 2)
    assert PostNet(Halves(["drums", "bass"]), {"drums": net})(mix[:1], 8000)["bass"].shape == mix[:1].shape
    sources = torch.stack([mix, 0 * mix]); bound = PostNet(Truth(["drums", "bass"]), {"drums": net})
    torch.testing.assert_close(bound(mix, 4000, sources=sources)["drums"], mend(net, mix))

@pytest.mark.parametrize("call", [
    lambda: PANet(2), lambda: PANet(attention="soft"), lambda: PANet(output="both"), lambda: PANet(top="all"), lambda: PANet(widths=[]), lambda: PANet(temperature=0.0),
    lambda: PANet(phrases=-1), lambda: PANet.preset("huge"), lambda: PANet(**TINY)(torch.zeros(1, 1, 9)), lambda: PANet(**TINY)(torch.zeros(1, 2, 0)),
    lambda: PANet(**TINY)(torch.zeros(1, 2, 9), torch.zeros(1, 3, 2, 8)), lambda: PANet(**TINY)(torch.zeros(1, 2, 9), torch.zeros(1, 3, 2, 9), torch.ones(1, 2)),
    lambda: mend(PANet(**TINY), torch.zeros(1, 9)), lambda: mend(PANet(**TINY), torch.full((2, 9), torch.nan)), lambda: PostNet(Halves(["a"]), {})])
def test_mistakes_are_one_line(call):
    with pytest.raises(SepnbError) as caught: call()
    assert "\n" not in str(caught.value)
