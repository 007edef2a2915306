"""The published encoders and their weights, against timm.

What timm 1.0.31 (torch 2.13.0, 2.14.1) computes lies in ``fixtures/encoders.npz``, with the names
and shapes of its tensors, and so needs neither; `experiments/make_encoder_fixtures.py` writes it.
Where both are installed, more is compared. Weights are drawn; those published for
EfficientNet-Lite0 are compared too where they lie beside the repository.
"""

import functools
import pickle
import re
import subprocess
import sys
import types
import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from margin_jax.models import PRETRAINED, pretrained
from margin_jax.models.make import make_module
from margin_jax.models.pretrained import convert, fetch, load_weights

FIXTURES = Path(__file__).parent / "fixtures" / "encoders.npz"
TIMM = {
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "resnet50": "resnet50",
    "vit_tiny": "vit_tiny_patch16_224",
    "dinov2_small": "vit_small_patch14_dinov2",
}
MOBILE = ("efficientnet_b0", "efficientnet_lite0", "mobilenet_v3_small")
TRANSFORMERS = ("vit_tiny", "dinov2_small")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "weights"
LITE0 = SHARED / "tf_efficientnet_lite0.safetensors"
IMAGES = (2, 49, 66, 3)  # odd and even: strides meet both ends of the image
every_encoder = pytest.mark.parametrize("name", TIMM)
# B0 is the class that Lite0 inherits from, with what MobileNetV3 has besides.
every_mobile = pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small"])


def uniform(name, shape):
    """float32 from −1 to 1, decided by the name. NumPy promises raw bits for ever, draws not."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((bits >> 40).astype(np.float32) / 2**23 - 1).reshape(shape)


def draw(name, shape):
    """A tensor of timm: no two alike, and none with the value that a network starts from."""
    u = uniform(name, shape)
    if name.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    if len(shape) in (2, 4):
        return u * np.float32(np.sqrt(6 / np.prod(shape[1:])))  # keeps the spread through a ReLU
    drawn = 1 + u / 2 if name.endswith(("running_var", "weight")) else u / 3
    # Or sixteen sums, one after another, would leave little of the image.
    return drawn / 4 if re.fullmatch(r"layer.*bn3\.(weight|bias)", name) else drawn


def draw_images(shape=IMAGES):
    return 2 * uniform("images", shape)


def recorded(name):
    """``(shapes of timm's tensors, every fourth of its features)``."""
    with np.load(FIXTURES) as file:
        texts = (str(text).split(maxsplit=1) for text in file[f"{name}.tensors"])
        shapes = {
            tensor: tuple(map(int, shape.split(","))) if shape != "-" else ()
            for tensor, shape in texts
        }
        return shapes, file[f"{name}.features"]


@functools.cache
def drawn(name):
    return {tensor: draw(tensor, shape) for tensor, shape in recorded(name)[0].items()}


@functools.cache
def jitted(name, train=False, **options):
    trunk = make_module(name, 1, **options).trunk

    def features(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        mutable = ["batch_stats"] if train else False
        return trunk.apply(variables, images, train=train, mutable=mutable)

    return jax.jit(features)


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


# Against what was recorded


@every_encoder
def test_features_are_those_that_timm_computed(name):
    theirs = recorded(name)[1]
    ours = jitted(name)(*convert(name, drawn(name)), draw_images())
    assert ours.dtype == np.float32
    assert relative_error(theirs[0], theirs[1]) > 0.05  # so the image matters
    assert relative_error(ours[:, ::4], theirs) < 1e-4


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        *(
            (name, f"blocks.2.0.bn2.{kind}")
            for name in MOBILE
            for kind in ("weight", "bias", "running_mean", "running_var")
        ),
        ("resnet50", "layer2.0.downsample.1.running_var"),
        ("resnet50", "layer4.2.bn3.bias"),
        ("vit_tiny", "blocks.2.norm2.weight"),
        ("vit_tiny", "blocks.11.attn.qkv.bias"),
        ("vit_tiny", "pos_embed"),
        ("dinov2_small", "blocks.2.ls1.gamma"),
        ("dinov2_small", "blocks.11.ls2.gamma"),
    ],
)
def test_the_comparison_would_notice_a_changed_tensor(name, changed):
    tensors = dict(drawn(name))
    tensors[changed] = np.flip(tensors[changed])
    ours = jitted(name)(*convert(name, tensors), draw_images())
    assert relative_error(ours[:, ::4], recorded(name)[1]) > 1e-3


