"""What the terminal says at the end of a run."""

from oddpatch.results.summary import further_commands


def test_what_to_do_next_fits_a_terminal_and_names_what_is_there(tmp_path, monkeypatch):
    folder = tmp_path / "outputs/padim-effnet_lite0/pcb/2026-01-31_12-00-00-000000 a"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv/bin/python"))
    without = further_commands(folder)
    assert without == [
        "BIN=.venv/bin",
        "RUN='outputs/padim-effnet_lite0/pcb/2026-01-31_12-00-00-000000 a'",
        '"$BIN/oddpatch" predict "$RUN" IMAGES --save overlay',
        '"$BIN/python" train.py data=custom data.root=FOLDER data.category=PART',
    ]
    (folder / "report.html").touch()
    assert next(line for line in further_commands(folder) if line not in without).endswith('open "$RUN/report.html"')
    assert max(map(len, further_commands(folder))) <= 78


def test_a_python_far_away_does_not_make_the_commands_longer(tmp_path, monkeypatch):
    far = tmp_path / "a folder" / ("x" * 100) / "bin"
    far.mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])
    monkeypatch.setattr("sys.executable", str(far / "python"))
    folders, *commands = further_commands(tmp_path)
    assert folders == f"BIN='{far}'"
    assert max(map(len, commands[1:])) <= 78
    for name in ("python", "oddpatch"):
        (far / name).write_text("#!/bin/sh\n")
        (far / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(far))
    assert further_commands(tmp_path)[1:] == [
        'oddpatch predict "$RUN" IMAGES --save overlay',
        "python train.py data=custom data.root=FOLDER data.category=PART",
    ]
