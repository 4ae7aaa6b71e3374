"""docs/kubernetes.md, word for word: what kubectl and docker are asked for is there, nothing else is left."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests import ROOT
from tests.e2e.pages.reader import RECORDER, Reader, commands
from tests.manifests import OVERLAYS, only, render

pytestmark = pytest.mark.e2e

PAGE = "docs/kubernetes.md"


@pytest.fixture
def reader(tmp_path) -> Reader:
    """Somebody with a checkout and a home."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "k8s", checkout / "k8s")
    (tmp_path / "home").mkdir()
    return Reader(tmp_path / "home", checkout, {"kubectl": RECORDER, "docker": RECORDER})


def files_in(folder: Path) -> set[Path]:
    """Every file below *folder*."""
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("section", "secrets", "overlay"),
    [("Install", "authsvc-secrets", "prod"), ("Try it, with stores of its own", "authsvc-dev", "dev")],
)
def test_secrets_are_made_outside_the_checkout_for_their_owner_alone(reader, section, secrets, overlay):
    """Each file that a Secret is made of is there; none lies in the checkout, and none is open to others."""
    before = files_in(reader.folder)

    reader.paste(commands(PAGE, section))

    sources = {Path(path) for line in reader.asked for path in re.findall(r"--from-file=(\S+)", line)}
    made = files_in(reader.home / secrets)
    assert files_in(reader.folder) == before
    assert sources
    assert {path for path in sources if not path.exists() or reader.home not in path.parents} == set()
    assert made >= {path for path in sources if path.is_file()}
    assert {path.stat().st_mode & 0o077 for path in (*made, reader.home / secrets)} == {0}
    assert list((reader.home / secrets / "keys").glob("*.pem"))
    assert f"kubectl apply --kustomize k8s/overlays/{overlay}" in reader.asked


def test_the_image_that_is_built_is_the_one_that_runs(reader):
    """Built and pushed, under the name that the overlay has."""
    reader.paste(commands(PAGE, "Install"))
    [container] = only(render(OVERLAYS["prod"]), "Deployment", "authsvc")["spec"]["template"]["spec"][
        "containers"
    ]

    assert reader.asked[:2] == [
        f"docker build --tag {container['image']} .",
        f"docker push {container['image']}",
    ]


def test_a_key_is_added_beside_the_old_one(reader):
    """Signing keys, after an installation: the folder of before has one more."""
    reader.paste(commands(PAGE, "Install"))
    reader.paste(commands(PAGE, "Signing keys"))

    assert len(list((reader.home / "authsvc-secrets" / "keys").glob("*.pem"))) == 2
