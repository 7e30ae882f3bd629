"""One tar file of the layers of an OCI tarball, as a container would see them.

    flatten_oci.py ARCHIVE OUT

ARCHIVE is what `docker save`, dockerTools and skopeo write (manifest.json), or a tarred OCI layout (index.json). Only
one image may be in it. Whiteouts: the OCI image specification, layer.md.
"""

import io
import json
import posixpath
import sys
import tarfile

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"


class ArchiveError(Exception):
    """The archive is not what it should be."""


def normal(name: str) -> str:
    """The name without leading or trailing dots and slashes; none that leaves the root."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveError(f"a layer has a name that leaves the root: {name!r}")
    return "/".join(parts)


def read(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ArchiveError(f"the archive has no file {name!r}")
    return file.read()


def blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def the_only(items: list, what: str):
    if len(items) != 1:
        raise ArchiveError(f"the archive has {len(items)} {what}, and exactly one is wanted")
    return items[0]


def layer_names(archive: tarfile.TarFile) -> list[str]:
    """The layers in the archive, lowest first."""
    names = archive.getnames()
    if "manifest.json" in names:
        return the_only(json.loads(read(archive, "manifest.json")), "images")["Layers"]
    if "index.json" in names:
        entry = the_only(json.loads(read(archive, "index.json"))["manifests"], "manifests")
        manifest = json.loads(read(archive, blob(entry["digest"])))
        return [blob(layer["digest"]) for layer in manifest["layers"]]
    raise ArchiveError("neither manifest.json nor index.json is in it: this is no OCI tarball")


def below(name: str, top: str) -> bool:
    return top == "" or name.startswith(top + "/")


def apply(layer: tarfile.TarFile, number: int, tree: dict) -> None:
    """Puts one layer's entries over the tree: name to (number of the layer, entry)."""
    for entry in layer:
        name = normal(entry.name)
        folder, base = posixpath.split(name)
        if base == OPAQUE:
            # What this layer itself puts there stays.
            hidden = [it for it in tree if below(it, folder) and tree[it][0] != number]
        elif base.startswith(WHITEOUT):
            gone = posixpath.join(folder, base.removeprefix(WHITEOUT))
            hidden = [it for it in tree if it == gone or below(it, gone)]
        else:
            replaced = tree.get(name)
            # A directory that becomes something else takes what was in it along.
            hidden = [it for it in tree if below(it, name)] if replaced and not entry.isdir() and name else []
            tree[name] = (number, entry)
        for it in hidden:
            del tree[it]


def flatten(source: str, target: str) -> None:
    with tarfile.open(source) as archive, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as out:
        layers = [tarfile.open(fileobj=io.BytesIO(read(archive, name))) for name in layer_names(archive)]
        tree: dict[str, tuple[int, tarfile.TarInfo]] = {}
        for number, layer in enumerate(layers):
            apply(layer, number, tree)
        # Parents before children, and a hard link after the file that it names.
        for name, (number, entry) in sorted(tree.items(), key=lambda item: (item[1][1].islnk(), item[0])):
            if name == "":
                continue
            entry.name = name
            if entry.islnk():
                entry.linkname = normal(entry.linkname)
            out.addfile(entry, layers[number].extractfile(entry) if entry.isreg() else None)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: flatten_oci.py ARCHIVE OUT")
    try:
        flatten(sys.argv[1], sys.argv[2])
    except (ArchiveError, tarfile.TarError, KeyError, ValueError) as error:
        sys.exit(f"flatten_oci.py: {sys.argv[1]}: {error}")


if __name__ == "__main__":
    main()
