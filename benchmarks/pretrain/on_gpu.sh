#!/usr/bin/env bash
# picto-clip on one GPU, ten minutes at most: bash benchmarks/pretrain/on_gpu.sh PARTS OUT [clip|unseen] [STEPS]
#
# PARTS: folder of `python -m benchmarks.pretrain pack CORPUS --out PARTS` (52 MiB). Where fewer bytes travel at once,
# bring one part after the other into a folder that stays there, then call this. OUT: checkpoints, evaluation.json and
# compact/, the small checkpoint to keep. A run that OUT holds goes on, so a compact checkpoint copied to OUT is resumed;
# 24,000 steps are 12.3 million pairs. MINUTES bounds the training (default 7); call again to go on.
set -euo pipefail
parts=$1 out=$2 which=${3:-clip} steps=${4:-24000}
python=${PY:-python} corpus=${CORPUS:-$parts/corpus}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
[ -f "$corpus/corpus.json" ] || "$python" -m benchmarks.pretrain unpack "$parts" --out "$corpus"
options=()
[ "$which" = unseen ] && options+=(--leave-out-test-classes)
"$python" -m benchmarks.pretrain train "$corpus" --out "$out" --recipe clip --steps "$steps" --threads 4 \
  --minutes "${MINUTES:-7}" "${options[@]}" --set save_every=500
"$python" -m benchmarks.pretrain evaluate "$out" --headroom
"$python" -m benchmarks.pretrain compact "$out" --checkpoint "$([ -f "$out/stable.json" ] && echo stable || echo checkpoint)" \
  --out "$out/compact"
