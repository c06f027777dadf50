"""The programs of `examples/` print the score that the detector gives."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_dataset, use_tiny_backbone
from narrowing import present
from PIL import Image
from test_pipeline import run, tiny

from oddpatch import AnomalyDetector
from oddpatch.export.exporting import export

#: Where the headers of ONNX Runtime's C++ interface may lie; no wheel holds them.
INCLUDES = [*filter(None, [os.environ.get("ONNXRUNTIME_INCLUDE")]), "/usr/include/onnxruntime",
            "/usr/local/include/onnxruntime", "/usr/include", "/usr/local/include"]  # fmt: skip
#: Declares what the example uses of them.
OWN = Path(__file__).parent / "include"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("examples")
    make_dataset(root, good=20)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(tiny(root, root / "run", "data.resize=40"))
        export(root / "run")
        yield root


@pytest.mark.slow
def test_the_python_example_prints_the_score(place):
    path = str(place / "tile/test/spot/000.png")
    program = ROOT / "examples/python/inspect_parts.py"
    told = subprocess.check_output([sys.executable, program, place / "run/model.onnx", path], text=True)
    expected = AnomalyDetector.load(place / "run/model.onnx")(path)
    assert f"score {expected.score:.6g}, anomalous: {expected.is_anomalous}" in told


@pytest.mark.slow
@pytest.mark.parametrize("headers", ["installed", "own"])
def test_the_cpp_example_prints_the_score(place, tmp_path, headers):
    installed = next((Path(p) for p in INCLUDES if (Path(p) / "onnxruntime_cxx_api.h").is_file()), None)
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    if headers == "installed" and installed is None:
        pytest.skip("needs onnxruntime_cxx_api.h: name its folder in ONNXRUNTIME_INCLUDE")
    import onnxruntime

    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    # The name that programs look for; wheels hold the file without it.
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    program, include = tmp_path / "inspect", OWN if headers == "own" else present(installed)
    command: list[str | Path] = [
        "g++",
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Werror",
        ROOT / "examples/cpp/inspect.cpp",
        "-I",
        include,
        library,
    ]
    subprocess.run([*command, f"-Wl,-rpath,{tmp_path}", "-o", program], check=True)
    detector = AnomalyDetector.load(place / "run")
    for path in sorted((place / "tile/test").rglob("*.png")):
        Image.open(path).convert("RGB").save(tmp_path / "part.ppm")
        told = subprocess.check_output([program, place / "run/model.onnx", tmp_path / "part.ppm"], text=True).split()
        expected = detector(str(path))
        assert float(told[1]) == pytest.approx(expected.score, rel=1e-5)
        assert bool(int(told[3])) == expected.is_anomalous

    no_artifact = subprocess.run(
        [program, tmp_path / "part.ppm", tmp_path / "part.ppm"], capture_output=True, text=True
    )
    assert no_artifact.returncode == 2
    assert no_artifact.stderr.startswith("error: ")
