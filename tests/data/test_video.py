"""Frames of a video file: each is given once, in order, and none that is damaged passes for a picture."""

import random
import struct
from collections import Counter

import av
import numpy as np
import pytest
from narrowing import pixels
from videos import number_of, numbered, write_video

from oddpatch.data.video import Shot, is_video_name, num_frames, read_video
from oddpatch.errors import DataError

FRAMES = 60


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "line.mp4", map(numbered, range(FRAMES)))


def shots_until_error(path):
    shots: list[Shot] = []
    error = None
    try:
        shots.extend(read_video(path))
    except DataError as caught:
        error = str(caught)
    return shots, error


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("b.mkv", "libx264", {"bf": "3"}),  # shown in another order than stored
        ("c.avi", "mjpeg", {}),
        ("d.mov", "mpeg4", {"g": "12"}),
        ("e.ts", "libx264", {"bf": "2"}),
    ],
)
def test_every_frame_once_in_order(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, map(numbered, range(FRAMES)), codec=codec, **options)
    shots = list(read_video(path))
    assert [number_of(shot.image) for shot in shots] == list(range(FRAMES))
    times = np.array([shot.time for shot in shots])
    np.testing.assert_allclose(times - times[0], np.arange(FRAMES) / 25, atol=1e-3)
    assert all(image.dtype == np.uint8 and image.shape == (96, 128, 3) for image in (pixels(it.image) for it in shots))
    assert num_frames(path) in (FRAMES, None)


def test_colours_are_those_of_the_picture(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32], image[32:] = (200, 40, 60), (30, 90, 180)
    path = write_video(tmp_path / "a.mp4", [image] * 3, crf="1")
    for shot in read_video(path):
        assert np.abs(pixels(shot.image).astype(int) - image)[4:28].max() <= 4
        assert np.abs(pixels(shot.image).astype(int) - image)[36:].max() <= 4


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_never_taken_for_a_picture(video, tmp_path, seed):
    data, draw = bytearray(video.read_bytes()), random.Random(seed)
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    for _ in range(6):
        data[draw.randrange(start + (end - start) // 4, end)] ^= 1 << draw.randrange(8)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    shots = list(read_video(path))
    assert len(shots) == FRAMES
    seen = Counter("error" if isinstance(shot.image, DataError) else "picture" for shot in shots)
    assert 0 < seen["error"] < FRAMES
    key_frames, broken = {0, 25, 50}, False
    for number, shot in enumerate(shots):
        if isinstance(shot.image, DataError):
            broken = True
        else:
            assert not broken or number in key_frames  # nothing is predicted from a damaged frame
            broken = False
            assert number_of(shot.image) == number


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("place", [0.0, 0.5])
def test_a_truncated_file_says_so(tmp_path, suffix, place):
    """Cut in a frame, and between two, where FFmpeg takes it for a whole one."""
    whole, path = write_video(tmp_path / "whole.mp4", map(numbered, range(FRAMES)), crf="1"), tmp_path / f"cut{suffix}"
    # The index first, as in recordings for the web: else it is lost, and nothing can be read.
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    with av.open(str(whole)) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert shots_until_error(path)[1] is None
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: packets[40][0] + round(place * packets[40][1])])
    shots, error = shots_until_error(path)
    pictures = [number_of(shot.image) for shot in shots if not isinstance(shot.image, DataError)]
    assert pictures == list(range(40))
    assert error is not None
    assert error.startswith(f"{path}: ends after 1.6")
    assert error.endswith(" s of 2.40 s: copy it again")


def test_files_that_are_no_videos(tmp_path, video):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[:1000])
    # What would have FFmpeg open other files and addresses.
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{video}'\n")
    (tmp_path / "play.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{video}\n#EXT-X-ENDLIST\n")
    for path in (*sorted(tmp_path.glob("*.mp4")), tmp_path / "nowhere.mp4", tmp_path):
        shots, error = shots_until_error(path)
        assert shots == []
        assert error.startswith(f"{path}: cannot be read as a video (")
        assert error.count("\n") == 0


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    assert shots_until_error(path) == ([], f"{path}: holds no video")


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_a_recording_of_a_phone_is_upright(video, tmp_path, angle, turns):
    """The header of a phone's video says how it was held, by a matrix in fixed point."""
    sine, cosine = {90: (1, 0), 180: (0, -1), 270: (-1, 0)}[angle]
    data = bytearray(video.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: what comes before the matrix has 40 bytes
    assert struct.unpack(">9i", data[place : place + 36])[::4] == (1 << 16, 1 << 16, 1 << 30)
    # x' = a x + c y, as the box has it: turned clockwise by the angle for who looks at it.
    struct.pack_into(">9i", data, place, cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    path = tmp_path / "held.mp4"
    path.write_bytes(data)
    plain, held = next(read_video(video)).image, next(read_video(path)).image
    np.testing.assert_array_equal(held, np.rot90(np.asarray(plain), -turns))


def test_names():
    assert all(map(is_video_name, ("a.mp4", "A.MKV", "x/y.avi")))
    assert not any(map(is_video_name, ("a.png", "mp4", "a.mp4.png", "a.m3u8")))
