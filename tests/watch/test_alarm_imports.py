"""What telling of alarms loads, and what it says where the extra is not installed."""

import subprocess
import sys

import pytest

from oddpatch.errors import in_one_line
from oddpatch.watch.serving import listen
from oddpatch.watch.sinks import make_sinks


def test_a_webhook_loads_neither_torch_nor_what_the_others_need():
    code = (
        "import sys, oddpatch.watch.sinks.webhook, oddpatch.watch.sinks.mqtt, oddpatch.watch.serving\n"
        "names = 'torch', 'matplotlib', 'scipy', 'paho', 'starlette', 'uvicorn', 'prometheus_client', 'av'\n"
        "print([name for name in names if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize("missing", ["paho", "starlette", "uvicorn", "prometheus_client"])
def test_what_is_not_installed_is_told_with_its_extra(missing, monkeypatch, tmp_path):
    for name in list(sys.modules):
        if name.partition(".")[0] == missing or name.startswith("oddpatch.watch.serving."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        make_sinks(mqtt="mqtt://localhost", queue=tmp_path) if missing == "paho" else listen("127.0.0.1:0")
    line = in_one_line(caught.value) or ""
    assert line.endswith("is not installed: pip install 'oddpatch[watch]'")
    assert missing in line
