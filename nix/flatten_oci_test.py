import io
import json
import tarfile
import tempfile
import unittest
from pathlib import Path

from flatten_oci import ArchiveError, flatten


def member(name: str, data: bytes | None = None, kind: bytes = tarfile.REGTYPE, link: str = "", uid: int = 0):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.uid = kind, link, uid
    entry.size = len(data or b"")
    return entry, data


def tar(*members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for entry, data in members:
            file.addfile(entry, io.BytesIO(data) if data is not None else None)
    return buffer.getvalue()


def file(name: str, data: bytes, **more):
    return member(name, data, **more)


def directory(name: str):
    return member(name, kind=tarfile.DIRTYPE)


def docker(*layers: bytes, images: int = 1) -> bytes:
    names = [f"layer{number}.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Layers": names}] * images).encode()
    return tar(file("manifest.json", manifest), *(file(name, data) for name, data in zip(names, layers)))


def flattened(archive: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes | None]]:
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "in.tar", Path(work) / "out.tar"
        source.write_bytes(archive)
        flatten(str(source), str(target))
        with tarfile.open(target) as out:
            return {it.name: (it, out.extractfile(it).read() if it.isreg() else None) for it in out}


class Flatten(unittest.TestCase):
    def test_upper_layers_win_and_owners_stay(self):
        lower = tar(directory("./etc"), file("./etc/a", b"old"), file("etc/b", b"kept", uid=7))
        found = flattened(docker(lower, tar(file("etc/a", b"new"))))
        self.assertEqual(list(found), ["etc", "etc/a", "etc/b"])
        self.assertEqual(found["etc/a"][1], b"new")
        self.assertEqual(found["etc/b"][0].uid, 7)

    def test_whiteouts_hide_what_is_below_and_are_not_files(self):
        lower = tar(directory("a"), file("a/x", b"1"), directory("b"), file("b/x", b"2"), file("b/y", b"3"))
        upper = tar(file(".wh.a", b""), directory("b"), file("b/z", b"4"), file("b/.wh..wh..opq", b""))
        self.assertEqual(list(flattened(docker(lower, upper))), ["b", "b/z"])

    def test_a_file_in_the_place_of_a_directory_takes_its_content_along(self):
        lower = tar(directory("d"), file("d/x", b"1"))
        self.assertEqual(list(flattened(docker(lower, tar(file("d", b"file"))))), ["d"])

    def test_hard_links_come_after_their_file(self):
        layer = tar(file("z", b"data"), member("a", kind=tarfile.LNKTYPE, link="./z"))
        self.assertEqual(list(flattened(docker(layer))), ["z", "a"])

    def test_an_oci_layout(self):
        manifest = json.dumps({"layers": [{"digest": "sha256:l"}]}).encode()
        index = json.dumps({"manifests": [{"digest": "sha256:m"}]}).encode()
        layout = tar(
            file("index.json", index),
            file("blobs/sha256/m", manifest),
            file("blobs/sha256/l", tar(file("x", b"1"))),
        )
        self.assertEqual(list(flattened(layout)), ["x"])

    def test_what_is_wrong_is_said(self):
        for archive, words in (
            (tar(file("x", b"")), "no OCI tarball"),
            (docker(images=2), "2 images"),
            (tar(file("manifest.json", b'[{"Layers": ["gone"]}]')), "'gone'"),
            (docker(tar(file("../x", b""))), "leaves the root"),
        ):
            with self.assertRaisesRegex(ArchiveError, words):
                flattened(archive)


if __name__ == "__main__":
    unittest.main()
