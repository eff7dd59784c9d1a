"""The server: what it answers, what it refuses, and that nothing a stranger sends breaks it or is kept."""

import base64
import contextlib
import dataclasses
import io
import json
import re
import socket
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

httpx, uvicorn, _ = map(pytest.importorskip, ("httpx", "uvicorn", "starlette"))
from starlette.exceptions import HTTPException  # noqa: E402

from benchmarks.tools.hostile import HONEST, HOSTILE, JPEG, MEGABYTES, MEGAPIXELS, encoded, noise, with_scans  # noqa: E402
from pipelines import formats  # noqa: E402
from pipelines.drawn.birds import Birds, BirdsConfig  # noqa: E402
from pipelines.files import write_json  # noqa: E402
from pipelines.places import Place  # noqa: E402
from rg import __version__  # noqa: E402
from rg.config import PlaceConfig  # noqa: E402
from rg.explain.explainer import Explainer  # noqa: E402
from rg.model.region_grouping import RegionGroupingModel  # noqa: E402
from rg.runs.folder import Classes  # noqa: E402
from rg.runs.part_names import Part  # noqa: E402
from rg.server import protocol  # noqa: E402
from rg.server.app import application  # noqa: E402
from rg.server.drawing import part_map  # noqa: E402
from rg.server.headers import HEADERS  # noqa: E402
from rg.server.limits import Limits  # noqa: E402
from rg.server.protocol import Protocol  # noqa: E402
from rg.server.samples import Sample, samples  # noqa: E402
from rg.server.uploads import MAX_SCANS, decode, scans  # noqa: E402
from tests.support.miniature_run import CONFIG  # noqa: E402

NAMES = ("wren", "robin", "jay")
PARTS = (Part(0, "part 0", False), Part(1, "crown", False, True), Part(2, "part 2", True), Part(3, "part 3", False))
LIMITS = Limits(megabytes=MEGABYTES, megapixels=MEGAPIXELS, side=200, upload_seconds=30, answer_seconds=30)


def make():
    torch.manual_seed(0)
    return Explainer(RegionGroupingModel(CONFIG.model, 3), CONFIG, Classes(NAMES), torch.device("cpu"), PARTS)


