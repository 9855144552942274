"""Builds the targets of the repository's Dockerfile and loads them into the cluster; what is unchanged is skipped.

With kind Docker builds them. Without Docker buildah does, on a `debian:trixie-slim` that is pulled where a registry
answers and made by mmdebstrap otherwise. Layers, archives and stamps stay in the cache.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster import debian, machine
from tests.cluster.archive import write_image
from tests.cluster.commands import attempt, run, run_long, with_system_path
from tests.cluster.consent import ask
from tests.cluster.errors import ClusterError, RequirementError
from tests.cluster.kind import KindCluster, docker_answers
from tests.cluster.local import LocalCluster
from tests.cluster.progress import Progress
from tests.cluster.settings import REPOSITORY, Paths

DEFAULT_TARGETS = ("runtime", "operator", "postgres")

_BASE_IMAGE = "docker.io/library/debian:trixie-slim"
_BASE_SUITE = "trixie"
_BUILD_TIMEOUT = 1800.0
_PULL_TIMEOUT = 60.0
_CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
# Documentation and translations are a third of a minimal Debian; the licences stay.
_BASE_PATHS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
)


# ---------------------------------------------------------------------------------------------------- pure parts


def project_version(pyproject: str) -> str:
    """Return the version that the text of pyproject.toml gives."""
    return str(tomllib.loads(pyproject)["project"]["version"])


def copied_paths(dockerfile: str, target: str) -> list[str] | None:
    """Return the paths of the build context that a target needs, sorted; None when there is no such target.

    A target needs what its stage copies and what the stages copy that it starts from or copies from. Patterns become
    their folder.
    """
    stages: dict[str, tuple[set[str], set[str]]] = {}  # by name: (paths, names of other stages)
    paths: set[str] = set()
    others: set[str] = set()
    for line in re.sub(r"\\\s*\n", " ", dockerfile).splitlines():
        words = shlex.split(line, comments=True) if re.match(r"\s*(FROM|COPY|ADD)\s", line, re.IGNORECASE) else [""]
        plain = [word for word in words[1:] if not word.startswith("--")]
        if words[0].upper() == "FROM":
            paths, others = set(), {plain[0]}
            stages[plain[2] if len(plain) > 2 else str(len(stages))] = (paths, others)
        elif other := [word.removeprefix("--from=") for word in words[1:] if word.startswith("--from=")]:
            others.update(other)
        else:
            paths.update(_without_pattern(source) for source in plain[:-1])
    if target not in stages:
        return None
    needed: set[str] = set()
    waiting = [target]
    while waiting:
        stage = waiting.pop()
        if stage in stages and stage not in needed:
            needed.add(stage)
            waiting += stages[stage][1]
    return sorted({path for stage in needed for path in stages[stage][0]})


def _without_pattern(source: str) -> str:
    return os.path.normpath((os.path.dirname(source) if re.search(r"[*?\[]", source) else source) or ".")


def digest_of_files(root: Path, names: Iterable[str]) -> str:
    """Return a hash over the names, contents and executable bits of files; missing ones are left out."""
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        path = root / name
        if path.is_symlink():
            kind, content = "link", os.readlink(path).encode()
        elif path.is_file():
            kind, content = ("program" if os.access(path, os.X_OK) else "file"), path.read_bytes()
        else:
            continue
        digest.update(f"{name}\0{kind}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def pip_settings(environ: Mapping[str, str], certificates: str) -> str:
    """Return a pip configuration with the caller's index settings and a certificate bundle at this path."""
    lines = ["[global]", f"cert = {certificates}"]
    for name in ("index-url", "extra-index-url", "trusted-host", "timeout"):
        key = "PIP_DEFAULT_TIMEOUT" if name == "timeout" else "PIP_" + name.upper().replace("-", "_")
        if value := environ.get(key):
            lines.append(f"{name} = {value}")
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------------------------------------------- stamps


