#!/usr/bin/env bash
# First figures on a bare GPU machine, in at most TOTAL seconds; run it in the project's root there.
#
# The machine has Python 3.12, jax, flax, optax, orbax-checkpoint, torch and no network.  What it lacks travels as wheels.
# Before, on a machine with a package registry:  mkdir -p .wheels && pip download --no-deps --python-version 312 \
#   --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --only-binary=:all: -d .wheels \
#   grain portpicker array_record ml_collections
#
# OUT      folder of tables and logs
# TOTAL    seconds, after which no stage begins and no stage goes on
# STAGES   which, in their order; step_N is the step at batch size N
# DEVICE   gpu, or cpu to try the script itself, as with SIZE=micro
# FORMS    of PyTorch in the steps; none where it is empty
# SIZE, LARGE_SIZE   of the networks in the first stages and in the stage `large`
set -u
started=$SECONDS
OUT=${OUT:-gpu_out} TOTAL=${TOTAL:-500} DEVICE=${DEVICE:-gpu} SIZE=${SIZE:-base} PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
work=$(mktemp -d)
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2 PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton # filled by the process below
unset JAX_COMPILATION_CACHE_DIR

declare -A limits # most seconds of a stage; without one, all that is left
if [ "$DEVICE" = cpu ]; then
  STAGES=${STAGES:-kernels step_8 variants contrastive large} LARGE_SIZE=${LARGE_SIZE:-micro}
  rounds="--rounds=2 --seconds=0.2" varied="--batch_size=8" large="--batch_size=64 --micro_batch=16"
  contrasted="--batch 64 256 --width 16 --timed_logits=65536"
else
  STAGES=${STAGES:-kernels variants step_256 contrastive large step_64} LARGE_SIZE=${LARGE_SIZE:-small}
  rounds="--rounds=5 --seconds=1" varied="--batch_size=256 --compile_seconds=55" large="--batch_size=32768 --micro_batch=1024"
  contrasted="--batch 16384 32768 65536 --timed_logits=4294967296"
  limits=([kernels]=90 [variants]=100 [step_256]=200 [step_64]=90 [contrastive]=40 [large]=60)
  export JAX_PLATFORMS=cuda,cpu # an error where there is none, not a CPU
fi
forms=${FORMS-eager,compiled}
"$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)" || forms=
step="train_step --device=$DEVICE --sizes=$SIZE $rounds --against=$forms"

program() { # the module of a stage and its arguments
  case $1 in
    step_*) echo "$step --batch_size=${1#step_}" ;;
    kernels) echo "step_kernels --device=$DEVICE --size=$SIZE ${varied%% *}" ;;
    variants) echo "step_variants --device=$DEVICE --size=$SIZE $rounds $varied" ;;
    contrastive) echo "contrastive --devices 1 $contrasted" ;;
    large) echo "large_batch --device=$DEVICE --size=$LARGE_SIZE $large" ;;
  esac
}
# Loads a stage's libraries while the stage before it runs, and begins when the file GO appears.  The alarm ends the
# process at its limit even within a compiler.
cat >"$work/stage.py" <<'P'
import importlib, os, signal, sys, time

if __name__ == "__main__":  # not in the processes that a stage itself starts
    go, module, *argv = sys.argv[1:]
    program = importlib.import_module(f"smke_jax.studies.benchmarks.{module}")
    from smke_jax.__main__ import run_program
    if module == "train_step" and "--against=" not in argv:
        import smke_jax.studies.benchmarks.pytorch
    while not os.path.exists(go):
        time.sleep(0.05)
    limit = int(open(go).read())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limit)
    print(f"begins, with {limit} s at most", file=sys.stderr)
    sys.exit(run_program(program.main, argv))
P

prepare() { # starts the process of a stage
  # shellcheck disable=SC2046
  timeout -k 5 $((TOTAL + 30)) "$PYTHON" "$work/stage.py" "$work/$1.go" $(program "$1") --out "$OUT/$1.md" \
    >"$OUT/$1.log" 2>&1 &
  pids[$1]=$!
}

