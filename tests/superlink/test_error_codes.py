"""The registry of error codes, the code that raises them, and docs/errors.md say the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from superlink.error_codes import CODES, ErrorCode
from superlink.errors import HTTP_STATUS, HTTP_STATUS_BY_CODE, RETRYABLE_STATUSES

pytestmark = pytest.mark.surface

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("superlink", "gateway", "orchestrator", "services")
# Made by protoc.
GENERATED = REPOSITORY / "superlink" / "v1"
CODE = re.compile(r"[a-z]+(_[a-z]+)*")
ROW = re.compile(r"\| `(?P<code>\w+)` \| (?P<status>\S+) \| (?P<retryable>yes|no) \| (?P<meaning>.+) \|")


def trees() -> Iterator[ast.Module]:
    for room in ROOMS:
        for file in sorted((REPOSITORY / room).rglob("*.py")):
            if GENERATED not in file.parents:
                yield ast.parse(file.read_text(encoding="utf-8"))


def constants(node: ast.expr | None) -> Iterator[str]:
    """The codes that an expression may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from constants(node.body)
        yield from constants(node.orelse)


def takers_of_codes(modules: list[ast.Module]) -> tuple[dict[str, int], set[str]]:
    """The functions and classes with a parameter ``code``, and its place; the defaults of such parameters."""
    places, defaults = {}, set()
    for module in modules:
        owners = {id(each): each.name for each in ast.walk(module) if isinstance(each, ast.ClassDef)}
        for node in ast.walk(module):
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                arguments = child.args
                names = [argument.arg for argument in arguments.args]
                if "code" not in names:
                    continue
                is_method = names[0] in ("self", "cls")
                name = owners[id(node)] if child.name == "__init__" else child.name
                places[name] = names.index("code") - is_method
                given = dict(zip(names[len(names) - len(arguments.defaults) :], arguments.defaults, strict=True))
                defaults |= set(constants(given.get("code")))
    return places, defaults


def errors_of(modules: list[ast.Module]) -> set[str]:
    """``SuperlinkError`` and all that derives from it."""
    found = {"SuperlinkError"}
    while True:
        more = {
            node.name
            for module in modules
            for node in ast.walk(module)
            if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & found
        }
        if more <= found:
            return found
        found |= more


def raised_codes(modules: list[ast.Module]) -> set[str]:
    places, found = takers_of_codes(modules)
    errors = errors_of(modules)
    for module in modules:
        for node in ast.walk(module):
            match node:
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in places:
                    at_place = node.args[places[name]] if len(node.args) > places[name] else None
                    by_name = next((keyword.value for keyword in node.keywords if keyword.arg == "code"), None)
                    found |= {*constants(at_place), *constants(by_name)}
                case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id="code"), *_])], value=ast.Tuple(elts=[first, *_])):
                    found |= set(constants(first))
                case ast.AnnAssign(target=ast.Name(id="code"), value=value):
                    found |= set(constants(value))
                case ast.Assign(targets=[ast.Name(id="_BARE_CODES")], value=ast.Dict(values=values)):
                    found |= {code for value in values for code in constants(value)}
                case ast.ClassDef(name=name) if name in errors:
                    found |= set(codes_of_super(node))
    return {code for code in found if CODE.fullmatch(code)}


def codes_of_super(error: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(error):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__" and node.args:
            yield from constants(node.args[0])


@pytest.fixture(scope="module")
def modules() -> list[ast.Module]:
    return list(trees())


def test_every_code_that_is_raised_is_listed_and_every_listed_one_is_raised(modules: list[ast.Module]) -> None:
    assert raised_codes(modules) == set(CODES)


def test_the_search_finds_codes_however_they_are_given() -> None:
    source = """
class Odd(SuperlinkError):
    def __init__(self):
        super().__init__("by_super", "…", status=1)

def wrapper(message, code="by_default"): ...
wrapper("…", "by_place")
wrapper("…", code="by_name" if late else "by_other_name")
code, message = "by_tuple", "…"
"""
    assert raised_codes([ast.parse(source)]) == {
        *("by_super", "by_default", "by_place", "by_name", "by_other_name", "by_tuple")
    }


def test_a_code_is_always_raised_with_its_status(modules: list[ast.Module]) -> None:
    wrong = []
    for module in modules:
        for node in ast.walk(module):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if node.func.id == "invalid_argument":
                status = grpc.StatusCode.INVALID_ARGUMENT
            elif node.func.id == "SuperlinkError" and named.get("status", "").startswith("grpc.StatusCode."):
                status = grpc.StatusCode[named["status"].rpartition(".")[2]]
            else:
                continue
            retryable = named["retryable"] == "True" if "retryable" in named else status in RETRYABLE_STATUSES
            for code in constants(node.args[0]):
                listed = CODES[code]
                raised = (HTTP_STATUS_BY_CODE.get(code, HTTP_STATUS[status]), retryable)
                if raised != (listed.http_status, listed.retryable):
                    wrong.append(f"{code} is raised as {raised} and listed as {listed}")
    assert not wrong, "\n".join(wrong)
    for code, status in HTTP_STATUS_BY_CODE.items():
        assert CODES[code].http_status == status


def test_the_documentation_lists_the_codes_as_they_are() -> None:
    page = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
    documented = [
        ErrorCode(
            row["code"],
            int(row["status"]) if row["status"] != "–" else 0,
            row["retryable"] == "yes",
            row["meaning"],
        )
        for row in ROW.finditer(page)
    ]
    assert documented == list(CODES.values())
