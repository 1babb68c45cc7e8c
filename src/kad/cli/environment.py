"""`kad info --environment`: versions, system and devices, for a report of an error."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from rich.table import Table

from kad import __version__
from kad.cli import stdio
from kad.errors import KadError
from kad.hosts import HOSTS, TRANSFORMERS, Host, check, installed, release

# Packages that decide how models run and are no hosts of kad.
_OTHERS = ("tokenizers", "huggingface-hub", "safetensors", "numpy", "rich", "filelock")


def environment() -> dict[str, Any]:
    """Everything as JSON. It names no user, no folder and no machine."""
    import torch

    return {
        "kad": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "console": {"output": sys.stdout.encoding, "files": sys.getfilesystemencoding()},
        "processor": {"cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "devices": _devices(),
        "hosts": {host.package: _host(host) for host in HOSTS},
        "packages": {package: installed(package) for package in _OTHERS},
        "rule_plugins": _plugins(),
        "problem": _problem(),
    }


def render(facts: dict[str, Any]) -> Table:
    """The facts as a table."""
    processor, console = facts["processor"], facts["console"]
    lines = [
        ("kad", facts["kad"]),
        ("Python", facts["python"]),
        ("system", facts["system"]),
        ("console", f"{console['output']}, file names {console['files']}"),
        ("processor", f"{processor['cores']} cores, {processor['threads']} threads"),
        ("devices", "; ".join(facts["devices"]) or "no accelerator"),
    ]
    for host in facts["hosts"].values():
        note = f" ({host['note']})" if host["note"] else ""
        lines.append((host["name"], f"{host['installed'] or 'not installed'}, tested {host['tested']}{note}"))
    lines += [(package, version) for package, version in facts["packages"].items() if version is not None]
    lines += [("rule plugin", plugin) for plugin in facts["rule_plugins"]]
    return stdio.facts([*lines, ("problem", facts["problem"] or "none")])


def _host(host: Host) -> dict[str, Any]:
    version = installed(host.package)
    note = None
    if version is None and host.extra is not None:
        note = f'pip install "kad-align[{host.extra}]"'
    elif version is not None and release(version) > release(host.newest):
        note = "newer than tested"
    elif version is not None and release(version) < release(host.oldest):
        note = "older than tested"
    return {"name": host.name, "installed": version, "tested": host.tested, "note": note}


def _devices() -> list[str]:
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.1f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps")
    if torch.xpu.is_available():
        devices += [f"xpu:{index} {torch.xpu.get_device_name(index)}" for index in range(torch.xpu.device_count())]
    return devices


def _plugins() -> list[str]:
    from kad.method.rules import package_of, registry, skipped_plugins

    own = [f"{name} from {package_of(rule)}" for name, rule in registry().items() if package_of(rule) != "kad"]
    return own + [f"{plugin.plugin} of {plugin.package} skipped: {plugin.reason}" for plugin in skipped_plugins()]


def _problem() -> str | None:
    """Why kad cannot work with the installed Transformers, in one sentence. None if it can."""
    try:
        from kad.engines.transformers.host import NEEDS  # its import checks, too

        check(TRANSFORMERS, NEEDS)
    except KadError as error:
        return str(error)
    return None
