from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed: needs the extra 'runtime'"
)


def told(script: str) -> dict[str, object]:
    """Run a script in a fresh process and return the JSON it prints."""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def test_the_engine_comes_without_the_packages_it_does_not_need() -> None:
    found = told(
        "import json, resource, sys\n"
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "import tokenweir.runtime.engines.mlx\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(json.dumps({'there': sorted(names & {'transformers', 'huggingface_hub', 'torch'}),\n"
        "    'kept': before == resource.getrlimit(resource.RLIMIT_NOFILE),\n"
        "    'real': resource.setrlimit.__module__}))\n"
    )
    assert found == {"there": [], "kept": True, "real": "resource"}


def test_the_real_packages_can_be_imported_afterwards() -> None:
    found = told(
        "import json\n"
        "import tokenweir.runtime.engines.mlx\n"
        "import huggingface_hub, transformers\n"
        "print(json.dumps([hasattr(transformers, '__version__'), callable(huggingface_hub.hf_hub_download)]))\n"
    )
    assert found == [True, True]


def test_nothing_is_downloaded() -> None:
    found = told(
        "import json\n"
        "import tokenweir.runtime.engines.mlx\n"
        "import mlx_lm\n"
        "try:\n"
        "    mlx_lm.load('somebody/something')\n"
        "except Exception as error:\n"
        "    print(json.dumps({'said': str(error)}))\n"
    )
    assert "nothing is downloaded" in str(found["said"])


def test_a_package_that_looks_up_other_names_is_imported_as_it_is() -> None:
    found = told(
        "import json, sys\n"
        "from tokenweir.runtime.engines.mlx import light_import\n"
        "for name in [name for name in sys.modules if name.startswith('mlx_lm')]:\n"
        "    del sys.modules[name]\n"
        "del light_import._Tokenizer.register\n"
        "modules = light_import.import_mlx_lm()\n"
        "import transformers\n"
        "print(json.dumps([hasattr(modules['mlx_lm.generate'], 'BatchGenerator'),\n"
        "    hasattr(transformers, '__version__')]))\n"
    )
    assert found == [True, True]