def test_parameters_are_as_many_as_published():
    counts = {
        name: sum(p.size for p in jax.tree.leaves(convert(name, drawn(name))[0])) for name in TIMM
    }
    assert counts == {
        "efficientnet_b0": 4_007_548,
        "efficientnet_lite0": 3_371_008,
        "mobilenet_v3_small": 1_517_856,
        "resnet50": 23_508_032,
        "vit_tiny": 5_524_416,
        "dinov2_small": 22_056_192,
    }


# The map of names


@every_encoder
def test_every_variable_has_one_tensor(name):
    trunk = make_module(name, 1).trunk
    images = jnp.zeros((1, 32, 32, 3))
    made = jax.eval_shape(functools.partial(trunk.init, train=False), jax.random.key(0), images)
    params, batch_stats = convert(name, drawn(name))
    filled = flatten_dict({"params": params, "batch_stats": batch_stats})
    assert (batch_stats == {}) == (name in TRANSFORMERS)
    assert {path: (v.shape, v.dtype) for path, v in filled.items()} == {
        path: (v.shape, v.dtype) for path, v in flatten_dict(made).items()
    }
    ignored = set(drawn(name)) - set(pretrained.variables(name))
    assert len(filled) + len(ignored) == len(drawn(name))
    classifiers = ("classifier.", "fc.", "head.")
    assert all(t.startswith(classifiers) or "num_batches" in t for t in ignored)


@every_encoder
def test_the_first_tensor_that_does_not_fit_is_named(name):
    def message(**changes):
        tensors = {k: v for k, v in {**drawn(name), **changes}.items() if v is not None}
        with pytest.raises(ValueError, match="expected") as caught:
            convert(name, tensors)
        return str(caught.value)

    tensors = list(pretrained.variables(name))
    for tensor in tensors[:: 7 if name in MOBILE else 50]:  # those of others are large
        shape = drawn(name)[tensor].shape
        got = message(**{tensor: None})
        assert got == f"expected {name}'s tensor {tensor} of shape {shape}; got none"
        got = message(**{tensor: np.zeros((*shape, 1))})
        assert got == f"expected {tensor} to be of shape {shape}; got {(*shape, 1)}"
    got = message(**{"blocks.9.0.conv.weight": np.zeros((1, 2))})
    assert got == f"expected only {name}'s tensors; got blocks.9.0.conv.weight of shape (1, 2)"
    # Our own name of a variable is none of timm's.
    assert "blocks_0_0" in message(**{"blocks_0_0.bn1.weight": np.zeros(3)})


def test_the_weights_of_another_encoder_do_not_fit():
    with pytest.raises(
        ValueError, match=r"blocks.0.0.bn1.running_mean to be of shape \(32,\); got \(16,\)"
    ):
        convert("efficientnet_b0", drawn("mobilenet_v3_small"))
    # All that Lite0 has B0 has too, in the same shapes.
    with pytest.raises(ValueError, match=r"only efficientnet_lite0's tensors; got blocks.0.0.se\."):
        convert("efficientnet_lite0", drawn("efficientnet_b0"))
    with pytest.raises(ValueError, match=r"efficientnet_b0's tensor blocks.0.0.se\..*; got none"):
        convert("efficientnet_b0", drawn("efficientnet_lite0"))
    with pytest.raises(ValueError, match="Did you mean 'efficientnet_b0'"):
        convert("efficientnet_b1", {})


# The module


@every_mobile
def test_training_moves_every_batch_statistic(name):
    params, before = convert(name, drawn(name))
    found = jitted(name, train=True)(params, before, draw_images())
    features, updated = jax.device_get(found)
    moved = jax.tree.map(lambda a, b: np.all(a != b), before, updated["batch_stats"])
    assert all(jax.tree.leaves(moved))
    assert relative_error(features[:, ::4], recorded(name)[1]) > 0.1
    # PyTorch's momentum 0.1: the weight of the new mean, here of the first convolution.
    kernel = params["conv_stem"]["kernel"]
    padding = "SAME" if name == "efficientnet_lite0" else ((1, 1), (1, 1))
    axes = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(draw_images(), kernel, (2, 2), padding, dimension_numbers=axes)
    expected = 0.9 * before["bn1"]["mean"] + 0.1 * np.mean(x, axis=(0, 1, 2))
    np.testing.assert_allclose(updated["batch_stats"]["bn1"]["mean"], expected, atol=1e-6)