if [ "$DEVICE" = gpu ]; then
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi
# Where an install works, the package's version is known as after any install; else its metadata is written by hand.
if ! "$PYTHON" -c "import grain, array_record, ml_collections" 2>/dev/null; then
  "$PYTHON" -m pip install -q --no-index --no-deps .wheels/*.whl >"$work/pip.log" 2>&1 || tail -3 "$work/pip.log"
fi
if ! "$PYTHON" -c "import importlib.metadata as m; m.version('smke_jax')" 2>/dev/null; then
  mkdir -p "$work/meta/smke_jax-0.dist-info"
  printf 'Metadata-Version: 2.1\nName: smke_jax\nVersion: %s\n' "$(sed -n 's/^version = //p' setup.cfg)" \
    >"$work/meta/smke_jax-0.dist-info/METADATA"
  export PYTHONPATH=$PYTHONPATH:$work/meta
fi

# PyTorch's compiler took more than three minutes of a first call: it begins at once, beside the stages of JAX alone,
# and leaves what it made on the disk for the stage that compares.
warm=
if [[ $forms == *compiled* && $DEVICE == gpu ]]; then
  JAX_PLATFORMS=cpu "$PYTHON" -c "
import time
from smke_jax.studies.benchmarks.sizes import made_up_batch, step_config
from smke_jax.studies.benchmarks.train_step import pytorch_contender
config = step_config('$SIZE', dtype='bfloat16', batch_size=256, gpu=True)
contender = pytorch_contender(config, made_up_batch(config), device='cuda', compiled=True)
begun = time.perf_counter()
contender.run(1)
print(f'PyTorch compiled the step of 256 alone in {time.perf_counter() - begun:.0f} s')
" >"$work/warm.log" 2>&1 &
  warm=$!
fi

declare -A pids took
read -ra stages <<<"$STAGES"
prepare "${stages[0]}"
"$PYTHON" - <<'P'
import importlib.metadata as m
print(", ".join(f"{p} {m.version(p)}" for p in ("jax", "jaxlib", "flax", "optax", "grain", "numpy")), end="")
try:
    print(", torch", m.version("torch"))
except m.PackageNotFoundError:
    print(", no torch")
P
echo "ready after $((SECONDS - started)) s"

failed=()
for ((i = 0; i < ${#stages[@]}; i++)); do
  stage=${stages[i]}
  left=$((TOTAL - (SECONDS - started)))
  if [ "$left" -lt 15 ]; then
    took[$stage]="not begun: $left s were left"
    [ -n "${pids[$stage]:-}" ] && kill "${pids[$stage]}" 2>/dev/null
    continue
  fi
  limit=${limits[$stage]:-$left}
  [ "$left" -lt "$limit" ] && limit=$left
  if [[ $stage == step_* && -n $warm ]]; then
    while kill -0 $warm 2>/dev/null && [ $((TOTAL - (SECONDS - started))) -gt 150 ]; do sleep 1; done
    kill $warm 2>/dev/null && echo "PyTorch's compiler was stopped after $((SECONDS - started)) s"
    tail -1 "$work/warm.log"
    warm=
    left=$((TOTAL - (SECONDS - started)))
    [ "$left" -lt "$limit" ] && limit=$left
  fi
  begun=$SECONDS
  echo "$limit" >"$work/$stage.tmp" && mv "$work/$stage.tmp" "$work/$stage.go"
  [ $((i + 1)) -lt ${#stages[@]} ] && prepare "${stages[i + 1]}"
  wait "${pids[$stage]}" 2>/dev/null
  status=$?
  took[$stage]="$((SECONDS - begun)) s, status $status"
  [ "$status" -ne 0 ] && failed+=("$stage")
done

# The reply keeps the end of the output: what failed first, the most important table last.
for stage in "${failed[@]}"; do
  echo "--- $stage failed (${took[$stage]}); its last lines:"
  grep -vE '^\s*$|warn' "$OUT/$stage.log" | tail -6 | cut -c1-300
done
for ((i = ${#stages[@]} - 1; i >= 0; i--)); do
  stage=${stages[i]}
  echo "=== $stage: ${took[$stage]}"
  [ -f "$OUT/$stage.md" ] && sed -n '/^Computed\|^Batch\|^Symmetric\|^Mean\|^Kinds/,$p' "$OUT/$stage.md" | grep -v '^$'
done
# At most eight files go back: the logs become one.
for stage in "${stages[@]}"; do
  [ -f "$OUT/$stage.log" ] && { echo "##### $stage"; tail -c 200000 "$OUT/$stage.log"; }
done >"$OUT/logs.txt"
for stage in "${stages[@]}"; do rm -f "$OUT/$stage.log"; done
rm -rf "$work"
echo "$((SECONDS - started)) s in all"
