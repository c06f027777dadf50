"""Artifacts that were damaged, changed or made to harm: each is one line, and nothing that they name happens."""

import json
import re
from contextlib import suppress

import numpy as np
import onnx
import pytest
from hostile import watched
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from oddpatch import AnomalyDetector, Detection
from oddpatch.errors import CheckpointError, ConfigError, OddpatchError
from oddpatch.inference.container import KEY, metadata_text, open_onnx, seal_onnx, seal_openvino

SIDE = 8
PREPROCESS = {
    "resize": [SIDE, SIDE], "crop": None, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear",
    "align": None, "roi": None, "fit": "stretch", "adapted": None, "full_scale": None, "max_pixels": None,
    "tiles": None,
}  # fmt: skip
CALIBRATION = {
    "image_scores": [0.1, 0.5], "pixel_scores": [0.1, 0.5], "f1_threshold": None, "target_fpr": 0.1,
    "absent": None, "promise": "marginal", "statistics": {"brightness": [0.5, 0.4], "sharpness": [0.01, 0.02]},
    "products": [], "product_ratios": [],
}  # fmt: skip
METADATA = {
    "format": 2, "version": "0", "precision": "float32", "image_size": [SIDE, SIDE], "localizes": True,
    "preprocess": PREPROCESS, "calibration": CALIBRATION, "calibrations": [],
}  # fmt: skip


