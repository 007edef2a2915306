"""Image folders: which files are read, what becomes of each kind, held in memory and streamed."""

import errno
import io
import itertools
import os
import re
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from margin_jax.data import folder, load_dataset
from margin_jax.data.decode import Reading
from margin_jax.data.images import StreamedImages, load_images

SIZE = (20, 10)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def plain(mode, value, form="PNG", **options):
    return encoded(Image.new(mode, SIZE, value), form, **options)


def save(path, value=100, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plain(mode, value))


def noise(form, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return encoded(Image.fromarray(pixels), form, **options)


def numbers(dtype, value, form="PNG"):
    return encoded(Image.fromarray(np.full(SIZE, value, dtype)), form)


def palette(**options):
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encoded(image, "PNG", **options)


def pictures(form, **options):
    first, second = (Image.new("RGB", SIZE, colour) for colour in ("#c86432", "#00ff00"))
    return encoded(first, form, save_all=True, append_images=[second], **options)


def png(width, height, depth, colour, rows=b""):
    """A PNG file by hand, for what Pillow does not write."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def without_size(data, start, length):
    return data[:start] + bytes(length) + data[start + length :]


RGB = [200, 100, 50]
JPEG = noise("JPEG")
# The bytes of a file; the channels of all its pixels, or why it is skipped.
FILES = {
    "1 bit.png": (plain("1", 1), [255]),
    "grey.png": (plain("L", 77), [77]),
    "grey and opaque.png": (plain("LA", (77, 255)), [77]),
    "grey and transparent.png": (plain("LA", (77, 0)), [255]),
    "grey and half transparent.png": (plain("LA", (55, 51)), [215]),
    "a grey is transparent.png": (plain("L", 77, transparency=77), [255]),
    "16 bits.png": (numbers(np.uint16, 0x8080), [0x80]),
    "16 bits, bright.png": (numbers(np.uint16, 0xFF00), [0xFF]),
    "16 bits.tif": (numbers(np.uint16, 0x80FF, "TIFF"), [0x80]),
    "16 bits.pgm": (b"P5 1 1 65535\n\x80\x80", [0x80]),
    "rgb.webp": (plain("RGB", (200, 100, 50), "WEBP", lossless=True), RGB),
    "rgba.png": (plain("RGBA", (200, 100, 50, 255)), RGB),
    "transparent.png": (plain("RGBA", (200, 100, 50, 0)), [255] * 3),
    "transparent.webp": (plain("RGBA", (0, 0, 0, 0), "WEBP", lossless=True), [255] * 3),
    "a colour is transparent.png": (plain("RGB", (9, 8, 7), transparency=(9, 8, 7)), [255] * 3),
    "rgb of 16 bits.png": (png(1, 1, 16, 2, b"\0\xc8\xc8\x64\x64\x32\x32"), RGB),
    "palette.png": (palette(), [10, 20, 30]),
    "one colour is transparent.png": (palette(transparency=1), [255] * 3),
    "each colour has its alpha.png": (palette(transparency=b"\0\x33"), [206, 208, 210]),
    "another colour is transparent.png": (palette(transparency=0), [10, 20, 30]),
    "rgb.jpg": (plain("RGB", (200, 100, 50), "JPEG"), RGB),
    "progressive.jpg": (plain("RGB", (200, 100, 50), "JPEG", progressive=True), RGB),
    "cmyk.jpg": (plain("CMYK", (55, 155, 205, 0), "JPEG"), RGB),
    "rgb.jfif": (plain("RGB", (200, 100, 50), "JPEG"), RGB),
    "rgb.jpe": (plain("RGB", (200, 100, 50), "JPEG"), RGB),
    "a jpeg.png": (plain("RGB", (200, 100, 50), "JPEG"), RGB),
    "no ending": (plain("L", 77), [77]),
    "of a camera.20240101": (plain("L", 77), [77]),
    "grey.jp2": (plain("L", 77, "JPEG2000"), [77]),
    "grey.tga": (plain("L", 77, "TGA"), [77]),
    "grey.pcx": (plain("L", 77, "PCX"), [77]),
    "animation.gif": (pictures("GIF"), RGB),
    "animation.png": (pictures("PNG"), RGB),
    "animation.webp": (pictures("WEBP", lossless=True), RGB),
    "another program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "another program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "of a telephone.heic": (b"\0\0\0\x18ftypheic" + bytes(99), r"margin-jax\[heic\]"),
    "of a camera.dng": (plain("L", 77, "TIFF"), "a raw photograph"),
    "text in capitals.PNG": (b"a text, long enough for any header", "not an image"),
    "empty.png": (b"", "not an image"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut.png": (noise("PNG")[:-400], "truncated"),
    "cut in the header.png": (noise("PNG")[:20], "Truncated"),
    "corrupt.png": (noise("PNG").replace(b"IDAT", b"IDAT" + bytes(9)), "broken data stream"),
    "32 bits.tif": (numbers(np.int32, 200, "TIFF"), "of unknown range"),
    "float.tif": (numbers(np.float32, 0.5, "TIFF"), "of unknown range"),
    "no width.png": (png(0, 5, 8, 0), "not an image"),
    "no height.jpg": (without_size(JPEG, JPEG.index(b"\xff\xc0") + 5, 4), "not an image"),
    "no size.bmp": (without_size(noise("BMP"), 18, 8), "not an image"),
    # Both of them would be "truncated" if more than the header was looked at.
    "unsafe.png": (png(12_000, 9_000, 8, 0), "12000 x 9000 pixels are more than Pillow deems"),
    "bomb.png": (png(20_000, 20_000, 8, 0), "400000000 pixels.*exceeds"),
}


@pytest.fixture(scope="module")
def all_files(tmp_path_factory):
    """A folder of every kind of file, a grey picture after each, under two identities."""
    root = tmp_path_factory.mktemp("files")
    for value, (identity, name) in enumerate(itertools.product("ab", FILES)):
        save(root / identity / f"{name}.png", value)
        (root / identity / name).write_bytes(FILES[name][0])
    return root


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_or_skipped_for_a_reason(tmp_path, name):
    data, expected = FILES[name]
    for identity in "ab":
        save(tmp_path / identity / "sound.png", 9)
    (tmp_path / "a" / name).write_bytes(data)
    with warnings.catch_warnings(record=True, action="always") as warned:
        dataset = load_dataset("folder", tmp_path, 8, False)
    assert warned == []
    if isinstance(expected, str):
        assert dataset.files == ("a/sound.png", "b/sound.png")
        (skipped,) = dataset.skipped
        assert skipped.startswith(f"a/{name}: ")
        with pytest.raises(ValueError, match=rf"1 unreadable file.*a/{name}: .*{expected}"):
            load_dataset("folder", tmp_path, 8, True)
    else:
        assert dataset.skipped == ()
        read = dataset.examples[dataset.files.index(f"a/{name}")]
        assert read.shape == (8, 8, len(expected))
        lossy = data[:2] == b"\xff\xd8" or name.endswith("jp2")
        np.testing.assert_allclose(read, np.broadcast_to(expected, read.shape), atol=lossy)
        # One picture in colour makes all of them RGB.
        assert (dataset.examples[dataset.files.index("b/sound.png")] == 9).all()


# --- shapes and depths ---


def test_shapes_are_kept_by_default(tmp_path):
    """A disc in a broad, a high and a square picture, left of the middle or above it."""
    far = np.hypot(*np.mgrid[-20:20, -20:20])
    disc = np.where(far < 12, 0, 255).astype(np.uint8)
    plain = np.full((40, 80), 255, np.uint8)
    for name, pixels in {
        "square": disc,
        "broad": np.hstack([disc, plain]),
        "high": np.hstack([disc, plain]).T,
        "middle": np.hstack([plain[:, :40], disc, plain[:, :40]]),
    }.items():
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.png")

    def read(fit, limit=1e9):
        data = folder.load(tmp_path, 60, memory_limit=limit, reading=Reading(fit))
        ink = dict(zip(data.identities, data.examples[:][..., 0] < 128, strict=True))
        return {
            k: (np.ptp(v.nonzero(), axis=1) + 1).tolist() for k, v in ink.items() if v.any()
        }, data

    sizes, data = read("pad")
    assert sizes == {"square": [34, 34], "broad": [11, 11], "high": [11, 11], "middle": [11, 11]}
    assert data.examples.max() == 255
    assert data.notes == ("3 of 4 pictures are not square: padded",)
    assert read("pad", 0)[0] == sizes
    sizes, data = read("crop")
    assert sizes == {"square": [34, 34], "middle": [34, 34]}
    sizes, data = read("stretch")
    assert sizes == {"square": [34, 34], "broad": [34, 11], "high": [11, 34], "middle": [34, 11]}
    assert Reading().fit == "pad"


def test_padding_repeats_the_edge(tmp_path):
    pixels = np.repeat([[10], [200]], 8, 0).repeat(4, 1).astype(np.uint8)  # 16 x 4
    Image.fromarray(pixels).save(tmp_path / "1.png")
    (image,) = folder.read_images([tmp_path / "1.png"], 16).images
    assert np.array_equal(image[..., 0], pixels.repeat(4, 1))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_16_bits_that_are_not_all_used_are_said_and_can_be_scaled(tmp_path, bits):
    ramp = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(ramp).save(tmp_path / name / "1.png")
    greys = 2**bits >> 8
    said = f"2 pictures of 16 bits use {bits}, .* {greys} greys left; --bits {bits} scales them"
    with pytest.warns(UserWarning, match=said):
        (note,) = folder.load(tmp_path, 64).notes
    assert re.search(said, note), "a run keeps it in its data.json"
    for limit in (0, 1e9):
        scaled = folder.load(tmp_path, 64, memory_limit=limit, reading=Reading(bits=bits)).examples[
            :
        ]
        assert len(np.unique(scaled)) == 256
    bright = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    bright.save(tmp_path / "b" / "2.png")
    with pytest.warns(UserWarning, match=f"above {2**bits - 1:,} become white with --bits {bits}"):
        images = folder.load(tmp_path, 64, reading=Reading(bits=bits)).examples
    assert (images[-1] == 255).all()
    folder.load(tmp_path, 64)  # one that uses all of them tells that all may be used


def test_a_range_that_the_file_tells_is_used_whatever_the_bits(tmp_path):
    (tmp_path / "1.pgm").write_bytes(b"P5 1 1 1023\n\x02\x00")
    for bits in (10, 16):
        reading = Reading(bits=bits)
        (image,) = folder.read_images([tmp_path / "1.pgm"], 8, reading=reading).images
        assert (image == 128).all()


# --- turned pictures ---

# How a camera stores an upright picture, by the EXIF orientation that says so.
STORED = {
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: np.rot90(picture),
    7: lambda picture: np.rot90(picture[::-1]),
    8: lambda picture: np.rot90(picture, -1),
}


def exif(orientation, *entries):
    """Exif by hand: of each entry the tag, the type, how many, and the value."""
    entries = ((0x0112, 3, 1, orientation), *entries)
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(8)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright(tmp_path, orientation, form):
    colours = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 240]]], np.uint8)
    upright = colours.repeat(32, 0).repeat(16, 1)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"exif": Image.Exif()}
    options["exif"][0x0112] = orientation
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(stored, form, **options))
    images, _, skipped, *_ = folder.read_images([path], 8, reading=Reading("stretch"))
    assert skipped == ()
    np.testing.assert_allclose(images[0, 1::5, 1::5], colours, atol=12)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param((0x011A, 2, 1, 0), id="a resolution that is a text"),
        pytest.param((0x0132, 5, 1, 0), id="a date that is a fraction"),
        pytest.param((0x8769, 9, 2, 0x80000000), id="a part that lies before the file"),
        pytest.param((0x9003, 2, 999, 60), id="a date that lies behind the file"),
    ],
)
def test_odd_metadata_spoils_no_picture(tmp_path, odd):
    upright = np.repeat([[200], [20]], 32, 0).repeat(64, 1).astype(np.uint8)
    path = tmp_path / "odd.jpg"
    path.write_bytes(encoded(Image.fromarray(np.rot90(upright)), "JPEG", exif=exif(6, odd)))
    images, _, skipped, *_ = folder.read_images([path], 8, reading=Reading("stretch"))
    assert skipped == ()
    np.testing.assert_allclose(images[0, [1, 6], :, 0], np.repeat([[200], [20]], 8, 1), atol=2)


# --- folders ---


def test_folder_reads_nested_identities_in_sorted_order(tmp_path):
    save(tmp_path / "b" / "2.png", value=2)
    save(tmp_path / "b" / "1.png", value=1)
    save(tmp_path / "a" / "deep" / "1.png", value=3)
    save(tmp_path / "c.png" / "1.png", value=4)
    save(tmp_path / "stray.png")  # belongs to no identity
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "b" / "empty.png").mkdir()
    data = load_dataset("folder", tmp_path, 8, False)
    assert data.identities == ("a/deep", "b", "c.png")
    assert data.files == ("a/deep/1.png", "b/1.png", "b/2.png", "c.png/1.png")
    assert data.labels.tolist() == [0, 1, 1, 2]
    assert data.examples.shape == (4, 8, 8, 1)
    assert data.examples[:, 0, 0, 0].tolist() == [3, 1, 2, 4]
    assert data.skipped == ()
    assert data.left_out == ("stray.png: in no identity's folder", "b/notes.txt: not an image")


def make_identities(root, *names):
    for value, name in enumerate(names):
        save(root / name / "1.png", value)


REPEATED = {
    "parts of a split": ("train/anna", "train/bo", "val/anna"),
    "sessions": ("2023/anna", "2024/anna", "2024/bo"),
    "above and below": ("anna", "more/anna"),
    "classes by number": ("training/0", "training/1", "testing/0", "testing/1"),
    "numbered classes of parts": ("a/train/c1", "a/train/c2", "a/val/c1", "a/val/c2"),
    "numbers with a gap": ("x/id1", "x/id7", "y/id7"),
    "accents": ("train/\u00e9", "val/e\u0301"),
}


@pytest.mark.parametrize("names", REPEATED.values(), ids=REPEATED)
def test_one_name_below_two_folders_is_refused(tmp_path, names):
    make_identities(tmp_path, *names)
    with pytest.raises(ValueError, match=r"more than once.*--repeated-names merge .* separate"):
        load_dataset("folder", tmp_path, 8)
    separate = load_dataset("folder", tmp_path, 8, repeated_names="separate")
    assert separate.identities == tuple(sorted(names))
    assert "each folder is an identity" in separate.notes[-1]
    if names[0].endswith("anna"):
        make_identities(tmp_path, "zoe")
        merged = load_dataset("folder", tmp_path, 8, repeated_names="merge")
        of = dict(zip(merged.files, merged.labels, strict=True))
        first, second = (of[f"{name}/1.png"] for name in names if name.endswith("anna"))
        assert merged.identities[first] == "anna"
        assert first == second
        assert len(merged.identities) == len(names)
        assert "each name is one identity" in merged.notes[-1]


def test_numbered_folders_of_different_alphabets_are_several_identities(tmp_path):
    """As those of Omniglot, whose names count the characters of each alphabet."""
    names = [
        f"{a}/character{i:02}" for a, n in (("greek", 3), ("latin", 2)) for i in range(1, n + 1)
    ]
    make_identities(tmp_path, *names)
    data = load_dataset("folder", tmp_path, 8)
    assert data.identities == tuple(names)
    assert data.notes[-1:] == (
        "2 names of folders are there more than once, such as greek/character01 and "
        "latin/character01: each folder is an identity",
    )


# With copies of pictures in them, and under a picture's name.
HIDDEN = [
    *(".ipynb_checkpoints", ".thumbnails", ".Trash-1000", ".git", "@eaDir", "#recycle"),
    *("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"),
]


def test_hidden_and_system_folders_are_no_identities(tmp_path):
    for value, name in enumerate("ab"):
        save(tmp_path / name / "1.png", value)
        for hidden in HIDDEN:
            save(tmp_path / hidden / name / "1.png", 99)
            save(tmp_path / name / hidden / "1.png", 99)
        save(tmp_path / name / "._1.png", 99)  # what another system adds to a file of its own
        (tmp_path / name / "Thumbs.db").write_bytes(plain("L", 99))
    data = load_dataset("folder", tmp_path, 8, True)
    assert data.files == ("a/1.png", "b/1.png")
    expected = {*HIDDEN, *(f"{name}/{hidden}" for name in "ab" for hidden in HIDDEN)}
    expected |= {f"{name}/{file}" for name in "ab" for file in ("._1.png", "Thumbs.db")}
    assert sorted(data.left_out) == sorted(f"{e}: hidden or of the system" for e in expected)


def test_a_folder_may_lie_in_a_hidden_one(tmp_path):
    for name in "ab":
        save(tmp_path / ".cache" / name / "1.png")
    assert load_dataset("folder", tmp_path / ".cache", 8, True).left_out == ()


def test_transparent_drawings_differ(tmp_path):
    """Four drawings whose colours are all black, as most programs save them."""
    for value, name in enumerate("abcd"):
        drawing = np.zeros((8, 8, 4), np.uint8)
        drawing[value, :, 3] = 255
        (tmp_path / name).mkdir()
        Image.fromarray(drawing).save(tmp_path / name / "1.png")
    data = load_dataset("folder", tmp_path, 8, True)
    assert [np.flatnonzero((im == 0).all((1, 2))).tolist() for im in data.examples] == [
        [0],
        [1],
        [2],
        [3],
    ]
    assert data.notes == ("4 of 4 pictures are transparent: laid on white",)
    for limit in (0, 1e9):
        ignored = folder.load(
            tmp_path, 8, memory_limit=limit, reading=Reading(transparency="ignore")
        )
        assert not ignored.examples[:].any()
        assert ignored.notes == ("4 of 4 pictures are transparent: transparency ignored",)


NAMES = [
    "中文",
    "עברית",
    "\u00e9",
    "e\u0301",
    "🙂",
    "two words",
    "two\nlines",
    "$HOME",
    "-rf",
    "'",
    '"',
]
NO_TEXT = os.fsdecode(b"caf\xe9")


def test_names_may_be_in_any_script(tmp_path):
    names = NAMES + [NO_TEXT] * (sys.platform == "linux")
    for value, name in enumerate(names):
        save(tmp_path / name / f"{name}.png", value)
    dataset = load_dataset("folder", tmp_path, 8, True, repeated_names="separate")
    assert dataset.identities == tuple(sorted(names))
    assert dataset.files == tuple(f"{name}/{name}.png" for name in sorted(names))
    values = [names.index(name) for name in dataset.identities]
    assert dataset.examples[:, 0, 0, 0].tolist() == values


@pytest.mark.skipif(sys.platform != "linux", reason="names are text")
def test_a_skipped_file_is_named_in_a_line_of_text(tmp_path):
    root = tmp_path / "two\nlines"
    for name in ("a", "b\nc"):
        save(root / name / "1.png")
    for name in (NO_TEXT, "中 文\\n", "two\nlines"):
        (root / "b\nc" / f"{name}.png").touch()
    skipped = load_dataset("folder", root, 8, False).skipped
    names = ("caf\\udce9", "two\\nlines", "中 文\\n")
    assert set(skipped) == {f"b\\nc/{name}.png: not an image" for name in names}


def test_what_is_no_file_is_skipped(tmp_path):
    """Above all a named pipe, which would be waited for."""
    for name in "ab":
        save(tmp_path / name / "1.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "itself.png").symlink_to("itself.png")
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "b" / "1.png")
    dataset = load_dataset("folder", tmp_path, 8, False)
    assert dataset.files == ("a/1.png", "a/link.png", "b/1.png")
    assert dataset.skipped == (
        "a/gone.png: No such file or directory",
        "a/itself.png: Too many levels of symbolic links",
        "a/pipe.png: not a file",
    )
    found = folder.read_images([tmp_path / "a"], 8)
    assert (found.kept, found.left_out) == ([], (f"{tmp_path / 'a'}: not a file",))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_skipped(tmp_path):
    for name in "ab":
        save(tmp_path / name / "1.png")
    save(tmp_path / "a" / "secret.png")
    (tmp_path / "a" / "secret.png").chmod(0)
    assert load_dataset("folder", tmp_path, 8, False).skipped == (
        "a/secret.png: Permission denied",
    )


def test_a_folder_that_can_not_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    listed = os.scandir

    def scandir(path):  # the tests may be run by one who may list everything
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match=r"cannot list .*/b: Permission denied"):
        load_dataset("folder", tmp_path, 4)


def test_a_folder_of_images_in_another_one_is_noted(tmp_path):
    make_identities(tmp_path, "anna", "anna/2023", "bo")
    dataset = load_dataset("folder", tmp_path, 8)
    assert dataset.identities == ("anna", "anna/2023", "bo")
    assert dataset.notes[-1].startswith("1 folder(s) of images lie in another one, such as anna/2")


def test_a_folder_goes_by_its_own_name_before_that_of_a_link(tmp_path):
    make_identities(tmp_path, "bo", "person")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "link").symlink_to(tmp_path / "person")
    (tmp_path / "link").symlink_to("person")
    assert load_dataset("folder", tmp_path, 8).identities == ("bo", "person")


def test_identities_may_be_links(tmp_path):
    """A folder that is reached twice counts once, and which time does not depend on the disk."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    names = [f"real {i}" for i in range(8)]
    for value, name in enumerate(names):
        save(root / name / "1.png", value)
        (root / f"link {value}").symlink_to(name)
    save(elsewhere / "1.png", 8)
    (root / "outside").symlink_to(elsewhere)
    (root / "real 0" / "loop").symlink_to(root)
    (root / "real 0" / "self").symlink_to(".")
    dataset = load_dataset("folder", root, 8, True)
    assert dataset.identities == ("outside", *names)
    assert dataset.examples[:, 0, 0, 0].tolist() == [8, *range(8)]


def test_folder_errors_say_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*missing"):
        load_dataset("folder", tmp_path / "missing", 8, False)
    with pytest.raises(ValueError, match=r"expected a folder for each identity.*anna/1.jpg$"):
        load_dataset("folder", tmp_path, 8, False)
    save(tmp_path / "flat" / "1.png")
    with pytest.raises(ValueError, match="1 files lie in no folder of their own: move"):
        load_dataset("folder", tmp_path / "flat", 8, False)
    (tmp_path / "flat" / "1.png").unlink()
    for name, kind in {
        "faces.zip": "an archive, which has to be unpacked",
        "a.png": "a file",
    }.items():
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"must be a folder.*{name} is {kind}"):
            load_dataset("folder", tmp_path / name, 8, False)
    save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match=r"at least two identities.*got 1"):
        load_dataset("folder", tmp_path, 8, False)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").touch()
    with pytest.raises(ValueError, match=r"got 1 \(first unreadable file: b/1.png: not an image"):
        load_dataset("folder", tmp_path, 8, False)


