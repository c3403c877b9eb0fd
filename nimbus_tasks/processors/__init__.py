"""What a worker does to a page: ``process(page, progress) -> result``.

``page`` is the page record: ``page_id, project_id, batch_id, source_path, uploaded, extraction``
(the content map). ``progress(step, percent=None, message=None, **data)`` says where the processing
is: others see it, and it becomes one log entry. The result is a mapping with ``changes`` (how many
are proposed), ``confidence`` (0 to 1, or ``None``) and ``optimization`` (any JSON, kept in the page
record); each may be missing, and so may ``usage`` (``tokens_in``, ``tokens_out``, ``cost``), which
is summed over the batch. Raising fails the page; a
:class:`~nimbus_tasks.core.errors.ProcessorError` says with which code. A
:class:`~nimbus_tasks.core.errors.ProcessorUnusableError` fails no page: it gives them back and ends
the worker.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from nimbus_tasks.core.errors import ProcessorError, ProcessorUnusableError, UsageError

__all__ = ["Processor", "ProcessorError", "ProcessorUnusableError", "load_processor"]

Processor = Callable[[Mapping[str, Any], Callable[..., None]], Mapping[str, Any]]


def load_processor(name: str) -> Processor:
    """``audit``, or the function that ``package.module:function`` names.

    Raises :class:`UsageError` where there is none, or where importing its module fails.
    """
    if name == "audit":
        from nimbus_tasks.processors.audit import audit

        return audit
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise UsageError(
            f"{name[:80]!r} is no processor", advice="Give audit, llm or package.module:function."
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"cannot import the processor's module {module_name}: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"{module_name} has no function {function_name}")
    processor: Processor = function
    return processor
