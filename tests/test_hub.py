"""A run goes to the hub and comes back with the same numbers, against a stand-in of the hub on loopback."""

import hashlib
import json
import socket
import struct
import sys

import pytest
import torch
from conftest import use_tiny_backbone
from hub_server import serving
from safetensors.torch import load

from oddpatch import AnomalyDetector, factory
from oddpatch.errors import CheckpointError, ConfigError, OddpatchError, ResourceError
from oddpatch.hub import parse_address
from oddpatch.report.card import render_card
from oddpatch.report.runs import read_run

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def detector(tiles):
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        yield AnomalyDetector.fit(
            tiles / "tile", model="padim", **{"model.num_features": 10, "data.resize": 32, "data.num_workers": 0,
            "callbacks.progress": None, "callbacks.pictures": None, "trainer.accelerator": "cpu"},
        )  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def test_what_was_pushed_is_loaded_with_the_same_numbers(detector, hub, tiles, tmp_path):
    address = detector.push_to_hub("user/housing")
    assert address.startswith(f"{hub.address}/user/housing/commit/")
    commit = address.rpartition("/")[2]
    path = tiles / "tile/test/spot/000.png"
    for name in ("hf://user/housing", "hf://user/housing@main", f"hf://user/housing@{commit}"):
        loaded = AnomalyDetector.load(name)
        assert loaded(path).score == detector(path).score
        assert (loaded.image_threshold, loaded.pixel_threshold) == (detector.image_threshold, detector.pixel_threshold)
    before, after = (factory.restore(one.run)[0].state_dict() for one in (detector, loaded))
    assert all(torch.equal(before[key].nan_to_num(-1), after[key].nan_to_num(-1)) for key in before)
    loaded.save(tmp_path / "saved")
    assert AnomalyDetector.load(tmp_path / "saved").evaluate(tiles / "tile").metrics == detector.result.metrics


def test_only_tensors_and_plain_values_leave_and_no_folder_of_this_machine(detector, hub, tiles):
    detector.push_to_hub("user/housing")
    files = hub.repos["user/housing"][-1]
    assert set(files) == {"model.safetensors", "oddpatch.json", "metrics.json", "README.md"}
    assert all(isinstance(value, torch.Tensor) for value in load(files["model.safetensors"]).values())
    described = json.loads(files["oddpatch.json"])
    assert described["sha256"]["model.safetensors"] == hashlib.sha256(files["model.safetensors"]).hexdigest()
    for name, content in files.items():
        for folder in (tiles, detector.run):
            assert str(folder).encode() not in content, name


def test_the_card_says_what_the_run_measured(detector, hub):
    detector.push_to_hub("user/housing")
    card = hub.repos["user/housing"][-1]["README.md"].decode()
    assert card == render_card(read_run(detector.run), "user/housing")
    head, text = card.split("---\n")[1:]
    assert head == "library_name: oddpatch\ntags:\n- anomaly-detection\n- industrial-inspection\n"
    assert f"| image AUROC | {detector.result.metrics['image_auroc']:.4f} | " in text
    assert f"exceeds {detector.image_threshold:.4g}, which was set on 12 good images" in text
    assert 'AnomalyDetector.load("hf://user/housing")' in text
    assert "padim on effnet_lite0, fitted to 12 good images of *tile*" in text.replace("\n", " ")


def test_a_second_push_is_another_commit_and_the_first_stays(detector, hub):
    first = detector.push_to_hub("user/housing").rpartition("/")[2]
    hub.repos["user/housing"][-1]["oddpatch.json"] += b" "  # else nothing differs, and no commit is made
    second = detector.push_to_hub("user/housing").rpartition("/")[2]
    assert first != second
    assert AnomalyDetector.load(f"hf://user/housing@{first}").image_threshold == detector.image_threshold