# --- held in memory, or not ---


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_streamed_images_are_those_held_in_memory(all_files, channels):
    held = folder.load(all_files, 8, channels=channels)
    streamed = folder.load(all_files, 8, channels=channels, memory_limit=0)
    assert isinstance(held.examples, np.ndarray)
    assert isinstance(streamed.examples, StreamedImages)
    assert (streamed.files, streamed.skipped) == (held.files, held.skipped)
    assert len(held.files) + len(held.skipped) == 4 * len(FILES)
    assert streamed.examples.shape == held.examples.shape == (len(held.files), 8, 8, channels or 3)
    assert len({image.tobytes() for image in held.examples}) > 2 * len(FILES)
    rows = np.random.default_rng(0).permutation(len(held.files))
    np.testing.assert_array_equal(streamed.examples[rows], held.examples[rows])
    np.testing.assert_array_equal(streamed.examples[3:5], held.examples[3:5])
    first, first_streamed = held.first(1), streamed.first(1)
    assert 0 < len(first.examples) == len(first_streamed.examples) < len(held.examples)
    rows = rows[rows < len(first.examples)]
    np.testing.assert_array_equal(first_streamed.examples[rows], first.examples[rows])


def test_rows_keep_their_place_in_a_long_list(all_files):
    files, _ = folder.find_files(all_files)
    rows = np.random.default_rng(0).integers(0, len(files), 700)
    short, kept, unread, _ = load_images(lambda some: [files[i] for i in some], len(files), 8)
    long, all_kept, all_unread, _ = load_images(lambda some: [files[i] for i in rows[some]], 700, 8)
    assert all_kept.tolist() == np.flatnonzero(np.isin(rows, kept)).tolist()
    assert all_unread == {row: unread[i] for row, i in enumerate(rows) if i in unread}
    np.testing.assert_array_equal(long, short[np.searchsorted(kept, rows[all_kept])])


