"""The secret that a site without SECRET_KEY keeps."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from project.secret import kept_secret


def test_secret_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret_key"
    secret = kept_secret(path)
    assert len(secret) >= 50
    assert kept_secret(path) == secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_secrets_differ(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        secrets = [*pool.map(kept_secret, [tmp_path / str(number) for number in range(4)])]
    assert len(set(secrets)) == 4
