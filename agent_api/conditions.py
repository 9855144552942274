"""Condition types and reasons: what status may say, and what each word means.

Every reason has a page docs/reasons/<Reason>.md (cause, check, remedy). Reasons double as metric labels, so they are
few and stable.
"""

from enum import StrEnum
from typing import Final


class ConditionType(StrEnum):
    """Condition types in the order status lists them."""

    READY = "Ready"
    ACCEPTED = "Accepted"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    STATE_STORE_READY = "StateStoreReady"
    MODEL_REACHABLE = "ModelReachable"
    TOOLS_READY = "ToolsReady"
    SUSPENDED = "Suspended"


class Reason(StrEnum):
    """Reasons of conditions; `REASON_MEANINGS` says what each stands for."""

    SERVING = "Serving"
    VALID = "Valid"
    UP_TO_DATE = "UpToDate"
    ALL_WELL = "AllWell"
    CONNECTED = "Connected"
    REACHABLE = "Reachable"
    NOT_SUSPENDED = "NotSuspended"
    NOT_SERVING = "NotServing"
    STARTING = "Starting"
    ROLLING_OUT = "RollingOut"
    INVALID_SPEC = "InvalidSpec"
    SECRET_MISSING = "SecretMissing"
    CONFIG_MAP_MISSING = "ConfigMapMissing"
    NAME_CONFLICT = "NameConflict"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CRASH_LOOP = "CrashLoop"
    OOM_KILLED = "OOMKilled"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_FORBIDDEN = "PodForbidden"
    PROBE_FAILING = "ProbeFailing"
    ROLLOUT_FAILED = "RolloutFailed"
    STATE_STORE_UNREACHABLE = "StateStoreUnreachable"
    CONNECTION_REFUSED = "ConnectionRefused"
    TIMEOUT = "Timeout"
    AUTH_FAILED = "AuthFailed"
    TLS_FAILED = "TLSFailed"
    CONNECTION_LIMIT = "ConnectionLimit"
    READ_ONLY = "ReadOnly"
    SCHEMA_TOO_OLD = "SchemaTooOld"
    UNKNOWN = "Unknown"
    MODEL_AUTH_FAILED = "ModelAuthFailed"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_RATE_LIMITED = "ModelRateLimited"
    MODEL_UNREACHABLE = "ModelUnreachable"
    MODEL_REFUSED = "ModelRefused"
    UNKNOWN_PARAMETER = "UnknownParameter"
    SERVING_ON_FALLBACK = "ServingOnFallback"
    FALLBACK_ONLY = "FallbackOnly"
    PRICE_UNKNOWN = "PriceUnknown"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    TOOL_DOWN = "ToolDown"
    ENCRYPTION_KEY_MISMATCH = "EncryptionKeyMismatch"
    STATE_ADOPTION_REFUSED = "StateAdoptionRefused"
    SCALED_TO_ZERO = "ScaledToZero"
    SUSPENDED = "Suspended"


REASON_MEANINGS: Final[dict[Reason, str]] = {
    Reason.SERVING: "A message sent now gets a reply from the primary model.",
    Reason.VALID: "The spec is valid and everything it refers to exists.",
    Reason.UP_TO_DATE: "All pods run the current revision.",
    Reason.ALL_WELL: "Nothing is broken.",
    Reason.CONNECTED: "The runtime reaches what it depends on.",
    Reason.REACHABLE: "The primary model can be called.",
    Reason.NOT_SUSPENDED: "`spec.suspend` is false.",
    Reason.NOT_SERVING: "Not applicable while the agent does not serve; see Ready.",
    Reason.STARTING: "A pod is being started, the first one or one more.",
    Reason.ROLLING_OUT: "A new revision is being rolled out while the last one serves.",
    Reason.INVALID_SPEC: "The spec passed the API server but cannot work; the message names the field.",
    Reason.SECRET_MISSING: "A Secret, or a key in it, that the spec refers to does not exist.",
    Reason.CONFIG_MAP_MISSING: "A ConfigMap, or a key in it, that the spec refers to does not exist.",
    Reason.NAME_CONFLICT: "An object with the name this agent needs exists and belongs to something else.",
    Reason.IMAGE_PULL_FAILED: "The runtime image cannot be pulled.",
    Reason.CRASH_LOOP: "The runtime ends again and again.",
    Reason.OOM_KILLED: "The runtime was killed because it used more memory than its limit.",
    Reason.UNSCHEDULABLE: "No node has room for the pod.",
    Reason.QUOTA_EXCEEDED: "A ResourceQuota of the namespace forbids the pod.",
    Reason.POD_FORBIDDEN: "An admission rule of the namespace forbids the pod.",
    Reason.PROBE_FAILING: "The runtime runs but its readiness probe fails for a reason it does not name.",
    Reason.ROLLOUT_FAILED: "The new revision does not become ready; the last good one keeps serving.",
    Reason.STATE_STORE_UNREACHABLE: "Postgres cannot be used; messages are refused with 503 until it can.",
    Reason.CONNECTION_REFUSED: "Postgres refuses connections.",
    Reason.TIMEOUT: "Postgres does not answer in time.",
    Reason.AUTH_FAILED: "Postgres refuses the user or password.",
    Reason.TLS_FAILED: "No TLS connection to Postgres can be made.",
    Reason.CONNECTION_LIMIT: "Postgres has no free connection.",
    Reason.READ_ONLY: "Postgres is read-only.",
    Reason.SCHEMA_TOO_OLD: "The database schema is older than this version needs.",
    Reason.UNKNOWN: "Not known yet, or not any more.",
    Reason.MODEL_AUTH_FAILED: "The model's provider refuses the API key.",
    Reason.MODEL_NOT_FOUND: "The model's provider does not know the model.",
    Reason.MODEL_RATE_LIMITED: "The model's provider takes no more requests for now.",
    Reason.MODEL_UNREACHABLE: "The model's provider cannot be reached, fails, or does not answer in time.",
    Reason.MODEL_REFUSED: "The model's provider refuses every request.",
    Reason.UNKNOWN_PARAMETER: "The model's provider does not know a parameter of `models[].parameters`.",
    Reason.SERVING_ON_FALLBACK: "The primary model cannot be used; a fallback model gives real replies.",
    Reason.FALLBACK_ONLY: "Only models further down the fallback chain can be called.",
    Reason.PRICE_UNKNOWN: "A budget in money is set, and a model has no price.",
    Reason.BUDGET_EXHAUSTED: "The agent's budget of the day is used up; turns are refused until the next day.",
    Reason.TOOL_DOWN: "A tool cannot be used; the agent answers without it.",
    Reason.ENCRYPTION_KEY_MISMATCH: "The encryption key is missing or is not the one that state was written with.",
    Reason.STATE_ADOPTION_REFUSED: "The annotation `abide.dev/adopt-state` names state that this agent may not take.",
    Reason.SCALED_TO_ZERO: "`spec.replicas` is 0.",
    Reason.SUSPENDED: "`spec.suspend` is true: no pods run, state is kept.",
}
