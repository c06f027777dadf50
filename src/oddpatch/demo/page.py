"""The page: widgets, and nothing else. What it computes is in the other modules."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from oddpatch.demo import choices, inspecting, server, uploads
from oddpatch.demo.boards import CATEGORY, DEFECTS
from oddpatch.demo.inspecting import Inspected, Item, Memory
from oddpatch.demo.sessions import SESSIONS, Session
from oddpatch.demo.worker import Fit
from oddpatch.errors import OddpatchError
from oddpatch.figures.overlay import HIGH, LOW
from oddpatch.wording import counted

BOARDS, OWN = "Circuit boards", "My own images"
#: What is known of images that are uploaded: their labels.
LABELS = {"not known": None, "good": 0, "defective": 1}
#: Pictures of the gallery at a time, and how wide each is in pixels.
PAGE, WIDTH = 24, 156
#: Fewest good images that a threshold can be set on.
FEWEST = 5
#: Images a step of the progress bar stands for; the numbers do not depend on it.
BATCH = 8
#: What the gallery can be narrowed to, and the colour of each verdict.
SHOWN = {
    "Anomalous": {"anomalous", "false alarm"}, "Good": {"good", "missed"}, "Missed": {"missed"},
    "False alarms": {"false alarm"},
}  # fmt: skip
COLORS = {"anomalous": "orange", "good": "green", "missed": "red", "false alarm": "red"}
TRUTH = {0: "good", 1: "defective", None: "not known"}


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
    if server.setting.run is not None:
        _open_run(session, server.setting.run)
    else:
        _set_up(session)
    for line in session.refused:
        st.warning(_plain(line), icon=":material/block:")
    if session.fit is not None:
        _follow(session)
    elif session.detector is not None:
        _inspect(session)
        _results(session)


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
        session.items = [_item(sample) for sample in server.images_of(run)]
    st.caption(_plain(f"Run {run}"))


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
        files = st.file_uploader(
            "Good parts, to learn from", accept_multiple_files=True, disabled=fitting, key="good", help=_limits()
        )
        if st.form_submit_button("Add", icon=":material/add:", disabled=fitting):
            session.good += _take(session, files, "good")
            st.rerun()
    if session.good:
        st.success(f"{counted(len(session.good), 'good image')} to learn from", icon=":material/check:")


def _limits() -> str:
    return (
        f"Up to {uploads.FILES} images of {uploads.FILE_BYTES // 2**20} MB and {uploads.PIXELS // 10**6} megapixels. "
        "They stay on this machine and are removed with the session."
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
    st.markdown(f"**{_plain(session.doing)}**")
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
    kind = sample.defect_type.replace("_", " ")
    return Item(f"{kind} / {sample.path.name}", sample.path, sample.label, kind)


# Inspection


def _inspect(session: Session) -> None:
    with st.expander("Add images to inspect", expanded=not session.items, icon=":material/add_photo_alternate:"):  # noqa: SIM117
        with st.form("parts", clear_on_submit=True, border=False):
            files = st.file_uploader("Images", accept_multiple_files=True, key="parts", help=_limits())
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


def _results(session: Session) -> None:
    found = inspecting.by_score(session.found)
    for one in session.found:
        if "error" in one.record:
            st.warning(_plain(one.record["error"]), icon=":material/block:")
    if not found or session.detector is None:
        return
    threshold = _threshold(session, found)
    _counts(found, threshold)
    _chart(found, threshold)
    span = _span() if found[0].level is not None else (LOW, HIGH)
    _gallery(session, found, threshold, span)


def _threshold(session: Session, found: Sequence[Inspected]) -> float:
    detector = session.detector
    assert detector is not None
    own = detector.image_threshold
    assert own is not None
    scores = [*(one.score for one in found), own, *detector.scorer.calibration.image_scores.tolist()]
    low, high = min(scores), max(scores)
    margin = max((high - low) / 50, 1e-6)
    st.session_state.setdefault("threshold", own)

    def reset() -> None:
        st.session_state.threshold = own

    chosen = st.slider(
        "Threshold: a part with a higher score is called anomalous",
        float(low - margin), float(high + margin), step=float(margin / 10), format="%.4g", key="threshold",
    )  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="center"):
        number = len(detector.scorer.calibration.image_scores)
        st.caption(f"The run's own is {own:.4g}, set on {counted(number, 'good image')}.")
        if chosen != own:
            st.button("Back to it", on_click=reset, type="tertiary", icon=":material/undo:", key="reset")
    return float(chosen)


def _counts(found: Sequence[Inspected], threshold: float) -> None:
    counts = inspecting.confusion(found, threshold)
    defective, good = counts.found + counts.missed, counts.false_alarms + counts.passed
    unknown = [one for one in found if one.item.label is None]
    with st.container(horizontal=True):
        if defective:
            st.metric("Defects found", f"{counts.found} of {defective}", border=True, width=WIDTH)
            st.metric("Defects missed", counts.missed, border=True, width=WIDTH)
        if good:
            st.metric("False alarms", f"{counts.false_alarms} of {good}", border=True, width=WIDTH)
            st.metric("Good parts passed", counts.passed, border=True, width=WIDTH)
        if unknown:
            alarms = sum(one.score > threshold for one in unknown)
            st.metric("Anomalous, truth unknown", f"{alarms} of {len(unknown)}", border=True, width=WIDTH)


def _chart(found: Sequence[Inspected], threshold: float) -> None:
    import altair as alt
    import pandas as pd

    colors = alt.Scale(domain=list(TRUTH.values()), range=["#00796b", "#d84315", "#616161"])
    rows = pd.DataFrame([{"score": one.score, "part": TRUTH[one.item.label], "name": one.item.name} for one in found])
    ticks = (
        alt.Chart(rows)
        .mark_tick(thickness=2, height=26)
        .encode(
            x=alt.X("score:Q", title="score", scale=alt.Scale(zero=False)),
            y=alt.Y("part:N", title=None, sort=list(TRUTH.values())),
            color=alt.Color("part:N", scale=colors, legend=None),
            tooltip=["name", alt.Tooltip("score:Q", format=".4g")],
        )
    )
    line = pd.DataFrame({"score": [threshold]})
    rule = alt.Chart(line).mark_rule(strokeDash=[5, 3], color="#212121").encode(x="score:Q")
    st.altair_chart((ticks + rule).properties(height=alt.Step(36)), key="scores")


def _span() -> tuple[float, float]:
    words = "Colour range: 0.25 is a typical good part, 0.5 the threshold of pixels"
    low, high = st.slider(words, 0.0, 1.0, (LOW, HIGH), 0.025, format="%.3f", key="span")
    return (low, high) if high > low else (low, low + 0.025)


def _gallery(session: Session, found: Sequence[Inspected], threshold: float, span: tuple[float, float]) -> None:
    verdicts = {id(one): inspecting.verdict(one, threshold) for one in found}
    kinds = {kind: verdict for kind, verdict in SHOWN.items() if not verdict.isdisjoint(verdicts.values())}
    offered = ["All", *kinds]
    kind = st.segmented_control("Parts, the most anomalous first", offered, default="All", required=True, key="kind")
    wanted = [one for one in found if verdicts[id(one)] in kinds.get(kind, verdicts.values())]
    pages = -(-len(wanted) // PAGE)
    number = st.pagination(pages, key="page") if pages > 1 else 1
    with st.container(horizontal=True, key="gallery"):
        for one in wanted[(number - 1) * PAGE : number * PAGE]:
            with st.container(width=WIDTH, gap="small"):
                st.image(inspecting.thumbnail(one, span), width=WIDTH, output_format="JPEG", alt=one.item.name)
                verdict = verdicts[id(one)]
                label, key = f":{COLORS[verdict]}[{verdict}] {one.score:.4g}", f"look {session.found.index(one)}"
                if st.button(label, key=key, width="stretch", help=_plain(one.item.name)):
                    _look(session, one, threshold, span)


@st.dialog("One part", width="medium")
def _look(session: Session, one: Inspected, threshold: float, span: tuple[float, float]) -> None:
    assert session.detector is not None
    try:
        look = inspecting.look(session.detector, one.item)
    except OddpatchError as error:
        st.warning(_plain(str(error)))
        return
    found = look.detection
    st.markdown(f"**{_plain(one.item.name)}**")
    with st.container(horizontal=True):
        verdict = "anomalous" if found.score > threshold else "good"
        st.metric("Decision", verdict, width=120)
        st.metric("Score", f"{found.score:.4g}", width=100)
        if found.p_value is not None:
            st.metric("p-value", f"{found.p_value:.3g}", width=100, help="How often a good part scores as high.")
        st.metric("Truth", TRUTH[one.item.label], width=120)
    left, right = st.columns(2)
    left.image(look.image, "image", "stretch", output_format="JPEG")
    if found.normalized_map is None:
        right.caption("This method scores whole images: it gives no heat map.")
    else:
        drawn = inspecting.overlay(look.image, found.normalized_map, found.regions, span)
        right.image(drawn, "heat map, anomalous regions outlined", "stretch", output_format="JPEG")
    if found.regions:
        st.dataframe(
            [
                {"region": number, "left": left, "top": top, "width": wide, "height": high, "pixels": region.area,
                 "peak": round(region.peak, 4)}
                for number, region in enumerate(found.regions, start=1)
                for left, top, wide, high in [region.box]
            ],
            hide_index=True,
        )  # fmt: skip
    _neighbours(session, one)


def _neighbours(session: Session, one: Inspected) -> None:
    assert session.detector is not None
    st.markdown("**Nearest good patches**")
    run = session.detector.run
    assert run is not None, "it was loaded from a run"
    if session.memory is None:
        try:
            session.memory = Memory(run)
        except OddpatchError as error:
            session.memory = str(error).replace(str(run), "This run")
    if isinstance(session.memory, str):
        st.caption(_plain(session.memory))
        return
    names = {upload.path.name: upload.name for upload in session.good}
    for near in session.memory.nearest(one.item.path):
        left, right = st.columns(2)
        left.image(near.patch, f"odd patch, distance {near.distance:.4g}", "stretch", output_format="JPEG")
        there = Path(near.train_image).name
        if near.normal is not None:
            right.image(
                near.normal,
                _plain(f"nearest good patch, in {names.get(there, there)}"),
                "stretch",
                output_format="JPEG",
            )
        else:
            right.caption(_plain(f"Its nearest good patch is in {near.train_image}, which is not on this machine."))


def _plain(text: str) -> str:
    """A text of which Markdown changes nothing: names of files are shown as they are."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()<>#+-.!|:$~&^" else sign for sign in text)


_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="6" fill="#00796b"/>
<path d="M7 7h7v7H7zM18 7h7v7h-7zM7 18h7v7H7z" fill="#fff"/><path d="M18 18h7v7h-7z" fill="#ff7043"/></svg>"""

_STYLE = """<style>
.block-container {padding-top: 2.5rem; max-width: 74rem}
[data-testid="stMetricValue"] {font-size: 1.5rem}
</style>"""
