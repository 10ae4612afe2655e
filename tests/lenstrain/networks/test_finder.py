"""The networks: sizes, precision, and weights that move to and from torchvision."""

from dataclasses import replace

import pytest
import torch
import torchvision

from lensprep.dataset import DECALS
from lensprep.errors import CheckpointError, ConfigError
from lenstrain.config import ModelConfig
from lenstrain.networks.finder import build_model, count_parameters
from lenstrain.networks.stem import MOST_FINE_PX, fine_kernel, fine_stride
from tests.lenstrain.geometries import GEOMETRIES, UGRIZY, VIS

SMALL = ModelConfig(arch="resnet_small", width=8)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ModelConfig(), 11_169_345),
        (ModelConfig(stem="imagenet"), 11_177_025),
        (ModelConfig(arch="resnet34"), 21_277_505),
        (ModelConfig(arch="efficientnet_b0"), 4_008_829),
        (ModelConfig(arch="convnext_tiny"), 27_817_441),
        (ModelConfig(arch="resnet_small", width=16), 77_457),
    ],
)
def test_parameter_counts(config, parameters):
    assert count_parameters(build_model(config)) == parameters


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_b0", "convnext_tiny", "resnet_small"])
@pytest.mark.parametrize("stem", ["fine", "imagenet"])
def test_every_network_gives_one_float32_logit_a_stamp(arch, stem):
    model = build_model(ModelConfig(arch=arch, stem=stem)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = model(x)
        assert logits.shape == (2,)
        assert logits.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):  # ten seconds at full size on some CPUs
            assert model(x[..., :32, :32]).dtype == torch.float32


def test_the_fine_stem_keeps_an_8_by_8_map_where_the_published_one_keeps_2_by_2():
    sizes = {}
    for stem in ("fine", "imagenet"):
        model = build_model(ModelConfig(stem=stem))
        model.backbone.layer4.register_forward_hook(
            lambda _module, _inputs, output, stem=stem: sizes.update({stem: output.shape[2:]})
        )
        model(torch.zeros(2, 3, 64, 64))
    assert sizes == {"fine": (8, 8), "imagenet": (2, 2)}


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("stem", ["fine", "imagenet"])
@pytest.mark.parametrize("arch", ["resnet_small", "efficientnet_b0", "convnext_tiny"])
def test_every_network_takes_the_bands_and_side_of_any_survey(arch, stem, geometry):
    model = build_model(ModelConfig(arch=arch, stem=stem), geometry).train()
    with torch.no_grad():
        assert model(torch.randn(2, *geometry.shape)).isfinite().tolist() == [True, True]


@pytest.mark.parametrize(
    ("side", "first", "kernel"),
    [(32, 32, 3), (64, 64, 3), (96, 96, 3), (97, 49, 3), (192, 96, 3), (193, 49, 7), (256, 64, 7)],
)
def test_a_fine_stem_gives_stages_of_49_to_96_px_of_large_stamps(side, first, kernel):
    geometry = replace(VIS, side=side)
    sizes = {}
    for arch, layer in (("resnet_small", "bn1"), ("efficientnet_b0", "features.0")):
        model = build_model(ModelConfig(arch=arch), geometry).eval()
        stem = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
        assert stem.kernel_size == (kernel, kernel)
        model.backbone.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, arch=arch: sizes.update({arch: output.shape[2:]})
        )
        with torch.inference_mode():
            model(torch.zeros(1, *geometry.shape))
    assert sizes == dict.fromkeys(("resnet_small", "efficientnet_b0"), (first, first))


def test_no_pixel_of_any_side_is_passed_over_by_a_fine_stem():
    for side in range(32, 257):
        stride = fine_stride(side)
        assert side <= stride * MOST_FINE_PX
        assert stride == 1 or side > stride // 2 * MOST_FINE_PX
        assert fine_kernel(stride) >= stride


def test_a_crop_decides_what_the_fine_stem_is():
    model = build_model(ModelConfig(arch="resnet_small", crop=65), VIS)
    assert model.backbone.conv1.stride == (1, 1)


@pytest.mark.parametrize(
    ("crop", "geometry", "text"),
    [
        (
            32,
            VIS,
            "32 is no central window of stamps of 101 x 101 pixels: take an odd number up to",
        ),
        (41, DECALS, "41 is no central window of stamps of 64 x 64 pixels: take an even number up"),
        (50, UGRIZY, "up to 48"),
    ],
)
def test_a_crop_must_lie_in_the_middle_of_the_stamps(crop, geometry, text):
    with pytest.raises(ConfigError, match=text):
        build_model(ModelConfig(arch="resnet_small", crop=crop), geometry)


def test_an_odd_crop_sees_the_central_window_of_an_odd_stamp():
    model = build_model(ModelConfig(arch="resnet_small", width=8, crop=33), VIS).eval()
    x = torch.randn(2, *VIS.shape)
    with torch.inference_mode():
        assert torch.equal(model(x), model(x[..., 34:67, 34:67]))


