"""Manifest files, --secret options, and what is put in where the cluster would do it."""

import base64
import stat
from pathlib import Path

import pytest

from agent_api.manifest import Documents, load_documents
from agent_cli.errors import UsageError
from agent_cli.manifests import (
    parse_secret_options,
    read_documents,
    resolve,
    validation_lines,
    write_secrets,
)


def agent(name: str = "assistant", namespace: str = "shop", spec: str = "systemPrompt: Be kind.", ref: str = "") -> str:
    """Return an Agent; `ref` as secret/key gives its model a key."""
    secret, _, key = ref.partition("/")
    key_ref = f", apiKeySecretRef: {{name: {secret}, key: {key}}}" if ref else ""
    return f"""
apiVersion: abide.dev/v1alpha1
kind: Agent
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  {spec}
  models: [{{provider: echo{key_ref}}}]
---"""


PROMPT_REF = "systemPromptFrom: {configMapKeyRef: {name: prompts, key: main}}"
PROMPTS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: prompts, namespace: shop}
data: {main: Be brief., empty: ""}
---"""
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: llm, namespace: shop}
stringData: {openai: from-the-file}
---"""


def documents(*texts: str) -> Documents:
    return load_documents("\n".join(texts), source="test")


def problems(text: Documents, *options: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        resolve(text, parse_secret_options(options, {"KEY": "value"}))
    return caught.value.lines


def test_files_are_read_in_order_and_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(agent("first") + SECRET)
    (tmp_path / "b.yaml").write_text(agent("second") + PROMPTS)
    found = read_documents([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert [a.metadata.name for a in found.agents] == ["first", "second"]
    assert [s.name for s in found.secrets] == ["llm"]
    assert [c.name for c in found.config_maps] == ["prompts"]


def test_every_problem_of_every_file_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: abide.dev/v1alpha1\nkind: Agent\nmetadata: {name: x}\nspec: {models: []}"
    )
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "missing.yaml", tmp_path]
    with pytest.raises(UsageError) as caught:
        read_documents(paths)
    assert caught.value.exit_code == 2
    text = caught.value.lines
    assert [line for line in text if line.startswith(f"{paths[0]}:1: ") and "spec.models" in line]
    assert f"{paths[1]}: is not UTF-8 text" in text
    assert f"{paths[2]}: cannot be read: No such file or directory" in text
    assert f"{paths[3]}: cannot be read: Is a directory" in text


def test_one_agent_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(agent())
    with pytest.raises(UsageError, match="Agent shop/assistant stands in the files twice; keep one"):
        read_documents([tmp_path / "a.yaml", tmp_path / "b.yaml"])


def test_files_without_an_agent_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SECRET)
    with pytest.raises(UsageError, match=r"a\.yaml: no Agent here"):
        read_documents([tmp_path / "a.yaml"])


def test_a_prompt_comes_from_its_config_map() -> None:
    (resolved,) = resolve(documents(agent(spec=PROMPT_REF), PROMPTS)).agents
    assert resolved.spec.system_prompt == "Be brief."
    assert resolved.spec.system_prompt_from is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (agent(spec=PROMPT_REF), "ConfigMap shop/prompts is missing; add it to the file"),
        (
            agent(spec=PROMPT_REF.replace("main", "other")) + PROMPTS,
            'ConfigMap shop/prompts has no key "other"; add it to the file',
        ),
        (
            agent(spec=PROMPT_REF.replace("main", "empty")) + PROMPTS,
            "key 'empty': too short; write at least 1 character",
        ),
        (agent(spec=PROMPT_REF, namespace="elsewhere") + PROMPTS, "ConfigMap elsewhere/prompts is missing"),
    ],
)
def test_a_prompt_that_cannot_be_found_or_used_is_named(text: str, expected: str) -> None:
    (problem,) = problems(documents(text))
    assert problem.startswith("Agent ")
    assert f": spec.systemPromptFrom.configMapKeyRef: {expected}" in problem


def test_a_secret_comes_from_the_file() -> None:
    resolved = resolve(documents(agent(ref="llm/openai"), SECRET))
    assert resolved.secrets == {"llm": {"openai": b"from-the-file"}}


def test_an_option_wins_over_the_file() -> None:
    options = parse_secret_options(["llm.openai=env:KEY"], {"KEY": "from-the-environment"})
    assert resolve(documents(agent(ref="llm/openai"), SECRET), options).secrets == {
        "llm": {"openai": b"from-the-environment"}
    }