@contextlib.contextmanager
def served(explainer, limits=LIMITS, hosts=("127.0.0.1",), **shown):
    """The address of a real server of a model."""
    app = application(explainer, "birds", hosts, limits, **shown)
    server = uvicorn.Server(uvicorn.Config(app, http=Protocol, ws="none", log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def explainer():
    return make()


@pytest.fixture(scope="module")
def server(explainer):
    with served(explainer) as address:
        yield address


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("form", [False, True])
def test_hostile_files_are_refused_in_a_line(client, kind, form):
    content, status = HOSTILE[kind]
    sent = {"files": {"file": ("../../etc/passwd", content, "image/jpeg")}} if form else {"content": content}
    answer = client.post("/explain", **sent)
    assert answer.status_code == status
    if status != 200:
        assert list(answer.json()) == ["error"]
        assert 0 < len(answer.json()["error"]) < 200
        assert not re.search(r"Traceback|/|\b0x|\.py", answer.text)
    assert client.post("/explain", content=JPEG).status_code == 200


@pytest.mark.parametrize("kind", HONEST)
def test_honest_files_are_explained(client, kind):
    answer = client.post("/explain", content=HONEST[kind], params={"pictures": "true"}, headers={"content-type": "x/y"})
    assert answer.status_code == 200
    payload = answer.json()
    assert payload["label"] in NAMES
    total = sum(part["contribution"] for part in payload["parts"]) + payload["constant"]
    assert total == pytest.approx(payload["logit"], abs=1e-4)
    parts = payload["pictures"]["part_map"]
    assert sum(parts["runs"][1::2]) == parts["width"] * parts["height"]
    assert max(payload["width"], payload["height"]) <= LIMITS.side


def test_the_answer_is_that_of_the_explainer(client, explainer):
    image = Image.open(io.BytesIO(JPEG))
    expected = explainer.explain(image, top_k=3, versus="jay")
    files = {"file": ("photos/of mine/wren.jpg", JPEG)}
    payload = client.post("/explain", files=files, params={"top_k": 3, "versus": "jay", "pictures": "true"}).json()
    drawn, choices = payload.pop("pictures"), payload.pop("choices")
    assert choices == json.loads(json.dumps(expected.choices.to_dict()))
    assert payload == json.loads(json.dumps(expected.to_dict())) | {"source": "wren.jpg"}
    for name in ("photo", "attribution"):
        kind, content = drawn[name].split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.size == image.size
    parts = drawn["part_map"]
    unrolled = np.repeat(parts["runs"][::2], parts["runs"][1::2]).reshape(parts["height"], parts["width"])
    assert (unrolled == part_map(expected)).all()
    # Both are the same assignment, up-sampled to different sizes: they agree but for spots on an edge.
    small = Image.fromarray(unrolled.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    assert (np.asarray(small) == expected.parts[0].strongest).mean() > 0.97


def test_a_turned_photo_is_upright(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    payload = client.post("/explain", content=encoded(noise(90, 70), exif=exif)).json()
    assert (payload["width"], payload["height"]) == (70, 90)


def test_the_picture_is_a_png(client):
    answer = client.post("/explain", content=JPEG, params={"format": "png"})
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).height > 300


@pytest.mark.parametrize(
    "query,message",
    [
        ({"top_k": "0"}, "top_k: expected 1 to 1000, got '0'"),
        ({"top_k": "9" * 5000}, "top_k: expected"),
        ({"top_k": "000000001" + "0" * 5000}, "top_k: expected"),
        ({"versus": "kite"}, "versus: expected one of the 3 classes, got 'kite'"),
        ({"pictures": "yes"}, "pictures: expected true or false, got 'yes'"),
        ({"format": "gif"}, "format: expected json or png, got 'gif'"),
        ({"view": "input"}, "view: expected one of auto, whole, crop, got 'input'"),
        (
            {"crop": "true"},
            "query: expected date, format, latitude, longitude, pictures, top_k, versus, view, got 'crop'",
        ),
    ],
)
def test_questions_that_cannot_be_asked(client, query, message):
    answer = client.post("/explain", params=query, content=JPEG)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)


def form(*parts, boundary=b"x"):
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


FILE = b'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + JPEG
FIELD = b'Content-Disposition: form-data; name="a"\r\n\r\nb'


@pytest.mark.parametrize(
    "body",
    [
        form(FILE, FILE),
        form(FIELD),
        form(*[FIELD] * 1000, FILE),
        form(FILE)[:-30],
        form(FILE, boundary=b"y"),
        b"--x\r\n" + b"A" * 100000,
        form(*[b"A: b\r\n" * 1000 + FILE]),
        b"",
    ],
    ids=["two files", "no file", "many fields", "cut", "other boundary", "no line", "many headers", "nothing"],
)
def test_forms_that_are_none(client, body):
    answer = client.post("/explain", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_form_without_a_boundary(client):
    answer = client.post("/explain", content=form(FILE), headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400


def test_size_is_checked_while_it_comes(server):
    """Without a Content-Length; the answer comes although the sender has not finished."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sender:
        sender.sendall(b"POST /explain HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(40):
            sender.sendall(piece)
        sender.sendall(b"0\r\n\r\n")
        assert b" 413 " in sender.recv(1000).splitlines()[0]


def test_a_slow_sender_is_told_to_leave(explainer):
    with served(explainer, Limits(upload_seconds=1)) as address:
        host, port = address.removeprefix("http://").split(":")
        start = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=20) as sender:
            sender.sendall(b"POST /explain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nab")
            assert b" 408 " in sender.recv(1000).splitlines()[0]
        assert time.monotonic() - start >= 1


def test_whoever_comes_when_the_queue_is_full_is_told_when_to_come_again(explainer):
    started, release = threading.Event(), threading.Event()

    class Slow:
        def __getattr__(self, name):
            return getattr(explainer, name)

        def explain(self, *arguments, **options):
            started.set()
            release.wait(20)
            return explainer.explain(*arguments, **options)

    with served(Slow(), Limits(waiting=1)) as address, httpx.Client(base_url=address, timeout=60) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client.post("/explain", content=JPEG)))
        first.start()
        assert started.wait(20)
        answer = client.post("/explain", content=JPEG)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200  # the server itself is not held up
        release.set()
        first.join()
        assert [answer.status_code for answer in answers] == [200]
        assert client.post("/explain", content=JPEG).status_code == 200


def test_who_gives_up_still_counts_until_the_thread_is_done(explainer):
    release = threading.Event()

    class Slow:
        def __getattr__(self, name):
            return getattr(explainer, name)

        def explain(self, *arguments, **options):
            release.wait(20)
            return explainer.explain(*arguments, **options)

    limits = Limits(waiting=2, answer_seconds=0.5)
    with served(Slow(), limits) as address, httpx.Client(base_url=address, timeout=60) as client:
        try:
            for _ in range(2):  # one in the thread, one behind it
                answer = client.post("/explain", content=JPEG)
                assert (answer.status_code, answer.json()) == (504, {"error": "the answer took too long"})
            assert client.post("/explain", content=JPEG).status_code == 503
        finally:
            release.set()
        until = time.monotonic() + 20
        while (answer := client.post("/explain", content=JPEG)).status_code in (503, 504) and time.monotonic() < until:
            time.sleep(0.05)
        assert answer.status_code == 200


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", REQUEST[:30], REQUEST + b"GET"])
def test_who_connects_and_does_not_ask_is_hung_up_on(server, monkeypatch, sent):
    # Where there is an answer, it comes before the end.
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 2 if sent.startswith(REQUEST) else 0.3)
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as idle:
        idle.sendall(sent)
        answer = b""
        while piece := idle.recv(1000):
            answer += piece
    assert answer.count(b" 200 OK") == sent.count(b"\r\n\r\n")


def test_many_at_once_get_their_own_answers(server, explainer):
    images = [encoded(noise(40 + n, 50), "PNG") for n in range(16)]
    expected = [explainer.explain(Image.open(io.BytesIO(image))).logit for image in images]
    answers = {}

    def ask(n):
        answers[n] = httpx.post(f"{server}/explain", content=images[n], timeout=60).json()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[n]["logit"] for n in range(16)] == pytest.approx(expected, abs=1e-5)
    assert [answers[n]["width"] for n in range(16)] == list(range(40, 56))


def test_only_names_of_the_server_are_answered(client):
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost:80"):
        answer = client.get("/model", headers={"host": host})
        assert answer.status_code == 400
        assert "wren" not in answer.text
    answer = client.post("/explain", content=JPEG, headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/model", "/healthz", "/nothing", "/explain"])
def test_every_answer_is_guarded(client, path):
    answer = client.get(path)
    assert answer.status_code == {"/nothing": 404, "/explain": 405}.get(path, 200)
    for name, value in HEADERS.items():
        assert answer.headers.get_list(name) == [value]
    assert "'unsafe" not in answer.headers["content-security-policy"]


def test_the_model_tells_what_it_knows(client):
    payload = client.get("/model").json()
    assert (payload["name"], payload["version"], payload["classes"]) == ("birds", __version__, list(NAMES))
    assert [(part["name"], part["background"]) for part in payload["parts"]] == [(p.name, p.background) for p in PARTS]
    assert payload["short_side"] == 64
    assert payload["limits"]["megabytes"] == LIMITS.megabytes


def test_nothing_is_written(server, monkeypatch, tmp_path):
    """Not even a large upload, which would usually be spooled to a temporary file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there is none"))
    photo = encoded(noise(700, 700), "PNG")
    assert len(photo) > 2**20
    assert httpx.post(f"{server}/explain", files={"file": ("a.png", photo)}, timeout=30).status_code == 200


def test_scans_are_those_that_a_decoder_reads():
    assert scans(JPEG) == 1
    assert scans(with_scans(3)) == scans(encoded(noise(64, 64), progressive=True)) + 2
    assert scans(JPEG + b"\xff\xda" * 1000) == 1  # what follows the end does not count
    assert scans(encoded(noise(9, 9), "PNG")) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scans(b"\xff\xd8" + b"\xff" * 1000) == 0
    jpeg = with_scans(MAX_SCANS + 1)
    last = jpeg.rindex(b"\xff\xda")
    assert scans(jpeg[:last] + b"\xff\x01" + jpeg[last:]) > MAX_SCANS  # TEM has no length that could hide a scan


def test_scans_are_counted_in_one_pass():
    """A search that starts over at each of 20 million bytes would not end today."""
    assert scans(b"\xff\xd8" + b"\xff" * 20_000_000) == 0


def test_the_limits_of_pixels_are_ours_and_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow raises at twice as many
    png = encoded(noise(90, 70), "PNG")
    assert decode(png, LIMITS).shape == (70, 90, 3)
    for limits, megapixels in ((Limits(megapixels=0.006), "0.006"), (Limits(megapixels=0.0001), "0.0001")):
        with pytest.raises(HTTPException, match=f"expected at most {megapixels} megapixels, got 90x70") as caught:
            decode(png, limits)
        assert caught.value.status_code == 413
    monkeypatch.setattr(formats, "MAX_PIXELS", 2 * 10**6)
    large = encoded(Image.new("L", (2000, 1001)), "PNG")
    with pytest.raises(HTTPException, match="expected at most 2 megapixels, got 2000x1001") as caught:
        decode(large, Limits())  # which allow more than can be decoded
    assert caught.value.status_code == 413


@pytest.mark.parametrize("name", ["megabytes", "megapixels", "side", "waiting", "upload_seconds", "answer_seconds"])
def test_limits_are_limits(name):
    with pytest.raises(ValueError, match=rf"limits\.{name}: expected more than 0, got 0"):
        Limits(**{name: 0})


def test_samples_are_test_images_of_a_drawn_data_set(tmp_path):
    options = {"species": 4, "size": 64, "seed": 5, "absent": 0.0, "train": 2, "version": "0.1.0"}
    birds = Birds(BirdsConfig(species=4, size=64, seed=5, absent=0.0), "test", 1)
    classes = Classes(tuple(birds.class_names))
    write_json(tmp_path / "run.json", {"data": {"dataset": "birds", "options": options, "shards": []}})
    drawn = samples(tmp_path, classes)
    assert [sample.label for sample in drawn] == [birds.class_names[index] for index in (0, 1, 2)]
    assert [sample.jpeg for sample in drawn] == [birds[index].jpeg for index in (0, 1, 2)]
    assert samples(tmp_path, Classes(NAMES)) == ()  # other birds that happen to be called so
    write_json(tmp_path / "run.json", {"data": {"dataset": "folder", "options": {}, "shards": []}})
    assert samples(tmp_path, classes) == ()
    (tmp_path / "run.json").unlink()
    assert samples(tmp_path, classes) == ()
    write_json(tmp_path / "run.json", {"data": {"dataset": "birds", "options": {"species": 999}, "shards": []}})
    with pytest.raises(ValueError, match=r"run\.json: data\.options: species: expected 2 to 500, got 999"):
        samples(tmp_path, classes)


def test_samples_are_handed_out(explainer):
    shown = [Sample("wren", JPEG), Sample("jay", JPEG[:-1])]
    with served(explainer, samples=shown) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/model").json()["samples"] == ["wren", "jay"]
        answer = client.get("/samples/1")
        assert (answer.content, answer.headers["content-type"]) == (JPEG[:-1], "image/jpeg")
        assert all(answer.headers[name] == value for name, value in HEADERS.items())
        for path in ("2", "-1", "x"):
            assert client.get(f"/samples/{path}").status_code == 404


def heic(image):
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(image).save(buffer)
    return buffer.getvalue()


def test_what_is_accepted_is_told_as_it_is_enforced(client):
    payload = client.get("/model").json()
    assert payload["limits"]["megapixels"] == LIMITS.megapixels
    assert {"JPEG", "PNG", "GIF", "TIFF", "WEBP"} <= set(payload["formats"])
    for name in payload["formats"]:
        content = heic(noise(20, 20)) if name == "HEIF" else encoded(noise(20, 20), name)
        assert client.post("/explain", content=content).status_code == 200
    assert client.post("/explain", content=encoded(noise(20, 20), "ICO")).status_code == 400


def test_a_model_that_knows_of_places_is_told_some():
    config = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, place=PlaceConfig(on=True, width=8, blocks=1))
    )
    torch.manual_seed(0)
    model = RegionGroupingModel(config.model, 3)
    torch.nn.init.normal_(model.place.last.weight)
    explainer = Explainer(model, config, Classes(NAMES), torch.device("cpu"), PARTS)
    with served(explainer) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert client.get("/model").json()["places"] is True
        told = {"latitude": "-33.9", "longitude": "151.2", "date": "2017-06-21"}
        found = client.post("/explain", params=told, content=JPEG).json()
        expected = explainer.explain(Image.open(io.BytesIO(JPEG)), place=Place(-33.9, 151.2, 172))
        assert found["place"] == json.loads(json.dumps(expected.to_dict()))["place"]
        assert found["place"]["contribution"] != 0
        assert client.post("/explain", content=JPEG).json()["place"] is None
        for query, message in (
            ({"latitude": "91", "longitude": "0"}, "latitude: expected -90 to 90 degrees, got 91"),
            ({"date": "June"}, "date: expected YYYY-MM-DD, got 'June'"),
        ):
            answer = client.post("/explain", params=query, content=JPEG)
            assert (answer.status_code, answer.json()["error"]) == (400, message)


def test_a_model_that_knows_of_none_refuses_them(client):
    assert client.get("/model").json()["places"] is False
    answer = client.post("/explain", params={"date": "2017-06-21"}, content=JPEG)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("place: expected None, as the run was trained without places")
