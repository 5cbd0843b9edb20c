import gzip
import hashlib
import http.server
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pullback import datasets
from pullback.datasets import Dataset, RemoteFile

DATA = os.environ.get("PULLBACK_DATA")


def idx(array: np.ndarray) -> bytes:
    """The idx .gz file of an array of bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


IMAGES = np.arange(6 * 2 * 3).reshape(6, 2, 3) * 7
LABELS = np.array([0, 1, 2, 0, 1, 3])


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(IMAGES))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(LABELS))
    return folder


@pytest.fixture
def small_mnist(monkeypatch, tmp_path):
    """MNIST replaced by a tiny one with checksums of its own, no mirrors, an empty cache; gives the four files."""
    contents = {}
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pair = []
        for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            name, content = f"{prefix}-{kind}-ubyte.gz", idx(array)
            contents[name] = content
            pair.append(RemoteFile(name, len(content), hashlib.sha256(content).hexdigest()))
        files[split] = tuple(pair)
    monkeypatch.setitem(datasets.FILES, "mnist", files)
    monkeypatch.setitem(datasets.MIRRORS, "mnist", ())
    monkeypatch.delenv("PULLBACK_DATA", raising=False)
    monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path / "cache"))
    return contents


class Server(http.server.ThreadingHTTPServer):
    """A server on localhost; ``pages`` maps paths to bodies, or to a pair of a body and the length it claims."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes | tuple[bytes, int]] = {}
        self.asked: list[str] = []

    def mirror(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        body, length = page if isinstance(page, tuple) else (page, len(page))
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


CONTENT = bytes(range(256)) * 1000
FILE = RemoteFile("file.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_a_file_is_downloaded_whole(server, tmp_path):
    server.pages["/good/file.bin"] = CONTENT
    datasets.download(FILE, [server.mirror("good")], tmp_path / "new" / "file.bin")
    assert (tmp_path / "new" / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (None, "404"),
        (CONTENT[:-1] + b"x", "has SHA-256 .* wanted"),
        (CONTENT[:1000], "has 1000 bytes, wanted 256000"),
        ((CONTENT[:1000], len(CONTENT)), "has 1000 bytes, wanted 256000|IncompleteRead"),
        (CONTENT * 3, "bytes, wanted 256000"),
    ],
    ids=["missing", "corrupted", "truncated", "connection lost", "too long"],
)
def test_a_bad_mirror_leaves_nothing_behind_and_the_next_one_is_tried(server, tmp_path, page, reason):
    if page is not None:
        server.pages["/bad/file.bin"] = page
    path = tmp_path / "out" / "file.bin"
    with pytest.raises(ConnectionError, match=reason) as raised:
        datasets.download(FILE, [server.mirror("bad")], path)
    assert "by hand" in str(raised.value)
    assert not path.parent.exists()
    server.pages["/good/file.bin"] = CONTENT
    datasets.download(FILE, [server.mirror("bad"), server.mirror("good")], path)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["/bad/file.bin", "/bad/file.bin", "/good/file.bin"]


def test_a_mirror_that_sends_without_end_is_cut_off(server, tmp_path):
    small = RemoteFile("file.bin", 10, hashlib.sha256(b"0123456789").hexdigest())
    server.pages["/long/file.bin"] = CONTENT * 20
    with pytest.raises(ConnectionError) as raised:
        datasets.download(small, [server.mirror("long")], tmp_path / "file.bin")
    assert "has 65536 bytes, wanted 10" in str(raised.value)


def test_mirrors_that_cannot_be_reached_are_all_named(tmp_path):
    with Server() as gone:
        address = gone.mirror("x")
    with pytest.raises(ConnectionError) as raised:
        datasets.download(FILE, [address, "no address/"], tmp_path / "file.bin")
    assert address in str(raised.value)
    assert "no address/file.bin" in str(raised.value)
    assert "PULLBACK_DATA" in str(raised.value)


def test_an_interrupted_download_leaves_nothing_behind(server, tmp_path, monkeypatch):
    server.pages["/good/file.bin"] = CONTENT

    class Interrupted(datasets.files.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(datasets.files, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.download(FILE, [server.mirror("good")], tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


def test_a_download_shows_its_progress_on_request_and_nothing_otherwise(server, tmp_path, capfd):
    server.pages["/good/file.bin"] = CONTENT
    datasets.download(FILE, [server.mirror("good")], tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    datasets.download(FILE, [server.mirror("good")], tmp_path / "b", progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "file.bin" in shown.err


def test_mnist_is_downloaded_once_into_the_cache(small_mnist, server, tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.MIRRORS, "mnist", (server.mirror("m"),))
    server.pages |= {f"/m/{name}": content for name, content in small_mnist.items()}
    for _ in range(2):
        data = datasets.mnist()
        assert torch.equal(data.labels, torch.from_numpy(LABELS))
    assert server.asked == ["/m/train-images-idx3-ubyte.gz", "/m/train-labels-idx1-ubyte.gz"]
    cached = sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir())
    assert cached == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def test_a_damaged_file_in_the_cache_is_replaced(small_mnist, server, tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.MIRRORS, "mnist", (server.mirror("m"),))
    server.pages |= {f"/m/{name}": content for name, content in small_mnist.items()}
    datasets.mnist("test")
    damaged = tmp_path / "cache" / "mnist" / "t10k-images-idx3-ubyte.gz"
    damaged.write_bytes(b"damaged")
    datasets.mnist("test")
    assert damaged.read_bytes() == small_mnist[damaged.name]


def test_files_in_pullback_data_are_preferred_and_checked(small_mnist, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name, content in small_mnist.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("PULLBACK_DATA", str(tmp_path / "data"))
    assert len(datasets.mnist()) == 6
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(small_mnist["train-labels-idx1-ubyte.gz"] + b" ")
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz has \d+ bytes, wanted \d+"):
        datasets.mnist()
    flipped = bytearray(small_mnist["train-labels-idx1-ubyte.gz"])
    flipped[-9] ^= 1
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(flipped)
    with pytest.raises(ValueError, match=r"has SHA-256 .* wanted .*delete it"):
        datasets.mnist()


def test_without_files_and_mirrors_the_error_says_where_to_put_them(small_mnist, tmp_path):
    with pytest.raises(ConnectionError, match=r"train-images-idx3-ubyte\.gz could not be downloaded") as raised:
        datasets.mnist()
    assert str(tmp_path / "cache" / "mnist") in str(raised.value)


@pytest.mark.parametrize(
    ("cache", "xdg", "expected"), [("/c", "/x", "/c"), ("", "/x", "/x/pullback"), ("", "", "~/.cache/pullback")]
)
def test_the_cache_folder_can_be_chosen(monkeypatch, cache, xdg, expected):
    monkeypatch.setenv("PULLBACK_CACHE", cache)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert datasets.files.cache() == Path(expected).expanduser()


def test_images_are_flattened_and_scaled_to_one(root):
    data = datasets.mnist(root=root)
    assert data.sample_shape == (2, 3)
    assert data.samples.dtype == torch.float32
    assert torch.equal(data.samples, torch.from_numpy(IMAGES.reshape(6, 6) % 256).float() / 255)
    assert data.labels.dtype == torch.int64


def test_chosen_classes_are_kept_in_the_order_of_the_file(root):
    data = datasets.fashion_mnist("test", classes=(2, 0), root=root)
    assert data.labels.tolist() == [0, 2, 0]
    assert torch.equal(data.samples, datasets.fashion_mnist("test", root=root).samples[[0, 2, 3]])


@pytest.mark.parametrize("classes", [(0, 7), ("a",), ()])
def test_an_unknown_class_is_refused(root, classes):
    with pytest.raises(ValueError, match=r"`classes` is .*: wanted some of 0, 1, 2, 3"):
        datasets.mnist(classes=classes, root=root)


def test_an_unknown_split_is_refused(root):
    with pytest.raises(ValueError, match="`split` is 'dev': wanted one of train, test"):
        datasets.mnist("dev", root=root)


def test_a_file_missing_in_the_given_folder_is_named(root):
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"`root` .* has no file t10k-labels-idx1-ubyte.gz"):
        datasets.mnist("test", root=root)


GOOD = idx(IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-12], "not an intact .gz file"),
        (GOOD[:20] + bytes([GOOD[20] ^ 255]) + GOOD[21:], "not an intact .gz file"),
        (b"not compressed at all", "not an intact .gz file"),
        (gzip.compress(b"\x00\x00\x0d\x01" + bytes(8)), "starts with 00000d01: wanted the magic number"),
        (gzip.compress(b"\x00\x00\x08\x00"), "wanted the magic number"),
        (gzip.compress(b"\x00"), "wanted the magic number"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x05abc"), r"has 3 bytes of data: wanted 5 for shape \(5,\)"),
        (idx(IMAGES[:5]), r"images of mnist have shape \(5, 2, 3\), the labels \(6,\)"),
    ],
    ids=["truncated", "corrupted", "no gz", "other type", "no axes", "too short", "data missing", "other number"],
)
def test_a_bad_idx_file_is_one_clear_error(root, content, message):
    (root / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        datasets.mnist(root=root)


def test_digits_are_embedded_and_lie_in_the_unit_interval():
    data = datasets.digits()
    assert data.samples.shape == (1797, 64)
    assert data.sample_shape == (8, 8)
    assert (float(data.samples.min()), float(data.samples.max())) == (0.0, 1.0)
    assert sorted(data.labels.unique().tolist()) == list(range(10))


def test_rows_of_a_data_set_keep_their_labels():
    data = datasets.digits()
    part = data[data.labels == 3]
    assert len(part) == int((data.labels == 3).sum())
    assert set(part.labels.tolist()) == {3}
    assert Dataset(data.samples, None, (8, 8), "x")[:5].labels is None


X = torch.zeros(4, 6)


@pytest.mark.parametrize(
    ("samples", "labels", "shape", "message"),
    [
        (torch.zeros(4, 2, 3), None, (2, 3), r"`samples` has shape \(4, 2, 3\)"),
        (X.double(), None, (6,), "dtype torch.float64"),
        (X[:0], None, (6,), r"\(0, 6\)"),
        (X, torch.zeros(3, dtype=torch.int64), (6,), r"`labels` has shape \(3,\)"),
        (X, torch.zeros(4), (6,), "`labels` has .* dtype torch.float32"),
        (X, None, (2, 2), r"`sample_shape` is \(2, 2\): wanted a shape of 6 numbers"),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(samples, labels, shape, message):
    with pytest.raises(ValueError, match=message):
        Dataset(samples, labels, shape, "bad")


def test_an_npy_file_gives_samples_of_any_shape(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 3, 2))
    np.save(tmp_path / "walk.npy", array)
    data = datasets.from_file(tmp_path / "walk.npy")
    assert torch.equal(data.samples, torch.from_numpy(array).float().flatten(1))
    assert (data.sample_shape, data.labels, data.name) == ((3, 2), None, "walk")


@pytest.mark.parametrize("key", ["samples", "x", "data", "anything"])
@pytest.mark.parametrize("label_key", ["labels", "y"])
def test_an_npz_file_gives_samples_and_labels(tmp_path, key, label_key):
    others = {} if key == "anything" else {"other": np.zeros(3)}
    np.savez(tmp_path / "a.npz", **{key: np.ones((4, 2)), label_key: np.array([3, 1, 2, 0])}, **others)
    data = datasets.from_file(str(tmp_path / "a.npz"))
    assert torch.equal(data.samples, torch.ones(4, 2))
    assert data.labels.tolist() == [3, 1, 2, 0]


def test_bytes_are_taken_as_pixels_and_other_numbers_keep_their_values(tmp_path):
    for dtype, expected in ((np.uint8, 200 / 255), (np.int32, 200.0), (np.float16, 200.0)):
        np.save(tmp_path / "a.npy", np.full((2, 2), 200, dtype))
        assert torch.equal(datasets.from_file(tmp_path / "a.npy").samples, torch.full((2, 2), expected))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1.0, np.nan], [0, 1]]), r"NaN, inf .* in 1 of 2 samples \(first: sample 0\)"),
        (np.array([[1.0, 1], [0, np.inf]]), "first: sample 1"),
        (np.array([[1e300, 1]]), "too large for float32"),
        (np.zeros((0, 3)), "at least one sample"),
        (np.zeros((3, 0)), "at least one number"),
        (np.zeros(3), r"shape \(3,\): wanted \(n, ...\)"),
        (np.array(3.0), r"shape \(\)"),
        (np.zeros((2, 2), complex), "dtype complex128: wanted real numbers"),
        (np.array([["a"]]), "wanted real numbers"),
    ],
)
def test_samples_that_are_no_finite_real_numbers_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        datasets.from_file(tmp_path / "a.npy")


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.zeros((4, 1), int), np.zeros(4), np.array(list("abcd"))])
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=labels)
    with pytest.raises(ValueError, match=r"the labels of .* wanted whole numbers of shape \(4,\)"):
        datasets.from_file(tmp_path / "a.npz")


