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
        "RUN='outputs/padim-effnet_lite0/pcb/2026-01-31_12-00-00-000000 a'",
        '.venv/bin/oddpatch predict "$RUN" IMAGES --save overlay',
        ".venv/bin/python train.py data=custom data.root=FOLDER data.category=PART",
    ]
    (folder / "report.html").touch()
    assert next(line for line in further_commands(folder) if line not in without).endswith('open "$RUN/report.html"')
    assert max(map(len, further_commands(folder))) <= 78