def test_a_copy_on_this_machine_serves_where_there_is_no_network(detector, hub, monkeypatch):
    from huggingface_hub import constants

    detector.push_to_hub("user/housing")
    AnomalyDetector.load("hf://user/housing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert AnomalyDetector.load("hf://user/housing").image_threshold == detector.image_threshold


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_wrong_file_is_refused(detector, hub):
    detector.push_to_hub("user/housing")
    files = hub.repos["user/housing"][-1]
    good = dict(files)
    files["model.safetensors"] = good["model.safetensors"][:-4] + struct.pack("<f", 1.0)
    with pytest.raises(CheckpointError) as error:
        AnomalyDetector.load("hf://user/housing")
    assert "model.safetensors is not the file that was uploaded (its SHA-256 differs)" in one_line(error)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("oddpatch.json", None, "holds no oddpatch.json: give a model that push_to_hub has uploaded"),
        ("oddpatch.json", b"{", "oddpatch.json cannot be read"),
        ("oddpatch.json", b"[" * 100_000, "oddpatch.json cannot be read"),
        ("oddpatch.json", b'{"oddpatch": {}, "sha256": {}}', "oddpatch.json cannot be read"),
        ("model.safetensors", None, "is not the file that was uploaded"),
    ],
)
def test_files_that_are_no_model_are_one_line(detector, hub, name, content, told):
    detector.push_to_hub("user/housing")
    files = hub.repos["user/housing"][-1]
    files.pop(name) if content is None else files.update({name: content})
    with pytest.raises(CheckpointError) as error:
        AnomalyDetector.load("hf://user/housing")
    assert told in one_line(error)


def test_tensors_that_were_uploaded_broken_are_one_line(detector, hub):
    detector.push_to_hub("user/housing")
    files = hub.repos["user/housing"][-1]
    described = json.loads(files["oddpatch.json"])
    files["model.safetensors"] = b"broken"
    described["sha256"]["model.safetensors"] = hashlib.sha256(b"broken").hexdigest()
    files["oddpatch.json"] = json.dumps(described).encode()
    with pytest.raises(
        CheckpointError, match=r"model.safetensors cannot be read \(.*\): upload the run again"
    ) as error:
        AnomalyDetector.load("hf://user/housing")
    one_line(error)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(403, "log in by `hf auth login` with a token that may write there"), (507, "try again later")],
)
def test_what_the_hub_refuses_is_one_line(detector, hub, status, remedy):
    hub.status = status
    with pytest.raises(
        ResourceError, match=f"^hf://user/housing: the hub answers with error {status}: {remedy}"
    ) as error:
        detector.push_to_hub("user/housing")
    one_line(error)


def test_a_fault_that_is_not_of_the_network_is_not_hidden(detector, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        detector.push_to_hub("user/housing")


def test_a_description_that_asks_for_other_code_is_refused(detector, hub):
    detector.push_to_hub("user/housing")
    files = hub.repos["user/housing"][-1]
    described = json.loads(files["oddpatch.json"])
    described["oddpatch"]["config"]["model"] = {"_target_": "os.system", "command": "true"}
    files["oddpatch.json"] = json.dumps(described).encode()
    with pytest.raises(CheckpointError) as error:
        AnomalyDetector.load("hf://user/housing")
    assert "os.system" in one_line(error)


def test_what_is_not_there_is_one_line(detector, hub, monkeypatch):
    detector.push_to_hub("user/housing")
    for name, kind, told in (
        ("hf://user/housing@v9", CheckpointError, "there is no revision 'v9': give a branch, a tag or a commit"),
        ("hf://user/other", CheckpointError, "there is no such model, or it is private: correct the name, or log in"),
        ("hf://housing", ConfigError, "names no model of the hub: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
        ("hf://user/housing@", ConfigError, "names no model of the hub"),
        ("hf://user/ho using", ConfigError, "hf://user/ho using: "),
    ):
        with pytest.raises(kind) as error:
            AnomalyDetector.load(name)
        assert told in one_line(error)
    with pytest.raises(ConfigError, match=r"a commit is added to the newest revision: leave out @v1"):
        detector.push_to_hub("user/housing@v1")


@pytest.mark.parametrize("act", ["push", "load"])
def test_no_network_is_one_line(detector, hub, monkeypatch, act):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(ResourceError, match=r"^hf://user/housing: the hub cannot be reached") as error:
        detector.push_to_hub("user/housing") if act == "push" else AnomalyDetector.load("hf://user/housing")
    one_line(error)


def test_offline_is_one_line(detector):
    with pytest.raises(ResourceError, match=r"no copy is on this machine: connect it, unset HF_HUB_OFFLINE"):
        AnomalyDetector.load("hf://user/never-seen")


def test_without_huggingface_hub_it_says_what_to_install(detector, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OddpatchError, match=r"needs huggingface_hub: pip install 'oddpatch\[hub\]'"):
        detector.push_to_hub("user/housing")


def test_addresses():
    assert parse_address("user/housing") == ("user/housing", None)
    assert parse_address("hf://user/housing@refs/pr/1") == ("user/housing", "refs/pr/1")
    assert str(parse_address("hf://user/housing@v2")) == "hf://user/housing@v2"