@pytest.mark.parametrize("name", [*MOBILE, "resnet50"])
def test_bfloat16_convolves_in_bfloat16_with_float32_variables(name):
    """Traced only: XLA compiles bfloat16 for CPUs slowly."""
    trunk = make_module(name, 1, dtype="bfloat16").trunk
    init = functools.partial(trunk.init, train=False)
    made = jax.eval_shape(init, jax.random.key(0), draw_images())
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype(np.float32)}
    traced = jax.make_jaxpr(functools.partial(trunk.apply, train=False))(made, draw_images())
    assert traced.out_avals[0].dtype == np.float32
    convolutions = re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated\[", str(traced))
    assert len(convolutions) > 40
    assert set(convolutions) == {"bf16"}


@every_mobile
def test_the_small_stem_keeps_twice_the_size_with_the_same_variables(name):
    def last_map(small_stem):
        trunk = make_module(name, 1, small_stem=small_stem).trunk
        images = jnp.zeros((1, 64, 64, 1))
        options = {"train": False, "capture_intermediates": True, "mutable": True}
        init = functools.partial(trunk.init, **options)
        made = dict(jax.eval_shape(init, jax.random.key(0), images))
        outputs = flatten_dict(made.pop("intermediates"))
        last = max(path for path in outputs if path[0].startswith("blocks_") and len(path) == 2)
        return jax.tree.map(lambda v: v.shape, made), outputs[last][0].shape[1:3]

    variables, size = last_map(False)
    same, twice = last_map(True)
    assert variables == same
    assert (size, twice) == ((2, 2), (4, 4))


# Files


def test_a_file_is_read(tmp_path):
    from safetensors.numpy import save_file

    name, path = "mobilenet_v3_small", tmp_path / "model.safetensors"
    save_file(drawn(name), path)
    read, converted = load_weights(name, path), convert(name, drawn(name))
    chex.assert_trees_all_equal(read, converted)
    with pytest.raises(ValueError, match=rf"{path} does not fit: expected blocks"):
        load_weights("efficientnet_b0", str(path))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (pickle.dumps([1]), "a pickle, which can run code"),
        (b"PK\x03\x04" + bytes(60), "a pickle, which can run code"),
        (b"<html>not found</html>", ""),
        (b"", ""),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path, content, got):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"must be a safetensors file; cannot read {path}: {got}"):
        load_weights("mobilenet_v3_small", path)


