"""Image archives against the requirements of the OCI specification."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.kube import image

if TYPE_CHECKING:
    from pathlib import Path


def files(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: opened.read() for member in tar.getmembers() if (opened := tar.extractfile(member))}


def blob(content: dict[str, bytes], descriptor: Any) -> bytes:
    data = content["blobs/" + descriptor["digest"].replace(":", "/")]
    assert len(data) == descriptor["size"]
    assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
    return data


def small() -> image.Layer:
    layer = image.Layer()
    layer.folder("bin")
    layer.file("bin/tool", b"#!/bin/true\n")
    layer.link("bin/alias", "tool")
    return layer


def test_every_blob_is_what_its_descriptor_says_and_the_layer_holds_the_files() -> None:
    content = files(image.archive("vnetpods.test/x:1", small(), ["/bin/tool"], {"A": "b"}))
    assert json.loads(content["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    entry = json.loads(content["index.json"])["manifests"][0]
    assert entry["annotations"]["io.containerd.image.name"] == "vnetpods.test/x:1"
    manifest = json.loads(blob(content, entry))
    config = json.loads(blob(content, manifest["config"]))
    layer = gzip.decompress(blob(content, manifest["layers"][0]))
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    assert config["config"]["Cmd"] == ["/bin/tool"]
    assert "A=b" in config["config"]["Env"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert {member.name: member.mode for member in tar} == {"bin": 0o755, "bin/tool": 0o755, "bin/alias": 0o777}


def test_the_same_files_give_the_same_bytes() -> None:
    assert image.archive("x/y:1", small()) == image.archive("x/y:1", small())


def test_busybox_is_there_under_its_names() -> None:
    entries = image.busybox().entries
    assert {"bin/sh", "bin/wget", "bin/httpd", "etc/passwd"} <= set(entries)
    assert entries["bin/sh"][2] == "busybox"


def test_a_missing_busybox_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(image.ImageError, match="busybox-static"):
        image.busybox(tmp_path / "busybox")