def test_grey_images_stay_grey_when_streamed(tmp_path):
    for value, name in enumerate("abc"):
        save(tmp_path / name / "1.png", value)
    streamed = folder.load(tmp_path, 8, memory_limit=0)
    assert streamed.examples.shape == (3, 8, 8, 1)
    assert streamed.examples[:][:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("channels", [None, 1])
def test_the_limit_is_the_size_of_the_array(tmp_path, channels):
    save(tmp_path / "1.png")

    def load(limit):
        return load_images(lambda rows: [tmp_path / "1.png"] * len(rows), 5, 4, channels, limit)[0]

    size = 5 * 4 * 4 * (channels or 3)  # which may turn out to be colour
    assert isinstance(load(size), np.ndarray)
    assert isinstance(load(size - 1), StreamedImages)


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_file_that_no_longer_can_be_read_is_named(tmp_path, change):
    for name in ("a", "b", "two\nlines"):
        save(tmp_path / name / "1.png")
    images = folder.load(tmp_path, 8, memory_limit=0).first(3).examples
    path = tmp_path / "two\nlines" / "1.png"
    path.unlink() if change == "gone" else path.write_bytes(b"")
    assert images[np.array([1, 0])].shape == (2, 8, 8, 1)
    reason = {"gone": "No such file or directory", "changed": "not an image"}[change]
    with pytest.raises(ValueError, match=r"could be read before") as raised:
        images[np.array([1, 2])]
    assert str(raised.value) == (
        f"{tmp_path}/two\\nlines/1.png could be read before, and now cannot: {reason}"
    )
