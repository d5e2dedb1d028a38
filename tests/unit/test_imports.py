"""Who may import whom: ARCHITECTURE.md says it, this test reads it."""

import ast
from pathlib import Path

import pytest

import router

ROOT = Path(router.__file__).parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

CORES = [
    name
    for name in MODULES
    if name in {"channel.py", "fib.py", "fib_ops.py", "secy.py", "monitor/mtu.py"}
    or name in {f"bgp/{part}.py" for part in ("messages", "policy", "rib", "decision")}
    or name in {f"reconcile/{part}.py" for part in ("objects", "desired", "diff")}
    or name in {f"config/{part}.py" for part in ("effective", "checks", "impact", "profiles")}
    or (name.startswith("mka/") and name != "mka/driver.py")
]
IMPURE = {
    "asyncio",
    "socket",
    "os",
    "time",
    "random",
    "subprocess",
    "pyroute2",
    "cffi",
    "secrets",
    "threading",
}
PROTOCOLS = {"bgp", "mka", "bfd", "monitor"}
MAY_START_PROGRAMS = (
    "lab/",
    "bench/",
    "cli/",
    "supervise.py",
    "bgp/exabgp.py",
    "bgp/speaker.py",
    "kernel/",
    "config/secrets.py",
)


def imports(name: str) -> set[str]:
    """All modules that a module imports, those for type checking left out."""
    tree = ast.parse((ROOT / name).read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: relative import"
            found.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def tops(name: str) -> set[str]:
    return {module.partition(".")[0] for module in imports(name)}


@pytest.mark.parametrize("name", CORES)
def test_a_core_does_no_io(name):
    """Time, randomness and the world are arguments of a core."""
    assert not tops(name) & IMPURE


def test_the_list_of_cores_is_not_empty():
    """A renamed file must not leave this test without work."""
    assert len(CORES) >= 12


@pytest.mark.parametrize("name", MODULES)
def test_only_the_kernel_package_speaks_netlink(name):
    """pyroute2 stays behind router.kernel, cffi and the C behind router.dataplane."""
    if not name.startswith("kernel/"):
        assert "pyroute2" not in tops(name)
    if not name.startswith("dataplane/"):
        assert not tops(name) & {"cffi", "_cffi_backend"}


@pytest.mark.parametrize("name", [n for n in MODULES if n.partition("/")[0] in PROTOCOLS])
def test_protocols_do_not_know_each_other(name):
    """routerd carries facts between protocol packages."""
    own = name.partition("/")[0]
    others = {f"router.{package}" for package in PROTOCOLS - {own}}
    assert not {".".join(module.split(".")[:2]) for module in imports(name)} & others


@pytest.mark.parametrize("name", [n for n in MODULES if not n.startswith(MAY_START_PROGRAMS)])
def test_programs_are_started_in_few_places(name):
    """The product scripts nothing: who may start a program is a short list."""
    assert "subprocess" not in tops(name)


@pytest.mark.parametrize("name", [n for n in MODULES if not n.startswith("lab/")])
def test_the_product_does_not_need_the_lab(name):
    """Only the lab's own verb imports the lab."""
    if name != "cli/lab.py":
        assert not any(module.startswith("router.lab") for module in imports(name))


def test_the_shim_and_the_supervisor_need_only_the_standard_library():
    """Both must be small and have nothing to crash on."""
    for name in ("supervise.py", "bgp/shim.py"):
        ours = {module for module in imports(name) if module.startswith("router")}
        assert not ours
        assert not tops(name) & {"pydantic", "structlog", "aiohttp", "typer", "rich", "ruamel"}