@dataclass(frozen=True)
class Stamp:
    """What was built and loaded last for a target: hash of the inputs, image id, digest in the cluster."""

    inputs: str
    image: str
    loaded: str


def read_stamp(path: Path) -> Stamp | None:
    try:
        return Stamp(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_stamp(path: Path, stamp: Stamp) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(stamp)))
    partial.replace(path)


# ---------------------------------------------------------------------------------------------------- building


def load_images(cluster: KindCluster | LocalCluster, builder: "ImageBuilder", targets: list[str]) -> dict[str, str]:
    """Build and load these targets of the Dockerfile, those that changed or are not in the cluster.

    Returns {target: reference}, each with a tag that names the content, so that a changed image is a changed reference.
    Raises: RequirementError without a Dockerfile or such a target, ClusterError when a build fails.
    """
    try:
        return {target: builder.bring(cluster, target) for target in targets}
    finally:
        builder.tidy()


class ImageBuilder:
    """Builds images of one repository into the cache."""

    def __init__(self, paths: Paths, progress: Progress, repository: Path = REPOSITORY) -> None:
        self._images = paths.images
        self._progress = progress
        self._repository = repository

    def bring(self, cluster: KindCluster | LocalCluster, target: str) -> str:
        """Build one target and load it into the cluster, as far as that is not done already.

        Returns a reference that belongs to this content alone: kubelets and rollouts go by the reference.
        """
        image = self._bring(cluster, target)
        name = self.reference(target)
        unique = f"{name}-{image.removeprefix('sha256:')[:12]}"
        if f"docker.io/{unique}" not in cluster.images():
            cluster.tag(f"docker.io/{name}", f"docker.io/{unique}")
        return unique

    def _bring(self, cluster: KindCluster | LocalCluster, target: str) -> str:
        name = self.reference(target)
        qualified = f"docker.io/{name}"
        stamp_path = self._images / "stamps" / f"{cluster.name}-{target}.json"
        stamp = read_stamp(stamp_path)
        inputs = self.inputs(target)
        if stamp and stamp.inputs == inputs and cluster.images().get(qualified) == stamp.loaded:
            self._progress.say(f"{name} is unchanged")
            return stamp.image
        self._progress.say(f"building {name}")
        built = self._build_with_docker(target) if isinstance(cluster, KindCluster) else self._build(target)
        if stamp and stamp.image == built and cluster.images().get(qualified) == stamp.loaded:
            self._progress.say(f"{name} comes out the same and is in the cluster already")
        else:
            self._progress.say(f"loading {name} into the cluster")
            if isinstance(cluster, KindCluster):
                cluster.load(name)
            else:
                cluster.load(self._archive(target, built))
        loaded = cluster.images().get(qualified)
        if loaded is None:
            raise ClusterError(f"{qualified} was loaded but the cluster does not list it: run `images {target}` again")
        write_stamp(stamp_path, Stamp(inputs, built, loaded))
        self._progress.say(f"{name} is in the cluster")
        return built

    def archive(self, target: str) -> Path:
        """Return a `docker save` archive of one target, built first unless that is done; no cluster is needed.

        The archive may go with the next build: read it while holding the image lock.
        """
        stamp_path = self._images / "stamps" / f"archive-{target}.json"
        inputs = self.inputs(target)
        for stamp in (read_stamp(stamp_path), read_stamp(self._images / "stamps" / f"local-{target}.json")):
            if stamp and stamp.inputs == inputs and self._archive_path(target, stamp.image).exists():
                return self._archive_path(target, stamp.image)
        self._progress.say(f"building {self.reference(target)}")
        if docker_answers():
            built = self._build_with_docker(target).removeprefix("sha256:")
            archive = self._archive_path(target, built)
            archive.parent.mkdir(parents=True, exist_ok=True)
            run(["docker", "image", "save", "--output", archive, self.reference(target)], timeout=600)
        else:
            built = self._build(target)
            archive = self._archive(target, built)
        write_stamp(stamp_path, Stamp(inputs, built, ""))
        return archive

    def tidy(self) -> None:
        """Remove the mounts that build tools leave below the cache, also when they end well."""
        machine.unmount(self._images)

    def reference(self, target: str) -> str:
        """Return the image's name as Kubernetes objects give it."""
        return f"abide/{target}:{project_version((self._repository / 'pyproject.toml').read_text())}"

    def inputs(self, target: str) -> str:
        """Return a hash of everything a target is built from. Raises: RequirementError without a Dockerfile."""
        dockerfile = self._repository / "Dockerfile"
        if not dockerfile.is_file():
            raise RequirementError(f"there is no Dockerfile in {self._repository}: images cannot be built")
        paths = copied_paths(dockerfile.read_text(), target)
        if paths is None:
            raise RequirementError(f"the Dockerfile has no target {target}: name one of its `FROM … AS` stages")
        names = [*self._source_files(paths), "Dockerfile", ".dockerignore"]
        return hashlib.sha256(
            f"{self.reference(target)} {digest_of_files(self._repository, names)}".encode()
        ).hexdigest()

    def _source_files(self, paths: list[str]) -> list[str]:
        """Return the files below these paths that belong to the repository: tracked, or new and not ignored."""
        if not paths:
            return []
        # The owner of a clone is often not root; git would refuse to look at it.
        git = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
        listed = attempt([*git, *paths], timeout=60, cwd=self._repository)
        if listed.returncode == 0:
            return [name for name in listed.stdout.split("\0") if name]
        found = []
        for path in paths:
            base = self._repository / path
            found += [base] if base.is_file() else [file for file in base.rglob("*") if file.is_file()]
        return [str(file.relative_to(self._repository)) for file in found if "__pycache__" not in file.parts]

    # ------------------------------------------------------------------------------------------------ with Docker

    def _build_with_docker(self, target: str) -> str:
        name = self.reference(target)
        self._run_build(["docker", "build", "--target", target, "--tag", name, "."], target, with_system_path())
        return run(["docker", "image", "inspect", "--format", "{{.Id}}", name], timeout=60).strip()

    # ------------------------------------------------------------------------------------------------ without Docker

    def _build(self, target: str) -> str:
        self._require()
        if not self._exists(_BASE_IMAGE):
            self._make_base()
        home = self._make_home()
        id_file = self._images / "image-id"
        command: list[str | Path] = [
            *self._buildah("build-using-dockerfile"),
            *("--layers", "--pull-never", "--isolation", "chroot", "--iidfile", id_file),
            *("--volume", f"{home}:/root", "--target", target, "--tag", f"docker.io/{self.reference(target)}", "."),
        ]
        machine.end_builds(self._images)  # of a run that was killed; the lock says that nobody else builds
        # The shell joins the group before it becomes the build, so nothing of it is ever outside.
        joined: list[str | Path] = [
            "sh",
            "-c",
            'echo $$ > "$0/cgroup.procs" && exec "$@"',
            machine.build_group(),
            *command,
        ]
        try:
            self._run_build(joined, target, self._environ())
        finally:
            machine.end_builds(self._images)
        return id_file.read_text().strip().removeprefix("sha256:")

    def _require(self) -> None:
        debian.require_root()
        if missing := debian.missing_packages(debian.IMAGE_PACKAGES):
            ask([f"install the Debian packages {' '.join(missing)}"])
            debian.install(missing, self._progress)
        self._images.mkdir(parents=True, exist_ok=True)

    def _run_build(self, command: list[str | Path], target: str, environ: Mapping[str, str]) -> None:
        run_long(
            command,
            timeout=_BUILD_TIMEOUT,
            log=self._images / "log" / f"{target}.log",
            still=lambda: self._progress.say(f"still building {target}"),
            environ=environ,
            cwd=self._repository,
        )

    def _buildah(self, *command: str) -> list[str | Path]:
        return ["buildah", "--root", self._images / "storage", "--runroot", self._images / "run", *command]

    def _environ(self) -> dict[str, str]:
        return {**with_system_path(), "STORAGE_DRIVER": self._driver()}

    def _driver(self) -> str:
        """Return the storage driver: the one the storage has, else overlay where that works, else copies."""
        for driver in ("overlay", "vfs"):
            if (self._images / "storage" / f"{driver}-layers").is_dir():
                return driver
        return "overlay" if machine.overlay_works(self._images) else "vfs"

    def _exists(self, name: str) -> bool:
        done = attempt(self._buildah("inspect", "--type", "image", name), timeout=60, environ=self._environ())
        return done.returncode == 0

    def _make_base(self) -> None:
        """Bring the base image into the storage: from a registry, else made from Debian's packages."""
        pulled = attempt(self._buildah("pull", _BASE_IMAGE), timeout=_PULL_TIMEOUT, environ=self._environ())
        if pulled.returncode == 0:
            self._progress.say(f"pulled {_BASE_IMAGE}")
            return
        archive = self._images / f"debian-{_BASE_SUITE}-slim.tar"
        if not archive.exists():
            self._progress.say(f"no registry answers: making {_BASE_IMAGE} from Debian packages (20 s)")
            self._bootstrap(archive)
        run(self._buildah("pull", f"docker-archive:{archive}"), timeout=300, environ=self._environ())

    def _bootstrap(self, archive: Path) -> None:
        layer = archive.with_suffix(".layer")
        options = [f"--dpkgopt={path}" for path in _BASE_PATHS]
        # mmdebstrap leaves the machine's own name server settings and its logs behind.
        tidy = 'rm -f "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/var/log/*.log "$1"/var/log/apt/*'
        run_long(
            [
                "mmdebstrap",
                "--variant=minbase",
                "--format=tar",
                *options,
                f"--customize-hook={tidy}",
                _BASE_SUITE,
                layer,
            ],
            timeout=900,
            log=self._images / "log" / "base.log",
            still=lambda: self._progress.say("still making the base image"),
        )
        config = {"Cmd": ["bash"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
        write_image(archive, _BASE_IMAGE, layer, config)
        layer.unlink()

    def _make_home(self) -> Path:
        """Make a home directory for the build: tools find the machine's certificates and indexes there.

        It is mounted over /root, which exists in the image, so that neither settings nor mount points stay in it.
        """
        home = self._images / "home"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o700)
        bundle = next(
            (path for path in (os.environ.get("SSL_CERT_FILE", ""), *_CA_BUNDLES) if Path(path).is_file()), None
        )
        if bundle:
            shutil.copyfile(bundle, home / "ca.crt")
            (home / ".config" / "pip").mkdir(parents=True)
            (home / ".config" / "pip" / "pip.conf").write_text(pip_settings(os.environ, "/root/ca.crt"))
            (home / ".npmrc").write_text("cafile=/root/ca.crt\n")
            (home / ".curlrc").write_text("cacert = /root/ca.crt\n")
        return home

    def _archive(self, target: str, image: str) -> Path:
        """Return an archive of a built image, written if there is none yet; older ones of the target go."""
        archive = self._archive_path(target, image)
        if not archive.exists():
            archive.parent.mkdir(parents=True, exist_ok=True)
            for old in archive.parent.glob(f"{target}-*"):
                old.unlink()
            partial = archive.with_suffix(".partial")
            place = f"docker-archive:{partial}:docker.io/{self.reference(target)}"
            run(self._buildah("push", image, place), timeout=600, environ=self._environ())
            partial.replace(archive)
        return archive

    def _archive_path(self, target: str, image: str) -> Path:
        return self._images / "archives" / f"{target}-{image[:16]}.tar"
