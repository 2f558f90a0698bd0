#!/usr/bin/env bash
# What is to be measured on one GPU, without a network, in parts that end by themselves:
#   bash benchmarks/gpu.sh measure OUT         tests that need a GPU, variants of the step, the benchmarks: 9 minutes
#   bash benchmarks/gpu.sh leg OUT DATA [9.0]  a training leg on the parquet files in DATA, in so many minutes
# OUT gets the results as they come. Packages may lie in a folder of PYTHONPATH. TRY=1: small sizes on the CPU, to see
# that every part runs.
set -u
mode=${1:?measure or leg}
out=$(realpath -m "${2:?a folder for the results}")
data=${3:+$(realpath -m "$3")}
cd "$(dirname "$0")/.."
mkdir -p "$out"
: >"$out/parts.txt"
export PYTHONPATH="$PWD:$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 IFM_TRACKING=off
unset PYTHONDONTWRITEBYTECODE # many processes start: each would compile the packages anew
python=${PYTHON:-python3}

part() { # SECONDS NAME COMMAND...: one part may fail or run out of time without the others
    local seconds=$1 name=$2
    shift 2
    echo "== $name, at most $seconds s" >&2
    timeout --kill-after=5 "$seconds" "$@" >"$out/$name.log" 2>&1
    echo "$name: exit status $?" | tee -a "$out/parts.txt" >&2
}

case $mode in
measure)
    gpu_tests="gpu or kernel or graph or record or wait or cuda"
    if [ -n "${TRY:-}" ]; then
        part 120 step "$python" -m benchmarks.gpu_step --device cpu --tiny --limit 100 --only small --out "$out/step.jsonl"
        part 400 rates "$python" -m benchmarks --device cpu --quick --only step trajectories --out "$out/rates.json"
    else
        groups="small jpeg sampling paths cifar10" # without those that compile the whole network
        part 80 tests "$python" -m pytest -q -rfs tests/method/test_engine.py tests/method/test_faster.py -k "$gpu_tests"
        part 240 step "$python" -m benchmarks.gpu_step --limit 230 --patience 1.4 --only $groups --out "$out/step.jsonl"
        part 190 rates "$python" -m benchmarks --device cuda --minutes 2.8 --only short --out "$out/rates.json"
    fi
    ;;
leg)
    : "${data:?a folder with train*.parquet}"
    minutes=${4:-9.0}
    part "$("$python" -c "print(int(60 * $minutes) + 20)")" leg "$python" -m benchmarks.leg --data "$data" --minutes "$minutes" --out "$out"
    ;;
*)
    echo "benchmarks/gpu.sh: $mode is neither measure nor leg" >&2
    exit 2
    ;;
esac
cat "$out/parts.txt"
! grep -qv "exit status 0" "$out/parts.txt"