def brightness(*more_nodes, initializers=(), functions=()):
    """A graph whose score is the brightest pixel."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE]),
    ]
    axes = [
        numpy_helper.from_array(np.array([1], np.int64), "channel"),
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "all"),
    ]
    nodes = [
        helper.make_node("ReduceMax", ["image", "channel"], ["anomaly_map"], keepdims=1),
        helper.make_node("ReduceMax", ["image", "all"], ["score"], keepdims=0),
        *more_nodes,
    ]
    graph = helper.make_graph(nodes, "brightness", [image], outputs, [*axes, *initializers])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write(path, model=None, metadata=METADATA):
    path.write_bytes(seal_onnx((model or brightness()).SerializeToString(), metadata))
    return path


def changed(**changes):
    return {**METADATA, **changes}


def require_refused(path, told=None):
    with watched() as effects, pytest.raises(OddpatchError, match=told) as caught:
        AnomalyDetector.load(path)(np.zeros((SIDE, SIDE, 3), np.uint8))
    assert effects == []
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or path.with_suffix(".bin").name in str(caught.value)


def test_one_that_is_as_it_should_be_is_loaded(tmp_path):
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[2, 3] = 255
    result = AnomalyDetector.load(write(tmp_path / "a.onnx"))(image)
    assert result.score == 1
    assert result.is_anomalous
    assert [region.box for region in result.regions] == [(3, 2, 1, 1)]


def test_metadata_is_read_by_other_tools(tmp_path):
    model = onnx.load(write(tmp_path / "a.onnx"))
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(entries[KEY]) == METADATA
    assert len(entries["oddpatch.sha256"]) == 64
    assert open_onnx((tmp_path / "a.onnx").read_bytes(), tmp_path) == METADATA


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = write(tmp_path / "a.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    require_refused(path, "is no artifact of oddpatch, or is truncated|was truncated, damaged or changed")


def test_any_changed_byte_is_noticed(tmp_path):
    path = write(tmp_path / "a.onnx")
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        broken = bytearray(data)
        broken[place] ^= 1
        path.write_bytes(broken)
        require_refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 200, b"\x72" + b"\xff" * 220, b"PK\3\4" + b"x" * 300,
        b"\x80\x04cposix\nsystem\n(S'touch x'\ntR." * 9,
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    require_refused(tmp_path / "a.onnx", "is no artifact of oddpatch")


def test_an_onnx_file_of_another_program_is_refused(tmp_path):
    onnx.save(brightness(), tmp_path / "a.onnx")
    require_refused(tmp_path / "a.onnx", "is no artifact of oddpatch, .* write one with oddpatch export RUN")


@pytest.mark.parametrize(
    "metadata",
    [
        *({key: value for key, value in METADATA.items() if key != left_out} for left_out in METADATA),
        *(changed(calibration={k: v for k, v in CALIBRATION.items() if k != left_out}) for left_out in CALIBRATION),
        *(changed(preprocess={k: v for k, v in PREPROCESS.items() if k != left_out}) for left_out in PREPROCESS),
        changed(format=1), changed(format=True), changed(format="1"), changed(calibration=[]), changed(preprocess=None),
        changed(image_size=[SIDE]), changed(image_size=[SIDE, -1]), changed(image_size=[SIDE, 2 * SIDE]),
        changed(image_size=[10**9, 10**9], preprocess={**PREPROCESS, "resize": [10**9, 10**9]}),
        changed(localizes=1), changed(preprocess={**PREPROCESS, "_target_": "os.system"}),
        changed(preprocess={**PREPROCESS, "resize": {"_target_": "os.system", "command": "touch x"}}),
        changed(preprocess={**PREPROCESS, "align": {"reference": "data:image/png;base64,AAAA", "size": [8, 8]}}),
        changed(preprocess={**PREPROCESS, "align": {"reference": "/etc/passwd", "size": [8, 8]}}),
        changed(preprocess={**PREPROCESS, "roi": "/etc/passwd"}), changed(preprocess={**PREPROCESS, "fit": "x"}),
        changed(preprocess={**PREPROCESS, "interpolation": "nearest"}),
        changed(calibration={**CALIBRATION, "image_scores": [0.5, 0.1]}),
        changed(calibration={**CALIBRATION, "image_scores": ["0.5"]}),
        changed(calibration={**CALIBRATION, "image_scores": [[0.5]]}),
        changed(calibration={**CALIBRATION, "f1_threshold": "x"}),
        changed(calibration={**CALIBRATION, "target_fpr": 2.0}), changed(calibration={**CALIBRATION, "promise": "x"}),
        changed(preprocess={**PREPROCESS, "tiles": {"side": 8}}),
        changed(calibration={**CALIBRATION, "statistics": {"brightness": [0.5]}}),
        changed(calibration={**CALIBRATION, "statistics": {"brightness": [0.5, "x"]}}),
        changed(calibration={**CALIBRATION, "statistics": {"another": [0.5, 0.4]}}),
        changed(calibration={**CALIBRATION, "products": [1, "a"]}),
        changed(calibration={**CALIBRATION, "product_ratios": [0.5, 0.1]}),
        changed(calibrations=[1]), changed(calibrations=[{"when": 1, "folder": "x"}]),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_used_is_refused(tmp_path, metadata):
    require_refused(write(tmp_path / "a.onnx", metadata=metadata))


def test_a_preprocess_of_another_size_is_refused(tmp_path):
    other = changed(preprocess={**PREPROCESS, "resize": [2 * SIDE, SIDE]})
    require_refused(write(tmp_path / "a.onnx", metadata=other), "preprocess and image_size of its metadata differ")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format": NaN}', "null"])
def test_metadata_that_is_no_mapping_is_refused(tmp_path, monkeypatch, text):
    from oddpatch.inference import container

    monkeypatch.setattr(container, "to_json", lambda _: text)
    require_refused(write(tmp_path / "a.onnx"))


@pytest.mark.parametrize("node", [("ReduceMax", ["outside"]), ("Mul", ["image", "outside"])])
@pytest.mark.parametrize("location", ["secret", "{here}/secret", "../../../../../../../../etc/hostname"])
def test_weights_in_another_file_are_not_read(tmp_path, monkeypatch, node, location):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(np.ones(1000, np.float32).tobytes())
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[SIDE], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value=location.format(here=tmp_path))
    outside.external_data.add(key="length", value=str(4 * SIDE))
    model = brightness(helper.make_node(node[0], node[1], ["unused"]), initializers=[outside])
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, None))
    require_refused(write(tmp_path / "a.onnx", model), "is not read by onnxruntime")


def test_operators_of_a_library_are_not_loaded(tmp_path):
    node = helper.make_node("Run", ["image"], ["unused"], domain="evil")
    model = brightness(node)
    model.opset_import.append(helper.make_opsetid("evil", 1))
    require_refused(write(tmp_path / "a.onnx", model), "is not read by onnxruntime")


def test_a_graph_that_takes_or_gives_something_else_is_refused(tmp_path):
    model = brightness()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = SIDE + 1
    require_refused(write(tmp_path / "a.onnx", model))
    model = brightness()
    del model.graph.output[1]
    require_refused(write(tmp_path / "b.onnx", model), "does not take and give what its metadata says")


def test_a_score_that_is_not_finite_is_the_error_of_its_image(tmp_path):
    model = brightness()
    model.graph.node[1].output[0] = "brightest"
    model.graph.node.append(helper.make_node("Log", ["brightest"], ["score"]))
    for name, value in (("black", 0), ("white", 255)):
        Image.fromarray(np.full((SIDE, SIDE, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    detector = AnomalyDetector.load(write(tmp_path / "a.onnx", model))
    (_, black), (_, white) = detector.stream(sorted(tmp_path.glob("*.png")), batch_size=2)
    assert re.search(r"black\.png: its score or map is NaN or infinite", str(black))
    assert isinstance(white, Detection)
    assert white.score == 0


def test_a_product_that_is_no_number_is_refused(tmp_path):
    model = brightness(
        helper.make_node("Log", ["score"], ["product"]), helper.make_node("Identity", ["score"], ["product_ratio"])
    )
    for name in ("product", "product_ratio"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]))
    metadata = changed(calibration={**CALIBRATION, "products": ["tile", "lid"], "product_ratios": [0.1, 0.5]})
    require_refused(write(tmp_path / "a.onnx", model, metadata), "gives a product that is no number")


@pytest.fixture
def written(tmp_path):
    """An artifact of OpenVINO."""
    import io

    import openvino

    from oddpatch.engines import openvino_core

    network = openvino_core().read_model(io.BytesIO(brightness().SerializeToString()))
    network.set_rt_info(metadata_text(METADATA), [KEY])
    openvino.save_model(network, tmp_path / "a.xml", compress_to_fp16=False)
    plain = (tmp_path / "a.xml").read_bytes()
    (tmp_path / "a.xml").write_bytes(seal_openvino(plain, (tmp_path / "a.bin").read_bytes()))
    AnomalyDetector.load(tmp_path / "a.xml")(np.zeros((SIDE, SIDE, 3), np.uint8))
    return tmp_path / "a.xml", plain


def test_files_of_openvino_that_were_changed_are_refused(written):
    path, plain = written
    data, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    for broken in (b"", data[:-1], data.replace(b"ReduceMax", b"ReduceMin"), plain, b"\0" * 300):
        path.write_bytes(broken)
        require_refused(path, "was truncated, damaged or changed")
    path.write_bytes(data)
    path.with_suffix(".bin").write_bytes(weights[:-1])
    require_refused(path, "was truncated, damaged or changed")
    path.with_suffix(".bin").unlink()
    require_refused(path, r"a\.bin cannot be read")


def test_a_network_of_openvino_that_was_hashed_again_harms_nobody(written):
    path, plain = written
    weights = path.with_suffix(".bin").read_bytes()
    bomb = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><net name="&b;"/>'
    outside = b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>' + plain.replace(b"brightness", b"&f;")
    for content in (bomb, outside, b"<net/>", plain.replace(b'size="8"', b'size="99999999999"'),
                    plain.replace(b'version="opset1"', b'version="extension"'),
                    plain.replace(KEY.encode(), b"other")):  # fmt: skip
        if content == plain:
            continue
        path.write_bytes(seal_openvino(content, weights))
        with watched() as effects, suppress(OddpatchError):
            AnomalyDetector.load(path)
        assert effects == []


def test_programs_of_torch_are_not_read(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch x'\ntR.")
    with watched() as effects, pytest.raises(ConfigError, match="is a program of torch"):
        AnomalyDetector.load(tmp_path / "a.pt2")
    assert effects == []


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing\.onnx cannot be read \(No such file or directory\)"):
        AnomalyDetector.load(tmp_path / "missing.onnx")


def test_devices_and_engines_that_do_not_run_it_are_refused(tmp_path):
    path = write(tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match=r"device='cuda': an artifact is run on the CPU"):
        AnomalyDetector.load(path, device="cuda")
    with pytest.raises(ConfigError, match=r"engine='torch' does not run .*a\.onnx: choose onnxruntime"):
        AnomalyDetector.load(path, engine="torch")
