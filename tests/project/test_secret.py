"""The secret that a site without SECRET_KEY keeps."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from project.secret import kept_secret, private_file


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


def test_a_private_file_is_made_or_closed_and_keeps_what_it_has(tmp_path: Path) -> None:
    made, found = tmp_path / "made", tmp_path / "found"
    found.write_text("rows")
    found.chmod(0o644)
    for path in (made, found):
        assert private_file(path) == path
        assert path.stat().st_mode & 0o777 == 0o600
    assert found.read_text() == "rows"
