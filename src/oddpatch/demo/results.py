"""What was found, on the page: the threshold, counts, a chart, and a gallery whose parts open in a dialog."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from oddpatch.demo import inspecting
from oddpatch.demo.inspecting import Inspected, Memory
from oddpatch.demo.sessions import Session
from oddpatch.errors import OddpatchError
from oddpatch.figures.overlay import HIGH, LOW
from oddpatch.wording import counted

#: Pictures of the gallery at a time, and how wide each is in pixels.
PAGE, WIDTH = 24, 156
#: What the gallery can be narrowed to, and the colour of each verdict.
SHOWN = {
    "Anomalous": {"anomalous", "false alarm"}, "Good": {"good", "missed"}, "Missed": {"missed"},
    "False alarms": {"false alarm"},
}  # fmt: skip
COLORS = {"anomalous": "orange", "good": "green", "missed": "red", "false alarm": "red"}
TRUTH = {0: "good", 1: "defective", None: "not known"}


def show_results(session: Session) -> None:
    """Draw what was found, and have the visitor move the threshold."""
    found = inspecting.by_score(session.found)
    with st.container():  # so that what follows stays in its place however many lines there are
        for one in session.found:
            if "error" in one.record:
                st.warning(plain(one.record["error"]), icon=":material/block:")
    if not found or session.detector is None:
        return
    if (little := inspecting.partly_inspected(found, session.detector)) is not None:
        st.warning(plain(little), icon=":material/crop:")
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
            alarms = sum(one.is_anomalous(threshold) for one in unknown)
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
                if st.button(label, key=key, width="stretch", help=plain(one.item.name)):
                    _look(session, one, threshold, span)


@st.dialog("One part", width="medium")
def _look(session: Session, one: Inspected, threshold: float, span: tuple[float, float]) -> None:
    assert session.detector is not None
    try:
        look = inspecting.look(session.detector, one.item)
    except OddpatchError as error:
        st.warning(plain(str(error)))
        return
    found = look.detection
    st.markdown(f"**{plain(one.item.name)}**")
    with st.container(horizontal=True):
        verdict = "anomalous" if one.is_anomalous(threshold) else "good"
        st.metric("Decision", verdict, width=120)
        st.metric("Score", f"{found.score:.4g}", width=100)
        if found.p_value is not None:
            st.metric("p-value", f"{found.p_value:.3g}", width=100, help="How often a good part scores as high.")
        st.metric("Truth", TRUTH[one.item.label], width=120)
    if one.reason is not None:
        st.caption(f"It is anomalous whatever its score: it {one.reason}.")
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
    if session.memory is None:
        try:
            session.memory = Memory(run)
        except OddpatchError as error:
            session.memory = str(error).replace(str(run), "This run")
    if isinstance(session.memory, str):
        st.caption(plain(session.memory))
        return
    names = {upload.path.name: upload.name for upload in session.good}
    for near in session.memory.nearest(one.item.path):
        left, right = st.columns(2)
        left.image(near.patch, f"odd patch, distance {near.distance:.4g}", "stretch", output_format="JPEG")
        there = Path(near.train_image).name
        if near.normal is not None:
            right.image(
                near.normal,
                plain(f"nearest good patch, in {names.get(there, there)}"),
                "stretch",
                output_format="JPEG",
            )
        else:
            right.caption(plain(f"Its nearest good patch is in {near.train_image}, which is not on this machine."))


def plain(text: str) -> str:
    """A text of which Markdown changes nothing: names of files are shown as they are."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()<>#+-.!|:$~&^" else sign for sign in text)