def test_tensors_of_a_type_that_numpy_does_not_have_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(ValueError, match=rf"of types that NumPy has; cannot read {path}"):
        load_weights("mobilenet_v3_small", path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*none\.safetensors"):
        load_weights("mobilenet_v3_small", tmp_path / "none.safetensors")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # so that importing it fails
    told = r"pretrained weights need huggingface_hub: pip install 'margin-jax\[pretrained\]'"
    with pytest.raises(ValueError, match=told):
        fetch("mobilenet_v3_small")


# The hub


def hub(monkeypatch, cached, download):
    module = types.ModuleType("huggingface_hub")
    module.try_to_load_from_cache = lambda repo, file: cached
    module.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@every_encoder
def test_weights_are_downloaded_unless_they_are_cached(monkeypatch, name):
    asked = []

    def download(repo, file):
        asked.append((repo, file))
        return "/cache/new"

    hub(monkeypatch, "/cache/old", download)
    assert fetch(name) == Path("/cache/old")
    assert asked == []
    hub(monkeypatch, None, download)
    assert fetch(name) == Path("/cache/new")
    assert asked == [(PRETRAINED[name].repo, "model.safetensors")]


def test_without_a_network_the_message_tells_what_to_get(monkeypatch):
    def download(repo, file):
        raise ConnectionError("no route")

    hub(monkeypatch, None, download)
    with pytest.raises(ValueError, match="cannot download") as caught:
        fetch("efficientnet_b0")
    assert str(caught.value) == (
        "cannot download model.safetensors of https://huggingface.co/timm/efficientnet_b0.ra_in1k "
        "(ConnectionError); get the file another way and give it with --weights FILE"
    )


def test_the_hub_itself(monkeypatch, tmp_path):
    """The real package, told to be offline: first with nothing in its cache, then with the file."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    code = (
        "from margin_jax.models.pretrained import fetch\n"
        "try: print(fetch('efficientnet_b0'))\n"
        "except ValueError as error: print(error)"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def output():
        run = [sys.executable, "-c", code]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()

    assert output().startswith("cannot download model.safetensors of https://huggingface.co/timm/")
    folder = tmp_path / "models--timm--efficientnet_b0.ra_in1k"
    file = folder / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert output() == str(file)


# Against timm itself


@functools.cache
def timm_model(name):
    torch = pytest.importorskip("torch", reason="needs torch")
    timm = pytest.importorskip("timm", reason="needs timm")
    any_size = dict.fromkeys(("dynamic_img_size", "dynamic_img_pad"), True)
    options = any_size if name in TRANSFORMERS else {}
    model = timm.create_model(TIMM[name], pretrained=False, **options)
    tensors = model.state_dict()
    drawn_tensors = {t: torch.from_numpy(draw(t, tuple(v.shape))) for t, v in tensors.items()}
    model.load_state_dict(drawn_tensors)
    return model


def timm_features(model, images):
    import torch

    with torch.no_grad():
        x = model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        return model.forward_head(x, pre_logits=True).numpy()


@every_encoder
def test_timm_has_the_recorded_tensors_and_normalisation(name):
    model = timm_model(name)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == recorded(name)[0]
    config, ours = model.default_cfg, PRETRAINED[name]
    assert (config["mean"], config["std"]) == (ours.mean, ours.std)
    assert config["hf_hub_id"] == ours.repo
    classifier = f"{config['classifier']}."
    published = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(classifier))
    assert published == sum(p.size for p in jax.tree.leaves(convert(name, drawn(name))[0]))


@pytest.mark.parametrize(
    ("name", "size", "small_stem"),
    [
        *((name, (97, 61), False) for name in TIMM),
        # Where a size is more than more of the same: its patches, or padding that depends on it.
        *((name, (224, 224), False) for name in ("efficientnet_lite0", *TRANSFORMERS)),
        *((name, (96, 96), False) for name in ("mobilenet_v3_small", "vit_tiny")),
        *((name, (33, 28), True) for name in MOBILE),
    ],
)
def test_features_are_those_of_timm(name, size, small_stem, tmp_path):
    model = timm_model(name).eval()
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    images = draw_images((2, *size, 3))
    options = {"small_stem": small_stem} if name in MOBILE else {}
    if small_stem:
        model.conv_stem.stride = (1, 1)
    theirs = timm_features(model, images)
    if small_stem:
        model.conv_stem.stride = (2, 2)
    ours = jitted(name, **options)(*load_weights(name, path), images)
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.skipif(not LITE0.is_file(), reason=f"needs ../shared/data/weights/{LITE0.name}")
@pytest.mark.parametrize("size", [(224, 224), (97, 61)])
def test_features_of_published_weights_are_those_of_timm(size):
    timm = pytest.importorskip("timm", reason="needs timm")
    from safetensors.torch import load_file

    name, images = "efficientnet_lite0", draw_images((2, *size, 3))
    model = timm.create_model(TIMM[name], pretrained=False).eval()
    model.load_state_dict(load_file(LITE0))
    ours = jitted(name)(*load_weights(name, LITE0), images)
    assert relative_error(ours, timm_features(model, images)) < 1e-4


@pytest.mark.parametrize("name", [*MOBILE, "resnet50"])
def test_batch_statistics_move_as_those_of_timm(name):
    """PyTorch keeps the unbiased variance of a batch, Flax the biased one: n/(n − 1) apart."""
    model = timm_model(name).train()
    counts = {}
    for path, module in model.named_modules():
        if type(module).__name__.startswith("BatchNorm"):
            module.register_forward_pre_hook(
                lambda _, inputs, path=path: counts.update({path: inputs[0][:, 0].numel()})
            )
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    images = draw_images()
    theirs = timm_features(model, images)
    after = {k: v.numpy() for k, v in model.state_dict().items()}
    timm_model.cache_clear()  # its statistics have moved
    ours, updated = jitted(name, train=True)(*convert(name, before), images)
    assert relative_error(ours, theirs) < 1e-4
    moved = flatten_dict({"batch_stats": updated["batch_stats"]})
    for tensor, (path, _) in pretrained.variables(name).items():
        if path[0] == "params":
            continue
        kept = 0.9 * before[tensor]
        batch = after[tensor] - kept
        if path[-1] == "var":
            n = counts[tensor.removesuffix(".running_var")]
            batch = batch * (n - 1) / n
        assert relative_error(moved[path] - kept, batch) < 1e-4, tensor
    assert set(counts) == {t.removesuffix(".running_var") for t in before if t.endswith("var")}