def test_a_pickled_file_is_refused_and_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match="holds pickled objects; save plain numbers"):
            datasets.from_file(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_truncated_or_corrupted_file_is_one_clear_error(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    np.savez_compressed(path, x=np.ones((40, 40))) if suffix == "npz" else np.save(path, np.ones((40, 40)))
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:60], b"", b"garbage" * 20, whole[:100] + b"####" + whole[104:]):
        if content[:100] == whole[:100] and len(content) == len(whole) and suffix == "npy":
            continue  # an npy file has no checksum: four bytes of its header or numbers are simply others
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            datasets.from_file(path)


@pytest.mark.parametrize("arrays", [{"a": np.ones((2, 2)), "b": np.ones((2, 2))}, {}])
def test_an_npz_file_without_a_clear_array_of_samples_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"holds the arrays (a, b|none): wanted one, or one named samples, x, data"):
        datasets.from_file(tmp_path / "a.npz")


def test_a_file_of_another_kind_or_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        datasets.from_file(tmp_path / "a.npy")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"wanted a \.npy or \.npz file"):
        datasets.from_file(tmp_path / "a.csv")


@pytest.mark.skipif(not DATA, reason="needs the real files: set PULLBACK_DATA to the folder that holds them")
@pytest.mark.parametrize(
    ("load", "counts"),
    [
        (datasets.mnist, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        (datasets.fashion_mnist, [6000] * 10),
    ],
)
def test_the_real_files_have_the_published_numbers_of_images(load, counts):
    data = load()
    assert data.labels.bincount().tolist() == counts
    assert data.samples.shape == (60000, 784)
    assert len(load("test")) == 10000
    if load is datasets.mnist:
        assert float(255 * data.samples.double().mean()) == pytest.approx(33.318421, abs=1e-4)