def test_weights_for_other_bands_are_refused(tmp_path):
    path = tmp_path / "six.pt"
    torch.save(build_model(SMALL, UGRIZY).state_dict(), path)
    config = replace(SMALL, weights=str(path))
    with pytest.raises(CheckpointError, match="for stamps of 6 bands, and the dataset's have 3"):
        build_model(config)
    assert build_model(config, UGRIZY).backbone.conv1.in_channels == 6
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), path)
    with pytest.raises(CheckpointError, match="for stamps of 3 bands, and the dataset's have 1"):
        build_model(ModelConfig(weights=str(path)), VIS)


def test_a_checkpoint_of_other_stamps_is_no_start(tmp_path):
    path = tmp_path / "a.pt"
    state = build_model(SMALL, UGRIZY).state_dict()
    torch.save({"model": state, "dataset_id": "x", "geometry": UGRIZY.to_dict()}, path)
    config = replace(SMALL, weights=str(path))
    build_model(config, UGRIZY)
    other = replace(UGRIZY, bands=("g", "u", *"rizy"))
    with pytest.raises(CheckpointError, match=r"six, ugrizy, .* holds six, gurizy, 48 x 48"):
        build_model(config, other)
    torch.save({"model": build_model(SMALL).state_dict(), "dataset_id": "x"}, path)  # an older one
    build_model(config, DECALS)
    with pytest.raises(CheckpointError, match=r"decals, grz, 64 x 64 .* holds vis, vis, 101 x 101"):
        build_model(config, VIS)


def test_with_the_imagenet_stem_a_resnet_computes_what_torchvision_computes():
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours = build_model(ModelConfig(stem="imagenet")).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.backbone.load_state_dict(state)
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.backbone(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_local_weights_of_torchvision_fill_all_but_stem_and_head(tmp_path):
    theirs = torchvision.models.resnet18(weights=None)
    path = tmp_path / "resnet18.pt"
    torch.save(theirs.state_dict(), path)
    model = build_model(ModelConfig(weights=str(path)))
    torch.testing.assert_close(
        model.backbone.layer3[0].conv1.weight, theirs.layer3[0].conv1.weight, rtol=0, atol=0
    )
    state = theirs.state_dict()
    missing = [
        name for name, value in model.state_dict().items()
        if not torch.equal(value, state.get(name.removeprefix("backbone."), torch.tensor(0.5)))
    ]  # fmt: skip
    assert missing == ["backbone.conv1.weight", "head.weight", "head.bias"]


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save(build_model(SMALL).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"does not fit.*model\.arch"):
        build_model(ModelConfig(weights=str(path)))
    made = {"config": {"model": {"arch": "resnet_small", "width": 8}}, "model": torch.load(path)}
    torch.save(made, path)
    with pytest.raises(CheckpointError, match=r"Set model.arch=resnet_small model.width=8\.$"):
        build_model(ModelConfig(weights=str(path)))


def test_a_file_that_is_not_weights_is_refused(tmp_path):
    path = tmp_path / "text.pt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"is no file of weights \(torch.load: KeyError\)"):
        build_model(ModelConfig(weights=str(path)))
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        build_model(ModelConfig(weights=str(tmp_path / "none.pt")))
    with pytest.raises(CheckpointError, match=f"{tmp_path} is a folder"):
        build_model(ModelConfig(weights=str(tmp_path)))
    torch.save({"numbers": [1, 2]}, path)
    with pytest.raises(CheckpointError, match="no table of tensors"):
        build_model(ModelConfig(weights=str(path)))


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_of_weights_cannot_run_code(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"x": Payload()}, path)
    with pytest.raises(CheckpointError):
        build_model(ModelConfig(weights=str(path)))
    assert "executed" not in capsys.readouterr().out


def test_a_crop_sees_the_central_window_only():
    model = build_model(ModelConfig(arch="resnet_small", width=8, crop=32)).eval()
    x = torch.randn(2, 3, 64, 64)
    outside = x.clone()
    outside[..., :16, :] = 9
    outside[..., :, 48:] = 9
    with torch.inference_mode():
        assert torch.equal(model(x), model(outside))
        assert torch.equal(model(x), model(x[..., 16:48, 16:48]))
        outside[..., 16, 16] = 9
        assert not torch.equal(model(x), model(outside))


def test_group_norm_makes_a_logit_independent_of_the_batch():
    x = torch.randn(4, 3, 64, 64)
    for norm, independent in (("group", True), ("batch", False)):
        model = build_model(ModelConfig(arch="resnet_small", width=8, norm=norm)).train()
        same = torch.allclose(model(x)[:2], model(x[:2]), atol=1e-5)
        assert same == independent


def test_equal_seeds_give_equal_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build_model(SMALL).backbone.conv1.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
