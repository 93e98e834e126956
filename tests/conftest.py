"""Eight virtual CPU devices for every test, decided before JAX is first imported."""

import atexit
import os
import shutil
import signal
import tempfile

# In the background of a script SIGINT comes ignored, and would be so in all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests compile much and compute little: the cheapest code is good enough.
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_given = os.environ.get("XLA_FLAGS", "")
_new = [f"{flag}={value}" for flag, value in _FLAGS.items() if flag not in _given]
os.environ["XLA_FLAGS"] = " ".join([_given, *_new]).strip()

# Equal programs are compiled once, for all workers and the programs that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="srpo_jax_compiled_")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

import tests.typecheck  # noqa: E402, F401 (the hook below looks it up)

# Shapes and dtypes in these modules' annotations are checked at every call of a test; see test_shapes.py.
CHECKED = (
    "srpo_jax.trees.prefix_tree",
    "srpo_jax.trees.packing",
    "srpo_jax.training.scoring",
    "srpo_jax.models.vocabulary",
    "srpo_jax.objectives.losses",
    "srpo_jax.objectives.table",
    "srpo_jax.models.attention.attend",
    "srpo_jax.models.attention.mask",
)
jaxtyping.install_import_hook(CHECKED, "tests.typecheck.public")


@pytest.fixture(scope="session")
def checked_modules():
    return CHECKED


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Equal programs of one test file are compiled once, also where `jax.jit` is called anew."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {key: getattr(jax.config, key) for key in settings}
    compilation_cache.reset_cache()
    for key, value in settings.items():
        jax.config.update(key, value)
    yield
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()
