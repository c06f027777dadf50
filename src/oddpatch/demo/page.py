"""The page: widgets, and nothing else. What it computes is in the other modules."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from oddpatch.demo import choices, inspecting, server, uploads
from oddpatch.demo.boards import CATEGORY, DEFECTS
from oddpatch.demo.inspecting import Item
from oddpatch.demo.results import plain, show_results
from oddpatch.demo.sessions import SESSIONS, Session
from oddpatch.demo.worker import Fit
from oddpatch.errors import OddpatchError
from oddpatch.wording import counted

BOARDS, OWN = "Circuit boards", "My own images"
#: What is known of images that are uploaded: their labels.
LABELS = {"not known": None, "good": 0, "defective": 1}
#: Fewest good images that a threshold can be set on.
FEWEST = 5
#: Images a step of the progress bar stands for; the numbers do not depend on it.
BATCH = 8


def show() -> None:
    """Draw the page as it is now."""
    st.set_page_config("oddpatch", _ICON, layout="wide")  # icons by name would come from another server
    st.html(_STYLE)
    st.title("oddpatch", anchor=False)
    st.markdown("Show it good parts. It finds what is odd about the others.")
    session = _session()
    if session is None:
        st.warning(f"{SESSIONS} people are using this demo already. Please reload the page in a few minutes.")
        return
    # Each part has a place of its own: were one of them longer or shorter than in the last turn, what follows would be
    # drawn above its old picture, and both be seen until the turn ends.
    setting, refused, inspection, results = (st.container() for _ in range(4))
    with setting:
        if server.setting.run is not None:
            _open_run(session, server.setting.run)
        else:
            _set_up(session)
    with refused:
        for line in session.refused:
            st.warning(plain(line), icon=":material/block:")
    if session.fit is not None:
        with inspection:
            _follow(session)
    elif session.detector is not None:
        with inspection:
            _inspect(session)
        with results:
            show_results(session)


def _session() -> Session | None:
    if "session" not in st.session_state:
        context = get_script_run_ctx()
        assert context is not None
        session = server.sessions.open(context.session_id, server.setting.folder)
        if session is None:
            return None
        st.session_state.session = session
    kept: Session = st.session_state.session
    return kept


def _open_run(session: Session, run: str) -> None:
    """Begin with a finished run, and the test images of its data set where they are on this machine."""
    if session.detector is None:
        session.detector = server.load(run)
        try:
            session.items = [_item(sample) for sample in server.images_of(run)]
        except OddpatchError as error:
            session.refused = [str(error)]
    st.caption(plain(f"Run {run}"))


# Images and method


def _set_up(session: Session) -> None:
    fitting = session.fit is not None  # what was chosen is shown meanwhile
    with st.expander("Images and method", expanded=session.detector is None, icon=":material/tune:"):
        source = st.segmented_control(
            "Images", [BOARDS, OWN], default=BOARDS, required=True, disabled=fitting, key="source"
        )
        if source == BOARDS:
            boards = server.setting.boards
            st.caption(
                f"Rendered on this machine: {boards.train} good boards to learn from, {boards.test_good} good and "
                f"{DEFECTS * boards.test_per_defect} defective ones to inspect."
            )
        else:
            _upload_good(session, fitting)
        left, right = st.columns(2)
        methods, backbones = choices.methods(), choices.backbones()
        method = left.selectbox(
            "Method", list(methods), format_func=methods.__getitem__, disabled=fitting, key="method"
        )
        backbone = right.selectbox(
            "Backbone", list(backbones), format_func=backbones.__getitem__, disabled=fitting, key="backbone"
        )
        missing = FEWEST - len(session.good) if source == OWN else 0
        if missing > 0:
            st.caption(f"Add {counted(missing, 'more image')} of good parts: a threshold takes {FEWEST} or more.")
        impossible = fitting or missing > 0
        if st.button("Fit", type="primary", disabled=impossible, icon=":material/play_arrow:", key="fit"):
            _begin(session, source == BOARDS, str(method), str(backbone))


def _upload_good(session: Session, fitting: bool) -> None:
    with st.form("good parts", clear_on_submit=True, border=False):
        files = st.file_uploader("Good parts, to learn from", accept_multiple_files=True, disabled=fitting, key="good")
        st.caption(_limits())
        if st.form_submit_button("Add", icon=":material/add:", disabled=fitting):
            session.good, masks = uploads.leave_out_masks([*session.good, *_take(session, files, "good")])
            session.refused += masks
            st.rerun()
    if session.good:
        st.success(f"{counted(len(session.good), 'good image')} to learn from", icon=":material/check:")


def _limits() -> str:
    most = f"{uploads.FILE_BYTES // 2**20} MB"  # as Streamlit writes it
    return (
        f"Up to {uploads.FILES} images of {most} and {uploads.PIXELS // 10**6} megapixels. Browsers send no file of "
        f"more than {most}: they are marked red and left out. Images stay on this machine and go with the session."
    )


def _take(session: Session, files: Sequence[Any], folder: str) -> list[uploads.Upload]:
    taken, session.refused = uploads.take(files, session.folder / folder, session.num_files, session.num_bytes)
    session.num_files += len(taken)
    session.num_bytes += sum(one.path.stat().st_size for one in taken)
    for file in files:
        session.waiting.pop(file.file_id, None)
    if session.turned_away:
        away, session.turned_away = counted(session.turned_away, "file"), 0
        limits = f"a session holds {uploads.FILES} images of {uploads.BYTES // 2**20} MiB in all"
        session.refused.append(f"{away} refused while being sent: {limits}")
    return taken


def _begin(session: Session, on_boards: bool, method: str, backbone: str) -> None:
    if session.run is not None:
        shutil.rmtree(session.run, ignore_errors=True)
    session.num_fits += 1
    session.run = session.folder / f"run-{session.num_fits}"
    settings: dict[str, Any] = {"model": method, "backbone": backbone, "data.batch_size": BATCH}
    boards = server.setting.boards
    if on_boards:
        settings["data"] = CATEGORY
        session.fit = Fit(boards.good_images, settings, session.run, boards)
    else:
        session.fit = Fit(session.folder / "good", settings, session.run)
    number = counted(boards.train if on_boards else len(session.good), "good image")
    session.doing = f"Fitting {choices.methods()[method]} to {number}, backbone {backbone}"
    session.on_boards, session.detector, session.memory = on_boards, None, None
    session.items, session.found, session.refused = [], [], []
    st.session_state.pop("threshold", None)
    st.rerun()


@st.fragment(run_every="500ms")
def _follow(session: Session) -> None:
    fit = session.fit
    if fit is None:
        st.rerun()
        return
    if not fit.running:
        _finish(session, fit)
        st.rerun()
    st.markdown(f"**{plain(session.doing)}**")
    done = f": {fit.done} of {fit.total}" if fit.total > 1 else ""
    st.progress(min(fit.done / max(fit.total, 1), 1.0), f"{fit.what.capitalize()}{done}")
    if st.button("Cancel", icon=":material/close:", key="cancel"):
        fit.cancel()
        session.fit, session.refused = None, ["The fit was cancelled."]
        st.rerun()


def _finish(session: Session, fit: Fit) -> None:
    session.fit = None
    if fit.error is not None:
        session.refused = [session.named(fit.error)]
        return
    try:
        session.detector = server.load(str(fit.run))
    except OddpatchError as error:
        session.refused = [session.named(str(error))]
        return
    if session.on_boards:
        session.items = [_item(sample) for sample in server.setting.boards.test_images()]
    else:
        session.items = list(session.parts)


def _item(sample: Any) -> Item:
    kind = sample.kind.replace("_", " ")
    return Item(f"{kind} / {sample.path.name}", sample.path, sample.label, kind)


# Inspection


def _inspect(session: Session) -> None:
    with st.expander("Add images to inspect", expanded=not session.items, icon=":material/add_photo_alternate:"):  # noqa: SIM117
        with st.form("parts", clear_on_submit=True, border=False):
            files = st.file_uploader("Images", accept_multiple_files=True, key="parts")
            st.caption(_limits())
            known = st.radio("These parts are", list(LABELS), horizontal=True, key="label")
            if st.form_submit_button("Inspect", icon=":material/search:"):
                label = LABELS[known]
                kind = "uploaded" if label is None else known
                parts = [Item(one.name, one.path, label, kind) for one in _take(session, files, "parts")]
                session.items += parts
                session.parts += parts
                st.rerun()
    todo = session.items[len(session.found) :]
    if not todo:
        return
    assert session.detector is not None
    bar = st.progress(0.0, "Inspecting")
    with closing(inspecting.inspect(session.detector, todo)) as found:
        for number, one in enumerate(found, start=1):
            session.found.append(one)  # a click in between loses nothing: what is left is inspected in the next turn
            bar.progress(number / len(todo), f"Inspecting: {number} of {len(todo)}")
    bar.empty()


_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="6" fill="#00796b"/>
<path d="M7 7h7v7H7zM18 7h7v7h-7zM7 18h7v7H7z" fill="#fff"/><path d="M18 18h7v7h-7z" fill="#ff7043"/></svg>"""

_STYLE = """<style>
.block-container {padding-top: 2.5rem; max-width: 74rem}
[data-testid="stMetricValue"] {font-size: 1.5rem}
</style>"""
