export OMP_NUM_THREADS=4
timeout 150 python3 -m pytest -c /dev/null --rootdir=. tests/gpu -q -x 2>&1 | tail -25
timeout 120 python3 .dev/profile.py $OUT 2>&1 | tail -40
timeout 100 python3 -m benchmarks.fidelity --quick --questions 256 --device cuda --batch 32 --model factbook-plain --policy lean --json $OUT/try.json > $OUT/fid.txt 2>&1; grep -A8 questions_per $OUT/fid.txt | tail -5; python3 -c "
import json;[print(r['policy'],r['block'],r['exact_match'],r['questions_per_s']) for r in json.load(open('$OUT/try.json'))['rows']]"
timeout 150 python3 -m benchmarks.engine --model llada-8b --device cuda --quick --json $OUT/engine.json 2>&1 | tail -40
