"""Budgets as turns meet them: what a turn is expected to use, and what it used."""

from collections.abc import Sequence
from typing import Final

from agent_api.v1alpha1 import BUILT_IN_PROVIDERS, AgentSpec, Budget, ModelSpec
from agent_api.wire import BudgetCheck
from agent_runtime.budgets.amounts import NOTHING, micros
from agent_runtime.budgets.ledger import BudgetLedger, Hold, Refusal
from agent_runtime.telemetry.agent import AgentTelemetry
from agent_store.ports import Outcome, Spent

CHARS_PER_TOKEN: Final = 4
"""The usual estimate where nobody counts tokens."""
REPLY_TOKENS: Final = 500
"""What a reply is expected to take before the first one is known."""
FORGETTING: Final = 16
"""A turn is expected to use as much as the largest one lately; each later turn takes one part in so many off that."""


class TurnBudgets:
    """The budgets of one agent for its turns. Money counts only in the budget's currency."""

    def __init__(self, spec: AgentSpec, budget: Budget, ledger: BudgetLedger, telemetry: AgentTelemetry) -> None:
        self.ledger = ledger
        self._telemetry = telemetry
        self._currency = next(iter(budget.currencies), "")
        self._prices = {model.display: _price_of(model, self._currency) for model in spec.models}
        self._largest: Spent = (0, 0)

    async def admit(self, user: str, chars: int, *, begun: bool = False) -> Hold | Refusal:
        """Keep room for a turn that sends a model `chars` characters. Raises StoreUnavailable, LeaseLost.

        A turn that was `begun` before is never refused: its work so far would be in vain.
        """
        expected = self.expect(chars)
        if begun:
            return await self.ledger.admit_anyway(user, expected)
        found = await self.ledger.admit(user, expected)
        if isinstance(found, Refusal):
            self._telemetry.turn_over_budget(found.scope)
        return found

    async def admit_quietly(self, user: str, chars: int) -> Hold | None:
        """Do the same for work that no user waits for; None: there is no room for it now."""
        found = await self.ledger.admit(user, self.expect(chars), patience=0.0)
        return found if isinstance(found, Hold) else None

    def release(self, hold: Hold) -> None:
        """Give the room of a turn back of which nothing is accounted for."""
        self.ledger.settle(hold, NOTHING)

    def settle(self, hold: Hold, outcome: Outcome | None, chars: int = 0) -> None:
        """Note what a turn used; None: its work was ended without an outcome, so it counts as what was expected."""
        if outcome is None:
            self.ledger.settle(hold, None)
            return
        spent = self.spent_by(outcome, chars)
        faded = tuple(part - -(-part // FORGETTING) for part in self._largest)
        self._largest = (max(faded[0], spent[0]), max(faded[1], spent[1]))
        self.ledger.settle(hold, spent)

    def expect(self, chars: int) -> Spent:
        """Return what a turn is expected to use, at least one token and one millionth."""
        sent = chars // CHARS_PER_TOKEN
        made = 0 if self._largest[0] else REPLY_TOKENS
        dearest = max((price for price in self._prices.values() if price is not None), default=(0, 0))
        return max(1, sent + made, self._largest[0]), max(1, _cost(dearest, sent, made), self._largest[1])

    def spent_by(self, outcome: Outcome, chars: int) -> Spent:
        """Return what a turn used; of a model that does not say, an estimate from the length of what was said."""
        tokens_in, tokens_out = outcome.input_tokens, outcome.output_tokens
        money = (outcome.cost_micros or 0) if outcome.currency == self._currency else 0
        if not tokens_in + tokens_out and outcome.model is not None and not _is_built_in(outcome.model):
            tokens_in = chars // CHARS_PER_TOKEN
            tokens_out = sum(len(line.content) for line in outcome.messages) // CHARS_PER_TOKEN
            money = money or _cost(self._prices.get(outcome.model) or (0, 0), tokens_in, tokens_out)
        return tokens_in + tokens_out, money

    def checks(self) -> Sequence[BudgetCheck]:
        """Return where the budgets stand."""
        return self.ledger.checks()


def _is_built_in(model: str) -> bool:
    return model.partition("/")[0] in BUILT_IN_PROVIDERS


def _price_of(model: ModelSpec, currency: str) -> tuple[int, int] | None:
    """Return the price of a million tokens in and out, in millionths; None: not known in this currency."""
    if model.price is None or model.price.currency != currency:
        return None
    return micros(model.price.input_per_million), micros(model.price.output_per_million)


def _cost(price: tuple[int, int], tokens_in: int, tokens_out: int) -> int:
    return -(-(price[0] * tokens_in + price[1] * tokens_out) // 1_000_000)
