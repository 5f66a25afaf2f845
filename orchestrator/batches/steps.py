"""One step of a batch, from its message to its effect."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from opentelemetry.trace import SpanKind

from orchestrator.batches.assembly import assemble
from orchestrator.batches.claims import Claim, Step
from orchestrator.batches.planning import plan_batch
from orchestrator.batches.shards import Tools, run_shard
from orchestrator.batches.webhooks import deliver
from superlink.batch_documents import Delivery, Ending, InputProblem, Order, Outcome, Plan
from superlink.errors import SuperlinkError
from superlink.telemetry import received_context, tracer

logger = logging.getLogger(__name__)

PLAN, ASSEMBLE, NOTIFY = "plan", "assemble", "notify"
# Until a step is tried again whose store does not answer, or that failed on its own.
STORE_WAIT_S, FAILURE_WAIT_S = 2.0, 10.0


def do_step(step: Step, tools: Tools) -> None:
    """Do what a message asks; nothing where somebody else does it, or it is done. Raises nothing.

    A step that fails is postponed, and the keeper has it done again.
    """
    try:
        with tools.claims.claimed(step) as claim:
            if claim is not None:
                _do_claimed(step, claim, tools)
    except SuperlinkError as error:
        logger.warning("a step was not begun", extra={"batch": step.batch.id, "step": step.what, "code": error.code})
        return
    tools.claims.wake()


def _do_claimed(step: Step, claim: Claim, tools: Tools) -> None:
    facts = {"batch": step.batch.id, "step": step.what}
    try:
        order = tools.batches.read(step.batch, Order)
        if order is None:
            return
        with tracer.start_as_current_span(
            "batch shard" if step.is_shard else f"batch {step.what}",
            context=received_context(order.trace),
            kind=SpanKind.CONSUMER,
            attributes={"superlink.batch": order.id},
            record_exception=False,
        ):
            _do(step, order, claim, tools)
    except SuperlinkError as error:
        claim.postpone(STORE_WAIT_S)
        reason = str(error.__cause__ or error)
        logger.warning("a step has to wait", extra={**facts, "code": error.code, "reason": reason})
        _forgive(step, tools)
    except Exception:
        # As if the process had died with it: the line that it fails on is found, and given up.
        claim.postpone(FAILURE_WAIT_S)
        logger.exception("a step failed", extra=facts)


def _do(step: Step, order: Order, claim: Claim, tools: Tools) -> None:
    if step.what == PLAN:
        _plan(step, order, tools)
        return
    plan = tools.batches.read(step.batch, Plan)
    ending = tools.batches.read(step.batch, Ending)
    if step.is_shard:
        if plan is not None and ending is None:
            run_shard(order, plan, int(step.what), claim, tools)
    elif step.what == ASSEMBLE:
        if plan is not None and ending is not None:
            assemble(order, plan, ending, tools)
    elif step.what == NOTIFY:
        _notify(step, order, tools)


def _plan(step: Step, order: Order, tools: Tools) -> None:
    deaths = tools.claims.count_death(step)
    if deaths > tools.profile.batches.max_deliveries:
        problem = InputProblem(code="internal", message="The input file cannot be read; the log has the reason.")
        tools.batches.write(step.batch, Plan(planned_at=datetime.now(UTC), lines=0, shards=0, problems=(problem,)))
    else:
        plan_batch(order, tools.artifacts, tools.batches, tools.profile)
    tools.claims.forget_deaths(step)


def _notify(step: Step, order: Order, tools: Tools) -> None:
    outcome = tools.batches.read(step.batch, Outcome)
    before = tools.batches.read(step.batch, Delivery)
    if outcome is None or before is not None and before.next_at is None:
        return
    delivery = deliver(order, outcome, before, tools.profile.batches.webhooks)
    tools.batches.write(step.batch, delivery)


def _forgive(step: Step, tools: Tools) -> None:
    """The process lives: a store that is away is nobody's death."""
    try:
        tools.claims.forget_deaths(step)
    except SuperlinkError:
        return
