"""`abide dev` encrypts what it keeps, and `abide keys` shows and rotates the keys of a serving agent."""

import json
import re
import signal
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg

from agent_store.codec_aes import new_key
from agent_store.codec_keys import format_key
from tests.integration.agent_cli.dev_process import COMMAND, Dev, echo_agent, environment, running, until

WORDS = "the parcel number is 4711"


def abide(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], cwd=home, env=environment(home), capture_output=True, text=True, timeout=60, check=False
    )


def contents(url: str) -> list[bytes]:
    with psycopg.connect(url) as connection:
        return [bytes(row[0]) for row in connection.execute("SELECT content FROM abide.messages ORDER BY seq")]


def test_what_dev_keeps_is_encrypted_with_a_key_in_its_data_folder(home: Path) -> None:
    data = home / "data"
    arguments = [echo_agent(home), "--data", data, "--no-chat"]
    with running(home, *arguments) as dev:
        assert dev.reply(WORDS) == f"{WORDS} [1]"
        assert not [content for content in contents(dev.postgres) if b"4711" in content]
    keys = data / "encryption-keys"
    assert [path.name for path in keys.iterdir()] == ["1"]
    assert (stat.S_IMODE(keys.stat().st_mode), stat.S_IMODE((keys / "1").stat().st_mode)) == (0o700, 0o600)
    right = (keys / "1").read_text()
    with running(home, *arguments) as dev:
        assert dev.reply("and now?") == "and now? [2]"
        assert len(contents(dev.postgres)) == 4
    (keys / "1").write_text(format_key(new_key()))
    wrong = Dev(home, arguments).start()
    try:
        until(lambda: "EncryptionKeyMismatch" in wrong.stderr, 60, "the wrong key is said")
        assert f'key "1" of folder {keys} is not the one' in wrong.stderr
    finally:
        wrong.end(signal.SIGINT)
    (keys / "1").write_text(right)
    with running(home, *arguments) as dev:
        assert dev.reply("again?") == "again? [3]"


def test_keys_are_rotated_and_content_is_encrypted_anew_while_the_agent_serves(home: Path) -> None:
    data = home / "data"
    with running(home, echo_agent(home), "--data", data, "--no-chat") as dev:
        url = ["--url", dev.url]
        for n in range(3):
            dev.reply(f"{WORDS} {n}")
        shown = abide(home, "keys", "status", "assistant", *url)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert re.fullmatch(r"DATA KEY +MADE +WRAPPED WITH +CURRENT *\n\w{6} +\S+ +1 +yes *\n", shown.stdout)
        (data / "encryption-keys" / "2").write_text(format_key(new_key()))
        rotated = json.loads(abide(home, "keys", "rotate", "assistant", "-o", "json", *url).stdout)
        assert [(key["wrappingKey"], key["current"]) for key in rotated["items"]] == [("2", False), ("2", True)]
        (data / "encryption-keys" / "1").unlink()
        old, new = (key["id"] for key in rotated["items"])
        counted = json.loads(abide(home, "keys", "status", "assistant", "--count", "-o", "json", *url).stdout)
        assert {one["key"]: one["rows"] for one in counted["rows"]} == {old: 6}
        with ThreadPoolExecutor(4) as pool:
            talking = [pool.submit(dev.reply, f"meanwhile {n}", session=f"m{n % 4}") for n in range(20)]
            done = abide(home, "keys", "reencrypt", "assistant", *url)
            assert all(one.result() for one in talking)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.match(r"Agent default/assistant: 6 of \d+ rows were encrypted anew", done.stdout)
        counted = json.loads(abide(home, "keys", "status", "assistant", "--count", "-o", "json", *url).stdout)
        # Each of the four sessions of five messages has a snapshot.
        assert {one["key"]: one["rows"] for one in counted["rows"]} == {new: 46 + 4}
        assert dev.reply("still there?") == "still there? [4]"
        with psycopg.connect(dev.postgres) as connection:
            connection.execute(
                "UPDATE abide.messages m SET content = o.content, key_id = %s FROM abide.messages o "
                "WHERE m.seq = 1 AND o.seq = 3 AND m.session_id = o.session_id",
                [old],
            )
        broken = abide(home, "keys", "reencrypt", "assistant", *url)
        assert broken.returncode == 1
        assert "do not decrypt" in broken.stderr
