"""The arguments of `abide conformance`, and its report."""

from typing import Annotated, Final
from uuid import uuid4

import typer

from agent_cli.errors import CliError, UsageError
from agent_cli.options import Key, Output
from agent_cli.output import OutputFormat, emit

MOST_CLEANED: Final = 200


def conformance(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the runtime answers, as http://host:port.")],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAMESPACE/NAME", help="The agent. Default: the first one it lists as a model."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, max=3600, help="Longest time of one turn, in seconds.")
    ] = 120.0,
    output: Output = OutputFormat.TABLE,
    key: Key = None,
) -> None:
    """Check from outside whether a runtime, such as an image of your own, keeps the interface that others rely on.

    Sends some thirty short messages to the agent, as a user of its own, and deletes its sessions afterwards. Exit code
    0: it conforms; 1: it does not, and the report says in what.
    """
    results = run(url.rstrip("/"), name, key or "", timeout)
    emit(output, {"conforms": all(one["ok"] for one in results), "checks": results}, lambda: _print(results))
    if not all(one["ok"] for one in results):
        raise typer.Exit(1)


def run(url: str, name: str | None, key: str, timeout: float) -> list[dict[str, object]]:
    """Return {check, law, ok, message} of every check. Raises CliError where nothing answers at all."""
    import httpx

    from agent_cli.conformance.checks import CHECKS
    from agent_cli.conformance.subject import NonconformityError, Subject

    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no address: write it as http://host:port")
    mark = uuid4().hex[:12]
    results: list[dict[str, object]] = []
    with httpx.Client(base_url=url, timeout=timeout + 10.0, trust_env=False) as http:
        namespace, _, agent = (name or _first_agent(http, key)).partition("/")
        subject = Subject(http, namespace, agent, key, f"conformance-{mark}", f"c-{mark}", timeout)
        try:
            for check in CHECKS:
                message = ""
                try:
                    check(subject)
                except NonconformityError as error:
                    message = str(error)
                except (KeyError, IndexError, TypeError, ValueError, AttributeError, httpx.HTTPError) as error:
                    message = f"an answer has another shape than it should: {type(error).__name__} {error}"
                results.append(
                    {
                        "check": check.__name__.replace("_", "-"),
                        "law": " ".join((check.__doc__ or "").split()),
                        "ok": not message,
                        "message": message,
                    }
                )
        finally:
            _clean(subject)
    return results


def _first_agent(http: object, key: str) -> str:
    import httpx

    assert isinstance(http, httpx.Client)  # noqa: S101 - imported here, so that the command stays quick
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = http.get("/v1/models", headers=headers)
    except httpx.HTTPError as error:
        raise CliError(f"Nothing answers at {http.base_url}: {error or type(error).__name__}.") from error
    if answer.status_code in (401, 403):
        raise CliError(f"{http.base_url}v1/models answers {answer.status_code}: give a valid --key.")
    try:
        return str(answer.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise CliError(f"{http.base_url}v1/models lists no agent: give --name NAMESPACE/NAME.") from None


def _clean(subject: object) -> None:
    from agent_cli.conformance.subject import NonconformityError, Subject

    assert isinstance(subject, Subject)  # noqa: S101
    try:
        for _ in range(MOST_CLEANED):
            items = subject.request("GET", f"{subject.path}/sessions").json()["items"]
            if not items:
                return
            for one in items:
                subject.request("DELETE", f"{subject.path}/sessions/{one['name']}")
    except (NonconformityError, ValueError, KeyError, TypeError):
        return


def _print(results: list[dict[str, object]]) -> None:
    for one in results:
        print(f"{'ok  ' if one['ok'] else 'FAIL'}  {one['check']}: {one['law']}")
        if not one["ok"]:
            print(f"      {one['message']}")
    failed = sum(not one["ok"] for one in results)
    print(f"{len(results) - failed} of {len(results)} checks passed" + ("" if failed else ": it conforms"))
