"""versitygw: an S3 server over a directory, built from Go's module proxy."""

from __future__ import annotations

from pathlib import Path

from k2.dev.cache import cached, run
from k2.dev.process import Launch
from k2.dev.service import Service, answers, kept_secret

VERSION = "v1.8.0"
BUCKET = "warehouse"
_MODULE = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"


def _build(into: Path) -> None:
    run(
        ["go", "install", _MODULE],
        f"versitygw {VERSION} could not be built; it needs Go's module proxy",
        env={"GOBIN": str(into), "GOFLAGS": "-buildvcs=false"},
    )


class S3(Service):
    """A bucket is a directory below `data`; keys and secret are made up for each directory."""

    name = "s3"
    title = f"versitygw {VERSION} (S3)"
    tools = ("go",)
    default_ports = {"port": 17070}

    @classmethod
    def program(cls) -> Path:
        return cached(f"versitygw-{VERSION}", "bin", _build)

    def prepare(self) -> None:
        (self.directory / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
        (self.directory / "meta").mkdir(exist_ok=True)

    def launch(self) -> Launch:
        place = self.directory.absolute()
        return Launch(
            [
                *(str(self.program() / "versitygw"), "--port", f"127.0.0.1:{self.port}"),
                *("--health", "/health", "--quiet", "posix"),
                *("--sidecar", str(place / "meta"), str(place / "data")),
            ],
            # By the environment: arguments can be read by everybody on the machine.
            {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key},
        )

    @property
    def endpoint(self) -> str:
        """URL for S3 clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def access_key(self) -> str:
        """The key id."""
        return kept_secret(self.directory / "access-key")

    @property
    def secret_key(self) -> str:
        """The secret of the key."""
        return kept_secret(self.directory / "secret-key")

    @property
    def warehouse(self) -> str:
        """Where tables go."""
        return f"s3://{BUCKET}"

    def healthy(self) -> bool:
        return answers(f"{self.endpoint}/health")

    def variables(self) -> dict[str, str]:
        place = self.directory.absolute()
        assert self.access_key
        assert self.secret_key
        return {
            "K2_ICEBERG_S3_ENDPOINT": self.endpoint,
            "K2_ICEBERG_S3_ACCESS_KEY_FILE": str(place / "access-key"),
            "K2_ICEBERG_S3_SECRET_KEY_FILE": str(place / "secret-key"),
            "K2_ICEBERG_WAREHOUSE": self.warehouse,
        }