def test_an_option_fits_names_and_keys_with_dots(tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"\x00binary\n")
    options = parse_secret_options([f"my.llm.api.key=file:{tmp_path / 'value'}"], {})
    assert resolve(documents(agent(ref="my.llm/api.key")), options).secrets == {"my.llm": {"api.key": b"\x00binary\n"}}
    assert resolve(documents(agent(ref="my/llm.api.key")), options).secrets == {"my": {"llm.api.key": b"\x00binary\n"}}


def test_missing_secrets_and_keys_are_all_named_with_the_remedy() -> None:
    text = documents(agent("one", ref="llm/openai"), agent("two", ref="gone/key"), SECRET.replace("openai", "other"))
    one, two = problems(text)
    assert one == (
        'Agent shop/one: spec.models[0].apiKeySecretRef: Secret shop/llm has no key "openai"; '
        "add it to the file, or give --secret llm.openai=env:VARIABLE"
    )
    assert two == (
        "Agent shop/two: spec.models[0].apiKeySecretRef: Secret shop/gone is missing; "
        "add it to the file, or give --secret gone.key=env:VARIABLE"
    )


def test_a_secret_of_another_namespace_does_not_count() -> None:
    (problem,) = problems(documents(agent(namespace="elsewhere", ref="llm/openai"), SECRET))
    assert "Secret elsewhere/llm is missing" in problem


def test_two_values_under_one_name_cannot_be_served_together() -> None:
    text = documents(
        agent(ref="llm/openai"),
        SECRET,
        agent(namespace="other", ref="llm/openai"),
        SECRET.replace("shop", "other").replace("from-the-file", "different"),
    )
    (problem,) = problems(text)
    assert "another value in another namespace" in problem
    assert "different" not in problem


def test_an_option_nobody_refers_to_is_refused() -> None:
    assert problems(documents(agent()), "llm.opneai=env:KEY") == [
        "--secret llm.opneai: no agent in the files refers to it"
    ]


@pytest.mark.parametrize(
    "option",
    ["llm", "llm.key", "llm=env:KEY", "llm.=env:KEY", ".key=env:KEY", "llm.key=KEY", "llm.key=env:", "llm.key=s3cret"],
)
def test_a_malformed_option_is_refused_without_showing_its_value(option: str) -> None:
    with pytest.raises(UsageError, match=r"write NAME\.KEY=env:VARIABLE or NAME\.KEY=file:PATH") as caught:
        parse_secret_options([option], {"KEY": "value"})
    assert "s3cret" not in str(caught.value)


def test_sources_that_do_not_exist_are_all_named() -> None:
    with pytest.raises(UsageError) as caught:
        parse_secret_options(["a.b=env:NOT_THERE", "c.d=file:/not/there"], {})
    assert caught.value.lines == [
        "--secret a.b: the environment has no variable NOT_THERE",
        "--secret c.d: /not/there cannot be read: No such file or directory",
    ]


def test_values_are_kept_out_of_reprs() -> None:
    text = documents(agent(ref="llm/openai"), SECRET)
    options = parse_secret_options(["llm.openai=env:KEY"], {"KEY": "hidden-value"})
    assert "hidden-value" not in repr(options) + repr(resolve(text, options))


def test_secrets_are_written_as_the_cluster_mounts_them_for_this_user_alone(tmp_path: Path) -> None:
    write_secrets({"llm": {"openai": b"first"}}, tmp_path)
    write_secrets({"llm": {"openai": b"second"}}, tmp_path)
    file = tmp_path / "llm" / "openai"
    assert file.read_bytes() == b"second"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["openai"]


def test_validation_tells_what_an_agent_needs_beside_its_file() -> None:
    text = documents(agent("whole"), agent("needy", spec=PROMPT_REF, ref="llm/openai"))
    assert validation_lines(text) == [
        "Agent shop/whole is valid",
        'Agent shop/needy is valid; it needs Secret shop/llm with key "openai", ConfigMap shop/prompts with key "main"',
    ]


def test_secret_data_is_base64() -> None:
    encoded = base64.b64encode(b"decoded").decode()
    text = documents(agent(ref="llm/openai"), SECRET.replace("stringData", "data").replace("from-the-file", encoded))
    assert resolve(text).secrets == {"llm": {"openai": b"decoded"}}
